"""Recurrent layers: the elementwise part of one LSTM step, and whole sequences of steps.

A sequence starts from what does not depend on the step before: the pre-activations of all steps,
one matrix product. States have one row more than there are steps: row 0 is the initial state.
"""

from __future__ import annotations

from typing import Final

from needle.backend_ndarray.checks import check_floats, check_rank, check_shape
from needle.backend_ndarray.errors import ShapeError
from needle.backend_ndarray.extension import KERNEL, NO_SCALARS
from needle.backend_ndarray.matmul import activation_code
from needle.backend_ndarray.ndarray import NDArray, check_writable, may_overlap, new

__all__ = [
    "lstm_cell",
    "lstm_cell_grad",
    "lstm_sequence",
    "lstm_sequence_grad",
    "rnn_sequence",
    "rnn_sequence_grad",
]

_LSTM_CELL: Final = KERNEL["lstm_cell"]
_LSTM_CELL_GRAD: Final = KERNEL["lstm_cell_grad"]
_LSTM_SEQUENCE: Final = KERNEL["lstm_sequence"]
_LSTM_SEQUENCE_GRAD: Final = KERNEL["lstm_sequence_grad"]
_RNN_SEQUENCE: Final = KERNEL["rnn_sequence"]
_RNN_SEQUENCE_GRAD: Final = KERNEL["rnn_sequence_grad"]


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
    device, dtype = check_floats("lstm_cell", "pre, c_prev", pre, c_prev)
    _check_gates("lstm_cell", "pre", pre, c_prev)
    gates = _gates("lstm_cell", pre, overwrite_pre, c_prev)
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
    names = "dh, dc, gates, c, c_prev"
    device, dtype = check_floats(op, names, dh, dc, gates, c, c_prev)
    _check_gates(op, "gates", gates, c_prev)
    for name, array in (("dh", dh), ("dc", dc), ("c", c)):
        check_shape(op, name, array, c_prev._shape)
    dpre, dc_prev = new(device, gates._shape, dtype), new(device, c_prev._shape, dtype)
    device.launch(_LSTM_CELL_GRAD, (dpre, dc_prev, dh, dc, gates, c, c_prev), NO_SCALARS)
    return dpre, dc_prev


def lstm_sequence(
    pre: NDArray, h0: NDArray, c0: NDArray, w_hh: NDArray, overwrite_pre: bool = False
) -> tuple[NDArray, NDArray, NDArray]:
    """All steps of one LSTM layer: lstm_cell on pre[t] + h W_hh, where h is the state before.

    Args:
        pre: (T, B, 4H), the input's part of the pre-activations; gates i, f, g, o side by side.
        h0: (B, H).
        c0: (B, H).
        w_hh: (H, 4H).
        overwrite_pre: keep the gates in pre's memory, which saves an array and a copy.

    Returns:
        states (T + 1, B, H) and cells (T + 1, B, H), which begin with h0 and c0; gates (T, B, 4H).

    Raises:
        ShapeError: shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
    """
    op = "lstm_sequence"
    device, dtype = check_floats(op, "pre, h0, c0, w_hh", pre, h0, c0, w_hh)
    steps, batch, hidden = _sizes(op, "pre", pre, 4, w_hh)
    check_shape(op, "h0", h0, (batch, hidden))
    check_shape(op, "c0", c0, (batch, hidden))
    overwrite = overwrite_pre and pre.is_compact()
    gates = _gates(op, pre, overwrite, h0, c0, w_hh)
    rows = steps + 1, batch, hidden
    states, cells = new(device, rows, dtype), new(device, rows, dtype)
    device.launch(_LSTM_SEQUENCE, (states, cells, gates, pre, h0, c0, w_hh), NO_SCALARS)
    return states, cells, gates


def lstm_sequence_grad(
    dy: NDArray | None,
    dh: NDArray | None,
    dc: NDArray | None,
    gates: NDArray,
    cells: NDArray,
    w_hh: NDArray,
) -> tuple[NDArray, NDArray, NDArray]:
    """The gradients (dpre (T, B, 4H), dh0 (B, H), dc0 (B, H)) of lstm_sequence.

    Args:
        dy: (T, B, H), the gradient of states[1:], or None for zero.
        dh: (B, H), a further gradient of the last state, or None.
        dc: (B, H), the gradient of the last cell, or None.
        gates: (T, B, 4H), as lstm_sequence returned them.
        cells: (T + 1, B, H), likewise.
        w_hh: (H, 4H).

    Raises:
        ShapeError: shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
    """
    op = "lstm_sequence_grad"
    device, dtype = check_floats(
        op,
        "gates, cells, w_hh, dy, dh, dc",
        gates,
        cells,
        w_hh,
        gates if dy is None else dy,
        gates if dh is None else dh,
        gates if dc is None else dc,
    )
    steps, batch, hidden = _sizes(op, "gates", gates, 4, w_hh)
    check_shape(op, "cells", cells, (steps + 1, batch, hidden))
    check_shape(op, "dy", dy, (steps, batch, hidden))
    check_shape(op, "dh", dh, (batch, hidden))
    check_shape(op, "dc", dc, (batch, hidden))
    dpre = new(device, gates._shape, dtype)
    dh0, dc0 = new(device, (batch, hidden), dtype), new(device, (batch, hidden), dtype)
    operands = (dpre, dh0, dc0, dy, dh, dc, gates, cells, w_hh)
    device.launch(_LSTM_SEQUENCE_GRAD, operands, NO_SCALARS)
    return dpre, dh0, dc0


def rnn_sequence(pre: NDArray, h0: NDArray, w_hh: NDArray, nonlinearity: str = "tanh") -> NDArray:
    """All steps of one simple recurrent layer: h = tanh(pre[t] + h W_hh), or relu.

    Args:
        pre: (T, B, H), the input's part of the pre-activations.
        h0: (B, H).
        w_hh: (H, H).
        nonlinearity: "tanh" or "relu".

    Returns:
        states (T + 1, B, H), which begin with h0.

    Raises:
        ShapeError: shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
        ValueError: another nonlinearity.
    """
    op = "rnn_sequence"
    code = _nonlinearity_code(op, nonlinearity)
    device, dtype = check_floats(op, "pre, h0, w_hh", pre, h0, w_hh)
    steps, batch, hidden = _sizes(op, "pre", pre, 1, w_hh)
    check_shape(op, "h0", h0, (batch, hidden))
    states = new(device, (steps + 1, batch, hidden), dtype)
    device.launch(_RNN_SEQUENCE, (states, pre, h0, w_hh), (code,))
    return states


def rnn_sequence_grad(
    dy: NDArray | None,
    dh: NDArray | None,
    states: NDArray,
    w_hh: NDArray,
    nonlinearity: str = "tanh",
) -> tuple[NDArray, NDArray]:
    """The gradients (dpre (T, B, H), dh0 (B, H)) of rnn_sequence.

    Args:
        dy: (T, B, H), the gradient of states[1:], or None for zero.
        dh: (B, H), a further gradient of the last state, or None.
        states: (T + 1, B, H), as rnn_sequence returned them.
        w_hh: (H, H).
        nonlinearity: "tanh" or "relu".

    Raises:
        ShapeError: shapes do not fit.
        DTypeError: the dtypes differ or are not floats.
        ValueError: another nonlinearity.
    """
    op = "rnn_sequence_grad"
    code = _nonlinearity_code(op, nonlinearity)
    device, dtype = check_floats(
        op,
        "states, w_hh, dy, dh",
        states,
        w_hh,
        states if dy is None else dy,
        states if dh is None else dh,
    )
    rows, batch, hidden = _sizes(op, "states", states, 1, w_hh)
    steps = rows - 1
    check_shape(op, "dy", dy, (steps, batch, hidden))
    check_shape(op, "dh", dh, (batch, hidden))
    dpre = new(device, (steps, batch, hidden), dtype)
    dh0 = new(device, (batch, hidden), dtype)
    device.launch(_RNN_SEQUENCE_GRAD, (dpre, dh0, dy, dh, states, w_hh), (code,))
    return dpre, dh0


def _gates(op: str, pre: NDArray, overwrite: bool, *read: NDArray) -> NDArray:
    """Where the gates go: pre itself, or a new array, also where `read` share pre's memory."""
    if not overwrite or any(may_overlap(pre, array) for array in read):
        return new(pre._device, pre._shape, pre._dtype)
    check_writable(op, pre)
    pre._handle.version += 1
    return pre


def _sizes(op: str, name: str, array: NDArray, gates: int, w_hh: NDArray) -> tuple[int, int, int]:
    """The sizes (T, B, H) of `array` (T, B, gates * H), checked against w_hh (H, gates * H)."""
    width = "H" if gates == 1 else f"{gates}H"
    check_rank(op, name, array, 3, f"(T, B, {width})")
    check_rank(op, "w_hh", w_hh, 2, f"(H, {width})")
    steps, batch, _ = array._shape
    hidden = w_hh._shape[0]
    check_shape(op, "w_hh", w_hh, (hidden, gates * hidden))
    check_shape(op, name, array, (steps, batch, gates * hidden))
    return steps, batch, hidden


def _nonlinearity_code(op: str, nonlinearity: str) -> float:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"{op}: unknown nonlinearity: got {nonlinearity!r}: need 'tanh' or 'relu'")
    return activation_code(op, nonlinearity)


def _check_gates(op: str, name: str, gates: NDArray, c_prev: NDArray) -> None:
    check_rank(op, "c_prev", c_prev, 2, "(B, H)")
    batch, hidden = c_prev._shape
    if gates._shape != (batch, 4 * hidden):
        raise ShapeError(
            f"{op}: {name} does not fit: got {gates._shape} for c_prev {c_prev._shape}: "
            f"need {(batch, 4 * hidden)}"
        )
