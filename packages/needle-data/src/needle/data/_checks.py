"""The argument checks that the modules of this package share."""

import math
import operator
from numbers import Real
from typing import Any, SupportsIndex, TypeGuard

import numpy as np


def is_integer(value: object) -> TypeGuard[SupportsIndex]:
    """Whether `value` is a Python or NumPy integer; a bool is not."""
    # Arrays have __index__ too, and refuse it unless they hold one integer.
    no_array = getattr(value, "ndim", 0) == 0
    return hasattr(value, "__index__") and not isinstance(value, bool) and no_array


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


def check_switch(where: str, name: str, value: object) -> bool:
    """`value`, which is a bool, or 0 or 1, as a bool.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, (bool, np.bool_)) and not (is_integer(value) and value in (0, 1)):
        raise TypeError(f"{where}: {name} is not a switch: got {value!r}: need True or False")
    return bool(value)


def check_number(where: str, name: str, value: Any) -> float:
    """`value` as a float; NaN and infinities are none.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{where}: {name} is not a number: got {value!r}: need a number")
    if not math.isfinite(value):
        raise ValueError(f"{where}: {name} is not finite: got {value}: need a number")
    return float(value)
