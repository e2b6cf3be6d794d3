#include "threads.h"

#include <atomic>
#include <cstdlib>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace needle {

namespace {

std::atomic<int> threads{0};  // 0: not chosen yet

int default_threads()
{
#if defined(_OPENMP)
    return omp_get_max_threads();  // honours OMP_NUM_THREADS and the processor affinity
#else
    return 1;
#endif
}

// The OpenMP pool's threads do not exist in a forked child, and waiting for them would hang.
[[maybe_unused]] void after_fork_in_child() { threads.store(1, std::memory_order_relaxed); }

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, after_fork_in_child);
#endif

}  // namespace

int num_threads()
{
    int n = threads.load(std::memory_order_relaxed);
    if (n == 0) {
        n = default_threads();
        threads.store(n, std::memory_order_relaxed);
    }
    return n;
}

void set_num_threads(int n) { threads.store(n, std::memory_order_relaxed); }

}  // namespace needle
