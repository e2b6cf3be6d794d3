"""Tensor as a user meets it: construction, operators, numbers on either side, printing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import Tensor, ops
from needle.backend_ndarray import DeviceError, DTypeError, NDArray, ShapeError
from needle.backend_ndarray.devices import REFERENCE_MODE

two_devices = pytest.mark.skipif(REFERENCE_MODE, reason="NEEDLE_BACKEND=np: one device only")
default_mode = pytest.mark.skipif(REFERENCE_MODE, reason="NEEDLE_BACKEND=np keeps NumPy's dtypes")


def check(tensor: Tensor, values: Any, dtype: str) -> None:
    assert isinstance(tensor, Tensor)
    assert tensor.dtype == dtype
    np.testing.assert_allclose(tensor.numpy(), np.asarray(values), rtol=1e-6)
    assert tensor.shape == np.shape(values)


# ---- construction -------------------------------------------------------------------------------


@default_mode
@pytest.mark.parametrize(
    "data", [[1, 2], [1.0, 2.0], np.array([1.0, 2.0]), np.array([1, 2]), (1, 2)], ids=repr
)
def test_other_data_becomes_float32(data: Any) -> None:
    check(Tensor(data), [1, 2], "float32")
    check(Tensor(data, dtype="float64"), [1, 2], "float64")
    check(Tensor(data, dtype=np.int32), [1, 2], "int32")


def test_reference_mode_keeps_dtypes() -> None:
    if not REFERENCE_MODE:
        pytest.skip("NEEDLE_BACKEND=nd")
    assert Tensor([1.0]).dtype == "float64"
    assert Tensor([1]).dtype == "int64"
    assert Tensor(np.ones(1, "float32")).dtype == "float32"
    assert ndl.default_device() == ndl.cpu_numpy()


def test_arrays_and_tensors_keep_dtype_and_share_memory() -> None:
    array = NDArray(np.ones(3), dtype="float64")
    a = Tensor(array)
    b = Tensor(a, requires_grad=False)
    assert a.dtype == b.dtype == "float64"
    array.fill(5)
    check(b, [5, 5, 5], "float64")
    check(Tensor(a, dtype="float32"), [5, 5, 5], "float32")
    source = np.zeros(2)
    copied = Tensor(source, dtype="float64")
    source[:] = 1
    check(copied, [0, 0], "float64")


@two_devices
def test_device_of_a_tensor() -> None:
    a = Tensor([1.0], device=ndl.cpu_numpy())
    assert a.device == Tensor(a).device == ndl.cpu_numpy()
    assert Tensor(a, device=ndl.cpu()).device == ndl.cpu()
    assert Tensor([1.0]).device == ndl.default_device()


def test_numbers_and_empty_data() -> None:
    check(Tensor(3.0, dtype="float32"), 3.0, "float32")
    assert Tensor(3.0).shape == ()
    assert Tensor(np.zeros((0, 3))).size == 0
    assert Tensor([[1.0, 2.0]]).ndim == 2


def test_wrong_data_is_refused() -> None:
    with pytest.raises(DTypeError, match="got complex64"):
        Tensor([1.0], dtype="complex64")
    with pytest.raises(DTypeError, match="got str32"):
        Tensor(["a"])
    with pytest.raises(TypeError):
        Tensor([1.0], "float64")  # device and dtype are named


def test_requires_grad_is_for_floats() -> None:
    assert Tensor([1.0]).requires_grad
    assert not Tensor([1.0], requires_grad=False).requires_grad
    for dtype in ("int32", "int64", "uint8", "bool"):
        integers = Tensor([1, 0], dtype=dtype)
        assert not integers.requires_grad
        with pytest.raises(DTypeError, match=f"only floats have gradients: got {dtype}"):
            integers.requires_grad = True


def test_requires_grad_can_be_switched_on_leaves() -> None:
    x = Tensor([1.0], dtype="float64", requires_grad=False)
    y = x * 2
    x.requires_grad = True
    assert not y.requires_grad
    (x * 3).backward()
    check(x.grad, [3.0], "float64")
    z = x * x
    x.requires_grad = False
    assert not (x * 2).requires_grad
    assert z.requires_grad
    with pytest.raises(RuntimeError, match="leaves only: got a result of multiply"):
        z.requires_grad = False


def test_make_const_and_make_from_op() -> None:
    x = Tensor([1.0, 2.0])
    constant = Tensor.make_const(x.realize_cached_data())
    assert constant.is_leaf()
    assert not constant.requires_grad
    y = Tensor.make_from_op(ops.EWiseAdd(), (x, x))
    assert isinstance(y.op, ops.EWiseAdd)
    assert not y.is_leaf()


def test_detach_shares_data_and_drops_the_graph() -> None:
    x = Tensor([1.0, 2.0])
    y = (x * 2).detach()
    assert y.is_leaf()
    assert not y.requires_grad
    assert x.data.cached_data is x.cached_data


def test_data_is_settable_and_checked() -> None:
    x = Tensor([1.0, 2.0], dtype="float32")
    x.data = Tensor([3.0, 4.0], dtype="float32")
    check(x, [3, 4], "float32")
    x.data = x.data - 1 * x.data
    check(x, [0, 0], "float32")
    assert x.requires_grad
    with pytest.raises(ShapeError, match=r"got \(3,\): need \(2,\)"):
        x.data = Tensor([1.0, 2.0, 3.0], dtype="float32")
    with pytest.raises(DTypeError, match="got float64: need float32"):
        x.data = Tensor([1.0, 2.0], dtype="float64")
    with pytest.raises(TypeError, match="got list"):
        x.data = [1.0, 2.0]
    if not REFERENCE_MODE:
        with pytest.raises(DeviceError, match=r"got cpu_numpy\(\): need cpu\(\)"):
            x.data = Tensor([1.0, 2.0], dtype="float32", device=ndl.cpu_numpy())


def test_pickle_and_copy() -> None:
    x = Tensor([[1.0, 2.0]], dtype="float64")
    for twin in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        check(twin, [[1, 2]], "float64")
        assert twin.requires_grad
        twin.realize_cached_data().fill(0)
    check(x, [[1, 2]], "float64")
    with pytest.raises(RuntimeError, match="only leaves can be copied: got a result of add"):
        copy.deepcopy(x + x)


# ---- arithmetic ---------------------------------------------------------------------------------

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
}
NUMBERS = [2, 2.5, np.float32(2.5), np.float64(2.5), np.int64(2), np.array(2.5, "float32"), True]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: f"{type(n).__name__}-{n}")
@pytest.mark.parametrize("symbol", OPERATORS)
def test_numbers_on_either_side_promote_as_in_numpy(symbol: str, number: Any, dtype: str) -> None:
    run = OPERATORS[symbol]
    array = np.array([[1, 2, 3]], dtype)
    for got, want in (
        (run(Tensor(array, dtype=dtype), number), run(array, number)),
        (run(number, Tensor(array, dtype=dtype)), run(number, array)),
    ):
        check(got, want, want.dtype.name)


@pytest.mark.parametrize("symbol", OPERATORS)
def test_arrays_on_either_side(symbol: str) -> None:
    run = OPERATORS[symbol]
    array, x = np.array([[2.0], [3.0]]), Tensor([1.0, 2.0, 4.0], dtype="float64")
    for other in (array, NDArray(array, dtype="float64"), Tensor(array, dtype="float64")):
        check(run(x, other), run(x.numpy(), array), "float64")
        check(run(other, x), run(array, x.numpy()), "float64")
    with pytest.raises(TypeError):
        run(x, "text")
    with pytest.raises(TypeError):
        run(None, x)


def test_promoted_gradients_come_back_in_the_inputs_dtypes() -> None:
    a, b = Tensor([1.0, 2.0], dtype="float32"), Tensor([[3.0], [4.0]], dtype="float64")
    c = a * b + np.float64(2.0) * a
    assert c.dtype == "float64"
    c.sum().backward()
    check(a.grad, [11.0, 11.0], "float32")
    check(b.grad, [[3.0], [3.0]], "float64")


def test_matmul_operator() -> None:
    a, v = np.arange(6.0).reshape(2, 3), np.arange(3.0)
    x = Tensor(a, dtype="float64")
    check(x @ v, a @ v, "float64")
    check(v @ x.transpose(), v @ a.T, "float64")
    check(Tensor(v, dtype="float64") @ v, v @ v, "float64")
    with pytest.raises(ShapeError, match=r"matmul: an operand has no axes: got \(2, 3\) .* 2"):
        x @ 2
    with pytest.raises(ShapeError, match="matmul: an operand has no axes"):
        x @ Tensor(2.0)


def test_unary_operators_and_powers() -> None:
    x = Tensor([1.0, 4.0], dtype="float64")
    check(-x, [-1, -4], "float64")
    assert +x is x
    check(x**0.5, [1, 2], "float64")
    check(x**x, [1, 256], "float64")
    check(2**x, [2, 16], "float64")


def test_scalar_functions_take_arrays_of_one_element() -> None:
    x = Tensor([1.0, 2.0], dtype="float32")
    for one in (np.array([[2.0]], "float32"), Tensor([2.0], dtype="float32")):
        check(ops.add_scalar(x, one), [3, 4], "float32")
        check(ops.power_scalar(x, scalar=one), [1, 4], "float32")
    with pytest.raises(ShapeError, match=r"mul_scalar: scalar is an array: got shape \(2,\)"):
        ops.mul_scalar(x, np.ones(2))
    with pytest.raises(TypeError, match="divide_scalar: scalar is a str: need a number"):
        ops.divide_scalar(x, "2")


def test_comparisons_give_bools_without_gradient() -> None:
    x = Tensor([1.0, 2.0, 3.0])
    for got, want in (
        (x > 2, [False, False, True]),
        (x >= 2, [False, True, True]),
        (x < np.float32(2), [True, False, False]),
        (x <= x, [True, True, True]),
        (x == 2, [False, True, False]),
        (x != Tensor([1.0, 0.0, 3.0]), [False, True, False]),
        (np.array([2.0, 2.0, 2.0]) > x, [True, False, False]),
    ):
        assert got.dtype == "bool"
        assert not got.requires_grad
        assert got.numpy().tolist() == want
    assert (x == None) is False  # noqa: E711
    assert x in [x]
    assert {x: 1}[x] == 1


# ---- reading ------------------------------------------------------------------------------------


def test_item_len_bool_float_and_iteration() -> None:
    one = Tensor([[2.5]])
    assert one.item() == 2.5
    assert float(one) == 2.5
    assert int(one) == 2
    assert bool(one)
    assert not Tensor(0.0)
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    assert len(x) == 2
    assert [row.numpy().tolist() for row in x] == [[1, 2], [3, 4]]
    assert np.asarray(x).tolist() == [[1, 2], [3, 4]]
    assert [10, 20, 30][Tensor(1, dtype="int64")] == 20
    for read in (Tensor.item, bool, float):
        with pytest.raises(ShapeError, match=r"not one element: got shape \(2, 2\)"):
            read(x)
    with pytest.raises(TypeError, match=r"len: the Tensor has no axes: got shape \(\)"):
        len(Tensor(1.0))


def test_printing() -> None:
    x = Tensor([1.0, 2.0])
    assert str(x) == "[1. 2.]"
    assert repr(x) == "needle.Tensor([1. 2.])"
    pair = ops.make_tuple(x, x + 1)
    assert repr(pair) == "needle.TensorTuple(needle.Tensor([1. 2.]), needle.Tensor([2. 3.]))"
    assert str(pair) == "(needle.Tensor([1. 2.]), needle.Tensor([2. 3.]))"


def test_methods_are_the_operations() -> None:
    a = np.arange(6.0).reshape(2, 3)
    x = Tensor(a, dtype="float64")
    for got, want in (
        (x.sum(), a.sum()),
        (x.sum(axes=1), a.sum(1)),
        (x.sum((0, 1), keepdims=True), a.sum(keepdims=True)),
        (x.mean(0), a.mean(0)),
        (x.max(1), a.max(1)),
        (x.reshape(3, 2), a.reshape(3, 2)),
        (x.reshape((6,)), a.reshape(6)),
        (x.reshape(-1), a.reshape(6)),
        (x.broadcast_to((2, 2, 3)), np.broadcast_to(a, (2, 2, 3))),
        (x.transpose(), a.T),
        (x.transpose((0, 1)), a.T),
        (x.T, a.T),
        (x.matmul(x.T), a @ a.T),
        (x[1], a[1]),
        (x[:, ::-1], a[:, ::-1]),
        (x[-1, None, 1:], a[-1, None, 1:]),
        (x[..., 0], a[..., 0]),
    ):
        check(got, want, "float64")
    check(x.astype("float32"), a, "float32")
    assert x.astype("float64") is x


def test_indexing_has_a_gradient() -> None:
    x = Tensor(np.arange(4.0), dtype="float64")
    (x[1:3] * x[2]).sum().backward()
    check(x.grad, [0, 2, 1 + 2 * 2, 0], "float64")
    for index in (4, (0, 0), "a", 1.5, [0, 1]):
        with pytest.raises(IndexError):
            x[index]
    with pytest.raises(TypeError):
        x[0] = 1.0


def test_casts_carry_gradients_back_in_the_old_dtype() -> None:
    x = Tensor([1.0, 2.0], dtype="float64")
    x.astype("float32").sum().backward()
    check(x.grad, [1, 1], "float64")
    assert not x.astype("int32").requires_grad
    assert x.astype("int32").is_leaf()
    with pytest.raises(DTypeError, match="astype: dtype is not supported: got complex"):
        x.astype(complex)


# ---- TensorTuple --------------------------------------------------------------------------------


def test_tensor_tuple_is_a_sequence() -> None:
    x = Tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype="float64")
    rows = ops.split(x, 0)
    assert len(rows) == 3
    first, second, third = rows
    check(second, [3, 4], "float64")
    check(rows[-1], [5, 6], "float64")
    assert [r.shape for r in rows.tuple()] == [(2,)] * 3
    assert len(rows[1:]) == 2
    assert not any(r.requires_grad for r in rows.detach())
    assert [r.tolist() for r in rows.numpy()] == x.numpy().tolist()
    check((rows + rows)[0], [2, 4], "float64")
    assert rows.device == x.device
    (first * 2 + third).sum().backward()
    check(x.grad, [[2, 2], [0, 0], [1, 1]], "float64")
    with pytest.raises(IndexError, match="tuple_get_item: out of range: got 3 for 3 items"):
        rows[3]
    with pytest.raises(ShapeError, match="lengths differ: got 3 and 1"):
        rows + ops.make_tuple(x)
    with pytest.raises(TypeError, match="tuple_get_item: got Tensor: need a TensorTuple"):
        ops.tuple_get_item(x, 0)


def test_make_tuple_gives_its_tensors_back() -> None:
    a, b = Tensor([1.0]), Tensor([2.0])
    pair = ops.make_tuple(a, b)
    assert pair[0] is a
    assert pair[1] is b
    with pytest.raises(ShapeError, match="make_tuple: no Tensors: got 0"):
        ops.make_tuple()


def test_what_a_tensor_is_not_made_of() -> None:
    need = r"need a device such as needle\.cpu\(\)"
    with pytest.raises(DeviceError, match=f"^Tensor: device: got 'cpu': {need}$"):
        Tensor([1.0], device="cpu")
    with pytest.raises(DeviceError, match=f"^Tensor: device: got 'cpu': {need}$"):
        Tensor(Tensor([1.0]), device="cpu")
    with pytest.raises(DeviceError, match=f"^to: device: got 'cpu': {need}$"):
        Tensor([1.0]).to("cpu")
    with pytest.raises(DTypeError, match=r"^Tensor: dtype is not supported: got float31: need one"):
        Tensor([1.0], dtype="float31")
    with pytest.raises(ShapeError, match=r"^Tensor: array is not an array: .*inhomogeneous"):
        Tensor([[1], [2, 3]])
    with pytest.raises(TypeError, match=r"^Tensor: requires_grad: got 'yes': need True or False$"):
        Tensor([1.0], requires_grad="yes")
