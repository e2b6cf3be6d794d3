"""How long a training step takes beside PyTorch: `hatch run bench:steps`.

ResNet9 with Adam; language models of two layers, 35 steps of 20 texts, vocabulary 10,000, with SGD.
The losses of the first steps must agree; then the sides take turns (see tools/bench_sides.py).
`-m quick` leaves out the scaling over threads and batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import step_cases
from bench_sides import THREADS, compare_sides, product_gflops

CASES = Path(__file__).parent / "step_cases.py"


def compare(benchmark: Any, name: str, **settings: Any) -> None:
    compare_sides(benchmark, CASES, name, tolerance=2e-3, rounds=15, **settings)


@pytest.mark.quick
@pytest.mark.parametrize("name", step_cases.MAIN)
def test_step(benchmark: Any, name: str) -> None:
    """Beside the floor: the step's FLOPs at the best rate of a product, measured around it."""
    before = product_gflops()
    compare(benchmark, name, group="steps")
    benchmark.extra_info["product_gflops"] = max(before, product_gflops())


@pytest.mark.parametrize("batch", step_cases.BATCHES)
def test_batch_scaling(benchmark: Any, batch: int) -> None:
    compare(benchmark, f"resnet9-batch-{batch}", group="batches", samples=batch)


@pytest.mark.parametrize("threads", range(1, THREADS + 1))
@pytest.mark.parametrize("name", ["resnet9-batch-128", "lstm-200"])
def test_thread_scaling(benchmark: Any, name: str, threads: int) -> None:
    compare(benchmark, name, threads=threads, group="step-threads")
