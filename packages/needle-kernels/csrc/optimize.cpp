// Optimizer steps over all parameters in one call. The arrays of a call lie, as it were, end to
// end, and threads share that whole: the time goes with the bytes, not with the number of
// parameters.
#include "families.h"
#include "parallel.h"
#include "strided.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace needle::NEEDLE_TARGET {

namespace {

// While it lives, results of this thread below the smallest normal number (2^-126 for float32)
// become zero, and such inputs count as zero. A weight that decays but never meets a gradient (a
// convolution's tap that sees only padding) ends among these numbers, and arithmetic on them is
// some hundred times slower.
class FlushDenormals {
public:
#if defined(__x86_64__)
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // FTZ and DAZ
    ~FlushDenormals() { _mm_setcsr(before_); }

private:
    unsigned before_;
#else
    FlushDenormals() {}  // these processors have no such penalty worth mentioning
    ~FlushDenormals() {}
#endif
};

constexpr int64_t grain = 1 << 14;  // elements for which a second thread pays
constexpr int64_t cache_line =
    16;  // float32 elements: in the first array no two threads write one line

// Calls body(arrays of a group, begin, end) for the parts of [begin, end), counted over all groups.
template <class Body>
void for_each_part(const Call& call, int group_size, int64_t begin, int64_t end, const Body& body)
{
    for (int first = 0; first < call.count && begin < end; first += group_size) {
        int64_t n = call.arrays[first].size();
        if (begin < n) body(call.arrays + first, begin, min64(end, n));
        begin = max64(begin - n, 0);
        end -= n;
    }
}

// The same for all elements of the call, shared by the threads.
template <class Body>
void update_groups(const Call& call, int group_size, const Body& body)
{
    int64_t total = 0;
    for (int i = 0; i < call.count; i += group_size) total += call.arrays[i].size();
    parallel_for(total, grain, cache_line, [&](int64_t begin, int64_t end) {
        FlushDenormals flush;
        for_each_part(call, group_size, begin, end, body);
    });
}

template <class T>
struct SgdStep {
    T lr, momentum, rest, decay;  // rest = 1 - momentum, rounded once
    bool nesterov;

    explicit SgdStep(const double* scalars)
        : lr(static_cast<T>(scalars[0])),
          momentum(static_cast<T>(scalars[1])),
          rest(static_cast<T>(1 - scalars[1])),
          decay(static_cast<T>(scalars[2])),
          nesterov(scalars[3] != 0)
    {
    }

    // u = momentum * u + (1 - momentum) * (g + weight_decay * w); w -= lr * u
    void run(T* __restrict w, T* __restrict u, const T* __restrict g, int64_t n) const
    {
        for (int64_t i = 0; i < n; ++i) {
            u[i] = momentum * u[i] + rest * (g[i] + decay * w[i]);
            w[i] -= lr * u[i];
        }
    }

    // The same, but w moves along what the next u would be if the gradient stayed as it is.
    void run_ahead(T* __restrict w, T* __restrict u, const T* __restrict g, int64_t n) const
    {
        for (int64_t i = 0; i < n; ++i) {
            T fresh = rest * (g[i] + decay * w[i]);
            u[i] = momentum * u[i] + fresh;
            w[i] -= lr * (momentum * u[i] + fresh);
        }
    }

    void run_without_momentum(T* __restrict w, const T* __restrict g, int64_t n) const
    {
        for (int64_t i = 0; i < n; i += block) {
            int64_t count = min64(block, n - i);
            if (decay == 0 && all_zero(g + i, count)) continue;
            for (int64_t j = i; j < i + count; ++j) w[j] -= lr * (g[j] + decay * w[j]);
        }
    }

private:
    static constexpr int64_t block = 64;

    // Most of an embedding's gradient is: then w need not be read.
    static bool all_zero(const T* g, int64_t n)
    {
        if (g[0] != 0) return false;
        Bits<T> any = 0;
        for (int64_t i = 0; i < n; ++i) {
            Bits<T> bits;
            std::memcpy(&bits, g + i, sizeof(T));
            any |= bits;
        }
        return any == 0;
    }
};

void sgd(const Call& call)
{
    update_groups(call, 3, [&](const Array* group, int64_t begin, int64_t end) {
        with_float(group[0].dtype, [&](auto zero) {
            using T = decltype(zero);
            SgdStep<T> step(call.scalars);
            T *w = group[0].as<T>() + begin, *g = group[2].as<T>() + begin;
            if (group[1].data == nullptr)
                step.run_without_momentum(w, g, end - begin);
            else if (step.nesterov)
                step.run_ahead(w, group[1].as<T>() + begin, g, end - begin);
            else
                step.run(w, group[1].as<T>() + begin, g, end - begin);
        });
    });
}

template <class T>
struct AdamStep {
    T beta1, rest1, beta2, rest2, eps, decay;
    T step_size;  // lr / (1 - beta1^t): m_hat is never stored
    T v_scale;    // 1 / (1 - beta2^t)

    explicit AdamStep(const double* scalars)
        : beta1(static_cast<T>(scalars[1])),
          rest1(static_cast<T>(1 - scalars[1])),
          beta2(static_cast<T>(scalars[2])),
          rest2(static_cast<T>(1 - scalars[2])),
          eps(static_cast<T>(scalars[3])),
          decay(static_cast<T>(scalars[4])),
          step_size(static_cast<T>(scalars[0] / scalars[5])),
          v_scale(static_cast<T>(1 / scalars[6]))
    {
    }

    // m and v average g' = g + weight_decay * w and g'^2; w -= lr * m_hat / (sqrt(v_hat) + eps)
    void run(T* __restrict w, T* __restrict m, T* __restrict v, const T* __restrict g,
             int64_t n) const
    {
        for (int64_t i = 0; i < n; ++i) {
            T grad = g[i] + decay * w[i];
            m[i] = beta1 * m[i] + rest1 * grad;
            v[i] = beta2 * v[i] + rest2 * (grad * grad);
            w[i] -= step_size * m[i] / (root(v_scale * v[i]) + eps);
        }
    }

    static float root(float x) { return __builtin_sqrtf(x); }
    static double root(double x) { return __builtin_sqrt(x); }
};

void adam(const Call& call)
{
    update_groups(call, 4, [&](const Array* group, int64_t begin, int64_t end) {
        with_float(group[0].dtype, [&](auto zero) {
            using T = decltype(zero);
            AdamStep<T>(call.scalars)
                .run(group[0].as<T>() + begin, group[1].as<T>() + begin, group[2].as<T>() + begin,
                     group[3].as<T>() + begin, end - begin);
        });
    });
}

// running = (1 - momentum) * running + momentum * value
void moving_average(const Call& call)
{
    update_groups(call, 2, [&](const Array* group, int64_t begin, int64_t end) {
        with_float(group[0].dtype, [&](auto zero) {
            using T = decltype(zero);
            T* __restrict running = group[0].as<T>();
            const T* __restrict value = group[1].as<T>();
            T momentum = static_cast<T>(call.scalars[0]);
            T rest = static_cast<T>(1 - call.scalars[0]);
            for (int64_t i = begin; i < end; ++i)
                running[i] = rest * running[i] + momentum * value[i];
        });
    });
}

void scale(const Call& call)
{
    update_groups(call, 1, [&](const Array* array, int64_t begin, int64_t end) {
        with_float(array->dtype, [&](auto zero) {
            using T = decltype(zero);
            T* __restrict a = array->as<T>();
            T factor = static_cast<T>(call.scalars[0]);
            for (int64_t i = begin; i < end; ++i) a[i] *= factor;
        });
    });
}

// sum_squares: every block of an array has its own partial sum, and the partial sums are added in
// order, so the result is the same for every number of threads.
constexpr int64_t block_size = 4096;

int64_t block_count(const Array& array) { return ceil_div(array.size(), block_size); }

int64_t total_blocks(const Call& call)
{
    int64_t blocks = 0;
    for (int i = 1; i < call.count; ++i) blocks += block_count(call.arrays[i]);
    return blocks;
}

int64_t sum_squares_workspace(const Call& call)
{
    return total_blocks(call) * static_cast<int64_t>(sizeof(double));
}

// Squares of float32 are exact in float64; 16 partial sums keep the additions independent.
template <class T>
double sum_squares_of(const T* a, int64_t n)
{
    constexpr int64_t width = 16;
    double sums[width] = {};
    int64_t i = 0;
    for (; i + width <= n; i += width)
        for (int64_t j = 0; j < width; ++j) {
            double x = static_cast<double>(a[i + j]);
            sums[j] += x * x;
        }
    for (int64_t j = 0; i + j < n; ++j) {
        double x = static_cast<double>(a[i + j]);
        sums[j] += x * x;
    }
    for (int64_t half = width / 2; half > 0; half /= 2)
        for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
    return sums[0];
}

void sum_squares_blocks(const Array& array, int64_t begin, int64_t end, double* partial)
{
    int64_t n = array.size();
    with_float(array.dtype, [&](auto zero) {
        const auto* a = array.as<decltype(zero)>();
        for (int64_t b = begin; b < end; ++b) {
            int64_t start = b * block_size;
            partial[b] = sum_squares_of(a + start, min64(block_size, n - start));
        }
    });
}

void sum_squares(const Call& call)
{
    double* partial = static_cast<double*>(call.workspace);
    int64_t blocks = total_blocks(call);
    parallel_for(blocks, grain / block_size, [&](int64_t begin, int64_t end) {
        int64_t first = 0;  // the number of the array's first block
        for (int i = 1; i < call.count && first < end; ++i) {
            int64_t count = block_count(call.arrays[i]);
            int64_t from = max64(begin - first, 0), to = min64(end - first, count);
            if (from < to) sum_squares_blocks(call.arrays[i], from, to, partial + first);
            first += count;
        }
    });
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += partial[b];
    *call.arrays[0].as<double>() = sum;
}

}  // namespace

void add_optimize(Table& table)
{
    table[Kernel::moving_average].run = moving_average;
    table[Kernel::sgd].run = sgd;
    table[Kernel::adam].run = adam;
    table[Kernel::scale].run = scale;
    table[Kernel::sum_squares] = {sum_squares, sum_squares_workspace};
}

}  // namespace needle::NEEDLE_TARGET
