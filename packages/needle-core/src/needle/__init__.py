"""needle: a deep-learning framework small enough to read, fast enough to use.

`import needle as ndl` gives Tensor and its operations, devices and initialisers. `ndl.nn`,
`ndl.optim`, `ndl.data` and `ndl.apps` come from distributions of their own and load on first use.
"""

__path__ = __import__("pkgutil").extend_path(__path__, __name__)

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import autograd, backend_ndarray, init, ops
from .autograd import Tensor, TensorTuple, no_grad
from .backend_ndarray import (
    AxisError,
    CUDAGraph,
    Device,
    DeviceError,
    DTypeError,
    NDArray,
    Peak,
    ShapeError,
    all_devices,
    cpu,
    cpu_numpy,
    cuda,
    default_device,
    get_float32_matmul_precision,
    num_threads,
    peak,
    set_float32_matmul_precision,
    set_num_threads,
    show_config,
)
from .graphs import cuda_graph
from .init import ones, ones_like, zeros, zeros_like
from .ops import (
    add,
    add_scalar,
    astype,
    avg_pool,
    batch_norm,
    batch_norm_eval,
    broadcast_to,
    concatenate,
    conv,
    dilate,
    divide,
    divide_scalar,
    embedding,
    exp,
    flip,
    fused_add_scalars,
    getitem,
    layer_norm,
    linear,
    log,
    logsoftmax,
    logsumexp,
    lstm,
    make_tuple,
    matmul,
    max,
    max_pool,
    maximum,
    mean,
    mul_scalar,
    multiply,
    negate,
    permute,
    power,
    power_scalar,
    relu,
    reshape,
    rnn,
    scalar_divide,
    scalar_power,
    scalar_subtract,
    sigmoid,
    softmax,
    softmax_cross_entropy,
    split,
    sqrt,
    stack,
    subtract,
    subtract_scalar,
    summation,
    tanh,
    to_device,
    transpose,
    tuple_get_item,
    unbroadcast,
    undilate,
)
from .profiler import ProfileRow, profile

if _TYPE_CHECKING:
    from . import apps as apps
    from . import data as data
    from . import nn as nn
    from . import optim as optim

__version__ = "0.1.0"

_SHIPPED_BY = {
    "nn": "needle-nn",
    "optim": "needle-nn",
    "data": "needle-data",
    "apps": "needle-apps",
}


def __getattr__(name: str) -> _Any:
    """Loads a package of another distribution when it is first used."""
    distribution = _SHIPPED_BY.get(name)
    if distribution is None:
        raise AttributeError(f"module 'needle' has no attribute {name!r}")
    try:
        return _import_module(f"needle.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"needle.{name}":
            raise
        raise ImportError(
            f"needle.{name} is not installed: it is part of {distribution}: "
            f"pip install {distribution}"
        ) from error


def __dir__() -> list[str]:
    """The public names, the packages of other distributions too."""
    return sorted({*globals(), *_SHIPPED_BY})


__all__ = [
    "AxisError",
    "CUDAGraph",
    "DTypeError",
    "Device",
    "DeviceError",
    "NDArray",
    "Peak",
    "ProfileRow",
    "ShapeError",
    "Tensor",
    "TensorTuple",
    "add",
    "add_scalar",
    "all_devices",
    "astype",
    "autograd",
    "avg_pool",
    "backend_ndarray",
    "batch_norm",
    "batch_norm_eval",
    "broadcast_to",
    "concatenate",
    "conv",
    "cpu",
    "cpu_numpy",
    "cuda",
    "cuda_graph",
    "default_device",
    "dilate",
    "divide",
    "divide_scalar",
    "embedding",
    "exp",
    "flip",
    "fused_add_scalars",
    "get_float32_matmul_precision",
    "getitem",
    "init",
    "layer_norm",
    "linear",
    "log",
    "logsoftmax",
    "logsumexp",
    "lstm",
    "make_tuple",
    "matmul",
    "max",
    "max_pool",
    "maximum",
    "mean",
    "mul_scalar",
    "multiply",
    "negate",
    "no_grad",
    "num_threads",
    "ones",
    "ones_like",
    "ops",
    "peak",
    "permute",
    "power",
    "power_scalar",
    "profile",
    "relu",
    "reshape",
    "rnn",
    "scalar_divide",
    "scalar_power",
    "scalar_subtract",
    "set_float32_matmul_precision",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "softmax",
    "softmax_cross_entropy",
    "split",
    "sqrt",
    "stack",
    "subtract",
    "subtract_scalar",
    "summation",
    "tanh",
    "to_device",
    "transpose",
    "tuple_get_item",
    "unbroadcast",
    "undilate",
    "zeros",
    "zeros_like",
]
