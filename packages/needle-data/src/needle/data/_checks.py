"""The argument checks that the modules of this package share."""

import operator
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, TypeGuard

import numpy as np
from numpy.typing import NDArray as Array

from needle.backend_ndarray import DTypeError


def is_integer(value: object) -> TypeGuard[SupportsIndex]:
    """Whether `value` is a Python or NumPy integer; a bool is not."""
    # Arrays have __index__ too, and refuse it unless they hold one integer; classes of integers.
    no_array = getattr(value, "ndim", 0) == 0
    return hasattr(value, "__index__") and not isinstance(value, bool | type) and no_array


def check_integer(where: str, name: str, value: Any, *, at_least: int) -> int:
    """`value` as an int.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is below `at_least`.
    """
    rule = f"need an integer >= {at_least}"
    if not is_integer(value):
        raise TypeError(f"{where}: {name} is not an integer: got {value!r}: {rule}")
    number = operator.index(value)
    if number < at_least:
        raise ValueError(f"{where}: {name} is too small: got {number}: {rule}")
    return number


def check_path(where: str, name: str, value: Any) -> Path:
    """`value` as a path.

    Raises:
        TypeError: it is neither a str nor a Path.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{where}: {name} is not a path: got {value!r}: need a str or Path")
    return Path(value)


def check_array(where: str, name: str, value: Any, need: str) -> Array[Any]:
    """`value`, which is a NumPy array; `need` is the text of what it should hold.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, np.ndarray):
        kind = type(value).__name__
        raise TypeError(f"{where}: {name} is not a NumPy array: got {kind}: need {need}")
    return value


def check_numbers(where: str, name: str, array: Array[Any]) -> Array[Any]:
    """`array`, the argument `name`, which holds numbers.

    Raises:
        DTypeError: it holds something else.
    """
    if array.dtype.kind not in "biuf":
        raise DTypeError(
            f"{where}: {name} is not numbers: got dtype {array.dtype}: need bool, int or float"
        )
    return array


def check_transforms(where: str, transforms: Any) -> Sequence[Callable[[Any], Any]] | None:
    """`transforms`, which are None or a sequence of callables.

    Raises:
        TypeError: they are something else.
    """
    if transforms is None:
        return None
    if not isinstance(transforms, Sequence) or not all(callable(t) for t in transforms):
        raise TypeError(f"{where}: transforms: got {transforms!r}: need a list of callables")
    return transforms
