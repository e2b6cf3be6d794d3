// sum, max and min over any axes.
//
// Two strategies, by the memory order of the input: where a reduced axis is the innermost, each
// result is folded along runs of it; where a kept axis is, whole rows of results are accumulated at
// once. Either way the reduced elements, counted in one sequence, are folded pairwise above small
// leaves. float is summed in double. So |error| <= (256 + log2 n) 2^-53 sum|x|, plus half a unit in
// the last place of a float result.
//
// The order of operations depends on shapes, strides and the processor, never on the number of
// threads.
#include "families.h"
#include "reduce_folds.h"

namespace needle::NEEDLE_TARGET {

namespace {

// The tasks of a plan, among threads.
template <class Op, class T>
struct Reducer {
    using Acc = typename Op::template Acc<T>;
    const ReducePlan& plan;
    const Folds<Op, T> folds;

    explicit Reducer(const ReducePlan& of) : plan(of), folds(of) {}

    struct Task {
        const T* in;
        T* out;
        int64_t width;
    };

    Task task(const Call& call, int64_t index) const
    {
        const ReduceAxes& axes = plan.kept;
        int64_t first = index % plan.blocks * plan.width, rest = index / plan.blocks;
        Task found{call.arrays[1].as<T>() + plan.start + first * axes.axis[0].in,
                   call.arrays[0].as<T>() + first * axes.axis[0].out,
                   min64(plan.width, axes.axis[0].size - first)};
        for (int i = 1; i < axes.rank; ++i) {
            int64_t at = rest % axes.axis[i].size;
            rest /= axes.axis[i].size;
            found.in += at * axes.axis[i].in;
            found.out += at * axes.axis[i].out;
        }
        return found;
    }

    // A task, of the reduced elements [begin, end).
    struct Job {
        Task task;
        int64_t begin, end;
        Acc* acc;
    };

    void compute(const Job* jobs, int count) const
    {
        if (plan.in_rows) return compute_rows(jobs, count);
        for (int r = 0; r < count; ++r) {
            const auto& [task, begin, end, acc] = jobs[r];
            if (plan.by_columns || plan.near) {
                folds.fold_neighbours(acc, task.in, task.width, begin, end);
                continue;
            }
            int64_t stride = plan.kept.axis[0].in;
            for (int64_t j = 0; j < task.width; ++j)
                if (plan.reduced.rank > 1)
                    folds.fold_neighbours(acc + j, task.in + j * stride, 1, begin, end);
                else
                    acc[j] = folds.fold(task.in + j * stride, begin, end);
        }
    }

    void compute_rows(const Job* jobs, int count) const
    {
        const int64_t stride = plan.kept.axis[0].in;
        int64_t first = max_width, last = 0, done[places] = {};
        for (int r = 0; r < count; ++r) {
            const auto& [task, begin, end, acc] = jobs[r];
            if constexpr (sizeof(T) >= 4)
                if (plan.in_short_rows)
                    done[r] = folds.fold_short_runs(acc, task.in + begin, stride, end - begin,
                                                    task.width);
            first = min64(first, done[r]);
            last = max64(last, task.width);
        }
        for (int64_t j = first; j < last; ++j) {
            typename Folds<Op, T>::Run runs[places] = {};
            int found = 0;
            for (int r = 0; r < count; ++r) {
                const auto& [task, begin, end, acc] = jobs[r];
                if (done[r] <= j && j < task.width)
                    runs[found++] = {task.in + j * stride + begin, end - begin, acc + j};
            }
            if (found == 1)
                *runs[0].result = folds.template fold_whole<false>(runs[0].p, runs[0].n);
            else
                folds.fold_in_turn(runs, found);
        }
    }

    // Calls body(indices, count) for all in [begin, end); where rows are read in turn, for those of
    // several places at once.
    template <class Body>
    void for_jobs(int64_t begin, int64_t end, const Body& body) const
    {
        int64_t apart = plan.in_turn ? (end - begin) / places : 0;
        for (int64_t i = begin; i < begin + apart; ++i) {
            int64_t indices[places];
            for (int r = 0; r < places; ++r) indices[r] = i + r * apart;
            body(indices, places);
        }
        for (int64_t i = begin + places * apart; i < end; ++i) body(&i, 1);
    }

    void write(const Task& task, const Acc* acc) const
    {
        int64_t stride = plan.kept.axis[0].out;
        for (int64_t j = 0; j < task.width; ++j) task.out[j * stride] = T(acc[j]);
    }

    void run_whole(const Call& call) const
    {
        int64_t elements = plan.width * max64(1, plan.reduced.count);
        int64_t least = ceil_div(grain, elements);
        if (plan.in_turn) least = max64(least, plan.tasks / 64);  // or places are too near
        parallel_for(plan.tasks, least, [&](int64_t begin, int64_t end) {
            Acc acc[places][max_width];
            for_jobs(begin, end, [&](const int64_t* indices, int count) {
                Job jobs[places];
                for (int r = 0; r < count; ++r)
                    jobs[r] = {task(call, indices[r]), 0, plan.reduced.count, acc[r]};
                compute(jobs, count);
                for (int r = 0; r < count; ++r) write(jobs[r].task, acc[r]);
            });
        });
    }

    // Each piece of the reduced elements gives a row of partial results, which are then folded
    // pairwise.
    void run_in_pieces(const Call& call) const
    {
        Acc* partial = static_cast<Acc*>(call.workspace);
        int64_t row = plan.tasks * plan.width, elements = plan.reduced.count;
        parallel_for(plan.tasks * plan.pieces, 1, [&](int64_t begin, int64_t end) {
            for_jobs(begin, end, [&](const int64_t* indices, int count) {
                Job jobs[places];
                for (int r = 0; r < count; ++r) {
                    int64_t piece = indices[r] / plan.tasks, index = indices[r] % plan.tasks;
                    int64_t first = elements * piece / plan.pieces;
                    int64_t last = elements * (piece + 1) / plan.pieces;
                    Acc* acc = partial + piece * row + index * plan.width;
                    jobs[r] = {task(call, index), first, last, acc};
                }
                compute(jobs, count);
            });
        });
        for (int64_t gap = 1; gap < plan.pieces; gap *= 2)
            for (int64_t piece = 0; piece + gap < plan.pieces; piece += 2 * gap)
                fold_partials(partial + piece * row, partial + (piece + gap) * row);
        for (int64_t i = 0; i < plan.tasks; ++i) write(task(call, i), partial + i * plan.width);
    }

    void fold_partials(Acc* into, const Acc* from) const
    {
        for (int64_t i = 0; i < plan.tasks; ++i)
            for (int64_t j = 0; j < min64(plan.width, plan.kept.axis[0].size); ++j) {
                int64_t at = i * plan.width + j;
                into[at] = Op::apply(into[at], from[at]);
            }
    }
};

template <class Op, class T>
void reduce(const Call& call)
{
    ReducePlan plan(call);
    if (plan.kept.count == 0) return;
    Reducer<Op, T> reducer{plan};
    if (plan.pieces > 1)
        reducer.run_in_pieces(call);
    else
        reducer.run_whole(call);
}

int64_t reduce_workspace(const Call& call)
{
    if (call.arrays[1].size() < 2 * piece_elements) return 0;
    ReducePlan plan(call);
    constexpr int64_t widest_acc = 8;
    return plan.pieces > 1 ? plan.pieces * plan.tasks * plan.width * widest_acc : 0;
}

void run_sum(const Call& call)
{
    switch (call.arrays[0].dtype) {
        case DType::float32: reduce<Sum, float>(call); break;
        case DType::float64: reduce<Sum, double>(call); break;
        default: reduce<Sum, uint64_t>(call); break;  // int64, and overflow wraps around
    }
}

template <class Op>
void run_extreme(const Call& call)
{
    switch (call.arrays[0].dtype) {
        case DType::float32: reduce<Op, float>(call); break;
        case DType::float64: reduce<Op, double>(call); break;
        case DType::int32: reduce<Op, int32_t>(call); break;
        case DType::int64: reduce<Op, int64_t>(call); break;
        default: reduce<Op, uint8_t>(call); break;
    }
}

}  // namespace

void add_reduce(Table& table)
{
    table[Kernel::sum] = {run_sum, reduce_workspace};
    table[Kernel::max] = {run_extreme<Max>, reduce_workspace};
    table[Kernel::min] = {run_extreme<Min>, reduce_workspace};
}

}  // namespace needle::NEEDLE_TARGET
