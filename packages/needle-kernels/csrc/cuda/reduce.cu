// Sums and extremes over any axes.
#include "reduce.cuh"

#include <limits>

#include "families.h"

namespace needle::cuda {

namespace {

// The larger, or the smaller; NaN if either is.
template <class T, bool largest>
struct ExtremeOf : OneInput<T> {
    using OneInput<T>::OneInput;
    using Sum = T;

    __device__ T nothing() const { return none; }
    __device__ T add(T extreme, const int64_t* place, const int64_t* at) const
    {
        return join(extreme, this->read(place, at));
    }
    __device__ T join(T a, T b) const { return (largest ? a > b : a < b) || a != a ? a : b; }
    __device__ void store(int64_t, const int64_t* place, T extreme) const
    {
        this->out[place[0]] = extreme;
    }

    T none = worst();  // loses against everything

private:
    static T worst()
    {
        using Limits = std::numeric_limits<T>;
        T highest = Limits::has_infinity ? Limits::infinity() : Limits::max();
        T lowest = Limits::has_infinity ? -Limits::infinity() : Limits::min();
        return largest ? lowest : highest;
    }
};

void sum(const Call& call)
{
    Reduction<1> r = plan_call(call);
    switch (call.arrays[1].dtype) {
        case DType::float32: return reduce(call, r, SumOf<float, double>(call));
        case DType::float64: return reduce(call, r, SumOf<double, double>(call));
        default: return reduce(call, r, SumOf<int64_t, uint64_t>(call));  // wraps around
    }
}

template <bool largest>
void extreme(const Call& call)
{
    with_type(call.arrays[1].dtype, [&](auto zero) {
        reduce(call, plan_call(call), ExtremeOf<decltype(zero), largest>(call));
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
