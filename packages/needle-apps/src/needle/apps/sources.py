"""Where the data of a run comes from: a local folder, a download or the synthetic sets.

`auto` takes the first of these that there is, and says so when it is the last. Everything else is
strict: what was asked for and cannot be had is an error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from needle.data import (
    CIFAR10Dataset,
    DownloadError,
    SyntheticCorpus,
    SyntheticImages,
    TokenizedCorpus,
    download,
    load_corpus,
)

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A data set, found.

    Attributes:
        kind: "cifar10", "ptb" or "synthetic".
        name: what the closing line of a run calls it.
        splits: "train", "test" and, for text, "valid": a Dataset or word ids each.
        vocabulary: a checksum of a text's words, in the order of their ids; "" for images.
        words: of a text, by id.
    """

    kind: str
    name: str
    splits: Mapping[str, Any]
    vocabulary: str = ""
    words: Sequence[str] = ()

    @property
    def vocabulary_size(self) -> int:
        """How many words there are; 0 for images."""
        return len(self.words)

    @property
    def summary(self) -> str:
        """The name and the size of every split."""
        unit = "words" if self.vocabulary else "images"
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        return f"{self.name}: {sizes} {unit}"


def images(
    choice: str,
    folder: Path | None,
    warn: Warn,
    splits: Sequence[str] = ("train", "test"),
) -> Source:
    """CIFAR-10 or the synthetic images.

    Args:
        choice: "auto", "cifar10" or "synthetic".
        folder: where the data is; None searches.
        warn: told about a fallback.
        splits: which to read.

    Raises:
        ValueError: the choice does not fit, or a file is damaged.
        OSError: the data is not in the folder, or cannot be downloaded.
    """
    _check_choice("images", choice, "cifar10", folder)
    found = None if choice == "synthetic" else _locate(choice, folder, CIFAR10, warn)
    if found is None:
        made = {name: SyntheticImages(train=name == "train") for name in splits}
        return Source("synthetic", "synthetic images", made)
    read = {name: CIFAR10Dataset(found, train=name == "train") for name in splits}
    return Source("cifar10", f"CIFAR-10 in {found}", read)


def text(choice: str, folder: Path | None, warn: Warn) -> Source:
    """Penn Treebank (or any train.txt, valid.txt, test.txt of a folder) or the synthetic text.

    Args:
        choice: "auto", "ptb" or "synthetic".
        folder: where the data is; None searches.
        warn: told about a fallback.

    Raises:
        ValueError: the choice does not fit, or a file is damaged.
        OSError: the data is not in the folder, or cannot be downloaded.
    """
    _check_choice("text", choice, "ptb", folder)
    found = None if choice == "synthetic" else _locate(choice, folder, PTB, warn)
    if found is None:
        return _text_source("synthetic", "synthetic text", SyntheticCorpus())
    name = "Penn Treebank (PTB)" if _is_ptb(found) else "text in the form of PTB"
    return _text_source("ptb", f"{name} in {found}", load_corpus(found))


def _is_ptb(folder: Path) -> bool:
    files = ((folder / name, source.size) for name, source in download.PTB.items())
    return all(path.is_file() and path.stat().st_size == size for path, size in files)


def _text_source(kind: str, name: str, corpus: TokenizedCorpus | SyntheticCorpus) -> Source:
    splits = {"train": corpus.train, "valid": corpus.valid, "test": corpus.test}
    words = corpus.dictionary.idx2word
    checksum = hashlib.sha256("\n".join(words).encode()).hexdigest()
    present = {name: ids for name, ids in splits.items() if ids is not None}
    return Source(kind, name, present, checksum, words)


def _check_choice(what: str, choice: str, real: str, folder: Path | None) -> None:
    if choice not in ("auto", real, "synthetic"):
        raise ValueError(
            f"{what}: wrong data set: {choice}: need auto, {real} or synthetic for this model"
        )
    if choice == "synthetic" and folder is not None:
        raise ValueError(
            f"{what}: the synthetic set is not read from a folder: got {folder}: "
            "need either --data synthetic or --data-dir"
        )


@dataclass(frozen=True)
class Real:
    """How to find a real data set.

    Attributes:
        title: its name.
        places: where it lies in a data folder.
        marker: the file of it that a download writes last.
        fetch: downloads it into a folder, or the cache, and returns where it then is.
    """

    title: str
    places: tuple[str, ...]
    marker: str
    fetch: Callable[..., Path]


CIFAR10 = Real("CIFAR-10", (".", "cifar-10-batches-py"), "test_batch", download.cifar10)
PTB = Real("Penn Treebank", (".", "ptb"), "test.txt", download.ptb)


def find(real: Real, folder: Path | None = None) -> Path | None:
    """Where a real data set lies: in `folder`, or in the first of `data_folders()` that has it."""
    return next(_holding(real, data_folders() if folder is None else [folder]), None)


def _locate(choice: str, folder: Path | None, real: Real, warn: Warn) -> Path | None:
    """The folder of a real data set; None, after a warning, where auto finds none."""
    if folder is not None:
        # Where it is not, the folder itself: reading it says what is missing.
        return next(_holding(real, [folder]), folder)
    found = find(real)
    if found is not None:
        return found
    try:
        return real.fetch()
    except DownloadError as error:
        if choice != "auto":
            raise
        searched = " nor in ".join(map(str, data_folders()))
        warn(
            f"{real.title} is neither in {searched}, and the download "
            f"failed ({error}). FALLING BACK TO THE SYNTHETIC SET: the results say nothing about "
            f"{real.title}. Where you have a copy, pass its folder as --data-dir."
        )
        return None


def _holding(real: Real, folders: Sequence[Path]) -> Iterator[Path]:
    """The folders, or their subfolders, that hold the data set."""
    places = (folder / place for folder in folders for place in real.places)
    return (place for place in places if (place / real.marker).is_file())


def data_folders() -> list[Path]:
    """Where `auto` looks: $NEEDLE_DATA_DIR, ./data, and where downloads go."""
    own = os.environ.get("NEEDLE_DATA_DIR")
    return list(dict.fromkeys([*([Path(own)] if own else []), Path("data"), download.cache_dir()]))
