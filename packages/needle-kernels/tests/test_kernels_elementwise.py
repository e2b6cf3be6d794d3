"""Elementwise functions against NumPy, in float64 where the values are floats."""

import operator

import numpy as np
import pytest
from scipy import special

from needle import backend_ndarray as nd
from needle._kernels import cpu as extension
from needle.backend_ndarray.devices import REFERENCE_MODE
from needle.backend_ndarray.testing import VIEWS, compare, make_view, rounding

# lanes of the widest vector (16 floats of 512 bits), one less, one more, and one that is large
SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 5003]
FLOATS = ["float32", "float64"]
INTS = ["int32", "int64", "uint8"]

# name: (oracle in float64, domain, roundings that the result may be off by)
UNARY = {
    "negate": (np.negative, (-5, 5), 0),
    "abs": (np.abs, (-5, 5), 0),
    "relu": (lambda x: np.maximum(x, 0), (-5, 5), 0),
    "sqrt": (np.sqrt, (0, 9), 1),
    "exp": (np.exp, (-20, 20), 8),
    "log": (np.log, (1e-6, 50), 8),
    "tanh": (np.tanh, (-6, 6), 8),
    "sigmoid": (special.expit, (-30, 30), 8),
}
BINARY = {
    "add": (np.add, 1),
    "subtract": (np.subtract, 1),
    "multiply": (np.multiply, 1),
    "divide": (np.divide, 1),
    "power": (np.power, 16),
    "maximum": (np.maximum, 0),
    "minimum": (np.minimum, 0),
}
COMPARE = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]


def draw(shape, low=-5.0, high=5.0, seed=0):
    return np.random.default_rng(seed).uniform(low, high, shape)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_unary_sizes(device, name, dtype):
    oracle, (low, high), roundings = UNARY[name]
    for size in SIZES:
        x = nd.array(draw(size, low, high), dtype=dtype, device=device)
        want = oracle(x.numpy().astype(np.float64))
        bound = rounding(dtype, roundings)
        compare(getattr(nd, name)(x), want, dtype=dtype, rtol=bound, atol=bound * 1e-3)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", UNARY)
def test_unary_views(device, name, view):
    oracle, (low, high), roundings = UNARY[name]
    x = make_view(view, draw((5, 3, 19), low, high), device)
    want = oracle(x.numpy().astype(np.float64))
    bound = rounding("float32", roundings)
    compare(getattr(nd, name)(x), want, dtype="float32", rtol=bound, atol=bound * 1e-3)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_unary_special_values(device, name, dtype):
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38, -3e38] * 5, dtype)
    x = nd.array(values, dtype=dtype, device=device)
    with np.errstate(all="ignore"):
        want = UNARY[name][0](values.astype(np.float64)).astype(dtype)
    # Numbers below the smallest normal float may be flushed to zero.
    compare(getattr(nd, name)(x), want, rtol=rounding(dtype, 8), atol=1.2e-38, finite=False)


@pytest.mark.parametrize("dtype", INTS)
def test_unary_integers(device, dtype):
    values = np.arange(0, 40) if dtype == "uint8" else np.arange(-20, 20)
    x = nd.array(values, dtype=dtype, device=device)
    compare(nd.negate(x), -values.astype(dtype))
    compare(nd.abs(x), np.abs(values.astype(dtype)))
    compare(nd.relu(x), np.maximum(values, 0).astype(dtype))
    compare(nd.exp(x), np.exp(values.astype(float)), rtol=rounding("float64", 8))
    compare(nd.logical_not(x), values == 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BINARY)
def test_binary_sizes(device, name, dtype):
    oracle, roundings = BINARY[name]
    for size in SIZES:
        a = nd.array(draw(size, 0.5, 3), dtype=dtype, device=device)
        b = nd.array(draw(size, -2, 2, seed=1), dtype=dtype, device=device)
        want = oracle(a.numpy().astype(np.float64), b.numpy().astype(np.float64))
        compare(getattr(nd, name)(a, b), want, dtype=dtype, rtol=rounding(dtype, roundings))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["add", "multiply", "power"])
def test_binary_views(device, name, view):
    oracle, roundings = BINARY[name]
    a = make_view(view, draw((4, 3, 17), 0.5, 3), device)
    for other in VIEWS:
        b = make_view(other, draw((4, 3, 17), -2, 2, seed=1), device)
        want = oracle(a.numpy().astype(np.float64), b.numpy().astype(np.float64))
        compare(getattr(nd, name)(a, b), want, dtype="float32", rtol=rounding("float32", roundings))


@pytest.mark.parametrize("dtype", INTS)
@pytest.mark.parametrize("name", [n for n in BINARY if n != "divide"])
def test_binary_integers(device, name, dtype):
    rng = np.random.default_rng(0)
    low = 0 if dtype == "uint8" else -9
    for size in (0, 1, 17, 67):
        a = rng.integers(low, 9, size).astype(dtype)
        b = rng.integers(0, 5, size).astype(dtype)
        got = getattr(nd, name)(
            nd.array(a, dtype=dtype, device=device), nd.array(b, dtype=dtype, device=device)
        )
        compare(got, BINARY[name][0](a, b))


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "power"])
def test_integers_wrap_around(device, name):
    a = np.array([2**31 - 1, -(2**31), 77777], np.int32)
    b = np.array([1, 3, 3], np.int32)
    got = getattr(nd, name)(
        nd.array(a, dtype="int32", device=device), nd.array(b, dtype="int32", device=device)
    )
    with np.errstate(over="ignore"):
        compare(got, BINARY[name][0](a, b))


def test_bools_combine_logically(device):
    x = np.array([True, True, False, False] * 9)
    y = np.array([True, False, True, False] * 9)
    a = nd.array(x, dtype=bool, device=device)
    b = nd.array(y, dtype=bool, device=device)
    compare(a + b, x | y)
    compare(a * b, x & y)
    compare(nd.maximum(a, b), x | y)
    compare(nd.minimum(a, b), x & y)
    compare(nd.logical_and(a, b), x & y)
    compare(nd.logical_or(a, b), x | y)
    compare(~a, ~x)
    compare(a / (b + 1), x / (y + np.int64(1)))
    compare(a**b, x.astype(int) ** y.astype(int))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, "bool"])
@pytest.mark.parametrize("name", COMPARE)
def test_comparisons(device, name, dtype):
    rng = np.random.default_rng(0)
    for size in SIZES:
        x, y = (rng.integers(0, 3, size).astype(dtype) for _ in range(2))
        a, b = (nd.array(v, dtype=dtype, device=device) for v in (x, y))
        compare(getattr(nd, name)(a, b), getattr(np, name)(x, y))
        compare(getattr(nd, name)(a, 1), getattr(np, name)(x, 1))
        compare(getattr(nd, name)(1, a), getattr(np, name)(1, x))


@pytest.mark.parametrize("name", COMPARE)
def test_comparisons_with_nan(device, name):
    x = np.array([np.nan, 1.0, np.inf, -np.inf, 0.0] * 7, np.float32)
    y = np.roll(x, 1)
    a, b = (nd.array(v, dtype="float32", device=device) for v in (x, y))
    compare(getattr(nd, name)(a, b), getattr(np, name)(x, y))
    compare(getattr(nd, name)(a, float("nan")), getattr(np, name)(x, np.nan))


@pytest.mark.parametrize("name", COMPARE)
@pytest.mark.parametrize("value", [300, -1, 2**70])
def test_comparison_with_an_int_out_of_range(device, name, value):
    x = np.array([0, 255], np.uint8)
    a = nd.array(x, dtype="uint8", device=device)
    compare(getattr(nd, name)(a, value), getattr(np, name)(x, value))
    compare(getattr(nd, name)(value, a), getattr(np, name)(value, x))


def test_operators_equal_functions(device):
    x = np.array([[0.5, 1.5], [2.0, 3.0]], np.float32)
    a = nd.array(x, dtype="float32", device=device)
    for op in ("add", "sub", "mul", "truediv", "pow", "lt", "le", "gt", "ge", "eq", "ne"):
        f = getattr(operator, op)
        compare(f(a, 2.0), f(x, np.float32(2)), rtol=rounding("float32", 8))
        compare(f(2.0, a), f(np.float32(2), x), rtol=rounding("float32", 8))
        compare(f(np.float32(2), a), f(np.float32(2), x), rtol=rounding("float32", 8))
        compare(f(a, a[0]), f(x, x[0]), rtol=rounding("float32", 8))
    compare(-a, -x)
    compare(+a, x)
    compare(abs(a - 2), abs(x - 2))


def test_power_special_cases(device):
    base = np.array([-2.0, -1.0, 0.0, -0.0, 1.0, 4.0, np.inf, np.nan] * 3, np.float32)
    a = nd.array(base, dtype="float32", device=device)
    with np.errstate(all="ignore"):
        for exponent in (0.0, 1.0, 2.0, 3.0, 0.5, -1.0, -2.0, 2.5):
            want = np.power(base.astype(np.float64), exponent).astype(np.float32)
            compare(a**exponent, want, rtol=rounding("float32", 8), finite=False)


def test_maximum_propagates_nan(device):
    x = np.array([np.nan, 1.0, np.nan, 2.0] * 9, np.float32)
    y = np.array([1.0, np.nan, np.nan, 3.0] * 9, np.float32)
    a, b = nd.array(x, dtype="float32", device=device), nd.array(y, dtype="float32", device=device)
    compare(nd.maximum(a, b), np.maximum(x, y), finite=False)
    compare(nd.minimum(a, b), np.minimum(x, y), finite=False)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["relu_grad", "tanh_grad", "sigmoid_grad"])
def test_activation_gradients(device, name, dtype):
    oracle = {
        "relu_grad": lambda dy, y: np.where(y > 0, dy, 0),
        "tanh_grad": lambda dy, y: dy * (1 - y * y),
        "sigmoid_grad": lambda dy, y: dy * y * (1 - y),
    }[name]
    for size in SIZES:
        dy = nd.array(draw(size), dtype=dtype, device=device)
        y = nd.array(draw(size, -0.9, 0.9, seed=1), dtype=dtype, device=device)
        want = oracle(dy.numpy().astype(np.float64), y.numpy().astype(np.float64))
        compare(getattr(nd, name)(dy, y), want, dtype=dtype, rtol=rounding(dtype, 20))


@pytest.mark.parametrize("view", VIEWS)
def test_activation_gradient_views(device, view):
    dy = make_view(view, draw((3, 4, 17)), device)
    y = nd.array(draw((3, 4, 17), seed=1), dtype="float32", device=device)
    compare(nd.relu_grad(dy, y), np.where(y.numpy() > 0, dy.numpy(), 0))


def test_broadcasting(device):
    for shape_a, shape_b in [((3, 1, 5), (4, 1)), ((1,), (2, 3)), ((), (2, 2)), ((0, 3), (1, 3))]:
        x, y = draw(shape_a).astype(np.float32), draw(shape_b, seed=1).astype(np.float32)
        compare(
            nd.array(x, dtype="float32", device=device)
            + nd.array(y, dtype="float32", device=device),
            x + y,
        )


def test_results_keep_the_memory_order(device):
    channels_last = nd.array(draw((2, 4, 5, 3)), dtype="float32", device=device).permute(0, 3, 1, 2)
    bias = nd.ones((3, 1, 1), device=device)
    for result in (channels_last + 1, -channels_last, channels_last > 0, bias + channels_last):
        assert result.strides == channels_last.strides
    assert (channels_last + channels_last.compact()).strides == channels_last.strides
    assert channels_last.compact().strides == (60, 20, 5, 1)
    # a broadcast axis has no order to keep
    assert (nd.ones((5,), device=device).broadcast_to(3, 5) + 1).strides == (5, 1)


def test_large_integers_are_exact(device):
    big = 2**62 + 1
    a = nd.array([big, -big], dtype="int64", device=device)
    compare(a + 1, np.array([big + 1, 1 - big]))
    compare(a == big, np.array([True, False]))
    a[...] = big + 2
    compare(a, np.array([big + 2, big + 2]))


class TestInPlace:
    def test_writes_the_same_memory(self, device):
        a = nd.array([[1.0, 2.0], [3.0, 4.0]], dtype="float32", device=device)
        before, address, version = a, a._handle.ptr(), a._handle.version
        a += 1
        a *= a
        a -= nd.array([1.0, 2.0], dtype="float32", device=device)
        a /= 2
        a **= 2
        assert a is before
        assert a._handle.ptr() == address
        assert a._handle.version == version + 5
        want = (((np.array([[2.0, 3.0], [4.0, 5.0]]) ** 2) - [1, 2]) / 2) ** 2
        compare(a, want, dtype="float32", rtol=1e-6)

    def test_view(self, device):
        a = nd.zeros((3, 3), device=device)
        a[:, 1] += 2
        compare(a, np.array([[0, 2, 0]] * 3, np.float32))

    def test_overlapping_operand(self, device):
        x = np.arange(9.0, dtype=np.float32)
        a = nd.array(x, dtype="float32", device=device)
        a += a[::-1]
        compare(a, x + x[::-1])
        a = nd.array(x, dtype="float32", device=device)
        a[1:] += a[:-1]
        compare(a, np.concatenate([x[:1], x[1:] + x[:-1]]))

        x = np.arange(64.0, dtype=np.float32).reshape(8, 8)
        a = nd.array(x, dtype="float32", device=device)
        a += a.permute((1, 0))
        compare(a, x + x.T)

    def test_operand_that_shares_the_memory_of_numpy(self):
        """Two arrays that know nothing of each other, over the same elements."""
        for shift in (0, 1, 70, 100):
            x = np.arange(200.0, dtype=np.float32)
            a, b = (nd.from_dlpack(x[first : first + 100]) for first in (shift, 0))
            want = x[shift : shift + 100] + x[:100]
            a += b
            compare(a, want)
            np.testing.assert_array_equal(x[shift : shift + 100], want)

    def test_casts_within_a_kind(self, device):
        a = nd.ones((2,), device=device)
        a += nd.array([0.5, 1.5], dtype="float64", device=device)
        compare(a, np.array([1.5, 2.5], np.float32))

    def test_errors(self, device):
        a = nd.ones((2,), device=device)
        with pytest.raises(nd.ShapeError, match=r"add: an in-place .* got \(3, 2\) for \(2,\)"):
            a += nd.ones((3, 2), device=device)
        i = nd.ones((2,), dtype="int32", device=device)
        with pytest.raises(nd.DTypeError, match=r"multiply: cannot store .* got float64 for int32"):
            i *= 0.5
        with pytest.raises(nd.DTypeError, match=r"divide: cannot store .* got float64 for int32"):
            i /= 2
        view = a.broadcast_to((3, 2))
        with pytest.raises(nd.ShapeError, match=r"add: .* broadcast view: got shape \(3, 2\)"):
            view += 1

    def test_matmul(self, device):
        x = np.arange(4.0, dtype=np.float32).reshape(2, 2)
        a = nd.array(x, dtype="float32", device=device)
        same = a
        a @= a
        assert a is same
        compare(a, x @ x)


class TestErrors:
    def test_shapes(self, device):
        a, b = nd.ones((2, 3), device=device), nd.ones((4,), device=device)
        with pytest.raises(nd.ShapeError, match=r"add: shapes do not broadcast: got \(2, 3\) and"):
            a + b
        with pytest.raises(nd.ShapeError, match=r"relu_grad: shapes differ: got dy \(2, 3\) and y"):
            nd.relu_grad(a, b)

    def test_bools(self, device):
        a = nd.array([True], dtype=bool, device=device)
        with pytest.raises(nd.DTypeError, match="subtract: bools cannot be subtracted: got bool"):
            a - a
        with pytest.raises(nd.DTypeError, match="negate: bools have no negative: got bool"):
            _ = -a

    def test_negative_power(self, device):
        a = nd.array([2, 3], dtype="int32", device=device)
        with pytest.raises(ValueError, match=r"power: integers .* got exponent -1: need >= 0"):
            a**-1
        with pytest.raises(ValueError, match="got exponent -2"):
            a ** nd.array([1, -2], dtype="int32", device=device)
        compare(a**-1.0, np.array([1 / 2, 1 / 3]))

    def test_overflow(self, device):
        a = nd.array([1], dtype="uint8", device=device)
        with pytest.raises(OverflowError, match=r"add: .* got 300: uint8 holds 0 to 255"):
            a + 300

    def test_types(self, device):
        a = nd.ones((2,), device=device)
        with pytest.raises(TypeError, match="unsupported operand"):
            _ = a + "x"
        with pytest.raises(TypeError, match="add: unsupported operand: got list"):
            nd.add(a, [1, 2])
        assert (a == "x") is False
        assert (a != None) is True  # noqa: E711
        with pytest.raises(nd.DTypeError, match="tanh_grad: dtypes do not fit: got dy float32 and"):
            nd.tanh_grad(a, a.astype("float64"))


@pytest.mark.skipif(REFERENCE_MODE, reason="cpu() is the NumPy device: it has no path in C++")
class TestCommonPath:
    """The path in C++ takes arrays on cpu() and Python numbers, and leaves the rest to Python."""

    call = staticmethod(extension.elementwise)
    add = extension.KERNELS.index("add")
    less = extension.KERNELS.index("less")

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_layout_and_dtype(self, dtype):
        a = nd.array(np.arange(6.0).reshape(2, 3), dtype=dtype).T
        out = self.call(self.add, a, nd.ones((2,), dtype=dtype))
        assert (out.shape, out.strides, out.dtype) == ((3, 2), (1, 3), np.dtype(dtype))
        assert np.array_equal(out.numpy(), a.numpy() + 1)
        assert self.call(self.less, 2.5, a).dtype == np.dtype(bool)

    def test_no_input_of_full_size(self):
        column, row = nd.ones((3, 1)), nd.ones((1, 0))
        assert self.call(self.add, column, nd.ones((4,))).strides == (4, 1)
        assert self.call(self.add, column, row).shape == (3, 0)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("value", [0.1, -0.0, np.inf, np.nan, 1e-40])
    def test_scalar_of_the_same_dtype(self, dtype, value):
        number = np.dtype(dtype).type(value)
        x = np.array([3, -0.0], dtype)
        for a, b in ((nd.array(x, dtype=dtype), number), (number, nd.array(x, dtype=dtype))):
            out = self.call(self.add, a, b)
            assert out.dtype == np.dtype(dtype)
            assert out.numpy().tobytes() == (x + number).tobytes()

    @pytest.mark.parametrize(
        ("a", "b"),
        [
            (nd.ones((2, 3)), nd.ones((2,))),
            (nd.ones((2,), dtype="bool"), nd.ones((2,), dtype="bool")),
            (nd.ones((2,), dtype="bool"), 1),
            (nd.ones((2,), dtype="int32"), True),
            (nd.ones((2,), dtype="int32"), 2**31),
            (nd.ones((2,), dtype="int64"), 2**63),
            (nd.ones((2,), dtype="uint8"), -1),
            (nd.ones((2,), dtype="uint8"), 256),
            (nd.ones((2,)), np.float64(1)),
            (nd.ones((2,), dtype="float64"), np.float32(1)),
            (nd.ones((2,)), np.int64(1)),
            (nd.ones((2,)), True),
            (nd.ones((2,), device=nd.cpu_numpy()), 1.0),
            (1.0, 2.0),
        ],
    )
    def test_declines(self, a, b):
        assert self.call(self.add, a, b) is None

    @pytest.mark.parametrize("kernel", ["add", "multiply", "divide", "maximum", "less"])
    @pytest.mark.parametrize("b", [*FLOATS, *INTS, "bool", 2, 2.5, -1])
    @pytest.mark.parametrize("a", [*FLOATS, *INTS, "bool"])
    def test_promotes_as_numpy_does(self, kernel, a, b):
        x = np.array([[0, 1, 200]], a)
        y = np.array([[1], [2]], b) if isinstance(b, str) else b
        for left, right in ((x, y), (y, x)):
            operands = [
                nd.array(v, dtype=v.dtype) if isinstance(v, np.ndarray) else v
                for v in (left, right)
            ]
            out = self.call(extension.KERNELS.index(kernel), *operands)
            if (a == "bool" and b in ("bool", 2, -1)) or (a == "uint8" and b == -1):
                assert out is None  # NumPy's ufuncs of bools are others; the last is an error
                continue
            with np.errstate(divide="ignore"):
                expected = getattr(np, kernel)(left, right)
            assert out.dtype == expected.dtype
            np.testing.assert_array_equal(out.numpy(), expected)

    def test_promotion_keeps_the_memory_order_and_the_inputs(self):
        a = nd.array(np.arange(6).reshape(2, 3), dtype="int32").T
        b = nd.array(np.full((3, 2), 0.5), dtype="float64")
        out = self.call(self.add, a, b)
        assert (out.strides, out.dtype) == (a.strides, np.dtype("float64"))
        assert np.array_equal(out.numpy(), a.numpy() + 0.5)
        assert a.dtype == np.dtype("int32")

    def test_in_place_only_where_the_dtype_stays(self):
        in_place = extension.elementwise_in_place
        wide, narrow = nd.ones((2, 3), dtype="float64"), nd.ones((3,), dtype="int32")
        before = wide._handle.version
        assert in_place(self.add, wide, narrow)
        assert wide._handle.version == before + 1
        assert np.array_equal(wide.numpy(), np.full((2, 3), 2.0))
        assert in_place(self.add, narrow, 4)
        assert narrow.numpy().tolist() == [5, 5, 5]
        for target, other in ((narrow, wide[0]), (narrow, 0.5), (narrow, 2**40)):
            assert not in_place(self.add, target, other)
        assert narrow.numpy().tolist() == [5, 5, 5]

    def test_logical(self):
        both = extension.KERNELS.index("logical_and")
        a = nd.array([[True], [False]], dtype="bool")
        b = nd.array([True, False, True], dtype="bool")
        out = self.call(both, a, b)
        assert out.dtype == np.dtype(bool)
        assert np.array_equal(out.numpy(), [[True, False, True], [False] * 3])
        for other in (1, 1.0, nd.ones((3,)), True):
            assert self.call(both, b, other) is None
        assert self.call(self.add, b, b) is None

    def test_array_without_parts(self):
        with pytest.raises(AttributeError, match="_handle"):
            extension.launch(0, 0, (nd.NDArray.__new__(nd.NDArray),), ())

    def test_no_memory(self):
        a = nd.ones((1000, 1))
        nd.empty_cache()  # what other tests left may be large enough
        nd.set_memory_limit(nd.memory_stats()["held"] + 1000)
        try:
            with pytest.raises(MemoryError):
                self.call(self.add, a, nd.ones((1, 100_000)))
        finally:
            nd.set_memory_limit(0)
