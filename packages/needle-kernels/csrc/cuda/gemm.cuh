// The product of float32 matrices whose rows or columns lie without gaps: C = A B by tiles, with
// float32 arithmetic or, where the user allows it, on tensor cores in TF32.
//
// A block computes one tile, side x side. It goes along the depth in slices of 16: while it
// multiplies one slice in shared memory, the next ones are on their way (cp.async; a plain load and
// store before Ampere). An operand's slice keeps the order it has in memory, so that all copies and
// all reads of it are 16 bytes wide:
//     along k:      [row][k], rows 20 apart        otherwise:  [k][row], k side + 8 apart
// With these distances the threads of a quarter warp read from different banks.
#pragma once

#include "copies.cuh"
#include "matmul.cuh"
#include "tensor_core.cuh"

namespace needle::cuda {

constexpr int slice_depth = 16;

// A(m, k) or B(k, n): `row` is m, or n.
struct Panel {
    const float* data;
    int64_t rows, stride;  // between rows if along k, else between k
};

template <int side, bool along_k>
struct Slice {
    static constexpr int stride = along_k ? slice_depth + 4 : side + 8;
    static constexpr int floats = side * (slice_depth + 4);  // enough for both orders

    __device__ static int place(int row, int k)
    {
        return along_k ? row * stride + k : k * stride + row;
    }

    // The four values of a row at k, k + 1, ...: x[i][0..3] for rows row(0), row(1), ...
    template <int per, class Row>
    __device__ static void read(float (&x)[per][4], const float* tile, int k, const Row& row)
    {
        if constexpr (along_k) {
#pragma unroll
            for (int i = 0; i < per; ++i) {
                float4 v = *reinterpret_cast<const float4*>(tile + place(row(i), k));
                x[i][0] = v.x, x[i][1] = v.y, x[i][2] = v.z, x[i][3] = v.w;
            }
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int i = 0; i < per; i += 4) {  // four rows side by side
                    float4 v = *reinterpret_cast<const float4*>(tile + place(row(i), k + j));
                    x[i][j] = v.x, x[i + 1][j] = v.y, x[i + 2][j] = v.z, x[i + 3][j] = v.w;
                }
        }
    }
};

// A thread's share of the copies of an operand's slices, one slice after the other: `count` chunks
// of 16 bytes, each `lines` lines of the slice below the last.
template <int side, bool along_k, int threads>
struct Feed {
    using To = Slice<side, along_k>;
    static constexpr int per_line = (along_k ? slice_depth : side) / 4;
    static constexpr int lines = threads / per_line, count = side * slice_depth / 4 / threads;
    const float* next;
    int64_t line_step, slice_step;
    int row, k, rows;  // of the first chunk; and how many rows of the tile there are

    __device__ Feed(const Panel& panel, int64_t first_row)
    {
        int line = static_cast<int>(threadIdx.x) / per_line;
        int along = static_cast<int>(threadIdx.x) % per_line * 4;
        row = along_k ? line : along;
        k = along_k ? along : line;
        int64_t left = panel.rows - first_row;
        rows = left < side ? static_cast<int>(left) : side;
        next = panel.data + (along_k ? (first_row + row) * panel.stride + k
                                     : k * panel.stride + first_row + row);
        line_step = lines * panel.stride;
        slice_step = along_k ? slice_depth : slice_depth * panel.stride;
    }

    // Begins to copy the next slice, of which `ks` of the 16 k are left; outside there are zeros.
    __device__ __forceinline__ void copy(float* tile, int ks)
    {
#pragma unroll
        for (int c = 0; c < count; ++c) {
            int r = along_k ? row + c * lines : row, at = along_k ? k : k + c * lines;
            int inside = along_k ? (r < rows ? ks - at : 0) : (at < ks ? rows - r : 0);
            inside = inside < 0 ? 0 : inside < 4 ? inside : 4;
            copy_async(tile + To::place(r, at), next + c * line_step, inside);
        }
        next += slice_step;
    }
};

// ---- float32 arithmetic: 16 x 16 threads, each with per x per elements; a warp is 4 x 8 of them

template <int side_>
struct Float32Tile {
    static constexpr int side = side_, threads = 256, per = side / 16;
    static constexpr int stages = side == 128 ? 2 : 4;  // 40 KB
    static constexpr int blocks = side == 128 ? 1 : 2;  // at least, on a multiprocessor
    float sums[per][per] = {};

    __device__ static int down()
    {
        int t = static_cast<int>(threadIdx.x);
        return t / 64 * 4 + t % warp / 8;
    }
    __device__ static int across()
    {
        int t = static_cast<int>(threadIdx.x);
        return t / warp % 2 * 8 + t % 8;
    }
    // Row i of the thread at `place`: 16 apart, or in fours that lie side by side in the slice.
    template <bool along_k>
    __device__ static int row(int i, int place)
    {
        return along_k ? i * 16 + place : i / 4 * 64 + place * 4 + i % 4;
    }

    template <bool a_along_k, bool b_along_k>
    __device__ void add(const float* tile_a, const float* tile_b)
    {
#pragma unroll
        for (int k = 0; k < slice_depth; k += 4) {
            float x[per][4], y[per][4];
            Slice<side, a_along_k>::read(x, tile_a, k,
                                         [](int i) { return row<a_along_k>(i, down()); });
            Slice<side, b_along_k>::read(y, tile_b, k,
                                         [](int j) { return row<b_along_k>(j, across()); });
#pragma unroll
            for (int l = 0; l < 4; ++l)
#pragma unroll
                for (int i = 0; i < per; ++i)
#pragma unroll
                    for (int j = 0; j < per; ++j) sums[i][j] += x[i][l] * y[j][l];
        }
    }

    // store(row, column, sum) for the thread's elements of the tile.
    template <bool a_along_k, bool b_along_k, class Store>
    __device__ void store_all(const Store& store) const
    {
#pragma unroll
        for (int i = 0; i < per; ++i)
#pragma unroll
            for (int j = 0; j < per; ++j)
                store(row<a_along_k>(i, down()), row<b_along_k>(j, across()), sums[i][j]);
    }
};

// ---- TF32: 2 x 2 warps, each with a quarter of the tile in pieces of 16 x 8

template <int side_>
struct Tf32Tile {
    static constexpr int side = side_, threads = 128, half = side / 2;
    static constexpr int stages = 4;  // 80 KB for a side of 128: tensor cores are fast
    static constexpr int blocks = 2;
    static constexpr int down = half / 16, across = half / 8;
    Fragment sums[down][across] = {};

    __device__ static int first_row() { return static_cast<int>(threadIdx.x) / warp / 2 * half; }
    __device__ static int first_column() { return static_cast<int>(threadIdx.x) / warp % 2 * half; }

    template <bool a_along_k, bool b_along_k>
    __device__ void add(const float* tile_a, const float* tile_b)
    {
        using A = Slice<side, a_along_k>;
        using B = Slice<side, b_along_k>;
        int lane = static_cast<int>(threadIdx.x) % warp, group = lane / 4, t = lane % 4;
#pragma unroll
        for (int k = 0; k < slice_depth; k += 8) {
            uint32_t a[down][4];
#pragma unroll
            for (int i = 0; i < down; ++i)
#pragma unroll
                for (int r = 0; r < 4; ++r)
                    a[i][r] = round_to_tf32(tile_a[A::place(
                        first_row() + i * 16 + group + r % 2 * 8, k + t + r / 2 * 4)]);
#pragma unroll
            for (int j = 0; j < across; ++j) {
                int column = first_column() + j * 8 + group;
                uint32_t b[2] = {round_to_tf32(tile_b[B::place(column, k + t)]),
                                 round_to_tf32(tile_b[B::place(column, k + t + 4)])};
#pragma unroll
                for (int i = 0; i < down; ++i) multiply_add_tf32(sums[i][j], a[i], b);
            }
        }
    }

    template <bool, bool, class Store>
    __device__ void store_all(const Store& store) const
    {
        int lane = static_cast<int>(threadIdx.x) % warp, group = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < down; ++i)
#pragma unroll
            for (int j = 0; j < across; ++j)
#pragma unroll
                for (int r = 0; r < 4; ++r)
                    store(first_row() + i * 16 + group + r / 2 * 8,
                          first_column() + j * 8 + t * 2 + r % 2, sums[i][j].at[r]);
    }
};

template <class Tile>
constexpr int gemm_shared_bytes =
    Tile::stages * 2 * Slice<Tile::side, true>::floats * static_cast<int>(sizeof(float));

// store(m, n, sum) gets each element of the tile at (first_row, first_column) that lies inside.
template <class Tile, bool a_along_k, bool b_along_k, class Store>
__device__ __forceinline__ void multiply_panels(const Panel& a, const Panel& b, int64_t depth,
                                                int64_t first_row, int64_t first_column,
                                                const Store& store)
{
    using A = Slice<Tile::side, a_along_k>;
    using B = Slice<Tile::side, b_along_k>;
    constexpr int stages = Tile::stages, stage_floats = A::floats + B::floats;
    float* memory = dynamic_shared<float>();
    Feed<Tile::side, a_along_k, Tile::threads> feed_a(a, first_row);
    Feed<Tile::side, b_along_k, Tile::threads> feed_b(b, first_column);
    int64_t left = depth;  // that is not being copied yet
    auto copy_slice = [&](int stage) {
        if (left > 0) {
            int ks = left < slice_depth ? static_cast<int>(left) : slice_depth;
            feed_a.copy(memory + stage * stage_floats, ks);
            feed_b.copy(memory + stage * stage_floats + A::floats, ks);
            left -= slice_depth;
        }
        end_copy_group();  // an empty one, too: they are counted
    };

    Tile tile;
    for (int stage = 0; stage < stages - 1; ++stage) copy_slice(stage);
    int stage = 0;
    for (int64_t done = 0; done < depth; done += slice_depth) {
        wait_for_copies<stages - 2>();
        // This slice is there for all threads, and all have done with the one copied over next.
        __syncthreads();
        copy_slice(stage == 0 ? stages - 1 : stage - 1);
        const float* slice = memory + stage * stage_floats;
        tile.template add<a_along_k, b_along_k>(slice, slice + A::floats);
        stage = stage == stages - 1 ? 0 : stage + 1;
    }
    wait_for_copies<0>();
    __syncthreads();  // the next tile of this block begins with the same memory
    tile.template store_all<a_along_k, b_along_k>([&](int row, int column, float sum) {
        int64_t m = first_row + row, n = first_column + column;
        if (m < a.rows && n < b.rows) store(m, n, sum);
    });
}

}  // namespace needle::cuda
