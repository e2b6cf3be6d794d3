import numpy as np
import pytest

from needle import cpu
from needle.autograd import Tensor
from needle.backend_ndarray import DTypeError, ShapeError
from needle.data import Corpus, DataFileError, Dictionary, batchify, get_batch


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(
        tmp_path, train="the cat <unk>\n\nthe dog\n", test="a cat\n", valid="the cow sees a cat\n"
    )


# ---- dictionary and corpus ----------------------------------------------------------------------


def test_dictionary():
    words = Dictionary()
    assert [words.add_word(w) for w in ["b", "a", "b", "c", "a"]] == [0, 1, 0, 2, 1]
    assert len(words) == 3
    assert words.idx2word == ["b", "a", "c"]
    assert words.word2idx == {"b": 0, "a": 1, "c": 2}


def test_corpus(folder):
    corpus = Corpus(folder)
    assert corpus.dictionary.idx2word == ["the", "cat", "<unk>", "<eos>", "dog", "a"]
    assert corpus.train == [0, 1, 2, 3, 3, 0, 4, 3]
    assert corpus.test == [5, 1, 3]
    assert corpus.valid == [0, 2, 2, 5, 1, 3], "valid.txt's new words are <unk>"
    assert Corpus(str(folder)).train == corpus.train


def test_max_lines_of_each_file(tmp_path):
    lines = "".join(f"w{i} <unk>\n" for i in range(9))
    corpus = Corpus(write(tmp_path, train=lines, test=lines, valid=lines), max_lines=2)
    assert corpus.dictionary.idx2word == ["w0", "<unk>", "<eos>", "w1"]
    assert corpus.train == corpus.test == corpus.valid == [0, 1, 2, 3, 1, 2]
    assert len(Corpus(tmp_path, 100).train) == 27


def test_tokenize_adds_words(folder):
    corpus = Corpus(folder)
    assert corpus.tokenize(folder / "valid.txt") == [0, 6, 7, 5, 1, 3]
    assert len(corpus.dictionary) == 8
    assert corpus.tokenize(str(folder / "train.txt"), max_lines=1) == [0, 1, 2, 3]


def test_a_last_line_without_end(tmp_path):
    corpus = Corpus(write(tmp_path, train="a b\r\nc", test="a"))
    assert corpus.train == [0, 1, 2, 3, 2]


def test_valid_may_be_absent(folder):
    (folder / "valid.txt").unlink()
    assert Corpus(folder).valid is None


def test_unknown_words_without_unk(tmp_path):
    corpus = Corpus(write(tmp_path, train="a b\n", test="a\n", valid="a x y\n"))
    assert corpus.train == [0, 1, 2]
    text = "no <unk>: valid.txt has 2 unknown words, the dictionary 3 others: need <unk> in train"
    with pytest.raises(ValueError, match=text):
        _ = corpus.valid
    assert Corpus(write(tmp_path, valid="b a\n")).valid == [1, 0, 2]


def test_missing_files(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere lacks train.txt and test.txt: need a"):
        Corpus(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no such file: got .*other\.txt"):
        Corpus(folder).tokenize(folder / "other.txt")
    (folder / "test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks test.txt: need a folder"):
        Corpus(folder)


@pytest.mark.parametrize("name", ["train", "test", "valid"])
def test_damaged_files(folder, name):
    (folder / f"{name}.txt").write_bytes(b"caf\xe9 \xff\n")
    with pytest.raises(DataFileError, match=rf"{name}\.txt: not UTF-8 text: .*position 3"):
        Corpus(folder)
    (folder / f"{name}.txt").write_bytes(b"")
    with pytest.raises(DataFileError, match=rf"{name}\.txt: empty: got 0 bytes"):
        Corpus(folder)


def test_wrong_max_lines(folder):
    with pytest.raises(ValueError, match="max_lines is too small: got 0: need an integer >= 1"):
        Corpus(folder, max_lines=0)
    with pytest.raises(TypeError, match="max_lines is not an integer: got '3'"):
        Corpus(folder, max_lines="3")


# ---- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [6, 7, 8, 11])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
def test_batchify(n, batch_size):
    got = batchify(list(range(n)), batch_size, cpu(), "float32")
    rows = n // batch_size
    assert isinstance(got, np.ndarray)
    assert got.shape == (rows, batch_size)
    assert got.dtype == np.float32
    for row in range(rows):
        for column in range(batch_size):
            assert got[row, column] == column * rows + row


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", np.int32])
def test_batchify_dtype(dtype):
    assert batchify([1, 2, 3], 2, cpu(), dtype).dtype == np.dtype(dtype)
    assert batchify([1, 2, 3], 2, None, None).dtype == np.float32


def test_batchify_errors():
    with pytest.raises(ValueError, match="batch_size is 8, data has 5: need at least 8"):
        batchify([1, 2, 3, 4, 5], 8, cpu(), "float32")
    for wrong in ([1.5, 2.0], ["a", "b"], [np.nan, 1.0], [True, False]):
        with pytest.raises(TypeError, match="batchify: data is not word ids: got "):
            batchify(wrong, 1)
    with pytest.raises(ValueError, match="batchify: batch_size is too small: got 0"):
        batchify([1, 2, 3], 0, cpu(), "float32")
    with pytest.raises(TypeError, match=r"batchify: batch_size is not an integer: got 2.0"):
        batchify([1, 2, 3], 2.0, cpu(), "float32")
    with pytest.raises(ShapeError, match=r"not a sequence: got shape \(2, 3\): need \(n,\)"):
        batchify(np.zeros((2, 3)), 2, cpu(), "float32")
    with pytest.raises(DTypeError, match="uint8 does not hold every id: the largest is 300"):
        batchify([1, 300], 1, cpu(), "uint8")
    with pytest.raises(DTypeError, match="float32 does not hold every id: the largest is 16777217"):
        batchify([2**24 + 1], 1, cpu(), "float32")


@pytest.mark.parametrize("bptt", [1, 3, 4, 100])
def test_get_batch(bptt):
    batches = batchify(np.arange(30), 3, cpu(), "float32")
    for i in range(len(batches) - 1):
        data, target = get_batch(batches, i, bptt, device=cpu(), dtype="float32")
        length = min(bptt, len(batches) - 1 - i)
        np.testing.assert_array_equal(data.numpy(), batches[i : i + length])
        np.testing.assert_array_equal(target.numpy(), batches[i + 1 : i + 1 + length].flatten())
        for tensor in (data, target):
            assert isinstance(tensor, Tensor)
            assert tensor.dtype == "float32"
            assert tensor.device == cpu()
            assert tensor.requires_grad is False


def test_get_batch_dtype():
    batches = batchify(np.arange(30), 3, cpu(), "int64")
    assert [t.dtype for t in get_batch(batches, 0, 2, cpu(), "int64")] == ["int64", "int64"]


def test_an_epoch_reads_every_target_once():
    batches = batchify(np.arange(103), 4, cpu(), "float32")
    steps = [get_batch(batches, i, 7)[1].numpy() for i in range(0, len(batches) - 1, 7)]
    np.testing.assert_array_equal(np.concatenate(steps), batches[1:].flatten())


@pytest.mark.parametrize("i", [9, 10, 100, -1])
def test_nothing_left(i):
    batches = batchify(np.arange(30), 3, cpu(), "float32")
    with pytest.raises(IndexError, match=f"nothing left at i: got {i}: need 0 <= i < 9"):
        get_batch(batches, i, 4)


def test_get_batch_errors():
    batches = batchify(np.arange(30), 3, cpu(), "float32")
    with pytest.raises(ValueError, match="get_batch: bptt is too small: got 0"):
        get_batch(batches, 0, 0)
    with pytest.raises(TypeError, match=r"get_batch: i is not an integer: got 0.5"):
        get_batch(batches, 0.5, 4)
    with pytest.raises(ShapeError, match=r"got shape \(30,\): need \(nbatch, batch_size\)"):
        get_batch(np.arange(30), 0, 4)
