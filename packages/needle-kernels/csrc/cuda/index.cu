// Rows by id: gather, scatter-add, one-hot.
#include "families.h"
#include "ids.cuh"

namespace needle::cuda {

namespace {

constexpr int index_threads = 256;

// Bytes are all that gather needs to know of a dtype.
template <class Body>
void with_item(DType dtype, const Body& body)
{
    switch (dtype) {
        case DType::float64:
        case DType::int64: return body(uint64_t{});
        case DType::float32:
        case DType::int32: return body(uint32_t{});
        case DType::uint8:
        case DType::boolean: return body(uint8_t{});
    }
}

template <class T>
__global__ void __launch_bounds__(index_threads)
    gather_kernel(Matrix<T> out, Matrix<T> table, Ids ids)
{
    for (int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; row < out.rows;
         row += int64_t(gridDim.x) * blockDim.y) {
        int64_t from = ids[row];
        if (from < 0) continue;
        for (int64_t c = threadIdx.x; c < out.columns; c += blockDim.x)
            out.at(row, c) = table.at(from, c);
    }
}

void gather(const Call& call)
{
    with_item(call.arrays[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        Matrix<T> out(call.arrays[0]), table(call.arrays[1]);
        dim3 block = rows_of_threads(out.columns, index_threads);
        launch(call, gather_kernel<T>, grid_for(out.rows, block.y), block, 0, out, table,
               Ids(call, call.arrays[2], table.rows));
    });
}

template <class T>
__global__ void __launch_bounds__(index_threads) one_hot_kernel(Matrix<T> out, Ids ids)
{
    for (int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; row < out.rows;
         row += int64_t(gridDim.x) * blockDim.y) {
        int64_t id = ids[row];
        for (int64_t c = threadIdx.x; c < out.columns; c += blockDim.x)
            out.at(row, c) = static_cast<T>(c == id ? 1 : 0);
    }
}

void one_hot(const Call& call)
{
    with_type(call.arrays[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        Matrix<T> out(call.arrays[0]);
        dim3 block = rows_of_threads(out.columns, index_threads);
        launch(call, one_hot_kernel<T>, grid_for(out.rows, block.y), block, 0, out,
               Ids(call, call.arrays[1], out.columns));
    });
}

// ---- scatter-add: no atomics, whose order would change the last digits from run to run. Each row
// of the result looks through all ids for its own, and adds those rows in order. That reads R ids
// for each of V rows: far less than it looks, since a block reads them once for all of its rows,
// and the ids stay in cache; a network's batch has a few thousand.

constexpr int scatter_rows = 8;    // of the result, per block: one warp each
constexpr int scatter_ids = 1024;  // looked through at a time

template <class T>
__global__ void __launch_bounds__(scatter_rows* warp)
    scatter_add_kernel(Matrix<T> out, Matrix<T> src, Ids ids)
{
    __shared__ int64_t chunk[scatter_ids];
    int lane = static_cast<int>(threadIdx.x) % warp, thread = static_cast<int>(threadIdx.x);
    for (int64_t first = int64_t(blockIdx.x) * scatter_rows; first < out.rows;
         first += int64_t(gridDim.x) * scatter_rows) {
        int64_t row = first + thread / warp;
        for (int64_t begin = 0; begin < src.rows; begin += scatter_ids) {
            int size =
                static_cast<int>(src.rows - begin < scatter_ids ? src.rows - begin : scatter_ids);
            __syncthreads();
            for (int i = thread; i < size; i += scatter_rows * warp) chunk[i] = ids[begin + i];
            __syncthreads();
            for (int group = 0; group < size; group += warp) {
                bool mine = group + lane < size && chunk[group + lane] == row;
                unsigned hits = __ballot_sync(0xffffffffu, mine);
                for (; hits != 0; hits &= hits - 1) {
                    int64_t from = begin + group + __ffs(static_cast<int>(hits)) - 1;
                    for (int64_t c = lane; c < out.columns; c += warp)
                        out.at(row, c) += src.at(from, c);
                }
            }
        }
    }
}

void scatter_add(const Call& call)
{
    with_float(call.arrays[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        Matrix<T> out(call.arrays[0]), src(call.arrays[1]);
        if (src.rows == 0 || out.columns == 0) return;
        launch(call, scatter_add_kernel<T>, grid_for(out.rows, scatter_rows), scatter_rows * warp,
               0, out, src, Ids(call, call.arrays[2], out.rows));
    });
}

}  // namespace

void add_index(Table& table)
{
    table[Kernel::gather].run = gather;
    table[Kernel::scatter_add].run = scatter_add;
    table[Kernel::one_hot].run = one_hot;
}

}  // namespace needle::cuda
