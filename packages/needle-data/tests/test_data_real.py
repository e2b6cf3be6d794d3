"""The loaders on the real data sets; skipped, visibly, where those are absent."""

import subprocess
import sys

import numpy as np
import pytest

from needle.data import CIFAR10Dataset, Corpus, DataLoader, batchify, get_batch

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def ptb(shared_data):
    return Corpus(shared_data / "ptb")


def test_ptb(ptb):
    assert len(ptb.dictionary) == 10_000
    assert (len(ptb.train), len(ptb.valid), len(ptb.test)) == (929_589, 73_760, 82_430)
    first = [ptb.dictionary.idx2word[i] for i in ptb.train[24:29]]
    assert first == ["<eos>", "pierre", "<unk>", "N", "years"]
    assert max(ptb.train) == 9_999


def test_ptb_batches(ptb):
    batches = batchify(ptb.train, 20, None, "float32")
    assert batches.shape == (46_479, 20)
    data, target = get_batch(batches, 35, 35)
    assert (data.shape, target.shape) == ((35, 20), (700,))
    np.testing.assert_array_equal(data.numpy()[:, 3], ptb.train[3 * 46_479 + 35 :][:35])


def test_ptb_first_lines(shared_data):
    corpus = Corpus(shared_data / "ptb", max_lines=20)
    assert 200 < len(corpus.dictionary) < 500
    assert corpus.train.count(corpus.dictionary.word2idx["<eos>"]) == 20


@pytest.fixture(scope="module")
def cifar(shared_data, tmp_path_factory):
    if (shared_data / "cifar-10-batches-py").is_dir():
        return shared_data
    pytest.importorskip("PIL", reason="unpacking the images needs Pillow")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, shared_data / "unpack_cifar10.py", folder], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
def test_cifar10(cifar, train):
    data = CIFAR10Dataset(cifar, train=train)
    n = 50_000 if train else 10_000
    assert data.X.shape == (n, 3, 32, 32)
    assert np.bincount(data.y).tolist() == [n // 10] * 10
    # The set's well-known mean colour; JPEG moves it little.
    np.testing.assert_allclose(data.X.mean(axis=(0, 2, 3)), [0.491, 0.482, 0.447], atol=5e-3)
    x, y = next(iter(DataLoader(data, 128, shuffle=True)))
    assert (x.shape, y.shape) == ((128, 3, 32, 32), (128,))
