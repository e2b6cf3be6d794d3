"""MNIST and its relatives, read from IDX files."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, ClassVar, cast

import numpy as np
from numpy.typing import NDArray as Array

from ._checks import check_path, check_transforms
from .dataset import ImageDataset
from .errors import DataFileError
from .transforms import Transform

# An IDX file begins with two zeros, the element type (8: unsigned byte) and the number of axes.
IMAGES_MAGIC = 0x0803
LABELS_MAGIC = 0x0801
GZIP_MAGIC = b"\x1f\x8b"
# MNIST's training images take 47 MB; a small archive may claim to hold anything.
MAX_BYTES = 2**30
CLASSES = 10


class MNISTDataset(ImageDataset):
    """Images of ten classes from a pair of IDX files (MNIST, Fashion-MNIST), gzipped or plain.

    An item is `(image, label)`: float32 (28, 28, 1) in [0, 1], and a class id. Transforms see
    that same shape.

    Args:
        image_filename: for instance `train-images-idx3-ubyte.gz`.
        label_filename: for instance `train-labels-idx1-ubyte.gz`.
        transforms: applied to an image each time it is loaded.

    Attributes:
        X: float32 (N, 28, 28, 1) in [0, 1].
        y: int64 (N,) in [0, 10).

    Raises:
        TypeError: a filename is not a path, or `transforms` not a sequence of callables.
        FileNotFoundError: a file is missing.
        DataFileError: a file is damaged, is not an IDX file of its kind, or the two don't match.

    Source: http://yann.lecun.com/exdb/mnist, "File formats".
    """

    channels_first: ClassVar[bool] = False

    def __init__(
        self,
        image_filename: str | Path,
        label_filename: str | Path,
        transforms: Sequence[Transform] | None = None,
    ) -> None:
        check_transforms("MNISTDataset", transforms)
        image_path = check_path("MNISTDataset", "image_filename", image_filename)
        label_path = check_path("MNISTDataset", "label_filename", label_filename)
        pixels = read_idx(image_path, IMAGES_MAGIC)
        labels = read_idx(label_path, LABELS_MAGIC)
        if len(pixels) != len(labels) or len(labels) == 0:
            raise DataFileError(
                f"MNISTDataset: {image_filename} has {len(pixels)} images, {label_filename} has "
                f"{len(labels)} labels: need equal numbers, at least 1"
            )
        if labels.max() >= CLASSES:
            raise DataFileError(
                f"{label_filename}: label out of range: got {labels.max()}: need 0 <= label < 10"
            )
        images = np.divide(pixels, np.float32(255), dtype=np.float32)[..., np.newaxis]
        super().__init__(images, labels.astype(np.int64), transforms)


def read_idx(path: Path, magic: int) -> Array[np.uint8]:
    """The unsigned bytes of an IDX file, gzipped or plain, in the shape that it states.

    Raises:
        FileNotFoundError: there is no such file.
        DataFileError: the magic number is not `magic`, or the file is not as long as it says.
    """
    if not path.is_file():
        raise FileNotFoundError(f"MNISTDataset: no such file: got {path}: need an IDX file")
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP_MAGIC
        file.seek(0)
        try:
            return _parse_idx(path, cast(IO[bytes], gzip.open(file)) if zipped else file, magic)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataFileError(f"{path}: damaged gzip file: {error}") from error


def _parse_idx(path: Path, file: IO[bytes], magic: int) -> Array[np.uint8]:
    axes = magic & 0xFF
    header = file.read(4 + 4 * axes)
    if len(header) < 4 + 4 * axes or struct.unpack(">I", header[:4])[0] != magic:
        raise DataFileError(
            f"{path}: not an IDX file of {axes}-d bytes: it begins with 0x{header[:4].hex()}: "
            f"need 0x{magic:08x} and {axes} sizes"
        )
    shape = struct.unpack(f">{axes}I", header[4:])
    size = math.prod(shape)
    if size > MAX_BYTES:
        raise DataFileError(f"{path}: too large: {shape} is {size} bytes: need <= {MAX_BYTES}")
    content = file.read(size + 1)
    if len(content) != size:
        raise DataFileError(
            f"{path}: wrong length: {shape} needs {size} bytes, the file has "
            f"{'more' if len(content) > size else len(content)}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
