// One tile of a matrix product: the inner loop of matmul, and of whatever can be seen as one.
#pragma once

#include "device.cuh"

namespace needle::cuda {

constexpr int tile_threads = 256;  // 16 x 16, each with per x per elements of the tile
constexpr int tile_depth = 8;      // of the slice that lies in shared memory

// C(m, n) = sum over k in [begin, end) of a(m, k) * b(k, n), for the tile that begins at
// (first_row, first_column); store(m, n, sum) gets each element inside rows x columns. a and b are
// functions; their `along_k` says that elements next to each other along k, not along the other
// axis, are neighbours in memory.
//
// While the threads multiply one slice, each already loads its share of the next into registers.
template <class T, int per, class A, class B, class Store>
__device__ __forceinline__ void multiply_tile(int64_t first_row, int64_t first_column, int64_t rows,
                                              int64_t columns, int64_t begin, int64_t end,
                                              const A& a, const B& b, const Store& store)
{
    constexpr int side = 16 * per, loads = side * tile_depth / tile_threads;
    // 4 more than needed: a column that is written then spreads over the memory's banks.
    __shared__ __align__(16) T tile_a[tile_depth][side + 4];
    __shared__ __align__(16) T tile_b[tile_depth][side + 4];
    int thread = static_cast<int>(threadIdx.x), across = thread % 16, down = thread / 16;
    T next_a[loads], next_b[loads], sums[per][per] = {};

    // Which element of a slice is this thread's l-th.
    auto along = [&](int l, bool along_k) {
        int e = l * tile_threads + thread;
        return along_k ? e % tile_depth : e / side;
    };
    auto outside = [&](int l, bool along_k) {
        int e = l * tile_threads + thread;
        return along_k ? e / tile_depth : e % side;
    };
    auto load = [&](int64_t start) {
        for (int l = 0; l < loads; ++l) {
            int64_t k = start + along(l, a.along_k), m = first_row + outside(l, a.along_k);
            next_a[l] = m < rows && k < end ? a(m, k) : T(0);
            k = start + along(l, b.along_k);
            int64_t n = first_column + outside(l, b.along_k);
            next_b[l] = n < columns && k < end ? b(k, n) : T(0);
        }
    };
    // Groups of 4 neighbours, 64 apart: threads side by side read places side by side.
    auto place = [](int i, int lane) { return i / 4 * 64 + lane * 4 + i % 4; };

    load(begin);
    for (int64_t start = begin; start < end; start += tile_depth) {
        __syncthreads();
        for (int l = 0; l < loads; ++l) {
            tile_a[along(l, a.along_k)][outside(l, a.along_k)] = next_a[l];
            tile_b[along(l, b.along_k)][outside(l, b.along_k)] = next_b[l];
        }
        __syncthreads();
        if (start + tile_depth < end) load(start + tile_depth);
#pragma unroll
        for (int k = 0; k < tile_depth; ++k) {
            T x[per], y[per];
            for (int i = 0; i < per; ++i) x[i] = tile_a[k][place(i, down)];
            for (int j = 0; j < per; ++j) y[j] = tile_b[k][place(j, across)];
#pragma unroll
            for (int i = 0; i < per; ++i)
#pragma unroll
                for (int j = 0; j < per; ++j) sums[i][j] = static_cast<T>(sums[i][j] + x[i] * y[j]);
        }
    }
#pragma unroll
    for (int i = 0; i < per; ++i)
#pragma unroll
        for (int j = 0; j < per; ++j) {
            int64_t m = first_row + place(i, down), n = first_column + place(j, across);
            if (m < rows && n < columns) store(m, n, sums[i][j]);
        }
}

inline int64_t tiles_of(int64_t rows, int64_t columns, int64_t side)
{
    return ((rows + side - 1) / side) * ((columns + side - 1) / side);
}

// out = act(a b), or with accumulate act(out + a b), as part of another kernel's call.
void matmul_into(const Call& call, const Array& out, const Array& a, const Array& b, int activation,
                 bool accumulate);

// The activation numbers of the kernel table.
template <class T>
__device__ T activate(T x, int activation)
{
    if (activation == 1) return x < T(0) ? T(0) : x;  // NaN stays
    if (activation == 2) return static_cast<T>(tanh(x));
    if (activation == 3) return T(1) / (T(1) + static_cast<T>(exp(-x)));
    return x;
}

}  // namespace needle::cuda
