"""The networks and their training against PyTorch, in float64: `hatch run parity:test`."""

import apps_golden
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: run `hatch run parity:test`")
pytestmark = pytest.mark.parity


class TorchResNet9(torch.nn.Module):
    """The same network, its layers in the order in which needle names them."""

    def __init__(self):
        super().__init__()

        def conv_bn(a, b, k, stride):
            conv = torch.nn.Conv2d(a, b, k, stride, padding=k // 2)
            return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(b), torch.nn.ReLU())

        def pair(channels):
            return torch.nn.Sequential(
                conv_bn(channels, channels, 3, 1), conv_bn(channels, channels, 3, 1)
            )

        self.stem = torch.nn.Sequential(conv_bn(3, 16, 7, 4), conv_bn(16, 32, 3, 2))
        self.first = pair(32)
        self.middle = torch.nn.Sequential(conv_bn(32, 64, 3, 2), conv_bn(64, 128, 3, 2))
        self.second = pair(128)
        self.head = torch.nn.Sequential(
            torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
        )

    def forward(self, x):
        x = self.stem(x)
        x = self.middle(x + self.first(x))
        return self.head((x + self.second(x)).flatten(1))


class TorchLanguageModel(torch.nn.Module):
    """Embedding, recurrent layers, Linear."""

    def __init__(self, kind):
        super().__init__()
        size, layers = apps_golden.SIZE, apps_golden.LAYERS
        recurrent = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM}[kind]
        self.embedding = torch.nn.Embedding(apps_golden.WORDS, size)
        self.recurrent = recurrent(size, size, layers)
        self.linear = torch.nn.Linear(size, apps_golden.WORDS)

    def forward(self, x, h):
        out, h = self.recurrent(self.embedding(x), h)
        return self.linear(out.flatten(0, 1)), h


def with_needles_weights(model, name):
    """Both networks hold their parameters in the same order; matrices are transposed."""
    ours = [p.numpy() for p in apps_golden.make_model(name).parameters()]
    model = model.double()
    theirs = list(model.named_parameters())
    assert len(ours) == len(theirs)
    for (path, parameter), values in zip(theirs, ours, strict=True):
        if values.ndim == 4:
            values = values.transpose(3, 2, 0, 1)
        elif values.ndim == 2 and "embedding" not in path:
            values = values.T
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values.reshape(parameter.shape).copy()))
    return model


def resnet9_losses():
    model = with_needles_weights(TorchResNet9(), "resnet9")
    opt = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)
    losses = []
    for images, labels in apps_golden.image_batches():
        opt.zero_grad()
        logits = model(torch.from_numpy(images))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


def language_losses(kind):
    model = with_needles_weights(TorchLanguageModel(kind), kind)
    opt = torch.optim.SGD(model.parameters(), lr=apps_golden.RATE)
    data, window, state, losses = torch.from_numpy(apps_golden.text()), apps_golden.WINDOW, None, []
    for i in range(0, len(data) - 1, window):
        opt.zero_grad()
        logits, state = model(data[i : i + window], state)
        state = tuple(s.detach() for s in state) if kind == "lstm" else state.detach()
        targets = data[i + 1 : i + 1 + window].flatten()
        loss = torch.nn.functional.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), apps_golden.CLIP)
        opt.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["resnet9", "rnn", "lstm"])
def test_the_recorded_losses_are_pytorchs(name):
    losses = resnet9_losses() if name == "resnet9" else language_losses(name)
    np.testing.assert_allclose(losses, apps_golden.LOSSES[name], rtol=1e-9)


def show():
    """Prints the losses to record, as apps_golden.LOSSES holds them."""
    for name in ("resnet9", "rnn", "lstm"):
        losses = resnet9_losses() if name == "resnet9" else language_losses(name)
        print(f'    "{name}": {[round(loss, 12) for loss in losses]},')
