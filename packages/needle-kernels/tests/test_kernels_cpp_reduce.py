"""The C++ reductions: every strategy and layout against NumPy, error bounds, NaN, threads."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_call import FLOATS, blank, cpu, isa, launch, lay, lay_at_random, threads, written

__all__ = ["isa", "threads"]

Array = npt.NDArray[Any]

EXTREMES = {"max": np.max, "min": np.min}
DTYPES = (*FLOATS, "int32", "int64", "uint8", "bool")


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    if dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if dtype.startswith("float"):
        return np.asarray(rng.standard_normal(shape), dtype)
    info = np.iinfo(dtype)
    return np.asarray(rng.integers(info.min, info.max, shape, dtype, endpoint=True))


def split_axes(a: Array, axes: tuple[int, ...]) -> Array:
    """A view with the reduced axes last, as the kernels want it."""
    kept = [i for i in range(a.ndim) if i not in axes]
    return a.transpose(*kept, *axes)


def reduced(name: str, a: Array, axes: tuple[int, ...], out: Array | None = None) -> Array:
    view = split_axes(a, axes)
    if out is None:
        out = np.zeros(view.shape[: a.ndim - len(axes)], a.dtype)
    launch(name, out, view)
    return out


@dataclass(frozen=True)
class Sum:
    """The sums of long doubles, and how far a result may be from them: see csrc/reduce.cpp."""

    exact: Array
    bound: Array

    @classmethod
    def of(cls, a: Array, axes: tuple[int, ...]) -> "Sum":
        wide = a.astype(np.longdouble)
        exact = np.asarray(wide.sum(axis=axes))
        n = math.prod(a.shape[i] for i in axes)
        bound = (256 + math.log2(max(n, 2))) * 2.0**-53 * np.abs(wide).sum(axis=axes)
        if a.dtype == np.float32:
            bound += np.abs(exact) * 2.0**-24 + float(np.finfo("float32").smallest_subnormal)
        return cls(exact, np.asarray(bound))

    def check(self, got: Array) -> None:
        assert got.shape == self.exact.shape
        assert (np.abs(got.astype(np.longdouble) - self.exact) <= self.bound).all()


def check_sum(got: Array, a: Array, axes: tuple[int, ...]) -> None:
    Sum.of(a, axes).check(got)


CASES = [
    ((), ()),
    ((5,), (0,)),
    ((1, 1), (0,)),
    ((70_001,), (0,)),
    ((300_001,), (0,)),
    ((3, 100_003), (1,)),
    ((100_003, 3), (0,)),
    ((100_003, 3), (1,)),
    ((50_001, 10), (0,)),
    ((4001, 32), (0,)),
    ((4001, 33), (0,)),
    ((5, 1025), (0,)),
    ((1025, 5), (1,)),
    ((130, 1100), (0,)),
    ((130, 1100), (1,)),
    ((9, 33, 7, 11), (0, 2, 3)),
    ((65, 4, 300), (0, 2)),
    ((65, 4, 300), (1,)),
    ((9, 300, 65), (0, 2)),
    ((33, 5, 1030), (0, 2)),
    ((300, 2051), (0,)),
    ((1030, 2051), (0,)),
    ((2, 3, 4, 5, 6, 7), (1, 3, 5)),
    ((2, 3, 4, 5, 6, 7), (0, 2, 4)),
    ((513, 513), (0, 1)),
]


@cache
def operands(dtype: str) -> list[tuple[Array, tuple[int, ...]]]:
    """The cases, and the axes of each that are reduced. All tests share them."""
    rng = np.random.default_rng(0)
    made = [(draw(rng, shape, dtype), axes) for shape, axes in CASES]
    for a, _ in made:
        a.flags.writeable = False
    return made


@cache
def sums(dtype: str) -> list[Sum]:
    return [Sum.of(a, axes) for a, axes in operands(dtype)]


@cache
def reduced_by_numpy(name: str, dtype: str) -> list[Array]:
    return [np.asarray(getattr(np, name)(a, axis=axes)) for a, axes in operands(dtype)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["compact", "permuted", "sliced", "reversed"])
def test_sum(isa: str, threads: int, layout: str, dtype: str) -> None:
    for (values, axes), want in zip(operands(dtype), sums(dtype), strict=True):
        a = lay(values, layout)
        out = blank(split_axes(a, axes).shape[: a.ndim - len(axes)], layout, dtype)
        reduced("sum", a, axes, out)
        want.check(written(out))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXTREMES)
def test_extremes(isa: str, threads: int, name: str, dtype: str) -> None:
    for (a, axes), want in zip(operands(dtype), reduced_by_numpy(name, dtype), strict=True):
        np.testing.assert_array_equal(reduced(name, a, axes), want)


@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "int64"])
@pytest.mark.parametrize("order", [1, -1])
def test_short_rows(isa: str, threads: int, order: int, dtype: str) -> None:
    """Rows of up to some vectors, several folded together, and not what is beside them."""
    rng = np.random.default_rng(5)
    for n in (*range(1, 70), 127, 128, 129, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025):
        beside = np.full((37, n + 3), np.nan if dtype in FLOATS else 99, dtype)
        a = beside[::order, 2 : n + 2]
        a[...] = draw(rng, a.shape, dtype)
        for rows in (a, a[:3]):
            for name in EXTREMES:
                np.testing.assert_array_equal(reduced(name, rows, (1,)), EXTREMES[name](rows, 1))
            if dtype in FLOATS:
                check_sum(reduced("sum", rows, (1,)), rows, (1,))
            elif dtype == "int64":
                np.testing.assert_array_equal(reduced("sum", rows, (1,)), rows.sum(1))
        if dtype in FLOATS:  # wherever it is
            at = rng.integers(0, n, 37)
            a[np.arange(37), at] = np.nan
            for name in ("sum", *EXTREMES):
                assert np.isnan(reduced(name, a, (1,))).all()
            a[np.arange(37), at] = np.inf
            for name in ("sum", "max"):
                assert np.isinf(reduced(name, a, (1,))).all()


def test_sum_of_int64_wraps_around(isa: str, threads: int) -> None:
    for (a, axes), want in zip(operands("int64"), reduced_by_numpy("sum", "int64"), strict=True):
        np.testing.assert_array_equal(reduced("sum", a, axes), want)


@pytest.mark.parametrize("dtype", [*FLOATS, "int64", "uint8"])
def test_any_strides(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        rank = int(rng.integers(1, 6))
        shape = tuple(int(n) for n in rng.choice([1, 2, 3, 9, 30, 70], rank))
        if math.prod(shape) > 200_000:
            continue
        a = lay_at_random(rng, draw(rng, shape, dtype))
        cut = tuple(slice(0, 1) if rng.random() < 0.2 else slice(None) for _ in shape)
        a = np.broadcast_to(a[cut], shape)
        chosen = rng.permutation(rank)[: rng.integers(0, rank + 1)]
        axes = tuple(int(i) for i in chosen)
        kept = [n for i, n in enumerate(shape) if i not in axes]
        for name in ("sum", "max", "min"):
            if name == "sum" and dtype == "uint8":
                continue
            out = lay_at_random(rng, np.zeros(kept, dtype))
            reduced(name, a, axes, out)
            if name != "sum":
                np.testing.assert_array_equal(out, EXTREMES[name](a, axis=axes))
            elif dtype == "int64":
                np.testing.assert_array_equal(out, a.sum(axis=axes))
            else:
                check_sum(out, a, axes)


@pytest.mark.parametrize("dtype", [*FLOATS, "int64", "uint8"])
@pytest.mark.parametrize("spacing", [2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 64, 65])
def test_what_lies_between_elements_does_not_count(isa: str, spacing: int, dtype: str) -> None:
    """Nor what lies before and behind: NaN, or the largest or smallest number."""
    rng = np.random.default_rng(7)
    for rows, n in ((1, 1), (3, 7), (2, 64), (3, 1000), (1, 70_001)):
        for name in ("sum", "max", "min"):
            if name == "sum" and dtype == "uint8":
                continue
            info = np.iinfo(dtype) if dtype not in FLOATS else None
            other = np.nan if info is None else info.min if name == "min" else info.max
            memory = np.full((rows, 100 + n * spacing + 100), other, dtype)
            a = memory[:, 100 : 100 + n * spacing : spacing]
            a[...] = draw(rng, a.shape, dtype)
            for view in (a, a[:, ::-1]):
                for axes in ((1,), (0, 1)):
                    got = reduced(name, view, axes)
                    if name != "sum":
                        np.testing.assert_array_equal(got, EXTREMES[name](a, axis=axes))
                    elif dtype == "int64":
                        np.testing.assert_array_equal(got, a.sum(axis=axes))
                    else:
                        check_sum(got, a, axes)


def test_nothing_to_reduce(isa: str) -> None:
    for shape in ((0,), (0, 5), (3, 0)):
        a = np.zeros(shape, "float32")
        assert (reduced("sum", a, tuple(range(a.ndim))) == 0).all()
    out = np.full(5, 7, "float32")
    launch("sum", out, np.zeros((5, 0), "float32"))
    assert (out == 0).all()
    launch("max", np.zeros((0,), "float32"), np.zeros((0, 4), "float32"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["max", "min", "sum"])
def test_nan_and_infinity(isa: str, threads: int, name: str, dtype: str) -> None:
    rng = np.random.default_rng(4)
    for clean, axes in operands(dtype)[1:]:
        a = clean.copy()
        place = tuple(int(rng.integers(n)) for n in a.shape)
        where = tuple(p for i, p in enumerate(place) if i not in axes)
        row = a[tuple(slice(None) if i in axes else p for i, p in enumerate(place))]
        for value in (np.nan, np.inf, -np.inf):
            a[place] = value
            got = reduced(name, a, axes)
            want = getattr(np, name)(row.astype("float64"))
            np.testing.assert_array_equal(got[where], want)
            got[where] = 0
            assert np.isfinite(got).all()
        infinite = -np.inf if name == "max" else np.inf
        a[...] = infinite
        assert (reduced(name, a, axes) == infinite).all()


def test_float32_sum_does_not_lose_small_terms(isa: str, threads: int) -> None:
    """A plain float32 loop stops growing at 2^24."""
    a = np.ones(2**24 + 64, "float32")
    assert reduced("sum", a, (0,)) == 2**24 + 64
    b = np.broadcast_to(np.ones((1, 3), "float32"), (2**24 + 64, 3))
    assert (reduced("sum", b, (0,)) == 2**24 + 64).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_cancellation(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(5)
    half = draw(rng, (40_000,), dtype) * dtype_of(dtype)(1e6)
    a = rng.permutation(np.concatenate([half, -half, np.ones(100, dtype)]))
    check_sum(reduced("sum", a, (0,)), a, (0,))


def dtype_of(name: str) -> Any:
    return np.dtype(name).type


@pytest.fixture(params=[False, True])
def in_turn(request: pytest.FixtureRequest) -> Iterator[bool]:
    """How rows from memory are read, whatever suits this processor."""
    before = cpu.in_turn()
    cpu.set_in_turn(request.param)
    yield request.param
    cpu.set_in_turn(before)


@cache
def rows_beyond_caches(dtype: str) -> list[tuple[Array, Sum, Array]]:
    """Rows of many lengths in over 24 MB."""
    values = draw(np.random.default_rng(7), (26_000_000 // np.dtype(dtype).itemsize,), dtype)
    made = []
    for n in (9, 16, 24, 37, 67, 128, 263, 512, 1027, 2048, 6200, 260_003, 2_600_000, values.size):
        a = values[: values.size // n * n].reshape(-1, n)
        made.append((a, Sum.of(a, (1,)), a.max(1)))
    return made


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_beyond_caches(isa: str, in_turn: bool, dtype: str) -> None:
    before = cpu.num_threads()
    for a, sums, largest in rows_beyond_caches(dtype):
        first = reduced("sum", a, (1,))
        sums.check(first)
        for n in (1, 2, 3, 7):
            cpu.set_num_threads(n)
            assert (reduced("sum", a, (1,)) == first).all()
            assert (reduced("max", a, (1,)) == largest).all()
        cpu.set_num_threads(before)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_with_gaps_beyond_caches(isa: str, in_turn: bool, dtype: str) -> None:
    """Memory is asked for where the next rows begin."""
    values = draw(np.random.default_rng(8), (52_000_000 // np.dtype(dtype).itemsize,), dtype)
    for n in (5, 9, 40, 263, 1300, 5000):
        a = values[: values.size // (2 * n) * 2 * n].reshape(-1, 2 * n)[::-1, :n]
        for axes in ((1,), (0, 1)):
            Sum.of(a, axes).check(reduced("sum", a, axes))
            assert (reduced("max", a, axes) == a.max(axes)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "shape",
    [(3, 4, 45, 47), (2, 3, 300, 5), (2, 90, 4, 514), (64, 33, 60, 64), (1, 2, 3, 70_001, 4)],
)
def test_planes_with_gaps(isa: str, shape: tuple[int, ...], dtype: str) -> None:
    """Images without their border: short runs, whose results do not take in what is between."""
    memory = np.full(shape, np.nan, dtype)
    a = memory[..., 1:-1, 1:-1]
    a[...] = draw(np.random.default_rng(9), a.shape, dtype)
    last = (a.ndim - 2, a.ndim - 1)
    for axes in (last, (last[0] - 1, *last), (0, *last)):
        Sum.of(a, axes).check(reduced("sum", a, axes))
        for name, function in EXTREMES.items():
            assert (reduced(name, a, axes) == function(a, axes)).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_do_not_depend_on_threads(isa: str, dtype: str) -> None:
    before = cpu.num_threads()
    for a, axes in operands(dtype):
        results = []
        for n in (1, 2, 3, 7):
            cpu.set_num_threads(n)
            results.append(reduced("sum", a, axes))
        cpu.set_num_threads(before)
        assert all((r == results[0]).all() for r in results)
