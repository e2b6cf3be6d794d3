"""Rows by id: embedding, and ids as Tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backend_ndarray as nd
from ..autograd import Spec, Tensor, TensorOp, spec_of
from ..backend_ndarray import DTypeError, NDArray
from ..backend_ndarray.dtypes import INT64
from ..backend_ndarray.index import gather_for
from ..backend_ndarray.ndarray import from_numpy
from .common import check_floats, check_rank, check_tensor
from .matmul import matmul


class Whole(TensorOp):
    """Whole numbers as int64: what ids and labels are; without gradient."""

    differentiable = False

    def __init__(self, op: str) -> None:
        """`op` is the user's function."""
        self.op = op

    def infer(self, ids: Tensor) -> Spec:
        if ids.dtype.kind not in "iuf":
            raise DTypeError(f"{self.op}: ids are not numbers: got {ids.dtype}: need integers")
        return spec_of(ids.shape, INT64)

    def compute(self, ids: NDArray) -> NDArray:
        if ids.dtype.kind == "f" and ids.device.in_host_memory:
            return from_numpy(self.checked(ids.numpy()), ids.device, own=True)
        whole = ids.astype(INT64)
        if ids.dtype.kind == "f":
            return _or_no_id(whole, nd.equal(whole.astype(ids.dtype), ids))
        return whole

    def checked(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The values as int64. In NumPy: a kernel's answer would come after all that wait."""
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int64)
        same = whole == values
        if not same.all():
            wrong = values[~same].flat[0]
            raise DTypeError(f"{self.op}: ids are not integers: got {wrong}: need whole numbers")
        return whole

    def gradient(self, out_grad: Tensor, node: Tensor) -> None:
        return None


def _or_no_id(whole: NDArray, same: NDArray) -> NDArray:
    """`whole` where `same`, elsewhere an id that the kernel will refuse: nothing waits for it."""
    return whole - nd.logical_not(same).astype(INT64) * 2**62


def as_whole(op: str, position: int, ids: Tensor) -> Tensor:
    """Ids of an integer or float dtype, the argument `position` of `op`, as int64.

    On cuda() the kernel that uses an id refuses what is not whole, as out of range.

    Raises:
        DTypeError: one is not a whole number.
        TypeError: they are no Tensor.
    """
    check_tensor(op, position, ids)
    return ids if ids.dtype is INT64 else Whole(op)(ids)


class Embedding(TensorOp):
    """Row ids[...] of weight (V, D) for each id: shape ids.shape + (D,)."""

    name = "embedding"
    saves = (0,)

    def infer(self, ids: Tensor, weight: Tensor) -> Spec:
        check_rank("embedding", "weight", weight, 2, "(num_embeddings, embedding_dim)")
        dtype = check_floats("embedding", weight)
        return spec_of(ids.shape + weight.shape[1:], dtype)

    def compute(self, ids: NDArray, weight: NDArray) -> NDArray:
        return gather_for("embedding", weight, ids)

    def plain(self, ids: Tensor, weight: Tensor) -> tuple[Tensor]:
        """The definition in plain operations."""
        return (matmul(OneHot(weight.shape[0], weight)(ids), weight),)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[None, Tensor]:
        ids, weight = node.inputs
        return None, EmbeddingGrad(weight.shape[0])(ids, out_grad)


class EmbeddingGrad(TensorOp):
    """The sum of the rows of dy that have the same id: (num_rows, D)."""

    saves = (0,)

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def infer(self, ids: Tensor, dy: Tensor) -> Spec:
        return spec_of((self.num_rows, dy.shape[-1]), dy.dtype)

    def compute(self, ids: NDArray, dy: NDArray) -> NDArray:
        return nd.scatter_add(dy, ids, self.num_rows)

    def gradient(self, out_grad: Tensor, node: Tensor) -> tuple[None, Tensor]:
        return None, Embedding()(node.inputs[0], out_grad)


class OneHot(TensorOp):
    """1 at each id and 0 elsewhere, in the dtype of `like`: ids.shape + (count,)."""

    differentiable = False

    def __init__(self, count: int, like: Tensor) -> None:
        self.count = count
        self.dtype = like.dtype

    def infer(self, ids: Tensor) -> Spec:
        return spec_of((*ids.shape, self.count), self.dtype)

    def compute(self, ids: NDArray) -> NDArray:
        return nd.one_hot(ids, self.count, self.dtype)

    def gradient(self, out_grad: Tensor, node: Tensor) -> None:
        return None


def one_hot_like(ids: Tensor, like: Tensor) -> Tensor:
    """Rows of zeros as wide as `like` with a 1 at each id."""
    return OneHot(like.shape[-1], like)(ids)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Row ids[...] of weight (num_embeddings, embedding_dim): ids.shape + (embedding_dim,).

    Raises:
        ShapeError: weight has not two axes.
        DTypeError: weight is not floats, or ids not whole numbers.
        IndexError: an id is outside 0 .. num_embeddings - 1.
    """
    return Embedding()(as_whole("embedding", 0, ids), weight)
