"""Initial weights whose scale depends on how many inputs and outputs a layer has.

Each function returns a (fan_in, fan_out) Tensor, or one of `shape`. With `shape` the fans given
are ignored: they are prod(shape[:-2]) times shape[-2] and shape[-1], so for a convolution's weight
(K, K, C_in, C_out) fan_in is K * K * C_in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..autograd import Tensor
from ..backend_ndarray import ShapeError
from ..backend_ndarray.layout import as_int, as_shape
from ..checks import NOT_NEGATIVE, check_number
from .basic import place, rand, randn

OPTIONS = ("device", "dtype", "requires_grad")
GAIN = {"relu": math.sqrt(2.0)}


def _fans(
    op: str, fan_in: int, fan_out: int, shape: Sequence[int] | None, options: Mapping[str, Any]
) -> tuple[int, int, tuple[int, ...]]:
    """The fans that count, and the shape of the weight; checks the options, too.

    Raises:
        TypeError: a fan or a size is not an integer, or an option unknown.
        ShapeError: a fan is below 1, or the shape has fewer than two axes.
        DeviceError, DTypeError: no device, or no dtype that is supported.
    """
    if unknown := options.keys() - OPTIONS:
        names = ", ".join(sorted(unknown))
        raise TypeError(f"{op}: unknown arguments: got {names}: need {', '.join(OPTIONS)}")
    place(op, options.get("device"), options.get("dtype"))
    if shape is None:
        fan_in, fan_out = as_int(op, "fan_in", fan_in), as_int(op, "fan_out", fan_out)
        sizes: tuple[int, ...] = (fan_in, fan_out)
    else:
        sizes = as_shape(op, shape)
        if len(sizes) < 2:
            raise ShapeError(f"{op}: too few axes: got shape {sizes}: need at least two")
        field = math.prod(sizes[:-2])
        fan_in, fan_out = field * sizes[-2], field * sizes[-1]
    if fan_in < 1 or fan_out < 1:
        raise ShapeError(f"{op}: got fan_in {fan_in}, fan_out {fan_out}: need both >= 1")
    return fan_in, fan_out, sizes


def _gain(op: str, nonlinearity: str) -> float:
    if not isinstance(nonlinearity, str) or nonlinearity not in GAIN:
        raise ValueError(f"{op}: unknown nonlinearity: got {nonlinearity!r}: need 'relu'")
    return GAIN[nonlinearity]


def xavier_uniform(
    fan_in: int,
    fan_out: int,
    gain: float = 1.0,
    shape: Sequence[int] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Uniform in +-gain * sqrt(6 / (fan_in + fan_out)).

    Takes `device`, `dtype` and `requires_grad` too.

    Raises:
        ShapeError: a fan is below 1, or `shape` has fewer than two axes.
        TypeError: a fan or a size is not an integer, or `gain` not a number.
        ValueError: `gain` is not finite, or below 0.
        DeviceError, DTypeError: no device, or no dtype that is supported.

    Source: Glorot and Bengio, 2010, equation 16.
    """
    fan_in, fan_out, sizes = _fans("xavier_uniform", fan_in, fan_out, shape, kwargs)
    gain = check_number("xavier_uniform", "gain", gain, *NOT_NEGATIVE)
    bound = gain * math.sqrt(6.0 / (fan_in + fan_out))
    return rand(*sizes, low=-bound, high=bound, **kwargs)


def xavier_normal(
    fan_in: int,
    fan_out: int,
    gain: float = 1.0,
    shape: Sequence[int] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Normal with standard deviation gain * sqrt(2 / (fan_in + fan_out)).

    Takes `device`, `dtype` and `requires_grad` too.

    Raises:
        ShapeError: a fan is below 1, or `shape` has fewer than two axes.
        TypeError: a fan or a size is not an integer, or `gain` not a number.
        ValueError: `gain` is not finite, or below 0.
        DeviceError, DTypeError: no device, or no dtype that is supported.

    Source: Glorot and Bengio, 2010, equation 12.
    """
    fan_in, fan_out, sizes = _fans("xavier_normal", fan_in, fan_out, shape, kwargs)
    gain = check_number("xavier_normal", "gain", gain, *NOT_NEGATIVE)
    return randn(*sizes, std=gain * math.sqrt(2.0 / (fan_in + fan_out)), **kwargs)


def kaiming_uniform(
    fan_in: int,
    fan_out: int,
    shape: Sequence[int] | None = None,
    nonlinearity: str = "relu",
    **kwargs: Any,
) -> Tensor:
    """Uniform in +-sqrt(2) * sqrt(3 / fan_in).

    Takes `device`, `dtype` and `requires_grad` too.

    Raises:
        ShapeError: a fan is below 1, or `shape` has fewer than two axes.
        TypeError: a fan or a size is not an integer.
        DeviceError, DTypeError: no device, or no dtype that is supported.
        ValueError: nonlinearity is not "relu".

    Source: He et al., 2015, equation 10.
    """
    gain = _gain("kaiming_uniform", nonlinearity)
    fan_in, _, sizes = _fans("kaiming_uniform", fan_in, fan_out, shape, kwargs)
    bound = gain * math.sqrt(3.0 / fan_in)
    return rand(*sizes, low=-bound, high=bound, **kwargs)


def kaiming_normal(
    fan_in: int,
    fan_out: int,
    shape: Sequence[int] | None = None,
    nonlinearity: str = "relu",
    **kwargs: Any,
) -> Tensor:
    """Normal with standard deviation sqrt(2) / sqrt(fan_in).

    Takes `device`, `dtype` and `requires_grad` too.

    Raises:
        ShapeError: a fan is below 1, or `shape` has fewer than two axes.
        TypeError: a fan or a size is not an integer.
        DeviceError, DTypeError: no device, or no dtype that is supported.
        ValueError: nonlinearity is not "relu".

    Source: He et al., 2015, equation 10.
    """
    gain = _gain("kaiming_normal", nonlinearity)
    fan_in, _, sizes = _fans("kaiming_normal", fan_in, fan_out, shape, kwargs)
    return randn(*sizes, std=gain / math.sqrt(fan_in), **kwargs)
