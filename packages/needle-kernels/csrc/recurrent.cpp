// Recurrent layers: the LSTM step between its matrix products, and whole sequences of LSTM and RNN
// steps. An LSTM's gates lie side by side in the order i, f, g, o:
//     c = f * c_prev + i * g    h = o * tanh(c)
// Source: Hochreiter and Schmidhuber 1997, with forget gates (Gers et al. 2000), as in PyTorch.
//
// In a sequence each thread has rows of the batch, which it takes through all steps by itself:
// W_hh, packed once, comes from the second-level cache of each. Where a thread would have very few
// rows, or W_hh is larger than that cache, each has all rows instead, and some hidden units with
// all their gates: the part of W_hh that is theirs. Threads then exchange the state at each step
// going forward and the gradients of the pre-activations going back, with a barrier. What one
// writes lies in the same rows as what the other does, and cores fetch ahead what others are about
// to change.
#include <type_traits>

#include "caches.h"
#include "families.h"
#include "matmul.h"
#include "parallel.h"
#include "strided.h"
#include "vmath.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t grain = 1 << 10;  // cells (five activations each) for which a second thread pays

// Calls body(a value of the call's type, whether the rows of all its arrays are dense).
template <class Body>
void with_layout(const Call& call, const Body& body)
{
    bool dense = true;
    for (int i = 0; i < call.count; ++i) {
        const Array& array = call.arrays[i];
        if (array.data != nullptr) dense = dense && array.strides[array.rank - 1] == 1;
    }
    with_float(call.arrays[0].dtype, [&](auto zero) {
        if (dense)
            body(zero, std::true_type{});
        else
            body(zero, std::false_type{});
    });
}

template <class T, bool dense>
Line<T> units_of(const Array& matrix, int64_t r, int64_t first)
{
    return known<dense>(row_of<T>(matrix, r, first));
}

// ---- one step

template <class T>
struct Gates {
    Vec<T> i, f, g, o;
};

// A row's gates, of the hidden units from `first` on.
template <class T, bool dense>
struct GateLines {
    Line<T> i, f, g, o;

    GateLines(const Array& array, int64_t row, int64_t first)
        : i(part(array, row, 0, first)),
          f(part(array, row, 1, first)),
          g(part(array, row, 2, first)),
          o(part(array, row, 3, first))
    {
    }
    static Line<T> part(const Array& array, int64_t row, int64_t k, int64_t first)
    {
        return units_of<T, dense>(array, row, k * (array.shape[1] / 4) + first);
    }
    Gates<T> load(int64_t j, int64_t n) const
    {
        return {i.load(j, n), f.load(j, n), g.load(j, n), o.load(j, n)};
    }
    void store(int64_t j, int64_t n, const Gates<T>& gates) const
    {
        i.store(j, n, gates.i);
        f.store(j, n, gates.f);
        g.store(j, n, gates.g);
        o.store(j, n, gates.o);
    }
};

// The hidden units [first, first + count) of row r; all arrays are of one step. pre(j, n) are the
// pre-activations of n units from first + j on. They may lie in `gates`: a vector of every gate is
// read before one is written.
template <class T, bool dense, class Pre>
void lstm_row(const Array& h, const Array& c, const Array& gates, const Pre& pre,
              const Array& c_prev, int64_t r, int64_t first, int64_t count)
{
    Line<T> to_h = units_of<T, dense>(h, r, first), to_c = units_of<T, dense>(c, r, first);
    Line<T> before = units_of<T, dense>(c_prev, r, first);
    GateLines<T, dense> to(gates, r, first);
    for_vectors<T>(count, [&](int64_t j, int64_t n) {
        Gates<T> x = pre(j, n);
        x = {vsigmoid<T>(x.i), vsigmoid<T>(x.f), vtanh<T>(x.g), vsigmoid<T>(x.o)};
        to.store(j, n, x);
        Vec<T> cell = x.f * before.load(j, n) + x.i * x.g;
        to_c.store(j, n, cell);
        to_h.store(j, n, x.o * vtanh<T>(cell));
    });
}

// The same of the gradients; dc_prev may be dc itself.
template <class T, bool dense>
void lstm_grad_row(const Array& dpre, const Array& dc_prev, const Array& dh, const Array& dc,
                   const Array& gates, const Array& c, const Array& c_prev, int64_t r,
                   int64_t first, int64_t count)
{
    Line<T> to_dc = units_of<T, dense>(dc_prev, r, first),
            from_dc = units_of<T, dense>(dc, r, first);
    Line<T> from_dh = units_of<T, dense>(dh, r, first), cell = units_of<T, dense>(c, r, first);
    Line<T> before = units_of<T, dense>(c_prev, r, first);
    GateLines<T, dense> from(gates, r, first), to(dpre, r, first);
    for_vectors<T>(count, [&](int64_t j, int64_t n) {
        Gates<T> x = from.load(j, n);
        Vec<T> incoming = from_dh.load(j, n), t = vtanh<T>(cell.load(j, n));
        // The cell state reaches the loss directly (dc) and through h.
        Vec<T> total = from_dc.load(j, n) + incoming * x.o * (T(1) - t * t);
        to.store(j, n,
                 {total * x.g * x.i * (T(1) - x.i), total * before.load(j, n) * x.f * (T(1) - x.f),
                  total * x.i * (T(1) - x.g * x.g), incoming * t * x.o * (T(1) - x.o)});
        to_dc.store(j, n, total * x.f);
    });
}

template <class Body>
void for_each_row(const Array& h, const Body& body)
{
    parallel_for(h.shape[0], ceil_div(grain, max64(h.shape[1], 1)),
                 [&](int64_t begin, int64_t end) {
                     for (int64_t r = begin; r < end; ++r) body(r);
                 });
}

void lstm_cell(const Call& call)
{
    const Array* a = call.arrays;
    with_layout(call, [&](auto zero, auto dense) {
        using T = decltype(zero);
        for_each_row(a[0], [&](int64_t r) {
            GateLines<T, dense> lines(a[3], r, 0);
            auto pre = [&](int64_t j, int64_t n) { return lines.load(j, n); };
            lstm_row<T, dense>(a[0], a[1], a[2], pre, a[4], r, 0, a[0].shape[1]);
        });
    });
}

void lstm_cell_grad(const Call& call)
{
    const Array* a = call.arrays;
    with_layout(call, [&](auto zero, auto dense) {
        for_each_row(a[2], [&](int64_t r) {
            lstm_grad_row<decltype(zero), dense>(a[0], a[1], a[2], a[3], a[4], a[5], a[6], r, 0,
                                                 a[2].shape[1]);
        });
    });
}

// ---- sequences

constexpr int64_t step_work = 50000;  // multiply-adds of one step that are worth a thread
constexpr int64_t least_rows = 4;     // that a thread has of the batch
// The same where W_hh is larger than the second-level cache: enough to multiply each part that
// comes.
constexpr int64_t least_rows_far = 24;
constexpr int64_t row_block = 24;  // rows whose sums stay in the first-level cache

// The step t of an array (T, B, D).
Array at_step(const Array& array, int64_t t)
{
    Array step = array;
    step.rank = 2;
    for (int axis = 0; axis < 2; ++axis) {
        step.shape[axis] = array.shape[axis + 1];
        step.strides[axis] = array.strides[axis + 1];
    }
    int64_t item = array.dtype == DType::float32 ? 4 : 8;
    step.data = static_cast<char*>(array.data) + t * array.strides[0] * item;
    return step;
}

// Some rows of the batch.
struct Rows {
    int64_t first, count;

    int64_t end() const { return first + count; }
};

template <class T>
Array rows_of(const Array& matrix, Rows rows)
{
    Array part = matrix;
    part.shape[0] = rows.count;
    part.data = matrix.as<T>() + rows.first * matrix.strides[0];
    return part;
}

// Columns [first, first + count) of every row; zeros where `from` is absent.
template <class T>
void copy_columns(const Array& to, const Array& from, int64_t first, int64_t count)
{
    for (int64_t r = 0; r < to.shape[0]; ++r) {
        Line<T> target = row_of<T>(to, r, first);
        if (from.data == nullptr) {
            for_vectors<T>(count, [&](int64_t j, int64_t n) { target.store(j, n, Vec<T>{}); });
            continue;
        }
        Line<T> source = row_of<T>(from, r, first);
        for_vectors<T>(count, [&](int64_t j, int64_t n) { target.store(j, n, source.load(j, n)); });
    }
}

void copy_matrix(const Array& to, const Array& from)
{
    with_float(to.dtype,
               [&](auto zero) { copy_columns<decltype(zero)>(to, from, 0, to.shape[1]); });
}

// Some hidden units: what is packed, multiplied and passed through the cell at one go.
struct Units {
    int64_t first, count;
};

// Fetches these columns of row r into the second-level cache.
template <class T>
void fetch_columns(const Array& matrix, int64_t r, Units columns)
{
    constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
    const T* row = matrix.as<T>() + r * matrix.strides[0] + columns.first;
    for (int64_t j = 0; j < columns.count; j += line) __builtin_prefetch(row + j, 0, 2);
}

// The same of all four gates of these units.
template <class T>
void fetch_gates(const Array& matrix, int64_t r, Units units)
{
    for (int64_t k = 0; k < 4; ++k)
        fetch_columns<T>(matrix, r, {k * (matrix.shape[1] / 4) + units.first, units.count});
}

// A recurrent matrix of the shape (depth, gates * units), or its transpose, packed panel by panel:
// for each group of tile_columns units one panel of every gate.
template <class T>
struct Recurrence {
    const T* weights;
    int64_t depth, depth_stride, column_stride;
    int64_t units, gates;
    T* packed;

    static constexpr int64_t width = tile_columns<T>;

    int64_t groups() const { return ceil_div(units, width); }
    Units group(int64_t g) const { return {g * width, min64(width, units - g * width)}; }

    T* panel(int64_t group, int64_t gate) const
    {
        return packed + (group * gates + gate) * width * depth;
    }

    void pack(int64_t group_index) const
    {
        Units own = group(group_index);
        for (int64_t gate = 0; gate < gates; ++gate)
            pack_b(weights + (gate * units + own.first) * column_stride, depth_stride,
                   column_stride, depth, own.count, panel(group_index, gate));
    }

    // c = act(c? + a W), for the units of a group and one gate: a (B, depth), c (B, count).
    void multiply(const Array& a, T* c, int64_t c_row, int64_t group_index, int64_t gate,
                  bool accumulate, Activation activation = no_activation) const
    {
        PackedProduct<T> product{a.shape[0], a.as<T>(), a.strides[0], c, c_row};
        product.activation = activation;
        product.accumulate = accumulate;
        PackedB<T> b{panel(group_index, gate), depth, group(group_index).count};
        multiply_packed(product, b);
    }
};

// W_hh (H, gates * H) for the forward pass.
template <class T>
Recurrence<T> forward(const Array& w, const Call& call)
{
    return {w.as<T>(),
            w.shape[0],
            w.strides[0],
            w.strides[1],
            w.shape[0],
            w.shape[1] / max64(w.shape[0], 1),
            static_cast<T*>(call.workspace)};
}

// Its transpose, for the backward pass.
template <class T>
Recurrence<T> backward(const Array& w, const Call& call)
{
    return {w.as<T>(),
            w.shape[1],
            w.strides[1],
            w.strides[0],
            w.shape[0],
            1,
            static_cast<T*>(call.workspace)};
}

// Whether each thread has rows of its own.
template <class T>
bool divides_rows(int64_t batch, const Recurrence<T>& w)
{
    bool near = w.depth * w.gates * w.units * int64_t{sizeof(T)} <= caches().second_bytes;
    return batch / num_threads() >= (near ? least_rows : least_rows_far);
}

// Calls body(step, group, rows) so that at each step all rows meet all groups of units. Weights are
// packed before. Odd steps go through the groups backwards: what the step before has used last is
// still in the cache.
template <class T, class Body>
void for_each_step(int64_t steps, int64_t batch, const Recurrence<T>& w, const Body& body)
{
    const int64_t groups = w.groups();
    auto take_step = [&](int64_t step, int64_t begin, int64_t end, Rows rows) {
        for (int64_t k = begin; k < end; ++k)
            body(step, step % 2 == 0 ? k : begin + end - 1 - k, rows);
    };
    int64_t row_work = max64(1, w.depth * w.gates * w.units);  // of one step
    if (divides_rows(batch, w)) {
        int64_t grain = max64(least_rows, ceil_div(parallel_work, max64(1, steps * row_work)));
        parallel_steps(2, batch, grain, [&](int64_t packed, int64_t begin, int64_t end) {
            if (packed == 0)
                for (int64_t g = groups * begin / batch; g < groups * end / batch; ++g) w.pack(g);
            else
                for (int64_t step = 0; step < steps; ++step)
                    take_step(step, 0, groups, {begin, end - begin});
        });
        return;
    }
    int64_t group_work = max64(1, batch * w.depth * w.gates * Recurrence<T>::width);
    parallel_steps(steps, groups, ceil_div(step_work, group_work),
                   [&](int64_t step, int64_t begin, int64_t end) {
                       if (step == 0)
                           for (int64_t g = begin; g < end; ++g) w.pack(g);
                       take_step(step, begin, end, {0, batch});
                   });
}

template <class T, bool dense>
void lstm_steps(const Call& call)
{
    const Array &states = call.arrays[0], &cells = call.arrays[1], &gates = call.arrays[2];
    const Array& pre = call.arrays[3];
    Recurrence<T> w = forward<T>(call.arrays[6], call);
    constexpr int64_t width = Recurrence<T>::width;
    for_each_step<T>(gates.shape[0], gates.shape[1], w, [&](int64_t t, int64_t group, Rows rows) {
        Units own = w.group(group);
        Array step_gates = at_step(gates, t), step_pre = at_step(pre, t);
        Array next = at_step(pre, min64(t + 1, gates.shape[0] - 1));
        Array c_prev = at_step(cells, t), c = at_step(cells, t + 1), h = at_step(states, t + 1);
        // The recurrent part, gate by gate; behind the last unit there may be anything.
        T sums[row_block * 4 * width];
        for (int64_t first = rows.first; first < rows.end(); first += row_block) {
            int64_t count = min64(row_block, rows.end() - first);
            Array h_prev = rows_of<T>(at_step(states, t), {first, count});
            for (int64_t gate = 0; gate < 4; ++gate)
                w.multiply(h_prev, sums + gate * width, 4 * width, group, gate, false);
            for (int64_t i = 0; i < count; ++i) {
                fetch_gates<T>(next, first + i, own);
                GateLines<T, dense> given(step_pre, first + i, own.first);
                auto whole = [&](int64_t j, int64_t n) -> Gates<T> {
                    const T* sum = sums + i * 4 * width + j;
                    Gates<T> x = given.load(j, n);
                    return {x.i + load(sum), x.f + load(sum + width), x.g + load(sum + 2 * width),
                            x.o + load(sum + 3 * width)};
                };
                lstm_row<T, dense>(h, c, step_gates, whole, c_prev, first + i, own.first,
                                   own.count);
            }
        }
    });
}

void lstm_sequence(const Call& call)
{
    copy_matrix(at_step(call.arrays[0], 0), call.arrays[4]);
    copy_matrix(at_step(call.arrays[1], 0), call.arrays[5]);
    with_layout(call, [&](auto zero, auto dense) { lstm_steps<decltype(zero), dense>(call); });
}

// dh += dy, for the units of one row.
template <class T, bool dense>
void add_output_grad(const Array& dh, const Array& dy, int64_t r, Units own)
{
    Line<T> to = units_of<T, dense>(dh, r, own.first), from = units_of<T, dense>(dy, r, own.first);
    for_vectors<T>(own.count,
                   [&](int64_t j, int64_t n) { to.store(j, n, to.load(j, n) + from.load(j, n)); });
}

// dh and dc hold the gradients of the state and cell that the step at hand left behind, and in the
// end those of h0 and c0. Step s: dh = dpre[t + 1] W_hh^T + dy[t] with t = T - 1 - s.
template <class T, bool dense>
void lstm_steps_grad(const Call& call)
{
    const Array &dpre = call.arrays[0], &dh = call.arrays[1], &dc = call.arrays[2];
    const Array &dy = call.arrays[3], &gates = call.arrays[6], &cells = call.arrays[7];
    Recurrence<T> w = backward<T>(call.arrays[8], call);
    int64_t last = dpre.shape[0] - 1;
    for_each_step<T>(last + 2, dh.shape[0], w, [&](int64_t s, int64_t group, Rows rows) {
        int64_t t = last - s;
        Units own = w.group(group);
        Array mine = rows_of<T>(dh, rows);
        if (s > 0)
            w.multiply(rows_of<T>(at_step(dpre, t + 1), rows), mine.as<T>() + own.first,
                       mine.strides[0], group, 0, false);
        if (t < 0) return;
        Array d = at_step(dpre, t), step_gates = at_step(gates, t);
        Array c = at_step(cells, t + 1), c_prev = at_step(cells, t);
        // What the next step reads and writes was last used by the forward pass, or never.
        int64_t next = max64(t - 1, 0);
        Array next_d = at_step(dpre, next), next_gates = at_step(gates, next);
        Array next_cells = at_step(cells, next);
        for (int64_t r = rows.first; r < rows.end(); ++r) {
            fetch_gates<T>(next_d, r, own);
            fetch_gates<T>(next_gates, r, own);
            fetch_columns<T>(next_cells, r, own);
            if (dy.data != nullptr) fetch_columns<T>(at_step(dy, next), r, own);
            if (dy.data != nullptr) add_output_grad<T, dense>(dh, at_step(dy, t), r, own);
            lstm_grad_row<T, dense>(d, dc, dh, dc, step_gates, c, c_prev, r, own.first, own.count);
        }
    });
}

void lstm_sequence_grad(const Call& call)
{
    copy_matrix(call.arrays[1], call.arrays[4]);
    copy_matrix(call.arrays[2], call.arrays[5]);
    with_layout(call, [&](auto zero, auto dense) { lstm_steps_grad<decltype(zero), dense>(call); });
}

template <class T>
void rnn_steps(const Call& call)
{
    const Array &states = call.arrays[0], &pre = call.arrays[1];
    Activation activation = static_cast<Activation>(static_cast<int>(call.scalars[0]));
    Recurrence<T> w = forward<T>(call.arrays[3], call);
    for_each_step<T>(pre.shape[0], pre.shape[1], w, [&](int64_t t, int64_t group, Rows rows) {
        Units own = w.group(group);
        Array next = rows_of<T>(at_step(states, t + 1), rows);
        copy_columns<T>(next, rows_of<T>(at_step(pre, t), rows), own.first, own.count);
        w.multiply(rows_of<T>(at_step(states, t), rows), next.as<T>() + own.first, next.strides[0],
                   group, 0, true, activation);
    });
}

void rnn_sequence(const Call& call)
{
    copy_matrix(at_step(call.arrays[0], 0), call.arrays[2]);
    with_float(call.arrays[0].dtype, [&](auto zero) { rnn_steps<decltype(zero)>(call); });
}

// dpre = dh times the derivative at the result y: 1 - y^2 of tanh, 0 or 1 of relu.
template <class T, bool dense>
void activation_grad_row(const Array& dpre, const Array& dh, const Array& y, Activation activation,
                         int64_t r, Units own)
{
    Line<T> to = units_of<T, dense>(dpre, r, own.first);
    Line<T> from = units_of<T, dense>(dh, r, own.first),
            result = units_of<T, dense>(y, r, own.first);
    for_vectors<T>(own.count, [&](int64_t j, int64_t n) {
        Vec<T> d = from.load(j, n), v = result.load(j, n);
        to.store(j, n,
                 activation == tanh_activation ? d * (T(1) - v * v)
                 : v > Vec<T>{}                ? d
                                               : Vec<T>{});
    });
}

template <class T, bool dense>
void rnn_steps_grad(const Call& call)
{
    const Array &dpre = call.arrays[0], &dh = call.arrays[1], &dy = call.arrays[2];
    const Array& states = call.arrays[4];
    Activation activation = static_cast<Activation>(static_cast<int>(call.scalars[0]));
    Recurrence<T> w = backward<T>(call.arrays[5], call);
    int64_t last = dpre.shape[0] - 1;
    for_each_step<T>(last + 2, dh.shape[0], w, [&](int64_t s, int64_t group, Rows rows) {
        int64_t t = last - s;
        Units own = w.group(group);
        Array mine = rows_of<T>(dh, rows);
        if (s > 0)
            w.multiply(rows_of<T>(at_step(dpre, t + 1), rows), mine.as<T>() + own.first,
                       mine.strides[0], group, 0, false);
        if (t < 0) return;
        Array d = at_step(dpre, t), y = at_step(states, t + 1);
        for (int64_t r = rows.first; r < rows.end(); ++r) {
            if (dy.data != nullptr) add_output_grad<T, dense>(dh, at_step(dy, t), r, own);
            activation_grad_row<T, dense>(d, dh, y, activation, r, own);
        }
    });
}

void rnn_sequence_grad(const Call& call)
{
    copy_matrix(call.arrays[1], call.arrays[3]);
    with_layout(call, [&](auto zero, auto dense) { rnn_steps_grad<decltype(zero), dense>(call); });
}

// For the packed W_hh, which is the last array.
int64_t packed_forward(const Call& call)
{
    const Array& w = call.arrays[call.count - 1];
    int64_t gates = w.shape[1] / max64(w.shape[0], 1), size = 0;
    with_float(w.dtype, [&](auto zero) {
        using T = decltype(zero);
        size = gates * packed_elements<T>(w.shape[0], w.shape[0]) * int64_t{sizeof(T)};
    });
    return size;
}

int64_t packed_backward(const Call& call)
{
    const Array& w = call.arrays[call.count - 1];
    int64_t size = 0;
    with_float(w.dtype, [&](auto zero) {
        using T = decltype(zero);
        size = packed_elements<T>(w.shape[1], w.shape[0]) * int64_t{sizeof(T)};
    });
    return size;
}

}  // namespace

void add_recurrent(Table& table)
{
    table[Kernel::lstm_cell].run = lstm_cell;
    table[Kernel::lstm_cell_grad].run = lstm_cell_grad;
    table[Kernel::lstm_sequence] = {lstm_sequence, packed_forward};
    table[Kernel::lstm_sequence_grad] = {lstm_sequence_grad, packed_backward};
    table[Kernel::rnn_sequence] = {rnn_sequence, packed_forward};
    table[Kernel::rnn_sequence_grad] = {rnn_sequence_grad, packed_backward};
}

}  // namespace needle::NEEDLE_TARGET
