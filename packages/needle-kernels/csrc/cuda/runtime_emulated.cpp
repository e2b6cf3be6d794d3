// The runtime of an emulated device: memory of the host, and a stream that is always done.
#include <cstdlib>
#include <cstring>

#include "runtime.h"

namespace needle::cuda {

namespace {

// Small, so that grids are small: each thread of them is a fiber.
const Properties emulated{"emulation on the CPU", 7, 5, 2, int64_t{4} << 30, 0};

}  // namespace

int runtime_version() { return 0; }
void initialize() {}
const Properties& properties() { return emulated; }
int multiprocessors() { return emulated.multiprocessors; }
void* stream() { return nullptr; }

void* system_allocate(int64_t bytes)
{
    if (bytes > emulated.memory) return nullptr;
    void* data = std::malloc(static_cast<size_t>(bytes));
    if (data != nullptr) std::memset(data, 0xa5, static_cast<size_t>(bytes));  // nobody counts on 0
    return data;
}

void system_free(void* data) { std::free(data); }
int64_t free_memory() { return emulated.memory; }

void copy_to_device(void* target, const void* source, int64_t bytes)
{
    std::memcpy(target, source, static_cast<size_t>(bytes));
}

void copy_to_host(void* target, const void* source, int64_t bytes)
{
    std::memcpy(target, source, static_cast<size_t>(bytes));
}

void synchronize() {}
void after_launch(const char*) {}

}  // namespace needle::cuda
