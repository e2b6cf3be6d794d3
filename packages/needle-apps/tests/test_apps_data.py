"""`needle data`, with downloads from a server on this machine."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from needle.apps.cli import app
from needle.data import download

TEXTS = {
    "train.txt": b"the cat sat <unk>\n" * 40,
    "valid.txt": b"the dog sat\n" * 9,
    "test.txt": b"a cat sat\n" * 9,
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        content = TEXTS[self.path[1:]]
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """Serves TEXTS as the Penn Treebank."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        address = f"http://127.0.0.1:{server.server_port}"
        files = {
            name: download.Source(
                f"{address}/{name}", len(text), "sha256:" + hashlib.sha256(text).hexdigest()
            )
            for name, text in TEXTS.items()
        }
        monkeypatch.setattr(download, "PTB", files)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache folder, and an empty folder to work in."""
    monkeypatch.setenv("NEEDLE_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def run(*arguments, code=0):
    """stdout where the command succeeds, else the one line on stderr."""
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if code == 0:
        return result.stdout
    line = result.stderr.rstrip("\n")
    assert "\n" not in line
    return line


def records(*arguments):
    return [json.loads(line) for line in run(*arguments, "--json").splitlines()]


def test_an_empty_machine():
    cifar, ptb, *_ = run("list").splitlines()
    assert cifar.split() == ["cifar10", "170.5", "MB", "missing"]
    assert ptb.split() == ["ptb", "6.0", "MB", "missing"]
    first, second = records("list")
    assert (first["name"], first["state"], first["folder"]) == ("cifar10", "missing", None)
    assert (second["name"], second["bytes"]) == ("ptb", 5_951_345)


def test_downloading_verifying_and_finding(server, cache):
    folder = str(cache / "ptb")
    assert run("download", "ptb").endswith(f"verified: the official files in {folder}\n")
    assert server.asked == ["/train.txt", "/valid.txt", "/test.txt"]
    (again,) = records("download", "ptb")
    assert (again["state"], again["folder"]) == ("official", folder)
    assert len(server.asked) == 3, "what is there is not fetched again"
    assert run("path", "ptb") == f"{folder}\n"
    assert records("path", "ptb") == [{"name": "ptb", "folder": folder}]
    assert "verified" in run("verify", "ptb")


def test_a_folder_of_ones_own(server, tmp_path):
    run("download", "ptb", "--data-dir", tmp_path / "mine")
    assert run("path", "ptb", "--data-dir", tmp_path / "mine") == f"{tmp_path / 'mine'}\n"
    assert "searched" in run("path", "ptb", code=2)


def test_other_and_damaged_texts(server, cache):
    run("download", "ptb")
    (cache / "ptb" / "train.txt").write_text("other <unk> words\n")
    assert "whole, but not the official files in" in run("verify", "ptb")
    (cache / "ptb" / "train.txt").write_bytes(b"")
    assert run("verify", "ptb", code=1) == "error: data verify: ptb is damaged"
    (record,) = [each for each in records("list") if each["name"] == "ptb"]
    assert record["state"] == "damaged"
    assert "empty: got 0 bytes" in record["problem"]
    run("download", "ptb")  # replaces it
    assert "verified" in run("verify", "ptb")


def test_cifar10_that_cannot_be_read(cache):
    (cache / "cifar-10-batches-py").mkdir(parents=True)
    (cache / "cifar-10-batches-py" / "test_batch").write_bytes(b"no pickle")
    assert run("verify", code=1) == ("error: data verify: cifar10 is damaged, ptb is missing")


def test_mistakes(monkeypatch):
    assert run("path", "mnist", code=2) == (
        "error: data: no such data set: mnist: need cifar10 or ptb"
    )
    assert run("verify", "ptb", "x", code=2).startswith("error: data: no such data set: x: need")
    line = run("path", "ptb", code=2)
    assert line.startswith("error: data path: ptb is missing: searched ")
    assert line.endswith("get it with: needle data download ptb")
    assert "No such option" in run("list", "--jsn", code=2)

    def unreachable(*_, **__):
        raise download.DownloadError("download: failed: no network in tests")

    monkeypatch.setattr(download, "fetch", unreachable)
    assert run("download", "ptb", code=2) == "error: download: failed: no network in tests"


def test_help_teaches():
    assert "--data-dir" in run("download", "--help")
    assert "download" in run()
