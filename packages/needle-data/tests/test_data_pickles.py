"""What a pickle can hold, and what it must never do."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from data_files import array_opcodes, batch_pickle, dict_opcodes, labels_opcodes, short
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.data import DataFileError, UnsafePickleError
from needle.data.pickles import read_pickle

VALUES = {
    "labels": [0, 3, 255, 256, 70_000, -1],
    "text": "frog",
    "mixed": (1, 2.5, None, True, False, [], {}, ()),
    "pair": (1, 2),
    "one": (1,),
    "nested": [[1], {"a": (1, 2, 3)}],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data(protocol):
    assert read_pickle(pickle.dumps(VALUES, protocol)) == VALUES


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["u1", "i8", "f4", ">i4", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays(protocol, dtype, order):
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)
    value = read_pickle(pickle.dumps({"data": array, "again": array}, protocol))
    for got in value.values():
        np.testing.assert_array_equal(got, array)
        assert got.dtype == array.dtype


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_byte_strings_become_text(protocol):
    value = read_pickle(pickle.dumps({b"data": b"\x00\xff\n"}, protocol))
    assert value == {"data": "\x00\xff\n"}


def test_python_2_arrays():
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    value = read_pickle(batch_pickle(images, [1, 2, 3]))
    np.testing.assert_array_equal(value["data"], images.reshape(3, 3072))
    assert value["labels"] == [1, 2, 3]
    assert value["filenames"] == ["frog_s_000001.png"] * 3
    assert value["batch_label"] == "training batch 1 of 5"


# ---- attacks ------------------------------------------------------------------------------------


class Attack:
    """Runs a command when Python's own unpickler meets it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_command_is_never_run(protocol, tmp_path):
    target = tmp_path / "written"
    attack = pickle.dumps({"data": Attack(os.mkdir, str(target))}, protocol)
    with pytest.raises(UnsafePickleError):
        read_pickle(attack)
    assert not target.exists()
    pickle.loads(attack)
    assert target.exists(), "the attack itself works"


def test_the_error_names_what_was_asked_for():
    attack = pickle.dumps({"data": Attack(os.system, "true")}, 2)
    with pytest.raises(UnsafePickleError, match=r"GLOBAL at byte \d+: names '(posix|nt)\.system'"):
        read_pickle(attack)
    assert issubclass(UnsafePickleError, DataFileError)
    assert issubclass(UnsafePickleError, pickle.UnpicklingError)
    assert issubclass(UnsafePickleError, ValueError)


NDARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
OBJECTS = array_opcodes((1,), b"\0" * 8, code=b"O8")

ATTACKS = {
    "builtins": (b"c__builtin__\neval\n" + short(b"1") + b"\x85R", "names '__builtin__.eval'"),
    "copyreg": (b"ccopy_reg\n_reconstructor\n", "names 'copy_reg._reconstructor'"),
    "a name that only begins well": (b"cnumpy.core.multiarray\n_reconstruct.x\n", "_reconstruct.x"),
    "numpy, but a function": (b"cnumpy\nsave\n", "names 'numpy.save'"),
    "numpy loads code": (b"cnumpy.f2py\ncompile\n", "names 'numpy.f2py.compile'"),
    "stack global": (b"\x8c\x05posix\x8c\x06system\x93", "STACK_GLOBAL at byte .*'posix.system'"),
    "old instance": (b"(S'true'\nios\nsystem\n", "STRING at byte"),
    "INST": (b"(ios\nsystem\n", "INST at byte"),
    "OBJ": (b"(" + NDARRAY + b"o", "OBJ at byte"),
    "NEWOBJ": (NDARRAY + b")\x81", "NEWOBJ at byte"),
    "NEWOBJ_EX": (NDARRAY + b")}\x92", "NEWOBJ_EX at byte"),
    "persistent id": (b"Psecret\n", "PERSID at byte"),
    "binary persistent id": (short(b"x") + b"Q", "BINPERSID at byte"),
    "extension registry": (b"\x82\x01", "EXT1 at byte"),
    "out-of-band buffer": (b"\x97", "NEXT_BUFFER at byte"),
    "the class called": (NDARRAY + b"K\x05\x85R", "calls ndarray"),
    "a result called": (b"]" + b")R", "REDUCE at byte .*got a list"),
    "build on a list": (b"]}b", "BUILD at byte .*got a list"),
    "build on a class": (NDARRAY + b"}b", "BUILD at byte .*got a _Name"),
    "build on a function": (RECONSTRUCT + b"N}\x86b", "BUILD at byte .*got a _Name"),
    "_reconstruct of another class": (RECONSTRUCT + DTYPE + b"\x85R", "got a NoneType"),
    "array without state": (RECONSTRUCT + b")R", "got a NoneType"),
    "object array": (OBJECTS, "dtype 'O8', which is not one of numbers"),
    "structured array": (array_opcodes((1,), b"\0" * 8, code=b"V8"), "dtype 'V8'"),
    "dtype code of code": (array_opcodes((1,), b"\0", code=b"(1,9)f8"), r"dtype '\(1,9\)f8'"),
    "byte order": (array_opcodes((1,), b"\0", order=b"u1,"), "not one of numbers"),
    "too few bytes": (array_opcodes((4, 4), b"\0" * 15), r"shape \(4, 4\), dtype uint8 has 15"),
    "too many bytes": (array_opcodes((4, 4), b"\0" * 17), r"shape \(4, 4\), dtype uint8 has 17"),
    "negative sizes": (array_opcodes((-4, -4), b"\0" * 16), r"shape \(-4, -4\)"),
    "huge sizes": (array_opcodes((2**31 - 1,) * 4, b""), r"shape \(2147483647, 2147483647"),
    "append to a tuple": (b")K\x01a", "APPEND at byte .*got a tuple"),
    "set an item of a list": (b"]K\x01K\x02s", "SETITEM at byte .*got a list"),
    "unhashable key": (b"}]K\x02s", "SETITEM at byte .*got a list"),
    "a number as a key": (b"}(K\x01K\x02u", "SETITEMS at byte .*got a int"),
    "arguments that are no tuple": (DTYPE + b"]K\x01aR", "REDUCE at byte .*got a list"),
    "arguments that are text": (DTYPE + short(b"u1") + b"R", "REDUCE at byte .*got a str"),
    "a class as data": (NDARRAY, "STOP at byte .*got a _Name"),
    "an element type as data": (b"](" + DTYPE + short(b"u1") + b"\x85Re", "got a _DType"),
    "odd number of items": (b"}(" + short(b"a") + b"u", "malformed after SETITEMS"),
    "memo never written": (b"h\x63", "malformed after BINGET at byte"),
    "no list to append to": (b"e", "APPENDS at byte .*got a dict"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name):
    opcodes, text = ATTACKS[name]
    with pytest.raises(UnsafePickleError, match=text):
        read_pickle(dict_opcodes(data=opcodes))


def test_dtype_fields_and_metadata_are_refused():
    fields = short(b"|") + b"N(" + short(b"a") + b"tN"
    content = array_opcodes((1,), b"\0").replace(short(b"|") + b"NNN", fields)
    with pytest.raises(UnsafePickleError, match="not one of numbers"):
        read_pickle(dict_opcodes(data=content))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "malformed after the start: pickle exhausted before seeing STOP"),
        (b"\x80\x02", "malformed after PROTO at byte 0: pickle exhausted"),
        (b"\x80\x02.", "malformed after STOP at byte 2"),
        (b"\x80\x02]].", "malformed after STOP at byte 4"),
        (b"\x80\x02].", "STOP at byte 3: got a list"),
        (b"\x80\x02}K\x01K\x02s.", "got a int"),
        (b"not a pickle", "pickle: malformed after"),
        (b"\x80\x02S'\\u'\n.", "escape|STRING at byte"),
        (b"\xff\xfe\x00", "malformed after the start"),
        (b"\x80\x02T\xff\xff\xff\x7fabc", "malformed after PROTO at byte 0"),
        (b"\x80\x05\x8e" + struct.pack("<Q", 2**62) + b"abc", "malformed after PROTO"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**63) + b"abc", "malformed after PROTO"),
    ],
)
def test_malformed(data, text):
    with pytest.raises(UnsafePickleError, match=text):
        read_pickle(data)


def test_bombs_stay_small():
    # A memo index of 2**31 makes Python's unpickler allocate a table of that length.
    far = b"\x80\x02]r\xff\xff\xff\x7f0."
    with pytest.raises(UnsafePickleError, match="POP at byte"):
        read_pickle(far)
    with pytest.raises(UnsafePickleError, match="more than 1000000 opcodes"):
        read_pickle(b"\x80\x02" + b"]" * 1_000_001 + b".")


DEEP = b")" + b"\x85" * 200_000  # a tuple of a tuple of ...
# A pair of one pair twice, and so on: 2**60 items if anything were to walk through them.
DOUBLED = b")q\x20" + b"".join(b"h%c\x86q%c" % (k, k + 1) for k in range(32, 92))
FROMBUFFER = b"cnumpy.core.numeric\n_frombuffer\n"


def with_byte_order(value):
    content = array_opcodes((1,), b"\0")
    assert content.count(short(b"|")) == 1
    return content.replace(short(b"|"), value)


def nested(value):
    """What Python's C stack or all of time would not be enough for, were it hashed or printed."""
    return {
        "key": (b"}" + value + b"Ns", "SETITEM at byte .*got a tuple"),
        "key of many": (b"}(" + value + b"Nu", "SETITEMS at byte .*got a tuple"),
        "module": (value + short(b"f") + b"\x93", "STACK_GLOBAL at byte .*got a tuple"),
        "function": (short(b"m") + value + b"\x93", "STACK_GLOBAL at byte .*got a tuple"),
        "arguments": (DTYPE + value + b"R", "STOP at byte .*got a _DType"),
        "called": (value + b")R", "REDUCE at byte .*got a tuple"),
        "state": (DTYPE + short(b"u1") + b"\x85R" + value + b"b", "STOP at byte .*got a _DType"),
        "byte order": (with_byte_order(value), "STOP at byte .*got a tuple"),
        "memory order": (
            FROMBUFFER + b"(" + short(b"a") + DTYPE + short(b"u1") + b"\x85R"
            b"(K\x03" + short(b"|") + b"tb" + b"K\x01\x85" + value + b"tR",
            r"^{'data': array\(\[97\], dtype=uint8\)}$",
        ),
        "value": (value, "STOP at byte .*nested more than 32 deep"),
        "value in a list": (b"]" + value + b"a", "STOP at byte .*nested more than 32 deep"),
    }  # fmt: skip


BOMBS = {f"deep {name}": case for name, case in nested(DEEP).items()}
BOMBS |= {f"doubled {name}": case for name, case in nested(DOUBLED).items()}
MANY = b"K\x00" * 300_000
BOMBS |= {
    "a call's many arguments, many times": (
        b"](" + RECONSTRUCT + b"q\x20(" + MANY + b"tq\x21R" + b"h\x20h\x21R" * 200_000 + b"e",
        "STOP at byte .*got a NoneType",
    ),
    "a dtype of many fields, many times": (
        b"]("
        + array_opcodes((1,), b"a").replace(b"NNN", b"NNN" + MANY)
        + b"h\x09" * 100_000
        + DTYPE
        + b"e",
        "STOP at byte .*got a _Name",
    ),
    "a list in itself": (b"]q\x20h\x20a", "STOP at byte .*nested more than 32 deep"),
    "a dict in itself": (b"}q\x20" + short(b"a") + b"h\x20s", "STOP .*nested more than 32 deep"),
    "an array in itself": (RECONSTRUCT + b")Rq\x20h\x20b", "STOP at byte .*got a _Array"),
    "arrays in arrays": ((RECONSTRUCT + b")R") * 20_000 + b"b" * 19_999, "STOP .*got a _Array"),
    "lists of one long list": (
        # 2,000 times the same 2,000 numbers
        b"](](" + b"K\x00" * 2000 + b"eq\x20" + b"h\x20" * 1999 + b"e",
        "STOP at byte .*more than 1000000 values",
    ),
    "a product of huge sizes": (
        array_opcodes((), b"a").replace(
            b"(t", b"(\x8a\xff" + b"\x7f" * 255 + b"q\x20" + b"h\x20" * 400_000 + b"t", 1
        ),
        "STOP at byte .*an array of 400001 axes: need at most 32",
    ),
}
READ = """
import json, resource, sys
from needle.data.pickles import UnsafePickleError, read_pickle

bombs = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30,) * 2)
for name, text in bombs.items():
    try:
        said = repr(read_pickle(text.encode("latin-1")))
    except UnsafePickleError as error:
        said = str(error)
    print(json.dumps([name, said]), flush=True)
"""


@pytest.fixture(scope="module")
def told():
    """What became of each bomb, by name, in another process: up to one that ended or hung it."""
    texts = {name: dict_opcodes(data=code).decode("latin-1") for name, (code, _) in BOMBS.items()}
    with subprocess.Popen(
        [sys.executable, "-c", READ], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            output, _ = process.communicate(json.dumps(texts), timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    return dict(map(json.loads, output.splitlines()))


@pytest.mark.parametrize("name", BOMBS)
def test_no_pickle_crashes_or_takes_forever(told, name):
    said, (_, text) = told[name], BOMBS[name]
    assert len(said) < 500
    assert re.search(text, said), said


def test_nesting_that_is_still_read():
    value = 7
    for _ in range(31):
        value = [value]
    assert read_pickle(pickle.dumps({"data": value}, 4)) == {"data": value}
    with pytest.raises(UnsafePickleError, match="nested more than 32 deep"):
        read_pickle(pickle.dumps({"data": [value]}, 4))


def test_arrays_inside_of_lists():
    value = read_pickle(pickle.dumps({"data": [(np.arange(3), {"a": np.ones(2)})]}, 4))
    ((first, second),) = value["data"]
    np.testing.assert_array_equal(first, np.arange(3))
    np.testing.assert_array_equal(second["a"], np.ones(2))


def test_arrays_of_one_text_share_its_memory():
    """Else 60 MB of text and 100,000 names for it would be 6 TB."""
    text = short(b"x" * 300)
    head, tail = array_opcodes((300,), b"x" * 300).split(text)
    data = dict_opcodes(
        a=head + text + b"q\x30" + tail,
        b=head + b"h\x30" + tail,
        c=b"h\x09",  # the array before, by its memo
    )
    value = read_pickle(data)
    assert np.shares_memory(value["a"], value["b"])
    assert np.shares_memory(value["b"], value["c"])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_raises_the_typed_error_or_reads_plain_data(data):
    good = bytearray(dict_opcodes(labels=labels_opcodes([1, 2]), data=array_opcodes((2,), b"ab")))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        value = read_pickle(bytes(good))
    except UnsafePickleError:
        return
    assert type(value) is dict


def test_labels_writer_agrees_with_pickle():
    assert pickle.loads(dict_opcodes(labels=labels_opcodes([1, 2]))) == {"labels": [1, 2]}
