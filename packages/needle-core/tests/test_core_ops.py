"""What the cases do not show: refusals, kinks, edges of the definitions."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import Tensor, autograd, init, ops
from needle.backend_ndarray import AxisError, DeviceError, DTypeError, ShapeError
from needle.backend_ndarray.devices import REFERENCE_MODE

two_devices = pytest.mark.skipif(REFERENCE_MODE, reason="NEEDLE_BACKEND=np: one device only")


def t(*shape: int, dtype: str = "float32") -> Tensor:
    return Tensor(np.ones(shape), dtype=dtype)


def ints(*values: int) -> Tensor:
    return Tensor(list(values), dtype="int64")


def floats(*values: float) -> Tensor:
    return Tensor(list(values), dtype="float32")


def recurrent(op: Callable[..., Any], **changes: Any) -> Any:
    """lstm or rnn with fitting inputs: 2 steps, batch 3, input 4, hidden 5."""
    gates = 4 if op is ops.lstm else 1
    states = {"h0": t(3, 5), "c0": t(3, 5)} if op is ops.lstm else {"h0": t(3, 5)}
    weights = {"W_ih": t(4, 5 * gates), "W_hh": t(5, 5 * gates)}
    biases = {"bias_ih": t(5 * gates), "bias_hh": t(5 * gates)}
    return op(**{"x": t(2, 3, 4), **states, **weights, **biases, **changes})


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: t(2, 3) + t(4), ShapeError, r"add: shapes do not broadcast: got (2, 3) and (4,)"),
    (lambda: ops.subtract(t(2), t(3)), ShapeError, r"subtract: shapes do not broadcast"),
    (lambda: t(2) * t(3), ShapeError, r"multiply: shapes do not broadcast: got (2,) and (3,)"),
    (lambda: t(2) / t(3), ShapeError, r"divide: shapes do not broadcast: got (2,) and (3,)"),
    (lambda: t(2) ** t(3), ShapeError, r"power: shapes do not broadcast: got (2,) and (3,)"),
    (lambda: ops.maximum(t(2), t(3)), ShapeError, r"maximum: shapes do not broadcast: got (2,)"),
    (lambda: ops.add(t(2), np.ones(2)), TypeError, "add: argument 1 is not a Tensor: got ndarray"),
    (lambda: ops.relu([1.0]), TypeError, "relu: argument 0 is not a Tensor: got list"),
    (lambda: ops.stack([t(2), 3]), TypeError, "stack: argument 1 is not a Tensor: got int"),
    (lambda: ops.stack(None), TypeError, "stack: args is a NoneType: need several Tensors"),
    (lambda: ops.concatenate(3), TypeError, "concatenate: args is a int: need several Tensors"),
    (lambda: ops.matmul(t(2), [1, 2]), TypeError, "matmul: argument 1 is not a Tensor: got list"),
    (lambda: ops.linear(t(2, 3), None, t(3)), TypeError, "linear: argument 1 is not a Tensor"),
    (lambda: ops.lstm(t(1, 1, 1), None, None, None, None), TypeError, "lstm: argument 1 is not a"),
    (lambda: ops.rnn(t(1, 1, 1), t(1, 1), None, None), TypeError, "rnn: argument 2 is not a Tens"),
    (lambda: ops.max_pool(None, 2), TypeError, "max_pool: argument 0 is not a Tensor: got None"),
    (lambda: ops.astype([1.0], "float64"), TypeError, "astype: argument 0 is not a Tensor"),
    (lambda: ops.embedding(None, t(2, 2)), TypeError, "embedding: argument 0 is not a Tensor"),
    (
        lambda: ops.softmax_cross_entropy(t(2, 2), None),
        TypeError,
        "softmax_cross_entropy: argument 1 is not a Tensor: got NoneType",
    ),
    (
        lambda: ops.relu(ops.split(t(2, 3))),
        TypeError,
        "relu: argument 0 is not a Tensor: got TensorTuple: need one of its items",
    ),
    (
        lambda: ops.make_tuple(ops.split(t(2, 3)), t(3)),
        TypeError,
        "argument 0 is not a Tensor: got TensorTuple",
    ),
    (lambda: ops.maximum(None, 0), TypeError, "maximum: argument 0 is not a Tensor: got NoneType"),
    (lambda: ops.maximum(np.ones(2), 0), TypeError, "maximum: argument 0 is not a Tensor: got nda"),
    (lambda: init.zeros_like(None), TypeError, "zeros_like: argument 0 is not a Tensor: got None"),
    (
        lambda: ops.maximum(ops.split(t(2, 3)), 1),
        TypeError,
        "maximum: argument 0 is not a Tensor: got TensorTuple: need one of its items",
    ),
    (lambda: init.ones_like(np.ones(2)), TypeError, "ones_like: argument 0 is not a Tensor"),
    (lambda: ops.split(t(2, 3), (1, 0)), TypeError, "split: axis is not an integer: got (1, 0)"),
    (lambda: ops.stack([t(2)], ()), TypeError, "stack: axis is not an integer: got ()"),
    (lambda: ops.dilate(t(2), 0, (1, 2)), TypeError, "dilate: dilation is not an integer: got (1"),
    (
        lambda: ops.conv(t(1, 4, 4, 1), t(2, 2, 1, 1), stride=(2, 1)),
        TypeError,
        "conv: stride is not an integer: got (2, 1): need an int",
    ),
    (
        lambda: ops.conv(t(1, 4, 4, 1), t(2, 2, 1, 1), padding=(0, 1)),
        TypeError,
        "conv: padding is not an integer: got (0, 1): need an int",
    ),
    (lambda: -t(2, dtype="bool"), DTypeError, "negate: bools have no negate: got bool"),
    (lambda: t(2, dtype="bool") - t(2, dtype="bool"), DTypeError, "subtract: bools have no subt"),
    (lambda: t(2, dtype="uint8") + 300, OverflowError, "add_scalar: Python integer is out of boun"),
    (lambda: ops.summation(t(2, 3), 2), AxisError, "summation: axis is out of range: got 2 for 2"),
    (lambda: ops.summation(t(2, 3), (1, -1)), ShapeError, "summation: axis named twice"),
    (lambda: ops.mean(t(2, 3), 5), AxisError, "mean: axis is out of range: got 5 for 2 axes"),
    (lambda: ops.mean(t(0, 3), 0), ShapeError, "mean: nothing to average: got shape (0, 3)"),
    (lambda: ops.max(t(2), -2), AxisError, "max: axis is out of range: got -2 for 1 axes"),
    (lambda: ops.max(t(2, 0), 1), ShapeError, "max: nothing to choose from: got shape (2, 0)"),
    (lambda: ops.logsumexp(t(2), 1), AxisError, "logsumexp: axis is out of range: got 1"),
    (lambda: ops.softmax(t()), ShapeError, "softmax: the Tensor has no axes: got shape ()"),
    (lambda: ops.logsoftmax(t()), ShapeError, "logsoftmax: the Tensor has no axes"),
    (lambda: ops.transpose(t(2)), ShapeError, "transpose: too few axes: got shape (2,)"),
    (lambda: ops.transpose(t(2, 3), (0, 2)), AxisError, "transpose: axis is out of range: got 2"),
    (lambda: ops.transpose(t(2, 3), 1), ShapeError, "transpose: swaps two axes: got axes (1,)"),
    (lambda: ops.permute(t(2, 3), (0,)), ShapeError, "permute: axes are missing: got (0,)"),
    (lambda: ops.reshape(t(2, 3), (4, 2)), ShapeError, "reshape: sizes differ: got 6 elements"),
    (lambda: ops.reshape(t(2, 3), (-1, 4)), ShapeError, "reshape: sizes differ: got 6 elements"),
    (lambda: ops.broadcast_to(t(2, 3), (2, 4)), ShapeError, "broadcast_to: the shape does not"),
    (lambda: ops.flip(t(2, 3), 2), AxisError, "flip: axis is out of range: got 2 for 2 axes"),
    (
        lambda: ops.getitem(t(2, 3), 2),
        IndexError,
        "index: out of range: got 2 for axis 0 of size 2",
    ),
    (lambda: ops.getitem([1], 0), TypeError, "getitem: argument 0 is not a Tensor: got list"),
    (lambda: ops.dilate(t(2), (0,), -1), ShapeError, "dilate: dilation is -1: need dilation >= 0"),
    (lambda: ops.undilate(t(2), (1,), 1), AxisError, "undilate: axis is out of range: got 1"),
    (lambda: ops.stack([t(2), t(3)]), ShapeError, "stack: shapes differ: got (2,) and (3,)"),
    (lambda: ops.stack([]), ShapeError, "stack: no Tensors: got 0: need at least one"),
    (lambda: ops.stack([t(2)], 2), AxisError, "stack: axis is out of range: got 2 for 2 axes"),
    (lambda: ops.concatenate([]), ShapeError, "concatenate: no Tensors: got 0"),
    (
        lambda: ops.concatenate([t(2, 3), t(2, 4)], 0),
        ShapeError,
        "concatenate: shapes differ: got (2, 3) and (2, 4): need equal sizes on every axis but 0",
    ),
    (lambda: ops.split(t(2, 3), 2), AxisError, "split: axis is out of range: got 2 for 2 axes"),
    (
        lambda: t(32, 128) @ t(64, 10),
        ShapeError,
        "matmul: inner sizes differ: a is (32, 128), b is (64, 10): "
        "need a.shape[-1] == b.shape[-2]",
    ),
    (lambda: ops.matmul(t(3), t(2, 3)), ShapeError, "matmul: inner sizes differ: a is (3,), b is"),
    (lambda: t(2, 2, 3) @ t(3, 3, 2), ShapeError, "matmul: shapes do not broadcast: got (2,)"),
    (
        lambda: ops.MatMul()(t(3), t(3, 2)),
        ShapeError,
        "matmul: an operand is no matrix: got a (3,)",
    ),
    (lambda: ops.linear(t(2, 3), t(4, 5)), ShapeError, "linear: inner sizes differ: x is (2, 3)"),
    (lambda: ops.linear(t(2, 3), t(3, 5), t(3)), ShapeError, "linear: bias does not fit: got (3,)"),
    (
        lambda: ops.linear(t(2, 3), t(3, 5, dtype="float64")),
        DTypeError,
        "linear: dtypes do not fit: got float32, float64",
    ),
    (
        lambda: ops.conv(t(1, 4, 4, 3), t(3, 3, 2, 5)),
        ShapeError,
        "conv: channels differ: got a (1, 4, 4, 3), b (3, 3, 2, 5): need a.shape[3] == b.shape[2]",
    ),
    (
        lambda: ops.conv(t(1, 3, 4, 4), t(3, 3, 2, 5), channels_first=True),
        ShapeError,
        "conv: channels differ: got a (1, 3, 4, 4), b (3, 3, 2, 5): need a.shape[1] == b.shape[2]",
    ),
    (
        lambda: ops.conv(t(3, 4, 4), t(3, 3, 3, 5), channels_first=True),
        ShapeError,
        "conv: wrong number of axes: got a (3, 4, 4), b (3, 3, 3, 5): need (N, C_in, H, W) and (K",
    ),
    (
        lambda: ops.conv(t(1, 3, 2, 9), t(5, 5, 3, 5), padding=1, channels_first=True),
        ShapeError,
        "conv: the image is smaller than the kernel: got a (1, 3, 2, 9), b (5, 5, 3, 5), padding 1",
    ),
    (
        lambda: ops.conv(t(1, 4, 4, 1), t(3, 3, 1, 1), padding=-1, channels_first=True),
        ShapeError,
        "conv: channels differ: got a (1, 4, 4, 1), b (3, 3, 1, 1)",
    ),
    (
        lambda: ops.conv(t(1, 1, 4, 4), t(3, 3, 1, 1), padding=-1, channels_first=True),
        ShapeError,
        "conv: got stride 1, padding -1: need stride >= 1 and padding >= 0",
    ),
    (lambda: ops.conv(t(4, 4, 3), t(3, 3, 3, 5)), ShapeError, "conv: wrong number of axes: got a"),
    (lambda: ops.conv(t(1, 4, 4, 1), t(3, 2, 1, 1)), ShapeError, "conv: the kernel is not square"),
    (lambda: ops.conv(t(1, 4, 4, 1), t(3, 3, 1, 1), 0), ShapeError, "conv: got stride 0"),
    (lambda: ops.conv(t(1, 2, 9, 1), t(3, 3, 1, 1)), ShapeError, "conv: the image is smaller than"),
    (
        lambda: ops.conv(t(1, 4, 4, 1), t(3, 3, 1, 2), bias=t(1)),
        ShapeError,
        "conv: bias does not fit: got (1,): need (2,)",
    ),
    (
        lambda: ops.batch_norm(t(2, 3, 4), t(3), t(3)),
        ShapeError,
        "batch_norm: x has the wrong numb",
    ),
    (
        lambda: ops.batch_norm(t(2, 3), t(4), t(3)),
        ShapeError,
        "batch_norm: weight does not fit: go",
    ),
    (lambda: ops.batch_norm(t(0, 3), t(3), t(3)), ShapeError, "batch_norm: nothing to average: go"),
    (
        lambda: ops.batch_norm_eval(t(2, 3), t(3), t(2), t(3), t(3)),
        ShapeError,
        "batch_norm_eval: var does not fit: got (2,): need (3,)",
    ),
    (lambda: ops.layer_norm(t(2, 3), t(3), t(2)), ShapeError, "layer_norm: bias does not fit: got"),
    (lambda: ops.layer_norm(t(), t(), t()), ShapeError, "layer_norm: nothing to average: got ()"),
    (
        lambda: ops.layer_norm(t(2, 3, dtype="int64"), t(3), t(3)),
        DTypeError,
        "layer_norm: dtypes do not fit: got int64, float32, float32",
    ),
    (
        lambda: ops.softmax_cross_entropy(t(2, 3), ints(0, 1, 2)),
        ShapeError,
        "softmax_cross_entropy: y does not fit: logits are (2, 3), y is (3,)",
    ),
    (
        lambda: ops.softmax_cross_entropy(t(2, 3, 1), ints(0, 1)),
        ShapeError,
        "softmax_cross_entropy: logits has the wrong number of axes: got (2, 3, 1)",
    ),
    (
        lambda: ops.softmax_cross_entropy(t(0, 3), Tensor(np.zeros(0), dtype="int64")),
        ShapeError,
        "softmax_cross_entropy: nothing to average: got logits (0, 3)",
    ),
    (
        lambda: ops.softmax_cross_entropy(t(2, 3), ints(0, 3)),
        IndexError,
        "softmax_cross_entropy: id is out of range: got 3: need 0 <= id < 3",
    ),
    (
        lambda: ops.softmax_cross_entropy(t(2, 3), floats(0, -1)),
        IndexError,
        "softmax_cross_entropy: id is out of range: got -1: need 0 <= id < 3",
    ),
    (
        lambda: ops.softmax_cross_entropy(t(2, 3), floats(0, 0.5)),
        DTypeError,
        "softmax_cross_entropy: ids are not integers: got 0.5",
    ),
    (
        lambda: ops.softmax_cross_entropy(t(2, 3), ints(0, 1), -0.1),
        ValueError,
        "softmax_cross_entropy: label smoothing: got -0.1: need a number in [0, 1]",
    ),
    (
        lambda: ops.softmax_cross_entropy(t(2, 3, dtype="int32"), ints(0, 1)),
        DTypeError,
        "softmax_cross_entropy: dtypes do not fit: got int32",
    ),
    (
        lambda: ops.embedding(ints(0, 10), t(10, 2)),
        IndexError,
        "embedding: id is out of range: got 10: need 0 <= id < 10",
    ),
    (
        lambda: ops.embedding(floats(math.nan), t(3, 2)),
        DTypeError,
        "embedding: ids are not integers",
    ),
    (lambda: ops.embedding(t(2, dtype="bool"), t(3, 2)), DTypeError, "embedding: ids are not numb"),
    (lambda: ops.embedding(ints(0), t(3)), ShapeError, "embedding: weight has the wrong number of"),
    (lambda: ops.embedding([0], t(3, 2)), TypeError, "argument 0 is not a Tensor: got list"),
    (
        lambda: recurrent(ops.lstm, x=t(3, 4)),
        ShapeError,
        "lstm: x has the wrong number of axes: go",
    ),
    (lambda: recurrent(ops.lstm, x=t(0, 3, 4)), ShapeError, "lstm: no steps: got x (0, 3, 4)"),
    (
        lambda: recurrent(ops.lstm, c0=t(3, 4)),
        ShapeError,
        "lstm: c0 does not fit: got (3, 4): need",
    ),
    (lambda: recurrent(ops.lstm, h0=t(5)), ShapeError, "lstm: h0 has the wrong number of axes"),
    (
        lambda: recurrent(ops.lstm, W_ih=t(4, 19)),
        ShapeError,
        "lstm: W_ih does not fit: got (4, 19)",
    ),
    (
        lambda: recurrent(ops.rnn, W_hh=t(5, 4)),
        ShapeError,
        "rnn: W_hh does not fit: got (5, 4): ne",
    ),
    (
        lambda: recurrent(ops.rnn, bias_ih=None, bias_hh=t(4)),
        ShapeError,
        "rnn: bias_hh does not fit: got (4,): need (5,)",
    ),
    (lambda: recurrent(ops.rnn, nonlinearity="gelu"), ValueError, "rnn: nonlinearity is 'gelu'"),
    (
        lambda: recurrent(ops.rnn, x=t(2, 3, 4, dtype="float64")),
        DTypeError,
        "rnn: dtypes do not fi",
    ),
]


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize(("call", "error", "text"), REFUSED, ids=[text for *_, text in REFUSED])
def test_refused_before_any_work(
    call: Callable[[], Any],
    error: type[Exception],
    text: str,
    lazy: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(autograd, "LAZY_MODE", lazy)
    # Ids are values: a lazy operation sees them only when it computes.
    late = lazy and ("id is out of range" in text or "ids are not integers" in text)
    with pytest.raises(error) as caught:
        _ = call().realize_cached_data() if late else call()
    assert text in str(caught.value)


@two_devices
@pytest.mark.parametrize(
    "call",
    [
        lambda x: ops.matmul(t(2, 2), x),
        lambda x: ops.stack([t(2, 2), x]),
        lambda x: ops.embedding(ints(0), ops.add(x, t(2, 2))),
        lambda x: ops.batch_norm(x, t(2), t(2)),
        lambda x: ops.make_tuple(x, t(2)),
        lambda x: ops.linear(t(2, 2), x),
    ],
)
def test_devices_never_mix(call: Callable[[Tensor], Any]) -> None:
    with pytest.raises(DeviceError, match=r"devices differ: got cpu.*cpu.*move one with \.to"):
        call(Tensor(np.ones((2, 2)), device=ndl.cpu_numpy(), dtype="float32"))


# ---- kinks and singular points: as in PyTorch ----------------------------------------------------


def grads(function: Callable[..., Tensor], *values: Any) -> list[list[float]]:
    inputs = [Tensor(value, dtype="float64") for value in values]
    function(*inputs).sum().backward()
    return [x.grad.numpy().tolist() for x in inputs]


def test_relu_at_zero_passes_nothing() -> None:
    assert grads(ops.relu, [-1.0, 0.0, 1.0]) == [[0.0, 0.0, 1.0]]


def test_maximum_shares_at_ties() -> None:
    assert grads(ops.maximum, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == [[0, 0.5, 1], [1, 0.5, 0]]
    x = Tensor([0.5, 2.0], dtype="float64")
    ops.maximum(x, 1).sum().backward()
    assert x.grad.numpy().tolist() == [0.0, 1.0]


def test_max_shares_equally_among_ties() -> None:
    (grad,) = grads(lambda x: ops.max(x, 1), [[3.0, 1.0, 3.0], [2.0, 2.0, 2.0]])
    np.testing.assert_allclose(grad, [[0.5, 0, 0.5], [1 / 3] * 3])


def test_power_at_zero() -> None:
    by_base, by_exponent = grads(ops.power, [0.0, 0.0, 0.0, 2.0], [0.0, 1.0, 2.0, 0.0])
    assert by_base == [0.0, 1.0, 0.0, 0.0]
    np.testing.assert_allclose(by_exponent, [0.0, 0.0, 0.0, np.log(2)])
    assert grads(lambda x: x**0, [0.0, 3.0]) == [[0.0, 0.0]]
    assert grads(lambda x: x**1, [0.0, 3.0]) == [[1.0, 1.0]]
    assert grads(lambda x: 0**x, [0.0, 3.0]) == [[0.0, 0.0]]


def test_power_of_a_negative_base_has_no_gradient_for_the_exponent() -> None:
    by_base, by_exponent = grads(ops.power, [-2.0], [3.0])
    assert by_base == [12.0]
    assert np.isnan(by_exponent[0])


def test_sqrt_and_log_at_zero_are_infinite() -> None:
    assert grads(ops.sqrt, [0.0, 4.0]) == [[np.inf, 0.25]]
    assert grads(ops.log, [0.0, 4.0]) == [[np.inf, 0.25]]


def test_saturated_functions_are_finite() -> None:
    x = Tensor([-1000.0, 1000.0], dtype="float32")
    for op in (ops.sigmoid, ops.tanh, ops.softmax, ops.logsoftmax, ops.logsumexp):
        y = op(x)
        y.sum().backward()
        assert np.isfinite(y.numpy()).all()
        assert np.isfinite(x.grad.numpy()).all()
    loss = ops.softmax_cross_entropy(x.reshape((1, 2)), ints(0))
    assert loss.item() == 2000.0


# ---- details of definitions ---------------------------------------------------------------------


def test_dilate_and_undilate() -> None:
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    assert ops.dilate(x, (0,), 1).numpy().tolist() == [[1, 2], [0, 0], [3, 4], [0, 0]]
    assert ops.dilate(x, 1, 2).numpy().tolist() == [[1, 0, 0, 2, 0, 0], [3, 0, 0, 4, 0, 0]]
    assert ops.dilate(x, (0, 1), 0).numpy().tolist() == x.numpy().tolist()
    wide = ops.dilate(x, (0, 1), 1)
    assert wide.shape == (4, 4)
    assert ops.undilate(wide, (0, 1), 1).numpy().tolist() == x.numpy().tolist()


def test_integers_become_float64_as_in_numpy() -> None:
    x = Tensor([1, 4], dtype="int32")
    for op in (ops.exp, ops.log, ops.sqrt, ops.tanh, ops.sigmoid, ops.mean, ops.softmax):
        assert op(x).dtype == "float64"
    assert (x / 2).dtype == "float64"
    assert (x / x).dtype == "float64"
    assert ops.summation(x).dtype == "int64"
    assert (x * x).dtype == "int32"
    assert ops.maximum(x, 2).numpy().tolist() == [2, 4]


def test_ids_may_be_floats() -> None:
    weight = Tensor(np.arange(6.0).reshape(3, 2), dtype="float64")
    rows = ops.embedding(Tensor([[2.0, 0.0], [2.0, 2.0]]), weight)
    assert rows.shape == (2, 2, 2)
    rows.sum().backward()
    assert weight.grad.numpy().tolist() == [[1, 1], [0, 0], [3, 3]]
    logits = Tensor(np.zeros((2, 4)), dtype="float64")
    loss = ops.softmax_cross_entropy(logits, Tensor([1.0, 3.0]))
    np.testing.assert_allclose(loss.numpy(), np.log(4))


def test_empty_arrays_pass_through() -> None:
    x = Tensor(np.zeros((0, 3)), dtype="float64")
    w = Tensor(np.ones((3, 2)), dtype="float64")
    y = ops.relu(x @ w + 1)
    assert y.shape == (0, 2)
    y.sum().backward()
    assert x.grad.shape == (0, 3)
    assert w.grad.numpy().tolist() == [[0, 0]] * 3
    ops.linear(x, w).sum().backward()
    assert w.grad.numpy().tolist() == [[0, 0]] * 3


def test_batch_norm_statistics_are_differentiable_too() -> None:
    x = Tensor([[1.0], [3.0]], dtype="float64")
    one = Tensor([1.0], dtype="float64")
    _, mean, var = ops.batch_norm(x, one, one)
    (mean + var * 10).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [[0.5 - 10], [0.5 + 10]])
    assert one.grad is None


def test_recurrent_last_state_is_no_view_of_the_output() -> None:
    output, h = recurrent(ops.rnn)
    h.realize_cached_data().fill(0)
    assert output[-1].numpy().all()


@pytest.mark.parametrize("needed", [(0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)])
@pytest.mark.parametrize("shape", [(2,), (1, 2)])
def test_linear_sums_its_bias_with_its_weight(
    needed: tuple[int, int, int], shape: tuple[int, ...]
) -> None:
    nd = ndl.backend_ndarray
    sizes = ((5, 3, 4), (4, 2), shape)
    inputs = [t(*size) if n else t(*size).detach() for size, n in zip(sizes, needed, strict=True)]
    seed = np.arange(30.0).reshape(5, 3, 2)
    nd.reset_counters()
    (ops.linear(*inputs) * Tensor(seed, requires_grad=False, dtype="float64")).sum().backward()
    names = {name for _, name in nd.counters()}
    assert ("linear_weight_grad" in names) == (needed[1:] == (1, 1))
    x, w, _ = (value.numpy() for value in inputs)
    want = (seed @ w.T, np.tensordot(x, seed, ((0, 1), (0, 1))), seed.sum((0, 1)).reshape(shape))
    for value, n, grad in zip(inputs, needed, want, strict=True):
        assert (value.grad is not None) == bool(n)
        if n:
            np.testing.assert_allclose(value.grad.numpy(), grad, rtol=1e-12)


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 2), (4, 0)])
def test_linear_of_nothing(inputs: int, outputs: int) -> None:
    x, w, b = t(2, 3, inputs), t(inputs, outputs), t(outputs)
    ops.linear(x, w, b).sum().backward(retain_graph=False)
    assert x.grad.numpy().tolist() == np.zeros((2, 3, inputs)).tolist()
    assert w.grad.numpy().tolist() == np.zeros((inputs, outputs)).tolist()
    assert b.grad.numpy().tolist() == [6.0] * outputs


def test_relu_of_a_batch_norm_is_fused() -> None:
    nd = ndl.backend_ndarray
    x, w = t(4, 3, 2, 2), t(3)
    nd.reset_counters()
    y, _, _ = ops.batch_norm(x, w, w, relu=True)
    y.sum().backward(retain_graph=False)
    names = [name for _, name in nd.counters()]
    assert "batch_norm" in names
    assert "batch_norm_grad" in names
    assert "relu" not in names


def test_an_lstm_takes_few_kernels() -> None:
    """All steps are one kernel; the input's part and the weights' gradients one product each."""
    nd = ndl.backend_ndarray
    nd.reset_counters()
    output, _, _ = recurrent(ops.lstm)
    forward = {name: n for (_, name), n in nd.counters().items()}
    assert forward["matmul"] == forward["lstm_sequence"] == 1
    output.sum().backward(retain_graph=False)
    total = {name: n for (_, name), n in nd.counters().items()}
    assert total["lstm_sequence_grad"] == 1
    assert total["matmul"] - forward["matmul"] == 2  # dx, dW_hh
    assert total["linear_weight_grad"] == 1  # dW_ih and both biases
    assert "lstm_cell" not in total


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("op", [ops.lstm, ops.rnn])
def test_recurrent_gradients_only_where_needed(op: Callable[..., Any], steps: int) -> None:
    nd = ndl.backend_ndarray
    x, weight = t(steps, 3, 4).detach(), t(4, 5 * (4 if op is ops.lstm else 1))
    nd.reset_counters()
    recurrent(op, x=x, W_ih=weight)[0].sum().backward(retain_graph=False)
    assert weight.grad is not None
    names = ("matmul", "linear_weight_grad")
    products = sum(n for (_, name), n in nd.counters().items() if name in names)
    # x W_ih, dW_ih and dW_hh, but no dx; a single step has two products of its own.
    assert products == (5 if steps == 1 else 3)


@pytest.mark.parametrize("op", [ops.lstm, ops.rnn])
def test_a_single_step_does_not_pack_the_weights(op: Callable[..., Any]) -> None:
    nd = ndl.backend_ndarray
    nd.reset_counters()
    output = recurrent(op, x=t(1, 3, 4))[0]
    output.sum().backward(retain_graph=False)
    assert not [name for _, name in nd.counters() if "sequence" in name]


# ---- gradients beside integers and at the ends of the range -------------------------------------

OTHERS = [
    np.array([3, 1, 0], "uint8"),
    np.array([-128, 2, 1], "int8"),
    np.array([True, False, True]),
    np.array([7, -5, 2], "int64"),
]
BINARY: list[tuple[str, Callable[[Any, Any], Any]]] = [
    ("a / x", lambda a, x: a / x),
    ("x / a", lambda a, x: x / (a + 1)),
    ("x ** a", lambda a, x: x**a),
    ("a ** x", lambda a, x: a**x),
    ("a - x", lambda a, x: a - x),
    ("x - a", lambda a, x: x - a),
    ("a * x", lambda a, x: a * x),
]


@pytest.mark.parametrize("others", [OTHERS[0], *OTHERS[2:]], ids=lambda a: a.dtype.name)
@pytest.mark.parametrize(("name", "function"), BINARY, ids=[name for name, _ in BINARY])
def test_gradient_beside_an_integer_or_bool_tensor(
    name: str, function: Callable[[Any, Any], Any], others: np.ndarray[Any, Any]
) -> None:
    if name == "a ** x" and others.dtype == np.int64:
        others = abs(others)
    values = np.array([1.5, 2.0, 0.75])
    x = Tensor(values, dtype="float64")
    function(Tensor(others, dtype=others.dtype), x).sum().backward()
    wide, step = others.astype("float64"), 1e-6
    with np.errstate(divide="ignore"):
        want = (function(wide, values + step) - function(wide, values - step)) / (2 * step)
    np.testing.assert_allclose(x.grad.numpy(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("number", [n for a in OTHERS for n in a] + [np.int32(-(2**31))], ids=repr)
@pytest.mark.parametrize(("name", "function"), BINARY, ids=[name for name, _ in BINARY])
def test_gradient_beside_an_integer_or_bool_number(
    name: str, function: Callable[[Any, Any], Any], number: Any
) -> None:
    if name == "x / a" or (name == "a ** x" and number < 0) or (name == "x ** a" and number < -999):
        return
    values = np.array([1.5, 2.0, 0.75])
    x = Tensor(values, dtype="float64")
    function(number, x).sum().backward()
    wide, step = float(number), 1e-6
    with np.errstate(divide="ignore"):
        want = (function(wide, values + step) - function(wide, values - step)) / (2 * step)
    np.testing.assert_allclose(x.grad.numpy(), want, rtol=1e-5, atol=1e-7 * max(1, abs(wide)))


@pytest.mark.parametrize(("a", "b"), [(1e30, 1e20), (1e-30, 1e-25), (1e25, 1e25), (-3e38, 2e38)])
def test_the_gradient_of_a_quotient_stays_in_range(a: float, b: float) -> None:
    x, y = floats(a), floats(b)
    (x / y).backward()
    np.testing.assert_allclose(y.grad.numpy(), -a / b / b, rtol=1e-6)
    y = floats(b)
    (a / y).backward()
    np.testing.assert_allclose(y.grad.numpy(), -a / b / b, rtol=1e-6)


@pytest.mark.parametrize("number", [256, -1, 2**40])
def test_integers_are_divided_as_floats(number: int) -> None:
    x = Tensor([1, 200], dtype="uint8")
    for got, want in [
        (x / number, [1 / number, 200 / number]),
        (number / x, [number, number / 200]),
    ]:
        assert got.dtype == "float64"
        assert got.numpy().tolist() == want


def test_the_gradient_beside_a_wide_scalar_is_wide() -> None:
    x = floats(1e20)
    y = x ** np.int64(3)
    assert y.dtype == "float64"
    y.backward(Tensor([1e-20], dtype="float64"))
    np.testing.assert_allclose(x.grad.numpy(), [3e20], rtol=1e-6)


def test_a_tensor_compares_with_an_array() -> None:
    x = floats(1.0, 2.0)
    other = Tensor([1.0, 3.0]).cached_data
    assert (x == other).numpy().tolist() == [True, False]
    assert (x != other).numpy().tolist() == [False, True]
    assert (x < other).numpy().tolist() == [False, True]


def test_a_tuple_of_tensors_is_pickled() -> None:
    parts = ops.split(t(2, 3))
    again = pickle.loads(pickle.dumps(parts))
    assert [part.numpy().tolist() for part in again] == [[1.0] * 3] * 2
