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
#include "caches.h"
#include "conv.h"
#include "families.h"

namespace needle::NEEDLE_TARGET {

namespace {

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
    bool fetches_rows;  // of the next block, whose images exceed the second-level cache

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
            const bool is_last = b + 1 == block_end;
            ahead = is_last ? Ahead<T>{} : next_input(tile_end - tile_begin);
            int64_t panels_entered = 0;
            for (int64_t t = tile_begin; t < tile_end;) {
                int64_t tap = t % panel_tiles / row_tiles;
                int64_t end = min64(tile_end, (t / row_tiles + 1) * row_tiles);
                if (t == tile_begin || t % panel_tiles == 0) {
                    enter_panel(t / panel_tiles);
                    if (p.fetches_rows)
                        ahead = is_last ? Ahead<T>{} : next_rows(panels_entered++, panel_tiles);
                }
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
        if (p.copies || p.plan.row_blocks > 1 || x.image_stride <= 0) return {};
        int64_t runs = block_positions / fetch_interval;
        int64_t length = ceil_div(p.plan.block_images * x.image_stride, runs * tiles);
        return {x.at(n1, 0, 0), runs, length, length};
    }

    // What each of a panel's `tiles` tiles fetches, where a block is some rows of an image: of the
    // next block's x with the first panel, of its dy with the second.
    Ahead<T> next_rows(int64_t panel, int64_t tiles) const
    {
        const Axis& axis = p.vertical;
        int64_t x_row = max64(0, (y1 - 1) * axis.stride - axis.padding + axis.kernel);
        if (panel == 0) return rows_ahead(x, x_row, p.plan.block_rows * axis.stride, tiles);
        return panel == 1 ? rows_ahead(p.dy, y1, p.plan.block_rows, tiles) : Ahead<T>{};
    }

    // Rows from y on, two cache lines at a time: behind the last the next image follows.
    Ahead<T> rows_ahead(const Image<T>& image, int64_t y, int64_t rows, int64_t tiles) const
    {
        constexpr int64_t length = 2 * 64 / static_cast<int64_t>(sizeof(T));
        const T* at = y < image.h ? image.at(n0, y, 0) : image.at(n0 + 1, 0, 0);
        return {at, ceil_div(ceil_div(rows * image.row_stride, length), tiles), length, length};
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
        Walks lines{};
        if (oy0 < oy1 && ox0 < ox1) {
            lines = nest_walks({ox1 - ox0, p.horizontal.stride * x.pixel_stride, b.pixel_stride},
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
        Tile<T> tile{
            .segments = segments,
            .segment_count = count,
            .a_stride = lines.rows.a,
            .b_stride = lines.rows.c,
            .c = nullptr,
            .c_stride = p.dy.c,
            .columns = columns,
            .bias = nullptr,
            .activation = no_activation,
            .accumulate = !first,
            .finish = false,
        };
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
    p.fetches_rows = p.plan.row_blocks > 1 && !p.copies && p.x.row_stride > 0 &&
                     p.x.n * p.x.image_stride * int64_t{sizeof(T)} > caches().second_bytes;
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
void conv_weight_grad(const Call& call)
{
    with_float(call.arrays[0].dtype, [&](auto zero) { weight_grad_typed<decltype(zero)>(call); });
}
int64_t conv_weight_grad_workspace(const Call& call)
{
    int64_t bytes = 0;
    with_float(call.arrays[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        bytes = weight_grad_elements<T>(call) * int64_t{sizeof(T)};
    });
    return bytes;
}

}  // namespace

void add_conv_weight_grad(Table& table)
{
    table[Kernel::conv_weight_grad] = {conv_weight_grad, conv_weight_grad_workspace};
}

}  // namespace needle::NEEDLE_TARGET
