"""The argument checks that the modules of this package share."""

import operator
from typing import Any, SupportsIndex, TypeGuard


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
