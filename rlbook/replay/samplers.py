"""Samplers: which rows a batch is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, MissingKeyError, SpecError, explain
from rlbook.typing import Key, Leaves

if TYPE_CHECKING:
    from rlbook.replay.buffer import ReplayBuffer
    from rlbook.replay.storages import Rows


class Sampler(ABC):
    """Chooses rows ``[B]``, or ``[B, T]`` for sequences, among those a buffer holds."""

    @abstractmethod
    def sample(self, buffer: ReplayBuffer, batch_size: int) -> tuple[Tensor, Leaves]:
        """Return rows, int64 ``[*]``, and entries to add to the batch, ``[*, ...]``."""

    def bind(self, capacity: int) -> None:
        """Serve a buffer of so many rows, and no other any more."""
        self.clear()

    def on_write(self, rows: Rows) -> None:  # noqa: B027  uniform sampling keeps nothing
        """Hear of rows that were (over)written."""

    def clear(self) -> None:  # noqa: B027
        """Hear that the buffer was emptied."""

    def update_priority(self, rows: Tensor, priority: Tensor) -> None:
        """Set the priorities of rows."""
        fix = "Make the buffer with sampler=PrioritizedSampler()"
        raise ConfigError(explain("The sampler", "one with priorities", type(self).__name__, fix))

    def priority(self, rows: Tensor) -> Tensor | None:
        """Return the priorities of rows ``[B]``; None where all rows are alike."""
        return None

    def check_valid(self) -> None:  # noqa: B027
        """Raise when the sampler's own books contradict each other."""

    def state_dict(self) -> dict[str, Any]:
        """Return what sampling depends on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take it back."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class UniformSampler(Sampler):
    """Every row with the same probability, with replacement."""

    def sample(self, buffer: ReplayBuffer, batch_size: int) -> tuple[Tensor, Leaves]:
        return torch.randint(len(buffer), (batch_size,), generator=buffer.generator), {}


class WithoutReplacementSampler(Sampler):
    """Every row once, in random order, before any row comes again.

    A pass goes over the rows that are stored when it begins; rows written meanwhile wait for the next one. Where the rows of a
    pass do not fill the last batch, the next pass begins in it.

    Args:
        consume: end after one pass over what was written, as on-policy learning does: a sample larger than what is left is an
            error, and new rows can be drawn at once. The order is then random among the rows that wait.
    """

    def __init__(self, consume: bool = False):
        self.consume = consume
        self.clear()

    def sample(self, buffer: ReplayBuffer, batch_size: int) -> tuple[Tensor, Leaves]:
        if self.consume:
            return self._take(buffer, batch_size), {}
        found = []
        missing = batch_size
        while missing:
            if not len(self._waiting):
                self._waiting = torch.randperm(len(buffer), generator=buffer.generator)
            part, self._waiting = self._waiting[:missing], self._waiting[missing:]
            found.append(part)
            missing -= len(part)
        return torch.cat(found), {}

    def _take(self, buffer: ReplayBuffer, batch_size: int) -> Tensor:
        if self._written:
            fresh = torch.cat(self._written)
            kept = self._waiting[~torch.isin(self._waiting, fresh)]  # what was overwritten before it was drawn is gone
            self._waiting = torch.cat((kept, fresh.unique()))
            self._waiting = self._waiting[torch.randperm(len(self._waiting), generator=buffer.generator)]
            self._written = []
        if batch_size > len(self._waiting):
            fix = "Collect before you sample again, or lower batch_size"
            want = f"at most the {len(self._waiting)} rows that were not drawn yet"
            raise ConfigError(explain("batch_size", want, str(batch_size), fix))
        rows, self._waiting = self._waiting[:batch_size], self._waiting[batch_size:]
        return rows

    def on_write(self, rows: Rows) -> None:
        if self.consume:
            self._written.append(index_of(rows))

    def clear(self) -> None:
        self._waiting = torch.empty(0, dtype=torch.int64)
        self._written: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": self._waiting, "written": list(self._written)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._waiting, self._written = state["waiting"], list(state["written"])

    def __repr__(self) -> str:
        return f"WithoutReplacementSampler({'consume=True' if self.consume else ''})"


class StalenessSampler(Sampler):
    """Uniform over the rows that a recent enough policy collected; adds their ``staleness``, int64 ``[B]``.

    Staleness is how many versions the policy has advanced since it collected a row (as in asynchronous learning, where actors lag
    behind: Espeholt et al. 2018, "IMPALA", section 3). Set :attr:`version` when the policy changes; rows carry the version that
    collected them.

    Args:
        max_staleness: rows more versions behind than this are not drawn.
        version_key: the entry that holds a row's version, an integer per step.

    Raises:
        MissingKeyError: rows have no such entry.
        ConfigError: all rows are too old.
    """

    def __init__(self, max_staleness: int, version_key: Key = "policy_version"):
        if max_staleness < 0:
            raise ConfigError(explain("max_staleness", "0 or more", str(max_staleness), "Pass for example 5"))
        self.max_staleness, self.version_key, self.version = max_staleness, version_key, 0
        self.clear()

    def sample(self, buffer: ReplayBuffer, batch_size: int) -> tuple[Tensor, Leaves]:
        if self._known != (self.version, buffer.writer.total):
            versions = buffer.storage.entry(self.version_key, torch.arange(len(buffer)))
            if versions is None:
                got = f"the keys {sorted(map(keys.pretty, buffer.storage.keys))}"
                want, fix = f"rows with {keys.pretty(self.version_key)!r}", "Let the policy write its version"
                raise MissingKeyError(explain("A StalenessSampler's buffer", want, got, fix))
            if versions.ndim > 1:
                got, fix = f"{list(versions.shape[1:])} per row", "Store it without a trailing dimension"
                raise SpecError(explain(keys.pretty(self.version_key), "one number per row", got, fix))
            self._fresh = (versions >= self.version - self.max_staleness).nonzero().squeeze(-1)
            self._known = (self.version, buffer.writer.total)
        if not len(self._fresh):
            want, got = f"at most {self.max_staleness} versions behind version {self.version}", "only older ones"
            raise ConfigError(explain("Some rows", want, got, "Collect with the new policy, or raise max_staleness"))
        rows = self._fresh[torch.randint(len(self._fresh), (batch_size,), generator=buffer.generator)]
        return rows, {"staleness": self.version - buffer.storage.entry(self.version_key, rows).long()}  # type: ignore[union-attr]

    def clear(self) -> None:
        self._known: Any = None
        self._fresh = torch.empty(0, dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        return {"version": self.version}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.version = state["version"]
        self.clear()

    def __repr__(self) -> str:
        return f"StalenessSampler({self.max_staleness})"


def index_of(rows: Rows) -> Tensor:
    """Return rows as int64 indices."""
    return torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
