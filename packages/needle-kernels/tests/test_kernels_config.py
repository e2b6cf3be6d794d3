"""Threads, instruction sets, counters, traces, memory, and the extension's stub."""

import ast
import inspect
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle._kernels import cpu as extension
from needle.backend_ndarray import reference
from needle.backend_ndarray.testing import compare


@pytest.fixture
def counting():
    nd.reset_counters()
    yield
    nd.reset_counters()


class TestThreads:
    def test_setting(self):
        before = nd.num_threads()
        try:
            nd.set_num_threads(3)
            assert nd.num_threads() == 3
            with pytest.raises(ValueError, match="set_num_threads: got 0: need at least 1"):
                nd.set_num_threads(0)
            with pytest.raises(ValueError, match="set_num_threads: got 1025: need at most 1024"):
                nd.set_num_threads(1025)
            with pytest.raises(TypeError):
                nd.set_num_threads(1.5)
            assert nd.num_threads() == 3
        finally:
            nd.set_num_threads(before)

    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_results_do_not_depend_on_it(self, device, threads):
        before = nd.num_threads()
        x = np.random.default_rng(0).uniform(-1, 1, (300, 700)).astype(np.float32)
        a = nd.array(x, device=device)
        try:
            nd.set_num_threads(threads)
            compare(nd.exp(a + 1), np.exp(x.astype(float) + 1), dtype="float32", rtol=1e-6)
            compare(a.sum(0), x.astype(float).sum(0), dtype="float32", atol=1e-4)
            compare(a.sum(), x.astype(float).sum(), dtype="float32", atol=1e-2)
            compare(a.T.copy(), x.T)
        finally:
            nd.set_num_threads(before)

    def test_python_threads_at_once(self, device):
        results = [0.0] * 4

        def work(k):
            a = nd.full((100, 100), k, device=device)
            for _ in range(50):
                a = (a + 1) - 1
            results[k] = a.sum().item()

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert results == [k * 10000.0 for k in range(4)]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    def test_a_forked_child_computes(self):
        code = (
            "import os; from needle import backend_ndarray as nd\n"
            "a = nd.ones((500, 500)); a = a @ a\n"
            "pid = os.fork()\n"
            "ok = (a @ a).max().item() == 500.0 ** 3\n"
            "os._exit(not ok) if pid == 0 else None\n"
            "_, status = os.waitpid(pid, 0)\n"
            "print(ok, os.waitstatus_to_exitcode(status))"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.strip() == "True 0", done.stderr


class TestInstructionSets:
    def test_choice(self):
        before = nd.isa()
        assert before in nd.available_isas()
        assert nd.available_isas()[0] == "scalar"
        for name in nd.available_isas():
            nd.set_isa(name)
            assert nd.isa() == name
        nd.set_isa(before)
        with pytest.raises(ValueError, match="set_isa: unknown: got 'mmx': need one of scalar"):
            nd.set_isa("mmx")

    @pytest.mark.parametrize("name", nd.available_isas())
    def test_environment_caps_it(self, name):
        code = "from needle import backend_ndarray as nd; print(nd.isa())"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "NEEDLE_ISA": name},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == name

    def test_unknown_name_in_the_environment(self):
        done = subprocess.run(
            [sys.executable, "-c", "import needle.backend_ndarray"],
            env={**os.environ, "NEEDLE_ISA": "sse9"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode
        assert "\nValueError: NEEDLE_ISA: unknown: got 'sse9': need one of scalar" in done.stderr


class TestCounters:
    def test_one_launch_per_operation(self, device, counting):
        name = "reference" if device == nd.cpu_numpy() else device.name
        a = nd.ones((3, 3), device=device)
        nd.reset_counters()
        b = (a + a) @ a
        b.reshape(9)[1:].T.sum()
        assert nd.counters() == {(name, "add"): 1, (name, "matmul"): 1, (name, "sum"): 1}
        nd.reset_counters()
        assert nd.counters() == {}

    def test_trace(self, device):
        nd.set_tracing(True)
        try:
            nd.ones((2, 3), device=device) + 1
            events = nd.trace()
        finally:
            nd.set_tracing(False)
        assert [event[1] for event in events] == ["fill", "add"]
        _, _, start, duration, operands = events[1]
        assert operands.startswith("float32(2,3) float32(2,3)")
        assert 0 <= duration < 10**9
        assert start >= events[0][2]
        nd.ones((2,), device=device)
        assert nd.trace() == []


class TestMemory:
    def test_freed_blocks_are_used_again(self):
        nd.zeros((10_000,))
        before = nd.memory_stats()
        for _ in range(10):
            nd.zeros((10_000,))
        after = nd.memory_stats()
        assert after["allocations"] - before["allocations"] == 10
        assert after["system_allocations"] == before["system_allocations"]

    def test_in_use_and_peak(self):
        nd.reset_peak()
        start = nd.memory_stats()["in_use"]
        a = nd.zeros((1_000_000,))
        stats = nd.memory_stats()
        assert stats["in_use"] - start >= 4_000_000
        del a
        stats = nd.memory_stats()
        assert stats["in_use"] == start
        assert stats["peak"] - start >= 4_000_000
        nd.empty_cache()
        assert nd.memory_stats()["held"] <= stats["held"] - 4_000_000

    def test_limit(self):
        nd.empty_cache()
        held = nd.memory_stats()["held"]
        nd.set_memory_limit(held + 1_000_000)
        try:
            nd.zeros((1000,))
            with pytest.raises(MemoryError):
                nd.zeros((1_000_000,))
        finally:
            nd.set_memory_limit(0)
        assert nd.zeros((1_000_000,)).size == 1_000_000
        with pytest.raises(ValueError, match="set_memory_limit: got -1 bytes: need 0"):
            nd.set_memory_limit(-1)

    def test_too_much(self):
        with pytest.raises(MemoryError):
            nd.empty((2**40, 2**10))

    def test_without_pooling(self):
        nd.set_pooling(False)
        for wrong in ("off", 1, None):
            with pytest.raises(TypeError, match=r"set_pooling: on: got .*: need True or False"):
                nd.set_pooling(wrong)
        try:
            before = nd.memory_stats()["system_allocations"]
            for _ in range(5):
                nd.zeros((10,))
            assert nd.memory_stats()["system_allocations"] - before == 5
        finally:
            nd.set_pooling(True)

    def test_alignment(self):
        for size in (1, 7, 1000, 10**6):
            assert nd.empty((size,), dtype="uint8")._handle.ptr() % 64 == 0

    @pytest.mark.parametrize("size", [2**21, 2**21 + 1, 5 * 2**20, 2**26])
    def test_large_arrays_begin_at_different_places_of_a_page(self, size):
        nd.empty_cache()
        starts = [nd.empty((size,), dtype="uint8") for _ in range(4)]
        assert len({a._handle.ptr() % 4096 for a in starts}) == 4
        assert len({a._handle.ptr() // 4096 % 8 for a in starts}) == 4
        for i, a in enumerate(starts):
            a[:] = i  # all of each is there
        assert [int(a[0].numpy()) + int(a[-1].numpy()) for a in starts] == [0, 2, 4, 6]
        del a, starts
        nd.empty_cache()


def test_show_config(capsys):
    nd.show_config()
    text = capsys.readouterr().out
    for part in (np.__version__, f"{nd.isa()} (available: scalar", "threads", "cuda()", "cpu"):
        assert part in text


def test_every_kernel_has_a_twin():
    twins = reference.table(extension.KERNELS)
    assert set(twins) == set(extension.KERNELS)
    for twin in twins.values():
        assert inspect.getdoc(twin)


STUB = Path(__file__).parents[1] / "csrc" / "cpu.pyi"


@pytest.mark.skipif(not STUB.exists(), reason="csrc/ is not beside the tests")
class TestStub:
    """What the stub declares is there, and nothing else is."""

    @staticmethod
    def declared(body):
        names = {}
        for node in body:
            if isinstance(node, ast.FunctionDef):
                arguments = node.args.posonlyargs + node.args.args
                names[node.name] = [a.arg for a in arguments if a.arg not in ("self", "cls")]
            elif isinstance(node, ast.ClassDef):
                names[node.name] = TestStub.declared(node.body)
            elif isinstance(node, ast.AnnAssign):
                names[node.target.id] = None
        return names

    @staticmethod
    def parameters(function):
        """The parameter names in the signature that a docstring begins with."""
        signature = re.search(r"\((.*?)\) ->", function.__doc__).group(1)
        names = re.findall(r"(\w+): ", re.sub(r"\[[^\]]*\]", "", signature))
        return [name for name in names if name not in ("self", "arg0")]

    def test_module(self):
        stub = self.declared(ast.parse(STUB.read_text()).body)
        assert set(stub) == {name for name in dir(extension) if not name.startswith("_")}
        for name, parameters in stub.items():
            if isinstance(parameters, list):
                assert self.parameters(getattr(extension, name)) == parameters, name

    def test_storage(self):
        stub = self.declared(ast.parse(STUB.read_text()).body)["Storage"]
        found = {name for name in vars(extension.Storage) if not name.startswith("_")}
        assert set(stub) - {"__new__"} == found
        assert self.parameters(extension.Storage) == stub["__new__"]
        assert self.parameters(extension.Storage.borrow) == stub["borrow"]

    def test_types(self):
        storage = extension.Storage(4, "float64")
        assert (storage.size, storage.dtype, storage.itemsize, storage.nbytes) == (
            4,
            "float64",
            8,
            32,
        )
        assert isinstance(storage.ptr(), int)
        storage.version = 5
        assert storage.version == 5
        assert isinstance(extension.memory_stats(), dict)
        assert isinstance(extension.isas(), tuple)
        with pytest.raises(TypeError, match="Storage: dtype: got int8"):
            extension.Storage(1, "int8")
        with pytest.raises(TypeError, match="'float' object cannot be"):
            storage.version = 1.5
        with pytest.raises(TypeError, match="version: need an int"):
            del storage.version
        assert storage.version == 5
        with pytest.raises(TypeError, match="handle: got object: need a Storage"):
            extension.view(object(), (1,), (1,), 0)
