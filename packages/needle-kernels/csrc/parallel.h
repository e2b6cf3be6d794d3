// A parallel loop that stays on one thread when there is little to do.
#pragma once

#include <cstdint>

#include "threads.h"

namespace needle::NEEDLE_TARGET {

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t magnitude(int64_t x) { return x < 0 ? -x : x; }
inline int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

constexpr int64_t parallel_work = 100000;  // multiply-adds that are worth a second thread

// How many threads a loop of n iterations uses when a thread should get at least `grain` of them.
inline int threads_for(int64_t n, int64_t grain)
{
    int64_t wanted = n / max64(grain, 1);
    return static_cast<int>(max64(1, min64(wanted, num_threads())));
}

template <class Body>
struct Loop {
    int64_t n, align, blocks;
    int ranges;
    const Body& body;
};

template <class Body>
void run_range(const void* context, int i)
{
    const Loop<Body>& loop = *static_cast<const Loop<Body>*>(context);
    int64_t begin = min64(loop.n, loop.blocks * i / loop.ranges * loop.align);
    int64_t end = min64(loop.n, loop.blocks * (i + 1) / loop.ranges * loop.align);
    if (begin < end) loop.body(begin, end);
}

// Calls body(begin, end) on disjoint ranges that cover [0, n), up to `per_thread` a thread. Ranges
// are the same for the same n and thread count, and start at multiples of `align`, so results are
// reproducible.
template <class Body>
void parallel_ranges(int64_t n, int64_t grain, int64_t align, int64_t per_thread, const Body& body)
{
    int threads = threads_for(n, grain);
    if (threads <= 1) {
        if (n > 0) body(int64_t{0}, n);
        return;
    }
    int64_t blocks = ceil_div(n, align);
    int ranges = threads * static_cast<int>(max64(1, min64(per_thread, blocks / threads)));
    Loop<Body> loop{n, align, blocks, ranges, body};
    run_pieces(ranges, run_range<Body>, &loop);
}

// One range a thread: for loops that do something once a range.
template <class Body>
void parallel_shares(int64_t n, int64_t grain, int64_t align, const Body& body)
{
    parallel_ranges(n, grain, align, 1, body);
}

// A long loop has more ranges than threads: when the system holds one thread up, others do the rest
// of its share.
template <class Body>
void parallel_for(int64_t n, int64_t grain, int64_t align, const Body& body)
{
    constexpr int64_t most = 8, grains = 16;  // ranges of a thread; of a range, at least
    int64_t work = threads_for(n, grain) * max64(grain, 1) * grains;
    parallel_ranges(n, grain, align, min64(most, n / work), body);
}

template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body)
{
    parallel_for(n, grain, 1, body);
}

template <class Body>
struct StepLoop {
    int64_t n;
    int ranges;
    const Body& body;
};

template <class Body>
void run_step_range(const void* context, int64_t step, int i)
{
    const StepLoop<Body>& loop = *static_cast<const StepLoop<Body>*>(context);
    loop.body(step, loop.n * i / loop.ranges, loop.n * (i + 1) / loop.ranges);
}

// Calls body(step, begin, end) for every step in turn, on disjoint ranges that cover [0, n): the
// same at each step. All of a step is done before the next begins.
template <class Body>
void parallel_steps(int64_t steps, int64_t n, int64_t grain, const Body& body)
{
    int threads = static_cast<int>(min64(threads_for(n, grain), most_step_pieces));
    if (threads <= 1) {
        for (int64_t step = 0; step < steps; ++step) body(step, int64_t{0}, n);
        return;
    }
    StepLoop<Body> loop{n, threads, body};
    run_steps(steps, threads, run_step_range<Body>, &loop);
}

}  // namespace needle::NEEDLE_TARGET
