"""NumPy twins of the elementwise kernels: out first, then inputs of the same shape."""

from __future__ import annotations

import numpy as np

from needle.backend_ndarray.reference.types import Array


def negate(out: Array, a: Array) -> None:
    """out = -a."""
    np.negative(a, out=out)


def exp(out: Array, a: Array) -> None:
    """out = e to the power a."""
    np.exp(a, out=out)


def log(out: Array, a: Array) -> None:
    """out = ln(a)."""
    np.log(a, out=out)


def tanh(out: Array, a: Array) -> None:
    """out = the hyperbolic tangent of a."""
    np.tanh(a, out=out)


def sigmoid(out: Array, a: Array) -> None:
    """out = 1 / (1 + exp(-a)), written with exp(-|a|), which cannot overflow."""
    small = np.exp(-np.abs(a))
    out[...] = np.where(a >= 0, 1, small) / (1 + small)


def relu(out: Array, a: Array) -> None:
    """out = max(a, 0)."""
    np.maximum(a, 0, out=out)


def sqrt(out: Array, a: Array) -> None:
    """out = the square root of a."""
    np.sqrt(a, out=out)


def abs(out: Array, a: Array) -> None:
    """out = |a|."""
    np.absolute(a, out=out)


def logical_not(out: Array, a: Array) -> None:
    """out = not a."""
    np.logical_not(a, out=out)


def add(out: Array, a: Array, b: Array) -> None:
    """out = a + b."""
    np.add(a, b, out=out)


def subtract(out: Array, a: Array, b: Array) -> None:
    """out = a - b."""
    np.subtract(a, b, out=out)


def multiply(out: Array, a: Array, b: Array) -> None:
    """out = a * b."""
    np.multiply(a, b, out=out)


def divide(out: Array, a: Array, b: Array) -> None:
    """out = a / b."""
    np.divide(a, b, out=out)


def power(out: Array, a: Array, b: Array) -> None:
    """out = a to the power b; integer exponents are not negative."""
    np.power(a, b, out=out)


def maximum(out: Array, a: Array, b: Array) -> None:
    """out = the larger of a and b, NaN where either is."""
    np.maximum(a, b, out=out)


def minimum(out: Array, a: Array, b: Array) -> None:
    """out = the smaller of a and b, NaN where either is."""
    np.minimum(a, b, out=out)


def equal(out: Array, a: Array, b: Array) -> None:
    """out = (a == b)."""
    np.equal(a, b, out=out)


def not_equal(out: Array, a: Array, b: Array) -> None:
    """out = (a != b)."""
    np.not_equal(a, b, out=out)


def less(out: Array, a: Array, b: Array) -> None:
    """out = (a < b)."""
    np.less(a, b, out=out)


def less_equal(out: Array, a: Array, b: Array) -> None:
    """out = (a <= b)."""
    np.less_equal(a, b, out=out)


def greater(out: Array, a: Array, b: Array) -> None:
    """out = (a > b)."""
    np.greater(a, b, out=out)


def greater_equal(out: Array, a: Array, b: Array) -> None:
    """out = (a >= b)."""
    np.greater_equal(a, b, out=out)


def logical_and(out: Array, a: Array, b: Array) -> None:
    """out = a and b."""
    np.logical_and(a, b, out=out)


def logical_or(out: Array, a: Array, b: Array) -> None:
    """out = a or b."""
    np.logical_or(a, b, out=out)


def relu_grad(out: Array, dy: Array, y: Array) -> None:
    """out = dy where y = relu(x) is positive, else 0."""
    out[...] = np.where(y > 0, dy, 0)


def tanh_grad(out: Array, dy: Array, y: Array) -> None:
    """out = dy * (1 - y * y), with y = tanh(x)."""
    out[...] = dy * (1 - y * y)


def sigmoid_grad(out: Array, dy: Array, y: Array) -> None:
    """out = dy * y * (1 - y), with y = sigmoid(x)."""
    out[...] = dy * y * (1 - y)
