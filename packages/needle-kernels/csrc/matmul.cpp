// Matrix products: out = act(out? + a b + bias), batched, with any strides.
//
// Which operand stays in the second-level cache while the other passes by is the plan's `Way`
// (matmul_plan.h). Mostly a strip of B stays, in place or packed, and all rows of A run through it,
// a few at a time, which fit the first-level cache. Of large products blocks of B stay, so that A
// is read once for each block; where A is small it stays itself, and panels of B pass. Products of
// a few rows or columns are thin_product.h's. A result that the caches could not keep goes past
// them. Source: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008),
// where A and B have each other's role.
#include "families.h"
#include "matmul_plan.h"
#include "strided.h"
#include "thin_product.h"
#include "wrapping.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t fetching_depth = 24;  // of a tile that is long enough to fetch its C
constexpr int64_t panels_together = 8;  // that are fetched along rows of B
constexpr int64_t rows_ahead = 8;       // of B: no processor foresees rows more than 2 KB apart
constexpr int64_t entry_work = 1000;    // what entering a product of a batch costs

// Rows [i0, i1), columns [j0, j1), depth [k0, k1).
struct Block {
    int64_t i0, i1, j0, j1, k0, k1;

    int64_t depth() const { return k1 - k0; }
};

template <class T>
void pack_a(const Product<T>& p, const ProductPlan& plan, const Block& block, T* out)
{
    pack_rows(p.a + block.i0 * p.a_row + block.k0 * p.a_depth, p.a_row, p.a_depth,
              block.i1 - block.i0, block.depth(), plan.rows, out);
}

// Of a B that is read in place only a last panel that is not whole is packed.
template <class T>
void pack_b(const Product<T>& p, const ProductPlan& plan, const Block& block, T* out)
{
    constexpr int64_t width = tile_columns<T>;
    int64_t j = plan.pack_b ? block.j0 : p.columns / width * width;
    if (j < block.j1)
        pack_columns(p.b + block.k0 * p.b_depth + j * p.b_column, p.b_depth, p.b_column,
                     block.j1 - j, block.depth(), out);
}

template <class T>
Vec<double> load_wide(const T* p)
{
    if constexpr (sizeof(T) == sizeof(float))
        return load_widened(p);
    else
        return load(p);
}

// Adds the columns of a block of B to their sums, in double: |error| <= (1024 + blocks) 2^-53
// sum|b|, and half a unit in the last place of a float. The block has just been packed, or will be
// read next.
template <class T>
void add_columns(const Product<T>& p, const Block& block)
{
    constexpr int64_t width = lanes<double>, vectors = 4;
    const T* b = p.b + block.k0 * p.b_depth;
    int64_t j = block.j0;
    for (; p.b_column == 1 && j + vectors * width <= block.j1; j += vectors * width) {
        Vec<double> sums[vectors] = {};
        for (int64_t k = 0; k < block.depth(); ++k)
#pragma GCC unroll 4
            for (int64_t v = 0; v < vectors; ++v)
                sums[v] += load_wide(b + k * p.b_depth + j + v * width);
        for (int64_t v = 0; v < vectors; ++v)
            store(p.sums + j + v * width, load(p.sums + j + v * width) + sums[v]);
    }
    for (; j < block.j1; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < block.depth(); ++k)
            sum += static_cast<double>(b[k * p.b_depth + j * p.b_column]);
        p.sums[j] += sum;
    }
}

// The share-th of `shares` parts of the panels that come after this one and its neighbours. Runs as
// long as some panels are wide let the processor see where they lead.
template <class T>
Ahead<T> next_panels(const Product<T>& p, const Block& block, int64_t share, int64_t shares)
{
    constexpr int64_t width = tile_columns<T>;
    int64_t panel = block.j0 / width, first = round_up(panel + 1, panels_together);
    int64_t columns = min64(panels_together * width, p.columns - first * width);
    if (columns <= 0) return {};
    share += panel % panels_together * shares;
    shares *= panels_together;
    int64_t k0 = block.depth() * share / shares, k1 = block.depth() * (share + 1) / shares;
    const T* at = p.b + (block.k0 + k0) * p.b_depth + first * width;
    return {at, k1 - k0, columns, p.b_depth, 1, true};
}

// The panel of B that will be packed after this one, before its tiles begin.
template <class T>
Ahead<T> next_panel(const Product<T>& p, const Block& block)
{
    int64_t columns = min64(tile_columns<T>, p.columns - block.j1);
    const T* at = p.b + block.k0 * p.b_depth + block.j1 * p.b_column;
    if (columns <= 0) return {};
    if (p.b_column == 1) return {at, block.depth(), columns, p.b_depth};
    if (p.b_depth == 1) return {at, columns, block.depth(), p.b_column};
    return {};
}

// Fetches the share-th of `shares` parts of what lies ahead into the second-level cache.
template <class T>
void fetch_share(const Ahead<T>& ahead, int64_t share, int64_t shares)
{
    constexpr int64_t line = line_bytes / static_cast<int64_t>(sizeof(T));
    for (int64_t r = ahead.rows * share / shares; r < ahead.rows * (share + 1) / shares; ++r)
        for (int64_t j = 0; j < ahead.length; j += line)
            __builtin_prefetch(ahead.at + r * ahead.stride + j, 0, 2);
}

// The tiles of a panel of B, of which one needs its rows yet.
template <class T>
Tile<T> tile_below(const Product<T>& p, const ProductPlan& plan, const Block& panel,
                   const Segment<T>& segment, int64_t b_stride)
{
    return {
        .segments = &segment,
        .segment_count = 1,
        .a_stride = p.a_row == 1 ? p.a_depth : p.a_row,
        .b_stride = b_stride,
        .c = nullptr,
        .c_stride = p.c_row,
        .columns = panel.j1 - panel.j0,
        .bias = p.bias == nullptr ? nullptr : p.bias + panel.j0,
        .activation = p.activation,
        .accumulate = p.accumulate || panel.k0 > 0,
        .finish = panel.k1 == p.depth,
        .past_caches = plan.past_caches,
    };
}

template <class T>
RowOrder row_order(const Product<T>& p, const ProductPlan& plan)
{
    return plan.pack_a || p.a_row == 1 ? RowOrder::rows_contiguous : RowOrder::k_contiguous;
}

// Calls run(height, index) for all tiles of the rows of a block, with the tile and its segment set.
template <class T, class Run>
void for_rows(const Product<T>& p, const ProductPlan& plan, const Block& block, const T* packed_a,
              Segment<T>& segment, Tile<T>& tile, const Run& run)
{
    for (int64_t i = block.i0, index = 0; i < block.i1; ++index) {
        int height = tile_rows_for(block.i1 - i);
        tile.c = p.c + i * p.c_row + block.j0;
        if (plan.pack_a) {
            segment.a = packed_a + (i - block.i0) * block.depth();
            tile.a_stride = height;
        } else {
            segment.a = p.a + i * p.a_row + block.k0 * p.a_depth;
        }
        run(height, index);
        i += height;
    }
}

// The tiles of a few rows below one panel of B.
template <class T>
void run_panel(const Product<T>& p, const ProductPlan& plan, const Block& block, const T* packed_a,
               const T* b, int64_t b_stride, const Ahead<T>& next_a)
{
    Segment<T> segment{nullptr, b, block.depth()};
    Tile<T> tile = tile_below(p, plan, block, segment, b_stride);
    tile.ahead = next_a;
    for_rows(p, plan, block, packed_a, segment, tile, [&](int height, int64_t) {
        run_tile(height, row_order(p, plan), tile);
        tile.ahead = {};
    });
}

// Whether the first tile below this panel of B packs it.
template <class T>
bool tile_packs(const ProductPlan& plan, const Block& panel)
{
    return plan.way == Way::packing_tiles && panel.j1 - panel.j0 == tile_columns<T>;
}

// The tiles of all rows below one panel of B, which passes by.
template <class T>
void run_passing_panel(const Product<T>& p, const ProductPlan& plan, const Block& block,
                       const T* packed_a, T* packed_b)
{
    Segment<T> segment{nullptr, packed_b, block.depth()};
    Tile<T> tile = tile_below(p, plan, block, segment, tile_columns<T>);
    const bool packs = tile_packs<T>(plan, block);
    const int64_t tiles = ceil_div(block.i1 - block.i0, tile_rows);
    const bool fetch_c = plan.fetch_c && (p.accumulate || plan.depth < p.depth);
    const bool fetch_panels = plan.fetch_b && plan.way == Way::packing_tiles;
    const Ahead<T> next_b = plan.fetch_b && !fetch_panels ? next_panel(p, block) : Ahead<T>{};
    for_rows(p, plan, block, packed_a, segment, tile, [&](int height, int64_t index) {
        const Ahead<T> next = fetch_panels ? next_panels(p, block, index, tiles) : Ahead<T>{};
        tile.ahead = fetch_c ? Ahead<T>{tile.c, height, tile.columns, p.c_row} : next;
        tile.then = fetch_c ? &next : nullptr;
        if (packs && index == 0) {
            tile.panel = packed_b;
            segment.b = p.b + block.k0 * p.b_depth + block.j0;
            tile.b_stride = p.b_depth;
            run_packing_tile<T, rows_ahead>(height, row_order(p, plan), tile);
            segment.b = packed_b;
            tile.b_stride = tile_columns<T>;
        } else {
            run_tile(height, row_order(p, plan), tile);
        }
        if (next_b.rows > 0) fetch_share(next_b, index, tiles);
    });
}

// The rows of A that come after this group's, in the order of memory.
template <class T>
Ahead<T> next_rows(const Product<T>& p, const ProductPlan& plan, const Block& group)
{
    int64_t rows = min64(plan.group, p.rows - group.i1);
    const T* at = p.a + group.i1 * p.a_row + group.k0 * p.a_depth;
    if (rows <= 0) return {};
    if (p.a_depth == 1) return {at, rows, group.depth(), p.a_row};
    if (p.a_row == 1) return {at, group.depth(), rows, p.a_depth};
    return {};
}

// What the tiles of the rows from i on fetch of them: each has a share of the depth.
template <class T>
Ahead<T> next_group(const Product<T>& p, const ProductPlan& plan, const Block& group, int64_t i)
{
    if (!plan.fetch_a) return {};
    int64_t share = (i - group.i0) / plan.rows, shares = plan.group / plan.rows;
    Block part = group;
    part.k0 = group.k0 + group.depth() * share / shares;
    part.k1 = group.k0 + group.depth() * (share + 1) / shares;
    return part.depth() > 0 ? next_rows(p, plan, part) : Ahead<T>{};
}

// All rows, below one packed block of B.
template <class T>
void run_block(const Product<T>& p, const ProductPlan& plan, const Block& block, T* packed_a,
               const T* packed_b)
{
    constexpr int64_t width = tile_columns<T>;
    Block group = block;
    for (; group.i0 < block.i1; group.i0 = group.i1) {
        group.i1 = min64(block.i1, group.i0 + plan.group);
        if (plan.pack_a && plan.way != Way::strips) pack_a(p, plan, group, packed_a);
        for (int64_t i = group.i0; i < group.i1; i += plan.rows)
            for (int64_t j = block.j0; j < block.j1; j += width) {
                Block panel{i,        min64(group.i1, i + plan.rows),
                            j,        min64(block.j1, j + width),
                            block.k0, block.k1};
                bool packed = plan.pack_b || j + width > p.columns;
                int64_t offset = plan.pack_b ? (j - block.j0) * block.depth() : 0;
                run_panel(p, plan, panel, packed_a + (i - group.i0) * block.depth(),
                          packed ? packed_b + offset : p.b + block.k0 * p.b_depth + j,
                          packed ? width : p.b_depth, next_group(p, plan, group, i));
            }
    }
}

// One tile of a strip of B, which begins at b.
template <class T, int rows, int vectors = strip_vectors(strip_rows)>
void run_strip_tile(const Product<T>& p, const ProductPlan& plan, const Block& block,
                    const T* packed_a, const T* b, int64_t b_stride)
{
    const T* in_place = p.a + block.i0 * p.a_row + block.k0 * p.a_depth;
    Segment<T> segment{plan.pack_a ? packed_a : in_place, b, block.depth()};
    const int64_t a_stride = p.a_row == 1 ? p.a_depth : p.a_row;
    Tile<T> tile{
        .segments = &segment,
        .segment_count = 1,
        .a_stride = plan.pack_a ? rows : a_stride,
        .b_stride = b_stride,
        .c = p.c + block.i0 * p.c_row + block.j0,
        .c_stride = p.c_row,
        .columns = vectors * lanes<T>,
        .bias = p.bias == nullptr ? nullptr : p.bias + block.j0,
        .activation = p.activation,
        .accumulate = p.accumulate || block.k0 > 0,
        .finish = block.k1 == p.depth,
        .past_caches = plan.past_caches,
    };
    // Of a shallow tile all rows must begin within few k; each takes one k for a line.
    int64_t interval = block.depth() < 64 ? 4 : fetch_interval;
    if (block.depth() >= fetching_depth && plan.fetch_c)
        tile.ahead = {tile.c, rows, tile.columns, p.c_row, interval};
    if (p.a_row == 1)
        run_tile<T, rows, vectors, RowOrder::rows_contiguous, rows_ahead>(tile);
    else
        run_tile<T, rows, vectors, RowOrder::k_contiguous, rows_ahead>(tile);
}

// A tile of `rows` rows of a strip.
template <class T>
void run_strip_tile(int64_t rows, const Product<T>& p, const ProductPlan& plan, const Block& block,
                    const T* a, const T* b, int64_t b_stride)
{
    if (strip_vectors(p.rows) > strip_vectors(strip_rows)) {  // strips are wider for one or two
        if (rows == 1)
            return run_strip_tile<T, 1, strip_vectors(1)>(p, plan, block, a, b, b_stride);
        return run_strip_tile<T, 2, strip_vectors(2)>(p, plan, block, a, b, b_stride);
    }
    switch (rows) {
        case 1: return run_strip_tile<T, 1>(p, plan, block, a, b, b_stride);
        case 2: return run_strip_tile<T, 2>(p, plan, block, a, b, b_stride);
        case 3: return run_strip_tile<T, 3>(p, plan, block, a, b, b_stride);
        case 4: return run_strip_tile<T, 4>(p, plan, block, a, b, b_stride);
        case 5: return run_strip_tile<T, 5>(p, plan, block, a, b, b_stride);
        default: return run_strip_tile<T, 6>(p, plan, block, a, b, b_stride);
    }
}

// A group of rows, cut as pack_rows does it or evenly, below some strips: `width` columns each,
// `b_next` elements apart.
template <class T>
void run_rows_below(const Product<T>& p, const ProductPlan& plan, const Block& strips,
                    const T* packed_a, const T* b, int64_t b_stride, int64_t width, int64_t b_next)
{
    Block block = strips;
    while (block.i0 < strips.i1) {
        int64_t left = strips.i1 - block.i0;
        int64_t rows =
            plan.pack_a ? tile_rows_for(min64(left, strip_rows)) : even_block(left, strip_rows);
        const T* a = packed_a + (block.i0 - strips.i0) * strips.depth();
        const T* at = b;
        for (block.j0 = strips.j0; block.j0 < strips.j1; block.j0 += width, at += b_next)
            run_strip_tile(rows, p, plan, block, a, at, b_stride);
        block.i0 += rows;
    }
}

// A group of rows, below all strips. A strip is wider than a panel, so a tile reads B along its
// rows as fast as caches can deliver it, and is low, so few rows of A have to come. Strips stay in
// the second-level cache until all rows are done; the more of them, the less often A comes.
template <class T>
void run_strips(const Product<T>& p, const ProductPlan& plan, const Block& group, const T* packed_a,
                T* packed_b)
{
    const int64_t width = strip_columns<T>(p.rows), depth = group.depth();
    const int64_t most = plan.pack_b ? plan.columns / width * width : width;
    Block strips = group;
    for (; strips.j0 < group.j1; strips.j0 = strips.j1) {
        strips.j1 = min64(group.j1, strips.j0 + most);
        const T* b = p.b + group.k0 * p.b_depth + strips.j0 * p.b_column;
        if (p.sums != nullptr && group.i0 == 0) add_columns(p, strips);
        if (!plan.pack_b) {
            run_rows_below(p, plan, strips, packed_a, b, p.b_depth, width, width);
            continue;
        }
        pack_columns(b, p.b_depth, p.b_column, strips.j1 - strips.j0, depth, packed_b, width);
        run_rows_below(p, plan, strips, packed_a, packed_b, width, width, width * depth);
    }
}

// The columns from block.j0 on in blocks of B.
template <class T>
void run_blocks(const Product<T>& p, const ProductPlan& plan, Block block, T* packed_a, T* packed_b)
{
    for (; block.j0 < p.columns; block.j0 += plan.columns) {
        block.j1 = min64(p.columns, block.j0 + plan.columns);
        if (!tile_packs<T>(plan, block)) pack_b(p, plan, block, packed_b);
        if (p.sums != nullptr && block.i0 == 0) add_columns(p, block);
        if (plan.panels_pass())
            run_passing_panel(p, plan, block, packed_a, packed_b);
        else
            run_block(p, plan, block, packed_a, packed_b);
    }
}

template <class T>
void run_part(const Product<T>& p, const ProductPlan& plan, T* workspace)
{
    if (run_thin(p)) return;
    T *packed_a = workspace, *packed_b = workspace + plan.packed_a;
    int64_t width = strip_columns<T>(p.rows), whole = p.columns / width * width;
    for (int64_t k = 0; k < p.depth; k += plan.depth) {
        Block block{0, p.rows, 0, p.columns, k, min64(p.depth, k + plan.depth)};
        if (plan.way != Way::strips) {
            if (plan.panels_pass() && plan.pack_a) pack_a(p, plan, block, packed_a);
            run_blocks(p, plan, block, packed_a, packed_b);
            continue;
        }
        do {  // at least once: B's columns may have to be added
            block.i1 = min64(p.rows, block.i0 + plan.group);
            if (plan.pack_a) pack_a(p, plan, block, packed_a);
            run_strips(p, plan, {block.i0, block.i1, 0, whole, block.k0, block.k1}, packed_a,
                       packed_b);
            run_blocks(p, plan, {block.i0, block.i1, whole, p.columns, block.k0, block.k1},
                       packed_a, packed_b);
            block.i0 = block.i1;
        } while (block.i0 < p.rows);
    }
    if (plan.past_caches) end_stream();
}

// A sum of no terms: act(out? + bias).
template <class T>
void run_without_depth(const Product<T>& p)
{
    for (int64_t i = 0; i < p.rows; ++i)
        for (int64_t j = 0; j < p.columns; ++j) {
            T x = p.accumulate ? p.c[i * p.c_row + j] : T{};
            if (p.bias != nullptr) x += p.bias[j];
            Vec<T> y = activate<T>(broadcast(x), p.activation);
            p.c[i * p.c_row + j] = y[0];
        }
}

template <class T>
int64_t product_elements(const Product<T>& p, int threads)
{
    Cut<T> cut(p, threads);
    return cut.split.parts() * cut.plan.elements();
}

template <class T>
void run_product(const Product<T>& p, const Cut<T>& cut, T* workspace)
{
    if (p.depth == 0) return run_without_depth(p);
    if (cut.split.parts() == 1) return run_part(p, cut.plan, workspace);
    parallel_for(cut.split.parts(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            run_part(part_of(p, cut.split, t), cut.plan, workspace + t * cut.plan.elements());
    });
}

// The call's batch: products of one shape, whose operands lie strides apart.
struct Batch {
    int64_t count;
    int rank;  // of the batch axes
};

Batch batch_of(const Array& out)
{
    Batch batch{1, out.rank - 2};
    for (int axis = 0; axis < batch.rank; ++axis) batch.count *= out.shape[axis];
    return batch;
}

int64_t batch_offset(const Array& array, const Batch& batch, int64_t index)
{
    int64_t offset = 0;
    for (int axis = batch.rank - 1; axis >= 0; --axis) {
        offset += index % array.shape[axis] * array.strides[axis];
        index /= array.shape[axis];
    }
    return offset;
}

template <class T>
Product<T> product_of(const Call& call)
{
    const Array &out = call.arrays[0], &a = call.arrays[1], &b = call.arrays[2],
                &bias = call.arrays[3];
    int r = out.rank;
    int64_t a_bytes = out.shape[r - 2] * a.shape[r - 1] * static_cast<int64_t>(sizeof(T));
    return {
        .rows = out.shape[r - 2],
        .columns = out.shape[r - 1],
        .depth = a.shape[r - 1],
        .a = a.as<T>(),
        .a_row = a.strides[r - 2],
        .a_depth = a.strides[r - 1],
        .b = b.as<T>(),
        .b_depth = b.strides[r - 2],
        .b_column = b.strides[r - 1],
        .c = out.as<T>(),
        .c_row = out.strides[r - 2],
        .bias = bias.as<T>(),
        .activation = static_cast<Activation>(static_cast<int>(call.scalars[0])),
        .accumulate = call.scalars[1] != 0,
        .a_bytes = batch_of(out).count * a_bytes / num_threads(),
        .past_caches = may_stream<T>(out),
    };
}

// Products of a batch run side by side when there are enough of them, else each uses all threads.
bool batch_in_parallel(const Batch& batch) { return batch.count >= num_threads(); }

// Tiles write rows of consecutive columns, and read a bias the same way.
bool has_plain_layout(const Call& call)
{
    const Array &out = call.arrays[0], &bias = call.arrays[3];
    bool plain_out = out.strides[out.rank - 1] == 1 || out.shape[out.rank - 1] <= 1;
    return plain_out && (bias.data == nullptr || bias.strides[0] == 1 || bias.shape[0] <= 1);
}

// Any layout and any type, one element at a time.
template <class T>
void matmul_any(const Call& call)
{
    const Array &out = call.arrays[0], &a = call.arrays[1], &b = call.arrays[2],
                &bias = call.arrays[3];
    Batch batch = batch_of(out);
    int r = out.rank;
    Activation activation = static_cast<Activation>(static_cast<int>(call.scalars[0]));
    bool accumulate = call.scalars[1] != 0;
    for (int64_t index = 0; index < batch.count; ++index) {
        T* c = out.as<T>() + batch_offset(out, batch, index);
        const T* left = a.as<T>() + batch_offset(a, batch, index);
        const T* right = b.as<T>() + batch_offset(b, batch, index);
        for (int64_t i = 0; i < out.shape[r - 2]; ++i)
            for (int64_t j = 0; j < out.shape[r - 1]; ++j) {
                T* target = c + i * out.strides[r - 2] + j * out.strides[r - 1];
                Wrapping<T> sum(accumulate ? *target : T{});
                for (int64_t k = 0; k < a.shape[r - 1]; ++k) {
                    Wrapping<T> from_a(left[i * a.strides[r - 2] + k * a.strides[r - 1]]);
                    Wrapping<T> from_b(right[k * b.strides[r - 2] + j * b.strides[r - 1]]);
                    sum = static_cast<Wrapping<T>>(sum + from_a * from_b);
                }
                T x = static_cast<T>(sum);
                if (bias.data != nullptr) x = static_cast<T>(x + bias.as<T>()[j * bias.strides[0]]);
                if constexpr (sizeof(T) >= 4 && T(0.5) != T(0)) {
                    Vec<T> y = activate<T>(broadcast(x), activation);
                    x = y[0];
                }
                *target = x;
            }
    }
}

template <class T>
void matmul_tiled(const Call& call)
{
    Product<T> first = product_of<T>(call);
    Batch batch = batch_of(call.arrays[0]);
    T* workspace = static_cast<T*>(call.workspace);
    bool side_by_side = batch_in_parallel(batch);
    const Cut<T> cut(first, side_by_side ? 1 : num_threads());
    int64_t work = max64(entry_work, first.rows * first.columns * first.depth);
    int64_t grain = side_by_side ? ceil_div(parallel_work, work) : batch.count + 1;
    int64_t stride = product_elements(first, 1);
    int64_t share = ceil_div(max64(batch.count, 1), threads_for(batch.count, grain));
    parallel_shares(batch.count, grain, share, [&](int64_t begin, int64_t end) {
        for (int64_t index = begin; index < end; ++index) {
            Product<T> p = first;
            p.c += batch_offset(call.arrays[0], batch, index);
            p.a += batch_offset(call.arrays[1], batch, index);
            p.b += batch_offset(call.arrays[2], batch, index);
            run_product(p, cut, workspace + begin / share * stride);
        }
    });
}

void drop_axis(Array& array, int axis)
{
    size_t tail = static_cast<size_t>(array.rank - axis - 1) * sizeof(int64_t);
    std::memmove(array.shape + axis, array.shape + axis + 1, tail);
    std::memmove(array.strides + axis, array.strides + axis + 1, tail);
    --array.rank;
}

// A batch that shares b is one product: (B, M, K) (K, N) is (B M, K) (K, N).
Call merge_batch_into_rows(const Call& call, Array (&arrays)[4])
{
    for (int i = 0; i < 4; ++i) arrays[i] = call.arrays[i];
    Array &out = arrays[0], &a = arrays[1], &b = arrays[2];
    while (out.rank > 2) {
        int axis = out.rank - 3, row = out.rank - 2;
        if (out.shape[axis] == 1) {
            for (int i = 0; i < 3; ++i) drop_axis(arrays[i], axis);
            continue;
        }
        bool mergeable = b.strides[axis] == 0 && a.strides[axis] == a.shape[row] * a.strides[row] &&
                         out.strides[axis] == out.shape[row] * out.strides[row];
        if (!mergeable) break;
        for (int i = 0; i < 2; ++i) {
            Array& array = arrays[i];
            array.shape[axis] *= array.shape[row];
            array.strides[axis] = array.strides[row];
            drop_axis(array, row);
        }
        drop_axis(b, axis);
    }
    Call merged = call;
    merged.arrays = arrays;
    return merged;
}

template <class T>
int64_t workspace_elements(const Call& call)
{
    Product<T> p = product_of<T>(call);
    if (batch_in_parallel(batch_of(call.arrays[0]))) return product_elements(p, 1) * num_threads();
    return product_elements(p, num_threads());
}

int64_t matmul_workspace(const Call& call)
{
    Array arrays[4] = {};
    Call merged = merge_batch_into_rows(call, arrays);
    switch (call.arrays[0].dtype) {
        case DType::float32: return workspace_elements<float>(merged) * 4;
        case DType::float64: return workspace_elements<double>(merged) * 8;
        default: return 0;
    }
}

template <class T>
void matmul_float(const Call& call)
{
    Array arrays[4] = {};
    Call merged = merge_batch_into_rows(call, arrays);
    if (call.arrays[0].size() == 0) return;
    if (has_plain_layout(merged))
        matmul_tiled<T>(merged);
    else
        matmul_any<T>(merged);
}

void matmul(const Call& call)
{
    switch (call.arrays[0].dtype) {
        case DType::float32: return matmul_float<float>(call);
        case DType::float64: return matmul_float<double>(call);
        case DType::int32: return matmul_any<int32_t>(call);
        case DType::int64: return matmul_any<int64_t>(call);
        case DType::uint8: return matmul_any<uint8_t>(call);
        case DType::boolean: return matmul_any<bool>(call);
    }
}

// ---- the gradients of a linear layer: dw = x^T dy, and db, the sum of dy's rows

Array transposed(const Array& matrix)
{
    Array turned = matrix;
    for (int axis = 0; axis < 2; ++axis) {
        turned.shape[axis] = matrix.shape[1 - axis];
        turned.strides[axis] = matrix.strides[1 - axis];
    }
    return turned;
}

// The product as a call of matmul.
struct WeightGrad {
    Array arrays[4];
    double scalars[2] = {0, 0};
    Call call;

    explicit WeightGrad(const Call& whole)
        : arrays{whole.arrays[0], transposed(whole.arrays[2]), whole.arrays[3], Array{}},
          call(whole)
    {
        call.arrays = arrays;
        call.scalars = scalars;
    }
    WeightGrad(const WeightGrad&) = delete;
};

// So many numbers for db come first in the workspace: whole cache lines.
int64_t sums_of(const Array& db) { return round_up(db.shape[0], line_bytes / 8); }

int64_t linear_weight_grad_workspace(const Call& call)
{
    return sums_of(call.arrays[1]) * 8 + matmul_workspace(WeightGrad(call).call);
}

template <class T>
void linear_weight_grad_of(const Call& call)
{
    const Array& db = call.arrays[1];
    WeightGrad dw(call);
    Product<T> p = product_of<T>(dw.call);
    p.sums = static_cast<double*>(call.workspace);
    for (int64_t j = 0; j < p.columns; ++j) p.sums[j] = 0;
    if (has_plain_layout(dw.call)) {
        run_product(p, Cut<T>(p, num_threads()), reinterpret_cast<T*>(p.sums + sums_of(db)));
    } else {
        matmul_any<T>(dw.call);
        for (int64_t k = 0; k < p.depth; k += strip_k)
            add_columns(p, Block{0, p.rows, 0, p.columns, k, min64(p.depth, k + strip_k)});
    }
    for (int64_t j = 0; j < p.columns; ++j)
        db.as<T>()[j * db.strides[0]] = static_cast<T>(p.sums[j]);
}

void linear_weight_grad(const Call& call)
{
    with_float(call.arrays[0].dtype,
               [&](auto zero) { linear_weight_grad_of<decltype(zero)>(call); });
}

}  // namespace

void add_matmul(Table& table)
{
    table[Kernel::matmul] = {matmul, matmul_workspace};
    table[Kernel::linear_weight_grad] = {linear_weight_grad, linear_weight_grad_workspace};
}

}  // namespace needle::NEEDLE_TARGET
