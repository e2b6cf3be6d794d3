// The LSTM step between its matrix products. Gates lie side by side in the order i, f, g, o:
//     c = f * c_prev + i * g    h = o * tanh(c)
// Source: Hochreiter and Schmidhuber 1997, with forget gates (Gers et al. 2000), as in PyTorch.
#include "families.h"
#include "parallel.h"
#include "strided.h"
#include "vmath.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t grain = 1 << 10;  // cells (five activations each) for which a second thread pays

// Gate k of a row: 0 input, 1 forget, 2 candidate, 3 output.
template <class T>
Line<T> gate(const Array& array, int64_t row, int64_t k)
{
    return row_of<T>(array, row, k * (array.shape[1] / 4));
}

template <class Body>
void for_each_row(const Array& h, const Body& body)
{
    parallel_for(h.shape[0], ceil_div(grain, max64(h.shape[1], 1)),
                 [&](int64_t begin, int64_t end) {
                     with_float(h.dtype, [&](auto zero) {
                         for (int64_t r = begin; r < end; ++r) body(zero, r);
                     });
                 });
}

// gates may be pre itself: a vector of every gate is read before one is written.
template <class T>
void lstm_row(const Call& call, int64_t r)
{
    const Array &gates = call.arrays[2], &pre = call.arrays[3];
    Line<T> h = row_of<T>(call.arrays[0], r), c = row_of<T>(call.arrays[1], r);
    Line<T> c_prev = row_of<T>(call.arrays[4], r);
    Line<T> pre_i = gate<T>(pre, r, 0), pre_f = gate<T>(pre, r, 1);
    Line<T> pre_g = gate<T>(pre, r, 2), pre_o = gate<T>(pre, r, 3);
    Line<T> to_i = gate<T>(gates, r, 0), to_f = gate<T>(gates, r, 1);
    Line<T> to_g = gate<T>(gates, r, 2), to_o = gate<T>(gates, r, 3);
    for_vectors<T>(call.arrays[0].shape[1], [&](int64_t j, int64_t n) {
        Vec<T> i = vsigmoid<T>(pre_i.load(j, n)), f = vsigmoid<T>(pre_f.load(j, n));
        Vec<T> g = vtanh<T>(pre_g.load(j, n)), o = vsigmoid<T>(pre_o.load(j, n));
        to_i.store(j, n, i);
        to_f.store(j, n, f);
        to_g.store(j, n, g);
        to_o.store(j, n, o);
        Vec<T> cell = f * c_prev.load(j, n) + i * g;
        c.store(j, n, cell);
        h.store(j, n, o * vtanh<T>(cell));
    });
}

void lstm_cell(const Call& call)
{
    for_each_row(call.arrays[0], [&](auto zero, int64_t r) { lstm_row<decltype(zero)>(call, r); });
}

template <class T>
void lstm_grad_row(const Call& call, int64_t r)
{
    const Array &dpre = call.arrays[0], &gates = call.arrays[4];
    Line<T> dc_prev = row_of<T>(call.arrays[1], r);
    Line<T> dh = row_of<T>(call.arrays[2], r), dc = row_of<T>(call.arrays[3], r);
    Line<T> cell = row_of<T>(call.arrays[5], r), c_prev = row_of<T>(call.arrays[6], r);
    Line<T> from_i = gate<T>(gates, r, 0), from_f = gate<T>(gates, r, 1);
    Line<T> from_g = gate<T>(gates, r, 2), from_o = gate<T>(gates, r, 3);
    Line<T> to_i = gate<T>(dpre, r, 0), to_f = gate<T>(dpre, r, 1);
    Line<T> to_g = gate<T>(dpre, r, 2), to_o = gate<T>(dpre, r, 3);
    for_vectors<T>(call.arrays[2].shape[1], [&](int64_t j, int64_t n) {
        Vec<T> i = from_i.load(j, n), f = from_f.load(j, n), g = from_g.load(j, n),
               o = from_o.load(j, n);
        Vec<T> incoming = dh.load(j, n), t = vtanh<T>(cell.load(j, n));
        // The cell state reaches the loss directly (dc) and through h.
        Vec<T> total = dc.load(j, n) + incoming * o * (T(1) - t * t);
        to_i.store(j, n, total * g * i * (T(1) - i));
        to_f.store(j, n, total * c_prev.load(j, n) * f * (T(1) - f));
        to_g.store(j, n, total * i * (T(1) - g * g));
        to_o.store(j, n, incoming * t * o * (T(1) - o));
        dc_prev.store(j, n, total * f);
    });
}

void lstm_cell_grad(const Call& call)
{
    for_each_row(call.arrays[2],
                 [&](auto zero, int64_t r) { lstm_grad_row<decltype(zero)>(call, r); });
}

}  // namespace

void add_recurrent(Table& table)
{
    table[Kernel::lstm_cell].run = lstm_cell;
    table[Kernel::lstm_cell_grad].run = lstm_cell_grad;
}

}  // namespace needle::NEEDLE_TARGET
