// Softmax and its relatives. The maximum m of a row is taken out first, so exp cannot overflow:
//     logsumexp(x) = m + log(s)    s = sum(exp(x - m))
#include "caches.h"
#include "families.h"
#include "parallel.h"
#include "strided.h"
#include "vmath.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t grain = 1 << 12;  // exponentials for which a second thread pays
constexpr double infinity = __builtin_inf();

double logarithm(double x) { return __builtin_log(x); }

// -inf for an empty row. NaN is passed over: the exponentials carry it on.
template <class T>
T largest(const Line<T>& x, int64_t size)
{
    constexpr T lowest = static_cast<T>(-infinity);
    constexpr int64_t width = lanes<T>;
    Vec<T> a = broadcast(lowest), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 4 * width <= size; i += 4 * width) {
        a = at_least<T>(a, x.load(i, width));
        b = at_least<T>(b, x.load(i + width, width));
        c = at_least<T>(c, x.load(i + 2 * width, width));
        d = at_least<T>(d, x.load(i + 3 * width, width));
    }
    for (; i + width <= size; i += width) a = at_least<T>(a, x.load(i, width));
    if (i < size) b = at_least<T>(b, keep_first(x.load(i, size - i), size - i, lowest));
    return join_lanes<T>(at_least<T>(at_least<T>(a, b), at_least<T>(c, d)), at_least<T>);
}

template <class T>
double sum_of_exp(const Line<T>& x, int64_t size, T shift)
{
    return sum_along<T>(size, [&](int64_t i, int64_t n) { return vexp<T>(x.load(i, n) - shift); });
}

// The same, while the row that comes next is fetched: its maximum, found first, waits for memory.
template <class T>
double sum_of_exp(const Line<T>& x, int64_t size, T shift, const Line<T>& next)
{
    return sum_along<T>(size, [&](int64_t i, int64_t n) {
        __builtin_prefetch(next.data + i, 0, 2);
        return vexp<T>(x.load(i, n) - shift);
    });
}

// What to take out for a maximum: an infinite one would make inf - inf.
template <class T>
Vec<T> finite_or_zero(Vec<T> highest)
{
    return highest - highest == T(0) ? highest : Vec<T>{};
}

template <class T>
T finite_or_zero(T highest)
{
    return highest - highest == T(0) ? highest : T(0);
}

// A row of so many vectors, the last of `rest` elements: it stays in registers. Loops over a
// strided row take longer to begin than it takes. Rows further on are asked for.
template <class T, int vectors>
struct ShortRow {
    static constexpr int64_t ahead = masked_ahead / static_cast<int64_t>(sizeof(T));
    int64_t rest;
    Vec<T> x[vectors];

    ShortRow(const Line<T>& row, int64_t size) : rest(size - (vectors - 1) * lanes<T>)
    {
#pragma GCC unroll 8
        for (int k = 0; k < vectors; ++k) {
            __builtin_prefetch(row.data + ahead + k * lanes<T>);
            x[k] = row.load(k * lanes<T>, count(k));
        }
    }

    int64_t count(int k) const { return k < vectors - 1 ? lanes<T> : rest; }

    T largest() const
    {
        Vec<T> most = keep_first(x[vectors - 1], rest, static_cast<T>(-infinity));
#pragma GCC unroll 8
        for (int k = 0; k < vectors - 1; ++k) most = at_least<T>(most, x[k]);
        return join_lanes<T>(most, at_least<T>);
    }

    // x becomes exp(x - shift), whose sum this is.
    double exp_and_sum(T shift)
    {
#pragma GCC unroll 8
        for (int k = 0; k < vectors; ++k) x[k] = vexp<T>(x[k] - shift);
        Vec<T> sum = keep_first(x[vectors - 1], rest, T(0));
#pragma GCC unroll 8
        for (int k = 0; k < vectors - 1; ++k) sum += x[k];
        return static_cast<double>(sum_lanes<T>(sum));
    }

    // out = body(x)
    template <class Body>
    void write(const Line<T>& out, const Body& body) const
    {
#pragma GCC unroll 8
        for (int k = 0; k < vectors; ++k) out.store(k * lanes<T>, count(k), body(x[k]));
    }
};

// Calls body(row) with the row as a ShortRow; false where it is too long, or empty.
template <class T, int vectors = 1, class Body>
bool as_short(const Line<T>& x, int64_t size, const Body& body)
{
    if (size > vectors * lanes<T> || size == 0) {
        if constexpr (vectors < 8) return as_short<T, vectors + 1>(x, size, body);
        return false;
    }
    ShortRow<T, vectors> row(x, size);
    body(row);
    return true;
}

// The largest element of a row (0 where that is infinite), and the logarithm of the sum of
// exp(x - largest).
template <class T>
struct Folded {
    T highest;
    double log_sum;
};

// A long row fetches meanwhile the one that comes next, where there is one.
template <class T>
Folded<T> fold(const Line<T>& x, int64_t size, const Line<T>* next = nullptr)
{
    Folded<T> folded;
    bool done = as_short(x, size, [&](auto& row) {
        folded.highest = finite_or_zero(row.largest());
        folded.log_sum = logarithm(row.exp_and_sum(folded.highest));
    });
    if (done) return folded;
    T highest = finite_or_zero(largest(x, size));
    double sum =
        next != nullptr ? sum_of_exp(x, size, highest, *next) : sum_of_exp(x, size, highest);
    return {highest, logarithm(sum)};
}

// Calls body(T{}, row, row size) for every row of a matrix, shared by the threads.
template <class Body>
void for_each_row(const Array& a, const Body& body)
{
    parallel_for(a.shape[0], ceil_div(grain, max64(a.shape[1], 1)),
                 [&](int64_t begin, int64_t end) {
                     with_float(a.dtype, [&](auto zero) {
                         for (int64_t r = begin; r < end; ++r) body(zero, r, a.shape[1]);
                     });
                 });
}

void softmax(const Call& call)
{
    for_each_row(call.arrays[1], [&](auto zero, int64_t r, int64_t size) {
        using T = decltype(zero);
        Line<T> out = row_of<T>(call.arrays[0], r), x = row_of<T>(call.arrays[1], r);
        bool done = as_short(x, size, [&](auto& row) {
            T inverse = static_cast<T>(1 / row.exp_and_sum(row.largest()));
            row.write(out, [&](Vec<T> e) { return e * inverse; });
        });
        if (done) return;
        T highest = largest(x, size);
        double sum = sum_along<T>(size, [&](int64_t i, int64_t n) {
            Vec<T> e = vexp<T>(x.load(i, n) - highest);
            out.store(i, n, e);
            return e;
        });
        T inverse = static_cast<T>(1 / sum);
        for_vectors<T>(size,
                       [&](int64_t i, int64_t n) { out.store(i, n, out.load(i, n) * inverse); });
    });
}

void logsoftmax(const Call& call)
{
    for_each_row(call.arrays[1], [&](auto zero, int64_t r, int64_t size) {
        using T = decltype(zero);
        Line<T> out = row_of<T>(call.arrays[0], r), x = row_of<T>(call.arrays[1], r);
        bool done = as_short(x, size, [&](auto& row) {
            auto exps = row;
            T highest = finite_or_zero(row.largest());
            T log_sum = static_cast<T>(logarithm(exps.exp_and_sum(highest)));
            row.write(out, [&](Vec<T> v) { return (v - highest) - log_sum; });
        });
        if (done) return;
        T highest = finite_or_zero(largest(x, size));
        T log_sum = static_cast<T>(logarithm(sum_of_exp(x, size, highest)));
        for_vectors<T>(size, [&](int64_t i, int64_t n) {
            out.store(i, n, (x.load(i, n) - highest) - log_sum);
        });
    });
}

// ---- logsumexp over any axes

// Some axes of an array; neighbours that one stride serves are one axis.
struct Axes {
    int rank = 0;
    int64_t size[max_rank];
    int64_t stride[max_rank];

    Axes(const Array& array, int first, int last)
    {
        for (int i = first; i < last; ++i) add(array.shape[i], array.strides[i]);
        if (rank == 0) add(1, 1);
    }
    void add(int64_t n, int64_t step)
    {
        bool joins = rank > 0 && (size[rank - 1] == 1 || stride[rank - 1] == step * n);
        if (joins && n != 1) {
            size[rank - 1] *= n;
            stride[rank - 1] = step;
        } else if (n != 1 || rank == 0) {
            size[rank] = n;
            stride[rank++] = step;
        }
    }
    int64_t inner_size() const { return size[rank - 1]; }
    int64_t inner_stride() const { return stride[rank - 1]; }
    int64_t count() const
    {
        int64_t n = 1;
        for (int i = 0; i < rank; ++i) n *= size[i];
        return n;
    }
    int64_t runs() const
    {
        int64_t n = 1;
        for (int i = 0; i < rank - 1; ++i) n *= size[i];
        return n;
    }
    // Of the run with this number: an innermost axis.
    int64_t run_offset(int64_t run) const
    {
        int64_t offset = 0;
        for (int i = rank - 2; i >= 0; --i) {
            offset += run % size[i] * stride[i];
            run /= size[i];
        }
        return offset;
    }
};

int64_t element_offset(const Array& array, int rank, int64_t index)
{
    int64_t offset = 0;
    for (int i = rank - 1; i >= 0; --i) {
        offset += index % array.shape[i] * array.strides[i];
        index /= array.shape[i];
    }
    return offset;
}

// Of all elements that `reduced` reaches from p.
template <class T>
T logsumexp_along(T* p, const Axes& reduced)
{
    int64_t runs = reduced.runs(), size = reduced.inner_size();
    auto run = [&](int64_t r) {
        return Line<T>{p + reduced.run_offset(r), reduced.inner_stride()};
    };
    if (runs == 1) {
        auto [most, log_sum] = fold(run(0), size);
        return static_cast<T>(static_cast<double>(most) + log_sum);
    }
    T highest = static_cast<T>(-infinity);
    for (int64_t r = 0; r < runs; ++r) {
        T candidate = largest(run(r), size);
        highest = candidate > highest ? candidate : highest;
    }
    highest = finite_or_zero(highest);
    double sum = 0;
    for (int64_t r = 0; r < runs; ++r) sum += sum_of_exp(run(r), size, highest);
    return static_cast<T>(static_cast<double>(highest) + logarithm(sum));
}

// The same for n <= lanes neighbouring outputs at a time.
template <class T>
Vec<T> logsumexp_across(const T* p, int64_t lane_stride, int64_t n, const Axes& reduced)
{
    int64_t runs = reduced.runs(), size = reduced.inner_size(), stride = reduced.inner_stride();
    constexpr int64_t block = 64;  // short sums of sums: a long one would lose digits in float
    Vec<T> highest = broadcast(static_cast<T>(-infinity)), sum{};
    for (int64_t r = 0; r < runs; ++r) {
        const T* start = p + reduced.run_offset(r);
        for (int64_t i = 0; i < size; ++i)
            highest = at_least<T>(highest, load_lanes(start + i * stride, lane_stride, n));
    }
    highest = finite_or_zero<T>(highest);
    for (int64_t r = 0; r < runs; ++r) {
        const T* start = p + reduced.run_offset(r);
        for (int64_t first = 0; first < size; first += block) {
            Vec<T> block_sum{};
            for (int64_t i = first; i < min64(first + block, size); ++i)
                block_sum += vexp<T>(load_lanes(start + i * stride, lane_stride, n) - highest);
            sum += block_sum;
        }
    }
    return highest + vlog<T>(sum);
}

template <class T>
void logsumexp_of(const Call& call)
{
    const Array &out = call.arrays[0], &a = call.arrays[1];
    Axes reduced(a, out.rank, a.rank);
    int64_t outputs = out.size(), size = reduced.count();
    int64_t last = out.rank > 0 ? out.shape[out.rank - 1] : 1;
    int64_t lane_stride = out.rank > 0 ? a.strides[out.rank - 1] : 0;
    if (outputs == 0) return;
    if (reduced.inner_stride() == 1 || lane_stride != 1) {
        parallel_for(outputs, ceil_div(grain, max64(size, 1)), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                out.as<T>()[element_offset(out, out.rank, i)] =
                    logsumexp_along(a.as<T>() + element_offset(a, out.rank, i), reduced);
        });
        return;
    }
    int64_t vectors = ceil_div(last, lanes<T>), out_stride = out.strides[out.rank - 1];
    parallel_for(outputs / last * vectors, ceil_div(grain, max64(size, 1) * lanes<T>),
                 [&](int64_t begin, int64_t end) {
                     for (int64_t v = begin; v < end; ++v) {
                         int64_t column = v % vectors * lanes<T>, i = v / vectors * last + column;
                         int64_t n = min64(lanes<T>, last - column);
                         const T* p = a.as<T>() + element_offset(a, out.rank, i);
                         store_lanes(out.as<T>() + element_offset(out, out.rank, i), out_stride,
                                     logsumexp_across(p, lane_stride, n, reduced), n);
                     }
                 });
}

void logsumexp(const Call& call)
{
    with_float(call.arrays[0].dtype, [&](auto zero) { logsumexp_of<decltype(zero)>(call); });
}

// ---- cross entropy

int64_t label_of(const Array& labels, int64_t r)
{
    return labels.as<int64_t>()[r * labels.strides[0]];
}

int64_t softmax_cross_entropy_workspace(const Call& call)
{
    return call.arrays[2].shape[0] * static_cast<int64_t>(sizeof(double));
}

// The sum of m - x_j over a row.
template <class T>
double sum_below(const Line<T>& x, int64_t size, T highest)
{
    return sum_along<T>(size, [&](int64_t i, int64_t n) { return highest - x.load(i, n); });
}

// The loss of a row is (m - logits[label]) + log(s), which stays exact where the logits are large,
// and the mean is taken in float64. With label smoothing e the first term becomes
//     (1 - e) (m - logits[label]) + e mean(m - logits)
void softmax_cross_entropy(const Call& call)
{
    const Array &loss = call.arrays[0], &lse = call.arrays[1], &labels = call.arrays[3];
    double* losses = static_cast<double*>(call.workspace);
    double smoothing = call.scalars[0];
    for_each_row(call.arrays[2], [&](auto zero, int64_t r, int64_t size) {
        using T = decltype(zero);
        Line<T> x = row_of<T>(call.arrays[2], r);
        const Line<T> next = row_of<T>(call.arrays[2], r + 1);
        const auto [highest, log_sum] = fold(x, size, &next);
        lse.as<T>()[r * lse.strides[0]] = static_cast<T>(static_cast<double>(highest) + log_sum);
        double below = static_cast<double>(highest) - static_cast<double>(x[label_of(labels, r)]);
        if (smoothing != 0)  // 0 times an infinite sum would be NaN
            below = (1 - smoothing) * below +
                    smoothing * (sum_below(x, size, highest) / static_cast<double>(size));
        losses[r] = below + log_sum;
    });
    int64_t rows = call.arrays[2].shape[0];
    double sum = 0;
    for (int64_t r = 0; r < rows; ++r) sum += losses[r];
    with_float(loss.dtype, [&](auto zero) {
        using T = decltype(zero);
        *loss.as<T>() = static_cast<T>(sum / static_cast<double>(rows));
    });
}

// Whether a matrix is written past the caches, in whole vectors.
template <class T>
bool streams(const Array& matrix)
{
    return matrix.strides[1] == 1 && may_stream<T>(matrix);
}

// dlogits = (exp(logits - lse) - (1 - e) one_hot(label) - e / C) * dloss / R. A large lse has too
// few digits after the point for that: then the row's own maximum and sum are found again.
template <class T>
void softmax_cross_entropy_grad_of(const Call& call)
{
    const Array &dlogits = call.arrays[0], &dloss = call.arrays[1], &logits = call.arrays[2];
    const Array &lse = call.arrays[3], &labels = call.arrays[4];
    constexpr T largest_exact = 64;
    constexpr int64_t width = lanes<T>;
    const bool past_caches = streams<T>(dlogits);
    const double smoothing = call.scalars[0], rows = static_cast<double>(logits.shape[0]);
    const T scale = static_cast<T>(static_cast<double>(*dloss.as<T>()) / rows);
    const double spread = static_cast<double>(scale) * smoothing;
    const int64_t size = logits.shape[1], row_grain = ceil_div(grain, max64(size, 1));
    const T everywhere = static_cast<T>(spread / static_cast<double>(size));
    parallel_for(logits.shape[0], row_grain, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            Line<T> out = row_of<T>(dlogits, r), x = row_of<T>(logits, r);
            T shift = lse.as<T>()[r * lse.strides[0]], factor = scale;
            if (!(shift < largest_exact && shift > -largest_exact)) {
                shift = largest(x, size);
                factor = static_cast<T>(static_cast<double>(scale) / sum_of_exp(x, size, shift));
            }
            auto gradient = [&](int64_t i, int64_t n) -> Vec<T> {
                return vexp<T>(x.load(i, n) - shift) * factor - everywhere;
            };
            int64_t label = label_of(labels, r), i = 0;
            T of_label =
                gradient(label, 1)[0] - static_cast<T>(static_cast<double>(scale) - spread);
            for (; past_caches && i + width <= size; i += width)
                stream_store<T>(out.data + i, gradient(i, width));
            for (; i < size; i += width) {
                int64_t n = min64(width, size - i);
                out.store(i, n, gradient(i, n));
            }
            out[label] = of_label;
        }
        if (past_caches) end_stream();
    });
}

void softmax_cross_entropy_grad(const Call& call)
{
    with_float(call.arrays[0].dtype,
               [&](auto zero) { softmax_cross_entropy_grad_of<decltype(zero)>(call); });
}

}  // namespace

void add_softmax(Table& table)
{
    table[Kernel::softmax].run = softmax;
    table[Kernel::logsoftmax].run = logsoftmax;
    table[Kernel::logsumexp].run = logsumexp;
    table[Kernel::softmax_cross_entropy] = {softmax_cross_entropy, softmax_cross_entropy_workspace};
    table[Kernel::softmax_cross_entropy_grad].run = softmax_cross_entropy_grad;
}

}  // namespace needle::NEEDLE_TARGET
