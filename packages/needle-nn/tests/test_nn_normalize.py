"""BatchNorm's two modes and its running statistics, dropout's mask."""

from __future__ import annotations

from typing import Any

import nn_oracles as oracle
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import needle as ndl
from needle import Tensor, nn


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 2)])
def test_running_statistics_follow_the_biased_batch(
    shape: tuple[int, ...], momentum: float, device: Any
) -> None:
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    norm = kind(3, momentum=momentum, device=device, dtype="float64")
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(4):
        x = np.random.randn(*shape) * 3 + 1
        norm(Tensor(x, device=device, dtype="float64"))
        batch_mean, batch_var = oracle.channel_statistics(x)
        mean = (1 - momentum) * mean + momentum * batch_mean
        var = (1 - momentum) * var + momentum * batch_var
        assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-12)
        assert_allclose(norm.running_var.numpy(), var, rtol=1e-12)
    assert norm.running_mean.dtype == "float64"
    assert norm.running_mean.device == device
    assert not norm.running_var.requires_grad


def test_evaluation_reads_and_keeps_the_running_statistics(device: Any) -> None:
    norm = nn.BatchNorm1d(3, device=device)
    for _ in range(3):
        norm(Tensor(np.random.randn(5, 3), device=device, dtype="float32"))
    before = norm.state_dict()
    norm.eval()
    x = np.random.randn(4, 3).astype("float32")
    y = norm(Tensor(x, device=device)).numpy()
    mean, var = before["running_mean"].numpy(), before["running_var"].numpy()
    assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-5, atol=1e-5)
    assert_array_equal(norm.running_mean.numpy(), mean)
    # One row alone gives what it gave in the batch.
    assert_allclose(norm(Tensor(x[:1], device=device)).numpy(), y[:1], rtol=1e-6, atol=1e-6)


def test_an_assigned_running_statistic_takes_effect(device: Any) -> None:
    norm = nn.BatchNorm1d(2, eps=0.0, device=device).eval()
    norm.running_mean = Tensor([1.0, 2.0], device=device, dtype="float32", requires_grad=False)
    y = norm(Tensor([[1.0, 3.0]], device=device, dtype="float32")).numpy()
    assert_array_equal(y, [[0.0, 1.0]])
    assert_array_equal(norm.state_dict()["running_mean"].numpy(), [1.0, 2.0])


def test_one_value_per_channel_gives_the_bias(device: Any) -> None:
    norm = nn.BatchNorm1d(3, device=device)
    norm.bias = nn.Parameter(Tensor([1.0, 2.0, 3.0], device=device, dtype="float32"))
    x = Tensor([[5.0, -7.0, 9.0]], device=device, dtype="float32")
    y = norm(x)
    assert_array_equal(y.numpy(), [[1.0, 2.0, 3.0]])
    assert_allclose(norm.running_mean.numpy(), [0.5, -0.7, 0.9], rtol=1e-6)
    assert_allclose(norm.running_var.numpy(), [0.9, 0.9, 0.9], rtol=1e-6)
    y.sum().backward()
    assert x.grad is not None
    assert_array_equal(x.grad.numpy(), np.zeros((1, 3)))


def test_statistics_keep_no_graph(device: Any) -> None:
    norm = nn.BatchNorm2d(3, device=device)
    x = Tensor(np.ones((2, 3, 2, 2), "float32"), device=device, requires_grad=False)
    norm(x)
    live = ndl.autograd.TENSOR_COUNTER
    for _ in range(5):
        norm(x)
    assert live == ndl.autograd.TENSOR_COUNTER
    assert norm.running_mean.is_leaf()


def test_statistics_follow_under_no_grad(device: Any) -> None:
    norm = nn.BatchNorm1d(1, device=device)
    with ndl.no_grad():
        norm(Tensor([[1.0], [3.0]], device=device, dtype="float32"))
    assert_allclose(norm.running_mean.numpy(), [0.2], rtol=1e-6)


def test_integer_statistics_of_a_permuted_input(device: Any) -> None:
    """Channels last in memory, channels first by shape: what Conv hands to BatchNorm2d."""
    x = np.random.randn(2, 4, 5, 3)
    base = Tensor(x, device=device, dtype="float64")
    view = base.transpose((2, 3)).transpose((1, 2))
    norm = nn.BatchNorm2d(3, device=device, dtype="float64")
    want = oracle.batch_norm(x.transpose(0, 3, 1, 2), np.ones(3), np.zeros(3))
    assert_allclose(norm(view).numpy(), want, rtol=1e-12, atol=1e-12)


# ---- dropout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_dropout_keeps_where_the_draw_is_at_most_1_minus_p(p: float, device: Any) -> None:
    x = np.random.randn(40, 5).astype("float32")
    np.random.seed(2)
    y = nn.Dropout(p)(Tensor(x, device=device))
    after = np.random.rand()
    np.random.seed(2)
    keep = np.random.rand(40, 5) <= 1 - p
    assert np.random.rand() == after
    assert_allclose(y.numpy(), np.where(keep, x / max(1 - p, 1e-9), 0.0), rtol=1e-6)
    assert y.dtype == "float32"


def test_dropout_in_evaluation_draws_nothing_and_returns_x(device: Any) -> None:
    x = ndl.init.ones(3, 3, device=device)
    np.random.seed(2)
    want = np.random.rand()
    np.random.seed(2)
    assert nn.Dropout(0.9).eval()(x) is x
    assert np.random.rand() == want


def test_dropout_keeps_the_mean() -> None:
    y = nn.Dropout(0.3)(ndl.init.ones(100, 100)).numpy()
    # 10,000 draws of variance p / (1 - p) = 0.43: five standard deviations are 0.033.
    assert abs(y.mean() - 1) < 0.033
