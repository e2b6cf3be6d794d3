"""Module: what it finds, names, saves, loads, moves and prints."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import needle as ndl
from needle import Tensor, nn
from needle.backend_ndarray import DeviceError, DTypeError, ShapeError


class Nest(nn.Module):
    """Parameters and modules in every place where they are found, and decoys in others."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(ndl.init.ones(2))
        self.layers = [nn.Linear(2, 3), (nn.Linear(3, 1, bias=False), "text")]
        self.table = {"head": nn.BatchNorm1d(1), "extra": [nn.Parameter(ndl.init.zeros(1))]}
        self.nothing = None
        self.plain = Tensor([1.0, 2.0])  # neither a parameter nor a buffer


NEST_NAMES = [
    "w",
    "layers.0.weight",
    "layers.0.bias",
    "layers.1.0.weight",
    "table.head.weight",
    "table.head.bias",
    "table.extra.0",
]


def test_parameters_are_found_in_attributes_lists_tuples_and_dicts() -> None:
    model = Nest()
    named = model.named_parameters()
    assert [name for name, _ in named] == NEST_NAMES
    assert [p for _, p in named] == model.parameters()
    assert isinstance(model.parameters(), list)
    assert dict(named)["layers.1.0.weight"] is model.layers[1][0].weight


def test_buffers_are_saved_but_not_trained() -> None:
    model = Nest()
    buffers = [name for name, _ in model.named_buffers()]
    assert buffers == ["table.head.running_mean", "table.head.running_var"]
    assert sorted(model.state_dict()) == sorted(NEST_NAMES + buffers)
    norm = nn.BatchNorm1d(3)
    assert type(norm.running_mean) is Tensor
    assert not norm.running_mean.requires_grad


def test_shared_parameters_and_modules_are_listed_once() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    other = nn.Linear(3, 3, bias=False)
    other.weight = layer.weight
    tied = nn.Sequential(model, other)
    assert tied.parameters() == [layer.weight, layer.bias]
    assert [name for name, _ in tied.named_modules()] == [
        "",
        "modules.0",
        "modules.0.modules.0",
        "modules.0.modules.1",
        "modules.1",
    ]
    # The state has all names, so that it also fits a model that does not share.
    assert "modules.0.modules.2.weight" in tied.state_dict()
    assert "modules.1.weight" in tied.state_dict()
    assert model.children() == [layer, model.modules[1]]


def test_a_module_may_point_to_its_parent() -> None:
    parent, child = nn.Module(), nn.Linear(2, 2)
    parent.child = child
    child.parent = parent
    assert [name for name, _ in parent.named_parameters()] == ["child.weight", "child.bias"]
    assert "Linear" in repr(parent)
    assert not parent.eval().child.training


def test_a_tensor_assigned_over_a_parameter_takes_its_place(device: Any) -> None:
    model = nn.RNN(2, 3, 2, device=device)
    weight = Tensor(np.full((3, 3), 0.1, "float32"), device=device)
    model.rnn_cells[1].W_ih = weight
    assert any(p is weight for p in model.parameters())
    assert_array_equal(model.state_dict()["rnn_cells.1.W_ih"].numpy(), weight.numpy())
    output, _ = model(ndl.init.ones(4, 2, 2, device=device))
    output.sum().backward()
    assert weight.grad is not None
    assert weight.grad.shape == (3, 3)


def test_train_and_eval_reach_the_whole_tree_and_return_the_module() -> None:
    model = nn.Sequential(nn.Residual(nn.Sequential(nn.Dropout(0.5))), nn.BatchNorm1d(3))
    assert all(module.training for _, module in model.named_modules())
    assert model.eval() is model
    assert not any(module.training for _, module in model.named_modules())
    assert model.train() is model
    assert all(module.training for _, module in model.named_modules())
    model.train(False)
    assert not model.modules[0].fn.modules[0].training


def test_modules_without_parameters_take_device_and_dtype() -> None:
    at = {"device": ndl.cpu(), "dtype": "float64"}
    for kind in (nn.Identity, nn.Flatten, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Dropout, nn.SoftmaxLoss):
        assert kind(**at).parameters() == []
    assert nn.Sequential(nn.ReLU(), **at).parameters() == []
    assert nn.Residual(nn.ReLU(), **at).parameters() == []


def test_a_subclass_need_not_call_init() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Linear(2, 2)
            self.w = nn.Parameter(ndl.init.ones(1))

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.layer(x) * scale

    model = Small()
    assert len(model.parameters()) == 3
    x = ndl.init.ones(1, 2)
    assert_array_equal(model(x, scale=2.0).numpy(), (model.forward(x) * 2.0).numpy())


def test_forward_must_be_defined() -> None:
    with pytest.raises(NotImplementedError, match="Module: forward is not defined"):
        nn.Module()(1)


# ---- state ------------------------------------------------------------------------------------


def test_state_dict_round_trip_on_every_device(device: Any) -> None:
    a = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LSTM(4, 2))
    b = nn.Sequential(
        nn.Linear(3, 4, device=device),
        nn.BatchNorm1d(4, device=device),
        nn.LSTM(4, 2, device=device),
    )
    b.load_state_dict(a.state_dict())
    for name, value in a.state_dict().items():
        loaded = b.state_dict()[name]
        assert_array_equal(loaded.numpy(), value.numpy())
        assert loaded.device == device
    assert "modules.2.lstm_cells.0.W_ih" in a.state_dict()


def test_state_dict_and_loading_copy() -> None:
    model = nn.Linear(2, 2)
    state = {
        name: np.full(value.shape, 3.0, "float32") for name, value in model.state_dict().items()
    }
    kept = model.weight
    model.load_state_dict(state)
    state["weight"][:] = 5.0
    assert model.weight is kept
    assert_array_equal(model.weight.numpy(), np.full((2, 2), 3.0))
    saved = model.state_dict()
    ndl.optim.SGD(model.parameters(), lr=1.0)
    model.weight.grad = ndl.init.ones(2, 2)
    ndl.optim.SGD([model.weight], lr=1.0).step()
    assert_array_equal(model.weight.numpy(), np.full((2, 2), 2.0))
    assert_array_equal(saved["weight"].numpy(), np.full((2, 2), 3.0))


def test_loading_takes_tensors_ndarrays_and_numpy() -> None:
    model = nn.Linear(1, 1)
    weight, bias = np.full((1, 1), 2.0, "float32"), ndl.init.ones(1, 1)
    model.load_state_dict({"weight": ndl.backend_ndarray.NDArray(weight), "bias": bias})
    assert model.weight.numpy() == 2.0
    assert model.bias is not None
    assert model.bias.requires_grad
    assert model.bias.numpy() == 1.0


BAD_STATES = [
    ({"bias": None}, KeyError, r"missing \['bias'\], unexpected \[\]: need exactly the names"),
    ({"extra": np.zeros(1, "float32")}, KeyError, r"missing \[\], unexpected \['extra'\]"),
    (
        {"bias": np.zeros((4, 1), "float32")},
        ShapeError,
        r"load_state_dict: bias is \(4, 1\): need \(1, 4\)",
    ),
    (
        {"bias": np.zeros((1, 4), "float64")},
        DTypeError,
        "load_state_dict: bias is float64: need float32",
    ),
    ({"bias": [0.0] * 4}, TypeError, "bias is a list: need a Tensor, NDArray or NumPy array"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD_STATES)
def test_a_bad_state_changes_nothing(
    change: dict[str, Any], error: type[Exception], text: str
) -> None:
    model = nn.Linear(3, 4)
    before = model.state_dict()
    state: dict[str, Any] = {name: np.zeros(v.shape, "float32") for name, v in before.items()}
    state.update(change)
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(error, match=text):
        model.load_state_dict(state)
    for name, value in model.state_dict().items():
        assert_array_equal(value.numpy(), before[name].numpy())


def test_two_tensors_of_one_name_cannot_be_saved() -> None:
    model = nn.Module()
    model.parts = {"a.b": nn.Linear(1, 1), "a": {"b": nn.Linear(1, 1)}}
    with pytest.raises(KeyError, match=r"two tensors are named parts\.a\.b\.weight"):
        model.state_dict()


# ---- to ---------------------------------------------------------------------------------------


def test_to_moves_parameters_buffers_and_gradients(device: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model(ndl.init.ones(2, 3)).sum().backward()
    weight, values = model.modules[0].weight, model.state_dict()
    assert model.to(device, "float64") is model
    assert model.modules[0].weight is weight
    for name, tensor in model.named_parameters() + model.named_buffers():
        assert tensor.device == device
        assert tensor.dtype == "float64"
        assert_array_equal(tensor.numpy(), values[name].numpy())
    assert weight.grad is not None
    assert weight.grad.dtype == "float64"
    assert weight.grad.device == device
    x = ndl.init.ones(2, 3, device=device, dtype="float64")
    assert model(x).dtype == "float64"


def test_to_takes_one_of_device_and_dtype(device: Any) -> None:
    assert nn.Linear(2, 2).to("float64").weight.dtype == "float64"
    assert nn.Linear(2, 2).to(np.float64).weight.dtype == "float64"
    assert nn.Linear(2, 2).to(dtype="float64").weight.dtype == "float64"
    assert nn.Linear(2, 2).to(device).weight.device == device
    recurrent = nn.LSTM(2, 3, 2).to(device, "float64")
    x = ndl.init.ones(2, 1, 2, device=device, dtype="float64")
    assert recurrent(x)[0].dtype == "float64"  # the states it makes moved along


def test_to_rejects_other_types() -> None:
    with pytest.raises(DTypeError, match=r"Module\.to: dtype is int32: need float32 or float64"):
        nn.Linear(2, 2).to("int32")
    with pytest.raises(DTypeError, match=r"Module\.to: dtype is 'tpu': need float32 or float64"):
        nn.Linear(2, 2).to(dtype="tpu")


def test_to_names_what_is_no_device() -> None:
    for wrong in ("cpu", "cuda:0", 5):
        text = rf"^Module\.to: device: got {wrong!r}: need a device such as needle\.cpu\(\)$"
        for call in (nn.Linear(2, 2).to, nn.ReLU().to):
            with pytest.raises(DeviceError, match=text):
                call(wrong)
    with pytest.raises(DeviceError, match=r"Module\.to: device: got 'float64': need a device such"):
        nn.Linear(2, 2).to("float64", "float32")


# ---- printing, memory -------------------------------------------------------------------------


def test_repr_shows_the_tree_and_the_settings() -> None:
    model = nn.Sequential(
        nn.Conv(3, 16, 7, 4),
        nn.BatchNorm2d(16, relu=True),
        nn.Residual(nn.Linear(4, 4)),
        nn.Dropout(),
    )
    assert repr(model) == (
        "Sequential(\n"
        "  (modules.0): Conv(3, 16, kernel_size=7, stride=4, padding=3, bias=True)\n"
        "  (modules.1): BatchNorm2d(16, eps=1e-05, momentum=0.1, relu=True)\n"
        "  (modules.2): Residual(\n"
        "    (fn): Linear(in_features=4, out_features=4, bias=True)\n"
        "  )\n"
        "  (modules.3): Dropout(p=0.5)\n"
        ")"
    )
    assert repr(nn.RNN(2, 3, 1, nonlinearity="relu")) == (
        "RNN(\n  (rnn_cells.0): RNNCell(2, 3, bias=True, nonlinearity='relu')\n)"
    )
    assert repr(nn.LSTMCell(2, 3, bias=False)) == "LSTMCell(2, 3, bias=False)"
    assert repr(nn.Embedding(5, 2)) == "Embedding(5, 2)"
    assert repr(nn.LayerNorm1d(5)) == "LayerNorm1d(5, eps=1e-05)"
    assert repr(nn.ReLU()) == "ReLU()"


def test_modules_die_without_the_cycle_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        before = ndl.autograd.TENSOR_COUNTER
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.RNN(4, 2))
        assert before < ndl.autograd.TENSOR_COUNTER
        del model
        assert before == ndl.autograd.TENSOR_COUNTER
    finally:
        gc.enable()


def test_models_copy_and_pickle() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.BatchNorm1d(3, relu=True), layer)
    x = ndl.init.randn(4, 3)
    want = model.eval()(x).numpy()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_array_equal(twin(x).numpy(), want)
        assert len(twin.parameters()) == 4  # the shared layer is shared in the copy too
        assert isinstance(twin.modules[0].weight, nn.Parameter)
        assert twin.modules[0] is twin.modules[2]
        twin.load_state_dict({n: v * 0.0 for n, v in twin.state_dict().items()})
    assert_array_equal(model(x).numpy(), want)


def test_a_dtype_is_for_floats(device: Any) -> None:
    class Ids(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(ndl.init.ones(2, device=device))
            ids = Tensor(np.array([2**24 + 1, 3]), device=device, dtype="int64")
            self.register_buffer("ids", ids)
            self.register_buffer("mask", Tensor(np.array([1, 0]), device=device, dtype="bool"))

    model = Ids().to("float64")
    assert [model.w.dtype, model.ids.dtype, model.mask.dtype] == ["float64", "int64", "bool"]
    assert_array_equal(model.ids.numpy(), [2**24 + 1, 3])
    model.load_state_dict(Ids().to("float64").state_dict())


def test_a_state_that_is_none() -> None:
    with pytest.raises(TypeError, match="load_state_dict: state is a NoneType: need what state_di"):
        nn.Linear(2, 2).load_state_dict(None)  # type: ignore[arg-type]
