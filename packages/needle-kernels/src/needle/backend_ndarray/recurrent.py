"""One step of an LSTM, elementwise part: the matrix products come before it."""

from __future__ import annotations

from typing import Final

from needle.backend_ndarray.checks import check_floats, check_rank, check_shape
from needle.backend_ndarray.errors import ShapeError
from needle.backend_ndarray.extension import KERNEL, NO_SCALARS
from needle.backend_ndarray.ndarray import NDArray, check_writable, new

__all__ = ["lstm_cell", "lstm_cell_grad"]

_LSTM_CELL: Final = KERNEL["lstm_cell"]
_LSTM_CELL_GRAD: Final = KERNEL["lstm_cell_grad"]


def lstm_cell(
    pre: NDArray, c_prev: NDArray, overwrite_pre: bool = False
) -> tuple[NDArray, NDArray, NDArray]:
    """h = o * tanh(c), c = f * c_prev + i * g, with i, f, o = sigmoid and g = tanh of pre's parts.

    Args:
        pre: (B, 4H), the parts i, f, g, o side by side.
        c_prev: (B, H).
        overwrite_pre: keep the gates in pre's memory, which saves an array.

    Returns:
        h (B, H), c (B, H), gates (B, 4H).

    Raises:
        ShapeError: shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
    """
    device, dtype = check_floats("lstm_cell", pre, c_prev)
    _check_gates("lstm_cell", "pre", pre, c_prev)
    if overwrite_pre:
        check_writable("lstm_cell", pre)
        pre._handle.version += 1
    gates = pre if overwrite_pre else new(device, pre._shape, dtype)
    h, c = new(device, c_prev._shape, dtype), new(device, c_prev._shape, dtype)
    device.launch(_LSTM_CELL, (h, c, gates, pre, c_prev), NO_SCALARS)
    return h, c, gates


def lstm_cell_grad(
    dh: NDArray, dc: NDArray, gates: NDArray, c: NDArray, c_prev: NDArray
) -> tuple[NDArray, NDArray]:
    """The gradients (dpre (B, 4H), dc_prev (B, H)) of lstm_cell for dh and dc, (B, H) each.

    Raises:
        ShapeError: shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
    """
    op = "lstm_cell_grad"
    device, dtype = check_floats(op, dh, dc, gates, c, c_prev)
    _check_gates(op, "gates", gates, c_prev)
    for name, array in (("dh", dh), ("dc", dc), ("c", c)):
        check_shape(op, name, array, c_prev._shape)
    dpre, dc_prev = new(device, gates._shape, dtype), new(device, c_prev._shape, dtype)
    device.launch(_LSTM_CELL_GRAD, (dpre, dc_prev, dh, dc, gates, c, c_prev), NO_SCALARS)
    return dpre, dc_prev


def _check_gates(op: str, name: str, gates: NDArray, c_prev: NDArray) -> None:
    check_rank(op, "c_prev", c_prev, 2, "(B, H)")
    batch, hidden = c_prev._shape
    if gates._shape != (batch, 4 * hidden):
        raise ShapeError(
            f"{op}: {name} does not fit: got {gates._shape} for c_prev {c_prev._shape}: "
            f"need {(batch, 4 * hidden)}"
        )
