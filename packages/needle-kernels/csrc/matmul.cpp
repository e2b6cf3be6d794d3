// Matrix products: out = act(out? + a b + bias), batched, with any strides.
//
// Goto's algorithm: B is packed in blocks that fit the second-level cache, as panels as wide as a
// register tile; A is packed in blocks of rows when it is read often enough to pay for that, and
// read in place otherwise. Source: Goto and van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication" (2008), section 4.
#include "families.h"
#include "strided.h"
#include "tile.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t block_k = 320;  // a B panel of block_k x tile_columns fits the first-level cache
// A B that is read in place, and from beyond the second-level cache, is read a few whole rows at a
// time: a panel of all its depth would touch a new page with every row.
constexpr int64_t streamed_k = 32;
constexpr int64_t cached_bytes = 1 << 20;
constexpr int64_t block_rows = 12 * tile_rows;  // A block: second-level cache
constexpr int64_t block_columns = 1024;         // B block: second-level cache
constexpr int64_t parallel_work = 100000;       // multiply-adds that are worth a second thread

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
    int64_t depth;  // of one block
    bool pack_a, pack_b;
    int row_threads, column_threads;
    int64_t rows, columns;               // of one thread, rounded up to whole tiles
    int64_t a_panel_size, b_block_size;  // elements of the two packed buffers of one thread
};

inline int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// The size of equal blocks of at most `most` that cover n.
inline int64_t even_block(int64_t n, int64_t most)
{
    return ceil_div(n, max64(1, ceil_div(n, most)));
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

    if (p.rows * p.columns * p.depth < parallel_work) threads = 1;
    int64_t row_tiles = ceil_div(p.rows, tile_rows),
            column_tiles = ceil_div(p.columns, tile_columns<T>);
    int64_t best = -1;
    for (int split = 1; split <= threads; ++split) {
        if (threads % split != 0) continue;
        int64_t rows = ceil_div(row_tiles, split),
                columns = ceil_div(column_tiles, threads / split);
        if (best >= 0 && rows * columns >= best) continue;
        best = rows * columns;
        plan.row_threads = split;
        plan.column_threads = threads / split;
        plan.rows = rows * tile_rows;
        plan.columns = columns * tile_columns<T>;
    }
    plan.a_panel_size = plan.pack_a ? min64(plan.rows, block_rows) * plan.depth : 0;
    int64_t packed_columns = plan.pack_b ? min64(plan.columns, block_columns) : tile_columns<T>;
    plan.b_block_size = packed_columns * plan.depth;
    return plan;
}

inline int64_t thread_elements(const Plan& plan)
{
    return round_up(plan.a_panel_size, 16) + round_up(plan.b_block_size, 16);
}

// Panels of tile_rows rows, each [depth][rows of this panel].
template <class T>
void pack_rows(const T* a, int64_t row_stride, int64_t depth_stride, int64_t rows, int64_t depth,
               T* out)
{
    for (int64_t i = 0; i < rows;) {
        int panel = tile_rows_for(rows - i);
        const T* from = a + i * row_stride;
        for (int64_t k = 0; k < depth; ++k)
            for (int r = 0; r < panel; ++r) *out++ = from[r * row_stride + k * depth_stride];
        i += panel;
    }
}

// One panel, [depth][tile_columns]; columns that do not exist are zero.
template <class T>
void pack_columns(const T* b, int64_t depth_stride, int64_t column_stride, int64_t depth,
                  int64_t columns, T* out)
{
    constexpr int64_t width = tile_columns<T>;
    if (column_stride == 1 && columns == width) {
        for (int64_t k = 0; k < depth; ++k)
            for (int v = 0; v < tile_vectors; ++v)
                store(out + k * width + v * lanes<T>, load(b + k * depth_stride + v * lanes<T>));
        return;
    }
    if (columns < width) std::memset(out, 0, static_cast<size_t>(depth * width) * sizeof(T));
    constexpr int64_t run = 16;  // of k: a cache line of a transposed B
    for (int64_t k0 = 0; k0 < depth; k0 += run) {
        int64_t k_end = min64(depth, k0 + run);
        for (int64_t j = 0; j < columns; ++j)
            for (int64_t k = k0; k < k_end; ++k)
                out[k * width + j] = b[k * depth_stride + j * column_stride];
    }
}

// The part of C that one thread computes: rows and columns [begin, end).
struct Part {
    int64_t row_begin, row_end, column_begin, column_end;
};

// One block: `rows` rows from i0 on, the columns [j0, j1), the depth [k0, k0 + depth). B is already
// packed.
template <class T>
void run_block(const Product<T>& p, const Plan& plan, int64_t i0, int64_t rows, int64_t j0,
               int64_t j1, int64_t k0, int64_t depth, const T* packed_a, const T* packed_b)
{
    constexpr int64_t width = tile_columns<T>;
    bool rows_contiguous = plan.pack_a || p.a_row == 1;
    for (int64_t j = j0; j < j1; j += width) {
        int64_t columns = min64(width, j1 - j);
        bool packed = plan.pack_b || columns < width;
        const T* b = packed ? packed_b + (plan.pack_b ? (j - j0) * depth : 0)
                            : p.b + k0 * p.b_depth + j * p.b_column;
        Segment<T> segment{nullptr, b, depth};
        Tile<T> tile{&segment,
                     1,
                     0,
                     packed ? width : p.b_depth,
                     nullptr,
                     p.c_row,
                     columns,
                     p.bias == nullptr ? nullptr : p.bias + j,
                     p.activation,
                     p.accumulate || k0 > 0,
                     k0 + depth == p.depth};
        for (int64_t i = 0; i < rows;) {
            int height = tile_rows_for(rows - i);
            tile.c = p.c + (i0 + i) * p.c_row + j;
            if (plan.pack_a) {
                segment.a = packed_a + i * depth;
                tile.a_stride = height;
            } else {
                segment.a = p.a + (i0 + i) * p.a_row + k0 * p.a_depth;
                tile.a_stride = p.a_row == 1 ? p.a_depth : p.a_row;
            }
            run_tile(height, rows_contiguous ? RowOrder::rows_contiguous : RowOrder::k_contiguous,
                     tile);
            i += height;
        }
    }
}

template <class T>
void run_part(const Product<T>& p, const Plan& plan, const Part& part, T* packed_a, T* packed_b)
{
    constexpr int64_t width = tile_columns<T>;
    for (int64_t j0 = part.column_begin; j0 < part.column_end; j0 += block_columns) {
        int64_t j1 = min64(part.column_end, j0 + block_columns);
        for (int64_t k0 = 0; k0 < p.depth; k0 += plan.depth) {
            int64_t depth = min64(plan.depth, p.depth - k0);
            // All panels, or only the last one when it is not whole.
            int64_t first = plan.pack_b ? j0 : j0 + (j1 - j0) / width * width;
            for (int64_t j = first; j < j1; j += width)
                pack_columns(p.b + k0 * p.b_depth + j * p.b_column, p.b_depth, p.b_column, depth,
                             min64(width, j1 - j), packed_b + (plan.pack_b ? (j - j0) * depth : 0));
            int64_t step = plan.pack_a ? block_rows : part.row_end - part.row_begin;
            for (int64_t i0 = part.row_begin; i0 < part.row_end; i0 += step) {
                int64_t rows = min64(step, part.row_end - i0);
                if (plan.pack_a)
                    pack_rows(p.a + i0 * p.a_row + k0 * p.a_depth, p.a_row, p.a_depth, rows, depth,
                              packed_a);
                run_block(p, plan, i0, rows, j0, j1, k0, depth, packed_a, packed_b);
            }
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
    int64_t stride = thread_elements(plan);
    parallel_for(plan.row_threads * plan.column_threads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            int64_t i = t / plan.column_threads, j = t % plan.column_threads;
            Part part{min64(p.rows, i * plan.rows), min64(p.rows, (i + 1) * plan.rows),
                      min64(p.columns, j * plan.columns), min64(p.columns, (j + 1) * plan.columns)};
            T* packed_a = workspace + t * stride;
            run_part(p, plan, part, packed_a, packed_a + round_up(plan.a_panel_size, 16));
        }
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
    int64_t stride = thread_elements(make_plan(first, 1));
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
    if (batch_in_parallel(batch)) return thread_elements(make_plan(p, 1)) * num_threads();
    Plan plan = make_plan(p, num_threads());
    return thread_elements(plan) * plan.row_threads * plan.column_threads;
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
