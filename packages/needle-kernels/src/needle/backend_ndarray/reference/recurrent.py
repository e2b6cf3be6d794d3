"""NumPy twins of the LSTM step, and of whole sequences of LSTM and RNN steps.

An LSTM's gates lie side by side in the order i, f, g, o:

    i, f, o = sigmoid(pre)    g = tanh(pre)    c = f * c_prev + i * g    h = o * tanh(c)

Source: Hochreiter and Schmidhuber 1997, with forget gates (Gers et al. 2000), as in PyTorch.
"""

from __future__ import annotations

import numpy as np

from needle.backend_ndarray.reference.elementwise import sigmoid
from needle.backend_ndarray.reference.matmul import activate
from needle.backend_ndarray.reference.types import Array

TANH = 2  # the code of an activation, as in matmul


def lstm_cell(h: Array, c: Array, gates: Array, pre: Array, c_prev: Array) -> None:
    """h, c (B, H) and gates (B, 4H) of the pre-activations pre (B, 4H); gates may be pre."""
    width = h.shape[1]
    for k, activation in enumerate((sigmoid, sigmoid, np.tanh, sigmoid)):
        part = slice(k * width, (k + 1) * width)
        if activation is sigmoid:
            sigmoid(gates[:, part], pre[:, part])
        else:
            np.tanh(pre[:, part], out=gates[:, part])
    i, f, g, o = np.split(gates, 4, axis=1)
    c[...] = f * c_prev + i * g
    h[...] = o * np.tanh(c)


def lstm_cell_grad(
    dpre: Array,
    dc_prev: Array,
    dh: Array,
    dc: Array,
    gates: Array,
    c: Array,
    c_prev: Array,
) -> None:
    """The gradients of lstm_cell for dh and dc, the gradients of its h and its c."""
    i, f, g, o = np.split(gates, 4, axis=1)
    t = np.tanh(c)
    # c reaches the loss directly (dc) and through h.
    total = dc + dh * o * (1 - t * t)
    di = total * g * i * (1 - i)
    df = total * c_prev * f * (1 - f)
    dg = total * i * (1 - g * g)
    do = dh * t * o * (1 - o)
    dpre[...] = np.concatenate((di, df, dg, do), axis=1)
    dc_prev[...] = total * f


def lstm_sequence(
    states: Array,
    cells: Array,
    gates: Array,
    pre: Array,
    h0: Array,
    c0: Array,
    w_hh: Array,
) -> None:
    """Steps of lstm_cell on pre[t] + h W_hh; row t + 1 of states and cells is what step t leaves.

    states and cells (T + 1, B, H), gates and pre (T, B, 4H), w_hh (H, 4H); gates may be pre.
    """
    states[0], cells[0] = h0, c0
    for t in range(len(pre)):
        lstm_cell(states[t + 1], cells[t + 1], gates[t], pre[t] + states[t] @ w_hh, cells[t])


def lstm_sequence_grad(
    dpre: Array,
    dh0: Array,
    dc0: Array,
    dy: Array | None,
    dh: Array | None,
    dc: Array | None,
    gates: Array,
    cells: Array,
    w_hh: Array,
) -> None:
    """The gradients of lstm_sequence for those of all states after h0 (dy) and of the last h and c.

    An absent gradient is zero.
    """
    dh0[...] = 0 if dh is None else dh
    dc0[...] = 0 if dc is None else dc
    for t in reversed(range(len(dpre))):
        if dy is not None:
            dh0 += dy[t]
        lstm_cell_grad(dpre[t], dc0, dh0, dc0.copy(), gates[t], cells[t + 1], cells[t])
        dh0[...] = dpre[t] @ w_hh.T


def rnn_sequence(states: Array, pre: Array, h0: Array, w_hh: Array, activation: float) -> None:
    """states[t + 1] = act(pre[t] + states[t] W_hh); activation is 1 for relu, 2 for tanh."""
    states[0] = h0
    for t in range(len(pre)):
        states[t + 1] = pre[t] + states[t] @ w_hh
        activate(states[t + 1], activation)


def rnn_sequence_grad(
    dpre: Array,
    dh0: Array,
    dy: Array | None,
    dh: Array | None,
    states: Array,
    w_hh: Array,
    activation: float,
) -> None:
    """The gradients of rnn_sequence for those of all states after h0 (dy) and of the last one."""
    dh0[...] = 0 if dh is None else dh
    for t in reversed(range(len(dpre))):
        if dy is not None:
            dh0 += dy[t]
        y = states[t + 1]
        dpre[t] = dh0 * (1 - y * y) if activation == TANH else np.where(y > 0, dh0, 0)
        dh0[...] = dpre[t] @ w_hh.T
