"""How long operations take, and what a Tensor costs on top of its kernel: `hatch run bench:run`.

The large cases are those of `needle.testing`; each result must be finite (values are the tests'
business).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import Tensor, ops
from needle.testing import CASES, OpCase

THREADS = 2
LARGE = [case for case in CASES if case.large is not None]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = ndl.num_threads()
    ndl.set_num_threads(THREADS)
    yield
    ndl.set_num_threads(before)


def tensors(case: OpCase) -> list[Tensor]:
    return [
        Tensor(array, dtype="float32" if array.dtype.kind == "f" else array.dtype)
        for array in case.arrays(large=True)
    ]


def outputs(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, ndl.TensorTuple) else [result]


def note_speed(benchmark: Any, case: OpCase, passes: int) -> None:
    if not benchmark.enabled:
        return
    arrays = case.arrays(large=True)
    seconds = benchmark.stats.stats.min
    benchmark.extra_info["GFLOP/s"] = round(passes * case.flops(*arrays) / seconds / 1e9, 2)
    benchmark.extra_info["GB/s"] = round(passes * case.bytes(arrays, 4) / seconds / 1e9, 2)
    benchmark.extra_info["threads"] = THREADS
    benchmark.extra_info["isa"] = ndl.backend_ndarray.isa()


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_forward(benchmark: Any, case: OpCase) -> None:
    inputs = tensors(case)
    with ndl.no_grad():
        result = benchmark(case.call, *inputs)
    assert all(np.isfinite(out.numpy()).all() for out in outputs(result))
    note_speed(benchmark, case, 1)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_forward_and_backward(benchmark: Any, case: OpCase) -> None:
    inputs = tensors(case)
    first = outputs(case.call(*inputs))[0]
    seed = Tensor(np.ones(first.shape), dtype="float32", requires_grad=False)
    benchmark(lambda: outputs(case.call(*inputs))[0].backward(seed, retain_graph=False))
    grads = [x.grad for x in inputs if x.requires_grad]
    assert all(np.isfinite(g.numpy()).all() for g in grads if g is not None)
    note_speed(benchmark, case, 3)  # a gradient costs about one forward pass per input


SMALL: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": ops.add,
    "multiply": ops.multiply,
    "mul-scalar": lambda a, b: a * 2.0,
    "relu": lambda a, b: ops.relu(a),
    "matmul": ops.matmul,
    "summation": lambda a, b: ops.summation(a),
    "reshape": lambda a, b: ops.reshape(a, (64,)),
    "transpose": lambda a, b: ops.transpose(a),
    "getitem": lambda a, b: a[3],
}


@pytest.mark.parametrize("name", SMALL)
def test_overhead_of_a_small_operation(benchmark: Any, name: str) -> None:
    """8 x 8: everything but the arithmetic, with a graph."""
    a, b = (Tensor(np.ones((8, 8)), dtype="float32") for _ in range(2))
    assert benchmark(SMALL[name], a, b).requires_grad


@pytest.mark.parametrize("name", SMALL)
def test_overhead_of_a_small_gradient(benchmark: Any, name: str) -> None:
    """8 x 8, forward and the fast path back."""
    a, b = (Tensor(np.ones((8, 8)), dtype="float32") for _ in range(2))
    benchmark(lambda: SMALL[name](a, b).backward(retain_graph=False))
    assert a.grad is not None
