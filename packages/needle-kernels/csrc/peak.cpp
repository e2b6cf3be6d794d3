#include "peak.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "queue.h"
#include "recorder.h"
#include "threads.h"

namespace needle {

namespace {

constexpr int64_t least_time = 2'000'000;  // ns: long beside the waking of a thread
constexpr int repeats = 9;
constexpr int64_t triad_size = 1 << 24;  // floats: three arrays of 64 MiB

// The best rate, in units per second, of some runs of work(), which returns the units it did.
template <class Work>
double best_rate(const Work& work)
{
    double best = 0;
    for (int i = 0; i < repeats; ++i) {
        int64_t start = clock_now();
        double done = work();
        best = std::max(best, done * 1e9 / static_cast<double>(clock_now() - start));
    }
    return best;
}

double multiply_add_rate(double (*run)(int64_t))
{
    int64_t rounds = 1000;
    for (int64_t start = clock_now(); run(rounds), clock_now() - start < least_time;
         start = clock_now())
        rounds *= 2;
    return best_rate([=] { return run(rounds); });
}

// Memory from the system in large pages, as kernels' arrays have it, but beside the allocator: its
// statistics are the user's.
class Floats {
public:
    Floats() : data_(static_cast<float*>(std::aligned_alloc(page, triad_size * sizeof(float))))
    {
        if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
        madvise(data_, triad_size * sizeof(float), MADV_HUGEPAGE);
#endif
        std::fill_n(data_, triad_size, 1.0f);  // the system gives memory when it is first written
    }
    ~Floats() { std::free(data_); }
    Floats(const Floats&) = delete;
    Floats& operator=(const Floats&) = delete;
    float* data() const { return data_; }

private:
    static constexpr size_t page = 2 << 20;
    float* data_;
};

}  // namespace

Peak measure_peak(const PeakLoops& loops)
{
    finish_all();
    begin_kernel(thread_setting());
    Floats a, b, c;
    double bytes = best_rate([&] { return loops.triad(a.data(), b.data(), c.data(), triad_size); });
    return {multiply_add_rate(loops.multiply_add32), multiply_add_rate(loops.multiply_add64),
            bytes};
}

}  // namespace needle
