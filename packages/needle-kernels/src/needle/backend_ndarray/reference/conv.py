"""NumPy twins of the convolutions: a loop over the taps (i, j) of the K x K kernel.

x is (N, H, W, Ci), w is (K, K, Ci, Co), y is (N, OH, OW, Co), and with the zeros of the padding
around x,

    y[n, h, w, co] = sum over i, j, ci of x[n, stride * h + i, stride * w + j, ci] * w[i, j, ci, co]

so each tap is one matrix product between a strided slice of x and w[i, j].
"""

from __future__ import annotations

import numpy as np

from needle.backend_ndarray.reference.matmul import activate
from needle.backend_ndarray.reference.types import Array


def pad_image(x: Array, padding: int) -> Array:
    """x with `padding` zeros on every side of height and width."""
    return np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def tap(padded: Array, i: int, j: int, stride: int, height: int, width: int) -> Array:
    """The pixels that tap (i, j) reads, one per output pixel: a view (N, height, width, Ci)."""
    rows = slice(i, i + stride * height, stride)
    columns = slice(j, j + stride * width, stride)
    return padded[:, rows, columns][:, :height, :width]


def conv(
    out: Array,
    x: Array,
    w: Array,
    bias: Array | None,
    stride: float,
    padding: float,
    activation: float,
) -> None:
    """out = activation(conv(x, w) + bias)."""
    _, height, width, _ = out.shape
    padded = pad_image(x, int(padding))
    y = np.zeros(out.shape, out.dtype)
    for i, j in np.ndindex(w.shape[:2]):
        y += tap(padded, i, j, int(stride), height, width) @ w[i, j]
    if bias is not None:
        y += bias
    activate(y, activation)
    out[...] = y


def conv_input_grad(dx: Array, dy: Array, w: Array, stride: float, padding: float) -> None:
    """dx = what each pixel of x contributed to dy, tap by tap."""
    _, height, width, _ = dy.shape
    p = int(padding)
    padded = pad_image(np.zeros(dx.shape, dx.dtype), p)
    for i, j in np.ndindex(w.shape[:2]):
        pixels = tap(padded, i, j, int(stride), height, width)
        pixels += dy @ w[i, j].T
    dx[...] = padded[:, p : p + dx.shape[1], p : p + dx.shape[2]]


def conv_weight_grad(
    dw: Array, db: Array | None, x: Array, dy: Array, stride: float, padding: float
) -> None:
    """dw[i, j] = the pixels of tap (i, j), transposed, times dy; db = the sum of all dy."""
    _, height, width, _ = dy.shape
    padded = pad_image(x, int(padding))
    for i, j in np.ndindex(dw.shape[:2]):
        pixels = tap(padded, i, j, int(stride), height, width)
        dw[i, j] = np.tensordot(pixels, dy, axes=((0, 1, 2), (0, 1, 2)))
    if db is not None:
        np.sum(dy, axis=(0, 1, 2), out=db)
