"""Sums and extremes against NumPy in float64."""

import itertools

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import VIEWS, compare, make_view, rounding

SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 5003]


def draw(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def check(x, name, axis, keepdims=False):
    """Compares one reduction with NumPy's; a sum of n terms may be off by n roundings."""
    values = x.numpy()
    want = getattr(values.astype(np.float64), name)(axis=axis, keepdims=keepdims)
    terms = values.size // max(want.size, 1)
    atol = rounding(values.dtype, terms) * terms**0.5 if name == "sum" else 0.0
    compare(getattr(x, name)(axis=axis, keepdims=keepdims), want, dtype=values.dtype, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sizes(device, dtype):
    for size in SIZES:
        x = nd.array(draw(size), dtype=dtype, device=device)
        check(x, "sum", None)
        for name in ("max", "min") if size else ():
            check(x, name, None)
        rows = nd.array(draw((3, size)), dtype=dtype, device=device)
        columns = nd.array(draw((size, 3)), dtype=dtype, device=device)
        for x in (rows, columns):
            check(x, "sum", 0)
            check(x, "sum", 1)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["sum", "max", "min"])
def test_every_set_of_axes(device, name, view):
    x = make_view(view, draw((3, 4, 5, 6)), device)
    for count in range(5):
        for axes in itertools.combinations(range(4), count):
            check(x, name, axes)
            check(x, name, axes, keepdims=True)
    for axis in (-1, 0, 2, None):
        check(x, name, axis)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool"])
def test_integers(device, dtype):
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (5, 37))
    values = values.astype(dtype)
    x = nd.array(values, dtype=dtype, device=device)
    for axis in (None, 0, 1):
        compare(x.sum(axis), values.sum(axis).astype(np.int64))
        compare(x.max(axis), values.max(axis))
        compare(x.min(axis), values.min(axis))


def test_integer_sums_do_not_overflow(device):
    x = nd.full((5,), 2**31 - 1, dtype="int32", device=device)
    compare(x.sum(), np.array(5 * (2**31 - 1)))


def test_long_float32_sum_is_accurate(device):
    values = np.full(1_000_003, 0.1, np.float32)
    got = nd.array(values, dtype="float32", device=device).sum()
    compare(got, values.astype(np.float64).sum(), dtype="float32", rtol=1e-5)


def test_nan_and_infinity(device):
    for size in (3, 16, 17, 100):
        for place in (0, size // 2, size - 1):
            values = draw(size)
            values[place] = np.nan
            x = nd.array(values, dtype="float32", device=device)
            for name in ("sum", "max", "min"):
                assert np.isnan(getattr(x, name)().item())
            values[place] = -np.inf
            x = nd.array(values, dtype="float32", device=device)
            assert x.min().item() == -np.inf
            assert x.max().item() == np.float32(values).max()
    all_low = nd.full((17,), -np.inf, device=device)
    assert all_low.max().item() == -np.inf


def test_empty(device):
    compare(nd.zeros((0, 3), device=device).sum(0), np.zeros(3, np.float32))
    compare(nd.zeros((0, 3), device=device).sum(), np.zeros((), np.float32))
    compare(nd.zeros((0, 3), device=device).max(1), np.zeros(0, np.float32))
    compare(nd.zeros((2, 0), device=device).sum(1, keepdims=True), np.zeros((2, 1), np.float32))
    for name in ("max", "min"):
        with pytest.raises(nd.ShapeError, match=rf"{name}: nothing .* got shape \(0, 3\), axis 0"):
            getattr(nd.zeros((0, 3), device=device), name)(axis=0)
        with pytest.raises(ValueError, match="axis None"):
            getattr(nd.zeros((0,), device=device), name)()


def test_axis_errors(device):
    x = nd.zeros((2, 3), device=device)
    with pytest.raises(nd.AxisError, match=r"sum: axis is out of range: got 2 for 2 axes: need -2"):
        x.sum(axis=2)
    with pytest.raises(IndexError, match="max: axis is out of range: got -3"):
        x.max(axis=-3)
    with pytest.raises(nd.ShapeError, match=r"sum: axis named twice: got \(0, -2\)"):
        x.sum(axis=(0, -2))
    with pytest.raises(TypeError, match=r"sum: not integers: got 0.5"):
        x.sum(axis=0.5)


def test_module_functions_and_lists_of_axes(device):
    x = nd.array(draw((2, 3, 4)), dtype="float32", device=device)
    want = x.numpy().astype(np.float64).sum((0, 2), keepdims=True)
    compare(nd.sum(x, axis=[0, 2], keepdims=True), want, dtype="float32", atol=1e-6)
    compare(nd.max(x, np.int64(1)), x.numpy().max(1))
    compare(nd.min(x), x.numpy().min())


def test_result_keeps_the_order_of_the_kept_axes(device):
    x = nd.zeros((2, 5, 6, 3), device=device).permute(0, 3, 1, 2)
    assert x.sum(axis=0).strides == (1, 18, 3)
    assert x.sum(axis=0, keepdims=True).strides[1:] == (1, 18, 3)
