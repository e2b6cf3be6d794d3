"""NumPy twins of the kernels that take ids (int64, in range)."""

from __future__ import annotations

import numpy as np

from needle.backend_ndarray.reference.types import Array


def gather(out: Array, table: Array, ids: Array) -> None:
    """out[r] = table[ids[r]]: out (R, D), table (V, D), ids (R,)."""
    out[...] = table[ids]


def scatter_add(out: Array, src: Array, ids: Array) -> None:
    """out[ids[r]] += src[r], for r in order: out (V, D), src (R, D), ids (R,)."""
    np.add.at(out, ids, src)


def one_hot(out: Array, ids: Array) -> None:
    """out[r, c] = 1 where c == ids[r], else 0: out (R, C), ids (R,)."""
    out[...] = 0
    out[np.arange(len(ids)), ids] = 1
