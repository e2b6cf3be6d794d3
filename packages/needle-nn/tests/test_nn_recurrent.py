"""Recurrent layers: missing states, replaced weights, sequences in pieces."""

from __future__ import annotations

from typing import Any

import nn_oracles as oracle
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import needle as ndl
from needle import Tensor, nn


def tensor(x: Any, device: Any) -> Tensor:
    return Tensor(x, device=device, dtype="float64")


def params(module: nn.Module) -> oracle.Params:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def test_a_missing_state_is_zeros(device: Any) -> None:
    x = np.random.randn(3, 2, 4)
    at = {"device": device, "dtype": "float64"}
    h0 = np.zeros((2, 2, 5))
    rnn = nn.RNN(4, 5, 2, **at)
    for got, want in zip(rnn(tensor(x, device)), oracle.rnn(x, h0, params(rnn)), strict=True):
        assert_allclose(got.numpy(), want, rtol=1e-12)
    lstm = nn.LSTM(4, 5, 2, **at)
    wanted = oracle.lstm(x, h0, h0, params(lstm))
    for state in (None, (None, None), (tensor(h0, device), None)):
        results = oracle.flat(lstm(tensor(x, device), state))
        for got, want in zip(results, wanted, strict=True):
            assert_allclose(got.numpy(), want, rtol=1e-12)
    rnn_cell, lstm_cell = nn.RNNCell(4, 5, **at), nn.LSTMCell(4, 5, **at)
    h = rnn_cell(tensor(x[0], device))
    assert_allclose(h.numpy(), oracle.rnn_cell(x[0], h0[0], params(rnn_cell)), rtol=1e-12)
    h, c = lstm_cell(tensor(x[0], device))
    want_h, want_c = oracle.lstm_cell(x[0], h0[0], h0[0], params(lstm_cell))
    assert_allclose(h.numpy(), want_h, rtol=1e-12)
    assert_allclose(c.numpy(), want_c, rtol=1e-12)


@pytest.mark.parametrize("make", [nn.RNN, nn.LSTM], ids=["RNN", "LSTM"])
@pytest.mark.parametrize("retain", [True, False])
def test_one_step_from_nothing_gives_w_hh_a_zero_gradient(
    make: Any, retain: bool, device: Any
) -> None:
    model = make(3, 4, 2, device=device)
    output, _ = model(ndl.init.ones(1, 2, 3, device=device))
    output.sum().backward(retain_graph=retain)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.shape
        if name.endswith("W_hh"):
            assert_array_equal(parameter.grad.numpy(), np.zeros(parameter.shape))
        else:
            assert np.abs(parameter.grad.numpy()).max() > 0


@pytest.mark.parametrize("make", [nn.RNNCell, nn.LSTMCell], ids=["RNNCell", "LSTMCell"])
def test_a_cell_from_nothing_gives_w_hh_a_zero_gradient(make: Any, device: Any) -> None:
    cell = make(3, 4, device=device)
    oracle.flat(cell(ndl.init.ones(2, 3, device=device)))[0].sum().backward()
    assert cell.W_hh.grad is not None
    assert_array_equal(cell.W_hh.grad.numpy(), np.zeros(cell.W_hh.shape))


def test_only_the_last_state_still_gives_all_gradients(device: Any) -> None:
    model = nn.LSTM(3, 4, 2, device=device)
    _, (_, c) = model(ndl.init.ones(3, 2, 3, device=device))
    c.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("name", ["W_ih", "W_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_replaced_weights_take_effect(kind: str, name: str, device: Any) -> None:
    make = {"rnn": nn.RNN, "lstm": nn.LSTM}[kind]
    model = make(3, 2, 2, device=device, dtype="float64")
    x = np.random.randn(3, 2, 3)
    before = model(tensor(x, device))[0].numpy()
    for k, cell in enumerate(getattr(model, f"{kind}_cells")):
        values = np.random.randn(*getattr(cell, name).shape)
        setattr(cell, name, tensor(values, device))
        assert_array_equal(params(model)[f"{kind}_cells.{k}.{name}"], values)
    got = model(tensor(x, device))[0].numpy()
    h0 = np.zeros((2, 2, 2))
    if kind == "rnn":
        want = oracle.rnn(x, h0, params(model))[0]
    else:
        want = oracle.lstm(x, h0, h0, params(model))[0]
    assert_allclose(got, want, rtol=1e-12)
    assert np.abs(got - before).max() > 1e-3


def test_a_replaced_cell_takes_effect(device: Any) -> None:
    class Twice(nn.RNNCell):
        def unroll(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
            output, h = super().unroll(x, h0)
            return output * 2.0, h

    model = nn.RNN(3, 4, device=device)
    x = ndl.init.ones(2, 1, 3, device=device)
    before = model(x)[0].numpy()
    twice = Twice(3, 4, device=device)
    twice.load_state_dict(model.rnn_cells[0].state_dict())
    model.rnn_cells[0] = twice
    assert_array_equal(model(x)[0].numpy(), 2 * before)


def test_a_sequence_in_pieces_is_the_sequence(device: Any) -> None:
    x = np.random.randn(5, 2, 3)
    model = nn.LSTM(3, 4, 2, device=device, dtype="float64")
    whole, (h, c) = model(tensor(x, device))
    first, state = model(tensor(x[:2], device))
    second, (h2, c2) = model(tensor(x[2:], device), state)
    assert_allclose(np.concatenate([first.numpy(), second.numpy()]), whole.numpy(), rtol=1e-12)
    assert_allclose(h2.numpy(), h.numpy(), rtol=1e-12)
    assert_allclose(c2.numpy(), c.numpy(), rtol=1e-12)


def test_results_are_plain_tuples_of_the_stated_shapes() -> None:
    output, h = nn.RNN(3, 4, 2)(ndl.init.ones(5, 2, 3))
    assert (output.shape, h.shape) == ((5, 2, 4), (2, 2, 4))
    result = nn.LSTM(3, 4, 2)(ndl.init.ones(5, 2, 3))
    assert type(result) is tuple
    assert type(result[1]) is tuple
    assert [t.shape for t in oracle.flat(result)] == [(5, 2, 4), (2, 2, 4), (2, 2, 4)]
    assert nn.RNNCell(3, 4)(ndl.init.ones(2, 3)).shape == (2, 4)


def test_steps_leave_no_values_behind(device: Any) -> None:
    model = nn.Sequential(nn.Embedding(5, 3, device=device))
    rnn, head = nn.LSTM(3, 4, 2, device=device), nn.Linear(4, 5, device=device)
    parameters = model.parameters() + rnn.parameters() + head.parameters()
    opt = ndl.optim.Adam(parameters)
    ids = Tensor(np.zeros((3, 2)), device=device, dtype="float32", requires_grad=False)
    labels = Tensor(np.zeros(6), device=device, dtype="float32", requires_grad=False)
    state, live = None, []
    for _ in range(4):
        opt.reset_grad()
        output, state = rnn(model(ids), state)
        state = tuple(part.detach() for part in state)
        loss = nn.SoftmaxLoss()(head(output.reshape((6, 4))), labels)
        loss.backward(retain_graph=False)
        opt.clip_grad_norm(0.1)
        opt.step()
        del output, loss
        live.append(ndl.autograd.TENSOR_COUNTER)
    assert live[1:] == [live[1]] * 3


# ---- dropout between layers ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM])
def test_dropout_lies_between_layers_and_only_in_training(kind):
    model, x = kind(3, 4, num_layers=3, dropout=0.4), Tensor(np.random.randn(5, 2, 3))
    cells = model.rnn_cells if kind is nn.RNN else model.lstm_cells

    def by_hand(drop):
        output = x
        for k, cell in enumerate(cells):
            if k > 0 and drop:
                keep = np.random.rand(*output.shape) <= 0.6
                output = output * Tensor(keep / 0.6, dtype="float32")
            zeros = [Tensor(np.zeros((2, 4)))] * (1 if kind is nn.RNN else 2)
            output = cell.unroll(output, *zeros)[0]
        return output.numpy()

    np.random.seed(7)
    found = model(x)[0].numpy()
    np.random.seed(7)
    np.testing.assert_allclose(found, by_hand(drop=True), rtol=1e-5, atol=1e-6)
    model.eval()
    before = np.random.get_state()[2]
    np.testing.assert_allclose(model(x)[0].numpy(), by_hand(drop=False), rtol=1e-5, atol=1e-6)
    assert np.random.get_state()[2] == before


def test_without_dropout_nothing_is_drawn():
    model = nn.LSTM(3, 4, num_layers=2)
    before = np.random.get_state()[2]
    model(Tensor(np.random.RandomState(0).randn(5, 2, 3)))
    assert np.random.get_state()[2] == before


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM])
def test_dropout_out_of_range(kind):
    text = rf"{kind.__name__}: dropout: got 1\.5: need a number in \[0, 1\]"
    with pytest.raises(ValueError, match=text):
        kind(3, 4, dropout=1.5)


def test_a_tensor_tuple_is_a_pair(device: Any) -> None:
    model = nn.LSTM(3, 4, device=device, dtype="float64")
    x, h = (tensor(np.ones(s), device) for s in ((2, 5, 3), (2, 1, 5, 4)))
    pair = ndl.ops.split(h, 0)
    (_, (a, b)), (_, (c, d)) = model(x, pair), model(x, (pair[0], pair[1]))
    assert_array_equal(a.numpy(), c.numpy())
    assert_array_equal(b.numpy(), d.numpy())
