"""The C++ copy and fill kernels: every pair of dtypes, every pair of layouts, threads."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_call import (
    SENTINEL,
    beside_cache_line,
    blank,
    isa,
    launch,
    lay,
    lay_at_random,
    threads,
    written,
)

__all__ = ["isa", "threads"]

Array = npt.NDArray[Any]

DTYPES = ("float32", "float64", "int32", "int64", "uint8", "bool")


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    if dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if dtype.startswith("float"):
        return np.asarray(rng.uniform(-100, 100, shape), dtype)
    return np.asarray(rng.integers(0, 120, shape, dtype))


def cast(a: Array, dtype: str) -> Array:
    """A C cast: NumPy's own, but for floats to uint8, which go through int32."""
    if dtype == "uint8" and a.dtype.kind == "f":
        return a.astype("int32").astype("uint8")
    return a.astype(dtype)


@pytest.mark.parametrize("from_dtype", DTYPES)
@pytest.mark.parametrize("to_dtype", DTYPES)
def test_casts(isa: str, to_dtype: str, from_dtype: str) -> None:
    rng = np.random.default_rng(0)
    for n in (0, 1, 3, 17, 64, 1025, 70_003):
        a = draw(rng, (n,), from_dtype)
        out = np.zeros(n, to_dtype)
        launch("copy", out, a)
        np.testing.assert_array_equal(out, cast(a, to_dtype))


def test_casts_wrap_and_truncate(isa: str) -> None:
    a = np.array([2**40 + 3, -1, 300, -(2**31) - 1, 0] * 13)
    for dtype in ("int32", "uint8", "bool", "float32"):
        out = np.zeros(a.shape, dtype)
        launch("copy", out, a)
        np.testing.assert_array_equal(out, a.astype(dtype))
    b = np.array([1.9, -1.9, 0.0, -0.0, 0.3, 1e-45, 254.99] * 9)
    for dtype in ("int32", "int64", "bool", "float32"):
        for source in (b, b.astype("float32")):
            out = np.zeros(b.shape, dtype)
            launch("copy", out, source)
            np.testing.assert_array_equal(out, source.astype(dtype))


def test_floats_beyond_the_integers_are_as_in_numpy(isa: str) -> None:
    for size in (1, 5, 33):  # NumPy's answer for one value is the processor's, lanes or not
        a = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30] * size, "float32")
        for source in (a, a.astype("float64")):
            for dtype in ("int32", "int64"):
                out = np.zeros(a.shape, dtype)
                launch("copy", out, source)
                with np.errstate(invalid="ignore"):
                    np.testing.assert_array_equal(out, source.astype(dtype))
            flag = np.zeros(a.shape, "bool")
            launch("copy", flag, source)
            assert flag.all()


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
@pytest.mark.parametrize("spacing", [-3, -1, 2, 3, 4, 5])
def test_rows_whose_items_lie_apart(isa: str, spacing: int, dtype: str) -> None:
    """Every length around whole vectors, into rows with something behind them."""
    memory = draw(np.random.default_rng(5), (2, 700), dtype)
    for n in (*range(1, 70), 130):
        a = memory[:, ::spacing][:, :n]
        out = np.full((2, n + 3), 99, dtype)
        launch("copy", out[:, :n], a)
        np.testing.assert_array_equal(out[:, :n], a)
        assert (out[:, n:] == 99).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_short_rows_of_a_row_or_a_column(isa: str, dtype: str) -> None:
    """Written as whole vectors, but nothing behind the last row."""
    values = draw(np.random.default_rng(7), (2, 400), dtype)
    for columns in (*range(1, 36), 47, 48, 63, 64, 65):
        for rows in (1, 2, 3, 17, 300):
            row, column = values[0, :columns], values[0, 5 : 5 + rows, None]
            for a in (row, column, values[0, ::-1][:columns], values.T[:rows, 1:]):
                a = np.broadcast_to(a, (rows, columns))
                owner = np.full(rows * columns + 70, 99, dtype)
                out = owner[: rows * columns].reshape(rows, columns)
                launch("copy", out, a)
                np.testing.assert_array_equal(out, a)
                assert (owner[rows * columns :] == 99).all()


@pytest.mark.parametrize("columns", [3, 16, 61, 100, 1000])
def test_rows_that_repeat_beyond_the_caches(isa: str, columns: int) -> None:
    values = draw(np.random.default_rng(8), (3_000_000 // columns, columns), "float32")
    out = np.zeros_like(values)
    for a in (values[7], values[:, :1], values[:, 2:3].copy()):
        launch("copy", out, np.broadcast_to(a, out.shape))
        np.testing.assert_array_equal(out, np.broadcast_to(a, out.shape))
        launch("add", out, np.broadcast_to(a, out.shape), np.broadcast_to(values[1], out.shape))
        np.testing.assert_array_equal(out, a + values[1] + np.zeros_like(out))


def test_runs_beyond_the_caches(isa: str) -> None:
    rng = np.random.default_rng(6)
    for shape in ((128, 310, 256), (128, 310, 252)):  # whole cache lines, and not
        a = rng.standard_normal(shape, "float32").transpose(1, 0, 2)
        out = beside_cache_line(a.shape, "float32", 0)
        launch("copy", out, a)
        np.testing.assert_array_equal(out, a)


def random_shape(rng: np.random.Generator) -> tuple[int, ...]:
    rank = rng.integers(0, 7)
    sizes = [0, 1, 2, 3, 5, 8, 17, 40, 130] if rank < 4 else [1, 2, 3, 5]
    return tuple(int(n) for n in rng.choice(sizes, rank))


@pytest.mark.parametrize(
    ("to_dtype", "from_dtype"),
    [(d, d) for d in DTYPES] + [("float32", "uint8"), ("float64", "float32"), ("bool", "int64")],
)
def test_any_strides(isa: str, threads: int, to_dtype: str, from_dtype: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(150):
        shape = random_shape(rng)
        a = lay_at_random(rng, draw(rng, shape, from_dtype))
        cut = (*(slice(0, 1) if rng.random() < 0.2 else slice(None) for _ in shape), ...)
        a = np.broadcast_to(a[cut], shape)
        out = lay_at_random(rng, np.zeros(shape, to_dtype))
        before = np.array(out.base) if out.base is not None else None
        launch("copy", out, a)
        np.testing.assert_array_equal(out, cast(a, to_dtype))
        if before is not None and to_dtype != "bool":
            out[...] = 0
            np.testing.assert_array_equal(out.base, before)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("shape", [(301, 257), (64, 64), (4, 1000), (3, 5), (1030, 66, 2)])
def test_transposes(isa: str, threads: int, shape: tuple[int, ...], dtype: str) -> None:
    a = draw(np.random.default_rng(2), shape, dtype).T
    for layout in ("compact", "sliced", "reversed"):
        out = blank(a.shape, layout, dtype)
        launch("copy", out, a)
        np.testing.assert_array_equal(written(out), a)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_transposes_of_every_size(isa: str, dtype: str) -> None:
    """Squares of 16 items and of a few, the last of which overlap; up to 4 columns or rows."""
    rng = np.random.default_rng(9)
    for rows in range(1, 36):
        for columns in (*range(1, 20), 31, 32, 33, 64, 65, 130):
            a = draw(rng, (columns, rows), dtype).T
            for owner in ((rows, columns), (rows + 1, columns + 3)):
                out = np.full(owner, SENTINEL, dtype)[:rows, :columns]
                launch("copy", out, a)
                np.testing.assert_array_equal(written(out), a)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("step", [5, 8, 16, 17])
def test_every_nth_item_of_large_arrays(isa: str, dtype: str, step: int) -> None:
    a = draw(np.random.default_rng(10), (1301, 21_000 // np.dtype(dtype).itemsize), dtype)
    for view in (a[:, ::step], a[:, 3::step]):
        out = np.full(view.shape, SENTINEL, dtype)
        launch("copy", out, view)
        np.testing.assert_array_equal(out, view)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_nchw_and_nhwc(isa: str, threads: int, dtype: str) -> None:
    a = draw(np.random.default_rng(3), (9, 33, 10, 31), dtype)
    there = np.zeros((9, 10, 31, 33), dtype)
    launch("copy", there, a.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(there, a.transpose(0, 2, 3, 1))
    back = np.zeros_like(a)
    launch("copy", back, there.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(back, a)


@pytest.mark.parametrize("items", [5000, 13_000_000])  # also past the caches
def test_copy_keeps_every_bit(isa: str, items: int) -> None:
    bits = np.random.default_rng(4).integers(0, 2**32, items, "uint32", endpoint=False)
    a = bits.view("float32")
    out = np.empty_like(a)
    launch("copy", out, a)
    np.testing.assert_array_equal(out.view("uint32"), bits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["compact", "permuted", "sliced", "reversed"])
def test_fill(isa: str, threads: int, layout: str, dtype: str) -> None:
    for shape in ((), (0, 3), (1,), (7, 65), (3, 200, 301)):
        out = lay(np.zeros(shape, dtype), layout)
        launch("fill", out, 1)
        assert (out == 1).all()
        owner = out if out.base is None else out.base
        if dtype != "bool" and layout == "sliced":
            assert (owner == 1).sum() == out.size


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("shape", [(2112, 1040), (2111, 1037), (3, 704, 1040)])
def test_large_transposes(isa: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Of 8 MB and more: with lines that are whole, and with lines that are not."""
    a = draw(np.random.default_rng(2), shape, dtype)
    out = np.zeros((*shape[:-2], shape[-1], shape[-2]), dtype)
    launch("copy", out, a.swapaxes(-1, -2))
    np.testing.assert_array_equal(out, a.swapaxes(-1, -2))
