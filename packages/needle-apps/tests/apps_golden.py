"""The golden runs: ten training steps of each network, from fixed weights and data."""

import numpy as np

import needle as ndl
from needle import nn, optim
from needle.apps.models import LanguageModel, ResNet9
from needle.apps.training import image_steps, run_epoch, text_steps

WORDS, SIZE, LAYERS, WINDOW, CLIP, RATE = 50, 16, 2, 4, 0.25, 4.0

# Losses of PyTorch 2.13 in float64, from the same weights and data: test_apps_parity.py.
LOSSES = {
    "resnet9": [
        3.574725283263,
        4.13059740616,
        3.28108801598,
        3.381683594881,
        3.031664216047,
        0.60862840742,
        0.940436375625,
        0.895505441941,
        0.903844417273,
        0.680166233043,
    ],
    "rnn": [
        4.051726577755,
        3.970667623556,
        4.019923546366,
        3.998868201429,
        4.307805348151,
        4.299858298097,
        4.009037605748,
        4.272250480213,
        3.891021392382,
        4.362281126668,
    ],
    "lstm": [
        3.92552132852,
        4.124074328614,
        3.964560880326,
        4.007273240124,
        3.978923402786,
        3.863122265245,
        3.868836564648,
        4.0709099085,
        3.764088188891,
        3.977747154411,
    ],
}


def image_batches():
    """Ten batches of 16 images; the last five are the first five again."""
    rng = np.random.RandomState(1)
    return [(rng.rand(16, 3, 32, 32), rng.randint(0, 10, 16)) for _ in range(5)] * 2


def text():
    """Word ids (41, 4): ten windows of four rows."""
    return np.random.RandomState(2).randint(0, WORDS, (41, 4))


def make_model(name, device=None, dtype="float64"):
    np.random.seed(3)
    if name == "resnet9":
        return ResNet9(device=device, dtype=dtype)
    return LanguageModel(SIZE, WORDS, SIZE, LAYERS, name, device=device, dtype=dtype)


def ten_losses(name, device, dtype):
    """The losses of ten steps of the training loop."""
    model, losses = make_model(name, device, dtype), []
    softmax_loss = nn.SoftmaxLoss()

    def loss_fn(logits, targets):
        loss = softmax_loss(logits, targets)
        losses.append(loss.item())
        return loss

    if name == "resnet9":
        tensors = [
            tuple(ndl.Tensor(part, device=device, dtype=dtype) for part in batch)
            for batch in image_batches()
        ]
        opt = optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)
        run_epoch(image_steps(tensors, model), model, loss_fn, opt)
    else:
        opt = optim.SGD(model.parameters(), lr=RATE)
        run_epoch(text_steps(text(), model, WINDOW), model, loss_fn, opt, CLIP)
    return losses
