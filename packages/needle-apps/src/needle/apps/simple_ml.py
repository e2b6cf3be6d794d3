"""The course's training functions, with its names, argument orders and defaults.

The CIFAR-10 and PTB functions seed NumPy's global generator with 4 on entry, as the course's do,
so that a run can be compared number for number. So every epoch sees the same batches, which batch
norm learns by heart: ten epochs of ResNet9 on CIFAR-10 (JPEG) end at 70.4 % on the training batches
but 47.5 % on the test set; seeded once and shuffled anew, at 67.6 % and 57.3 %.

Source: CMU 10-714, homeworks 0, 2 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from needle import Tensor, nn, ops
from needle.apps.training import image_steps, run_epoch, text_steps
from needle.backend_ndarray import ShapeError
from needle.data import MNISTDataset
from needle.optim import SGD, Adam, Optimizer

Array = np.ndarray[Any, Any]
Means = tuple[float, float]
"""Average accuracy and average loss over the examples."""


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
        ShapeError: the two shapes differ or are not 2-D.
    """
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
        ShapeError: X and y differ in length.
        ValueError: batch is not positive.
    """
    if len(X) != len(y):
        raise ShapeError(f"nn_epoch: lengths differ: X has {len(X)}, y has {len(y)}: need the same")
    if batch < 1:
        raise ValueError(f"nn_epoch: batch too small: {batch}: need at least 1")
    W1, W2 = _leaf(W1.numpy(), W1), _leaf(W2.numpy(), W2)
    for start in range(0, len(X), batch):
        images = Tensor(X[start : start + batch], device=W1.device, dtype=W1.dtype)
        targets = _one_hot(y[start : start + batch], W2)
        softmax_loss(ops.relu(images @ W1) @ W2, targets).backward(retain_graph=False)
        W1, W2 = _descend(W1, lr), _descend(W2, lr)
    return W1, W2


def loss_err(h: Tensor, y: Array) -> tuple[Array, float]:
    """The mean softmax loss and the error rate of logits h (n, classes) on class ids y (n,)."""
    loss = softmax_loss(h, _one_hot(y, h)).numpy()
    return loss, float(np.mean(h.numpy().argmax(axis=1) != y))


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
    """
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
        ValueError: n_epochs is not positive.
    """
    np.random.seed(4)
    _check_epochs("train_cifar10", n_epochs)
    opt = optimizer(model.parameters(), lr=lr, weight_decay=weight_decay)
    for _ in range(n_epochs):
        means = epoch_general_cifar10(dataloader, model, loss_fn(), opt)
    return means


def evaluate_cifar10(
    model: nn.Module, dataloader: Iterable[Any], loss_fn: Any = nn.SoftmaxLoss
) -> Means:
    """Average accuracy and average loss over the images, with the model in evaluation mode."""
    np.random.seed(4)
    return epoch_general_cifar10(dataloader, model, loss_fn())


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
    """
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
        ValueError: n_epochs is not positive.
    """
    np.random.seed(4)
    _check_epochs("train_ptb", n_epochs)
    opt = optimizer(model.parameters(), lr=lr, weight_decay=weight_decay)
    for _ in range(n_epochs):
        means = epoch_general_ptb(data, model, seq_len, loss_fn(), opt, clip, device, dtype)
    return means


def evaluate_ptb(
    model: nn.Module,
    data: Array,
    seq_len: int = 40,
    loss_fn: Any = nn.SoftmaxLoss,
    device: Any = None,
    dtype: Any = "float32",
) -> Means:
    """Average accuracy and average loss over the tokens, with the model in evaluation mode."""
    np.random.seed(4)
    return epoch_general_ptb(data, model, seq_len, loss_fn(), device=device, dtype=dtype)


def _check_epochs(name: str, n_epochs: int) -> None:
    if n_epochs < 1:
        raise ValueError(f"{name}: n_epochs too small: {n_epochs}: need at least 1")
