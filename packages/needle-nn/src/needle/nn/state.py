"""State by value: what `state_dict` gives out and `load_state_dict` takes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from needle.autograd import Tensor
from needle.backend_ndarray import DTypeError, NDArray, ShapeError

__all__ = ["array_of", "check_mapping", "check_state", "copy_of", "replace", "to_numpy"]


def array_of(tensor: Tensor) -> NDArray:
    """Returns the tensor's array itself."""
    array: NDArray = tensor.realize_cached_data()
    return array


def replace(tensor: Tensor, array: NDArray) -> None:
    """Gives the tensor another array; the tensor stays the same object."""
    tensor.cached_data = array


def copy_of(tensor: Tensor) -> Tensor:
    """Returns a copy with memory of its own, outside any graph."""
    return Tensor(
        tensor.numpy(), device=tensor.device, dtype=tensor.dtype, requires_grad=tensor.requires_grad
    )


def to_numpy(value: Any) -> np.ndarray[Any, Any]:
    """Returns the values of a Tensor, NDArray or NumPy array."""
    array: np.ndarray[Any, Any] = value if isinstance(value, np.ndarray) else value.numpy()
    return array


def check_mapping(op: str, state: object) -> None:
    """Raises TypeError unless `state` maps names to values."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{op}: state is a {type(state).__name__}: need what state_dict() gives")


def check_state(op: str, own: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Checks that `state` has exactly the names, shapes and dtypes of `own`.

    Raises:
        TypeError: it is no mapping, or a value is not an array.
        KeyError: a name is missing or unexpected.
        ShapeError, DTypeError: a value has another shape or dtype.
    """
    check_mapping(op, state)
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        raise KeyError(
            f"{op}: names differ: missing {missing}, unexpected {unexpected}: "
            "need exactly the names of state_dict()"
        )
    for name, tensor in own.items():
        value = state[name]
        if not isinstance(value, (Tensor, NDArray, np.ndarray)):
            raise TypeError(
                f"{op}: {name} is a {type(value).__name__}: need a Tensor, NDArray or NumPy array"
            )
        if tuple(value.shape) != tuple(tensor.shape):
            raise ShapeError(f"{op}: {name} is {tuple(value.shape)}: need {tuple(tensor.shape)}")
        if np.dtype(value.dtype) != np.dtype(tensor.dtype):
            raise DTypeError(f"{op}: {name} is {value.dtype}: need {tensor.dtype}")
