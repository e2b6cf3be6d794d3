"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from needle import backend_ndarray as nd
from needle import init, ops
from needle.autograd import Tensor
from needle.backend_ndarray import Device, NDArray, ShapeError
from needle.checks import check_switch

from .checks import (
    check_axes,
    check_size,
    check_tensor,
    float_dtype,
    not_negative,
    positive,
    promoted,
    unit,
)
from .module import Check, Module, Parameter
from .state import array_of

__all__ = ["BatchNorm1d", "BatchNorm2d", "LayerNorm1d"]


class _BatchNorm(Module):
    """What both batch normalisations share; `layout` names the axes, C the second of them."""

    _settings: ClassVar[Mapping[str, Check]] = {
        "eps": not_negative,
        "momentum": unit,
        "relu": check_switch,
    }
    layout: str
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        dim: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: Device | None = None,
        dtype: Any = "float32",
        *,
        relu: bool = False,
    ) -> None:
        super().__init__(device, dtype)
        op = type(self).__name__
        dtype = float_dtype(op, dtype)
        self.dim = positive(op, "dim", dim)
        self.eps = eps
        self.momentum = momentum
        self.relu = relu
        self.weight = Parameter(init.ones(dim, device=device, dtype=dtype))
        self.bias = Parameter(init.zeros(dim, device=device, dtype=dtype))
        self.register_buffer("running_mean", init.zeros(dim, device=device, dtype=dtype))
        self.register_buffer("running_var", init.ones(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        op = type(self).__name__
        check_axes(op, "x", x, self.layout)
        check_size(op, "x", x, 1, "dim", self.dim)
        if not self.training:
            x, mean, var, weight, bias = promoted(
                x, self.running_mean, self.running_var, self.weight, self.bias
            )
            return ops.batch_norm_eval(x, mean, var, weight, bias, self.eps, self.relu)
        if x.size == 0:
            raise ShapeError(f"{op}: x is {x.shape}: need at least one value per channel to train")
        x, weight, bias = promoted(x, self.weight, self.bias)
        result = ops.batch_norm(x, weight, bias, self.eps, self.relu)
        _, mean, var = result.realize_cached_data()
        self._average(mean, var)
        y: Tensor = result[0]
        return y

    def _average(self, *batch: NDArray) -> None:
        """Moves the running statistics towards the batch's; on arrays, so that no graph is kept."""
        running = [array_of(self.running_mean), array_of(self.running_var)]
        values = [b.astype(r.dtype, copy=False) for b, r in zip(batch, running, strict=True)]
        nd.moving_average(running, values, self.momentum)

    def extra_repr(self) -> str:
        settings = f"{self.dim}, eps={self.eps}, momentum={self.momentum}"
        return settings + (", relu=True" if self.relu else "")


class BatchNorm1d(_BatchNorm):
    """Normalises each feature over the batch.

        y = weight * (x - mean) / sqrt(var + eps) + bias,      then max(y, 0) with relu=True

    In training mean and var (biased) are the batch's, and the running ones follow them:
    running = (1 - momentum) * running + momentum * batch. In evaluation they are the running ones.

    Shapes: x and result (N, dim).

    Attributes:
        weight, bias: (dim,), ones and zeros.
        running_mean, running_var: (dim,) buffers, zeros and ones at first.

    Raises:
        TypeError: a setting is of the wrong kind, or x not a Tensor.
        ShapeError: dim is below 1, or x does not fit.
        ValueError: eps is below 0, or momentum not in [0, 1].
        DTypeError: dtype is not float32 or float64, or x is not of floats.
        DeviceError: device is no device, or x is on another one.

    Source: Ioffe and Szegedy, Batch Normalization, ICML 2015; differs from PyTorch in that
    running_var takes the biased variance.
    """

    layout = "(N, C)"


class BatchNorm2d(_BatchNorm):
    """Normalises each channel over batch, height and width; see BatchNorm1d.

    Shapes: x and result (N, dim, H, W), in any memory order, which the result keeps.

    Raises:
        TypeError, ShapeError, ValueError, DTypeError, DeviceError: as BatchNorm1d.
    """

    layout = "(N, C, H, W)"


class LayerNorm1d(Module):
    """Normalises each row: y = weight * (x - mean) / sqrt(var + eps) + bias, with biased var.

    Shapes: x and result (..., dim), usually (N, dim).

    Attributes:
        weight, bias: (dim,), ones and zeros.

    Raises:
        TypeError: dim is not an integer, eps not a number, or x not a Tensor.
        ShapeError: dim is below 1, or x's last axis is not dim.
        ValueError: eps is below 0.
        DTypeError: dtype is not float32 or float64, or x is not of floats.
        DeviceError: device is no device, or x is on another one.

    Source: Ba, Kiros and Hinton, Layer Normalization, arXiv:1607.06450.
    """

    _settings: ClassVar[Mapping[str, Check]] = {"eps": not_negative}
    weight: Tensor
    bias: Tensor

    def __init__(
        self, dim: int, eps: float = 1e-5, device: Device | None = None, dtype: Any = "float32"
    ) -> None:
        super().__init__(device, dtype)
        dtype = float_dtype("LayerNorm1d", dtype)
        self.dim = positive("LayerNorm1d", "dim", dim)
        self.eps = eps
        self.weight = Parameter(init.ones(dim, device=device, dtype=dtype))
        self.bias = Parameter(init.zeros(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("LayerNorm1d", "x", x)
        if len(x.shape) == 0:
            raise ShapeError(f"LayerNorm1d: x is (): need (..., {self.dim})")
        check_size("LayerNorm1d", "x", x, -1, "dim", self.dim)
        x, weight, bias = promoted(x, self.weight, self.bias)
        return ops.layer_norm(x, weight, bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}"
