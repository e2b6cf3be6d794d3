// Folds over trailing axes: out (kept...), a (kept..., reduced...).
#pragma once

#include "device.cuh"

namespace needle::cuda {

constexpr int reduce_threads = 256;

// How a fold is shared out. `lanes` threads of a block, and `splits` blocks, take the elements of
// one output in turn; their sums are joined in a fixed order, so results never change from run to
// run.
struct Reduction {
    Strided<2> kept;     // of out and a
    Strided<1> reduced;  // of a
    int lanes;           // a power of two
    int splits;
    bool along;  // neighbouring threads: neighbouring elements of one output, else other outputs

    // Outputs per block.
    __host__ __device__ int columns() const { return reduce_threads / lanes; }
};

// The smallest step between neighbouring elements along the axes [first, last).
inline int64_t smallest_stride(const Array& a, int first, int last)
{
    int64_t smallest = INT64_MAX;
    for (int axis = first; axis < last; ++axis) {
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

inline Reduction plan_reduction(const Array& out, const Array& a)
{
    Array kept = axes_of(a, 0, out.rank), reduced = axes_of(a, out.rank, a.rank);
    Reduction r{strided<2>({&out, &kept}), strided<1>({&reduced}), 1, 1, false};
    int64_t outputs = r.kept.count, elements = r.reduced.count;
    r.along = smallest_stride(reduced, 0, reduced.rank) < smallest_stride(kept, 0, kept.rank);
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

// `fold` has a type Sum, nothing(), add(Sum, T), join(Sum, Sum) and finish(Sum).
template <class T, class Fold>
__global__ void __launch_bounds__(reduce_threads)
    reduce_kernel(T* out, typename Fold::Sum* partial, const T* a, Reduction r, Fold fold)
{
    using Sum = typename Fold::Sum;
    __shared__ Sum sums[reduce_threads];
    int thread = static_cast<int>(threadIdx.x), columns = r.columns();
    int lane = r.along ? thread % r.lanes : thread / columns;
    int column = r.along ? thread / r.lanes : thread % columns;
    bool wide = r.reduced.count > UINT32_MAX;
    for (int64_t first = int64_t(blockIdx.x) * columns; first < r.kept.count;
         first += int64_t(gridDim.x) * columns) {
        int64_t index = first + column, place[2] = {0, 0};
        Sum sum = fold.nothing();
        if (index < r.kept.count) {
            r.kept.places(index, place);
            int64_t step = int64_t(gridDim.y) * r.lanes;
            for (int64_t i = int64_t(blockIdx.y) * r.lanes + lane; i < r.reduced.count; i += step) {
                int64_t at;
                if (wide)
                    r.reduced.places(i, &at);
                else
                    r.reduced.places(static_cast<uint32_t>(i), &at);
                sum = fold.add(sum, a[place[1] + at]);
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
                out[place[0]] = fold.finish(*mine);
        }
        __syncthreads();
    }
}

// Joins what the splits of each output left in `partial`.
template <class T, class Fold>
__global__ void __launch_bounds__(reduce_threads)
    join_splits(T* out, const typename Fold::Sum* partial, Reduction r, Fold fold)
{
    int64_t step = int64_t(gridDim.x) * reduce_threads;
    for (int64_t i = int64_t(blockIdx.x) * reduce_threads + threadIdx.x; i < r.kept.count;
         i += step) {
        typename Fold::Sum sum = partial[i];
        for (int split = 1; split < r.splits; ++split)
            sum = fold.join(sum, partial[split * r.kept.count + i]);
        int64_t place[2];
        r.kept.places(i, place);
        out[place[0]] = fold.finish(sum);
    }
}

// The workspace is for the sums of all splits; their type takes at most 16 bytes.
inline int64_t reduction_workspace(const Call& call)
{
    Reduction r = plan_reduction(call.arrays[0], call.arrays[1]);
    return r.splits > 1 ? r.splits * r.kept.count * 16 : 0;
}

template <class T, class Fold>
void reduce(const Call& call, Fold fold)
{
    using Sum = typename Fold::Sum;
    static_assert(sizeof(Sum) <= 16);
    Reduction r = plan_reduction(call.arrays[0], call.arrays[1]);
    if (r.kept.count == 0) return;
    T* out = call.arrays[0].as<T>();
    Sum* partial = static_cast<Sum*>(call.workspace);
    dim3 grid(grid_for(r.kept.count, r.columns()), static_cast<unsigned>(r.splits));
    launch(call, reduce_kernel<T, Fold>, grid, reduce_threads, 0, out, partial,
           call.arrays[1].as<T>(), r, fold);
    if (r.splits > 1)
        launch(call, join_splits<T, Fold>, grid_for(r.kept.count, reduce_threads), reduce_threads,
               0, out, partial, r, fold);
}

}  // namespace needle::cuda
