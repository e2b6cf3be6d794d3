"""Modules made of other modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from needle.autograd import Tensor
from needle.backend_ndarray import Device

from .module import Module

__all__ = ["Identity", "Residual", "Sequential"]

Layer = Callable[[Tensor], Tensor]


class Identity(Module):
    """Returns its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Sequential(Module):
    """Applies modules one after the other.

    Attributes:
        modules: the modules, in order.

    Raises:
        TypeError: one of them cannot be called.
        DeviceError: device is no device.
    """

    def __init__(self, *modules: Layer, device: Device | None = None, dtype: Any = "float32"):
        super().__init__(device, dtype)
        for i, module in enumerate(modules):
            _check_layer("Sequential", f"module {i}", module)
        self.modules = modules

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules:
            x = module(x)
        return x


class Residual(Module):
    """Computes fn(x) + x.

    Raises:
        TypeError: fn cannot be called.
        DeviceError: device is no device.
    """

    def __init__(self, fn: Layer, device: Device | None = None, dtype: Any = "float32"):
        super().__init__(device, dtype)
        _check_layer("Residual", "fn", fn)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def _check_layer(op: str, name: str, layer: object) -> None:
    if not callable(layer) or isinstance(layer, type):
        kind = layer.__name__ if isinstance(layer, type) else type(layer).__name__
        what = "the class" if isinstance(layer, type) else "a"
        raise TypeError(
            f"{op}: {name} is {what} {kind}: need a module, or a function of one Tensor"
        )
