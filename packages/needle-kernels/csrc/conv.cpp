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
//
// The last is in conv_weight_grad.cpp; conv.h has what all three share.
#include "conv.h"

#include <atomic>

#include "caches.h"
#include "families.h"

namespace needle::NEEDLE_TARGET {

namespace {

// Weights beyond this are used panel by panel, over all positions: they do not stay in a cache.
constexpr int64_t cached_bytes = 1 << 20;

constexpr int64_t write_interval = 2;  // k from one row of the next results to another: 12 in 27 k

// Room on the stack for segments: a position has at most one a row of taps. A macro, as the memory
// is the calling function's.
#define NEEDLE_SEGMENTS(count) \
    static_cast<Segment<T>*>(  \
        __builtin_alloca(sizeof(Segment<T>) * static_cast<size_t>((count) + 1)))

// ---- what forward and input gradient share
//
// Each result position is a product of the runs of `from` that its taps meet with the weights of
// these taps.

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

    // Whether the result, of which each number is written once, goes past the caches.
    bool past_caches() const
    {
        return to.n * to.image_stride * int64_t{sizeof(T)} >= beyond_caches &&
               rows_are_aligned(to.data, to.pixel_stride);
    }
};

// One thread's share of the result.
struct Share {
    int64_t n0, n1, y0, y1, panel0, panel1;
};

// `rows` rows of the result from c on, the panels [share.panel0, share.panel1), in blocks of rows.
// `first` are the segments of the first row and panel, but `a_shift` away; behind them is room for
// a tile's. (These are only written: to add to what was just written would wait for the write.) Of
// large images the first panel's tiles fetch the pixels below theirs, which the next row of results
// adds. Small images are in the caches, and the pixels of a few channels lie so close that the
// processor fetches them: there tiles fetch the places of the next one's results. Of few products
// each, most of the time would go to the writes.
template <class T>
void run_rows(const Products<T>& p, Segment<T>* first, int64_t count, int64_t a_shift,
              const Walk& rows, T* c, const Share& share)
{
    constexpr int64_t width = tile_columns<T>;
    int64_t bytes = p.from.n * p.from.image_stride * int64_t{sizeof(T)};
    bool fetches = count > 0 && p.from.c >= lanes<T> && bytes > caches().second_bytes;
    Segment<T>* segments = first + count;
    Tile<T> tile{
        .segments = segments,
        .segment_count = count,
        .a_stride = rows.a,
        .b_stride = p.weights.input_stride,
        .c = nullptr,
        .c_stride = rows.c,
        .columns = 0,
        .bias = nullptr,
        .activation = p.activation,
        .accumulate = false,
        .finish = true,
        .past_caches = p.past_caches(),
    };
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
                tile.ahead = {};
                if (fetches && panel == share.panel0) {
                    const T* last_row = segments[count - 1].a;
                    tile.ahead = {last_row + p.from.row_stride, height, p.from.c, rows.a};
                }
                if (!fetches && !tile.past_caches && i + height < end)
                    tile.ahead = {tile.c + height * rows.c, height, tile.columns, rows.c,
                                  write_interval};
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
    Walks lines = nest_walks({x.count, x.move * from.pixel_stride, x.step * to.pixel_stride},
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
        if (p.past_caches()) end_stream();
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

// ---- forward

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

// ---- gradient of the input
//
// dx[n, y, x] = sum over taps of dy[n, (y + p - ky) / s, (x + p - kx) / s] w[ky, kx]^T, of the taps
// for which both quotients are whole.

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
                multiply_packed<T>({next - p, a, from.pixel_stride, rows, columns}, weights);
                for (int64_t i = p; i < next; ++i)
                    scatter_row(rows + (i - p) * columns, vertical, horizontal, i / from.w,
                                i % from.w, to, image);
            }
    });
}

// With a stride, stride x stride pixels and their channels are one block, and all blocks meet
// positions in the same way: pixel s q + r of an axis the position q + d by tap r + p - s d. So
// they are a convolution of dy with stride 1 and as many channels as a block has numbers; a row of
// pixels is then a row of blocks' parts. Done for some images at a time, whose blocks stay cached.
struct BlockGrad {
    static constexpr int64_t cached_elements = 512 * 1024;

    int64_t stride, padding, first, taps;  // d runs from `first` on
    Array arrays[4];                       // of that convolution: blocks, dy, weights, no bias
    double scalars[3];
    Call call;

    explicit BlockGrad(const Call& outer)
        : stride(static_cast<int64_t>(outer.scalars[0])),
          padding(static_cast<int64_t>(outer.scalars[1]))
    {
        const Array &dx = outer.arrays[0], &dy = outer.arrays[1], &w = outer.arrays[2];
        int64_t kernel = w.shape[0], channels = stride * stride * dx.shape[3];
        first = -((kernel - 1 - padding) / stride);
        taps = (stride - 1 + padding) / stride - first + 1;
        int64_t height = ceil_div(dx.shape[1], stride), width = ceil_div(dx.shape[2], stride);
        int64_t images = max64(1, cached_elements / (height * width * channels));
        set_shape(arrays[0], dx.dtype, {min64(dx.shape[0], images), height, width, channels});
        arrays[1] = dy;
        arrays[1].shape[0] = arrays[0].shape[0];
        set_shape(arrays[2], dx.dtype, {taps, taps, w.shape[3], channels});
        arrays[3] = {};
        scalars[0] = 1;
        scalars[1] = static_cast<double>(-first);
        scalars[2] = 0;  // no activation
        call = {arrays, 4, scalars, 3, nullptr, nullptr, 0};
    }

    // Whether this takes less time than adding rows: of a position's taps each is added in memory,
    // which takes as long as `addition` multiply-adds; of a block's, many may be no taps at all.
    template <class T>
    static bool suits(const Call& outer)
    {
        constexpr int64_t addition = 16;
        const Array &dx = outer.arrays[0], &w = outer.arrays[2];
        double kernel = static_cast<double>(w.shape[0]);
        if (outer.scalars[0] <= 1 || outer.scalars[0] > kernel) return false;
        if (outer.scalars[1] >= kernel) return false;
        if (dx.shape[3] > few_input_channels || dx.size() * w.size() == 0) return false;
        BlockGrad blocks(outer);
        int64_t row = w.shape[0] * w.shape[1] * w.shape[2];
        int64_t by_rows = w.shape[3] * round_up(row, lanes<T>) + addition * row;
        const Array& weights = blocks.arrays[2];
        return weights.size() / weights.shape[3] * round_up(weights.shape[3], lanes<T>) < by_rows;
    }

    template <class T>
    int64_t elements() const
    {
        return round_up(arrays[0].size(), 16) + round_up(arrays[2].size(), 16) +
               conv_elements<T>(call);
    }

    // False where a NaN or an infinity of dy has spread: times a weight that is 0, as no tap is
    // there, it is NaN. Then the call is to be done in another way.
    template <class T>
    bool run(const Call& outer)
    {
        T* buffer = static_cast<T*>(outer.workspace);
        arrays[0].data = buffer;
        arrays[2].data = buffer + round_up(arrays[0].size(), 16);
        call.workspace = arrays[2].as<T>() + round_up(arrays[2].size(), 16);
        fill_weights<T>(outer.arrays[2]);
        const Array &dx = outer.arrays[0], &dy = outer.arrays[1];
        int64_t images = arrays[0].shape[0];
        for (int64_t n = 0; n < dx.shape[0]; n += images) {
            arrays[0].shape[0] = arrays[1].shape[0] = min64(images, dx.shape[0] - n);
            arrays[1].data = dy.as<T>() + n * dy.strides[0];
            conv_typed<T>(call);
            if (any_nan<T>()) return false;
            spread_blocks<T>(dx, n);
        }
        return true;
    }

private:
    static void set_shape(Array& array, DType dtype, const int64_t (&shape)[4])
    {
        array = {};
        array.dtype = dtype;
        array.rank = 4;
        for (int64_t axis = 3, step = 1; axis >= 0; step *= shape[axis--]) {
            array.shape[axis] = shape[axis];
            array.strides[axis] = step;
        }
    }

    // [d of y][d of x][output channel][pixel of the block][input channel]; 0 where no tap is.
    template <class T>
    void fill_weights(const Array& w) const
    {
        T* out = arrays[2].as<T>();
        int64_t kernel = w.shape[0], inputs = w.shape[2];
        auto tap_of = [&](int64_t d, int64_t r) { return r + padding - stride * (first + d); };
        auto value = [&](int64_t ky, int64_t kx, int64_t o, int64_t c) {
            bool inside = ky >= 0 && ky < kernel && kx >= 0 && kx < kernel;
            const int64_t* s = w.strides;
            return inside ? w.as<T>()[ky * s[0] + kx * s[1] + c * s[2] + o * s[3]] : T(0);
        };
        for (int64_t dy = 0; dy < taps; ++dy)
            for (int64_t dx = 0; dx < taps; ++dx)
                for (int64_t o = 0; o < w.shape[3]; ++o)
                    for (int64_t y = 0; y < stride; ++y)
                        for (int64_t x = 0; x < stride; ++x)
                            for (int64_t c = 0; c < inputs; ++c)
                                *out++ = value(tap_of(dy, y), tap_of(dx, x), o, c);
    }

    template <class T>
    bool any_nan() const
    {
        const T* x = arrays[0].as<T>();
        std::atomic<bool> found = false;
        parallel_for(arrays[0].size(), 32768, [&](int64_t begin, int64_t end) {
            Vec<Bits<T>> any = {};
            for_vectors<T>(end - begin, [&](int64_t i, int64_t n) {
                Vec<T> v = load_lanes(x + begin + i, 1, n);
                any |= v != v;
            });
            for (int lane = 0; lane < lanes<T>; ++lane)
                if (any[lane] != 0) found = true;
        });
        return found;
    }

    // Writes the images of dx from n on.
    template <class T>
    void spread_blocks(const Array& dx, int64_t n) const
    {
        const Array& blocks = arrays[0];
        int64_t height = dx.shape[1], width = dx.shape[2], channels = dx.shape[3];
        int64_t part = stride * channels, row = width * channels;
        int64_t rows = blocks.shape[0] * height;
        parallel_for(rows, ceil_div(32768, row), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                int64_t image = i / height, y = i % height;
                const T* from = blocks.as<T>() + image * blocks.strides[0] +
                                y / stride * blocks.strides[1] + y % stride * part;
                T* to = dx.as<T>() + (n * height + i) * row;
                for (int64_t at = 0; at < row; at += part, from += blocks.strides[2])
                    for (int64_t k = 0; k < min64(part, row - at); ++k) to[at + k] = from[k];
            }
        });
    }
};

template <class T>
void input_grad_typed(const Call& call)
{
    const Array &out = call.arrays[0], &dy = call.arrays[1], &w = call.arrays[2];
    if (out.size() == 0) return;
    if (BlockGrad::suits<T>(call) && BlockGrad(call).run<T>(call)) return;
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
    int64_t of_blocks = BlockGrad::suits<T>(call) ? BlockGrad(call).elements<T>() : 0;
    return max64(of_blocks, dense_elements<T>(dy) + packed);
}

// ---- the table's entries

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

}  // namespace

void add_conv(Table& table)
{
    table[Kernel::conv] = {conv, conv_workspace};
    table[Kernel::conv_input_grad] = {conv_input_grad, conv_input_grad_workspace};
}

}  // namespace needle::NEEDLE_TARGET
