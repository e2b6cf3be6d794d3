"""NumPy twins of the reductions: out (kept...), a (kept..., reduced...)."""

from __future__ import annotations

import numpy as np

from needle.backend_ndarray.reference.types import Array


def trailing(out: Array, a: Array) -> tuple[int, ...]:
    """The axes of `a` that `out` lacks: its last ones."""
    return tuple(range(out.ndim, a.ndim))


def sum(out: Array, a: Array) -> None:
    """out = the sum over a's trailing axes."""
    np.sum(a, axis=trailing(out, a), out=out)


def max(out: Array, a: Array) -> None:
    """out = the maximum over a's trailing axes, NaN where one is."""
    np.max(a, axis=trailing(out, a), out=out)


def min(out: Array, a: Array) -> None:
    """out = the minimum over a's trailing axes, NaN where one is."""
    np.min(a, axis=trailing(out, a), out=out)
