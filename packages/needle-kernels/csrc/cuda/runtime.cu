#include "runtime.h"

#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

namespace needle::cuda {

namespace {

constexpr int64_t staging_bytes = int64_t{8} << 20;

struct State {
    Properties properties;
    cudaStream_t stream = nullptr;
    bool wait_after_launch = false;
    void* staging = nullptr;  // pinned: the driver copies from and to it without a copy of its own
    std::mutex staging_mutex;
};

State& state()
{
    static State* instance = new State;  // outlives arrays that die at the interpreter's end
    return *instance;
}

void check(cudaError_t result, const std::string& what)
{
    if (result == cudaSuccess) return;
    throw Error("cuda: " + what + ": " + cudaGetErrorName(result) + " (" +
                cudaGetErrorString(result) + ")");
}

// A kernel's own error shows at whatever call comes next; only waiting after each names it.
std::string some_kernel(const std::string& during)
{
    return "a kernel launched before failed, found during " + during +
           " (NEEDLE_CUDA_SYNC=1 shows which)";
}

}  // namespace

int runtime_version() { return CUDART_VERSION; }

void initialize()
{
    State& s = state();
    if (s.stream != nullptr) return;
    check(cudaSetDevice(0), "choosing device 0");
    cudaDeviceProp found;
    check(cudaGetDeviceProperties(&found, 0), "reading the device's properties");
    Properties& p = s.properties;
    p.name = found.name;
    p.compute_major = found.major;
    p.compute_minor = found.minor;
    p.multiprocessors = found.multiProcessorCount;
    p.memory = static_cast<int64_t>(found.totalGlobalMem);
    check(cudaDriverGetVersion(&p.driver), "reading the driver's version");
    check(cudaStreamCreateWithFlags(&s.stream, cudaStreamNonBlocking), "creating a stream");
    check(cudaMallocHost(&s.staging, static_cast<size_t>(staging_bytes)), "pinning memory");
    const char* wait = std::getenv("NEEDLE_CUDA_SYNC");
    s.wait_after_launch = wait != nullptr && std::strcmp(wait, "1") == 0;
}

const Properties& properties() { return state().properties; }
int multiprocessors() { return state().properties.multiprocessors; }
void* stream() { return state().stream; }

void* system_allocate(int64_t bytes)
{
    void* data = nullptr;
    cudaError_t result = cudaMalloc(&data, static_cast<size_t>(bytes));
    if (result == cudaErrorMemoryAllocation) {
        cudaGetLastError();  // forget it: the program goes on
        return nullptr;
    }
    check(result, "allocating " + std::to_string(bytes) + " bytes");
    return data;
}

// At the interpreter's end the driver may be gone already; then there is nothing left to free.
void system_free(void* data) { cudaFree(data); }

int64_t free_memory()
{
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for free memory");
    return static_cast<int64_t>(free);
}

void copy_to_device(void* target, const void* source, int64_t bytes)
{
    State& s = state();
    std::lock_guard<std::mutex> lock(s.staging_mutex);
    for (int64_t done = 0; done < bytes; done += staging_bytes) {
        size_t part =
            static_cast<size_t>(bytes - done < staging_bytes ? bytes - done : staging_bytes);
        std::memcpy(s.staging, static_cast<const char*>(source) + done, part);
        check(cudaMemcpyAsync(static_cast<char*>(target) + done, s.staging, part,
                              cudaMemcpyHostToDevice, s.stream),
              some_kernel("a copy to the device"));
        check(cudaStreamSynchronize(s.stream), some_kernel("a copy to the device"));
    }
}

void copy_to_host(void* target, const void* source, int64_t bytes)
{
    State& s = state();
    std::lock_guard<std::mutex> lock(s.staging_mutex);
    for (int64_t done = 0; done < bytes; done += staging_bytes) {
        size_t part =
            static_cast<size_t>(bytes - done < staging_bytes ? bytes - done : staging_bytes);
        check(cudaMemcpyAsync(s.staging, static_cast<const char*>(source) + done, part,
                              cudaMemcpyDeviceToHost, s.stream),
              some_kernel("a copy to the host"));
        check(cudaStreamSynchronize(s.stream), some_kernel("a copy to the host"));
        std::memcpy(static_cast<char*>(target) + done, s.staging, part);
    }
}

void synchronize() { check(cudaStreamSynchronize(state().stream), some_kernel("synchronize")); }

void after_launch(const char* kernel)
{
    check(cudaGetLastError(), std::string("launching ") + kernel);
    if (state().wait_after_launch)
        check(cudaStreamSynchronize(state().stream), std::string("running ") + kernel);
}

}  // namespace needle::cuda
