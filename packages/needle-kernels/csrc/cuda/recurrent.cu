// LSTM and RNN steps. A sequence is a loop of launches on the host: a product with w_hh, then the
// step's elements. An LSTM's gates lie side by side in the order i, f, g, o:
//     i, f, o = sigmoid(pre)    g = tanh(pre)    c = f * c_prev + i * g    h = o * tanh(c)
#include "families.h"
#include "map.cuh"
#include "matmul.cuh"

namespace needle::cuda {

namespace {

constexpr int recurrent_threads = 256;

// Calls body(row, column) for every element of a rows x columns matrix, shared by the grid.
template <class Body>
__device__ __forceinline__ void for_elements(int64_t rows, int64_t columns, const Body& body)
{
    int64_t step = int64_t(gridDim.x) * recurrent_threads;
    for (int64_t i = int64_t(blockIdx.x) * recurrent_threads + threadIdx.x; i < rows * columns;
         i += step)
        body(i / columns, i % columns);
}

template <class T>
unsigned grid_of(const Matrix<T>& m)
{
    return grid_for(m.rows * m.columns, recurrent_threads);
}

// Part t of an array along its first axis.
template <class T>
Array part(const Array& array, int64_t t)
{
    Array found = array;
    found.data = array.as<T>() + t * array.strides[0];
    --found.rank;
    for (int axis = 0; axis < found.rank; ++axis) {
        found.shape[axis] = array.shape[axis + 1];
        found.strides[axis] = array.strides[axis + 1];
    }
    return found;
}

Array transposed(const Array& a)
{
    Array t = a;
    t.shape[0] = a.shape[1];
    t.shape[1] = a.shape[0];
    t.strides[0] = a.strides[1];
    t.strides[1] = a.strides[0];
    return t;
}

struct Same {
    template <class T>
    __device__ T operator()(T x, T) const
    {
        return x;
    }
};

// out = a; zeros where a is absent.
template <class T>
void copy(const Call& call, const Array& out, const Array& a)
{
    if (out.data == a.data) return;
    Array arrays[] = {out, a};
    Call one{arrays, 2, nullptr, 0, nullptr, call.stream, call.kernel};
    map<T, T, T>(one, Same{});
}

// ---- LSTM

template <class T>
__global__ void __launch_bounds__(recurrent_threads)
    lstm_cell_kernel(Matrix<T> h, Matrix<T> c, Matrix<T> gates, Matrix<T> pre, Matrix<T> c_prev)
{
    int64_t width = h.columns;
    for_elements(h.rows, width, [&](int64_t b, int64_t k) {
        T i = activate(pre.at(b, k), 3), f = activate(pre.at(b, width + k), 3);
        T g = activate(pre.at(b, 2 * width + k), 2), o = activate(pre.at(b, 3 * width + k), 3);
        gates.at(b, k) = i;
        gates.at(b, width + k) = f;
        gates.at(b, 2 * width + k) = g;
        gates.at(b, 3 * width + k) = o;
        T cell = f * c_prev.at(b, k) + i * g;
        c.at(b, k) = cell;
        h.at(b, k) = o * activate(cell, 2);
    });
}

template <class T>
void run_lstm_cell(const Call& call, const Array& h, const Array& c, const Array& gates,
                   const Array& pre, const Array& c_prev)
{
    Matrix<T> out(h);
    launch(call, lstm_cell_kernel<T>, grid_of(out), recurrent_threads, 0, out, Matrix<T>(c),
           Matrix<T>(gates), Matrix<T>(pre), Matrix<T>(c_prev));
}

void lstm_cell(const Call& call)
{
    const Array* a = call.arrays;
    with_float(a[0].dtype, [&](auto zero) {
        run_lstm_cell<decltype(zero)>(call, a[0], a[1], a[2], a[3], a[4]);
    });
}

// The gradient of h is dh, and dy where `has_dy`.
template <class T>
__global__ void __launch_bounds__(recurrent_threads)
    lstm_cell_grad_kernel(Matrix<T> dpre, Matrix<T> dc_prev, Matrix<T> dh, Matrix<T> dy,
                          bool has_dy, Matrix<T> dc, Matrix<T> gates, Matrix<T> c, Matrix<T> c_prev)
{
    int64_t width = c.columns;
    for_elements(c.rows, width, [&](int64_t b, int64_t k) {
        T i = gates.at(b, k), f = gates.at(b, width + k);
        T g = gates.at(b, 2 * width + k), o = gates.at(b, 3 * width + k);
        T t = activate(c.at(b, k), 2), into = dh.at(b, k);
        if (has_dy) into += dy.at(b, k);
        T total = dc.at(b, k) + into * o * (1 - t * t);  // c reaches the loss directly and by h
        dpre.at(b, k) = total * g * i * (1 - i);
        dpre.at(b, width + k) = total * c_prev.at(b, k) * f * (1 - f);
        dpre.at(b, 2 * width + k) = total * i * (1 - g * g);
        dpre.at(b, 3 * width + k) = into * t * o * (1 - o);
        dc_prev.at(b, k) = total * f;
    });
}

template <class T>
void run_lstm_cell_grad(const Call& call, const Array& dpre, const Array& dc_prev, const Array& dh,
                        const Array* dy, const Array& dc, const Array& gates, const Array& c,
                        const Array& c_prev)
{
    Matrix<T> cells(c);
    launch(call, lstm_cell_grad_kernel<T>, grid_of(cells), recurrent_threads, 0, Matrix<T>(dpre),
           Matrix<T>(dc_prev), Matrix<T>(dh), Matrix<T>(dy != nullptr ? *dy : dh), dy != nullptr,
           Matrix<T>(dc), Matrix<T>(gates), cells, Matrix<T>(c_prev));
}

void lstm_cell_grad(const Call& call)
{
    const Array* a = call.arrays;
    with_float(a[0].dtype, [&](auto zero) {
        run_lstm_cell_grad<decltype(zero)>(call, a[0], a[1], a[2], nullptr, a[3], a[4], a[5], a[6]);
    });
}

void lstm_sequence(const Call& call)
{
    const Array *a = call.arrays, &states = a[0], &cells = a[1], &gates = a[2], &w_hh = a[6];
    with_float(states.dtype, [&](auto zero) {
        using T = decltype(zero);
        copy<T>(call, part<T>(states, 0), a[4]);
        copy<T>(call, part<T>(cells, 0), a[5]);
        copy<T>(call, gates, a[3]);
        for (int64_t t = 0; t < gates.shape[0]; ++t) {
            Array pre = part<T>(gates, t);
            matmul_into(call, pre, part<T>(states, t), w_hh, 0, true);
            run_lstm_cell<T>(call, part<T>(states, t + 1), part<T>(cells, t + 1), pre, pre,
                             part<T>(cells, t));
        }
    });
}

void lstm_sequence_grad(const Call& call)
{
    const Array *a = call.arrays, &dpre = a[0], &dh = a[1], &dc = a[2], &dy = a[3];
    const Array &gates = a[6], &cells = a[7], w_transposed = transposed(a[8]);
    with_float(dpre.dtype, [&](auto zero) {
        using T = decltype(zero);
        copy<T>(call, dh, a[4]);
        copy<T>(call, dc, a[5]);
        for (int64_t t = dpre.shape[0] - 1; t >= 0; --t) {
            Array step = dy.data != nullptr ? part<T>(dy, t) : Array{}, out = part<T>(dpre, t);
            run_lstm_cell_grad<T>(call, out, dc, dh, dy.data != nullptr ? &step : nullptr, dc,
                                  part<T>(gates, t), part<T>(cells, t + 1), part<T>(cells, t));
            matmul_into(call, dh, out, w_transposed, 0, false);
        }
    });
}

// ---- RNN

void rnn_sequence(const Call& call)
{
    const Array *a = call.arrays, &states = a[0], &pre = a[1];
    int activation = static_cast<int>(call.scalars[0]);
    with_float(states.dtype, [&](auto zero) {
        using T = decltype(zero);
        copy<T>(call, part<T>(states, 0), a[2]);
        Array later = states;
        later.data = part<T>(states, 1).data;
        --later.shape[0];
        copy<T>(call, later, pre);
        for (int64_t t = 0; t < pre.shape[0]; ++t)
            matmul_into(call, part<T>(later, t), part<T>(states, t), a[3], activation, true);
    });
}

template <class T>
__global__ void __launch_bounds__(recurrent_threads)
    rnn_step_grad(Matrix<T> dpre, Matrix<T> dh, Matrix<T> dy, bool has_dy, Matrix<T> y, bool relu)
{
    for_elements(dpre.rows, dpre.columns, [&](int64_t b, int64_t k) {
        T into = dh.at(b, k), value = y.at(b, k);
        if (has_dy) into += dy.at(b, k);
        T through = value > T(0) ? into : T(0);
        dpre.at(b, k) = relu ? through : into * (1 - value * value);
    });
}

void rnn_sequence_grad(const Call& call)
{
    const Array *a = call.arrays, &dpre = a[0], &dh = a[1], &dy = a[2], &states = a[4];
    Array w_transposed = transposed(a[5]);
    bool has_dy = dy.data != nullptr, relu = call.scalars[0] == 1;
    with_float(dpre.dtype, [&](auto zero) {
        using T = decltype(zero);
        copy<T>(call, dh, a[3]);
        for (int64_t t = dpre.shape[0] - 1; t >= 0; --t) {
            Array out = part<T>(dpre, t), step = has_dy ? part<T>(dy, t) : dh;
            Matrix<T> target(out);
            launch(call, rnn_step_grad<T>, grid_of(target), recurrent_threads, 0, target,
                   Matrix<T>(dh), Matrix<T>(step), has_dy, Matrix<T>(part<T>(states, t + 1)), relu);
            matmul_into(call, dh, out, w_transposed, 0, false);
        }
    });
}

}  // namespace

void add_recurrent(Table& table)
{
    table[Kernel::lstm_cell].run = lstm_cell;
    table[Kernel::lstm_cell_grad].run = lstm_cell_grad;
    table[Kernel::lstm_sequence].run = lstm_sequence;
    table[Kernel::lstm_sequence_grad].run = lstm_sequence_grad;
    table[Kernel::rnn_sequence].run = rnn_sequence;
    table[Kernel::rnn_sequence_grad].run = rnn_sequence_grad;
}

}  // namespace needle::cuda
