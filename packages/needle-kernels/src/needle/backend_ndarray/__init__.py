"""needle's arrays: NDArray, devices, and the kernels' front end."""

# ndarray comes first: it and the families refer to each other.
from needle.backend_ndarray.ndarray import NDArray  # isort: skip
from needle.backend_ndarray.creation import array, empty, from_dlpack, full, ones, zeros
from needle.backend_ndarray.devices import all_devices, cpu, cpu_numpy, cuda, default_device

from needle.backend_ndarray.elementwise import *
from needle.backend_ndarray.extension import cpu as _cpu
from needle.backend_ndarray.matmul import matmul
from needle.backend_ndarray.reduce import max, min, sum
from needle.backend_ndarray.reference import table as _table
from needle.backend_ndarray.shape import (
    broadcast_to, concatenate, copy_into, flip, pad, permute, reshape, stack)
_cpu.set_reference(_table(_cpu.KERNELS))
