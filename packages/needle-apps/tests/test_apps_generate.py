"""Text from a language model: what is drawn is what the model says."""

import numpy as np
import pytest

import needle as ndl
from needle.apps.generate import CHUNK, PromptError, Sampling, encode, generate, pieces
from needle.apps.models import LanguageModel

WORDS = ["<unk>", "<eos>", "the", "old", "king"]


def model_of(kind, words=11, **options):
    np.random.seed(3)
    model = LanguageModel(6, words, 8, num_layers=2, seq_model=kind, **options)
    for parameter in model.parameters():  # large weights: the words' probabilities differ
        parameter.data = parameter.data * 2
    return model


def run(model, prompt, length, seed=0, **sampling):
    return list(generate(model, prompt, length, Sampling(**sampling), np.random.default_rng(seed)))


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


# ---- choosing a word -----------------------------------------------------------------------------


def test_probabilities_are_a_softmax_of_the_largest():
    logits = np.array([1.0, 3.0, -2.0, 2.5, 3.0], dtype=np.float32)
    np.testing.assert_allclose(Sampling().probabilities(logits), softmax(logits.astype(float)))
    np.testing.assert_allclose(
        Sampling(temperature=0.5).probabilities(logits), softmax(2 * logits.astype(float))
    )
    three = np.where([False, True, False, True, True], logits.astype(float), -np.inf)
    np.testing.assert_allclose(Sampling(top_k=3).probabilities(logits), softmax(three))
    np.testing.assert_array_equal(Sampling(top_k=1).probabilities(logits), np.eye(5)[1])
    np.testing.assert_array_equal(Sampling(temperature=0).probabilities(logits), np.eye(5)[1])
    np.testing.assert_array_equal(Sampling(temperature=1e-300).probabilities(logits)[[0, 2, 3]], 0)
    np.testing.assert_allclose(Sampling(top_k=99).probabilities(logits).sum(), 1)


def test_a_banned_word_leaves_the_others_in_proportion():
    logits = np.array([1.0, 5.0, 0.0])
    found = Sampling(banned=(1,)).probabilities(logits)
    np.testing.assert_allclose(found, [np.e / (np.e + 1), 0, 1 / (np.e + 1)])
    np.testing.assert_array_equal(logits, [1, 5, 0])
    assert Sampling(temperature=0, banned=(1,)).choose(logits, np.random.default_rng(0)) == 0


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"temperature": 2.0, "top_k": 4}, {"top_k": 2}]
)
def test_words_are_drawn_as_often_as_they_should_be(options):
    """Chi squared of 20,000 draws; 40 of 9 degrees of freedom has a probability below 1e-5."""
    logits, n = np.random.RandomState(0).randn(10) * 1.5, 20_000
    sampling, rng = Sampling(**options), np.random.default_rng(1)
    counts = np.bincount([sampling.choose(logits, rng) for _ in range(n)], minlength=10)
    scaled = logits / options.get("temperature", 1.0)
    kept = np.argsort(scaled)[-options.get("top_k", 10) :]
    expected = np.zeros(10)
    expected[kept] = n * softmax(scaled[kept])
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 40


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_a_temperature_out_of_range(bad):
    with pytest.raises(PromptError, match=rf"generate: temperature: got {bad}: need at least 0"):
        Sampling(temperature=bad)


def test_a_top_k_out_of_range():
    with pytest.raises(PromptError, match="generate: top_k: got 0: need at least 1"):
        Sampling(top_k=0)


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 2}])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers(bad, options):
    with pytest.raises(PromptError, match=f"generate: no word to choose: .* logit is {bad}: need"):
        Sampling(**options).probabilities(np.array([1, bad, 0], np.float32))


def test_all_words_banned():
    with pytest.raises(PromptError, match="generate: no word to choose: the largest logit is -inf"):
        Sampling(banned=(0, 1)).probabilities(np.ones(2))


# ---- the model's state ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
@pytest.mark.parametrize("prompt_length", [1, 5, CHUNK, CHUNK + 3])
def test_greedy_text_is_what_the_whole_text_so_far_predicts(kind, prompt_length):
    model = model_of(kind)
    prompt = np.random.RandomState(1).randint(0, 11, prompt_length).tolist()
    found = run(model, prompt, 6, temperature=0)
    text = list(prompt)
    for word in found:  # without any carried state: all over again for every word
        ids = ndl.Tensor(np.array(text, dtype=np.float32)[:, None])
        logits = model(ids)[0].numpy()[-1]
        assert word == logits.argmax()
        text.append(word)


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_a_seed_fixes_the_text(kind):
    model = model_of(kind)
    np.random.seed(0)
    first = run(model, [1], 30, seed=5)
    np.random.seed(1)  # the global generator has no part in it
    assert run(model, [1], 30, seed=5) == first
    assert run(model, [1], 30, seed=6) != first
    assert run(model, [1], 10, seed=5) == first[:10]


def test_dropout_and_the_graph_are_off():
    model = model_of("lstm")
    model.train()
    run(model, [1], 2)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_text_is_drawn_from_the_models_own_distribution():
    """The first word after a prompt, 1,000 times: chi squared of 10 degrees of freedom."""
    model = model_of("lstm")
    logits = model(ndl.Tensor([[1.0], [4.0]]))[0].numpy()[-1].astype(float)
    expected = 1000 * softmax(logits)
    rng = np.random.default_rng(0)
    words = [next(generate(model, [1, 4], 1, Sampling(), rng)) for _ in range(1000)]
    counts = np.bincount(words, minlength=11)
    common = expected > 5  # the rest together, as the test asks for
    observed = [*counts[common], counts[~common].sum()]
    wanted = [*expected[common], max(expected[~common].sum(), 1e-9)]
    assert sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True)) < 45


def test_no_words_and_no_prompt():
    assert run(model_of("rnn"), [1], 0) == []
    with pytest.raises(PromptError, match="prompt is empty: got 0 words: need at least 1"):
        run(model_of("rnn"), [], 1)


# ---- words ---------------------------------------------------------------------------------------


def test_a_prompt_becomes_ids():
    assert encode("the old king", WORDS) == ([2, 3, 4], [])
    assert encode("  The  KING ", WORDS) == ([2, 4], [])
    assert encode("the\nold", WORDS) == ([2, 1, 3], [])
    assert encode("the bold queen", WORDS) == ([2, 0, 0], ["bold", "queen"])
    assert encode("", WORDS) == ([1], [])


def test_an_unknown_word_without_anything_to_stand_for_it():
    with pytest.raises(
        PromptError, match=r"unknown word: 'queen': the vocabulary has 4 others, and"
    ):
        encode("the queen", WORDS[1:])


def test_ids_become_text():
    assert "".join(pieces([2, 4, 1, 3, 1, 1, 0], WORDS)) == "the king\nold\n\n<unk>"
    assert "".join(pieces([], WORDS)) == ""
    assert "".join(pieces([0, 1], ["\x1b[2Jx", "é"])) == "\\x1b[2Jx é"
