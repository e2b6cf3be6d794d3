// Batch normalisation of x (N, C, H, W) and layer normalisation of x (R, D):
//     xhat = (x - mean) / sqrt(var + eps)        y = weight * xhat + bias
// Sums are float64. A variance is the mean square of x - shift, less the square of its mean, with
// shift an element of the same channel: one pass, and no digits lost far from zero.
#include "families.h"
#include "reduce.cuh"

namespace needle::cuda {

namespace {

__device__ float root(float x) { return sqrtf(x); }
__device__ double root(double x) { return sqrt(x); }

// One value per channel, row or column.
template <class T>
struct Line {
    T* data;
    int64_t stride;

    explicit Line(const Array& a) : data(a.as<T>()), stride(a.strides[0]) {}
    __device__ T& operator[](int64_t i) const { return data[i * stride]; }
};

struct TwoSums {
    double first, second;
};

struct TwoSumsFold {
    using Sum = TwoSums;
    __device__ Sum nothing() const { return {0, 0}; }
    __device__ Sum join(Sum a, Sum b) const { return {a.first + b.first, a.second + b.second}; }
};

// ---- batch normalisation: first what each channel needs, then every element

// Numbers that the second pass reads, of all channels side by side.
template <class T>
struct Channels {
    T* data;
    int64_t count;

    __device__ T& at(int which, int64_t channel) const { return data[which * count + channel]; }
};

int64_t channel_bytes(const Array& x)
{
    return 3 * x.shape[1] * static_cast<int64_t>(sizeof(double));
}

template <class T>
struct BatchStatistics : TwoSumsFold {
    const T* x;
    Line<T> mean, var, weight;
    double count, eps;
    Channels<T> channels;  // 0: weight / sqrt(var + eps)

    __device__ TwoSums add(TwoSums sum, const int64_t* place, const int64_t* at) const
    {
        double d = static_cast<double>(x[place[1] + at[0]]) - static_cast<double>(x[place[1]]);
        return {sum.first + d, sum.second + d * d};
    }
    __device__ void store(int64_t c, const int64_t* place, TwoSums sum) const
    {
        double shifted = sum.first / count, spread = sum.second / count - shifted * shifted;
        double variance = spread < 0 ? 0 : spread;  // NaN stays
        mean[c] = static_cast<T>(static_cast<double>(x[place[1]]) + shifted);
        var[c] = static_cast<T>(variance);
        channels.at(0, c) = weight[c] / root(static_cast<T>(variance) + static_cast<T>(eps));
    }
};

template <class T>
__global__ void __launch_bounds__(reduce_threads)
    channel_scales(Line<T> var, Line<T> weight, T eps, Channels<T> channels)
{
    for (int64_t c = int64_t(blockIdx.x) * reduce_threads + threadIdx.x; c < channels.count;
         c += int64_t(gridDim.x) * reduce_threads)
        channels.at(0, c) = weight[c] / root(var[c] + eps);
}

// Operands: y, x, and a line of the channels' numbers.
template <class T>
__global__ void __launch_bounds__(reduce_threads)
    normalize_kernel(T* y, const T* x, Line<T> mean, Line<T> bias, Channels<T> channels,
                     Strided<3> layout, bool relu)
{
    uint32_t step = gridDim.x * reduce_threads;
    for (uint32_t i = blockIdx.x * reduce_threads + threadIdx.x; i < layout.count; i += step) {
        int64_t place[3];
        layout.places(i, place);
        int64_t c = place[2];
        T result = (x[place[1]] - mean[c]) * channels.at(0, c) + bias[c];
        y[place[0]] = relu && result < T(0) ? T(0) : result;
    }
}

// An array shaped like x whose place is the channel.
Array channel_numbers(const Array& x)
{
    Array numbers = x;
    for (int axis = 0; axis < x.rank; ++axis) numbers.strides[axis] = axis == 1;
    return numbers;
}

template <class T>
void normalize(const Call& call, const Array& y, const Array& x, const Array& mean,
               const Array& bias, Channels<T> channels, bool relu)
{
    Array numbers = channel_numbers(x);
    Strided<3> layout = strided<3>({&y, &x, &numbers});
    if (layout.count == 0) return;
    in_pieces(layout, [&](const Strided<3>& piece) {
        launch(call, normalize_kernel<T>, grid_for(piece.count, reduce_threads * 4), reduce_threads,
               0, y.as<T>(), x.as<T>(), Line<T>(mean), Line<T>(bias), channels, piece, relu);
    });
}

// Scratch memory: the sums of splits, then the channels' numbers.
template <class T, int Inputs>
Channels<T> channels_of(const Call& call, const Reduction<Inputs>& r, const Array& x)
{
    return {reinterpret_cast<T*>(static_cast<char*>(call.workspace) + split_bytes(r)), x.shape[1]};
}

Reduction<1> plan_statistics(const Call& call)
{
    return plan_reduction<1>(call.arrays[1], {axis_first(call.arrays[3], 1)});
}

int64_t batch_norm_workspace(const Call& call)
{
    return split_bytes(plan_statistics(call)) + channel_bytes(call.arrays[3]);
}

void batch_norm(const Call& call)
{
    const Array *a = call.arrays, &x = a[3];
    with_float(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        Reduction<1> r = plan_statistics(call);
        Channels<T> channels = channels_of<T>(call, r, x);
        double count = static_cast<double>(r.reduced.count);
        reduce(call, r,
               BatchStatistics<T>{{},
                                  x.as<T>(),
                                  Line<T>(a[1]),
                                  Line<T>(a[2]),
                                  Line<T>(a[4]),
                                  count,
                                  call.scalars[0],
                                  channels});
        normalize(call, a[0], x, a[1], a[5], channels, call.scalars[1] != 0);
    });
}

int64_t batch_norm_eval_workspace(const Call& call) { return channel_bytes(call.arrays[1]); }

void batch_norm_eval(const Call& call)
{
    const Array *a = call.arrays, &x = a[1];
    with_float(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        Channels<T> channels{static_cast<T*>(call.workspace), x.shape[1]};
        launch(call, channel_scales<T>, grid_for(channels.count, reduce_threads), reduce_threads, 0,
               Line<T>(a[3]), Line<T>(a[4]), static_cast<T>(call.scalars[0]), channels);
        normalize(call, a[0], x, a[2], a[5], channels, call.scalars[1] != 0);
    });
}

// dy where the ReLU behind the normalisation let it through; y is null without one.
template <class T>
__device__ T through_relu(const T* dy, const T* y, int64_t dy_place, int64_t y_place)
{
    return y == nullptr || y[y_place] > T(0) ? dy[dy_place] : T(0);
}

// Inputs: dy, x, y.
template <class T>
struct BatchGradients : TwoSumsFold {
    const T *dy, *x, *y;
    Line<T> dweight, dbias, mean, var, weight;
    double count, eps;
    Channels<T> channels;  // dx = at(0) * (dy - at(1) - (x - mean) * at(2))

    __device__ TwoSums add(TwoSums sum, const int64_t* place, const int64_t* at) const
    {
        T through = through_relu(dy, y, place[1] + at[0], place[3] + at[2]);
        T centred = x[place[2] + at[1]] - x_mean(place);
        return {sum.first + static_cast<double>(through),
                sum.second + static_cast<double>(through) * static_cast<double>(centred)};
    }
    __device__ T x_mean(const int64_t* place) const { return mean.data[place[0]]; }

    __device__ void store(int64_t c, const int64_t*, TwoSums sum) const
    {
        double inverse = 1 / sqrt(static_cast<double>(var[c]) + eps);
        dbias[c] = static_cast<T>(sum.first);
        dweight[c] = static_cast<T>(sum.second * inverse);
        channels.at(0, c) = static_cast<T>(static_cast<double>(weight[c]) * inverse);
        channels.at(1, c) = static_cast<T>(sum.first / count);
        channels.at(2, c) = static_cast<T>(sum.second * inverse * inverse / count);
    }
};

// Operands: dx, dy, x, y and a line of the channels' numbers.
template <class T>
__global__ void __launch_bounds__(reduce_threads)
    batch_norm_dx(T* dx, const T* dy, const T* x, const T* y, Line<T> mean, Channels<T> channels,
                  Strided<5> layout)
{
    uint32_t step = gridDim.x * reduce_threads;
    for (uint32_t i = blockIdx.x * reduce_threads + threadIdx.x; i < layout.count; i += step) {
        int64_t place[5];
        layout.places(i, place);
        int64_t c = place[4];
        T through = through_relu(dy, y, place[1], place[3]);
        T centred = (x[place[2]] - mean[c]) * channels.at(2, c);
        dx[place[0]] = channels.at(0, c) * (through - channels.at(1, c) - centred);
    }
}

// y, or, where there is no ReLU, x: something to find places in.
const Array& relu_output(const Call& call)
{
    bool relu = call.scalars[1] != 0 && call.arrays[5].data != nullptr;
    return relu ? call.arrays[5] : call.arrays[4];
}

Reduction<3> plan_batch_gradients(const Call& call)
{
    const Array* a = call.arrays;
    return plan_reduction<3>(
        a[6], {axis_first(a[3], 1), axis_first(a[4], 1), axis_first(relu_output(call), 1)});
}

int64_t batch_norm_grad_workspace(const Call& call)
{
    return split_bytes(plan_batch_gradients(call)) + channel_bytes(call.arrays[4]);
}

void batch_norm_grad(const Call& call)
{
    const Array *a = call.arrays, &dx = a[0], &dy = a[3], &x = a[4], &y = relu_output(call);
    with_float(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        Reduction<3> r = plan_batch_gradients(call);
        Channels<T> channels = channels_of<T>(call, r, x);
        const T* masks = &y == &x ? nullptr : y.as<T>();
        Line<T> mean(a[6]), var(a[7]), weight(a[8]);
        double count = static_cast<double>(r.reduced.count);
        reduce(call, r,
               BatchGradients<T>{{},
                                 dy.as<T>(),
                                 x.as<T>(),
                                 masks,
                                 Line<T>(a[1]),
                                 Line<T>(a[2]),
                                 mean,
                                 var,
                                 weight,
                                 count,
                                 call.scalars[0],
                                 channels});
        Array numbers = channel_numbers(x);
        Strided<5> layout = strided<5>({&dx, &dy, &x, &y, &numbers});
        if (layout.count == 0) return;
        in_pieces(layout, [&](const Strided<5>& piece) {
            launch(call, batch_norm_dx<T>, grid_for(piece.count, reduce_threads * 4),
                   reduce_threads, 0, dx.as<T>(), dy.as<T>(), x.as<T>(), masks, mean, channels,
                   piece);
        });
    });
}

// ---- layer normalisation: a block takes one row at a time

template <class T>
__global__ void __launch_bounds__(reduce_threads)
    layer_norm_kernel(Matrix<T> y, Line<T> mean, Line<T> var, Matrix<T> x, Line<T> weight,
                      Line<T> bias, double eps)
{
    __shared__ double scratch[warp];
    double count = static_cast<double>(x.columns);
    for (int64_t row = blockIdx.x; row < x.rows; row += gridDim.x) {
        double sum = 0, squares = 0;
        for (int64_t c = threadIdx.x; c < x.columns; c += blockDim.x)
            sum += static_cast<double>(x.at(row, c));
        double average = fold_block(sum, Plus{}, 0.0, scratch) / count;
        for (int64_t c = threadIdx.x; c < x.columns; c += blockDim.x) {
            double d = static_cast<double>(x.at(row, c)) - average;
            squares += d * d;
        }
        double variance = fold_block(squares, Plus{}, 0.0, scratch) / count;
        T centre = static_cast<T>(average), inverse = static_cast<T>(1 / sqrt(variance + eps));
        for (int64_t c = threadIdx.x; c < x.columns; c += blockDim.x)
            y.at(row, c) = (x.at(row, c) - centre) * inverse * weight[c] + bias[c];
        if (threadIdx.x != 0) continue;
        mean[row] = centre;
        var[row] = static_cast<T>(variance);
    }
}

unsigned threads_for(int64_t columns)
{
    unsigned threads = warp;
    while (threads < reduce_threads && threads * 4 < columns) threads *= 2;
    return threads;
}

void layer_norm(const Call& call)
{
    const Array* a = call.arrays;
    with_float(a[3].dtype, [&](auto zero) {
        using T = decltype(zero);
        Matrix<T> x(a[3]);
        launch(call, layer_norm_kernel<T>, grid_for(x.rows, 1), threads_for(x.columns), 0,
               Matrix<T>(a[0]), Line<T>(a[1]), Line<T>(a[2]), x, Line<T>(a[4]), Line<T>(a[5]),
               call.scalars[0]);
    });
}

// dweight and dbias, from the inputs dy, x, mean and var, shown as (D, R).
template <class T>
struct LayerGradients : TwoSumsFold {
    const T *dy, *x, *mean, *var;
    Line<T> dweight, dbias;
    T eps;

    __device__ TwoSums add(TwoSums sum, const int64_t* place, const int64_t* at) const
    {
        T through = dy[place[1] + at[0]];
        T centred = x[place[2] + at[1]] - mean[place[3] + at[2]];
        T xhat = centred / root(var[place[4] + at[3]] + eps);
        return {sum.first + static_cast<double>(through),
                sum.second + static_cast<double>(through) * static_cast<double>(xhat)};
    }
    __device__ void store(int64_t c, const int64_t*, TwoSums sum) const
    {
        dbias[c] = static_cast<T>(sum.first);
        dweight[c] = static_cast<T>(sum.second);
    }
};

template <class T>
__global__ void __launch_bounds__(reduce_threads)
    layer_norm_dx(Matrix<T> dx, Matrix<T> dy, Matrix<T> x, Line<T> mean, Line<T> var,
                  Line<T> weight, double eps)
{
    __shared__ double scratch[warp];
    double count = static_cast<double>(x.columns);
    for (int64_t row = blockIdx.x; row < x.rows; row += gridDim.x) {
        T centre = mean[row];
        T inverse = static_cast<T>(1 / sqrt(static_cast<double>(var[row]) + eps));
        double sum = 0, along = 0;
        for (int64_t c = threadIdx.x; c < x.columns; c += blockDim.x) {
            T g = dy.at(row, c) * weight[c];
            sum += static_cast<double>(g);
            along +=
                static_cast<double>(g) * static_cast<double>((x.at(row, c) - centre) * inverse);
        }
        T average = static_cast<T>(fold_block(sum, Plus{}, 0.0, scratch) / count);
        T slope = static_cast<T>(fold_block(along, Plus{}, 0.0, scratch) / count);
        for (int64_t c = threadIdx.x; c < x.columns; c += blockDim.x) {
            T xhat = (x.at(row, c) - centre) * inverse;
            dx.at(row, c) = (dy.at(row, c) * weight[c] - average - xhat * slope) * inverse;
        }
    }
}

// A line (R,) shown as (D, R).
Array repeated(const Array& line, int64_t columns)
{
    Array shown = line;
    shown.rank = 2;
    shown.shape[0] = columns;
    shown.strides[0] = 0;
    shown.shape[1] = line.shape[0];
    shown.strides[1] = line.strides[0];
    return shown;
}

Reduction<4> plan_layer_gradients(const Call& call)
{
    const Array* a = call.arrays;
    int64_t columns = a[4].shape[1];
    return plan_reduction<4>(a[1], {axis_first(a[3], 1), axis_first(a[4], 1),
                                    repeated(a[5], columns), repeated(a[6], columns)});
}

int64_t layer_norm_grad_workspace(const Call& call)
{
    return split_bytes(plan_layer_gradients(call));
}

void layer_norm_grad(const Call& call)
{
    const Array* a = call.arrays;
    with_float(a[4].dtype, [&](auto zero) {
        using T = decltype(zero);
        reduce(call, plan_layer_gradients(call),
               LayerGradients<T>{{},
                                 a[3].as<T>(),
                                 a[4].as<T>(),
                                 a[5].as<T>(),
                                 a[6].as<T>(),
                                 Line<T>(a[1]),
                                 Line<T>(a[2]),
                                 static_cast<T>(call.scalars[0])});
        Matrix<T> x(a[4]);
        launch(call, layer_norm_dx<T>, grid_for(x.rows, 1), threads_for(x.columns), 0,
               Matrix<T>(a[0]), Matrix<T>(a[3]), x, Line<T>(a[5]), Line<T>(a[6]), Line<T>(a[7]),
               call.scalars[0]);
    });
}

}  // namespace

void add_normalize(Table& table)
{
    table[Kernel::batch_norm] = {batch_norm, batch_norm_workspace};
    table[Kernel::batch_norm_eval] = {batch_norm_eval, batch_norm_eval_workspace};
    table[Kernel::batch_norm_grad] = {batch_norm_grad, batch_norm_grad_workspace};
    table[Kernel::layer_norm].run = layer_norm;
    table[Kernel::layer_norm_grad] = {layer_norm_grad, layer_norm_grad_workspace};
}

}  // namespace needle::cuda
