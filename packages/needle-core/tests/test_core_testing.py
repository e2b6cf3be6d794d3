"""The checks themselves: each fails on what it is there to find."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import Tensor, autograd, ops
from needle.autograd import Spec, TensorOp
from needle.testing import (
    CASES,
    check_gradients,
    check_value,
    gradient_check,
    second_gradient_check,
)

X = np.array([[0.5, -1.5], [2.0, 1.0]])
CASE = next(case for case in CASES if case.name == "tanh")


class Square(TensorOp):
    """a * a with a gradient that is wrong in one way or right in all."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def infer(self, a: Tensor) -> Spec:
        return Spec(a.shape, a.dtype)

    def compute(self, a: Any) -> Any:
        return a * a

    def gradient(self, out_grad: Tensor, node: Tensor) -> Any:
        (a,) = node.inputs
        match self.fault:
            case "factor":
                return out_grad * a
            case "one entry":
                return out_grad * a * Tensor([[2.0, 2.0], [2.0, 2.001]], dtype="float64")
            case "dtype":
                return (out_grad * a * 2).astype("float32")
            case "shape":
                return (out_grad * a * 2).reshape((4,))
            case "constant":
                return out_grad * a.detach() * 2
        return out_grad * a * 2


def test_a_right_gradient_passes() -> None:
    gradient_check(Square(), X)
    second_gradient_check(Square(), X)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("factor", r"gradient of input 0 at \(0, 0\): got .*; 4 of 4 entries"),
        ("one entry", r"gradient of input 0 at \(1, 1\): got .*; 1 of 4 entries"),
        ("dtype", "input 0: gradient is float32"),
        ("shape", r"input 0: gradient \(4,\): want \(2, 2\)"),
    ],
)
def test_a_wrong_gradient_is_found(fault: str, text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        gradient_check(Square(fault), X)


def test_a_gradient_that_cannot_be_differentiated_is_found() -> None:
    gradient_check(Square("constant"), X)
    with pytest.raises(AssertionError, match="gradient of input 0"):
        second_gradient_check(Square("constant"), X)


def test_a_missing_gradient_is_found() -> None:
    with pytest.raises(AssertionError, match=r"got -?0\.0: want"):
        gradient_check(lambda a: a.detach() * 2 + a * 0, X)


def test_a_case_with_a_wrong_oracle_fails() -> None:
    for oracle in (np.sinh, lambda a: np.tanh(a)[0], lambda a: (np.tanh(a), a)):
        with pytest.raises(AssertionError):
            check_value(replace(CASE, oracle=oracle), ndl.cpu(), "float64")
    with pytest.raises(AssertionError, match="gradient of input 0"):
        check_gradients(replace(CASE, call=Square("factor")), ndl.cpu())


def test_a_function_without_outputs_is_refused() -> None:
    with pytest.raises(ValueError, match="the function returned nothing"):
        gradient_check(lambda a: [], X)


def test_cases_have_distinct_names_and_repeatable_inputs() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        for a, b in zip(case.arrays(), case.arrays(), strict=True):
            np.testing.assert_array_equal(a, b)
        assert case.flops(*case.arrays()) > 0
        assert case.bytes(case.arrays(), 4) > 0


def test_an_unfinished_operation_says_what_is_missing() -> None:
    class Empty(TensorOp):
        pass

    with pytest.raises(NotImplementedError, match="Empty: compute is not defined: define it"):
        Empty()(Tensor([1.0]))

    class NoGradient(TensorOp):
        def compute(self, a: Any) -> Any:
            return a * 2

    with pytest.raises(NotImplementedError, match="NoGradient: gradient is not defined"):
        NoGradient()(Tensor([1.0])).backward()
    with pytest.raises(NotImplementedError, match="is not a TensorOp or TensorTupleOp"):
        autograd.Op()(Tensor([1.0]))


def test_ops_refuse_what_is_no_tensor_by_name() -> None:
    with pytest.raises(TypeError, match="softmax_cross_entropy: argument 0 is not a Tensor"):
        ops.softmax_cross_entropy(np.ones((1, 2)), Tensor([1.0]))
