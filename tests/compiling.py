"""A torch.compile that is quick enough for tests."""

from __future__ import annotations

from functools import partial

import pytest
import torch


@pytest.fixture
def quick_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.compile trace and lower everything, but leave out the slow generation of machine code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
