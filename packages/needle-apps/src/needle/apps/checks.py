"""The checks of arguments that functions share, each naming the function, what it got and the rule.

Those of numbers are `needle.checks`', those of Tensors `needle.nn.checks`'.
"""

from __future__ import annotations

import inspect
import math
from numbers import Integral
from typing import Any

from needle import nn
from needle.checks import LARGEST, check_number

# From the least number above 0 on.
ABOVE_ZERO = (math.ulp(0.0), LARGEST, "a finite number above 0, or None for no limit")


def kind_of(value: object) -> str:
    """What a value is, for an error: `a list`, `the class SGD`."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def check_kind(where: str, name: str, value: object, kind: type, need: str) -> None:
    """Raises TypeError unless `value` is a `kind`, which `need` puts into words."""
    if not isinstance(value, kind):
        raise TypeError(f"{where}: {name} is {kind_of(value)}: need {need}")


def check_model(where: str, model: object) -> None:
    """Raises TypeError unless `model` is a Module."""
    check_kind(where, "model", model, nn.Module, "a Module")


def check_text_model(where: str, model: Any) -> None:
    """Raises TypeError unless `model` is a Module that takes a hidden state, too."""
    check_model(where, model)
    try:
        inspect.signature(model.forward).bind(None, None)
    except TypeError:
        raise TypeError(
            f"{where}: model is {kind_of(model)}, not called as model(ids, h): need one that "
            "returns (logits, h), such as LanguageModel"
        ) from None


def check_count(where: str, name: str, value: Any) -> None:
    """Checks a number of things.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{where}: {name} is {value!r}: need a whole number")
    if value < 1:
        raise ValueError(f"{where}: {name} too small: {value}: need at least 1")


def check_clip(where: str, clip: object) -> None:
    """Checks the largest norm of a gradient; None is no limit.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not above 0, infinite or NaN.
    """
    if clip is not None:
        check_number(where, "clip", clip, *ABOVE_ZERO)


def check_function(where: str, name: str, value: object, need: str) -> None:
    """Raises TypeError unless `value` can be called; a class only makes what is called."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{where}: {name} is {kind_of(value)}: need {need}")


def check_maker(where: str, name: str, value: object, example: str) -> None:
    """Raises TypeError unless `value` is a class, such as `example`, or a function that makes one.

    What such a class has made is refused, a module too, though it can be called.
    """
    if not callable(value) or isinstance(value, nn.Module):
        raise TypeError(
            f"{where}: {name} is {kind_of(value)}: need a class such as {example}, or a function "
            "that makes one"
        )
