"""Hindsight goals: from where a strategy says, as often as asked, and with the rewards that go with them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.replay import Diary, goals
from torch.testing import assert_close

from rlbook.errors import ConfigError, MissingKeyError, SpecError
from rlbook.replay import ReplayBuffer
from rlbook.replay.her import HER
from rlbook.replay.nstep import NStep
from rlbook.replay.slices import SliceSampler

STRATEGIES = ["future", "final", "episode", "random"]


def reached(achieved: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return (achieved == goal).all(-1)


def reward_fn(achieved: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return reached(achieved, goal).float() - 1


def filled(transform: HER, sampler=None, *, seed: int = 0):
    buffer = ReplayBuffer(41, transforms=transform, sampler=sampler, seed=seed)
    diary = Diary(2, 41, end=0.15)
    for count in (13, 17, 6):  # wraps; the last episodes are not finished
        buffer.extend(diary.play(count, reset=True))
    return buffer, diary


def goal_row(diary: Diary, goal: torch.Tensor) -> int:
    """The row that achieved a goal: next.achieved_goal is [stream, time + 1]."""
    stream, later = (int(x) for x in goal)
    return diary.row(diary.steps[stream][later - 1])


@given(
    st.integers(1, 3),
    st.integers(3, 30),
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=5),
    st.sampled_from(STRATEGIES),
    st.booleans(),
)
def test_a_goal_was_achieved_where_the_strategy_says(num_envs, capacity, chunks, strategy, ends):
    transform = HER(reward_fn, strategy, ratio=0.7, terminated_fn=reached if ends else None)
    buffer, diary = ReplayBuffer(capacity, transforms=transform, seed=0), Diary(num_envs, capacity, 0.2)
    for count, reset in chunks:
        buffer.extend(diary.play(count, reset))
        batch, at = buffer.sample(15), {diary.row(step): step for step in diary.stored}
        stored = buffer[batch["index"]]
        new = (batch["desired_goal"] != stored["desired_goal"]).any(-1)
        assert torch.equal(
            batch["next", "desired_goal"], torch.where(new[:, None], batch["desired_goal"], stored["next", "desired_goal"])
        )
        for step, old, is_new in zip(batch, stored, new.tolist(), strict=True):
            if not is_new:
                assert (step.exclude("index") == old).all()
                continue
            assert goal_row(diary, step["desired_goal"]) in goals(diary, at[int(step["index"])], strategy)
            success = bool(reached(old["next", "achieved_goal"], step["desired_goal"]))
            assert float(step["next", "reward"]) == success - 1
            if ends:
                assert bool(step["next", "terminated"]) == success
                assert bool(step["next", "done"]) == success or bool(old["next", "truncated"])
            changed = ["index", "desired_goal", ("next", "desired_goal"), ("next", "reward")]
            changed += [("next", "terminated"), ("next", "done")] if ends else []
            assert (step.exclude(*changed) == old.exclude(*changed)).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_allowed_goal_has_the_same_probability(strategy):
    buffer, diary = filled(HER(reward_fn, strategy, ratio=1.0))
    step = next(s for s in diary.stored if len(diary.rest(s)) >= 4 and diary.before(s) >= 2)
    rows = torch.full((4000,), diary.row(step))
    batch = buffer.transforms[0](buffer[rows], rows, buffer)
    counts = Counter(goal_row(diary, goal) for goal in batch["desired_goal"])
    allowed = goals(diary, step, strategy)
    assert set(counts) == allowed
    expected = len(rows) / len(allowed)
    statistic = sum((n - expected) ** 2 / expected for n in counts.values())
    freedom = max(len(allowed) - 1, 1)
    assert (statistic - freedom) / (2 * freedom) ** 0.5 < 5


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.8, 1.0])
def test_the_ratio(ratio):
    buffer, _ = filled(HER(reward_fn, "random", ratio))
    share = float((buffer.sample(10_000)["desired_goal"][:, 0] >= 0).float().mean())  # original goals begin with -1
    assert abs(share - ratio) <= 5 * (ratio * (1 - ratio) / 10_000) ** 0.5


def test_a_sequence_has_one_goal():
    buffer, diary = filled(HER(reward_fn, "future", ratio=0.5), SliceSampler(3))
    batch = buffer.sample(200)
    at = {diary.row(step): step for step in diary.stored}
    new = batch["desired_goal"][:, 0, 0] >= 0
    assert 50 < new.sum() < 150
    for sequence, is_new in zip(batch, new.tolist(), strict=True):
        if is_new:
            assert (sequence["desired_goal"] == sequence["desired_goal"][0]).all()
            last = at[int(sequence["index"][-1])]
            assert goal_row(diary, sequence["desired_goal"][0]) in goals(diary, last, "future")
            assert_close(sequence["next", "reward"], reward_fn(sequence["next", "achieved_goal"], sequence["desired_goal"]))
        else:
            assert (sequence.exclude("index") == buffer[sequence["index"]]).all()


def test_a_reward_function_of_numpy():
    """Gymnasium's compute_reward takes and returns arrays."""
    buffer, _ = filled(HER(lambda a, g: ((a.numpy() == g.numpy()).all(-1) - 1).astype("float64"), ratio=1.0))
    batch = buffer.sample(50)
    assert batch["next", "reward"].dtype == torch.float32
    assert_close(batch["next", "reward"], reward_fn(batch["next", "achieved_goal"], batch["desired_goal"]))


def test_the_buffer_keeps_its_goals():
    buffer, _ = filled(HER(reward_fn, ratio=1.0, terminated_fn=reached))
    rows = torch.arange(len(buffer))
    before = buffer[rows]
    buffer.sample(100)
    assert (buffer[rows] == before).all()


def test_the_seed_decides():
    def draw(seed: int) -> list[float]:
        return filled(HER(reward_fn), seed=seed)[0].sample(50)["desired_goal"].flatten().tolist()

    assert draw(1) == draw(1) != draw(2)


def test_bad_arguments_are_explained():
    with pytest.raises(ConfigError, match=r"strategy must be one of .*'future'.*; got 'past'"):
        HER(reward_fn, "past")
    with pytest.raises(ConfigError, match=r"ratio must be in \[0, 1\]; got 4"):
        HER(reward_fn, ratio=4)


def test_a_reward_function_of_another_shape_is_explained():
    buffer, _ = filled(HER(lambda achieved, goal: achieved - goal))
    with pytest.raises(SpecError, match=r"What reward_fn returns must be \[5\], a number per step; got \[5, 2\]"):
        buffer.sample(5)


def test_missing_entries_are_explained():
    buffer, _ = filled(HER(reward_fn, goal_key="target"))
    with pytest.raises(MissingKeyError, match=r"Rows for HER must be with \['target'\]; got .*desired_goal"):
        buffer.sample(5)


def test_sums_of_rewards_are_refused():
    buffer, _ = filled([NStep(3, 0.9), HER(reward_fn)])
    with pytest.raises(ConfigError, match="Steps for HER must be single ones; got the sums that NStep makes"):
        buffer.sample(5)
    buffer, _ = filled([HER(reward_fn), NStep(3, 0.9)])
    with pytest.raises(ConfigError, match="NStep must be the first transform"):
        buffer.sample(5)
