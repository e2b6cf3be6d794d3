"""needle's C++ kernels, their memory and their launch point."""

from collections.abc import Callable
from typing import Any, final

import numpy as np

KERNELS: tuple[str, ...]
"""The names of the kernels; a kernel's number is its place."""

TARGETS: tuple[str, ...]
"""The instruction sets that kernels were compiled for, from the plainest to the widest."""

DEVICES: tuple[str, ...]
"""The names of the devices; a device's number is its place."""

MOST_THREADS: int
"""What set_num_threads takes at most."""

@final
class Storage:
    """Aligned memory for elements of one dtype."""

    def __new__(cls, size: int, dtype: str) -> Storage: ...
    @staticmethod
    def borrow(ptr: int, size: int, dtype: str, owner: object) -> Storage:
        """Memory of `size` elements at `ptr` that `owner` keeps alive."""

    @staticmethod
    def on(device: int, size: int, dtype: str) -> Storage:
        """Memory of the device with this number in DEVICES."""

    def ptr(self) -> int:
        """The address of the first element, to look at: no call on it is left in the queue now.

        Nor is any later one, so kernels may become slower.
        """

    @property
    def address(self) -> int:
        """The address of the first element, to compare."""

    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    version: int
    """How many in-place writes there were."""

def launch(
    device: int, kernel: int, operands: tuple[Any, ...], scalars: tuple[float, ...], /
) -> None:
    """Runs a kernel on NDArrays (outputs first), Python numbers and None."""

def bind_arrays(
    type: type[Any],
    device: object,
    dtypes: tuple[np.dtype[Any], ...],
    promote: Callable[[np.dtype[Any], np.dtype[Any]], np.dtype[Any]],
    dense_strides: Callable[[tuple[int, ...], tuple[int, ...]], tuple[int, ...]],
) -> None:
    """Names the class NDArray and the device and dtypes that its arrays on this device have."""

def wrap(
    handle: Storage,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    dtype: np.dtype[Any],
    device: object,
    /,
) -> Any:
    """An NDArray of these parts, unchecked."""

def empty(shape: tuple[int, ...], dtype: np.dtype[Any], device: object, /) -> Any:
    """A new row-major NDArray in the CPU's memory, contents arbitrary."""

def empty_like(model: object, dtype: np.dtype[Any], /) -> Any:
    """The same with the shape, device and memory order of the NDArray `model`."""

def index_view(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int, index: object, /
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, strides and offset of array[index], for ints, slices, Ellipsis and None."""

def index_array(array: object, index: object, /) -> Any:
    """The view array[index] of an NDArray."""

def outside(ids: object, count: int, /) -> int | None:
    """The first element of an int64 NDArray not in 0 .. count - 1; None if there is none."""

def update(kernel: int, columns: tuple[object, ...], scalars: tuple[float, ...], /) -> bool:
    """Runs an optimizer kernel on the rows of `columns`; False unless they are the common case.

    That is: columns are lists of compact arrays on the bound device, all of one float dtype and
    each row of one shape; sgd's momenta may be None. What the kernel wrote, all columns but the
    last, gets a new version.
    """

def sum_squares(arrays: object, /) -> float | None:
    """The sum of the squares of all elements; None unless the arrays are the common case.

    That is: a list or tuple of compact arrays on the bound device, all of one float dtype.
    """

def matmul(a: object, b: object, bias: object, /) -> Any:
    """a @ b + bias as a new NDArray; None unless all are the common case.

    That is: two matrices and None or one row, of sizes that fit and of one float dtype, on the
    bound device.
    """

def join(arrays: list[Any], axis: int, is_new: bool, /) -> Any:
    """The arrays along an axis, or along a new one; None unless they are the common case.

    That is: NDArrays on the bound device, of one dtype, and of one shape but for that axis.
    """

def reduce(kernel: int, a: object, to: tuple[Any, Any], of: tuple[Any, Any], /) -> Any:
    """What a kernel makes of the layout `of` (shape, strides) of a, as one of the layout `to`.

    None unless a is an NDArray on the bound device.
    """

def version(data: object, /) -> Any:
    """The count of in-place writes to an NDArray's memory; of a tuple of them, a tuple."""

def fill(target: object, number: object, /) -> bool:
    """Whether the number was written to every element; False unless it is the common case.

    That is: an NDArray on the bound device without repeated elements, whose dtype holds the Python
    float or int.
    """

def copy(a: object, dtype: np.dtype[Any], row_major: bool, /) -> Any:
    """A row-major copy with this dtype, or one in the same memory order.

    None unless a is an NDArray on the bound device.
    """

def copy_into(target: object, a: object, /) -> bool:
    """Whether a was written, broadcast and cast, to target; False unless they are the common case.

    That is: NDArrays on the bound device whose memory lies apart, and a target without repeated
    elements.
    """

def elementwise_in_place(kernel: int, target: object, other: object, /) -> bool:
    """Whether the result was written to target, as on the common path."""

def elementwise(kernel: int, a: object, b: object = ..., /) -> Any:
    """The result as a new NDArray, promoted as NumPy 2 does; None unless it is the common case.

    That is: NDArrays on the bound device that broadcast, or one of them a Python float or int; of
    bools alone, only a logical kernel.
    """

def register_device(name: str, table: object, backend: object) -> None:
    """Takes the kernels and the memory of a device from another extension's capsules."""

def set_reference(functions: dict[str, Callable[..., None]]) -> None:
    """Registers the NumPy twins that device 1 runs."""

def view(
    storage: Storage, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> np.ndarray[Any, np.dtype[Any]]:
    """A NumPy array on the storage's memory; strides and offset count elements."""

def isas() -> tuple[str, ...]:
    """The instruction sets that this machine can run."""

def isa() -> str:
    """The instruction set in use."""

def set_isa(name: str) -> None:
    """Uses another instruction set."""

def in_turn() -> bool:
    """Whether rows from memory are read at two places in turn."""

def set_in_turn(on: bool) -> None:
    """Reads rows from memory so, or in order; sums differ in rounding, within their bound."""

def num_threads() -> int:
    """How many threads one kernel may use."""

def set_num_threads(n: int) -> None:
    """Lets one kernel use at most n threads."""

def finish() -> None:
    """Returns when all calls that wait in the queue are done."""

def waiting_calls() -> int:
    """How many launched calls are queued and not done."""

def counters() -> dict[tuple[str, str], int]:
    """How often each kernel ran, by (device, kernel)."""

def reset_counters() -> None:
    """Starts counting from zero."""

def set_tracing(on: bool) -> None:
    """Whether every call is recorded."""

def trace() -> list[tuple[str, str, int, int, str]]:
    """The recorded calls (device, kernel, start ns, duration ns, operands), then forgotten."""

class Recorder:
    """Keeps every call of every kernel in the process, from start to stop."""

    def __init__(self) -> None: ...
    def start(self) -> None:
        """Begins, or goes on."""

    def stop(self) -> None:
        """Ends; what was recorded stays."""

    def take(
        self,
    ) -> list[
        tuple[
            str,
            str,
            int,
            int,
            int,
            tuple[tuple[str, tuple[int, ...], tuple[int, ...]] | None, ...],
            tuple[float, ...],
        ]
    ]:
        """The recorded calls, then forgotten.

        Each is (device, kernel, thread, start ns, duration ns, operands, scalars); an operand is
        (dtype, shape, strides), or None where it was absent.
        """

def clock() -> int:
    """The time that recorded calls are stamped with, in ns."""

def thread_number() -> int:
    """The number that recorded calls of this thread carry."""

def peak() -> tuple[float, float, float]:
    """Operations per second in float32 and float64, and bytes per second, measured now."""

def memory_stats() -> dict[str, int]:
    """Bytes in_use, held, peak, limit; blocks allocations, system_allocations."""

def reset_peak() -> None:
    """Starts the peak from what is in use now."""

def set_memory_limit(limit: int) -> None:
    """Bytes that the allocator may hold; 0: no limit."""

def empty_cache() -> None:
    """Returns unused blocks to the system."""

def set_pooling(on: bool) -> None:
    """Whether freed blocks are kept for reuse."""
