#include "launch.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <new>
#include <stdexcept>

#include "storage.h"
#include "threads.h"

namespace needle {

namespace {

Table tables[device_count];
std::atomic<uint64_t> counts[device_count][kernel_count];

std::atomic<bool> tracing{false};
std::mutex trace_mutex;
std::vector<TraceEvent> trace_events;

int64_t now()
{
    auto since_epoch = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(since_epoch).count();
}

std::string describe_operands(const Call& call)
{
    static const char* names[] = {"float32", "float64", "int32", "int64", "uint8", "bool"};
    std::string text;
    for (int i = 0; i < call.count; ++i) {
        const Array& array = call.arrays[i];
        if (i > 0) text += ' ';
        if (array.data == nullptr) {
            text += "none";
            continue;
        }
        text += names[static_cast<int>(array.dtype)];
        text += '(';
        for (int axis = 0; axis < array.rank; ++axis) {
            if (axis > 0) text += ',';
            text += std::to_string(array.shape[axis]);
        }
        text += ')';
    }
    return text;
}

void run_traced(Device device, const Entry& entry, const Call& call)
{
    TraceEvent event{device, call.kernel, now(), 0, describe_operands(call)};
    entry.run(call);
    event.duration = now() - event.start;
    std::lock_guard<std::mutex> lock(trace_mutex);
    trace_events.push_back(std::move(event));
}

// Scratch memory for one call, given back when the call ends.
class Workspace {
public:
    explicit Workspace(int64_t bytes) : bytes_(bytes), data_(bytes > 0 ? allocate(bytes) : nullptr)
    {
        if (bytes > 0 && data_ == nullptr) throw std::bad_alloc();
    }
    ~Workspace()
    {
        if (data_ != nullptr) release(data_, bytes_);
    }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    void* data() const { return data_; }

private:
    int64_t bytes_;
    void* data_;
};

}  // namespace

Table& device_table(Device device) { return tables[static_cast<int>(device)]; }

void launch(Device device, int kernel, Call& call)
{
    const Entry& entry = tables[static_cast<int>(device)][kernel];
    if (entry.run == nullptr)
        throw std::invalid_argument(std::string(device_names[static_cast<int>(device)]) +
                                    " has no kernel " + kernel_names[kernel]);
    call.kernel = kernel;
    begin_kernel();
    Workspace workspace(entry.workspace != nullptr ? entry.workspace(call) : 0);
    call.workspace = workspace.data();
    counts[static_cast<int>(device)][kernel].fetch_add(1, std::memory_order_relaxed);
    if (__builtin_expect(tracing.load(std::memory_order_relaxed), 0))
        run_traced(device, entry, call);
    else
        entry.run(call);
}

uint64_t call_count(Device device, int kernel)
{
    return counts[static_cast<int>(device)][kernel].load(std::memory_order_relaxed);
}

void reset_call_counts()
{
    for (auto& device : counts)
        for (auto& count : device) count.store(0, std::memory_order_relaxed);
}

void set_tracing(bool on) { tracing.store(on, std::memory_order_relaxed); }

std::vector<TraceEvent> take_trace()
{
    std::lock_guard<std::mutex> lock(trace_mutex);
    std::vector<TraceEvent> events;
    events.swap(trace_events);
    return events;
}

}  // namespace needle
