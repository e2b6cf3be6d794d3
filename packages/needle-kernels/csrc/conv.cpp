// Convolutions of NHWC images: forward, gradient of the input, gradient of the weight.
//
// Implicit matrix products: for one output position the taps that lie in the image are a few runs
// of memory, the same for every image of the batch. So the rows of a tile are the images (or
// neighbouring positions, when there are few images), its columns the output channels, and padding
// is never read or multiplied.
#include "families.h"
#include "strided.h"
#include "tile.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t parallel_work = 100000;  // multiply-adds that are worth a second thread

// Room on the stack for the segments of one position: at most one a row of taps. A macro, as the
// memory is the calling function's.
#define NEEDLE_SEGMENTS(count) \
    static_cast<Segment<T>*>(  \
        __builtin_alloca(sizeof(Segment<T>) * static_cast<size_t>((count) + 1)))

// An (N, H, W, C) view whose channels, and whose positions in a row, are contiguous.
template <class T>
struct Image {
    T* data;
    int64_t n, h, w, c;
    int64_t image_stride, row_stride;
};

struct Geometry {
    int64_t kernel, stride, padding;

    // The taps k of [0, kernel) for which position * stride + k - padding lies in [0, size).
    int64_t first_tap(int64_t position) const { return max64(0, padding - position * stride); }
    int64_t end_tap(int64_t position, int64_t size) const
    {
        return min64(kernel, size + padding - position * stride);
    }
};

inline int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

inline bool is_packed_image(const Array& a)
{
    bool channels = a.strides[3] == 1 || a.shape[3] == 1;
    bool columns = a.strides[2] == a.shape[3] || a.shape[2] == 1;
    return channels && columns;
}

template <class T>
Image<T> image_of(const Array& a)
{
    return {a.as<T>(), a.shape[0], a.shape[1], a.shape[2], a.shape[3], a.strides[0], a.strides[1]};
}

template <class T>
void copy_4d(T* out, const Array& a)  // out is compact
{
    const int64_t *s = a.strides, *n = a.shape;
    int64_t grain = max64(1, 16384 / max64(1, n[1] * n[2] * n[3]));
    parallel_for(n[0], grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            for (int64_t y = 0; y < n[1]; ++y)
                for (int64_t x = 0; x < n[2]; ++x)
                    for (int64_t c = 0; c < n[3]; ++c)
                        out[((i * n[1] + y) * n[2] + x) * n[3] + c] =
                            a.as<T>()[i * s[0] + y * s[1] + x * s[2] + c * s[3]];
    });
}

// The operand in place, or copied into `buffer` when its layout does not suit; moves `buffer` on.
template <class T>
Image<T> packed_image(const Array& a, T*& buffer)
{
    if (is_packed_image(a)) return image_of<T>(a);
    copy_4d(buffer, a);
    Image<T> image{buffer,
                   a.shape[0],
                   a.shape[1],
                   a.shape[2],
                   a.shape[3],
                   a.shape[1] * a.shape[2] * a.shape[3],
                   a.shape[2] * a.shape[3]};
    buffer += round_up(a.size(), 16);
    return image;
}

inline int64_t packed_elements(const Array& a)
{
    return is_packed_image(a) ? 0 : round_up(a.size(), 16);
}

// Weights as panels of tile_columns output columns: [panel][tap][input][column], zero where there
// is no column. `tap_of[t]` is the tap (ky * kernel + kx) that stands t-th; `transposed` swaps the
// channels' roles.
template <class T>
void pack_weight(const Array& w, bool transposed, const int32_t* tap_order, T* out)
{
    constexpr int64_t width = tile_columns<T>;
    int64_t taps = w.shape[0] * w.shape[1];
    int input_axis = transposed ? 3 : 2, column_axis = transposed ? 2 : 3;
    int64_t inputs = w.shape[input_axis], columns = w.shape[column_axis];
    int64_t input_stride = w.strides[input_axis], column_stride = w.strides[column_axis];
    int64_t panels = ceil_div(columns, width);
    parallel_for(panels * taps, max64(1, 16384 / max64(1, inputs * width)),
                 [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                         int64_t tap = tap_order[i % taps], first = i / taps * width;
                         const T* from = w.as<T>() + tap / w.shape[1] * w.strides[0] +
                                         tap % w.shape[1] * w.strides[1] + first * column_stride;
                         T* to = out + i * inputs * width;
                         int64_t n = min64(width, columns - first);
                         for (int64_t ci = 0; ci < inputs; ++ci) {
                             for (int64_t j = 0; j < n; ++j)
                                 to[j] = from[ci * input_stride + j * column_stride];
                             for (int64_t j = n; j < width; ++j) to[j] = T{};
                             to += width;
                         }
                     }
                 });
}

template <class T>
inline int64_t panel_elements(const Array& w, bool transposed)
{
    int64_t columns = w.shape[transposed ? 2 : 3], inputs = w.shape[transposed ? 3 : 2];
    return ceil_div(columns, tile_columns<T>) * tile_columns<T> * w.shape[0] * w.shape[1] * inputs;
}

inline int64_t int32_slots(int64_t count, int64_t item)
{
    return round_up(ceil_div(count * 4, item), 16);
}

// The products at one output position: `rows` rows that lie `a_stride` apart in the input and
// `c_stride` apart in the output, all columns. Segment b-pointers are those of panel 0.
template <class T>
void run_rows(Segment<T>* segments, int64_t count, int64_t rows, int64_t a_stride, T* c,
              int64_t c_stride, int64_t columns, int64_t panel_stride, const T* bias,
              Activation activation)
{
    constexpr int64_t width = tile_columns<T>;
    for (int64_t j = 0; j < columns; j += width) {
        Tile<T> tile{segments,
                     count,
                     a_stride,
                     width,
                     nullptr,
                     c_stride,
                     min64(width, columns - j),
                     bias == nullptr ? nullptr : bias + j,
                     activation,
                     false,
                     true};
        for (int64_t i = 0; i < rows;) {
            int height = tile_rows_for(rows - i);
            tile.c = c + i * c_stride + j;
            run_tile(height, RowOrder::k_contiguous, tile);
            for (int64_t s = 0; s < count; ++s) segments[s].a += height * a_stride;
            i += height;
        }
        for (int64_t s = 0; s < count; ++s) {
            segments[s].a -= rows * a_stride;
            segments[s].b += panel_stride;
        }
    }
}

// Runs body(image_begin, image_end, row_begin, row_end) over the output's images and rows, split
// over threads by images if there are enough of them, else by rows.
template <class Body>
void split_images(int64_t images, int64_t rows, int64_t work, const Body& body)
{
    bool by_image = images >= 4 * num_threads() || images >= rows;
    int64_t items = by_image ? images : rows;
    int64_t grain = ceil_div(parallel_work, max64(1, work / max64(1, items)));
    parallel_for(items, grain, [&](int64_t begin, int64_t end) {
        if (by_image)
            body(begin, end, int64_t{0}, rows);
        else
            body(int64_t{0}, images, begin, end);
    });
}

// Output positions [x, end) of a row that have the same taps, `step` input elements apart.
struct Run {
    int64_t x, end;
};

// Segments of one output position run -> its tiles, rows being images or positions, whichever is
// more.
template <class T>
void run_positions(Segment<T>* segments, int64_t count, const Run& run, int64_t a_step,
                   int64_t images, int64_t a_image_stride, T* c, int64_t c_step,
                   int64_t c_image_stride, int64_t columns, int64_t panel_stride, const T* bias,
                   Activation activation)
{
    int64_t positions = run.end - run.x;
    bool rows_are_images = images >= positions;
    int64_t outer = rows_are_images ? positions : images;
    int64_t rows = rows_are_images ? images : positions;
    Segment<T>* moved = NEEDLE_SEGMENTS(count);
    for (int64_t i = 0; i < outer; ++i) {
        int64_t shift = i * (rows_are_images ? a_step : a_image_stride);
        for (int64_t s = 0; s < count; ++s)
            moved[s] = {segments[s].a + shift, segments[s].b, segments[s].k};
        run_rows(moved, count, rows, rows_are_images ? a_image_stride : a_step,
                 c + i * (rows_are_images ? c_step : c_image_stride),
                 rows_are_images ? c_image_stride : c_step, columns, panel_stride, bias,
                 activation);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Forward

Geometry geometry_of(const Call& call, int64_t kernel)
{
    return {kernel, static_cast<int64_t>(call.scalars[0]), static_cast<int64_t>(call.scalars[1])};
}

template <class T>
void forward_rows(const Image<T>& x, const T* panels, const Image<T>& out, const Geometry& g,
                  const T* bias, Activation activation, int64_t n0, int64_t n1, int64_t y0,
                  int64_t y1)
{
    constexpr int64_t width = tile_columns<T>;
    int64_t panel_stride = g.kernel * g.kernel * x.c * width;
    Segment<T>* segments = NEEDLE_SEGMENTS(g.kernel);
    for (int64_t oy = y0; oy < y1; ++oy) {
        for (int64_t ox = 0; ox < out.w;) {
            int64_t kx0 = g.first_tap(ox), kx1 = g.end_tap(ox, x.w);
            Run run{ox, ox + 1};
            while (run.end < out.w && g.first_tap(run.end) == kx0 && g.end_tap(run.end, x.w) == kx1)
                ++run.end;
            int64_t count = 0;
            for (int64_t ky = g.first_tap(oy); ky < g.end_tap(oy, x.h) && kx0 < kx1; ++ky) {
                int64_t iy = oy * g.stride + ky - g.padding, ix = ox * g.stride + kx0 - g.padding;
                segments[count++] = {x.data + n0 * x.image_stride + iy * x.row_stride + ix * x.c,
                                     panels + (ky * g.kernel + kx0) * x.c * width,
                                     (kx1 - kx0) * x.c};
            }
            run_positions(segments, count, run, g.stride * x.c, n1 - n0, x.image_stride,
                          out.data + n0 * out.image_stride + oy * out.row_stride + ox * out.c,
                          out.c, out.image_stride, out.c, panel_stride, bias, activation);
            ox = run.end;
        }
    }
}

template <class T>
void conv_typed(const Call& call)
{
    const Array &out = call.arrays[0], &x = call.arrays[1], &w = call.arrays[2],
                &bias = call.arrays[3];
    if (out.size() == 0) return;
    Geometry g = geometry_of(call, w.shape[0]);
    T* buffer = static_cast<T*>(call.workspace);
    Image<T> image = packed_image<T>(x, buffer);
    int32_t* order = reinterpret_cast<int32_t*>(buffer);
    buffer += int32_slots(g.kernel * g.kernel, sizeof(T));
    for (int64_t t = 0; t < g.kernel * g.kernel; ++t) order[t] = static_cast<int32_t>(t);
    pack_weight<T>(w, false, order, buffer);
    const T* panels = buffer;
    buffer += panel_elements<T>(w, false);
    T* bias_copy = nullptr;
    if (bias.data != nullptr) {
        bias_copy = buffer;
        for (int64_t i = 0; i < bias.shape[0]; ++i)
            bias_copy[i] = bias.as<T>()[i * bias.strides[0]];
    }
    Activation activation = static_cast<Activation>(static_cast<int>(call.scalars[2]));
    Image<T> result = image_of<T>(out);
    int64_t work = out.size() * g.kernel * g.kernel * image.c;
    split_images(result.n, result.h, work, [&](int64_t n0, int64_t n1, int64_t y0, int64_t y1) {
        forward_rows<T>(image, panels, result, g, bias_copy, activation, n0, n1, y0, y1);
    });
}

template <class T>
int64_t conv_elements(const Call& call)
{
    const Array &x = call.arrays[1], &w = call.arrays[2];
    return packed_elements(x) + int32_slots(w.shape[0] * w.shape[1], sizeof(T)) +
           panel_elements<T>(w, false) + round_up(w.shape[3], 16);
}

// ---------------------------------------------------------------------------------------------------------------
// Gradient of the input: dx[n, y, x] = sum over taps of dy[n, (y + p - ky) / s, (x + p - kx) / s]
// w[ky, kx]^T
//
// A position takes only the taps whose offset is divisible by the stride. Those lie `stride` apart,
// and the positions of dy they meet run backwards; so the taps are packed by remainder, each group
// in falling order, and a row of taps meets one run of dy.

struct TapGroups {
    int64_t kernel, stride;

    int64_t size(int64_t remainder) const
    {
        return remainder < kernel ? ceil_div(kernel - remainder, stride) : 0;
    }
    int64_t start(int64_t remainder) const
    {
        int64_t first = 0;
        for (int64_t r = 0; r < remainder; ++r) first += size(r);
        return first;
    }
    // Where tap `remainder + j * stride` stands among the taps of its row.
    int64_t place(int64_t remainder, int64_t j) const
    {
        return start(remainder) + size(remainder) - 1 - j;
    }
};

// The taps of one axis that input position `x` meets: j in [first, end) of its remainder's group.
struct TapRange {
    int64_t remainder, first, end;
    int64_t top;  // the output position that tap j = 0 meets; tap j meets top - j
};

inline TapRange taps_of(int64_t x, const Geometry& g, const TapGroups& groups, int64_t outputs)
{
    int64_t remainder = (x + g.padding) % g.stride, top = (x + g.padding) / g.stride;
    return {remainder, max64(0, top - outputs + 1), min64(groups.size(remainder), top + 1), top};
}

inline bool same_taps(const TapRange& a, const TapRange& b)
{
    return a.remainder == b.remainder && a.first == b.first && a.end == b.end;
}

template <class T>
void input_grad_rows(const Image<T>& dy, const T* panels, const Image<T>& dx, const Geometry& g,
                     int64_t n0, int64_t n1, int64_t y0, int64_t y1)
{
    constexpr int64_t width = tile_columns<T>;
    TapGroups groups{g.kernel, g.stride};
    int64_t tap_size = dy.c * width, panel_stride = g.kernel * g.kernel * tap_size;
    Segment<T>* segments = NEEDLE_SEGMENTS(g.kernel);
    for (int64_t y = y0; y < y1; ++y) {
        TapRange ty = taps_of(y, g, groups, dy.h);
        for (int64_t x = 0; x < dx.w;) {
            TapRange tx = taps_of(x, g, groups, dy.w);
            Run run{x, x + 1};
            while (g.stride == 1 && run.end < dx.w &&
                   same_taps(tx, taps_of(run.end, g, groups, dy.w)))
                ++run.end;
            int64_t count = 0;
            for (int64_t j = ty.first; j < ty.end && tx.first < tx.end; ++j) {
                int64_t tap = groups.place(ty.remainder, j) * g.kernel +
                              groups.place(tx.remainder, tx.end - 1);
                const T* from = dy.data + n0 * dy.image_stride + (ty.top - j) * dy.row_stride +
                                (tx.top - tx.end + 1) * dy.c;
                segments[count++] = {from, panels + tap * tap_size, (tx.end - tx.first) * dy.c};
            }
            run_positions(segments, count, run, dy.c, n1 - n0, dy.image_stride,
                          dx.data + n0 * dx.image_stride + y * dx.row_stride + x * dx.c, dx.c,
                          dx.image_stride, dx.c, panel_stride, static_cast<const T*>(nullptr),
                          no_activation);
            x = run.end;
        }
    }
}

template <class T>
void input_grad_typed(const Call& call)
{
    const Array &out = call.arrays[0], &dy = call.arrays[1], &w = call.arrays[2];
    if (out.size() == 0) return;
    Geometry g = geometry_of(call, w.shape[0]);
    T* buffer = static_cast<T*>(call.workspace);
    Image<T> image = packed_image<T>(dy, buffer);
    int32_t* order = reinterpret_cast<int32_t*>(buffer);
    buffer += int32_slots(g.kernel * g.kernel, sizeof(T));
    TapGroups groups{g.kernel, g.stride};
    for (int64_t ky = 0; ky < g.kernel; ++ky)
        for (int64_t kx = 0; kx < g.kernel; ++kx) {
            int64_t place = groups.place(ky % g.stride, ky / g.stride) * g.kernel +
                            groups.place(kx % g.stride, kx / g.stride);
            order[place] = static_cast<int32_t>(ky * g.kernel + kx);
        }
    pack_weight<T>(w, true, order, buffer);
    Image<T> result = image_of<T>(out);
    int64_t work = out.size() * image.c * ceil_div(g.kernel * g.kernel, g.stride * g.stride);
    split_images(result.n, result.h, work, [&](int64_t n0, int64_t n1, int64_t y0, int64_t y1) {
        input_grad_rows<T>(image, buffer, result, g, n0, n1, y0, y1);
    });
}

template <class T>
int64_t input_grad_elements(const Call& call)
{
    const Array &dy = call.arrays[1], &w = call.arrays[2];
    return packed_elements(dy) + int32_slots(w.shape[0] * w.shape[1], sizeof(T)) +
           panel_elements<T>(w, true);
}

// ---------------------------------------------------------------------------------------------------------------
// Gradient of the weight: dw[ky, kx, ci, co] = sum over n, oy, ox of x[n, iy, ix, ci] dy[n, oy, ox,
// co]
//
// For one ky the rows (kx, ci) of dw lie side by side, as the pixels they meet do in x: x is a
// transposed operand, k runs over the images, and every output position adds a segment. Positions
// at the edge meet only a part of the rows.

template <class T>
struct WeightGrad {
    Image<T> x, dy;
    // The last panel of dy where it is not whole: zero-padded to a panel's width, laid out as dy.
    const T* tail;
    T* dw;
    Geometry g;
};

// Rows [r0, r1) of (kx, ci) and the columns [j, j + width) of dw[ky]. k runs over the images of one
// position, or, when a row has more positions than there are images, over the positions of one row
// of an image.
template <class T>
class WeightGradTile {
public:
    WeightGradTile(const WeightGrad<T>& problem, int64_t ky, int64_t r0, int64_t r1, int64_t j)
        : p(problem),
          ky(ky),
          r0(r0),
          r1(r1),
          columns(min64(width, problem.dy.c - j)),
          by_image(problem.x.n >= problem.dy.w)
    {
        bool padded = columns % lanes<T> != 0;
        b = p.dy;
        b.data = padded ? const_cast<T*>(p.tail) : p.dy.data + j;
        if (padded) {
            b.c = width;
            b.row_stride = p.dy.w * width;
            b.image_stride = p.dy.h * b.row_stride;
        }
        target = p.dw + ky * p.g.kernel * p.x.c * p.dy.c + j;
    }

    void run()
    {
        for (int64_t r = r0; r < r1; ++r)
            std::memset(target + r * p.dy.c, 0, static_cast<size_t>(columns) * sizeof(T));
        for (int64_t ox = 0; ox < p.dy.w;) {
            int64_t kx0 = p.g.first_tap(ox), kx1 = p.g.end_tap(ox, p.x.w), end = ox + 1;
            while (end < p.dy.w && p.g.first_tap(end) == kx0 && p.g.end_tap(end, p.x.w) == kx1)
                ++end;
            low = max64(r0, kx0 * p.x.c);
            high = min64(r1, kx1 * p.x.c);
            if (low < high) gather(ox, end);
            flush();
            ox = end;
        }
    }

private:
    static constexpr int64_t width = tile_columns<T>;
    static constexpr int64_t most = 32;

    // Segments of the positions [ox, end), which meet the same rows [low, high).
    void gather(int64_t ox, int64_t end)
    {
        const Geometry& g = p.g;
        int64_t step = by_image ? 1 : end - ox, images = by_image ? 1 : p.x.n,
                depth = by_image ? p.x.n : end - ox;
        for (int64_t oy = 0; oy < p.dy.h; ++oy) {
            int64_t iy = oy * g.stride + ky - g.padding;
            if (iy < 0 || iy >= p.x.h) continue;
            for (int64_t n = 0; n < images; ++n)
                for (int64_t x = ox; x < end; x += step) {
                    const T* from = p.x.data + n * p.x.image_stride + iy * p.x.row_stride +
                                    (x * g.stride - g.padding) * p.x.c + low;
                    add({from, b.data + n * b.image_stride + oy * b.row_stride + x * b.c, depth});
                }
        }
    }

    void add(const Segment<T>& segment)
    {
        if (count == most) flush();
        segments[count++] = segment;
    }

    void flush()
    {
        for (int64_t i = low; i < high && count > 0;) {
            int height = tile_rows_for(high - i);
            Tile<T> tile{segments,
                         count,
                         by_image ? p.x.image_stride : p.g.stride * p.x.c,
                         by_image ? b.image_stride : b.c,
                         target + i * p.dy.c,
                         p.dy.c,
                         columns,
                         nullptr,
                         no_activation,
                         true,
                         false};
            run_tile(height, RowOrder::rows_contiguous, tile);
            for (int64_t s = 0; s < count; ++s) segments[s].a += height;
            i += height;
        }
        count = 0;
    }

    const WeightGrad<T>& p;
    Image<T> b;
    int64_t ky, r0, r1, columns;
    bool by_image;
    T* target;
    Segment<T> segments[most];
    int64_t count = 0, low = 0, high = 0;
};

template <class T>
void copy_tail(const Image<T>& dy, T* out)
{
    constexpr int64_t width = tile_columns<T>;
    int64_t whole = dy.c / width * width, rest = dy.c - whole;
    for (int64_t n = 0; n < dy.n; ++n)
        for (int64_t y = 0; y < dy.h; ++y)
            for (int64_t x = 0; x < dy.w; ++x, out += width) {
                const T* from =
                    dy.data + n * dy.image_stride + y * dy.row_stride + x * dy.c + whole;
                for (int64_t c = 0; c < width; ++c) out[c] = c < rest ? from[c] : T{};
            }
}

template <class T>
void weight_grad_typed(const Call& call)
{
    constexpr int64_t width = tile_columns<T>;
    const Array &dw = call.arrays[0], &x = call.arrays[1], &dy = call.arrays[2];
    if (dw.size() == 0) return;
    T* buffer = static_cast<T*>(call.workspace);
    WeightGrad<T> p{};
    p.g = geometry_of(call, dw.shape[0]);
    p.x = packed_image<T>(x, buffer);
    p.dy = packed_image<T>(dy, buffer);
    p.dw = dw.as<T>();
    if (p.dy.c % lanes<T> != 0) {
        copy_tail(p.dy, buffer);
        p.tail = buffer;
    }
    int64_t row_count = p.g.kernel * p.x.c, panels = ceil_div(p.dy.c, width);
    int64_t row_tiles = ceil_div(row_count, tile_rows), tasks = p.g.kernel * row_tiles * panels;
    int64_t task_work = dy.size() / max64(1, panels) * tile_rows;
    parallel_for(
        tasks, ceil_div(parallel_work, max64(1, task_work)), [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                int64_t ky = t / (row_tiles * panels), tile = t / panels % row_tiles,
                        panel = t % panels;
                int64_t r0 = tile * tile_rows;
                WeightGradTile<T>(p, ky, r0, min64(row_count, r0 + tile_rows), panel * width).run();
            }
        });
}

template <class T>
int64_t weight_grad_elements(const Call& call)
{
    const Array &x = call.arrays[1], &dy = call.arrays[2];
    int64_t tail =
        dy.shape[3] % lanes<T> != 0 ? dy.shape[0] * dy.shape[1] * dy.shape[2] * tile_columns<T> : 0;
    return packed_elements(x) + packed_elements(dy) + tail;
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
