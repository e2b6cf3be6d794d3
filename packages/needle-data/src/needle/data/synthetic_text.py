"""Sentences of a small grammar, made on the spot, with the best possible perplexity known."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray as Array

from ._checks import check_integer
from .text import END_OF_LINE, Dictionary

PEOPLE = "boy girl farmer teacher doctor baker sailor painter miner tailor hunter king singer guest"
FOODS = "apple carrot pancake biscuit sausage walnut melon pepper"
TEXTS = "book letter poem novel report card note paper"
ADJECTIVES = "old young small big happy sad quiet loud red blue green strange"
COOK = "eat cook bake order taste roast"
WRITE = "read write print copy quote sign"
SLEEP = "sleep laugh sing walk swim wait"
ADVERBS = "today often again alone early here"
CONJUNCTIONS = "and but while because"
DETERMINERS = {"one": "a this every each", "many": "some these many all"}


@dataclass(frozen=True)
class Branch:
    """One way on from a state: with `probability`, one of `words` (all alike), then state `to`."""

    probability: float
    words: tuple[str, ...]
    to: str


def _branch(probability: float, words: str, to: str, suffix: str = "") -> Branch:
    return Branch(probability, tuple(word + suffix for word in words.split()), to)


def _make_grammar() -> dict[str, tuple[Branch, ...]]:
    """The states of a sentence; a state and its word fix the next one, so history fixes all."""
    grammar = {
        "start": tuple(_branch(0.5, DETERMINERS[n], f"subject {n}") for n in DETERMINERS),
        "end": (
            _branch(0.6, END_OF_LINE, "start"),
            _branch(0.2, ADVERBS, "close"),
            _branch(0.2, CONJUNCTIONS, "start"),
        ),
        "close": (_branch(1.0, END_OF_LINE, "start"),),
    }
    for n in DETERMINERS:
        on_noun, on_verb = ("", "s") if n == "one" else ("s", "")
        grammar[f"subject {n}"] = (
            _branch(0.3, ADJECTIVES, f"subject {n}"),
            _branch(0.7, PEOPLE, f"verb {n}", on_noun),
        )
        grammar[f"verb {n}"] = (
            _branch(0.4, COOK, "object food", on_verb),
            _branch(0.4, WRITE, "object text", on_verb),
            _branch(0.2, SLEEP, "end", on_verb),
        )
        for kind, nouns in {"food": FOODS, "text": TEXTS}.items():
            grammar[f"object {kind}"] = tuple(
                _branch(0.5, DETERMINERS[m], f"object {kind} {m}") for m in DETERMINERS
            )
            grammar[f"object {kind} {n}"] = (
                _branch(0.3, ADJECTIVES, f"object {kind} {n}"),
                _branch(0.7, nouns, "end", on_noun),
            )
    return grammar


GRAMMAR = _make_grammar()


class SyntheticCorpus:
    """Sentences of a small grammar, as a `Corpus`: dictionary, train, valid, test.

    `this old farmer reads some letters because all girls sleep <eos>`. Nouns agree with their
    determiner and verbs with their subject, and a verb chooses the kind of its object, each
    across any number of adjectives: a model has to remember. Sentences are independent, and a
    sentence's words so far fix the grammar's state, so the entropy of the next word is known:

        entropy = sum_s v(s) h(s) / sum_s v(s)

    with v(s) the expected visits of state s in a sentence and h(s) the entropy of its next word.
    It is 2.430 nats per token: no model's expected perplexity is below 11.35 (guessing by word
    frequency alone gives 76).

    Args:
        size: sentences in train; valid and test have a tenth of it, at least one.
        seed: another seed is another corpus of the same language.

    Attributes:
        dictionary: all words of the grammar.
        train: word ids, every sentence ended by `<eos>`.
        valid: the same, other sentences.
        test: the same, other sentences.
        entropy: of the next word, in nats per token.
        perplexity: exp(entropy), the floor for any model.

    Raises:
        TypeError: `size` or `seed` is not an integer.
        ValueError: `size` is below 1 or `seed` below 0.
    """

    def __init__(self, size: int = 20_000, seed: int = 0) -> None:
        size = check_integer("SyntheticCorpus", "size", size, at_least=1)
        seed = check_integer("SyntheticCorpus", "seed", seed, at_least=0)
        # A generator of its own: making the corpus leaves NumPy's global one where it was.
        rng = np.random.Generator(np.random.PCG64(seed))
        automaton = _Automaton()
        self.dictionary = automaton.dictionary
        self.train = automaton.sentences(rng, size)
        self.valid = automaton.sentences(rng, max(1, size // 10))
        self.test = automaton.sentences(rng, max(1, size // 10))
        self.entropy = automaton.entropy()
        self.perplexity = math.exp(self.entropy)


class _Automaton:
    """The grammar as tables over (state, choice): word id, next state, cumulative probability."""

    def __init__(self) -> None:
        self.dictionary = Dictionary()
        states = {name: i for i, name in enumerate(GRAMMAR)}
        width = max(sum(len(b.words) for b in branches) for branches in GRAMMAR.values())
        self.word = np.zeros((len(states), width), dtype=np.int64)
        self.next = np.zeros((len(states), width), dtype=np.int64)
        self.probability = np.zeros((len(states), width))
        for row, branches in enumerate(GRAMMAR.values()):
            choices = [(branch, word) for branch in branches for word in branch.words]
            for column, (branch, word) in enumerate(choices):
                self.word[row, column] = self.dictionary.add_word(word)
                self.next[row, column] = states[branch.to]
                self.probability[row, column] = branch.probability / len(branch.words)
        self.end_of_line = self.dictionary.word2idx[END_OF_LINE]

    def sentences(self, rng: np.random.Generator, n: int) -> list[int]:
        """`n` sentences, one after the other; all grow at once, a word a step."""
        # The sum of a row may miss 1 by rounding: the last real choice takes what is left.
        bounds = np.cumsum(self.probability, axis=1)
        bounds[bounds > 1 - 1e-9] = 1.0
        columns = []
        growing, state = np.arange(n), np.zeros(n, dtype=np.int64)
        while len(growing):
            choice = (rng.random(len(growing))[:, np.newaxis] >= bounds[state]).sum(axis=1)
            words = np.full(n, -1)
            words[growing] = self.word[state, choice]
            columns.append(words)
            more = words[growing] != self.end_of_line
            growing, state = growing[more], self.next[state, choice][more]
        table = np.stack(columns, axis=1)
        ids: list[int] = table[table >= 0].tolist()
        return ids

    def entropy(self) -> float:
        """The next word's entropy in nats: that of each state, weighted by its visits."""
        p = self.probability
        of_state = -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=1)
        visits = self._visits()
        return float(visits @ of_state / visits.sum())

    def _visits(self) -> Array[np.float64]:
        """Expected visits of each state in a sentence: v = start + v P, P without sentence ends."""
        n = len(GRAMMAR)
        p = np.where(self.word == self.end_of_line, 0, self.probability)
        step = np.zeros((n, n))
        np.add.at(step, (np.arange(n)[:, np.newaxis], self.next), p)
        start = np.eye(n)[0]
        return np.linalg.solve(np.eye(n) - step.T, start)
