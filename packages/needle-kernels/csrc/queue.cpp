#include "queue.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

#include "array_layout.h"
#include "storage.h"
#include "threads.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace needle {

namespace {

// What may wait at a time: enough that no thread runs dry while Python takes longer than usual, and
// so little that a program which looks at the clock but not at its results is off by a few
// milliseconds at most. Bytes are those of a call's operands.
constexpr uint64_t most_calls = 64;
constexpr int64_t most_bytes = 32 << 20;

constexpr int most_usual_operands = 16;
constexpr int most_usual_scalars = 16;

// Where nothing waits, a call with fewer bytes is over sooner than another thread could take it up.
// One with more is waited for: it needs the caller's thread, too.
constexpr int64_t least_call_bytes = 256 << 10;
constexpr int64_t most_call_bytes = 16 << 20;

// Where the operands of a waiting call are kept.
struct Operands {
    struct Number {
        alignas(8) char bytes[8];
    };
    // Room for the usual call from the start: no training step then finds a place that must grow.
    std::vector<Array> arrays = std::vector<Array>(most_usual_operands);
    std::vector<Number> numbers = std::vector<Number>(most_usual_operands);  // immediates' values

    void copy(const Call& call)
    {
        auto count = static_cast<size_t>(call.count);
        if (count > arrays.size()) {
            arrays.resize(count);
            numbers.resize(count);
        }
        for (size_t i = 0; i < count; ++i) copy(call.arrays[i], arrays[i], numbers[i]);
    }

private:
    static void copy(const Array& from, Array& to, Number& number)
    {
        to.data = from.data;
        to.dtype = from.dtype;
        to.rank = from.rank;
        to.immediate = from.immediate;
        std::copy_n(from.shape, from.rank, to.shape);
        std::copy_n(from.strides, from.rank, to.strides);
        if (!from.immediate) return;
        std::copy_n(from.as<const char>(), item_size(from.dtype), number.bytes);
        to.data = number.bytes;
    }
};

// A copy of a call, and of all that it points to but the arrays' elements.
class QueuedCall {
public:
    QueuedCall() { scalars_.reserve(most_usual_scalars); }

    void set(const Entry& entry, const Call& call, int64_t bytes, Operands& operands)
    {
        run_ = entry.run;
        threads_ = num_threads();
        bytes_ = bytes;
        call_ = call;
        scalars_.assign(call.scalars, call.scalars + call.scalar_count);
        operands.copy(call);
        call_.scalars = scalars_.data();
        call_.arrays = operands.arrays.data();
    }

    // The thread may have begun a kernel of its own already, whose threads are counted otherwise.
    void run() const
    {
        int before = begin_kernel(threads_);
        run_(call_);
        begin_kernel(before);
    }

    int64_t bytes() const { return bytes_; }

private:
    void (*run_)(const Call&) = nullptr;
    int threads_ = 1;
    int64_t bytes_ = 0;
    Call call_{};
    std::vector<double> scalars_;
};

class Queue {
public:
    // Numbers go on after `last`.
    explicit Queue(uint64_t last) : queued_(last), done_(last) {}

    uint64_t newest() const { return queued_.load(std::memory_order_acquire); }
    bool is_done(uint64_t number) const { return done_.load(std::memory_order_acquire) >= number; }
    bool idle() const { return is_done(newest()); }
    uint64_t waiting() const
    {
        const uint64_t done = done_.load(std::memory_order_acquire);
        return newest() - done;
    }

    uint64_t push(const Entry& entry, const Call& call, int64_t bytes)
    {
        std::lock_guard<std::mutex> lock(pushing_);
        uint64_t number = newest() + 1;
        bool full = number - done_.load(std::memory_order_acquire) > most_calls ||
                    waiting_bytes_.load(std::memory_order_relaxed) + bytes > most_bytes;
        if (full) make_room(bytes);
        bool many = call.count > most_usual_operands;
        if (many) wait_for(std::exchange(last_with_many_, number));
        calls_[number % most_calls].set(entry, call, bytes,
                                        many ? many_operands_ : operands_[number % most_calls]);
        for (int i = 0; i < call.count; ++i)
            if (Storage* storage = call.arrays[i].storage)
                storage->last_call.store(number, std::memory_order_relaxed);
        waiting_bytes_.fetch_add(bytes, std::memory_order_relaxed);
        queued_.store(number, std::memory_order_release);
        announce_work();
        return number;
    }

    // Until an eighth of the queue is left. Who only waited for one call, and helped with it, would
    // help with every second or third from then on; and each time what the calls write would move
    // from one core's cache to the other's.
    void make_room(int64_t bytes)
    {
        for (;;) {
            uint64_t done = done_.load(std::memory_order_acquire), waiting = newest() - done;
            int64_t left = waiting_bytes_.load(std::memory_order_relaxed) + bytes;
            if (waiting == 0 || (waiting <= most_calls / 8 && left <= most_bytes / 8)) return;
            wait_for(done + 1);
        }
    }

    void wait_for(uint64_t number)
    {
        for (int turn = 0; !is_done(number); ++turn)
            if (help() || run_next())
                turn = 0;
            else
                wait_a_turn(turn);
    }

    // Runs the next call if there is one that no other thread runs already.
    bool run_next()
    {
        if (idle()) return false;
        std::unique_lock<std::mutex> lock(running_, std::try_to_lock);
        if (!lock.owns_lock() || idle()) return false;
        uint64_t number = done_.load(std::memory_order_relaxed) + 1;
        const QueuedCall& call = calls_[number % most_calls];
        call.run();
        waiting_bytes_.fetch_sub(call.bytes(), std::memory_order_relaxed);
        done_.store(number, std::memory_order_release);
        return true;
    }

private:
    std::mutex pushing_, running_;
    alignas(64) std::atomic<uint64_t> queued_;
    alignas(64) std::atomic<uint64_t> done_;
    std::atomic<int64_t> waiting_bytes_{0};
    QueuedCall calls_[most_calls];
    Operands operands_[most_calls];
    // Of a call like an optimizer's, with every parameter. Only one such waits: a thousand operands
    // in every place of the queue would be megabytes.
    Operands many_operands_;
    uint64_t last_with_many_ = 0;
};

// Never destroyed: idle threads look into it until the process ends. A forked child gets its own.
Queue* queue = new Queue(0);

bool run_next() { return queue->run_next(); }

[[maybe_unused]] void before_fork() { finish_all(); }
[[maybe_unused]] void after_fork_in_child() { queue = new Queue(queue->newest()); }

const bool registered = [] {
    set_idle_work(run_next);
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(before_fork, nullptr, after_fork_in_child);
#endif
    return true;
}();

// NEEDLE_CPU_SYNC=1: nothing is queued.
bool queueing_allowed()
{
    static const bool allowed = [] {
        const char* text = std::getenv("NEEDLE_CPU_SYNC");
        return text == nullptr || std::atoi(text) == 0;
    }();
    return allowed;
}

struct Memory {
    int64_t bytes = 0;
    bool shared = false;
};

Memory memory_of(const Call& call)
{
    Memory found;
    for (int i = 0; i < call.count; ++i) {
        const Array& array = call.arrays[i];
        if (array.data == nullptr || array.immediate) continue;
        found.bytes += bytes_reached(array);
        found.shared |=
            array.storage == nullptr || array.storage->shared.load(std::memory_order_relaxed);
    }
    return found;
}

}  // namespace

void run_in_turn(const Entry& entry, const Call& call)
{
    if (num_threads() == 1 || !queueing_allowed()) {
        finish_all();
        return entry.run(call);
    }
    Memory memory = memory_of(call);
    // Products keep every thread busy by themselves; and they are what programs time.
    bool waits = memory.shared || memory.bytes > most_call_bytes ||
                 call.kernel == static_cast<int>(Kernel::matmul) ||
                 call.kernel == static_cast<int>(Kernel::linear_weight_grad);
    if (queue->idle() && (waits || memory.bytes < least_call_bytes)) return entry.run(call);
    uint64_t number = queue->push(entry, call, memory.bytes);
    if (waits) finish(number);
}

uint64_t newest_call() { return queue->newest(); }
uint64_t waiting_calls() { return queue->waiting(); }
void finish(uint64_t number) { queue->wait_for(number); }
void finish_all() { finish(newest_call()); }

}  // namespace needle
