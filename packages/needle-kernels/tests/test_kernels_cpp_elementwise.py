"""The C++ elementwise kernels: every dtype, any strides, special values, error bounds, threads."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_call import (
    FLOATS,
    beside_cache_line,
    blank,
    cpu,
    isa,
    launch,
    lay,
    lay_at_random,
    threads,
    written,
)

__all__ = ["isa", "threads"]

Array = npt.NDArray[Any]

INTS = ("uint8", "int32", "int64")
# Around the lanes of every target and around the blocks that threads share.
SIZES = (0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1023, 1025, 4097, 40_001)


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    if dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if dtype in INTS:
        info = np.iinfo(dtype)
        small = rng.integers(max(info.min, -5), 5, shape, dtype, endpoint=True)
        wide = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        return np.where(rng.random(shape) < 0.5, small, wide)
    return np.asarray(rng.standard_normal(shape), dtype)


UNARY: dict[str, tuple[Callable[[Array], Array], tuple[str, ...]]] = {
    "negate": (np.negative, FLOATS + INTS),
    "relu": (lambda a: np.maximum(a, 0), FLOATS + INTS),
    "abs": (np.abs, FLOATS + INTS),
    "sqrt": (np.sqrt, FLOATS),
    "logical_not": (np.logical_not, ("bool",)),
}

BINARY: dict[str, tuple[Callable[[Array, Array], Array], tuple[str, ...]]] = {
    "add": (np.add, (*FLOATS, *INTS, "bool")),
    "subtract": (np.subtract, FLOATS + INTS),
    "multiply": (np.multiply, (*FLOATS, *INTS, "bool")),
    "divide": (np.divide, FLOATS),
    "maximum": (np.maximum, (*FLOATS, *INTS, "bool")),
    "minimum": (np.minimum, (*FLOATS, *INTS, "bool")),
    "relu_grad": (lambda dy, y: np.where(y > 0, dy, 0).astype(dy.dtype), FLOATS),
    "equal": (np.equal, (*FLOATS, *INTS, "bool")),
    "not_equal": (np.not_equal, (*FLOATS, *INTS, "bool")),
    "less": (np.less, (*FLOATS, *INTS, "bool")),
    "less_equal": (np.less_equal, (*FLOATS, *INTS, "bool")),
    "greater": (np.greater, (*FLOATS, *INTS, "bool")),
    "greater_equal": (np.greater_equal, (*FLOATS, *INTS, "bool")),
    "logical_and": (np.logical_and, ("bool",)),
    "logical_or": (np.logical_or, ("bool",)),
}

UNARY_CASES = [(name, dtype) for name, (_, dtypes) in UNARY.items() for dtype in dtypes]
BINARY_CASES = [(name, dtype) for name, (_, dtypes) in BINARY.items() for dtype in dtypes]


def same_bits(got: Array, want: Array) -> None:
    """Equal bit for bit, but for the payload of NaN and the sign of zero."""
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("name", "dtype"), UNARY_CASES)
def test_unary_of_every_size(isa: str, name: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for n in SIZES:
        a = draw(rng, (n,), dtype)
        a = np.abs(a) if name == "sqrt" else a
        out = np.empty_like(a)
        launch(name, out, a)
        same_bits(out, UNARY[name][0](a))


@pytest.mark.parametrize(("name", "dtype"), BINARY_CASES)
def test_binary_of_every_size_and_immediates(isa: str, name: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    for n in SIZES:
        a, b = draw(rng, (n,), dtype), draw(rng, (n,), dtype)
        b = np.where(rng.random(n) < 0.3, a, b)
        if name == "divide":
            b = b + (b == 0)
        want = BINARY[name][0](a, b)
        out = np.empty_like(want)
        launch(name, out, a, b)
        same_bits(out, want)
        for value in draw(rng, (2,), dtype):
            with np.errstate(divide="ignore", invalid="ignore"):
                launch(name, out, a, value.item())
                same_bits(out, BINARY[name][0](a, value))
                launch(name, out, value.item(), b)
                same_bits(out, BINARY[name][0](value, b))


def random_shape(rng: np.random.Generator) -> tuple[int, ...]:
    rank = rng.integers(0, 7)
    sizes = [1, 2, 3, 5, 8, 17, 40, 130] if rank < 4 else [1, 2, 3, 5]
    return tuple(int(n) for n in rng.choice(sizes, rank))


def with_broadcasts(rng: np.random.Generator, a: Array) -> Array:
    """`a` with some of its axes of stride 0."""
    view = a[(*(slice(0, 1) if rng.random() < 0.3 else slice(None) for _ in a.shape), ...)]
    return np.broadcast_to(view, a.shape)


@pytest.mark.parametrize("dtype", [*FLOATS, "uint8", "bool"])
def test_any_strides(isa: str, threads: int, dtype: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(120):
        shape = random_shape(rng)
        a, b = (lay_at_random(rng, draw(rng, shape, dtype)) for _ in range(2))
        a, b = with_broadcasts(rng, a), with_broadcasts(rng, b)
        for name in ("add", "less"):
            want = BINARY[name][0](a, b)
            out = lay_at_random(rng, np.zeros(shape, want.dtype))
            launch(name, out, a, b)
            same_bits(out, want)
        name = "logical_not" if dtype == "bool" else "negate"
        out = lay_at_random(rng, np.zeros(shape, dtype))
        launch(name, out, a)
        same_bits(out, UNARY[name][0](a))


@pytest.mark.parametrize(
    ("shape", "items"), [((9_500_001,), 0), ((9_500_001,), 1), ((3100, 3065), 0)]
)
def test_results_beyond_the_caches(isa: str, shape: tuple[int, ...], items: int) -> None:
    """38 MB, written past them where they begin with a cache line."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, "float32") for _ in range(2))
    row = np.broadcast_to(b.reshape(-1)[: shape[-1]], shape)
    out = beside_cache_line(shape, "float32", items)
    launch("add", out, a, b)
    np.testing.assert_array_equal(out, a + b)
    launch("subtract", out, row, a)
    np.testing.assert_array_equal(out, row - a)
    launch("multiply", out, a, 3.0)
    np.testing.assert_array_equal(out, a * np.float32(3))
    launch("exp", out, a)
    some, want = a.reshape(-1)[-1000:].copy(), np.empty(1000, "float32")
    launch("exp", want, some)
    np.testing.assert_array_equal(out.reshape(-1)[-1000:], want)
    launch("copy", out, a)
    np.testing.assert_array_equal(out, a)
    launch("add", out, out, b)
    np.testing.assert_array_equal(out, a + b)
    wide = beside_cache_line(shape, "float64", items)
    launch("copy", wide, a)
    np.testing.assert_array_equal(wide, a)


def test_strided_operands_beyond_the_caches(isa: str) -> None:
    rng = np.random.default_rng(1)
    spaced = rng.standard_normal((2060, 9300), "float32")[:, ::2]
    turned = rng.standard_normal((4650, 2060), "float32").T
    out = beside_cache_line(spaced.shape, "float32", 0)
    launch("add", out, spaced, spaced[::-1, ::-1])
    np.testing.assert_array_equal(out, spaced + spaced[::-1, ::-1])
    launch("subtract", out, spaced, turned)
    np.testing.assert_array_equal(out, spaced - turned)
    launch("add", out, out, spaced)
    np.testing.assert_array_equal(out, spaced - turned + spaced)


@pytest.mark.parametrize("columns", [20, 65, 2300, 4301])
def test_rows_with_gaps_beyond_the_caches(isa: str, columns: int) -> None:
    """Rows of results begin within a cache line and are written past the caches."""
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((9_700_000 // columns, columns + 300), "float32") for _ in "ab")
    a, b = a[:, :columns], b[::-1, 300:]
    out = beside_cache_line(a.shape, "float32", 0)
    launch("add", out, a, b)
    np.testing.assert_array_equal(out, a + b)
    launch("negate", out, a)
    np.testing.assert_array_equal(out, -a)
    launch("subtract", out, a, np.broadcast_to(b[0], a.shape))
    np.testing.assert_array_equal(out, a - b[0])
    smaller = beside_cache_line(a.shape, "bool", 5)
    launch("less", smaller, a, b)
    np.testing.assert_array_equal(smaller, a < b)


def test_short_rows_beyond_the_caches(isa: str) -> None:
    """Their blocks are cut so that each begins with a cache line."""
    rng = np.random.default_rng(2)
    for columns in (3, 10, 63):
        a = rng.standard_normal((9_600_007 // columns, columns), "float32")
        out = beside_cache_line(a.shape, "float32", 0)
        for other in (a[7], a[:, 1:2], a[:, 1:2].copy()):
            launch("add", out, a, np.broadcast_to(other, a.shape))
            np.testing.assert_array_equal(out, a + other)


@pytest.mark.parametrize("columns", [9, 16, 43, 100, 1000])
def test_short_rows_of_more_than_one_core_caches(isa: str, columns: int) -> None:
    """5 MB of results, which are asked for while strided operands are gathered."""
    rng = np.random.default_rng(4)
    a = rng.standard_normal((1_250_000 // columns, 5 * columns), "float32")
    turned = np.ascontiguousarray(a[:, :columns].T).T
    column, row = a[:, 3:4], a[2, :columns]
    out = beside_cache_line((len(a), columns), "float32", 0)
    for operand in (a[:, ::2][:, :columns], a[:, ::5], a[::-1, columns : 2 * columns], turned):
        launch("negate", out, operand)
        same_bits(out, -operand)
        launch("copy", out, operand)
        same_bits(out, operand)
        for other in (column, row):
            launch("add", out, operand, np.broadcast_to(other, out.shape))
            same_bits(out, operand + other)


def test_comparisons_beyond_the_caches(isa: str) -> None:
    a, b = (np.random.default_rng(k).integers(0, 9, 25_500_003).astype("uint8") for k in (0, 1))
    out = beside_cache_line(a.shape, "bool", 0)
    launch("less", out, a, b)
    np.testing.assert_array_equal(out, a < b)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["compact", "permuted", "sliced", "reversed"])
def test_large_and_transposed(isa: str, threads: int, dtype: str, layout: str) -> None:
    rng = np.random.default_rng(3)
    a = lay(draw(rng, (3, 301, 257), dtype), layout)
    b = draw(rng, (257, 301, 3), dtype).T
    out = blank(a.shape, layout, dtype)
    launch("multiply", out, a, b)
    same_bits(written(out), a * b)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1501), ("float64", 1101)])
def test_transposed_beyond_the_caches(isa: str, dtype: str, size: int) -> None:
    rng = np.random.default_rng(12)
    a, b = draw(rng, (size, size + 7), dtype), draw(rng, (size + 7, size), dtype)
    out = np.full(b.shape, np.nan, dtype)
    launch("add", out, a.T, b)
    same_bits(out, a.T + b)
    launch("subtract", out, b, a.T)
    same_bits(out, b - a.T)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("step", [5, 8, 16, 17])
def test_every_nth_item_of_large_operands(isa: str, dtype: str, step: int) -> None:
    rng = np.random.default_rng(13)
    columns = 21_000 // np.dtype(dtype).itemsize
    a, b = (draw(rng, (1301, columns), dtype) for _ in range(2))
    first, second = a[:, : columns - 1 : step], b[:, 1::step]  # as many of either
    out = np.full(first.shape, np.nan, dtype)
    launch("add", out, first, second)
    same_bits(out, first + second)
    launch("multiply", out, first, second.copy())
    same_bits(out, first * second)
    launch("negate", out, first)
    same_bits(out, -first)


def test_short_rows_that_all_add_one_row(isa: str, threads: int) -> None:
    """The row lies in a buffer that a thread fills once; a thread may begin at a smaller block."""
    rng = np.random.default_rng(10)
    a = draw(rng, (41, 206, 11), "float32")[:, :205, :10]
    for _ in range(3):  # what the last call left on a thread's stack must not help
        row = draw(rng, (10,), "float32")
        out = np.zeros((41, 206, 11), "float32")
        launch("add", out[:, :205, :10], a, np.broadcast_to(row, a.shape))
        same_bits(out[:, :205, :10], a + row)
        assert (out[:, 205:] == 0).all()
        assert (out[:, :, 10:] == 0).all()


def test_rank_sixteen(isa: str) -> None:
    rng = np.random.default_rng(4)
    a = lay_at_random(rng, draw(rng, (2, 1, 3) + (1, 2) * 6 + (3,), "float32"))
    out = np.empty_like(a)
    launch("add", out, a, a)
    same_bits(out, a + a)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["exp", "relu", "add", "maximum", "power"])
def test_in_place(isa: str, threads: int, name: str, dtype: str) -> None:
    rng = np.random.default_rng(5)
    a = lay_at_random(rng, np.abs(draw(rng, (70, 1030), dtype)))
    operands = () if name in ("exp", "relu") else (np.abs(draw(rng, a.shape, dtype)),)
    want = np.empty_like(a)
    launch(name, want, a.copy(), *operands)
    launch(name, a, a, *operands)
    same_bits(a, want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_and_infinity(isa: str, dtype: str) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0], dtype)
    a, b = (m.reshape(-1).copy() for m in np.meshgrid(values, values))
    out, flag = np.empty_like(a), np.empty(a.shape, bool)
    with np.errstate(all="ignore"):
        for name in ("maximum", "minimum", "add", "subtract", "multiply", "divide", "relu_grad"):
            launch(name, out, a, b)
            same_bits(out, BINARY[name][0](a, b))
        for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
            launch(name, flag, a, b)
            same_bits(flag, BINARY[name][0](a, b))
        for name in ("negate", "abs", "relu", "sqrt"):
            launch(name, out, a)
            same_bits(out, UNARY[name][0](a))


# ---- functions with an error bound


def bit_patterns(rng: np.random.Generator, dtype: str, n: int) -> Array:
    """Numbers whose bits are random: all exponents, subnormal numbers, infinities and NaN."""
    unsigned = np.uint32 if dtype == "float32" else np.uint64
    return rng.integers(0, np.iinfo(unsigned).max, n, unsigned, endpoint=True).view(dtype)


def samples(rng: np.random.Generator, dtype: str) -> Array:
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, 2.0]
    edges += [88.72283, 88.72284, -87.4, -103.97, -103.98, 709.78, 709.79, -708.5, -745.13, -745.14]
    tiny = np.finfo(dtype).smallest_subnormal
    edges += [tiny, -tiny, np.finfo(dtype).tiny, np.finfo(dtype).max, np.finfo(dtype).min]
    parts = [bit_patterns(rng, dtype, 100_000), np.array(edges, dtype)]
    for width in (0.1, 1, 4, 20, 110, 800):
        parts.append(rng.uniform(-width, width, 20_000).astype(dtype))
    parts.append(np.exp(rng.uniform(-1, 1, 20_000)).astype(dtype))
    return np.concatenate(parts)


def ulps(got: Array, exact: npt.NDArray[np.longdouble]) -> float:
    """The largest error in units in the last place; infinite where NaN, infinity or sign differ."""
    info = np.finfo(got.dtype)
    with np.errstate(over="ignore"):
        rounded = exact.astype(got.dtype)
    same = (got == rounded) & (np.signbit(got) == np.signbit(rounded))
    same |= np.isnan(got) & np.isnan(rounded)
    # A result beside the overflow threshold may be the largest number instead of infinity.
    finite = np.isfinite(got) & (np.abs(exact) <= np.longdouble(info.max) * (1 + info.eps))
    compared = ~same & finite
    if not (same | compared).all():
        return float("inf")
    unit = np.spacing(np.minimum(np.abs(rounded[compared]), info.max)).astype(np.longdouble)
    errors = np.abs(got[compared].astype(np.longdouble) - exact[compared]) / unit
    return float(errors.max(initial=0.5))


EXACT: dict[str, tuple[Callable[[Any], Any], float]] = {
    "exp": (np.exp, 1.1),
    "log": (np.log, 0.9),
    "tanh": (np.tanh, 2.6),
    "sigmoid": (lambda x: np.where(x < 0, np.exp(x), 1) / (1 + np.exp(-np.abs(x))), 2.4),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", EXACT)
def test_error_bound(isa: str, name: str, dtype: str) -> None:
    """The bounds that csrc/vmath.h states, against 80-bit arithmetic."""
    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("long double has no more bits than double here")
    function, bound = EXACT[name]
    a = samples(np.random.default_rng(6), dtype)
    out = np.empty_like(a)
    launch(name, out, a)
    with np.errstate(all="ignore"):
        exact = function(a.astype(np.longdouble))
    assert ulps(out, exact) <= bound


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", EXACT)
def test_last_lanes_are_as_the_first(isa: str, name: str, dtype: str) -> None:
    a = np.linspace(0.1, 3, 70, dtype=dtype)
    whole = np.empty_like(a)
    launch(name, whole, a)
    for n in range(1, 70):
        part = blank((n,), "sliced", dtype)
        launch(name, part, a[:n])
        same_bits(written(part), whole[:n])


@pytest.mark.parametrize("dtype", FLOATS)
def test_sigmoid_and_tanh_gradients(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(7)
    dy, y = (rng.uniform(-1, 1, 1001).astype(dtype) for _ in range(2))
    wide_dy, wide_y = dy.astype(np.longdouble), y.astype(np.longdouble)
    for name, want in (
        ("tanh_grad", wide_dy * (1 - wide_y**2)),
        ("sigmoid_grad", wide_dy * wide_y * (1 - wide_y)),
    ):
        out = np.empty_like(dy)
        launch(name, out, dy, y)
        np.testing.assert_allclose(out, want.astype(dtype), rtol=0, atol=2 * np.finfo(dtype).eps)


# ---- power


@pytest.mark.parametrize("dtype", FLOATS)
def test_power_of_floats(isa: str, threads: int, dtype: str) -> None:
    rng = np.random.default_rng(8)
    a = np.concatenate([np.exp(rng.uniform(-40, 40, 30_000)), -np.exp(rng.uniform(-3, 3, 999))])
    b = np.concatenate([rng.uniform(-3, 3, 30_000), rng.integers(-9, 9, 999)])
    a, b = a.astype(dtype), b.astype(dtype)
    out = np.empty_like(a)
    launch("power", out, a, b)
    with np.errstate(all="ignore"):
        exact = np.power(a.astype(np.longdouble), b.astype(np.longdouble))
    assert ulps(out, exact) <= (0.51 if isa != "scalar" or dtype == "float32" else 1.0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_power_of_numbers_near_1_and_large_exponents(isa: str, dtype: str) -> None:
    """Where an error of the logarithm counts most; down to subnormal results."""
    rng = np.random.default_rng(9)
    largest = np.log2(float(np.finfo(dtype).max))
    a = np.concatenate([rng.uniform(0.70, 1.42, 30_000), 1 + rng.uniform(-1e-3, 1e-3, 9999)])
    b = rng.uniform(-1.03, 1, len(a)) * largest / np.log2(a)
    a, b = a.astype(dtype), b.astype(dtype)
    out = np.empty_like(a)
    launch("power", out, a, b)
    with np.errstate(all="ignore"):
        exact = np.power(a.astype(np.longdouble), b.astype(np.longdouble))
    assert ulps(out, exact) <= (0.51 if dtype == "float32" else 0.9)


@pytest.mark.parametrize("dtype", FLOATS)
def test_power_of_special_values(isa: str, dtype: str) -> None:
    values = [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2, -2, 0.5, -0.5, 3, -3, 2.5, 1e30, -1e30]
    values += [0.33, 1e-30, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max]
    grid = np.meshgrid(np.array(values, dtype), np.array(values, dtype))
    a, b = (m.reshape(-1).copy() for m in grid)
    with np.errstate(all="ignore"):
        exact = np.power(a.astype(np.longdouble), b.astype(np.longdouble))
        out = np.empty_like(a)
        launch("power", out, a, b)
        assert ulps(out, exact) <= 1.0
        base = np.array(values, dtype)
        for exponent in np.array(values, dtype):
            out = np.empty_like(base)
            launch("power", out, base, float(exponent))
            wide = np.power(base.astype(np.longdouble), np.longdouble(exponent))
            assert ulps(out, wide) <= 1.5, exponent


@pytest.mark.parametrize("dtype", INTS)
def test_power_of_integers_is_exact(isa: str, dtype: str) -> None:
    base = np.arange(0 if dtype == "uint8" else -12, 13).astype(dtype)
    a, b = (m.reshape(-1).copy() for m in np.meshgrid(base, np.arange(0, 40).astype(dtype)))
    out = np.empty_like(a)
    launch("power", out, a, b)
    bits = 8 * a.itemsize
    want = np.array([pow(int(x), int(y)) % 2**bits for x, y in zip(a, b, strict=True)], "uint64")
    same_bits(out, want.astype(dtype))


def test_results_do_not_depend_on_threads(isa: str) -> None:
    a = np.random.default_rng(9).standard_normal((517, 331)).astype("float32")
    results = []
    for n in (1, 2, 5):
        before = cpu.num_threads()
        cpu.set_num_threads(n)
        out = np.empty_like(a)
        launch("tanh", out, a)
        cpu.set_num_threads(before)
        results.append(out)
    assert all((r == results[0]).all() for r in results)
