// Sums and extremes over any axes.
#include "reduce.cuh"

#include <limits>

#include "families.h"

namespace needle::cuda {

namespace {

// float32 sums in float64: the additions hide behind the loads, and long sums keep their digits.
template <class T, class SumType>
struct SumOf {
    using Sum = SumType;
    __device__ Sum nothing() const { return 0; }
    __device__ Sum add(Sum sum, T x) const { return sum + static_cast<Sum>(x); }
    __device__ Sum join(Sum a, Sum b) const { return a + b; }
    __device__ T finish(Sum sum) const { return static_cast<T>(sum); }
};

// The larger, or the smaller; NaN if either is.
template <class T, bool largest>
struct ExtremeOf {
    using Sum = T;
    T none;

    ExtremeOf()
    {
        using Limits = std::numeric_limits<T>;
        if (Limits::has_infinity)
            none = largest ? -Limits::infinity() : Limits::infinity();
        else
            none = largest ? Limits::min() : Limits::max();
    }
    __device__ T nothing() const { return none; }
    __device__ T add(T a, T b) const { return (largest ? a > b : a < b) || a != a ? a : b; }
    __device__ T join(T a, T b) const { return add(a, b); }
    __device__ T finish(T a) const { return a; }
};

void sum(const Call& call)
{
    switch (call.arrays[1].dtype) {
        case DType::float32: return reduce<float>(call, SumOf<float, double>{});
        case DType::float64: return reduce<double>(call, SumOf<double, double>{});
        default: return reduce<int64_t>(call, SumOf<int64_t, uint64_t>{});  // wraps around
    }
}

template <bool largest>
void extreme(const Call& call)
{
    with_type(call.arrays[1].dtype, [&](auto zero) {
        using T = decltype(zero);
        reduce<T>(call, ExtremeOf<T, largest>{});
    });
}

}  // namespace

void add_reduce(Table& table)
{
    table[Kernel::sum] = {sum, reduction_workspace};
    table[Kernel::max] = {extreme<true>, reduction_workspace};
    table[Kernel::min] = {extreme<false>, reduction_workspace};
}

}  // namespace needle::cuda
