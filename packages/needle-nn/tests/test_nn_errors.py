"""Every wrong argument gets a typed error that names what it got."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import Tensor, nn
from needle.backend_ndarray import DeviceError, DTypeError, ShapeError


def x(*shape: int, **at: Any) -> Tensor:
    return ndl.init.ones(*shape, **at)


BAD_SETTINGS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: nn.Linear(0, 3), ShapeError, "Linear: in_features is 0: need an integer >= 1"),
    (lambda: nn.Linear(3, -2), ShapeError, "Linear: out_features is -2: need an integer >= 1"),
    (lambda: nn.Linear(3.0, 2), TypeError, r"Linear: in_features is 3\.0: need an integer >= 1"),
    (lambda: nn.Linear(True, 2), TypeError, "Linear: in_features is True: need an integer"),
    (lambda: nn.Linear(3, 2, dtype="int32"), DTypeError, "Linear: dtype is int32: need float32 or"),
    (
        lambda: nn.Linear(3, 2, "float64"),
        TypeError,
        "Linear: bias: got 'float64': need True or Fal",
    ),
    (lambda: nn.Conv(3, 4, 3, 1, ndl.cpu()), TypeError, r"Conv: bias: got .*: need True or False"),
    (lambda: nn.RNN(3, 4, 1, "relu"), TypeError, "RNNCell: bias: got 'relu': need True or False"),
    (lambda: nn.LSTM(3, 4, 2, 0.5), TypeError, r"LSTMCell: bias: got 0\.5: need True or False"),
    (lambda: nn.BatchNorm1d(3, relu="no"), TypeError, "BatchNorm1d: relu: got 'no': need True or"),
    (lambda: nn.MaxPool2d(2, ceil_mode="no"), TypeError, "MaxPool2d: ceil_mode: got 'no': need Tr"),
    (
        lambda: nn.AvgPool2d(2, count_include_pad="no"),
        TypeError,
        "AvgPool2d: count_include_pad: got 'no': need True or False",
    ),
    (
        lambda: nn.Dropout().train("eval"),
        TypeError,
        "Dropout: mode: got 'eval': need True or False",
    ),
    (
        lambda: nn.BatchNorm1d(3).register_buffer("weight", x(3)),
        KeyError,
        "BatchNorm1d: register_buffer: name is 'weight': the module has one: need another",
    ),
    (
        lambda: nn.Module().register_buffer("a.b", x(3)),
        TypeError,
        r"Module: register_buffer: name is 'a\.b': need that of an attribute",
    ),
    (lambda: nn.Module().register_buffer("n", 5), TypeError, "register_buffer: value is a int"),
    (lambda: nn.Conv(0, 3, 3), ShapeError, "Conv: in_channels is 0: need an integer >= 1"),
    (lambda: nn.Conv(3, 0, 3), ShapeError, "Conv: out_channels is 0: need an integer >= 1"),
    (lambda: nn.Conv(3, 3, 0), ShapeError, "Conv: kernel_size is 0: need an integer >= 1"),
    (lambda: nn.Conv(3, 3, 3, 0), ShapeError, "Conv: stride is 0: need an integer >= 1"),
    (lambda: nn.Conv(3, 3, (3, 5)), ShapeError, r"Conv: kernel_size is \(3, 5\): need one size"),
    (lambda: nn.Conv(3, 3, 3, (1, 2)), ShapeError, r"Conv: stride is \(1, 2\): need one size"),
    (lambda: nn.Conv(3, 3, ()), ShapeError, r"Conv: kernel_size is \(\): need one size"),
    (lambda: nn.Conv(3, 3, 3, dtype="bool"), DTypeError, "Conv: dtype is bool: need float32"),
    (lambda: nn.BatchNorm1d(0), ShapeError, "BatchNorm1d: dim is 0: need an integer >= 1"),
    (lambda: nn.MaxPool2d(0), ShapeError, r"MaxPool2d: got kernel_size \(0, 0\), stride \(0, 0\)"),
    (lambda: nn.AvgPool2d(2, padding=2), ShapeError, r"AvgPool2d: padding does not fit: got padd"),
    (
        lambda: nn.MaxPool2d(2)(x(2, 3, 4)),
        ShapeError,
        r"MaxPool2d: x is \(2, 3, 4\): need the axes",
    ),
    (lambda: nn.MaxPool2d(5)(x(2, 3, 4, 5)), ShapeError, r"the image is smaller than the window"),
    (lambda: nn.BatchNorm2d(3, eps=-1.0), ValueError, r"BatchNorm2d: eps: got -1\.0: need .* >= 0"),
    (
        lambda: nn.BatchNorm2d(3, momentum=1.5),
        ValueError,
        r"BatchNorm2d: momentum: got 1\.5: need a number in \[0, 1\]",
    ),
    (lambda: nn.BatchNorm1d(3, dtype="uint8"), DTypeError, "BatchNorm1d: dtype is uint8: need"),
    (lambda: nn.LayerNorm1d(-1), ShapeError, "LayerNorm1d: dim is -1: need an integer >= 1"),
    (lambda: nn.LayerNorm1d(3, eps=float("nan")), ValueError, "LayerNorm1d: eps: got nan: need"),
    (lambda: nn.LayerNorm1d(3, dtype="int8"), DTypeError, "LayerNorm1d: dtype is int8: need"),
    (lambda: nn.Dropout(1.5), ValueError, r"Dropout: p: got 1\.5: need a number in \[0, 1\]"),
    (lambda: nn.Dropout(-0.1), ValueError, r"Dropout: p: got -0\.1: need a number in \[0, 1\]"),
    (
        lambda: nn.Dropout(float("nan")),
        ValueError,
        r"Dropout: p: got nan: need a number in \[0, 1\]",
    ),
    (lambda: nn.Dropout("half"), TypeError, r"Dropout: p: got 'half': need a number in \[0, 1\]"),
    (lambda: nn.Embedding(0, 3), ShapeError, "Embedding: num_embeddings is 0: need an integer"),
    (lambda: nn.Embedding(3, 0), ShapeError, "Embedding: embedding_dim is 0: need an integer"),
    (lambda: nn.Embedding(3, 2, dtype="int64"), DTypeError, "Embedding: dtype is int64: need"),
    (lambda: nn.RNNCell(0, 3), ShapeError, "RNNCell: input_size is 0: need an integer >= 1"),
    (lambda: nn.RNNCell(3, 0), ShapeError, "RNNCell: hidden_size is 0: need an integer >= 1"),
    (
        lambda: nn.RNNCell(3, 3, nonlinearity="gelu"),
        ValueError,
        "RNNCell: nonlinearity is 'gelu': need 'tanh' or 'relu'",
    ),
    (lambda: nn.RNNCell(3, 3, dtype="int32"), DTypeError, "RNNCell: dtype is int32: need float32"),
    (lambda: nn.RNN(0, 3), ShapeError, "RNN: input_size is 0: need an integer >= 1"),
    (lambda: nn.RNN(3, 0), ShapeError, "RNN: hidden_size is 0: need an integer >= 1"),
    (lambda: nn.RNN(3, 3, 0), ShapeError, "RNN: num_layers is 0: need an integer >= 1"),
    (
        lambda: nn.RNN(3, 3, nonlinearity="sigmoid"),
        ValueError,
        "RNN: nonlinearity is 'sigmoid': need 'tanh' or 'relu'",
    ),
    (lambda: nn.LSTMCell(3, -1), ShapeError, "LSTMCell: hidden_size is -1: need an integer"),
    (lambda: nn.LSTM(-1, 3), ShapeError, "LSTM: input_size is -1: need an integer >= 1"),
    (lambda: nn.LSTM(3, 0), ShapeError, "LSTM: hidden_size is 0: need an integer >= 1"),
    (lambda: nn.LSTM(3, 3, 0), ShapeError, "LSTM: num_layers is 0: need an integer >= 1"),
    (
        lambda: nn.Sequential(nn.ReLU(), 3),
        TypeError,
        "Sequential: module 1 is a int: need a module",
    ),
    (
        lambda: nn.Sequential(nn.ReLU),
        TypeError,
        "Sequential: module 0 is the class ReLU: need a module",
    ),
    (lambda: nn.Residual(None), TypeError, "Residual: fn is a NoneType: need a module"),
    (
        lambda: nn.MaxPool2d("x"),
        TypeError,
        r"MaxPool2d: kernel_size is 'x': need an int or \(height, width\)",
    ),
    (lambda: nn.MaxPool2d(2, b"x"), TypeError, "MaxPool2d: stride is b'x': need an int or"),
    (
        lambda: nn.AvgPool2d(2, 2, (1, 0.5)),
        TypeError,
        r"AvgPool2d: padding is \(1, 0\.5\): need an",
    ),
    (lambda: nn.AvgPool2d(True), TypeError, "AvgPool2d: kernel_size is True: need an int or"),
    (lambda: nn.AvgPool2d((2, 2, 2)), ShapeError, r"AvgPool2d: kernel_size: got \(2, 2, 2\): need"),
    (
        lambda: nn.RNN(3, 3, dropout=2),
        ValueError,
        r"RNN: dropout: got 2: need a number in \[0, 1\]",
    ),
    (
        lambda: nn.LSTM(3, 3, dropout=np.zeros(2)),
        TypeError,
        r"LSTM: dropout: got array\(\[0\., 0\.\]\)",
    ),
    (lambda: nn.LSTM(3, 3, dropout={}), TypeError, r"LSTM: dropout: got {}: need a number"),
    (
        lambda: nn.RNNCell(3, 3, nonlinearity=np.zeros(2)),
        ValueError,
        r"RNNCell: nonlinearity is array\(\[0\., 0\.\]\): need 'tanh' or 'relu'",
    ),
]


@pytest.mark.parametrize(("make", "error", "text"), BAD_SETTINGS, ids=[c[2] for c in BAD_SETTINGS])
def test_bad_settings(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    state = np.random.get_state()[1].copy()
    with pytest.raises(error, match=text):
        make()
    assert (np.random.get_state()[1] == state).all()  # raised before anything was drawn


ON_NO_DEVICE: dict[str, Callable[[Any], nn.Module]] = {
    "Linear": lambda at: nn.Linear(3, 2, device=at),
    "Conv": lambda at: nn.Conv(3, 2, 3, device=at),
    "BatchNorm1d": lambda at: nn.BatchNorm1d(3, device=at),
    "BatchNorm2d": lambda at: nn.BatchNorm2d(3, device=at),
    "LayerNorm1d": lambda at: nn.LayerNorm1d(3, device=at),
    "Embedding": lambda at: nn.Embedding(3, 2, device=at),
    "RNNCell": lambda at: nn.RNNCell(3, 2, device=at),
    "RNN": lambda at: nn.RNN(3, 2, device=at),
    "LSTMCell": lambda at: nn.LSTMCell(3, 2, device=at),
    "LSTM": lambda at: nn.LSTM(3, 2, device=at),
    "MaxPool2d": lambda at: nn.MaxPool2d(2, device=at),
    "Dropout": lambda at: nn.Dropout(0.5, at),
    "ReLU": lambda at: nn.ReLU(at),
    "Sequential": lambda at: nn.Sequential(device=at),
    "SoftmaxLoss": lambda at: nn.SoftmaxLoss(device=at),
}


@pytest.mark.parametrize("name", ON_NO_DEVICE)
@pytest.mark.parametrize("device", ["cpu", "float64", 0])
def test_a_device_that_is_none(name: str, device: Any) -> None:
    text = rf"^{name}: device: got {device!r}: need a device such as needle\.cpu\(\)$"
    with pytest.raises(DeviceError, match=text):
        ON_NO_DEVICE[name](device)


@pytest.mark.parametrize("size", [(5, 6), (6, 3)])
def test_a_window_that_does_not_fit_shows_the_image_as_it_came(size: tuple[int, int]) -> None:
    for make in (nn.MaxPool2d, nn.AvgPool2d):
        text = (
            f"^{make.__name__}: the image is smaller than the window: got x \\(2, 3, {size[0]}, "
            rf"{size[1]}\), kernel_size \(6, 4\), padding \(0, 0\): need H >= 6 and W >= 4$"
        )
        with pytest.raises(ShapeError, match=text):
            make((6, 4))(x(2, 3, *size))


SETTINGS: list[tuple[nn.Module, str, Any, type[Exception], str]] = [
    (
        nn.BatchNorm1d(3),
        "eps",
        "x",
        TypeError,
        "BatchNorm1d: eps: got 'x': need a finite number >= 0",
    ),
    (
        nn.BatchNorm2d(3),
        "eps",
        -1,
        ValueError,
        "BatchNorm2d: eps: got -1: need a finite number >= 0",
    ),
    (nn.BatchNorm2d(3), "momentum", 2, ValueError, r"momentum: got 2: need a number in \[0, 1\]"),
    (nn.BatchNorm2d(3), "relu", "no", TypeError, "relu: got 'no': need True or False"),
    (
        nn.LayerNorm1d(3),
        "eps",
        None,
        TypeError,
        "LayerNorm1d: eps: got None: need a finite number >= 0",
    ),
    (nn.Dropout(), "p", 2, ValueError, r"Dropout: p: got 2: need a number in \[0, 1\]"),
    (nn.SoftmaxLoss(), "label_smoothing", -1, ValueError, "SoftmaxLoss: label_smoothing: got -1"),
    (nn.MaxPool2d(2), "ceil_mode", "no", TypeError, "MaxPool2d: ceil_mode: got 'no': need True"),
    (nn.AvgPool2d(2), "count_include_pad", 2, TypeError, "AvgPool2d: count_include_pad: got 2"),
]


@pytest.mark.parametrize(
    ("module", "name", "value", "error", "text"), SETTINGS, ids=[case[4] for case in SETTINGS]
)
def test_a_setting_that_is_changed_to_a_wrong_one(
    module: nn.Module, name: str, value: Any, error: type[Exception], text: str
) -> None:
    before = getattr(module, name)
    with pytest.raises(error, match=text):
        setattr(module, name, value)
    assert getattr(module, name) == before
    setattr(module, name, before)


BAD_INPUTS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: nn.Linear(3, 4)(x(2, 5)),
        ShapeError,
        r"Linear: sizes differ: x is \(2, 5\), in_features is 3: need x\.shape\[-1\] == in_f",
    ),
    (lambda: nn.Linear(3, 4)(x()), ShapeError, r"Linear: x is \(\): need \(\.\.\., 3\)"),
    (lambda: nn.Linear(3, 4)(np.ones((2, 3))), TypeError, "Linear: x is a ndarray: need a Tensor"),
    (
        lambda: nn.Conv(3, 4, 3)(x(2, 5, 4, 4)),
        ShapeError,
        r"Conv: sizes differ: x is \(2, 5, 4, 4\), in_channels is 3: need x\.shape\[1\] == in",
    ),
    (
        lambda: nn.Conv(3, 4, 3)(x(3, 4, 4)),
        ShapeError,
        r"Conv: x is \(3, 4, 4\): need the axes \(N, C, H, W\)",
    ),
    (
        lambda: nn.Conv(3, 4, 3)(x(2, 3, 0, 5)),
        ShapeError,
        r"Conv: the image is smaller than the kernel: got x \(2, 3, 0, 5\), kernel_size 3, padding "
        r"1: need H >= 1 and W >= 1",
    ),
    (
        lambda: nn.MaxPool2d(2)(x(1, 3, 4, 4, dtype="int32")),
        DTypeError,
        "MaxPool2d: x is int32: need float32 or float64",
    ),
    (
        lambda: nn.BatchNorm1d(3)(x(2, 5)),
        ShapeError,
        r"BatchNorm1d: sizes differ: x is \(2, 5\), dim is 3: need x\.shape\[1\] == dim",
    ),
    (
        lambda: nn.BatchNorm1d(3)(x(2, 3, 4, 4)),
        ShapeError,
        r"BatchNorm1d: x is \(2, 3, 4, 4\): need the axes \(N, C\)",
    ),
    (
        lambda: nn.BatchNorm2d(3)(x(2, 3)),
        ShapeError,
        r"BatchNorm2d: x is \(2, 3\): need the axes \(N, C, H, W\)",
    ),
    (
        lambda: nn.BatchNorm2d(3).eval()(x(2, 4, 1, 1)),
        ShapeError,
        r"BatchNorm2d: sizes differ: x is \(2, 4, 1, 1\), dim is 3: need x\.shape\[1\] == dim",
    ),
    (
        lambda: nn.BatchNorm1d(3)(x(0, 3)),
        ShapeError,
        r"BatchNorm1d: x is \(0, 3\): need at least one value per channel to train",
    ),
    (
        lambda: nn.LayerNorm1d(3)(x(2, 5)),
        ShapeError,
        r"LayerNorm1d: sizes differ: x is \(2, 5\), dim is 3: need x\.shape\[-1\] == dim",
    ),
    (lambda: nn.LayerNorm1d(3)(x()), ShapeError, r"LayerNorm1d: x is \(\): need \(\.\.\., 3\)"),
    (lambda: nn.LayerNorm1d(3)([1.0]), TypeError, "LayerNorm1d: x is a list: need a Tensor"),
    (lambda: nn.Dropout()(3.0), TypeError, "Dropout: x is a float: need a Tensor"),
    (lambda: nn.Flatten()(x()), ShapeError, r"Flatten: x is \(\): need at least one axis"),
    (lambda: nn.Flatten()(None), TypeError, "Flatten: x is a NoneType: need a Tensor"),
    (lambda: nn.Embedding(3, 2)([1]), TypeError, "Embedding: x is a list: need a Tensor"),
    (lambda: nn.Embedding(3, 2)(Tensor([0.0, 3.0])), IndexError, r"\b3\b.*\b3\b"),
    (lambda: nn.Embedding(3, 2)(Tensor([-1.0, 0.0])), IndexError, r"-1\b.*\b3\b"),
    (lambda: nn.SoftmaxLoss()(x(2, 3), [0, 1]), TypeError, "SoftmaxLoss: y is a list: need a Tens"),
    (
        lambda: nn.SoftmaxLoss(2),
        ValueError,
        r"SoftmaxLoss: label_smoothing: got 2: need a number in",
    ),
    (lambda: nn.SoftmaxLoss()(1.0, x(2)), TypeError, "SoftmaxLoss: logits is a float: need a Tens"),
    (lambda: nn.SoftmaxLoss()(x(2, 3), x(4)), ShapeError, r"y does not fit: .*\(4,\)"),
    (lambda: nn.SoftmaxLoss()(x(0, 3), x(0)), ShapeError, r"nothing to average: .*\(0, 3\)"),
    (lambda: nn.SoftmaxLoss()(x(2, 3, 4), x(2)), ShapeError, r"\(2, 3, 4\)"),
    (lambda: nn.Embedding(3, 2)(Tensor([0.5])), DTypeError, r"0\.5"),
    (lambda: nn.Linear(3, 4)(x(2, 3, dtype="int32")), DTypeError, "int32, float32"),
    (lambda: nn.Conv(3, 4, 3)(x(1, 3, 4, 4, dtype="int64")), DTypeError, "Conv: x is int64: need"),
    (lambda: nn.BatchNorm1d(3)(x(2, 3, dtype="uint8")), DTypeError, "uint8, float32"),
    (lambda: nn.LSTM(3, 4)(x(5, 2, 3, dtype="bool")), DTypeError, "bool, float32"),
    (lambda: nn.SoftmaxLoss()(x(2, 3), Tensor([0.0, 7.0])), IndexError, r"\b7\b.*\b3\b"),
    (
        lambda: nn.RNNCell(3, 4)(x(2, 5)),
        ShapeError,
        r"RNNCell: sizes differ: X is \(2, 5\), input_size is 3: need X\.shape\[1\] == input_size",
    ),
    (
        lambda: nn.RNNCell(3, 4)(x(1, 2, 3)),
        ShapeError,
        r"RNNCell: X is \(1, 2, 3\): need the axes \(bs, input_size\)",
    ),
    (
        lambda: nn.RNNCell(3, 4)(x(2, 3), x(3, 4)),
        ShapeError,
        r"RNNCell: h is \(3, 4\): need \(bs, hidden_size\) = \(2, 4\)",
    ),
    (
        lambda: nn.LSTMCell(3, 4)(x(2, 3), (x(2, 4), x(2, 5))),
        ShapeError,
        r"LSTMCell: c is \(2, 5\): need \(bs, hidden_size\) = \(2, 4\)",
    ),
    (
        lambda: nn.LSTMCell(3, 4)(x(2, 3), x(2, 4)),
        TypeError,
        r"LSTMCell: h is a Tensor: need a pair \(h, c\) or None",
    ),
    (
        lambda: nn.RNN(3, 4, 2)(x(5, 2)),
        ShapeError,
        r"RNN: X is \(5, 2\): need the axes \(seq_len, bs, input_size\)",
    ),
    (
        lambda: nn.RNN(3, 4, 2)(x(5, 2, 4)),
        ShapeError,
        r"RNN: sizes differ: X is \(5, 2, 4\), input_size is 3: need X\.shape\[2\] == input_size",
    ),
    (
        lambda: nn.RNN(3, 4, 2)(x(0, 2, 3)),
        ShapeError,
        r"RNN: X is \(0, 2, 3\): need at least one step, X\.shape\[0\] >= 1",
    ),
    (
        lambda: nn.RNN(3, 4, 2)(x(5, 2, 3), x(1, 2, 4)),
        ShapeError,
        r"RNN: h0 is \(1, 2, 4\): need \(num_layers, bs, hidden_size\) = \(2, 2, 4\)",
    ),
    (
        lambda: nn.RNN(3, 4)(x(5, 2, 3), np.zeros((1, 2, 4))),
        TypeError,
        "RNN: h0 is a ndarray: need a Tensor",
    ),
    (
        lambda: nn.LSTM(3, 4)(x(5, 2, 3), (x(1, 2, 4),)),
        TypeError,
        r"LSTM: h is a tuple of 1: need a pair \(h, c\) or None",
    ),
    (
        lambda: nn.LSTM(3, 4)(x(5, 2, 3), (x(1, 2, 4), x(1, 3, 4))),
        ShapeError,
        r"LSTM: c0 is \(1, 3, 4\): need \(num_layers, bs, hidden_size\) = \(1, 2, 4\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD_INPUTS, ids=[c[2] for c in BAD_INPUTS])
def test_bad_inputs(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


ON_OTHER_DEVICE = [
    (nn.Linear(3, 4), (2, 3)),
    (nn.Conv(3, 4, 3), (1, 3, 4, 4)),
    (nn.BatchNorm1d(3), (2, 3)),
    (nn.BatchNorm2d(3).eval(), (2, 3, 1, 1)),
    (nn.LayerNorm1d(3), (2, 3)),
    (nn.Embedding(3, 2), (2, 1)),
    (nn.RNNCell(3, 4), (2, 3)),
    (nn.LSTM(3, 4), (5, 2, 3)),
]


@pytest.mark.skipif(ndl.cpu() == ndl.cpu_numpy(), reason="NEEDLE_BACKEND=np: one device only")
@pytest.mark.parametrize(("module", "shape"), ON_OTHER_DEVICE, ids=lambda v: type(v).__name__)
def test_input_on_another_device(module: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(DeviceError, match=r"cpu_numpy\(\).*cpu\(\)|cpu\(\).*cpu_numpy\(\)"):
        module(x(*shape, device=ndl.cpu_numpy()))


@pytest.mark.skipif(ndl.cpu() == ndl.cpu_numpy(), reason="NEEDLE_BACKEND=np: one device only")
def test_loss_on_two_devices() -> None:
    with pytest.raises(DeviceError, match=r"cpu_numpy\(\)"):
        nn.SoftmaxLoss()(x(2, 3), x(2, device=ndl.cpu_numpy()))
