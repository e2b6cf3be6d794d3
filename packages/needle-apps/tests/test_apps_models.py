"""The networks: sizes, order of drawing, and values against plain NumPy."""

import numpy as np
import pytest

import needle as ndl
from needle.apps.models import LanguageModel, ResNet9, ResNet9Full
from needle.backend_ndarray import ShapeError


def count(model):
    return sum(int(np.prod(p.shape)) for p in model.parameters())


def weights(model):
    return {name: p.numpy().astype(np.float64) for name, p in model.named_parameters()}


# ---- ResNet9 -------------------------------------------------------------------------------------


def conv(x, w, b, stride):
    """x (N, C, H, W), w (K, K, C, D), b (D,): the sum over taps, padding K // 2."""
    k, pad = w.shape[0], w.shape[0] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows, columns = ((n - k) // stride + 1 for n in x.shape[2:])
    out = np.zeros((len(x), w.shape[3], rows, columns)) + b[:, None, None]
    for i in range(k):
        for j in range(k):
            tap = x[:, :, i : i + rows * stride : stride, j : j + columns * stride : stride]
            out += np.einsum("nchw,cd->ndhw", tap[:, :, :rows, :columns], w[i, j])
    return out


def batch_norm(x, weight, bias):
    mean = x.mean(axis=(0, 2, 3), keepdims=True)
    var = x.var(axis=(0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * weight[:, None, None] + bias[:, None, None]


def resnet9(x, p):
    """The network in training mode, from the text of its docstring."""
    blocks = iter(range(10))

    def conv_bn(x, name, stride):
        x = conv(x, p[f"{name}.conv.weight"], p[f"{name}.conv.bias"], stride)
        return np.maximum(batch_norm(x, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"]), 0)

    def residual(x):
        name = f"layers.modules.{next(blocks)}.fn.modules"
        return x + conv_bn(conv_bn(x, f"{name}.0", 1), f"{name}.1", 1)

    def plain(x, stride):
        return conv_bn(x, f"layers.modules.{next(blocks)}", stride)

    x = residual(plain(plain(x, 4), 2))
    x = residual(plain(plain(x, 2), 2))
    x = x.reshape(len(x), -1)
    x = np.maximum(x @ p["layers.modules.7.weight"] + p["layers.modules.7.bias"], 0)
    return x @ p["layers.modules.9.weight"] + p["layers.modules.9.bias"]


def test_resnet9_has_the_published_number_of_parameters():
    assert count(ResNet9()) == 431_946


def resnet9_full(x, p):
    """The full-resolution network in training mode, from the text of its docstring."""

    def conv_bn(x, name):
        x = conv(x, p[f"{name}.conv.weight"], np.zeros(p[f"{name}.norm.bias"].shape), 1)
        return np.maximum(batch_norm(x, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"]), 0)

    def pool(x, k):
        n, c, h, w = x.shape
        return x.reshape(n, c, h // k, k, w // k, k).max((3, 5))

    def residual(x, i):
        name = f"layers.modules.{i}.fn.modules"
        return x + conv_bn(conv_bn(x, f"{name}.0"), f"{name}.1")

    x = conv_bn(x, "layers.modules.0")
    x = residual(pool(conv_bn(x, "layers.modules.1"), 2), 3)
    x = pool(conv_bn(x, "layers.modules.4"), 2)
    x = residual(pool(conv_bn(x, "layers.modules.6"), 2), 8)
    return pool(x, 4).reshape(len(x), 512) @ p["layers.modules.11.weight"] * 0.125


def test_resnet9_full_has_the_published_number_of_parameters():
    """Nine for each pair of channels, two for each channel of a batch norm, and the last layer."""
    pairs = 3 * 64 + 64 * 128 + 2 * 128 * 128 + 128 * 256 + 256 * 512 + 2 * 512 * 512
    channels = 64 + 3 * 128 + 256 + 3 * 512
    assert count(ResNet9Full()) == 9 * pairs + 2 * channels + 512 * 10 == 6_573_120


def test_resnet9_full_computes_its_definition():
    np.random.seed(0)
    model = ResNet9Full(dtype="float64")
    x = np.random.randn(2, 3, 32, 32)
    got = model(ndl.Tensor(x, dtype="float64"))
    np.testing.assert_allclose(got.numpy(), resnet9_full(x, weights(model)), rtol=1e-9, atol=1e-9)


def test_resnet9_draws_its_parameters_in_the_order_of_its_layers():
    np.random.seed(11)
    model = ResNet9(dtype="float64")
    np.random.seed(11)
    fan_in = 3 * 7 * 7
    uniform = np.random.rand(7, 7, 3, 16) * 2 - 1
    np.testing.assert_allclose(
        model.parameters()[0].numpy(), uniform * np.sqrt(2) * np.sqrt(3 / fan_in), rtol=1e-12
    )
    bias = np.random.rand(16) * 2 - 1
    np.testing.assert_allclose(model.parameters()[1].numpy(), bias / np.sqrt(fan_in), rtol=1e-12)
    # Of the rest only convolutions and Linear draw: two draws each.
    drawn = [p.shape for n, p in model.named_parameters() if "norm" not in n][2:]
    for shape in drawn:
        last = np.random.rand(*shape)
    k = np.sqrt(2) * np.sqrt(3 / 10)
    np.testing.assert_allclose(
        model.parameters()[-1].numpy().ravel(), (2 * k * last - k).ravel(), rtol=1e-12
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 2e-3)])
def test_resnet9_computes_what_its_docstring_says(device, dtype, tolerance):
    np.random.seed(0)
    model = ResNet9(device=device, dtype=dtype)
    x = np.random.randn(4, 3, 32, 32)
    logits = model(ndl.Tensor(x, device=device, dtype=dtype))
    assert logits.shape == (4, 10)
    assert logits.dtype == dtype
    assert logits.device == device
    np.testing.assert_allclose(logits.numpy(), resnet9(x, weights(model)), atol=tolerance)


def test_resnet9_gives_the_course_reference_values(device):
    """The values that homework 4 of CMU 10-714 states for this seed."""
    np.random.seed(0)
    model = ResNet9(device=device, dtype="float32")
    x = np.random.randn(2, 3, 32, 32)
    logits = model(ndl.Tensor(x, device=device, dtype="float32")).numpy()
    first = [-1.8912625, 0.64833605, 1.9400386, 1.1435282, 1.89777]
    np.testing.assert_allclose(logits[0, :5], first, atol=1e-2)


def test_resnet9_gives_every_parameter_a_gradient(device):
    model = ResNet9(device=device)
    x = ndl.init.randn(2, 3, 32, 32, device=device)
    model(x).sum().backward(retain_graph=False)
    for name, p in model.named_parameters():
        assert p.grad.shape == p.shape, name
        assert np.isfinite(p.grad.numpy()).all(), name


# ---- LanguageModel -------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rnn_step(x, h, c, p, cell):
    pre = (
        x @ p[f"{cell}.W_ih"] + p[f"{cell}.bias_ih"] + h @ p[f"{cell}.W_hh"] + p[f"{cell}.bias_hh"]
    )
    return np.tanh(pre), c


def lstm_step(x, h, c, p, cell):
    pre = (
        x @ p[f"{cell}.W_ih"] + p[f"{cell}.bias_ih"] + h @ p[f"{cell}.W_hh"] + p[f"{cell}.bias_hh"]
    )
    i, f, g, o = np.split(pre, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def language_model(ids, h, c, p, kind):
    """Word by word, layer by layer. h, c: (layers, bs, hidden). Returns logits, h, c."""
    step = {"rnn": rnn_step, "lstm": lstm_step}[kind]
    h, c, logits = h.copy(), c.copy(), []
    for row in ids:
        x = p["embedding.weight"][row]
        for layer in range(len(h)):
            cell = f"seq_model.{kind}_cells.{layer}"
            h[layer], c[layer] = step(x, h[layer], c[layer], p, cell)
            x = h[layer]
        logits.append(x @ p["linear.weight"] + p["linear.bias"])
    return np.concatenate(logits), h, c


def both_states(state):
    return state if isinstance(state, tuple) else (state, state)


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "given"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_language_model_computes_what_plain_loops_do(device, kind, given, dtype, tolerance):
    np.random.seed(1)
    layers, bs, hidden = 2, 3, 5
    model = LanguageModel(4, 11, hidden, layers, kind, device=device, dtype=dtype)
    ids = np.random.randint(0, 11, (6, bs))
    h, c = (np.random.randn(layers, bs, hidden) * given for _ in range(2))
    state = None
    if given:
        h_, c_ = (ndl.Tensor(s, device=device, dtype=dtype) for s in (h, c))
        state = (h_, c_) if kind == "lstm" else h_
    logits, new = model(ndl.Tensor(ids, device=device, dtype="float32"), state)
    want, want_h, want_c = language_model(ids, h, c, weights(model), kind)
    assert logits.shape == (6 * bs, 11)
    assert isinstance(new, tuple) == (kind == "lstm")
    np.testing.assert_allclose(logits.numpy(), want, atol=tolerance)
    np.testing.assert_allclose(both_states(new)[0].numpy(), want_h, atol=tolerance)
    if kind == "lstm":
        np.testing.assert_allclose(new[1].numpy(), want_c, atol=tolerance)


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_language_model_state_carries_on(kind):
    """Two halves with the state in between are one whole."""
    model = LanguageModel(4, 11, 5, 2, kind, dtype="float64")
    ids = np.random.randint(0, 11, (8, 3))
    whole, end = model(ndl.Tensor(ids, dtype="float32"))
    first, state = model(ndl.Tensor(ids[:3], dtype="float32"))
    second, state = model(ndl.Tensor(ids[3:], dtype="float32"), state)
    halves = np.concatenate([first.numpy(), second.numpy()])
    np.testing.assert_allclose(halves, whole.numpy(), atol=1e-12)
    np.testing.assert_allclose(
        both_states(state)[0].numpy(), both_states(end)[0].numpy(), atol=1e-12
    )


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("rnn", 10_000 * 200 + 2 * (2 * 200 * 200 + 2 * 200) + 200 * 10_000 + 10_000),
        ("lstm", 10_000 * 200 + 2 * 4 * (2 * 200 * 200 + 2 * 200) + 200 * 10_000 + 10_000),
    ],
)
def test_language_model_has_the_parameters_of_its_layers(kind, parameters):
    assert count(LanguageModel(200, 10_000, 200, 2, kind)) == parameters


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_language_model_draws_embedding_cells_then_linear(kind):
    np.random.seed(3)
    model = LanguageModel(4, 11, 5, 1, kind, dtype="float64")
    np.random.seed(3)
    np.testing.assert_allclose(model.embedding.weight.numpy(), np.random.randn(11, 4), rtol=1e-12)
    width, k = (20 if kind == "lstm" else 5), 1 / np.sqrt(5)
    cell = getattr(model.seq_model, f"{kind}_cells")[0]
    for name, shape in {
        "W_ih": (4, width),
        "W_hh": (5, width),
        "bias_ih": (width,),
        "bias_hh": (width,),
    }.items():
        want = np.random.rand(*shape) * 2 * k - k
        np.testing.assert_allclose(getattr(cell, name).numpy(), want, rtol=1e-12, err_msg=name)
    k = np.sqrt(2) * np.sqrt(3 / 5)
    want = np.random.rand(5, 11) * 2 * k - k
    np.testing.assert_allclose(model.linear.weight.numpy(), want, rtol=1e-12)


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_language_model_gives_every_parameter_a_gradient(device, kind):
    model = LanguageModel(4, 11, 5, 2, kind, device=device)
    ids = ndl.Tensor(np.arange(12).reshape(4, 3) % 11, device=device, dtype="float32")
    logits, _ = model(ids)
    logits.backward()
    for name, p in model.named_parameters():
        assert p.grad.shape == p.shape, name


def test_language_model_rejects_an_unknown_recurrent_layer():
    with pytest.raises(ValueError, match=r"unknown seq_model: 'gru': need 'rnn' or 'lstm'"):
        LanguageModel(4, 11, 5, seq_model="gru")


def test_language_model_rejects_ids_of_the_wrong_rank():
    model = LanguageModel(4, 11, 5)
    with pytest.raises(ShapeError, match=r"x has wrong rank: \(7,\): need \(seq_len, bs\)"):
        model(ndl.Tensor(np.zeros(7), dtype="float32"))


def test_language_model_rejects_an_id_outside_the_vocabulary():
    model = LanguageModel(4, 11, 5)
    with pytest.raises(IndexError, match="11"):
        model(ndl.Tensor(np.full((2, 2), 11), dtype="float32"))


def test_a_language_model_drops_into_between_and_out_of_its_layers():
    """A dropped input column, hidden unit or output shows as a zero: each place is seen."""
    model = LanguageModel(6, 11, 5, num_layers=2, seq_model="lstm", dropout=0.5)
    seen = []
    forward = model.dropout.forward
    model.dropout.forward = lambda x: seen.append(x.shape) or forward(x)
    inner = model.seq_model.dropout.forward
    model.seq_model.dropout.forward = lambda x: seen.append(x.shape) or inner(x)
    x = ndl.Tensor(np.zeros((4, 3)))
    assert not np.array_equal(model(x)[0].numpy(), model(x)[0].numpy())
    assert seen == 2 * [(4, 3, 6), (4, 3, 5), (4, 3, 5)]
    model.eval()
    np.testing.assert_array_equal(model(x)[0].numpy(), model(x)[0].numpy())


# ---- tied weights --------------------------------------------------------------------------------


def tied(**options):
    np.random.seed(0)
    return LanguageModel(6, 11, 6, seq_model="lstm", tied=True, dtype="float64", **options)


def test_tied_weights_are_one_parameter():
    model = tied()
    assert model.linear.weight is model.embedding.weight
    assert count(model) == count(LanguageModel(6, 11, 6, seq_model="lstm")) - 6 * 11
    names = [name for name, _ in model.named_parameters()]
    assert "embedding.weight" in names
    assert "linear.weight" not in names


def test_tied_weights_get_both_gradients():
    """The gradient of one shared table is the sum of those of two separate ones."""
    ids = ndl.Tensor(np.random.randint(0, 11, (4, 3)))
    y = ndl.Tensor(np.random.randint(0, 11, 12))
    one = tied()
    two = LanguageModel(6, 11, 6, seq_model="lstm", dtype="float64")
    state = one.state_dict()
    two.load_state_dict({**state, "linear.weight": state["linear.weight"].numpy().T.copy()})
    for model in (one, two):
        loss = ndl.nn.SoftmaxLoss()(model(ids)[0], y)
        loss.backward()
    both = two.embedding.weight.grad.numpy() + two.linear.weight.grad.numpy().T
    np.testing.assert_allclose(one.embedding.weight.grad.numpy(), both, rtol=1e-12, atol=1e-15)


def test_tied_weights_survive_saving_and_moving():
    model, other = tied(), tied()
    opt = ndl.optim.SGD(model.parameters(), lr=1.0)
    ndl.nn.SoftmaxLoss()(model(ndl.Tensor([[1, 2]]))[0], ndl.Tensor([2, 3])).backward()
    opt.step()
    other.load_state_dict(model.state_dict())
    assert other.linear.weight is other.embedding.weight
    ids = ndl.Tensor([[3, 4, 5]])
    np.testing.assert_array_equal(other(ids)[0].numpy(), model(ids)[0].numpy())
    other.to("float32")
    assert other.linear.weight is other.embedding.weight
    assert other(ids)[0].dtype == "float32"


def test_tied_sizes_must_agree():
    text = "LanguageModel: tied sizes differ: embedding_size is 6, hidden_size 7: need the same"
    with pytest.raises(ShapeError, match=text):
        LanguageModel(6, 11, 7, tied=True)
