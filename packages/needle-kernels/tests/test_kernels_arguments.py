"""Arguments of a wrong kind: an error says which one, and no kernel runs on what is not there."""

import inspect
import re

import numpy as np
import pytest

from needle import backend_ndarray as nd

f = nd.ones


def ints(*values):
    return nd.array(values, dtype="int64")


def images():
    return f((1, 5, 5, 2))


# What every function with NDArrays among its parameters takes.
CASES = {
    "adam": lambda: ([f((4,))], [f((4,))], [f((4,))], [f((4,))], 0.1, 0.9, 0.9, 1e-8, 0.0, 1),
    "avg_pool": lambda: (images(), 2),
    "avg_pool_grad": lambda: (f((1, 2, 2, 2)), (1, 5, 5, 2), 2),
    "batch_norm": lambda: (f((4, 4)), f((4,)), f((4,)), 1e-5),
    "batch_norm_eval": lambda: (f((4, 4)), f((4,)), f((4,)), f((4,)), f((4,)), 1e-5),
    "batch_norm_grad": lambda: (f((4, 4)), f((4, 4)), f((4, 4)), f((4,)), f((4,)), f((4,)), 1e-5),
    "broadcast_to": lambda: (f((2, 3)), (2, 2, 3)),
    "channels_first": lambda: (images(),),
    "channels_last": lambda: (images(),),
    "concatenate": lambda: ([f((2,)), f((2,))],),
    "conv": lambda: (images(), f((3, 3, 2, 4)), f((4,))),
    "conv_input_grad": lambda: (f((1, 3, 3, 4)), f((3, 3, 2, 4)), (1, 5, 5, 2), 1, 0),
    "conv_weight_bias_grad": lambda: (images(), f((1, 3, 3, 4)), 3, 1, 0),
    "conv_weight_grad": lambda: (images(), f((1, 3, 3, 4)), 3, 1, 0),
    "copy_into": lambda: (f((2, 3)), f((2, 3))),
    "flip": lambda: (f((2, 3)),),
    "gather": lambda: (f((4, 4)), ints(0, 1)),
    "image_batch": lambda: (
        f((4, 2, 5, 5)),
        ints(0, 1),
        nd.zeros((2, 2), dtype="int64"),
        nd.zeros((2,), dtype="bool"),
        nd.zeros((2, 2), dtype="int64"),
        f((2,)),
        f((2,)),
    ),
    "layer_norm": lambda: (f((4, 4)), f((4,)), f((4,)), 1e-5),
    "layer_norm_grad": lambda: (f((4, 4)), f((4, 4)), f((4,)), f((4,)), f((4,)), 1e-5),
    "linear_weight_grad": lambda: (f((2, 3)), f((2, 4))),
    "logsumexp": lambda: (f((2, 3)),),
    "lstm_cell": lambda: (f((2, 12)), f((2, 3))),
    "lstm_cell_grad": lambda: (f((2, 3)), f((2, 3)), f((2, 12)), f((2, 3)), f((2, 3))),
    "lstm_sequence": lambda: (f((5, 2, 12)), f((2, 3)), f((2, 3)), f((3, 12))),
    "lstm_sequence_grad": lambda: (
        f((5, 2, 3)),
        f((2, 3)),
        f((2, 3)),
        f((5, 2, 12)),
        f((6, 2, 3)),
        f((3, 12)),
    ),
    "matmul": lambda: (f((2, 3)), f((3, 4)), f((4,)), None, f((2, 4))),
    "max_pool": lambda: (images(), 2),
    "max_pool_grad": lambda: (
        f((1, 2, 2, 2)),
        ints(*[0] * 8).reshape((1, 2, 2, 2)),
        images().shape,
        2,
    ),
    "max_pool_pick": lambda: (images(), ints(*[0] * 8).reshape((1, 2, 2, 2)), 2),
    "moving_average": lambda: ([f((4,))], [f((4,))], 0.1),
    "one_hot": lambda: (ints(0, 1), 3),
    "pad": lambda: (f((2, 3)), ((1, 1), (1, 1))),
    "partial_sum_squares": lambda: ([f((4,))],),
    "permute": lambda: (f((2, 3)), (1, 0)),
    "reshape": lambda: (f((2, 3)), (3, 2)),
    "rnn_sequence": lambda: (f((5, 2, 3)), f((2, 3)), f((3, 3))),
    "rnn_sequence_grad": lambda: (f((5, 2, 3)), f((2, 3)), f((6, 2, 3)), f((3, 3))),
    "scale": lambda: ([f((4,))], 2.0),
    "scatter_add": lambda: (f((2, 4)), ints(0, 1), 3),
    "sgd": lambda: ([f((4,))], [f((4,))], [f((4,))], 0.1, 0.9, 0.0),
    "softmax_cross_entropy": lambda: (f((4, 4)), ints(0, 1, 2, 3)),
    "softmax_cross_entropy_grad": lambda: (f(()), f((4, 4)), f((4,)), ints(0, 1, 2, 3)),
    "stack": lambda: ([f((2,)), f((2,))],),
    "sum_squares": lambda: ([f((4,))],),
    **{
        name: lambda: (f((2, 3)),)
        for name in (
            *("abs", "exp", "log", "logical_not", "logsoftmax", "max", "min", "negate", "relu"),
            *("sigmoid", "softmax", "sqrt", "sum", "tanh"),
        )
    },
    **{
        name: lambda: (f((2, 3)), f((2, 3)))
        for name in ("logical_and", "logical_or", "relu_grad", "sigmoid_grad", "tanh_grad")
    },
}
# Functions that make arrays of NumPy's, of lists and of numbers.
CONVERTING = {
    *("abs", "broadcast_to", "exp", "flip", "log", "logical_and", "logical_not", "logical_or"),
    *("logsoftmax", "logsumexp", "max", "min", "negate", "pad", "permute", "relu", "reshape"),
    *("sigmoid", "softmax", "sqrt", "sum", "tanh"),
}
WRONG = [None, 1.5, np.ones((2, 3), np.float32), [1.0, 2.0], "x"]


def parameters():
    """(function, parameter, its annotation), for every parameter that is an NDArray or several."""
    for name in nd.__all__:
        function = getattr(nd, name)
        if inspect.isfunction(function):
            for parameter in inspect.signature(function).parameters.values():
                if "NDArray" in str(parameter.annotation):
                    yield name, parameter.name, parameter.annotation


PARAMETERS = list(parameters())


def given(name, parameter, value):
    """The arguments of the case with one replaced."""
    bound = inspect.signature(getattr(nd, name)).bind(*CASES[name]())
    bound.arguments[parameter] = value
    return bound


@pytest.mark.parametrize("name", CASES)
def test_the_case_is_right(name):
    getattr(nd, name)(*CASES[name]())
    nd.synchronize()


def test_every_function_has_a_case():
    assert {name for name, _, _ in PARAMETERS} == set(CASES)


SINGLE = [p[:2] for p in PARAMETERS if p[2] in ("NDArray", "NDArray | None")]
OPTIONAL = {p[:2] for p in PARAMETERS if p[2] == "NDArray | None"}


@pytest.mark.parametrize(("name", "parameter"), SINGLE, ids="-".join)
def test_no_array(name, parameter):
    if name in CONVERTING:
        wrong = [None, "x", object(), [1j]]
        text = f"{name}: not an array: got %s"
    else:
        wrong = WRONG[(name, parameter) in OPTIONAL :]
        text = f"{name}: {parameter} is not an array: got %s: need an NDArray"
    for value in wrong:
        call = given(name, parameter, value)
        with pytest.raises(TypeError, match=re.escape(text % type(value).__name__)):
            getattr(nd, name)(*call.args, **call.kwargs)


def test_the_columns_of_an_operation_may_not_be_absent_by_two():
    x, w = f((4, 3)), [f((4,))]
    for call in (
        lambda: nd.layer_norm(x, None, None, 1e-5),
        lambda: nd.sgd(None, None, w, 0.1, 0.0, 0.0),
        lambda: nd.sgd(w, None, None, 0.1, 0.0, 0.0),
        lambda: nd.adam(None, None, None, w, 0.1, 0.9, 0.9, 1e-8, 0.0, 1),
    ):
        with pytest.raises(TypeError, match="got NoneType: need "):
            call()
    nd.sgd(w, None, [f((4,))], 0.5, 0.0, 0.0)
    assert w[0].tolist() == [0.5] * 4


SEVERAL = [p[:2] for p in PARAMETERS if "NDArray]" in p[2]]


@pytest.mark.parametrize(("name", "parameter"), SEVERAL, ids="-".join)
def test_no_arrays(name, parameter):
    op = "sum_squares" if name == "partial_sum_squares" else name
    for value in (1.5,) if (name, parameter) == ("sgd", "momenta") else (1.5, None):
        call = given(name, parameter, value)
        text = f"{op}: {parameter} is not a list: got {type(value).__name__}: need NDArrays"
        with pytest.raises(TypeError, match=text):
            getattr(nd, name)(*call.args, **call.kwargs)
    for value in WRONG:
        call = given(name, parameter, [value])
        text = f"{op}: one of {parameter} is not an array: got {type(value).__name__}: need an NDA"
        with pytest.raises(TypeError, match=text):
            getattr(nd, name)(*call.args, **call.kwargs)


def test_an_error_of_an_iterator_is_its_own():
    def broken():
        yield f((2,))
        raise TypeError("mine")

    for join in (nd.concatenate, nd.stack):
        with pytest.raises(TypeError, match=r"^mine$"):
            join(broken())


def test_operands():
    for value in (None, "x", object()):
        kind = type(value).__name__
        for a, b in ((value, f((2, 3))), (f((2, 3)), value)):
            with pytest.raises(TypeError, match=f"maximum: unsupported operand: got {kind}"):
                nd.maximum(a, b)
            with pytest.raises(TypeError, match=f"matmul: not an array: got {kind} .*: need an ND"):
                nd.matmul(a, b)
        with pytest.raises(TypeError, match=f"maximum: not an array: got {kind}"):
            nd.maximum(value, 0)


STRIDES = [
    ("conv", 3, "stride"),
    ("conv", 4, "padding"),
    ("conv_input_grad", 3, "stride"),
    ("conv_input_grad", 4, "padding"),
    ("conv_weight_grad", 2, "kernel_size"),
    ("conv_weight_grad", 3, "stride"),
    ("conv_weight_bias_grad", 4, "padding"),
]


@pytest.mark.parametrize(("name", "position", "parameter"), STRIDES, ids=str)
def test_stride_and_padding(name, position, parameter):
    for value in ((2, 1), [2, 1], 1.5, "x", None, np.ones(2)):
        call = given(name, parameter, value)
        with pytest.raises(
            TypeError, match=rf"{name}: {parameter} is not an integer: got .*: need"
        ):
            getattr(nd, name)(*call.args, **call.kwargs)
    arguments = given(name, parameter, None).arguments
    right = {"stride": 1, "padding": 0, "kernel_size": 3}[parameter]
    for value in (np.int64(right), nd.array(right, dtype="int64")):
        getattr(nd, name)(**arguments | {parameter: value})


def test_settings():
    x, w, a = f((4, 4)), f((4,)), [f((2,))]
    for call, text in (
        (lambda: nd.layer_norm(x, w, w, "x"), "layer_norm: a setting is not a number: got str"),
        (lambda: nd.sgd(a, a, a, None, 0.9, 0.0), "sgd: a setting is not a number: got NoneType"),
        (lambda: nd.scale(a, "x"), "scale: a setting is not a number: got str: need a float"),
        (lambda: nd.adam(a, a, a, a, 1, "x", 1, 1, 1, 1), "adam: a setting .* beta1 'x', beta2 1"),
        (lambda: nd.adam(a, a, a, a, 1, 1, 1, 1, 1, "x"), "adam: step is not an integer: got 'x'"),
        (
            lambda: nd.softmax_cross_entropy(x, ints(0, 0, 0, 0), None),
            r"softmax_cross_entropy: label smoothing: got NoneType: need a number in \[0, 1\]",
        ),
        (lambda: nd.one_hot(ints(0), (2, 1)), r"one_hot: num_classes is not an integer: got \(2"),
        (lambda: nd.scatter_add(f((1, 3)), ints(0), 2.5), r"scatter_add: not integers: got \(2.5"),
        (lambda: nd.full((2,), None), "fill: value: got NoneType: need a number"),
        (lambda: x.fill([1.0]), "fill: value: got list: need a number"),
        (lambda: x.process_slice(3, 0), "process_slice: sl: got int: need a slice"),
        (lambda: x.as_strided((2,), (1,), "x"), "as_strided: offset is not an integer: got 'x'"),
        (lambda: nd.NDArray.make(2, offset=1.5), "make: offset is not an integer: got 1.5"),
        (lambda: nd.NDArray.make(2, handle=x), "make: handle is not an array's memory: got NDArr"),
        (lambda: nd.cpu().matmul_tiled(x, x, x, 8, 8, 8), "matmul_tiled: a is not an array's mem"),
        (lambda: nd.cpu().matmul_tiled(x, x, x, 8, 8, "x"), "matmul_tiled: p is not an integer"),
        (lambda: nd.from_dlpack([1.0]), "from_dlpack: x: got list: need an object with __dlpack__"),
        (lambda: nd.sum(x, np.array(0.5)), "sum: not integers: got array"),
        (lambda: nd.set_num_threads("x"), "set_num_threads: n is not an integer: got 'x'"),
        (lambda: nd.set_memory_limit(None), "set_memory_limit: limit is not an integer: got None"),
    ):
        with pytest.raises(TypeError, match=text):
            call()
    with pytest.raises(ValueError, match="matmul: unknown activation: got"):
        nd.matmul(x, x, activation=[])
    with pytest.raises(ValueError, match=r"set_memory_limit: got .* bytes: .* below 2\^63"):
        nd.set_memory_limit(2**63)
    for function in (nd.memory_stats, nd.reset_peak, nd.empty_cache, nd.synchronize):
        with pytest.raises(nd.DeviceError, match=f"{function.__name__}: not a device: got 'cuda'"):
            function("cuda")


def test_images_have_four_axes():
    for function in (nd.channels_first, nd.channels_last):
        with pytest.raises(nd.ShapeError, match=r"images has the wrong number of axes: got \(7,\)"):
            function(f((7,)))


def test_axes_given_as_an_array():
    x = np.arange(6.0).reshape(2, 3)
    assert nd.sum(nd.array(x), np.array([0, 1])).item() == 15
    assert nd.max(nd.array(x), np.array([-1])).tolist() == [2, 5]
