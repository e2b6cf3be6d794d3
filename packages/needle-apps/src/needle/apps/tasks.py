"""A task: a model bound to the data it is trained and measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from needle import nn
from needle.apps.training import Observer, Score, Step, image_steps, run_epoch, text_steps
from needle.data import DataLoader, batchify

Start = Callable[[int, Any], Iterator[Step]]
"""`start(first, state)` begins a pass at batch `first` with the recurrent state before it.

Whatever is random about the order of the pass is drawn in this call, not with the first step.
"""


@dataclass(frozen=True)
class Split:
    """One part of a data set, ready to be run through the model.

    Attributes:
        start: begins a pass.
        batches: how many steps a whole pass has.
    """

    start: Start
    batches: int


@dataclass(frozen=True)
class Task:
    """A model bound to its data.

    Attributes:
        model: what is trained.
        unit: what an example is, in the plural: "images" or "tokens".
        splits: "train", "test" and perhaps "valid".
        loss_fn: what training descends; measuring always takes the plain softmax loss.
        max_batches: stop every pass after so many; None for whole passes.
    """

    model: nn.Module
    unit: str
    splits: Mapping[str, Split]
    loss_fn: Callable[..., Any]
    max_batches: int | None = None

    def batches(self, split: str) -> int:
        """How many batches a pass over a split has."""
        whole = self.splits[split].batches
        return whole if self.max_batches is None else min(self.max_batches, whole)

    def steps(self, split: str, first: int = 0, state: Any = None) -> Iterator[Step]:
        """A pass over a split from batch `first` on, as far as max_batches allows."""
        return islice(self.splits[split].start(first, state), self.batches(split) - first)

    def measure(self, split: str, observe: Observer | None = None) -> Score:
        """One pass over a split in evaluation mode."""
        return run_epoch(self.steps(split), self.model, nn.SoftmaxLoss(), observe=observe)


def image_task(
    model: nn.Module,
    loaders: Mapping[str, DataLoader],
    max_batches: int | None = None,
    loss_fn: Callable[..., Any] | None = None,
) -> Task:
    """Bind an image classifier to the DataLoader of each split."""

    def split(loader: DataLoader) -> Split:
        return Split(lambda first, _: image_steps(loader.start(first), model), len(loader))

    splits = {name: split(loader) for name, loader in loaders.items()}
    return Task(model, "images", splits, loss_fn or nn.SoftmaxLoss(), max_batches)


def text_task(
    model: nn.Module,
    texts: Mapping[str, Any],
    batch_size: int,
    seq_len: int,
    max_batches: int | None = None,
    sum_steps: bool = False,
) -> Task:
    """Bind a language model to texts of word ids, cut into batch_size parallel streams.

    Raises:
        ValueError: a text is too short to give each stream a word and its successor.
    """

    def split(name: str, words: Any) -> Split:
        if len(words) < 2 * batch_size:
            raise ValueError(
                f"batch size too large: {batch_size}: the {name} text has "
                f"{len(words)} words, so at most {len(words) // 2}"
            )
        data = batchify(words, batch_size, device=None, dtype="float32")

        def start(first: int, state: Any) -> Iterator[Step]:
            return text_steps(data, model, seq_len, first=first, state=state, sum_steps=sum_steps)

        return Split(start, -(-(len(data) - 1) // seq_len))

    splits = {name: split(name, words) for name, words in texts.items()}
    return Task(model, "tokens", splits, nn.SoftmaxLoss(), max_batches)
