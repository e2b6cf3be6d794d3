"""Checks of arguments that autograd, the initialisers and the later packages share."""

from __future__ import annotations

import math
import sys
from numbers import Real
from typing import Any, Final

import numpy as np

from .backend_ndarray import Device, ShapeError, default_device
from .backend_ndarray.errors import DeviceError

__all__ = [
    "BELOW_ONE",
    "LARGEST",
    "NOT_NEGATIVE",
    "UNIT",
    "as_numpy",
    "check_device",
    "check_number",
    "check_switch",
]

LARGEST: Final = sys.float_info.max
"""The largest finite number: neither infinities nor NaN lie within +-LARGEST."""

# For check_number: the least and the greatest value, and the rule in words.
NOT_NEGATIVE: Final = (0.0, LARGEST, "a finite number >= 0")
UNIT: Final = (0.0, 1.0, "a number in [0, 1]")
BELOW_ONE: Final = (0.0, math.nextafter(1.0, 0.0), "a number in [0, 1)")


def check_device(op: str, device: object) -> Device:
    """The device, or the default one for None.

    Raises:
        DeviceError: it is no device.
    """
    if device is None:
        return default_device()
    if not isinstance(device, Device):
        raise DeviceError(f"{op}: device: got {device!r}: need a device such as needle.cpu()")
    return device


def check_number(
    op: str,
    name: str,
    value: Any,
    low: float = -LARGEST,
    high: float = LARGEST,
    rule: str = "a finite number",
) -> float:
    """`value` as a float in [low, high], of which `rule` is the text.

    Raises:
        TypeError: it is not a real number.
        ValueError: it is outside, or NaN.
    """
    # A float is not asked whether it is a Real: that takes as long as all the rest.
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{op}: {name}: got {value!r}: need {rule}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond all floats: outside, whatever the limits
        number = math.inf
    if not low <= number <= high:
        raise ValueError(f"{op}: {name}: got {value}: need {rule}")
    return number


def check_switch(op: str, name: str, value: Any) -> bool:
    """`value`, which is a bool or, as in a saved state, 0 or 1, as a bool.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, (bool, np.bool_, Real)) or value not in (0, 1):
        raise TypeError(f"{op}: {name}: got {value!r}: need True or False")
    return bool(value)


def as_numpy(op: str, name: str, value: Any) -> np.ndarray[Any, Any]:
    """`value` as NumPy takes it.

    Raises:
        ShapeError: it is a ragged nested sequence.
    """
    try:
        array: np.ndarray[Any, Any] = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{op}: {name} is not an array: {error}") from error
    return array
