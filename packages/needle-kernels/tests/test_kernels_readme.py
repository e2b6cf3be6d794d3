"""The README's examples run, and name functions that exist."""

import re
from pathlib import Path

import pytest

from needle import backend_ndarray as nd

README = Path(__file__).parents[1] / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not beside the tests")


def test_examples_run():
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        exec(example, {})


def test_functions_exist():
    table = README.read_text().partition("| family |")[2].partition("\n\n")[0]
    cells = [row.split("|")[2] for row in table.splitlines()[2:]]
    names = {n for cell in cells for code in re.findall(r"`([^`]*)`", cell) for n in code.split()}
    names = {re.sub(r"\(.*", "", name) for name in names if re.fullmatch(r"[a-z_]+(\(.*)?", name)}
    assert len(names) > 50
    for name in names:
        known = hasattr(nd, name) or hasattr(nd.NDArray, name) or hasattr(nd.Device, name)
        assert known or name in {"bias", "activation", "out", "accumulate"}, name


def test_public_names_exist_once():  # ruff keeps them sorted
    assert len(set(nd.__all__)) == len(nd.__all__)
    for name in nd.__all__:
        assert hasattr(nd, name)
