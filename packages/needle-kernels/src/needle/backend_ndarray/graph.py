"""CUDA graphs: the kernels of a step, recorded once and launched again as one.

A recorded step costs one launch instead of one per kernel, and no Python:

    graph = nd.CUDAGraph()
    with graph:  # records, computes nothing
        y = nd.relu(x @ w)
    graph.replay()  # computes y from what x and w hold now
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from needle.backend_ndarray.devices import CUDA, cuda_module, device_errors
from needle.backend_ndarray.errors import DeviceError
from needle.backend_ndarray.ndarray import NDArray

__all__ = ["CUDAGraph", "recording_graph"]

Scalars = tuple[float, ...]

_recording: CUDAGraph | None = None


class CUDAGraph:
    """Kernels of cuda(), recorded in a `with` block and run by `replay`, on the same memory.

    Inside the block nothing is computed: arrays made there hold no values before the first replay,
    which overwrites them, as every later one does. Arrays from outside are read, and written where
    the block writes in place, when the graph is replayed: new inputs are copied into them. The
    graph keeps the memory of both alive.

    What waits for the device or copies to or from the host cannot be recorded and raises
    DeviceError: `item()`, `numpy()`, `to()`, random numbers, arrays made of Python's. Nor is
    Python's own work part of a graph: only what kernels do happens again. Run a step once or twice
    before it is recorded, so that what is made on first use exists. One thread uses the device
    while a graph is recorded.

    Raises:
        DeviceError: CUDA is not available.
    """

    __slots__ = ("_graph", "_hooks", "_kept", "_ready")

    def __init__(self) -> None:
        self._graph: Any = cuda_module().Graph()
        self._kept: dict[int, object] = {}  # memory from before the recording, by address
        self._hooks: list[tuple[range, Callable[[], Scalars]]] = []
        self._ready = False

    def __enter__(self) -> Self:
        """Begins to record.

        Raises:
            DeviceError: this graph has been recorded, or another one is being.
        """
        global _recording
        if self._ready:
            raise DeviceError("CUDAGraph: recorded already: got a second recording: make a new one")
        with device_errors():
            self._graph.begin()
        CUDA.recording = self._keep
        _recording = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the recording; after an error it is forgotten."""
        global _recording
        _recording = CUDA.recording = None
        if kind is not None:
            self._graph.cancel()
            return
        with device_errors():
            self._graph.end()
        self._ready = True

    def replay(self) -> None:
        """Runs the recorded kernels, after Python has gone on, as kernels do.

        Raises:
            DeviceError: nothing is recorded, or the launch failed.
        """
        if not self._ready:
            raise DeviceError("CUDAGraph: nothing to replay: got no recording: use `with graph:`")
        with device_errors():
            for slots, scalars in self._hooks:
                values = scalars()
                for slot in slots:
                    self._graph.set_scalars(slot, values)
            self._graph.replay()

    @contextmanager
    def with_scalars(self, scalars: Callable[[], Scalars]) -> Iterator[None]:
        """Optimizer kernels recorded in the block get their scalars from `scalars()`, each replay.

        Recorded by value they would stay what they were: Adam's step number, the learning rate.
        """
        before = self._graph.slots
        self._graph.live = True
        try:
            yield
        finally:
            self._graph.live = False
        self._hooks.append((range(before, self._graph.slots), scalars))

    def _keep(self, operands: tuple[Any, ...]) -> None:
        """Keeps memory that is not the graph's own alive as long as the graph."""
        for operand in operands:
            if isinstance(operand, NDArray):
                address = operand._handle.address
                if not self._graph.owns(address):
                    self._kept[address] = operand._handle


def recording_graph() -> CUDAGraph | None:
    """The graph that is being recorded."""
    return _recording
