"""Ten training steps end where PyTorch's do."""

import apps_golden
import numpy as np
import pytest


@pytest.mark.parametrize("name", ["resnet9", "rnn", "lstm"])
# float32: rounding of 6e-8 grows over ten steps; Adam divides by small square roots.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-7), ("float32", 2e-3)])
def test_ten_losses(name, device, dtype, tolerance):
    losses = apps_golden.ten_losses(name, device, dtype)
    np.testing.assert_allclose(losses, apps_golden.LOSSES[name], rtol=tolerance)
