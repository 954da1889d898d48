"""Trajectories: where the episodes among the rows of a ring begin and end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain

if TYPE_CHECKING:
    from rlbook.replay.buffer import ReplayBuffer

Ints = NDArray[np.int64]

NEVER = 2**62
"""The time at which a trajectory stops that goes on."""

CHUNK = 4096
"""Rows that are looked at together."""


class Episodes(NamedTuple):
    """The trajectories of a buffer, a row each, in the order in which they began: int64 and bool ``[E]``."""

    stream: Tensor
    """The environment that it comes from."""
    first: Tensor
    """The time of its first stored step."""
    last: Tensor
    """The time of its last stored step."""
    begun: Tensor
    """Whether its first step is stored, as far as can be told: no row before it was overwritten."""
    finished: Tensor
    """Whether ``next.done`` holds at its last step."""


class Trajectories:
    """Where trajectories, the contiguous pieces of episodes, begin and end among the rows of a ring buffer.

    Each of the ``N`` environments that step together is a *stream*; the *time* of a row counts the steps of its stream since the
    buffer was empty. A trajectory stops

    * at a step that ends its episode: ``next.done``;
    * at a step that the next one of its stream does not continue: the observations at its root are not those that stand under
      ``next`` here, for example because the environment was reset between two rollouts;
    * at the newest step.

    Rows without ``next`` make one endless trajectory per stream. Nothing of this is stored with the rows: when somebody asks, the
    rows written since the last question are looked at, and what they tell is kept: the number of each row's trajectory, and a
    table of where each trajectory begins and stops.

    Args:
        buffer: its rows must lie in the order of time, as a :class:`~rlbook.replay.RingWriter` places them.

    Raises:
        ConfigError: they do not.

    Attributes:
        streams: N.
        begin, end: the rows hold the times in ``[begin, end)``.
        state: changes whenever an answer may.

    Example:
        >>> from rlbook import CartPole, ReplayBuffer
        >>> buffer = ReplayBuffer(1000)
        >>> _ = buffer.extend(CartPole(num_envs=2, seed=0).rollout(100))
        >>> before, after = Trajectories.of(buffer).span(torch.tensor([0, 1]))  # the first rows of both environments
        >>> before
        tensor([0, 0])
    """

    def __init__(self, buffer: ReplayBuffer):
        if not buffer.writer.in_order:
            got, fix = f"the {type(buffer.writer).__name__}'s", "Make the buffer with writer=RingWriter(), the default"
            raise ConfigError(explain("Rows to read trajectories from", "in the order of time", got, fix))
        self._storage, self._lock = buffer.storage, buffer._lock
        self._writer: Any = buffer.writer
        self.state, self.begin, self.end = (0, -1), 0, 0

    @classmethod
    def of(cls, buffer: ReplayBuffer) -> Trajectories:
        """Return the trajectories of a buffer: one object per buffer, which samplers and transforms share."""
        found = _SHARED.get(buffer)
        if found is None:
            found = _SHARED[buffer] = cls(buffer)
        return found

    @staticmethod
    def forget(buffer: ReplayBuffer) -> None:
        """Hear that the rows of a buffer were replaced by others."""
        found = _SHARED.get(buffer)
        if found is not None:
            found.end, found.state = 0, (found.state[0] + 1, -1)

    # ---- questions about rows ------------------------------------------------------------------------------------------------
    def span(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many stored steps of its trajectory come ``(before, after)`` each row ``[*]``, int64 ``[*]`` both."""
        self.refresh()
        numbers = rows.numpy(force=True)
        time, trajectory = self._times(numbers), self._number[numbers]
        _, first, last, _ = self._table
        before = time - np.maximum(first[trajectory], self.begin)
        after = np.minimum(last[trajectory], self.end - 1) - time
        return torch.from_numpy(before), torch.from_numpy(after)

    def lead(self, rows: Tensor) -> Tensor:
        """Return how many stored steps lead up to each row without a gap, int64 ``[*]``.

        Those are the steps before it in its trajectory, and in those that came before and ended with ``done``. A gap is where a
        trajectory stopped for another reason.
        """
        self.refresh()
        numbers = rows.numpy(force=True)
        root = self._table[3, self._number[numbers]]
        return torch.from_numpy(self._times(numbers) - np.maximum(root, self.begin))

    def shift(self, rows: Tensor, steps: Tensor | int) -> Tensor:
        """Return the rows that lie ``steps`` later in the same streams, broadcast: ``[*]``."""
        self.refresh()
        return (rows + steps * self.streams) % self._rows

    def times(self, rows: Tensor) -> Tensor:
        """Return the times of rows ``[*]``, int64 ``[*]``."""
        self.refresh()
        return torch.from_numpy(self._times(rows.numpy(force=True)))

    def rows(self, times: Tensor, streams: Tensor) -> Tensor:
        """Return the rows where times of streams are stored, ``[*]`` all; the times must lie in ``[begin, end)``."""
        self.refresh()
        return (times * self.streams + streams) % self._rows

    # ---- questions about all of them -----------------------------------------------------------------------------------------
    def pieces(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return ``(stream, first, last, begun, root)`` of all trajectories, mostly as :meth:`episodes` does, but for less.

        ``root`` is the time of the first stored step that leads to them, see :meth:`lead`.
        """
        self.refresh()
        stream, first, last, root = torch.from_numpy(self._table[:, self._stored()])
        begun = first >= max(self.begin, self._origin)
        return stream, first.clamp(min=self.begin), last.clamp(max=self.end - 1), begun, root.clamp(min=self.begin)

    def episodes(self) -> Episodes:
        """Return a table of all trajectories."""
        stream, first, last, begun, _ = self.pieces()
        done = self._storage.entry((keys.NEXT, keys.DONE), self.rows(last, stream)) if self._ends else None
        return Episodes(stream, first, last, begun, torch.zeros_like(begun) if done is None else _any(done).cpu())

    # ---- keeping up with the writer ------------------------------------------------------------------------------------------
    def refresh(self) -> None:
        """Look at the rows that were written since the last time."""
        writer = self._writer
        if self.state[1] == writer.total:
            return
        with self._lock:
            self.begin, end = (number // max(writer.streams, 1) for number in (writer.total - writer.size, writer.total))
            if self.end <= self.begin:  # of all that was looked at nothing is left
                self._restart()
            chunk = max(1, CHUNK // self.streams)
            for start in range(self.end, end, chunk):
                self._look(start, min(start + chunk, end))
            self.state = (self.state[0], writer.total)

    def _restart(self) -> None:
        """Know nothing but that the rows begin at the time ``begin``."""
        self.streams = max(self._writer.streams, 1)
        self._rows = max(self._writer.rows, 1)
        self.end = self.begin
        self._origin = self.begin + (self.begin > 0)  # a trajectory that begins earlier may have begun before what is stored
        self._number: Any = np.zeros(self._rows, np.int32)  # of each row's trajectory
        self._table: Ints = np.full(
            (4, 0), -1
        )  # by number: stream, times of the first step, the last, the first that leads there
        self._count = 0
        self._newest: Ints = np.zeros(self.streams, np.int64)  # the number of each stream's last trajectory; none yet
        names = {keys.as_tuple(key) for key in self._storage.keys}
        self._ends = (keys.NEXT, keys.DONE) in names
        own = (*keys.FLAGS, keys.REWARD)
        self._continued = [name for name in names if (keys.NEXT, *name) in names and name[-1] not in own]

    def _look(self, start: int, stop: int) -> None:
        """Number the trajectories of the times in ``[start, stop)``; the rows before them are known."""
        begins, broken = np.ones((2, stop - start, self.streams), bool)
        unknown = int(start == self.begin)  # whether the first of these steps continue others
        rows = np.arange((start + unknown - 1) * self.streams, stop * self.streams) % self._rows
        done, begins[unknown:] = self._stops(torch.from_numpy(rows)).reshape(2, -1, self.streams)
        broken[unknown:] = begins[unknown:] & ~done
        time, stream = begins.nonzero()
        self._make_room(len(time))
        new = np.arange(self._count, self._count + len(time))
        number = np.zeros((stop - start + 1, self.streams), np.int64)
        number[0], number[1:][begins] = self._newest, new
        number = np.maximum.accumulate(number)  # a trajectory that begins later has a higher number
        root = np.where(broken, np.arange(start, stop)[:, None], -1)
        root[0] = np.where(broken[0], start, -1 if unknown else self._table[3, self._newest])
        root = np.maximum.accumulate(root)[begins]
        self._table[:, new] = stream, start + time, np.full_like(time, NEVER), root
        stopped = time >= unknown
        self._table[2, number[time, stream][stopped]] = start + time[stopped] - 1
        self._number[rows[(1 - unknown) * self.streams :]] = number[1:].ravel()
        self._newest, self._count, self.end = number[-1], self._count + len(time), stop

    def _stops(self, rows: Tensor) -> NDArray[np.bool_]:
        """Return whether episodes end and whether trajectories stop at all but the last of some steps, bool ``[2, n]``.

        Args:
            rows: those of the steps, in the order of time.
        """
        here, following = rows[: -self.streams], rows[self.streams :]
        done = torch.zeros(len(here), dtype=torch.bool)
        if self._ends:
            done |= _any(self._entry((keys.NEXT, keys.DONE), here)).cpu()
        stops = done.clone()
        for key in self._continued:
            stops |= _any(_differ(self._entry((keys.NEXT, *key), here), self._entry(key, following))).cpu()
        return torch.stack((done, stops)).numpy()

    def _make_room(self, new: int) -> None:
        """Let the table hold ``new`` more trajectories; if it cannot, forget those that were overwritten and double it."""
        if self._count + new <= self._table.shape[1]:
            return
        kept = self._stored()
        table = np.full((4, 2 * (len(kept) + new) + 1000), -1)
        table[:, : len(kept)] = self._table[:, kept]
        number = np.zeros(self._count + 1, np.int64)
        number[kept] = np.arange(len(kept))
        self._number, self._newest = number[self._number].astype(np.int32), number[self._newest]
        self._table, self._count = table, len(kept)

    def _stored(self) -> Ints:
        """Return the numbers of the trajectories that are stored, or are the newest of their stream."""
        return (self._table[2, : self._count] >= self.begin).nonzero()[0]

    def _times(self, rows: Ints) -> Ints:
        newest = self._writer.total - 1  # rows ever written before the newest
        return (newest - (newest - rows) % self._rows) // self.streams

    def _entry(self, key: tuple[str, ...], rows: Tensor) -> Tensor:
        value: Any = self._storage.entry(key[0] if len(key) == 1 else key, rows)
        return value


_SHARED: WeakKeyDictionary[ReplayBuffer, Trajectories] = WeakKeyDictionary()


def _any(values: Tensor) -> Tensor:
    """Reduce ``[n, ...]`` to bool ``[n]``."""
    return values.flatten(1).any(1) if values.ndim > 1 else values.bool()


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Compare elements; NaN equals NaN."""
    return (a != b) & ((a == a) | (b == b))
