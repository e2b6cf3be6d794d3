// What every CUDA kernel file begins with: the launch, dtype dispatch, and strided operands.
#pragma once

#ifdef NEEDLE_CUDA_EMULATE
#include "emulate.h"
#else
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <string>

#include "../call.h"
#include "../kernels.h"
#include "runtime.h"

namespace needle::cuda {

constexpr int warp = 32;

// So many elements a kernel with 32-bit indices may count. An emulated device has a lower limit, so
// that tests of ordinary size reach it.
#ifdef NEEDLE_CUDA_EMULATE
constexpr int64_t most_indices = 1 << 13;
#else
constexpr int64_t most_indices = int64_t{1} << 30;
#endif

// kernel<<<grid, block, shared>>>(arguments...) on needle's stream, checked.
template <class... Parameters, class... Arguments>
void launch(const Call& call, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
            Arguments... arguments)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    check_launch(kernel_names[call.kernel]);
#ifdef NEEDLE_CUDA_EMULATE
    if (!emulation::fits(grid, block, shared))
        throw Error(std::string("cuda: launching ") + kernel_names[call.kernel] +
                    ": the grid, the block or its shared memory is larger than a GPU allows");
    // By value: a graph keeps the arguments, as a GPU's does.
    auto body = [=] { kernel(static_cast<Parameters>(arguments)...); };
    emulation::launch([=] { emulation::run_grid(grid, block, shared, body); });
#else
    allow_shared(reinterpret_cast<const void*>(kernel), shared);
    // clang-format off
    kernel<<<grid, block, shared, static_cast<cudaStream_t>(stream())>>>(
        static_cast<Parameters>(arguments)...);
    // clang-format on
#endif
    after_launch(kernel_names[call.kernel]);
}

// The shared memory whose size the launch gave.
template <class T>
__device__ __forceinline__ T* dynamic_shared()
{
#ifdef NEEDLE_CUDA_EMULATE
    return static_cast<T*>(emulation::dynamic_shared());
#else
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    return reinterpret_cast<T*>(shared_bytes);
#endif
}

// Blocks for `items` of which each block takes `per_block`, in a kernel that loops over the grid:
// enough to fill the device several times, no more.
inline unsigned grid_for(int64_t items, int64_t per_block)
{
    int64_t wanted = (items + per_block - 1) / per_block;
    int64_t most = int64_t(multiprocessors()) * 16;
    return static_cast<unsigned>(wanted < most ? wanted : most);
}

// Calls body with a value of the type that `dtype` names; bool is uint8_t.
template <class Body>
void with_float(DType dtype, const Body& body)
{
    if (dtype == DType::float32)
        body(float{});
    else
        body(double{});
}

template <class Body>
void with_type(DType dtype, const Body& body)
{
    switch (dtype) {
        case DType::float32: return body(float{});
        case DType::float64: return body(double{});
        case DType::int32: return body(int32_t{});
        case DType::int64: return body(int64_t{});
        case DType::uint8:
        case DType::boolean: return body(uint8_t{});
    }
}

// An operand with two axes.
template <class T>
struct Matrix {
    T* data;
    int64_t rows, columns, row_stride, column_stride;

    explicit Matrix(const Array& a)
        : data(a.as<T>()),
          rows(a.shape[0]),
          columns(a.shape[1]),
          row_stride(a.strides[0]),
          column_stride(a.strides[1])
    {
    }
    __device__ T& at(int64_t row, int64_t column) const
    {
        return data[row * row_stride + column * column_stride];
    }
};

// Images (N, H, W, C), or weights (K, K, Ci, Co), of any strides.
template <class T>
struct Tensor4 {
    T* data;
    int64_t shape[4], strides[4];

    explicit Tensor4(const Array& a) : data(a.as<T>())
    {
        for (int axis = 0; axis < 4; ++axis) {
            shape[axis] = a.shape[axis];
            strides[axis] = a.strides[axis];
        }
    }
    __device__ T& at(int64_t n, int64_t h, int64_t w, int64_t c) const
    {
        return data[n * strides[0] + h * strides[1] + w * strides[2] + c * strides[3]];
    }
    // Whether neighbours along `axis` lie closer than those along `other`.
    bool closer(int axis, int other) const { return step(axis) <= step(other); }
    int64_t step(int axis) const { return strides[axis] < 0 ? -strides[axis] : strides[axis]; }
};

// N operands of one shape, as few axes as their strides allow. The first axis varies slowest.
template <int N>
struct Strided {
    int rank;
    int64_t count;
    int64_t shape[max_rank];
    int64_t strides[N][max_rank];
    int64_t start[N];  // the place of element 0

    // All operands lie without gaps in the same order: element i is at place i of each.
    bool contiguous() const
    {
        if (rank == 0) return true;
        if (rank > 1) return false;
        for (int k = 0; k < N; ++k)
            if (strides[k][0] != 1) return false;
        return true;
    }

    // The places of element `index` in each operand. Index may be uint32_t where `count` allows it:
    // 64-bit division is slow on GPUs.
    template <class Index>
    __device__ __forceinline__ void places(Index index, int64_t* place) const
    {
        for (int k = 0; k < N; ++k) place[k] = start[k];
        for (int axis = rank - 1; axis >= 0; --axis) {
            Index size = static_cast<Index>(shape[axis]);
            Index rest = axis > 0 ? index / size : 0;
            Index at = index - rest * size;
            index = rest;
            for (int k = 0; k < N; ++k) place[k] += int64_t(at) * strides[k][axis];
        }
    }
};

// Drops axes of size 1, sorts the others by the first operand's strides (so that neighbouring
// threads write neighbouring places) and joins those that lie one behind the other.
template <int N>
Strided<N> strided(const Array* const (&operands)[N])
{
    Strided<N> out;
    out.rank = 0;
    out.count = operands[0]->size();
    for (int k = 0; k < N; ++k) out.start[k] = 0;
    for (int axis = 0; axis < operands[0]->rank; ++axis) {
        if (operands[0]->shape[axis] == 1) continue;
        int64_t stride = operands[0]->strides[axis], size = stride < 0 ? -stride : stride;
        int at = out.rank++;
        for (; at > 0; --at) {
            int64_t before = out.strides[0][at - 1];
            if ((before < 0 ? -before : before) >= size) break;
            out.shape[at] = out.shape[at - 1];
            for (int k = 0; k < N; ++k) out.strides[k][at] = out.strides[k][at - 1];
        }
        out.shape[at] = operands[0]->shape[axis];
        for (int k = 0; k < N; ++k) out.strides[k][at] = operands[k]->strides[axis];
    }
    int last = 0;
    for (int axis = 1; axis < out.rank; ++axis) {
        bool joins = true;
        for (int k = 0; k < N; ++k)
            joins = joins && out.strides[k][last] == out.strides[k][axis] * out.shape[axis];
        if (joins) {
            out.shape[last] *= out.shape[axis];
        } else {
            ++last;
            out.shape[last] = out.shape[axis];
        }
        for (int k = 0; k < N; ++k) out.strides[k][last] = out.strides[k][axis];
    }
    if (out.rank > 0) out.rank = last + 1;
    return out;
}

// Calls body(piece) for parts of a layout whose elements 32 bits can count: 64-bit division is slow
// on GPUs, and a second set of kernels for huge arrays would double the time to compile them.
template <int N, class Body>
void in_pieces(const Strided<N>& layout, const Body& body)
{
    if (layout.count <= most_indices) return body(layout);
    int longest = 0;
    for (int axis = 1; axis < layout.rank; ++axis)
        if (layout.shape[axis] > layout.shape[longest]) longest = axis;
    Strided<N> head = layout, tail = layout;
    head.shape[longest] = layout.shape[longest] / 2;
    tail.shape[longest] = layout.shape[longest] - head.shape[longest];
    for (int k = 0; k < N; ++k) tail.start[k] += head.shape[longest] * layout.strides[k][longest];
    for (Strided<N>* part : {&head, &tail}) {
        part->count = layout.count / layout.shape[longest] * part->shape[longest];
        in_pieces(*part, body);
    }
}

// ---- sums and other folds over a warp or a block

struct Plus {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const
    {
        return a + b;
    }
};

// The fold of all lanes, in every lane.
template <class T, class Fold>
__device__ __forceinline__ T fold_warp(T value, Fold fold)
{
    for (int mask = warp / 2; mask > 0; mask /= 2)
        value = fold(value, __shfl_xor_sync(0xffffffffu, value, mask));
    return value;
}

// The fold over a block of whole warps (at most 32 of them), in every thread. `scratch` is shared
// memory for 32 values; a barrier stands at the beginning, so it may be used again at once.
template <class T, class Fold>
__device__ __forceinline__ T fold_block(T value, Fold fold, T nothing, T* scratch)
{
    int warps = static_cast<int>((blockDim.x + warp - 1) / warp);
    int thread = static_cast<int>(threadIdx.x), lane = thread % warp;
    value = fold_warp(value, fold);
    __syncthreads();
    if (lane == 0) scratch[thread / warp] = value;
    __syncthreads();
    return fold_warp(lane < warps ? scratch[lane] : nothing, fold);
}

}  // namespace needle::cuda
