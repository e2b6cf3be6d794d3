"""The six element types, and how they combine: NumPy 2's promotion, with weak Python scalars."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from needle.backend_ndarray.errors import DTypeError

DType: TypeAlias = np.dtype[Any]
Scalar: TypeAlias = "bool | int | float | np.generic"
Number: TypeAlias = "bool | int | float"

FLOAT32: Final[DType] = np.dtype(np.float32)
FLOAT64: Final[DType] = np.dtype(np.float64)
INT32: Final[DType] = np.dtype(np.int32)
INT64: Final[DType] = np.dtype(np.int64)
UINT8: Final[DType] = np.dtype(np.uint8)
BOOL: Final[DType] = np.dtype(np.bool_)
SUPPORTED: Final[tuple[DType, ...]] = (FLOAT32, FLOAT64, INT32, INT64, UINT8, BOOL)
# numpy.dtype.name is computed at every access, which takes longer than a small kernel.
NAME: Final[dict[DType, str]] = {dtype: dtype.name for dtype in SUPPORTED}
SUPPORTED_NAMES: Final[str] = ", ".join(NAME.values())

# One instance of each dtype is used everywhere, so that dtypes can be compared with `is`.
_KNOWN: Final[dict[Any, DType]] = {
    key: dtype for dtype in SUPPORTED for key in (dtype, dtype.name, dtype.type)
}


def as_dtype(dtype: DTypeLike, op: str = "dtype") -> DType:
    """The supported dtype that `dtype` (a name, a NumPy or Python type, a dtype) stands for.

    Raises:
        DTypeError: it stands for none of the six.
    """
    try:
        return _KNOWN[dtype]
    except (KeyError, TypeError):
        pass
    try:
        return _KNOWN[np.dtype(dtype)]
    except (KeyError, TypeError):
        named = dtype if isinstance(dtype, str) else getattr(dtype, "name", None)
        name = named or getattr(dtype, "__name__", None) or repr(dtype)
        raise DTypeError(
            f"{op}: dtype is not supported: got {name}: need one of {SUPPORTED_NAMES}"
        ) from None


def foreign_dtype(source: DType, keep: bool) -> DType:
    """The dtype for data from outside that comes without a wish: float32, or its own if `keep`.

    Raises:
        DTypeError: the data is not real numbers (complex, text, objects).
    """
    if keep and source in _KNOWN:
        return _KNOWN[source]
    if source.kind not in "biuf":
        raise DTypeError(
            f"array: dtype is not supported: got {source.name}: need real numbers "
            f"(stored as one of {SUPPORTED_NAMES})"
        )
    return FLOAT32


_PROMOTED: Final[dict[tuple[DType, DType], DType]] = {
    (a, b): _KNOWN[np.promote_types(a, b)] for a in SUPPORTED for b in SUPPORTED
}


def promote(a: DType, b: DType) -> DType:
    """The dtype that holds both, as NumPy 2 has it: float32 with int32 is float64."""
    return _PROMOTED[a, b]


def promote_scalar(
    op: str, dtype: DType, value: Scalar | np.ndarray[Any, Any], as_floats: bool = False
) -> DType:
    """The dtype of an array of `dtype` combined with a scalar.

    A Python scalar is weak: only its kind (bool < int < float) counts. A NumPy scalar has a dtype
    and counts with it. With as_floats, as in a division, an integer array and a Python int become
    float64 before they are combined, so the int need not fit the array's dtype.

    Raises:
        DTypeError: the combination is not a supported dtype.
        OverflowError: a Python int does not fit the dtype.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        return as_dtype(np.result_type(dtype, value), op)
    if isinstance(value, bool):
        return dtype
    if isinstance(value, float):
        return dtype if dtype.kind == "f" else FLOAT64
    if as_floats and dtype.kind != "f":
        return FLOAT64
    result = INT64 if dtype is BOOL else dtype
    check_fits(op, result, value)
    return result


def check_fits(op: str, dtype: DType, value: Number) -> None:
    """Raises OverflowError where a Python int lies outside `dtype`, as NumPy does."""
    if not fits(dtype, value):
        raise OverflowError(
            f"{op}: Python integer is out of bounds: got {value}: "
            f"{dtype.name} holds {np.iinfo(dtype).min} to {np.iinfo(dtype).max}"
        )


def fits(dtype: DType, value: Number) -> bool:
    """Whether `value` lies in the range of `dtype`; always true for a dtype without integers."""
    if dtype.kind not in "iu":
        return True
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max)
