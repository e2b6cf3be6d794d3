"""How fast kernels are beside NumPy: `hatch run bench:run packages/needle-kernels`.

Each case first asserts that needle and NumPy agree, then times one of them (`needle` or `numpy` in
the name). The cases called `call-...` have next to no work: they measure the cost of a call. Saved
with each: GFLOP/s or GB/s, the percentage of the machine's peak measured in the same run, CPU
target, threads and commit. NEEDLE_BENCH_THREADS pins the threads (default 2).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import compare

THREADS = int(os.environ.get("NEEDLE_BENCH_THREADS", "2"))


@dataclass(frozen=True)
class Case:
    """One computation, in needle and in NumPy, on the same float32 inputs."""

    inputs: list[tuple[int, ...]]
    needle: Callable[..., nd.NDArray]
    numpy: Callable[..., Any]
    flops: float = 0.0
    bytes: float = 0.0
    rtol: float = 1e-5
    atol: float = 1e-5

    def values(self) -> list[np.ndarray[Any, Any]]:
        rng = np.random.default_rng(0)
        return [rng.uniform(0.1, 1, shape).astype(np.float32) for shape in self.inputs]


def elements(count: int, arrays: int) -> float:
    """Bytes moved when `arrays` float32 arrays of `count` elements are read or written once."""
    return 4.0 * count * arrays


def conv_numpy(x: Any, w: Any) -> Any:
    """3 x 3 taps, padding 1, stride 1, as one matrix product per tap."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    taps = np.ndindex(3, 3)
    return sum(padded[:, i : i + height, j : j + width] @ w[i, j] for i, j in taps)


def batch_norm_numpy(x: Any, w: Any, b: Any) -> Any:
    mean = x.mean((0, 2, 3), keepdims=True)
    var = x.var((0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * w[:, None, None] + b[:, None, None]


def softmax_numpy(a: Any) -> Any:
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def grid(n: int) -> list[tuple[int, ...]]:
    return [(n, n), (n, n)]


N = 2048
CASES: dict[str, Case] = {
    # the cost of a call
    "call-add": Case(grid(8), lambda a, b: a + b, lambda a, b: a + b),
    "call-add-scalar": Case([(8, 8)], lambda a: a + 1.5, lambda a: a + np.float32(1.5)),
    "call-sum": Case([(8, 8)], lambda a: a.sum(0), lambda a: a.sum(0)),
    "call-matmul": Case(grid(8), lambda a, b: a @ b, lambda a, b: a @ b),
    "call-slice": Case([(8, 8)], lambda a: a[1:, ::2], lambda a: a[1:, ::2]),
    # memory
    "add": Case(grid(N), lambda a, b: a + b, lambda a, b: a + b, bytes=elements(N * N, 3)),
    "multiply-row": Case(
        [(N, N), (N,)], lambda a, b: a * b, lambda a, b: a * b, bytes=elements(N * N, 2)
    ),
    "exp": Case([(N, N)], nd.exp, np.exp, bytes=elements(N * N, 2)),
    "tanh": Case([(N, N)], nd.tanh, np.tanh, bytes=elements(N * N, 2)),
    "transpose-copy": Case(
        [(N, N)], lambda a: a.T.compact(), lambda a: a.T.copy(), bytes=elements(N * N, 2)
    ),
    "sum-rows": Case(
        [(N, N)], lambda a: a.sum(1), lambda a: a.sum(1), bytes=elements(N * N, 1), rtol=1e-4
    ),
    "sum-columns": Case(
        [(N, N)], lambda a: a.sum(0), lambda a: a.sum(0), bytes=elements(N * N, 1), rtol=1e-4
    ),
    "softmax": Case([(700, 10_000)], nd.softmax, softmax_numpy, bytes=elements(7_000_000, 2)),
    "batch-norm": Case(
        [(128, 16, 32, 32), (16,), (16,)],
        lambda x, w, b: nd.batch_norm(x, w, b, 1e-5)[0],
        batch_norm_numpy,
        bytes=elements(128 * 16 * 1024, 3),
        atol=1e-4,
    ),
    # arithmetic
    "matmul": Case(
        grid(1024), lambda a, b: a @ b, lambda a, b: a @ b, flops=2.0 * 1024**3, rtol=1e-4
    ),
    "matmul-skinny": Case(
        [(700, 200), (200, 10_000)],
        lambda a, b: a @ b,
        lambda a, b: a @ b,
        flops=2.0 * 700 * 200 * 10_000,
        rtol=1e-4,
    ),
    "matmul-batched": Case(
        [(64, 128, 128), (64, 128, 128)],
        lambda a, b: a @ b,
        lambda a, b: a @ b,
        flops=2.0 * 64 * 128**3,
        rtol=1e-4,
    ),
    "conv-3x3": Case(
        [(128, 16, 16, 32), (3, 3, 32, 32)],
        lambda x, w: nd.conv(x, w, padding=1),
        conv_numpy,
        flops=2.0 * 128 * 16 * 16 * 9 * 32 * 32,
        rtol=1e-4,
    ),
}


@dataclass(frozen=True)
class Peak:
    """What this machine reaches: the best of some large, simple runs, just before the cases."""

    gflops: float
    gbytes: float


def best(work: Callable[[], Any], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.fixture(scope="module")
def peak() -> Iterator[Peak]:
    before = nd.num_threads()
    nd.set_num_threads(THREADS)
    a = np.ones((1536, 1536), np.float32)
    b = nd.array(a)
    product = min(best(lambda: a @ a), best(lambda: b @ b))
    source, target = nd.ones((2**26,)), nd.empty((2**26,))
    copy = best(lambda: nd.copy_into(target, source))
    yield Peak(2e-9 * 1536**3 / product, 2e-9 * 4 * 2**26 / copy)
    nd.set_num_threads(before)


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


@pytest.mark.parametrize("side", ["needle", "numpy"])
@pytest.mark.parametrize("name", CASES)
def test_kernel(benchmark: Any, peak: Peak, name: str, side: str) -> None:
    case = CASES[name]
    values = case.values()
    arrays = [nd.array(value, dtype="float32") for value in values]
    want = case.numpy(*(value.astype(np.float64) for value in values))
    compare(case.needle(*arrays), want, dtype="float32", rtol=case.rtol, atol=case.atol)

    if side == "needle":
        benchmark(case.needle, *arrays)
    else:
        benchmark(case.numpy, *values)
    record(benchmark, case, peak)


def record(benchmark: Any, case: Case, peak: Peak) -> None:
    """Saves rates of the fastest round with the circumstances they were measured in."""
    extra = benchmark.extra_info
    extra.update(commit=commit(), isa=nd.isa(), threads=THREADS)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.min
    if case.flops:
        extra["GFLOP/s"] = round(case.flops / seconds * 1e-9, 1)
        extra["% of peak"] = round(extra["GFLOP/s"] / peak.gflops * 100)
    if case.bytes:
        extra["GB/s"] = round(case.bytes / seconds * 1e-9, 1)
        extra["% of peak"] = round(extra["GB/s"] / peak.gbytes * 100)
