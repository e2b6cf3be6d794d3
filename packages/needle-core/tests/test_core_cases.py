"""Every operation: values, gradients and second gradients on every device of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import needle as ndl
from needle import autograd, ops
from needle.backend_ndarray import Device
from needle.testing import (
    CASES,
    VIEWS,
    OpCase,
    Target,
    array_devices,
    check_gradients,
    check_second_gradients,
    check_value,
    make_view,
)

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(params=array_devices())
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    target: Target = request.param
    with target.active() as active:
        yield active


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_case
def test_values_equal_the_oracle(case: OpCase, device: Device, dtype: str) -> None:
    check_value(case, device, dtype)


@pytest.mark.parametrize("layout", [view for view in VIEWS if view not in ("compact", "broadcast")])
@every_case
def test_inputs_may_lie_in_any_order(case: OpCase, layout: str) -> None:
    """Values and gradients for inputs that are permuted, stepped, reversed or unaligned views."""
    inputs = leaves(case)
    weighted_sum(case.call(*inputs)).backward()
    views = [ndl.Tensor(make_view(layout, t.numpy(), t.device, t.dtype)) for t in inputs]
    loss = weighted_sum(case.call(*views))
    loss.backward()
    for a, b in zip(inputs, views, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        if a.grad is not None:
            np.testing.assert_allclose(b.grad.numpy(), a.grad.numpy(), rtol=1e-10, atol=1e-10)


@every_case
def test_gradients_equal_differences(case: OpCase, device: Device) -> None:
    check_gradients(case, device)


@every_case
def test_second_gradients_equal_differences(case: OpCase, device: Device) -> None:
    check_second_gradients(case, device)


def leaves(case: OpCase, dtype: str = "float64") -> list[ndl.Tensor]:
    return [ndl.Tensor(a, dtype=dtype if a.dtype.kind == "f" else a.dtype) for a in case.arrays()]


def weighted_sum(outputs: object) -> ndl.Tensor:
    """A scalar whose gradient for the outputs is not constant."""
    many = isinstance(outputs, (tuple, list, ndl.TensorTuple))
    total = ndl.Tensor(0.0, dtype="float64", requires_grad=False)
    for output in outputs if many else [outputs]:
        total = total + (output * output).sum()
    return total


@every_case
def test_lazy_mode_gives_the_same(case: OpCase, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = leaves(case)
    loss = weighted_sum(case.call(*eager))
    loss.backward()
    monkeypatch.setattr(autograd, "LAZY_MODE", True)
    lazy = leaves(case)
    late = weighted_sum(case.call(*lazy))
    assert late.cached_data is None
    assert late.shape == loss.shape
    assert late.dtype == loss.dtype
    late.backward()
    np.testing.assert_array_equal(late.numpy(), loss.numpy())
    for a, b in zip(eager, lazy, strict=True):
        if a.grad is not None:
            np.testing.assert_array_equal(b.grad.numpy(), a.grad.numpy())


@every_case
def test_the_fast_path_gives_the_same(case: OpCase) -> None:
    slow, fast = leaves(case), leaves(case)
    weighted_sum(case.call(*slow)).backward()
    weighted_sum(case.call(*fast)).backward(retain_graph=False)
    for a, b in zip(slow, fast, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            np.testing.assert_array_equal(b.grad.numpy(), a.grad.numpy())
            assert not b.grad.requires_grad


@every_case
def test_infer_foretells_shape_and_dtype(case: OpCase, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    apply = autograd._apply

    def watch(op, args, kind):
        specs, result = op.infer(*args), apply(op, args, kind)
        made = result.cached_data if kind is ndl.TensorTuple else (result.cached_data,)
        specs = specs if kind is ndl.TensorTuple else (specs,)
        assert [(a.shape, a.dtype) for a in made] == [tuple(spec) for spec in specs], op.name
        seen.append(op)
        return result

    monkeypatch.setattr(autograd, "_apply", watch)
    for dtype in ("float32", "float64"):
        inputs = leaves(case, dtype)
        outputs = case.call(*inputs)
        many = isinstance(outputs, (tuple, ndl.TensorTuple))
        sum([o.sum() for o in outputs], 0).backward() if many else outputs.sum().backward()
    assert any(type(op) is case.op for op in seen)


def test_every_operation_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()
    apply = autograd._apply

    def watch(op, args, kind):
        used.add(type(op))
        return apply(op, args, kind)

    monkeypatch.setattr(autograd, "_apply", watch)
    for case in CASES:
        inputs = leaves(case)
        weighted_sum(case.call(*inputs)).backward()
        first = [x.grad for x in inputs if x.grad is not None and x.grad.requires_grad]
        if case.op is ops.Conv:  # its gradient's own gradients are operations that no user calls
            weighted_sum(first).backward()
        if hasattr(case.op, "plain"):
            call_plain(case, inputs)
    ndl.Tensor([1.0], dtype="float32").astype("float64").backward()  # rounds: no float64 check
    ops.embedding(ndl.Tensor([1, 2], dtype="int32"), ndl.init.ones(3, 1))  # converts the ids
    missing = {op.__name__ for op in concrete(autograd.Op)} - {op.__name__ for op in used}
    assert not missing, f"operations without a case: {sorted(missing)}"


def concrete(op: type[autograd.Op]) -> Iterator[type[autograd.Op]]:
    """The classes below `op` in needle.ops that compute something."""
    for kind in op.__subclasses__():
        if kind.__module__.startswith("needle.ops") and "compute" in vars(kind):
            yield kind
        yield from concrete(kind)


FUSED = [case for case in CASES if hasattr(case.op, "plain")]


def call_plain(case: OpCase, inputs: list[ndl.Tensor]) -> list[ndl.Tensor]:
    """The outputs of a fused operation, and those of its definition where they are shown."""
    result = case.call(*inputs)
    node = result
    while not isinstance(node.op, case.op):
        node = node.inputs[0]
    outputs = node.op.plain(*node.inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


@pytest.mark.parametrize("case", FUSED, ids=str)
def test_a_fused_operation_is_its_definition(case: OpCase) -> None:
    """Values, gradients and gradients of gradients."""

    def derivatives(outputs: list[ndl.Tensor], inputs: list[ndl.Tensor]) -> list[np.ndarray]:
        weighted_sum(outputs).backward()
        first = [x.grad for x in inputs if x.grad is not None]
        weighted_sum(first).backward()
        second = [x.grad for x in inputs if x.grad is not None]
        return [t.numpy() for t in (*outputs, *first, *second)]

    inputs, twins = leaves(case), leaves(case)
    result = case.call(*inputs)
    fused = list(result) if isinstance(result, ndl.TensorTuple) else [result]
    plain = call_plain(case, twins)
    plain = [p for p in plain if any(p.shape == f.shape for f in fused)][: len(fused)]
    if case.name == "rnn-relu-one-bias":
        plain = call_plain(case, twins)[1:]
    got, want = derivatives(fused, inputs), derivatives(plain, twins)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


SINGLE = [case for case in CASES if case.op.saves is not None]


@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_saves_names_what_the_gradient_reads(case: OpCase) -> None:
    """Writing to an array that is saved raises; writing to another changes no gradient."""
    reference = leaves(case)
    result = case.call(*reference)
    if not isinstance(result, ndl.Tensor) or type(result.op) is not case.op:
        pytest.skip("the function is not one operation")
    result.backward()
    for i, array in enumerate(reference):
        inputs = leaves(case)
        out = case.call(*inputs)
        if array.dtype.kind != "f" or len(out.op.gradient_as_tuple(out, out)) <= i:
            continue
        inputs[i].realize_cached_data().fill(float("nan"))
        if i in case.op.saves:
            with pytest.raises(RuntimeError, match=rf"{case.op.name} reads.*input {i}"):
                out.backward()
        else:
            out_is_view = out.cached_data._handle is inputs[i].cached_data._handle
            assert not (out_is_view and -1 in case.op.saves)
            out.backward()
            for a, b in zip(reference, inputs, strict=True):
                if a.grad is not None:
                    np.testing.assert_array_equal(b.grad.numpy(), a.grad.numpy())
    out = case.call(*leaves(case))
    if -1 in case.op.saves:
        out.realize_cached_data().fill(0.5)
        with pytest.raises(RuntimeError, match=rf"{case.op.name} reads.*its output"):
            out.backward()
