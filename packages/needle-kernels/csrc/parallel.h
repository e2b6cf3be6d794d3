// Threads: an OpenMP loop that stays on one thread when there is little to do.
#pragma once

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "threads.h"

namespace needle::NEEDLE_TARGET {

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many threads a loop of n iterations uses when a thread should get at least `grain` of them.
inline int threads_for(int64_t n, int64_t grain)
{
    int64_t wanted = n / max64(grain, 1);
    return static_cast<int>(max64(1, min64(wanted, num_threads())));
}

// Calls body(begin, end) on disjoint ranges that cover [0, n), one range a thread. Ranges are the
// same for the same n and thread count, and start at multiples of `align`, so results are
// reproducible.
template <class Body>
void parallel_for(int64_t n, int64_t grain, int64_t align, const Body& body)
{
    int threads = threads_for(n, grain);
    if (threads <= 1) {
        if (n > 0) body(int64_t{0}, n);
        return;
    }
#if defined(_OPENMP)
    int64_t blocks = ceil_div(n, align);
#pragma omp parallel num_threads(threads)
    {
        int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
        int64_t begin = min64(n, blocks * me / team * align);
        int64_t end = min64(n, blocks * (me + 1) / team * align);
        if (begin < end) body(begin, end);
    }
#else
    (void)align;
    body(int64_t{0}, n);
#endif
}

template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body)
{
    parallel_for(n, grain, 1, body);
}

}  // namespace needle::NEEDLE_TARGET
