"""Recurrent layers: all time steps of one layer as one operation.

The input's part of every step is one matrix product before the steps, and the weights' gradients
are one each after them; the steps themselves, one kernel, hold only what depends on the previous
step. A single step, as the cells take it, uses the plain product: that kernel first packs W_hh,
which pays from the second step on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import backend_ndarray as nd
from ..autograd import Spec, Tensor, TensorTuple, TensorTupleOp, spec_of
from ..backend_ndarray import NDArray, ShapeError
from ..backend_ndarray.layout import Shape
from ..backend_ndarray.ndarray import as_rows
from .common import check_floats, check_rank, check_shape, present
from .elementwise import relu, sigmoid, tanh
from .fused import FusedBackward
from .matmul import matmul
from .shape import getitem, split, stack


class Recurrent(TensorTupleOp):
    """What LSTM and RNN share: x, `states` initial states, W_ih, W_hh and the biases given.

    x (T, B, I), states (B, H), W_ih (I, gates * H), W_hh (H, gates * H), biases (gates * H,).
    """

    states: int
    gates: int

    def __init__(self, biases: tuple[bool, bool] = (False, False)) -> None:
        """`biases` says whether bias_ih and bias_hh are given."""
        self.biases = biases

    def check(self, *args: Tensor) -> tuple[Spec, Spec]:
        """Checks the inputs; the specs of the output and of one state."""
        op = self.name
        dtype = check_floats(op, *args)
        x, state = args[0], args[1]
        check_rank(op, "x", x, 3, "(seq_len, bs, input_size)")
        check_rank(op, "h0", state, 2, "(bs, hidden_size)")
        steps, bs, size = x.shape
        hidden = state.shape[1]
        if steps == 0:
            raise ShapeError(f"{op}: no steps: got x {x.shape}: need seq_len >= 1")
        width = self.gates * hidden
        shapes: list[Shape] = [*[(bs, hidden)] * self.states, (size, width), (hidden, width)]
        names = [*("h0", "c0")[: self.states], "W_ih", "W_hh"]
        for flag, name in zip(self.biases, ("bias_ih", "bias_hh"), strict=True):
            if flag:
                shapes.append((width,))
                names.append(name)
        for name, value, shape in zip(names, args[1:], shapes, strict=True):
            check_shape(op, name, value, shape)
        return spec_of((steps, bs, hidden), dtype), spec_of((bs, hidden), dtype)

    def weights(self, args: Sequence[Any]) -> tuple[Any, Any, list[Any]]:
        """W_ih, W_hh and the list of biases among the inputs."""
        w_ih, w_hh, *biases = args[1 + self.states :]
        return w_ih, w_hh, biases

    def project(self, args: Sequence[NDArray]) -> NDArray:
        """x W_ih + biases for all steps at once: (T, B, gates * H)."""
        x = args[0]
        w_ih, _, biases = self.weights(args)
        bias = nd.add(*biases) if len(biases) == 2 else biases[0] if biases else None
        return nd.matmul(as_rows(x), w_ih, bias).reshape(*x.shape[:2], w_ih.shape[1])

    def plain_steps(
        self, args: Sequence[Tensor], step: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Runs `step(pre, i)` for each step i with its pre-activation; the outputs and the last."""
        w_ih, w_hh, biases = self.weights(args)
        outputs, h = [], args[1]
        for x in split(args[0], 0):
            pre = matmul(x, w_ih) + matmul(h, w_hh)
            for bias in biases:
                pre = pre + bias
            h = step(pre, h)
            outputs.append(h)
        return stack(outputs, 0), h


class RecurrentBackward(FusedBackward):
    """What both backward passes share: the gradients of those inputs that need one."""

    def positions(self) -> tuple[int, ...]:
        return tuple([i for i in range(self.count) if self.needs[i]])

    def finish(
        self, args: Sequence[NDArray], dpre: NDArray, states: NDArray, *of_states: NDArray
    ) -> tuple[NDArray, ...]:
        """All gradients, from those of the pre-activations and of the initial states.

        Each is one matrix product over all steps; step t read the state states[t].
        """
        x, needs = args[0], self.needs
        w_ih, _, biases = self.op.weights(args[: self.count])
        rows = as_rows(dpre)
        *_, for_w_ih, for_w_hh = needs[: 3 + len(of_states)]
        dw_ih: NDArray | None = None
        bias: NDArray | None = None
        if for_w_ih and biases:
            dw_ih, bias = nd.linear_weight_grad(as_rows(x), rows)
        elif for_w_ih:
            dw_ih = nd.matmul(as_rows(x).T, rows)
        elif biases:
            bias = nd.sum(rows, 0)
        grads: list[NDArray | None] = [
            nd.matmul(rows, w_ih.T).reshape(x.shape) if needs[0] else None,
            *of_states,
            dw_ih,
            nd.matmul(as_rows(states[:-1]).T, rows) if for_w_hh else None,
            *[bias] * len(biases),
        ]
        wanted = [grad for grad, needed in zip(grads, needs, strict=True) if needed]
        return tuple([grad for grad in wanted if grad is not None])


def _last_grad(dy: NDArray | None, dh: NDArray | None, h: NDArray) -> NDArray:
    """The gradient of the only step's state, which is also the output."""
    if dy is None:
        return _or_zeros(dh, h)
    return dy[0] if dh is None else nd.add(dh, dy[0])


def _or_zeros(grad: NDArray | None, like: NDArray) -> NDArray:
    return like.device.zeros(like.shape, dtype=like.dtype) if grad is None else grad


class LSTM(Recurrent):
    """One long short-term memory layer; outputs (output, h_n, c_n).

    It keeps the gates (T, B, 4H), all states and all cells (T + 1, B, H), h0 and c0 first.

        i, f, g, o = parts of x_t W_ih + bias_ih + h W_hh + bias_hh
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)

    Source: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997, with forget gates.
    """

    name = "lstm"
    keeps = 3
    states = 2
    gates = 4

    def infer(self, *args: Tensor) -> tuple[Spec, ...]:
        output, state = self.check(*args)
        return output, state, state

    def compute(self, *args: NDArray) -> tuple[NDArray, ...]:
        pre = self.project(args)
        _, w_hh, _ = self.weights(args)
        # The gates replace the pre-activations, which nothing reads again.
        steps = _lstm_step if len(pre) == 1 else nd.lstm_sequence
        states, cells, gates = steps(pre, args[1], args[2], w_hh, overwrite_pre=True)
        # Copies: the last states outlive the others when they are carried on.
        return states[1:], states[-1].copy(), cells[-1].copy(), gates, states, cells

    def plain(self, *args: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The definition in plain operations."""
        c = args[2]
        size = c.shape[1]

        def step(pre: Tensor, h: Tensor) -> Tensor:
            nonlocal c
            i, f, g, o = (
                getitem(pre, (slice(None), slice(k * size, (k + 1) * size))) for k in range(4)
            )
            c = sigmoid(f) * c + sigmoid(i) * tanh(g)
            return sigmoid(o) * tanh(c)

        output, h = self.plain_steps(args, step)
        return output, h, c

    def gradient(self, out_grad: Any, node: TensorTuple) -> tuple[Tensor | None, ...]:
        return LSTMBackward.apply(self, node.inputs, out_grad, node.kept())


class LSTMBackward(RecurrentBackward):
    """The gradients of lstm for all its inputs."""

    def compute(self, *args: NDArray) -> tuple[NDArray, ...]:
        _, w_hh, _ = self.op.weights(args[: self.count])
        *grads, gates, states, cells = args[self.count :]
        dy, dh, dc = self.spread(grads)
        steps = _lstm_step_grad if len(gates) == 1 else nd.lstm_sequence_grad
        dpre, dh0, dc0 = steps(dy, dh, dc, gates, cells, w_hh)
        return self.finish(args, dpre, states, dh0, dc0)


def _lstm_step(
    pre: NDArray, h0: NDArray, c0: NDArray, w_hh: NDArray, overwrite_pre: bool
) -> tuple[NDArray, NDArray, NDArray]:
    """nd.lstm_sequence for one step."""
    step = nd.matmul(h0, w_hh, out=pre[0], accumulate=True)
    h, c, _ = nd.lstm_cell(step, c0, overwrite_pre)
    return nd.stack((h0, h), 0), nd.stack((c0, c), 0), pre


def _lstm_step_grad(
    dy: NDArray | None,
    dh: NDArray | None,
    dc: NDArray | None,
    gates: NDArray,
    cells: NDArray,
    w_hh: NDArray,
) -> tuple[NDArray, NDArray, NDArray]:
    """nd.lstm_sequence_grad for one step."""
    c0, c = cells[0], cells[1]
    dpre, dc0 = nd.lstm_cell_grad(_last_grad(dy, dh, c), _or_zeros(dc, c), gates[0], c, c0)
    return dpre[None], nd.matmul(dpre, w_hh.T), dc0


ACTIVATIONS = {"tanh": (tanh, nd.tanh_grad), "relu": (relu, nd.relu_grad)}


class RNN(Recurrent):
    """One simple recurrent layer; outputs (output, h_n); it keeps all states (T + 1, B, H).

    h = tanh(x_t W_ih + bias_ih + h W_hh + bias_hh)          (or relu)
    """

    name = "rnn"
    keeps = 1
    states = 1
    gates = 1

    def __init__(
        self, biases: tuple[bool, bool] = (False, False), nonlinearity: str = "tanh"
    ) -> None:
        super().__init__(biases)
        if nonlinearity not in ACTIVATIONS:
            raise ValueError(f"rnn: nonlinearity is {nonlinearity!r}: need 'tanh' or 'relu'")
        self.nonlinearity = nonlinearity

    def infer(self, *args: Tensor) -> tuple[Spec, ...]:
        output, state = self.check(*args)
        return output, state

    def compute(self, *args: NDArray) -> tuple[NDArray, ...]:
        pre = self.project(args)
        _, w_hh, _ = self.weights(args)
        steps = _rnn_step if len(pre) == 1 else nd.rnn_sequence
        states = steps(pre, args[1], w_hh, self.nonlinearity)
        # A copy: the last state outlives the others when it is carried on.
        return states[1:], states[-1].copy(), states

    def plain(self, *args: Tensor) -> tuple[Tensor, Tensor]:
        """The definition in plain operations."""
        activation, _ = ACTIVATIONS[self.nonlinearity]
        return self.plain_steps(args, lambda pre, h: activation(pre))

    def gradient(self, out_grad: Any, node: TensorTuple) -> tuple[Tensor | None, ...]:
        return RNNBackward.apply(self, node.inputs, out_grad, node.kept())


class RNNBackward(RecurrentBackward):
    """The gradients of rnn for all its inputs."""

    def compute(self, *args: NDArray) -> tuple[NDArray, ...]:
        _, w_hh, _ = self.op.weights(args[: self.count])
        *grads, states = args[self.count :]
        dy, dh = self.spread(grads)
        steps = _rnn_step_grad if len(states) == 2 else nd.rnn_sequence_grad
        dpre, dh0 = steps(dy, dh, states, w_hh, self.op.nonlinearity)
        return self.finish(args, dpre, states, dh0)


def _rnn_step(pre: NDArray, h0: NDArray, w_hh: NDArray, nonlinearity: str) -> NDArray:
    """nd.rnn_sequence for one step."""
    h = nd.matmul(h0, w_hh, None, nonlinearity, out=pre[0], accumulate=True)
    return nd.stack((h0, h), 0)


def _rnn_step_grad(
    dy: NDArray | None, dh: NDArray | None, states: NDArray, w_hh: NDArray, nonlinearity: str
) -> tuple[NDArray, NDArray]:
    """nd.rnn_sequence_grad for one step."""
    _, activation_grad = ACTIVATIONS[nonlinearity]
    dpre = activation_grad(_last_grad(dy, dh, states[1]), states[1])
    return dpre[None], nd.matmul(dpre, w_hh.T)


def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    W_ih: Tensor,
    W_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> TensorTuple:
    """One LSTM layer over all steps: the TensorTuple (output, h_n, c_n).

    Args:
        x: (seq_len, bs, input_size).
        h0: (bs, hidden_size).
        c0: (bs, hidden_size).
        W_ih: (input_size, 4 * hidden_size), the gates i, f, g, o side by side.
        W_hh: (hidden_size, 4 * hidden_size).
        bias_ih: (4 * hidden_size,) or None.
        bias_hh: (4 * hidden_size,) or None.

    Returns:
        output (seq_len, bs, hidden_size), h_n and c_n (bs, hidden_size).

    Raises:
        ShapeError: shapes do not fit, or there is no step.
        DTypeError: the dtypes differ or are not floats.
    """
    op = LSTM((bias_ih is not None, bias_hh is not None))
    return op(x, h0, c0, W_ih, W_hh, *present(bias_ih, bias_hh))


def rnn(
    x: Tensor,
    h0: Tensor,
    W_ih: Tensor,
    W_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> TensorTuple:
    """One simple recurrent layer over all steps: the TensorTuple (output, h_n).

    Args:
        x: (seq_len, bs, input_size).
        h0: (bs, hidden_size).
        W_ih: (input_size, hidden_size).
        W_hh: (hidden_size, hidden_size).
        bias_ih: (hidden_size,) or None.
        bias_hh: (hidden_size,) or None.
        nonlinearity: "tanh" or "relu".

    Returns:
        output (seq_len, bs, hidden_size) and h_n (bs, hidden_size).

    Raises:
        ShapeError: shapes do not fit, or there is no step.
        ValueError: another nonlinearity.
        DTypeError: the dtypes differ or are not floats.
    """
    op = RNN((bias_ih is not None, bias_hh is not None), nonlinearity)
    return op(x, h0, W_ih, W_hh, *present(bias_ih, bias_hh))
