"""The way the course tests operations: through flat indices and gradient_as_tuple."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.backend_ndarray.devices import REFERENCE_MODE

DEVICES = list(dict.fromkeys([ndl.cpu(), ndl.cpu_numpy()]))


def randn(*shape: int) -> ndl.Tensor:
    return ndl.Tensor(np.random.randn(*shape))


def differences(f: Callable[..., Any], args: Any, eps: float, weight: Any) -> list[np.ndarray]:
    """Central differences, by writing to the arguments' own arrays."""
    grads = [np.zeros(a.shape) for a in args]
    for i, arg in enumerate(args):
        for j in range(arg.realize_cached_data().size):
            values = []
            arg.realize_cached_data().flat[j] += eps
            values.append(float((f(*args).numpy() * weight).sum()))
            arg.realize_cached_data().flat[j] -= 2 * eps
            values.append(float((f(*args).numpy() * weight).sum()))
            arg.realize_cached_data().flat[j] += eps
            grads[i].flat[j] = (values[0] - values[1]) / (2 * eps)
    return grads


HOMEWORK_1 = {
    "power_scalar": (lambda a: ndl.power_scalar(a, scalar=2), [(5, 5)]),
    "divide": (ndl.divide, [(5, 4), (5, 4)]),
    "divide_scalar": (lambda a: ndl.divide_scalar(a, scalar=3.5), [(5, 4)]),
    "matmul": (ndl.matmul, [(5, 4), (4, 5)]),
    "matmul_batched": (ndl.matmul, [(6, 6, 5, 4), (6, 6, 4, 3)]),
    "matmul_broadcast": (ndl.matmul, [(6, 6, 5, 4), (4, 3)]),
    "reshape": (lambda a: ndl.reshape(a, shape=(4, 5)), [(5, 4)]),
    "negate": (ndl.negate, [(5, 4)]),
    "transpose": (lambda a: ndl.transpose(a, axes=(1, 2)), [(3, 5, 4)]),
    "transpose_0": (lambda a: ndl.transpose(a, axes=(0, 1)), [(3, 5, 4)]),
    "broadcast_to": (lambda a: ndl.broadcast_to(a, shape=(3, 3)), [(3, 1)]),
    "broadcast_to_lead": (lambda a: ndl.broadcast_to(a, shape=(5, 4, 1)), [(5, 4, 1)]),
    "summation": (lambda a: ndl.summation(a, axes=(1,)), [(5, 4)]),
    "summation_many": (lambda a: ndl.summation(a, axes=(0, 1)), [(5, 4, 1)]),
    "logsumexp": (lambda a: ndl.ops.logsumexp(a, axes=(0, 2)), [(3, 3, 3)]),
}


@pytest.mark.skipif(not REFERENCE_MODE, reason="float64 data needs NEEDLE_BACKEND=np")
@pytest.mark.parametrize("name", HOMEWORK_1)
def test_homework_1_in_reference_precision(name: str) -> None:
    np.random.seed(0)
    f, shapes = HOMEWORK_1[name]
    args = [randn(*shape) + 5 for shape in shapes]
    out = f(*args)
    computed = out.op.gradient_as_tuple(ndl.Tensor(np.ones(out.shape)), out)
    numerical = differences(f, args, 1e-4, 1.0)
    error = sum(np.linalg.norm(c.numpy() - n) for c, n in zip(computed, numerical, strict=True))
    assert error < 1e-6


HOMEWORK_4 = {
    "tanh": (ndl.ops.tanh, [(2, 3)]),
    "stack": (lambda *a: ndl.ops.stack(a, axis=1), [(2, 3), (2, 3), (2, 3)]),
    "stack-list": (lambda *a: ndl.ops.stack(list(a), axis=0), [(2, 3), (2, 3)]),
    "flip": (lambda a: ndl.flip(a, axes=(0, 1)), [(3, 5)]),
    "dilate": (lambda a: ndl.dilate(a, dilation=1, axes=(0, 1)), [(2, 2)]),
    "conv": (lambda a, b: ndl.conv(a, b, stride=2, padding=1), [(1, 6, 6, 2), (3, 3, 2, 2)]),
    "max": (lambda a: ndl.ops.max(a, axes=1), [(3, 4)]),
    "logsumexp": (lambda a: ndl.ops.logsumexp(a, axes=1), [(3, 4)]),
}


@pytest.mark.parametrize("device", DEVICES, ids=repr)
@pytest.mark.parametrize("name", HOMEWORK_4)
def test_homework_4_on_every_device(name: str, device: ndl.Device) -> None:
    np.random.seed(0)
    f, shapes = HOMEWORK_4[name]
    args = [
        ndl.Tensor(ndl.NDArray(np.random.randn(*shape) * 5, device=device, dtype="float64"))
        for shape in shapes
    ]
    out = f(*args)
    weight = np.random.randn(*out.shape)
    numerical = differences(f, args, 1e-5, weight)
    out_grad = ndl.Tensor(weight, device=device, dtype="float64")
    computed = out.op.gradient_as_tuple(out_grad, out)
    for c, n in zip(computed, numerical, strict=True):
        np.testing.assert_allclose(c.numpy(), n, rtol=1e-4, atol=1e-6)


def test_stack_takes_a_tensor_tuple() -> None:
    a, b = randn(2, 3), randn(2, 3)
    pair = ndl.ops.make_tuple(a, b)
    want = np.stack([a.numpy(), b.numpy()], 1)
    np.testing.assert_array_equal(ndl.ops.stack(pair, 1).numpy(), want)
    np.testing.assert_array_equal(ndl.ops.Stack(1)(pair).numpy(), want)
    parts = ndl.ops.split(ndl.Tensor(want), 1)
    np.testing.assert_array_equal(parts[1].numpy(), b.numpy())


def test_an_op_object_is_called_on_tensors() -> None:
    a, b = randn(2, 3), randn(2, 3)
    np.testing.assert_allclose(ndl.ops.EWiseAdd()(a, b).numpy(), a.numpy() + b.numpy())
    np.testing.assert_allclose(ndl.ops.AddScalar(2.0)(a).numpy(), a.numpy() + 2, rtol=1e-6)
    np.testing.assert_allclose(ndl.ops.Summation(axes=(0,))(a).numpy(), a.numpy().sum(0), rtol=1e-5)
    assert ndl.ops.Conv(1, 0)(randn(1, 3, 3, 1), randn(1, 1, 1, 1)).shape == (1, 3, 3, 1)


def test_fused_add_scalars() -> None:
    x = randn(3)
    a, b = ndl.fused_add_scalars(x, 1.0, 2.0)
    (a * b).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * x.numpy() + 3, rtol=1e-5)
