"""Compilation that is quick enough for tests."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from rlbook.modules import compiled


@pytest.fixture
def quick_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything be traced, but leave out the slow generation of machine code."""
    torch._dynamo.reset()  # or many losses share the limit of versions of one function
    monkeypatch.setattr(compiled, "lower", lambda graph, tensors: graph)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
