// The loop over arrays of one shape and any strides, for the kernels that work element by element.
//
// Axes are put in the order of the output's memory and merged where they are one run for every
// operand; what remains is cut into blocks of rows x columns, which threads share. Row functions
// see only contiguous memory: an operand that is not gets copied, block by block, through a buffer
// in the cache.
#pragma once

#include <cstdint>
#include <cstring>

#include "caches.h"
#include "call.h"
#include "parallel.h"
#include "simd.h"

// The next loop's iterations are independent (an output may be an input, but then element by
// element).
#if defined(__clang__)
#define NEEDLE_VECTORIZE _Pragma("clang loop vectorize(assume_safety)")
#else
#define NEEDLE_VECTORIZE _Pragma("GCC ivdep")
#endif

namespace needle::NEEDLE_TARGET {

// N operands of one shape; the first is the output. Axis 0 is the innermost; strides count bytes.
template <int N>
struct Nest {
    int rank = 0;
    bool empty = false;
    int64_t shape[max_rank];
    int64_t strides[N][max_rank];
    char* data[N];
    int64_t item[N];

    int64_t size() const
    {
        int64_t n = 1;
        for (int i = 0; i < rank; ++i) n *= shape[i];
        return empty ? 0 : n;
    }

    // Of all operands, as if none were repeated.
    int64_t bytes() const
    {
        int64_t each = 0;
        for (int k = 0; k < N; ++k) each += item[k];
        return size() * each;
    }

    void swap_axes(int i, int j)
    {
        auto swap = [](int64_t& a, int64_t& b) {
            int64_t t = a;
            a = b;
            b = t;
        };
        swap(shape[i], shape[j]);
        for (int k = 0; k < N; ++k) swap(strides[k][i], strides[k][j]);
    }

    // Whether axis i should be inside axis j: the output decides, then the other operands.
    bool inside(int i, int j) const
    {
        for (int k = 0; k < N; ++k) {
            int64_t a = magnitude(strides[k][i]), b = magnitude(strides[k][j]);
            if (a != b) return a < b;
        }
        return false;
    }

    // Whether axis j continues axis i for every operand.
    bool mergeable(int i, int j) const
    {
        for (int k = 0; k < N; ++k)
            if (strides[k][j] != strides[k][i] * shape[i]) return false;
        return true;
    }
};

template <int N>
inline Nest<N> make_nest(const Array* arrays)
{
    Nest<N> nest;
    for (int k = 0; k < N; ++k) {
        nest.data[k] = static_cast<char*>(arrays[k].data);
        nest.item[k] = item_size(arrays[k].dtype);
    }
    for (int axis = arrays[0].rank - 1; axis >= 0; --axis) {
        int64_t n = arrays[0].shape[axis];
        if (n == 0) nest.empty = true;
        if (n == 1) continue;
        int at = nest.rank++;
        nest.shape[at] = n;
        bool backwards = arrays[0].strides[axis] < 0;
        for (int k = 0; k < N; ++k) {
            int64_t stride = arrays[k].strides[axis] * nest.item[k];
            if (backwards && n > 0) {
                nest.data[k] += (n - 1) * stride;
                stride = -stride;
            }
            nest.strides[k][at] = stride;
        }
        for (; at > 0 && nest.inside(at, at - 1); --at) nest.swap_axes(at, at - 1);
    }
    int merged = 0;
    for (int axis = 1; axis < nest.rank; ++axis) {
        if (nest.mergeable(merged, axis)) {
            nest.shape[merged] *= nest.shape[axis];
        } else {
            ++merged;
            if (merged != axis) nest.swap_axes(merged, axis);
        }
    }
    if (nest.rank > 0) {
        nest.rank = merged + 1;
    } else {
        nest.rank = 1;
        nest.shape[0] = 1;
        for (int k = 0; k < N; ++k) nest.strides[k][0] = nest.item[k];
    }
    return nest;
}

struct NoScratch {};

// Calls body(data, rows, columns, scratch) for every block; axis 0 is cut into `columns`, axis 1
// into `rows`, and data[k] points at the block's first element of operand k. Each range
// of blocks has a Scratch of its own.
template <int N, class Scratch = NoScratch, class Body>
void for_blocks(const Nest<N>& nest, int64_t rows, int64_t columns, int64_t grain, const Body& body)
{
    int64_t step[max_rank], count[max_rank], total = 1;
    for (int axis = 0; axis < nest.rank; ++axis) {
        step[axis] = axis == 0 ? columns : axis == 1 ? rows : 1;
        count[axis] = ceil_div(nest.shape[axis], step[axis]);
        total *= count[axis];
    }
    int64_t block_size =
        min64(columns, nest.shape[0]) * (nest.rank > 1 ? min64(rows, nest.shape[1]) : 1);
    parallel_for(total, ceil_div(grain, block_size), [&](int64_t begin, int64_t end) {
        Scratch scratch;
        int64_t at[max_rank];
        char* data[N];
        for (int k = 0; k < N; ++k) data[k] = nest.data[k];
        int64_t rest = begin;
        for (int axis = 0; axis < nest.rank; ++axis) {
            at[axis] = rest == 0 ? 0 : rest % count[axis];
            rest = rest == 0 ? 0 : rest / count[axis];
            for (int k = 0; k < N; ++k) data[k] += at[axis] * step[axis] * nest.strides[k][axis];
        }
        for (int64_t block = begin; block < end; ++block) {
            int64_t block_columns = min64(columns, nest.shape[0] - at[0] * columns);
            int64_t block_rows = nest.rank > 1 ? min64(rows, nest.shape[1] - at[1] * rows) : 1;
            body(data, block_rows, block_columns, scratch);
            for (int axis = 0; axis < nest.rank; ++axis) {
                int64_t move =
                    ++at[axis] < count[axis] ? step[axis] : -(count[axis] - 1) * step[axis];
                for (int k = 0; k < N; ++k) data[k] += move * nest.strides[k][axis];
                if (move > 0) break;
                at[axis] = 0;
            }
        }
    });
}

struct BlockLayout {
    char* data;
    int64_t column_stride;
    int64_t row_stride;
};

struct CopyOptions {
    bool past_caches = false;       // out is written so; its rows start at cache lines
    int64_t results_ahead = 0;      // how many bytes ahead to ask for the memory of contiguous rows
    bool asks_for_rows = true;      // of `in`: where they may not be in the caches
    bool asks_for_columns = false;  // of a transposed `in`
};

// Copies a block of rows x columns items between any two layouts; defined in shape.cpp.
void copy_block(int64_t item, const BlockLayout& out, const BlockLayout& in, int64_t rows,
                int64_t columns, const CopyOptions& options = {});

// The same for one row that becomes contiguous; its stride counts bytes.
void gather_row(int64_t item, char* out, const char* in, int64_t in_stride, int64_t n);

// Computes n contiguous elements of data[0] from data[1], ...; where repeated[k], operand k is one
// value for all of them. Only kernels of three operands are given repeated ones.
using RowFunction = void (*)(char* const* data, const bool* repeated, int64_t n);

// Whether columns of transposed operands are asked for: where not all of a nest is in the caches
// of the cores, for no processor foresees where the next one begins.
template <int N>
bool has_far_columns(const Nest<N>& nest)
{
    return caches().ahead_into_second && nest.bytes() > caches().second_bytes * num_threads();
}

// How the blocks of a nest are cut and how each operand of a block is reached.
template <int N>
struct BlockPlan {
    static constexpr int64_t buffer_items = 1024;
    static constexpr int64_t buffer_bytes = 64 << 10;  // of an operand

    int64_t rows = 1;
    int64_t columns = 4096;
    bool flat = false;  // the rows of a block are short: one call of the row function does them all
    bool buffered[N] = {};
    bool repeated[N] = {};
    bool constant[N] = {};  // buffered, and the same for every block
    bool any_buffered = false;
    bool piecewise = false;         // what is not contiguous is copied by the row function's caller
    bool asks_for_columns = false;  // of transposed operands
    int64_t results_ahead = 0;      // how many bytes ahead to ask for the results' memory

    explicit BlockPlan(Nest<N>& nest)
    {
        if (nest.rank > 1 && nest.shape[0] < 64) {
            flat = !are_apart(nest);
            columns = nest.shape[0];
            rows = buffer_items / columns;
            int64_t line = 64 / nest.item[0];  // so that blocks begin where cache lines do
            if (rows > line) rows -= rows % line;
            rows = min64(nest.shape[1], rows);
        }
        for (int k = 0; k < N; ++k) choose_access(nest, k);
        for (int k = 1; k < N; ++k)
            constant[k] = flat && buffered[k] && varies_along_columns_only(nest, k);
        if (any_buffered && !flat) cut_for_buffers(nest);
    }

private:
    // Whether there are gaps between rows that are long enough to be computed one by one.
    static bool are_apart(const Nest<N>& nest)
    {
        constexpr int64_t least = 32;
        bool apart = false;
        for (int k = 0; k < N; ++k) {
            const int64_t along = nest.strides[k][0], row = nest.shape[0] * nest.item[k];
            if (along != 0 && along != nest.item[k]) return false;
            apart |= along != 0 && nest.strides[k][1] > row;
        }
        return apart && nest.shape[0] >= least;
    }

    void choose_access(const Nest<N>& nest, int k)
    {
        int64_t along = nest.strides[k][0], across = nest.rank > 1 ? nest.strides[k][1] : 0;
        repeated[k] = N > 2 && k > 0 && along == 0 && (!flat || across == 0);
        bool contiguous = along == nest.item[k] && (!flat || across == columns * nest.item[k]);
        buffered[k] = !repeated[k] && !contiguous;
        any_buffered |= buffered[k];
    }

    static bool varies_along_columns_only(const Nest<N>& nest, int k)
    {
        for (int axis = 1; axis < nest.rank; ++axis)
            if (nest.strides[k][axis] != 0) return false;
        return true;
    }

    // A transposed operand is read in tiles, some lines of each of its columns, so that every cache
    // line it touches is used whole; from memory, more of them.
    void cut_for_buffers(Nest<N>& nest)
    {
        columns = buffer_items;
        int best = 0;
        int64_t smallest = 0;
        for (int k = 0; k < N; ++k)
            for (int axis = 1; buffered[k] && axis < nest.rank; ++axis) {
                int64_t stride = magnitude(nest.strides[k][axis]);
                if (stride < magnitude(nest.strides[k][0]) && (best == 0 || stride < smallest)) {
                    best = axis;
                    smallest = stride;
                }
            }
        piecewise = best == 0 && !buffered[0];
        if (best == 0) return;
        if (best != 1) nest.swap_axes(1, best);
        int64_t item = 0;
        for (int k = 0; k < N; ++k) item = max64(item, nest.item[k]);
        const bool from_memory = nest.bytes() >= beyond_caches;
        columns = min64(from_memory ? 256 : 128, nest.shape[0]);
        rows = (from_memory ? buffer_bytes : buffer_bytes / 4) / (columns * item);
        asks_for_columns = has_far_columns(nest);
    }
};

// Whether results go past the caches: these could not keep results and operands. Where a result
// replaces an operand, its lines have been read anyway, and where operands are small, memory has
// nothing else to read. An operand with gaps counts as far as it reaches, but twice at most; in a
// large third level gaps between rows do not count.
template <int N>
bool streams_results(const Nest<N>& nest)
{
    int64_t written = nest.size() * nest.item[0], read = 0;
    if (written < beyond_caches / 32) return false;  // whatever the operands, sooner
    for (int k = 1; k < N; ++k) {
        if (nest.data[k] == nest.data[0]) return false;
        int64_t bytes = nest.item[k], span = bytes;
        for (int axis = 0; axis < nest.rank; ++axis) {
            if (nest.strides[k][axis] != 0) bytes *= nest.shape[axis];
            span = max64(span, nest.shape[axis] * magnitude(nest.strides[k][axis]));
        }
        const bool gaps_count = !caches().large_third || nest.strides[k][0] != nest.item[k];
        read += gaps_count ? min64(span, 2 * bytes) : bytes;
    }
    return written + read >= 3 * beyond_caches && read >= beyond_caches;
}

// Whether operand k is read from memory item by item, though every cache line. (Strides of up to
// four items are read as whole vectors.)
template <int N>
bool is_spaced(const Nest<N>& nest, int k)
{
    const int64_t stride = nest.strides[k][0];
    return stride > 4 * nest.item[k] && stride <= 64 && nest.size() * stride >= beyond_caches;
}

// Rows of so many bytes are too short for the processor to foresee results behind them.
constexpr int64_t most_short_row = 4096;

// How far ahead results are asked for: where more than a second-level cache holds are written some
// KB at a time, between which the processor does not foresee them.
template <int N>
int64_t results_ahead(const Nest<N>& nest)
{
    bool short_rows = nest.rank > 1 && nest.strides[0][0] == nest.item[0] &&
                      nest.shape[0] * nest.item[0] <= most_short_row;
    bool many = nest.size() * nest.item[0] > caches().second_bytes;
    return short_rows && many ? caches().results_ahead : 0;
}

// Where memory is asked for while rows are read: so many bytes ahead, and from a row's end on `gap`
// more. No processor foresees where rows go on behind a gap. `into_second`: into the second-level
// cache only.
struct Ahead {
    int64_t distance = 0, gap = 0;
    bool into_second = caches().ahead_into_second;

    // For what comes after the `bytes` at p, in a row up to `end`.
    NEEDLE_INLINE void fetch(const void* p, int64_t bytes, const void* end) const
    {
        const char* from = static_cast<const char*>(p);
        fetch(from + distance >= end ? from + gap : from, bytes);
    }

    // The same where `gap` is 0: all rows are dense, or shorter than `distance`.
    NEEDLE_INLINE void fetch(const void* p, int64_t bytes) const
    {
        if (distance == 0) return;
        const char* from = static_cast<const char*>(p) + distance;
        if (into_second)
            for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
        else
            for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
    }
};

// Rows with so many bytes between them have hardly a cache line there.
inline bool are_near(int64_t gap) { return gap >= 0 && gap <= 64; }

// For rows of so many bytes that begin `next` bytes apart.
inline Ahead ahead_in_rows(int64_t distance, int64_t row, int64_t next)
{
    if (distance == 0 || are_near(next - row)) return {distance, 0};
    if (row >= distance) return {distance, next - row};
    return {ceil_div(distance, max64(row, 64)) * next, 0};
}

// Results on their way past the caches, collected until they fill cache lines: rows may end
// anywhere. Each thread has its own.
class StreamWriter {
public:
    ~StreamWriter()
    {
        write();
        end_stream();
    }

    // Where results that belong at `out` are to be computed.
    char* place(char* out)
    {
        if (out != next_) {
            write();
            const auto past_line = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % 64);
            begin_ = end_ = past_line;
            next_ = out;
        }
        return data_ + end_;
    }

    int64_t room() const { return capacity - end_; }  // bytes

    void add(int64_t bytes)
    {
        end_ += bytes;
        next_ += bytes;
        if (end_ == capacity) write();
    }

private:
    static constexpr int64_t capacity = 512;  // 256 and 2048: up to a fifth slower
    char* next_ = nullptr;                    // where the next results belong
    int64_t begin_ = 0, end_ = 0;  // of data_, which starts as a cache line of the results does
    alignas(64) char data_[capacity];

    void write()
    {
        if (begin_ == end_) return;
        constexpr int64_t width = lanes<char>;
        char* const out = next_ - end_;
        int64_t i = min64(round_up(begin_, width), end_);
        std::memcpy(out + begin_, data_ + begin_, static_cast<size_t>(i - begin_));
        for (; i + width <= end_; i += width) stream_store(out + i, load(data_ + i));
        std::memcpy(out + i, data_ + i, static_cast<size_t>(end_ - i));
        begin_ = end_ = 0;
    }
};

// A row function on n elements, some vectors at a time, for results that go past the caches or
// operands that lie a stride apart: reading, computing and writing take turns so often that they
// overlap.
template <int N>
struct PiecewiseRow {
    static constexpr int64_t piece_bytes = 512;

    RowFunction row;
    const BlockPlan<N>& plan;
    int64_t item[N];
    int64_t stride[N];            // in bytes, of the operands; a repeated one has 0
    int64_t piece = piece_bytes;  // elements at a time
    bool streams;
    Ahead ahead[N];  // the first for results that stay in the caches

    // `gathers`: operands lie as in the nest; otherwise buffers hold those that are not contiguous.
    PiecewiseRow(const Nest<N>& nest, const BlockPlan<N>& of, RowFunction function, bool gathers,
                 bool past_caches)
        : row(function), plan(of), streams(past_caches)
    {
        for (int k = 0; k < N; ++k) {
            item[k] = nest.item[k];
            piece = min64(piece, piece_bytes / item[k]);
            stride[k] = plan.repeated[k] ? 0 : gathers ? nest.strides[k][0] : item[k];
        }
        ahead[0] = {plan.results_ahead, 0, false};
        int in_order = 0;
        for (int k = 1; k < N; ++k) in_order += !plan.repeated[k] && !plan.buffered[k];
        const bool whole_rows =
            gathers && !plan.flat && nest.rank > 1 && nest.shape[0] <= plan.columns;
        const bool in_one_run = gathers || plan.flat;  // from block to block
        for (int k = 1; streams && k < N; ++k) {
            const int64_t length = nest.shape[0] * stride[k];
            const int64_t next = whole_rows ? nest.strides[k][1] : 0;
            if (next != 0 && stride[k] > 0 && stride[k] <= 64 && !are_near(next - length))
                ahead[k] = ahead_in_rows(caches().gap_ahead, length, next);
            else if (in_order == 1 && in_one_run && !plan.repeated[k] && !plan.buffered[k])
                ahead[k].distance = caches().operand_ahead;
        }
        if (gathers) read_spaced(nest);
    }

    // Where items lie far apart the processor does not read far enough ahead, and of several such
    // operands it loses track if it reads more than some lines of one before it turns to the next.
    void read_spaced(const Nest<N>& nest)
    {
        if (caches().spaced_ahead == 0) return;
        int spaced = 0;
        for (int k = 1; k < N; ++k) {
            if (!is_spaced(nest, k)) continue;
            ++spaced;
            if (ahead[k].distance == 0) ahead[k] = {caches().spaced_ahead, 0, false};
        }
        for (int k = 0; spaced > 1 && k < N; ++k) piece = min64(piece, 64 / item[k]);
    }

    void run(char* const* data, int64_t n, StreamWriter& writer) const
    {
        alignas(64) char rows[N][piece_bytes];
        char* operands[N];
        for (int64_t i = 0, count; i < n; i += count) {
            char* out = data[0] + i * item[0];
            if (streams) out = writer.place(out);
            count = min64(n - i, streams ? min64(piece, writer.room() / item[0]) : piece);
            ahead[0].fetch(out, count * item[0]);
            for (int k = 1; k < N; ++k)
                ahead[k].fetch(data[k] + i * stride[k], count * stride[k], data[k] + n * stride[k]);
            operands[0] = out;
            for (int k = 1; k < N; ++k) {
                operands[k] = data[k] + i * stride[k];
                if (stride[k] == item[k] || plan.repeated[k]) continue;
                gather_row(item[k], rows[k], operands[k], stride[k], count);
                operands[k] = rows[k];
            }
            row(operands, plan.repeated, count);
            if (streams) writer.add(count * item[0]);
        }
    }
};

template <int N>
struct Buffers {
    StreamWriter writer;
    alignas(64) char data[N][BlockPlan<N>::buffer_bytes];
    int64_t rows[N] = {};  // that a constant operand's buffer already holds
};

constexpr int64_t asked_together = 256;  // so many results, before they are computed

template <int N>
inline void run_block(const Nest<N>& nest, const PiecewiseRow<N>& pieces, char* const* data,
                      int64_t rows, int64_t columns, Buffers<N>& buffers)
{
    const BlockPlan<N>& plan = pieces.plan;
    const Ahead results{plan.results_ahead, 0, false};
    const int64_t elements = rows * columns;
    int64_t each = plan.flat ? elements : columns;  // so many in a call of the row function
    if (plan.flat && results.distance > 0) each = min64(each, asked_together);
    char* from[N];
    int64_t step[N];  // in bytes, from call to call
    for (int k = 0; k < N; ++k) {
        from[k] = data[k];
        const bool in_order = plan.flat ? !plan.repeated[k] : plan.buffered[k];
        const int64_t row_stride = nest.rank > 1 ? nest.strides[k][1] : 0;
        step[k] = in_order ? each * nest.item[k] : plan.flat ? 0 : row_stride;
        if (!plan.buffered[k]) continue;
        BlockLayout strided{data[k], nest.strides[k][0], row_stride};
        from[k] = buffers.data[k];
        if (k == 0 || (plan.constant[k] && buffers.rows[k] >= rows)) continue;
        copy_block(nest.item[k], {from[k], nest.item[k], columns * nest.item[k]}, strided, rows,
                   columns, {.asks_for_columns = plan.asks_for_columns});
        buffers.rows[k] = rows;
    }
    for (int64_t done = 0; done < elements; done += each) {
        const int64_t n = min64(each, elements - done);
        results.fetch(from[0], n * nest.item[0]);
        if (pieces.streams)
            pieces.run(from, n, buffers.writer);
        else
            pieces.row(from, plan.repeated, n);
        for (int k = 0; k < N; ++k) from[k] += step[k];
    }
    if (plan.buffered[0]) {
        BlockLayout strided{data[0], nest.strides[0][0], nest.rank > 1 ? nest.strides[0][1] : 0};
        copy_block(nest.item[0], strided, {buffers.data[0], nest.item[0], columns * nest.item[0]},
                   rows, columns);
    }
}

// Calls one(data, n) for each row of a block, or once for all rows of a flat one.
template <int N, class One>
inline void for_block_rows(const Nest<N>& nest, const BlockPlan<N>& plan, char* const* data,
                           int64_t rows, int64_t columns, const One& one)
{
    if (plan.flat) return one(data, rows * columns);
    char* at[N];
    for (int k = 0; k < N; ++k) at[k] = data[k];
    for (int64_t r = 0; r < rows; ++r) {
        one(at, columns);
        for (int k = 0; k < N && nest.rank > 1; ++k) at[k] += nest.strides[k][1];
    }
}

// Runs `row` over all elements of N arrays of one shape. A thread gets at least `grain` elements.
template <int N>
void run_rows(const Array* arrays, RowFunction row, int64_t grain)
{
    Nest<N> nest = make_nest<N>(arrays);
    if (nest.empty) return;
    BlockPlan<N> plan(nest);
    bool streams = !plan.buffered[0] && streams_results(nest);
    if (!streams && !plan.buffered[0]) plan.results_ahead = results_ahead(nest);
    if (plan.piecewise || (streams && !plan.any_buffered)) {
        PiecewiseRow<N> pieces(nest, plan, row, true, streams);
        auto body = [&](char* const* data, int64_t rows, int64_t columns, StreamWriter& writer) {
            for_block_rows(nest, plan, data, rows, columns,
                           [&](char* const* at, int64_t n) { pieces.run(at, n, writer); });
        };
        for_blocks<N, StreamWriter>(nest, plan.rows, plan.columns, grain, body);
    } else if (plan.any_buffered) {
        PiecewiseRow<N> pieces(nest, plan, row, false, streams);
        auto body = [&](char* const* data, int64_t rows, int64_t columns, Buffers<N>& buffers) {
            run_block<N>(nest, pieces, data, rows, columns, buffers);
        };
        for_blocks<N, Buffers<N>>(nest, plan.rows, plan.columns, grain, body);
    } else {
        const Ahead results{plan.results_ahead, 0, false};
        auto body = [&](char* const* data, int64_t rows, int64_t columns, NoScratch) {
            for_block_rows(nest, plan, data, rows, columns, [&](char* const* at, int64_t n) {
                results.fetch(at[0], n * nest.item[0]);
                row(at, plan.repeated, n);
            });
        };
        for_blocks<N>(nest, plan.rows, plan.columns, grain, body);
    }
}

}  // namespace needle::NEEDLE_TARGET
