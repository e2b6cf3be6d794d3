"""The gradients of a linear layer against sums in long double, on every instruction set."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_call import FLOATS, LAYOUTS, blank, check, eps, isa, launch, lay, threads, written

__all__ = ["isa", "threads"]

Array = npt.NDArray[Any]

# Rows, inputs, outputs. Which way a product goes depends on the instruction set; the comments are
# AVX-512's.
SIZES = [
    (1, 1, 1),
    (0, 3, 5),
    (5, 0, 3),
    (5, 3, 0),
    (7, 20, 9),
    (37, 5, 130),  # few rows of x^T
    (600, 70, 400),  # strips of dy in place
    (530, 90, 300),  # strips, and columns behind the last of them
    (1030, 520, 300),  # packed strips, in two blocks of depth
    (1024, 1100, 290),  # rows of x^T packed for strips in two groups
    (600, 70, 900),  # panels of dy that their first tiles pack
    (50, 1500, 600),  # some rows of x^T after the other run through all of dy
    (300, 70, 4200),  # a wide dy, in several blocks of depth
    (4500, 101, 70),  # blocks
    (700, 701, 17),  # one panel
]


@lru_cache
def draw(size: tuple[int, int, int], dtype: str) -> tuple[Array, ...]:
    """x and dy, and the gradients in long double, which take long."""
    rows, inputs, outputs = size
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (rows, inputs)).astype(dtype)
    dy = rng.uniform(-1, 1, (rows, outputs)).astype(dtype)
    return x, dy, x.T.astype("longdouble") @ dy, dy.sum(0, dtype="longdouble")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_linear_weight_grad(isa: str, threads: int, size: tuple[int, int, int], dtype: str) -> None:
    x, dy, want_dw, want_db = draw(size, dtype)
    dw, db = blank(want_dw.shape, "compact", dtype), blank(want_db.shape, "compact", dtype)
    launch("linear_weight_grad", dw, db, x, dy)
    rows = len(x)
    bound = (rows + 10) * eps(dtype) / 2 * (np.abs(x).T.astype(float) @ np.abs(dy) + 1)
    assert (np.abs(dw - want_dw) <= bound).all()
    # In double, in blocks of at most 1,024: the sum of a float is right but for its own rounding.
    blocks = min(rows, 1024) + rows // 1024
    check(db, want_db, eps(dtype) / 2, blocks * 2**-53 * np.abs(dy).sum(0).max(initial=0))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of", ["x", "dy", "outputs"])
def test_layouts(isa: str, layout: str, of: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    x, dy = (rng.uniform(-1, 1, shape).astype(dtype) for shape in ((1033, 7), (1033, 41)))
    outputs = layout if of == "outputs" else "compact"
    dw, db = blank((7, 41), outputs, dtype), blank((41,), outputs, dtype)
    given_x = lay(x, layout if of == "x" else "compact")
    given_dy = lay(dy, layout if of == "dy" else "compact")
    launch("linear_weight_grad", dw, db, given_x, given_dy)
    check(written(dw), x.astype(float).T @ dy, atol=1033 * 33 * eps(dtype))
    check(written(db), dy.sum(0, dtype="longdouble"), eps(dtype) / 2, 1026 * 1033 * 2**-53)
