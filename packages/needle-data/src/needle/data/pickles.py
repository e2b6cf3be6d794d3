"""Reads pickles of plain data without unpickling: CIFAR-10's files come from outside.

A pickle is a program for a small stack machine, and Python's own machine calls whatever the
program names. The one below knows only the opcodes that build dicts, lists, tuples, strings and
numbers, and it calls nothing: the few names that a pickled NumPy array mentions are labels to
it, not functions, and the array's bytes are decoded here. Whatever it does not know is an error.
"""

import math
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray as Array

from .errors import UnsafePickleError

# What a pickled array mentions, under NumPy 1's and NumPy 2's module names. Python 3 writes
# bytes in protocol 2 as a call of _codecs.encode(text, "latin1").
NAMES = {
    "numpy.core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy.core.numeric _frombuffer": "frombuffer",
    "numpy._core.numeric _frombuffer": "frombuffer",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}
# Element types of a data file: numbers, never objects, structures or references.
DTYPES = {"b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"}
# A CIFAR-10 file has 50,000. Each costs memory, so their number is bounded.
MAX_OPCODES = 1_000_000

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class _Name:
    """Stands where the pickle names a function or class."""

    kind: str


@dataclass
class _DType:
    """What the pickle says of an element type, not yet checked."""

    code: Any
    state: Any = None


@dataclass
class _Array:
    """What the pickle says of an array, not yet checked."""

    state: Any = None  # (version, shape, dtype, fortran, bytes)


def read_pickle(data: bytes) -> dict[str, Any]:
    """The dict of plain data in a pickle (protocols 2 to 5).

    Its values are lists, tuples, str, int, float, bool, None and arrays of numbers. Bytes and
    Python-2 strings become str (latin-1, which keeps every byte).

    Raises:
        UnsafePickleError: the pickle holds or names anything else, is no dict, is malformed, or is
            cut short.
    """
    machine, where = _Machine(), "the start"
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            where = f"{opcode.name} at byte {position}"
            if count >= MAX_OPCODES:
                raise UnsafePickleError(f"more than {MAX_OPCODES} opcodes")
            machine.step(opcode.name, argument)
        return machine.result()
    except UnsafePickleError as error:
        raise UnsafePickleError(f"pickle: {where}: {error}: need a dict of plain data") from None
    except (ValueError, TypeError, LookupError, ArithmeticError, Warning) as error:
        # genops gives ValueError for an unknown opcode or a missing end (and, where warnings are
        # errors, a warning for a text with bad escapes), the machine the others for a stack that
        # does not hold what the opcode needs.
        raise UnsafePickleError(f"pickle: malformed after {where}: {error}") from error


class _Machine:
    """A stack, a memo, and the opcodes that plain data needs."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _VALUES:
            is_bytes = isinstance(argument, bytes | bytearray)
            stack.append(argument.decode("latin-1") if is_bytes else argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in {"BINPUT", "LONG_BINPUT"}:
            self.memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode in {"BINGET", "LONG_BINGET"}:
            stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.marks.append(len(stack))
        elif opcode in {"APPEND", "APPENDS"}:
            items = [stack.pop()] if opcode == "APPEND" else self.pop_to_mark()
            _check_type(stack[-1], list).extend(items)
        elif opcode in {"SETITEM", "SETITEMS"}:
            items = [stack.pop(-2), stack.pop()] if opcode == "SETITEM" else self.pop_to_mark()
            _check_type(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif opcode == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif opcode in _TUPLES:
            stack[-_TUPLES[opcode] :] = [tuple(stack[-_TUPLES[opcode] :])]
        elif opcode == "GLOBAL":
            stack.append(_allowed(argument))
        elif opcode == "STACK_GLOBAL":
            stack.append(_allowed(f"{stack.pop(-2)} {stack.pop()}"))
        elif opcode == "REDUCE":
            stack.append(_describe_call(_check_type(stack.pop(-2), _Name), *stack.pop()))
        elif opcode == "BUILD":
            state = stack.pop()
            _check_type(stack[-1], _Array | _DType).state = state
        elif opcode not in {"PROTO", "FRAME", "STOP"}:
            raise UnsafePickleError("the opcode is not one of plain data")

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def result(self) -> dict[str, Any]:
        """The one value left, its arrays decoded."""
        (value,) = self.stack
        value = _check_type(value, dict)
        return {
            _check_type(key, str): _decode(item) if isinstance(item, _Array) else item
            for key, item in value.items()
        }


def _check_type(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise UnsafePickleError(f"got a {type(value).__name__} where plain data has another type")
    return value


def _allowed(name: str) -> _Name:
    if name not in NAMES:
        raise UnsafePickleError(f"names {name.replace(' ', '.', 1)[:80]!r}, which is not allowed")
    return _Name(NAMES[name])


def _describe_call(name: _Name, *arguments: Any) -> Any:
    """What the call would make, as a description; nothing is called."""
    if name.kind == "reconstruct":
        return _Array()
    if name.kind == "dtype":
        return _DType(arguments[0])
    if name.kind == "encode":
        return _check_type(arguments[0], str)
    if name.kind == "frombuffer":
        raw, dtype, shape, order = arguments
        return _Array((1, shape, dtype, order == "F", raw))
    raise UnsafePickleError(f"calls {name.kind}")


def _decode(array: _Array) -> Array[Any]:
    """The array that a description means, built from its bytes, read-only."""
    _, shape, described, fortran, raw = _check_type(array.state, tuple)
    dtype = _decode_dtype(_check_type(described, _DType))
    sizes = [_check_type(n, int) for n in _check_type(shape, tuple)]
    content = _check_type(raw, str).encode("latin-1")
    if min(sizes, default=0) < 0 or math.prod(sizes) * dtype.itemsize != len(content):
        raise UnsafePickleError(
            f"an array of shape {tuple(sizes)[:8]}, dtype {dtype} has {len(content)} bytes"
        )
    return np.frombuffer(content, dtype).reshape(sizes, order="F" if fortran is True else "C")


def _decode_dtype(dtype: _DType) -> np.dtype[Any]:
    code = _check_type(dtype.code, str)
    _, byte_order, *rest = _check_type(dtype.state, tuple)
    if code not in DTYPES or byte_order not in {"<", ">", "|", "="} or any(rest[:3]):
        raise UnsafePickleError(f"an array of dtype {code[:20]!r}, which is not one of numbers")
    decoded: np.dtype[Any] = np.dtype(byte_order + code)
    return decoded
