// Softmax and its relatives. The maximum m of a row is taken out first, so exp cannot overflow:
//     logsumexp(x) = m + log(s)    s = sum(exp(x - m))
#include "families.h"
#include "ids.cuh"
#include "reduce.cuh"

namespace needle::cuda {

namespace {

__device__ float exponential(float x) { return expf(x); }
__device__ double exponential(double x) { return exp(x); }

// What to take out for a maximum: an infinite one would make inf - inf.
template <class T>
__device__ T finite_or_zero(T highest)
{
    return highest - highest == T(0) ? highest : T(0);
}

// ---- logsumexp over any axes

// The exponentials of what was seen so far, in units of the largest's.
template <class T>
struct LogSumExp : OneInput<T> {
    using OneInput<T>::OneInput;
    struct Sum {
        T highest;
        double sum;
    };

    __device__ Sum nothing() const { return {static_cast<T>(-INFINITY), 0}; }

    __device__ double in_units_of(Sum a, T highest) const
    {
        return a.sum == 0 ? 0 : a.sum * exponential(finite_or_zero(a.highest) - highest);
    }

    __device__ Sum add(Sum a, const int64_t* place, const int64_t* at) const
    {
        T x = this->read(place, at);
        if (!(x > a.highest))  // NaN goes this way, too, and into the sum
            return {a.highest, a.sum + exponential(x - finite_or_zero(a.highest))};
        T unit = finite_or_zero(x);
        return {x, in_units_of(a, unit) + exponential(x - unit)};
    }

    __device__ Sum join(Sum a, Sum b) const
    {
        T highest = a.highest > b.highest ? a.highest : b.highest, unit = finite_or_zero(highest);
        return {highest, in_units_of(a, unit) + in_units_of(b, unit)};
    }

    __device__ void store(int64_t, const int64_t* place, Sum a) const
    {
        double unit = static_cast<double>(finite_or_zero(a.highest));
        this->out[place[0]] = static_cast<T>(unit + log(a.sum));
    }
};

void logsumexp(const Call& call)
{
    with_float(call.arrays[1].dtype,
               [&](auto zero) { reduce(call, plan_call(call), LogSumExp<decltype(zero)>(call)); });
}

// ---- rows: a block takes one at a time

constexpr int row_threads = 256;

// Enough threads for a row, and no more.
inline unsigned threads_for(int64_t columns)
{
    unsigned threads = warp;
    while (threads < row_threads && threads * 4 < columns) threads *= 2;
    return threads;
}

struct Larger {
    template <class T>
    __device__ T operator()(T a, T b) const
    {
        return b > a ? b : a;  // a where b is NaN; the exponentials carry the NaN on
    }
};

// The maximum of a row and the sum of its exponentials in units of that maximum's, in every thread.
template <class T>
struct RowSums {
    T highest;
    double sum;
};

template <class T>
__device__ RowSums<T> sum_row(const Matrix<T>& x, int64_t row)
{
    __shared__ T highest_scratch[warp];
    __shared__ double sum_scratch[warp];
    T lowest = static_cast<T>(-INFINITY), highest = lowest;
    for (int64_t c = threadIdx.x; c < x.columns; c += blockDim.x)
        highest = Larger{}(highest, x.at(row, c));
    highest = finite_or_zero(fold_block(highest, Larger{}, lowest, highest_scratch));
    double sum = 0;
    for (int64_t c = threadIdx.x; c < x.columns; c += blockDim.x)
        sum += exponential(x.at(row, c) - highest);
    return {highest, fold_block(sum, Plus{}, 0.0, sum_scratch)};
}

template <class T>
__global__ void __launch_bounds__(row_threads) softmax_kernel(Matrix<T> out, Matrix<T> x)
{
    for (int64_t row = blockIdx.x; row < x.rows; row += gridDim.x) {
        RowSums<T> found = sum_row(x, row);
        T inverse = static_cast<T>(1 / found.sum);
        for (int64_t c = threadIdx.x; c < x.columns; c += blockDim.x)
            out.at(row, c) = exponential(x.at(row, c) - found.highest) * inverse;
    }
}

template <class T>
__global__ void __launch_bounds__(row_threads) logsoftmax_kernel(Matrix<T> out, Matrix<T> x)
{
    for (int64_t row = blockIdx.x; row < x.rows; row += gridDim.x) {
        RowSums<T> found = sum_row(x, row);
        T log_sum = static_cast<T>(log(found.sum));
        for (int64_t c = threadIdx.x; c < x.columns; c += blockDim.x)
            out.at(row, c) = (x.at(row, c) - found.highest) - log_sum;
    }
}

template <class T>
void launch_rows(const Call& call, void (*kernel)(Matrix<T>, Matrix<T>))
{
    Matrix<T> out(call.arrays[0]), x(call.arrays[1]);
    launch(call, kernel, grid_for(x.rows, 1), threads_for(x.columns), 0, out, x);
}

void softmax(const Call& call)
{
    with_float(call.arrays[1].dtype,
               [&](auto zero) { launch_rows(call, softmax_kernel<decltype(zero)>); });
}

void logsoftmax(const Call& call)
{
    with_float(call.arrays[1].dtype,
               [&](auto zero) { launch_rows(call, logsoftmax_kernel<decltype(zero)>); });
}

// ---- cross entropy

// lse and, in float64, the loss of each row.
template <class T>
__global__ void __launch_bounds__(row_threads)
    row_losses(double* losses, T* lse, int64_t lse_stride, Matrix<T> x, Ids labels,
               double smoothing)
{
    __shared__ double scratch[warp];
    for (int64_t row = blockIdx.x; row < x.rows; row += gridDim.x) {
        RowSums<T> found = sum_row(x, row);
        double mean = 0;
        if (smoothing != 0) {  // 0 times an infinite sum would be NaN
            for (int64_t c = threadIdx.x; c < x.columns; c += blockDim.x)
                mean += static_cast<double>(x.at(row, c) - found.highest);
            mean = fold_block(mean, Plus{}, 0.0, scratch) / static_cast<double>(x.columns);
        }
        if (threadIdx.x != 0) continue;
        double log_sum = log(found.sum);
        int64_t label = labels[row];
        double picked = label < 0 ? 0 : static_cast<double>(x.at(row, label) - found.highest);
        if (smoothing != 0) picked = (1 - smoothing) * picked + smoothing * mean;
        lse[row * lse_stride] = static_cast<T>(static_cast<double>(found.highest) + log_sum);
        losses[row] = log_sum - picked;
    }
}

template <class T>
__global__ void __launch_bounds__(row_threads)
    mean_of_losses(T* loss, const double* losses, int64_t rows)
{
    __shared__ double scratch[warp];
    double sum = 0;
    for (int64_t row = threadIdx.x; row < rows; row += row_threads) sum += losses[row];
    sum = fold_block(sum, Plus{}, 0.0, scratch);
    if (threadIdx.x == 0) *loss = static_cast<T>(sum / static_cast<double>(rows));
}

int64_t cross_entropy_workspace(const Call& call)
{
    return call.arrays[2].shape[0] * static_cast<int64_t>(sizeof(double));
}

void softmax_cross_entropy(const Call& call)
{
    const Array *loss = &call.arrays[0], *lse = &call.arrays[1], *labels = &call.arrays[3];
    double* losses = static_cast<double*>(call.workspace);
    with_float(loss->dtype, [&](auto zero) {
        using T = decltype(zero);
        Matrix<T> x(call.arrays[2]);
        launch(call, row_losses<T>, grid_for(x.rows, 1), threads_for(x.columns), 0, losses,
               lse->as<T>(), lse->strides[0], x, Ids(call, *labels, x.columns), call.scalars[0]);
        launch(call, mean_of_losses<T>, 1, row_threads, 0, loss->as<T>(), losses, x.rows);
    });
}

template <class T>
__global__ void __launch_bounds__(row_threads)
    cross_entropy_grad_kernel(Matrix<T> out, const T* dloss, Matrix<T> x, const T* lse,
                              int64_t lse_stride, Ids labels, double smoothing)
{
    T spread = static_cast<T>(smoothing / static_cast<double>(x.columns));
    T hit = static_cast<T>(1 - smoothing), scale = *dloss / static_cast<T>(x.rows);
    for (int64_t row = blockIdx.x; row < x.rows; row += gridDim.x) {
        T shift = lse[row * lse_stride];
        int64_t label = labels[row];
        for (int64_t c = threadIdx.x; c < x.columns; c += blockDim.x) {
            T p = exponential(x.at(row, c) - shift) - spread;
            out.at(row, c) = (c == label ? p - hit : p) * scale;
        }
    }
}

void softmax_cross_entropy_grad(const Call& call)
{
    const Array *dloss = &call.arrays[1], *lse = &call.arrays[3], *labels = &call.arrays[4];
    with_float(dloss->dtype, [&](auto zero) {
        using T = decltype(zero);
        Matrix<T> out(call.arrays[0]), x(call.arrays[2]);
        launch(call, cross_entropy_grad_kernel<T>, grid_for(x.rows, 1), threads_for(x.columns), 0,
               out, dloss->as<T>(), x, lse->as<T>(), lse->strides[0], Ids(call, *labels, x.columns),
               call.scalars[0]);
    });
}

}  // namespace

void add_softmax(Table& table)
{
    table[Kernel::softmax].run = softmax;
    table[Kernel::logsoftmax].run = logsoftmax;
    table[Kernel::logsumexp] = {logsumexp, reduction_workspace};
    table[Kernel::softmax_cross_entropy] = {softmax_cross_entropy, cross_entropy_workspace};
    table[Kernel::softmax_cross_entropy_grad].run = softmax_cross_entropy_grad;
}

}  // namespace needle::cuda
