"""Where compiled code is kept, and which of it becomes a CUDA graph."""

from __future__ import annotations

import os

import pytest
import torch
from torch.testing import assert_close

from rlbook.modules import compiled
from rlbook.modules.compiled import Compiled, keep_cache

NAME = "TORCHINDUCTOR_CACHE_DIR"


def test_machine_code_is_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(NAME, "")  # so that it is restored
    monkeypatch.delenv(NAME)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_cache()
    assert os.environ[NAME] == str(tmp_path / "rlbook" / "inductor")
    assert (tmp_path / "rlbook" / "inductor").is_dir()


def test_a_folder_that_the_user_chose_counts(monkeypatch, tmp_path):
    monkeypatch.setenv(NAME, "/chosen")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_cache()
    assert os.environ[NAME] == "/chosen"
    assert not list(tmp_path.iterdir())


def test_without_a_cache_folder_torch_decides(monkeypatch, tmp_path):
    monkeypatch.setenv(NAME, "")
    monkeypatch.delenv(NAME)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_cache()
    assert NAME not in os.environ


@pytest.mark.parametrize("volatile", [None, 1])
def test_on_a_cpu_there_is_no_graph_to_capture(monkeypatch, volatile):
    monkeypatch.setattr(compiled, "lower", lambda graph, tensors: graph)
    monkeypatch.setattr(compiled, "Captured", None)  # calling it would fail
    add = Compiled(lambda tensors: (tensors[0] + tensors[1],))
    for _ in range(2):
        x, y = torch.randn(2, 3)
        assert_close(add([x, y], volatile=volatile)[0], x + y)
