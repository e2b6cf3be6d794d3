"""NumPy twin of the matrix product."""

from __future__ import annotations

import numpy as np

from needle.backend_ndarray.reference.elementwise import sigmoid
from needle.backend_ndarray.reference.types import Array


def activate(out: Array, activation: float) -> None:
    """out = activation(out): 0 none, 1 relu, 2 tanh, 3 sigmoid."""
    if activation == 1:
        np.maximum(out, 0, out=out)
    elif activation == 2:
        np.tanh(out, out=out)
    elif activation == 3:
        sigmoid(out, out)


def matmul(
    out: Array, a: Array, b: Array, bias: Array | None, activation: float, accumulate: float
) -> None:
    """out = activation(out + a b + bias): out (B..., M, N), a (B..., M, K), b (B..., K, N).

    Without `accumulate` the old `out` does not count. `bias` is (N,) or None.
    """
    product = np.matmul(a, b)
    if accumulate:
        product += out
    if bias is not None:
        product += bias
    activate(product, activation)
    out[...] = product


def linear_weight_grad(dw: Array, db: Array, x: Array, dy: Array) -> None:
    """dw = x^T dy, db = the sum of dy's rows: x (R, K), dy (R, N)."""
    np.matmul(x.T, dy, out=dw)
    np.sum(dy, axis=0, out=db)
