"""What the READMEs show must run; what needs the network is marked ```python no-run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_python_examples_run(path, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), str(path), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_links_lead_somewhere(path):
    for target in LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_training_example_learns(capsys):
    block = re.search(r"^```python\n(.*?)^```$", READMES[0].read_text(), re.M | re.S)
    exec(block.group(1), {})
    assert float(capsys.readouterr().out) < 0.2
