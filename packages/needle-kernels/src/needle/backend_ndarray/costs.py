"""What each kernel call has to do: floating-point operations and bytes, from its operands.

COSTS has one entry for every kernel of the table in csrc/kernels.h; a kernel without one fails the
tests. What is counted is the definition in `reference/`, not what a clever kernel gets away with:

- Flops: each addition, subtraction, multiplication, division, comparison, maximum, square root and
  each exp, log, tanh, sigmoid or power is one. A multiply-add is two.
- Convolutions, forward and backward, count only the taps that lie inside the image: products with
  padding are no work.
- Bytes: every distinct element of every operand once, and once more where it is read and written.
  A broadcast operand has few distinct elements. Rows of a table count where an id names them.

Counting is for whole operands: a cache that keeps an operand between two calls makes fewer bytes
of them, and a rate above the memory's peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from needle.backend_ndarray.extension import cpu as _cpu

__all__ = ["COSTS", "Cost", "KernelCall", "Operand", "Recorder", "cost_of", "taps_inside"]


class Operand(NamedTuple):
    """An array as a kernel saw it."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""

    @property
    def size(self) -> int:
        """How many elements it shows."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of its distinct elements: an axis of stride 0 repeats one."""
        if not self.size:
            return 0
        axes = zip(self.shape, self.strides, strict=True)
        return math.prod(n for n, stride in axes if stride) * ITEM_SIZE[self.dtype]


ITEM_SIZE: Final = {"float32": 4, "float64": 8, "int32": 4, "int64": 8, "uint8": 1, "bool": 1}

Operands = tuple[Operand | None, ...]
Scalars = tuple[float, ...]
Count = Callable[[Operands, Scalars], int]


class KernelCall(NamedTuple):
    """One call of one kernel, as a Recorder keeps it."""

    device: str
    """ "cpu", "reference" or "cuda"."""
    kernel: str
    thread: int
    """Threads are numbered 1, 2, ... as they first run a recorded kernel."""
    start: int
    """In ns, on a clock of its own."""
    duration: int
    """In ns."""
    operands: Operands
    """Outputs first, in the order of the kernel table; None where one was absent."""
    scalars: Scalars

    def describe(self) -> str:
        """The operands as text: `float32(2,3) none float32(3)`."""
        return " ".join(
            "none" if a is None else f"{a.dtype}({','.join(map(str, a.shape))})"
            for a in self.operands
        )


class Recorder:
    """Keeps every kernel call of the process, all threads and devices, from start to stop.

    Several may run at once. A call of few operands takes some 0.3 KB; `take` gives them up.
    """

    def __init__(self) -> None:
        """Records nothing until `start`."""
        self._recorder = _cpu.Recorder()

    def start(self) -> None:
        """Begins, or goes on."""
        self._recorder.start()

    def stop(self) -> None:
        """Ends; what was recorded stays."""
        self._recorder.stop()

    def take(self) -> list[KernelCall]:
        """What was recorded since the last `take`, in the order in which calls ended."""
        return [
            call._replace(operands=tuple([a and Operand(*a) for a in call.operands]))
            for call in map(KernelCall._make, self._recorder.take())
        ]


# ---- counting -----------------------------------------------------------------------------------


def array(operands: Operands, index: int) -> Operand:
    """An operand that the kernel table says is always there."""
    operand = operands[index]
    if operand is None:
        raise ValueError(f"costs: operand {index} is absent: got {operands}: need an array")
    return operand


def per_element(index: int, flops: int) -> Count:
    """So many flops for each element of one operand."""
    return lambda operands, scalars: flops * array(operands, index).size


def each_once(operands: Operands, scalars: Scalars = ()) -> int:
    """The bytes of all operands."""
    return sum([a.nbytes for a in operands if a is not None])


def matmul_flops(operands: Operands, scalars: Scalars) -> int:
    """2 M N K per product; bias, activation and accumulating are one each per output."""
    out, a, _, bias = operands[0], array(operands, 1), operands[2], operands[3]
    activation, accumulate = scalars
    extra = (bias is not None) + (activation != 0) + (accumulate != 0)
    return (2 * a.shape[-1] + extra) * array((out,), 0).size


def matmul_bytes(operands: Operands, scalars: Scalars) -> int:
    """Every operand once; an output that is added to, twice."""
    return each_once(operands) + (array(operands, 0).nbytes if scalars[1] else 0)


def linear_weight_grad_flops(operands: Operands, scalars: Scalars) -> int:
    """dw, db, x, dy: the product, and one addition per element of dy."""
    dw, dy = array(operands, 0), array(operands, 3)
    return 2 * dy.shape[0] * dw.size + dy.size


def taps_inside(size: int, kernel: int, out: int, stride: int, padding: int) -> int:
    """Over all outputs along one axis, how many of the kernel's taps lie inside the image.

    Tap k of output o reads pixel o * stride + k - padding.
    """
    first = [o * stride - padding for o in range(out)]
    return sum(max(0, min(kernel, size - f) - max(0, -f)) for f in first)


def conv_flops(x: Operand, w: Operand, y: Operand, stride: float, padding: float) -> int:
    """Two for each pixel of x, weight and output that meet: forward and in both gradients."""
    _, height, width, _ = x.shape
    kernel, _, channels_in, channels_out = w.shape
    settings = int(stride), int(padding)
    rows = taps_inside(height, kernel, y.shape[1], *settings)
    columns = taps_inside(width, kernel, y.shape[2], *settings)
    return 2 * x.shape[0] * rows * columns * channels_in * channels_out


def conv_forward(operands: Operands, scalars: Scalars) -> int:
    """`conv`: the products, and the epilogue once per output."""
    y, x, w = (array(operands, i) for i in range(3))
    stride, padding, activation = scalars
    epilogue = (operands[3] is not None) + (activation != 0)
    return conv_flops(x, w, y, stride, padding) + epilogue * y.size


def conv_input_grad(operands: Operands, scalars: Scalars) -> int:
    """dx, dy, w."""
    dx, dy, w = (array(operands, i) for i in range(3))
    return conv_flops(dx, w, dy, *scalars)


def conv_weight_grad(operands: Operands, scalars: Scalars) -> int:
    """dw, db or None, x, dy: the products, and one addition per output for the bias."""
    dw, x, dy = (array(operands, i) for i in (0, 2, 3))
    return conv_flops(x, dw, dy, *scalars) + (operands[1] is not None) * dy.size


def pool_flops(windows: int, pixels: int, each: int = 0) -> Count:
    """One per pixel under each window, and so many per window; where the two operands are."""

    def count(operands: Operands, scalars: Scalars) -> int:
        y, x = array(operands, windows), array(operands, pixels)
        kernel, stride, padding = (tuple(map(int, scalars[i : i + 2])) for i in (0, 2, 4))
        sizes = zip(x.shape[1:3], kernel, y.shape[1:3], stride, padding, strict=True)
        along = [taps_inside(*axis) for axis in sizes]
        return x.shape[0] * x.shape[3] * math.prod(along) + each * y.size

    return count


def normalize_flops(index: int, flops: int) -> Count:
    """So many per element of x, one more with relu, the last of two scalars."""
    return lambda operands, scalars: (
        (flops + (len(scalars) > 1 and scalars[1] != 0)) * array(operands, index).size
    )


def lstm_sequence_flops(operands: Operands, scalars: Scalars) -> int:
    """Each step's product with w_hh and its sum with pre, then 9 per hidden unit: lstm_cell."""
    gates, w = array(operands, 2), array(operands, 6)
    return (2 * w.shape[0] + 1) * gates.size + 9 * (gates.size // 4)


def lstm_sequence_grad_flops(operands: Operands, scalars: Scalars) -> int:
    """Each step's product with w_hh^T, lstm_cell_grad's 23 per hidden unit, and adding dy."""
    dpre, dy, w = array(operands, 0), operands[3], array(operands, 8)
    return 2 * w.shape[0] * dpre.size + 23 * (dpre.size // 4) + (dy.size if dy else 0)


def rnn_sequence_flops(operands: Operands, scalars: Scalars) -> int:
    """Each step's product with w_hh, its sum with pre, and the activation."""
    pre, w = array(operands, 1), array(operands, 3)
    return (2 * w.shape[0] + 2) * pre.size


def rnn_sequence_grad_flops(operands: Operands, scalars: Scalars) -> int:
    """Each step's product with w_hh^T, the activation's gradient (relu 1, tanh 3), adding dy."""
    dpre, dy, w = array(operands, 0), operands[2], array(operands, 5)
    gradient = 1 if scalars[0] == 1 else 3
    return (2 * w.shape[0] + gradient) * dpre.size + (dy.size if dy else 0)


def gather_bytes(operands: Operands, scalars: Scalars) -> int:
    """out, the ids, and one row of the table per id."""
    out, _, ids = (array(operands, i) for i in range(3))
    return 2 * out.nbytes + ids.nbytes


def scatter_add_bytes(operands: Operands, scalars: Scalars) -> int:
    """src, the ids, and one row of out per id, read and written."""
    _, src, ids = (array(operands, i) for i in range(3))
    rows = src.size * ITEM_SIZE[src.dtype]  # also where one row of src serves many ids
    return src.nbytes + 2 * rows + ids.nbytes


def image_batch_flops(operands: Operands, scalars: Scalars) -> int:
    """A division and an addition per pixel, where there are any: the other steps move pixels."""
    return ((operands[6] is not None) + (operands[7] is not None)) * array(operands, 0).size


def image_batch_bytes(operands: Operands, scalars: Scalars) -> int:
    """All but the data set, of which one image counts for each id, as if none were cut off."""
    out, data = array(operands, 0), array(operands, 1)
    return each_once((out, *operands[2:])) + out.size * ITEM_SIZE[data.dtype]


def cross_entropy_flops(operands: Operands, scalars: Scalars) -> int:
    """Four per logit, as for logsumexp; one more with label smoothing."""
    return (4 + bool(scalars[0])) * array(operands, 2).size


def cross_entropy_grad_flops(operands: Operands, scalars: Scalars) -> int:
    """Three per logit, one more with label smoothing, and one off at each label."""
    return (3 + bool(scalars[0])) * array(operands, 0).size + array(operands, 4).size


def every(first: int, step: int, operands: Operands) -> list[Operand]:
    """The operands that lie so many places apart: one of each parameter."""
    return [a for a in operands[first::step] if a is not None]


def sgd_flops(operands: Operands, scalars: Scalars) -> int:
    """Seven per weight; ten with Nesterov's momentum, four without any."""
    momentum = 10 if scalars[3] else 7
    states = zip(operands[0::3], operands[1::3], strict=True)
    return sum((4 if u is None else momentum) * w.size for w, u in states if w is not None)


def sgd_bytes(operands: Operands, scalars: Scalars) -> int:
    """w and u are read and written, g is read."""
    return each_once(operands) + each_once((*operands[0::3], *operands[1::3]))


def adam_flops(operands: Operands, scalars: Scalars) -> int:
    """Sixteen per weight."""
    return 16 * sum(w.size for w in every(0, 4, operands))


def adam_bytes(operands: Operands, scalars: Scalars) -> int:
    """w, m and v are read and written, g is read."""
    return 2 * each_once(operands) - each_once(operands[3::4])


class Cost(NamedTuple):
    """How to count what a call of one kernel does."""

    flops: Count | None
    """None: it only moves bytes."""
    bytes: Count = each_once


BYTES_ONLY: Final = Cost(None)
ELEMENTWISE: Final = Cost(per_element(0, 1))
REDUCTION: Final = Cost(per_element(1, 1))

COSTS: Final[dict[str, Cost]] = {
    # shape
    "copy": BYTES_ONLY,
    "fill": BYTES_ONLY,
    # elementwise: `*_grad` is a derivative of y and a product
    **dict.fromkeys(("negate", "exp", "log", "tanh", "sigmoid", "relu", "sqrt"), ELEMENTWISE),
    **dict.fromkeys(("abs", "add", "subtract", "multiply", "divide", "power"), ELEMENTWISE),
    **dict.fromkeys(("maximum", "minimum", "equal", "not_equal"), ELEMENTWISE),
    **dict.fromkeys(("less", "less_equal", "greater", "greater_equal"), ELEMENTWISE),
    **dict.fromkeys(("logical_and", "logical_or", "logical_not"), BYTES_ONLY),
    "relu_grad": ELEMENTWISE,
    "tanh_grad": Cost(per_element(0, 3)),
    "sigmoid_grad": Cost(per_element(0, 3)),
    # reduce
    **dict.fromkeys(("sum", "max", "min"), REDUCTION),
    # matmul, conv
    "matmul": Cost(matmul_flops, matmul_bytes),
    "linear_weight_grad": Cost(linear_weight_grad_flops),
    "conv": Cost(conv_forward),
    "conv_input_grad": Cost(conv_input_grad),
    "conv_weight_grad": Cost(conv_weight_grad),
    # pool: a comparison or an addition for each pixel under a window; means divide
    "max_pool": Cost(pool_flops(0, 2)),
    "max_pool_grad": Cost(per_element(1, 1)),
    "max_pool_pick": BYTES_ONLY,
    "avg_pool": Cost(pool_flops(0, 1, 1)),
    "avg_pool_grad": Cost(pool_flops(1, 0, 1)),
    # normalize, per element of x: mean 1, variance 3, xhat 2, weight and bias 2; of the gradients
    # xhat 2, dweight and dbias 3, dx 4, and for a layer norm 4 more for g and its two means
    "batch_norm": Cost(normalize_flops(3, 8)),
    "batch_norm_eval": Cost(normalize_flops(1, 4)),
    "batch_norm_grad": Cost(normalize_flops(4, 9)),
    "layer_norm": Cost(normalize_flops(3, 8)),
    "layer_norm_grad": Cost(normalize_flops(4, 13)),
    # softmax: maximum, shift, exp, sum; then a division, or the log taken off
    "softmax": Cost(per_element(1, 5)),
    "logsoftmax": Cost(per_element(1, 5)),
    "logsumexp": Cost(per_element(1, 4)),
    "softmax_cross_entropy": Cost(cross_entropy_flops),
    "softmax_cross_entropy_grad": Cost(cross_entropy_grad_flops),
    # recurrent, per hidden unit
    "lstm_cell": Cost(per_element(0, 9)),
    "lstm_cell_grad": Cost(per_element(1, 23)),
    "lstm_sequence": Cost(lstm_sequence_flops),
    "lstm_sequence_grad": Cost(lstm_sequence_grad_flops),
    "rnn_sequence": Cost(rnn_sequence_flops),
    "rnn_sequence_grad": Cost(rnn_sequence_grad_flops),
    # index
    "gather": Cost(None, gather_bytes),
    "scatter_add": Cost(per_element(1, 1), scatter_add_bytes),
    "one_hot": BYTES_ONLY,
    # images
    "image_batch": Cost(image_batch_flops, image_batch_bytes),
    # optimize
    "moving_average": Cost(
        lambda operands, _: 3 * sum(a.size for a in every(0, 2, operands)),
        lambda operands, _: each_once(operands) + each_once(operands[0::2]),
    ),
    "sgd": Cost(sgd_flops, sgd_bytes),
    "adam": Cost(adam_flops, adam_bytes),
    "sum_squares": Cost(lambda operands, _: 2 * sum(a.size for a in every(1, 1, operands))),
    "scale": Cost(
        lambda operands, _: sum(a.size for a in every(0, 1, operands)),
        lambda operands, _: 2 * each_once(operands),
    ),
}
"""How much each kernel does, by name."""


def cost_of(call: KernelCall) -> tuple[int, int]:
    """Flops and bytes of one call."""
    cost = COSTS[call.kernel]
    flops = cost.flops(call.operands, call.scalars) if cost.flops else 0
    return flops, cost.bytes(call.operands, call.scalars)
