"""SGD, Adam and clipping against NumPy loops, and what happens to odd parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import nn_oracles as oracle
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import needle as ndl
from needle import Tensor, nn, optim
from needle.backend_ndarray import DeviceError, DTypeError, NDArray, ShapeError

SHAPES = [(3, 4), (1,), (), (2, 1, 5), (0, 3), (257,)]
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}  # ten steps of a few roundings each


def parameter(values: Any, device: Any, dtype: str = "float32") -> nn.Parameter:
    return nn.Parameter(np.asarray(values), device=device, dtype=dtype)


def set_grad(p: Tensor, values: Any) -> None:
    p.grad = Tensor(np.asarray(values), device=p.device, dtype=p.dtype, requires_grad=False)


SGD_SETTINGS = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "weight_decay": 0.05},
    {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.3},
    {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.3, "nesterov": True},
    {},
]
ADAM_SETTINGS = [
    {},
    {"lr": 0.1, "weight_decay": 0.05},
    {"lr": 0.02, "beta1": 0.5, "beta2": 0.7, "eps": 1e-3, "weight_decay": 0.3},
    {"beta1": 0.0, "beta2": 0.0},
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("settings", SGD_SETTINGS, ids=str)
def test_sgd_matches_loops(settings: dict[str, float], dtype: str, device: Any) -> None:
    full = {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0} | settings
    wanted = [(np.array(np.random.randn(*shape), dtype), np.zeros(shape)) for shape in SHAPES]
    params = [parameter(w, device, dtype) for w, _ in wanted]
    wanted = [(w.astype("float64"), u) for w, u in wanted]
    opt = optim.SGD(params, **settings)
    for _ in range(10):
        for i, p in enumerate(params):
            grad = np.array(np.random.randn(*p.shape), dtype)
            set_grad(p, grad)
            wanted[i] = oracle.sgd(*wanted[i], grad.astype("float64"), **full)
        opt.step()
    for p, (w, _) in zip(params, wanted, strict=True):
        oracle.check("w", p, w, dtype, TOLERANCE[dtype], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("settings", ADAM_SETTINGS, ids=str)
def test_adam_matches_loops(settings: dict[str, float], dtype: str, device: Any) -> None:
    defaults = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    full = defaults | settings
    wanted = [(np.array(np.random.randn(*s), dtype), np.zeros(s), np.zeros(s)) for s in SHAPES]
    params = [parameter(w, device, dtype) for w, _, _ in wanted]
    wanted = [(w.astype("float64"), m, v) for w, m, v in wanted]
    opt = optim.Adam(params, **settings)
    for t in range(1, 11):
        for i, p in enumerate(params):
            grad = np.array(np.random.randn(*p.shape), dtype)
            set_grad(p, grad)
            wanted[i] = oracle.adam(*wanted[i], grad.astype("float64"), t, **full)
        opt.step()
    for p, (w, _, _) in zip(params, wanted, strict=True):
        oracle.check("w", p, w, dtype, TOLERANCE[dtype], TOLERANCE[dtype])


OPTIMIZERS: list[Callable[..., optim.Optimizer]] = [
    lambda params: optim.SGD(params, lr=0.1, momentum=0.9),
    lambda params: optim.Adam(params, lr=0.1),
]


@pytest.fixture(params=OPTIMIZERS, ids=["SGD", "Adam"])
def make(request: pytest.FixtureRequest) -> Callable[..., optim.Optimizer]:
    return request.param


def test_parameters_without_gradient_are_left_alone(
    make: Callable[..., optim.Optimizer], device: Any
) -> None:
    a, b = parameter(np.ones(3), device), parameter(np.ones(3), device)
    opt = make([a, b])
    for _ in range(3):
        set_grad(a, np.full(3, 2.0))
        opt.step()
    assert_array_equal(b.numpy(), np.ones(3))
    # b's first step is like that of a fresh optimizer: its state and its step count waited.
    a.grad = None
    set_grad(b, np.full(3, 2.0))
    opt.step()
    fresh = parameter(np.ones(3), device)
    set_grad(fresh, np.full(3, 2.0))
    make([fresh]).step()
    assert_array_equal(b.numpy(), fresh.numpy())
    assert opt.steps == [3, 1]


def test_reset_grad_sets_none(make: Callable[..., optim.Optimizer], device: Any) -> None:
    p = parameter(np.ones(3), device)
    opt = make([p])
    set_grad(p, np.ones(3))
    opt.reset_grad()
    assert p.grad is None
    opt.step()
    assert_array_equal(p.numpy(), np.ones(3))


def test_dtypes_mix(make: Callable[..., optim.Optimizer], device: Any) -> None:
    params = [parameter(np.ones(3), device, dtype) for dtype in ("float32", "float64", "float32")]
    opt = make(params)
    for p in params:
        set_grad(p, np.full(3, 0.5))
    opt.step()
    assert [p.dtype for p in params] == ["float32", "float64", "float32"]
    assert_array_equal(params[0].numpy(), params[2].numpy())
    assert_allclose(params[0].numpy(), params[1].numpy(), rtol=1e-6)
    assert (params[0].numpy() < 1).all()


def test_devices_mix(make: Callable[..., optim.Optimizer]) -> None:
    params = [parameter(np.ones(3), device) for device in (ndl.cpu(), ndl.cpu_numpy())]
    opt = make(params)
    for p in params:
        set_grad(p, np.full(3, 0.5))
    opt.step()
    assert_allclose(params[0].numpy(), params[1].numpy(), rtol=1e-6)
    assert params[1].device == ndl.cpu_numpy()
    assert opt.clip_grad_norm(0.1) == pytest.approx(math.sqrt(6) / 2)


def test_a_gradient_of_the_other_float_type_is_cast(
    make: Callable[..., optim.Optimizer], device: Any
) -> None:
    p, q = parameter(np.ones(3), device), parameter(np.ones(3), device)
    p.grad = Tensor(np.full(3, 0.5), device=device, dtype="float64")
    set_grad(q, np.full(3, 0.5))
    make([p]).step()
    make([q]).step()
    assert p.dtype == "float32"
    assert_array_equal(p.numpy(), q.numpy())


def test_strided_parameters_and_gradients(
    make: Callable[..., optim.Optimizer], device: Any
) -> None:
    values = np.random.randn(4, 6).astype("float32")
    grad = np.random.randn(4, 3).astype("float32")
    plain = parameter(values[:, ::2], device)
    set_grad(plain, grad)
    base = NDArray(values, device=device)
    strided = nn.Parameter(base[:, ::2])
    strided.grad = Tensor(NDArray(grad.T.copy(), device=device).permute((1, 0)))
    broadcast = nn.Parameter(
        NDArray(np.ones((1, 3), "float32"), device=device).broadcast_to((4, 3))
    )
    ones = parameter(np.ones((4, 3)), device)
    for p in (broadcast, ones):
        set_grad(p, grad)
    for p in (plain, strided, broadcast, ones):
        opt = make([p])
        opt.step()
        opt.step()
    assert_array_equal(strided.numpy(), plain.numpy())
    assert_array_equal(broadcast.numpy(), ones.numpy())


def test_a_broadcast_gradient_is_read_by_its_values(
    make: Callable[..., optim.Optimizer], device: Any
) -> None:
    p, q = parameter(np.ones((4, 3)), device), parameter(np.ones((4, 3)), device)
    p.sum().backward()
    set_grad(q, np.ones((4, 3)))
    opt = make([p, q])
    opt.step()
    assert_array_equal(p.numpy(), q.numpy())
    assert opt.clip_grad_norm(1.0) == pytest.approx(math.sqrt(24))


def test_parameters_that_share_memory_are_updated_one_after_the_other(
    make: Callable[..., optim.Optimizer], device: Any
) -> None:
    shared = NDArray(np.ones(300_000, "float32"), device=device)
    a, b = nn.Parameter(shared), nn.Parameter(shared)
    separate = parameter(np.ones(300_000), device)
    opt, one = make([a, b]), make([separate])
    for p in (a, b, separate):
        set_grad(p, np.full(300_000, 0.5))
    opt.step()
    one.step()
    other = make([separate])
    other.step()
    assert_array_equal(a.numpy(), b.numpy())
    assert_array_equal(a.numpy(), separate.numpy())


def test_a_parameter_given_twice_is_updated_once(
    make: Callable[..., optim.Optimizer], device: Any
) -> None:
    p, q = parameter(np.ones(3), device), parameter(np.ones(3), device)
    for t in (p, q):
        set_grad(t, np.ones(3))
    opt = make([p, p])
    opt.step()
    make([q]).step()
    assert len(opt.params) == 1
    assert_array_equal(p.numpy(), q.numpy())


def test_the_gradient_is_not_changed(make: Callable[..., optim.Optimizer], device: Any) -> None:
    p = parameter(np.ones(3), device)
    set_grad(p, [1.0, 2.0, 3.0])
    make([p]).step()
    assert p.grad is not None
    assert_array_equal(p.grad.numpy(), [1.0, 2.0, 3.0])


def test_a_step_is_seen_by_a_backward_that_saved_the_weight(
    make: Callable[..., optim.Optimizer], device: Any
) -> None:
    p = parameter(np.ones(3), device)
    loss = (p * p).sum()
    loss.backward()
    make([p]).step()
    with pytest.raises(RuntimeError, match=r"changed|version|in.place"):
        loss.backward()


def test_steps_keep_no_graph(make: Callable[..., optim.Optimizer], device: Any) -> None:
    p = parameter(np.ones(3), device)
    opt = make([p])
    live = []
    for _ in range(4):
        opt.reset_grad()
        (p * p).sum().backward()
        opt.clip_grad_norm(0.1)
        opt.step()
        opt.reset_grad()
        live.append(ndl.autograd.TENSOR_COUNTER)
        assert p.is_leaf()
        assert p.requires_grad
    assert live == [live[0]] * 4


def test_a_moved_model_goes_on(make: Callable[..., optim.Optimizer]) -> None:
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    opt, other = make(model.parameters()), make(twin.parameters())
    for round_ in range(3):
        for m in (model, twin):
            for p in m.parameters():
                set_grad(p, np.full(p.shape, 0.5))
        opt.step()
        other.step()
        if round_ == 0:
            model.to(ndl.cpu_numpy(), "float64")
    assert model.weight.dtype == "float64"
    assert_allclose(model.weight.numpy(), twin.weight.numpy(), rtol=1e-6)


def test_learning_rate_may_change_between_steps(device: Any) -> None:
    p = parameter([1.0], device)
    opt = optim.SGD([p], lr=0.0)
    set_grad(p, [1.0])
    opt.step()
    assert_array_equal(p.numpy(), [1.0])
    opt.lr = 0.25
    opt.step()
    assert_array_equal(p.numpy(), [0.75])
    opt.lr = -1.0
    with pytest.raises(ValueError, match=r"SGD: lr: got -1\.0: need a finite number >= 0"):
        opt.step()
    assert_array_equal(p.numpy(), [0.75])


def test_sgd_forgets_an_infinite_gradient_without_momentum(device: Any) -> None:
    p = parameter([1.0], device)
    opt = optim.SGD([p], lr=0.5)
    set_grad(p, [np.inf])
    opt.step()
    p.data = Tensor([1.0], device=device, dtype="float32")
    set_grad(p, [1.0])
    opt.step()
    assert_array_equal(p.numpy(), [0.5])


# ---- clipping ---------------------------------------------------------------------------------


def test_clipping_scales_to_the_global_norm(
    make: Callable[..., optim.Optimizer], device: Any
) -> None:
    params = [parameter(np.zeros(s), device, "float64") for s in [(3,), (2, 2), (1,)]]
    grads = [np.random.randn(*p.shape) for p in params]
    for p, grad in zip(params, grads, strict=True):
        set_grad(p, grad)
    params.append(parameter(np.zeros(2), device))  # without a gradient
    norm = math.sqrt(sum(float(v) ** 2 for grad in grads for v in grad.reshape(-1)))
    opt = make(params)
    returned = opt.clip_grad_norm(0.5)
    assert isinstance(returned, float)
    assert returned == pytest.approx(norm, rel=1e-12)
    for p, grad in zip(params[:3], grads, strict=True):
        assert p.grad is not None
        assert_allclose(p.grad.numpy(), grad * 0.5 / (norm + 1e-6), rtol=1e-12)
        assert p.grad.shape == p.shape
    assert params[3].grad is None
    assert opt.clip_grad_norm() == pytest.approx(0.5, rel=1e-5)
    assert opt.clip_grad_norm() == pytest.approx(0.25, rel=1e-5)  # the default


def test_clipping_leaves_small_gradients(device: Any) -> None:
    p = parameter(np.zeros(2), device)
    set_grad(p, [0.3, 0.4])
    kept = p.grad
    assert optim.SGD([p]).clip_grad_norm(1.0) == pytest.approx(0.5)
    assert p.grad is kept
    assert optim.SGD([parameter([1.0], device)]).clip_grad_norm() == 0.0


def test_clipping_does_not_write_to_shared_gradients(device: Any) -> None:
    a, b = parameter(np.zeros(2), device), parameter(np.zeros(2), device)
    seed = Tensor([3.0, 4.0], device=device)
    (a + b).backward(seed)
    norm = optim.SGD([a, b]).clip_grad_norm(1.0)
    assert norm == pytest.approx(math.sqrt(50))
    for p in (a, b):
        assert p.grad is not None
        assert_allclose(p.grad.numpy(), np.array([3.0, 4.0]) / math.sqrt(50), rtol=1e-5)
    assert_array_equal(seed.numpy(), [3.0, 4.0])


def test_clipping_large_and_nan_gradients(device: Any) -> None:
    p = parameter(np.zeros(2), device)
    set_grad(p, [1e30, 1e30])  # the squares overflow float32
    opt = optim.SGD([p])
    assert opt.clip_grad_norm(1.0) == pytest.approx(math.sqrt(2) * 1e30)
    assert p.grad is not None
    assert_allclose(p.grad.numpy(), [math.sqrt(0.5)] * 2, rtol=1e-5)
    set_grad(p, [np.nan, 1.0])
    assert math.isnan(opt.clip_grad_norm(1.0))
    assert np.isnan(p.grad.numpy()).all()


# ---- state ------------------------------------------------------------------------------------


def train(model: nn.Module, opt: optim.Optimizer, rounds: range) -> list[float]:
    losses = []
    for i in rounds:
        rng = np.random.default_rng(i)
        x = Tensor(rng.normal(size=(4, 3)), dtype="float32")
        y = Tensor(rng.integers(0, 2, 4), dtype="float32")
        opt.reset_grad()
        loss = nn.SoftmaxLoss()(model(x), y)
        loss.backward(retain_graph=False)
        opt.step()
        losses.append(loss.item())
    return losses


def test_save_and_resume_is_equal_bit_for_bit(make: Callable[..., optim.Optimizer]) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))

    model = build()
    opt = make(model.parameters())
    train(model, opt, range(5))
    saved, saved_opt = model.state_dict(), opt.state_dict()
    want = train(model, opt, range(5, 10))
    resumed = build()
    resumed.load_state_dict(saved)
    resumed_opt = make(resumed.parameters())
    resumed_opt.lr = 9.0  # comes back from the saved state
    resumed_opt.load_state_dict(saved_opt)
    assert train(resumed, resumed_opt, range(5, 10)) == want
    for name, value in model.state_dict().items():
        assert_array_equal(resumed.state_dict()[name].numpy(), value.numpy())


def test_state_dict_names_and_copies(device: Any) -> None:
    p = parameter([1.0, 2.0], device)
    opt = optim.Adam([p], lr=0.5)
    set_grad(p, [1.0, 1.0])
    opt.step()
    state = opt.state_dict()
    assert list(state) == ["lr", "beta1", "beta2", "eps", "weight_decay", "steps", "m.0", "v.0"]
    assert state["lr"] == 0.5
    assert_array_equal(state["steps"].numpy(), [1])
    opt.step()
    assert_allclose(state["m.0"].numpy(), [0.1, 0.1], rtol=1e-6)
    names = ["lr", "momentum", "weight_decay", "nesterov", "steps", "u.0"]
    assert list(optim.SGD([p]).state_dict()) == names
    as_numpy = {k: v if isinstance(v, float) else v.numpy() for k, v in state.items()}
    opt.load_state_dict(as_numpy)
    assert opt.steps == [1]
    assert opt.m[0].device == device


def test_a_loaded_state_brings_its_rule() -> None:
    p, q = (nn.Parameter(np.ones(3), dtype="float32") for _ in range(2))
    ahead = optim.SGD([p], lr=0.1, momentum=0.5, nesterov=True)
    opt = optim.SGD([q], lr=1.0)
    opt.load_state_dict(ahead.state_dict())
    assert opt.nesterov is True
    assert repr(opt) == repr(ahead)
    for one, weight in [(ahead, p), (opt, q)]:
        set_grad(weight, [1.0, 2.0, 3.0])
        one.step()
    assert_array_equal(p.numpy(), q.numpy())
    without = optim.SGD([q], momentum=0.5).state_dict()
    opt.load_state_dict({name: value for name, value in without.items() if name != "nesterov"})
    assert opt.nesterov is True
    opt.load_state_dict(without)
    assert opt.nesterov is False


BAD_STATES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr": None}, KeyError, r"SGD.load_state_dict: names differ: missing \['lr'\]"),
    ({"lr": -1.0}, ValueError, r"SGD: lr: got -1\.0: need a finite number >= 0"),
    ({"lr": "fast"}, TypeError, "SGD: lr: got 'fast': need a finite number >= 0"),
    ({"nesterov": 0.5}, TypeError, r"SGD: nesterov: got 0\.5: need True or False"),
    ({"nesterov": 1.0, "momentum": 0.0}, ValueError, "SGD: nesterov without momentum"),
    ({"u.0": None}, KeyError, r"SGD.load_state_dict: names differ: missing \['u.0'\]"),
    ({"m.0": np.zeros(3)}, KeyError, r"missing \[\], unexpected \['m.0'\]"),
    ({"u.0": np.zeros(4, "float32")}, ShapeError, r"u.0 is \(4,\): need \(3,\)"),
    ({"u.0": np.zeros(3, "float64")}, DTypeError, "u.0 is float64: need float32"),
    ({"steps": np.zeros(2, "int64")}, ShapeError, r"steps is \(2,\): need \(1,\)"),
    ({"u.0": 1.0}, TypeError, "u.0 is a float: need a Tensor"),
    ({"steps": np.array([-1])}, ValueError, r"steps is \[-1\]: need numbers >= 0"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD_STATES)
def test_a_bad_state_changes_nothing(
    change: dict[str, Any], error: type[Exception], text: str
) -> None:
    opt = optim.SGD([nn.Parameter(np.ones(3), dtype="float32")], lr=0.5)
    state = {**opt.state_dict(), "lr": 0.25, "u.0": np.ones(3, "float32"), **change}
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(error, match=text):
        opt.load_state_dict(state)
    assert opt.lr == 0.5
    assert opt.steps == [0]
    assert_array_equal(opt.u[0].numpy(), np.zeros(3))


# ---- errors -----------------------------------------------------------------------------------


P = nn.Parameter(np.ones(3), dtype="float32")

BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: optim.SGD([]), ValueError, "SGD: params is empty: need at least one Tensor"),
    (lambda: optim.SGD(P), TypeError, "SGD: params is a Parameter: need an iterable of Tensors"),
    (lambda: optim.Adam(3), TypeError, "Adam: params is a int: need an iterable of Tensors"),
    (lambda: optim.Adam([P, 1.0]), TypeError, "Adam: parameter 1 is a float: need a Tensor"),
    (
        lambda: optim.SGD([ndl.init.ones(3, dtype="int64")]),
        DTypeError,
        "SGD: parameter 0 is int64: need float32 or float64",
    ),
    (lambda: optim.SGD([P * 2.0]), ValueError, r"SGD: parameter 0 \(3,\) is the result of an op"),
    (lambda: optim.SGD([P], lr=-0.1), ValueError, r"SGD: lr: got -0\.1: need a finite number >= 0"),
    (
        lambda: optim.SGD([P], lr=math.inf),
        ValueError,
        "SGD: lr: got inf: need a finite number >= 0",
    ),
    (lambda: optim.SGD([P], lr="1"), TypeError, "SGD: lr: got '1': need a finite number >= 0"),
    (
        lambda: optim.SGD([P], momentum=1.0),
        ValueError,
        r"SGD: momentum: got 1\.0: need a number in \[0, 1\)",
    ),
    (
        lambda: optim.SGD([P], nesterov=True),
        ValueError,
        r"SGD: nesterov without momentum: got momentum 0\.0: need momentum > 0",
    ),
    (
        lambda: optim.SGD([P], nesterov="no"),
        TypeError,
        "SGD: nesterov: got 'no': need True or False",
    ),
    (lambda: optim.SGD([P], weight_decay=-1), ValueError, "SGD: weight_decay: got -1: need a fin"),
    (
        lambda: optim.Adam([P], lr=math.nan),
        ValueError,
        "Adam: lr: got nan: need a finite number >= 0",
    ),
    (
        lambda: optim.Adam([P], beta1=1.0),
        ValueError,
        r"Adam: beta1: got 1\.0: need a number in \[0, 1\)",
    ),
    (lambda: optim.Adam([P], beta2=-0.1), ValueError, r"Adam: beta2: got -0\.1: need a number in"),
    (
        lambda: optim.Adam([P], eps=-1e-8),
        ValueError,
        "Adam: eps: got -1e-08: need a finite number >= 0",
    ),
    (lambda: optim.Adam([P], weight_decay=None), TypeError, "Adam: weight_decay: got None: need a"),
    (
        lambda: optim.SGD([P]).clip_grad_norm(-1.0),
        ValueError,
        r"SGD\.clip_grad_norm: max_norm: got -1\.0: need a finite number >= 0",
    ),
    (
        lambda: optim.Optimizer([P])._update([], [], [], 1),
        NotImplementedError,
        "Optimizer: _update is not defined",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD, ids=[c[2] for c in BAD])
def test_bad_arguments(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_bad_gradients_change_nothing(make: Callable[..., optim.Optimizer]) -> None:
    good, bad = (nn.Parameter(np.ones(3), dtype="float32") for _ in range(2))
    opt = make([good, bad])
    set_grad(good, np.ones(3))
    set_grad(bad, np.ones(4))
    text = r"shapes differ: parameter 1 is \(3,\), its grad \(4,\): need equal shapes"
    with pytest.raises(ShapeError, match=text):
        opt.step()
    with pytest.raises(ShapeError, match=text):
        opt.clip_grad_norm()
    assert_array_equal(good.numpy(), np.ones(3))
    assert opt.steps == [0, 0]


@pytest.mark.skipif(ndl.cpu() == ndl.cpu_numpy(), reason="NEEDLE_BACKEND=np: one device only")
def test_a_gradient_on_another_device(make: Callable[..., optim.Optimizer]) -> None:
    p = nn.Parameter(np.ones(3), dtype="float32")
    p.grad = Tensor(np.ones(3), device=ndl.cpu_numpy(), dtype="float32")
    with pytest.raises(DeviceError, match=r"parameter 0 is on cpu\(\), its grad on cpu_numpy\(\)"):
        make([p]).step()


def test_a_gradient_that_is_no_tensor(make: Callable[..., optim.Optimizer]) -> None:
    p = nn.Parameter(np.ones(3), dtype="float32")
    for wrong in (np.ones(3), 1.0):
        p.grad = wrong  # type: ignore[assignment]
        with pytest.raises(TypeError, match=r"the grad of parameter 0 is a .*: need a Tensor"):
            make([p]).step()


def test_repr_and_iterators() -> None:
    model = nn.Linear(2, 2)
    assert repr(optim.SGD(p for p in model.parameters())) == (
        "SGD(2 parameters, lr=0.01, momentum=0.0, weight_decay=0.0)"
    )
    assert repr(optim.SGD(model.parameters(), momentum=0.9, nesterov=True)) == (
        "SGD(2 parameters, lr=0.01, momentum=0.9, weight_decay=0.0, nesterov=True)"
    )


def test_one_kernel_call_updates_all_parameters(make: Callable[..., optim.Optimizer]) -> None:
    params = [nn.Parameter(np.ones(n), dtype="float32") for n in (3, 5, 7)]
    for p in params:
        set_grad(p, np.ones(p.shape))
    opt = make(params)
    ndl.backend_ndarray.reset_counters()
    opt.step()
    counters = ndl.backend_ndarray.counters()
    assert sum(counters.values()) == 1


@pytest.mark.parametrize("kind", [optim.Adam, lambda p: optim.SGD(p, momentum=0.9)])
def test_state_follows_a_model_to_another_dtype(kind: Callable[..., Any], device: Any) -> None:
    model = nn.Linear(2, 2, device=device)
    moved = kind(model.parameters())
    model.to("float64")
    other = kind(nn.Linear(2, 2, device=device, dtype="float64").parameters())
    moved.load_state_dict(other.state_dict())
    other.load_state_dict(moved.state_dict())


@pytest.mark.parametrize("kind", [optim.Adam, optim.SGD])
def test_a_step_that_fails_does_not_count(
    kind: Callable[..., Any], device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = parameter(np.ones(3), device)
    set_grad(p, np.ones(3))
    opt = kind([p])

    def fail(*args: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(opt, "_update", fail)
        with pytest.raises(MemoryError):
            opt.step()
    assert opt.steps == [0]
    opt.step()
    assert opt.steps == [1]


def test_an_optimizer_s_state_that_is_none(device: Any) -> None:
    with pytest.raises(TypeError, match=r"Adam.load_state_dict: state is a NoneType: need what"):
        optim.Adam([parameter(np.ones(3), device)]).load_state_dict(None)  # type: ignore[arg-type]
