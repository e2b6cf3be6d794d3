"""needle.profile: rows, table, trace file, nesting, exceptions, threads, both devices."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import Tensor, ops
from needle.autograd import Op
from needle.backend_ndarray import Device
from needle.profiler import _covered
from needle.testing import Target, array_devices


@pytest.fixture(params=array_devices())
def device(request: pytest.FixtureRequest) -> Any:
    target: Target = request.param
    with target.active() as active:
        yield active


def quiet(**settings: Any) -> ndl.profile:
    return ndl.profile(print_table=False, **settings)


def tensor(*shape: int, device: Device | None = None) -> Tensor:
    return Tensor(np.ones(shape), device=device, dtype="float32")


def test_rows_count_calls_flops_and_bytes(device: Device) -> None:
    a, b = tensor(4, 5, device=device), tensor(5, 6, device=device)
    with quiet() as p:
        for _ in range(3):
            a @ b
        a + a
    rows = {row.name: row for row in p.rows}
    assert set(rows) == {"matmul", "add"}
    product = rows["matmul"]
    assert (product.calls, product.flops) == (3, 3 * 2 * 4 * 5 * 6)
    assert product.bytes == 3 * 4 * (20 + 30 + 24)
    assert product.device == ("reference" if device == ndl.cpu_numpy() else device.name)
    assert product.gflops == pytest.approx(product.flops / product.seconds / 1e9)
    assert product.gbytes == pytest.approx(product.bytes / product.seconds / 1e9)
    best = ndl.peak()
    least = max(product.flops / best.gflops32, product.bytes / best.gbytes) / 1e9
    assert product.peak == pytest.approx(least / product.seconds)


def test_times_add_up_to_the_block(device: Device) -> None:
    a = tensor(64, 64, device=device)
    begin = time.perf_counter()
    with quiet() as p:
        for _ in range(20):
            a = a @ a * 0.01
    wall = time.perf_counter() - begin
    kernels = sum(row.seconds for row in p.rows)
    assert 0 < kernels <= p.seconds <= wall
    assert p.between == pytest.approx(p.seconds - kernels)
    assert sum(row.share for row in p.rows) == pytest.approx(kernels / p.seconds)


def test_by_shape_and_sort() -> None:
    a, b = tensor(3, 3), tensor(9, 9)
    with quiet(by="shape", sort="calls") as p:
        ops.exp(a)
        for _ in range(3):
            ops.exp(b)
        for _ in range(2):
            ops.log(a)
    names = ["exp float32(9,9) float32(9,9)", "log float32(3,3) float32(3,3)"]
    assert [row.name for row in p.rows][:2] == names
    assert [row.calls for row in p.rows] == [3, 2, 1]
    times = p.table(by="kernel", sort="name").splitlines()
    assert [line.split()[0] for line in times[1:3]] == ["exp", "log"]
    seconds = [row.seconds for row in p._rows("kernel", "time")]
    assert seconds == sorted(seconds, reverse=True)


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    a = tensor(3, 3)
    with ndl.profile(limit=1, sort="calls") as p:
        ops.exp(ops.exp(a))
        ops.log(a)
    text = capsys.readouterr().out
    assert text == p.table() + "\n"
    header, first, more, between, everything, ceiling = text.splitlines()
    assert header.split()[:5] == ["kernel", "calls", "ms", "%", "of"]
    assert first.split()[:2] == ["exp", "2"]
    assert more.startswith("(1 more)")
    assert between.startswith("between kernels")
    assert everything.split()[:2] == ["all", "3"]
    assert everything.endswith("100.0" + " " * len("  GFLOP/s  GB/s  % of peak"))
    assert f"on {ndl.num_threads()} threads, {ndl.backend_ndarray.isa()}" in ceiling
    assert ceiling.endswith(": reference" if ndl.cpu() == ndl.cpu_numpy() else ": cpu")
    out = io.StringIO()
    with ndl.profile(file=out):
        ops.exp(a)
    assert "exp" in out.getvalue()
    assert capsys.readouterr().out == ""


def test_long_names_are_cut_in_the_table_only() -> None:
    w = [ndl.backend_ndarray.ones((3,)) for _ in range(40)]
    with quiet(by="shape") as p:
        ndl.backend_ndarray.scale(w, 2.0)
    assert p.rows[0].name.count("float32(3)") == 40
    assert p.table().splitlines()[1].startswith("scale (3) (3)")
    assert " ..." in p.table()


def test_nothing_happened() -> None:
    with quiet() as p:
        pass
    assert p.rows == []
    assert p.table().splitlines()[2].split()[:2] == ["all", "0"]


def test_devices_are_told_apart() -> None:
    with quiet(sort="name") as p:
        ops.exp(tensor(2, device=ndl.cpu_numpy()))
    assert [row.device for row in p.rows] == ["reference"]
    if ndl.cpu() == ndl.cpu_numpy():
        pytest.skip("NEEDLE_BACKEND=np: there is one device")
    with quiet() as p:
        ops.exp(tensor(2, device=ndl.cpu_numpy()) + 0)
        ops.exp(tensor(2, device=ndl.cpu()))
    assert {"reference exp", "cpu exp"} <= {" ".join(x.split()[:2]) for x in p.table().split("\n")}


def test_nested_profiles_see_what_is_inside_them() -> None:
    a = tensor(2, 2)
    with quiet() as outer:
        ops.exp(a)
        with quiet() as inner:
            ops.log(a)
        ops.exp(a)
    assert [call.kernel for call in inner.calls] == ["log"]
    assert [call.kernel for call in outer.calls] == ["exp", "log", "exp"]


def test_a_profile_can_be_used_again_but_not_in_itself() -> None:
    a = tensor(2, 2)
    with quiet() as p:
        ops.exp(a)
        with pytest.raises(RuntimeError, match="is already running: make another one to nest"), p:
            pass
    with p:
        ops.log(a)
    assert [call.kernel for call in p.calls] == ["log"]


def test_an_exception_passes_and_what_ran_is_kept(tmp_path: Path) -> None:
    a, path = tensor(2, 2), tmp_path / "trace.json"

    def fail() -> None:
        ops.exp(a)
        raise KeyError("mine")

    p = quiet(trace=path)
    with pytest.raises(KeyError, match="mine"), p:
        fail()
    assert [call.kernel for call in p.calls] == ["exp"]
    assert len(json.loads(path.read_text())["traceEvents"]) > 2
    ops.exp(a)
    assert len(p.calls) == 1


def test_threads_are_told_apart(tmp_path: Path) -> None:
    a, path = tensor(50, 50), tmp_path / "trace.json"

    def work() -> None:
        for _ in range(20):
            ops.matmul(a, a)

    workers = [threading.Thread(target=work) for _ in range(3)]
    with quiet(trace=path) as p:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert p.rows[0].calls == 60
    assert len({call.thread for call in p.calls}) == 3
    assert p.between >= 0
    kernels = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("cat") == "kernel"]
    assert len({event["tid"] for event in kernels}) == 3


def test_time_between_kernels_counts_overlap_once() -> None:
    def call(start: int, duration: int) -> ndl.backend_ndarray.KernelCall:
        return ndl.backend_ndarray.KernelCall("cpu", "exp", 1, start, duration, (), ())

    assert _covered([]) == 0
    assert _covered([call(10, 5), call(20, 5)]) == 10
    assert _covered([call(20, 10), call(10, 15), call(12, 2)]) == 20


def test_trace_events(tmp_path: Path) -> None:
    """The keys and types that the trace event format asks of complete and metadata events."""
    path = tmp_path / "step.json"
    x = tensor(8, 8)
    with quiet(trace=path) as p:
        ops.summation(ops.relu(x @ x)).backward(retain_graph=False)
    document = json.loads(path.read_text())
    assert document["otherData"]["block_ms"] == pytest.approx(p.seconds * 1e3)
    complete = [event for event in document["traceEvents"] if event["ph"] == "X"]
    for event in complete:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert 0 <= event["ts"] <= event["ts"] + event["dur"] <= p.seconds * 1e6 + 1e-3
    names = [event for event in document["traceEvents"] if event["ph"] == "M"]
    assert {event["ph"] for event in document["traceEvents"]} == {"X", "M"}
    assert {event["tid"] for event in complete} == {e["tid"] for e in names if "tid" in e}

    kernels = [event for event in complete if event["cat"] == "kernel"]
    assert [event["name"] for event in kernels] == [call.kernel for call in p.calls]
    product = next(event for event in kernels if event["name"] == "matmul")
    assert product["args"]["flops"] == 2 * 8**3
    assert product["args"]["operands"].startswith("float32(8,8) float32(8,8)")
    spans = [event for event in complete if event["cat"] == "op"]
    seen = {event["name"] for event in spans}
    assert {"matmul", "relu", "summation", "matmul gradient", "relu gradient"} <= seen
    forward = next(event for event in spans if event["name"] == "matmul")
    assert forward["ts"] <= product["ts"] + 1e-3
    assert product["ts"] + product["dur"] <= forward["ts"] + forward["dur"] + 1e-3


def test_operations_are_timed_for_a_trace_only(tmp_path: Path) -> None:
    before = ops.ReLU.compute, ops.ReLU.gradient
    with quiet() as plain:
        ops.relu(tensor(2))
        assert (ops.ReLU.compute, ops.ReLU.gradient) == before
    with quiet(trace=tmp_path / "a.json") as outer:
        with quiet(trace=tmp_path / "b.json") as inner:
            ops.relu(tensor(2))
        assert ops.ReLU.compute is not before[0]
        ops.exp(tensor(2))
    assert (ops.ReLU.compute, ops.ReLU.gradient) == before
    assert plain.ops == []
    assert [span.name for span in inner.ops] == ["relu"]
    assert [span.name for span in outer.ops] == ["relu", "exp"]


def test_save(tmp_path: Path) -> None:
    with quiet() as p:
        ops.exp(tensor(2))
    path = tmp_path / "later.json"
    p.save(path)
    assert json.loads(path.read_text())["traceEvents"]
    assert list(tmp_path.iterdir()) == [path], "no draft is left behind"
    with pytest.raises(FileNotFoundError, match="profile: trace: cannot write"):
        p.save(tmp_path / "absent" / "x.json")


@pytest.mark.parametrize(
    ("place", "error"), [("absent/x.json", FileNotFoundError), (".", IsADirectoryError)]
)
def test_a_trace_that_cannot_be_written_stops_the_block_before_it_runs(
    place: str, error: type[OSError], tmp_path: Path
) -> None:
    ran = []
    expected = r"profile: trace: cannot write: .*: need a file in a writable folder"
    with pytest.raises(error, match=expected), quiet(trace=tmp_path / place):
        ran.append(True)
    assert not ran
    assert list(tmp_path.iterdir()) == []
    assert ops.ReLU.compute.__qualname__ == "ReLU.compute"
    assert not hasattr(ops.ReLU.compute, "__wrapped__")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step.json"
    path.write_text("old")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"), quiet(trace=path):
        pass
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"by": "op"}, "profile: by: got 'op': need one of kernel, shape"),
        ({"sort": "size"}, "profile: sort: got 'size': need one of time, calls, peak, name"),
        ({"limit": 0}, "profile: limit: got 0: need None or at least 1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        ndl.profile(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"limit": "3"}, "profile: limit: got str: need None or an integer"),
        ({"file": "out.txt"}, r"profile: file: got str: need one with write\(\)"),
        ({"trace": 3}, "profile: trace: got int: need a path"),
        ({"trace": b"x"}, "profile: trace: got bytes: need a path"),
    ],
)
def test_types_are_checked(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(TypeError, match=expected):
        ndl.profile(**settings)


def test_the_table_s_own_settings_are_checked() -> None:
    with quiet() as p:
        ops.exp(tensor(2, 2))
    with pytest.raises(ValueError, match="profile: limit: got 0"):
        p.table(limit=0)
    with pytest.raises(ValueError, match="profile: by: got ''"):
        p.table(by="")  # type: ignore[arg-type]


def test_a_call_that_began_before_the_block_is_not_its_own(tmp_path: Path) -> None:
    a, path = tensor(1500, 1500), tmp_path / "trace.json"
    inside, began = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        for _ in range(3):
            a @ a
        inside.wait()

    worker = threading.Thread(target=work)
    with quiet():
        worker.start()
        began.wait()
        time.sleep(0.02)  # the product is under way
        with quiet(trace=path) as p:
            inside.set()
            worker.join()
    assert 0 <= p.between <= p.seconds
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X"]
    assert all(event["ts"] >= 0 for event in events)
    assert all(event["ts"] + event["dur"] <= events[0]["dur"] + 1e-3 for event in events)


def test_the_block_s_own_exception_is_not_replaced(tmp_path: Path) -> None:
    closed = io.StringIO()
    closed.close()
    with pytest.raises(KeyError, match="mine") as caught, ndl.profile(file=closed):
        raise KeyError("mine")
    assert "profile: ValueError: I/O operation on closed file" in caught.value.__notes__
    folder = tmp_path / "gone"
    folder.mkdir()
    out = io.StringIO()
    with (
        pytest.raises(FileNotFoundError, match="profile: trace: cannot write") as missing,
        ndl.profile(file=out, trace=folder / "t.json"),
    ):
        shutil.rmtree(folder)
    assert missing.value.filename == str(folder / "t.json")
    assert "between kernels" in out.getvalue(), "the table is printed all the same"


def test_the_trace_s_place_is_that_of_the_block_s_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.chdir(first)
    with quiet(trace="t.json"):
        monkeypatch.chdir(second)
    assert [path.name for path in first.iterdir()] == ["t.json"]
    assert list(second.iterdir()) == []


def test_links_devices_and_pipes(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    with quiet(trace=link):
        pass
    assert link.is_symlink()
    assert "traceEvents" in target.read_text()
    os.mkfifo(pipe)
    for place in (pipe, Path(os.devnull)):
        with pytest.raises(OSError, match="not a file but a device or pipe"), quiet(trace=place):
            pass
    assert pipe.is_fifo()


def test_operations_of_every_kind_are_timed_and_put_back(tmp_path: Path) -> None:
    class Left(ops.ReLU):
        pass

    class Right(ops.ReLU):
        pass

    class Both(Left, Right):
        def compute(self, a: Any) -> Any:
            return super().compute(a)

    class Static(Op):
        name = 7  # type: ignore[assignment]

        @staticmethod
        def compute(a: Any) -> Any:  # type: ignore[override]
            return a

    before = Both.compute
    data = ndl.backend_ndarray.ones((2,))
    for _ in range(2):
        with quiet(trace=tmp_path / "t.json") as p:
            Both().compute(a=data)
            Static().compute(data)
        assert len(p.ops) == 2, "of the operation and of the one that it extends"
    assert Both.compute is before


def test_nothing_is_shown_before_the_end() -> None:
    p = quiet()
    with pytest.raises(RuntimeError, match="nothing to show: the block has not begun"):
        p.table()
    with p, pytest.raises(RuntimeError, match="nothing to show: the block is still running"):
        _ = p.rows
