"""Whether the files of a data set are the official ones, or at least whole."""

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from ._checks import check_path
from .cifar10 import CIFAR10Dataset
from .errors import DataFileError
from .text import Corpus

CIFAR10_FILES = {
    "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
    "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
    "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "md5:40351d587109b95175f43aff81a1287e",
}
"""The files of the official archive, with the checksums that are published with it."""


class State(StrEnum):
    """What `verify_cifar10` and `verify_ptb` find."""

    official = "official"
    other = "other"


def verify_cifar10(folder: str | Path, files: Mapping[str, str] = CIFAR10_FILES) -> State:
    """Whether a folder has the official files, or others that can be read as CIFAR-10.

    Args:
        folder: the one with `data_batch_1`.
        files: the checksum of each, for a test.

    Raises:
        TypeError: `folder` is not a path.
        FileNotFoundError: a file is missing.
        DataFileError: a file is damaged, or is not CIFAR-10.
    """
    if has_checksums(check_path("verify_cifar10", "folder", folder), files):
        return State.official
    for train in (True, False):
        CIFAR10Dataset(folder, train)
    return State.other


def verify_ptb(folder: str | Path, files: Mapping[str, str] | None = None) -> State:
    """Whether a folder has the official texts, or others that can be read in their place.

    Args:
        folder: the one with train.txt.
        files: the checksum of each; None means those that are downloaded.

    Raises:
        TypeError: `folder` is not a path.
        FileNotFoundError: a file is missing.
        DataFileError: a file is empty, or is not UTF-8 text.
    """
    if files is None:
        from .download import PTB  # its HTTP library takes long to import

        files = {name: source.checksum for name, source in PTB.items()}
    if has_checksums(check_path("verify_ptb", "folder", folder), files):
        return State.official
    try:
        _ = Corpus(folder).valid
    except ValueError as error:
        raise error if isinstance(error, DataFileError) else DataFileError(str(error)) from error
    return State.other


def has_checksums(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether every file is there and has its checksum, `md5:...` or `sha256:...`."""
    return all(
        (folder / name).is_file() and _checksum(folder / name, checksum) == checksum
        for name, checksum in files.items()
    )


def _checksum(path: Path, like: str) -> str:
    kind = like.partition(":")[0]
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"
