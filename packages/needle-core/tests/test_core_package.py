"""The package as it is imported."""

from __future__ import annotations

import importlib.machinery
import inspect
import subprocess
import sys

import pytest

import needle as ndl
from needle import autograd, ops

NAMES = [
    "Tensor",
    "TensorTuple",
    "cpu",
    "cuda",
    "cpu_numpy",
    "default_device",
    "all_devices",
    "backend_ndarray",
    "ops",
    "init",
    "ones",
    "zeros",
    "zeros_like",
    "ones_like",
    "no_grad",
    "set_num_threads",
    "show_config",
    "profile",
    "peak",
    "ShapeError",
    "DTypeError",
    "DeviceError",
]
FUNCTIONS = [
    "add",
    "add_scalar",
    "multiply",
    "mul_scalar",
    "power",
    "power_scalar",
    "divide",
    "divide_scalar",
    "negate",
    "log",
    "exp",
    "relu",
    "tanh",
    "sigmoid",
    "maximum",
    "transpose",
    "reshape",
    "broadcast_to",
    "summation",
    "matmul",
    "logsumexp",
    "logsoftmax",
    "softmax",
    "sqrt",
    "max",
    "mean",
    "concatenate",
    "stack",
    "split",
    "flip",
    "dilate",
    "undilate",
    "conv",
    "make_tuple",
    "tuple_get_item",
    "fused_add_scalars",
    "linear",
    "batch_norm",
    "batch_norm_eval",
    "layer_norm",
    "softmax_cross_entropy",
    "embedding",
    "lstm",
    "rnn",
    "getitem",
    "astype",
    "subtract",
]
CLASSES = [
    "EWiseAdd",
    "AddScalar",
    "EWiseMul",
    "MulScalar",
    "EWisePow",
    "PowerScalar",
    "EWiseDiv",
    "DivScalar",
    "Negate",
    "Log",
    "Exp",
    "ReLU",
    "Tanh",
    "Sigmoid",
    "Maximum",
    "Transpose",
    "Reshape",
    "BroadcastTo",
    "Summation",
    "MatMul",
    "LogSumExp",
    "LogSoftmax",
    "Softmax",
    "Sqrt",
    "Max",
    "Mean",
    "Concatenate",
    "Stack",
    "Split",
    "Flip",
    "Dilate",
    "UnDilate",
    "Conv",
    "MakeTensorTuple",
    "TupleGetItem",
    "FusedAddScalars",
]


def test_public_names() -> None:
    for name in NAMES:
        assert hasattr(ndl, name), name
    functions = [name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))]
    assert set(FUNCTIONS) <= set(functions)
    for name in functions:
        assert getattr(ndl, name) is getattr(ops, name), name
    for name in CLASSES:
        assert issubclass(getattr(ops, name), autograd.Op), name
    for name in [
        "Value",
        "Tensor",
        "TensorTuple",
        "Op",
        "TensorOp",
        "TensorTupleOp",
        "find_topo_sort",
    ]:
        assert hasattr(autograd, name), name
    for module in (ndl, ops, autograd, ndl.init):
        assert sorted(set(module.__all__)) == sorted(module.__all__)
        for name in module.__all__:
            assert hasattr(module, name), name


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("nn", "needle-nn"),
        ("optim", "needle-nn"),
        ("data", "needle-data"),
        ("apps", "needle-apps"),
    ],
)
def test_what_is_not_installed_is_named(
    name: str, distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hidden:
        """Finds nothing under needle.<name>, as if it were not installed."""

        @staticmethod
        def find_spec(full: str, path: object = None, target: object = None) -> None:
            if full == f"needle.{name}":
                raise ModuleNotFoundError(f"No module named {full!r}", name=full)

    # monkeypatch.delattr would touch the attribute, and so import the part.
    monkeypatch.delitem(vars(ndl), name, raising=False)
    monkeypatch.delitem(sys.modules, f"needle.{name}", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Hidden, *sys.meta_path])
    with pytest.raises(
        ImportError, match=f"needle.{name} is not installed.*pip install {distribution}"
    ):
        getattr(ndl, name)


def test_a_broken_part_shows_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(full: str, path: object = None, target: object = None) -> None:
        if full == "needle.nn":
            raise ModuleNotFoundError("No module named 'missing'", name="missing")

    finder = type("Finder", (), {"find_spec": staticmethod(find)})
    # monkeypatch.delattr would touch the attribute, and so import the part.
    monkeypatch.delitem(vars(ndl), "nn", raising=False)
    monkeypatch.delitem(sys.modules, "needle.nn", raising=False)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="missing"):
        _ = ndl.nn


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'needle' has no attribute 'nothing'"):
        _ = ndl.nothing
    assert "nn" in dir(ndl)


def test_core_imports_without_the_later_packages() -> None:
    """Nothing of nn, optim, data or apps is loaded by `import needle`, nor needed by it."""
    program = (
        "import sys, needle, needle.testing\n"
        "late = [m for m in sys.modules if m.split('.')[:2] in "
        "[['needle', n] for n in ('nn', 'optim', 'data', 'apps')]]\n"
        "assert not late, late\n"
        "assert needle.Tensor([1.0]).sum().item() == 1.0\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_the_interpreter_ends_quietly() -> None:
    program = (
        "import builtins, needle as ndl, numpy\n"
        "x = ndl.Tensor([1.0]); y = ndl.exp(x); y.backward()\n"
        "builtins.kept = y; numpy.kept = x.grad; ndl.autograd.kept = y * 2\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_package_extends_over_distributions() -> None:
    assert isinstance(ndl.__spec__.loader, importlib.machinery.SourceFileLoader)
    assert isinstance(list(ndl.__path__), list)
