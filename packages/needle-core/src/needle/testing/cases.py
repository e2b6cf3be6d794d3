"""OpCases of all operations, with their NumPy oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .. import ops
from ..backend_ndarray.pool import windows
from .case import Arrays, OpCase

Array: TypeAlias = "np.ndarray[Any, Any]"
Rng: TypeAlias = np.random.Generator
Make: TypeAlias = Callable[[Rng], Arrays]


# ---- inputs -------------------------------------------------------------------------------------


def normal(*shapes: tuple[int, ...]) -> Make:
    """Numbers of either sign, at least 0.1 from 0 and mostly below 2."""

    def make(rng: Rng) -> Arrays:
        return tuple([rng.uniform(0.1, 2, s) * rng.choice([-1.0, 1.0], s) for s in shapes])

    return make


def positive(*shapes: tuple[int, ...]) -> Make:
    """Numbers from 0.5 to 2."""
    return lambda rng: tuple([rng.uniform(0.5, 2, shape) for shape in shapes])


def distinct(*shapes: tuple[int, ...]) -> Make:
    """Numbers that all differ by 0.1 or more: no maximum is shared."""

    def make(rng: Rng) -> Arrays:
        counts = [int(np.prod(shape)) for shape in shapes]
        numbers = rng.permutation(sum(counts)) * 0.1 + 0.05
        parts = np.split(numbers, np.cumsum(counts)[:-1])
        return tuple([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])

    return make


def ids(count: int, shape: tuple[int, ...], *others: tuple[int, ...]) -> Make:
    """Integers below count, then normal arrays."""

    def make(rng: Rng) -> Arrays:
        return (rng.integers(0, count, shape), *normal(*others)(rng))

    return make


def labelled(logits: tuple[int, int]) -> Make:
    """Logits and one label per row."""

    def make(rng: Rng) -> Arrays:
        return (*normal(logits)(rng), rng.integers(0, logits[1], logits[0]))

    return make


# ---- oracles ------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Any:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def logsumexp(x: Array, axis: Any, keepdims: bool = False) -> Any:
    """log(sum(exp(x))), shifted by the maximum."""
    top = x.max(axis=axis, keepdims=True)
    result = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return result if keepdims else np.squeeze(result, axis)


def dilate(x: Array) -> Array:
    """Two zeros after every element of axes 0 and 2."""
    out = np.zeros((x.shape[0] * 3, x.shape[1], x.shape[2] * 3))
    out[::3, :, ::3] = x
    return out


def conv(stride: int, padding: int) -> Callable[..., Array]:
    """The definition, one output pixel after the other."""

    def run(x: Array, w: Array, bias: Array | None = None) -> Array:
        p = padding
        x = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        k = w.shape[0]
        rows, columns = ((size - k) // stride + 1 for size in x.shape[1:3])
        y = np.zeros((x.shape[0], rows, columns, w.shape[3]))
        for i, j in np.ndindex(rows, columns):
            patch = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            y[:, i, j] = np.einsum("nuvc,uvco->no", patch, w)
        return y if bias is None else y + bias

    return run


def pool(
    mean_or_max: Callable[..., Any], kernel: Any, stride: Any, padding: Any, fill: float = 0
) -> Callable[[Array], Array]:
    """Window by window, padding included; sizes are ints or pairs."""
    (rows, columns), (s, t), (p, q) = (
        size if isinstance(size, tuple) else (size, size) for size in (kernel, stride, padding)
    )

    def run(x: Array) -> Array:
        x = np.pad(x, ((0, 0), (p, p), (q, q), (0, 0)), constant_values=fill)
        height, width = (x.shape[1] - rows) // s + 1, (x.shape[2] - columns) // t + 1
        y = np.zeros((x.shape[0], height, width, x.shape[3]))
        for i, j in np.ndindex(height, width):
            window = x[:, i * s : i * s + rows, j * t : j * t + columns]
            y[:, i, j] = mean_or_max(window, axis=(1, 2))
        return y

    return run


def pick(a: Array, index: Array) -> Array:
    """The pixel at the given place of each window of 2 x 2."""
    out = np.zeros(index.shape)
    for n, i, j, c in np.ndindex(*index.shape):
        u, v = divmod(index[n, i, j, c], 2)
        out[n, i, j, c] = a[n, 2 * i + u, 2 * j + v, c]
    return out


def batch_norm(relu: bool) -> Callable[..., tuple[Array, Array, Array]]:
    """Channel by channel."""

    def run(x: Array, weight: Array, bias: Array) -> tuple[Array, Array, Array]:
        y = np.zeros_like(x)
        mean, var = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        for c in range(x.shape[1]):
            values = x[:, c]
            mean[c] = values.mean()
            var[c] = ((values - mean[c]) ** 2).mean()
            y[:, c] = weight[c] * (values - mean[c]) / np.sqrt(var[c] + 1e-5) + bias[c]
        return (np.maximum(y, 0) if relu else y), mean, var

    return run


def batch_norm_eval(x: Array, mean: Array, var: Array, weight: Array, bias: Array) -> Array:
    """Channel by channel, with given statistics."""
    y = np.zeros_like(x)
    for c in range(x.shape[1]):
        y[:, c] = weight[c] * (x[:, c] - mean[c]) / np.sqrt(var[c] + 1e-5) + bias[c]
    return y


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    """Row by row."""
    y = np.zeros_like(x)
    for row in np.ndindex(*x.shape[:-1]):
        values = x[row]
        mean = values.mean()
        var = ((values - mean) ** 2).mean()
        y[row] = weight * (values - mean) / np.sqrt(var + 1e-5) + bias
    return y


def cross_entropy(logits: Array, labels: Array) -> Any:
    """The mean over rows of logsumexp(logits) - logits[label]."""
    return np.mean(logsumexp(logits, 1) - logits[np.arange(len(labels)), labels])


def smooth_entropy(logits: Array) -> Any:
    """The mean of the cross entropies of all classes."""
    return np.mean([cross_entropy(logits, np.full(len(logits), k)) for k in range(logits.shape[1])])


def lstm(
    x: Array, h: Array, c: Array, w_ih: Array, w_hh: Array, *biases: Array
) -> tuple[Array, Array, Array]:
    """Step by step."""
    outputs = []
    for step in x:
        pre = step @ w_ih + h @ w_hh + sum(biases)
        i, f, g, o = np.split(pre, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs), h, c


def rnn(activation: Callable[[Array], Array]) -> Callable[..., tuple[Array, Array]]:
    """Step by step."""

    def run(x: Array, h: Array, w_ih: Array, w_hh: Array, *biases: Array) -> tuple[Array, Array]:
        outputs = []
        for step in x:
            h = activation(step @ w_ih + h @ w_hh + sum(biases))
            outputs.append(h)
        return np.stack(outputs), h

    return run


def relu(x: Array) -> Any:
    """max(x, 0)."""
    return np.maximum(x, 0)


# ---- costs --------------------------------------------------------------------------------------


def matmul_flops(a: Array, b: Array, *_: Array) -> float:
    """A multiplication and an addition for each of rows x inner x columns."""
    return float(2 * a.size * b.shape[-1])


def conv_flops(x: Array, w: Array, *_: Array) -> float:
    """2 * K * K * C_in * C_out for each output pixel (stride 1, same size)."""
    return float(2 * x.size // x.shape[3] * w.size)


def recurrent_flops(x: Array, h: Array, *rest: Array) -> float:
    """Both matrix products of every step."""
    weights = [w.size for w in rest if w.ndim == 2]
    return float(2 * x.shape[0] * x.shape[1] * sum(weights))


# ---- the cases ----------------------------------------------------------------------------------

M = (64, 4096)  # for timing: 1 MB of float32, beyond the caches' first two levels

ELEMENTWISE = [
    OpCase("add", ops.EWiseAdd, ops.add, np.add, normal((2, 3), (3,)), normal(M, M)),
    OpCase("add-scalar", ops.AddScalar, lambda a: a + 2.5, lambda a: a + 2.5, normal((2, 3))),
    OpCase("subtract", ops.EWiseSub, ops.subtract, np.subtract, normal((3, 1), (2, 1, 3))),
    OpCase("subtract-scalar", ops.SubScalar, lambda a: a - 2, lambda a: a - 2, normal((2, 3))),
    OpCase("scalar-subtract", ops.ScalarSub, lambda a: 2 - a, lambda a: 2 - a, normal((2, 3))),
    OpCase("multiply", ops.EWiseMul, ops.multiply, np.multiply, normal((2, 1), (3,)), normal(M, M)),
    OpCase("mul-scalar", ops.MulScalar, lambda a: a * -1.5, lambda a: a * -1.5, normal((2, 3))),
    OpCase("divide", ops.EWiseDiv, ops.divide, np.divide, normal((2, 3), (3,)), normal(M, M)),
    OpCase("divide-scalar", ops.DivScalar, lambda a: a / 3, lambda a: a / 3, normal((2, 3))),
    OpCase("scalar-divide", ops.ScalarDiv, lambda a: 3 / a, lambda a: 3 / a, normal((2, 3))),
    # power rounds the exponent's logarithm: its error grows with b * log(a)
    OpCase("power", ops.EWisePow, ops.power, np.power, positive((2, 3), (3,)), positive(M, M), 24),
    OpCase("power-scalar", ops.PowerScalar, lambda a: a**3, lambda a: a**3, normal((2, 3))),
    OpCase("power-half", ops.PowerScalar, lambda a: a**0.5, lambda a: a**0.5, positive((2, 3))),
    OpCase("scalar-power", ops.ScalarPower, lambda a: 2**a, lambda a: 2**a, normal((2, 3))),
    OpCase("maximum", ops.Maximum, ops.maximum, np.maximum, distinct((2, 3), (3,)), normal(M, M)),
    OpCase("negate", ops.Negate, ops.negate, np.negative, normal((2, 3)), normal(M)),
    OpCase("log", ops.Log, ops.log, np.log, positive((2, 3)), positive(M)),
    OpCase("exp", ops.Exp, ops.exp, np.exp, normal((2, 3)), normal(M)),
    OpCase("sqrt", ops.Sqrt, ops.sqrt, np.sqrt, positive((2, 3)), positive(M)),
    OpCase("relu", ops.ReLU, ops.relu, relu, normal((2, 3)), normal(M)),
    OpCase("tanh", ops.Tanh, ops.tanh, np.tanh, normal((2, 3)), normal(M)),
    OpCase("sigmoid", ops.Sigmoid, ops.sigmoid, sigmoid, normal((2, 3)), normal(M)),
    OpCase(
        "fused-add-scalars",
        ops.FusedAddScalars,
        lambda a: ops.fused_add_scalars(a, 1, -2.5),
        lambda a: (a + 1, a - 2.5),
        normal((2, 3)),
    ),
    OpCase("to", ops.ToDevice, lambda a: ops.ToDevice(a.device)(a), lambda a: a, normal((2, 3))),
    OpCase("alias", ops.Alias, lambda a: ops.Alias()(a), lambda a: a, normal((2, 3))),
    OpCase("copy", ops.Copy, lambda a: ops.Copy()(a), lambda a: a, normal((2, 3))),
    OpCase(
        "relu-grad",
        ops.ReLUGrad,
        lambda dy, y: ops.ReLUGrad()(dy, y),
        lambda dy, y: dy * (y > 0),
        normal((2, 3), (2, 3)),
    ),
    OpCase(
        "tanh-grad",
        ops.TanhGrad,
        lambda dy, y: ops.TanhGrad()(dy, y),
        lambda dy, y: dy * (1 - y * y),
        normal((2, 3), (2, 3)),
        scale=8,
    ),
    OpCase(
        "sigmoid-grad",
        ops.SigmoidGrad,
        lambda dy, y: ops.SigmoidGrad()(dy, y),
        lambda dy, y: dy * y * (1 - y),
        normal((2, 3), (2, 3)),
        scale=8,
    ),
]

REDUCE = [
    OpCase("sum", ops.Summation, ops.summation, np.sum, normal((2, 3)), normal(M), scale=12),
    OpCase(
        "sum-axes",
        ops.Summation,
        lambda a: ops.summation(a, (0, -1)),
        lambda a: a.sum((0, 2)),
        normal((2, 3, 2)),
        scale=8,
    ),
    OpCase(
        "sum-keepdims",
        ops.Summation,
        lambda a: ops.summation(a, 1, keepdims=True),
        lambda a: a.sum(1, keepdims=True),
        normal((2, 3, 2)),
        scale=6,
    ),
    OpCase("mean", ops.Mean, ops.mean, np.mean, normal((2, 3)), normal(M), scale=2),
    OpCase(
        "mean-axes",
        ops.Mean,
        lambda a: ops.mean(a, (1,)),
        lambda a: a.mean(1),
        normal((2, 3, 2)),
        scale=2,
    ),
    OpCase("max", ops.Max, ops.max, np.max, distinct((2, 3)), normal(M)),
    OpCase(
        "max-axes",
        ops.Max,
        lambda a: ops.max(a, (0, 2), keepdims=True),
        lambda a: a.max((0, 2), keepdims=True),
        distinct((2, 3, 2)),
    ),
]

SHAPE = [
    OpCase(
        "transpose", ops.Transpose, ops.transpose, lambda a: a.swapaxes(-1, -2), normal((2, 3, 2))
    ),
    OpCase(
        "transpose-axes",
        ops.Transpose,
        lambda a: ops.transpose(a, (0, -1)),
        lambda a: a.swapaxes(0, -1),
        normal((2, 3, 4)),
    ),
    OpCase(
        "permute",
        ops.Permute,
        lambda a: ops.permute(a, (2, 0, 1)),
        lambda a: a.transpose(2, 0, 1),
        normal((2, 3, 4)),
    ),
    OpCase(
        "reshape",
        ops.Reshape,
        lambda a: ops.reshape(a, (3, -1)),
        lambda a: a.reshape(3, -1),
        normal((2, 3)),
    ),
    OpCase(
        "broadcast-to",
        ops.BroadcastTo,
        lambda a: ops.broadcast_to(a, (2, 3, 4)),
        lambda a: np.broadcast_to(a, (2, 3, 4)),
        normal((3, 1)),
    ),
    OpCase("flip", ops.Flip, lambda a: ops.flip(a, 0), lambda a: a[::-1], normal((2, 3))),
    OpCase(
        "getitem",
        ops.GetItem,
        lambda a: a[1, ::-2, None, ..., 1:],
        lambda a: a[1, ::-2, None, ..., 1:],
        normal((2, 4, 3)),
    ),
    OpCase(
        "putitem",
        ops.PutItem,
        lambda a: ops.PutItem((slice(1, None, 2),), (5, 3))(a),
        lambda a: np.insert(a, [0, 1, 2], 0, axis=0),
        normal((2, 3)),
    ),
    OpCase("dilate", ops.Dilate, lambda a: ops.dilate(a, (0, 2), 2), dilate, normal((2, 2, 2))),
    OpCase(
        "undilate",
        ops.UnDilate,
        lambda a: ops.undilate(a, (0, -1), 2),
        lambda a: a[::3, :, ::3],
        normal((3, 2, 5)),
    ),
    OpCase(
        "stack",
        ops.Stack,
        lambda *a: ops.stack(a, 1),
        lambda *a: np.stack(a, 1),
        normal((2, 3), (2, 3), (2, 3)),
    ),
    OpCase(
        "concatenate",
        ops.Concatenate,
        lambda *a: ops.concatenate(a, 1),
        lambda *a: np.concatenate(a, 1),
        normal((2, 1), (2, 3), (2, 2)),
    ),
    OpCase(
        "split",
        ops.Split,
        lambda a: ops.split(a, 1),
        lambda a: tuple(a.swapaxes(0, 1)),
        normal((2, 3, 2)),
    ),
    OpCase(
        "split-some",
        ops.Split,
        lambda a: ops.split(a, 0)[1],
        lambda a: a[1],
        normal((3, 2)),
    ),
    OpCase(
        "make-tuple",
        ops.MakeTensorTuple,
        ops.make_tuple,
        lambda *a: a,
        normal((2,), (3, 1)),
    ),
    OpCase(
        "tuple-get-item",
        ops.TupleGetItem,
        lambda a: ops.tuple_get_item(ops.fused_add_scalars(a, 1, 2), 1),
        lambda a: a + 2,
        normal((2, 3)),
    ),
]

MATMUL = [
    OpCase(
        "matmul",
        ops.MatMul,
        ops.matmul,
        np.matmul,
        normal((2, 3), (3, 4)),
        normal((512, 512), (512, 512)),
        scale=12,
        flops=matmul_flops,
    ),
    OpCase(
        "matmul-batched",
        ops.MatMul,
        ops.matmul,
        np.matmul,
        normal((2, 1, 2, 3), (2, 3, 2)),
        normal((16, 128, 128), (16, 128, 128)),
        scale=12,
        flops=matmul_flops,
    ),
    OpCase("matmul-vector", ops.MatMul, ops.matmul, np.matmul, normal((3,), (2, 3, 2)), scale=12),
    OpCase(
        "linear",
        ops.Linear,
        ops.linear,
        lambda x, w, b: x @ w + b,
        normal((2, 2, 3), (3, 4), (1, 4)),
        normal((256, 512), (512, 512), (512,)),
        scale=14,
        flops=matmul_flops,
    ),
]

CONV = [
    OpCase(
        "conv",
        ops.Conv,
        lambda x, w: ops.conv(x, w, padding=1),
        conv(1, 1),
        normal((1, 3, 3, 2), (3, 3, 2, 2)),
        normal((16, 32, 32, 32), (3, 3, 32, 32)),
        scale=72,
        flops=conv_flops,
    ),
    OpCase(
        "conv-stride-bias",
        ops.Conv,
        lambda x, w, b: ops.conv(x, w, 2, 1, b),
        conv(2, 1),
        normal((2, 5, 4, 1), (3, 3, 1, 2), (2,)),
        scale=38,
    ),
    OpCase(
        "conv-channels-first",
        ops.Conv,
        lambda x, w, b: ops.conv(x, w, 2, 1, b, channels_first=True),
        lambda x, w, b: conv(2, 1)(x.transpose(0, 2, 3, 1), w, b).transpose(0, 3, 1, 2),
        normal((2, 2, 5, 4), (3, 3, 2, 2), (2,)),
        scale=72,
    ),
]

POOL = [
    OpCase(
        "max-pool",
        ops.MaxPool,
        lambda x: ops.max_pool(x, 2),
        pool(np.max, 2, 2, 0),
        distinct((2, 4, 4, 2)),
        distinct((32, 32, 32, 64)),
    ),
    OpCase(
        "max-pool-overlap",
        ops.MaxPool,
        lambda x: ops.max_pool(x, (3, 2), 1, (1, 0)),
        pool(np.max, (3, 2), 1, (1, 0), fill=-np.inf),
        distinct((1, 3, 4, 2)),
    ),
    OpCase(
        "max-pool-pick",
        ops.MaxPoolPick,
        lambda a, index: ops.MaxPoolPick(windows("max_pool", 2))(a, index),
        pick,
        lambda rng: (*normal((2, 4, 2, 3))(rng), rng.integers(0, 4, (2, 2, 1, 3))),
    ),
    OpCase(
        "avg-pool",
        ops.AvgPool,
        lambda x: ops.avg_pool(x, 2),
        pool(np.mean, 2, 2, 0),
        normal((2, 4, 4, 2)),
        normal((32, 32, 32, 64)),
        scale=8,
    ),
    OpCase(
        "avg-pool-overlap",
        ops.AvgPool,
        lambda x: ops.avg_pool(x, (3, 2), 1, (1, 0)),
        pool(np.mean, (3, 2), 1, (1, 0)),
        normal((1, 3, 4, 2)),
        scale=12,
    ),
]

NORMALIZE = [
    OpCase(
        "batch-norm",
        ops.BatchNorm,
        ops.batch_norm,
        batch_norm(relu=False),
        normal((4, 2), (2,), (2,)),
        roundings=32,
        scale=4,
    ),
    OpCase(
        "batch-norm-image-relu",
        ops.BatchNorm,
        lambda x, w, b: ops.batch_norm(x, w, b, relu=True),
        batch_norm(relu=True),
        normal((2, 2, 2, 1), (2,), (2,)),
        normal((32, 32, 32, 32), (32,), (32,)),
        roundings=32,
        scale=4,
    ),
    OpCase(
        "batch-norm-eval",
        ops.BatchNormEval,
        ops.batch_norm_eval,
        batch_norm_eval,
        lambda rng: (
            *normal((2, 2), (2,))(rng),
            *positive((2,))(rng),
            *normal((2,), (2,))(rng),
        ),
        roundings=32,
        scale=4,
    ),
    OpCase(
        "layer-norm",
        ops.LayerNorm,
        ops.layer_norm,
        layer_norm,
        normal((2, 1, 4), (4,), (4,)),
        normal((512, 512), (512,), (512,)),
        roundings=32,
        scale=4,
    ),
]

SOFTMAX = [
    OpCase(
        "logsumexp",
        ops.LogSumExp,
        lambda a: ops.logsumexp(a, (0, 2)),
        lambda a: logsumexp(a, (0, 2)),
        normal((2, 3, 2)),
        scale=4,
    ),
    OpCase(
        "logsumexp-all",
        ops.LogSumExp,
        ops.logsumexp,
        lambda a: logsumexp(a, (0, 1)),
        normal((2, 3)),
        scale=4,
    ),
    OpCase(
        "softmax",
        ops.Softmax,
        ops.softmax,
        lambda a: np.exp(a - logsumexp(a, -1, keepdims=True)),
        normal((2, 3)),
        normal(M),
        roundings=16,
    ),
    OpCase(
        "logsoftmax",
        ops.LogSoftmax,
        ops.logsoftmax,
        lambda a: a - logsumexp(a, -1, keepdims=True),
        normal((2, 1, 3)),
        normal(M),
        scale=4,
    ),
    OpCase(
        "softmax-cross-entropy",
        ops.SoftmaxCrossEntropy,
        ops.softmax_cross_entropy,
        cross_entropy,
        labelled((3, 4)),
        labelled((256, 4096)),
        scale=4,
    ),
    OpCase(
        "softmax-cross-entropy-smoothed",
        ops.SoftmaxCrossEntropy,
        lambda logits, y: ops.softmax_cross_entropy(logits, y, 0.2),
        lambda logits, y: 0.8 * cross_entropy(logits, y) + 0.2 * smooth_entropy(logits),
        labelled((3, 4)),
        scale=4,
    ),
]

INDEX = [
    OpCase(
        "embedding",
        ops.Embedding,
        ops.embedding,
        lambda i, w: w[i],
        ids(4, (2, 3), (4, 2)),
        ids(4096, (1024,), (4096, 256)),
    ),
]

RECURRENT = [
    OpCase(
        "lstm",
        ops.LSTM,
        ops.lstm,
        lstm,
        normal((2, 1, 2), (1, 2), (1, 2), (2, 8), (2, 8), (8,), (8,)),
        normal((35, 20, 200), (20, 200), (20, 200), (200, 800), (200, 800), (800,), (800,)),
        # Both products cancel, and a step multiplies the last one's error by about |W_hh|.
        roundings=64,
        flops=recurrent_flops,
    ),
    OpCase(
        "lstm-no-bias",
        ops.LSTM,
        lambda *a: ops.lstm(*a)[0],
        lambda *a: lstm(*a)[0],
        normal((3, 2, 1), (2, 1), (2, 1), (1, 4), (1, 4)),
        roundings=64,
    ),
    OpCase(
        "lstm-one-step",
        ops.LSTM,
        ops.lstm,
        lstm,
        normal((1, 2, 2), (2, 2), (2, 2), (2, 8), (2, 8)),
        roundings=64,
    ),
    OpCase(
        "rnn-tanh",
        ops.RNN,
        ops.rnn,
        rnn(np.tanh),
        normal((3, 2, 2), (2, 2), (2, 2), (2, 2), (2,), (2,)),
        roundings=64,
        flops=recurrent_flops,
    ),
    OpCase(
        "rnn-relu-one-bias",
        ops.RNN,
        lambda x, h, w, u, b: ops.rnn(x, h, w, u, None, b, nonlinearity="relu")[1],
        lambda *a: rnn(relu)(*a)[1],
        normal((2, 2, 1), (2, 2), (1, 2), (2, 2), (2,)),
        roundings=64,
    ),
    OpCase(
        "rnn-one-step",
        ops.RNN,
        lambda *a: ops.rnn(*a)[0],
        lambda *a: rnn(np.tanh)(*a)[0],
        normal((1, 2, 3), (2, 2), (3, 2), (2, 2)),
        roundings=64,
    ),
]

CASES: list[OpCase] = [
    *ELEMENTWISE,
    *REDUCE,
    *SHAPE,
    *MATMUL,
    *CONV,
    *POOL,
    *NORMALIZE,
    *SOFTMAX,
    *INDEX,
    *RECURRENT,
]
