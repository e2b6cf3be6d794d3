"""One training loop for images and text, free of seeds, printing and files.

A *step* is a pair (logits, targets). `image_steps` and `text_steps` produce them, `run_epoch`
consumes them: loss, backward, clip, update, and a running score. A `Task` binds a model to its
data, split by split; `train_epoch` and `evaluate` are one pass over a split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np

from needle import Tensor, cpu, default_device, nn, no_grad
from needle.data import batchify, get_batch
from needle.optim import Optimizer


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


Step = tuple[Tensor, Tensor]
"""Logits (n, classes) and class ids (n,)."""

Observer = Callable[["Score"], None]
"""Called after every step with the score so far."""


class Batches(Sized, Iterable[Any], Protocol):
    """What a DataLoader is to this module: (images, labels) pairs, of a known number."""


@dataclass(frozen=True)
class Score:
    """What a pass over some data has measured so far.

    Attributes:
        correct: examples (images or tokens) whose highest logit is their target's.
        total_loss: summed loss of the examples, nats.
        examples: how many were seen.
        steps: how many batches they came in.
        seconds: time since the pass began.
    """

    correct: int = 0
    total_loss: float = 0.0
    examples: int = 0
    steps: int = 0
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """The fraction of examples classified right."""
        return self.correct / self.examples

    @property
    def loss(self) -> float:
        """The mean loss of an example, nats."""
        return self.total_loss / self.examples

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely words it would be as hard to guess among."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def rate(self) -> float:
        """Examples per second."""
        return self.examples / max(self.seconds, 1e-9)


def model_device(model: nn.Module) -> Any:
    """Where the model's parameters live; the default device for a model without any."""
    return next((p.device for p in model.parameters()), default_device())


def scale_weights(model: nn.Module, gain: float) -> None:
    """Multiply the weights of all Linear and Conv layers by `gain`, in place of what they hold.

    A smaller start makes each step of Adam a larger part of the weight, and behind batch norm only
    its direction counts: ten epochs of ResNet9 on CIFAR-10 (JPEG) end about 3 points higher with
    1 / sqrt(6), PyTorch's default scale, than with 1.
    """
    for _, module in model.named_modules():
        if isinstance(module, nn.Conv | nn.Linear):
            module.weight.data = module.weight.data * gain


def image_steps(batches: Iterable[Any], model: nn.Module) -> Iterator[Step]:
    """Run the model over (images, labels) batches, moved to its device."""
    device = model_device(model)
    for images, labels in batches:
        yield model(_on(images, device)), _on(labels, device)


def text_steps(
    data: np.ndarray[Any, Any],
    model: nn.Module,
    seq_len: int,
    device: Any = None,
    dtype: Any = "float32",
) -> Iterator[Step]:
    """Run the model over a text in windows, carrying its hidden state, detached, along.

    Args:
        data: word ids (nbatch, batch_size), as `batchify` lays them out.
        model: called as `model(x, h)`, returns (logits, h).
        seq_len: rows of a window; the last one may be shorter.
        device: where the batches go; the model's device when None.
        dtype: the type of the ids in a batch.

    Raises:
        ValueError: seq_len is not positive.
    """
    if seq_len < 1:
        raise ValueError(f"text_steps: seq_len too small: {seq_len}: need at least 1")
    device = model_device(model) if device is None else device
    state = None
    for i in range(0, len(data) - 1, seq_len):
        x, y = get_batch(data, i, seq_len, device=device, dtype=dtype)
        logits, state = model(x, state)
        state = _detach(state)
        yield logits, y


def run_epoch(
    steps: Iterable[Step],
    model: nn.Module,
    loss_fn: Any,
    opt: Optimizer | None = None,
    clip: float | None = None,
    observe: Observer | None = None,
) -> Score:
    """Train on every step, or, without an optimizer, only measure.

    Args:
        steps: from `image_steps` or `text_steps`: the forward pass of a step runs when it is asked
            for, after the update of the one before.
        model: put into training or evaluation mode first.
        loss_fn: `loss_fn(logits, targets)` is the mean loss over the examples of a step.
        opt: updates the model after every step; None evaluates, and records no graph.
        clip: the largest gradient norm of an update; None leaves gradients as they are.
        observe: called after every step with the score so far.

    Raises:
        ValueError: there is no step at all.
    """
    model.train(opt is not None)
    score, start = Score(), time.perf_counter()
    with no_grad() if opt is None else nullcontext():
        for logits, targets in steps:
            loss = loss_fn(logits, targets)
            if opt is not None:
                _update(loss, opt, clip)
            score = _count(score, logits, targets, loss.item(), time.perf_counter() - start)
            if observe is not None:
                observe(score)
    if score.steps == 0:
        raise ValueError("run_epoch: too few batches: 0: need at least 1")
    return score


def _update(loss: Tensor, opt: Optimizer, clip: float | None) -> None:
    opt.reset_grad()
    loss.backward(retain_graph=False)
    if clip is not None:
        opt.clip_grad_norm(clip)
    opt.step()


def _count(score: Score, logits: Tensor, targets: Tensor, loss: float, seconds: float) -> Score:
    labels = targets.numpy()
    # On the CPU this shares the logits' memory: those of a language model are large.
    scores = np.asarray(logits.detach().to(cpu()))
    hits = int(np.count_nonzero(scores.argmax(axis=1) == labels))
    return Score(
        correct=score.correct + hits,
        total_loss=score.total_loss + loss * len(labels),
        examples=score.examples + len(labels),
        steps=score.steps + 1,
        seconds=seconds,
    )


def _on(batch: Any, device: Any) -> Tensor:
    return batch.to(device) if isinstance(batch, Tensor) else Tensor(batch, device=device)


def _detach(state: Any) -> Any:
    return tuple(map(_detach, state)) if isinstance(state, tuple) else state.detach()


# ---- a model and its data ------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """One part of a data set, ready to be run through the model.

    Attributes:
        steps: starts a pass.
        batches: how many steps a pass has.
    """

    steps: Callable[[], Iterator[Step]]
    batches: int


@dataclass(frozen=True)
class Task:
    """A model bound to its data.

    Attributes:
        model: what is trained.
        unit: what an example is, in the plural: "images" or "tokens".
        splits: "train", "test" and, for text, "valid".
        clip: the largest gradient norm of an update; None for no limit.
        max_batches: stop every pass after so many; None for whole passes.
    """

    model: nn.Module
    unit: str
    splits: Mapping[str, Split]
    clip: float | None = None
    max_batches: int | None = None

    def batches(self, split: str) -> int:
        """How many batches a pass over a split has."""
        limit = self.max_batches
        return (
            self.splits[split].batches if limit is None else min(limit, self.splits[split].batches)
        )

    def steps(self, split: str) -> Iterator[Step]:
        """One pass over a split, as far as max_batches allows."""
        return islice(self.splits[split].steps(), self.max_batches)


def image_task(
    model: nn.Module, loaders: Mapping[str, Batches], max_batches: int | None = None
) -> Task:
    """Bind an image classifier to the DataLoader of each split."""

    def split(loader: Batches) -> Split:
        return Split(lambda: image_steps(loader, model), len(loader))

    splits = {name: split(loader) for name, loader in loaders.items()}
    return Task(model, "images", splits, max_batches=max_batches)


def text_task(
    model: nn.Module,
    texts: Mapping[str, Any],
    batch_size: int,
    seq_len: int,
    clip: float | None = None,
    max_batches: int | None = None,
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
        return Split(lambda: text_steps(data, model, seq_len), -(-(len(data) - 1) // seq_len))

    splits = {name: split(name, words) for name, words in texts.items()}
    return Task(model, "tokens", splits, clip, max_batches)


def train_epoch(task: Task, opt: Optimizer, observe: Observer | None = None) -> Score:
    """Train on the train split once.

    Raises:
        DivergedError: the loss became infinite or NaN.
    """

    def check(score: Score) -> None:
        if not math.isfinite(score.total_loss):
            raise DivergedError(
                f"train: loss is not finite: batch {score.steps}: lower the learning rate"
            )
        if observe is not None:
            observe(score)

    return run_epoch(task.steps("train"), task.model, nn.SoftmaxLoss(), opt, task.clip, check)


def evaluate(task: Task, split: str, observe: Observer | None = None) -> Score:
    """Measure the model, in evaluation mode, on a split."""
    return run_epoch(task.steps(split), task.model, nn.SoftmaxLoss(), observe=observe)
