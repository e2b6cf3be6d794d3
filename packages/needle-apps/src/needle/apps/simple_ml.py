"""The course's training functions, with its names, argument orders and defaults.

The CIFAR-10 and PTB functions seed NumPy's global generator with 4 on entry, as the course's do,
so that a run can be compared number for number. So every epoch sees the same batches, which batch
norm learns by heart: ten epochs of ResNet9 on CIFAR-10 (JPEG) end at 70.4 % on the training batches
but 47.5 % on the test set; seeded once and shuffled anew, at 67.6 % and 57.3 %.

Source: CMU 10-714, homeworks 0, 2 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any

import numpy as np

from needle import Tensor, nn, ops
from needle.apps.checks import (
    check_clip,
    check_count,
    check_function,
    check_kind,
    check_maker,
    check_model,
    check_text_model,
    kind_of,
)
from needle.apps.training import image_steps, run_epoch, text_steps
from needle.backend_ndarray import ShapeError
from needle.checks import NOT_NEGATIVE, check_number
from needle.data import MNISTDataset
from needle.nn.checks import check_tensor
from needle.optim import SGD, Adam, Optimizer

Array = np.ndarray[Any, Any]
Means = tuple[float, float]
"""Average accuracy and average loss over the examples."""

LOSS = "a function of logits and ids"


# ---- MNIST ---------------------------------------------------------------------------------------


def parse_mnist(image_filename: str | Path, label_filename: str | Path) -> tuple[Array, Array]:
    """Read a pair of MNIST files, gzipped or plain.

    Returns:
        Images (n, 784), float32 in [0, 1], and class ids (n,), uint8.

    Raises:
        FileNotFoundError: a file is missing.
        DataFileError: a file is damaged, or not of its kind.
    """
    data = MNISTDataset(image_filename, label_filename)
    return data.X.reshape(len(data), -1), data.y.astype(np.uint8)


def softmax_loss(Z: Tensor, y_one_hot: Tensor) -> Tensor:
    """The mean softmax loss: 1/n sum_i (logsumexp(Z_i) - Z_i . y_i).

    Args:
        Z: logits, (n, classes).
        y_one_hot: one-hot targets, (n, classes).

    Raises:
        TypeError: one is not a Tensor.
        ShapeError: the two shapes differ or are not 2-D.
    """
    check_tensor("softmax_loss", "Z", Z)
    check_tensor("softmax_loss", "y_one_hot", y_one_hot)
    if len(Z.shape) != 2 or Z.shape != y_one_hot.shape:
        raise ShapeError(
            f"softmax_loss: shapes differ: Z is {Z.shape}, y_one_hot is {y_one_hot.shape}: "
            "need (n, classes) for both"
        )
    losses = ops.logsumexp(Z, axes=(1,)) - ops.summation(Z * y_one_hot, axes=(1,))
    return ops.summation(losses) / Z.shape[0]


def nn_epoch(
    X: Array, y: Array, W1: Tensor, W2: Tensor, lr: float = 0.1, batch: int = 100
) -> tuple[Tensor, Tensor]:
    """One epoch of plain SGD for logits = relu(X @ W1) @ W2, in the order of X.

    Args:
        X: images, (n, input_dim).
        y: class ids, (n,).
        W1: first weights, (input_dim, hidden_dim).
        W2: second weights, (hidden_dim, classes).
        lr: learning rate.
        batch: examples per step; the last step takes what is left.

    Returns:
        The new (W1, W2); the arguments are left as they are.

    Raises:
        TypeError: a weight is not a Tensor, y not of integers, lr not a number, or batch not a
            whole one.
        ShapeError: X and y differ in length.
        ValueError: batch is not positive, or lr is below 0.
    """
    _check_ids("nn_epoch", y)
    check_tensor("nn_epoch", "W1", W1)
    check_tensor("nn_epoch", "W2", W2)
    check_number("nn_epoch", "lr", lr, *NOT_NEGATIVE)
    check_count("nn_epoch", "batch", batch)
    if len(X) != len(y):
        raise ShapeError(f"nn_epoch: lengths differ: X has {len(X)}, y has {len(y)}: need the same")
    W1, W2 = _leaf(W1.numpy(), W1), _leaf(W2.numpy(), W2)
    for start in range(0, len(X), batch):
        images = Tensor(X[start : start + batch], device=W1.device, dtype=W1.dtype)
        targets = _one_hot(y[start : start + batch], W2)
        softmax_loss(ops.relu(images @ W1) @ W2, targets).backward(retain_graph=False)
        W1, W2 = _descend(W1, lr), _descend(W2, lr)
    return W1, W2


def loss_err(h: Tensor, y: Array) -> tuple[Array, float]:
    """The mean softmax loss and the error rate of logits h (n, classes) on class ids y (n,).

    Raises:
        TypeError: h is not a Tensor, or y not of integers.
    """
    check_tensor("loss_err", "h", h)
    _check_ids("loss_err", y)
    loss = softmax_loss(h, _one_hot(y, h)).numpy()
    return loss, float(np.mean(h.numpy().argmax(axis=1) != y))


def _check_ids(where: str, y: object) -> None:
    """Raises TypeError unless y are class ids: NumPy takes nothing else for an index."""
    if isinstance(y, Tensor) or np.asarray(y).dtype.kind not in "iu":
        raise TypeError(f"{where}: y is {kind_of(y)}: need an array of whole numbers")


def _descend(W: Tensor, lr: float) -> Tensor:
    """W - lr * W.grad, as a new leaf."""
    assert W.grad is not None  # backward has just run
    return _leaf(W.numpy() - lr * W.grad.numpy(), W)


def _leaf(values: Array, like: Tensor) -> Tensor:
    return Tensor(values, device=like.device, dtype=like.dtype)


def _one_hot(y: Array, logits: Tensor) -> Tensor:
    """Class ids (n,) as rows of zeros and a one, as wide as the logits."""
    rows = np.eye(logits.shape[-1], dtype=logits.dtype)[y]
    return Tensor(rows, device=logits.device, dtype=logits.dtype, requires_grad=False)


# ---- CIFAR-10 ------------------------------------------------------------------------------------


def epoch_general_cifar10(
    dataloader: Iterable[Any],
    model: nn.Module,
    loss_fn: Any = nn.SoftmaxLoss(),  # noqa: B008  (stateless, and the course's signature)
    opt: Optimizer | None = None,
) -> Means:
    """One pass over the data: training with an optimizer, evaluation without.

    Args:
        dataloader: yields (images (n, 3, 32, 32), labels (n,)); placed on the model's device.
        model: images to logits (n, 10).
        loss_fn: `loss_fn(logits, labels)`, the mean over a batch.
        opt: updates the model after every batch; None evaluates.

    Returns:
        Average accuracy and average loss over the images.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: there is no batch.
    """
    return _epoch_cifar10("epoch_general_cifar10", dataloader, model, loss_fn, opt)


def _epoch_cifar10(
    where: str, dataloader: Iterable[Any], model: nn.Module, loss_fn: Any, opt: Optimizer | None
) -> Means:
    """`epoch_general_cifar10`, whose errors name the function that was called."""
    check_model(where, model)
    check_kind(where, "dataloader", dataloader, Iterable, "batches of (images, labels)")
    _check_updates(where, loss_fn, opt)
    np.random.seed(4)
    score = run_epoch(image_steps(dataloader, model), model, loss_fn, opt)
    return score.accuracy, score.loss


def train_cifar10(
    model: nn.Module,
    dataloader: Iterable[Any],
    n_epochs: int = 1,
    optimizer: Any = Adam,
    lr: float = 0.001,
    weight_decay: float = 0.001,
    loss_fn: Any = nn.SoftmaxLoss,
) -> Means:
    """Train for n_epochs; `optimizer` and `loss_fn` are classes.

    Returns:
        Average accuracy and average loss over the images of the last epoch.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: n_epochs is not positive, or there is no batch.
    """
    where = "train_cifar10"
    np.random.seed(4)
    opt = _optimizer(where, model, n_epochs, optimizer, lr, weight_decay)
    for _ in range(n_epochs):
        means = _epoch_cifar10(where, dataloader, model, _loss(where, loss_fn), opt)
    return means


def evaluate_cifar10(
    model: nn.Module, dataloader: Iterable[Any], loss_fn: Any = nn.SoftmaxLoss
) -> Means:
    """Average accuracy and average loss over the images, with the model in evaluation mode.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: there is no batch.
    """
    where = "evaluate_cifar10"
    check_model(where, model)
    np.random.seed(4)
    return _epoch_cifar10(where, dataloader, model, _loss(where, loss_fn), None)


# ---- Penn Treebank -------------------------------------------------------------------------------


def epoch_general_ptb(
    data: Array,
    model: nn.Module,
    seq_len: int = 40,
    loss_fn: Any = nn.SoftmaxLoss(),  # noqa: B008
    opt: Optimizer | None = None,
    clip: float | None = None,
    device: Any = None,
    dtype: Any = "float32",
) -> Means:
    """One pass over a text: training with an optimizer, evaluation without.

    Args:
        data: word ids (nbatch, batch_size), from `batchify`.
        model: `model(x, h)` returns (logits, h); h is carried along, detached.
        seq_len: rows of a window.
        loss_fn: `loss_fn(logits, targets)`, the mean over a window's tokens.
        opt: updates the model after every window; None evaluates.
        clip: the largest gradient norm of an update; None for no limit.
        device: where the batches go; the model's device when None.
        dtype: the type of the ids in a batch.

    Returns:
        Average accuracy and average loss over the tokens.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a number is out of range.
        ShapeError: data is not (nbatch, batch_size).
    """
    return _epoch_ptb("epoch_general_ptb", data, model, seq_len, loss_fn, opt, clip, device, dtype)


def _epoch_ptb(
    where: str,
    data: Array,
    model: nn.Module,
    seq_len: int,
    loss_fn: Any,
    opt: Optimizer | None,
    clip: float | None,
    device: Any,
    dtype: Any,
) -> Means:
    """`epoch_general_ptb`, whose errors name the function that was called."""
    check_text_model(where, model)
    check_kind(where, "data", data, Sized, "word ids (nbatch, batch_size), from batchify")
    check_count(where, "seq_len", seq_len)
    _check_updates(where, loss_fn, opt)
    check_clip(where, clip)
    np.random.seed(4)
    steps = text_steps(data, model, seq_len, device, dtype)
    score = run_epoch(steps, model, loss_fn, opt, clip)
    return score.accuracy, score.loss


def train_ptb(
    model: nn.Module,
    data: Array,
    seq_len: int = 40,
    n_epochs: int = 1,
    optimizer: Any = SGD,
    lr: float = 4.0,
    weight_decay: float = 0.0,
    loss_fn: Any = nn.SoftmaxLoss,
    clip: float | None = None,
    device: Any = None,
    dtype: Any = "float32",
) -> Means:
    """Train for n_epochs; `optimizer` and `loss_fn` are classes.

    Returns:
        Average accuracy and average loss over the tokens of the last epoch.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a number is out of range.
        ShapeError: data is not (nbatch, batch_size).
    """
    where = "train_ptb"
    np.random.seed(4)
    opt = _optimizer(where, model, n_epochs, optimizer, lr, weight_decay)
    for _ in range(n_epochs):
        loss = _loss(where, loss_fn)
        means = _epoch_ptb(where, data, model, seq_len, loss, opt, clip, device, dtype)
    return means


def evaluate_ptb(
    model: nn.Module,
    data: Array,
    seq_len: int = 40,
    loss_fn: Any = nn.SoftmaxLoss,
    device: Any = None,
    dtype: Any = "float32",
) -> Means:
    """Average accuracy and average loss over the tokens, with the model in evaluation mode.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: seq_len is not positive.
        ShapeError: data is not (nbatch, batch_size).
    """
    where = "evaluate_ptb"
    check_text_model(where, model)
    np.random.seed(4)
    loss = _loss(where, loss_fn)
    return _epoch_ptb(where, data, model, seq_len, loss, None, None, device, dtype)


# ---- what both check -----------------------------------------------------------------------------


def _optimizer(
    where: str, model: nn.Module, n_epochs: int, optimizer: Any, lr: float, weight_decay: float
) -> Optimizer:
    """The optimizer of a model, made by its class."""
    check_model(where, model)
    check_count(where, "n_epochs", n_epochs)
    check_maker(where, "optimizer", optimizer, "SGD")
    made: Optimizer = optimizer(model.parameters(), lr=lr, weight_decay=weight_decay)
    return made


def _loss(where: str, loss_fn: Any) -> Any:
    """The loss, made by its class."""
    check_maker(where, "loss_fn", loss_fn, "SoftmaxLoss")
    made = loss_fn()
    check_function(where, "loss_fn()", made, LOSS)
    return made


def _check_updates(where: str, loss_fn: Any, opt: Any) -> None:
    """Raises TypeError unless it is a loss, and an Optimizer or None."""
    check_function(where, "loss_fn", loss_fn, LOSS)
    if opt is not None:
        check_kind(where, "opt", opt, Optimizer, "an Optimizer, or None to measure")
