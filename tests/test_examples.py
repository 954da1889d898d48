"""Every example in a docstring of rlbook gives what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import rlbook

PACKAGE = Path(rlbook.__file__).parent
MODULES = [
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted(PACKAGE.rglob("*.py"))
    if any(">>> " in line and "+SKIP" not in line for line in file.read_text().splitlines())
]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_hold(module):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.testmod(importlib.import_module(module), optionflags=flags)
    assert results.attempted > 0
    assert results.failed == 0
