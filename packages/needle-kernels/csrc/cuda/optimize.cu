// Optimizer steps over all parameters: a launch takes up to 64 of them, one row of blocks each.
#include "device.cuh"
#include "families.h"
#include "graph.h"

namespace needle::cuda {

namespace {

constexpr int optimize_threads = 256;
constexpr int per_thread = 4;
constexpr int most_groups = 64;  // what fits into the 4 KB that a kernel's parameters may take

// The N arrays of a parameter, flat; an absent one is null.
template <int N>
struct Group {
    void* data[N];
    int64_t count;
};

template <int N>
struct Groups {
    Group<N> at[most_groups];
};

// Results below the smallest normal number become zero, and such inputs count as zero, as on the
// CPU, where arithmetic on them is slow.
__device__ float flush(float x) { return fabsf(x) < 1.17549435e-38f ? 0.0f : x; }
__device__ double flush(double x) { return fabs(x) < 2.2250738585072014e-308 ? 0.0 : x; }

// `live` are the scalars on the device, of a graph in which they change; null: `step` has them.
template <int N, class T, class Step>
__global__ void __launch_bounds__(optimize_threads)
    update_kernel(Groups<N> groups, Step step, const double* live)
{
    if (live != nullptr) step.read(live);
    const Group<N>& group = groups.at[blockIdx.y];
    int64_t stride = int64_t(gridDim.x) * optimize_threads;
    for (int64_t i = int64_t(blockIdx.x) * optimize_threads + threadIdx.x; i < group.count;
         i += stride) {
        T value[N];
        for (int k = 0; k < N; ++k)
            value[k] = group.data[k] == nullptr ? T(0) : flush(static_cast<T*>(group.data[k])[i]);
        step(value);
        for (int k = 0; k < Step::written; ++k)
            if (group.data[k] != nullptr) static_cast<T*>(group.data[k])[i] = flush(value[k]);
    }
}

// Calls body(groups, their number, number of the first, elements of the largest) for up to 64
// groups of N arrays at a time; the arrays begin with call.arrays[skip].
template <int N, class Body>
void for_groups(const Call& call, int skip, const Body& body)
{
    int total = (call.count - skip) / N;
    for (int first = 0; first < total; first += most_groups) {
        Groups<N> groups{};
        int count = total - first < most_groups ? total - first : most_groups;
        int64_t largest = 0;
        for (int g = 0; g < count; ++g) {
            const Array* arrays = call.arrays + skip + (first + g) * N;
            groups.at[g].count = arrays[0].size();
            for (int k = 0; k < N; ++k) groups.at[g].data[k] = arrays[k].data;
            if (groups.at[g].count > largest) largest = groups.at[g].count;
        }
        body(groups, count, first, largest);
    }
}

template <int N, class T, class Step>
void update(const Call& call, const Step& step, const double* live = nullptr)
{
    for_groups<N>(call, 0, [&](const Groups<N>& groups, int count, int, int64_t largest) {
        dim3 grid(grid_for(largest, optimize_threads * per_thread), static_cast<unsigned>(count));
        launch(call, update_kernel<N, T, Step>, grid, optimize_threads, 0, groups, step, live);
    });
}

// w, u, g: u = momentum * u + (1 - momentum) * (g + weight_decay * w); w -= lr * u
template <class T>
struct SgdStep {
    static constexpr int written = 2;
    T lr, momentum, rest, decay;  // rest = 1 - momentum, rounded once
    bool keeps_u, nesterov;

    explicit SgdStep(const Call& call) : keeps_u(call.arrays[1].data != nullptr)
    {
        read(call.scalars);
    }
    __host__ __device__ void read(const double* scalars)
    {
        lr = static_cast<T>(scalars[0]);
        momentum = static_cast<T>(scalars[1]);
        rest = static_cast<T>(1 - scalars[1]);
        decay = static_cast<T>(scalars[2]);
        nesterov = scalars[3] != 0;
    }
    __device__ void operator()(T (&value)[3]) const
    {
        T &w = value[0], &u = value[1], decayed = value[2] + decay * w;
        if (!keeps_u) {
            w -= lr * decayed;
            return;
        }
        T fresh = rest * decayed;
        u = momentum * u + fresh;
        w -= lr * (nesterov ? momentum * u + fresh : u);
    }
};

__device__ float root(float x) { return sqrtf(x); }
__device__ double root(double x) { return sqrt(x); }

// w, m, v, g: m and v average g' = g + weight_decay * w and g'^2; w -= lr * m_hat / (sqrt(v_hat) +
// eps)
template <class T>
struct AdamStep {
    static constexpr int written = 3;
    T beta1, rest1, beta2, rest2, eps, decay;
    T step_size;  // lr / (1 - beta1^t): m_hat is never stored
    T v_scale;    // 1 / (1 - beta2^t)

    explicit AdamStep(const double* scalars) { read(scalars); }
    __host__ __device__ void read(const double* scalars)
    {
        beta1 = static_cast<T>(scalars[1]);
        rest1 = static_cast<T>(1 - scalars[1]);
        beta2 = static_cast<T>(scalars[2]);
        rest2 = static_cast<T>(1 - scalars[2]);
        eps = static_cast<T>(scalars[3]);
        decay = static_cast<T>(scalars[4]);
        step_size = static_cast<T>(scalars[0] / scalars[5]);
        v_scale = static_cast<T>(1 / scalars[6]);
    }
    __device__ void operator()(T (&value)[4]) const
    {
        T &w = value[0], &m = value[1], &v = value[2], grad = value[3] + decay * w;
        m = beta1 * m + rest1 * grad;
        v = beta2 * v + rest2 * (grad * grad);
        w -= step_size * m / (root(v_scale * v) + eps);
    }
};

// running, value: running = (1 - momentum) * running + momentum * value
template <class T>
struct AverageStep {
    static constexpr int written = 1;
    T momentum, rest;
    __device__ void read(const double*) {}  // nothing changes
    __device__ void operator()(T (&value)[2]) const
    {
        value[0] = rest * value[0] + momentum * value[1];
    }
};

template <class T>
struct ScaleStep {
    static constexpr int written = 1;
    T factor;
    __device__ void read(const double*) {}
    __device__ void operator()(T (&value)[1]) const { value[0] *= factor; }
};

void sgd(const Call& call)
{
    const double* live = live_scalars(call, false);
    with_float(call.arrays[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        update<3, T>(call, SgdStep<T>(call), live);
    });
}

void adam(const Call& call)
{
    const double* live = live_scalars(call, true);
    with_float(call.arrays[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        update<4, T>(call, AdamStep<T>(call.scalars), live);
    });
}

void moving_average(const Call& call)
{
    with_float(call.arrays[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        update<2, T>(call, AverageStep<T>{static_cast<T>(call.scalars[0]),
                                          static_cast<T>(1 - call.scalars[0])});
    });
}

void scale(const Call& call)
{
    if (call.count == 0) return;
    with_float(call.arrays[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        update<1, T>(call, ScaleStep<T>{static_cast<T>(call.scalars[0])});
    });
}

// ---- sum_squares: every array has as many partial sums as it has blocks; one block adds them all
// up in order.

int blocks_per_array() { return 2 * multiprocessors(); }

int64_t sum_squares_workspace(const Call& call)
{
    return int64_t(call.count - 1) * blocks_per_array() * static_cast<int64_t>(sizeof(double));
}

template <class T>
__global__ void __launch_bounds__(optimize_threads)
    sum_squares_kernel(Groups<1> arrays, double* partial)
{
    __shared__ double scratch[warp];
    const Group<1>& array = arrays.at[blockIdx.y];
    const T* a = static_cast<const T*>(array.data[0]);
    double sum = 0;
    int64_t stride = int64_t(gridDim.x) * optimize_threads;
    for (int64_t i = int64_t(blockIdx.x) * optimize_threads + threadIdx.x; i < array.count;
         i += stride) {
        double x = static_cast<double>(a[i]);  // the square of a float32 is exact in float64
        sum += x * x;
    }
    sum = fold_block(sum, Plus{}, 0.0, scratch);
    if (threadIdx.x == 0) partial[int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

__global__ void __launch_bounds__(optimize_threads)
    add_partial_sums(double* out, const double* partial, int64_t count)
{
    __shared__ double scratch[warp];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += optimize_threads) sum += partial[i];
    sum = fold_block(sum, Plus{}, 0.0, scratch);
    if (threadIdx.x == 0) *out = sum;
}

void sum_squares(const Call& call)
{
    double* partial = static_cast<double*>(call.workspace);
    unsigned blocks = static_cast<unsigned>(blocks_per_array());
    for_groups<1>(call, 1, [&](const Groups<1>& arrays, int count, int first, int64_t) {
        with_float(call.arrays[1].dtype, [&](auto zero) {
            launch(call, sum_squares_kernel<decltype(zero)>,
                   dim3(blocks, static_cast<unsigned>(count)), optimize_threads, 0, arrays,
                   partial + int64_t(first) * blocks);
        });
    });
    launch(call, add_partial_sums, 1, optimize_threads, 0, call.arrays[0].as<double>(), partial,
           int64_t(call.count - 1) * blocks);
}

// ---- the scalars of a recorded step

struct Scalars {
    double at[most_live_scalars];
};

__global__ void write_scalars_kernel(double* target, Scalars values, int count)
{
    if (static_cast<int>(threadIdx.x) < count) target[threadIdx.x] = values.at[threadIdx.x];
}

}  // namespace

void write_scalars(double* target, const double* values, int count)
{
    Scalars scalars{};
    if (count > most_live_scalars) throw Error("cuda: set_scalars: got more than 8 scalars");
    for (int i = 0; i < count; ++i) scalars.at[i] = values[i];
    Call call{nullptr, 0, nullptr, 0, nullptr, stream(), static_cast<int>(Kernel::adam)};
    launch(call, write_scalars_kernel, 1, most_live_scalars, 0, target, scalars, count);
}

void add_optimize(Table& table)
{
    table[Kernel::moving_average].run = moving_average;
    table[Kernel::sgd].run = sgd;
    table[Kernel::adam].run = adam;
    table[Kernel::scale].run = scale;
    table[Kernel::sum_squares] = {sum_squares, sum_squares_workspace};
}

}  // namespace needle::cuda
