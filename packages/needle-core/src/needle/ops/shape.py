"""Moving elements: other shapes and orders, parts, and several Tensors as one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .. import backend_ndarray as nd
from ..autograd import Spec, Tensor, TensorOp, TensorTuple, TensorTupleOp, spec_of
from ..backend_ndarray import NDArray, ShapeError
from ..backend_ndarray import shape as nd_shape
from ..backend_ndarray.dtypes import promote
from ..backend_ndarray.layout import (
    Shape,
    as_int,
    as_ints,
    as_shape,
    axes_order,
    broadcast_strides,
    compact_strides,
    index_view,
    normalize_axes,
    normalize_axis,
    resolve_shape,
)
from .common import Axes, unbroadcast

# ---- order and shape ----------------------------------------------------------------------------


class Transpose(TensorOp):
    """Swaps two axes: a view."""

    name = "transpose"
    saves = ()

    def __init__(self, axes: Axes = None) -> None:
        self.axes = None if axes is None else as_ints("transpose", axes)

    def infer(self, a: Tensor) -> Spec:
        return spec_of(_swapped(a.shape, *self.pair(a.shape)), a.dtype)

    def pair(self, shape: Shape) -> Shape:
        """The two axes."""
        if self.axes is None and len(shape) < 2:
            raise ShapeError(f"transpose: too few axes: got shape {shape}: need at least two axes")
        if self.axes is not None and len(self.axes) != 2:
            raise ShapeError(
                f"transpose: swaps two axes: got axes {self.axes}: need two (see permute)"
            )
        i, j = self.axes or (-2, -1)
        return normalize_axis("transpose", i, len(shape)), normalize_axis(
            "transpose", j, len(shape)
        )

    def compute(self, a: NDArray) -> NDArray:
        i, j = self.pair(a._shape)
        return a._view(_swapped(a._shape, i, j), _swapped(a._strides, i, j))

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return self(out_grad)


def _swapped(values: Shape, i: int, j: int) -> Shape:
    order = list(values)
    order[i], order[j] = order[j], order[i]
    return tuple(order)


class Permute(TensorOp):
    """Axis axes[i] becomes axis i: a view."""

    name = "permute"
    saves = ()

    def __init__(self, axes: Sequence[int]) -> None:
        self.axes = as_ints("permute", axes)

    def infer(self, a: Tensor) -> Spec:
        order = axes_order("permute", self.axes, a.shape)
        return spec_of(tuple([a.shape[k] for k in order]), a.dtype)

    def compute(self, a: NDArray) -> NDArray:
        return a.permute(self.axes)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        rank = len(self.axes)
        axes = normalize_axes("permute", self.axes, rank)
        return Permute(sorted(range(rank), key=axes.__getitem__))(out_grad)


class Reshape(TensorOp):
    """The same elements in another shape, row-major; one size may be -1."""

    name = "reshape"
    saves = ()

    def __init__(self, shape: Sequence[int] | int) -> None:
        self.shape = as_ints("reshape", shape)

    def infer(self, a: Tensor) -> Spec:
        return spec_of(resolve_shape("reshape", self.shape, a.shape), a.dtype)

    def compute(self, a: NDArray) -> NDArray:
        return a.reshape(self.shape)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return Reshape(node.inputs[0].shape)(out_grad)


class BroadcastTo(TensorOp):
    """Repeats axes of size 1 and adds new ones on the left: a view."""

    name = "broadcast_to"
    saves = ()

    def __init__(self, shape: Sequence[int] | int) -> None:
        self.shape = as_shape("broadcast_to", shape)

    def infer(self, a: Tensor) -> Spec:
        broadcast_strides("broadcast_to", a.shape, compact_strides(a.shape), self.shape)
        return spec_of(self.shape, a.dtype)

    def compute(self, a: NDArray) -> NDArray:
        return a.broadcast_to(self.shape)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return unbroadcast(out_grad, node.inputs[0])


class Flip(TensorOp):
    """The order of the elements along `axes` (None: all) reversed."""

    name = "flip"
    saves = ()

    def __init__(self, axes: Axes = None) -> None:
        self.axes = None if axes is None else as_ints("flip", axes)

    def infer(self, a: Tensor) -> Spec:
        normalize_axes("flip", self.axes, len(a.shape))
        return spec_of(a.shape, a.dtype)

    def compute(self, a: NDArray) -> NDArray:
        return nd.flip(a, self.axes)

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return self(out_grad)


# ---- parts --------------------------------------------------------------------------------------


class GetItem(TensorOp):
    """a[index] for ints, slices, Ellipsis and None: a view."""

    name = "getitem"
    saves = ()

    def __init__(self, index: Any) -> None:
        self.index = index

    def infer(self, a: Tensor) -> Spec:
        return spec_of(index_view(a.shape, compact_strides(a.shape), 0, self.index)[0], a.dtype)

    def compute(self, a: NDArray) -> NDArray:
        return a[self.index]

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return PutItem(self.index, node.inputs[0].shape)(out_grad)


class PutItem(TensorOp):
    """Zeros of `shape` with out[index] = a: the transpose of GetItem."""

    saves = ()

    def __init__(self, index: Any, shape: Shape) -> None:
        self.index = index
        self.shape = shape

    def infer(self, a: Tensor) -> Spec:
        return spec_of(self.shape, a.dtype)

    def compute(self, a: NDArray) -> NDArray:
        out = a.device.zeros(self.shape, dtype=a.dtype)
        out[self.index] = a
        return out

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return GetItem(self.index)(out_grad)


class Spaced(TensorOp):
    """What Dilate and UnDilate share: every (dilation + 1)-th element along `axes`."""

    saves = ()

    def __init__(self, axes: Axes, dilation: int) -> None:
        self.axes = as_ints(self.name, () if axes is None else axes)
        self.dilation = as_int(self.name, "dilation", dilation)
        if self.dilation < 0:
            raise ShapeError(f"{self.name}: dilation is {dilation}: need dilation >= 0")

    def index(self, rank: int) -> tuple[slice, ...]:
        """Selects the places that Dilate fills and UnDilate keeps."""
        return tuple([slice(None, None, step) for step in self.steps(rank)])

    def steps(self, rank: int) -> Shape:
        """Along each axis, the distance from one such place to the next."""
        return _steps(self.name, self.axes, self.dilation + 1, rank)


@lru_cache(4096)
def _steps(op: str, axes: Shape, step: int, rank: int) -> Shape:
    spaced = normalize_axes(op, axes, rank)
    return tuple([step if k in spaced else 1 for k in range(rank)])


class Dilate(Spaced):
    """`dilation` zeros after every element along `axes`: length n becomes n * (dilation + 1)."""

    name = "dilate"

    def infer(self, a: Tensor) -> Spec:
        shape = a.shape
        return spec_of(tuple(map(operator.mul, shape, self.steps(len(shape)))), a.dtype)

    def compute(self, a: NDArray) -> NDArray:
        return nd_shape.dilate(a, self.steps(a.ndim))

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        return UnDilate(self.axes, self.dilation)(out_grad)


class UnDilate(Spaced):
    """Every (dilation + 1)-th element along `axes`: takes out what Dilate put in."""

    name = "undilate"

    def infer(self, a: Tensor) -> Spec:
        steps = self.steps(len(a.shape))
        return spec_of(tuple([-(-n // k) for n, k in zip(a.shape, steps, strict=True)]), a.dtype)

    def compute(self, a: NDArray) -> NDArray:
        return a[self.index(a.ndim)]

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        shape = node.inputs[0].shape
        return PutItem(self.index(len(shape)), shape)(out_grad)


# ---- several Tensors ----------------------------------------------------------------------------


class Join(TensorOp):
    """What Stack and Concatenate share: any number of Tensors, or one TensorTuple, and an axis."""

    saves = ()

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def __call__(self, *args: Any) -> Tensor:
        if len(args) == 1 and isinstance(args[0], (TensorTuple, list, tuple)):
            args = tuple(args[0])
        if not args:
            raise ShapeError(f"{self.name}: no Tensors: got 0: need at least one")
        return super().__call__(*args)


class Stack(Join):
    """The Tensors side by side along a new axis."""

    name = "stack"

    def infer(self, *args: Tensor) -> Spec:
        shape, dtype = args[0].shape, args[0].dtype
        axis = normalize_axis("stack", self.axis, len(shape) + 1)
        for arg in args[1:]:
            if arg.shape != shape:
                raise ShapeError(
                    f"stack: shapes differ: got {shape} and {arg.shape}: need equal shapes"
                )
            dtype = promote(dtype, arg.dtype)
        return spec_of((*shape[:axis], len(args), *shape[axis:]), dtype)

    def compute(self, *args: NDArray) -> NDArray:
        return nd.stack(args, self.axis)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor, ...]:
        parts = split(out_grad, self.axis)
        return tuple([unbroadcast(g, a) for g, a in zip(parts, node.inputs, strict=True)])


class Concatenate(Join):
    """The Tensors one after the other along an axis they have."""

    name = "concatenate"

    def infer(self, *args: Tensor) -> Spec:
        shape, dtype = list(args[0].shape), args[0].dtype
        axis = normalize_axis("concatenate", self.axis, len(shape))
        for arg in args[1:]:
            other = list(arg.shape)
            if len(other) != len(shape) or any(
                x != y for k, (x, y) in enumerate(zip(shape, other, strict=True)) if k != axis
            ):
                raise ShapeError(
                    f"concatenate: shapes differ: got {args[0].shape} and {arg.shape}: "
                    f"need equal sizes on every axis but {axis}"
                )
            shape[axis] += other[axis]
            dtype = promote(dtype, arg.dtype)
        return spec_of(tuple(shape), dtype)

    def compute(self, *args: NDArray) -> NDArray:
        return nd.concatenate(args, self.axis)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[Tensor, ...]:
        axis = normalize_axis("concatenate", self.axis, len(node.shape))
        grads = []
        start = 0
        for a in node.inputs:
            stop = start + a.shape[axis]
            part = getitem(out_grad, (slice(None),) * axis + (slice(start, stop),))
            grads.append(unbroadcast(part, a))
            start = stop
        return tuple(grads)


class Split(TensorTupleOp):
    """One item per index of an axis, which goes away: views."""

    name = "split"
    saves = ()

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def infer(self, a: Tensor) -> tuple[Spec, ...]:
        axis = normalize_axis("split", self.axis, len(a.shape))
        spec = spec_of(a.shape[:axis] + a.shape[axis + 1 :], a.dtype)
        return (spec,) * a.shape[axis]

    def compute(self, a: NDArray) -> tuple[NDArray, ...]:
        axis = normalize_axis("split", self.axis, a.ndim)
        shape = a._shape[:axis] + a._shape[axis + 1 :]
        strides = a._strides[:axis] + a._strides[axis + 1 :]
        step = a._strides[axis]
        return tuple([a._view(shape, strides, a._offset + i * step) for i in range(a.shape[axis])])

    def gradient(self, out_grad: Any, node: TensorTuple) -> Tensor:
        return stack(filled(out_grad, node), self.axis)


def filled(out_grad: Any, node: TensorTuple) -> list[Tensor]:
    """The gradients of a TensorTuple's items, zeros for the items that received none."""
    return [
        Tensor(node.device.zeros(spec.shape, dtype=spec.dtype), requires_grad=False)
        if part is None
        else part
        for part, spec in zip(out_grad, node._spec, strict=True)
    ]


class MakeTensorTuple(TensorTupleOp):
    """Several Tensors as one TensorTuple."""

    name = "make_tuple"
    saves = ()

    def infer(self, *args: Tensor) -> tuple[Spec, ...]:
        return tuple([spec_of(a.shape, a.dtype) for a in args])

    def __call__(self, *args: Any) -> TensorTuple:
        if not args:
            raise ShapeError("make_tuple: no Tensors: got 0: need at least one")
        return super().__call__(*args)

    def compute(self, *args: NDArray) -> tuple[NDArray, ...]:
        return args

    def gradient(self, out_grad: Any, node: TensorTuple) -> tuple[Tensor | None, ...]:
        return tuple(out_grad)


class TupleGetItem(TensorOp):
    """One item of a TensorTuple."""

    name = "tuple_get_item"
    saves = ()

    def __init__(self, index: int) -> None:
        self.index = index

    def infer(self, value: TensorTuple) -> Spec:
        spec: Spec = value._spec[self.index]
        return spec

    def compute(self, value: tuple[NDArray, ...]) -> NDArray:
        return value[self.index]

    def gradient(self, out_grad: Tensor, node: Tensor) -> Any:
        """For this item only: the engine keeps the items of a TensorTuple apart."""
        return {self.index: out_grad}


# ---- the user's functions -----------------------------------------------------------------------


def transpose(a: Tensor, axes: Axes = None) -> Tensor:
    """Swaps two axes; the last two by default.

    Raises:
        AxisError: there is no such axis.
        ShapeError: not two axes.
    """
    return Transpose(axes)(a)


def permute(a: Tensor, axes: Sequence[int]) -> Tensor:
    """Axis `axes[i]` becomes axis i.

    Raises:
        ShapeError: `axes` is not an order of all axes.
    """
    return Permute(axes)(a)


def reshape(a: Tensor, shape: Sequence[int] | int) -> Tensor:
    """The same elements in another shape; one size may be -1.

    Raises:
        ShapeError: the number of elements differs.
    """
    return Reshape(shape)(a)


def broadcast_to(a: Tensor, shape: Sequence[int] | int) -> Tensor:
    """Repeats axes of size 1 and adds new ones on the left.

    Raises:
        ShapeError: `a` does not broadcast to `shape`.
    """
    return BroadcastTo(shape)(a)


def flip(a: Tensor, axes: Axes = None) -> Tensor:
    """Reverses the order of the elements along `axes`; None means all.

    Raises:
        AxisError: there is no such axis.
    """
    return Flip(axes)(a)


def getitem(a: Tensor, index: Any) -> Tensor:
    """a[index] for ints, slices with any step, Ellipsis and None.

    Raises:
        IndexError: out of range, too many entries, or an entry of another type.
    """
    if not isinstance(a, Tensor):
        raise TypeError(f"getitem: argument 0 is not a Tensor: got {type(a).__name__}")
    return GetItem(index)(a)


def dilate(a: Tensor, axes: Axes, dilation: int) -> Tensor:
    """Puts `dilation` zeros after every element along `axes`.

    Raises:
        AxisError: an axis does not exist or comes twice.
        ShapeError: dilation is below 0.
    """
    return Dilate(axes, dilation)(a)


def undilate(a: Tensor, axes: Axes, dilation: int) -> Tensor:
    """Keeps every (dilation + 1)-th element along `axes`.

    Raises:
        AxisError: an axis does not exist or comes twice.
        ShapeError: dilation is below 0.
    """
    return UnDilate(axes, dilation)(a)


def _items(op: str, args: Sequence[Tensor] | TensorTuple) -> tuple[Tensor, ...]:
    try:
        return tuple(args)
    except TypeError:
        raise TypeError(f"{op}: args is a {type(args).__name__}: need several Tensors") from None


def stack(args: Sequence[Tensor] | TensorTuple, axis: int = 0) -> Tensor:
    """The Tensors side by side along a new axis.

    Raises:
        ShapeError: no Tensors, or their shapes differ.
    """
    return Stack(axis)(*_items("stack", args))


def concatenate(args: Sequence[Tensor] | TensorTuple, axis: int = 0) -> Tensor:
    """The Tensors one after the other along an axis they have.

    Raises:
        ShapeError: no Tensors, or their other axes differ.
    """
    return Concatenate(axis)(*_items("concatenate", args))


def split(a: Tensor, axis: int = 0) -> TensorTuple:
    """The slices of `a` along an axis, without it, as a TensorTuple.

    Raises:
        AxisError: there is no such axis.
    """
    return Split(axis)(a)


def make_tuple(*args: Tensor) -> TensorTuple:
    """The Tensors as one TensorTuple."""
    return MakeTensorTuple()(*args)


def tuple_get_item(value: TensorTuple, index: int) -> Tensor:
    """One item of a TensorTuple.

    Raises:
        IndexError: there is no such item.
        TypeError: it is no TensorTuple, or the index no integer.
    """
    if not isinstance(value, TensorTuple):
        raise TypeError(f"tuple_get_item: got {type(value).__name__}: need a TensorTuple")
    i = index if type(index) is int else as_int("tuple_get_item", "index", index)
    count = len(value)
    if not -count <= i < count:
        raise IndexError(
            f"tuple_get_item: out of range: got {i} for {count} items: "
            f"need {-count} <= index < {count}"
        )
    i %= count
    if isinstance(value.op, MakeTensorTuple) and value._inputs:
        item: Tensor = value.inputs[i]
        return item
    return TupleGetItem(i)(value)
