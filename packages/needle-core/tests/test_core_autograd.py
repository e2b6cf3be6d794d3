"""The graph and the engine: what backward means, who owns what, when it refuses."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

import needle as ndl
from needle import Tensor, autograd, ops
from needle.backend_ndarray import DeviceError, DTypeError, NDArray, ShapeError
from needle.backend_ndarray.devices import REFERENCE_MODE

two_devices = pytest.mark.skipif(REFERENCE_MODE, reason="NEEDLE_BACKEND=np: one device only")


def leaf(values: object, **kwargs: object) -> Tensor:
    return Tensor(values, dtype="float64", **kwargs)


def close(tensor: Tensor, values: object) -> None:
    np.testing.assert_allclose(tensor.numpy(), values, rtol=1e-12)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# ---- backward -----------------------------------------------------------------------------------


def test_gradients_of_gradients_as_in_the_course() -> None:
    x2, x3 = Tensor([6.0]), Tensor([0.0])
    y = x2 * x2 + x2 * x3
    y.backward()
    grad_x2, grad_x3 = x2.grad, x3.grad
    close(y, [36.0])
    close(grad_x2, [12.0])
    close(grad_x3, [6.0])
    grad_x2.backward()
    close(x2.grad, [2.0])
    close(x3.grad, [1.0])


def test_integers_from_lists_are_floats_or_in_reference_mode_differentiable() -> None:
    x = Tensor([6])
    assert x.dtype == ("int64" if REFERENCE_MODE else "float32")
    (x * x).backward()
    close(x.grad, [12])


def test_third_derivative() -> None:
    x = leaf([2.0])
    y = x**4
    for factor, value in ((4, 8.0), (12, 4.0), (24, 2.0)):
        y.backward()
        y = x.grad
        close(y, [factor * value])


def test_topological_order_is_depth_first_post_order() -> None:
    a, b = leaf([[5.0]]), leaf([[10.0]])
    c = a * a + b * b * a * b
    values = [node.numpy().item() for node in autograd.find_topo_sort([c])]
    assert values == [5.0, 25.0, 10.0, 100.0, 500.0, 5000.0, 5025.0]
    x, y = leaf([1.0]), leaf([2.0])
    total = x + y
    assert autograd.find_topo_sort([total]) == [x, y, total]


def test_out_grad_weights_the_outputs() -> None:
    x = leaf([1.0, 2.0])
    (x * x).backward(leaf([10.0, 100.0]))
    close(x.grad, [20.0, 400.0])
    autograd.compute_gradient_of_variables(x * x, leaf([1.0, 2.0]))
    close(x.grad, [2.0, 8.0])


def test_default_out_grad_is_ones_of_any_shape() -> None:
    x = leaf(np.arange(6.0).reshape(2, 3))
    (x * 2).backward()
    close(x.grad, np.full((2, 3), 2.0))


def test_grad_is_overwritten_unless_accumulated() -> None:
    x = leaf([3.0])
    y = x * 2
    y.backward()
    y.backward()
    close(x.grad, [2.0])
    y.backward(accumulate=True)
    y.backward(accumulate=True, retain_graph=False)
    close(x.grad, [6.0])


def test_only_leaves_that_require_it_get_a_grad() -> None:
    x, c = leaf([3.0]), leaf([2.0], requires_grad=False)
    y = x * c
    (y * y).backward()
    assert c.grad is None
    assert y.grad is None
    close(x.grad, [24.0])


def test_a_leaf_is_its_own_gradient_path() -> None:
    x = leaf([3.0])
    x.backward()
    close(x.grad, [1.0])
    x.backward(x)  # grad never is the Tensor itself: that would be a cycle
    assert x.grad is not x
    close(x.grad, [3.0])


def test_a_diamond_is_summed_before_it_goes_on() -> None:
    x = leaf([2.0])
    y = x
    for _ in range(60):  # 2**60 paths, 60 nodes
        y = y + y
    y.backward()
    close(x.grad, [2.0**60])


def test_fast_path_records_nothing_and_frees_the_graph() -> None:
    x = leaf([3.0])
    y = (x * x).sum()
    y.backward(retain_graph=False)
    assert not x.grad.requires_grad
    assert y.inputs == []
    assert not y.is_leaf()
    close(y, 9.0)
    with pytest.raises(RuntimeError, match=r"graph has been freed.*summation.*retain_graph=True"):
        y.backward()


def test_a_second_pass_through_a_freed_part_raises() -> None:
    x = leaf([3.0])
    shared = x * x
    a, b = shared * 2, shared * 3
    a.backward(retain_graph=False)
    with pytest.raises(RuntimeError, match=r"graph has been freed.*multiply"):
        b.backward()


def test_fast_path_keeps_data_that_is_held() -> None:
    x = leaf(np.ones(4))
    middle = ops.exp(x)
    view = middle.reshape((2, 2))
    view.sum().backward(retain_graph=False)
    close(middle, np.full(4, np.e))
    close(view, np.full((2, 2), np.e))


def test_backward_needs_something_to_differentiate() -> None:
    with pytest.raises(RuntimeError, match=r"nothing to differentiate.*\(2,\).*require grad"):
        leaf([1.0, 2.0], requires_grad=False).backward()
    with ndl.no_grad():
        y = leaf([1.0]) * 2
    with pytest.raises(RuntimeError, match="nothing to differentiate"):
        y.backward()


def test_out_grad_is_checked() -> None:
    y = leaf([1.0, 2.0]) * 2
    with pytest.raises(ShapeError, match=r"out_grad does not fit: got \(3,\): need \(2,\)"):
        y.backward(leaf([1.0, 2.0, 3.0]))
    with pytest.raises(TypeError, match="out_grad is not a Tensor: got str"):
        y.backward("ones")
    y.backward(np.ones(2))
    y.backward(NDArray(np.ones(2), dtype="float32"))


@two_devices
def test_out_grad_on_another_device_raises() -> None:
    with pytest.raises(DeviceError, match=r"cpu_numpy\(\): need cpu\(\)"):
        (leaf([1.0]) * 2).backward(leaf([1.0], device=ndl.cpu_numpy()))


def test_a_failing_gradient_leaves_grads_alone() -> None:
    class Bad(autograd.TensorOp):
        def compute(self, a: NDArray) -> NDArray:
            return a

        def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
            raise KeyError("bad")

    x, w = leaf([1.0]), leaf([2.0])
    y = Bad()(x) * w
    with pytest.raises(KeyError):
        y.backward()
    assert x.grad is None
    assert w.grad is None


def test_course_style_operation_without_infer() -> None:
    class Square(autograd.TensorOp):
        def compute(self, a: NDArray) -> NDArray:
            return a * a

        def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
            return out_grad * node.inputs[0] * 2

    x = leaf([1.0, 3.0])
    y = Square()(x)
    y.sum().backward()
    close(x.grad, [2.0, 6.0])
    x.data = leaf([0.0, 0.0])
    with pytest.raises(RuntimeError, match="Square reads has changed: its input 0"):
        y.sum().backward()


def test_course_style_tuple_operation() -> None:
    class Both(autograd.TensorTupleOp):
        def compute(self, a: NDArray) -> tuple[NDArray, NDArray]:
            return a * 2, a * 3

        def gradient(self, out_grad: tuple[Tensor, Tensor], node: ndl.TensorTuple) -> Tensor:
            return out_grad[0] * 2 + out_grad[1] * 3

    x = leaf([1.0])
    a, b = Both()(x)
    (a * b).backward()
    close(x.grad, [12.0])


class Scaled(autograd.TensorOp):
    """a * exp(a), which keeps exp(a) for its gradient."""

    keeps = 1

    def compute(self, a: NDArray) -> tuple[NDArray, NDArray]:
        factor = a.exp()
        return a * factor, factor

    def gradient(self, out_grad: Tensor, node: Tensor) -> Tensor:
        (factor,) = node.kept()
        assert not factor.requires_grad
        return out_grad * factor * (node.inputs[0] + 1)


class ScaledBoth(autograd.TensorTupleOp):
    """The same as two results."""

    keeps = 1

    def compute(self, a: NDArray) -> tuple[NDArray, ...]:
        factor = a.exp()
        return a * factor, a * factor * 2, factor

    def gradient(self, out_grad: tuple[Tensor, Tensor], node: ndl.TensorTuple) -> Tensor:
        (factor,) = node.kept()
        return (out_grad[0] + out_grad[1] * 2) * factor * (node.inputs[0] + 1)


@pytest.mark.parametrize("lazy", [False, True])
def test_what_an_operation_keeps(lazy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "LAZY_MODE", lazy)
    x = leaf([0.5, 2.0])
    y, both = Scaled()(x), ScaledBoth()(x)
    assert y.shape == (2,)
    assert len(both) == 2
    (y.sum() + both[0].sum() + both[1].sum()).backward(retain_graph=False)
    close(x.grad, 4 * np.exp([0.5, 2.0]) * [1.5, 3.0])


@pytest.mark.parametrize("lazy", [False, True])
def test_what_an_operation_keeps_goes_with_the_gradient(
    lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autograd, "LAZY_MODE", lazy)
    size = 4096
    before = in_use()
    data = ndl.backend_ndarray.array(np.ones(size, dtype="float32"))
    x = Tensor(data)
    with autograd.no_grad():
        y = Scaled()(x)
        y.realize_cached_data()
    assert in_use() - before == 2 * size * 4  # data and y
    y = Scaled()(x)
    y.realize_cached_data()
    assert in_use() - before == 3 * size * 4
    y.backward(retain_graph=False)
    assert in_use() - before == 3 * size * 4  # data, y and the gradient
    with pytest.raises(RuntimeError, match="the graph has been freed"):
        y.backward()


def test_batch_norm_reads_its_bias_in_second_derivatives() -> None:
    x, weight, bias = leaf(np.ones((4, 2))), leaf([1.0, 1.0]), leaf([1.0, -1.0])
    y = ops.batch_norm(x, weight, bias, relu=True)[0]
    bias.realize_cached_data().fill(0.0)
    with pytest.raises(RuntimeError, match="batch_norm reads has changed: its input 2"):
        y.sum().backward()


# ---- ownership ----------------------------------------------------------------------------------


def in_use() -> int:
    return ndl.backend_ndarray.memory_stats()["in_use"]


def run_default_backward() -> None:
    x, w = leaf(np.ones((50, 40))), leaf(np.ones((40, 30)))
    loss = (ops.tanh(x @ w) ** 2).sum()
    loss.backward()
    assert x.grad.requires_grad
    x.grad.sum().backward()


def run_fast_backward() -> None:
    x, w = leaf(np.ones((50, 40))), leaf(np.ones((40, 30)))
    ops.softmax(x @ w).sum().backward(retain_graph=False)


def run_fused() -> None:
    x, w = leaf(np.ones((2, 3, 4))), leaf(np.ones((4, 20)))
    h, u = leaf(np.ones((3, 5))), leaf(np.ones((5, 20)))
    output, _, c = ops.lstm(x, h, h, w, u)
    (output.sum() + c.sum()).backward()
    u.grad.sum().backward()


def run_without_its_leaf() -> None:
    x, w = leaf(np.ones((50, 40))), leaf(np.ones((40, 30)))
    y = x @ w
    gone = weakref.ref(x)
    del x
    assert gone() is None
    y.sum().backward()
    assert w.grad is not None


def run_lazy() -> None:
    autograd.LAZY_MODE = True
    try:
        run_default_backward()
        unread = leaf([1.0]) * 2
        assert unread.cached_data is None
    finally:
        autograd.LAZY_MODE = False


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "run", [run_default_backward, run_fast_backward, run_fused, run_without_its_leaf, run_lazy]
)
def test_everything_dropped_is_freed_without_the_collector(run: object) -> None:
    run()
    values, memory = autograd.TENSOR_COUNTER, in_use()
    for _ in range(3):
        run()
    assert values == autograd.TENSOR_COUNTER
    assert memory == in_use()


@pytest.mark.usefixtures("no_collector")
def test_replacing_grad_frees_the_old_graph() -> None:
    x = leaf(np.ones(1000))
    counts = []
    for _ in range(3):
        (x * x * x).sum().backward()
        counts.append((autograd.TENSOR_COUNTER, in_use()))
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.usefixtures("no_collector")
def test_fast_path_frees_as_it_goes() -> None:
    """A chain of n large results is held once by the graph; its gradients come and go."""
    size = 1 << 16
    x = Tensor(np.ones(size), dtype="float32")
    y = x
    for _ in range(20):
        y = ops.tanh(y)
    nd = ndl.backend_ndarray
    before = in_use()
    nd.reset_peak()
    total = y.sum()
    del y
    total.backward(retain_graph=False)
    assert nd.memory_stats()["peak"] - before < 6 * 4 * size
    assert in_use() < before - 15 * 4 * size


def test_inputs_gives_back_the_leaf_itself() -> None:
    x, w = leaf([1.0]), leaf([2.0])
    y = x * w
    z = y + x
    assert z.inputs[0] is y
    assert z.inputs[1] is x
    assert y.inputs[1] is w
    assert x.inputs == []
    del w
    again = y.inputs[1]
    close(again, [2.0])
    assert again.is_leaf()
    assert again.requires_grad
    assert y.inputs[1] is again
    y.backward()
    close(again.grad, [1.0])


@pytest.mark.parametrize("retain_graph", [True, False])
@pytest.mark.usefixtures("no_collector")
def test_long_chains_need_no_recursion(retain_graph: bool) -> None:
    before = autograd.TENSOR_COUNTER
    x = leaf([1.0])
    y = x
    for _ in range(100_000):
        y = y + 1
    y.backward(retain_graph=retain_graph)
    close(x.grad, [1.0])
    assert (len(autograd.find_topo_sort([y])) == 100_001) == retain_graph
    del x, y
    assert before == autograd.TENSOR_COUNTER


def test_long_lazy_chains_need_no_recursion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "LAZY_MODE", True)
    y = x = leaf([1.0])
    for _ in range(20_000):
        y = y + 1
    y.backward()
    close(y, [20_001.0])
    close(x.grad, [1.0])


def test_counter_counts_live_values() -> None:
    before = autograd.TENSOR_COUNTER
    x = leaf([1.0])
    y = x * 2
    z = y * 2
    assert before + 3 == autograd.TENSOR_COUNTER
    del y  # z leads to it
    assert before + 3 == autograd.TENSOR_COUNTER
    del z
    assert before + 1 == autograd.TENSOR_COUNTER
    with pytest.raises(DTypeError):
        Tensor(["a"])
    with pytest.raises(ShapeError):
        x + leaf([1.0, 2.0]).reshape((2, 1)).broadcast_to((2, 7)) + leaf(np.ones(3))
    assert before + 1 == autograd.TENSOR_COUNTER


# ---- versions -----------------------------------------------------------------------------------


def test_writing_to_a_saved_array_raises() -> None:
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    y = x * w
    x.realize_cached_data()[0] = 7.0
    message = r"gradient of multiply reads has changed: its input 0, shape \(2,\): version 0 .* 1"
    with pytest.raises(RuntimeError, match=message):
        y.backward()
    with pytest.raises(RuntimeError, match=message):
        y.backward(retain_graph=False)
    assert w.grad is None


def test_writing_through_a_view_or_to_a_saved_output_raises() -> None:
    x = leaf([1.0, 2.0])
    y = ops.exp(x)
    z = y * 1
    y.realize_cached_data().flat[1] = 0.0
    with pytest.raises(RuntimeError, match="gradient of exp reads has changed: its output"):
        z.backward()


def test_replacing_saved_data_raises() -> None:
    w = leaf([1.0, 2.0])
    y = w * w
    w.data = leaf([0.0, 0.0])
    with pytest.raises(RuntimeError, match=r"input 0, shape \(2,\): was replaced"):
        y.backward()


def test_dropping_or_resizing_saved_data_raises() -> None:
    for data in (None, leaf([0.0] * 4).realize_cached_data()):
        w = leaf([1.0, 2.0])
        y = w * w
        w.cached_data = data
        with pytest.raises(RuntimeError, match=r"input 0, shape \(2,\): was replaced"):
            y.backward(leaf([1.0, 1.0]))


def test_a_step_between_forward_and_second_backward_raises() -> None:
    w = leaf([1.0, 2.0])
    loss = (w * w).sum()
    loss.backward()
    array = w.realize_cached_data()
    array -= w.grad.realize_cached_data() * 0.1
    with pytest.raises(RuntimeError, match="multiply reads has changed"):
        loss.backward()


def test_operations_that_save_nothing_do_not_mind() -> None:
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    y = (x + w - x * 3).reshape((2, 1)).sum()
    x.realize_cached_data().fill(9.0)
    w.data = leaf([0.0, 0.0])
    y.backward()
    close(x.grad, [-2.0, -2.0])
    close(w.grad, [1.0, 1.0])


@pytest.mark.parametrize("retain_graph", [False, True])
def test_gradients_share_no_memory(retain_graph: bool) -> None:
    a, b, c, d = (leaf([1.0, 2.0]) for _ in range(4))
    seed = Tensor([3.0, 5.0], requires_grad=False)
    (a + b + c.reshape((2, 1)).reshape((2,))).backward(seed, retain_graph=retain_graph)
    d.sum().backward(retain_graph=retain_graph)
    for i, x in enumerate((a, b, c)):
        x.grad.cached_data *= i + 2.0
    d.grad.cached_data[0] = 7.0
    close(seed, [3.0, 5.0])
    close(a.grad, [6.0, 10.0])
    close(b.grad, [9.0, 15.0])
    close(c.grad, [12.0, 20.0])
    close(d.grad, [7.0, 1.0])


def test_a_gradient_that_was_copied_has_gradients() -> None:
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    z = x * x * y
    (z + 0).backward(z)
    first = (x.grad * x.grad).sum()
    assert first.requires_grad
    a, b = leaf([2.0]), leaf([3.0])
    seed = a * b
    (a + b).backward(seed)
    assert a.grad is not b.grad
    b.grad.backward()
    close(a.grad, [3.0])
    close(b.grad, [2.0])


def test_gradient_as_tuple_may_be_called_directly() -> None:
    x, w = Tensor([1.0, 2.0]), Tensor([3.0, 4.0])
    y = x * w
    x.realize_cached_data().flat[0] += 1.0
    dx, dw = y.op.gradient_as_tuple(Tensor([1.0, 1.0]), y)
    close(dx, [3.0, 4.0])
    close(dw, [2.0, 2.0])


# ---- modes --------------------------------------------------------------------------------------


def test_no_grad_of_a_generator_function() -> None:
    x = leaf([1.0])
    log = []

    @ndl.no_grad()
    def body(count):
        try:
            for i in range(count):
                got = yield x * i
                log.append((got, (x * 2).requires_grad))
        except ValueError as error:
            yield str(error)
        finally:
            log.append(("end", (x * 2).requires_grad))
        return "done"

    steps = body(2)
    assert not next(steps).requires_grad
    assert (x * 2).requires_grad
    assert not steps.send("a").requires_grad
    with pytest.raises(StopIteration, match="done"):
        steps.send("b")
    assert log == [("a", False), ("b", False), ("end", False)]
    steps = body(2)
    next(steps)
    assert steps.throw(ValueError("wrong")) == "wrong"
    steps.close()
    assert log[3:] == [("end", False)]
    assert (x * 2).requires_grad


def test_no_grad_of_a_generator_keeps_nothing_alive() -> None:
    @ndl.no_grad()
    def steps(x):
        while True:
            with contextlib.suppress(ValueError):
                yield

    def use():
        x = leaf([1.0])
        generator = steps(x)
        next(generator)
        generator.throw(ValueError("a"))
        generator.close()
        return weakref.ref(x)

    gc.disable()
    try:
        assert use()() is None
    finally:
        gc.enable()


def test_no_grad_as_context_decorator_and_nested() -> None:
    x = leaf([1.0])
    guard = ndl.no_grad()
    with guard:
        assert not (x * 2).requires_grad
        with guard, autograd.recording(True):
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad

    @ndl.no_grad()
    def double(t: Tensor) -> Tensor:
        """Doubles."""
        return t * 2

    assert double.__doc__ == "Doubles."
    assert not double(x).requires_grad
    with pytest.raises(KeyError), ndl.no_grad():
        raise KeyError
    assert (x * 2).requires_grad
    assert x.requires_grad


def test_backward_within_no_grad_makes_gradients_without_graphs() -> None:
    x = leaf([3.0])
    y = x * x
    with ndl.no_grad():
        y.backward()
    close(x.grad, [6.0])
    assert not x.grad.requires_grad
    y.backward()  # the graph of y was kept
    assert x.grad.requires_grad


def test_no_grad_is_per_thread() -> None:
    x = leaf([1.0])
    seen = []
    with ndl.no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_results_without_gradient_keep_no_graph() -> None:
    y = leaf([1.0], requires_grad=False) * 2
    assert y.is_leaf()
    assert y.inputs == []


def test_lazy_mode_computes_when_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "LAZY_MODE", True)
    x, w = leaf(np.ones((2, 3))), leaf(np.ones((3, 4)))
    y = ops.relu(x @ w) + 1
    assert (y.shape, y.dtype, y.device, y.ndim, y.size) == ((2, 4), "float64", x.device, 2, 8)
    assert y.cached_data is None
    assert y.inputs[0].cached_data is None
    with pytest.raises(ShapeError, match=r"inner sizes differ: a is \(2, 4\), b is \(3, 4\)"):
        y @ w
    assert y.cached_data is None
    close(y, np.full((2, 4), 4.0))
    assert y.cached_data is not None
    constant = leaf([1.0], requires_grad=False) * 2
    assert constant.cached_data is None
    close(constant, [2.0])
    monkeypatch.setattr(autograd, "LAZY_MODE", False)
    late = y * 2
    assert late.cached_data is not None


def test_lazy_and_eager_parts_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    x = leaf([2.0])
    monkeypatch.setattr(autograd, "LAZY_MODE", True)
    y = ops.exp(x)
    pair = ops.fused_add_scalars(y, 1, 2)
    assert len(pair) == 2
    monkeypatch.setattr(autograd, "LAZY_MODE", False)
    (pair[0] * pair[1]).backward(retain_graph=False)
    e = np.exp(2.0)
    close(x.grad, [e * (e + 2) + e * (e + 1)])


@two_devices
def test_device_mismatch_raises_in_both_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = leaf([1.0]), leaf([1.0], device=ndl.cpu_numpy())
    for lazy in (False, True):
        monkeypatch.setattr(autograd, "LAZY_MODE", lazy)
        with pytest.raises(DeviceError, match=r"add: devices differ: got cpu\(\) and cpu_numpy"):
            a + b
    moved = b.to(ndl.cpu())
    (a * moved).backward()
    assert b.grad.device == ndl.cpu_numpy()
    assert b.to(ndl.cpu_numpy()) is b
