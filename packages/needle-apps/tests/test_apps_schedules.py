"""Schedules against their formulas, point by point."""

import math

import numpy as np
import pytest

from needle.apps import schedules


def test_constant():
    assert [schedules.constant()(t) for t in (0, 0.5, 100)] == [1, 1, 1]


def test_step_decays_after_every_few_epochs():
    factor = schedules.step(every=3, decay=0.1)
    found = [factor(t) for t in (0, 2.999, 3, 5.9, 6, 9)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001])


def test_zaremba_halves_each_epoch_after_the_fourth():
    """Epochs count from 1: the small model's 13 rates, every batch of an epoch at the same one."""
    factor = schedules.zaremba(after=4, decay=0.5)
    rates = [factor(epoch) for epoch in range(13)]
    assert rates == [1, 1, 1, 1] + [0.5**n for n in range(1, 10)]
    assert [factor(epoch + 0.999) for epoch in range(13)] == rates


def test_zaremba_medium():
    factor = schedules.zaremba(after=6, decay=1 / 1.2)
    assert [factor(e) for e in (0, 5, 6, 7, 38)] == pytest.approx(
        [1, 1, 1.2**-1, 1.2**-2, 1.2**-33]
    )


def test_cosine():
    factor = schedules.cosine(10)
    assert [factor(t) for t in (0, 2.5, 5, 10, 11)] == pytest.approx(
        [1, 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0, 0]
    )


def test_cosine_with_warmup():
    factor = schedules.cosine(10, warmup=2)
    assert [factor(t) for t in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_one_cycle_has_pytorchs_ends_and_shape():
    """Both waves of OneCycleLR: from max / 25 to max and to max / 25 / 1e4."""
    factor = schedules.one_cycle(10, peak=2)
    assert factor(0) == pytest.approx(0.04)
    assert factor(1) == pytest.approx((1 + 0.04) / 2)
    assert factor(2) == 1
    assert factor(6) == pytest.approx((1 + 4e-6) / 2)
    assert factor(10) == pytest.approx(4e-6)
    points = [factor(t) for t in np.linspace(0, 10, 101)]
    assert np.argmax(points) == 20
    assert np.all(np.diff(points[:21]) > 0)
    assert np.all(np.diff(points[20:]) < 0)
