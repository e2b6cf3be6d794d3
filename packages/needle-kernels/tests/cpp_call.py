"""Calls the C++ kernels straight on NumPy arrays of any layout, under the front end's checks."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from needle._kernels import cpu as cpu

LAYOUTS = ("compact", "permuted", "sliced", "reversed")
FLOATS = ("float32", "float64")
SENTINEL = 77.0


class Operand:
    """The four slots that `launch` reads of an NDArray, over the memory of a NumPy view."""

    def __init__(self, view: npt.NDArray[Any]) -> None:
        owner = view if view.base is None else view.base
        start, item = owner.ctypes.data, view.itemsize
        self._handle = cpu.Storage.borrow(start, owner.size, view.dtype.name, owner)
        self._shape = view.shape
        self._strides = tuple(stride // item for stride in view.strides)
        self._offset = (view.ctypes.data - start) // item if view.size else 0


def launch(
    kernel: str, *operands: npt.NDArray[Any] | float | None, scalars: tuple[float, ...] = ()
) -> None:
    """Runs a kernel of the chosen instruction set; outputs come first, numbers are immediates."""
    records = tuple(Operand(o) if isinstance(o, np.ndarray) else o for o in operands)
    cpu.launch(0, cpu.KERNELS.index(kernel), records, scalars)


def lay(values: npt.ArrayLike, layout: str, dtype: str | None = None) -> npt.NDArray[Any]:
    """A view that holds `values`; where it leaves gaps, its memory holds the sentinel."""
    values = np.asarray(values, dtype)
    if layout == "compact":
        return values.copy()
    if layout == "permuted":
        return values.T.copy().T
    if layout == "reversed":
        everything: Any = (*[slice(None, None, -1)] * values.ndim, ...)
        view: npt.NDArray[Any] = np.empty_like(values, order="C")[everything]
    elif layout == "sliced":
        view = np.full([2 * n + 1 for n in values.shape], SENTINEL, values.dtype)
        odd: Any = (*[slice(1, None, 2)] * values.ndim, ...)
        view = view[odd]
    else:
        raise ValueError(layout)
    view[...] = values
    return view


def lay_at_random(rng: np.random.Generator, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A view that holds `values`, its axes permuted, stepped over, reversed and cut at random."""
    order = rng.permutation(values.ndim)
    steps = rng.choice([1, 1, 1, 2, 3], values.ndim)
    gaps = rng.choice([0, 0, 1, 5], values.ndim)
    owner = np.empty([values.shape[i] * steps[i] + gaps[i] for i in order], values.dtype)
    owner.reshape(-1).view(np.uint8)[...] = 1
    view: npt.NDArray[Any] = owner.transpose(np.argsort(order))
    cut: Any = (*(slice(0, n * s, s) for n, s in zip(values.shape, steps, strict=True)), ...)
    turn: Any = (*(slice(None, None, d) for d in rng.choice([1, 1, -1], values.ndim)), ...)
    view = view[cut][turn]
    view[...] = values
    return view


def blank(shape: tuple[int, ...], layout: str, dtype: str) -> npt.NDArray[Any]:
    """An output whose every element must be written."""
    return lay(np.full(shape, SENTINEL, dtype), layout)


def beside_cache_line(shape: tuple[int, ...], dtype: str, items: int) -> npt.NDArray[Any]:
    """An output of NaN, or of ones, that begins so many items behind the start of a cache line."""
    kind, size = np.dtype(dtype), math.prod(shape)
    memory = np.full(size + 128, np.nan if kind.kind == "f" else 1, kind)
    first = -memory.ctypes.data % 64 // kind.itemsize + items
    return memory[first : first + size].reshape(shape)


def written(view: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The values of an output, after a check that nothing beside it was written. Call it once."""
    values = view.copy()
    view[...] = SENTINEL
    owner = view if view.base is None else view.base
    assert (owner == owner.dtype.type(SENTINEL)).all(), "memory outside the view was written"
    return values


def check(got: npt.NDArray[Any], want: Any, rtol: float = 0.0, atol: float = 0.0) -> None:
    """`want` may hold infinities and NaN; they must stand at the same places in `got`."""
    np.testing.assert_allclose(got.astype("float64"), want, rtol=rtol, atol=atol)


def eps(dtype: str) -> float:
    """The distance from 1 to the next number."""
    return float(np.finfo(dtype).eps)


@pytest.fixture(params=cpu.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every instruction set of the machine."""
    before = cpu.isa()
    cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa(before)


@pytest.fixture(params=(1, 2, 3))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs the test with several numbers of threads."""
    before = cpu.num_threads()
    cpu.set_num_threads(request.param)
    yield request.param
    cpu.set_num_threads(before)
