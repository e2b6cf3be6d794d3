"""The cache of tokenized texts: right, and never trusted."""

import hashlib
import json

import numpy as np
import pytest

from needle.data import Corpus, DataFileError, load_corpus, tokens
from needle.data.tokens import MAGIC

TEXTS = {
    "train": "the cat sat\non the <unk> mat\n",
    "test": "a cat\n\nsat\u2028down caf\u00e9\n",
    "valid": "the dog sat\n",
}


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "new" / "cache"


@pytest.fixture
def never(monkeypatch):
    """Makes tokenizing an error."""

    def forbid():
        monkeypatch.setattr(tokens, "Corpus", None)

    return forbid


def check(found, base):
    want = Corpus(base)
    assert found.dictionary.idx2word == want.dictionary.idx2word
    assert found.dictionary.word2idx == want.dictionary.word2idx
    for name in ("train", "test", "valid"):
        ids, wanted = getattr(found, name), getattr(want, name)
        assert (ids is None) == (wanted is None)
        if ids is not None:
            assert ids.dtype == np.int32
            assert ids.tolist() == wanted


def files(cache):
    return sorted(cache.iterdir())


def test_the_second_time_nothing_is_tokenized(base, cache, never):
    check(load_corpus(base, cache), base)
    assert len(files(cache)) == 1
    want = Corpus(base)
    never()
    found = load_corpus(base, cache)
    assert found.train.tolist() == want.train
    check(found, base)


def test_without_a_validation_text(base, cache):
    (base / "valid.txt").unlink()
    for _ in range(2):
        found = load_corpus(base, cache)
        assert found.valid is None
        check(found, base)


def test_another_text_is_another_file(base, cache):
    load_corpus(base, cache)
    (base / "test.txt").write_text("a dog\n")
    check(load_corpus(base, cache), base)
    (base / "valid.txt").rename(base / "none")
    check(load_corpus(base, cache), base)
    assert len(files(cache)) == 3


def test_words_do_not_move_from_file_to_file(base, cache):
    """The same bytes, cut elsewhere."""
    load_corpus(base, cache)
    (base / "train.txt").write_text("the cat sat\n")
    (base / "test.txt").write_text("on the <unk> mat\na cat\n")
    check(load_corpus(base, cache), base)


def sealed(body):
    return MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def forge(**changes):
    """A file whose header is changed and whose checksum is right."""

    def change(content):
        header, rest = content[len(MAGIC) + 65 :].split(b"\n", 1)
        return sealed(json.dumps({**json.loads(header), **changes}).encode() + b"\n" + rest)

    return change


def last_id(value):
    def change(content):
        return sealed(content[len(MAGIC) + 65 : -4] + np.array(value, "<i4").tobytes())

    return change


DAMAGE = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "one bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "foreign": lambda content: b"\x93NUMPY" + content,
    "no header": lambda content: sealed(b""),
    "no json": lambda content: sealed(b"{\n"),
    "a list": lambda content: sealed(b"[]\n"),
    "deep json": lambda content: sealed(b"[" * 100_000 + b"\n"),
    "other text": forge(text="0" * 64),
    "huge": forge(train=2**60),
    "negative": forge(train=-1),
    "fraction": forge(train=1.0),
    "truth": forge(test=True),
    "missing": forge(test=None),
    "id too large": last_id(1000),
    "id negative": last_id(-1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_bad_file_is_made_anew(base, cache, damage, never):
    load_corpus(base, cache)
    (path,) = files(cache)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    check(load_corpus(base, cache), base)
    assert path.read_bytes() == good
    assert files(cache) == [path]
    want = Corpus(base).train
    never()
    assert load_corpus(base, cache).train.tolist() == want


@pytest.mark.parametrize("where", ["folder", "file"])
def test_without_a_place_to_write_it_works_all_the_same(base, cache, where):
    if where == "folder":
        cache.parent.mkdir()
        cache.write_text("in the way")
    else:
        load_corpus(base, cache)
        (path,) = files(cache)
        path.unlink()
        path.mkdir()
        (path / "in the way").touch()
    check(load_corpus(base, cache), base)
    assert not list(base.parent.rglob(".tokens-*"))


def test_a_text_that_changes_meanwhile_is_not_kept(base, cache, monkeypatch):
    def slow(folder):
        (base / "train.txt").write_text("other <unk> words\n")
        return Corpus(folder)

    monkeypatch.setattr(tokens, "Corpus", slow)
    load_corpus(base, cache)
    assert not cache.exists()


def test_the_usual_place(base, tmp_path, monkeypatch):
    monkeypatch.setenv("NEEDLE_DATA_DIR", str(tmp_path / "data"))
    load_corpus(base)
    assert len(files(tmp_path / "data" / "tokens")) == 1


def test_what_is_wrong_with_the_texts_is_said(base, cache):
    (base / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataFileError, match="not UTF-8 text"):
        load_corpus(base, cache)
    (base / "train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks train\.txt"):
        load_corpus(base, cache)
    (base / "train.txt").write_text("no such word\n")
    with pytest.raises(ValueError, match=r"no <unk>: valid\.txt has 2 unknown words"):
        load_corpus(base, cache)
    assert not cache.exists()
