"""The C++ normalisation kernels against wide formulas, on every instruction set.

The oracles compute in long double (80 bits on x86), so float64 kernels have a sharper oracle too.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cpp_call import FLOATS, LAYOUTS, blank, check, cpu, eps, isa, launch, lay, threads, written

__all__ = ["isa", "threads"]

Array = npt.NDArray[Any]

EPS = 1e-5
WIDE = np.longdouble
# N, C, H, W: channels and planes around the lanes of every target, one and many blocks of rows.
SHAPES = [
    (1, 1, 1, 1),
    (5, 1, 3, 3),
    (2, 3, 4, 5),
    (3, 15, 1, 1),
    (7, 16, 2, 2),
    (2, 17, 3, 1),
    (2, 4, 1, 33),
    (128, 33, 1, 1),
    (9, 5, 11, 13),
    (300, 16, 2, 2),
]
# How (N, C, H, W) may lie in memory: NCHW and NHWC order, both also padded or reversed.
MAPS = ["nchw", "nhwc", "nhwc-sliced", "sliced", "reversed", "chwn"]


def lay_map(values: npt.ArrayLike, order: str, dtype: str) -> Array:
    """`values` (N, C, H, W) in one of the memory orders of MAPS."""
    values = np.asarray(values, dtype)
    if order == "nchw":
        return lay(values, "compact")
    if order == "nhwc":
        return lay(values.transpose(0, 2, 3, 1), "compact").transpose(0, 3, 1, 2)
    if order == "nhwc-sliced":
        wide = np.full((*np.array(values.shape)[[0, 2, 3]], values.shape[1] + 3), 77.0, dtype)
        view = wide[..., 2:-1].transpose(0, 3, 1, 2)
        view[...] = values
        return view
    return lay(values, "permuted" if order == "chwn" else order)


def blank_map(shape: tuple[int, ...], order: str, dtype: str) -> Array:
    return lay_map(np.full(shape, 77.0), order, dtype)


def per_channel(values: Array) -> Array:
    return values[:, None, None]


class Case:
    """Inputs of a batch norm in `dtype`, and its exact outputs."""

    def __init__(self, shape: tuple[int, ...], dtype: str, relu: bool = False) -> None:
        rng = np.random.default_rng(sum(shape))
        channels = shape[1]
        self.x = (rng.standard_normal(shape) * 2 + 1).astype(dtype)
        self.dy = rng.standard_normal(shape).astype(dtype)
        self.weight = rng.uniform(0.5, 1.5, channels).astype(dtype)
        self.bias = rng.standard_normal(channels).astype(dtype)
        x, weight, bias = (a.astype(WIDE) for a in (self.x, self.weight, self.bias))
        self.mean, self.var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        self.inverse = 1 / np.sqrt(self.var + EPS)
        self.normal = (x - per_channel(self.mean)) * per_channel(self.inverse)
        self.y = self.normal * per_channel(weight) + per_channel(bias)
        if relu:
            self.y = np.maximum(self.y, 0)
        self.shape, self.dtype, self.relu = shape, dtype, relu

    def gradients(self) -> tuple[Array, Array, Array]:
        """Dx, dweight and dbias, by the chain rule through mean and variance."""
        weight = self.weight.astype(WIDE)
        dy = np.where(self.y > 0, self.dy, 0) if self.relu else self.dy.astype(WIDE)
        count = dy[:, 0].size
        dnormal = dy * per_channel(weight)
        deviation = self.x - per_channel(self.mean)
        dvar = -0.5 * (dnormal * deviation).sum((0, 2, 3)) * self.inverse**3
        dmean = -dnormal.sum((0, 2, 3)) * self.inverse - 2 * dvar * deviation.mean((0, 2, 3))
        dx = dnormal * per_channel(self.inverse)
        dx += per_channel(dvar) * 2 * deviation / count + per_channel(dmean) / count
        return dx, (dy * self.normal).sum((0, 2, 3)), dy.sum((0, 2, 3))

    def forward(self, order: str, layout: str) -> tuple[Array, Array, Array]:
        y = blank_map(self.shape, order, self.dtype)
        mean, var = (blank(self.shape[1:2], layout, self.dtype) for _ in range(2))
        x = lay_map(self.x, order, self.dtype)
        weight, bias = lay(self.weight, layout), lay(self.bias, layout)
        launch("batch_norm", y, mean, var, x, weight, bias, scalars=(EPS, self.relu))
        return written(y), written(mean), written(var)

    def backward(self, order: str, dy_order: str, layout: str) -> tuple[Array, Array, Array]:
        dtype = self.dtype
        dx = blank_map(self.shape, order, dtype)
        dweight, dbias = (blank(self.shape[1:2], layout, dtype) for _ in range(2))
        x, y = lay_map(self.x, order, dtype), lay_map(self.y, order, dtype)
        dy = lay_map(self.dy, dy_order, dtype)
        mean, var = lay(self.mean, layout, dtype), lay(self.var, layout, dtype)
        weight = lay(self.weight, layout)
        operands = (dx, dweight, dbias, dy, x, y if self.relu else None, mean, var, weight)
        launch("batch_norm_grad", *operands, scalars=(EPS, self.relu))
        return written(dx), written(dweight), written(dbias)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("order", MAPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(isa: str, shape: tuple[int, ...], order: str, dtype: str) -> None:
    case = Case(shape, dtype)
    y, mean, var = case.forward(order, "compact")
    # |x - shift| is at most 16 here; its rounding and that of the sums remain.
    check(mean, case.mean, atol=8 * eps(dtype))
    check(var, case.var, rtol=16 * eps(dtype))
    # A normalised value grows with 1 / std, so its rounding does.
    check(y, case.y, rtol=8 * eps(dtype), atol=8 * eps(dtype) * case.inverse.max())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("order", MAPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_grad(isa: str, shape: tuple[int, ...], order: str, dtype: str) -> None:
    case = Case(shape, dtype)
    count = case.x[:, 0].size
    for dy_order in ("nchw", "nhwc", order):
        got = case.backward(order, dy_order, "compact")
        # Sums of `count` terms of size one, whose partial sums grow as a random walk does.
        bound = 8 * eps(dtype) * (2 + count**0.5)
        # The gradient of few values with a small spread is a difference of terms of size 1 / std.
        for a, b in zip(got, case.gradients(), strict=True):
            check(a, b, rtol=16 * eps(dtype), atol=bound * max(1, case.inverse.max()))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("order", ["nchw", "nhwc", "reversed"])
def test_relu_is_fused(isa: str, threads: int, order: str, dtype: str) -> None:
    case = Case((20, 18, 5, 7), dtype, relu=True)
    y, _, _ = case.forward(order, "sliced")
    assert (y == 0).any()
    assert (y >= 0).all()
    check(y, case.y, rtol=8 * eps(dtype), atol=8 * eps(dtype))
    dx, dweight, dbias = case.backward(order, "nhwc", "reversed")
    want = case.gradients()
    check(dx, want[0], atol=32 * eps(dtype))
    check(dweight, want[1], atol=128 * eps(dtype))
    check(dbias, want[2], atol=128 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("order", MAPS)
@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_eval(isa: str, threads: int, order: str, dtype: str, relu: bool) -> None:
    rng = np.random.default_rng(7)
    shape = (31, 18, 3, 9)
    x = rng.standard_normal(shape).astype(dtype)
    mean, weight, bias = (rng.standard_normal(18).astype(dtype) for _ in range(3))
    var = rng.uniform(0.1, 2, 18).astype(dtype)
    want = (x.astype(WIDE) - per_channel(mean)) / np.sqrt(per_channel(var) + EPS)
    want = want * per_channel(weight) + per_channel(bias)
    for layout in ("compact", "sliced", "reversed"):
        y = blank_map(shape, order, dtype)
        vectors = [lay(a, layout) for a in (mean, var, weight, bias)]
        launch("batch_norm_eval", y, lay_map(x, order, dtype), *vectors, scalars=(EPS, relu))
        check(written(y), np.maximum(want, 0) if relu else want, atol=32 * eps(dtype))


@pytest.mark.parametrize("order", ["nchw", "nhwc"])
@pytest.mark.parametrize("offset", [1e3, -1e5, 1e6])
def test_variance_is_accurate_far_from_zero(isa: str, order: str, offset: float) -> None:
    """|mean| >> std: sum(x^2)/n - mean^2 in float32 would have no correct digit."""
    rng = np.random.default_rng(8)
    x = (rng.standard_normal((64, 17, 5, 5)) + offset).astype("float32")
    wide = x.astype(WIDE)
    y, mean, var = blank_map(x.shape, order, "float32"), *(np.empty(17, "float32") for _ in "mv")
    weight, bias = np.ones(17, "float32"), np.zeros(17, "float32")
    launch("batch_norm", y, mean, var, lay_map(x, order, "float32"), weight, bias, scalars=(EPS, 0))
    check(mean, wide.mean((0, 2, 3)), rtol=eps("float32"))
    check(var, wide.var((0, 2, 3)), rtol=16 * eps("float32"))
    normal = wide - per_channel(wide.mean((0, 2, 3)))
    check(y, normal / np.sqrt(per_channel(wide.var((0, 2, 3)) + EPS)), atol=1e-5)


@pytest.mark.parametrize("order", ["nchw", "nhwc"])
def test_variance_where_the_first_value_is_an_outlier(isa: str, order: str) -> None:
    """The first value of a channel is the shift: it may be the worst one."""
    x = np.random.default_rng(9).standard_normal((500, 16, 2, 2)).astype("float32")
    x[0, :, 0, 0] = 1e4
    y, mean, var = blank_map(x.shape, order, "float32"), *(np.empty(16, "float32") for _ in "mv")
    weight, bias = np.ones(16, "float32"), np.zeros(16, "float32")
    launch("batch_norm", y, mean, var, lay_map(x, order, "float32"), weight, bias, scalars=(EPS, 0))
    wide = x.astype(WIDE)
    check(mean, wide.mean((0, 2, 3)), atol=2e4 * eps("float32"))  # values of size 1e4 are summed
    check(var, wide.var((0, 2, 3)), rtol=1e-5)


def test_batch_norm_of_a_constant(isa: str) -> None:
    x = np.full((10, 3, 4, 4), 0.1, "float32")
    y, mean, var = np.empty_like(x), np.empty(3, "float32"), np.empty(3, "float32")
    bias = np.arange(3, dtype="float32")
    launch("batch_norm", y, mean, var, x, np.ones(3, "float32"), bias, scalars=(EPS, 0))
    assert (mean == np.float32(0.1)).all()
    assert (var == 0).all()
    assert (y == per_channel(bias)).all()


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (4, 0, 2, 2), (4, 3, 0, 2)])
def test_batch_norm_of_nothing(isa: str, shape: tuple[int, ...]) -> None:
    x, y = np.empty(shape, "float32"), np.empty(shape, "float32")
    mean, var, weight, bias, dweight, dbias = (np.ones(shape[1], "float32") for _ in range(6))
    launch("batch_norm_eval", y, x, mean, var, weight, bias, scalars=(EPS, 0))
    launch("batch_norm", y, dweight, dbias, x, weight, bias, scalars=(EPS, 0))
    assert np.isnan(dweight).all()  # the mean of nothing, as in NumPy
    launch("batch_norm_grad", y, dweight, dbias, x, x, None, mean, var, weight, scalars=(EPS, 0))
    assert (dweight == 0).all()
    assert (dbias == 0).all()


def test_nan_stays_in_its_channel(isa: str) -> None:
    x = np.random.default_rng(10).standard_normal((40, 5, 3, 3)).astype("float32")
    x[3, 2, 1, 1] = np.nan
    for order in ("nchw", "nhwc"):
        y, mean, var = blank_map(x.shape, order, "float32"), *(np.empty(5, "float32") for _ in "mv")
        ones = np.ones(5, "float32")
        launch(
            "batch_norm", y, mean, var, lay_map(x, order, "float32"), ones, ones, scalars=(EPS, 1)
        )
        assert np.isnan(mean).tolist() == [False, False, True, False, False]
        assert np.isnan(y[:, 2]).all()
        assert np.isfinite(np.delete(y, 2, 1)).all()


@pytest.mark.parametrize("order", ["nchw", "nhwc", "sliced"])
def test_same_result_for_any_number_of_threads(isa: str, order: str) -> None:
    case = Case((64, 20, 9, 9), "float32")
    before = cpu.num_threads()
    results = []
    for n in (1, 2, 5):
        cpu.set_num_threads(n)
        results.append(case.forward(order, "compact") + case.backward(order, order, "compact"))
    cpu.set_num_threads(before)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(a, b)


# ---- layer norm

ROWS = [(1, 1), (3, 15), (2, 16), (5, 17), (70, 64), (1, 5000), (300, 129)]


def layer_norm_formula(x: Array, weight: Array, bias: Array) -> tuple[Array, Array, Array]:
    x = x.astype(WIDE)
    mean, var = x.mean(1), x.var(1)
    return (x - mean[:, None]) / np.sqrt(var[:, None] + EPS) * weight + bias, mean, var


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ROWS)
def test_layer_norm(isa: str, shape: tuple[int, int], layout: str, dtype: str) -> None:
    rng = np.random.default_rng(11)
    rows, size = shape
    x = (rng.standard_normal(shape) * 3 - 1).astype(dtype)
    weight, bias = (rng.standard_normal(size).astype(dtype) for _ in range(2))
    y, mean, var = (blank(s, layout, dtype) for s in (shape, (rows,), (rows,)))
    operands = (lay(x, layout), lay(weight, layout), lay(bias, layout))
    launch("layer_norm", y, mean, var, *operands, scalars=(EPS,))
    want = layer_norm_formula(x, weight, bias)
    check(written(y), want[0], atol=32 * eps(dtype), rtol=8 * eps(dtype))
    check(written(mean), want[1], atol=8 * eps(dtype), rtol=8 * eps(dtype))
    check(written(var), want[2], rtol=8 * eps(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", ROWS)
def test_layer_norm_grad(isa: str, shape: tuple[int, int], layout: str, dtype: str) -> None:
    rng = np.random.default_rng(12)
    rows, size = shape
    x, dy = ((rng.standard_normal(shape) * 2).astype(dtype) for _ in range(2))
    weight = rng.standard_normal(size).astype(dtype)
    _, mean, var = layer_norm_formula(x, weight, weight)
    dx, dweight, dbias = (blank(s, layout, dtype) for s in (shape, (size,), (size,)))
    operands = [lay(a, layout, dtype) for a in (dy, x, mean, var, weight)]
    launch("layer_norm_grad", dx, dweight, dbias, *operands, scalars=(EPS,))
    inverse = 1 / np.sqrt(var + EPS)[:, None]
    normal, g = (x - mean[:, None]) * inverse, dy.astype(WIDE) * weight
    want = (g - g.mean(1, keepdims=True) - normal * (g * normal).mean(1, keepdims=True)) * inverse
    bound = 16 * eps(dtype) * (1 + rows**0.5) * inverse.max()
    check(written(dx), want, atol=32 * eps(dtype) * inverse.max(), rtol=8 * eps(dtype))
    check(written(dweight), (dy * normal).sum(0), atol=bound)
    check(written(dbias), dy.astype(WIDE).sum(0), atol=bound)


@pytest.mark.parametrize("offset", [1e3, -1e6])
def test_layer_norm_far_from_zero(isa: str, offset: float) -> None:
    x = (np.random.default_rng(13).standard_normal((6, 333)) + offset).astype("float32")
    y, mean, var = np.empty_like(x), np.empty(6, "float32"), np.empty(6, "float32")
    weight, bias = np.ones(333, "float32"), np.zeros(333, "float32")
    launch("layer_norm", y, mean, var, x, weight, bias, scalars=(EPS,))
    want = layer_norm_formula(x, weight, bias)
    check(mean, want[1], rtol=eps("float32"))
    check(var, want[2], rtol=8 * eps("float32"))
    check(y, want[0], atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_layer_norm_of_nothing(isa: str, shape: tuple[int, int]) -> None:
    x, y = np.empty(shape, "float64"), np.empty(shape, "float64")
    row, column = np.ones(shape[0]), np.ones(shape[1])
    launch("layer_norm", y, row.copy(), row.copy(), x, column, column, scalars=(EPS,))
    dweight, dbias = column.copy(), column.copy()
    launch("layer_norm_grad", y, dweight, dbias, x, x, row, row, column, scalars=(EPS,))
    assert (dweight == 0).all()
    assert (dbias == 0).all()
