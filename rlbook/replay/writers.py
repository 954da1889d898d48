"""Writers: which rows new data go to."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, MissingKeyError, NonFiniteError, SpecError, explain
from rlbook.replay.storages import Rows, check_size
from rlbook.seeding import check_seed
from rlbook.typing import Key


class Writer(ABC):
    """Places rows in a storage of ``capacity`` and counts them.

    Attributes:
        total: rows that were ever offered.
        size: rows that hold data, always the first ones.
        in_order: whether rows lie in the order of time, so that trajectories can be read back.
    """

    in_order = False

    def __init__(self) -> None:
        self.total = self.size = 0

    def bind(self, capacity: int) -> None:
        """Serve a buffer of so many rows, and no other any more."""
        self.capacity, self.total, self.size = capacity, 0, 0

    @abstractmethod
    def place(self, batch: Any, count: int, streams: int) -> Iterator[tuple[Rows, Rows]]:
        """Yield ``(source, target)`` rows: where each part of the packed batch goes. What is not yielded is not kept."""

    def in_time_order(self) -> Tensor:
        """Return the rows that hold data from the oldest to the newest, int64 ``[size]``."""
        return torch.arange(self.size)

    def clear(self) -> None:
        """Forget every row."""
        self.total = self.size = 0

    def check_valid(self) -> None:
        """Raise when the counters contradict each other."""
        if not 0 <= self.size <= min(self.total, self.capacity):
            got = f"size={self.size}, total={self.total}, capacity={self.capacity}"
            raise ConfigError(explain("A writer", "0 <= size <= min(total, capacity)", got, "Clear the buffer"))

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        return {"total": self.total, "size": self.size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.total, self.size = state["total"], state["size"]


class RingWriter(Writer):
    """The oldest rows make room for the newest.

    With ``N`` environments that step together the row of environment ``i`` at time ``t`` is ``(t mod L) * N + i``, where ``L =
    capacity // N``: a step lies side by side, and the next step of the same environment ``N`` rows further.
    """

    in_order = True
    streams = 0  # unknown until the first data
    rows = 0  # in use: whole steps only

    def bind(self, capacity: int) -> None:
        super().bind(capacity)
        self.streams = self.rows = 0

    def place(self, batch: Any, count: int, streams: int) -> Iterator[tuple[Rows, Rows]]:
        if streams != self.streams:
            self.set_streams(streams)
        total, rows = self.total, self.rows
        done = max(0, count - rows)  # more than fits: only the newest
        while done < count:
            start = (total + done) % rows
            take = min(count - done, rows - start)
            yield slice(done, done + take), slice(start, start + take)
            done += take
        self.total = total = total + count
        self.size = min(total, rows)

    def in_time_order(self) -> Tensor:
        start = self.total % self.rows if self.total > self.rows else 0
        return torch.arange(self.size).roll(-start)

    def set_streams(self, streams: int) -> None:
        """Learn how many environments step together; the first data say it."""
        if self.total:
            fix = "Use one buffer for each, or flatten the data and sample no trajectories"
            raise ConfigError(explain("The data", f"of {self.streams} environments as before", f"those of {streams}", fix))
        if streams > self.capacity:
            raise ConfigError(explain("capacity", f"at least num_envs={streams}", str(self.capacity), "Raise it"))
        self.streams, self.rows = streams, whole_steps(self.capacity, streams)

    def clear(self) -> None:
        super().clear()
        self.streams = self.rows = 0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "streams": self.streams}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        total, size, streams = state["total"], state["size"], state["streams"]
        rows = whole_steps(self.capacity, streams)
        if size > rows or (total > size and size != rows):
            fix = "Load it into a buffer of the capacity that it was saved from"
            raise ConfigError(explain("A ring to load", f"one of {rows} rows", f"one with {size} of {total} rows", fix))
        super().load_state_dict(state)
        self.streams, self.rows = streams, rows


class ImmutableWriter(RingWriter):
    """The rows that are there, and no others: what a dataset has."""

    def place(self, batch: Any, count: int, streams: int) -> Iterator[tuple[Rows, Rows]]:
        raise _immutable()

    def clear(self) -> None:
        raise _immutable()


class TopKWriter(Writer):
    """The ``capacity`` rows with the highest value of an entry, for example the best episodes of a :class:`ListStorage`.

    Of equal ones those that came first stay.

    Args:
        key: the entry, one number per row.

    Raises:
        MissingKeyError, SpecError, NonFiniteError: a row has no such number; nothing is written.
    """

    def __init__(self, key: Key):
        super().__init__()
        self.key = key
        self._heap: list[tuple[float, int, int]] = []  # (value, minus the number of the row that came, row); the worst first

    def place(self, batch: Any, count: int, streams: int) -> Iterator[tuple[Rows, Rows]]:
        sources: dict[int, int] = {}
        for number, value in enumerate(self._values(batch, count)):
            item = (value, -(self.total + number))
            if len(self._heap) < self.capacity:
                row = len(self._heap)
                heapq.heappush(self._heap, (*item, row))
            elif item > self._heap[0][:2]:
                row = heapq.heapreplace(self._heap, (*item, self._heap[0][2]))[2]
            else:
                continue
            sources[row] = number
        if sources:
            yield torch.tensor(list(sources.values())), torch.tensor(list(sources))
        self.total, self.size = self.total + count, len(self._heap)

    def _values(self, batch: Any, count: int) -> list[float]:
        name = keys.pretty(self.key)
        try:
            values = batch[self.key] if isinstance(batch, Mapping) else [float(item[self.key]) for item in batch]
        except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
            fix = "Add it to the data, or name another entry: TopKWriter(key)"
            raise MissingKeyError(explain("Each row", f"one with a number {name!r}", str(error)[:100], fix)) from error
        values = np.asarray(torch.as_tensor(values).numpy(force=True), np.float64)
        if values.shape != (count,):
            shape = list(values.shape[1:])
            raise SpecError(
                explain(name, "one number per row", f"{shape} per row", "Rank rows by a sum, a mean, or another entry")
            )
        if np.isnan(values).any():
            raise NonFiniteError(explain(name, "a number, to be ranked by", "NaN", "Find out where it comes from"))
        return values.tolist()

    def clear(self) -> None:
        super().clear()
        self._heap = []

    def check_valid(self) -> None:
        super().check_valid()
        if sorted(row for *_, row in self._heap) != list(range(self.size)):
            raise ConfigError(explain("TopKWriter's ranking", f"of {self.size} rows", str(len(self._heap)), "Clear the buffer"))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "heap": list(self._heap)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_size(state["size"], self.capacity)
        super().load_state_dict(state)
        self._heap = [tuple(item) for item in state["heap"]]


class ReservoirWriter(Writer):
    """A uniform sample of all rows that ever came: each of them is stored with the same probability ``capacity / total``.

    Row number ``n`` (from 0) takes the place ``j`` drawn uniformly from ``0..n``, and is dropped if there is none.

    Args:
        seed: of the draws; torch's global generator by default.

    Source: Vitter 1985, "Random Sampling with a Reservoir", algorithm R.
    """

    def __init__(self, seed: int | None = None):
        super().__init__()
        self.generator = None if seed is None else torch.Generator().manual_seed(check_seed(seed))

    def place(self, batch: Any, count: int, streams: int) -> Iterator[tuple[Rows, Rows]]:
        free = min(count, self.capacity - self.size)
        if free:
            yield slice(0, free), slice(self.size, self.size + free)
        number = torch.arange(self.total + free, self.total + count)
        uniform = torch.rand(count - free, dtype=torch.float64, generator=self.generator)
        place = (uniform * (number + 1)).long()
        sources = {row: free + n for n, row in enumerate(place.tolist()) if row < self.capacity}  # the last one for a row stays
        if sources:
            yield torch.tensor(list(sources.values())), torch.tensor(list(sources))
        self.total, self.size = self.total + count, self.size + free

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "generator": None if self.generator is None else self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_size(state["size"], self.capacity)
        super().load_state_dict(state)
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"])


def whole_steps(capacity: int, streams: int) -> int:
    """Return how many rows of a ring are in use: whole steps of all environments only."""
    return capacity // max(streams, 1) * streams


def _immutable() -> ConfigError:
    fix = "Collect into a ReplayBuffer of your own; buffer.extend(dataset[:]) copies a dataset"
    return ConfigError(explain("A buffer to write to", "one that can change", "a dataset", fix))
