// Matrix products: out = act(out? + a b + bias), batched, with any strides.
//
// B is used in strips, in place or packed, as wide as registers allow: a strip stays in the
// second-level cache while all rows of A run through it, a few at a time, which fit the first-level
// cache. Of large products packed blocks of B stay there instead, so that A is read once for each
// block, and C along its rows, as with a small B below which C is large; and panels of B pass by
// all rows of an A that fits that cache, packed by the tile that reads them first. Products of a
// few rows or columns are thin_product.h's. A result that the caches could not keep goes past them.
// Source: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), where
// A and B have each other's role.
#include "caches.h"
#include "families.h"
#include "pack.h"
#include "strided.h"
#include "thin_product.h"
#include "wrapping.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t block_k = 512;        // so many of few rows of A fit the first-level cache
constexpr int64_t panel_block_k = 192;  // so many of an only panel of B and of few rows of A do
// So many rows of a panel of B fit the first-level cache below a packed A. So many rows of a
// transposed A, 4 KB apart, take half the places that the second-level cache has for them.
constexpr int64_t packed_block_k = 256;
constexpr int64_t block_bytes = 768 << 10;      // of a packed block, where the cache has room
constexpr int64_t line_bytes = 64;              // of a cache
constexpr int64_t warm_bytes = 1536 << 10;      // of A: the second-level cache may keep them
constexpr int64_t few_rows = 4 * tile_rows;     // of A, which do not pay for packing rows of B
constexpr int strip_rows = 6;                   // of a tile of a strip, at most
constexpr int64_t strip_k = 1024;               // so many of its rows fit the second-level cache
constexpr int64_t most_strip_k = 4096;          // of all: A is read again for each strip
constexpr int64_t most_strip_columns = 4096;    // of C, whose rows the strips go through again
constexpr int64_t most_strip_bytes = 3 << 20;   // of a B that many rows use in place
constexpr int64_t rows_worth_packing = 160;     // of A, for strips
constexpr int64_t far_apart = 1792;             // bytes from row to row of B
constexpr int64_t few_rows_k = 400;             // of a strip in place, at most, below few rows
constexpr int64_t least_k = 128;                // of one whose rows share few places
constexpr int64_t strip_group_bytes = 4 << 20;  // of rows of A that are packed together for strips
constexpr int64_t strip_columns_packed = 256;   // so many are worth packing a transposed A
constexpr int64_t fetching_depth = 24;          // of a tile that is long enough to fetch its C
constexpr int64_t least_fetched = 128 << 10;    // bytes of a C that may not be in the caches
constexpr int64_t strips_together = 4;          // at most, where they fit half a second-level cache
constexpr int64_t page_bytes = 4096;
constexpr int64_t few_panels = 4;              // of a B that is used in place by any A
constexpr int64_t group_rows = 8 * tile_rows;  // of A that are packed together
template <class T>  // below so many columns a transposed A stays where it is
constexpr int64_t turned_columns = 8 * tile_columns<T>;
// Panels of B may pass by so many rows of A and more, and by so many columns, where A's rows are
// few, or make so many results, where they are more.
constexpr int64_t passed_rows = 20;
constexpr int64_t passing_columns = 512;
constexpr int64_t passing_results = 32 << 10;
constexpr int64_t columns_worth_packing = 1024;  // of C, for an A whose depth is contiguous
constexpr int64_t panels_together = 8;           // that are fetched along rows of B
constexpr int64_t rows_ahead = 8;     // of B: no processor foresees rows more than 2 KB apart
constexpr int64_t reading_rows = 2;   // multiplying so many rows costs what reading B in place does
constexpr int64_t fetching_rows = 6;  // and so many, what getting it from beyond the second level
constexpr int64_t entry_work = 1000;  // what entering a product of a batch costs
constexpr int64_t packing_rows = 6;   // multiplying so many rows costs what packing B does
constexpr int64_t cut_rows = 4;       // parts of a product are multiples of so many rows
// What a core fetches ahead behind its own columns, another may just have written: beside columns
// of another thread each row costs as much as with so many more.
constexpr int64_t disturbed_columns = 32;

// How a product is divided among threads. Each packs what its part needs: none waits for another.
struct Split {
    int rows, columns;

    int parts() const { return rows * columns; }
};

// What stays in the second-level cache, and what passes by.
enum class Way {
    strips,         // a strip of B, or some; all rows of A pass. Blocks behind the last whole one
    blocks,         // a block of B; all rows of A pass
    along_rows,     // all of a small B; C is written along its rows, of which some are one group
    packed_panels,  // all rows of A; panels of B pass, each packed beforehand
    packing_tiles,  // the same; the tile of the first rows packs the panel that it reads
};

// How a part is cut. All products of a batch, and all parts of one, share a plan.
struct Plan {
    Way way;
    bool pack_a, pack_b;
    bool fetch_b;                // the next panels, from beyond the second-level cache
    bool past_caches;            // C is written once, and would not stay in them
    bool fetch_a;                // the next rows of A, where there is a panel of B only
    bool fetch_c;                // the rows of C that a tile will write
    int64_t depth, columns;      // of one block of B
    int64_t rows;                // of A that run through a block together
    int64_t group;               // rows of A that are packed together, or pass below strips
    int64_t packed_a, packed_b;  // elements

    // What one core fetches ahead behind its panel shall not be what another has just packed.
    int64_t elements() const { return packed_a + packed_b + page_bytes / 4; }
    bool panels_pass() const { return way == Way::packed_panels || way == Way::packing_tiles; }
};

// The size of equal blocks of at most `most` that cover n.
inline int64_t even_block(int64_t n, int64_t most)
{
    return ceil_div(n, max64(1, ceil_div(n, most)));
}

// The rows and columns of the largest of a product's parts, which are cut at whole vectors.
template <class T>
Product<T> largest_part(const Product<T>& p, const Split& split)
{
    Product<T> part = p;
    part.rows = min64(p.rows, ceil_div(ceil_div(p.rows, cut_rows), split.rows) * cut_rows);
    part.columns =
        min64(p.columns, ceil_div(ceil_div(p.columns, lanes<T>), split.columns) * lanes<T>);
    return part;
}

// The columns of a strip, in vectors: as many sums as registers hold.
constexpr int strip_vectors(int64_t rows)
{
    return (tile_rows == 12 ? 4 : 2) * (rows <= 2 ? 2 : 1);
}

template <class T>
constexpr int64_t strip_columns(int64_t rows)
{
    return strip_vectors(rows) * lanes<T>;
}

// Whether a cache has few places for what lies this far apart.
template <class T>
bool collide(int64_t distance)
{
    return distance * static_cast<int64_t>(sizeof(T)) % page_bytes == 0;
}

// Whether the rows of A that pass below strips are packed: where they are contiguous, a tile would
// read six numbers of each cache line, and each k from another page of memory.
template <class T>
bool packs_strip_rows(const Product<T>& p)
{
    return p.a_depth != 1 && p.rows > few_rows && p.columns >= strip_columns_packed;
}

// Whether all rows of A, as many k as are packed together, fit in so many bytes.
template <class T>
bool all_rows_fit(const Product<T>& p, int64_t bytes)
{
    return p.rows * even_block(p.depth, packed_block_k) * static_cast<int64_t>(sizeof(T)) <= bytes;
}

// Panels of B may pass by so many bytes of A, which stay in the second-level cache.
inline int64_t most_kept_bytes() { return min64(block_bytes, caches().second_bytes / 4 * 3); }

// Whether B is small and C hardly fits the second-level cache: written along its rows, which a
// processor foresees, it need not be there. Not where it comes from memory.
template <class T>
bool suits_along_rows(const Product<T>& p)
{
    constexpr int64_t size = sizeof(T);
    int64_t second = caches().second_bytes, c_bytes = p.rows * p.columns * size;
    int64_t least = p.a_depth == 1 ? tile_columns<T> : turned_columns<T>;  // then A is packed
    return p.columns > least && p.rows > few_rows && p.depth <= packed_block_k &&
           p.depth * p.columns * size <= second / 4 && c_bytes > second / 4 * 3 &&
           (c_bytes <= beyond_caches || p.past_caches);
}

// Whether tiles of the first rows shall pack B: only these read it where it lies. A strip, which is
// twice as wide, stays in the second-level cache at best, or is packed beforehand.
template <class T>
bool suits_packing_tiles(const Product<T>& p)
{
    constexpr int64_t size = sizeof(T);
    bool few = p.rows <= few_rows;
    bool enough = few ? p.rows >= passed_rows && p.columns >= passing_columns
                      : p.columns > tile_columns<T> && p.rows * p.columns >= passing_results;
    if (!enough || p.b_column != 1) return false;
    if (p.depth > packed_block_k) {  // C comes again for each block of the depth
        int64_t second = caches().second_bytes, c_bytes = p.rows * p.columns * size;
        if (!all_rows_fit(p, second / 5)) return false;
        if (p.columns <= most_strip_columns && c_bytes > second) return false;
        return true;
    }
    return all_rows_fit(p, most_kept_bytes());
}

// Whether strips are better than blocks. A few rows always gain from them; more do where registers
// are many, unless A or C is so large that reading it again for each strip takes longer.
template <class T>
bool suits_strips(const Product<T>& p)
{
    if (p.a_depth != 1 && p.a_row != 1) return false;
    if (p.rows <= few_rows && p.b_column == 1) return true;
    if (strip_vectors(p.rows) <= tile_vectors) return false;  // no wider than a panel
    if (p.a_depth != 1 && collide<T>(p.a_depth) && !packs_strip_rows(p)) return false;
    if (p.depth > most_strip_k && !collide<T>(p.a_row)) return false;
    return p.columns >= strip_columns<T>(p.rows) &&
           (p.columns <= most_strip_columns || p.depth >= 2 * strip_k);
}

// Whether strips are packed. Where B's columns are contiguous only many rows pay for it, and they
// where B's rows are far apart, or begin anywhere in a cache line.
template <class T>
bool packs_strips(const Product<T>& p)
{
    if (p.b_column != 1) return true;
    if (p.rows < rows_worth_packing) return false;
    const int64_t size = sizeof(T), apart = p.b_depth * size;
    return apart >= far_apart || apart % line_bytes != 0 ||
           p.depth * p.columns * size > most_strip_bytes;
}

// Whether blocks are packed: not for few rows, nor where B is narrow.
template <class T>
bool packs_blocks(const Product<T>& p)
{
    bool narrow = p.columns <= tile_columns<T> || p.b_depth <= few_panels * tile_columns<T>;
    return p.b_column != 1 || !(p.rows <= few_rows || narrow);
}

template <class T>
Way way_of(const Product<T>& p)
{
    if (suits_along_rows(p)) return Way::along_rows;
    if (suits_packing_tiles(p)) return Way::packing_tiles;
    if (suits_strips(p)) return Way::strips;
    bool wide = p.columns >= 4 * p.rows && all_rows_fit(p, most_kept_bytes());
    return wide && packs_blocks(p) ? Way::packed_panels : Way::blocks;
}

// So many rows of a strip that is used in place leave room in the second-level cache: rows that
// lie a multiple of a large power of two apart share its places.
template <class T>
int64_t most_k_in_place(const Product<T>& p)
{
    int64_t apart = p.b_depth * static_cast<int64_t>(sizeof(T));
    int64_t power = max64(1, apart & -apart), most = p.rows <= few_rows ? few_rows_k : strip_k;
    return min64(most, max64(least_k, caches().second_bytes / 4 / power));
}

// Whether B comes from beyond the second-level cache, in which it has to stay beside A and C.
// Blocks of a deeper B are with them there one after the other.
template <class T>
bool beyond_second_level(const Product<T>& p)
{
    int64_t elements = p.depth * p.columns;
    if (p.depth <= packed_block_k) elements += p.rows * (p.depth + p.columns);
    return elements * static_cast<int64_t>(sizeof(T)) > caches().second_bytes;
}

// Multiplying so many rows of A costs what getting B to them does.
template <class T>
int64_t rows_worth_b(const Product<T>& p)
{
    Way way = way_of(p);
    bool in_place = way == Way::packing_tiles || (way == Way::strips && !packs_strips(p));
    return (in_place ? reading_rows : packing_rows) + (beyond_second_level(p) ? fetching_rows : 0);
}

// The split whose largest part is the least work.
template <class T>
Split split_product(const Product<T>& p, int threads)
{
    Split best{1, 1};
    int64_t least = -1;
    if (p.rows * p.columns * p.depth < parallel_work) return best;
    for (int rows = 1; rows <= threads; ++rows) {
        if (threads % rows != 0) continue;
        Split split{rows, threads / rows};
        Product<T> part = largest_part(p, split);
        int64_t work = (part.rows + rows_worth_b(part)) *
                       (part.columns + (split.columns > 1 ? disturbed_columns : 0));
        if (least >= 0 && work >= least) continue;
        least = work;
        best = split;
    }
    return best;
}

// Where the i-th of `parts` parts of n begins, a multiple of `unit`.
inline int64_t cut(int64_t n, int64_t unit, int64_t i, int64_t parts)
{
    return min64(n, ceil_div(n, unit) * i / parts * unit);
}

template <class T>
Product<T> part_of(const Product<T>& p, const Split& split, int64_t index)
{
    int64_t r = index / split.columns, c = index % split.columns;
    int64_t i = cut(p.rows, cut_rows, r, split.rows);
    int64_t j = cut(p.columns, lanes<T>, c, split.columns);
    Product<T> part = p;
    part.rows = cut(p.rows, cut_rows, r + 1, split.rows) - i;
    part.columns = cut(p.columns, lanes<T>, c + 1, split.columns) - j;
    part.a += i * p.a_row;
    part.b += j * p.b_column;
    part.c += i * p.c_row + j;
    if (p.bias != nullptr) part.bias += j;
    if (p.sums != nullptr) part.sums = r == 0 ? p.sums + j : nullptr;
    return part;
}

template <class T>
Plan make_plan(const Product<T>& p)
{
    constexpr int64_t width = tile_columns<T>, size = sizeof(T);
    const int64_t second = caches().second_bytes;
    const bool few = p.rows <= few_rows, turned = p.a_depth != 1;
    // Few rows of a transposed A, or few columns, are as good as packed.
    const bool ready = !turned || (p.a_row == 1 && (few || p.columns <= turned_columns<T>));
    Plan plan{};
    plan.way = way_of(p);
    plan.pack_a = !ready;
    plan.pack_b = true;
    plan.rows = p.rows;
    int64_t most_k = 0;  // where 0: as A wants it
    switch (plan.way) {
        case Way::strips:
            plan.pack_a = packs_strip_rows(p);
            plan.pack_b = packs_strips(p);
            plan.rows = few ? p.rows : plan.pack_a ? strip_rows : tile_rows;
            most_k = plan.pack_b ? strip_k : most_k_in_place(p);
            break;
        case Way::blocks:
            plan.pack_b = packs_blocks(p);
            plan.rows = few ? p.rows : tile_rows;
            break;
        case Way::along_rows:
            plan.pack_b = packs_blocks(p);
            plan.rows = few_rows;
            break;
        case Way::packed_panels: plan.pack_a = true; break;
        case Way::packing_tiles:
            plan.pack_a =
                turned || (few ? collide<T>(2 * p.a_row) : p.columns >= columns_worth_packing);
            break;
    }
    if (most_k == 0)
        most_k = plan.pack_a ? packed_block_k : p.columns <= width ? panel_block_k : block_k;
    plan.depth = max64(1, even_block(p.depth, most_k));

    if (plan.way == Way::strips) {
        constexpr int64_t strip = strip_columns<T>(strip_rows);
        int64_t together = min64(strips_together, second / 2 / (strip * plan.depth * size));
        plan.columns = max64(strip_columns<T>(1), together * strip);
        plan.group = p.rows;
        if (plan.pack_a)
            plan.group =
                round_up(even_block(p.rows, strip_group_bytes / (plan.depth * size)), strip_rows);
    } else {
        int64_t most = width;
        if (!plan.panels_pass())
            most = max64(width, min64(block_bytes, second / 2) / (plan.depth * size));
        plan.columns = plan.pack_b ? round_up(even_block(p.columns, most), width) : p.columns;
        plan.group = plan.pack_a ? max64(plan.rows, group_rows) : plan.rows;
    }
    plan.past_caches =
        plan.way != Way::blocks && plan.depth == p.depth && !p.accumulate && p.past_caches;
    plan.fetch_a = p.columns <= width && p.a_bytes > warm_bytes;
    plan.fetch_b = plan.panels_pass() && beyond_second_level(p);
    plan.fetch_c = !plan.past_caches && p.rows * p.columns * size > least_fetched;
    plan.packed_a = plan.pack_a ? round_up(plan.group * plan.depth, 16) : 0;
    plan.packed_b = (plan.pack_b ? plan.columns : width) * plan.depth;
    return plan;
}

// Rows [i0, i1), columns [j0, j1), depth [k0, k1).
struct Block {
    int64_t i0, i1, j0, j1, k0, k1;

    int64_t depth() const { return k1 - k0; }
};

template <class T>
void pack_a(const Product<T>& p, const Plan& plan, const Block& block, T* out)
{
    pack_rows(p.a + block.i0 * p.a_row + block.k0 * p.a_depth, p.a_row, p.a_depth,
              block.i1 - block.i0, block.depth(), plan.rows, out);
}

// Of a B that is read in place only a last panel that is not whole is packed.
template <class T>
void pack_b(const Product<T>& p, const Plan& plan, const Block& block, T* out)
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
Tile<T> tile_below(const Product<T>& p, const Plan& plan, const Block& panel,
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
RowOrder row_order(const Product<T>& p, const Plan& plan)
{
    return plan.pack_a || p.a_row == 1 ? RowOrder::rows_contiguous : RowOrder::k_contiguous;
}

// Calls run(height, index) for all tiles of the rows of a block, with the tile and its segment set.
template <class T, class Run>
void for_rows(const Product<T>& p, const Plan& plan, const Block& block, const T* packed_a,
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
void run_panel(const Product<T>& p, const Plan& plan, const Block& block, const T* packed_a,
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
bool tile_packs(const Plan& plan, const Block& panel)
{
    return plan.way == Way::packing_tiles && panel.j1 - panel.j0 == tile_columns<T>;
}

// The tiles of all rows below one panel of B, which passes by.
template <class T>
void run_passing_panel(const Product<T>& p, const Plan& plan, const Block& block, const T* packed_a,
                       T* packed_b)
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
Ahead<T> next_rows(const Product<T>& p, const Plan& plan, const Block& group)
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
Ahead<T> next_group(const Product<T>& p, const Plan& plan, const Block& group, int64_t i)
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
void run_block(const Product<T>& p, const Plan& plan, const Block& block, T* packed_a,
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
void run_strip_tile(const Product<T>& p, const Plan& plan, const Block& block, const T* packed_a,
                    const T* b, int64_t b_stride)
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
void run_strip_tile(int64_t rows, const Product<T>& p, const Plan& plan, const Block& block,
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
void run_rows_below(const Product<T>& p, const Plan& plan, const Block& strips, const T* packed_a,
                    const T* b, int64_t b_stride, int64_t width, int64_t b_next)
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
void run_strips(const Product<T>& p, const Plan& plan, const Block& group, const T* packed_a,
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
void run_blocks(const Product<T>& p, const Plan& plan, Block block, T* packed_a, T* packed_b)
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
void run_part(const Product<T>& p, const Plan& plan, T* workspace)
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

// How products of one shape are divided and cut.
template <class T>
struct Cut {
    Split split;
    Plan plan;

    Cut(const Product<T>& p, int threads)
        : split(split_product(p, threads)), plan(make_plan(largest_part(p, split)))
    {
    }
};

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
