"""Dtypes of results: NumPy 2's promotion, checked against NumPy itself."""

import itertools
import operator

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import compare

DTYPES = ["float32", "float64", "int32", "int64", "uint8", "bool"]
OPERATORS = ["add", "sub", "mul", "truediv", "pow", "lt", "eq"]
SCALARS = [
    2, 2.5, True, np.float32(2), np.float64(2.5), np.int32(2), np.int64(2), np.uint8(2),
    np.bool_(True), np.array(2.5), np.array(2),
]  # fmt: skip


def supported(dtype):
    """The dtype for a result that NumPy gives in a dtype which is not one of the six."""
    return np.dtype("int64") if dtype == "int8" else dtype


@pytest.mark.parametrize(("left", "right"), list(itertools.product(DTYPES, DTYPES)))
def test_arrays(device, left, right):
    x, y = np.array([1, 0, 1]).astype(left), np.array([1, 1, 0]).astype(right)
    a, b = nd.array(x, dtype=left, device=device), nd.array(y, dtype=right, device=device)
    for name in OPERATORS:
        check(name, (a, b), (x, y))


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda s: f"{type(s).__name__}-{s}")
@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars(device, dtype, scalar):
    x = np.array([1, 0, 1]).astype(dtype)
    a = nd.array(x, dtype=dtype, device=device)
    for name in OPERATORS:
        check(name, (a, scalar), (x, scalar))
        check(name, (scalar, a), (scalar, x))


def check(name, operands, values):
    """The operator gives on `operands` what NumPy gives on `values`, dtype included."""
    f = getattr(operator, name)
    if name == "sub" and all(np.result_type(v) == "bool" for v in values):
        with pytest.raises(nd.DTypeError, match="subtract: bools"):
            f(*operands)
        return
    with np.errstate(all="ignore"):
        want = f(*values)
    compare(f(*operands), want, dtype=supported(want.dtype), rtol=1e-6, finite=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [255, 256, -1, 2**31, 2**63, 10**400])
def test_python_ints_out_of_range_raise_as_in_numpy(device, dtype, value):
    x = np.array([1]).astype(dtype)
    a = nd.array(x, dtype=dtype, device=device)
    try:
        with np.errstate(all="ignore"):
            want = x * value
    except OverflowError:
        with pytest.raises(OverflowError):
            a * value
        return
    if want.dtype == object:
        with pytest.raises(OverflowError):
            a * value
        return
    compare(a * value, want, dtype=want.dtype, rtol=1e-6)


def test_numpy_scalars_on_the_left_leave_the_work_to_needle(device):
    a = nd.ones((2,), device=device)
    for scalar in SCALARS:
        assert isinstance(scalar * a, nd.NDArray)
        assert isinstance(scalar < a, nd.NDArray)
    assert isinstance(np.ones((2, 2)) @ a, nd.NDArray)


def test_unsupported_combinations(device):
    a = nd.ones((2,), dtype="uint8", device=device)
    with pytest.raises(nd.DTypeError, match="add: dtype is not supported: got int16: need one of"):
        a + np.int8(1)
    with pytest.raises(nd.DTypeError, match="add: dtype is not supported: got complex128"):
        a + np.complex128(1)


FUNCTIONS = [
    *("add", "subtract", "multiply", "divide", "power", "maximum", "minimum"),
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_python_ints_of_any_size_are_taken_as_in_numpy(device, dtype, function):
    """NumPy makes float64 of what it divides, compares with what no element can be, or raises."""
    x = np.array([1, 0, 1]).astype(dtype)
    a = nd.array(x, dtype=dtype, device=device)
    for value in (255, 256, -1, -129, 2**31, 2**63, 2**70, 10**400):
        for operands, values in (((a, value), (x, value)), ((value, a), (value, x))):
            try:
                with np.errstate(all="ignore"):
                    want = getattr(np, function)(*values)
            except (OverflowError, ValueError) as error:
                with pytest.raises(type(error)):
                    getattr(nd, function)(*operands)
            else:
                got = getattr(nd, function)(*operands)
                compare(got, want, dtype=want.dtype, rtol=1e-6, finite=False)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "bool"])
def test_dividing_integers_in_place_is_refused(device, dtype):
    a = nd.ones((2,), dtype=dtype, device=device)
    for value in (2, 256, -1, 2**70):
        with pytest.raises(nd.DTypeError, match=r"divide: cannot store .*: got float64 for"):
            a /= value
