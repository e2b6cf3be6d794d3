"""How long modules and optimizer steps take, forward and backward: `hatch run bench:run`.

Sizes are those of ResNet9 with batch 128 and of the language model with 200 hidden units. Every
result is checked for finite values; their correctness is the tests' business. The saved record has
the rate, the percentage of the peak measured in the same run, the CPU target, threads and commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import Tensor, nn, optim
from needle import backend_ndarray as nd

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


@dataclass(frozen=True)
class Peak:
    """What this machine reaches: the best of some large, simple runs, just before the cases."""

    gflops: float
    gbytes: float


def best(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.fixture(scope="module")
def peak() -> Iterator[Peak]:
    before = ndl.num_threads()
    ndl.set_num_threads(THREADS)
    a, source, target = nd.ones((1536, 1536)), nd.ones((2**25,)), nd.empty((2**25,))
    product, copy = best(lambda: a @ a), best(lambda: nd.copy_into(target, source))
    yield Peak(2e-9 * 1536**3 / product, 2e-9 * 4 * 2**25 / copy)
    ndl.set_num_threads(before)


def first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def record(benchmark: Any, peak: Peak, gflop: float = 0, gbyte: float = 0) -> None:
    """Saves the rate of the fastest round; pytest-benchmark adds the commit."""
    extra = benchmark.extra_info
    extra.update(isa=nd.isa(), threads=THREADS)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.min
    for name, work, limit in (("GFLOP/s", gflop, peak.gflops), ("GB/s", gbyte, peak.gbytes)):
        if work:
            extra[name] = round(work / seconds, 1)
            extra["% of peak"] = round(100 * work / seconds / limit)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_forward(benchmark: Any, peak: Peak, case: Case) -> None:
    _, make, shape, gflop = case
    module, x = make(), Tensor(np.random.randn(*shape), dtype="float32", requires_grad=False)
    with ndl.no_grad():
        y = first(benchmark(module, x))
    assert np.isfinite(y.numpy()).all()
    record(benchmark, peak, gflop)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_forward_and_backward(benchmark: Any, peak: Peak, case: Case) -> None:
    _, make, shape, gflop = case
    module, x = make(), Tensor(np.random.randn(*shape), dtype="float32")
    seed = Tensor(np.ones(first(module(x)).shape), dtype="float32", requires_grad=False)
    benchmark(lambda: first(module(x)).backward(seed, retain_graph=False))
    assert x.grad is not None
    assert np.isfinite(x.grad.numpy()).all()
    record(
        benchmark, peak, 3 * gflop
    )  # the input's and the weight's gradient cost one forward each


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam], ids=lambda kind: kind.__name__)
def test_step(benchmark: Any, peak: Peak, kind: Any) -> None:
    """The language model's 4.6 million parameters in 11 arrays."""
    shapes = [(10_000, 200), (200, 10_000), (1, 10_000)] + [(200, 800), (800,)] * 4
    params = [nn.Parameter(np.ones(shape), dtype="float32") for shape in shapes]
    for p in params:
        p.grad = Tensor(np.ones(p.shape), dtype="float32", requires_grad=False)
    opt = kind(params, lr=1e-3)
    benchmark(opt.step)
    assert np.isfinite(params[0].numpy()).all()
    arrays = {"SGD": 3, "Adam": 7}[kind.__name__]  # read and written per parameter
    record(benchmark, peak, gbyte=sum(p.size for p in params) * 4 * arrays / 1e9)
