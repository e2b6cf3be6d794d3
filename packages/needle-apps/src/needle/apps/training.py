"""One pass over images or text, free of seeds, printing and files.

A *step* is a model's logits for a batch, and their targets. `image_steps` and `text_steps` produce
steps, `run_epoch` consumes them: loss, backward, clip, update, and a running score. `tasks` binds
a model to its data, `trainer` makes whole runs of such passes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from needle import Tensor, default_device, nn, no_grad
from needle import backend_ndarray as nd
from needle.apps.checks import check_count, kind_of
from needle.data import get_batch
from needle.nn.checks import check_tensor
from needle.optim import Optimizer


class Step(NamedTuple):
    """What the model says of one batch.

    Attributes:
        logits: (n, classes).
        targets: class ids (n,).
        state: the recurrent state after the batch, detached; None for images.
        weight: what the mean loss counts for in training.
    """

    logits: Tensor
    targets: Tensor
    state: Any = None
    weight: float = 1.0


Observer = Callable[["Score"], None]
"""Called after every step with the score so far."""


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

    def plus(self, step: Step, loss: float, seconds: float) -> Score:
        """The score with one step more, of this mean loss, after so many seconds."""
        count = step.targets.shape[0]
        return Score(
            correct=self.correct + count_hits(step.logits, step.targets),
            total_loss=self.total_loss + loss * count,
            examples=self.examples + count,
            steps=self.steps + 1,
            seconds=seconds,
        )

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


def count_hits(logits: Tensor, targets: Tensor) -> int:
    """How many rows of (n, classes) have their highest number, the first of equals, at the target.

    A language model's logits are large: on the CPU their memory is shared, on a GPU they stay.
    """
    scores, labels = logits.realize_cached_data(), targets.realize_cached_data()
    if scores.device.in_host_memory:
        return int(np.count_nonzero(np.asarray(scores).argmax(axis=1) == np.asarray(labels)))
    classes = scores.shape[1]
    # n, n - 1, ... where a row is as high as its maximum: the largest is at the first of those.
    places = nd.array(np.arange(classes, 0, -1), device=scores.device)
    highest = nd.equal(scores, nd.max(scores, 1, keepdims=True)).astype("float32")
    first = classes - nd.max(highest * places, 1)
    return int(nd.equal(first, labels.astype("float32")).astype("int64").sum().item())


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
    """Run the model over (images, labels) batches, moved to its device.

    Raises:
        TypeError: a batch is no pair.
    """
    device = model_device(model)
    for batch in batches:
        try:
            images, labels = batch
        except (TypeError, ValueError):
            raise TypeError(
                f"image_steps: a batch is {kind_of(batch)}: need a pair (images, labels)"
            ) from None
        yield Step(model(_on(images, device)), _on(labels, device))


def text_steps(
    data: np.ndarray[Any, Any],
    model: nn.Module,
    seq_len: int,
    device: Any = None,
    dtype: Any = "float32",
    *,
    first: int = 0,
    state: Any = None,
    sum_steps: bool = False,
) -> Iterator[Step]:
    """Run the model over a text in windows, carrying its hidden state, detached, along.

    Args:
        data: word ids (nbatch, batch_size), as `batchify` lays them out.
        model: called as `model(x, h)`, returns (logits, h).
        seq_len: rows of a window; the last one may be shorter.
        device: where the batches go; the model's device when None.
        dtype: the type of the ids in a batch.
        first: the window to begin with.
        state: the state before it; None for zeros.
        sum_steps: a window's weight is its number of rows, not 1: the loss is then summed over the
            rows and averaged over the batch.

    Raises:
        TypeError: seq_len is not a whole number.
        ValueError: seq_len is not positive.
    """
    check_count("text_steps", "seq_len", seq_len)
    device = model_device(model) if device is None else device
    for i in range(first * seq_len, len(data) - 1, seq_len):
        x, y = get_batch(data, i, seq_len, device=device, dtype=dtype)
        logits, state = model(x, state)
        state = _detach(state)
        yield Step(logits, y, state, x.shape[0] if sum_steps else 1.0)


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
        TypeError: the loss is no Tensor.
        ValueError: there is no step at all.
    """
    model.train(opt is not None)
    score, start = Score(), time.perf_counter()
    with no_grad() if opt is None else nullcontext():
        for step in steps:
            loss = check_tensor("run_epoch", "the loss", loss_fn(step.logits, step.targets))
            if opt is not None:
                update(loss, opt, clip)
            score = score.plus(step, loss.item(), time.perf_counter() - start)
            if observe is not None:
                observe(score)
    if score.steps == 0:
        raise ValueError("run_epoch: too few batches: 0: need at least 1")
    return score


def update(loss: Tensor, opt: Optimizer, clip: float | None = None) -> float | None:
    """One step of the optimizer down the gradient of `loss`.

    Returns:
        The gradient's norm before clipping; None without `clip`.
    """
    opt.reset_grad()
    loss.backward(retain_graph=False)
    norm = None if clip is None else opt.clip_grad_norm(clip)
    opt.step()
    return None if norm is None else float(norm)


def _on(batch: Any, device: Any) -> Tensor:
    return batch.to(device) if isinstance(batch, Tensor) else Tensor(batch, device=device)


def _detach(state: Any) -> Any:
    return tuple([_detach(part) for part in state]) if isinstance(state, tuple) else state.detach()
