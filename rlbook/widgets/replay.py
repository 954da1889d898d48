"""Look into a replay buffer: how full it is, how old its rows are, which ones a sample takes, and one row in detail."""

from __future__ import annotations

import time
from base64 import b64encode
from html import escape
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.replay import ReplayBuffer
from rlbook.widgets._front import Bundle, View
from rlbook.widgets._series import short
from rlbook.widgets.tree import memory

BINS, AGE_BINS = 200, 10
EVERY = 0.1  # seconds between two messages to the page
MOST_NUMBERS, MOST_TICKS = 6, 512


class ReplayViewer(View):
    """The rows of a buffer as a strip, with the cursor, ages, priorities and the rows of a sample; any row in detail.

    Args:
        buffer: the buffer; call :meth:`update` after writing to it, as often as you like.
        title: heading.

    Example:
        >>> from rlbook import CartPole, ReplayBuffer
        >>> buffer = ReplayBuffer(1000, batch_size=32, seed=0)
        >>> _ = buffer.extend(CartPole(num_envs=4, seed=0).rollout(100))
        >>> viewer = ReplayViewer(buffer)
        >>> viewer
        ReplayViewer(400 of 1,000 rows, UniformSampler)
    """

    module: ClassVar[str] = "replay"

    def __init__(self, buffer: ReplayBuffer, title: str = "Replay buffer"):
        super().__init__()
        if not isinstance(buffer, ReplayBuffer):
            fix = "Make one: ReplayBuffer(10_000, batch_size=32)"
            raise ConfigError(explain("What a ReplayViewer shows", "a ReplayBuffer", type(buffer).__name__, fix))
        self.buffer, self.title = buffer, title
        self.sampled = torch.zeros(0, dtype=torch.int64)
        self._due = 0.0

    def update(self) -> None:
        """Show the buffer as it is now: ten times a second, less often where that takes more than a tenth of the time."""
        now = time.monotonic()
        if self._widget is not None and now >= self._due:
            self._tell()
            took = time.monotonic() - now
            self._due = now + max(EVERY, 10 * took)

    def draw(self, batch_size: int | None = None) -> Any:
        """Draw a sample, mark its rows, and return it."""
        batch = self.buffer.sample(batch_size or (None if self.buffer.batch_size else 32))
        if isinstance(batch, TensorDictBase):
            self.sampled = batch[keys.INDEX].flatten().cpu()
        self._tell()
        return batch

    # ---- what the page shows -------------------------------------------------------------------------------------------------
    def _config(self) -> dict[str, Any]:
        return {"title": self.title, "bins": min(BINS, self.buffer.storage.capacity), "state": self._state()}

    def _tell(self) -> None:
        self._send({"kind": "state", **self._state()})

    def _hear(self, message: dict[str, Any]) -> None:
        kind = message.get("kind")
        if kind == "draw" and len(self.buffer):
            self.draw()
            self._send({"kind": "row", **self._detail(int(self.sampled[0]))} if len(self.sampled) else {"kind": "none"})
        elif kind == "row" and len(self.buffer):
            row = min(int(message["place"] * self.buffer.storage.capacity), len(self.buffer) - 1)
            self._send({"kind": "row", **self._detail(row)})
        else:
            self._tell()

    def _state(self) -> dict[str, Any]:
        buffer = self.buffer
        size, capacity = len(buffer), buffer.storage.capacity
        ages = ages_of(buffer)
        order = torch.arange(size)
        priority = buffer.sampler.priority(order) if size else None
        facts = [
            f"{size:,} of {capacity:,} rows",
            memory(buffer.storage.nbytes),
            f"{buffer.writer.total:,} ever written",
            type(buffer.sampler).__name__,
        ]
        sampled = self.sampled[self.sampled < size]
        return {
            "facts": facts,
            "cursor": (buffer.writer.total % max(size, 1) if size == capacity else size) / capacity,
            "ages": in_bins(ages / max(size, 1), order, capacity),
            "priorities": None if priority is None else in_bins(priority.double().cpu(), order, capacity),
            "ticks": (sampled[:MOST_TICKS] / capacity).tolist(),
            "stored": histogram(ages, size),
            "drawn": histogram(ages[sampled], size) if len(sampled) else None,
        }

    def _detail(self, row: int) -> dict[str, Any]:
        age = int(ages_of(self.buffer)[row])
        priority = self.buffer.sampler.priority(torch.tensor([row]))
        head = f"Row {row:,}, written {age:,} rows ago" if age else f"Row {row:,}, the newest"
        head += "" if priority is None else f", priority {short(float(priority))}"
        return {"place": (row + 0.5) / self.buffer.storage.capacity, "head": head, "html": detail_html(self.buffer[row])}

    def _still(self) -> Bundle:
        data: dict[str, Any] = {"text/plain": repr(self)}
        metadata: dict[str, Any] = {}
        try:
            from rlbook.widgets._replay_picture import replay_png
        except ImportError:  # no matplotlib: text will do
            return data, metadata
        png, width, height = replay_png(self.title, self._state())
        data["image/png"], metadata["image/png"] = png, {"width": width, "height": height}
        return data, metadata

    def __repr__(self) -> str:
        sampler = type(self.buffer.sampler).__name__
        return f"ReplayViewer({len(self.buffer):,} of {self.buffer.storage.capacity:,} rows, {sampler})"


def ages_of(buffer: ReplayBuffer) -> Tensor:
    """Return how many rows were written after each row, int64 ``[len]``."""
    order = buffer.in_order()
    ages = torch.empty_like(order)
    ages[order] = torch.arange(len(order) - 1, -1, -1)
    return ages


def in_bins(values: Tensor, rows: Tensor, capacity: int) -> list[float | None]:
    """Average values ``[len]`` of rows over at most :data:`BINS` parts of the capacity; None where a part is empty."""
    bins = min(BINS, capacity)
    place = rows * bins // capacity
    total = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, values.double())
    count = torch.bincount(place, minlength=bins)
    return [float(t / c) if c else None for t, c in zip(total, count, strict=True)]


def histogram(ages: Tensor, size: int) -> list[float]:
    """Return the share of ages in each of :data:`AGE_BINS` equal parts of ``[0, size)``."""
    if not len(ages):
        return [0.0] * AGE_BINS
    counts = torch.bincount(ages * AGE_BINS // max(size, 1), minlength=AGE_BINS)
    return (counts / len(ages)).tolist()


# ---- one row -------------------------------------------------------------------------------------------------------------------
def detail_html(row: Any) -> str:
    """Write a row as a table: an entry per line, what it was before the step and what it is after."""
    if not isinstance(row, TensorDictBase):
        return f"<pre>{escape(str(row))[:2000]}</pre>"
    before = {keys.pretty(key): value for key, value in row.items(True, True) if keys.as_tuple(key)[0] != keys.NEXT}
    after = {keys.pretty(key[1:]): value for key, value in row.items(True, True) if keys.as_tuple(key)[0] == keys.NEXT}
    lines = (
        f"<tr><th>{escape(name)}</th><td>{cell(before.get(name))}</td><td>{cell(after.get(name))}</td></tr>"
        for name in dict.fromkeys((*before, *after))
    )
    return f"<table><tr><th></th><th>now</th><th>next</th></tr>{''.join(lines)}</table>"


def cell(value: Any) -> str:
    """Write a tensor: a picture, a few numbers, or its shape and range."""
    if value is None:
        return ""
    if not isinstance(value, Tensor):
        return escape(str(value))[:80]
    image = as_picture(value)
    if image is not None:
        return f'<img alt="{escape(str(list(value.shape)))}" src="data:image/png;base64,{image}">'
    if value.numel() <= MOST_NUMBERS:
        numbers = [str(v) if isinstance(v, bool | int) else short(v) for v in value.flatten().tolist()]
        return escape(", ".join(numbers))
    numbers = value.double()
    return escape(f"{list(value.shape)}  {short(float(numbers.min()))} … {short(float(numbers.max()))}")


def as_picture(value: Tensor) -> str | None:
    """Return uint8 ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]`` (the last frame, or three colors) as a PNG in base64, else None."""
    if value.dtype != torch.uint8 or value.ndim not in (2, 3) or (min(value.shape[-2:]) < 3 and value.shape[0] < 8):
        return None
    array = value.cpu().numpy()
    if array.ndim == 3 and array.shape[-1] in (1, 4) and array.shape[0] >= 8:
        array = array[..., -1]
    if array.ndim == 3 and array.shape[-1] != 3:
        array = np.moveaxis(array, 0, -1) if array.shape[0] == 3 else array[-1]
    try:
        from PIL import Image
    except ImportError:
        return None
    out = BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(out, "PNG")
    return b64encode(out.getvalue()).decode()
