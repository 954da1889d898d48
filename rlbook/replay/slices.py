"""Samplers of sequences: slices of trajectories, and whole episodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, check_count, explain
from rlbook.replay.samplers import Sampler
from rlbook.replay.trajectories import Trajectories
from rlbook.typing import Leaves

if TYPE_CHECKING:
    from rlbook.replay.buffer import ReplayBuffer

ROUNDS = 1000
"""How often a sampler of starts may draw before it is said to be unable."""


class Starts(NamedTuple):
    """The steps that sequences may begin with, trajectory by trajectory: int64 ``[E]``."""

    stream: Tensor
    first: Tensor
    count: Tensor
    """How many of the trajectory's steps from ``first`` on."""
    upto: Tensor
    """How many up to this trajectory: the cumulative sum."""

    def nth(self, n: Tensor) -> Tensor:
        """Return ``(time, stream)`` of the n-th starts, ``[B, 2]`` for ``[B]``."""
        which = torch.searchsorted(self.upto, n, right=True)
        time = self.first[which] + n - (self.upto - self.count)[which]
        return torch.stack((time, self.stream[which]), -1)


class SequenceSampler(Sampler):
    """Draws the steps that sequences begin with: of all admissible ones each with the same probability.

    Args:
        replacement: False draws every start once before one is drawn again; steps written meanwhile wait for the next pass.
    """

    def __init__(self, replacement: bool = True):
        self.replacement = replacement
        self.forget()

    @abstractmethod
    def admissible(self, trajectories: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(stream, first, count)``: in these trajectories the times ``first + [0, count)`` are admissible."""

    @abstractmethod
    def none_found(self) -> ConfigError:
        """Explain why no step is admissible."""

    def starts(self, trajectories: Trajectories) -> Starts:
        """Return all admissible starts."""
        trajectories.refresh()
        if self._known != (trajectories, trajectories.state):
            stream, first, count = self.admissible(trajectories)
            self._starts = Starts(stream, first, count, count.cumsum(0))
            self._known = (trajectories, trajectories.state)
        if not len(self._starts.upto) or not self._starts.upto[-1]:
            raise self.none_found()
        return self._starts

    def draw(self, buffer: ReplayBuffer, trajectories: Trajectories, size: int) -> Tensor:
        """Return rows to begin with, int64 ``[size]``."""
        starts = self.starts(trajectories)
        total = int(starts.upto[-1])
        if self.replacement:
            places = starts.nth(torch.randint(total, (size,), generator=buffer.generator))
        else:
            places = torch.empty(0, 2, dtype=torch.int64)
            while missing := size - len(places):
                if not len(self._waiting):
                    self._waiting = starts.nth(torch.randperm(total, generator=buffer.generator))
                taken, self._waiting = self._waiting[:missing], self._waiting[missing:]
                places = torch.cat((places, taken[taken[:, 0] >= trajectories.begin]))  # the others were overwritten
        return trajectories.rows(places[:, 0], places[:, 1])

    def forget(self) -> None:
        """Begin anew."""
        self._known: Any = None
        self._waiting = torch.empty(0, 2, dtype=torch.int64)

    def clear(self) -> None:
        self.forget()

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": self._waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._waiting = state["waiting"]


class SliceSampler(SequenceSampler):
    """Sequences ``[B, T]`` of ``slice_len = T`` consecutive steps of one trajectory.

    Every step that at least ``T - 1`` steps of its trajectory follow is an admissible start, and all have the same probability.
    So an episode is drawn in proportion to the slices it holds, and its first and last steps less often than those between.

    Recurrent policies warm up their state on the first ``burn_in`` steps and learn from the others (R2D2). The first steps of an
    episode are learnt from as well: there the burn-in is the end of the episodes before, whose ``next.done`` sets the state back;
    only the steps after the burn-in are of one trajectory. Where not every step is one to learn from, for burn-in or for padding,
    the entry ``mask``, bool ``[B, T]``, is True at those that are.

    Args:
        slice_len: T, burn-in included.
        burn_in: the first steps of each sequence, not to be learnt from.
        pad: also start where fewer steps follow, if one to learn from is among them: the last one is repeated.
        replacement: False draws every start once before one is drawn again; steps written meanwhile wait for the next pass.
        sampler: draws the starts instead, for example ``PrioritizedSampler()``. It hears only of admissible starts. What it adds
            to a batch, such as importance weights, is repeated along the sequence.
        eta: how the priorities of the steps make one of their sequence, see :meth:`update_priority`; in [0, 1].

    Raises:
        ConfigError: an argument is out of range, or no trajectory is long enough when a batch is drawn.

    Source: Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement Learning", sections 2.3 and 3.

    Example:
        >>> from rlbook import CartPole, ReplayBuffer
        >>> buffer = ReplayBuffer(1000, sampler=SliceSampler(8, pad=True), batch_size=32)
        >>> _ = buffer.extend(CartPole(num_envs=2, seed=0).rollout(100))
        >>> buffer.sample()["next", "reward"].shape
        torch.Size([32, 8])
    """

    def __init__(
        self,
        slice_len: int,
        *,
        burn_in: int = 0,
        pad: bool = False,
        replacement: bool = True,
        sampler: Sampler | None = None,
        eta: float = 0.9,
    ):
        check_count("slice_len", slice_len, example=8)
        if not 0 <= burn_in < slice_len:
            fix = "Lower it, or raise slice_len, which counts the burn-in too"
            raise ConfigError(explain("burn_in", f"in [0, slice_len={slice_len})", repr(burn_in), fix))
        if not 0 <= eta <= 1:
            raise ConfigError(explain("eta", "in [0, 1]", repr(eta), "Pass for example 0.9"))
        if sampler is not None and not replacement:
            fix = "Leave one of them out"
            raise ConfigError(explain("replacement", "True where another sampler draws the starts", "False", fix))
        self.slice_len, self.burn_in, self.pad, self.sampler, self.eta = slice_len, burn_in, pad, sampler, eta
        self.learnt = 1 if pad else slice_len - burn_in  # steps to learn from that a sequence has at least
        self.least = burn_in + self.learnt
        super().__init__(replacement)

    def sample(self, buffer: ReplayBuffer, batch_size: int) -> tuple[Tensor, Leaves]:
        trajectories, extra = Trajectories.of(buffer), {}
        if not self.replacement:
            start = self.draw(buffer, trajectories, batch_size)
        elif self.sampler is None:
            start = self._draw_uniform(buffer, trajectories, batch_size)
        else:
            start, extra = self._draw_from(self.sampler, buffer, trajectories, batch_size)
            extra = {key: value.unsqueeze(1).expand(batch_size, self.slice_len, *value.shape[1:]) for key, value in extra.items()}
        steps = torch.arange(self.slice_len).expand(batch_size, -1)
        if not self.pad:
            mask = {keys.MASK: steps >= self.burn_in} if self.burn_in else {}
            return trajectories.shift(start.unsqueeze(-1), steps), {**extra, **mask}
        rows, valid = padded(trajectories, start, steps, self.burn_in)
        return rows, {**extra, keys.MASK: valid & (steps >= self.burn_in)}

    def admissible(self, trajectories: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
        stream, first, last, _, root = trajectories.pieces()
        start = torch.maximum(first - self.burn_in, root)
        return stream, start, (last - start + 2 - self.least).clamp(min=0)

    def none_found(self) -> ConfigError:
        fix = "Collect more, lower slice_len, or pass SliceSampler(..., pad=True)"
        want = f"of {self.learnt} steps or more" + (f", after {self.burn_in} to burn in" if self.burn_in else "")
        return ConfigError(explain("A trajectory", want, "only shorter ones", fix))

    # ---- where to start ------------------------------------------------------------------------------------------------------
    def _fit(self, trajectories: Trajectories, rows: Tensor) -> Tensor:
        """Return which rows are admissible starts, bool ``[B]``."""
        learnt = trajectories.shift(rows, self.burn_in) if self.burn_in else rows
        # beyond the newest step are the oldest, to which nothing leads
        return (trajectories.lead(learnt) >= self.burn_in) & (trajectories.span(learnt)[1] >= self.learnt - 1)

    def _draw_uniform(self, buffer: ReplayBuffer, trajectories: Trajectories, size: int) -> Tensor:
        """Draw rows and keep the admissible ones; where they are rare draw from a list of them, which takes long to make."""
        rows = torch.randint(len(buffer), (2 * size,), generator=buffer.generator)
        start = rows[self._fit(trajectories, rows)][:size]
        missing = size - len(start)
        return torch.cat((start, self.draw(buffer, trajectories, missing))) if missing else start

    def _draw_from(self, sampler: Sampler, buffer: ReplayBuffer, trajectories: Trajectories, size: int) -> tuple[Tensor, Leaves]:
        """Let ``sampler`` draw until ``size`` admissible starts are found: its distribution, given that a start is admissible."""
        self._offer(sampler, trajectories)
        found, missing = [], size
        for _ in range(ROUNDS if self._offered_any else 0):
            rows, extra = sampler.sample(buffer, missing)
            fit = self._fit(trajectories, rows)
            found.append({None: rows[fit], **{key: value[fit] for key, value in extra.items()}})
            missing -= int(fit.sum())
            if not missing:
                break
        else:
            self.starts(trajectories)  # raises if there is none
            got, fix = f"{size - missing} in {ROUNDS} draws", "Give the others priorities above 0"
            raise ConfigError(explain("What the sampler of starts finds", f"{size} that {self.least} steps follow", got, fix))
        drawn: dict[Any, Tensor] = {key: torch.cat([part[key] for part in found]) for key in found[0]}
        return drawn.pop(None), drawn

    def _offer(self, sampler: Sampler, trajectories: Trajectories) -> None:
        """Tell the sampler of the starts that have become admissible: since the last time enough steps have followed them."""
        trajectories.refresh()
        stop = max(trajectories.end - self.least + 1, trajectories.begin)
        times = torch.arange(min(max(self._seen - self.least + 1, trajectories.begin), stop), stop)
        rows = trajectories.rows(times.unsqueeze(-1), torch.arange(trajectories.streams)).flatten()
        rows = rows[self._fit(trajectories, rows)]
        self._seen = trajectories.end
        if len(rows):
            sampler.on_write(rows)
            self._offered_any = True

    def update_priority(self, rows: Tensor, priority: Tensor) -> None:
        """Set the priorities of sequences.

        Args:
            rows: their rows ``[B, T]``, or the first ones ``[B]``.
            priority: one per sequence, ``[B]``, or one per step, ``[B, T]``. Those of the steps after the burn-in are mixed to
                ``eta max_t p_t + (1 - eta) mean_t p_t`` (section 2.3), with padding left out.
        """
        if self.sampler is None:
            super().update_priority(rows, priority)
        if priority.ndim == 2:
            own = torch.ones_like(priority, dtype=torch.bool)
            if rows.ndim == 2:  # padding repeats the last row
                own[:, 1:] = (rows[:, 1:] != rows[:, :-1]).to(own.device)
            own = own[:, self.burn_in :]
            learnt = torch.where(own, priority[:, self.burn_in :].abs(), 0.0)
            priority = self.eta * learnt.amax(1) + (1 - self.eta) * learnt.sum(1) / own.sum(1).clamp(min=1)
        self.sampler.update_priority(rows if rows.ndim == 1 else rows[:, 0], priority)

    def priority(self, rows: Tensor) -> Tensor | None:
        return None if self.sampler is None else self.sampler.priority(rows if rows.ndim == 1 else rows[:, 0])

    # ---- keeping -------------------------------------------------------------------------------------------------------------
    def bind(self, capacity: int) -> None:
        if self.sampler is not None:
            self.sampler.bind(capacity)
        super().bind(capacity)

    def forget(self) -> None:
        super().forget()
        self._seen, self._offered_any = 0, False  # the other sampler knows of starts that were followed before this time

    def clear(self) -> None:
        super().clear()
        if self.sampler is not None:
            self.sampler.clear()

    def check_valid(self) -> None:
        if self.sampler is not None:
            self.sampler.check_valid()

    def state_dict(self) -> dict[str, Any]:
        own = super().state_dict()
        if self.sampler is None:
            return own
        return {**own, "seen": self._seen, "offered_any": self._offered_any, "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.sampler is not None:
            self._seen, self._offered_any = state["seen"], state["offered_any"]
            self.sampler.load_state_dict(state["sampler"])

    def __repr__(self) -> str:
        return f"SliceSampler({self.slice_len}, burn_in={self.burn_in}, pad={self.pad}, replacement={self.replacement})"


class EpisodeSampler(SequenceSampler):
    """Whole episodes ``[B, T]``, each with the same probability; T is the length of the longest one drawn.

    An episode is whole if its first step is stored and its last one is ``done``. Shorter ones are padded: the last step is
    repeated, and the entry ``mask``, bool ``[B, T]``, is False there.

    Args:
        replacement: False draws every episode once before one is drawn again; those written meanwhile wait for the next pass.

    Raises:
        ConfigError: no whole episode is stored when a batch is drawn.
    """

    def sample(self, buffer: ReplayBuffer, batch_size: int) -> tuple[Tensor, Leaves]:
        trajectories = Trajectories.of(buffer)
        start = self.draw(buffer, trajectories, batch_size)
        longest = int(trajectories.span(start)[1].max()) + 1
        rows, valid = padded(trajectories, start, torch.arange(longest).expand(batch_size, -1))
        return rows, {keys.MASK: valid}

    def admissible(self, trajectories: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
        stream, first, _, begun, finished = trajectories.episodes()
        return stream, first, (begun & finished).long()

    def none_found(self) -> ConfigError:
        fix = "Collect until one is done, or raise the buffer's capacity"
        return ConfigError(explain("An episode", "stored from its first step to its last", "only parts of episodes", fix))

    def __repr__(self) -> str:
        return f"EpisodeSampler(replacement={self.replacement})"


def padded(trajectories: Trajectories, start: Tensor, steps: Tensor, burn_in: int = 0) -> tuple[Tensor, Tensor]:
    """Return the rows ``steps [B, T]`` after ``start [B]``, the trajectory's last one where it is over, and where it is not.

    The trajectory is that of the step after the burn-in.
    """
    left = burn_in + trajectories.span(trajectories.shift(start, burn_in))[1].unsqueeze(-1)
    return trajectories.shift(start.unsqueeze(-1), torch.minimum(steps, left)), steps <= left
