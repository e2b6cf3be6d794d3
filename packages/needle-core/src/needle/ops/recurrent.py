"""Recurrent layers: all time steps of one layer as one operation.

The input's part of every step is one matrix product before the loop, and the weights' gradients
are one each after it; the loop itself holds only what depends on the previous step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import backend_ndarray as nd
from ..autograd import Spec, Tensor, TensorTuple, TensorTupleOp
from ..backend_ndarray import NDArray, ShapeError
from ..backend_ndarray.layout import Shape
from .common import check_floats, check_rank, check_shape, present
from .elementwise import relu, sigmoid, tanh
from .fused import FusedBackward, item
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
        return Spec((steps, bs, hidden), dtype), Spec((bs, hidden), dtype)

    def weights(self, args: Sequence[Any]) -> tuple[Any, Any, list[Any]]:
        """W_ih, W_hh and the list of biases among the inputs."""
        w_ih, w_hh, *biases = args[1 + self.states :]
        return w_ih, w_hh, biases

    def project(self, args: Sequence[NDArray]) -> NDArray:
        """x W_ih + biases for all steps at once: (T, B, gates * H)."""
        x = args[0]
        w_ih, _, biases = self.weights(args)
        bias = nd.add(*biases) if len(biases) == 2 else biases[0] if biases else None
        return nd.matmul(_rows(x), w_ih, bias).reshape(*x.shape[:2], w_ih.shape[1])

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


def _rows(x: NDArray) -> NDArray:
    """(T, B, D) as (T * B, D)."""
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2])


class WeightGrads(NamedTuple):
    """What the gradients of all pre-activations become after the loop."""

    x: NDArray
    w_ih: NDArray
    w_hh: NDArray
    bias: NDArray


def _weight_grads(
    dpre: NDArray, x: NDArray, h0: NDArray, output: NDArray, w_ih: NDArray
) -> WeightGrads:
    """One matrix product each over all steps; step t read the state output[t - 1], or h0."""
    rows = _rows(dpre)
    w_hh = nd.matmul(h0.T, dpre[0])
    if len(output) > 1:
        nd.matmul(_rows(output[:-1]).T, _rows(dpre[1:]), out=w_hh, accumulate=True)
    return WeightGrads(
        nd.matmul(rows, w_ih.T).reshape(x.shape),
        nd.matmul(_rows(x).T, rows),
        w_hh,
        nd.sum(rows, 0),
    )


def _or_zeros(grad: NDArray | None, like: NDArray) -> NDArray:
    return like.device.zeros(like.shape, dtype=like.dtype) if grad is None else grad


class LSTM(Recurrent):
    """One long short-term memory layer; outputs (output, h_n, c_n), hidden: gates, every c.

        i, f, g, o = parts of x_t W_ih + bias_ih + h W_hh + bias_hh
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)

    Source: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997, with forget gates.
    """

    name = "lstm"
    hidden = 2
    states = 2
    gates = 4

    def infer(self, *args: Tensor) -> tuple[Spec, ...]:
        output, state = self.check(*args)
        steps, bs, size = output.shape
        return output, state, state, Spec((steps, bs, 4 * size), output.dtype), output

    def compute(self, *args: NDArray) -> tuple[NDArray, ...]:
        pre = self.project(args)
        h, c = args[1], args[2]
        _, w_hh, _ = self.weights(args)
        hs, cs = [], []
        for t in range(len(pre)):
            step = nd.matmul(h, w_hh, out=pre[t], accumulate=True)
            # The gates replace the pre-activations, which nothing reads again.
            h, c, _ = nd.lstm_cell(step, c, overwrite_pre=True)
            hs.append(h)
            cs.append(c)
        return nd.stack(hs, 0), h, c, pre, nd.stack(cs, 0)

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
        kept = [item(node, i) for i in (0, 3, 4)]
        return LSTMBackward.apply(self, node.inputs, out_grad[:3], kept)


class LSTMBackward(FusedBackward):
    """The gradients of lstm for all its inputs."""

    def compute(self, *args: NDArray) -> tuple[NDArray, ...]:
        x, h0, c0 = args[:3]
        w_ih, w_hh, biases = self.op.weights(args[: self.count])
        *grads, output, gates, cs = args[self.count :]
        dy, dh, dc = self.spread(grads)
        dh, dc = _or_zeros(dh, h0), _or_zeros(dc, c0)
        dpre = nd.empty(gates.shape, gates.dtype, gates.device)
        back = w_hh.T.compact()  # row-major once, where every step would pack it again
        for t in reversed(range(len(output))):
            if dy is not None:
                dh = nd.add(dh, dy[t])
            before = cs[t - 1] if t else c0
            step, dc = nd.lstm_cell_grad(dh, dc, gates[t], cs[t], before)
            dpre[t] = step
            dh = nd.matmul(step, back)
        last = _weight_grads(dpre, x, h0, output, w_ih)
        return last.x, dh, dc, last.w_ih, last.w_hh, *[last.bias for _ in biases]


ACTIVATIONS = {"tanh": (tanh, nd.tanh_grad), "relu": (relu, nd.relu_grad)}


class RNN(Recurrent):
    """One simple recurrent layer; outputs (output, h_n).

    h = tanh(x_t W_ih + bias_ih + h W_hh + bias_hh)          (or relu)
    """

    name = "rnn"
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
        return self.check(*args)

    def compute(self, *args: NDArray) -> tuple[NDArray, ...]:
        output, h = self.project(args), args[1]
        _, w_hh, _ = self.weights(args)
        for t in range(len(output)):
            # The state replaces the pre-activation, so `output` fills up step by step.
            h = nd.matmul(h, w_hh, None, self.nonlinearity, out=output[t], accumulate=True)
        # A copy: the state outlives the output when it is carried on.
        return output, h.copy()

    def plain(self, *args: Tensor) -> tuple[Tensor, Tensor]:
        """The definition in plain operations."""
        activation, _ = ACTIVATIONS[self.nonlinearity]
        return self.plain_steps(args, lambda pre, h: activation(pre))

    def gradient(self, out_grad: Any, node: TensorTuple) -> tuple[Tensor | None, ...]:
        return RNNBackward.apply(self, node.inputs, out_grad, [item(node, 0)])


class RNNBackward(FusedBackward):
    """The gradients of rnn for all its inputs."""

    def compute(self, *args: NDArray) -> tuple[NDArray, ...]:
        x, h0 = args[:2]
        w_ih, w_hh, biases = self.op.weights(args[: self.count])
        *grads, output = args[self.count :]
        dy, dh = self.spread(grads)
        dh = _or_zeros(dh, h0)
        _, activation_grad = ACTIVATIONS[self.op.nonlinearity]
        dpre = nd.empty(output.shape, output.dtype, output.device)
        back = w_hh.T.compact()  # row-major once, where every step would pack it again
        for t in reversed(range(len(output))):
            if dy is not None:
                dh = nd.add(dh, dy[t])
            step = activation_grad(dh, output[t])
            dpre[t] = step
            dh = nd.matmul(step, back)
        last = _weight_grads(dpre, x, h0, output, w_ih)
        return last.x, dh, last.w_ih, last.w_hh, *[last.bias for _ in biases]


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
    return op(*present(x, h0, c0, W_ih, W_hh, bias_ih, bias_hh))


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
    return op(*present(x, h0, W_ih, W_hh, bias_ih, bias_hh))
