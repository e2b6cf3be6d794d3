"""Devices: where arrays live and which kernels run on them.

A device offers four things to the front end: `storage(size, dtype_name)` allocates,
`launch(kernel, operands, scalars)` runs a kernel of its table, `view(storage, shape, strides,
offset)` shows elements to NumPy (sharing memory where NumPy can reach it, else a copy), and
`upload(storage, shape, strides, source)` writes NumPy data to a fresh storage. A new backend is a
new Device with its own four.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar, Final, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike

from needle.backend_ndarray import ndarray  # a cycle: its names are used inside functions only
from needle.backend_ndarray.dtypes import FLOAT32, Scalar, as_dtype
from needle.backend_ndarray.errors import DeviceError, ShapeError
from needle.backend_ndarray.extension import cpu as _cpu
from needle.backend_ndarray.layout import Shape, as_int, as_shape, extent, unpack

__all__ = ["Device", "all_devices", "cpu", "cpu_numpy", "cuda", "default_device"]

_REFERENCE_MODE: Final = "np"
_CUDA_NUMBER: Final = _cpu.DEVICES.index("cuda")

precision: Final = {"float32_matmul": "highest"}
"""What config.set_float32_matmul_precision has set; the extension may load later."""


class Device:
    """A place for arrays. Two devices are equal if their names are."""

    __slots__ = ("launch", "name", "storage", "upload", "view")

    in_host_memory: ClassVar[bool] = True
    """Whether NumPy and DLPack can share the memory of its arrays."""

    def __init__(
        self,
        name: str,
        storage: Callable[[int, str], _cpu.Storage],
        launch: Callable[[int, tuple[Any, ...], tuple[float, ...]], None],
        view: Callable[[_cpu.Storage, Shape, Shape, int], np.ndarray[Any, Any]],
        upload: Callable[[_cpu.Storage, Shape, Shape, np.ndarray[Any, Any]], None],
    ) -> None:
        """A device called `name` that allocates, computes and exchanges data with these four."""
        self.name = name
        self.storage = storage
        self.launch = launch
        self.view = view
        self.upload = upload

    def enabled(self) -> bool:
        """Whether this machine can use the device."""
        return True

    def about(self) -> str:
        """What the device is, in a few words; "" where its name says it all."""
        return ""

    def __repr__(self) -> str:
        return f"{self.name}()"

    def __eq__(self, other: object) -> bool:
        return self.name == other.name if isinstance(other, Device) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)

    def __reduce__(self) -> tuple[Callable[[], Device], tuple[()]]:
        return {"cpu": cpu, "cuda": cuda, "cpu_numpy": cpu_numpy}[self.name], ()

    def empty(
        self, shape: SupportsIndex | Sequence[int], dtype: DTypeLike | None = None
    ) -> ndarray.NDArray:
        """An array with arbitrary contents; float32 unless said otherwise.

        Raises:
            ShapeError: a negative size, or more than 16 axes.
            DTypeError: the dtype is not supported.
        """
        sizes = as_shape("empty", shape)
        kind = FLOAT32 if dtype is None else as_dtype(dtype, "empty")
        return ndarray.new(self, sizes, kind)

    def full(
        self,
        shape: SupportsIndex | Sequence[int],
        fill_value: Scalar,
        dtype: DTypeLike | None = None,
    ) -> ndarray.NDArray:
        """An array with every element equal to `fill_value`; float32 unless said otherwise."""
        array = self.empty(shape, dtype)
        array.fill(fill_value)
        return array

    def zeros(self, *shape: Any, dtype: DTypeLike | None = None) -> ndarray.NDArray:
        """An array of zeros: `zeros(2, 3)` or `zeros((2, 3))`; float32 unless said otherwise."""
        return self.full(unpack(shape), 0, dtype)

    def ones(self, *shape: Any, dtype: DTypeLike | None = None) -> ndarray.NDArray:
        """An array of ones: `ones(2, 3)` or `ones((2, 3))`; float32 unless said otherwise."""
        return self.full(unpack(shape), 1, dtype)

    def rand(
        self, *shape: Any, dtype: DTypeLike = "float32", low: float = 0.0, high: float = 1.0
    ) -> ndarray.NDArray:
        """Uniform numbers in [low, high), drawn in float64 from NumPy's global generator."""
        sizes = as_shape("rand", unpack(shape))
        draw = np.random.rand(*sizes) * (high - low) + low
        return ndarray.NDArray(np.asarray(draw), device=self, dtype=dtype or "float32")

    def randn(
        self, *shape: Any, dtype: DTypeLike = "float32", mean: float = 0.0, std: float = 1.0
    ) -> ndarray.NDArray:
        """Normal numbers, drawn in float64 from NumPy's global generator."""
        sizes = as_shape("randn", unpack(shape))
        draw = np.random.randn(*sizes) * std + mean
        return ndarray.NDArray(np.asarray(draw), device=self, dtype=dtype or "float32")

    def one_hot(self, n: int, i: Any, dtype: DTypeLike = "float32") -> ndarray.NDArray:
        """Rows of the n x n identity: shape `i.shape + (n,)`, a one at each id of `i`.

        Raises:
            IndexError: an id lies outside 0 .. n - 1.
            DTypeError: the ids are not whole numbers.
        """
        from needle.backend_ndarray.index import one_hot

        ids = i if isinstance(i, ndarray.NDArray) else ndarray.foreign_ids("one_hot", i, self)
        return one_hot(ids, n, dtype)


class CpuDevice(Device):
    """A device in the memory of the CPU: the C++ kernels, or their NumPy twins."""

    __slots__ = ()

    __tile_size__: Final = 8

    def __init__(self, name: str, number: int) -> None:
        """`number` selects the kernel table in the extension."""
        launch = functools.partial(_cpu.launch, number)
        super().__init__(name, _cpu.Storage, launch, _cpu.view, _write)

    def matmul_tiled(
        self, a: _cpu.Storage, b: _cpu.Storage, out: _cpu.Storage, m: int, n: int, p: int
    ) -> None:
        """out = a @ b on storages in tiles: a is (m/t, n/t, t, t), b (n/t, p/t, t, t).

        t is `__tile_size__`. Row i, column j of a matrix lies in tile (i // t, j // t).

        Raises:
            ShapeError: a size is not a multiple of t, or a storage has another size.
            DTypeError: the three dtypes differ.
            TypeError: a size is no integer, or a storage no array's handle.
        """
        t = self.__tile_size__
        m, n, p = (as_int("matmul_tiled", *size) for size in (("m", m), ("n", n), ("p", p)))
        if m % t or n % t or p % t:
            raise ShapeError(
                f"matmul_tiled: sizes are not whole tiles: got m={m}, n={n}, p={p}: "
                f"need multiples of {t}"
            )
        from needle.backend_ndarray.matmul import matmul

        a_tiles = self._tiles("a", a, m // t, n // t)
        b_tiles = self._tiles("b", b, n // t, p // t)
        out_tiles = self._tiles("out", out, m // t, p // t)
        out_tiles.fill(0.0)
        grid = (m // t, p // t, t, t)
        for k in range(n // t):
            matmul(
                a_tiles[:, k : k + 1].broadcast_to(grid),
                b_tiles[k : k + 1].broadcast_to(grid),
                out=out_tiles,
                accumulate=True,
            )

    def _tiles(self, name: str, storage: _cpu.Storage, rows: int, columns: int) -> ndarray.NDArray:
        check_handle("matmul_tiled", name, storage)
        shape = (rows, columns, self.__tile_size__, self.__tile_size__)
        if storage.size != math.prod(shape):
            raise ShapeError(
                f"matmul_tiled: a storage has the wrong size: got {storage.size}: "
                f"need {math.prod(shape)} elements for tiles {shape}"
            )
        return ndarray.NDArray.make(shape, device=self, handle=storage)


def _write(
    storage: _cpu.Storage, shape: Shape, strides: Shape, source: np.ndarray[Any, Any]
) -> None:
    """Writes NumPy data to memory of the CPU, cast to the storage's dtype as kernels cast."""
    with np.errstate(all="ignore"):
        _cpu.view(storage, shape, strides, 0)[...] = source


class CudaDevice(Device):
    """The first NVIDIA GPU, through the extension needle._kernels.cuda.

    The extension is loaded, and the GPU taken, when the device is first used. Where something is
    missing, every use raises DeviceError and says what.
    """

    __slots__ = ("recording",)

    in_host_memory = False

    def __init__(self) -> None:
        """Touches neither the extension nor the driver."""
        super().__init__("cuda", self._storage, self._launch, self._download, self._upload)
        self.recording: Callable[[tuple[Any, ...]], None] | None = None
        """Told the operands of every launch while a graph is recorded."""

    def enabled(self) -> bool:
        """Whether driver, device and extension are all there."""
        return not missing_for_cuda()

    def about(self) -> str:
        """The GPU's name, compute capability and memory, or that it is emulated."""
        module = cuda_module()
        if module.EMULATED:
            return "emulated on the CPU: not a GPU"
        found = module.properties()
        major, minor = found["compute_capability"]
        return f"{found['name']}, compute {major}.{minor}, {found['memory'] / 2**30:.1f} GiB"

    def _storage(self, size: int, dtype: str) -> _cpu.Storage:
        cuda_module()
        with device_errors():
            return _cpu.Storage.on(_CUDA_NUMBER, size, dtype)

    def _launch(self, kernel: int, operands: tuple[Any, ...], scalars: tuple[float, ...]) -> None:
        if self.recording is not None:
            self.recording(operands)
        try:  # no context manager: this is run for every kernel
            _cpu.launch(_CUDA_NUMBER, kernel, operands, scalars)
        except RuntimeError as error:
            raise DeviceError(str(error)) from None

    def _download(
        self, storage: _cpu.Storage, shape: Shape, strides: Shape, offset: int
    ) -> np.ndarray[Any, Any]:
        """A copy of the elements, in memory of the CPU laid out as on the device."""
        low, high = extent(shape, strides)
        host = np.empty(high - low + 1, storage.dtype)
        with device_errors():
            cuda_module().download(host, storage.ptr() + (offset + low) * storage.itemsize)
        steps = [step * storage.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(host[-low:], shape, steps)

    def _upload(
        self, storage: _cpu.Storage, shape: Shape, strides: Shape, source: np.ndarray[Any, Any]
    ) -> None:
        """Writes NumPy data to a storage that it fills, cast as kernels cast."""
        host = np.empty(storage.size, storage.dtype)
        steps = [step * storage.itemsize for step in strides]
        with np.errstate(all="ignore"):
            np.lib.stride_tricks.as_strided(host, shape, steps)[...] = source
        with device_errors():
            cuda_module().upload(storage.ptr(), host)


@contextmanager
def device_errors() -> Iterator[None]:
    """Turns what the extension raises into DeviceError; MemoryError stays."""
    try:
        yield
    except RuntimeError as error:
        raise DeviceError(str(error)) from None


@functools.cache
def cuda_module() -> ModuleType:
    """needle._kernels.cuda with the GPU taken and its kernels at the launch point.

    Raises:
        DeviceError: something is missing (`missing_for_cuda`), or the GPU cannot be used.
    """
    missing = missing_for_cuda()
    if missing:
        raise DeviceError(
            f"cuda: the device is not available: missing: {', '.join(missing)}: "
            "use cpu(), or check cuda().enabled() first"
        )
    module = _load_cuda()
    assert module is not None  # missing_for_cuda has loaded it
    with device_errors():
        module.initialize()
    _cpu.register_device("cuda", module.table(), module.backend())
    module.set_tf32(precision["float32_matmul"] == "high")
    return module


def _load_cuda() -> ModuleType | None:
    """The extension, which loads on machines without a GPU too; None where it was not built."""
    try:
        from needle._kernels import cuda
    except ImportError:
        return None
    return cuda


def missing_for_cuda() -> list[str]:
    """What this machine lacks for CUDA: the extension, the driver or a device.

    An extension built to emulate a GPU counts only if NEEDLE_CUDA_EMULATE=1, and then needs
    neither driver nor device.
    """
    missing = []
    module = _load_cuda()
    if module is None:
        missing.append("the extension needle._kernels.cuda")
    elif module.EMULATED:
        if os.environ.get("NEEDLE_CUDA_EMULATE") == "1":
            return []
        missing.append(
            "an extension for GPUs (this needle._kernels.cuda emulates one on the CPU, for tests "
            "with NEEDLE_CUDA_EMULATE=1)"
        )
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        missing.append("the NVIDIA driver (libcuda.so.1)")
        return missing
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        missing.append("a CUDA device")
    elif module is not None and not driver.cuDriverGetVersion(ctypes.byref(version)):
        have, need = version.value // 1000, module.RUNTIME // 1000
        if have < need:
            missing.append(f"a driver for CUDA {need} (this one is for {have})")
    return missing


def _read_mode() -> str:
    mode = os.environ.get("NEEDLE_BACKEND") or "nd"
    if mode not in ("nd", _REFERENCE_MODE):
        raise ValueError(f"NEEDLE_BACKEND: unknown backend: got {mode!r}: need 'nd' or 'np'")
    return mode


REFERENCE_MODE: Final[bool] = _read_mode() == _REFERENCE_MODE
CPU: Final = CpuDevice("cpu", 0)
_CPU_NUMPY: Final = CpuDevice("cpu_numpy", 1)
CUDA: Final = CudaDevice()
_DEFAULT: Final = _CPU_NUMPY if REFERENCE_MODE else CPU


def cpu() -> Device:
    """The CPU with the C++ kernels; with NEEDLE_BACKEND=np the NumPy reference."""
    return _DEFAULT


def cuda() -> Device:
    """The first NVIDIA GPU; `cuda().enabled()` says whether there is one to use."""
    return CUDA


def cpu_numpy() -> Device:
    """The CPU with the NumPy twins of the kernels: the definition the others are tested by."""
    return _CPU_NUMPY


def default_device() -> Device:
    """Where new arrays live unless a device is named: `cpu()`."""
    return _DEFAULT


def all_devices() -> list[Device]:
    """Every device by name, enabled or not."""
    return list(dict.fromkeys([cpu(), cuda(), cpu_numpy()]))


def check_device(op: str, device: object) -> Device:
    """The device, or the default for None.

    Raises:
        DeviceError: it is no device.
    """
    if device is None:
        return _DEFAULT
    if not isinstance(device, Device):
        raise DeviceError(f"{op}: not a device: got {device!r}: need cpu(), cuda() or cpu_numpy()")
    return device


def check_handle(op: str, name: str, handle: object) -> None:
    """Raises TypeError unless the argument `name` is an array's memory."""
    if not isinstance(handle, _cpu.Storage):
        raise TypeError(
            f"{op}: {name} is not an array's memory: got {type(handle).__name__}: need its _handle"
        )
