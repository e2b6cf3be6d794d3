"""The C++ gather, scatter-add and one-hot kernels: dtypes, layouts, repeated ids, threads."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_call import FLOATS, blank, cpu, isa, launch, lay, threads, written

__all__ = ["isa", "threads"]

Array = npt.NDArray[Any]

DTYPES = (*FLOATS, "int32", "int64", "uint8", "bool")
LAYOUTS = ("compact", "permuted", "sliced", "reversed")
# Rows of the table, columns, ids: narrow, wide, none, a single column, enough for threads.
SIZES = (
    (7, 3, 20),
    (50, 200, 700),
    (5, 4, 0),
    (5, 0, 3),
    (1, 1, 9),
    (1000, 2, 40_000),
    (9, 65, 999),
)


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    return rng.integers(0, 100, shape).astype(dtype)


def strided_ids(rng: np.random.Generator, rows: int, count: int) -> Array:
    return rng.integers(0, rows, 2 * count)[::-2] if count else np.zeros(0, "int64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gather(isa: str, threads: int, layout: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for rows, columns, count in SIZES:
        table = lay(draw(rng, (rows, columns), dtype), layout)
        ids = strided_ids(rng, rows, count)
        for out_layout in ("compact", layout):
            out = blank((count, columns), out_layout, dtype)
            launch("gather", out, table, ids)
            np.testing.assert_array_equal(written(out), table[ids])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scatter_add(isa: str, threads: int, layout: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    for rows, columns, count in SIZES:
        start = rng.standard_normal((rows, columns)).astype(dtype)
        out = lay(start, layout)
        src = lay(rng.standard_normal((count, columns)), layout, dtype)
        ids = strided_ids(rng, rows, count)
        want = start.copy()
        np.add.at(want, ids, src)  # in the order of ids, in the dtype itself: equal bit for bit
        launch("scatter_add", out, src, ids)
        np.testing.assert_array_equal(written(out), want)


def test_scatter_add_into_one_row(isa: str, threads: int) -> None:
    """Rounding shows the order: 1 is lost beside 2^24, but not before it is reached."""
    src = np.repeat(np.array([[2.0**24], [1.0], [-(2.0**24)], [1.0]], "float32"), 100, axis=1)
    src = np.tile(src, (300, 1))
    out = np.zeros((2, 100), "float32")
    launch("scatter_add", out, src, np.ones(1200, "int64"))
    want = np.float32(0)
    for value in src[:, 0]:
        want = np.float32(want + value)
    assert (out[0] == 0).all()
    assert (out[1] == want).all()


@pytest.mark.parametrize("columns", [2, 300])
def test_scatter_add_does_not_depend_on_threads(isa: str, columns: int) -> None:
    rng = np.random.default_rng(2)
    src = rng.standard_normal((9000, columns)).astype("float32")
    ids = rng.integers(0, 40, 9000)
    before, results = cpu.num_threads(), []
    for n in (1, 2, 3, 7):
        cpu.set_num_threads(n)
        out = np.zeros((40, columns), "float32")
        launch("scatter_add", out, src, ids)
        results.append(out)
    cpu.set_num_threads(before)
    assert all((r == results[0]).all() for r in results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_hot(isa: str, threads: int, layout: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    for classes, count in ((1, 5), (10, 128), (3, 0), (1000, 300)):
        ids = strided_ids(rng, classes, count)
        out = blank((count, classes), layout, dtype)
        launch("one_hot", out, ids)
        np.testing.assert_array_equal(written(out), np.eye(classes, dtype=dtype)[ids])
