"""Times needle beside NumPy and PyTorch: equal results first, then rounds in turn.

The benchmark suites of the packages call `compare_sides`. Each side but needle has a process of its
own (see bench_worker.py). PyTorch's Python is, in this order, $NEEDLE_TORCH_PYTHON, that of the
`parity` environment (`hatch env create parity`), or this one; where none has torch, its column is
absent. NEEDLE_BENCH_THREADS sets the threads (default: all cores).
"""

import atexit
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from bench_worker import Array, as_arrays, estimate, load_cases, seconds_per_call, warm_up

from needle import backend_ndarray as nd

ROOT = Path(__file__).resolve().parents[1]
THREADS = int(os.environ.get("NEEDLE_BENCH_THREADS", "0")) or len(os.sched_getaffinity(0))
SIDES = ("numpy", "torch")

KERNEL_CASES = ROOT / "packages" / "needle-kernels" / "benchmarks" / "kernel_cases.py"
PRODUCTS = ((512, 512, 512), (1024, 1024, 1024), (128, 1152, 128))
"""M, K, N of the products that are fastest everywhere."""

ROUNDS = 5
ROUND_SECONDS = 0.02
SLOW = 0.3  # seconds a call: then two rounds do
PAUSE = 0.03  # seconds, until the last side's idle threads have gone to sleep


class Worker:
    """A process that runs one side's cases."""

    def __init__(self, python: str, cases: Path, side: str, threads: int) -> None:
        """Starts it; NumPy's threads can only be set before it begins."""
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        sleeps_soon = {"OPENBLAS_THREAD_TIMEOUT": "20"}  # idle threads: 2^20 cycles, not 2^28
        self._process = subprocess.Popen(
            [python, str(ROOT / "tools" / "bench_worker.py"), str(cases), side],
            env={**os.environ, **dict.fromkeys(names, str(threads)), **sleeps_soon},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._side, self._threads = side, threads
        atexit.register(self.close)

    def prepare(self, name: str) -> tuple[str | None, list[Array], float]:
        """The library's version (None: it has no such case), results, seconds per call."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "results.npz"
            answer = self._ask(name=name, threads=self._threads, save=str(path))
            if answer["version"] is None:
                return None, [], 0.0
            with np.load(path) as saved:
                return answer["version"], [saved[key] for key in saved.files], answer["seconds"]

    def time(self, calls: int) -> float:
        """Seconds per call, over one round."""
        return float(self._ask(calls=calls)["seconds"])

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.communicate(timeout=10)

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"bench: the {self._side} side ended: got request {request}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"bench: {self._side} failed: got {request}: {answer['error']}")
        return answer


@cache
def torch_python() -> str | None:
    """A Python that has torch, or None.

    Raises:
        RuntimeError: the one that NEEDLE_TORCH_PYTHON names has not.
    """
    named = os.environ.get("NEEDLE_TORCH_PYTHON")
    places = [named] if named else [str(ROOT / ".hatch/parity/bin/python"), sys.executable]
    find = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
    for python in places:
        with suppress(OSError):  # there is none, or it does not run
            if subprocess.run([python, "-c", find]).returncode == 0:
                return python
    if named:
        raise RuntimeError(f"bench: NEEDLE_TORCH_PYTHON: got {named}: need a Python with torch")
    return None


@cache
def worker(cases: Path, side: str, threads: int) -> Worker | None:
    """The process for one side, started when it is first needed."""
    python = torch_python() if side == "torch" else sys.executable
    return (python and Worker(python, cases, side, threads)) or None


_measured = 0.0  # when the peak was measured last


def ceiling() -> nd.Peak:
    """The machine's peak, measured again every half minute: other work may have hidden it."""
    global _measured
    again = time.monotonic() > _measured + 30
    _measured = time.monotonic() if again else _measured
    return nd.peak(remeasure=again)


def product_gflops() -> float:
    """The best rate of a matrix product now, in GFLOP/s: PyTorch's, or without it needle's."""
    side = worker(KERNEL_CASES, "torch", THREADS)
    best = 0.0
    for size in PRODUCTS:
        name = "matmul-" + "x".join(map(str, size))
        if side is not None:
            _, _, seconds = side.prepare(name)
            rounds = [side.time(max(1, int(ROUND_SECONDS / seconds))) for _ in range(ROUNDS)]
        else:
            run = load_cases(KERNEL_CASES).make("needle", name).run
            warm_up(run)
            calls = max(1, int(ROUND_SECONDS / estimate(run)))
            rounds = [seconds_per_call(run, calls) for _ in range(ROUNDS)]
        best = max(best, 2e-9 * math.prod(size) / float(np.median(rounds)))
    return best


class Threads:
    """Context with so many threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __enter__(self) -> None:
        self._before = nd.num_threads()
        nd.set_num_threads(self._threads)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        nd.set_num_threads(self._before)


def assert_equal(want: list[Array], got: list[Array], side: str, tolerance: float) -> None:
    """Equal shapes, and values within `tolerance` of the largest."""
    assert [a.shape for a in got] == [a.shape for a in want], f"{side}: shapes differ"
    for mine, theirs in zip(want, got, strict=True):
        assert np.isfinite(mine).all(), "needle: a result is not finite"
        if mine.size:
            error = np.abs(mine.astype(np.float64) - theirs).max()
            assert error <= tolerance * max(1, np.abs(mine).max()), f"{side}: differs by {error}"


def compare_sides(
    benchmark: Any,
    cases: Path,
    name: str,
    *,
    threads: int = THREADS,
    tolerance: float = 1e-4,
    sides: tuple[str, ...] = SIDES,
    rounds: int = ROUNDS,
    **extra: Any,
) -> None:
    """Times one case on every side and saves seconds, flops, bytes and the machine's peak.

    Args:
        benchmark: pytest-benchmark's fixture; it times needle.
        cases: the file with the cases.
        name: of the case.
        threads: of every side.
        tolerance: how far results may differ, relative to the largest.
        sides: which others to time.
        rounds: how often each side has its turn.
        extra: saved with the case.
    """
    with Threads(threads):
        work = load_cases(cases).make("needle", name)
        want = as_arrays(work.run())  # a training step's first call is several steps
        recorder = nd.Recorder()
        recorder.start()
        try:
            work.run()
        finally:
            recorder.stop()
        flops, nbytes = (sum(x) for x in zip(*map(nd.cost_of, recorder.take()), strict=True))
        others = _prepare(cases, name, threads, want, tolerance, sides)
        best = ceiling()
        times = _time(benchmark, work.run, others, rounds)
    benchmark.extra_info.update(
        case=name,
        threads=threads,
        isa=nd.isa(),
        flops=flops,
        bytes=nbytes,
        peak_gflops=best.gflops32,
        peak_gbytes=best.gbytes,
        seconds=times,
        versions={side: version for side, (_, version, _) in others.items()},
        **extra,
    )


def _prepare(
    cases: Path,
    name: str,
    threads: int,
    want: list[Array],
    tolerance: float,
    sides: tuple[str, ...],
) -> dict[str, tuple[Worker, str, float]]:
    """The sides that have the case, with version and seconds per call; results are compared."""
    others = {}
    for side in sides:
        process = worker(cases, side, threads)
        if process is None:
            continue
        version, got, seconds = process.prepare(name)
        if version is not None:
            assert_equal(want, got, side, tolerance)
            others[side] = process, version, seconds
    return others


def _time(
    benchmark: Any, run: Any, others: dict[str, tuple[Worker, str, float]], rounds: int
) -> dict[str, float]:
    """The median seconds per call of each side; a round of each in turn."""
    seconds = estimate(run)
    calls = max(1, int(ROUND_SECONDS / seconds))
    rounds = rounds if seconds < SLOW else 2
    found: dict[str, list[float]] = {side: [] for side in others}

    def round_of_the_others() -> None:
        for side, (process, _, each) in others.items():
            if each < SLOW or len(found[side]) < 2:
                found[side].append(process.time(max(1, int(ROUND_SECONDS / each))))
                time.sleep(PAUSE)
        warm_up(run)
        nd.synchronize()

    def one_round() -> None:
        for _ in range(calls):
            run()
        nd.synchronize()  # short calls may still wait in the queue

    benchmark.pedantic(one_round, setup=round_of_the_others, rounds=rounds)
    if benchmark.stats is None:  # --benchmark-disable
        return {}
    # A round is many calls, and pytest-benchmark allows that together with a setup only unseen.
    data = benchmark.stats.stats.data
    data[:] = [total / calls for total in data]
    found["needle"] = list(data)
    return {side: float(np.median(times)) for side, times in found.items()}
