// The runtime of an emulated device: memory of the host, and a stream that is always done.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "capture.h"
#include "emulate.h"
#include "fault.h"
#include "runtime.h"

namespace needle::cuda {

namespace {

// Small, so that grids are small: each thread of them is a fiber.
const Properties emulated{"emulation on the CPU", 8, 0, 2, int64_t{4} << 30, 0};

bool wait_after_launch = false;

// The launches of a graph that is being captured.
std::vector<std::function<void()>> captured;

class EmulatedGraph : public Executable {
public:
    explicit EmulatedGraph(std::vector<std::function<void()>> launches)
        : launches_(std::move(launches))
    {
    }
    void run() override
    {
        for (const auto& launch : launches_) launch();
        after_launch("a graph");
    }

private:
    std::vector<std::function<void()>> launches_;
};

}  // namespace

int runtime_version() { return 0; }

void initialize()
{
    const char* wait = std::getenv("NEEDLE_CUDA_SYNC");
    wait_after_launch = wait != nullptr && std::strcmp(wait, "1") == 0;
}

const Properties& properties() { return emulated; }
int multiprocessors() { return emulated.multiprocessors; }
void* stream() { return nullptr; }

void* system_allocate(int64_t bytes)
{
    if (bytes > emulated.memory) return nullptr;
    void* data = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
    if (data != nullptr) std::memset(data, 0xa5, static_cast<size_t>(bytes));  // nobody counts on 0
    return data;
}

void system_free(void* data) { std::free(data); }
int64_t free_memory() { return emulated.memory; }

Fault* device_fault()
{
    static Fault fault{};
    return &fault;
}

void copy_to_device(void* target, const void* source, int64_t bytes)
{
    check_not_capturing("a copy to the device");
    std::memcpy(target, source, static_cast<size_t>(bytes));
}

void copy_to_host(void* target, const void* source, int64_t bytes)
{
    check_not_capturing("a copy to the host");
    std::memcpy(target, source, static_cast<size_t>(bytes));
    check_fault();
}

void synchronize()
{
    check_not_capturing("waiting for the device");
    check_fault();
}

void after_launch(const char*)
{
    if (wait_after_launch && !capturing()) check_fault();
}

void start_capture() { captured.clear(); }

std::unique_ptr<Executable> finish_capture()
{
    return std::make_unique<EmulatedGraph>(std::move(captured));
}

}  // namespace needle::cuda

namespace needle::emulation {

void launch(std::function<void()> grid)
{
    if (cuda::capturing())
        cuda::captured.push_back(std::move(grid));
    else
        grid();
}

}  // namespace needle::emulation
