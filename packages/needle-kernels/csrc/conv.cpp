// Convolutions of NHWC images: forward, gradient of the input, gradient of the weight.
//
// Implicit matrix products. Output positions that meet the same taps form rectangles; on each, the
// taps that lie in the image are a few runs of memory whose places move by a fixed step from one
// position, row or image to the next. So no patch matrix is built, and padding is neither read nor
// multiplied.
//
//     kernel                rows of a tile              columns          k
//     conv                  positions or images         output channels  taps, input channels
//     conv_input_grad       positions or images         input channels   taps, output channels
//     conv_weight_grad      input channels of one tap   output channels  positions, images
#include "families.h"
#include "matmul.h"
#include "strided.h"
#include "tile.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t parallel_work = 100000;  // multiply-adds that are worth a second thread
// Weights beyond half of a second-level cache are used panel by panel, over all positions.
constexpr int64_t cached_bytes = 1 << 20;
// So many rows stay in the first-level cache while all panels use them.
constexpr int64_t block_rows = 4 * tile_rows;

// Room on the stack for segments: a position has at most one a row of taps. A macro, as the memory
// is the calling function's.
#define NEEDLE_SEGMENTS(count) \
    static_cast<Segment<T>*>(  \
        __builtin_alloca(sizeof(Segment<T>) * static_cast<size_t>((count) + 1)))

inline int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// Of a convolution with this result and these weights, padding included.
inline int64_t multiply_adds(const Array& out, const Array& w)
{
    return out.size() * w.shape[0] * w.shape[1] * w.shape[2];
}

// ---------------------------------------------------------------------------------------------------------------
// Images

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

// Where lane `lane` of vector J of C channels side by side comes from when channel c joins those
// before it: from a pixel of c (counted from lanes<T> on), or from what they already are.
template <int C, int J, class T>
constexpr int joined_lane(int lane, int c)
{
    int pixel = (J * lanes<T> + lane) / C, channel = (J * lanes<T> + lane) % C;
    if (channel == c) return lanes<T> + pixel;
    return c == 1 ? pixel : lane;
}

template <int C, int J, class T, int... L>
Vec<T> join_channels(const Vec<T> (&v)[C], std::integer_sequence<int, L...>)
{
    Vec<T> out = __builtin_shufflevector(v[0], v[1], joined_lane<C, J, T>(L, 1)...);
    if constexpr (C > 2) out = __builtin_shufflevector(out, v[2], joined_lane<C, J, T>(L, 2)...);
    if constexpr (C > 3) out = __builtin_shufflevector(out, v[3], joined_lane<C, J, T>(L, 3)...);
    return out;
}

// out[i * C + c] = from[c * channel_stride + i] for the pixels of one vector.
template <int C, class T, int... J>
void interleave_vector(const T* from, int64_t channel_stride, T* out,
                       std::integer_sequence<int, J...>)
{
    Vec<T> v[C];
    for (int c = 0; c < C; ++c) v[c] = load(from + c * channel_stride);
    (store(out + J * lanes<T>,
           join_channels<C, J, T>(v, std::make_integer_sequence<int, lanes<T>>{})),
     ...);
}

// The same for n pixels.
template <int C, class T>
void interleave(const T* from, int64_t channel_stride, int64_t n, T* out)
{
    int64_t i = 0;
    for (; i + lanes<T> <= n; i += lanes<T>)
        interleave_vector<C>(from + i, channel_stride, out + i * C,
                             std::make_integer_sequence<int, C>{});
    for (; i < n; ++i)
        for (int c = 0; c < C; ++c) out[i * C + c] = from[c * channel_stride + i];
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

// ---------------------------------------------------------------------------------------------------------------
// Axes, taps, and positions that meet the same taps

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

Axis axis_of(const Call& call, const Array& in, const Array& out, const Array& w, int axis)
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

// ---------------------------------------------------------------------------------------------------------------
// Rectangles

// One axis of a rectangle: how many, and how far apart in the two arrays that it moves through.
struct Line {
    int64_t count, a, c;
};

// A rectangle of positions over several images, as nested lines: lines[0] are the rows (or the k)
// of a product, the others are loops around it.
struct Lines {
    Line rows, middle, outer;
};

// Joins axes that continue one another, and takes as rows the innermost axis that fills a tile, or
// the longest.
inline Lines nest_lines(Line x, Line y, Line n, int64_t enough)
{
    Line lines[3] = {x, y, n};
    for (int i = 0; i < 2; ++i) {
        Line &inner = lines[i], &next = lines[i + 1];
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
void for_each_row_set(const Lines& lines, const Body& body)
{
    for (int64_t i = 0; i < lines.outer.count; ++i)
        for (int64_t j = 0; j < lines.middle.count; ++j)
            body(i * lines.outer.a + j * lines.middle.a, i * lines.outer.c + j * lines.middle.c);
}

// ---------------------------------------------------------------------------------------------------------------
// What forward and input gradient share: each result position is a product of the runs of `from`
// that its taps meet with the weights of these taps.

// Weights, [panel][tap row][tap][input][column]: in place, or packed.
template <class T>
struct Weights {
    const T* data;
    int64_t panel_stride, tap_row_stride, tap_stride;
    int64_t input_stride;  // from one k to the next
    int64_t bytes;
};

template <class T>
struct Products {
    Image<T> from, to;
    const Copy<T>* copy;  // where `from` is copied, block by block; or nullptr
    T* copies;            // room for a block of each thread
    Weights<T> weights;
    const T* bias;
    Activation activation;
};

// One thread's share of the result.
struct Share {
    int64_t n0, n1, y0, y1, panel0, panel1;
};

// `rows` rows of the result from c on, the panels [share.panel0, share.panel1), in blocks of rows.
// `first` are the segments of the first row and panel, but `a_shift` away; behind them is room for
// a tile's. (These are only written: to add to what was just written would wait for the write.)
template <class T>
void run_rows(const Products<T>& p, Segment<T>* first, int64_t count, int64_t a_shift,
              const Line& rows, T* c, const Share& share)
{
    constexpr int64_t width = tile_columns<T>;
    Segment<T>* segments = first + count;
    Tile<T> tile{segments,     count, rows.a, p.weights.input_stride, nullptr, rows.c, 0, nullptr,
                 p.activation, false, true};
    for (int64_t i0 = 0; i0 < rows.count; i0 += block_rows) {
        int64_t end = min64(rows.count, i0 + block_rows);
        for (int64_t panel = share.panel0; panel < share.panel1; ++panel) {
            int64_t j = panel * width;
            tile.columns = min64(width, p.to.c - j);
            tile.bias = p.bias == nullptr ? nullptr : p.bias + j;
            int64_t b_shift = (panel - share.panel0) * p.weights.panel_stride;
            for (int64_t i = i0; i < end;) {
                int height = tile_rows_for(end - i);
                for (int64_t s = 0; s < count; ++s)
                    segments[s] = {first[s].a + a_shift + i * rows.a, first[s].b + b_shift,
                                   first[s].k};
                tile.c = c + i * rows.c + j;
                run_tile(height, RowOrder::k_contiguous, tile);
                i += height;
            }
        }
    }
}

// The positions that meet the taps of the spans y and x.
template <class T>
void run_rectangle(const Products<T>& p, const Span& y, const Span& x, const Share& share)
{
    const Image<T>&from = p.from, &to = p.to;
    const Weights<T>& w = p.weights;
    int64_t count = x.taps > 0 ? y.taps : 0;
    Segment<T>* segments = NEEDLE_SEGMENTS(2 * count);
    Lines lines = nest_lines({x.count, x.move * from.pixel_stride, x.step * to.pixel_stride},
                             {y.count, y.move * from.row_stride, y.step * to.row_stride},
                             {share.n1 - share.n0, from.image_stride, to.image_stride}, tile_rows);
    for (int64_t s = 0; s < count; ++s)
        segments[s] = {from.at(share.n0, y.source + s, x.source),
                       w.data + share.panel0 * w.panel_stride + (y.tap + s) * w.tap_row_stride +
                           x.tap * w.tap_stride,
                       x.taps * from.c};
    T* c = to.at(share.n0, y.first, x.first);
    for_each_row_set(lines, [&](int64_t a_shift, int64_t c_shift) {
        run_rows(p, segments, count, a_shift, lines.rows, c + c_shift, share);
    });
}

// Cuts a share into blocks of so many images and panels.
template <class Run>
void for_blocks_of(const Share& share, int64_t images, int64_t panels, const Run& run)
{
    Share block = share;
    for (int64_t j = share.panel0; j < share.panel1; j += panels) {
        block.panel0 = j;
        block.panel1 = min64(share.panel1, j + panels);
        for (int64_t n = share.n0; n < share.n1; n += images) {
            block.n0 = n;
            block.n1 = min64(share.n1, n + images);
            run(block);
        }
    }
}

// As many images as a tile has rows, so that their pixels stay cached from position to position;
// one where a row fills tiles. `step`: between positions that meet the same taps.
inline int64_t images_of_block(int64_t n, int64_t h, int64_t w, int64_t step)
{
    return max64(h, w) / step > tile_rows ? 1 : min64(n, tile_rows);
}

// Splits the result over threads along the axis that splits most evenly, images first, and calls
// run(products, share).
template <class T, class Run>
void split_result(const Products<T>& p, int64_t step, int64_t work, const Run& run)
{
    int64_t panels = ceil_div(p.to.c, tile_columns<T>);
    int threads = threads_for(work, parallel_work);
    int64_t items[3] = {p.to.n, p.to.h, panels};
    int axis = 0;
    auto share_of = [&](int i) { return double(ceil_div(items[i], threads)) / double(items[i]); };
    for (int i = 1; i < 3; ++i)
        if (share_of(i) < share_of(axis)) axis = i;
    int64_t group = panels;
    if (p.weights.bytes > cached_bytes) group = max64(1, cached_bytes * panels / p.weights.bytes);
    int64_t images = images_of_block(p.to.n, p.to.h, p.to.w, step);
    parallel_for(threads, 1, [&](int64_t first, int64_t last) {
        for (int64_t t = first; t < last; ++t) {
            Share share{0, p.to.n, 0, p.to.h, 0, panels};
            int64_t* ends[3] = {&share.n0, &share.y0, &share.panel0};
            ends[axis][0] = items[axis] * t / threads;
            ends[axis][1] = items[axis] * (t + 1) / threads;
            for_blocks_of(share, images, group, [&](const Share& block) {
                Products<T> part = p;
                if (p.copy != nullptr)
                    part.from = p.copy->take({block.n0, block.n1, 0, p.copy->rows},
                                             p.copies + t * images * p.copy->image_elements());
                run(part, block);
            });
        }
    });
}

// [panel][place of ky][place of kx][input][column], zero where there is no column. Taps that meet
// no pixel are left out.
template <class T, class Place>
void pack_weights(const T* w, const Array& shape, int input_axis, const Axis& vertical,
                  const Axis& horizontal, const Place& place, T* out)
{
    constexpr int64_t width = tile_columns<T>;
    int column_axis = 5 - input_axis;
    int64_t kernel = vertical.kernel, inputs = shape.shape[input_axis],
            columns = shape.shape[column_axis];
    const int64_t* s = shape.strides;
    int64_t ky0 = vertical.low_tap(), kys = max64(0, vertical.high_tap() - ky0);
    int64_t kx0 = horizontal.low_tap(), kxs = max64(0, horizontal.high_tap() - kx0);
    int64_t items = ceil_div(columns, width) * kys * kxs;
    parallel_for(items, ceil_div(32768, max64(1, inputs * width)), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            int64_t panel = i / (kys * kxs), ky = ky0 + i / kxs % kys, kx = kx0 + i % kxs;
            int64_t tap = (panel * kernel + place(ky)) * kernel + place(kx), j = panel * width;
            pack_panel(w + ky * s[0] + kx * s[1] + j * s[column_axis], s[column_axis],
                       s[input_axis], min64(width, columns - j), inputs, out + tap * inputs * width,
                       width);
        }
    });
}

template <class T>
int64_t packed_weight_elements(const Array& w, int input_axis)
{
    constexpr int64_t width = tile_columns<T>;
    return round_up(w.shape[5 - input_axis], width) * w.shape[0] * w.shape[1] * w.shape[input_axis];
}

template <class T>
Weights<T> packed_weights(const Array& w, int input_axis, const T* data)
{
    constexpr int64_t width = tile_columns<T>;
    int64_t tap = w.shape[input_axis] * width, row = w.shape[1] * tap;
    return {data,  w.shape[0] * row,
            row,   tap,
            width, packed_weight_elements<T>(w, input_axis) * int64_t{sizeof(T)}};
}

// ---------------------------------------------------------------------------------------------------------------
// Forward

// Weights are used in place where a panel's columns are whole vectors and the inputs of a row of
// taps one run; unless panels lie far apart in memory, or many positions pay for the copy.
template <class T>
bool weights_in_place(const Array& w, const Array& out)
{
    bool whole = w.shape[3] % lanes<T> == 0 && w.strides[3] == 1;
    bool runs = w.strides[1] == w.shape[2] * w.strides[2];
    bool few =
        w.shape[3] <= tile_columns<T> || (w.shape[3] <= 128 && out.size() / w.shape[3] < 1024);
    return whole && runs && few;
}

// Where each thread copies a block of x.
template <class T>
int64_t copied_block_elements(const Array& x, const Array& out, const Array& w)
{
    int64_t images = images_of_block(out.shape[0], out.shape[1], out.shape[2], 1);
    return threads_for(multiply_adds(out, w), parallel_work) * images *
           Copy<T>{&x, x.shape[1], 0}.image_elements();
}

template <class T>
void conv_typed(const Call& call)
{
    const Array &out = call.arrays[0], &x = call.arrays[1], &w = call.arrays[2],
                &bias = call.arrays[3];
    if (out.size() == 0) return;
    Axis vertical = axis_of(call, x, out, w, 1), horizontal = axis_of(call, x, out, w, 2);
    T* buffer = static_cast<T*>(call.workspace);
    Products<T> p{};
    p.from = in_place<T>(x);
    Copy<T> copy{&x, x.shape[1], 0};
    if (!has_dense_rows(x)) {
        p.copy = &copy;
        p.copies = buffer;
        buffer += copied_block_elements<T>(x, out, w);
    }
    p.to = dense_image(out.as<T>(), out.shape[0], out.shape[1], out.shape[2], out.shape[3]);
    p.activation = static_cast<Activation>(static_cast<int>(call.scalars[2]));
    if (weights_in_place<T>(w, out)) {
        p.weights = {w.as<T>(),    tile_columns<T>, w.strides[0],
                     w.strides[1], w.strides[2],    w.size() * int64_t{sizeof(T)}};
    } else {
        auto place = [](int64_t tap) { return tap; };
        pack_weights<T>(w.as<T>(), w, 2, vertical, horizontal, place, buffer);
        p.weights = packed_weights<T>(w, 2, buffer);
        buffer += packed_weight_elements<T>(w, 2);
    }
    p.bias = bias.as<T>();
    if (bias.data != nullptr && bias.strides[0] != 1) {
        for (int64_t i = 0; i < bias.shape[0]; ++i) buffer[i] = bias.as<T>()[i * bias.strides[0]];
        p.bias = buffer;
    }
    split_result(p, 1, multiply_adds(out, w), [&](const Products<T>& part, const Share& share) {
        for_output_spans(vertical, share.y0, share.y1, [&](const Span& y) {
            for_output_spans(horizontal, 0, out.shape[2],
                             [&](const Span& x_span) { run_rectangle(part, y, x_span, share); });
        });
    });
}

template <class T>
int64_t conv_elements(const Call& call)
{
    const Array &out = call.arrays[0], &x = call.arrays[1], &w = call.arrays[2];
    return (has_dense_rows(x) ? 0 : copied_block_elements<T>(x, out, w)) +
           round_up(w.shape[3], 16) +
           (weights_in_place<T>(w, out) ? 0 : packed_weight_elements<T>(w, 2));
}

// ---------------------------------------------------------------------------------------------------------------
// Gradient of the input: dx[n, y, x] = sum over taps of dy[n, (y + p - ky) / s, (x + p - kx) / s]
// w[ky, kx]^T, of the taps for which both quotients are whole

// Few input channels would leave a tile's columns empty. Then the product is made the other way
// round: a block of positions of dy, times all weights, gives each position a row of
// K x K x C numbers, which are added where its taps meet pixels. A block stays in the cache.

constexpr int64_t few_input_channels = 8;
constexpr int64_t scatter_elements = 12 * 1024;

inline bool scatters_rows(const Array& dx, const Array& w)
{
    bool one_row =
        w.strides[1] == w.shape[2] * w.strides[2] && w.strides[0] == w.shape[1] * w.strides[1];
    return dx.shape[3] <= few_input_channels && one_row &&
           w.shape[0] * w.shape[1] * w.shape[2] * tile_rows <= scatter_elements;
}

// Adds what position (oy, ox) gives to each pixel that one of its taps meets.
template <class T>
void scatter_row(const T* row, const Axis& vertical, const Axis& horizontal, int64_t oy, int64_t ox,
                 const Image<T>& to, int64_t image)
{
    int64_t first = horizontal.first_tap(ox), n = (horizontal.end_tap(ox) - first) * to.c;
    for (int64_t ky = vertical.first_tap(oy); ky < vertical.end_tap(oy); ++ky) {
        const T* __restrict from = row + (ky * horizontal.kernel + first) * to.c;
        T* __restrict pixels = to.at(image, oy * vertical.stride + ky - vertical.padding,
                                     ox * horizontal.stride + first - horizontal.padding);
        for (int64_t i = 0; i < n; ++i) pixels[i] += from[i];
    }
}

template <class T>
void input_grad_by_rows(const Call& call)
{
    const Array &out = call.arrays[0], &dy = call.arrays[1], &w = call.arrays[2];
    Axis vertical = axis_of(call, out, dy, w, 1), horizontal = axis_of(call, out, dy, w, 2);
    T* buffer = static_cast<T*>(call.workspace);
    Image<T> from = dense_rows<T>(dy, buffer);
    Image<T> to = dense_image(out.as<T>(), out.shape[0], out.shape[1], out.shape[2], out.shape[3]);
    int64_t columns = w.shape[0] * w.shape[1] * w.shape[2];
    PackedB<T> weights = pack_b(w.as<T>(), w.strides[3], w.strides[2], w.shape[3], columns, buffer);
    bool dense = from.row_stride == from.w * from.pixel_stride;
    int64_t positions = from.h * from.w, block = scatter_elements / columns;
    int64_t work = positions * columns * w.shape[3];
    parallel_for(to.n, ceil_div(parallel_work, max64(work, 1)), [&](int64_t begin, int64_t end) {
        alignas(64) T rows[scatter_elements];
        std::memset(to.at(begin, 0, 0), 0,
                    static_cast<size_t>((end - begin) * to.image_stride) * sizeof(T));
        for (int64_t image = begin; image < end; ++image)
            for (int64_t p = 0, next; p < positions; p = next) {
                next = min64(p + block, dense ? positions : (p / from.w + 1) * from.w);
                const T* a = from.at(image, p / from.w, p % from.w);
                multiply_packed<T>({next - p, a, from.pixel_stride, 1, rows, columns}, weights, 0,
                                   columns);
                for (int64_t i = p; i < next; ++i)
                    scatter_row(rows + (i - p) * columns, vertical, horizontal, i / from.w,
                                i % from.w, to, image);
            }
    });
}

template <class T>
void input_grad_typed(const Call& call)
{
    const Array &out = call.arrays[0], &dy = call.arrays[1], &w = call.arrays[2];
    if (out.size() == 0) return;
    if (scatters_rows(out, w)) return input_grad_by_rows<T>(call);
    Axis vertical = axis_of(call, out, dy, w, 1), horizontal = axis_of(call, out, dy, w, 2);
    T* buffer = static_cast<T*>(call.workspace);
    Products<T> p{};
    p.from = dense_rows<T>(dy, buffer);
    p.to = dense_image(out.as<T>(), out.shape[0], out.shape[1], out.shape[2], out.shape[3]);
    TapOrder order{vertical.kernel, vertical.stride};
    auto place = [&](int64_t tap) { return order.place(tap % order.stride, tap / order.stride); };
    pack_weights<T>(w.as<T>(), w, 3, vertical, horizontal, place, buffer);
    p.weights = packed_weights<T>(w, 3, buffer);
    auto run = [&](const Products<T>& part, const Share& share) {
        for_input_spans(vertical, share.y0, share.y1, [&](const Span& y) {
            for_input_spans(horizontal, 0, out.shape[2],
                            [&](const Span& x) { run_rectangle(part, y, x, share); });
        });
    };
    split_result(p, vertical.stride, multiply_adds(dy, w), run);
}

template <class T>
int64_t input_grad_elements(const Call& call)
{
    const Array &dy = call.arrays[1], &w = call.arrays[2];
    int64_t packed = scatters_rows(call.arrays[0], w)
                         ? packed_elements<T>(w.shape[3], w.shape[0] * w.shape[1] * w.shape[2])
                         : packed_weight_elements<T>(w, 3);
    return dense_elements<T>(dy) + packed;
}

// ---------------------------------------------------------------------------------------------------------------
// Gradient of the weight: dw[ky, kx, ci, co] = sum over n, oy, ox of x[n, iy, ix, ci]
// dy[n, oy, ox, co]
//
// For one tap this is a product with x as transposed operand, over the output positions whose tap
// meets a pixel. They are taken in blocks small enough that x and dy stay in the first-level cache
// while all taps and channels use them; the sums in dw grow from block to block.
//
// Few channels would leave a tile's rows empty. Then a block's part of x is copied with its
// padding, and the taps of a row, which meet neighbouring pixels, are seen as one tap with kernel *
// C channels.

constexpr int64_t block_positions = 128;
constexpr int64_t few_channels = 8;

inline bool merges_taps(const Array& x, const Array& dw)
{
    return x.shape[3] < few_channels && dw.shape[0] > 1;
}

inline bool copies_input(const Array& x, const Array& dw)
{
    return merges_taps(x, dw) || !has_dense_rows(x);
}

// A copy of the rows of x that `rows` rows of dy meet.
template <class T>
Copy<T> input_copy(const Call& call, int64_t rows)
{
    const Array &dw = call.arrays[0], &x = call.arrays[2];
    int64_t stride = static_cast<int64_t>(call.scalars[0]);
    int64_t padding = static_cast<int64_t>(call.scalars[1]);
    return {&x, min64(x.shape[1], (rows - 1) * stride + dw.shape[0]),
            merges_taps(x, dw) ? padding : 0};
}

// How the work is shared: by blocks, each thread with sums of its own that are added at the end,
// or, where dw is large, by parts of dw.
struct WeightGradPlan {
    int64_t block_images, block_rows;  // of one block
    int64_t row_blocks, blocks;
    int threads;
    bool by_block;
    // What a thread has for itself, in elements: its sums by blocks (dw, and db behind it), a
    // block's columns of dy and a block of x where these are copied.
    int64_t sums, block_panel, block_input;

    int64_t elements() const { return sums + block_panel + block_input; }
};

template <class T>
WeightGradPlan plan_weight_grad(const Call& call)
{
    const Array &dw = call.arrays[0], &x = call.arrays[2], &dy = call.arrays[3];
    WeightGradPlan plan{};
    int64_t rows = max64(1, dy.shape[1]), columns = max64(1, dy.shape[2]);
    plan.block_rows = min64(rows, max64(1, block_positions / columns));
    plan.block_images = max64(1, block_positions / (rows * columns));
    plan.row_blocks = ceil_div(rows, plan.block_rows);
    plan.blocks = max64(1, ceil_div(dy.shape[0], plan.block_images) * plan.row_blocks);
    plan.threads = static_cast<int>(
        min64(most_step_pieces, threads_for(multiply_adds(dy, dw), parallel_work)));
    // What another core has computed comes slowly: a thread that takes all blocks waits for half of
    // the operands and more, one that takes all of dw for the others' sums.
    plan.by_block = plan.blocks >= 2 * plan.threads && 4 * dw.size() < x.size() + dy.size();
    if (plan.by_block) plan.sums = round_up(dw.size(), 16) + round_up(dw.shape[3], 16);
    if (dy.shape[3] % lanes<T> != 0)
        plan.block_panel = plan.block_images * plan.block_rows * columns * tile_columns<T>;
    if (copies_input(x, dw))
        plan.block_input =
            round_up(plan.block_images * input_copy<T>(call, plan.block_rows).image_elements() +
                         narrow_tile_rows,
                     16);
    return plan;
}

template <class T>
struct WeightGrad {
    Image<T> x, dy;
    Copy<T> copy;  // of x, unless it is read in place
    bool copies;
    Axis vertical, horizontal;
    WeightGradPlan plan;
    bool want_bias;

    bool narrow;  // tiles of one vector of columns; x can be read beyond its last row

    int64_t tile_height() const { return narrow ? narrow_tile_rows : tile_rows; }
    int64_t row_tiles() const { return ceil_div(x.c, tile_height()); }
    int64_t taps() const { return vertical.kernel * horizontal.kernel; }
    int64_t panels() const { return ceil_div(dy.c, tile_columns<T>); }
    int64_t tiles() const
    {
        return panels() * met_taps(vertical) * met_taps(horizontal) * row_tiles();
    }
    // The taps that meet a pixel, at least one: the bias gradient is summed along with the first.
    static int64_t first_tap(const Axis& axis) { return min64(axis.low_tap(), axis.kernel - 1); }
    static int64_t met_taps(const Axis& axis) { return max64(1, axis.high_tap() - axis.low_tap()); }
};

// The tiles [tile_begin, tile_end) of dw, counted [panel][tap that meets a pixel][row tile], summed
// over the blocks [block_begin, block_end).
template <class T>
class WeightGradPart {
public:
    // `buffer`: plan.block_panel + plan.block_input elements
    WeightGradPart(const WeightGrad<T>& problem, T* dw, T* db, T* buffer)
        : p(problem), dw(dw), db(db), panel_copy(buffer), input_copy(buffer + p.plan.block_panel)
    {
        if (p.copy.border > 0)
            std::memset(input_copy, 0, static_cast<size_t>(p.plan.block_input) * sizeof(T));
    }

    // Of the taps [begin, end), those that meet no pixel are zero.
    void clear_taps(int64_t begin, int64_t end)
    {
        int64_t size = p.x.c * p.dy.c;
        for (int64_t tap = begin; tap < end; ++tap)
            if (!p.vertical.meets(tap / p.horizontal.kernel) ||
                !p.horizontal.meets(tap % p.horizontal.kernel))
                std::memset(dw + tap * size, 0, static_cast<size_t>(size) * sizeof(T));
    }

    void run(int64_t tile_begin, int64_t tile_end, int64_t block_begin, int64_t block_end)
    {
        int64_t row_tiles = p.row_tiles(), panel_tiles = p.tiles() / p.panels();
        int64_t ky0 = p.first_tap(p.vertical), kx0 = p.first_tap(p.horizontal),
                kxs = p.met_taps(p.horizontal);
        for (int64_t b = block_begin; b < block_end; ++b) {
            enter_block(b, b == block_begin);
            ahead = b + 1 < block_end ? next_input(tile_end - tile_begin) : Ahead<T>{};
            for (int64_t t = tile_begin; t < tile_end;) {
                int64_t tap = t % panel_tiles / row_tiles;
                int64_t end = min64(tile_end, (t / row_tiles + 1) * row_tiles);
                if (t == tile_begin || t % panel_tiles == 0) enter_panel(t / panel_tiles);
                if (p.want_bias && t % panel_tiles == 0) add_bias();
                run_tap(ky0 + tap / kxs, kx0 + tap % kxs, t % row_tiles * p.tile_height(),
                        min64(p.x.c, ((end - 1) % row_tiles + 1) * p.tile_height()));
                t = end;
            }
        }
    }

private:
    static constexpr int64_t width = tile_columns<T>;
    static constexpr int64_t most_segments = 64;  // a block's positions / their longest axis

    void enter_block(int64_t block, bool is_first)
    {
        first = is_first;
        n0 = block / p.plan.row_blocks * p.plan.block_images;
        n1 = min64(p.dy.n, n0 + p.plan.block_images);
        y0 = block % p.plan.row_blocks * p.plan.block_rows;
        y1 = min64(p.dy.h, y0 + p.plan.block_rows);
        if (p.copies) {
            const Axis& axis = p.vertical;
            int64_t first_row = y0 * axis.stride - axis.padding;
            int64_t last_row = (y1 - 1) * axis.stride - axis.padding + axis.kernel - 1;
            x.data =
                p.copy.take({n0, n1, max64(0, first_row), min64(axis.in, last_row + 1)}, input_copy)
                    .data;
        }
    }

    // What the first of `tiles` tiles fetches of the next block's x, which nobody has read since
    // the forward pass. A copy reads in order, which the processor foresees.
    Ahead<T> next_input(int64_t tiles) const
    {
        if (p.copies || p.plan.row_blocks > 1) return {};
        int64_t runs = block_positions / fetch_interval;
        int64_t length = ceil_div(p.plan.block_images * x.image_stride, runs * tiles);
        return {x.at(n1, 0, 0), runs, length, length};
    }

    // The block's columns of dy, copied where they are not whole vectors.
    void enter_panel(int64_t panel)
    {
        j = panel * width;
        columns = min64(width, p.dy.c - j);
        b = p.dy;
        b.data = p.dy.at(n0, y0, 0) + j;
        if (columns % lanes<T> == 0) return;
        Image<T> copy = dense_image(panel_copy, n1 - n0, y1 - y0, p.dy.w, width);
        for (int64_t n = 0; n < copy.n; ++n)
            for (int64_t y = 0; y < copy.h; ++y)
                pack_panel<T>(b.at(n, y, 0), 1, b.pixel_stride, columns, b.w, copy.at(n, y, 0),
                              width);
        b = copy;
    }

    void add_bias()
    {
        for (int64_t v = 0; v < columns; v += lanes<T>) {
            Vec<T> sum{};
            for (int64_t n = 0; n < n1 - n0; ++n)
                for (int64_t y = 0; y < y1 - y0; ++y)
                    for (int64_t i = 0; i < b.w; ++i) sum += load(b.at(n, y, i) + v);
            int64_t count = min64(lanes<T>, columns - v);
            for (int64_t i = 0; i < count; ++i)
                db[j + v + i] = (first ? T{} : db[j + v + i]) + sum[i];
        }
    }

    // The rows [r0, r1) of one tap.
    void run_tap(int64_t ky, int64_t kx, int64_t r0, int64_t r1)
    {
        int64_t oy0 = max64(y0, p.vertical.first_output(ky)),
                oy1 = min64(y1, p.vertical.end_output(ky));
        int64_t ox0 = p.horizontal.first_output(kx), ox1 = p.horizontal.end_output(kx);
        int64_t stride = p.vertical.stride;
        Segment<T> segments[most_segments];
        int64_t count = 0;
        Lines lines{};
        if (oy0 < oy1 && ox0 < ox1) {
            lines = nest_lines({ox1 - ox0, p.horizontal.stride * x.pixel_stride, b.pixel_stride},
                               {oy1 - oy0, stride * x.row_stride, b.row_stride},
                               {n1 - n0, x.image_stride, b.image_stride}, block_positions);
            const T* from = x.at(n0, oy0 * stride + ky - p.vertical.padding,
                                 ox0 * p.horizontal.stride + kx - p.horizontal.padding) +
                            r0;
            const T* with = b.at(0, oy0 - y0, ox0);
            for_each_row_set(lines, [&](int64_t a_shift, int64_t b_shift) {
                segments[count++] = {from + a_shift, with + b_shift, lines.rows.count};
            });
        }
        if (count == 0 && !first) return;
        Tile<T> tile{segments, count,   lines.rows.a,  lines.rows.c, nullptr, p.dy.c,
                     columns,  nullptr, no_activation, !first,       false};
        T* target = dw + (ky * p.horizontal.kernel + kx) * x.c * p.dy.c + j;
        for (int64_t r = r0; r < r1;) {
            int height = p.narrow ? narrow_tile_rows : tile_rows_for(r1 - r);
            tile.c = target + r * p.dy.c;
            tile.ahead = ahead;
            ahead.at += ahead.rows * ahead.length;
            if (p.narrow) {
                tile.rows = min64(height, r1 - r);
                run_narrow_tile(tile);
            } else {
                run_tile(height, RowOrder::rows_contiguous, tile);
            }
            for (int64_t s = 0; s < count; ++s) segments[s].a += height;
            r += height;
        }
    }

    const WeightGrad<T>& p;
    T *dw, *db, *panel_copy, *input_copy;
    bool first = true;
    int64_t n0 = 0, n1 = 0, y0 = 0, y1 = 0, j = 0, columns = 0;
    Ahead<T> ahead{};
    Image<T> x = p.x;
    Image<T> b{};  // the block's columns of dy, from (n0, y0) on
};

// x as the weight gradient reads it: in place, or as the copy of a block; with the taps of a row
// merged where channels are few.
template <class T>
void set_input(WeightGrad<T>& p, const Call& call)
{
    const Array &dw = call.arrays[0], &x = call.arrays[2];
    p.x = in_place<T>(x);
    p.copies = copies_input(x, dw);
    if (!p.copies) return;
    p.copy = input_copy<T>(call, p.plan.block_rows);
    p.x = p.copy.take({}, nullptr);
    if (!merges_taps(x, dw)) return;
    Axis& axis = p.horizontal;
    p.x.w -= axis.kernel - 1;
    p.x.c *= axis.kernel;
    axis = {p.x.w, axis.out, 1, axis.stride, 0};
    p.narrow = dw.shape[3] <= lanes<T>;
}

// to[k] += each of `others`[k], which lie `apart` elements from one another, for begin <= k < end.
template <class T>
void add_sums(T* __restrict to, const T* others, int64_t count, int64_t apart, int64_t begin,
              int64_t end)
{
    for (int64_t i = 0; i < count; ++i) {
        const T* __restrict from = others + i * apart;
        for (int64_t k = begin; k < end; ++k) to[k] += from[k];
    }
}

template <class T>
void weight_grad_typed(const Call& call)
{
    const Array &dw = call.arrays[0], &db = call.arrays[1], &x = call.arrays[2],
                &dy = call.arrays[3];
    if (dw.size() == 0) return;
    T* buffer = static_cast<T*>(call.workspace);
    WeightGrad<T> p{};
    p.vertical = axis_of(call, x, dy, dw, 1);
    p.horizontal = axis_of(call, x, dy, dw, 2);
    p.plan = plan_weight_grad<T>(call);
    set_input(p, call);
    p.dy = dense_rows<T>(dy, buffer);
    p.want_bias = db.data != nullptr;
    const WeightGradPlan& plan = p.plan;
    int64_t apart = plan.elements(), bias_at = round_up(dw.size(), 16);
    auto sum_up = [&](int64_t i) {
        T* own = buffer + i * apart;
        bool first = !plan.by_block || i == 0;
        WeightGradPart<T> part(p, first ? dw.as<T>() : own, first ? db.as<T>() : own + bias_at,
                               own + plan.sums);
        auto share = [&](int64_t n, int64_t k) { return n * k / plan.threads; };
        if (plan.by_block) {
            part.clear_taps(0, p.taps());
            part.run(0, p.tiles(), share(plan.blocks, i), share(plan.blocks, i + 1));
        } else {
            part.clear_taps(share(p.taps(), i), share(p.taps(), i + 1));
            part.run(share(p.tiles(), i), share(p.tiles(), i + 1), 0, plan.blocks);
        }
    };
    auto add_up = [&](int64_t i) {
        int64_t lines = ceil_div(dw.size(), 16);
        add_sums(dw.as<T>(), buffer + apart, plan.threads - 1, apart, lines * i / plan.threads * 16,
                 min64(dw.size(), lines * (i + 1) / plan.threads * 16));
        if (p.want_bias && i == 0)
            add_sums(db.as<T>(), buffer + apart + bias_at, plan.threads - 1, apart, 0, p.dy.c);
    };
    parallel_steps(plan.by_block ? 2 : 1, plan.threads, 1,
                   [&](int64_t step, int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i) step == 0 ? sum_up(i) : add_up(i);
                   });
}

template <class T>
int64_t weight_grad_elements(const Call& call)
{
    WeightGradPlan plan = plan_weight_grad<T>(call);
    return dense_elements<T>(call.arrays[3]) + plan.threads * plan.elements();
}

// ---------------------------------------------------------------------------------------------------------------
// The table's entries

bool is_float32(const Call& call) { return call.arrays[0].dtype == DType::float32; }

void conv(const Call& call)
{
    is_float32(call) ? conv_typed<float>(call) : conv_typed<double>(call);
}
int64_t conv_workspace(const Call& call)
{
    return is_float32(call) ? conv_elements<float>(call) * 4 : conv_elements<double>(call) * 8;
}

void conv_input_grad(const Call& call)
{
    is_float32(call) ? input_grad_typed<float>(call) : input_grad_typed<double>(call);
}
int64_t conv_input_grad_workspace(const Call& call)
{
    return is_float32(call) ? input_grad_elements<float>(call) * 4
                            : input_grad_elements<double>(call) * 8;
}

void conv_weight_grad(const Call& call)
{
    is_float32(call) ? weight_grad_typed<float>(call) : weight_grad_typed<double>(call);
}
int64_t conv_weight_grad_workspace(const Call& call)
{
    return is_float32(call) ? weight_grad_elements<float>(call) * 4
                            : weight_grad_elements<double>(call) * 8;
}

}  // namespace

void add_conv(Table& table)
{
    table[Kernel::conv] = {conv, conv_workspace};
    table[Kernel::conv_input_grad] = {conv_input_grad, conv_input_grad_workspace};
    table[Kernel::conv_weight_grad] = {conv_weight_grad, conv_weight_grad_workspace};
}

}  // namespace needle::NEEDLE_TARGET
