"""NumPy twins of the LSTM step.

The four gates lie side by side in the order i, f, g, o:

    i, f, o = sigmoid(pre)    g = tanh(pre)    c = f * c_prev + i * g    h = o * tanh(c)

Source: Hochreiter and Schmidhuber 1997, with forget gates (Gers et al. 2000), as in PyTorch.
"""

from __future__ import annotations

import numpy as np

from needle.backend_ndarray.reference.elementwise import sigmoid
from needle.backend_ndarray.reference.types import Array


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
