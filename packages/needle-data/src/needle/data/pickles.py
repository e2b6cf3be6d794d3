"""Reads pickles of plain data without unpickling: CIFAR-10's files come from outside.

A pickle is a program for a small stack machine, and Python's own machine calls whatever the
program names. The one below knows only the opcodes that build dicts, lists, tuples, strings and
numbers, and it calls nothing: the few names that a pickled NumPy array mentions are labels to
it, not functions, and the array's bytes are decoded here. Whatever it does not know is an error.

A few bytes can describe a tuple that is 200,000 deep, or one of 2**60 items by means of references
to its own parts. Hashing, comparing or printing the one overflows the C stack, and the other never
ends. So no value is touched before its type is known, and what is given out is a copy of bounded
depth and size.
"""

import math
import pickletools
from collections.abc import Iterator
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
# A CIFAR-10 file has 20,005, two deep.
MAX_VALUES = 1_000_000
MAX_DEPTH = 32
MAX_AXES = 32  # as many as NumPy 1 knows

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

    Its values are lists, tuples, dicts, str, int, float, bool, None and arrays of numbers, at most
    MAX_DEPTH deep and MAX_VALUES in all; keys are str. Bytes and Python-2 strings become str
    (latin-1, which keeps every byte). What the pickle refers to twice is there twice; arrays, which
    are read-only, share its memory.

    Raises:
        UnsafePickleError: the pickle holds or names anything else, is no dict, is malformed, cut
            short, nested too deep or too large.
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
        self.copied = 0
        self.contents: dict[int, bytes] = {}  # of arrays, by the id of their text, which stays

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
            _check_type(stack[-1], dict).update(_pairs(items))
        elif opcode == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif opcode in _TUPLES:
            stack[-_TUPLES[opcode] :] = [tuple(stack[-_TUPLES[opcode] :])]
        elif opcode == "GLOBAL":
            stack.append(_allowed(argument))
        elif opcode == "STACK_GLOBAL":
            module, name = _check_type(stack.pop(-2), str), _check_type(stack.pop(), str)
            stack.append(_allowed(f"{module} {name}"))
        elif opcode == "REDUCE":
            called, arguments = _check_type(stack.pop(-2), _Name), _check_type(stack.pop(), tuple)
            stack.append(_describe_call(called, arguments))
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
        """The one value left, copied, its arrays decoded."""
        (value,) = self.stack
        copy: dict[str, Any] = self.copy(_check_type(value, dict), 0)
        return copy

    def copy(self, value: Any, depth: int) -> Any:
        """The value without references to shared parts: counting its copies bounds its size."""
        self.copied += 1
        if self.copied > MAX_VALUES:
            raise UnsafePickleError(f"more than {MAX_VALUES} values, with all references followed")
        if depth > MAX_DEPTH:
            raise UnsafePickleError(f"nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            return {key: self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self.copy(item, depth + 1) for item in value])
        if isinstance(value, _Array):
            return self.decode(value)
        return _check_type(value, str | int | float | None)

    def decode(self, array: _Array) -> Array[Any]:
        """The array that a description means, built from its bytes, read-only."""
        _, shape, described, fortran, raw = _check_type(array.state, tuple)
        dtype = _decode_dtype(_check_type(described, _DType))
        sizes = [_check_type(n, int) for n in _check_type(shape, tuple)]
        if len(sizes) > MAX_AXES:
            raise UnsafePickleError(f"an array of {len(sizes)} axes: need at most {MAX_AXES}")
        content = self.content(_check_type(raw, str))
        if min(sizes, default=0) < 0 or math.prod(sizes) * dtype.itemsize != len(content):
            raise UnsafePickleError(
                f"an array of shape {tuple(sizes)[:8]}, dtype {dtype} has {len(content)} bytes"
            )
        return np.frombuffer(content, dtype).reshape(sizes, order="F" if fortran is True else "C")

    def content(self, text: str) -> bytes:
        """The bytes of a text, the same ones for all arrays that refer to it."""
        if id(text) not in self.contents:
            self.contents[id(text)] = text.encode("latin-1")
        return self.contents[id(text)]


def _check_type(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise UnsafePickleError(f"got a {type(value).__name__} where plain data has another type")
    return value


def _pairs(items: list[Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values, alternately in `items`; a key is checked before a dict hashes it."""
    return zip([_check_type(key, str) for key in items[::2]], items[1::2], strict=True)


def _allowed(name: str) -> _Name:
    if name not in NAMES:
        raise UnsafePickleError(f"names {name.replace(' ', '.', 1)[:80]!r}, which is not allowed")
    return _Name(NAMES[name])


def _describe_call(name: _Name, arguments: tuple[Any, ...]) -> Any:
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


def _decode_dtype(dtype: _DType) -> np.dtype[Any]:
    code = _check_type(dtype.code, str)
    # Version, byte order, then what makes an element more than a number.
    _, order, *rest = _check_type(dtype.state, tuple)[:5]
    if code not in DTYPES or _check_type(order, str) not in {"<", ">", "|", "="} or any(rest):
        raise UnsafePickleError(f"an array of dtype {code[:20]!r}, which is not one of numbers")
    decoded: np.dtype[Any] = np.dtype(order + code)
    return decoded
