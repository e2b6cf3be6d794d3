"""Downloads from a server on this machine that can be told to misbehave."""

import gzip
import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from data_files import write_cifar

from needle.data import (
    ChecksumError,
    CIFAR10Dataset,
    Corpus,
    DataFileError,
    DownloadError,
    download,
)
from needle.data.download import CHUNK, Source, fetch

CONTENT = np.random.default_rng(0).bytes(1_000_000)


class Server(ThreadingHTTPServer):
    """Serves `files`, and records the Range header of each request.

    Attributes:
        ranges: whether it answers ranges with the range alone.
        break_after: it closes the connection after so many bytes; one entry for each request.
        status: an error to answer with instead.
        redirect: an address to send the client to instead.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.requests = []
        self.ranges = True
        self.break_after = []
        self.status = None
        self.redirect = None

    def source(self, name, content, checksum=None):
        self.files[f"/{name}"] = content
        url = f"http://127.0.0.1:{self.server_port}/{name}"
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        return Source(url, len(content), checksum or digest)

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is part of the tests


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range", "")
        server.requests.append(asked)
        content = server.files.get(self.path)
        status = server.status or (404 if content is None else 200)
        if server.redirect or status != 200:
            self.send_response(302 if server.redirect else status)
            self.send_header("Location", server.redirect or "")
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.end_headers()
            return
        self.send_response(206 if server.ranges else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = start + server.break_after.pop(0) if server.break_after else None
        self.wfile.write(content[start:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- one file -----------------------------------------------------------------------------------


def test_a_file_arrives_whole(server, tmp_path):
    seen = []
    path = tmp_path / "new" / "file"
    source = server.source("a", CONTENT)
    assert fetch(source, path, lambda *args: seen.append(args)) == path
    assert path.read_bytes() == CONTENT
    assert files_in(tmp_path) == ["new/file"]
    assert seen[-1] == ("file", 1_000_000, 1_000_000)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert len(seen) >= 4


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    source = server.source("a", CONTENT)
    fetch(source, tmp_path / "file")
    fetch(source, tmp_path / "file")
    assert len(server.requests) == 1
    (tmp_path / "file").write_bytes(b"damaged")
    fetch(source, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_broken_transfer_goes_on_by_itself(server, tmp_path):
    server.break_after = [4 * CHUNK + 5, 3 * CHUNK]
    fetch(server.source("a", CONTENT), tmp_path / "file")
    assert server.requests == ["bytes=0-", f"bytes={4 * CHUNK}-", f"bytes={7 * CHUNK}-"]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert files_in(tmp_path) == ["file"]


def test_the_next_call_goes_on_where_the_last_one_gave_up(server, tmp_path):
    server.break_after = [CHUNK] * 4
    source = server.source("a", CONTENT)
    text = "broken off: .*/a: .*: got 262144 of 1000000 bytes; the next call goes on from there"
    with pytest.raises(DownloadError, match=text):
        fetch(source, tmp_path / "file")
    assert files_in(tmp_path) == ["file.part"]
    assert (tmp_path / "file.part").read_bytes() == CONTENT[: 4 * CHUNK]
    fetch(source, tmp_path / "file")
    assert server.requests[-1] == "bytes=262144-"
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert files_in(tmp_path) == ["file"]


def test_a_transfer_that_brings_nothing_is_not_tried_again(server, tmp_path):
    server.break_after = [0, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"failed: .*/a: .*: check the connection and"):
        fetch(server.source("a", CONTENT), tmp_path / "file")
    assert len(server.requests) == 1


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "file.part").write_bytes(CONTENT[:400_000])
    fetch(server.source("a", CONTENT), tmp_path / "file")
    assert server.requests == ["bytes=400000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_complete_part_needs_no_request(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    fetch(server.source("a", CONTENT), tmp_path / "file")
    assert server.requests == []
    assert files_in(tmp_path) == ["file"]


@pytest.mark.parametrize("length", [5_000, 1_000_000, 2_000_000])
def test_a_part_of_another_file_is_dropped(server, tmp_path, length):
    (tmp_path / "file.part").write_bytes(b"x" * length)
    fetch(server.source("a", CONTENT), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert files_in(tmp_path) == ["file"]


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    wrong = "md5:" + "0" * 32
    text = f"wrong checksum: http.*/a: need {wrong}; the file was removed"
    with pytest.raises(ChecksumError, match=text):
        fetch(server.source("a", CONTENT, wrong), tmp_path / "file")
    assert files_in(tmp_path) == []
    assert len(server.requests) == 1


def test_a_wrong_length_is_noticed_before_anything_is_written(server, tmp_path):
    source = server.source("a", CONTENT)
    server.files["/a"] = CONTENT + b"x"
    with pytest.raises(ChecksumError, match=r"another file: .*: got 1000001 bytes: need 1000000"):
        fetch(source, tmp_path / "file")
    assert files_in(tmp_path) == []


def test_an_endless_answer_is_cut(server, tmp_path, monkeypatch):
    source = server.source("a", CONTENT)
    server.files["/a"] = CONTENT * 2
    monkeypatch.setattr(download._ResumingDownload, "_check_length", lambda *args: None)
    with pytest.raises(ChecksumError, match="got more than 1000000 bytes: need 1000000 bytes"):
        fetch(source, tmp_path / "file")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal(server, tmp_path, status):
    server.status = status
    with pytest.raises(DownloadError, match=rf"failed: http.*/a: {status} .*or put the file at "):
        fetch(server.source("a", CONTENT), tmp_path / "file")
    assert files_in(tmp_path) == []


def test_offline(server, tmp_path):
    source = server.source("a", CONTENT)
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=r"failed: .*/a: .*: check the connection and"):
        fetch(source, tmp_path / "file")
    assert files_in(tmp_path) == []


def test_a_file_that_has_become_shorter(server, tmp_path):
    source = server.source("a", CONTENT)
    server.files["/a"] = CONTENT[:100]
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    with pytest.raises(ChecksumError, match=r"another file: .*: got 100 bytes: need 1000000 bytes"):
        fetch(source, tmp_path / "file")
    assert server.requests == ["bytes=1000-", "bytes=0-"]
    assert files_in(tmp_path) == []


def test_only_https(server, tmp_path):
    with pytest.raises(
        DownloadError, match=r"not secure: http://example\.invalid/a: .*: need https"
    ):
        fetch(Source("http://example.invalid/a", 1, "md5:" + "0" * 32), tmp_path / "file")
    assert all(source.url.startswith("https://") for source in [download.CIFAR10, *PTB.values()])


def test_a_redirect_may_not_leave_https(server, tmp_path):
    server.redirect = "http://example.invalid/b"
    with pytest.raises(
        DownloadError, match=r"not secure: .*http://example\.invalid/b.*: need https"
    ):
        fetch(server.source("a", CONTENT), tmp_path / "file")


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "occupied").write_text("a file")
    with pytest.raises(DownloadError, match=r"failed: .*check the connection and the disk"):
        fetch(server.source("a", CONTENT), tmp_path / "occupied" / "file")


def test_the_bar(capsys, monkeypatch):
    download._draw_bar("a", 1_000_000, 2_000_000)
    assert capsys.readouterr().err == "", "no terminal, no bar"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    download._draw_bar("a", 1_000_000, 2_000_000)
    assert capsys.readouterr().err == f"\ra [{'#' * 15}{' ' * 15}] 1.0 / 2.0 MB"
    download._draw_bar("a", 2_000_000, 2_000_000)
    assert capsys.readouterr().err.endswith("2.0 / 2.0 MB\n")


# ---- the data sets ------------------------------------------------------------------------------

PTB = download.PTB


def archive(*members, mode="w:gz"):
    """A tar file of (name, content) or ready-made members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


@pytest.fixture
def cifar_members(tmp_path):
    write_cifar(tmp_path / "made")
    names = [*download.TRAIN_FILES, *download.TEST_FILES]
    files = [(f"cifar-10-batches-py/{n}", (tmp_path / "made" / n).read_bytes()) for n in names]
    return [*files, ("cifar-10-batches-py/readme.html", b"<html>")]


def test_cifar10(server, tmp_path, cifar_members, monkeypatch):
    source = server.source("cifar.tar.gz", archive(*cifar_members))
    monkeypatch.setenv("NEEDLE_DATA_DIR", str(tmp_path / "cache"))
    folder = download.cifar10(source=source)
    assert folder == tmp_path / "cache" / "cifar-10-batches-py"
    assert len(CIFAR10Dataset(folder, train=True)) == 20
    assert len(files_in(tmp_path / "cache")) == 6, "no archive, no workspace"
    download.cifar10(source=source)
    assert len(server.requests) == 1
    (folder / "test_batch").unlink()
    (folder / "notes.txt").write_text("mine")
    download.cifar10(tmp_path / "cache", source=source)
    assert len(CIFAR10Dataset(folder, train=False)) == 4
    assert (folder / "notes.txt").read_text() == "mine"


def test_ptb(server, tmp_path, monkeypatch):
    monkeypatch.setenv("NEEDLE_DATA_DIR", str(tmp_path))
    sources = {
        name: server.source(name, text.encode())
        for name, text in {"train.txt": "a b\n", "valid.txt": "a\n", "test.txt": "b a\n"}.items()
    }
    folder = download.ptb(sources=sources)
    assert folder == tmp_path / "ptb"
    corpus = Corpus(folder)
    assert (corpus.train, corpus.valid, corpus.test) == ([0, 1, 2], [0, 2], [1, 0, 2])
    assert download.ptb(tmp_path / "ptb", sources=sources) == folder
    assert len(server.requests) == 3


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("NEEDLE_DATA_DIR", raising=False)
    assert download.cache_dir().name == "needle"
    monkeypatch.setenv("NEEDLE_DATA_DIR", str(tmp_path))
    assert download.cache_dir() == tmp_path


@pytest.mark.shared_data
def test_the_checksums_of_ptb_are_those_of_the_real_files(shared_data):
    for name, source in PTB.items():
        content = (shared_data / "ptb" / name).read_bytes()
        assert len(content) == source.size
        assert source.checksum == "sha256:" + hashlib.sha256(content).hexdigest()


# ---- archives -----------------------------------------------------------------------------------


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def special(name, kind):
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


ATTACKS = {
    "parent": (("../outside", b"x"), "outside"),
    "deep parent": (("cifar-10-batches-py/../../outside", b"x"), "outside"),
    "symlink": (link("cifar-10-batches-py/data_batch_1", "/etc/passwd"), "neither a file nor"),
    "symlink inside": (link("cifar-10-batches-py/a", "data_batch_1"), "neither a file nor"),
    "hard link": (link("cifar-10-batches-py/a", "/etc/passwd", tarfile.LNKTYPE), "neither a file"),
    "pipe": (special("cifar-10-batches-py/pipe", tarfile.FIFOTYPE), "neither a file nor a folder"),
    "device": (special("cifar-10-batches-py/null", tarfile.CHRTYPE), "neither a file nor a folder"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_members(server, tmp_path, cifar_members, name):
    member, text = ATTACKS[name]
    source = server.source("cifar.tar.gz", archive(member, *cifar_members))
    root = tmp_path / "deep" / "cache"
    with pytest.raises(DataFileError, match=rf"cifar\.tar\.gz: unsafe or damaged .*{text}"):
        download.cifar10(root, source=source)
    assert files_in(tmp_path / "deep") == ["cache/cifar.tar.gz"]
    assert not (tmp_path / "outside").exists()


def test_absolute_names_stay_inside(server, tmp_path, cifar_members):
    target = tmp_path / "absolute"
    content = archive((str(target), b"x"), *cifar_members)
    download.cifar10(tmp_path / "cache", source=server.source("cifar.tar.gz", content))
    assert not target.exists()


def test_names_may_begin_with_a_dot(server, tmp_path, cifar_members):
    content = archive(*((f"./x/../{name}", data) for name, data in cifar_members))
    folder = download.cifar10(tmp_path / "cache", source=server.source("cifar.tar.gz", content))
    expected = download.cifar10(
        tmp_path / "plain", source=server.source("plain.tar.gz", archive(*cifar_members))
    )
    assert files_in(folder) == files_in(expected)
    for path in folder.iterdir():
        assert path.read_bytes() == (expected / path.name).read_bytes()


def test_size_bombs(server, tmp_path, cifar_members, monkeypatch):
    monkeypatch.setattr(download, "MAX_UNPACKED_BYTES", 2_000_000)
    bombs = {
        "file": archive(("cifar-10-batches-py/zeros", bytes(3_000_000)), *cifar_members),
        "header": archive(("long" * 1_000_000, b""), *cifar_members),
    }
    for name, content in bombs.items():
        assert len(content) < 200_000
        source = server.source(f"{name}.tar.gz", content)
        with pytest.raises(DataFileError, match="it unpacks to more than 2000000 bytes"):
            download.cifar10(tmp_path / name, source=source)
        assert files_in(tmp_path / name) == [f"{name}.tar.gz"]


def test_too_many_members(server, tmp_path, cifar_members):
    content = archive(*((f"f{k}", b"") for k in range(100)), *cifar_members)
    with pytest.raises(DataFileError, match="more than 100 members"):
        download.cifar10(tmp_path / "cache", source=server.source("cifar.tar.gz", content))


def test_damaged_archives(server, tmp_path, cifar_members):
    good = archive(*cifar_members)
    damaged = {
        "cut": (good[:-1000], "end-of-stream|unexpected end"),
        "flipped": (good[:-8] + bytes(8), "CRC check failed"),
        "cut before it was zipped": (gzip.compress(gzip.decompress(good)[:2000]), "unexpected end"),
        "not zipped": (b"hello", "Not a gzipped file"),
        "not a tar": (gzip.compress(b"hello" * 1000), "invalid header"),
        "another": (archive(("readme", b"")), "it has no cifar-10-batches-py folder with data_ba"),
        "a file missing": (archive(*cifar_members[1:]), "it has no cifar-10-batches-py folder"),
    }
    for k, (content, text) in enumerate(damaged.values()):
        with pytest.raises(DataFileError, match=rf"{k}\.tar\.gz: unsafe or damaged.*({text})"):
            download.cifar10(tmp_path / "cache", source=server.source(f"{k}.tar.gz", content))
    assert files_in(tmp_path / "cache") == [f"{k}.tar.gz" for k in range(len(damaged))]
