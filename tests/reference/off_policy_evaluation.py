"""Slow off-policy evaluation in float64: one episode at a time, by the definitions; and MDPs whose episodes can be listed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Episode:
    """One episode, as lists over its steps, and its probability under the behaviour policy."""

    reward: list[float] = field(default_factory=list)
    log_prob: list[float] = field(default_factory=list)
    behavior_log_prob: list[float] = field(default_factory=list)
    q: list[float] = field(default_factory=list)
    v: list[float] = field(default_factory=list)
    probability: float = 1.0

    def ratio(self, t: int) -> float:
        """Return ``rho_{0:t}``; an episode that is over keeps its last one, and ``rho_{0:-1}`` is 1."""
        return math.exp(sum(self.log_prob[: t + 1]) - sum(self.behavior_log_prob[: t + 1]))

    def discounted(self, gamma: float) -> float:
        return sum(gamma**t * r for t, r in enumerate(self.reward))


def importance_sampling(episodes: Sequence[Episode], gamma: float, weighted: bool) -> float:
    whole = [e.ratio(len(e.reward)) for e in episodes]
    total = sum(w * e.discounted(gamma) for w, e in zip(whole, episodes, strict=True))
    return total / (sum(whole) if weighted else len(episodes))


def per_decision(episodes: Sequence[Episode], gamma: float, weighted: bool) -> float:
    value = 0.0
    for t in range(max(len(e.reward) for e in episodes)):
        share = sum(e.ratio(t) for e in episodes) if weighted else len(episodes)
        value += sum(gamma**t * e.ratio(t) * e.reward[t] for e in episodes if t < len(e.reward)) / share
    return value


def doubly_robust(episodes: Sequence[Episode], gamma: float) -> list[float]:
    """Return the recursion of Jiang and Li (2016) for each episode, from its last step to its first."""
    values = []
    for e in episodes:
        later = 0.0
        for t in reversed(range(len(e.reward))):
            rho = math.exp(e.log_prob[t] - e.behavior_log_prob[t])
            later = e.v[t] + rho * (e.reward[t] + gamma * later - e.q[t])
        values.append(later)
    return values


def weighted_doubly_robust(episodes: Sequence[Episode], gamma: float) -> float:
    """Return the WDR estimator of Thomas and Brunskill (2016), term by term."""
    value = 0.0
    for t in range(max(len(e.reward) for e in episodes)):
        now, before = (sum(e.ratio(k) for e in episodes) for k in (t, t - 1))
        for e in episodes:
            if t < len(e.reward):
                w, w_before = e.ratio(t) / now, e.ratio(t - 1) / before
                value += gamma**t * (w * e.reward[t] - (w * e.q[t] - w_before * e.v[t]))
    return value


@dataclass
class FiniteMDP:
    """States 0 to S - 1, and S, where episodes end; after ``horizon`` steps they end anyway.

    ``P`` ``[S, A, S + 1]``, ``R`` ``[S, A]``, ``start`` ``[S]``.
    """

    P: Array
    R: Array
    start: Array
    horizon: int

    def values(self, policy: Array, gamma: float) -> tuple[Array, Array]:
        """Return ``Q_t(s, a)`` ``[horizon, S, A]`` and ``V_t(s)`` ``[horizon, S]`` of a policy ``[S, A]``, with t steps done."""
        states, actions = self.R.shape
        q, v, later = np.zeros((self.horizon, states, actions)), np.zeros((self.horizon, states)), np.zeros(states)
        for t in reversed(range(self.horizon)):
            q[t] = self.R + gamma * self.P[..., :states] @ later
            v[t] = later = (policy * q[t]).sum(-1)
        return q, v

    def episodes(self, behavior: Array, target: Array, q: Array, v: Array) -> Iterator[Episode]:
        """List every episode of positive probability; ``q`` and ``v`` are what doubly robust is told, as from :meth:`values`."""
        states, actions = self.R.shape
        for s0 in range(states):
            for path in itertools.product(itertools.product(range(actions), range(states + 1)), repeat=self.horizon):
                episode, s = Episode(probability=float(self.start[s0])), s0
                for t, (a, following) in enumerate(path):
                    if s == states:
                        episode.probability *= float((a, following) == (0, 0))  # list an episode that is over once
                        continue
                    episode.probability *= float(behavior[s, a] * self.P[s, a, following])
                    episode.reward.append(float(self.R[s, a]))
                    episode.log_prob.append(math.log(target[s, a]))
                    episode.behavior_log_prob.append(math.log(behavior[s, a]))
                    episode.q.append(float(q[t, s, a]))
                    episode.v.append(float(v[t, s]))
                    s = following
                if episode.probability > 0:
                    yield episode
