"""Batches of Tensors out of a data set."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray as Array

from needle.autograd import Tensor
from needle.backend_ndarray import cpu, cpu_numpy, from_dlpack
from needle.backend_ndarray.dtypes import as_dtype
from needle.checks import check_device, check_switch

from ._checks import check_integer
from .augment import BatchTransform, check_images, generator
from .dataset import Dataset, ImageDataset, Items, NDArrayDataset, collate
from .fused import FusedPass, fits_kernel

FLOAT32 = np.dtype(np.float32)
# What these return nobody else has: it need not be copied.
FRESH = (Dataset.batch, NDArrayDataset.batch, ImageDataset.batch)


class DataLoader:
    """Iterates over a data set in batches, as tuples of Tensors without gradients.

    Every `iter()` is a pass of its own: passes may be nested, and shuffling draws
    `np.random.permutation(len(dataset))` once, when the pass begins. A pass of
    N items has ceil(N / batch_size) batches, the last one possibly smaller; with `drop_last`
    floor(N / batch_size), all full.

    A batch comes from `dataset.batch(indices)` (see `Dataset`); any other object with `__len__`
    and `__getitem__` is fetched item by item. Images that a data set holds as bytes or float32
    are gathered and changed by one kernel call where that can stand for the batch transforms:
    a `BatchCrop`, `BatchFlip`, `BatchCutout`, `Normalize`, or some of them, in this order. Such a
    pass reads the arrays that the data set has when its first batch is asked for.

    Args:
        dataset: what to load.
        batch_size: items in a batch; more than the data makes one smaller batch.
        shuffle: a new random order in each pass.
        device: where the Tensors live; None means the default device.
        dtype: the type of all Tensors, class ids included (float32 holds ids up to 2**24 exactly).
        drop_last: leave out a last batch that is not full.
        batch_transforms: change each batch's images, its first field, in order. They see
            (N, C, H, W), also where the data set says `channels_first = False` and gives
            (N, H, W, C): its batches keep that layout. Their draws are fixed by one more number
            that the pass draws when it begins (after the order) and by the batch's number, so a
            pass that goes on at a later batch draws the same.

    Raises:
        TypeError: `batch_size` is not an integer, `shuffle` or `drop_last` no bool, `dataset`
            cannot be indexed, or a batch transform is none.
        ValueError: `batch_size` is below 1, or above len(dataset) with `drop_last`: no batch
            would be left.
        DTypeError: needle has no such `dtype`.
        DeviceError: `device` is no device, or not available.
    """

    def __init__(
        self,
        dataset: Dataset | Items,
        batch_size: int = 1,
        shuffle: bool = False,
        device: Any = None,
        dtype: Any = "float32",
        drop_last: bool = False,
        batch_transforms: Sequence[BatchTransform] = (),
    ) -> None:
        _check_items(dataset)
        self.dataset = dataset
        self.batch_size = check_integer("DataLoader", "batch_size", batch_size, at_least=1)
        self.shuffle = check_switch("DataLoader", "shuffle", shuffle)
        self.device = device
        check_device("DataLoader", device)
        self.dtype = None if dtype is None else as_dtype(dtype, "DataLoader")
        self.drop_last = check_switch("DataLoader", "drop_last", drop_last)
        if not isinstance(batch_transforms, Iterable):
            raise TypeError(
                f"DataLoader: batch_transforms is not a list: got "
                f"{type(batch_transforms).__name__}: need a list of BatchTransforms"
            )
        self.batch_transforms = tuple(batch_transforms)
        for transform in self.batch_transforms:
            if not isinstance(transform, BatchTransform):
                raise TypeError(
                    f"DataLoader: not a batch transform: got {type(transform).__name__}: need a "
                    "BatchTransform; those of one image go into the data set"
                )
        if self.drop_last and self.batch_size > len(dataset):
            raise ValueError(
                f"DataLoader: no full batch: batch_size is {self.batch_size}, the data set has "
                f"{len(dataset)} items: need at least {self.batch_size} with drop_last"
            )
        self._tensor(np.zeros(0))  # a device that is missing shows here, not in the first batch

    def __len__(self) -> int:
        """The number of batches in a pass."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Begin a pass; the random order is drawn now, not with the first batch."""
        return self.start()

    def start(self, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Begin a pass at batch `first`, in the order that the whole pass would have.

        So a pass that was broken off goes on: with NumPy's generator as it was when that pass
        began, the batches from `first` on are the ones it did not come to.

        Raises:
            TypeError, ValueError: `first` is not an integer of 0 and more.
        """
        first = check_integer("DataLoader.start", "first", first, at_least=0)
        n = len(self.dataset)
        order = np.random.permutation(n) if self.shuffle else np.arange(n)
        seed = int(np.random.randint(2**32, dtype=np.uint32)) if self.batch_transforms else 0
        return self._batches(order, seed, first)

    def _batches(
        self, order: Array[np.int64], seed: int, first: int
    ) -> Iterator[tuple[Tensor, ...]]:
        rows = self.dataset._rows() if isinstance(self.dataset, Dataset) else None
        turned = self._turned
        if rows and turned:
            check_images("DataLoader", rows[0].shape)
            rows = np.moveaxis(rows[0], -1, 1), *rows[1:]
        if rows and self._fits_kernel(rows[0]):
            fused = FusedPass(rows, order, self.batch_size, self.batch_transforms, seed)
            for k in range(first, len(self)):
                images, *rest = fused.batch(k)
                if turned:
                    images = images.permute((0, 2, 3, 1))
                yield tuple([Tensor(field, requires_grad=False) for field in (images, *rest)])
            return
        for k in range(first, len(self)):
            ids = order[k * self.batch_size : (k + 1) * self.batch_size]
            yield self._fetch(ids, generator(seed, k) if self.batch_transforms else None)

    @property
    def _turned(self) -> bool:
        """Whether the data set's images have another layout than batch transforms want."""
        return bool(self.batch_transforms) and not getattr(self.dataset, "channels_first", True)

    def _fits_kernel(self, images: Array[Any]) -> bool:
        here = self.device in (None, cpu()) and cpu() != cpu_numpy()
        return here and self._keeps(FLOAT32) and fits_kernel(images, self.batch_transforms)

    def _keeps(self, dtype: np.dtype[Any]) -> bool:
        return self.dtype is not None and np.dtype(self.dtype) == dtype

    def _fetch(self, ids: Array[np.int64], rng: np.random.Generator | None) -> tuple[Tensor, ...]:
        dataset = self.dataset
        own = not isinstance(dataset, Dataset) or type(dataset).batch in FRESH
        fields = dataset.batch(ids) if isinstance(dataset, Dataset) else collate(dataset, ids)
        tensors = [self._tensor(field, own) for field in fields[rng is not None :]]
        if rng is not None:
            tensors.insert(0, self._tensor(self._changed(fields[0], rng), own=True))
        return tuple(tensors)

    def _changed(self, images: Array[Any], rng: np.random.Generator) -> Array[Any]:
        if not images.flags.owndata:  # a view, perhaps of the data set itself
            images = images.copy()
        if self._turned:
            check_images("DataLoader", images.shape)
            images = np.moveaxis(images, -1, 1)
        for transform in self.batch_transforms:
            images = transform(images, rng)
        return np.moveaxis(images, 1, -1) if self._turned else images

    def _tensor(self, array: Array[Any], own: bool = False) -> Tensor:
        """The array as a Tensor; one that nobody else owns gives its memory away where it fits."""
        if own and self._keeps(array.dtype) and self.device in (None, cpu()):
            return Tensor(from_dlpack(array), requires_grad=False)
        return Tensor(array, device=self.device, dtype=self.dtype, requires_grad=False)


def _check_items(dataset: object) -> None:
    """Raises TypeError for what has no items with numbers: classes, texts and dicts neither."""
    indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not indexed or isinstance(dataset, type | str | bytes | Mapping):
        of_class = f"the class {dataset.__name__}" if isinstance(dataset, type) else ""
        raise TypeError(
            f"DataLoader: not a data set: got {of_class or type(dataset).__name__}: "
            "need __len__ and __getitem__"
        )
