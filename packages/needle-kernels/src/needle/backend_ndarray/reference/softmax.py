"""NumPy twins of softmax and its relatives. The maximum is taken out first, so exp cannot overflow.

logsumexp(a) = m + log(sum(exp(a - m)))        m = max(a)
"""

from __future__ import annotations

import numpy as np

from needle.backend_ndarray.reference.reduce import trailing
from needle.backend_ndarray.reference.types import Array


def log_sum_exp(a: Array, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    """log(sum(exp(a))) over `axes`; -inf where every element is -inf or there is none."""
    highest = np.max(a, axis=axes, keepdims=True, initial=-np.inf)
    # Taking out an infinite maximum would make inf - inf.
    shift = np.where(np.isfinite(highest), highest, 0).astype(a.dtype)
    total = np.log(np.exp(a - shift).sum(axis=axes, keepdims=True)) + shift
    result: Array = total if keepdims else np.squeeze(total, axis=axes)
    return result


def logsumexp(out: Array, a: Array) -> None:
    """out (kept...) = log(sum(exp(a))) over a's trailing axes."""
    out[...] = log_sum_exp(a, trailing(out, a))


def softmax(out: Array, a: Array) -> None:
    """out = exp(a) / sum(exp(a)) along the last axis of (R, C)."""
    if a.size == 0:
        return
    e = np.exp(a - a.max(axis=1, keepdims=True))
    out[...] = e / e.sum(axis=1, keepdims=True)


def logsoftmax(out: Array, a: Array) -> None:
    """out = a - logsumexp(a) along the last axis of (R, C)."""
    out[...] = a - log_sum_exp(a, (1,), keepdims=True)


def softmax_cross_entropy(loss: Array, lse: Array, logits: Array, labels: Array) -> None:
    """loss () = the mean over rows of lse - logits[label]; lse (R,) = logsumexp of each row."""
    lse[...] = log_sum_exp(logits, (1,))
    picked = logits[np.arange(len(labels)), labels]
    loss[...] = (lse - picked).mean(dtype=np.float64)


def softmax_cross_entropy_grad(
    dlogits: Array, dloss: Array, logits: Array, lse: Array, labels: Array
) -> None:
    """dlogits = (softmax(logits) - one_hot(labels)) * dloss / R."""
    if not len(labels):
        return
    p = np.exp(logits - lse[:, None])
    p[np.arange(len(labels)), labels] -= 1
    dlogits[...] = p * (dloss / len(labels))
