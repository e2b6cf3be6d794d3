// How elements are folded: runs along the innermost axis, and rows of many results.
//
// Runs are folded into one result each, by vectors whose lanes stay apart to the end; rows are
// folded into a row of results, element by element. Both in small leaves, which are then folded
// pairwise.
#pragma once

#include "reduce_ops.h"
#include "reduce_plan.h"

namespace needle::NEEDLE_TARGET {

template <class Op, class T>
struct Folds {
    using Acc = typename Op::template Acc<T>;
    static constexpr bool widens = sizeof(T) < sizeof(Acc);
    static constexpr int64_t leaf_elements = 512;
    static constexpr int64_t leaf_rows = 128;
    static constexpr int64_t stream_ahead = 2048;  // bytes of rows that are asked for, a stream
    static constexpr int64_t item = sizeof(T);
    static constexpr int64_t line_elements = 64 / item;
    // Sums that grow side by side, so that none waits for its last addition.
    static constexpr int chains = NEEDLE_VECTOR_BYTES < 64 ? 8 : 4;

    // A run whose elements lie within a cache line of each other is read whole, and what lies
    // between them counts as identities. wanted[k]: which lanes of its k-th vector are elements,
    // the same for every `spacing` vectors; and some more, for whoever takes `chains` at a time.
    using Mask = decltype(Vec<Acc>{} == Vec<Acc>{});
    const ReducePlan& plan;
    const Ahead found_ahead, ahead_in_planes;
    const int64_t leaf_vectors;  // about as many vectors are added up before their sums are
    int64_t spacing;
    Mask wanted[line_elements + chains - 1];

    explicit Folds(const ReducePlan& of)
        : plan(of),
          found_ahead(find_ahead()),
          ahead_in_planes(find_ahead_in_planes()),
          leaf_vectors(of.in_turn ? bytes_in_turn(Op::adds) / (lanes<Acc> * item) : 512),
          spacing(of.reduced.axis[0].in)
    {
        for (int64_t k = 0; is_spaced(spacing) && k < spacing + chains - 1; ++k)
            for (int i = 0; i < lanes<Acc>; ++i)
                wanted[k][i] = (k * lanes<Acc> + i) % spacing == 0 ? -1 : 0;
    }

    static bool is_spaced(int64_t stride) { return stride > 1 && stride <= line_elements / 2; }
    static bool is_whole(int64_t stride) { return stride == 1 || is_spaced(stride); }

    static Acc fold_lanes(Vec<Acc> v)
    {
        Acc x[lanes<Acc>];
        store(x, v);
        return fold_halves<lanes<Acc>>(x);
    }

    // n values, the first half of them with the second: as vectors while they fill one of 16 bytes.
    template <int n>
    static Acc fold_halves(Acc* x)
    {
        constexpr int half = n / 2;
        if constexpr (half * sizeof(Acc) >= 16) {
            typedef Acc Half __attribute__((vector_size(half * sizeof(Acc))));
            Half low, high;
            std::memcpy(&low, x, sizeof(Half));
            std::memcpy(&high, x + half, sizeof(Half));
            low = Op::apply(low, high);
            std::memcpy(x, &low, sizeof(Half));
        } else {
            for (int i = 0; i < half; ++i) x[i] = Op::apply(x[i], x[i + half]);
        }
        if constexpr (half == 1)
            return *x;
        else
            return fold_halves<half>(x);
    }

    // a together with the k-th vector of a run, at p.
    template <bool spaced>
    Vec<Acc> take(Vec<Acc> a, const T* p, int64_t k, const Taking<Op, T>& taking) const
    {
        if constexpr (spaced) {
            Vec<Acc> v = load_as(p, Acc{});
            return Op::apply(a, wanted[k] ? v : broadcast(Op::template identity<Acc>));
        } else {
            return taking(a, p);
        }
    }

    // Leaves that are added: 32 one after the other, such sums pairwise. As in a binary counter,
    // sums[k] is of 2^k where bit k of their number is set.
    struct Leaves {
        static constexpr int64_t in_order = 32;
        Vec<Acc> sums[48];
        Vec<Acc> recent = broadcast(Op::template identity<Acc>);
        int64_t number = 0;

        void add(Vec<Acc> leaf)
        {
            recent = Op::apply(recent, leaf);
            if (++number % in_order > 0) return;
            int k = 0;
            for (int64_t bits = number / in_order - 1; bits & 1; bits /= 2)
                recent = Op::apply(sums[k++], recent);
            sums[k] = recent;
            recent = broadcast(Op::template identity<Acc>);
        }

        Vec<Acc> total() const
        {
            Vec<Acc> sum = recent;
            int k = 0;
            for (int64_t bits = number / in_order; bits > 0; bits /= 2, ++k)
                if (bits & 1) sum = Op::apply(sums[k], sum);
            return sum;
        }
    };

    // How many vectors the next leaf has, of `rest` that are left: none is much shorter than
    // others.
    int64_t leaf(int64_t rest) const { return 2 * rest < 3 * leaf_vectors ? rest : leaf_vectors; }

    // In leaves; lanes stay apart.
    template <bool spaced>
    Vec<Acc> fold_vectors(const T* p, int64_t count) const
    {
        const T* end = p + count * lanes<Acc>;
        if (leaf(count) == count) return fold_leaf<spaced>(p, count, 0, end);
        Leaves leaves;
        for (int64_t done = 0, next; done < count; done += next) {
            next = leaf(count - done);
            leaves.add(fold_leaf<spaced>(p + done * lanes<Acc>, next, done, end));
        }
        return leaves.total();
    }

    // Some processors look less far ahead by themselves than memory is away; none foresees what
    // only masked loads read. A small input is in the second level, or has nothing behind its short
    // runs.
    Ahead find_ahead() const
    {
        const ReduceAxis &kept = plan.kept.axis[0], &inner = plan.reduced.axis[0];
        const int64_t run = inner.size * inner.in * item;
        const int64_t bytes = plan.kept.count * plan.reduced.count * item;
        const bool small = bytes <= caches().second_bytes * num_threads();
        if (small || (!plan.from_memory && run < 4096)) return {0, 0};
        const bool masked = plan.in_short_rows && plan.reduced.count <= lanes<Acc>;
        int64_t distance = max64(caches().read_ahead, widens ? caches().widening_ahead : 0);
        if (masked) distance = masked_ahead;
        const bool alone = plan.reduced.rank > 1 && !plan.near;
        if (!alone && kept.size == 1) return {distance, 0};
        const int64_t next = (alone ? plan.reduced.axis[1].in : kept.in) * item;
        if (!are_near(next - run)) distance = max64(distance, caches().gap_ahead);
        return ahead_in_rows(distance, run, next);
    }

    // The same for short runs that make up planes: behind a plane's last comes the first of the
    // next result.
    Ahead find_ahead_in_planes() const
    {
        if (plan.reduced.rank < 2) return {};
        const int64_t next = plan.reduced.axis[1].in * item;
        const int64_t distance = found_ahead.gap != 0 ? next : found_ahead.distance;
        if (plan.reduced.rank > 2) return {distance, 0};
        const int64_t plane = plan.reduced.axis[1].size * next;
        return {min64(distance, plane), plan.kept.axis[0].in * item - plane};
    }

    // `count` vectors, of which p is the `first` of a run up to `end`.
    template <bool spaced>
    Vec<Acc> fold_leaf(const T* p, int64_t count, int64_t first, const T* end) const
    {
        constexpr int64_t step = lanes<Acc>;
        const Ahead ahead = found_ahead;  // or it is read again after each store
        const Taking<Op, T> taking;
        if (count < chains) {
            Vec<Acc> acc = broadcast(Op::template identity<Acc>);
            ahead.fetch(p, count * step * item, end);
            for (int64_t i = 0, k = spaced ? first % spacing : 0; i < count; ++i, ++k, p += step)
                acc = take<spaced>(acc, p, k, taking);
            return acc;
        }
        Vec<Acc> acc[chains];
        for (Vec<Acc>& a : acc) a = broadcast(Op::template identity<Acc>);
        int64_t i = 0, k = spaced ? first % spacing : 0;
        for (; i + chains <= count; i += chains, p += chains * step) {
            ahead.fetch(p, chains * step * item, end);
#pragma GCC unroll 8
            for (int c = 0; c < chains; ++c)
                acc[c] = take<spaced>(acc[c], p + c * step, k + c, taking);
            if (spaced)
                for (k += chains; k >= spacing;) k -= spacing;
        }
#pragma GCC unroll 8
        for (int c = 0; c < chains - 1; ++c)
            if (i + c < count) acc[c] = take<spaced>(acc[c], p + c * step, k + c, taking);
        return fold_pairs(acc);
    }

    // n elements, side by side or `spacing` apart.
    template <bool spaced>
    Acc fold_whole(const T* p, int64_t n) const
    {
        const int64_t stride = spaced ? spacing : 1;
        int64_t vectors = n > 0 ? ((n - 1) * stride + 1) / lanes<Acc> : 0;
        Acc result =
            vectors > 0 ? fold_lanes(fold_vectors<spaced>(p, vectors)) : Op::template identity<Acc>;
        for (int64_t i = ceil_div(vectors * lanes<Acc>, stride); i < n; ++i)
            result = Op::apply(result, Acc(p[i * stride]));
        return result;
    }

    struct Run {
        const T* p;
        int64_t n;
        Acc* result;
    };

    // Runs of elements side by side, a leaf of each in turn; to the last bit what fold_whole makes
    // of each.
    void fold_in_turn(const Run* runs, int count) const
    {
        Leaves leaves[places];
        int64_t done[places] = {};
        for (bool more = true; more;) {
            more = false;
            for (int r = 0; r < count; ++r) {
                int64_t rest = runs[r].n / lanes<Acc> - done[r];
                if (rest == 0) continue;
                int64_t next = leaf(rest);
                const T* p = runs[r].p + done[r] * lanes<Acc>;
                leaves[r].add(fold_leaf<false>(p, next, done[r], p + rest * lanes<Acc>));
                done[r] += next;
                more = more || next < rest;
            }
        }
        for (int r = 0; r < count; ++r) {
            const auto& [p, n, result] = runs[r];
            *result = fold_lanes(leaves[r].total());
            for (int64_t i = n / lanes<Acc> * lanes<Acc>; i < n; ++i)
                *result = Op::apply(*result, Acc(p[i]));
        }
    }

    Acc fold_run(const T* p, int64_t stride, int64_t n) const
    {
        if (stride == 1) return fold_whole<false>(p, n);
        if (is_spaced(stride)) return fold_whole<true>(p, n);
        constexpr int at_once = 8;
        Acc acc[at_once];
        for (Acc& x : acc) x = Op::template identity<Acc>;
        int64_t i = 0;
        for (; i + at_once <= n; i += at_once)
            for (int k = 0; k < at_once; ++k) acc[k] = Op::apply(acc[k], Acc(p[(i + k) * stride]));
        for (; i < n; ++i) acc[0] = Op::apply(acc[0], Acc(p[i * stride]));
        return fold_pairs(acc);
    }

    // v[r] = the `count` vectors from p + r * apart on: so many runs side by side, each as so many
    // sums.
    template <int rows, int each>
    static void fold_together(Vec<Acc>* v, const T* p, int64_t apart, int64_t count)
    {
        constexpr int64_t step = lanes<Acc>;
        const Taking<Op, T> taking;
        Vec<Acc> acc[rows][each];
        for (auto& row : acc)
            for (Vec<Acc>& a : row) a = broadcast(Op::template identity<Acc>);
        int64_t i = 0;
        for (; i + each <= count; i += each, p += each * step)
#pragma GCC unroll 8
            for (int c = 0; c < each; ++c)
#pragma GCC unroll 4
                for (int r = 0; r < rows; ++r)
                    acc[r][c] = taking(acc[r][c], p + r * apart + c * step);
        for (; i < count; ++i, p += step)
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) acc[r][0] = taking(acc[r][0], p + r * apart);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) v[r] = fold_pairs(acc[r]);
    }

    // acc[j] = the n elements from p + j * apart on, for as many j below `width` as fill vectors;
    // returns how many. As many runs as a vector has lanes are folded and then their lanes
    // together: the shortest four side by side, others one after the other, as memory likes it.
    // What is left of a run is the end of its last vector.
    int64_t fold_short_runs(Acc* acc, const T* p, int64_t apart, int64_t n, int64_t width) const
    {
        constexpr int count = lanes<Acc>, four = count < 4 ? count : 4;
        const Ahead ahead = found_ahead;
        const int64_t rest = n % count, row_bytes = n * item;
        const bool in_order = plan.from_memory && caches().in_order;
        const bool at_once = are_near((apart - n) * item);
        const bool near = four * row_bytes <= (in_order ? 512 : 1024) &&
                          (at_once || row_bytes <= 64 || ahead.distance == 0);
        const int64_t line = at_once ? 64 : apart * item;  // between what is asked for
        const int64_t lines = !near || ahead.distance == 0 ? 0
                              : at_once                    ? ceil_div(count * apart * item, 64)
                                                           : count;
        const Vec<Acc> identity = broadcast(Op::template identity<Acc>);
        Mask is_rest, is_first;
        for (int i = 0; i < count; ++i) {
            is_rest[i] = i >= count - rest ? -1 : 0;
            is_first[i] = i < n ? -1 : 0;
        }
        int64_t j = 0;
        for (; j + count <= width; j += count, p += count * apart) {
            Vec<Acc> v[count];
            for (int64_t i = 0; i < lines; ++i)
                __builtin_prefetch(reinterpret_cast<const char*>(p) + ahead.distance + i * line);
            if (n < count)
#pragma GCC unroll 16
                for (int r = 0; r < count; ++r) {
                    Vec<Acc> all = load_first_as(p + r * apart, n, Acc{});
                    v[r] = is_first ? all : identity;
                }
            else if (n == count)
#pragma GCC unroll 16
                for (int r = 0; r < count; ++r) v[r] = load_as(p + r * apart, Acc{});
            else if (near)
                for (int r = 0; r < count; r += four)
                    fold_together<four, 2>(v + r, p + r * apart, apart, n / count);
            else
                for (int r = 0; r < count; ++r) {
                    ahead.fetch(p + r * apart, row_bytes);
                    fold_together<1, chains>(v + r, p + r * apart, apart, n / count);
                }
            if (n > count && rest > 0)
#pragma GCC unroll 16
                for (int r = 0; r < count; ++r) {
                    Vec<Acc> last = load_as(p + r * apart + n - count, Acc{});
                    v[r] = Op::apply(v[r], is_rest ? last : identity);
                }
            store(acc + j, join_lanes_of<Acc>(v, Op::template apply<Vec<Acc>>));
        }
        return j;
    }

    // Calls body(p, stride, n) for the runs along reduced axis 0 that make up the elements [begin,
    // end).
    template <class Body>
    void for_runs(const T* base, int64_t begin, int64_t end, const Body& body) const
    {
        const ReduceAxes& axes = plan.reduced;
        const ReduceAxis& inner = axes.axis[0];
        int64_t at[max_rank] = {};
        int64_t rest = begin;
        const T* p = base;
        for (int i = 0; i < axes.rank && rest > 0; ++i) {
            at[i] = rest % axes.axis[i].size;
            rest /= axes.axis[i].size;
            p += at[i] * axes.axis[i].in;
        }
        while (begin < end) {
            int64_t n = min64(inner.size - at[0], end - begin);
            body(p, inner.in, n);
            begin += n;
            p -= at[0] * inner.in;
            at[0] = 0;
            for (int i = 1; i < axes.rank; ++i) {
                p += axes.axis[i].in;
                if (++at[i] < axes.axis[i].size) break;
                p -= at[i] * axes.axis[i].in;
                at[i] = 0;
            }
        }
    }

    // Where a pairwise fold cuts [begin, end): a multiple of `leaf` from its start.
    static int64_t middle(int64_t begin, int64_t end, int64_t leaf)
    {
        return begin + ceil_div((end - begin) / 2, leaf) * leaf;
    }

    // One result, of the elements [begin, end) of the only reduced axis.
    Acc fold(const T* base, int64_t begin, int64_t end) const
    {
        int64_t stride = plan.reduced.axis[0].in;
        if (is_whole(stride) || end - begin <= leaf_elements)
            return fold_run(base + begin * stride, stride, end - begin);
        int64_t mid = middle(begin, end, leaf_elements);
        return Op::apply(fold(base, begin, mid), fold(base, mid, end));
    }

    // acc[j] op= the n elements p[j * column + i * row].
    void fold_rows(Acc* acc, const T* p, int64_t column, int64_t row, int64_t n,
                   int64_t width) const
    {
        int64_t done = fold_streams<4>(acc, p, column, row, n, width);
        fold_streams<1>(acc, p + done * row, column, row, n - done, width);
    }

    // The same for as many rows as can be read in `streams` equal streams; returns how many. Memory
    // delivers several streams faster than one, and acc is read and written less often. Eight of
    // them, where rows lie 4 KB apart, would want all places that a first-level cache has for them.
    // Short rows with gaps from memory are asked for instead, and read one after the other.
    template <int streams>
    int64_t fold_streams(Acc* acc, const T* p, int64_t column, int64_t row, int64_t n,
                         int64_t width) const
    {
        const int64_t length = n / streams, bytes = width * item;
        const bool in_order =
            plan.from_memory && streams * bytes <= 4096 && !are_near((row - width) * item);
        const int64_t apart = in_order ? row : length * row, step = in_order ? streams * row : row;
        const int64_t far = in_order ? 4 * stream_ahead : stream_ahead;
        const int64_t ahead = plan.from_memory ? max64(1, far / bytes) : 1;
        const int64_t behind =
            in_order ? ahead : ahead + (streams - 1) * length;  // in the next leaf
        for (int64_t i = 0; i < length; ++i, p += step) {
            int64_t next = (i + ahead < length ? ahead : behind) * row;
            int64_t j = column == 1 ? fold_dense<streams>(acc, p, apart, next, width) : 0;
            for (; j < width; ++j) {
                Acc x[streams];
                for (int r = 0; r < streams; ++r) x[r] = Acc(p[j * column + r * apart]);
                acc[j] = Op::apply(acc[j], fold_pairs(x));
            }
        }
        return length * streams;
    }

    // The whole vectors of dense rows; returns how many columns they have. From memory the streams'
    // next rows are fetched, a line at a time: no processor foresees where they begin, and short
    // ones are read sooner than memory answers. (Compilers
    // do not vectorize Max and Min by themselves.)
    template <int streams>
    int64_t fold_dense(Acc* acc, const T* p, int64_t apart, int64_t next, int64_t width) const
    {
        const Taking<Op, T> taking;
        int64_t j = 0;
        for (; j + lanes<Acc> <= width; j += lanes<Acc>, p += lanes<Acc>) {
            if (plan.from_memory && j % line_elements == 0)
#pragma GCC unroll 4
                for (int r = 0; r < streams; ++r) __builtin_prefetch(p + r * apart + next, 0, 2);
            Vec<Acc> a = taking(load(acc + j), p);
            if constexpr (streams > 1) {
                Vec<Acc> b = load_as(p + apart, Acc{});
#pragma GCC unroll 4
                for (int r = 2; r < streams; r += 2) {
                    a = taking(a, p + r * apart);
                    b = taking(b, p + (r + 1) * apart);
                }
                a = Op::apply(a, b);
            }
            store(acc + j, a);
        }
        return j;
    }

    // A power of two of values, pairwise.
    template <class V, int count>
    static V fold_pairs(V (&x)[count])
    {
#pragma GCC unroll 4
        for (int half = count / 2; half > 0; half /= 2)
#pragma GCC unroll 8
            for (int i = 0; i < half; ++i) x[i] = Op::apply(x[i], x[i + half]);
        return x[0];
    }

    // Rows of a few columns that follow each other in memory: several make one row of about 64.
    void fold_narrow_rows(Acc* acc, const T* p, int64_t n, int64_t width) const
    {
        constexpr int64_t wide = 64;
        int64_t group = wide / width;
        Acc grouped[wide];
        for (Acc& x : grouped) x = Op::template identity<Acc>;
        fold_rows(grouped, p, 1, group * width, n / group, group * width);
        for (int64_t g = 0; g < group; ++g)
            for (int64_t j = 0; j < width; ++j) acc[j] = Op::apply(acc[j], grouped[g * width + j]);
        fold_rows(acc, p + n / group * group * width, 1, width, n % group, width);
    }

    // How many runs of n elements fold_runs adds up: no lane gets more than 256 of them.
    static int64_t runs_of_leaf(int64_t n)
    {
        const int64_t most_of_a_lane = n / (2 * lanes<Acc>)+2;
        return max64(1, 256 / most_of_a_lane);
    }

    // One result, of dense runs: what is left of each goes through a masked vector, and lanes stay
    // apart until the last.
    Acc fold_runs(const T* base, int64_t begin, int64_t end) const
    {
        constexpr int64_t step = lanes<Acc>;
        const Ahead ahead = ahead_in_planes;
        const ReduceAxis& rows = plan.reduced.axis[1];
        const T* plane_end = base + rows.size * rows.in;
        const Taking<Op, T> taking;
        const Vec<Acc> identity = broadcast(Op::template identity<Acc>);
        Vec<Acc> acc[2] = {identity, identity};
        Mask is_first = {};
        int64_t masked = 0;  // how many lanes it has
        for_runs(base, begin, end, [&](const T* p, int64_t, int64_t n) {
            const T* run_end = p + n;
            ahead.fetch(p, n * item, plane_end);
            for (; p + 2 * step <= run_end; p += 2 * step) {
                acc[0] = taking(acc[0], p);
                acc[1] = taking(acc[1], p + step);
            }
            if (p + step <= run_end) {
                acc[0] = taking(acc[0], p);
                p += step;
            }
            if (p == run_end) return;
            const int64_t rest = run_end - p;
            for (int i = 0; rest != masked && i < step; ++i) is_first[i] = i < rest ? -1 : 0;
            masked = rest;
            Vec<Acc> first = load_first_as(p, rest, Acc{});
            acc[1] = Op::apply(acc[1], is_first ? first : identity);
        });
        return fold_lanes(Op::apply(acc[0], acc[1]));
    }

    // acc[j] = the results of `width` neighbours along kept axis 0, of the reduced elements [begin,
    // end). Each run along reduced axis 0 is done for all of them before the next.
    void fold_neighbours(Acc* acc, const T* base, int64_t width, int64_t begin, int64_t end) const
    {
        const ReduceAxis& inner = plan.reduced.axis[0];
        const bool in_runs = sizeof(T) >= 4 && width == 1 && plan.reduced.rank > 1 &&
                             inner.in == 1 && inner.size <= leaf_elements;
        int64_t leaf = leaf_elements;
        if (in_runs)
            leaf = inner.size * runs_of_leaf(inner.size);
        else if (plan.by_columns)
            leaf = leaf_rows;
        else if (is_whole(inner.in))
            leaf = max64(leaf_elements, 4 * inner.size);
        if (end - begin > leaf) {
            int64_t mid = middle(begin, end, leaf);
            Acc upper[max_width];
            fold_neighbours(acc, base, width, begin, mid);
            fold_neighbours(upper, base, width, mid, end);
            for (int64_t j = 0; j < width; ++j) acc[j] = Op::apply(acc[j], upper[j]);
            return;
        }
        if constexpr (sizeof(T) >= 4)
            if (in_runs) {
                *acc = fold_runs(base, begin, end);
                return;
            }
        for (int64_t j = 0; j < width; ++j) acc[j] = Op::template identity<Acc>;
        int64_t column = plan.kept.axis[0].in;
        for_runs(base, begin, end, [&](const T* p, int64_t row, int64_t n) {
            if (!plan.by_columns)
                for (int64_t j = 0; j < width; ++j)
                    acc[j] = Op::apply(acc[j], fold_run(p + j * column, row, n));
            else if (column == 1 && row == width && width <= 32)
                fold_narrow_rows(acc, p, n, width);
            else
                fold_rows(acc, p, column, row, n, width);
        });
    }
};

}  // namespace needle::NEEDLE_TARGET
