"""NDArray: a strided view of a storage on a device, with NumPy's semantics.

Views share their storage's memory; nothing is copied unless strides forbid a view. An array's
metadata (shape, strides, offset) is Python, its memory and every computation are the device's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike

from needle.backend_ndarray.devices import CPU, REFERENCE_MODE, Device, check_device, check_handle
from needle.backend_ndarray.dtypes import (
    BOOL,
    NAME,
    SUPPORTED,
    DType,
    Number,
    Scalar,
    as_dtype,
    check_fits,
    foreign_dtype,
    promote,
)
from needle.backend_ndarray.errors import DeviceError, DTypeError, ShapeError
from needle.backend_ndarray.extension import KERNEL, NO_SCALARS
from needle.backend_ndarray.extension import cpu as _cpu
from needle.backend_ndarray.layout import (
    Axes,
    Shape,
    as_int,
    as_ints,
    as_shape,
    broadcast_strides,
    check_extent,
    check_strides,
    compact_strides,
    dense_strides,
    extent,
    flat_shape,
    index_view,
    normalize_axis,
    permuted_view,
    reshape_strides,
    resolve_shape,
    rows_shape,
    unpack,
)

_COPY: Final = KERNEL["copy"]
_FILL: Final = KERNEL["fill"]

# The common paths in C++: arrays on cpu(). None, or False, for others.
_common_fill: Final[Callable[..., bool]] = _cpu.fill
_common_copy: Final[Callable[..., Any]] = _cpu.copy
_common_copy_into: Final[Callable[..., bool]] = _cpu.copy_into

_index_array: Final[Callable[[NDArray, Any], NDArray]] = _cpu.index_array


class NDArray:
    """An n-dimensional array of float32, float64, int32, int64, uint8 or bool on a device."""

    __slots__ = ("__weakref__", "_device", "_dtype", "_handle", "_offset", "_shape", "_strides")

    _handle: _cpu.Storage
    _shape: Shape
    _strides: Shape  # in elements
    _offset: int  # in elements
    _dtype: DType
    _device: Device

    # NumPy scalars and arrays on the left leave the operation to NDArray.
    __array_ufunc__: Final = None

    def __init__(
        self, other: Any, device: Device | None = None, dtype: DTypeLike | None = None
    ) -> None:
        """A copy of an NDArray, a NumPy array, nested lists or a number.

        An NDArray keeps its dtype and device unless told otherwise. Other data becomes float32
        on the default device; with NEEDLE_BACKEND=np it keeps NumPy's own dtype.

        Raises:
            DTypeError: `dtype`, or the data's own, is not supported.
            ShapeError: more than 16 axes.
        """
        wanted = None if dtype is None else as_dtype(dtype, "array")
        if isinstance(other, NDArray):
            made = other.to(other._device if device is None else device)
            if made._handle is other._handle or (wanted is not None and wanted != made._dtype):
                made = made.astype(wanted or made._dtype)
        else:
            source = np.asarray(other)
            if wanted is not None and not isinstance(other, (np.ndarray, np.generic)):
                _check_python_ints(source, wanted)
            made = from_numpy(source, check_device("array", device), wanted)
        self._handle = made._handle
        self._shape = made._shape
        self._strides = made._strides
        self._offset = made._offset
        self._dtype = made._dtype
        self._device = made._device

    @staticmethod
    def make(
        shape: SupportsIndex | Sequence[int],
        strides: Sequence[int] | None = None,
        device: Device | None = None,
        handle: _cpu.Storage | None = None,
        offset: int = 0,
        dtype: DTypeLike | None = None,
    ) -> NDArray:
        """A view of `handle`, or of new memory with arbitrary contents.

        Strides and offset count elements; without strides the view is row-major.

        Raises:
            ShapeError: the view leaves its storage.
            DTypeError: the handle has another dtype than `dtype`.
        """
        where = check_device("make", device)
        sizes = as_shape("make", shape)
        steps = compact_strides(sizes) if strides is None else as_ints("make", strides)
        check_strides("make", sizes, steps)
        offset = as_int("make", "offset", offset)
        if handle is None:
            kind = as_dtype("float32" if dtype is None else dtype, "make")
            handle = where.storage(max(offset + extent(sizes, steps)[1] + 1, 0), NAME[kind])
        else:
            check_handle("make", "handle", handle)
        kind = as_dtype(handle.dtype if dtype is None else dtype, "make")
        if handle.dtype != kind.name:
            raise DTypeError(
                f"make: dtypes differ: got {kind.name} for a storage of {handle.dtype}: "
                "need the storage's own"
            )
        check_extent("make", sizes, steps, offset, handle.size)
        return wrap(handle, sizes, steps, offset, kind, where)

    # What the array is

    @property
    def shape(self) -> Shape:
        """The size of each axis."""
        return self._shape

    @property
    def strides(self) -> Shape:
        """The step along each axis, in elements."""
        return self._strides

    @property
    def device(self) -> Device:
        """Where the array lives."""
        return self._device

    @property
    def dtype(self) -> DType:
        """The element type, a numpy.dtype."""
        return self._dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self._shape)

    @property
    def flat(self) -> NDArray | Flat:
        """The elements in row-major order as one axis; writing to it writes to the array."""
        strides = reshape_strides(self._shape, self._strides, (self.size,))
        return Flat(self) if strides is None else self._view((self.size,), strides)

    @property
    def T(self) -> NDArray:
        """A view with the axes reversed."""
        return self._view(self._shape[::-1], self._strides[::-1])

    def __len__(self) -> int:
        if not self._shape:
            raise TypeError("len: the array has no axes: got shape (): need at least one axis")
        return self._shape[0]

    def __repr__(self) -> str:
        return f"NDArray({self}, device={self._device})"

    def __str__(self) -> str:
        return str(host_view(self))

    # Views

    def _view(self, shape: Shape, strides: Shape, offset: int | None = None) -> NDArray:
        return wrap(
            self._handle,
            shape,
            strides,
            self._offset if offset is None else offset,
            self._dtype,
            self._device,
        )

    def is_compact(self) -> bool:
        """Whether the array is row-major, without gaps, and fills its whole storage."""
        return self._strides == compact_strides(self._shape) and self._handle.size == self.size

    def compact(self) -> NDArray:
        """The array itself if compact, else a row-major copy."""
        return self if self.is_compact() else self._copy(self._dtype, row_major=True)

    def as_strided(
        self,
        shape: SupportsIndex | Sequence[int],
        strides: SupportsIndex | Sequence[int],
        offset: int | None = None,
    ) -> NDArray:
        """A view of the same storage with any shape and strides (in elements).

        Raises:
            ShapeError: the view leaves the storage.
        """
        sizes, steps = as_shape("as_strided", shape), as_ints("as_strided", strides)
        start = self._offset if offset is None else as_int("as_strided", "offset", offset)
        check_extent("as_strided", sizes, steps, start, self._handle.size)
        return self._view(sizes, steps, start)

    def reshape(self, *new_shape: Any) -> NDArray:
        """The same elements in another shape; a view where strides allow. One size may be -1.

        Raises:
            ShapeError: the new shape holds another number of elements.
        """
        return self._reshaped(resolve_shape("reshape", unpack(new_shape), self._shape))

    def _reshaped(self, shape: Shape) -> NDArray:
        """reshape to a shape that was checked."""
        strides = reshape_strides(self._shape, self._strides, shape)
        if strides is None:
            return self._copy(self._dtype, row_major=True)._view(shape, compact_strides(shape))
        return self._view(shape, strides)

    def permute(self, *new_axes: Any) -> NDArray:
        """A view with axis `new_axes[i]` as axis i.

        Raises:
            ShapeError: `new_axes` is not an order of all axes.
        """
        axes = as_ints("permute", unpack(new_axes))
        return self._view(*permuted_view(self._shape, self._strides, axes))

    def broadcast_to(self, *new_shape: Any) -> NDArray:
        """A view in which axes of size 1, and new ones on the left, repeat without a copy.

        Raises:
            ShapeError: the array does not broadcast to the shape.
        """
        shape = as_shape("broadcast_to", unpack(new_shape))
        return self._view(
            shape, broadcast_strides("broadcast_to", self._shape, self._strides, shape)
        )

    def process_slice(self, sl: slice, dim: int) -> slice:
        """The slice with start, stop and step that select the same elements of axis `dim`.

        `stop` is None where a negative step runs past the first element.
        """
        if not isinstance(sl, slice):
            raise TypeError(f"process_slice: sl: got {type(sl).__name__}: need a slice")
        axis = normalize_axis("process_slice", dim, self.ndim)
        start, stop, step = sl.indices(self._shape[axis])
        return slice(start, None if stop < 0 else stop, step)

    def __getitem__(self, index: Any) -> NDArray:
        """A view: ints drop their axis, slices (any step), Ellipsis and None as in NumPy."""
        return _index_array(self, index)

    def __iter__(self) -> Iterator[NDArray]:
        return (self[i] for i in range(len(self)))

    # Writing

    def __setitem__(self, index: Any, value: Any) -> None:
        """Writes a number or an array, broadcast and cast to the elements selected.

        Raises:
            ShapeError: the value does not broadcast to the selection, or several elements selected
                share a place, as those of a broadcast view do.
            DeviceError: the value is on another device.
        """
        target = self[index]
        if isinstance(value, NDArray):
            copy_into(target, value)
        elif isinstance(value, (bool, int, float)):
            target.fill(value)
        else:
            copy_into(target, from_numpy(real_numbers("setitem", value), self._device, own=True))

    def fill(self, value: Scalar) -> None:
        """Writes `value` to every element.

        Raises:
            TypeError: it is no number.
            OverflowError: a Python int does not fit the dtype.
        """
        if _common_fill(self, value):
            return
        check_writable("fill", self)
        number: Number
        try:
            if self._dtype.kind == "f":
                number = float(value)
            else:
                number = _as_integer("fill", self._dtype, value)
        except TypeError:
            kind = type(value).__name__
            raise TypeError(f"fill: value: got {kind}: need a number") from None
        self._device.launch(_FILL, (self, number), NO_SCALARS)
        self._handle.version += 1

    # Copies

    def _copy(self, dtype: DType, row_major: bool = False) -> NDArray:
        """A row-major copy, or one in the same memory order."""
        copied: NDArray | None = _common_copy(self, dtype, row_major)
        if copied is None:
            copied = new(self._device, self._shape, dtype) if row_major else empty_as(self, dtype)
            self._device.launch(_COPY, (copied, self), NO_SCALARS)
        return copied

    def copy(self) -> NDArray:
        """A copy in the same memory order."""
        return self._copy(self._dtype)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> NDArray:
        return self.copy()

    def astype(self, dtype: DTypeLike, copy: bool = True) -> NDArray:
        """A copy with another dtype; with copy=False the array itself where it has the dtype."""
        kind = as_dtype(dtype, "astype")
        if kind is self._dtype and not copy:
            return self
        return self._copy(kind)

    def to(self, device: Device) -> NDArray:
        """The array itself if it lives on `device`, else a copy there."""
        where = check_device("to", device)
        if where is self._device:
            return self
        return from_numpy(host_view(self), where, self._dtype)

    def numpy(self) -> np.ndarray[Any, Any]:
        """A row-major NumPy copy."""
        return np.array(host_view(self), order="C")

    def item(self) -> Any:
        """The only element as a Python number.

        Raises:
            ShapeError: there is not exactly one element.
        """
        if self.size != 1:
            raise ShapeError(
                f"item: not one element: got shape {self._shape}: need exactly one element"
            )
        return host_view(self).item()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        return host_view(self).tolist()

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ShapeError(
                f"bool: not one element: got shape {self._shape}: need exactly one element"
            )
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self._dtype.kind not in "iu" or self._shape:
            raise TypeError(
                f"index: not an integer: got {self._dtype.name} of shape {self._shape}: "
                "need one integer without axes"
            )
        return int(self.item())

    def __reduce__(self) -> tuple[Callable[..., NDArray], tuple[Any, ...]]:
        return NDArray, (host_view(self).copy(), self._device, self._dtype.name)

    # Exchange with other libraries

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray[Any, Any]:
        """A NumPy array that shares the memory; a copy where `copy` or another dtype asks for it.

        Writes through it are not counted in the storage's version. On cuda() it is always a copy.
        """
        if copy is False and not self._device.in_host_memory:
            raise ValueError(
                f"__array__: a copy is needed: got an array on {self._device}: copy=False needs "
                "memory of the CPU"
            )
        array = shared_view(self)
        if dtype is None or np.dtype(dtype) == array.dtype:
            return array.copy() if copy else array
        if copy is False:
            raise ValueError(
                f"__array__: a copy is needed: got dtype {np.dtype(dtype)} for {array.dtype}: "
                "copy=False needs the array's own dtype"
            )
        return array.astype(dtype)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[Any, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule that shares the memory.

        Raises:
            DeviceError: the array lies on cuda(), whose memory is not exported.
        """
        self._check_exportable("__dlpack__")
        return shared_view(self).__dlpack__(
            stream=stream, max_version=max_version, dl_device=dl_device, copy=copy
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        """The DLPack device: (1, 0), the CPU."""
        self._check_exportable("__dlpack_device__")
        return host_view(self).__dlpack_device__()

    def _check_exportable(self, op: str) -> None:
        if not self._device.in_host_memory:
            raise DeviceError(
                f"{op}: memory of this device is not exported: got {self._device}: "
                "move the array with .to(cpu()) first"
            )

    # Arithmetic: each operator is a function of its family

    def __add__(self, other: Any) -> NDArray:
        return elementwise.add(self, other) if isinstance(other, OPERANDS) else NotImplemented

    def __radd__(self, other: Any) -> NDArray:
        return elementwise.add(other, self) if isinstance(other, OPERANDS) else NotImplemented

    def __iadd__(self, other: Any) -> NDArray:
        return elementwise.write_result("add", self, other)

    def __sub__(self, other: Any) -> NDArray:
        return elementwise.subtract(self, other) if isinstance(other, OPERANDS) else NotImplemented

    def __rsub__(self, other: Any) -> NDArray:
        return elementwise.subtract(other, self) if isinstance(other, OPERANDS) else NotImplemented

    def __isub__(self, other: Any) -> NDArray:
        return elementwise.write_result("subtract", self, other)

    def __mul__(self, other: Any) -> NDArray:
        return elementwise.multiply(self, other) if isinstance(other, OPERANDS) else NotImplemented

    def __rmul__(self, other: Any) -> NDArray:
        return elementwise.multiply(other, self) if isinstance(other, OPERANDS) else NotImplemented

    def __imul__(self, other: Any) -> NDArray:
        return elementwise.write_result("multiply", self, other)

    def __truediv__(self, other: Any) -> NDArray:
        return elementwise.divide(self, other) if isinstance(other, OPERANDS) else NotImplemented

    def __rtruediv__(self, other: Any) -> NDArray:
        return elementwise.divide(other, self) if isinstance(other, OPERANDS) else NotImplemented

    def __itruediv__(self, other: Any) -> NDArray:
        return elementwise.write_result("divide", self, other)

    def __pow__(self, other: Any) -> NDArray:
        return elementwise.power(self, other) if isinstance(other, OPERANDS) else NotImplemented

    def __rpow__(self, other: Any) -> NDArray:
        return elementwise.power(other, self) if isinstance(other, OPERANDS) else NotImplemented

    def __ipow__(self, other: Any) -> NDArray:
        return elementwise.write_result("power", self, other)

    def __matmul__(self, other: Any) -> NDArray:
        return _matmul(self, other) if isinstance(other, ARRAYS) else NotImplemented

    def __rmatmul__(self, other: Any) -> NDArray:
        return _matmul(other, self) if isinstance(other, ARRAYS) else NotImplemented

    def __imatmul__(self, other: Any) -> NDArray:
        if not isinstance(other, ARRAYS):
            return NotImplemented
        return _matmul(self, other, out=self)

    def __neg__(self) -> NDArray:
        return elementwise.negate(self)

    def __pos__(self) -> NDArray:
        return self.copy()

    def __abs__(self) -> NDArray:
        return elementwise.abs(self)

    def __invert__(self) -> NDArray:
        return elementwise.logical_not(self)

    # Like NumPy's arrays, an array compares element by element and is therefore not hashable.
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> NDArray:  # type: ignore[override]
        return elementwise.equal(self, other) if isinstance(other, OPERANDS) else NotImplemented

    def __ne__(self, other: object) -> NDArray:  # type: ignore[override]
        return elementwise.not_equal(self, other) if isinstance(other, OPERANDS) else NotImplemented

    def __lt__(self, other: Any) -> NDArray:
        return elementwise.less(self, other) if isinstance(other, OPERANDS) else NotImplemented

    def __le__(self, other: Any) -> NDArray:
        return (
            elementwise.less_equal(self, other) if isinstance(other, OPERANDS) else NotImplemented
        )

    def __gt__(self, other: Any) -> NDArray:
        return elementwise.greater(self, other) if isinstance(other, OPERANDS) else NotImplemented

    def __ge__(self, other: Any) -> NDArray:
        if not isinstance(other, OPERANDS):
            return NotImplemented
        return elementwise.greater_equal(self, other)

    # Functions of the families, as methods

    def maximum(self, other: NDArray | Scalar) -> NDArray:
        """The larger of each pair of elements; NaN where either is."""
        return elementwise.maximum(self, other)

    def minimum(self, other: NDArray | Scalar) -> NDArray:
        """The smaller of each pair of elements; NaN where either is."""
        return elementwise.minimum(self, other)

    def log(self) -> NDArray:
        """The natural logarithm of each element."""
        return elementwise.log(self)

    def exp(self) -> NDArray:
        """e to the power of each element."""
        return elementwise.exp(self)

    def tanh(self) -> NDArray:
        """The hyperbolic tangent of each element."""
        return elementwise.tanh(self)

    def sqrt(self) -> NDArray:
        """The square root of each element."""
        return elementwise.sqrt(self)

    def sum(self, axis: Axes = None, keepdims: bool = False) -> NDArray:
        """The sum over `axis`: None for all, an int, or a tuple."""
        return reduce.sum(self, axis, keepdims)

    def max(self, axis: Axes = None, keepdims: bool = False) -> NDArray:
        """The largest element over `axis`: None for all, an int, or a tuple."""
        return reduce.max(self, axis, keepdims)

    def min(self, axis: Axes = None, keepdims: bool = False) -> NDArray:
        """The smallest element over `axis`: None for all, an int, or a tuple."""
        return reduce.min(self, axis, keepdims)

    def flip(self, axes: Axes = None) -> NDArray:
        """A compact copy with the order of the elements along `axes` reversed."""
        return shape.flip(self, axes)

    def pad(self, *axes: Any) -> NDArray:
        """Zeros around the array: `pad(((left, right), ...))`, one pair per axis."""
        return shape.pad(self, *axes)


_cpu.bind_arrays(NDArray, CPU, SUPPORTED, promote, dense_strides)

# An array of these parts, unchecked.
wrap: Final[Callable[[_cpu.Storage, Shape, Shape, int, DType, Device], NDArray]] = _cpu.wrap
_empty: Final[Callable[[Shape, DType, Device], NDArray]] = _cpu.empty
_empty_like: Final[Callable[[NDArray, DType], NDArray]] = _cpu.empty_like


def empty_as(model: NDArray, dtype: DType | None = None) -> NDArray:
    """A new array with the shape, device and memory order of `model`, contents arbitrary."""
    device, kind = model._device, dtype or model._dtype
    if device.storage is _cpu.Storage:
        return _empty_like(model, kind)
    strides = dense_strides(model._shape, model._strides)
    storage = device.storage(model.size, NAME[kind])
    return wrap(storage, model._shape, strides, 0, kind, device)


def new(device: Device, shape: Shape, dtype: DType) -> NDArray:
    """A new row-major array, contents arbitrary."""
    if device.storage is _cpu.Storage:
        return _empty(shape, dtype, device)
    storage = device.storage(math.prod(shape), NAME[dtype])
    return wrap(storage, shape, compact_strides(shape), 0, dtype, device)


def as_rows(a: NDArray) -> NDArray:
    """(..., D) as (R, D): a view where strides allow."""
    return a if len(a._shape) == 2 else a._reshaped(rows_shape(a._shape))


def as_flat(a: NDArray) -> NDArray:
    """All elements along one axis: a view where strides allow."""
    return a if len(a._shape) == 1 else a._reshaped(flat_shape(a._shape))


def shared_view(array: NDArray) -> np.ndarray[Any, Any]:
    """host_view for keeps: from now on, no kernel leaves work on this memory for later."""
    array._handle.ptr()
    return host_view(array)


def host_view(array: NDArray) -> np.ndarray[Any, Any]:
    """A NumPy array on the same memory, now at rest; read-only where elements share a place."""
    view = array._device.view(array._handle, array._shape, array._strides, array._offset)
    if 0 in array._strides and _repeats(array):
        view.flags.writeable = False
    return view


def _repeats(array: NDArray) -> bool:
    return any(
        step == 0 and size > 1 for size, step in zip(array._shape, array._strides, strict=True)
    )


def check_writable(op: str, array: NDArray) -> None:
    """Raises ShapeError for a broadcast view, where several elements would be written to one place.

    A single element chosen out of such a view is one place, and can be written.
    """
    if 0 in array._strides and _repeats(array):
        raise ShapeError(
            f"{op}: cannot write to a broadcast view: got shape {array._shape}, strides "
            f"{array._strides}: copy() it first"
        )


def _check_python_ints(source: np.ndarray[Any, Any], dtype: DType) -> None:
    """Raises OverflowError where a Python int in a list does not fit `dtype`, as NumPy does."""
    if source.dtype.kind in "iu" and dtype.kind in "iu" and source.size:
        check_fits("array", dtype, int(source.min()))
        check_fits("array", dtype, int(source.max()))


def from_numpy(
    source: np.ndarray[Any, Any], device: Device, dtype: DType | None = None, own: bool = False
) -> NDArray:
    """A copy of a NumPy array on `device`, in the same memory order.

    Without `dtype` it becomes float32, or keeps its own if `own` or in reference mode.
    """
    if dtype is None:
        dtype = foreign_dtype(source.dtype, keep=own or REFERENCE_MODE)
    elif source.dtype.kind not in "biuf":
        foreign_dtype(source.dtype, keep=False)
    shape = as_shape("array", source.shape)
    strides = dense_strides(shape, tuple([step // source.itemsize for step in source.strides]))
    storage = device.storage(source.size, NAME[dtype])
    device.upload(storage, shape, strides, source)
    return wrap(storage, shape, strides, 0, dtype, device)


def foreign_ids(op: str, ids: Any, device: Device) -> NDArray:
    """Ids given as NumPy data, lists or a number, as int64.

    Raises:
        DTypeError: they are not whole numbers.
    """
    source = np.asarray(ids)
    whole = source.dtype.kind in "iu" or (
        source.dtype.kind == "f" and bool(np.all(source == np.floor(source)))
    )
    if not whole and source.size:
        raise DTypeError(f"{op}: ids are not integers: got {source.dtype.name}: need whole numbers")
    return from_numpy(source, device, as_dtype("int64"))


def as_array(op: str, a: Any) -> NDArray:
    """An NDArray as it is, other data as NDArray(a) makes it.

    Raises:
        DTypeError: it is no real numbers.
    """
    return a if isinstance(a, NDArray) else NDArray(real_numbers(op, a))


def real_numbers(op: str, data: Any) -> np.ndarray[Any, Any]:
    """Data that is no NDArray, for NumPy: an array, nested lists or a number.

    Raises:
        DTypeError: it is no real numbers.
    """
    source = np.asarray(data)
    if source.dtype.kind not in "biuf":
        raise DTypeError(
            f"{op}: not an array: got {type(data).__name__} ({source.dtype.name}): "
            "need an NDArray or real numbers"
        )
    return source


def check_arrays(op: str, names: str, *arrays: object) -> None:
    """Raises TypeError unless all are NDArrays; in place of an error that one of them has led to.

    `names` are the arrays' names, with commas between; the last is also that of all that follow.
    """
    known = names.split(", ")
    for i, array in enumerate(arrays):
        if not isinstance(array, NDArray):
            raise TypeError(
                f"{op}: {known[min(i, len(known) - 1)]} is not an array: "
                f"got {type(array).__name__}: need an NDArray"
            ) from None


def check_same_device(op: str, names: str, *arrays: NDArray) -> Device:
    """The device that all arrays share. For one that is absent the caller gives another.

    `names` are the arrays' names as in check_arrays.

    Raises:
        TypeError: one is no NDArray.
        DeviceError: they live on different devices.
    """
    try:
        device = arrays[0]._device
        for array in arrays:
            if array._device is not device:
                raise _different(op, device, array._device)
    except AttributeError:
        check_arrays(op, names, *arrays)
        raise
    return device


def _different(op: str, a: Device, b: Device) -> DeviceError:
    return DeviceError(f"{op}: devices differ: got {a} and {b}: move one with .to(device)")


def may_overlap(a: NDArray, b: NDArray) -> bool:
    """Whether the memory between the ends of two arrays has a byte in common."""
    one, other = a._handle, b._handle
    if one is not other:
        start, begin = one.address, other.address
        if start + one.nbytes <= begin or begin + other.nbytes <= start:
            return False
    low_a, high_a = _bytes(a)
    low_b, high_b = _bytes(b)
    return low_a < high_b and low_b < high_a


def _bytes(array: NDArray) -> tuple[int, int]:
    low, high = extent(array._shape, array._strides)
    start = array._handle.address + array._offset * array._dtype.itemsize
    return start + low * array._dtype.itemsize, start + (high + 1) * array._dtype.itemsize


def same_view(a: NDArray, b: NDArray) -> bool:
    """Whether element i of one is element i of the other for every i."""
    return (
        a._handle is b._handle
        and a._offset == b._offset
        and a._shape == b._shape
        and a._strides == b._strides
    )


def apart(array: NDArray, target: NDArray) -> NDArray:
    """The array, or a copy where writing `target` would change elements still to be read."""
    if same_view(array, target) or not may_overlap(array, target):
        return array
    return array.copy()


def copy_into(out: NDArray, a: NDArray) -> None:
    """out[...] = a, broadcast and cast; `a` may overlap `out`.

    Raises:
        ShapeError: `a` does not broadcast to `out`, or `out` is a broadcast view.
        DeviceError: the two are on different devices.
    """
    if _common_copy_into(out, a):
        return
    check_same_device("copy_into", "out, a", out, a)
    check_writable("copy_into", out)
    # Like NumPy, assignment drops leading axes of size 1.
    while len(a._shape) > len(out._shape) and a._shape[0] == 1:
        a = a._view(a._shape[1:], a._strides[1:])
    if a._shape != out._shape:
        strides = broadcast_strides("copy_into", a._shape, a._strides, out._shape)
        a = a._view(out._shape, strides)
    out._device.launch(_COPY, (out, apart(a, out)), NO_SCALARS)
    out._handle.version += 1


def _as_integer(op: str, dtype: DType, value: Scalar) -> bool | int:
    """The value as an element of an integer or bool array; floats are cut towards zero."""
    if dtype is BOOL:
        return bool(value)
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            raise ValueError(f"{op}: not a finite number: got {value}: {dtype.name} holds integers")
        value = int(value)
    number = operator.index(value)  # type: ignore[arg-type]
    check_fits(op, dtype, number)
    return number


class Flat:
    """The elements of an array in row-major order, where no strides can show them as one axis.

    Reading an index gives a view of that element, reading a slice a copy; writing writes to the
    array.
    """

    __slots__ = ("base",)

    def __init__(self, base: NDArray) -> None:
        """The elements of `base`."""
        self.base = base

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.base.size

    @property
    def shape(self) -> Shape:
        """One axis with every element."""
        return (self.base.size,)

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.base.dtype

    def __len__(self) -> int:
        return self.base.size

    def __iter__(self) -> Iterator[NDArray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> NDArray:
        if isinstance(index, (slice, type(Ellipsis))):
            return self.copy()[index]
        _, _, place = index_view(self.shape, (1,), 0, index)
        return self.base[tuple(int(i) for i in np.unravel_index(place, self.base.shape))]

    def __setitem__(self, index: Any, value: Any) -> None:
        elements = self.copy()
        elements[index] = value
        copy_into(self.base, elements._view(self.base.shape, compact_strides(self.base.shape)))

    def copy(self) -> NDArray:
        """The elements as a new array with one axis."""
        return self.base.reshape(-1)

    def numpy(self) -> np.ndarray[Any, Any]:
        """The elements as a NumPy array with one axis."""
        return self.copy().numpy()

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray[Any, Any]:
        return self.copy().__array__(dtype, copy)

    def __repr__(self) -> str:
        return f"Flat({self.copy()})"


ARRAYS: Final = (NDArray, np.ndarray)
OPERANDS: Final = (NDArray, float, int, np.generic, np.ndarray)

# The families compute on NDArrays, and its operators are the families: hence last.
from needle.backend_ndarray import elementwise, reduce, shape  # noqa: E402
from needle.backend_ndarray.matmul import matmul as _matmul  # noqa: E402
