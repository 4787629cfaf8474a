"""Every example in a docstring says what the package does."""

import doctest
import importlib

import pytest

MODULES = ["_api", "_geometry", "_mindspore", "_workspace", "onnx", "scalar"]


@pytest.mark.only("cpu")
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"numba_roialign.{name}")
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed
