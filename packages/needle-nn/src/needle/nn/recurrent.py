"""Recurrent layers: one step (the cells) and whole sequences.

A cell holds the parameters of a layer and knows two things: one step (`forward`) and all steps of
a sequence (`unroll`, one fused op). RNN and LSTM stack cells, and read the cells' attributes each
time they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from needle import init, ops
from needle.autograd import Tensor, TensorTuple
from needle.backend_ndarray import Device, ShapeError
from needle.checks import check_switch

from .checks import (
    check_axes,
    check_size,
    check_tensor,
    float_dtype,
    positive,
    promoted,
    unit,
)
from .elementwise import Dropout
from .module import Module, Parameter

__all__ = ["LSTM", "RNN", "LSTMCell", "RNNCell"]

NONLINEARITIES = ("tanh", "relu")


class _Cell(Module):
    """The parameters of one layer: `gates` blocks of hidden_size columns, side by side."""

    W_ih: Tensor
    W_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        gates: int,
        bias: bool,
        device: Device | None,
        dtype: Any,
    ) -> None:
        super().__init__(device, dtype)
        op = type(self).__name__
        dtype, bias = float_dtype(op, dtype), check_switch(op, "bias", bias)
        self.input_size = positive(op, "input_size", input_size)
        self.hidden_size = positive(op, "hidden_size", hidden_size)
        width, bound = gates * self.hidden_size, self.hidden_size**-0.5

        def uniform(*shape: int) -> Parameter:
            return Parameter(init.rand(*shape, low=-bound, high=bound, device=device, dtype=dtype))

        self.W_ih = uniform(self.input_size, width)
        self.W_hh = uniform(self.hidden_size, width)
        self.bias_ih = uniform(width) if bias else None
        self.bias_hh = uniform(width) if bias else None

    def _step_input(self, X: Tensor) -> Tensor:
        """Checks X (bs, input_size) and returns it as a sequence of one step."""
        op = type(self).__name__
        check_axes(op, "X", X, "(bs, input_size)")
        check_size(op, "X", X, 1, "input_size", self.input_size)
        return ops.reshape(X, (1, *X.shape))

    def _state(self, name: str, h: Tensor | None, bs: int) -> Tensor:
        """Returns the state h (bs, hidden_size), checked, or zeros."""
        shape = (bs, self.hidden_size)
        if h is None:
            return init.zeros(*shape, device=self.W_hh.device, dtype=self.W_hh.dtype)
        _check_state(type(self).__name__, name, h, shape, "(bs, hidden_size)")
        return h

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias_ih is not None}"


class RNNCell(_Cell):
    """Computes one step of a simple recurrent network.

        h' = tanh(X W_ih + bias_ih + h W_hh + bias_hh)          (or relu)

    Shapes: X (bs, input_size), h and result (bs, hidden_size); a missing h is zeros.

    Attributes:
        W_ih (input_size, hidden_size), W_hh (hidden_size, hidden_size), bias_ih and bias_hh
        (hidden_size,) or None; all uniform in +-1/sqrt(hidden_size).

    Raises:
        TypeError: a size is not an integer, bias not True or False, or X or h not a Tensor.
        ShapeError: a size is below 1, or X or h does not fit.
        ValueError: nonlinearity is not "tanh" or "relu".
        DTypeError: dtype is not float32 or float64, or X or h is not of floats.
        DeviceError: device is no device, or X or h is on another one.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        _check_nonlinearity("RNNCell", nonlinearity)
        super().__init__(input_size, hidden_size, 1, bias, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, X: Tensor, h: Tensor | None = None) -> Tensor:
        x = self._step_input(X)
        return self.unroll(x, self._state("h", h, X.shape[0]))[1]

    def unroll(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        """Runs all steps: x (seq_len, bs, input_size) to output (seq_len, bs, hidden) and h_n."""
        x, h0, w_ih, w_hh, bias_ih, bias_hh = promoted(
            x, h0, self.W_ih, self.W_hh, self.bias_ih, self.bias_hh
        )
        output, h = ops.rnn(x, h0, w_ih, w_hh, bias_ih, bias_hh, self.nonlinearity)
        return output, h

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nonlinearity={self.nonlinearity!r}"


class LSTMCell(_Cell):
    """Computes one step of a long short-term memory network.

        i, f, g, o = split(X W_ih + bias_ih + h W_hh + bias_hh)       four blocks of hidden_size
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')

    Shapes: X (bs, input_size); h, c and the results h', c' (bs, hidden_size); the argument h is
    the pair (h, c), zeros if missing.

    Attributes:
        W_ih (input_size, 4 * hidden_size), W_hh (hidden_size, 4 * hidden_size), bias_ih and
        bias_hh (4 * hidden_size,) or None; all uniform in +-1/sqrt(hidden_size).

    Raises:
        TypeError: a size is not an integer, bias not True or False, X not a Tensor, or h not a
            pair of them.
        ShapeError: a size is below 1, or X, h or c does not fit.
        DTypeError: dtype is not float32 or float64, or X, h or c is not of floats.
        DeviceError: device is no device, or X, h or c is on another one.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(input_size, hidden_size, 4, bias, device, dtype)

    def forward(
        self, X: Tensor, h: tuple[Tensor | None, Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        x = self._step_input(X)
        h0, c0 = _pair("LSTMCell", h)
        bs = X.shape[0]
        return self.unroll(x, self._state("h", h0, bs), self._state("c", c0, bs))[1:]

    def unroll(self, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs all steps: x (seq_len, bs, input_size) to output, h_n and c_n."""
        inputs = promoted(x, h0, c0, self.W_ih, self.W_hh, self.bias_ih, self.bias_hh)
        output, h, c = ops.lstm(*inputs)
        return output, h, c


class _Stack(Module):
    """What RNN and LSTM share: one cell a layer, each fed with the output of the one below."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        dropout: float,
        device: Device | None,
        dtype: Any,
    ) -> None:
        super().__init__(device, dtype)
        op = type(self).__name__
        self.input_size = positive(op, "input_size", input_size)
        self.hidden_size = positive(op, "hidden_size", hidden_size)
        self.num_layers = positive(op, "num_layers", num_layers)
        dropout = unit(op, "dropout", dropout)
        self.dropout = Dropout(dropout) if dropout else None

    def _input_sizes(self) -> list[int]:
        """What each layer's cell takes in."""
        return [self.input_size] + [self.hidden_size] * (self.num_layers - 1)

    def _run(
        self, cells: Sequence[Any], X: Tensor, **states: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Runs all layers from the initial `states`; the last layer's output, the last states."""
        op = type(self).__name__
        check_axes(op, "X", X, "(seq_len, bs, input_size)")
        check_size(op, "X", X, 2, "input_size", self.input_size)
        if X.shape[0] == 0:
            raise ShapeError(f"{op}: X is {X.shape}: need at least one step, X.shape[0] >= 1")
        first = [_layer_states(op, name, h, cells, X.shape[1]) for name, h in states.items()]
        output = X
        last: list[list[Tensor]] = []
        for cell, *state in zip(cells, *first, strict=True):
            if last and self.dropout is not None:
                output = self.dropout.forward(output)
            output, *after = cell.unroll(output, *state)
            last.append(after)
        return output, tuple([ops.stack(layers, 0) for layers in zip(*last, strict=True)])


class RNN(_Stack):
    """Runs a stack of simple recurrent layers over a sequence; see RNNCell.

    Shapes: X (seq_len, bs, input_size); h0 and h_n (num_layers, bs, hidden_size), a missing h0 is
    zeros; returns (output, h_n) with output (seq_len, bs, hidden_size) of the last layer.

    Args:
        dropout: the probability with which, in training, an output of a layer is dropped on its
            way to the next one.

    Attributes:
        rnn_cells: one RNNCell per layer.

    Raises:
        TypeError: a size is not an integer, bias not True or False, dropout not a number, or X or
            h0 not a Tensor.
        ShapeError: a size is below 1, or X or h0 does not fit.
        ValueError: nonlinearity is not "tanh" or "relu", or dropout is not in [0, 1].
        DTypeError: dtype is not float32 or float64, or X or h0 is not of floats.
        DeviceError: device is no device, or X or h0 is on another one.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device | None = None,
        dtype: Any = "float32",
        *,
        dropout: float = 0.0,
    ) -> None:
        _check_nonlinearity("RNN", nonlinearity)
        super().__init__(input_size, hidden_size, num_layers, dropout, device, dtype)
        self.rnn_cells = [
            RNNCell(size, hidden_size, bias, nonlinearity, device, dtype)
            for size in self._input_sizes()
        ]

    def forward(self, X: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, (h_n,) = self._run(self.rnn_cells, X, h0=h0)
        return output, h_n


class LSTM(_Stack):
    """Runs a stack of long short-term memory layers over a sequence; see LSTMCell.

    Shapes: X (seq_len, bs, input_size); h is the pair (h0, c0) of (num_layers, bs, hidden_size)
    each, zeros if missing; returns (output, (h_n, c_n)) with output (seq_len, bs, hidden_size) of
    the last layer.

    Args:
        dropout: the probability with which, in training, an output of a layer is dropped on its
            way to the next one.

    Attributes:
        lstm_cells: one LSTMCell per layer.

    Raises:
        TypeError: a size is not an integer, bias not True or False, dropout not a number, X not a
            Tensor, or h not a pair of them.
        ShapeError: a size is below 1, or X, h0 or c0 does not fit.
        ValueError: dropout is not in [0, 1].
        DTypeError: dtype is not float32 or float64, or X, h0 or c0 is not of floats.
        DeviceError: device is no device, or X, h0 or c0 is on another one.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        device: Device | None = None,
        dtype: Any = "float32",
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, dropout, device, dtype)
        self.lstm_cells = [
            LSTMCell(size, hidden_size, bias, device, dtype) for size in self._input_sizes()
        ]

    def forward(
        self, X: Tensor, h: tuple[Tensor | None, Tensor | None] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h0, c0 = _pair("LSTM", h)
        output, (h_n, c_n) = self._run(self.lstm_cells, X, h0=h0, c0=c0)
        return output, (h_n, c_n)


def _check_nonlinearity(op: str, nonlinearity: str) -> None:
    if not isinstance(nonlinearity, str) or nonlinearity not in NONLINEARITIES:
        raise ValueError(f"{op}: nonlinearity is {nonlinearity!r}: need 'tanh' or 'relu'")


def _check_state(op: str, name: str, h: Tensor, shape: tuple[int, ...], layout: str) -> None:
    check_tensor(op, name, h)
    if tuple(h.shape) != shape:
        raise ShapeError(f"{op}: {name} is {tuple(h.shape)}: need {layout} = {shape}")


def _pair(op: str, h: Any) -> tuple[Tensor | None, Tensor | None]:
    """Splits an LSTM's state argument into h and c."""
    if h is None:
        return None, None
    if not isinstance(h, Sequence | TensorTuple) or len(h) != 2:
        raise TypeError(f"{op}: h is {_describe(h)}: need a pair (h, c) or None")
    return h[0], h[1]


def _describe(h: object) -> str:
    size = f" of {len(h)}" if isinstance(h, Sequence) else ""
    return f"a {type(h).__name__}{size}"


def _layer_states(
    op: str, name: str, h: Tensor | None, cells: Sequence[_Cell], bs: int
) -> list[Tensor]:
    """Splits h (num_layers, bs, hidden_size) by layers; without h each layer starts from zeros."""
    if h is None:
        return [cell._state(name, None, bs) for cell in cells]
    shape = (len(cells), bs, cells[0].hidden_size)
    _check_state(op, name, h, shape, "(num_layers, bs, hidden_size)")
    return list(ops.split(h, 0))
