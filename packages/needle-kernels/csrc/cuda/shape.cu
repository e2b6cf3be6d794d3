// copy and fill, between any two layouts and dtypes.
#include "families.h"
#include "map.cuh"

namespace needle::cuda {

namespace {

// Casts as the CPU's kernels do: bool is "not 0", and a float goes to uint8 by way of int32.
template <class To, bool to_bool, bool from_bool>
struct Cast {
    template <class From>
    __device__ __forceinline__ To operator()(From x, uint8_t) const
    {
        if constexpr (to_bool)
            return static_cast<To>(x != From(0));
        else if constexpr (from_bool)
            return static_cast<To>(x != From(0) ? 1 : 0);
        else if constexpr (sizeof(To) == 1 && sizeof(From) >= 4)
            return static_cast<To>(static_cast<int64_t>(x));
        else
            return static_cast<To>(x);
    }
};

template <class To, bool to_bool>
void cast_to(const Call& call)
{
    if (call.arrays[1].dtype == DType::boolean)
        return map<To, uint8_t, uint8_t>(call, Cast<To, to_bool, true>{});
    with_type(call.arrays[1].dtype, [&](auto from) {
        map<To, decltype(from), uint8_t>(call, Cast<To, to_bool, false>{});
    });
}

void copy(const Call& call)
{
    if (call.arrays[0].dtype == DType::boolean) return cast_to<uint8_t, true>(call);
    with_type(call.arrays[0].dtype, [&](auto zero) { cast_to<decltype(zero), false>(call); });
}

}  // namespace

void add_shape(Table& table)
{
    table[Kernel::copy].run = copy;
    table[Kernel::fill].run = copy;  // of an operand that repeats one value
}

}  // namespace needle::cuda
