"""The training loop's own parts."""

import numpy as np
import pytest

import needle as ndl
from needle.apps import training
from needle.apps.models import ResNet9
from needle.apps.training import scale_weights


def test_scale_weights_reaches_convolutions_and_linear_layers_only():
    np.random.seed(0)
    model = ResNet9()
    before = {name: p.numpy() for name, p in model.named_parameters()}
    scale_weights(model, 0.5)
    for name, p in model.named_parameters():
        scaled = name.endswith("weight") and "norm" not in name
        np.testing.assert_array_equal(p.numpy(), before[name] * (0.5 if scaled else 1), name)
        assert p.dtype == np.float32
    assert sum(name.endswith("weight") and "norm" not in name for name in before) == 10


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_hits_are_counted_where_the_logits_are(device, dtype):
    """Ties go to the first class, as NumPy's argmax has it."""
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(0, 3, (50, 5)), rng.integers(0, 5, 50)
    want = int((logits.argmax(1) == labels).sum())
    scores = ndl.Tensor(logits, device=device)
    assert training.count_hits(scores, ndl.Tensor(labels, device=device, dtype=dtype)) == want
