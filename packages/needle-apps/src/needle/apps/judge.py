"""What a classifier says of each single example of a split, and where it is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray as Array

from needle import cpu, no_grad
from needle.apps.tasks import Task
from needle.apps.training import Step


@dataclass(frozen=True)
class Judgement:
    """Example by example, in the order of the split.

    Attributes:
        labels: true classes, int64 (n,).
        predicted: the classes of the highest logits, int64 (n,).
        losses: logsumexp(logits) - logits[label], float64 (n,).
    """

    labels: Array[np.int64]
    predicted: Array[np.int64]
    losses: Array[np.float64]

    def confusion(self, classes: int) -> Array[np.int64]:
        """Counts (classes, classes): true class by row, predicted class by column."""
        pairs = self.labels * classes + self.predicted
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def mistakes(self) -> Array[np.int64]:
        """The positions of what is classified wrongly, the highest loss first."""
        wrong = np.flatnonzero(self.labels != self.predicted)
        return wrong[np.argsort(-self.losses[wrong], kind="stable")]


def judge(task: Task, split: str) -> Judgement:
    """Run the model, in evaluation mode, over a split that is not shuffled."""
    task.model.eval()
    with no_grad():
        parts = [_judge_step(step) for step in task.steps(split)]
    labels, predicted, losses = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Judgement(labels, predicted, losses)


def _judge_step(step: Step) -> tuple[Array[np.int64], Array[np.int64], Array[np.float64]]:
    logits = np.asarray(step.logits.detach().to(cpu())).astype(np.float64)
    labels = step.targets.numpy().astype(np.int64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return labels, logits.argmax(axis=1), losses
