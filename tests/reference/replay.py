"""A diary of everything that was ever stored, searched step by step: what the replay package reads from a ring of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict


@dataclass
class Step:
    """One step of one environment; its observation is ``[stream, episode, t]``, its achieved goal ``[stream, time]``."""

    stream: int
    time: int
    episode: int
    t: int
    terminated: bool
    truncated: bool
    last: bool = False  # the environment was reset after it, with or without done

    @property
    def reward(self) -> float:
        return 100.0 * self.time + self.stream


class Diary:
    """Plays ``num_envs`` environments whose every number names its own step, and remembers all of it.

    Args:
        num_envs: how many step together.
        capacity: rows of the buffer that the reference answers for.
        end: probability that a step ends its episode; half of the ends are terminations.
        seed: of the ends.
    """

    def __init__(self, num_envs: int, capacity: int, end: float = 0.2, seed: int = 0):
        self.num_envs, self.length, self.end = num_envs, capacity // num_envs, end
        self.generator = torch.Generator().manual_seed(seed)
        self.steps: list[list[Step]] = [[] for _ in range(num_envs)]

    def play(self, count: int, reset: bool = False) -> TensorDict:
        """Return a rollout ``[num_envs, count]``; ``reset`` abandons the episodes that were going on."""
        played = [[self._step(stream, reset and k == 0) for k in range(count)] for stream in range(self.num_envs)]

        def column(function, dtype=torch.float32):
            return torch.tensor([[function(step) for step in row] for row in played], dtype=dtype)

        def observations(later: int) -> dict:
            return {
                "observation": column(lambda s: [s.stream, s.episode, s.t + later]),
                "achieved_goal": column(lambda s: [s.stream, s.time + later]),
                "desired_goal": column(lambda s: [-1.0, s.episode]),
            }

        flags = {
            "terminated": column(lambda s: s.terminated, torch.bool),
            "truncated": column(lambda s: s.truncated, torch.bool),
            "done": column(lambda s: s.terminated or s.truncated, torch.bool),
        }
        no = torch.zeros(self.num_envs, count, dtype=torch.bool)
        root = {**observations(0), "done": no, "action": column(lambda s: s.time, torch.int64)}
        after = {**observations(1), **flags, "reward": column(lambda s: s.reward)}
        return TensorDict({**root, "next": after}, (self.num_envs, count))

    def _step(self, stream: int, reset: bool) -> Step:
        past = self.steps[stream]
        if reset and past:
            past[-1].last = True
        fresh = not past or past[-1].last
        episode = (past[-1].episode + fresh) if past else 0
        draw = float(torch.rand((), generator=self.generator))
        ends = (draw < self.end / 2, self.end / 2 <= draw < self.end)
        step = Step(stream, len(past), episode, 0 if fresh else past[-1].t + 1, *ends, last=any(ends))
        past.append(step)
        return step

    # ---- what is stored ------------------------------------------------------------------------------------------------------
    @property
    def stored(self) -> list[Step]:
        """The steps that the ring still holds."""
        return [step for past in self.steps for step in past[max(0, len(past) - self.length) :]]

    def row(self, step: Step) -> int:
        return step.time % self.length * self.num_envs + step.stream

    def rest(self, step: Step) -> list[Step]:
        """The stored steps of a trajectory from ``step`` on."""
        found = []
        for later in self.steps[step.stream][step.time :]:
            found.append(later)
            if later.last:
                break
        return found

    def before(self, step: Step) -> int:
        """How many stored steps of its trajectory come before it."""
        past = self.steps[step.stream]
        count, oldest = 0, max(0, len(past) - self.length)
        while step.time - count - 1 >= oldest and not past[step.time - count - 1].last:
            count += 1
        return count

    def lead(self, step: Step) -> int:
        """How many stored steps of its environment come before it without a gap: what ends in between, ends with ``done``."""
        past = self.steps[step.stream]
        time, oldest = step.time, max(0, len(past) - self.length)
        while time > oldest and (not (before := past[time - 1]).last or before.terminated or before.truncated):
            time -= 1
        return step.time - time

    def starts(self, least: int, burn_in: int = 0) -> set[int]:
        """The rows that ``burn_in`` steps after lies a step which at least ``least - 1`` of its trajectory follow."""
        found = (step for step in self.stored if len(self.rest(step)) >= least and self.lead(step) >= burn_in)
        return {self.row(self.steps[step.stream][step.time - burn_in]) for step in found}


def n_step(diary: Diary, step: Step, n: int, gamma: float) -> tuple[float, float, Step]:
    """Return ``sum_{k<m} gamma^k r_{t+k}``, ``gamma^m`` and the step ``t + m - 1``, by definition."""
    path = diary.rest(step)[:n]
    return sum(gamma**k * s.reward for k, s in enumerate(path)), gamma ** len(path), path[-1]


def goals(diary: Diary, step: Step, strategy: str) -> set[int]:
    """The rows whose achieved goals a strategy may put in a step's place (Andrychowicz et al. 2017, section 4.5)."""
    rest = diary.rest(step)
    if strategy == "final":
        return {diary.row(rest[-1])}
    if strategy == "future":
        return {diary.row(s) for s in rest}
    if strategy == "random":
        return {diary.row(s) for s in diary.stored}
    first = diary.steps[step.stream][step.time - diary.before(step)]
    return {diary.row(s) for s in diary.rest(first)}
