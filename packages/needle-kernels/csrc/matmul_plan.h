// How a matrix product is cut: among threads, and into blocks that stay in the caches.
//
//     tile   results in registers, at most 12 x 32 floats with AVX-512 (tile.h)
//     panel  the columns of B that a tile reads, and as many k as a block has
//     strip  the same twice as wide, for tiles half as high
//     block  some panels, as many as half the second-level cache holds
//     group  rows of A that are packed together, 8 tiles high
//
// A plan depends on shapes, strides and the processor, not on what the operands hold. The numbers
// below were found by timing products of each kind (docs/performance.md).
#pragma once

#include "caches.h"
#include "pack.h"
#include "product.h"

namespace needle::NEEDLE_TARGET {

constexpr int64_t line_bytes = 64;  // of a cache
constexpr int64_t page_bytes = 4096;

// ---- blocks of B, and the few rows of A that stay in the first-level cache below them

constexpr int64_t block_k = 512;            // so many of few rows of A fit that cache
constexpr int64_t panel_block_k = 192;      // so many of an only panel of B and of few rows of A do
constexpr int64_t block_bytes = 768 << 10;  // of a packed block, where the cache has room
constexpr int64_t few_rows = 4 * tile_rows;  // of A, which do not pay for packing rows of B
constexpr int64_t few_panels = 4;            // of a B that is used in place by any A
// So many rows of a panel of B fit the first-level cache below a packed A. So many rows of a
// transposed A, 4 KB apart, take half the places that the second-level cache has for them.
constexpr int64_t packed_block_k = 256;
constexpr int64_t group_rows = 8 * tile_rows;  // of A that are packed together
template <class T>  // below so many columns a transposed A stays where it is
constexpr int64_t turned_columns = 8 * tile_columns<T>;
constexpr int64_t warm_bytes = 1536 << 10;    // of A: the second-level cache may keep them
constexpr int64_t least_fetched = 128 << 10;  // bytes of a C that may not be in the caches

// ---- strips of B

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
constexpr int64_t strips_together = 4;          // at most, where they fit half a second-level cache

// ---- panels of B that pass by all rows of A

// By so many rows of A and more, and so many columns, where A's rows are few; where they are more,
// those that make so many results.
constexpr int64_t passed_rows = 20;
constexpr int64_t passing_columns = 512;
constexpr int64_t passing_results = 32 << 10;
constexpr int64_t columns_worth_packing = 1024;  // of C, for an A whose depth is contiguous

// ---- threads: what bringing B to a part costs, in rows of A that could be multiplied meanwhile

constexpr int64_t reading_rows = 2;   // reading it in place
constexpr int64_t packing_rows = 6;   // packing it
constexpr int64_t fetching_rows = 6;  // and getting it from beyond the second level
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
struct ProductPlan {
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
    const int64_t size = sizeof(T), apart = magnitude(p.b_depth) * size;
    return apart >= far_apart || apart % line_bytes != 0 ||
           p.depth * p.columns * size > most_strip_bytes;
}

// Whether blocks are packed: not for few rows, nor where B is narrow.
template <class T>
bool packs_blocks(const Product<T>& p)
{
    bool narrow =
        p.columns <= tile_columns<T> || magnitude(p.b_depth) <= few_panels * tile_columns<T>;
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
ProductPlan make_plan(const Product<T>& p)
{
    constexpr int64_t width = tile_columns<T>, size = sizeof(T);
    const int64_t second = caches().second_bytes;
    const bool few = p.rows <= few_rows, turned = p.a_depth != 1;
    // Few rows of a transposed A, or few columns, are as good as packed.
    const bool ready = !turned || (p.a_row == 1 && (few || p.columns <= turned_columns<T>));
    ProductPlan plan{};
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

// How products of one shape are divided and cut.
template <class T>
struct Cut {
    Split split;
    ProductPlan plan;

    Cut(const Product<T>& p, int threads)
        : split(split_product(p, threads)), plan(make_plan(largest_part(p, split)))
    {
    }
};

}  // namespace needle::NEEDLE_TARGET
