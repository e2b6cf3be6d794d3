"""Wrong arguments of the Python functions: each is named, with what came and what is needed."""

import re

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.apps import simple_ml
from needle.apps.models import LanguageModel, TiedLinear
from needle.apps.tasks import text_task
from needle.apps.trainer import Callback, Checkpointer, Trainer
from needle.data import batchify
from needle.optim import SGD

WORDS = np.random.RandomState(8).randint(0, 9, 50).tolist()
TEXT = batchify(WORDS, 3, device=None, dtype="float32")
IMAGES = [(np.zeros((4, 3, 2, 2), "float32"), np.arange(4))]


def language_model(**options):
    return LanguageModel(2, 9, 3, **options)


CLIP_RULE = "need a finite number above 0, or None for no limit"
NO_CLIPS = [
    ({"clip": 0}, ValueError, f"clip: got 0: {CLIP_RULE}"),
    ({"clip": "x"}, TypeError, f"clip: got 'x': {CLIP_RULE}"),
]


def classifier():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 10))


def sgd(lr=0.1):
    return SGD(language_model().parameters(), lr=lr)


def check(call, kind, text):
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        call()


# ---- LanguageModel -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"embedding_size": [1, 2]}, TypeError, "embedding_size is [1, 2]: need an integer >= 1"),
        ({"output_size": "9"}, TypeError, "output_size is '9': need an integer >= 1"),
        ({"hidden_size": 3.5}, TypeError, "hidden_size is 3.5: need an integer >= 1"),
        ({"num_layers": 0}, ValueError, "num_layers is 0: need an integer >= 1"),
        ({"seq_model": ["rnn"]}, ValueError, "unknown seq_model: ['rnn']: need 'rnn' or 'lstm'"),
        ({"dropout": "0.5"}, TypeError, "dropout: got '0.5': need a number in [0, 1]"),
        ({"dropout": 1.5}, ValueError, "dropout: got 1.5: need a number in [0, 1]"),
        ({"tied": "yes"}, TypeError, "tied: got 'yes': need True or False"),
    ],
)
def test_a_language_model_names_a_wrong_setting(options, kind, text):
    given = {"embedding_size": 2, "output_size": 9, "hidden_size": 3, **options}
    check(lambda: LanguageModel(**given), kind, f"LanguageModel: {text}")


@pytest.mark.parametrize("x", [[[1, 2], [3, 4]], None, np.zeros((2, 2), "float32")])
def test_a_language_model_reads_tensors(x):
    kind = type(x).__name__
    check(lambda: language_model()(x), TypeError, f"LanguageModel: x is a {kind}: need a Tensor")


def test_a_tied_layer_needs_an_embedding():
    text = "TiedLinear: embedding is a Linear: need an Embedding"
    check(lambda: TiedLinear(nn.Linear(2, 3)), TypeError, text)


# ---- Trainer -------------------------------------------------------------------------------------


def trainer(**options):
    task = text_task(language_model(), {"train": WORDS, "valid": WORDS}, 4, 4)
    return Trainer(**{"task": task, "opt": sgd(), "epochs": 1, **options})


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"task": None}, TypeError, "task is a NoneType: need a Task"),
        ({"task": language_model()}, TypeError, "task is a LanguageModel: need a Task"),
        ({"opt": SGD}, TypeError, "opt is the class SGD: need an Optimizer"),
        ({"epochs": "3"}, TypeError, "epochs is '3': need a whole number"),
        ({"epochs": True}, TypeError, "epochs is True: need a whole number"),
        ({"epochs": 0}, ValueError, "epochs too small: 0: need at least 1"),
        ({"schedule": 0.5}, TypeError, "schedule is a float: need a function of the epoch"),
        ({"lr": "fast"}, TypeError, "lr: got 'fast': need a finite number >= 0"),
        ({"lr": -1.0}, ValueError, "lr: got -1.0: need a finite number >= 0"),
        *NO_CLIPS,
        ({"early_stop": 0}, ValueError, "early_stop too small: 0: need at least 1"),
        ({"early_stop": 1.5}, TypeError, "early_stop is 1.5: need a whole number"),
        (
            {"callbacks": Callback()},
            TypeError,
            "callbacks is a Callback: need a sequence of Callback objects",
        ),
        (
            {"callbacks": [Callback(), Callback]},
            TypeError,
            "callbacks[1] is the class Callback: need a Callback",
        ),
        ({"checkpoints": "folder"}, TypeError, "checkpoints is a str: need a Checkpointer"),
    ],
)
def test_a_trainer_names_a_wrong_argument(options, kind, text):
    check(lambda: trainer(**options), kind, f"Trainer: {text}")


def test_a_trainer_takes_what_is_right():
    right = trainer(
        epochs=np.int64(2), schedule=lambda t: 1.0, lr=0, clip=0.5, early_stop=1,
        callbacks=(Callback(),), checkpoints=Checkpointer(),
    )  # fmt: skip
    assert right.run().epochs == 2


# ---- simple_ml -----------------------------------------------------------------------------------

MADE = "or a function that makes one"


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"model": TEXT, "data": language_model()}, TypeError, "model is a ndarray: need a Module"),
        ({"model": LanguageModel}, TypeError, "model is the class LanguageModel: need a Module"),
        (
            {"model": nn.Linear(3, 4)},
            TypeError,
            "model is a Linear, not called as model(ids, h): need one that returns (logits, h), "
            "such as LanguageModel",
        ),
        (
            {"data": None},
            TypeError,
            "data is a NoneType: need word ids (nbatch, batch_size), from batchify",
        ),
        ({"seq_len": "40"}, TypeError, "seq_len is '40': need a whole number"),
        ({"seq_len": 4.0}, TypeError, "seq_len is 4.0: need a whole number"),
        ({"n_epochs": "2"}, TypeError, "n_epochs is '2': need a whole number"),
        ({"n_epochs": 1.5}, TypeError, "n_epochs is 1.5: need a whole number"),
        ({"optimizer": sgd()}, TypeError, f"optimizer is a SGD: need a class such as SGD, {MADE}"),
        ({"optimizer": "sgd"}, TypeError, f"optimizer is a str: need a class such as SGD, {MADE}"),
        (
            {"loss_fn": nn.SoftmaxLoss()},
            TypeError,
            f"loss_fn is a SoftmaxLoss: need a class such as SoftmaxLoss, {MADE}",
        ),
        (
            {"loss_fn": "x"},
            TypeError,
            f"loss_fn is a str: need a class such as SoftmaxLoss, {MADE}",
        ),
        (
            {"loss_fn": lambda: 3},
            TypeError,
            "loss_fn() is a int: need a function of logits and ids",
        ),
        *NO_CLIPS,
    ],
)
def test_train_ptb_names_a_wrong_argument(options, kind, text):
    given = {"model": language_model(), "data": TEXT, "seq_len": 4, **options}
    check(lambda: simple_ml.train_ptb(**given), kind, f"train_ptb: {text}")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": IMAGES, "dataloader": classifier()}, "model is a list: need a Module"),
        ({"model": nn.Flatten}, "model is the class Flatten: need a Module"),
        ({"dataloader": 3}, "dataloader is a int: need batches of (images, labels)"),
        ({"n_epochs": "1"}, "n_epochs is '1': need a whole number"),
        ({"optimizer": sgd()}, f"optimizer is a SGD: need a class such as SGD, {MADE}"),
        (
            {"loss_fn": nn.SoftmaxLoss()},
            f"loss_fn is a SoftmaxLoss: need a class such as SoftmaxLoss, {MADE}",
        ),
    ],
)
def test_train_cifar10_names_a_wrong_argument(options, text):
    given = {"model": classifier(), "dataloader": IMAGES, **options}
    check(lambda: simple_ml.train_cifar10(**given), TypeError, f"train_cifar10: {text}")


@pytest.mark.parametrize("name", ["ptb", "cifar10"])
def test_the_evaluating_functions_name_a_wrong_argument(name):
    evaluate = getattr(simple_ml, f"evaluate_{name}")
    model, data = {"ptb": (language_model(), TEXT), "cifar10": (classifier(), IMAGES)}[name]
    kind = type(data).__name__
    check(
        lambda: evaluate(data, model),
        TypeError,
        f"evaluate_{name}: model is a {kind}: need a Module",
    )
    text = f"evaluate_{name}: loss_fn is a SoftmaxLoss: need a class such as SoftmaxLoss, {MADE}"
    check(lambda: evaluate(model, data, loss_fn=nn.SoftmaxLoss()), TypeError, text)


@pytest.mark.parametrize("name", ["ptb", "cifar10"])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": None}, "model is a NoneType: need a Module"),
        (
            {"loss_fn": nn.SoftmaxLoss},
            "loss_fn is the class SoftmaxLoss: need a function of logits and ids",
        ),
        ({"opt": SGD}, "opt is the class SGD: need an Optimizer, or None to measure"),
    ],
)
def test_an_epoch_names_a_wrong_argument(name, options, text):
    model, data = {"ptb": (language_model(), TEXT), "cifar10": (classifier(), IMAGES)}[name]
    given = {"model": model, ("data" if name == "ptb" else "dataloader"): data, **options}
    epoch = getattr(simple_ml, f"epoch_general_{name}")
    check(lambda: epoch(**given), TypeError, f"epoch_general_{name}: {text}")


def test_a_loss_that_is_no_tensor_and_a_batch_that_is_no_pair():
    text = "run_epoch: the loss is a float: need a Tensor"
    check(
        lambda: simple_ml.epoch_general_ptb(TEXT, language_model(), 4, lambda z, y: 3.0),
        TypeError,
        text,
    )
    text = "image_steps: a batch is a int: need a pair (images, labels)"
    check(lambda: simple_ml.evaluate_cifar10(classifier(), [1, 2]), TypeError, text)


def test_the_mnist_functions_name_a_wrong_argument():
    X, y = np.zeros((6, 5), "float32"), np.zeros(6, "uint8")
    W1, W2 = ndl.Tensor(np.zeros((5, 4))), ndl.Tensor(np.zeros((4, 3)))
    epoch, loss = simple_ml.nn_epoch, simple_ml.softmax_loss
    check(
        lambda: epoch(X, y, W1, W2.numpy()), TypeError, "nn_epoch: W2 is a ndarray: need a Tensor"
    )
    text = "nn_epoch: batch is '3': need a whole number"
    check(lambda: epoch(X, y, W1, W2, 0.1, "3"), TypeError, text)
    check(
        lambda: epoch(X, y, W1, W2, "0.1"),
        TypeError,
        "nn_epoch: lr: got '0.1': need a finite number >= 0",
    )
    check(lambda: loss([1], W1), TypeError, "softmax_loss: Z is a list: need a Tensor")
    check(lambda: loss(W1, [1]), TypeError, "softmax_loss: y_one_hot is a list: need a Tensor")
    text = "loss_err: y is a Tensor: need an array of whole numbers"
    check(lambda: simple_ml.loss_err(W1, ndl.Tensor([0, 1, 2, 3, 0])), TypeError, text)
    text = "nn_epoch: y is a ndarray: need an array of whole numbers"
    check(lambda: epoch(X, y.astype("float32"), W1, W2), TypeError, text)
    text = "loss_err: h is a ndarray: need a Tensor"
    check(lambda: simple_ml.loss_err(np.zeros((6, 3)), y), TypeError, text)
