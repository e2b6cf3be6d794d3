"""How long modules take beside NumPy and PyTorch: `hatch run bench:modules`.

Results are compared first, of `forward` the output and of `both` the input's gradient; then the
sides take turns (see tools/bench_sides.py). `-m quick` leaves out the batch scaling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import module_cases
import pytest
from bench_sides import THREADS, compare_sides

CASES = Path(__file__).parent / "module_cases.py"


@pytest.mark.quick
@pytest.mark.parametrize("way", ["forward", "both"])
@pytest.mark.parametrize("name", module_cases.MODULES)
def test_module(benchmark: Any, name: str, way: str) -> None:
    compare_sides(benchmark, CASES, f"{name}-{way}", tolerance=1e-3, group="modules")


@pytest.mark.parametrize("batch", module_cases.BATCHES)
def test_batch_scaling(benchmark: Any, batch: int) -> None:
    compare_sides(
        benchmark,
        CASES,
        f"LSTM-batch-{batch}-both",
        tolerance=1e-3,
        sides=("torch",),
        group="batches",
        samples=batch,
    )


@pytest.mark.parametrize("threads", range(1, THREADS + 1))
def test_thread_scaling(benchmark: Any, threads: int) -> None:
    compare_sides(
        benchmark, CASES, "LSTM-both", threads=threads, tolerance=1e-3, group="module-threads"
    )
