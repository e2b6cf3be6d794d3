#include "recorder.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>

#include "storage.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace needle {

namespace {

std::atomic<int> running_count{0};
std::atomic<int> thread_count{0};

// Never destroyed: a Recorder may outlive every other static object.
struct Running {
    std::mutex mutex;  // guards the list and every recorder's events
    std::vector<Recorder*> recorders;
};
Running& running()
{
    static Running* instance = new Running;
    return *instance;
}

// No other thread is inside during a fork: the child would wait for it in vain.
#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int registered =
    pthread_atfork([] { running().mutex.lock(); }, [] { running().mutex.unlock(); },
                   [] { running().mutex.unlock(); });
#endif

TraceEvent copy_of(int device, int64_t start, int64_t duration, const Call& call)
{
    TraceEvent event{device, call.kernel, thread_number(), start, duration, {}, {}, {}};
    event.operands.reserve(call.count);
    event.extents.reserve(8 * call.count);
    for (int i = 0; i < call.count; ++i) {
        const Array& array = call.arrays[i];
        int rank = array.data == nullptr ? -1 : array.rank;
        event.operands.push_back({array.dtype, rank});
        if (rank <= 0) continue;
        event.extents.insert(event.extents.end(), array.shape, array.shape + rank);
        event.extents.insert(event.extents.end(), array.strides, array.strides + rank);
    }
    event.scalars.assign(call.scalars, call.scalars + call.scalar_count);
    return event;
}

}  // namespace

int64_t clock_now()
{
    auto since_epoch = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(since_epoch).count();
}

int thread_number()
{
    thread_local const int number = thread_count.fetch_add(1, std::memory_order_relaxed) + 1;
    return number;
}

std::string describe_operands(const TraceEvent& event)
{
    std::string text;
    const int64_t* extent = event.extents.data();
    for (const TraceEvent::Operand& operand : event.operands) {
        if (!text.empty()) text += ' ';
        if (operand.rank < 0) {
            text += "none";
            continue;
        }
        text.append(dtype_name(operand.dtype)).append("(");
        for (int axis = 0; axis < operand.rank; ++axis)
            text.append(axis > 0 ? "," : "").append(std::to_string(extent[axis]));
        text += ')';
        extent += 2 * operand.rank;
    }
    return text;
}

void Recorder::start()
{
    std::lock_guard<std::mutex> lock(running().mutex);
    if (running_) return;
    running_ = true;
    running().recorders.push_back(this);
    running_count.fetch_add(1, std::memory_order_relaxed);
}

void Recorder::stop()
{
    std::lock_guard<std::mutex> lock(running().mutex);
    if (!running_) return;
    running_ = false;
    auto& list = running().recorders;
    list.erase(std::find(list.begin(), list.end(), this));
    running_count.fetch_sub(1, std::memory_order_relaxed);
}

std::vector<TraceEvent> Recorder::take()
{
    std::vector<TraceEvent> events;
    std::lock_guard<std::mutex> lock(running().mutex);
    events.swap(events_);
    return events;
}

bool recording() { return running_count.load(std::memory_order_relaxed) > 0; }

void record(int device, int64_t start, int64_t duration, const Call& call)
{
    TraceEvent event = copy_of(device, start, duration, call);
    std::lock_guard<std::mutex> lock(running().mutex);
    for (Recorder* recorder : running().recorders) recorder->events_.push_back(event);
}

Recorder& default_recorder()
{
    static Recorder* instance = new Recorder;
    return *instance;
}

}  // namespace needle
