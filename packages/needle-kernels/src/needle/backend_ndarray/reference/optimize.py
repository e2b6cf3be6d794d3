"""NumPy twins of the optimizer kernels: all parameters in one call, each array compact."""

from __future__ import annotations

from typing import Any

import numpy as np

from needle.backend_ndarray.reference.types import Array


def sgd(*operands: Any) -> None:
    """[w, u, g] of each parameter; lr, momentum, weight_decay, nesterov; u is None if not kept.

    d = g + weight_decay * w        u = momentum * u + (1 - momentum) * d        w = w - lr * u

    With nesterov, w = w - lr * (momentum * u + (1 - momentum) * d), with the new u.
    """
    arrays, (lr, momentum, weight_decay, nesterov) = operands[:-4], operands[-4:]
    for w, u, g in zip(arrays[0::3], arrays[1::3], arrays[2::3], strict=True):
        decayed = g + weight_decay * w
        if u is None:
            w -= lr * decayed
            continue
        u[...] = momentum * u + (1 - momentum) * decayed
        w -= lr * (momentum * u + (1 - momentum) * decayed if nesterov else u)


def adam(*operands: Any) -> None:
    """[w, m, v, g] of each parameter; lr, beta1, beta2, eps, weight_decay, 1-beta1^t, 1-beta2^t.

    g = g + weight_decay * w
    m = beta1 * m + (1 - beta1) * g        v = beta2 * v + (1 - beta2) * g * g
    w = w - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Source: Kingma and Ba 2015, algorithm 1; the decay is added to the gradient, as in the course.
    """
    arrays = operands[:-7]
    lr, beta1, beta2, eps, weight_decay, correction1, correction2 = operands[-7:]
    for w, m, v, g in zip(arrays[0::4], arrays[1::4], arrays[2::4], arrays[3::4], strict=True):
        decayed = g + weight_decay * w
        m[...] = beta1 * m + (1 - beta1) * decayed
        v[...] = beta2 * v + (1 - beta2) * decayed * decayed
        w -= lr * (m / correction1) / (np.sqrt(v / correction2) + eps)


def moving_average(*operands: Any) -> None:
    """[running, value] of each average; momentum.

    running = (1 - momentum) * running + momentum * value
    """
    arrays, momentum = operands[:-1], operands[-1]
    for running, value in zip(arrays[0::2], arrays[1::2], strict=True):
        running[...] = (1 - momentum) * running + momentum * value


def sum_squares(out: Array, *arrays: Array) -> None:
    """out () = the sum of the squares of all elements, in float64."""
    out[...] = sum(np.square(a, dtype=np.float64).sum() for a in arrays)


def scale(*operands: Any) -> None:
    """Every array is multiplied by the factor, which comes last."""
    factor = operands[-1]
    for a in operands[:-1]:
        a *= factor
