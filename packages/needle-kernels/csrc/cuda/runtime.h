// The CUDA device as the rest of needle sees it: memory, one stream, copies, and what went wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace needle::cuda {

// A call of the CUDA runtime, or a kernel, that failed; the message names it.
class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

struct Properties {
    std::string name;
    int compute_major, compute_minor;
    int multiprocessors;
    int64_t memory;  // bytes on the device
    int driver;      // version, as 1000 * major + 10 * minor
};

// The version this was compiled with, as 1000 * major + 10 * minor; 0 where the CPU emulates.
int runtime_version();

// Device 0 becomes current and gets needle's one stream. Throws Error where there is none.
void initialize();
const Properties& properties();
int multiprocessors();

// The stream all kernels and copies run on, in the order of their calls.
void* stream();

// Memory of the device straight from the driver; nullptr when there is none left.
void* system_allocate(int64_t bytes);
void system_free(void* data);
int64_t free_memory();

// Both wait until the data has arrived. They go through pinned memory, a piece at a time.
void copy_to_device(void* target, const void* source, int64_t bytes);
void copy_to_host(void* target, const void* source, int64_t bytes);

// Waits until everything has run; throws Error for whatever went wrong since the last time.
void synchronize();

// After each launch: throws if it could not start. With NEEDLE_CUDA_SYNC=1 it waits for the kernel,
// so that an error of the kernel itself is thrown here, under its own name.
void after_launch(const char* kernel);

}  // namespace needle::cuda
