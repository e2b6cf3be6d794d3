// How a reduction is cut into tasks: by the memory order of its input.
#pragma once

#include "caches.h"
#include "loops.h"

namespace needle::NEEDLE_TARGET {

struct ReduceAxis {
    int64_t size;
    int64_t in;   // strides in elements
    int64_t out;  // 0 for a reduced axis
};

// Axes in the order of the input's memory, the innermost first; neighbours merged.
struct ReduceAxes {
    int rank = 0;
    int64_t count = 1;
    ReduceAxis axis[max_rank];

    // Broadcast axes (stride 0) come last: they are no run of memory.
    static bool inside(const ReduceAxis& a, const ReduceAxis& b)
    {
        if ((a.in == 0) != (b.in == 0)) return b.in == 0;
        if (magnitude(a.in) != magnitude(b.in)) return magnitude(a.in) < magnitude(b.in);
        return magnitude(a.out) < magnitude(b.out);
    }

    void insert(const ReduceAxis& added)
    {
        count *= added.size;
        if (added.size == 1) return;
        int at = rank++;
        for (; at > 0 && inside(added, axis[at - 1]); --at) axis[at] = axis[at - 1];
        axis[at] = added;
    }

    void merge()
    {
        if (rank == 0) axis[rank++] = {1, 0, 0};
        int merged = 0;
        for (int i = 1; i < rank; ++i) {
            ReduceAxis& last = axis[merged];
            if (axis[i].in == last.in * last.size && axis[i].out == last.out * last.size)
                last.size *= axis[i].size;
            else
                axis[++merged] = axis[i];
        }
        rank = merged + 1;
    }
};

constexpr int64_t max_width = 2048;        // results that one task computes at once
constexpr int64_t grain = 32768;           // elements that pay for a thread
constexpr int64_t piece_elements = 65536;  // of the input, when a reduction is split into pieces
constexpr int64_t piece_rows = 256;        // at least, since each piece ends in a row of results
constexpr int64_t max_pieces = 64;

// Some processors read rows from memory at two places in turn, so many bytes at a time: what is
// next at one place is fetched while the other is read. A Zen 4 adds up 64 MB in 0.7 to 0.95 times
// the time that it needs in order, a Zen 5 in 0.8 (docs/performance.md).
constexpr int places = 2;
inline int64_t bytes_in_turn(bool adds)
{
    if (NEEDLE_VECTOR_BYTES == 64) return 4096;
    return adds && caches().sums_turn_often ? 1024 : 2048;
}

struct ReducePlan {
    ReduceAxes kept, reduced;
    int64_t start = 0;   // where the input begins in memory, from its first element
    bool by_columns;     // a kept axis is the innermost
    bool in_rows;        // the reduced elements of each result lie side by side
    bool in_short_rows;  // and are few
    bool in_turn;        // rows of several places are read in turn
    bool from_memory;    // the input is larger than the caches
    bool near;           // neighbours lie nearer than the rest of a result's elements
    int64_t width;       // results of a task, along kept axis 0
    int64_t blocks;      // tasks along kept axis 0
    int64_t tasks;
    int64_t pieces = 1;  // into which the reduced elements are split, when there are few tasks

    explicit ReducePlan(const Call& call)
    {
        const Array &out = call.arrays[0], &a = call.arrays[1];
        for (int i = a.rank - 1; i >= out.rank; --i) insert_reduced(a.shape[i], a.strides[i]);
        for (int i = out.rank - 1; i >= 0; --i)
            kept.insert({out.shape[i], a.strides[i], out.strides[i]});
        kept.merge();
        reduced.merge();
        bool is_sum = call.kernel == static_cast<int>(Kernel::sum);
        choose_strategy(item_size(a.dtype), is_sum ? 8 : item_size(a.dtype));
        blocks = ceil_div(kept.axis[0].size, width);
        tasks = blocks;
        for (int i = 1; i < kept.rank; ++i) tasks *= kept.axis[i].size;
        if (tasks < 8) {
            int64_t most = by_columns ? min64(max_pieces, reduced.count / piece_rows) : max_pieces;
            pieces = max64(1, min64(most, kept.count * reduced.count / piece_elements));
        }
    }

private:
    // An axis that runs backwards is folded forwards.
    void insert_reduced(int64_t size, int64_t stride)
    {
        if (stride < 0 && size > 0) start += (size - 1) * stride;
        reduced.insert({size, magnitude(stride), 0});
    }

    // `item`, `acc`: bytes of an element, and of one that is folded.
    void choose_strategy(int64_t item, int64_t acc)
    {
        const ReduceAxis &inner_kept = kept.axis[0], &inner_reduced = reduced.axis[0];
        const int64_t count = max64(1, reduced.count);
        const bool dense = inner_reduced.in == 1;
        const bool few = count <= (dense && item >= 4 ? 3 : 8) && inner_kept.size >= 64;
        from_memory = kept.count * count * item >= beyond_caches;
        by_columns = few || ReduceAxes::inside(inner_kept, inner_reduced);
        in_rows = !by_columns && reduced.rank == 1 && dense;
        in_short_rows = in_rows && item >= 4 && count * item <= (from_memory ? 1024 : 4096);
        in_turn = in_rows && from_memory && count >= 24 && caches().in_turn;
        near = reduced.rank > 1 && ReduceAxes::inside(inner_kept, reduced.axis[1]);
        if (by_columns)
            width = columns_of_task(count);
        else if (near)
            width = max64(1, min64(max_width, 65536 / max64(1, inner_reduced.size)));
        else
            width = rows_of_task(item, NEEDLE_VECTOR_BYTES / acc);
    }

    // Few rows are not cut into pieces: threads share their columns.
    int64_t columns_of_task(int64_t rows) const
    {
        if (kept.rank > 1 || rows >= 2 * piece_rows) return max_width;
        return min64(max_width, max64(256, round_up(ceil_div(kept.axis[0].size, 8), 64)));
    }

    // In short rows as many as are folded together, or some times that.
    int64_t rows_of_task(int64_t item, int64_t lanes) const
    {
        int64_t elements = in_turn ? 4096 / item : from_memory ? 4096 : 16384;
        int64_t unit = in_short_rows ? lanes : 1;
        int64_t units = elements / (unit * max64(1, reduced.count));
        return min64(max_width, unit * max64(1, units));
    }
};

}  // namespace needle::NEEDLE_TARGET
