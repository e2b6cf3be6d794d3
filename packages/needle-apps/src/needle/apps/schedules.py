"""Learning-rate schedules: how large each step's rate is, as a factor of the base rate.

A schedule is a function of `t`, the epochs trained so far with their fraction, and nothing else:
it has no state, so a resumed run continues it by knowing where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]
"""`schedule(t)`: the factor of the base rate for a step that begins `t` epochs into the run."""


def constant() -> Schedule:
    """Always 1."""
    return lambda t: 1.0


def step(every: int, decay: float) -> Schedule:
    """`decay ** floor(t / every)`: times `decay` after every so many epochs."""
    return lambda t: float(decay ** (t // every))


def zaremba(after: int, decay: float) -> Schedule:
    """`decay ** max(n - after, 0)` in the n-th epoch, n = 1, 2, ...: full for `after` epochs.

    Source: Zaremba et al. 2014, "Recurrent Neural Network Regularization", section 4.1.
    """
    return lambda t: float(decay ** max(int(t) + 1 - after, 0))


def cosine(epochs: float, warmup: float = 0.0) -> Schedule:
    """A straight rise from 0 to 1 in `warmup` epochs, then half a cosine wave down to 0.

    Source: Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts.
    """

    def factor(t: float) -> float:
        if t < warmup:
            return t / warmup
        return 0.5 * (1 + math.cos(math.pi * _part(t, warmup, epochs)))

    return factor


def one_cycle(epochs: float, peak: float, start: float = 0.04, end: float = 4e-6) -> Schedule:
    """From `start` up to 1 at epoch `peak` and down to `end`, each along half a cosine wave.

    Source: Smith and Topin 2018, "Super-Convergence"; the shape and the defaults of `start` and
    `end` are PyTorch's OneCycleLR's, which peaks at 0.3 of the run.
    """

    def wave(a: float, b: float, part: float) -> float:
        return b + (a - b) * 0.5 * (1 + math.cos(math.pi * part))

    def factor(t: float) -> float:
        if t < peak:
            return wave(start, 1.0, t / peak)
        return wave(1.0, end, _part(t, peak, epochs))

    return factor


def _part(t: float, begin: float, end: float) -> float:
    """How far t has come from begin to end, in [0, 1]."""
    return min(max((t - begin) / (end - begin), 0.0), 1.0) if end > begin else 1.0
