"""Pooling over images, channels last: x (N, H, W, C)."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from needle.backend_ndarray.checks import MOST_PIXELS, check_floats, check_shape
from needle.backend_ndarray.dtypes import FLOAT32, INT32, INT64, DType
from needle.backend_ndarray.errors import DTypeError, ShapeError
from needle.backend_ndarray.extension import KERNEL
from needle.backend_ndarray.layout import Shape, as_ints, as_shape
from needle.backend_ndarray.ndarray import NDArray, check_same_device, new

__all__ = [
    "Windows",
    "avg_pool",
    "avg_pool_grad",
    "index_dtype",
    "max_pool",
    "max_pool_grad",
    "max_pool_pick",
    "pool_output_shape",
    "windows",
]

_MAX: Final = KERNEL["max_pool"]
_MAX_GRAD: Final = KERNEL["max_pool_grad"]
_MAX_PICK: Final = KERNEL["max_pool_pick"]
_AVG: Final = KERNEL["avg_pool"]
_AVG_GRAD: Final = KERNEL["avg_pool_grad"]

Size: TypeAlias = "int | tuple[int, int]"


class Windows(NamedTuple):
    """Where windows lie on images, each pair (height, width); made and checked by `windows`."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil_mode: bool

    def how_many(self, height: int, width: int) -> tuple[int, int]:
        """How many windows fit along each axis.

        (size + 2 padding - kernel) / stride + 1, rounded down; in ceil mode rounded up, without a
        last window that would start in the far padding.
        """
        counts = []
        for size, k, s, p in zip((height, width), *self[:3], strict=True):
            room = size + 2 * p - k
            n = room // s + 1
            if self.ceil_mode and room % s and n * s < size + p:
                n += 1
            counts.append(n)
        return counts[0], counts[1]

    def scalars(self) -> tuple[int, ...]:
        """As the kernels take them."""
        return *self.kernel_size, *self.stride, *self.padding


def windows(
    op: str,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
) -> Windows:
    """Windows of `kernel_size` pixels every `stride` pixels (None: side by side).

    Raises:
        ShapeError: a size is out of range, or the padding is more than half a window: a window
            in the padding alone would have no pixel.
        TypeError: a size is not an integer.
    """
    kernel = _pair(op, "kernel_size", kernel_size)
    step = kernel if stride is None else _pair(op, "stride", stride)
    around = _pair(op, "padding", padding)
    return _checked_windows(op, kernel, step, around, bool(ceil_mode))


@lru_cache(4096)
def _checked_windows(
    op: str,
    kernel: tuple[int, int],
    step: tuple[int, int],
    around: tuple[int, int],
    ceil_mode: bool,
) -> Windows:
    if min(kernel + step) < 1:
        raise ShapeError(f"{op}: got kernel_size {kernel}, stride {step}: need sizes >= 1")
    if max(step) > MOST_PIXELS or kernel[0] * kernel[1] > MOST_PIXELS:
        raise ShapeError(
            f"{op}: got kernel_size {kernel}, stride {step}: "
            f"need at most {MOST_PIXELS} pixels under a window and from one to the next"
        )
    if not (0 <= 2 * around[0] <= kernel[0] and 0 <= 2 * around[1] <= kernel[1]):
        raise ShapeError(
            f"{op}: padding does not fit: got padding {around}, kernel_size {kernel}: "
            "need 0 <= padding <= kernel_size / 2"
        )
    return Windows(kernel, step, around, ceil_mode)


def _pair(op: str, name: str, value: Size) -> tuple[int, int]:
    if type(value) is int:
        return value, value
    sizes = as_ints(f"{op}: {name}", value)
    if len(sizes) == 1 and not isinstance(value, tuple):
        sizes *= 2
    if len(sizes) != 2:
        raise ShapeError(f"{op}: {name}: got {value}: need an int or (height, width)")
    return sizes[0], sizes[1]


@lru_cache(4096)
def pool_output_shape(op: str, x: Shape, where: Windows) -> Shape:
    """(N, OH, OW, C) for x (N, H, W, C).

    Raises:
        ShapeError: x has other axes, or is smaller than a window.
    """
    if len(x) != 4:
        raise ShapeError(f"{op}: x has the wrong number of axes: got {x}: need (N, H, W, C)")
    room = [
        size + 2 * p - k
        for size, k, p in zip(x[1:3], where.kernel_size, where.padding, strict=True)
    ]
    if min(room) < 0 or min(x[1:3]) < 1:
        raise ShapeError(
            f"{op}: the image is smaller than the window: got x {x} with padding {where.padding}, "
            f"kernel_size {where.kernel_size}: need H + 2 * padding >= {where.kernel_size[0]}, "
            "and W likewise"
        )
    return x[0], *where.how_many(*x[1:3]), x[3]


def index_dtype(dtype: DType) -> DType:
    """The integers as wide as the floats of `dtype`: those that max_pool gives its index in."""
    return INT32 if dtype is FLOAT32 else INT64


def max_pool(
    x: NDArray,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
) -> tuple[NDArray, NDArray]:
    """The largest pixel under each window, channel by channel: (N, OH, OW, C), stored row-major.

    Args:
        x: (N, H, W, C), any strides.
        kernel_size: of the window, an int or (height, width).
        stride: pixels of x from one window to the next; None means kernel_size.
        padding: pixels by which the first windows lie outside x; those never are the largest.
        ceil_mode: whether a last window may stick out on the far side.

    Returns:
        y, and index: the place of each largest pixel in its window, row by row, the first of
        equal ones (NaN before every number); int32 for float32, int64 for float64.

    Raises:
        ShapeError: shapes or sizes do not fit.
        DTypeError: x is not floats.
    """
    return max_pool_over(x, windows("max_pool", kernel_size, stride, padding, ceil_mode))


def max_pool_over(x: NDArray, where: Windows) -> tuple[NDArray, NDArray]:
    """max_pool over windows that were checked."""
    device, dtype = check_floats("max_pool", "x", x)
    shape = pool_output_shape("max_pool", x._shape, where)
    y, index = new(device, shape, dtype), new(device, shape, index_dtype(dtype))
    device.launch(_MAX, (y, index, x), where.scalars())
    return y, index


def max_pool_grad(
    dy: NDArray,
    index: NDArray,
    input_shape: Shape,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
) -> NDArray:
    """The gradient of max_pool for its input, of shape `input_shape`: dy at the index, else 0.

    Raises:
        ShapeError: dy or index is not what max_pool gives for these shapes.
        DTypeError: dy is not floats, or index not integers.
    """
    op = "max_pool_grad"
    device, dtype = check_floats(op, "dy", dy)
    where = windows(op, kernel_size, stride, padding, ceil_mode)
    shape = as_shape(op, input_shape)
    check_shape(op, "dy", dy, pool_output_shape(op, shape, where))
    index = _as_index(op, index, dy)
    dx = new(device, shape, dtype)
    device.launch(_MAX_GRAD, (dx, dy, index), where.scalars())
    return dx


def max_pool_pick(
    a: NDArray,
    index: NDArray,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
) -> NDArray:
    """The pixels of a (N, H, W, C) at the places of max_pool's index: (N, OH, OW, C).

    Raises:
        ShapeError: index is not what max_pool gives for this shape.
        DTypeError: a is not floats, or index not integers.
    """
    op = "max_pool_pick"
    device, dtype = check_floats(op, "a", a)
    where = windows(op, kernel_size, stride, padding, ceil_mode)
    out = new(device, pool_output_shape(op, a._shape, where), dtype)
    index = _as_index(op, index, out)
    device.launch(_MAX_PICK, (out, a, index), where.scalars())
    return out


def avg_pool(
    x: NDArray,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> NDArray:
    """The mean of the pixels under each window, channel by channel: (N, OH, OW, C).

    The windows are those of max_pool; with `count_include_pad` the padding counts in the mean,
    as zeros.

    Raises:
        ShapeError: shapes or sizes do not fit.
        DTypeError: x is not floats.
    """
    where = windows("avg_pool", kernel_size, stride, padding, ceil_mode)
    return avg_pool_over(x, where, count_include_pad)


def avg_pool_over(x: NDArray, where: Windows, count_include_pad: bool) -> NDArray:
    """avg_pool over windows that were checked."""
    device, dtype = check_floats("avg_pool", "x", x)
    y = new(device, pool_output_shape("avg_pool", x._shape, where), dtype)
    device.launch(_AVG, (y, x), (*where.scalars(), float(count_include_pad)))
    return y


def avg_pool_grad(
    dy: NDArray,
    input_shape: Shape,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> NDArray:
    """The gradient of avg_pool for its input, of shape `input_shape`.

    Raises:
        ShapeError: dy is not what avg_pool gives for these shapes.
        DTypeError: dy is not floats.
    """
    op = "avg_pool_grad"
    device, dtype = check_floats(op, "dy", dy)
    where = windows(op, kernel_size, stride, padding, ceil_mode)
    shape = as_shape(op, input_shape)
    check_shape(op, "dy", dy, pool_output_shape(op, shape, where))
    dx = new(device, shape, dtype)
    device.launch(_AVG_GRAD, (dx, dy), (*where.scalars(), float(count_include_pad)))
    return dx


def _as_index(op: str, index: NDArray, like: NDArray) -> NDArray:
    """The index in the kernels' integers, checked to be as large as `like`."""
    check_same_device(op, "index", index, like)
    check_shape(op, "index", index, like._shape)
    if index._dtype.kind not in "iu":
        raise DTypeError(f"{op}: index is not integers: got {index._dtype.name}: need int32, int64")
    return index.astype(index_dtype(like._dtype), copy=False)
