// Matrix products: out = act(out? + a b + bias), batched, with any strides.
//
// Goto's algorithm. Depth is cut so that a panel of B stays in the first-level cache while all
// tiles below it use it, rows so that a packed block of A stays in the second-level cache. Packing
// and multiplying are loops of their own, so threads share what is packed. Source: Goto and van de
// Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), section 4.
#include "families.h"
#include "pack.h"
#include "strided.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t block_k = 384;  // a panel of B in the first-level cache
// A B that is read in place, and from beyond the second-level cache, is read a few whole rows at a
// time: a panel of all its depth would touch a new page with every row.
constexpr int64_t streamed_k = 32;
constexpr int64_t cached_bytes = 1 << 20;
constexpr int64_t block_rows = 64 * tile_rows;   // A block of a thread: second-level cache
constexpr int64_t shared_rows = 4 * block_rows;  // A block of all threads
constexpr int64_t shared_columns = 4096;         // B block of all threads
constexpr int64_t parallel_work = 100000;        // multiply-adds that are worth a second thread
constexpr int64_t packing_grain = 1 << 14;       // elements packed that are worth one

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
};

// How a product is cut: read from the sizes alone, so the workspace can be computed before the
// call.
struct Plan {
    int64_t depth, rows, columns;  // of one block
    bool pack_a, pack_b;
    // Each thread packs the panels of B that it is about to use: none is used by another thread.
    bool pack_as_used;
    int threads, row_threads, column_threads;
    int64_t packed_a, packed_b;  // elements of the packed blocks
};

inline int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// The size of equal blocks of at most `most` that cover n.
inline int64_t even_block(int64_t n, int64_t most)
{
    return ceil_div(n, max64(1, ceil_div(n, most)));
}

// Threads as rows times columns, so that the largest part has the fewest tiles.
template <class T>
void split_threads(const Product<T>& p, int threads, Plan& plan)
{
    plan.threads = threads;
    int64_t row_tiles = ceil_div(min64(p.rows, plan.rows), tile_rows);
    int64_t column_tiles = ceil_div(min64(p.columns, plan.columns), tile_columns<T>);
    int64_t fewest = -1;
    for (int split = 1; split <= threads; ++split) {
        if (threads % split != 0) continue;
        int64_t tiles = ceil_div(row_tiles, split) * ceil_div(column_tiles, threads / split);
        if (fewest >= 0 && tiles >= fewest) continue;
        fewest = tiles;
        plan.row_threads = split;
        plan.column_threads = threads / split;
    }
}

template <class T>
Plan make_plan(const Product<T>& p, int threads)
{
    Plan plan{};
    bool a_in_place = p.a_depth == 1 || p.a_row == 1;
    plan.pack_a = !a_in_place || p.columns > 8 * tile_columns<T>;
    plan.pack_b = p.b_column != 1 || (p.rows > 4 * tile_rows && p.columns > tile_columns<T>);
    bool streams = !plan.pack_b && p.depth * p.columns * int64_t{sizeof(T)} > cached_bytes;
    plan.depth = even_block(p.depth, streams ? streamed_k : block_k);
    plan.rows = plan.pack_a ? round_up(even_block(p.rows, shared_rows), tile_rows) : p.rows;
    plan.columns = plan.pack_b ? shared_columns : p.columns;
    if (p.rows * p.columns * p.depth < parallel_work) threads = 1;
    split_threads(p, threads, plan);
    plan.pack_as_used = plan.pack_b && plan.row_threads == 1 && p.rows <= block_rows;
    if (plan.pack_as_used) plan.columns = p.columns;

    if (plan.pack_a) plan.packed_a = round_up(min64(plan.rows, p.rows) * plan.depth, 16);
    int64_t panels = plan.pack_as_used ? threads
                     : plan.pack_b     ? ceil_div(min64(plan.columns, p.columns), tile_columns<T>)
                                       : 1;
    plan.packed_b = panels * tile_columns<T> * plan.depth;
    return plan;
}

inline int64_t plan_elements(const Plan& plan) { return plan.packed_a + plan.packed_b; }

// Rows [i0, i1), columns [j0, j1), depth [k0, k1).
struct Block {
    int64_t i0, i1, j0, j1, k0, k1;

    int64_t depth() const { return k1 - k0; }
};

// body(begin, end) over packed rows or columns, on the threads of the plan.
template <class Body>
void for_packed(const Plan& plan, int64_t n, int64_t depth, int64_t tile, const Body& body)
{
    int64_t grain = plan.threads == 1 ? n + 1 : ceil_div(packing_grain, depth);
    parallel_for(n, grain, tile, body);
}

template <class T>
void pack_block_rows(const Product<T>& p, const Plan& plan, const Block& block, T* out)
{
    const T* a = p.a + block.i0 * p.a_row + block.k0 * p.a_depth;
    for_packed(plan, block.i1 - block.i0, block.depth(), tile_rows,
               [&](int64_t begin, int64_t end) {
                   pack_rows(a + begin * p.a_row, p.a_row, p.a_depth, end - begin, block.depth(),
                             out + begin * block.depth());
               });
}

template <class T>
void pack_block_columns(const Product<T>& p, const Plan& plan, const Block& block, T* out)
{
    const T* b = p.b + block.k0 * p.b_depth + block.j0 * p.b_column;
    for_packed(plan, block.j1 - block.j0, block.depth(), tile_columns<T>,
               [&](int64_t begin, int64_t end) {
                   pack_columns(b + begin * p.b_column, p.b_depth, p.b_column, end - begin,
                                block.depth(), out + begin * block.depth());
               });
}

// The tiles of rows [i0, i1) below one panel of B. packed_a begins with the row `first_row`.
template <class T>
void run_panel(const Product<T>& p, const Plan& plan, const Block& block, int64_t first_row,
               const T* packed_a, const T* b, int64_t b_stride)
{
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
    for (int64_t i = block.i0; i < block.i1;) {
        int height = tile_rows_for(block.i1 - i);
        tile.c = p.c + i * p.c_row + block.j0;
        if (plan.pack_a) {
            segment.a = packed_a + (i - first_row) * depth;
            tile.a_stride = height;
        } else {
            segment.a = p.a + i * p.a_row + block.k0 * p.a_depth;
        }
        run_tile(height, order, tile);
        i += height;
    }
}

// The part of a block that one thread computes.
template <class T>
void run_part(const Product<T>& p, const Plan& plan, const Block& block, const Block& part,
              const T* packed_a, T* packed_b)
{
    constexpr int64_t width = tile_columns<T>;
    int64_t depth = block.depth();
    for (int64_t i = part.i0; i < part.i1; i += block_rows)
        for (int64_t j = part.j0; j < part.j1; j += width) {
            Block panel{i,        min64(part.i1, i + block_rows),
                        j,        min64(part.j1, j + width),
                        block.k0, block.k1};
            const T* from = p.b + block.k0 * p.b_depth + j * p.b_column;
            const T* b = from;
            int64_t stride = p.b_depth;
            if (plan.pack_as_used) {
                pack_columns(from, p.b_depth, p.b_column, panel.j1 - j, depth, packed_b);
                b = packed_b;
                stride = width;
            } else if (plan.pack_b || j + width > p.columns) {
                b = packed_b + (plan.pack_b ? (j - block.j0) * depth : 0);
                stride = width;
            }
            run_panel(p, plan, panel, block.i0, packed_a, b, stride);
        }
}

// A whole block, both operands packed: the threads' parts are cut at whole tiles.
template <class T>
void run_block(const Product<T>& p, const Plan& plan, const Block& block, const T* packed_a,
               T* packed_b)
{
    int64_t row_tiles = ceil_div(block.i1 - block.i0, tile_rows);
    int64_t panels = ceil_div(block.j1 - block.j0, tile_columns<T>);
    parallel_for(plan.row_threads * plan.column_threads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            int64_t r = t / plan.column_threads, c = t % plan.column_threads;
            auto row = [&](int64_t i) {
                return min64(block.i1, block.i0 + row_tiles * i / plan.row_threads * tile_rows);
            };
            auto column = [&](int64_t i) {
                return min64(block.j1,
                             block.j0 + panels * i / plan.column_threads * tile_columns<T>);
            };
            Block part{row(r), row(r + 1), column(c), column(c + 1), block.k0, block.k1};
            int64_t own = plan.pack_as_used ? t * tile_columns<T> * plan.depth : 0;
            run_part(p, plan, block, part, packed_a, packed_b + own);
        }
    });
}

template <class T>
void run_blocks(const Product<T>& p, const Plan& plan, T* packed_a, T* packed_b)
{
    constexpr int64_t width = tile_columns<T>;
    for (int64_t j = 0; j < p.columns; j += plan.columns)
        for (int64_t k = 0; k < p.depth; k += plan.depth) {
            Block block{
                0, 0, j, min64(p.columns, j + plan.columns), k, min64(p.depth, k + plan.depth)};
            // Of a B that is read in place, a last panel that is not whole is packed.
            Block packed = block;
            if (!plan.pack_b) packed.j0 = p.columns / width * width;
            if (!plan.pack_as_used) pack_block_columns(p, plan, packed, packed_b);
            for (int64_t i = 0; i < p.rows; i += plan.rows) {
                block.i0 = i;
                block.i1 = min64(p.rows, i + plan.rows);
                if (plan.pack_a) pack_block_rows(p, plan, block, packed_a);
                run_block(p, plan, block, packed_a, packed_b);
            }
        }
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
    run_blocks(p, plan, workspace, workspace + plan.packed_a);
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
            call.scalars[1] != 0};
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
