"""The benchmarks' cases run and agree, without being timed; every kernel has one."""

from pathlib import Path

import pytest
from bench_sides import assert_equal
from bench_worker import as_arrays, load_cases

from needle import backend_ndarray as nd
from needle._kernels import cpu

ROOT = Path(__file__).resolve().parents[2]
CASES = {path.stem: path for path in ROOT.glob("packages/*/benchmarks/*_cases.py")}
KERNELS = load_cases(CASES["kernel_cases"])
MODULES = load_cases(CASES["module_cases"])
STEPS = load_cases(CASES["step_cases"])


def test_kernels_agree_with_numpy_and_every_kernel_is_among_them():
    recorder = nd.Recorder()
    recorder.start()
    for name, case in KERNELS.CASES.items():
        if name.endswith(("tiny", "8x8x8")):
            want = as_arrays(KERNELS.make("numpy", name).run())
            got = as_arrays(KERNELS.make("needle", name).run())
            assert_equal(got, want, name, case.tolerance)
    recorder.stop()
    assert set(cpu.KERNELS) - {call.kernel for call in recorder.take()} == set()


def test_what_differs_is_noticed():
    want = as_arrays(KERNELS.make("needle", "exp-tiny").run())
    with pytest.raises(AssertionError, match="numpy: differs by"):
        assert_equal(want, [want[0] + 1e-2], "numpy", 1e-4)
    with pytest.raises(AssertionError, match="numpy: shapes differ"):
        assert_equal(want, [want[0][:1]], "numpy", 1e-4)


@pytest.mark.parametrize("name", MODULES.MODULES)
def test_modules_agree_with_numpy(name):
    for way in ("forward", "both"):
        work = [MODULES.make(side, f"{name}-{way}") for side in ("needle", "numpy")]
        assert_equal(*[as_arrays(w.run()) for w in work], "numpy", 1e-3)


def test_a_step_gives_losses():
    run = STEPS.make("needle", "resnet9-batch-4").run
    (first,) = as_arrays(run())
    assert first.shape == (STEPS.FIRST,)
    assert run() < first[0], "every step sees the same batch"
    assert STEPS.make("numpy", "lstm-200") is None


@pytest.mark.parity
@pytest.mark.parametrize("name", ["resnet9-batch-4", "rnn-200", "lstm-200"])
def test_steps_agree_with_torch(name):
    pytest.importorskip("torch")
    work = [STEPS.make(side, name) for side in ("needle", "torch")]
    assert_equal(*[as_arrays(w.run()) for w in work], "torch", 2e-3)
