// The loops behind peak(), compiled once per target.
#include "families.h"
#include "parallel.h"
#include "simd.h"

namespace needle::NEEDLE_TARGET {

namespace {

// As many independent chains as hide the latency of a multiply-add on two units.
constexpr int chains = 12;

// Each piece runs x = a * x + b in every lane of `chains` registers; a and b keep x near 1.
template <class T>
struct Chains {
    int64_t rounds;
    T a, b;
    T* sink;  // one number per piece, so that the work is not removed
};

template <class T>
void run_chains(const void* context, int piece)
{
    const Chains<T>& work = *static_cast<const Chains<T>*>(context);
    Vec<T> a = broadcast(work.a), b = broadcast(work.b);
    Vec<T> x[chains];
    for (int i = 0; i < chains; ++i) x[i] = broadcast(T(1) + T(i) / 16);
    for (int64_t round = 0; round < work.rounds; ++round)
        for (int i = 0; i < chains; ++i) x[i] = a * x[i] + b;
    for (int i = 1; i < chains; ++i) x[0] += x[i];
    work.sink[piece] = sum_lanes<T>(x[0]);
}

template <class T>
double multiply_add(int64_t rounds)
{
    static T sink[most_threads];
    int threads = num_threads();
    Chains<T> work{rounds, T(0.5), T(0.5), sink};
    run_pieces(threads, run_chains<T>, &work);
    return 2.0 * static_cast<double>(rounds) * chains * lanes<T> * threads;
}

// a = b + 0.5 c, as in STREAM. Stores go past the caches, where the target can: otherwise every
// line of a would also be read.
double triad(float* a, const float* b, const float* c, int64_t n)
{
    constexpr int64_t width = lanes<float>;
    parallel_for(n / width, 1 << 12, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin * width; i < end * width; i += width) {
            Vec<float> sum = load(b + i) + 0.5f * load(c + i);
            stream_store<float>(a + i, sum);
        }
    });
    return 3.0 * sizeof(float) * static_cast<double>(n / width * width);
}

}  // namespace

PeakLoops peak_loops() { return {multiply_add<float>, multiply_add<double>, triad}; }

}  // namespace needle::NEEDLE_TARGET
