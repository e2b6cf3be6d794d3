// One output element from the elements at the same index of one or two inputs.
#pragma once

#include "device.cuh"

namespace needle::cuda {

constexpr int map_threads = 256;
constexpr int map_unroll = 4;  // loads in flight per thread: what it takes to fill the memory bus

// An input: memory of the device, or one value for all elements.
template <class T>
struct Source {
    const T* data;
    T value;        // of a number that came with the call; data is null then
    bool constant;  // the array repeats one element: all its strides are 0

    __device__ __forceinline__ T at(int64_t place) const
    {
        return data == nullptr ? value : data[constant ? 0 : place];
    }
};

template <class T>
Source<T> source(const Array& array)
{
    if (array.data == nullptr) return {nullptr, T(0), true};
    if (array.immediate) return {nullptr, *array.as<T>(), true};
    bool constant = true;
    for (int i = 0; i < array.rank; ++i)
        constant = constant && (array.strides[i] == 0 || array.shape[i] == 1);
    return {array.as<T>(), T(0), constant};
}

// Both layouts in one kernel: which of them it is, is the same for every thread.
template <class Out, class A, class B, class Op>
__global__ void __launch_bounds__(map_threads)
    map_kernel(Out* out, Source<A> a, Source<B> b, Strided<3> layout, bool contiguous, Op op)
{
    if (contiguous) {
        int64_t tile = int64_t(map_threads) * map_unroll;
        for (int64_t start = blockIdx.x * tile; start < layout.count; start += gridDim.x * tile)
            for (int k = 0; k < map_unroll; ++k) {
                int64_t i = start + k * map_threads + threadIdx.x;
                if (i < layout.count) out[i] = op(a.at(i), b.at(i));
            }
        return;
    }
    uint32_t step = gridDim.x * map_threads;
    for (uint32_t i = blockIdx.x * map_threads + threadIdx.x; i < layout.count; i += step) {
        int64_t place[3];
        layout.places(i, place);
        out[place[0]] = op(a.at(place[1]), b.at(place[2]));
    }
}

// out = op(a, b) for a call of the operands (out, a, b), or (out, a): b is then 0.
template <class Out, class A, class B, class Op>
void map(const Call& call, Op op)
{
    Array none{};
    const Array &out = call.arrays[0], &first = call.arrays[1];
    const Array& second = call.count > 2 ? call.arrays[2] : none;
    Source<A> a = source<A>(first);
    Source<B> b = source<B>(second);
    // What repeats one element goes along with any order of the others.
    Strided<3> layout = strided<3>({&out, a.constant ? &out : &first, b.constant ? &out : &second});
    if (layout.count == 0) return;
    auto run = [&](const Strided<3>& piece) {
        unsigned grid = grid_for(piece.count, map_threads * map_unroll);
        launch(call, map_kernel<Out, A, B, Op>, grid, map_threads, 0, out.as<Out>(), a, b, piece,
               layout.contiguous(), op);
    };
    if (layout.contiguous())
        run(layout);
    else
        in_pieces(layout, run);
}

}  // namespace needle::cuda
