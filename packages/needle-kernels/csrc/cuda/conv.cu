// Convolution of x (N, H, W, Ci) with w (K, K, Ci, Co), and both gradients, as matrix products
// whose operands are never written down: each load computes where its element lies (implicit GEMM).
//     y   rows: pixels of y            depth: taps x Ci         columns: Co
//     dx  rows: pixels of x            depth: taps x Co         columns: Ci
//     dw  rows: taps x Ci              depth: pixels of y       columns: Co
#include "families.h"
#include "matmul.cuh"
#include "reduce.cuh"

namespace needle::cuda {

namespace {

// The first three indices of a row of `t` seen as a matrix (everything before the last axis, last).
struct Place {
    int64_t first, second, third;
};

template <class T>
__device__ Place place_of(const Tensor4<T>& t, int64_t row)
{
    int64_t rest = row / t.shape[2];
    return {rest / t.shape[1], rest % t.shape[1], row % t.shape[2]};
}

// The pixels of x under the taps: (pixel of y, tap and channel of x).
template <class T>
struct Patches {
    Tensor4<T> x, y, w;
    int64_t stride, padding;
    bool along_k;

    __device__ T operator()(int64_t pixel, int64_t tap_and_channel) const
    {
        Place p = place_of(y, pixel);
        int64_t tap = tap_and_channel / w.shape[2], channel = tap_and_channel % w.shape[2];
        int64_t h = p.second * stride + tap / w.shape[1] - padding;
        int64_t v = p.third * stride + tap % w.shape[1] - padding;
        bool inside = h >= 0 && h < x.shape[1] && v >= 0 && v < x.shape[2];
        return inside ? x.at(p.first, h, v, channel) : T(0);
    }
};

// The same, for rows that are taps and channels.
template <class T>
struct PatchesTransposed {
    Patches<T> patches;
    bool along_k;

    __device__ T operator()(int64_t tap_and_channel, int64_t pixel) const
    {
        return patches(pixel, tap_and_channel);
    }
};

// The gradients dy that a pixel of x gets through each tap: (pixel of x, tap and channel of y).
template <class T>
struct GradientPatches {
    Tensor4<T> x, y, w;
    int64_t stride, padding;
    bool along_k;

    __device__ T operator()(int64_t pixel, int64_t tap_and_channel) const
    {
        Place p = place_of(x, pixel);
        int64_t tap = tap_and_channel / w.shape[3], channel = tap_and_channel % w.shape[3];
        int64_t h = p.second + padding - tap / w.shape[1];
        int64_t v = p.third + padding - tap % w.shape[1];
        if (h < 0 || v < 0 || h % stride != 0 || v % stride != 0) return T(0);
        h /= stride;
        v /= stride;
        return h < y.shape[1] && v < y.shape[2] ? y.at(p.first, h, v, channel) : T(0);
    }
};

// A tensor as a matrix of its last axis: (everything else, last).
template <class T>
struct Rows {
    Tensor4<T> t;
    bool along_k;

    __device__ T operator()(int64_t row, int64_t column) const
    {
        Place p = place_of(t, row);
        return t.at(p.first, p.second, p.third, column);
    }
};

// w for the gradient of x: (tap and channel of y, channel of x).
template <class T>
struct WeightsTransposed {
    Tensor4<T> w;
    bool along_k;

    __device__ T operator()(int64_t tap_and_channel, int64_t channel) const
    {
        int64_t tap = tap_and_channel / w.shape[3];
        return w.at(tap / w.shape[1], tap % w.shape[1], channel, tap_and_channel % w.shape[3]);
    }
};

// Writes act(sum + bias) where Rows reads.
template <class T>
struct StoreRows {
    Tensor4<T> t;
    const T* bias;  // null: none
    int64_t bias_stride;
    int activation;

    __device__ void operator()(int64_t, int64_t row, int64_t column, T sum) const
    {
        Place p = place_of(t, row);
        if (bias != nullptr) sum += bias[column * bias_stride];
        t.at(p.first, p.second, p.third, column) = activate(sum, activation);
    }
};

// Writes the sum of one split: (split, row, column).
template <class T>
struct StoreSplit {
    T* partial;
    int64_t rows, columns;

    __device__ void operator()(int64_t split, int64_t row, int64_t column, T sum) const
    {
        partial[(split * rows + row) * columns + column] = sum;
    }
};

template <class A, class B, class Store>
struct Problem {
    A a;
    B b;
    Store store;
    int64_t rows, columns, depth, share;  // each row of blocks takes `share` of the depth
};

template <class T, int per, class P>
__global__ void __launch_bounds__(tile_threads) product_kernel(P p)
{
    constexpr int side = 16 * per;
    int64_t across = (p.columns + side - 1) / side, split = blockIdx.y, begin = split * p.share;
    int64_t end = begin + p.share < p.depth ? begin + p.share : p.depth;
    multiply_tile<T, per>(blockIdx.x / across * side, blockIdx.x % across * side, p.rows, p.columns,
                          begin, end, p.a, p.b,
                          [&](int64_t m, int64_t n, T sum) { p.store(split, m, n, sum); });
}

template <class T, int per, class P>
void run(const Call& call, const P& p, int64_t splits)
{
    dim3 grid(static_cast<unsigned>(tiles_of(p.rows, p.columns, 16 * per)),
              static_cast<unsigned>(splits));
    launch(call, product_kernel<T, per, P>, grid, tile_threads, 0, p);
}

// ---- forward and the gradient of x

void conv(const Call& call)
{
    const Array *a = call.arrays, &bias = a[3];
    int64_t stride = static_cast<int64_t>(call.scalars[0]);
    int64_t padding = static_cast<int64_t>(call.scalars[1]);
    with_float(a[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        Tensor4<T> y(a[0]), x(a[1]), w(a[2]);
        int64_t depth = w.shape[0] * w.shape[1] * w.shape[2];
        Problem<Patches<T>, Rows<T>, StoreRows<T>> p{
            {x, y, w, stride, padding, x.closer(3, 2)},
            {w, !w.closer(3, 2)},
            {y, bias.as<T>(), bias.data != nullptr ? bias.strides[0] : 0,
             static_cast<int>(call.scalars[2])},
            y.shape[0] * y.shape[1] * y.shape[2],
            y.shape[3],
            depth,
            depth};
        run<T, 4>(call, p, 1);
    });
}

void conv_input_grad(const Call& call)
{
    const Array* a = call.arrays;
    int64_t stride = static_cast<int64_t>(call.scalars[0]);
    int64_t padding = static_cast<int64_t>(call.scalars[1]);
    with_float(a[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        Tensor4<T> dx(a[0]), dy(a[1]), w(a[2]);
        int64_t depth = w.shape[0] * w.shape[1] * w.shape[3];
        Problem<GradientPatches<T>, WeightsTransposed<T>, StoreRows<T>> p{
            {dx, dy, w, stride, padding, dy.closer(3, 2)},
            {w, w.closer(3, 2)},
            {dx, nullptr, 0, 0},
            dx.shape[0] * dx.shape[1] * dx.shape[2],
            dx.shape[3],
            depth,
            depth};
        run<T, 4>(call, p, 1);
    });
}

// ---- the gradient of w: few rows and columns, a long sum, which blocks therefore share

struct Shares {
    int64_t rows, columns, depth, share, splits;
};

Shares plan_weight_grad(const Call& call)
{
    const Array &dw = call.arrays[0], &dy = call.arrays[3];
    int64_t rows = dw.shape[0] * dw.shape[1] * dw.shape[2], columns = dw.shape[3];
    int64_t depth = dy.shape[0] * dy.shape[1] * dy.shape[2], tiles = tiles_of(rows, columns, 64);
    int64_t wanted = tiles > 0 ? 4 * multiprocessors() / tiles : 1;
    int64_t worthwhile = depth / (16 * tile_depth);
    int64_t splits = wanted < worthwhile ? wanted : worthwhile;
    if (splits < 1) splits = 1;
    int64_t share = (depth + splits - 1) / splits;
    return {rows, columns, depth, share, splits};
}

int64_t split_sums_bytes(const Shares& s) { return s.splits * s.rows * s.columns * 8; }

template <class T>
__global__ void __launch_bounds__(reduce_threads)
    add_splits(Tensor4<T> dw, const T* partial, Shares s)
{
    int64_t step = int64_t(gridDim.x) * reduce_threads, count = s.rows * s.columns;
    for (int64_t i = int64_t(blockIdx.x) * reduce_threads + threadIdx.x; i < count; i += step) {
        double sum = 0;
        for (int64_t split = 0; split < s.splits; ++split)
            sum += static_cast<double>(partial[split * count + i]);
        Place p = place_of(dw, i / s.columns);
        dw.at(p.first, p.second, p.third, i % s.columns) = static_cast<T>(sum);
    }
}

int64_t conv_weight_grad_workspace(const Call& call)
{
    int64_t bytes = split_sums_bytes(plan_weight_grad(call));
    if (call.arrays[1].data == nullptr) return bytes;
    return bytes + bias_grad_workspace(call);
}

void conv_weight_grad(const Call& call)
{
    const Array* a = call.arrays;
    int64_t stride = static_cast<int64_t>(call.scalars[0]);
    int64_t padding = static_cast<int64_t>(call.scalars[1]);
    Shares s = plan_weight_grad(call);
    with_float(a[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        Tensor4<T> dw(a[0]), x(a[2]), dy(a[3]);
        T* partial = static_cast<T*>(call.workspace);
        Patches<T> patches{x, dy, dw, stride, padding, false};
        Problem<PatchesTransposed<T>, Rows<T>, StoreSplit<T>> p{{patches, !x.closer(3, 2)},
                                                                {dy, !dy.closer(3, 2)},
                                                                {partial, s.rows, s.columns},
                                                                s.rows,
                                                                s.columns,
                                                                s.depth,
                                                                s.share};
        run<T, 4>(call, p, s.splits);
        launch(call, add_splits<T>, grid_for(s.rows * s.columns, reduce_threads), reduce_threads, 0,
               dw, partial, s);
        if (a[1].data == nullptr) return;
        bias_grad<T>(call, static_cast<char*>(call.workspace) + split_sums_bytes(s));
    });
}

}  // namespace

void add_conv(Table& table)
{
    table[Kernel::conv].run = conv;
    table[Kernel::conv_input_grad].run = conv_input_grad;
    table[Kernel::conv_weight_grad] = {conv_weight_grad, conv_weight_grad_workspace};
}

}  // namespace needle::cuda
