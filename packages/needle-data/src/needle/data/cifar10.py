"""CIFAR-10, read from the official Python pickles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray as Array

from needle.checks import check_switch

from ._checks import check_path, check_transforms
from .dataset import ImageDataset
from .errors import DataFileError, UnsafePickleError
from .pickles import read_pickle
from .transforms import Transform

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILES = ("test_batch",)
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
# An official file has 31 MB; nothing much larger is read into memory.
MAX_FILE_BYTES = 64 * 2**20
PIXELS = 3 * 32 * 32


class CIFAR10Dataset(ImageDataset):
    """The 50,000 training or 10,000 test images of CIFAR-10: 32x32, colour, ten classes.

    An item is `(image, label)`: float32 (3, 32, 32) in [0, 1], and a class id (`CLASSES` names
    them). Transforms see the image as (32, 32, 3).

    Args:
        base_folder: the folder with the batch files (`data_batch_1`, ...), or the one that holds
            `cifar-10-batches-py`.
        train: the training set, or else the test set.
        p: unused, kept for the course's signature: flips are `RandomFlipHorizontal(p)`'s.
        transforms: applied to an image each time it is loaded.

    Attributes:
        X: float32 (N, 3, 32, 32) in [0, 1].
        y: int64 (N,) in [0, 10).

    Raises:
        TypeError: `base_folder` is not a path, `train` not True or False, or `transforms` not a
            sequence of callables.
        FileNotFoundError: the folder or a file of it is missing.
        DataFileError: a file is damaged, or not CIFAR-10.
        UnsafePickleError: a file holds anything but plain data (a DataFileError too).

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    def __init__(
        self,
        base_folder: str | Path,
        train: bool,
        p: float = 0.5,
        transforms: Sequence[Transform] | None = None,
    ) -> None:
        check_transforms("CIFAR10Dataset", transforms)
        names = TRAIN_FILES if check_switch("CIFAR10Dataset", "train", train) else TEST_FILES
        folder = _find_folder(check_path("CIFAR10Dataset", "base_folder", base_folder), names)
        batches = [_read_batch(folder / name) for name in names]
        pixels = np.concatenate([images for images, _ in batches])
        labels = np.concatenate([ids for _, ids in batches])
        super().__init__(_to_unit(pixels), labels, transforms)
        self.p = p


def _find_folder(base: Path, names: Sequence[str]) -> Path:
    for folder in (base, base / FOLDER):
        if (folder / names[0]).exists():
            break
    else:
        found = "no such folder" if not base.is_dir() else f"no {names[0]} there"
        raise FileNotFoundError(
            f"CIFAR10Dataset: not a CIFAR-10 folder: got {base} ({found}): "
            f"need the folder that holds {', '.join(names)}, or its parent"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"CIFAR10Dataset: files are missing: {folder} lacks {', '.join(missing)}: "
            f"need {', '.join(names)}"
        )
    return folder


def _read_batch(path: Path) -> tuple[Array[np.uint8], Array[np.int64]]:
    """Pixels (n, 3072) and class ids (n,) of one file."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DataFileError(f"{path}: too large: {size} bytes: need at most {MAX_FILE_BYTES}")
    try:
        content = read_pickle(path.read_bytes())
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}") from error
    missing = [key for key in ("data", "labels") if key not in content]
    if missing:
        raise DataFileError(f"{path}: not a CIFAR-10 batch: it has no {' and no '.join(missing)}")
    pixels = _check_pixels(path, content["data"])
    return pixels, _check_labels(path, content["labels"], len(pixels))


def _check_pixels(path: Path, pixels: Any) -> Array[np.uint8]:
    rule = f"need uint8 (n, {PIXELS}), n >= 1"
    if not isinstance(pixels, np.ndarray):
        raise DataFileError(f"{path}: wrong pixels: got a {type(pixels).__name__}: {rule}")
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXELS,) or len(pixels) == 0:
        raise DataFileError(f"{path}: wrong pixels: got {pixels.dtype} {pixels.shape}: {rule}")
    return pixels


def _check_labels(path: Path, labels: Any, n: int) -> Array[np.int64]:
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise DataFileError(f"{path}: wrong labels: need a list of int")
    if len(labels) != n:
        raise DataFileError(f"{path}: wrong labels: got {len(labels)} for {n} images: need {n}")
    wrong = [label for label in labels if not 0 <= label < len(CLASSES)]
    if wrong:
        raise DataFileError(f"{path}: label out of range: got {wrong[0]}: need 0 <= label < 10")
    return np.array(labels, dtype=np.int64)


def _to_unit(pixels: Array[np.uint8]) -> Array[np.float32]:
    """Bytes (n, 3072) as float32 (n, 3, 32, 32) in [0, 1]."""
    return np.divide(pixels, np.float32(255), dtype=np.float32).reshape(-1, 3, 32, 32)
