"""The test helpers fail where they should, and make the views they promise."""

import re

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle.backend_ndarray import testing
from needle.backend_ndarray.testing import (
    VIEWS,
    array_devices,
    compare,
    make_view,
    rounding,
    targets,
)


def fails(got, want, message, **options):
    with pytest.raises(AssertionError, match=message):
        compare(got, want, **options)


class TestCompare:
    def test_passes(self):
        x = nd.array([1.0, 2.0], dtype="float32")
        compare(x, np.float32([1, 2]))
        compare(x, np.array([1.0, 2.0]), dtype="float32")
        compare(x, np.array([1.0, 2.1]), dtype="float32", atol=0.11)
        compare(x, np.array([1.0, 2.1]), dtype="float32", atol=np.array([0, 0.11]))
        compare(x, np.array([1.0, 2.1]), dtype="float32", rtol=0.05)

    def test_shape_and_dtype_come_first(self):
        x = nd.array([1.0, 2.0], dtype="float32")
        fails(x, np.float32([[1, 2]]), r"shape: got \(2,\): want \(1, 2\)")
        fails(x, np.array([1.0, 2.0]), "dtype: got float32: want float64")

    def test_values(self):
        x = nd.array([1.0, 2.0], dtype="float32")
        fails(x, np.float32([1, 2.5]), r"got 2.0: want 2.5 at \(1,\); 1 of 2 elements.*0.5")
        fails(x, np.float32([1, np.nan]), "want nan")
        fails(x, np.float32([1, np.inf]), "want inf", atol=1.0, finite=False)
        fails(nd.array([1, 2], dtype="int32"), np.int32([1, 3]), "differs: got 2: want 3")

    def test_not_finite(self):
        x = nd.array([1.0, np.nan, -np.inf], dtype="float32")
        fails(x, x.numpy(), r"not finite: got nan: want nan at \(1,\)")
        compare(x, x.numpy(), finite=False)
        fails(x, np.float32([1, np.nan, np.inf]), "got -inf: want inf", finite=False)
        fails(x, np.float32([1, 5, -np.inf]), "got nan: want 5", finite=False, atol=1e9)


def test_rounding():
    assert rounding("float32") == 2.0**-24
    assert rounding("float64", 4) == 2.0**-51


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (3, 4), (2, 0, 3), (2, 3, 4)], ids=str)
def test_views_hold_their_values(device, view, shape):
    values = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    a = make_view(view, values, device)
    if view == "broadcast" and shape and shape[0]:
        values = np.broadcast_to(values[:1], shape)
    compare(a, values)


def test_views_are_what_they_are_called(device):
    strides = {kind: make_view(kind, np.ones((3, 4)), device).strides for kind in VIEWS}
    assert strides == {
        "compact": (4, 1),
        "permuted": (1, 3),
        "stepped": (18, 2),
        "reversed": (-4, -1),
        "offset": (4, 1),
        "broadcast": (0, 1),
    }
    assert make_view("offset", np.ones((3, 4)), device)._offset == 1


def test_every_target_is_listed():
    names = [str(t) for t in targets()]
    assert names[-2:] == ["cpu_numpy", "cuda"]
    if nd.cpu() != nd.cpu_numpy():
        assert names[:-2] == [f"cpu-{isa}" for isa in nd.available_isas()]


@pytest.mark.skipif(nd.cuda().enabled(), reason="this machine has CUDA")
def test_missing_cuda_is_a_visible_skip_or_a_failure(monkeypatch):
    monkeypatch.delenv("NEEDLE_REQUIRE", raising=False)
    (skip,) = array_devices()[-1].marks
    assert skip.name == "skip"
    assert re.match("no CUDA: missing (the|an) extension", skip.kwargs["reason"])
    monkeypatch.setenv("NEEDLE_REQUIRE", "cuda")
    required = array_devices()[-1]
    assert required.id == "cuda"
    assert not required.marks
    with pytest.raises(nd.DeviceError), required.values[0].active() as device:
        nd.zeros((1,), device=device)


def test_target_restores_the_instruction_set():
    before = nd.isa()
    with testing.Target(nd.cpu(), "scalar").active():
        assert nd.isa() == "scalar"
    assert nd.isa() == before
