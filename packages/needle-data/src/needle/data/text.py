"""Text as word ids: dictionary, corpus, and the batches of a language model."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from numpy.typing import NDArray as Array

from needle.autograd import Tensor
from needle.backend_ndarray import DeviceError, DTypeError, ShapeError
from needle.checks import as_numpy, check_device

from ._checks import check_integer, check_numbers, check_path, is_integer
from .errors import DataFileError

END_OF_LINE = "<eos>"
UNKNOWN = "<unk>"


class Dictionary:
    """Words and their ids, numbered in the order in which they came.

    Attributes:
        word2idx: the id of each word.
        idx2word: the word of each id.
    """

    def __init__(self) -> None:
        self.word2idx: dict[str, int] = {}
        self.idx2word: list[str] = []

    def add_word(self, word: str) -> int:
        """The id of `word`, which is added if it is new.

        Raises:
            TypeError: `word` is not a str.
        """
        try:
            return self.word2idx[word]
        except (KeyError, TypeError):  # only what is new is looked at: texts are long
            if not isinstance(word, str):
                raise TypeError(
                    f"Dictionary.add_word: word is not a str: got {word!r}: need a word"
                ) from None
        self.word2idx[word] = len(self.idx2word)
        self.idx2word.append(word)
        return self.word2idx[word]

    def __len__(self) -> int:
        """The number of words."""
        return len(self.idx2word)


class Corpus:
    """The text files of a folder as lists of word ids; every line ends with `<eos>`.

    The dictionary comes from train.txt, then test.txt. valid.txt may be absent and never extends
    it: its unknown words become `<unk>`.

    Args:
        base_dir: the folder with train.txt, test.txt and perhaps valid.txt.
        max_lines: read only so many lines of each file.

    Attributes:
        dictionary: the words of train.txt and test.txt.
        train: the ids of train.txt.
        test: the ids of test.txt.

    Raises:
        FileNotFoundError: train.txt or test.txt is missing.
        DataFileError: a file is empty, or is not UTF-8 text.
        TypeError: `base_dir` is not a path, or `max_lines` not an integer.
        ValueError: `max_lines` is below 1.
    """

    def __init__(self, base_dir: str | Path, max_lines: int | None = None) -> None:
        base = check_path("Corpus", "base_dir", base_dir)
        missing = [name for name in ("train.txt", "test.txt") if not (base / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"Corpus: files are missing: {base} lacks {' and '.join(missing)}: "
                "need a folder with train.txt, test.txt and perhaps valid.txt"
            )
        self.dictionary = Dictionary()
        self.train = self.tokenize(base / "train.txt", max_lines)
        self.test = self.tokenize(base / "test.txt", max_lines)
        valid = base / "valid.txt"
        self._valid = self._encode(valid, max_lines) if valid.is_file() else None

    @property
    def valid(self) -> list[int] | None:
        """The ids of valid.txt; None if there is no such file.

        Raises:
            ValueError: it has unknown words, and the dictionary no `<unk>` to stand for them.
        """
        # Not the constructor's: without a usable valid.txt, train and test still are.
        if self._valid is not None and None in self._valid:
            raise ValueError(
                f"Corpus: no {UNKNOWN}: valid.txt has {self._valid.count(None)} unknown words, the "
                f"dictionary {len(self.dictionary)} others: need {UNKNOWN} in train.txt or test.txt"
            )
        return self._valid  # type: ignore[return-value]

    def tokenize(self, path: str | Path, max_lines: int | None = None) -> list[int]:
        """The ids of a file's words, each line ended by `<eos>`; new words are added.

        Raises:
            FileNotFoundError: there is no such file.
            DataFileError: the file is empty, or is not UTF-8 text.
            TypeError: `path` is not a path, or `max_lines` not an integer.
            ValueError: `max_lines` is below 1.
        """
        file = check_path("Corpus.tokenize", "path", path)
        return [self.dictionary.add_word(word) for word in _words(file, max_lines)]

    def _encode(self, path: Path, max_lines: int | None) -> list[int | None]:
        """As `tokenize`, but a new word becomes `<unk>`, or None if the dictionary lacks that."""
        ids = self.dictionary.word2idx
        unknown = ids.get(UNKNOWN)
        return [ids.get(word, unknown) for word in _words(path, max_lines)]


def _words(path: Path, max_lines: int | None) -> Iterator[str]:
    if max_lines is not None:
        max_lines = check_integer("Corpus", "max_lines", max_lines, at_least=1)
    if not path.is_file():
        raise FileNotFoundError(f"Corpus: no such file: got {path}: need a text file")
    if path.stat().st_size == 0:
        raise DataFileError(f"{path}: empty: got 0 bytes: need at least one line of text")
    try:
        with path.open(encoding="utf-8") as file:
            for line in islice(file, max_lines):
                yield from line.split()
                yield END_OF_LINE
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path}: not UTF-8 text: {error}") from error


def batchify(
    data: ArrayLike, batch_size: int, device: Any = None, dtype: Any = "float32"
) -> Array[Any]:
    """Word ids as `batch_size` columns: each column is a stretch of the text, read downwards.

    With data = [0, 1, 2, 3, 4, 5, 6] and batch_size = 2 it is [[0, 3], [1, 4], [2, 5]]: what does
    not fill a row is left out.

    Args:
        data: (n,), word ids.
        batch_size: the number of columns.
        device: unused, kept for the course's signature: the result is a NumPy array, and
            `get_batch` places its parts.
        dtype: the type of the result; None means float32.

    Returns:
        A NumPy array (n // batch_size, batch_size).

    Raises:
        ShapeError: `data` is not one-dimensional.
        DTypeError: `dtype` is not one of numbers, or does not hold the ids exactly.
        TypeError: `batch_size` is not an integer, or `data` holds anything but whole numbers.
        ValueError: `batch_size` is below 1, or above len(data): no row would be left.
    """
    columns = check_integer("batchify", "batch_size", batch_size, at_least=1)
    kind = _numpy_dtype("batchify", "float32" if dtype is None else dtype)
    ids = as_numpy("batchify", "data", data)
    if ids.ndim != 1:
        raise ShapeError(f"batchify: data is not a sequence: got shape {ids.shape}: need (n,)")
    if ids.size and (ids.dtype.kind not in "iuf" or not np.array_equal(ids, np.rint(ids))):
        raise TypeError(f"batchify: data is not word ids: got {ids.dtype}: need whole numbers")
    if columns > len(ids):
        raise ValueError(
            f"batchify: too few tokens: batch_size is {columns}, data has {len(ids)}: "
            f"need at least {columns}"
        )
    rows = len(ids) // columns
    kept = ids[: rows * columns].reshape(columns, rows).T
    batches = kept.astype(kind, order="C")
    if not np.array_equal(batches, kept):
        raise DTypeError(
            f"batchify: {batches.dtype} does not hold every id: the largest is {ids.max()}: "
            "need a wider dtype"
        )
    return batches


def _numpy_dtype(where: str, dtype: Any) -> np.dtype[Any]:
    kind: np.dtype[Any] | None
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = None
    if kind is None or kind.kind not in "biuf":
        raise DTypeError(f"{where}: dtype: got {dtype!r}: need one of NumPy's for numbers")
    return kind


def get_batch(
    batches: Array[Any], i: int, bptt: int, device: Any = None, dtype: Any = None
) -> tuple[Tensor, Tensor]:
    """The inputs from row `i` on, and as targets the words that follow each of them.

    Args:
        batches: (nbatch, batch_size), from `batchify`.
        i: the first row.
        bptt: the largest number of rows, "back-propagation through time".
        device: where the Tensors live; None means the default device.
        dtype: their type; None means what `Tensor` makes of a NumPy array, float32.

    Returns:
        With L = min(bptt, nbatch - 1 - i): data = batches[i : i + L], a Tensor (L, batch_size),
        and target = batches[i + 1 : i + 1 + L], flattened to a Tensor (L * batch_size,).

    Raises:
        ShapeError: `batches` is not two-dimensional.
        DTypeError: `batches` does not hold numbers, or `dtype` is not supported.
        DeviceError: `device` is no device.
        IndexError: no row is left at `i` that has a row after it.
        TypeError: `i` or `bptt` is not an integer.
        ValueError: `bptt` is below 1.
    """
    batches = as_numpy("get_batch", "batches", batches)
    if batches.ndim != 2:
        raise ShapeError(
            f"get_batch: batches: got shape {batches.shape}: need (nbatch, batch_size)"
        )
    if not is_integer(i):
        raise TypeError(f"get_batch: i is not an integer: got {i!r}: need a row number")
    last = len(batches) - 1
    if not 0 <= i < last:
        raise IndexError(f"get_batch: nothing left at i: got {i}: need 0 <= i < {last}")
    length = min(check_integer("get_batch", "bptt", bptt, at_least=1), last - i)
    inputs, targets = batches[i : i + length], batches[i + 1 : i + 1 + length].reshape(-1)
    try:
        return (
            Tensor(inputs, device=device, dtype=dtype, requires_grad=False),
            Tensor(targets, device=device, dtype=dtype, requires_grad=False),
        )
    except (DeviceError, DTypeError):
        check_device("get_batch", device)
        check_numbers("get_batch", "batches", batches)
        raise
