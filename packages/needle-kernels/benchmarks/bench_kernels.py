"""How fast kernels are beside NumPy and PyTorch: `hatch run bench:kernels`.

Every kernel of the table, from 8 x 8, where the cost of a call is all there is, to 64 MB an array.
Each case first asserts that all sides agree, then they take turns (see tools/bench_sides.py). Saved
with each: every side's median seconds, flops and bytes by definition, the machine's peak, CPU
target, threads. `-m quick` runs the small sizes only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kernel_cases
import pytest
from bench_sides import THREADS, compare_sides

HERE = Path(__file__).parent
QUICK = ("tiny", "small", "8x8x8", "512", "3x3-on-4x4")
SCALING = ("matmul-1024x1024x1024", "conv-3x3-large", "exp-large", "add-large", "sum-large")


def parameters(names: Any) -> list[Any]:
    quick = pytest.mark.quick
    return [pytest.param(n, marks=quick if n.endswith(QUICK) else ()) for n in names]


@pytest.mark.parametrize("name", parameters(kernel_cases.CASES))
def test_kernel(benchmark: Any, name: str) -> None:
    tolerance = kernel_cases.CASES[name].tolerance
    compare_sides(benchmark, HERE / "kernel_cases.py", name, tolerance=tolerance, group="kernels")


@pytest.mark.parametrize("threads", range(1, THREADS + 1))
@pytest.mark.parametrize("name", SCALING)
def test_thread_scaling(benchmark: Any, name: str, threads: int) -> None:
    compare_sides(
        benchmark, HERE / "kernel_cases.py", name, threads=threads, group="kernel-threads"
    )
