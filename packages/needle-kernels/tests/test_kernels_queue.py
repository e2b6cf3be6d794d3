"""The queue of short calls: nobody sees memory that a waiting call has yet to write or read."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from fresh_process import run

from needle import backend_ndarray as nd
from needle._kernels import cpu

pytestmark = pytest.mark.skipif(
    nd.cpu() == nd.cpu_numpy(), reason="NEEDLE_BACKEND=np: cpu() is the NumPy device, without queue"
)

ROWS, COLUMNS = 400, 320  # 512 KB: long enough to be queued


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = nd.num_threads()
    nd.set_num_threads(2)
    yield
    nd.set_num_threads(before)


def draw(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 9, (ROWS, COLUMNS)).astype("float32")


def array(values: np.ndarray) -> nd.NDArray:
    return nd.NDArray(values, device=nd.cpu())


def some_calls(a: nd.NDArray) -> nd.NDArray:
    """A chain whose end is exactly `a`: every call of it must have run, in order."""
    for k in range(20):
        a = -(a + float(k)) + float(k)
        a = -a.permute((1, 0)).compact().permute((1, 0)) - 2.0 * k + 2.0 * k
    return a


@pytest.mark.parametrize("turn", range(20))
def test_a_reader_waits_for_what_it_reads(turn: int) -> None:
    values = draw(turn)
    readers = [
        lambda a: a.numpy(),
        lambda a: np.asarray(a),
        lambda a: np.from_dlpack(a),
        lambda a: np.array(a.tolist(), "float32"),
        lambda a: a.to(nd.cpu_numpy()).numpy(),
        lambda a: a.__reduce__()[1][0],
    ]
    reader = readers[turn % len(readers)]
    np.testing.assert_array_equal(reader(some_calls(array(values))), expected(values))


def expected(a: np.ndarray) -> np.ndarray:
    for k in range(20):
        a = -(a + k) + k
        a = -a - 2.0 * k + 2.0 * k
    return a


def test_memory_that_is_handed_out_again_is_not_written_too_early() -> None:
    """A freed operand's block goes to an array that the host fills while the call still waits."""
    for turn in range(200):
        values = draw(turn % 7)
        product = some_calls(array(values)) * array(values)  # both operands die here
        later = [array(np.full((ROWS, COLUMNS), 99.0)) for _ in range(4)]
        np.testing.assert_array_equal(product.numpy(), expected(values) * values)
        assert all((a.numpy() == 99).all() for a in later)


def test_the_numpy_device_does_not_write_into_a_block_too_early() -> None:
    """Its kernels are the host's, and its blocks those of the same allocator."""
    values = array(draw())
    for _ in range(50):
        waiting = [-values for _ in range(8)]
        del waiting  # the blocks are free, but most calls have yet to write them
        filled = [nd.full((ROWS, COLUMNS), 99.0, device=nd.cpu_numpy()) for _ in range(8)]
        nd.synchronize()
        assert all((a.numpy() == 99).all() for a in filled)


def test_who_runs_waiting_calls_first_keeps_its_own_thread_count() -> None:
    """Such a weight gradient is summed in as many parts as there are threads: its bits tell."""
    draw = np.random.default_rng(0).standard_normal
    x, dy = (array(draw((64, 16, 16, 16)).astype("float32")) for _ in range(2))
    values = array(draw((1024, 1024)).astype("float32"))

    def gradient(threads: int) -> np.ndarray:
        nd.set_num_threads(threads)
        return nd.conv_weight_grad(x, dy, 3, 1, 1).numpy()

    one, two = gradient(1), gradient(2)
    assert (one != two).any()
    for _ in range(20):
        nd.set_num_threads(2)
        waiting = [nd.exp(values) for _ in range(6)]
        np.testing.assert_array_equal(gradient(1), one)
        del waiting


def test_a_numpy_view_sees_every_write_at_once() -> None:
    a = array(np.zeros((ROWS, COLUMNS)))
    view = np.asarray(a)
    for k in range(1, 100):
        a += 1.0
        assert (view == k).all()
    for k in range(100):
        view[...] = k
        doubled = a * 2.0
        view[...] = -1
        assert (doubled.numpy() == 2 * k).all()


def test_borrowed_memory_is_read_before_the_call_returns() -> None:
    values = draw()
    a, other = nd.from_dlpack(values), array(draw(1))
    for k in range(30):
        values[...] = k
        busy = some_calls(other)  # what waits when a is read
        doubled = a * 2.0
        values[...] = -1
        assert (doubled.numpy() == 2 * k).all()
        np.testing.assert_array_equal(busy.numpy(), expected(draw(1)))


def test_an_address_that_is_given_away_is_safe_to_look_at() -> None:
    import ctypes

    a = array(np.zeros((ROWS, COLUMNS)))
    for k in range(50):
        a = a + 1.0
        first = ctypes.cast(a._handle.ptr(), ctypes.POINTER(ctypes.c_float))
        assert (first[0], first[ROWS * COLUMNS - 1]) == (k + 1, k + 1)
        a *= 2.0
        assert first[ROWS * COLUMNS - 1] == 2 * (k + 1)
        a = a * 0.5


def test_ids_are_checked_after_they_are_computed() -> None:
    table = nd.NDArray(np.arange(1000, dtype="float32").reshape(500, 2), device=nd.cpu())
    for turn in range(50):
        ids = array(np.full((ROWS, COLUMNS), 3.0)) + float(turn)
        np.testing.assert_array_equal(
            nd.gather(table, ids.astype("int64"))[0, 0].numpy(),
            [2 * (turn + 3), 2 * (turn + 3) + 1],
        )
        with pytest.raises(IndexError, match="got 503"):
            nd.gather(table, (ids - float(turn) + 500.0).astype("int64"))


def test_random_programs_agree_with_numpy() -> None:
    """Operations, views, in-place writes, host writes and dropped arrays, in random order."""
    rng = np.random.default_rng(5)
    ours = [array(draw(k)) for k in range(4)]
    theirs = [a.numpy() for a in ours]
    for _ in range(3000):
        i, j, k = rng.integers(0, 4, 3)
        what = rng.integers(0, 7)
        if what == 0:
            ours[k], theirs[k] = ours[i] + ours[j], theirs[i] + theirs[j]
        elif what == 1:
            ours[k], theirs[k] = nd.maximum(ours[i], 2.0), np.maximum(theirs[i], 2)
        elif what == 2 and i != j:
            ours[i] -= ours[j]
            theirs[i] = theirs[i] - theirs[j]
        elif what == 3:
            ours[k] = array(draw(int(i)))
            theirs[k] = draw(int(i))
        elif what == 4:
            ours[i][10:50, ::2] = ours[i][60:100, ::2]
            theirs[i] = theirs[i].copy()
            theirs[i][10:50, ::2] = theirs[i][60:100, ::2]
        elif what == 5:
            ours[i] = ours[i] * 0.5
            theirs[i] = theirs[i] * np.float32(0.5)
        elif rng.integers(0, 10) == 0:
            np.testing.assert_array_equal(ours[i].numpy(), theirs[i])
    for ours_last, theirs_last in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(ours_last.numpy(), theirs_last)


def test_freed_blocks_are_not_returned_to_the_system_under_a_waiting_call() -> None:
    values = draw()
    try:
        for turn in range(30):
            a = some_calls(array(values))
            if turn % 2:
                nd.empty_cache()
            nd.set_pooling(turn % 3 > 0)
            np.testing.assert_array_equal(a.numpy(), expected(values))
    finally:
        nd.set_pooling(True)


def test_several_threads_share_the_queue() -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        values = draw(seed)
        wanted = expected(values)
        for turn in range(15):
            if not (some_calls(array(values)).numpy() == wanted).all():
                wrong.append(turn)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        for threads in (1, 2, 5):
            nd.set_num_threads(threads)
    for worker in workers:
        worker.join()
    assert wrong == []


def test_calls_with_many_operands_keep_their_own() -> None:
    groups = [[array(np.full((80, 80), float(k))) for k in range(20)] for _ in range(3)]
    ones = [array(np.ones((80, 80))) for _ in range(20)]
    for turn in range(1, 60):
        for group in groups:
            nd.scale(group, 2.0)
            nd.moving_average(group, ones, 0.5)
        for group in groups:
            for k in (0, 19):
                assert (group[k].numpy() == k + turn * 0.5).all()


def test_synchronize_leaves_nothing_waiting() -> None:
    before = nd.counters().get(("cpu", "add"), 0)
    a = array(draw())
    for _ in range(30):
        b = a + a
    nd.synchronize()
    assert nd.counters()["cpu", "add"] - before == 30
    np.testing.assert_array_equal(b.numpy(), 2 * draw())


def test_calls_that_go_through_much_memory_are_waited_for() -> None:
    """Every eighth item of 64 MB is 8 MB, and all of the memory to go through."""
    a = nd.full((4096, 4096), 1.0, device=nd.cpu())
    nd.synchronize()
    for view in (a, a[:, ::8], a[::8, ::-8], a.permute((1, 0))[:, ::8]):
        for _ in range(20):
            total = view.sum()
            assert cpu.waiting_calls() == 0
        assert total.numpy() == np.prod(view.shape)


def test_recorded_calls_are_all_there_and_in_order() -> None:
    recorder = nd.Recorder()
    recorder.start()
    some_calls(array(draw()))
    recorder.stop()
    calls = recorder.take()
    names = [call.kernel for call in calls]
    starts = [call.start for call in calls]
    assert names.count("negate") == 40
    assert starts == sorted(starts)


CHAIN = """
import os, warnings
warnings.simplefilter("ignore")  # Python 3.12 warns of fork in a process with threads
import numpy as np
from needle import backend_ndarray as nd
nd.set_num_threads(2)
def chain():
    a = nd.NDArray(np.zeros((400, 320)), device=nd.cpu(), dtype="float32")
    for _ in range(50):
        a = a + 1.0
    return a
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_gets_what_waited_in_its_parent() -> None:
    source = f"""{CHAIN}
good = 0
for _ in range(20):
    a = chain()
    child = os.fork()
    right = bool((a.numpy() == 50).all()) and bool((chain().numpy() == 50).all())
    if child == 0:
        os._exit(0 if right else 1)
    good += right and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(good)
"""
    assert run(source) == "20"


def test_a_program_may_end_while_calls_wait() -> None:
    assert run(f"{CHAIN}\nkeep = [chain() for _ in range(20)]\nprint('end')") == "end"


def test_the_queue_can_be_switched_off() -> None:
    source = f"{CHAIN}\nprint((chain().numpy() == 50).all())"
    assert run(source, NEEDLE_CPU_SYNC="1") == "True"


def test_nothing_is_kept_alive_by_the_queue() -> None:
    gc.collect()
    before = nd.memory_stats()["in_use"]
    some_calls(array(draw()))
    gc.collect()
    assert nd.memory_stats()["in_use"] == before
