"""Values, operations and the graph between them.

An operation is a class with three methods: `infer` checks its inputs and says what comes out,
`compute` makes it from arrays, `gradient` says how a change of the output goes back to the
inputs. Calling an operation on Tensors makes a node that remembers operation and inputs;
`needle.engine` walks these nodes backwards.

Who owns what: a result owns its inputs, as edges. A leaf that requires gradients is two objects:
the Tensor, which owns `grad`, and a hidden Leaf, which owns the data and knows the Tensor only
weakly. Edges lead to the Leaf. So grad -> graph -> leaf never closes a cycle, and whatever is
dropped is freed at once.
"""

from __future__ import annotations

import gc
import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from . import backend_ndarray as nd
from .backend_ndarray import Device, DeviceError, DTypeError, NDArray, ShapeError
from .backend_ndarray.devices import REFERENCE_MODE
from .backend_ndarray.dtypes import DType, as_dtype
from .backend_ndarray.layout import Shape
from .checks import as_numpy, check_device, check_switch
from .mode import current as mode
from .mode import no_grad, recording
from .versions import remember

__all__ = [
    "LAZY_MODE",
    "TENSOR_COUNTER",
    "Op",
    "Spec",
    "Tensor",
    "TensorOp",
    "TensorTuple",
    "TensorTupleOp",
    "Value",
    "compute_gradient_of_variables",
    "find_topo_sort",
    "no_grad",
    "recording",
]

LAZY_MODE: bool = False
"""True: operations only make nodes, and data is computed when it is read."""

TENSOR_COUNTER: int
"""How many Values are alive: counted when it is read, among the garbage collector's objects."""


if not TYPE_CHECKING:  # or every name would seem to be in this module

    def __getattr__(name: str) -> int:
        if name == "TENSOR_COUNTER":
            return sum([issubclass(type(found), Value) for found in gc.get_objects()])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


Data: TypeAlias = "NDArray | tuple[NDArray, ...]"
Tensors: TypeAlias = "tuple[Tensor, ...]"


class Spec(NamedTuple):
    """What an operation will return."""

    shape: Shape
    dtype: DType


spec_of: Final = lru_cache(4096)(Spec)
"""Spec, remembered: looking one up takes half as long as making it."""


# ---- operations ---------------------------------------------------------------------------------


class Op:
    """A differentiable operation; its settings are attributes, its inputs the call's arguments."""

    name: ClassVar[str] = ""
    """The user's function, which opens every error message."""

    saves: ClassVar[tuple[int, ...] | None] = None
    """Which arrays `gradient` reads: input positions, -1 for the output; None for all of them.

    Backward raises if one of them was written to since it was read.
    """

    keeps: ClassVar[int] = 0
    """How many arrays `compute` returns after its results, for `gradient` alone: `node.kept()`.

    They are constants there. A gradient computed from them in operations is right once, and wrong
    when it is differentiated again: pass them to a backward operation of its own (`FusedBackward`).
    """

    differentiable: ClassVar[bool] = True
    """False where the result never carries a gradient (ids, masks, integers)."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name") or cls.__name__

    def __call__(self, *args: Any) -> Any:
        """Checks the inputs, makes the node and, unless LAZY_MODE, computes it."""
        raise NotImplementedError(f"{self.name}: is not a TensorOp or TensorTupleOp")

    def compute(self, *args: Any) -> Any:
        """The result's data from the inputs' data."""
        raise NotImplementedError(f"{self.name}: compute is not defined: define it")

    def gradient(self, out_grad: Any, node: Any) -> Any:
        """One Tensor per input: out_grad times the derivative. None where there is none."""
        raise NotImplementedError(f"{self.name}: gradient is not defined: define it")

    def gradient_as_tuple(self, out_grad: Any, node: Any) -> tuple[Any, ...]:
        """`gradient` as a tuple, for one input too."""
        output = self.gradient(out_grad, node)
        if isinstance(output, tuple):
            return output
        return tuple(output) if isinstance(output, list) else (output,)


class TensorOp(Op):
    """An operation with one output."""

    def infer(self, *args: Any) -> Spec:
        """Checks the inputs; the shape and dtype of the output.

        An operation without its own `infer` is computed to find out.
        """
        data, _ = _parted(self, self.compute(*[arg.realize_cached_data() for arg in args]))
        return Spec(data.shape, data.dtype)

    def __call__(self, *args: Any) -> Tensor:
        return _apply(self, args, Tensor)  # type: ignore[no-any-return]


class TensorTupleOp(Op):
    """An operation with several outputs."""

    def infer(self, *args: Any) -> tuple[Spec, ...]:
        """Checks the inputs; the shape and dtype of each output."""
        data, _ = _parted(self, self.compute(*[arg.realize_cached_data() for arg in args]))
        return tuple([Spec(array.shape, array.dtype) for array in data])

    def __call__(self, *args: Any) -> TensorTuple:
        return _apply(self, args, TensorTuple)  # type: ignore[no-any-return]


def _parted(op: Op, data: Any) -> tuple[Any, tuple[NDArray, ...]]:
    """What `compute` returned: the result, or a tuple of them, and the arrays for `gradient`."""
    if not op.keeps:
        return data, ()
    results = data[: -op.keeps]
    return results[0] if isinstance(op, TensorOp) else results, data[-op.keeps :]


# ---- nodes --------------------------------------------------------------------------------------


class Node:
    """What a graph is made of: an operation's result, or a leaf."""

    __slots__ = (
        "__weakref__",
        "_data",
        "_device",
        "_inputs",
        "_kept",
        "_saved",
        "_spec",
        "needs",
        "op",
    )

    op: Op | None
    needs: bool  # whether gradients flow to or through it
    _data: Any  # NDArray, a tuple of them, or None: not computed yet
    _device: Device
    _inputs: tuple[Node, ...] | None  # None: freed by backward(retain_graph=False)
    _kept: tuple[NDArray, ...]  # what the operation keeps for its gradient; set where it keeps any
    _saved: Any  # what the gradient reads: (a tuple of data, their versions), or ()
    _spec: Any  # Spec, or a tuple of them; for a node not computed yet

    def public(self) -> Value:
        """The Value that stands for this node."""
        raise NotImplementedError

    def kept(self) -> list[Tensor]:
        """What `compute` made for `gradient` alone (`Op.keeps`), as constants."""
        return [constant(array) for array in self._kept]

    def release(self) -> None:
        """Cuts the node's edges and gives up what its gradient would have read."""
        self._inputs = None
        self._saved = self._kept = ()


class Leaf(Node):
    """The hidden half of a Tensor that requires gradients."""

    __slots__ = ("_tensor",)

    _tensor: weakref.ref[Tensor] | None

    def __init__(self, data: NDArray, tensor: Tensor) -> None:
        """The node of `tensor`, which holds `data`."""
        self.op = None
        self.needs = True
        self._data = data
        self._device = data._device
        self._inputs = ()
        self._saved = ()
        self._spec = None
        self._tensor = weakref.ref(tensor)

    def tensor(self) -> Tensor | None:
        """The Tensor, if it is still alive."""
        return self._tensor() if self._tensor is not None else None

    def public(self) -> Tensor:
        """The Tensor, or a new one where it is gone."""
        tensor = self.tensor()
        if tensor is None:
            tensor = Tensor.__new__(Tensor)
            _fill_constant(tensor, self._data)
            tensor._data = None
            tensor._leaf = self
            self._tensor = weakref.ref(tensor)
        return tensor


class Value(Node):
    """A Tensor or TensorTuple: a node that a user can hold."""

    __slots__ = ("_leaf",)

    _leaf: Leaf | None

    def public(self) -> Value:
        """The value itself."""
        return self

    @property
    def inputs(self) -> list[Any]:
        """The Tensors and TensorTuples the operation was applied to; empty for a leaf."""
        return [node.public() for node in self._inputs or ()]

    @property
    def cached_data(self) -> Any:
        """The data, or None where it is not computed yet (LAZY_MODE)."""
        return (self._leaf or self)._data

    @cached_data.setter
    def cached_data(self, data: Any) -> None:
        node = self._leaf or self
        node._data = data
        if isinstance(data, NDArray):
            node._device = self._device = data._device

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to, or through, this value."""
        return (self._leaf or self).needs

    def is_leaf(self) -> bool:
        """Whether no operation made it."""
        return self.op is None

    def realize_cached_data(self) -> Any:
        """The data, computed now if it was not yet."""
        node = self._leaf or self
        if node._data is None:
            realize(node)
        return node._data


_new: Final = object.__new__


def _apply(op: Any, args: tuple[Any, ...], kind: Any) -> Any:
    """The node of `op` on `args`: a Tensor or TensorTuple, `kind` says which.

    Every operation of every training step passes through here: it is written for speed.
    """
    edges, arrays = [], []
    needs = apart = False
    try:
        recorded = mode.recording
        # On the way back shapes follow from those checked on the way forward.
        unchecked = not recorded and kind is Tensor and mode.walking and not LAZY_MODE
        spec = None if unchecked else op.infer(*args)
        device = args[0]._device
        for arg in args:
            edge = arg._leaf or arg
            if edge.needs:
                needs = True
            if edge._device is not device:
                apart = True
            if edge._data is None and not LAZY_MODE:
                realize(edge)
            edges.append(edge)
            arrays.append(edge._data)
    except AttributeError:
        for i, arg in enumerate(args):
            check_tensor(op.name, i, arg)
        raise
    if apart:
        _check_devices(op, edges)
    if needs and not (recorded and op.differentiable):
        needs = False
    if LAZY_MODE:
        return _deferred(op, edges, kind, spec, needs)
    data = op.compute(*arrays)
    out = _new(kind)
    if op.keeps:
        data, kept = _parted(op, data)
        out._kept = kept if needs else ()
    out._leaf = None
    out.grad = None
    out._data = data
    if kind is Tensor:
        out._device = data._device
        out._spec = None
    else:
        out._device = device
        out._spec = spec
    out.needs = needs
    if needs:
        out.op = op
        out._inputs = tuple(edges)
        out._saved = remember(op.saves, arrays, data) if op.saves != () else ()
    else:
        out.op = None if kind is Tensor else op
        out._inputs = out._saved = ()
    return out


def _deferred(op: Any, edges: list[Node], kind: Any, spec: Any, needs: bool) -> Any:
    """The node of an operation that is computed later."""
    out = _new(kind)
    out._leaf = None
    out.grad = None
    out.op = op
    out.needs = needs
    out._data = None
    out._device = getattr(op, "device", edges[0]._device)
    out._inputs = tuple(edges)
    out._saved = ()
    out._spec = spec
    return out


def realize(node: Node) -> None:
    """Computes a node and everything it depends on, without recursion."""
    waiting = [node]
    while waiting:
        top = waiting[-1]
        if top._data is not None:
            waiting.pop()
            continue
        inputs = top._inputs or ()
        missing = [edge for edge in inputs if edge._data is None]
        if missing:
            waiting.extend(missing)
            continue
        op: Any = top.op
        arrays = [edge._data for edge in inputs]
        top._data, kept = _parted(op, op.compute(*arrays))
        if top.needs:
            top._kept = kept
            top._saved = remember(op.saves, arrays, top._data)
        else:
            top._inputs = ()


def _check_devices(op: Op, edges: list[Node]) -> None:
    for edge in edges:
        if edge._device != edges[0]._device:
            raise DeviceError(
                f"{op.name}: devices differ: got {edges[0]._device} and {edge._device}: "
                "move one with .to(device)"
            )


# ---- values -------------------------------------------------------------------------------------


class TensorTuple(Value):
    """Several Tensors as one value: what an operation with several outputs returns."""

    __slots__ = ("grad",)

    grad: None

    def __len__(self) -> int:
        return len(self._spec)

    def __getitem__(self, index: int | slice) -> Any:
        """One item as a Tensor; a slice gives a tuple of them."""
        if isinstance(index, slice):
            return tuple([self[i] for i in range(*index.indices(len(self)))])
        return ops.tuple_get_item(self, index)

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self[i] for i in range(len(self))])

    def __add__(self, other: TensorTuple) -> TensorTuple:
        if not isinstance(other, TensorTuple):
            return NotImplemented
        if len(self) != len(other):
            raise ShapeError(
                f"add: lengths differ: got {len(self)} and {len(other)}: need equal TensorTuples"
            )
        return ops.make_tuple(*[a + b for a, b in zip(self, other, strict=True)])

    @property
    def device(self) -> Device:
        """Where the items live."""
        return self._device

    def detach(self) -> TensorTuple:
        """The same items outside the graph."""
        return ops.make_tuple(*[item.detach() for item in self])

    def numpy(self) -> tuple[np.ndarray[Any, Any], ...]:
        """Copies of the items as NumPy arrays."""
        return tuple([item.numpy() for item in self])

    def tuple(self) -> Tensors:
        """The items as a Python tuple."""
        items: Tensors = self[:]
        return items

    def __reduce__(self) -> Any:
        return ops.make_tuple, self[:]

    def __repr__(self) -> str:
        return f"needle.TensorTuple{self[:]}"

    def __str__(self) -> str:
        return str(self[:])


class Tensor(Value):
    """An array that remembers how it was made, so that gradients can flow back through it."""

    __slots__ = ("grad",)

    grad: Tensor | None
    """The gradient, on leaves that require one, after backward."""

    # NumPy arrays and scalars on the left leave the operation to Tensor.
    __array_ufunc__: Final = None

    def __init__(
        self,
        array: Any,
        *,
        device: Device | None = None,
        dtype: DTypeLike | None = None,
        requires_grad: bool = True,
    ) -> None:
        """A leaf with the values of a Tensor, NDArray, NumPy array, nested lists or a number.

        A Tensor or NDArray keeps its dtype and device, and shares its memory, unless told
        otherwise. Other data is copied and becomes float32 on the default device (with
        NEEDLE_BACKEND=np it keeps NumPy's own dtype).

        Integers and bools carry no gradient: `requires_grad` counts for floats only. (The
        exception: data that kept NumPy's integer dtype under NEEDLE_BACKEND=np.)

        Raises:
            DTypeError: the dtype is not supported, or the data no real numbers.
            DeviceError: `device` is no device, or not available.
            ShapeError: the lists are ragged, or have more than 16 axes.
            TypeError: `requires_grad` is not True or False.
        """
        data = _as_array(array, device, dtype)
        _fill_constant(self, data)
        if requires_grad is False:
            return
        wanted: Any = requires_grad
        if wanted is not True and not check_switch("Tensor", "requires_grad", wanted):
            return
        by_default = REFERENCE_MODE and dtype is None and not isinstance(array, (NDArray, Tensor))
        if data._dtype.kind == "f" or by_default:
            _hide(self)

    @staticmethod
    def make_const(data: Any, requires_grad: bool = False) -> Tensor:
        """A leaf that shares the memory of `data`, an NDArray or a Tensor."""
        return Tensor(data, requires_grad=requires_grad)

    @staticmethod
    def make_from_op(op: TensorOp, inputs: Sequence[Value]) -> Tensor:
        """The result of an operation."""
        return op(*inputs)

    # What it is

    @property
    def shape(self) -> Shape:
        """The size of each axis; reading it never computes."""
        node = self._leaf or self
        shape: Shape = node._spec[0] if node._data is None else node._data._shape
        return shape

    @property
    def dtype(self) -> DType:
        """The element type; reading it never computes."""
        node = self._leaf or self
        dtype: DType = node._spec[1] if node._data is None else node._data._dtype
        return dtype

    @property
    def device(self) -> Device:
        """Where the data lives."""
        return (self._leaf or self)._device

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def T(self) -> Tensor:
        """The axes reversed."""
        return ops.permute(self, tuple(reversed(range(self.ndim))))

    @property
    def data(self) -> Tensor:
        """The same data outside the graph; assigning replaces the data of this Tensor."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor | NDArray) -> None:
        if not isinstance(value, (Tensor, NDArray)):
            raise TypeError(f"data: got {type(value).__name__}: need a Tensor or an NDArray")
        if value.shape != self.shape:
            raise ShapeError(f"data: shapes differ: got {value.shape}: need {self.shape}")
        if value.dtype != self.dtype:
            raise DTypeError(f"data: dtypes differ: got {value.dtype}: need {self.dtype}")
        if value.device != self.device:
            raise DeviceError(f"data: devices differ: got {value.device}: need {self.device}")
        self.cached_data = value.realize_cached_data() if isinstance(value, Tensor) else value

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to, or through, this Tensor; settable on leaves."""
        return (self._leaf or self).needs

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.op is not None:
            raise RuntimeError(
                f"requires_grad: is set on leaves only: got a result of {self.op.name}: "
                "detach() it first"
            )
        if value and self.dtype.kind != "f":
            raise DTypeError(
                f"requires_grad: only floats have gradients: got {self.dtype}: "
                "need float32 or float64"
            )
        if value and self._leaf is None:
            # Older results lead to this Tensor as a constant: it stays one for them.
            self._leaf = Leaf(self._data, self)
        elif not value and self._leaf is not None:
            self._data, self._leaf = self._leaf._data, None

    def detach(self) -> Tensor:
        """The same data outside the graph, sharing memory."""
        return constant(self.realize_cached_data())

    def numpy(self) -> np.ndarray[Any, Any]:
        """A NumPy copy."""
        array: np.ndarray[Any, Any] = self.realize_cached_data().numpy()
        return array

    def item(self) -> Any:
        """The only element as a Python number.

        Raises:
            ShapeError: there is not exactly one element.
        """
        return self.realize_cached_data().item()

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = self.realize_cached_data().__array__(dtype, copy)
        return array

    def __len__(self) -> int:
        shape = self.shape
        if not shape:
            raise TypeError("len: the Tensor has no axes: got shape (): need at least one axis")
        return shape[0]

    def __bool__(self) -> bool:
        return bool(self.realize_cached_data())

    def __float__(self) -> float:
        return float(self.realize_cached_data())

    def __int__(self) -> int:
        return int(self.realize_cached_data())

    def __index__(self) -> int:
        return operator.index(self.realize_cached_data())

    def __repr__(self) -> str:
        return f"needle.Tensor({self.realize_cached_data()})"

    def __str__(self) -> str:
        return str(self.realize_cached_data())

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self.realize_cached_data(), self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self.op is not None:
            raise RuntimeError(
                f"deepcopy: only leaves can be copied: got a result of {self.op.name}: "
                "detach() it first"
            )
        return _unpickle(type(self), self.realize_cached_data().copy(), self.requires_grad)

    # Gradients

    def backward(
        self,
        out_grad: Tensor | None = None,
        *,
        retain_graph: bool = True,
        accumulate: bool = False,
    ) -> None:
        """Sets `grad` of every leaf below that requires it to the gradient of this Tensor.

        Args:
            out_grad: the gradient of some further result with respect to this Tensor; None
                means ones.
            retain_graph: True: gradients carry a graph, can be differentiated again, and backward
                can run twice. False: the fast path; nothing is recorded, and the graph is freed
                as it goes.
            accumulate: add to a `grad` that is there, instead of replacing it.

        Raises:
            RuntimeError: this Tensor requires no gradient, the graph has been freed, or an array
                that a gradient reads has changed since.
            ShapeError, DeviceError: out_grad does not fit this Tensor.
        """
        engine.backward(self, out_grad, retain_graph, accumulate)

    # Arithmetic: a Tensor or a number on either side

    def __add__(self, other: Any) -> Tensor:
        if isinstance(other, Tensor):
            return ops.add(self, other)
        return operate(ops.add, ops.add_scalar, self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return operate(ops.subtract, ops.subtract_scalar, self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return operate_right(ops.subtract, ops.scalar_subtract, self, other)

    def __mul__(self, other: Any) -> Tensor:
        if isinstance(other, Tensor):
            return ops.multiply(self, other)
        return operate(ops.multiply, ops.mul_scalar, self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return operate(ops.divide, ops.divide_scalar, self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return operate_right(ops.divide, ops.scalar_divide, self, other)

    def __pow__(self, other: Any) -> Tensor:
        return operate(ops.power, ops.power_scalar, self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return operate_right(ops.power, ops.scalar_power, self, other)

    def __matmul__(self, other: Any) -> Tensor:
        if isinstance(other, Tensor):
            return ops.matmul(self, other)
        return operate(ops.matmul, no_scalar_matmul, self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return operate_right(ops.matmul, no_scalar_matmul, self, other)

    def __neg__(self) -> Tensor:
        return ops.negate(self)

    def __pos__(self) -> Tensor:
        return self

    # Comparisons give bools, element by element; a Tensor is hashed by identity.

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return _compare(nd.equal, self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return _compare(nd.not_equal, self, other)

    def __lt__(self, other: Any) -> Tensor:
        return _compare(nd.less, self, other)

    def __le__(self, other: Any) -> Tensor:
        return _compare(nd.less_equal, self, other)

    def __gt__(self, other: Any) -> Tensor:
        return _compare(nd.greater, self, other)

    def __ge__(self, other: Any) -> Tensor:
        return _compare(nd.greater_equal, self, other)

    # Operations as methods

    def __getitem__(self, index: Any) -> Tensor:
        """Ints, slices, Ellipsis and None as in NumPy; gradients flow through."""
        return ops.getitem(self, index)

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self[i] for i in range(len(self))])

    def sum(self, axes: Any = None, keepdims: bool = False) -> Tensor:
        """The sum over `axes`, None for all."""
        return ops.summation(self, axes, keepdims)

    def mean(self, axes: Any = None, keepdims: bool = False) -> Tensor:
        """The mean over `axes`, None for all."""
        return ops.mean(self, axes, keepdims)

    def max(self, axes: Any = None, keepdims: bool = False) -> Tensor:
        """The largest element over `axes`, None for all."""
        return ops.max(self, axes, keepdims)

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape: `reshape((2, 3))` or `reshape(2, 3)`."""
        return ops.reshape(self, _unpack(shape))

    def broadcast_to(self, *shape: Any) -> Tensor:
        """Repeated along axes of size 1 and new ones on the left."""
        return ops.broadcast_to(self, _unpack(shape))

    def transpose(self, axes: Any = None) -> Tensor:
        """Two axes swapped; the last two by default."""
        return ops.transpose(self, axes)

    def matmul(self, other: Tensor) -> Tensor:
        """The matrix product."""
        return ops.matmul(self, other)

    def astype(self, dtype: DTypeLike) -> Tensor:
        """With another dtype; gradients flow back in this Tensor's dtype."""
        return ops.astype(self, dtype)

    def to(self, device: Device) -> Tensor:
        """On `device`; the Tensor itself if it is there. Gradients flow back."""
        return ops.to_device(self, device)


def _unpack(arguments: tuple[Any, ...]) -> Any:
    """The tuple meant by `f((2, 3))` and by `f(2, 3)`."""
    if len(arguments) == 1 and isinstance(arguments[0], Sequence):
        return arguments[0]
    return arguments


def _as_array(array: Any, device: Device | None, dtype: DTypeLike | None) -> NDArray:
    data: Any = array.realize_cached_data() if isinstance(array, Tensor) else array
    if isinstance(data, NDArray) and (
        (device is None or device == data._device)
        and (dtype is None or as_dtype(dtype, "Tensor") is data._dtype)
    ):
        return data
    try:
        return NDArray(data, device=device, dtype=dtype)
    except (DeviceError, DTypeError, ValueError):
        _check_source(data, device, dtype)
        raise


def _check_source(data: Any, device: Device | None, dtype: DTypeLike | None) -> None:
    """Raises what is wrong with the arguments of Tensor, by their names."""
    check_device("Tensor", device)
    if dtype is not None:
        as_dtype(dtype, "Tensor")
    if not isinstance(data, NDArray):
        as_numpy("Tensor", "array", data)


def _fill_constant(tensor: Tensor, data: NDArray) -> None:
    """Makes `tensor` a leaf that requires no gradient."""
    tensor.op = None
    tensor.needs = False
    tensor.grad = None
    tensor._leaf = None
    tensor._data = data
    tensor._device = data._device
    tensor._inputs = tensor._saved = ()
    tensor._spec = None


def _hide(tensor: Tensor) -> None:
    """Hands a constant's data to a Leaf: from now on it requires gradients."""
    tensor._leaf = Leaf(tensor._data, tensor)
    tensor._data = None


def constant(data: NDArray) -> Tensor:
    """A leaf that shares the memory of `data` and requires no gradient."""
    tensor: Tensor = _new(Tensor)
    _fill_constant(tensor, data)
    return tensor


def _unpickle(kind: type[Tensor], data: NDArray, requires_grad: bool) -> Tensor:
    tensor: Tensor = kind.__new__(kind)
    _fill_constant(tensor, data)
    if requires_grad:
        _hide(tensor)
    return tensor


def _compare(function: Callable[[Any, Any], NDArray], a: Tensor, b: Any) -> Tensor:
    if isinstance(b, Tensor):
        b = b.realize_cached_data()
    elif not isinstance(b, (bool, int, float, np.generic, np.ndarray, NDArray)):
        return NotImplemented  # type: ignore[no-any-return]
    return constant(function(a.realize_cached_data(), b))


# ---- walking the graph --------------------------------------------------------------------------

# Tensors' methods are operations, operations apply to Tensors, and the engine walks both.
from . import engine, ops  # noqa: E402
from .ops.common import check_tensor, operate, operate_right  # noqa: E402
from .ops.matmul import no_scalar_matmul  # noqa: E402


def find_topo_sort(nodes: Sequence[Value]) -> list[Value]:
    """Every value that `nodes` depend on, and they themselves: inputs before results.

    The order is that of a depth-first search that visits inputs in order and lists a value after
    its inputs.
    """
    roots = [value._leaf or value for value in nodes]
    return [node.public() for node in engine.post_order(roots)]


def compute_gradient_of_variables(output_tensor: Tensor, out_grad: Tensor) -> None:
    """Sets `grad` of the leaves below `output_tensor`, with a graph; see Tensor.backward."""
    engine.backward(output_tensor, out_grad, retain_graph=True, accumulate=False)
