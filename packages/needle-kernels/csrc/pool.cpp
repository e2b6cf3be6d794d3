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

    // The same, made from those over the pixel before: `range` begins as {0, 0}.
    void move_over(int axis, int64_t pixel, int64_t n, Range& range) const
    {
        while (range.end < n && start(axis, range.end) <= pixel) ++range.end;
        while (range.begin < range.end && start(axis, range.begin) + size[axis] <= pixel)
            ++range.begin;
    }

    // The number of pixel (h, w) in window (i, j), row by row.
    int64_t place(int64_t i, int64_t j, int64_t h, int64_t w) const
    {
        return (h - start(0, i)) * size[1] + (w - start(1, j));
    }

    int64_t places() const { return size[0] * size[1]; }
};

// Neighbouring channels, from channel c on: some whole vectors of a dense pixel, whose channels lie
// side by side, or m lanes of one vector of any pixel.
template <int count, bool dense>
struct Channels {
    static constexpr int vectors = count;
    int64_t c, m;

    template <class T>
    Vec<T> load(const Line<T>& pixel, int v) const
    {
        if constexpr (dense)
            return needle::NEEDLE_TARGET::load(pixel.data + c + v * lanes<T>);
        else
            return pixel.load(c, m);
    }
    template <class T>
    void store(const Line<T>& pixel, int v, Vec<T> x, bool stream = false) const
    {
        if constexpr (!dense)
            pixel.store(c, m, x);
        else if (stream)
            stream_store<T>(pixel.data + c + v * lanes<T>, x);
        else
            needle::NEEDLE_TARGET::store(pixel.data + c + v * lanes<T>, x);
    }
};

// Calls body with all channels of a pixel, four vectors at a time while there are so many: what is
// known of a window is then worked out once for them, and memory likes longer runs of each pixel.
template <class T, class Body>
void for_channels(int64_t channels, bool dense, const Body& body)
{
    constexpr int64_t width = lanes<T>;
    int64_t c = 0;
    for (; dense && c + 4 * width <= channels; c += 4 * width) body(Channels<4, true>{c, width});
    for (; dense && c + width <= channels; c += width) body(Channels<1, true>{c, width});
    for (; c < channels; c += width) body(Channels<1, false>{c, min64(width, channels - c)});
}

// The pixels of (N, H, W, C). A kernel makes its own for each row that it writes: of what lies in a
// call the compiler must think that every store may change it, and reads it again.
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
    // Asks for some channels of a pixel, which may also lie below the image.
    template <int count, bool dense>
    void fetch(int64_t n, int64_t h, int64_t w, const Channels<count, dense>& some) const
    {
        constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));  // of a cache
        const T* from = data + n * image + h * row + w * pixel + some.c * channel;
#pragma GCC unroll 4
        for (int64_t i = 0; i < count * lanes<T>; i += line)
            __builtin_prefetch(from + i * channel, 0, 2);
    }
    bool dense() const { return channel == 1; }
};

// How many rows below a window's pixels the next ones are fetched: those of the window below, for
// no processor foresees several rows at once; or none, where all of x may be in the cache.
int64_t rows_ahead(const Windows& windows, const Array& x)
{
    return x.size() * item_size(x.dtype) > caches().second_bytes ? windows.stride[0] : 0;
}

// Whether the pixels that a kernel writes go past the caches, which could not keep them.
template <class T>
bool past_caches(const Array& images)
{
    return images.strides[3] == 1 && images.shape[3] % lanes<T> == 0 && may_stream<T>(images);
}

// Calls body(T{}, n, h) for every row of (N, H, W, C), shared by the threads. Each pixel costs
// `places` reads of C elements.
template <class Body>
void for_each_row(const Array& images, int64_t places, const Body& body)
{
    int64_t height = images.shape[1];
    int64_t row_reads = max64(images.shape[2] * images.shape[3] * places, 1);
    parallel_for(images.shape[0] * height, ceil_div(grain, row_reads),
                 [&](int64_t begin, int64_t end) {
                     with_float(images.dtype, [&](auto zero) {
                         for (int64_t row = begin; row < end; ++row)
                             body(zero, row / height, row % height);
                     });
                     end_stream();
                 });
}

// y = the largest pixel under each window, index = its place there: the first where several are
// equal, a NaN before all numbers.
void max_pool(const Call& call)
{
    const Array &y = call.arrays[0], &index = call.arrays[1], &x = call.arrays[2];
    const Windows windows(call.scalars);
    const int64_t below = rows_ahead(windows, x);
    for_each_row(y, windows.places(), [&](auto zero, int64_t n, int64_t i) {
        using T = decltype(zero);
        const Windows own = windows;
        const Pixels<T> from(x), to(y);
        const Pixels<Bits<T>> places(index);
        const bool dense = from.dense() && to.dense() && places.dense();
        const Range rows = own.pixels(0, i, x.shape[1]);
        for (int64_t j = 0; j < y.shape[2]; ++j) {
            const Range columns = own.pixels(1, j, x.shape[2]);
            for_channels<T>(x.shape[3], dense, [&](auto some) {
                constexpr int vectors = decltype(some)::vectors;
                Vec<T> best[vectors];
                Vec<Bits<T>> place[vectors];
                const Line<T> first = from.at(n, rows.begin, columns.begin);
                const Bits<T> begin = own.place(i, j, rows.begin, columns.begin);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) {
                    best[v] = some.load(first, v);
                    place[v] = broadcast(begin);
                }
                for (int64_t h = rows.begin; h < rows.end; ++h)
                    for (int64_t w = columns.begin; w < columns.end; ++w) {
                        const Line<T> pixel = from.at(n, h, w);
                        const Vec<Bits<T>> here = broadcast(Bits<T>(own.place(i, j, h, w)));
#pragma GCC unroll 4
                        for (int v = 0; v < vectors; ++v) {
                            Vec<T> value = some.load(pixel, v);
                            auto better = (value > best[v]) | (value != value);
                            best[v] = better ? value : best[v];
                            place[v] = better ? here : place[v];
                        }
                        from.fetch(n, h + below, w, some);
                    }
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) {
                    some.store(to.at(n, i, j), v, best[v]);
                    some.store(places.at(n, i, j), v, place[v]);
                }
            });
        }
    });
}

// dx = the sum of dy over the windows whose largest pixel this is.
void max_pool_grad(const Call& call)
{
    const Array &dx = call.arrays[0], &dy = call.arrays[1], &index = call.arrays[2];
    const Windows windows(call.scalars);
    for_each_row(dx, 1, [&](auto zero, int64_t n, int64_t h) {
        using T = decltype(zero);
        const Windows own = windows;
        const Pixels<T> from(dy), to(dx);
        const Pixels<Bits<T>> places(index);
        const bool dense = from.dense() && to.dense() && places.dense();
        const bool stream = past_caches<T>(dx);
        const Range rows = own.over(0, h, dy.shape[1]);
        Range columns{0, 0};
        for (int64_t w = 0; w < dx.shape[2]; ++w) {
            own.move_over(1, w, dy.shape[2], columns);
            for_channels<T>(dx.shape[3], dense, [&](auto some) {
                constexpr int vectors = decltype(some)::vectors;
                Vec<T> sums[vectors] = {};
                for (int64_t i = rows.begin; i < rows.end; ++i)
                    for (int64_t j = columns.begin; j < columns.end; ++j) {
                        const Line<T> pixel = from.at(n, i, j);
                        const Line<Bits<T>> largest = places.at(n, i, j);
                        const Bits<T> here = own.place(i, j, h, w);
#pragma GCC unroll 4
                        for (int v = 0; v < vectors; ++v) {
                            auto is_here = some.load(largest, v) == here;
                            sums[v] += is_here ? some.load(pixel, v) : Vec<T>{};
                        }
                    }
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) some.store(to.at(n, h, w), v, sums[v], stream);
            });
        }
    });
}

// out = the pixel of a at the place that `index` names in each window; 0 where it is outside.
void max_pool_pick(const Call& call)
{
    const Array &out = call.arrays[0], &a = call.arrays[1], &index = call.arrays[2];
    const Windows windows(call.scalars);
    for_each_row(out, windows.places(), [&](auto zero, int64_t n, int64_t i) {
        using T = decltype(zero);
        const Windows own = windows;
        const Pixels<T> from(a), to(out);
        const Pixels<Bits<T>> places(index);
        const bool dense = from.dense() && to.dense() && places.dense();
        const bool stream = past_caches<T>(out);
        const Range rows = own.pixels(0, i, a.shape[1]);
        for (int64_t j = 0; j < out.shape[2]; ++j) {
            const Range columns = own.pixels(1, j, a.shape[2]);
            for_channels<T>(a.shape[3], dense, [&](auto some) {
                constexpr int vectors = decltype(some)::vectors;
                Vec<T> found[vectors] = {};
                const Line<Bits<T>> place = places.at(n, i, j);
                for (int64_t h = rows.begin; h < rows.end; ++h)
                    for (int64_t w = columns.begin; w < columns.end; ++w) {
                        const Line<T> pixel = from.at(n, h, w);
                        const Bits<T> here = own.place(i, j, h, w);
#pragma GCC unroll 4
                        for (int v = 0; v < vectors; ++v) {
                            auto is_here = some.load(place, v) == here;
                            found[v] = is_here ? some.load(pixel, v) : found[v];
                        }
                    }
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) some.store(to.at(n, i, j), v, found[v], stream);
            });
        }
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
    const Windows windows(call.scalars);
    const bool padded = call.scalars[6] != 0;
    const int64_t below = rows_ahead(windows, x);
    for_each_row(y, windows.places(), [&](auto zero, int64_t n, int64_t i) {
        using T = decltype(zero);
        const Windows own = windows;
        const Pixels<T> from(x), to(y);
        const bool dense = from.dense() && to.dense();
        const bool stream = past_caches<T>(y);
        const Range rows = own.pixels(0, i, x.shape[1]);
        const int64_t height = divisor(own, 0, i, x.shape[1], padded);
        for (int64_t j = 0; j < y.shape[2]; ++j) {
            const Range columns = own.pixels(1, j, x.shape[2]);
            const T count = static_cast<T>(height * divisor(own, 1, j, x.shape[2], padded));
            for_channels<T>(x.shape[3], dense, [&](auto some) {
                constexpr int vectors = decltype(some)::vectors;
                Vec<T> sums[vectors] = {};
                for (int64_t h = rows.begin; h < rows.end; ++h)
                    for (int64_t w = columns.begin; w < columns.end; ++w) {
                        const Line<T> pixel = from.at(n, h, w);
#pragma GCC unroll 4
                        for (int v = 0; v < vectors; ++v) sums[v] += some.load(pixel, v);
                        from.fetch(n, h + below, w, some);
                    }
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v)
                    some.store(to.at(n, i, j), v, sums[v] / count, stream);
            });
        }
    });
}

// dx = the sum over the windows over each pixel of dy divided as the window was.
void avg_pool_grad(const Call& call)
{
    const Array &dx = call.arrays[0], &dy = call.arrays[1];
    const Windows windows(call.scalars);
    const bool padded = call.scalars[6] != 0;
    for_each_row(dx, 1, [&](auto zero, int64_t n, int64_t h) {
        using T = decltype(zero);
        const Windows own = windows;
        const Pixels<T> from(dy), to(dx);
        const bool dense = from.dense() && to.dense();
        const bool stream = past_caches<T>(dx);
        const int64_t height = dx.shape[1], width = dx.shape[2];
        const Range rows = own.over(0, h, dy.shape[1]);
        Range columns{0, 0};
        for (int64_t w = 0; w < width; ++w) {
            own.move_over(1, w, dy.shape[2], columns);
            for_channels<T>(dx.shape[3], dense, [&](auto some) {
                constexpr int vectors = decltype(some)::vectors;
                Vec<T> sums[vectors] = {};
                for (int64_t i = rows.begin; i < rows.end; ++i)
                    for (int64_t j = columns.begin; j < columns.end; ++j) {
                        const Line<T> pixel = from.at(n, i, j);
                        const T count = static_cast<T>(divisor(own, 0, i, height, padded) *
                                                       divisor(own, 1, j, width, padded));
#pragma GCC unroll 4
                        for (int v = 0; v < vectors; ++v) sums[v] += some.load(pixel, v) / count;
                    }
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) some.store(to.at(n, h, w), v, sums[v], stream);
            });
        }
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
