"""Helpers for tests of arrays: an oracle comparison, the devices to test, awkward views.

@pytest.mark.parametrize("target", array_devices())
def test_exp(target):
    with target.active() as device:
        x = make_view("permuted", np.random.randn(3, 5), device, "float32")
        want = np.exp(x.numpy().astype("float64"))
        compare(nd.exp(x), want, dtype="float32", rtol=rounding("float32", 4))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from needle.backend_ndarray.config import available_isas, isa, set_isa
from needle.backend_ndarray.devices import (
    REFERENCE_MODE,
    Device,
    cpu,
    cpu_numpy,
    cuda,
    missing_for_cuda,
)
from needle.backend_ndarray.ndarray import NDArray

__all__ = ["VIEWS", "Target", "array_devices", "compare", "make_view", "rounding", "targets"]


@dataclass(frozen=True)
class Target:
    """A device and, where it has several, one instruction set."""

    device: Device
    isa: str | None = None

    def __str__(self) -> str:
        return self.device.name + (f"-{self.isa}" if self.isa else "")

    @contextmanager
    def active(self) -> Iterator[Device]:
        """The device, with the instruction set in use until the block ends."""
        before = isa()
        if self.isa is not None:
            set_isa(self.isa)
        try:
            yield self.device
        finally:
            set_isa(before)


def targets() -> list[Target]:
    """Every device and instruction set of this machine, cuda() always among them.

    With NEEDLE_BACKEND=np there is no C++ device.
    """
    compiled = [] if REFERENCE_MODE else [Target(cpu(), name) for name in available_isas()]
    return [*compiled, Target(cpu_numpy()), Target(cuda())]


def array_devices() -> list[Any]:
    """`targets()` as pytest parameters, each with its name as id.

    A device that this machine lacks is a visible skip that gives the reason; where
    NEEDLE_REQUIRE names it (`NEEDLE_REQUIRE=cuda`) it runs, and fails.
    """
    pytest: Any = import_module("pytest")  # the library itself does without it
    required = os.environ.get("NEEDLE_REQUIRE", "").split(",")
    parameters = []
    for target in targets():
        marks = []
        if not target.device.enabled() and target.device.name not in required:
            marks.append(
                pytest.mark.skip(reason=f"no CUDA: missing {', '.join(missing_for_cuda())}")
            )
        parameters.append(pytest.param(target, id=str(target), marks=marks))
    return parameters


def rounding(dtype: DTypeLike, roundings: float = 1.0) -> float:
    """The relative error of so many roundings in a row: each is half a unit in the last place."""
    return roundings * float(np.finfo(np.dtype(dtype)).eps) / 2


def compare(
    got: Any,
    want: ArrayLike,
    *,
    dtype: DTypeLike | None = None,
    rtol: float = 0.0,
    atol: float | np.ndarray[Any, Any] = 0.0,
    finite: bool = True,
) -> None:
    """Asserts that an NDArray equals an oracle: shape, dtype, finite values, then the bound.

    The bound is |got - want| <= atol + rtol * |want|. Integers and bools must be equal.

    Args:
        got: the NDArray (or anything with numpy()).
        want: the oracle, best in float64.
        dtype: what got's dtype must be; want's own if None.
        rtol: relative bound.
        atol: absolute bound, a number or one per element.
        finite: demand finite values; if False, NaN and infinities must be the oracle's.

    Raises:
        AssertionError: with the first difference in words.
    """
    values, oracle = np.asarray(got.numpy()), np.asarray(want)
    kind = np.dtype(oracle.dtype if dtype is None else dtype)
    if values.shape != oracle.shape:
        raise AssertionError(f"shape: got {values.shape}: want {oracle.shape}")
    if values.dtype != kind or got.dtype != kind:
        raise AssertionError(f"dtype: got {got.dtype}: want {kind}")
    if finite and not np.all(np.isfinite(values)):
        _fail("not finite", ~np.isfinite(values), values, oracle)
    if kind.kind != "f":
        if not np.array_equal(values, oracle):
            _fail("differs", values != oracle, values, oracle)
        return
    values, oracle = values.astype(np.float64), oracle.astype(np.float64)
    with np.errstate(all="ignore"):
        near = np.abs(values - oracle) <= atol + rtol * np.abs(oracle)
    same = (values == oracle) | (np.isnan(values) & np.isnan(oracle))
    if not np.all(near & np.isfinite(oracle) | same):
        _fail(f"beyond rtol {rtol}", ~(near | same), values, oracle)


def _fail(
    what: str, wrong: np.ndarray[Any, Any], values: np.ndarray[Any, Any], oracle: Any
) -> None:
    places = np.argwhere(wrong)
    if not len(places):  # an infinity where the oracle is infinite but of the other sign
        places = np.argwhere(values != oracle)
    place = tuple(int(i) for i in places[0])
    with np.errstate(all="ignore"):
        error = np.max(np.abs(values.astype(np.float64) - np.asarray(oracle, np.float64)))
    raise AssertionError(
        f"{what}: got {values[place]}: want {oracle[place]} at {place}; "
        f"{len(places)} of {values.size} elements, largest error {error}"
    )


def _compact(values: np.ndarray[Any, Any], device: Device, dtype: DTypeLike) -> NDArray:
    return NDArray(np.array(values, order="C"), device=device, dtype=dtype)


def _permuted(values: np.ndarray[Any, Any], device: Device, dtype: DTypeLike) -> NDArray:
    return _compact(values.T, device, dtype).permute(tuple(reversed(range(values.ndim))))


def _stepped(values: np.ndarray[Any, Any], device: Device, dtype: DTypeLike) -> NDArray:
    """Every second element of an array whose other elements are a poison that must not leak."""
    spread = np.full([2 * size + 1 for size in values.shape], 77, values.dtype)
    index = (slice(1, None, 2),) * values.ndim
    spread[index] = values
    return _compact(spread, device, dtype)[index]


def _reversed(values: np.ndarray[Any, Any], device: Device, dtype: DTypeLike) -> NDArray:
    return _compact(np.flip(values), device, dtype)[(slice(None, None, -1),) * values.ndim]


def _offset(values: np.ndarray[Any, Any], device: Device, dtype: DTypeLike) -> NDArray:
    """A view that starts one element into its memory, and is therefore not aligned."""
    padded = np.concatenate([np.full(1, 77, values.dtype), values.ravel()])
    return _compact(padded, device, dtype)[1:].reshape(values.shape)


def _broadcast(values: np.ndarray[Any, Any], device: Device, dtype: DTypeLike) -> NDArray:
    """The first slice of the first axis repeated: the only view whose values are not `values`."""
    return _compact(values[:1], device, dtype).broadcast_to(values.shape)


VIEWS: Final[dict[str, Callable[[np.ndarray[Any, Any], Device, DTypeLike], NDArray]]] = {
    "compact": _compact,
    "permuted": _permuted,
    "stepped": _stepped,
    "reversed": _reversed,
    "offset": _offset,
    "broadcast": _broadcast,
}


def make_view(
    kind: str, values: np.ndarray[Any, Any], device: Device, dtype: DTypeLike = "float32"
) -> NDArray:
    """An array that holds `values` in a layout named in VIEWS.

    Only "broadcast" holds other values: the first slice of the first axis, repeated. It needs an
    axis, and at least one element along it (else the layout is compact).
    """
    if kind == "broadcast" and (not values.ndim or not values.shape[0]):
        kind = "compact"
    return VIEWS[kind](values, device, dtype)
