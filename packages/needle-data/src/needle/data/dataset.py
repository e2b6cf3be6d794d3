"""Data sets: items by index, and whole batches at once where the class can."""

import operator
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, SupportsIndex

import numpy as np
from numpy.typing import NDArray as Array

from needle.autograd import Tensor
from needle.backend_ndarray import DTypeError, NDArray, ShapeError

from ._checks import check_array, check_numbers, check_transforms, is_integer
from .transforms import Transform, all_have_halves, apply_to_batch

Batch = tuple[Array[Any], ...]


class Items(Protocol):
    """All that a loader needs of a data set: a length, and an item for every integer."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class Dataset:
    """Base class: define `__getitem__` and `__len__`; define `batch` as well to be fast.

    An item is a tuple of arrays or numbers, or a single one. `batch(indices)` is what a loader
    calls; the one here stacks items one by one. A subclass that redefines `__getitem__` or
    `apply_transforms` but not `batch` gets this one back, so no loader bypasses what it redefines;
    nor does one read `_rows` of a class that redefines any of the three.

    Args:
        transforms: callables, which `apply_transforms` applies in order.

    Raises:
        TypeError: `transforms` is not a sequence of callables.
    """

    def __init__(self, transforms: Sequence[Transform] | None = None) -> None:
        self.transforms = check_transforms(type(self).__name__, transforms)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "batch" not in own and ("__getitem__" in own or "apply_transforms" in own):
            cls.batch = Dataset.batch  # type: ignore[method-assign]
        if "_rows" not in own and not REDEFINES.isdisjoint(own):
            cls._rows = Dataset._rows  # type: ignore[method-assign]

    def __getitem__(self, index: Any) -> Any:
        """The item at an integer index."""
        raise NotImplementedError(f"{type(self).__name__}: __getitem__ is not defined")

    def __len__(self) -> int:
        """The number of items."""
        raise NotImplementedError(f"{type(self).__name__}: __len__ is not defined")

    def apply_transforms(self, x: Any) -> Any:
        """`x` after every transform, in order."""
        for transform in self.transforms or ():
            x = transform(x)
        return x

    def batch(self, indices: Array[np.int64]) -> Batch:
        """The items at `indices`, stacked field by field.

        Args:
            indices: (B,), each in [0, len(self)).

        Returns:
            One array (B, ...) for each field of an item; batch transforms may overwrite it.

        Raises:
            TypeError: `indices` is not an array.
            IndexError: there is no such item.
            ShapeError: the items differ in their number of fields, or in the shape of a field.
            DTypeError: a field does not hold numbers.
        """
        return collate(self, indices)

    def _rows(self) -> Batch | None:
        """The arrays of which item i is row i and nothing else; None if there are none."""
        return None


REDEFINES = frozenset({"__getitem__", "apply_transforms", "batch"})


def collate(items: Items, indices: Array[np.int64]) -> Batch:
    """The items at `indices`, fetched one by one and stacked field by field.

    Raises:
        TypeError: `indices` is not an array.
        ShapeError: the items differ in their number of fields, or in the shape of a field.
        DTypeError: a field does not hold numbers.
    """
    check_array("batch", "indices", indices, "integers (B,)")
    fetched = [items[i] for i in indices.tolist()]
    rows = [item if isinstance(item, tuple) else (item,) for item in fetched]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise ShapeError(
            f"batch: items differ in length: got {lengths[0]} and {lengths[1]} fields: "
            "need the same number"
        )
    return tuple(_stack(k, column) for k, column in enumerate(zip(*rows, strict=True)))


def _stack(k: int, values: tuple[Any, ...]) -> Array[Any]:
    arrays = [to_numpy("batch", value) for value in values]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise ShapeError(
            f"batch: items differ in shape: field {k} is {shapes[0]} and {shapes[1]}: "
            "need one shape for all items of a batch"
        )
    return np.stack(arrays)


def to_numpy(where: str, value: Any) -> Array[Any]:
    """`value` (a Tensor, an NDArray, or anything NumPy takes) as a NumPy array of numbers.

    Raises:
        ShapeError: it is a ragged nested sequence.
        DTypeError: it is not made of numbers.
    """
    if isinstance(value, Tensor | NDArray):
        value = value.numpy()
    try:
        array: Array[Any] = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{where}: not an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise DTypeError(f"{where}: not numbers: got dtype {array.dtype}: need bool, int or float")
    return array


class NDArrayDataset(Dataset):
    """Arrays side by side: item i is `(a[i], b[i], ...)`.

    Args:
        *arrays: one or more arrays of equal length; NumPy arrays are kept, not copied.

    Raises:
        ShapeError: the lengths differ, or an array has no axis to index.
        DTypeError: an array does not hold numbers.
        ValueError: there is no array.
    """

    def __init__(self, *arrays: Any) -> None:
        super().__init__()
        self.arrays = tuple(to_numpy("NDArrayDataset", array) for array in arrays)
        if not self.arrays:
            raise ValueError("NDArrayDataset: no arrays: got 0: need at least 1")
        shapes = [array.shape for array in self.arrays]
        if () in shapes or len({shape[0] for shape in shapes}) > 1:
            raise ShapeError(
                f"NDArrayDataset: lengths differ: shapes are {shapes}: need one shared shape[0]"
            )

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: Any) -> Batch:
        """`(a[index], b[index], ...)`, for whatever index NumPy takes.

        Raises:
            IndexError: it takes none such, or there is no such item.
        """
        if is_integer(index):
            index = check_index(self, index)
        return _pick(self, self.arrays, index)

    def batch(self, indices: Array[np.int64]) -> Batch:
        return _pick(self, self.arrays, indices)

    def _rows(self) -> Batch | None:
        return self.arrays


def check_index(dataset: Dataset, index: SupportsIndex) -> int:
    """`index`, counted from the start.

    Raises:
        IndexError: it is outside the data set.
    """
    n, i = len(dataset), operator.index(index)
    if not -n <= i < n:
        raise IndexError(
            f"{type(dataset).__name__}: index out of range: got {i}: need {-n} <= index < {n}"
        )
    return i % n


def _pick(dataset: Dataset, arrays: Sequence[Array[Any]], index: Any) -> Batch:
    """`(a[index], b[index], ...)`.

    Raises:
        IndexError: NumPy takes no such index, or there is no such item.
    """
    try:
        return tuple(array[index] for array in arrays)
    except (IndexError, TypeError, ValueError) as error:
        raise _no_index(dataset, index) from error


def _no_index(dataset: Dataset, index: Any) -> IndexError:
    """The error for an index that is not an integer, and none that NumPy takes."""
    n = len(dataset)
    return IndexError(
        f"{type(dataset).__name__}: not an index: got {index!r}: need an integer, a slice, a mask "
        f"or an array of integers, in {-n} <= index < {n}"
    )


class ImageDataset(Dataset):
    """Images and class ids in memory. Transforms see (H, W, C), whatever the layout of X.

    Indexing with an integer gives one (image, label); with a slice, a mask or an array of
    indices, the batch of those items.

    Attributes:
        X: float32 in [0, 1]: (N, C, H, W) if `channels_first`, else (N, H, W, C).
        y: int64 (N,), class ids.

    Raises:
        TypeError: `X` or `y` is not a NumPy array, or `transforms` not a sequence of callables.
        DTypeError: `X` does not hold numbers, or `y` no integers.
        ShapeError: `X` is not four-dimensional, or `y` has not one label for each image.
    """

    channels_first: ClassVar[bool] = True

    def __init__(
        self,
        X: Array[np.float32],
        y: Array[np.int64],
        transforms: Sequence[Transform] | None = None,
    ) -> None:
        super().__init__(transforms)
        name = type(self).__name__
        layout = "(N, C, H, W)" if self.channels_first else "(N, H, W, C)"
        check_numbers(name, "X", check_array(name, "X", X, layout))
        if check_array(name, "y", y, "(N,)").dtype.kind not in "iu":
            raise DTypeError(f"{name}: y is not class ids: got dtype {y.dtype}: need integers")
        if X.ndim != 4 or y.shape != X.shape[:1]:
            raise ShapeError(
                f"{name}: images and labels: got {X.shape} and {y.shape}: need {layout} and (N,)"
            )
        self.X = X
        self.y = y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        """One (image, label), or the batch that a slice, a mask or an array of indices means.

        Raises:
            IndexError: `index` is none of these, or there is no such item.
            ShapeError: the transforms did not make an image (H, W, C).
        """
        if not is_integer(index):
            images, labels = self.batch(self._chosen(index))
            return images, labels
        i = check_index(self, index)
        # A copy: a transform that writes in place must not change the data set.
        image = self.apply_transforms(np.array(self._to_hwc(self.X[i]), order="C"))
        if getattr(image, "ndim", 0) != 3:
            raise ShapeError(
                f"{type(self).__name__}: transforms made no image: got "
                f"{getattr(image, 'shape', type(image).__name__)}: need (H, W, C)"
            )
        return np.ascontiguousarray(self._from_hwc(image)), self.y[i]

    def _chosen(self, index: Any) -> Array[np.int64]:
        """The items that a slice, a mask or an array of indices means, counted from the start."""
        try:
            chosen: Array[np.int64] = np.arange(len(self))[index]
        except (IndexError, TypeError, ValueError) as error:
            raise _no_index(self, index) from error
        if chosen.ndim != 1:
            raise _no_index(self, index)
        return chosen

    def batch(self, indices: Array[np.int64]) -> Batch:
        if not all_have_halves(transforms := self.transforms or ()):
            return collate(self, indices)
        images, labels = _pick(self, (self.X, self.y), indices)
        return self._from_hwc(apply_to_batch(transforms, self._to_hwc(images))), labels

    def _rows(self) -> Batch | None:
        return None if self.transforms else (self.X, self.y)

    def _to_hwc(self, images: Array[Any]) -> Array[Any]:
        return np.moveaxis(images, -3, -1) if self.channels_first else images

    def _from_hwc(self, images: Array[Any]) -> Array[Any]:
        return np.moveaxis(images, -1, -3) if self.channels_first else images
