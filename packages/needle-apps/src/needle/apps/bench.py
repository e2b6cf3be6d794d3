"""How fast this machine trains: whole steps, and the kernels they spend their time in.

The inputs are random: no data set is read. What is compared with what, and how, is the business of
the packages' `benchmarks/`; this is for one look at one machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import needle
from needle import Tensor, nn
from needle.apps.models import LanguageModel, ResNet9
from needle.apps.training import update
from needle.backend_ndarray import Device, synchronize
from needle.optim import SGD, Adam

WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """How long a training step takes.

    Attributes:
        name: "resnet9" or "lm".
        what: the sizes.
        unit: "images" or "tokens".
        examples: of a step.
        seconds: of every step timed.
        profile: of as many steps again.
    """

    name: str
    what: str
    unit: str
    examples: int
    seconds: tuple[float, ...]
    profile: needle.profile

    @property
    def median(self) -> float:
        """The median step, s."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Examples per second, of the median step."""
        return self.examples / self.median


def resnet9(device: Device, steps: int, batch_size: int = 128) -> Timing:
    """Time training steps of ResNet9 with Adam on random images."""
    model = ResNet9(device=device)
    x = Tensor(np.random.rand(batch_size, 3, 32, 32), device=device, requires_grad=False)
    y = Tensor(np.random.randint(0, 10, batch_size), device=device, requires_grad=False)
    opt, loss_fn = Adam(model.parameters(), lr=1e-3, weight_decay=1e-3), nn.SoftmaxLoss()

    def step() -> None:
        update(loss_fn(model(x), y), opt)

    return _time(device, "resnet9", f"batch {batch_size}", "images", batch_size, step, steps)


def language_model(device: Device, steps: int, batch_size: int = 20, seq_len: int = 20) -> Timing:
    """Time training steps of the small LSTM of Zaremba et al. 2014 on random words."""
    words, layers, size = 10_000, 2, 200
    model = LanguageModel(size, words, size, layers, "lstm", device=device)
    ids = np.random.randint(0, words, (seq_len + 1, batch_size))
    x = Tensor(ids[:-1], device=device, requires_grad=False)
    y = Tensor(ids[1:].reshape(-1), device=device, requires_grad=False)
    opt, loss_fn = SGD(model.parameters(), lr=1.0), nn.SoftmaxLoss()
    state: Any = None

    def step() -> None:
        nonlocal state
        logits, state = model(x, state)
        state = tuple([part.detach() for part in state])
        update(loss_fn(logits, y), opt, 5.0)

    what = f"LSTM {layers} x {size}, {words:,} words, {batch_size} x {seq_len} tokens"
    return _time(device, "lm", what, "tokens", batch_size * seq_len, step, steps)


BENCHES: dict[str, Callable[[Device, int], Timing]] = {"resnet9": resnet9, "lm": language_model}


def _time(
    device: Device,
    name: str,
    what: str,
    unit: str,
    examples: int,
    step: Callable[[], None],
    steps: int,
) -> Timing:
    for _ in range(WARM_UP):
        step()
    synchronize(device)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    with needle.profile(print_table=False) as profile:
        for _ in range(steps):
            step()
    return Timing(name, what, unit, examples, tuple(seconds), profile)
