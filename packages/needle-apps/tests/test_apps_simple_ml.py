"""The course's functions against plain NumPy, and their signatures."""

import gzip
import inspect
import struct

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.apps import simple_ml
from needle.apps.models import LanguageModel
from needle.backend_ndarray import ShapeError
from needle.data import DataLoader, NDArrayDataset, batchify
from needle.optim import SGD, Adam


def softmax_loss(logits, y):
    """The mean of logsumexp(z) - z[y], row by row, and its gradient."""
    gradient, total = np.zeros_like(logits), 0.0
    for i, (z, label) in enumerate(zip(logits, y, strict=True)):
        e = np.exp(z - z.max())
        total += np.log(e.sum()) + z.max() - z[label]
        gradient[i] = e / e.sum()
        gradient[i, label] -= 1
    return total / len(y), gradient / len(y)


# ---- MNIST functions -----------------------------------------------------------------------------


def write_idx(path, array, compress):
    header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
    opener = gzip.open if compress else open
    with opener(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.mark.parametrize("compress", [True, False], ids=["gzip", "plain"])
def test_parse_mnist_scales_and_flattens(tmp_path, compress):
    pixels = np.random.randint(0, 256, (5, 28, 28)).astype(np.uint8)
    labels = np.array([3, 0, 9, 1, 3], dtype=np.uint8)
    write_idx(tmp_path / "images", pixels, compress)
    write_idx(tmp_path / "labels", labels, compress)
    X, y = simple_ml.parse_mnist(str(tmp_path / "images"), str(tmp_path / "labels"))
    assert X.shape == (5, 784)
    assert X.dtype == np.float32
    assert y.dtype == np.uint8
    np.testing.assert_array_equal(y, labels)
    np.testing.assert_allclose(X, pixels.reshape(5, 784) / 255, atol=1e-7)


def test_parse_mnist_rejects_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="images"):
        simple_ml.parse_mnist(tmp_path / "images", tmp_path / "labels")


def test_softmax_loss_and_its_gradients(device):
    np.random.seed(2)
    logits, y = np.random.randn(6, 4) * 30, np.array([0, 3, 1, 1, 2, 0])
    Z = ndl.Tensor(logits, device=device, dtype="float64")
    one_hot = ndl.Tensor(np.eye(4)[y], device=device, dtype="float64")
    loss = simple_ml.softmax_loss(Z, one_hot)
    want, gradient = softmax_loss(logits, y)
    assert loss.shape == ()
    np.testing.assert_allclose(loss.numpy(), want, rtol=1e-12)
    loss.backward()
    np.testing.assert_allclose(Z.grad.numpy(), gradient, atol=1e-12)
    np.testing.assert_allclose(one_hot.grad.numpy(), -logits / 6, atol=1e-12)


def test_softmax_loss_of_equal_logits_is_the_logarithm_of_the_classes():
    Z = ndl.Tensor(np.zeros((7, 10)), dtype="float32")
    one_hot = ndl.Tensor(np.eye(10)[:7], dtype="float32")
    np.testing.assert_allclose(simple_ml.softmax_loss(Z, one_hot).numpy(), np.log(10), rtol=1e-6)


def test_softmax_loss_rejects_class_ids():
    Z, y = ndl.Tensor(np.zeros((7, 10))), ndl.Tensor(np.zeros(7))
    with pytest.raises(ShapeError, match=r"Z is \(7, 10\), y_one_hot is \(7,\)"):
        simple_ml.softmax_loss(Z, y)


def two_layer_epoch(X, y, W1, W2, lr, batch):
    """The formulas of homework 0, question 5."""
    W1, W2 = W1.copy(), W2.copy()
    for start in range(0, len(X), batch):
        x, labels = X[start : start + batch], y[start : start + batch]
        hidden = np.maximum(x @ W1, 0)
        _, G2 = softmax_loss(hidden @ W2, labels)
        G1 = (hidden > 0) * (G2 @ W2.T)
        W1, W2 = W1 - lr * x.T @ G1, W2 - lr * hidden.T @ G2
    return W1, W2


@pytest.mark.parametrize("batch", [10, 50, 100], ids=["even", "rest", "larger"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_nn_epoch_follows_the_formulas(device, batch, dtype, tolerance):
    np.random.seed(0)
    X, y = np.random.randn(70, 5), np.random.randint(3, size=70).astype(np.uint8)
    W1, W2 = np.random.randn(5, 10) / np.sqrt(10), np.random.randn(10, 3) / np.sqrt(3)
    T1, T2 = (ndl.Tensor(W, device=device, dtype=dtype) for W in (W1, W2))
    new = simple_ml.nn_epoch(X.astype(dtype), y, T1, T2, lr=0.5, batch=batch)
    for got, want in zip(new, two_layer_epoch(X, y, W1, W2, 0.5, batch), strict=True):
        assert isinstance(got, ndl.Tensor)
        assert got.dtype == dtype
        assert got.device == device
        np.testing.assert_allclose(got.numpy(), want, atol=tolerance)
    np.testing.assert_allclose(T1.numpy(), W1, atol=tolerance)  # the arguments are left alone


def test_nn_epoch_rejects_what_does_not_fit():
    W1, W2 = ndl.Tensor(np.zeros((5, 4))), ndl.Tensor(np.zeros((4, 3)))
    with pytest.raises(ShapeError, match="X has 8, y has 7"):
        simple_ml.nn_epoch(np.zeros((8, 5)), np.zeros(7, np.uint8), W1, W2)
    with pytest.raises(ValueError, match="batch too small: 0: need at least 1"):
        simple_ml.nn_epoch(np.zeros((8, 5)), np.zeros(8, np.uint8), W1, W2, batch=0)


def test_loss_err():
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [5.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    y = np.array([0, 1, 2, 2], dtype=np.uint8)
    loss, error = simple_ml.loss_err(ndl.Tensor(logits, dtype="float64"), y)
    assert error == 0.25
    np.testing.assert_allclose(loss, softmax_loss(logits, y)[0], rtol=1e-12)


# ---- CIFAR-10 functions --------------------------------------------------------------------------


class Linear(nn.Module):
    """A one-layer classifier of images, for which NumPy can compute everything."""

    def __init__(self, device=None, dtype="float64"):
        super().__init__()
        self.flat, self.linear = nn.Flatten(), nn.Linear(12, 10, device=device, dtype=dtype)

    def forward(self, x):
        return self.linear(self.flat(x))


def images(n=23):
    rng = np.random.RandomState(5)
    return rng.randn(n, 3, 2, 2), rng.randint(0, 10, n)


def loader(batch_size=5, shuffle=False):
    X, y = images()
    return DataLoader(NDArrayDataset(X, y), batch_size, shuffle, dtype="float64")


def sgd_epochs(model, order, lr, weight_decay, epochs):
    """Losses and hits over all images of the last epoch, by hand."""
    X, y = images()
    W, b = model.linear.weight.numpy(), model.linear.bias.numpy()
    for _ in range(epochs):
        hits = total = 0
        for start in range(0, len(X), 5):
            rows = order[start : start + 5]
            x, labels = X[rows].reshape(len(rows), -1), y[rows]
            logits = x @ W + b
            loss, G = softmax_loss(logits, labels)
            hits += (logits.argmax(axis=1) == labels).sum()
            total += loss * len(rows)
            W = W - lr * (x.T @ G + weight_decay * W)
            b = b - lr * (G.sum(axis=0) + weight_decay * b)
    return hits / len(X), total / len(X), W


def test_train_cifar10_weights_every_image_alike(device):
    model = Linear(device)
    accuracy, loss, W = sgd_epochs(model, np.arange(23), 0.1, 0.01, epochs=3)
    got = simple_ml.train_cifar10(
        model, loader(), n_epochs=3, optimizer=SGD, lr=0.1, weight_decay=0.01
    )
    np.testing.assert_allclose(got, (accuracy, loss), rtol=1e-10)
    np.testing.assert_allclose(model.linear.weight.numpy(), W, atol=1e-12)


def test_train_cifar10_shuffles_every_epoch_with_seed_4():
    model = Linear()
    order = np.random.RandomState(4).permutation(23)
    accuracy, loss, W = sgd_epochs(model, order, 0.1, 0.0, epochs=2)
    np.random.seed(99)
    got = simple_ml.train_cifar10(
        model, loader(shuffle=True), 2, optimizer=SGD, lr=0.1, weight_decay=0.0
    )
    np.testing.assert_allclose(got, (accuracy, loss), rtol=1e-10)
    np.testing.assert_allclose(model.linear.weight.numpy(), W, atol=1e-12)


def test_evaluate_cifar10_measures_and_changes_nothing():
    model = nn.Sequential(nn.BatchNorm2d(3, dtype="float64"), Linear())
    simple_ml.epoch_general_cifar10(loader(), model, opt=SGD(model.parameters(), lr=0.1))
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    got = simple_ml.evaluate_cifar10(model, loader())
    X, y = images()
    logits = model.eval()(ndl.Tensor(X, dtype="float64")).numpy()
    want = (logits.argmax(axis=1) == y).mean(), softmax_loss(logits, y)[0]
    np.testing.assert_allclose(got, want, rtol=1e-10)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)


def test_training_puts_the_model_into_training_mode():
    model = Linear().eval()
    simple_ml.epoch_general_cifar10(loader(), model, opt=Adam(model.parameters()))
    assert model.training
    simple_ml.epoch_general_cifar10(loader(), model)
    assert not model.training


def test_an_epoch_leaves_no_graph_behind():
    model = Linear()
    simple_ml.train_cifar10(model, loader())
    live = ndl.autograd.TENSOR_COUNTER
    simple_ml.train_cifar10(model, loader(), n_epochs=2)
    more = ndl.autograd.TENSOR_COUNTER - live
    assert more <= len(model.parameters())  # the gradients


def test_batches_may_be_numpy_arrays():
    model = Linear(dtype="float32")
    X, y = images()
    got = simple_ml.evaluate_cifar10(model, [(X.astype("float32"), y)])
    logits = X.reshape(23, 12) @ model.linear.weight.numpy() + model.linear.bias.numpy()
    want = (logits.argmax(axis=1) == y).mean(), softmax_loss(logits, y)[0]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_no_batches_is_an_error():
    with pytest.raises(ValueError, match="too few batches: 0: need at least 1"):
        simple_ml.evaluate_cifar10(Linear(), [])


@pytest.mark.parametrize("n_epochs", [0, -1])
def test_training_needs_an_epoch(n_epochs):
    with pytest.raises(ValueError, match=f"n_epochs too small: {n_epochs}: need at least 1"):
        simple_ml.train_cifar10(Linear(), loader(), n_epochs)
    with pytest.raises(ValueError, match=f"n_epochs too small: {n_epochs}: need at least 1"):
        simple_ml.train_ptb(LanguageModel(2, 9, 3), text(), n_epochs=n_epochs)


# ---- Penn Treebank functions ---------------------------------------------------------------------


def text(n=50, batch_size=3):
    words = np.random.RandomState(8).randint(0, 9, n).tolist()
    return batchify(words, batch_size, device=None, dtype="float32")


class Recorder(nn.Module):
    """Predicts from the last word alone, and keeps what it was called with."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 9, dtype="float64")
        self.seen, self.states = [], []

    def forward(self, x, h=None):
        self.seen.append(x.numpy())
        self.states.append(h)
        steps, bs = x.shape
        return self.table(x).reshape((steps * bs, 9)), self.table.weight * 1.0


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_evaluate_ptb_does_not_depend_on_the_window(device, kind):
    """The state is carried from window to window, and every token weighs the same."""
    model = LanguageModel(2, 9, 3, 2, kind, device=device, dtype="float64")
    whole = simple_ml.evaluate_ptb(model, text(), seq_len=100)
    for seq_len in (1, 5, 15, 16):
        got = simple_ml.evaluate_ptb(model, text(), seq_len=seq_len, device=device)
        np.testing.assert_allclose(got, whole, rtol=1e-12)


def test_ptb_windows_targets_and_weights():
    data, model = text(), Recorder()  # (16, 3): windows of 6, 6 and 3 rows
    got = simple_ml.epoch_general_ptb(data, model, seq_len=6)
    assert [len(window) for window in model.seen] == [6, 6, 3]
    np.testing.assert_array_equal(np.concatenate(model.seen), data[:-1])
    logits = model.table.weight.numpy()[data[:-1].astype(int).ravel()]
    targets = data[1:].astype(int).ravel()
    want = (logits.argmax(axis=1) == targets).mean(), softmax_loss(logits, targets)[0]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_ptb_state_starts_empty_and_is_detached():
    model = Recorder()
    simple_ml.train_ptb(model, text(), seq_len=6, n_epochs=2, lr=0.1)
    assert [state is None for state in model.states] == [True, False, False] * 2
    assert all(state.is_leaf() for state in model.states if state is not None)


def test_train_ptb_is_plain_sgd():
    """Two epochs of the table of next-word scores, by hand."""
    data, model = text(), Recorder()
    W, lr, decay = model.table.weight.numpy(), 0.7, 0.01
    for _ in range(2):
        total = hits = 0
        for i in range(0, len(data) - 1, 6):
            x = data[i : i + 6][: len(data) - 1 - i].astype(int).ravel()
            y = data[i + 1 : i + 7].astype(int).ravel()
            loss, G = softmax_loss(W[x], y)
            total, hits = total + loss * len(y), hits + (W[x].argmax(axis=1) == y).sum()
            gradient = np.zeros_like(W)
            np.add.at(gradient, x, G)
            W = W - lr * (gradient + decay * W)
    got = simple_ml.train_ptb(model, data, 6, 2, lr=lr, weight_decay=decay)
    np.testing.assert_allclose(got, (hits / 45, total / 45), rtol=1e-10)
    np.testing.assert_allclose(model.table.weight.numpy(), W, atol=1e-12)


def test_train_ptb_clips_the_gradient():
    """With a norm limit far below the gradient's, a step moves the weights by lr * limit."""
    data, model = text(), Recorder()
    before = model.table.weight.numpy()
    simple_ml.train_ptb(model, data, seq_len=100, lr=2.0, clip=0.01)
    moved = np.linalg.norm(model.table.weight.numpy() - before)
    np.testing.assert_allclose(moved, 2.0 * 0.01, rtol=1e-3)


def test_train_ptb_learns_a_text_by_heart():
    model = LanguageModel(8, 9, 16, 1, "lstm")
    data = text(200, 4)
    accuracy, loss = simple_ml.train_ptb(model, data, 10, 100, optimizer=Adam, lr=0.02)
    assert accuracy > 0.9
    assert loss < 0.5
    assert simple_ml.evaluate_ptb(model, data, 10)[0] > 0.9


def test_ptb_needs_a_window():
    with pytest.raises(ValueError, match="seq_len too small: 0: need at least 1"):
        simple_ml.evaluate_ptb(Recorder(), text(), seq_len=0)


# ---- what the course fixes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: simple_ml.epoch_general_cifar10(loader(), Linear()),
        lambda: simple_ml.evaluate_cifar10(Linear(), loader()),
        lambda: simple_ml.train_cifar10(Linear(), loader()),
        lambda: simple_ml.epoch_general_ptb(text(), Recorder()),
        lambda: simple_ml.evaluate_ptb(Recorder(), text()),
        lambda: simple_ml.train_ptb(Recorder(), text()),
    ],
    ids=["epoch-cifar", "evaluate-cifar", "train-cifar", "epoch-ptb", "evaluate-ptb", "train-ptb"],
)
def test_random_numbers_start_again_at_seed_4(call):
    np.random.seed(77)
    call()
    assert np.random.rand() == np.random.RandomState(4).rand()


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        ("softmax_loss", "Z, y_one_hot"),
        ("parse_mnist", "image_filename, label_filename"),
        ("nn_epoch", "X, y, W1, W2, lr=0.1, batch=100"),
        ("loss_err", "h, y"),
        ("epoch_general_cifar10", "dataloader, model, loss_fn=SoftmaxLoss(), opt=None"),
        (
            "train_cifar10",
            "model, dataloader, n_epochs=1, optimizer=Adam, lr=0.001, weight_decay=0.001, "
            "loss_fn=SoftmaxLoss",
        ),
        ("evaluate_cifar10", "model, dataloader, loss_fn=SoftmaxLoss"),
        (
            "epoch_general_ptb",
            "data, model, seq_len=40, loss_fn=SoftmaxLoss(), opt=None, clip=None, device=None, "
            "dtype='float32'",
        ),
        (
            "train_ptb",
            "model, data, seq_len=40, n_epochs=1, optimizer=SGD, lr=4.0, weight_decay=0.0, "
            "loss_fn=SoftmaxLoss, clip=None, device=None, dtype='float32'",
        ),
        (
            "evaluate_ptb",
            "model, data, seq_len=40, loss_fn=SoftmaxLoss, device=None, dtype='float32'",
        ),
    ],
)
def test_signatures_are_the_courses(function, signature):
    def show(parameter):
        default = parameter.default
        if default is parameter.empty:
            return parameter.name
        return f"{parameter.name}={default.__name__ if inspect.isclass(default) else repr(default)}"

    parameters = inspect.signature(getattr(simple_ml, function)).parameters.values()
    assert ", ".join(map(show, parameters)) == signature
