"""NumPy twins of the copying kernels."""

from __future__ import annotations

from needle.backend_ndarray.reference.types import Array


def copy(out: Array, a: Array) -> None:
    """out = a, cast to out's dtype."""
    out[...] = a


def fill(out: Array, value: float) -> None:
    """out = value everywhere."""
    out[...] = value
