"""How long a training step takes: `hatch run bench:run packages/needle-apps`.

A step is a plain user's loop: zero the gradients, forward, loss, backward, update, read the loss.
Sizes are those of docs/performance.md: ResNet9 with batch 128 and Adam; language models of 200
units, two layers, 35 steps of 20 texts, vocabulary 10,000, with SGD. Every step's loss is checked:
it starts near log(classes), stays finite, and falls, since all steps see the same batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import Tensor, nn, optim
from needle.apps.models import LanguageModel, ResNet9

THREADS = 2
WORDS = 10_000
STEPS, TEXTS = 35, 20

Step = Callable[[], float]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = ndl.num_threads()
    ndl.set_num_threads(THREADS)
    yield
    ndl.set_num_threads(before)


def constant(values: Any) -> Tensor:
    return Tensor(values, dtype="float32", requires_grad=False)


def resnet9_step() -> Step:
    model, loss_fn = ResNet9(), nn.SoftmaxLoss()
    opt = optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)
    x, y = constant(np.random.rand(128, 3, 32, 32)), constant(np.random.randint(0, 10, 128))

    def step() -> float:
        opt.reset_grad()
        loss = loss_fn(model(x), y)
        loss.backward(retain_graph=False)
        opt.step()
        return float(loss.item())

    return step


def language_step(kind: str, size: int) -> Step:
    model, loss_fn = LanguageModel(size, WORDS, size, 2, kind), nn.SoftmaxLoss()
    opt = optim.SGD(model.parameters(), lr=1.0)
    x = constant(np.random.randint(0, WORDS, (STEPS, TEXTS)))
    y = constant(np.random.randint(0, WORDS, STEPS * TEXTS))

    def step() -> float:
        opt.reset_grad()
        loss = loss_fn(model(x)[0], y)
        loss.backward(retain_graph=False)
        opt.step()
        return float(loss.item())

    return step


CASES: dict[str, tuple[Callable[[], Step], int, int]] = {
    # name: (how to make it, classes, examples in a step)
    "resnet9": (resnet9_step, 10, 128),
    "rnn-200": (lambda: language_step("rnn", 200), WORDS, STEPS * TEXTS),
    "lstm-200": (lambda: language_step("lstm", 200), WORDS, STEPS * TEXTS),
}


@pytest.mark.parametrize("name", CASES)
def test_training_step(benchmark: Any, name: str) -> None:
    make, classes, examples = CASES[name]
    np.random.seed(0)
    step = make()
    first = step()
    assert abs(first - math.log(classes)) < 2
    last = benchmark.pedantic(step, rounds=20, warmup_rounds=3)
    assert last < first
    benchmark.extra_info["examples/s"] = round(examples / benchmark.stats.stats.median)
    benchmark.extra_info["threads"] = THREADS
