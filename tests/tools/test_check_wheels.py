"""The wheel check must be able to fail."""

import zipfile

import check_wheels
import pytest


def make_wheel(folder, name, *requirements):
    path = folder / f"{name}-0.1.0-py3-none-any.whl"
    lines = ["Metadata-Version: 2.4", f"Name: {name}", "Version: 0.1.0"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-0.1.0.dist-info/METADATA", "\n".join(lines) + "\n")
    return path


def test_only_needle_dependencies_are_followed(tmp_path):
    wheels = {
        "needle-a": make_wheel(tmp_path, "needle_a", "numpy>=2"),
        "needle-b": make_wheel(tmp_path, "needle_b", "needle-a<0.2,>=0.1", "rich"),
        "needle-c": make_wheel(tmp_path, "needle_c", "needle-b<0.2,>=0.1"),
    }
    assert check_wheels.closure("needle-c", wheels) == ["needle-a", "needle-b", "needle-c"]
    assert check_wheels.closure("needle-a", wheels) == ["needle-a"]


def test_a_dependency_without_upper_bound_is_refused(tmp_path):
    wheel = make_wheel(tmp_path, "needle_b", "needle-a>=0.1")
    with pytest.raises(ValueError, match=r"needle-a>=0.1: need an upper bound"):
        check_wheels.needle_dependencies(wheel)
