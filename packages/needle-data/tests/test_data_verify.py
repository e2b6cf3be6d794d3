"""Whether files are official, others, or damaged."""

import hashlib

import pytest
from data_files import write_cifar

from needle.data import DataFileError
from needle.data.verify import CIFAR10_FILES, State, has_checksums, verify_cifar10, verify_ptb


def checksums(folder, names, kind):
    return {
        name: f"{kind}:" + hashlib.new(kind, (folder / name).read_bytes()).hexdigest()
        for name in names
    }


def test_cifar10(tmp_path):
    write_cifar(tmp_path)
    files = checksums(tmp_path, CIFAR10_FILES, "md5")
    assert verify_cifar10(tmp_path, files) is State.official
    assert verify_cifar10(tmp_path) is State.other
    (tmp_path / "data_batch_3").write_bytes(b"no pickle")
    with pytest.raises(DataFileError, match="data_batch_3"):
        verify_cifar10(tmp_path, files)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="lacks data_batch_3"):
        verify_cifar10(tmp_path, files)


def test_ptb(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(f"a word of <unk> {name}\n")
    files = checksums(tmp_path, ["train.txt", "valid.txt", "test.txt"], "sha256")
    assert verify_ptb(tmp_path, files) is State.official
    assert verify_ptb(tmp_path) is State.other
    (tmp_path / "test.txt").write_bytes(b"\xff")
    with pytest.raises(DataFileError, match="not UTF-8"):
        verify_ptb(tmp_path, files)
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("nothing known\n")
    with pytest.raises(DataFileError, match=r"no <unk>: valid\.txt has"):
        verify_ptb(tmp_path, files)


def test_a_missing_file_has_no_checksum(tmp_path):
    assert not has_checksums(tmp_path, {"none": "md5:00"})
