"""What bench_kernels.py times: every kernel, in needle, NumPy and PyTorch, on equal inputs.

A case is one expression per side; the first argument of each is its library. NumPy's is, where a
case has none of its own, needle's on the device `cpu_numpy()`: the kernel's twin.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
from bench_worker import Array, Work, as_arrays

Expression = Callable[..., Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Ids:
    """An input of whole numbers below `count`."""

    count: int
    shape: Shape


@dataclass(frozen=True)
class Mask:
    """An input of bools."""

    shape: Shape


@dataclass(frozen=True)
class Weights:
    """A matrix that does not lengthen a vector: a recurrence of many steps stays bounded."""

    shape: Shape


@dataclass(frozen=True)
class Case:
    """One computation."""

    inputs: tuple[Shape | Ids | Mask | Weights, ...]
    needle: Expression
    torch: Expression | None
    numpy: Expression | None = None
    ready: Callable[..., tuple[Any, ...]] = lambda torch, *arrays: arrays
    """Turns PyTorch's inputs into the layout it likes best, before anything is timed."""
    dtype: str = "float32"
    tolerance: float = 1e-4

    def values(self) -> list[Array]:
        """The inputs: floats between 0.1 and 1."""
        rng = np.random.default_rng(0)
        found: list[Array] = []
        for item in self.inputs:
            if isinstance(item, Ids):
                found.append(rng.integers(0, item.count, item.shape))
            elif isinstance(item, Mask):
                found.append(rng.random(item.shape) < 0.5)
            elif isinstance(item, Weights):
                found.append((rng.uniform(0.1, 1, item.shape) / max(item.shape)).astype(self.dtype))
            else:
                found.append(rng.uniform(0.1, 1, item).astype(self.dtype))
        return found


def make(side: str, name: str) -> Work | None:
    """The case on one side, or None where that side has nothing like it."""
    case = CASES[name]
    return TORCH(case) if side == "torch" else NUMPY(case) if side == "numpy" else NEEDLE(case)


def NEEDLE(case: Case, numpy_device: bool = False) -> Work:
    """needle, on `cpu()` or on the device of the NumPy twins."""
    from needle import backend_ndarray as nd

    device = nd.cpu_numpy() if numpy_device else nd.cpu()
    arrays = [nd.NDArray(x, device=device, dtype=x.dtype) for x in case.values()]
    return Work(lambda: case.needle(nd, *arrays), np.__version__)


def NUMPY(case: Case) -> Work:
    """NumPy's own expression, or the twin."""
    if case.numpy is None:
        return NEEDLE(case, numpy_device=True)
    expression, values = case.numpy, case.values()
    return Work(lambda: expression(np, *values), np.__version__)


def TORCH(case: Case) -> Work | None:
    """PyTorch, without gradients."""
    import torch

    if case.torch is None:
        return None
    torch.set_grad_enabled(False)
    expression = case.torch
    arrays = case.ready(torch, *map(torch.from_numpy, case.values()))
    return Work(lambda: expression(torch, *arrays), torch.__version__, torch.set_num_threads)


CASES: dict[str, Case] = {}
SIZES: dict[str, Shape] = {"tiny": (8, 8), "small": (64, 256), "medium": (1024, 1024)} | {
    "large": (4096, 4096)
}

# ---- elementwise --------------------------------------------------------------------------------

OPERATORS: dict[str, Expression] = {
    "add": lambda m, a, b: a + b,
    "subtract": lambda m, a, b: a - b,
    "multiply": lambda m, a, b: a * b,
    "divide": lambda m, a, b: a / b,
    "power": lambda m, a, b: a**b,
    "negate": lambda m, a: -a,
    "equal": lambda m, a, b: a == b,
    "not_equal": lambda m, a, b: a != b,
    "less": lambda m, a, b: a < b,
    "less_equal": lambda m, a, b: a <= b,
    "greater": lambda m, a, b: a > b,
    "greater_equal": lambda m, a, b: a >= b,
}
FUNCTIONS: dict[str, Expression] = {
    "exp": lambda m, a: m.exp(a),
    "log": lambda m, a: m.log(a),
    "tanh": lambda m, a: m.tanh(a),
    "sqrt": lambda m, a: m.sqrt(a),
    "abs": lambda m, a: m.abs(a),
    "maximum": lambda m, a, b: m.maximum(a, b),
    "minimum": lambda m, a, b: m.minimum(a, b),
    "logical_and": lambda m, a, b: m.logical_and(a, b),
    "logical_or": lambda m, a, b: m.logical_or(a, b),
    "logical_not": lambda m, a: m.logical_not(a),
}
OFTEN = ("add", "multiply", "exp", "tanh", "sigmoid", "relu")
"""Those timed at every size; the others at the two ends."""


def sizes_of(name: str) -> dict[str, Shape]:
    """The sizes that an elementwise case is timed at."""
    return SIZES if name in OFTEN else {size: SIZES[size] for size in ("tiny", "large")}


for name, same in (OPERATORS | FUNCTIONS).items():
    for size, shape in sizes_of(name).items():
        item: Any = Mask(shape) if name.startswith("logical") else shape
        count = same.__code__.co_argcount - 1
        CASES[f"{name}-{size}"] = Case((item,) * count, same, same, same)

for size, shape in SIZES.items():
    CASES |= {
        f"relu-{size}": Case(
            (shape,), lambda m, a: m.relu(a), lambda m, a: m.relu(a), lambda m, a: m.maximum(a, 0)
        ),
        f"sigmoid-{size}": Case(
            (shape,),
            lambda m, a: m.sigmoid(a),
            lambda m, a: m.sigmoid(a),
            lambda m, a: 1 / (1 + m.exp(-a)),
        ),
        f"add-row-{size}": Case(
            (shape, shape[1:]), OPERATORS["add"], OPERATORS["add"], OPERATORS["add"]
        ),
    }
for size in ("tiny", "large"):
    pair = (SIZES[size],) * 2
    CASES |= {
        f"relu_grad-{size}": Case(
            pair,
            lambda m, dy, y: m.relu_grad(dy, y),
            lambda m, dy, y: m.ops.aten.threshold_backward(dy, y, 0),
        ),
        f"tanh_grad-{size}": Case(
            pair,
            lambda m, dy, y: m.tanh_grad(dy, y),
            lambda m, dy, y: m.ops.aten.tanh_backward(dy, y),
        ),
        f"sigmoid_grad-{size}": Case(
            pair,
            lambda m, dy, y: m.sigmoid_grad(dy, y),
            lambda m, dy, y: m.ops.aten.sigmoid_backward(dy, y),
        ),
    }

# ---- shape, reduce ------------------------------------------------------------------------------

for size, shape in SIZES.items():
    CASES |= {
        f"copy-{size}": Case(
            (shape,), lambda m, a: a.copy(), lambda m, a: a.clone(), lambda m, a: a.copy()
        ),
        f"transpose-{size}": Case(
            (shape,),
            lambda m, a: a.T.compact(),
            lambda m, a: a.T.contiguous(),
            lambda m, a: m.ascontiguousarray(a.T),
        ),
        f"sum-{size}": Case(
            (shape,), lambda m, a: a.sum(), lambda m, a: a.sum(), lambda m, a: a.sum()
        ),
        f"sum-rows-{size}": Case(
            (shape,), lambda m, a: a.sum(1), lambda m, a: a.sum(1), lambda m, a: a.sum(1)
        ),
        f"sum-columns-{size}": Case(
            (shape,), lambda m, a: a.sum(0), lambda m, a: a.sum(0), lambda m, a: a.sum(0)
        ),
    }
for size in ("tiny", "large"):
    shape = SIZES[size]
    CASES |= {
        f"max-rows-{size}": Case(
            (shape,), lambda m, a: m.max(a, 1), lambda m, a: a.amax(1), lambda m, a: a.max(1)
        ),
        f"min-columns-{size}": Case(
            (shape,), lambda m, a: m.min(a, 0), lambda m, a: a.amin(0), lambda m, a: a.min(0)
        ),
        f"fill-{size}": Case(
            (shape,),
            lambda m, a: m.full(a.shape, 1.5),
            lambda m, a: m.full(a.shape, 1.5),
            lambda m, a: m.full(a.shape, 1.5, "float32"),
        ),
        f"cast-{size}": Case(
            (shape,),
            lambda m, a: a.astype("float64"),
            lambda m, a: a.double(),
            lambda m, a: a.astype("float64"),
        ),
    }

for width in (10, 64):
    shape = (2**24 // width, width)
    CASES |= {
        f"sum-rows-of-{width}-large": Case(
            (shape,), lambda m, a: a.sum(1), lambda m, a: a.sum(1), lambda m, a: a.sum(1)
        ),
        f"max-rows-of-{width}-large": Case(
            (shape,), lambda m, a: m.max(a, 1), lambda m, a: a.amax(1), lambda m, a: a.max(1)
        ),
    }

# ---- operands that do not lie in order, of up to 64 MB ------------------------------------------

Views = Callable[..., tuple[Any, ...]]
IN_PLACE: dict[str, tuple[Expression, Expression, Expression]] = {
    # needle's, NumPy's, PyTorch's: into memory that it has, which is its fastest way
    "add": (OPERATORS["add"], OPERATORS["add"], lambda m, out, a, b: m.add(a, b, out=out)),
    "negate": (OPERATORS["negate"],) * 2 + (lambda m, out, a: m.neg(a, out=out),),
    "exp": (FUNCTIONS["exp"],) * 2 + (lambda m, out, a: m.exp(a, out=out),),
    "copy": (
        lambda m, a: a.compact(),
        lambda m, a: m.ascontiguousarray(a),
        lambda m, out, a: out.copy_(a),
    ),
    "sum-rows": (lambda m, a: a.sum(1),) * 2 + (lambda m, out, a: m.sum(a, 1, out=out),),
    "sum-columns": (lambda m, a: a.sum(0),) * 2 + (lambda m, out, a: m.sum(a, 0, out=out),),
    "max-rows": (
        lambda m, a: m.max(a, 1),
        lambda m, a: a.max(1),
        lambda m, out, a: m.amax(a, 1, out=out),
    ),
    "sum-images": (
        lambda m, a: a.sum((2, 3)),
        lambda m, a: a.sum((2, 3)),
        lambda m, out, a: m.sum(a, (2, 3), out=out),
    ),
    "sum-channels": (
        lambda m, a: a.sum((0, 2, 3)),
        lambda m, a: a.sum((0, 2, 3)),
        lambda m, out, a: m.sum(a, (0, 2, 3), out=out),
    ),
}
LARGE, WIDE, HIGH = SIZES["large"], (4096, 8192), (8192, 4096)
IMAGES = (128, 64, 45, 45)
LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[Shape, ...], Views]] = {
    "every-second-item": (
        ("add", "negate", "copy", "sum-rows"),
        (WIDE, WIDE),
        lambda *arrays: tuple(a[:, ::2] for a in arrays),
    ),
    "every-second-row": (
        ("add", "copy", "sum-rows"),
        (HIGH, HIGH),
        lambda *arrays: tuple(a[::2] for a in arrays),
    ),
    "halves-of-rows": (
        ("add", "exp", "copy", "sum-rows", "max-rows"),
        (WIDE, WIDE),
        lambda *arrays: tuple(a[:, :4096] for a in arrays),
    ),
    "halves-of-rows-of-128": (
        ("add", "exp", "copy", "sum-rows", "sum-columns"),
        ((131072, 128),) * 2,
        lambda *arrays: tuple(a[:, :64] for a in arrays),
    ),
    "transposed": (("add",), (LARGE, LARGE), lambda a, b: (a, b.T)),
    "row-and-column": (("add",), ((1, 4096), (4096, 1)), lambda a, b: (a, b)),
    "row-to-rows-of-100": (("add",), ((167772, 100), (100,)), lambda a, b: (a, b)),
    "column-to-rows-of-10": (("add",), ((1677721, 10), (1677721, 1)), lambda a, b: (a, b)),
    "bias-to-images": (("add",), (IMAGES, (64, 1, 1)), lambda a, b: (a, b)),
    "without-border": (("copy", "sum-images"), (IMAGES,), lambda a: (a[:, :, 1:44, 1:44],)),
    "of-images": (("sum-channels",), (IMAGES,), lambda a: (a,)),
}


def layout_case(shapes: tuple[Shape, ...], views: Views, operation: str) -> Case:
    """An operation on views of arrays of these shapes."""
    needle, numpy, torch = IN_PLACE[operation]
    count = needle.__code__.co_argcount - 1

    def ready(m: Any, *arrays: Any) -> tuple[Any, ...]:
        operands = views(*arrays)[:count]
        like = as_arrays(numpy(np, *(a.numpy() for a in operands)))[0]
        return m.empty(like.shape), *operands

    return Case(
        shapes,
        lambda m, *arrays: needle(m, *views(*arrays)[:count]),
        torch,
        lambda m, *arrays: numpy(m, *views(*arrays)[:count]),
        ready=ready,
    )


for layout, (operations, shapes, views) in LAYOUTS.items():
    for operation in operations:
        CASES[f"{operation}-{layout}"] = layout_case(shapes, views, operation)

# ---- matmul -------------------------------------------------------------------------------------

PRODUCTS = [(8, 8, 8), (128, 128, 128), (512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048)]
PRODUCTS += [(700, 200, 10000), (2048, 288, 32), (8192, 147, 16), (128, 1152, 128)]
PRODUCTS += [(20, 200, 800), (20, 650, 2600), (700, 10000, 200), (1, 1024, 1024), (1024, 1024, 1)]
product: Expression = lambda m, a, b: a @ b  # noqa: E731
for rows, depth, columns in PRODUCTS:
    CASES[f"matmul-{rows}x{depth}x{columns}"] = Case(
        ((rows, depth), (depth, columns)), product, product, product
    )
square = ((1024, 1024), (1024, 1024))
left: Expression = lambda m, a, b: a.T @ b  # noqa: E731
right: Expression = lambda m, a, b: a @ b.T  # noqa: E731
CASES |= {
    "matmul-1024-left-transposed": Case(square, left, left, left),
    "matmul-1024-right-transposed": Case(square, right, right, right),
    "matmul-1x1024-right-transposed": Case(((1, 1024), (1024, 1024)), right, right, right),
    "matmul-20x1024-right-transposed": Case(((20, 1024), (1024, 1024)), right, right, right),
    "matmul-1024-float64": Case(square, product, product, product, dtype="float64"),
    "matmul-64-of-128": Case(((64, 128, 128),) * 2, product, product, product),
    "matmul-bias-relu-512": Case(
        ((512, 512), (512, 512), (512,)),
        lambda m, a, b, c: m.matmul(a, b, c, "relu"),
        lambda m, a, b, c: m.relu(m.addmm(c, a, b)),
        lambda m, a, b, c: m.maximum(a @ b + c, 0),
    ),
}
for name, rows, depth, columns in (("tiny", 8, 8, 8), ("ptb", 700, 200, 10000)):
    CASES[f"linear_weight_grad-{name}"] = Case(
        ((rows, depth), (rows, columns)),
        lambda m, x, dy: m.linear_weight_grad(x, dy),
        lambda m, x, dy: (x.T @ dy, dy.sum(0)),
        lambda m, x, dy: (x.T @ dy, dy.sum(0)),
    )

# ---- conv ---------------------------------------------------------------------------------------

CONVS: dict[str, tuple[Shape, Shape, int, int]] = {
    # x (N, H, W, Ci), w (K, K, Ci, Co), stride, padding: ResNet9's layers, and a large one
    "tiny": ((1, 4, 4, 4), (3, 3, 4, 4), 1, 1),
    "7x7-stride-4": ((128, 32, 32, 3), (7, 7, 3, 16), 4, 3),
    "3x3-stride-2": ((128, 8, 8, 16), (3, 3, 16, 32), 2, 1),
    "3x3-on-4x4": ((128, 4, 4, 32), (3, 3, 32, 32), 1, 1),
    "3x3-on-1x1": ((128, 1, 1, 128), (3, 3, 128, 128), 1, 1),
    "3x3-large": ((32, 56, 56, 64), (3, 3, 64, 64), 1, 1),
}


def channels_last(torch: Any, image: Any) -> Any:
    """(N, H, W, C) as PyTorch's (N, C, H, W), channels last in memory."""
    return image.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def conv_case(x: Shape, w: Shape, stride: int, padding: int) -> dict[str, Case]:
    """The three kernels of one convolution."""
    out = (x[1] + 2 * padding - w[0]) // stride + 1
    y = (x[0], out, out, w[3])

    def ready(torch: Any, *arrays: Any) -> tuple[Any, ...]:
        found = []
        for array, is_weight in zip(arrays, (a.shape == w for a in arrays), strict=True):
            turned = array.permute(3, 2, 0, 1) if is_weight else array.permute(0, 3, 1, 2)
            found.append(turned.contiguous(memory_format=torch.channels_last))
        return tuple(found)

    def back(m: Any, dy: Any, x: Any, w: Any, mask: list[bool]) -> Any:
        settings = (None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask)
        return m.ops.aten.convolution_backward(dy, x, w, *settings)

    return {
        "conv": Case(
            (x, w),
            lambda m, a, b: m.conv(a, b, None, stride, padding),
            lambda m, a, b: m.conv2d(a, b, None, stride, padding).permute(0, 2, 3, 1),
            ready=ready,
        ),
        "conv_input_grad": Case(
            (y, x, w),
            lambda m, dy, a, b: m.conv_input_grad(dy, b, a.shape, stride, padding),
            lambda m, dy, a, b: back(m, dy, a, b, [True, False, False])[0].permute(0, 2, 3, 1),
            ready=ready,
        ),
        "conv_weight_grad": Case(
            (y, x, w),
            lambda m, dy, a, b: m.conv_weight_grad(a, dy, b.shape[0], stride, padding),
            lambda m, dy, a, b: back(m, dy, a, b, [False, True, False])[1].permute(2, 3, 1, 0),
            ready=ready,
        ),
    }


for size, (x, w, stride, padding) in CONVS.items():
    CASES |= {f"{k}-{size}": case for k, case in conv_case(x, w, stride, padding).items()}

# ---- normalize ----------------------------------------------------------------------------------

EPS = 1e-5
IMAGES: dict[str, Shape] = {"tiny": (2, 2, 2, 8), "resnet9": (128, 8, 8, 16)} | {
    "large": (64, 56, 56, 64)
}


def channels_second(m: Any, *arrays: Any) -> tuple[Any, ...]:
    """Images (N, H, W, C) shown as (N, C, H, W); vectors as they are."""
    return tuple(channels_last(m, a) if a.dim() == 4 else a for a in arrays)


def nchw(a: Any) -> Any:
    """The same view of a needle array."""
    return a.permute((0, 3, 1, 2))


def torch_batch_norm(m: Any, x: Any, w: Any, b: Any) -> Any:
    """y, mean and variance."""
    y, mean, inverse = m.native_batch_norm(x, w, b, None, None, True, 0.0, EPS)
    return y, mean, inverse


def torch_batch_norm_grad(m: Any, dy: Any, x: Any, mean: Any, var: Any, w: Any) -> Any:
    """dx, dweight, dbias; mean and variance are given."""
    masks = [True, True, True]
    inverse = (var + EPS).rsqrt()
    return m.ops.aten.native_batch_norm_backward(
        dy, x, w, None, None, mean, inverse, True, EPS, masks
    )


for size, shape in IMAGES.items():
    vector = shape[3:]
    CASES |= {
        f"batch_norm-{size}": Case(
            (shape, vector, vector),
            lambda m, x, w, b: m.batch_norm(nchw(x), w, b, EPS)[0],
            lambda m, x, w, b: torch_batch_norm(m, x, w, b)[0],
            ready=channels_second,
        ),
        f"batch_norm_eval-{size}": Case(
            (shape, *[vector] * 4),
            lambda m, x, *rest: m.batch_norm_eval(nchw(x), *rest, EPS),
            lambda m, x, mean, var, w, b: m.batch_norm(x, w, b, mean, var, False, 0.0, EPS, False),
            ready=channels_second,
        ),
        f"batch_norm_grad-{size}": Case(
            (shape, shape, *[vector] * 3),
            lambda m, dy, x, *rest: m.batch_norm_grad(nchw(dy), nchw(x), None, *rest, EPS),
            torch_batch_norm_grad,
            ready=channels_second,
            tolerance=1e-3,
        ),
    }

for size, (rows, width) in {"tiny": (8, 8), "ptb": (700, 200), "large": (16384, 1024)}.items():
    shape, vector, column = (rows, width), (width,), (rows,)
    CASES |= {
        f"layer_norm-{size}": Case(
            (shape, vector, vector),
            lambda m, x, w, b: m.layer_norm(x, w, b, EPS)[0],
            lambda m, x, w, b: m.native_layer_norm(x, w.shape, w, b, EPS)[0],
        ),
        f"layer_norm_grad-{size}": Case(
            (shape, shape, column, column, vector),
            lambda m, dy, x, mean, var, w: m.layer_norm_grad(dy, x, mean, var, w, EPS),
            lambda m, dy, x, mean, var, w: m.ops.aten.native_layer_norm_backward(
                dy, x, w.shape, mean[:, None], (var + EPS).rsqrt()[:, None], w, w, [True] * 3
            ),
            tolerance=1e-3,
        ),
    }

# ---- pool: windows of 2 x 2, side by side --------------------------------------------------------


def images_second(m: Any, *arrays: Any) -> tuple[Any, ...]:
    """Every array is an image (N, H, W, C)."""
    return tuple(channels_last(m, a) for a in arrays)


for size, (count, width, channels) in {"tiny": (1, 4, 4), "large": (32, 112, 64)}.items():
    x, y = (count, width, width, channels), (count, width // 2, width // 2, channels)
    CASES |= {
        f"max_pool-{size}": Case(
            (x,),
            lambda m, x: m.max_pool(x, 2)[0],
            lambda m, x: m.max_pool2d(x, 2).permute(0, 2, 3, 1),
            ready=images_second,
        ),
        f"max_pool_grad-{size}": Case(
            (y, Ids(4, y), x), lambda m, dy, at, x: m.max_pool_grad(dy, at, x.shape, 2), None
        ),
        f"max_pool_pick-{size}": Case(
            (x, Ids(4, y)), lambda m, x, at: m.max_pool_pick(x, at, 2), None
        ),
        f"avg_pool-{size}": Case(
            (x,),
            lambda m, x: m.avg_pool(x, 2),
            lambda m, x: m.nn.functional.avg_pool2d(x, 2).permute(0, 2, 3, 1),
            ready=images_second,
        ),
        f"avg_pool_grad-{size}": Case(
            (y, x),
            lambda m, dy, x: m.avg_pool_grad(dy, x.shape, 2),
            lambda m, dy, x: m.ops.aten.avg_pool2d_backward(
                dy, x, [2, 2], [2, 2], [0, 0], False, True, None
            ).permute(0, 2, 3, 1),
            ready=images_second,
        ),
    }

# ---- softmax ------------------------------------------------------------------------------------


for size, (rows, classes) in {"tiny": (8, 10), "resnet9": (128, 10), "ptb": (700, 10000)}.items():
    shape, labels = (rows, classes), Ids(classes, (rows,))
    CASES |= {
        f"softmax-{size}": Case((shape,), lambda m, a: m.softmax(a), lambda m, a: m.softmax(a, 1)),
        f"logsoftmax-{size}": Case(
            (shape,), lambda m, a: m.logsoftmax(a), lambda m, a: m.log_softmax(a, 1)
        ),
        f"logsumexp-{size}": Case(
            (shape,), lambda m, a: m.logsumexp(a, 1), lambda m, a: m.logsumexp(a, 1)
        ),
        f"softmax_cross_entropy-{size}": Case(
            (shape, labels),
            lambda m, a, t: m.softmax_cross_entropy(a, t)[0],
            lambda m, a, t: m.nn.functional.cross_entropy(a, t),
        ),
        f"softmax_cross_entropy_grad-{size}": Case(
            (shape, (rows,), labels, ()),
            lambda m, a, lse, t, dloss: m.softmax_cross_entropy_grad(dloss, a, lse, t),
            None,
        ),
    }

# ---- recurrent, index ---------------------------------------------------------------------------


def torch_lstm_cell(m: Any, pre: Any, c_prev: Any) -> Any:
    """h and c."""
    i, f, g, o = pre.chunk(4, 1)
    c = f.sigmoid() * c_prev + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


for size, (batch, hidden) in {"tiny": (2, 8), "ptb": (20, 200), "large": (4096, 512)}.items():
    gates, state = (batch, 4 * hidden), (batch, hidden)
    CASES |= {
        f"lstm_cell-{size}": Case(
            (gates, state), lambda m, pre, c: m.lstm_cell(pre, c)[:2], torch_lstm_cell
        ),
        f"lstm_cell_grad-{size}": Case(
            (state, state, gates, state, state),
            lambda m, *arrays: m.lstm_cell_grad(*arrays),
            None,
        ),
    }

for size, (batch, hidden) in {"tiny": (2, 8), "ptb": (20, 200), "650": (20, 650)}.items():
    inputs, gates, state = (35, batch, hidden), (35, batch, 4 * hidden), (batch, hidden)
    states = (36, batch, hidden)
    square, wide = Weights((hidden, hidden)), Weights((hidden, 4 * hidden))
    CASES |= {
        f"lstm_sequence-{size}": Case(
            (gates, state, state, wide), lambda m, *arrays: m.lstm_sequence(*arrays)[0], None
        ),
        f"lstm_sequence_grad-{size}": Case(
            (inputs, state, state, gates, states, wide),
            lambda m, *arrays: m.lstm_sequence_grad(*arrays),
            None,
            tolerance=1e-3,
        ),
        f"rnn_sequence-{size}": Case(
            (inputs, state, square), lambda m, *arrays: m.rnn_sequence(*arrays), None
        ),
        f"rnn_sequence_grad-{size}": Case(
            (inputs, state, states, square),
            lambda m, *arrays: m.rnn_sequence_grad(*arrays),
            None,
            tolerance=1e-3,
        ),
    }

for size, (words, width, count) in {
    "tiny": (10, 8, 4),
    "ptb": (10000, 200, 700),
    "large": (100000, 256, 16384),
}.items():
    ids = Ids(words, (count,))
    CASES |= {
        f"gather-{size}": Case(
            ((words, width), ids),
            lambda m, table, i: m.gather(table, i),
            lambda m, table, i: m.embedding(table, i),
            lambda m, table, i: table[i],
        ),
        f"scatter_add-{size}": Case(
            ((count, width), ids, (words, 1)),
            lambda m, src, i, like: m.scatter_add(src, i, like.shape[0]),
            lambda m, src, i, like: m.zeros(len(like), src.shape[1]).index_add_(0, i, src),
        ),
    }
for size, (count, classes) in {"tiny": (8, 10), "ptb": (700, 10000)}.items():
    CASES[f"one_hot-{size}"] = Case(
        (Ids(classes, (count,)), (classes, 1)),
        lambda m, ids, like: m.one_hot(ids, like.shape[0]),
        lambda m, ids, like: m.nn.functional.one_hot(ids, len(like)).float(),
        lambda m, ids, like: m.eye(len(like), dtype="float32")[ids],
    )

# ---- images: a shuffled batch, cropped, mirrored, scaled -----------------------------------------


def loaded(m: Any, data: Any, ids: Any, shifts: Any, mirrored: Any, unit: Any) -> Any:
    """needle's batch; shifts are drawn as 0 .. 8."""
    return m.image_batch(data, ids, shifts - 4, mirrored, divisor=unit, offset=unit)


for size, (total, count, width) in {"tiny": (8, 2, 8), "cifar10": (10000, 128, 32)}.items():
    images = (total, 3, width, width)
    CASES[f"image_batch-{size}"] = Case(
        (images, Ids(total, (count,)), Ids(9, (count, 2)), Mask((count,)), (3,)), loaded, None
    )

# ---- optimize: all parameters in one call -------------------------------------------------------

PARAMETERS: dict[str, tuple[Shape, ...]] = {
    "tiny": ((8, 8), (8,)),
    "resnet9": ((7, 7, 3, 16), (3, 3, 32, 32), (3, 3, 128, 128), (3, 3, 128, 128), (128, 10))
    + ((128,),) * 20,
    "ptb": ((10000, 200), (200, 10000), (10000,)) + ((200, 800), (800,)) * 4,
}


def parts(arrays: tuple[Any, ...], count: int) -> list[list[Any]]:
    """The arrays in so many equal lists."""
    width = len(arrays) // count
    return [list(arrays[i * width : (i + 1) * width]) for i in range(count)]


def needle_sgd(m: Any, *arrays: Any) -> Any:
    """With momentum; returns the weights."""
    w, u, g = parts(arrays, 3)
    m.sgd(w, u, g, 1e-3, 0.9, 1e-4)
    return w[:2]


def needle_adam(m: Any, *arrays: Any) -> Any:
    """The first step; returns the weights."""
    w, mean, square, g = parts(arrays, 4)
    m.adam(w, mean, square, g, 1e-3, 0.9, 0.999, 1e-8, 1e-4, 10)
    return w[:2]


def torch_adam(m: Any, *arrays: Any) -> Any:
    """The fused kernel under torch.optim.Adam(fused=True)."""
    w, mean, square, g = parts(arrays, 4)
    steps = [m.tensor(10.0) for _ in w]
    m._fused_adam_(
        *(w, g, mean, square, [], steps),
        lr=1e-3,
        beta1=0.9,
        beta2=0.999,
        weight_decay=1e-4,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    )
    return w[:2]


def torch_sgd(m: Any, *arrays: Any) -> Any:
    """The fused kernel under torch.optim.SGD; its dampening makes the course's average."""
    w, u, g = parts(arrays, 3)
    m._fused_sgd_(
        *(w, g, u),
        lr=1e-3,
        momentum=0.9,
        dampening=0.9,
        weight_decay=1e-4,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )
    return w[:2]


def averaged(m: Any, *arrays: Any) -> Any:
    """Half of the arrays become averages with the other half; returns the first."""
    m.moving_average(*parts(arrays, 2), 0.1)
    return arrays[0]


def torch_averaged(m: Any, *arrays: Any) -> Any:
    """The same."""
    m._foreach_lerp_(*parts(arrays, 2), 0.1)
    return arrays[0]


def scaled(m: Any, *arrays: Any) -> Any:
    """Every array times a number, in place."""
    m.scale(arrays, 0.999999)
    return arrays[0]


def torch_scaled(m: Any, *arrays: Any) -> Any:
    """The same."""
    m._foreach_mul_(arrays, 0.999999)
    return arrays[0]


for size, shapes in PARAMETERS.items():
    CASES |= {
        f"sgd-{size}": Case(shapes * 3, needle_sgd, torch_sgd),
        f"adam-{size}": Case(shapes * 4, needle_adam, torch_adam),
        f"moving_average-{size}": Case(shapes * 2, averaged, torch_averaged),
        f"sum_squares-{size}": Case(
            shapes,
            lambda m, *arrays: m.sum_squares(arrays),
            lambda m, *arrays: sum(m.dot(a.ravel(), a.ravel()) for a in arrays),
        ),
        f"scale-{size}": Case(shapes, scaled, torch_scaled),
    }
