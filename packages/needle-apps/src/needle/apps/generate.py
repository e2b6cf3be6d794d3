"""Writing text with a language model, word by word.

```
state = None                                    # zeros
for id in prompt:   logits, state = model(id, state)
repeat:             id ~ softmax(logits / temperature), of the top_k largest
                    logits, state = model(id, state)
```
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray as Array

from needle import Tensor, cpu, no_grad
from needle.apps.models import LanguageModel
from needle.apps.predict import softmax
from needle.apps.training import model_device
from needle.data.text import END_OF_LINE, UNKNOWN

CHUNK = 128  # words of a prompt that go through the model at once: bounds the memory of the logits


class PromptError(ValueError):
    """A prompt cannot be given to the model, or no word can be drawn as it is asked."""


@dataclass(frozen=True)
class Sampling:
    """How the next word is chosen.

    Attributes:
        temperature: logits are divided by it: below 1 the likely words become likelier; 0 always
            takes the likeliest.
        top_k: choose among so many likeliest words; None for all.
        banned: ids that are never chosen.

    Raises:
        PromptError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    banned: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < np.inf:
            raise PromptError(f"generate: temperature: got {self.temperature}: need at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise PromptError(f"generate: top_k: got {self.top_k}: need at least 1")

    def probabilities(self, logits: Array[np.floating[Any]]) -> Array[np.float64]:
        """Of each word to be the next, float64 (words,): what `choose` draws from.

        Raises:
            PromptError: a logit is NaN or infinite, or all words are banned.
        """
        scores = logits.astype(np.float64)
        scores[list(self.banned)] = -np.inf
        if not np.isfinite(largest := scores.max()):
            raise PromptError(
                f"generate: no word to choose: the largest logit is {largest}: need a number: has "
                "the model's training diverged?"
            )
        order = np.argsort(-scores, kind="stable")  # of equal ones the first ids
        kept = order[: 1 if self.temperature == 0 else self.top_k]
        found = np.zeros(len(scores))
        # Relative to the largest first: a tiny temperature must not overflow.
        found[kept] = softmax((scores[kept] - scores[kept[0]]) / (self.temperature or 1.0))
        return found

    def choose(self, logits: Array[np.floating[Any]], rng: np.random.Generator) -> int:
        """Draw the next word's id."""
        bounds = np.cumsum(self.probabilities(logits))
        # The sum may miss 1 by rounding; scaled by it, the draw stays below the last bound.
        return int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))


def generate(
    model: LanguageModel,
    prompt: Sequence[int],
    length: int,
    sampling: Sampling,
    rng: np.random.Generator,
) -> Iterator[int]:
    """Continue a prompt by `length` words.

    Args:
        model: put into evaluation mode.
        prompt: ids of the words to begin with, at least one; of any length.
        length: how many ids to yield.
        sampling: how each is chosen.
        rng: where the draws come from: the same generator, the same text.

    Raises:
        PromptError: the prompt is empty, or the model's logits are no numbers.
    """
    if len(prompt) == 0:
        raise PromptError("generate: prompt is empty: got 0 words: need at least 1")
    model.eval()
    logits, state = _read(model, prompt)
    for left in range(length, 0, -1):
        word = sampling.choose(logits, rng)
        yield word
        if left > 1:
            logits, state = _step(model, [word], state)


def _read(model: LanguageModel, prompt: Sequence[int]) -> tuple[Array[np.floating[Any]], Any]:
    """The logits and the state after a prompt."""
    state = None
    for i in range(0, len(prompt), CHUNK):
        logits, state = _step(model, prompt[i : i + CHUNK], state)
    return logits, state


def _step(
    model: LanguageModel, words: Sequence[int], state: Any
) -> tuple[Array[np.floating[Any]], Any]:
    """The logits of the word after `words`, and the state there."""
    ids = np.asarray(words, dtype=np.float32)[:, np.newaxis]
    with no_grad():
        x = Tensor(ids, device=model_device(model), requires_grad=False)
        logits, state = model(x, state)
    return np.asarray(logits.detach().to(cpu()))[-1], state


# ---- words ---------------------------------------------------------------------------------------


def encode(text: str, words: Sequence[str]) -> tuple[list[int], list[str]]:
    """A prompt as word ids; a line's end is `<eos>`, and an empty prompt the end of a line before.

    A word that is not known is tried in lower case, and is `<unk>` then.

    Args:
        text: words between spaces, as in the training text.
        words: the vocabulary by id.

    Returns:
        The ids, and the words that became `<unk>`.

    Raises:
        PromptError: a word is not known, and there is no `<unk>` to stand for it.
    """
    ids = {word: i for i, word in enumerate(words)}
    found, unknown = [], []
    for word in f" {END_OF_LINE} ".join(text.split("\n")).split() or [END_OF_LINE]:
        known = next((w for w in (word, word.lower()) if w in ids), None)
        if known is None:
            unknown.append(word)
            known = UNKNOWN
        if known not in ids:
            raise PromptError(
                f"generate: unknown word: {word!r}: the vocabulary has {len(words)} others, and no "
                f"{UNKNOWN} to stand for it"
            )
        found.append(ids[known])
    return found, unknown


def pieces(ids: Iterable[int], words: Sequence[str]) -> Iterator[str]:
    """The text of ids, piece by piece: spaces between words, a line's end for `<eos>`."""
    start = True
    for i in ids:
        word = words[i]
        if word == END_OF_LINE:
            yield "\n"
        else:
            yield printable(word) if start else f" {printable(word)}"
        start = word == END_OF_LINE


def printable(word: str) -> str:
    """A word without what could move a terminal's cursor: a vocabulary may come from anyone."""
    return word if word.isprintable() else word.encode("unicode_escape").decode()
