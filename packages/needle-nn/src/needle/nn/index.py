"""The embedding table."""

from __future__ import annotations

from typing import Any

from needle import init, ops
from needle.autograd import Tensor
from needle.backend_ndarray import Device

from .checks import check_tensor, float_dtype, positive
from .module import Module, Parameter

__all__ = ["Embedding"]


class Embedding(Module):
    """Looks up one row of its table for each id: result[...] = weight[x[...]].

    Shapes: x any, usually (seq_len, bs), of an integer or float dtype; result
    (*x.shape, embedding_dim).

    Attributes:
        weight: (num_embeddings, embedding_dim), N(0, 1).

    Raises:
        TypeError: a size is not an integer, or x not a Tensor.
        ShapeError: a size is below 1.
        IndexError: an id is outside [0, num_embeddings).
        DTypeError: dtype is not float32 or float64, or x holds anything but whole numbers.
        DeviceError: device is no device, or x is on another one.
    """

    weight: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: Device | None = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(device, dtype)
        dtype = float_dtype("Embedding", dtype)
        self.num_embeddings = positive("Embedding", "num_embeddings", num_embeddings)
        self.embedding_dim = positive("Embedding", "embedding_dim", embedding_dim)
        self.weight = Parameter(
            init.randn(num_embeddings, embedding_dim, device=device, dtype=dtype)
        )

    def forward(self, x: Tensor) -> Tensor:
        check_tensor("Embedding", "x", x)
        return ops.embedding(x, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
