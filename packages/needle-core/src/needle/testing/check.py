"""Values against oracles, gradients against differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..autograd import Tensor, TensorTuple
from ..backend_ndarray import Device
from ..backend_ndarray.testing import compare, rounding
from .case import OpCase

EPS = 1e-6
RTOL = 1e-5


def _list(outputs: Any) -> list[Any]:
    if isinstance(outputs, (tuple, list, TensorTuple)):
        return list(outputs)
    return [outputs]


def _tensors(
    arrays: Sequence[np.ndarray[Any, Any]], device: Device, dtype: DTypeLike
) -> list[Tensor]:
    """Floats as leaves of `dtype` that require gradients, integers as they are."""
    return [
        Tensor(array, device=device, dtype=dtype if array.dtype.kind == "f" else array.dtype)
        for array in arrays
    ]


def check_value(case: OpCase, device: Device, dtype: DTypeLike) -> None:
    """Asserts that the operation's outputs equal the oracle's: shape, dtype and values."""
    tensors = _tensors(case.arrays(), device, dtype)
    got = _list(case.call(*tensors))
    # The oracle sees what the operation sees: inputs rounded to dtype.
    want = _list(
        case.oracle(
            *[t.numpy().astype("f8") if t.dtype.kind == "f" else t.numpy() for t in tensors]
        )
    )
    assert len(got) == len(want), f"outputs: got {len(got)}: want {len(want)}"
    bound = rounding(dtype, case.roundings)
    for output, oracle in zip(got, want, strict=True):
        expected = output.dtype if np.asarray(oracle).dtype.kind != "f" else dtype
        compare(output, oracle, dtype=expected, rtol=bound, atol=bound * case.scale)


def gradient_check(
    function: Callable[..., Any],
    *arrays: np.ndarray[Any, Any],
    device: Device | None = None,
    eps: float = EPS,
    rtol: float = RTOL,
) -> None:
    """Asserts that gradients equal central differences, in float64, for every entry of every input.

    The scalar that is differentiated is the sum of all outputs, weighted by fixed random numbers.
    The difference of two values near v is off by v * 1e-16 / eps and by eps**2 times the third
    derivative: with values near 1 the bound, rtol * max(1, |difference|), leaves room for both.

    Args:
        function: Tensors in, a Tensor, a TensorTuple or several Tensors out.
        arrays: the inputs; integer ones are passed on and not differentiated.
        device: where to compute; None for the default.
        eps: the step of the differences.
        rtol: the bound.

    Raises:
        AssertionError: with the first entry that differs.
    """
    where = device if device is not None else Tensor(0.0).device
    tensors = _tensors(arrays, where, "float64")
    outputs = _list(function(*tensors))
    rng = np.random.default_rng(0)
    weights = [rng.uniform(0.5, 1.5, out.shape) * rng.choice([-1, 1], out.shape) for out in outputs]
    for tensor in tensors:
        tensor.grad = None  # the function may have run a backward pass of its own
    _weighted(outputs, weights).backward()
    for i, array in enumerate(arrays):
        if array.dtype.kind != "f":
            continue
        grad = tensors[i].grad
        got = np.zeros(array.shape) if grad is None else grad.numpy()
        if grad is not None:
            assert grad.dtype == np.float64, f"input {i}: gradient is {grad.dtype}"
        want = _differences(function, arrays, i, weights, where, eps)
        assert got.shape == array.shape, f"input {i}: gradient {got.shape}: want {array.shape}"
        wrong = ~(np.abs(got - want) <= rtol * np.maximum(1.0, np.abs(want)))
        if wrong.any():
            place = tuple(int(k) for k in np.argwhere(wrong)[0])
            raise AssertionError(
                f"gradient of input {i} at {place}: got {got[place]}: want {want[place]}; "
                f"{wrong.sum()} of {wrong.size} entries beyond {rtol}"
            )


def _weighted(outputs: Sequence[Tensor], weights: Sequence[np.ndarray[Any, Any]]) -> Tensor:
    total = None
    for output, weight in zip(outputs, weights, strict=True):
        constant = Tensor(weight, device=output.device, dtype="float64", requires_grad=False)
        part = (output * constant).sum()
        total = part if total is None else total + part
    if total is None:
        raise ValueError("gradient_check: the function returned nothing: need at least one output")
    return total


def _differences(
    function: Callable[..., Any],
    arrays: Sequence[np.ndarray[Any, Any]],
    i: int,
    weights: Sequence[np.ndarray[Any, Any]],
    device: Device,
    eps: float,
) -> np.ndarray[Any, Any]:
    """Central differences of the weighted sum for each entry of input i."""
    result = np.zeros(arrays[i].shape)
    for place in np.ndindex(*arrays[i].shape):
        values = []
        for step in (eps, -eps):
            moved = list(arrays)
            moved[i] = arrays[i].copy()
            moved[i][place] += step
            outputs = _list(function(*_tensors(moved, device, "float64")))
            sums = [np.sum(o.numpy() * w) for o, w in zip(outputs, weights, strict=True)]
            values.append(np.sum(sums))
        result[place] = (values[0] - values[1]) / (2 * eps)
    return result


def second_gradient_check(
    function: Callable[..., Any],
    *arrays: np.ndarray[Any, Any],
    device: Device | None = None,
    eps: float = EPS,
    rtol: float = RTOL,
) -> None:
    """gradient_check of the gradient: as a function of the inputs and of the output gradients.

    Raises:
        AssertionError: with the first entry that differs.
    """
    where = device if device is not None else Tensor(0.0).device
    probe = _list(function(*_tensors(arrays, where, "float64")))
    rng = np.random.default_rng(1)
    out_grads = [rng.uniform(0.5, 1.5, out.shape) for out in probe]

    def gradients(*values: Tensor) -> list[Tensor]:
        inputs, grads = values[: len(arrays)], values[len(arrays) :]
        outputs = _list(function(*inputs))
        total = None
        for output, grad in zip(outputs, grads, strict=True):
            part = (output * grad).sum()
            total = part if total is None else total + part
        assert total is not None
        total.backward()
        return [x.grad for x in inputs if x.grad is not None]

    gradient_check(gradients, *arrays, *out_grads, device=where, eps=eps, rtol=rtol)


def check_gradients(case: OpCase, device: Device) -> None:
    """gradient_check of a case."""
    gradient_check(case.call, *case.arrays(), device=device)


def check_second_gradients(case: OpCase, device: Device) -> None:
    """second_gradient_check of a case."""
    second_gradient_check(case.call, *case.arrays(), device=device)
