"""A corpus as arrays of word ids, tokenized once and kept in a file.

```
needle-tokens-1
SHA-256 of all that follows, as 64 hex digits
JSON in one line: {"text": the texts' checksum, "words": bytes, "train": ids, "test": ids, "valid":
                   ids or null}
the words, one a line, in the order of their ids
the ids of train, test and valid: int32, little-endian
```

The file is named after the texts' checksum, so other texts are another file. Nothing in it is used
before all of it is checked; what does not pass is made anew, and where no file can be written the
texts are tokenized each time.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray as Array

from ._checks import check_path
from .errors import DataFileError
from .text import Corpus, Dictionary

MAGIC = b"needle-tokens-1\n"
SPLITS = ("train", "test", "valid")
IDS = np.dtype("<i4")
MAX_BYTES = 2**30  # of a file that is read: PTB's has 4.4 MB


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus whose splits are int32 arrays.

    Attributes:
        dictionary: the words of train.txt and test.txt.
        train: the ids of train.txt, (n,).
        test: the ids of test.txt.
        valid: the ids of valid.txt; None if there is no such file.
    """

    dictionary: Dictionary
    train: Array[np.int32]
    test: Array[np.int32]
    valid: Array[np.int32] | None


def load_corpus(base_dir: str | Path, cache: str | Path | None = None) -> TokenizedCorpus:
    """What `Corpus(base_dir)` holds, as arrays: from the cache if these texts were read before.

    Args:
        base_dir: the folder with train.txt, test.txt and perhaps valid.txt.
        cache: the folder with the tokenized texts; None means `tokens` in the cache folder of
            `needle.data.download`.

    Raises:
        TypeError: `base_dir` or `cache` is not a path.
        FileNotFoundError: train.txt or test.txt is missing.
        DataFileError: a file is empty, or is not UTF-8 text.
        ValueError: valid.txt has unknown words, and the dictionary no `<unk>`.
    """
    if cache is None:
        from .download import cache_dir  # its HTTP library takes long to import

        cache = cache_dir() / "tokens"
    base = check_path("load_corpus", "base_dir", base_dir)
    folder = check_path("load_corpus", "cache", cache)
    key = _checksum(base)
    path = folder / f"{key}.tokens"
    with suppress(OSError, ValueError, RecursionError):
        return _parse(_read(path), key)
    corpus = Corpus(base)
    valid = corpus.valid
    made = TokenizedCorpus(
        corpus.dictionary,
        np.array(corpus.train, np.int32),
        np.array(corpus.test, np.int32),
        None if valid is None else np.array(valid, np.int32),
    )
    if _checksum(base) == key:  # nobody changed the texts meanwhile
        with suppress(OSError):
            _write(path, _content(made, key))
    return made


def _checksum(base: Path) -> str:
    """SHA-256 of the texts with their names and lengths; those that are missing have none."""
    digest = hashlib.sha256()
    for name in SPLITS:
        path = base / f"{name}.txt"
        with suppress(FileNotFoundError, IsADirectoryError):
            text = path.read_bytes()
            digest.update(f"{name} {len(text)}\n".encode())
            digest.update(text)
    return digest.hexdigest()


def _content(corpus: TokenizedCorpus, key: str) -> bytes:
    words = "".join(f"{word}\n" for word in corpus.dictionary.idx2word).encode()
    splits = {name: getattr(corpus, name) for name in SPLITS}
    header = {
        "text": key,
        "words": len(words),
        **{name: None if ids is None else len(ids) for name, ids in splits.items()},
    }
    arrays = [ids.astype(IDS).tobytes() for ids in splits.values() if ids is not None]
    body = b"".join([json.dumps(header).encode(), b"\n", words, *arrays])
    return b"".join([MAGIC, hashlib.sha256(body).hexdigest().encode(), b"\n", body])


def _write(path: Path, content: bytes) -> None:
    """In one piece: the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, partial = tempfile.mkstemp(prefix=".tokens-", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise DataFileError(f"{path}: not a file of at most {MAX_BYTES} bytes")
    return path.read_bytes()


def _parse(content: bytes, key: str) -> TokenizedCorpus:
    """The content of a file, checked.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    start = len(MAGIC) + 65
    body = memoryview(content)[start:]
    seal = MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n"
    if content[:start] != seal:
        raise DataFileError("damaged, or not a tokenized text")
    line = content.index(b"\n", start) + 1
    header = json.loads(content[start : line - 1])
    sizes = _sizes(header, key, len(content) - line)
    words = content[line : line + sizes["words"]].decode().split("\n")[:-1]
    dictionary = Dictionary()
    for word in words:
        dictionary.add_word(word)
    if len(dictionary) != len(words):
        raise DataFileError("a word comes twice")
    ids = dict(_arrays(body[line + sizes["words"] - start :], sizes, len(words)))
    return TokenizedCorpus(dictionary, ids["train"], ids["test"], ids.get("valid"))


def _sizes(header: Any, key: str, size: int) -> dict[str, Any]:
    """The header's sizes, which add up to `size`."""
    if not isinstance(header, dict) or header.get("text") != key:
        raise DataFileError("of another text")
    sizes = {name: header.get(name) for name in ("words", *SPLITS)}
    given = {name: n for name, n in sizes.items() if n is not None}
    if sorted(given) not in (["test", "train", "valid", "words"], ["test", "train", "words"]):
        raise DataFileError(f"a size is missing: {header}")
    if any(type(n) is not int or n < 0 for n in given.values()):
        raise DataFileError(f"sizes are not counts: {header}")
    ids = sum(n for name, n in given.items() if name != "words")
    if sizes["words"] + IDS.itemsize * ids != size:
        raise DataFileError(f"sizes do not add up to {size}: {header}")
    return sizes


def _arrays(
    body: memoryview, sizes: dict[str, Any], words: int
) -> Iterator[tuple[str, Array[np.int32]]]:
    """The ids of each split that there is, every one checked to be that of a word."""
    first = 0
    for name in SPLITS:
        if sizes[name] is None:
            continue
        ids = np.frombuffer(body, IDS, sizes[name], first * IDS.itemsize).astype(np.int32)
        first += sizes[name]
        if ids.size and not (ids.min() >= 0 and ids.max() < words):
            raise DataFileError(f"{name} has ids of no word")
        yield name, ids
