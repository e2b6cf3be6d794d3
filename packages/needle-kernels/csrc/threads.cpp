#include "threads.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace needle {

namespace {

constexpr int waiting_turns =
    2000;  // for the last pieces, before the caller offers its core to others

// How long an idle thread looks for work before it sleeps: longer than the gap between two kernels
// of a training step, for a sleeper takes some 50 microseconds to wake, and short kernels are over
// by then.
constexpr std::chrono::microseconds idle_time{200};
constexpr int turns_per_look = 64;  // between two looks at the clock

inline void pause_briefly()
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

int system_threads()
{
    if (const char* text = std::getenv("OMP_NUM_THREADS")) {
        int n = std::atoi(text);
        if (n >= 1) return n;
    }
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return CPU_COUNT(&allowed);
#endif
    unsigned n = std::thread::hardware_concurrency();
    return n == 0 ? 1 : static_cast<int>(n);
}

int default_threads()
{
    int n = system_threads();
    return n < most_threads ? n : most_threads;
}

std::atomic<int> setting{default_threads()};
thread_local int current = 0;          // 0: no kernel has begun on this thread
thread_local bool is_of_pool = false;  // this thread

bool (*idle_work)() = [] { return false; };

// One loop at a time. A ticket says how many pieces of which loop are free: whoever changes it has
// claimed one, and the loop whose piece that is cannot end before, nor its fields change.
class Ticket {
public:
    Ticket(uint64_t loop, int count) : bits_(loop << 32 | static_cast<uint64_t>(count) << 16) {}
    explicit Ticket(uint64_t bits) : bits_(bits) {}

    uint64_t bits() const { return bits_; }
    uint64_t loop() const { return bits_ >> 32; }
    int count() const { return static_cast<int>(bits_ >> 16 & 0xffff); }
    int next() const { return static_cast<int>(bits_ & 0xffff); }
    bool has_piece() const { return next() < count(); }

    // A thread of the pool claims the last free piece, any other the first: whoever begins a loop,
    // both come to the same ends of the same arrays.
    int claimed() const { return is_of_pool ? count() - 1 : next(); }
    Ticket after_claim() const { return Ticket(is_of_pool ? bits_ - (1 << 16) : bits_ + 1); }

private:
    uint64_t bits_;  // the loop's number (32 bits), where free pieces end (16) and begin (16)
};

class Pool {
public:
    void run(int count, void (*piece)(const void*, int), const void* context)
    {
        std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
        if (!lock.owns_lock()) {  // another Python thread's kernel has the pool
            for (int i = 0; i < count; ++i) piece(context, i);
            return;
        }
        start_threads(num_threads() - 1);
        piece_.store(piece, std::memory_order_relaxed);
        context_.store(context, std::memory_order_relaxed);
        helpers_.store(num_threads() - 1, std::memory_order_relaxed);
        unfinished_.store(count, std::memory_order_relaxed);
        uint64_t loop = Ticket(ticket_.load(std::memory_order_relaxed)).loop() + 1;
        const Ticket all(loop, count);  // one piece is the caller's
        ticket_.store(all.after_claim().bits(), std::memory_order_release);
        tell_threads();
        piece(context, all.claimed());
        unfinished_.fetch_sub(1, std::memory_order_release);
        while (claim_one(caller)) {
        }
        for (int turn = 0; unfinished_.load(std::memory_order_acquire) > 0; ++turn)
            wait_a_turn(turn);
    }

    // Makes sure that threads look for work, of which there is something new.
    void announce()
    {
        start_threads(num_threads() - 1);
        tell_threads();
    }

    static constexpr int caller = -1;  // no thread of the pool

    // Runs one free piece, on thread number `thread` of the pool; false when there is none for it:
    // a loop of fewer threads than there once were is not for the last ones.
    bool claim_one(int thread)
    {
        uint64_t bits = ticket_.load(std::memory_order_acquire);
        for (;;) {
            Ticket ticket(bits);
            if (!ticket.has_piece()) return false;
            if (thread >= helpers_.load(std::memory_order_relaxed)) return false;
            auto piece = piece_.load(std::memory_order_relaxed);
            const void* context = context_.load(std::memory_order_relaxed);
            if (ticket_.compare_exchange_weak(bits, ticket.after_claim().bits(),
                                              std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
                piece(context, ticket.claimed());
                unfinished_.fetch_sub(1, std::memory_order_release);
                return true;
            }
        }
    }

private:
    void tell_threads()
    {
        news_.fetch_add(1, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst) > 0) news_.notify_all();
    }

    void work(int thread)
    {
        is_of_pool = true;
        for (;;) {
            uint32_t seen = news_.load(std::memory_order_acquire);
            while (claim_one(thread) || idle_work()) {
            }
            if (changes_soon(seen)) continue;
            sleepers_.fetch_add(1, std::memory_order_seq_cst);
            news_.wait(seen, std::memory_order_seq_cst);
            sleepers_.fetch_sub(1, std::memory_order_relaxed);
        }
    }

    // Whether there is news before the idle time is over.
    bool changes_soon(uint32_t seen) const
    {
        auto end = std::chrono::steady_clock::now() + idle_time;
        do {
            for (int turn = 0; turn < turns_per_look; ++turn) {
                if (news_.load(std::memory_order_acquire) != seen) return true;
                pause_briefly();
            }
        } while (std::chrono::steady_clock::now() < end);
        return false;
    }

    // As many as the system gives: loops end with any number of them.
    void start_threads(int wanted)
    {
        if (started_.load(std::memory_order_relaxed) >= wanted) return;
        std::lock_guard<std::mutex> lock(starting_);
        if (wanted > most_) wanted = most_;
        try {
            for (; started_ < wanted; ++started_)
                std::thread([this, number = started_.load()] { work(number); }).detach();
        } catch (const std::system_error&) {
            most_ = started_;  // and it is not asked again
        }
    }

    std::mutex busy_, starting_;
    std::atomic<int> started_{0};
    int most_ = most_threads;      // guarded by starting_
    std::atomic<int> helpers_{0};  // threads of the pool that may take pieces of the loop
    std::atomic<uint64_t> ticket_{0};
    std::atomic<int> unfinished_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<uint32_t> news_{0};  // raised whenever there is something to do
    std::atomic<void (*)(const void*, int)> piece_{nullptr};
    std::atomic<const void*> context_{nullptr};
};

// Never destroyed: its threads wait in it until the process ends. A forked child has none of them
// and gets a pool of its own, which it does not use unless it asks for threads.
Pool* pool = new Pool;

[[maybe_unused]] void after_fork_in_child()
{
    setting.store(1, std::memory_order_relaxed);
    current = 1;
    pool = new Pool;
}

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, after_fork_in_child);
#endif

// The state of one run_steps.
struct Steps {
    int64_t steps;
    int count;
    void (*piece)(const void*, int64_t, int);
    const void* context;
    std::atomic<int64_t> done{0};                      // pieces, over all steps
    std::atomic<int64_t> claimed[most_step_pieces]{};  // of each piece: how many steps
};

// What the thread in seat `seat` does. One that comes late passes over the steps that are done.
void take_steps(const void* context, int seat)
{
    Steps& s = *static_cast<Steps*>(const_cast<void*>(context));
    for (int64_t step = 0; step < s.steps; ++step) {
        for (int k = 0; k < s.count; ++k) {
            int i = (seat + k) % s.count;
            int64_t before = step;
            if (!s.claimed[i].compare_exchange_strong(before, step + 1, std::memory_order_relaxed))
                continue;
            s.piece(s.context, step, i);
            s.done.fetch_add(1, std::memory_order_acq_rel);
        }
        int64_t wanted = (step + 1) * s.count;
        for (int turn = 0; s.done.load(std::memory_order_acquire) < wanted; ++turn)
            wait_a_turn(turn);
    }
}

}  // namespace

int num_threads() { return current > 0 ? current : thread_setting(); }
int thread_setting() { return setting.load(std::memory_order_relaxed); }
void set_thread_setting(int n) { setting.store(n, std::memory_order_relaxed); }
int begin_kernel(int threads) { return std::exchange(current, threads); }

void set_idle_work(bool (*work)()) { idle_work = work; }
void announce_work() { pool->announce(); }
bool help() { return pool->claim_one(Pool::caller); }

void wait_a_turn(int turn) { turn < waiting_turns ? pause_briefly() : std::this_thread::yield(); }

void run_pieces(int count, void (*piece)(const void* context, int i), const void* context)
{
    pool->run(count, piece, context);
}

void run_steps(int64_t steps, int count, void (*piece)(const void* context, int64_t step, int i),
               const void* context)
{
    Steps state{steps, count, piece, context};
    run_pieces(count, take_steps, &state);
}

}  // namespace needle
