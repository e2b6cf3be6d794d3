// Folds over trailing axes: out (kept...), a (kept..., reduced...).
#pragma once

#include "device.cuh"

namespace needle::cuda {

constexpr int reduce_threads = 256;

// How a fold is shared out. `lanes` threads of a block, and `splits` blocks, take the elements of
// one output in turn; their sums are joined in a fixed order, so results never change from run to
// run.
template <int Inputs>
struct Reduction {
    Strided<Inputs + 1> kept;  // of out and the inputs
    Strided<Inputs> reduced;   // of the inputs
    int lanes;                 // a power of two
    int splits;
    bool along;  // neighbouring threads: neighbouring elements of one output, else other outputs

    // Outputs per block.
    __host__ __device__ int columns() const { return reduce_threads / lanes; }
};

// The smallest step between neighbouring elements.
inline int64_t smallest_stride(const Array& a)
{
    int64_t smallest = INT64_MAX;
    for (int axis = 0; axis < a.rank; ++axis) {
        int64_t stride = a.strides[axis] < 0 ? -a.strides[axis] : a.strides[axis];
        if (a.shape[axis] > 1 && stride < smallest) smallest = stride;
    }
    return smallest;
}

inline Array axes_of(const Array& a, int first, int last)
{
    Array part = a;
    part.rank = last - first;
    for (int axis = first; axis < last; ++axis) {
        part.shape[axis - first] = a.shape[axis];
        part.strides[axis - first] = a.strides[axis];
    }
    return part;
}

// The array with axis `axis` first.
inline Array axis_first(const Array& a, int axis)
{
    Array moved = a;
    for (int i = 0; i < axis; ++i) {
        moved.shape[i + 1] = a.shape[i];
        moved.strides[i + 1] = a.strides[i];
    }
    moved.shape[0] = a.shape[axis];
    moved.strides[0] = a.strides[axis];
    return moved;
}

// Layout and shares for out (kept...) and inputs (kept..., reduced...).
template <int Inputs>
Reduction<Inputs> plan_reduction(const Array& out, const Array (&inputs)[Inputs])
{
    Array kept[Inputs] = {}, reduced[Inputs] = {};
    const Array *outer[Inputs + 1], *inner[Inputs];
    outer[0] = &out;
    for (int k = 0; k < Inputs; ++k) {
        kept[k] = axes_of(inputs[k], 0, out.rank);
        reduced[k] = axes_of(inputs[k], out.rank, inputs[k].rank);
        outer[k + 1] = &kept[k];
        inner[k] = &reduced[k];
    }
    Reduction<Inputs> r{strided<Inputs + 1>(outer), strided<Inputs>(inner), 1, 1, false};
    int64_t outputs = r.kept.count, elements = r.reduced.count;
    r.along = smallest_stride(reduced[0]) < smallest_stride(kept[0]);
    int most_lanes = r.along ? reduce_threads : 8;
    while (r.lanes < most_lanes && r.lanes < elements) r.lanes *= 2;
    int64_t blocks = (outputs + r.columns() - 1) / r.columns();
    int64_t wanted = 4 * multiprocessors();
    if (blocks > 0 && blocks < wanted) {
        int64_t worthwhile = elements / (int64_t(r.lanes) * 8);  // of 8 elements per thread
        int64_t splits = wanted / blocks < worthwhile ? wanted / blocks : worthwhile;
        if (splits > 1) r.splits = static_cast<int>(splits);
    }
    return r;
}

// A Fold has a type Sum of at most 16 bytes, and
//     nothing()                  the Sum of no elements
//     add(sum, place, at)        with the element at place[k + 1] + at[k] of input k
//     join(sum, sum)
//     store(index, place, sum)   writes output number `index`, at place[0]
template <int Inputs, class Fold>
__global__ void __launch_bounds__(reduce_threads)
    reduce_kernel(Reduction<Inputs> r, Fold fold, typename Fold::Sum* partial)
{
    using Sum = typename Fold::Sum;
    __shared__ Sum sums[reduce_threads];
    int thread = static_cast<int>(threadIdx.x), columns = r.columns();
    int lane = r.along ? thread % r.lanes : thread / columns;
    int column = r.along ? thread / r.lanes : thread % columns;
    bool wide = r.reduced.count > UINT32_MAX;
    for (int64_t first = int64_t(blockIdx.x) * columns; first < r.kept.count;
         first += int64_t(gridDim.x) * columns) {
        int64_t index = first + column, place[Inputs + 1] = {};
        Sum sum = fold.nothing();
        if (index < r.kept.count) {
            r.kept.places(index, place);
            int64_t step = int64_t(gridDim.y) * r.lanes;
            for (int64_t i = int64_t(blockIdx.y) * r.lanes + lane; i < r.reduced.count; i += step) {
                int64_t at[Inputs];
                if (wide)
                    r.reduced.places(i, at);
                else
                    r.reduced.places(static_cast<uint32_t>(i), at);
                sum = fold.add(sum, place, at);
            }
        }
        Sum* mine = sums + lane * columns + column;
        *mine = sum;
        for (int half = r.lanes / 2; half > 0; half /= 2) {
            __syncthreads();
            if (lane < half) *mine = fold.join(*mine, mine[half * columns]);
        }
        if (lane == 0 && index < r.kept.count) {
            if (r.splits > 1)
                partial[blockIdx.y * r.kept.count + index] = *mine;
            else
                fold.store(index, place, *mine);
        }
        __syncthreads();
    }
}

// Joins what the splits of each output left in `partial`.
template <int Inputs, class Fold>
__global__ void __launch_bounds__(reduce_threads)
    join_splits(Reduction<Inputs> r, Fold fold, const typename Fold::Sum* partial)
{
    int64_t step = int64_t(gridDim.x) * reduce_threads;
    for (int64_t i = int64_t(blockIdx.x) * reduce_threads + threadIdx.x; i < r.kept.count;
         i += step) {
        typename Fold::Sum sum = partial[i];
        for (int split = 1; split < r.splits; ++split)
            sum = fold.join(sum, partial[split * r.kept.count + i]);
        int64_t place[Inputs + 1];
        r.kept.places(i, place);
        fold.store(i, place, sum);
    }
}

// Bytes for the sums of all splits.
template <int Inputs>
int64_t split_bytes(const Reduction<Inputs>& r)
{
    return r.splits > 1 ? r.splits * r.kept.count * 16 : 0;
}

template <int Inputs, class Fold>
void reduce(const Call& call, const Reduction<Inputs>& r, const Fold& fold)
{
    using Sum = typename Fold::Sum;
    static_assert(sizeof(Sum) <= 16);
    if (r.kept.count == 0) return;
    Sum* partial = static_cast<Sum*>(call.workspace);
    dim3 grid(grid_for(r.kept.count, r.columns()), static_cast<unsigned>(r.splits));
    launch(call, reduce_kernel<Inputs, Fold>, grid, reduce_threads, 0, r, fold, partial);
    if (r.splits > 1)
        launch(call, join_splits<Inputs, Fold>, grid_for(r.kept.count, reduce_threads),
               reduce_threads, 0, r, fold, partial);
}

// For a call of (out, a).

inline Reduction<1> plan_call(const Call& call)
{
    return plan_reduction<1>(call.arrays[0], {call.arrays[1]});
}

inline int64_t reduction_workspace(const Call& call) { return split_bytes(plan_call(call)); }

// What the folds of one input have in common.
template <class T>
struct OneInput {
    T* out;
    const T* a;

    explicit OneInput(const Call& call) : out(call.arrays[0].as<T>()), a(call.arrays[1].as<T>()) {}
    __device__ T read(const int64_t* place, const int64_t* at) const { return a[place[1] + at[0]]; }
};

// float32 sums in float64: the additions hide behind the loads, and long sums keep their digits.
template <class T, class SumType>
struct SumOf : OneInput<T> {
    using OneInput<T>::OneInput;
    using Sum = SumType;

    __device__ Sum nothing() const { return 0; }
    __device__ Sum add(Sum sum, const int64_t* place, const int64_t* at) const
    {
        return sum + static_cast<Sum>(this->read(place, at));
    }
    __device__ Sum join(Sum a, Sum b) const { return a + b; }
    __device__ void store(int64_t, const int64_t* place, Sum sum) const
    {
        this->out[place[0]] = static_cast<T>(sum);
    }
};

// ---- the gradient of a bias, for calls of (dw, db, x, dy): dy's sum over all axes but the last

// That sum as a reduction.
struct BiasGrad {
    Array arrays[2];

    explicit BiasGrad(const Call& call)
        : arrays{call.arrays[1], axis_first(call.arrays[3], call.arrays[3].rank - 1)}
    {
    }
    Call of(const Call& call, void* workspace) const
    {
        return {arrays, 2, nullptr, 0, workspace, call.stream, call.kernel};
    }
};

inline int64_t bias_grad_workspace(const Call& call)
{
    return reduction_workspace(BiasGrad(call).of(call, nullptr));
}

template <class T>
void bias_grad(const Call& call, void* workspace)
{
    BiasGrad arrays(call);
    Call sum = arrays.of(call, workspace);
    reduce(sum, plan_call(sum), SumOf<T, double>(sum));
}

}  // namespace needle::cuda
