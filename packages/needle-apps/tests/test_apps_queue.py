"""Training gives the same bits whether short calls wait in the queue or not."""

import os
import subprocess
import sys

SOURCE = """
import hashlib
import numpy as np
import needle as ndl
from needle.apps.models import ResNet9

np.random.seed(0)
ndl.set_num_threads(2)
model, loss_fn = ResNet9(), ndl.nn.SoftmaxLoss()
opt = ndl.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(6):
    x = ndl.Tensor(np.random.rand(64, 3, 32, 32), requires_grad=False)
    y = ndl.Tensor(np.random.randint(0, 10, 64), requires_grad=False)
    opt.reset_grad()
    loss_fn(model(x), y).backward(retain_graph=False)
    opt.step()
print(hashlib.sha256(b"".join(p.numpy().tobytes() for p in model.parameters())).hexdigest())
"""


def weights_after_training(sync: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SOURCE],
        env={**os.environ, "NEEDLE_CPU_SYNC": sync},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_the_queue_changes_no_bit() -> None:
    waiting, at_once = weights_after_training("0"), weights_after_training("1")
    assert len(waiting) == 64
    assert waiting == at_once
