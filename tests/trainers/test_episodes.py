"""Whole episodes: every step once, with the return of its own episode, however rollouts cut them."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from toys import Clock

from rlbook import CartPole, Collector
from rlbook.trainers import WholeEpisodes


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30])
def test_every_step_of_an_ended_episode_comes_once_with_its_return(steps):
    episodes, gamma, seen = WholeEpisodes(gamma=0.5), 0.5, {}
    total = -(-60 // steps) * steps
    for data in Collector(Clock(4), frames_per_batch=4 * steps, total_frames=4 * total):
        batch = episodes(data)
        for (row, t, age), target in zip(batch["observation"].tolist(), batch["value_target"].tolist(), strict=True):
            assert (row, t) not in seen  # never twice
            seen[row, t] = target
            left = int(row) + 2 - int(age)  # steps to the end of its episode, whose rewards are 100 t + row
            assert target == pytest.approx(sum(gamma**k * (100 * (t + k) + row) for k in range(left)), rel=1e-5)
    for row in range(4):
        ended = total // (row + 2) * (row + 2)
        assert sorted(t for r, t in seen if r == row) == list(range(ended))  # and all that could be


def test_nothing_has_ended():
    episodes = WholeEpisodes(gamma=0.9)
    data = CartPole(3, seed=0).rollout(2)
    assert len(episodes(data)) == 0
    assert {"observation", "action", "value_target"} <= set(episodes(data).keys())


def test_how_rollouts_cut_episodes_decides_nothing():
    whole = WholeEpisodes(gamma=1.0)(CartPole(16, seed=0).rollout(1000))["value_target"]
    episodes, kept, dropped = WholeEpisodes(gamma=1.0), [], []
    for data in Collector(CartPole(16, seed=0), frames_per_batch=16 * 20, total_frames=16 * 1000):
        kept += episodes(data)["value_target"].tolist()
        dropped += WholeEpisodes(gamma=1.0)(data)["value_target"].tolist()
    assert sorted(kept) == whole.sort().values.tolist()
    # What this is for: leaving unfinished steps out takes most from long episodes, and returns look lower than they are.
    assert sum(dropped) / len(dropped) < 0.7 * whole.mean()


def test_is_saved_and_dropped():
    collector, first, second = Collector(CartPole(4, seed=0), frames_per_batch=40), WholeEpisodes(0.9), WholeEpisodes(0.9)
    assert second.state_dict() == {}
    second.load_state_dict({})
    for _ in range(5):
        first(collector.collect())
    second.load_state_dict(first.state_dict())
    data = collector.collect()
    one, other = first(data), second(data)
    assert len(one) > 0
    assert_close(one.to_dict(), other.to_dict())
    second.drop()
    assert second.state_dict() == {}
    assert len(second(collector.collect())) <= 40


def test_one_environment_without_batch_dimension():
    episodes = WholeEpisodes(gamma=1.0)
    batch = episodes(CartPole(seed=0).rollout(100))
    assert torch.equal(batch["value_target"][:3] - batch["value_target"][1:4], torch.ones(3))
