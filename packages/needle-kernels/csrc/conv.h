// What the convolutions share: images, the axes that output positions and taps lie on, and
// rectangles of positions that meet the same taps.
#pragma once

#include "matmul.h"
#include "strided.h"
#include "tile.h"
#include "transpose.h"

namespace needle::NEEDLE_TARGET {

// So many rows stay in the first-level cache while all panels use them.
constexpr int64_t block_rows = 4 * tile_rows;

// Of a convolution with this result and these weights, padding included.
inline int64_t multiply_adds(const Array& out, const Array& w)
{
    return out.size() * w.shape[0] * w.shape[1] * w.shape[2];
}

// ---- images

// An (N, H, W, C) view whose channels are contiguous.
template <class T>
struct Image {
    T* data;
    int64_t n, h, w, c;
    int64_t image_stride, row_stride, pixel_stride;

    T* at(int64_t image, int64_t y, int64_t x) const
    {
        return data + image * image_stride + y * row_stride + x * pixel_stride;
    }
};

template <class T>
Image<T> dense_image(T* data, int64_t n, int64_t h, int64_t w, int64_t c)
{
    return {data, n, h, w, c, h * w * c, w * c, c};
}

// Whether channels, and the pixels of a row, are contiguous: a row of taps is then one run.
inline bool has_dense_rows(const Array& a)
{
    bool channels = a.strides[3] == 1 || a.shape[3] == 1;
    bool pixels = a.strides[2] == a.shape[3] || a.shape[2] == 1;
    return channels && pixels;
}

// n pixels of c channels, side by side in `out`.
template <class T>
void copy_pixels(const T* from, int64_t pixel_stride, int64_t channel_stride, int64_t n, int64_t c,
                 T* out)
{
    if (channel_stride == 1 && pixel_stride == c) {
        std::memcpy(out, from, static_cast<size_t>(n * c) * sizeof(T));
        return;
    }
    if (pixel_stride == 1 && c == 2) return interleave<2>(from, channel_stride, n, out);
    if (pixel_stride == 1 && c == 3) return interleave<3>(from, channel_stride, n, out);
    if (pixel_stride == 1 && c == 4) return interleave<4>(from, channel_stride, n, out);
    pack_panel(from, channel_stride, pixel_stride, c, n, out, c);
}

// Some rows of some images.
struct Region {
    int64_t n0, n1, y0, y1;
};

// Images that are copied region by region, of at most `rows` rows. Each row has `border` pixels on
// both sides that are not written.
template <class T>
struct Copy {
    const Array* source;
    int64_t rows, border;

    int64_t row_elements() const { return (source->shape[2] + 2 * border) * source->shape[3]; }
    // Images do not lie a multiple of 4 KB apart, where they would share a few lines of the cache.
    int64_t image_elements() const { return round_up(rows * row_elements(), 16) + 16; }

    // Places have the numbers that they have in the source.
    Image<T> take(const Region& r, T* out) const
    {
        const int64_t *n = source->shape, *s = source->strides;
        Image<T> image{out, n[0], n[1], n[2] + 2 * border, n[3], image_elements(), row_elements(),
                       n[3]};
        image.data -= r.n0 * image.image_stride + r.y0 * image.row_stride;
        bool one_run = border == 0 && s[1] == n[2] * s[2];
        int64_t step = one_run ? r.y1 - r.y0 : 1;
        for (int64_t i = r.n0; i < r.n1; ++i)
            for (int64_t y = r.y0; y < r.y1; y += step)
                copy_pixels(source->as<T>() + i * s[0] + y * s[1], s[2], s[3], step * n[2], n[3],
                            image.at(i, y, border));
        return image;
    }
};

template <class T>
Image<T> in_place(const Array& a)
{
    const int64_t *n = a.shape, *s = a.strides;
    return {a.as<T>(), n[0], n[1], n[2], n[3], s[0], s[1], n[3]};
}

template <class T>
int64_t dense_elements(const Array& a)
{
    return has_dense_rows(a) ? 0 : a.shape[0] * Copy<T>{&a, a.shape[1], 0}.image_elements();
}

// The operand in place, or copied to `buffer` when its layout does not suit; moves `buffer` on.
template <class T>
Image<T> dense_rows(const Array& a, T*& buffer)
{
    if (has_dense_rows(a)) return in_place<T>(a);
    Copy<T> copy{&a, a.shape[1], 0};
    int64_t stride = copy.image_elements();
    parallel_for(a.shape[0], ceil_div(32768, stride), [&](int64_t begin, int64_t end) {
        copy.take({begin, end, 0, a.shape[1]}, buffer + begin * stride);
    });
    Image<T> image = copy.take({0, 0, 0, a.shape[1]}, buffer);
    buffer += a.shape[0] * stride;
    return image;
}

// ---- axes, taps, and positions that meet the same taps

// One spatial axis: output position o meets, by tap k, the pixel o * stride + k - padding.
struct Axis {
    int64_t in, out, kernel, stride, padding;

    // The taps of output position o that meet a pixel: [first_tap, end_tap).
    int64_t first_tap(int64_t o) const { return max64(0, padding - o * stride); }
    int64_t end_tap(int64_t o) const { return min64(kernel, in + padding - o * stride); }
    // The output positions whose tap k meets a pixel: [first_output, end_output).
    int64_t first_output(int64_t k) const { return max64(0, ceil_div(padding - k, stride)); }
    int64_t end_output(int64_t k) const
    {
        return min64(out, max64(0, ceil_div(in + padding - k, stride)));
    }
    // The taps that some output position meets: [low_tap, high_tap).
    int64_t low_tap() const { return max64(0, padding - (out - 1) * stride); }
    int64_t high_tap() const { return min64(kernel, in + padding); }
    bool meets(int64_t k) const { return low_tap() <= k && k < high_tap(); }
};

inline Axis axis_of(const Call& call, const Array& in, const Array& out, const Array& w, int axis)
{
    return {in.shape[axis], out.shape[axis], w.shape[0], static_cast<int64_t>(call.scalars[0]),
            static_cast<int64_t>(call.scalars[1])};
}

// `count` positions of the result, `step` apart, which meet the same taps [tap, tap + taps); the
// first position's first tap meets `source`, the next position's source + move.
struct Span {
    int64_t first, count, step;
    int64_t source, move;
    int64_t tap, taps;
};

// Calls body(span) for the output positions [begin, end).
template <class Body>
void for_output_spans(const Axis& axis, int64_t begin, int64_t end, const Body& body)
{
    for (int64_t o = begin; o < end;) {
        int64_t tap = axis.first_tap(o), tap_end = axis.end_tap(o), next = o + 1;
        while (next < end && axis.first_tap(next) == tap && axis.end_tap(next) == tap_end) ++next;
        body(Span{o, next - o, 1, o * axis.stride + tap - axis.padding, axis.stride, tap,
                  max64(0, tap_end - tap)});
        o = next;
    }
}

// The input gradient's order of taps. An input position takes only the taps whose offset is
// divisible by the stride, and the outputs that they meet run backwards; so the taps are ordered
// by remainder, falling within each, and those of one position meet a run of outputs.
struct TapOrder {
    int64_t kernel, stride;

    int64_t size(int64_t remainder) const
    {
        return remainder < kernel ? ceil_div(kernel - remainder, stride) : 0;
    }
    // Where tap `remainder + j * stride` stands.
    int64_t place(int64_t remainder, int64_t j) const
    {
        int64_t first = 0;
        for (int64_t r = 0; r < remainder; ++r) first += size(r);
        return first + size(remainder) - 1 - j;
    }
};

// Calls body(span) for the input positions [begin, end); `tap` counts in TapOrder.
template <class Body>
void for_input_spans(const Axis& axis, int64_t begin, int64_t end, const Body& body)
{
    TapOrder order{axis.kernel, axis.stride};
    for (int64_t start = begin; start < min64(end, begin + axis.stride); ++start) {
        int64_t remainder = (start + axis.padding) % axis.stride;
        // Tap j of this remainder meets the output top - j.
        auto top = [&](int64_t i) { return (i + axis.padding) / axis.stride; };
        auto first = [&](int64_t i) { return max64(0, top(i) - axis.out + 1); };
        auto last = [&](int64_t i) { return min64(order.size(remainder), top(i) + 1); };
        for (int64_t i = start; i < end;) {
            int64_t j0 = first(i), j1 = last(i), next = i + axis.stride;
            while (next < end && first(next) == j0 && last(next) == j1) next += axis.stride;
            body(Span{i, (next - i) / axis.stride, axis.stride, top(i) - j1 + 1, 1,
                      order.place(remainder, j1 - 1), max64(0, j1 - j0)});
            i = next;
        }
    }
}

// ---- rectangles

// One axis of a rectangle: how many, and how far apart in the two arrays that it moves through.
struct Walk {
    int64_t count, a, c;
};

// A rectangle of positions over several images, as nested lines: lines[0] are the rows (or the k)
// of a product, the others are loops around it.
struct Walks {
    Walk rows, middle, outer;
};

// Joins axes that continue one another, and takes as rows the innermost axis that fills a tile, or
// the longest.
inline Walks nest_walks(Walk x, Walk y, Walk n, int64_t enough)
{
    Walk lines[3] = {x, y, n};
    for (int i = 0; i < 2; ++i) {
        Walk &inner = lines[i], &next = lines[i + 1];
        if (next.count > 1 && (next.a != inner.count * inner.a || next.c != inner.count * inner.c))
            continue;
        next = {inner.count * next.count, inner.a, inner.c};
        inner.count = 1;
    }
    int best = 0;
    for (int i = 1; i < 3 && lines[best].count < enough; ++i)
        if (lines[i].count > lines[best].count) best = i;
    return {lines[best], lines[best == 0 ? 1 : 0], lines[best == 2 ? 1 : 2]};
}

// Calls body(a, c), how far to move in both arrays, for all but the rows.
template <class Body>
void for_each_row_set(const Walks& lines, const Body& body)
{
    for (int64_t i = 0; i < lines.outer.count; ++i)
        for (int64_t j = 0; j < lines.middle.count; ++j)
            body(i * lines.outer.a + j * lines.middle.a, i * lines.outer.c + j * lines.middle.c);
}
}  // namespace needle::NEEDLE_TARGET
