// out = act(out + a b + bias), batched, for operands of any strides.
#include "matmul.cuh"

#include <type_traits>

#include "families.h"

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
                              [&](int64_t m, int64_t n, T sum) {
                                  T& target = out[m * p.row_stride + n * p.column_stride];
                                  if (p.accumulate) sum = static_cast<T>(sum + target);
                                  if (p.bias != nullptr)
                                      sum = static_cast<T>(sum + p.bias[n * p.bias_stride]);
                                  if constexpr (std::is_floating_point_v<T>)
                                      sum = activate(sum, p.activation);
                                  target = sum;
                              });
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

template <class T, int per>
void run(const Call& call, const Product<T>& p)
{
    constexpr int64_t most_batches = 65535;
    int64_t batches = p.batch.count < most_batches ? p.batch.count : most_batches;
    dim3 grid(static_cast<unsigned>(tiles_of(p.rows, p.columns, 16 * per)),
              static_cast<unsigned>(batches));
    launch(call, matmul_kernel<T, per>, grid, tile_threads, 0, p);
}

// 128 x 128 tiles read each operand less often; 64 x 64 where those would leave the device idle.
void matmul_float32(const Call& call)
{
    Product<float> p = product_of<float>(call);
    if (tiles_of(p.rows, p.columns, 128) * p.batch.count >= multiprocessors())
        run<float, 8>(call, p);
    else
        run<float, 4>(call, p);
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

}  // namespace

void matmul_into(const Call& call, const Array& out, const Array& a, const Array& b, int activation,
                 bool accumulate)
{
    Array arrays[] = {out, a, b, Array{}};
    double scalars[] = {static_cast<double>(activation), accumulate ? 1.0 : 0.0};
    Call product{arrays, 4, scalars, 2, nullptr, call.stream, call.kernel};
    matmul(product);
}

void add_matmul(Table& table) { table[Kernel::matmul].run = matmul; }

}  // namespace needle::cuda
