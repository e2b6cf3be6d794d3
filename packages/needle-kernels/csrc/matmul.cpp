// Matrix products: out = act(out? + a b + bias), batched, with any strides.
//
// Packed blocks of B stay in the second-level cache, and a few rows of A at a time, which fit the
// first-level cache, run through them: A is read once for each block, and C along its rows, which
// the processor's own prefetching follows. A wide B is packed panel by panel instead, each just
// before all rows of a smaller A use it. Source: Goto and van de Geijn, "Anatomy of
// High-Performance Matrix Multiplication" (2008), where A and B have each other's role.
#include "families.h"
#include "pack.h"
#include "strided.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t block_k = 512;        // so many of few rows of A fit the first-level cache
constexpr int64_t wide_block_k = 256;   // so many rows of a panel of B do
constexpr int64_t panel_block_k = 192;  // so many of an only panel of B and of few rows of A do
// So many of a transposed A that is packed: where its rows lie a multiple of 4 KB apart, more would
// take all places of the second-level cache that such addresses have.
constexpr int64_t transposed_block_k = 160;
// A B that is read in place, and from beyond the second-level cache, is read a few whole rows at a
// time: a panel of all its depth would touch a new page with every row.
constexpr int64_t streamed_k = 32;
constexpr int64_t cached_bytes = 1 << 20;
constexpr int64_t block_bytes = 768 << 10;     // a packed block: second-level cache
constexpr int64_t warm_bytes = 128 << 10;      // of A: it may be left in a cache from its last use
constexpr int64_t few_rows = 4 * tile_rows;    // of A, which may use B in place
constexpr int64_t few_panels = 4;              // of B, which are used in place
constexpr int64_t group_rows = 8 * tile_rows;  // of A that are packed together
constexpr int64_t parallel_work = 100000;      // multiply-adds that are worth a second thread
constexpr int64_t packing_grain = 1 << 14;     // elements packed that are worth one

template <class T>
struct Product {
    int64_t rows, columns, depth;
    const T* a;
    int64_t a_row, a_depth;  // strides
    const T* b;
    int64_t b_depth, b_column;
    T* c;
    int64_t c_row;
    const T* bias;
    Activation activation;
    bool accumulate;
    bool cold;  // A probably lies beyond the second-level cache
};

// How a product is cut: read from the sizes alone, so the workspace can be computed before the
// call.
struct Plan {
    bool pack_a, pack_b;
    bool wide;               // all rows of A are kept, and panels of B pass by
    int64_t depth, columns;  // of one block of B, for each of column_threads
    int64_t rows;            // of A that run through a block together
    int64_t group;           // rows of A that are packed together
    int threads, row_threads, column_threads;
    int64_t packed_a, packed_b;  // elements: for each thread, for each of column_threads
};

inline int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// The size of equal blocks of at most `most` that cover n.
inline int64_t even_block(int64_t n, int64_t most)
{
    return ceil_div(n, max64(1, ceil_div(n, most)));
}

// Threads as rows times columns, so that the largest part is the smallest. Where it makes no
// difference they share no columns and need not wait for each other.
template <class T>
void split_threads(const Product<T>& p, int threads, Plan& plan)
{
    plan.threads = threads;
    int64_t row_tiles = ceil_div(p.rows, tile_rows);
    int64_t column_tiles = ceil_div(p.columns, tile_columns<T>);
    int64_t smallest = -1;
    for (int split = 1; split <= threads; ++split) {
        if (threads % split != 0) continue;
        int64_t rows = min64(p.rows, ceil_div(row_tiles, split) * tile_rows);
        int64_t columns = ceil_div(column_tiles, threads / split);
        if (smallest >= 0 && rows * columns >= smallest) continue;
        smallest = rows * columns;
        plan.row_threads = split;
        plan.column_threads = threads / split;
    }
}

template <class T>
Plan make_plan(const Product<T>& p, int threads)
{
    constexpr int64_t width = tile_columns<T>, size = sizeof(T);
    Plan plan{};
    bool few = p.rows <= few_rows;
    plan.pack_b = p.b_column != 1 || (!few && p.columns > few_panels * width);
    split_threads(p, p.rows * p.columns * p.depth < parallel_work ? 1 : threads, plan);

    int64_t wide_depth = even_block(p.depth, wide_block_k);
    plan.wide = plan.pack_b && plan.row_threads == 1 && p.columns >= 4 * p.rows &&
                p.rows * wide_depth * size <= block_bytes;
    // A few rows that are contiguous along the depth are as good as packed.
    bool ready = p.a_depth == 1 || (p.a_row == 1 && (few || p.columns <= 8 * width));
    plan.pack_a = plan.wide || !ready;
    plan.rows = few || plan.wide ? p.rows : tile_rows;
    plan.group = plan.pack_a ? max64(plan.rows, group_rows) : plan.rows;

    bool streams = !plan.pack_b && p.depth * p.columns * size > cached_bytes;
    int64_t most_k = streams              ? streamed_k
                     : p.columns <= width ? panel_block_k
                     : plan.wide          ? wide_block_k
                     : plan.pack_a        ? transposed_block_k
                                          : block_k;
    plan.depth = even_block(p.depth, most_k);

    int64_t share = ceil_div(ceil_div(p.columns, width), plan.column_threads) * width;
    int64_t most = plan.wide ? width : max64(width, block_bytes / max64(size, plan.depth * size));
    plan.columns = plan.pack_b ? round_up(even_block(share, most), width) : share;
    plan.packed_a = plan.pack_a ? round_up(plan.group * plan.depth, 16) : 0;
    plan.packed_b = (plan.pack_b ? plan.columns : width) * plan.depth;
    return plan;
}

inline int64_t plan_elements(const Plan& plan)
{
    return plan.packed_a * plan.threads + plan.packed_b * plan.column_threads;
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

// The columns of `part`, which lie in `block`. Of a B that is read in place only a last panel that
// is not whole is packed, to the beginning of `out`.
template <class T>
void pack_b(const Product<T>& p, const Plan& plan, const Block& block, const Block& part, T* out)
{
    constexpr int64_t width = tile_columns<T>;
    int64_t begin = part.j0, offset = (part.j0 - block.j0) * block.depth();
    if (!plan.pack_b) {
        begin = max64(begin, p.columns / width * width);
        offset = 0;
    }
    if (begin < part.j1)
        pack_columns(p.b + block.k0 * p.b_depth + begin * p.b_column, p.b_depth, p.b_column,
                     part.j1 - begin, block.depth(), out + offset);
}

// The tiles of a few rows below one panel of B.
template <class T>
void run_panel(const Product<T>& p, const Plan& plan, const Block& block, const T* packed_a,
               const T* b, int64_t b_stride, const Ahead<T>& next_a)
{
    constexpr int64_t width = tile_columns<T>;
    int64_t depth = block.depth();
    RowOrder order =
        plan.pack_a || p.a_row == 1 ? RowOrder::rows_contiguous : RowOrder::k_contiguous;
    Segment<T> segment{nullptr, b, depth};
    Tile<T> tile{&segment,
                 1,
                 p.a_row == 1 ? p.a_depth : p.a_row,
                 b_stride,
                 nullptr,
                 p.c_row,
                 block.j1 - block.j0,
                 p.bias == nullptr ? nullptr : p.bias + block.j0,
                 p.activation,
                 p.accumulate || block.k0 > 0,
                 block.k1 == p.depth};
    tile.ahead = next_a;
    for (int64_t i = block.i0; i < block.i1;) {
        int height = tile_rows_for(block.i1 - i);
        tile.c = p.c + i * p.c_row + block.j0;
        if (plan.pack_a) {
            segment.a = packed_a + (i - block.i0) * depth;
            tile.a_stride = height;
        } else {
            segment.a = p.a + i * p.a_row + block.k0 * p.a_depth;
        }
        if (plan.wide) tile.ahead = {tile.c, height, width, p.c_row};
        run_tile(height, order, tile);
        tile.ahead = {};
        i += height;
    }
}

// What the tiles of the rows from i on, below the panel at column j, fetch of the next group of
// rows of A: each has a share of the depth.
template <class T>
Ahead<T> next_group(const Product<T>& p, const Plan& plan, const Block& group, const Block& part,
                    int64_t i, int64_t j)
{
    constexpr int64_t width = tile_columns<T>;
    int64_t panels = ceil_div(part.j1 - part.j0, width);
    int64_t share = (i - group.i0) / plan.rows * panels + (j - part.j0) / width;
    int64_t shares = plan.group / plan.rows * panels;
    int64_t begin = part.depth() * share / shares;
    int64_t depth = part.depth() * (share + 1) / shares - begin;
    int64_t rows = min64(plan.group, part.i1 - group.i1);
    const T* at = p.a + group.i1 * p.a_row + (part.k0 + begin) * p.a_depth;
    if (!p.cold || rows <= 0 || depth == 0) return {};
    if (p.a_depth == 1) return {at, rows, depth, p.a_row};
    if (p.a_row == 1) return {at, depth, rows, p.a_depth};
    return {};
}

// The rows and columns of `part`, with the block's B packed.
template <class T>
void run_part(const Product<T>& p, const Plan& plan, const Block& block, const Block& part,
              T* packed_a, const T* packed_b)
{
    constexpr int64_t width = tile_columns<T>;
    Block group = part;
    for (; group.i0 < part.i1; group.i0 = group.i1) {
        group.i1 = min64(part.i1, group.i0 + plan.group);
        if (plan.pack_a && !plan.wide) pack_a(p, plan, group, packed_a);
        for (int64_t i = group.i0; i < group.i1; i += plan.rows)
            for (int64_t j = part.j0; j < part.j1; j += width) {
                Block panel{i,       min64(group.i1, i + plan.rows),
                            j,       min64(part.j1, j + width),
                            part.k0, part.k1};
                bool packed = plan.pack_b || j + width > p.columns;
                int64_t offset = plan.pack_b ? (j - block.j0) * block.depth() : 0;
                run_panel(p, plan, panel, packed_a + (i - group.i0) * block.depth(),
                          packed ? packed_b + offset : p.b + block.k0 * p.b_depth + j,
                          packed ? width : p.b_depth, next_group(p, plan, group, part, i, j));
            }
    }
}

// All blocks of a thread that shares its columns with no other.
template <class T>
void run_columns(const Product<T>& p, const Plan& plan, int64_t j0, int64_t j1, T* packed_a,
                 T* packed_b)
{
    for (int64_t k = 0; k < p.depth; k += plan.depth) {
        Block block{0, p.rows, j0, j1, k, min64(p.depth, k + plan.depth)};
        if (plan.pack_a && plan.wide) pack_a(p, plan, block, packed_a);
        for (int64_t j = j0; j < j1; j += plan.columns) {
            block.j0 = j;
            block.j1 = min64(j1, j + plan.columns);
            pack_b(p, plan, block, block, packed_b);
            run_part(p, plan, block, block, packed_a, packed_b);
        }
    }
}

// Where the i-th of `parts` parts of [begin, end) begins: parts are cut at whole tiles.
inline int64_t cut(int64_t begin, int64_t end, int64_t tile, int64_t i, int64_t parts)
{
    return min64(end, begin + ceil_div(end - begin, tile) * i / parts * tile);
}

// One block of B whose columns several threads share: packed by all of them first.
template <class T>
void run_shared(const Product<T>& p, const Plan& plan, const Block& block, T* packed_a, T* packed_b)
{
    constexpr int64_t width = tile_columns<T>;
    int64_t grain = plan.pack_b ? ceil_div(packing_grain, block.depth()) : p.columns;
    parallel_for(block.j1 - block.j0, grain, width, [&](int64_t begin, int64_t end) {
        Block part = block;
        part.j0 = block.j0 + begin;
        part.j1 = block.j0 + end;
        pack_b(p, plan, block, part, packed_b);
    });
    parallel_for(plan.threads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            int64_t r = t / plan.column_threads, c = t % plan.column_threads;
            Block part{cut(0, p.rows, tile_rows, r, plan.row_threads),
                       cut(0, p.rows, tile_rows, r + 1, plan.row_threads),
                       cut(block.j0, block.j1, width, c, plan.column_threads),
                       cut(block.j0, block.j1, width, c + 1, plan.column_threads),
                       block.k0,
                       block.k1};
            run_part(p, plan, block, part, packed_a + t * plan.packed_a, packed_b);
        }
    });
}

template <class T>
void run_blocks(const Product<T>& p, const Plan& plan, T* packed_a, T* packed_b)
{
    if (plan.row_threads == 1) {
        parallel_for(plan.threads, 1, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t)
                run_columns(p, plan, cut(0, p.columns, tile_columns<T>, t, plan.threads),
                            cut(0, p.columns, tile_columns<T>, t + 1, plan.threads),
                            packed_a + t * plan.packed_a, packed_b + t * plan.packed_b);
        });
        return;
    }
    int64_t columns = plan.columns * plan.column_threads;
    for (int64_t j = 0; j < p.columns; j += columns)
        for (int64_t k = 0; k < p.depth; k += plan.depth)
            run_shared(
                p, plan,
                {0, p.rows, j, min64(p.columns, j + columns), k, min64(p.depth, k + plan.depth)},
                packed_a, packed_b);
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
void run_product(const Product<T>& p, int threads, T* workspace)
{
    if (p.depth == 0) return run_without_depth(p);
    Plan plan = make_plan(p, threads);
    run_blocks(p, plan, workspace, workspace + plan.threads * plan.packed_a);
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
    return {out.shape[r - 2],
            out.shape[r - 1],
            a.shape[r - 1],
            a.as<T>(),
            a.strides[r - 2],
            a.strides[r - 1],
            b.as<T>(),
            b.strides[r - 2],
            b.strides[r - 1],
            out.as<T>(),
            out.strides[r - 2],
            bias.as<T>(),
            static_cast<Activation>(static_cast<int>(call.scalars[0])),
            call.scalars[1] != 0,
            batch_of(out).count > 1 || a_bytes > warm_bytes};
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
                T x = accumulate ? *target : T{};
                for (int64_t k = 0; k < a.shape[r - 1]; ++k)
                    x = static_cast<T>(x + left[i * a.strides[r - 2] + k * a.strides[r - 1]] *
                                               right[k * b.strides[r - 2] + j * b.strides[r - 1]]);
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
    int threads = side_by_side ? 1 : num_threads();
    int64_t work = first.rows * first.columns * max64(first.depth, 1);
    int64_t grain = side_by_side ? ceil_div(parallel_work, max64(work, 1)) : batch.count + 1;
    int64_t stride = plan_elements(make_plan(first, 1));
    int64_t share = ceil_div(max64(batch.count, 1), threads_for(batch.count, grain));
    parallel_for(batch.count, grain, share, [&](int64_t begin, int64_t end) {
        for (int64_t index = begin; index < end; ++index) {
            Product<T> p = first;
            p.c += batch_offset(call.arrays[0], batch, index);
            p.a += batch_offset(call.arrays[1], batch, index);
            p.b += batch_offset(call.arrays[2], batch, index);
            run_product(p, threads, workspace + begin / share * stride);
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
    Batch batch = batch_of(call.arrays[0]);
    if (batch_in_parallel(batch)) return plan_elements(make_plan(p, 1)) * num_threads();
    return plan_elements(make_plan(p, num_threads()));
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

}  // namespace

void add_matmul(Table& table) { table[Kernel::matmul] = {matmul, matmul_workspace}; }

}  // namespace needle::NEEDLE_TARGET
