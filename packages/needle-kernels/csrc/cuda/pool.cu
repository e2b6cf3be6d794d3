// Max and average pooling over images (N, H, W, C), with their gradients. A thread writes one
// element: forwards from the pixels under its window, backwards from the windows over its pixel. So
// nothing is cleared first and no two threads add to one place.
#include "device.cuh"
#include "families.h"

namespace needle::cuda {

namespace {

constexpr int pool_threads = 256;

template <class T>
struct IndexOf {
    using type = int32_t;
};
template <>
struct IndexOf<double> {
    using type = int64_t;
};
template <class T>
using Index = typename IndexOf<T>::type;

struct Range {
    int64_t begin, end;
};

__host__ __device__ inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The windows of a call; axis 0 is height, axis 1 is width. Window i of an axis starts at pixel
// i * stride - padding; what lies outside the image does not take part.
struct Windows {
    int64_t size[2], stride[2], padding[2];

    explicit Windows(const double* scalars)
    {
        for (int axis = 0; axis < 2; ++axis) {
            size[axis] = static_cast<int64_t>(scalars[axis]);
            stride[axis] = static_cast<int64_t>(scalars[2 + axis]);
            padding[axis] = static_cast<int64_t>(scalars[4 + axis]);
        }
    }
    __device__ int64_t start(int axis, int64_t i) const { return i * stride[axis] - padding[axis]; }

    // The pixels under window i, of n pixels along the axis.
    __device__ Range pixels(int axis, int64_t i, int64_t n) const
    {
        int64_t first = start(axis, i);
        return {first < 0 ? 0 : first, least(first + size[axis], n)};
    }

    // The windows over a pixel, of n windows along the axis.
    __device__ Range over(int axis, int64_t pixel, int64_t n) const
    {
        int64_t last = pixel + padding[axis], first = last - size[axis] + 1;
        int64_t begin = first < 0 ? 0 : (first + stride[axis] - 1) / stride[axis];
        return {begin, least(last / stride[axis] + 1, n)};
    }

    // The number of pixel (h, w) in window (i, j), row by row.
    __device__ int64_t place(int64_t i, int64_t j, int64_t h, int64_t w) const
    {
        return (h - start(0, i)) * size[1] + (w - start(1, j));
    }

    // By how much the sum of a window along one axis is divided: the pixels under it, and with
    // `padded` the padding under it too (but not what ceil mode lets stick out beyond the padding).
    __device__ int64_t divisor(int axis, int64_t i, int64_t n, bool padded) const
    {
        Range inside = pixels(axis, i, n);
        if (!padded) return inside.end - inside.begin;
        return least(start(axis, i) + size[axis], n + padding[axis]) - start(axis, i);
    }
};

// Calls body(n, h, w, c) for every element of the images, shared by the grid.
template <class T, class Body>
__device__ __forceinline__ void for_elements(const Tensor4<T>& images, const Body& body)
{
    const int64_t* shape = images.shape;
    int64_t count = shape[0] * shape[1] * shape[2] * shape[3];
    int64_t step = int64_t(gridDim.x) * pool_threads;
    for (int64_t i = int64_t(blockIdx.x) * pool_threads + threadIdx.x; i < count; i += step) {
        int64_t pixel = i / shape[3], row = pixel / shape[2];
        body(row / shape[1], row % shape[1], pixel % shape[2], i % shape[3]);
    }
}

template <class T>
__global__ void __launch_bounds__(pool_threads)
    max_pool_kernel(Tensor4<T> y, Tensor4<Index<T>> index, Tensor4<T> x, Windows windows)
{
    for_elements(y, [&](int64_t n, int64_t i, int64_t j, int64_t c) {
        Range rows = windows.pixels(0, i, x.shape[1]), columns = windows.pixels(1, j, x.shape[2]);
        T best = x.at(n, rows.begin, columns.begin, c);
        int64_t place = windows.place(i, j, rows.begin, columns.begin);
        for (int64_t h = rows.begin; h < rows.end; ++h)
            for (int64_t w = columns.begin; w < columns.end; ++w) {
                T value = x.at(n, h, w, c);
                if (!(value > best || value != value)) continue;  // the first of equal ones
                best = value;
                place = windows.place(i, j, h, w);
            }
        y.at(n, i, j, c) = best;
        index.at(n, i, j, c) = static_cast<Index<T>>(place);
    });
}

template <class T>
__global__ void __launch_bounds__(pool_threads)
    max_pool_grad_kernel(Tensor4<T> dx, Tensor4<T> dy, Tensor4<Index<T>> index, Windows windows)
{
    for_elements(dx, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
        Range rows = windows.over(0, h, dy.shape[1]), columns = windows.over(1, w, dy.shape[2]);
        T sum = 0;
        for (int64_t i = rows.begin; i < rows.end; ++i)
            for (int64_t j = columns.begin; j < columns.end; ++j)
                if (index.at(n, i, j, c) == windows.place(i, j, h, w)) sum += dy.at(n, i, j, c);
        dx.at(n, h, w, c) = sum;
    });
}

template <class T>
__global__ void __launch_bounds__(pool_threads)
    max_pool_pick_kernel(Tensor4<T> out, Tensor4<T> a, Tensor4<Index<T>> index, Windows windows)
{
    for_elements(out, [&](int64_t n, int64_t i, int64_t j, int64_t c) {
        int64_t place = index.at(n, i, j, c);
        int64_t h = windows.start(0, i) + place / windows.size[1];
        int64_t w = windows.start(1, j) + place % windows.size[1];
        bool inside = place >= 0 && h >= 0 && h < a.shape[1] && w >= 0 && w < a.shape[2];
        out.at(n, i, j, c) = inside ? a.at(n, h, w, c) : T(0);
    });
}

template <class T>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_kernel(Tensor4<T> y, Tensor4<T> x, Windows windows, bool padded)
{
    for_elements(y, [&](int64_t n, int64_t i, int64_t j, int64_t c) {
        Range rows = windows.pixels(0, i, x.shape[1]), columns = windows.pixels(1, j, x.shape[2]);
        T sum = 0, count = static_cast<T>(windows.divisor(0, i, x.shape[1], padded) *
                                          windows.divisor(1, j, x.shape[2], padded));
        for (int64_t h = rows.begin; h < rows.end; ++h)
            for (int64_t w = columns.begin; w < columns.end; ++w) sum += x.at(n, h, w, c);
        y.at(n, i, j, c) = sum / count;
    });
}

template <class T>
__global__ void __launch_bounds__(pool_threads)
    avg_pool_grad_kernel(Tensor4<T> dx, Tensor4<T> dy, Windows windows, bool padded)
{
    for_elements(dx, [&](int64_t n, int64_t h, int64_t w, int64_t c) {
        Range rows = windows.over(0, h, dy.shape[1]), columns = windows.over(1, w, dy.shape[2]);
        T sum = 0;
        for (int64_t i = rows.begin; i < rows.end; ++i)
            for (int64_t j = columns.begin; j < columns.end; ++j)
                sum +=
                    dy.at(n, i, j, c) / static_cast<T>(windows.divisor(0, i, dx.shape[1], padded) *
                                                       windows.divisor(1, j, dx.shape[2], padded));
        dx.at(n, h, w, c) = sum;
    });
}

unsigned grid_of(const Array& images) { return grid_for(images.size(), pool_threads); }

void max_pool(const Call& call)
{
    const Array* a = call.arrays;
    with_float(a[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        launch(call, max_pool_kernel<T>, grid_of(a[0]), pool_threads, 0, Tensor4<T>(a[0]),
               Tensor4<Index<T>>(a[1]), Tensor4<T>(a[2]), Windows(call.scalars));
    });
}

void max_pool_grad(const Call& call)
{
    const Array* a = call.arrays;
    with_float(a[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        launch(call, max_pool_grad_kernel<T>, grid_of(a[0]), pool_threads, 0, Tensor4<T>(a[0]),
               Tensor4<T>(a[1]), Tensor4<Index<T>>(a[2]), Windows(call.scalars));
    });
}

void max_pool_pick(const Call& call)
{
    const Array* a = call.arrays;
    with_float(a[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        launch(call, max_pool_pick_kernel<T>, grid_of(a[0]), pool_threads, 0, Tensor4<T>(a[0]),
               Tensor4<T>(a[1]), Tensor4<Index<T>>(a[2]), Windows(call.scalars));
    });
}

void avg_pool(const Call& call)
{
    const Array* a = call.arrays;
    with_float(a[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        launch(call, avg_pool_kernel<T>, grid_of(a[0]), pool_threads, 0, Tensor4<T>(a[0]),
               Tensor4<T>(a[1]), Windows(call.scalars), call.scalars[6] != 0);
    });
}

void avg_pool_grad(const Call& call)
{
    const Array* a = call.arrays;
    with_float(a[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        launch(call, avg_pool_grad_kernel<T>, grid_of(a[0]), pool_threads, 0, Tensor4<T>(a[0]),
               Tensor4<T>(a[1]), Windows(call.scalars), call.scalars[6] != 0);
    });
}

}  // namespace

void add_pool(Table& table)
{
    table[Kernel::max_pool].run = max_pool;
    table[Kernel::max_pool_grad].run = max_pool_grad;
    table[Kernel::max_pool_pick].run = max_pool_pick;
    table[Kernel::avg_pool].run = avg_pool;
    table[Kernel::avg_pool_grad].run = avg_pool_grad;
}

}  // namespace needle::cuda
