"""Every example says what the package does, and the README how it is built."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

import numba_roialign

README = Path(__file__).parent.parent / "README.md"
PACKAGE = Path(numba_roialign.__file__).parent

MODULES = ["_api", "_geometry", "_mindspore", "_workspace", "onnx", "scalar"]


@pytest.mark.only("cpu")
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"numba_roialign.{name}")
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed


@pytest.mark.only("cpu")
def test_examples_of_the_readme_on_the_cpu(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    blocks = [block for block in blocks if not re.search("cupy|cuda|torch\\b", block)]
    assert len(blocks) >= 5
    names = {}
    for block in blocks:
        exec(block, names)
        printed = " ".join(re.findall(r"^print\(.*  # (.*)$", block, re.MULTILINE))
        assert capsys.readouterr().out.split() == printed.split()


def module_of(path):
    """Return a file's place in the package: ``_taps``, ``_cpu/job``."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imported(path):
    """Return the modules of the package that a file of it imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found = path.parents[node.level - 1]
            found = found.joinpath(*(node.module or "").split("."))
            names = [found] if found.with_suffix(".py").exists() else []
            for name in names or [found / alias.name for alias in node.names]:
                yield module_of(name)


@pytest.mark.only("cpu")
def test_imports_point_down_the_list_of_files():
    rows = re.findall(r"^\| (`[\w/]+\.py`.*?) \|", README.read_text(), re.MULTILINE)
    place = {name: k for k, row in enumerate(rows) for name in re.findall(r"`([\w/]+)\.py`", row)}
    files = [path for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")]
    files = [path for path in files if path.parent.name != "cli"]
    assert {module_of(path) for path in files} == set(place)
    pairs = {(module_of(path), name) for path in files for name in imported(path)}
    assert len(pairs) > 100
    assert not [pair for pair in pairs if place[pair[1]] < place[pair[0]]]
