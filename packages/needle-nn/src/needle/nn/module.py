"""Parameter and Module: a network is a tree of attributes.

A Module owns what is reachable through its attributes: Parameters and Modules, directly or inside
lists, tuples and dicts. The path is the name, so the input weight of an RNN's first layer is
`rnn_cells.0.W_ih`. Nothing is registered by hand except buffers: state that is saved and moved,
but not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from reprlib import recursive_repr
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import numpy as np

from needle.autograd import Tensor
from needle.backend_ndarray import Device, NDArray
from needle.checks import check_device, check_switch

from .checks import check_tensor, float_dtype
from .state import array_of, check_state, copy_of, replace, to_numpy

__all__ = ["Module", "Parameter"]


Check: TypeAlias = "Callable[[str, str, object], Any]"
"""A check of `module: setting: value`, which returns the value to keep."""


class Parameter(Tensor):
    """A Tensor that a Module owns and an optimizer trains."""


class Module:
    """A part of a network: parameters, buffers, child modules and a `forward`.

    `training` says which of two behaviours Dropout and BatchNorm show; `train()` and `eval()` set
    it for a whole tree.

    `device` and `dtype` are where and in which type a module makes its parameters. A module
    without parameters takes and ignores them, so that all modules can be made alike.

    Raises:
        DeviceError: device is no device.
    """

    _settings: ClassVar[Mapping[str, Check]] = {}
    """The attributes that are checked whenever they are set, by the constructor too."""

    training: bool = True
    _parameter_names: frozenset[str] = frozenset()
    _buffer_names: frozenset[str] = frozenset()

    def __init__(self, device: Device | None = None, dtype: Any = "float32") -> None:
        check_device(type(self).__name__, device)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the module's output; every module defines its own."""
        raise NotImplementedError(f"{type(self).__name__}: forward is not defined: define it")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    # ---- what a module owns -------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; a name that ever held a Parameter stays a parameter's name.

        So a plain Tensor assigned over a Parameter takes its place everywhere, in `forward` as in
        `parameters()` and `state_dict()`.

        Raises:
            TypeError, ValueError: the module checks this setting, and the value is a wrong one.
        """
        check = self._settings.get(name)
        if check is not None:
            value = check(type(self).__name__, name, value)
        if isinstance(value, Parameter) and name not in self._parameter_names:
            super().__setattr__("_parameter_names", self._parameter_names | {name})
        super().__setattr__(name, value)

    def register_buffer(self, name: str, value: Tensor) -> None:
        """Sets an attribute that `state_dict` saves and `to` moves, but no optimizer trains.

        Raises:
            TypeError: `name` is no name of an attribute, or `value` not a Tensor.
            KeyError: the module has something else of this name.
        """
        op = f"{type(self).__name__}: register_buffer"
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(f"{op}: name is {name!r}: need that of an attribute")
        if hasattr(self, name) and name not in self._buffer_names:
            raise KeyError(f"{op}: name is {name!r}: the module has one: need another")
        check_tensor(op, "value", value)
        self._buffer_names = self._buffer_names | {name}
        setattr(self, name, value)

    def _members(self) -> Iterator[tuple[str, Tensor | Module]]:
        """Yields (name, Tensor or Module) for this module's own members, children not entered."""
        for name, value in vars(self).items():
            for path, member in _unpack(name, value):
                owned = path in self._parameter_names or path in self._buffer_names
                if owned or isinstance(member, (Parameter, Module)):
                    yield path, member

    def _tree(
        self, prefix: str = "", above: tuple[Module, ...] = ()
    ) -> Iterator[tuple[str, Tensor | Module, bool]]:
        """Yields (dotted name, member, is a buffer) of the whole tree, depth first.

        A shared member comes under every name it has, but a module never inside itself.
        """
        above = (*above, self)
        for name, member in self._members():
            if any(member is module for module in above):
                continue
            path = f"{prefix}{name}"
            yield path, member, name in self._buffer_names
            if isinstance(member, Module):
                yield from member._tree(f"{path}.", above)

    def _tensors(self) -> Iterator[tuple[str, Tensor, bool]]:
        """Yields (dotted name, tensor, is a buffer) of the whole tree."""
        for name, member, is_buffer in self._tree():
            if isinstance(member, Tensor):
                yield name, member, is_buffer

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """Returns (dotted name, parameter), each parameter once, under the first of its names."""
        return _once((name, tensor) for name, tensor, buffer in self._tensors() if not buffer)

    def parameters(self) -> list[Tensor]:
        """Returns each parameter of the tree once, in the order of construction."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> list[tuple[str, Tensor]]:
        """Returns (dotted name, buffer), each buffer once, under the first of its names."""
        return _once((name, tensor) for name, tensor, buffer in self._tensors() if buffer)

    def children(self) -> list[Module]:
        """Returns the modules directly below this one, each once."""
        found = [(name, child) for name, child in self._members() if isinstance(child, Module)]
        return [child for _, child in _once(found)]

    def named_modules(self) -> list[tuple[str, Module]]:
        """Returns (dotted name, module) of the tree, each module once; its root is named ""."""
        below = ((name, module) for name, module, _ in self._tree() if isinstance(module, Module))
        return _once([("", self), *below])

    # ---- modes and moves ----------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Puts the whole tree into training mode (or, with False, evaluation); returns self.

        Raises:
            TypeError: `mode` is not True or False.
        """
        mode = check_switch(type(self).__name__, "mode", mode)
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Puts the whole tree into evaluation mode; returns self."""
        return self.train(False)

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Moves every parameter and buffer, with its gradient; returns self.

        The Tensors stay the same objects, so an optimizer that holds them goes on working. A dtype
        is for those of floats: ids and masks keep theirs. As in PyTorch the first argument may also
        be a dtype: `model.to("float64")`.

        Raises:
            DeviceError: `device` is neither a device nor a dtype, or not available.
            DTypeError: `dtype` is not float32 or float64.
        """
        if dtype is None and not isinstance(device, Device) and _is_dtype(device):
            device, dtype = None, device
        if device is not None:
            check_device("Module.to", device)
        if dtype is not None:
            dtype = float_dtype("Module.to", dtype)
        for _, tensor in self.named_parameters() + self.named_buffers():
            kept = None if tensor.dtype.kind != "f" else dtype
            replace(tensor, NDArray(array_of(tensor), device=device, dtype=kept))
            if tensor.grad is not None:
                replace(tensor.grad, NDArray(array_of(tensor.grad), device=device, dtype=dtype))
        return self

    # ---- saving and loading -------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Returns copies of all parameters and buffers by dotted name.

        The copies do not change when training goes on. A shared tensor appears under each of its
        names.

        Raises:
            KeyError: two tensors have one name (a dict key that holds a dot can cause it).
        """
        state: dict[str, Tensor] = {}
        for name, tensor, _ in self._tensors():
            if name in state:
                raise KeyError(f"state_dict: two tensors are named {name}: rename one of them")
            state[name] = copy_of(tensor)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copies the values of `state` into the parameters and buffers.

        Values are Tensors, NDArrays or NumPy arrays, from any device. Everything is checked before
        anything is written: after an error the module is as it was.

        Raises:
            KeyError: a name is missing or unexpected.
            TypeError: a value is not an array.
            ShapeError, DTypeError: a value has another shape or dtype than its tensor.
        """
        own = {name: tensor for name, tensor, _ in self._tensors()}
        check_state("load_state_dict", own, state)
        for name, tensor in own.items():
            replace(
                tensor, NDArray(to_numpy(state[name]), device=tensor.device, dtype=tensor.dtype)
            )

    # ---- printing -----------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """Returns what `repr` shows between the brackets: the module's settings."""
        return ""

    @recursive_repr()
    def __repr__(self) -> str:
        lines = [
            f"({name}): " + repr(member).replace("\n", "\n  ")
            for name, member in self._members()
            if isinstance(member, Module)
        ]
        head, settings = type(self).__name__, self.extra_repr()
        if not lines:
            return f"{head}({settings})"
        return "\n  ".join([f"{head}({settings}", *lines]) + "\n)"


T = TypeVar("T")


def _is_dtype(value: object) -> bool:
    """Whether NumPy takes `value` for a dtype; None is none."""
    try:
        return value is not None and bool(np.dtype(value))  # type: ignore[call-overload]
    except TypeError:
        return False


def _unpack(name: str, value: object) -> Iterator[tuple[str, Tensor | Module]]:
    """Yields (path, member) for a Tensor or Module, or those in lists, tuples and dicts."""
    if isinstance(value, (Tensor, Module)):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _unpack(f"{name}.{i}", item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unpack(f"{name}.{key}", item)


def _once(named: Iterable[tuple[str, T]]) -> list[tuple[str, T]]:
    """Keeps the first of the pairs that hold the same object."""
    first: dict[int, tuple[str, T]] = {}
    for name, value in named:
        first.setdefault(id(value), (name, value))
    return list(first.values())
