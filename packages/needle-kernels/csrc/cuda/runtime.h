// The CUDA device as the rest of needle sees it: memory, one stream, copies, and what went wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
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

// Whether float32 products may use tensor cores, with operands rounded to TF32; off at first. Only
// GPUs from Ampere on can.
void set_tf32(bool on);
bool use_tf32();

// The stream all kernels and copies run on, in the order of their calls.
void* stream();

// Memory of the device straight from the driver; nullptr when there is none left.
void* system_allocate(int64_t bytes);
void system_free(void* data);
int64_t free_memory();

// Both go through pinned memory, a piece at a time. A copy to the device has read `source` when it
// returns, and arrives before the next kernel runs; a copy to the host waits.
void copy_to_device(void* target, const void* source, int64_t bytes);
void copy_to_host(void* target, const void* source, int64_t bytes);

// Waits until everything has run; throws Error for whatever went wrong since the last time, IdError
// for an id out of range. So does a copy to the host.
void synchronize();

// Before a launch: a kernel gets more than 48 KB of shared memory only where it was asked for.
void allow_shared(const void* kernel, size_t bytes);

// After each launch: throws if it could not start. With NEEDLE_CUDA_SYNC=1 it waits for the kernel,
// so that an error of the kernel itself is thrown here, under its own name.
void after_launch(const char* kernel);

// ---- capture: what is launched is not run but becomes a graph, which runs it again and again

class Executable {
public:
    virtual ~Executable() = default;
    virtual void run() = 0;  // all of it, on the stream
};

// Only launches may come between the two, of one thread; what waits for the device throws Error.
void begin_capture();
// The kernels since begin_capture(). Throws Error where something broke the capture; it has ended
// then, too.
std::unique_ptr<Executable> end_capture();
bool capturing();

// Throws Error while this or another thread captures: `what` would be no part of the graph.
void check_not_capturing(const char* what);
// Throws Error while another thread captures: this launch would become part of its graph.
void check_launch(const char* kernel);

}  // namespace needle::cuda
