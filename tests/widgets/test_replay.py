"""ReplayViewer: what it says about a buffer, and how it answers the page."""

from __future__ import annotations

import io
from base64 import b64decode

import pytest
import torch
from PIL import Image
from tensordict import TensorDict

from rlbook import ReplayBuffer
from rlbook.errors import ConfigError
from rlbook.widgets import ReplayViewer
from rlbook.widgets.replay import AGE_BINS, BINS, as_picture, cell, detail_html


def counted(first: int, rows: int) -> TensorDict:
    t = torch.arange(first, first + rows)
    return TensorDict({"observation": t.float().unsqueeze(-1), "next": {"reward": 100.0 * t, "done": t % 5 == 4}}, (rows,))


@pytest.fixture
def buffer() -> ReplayBuffer:
    buffer = ReplayBuffer(100, batch_size=8, seed=0)
    buffer.extend(counted(0, 60))
    return buffer


@pytest.fixture
def sent(monkeypatch) -> list[dict]:
    messages: list[dict] = []
    monkeypatch.setattr(ReplayViewer, "_send", lambda self, message, buffers=(): messages.append(message))
    return messages


def test_a_strip_is_filled_as_far_as_the_buffer(buffer):
    state = ReplayViewer(buffer)._state()
    assert len(state["ages"]) == 100
    assert [age is not None for age in state["ages"]] == [True] * 60 + [False] * 40
    assert state["cursor"] == 0.6
    assert state["facts"][0] == "60 of 100 rows"


def test_ages_follow_the_ring_around(buffer):
    buffer.extend(counted(60, 70))  # rows 0 to 29 are new, 30 to 99 old
    ages = ReplayViewer(buffer)._state()["ages"]
    assert [ages[29], ages[30], ages[0]] == pytest.approx([0.0, 0.99, 0.29])  # the newest, the oldest, another
    large = ReplayBuffer(10_000)
    large.extend(counted(0, 5000))
    assert len(ReplayViewer(large)._state()["ages"]) == BINS


def test_a_drawn_sample_is_marked(buffer):
    viewer = ReplayViewer(buffer)
    assert viewer._state()["drawn"] is None
    batch = viewer.draw()
    state = viewer._state()
    torch.testing.assert_close(torch.tensor(state["ticks"]), batch["index"] / 100)
    assert sum(state["drawn"]) == pytest.approx(1)
    assert state["stored"] == pytest.approx([1 / AGE_BINS] * AGE_BINS)


def test_the_page_asks_for_a_row(buffer, sent):
    ReplayViewer(buffer)._hear({"kind": "row", "place": 0.425})
    assert sent[-1]["head"] == "Row 42, written 17 rows ago"
    assert "<td>42</td>" in sent[-1]["html"]
    assert "<td>4,200</td>" in sent[-1]["html"]


def test_a_click_behind_the_last_row_shows_the_last_row(buffer, sent):
    ReplayViewer(buffer)._hear({"kind": "row", "place": 1.0})
    assert sent[-1]["head"] == "Row 59, the newest"


def test_the_page_asks_for_a_sample(buffer, sent):
    ReplayViewer(buffer)._hear({"kind": "draw"})
    assert [message["kind"] for message in sent] == ["state", "row"]


def test_an_empty_buffer_is_shown_as_well(sent):
    viewer = ReplayViewer(ReplayBuffer(10, batch_size=2))
    for kind in ("hello", "draw", "row"):
        viewer._hear({"kind": kind, "place": 0.5})
    assert {message["kind"] for message in sent} == {"state"}
    assert set(viewer._state()["ages"]) == {None}


def test_a_still_picture_stands_in(buffer):
    viewer = ReplayViewer(buffer)
    viewer.draw()
    data, metadata = viewer._still()
    assert data["image/png"].startswith(b"\x89PNG")
    assert len(data["image/png"]) < 60_000
    assert metadata["image/png"] == {"width": 760, "height": 250}


def test_a_row_in_detail_is_safe_html():
    html = detail_html(TensorDict({"<b>": torch.tensor([1.5, 2.0]), "pixels": torch.zeros(12, 12, dtype=torch.uint8)}, []))
    assert "&lt;b&gt;" in html
    assert "<img" in html
    assert cell(torch.arange(10.0)) == "[10]  0 … 9"


def test_only_buffers_are_shown():
    with pytest.raises(ConfigError, match="ReplayBuffer"):
        ReplayViewer([1, 2])


@pytest.mark.parametrize("shape", [(84, 84, 1), (84, 84, 4), (84, 84), (4, 84, 84), (84, 84, 3)])
def test_pictures_of_every_layout(shape):
    picture = as_picture(torch.zeros(shape, dtype=torch.uint8))
    assert Image.open(io.BytesIO(b64decode(picture))).size == (84, 84)
