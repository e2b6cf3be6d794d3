#include "runtime.h"

#include "capture.h"

#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

#include "fault.h"

namespace needle::cuda {

namespace {

constexpr int64_t staging_bytes = int64_t{4} << 20;
constexpr int staging_count = 4;  // copies to the device under way before the host must wait

// Pinned memory: the driver copies from and to it without a copy of its own, and without waiting.
struct Staging {
    void* data = nullptr;
    cudaEvent_t done = nullptr;  // with the last copy that used it
};

struct State {
    Properties properties;
    cudaStream_t stream = nullptr;
    bool wait_after_launch = false;
    Fault* fault = nullptr;
    Staging staging[staging_count];
    int next_staging = 0;
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
    for (Staging& staging : s.staging) {
        check(cudaMallocHost(&staging.data, static_cast<size_t>(staging_bytes)), "pinning memory");
        check(cudaEventCreateWithFlags(&staging.done, cudaEventDisableTiming), "making an event");
    }
    check(cudaHostAlloc(&s.fault, sizeof(Fault), cudaHostAllocMapped), "pinning memory");
    *s.fault = Fault{};
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

Fault* device_fault() { return state().fault; }

namespace {

// Calls body(staging memory, bytes done, bytes of this piece) for a copy cut into pieces, each when
// its staging memory is free.
template <class Body>
void in_staged_pieces(int64_t bytes, const std::string& what, const Body& body)
{
    State& s = state();
    std::lock_guard<std::mutex> lock(s.staging_mutex);
    for (int64_t done = 0; done < bytes; done += staging_bytes) {
        Staging& staging = s.staging[s.next_staging];
        s.next_staging = (s.next_staging + 1) % staging_count;
        check(cudaEventSynchronize(staging.done), some_kernel(what));
        int64_t part = bytes - done < staging_bytes ? bytes - done : staging_bytes;
        body(staging, done, static_cast<size_t>(part));
    }
}

}  // namespace

void copy_to_device(void* target, const void* source, int64_t bytes)
{
    const char* what = "a copy to the device";
    check_not_capturing(what);
    in_staged_pieces(bytes, what, [&](Staging& staging, int64_t done, size_t part) {
        std::memcpy(staging.data, static_cast<const char*>(source) + done, part);
        check(cudaMemcpyAsync(static_cast<char*>(target) + done, staging.data, part,
                              cudaMemcpyHostToDevice, state().stream),
              some_kernel(what));
        check(cudaEventRecord(staging.done, state().stream), some_kernel(what));
    });
}

void copy_to_host(void* target, const void* source, int64_t bytes)
{
    const char* what = "a copy to the host";
    check_not_capturing(what);
    in_staged_pieces(bytes, what, [&](Staging& staging, int64_t done, size_t part) {
        check(cudaMemcpyAsync(staging.data, static_cast<const char*>(source) + done, part,
                              cudaMemcpyDeviceToHost, state().stream),
              some_kernel(what));
        check(cudaStreamSynchronize(state().stream), some_kernel(what));
        std::memcpy(static_cast<char*>(target) + done, staging.data, part);
    });
    check_fault();
}

void synchronize()
{
    check_not_capturing("waiting for the device");
    check(cudaStreamSynchronize(state().stream), some_kernel("synchronize"));
    check_fault();
}

void allow_shared(const void* kernel, size_t bytes)
{
    if (bytes <= 48 * 1024) return;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)),
          "asking for shared memory");
}

void after_launch(const char* kernel)
{
    check(cudaGetLastError(), std::string("launching ") + kernel);
    if (!state().wait_after_launch || capturing()) return;
    check(cudaStreamSynchronize(state().stream), std::string("running ") + kernel);
    check_fault();
}

// ---- capture

namespace {

class CudaGraph : public Executable {
public:
    explicit CudaGraph(cudaGraphExec_t graph) : graph_(graph) {}
    ~CudaGraph() override { cudaGraphExecDestroy(graph_); }
    void run() override
    {
        check(cudaGraphLaunch(graph_, state().stream), "launching a graph");
        after_launch("a graph");
    }

private:
    cudaGraphExec_t graph_;
};

}  // namespace

// Relaxed: memory may be asked for while kernels are captured.
void start_capture()
{
    check(cudaStreamBeginCapture(state().stream, cudaStreamCaptureModeRelaxed),
          "beginning a capture");
}

std::unique_ptr<Executable> finish_capture()
{
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(state().stream, &graph), "ending a capture");
    cudaGraphExec_t executable = nullptr;
    cudaError_t result = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check(result, "making a graph");
    return std::make_unique<CudaGraph>(executable);
}

}  // namespace needle::cuda
