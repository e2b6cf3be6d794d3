// out = act(out + a b + bias), batched, for operands of any strides.
#include "matmul.cuh"

#include <atomic>
#include <type_traits>

#include "families.h"
#include "gemm.cuh"
#include "reduce.cuh"

namespace needle::cuda {

namespace {

template <class T>
struct Operand {
    const T* data;
    int64_t row_stride, column_stride;
    bool along_k;

    __device__ T operator()(int64_t row, int64_t column) const
    {
        return data[row * row_stride + column * column_stride];
    }
};

template <class T>
struct Product {
    T* out;
    int64_t rows, columns, depth, row_stride, column_stride;
    Operand<T> a, b;
    const T* bias;  // null: none
    int64_t bias_stride;
    int activation;
    bool accumulate;
    Strided<3> batch;  // of out, a and b

    __device__ void store(T* into, int64_t m, int64_t n, T sum) const
    {
        T& target = into[m * row_stride + n * column_stride];
        if (accumulate) sum = static_cast<T>(sum + target);
        if (bias != nullptr) sum = static_cast<T>(sum + bias[n * bias_stride]);
        if constexpr (std::is_floating_point_v<T>) sum = activate(sum, activation);
        target = sum;
    }
};

template <class T, int per>
__global__ void __launch_bounds__(tile_threads) matmul_kernel(Product<T> p)
{
    constexpr int side = 16 * per;
    int64_t tiles_across = (p.columns + side - 1) / side;
    int64_t first_row = blockIdx.x / tiles_across * side;
    int64_t first_column = blockIdx.x % tiles_across * side;
    for (int64_t index = blockIdx.y; index < p.batch.count; index += gridDim.y) {
        int64_t place[3];
        p.batch.places(index, place);
        Operand<T> a = p.a, b = p.b;
        a.data += place[1];
        b.data += place[2];
        T* out = p.out + place[0];
        multiply_tile<T, per>(first_row, first_column, p.rows, p.columns, 0, p.depth, a, b,
                              [&](int64_t m, int64_t n, T sum) { p.store(out, m, n, sum); });
    }
}

template <class T>
Operand<T> operand(const Array& array, bool k_is_last)
{
    int64_t row = array.strides[array.rank - 2], column = array.strides[array.rank - 1];
    int64_t k = k_is_last ? column : row, other = k_is_last ? row : column;
    return {array.as<T>(), row, column, (k < 0 ? -k : k) < (other < 0 ? -other : other)};
}

Array without_matrix(const Array& array)
{
    Array batch = array;
    batch.rank -= 2;
    return batch;
}

template <class T>
Product<T> product_of(const Call& call)
{
    const Array &out = call.arrays[0], &a = call.arrays[1], &b = call.arrays[2];
    const Array& bias = call.arrays[3];
    int row = out.rank - 2, column = out.rank - 1;
    Array batches[] = {without_matrix(out), without_matrix(a), without_matrix(b)};
    return {out.as<T>(),
            out.shape[row],
            out.shape[column],
            a.shape[column],
            out.strides[row],
            out.strides[column],
            operand<T>(a, true),
            operand<T>(b, false),
            bias.as<T>(),
            bias.data != nullptr ? bias.strides[0] : 0,
            static_cast<int>(call.scalars[0]),
            call.scalars[1] != 0,
            strided<3>({&batches[0], &batches[1], &batches[2]})};
}

template <class T>
unsigned batches_at_once(const Product<T>& p)
{
    constexpr int64_t most = 65535;
    return static_cast<unsigned>(p.batch.count < most ? p.batch.count : most);
}

template <class T, int per>
void run(const Call& call, const Product<T>& p)
{
    dim3 grid(static_cast<unsigned>(tiles_of(p.rows, p.columns, 16 * per)), batches_at_once(p));
    launch(call, matmul_kernel<T, per>, grid, tile_threads, 0, p);
}

// ---- float32 operands that can be read 16 bytes at a time

// Tiles in groups of 8 rows, column by column: blocks that run together share operands.
struct TilePlace {
    int64_t row, column;
};

__device__ TilePlace tile_place(int64_t block, int64_t down, int64_t across)
{
    constexpr int64_t rows = 8;
    int64_t first = block / (rows * across) * rows, rest = block % (rows * across);
    int64_t height = down - first < rows ? down - first : rows;
    return {first + rest % height, rest / height};
}

template <class Tile, bool a_along_k, bool b_along_k>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks)
    gemm_kernel(Product<float> p, Panel a, Panel b)
{
    int64_t down = (p.rows + Tile::side - 1) / Tile::side;
    int64_t across = (p.columns + Tile::side - 1) / Tile::side;
    TilePlace tile = tile_place(blockIdx.x, down, across);
    const float *a_data = a.data, *b_data = b.data;
    for (int64_t index = blockIdx.y; index < p.batch.count; index += gridDim.y) {
        int64_t place[3];
        p.batch.places(index, place);
        a.data = a_data + place[1];
        b.data = b_data + place[2];
        float* out = p.out + place[0];
        multiply_panels<Tile, a_along_k, b_along_k>(
            a, b, p.depth, tile.row * Tile::side, tile.column * Tile::side,
            [&](int64_t m, int64_t n, float sum) { p.store(out, m, n, sum); });
    }
}

// Whether each row (along k), or each k, begins at a multiple of 16 bytes and has no gaps.
bool wide(const Strided<3>& batch, int which, const float* data, int64_t unit, int64_t stride)
{
    bool found = unit == 1 && stride % 4 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
    for (int axis = 0; axis < batch.rank; ++axis)
        found = found && batch.strides[which][axis] % 4 == 0;
    return found;
}

template <class Tile, bool a_along_k, bool b_along_k>
void run_gemm(const Call& call, const Product<float>& p)
{
    Panel a{p.a.data, p.rows, a_along_k ? p.a.row_stride : p.a.column_stride};
    Panel b{p.b.data, p.columns, b_along_k ? p.b.column_stride : p.b.row_stride};
    dim3 grid(static_cast<unsigned>(tiles_of(p.rows, p.columns, Tile::side)), batches_at_once(p));
    launch(call, gemm_kernel<Tile, a_along_k, b_along_k>, grid, Tile::threads,
           gemm_shared_bytes<Tile>, p, a, b);
}

template <class Tile>
void run_gemm(const Call& call, const Product<float>& p, bool a_along_k, bool b_along_k)
{
    if (a_along_k)
        b_along_k ? run_gemm<Tile, true, true>(call, p) : run_gemm<Tile, true, false>(call, p);
    else
        b_along_k ? run_gemm<Tile, false, true>(call, p) : run_gemm<Tile, false, false>(call, p);
}

std::atomic<bool> tf32{false};

// 128 x 128 tiles read each operand less often; 64 x 64 where those would leave the device idle.
void matmul_float32(const Call& call)
{
    Product<float> p = product_of<float>(call);
    bool large = tiles_of(p.rows, p.columns, 128) * p.batch.count >= multiprocessors();
    const Operand<float>&a = p.a, &b = p.b;
    bool a_along_k = wide(p.batch, 1, a.data, a.column_stride, a.row_stride);
    bool b_along_k = wide(p.batch, 2, b.data, b.row_stride, b.column_stride);
    if (!(a_along_k || wide(p.batch, 1, a.data, a.row_stride, a.column_stride)) ||
        !(b_along_k || wide(p.batch, 2, b.data, b.column_stride, b.row_stride)))
        large ? run<float, 8>(call, p) : run<float, 4>(call, p);
    else if (use_tf32())
        large ? run_gemm<Tf32Tile<128>>(call, p, a_along_k, b_along_k)
              : run_gemm<Tf32Tile<64>>(call, p, a_along_k, b_along_k);
    else
        large ? run_gemm<Float32Tile<128>>(call, p, a_along_k, b_along_k)
              : run_gemm<Float32Tile<64>>(call, p, a_along_k, b_along_k);
}

template <class T>
void matmul_small_tiles(const Call& call)
{
    run<T, 4>(call, product_of<T>(call));
}

void matmul(const Call& call)
{
    switch (call.arrays[0].dtype) {
        case DType::float32: return matmul_float32(call);
        case DType::float64: return matmul_small_tiles<double>(call);
        case DType::int32: return matmul_small_tiles<uint32_t>(call);  // wraps around
        case DType::int64: return matmul_small_tiles<uint64_t>(call);
        case DType::uint8:
        case DType::boolean: return matmul_small_tiles<uint8_t>(call);
    }
}

// dw = x^T dy, and db, the sum of dy's rows.
void linear_weight_grad(const Call& call)
{
    Array x_transposed = axis_first(call.arrays[2], 1);
    matmul_into(call, call.arrays[0], x_transposed, call.arrays[3], 0, false);
    with_float(call.arrays[0].dtype,
               [&](auto zero) { bias_grad<decltype(zero)>(call, call.workspace); });
}

}  // namespace

void set_tf32(bool on) { tf32 = on; }
bool use_tf32() { return tf32 && properties().compute_major >= 8; }

void matmul_into(const Call& call, const Array& out, const Array& a, const Array& b, int activation,
                 bool accumulate)
{
    Array arrays[] = {out, a, b, Array{}};
    double scalars[] = {static_cast<double>(activation), accumulate ? 1.0 : 0.0};
    Call product{arrays, 4, scalars, 2, nullptr, call.stream, call.kernel};
    matmul(product);
}

void add_matmul(Table& table)
{
    table[Kernel::matmul].run = matmul;
    table[Kernel::linear_weight_grad] = {linear_weight_grad, bias_grad_workspace};
}

}  // namespace needle::cuda
