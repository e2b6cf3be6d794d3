"""The oracles: every module as plain NumPy loops in float64, and differences as gradients.

Nothing here knows needle but `check`, which compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from needle.backend_ndarray.testing import compare

Array = np.ndarray[Any, np.dtype[np.float64]]
Params = dict[str, Array]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    y = np.zeros((*x.shape[:-1], weight.shape[1]))
    for row in np.ndindex(x.shape[:-1]):
        for o in range(weight.shape[1]):
            y[(*row, o)] = np.sum(x[row] * weight[:, o])
            if bias is not None:
                y[(*row, o)] += bias.reshape(-1)[o]
    return y


def conv(x: Array, weight: Array, bias: Array | None, stride: int, padding: int) -> Array:
    """x (N, C, H, W), weight (K, K, C, O): the definition, one output value at a time."""
    n, _, height, width = x.shape
    k, out = weight.shape[0], weight.shape[3]
    rows = (height + 2 * padding - k) // stride + 1
    columns = (width + 2 * padding - k) // stride + 1
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    y = np.zeros((n, out, rows, columns))
    for image, o, i, j in np.ndindex(y.shape):
        top, left = i * stride, j * stride
        window = padded[image, :, top : top + k, left : left + k].transpose(1, 2, 0)
        y[image, o, i, j] = np.sum(window * weight[:, :, :, o])
        if bias is not None:
            y[image, o, i, j] += bias[o]
    return y


def channel_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel of x (N, C) or (N, C, H, W)."""
    means, variances = [], []
    for c in range(x.shape[1]):
        values = [float(v) for v in x[:, c].reshape(-1)]
        mean = sum(values) / len(values)
        means.append(mean)
        variances.append(sum((v - mean) ** 2 for v in values) / len(values))
    return np.array(means), np.array(variances)


def normalized(x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float) -> Array:
    y = np.zeros(x.shape)
    for c in range(x.shape[1]):
        y[:, c] = weight[c] * (x[:, c] - mean[c]) / np.sqrt(var[c] + eps) + bias[c]
    return y


def batch_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    return normalized(x, *channel_statistics(x), weight, bias, eps)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    y = np.zeros(x.shape)
    for row in np.ndindex(x.shape[:-1]):
        mean = sum(x[row]) / len(x[row])
        var = sum((v - mean) ** 2 for v in x[row]) / len(x[row])
        for d, v in enumerate(x[row]):
            y[(*row, d)] = weight[d] * (v - mean) / np.sqrt(var + eps) + bias[d]
    return y


def pool(
    mean_or_max: Callable[[Array], Any],
    x: Array,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    fill: float = 0.0,
    ceil_mode: bool = False,
) -> Array:
    """Each window of x (N, C, H, W); what lies outside is `fill`."""
    counts = []
    for size, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True):
        n = (size + 2 * p - k) / s
        counts.append((math.ceil(n) if ceil_mode else math.floor(n)) + 1)
        if (counts[-1] - 1) * s >= size + p:
            counts[-1] -= 1
    y = np.zeros((*x.shape[:2], *counts))
    for n, c, i, j in np.ndindex(y.shape):
        top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
        y[n, c, i, j] = mean_or_max(
            np.array([
                x[n, c, h, w] if 0 <= h < x.shape[2] and 0 <= w < x.shape[3] else fill
                for h in range(top, top + kernel[0])
                for w in range(left, left + kernel[1])
            ])
        )  # fmt: skip
    return y


def softmax_loss(logits: Array, y: Array, smoothing: float = 0.0) -> Array:
    losses = []
    for row, label in zip(logits, y, strict=True):
        top = max(row)
        chosen = (1 - smoothing) * row[int(label)] + smoothing * sum(row) / len(row)
        losses.append(top + np.log(sum(np.exp(row - top))) - chosen)
    return np.array(sum(losses) / len(losses))


def embedding(ids: Array, weight: Array) -> Array:
    y = np.zeros((*ids.shape, weight.shape[1]))
    for position in np.ndindex(ids.shape):
        y[position] = weight[int(ids[position])]
    return y


def cell_input(x: Array, h: Array, p: Params, prefix: str) -> Array:
    """x W_ih + bias_ih + h W_hh + bias_hh of the cell whose names start with `prefix`."""
    total = linear(x, p[prefix + "W_ih"], p.get(prefix + "bias_ih"))
    return total + linear(h, p[prefix + "W_hh"], p.get(prefix + "bias_hh"))


def rnn_cell(x: Array, h: Array, p: Params, prefix: str = "", relu: bool = False) -> Array:
    pre = cell_input(x, h, p, prefix)
    return np.where(pre > 0, pre, 0.0) if relu else np.tanh(pre)


def lstm_cell(x: Array, h: Array, c: Array, p: Params, prefix: str = "") -> tuple[Array, Array]:
    pre = cell_input(x, h, p, prefix)
    size = h.shape[1]
    i, f, g, o = (pre[:, k * size : (k + 1) * size] for k in range(4))
    c_next = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c_next), c_next


def rnn(x: Array, h0: Array, p: Params, relu: bool = False) -> tuple[Array, Array]:
    """x (T, B, I), h0 (L, B, H): step by step, layer by layer."""
    h, outputs = list(h0), []
    for x_t in x:
        below = x_t
        for layer in range(len(h)):
            h[layer] = below = rnn_cell(below, h[layer], p, f"rnn_cells.{layer}.", relu)
        outputs.append(below)
    return np.stack(outputs), np.stack(h)


def lstm(x: Array, h0: Array, c0: Array, p: Params) -> tuple[Array, Array, Array]:
    h, c, outputs = list(h0), list(c0), []
    for x_t in x:
        below = x_t
        for k in range(len(h)):
            h[k], c[k] = lstm_cell(below, h[k], c[k], p, f"lstm_cells.{k}.")
            below = h[k]
        outputs.append(below)
    return np.stack(outputs), np.stack(h), np.stack(c)


# ---- update rules -------------------------------------------------------------------------------


def sgd(
    w: Array,
    u: Array,
    grad: Array,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
) -> tuple[Array, Array]:
    w, u = w.copy(), u.copy()
    for at in np.ndindex(w.shape):
        decayed = grad[at] + weight_decay * w[at]
        u[at] = momentum * u[at] + (1 - momentum) * decayed
        ahead = momentum * u[at] + (1 - momentum) * decayed
        w[at] = w[at] - lr * (ahead if nesterov else u[at])
    return w, u


def adam(
    w: Array,
    m: Array,
    v: Array,
    grad: Array,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[Array, Array, Array]:
    w, m, v = w.copy(), m.copy(), v.copy()
    for at in np.ndindex(w.shape):
        g = grad[at] + weight_decay * w[at]
        m[at] = beta1 * m[at] + (1 - beta1) * g
        v[at] = beta2 * v[at] + (1 - beta2) * g * g
        m_hat, v_hat = m[at] / (1 - beta1**t), v[at] / (1 - beta2**t)
        w[at] = w[at] - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w, m, v


# ---- gradients and comparison -------------------------------------------------------------------


def numeric_gradient(f: Callable[[], float], x: Array, eps: float = 1e-6) -> Array:
    """The central difference of f in every entry of x, which f reads and this changes in place."""
    gradient = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        value = x[at]
        x[at] = value + eps
        above = f()
        x[at] = value - eps
        below = f()
        x[at] = value
        gradient[at] = (above - below) / (2 * eps)
    return gradient


def flat(result: Any) -> list[Any]:
    """A result as a list of Tensors or arrays: tuples unpacked."""
    if isinstance(result, tuple):
        return [item for part in result for item in flat(part)]
    return [result]


def check(name: str, got: Any, want: Array, dtype: str, rtol: float, atol: float) -> None:
    """Demands the shape, the dtype, finite values, and then closeness."""
    try:
        compare(got, want, dtype=dtype, rtol=rtol, atol=atol)
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from None
