"""Training steps recorded as CUDA graphs: the same as steps that are not."""

import numpy as np
import pytest

import needle as ndl
from needle import backend_ndarray as nd
from needle import nn, optim
from needle.backend_ndarray.testing import array_devices


@pytest.fixture(params=array_devices()[-1:])
def cuda(request):
    return request.param.device


OPTIMIZERS = {
    "adam": lambda params: optim.Adam(params, weight_decay=0.01),
    "momentum": lambda params: optim.SGD(params, lr=0.1, momentum=0.9),
    "sgd": lambda params: optim.SGD(params, lr=0.1),
}


def train(cuda, optimizer, *, graph, clip=None, sizes=(16,) * 8):
    """Losses, weights and running mean after steps with a learning rate that changes."""
    np.random.seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8, device=cuda), nn.BatchNorm1d(8, device=cuda), nn.Linear(8, 3, device=cuda)
    )
    opt, loss_fn = OPTIMIZERS[optimizer](model.parameters()), nn.SoftmaxLoss()

    def step(x, y):
        opt.reset_grad()
        loss = loss_fn(model(x), y)
        loss.backward(retain_graph=False)
        if clip is not None:
            opt.clip_grad_norm(clip)
        opt.step()
        return loss

    run, rng, losses = ndl.cuda_graph(step) if graph else step, np.random.default_rng(1), []
    for i, size in enumerate(sizes):
        opt.lr *= 0.9
        x = ndl.Tensor(rng.normal(size=(size, 6)), device=cuda, requires_grad=False)
        y = ndl.Tensor(rng.integers(0, 3, size), device=cuda, requires_grad=False)
        losses.append(run(x, y).item())
        assert not graph or run.recorded == (i >= 2)
    state = [p.numpy() for p in model.parameters()] + [model.modules[1].running_mean.numpy()]
    return losses, state, opt.steps


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_recorded_step_is_the_same_to_the_bit(cuda, optimizer):
    plain = train(cuda, optimizer, graph=False)
    recorded = train(cuda, optimizer, graph=True)
    assert plain[0] == recorded[0]
    for a, b in zip(plain[1], recorded[1], strict=True):
        assert np.array_equal(a, b)
    assert plain[2] == recorded[2]


def test_batches_of_another_size_run_as_they_are(cuda):
    sizes = (16, 16, 16, 16, 5, 16, 16)
    plain = train(cuda, "adam", graph=False, sizes=sizes)
    recorded = train(cuda, "adam", graph=True, sizes=sizes)
    assert plain[0] == recorded[0]
    assert plain[2] == recorded[2] == [7] * 6


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_clipping_is_recorded(cuda, clip):
    """The factor is computed in float64 on either side, and rounded to float32 on one."""
    plain = train(cuda, "sgd", graph=False, clip=clip)
    recorded = train(cuda, "sgd", graph=True, clip=clip)
    np.testing.assert_allclose(plain[0], recorded[0], rtol=1e-5)
    for a, b in zip(plain[1], recorded[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_norm_is_a_tensor_while_recording(cuda):
    w = ndl.Tensor([3.0, 4.0], device=cuda)
    opt = optim.SGD([w], lr=0.0)
    w.grad = ndl.Tensor([3.0, 4.0], device=cuda)
    assert opt.clip_grad_norm(100.0) == pytest.approx(5.0)
    with nd.CUDAGraph() as graph:
        norm = opt.clip_grad_norm(1.0)
    graph.replay()
    assert norm.item() == pytest.approx(5.0)
    np.testing.assert_allclose(w.grad.numpy(), [0.6, 0.8], rtol=1e-5)


def test_a_recurrent_state_is_carried_along(cuda):
    np.random.seed(0)
    lstm = nn.LSTM(3, 4, device=cuda)
    step = ndl.cuda_graph(lambda x, state: lstm(x, state), warmup=1)
    x = ndl.init.randn(5, 2, 3, device=cuda, requires_grad=False)
    got = want = None
    with ndl.no_grad():
        for _ in range(4):
            out, got = step(x, got) if got is not None else lstm(x)
            expected, want = lstm(x, want)
            np.testing.assert_array_equal(out.numpy(), expected.numpy())
    assert step.recorded


def test_dropout_cannot_be_recorded(cuda):
    model = nn.Dropout(0.5)
    step = ndl.cuda_graph(model, warmup=0)
    with pytest.raises(ndl.DeviceError, match="while a graph is recorded: got a copy to the dev"):
        step(ndl.ones(3, 3, device=cuda))
    assert not step.recorded


def test_wrong_labels_are_found_by_the_kernel(cuda):
    """Without a look at them: fractions come up as ids out of range."""
    logits = ndl.zeros(2, 3, device=cuda)
    for labels in ([0.0, 3.0], [0.0, 0.5]):
        loss = ndl.softmax_cross_entropy(logits, ndl.Tensor(labels, device=cuda))
        with pytest.raises(IndexError, match="softmax_cross_entropy: id is out of range: got"):
            loss.item()


def test_refused(cuda):
    with pytest.raises(ValueError, match=r"cuda_graph: warmup: got -1: need >= 0"):
        ndl.cuda_graph(lambda: None, warmup=-1)
    step = ndl.cuda_graph(lambda *args: args)
    with pytest.raises(TypeError, match="cuda_graph: not an array: got float: need Tensors"):
        step(1.5)
    with pytest.raises(ndl.DeviceError, match=r"an argument is elsewhere: got one on cpu.*need cu"):
        step(ndl.ones(2))
