import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from needle.data import DataLoader, SyntheticCorpus, SyntheticImages, batchify
from needle.data.synthetic_images import SHAPES
from needle.data.synthetic_text import GRAMMAR


@pytest.fixture(scope="module")
def train():
    return SyntheticImages(train=True, size=2000)


@pytest.fixture(scope="module")
def test():
    return SyntheticImages(train=False, size=500)


@pytest.fixture(scope="module")
def corpus():
    return SyntheticCorpus()


# ---- images -------------------------------------------------------------------------------------


def test_images_have_the_form_of_cifar10(train):
    assert train.X.shape == (2000, 3, 32, 32)
    assert train.X.dtype == np.float32
    assert 0 <= train.X.min() < 0.01
    assert 0.99 < train.X.max() <= 1
    assert train.y.dtype == np.int64
    assert np.bincount(train.y).tolist() == [200] * 10
    image, label = train[5]
    assert image.shape == (3, 32, 32)
    assert label == train.y[5]
    x, y = next(iter(DataLoader(train, 16)))
    assert (x.shape, y.shape) == ((16, 3, 32, 32), (16,))


def test_default_sizes():
    assert len(SyntheticImages()) == 10_000
    assert len(SyntheticImages(train=False)) == 2_000


def test_images_are_always_the_same(train):
    again = SyntheticImages(train=True, size=2000)
    np.testing.assert_array_equal(again.X, train.X)
    np.testing.assert_array_equal(again.y, train.y)
    assert train.y[:12].tolist() == [7, 2, 7, 0, 4, 5, 0, 9, 9, 0, 0, 8]
    assert np.abs(SyntheticImages(size=2000, seed=1).X - train.X).max() > 0.5


def test_train_and_test_share_no_image(train, test):
    assert not {image.tobytes() for image in train.X} & {image.tobytes() for image in test.X}


def test_the_global_generator_is_left_alone():
    np.random.seed(0)
    want = np.random.rand()
    np.random.seed(0)
    SyntheticImages(size=10)
    SyntheticCorpus(10)
    assert np.random.rand() == want


def features(images):
    """What stands out from the ground, cut out and scaled to 12 x 12: shape without the rest."""
    ground = np.median(images, axis=(2, 3), keepdims=True)
    masks = np.abs(images - ground).max(axis=1) > 0.22
    out = []
    for mask in masks:
        rows = np.flatnonzero(mask.sum(1) >= 2)
        columns = np.flatnonzero(mask.sum(0) >= 2)
        i = np.linspace(rows[0], rows[-1], 12).round().astype(int)
        j = np.linspace(columns[0], columns[-1], 12).round().astype(int)
        out.append(mask[np.ix_(i, j)].ravel())
    return np.array(out, dtype=np.float32)


def test_the_shape_tells_the_class(train, test):
    known, asked = features(train.X), features(test.X)
    nearest = np.argmin((known**2).sum(1) - 2 * asked @ known.T, axis=1)
    assert np.mean(train.y[nearest] == test.y) > 0.95


def test_a_linear_classifier_stays_near_chance(train, test):
    x, asked = (data.X.reshape(len(data), -1) - 0.5 for data in (train, test))
    # Ridge regression on the classes, solved in the space of the images.
    weights = x.T @ np.linalg.solve(x @ x.T + 100 * np.eye(len(x)), np.eye(10)[train.y] - 0.1)
    assert np.mean(np.argmax(asked @ weights, axis=1) == test.y) < 0.25


def test_each_class_has_a_name():
    assert len(SHAPES) == 10


def test_wrong_image_arguments():
    with pytest.raises(ValueError, match="SyntheticImages: size is too small: got 0"):
        SyntheticImages(size=0)
    with pytest.raises(TypeError, match="SyntheticImages: size is not an integer: got 'big'"):
        SyntheticImages(size="big")
    with pytest.raises(ValueError, match="SyntheticImages: seed is too small: got -1"):
        SyntheticImages(size=1, seed=-1)


# ---- text ---------------------------------------------------------------------------------------


def words(corpus, ids):
    return [corpus.dictionary.idx2word[i] for i in ids]


def test_corpus_has_the_form_of_a_corpus(corpus):
    eos = corpus.dictionary.word2idx["<eos>"]
    for ids, sentences in ((corpus.train, 20_000), (corpus.valid, 2_000), (corpus.test, 2_000)):
        assert type(ids) is list
        assert type(ids[0]) is int
        assert ids.count(eos) == sentences
        assert ids[-1] == eos
    assert set(corpus.train) == set(range(len(corpus.dictionary)))
    assert len(corpus.dictionary) == 127
    assert batchify(corpus.train, 20, None, "float32").shape == (len(corpus.train) // 20, 20)


def test_corpus_is_always_the_same(corpus):
    again = SyntheticCorpus()
    assert (again.train, again.valid, again.test) == (corpus.train, corpus.valid, corpus.test)
    sentence = " ".join(words(corpus, corpus.train[:9]))
    assert sentence == "these guests eat these loud quiet old carrots <eos>"
    assert SyntheticCorpus(seed=1).train[:50] != corpus.train[:50]
    assert corpus.train[:2000] != corpus.test[:2000] != corpus.valid[:2000]


def test_sentences_follow_the_grammar_and_cost_its_entropy(corpus):
    """Walk the grammar along the text: no word is impossible, and the mean surprise is H."""
    state, surprise = "start", 0.0
    for word in words(corpus, corpus.train):
        (branch,) = [b for b in GRAMMAR[state] if word in b.words]
        surprise -= math.log(branch.probability / len(branch.words))
        state = branch.to
    # The surprise of a token has a standard deviation near 1.2, neighbours hardly correlate: the
    # mean of 163,000 is within 0.003 of H nearly always.
    assert surprise / len(corpus.train) == pytest.approx(corpus.entropy, abs=0.01)


def test_entropy_by_hand(corpus):
    """Per clause: determiner, adjectives and noun, verb, perhaps an object, and an end."""

    def split(*p):
        return -sum(q * math.log(q) for q in p)

    phrases = 1 / 0.7  # visits of a noun phrase's state: one for each adjective, one for the noun
    subject = math.log(8) + phrases * (split(0.3, 0.7) + 0.3 * math.log(12) + 0.7 * math.log(14))
    thing = math.log(8) + phrases * (split(0.3, 0.7) + 0.3 * math.log(12) + 0.7 * math.log(8))
    verb = split(0.4, 0.4, 0.2) + math.log(6)
    end = split(0.6, 0.2, 0.2) + 0.2 * math.log(6) + 0.2 * math.log(4)
    tokens = (1 + phrases) + 1 + 0.8 * (1 + phrases) + 1 + 0.2
    assert corpus.entropy == pytest.approx((subject + verb + 0.8 * thing + end) / tokens, rel=1e-12)
    assert corpus.entropy == pytest.approx(2.430, abs=5e-4), "as the docstring says"
    assert corpus.perplexity == pytest.approx(math.exp(corpus.entropy), rel=1e-12)


def perplexity_of_counts(corpus, order):
    """Perplexity on test of word counts in train after the `order` words before."""
    counts = defaultdict(Counter)
    for k in range(order, len(corpus.train)):
        counts[tuple(corpus.train[k - order : k])][corpus.train[k]] += 1
    loss, vocabulary = 0.0, len(corpus.dictionary)
    for k in range(order, len(corpus.test)):
        seen = counts[tuple(corpus.test[k - order : k])]
        loss -= math.log((seen[corpus.test[k]] + 0.01) / (seen.total() + 0.01 * vocabulary))
    return math.exp(loss / (len(corpus.test) - order))


def test_neighbours_help_but_do_not_reach_the_floor(corpus):
    none, one, two = (perplexity_of_counts(corpus, order) for order in range(3))
    assert none == pytest.approx(76, abs=2), "as the docstring says"
    assert none > 3 * max(one, two)
    assert min(one, two) > 1.3 * corpus.perplexity


def test_each_word_leads_to_one_state():
    for state, branches in GRAMMAR.items():
        listed = [word for branch in branches for word in branch.words]
        assert len(listed) == len(set(listed)), state
        assert sum(branch.probability for branch in branches) == pytest.approx(1)


def test_wrong_corpus_arguments():
    with pytest.raises(ValueError, match="SyntheticCorpus: size is too small: got 0"):
        SyntheticCorpus(0)
    with pytest.raises(TypeError, match=r"SyntheticCorpus: seed is not an integer: got 1\.5"):
        SyntheticCorpus(10, seed=1.5)
    assert len(SyntheticCorpus(1).valid) > 0
