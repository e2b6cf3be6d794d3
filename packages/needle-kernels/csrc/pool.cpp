// Max and average pooling over images, channels last, with their gradients. A vector holds
// neighbouring channels of one pixel. Every kernel goes through its output pixel by pixel and
// writes each once: forwards from the pixels under a window, backwards from the windows over a
// pixel. So nothing is cleared first and no two threads add to one place.
#include "caches.h"
#include "families.h"
#include "loops.h"
#include "parallel.h"
#include "strided.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t grain = 1 << 14;  // elements read for which a second thread pays

struct Range {
    int64_t begin, end;
};

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

    int64_t start(int axis, int64_t i) const { return i * stride[axis] - padding[axis]; }

    // The pixels under window i, of n pixels along the axis.
    Range pixels(int axis, int64_t i, int64_t n) const
    {
        return {max64(start(axis, i), 0), min64(start(axis, i) + size[axis], n)};
    }

    // The windows over a pixel, of n windows along the axis.
    Range over(int axis, int64_t pixel, int64_t n) const
    {
        int64_t last_start = pixel + padding[axis], first_start = last_start - size[axis] + 1;
        return {ceil_div(max64(first_start, 0), stride[axis]),
                min64(last_start / stride[axis] + 1, n)};
    }

    // The number of pixel (h, w) in window (i, j), row by row.
    int64_t place(int64_t i, int64_t j, int64_t h, int64_t w) const
    {
        return (h - start(0, i)) * size[1] + (w - start(1, j));
    }

    int64_t places() const { return size[0] * size[1]; }
};

// The pixels of (N, H, W, C). A kernel makes its own for each pixel that it writes: of what lies in
// a call the compiler must think that every store may change it, and reads it again.
template <class T>
struct Pixels {
    T* data;
    int64_t image, row, pixel, channel;  // strides

    explicit Pixels(const Array& images)
        : data(images.as<T>()),
          image(images.strides[0]),
          row(images.strides[1]),
          pixel(images.strides[2]),
          channel(images.strides[3])
    {
    }
    // The channels of one pixel.
    Line<T> at(int64_t n, int64_t h, int64_t w) const
    {
        return {data + n * image + h * row + w * pixel, channel};
    }
    // Asks for a pixel, from channel c on, that may also lie below the image.
    void fetch(int64_t n, int64_t h, int64_t w, int64_t c) const
    {
        __builtin_prefetch(data + n * image + h * row + w * pixel + c * channel, 0, 2);
    }
};

// How many rows below a window's pixels the next ones are fetched: those of the window below, for
// no processor foresees several rows at once; or none, where all of x may be in the cache.
int64_t rows_ahead(const Windows& windows, const Array& x)
{
    return x.size() * item_size(x.dtype) > caches().second_bytes ? windows.stride[0] : 0;
}

// Calls body(T{}, n, h, w) for every pixel of (N, H, W, C), shared by the threads. Each costs
// `places` reads of C elements.
template <class Body>
void for_each_pixel(const Array& images, int64_t places, const Body& body)
{
    int64_t height = images.shape[1], width = images.shape[2];
    int64_t row_reads = max64(width * images.shape[3] * places, 1);
    parallel_for(images.shape[0] * height, ceil_div(grain, row_reads),
                 [&](int64_t begin, int64_t end) {
                     with_float(images.dtype, [&](auto zero) {
                         for (int64_t row = begin; row < end; ++row)
                             for (int64_t w = 0; w < width; ++w)
                                 body(zero, row / height, row % height, w);
                     });
                 });
}

// y = the largest pixel under each window, index = its place there: the first where several are
// equal, a NaN before all numbers.
void max_pool(const Call& call)
{
    const Array &y = call.arrays[0], &index = call.arrays[1], &x = call.arrays[2];
    Windows windows(call.scalars);
    const int64_t below = rows_ahead(windows, x);
    for_each_pixel(y, windows.places(), [&](auto zero, int64_t n, int64_t i, int64_t j) {
        using T = decltype(zero);
        Range rows = windows.pixels(0, i, x.shape[1]), columns = windows.pixels(1, j, x.shape[2]);
        const Pixels<T> from(x), to(y);
        const Pixels<Bits<T>> places(index);
        const Windows own = windows;
        auto number = [&](int64_t h, int64_t w) {
            return broadcast(static_cast<Bits<T>>(own.place(i, j, h, w)));
        };
        for_vectors<T>(x.shape[3], [&](int64_t c, int64_t m) {
            Vec<T> best = from.at(n, rows.begin, columns.begin).load(c, m);
            Vec<Bits<T>> place = number(rows.begin, columns.begin);
            for (int64_t h = rows.begin; h < rows.end; ++h)
                for (int64_t w = columns.begin; w < columns.end; ++w) {
                    Vec<T> value = from.at(n, h, w).load(c, m);
                    from.fetch(n, h + below, w, c);
                    auto better = (value > best) | (value != value);
                    best = better ? value : best;
                    place = better ? number(h, w) : place;
                }
            to.at(n, i, j).store(c, m, best);
            places.at(n, i, j).store(c, m, place);
        });
    });
}

// dx = the sum of dy over the windows whose largest pixel this is.
void max_pool_grad(const Call& call)
{
    const Array &dx = call.arrays[0], &dy = call.arrays[1], &index = call.arrays[2];
    Windows windows(call.scalars);
    for_each_pixel(dx, 1, [&](auto zero, int64_t n, int64_t h, int64_t w) {
        using T = decltype(zero);
        Range rows = windows.over(0, h, dy.shape[1]), columns = windows.over(1, w, dy.shape[2]);
        const Pixels<T> from(dy), to(dx);
        const Pixels<Bits<T>> places(index);
        const Windows own = windows;
        for_vectors<T>(dx.shape[3], [&](int64_t c, int64_t m) {
            Vec<T> sum{};
            for (int64_t i = rows.begin; i < rows.end; ++i)
                for (int64_t j = columns.begin; j < columns.end; ++j) {
                    auto here = places.at(n, i, j).load(c, m) ==
                                static_cast<Bits<T>>(own.place(i, j, h, w));
                    sum += here ? from.at(n, i, j).load(c, m) : Vec<T>{};
                }
            to.at(n, h, w).store(c, m, sum);
        });
    });
}

// out = the pixel of a at the place that `index` names in each window; 0 where it is outside.
void max_pool_pick(const Call& call)
{
    const Array &out = call.arrays[0], &a = call.arrays[1], &index = call.arrays[2];
    Windows windows(call.scalars);
    for_each_pixel(out, windows.places(), [&](auto zero, int64_t n, int64_t i, int64_t j) {
        using T = decltype(zero);
        Range rows = windows.pixels(0, i, a.shape[1]), columns = windows.pixels(1, j, a.shape[2]);
        const Pixels<T> from(a), to(out);
        const Pixels<Bits<T>> places(index);
        const Windows own = windows;
        for_vectors<T>(a.shape[3], [&](int64_t c, int64_t m) {
            Vec<Bits<T>> place = places.at(n, i, j).load(c, m);
            Vec<T> found{};
            for (int64_t h = rows.begin; h < rows.end; ++h)
                for (int64_t w = columns.begin; w < columns.end; ++w) {
                    auto here = place == static_cast<Bits<T>>(own.place(i, j, h, w));
                    found = here ? from.at(n, h, w).load(c, m) : found;
                }
            to.at(n, i, j).store(c, m, found);
        });
    });
}

// By how much the sum of a window along one axis is divided: the pixels under it, and with
// `padded` the padding under it too (but not what ceil mode lets stick out beyond the padding).
int64_t divisor(const Windows& windows, int axis, int64_t i, int64_t n, bool padded)
{
    if (!padded) {
        Range pixels = windows.pixels(axis, i, n);
        return pixels.end - pixels.begin;
    }
    int64_t start = windows.start(axis, i);
    return min64(start + windows.size[axis], n + windows.padding[axis]) - start;
}

// y = the mean of the pixels under each window.
void avg_pool(const Call& call)
{
    const Array &y = call.arrays[0], &x = call.arrays[1];
    Windows windows(call.scalars);
    const bool padded = call.scalars[6] != 0;
    const int64_t below = rows_ahead(windows, x);
    const bool large = windows.places() >= 16;
    for_each_pixel(y, windows.places(), [&](auto zero, int64_t n, int64_t i, int64_t j) {
        using T = decltype(zero);
        Range rows = windows.pixels(0, i, x.shape[1]), columns = windows.pixels(1, j, x.shape[2]);
        T count = static_cast<T>(divisor(windows, 0, i, x.shape[1], padded) *
                                 divisor(windows, 1, j, x.shape[2], padded));
        const Pixels<T> from(x), to(y);
        // Large windows take some vectors at once: memory likes longer runs of each pixel.
        constexpr int at_once = 4;
        constexpr int64_t width = lanes<T>;
        int64_t c = 0;
        for (; large && c + at_once * width <= x.shape[3]; c += at_once * width) {
            Vec<T> sums[at_once] = {};
            for (int64_t h = rows.begin; h < rows.end; ++h)
                for (int64_t w = columns.begin; w < columns.end; ++w) {
                    const Line<T> pixel = from.at(n, h, w);
#pragma GCC unroll 4
                    for (int v = 0; v < at_once; ++v) {
                        sums[v] += pixel.load(c + v * width, width);
                        from.fetch(n, h + below, w, c + v * width);
                    }
                }
            for (int v = 0; v < at_once; ++v)
                to.at(n, i, j).store(c + v * width, width, sums[v] / count);
        }
        for (; c < x.shape[3]; c += width) {
            int64_t m = min64(width, x.shape[3] - c);
            Vec<T> sum{};
            for (int64_t h = rows.begin; h < rows.end; ++h)
                for (int64_t w = columns.begin; w < columns.end; ++w) {
                    sum += from.at(n, h, w).load(c, m);
                    from.fetch(n, h + below, w, c);
                }
            to.at(n, i, j).store(c, m, sum / count);
        }
    });
}

// dx = the sum over the windows over each pixel of dy divided as the window was.
void avg_pool_grad(const Call& call)
{
    const Array &dx = call.arrays[0], &dy = call.arrays[1];
    Windows windows(call.scalars);
    bool padded = call.scalars[6] != 0;
    for_each_pixel(dx, 1, [&](auto zero, int64_t n, int64_t h, int64_t w) {
        using T = decltype(zero);
        Range rows = windows.over(0, h, dy.shape[1]), columns = windows.over(1, w, dy.shape[2]);
        const Pixels<T> from(dy), to(dx);
        const Windows own = windows;
        for_vectors<T>(dx.shape[3], [&](int64_t c, int64_t m) {
            Vec<T> sum{};
            for (int64_t i = rows.begin; i < rows.end; ++i)
                for (int64_t j = columns.begin; j < columns.end; ++j) {
                    T count = static_cast<T>(divisor(own, 0, i, dx.shape[1], padded) *
                                             divisor(own, 1, j, dx.shape[2], padded));
                    sum += from.at(n, i, j).load(c, m) / count;
                }
            to.at(n, h, w).store(c, m, sum);
        });
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

}  // namespace needle::NEEDLE_TARGET
