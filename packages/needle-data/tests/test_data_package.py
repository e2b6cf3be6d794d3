"""What a user reads and imports first."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import needle.data

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_readme_run(example):
    exec(compile(example, "README.md", "exec"), {})


def test_there_are_examples():
    assert len(EXAMPLES) == 3


def test_every_public_name_exists():
    for name in needle.data.__all__:
        assert getattr(needle.data, name).__doc__


def test_importing_takes_neither_later_packages_nor_the_network():
    code = "import sys, needle.data; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    unwanted = ("needle.nn", "needle.optim", "needle.apps", "pooch", "requests", "pickle5")
    assert not [name for name in loaded if name.startswith(unwanted)]
