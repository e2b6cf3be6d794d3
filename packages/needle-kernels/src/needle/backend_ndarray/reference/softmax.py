"""NumPy twins of softmax and its relatives.

The maximum m is taken out before exp, which then cannot overflow:

    shifted = a - m        logsumexp(a) = m + log(sum(exp(shifted)))
"""

from __future__ import annotations

import numpy as np

from needle.backend_ndarray.reference.reduce import trailing
from needle.backend_ndarray.reference.types import Array


def shift(a: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """a - m, m, and log(sum(exp(a - m))), the axes kept with size 1."""
    highest = np.max(a, axis=axes, keepdims=True, initial=-np.inf)
    # Taking out an infinite maximum would make inf - inf.
    m = np.where(np.isinf(highest), 0, highest).astype(a.dtype)
    shifted = a - m
    return shifted, m, np.log(np.exp(shifted).sum(axis=axes, keepdims=True))


def logsumexp(out: Array, a: Array) -> None:
    """out (kept...) = log(sum(exp(a))) over a's trailing axes; -inf where there is nothing."""
    axes = trailing(out, a)
    _, m, log_total = shift(a, axes)
    out[...] = np.squeeze(m + log_total, axis=axes)


def softmax(out: Array, a: Array) -> None:
    """out = exp(a) / sum(exp(a)) along the last axis of (R, C)."""
    shifted, _, _ = shift(a, (1,))
    e = np.exp(shifted)
    out[...] = e / e.sum(axis=1, keepdims=True)


def logsoftmax(out: Array, a: Array) -> None:
    """out = a - logsumexp(a) along the last axis of (R, C), without adding m and taking it off."""
    shifted, _, log_total = shift(a, (1,))
    out[...] = shifted - log_total


def softmax_cross_entropy(
    loss: Array, lse: Array, logits: Array, labels: Array, smoothing: float
) -> None:
    """loss () = the mean over rows of lse - target . logits; lse (R,) = logsumexp of each row.

    target = (1 - smoothing) * one_hot(label) + smoothing / C
    """
    shifted, m, log_total = shift(logits, (1,))
    lse[...] = (m + log_total)[:, 0]
    picked = shifted[np.arange(len(labels)), labels]
    if smoothing:  # 0 times an infinite sum would be NaN
        picked = (1 - smoothing) * picked + smoothing * shifted.mean(axis=1)
    loss[...] = (log_total[:, 0] - picked).mean(dtype=np.float64)


def softmax_cross_entropy_grad(
    dlogits: Array, dloss: Array, logits: Array, lse: Array, labels: Array, smoothing: float
) -> None:
    """dlogits = (softmax(logits) - target) * dloss / R; target as in softmax_cross_entropy."""
    p = np.exp(logits - lse[:, None]) - smoothing / logits.shape[1]
    p[np.arange(len(labels)), labels] -= 1 - smoothing
    dlogits[...] = p * (dloss / len(labels))
