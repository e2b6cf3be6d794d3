"""How long modules and optimizer steps take, forward and backward: `hatch run bench:run`.

Sizes are those of ResNet9 with batch 128 and of the language model with 200 hidden units. Every
result is checked for shape and finite values; values are the tests' business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import Tensor, nn, optim

THREADS = 2

Case = tuple[str, Callable[[], nn.Module], tuple[int, ...], float]

# name, module, input shape, GFLOP of one forward pass (0: bound by memory)
CASES: list[Case] = [
    ("Linear", lambda: nn.Linear(200, 10_000), (700, 200), 2 * 700 * 200 * 10_000 / 1e9),
    ("Conv7x7s4", lambda: nn.Conv(3, 16, 7, 4), (128, 3, 32, 32), 128 * 64 * 16 * 147 * 2 / 1e9),
    ("Conv3x3", lambda: nn.Conv(32, 32, 3), (128, 32, 4, 4), 128 * 16 * 32 * 288 * 2 / 1e9),
    ("BatchNorm2d", lambda: nn.BatchNorm2d(16), (128, 16, 8, 8), 0),
    ("BatchNorm2d-relu", lambda: nn.BatchNorm2d(16, relu=True), (128, 16, 8, 8), 0),
    ("LayerNorm1d", lambda: nn.LayerNorm1d(200), (700, 200), 0),
    ("RNN", lambda: nn.RNN(200, 200, 2), (35, 20, 200), 2 * 2 * 700 * 400 * 200 / 1e9),
    ("LSTM", lambda: nn.LSTM(200, 200, 2), (35, 20, 200), 2 * 2 * 700 * 400 * 800 / 1e9),
]


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = ndl.num_threads()
    ndl.set_num_threads(THREADS)
    yield
    ndl.set_num_threads(before)


def first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def note_speed(benchmark: Any, gflop: float) -> None:
    if gflop:
        stats = benchmark.stats.stats
        benchmark.extra_info["GFLOP/s"] = round(gflop / stats.min, 1)
    benchmark.extra_info["threads"] = THREADS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_forward(benchmark: Any, case: Case) -> None:
    _, make, shape, gflop = case
    module, x = make(), Tensor(np.random.randn(*shape), dtype="float32", requires_grad=False)
    with ndl.no_grad():
        y = first(benchmark(module, x))
    assert np.isfinite(y.numpy()).all()
    note_speed(benchmark, gflop)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_forward_and_backward(benchmark: Any, case: Case) -> None:
    _, make, shape, gflop = case
    module, x = make(), Tensor(np.random.randn(*shape), dtype="float32")
    seed = Tensor(np.ones(first(module(x)).shape), dtype="float32", requires_grad=False)
    benchmark(lambda: first(module(x)).backward(seed, retain_graph=False))
    assert x.grad is not None
    assert np.isfinite(x.grad.numpy()).all()
    note_speed(benchmark, 3 * gflop)  # the input's and the weight's gradient cost one forward each


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam], ids=lambda kind: kind.__name__)
def test_step(benchmark: Any, kind: Any) -> None:
    """The language model's 4.6 million parameters in 11 arrays."""
    shapes = [(10_000, 200), (200, 10_000), (1, 10_000)] + [(200, 800), (800,)] * 4
    params = [nn.Parameter(np.ones(shape), dtype="float32") for shape in shapes]
    for p in params:
        p.grad = Tensor(np.ones(p.shape), dtype="float32", requires_grad=False)
    opt = kind(params, lr=1e-3)
    benchmark(opt.step)
    assert np.isfinite(params[0].numpy()).all()
    arrays = {"SGD": 5, "Adam": 7}[kind.__name__]  # read and written per parameter
    size = sum(p.size for p in params) * 4 * arrays / 1e9
    benchmark.extra_info["GB/s"] = round(size / benchmark.stats.stats.min, 1)
