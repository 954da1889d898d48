"""Sequences: they stay inside a trajectory, and every admissible start has the same chance."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.replay import Diary
from tensordict import TensorDict
from torch.testing import assert_close

from rlbook.errors import ConfigError
from rlbook.replay import ReplayBuffer
from rlbook.replay.prioritized import PrioritizedSampler
from rlbook.replay.samplers import Sampler, UniformSampler
from rlbook.replay.slices import EpisodeSampler, SliceSampler


def filled(sampler: Sampler, *, num_envs: int = 2, capacity: int = 61, end: float = 0.15, steps=(20, 7, 25), seed: int = 0):
    """A ring that has wrapped, with episodes that end and some that were abandoned, and its diary."""
    buffer, diary = ReplayBuffer(capacity, sampler=sampler, seed=seed), Diary(num_envs, capacity, end, seed=seed + 1)
    for count in steps:
        buffer.extend(diary.play(count, reset=True))
    return buffer, diary


def chi_squared(counts: Counter, weights: dict[int, float]) -> float:
    """Pearson's statistic in standard deviations from its mean, for expected shares in proportion to ``weights``."""
    total, mass = sum(counts.values()), sum(weights.values())
    expected = {row: total * weight / mass for row, weight in weights.items()}
    statistic = sum((counts[row] - n) ** 2 / n for row, n in expected.items())
    freedom = len(expected) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


def starts_drawn(buffer: ReplayBuffer, count: int, size: int = 50) -> Counter:
    return Counter(row for _ in range(count // size) for row in buffer.sample(size)["index"][:, 0].tolist())


@settings(max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(6, 40),
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "uniform", "priority"]),
    st.integers(0, 100),
)
def test_a_slice_is_consecutive_steps_of_one_trajectory(num_envs, capacity, chunks, length, pad, replacement, starts, seed):
    other = {None: None, "uniform": UniformSampler(), "priority": PrioritizedSampler()}[starts]
    sampler = SliceSampler(length, pad=pad, replacement=replacement or other is not None, sampler=other)
    buffer = ReplayBuffer(capacity, sampler=sampler, seed=seed)
    diary = Diary(num_envs, capacity, 0.2, seed)
    for count, reset in chunks:
        buffer.extend(diary.play(count, reset))
        admissible = diary.starts(1 if pad else length)
        if not admissible:
            with pytest.raises(ConfigError, match=f"of {length} steps or more; got only shorter ones"):
                buffer.sample(7)
            continue
        batch = buffer.sample(7)
        assert batch.batch_size == (7, length)
        at = {diary.row(step): step for step in diary.stored}
        for rows, observation, valid in zip(
            batch["index"].tolist(), batch["observation"], batch.get("mask", batch["done"] | True), strict=True
        ):
            assert rows[0] in admissible
            path = diary.rest(at[rows[0]])[:length]
            repeated = path + [path[-1]] * (length - len(path))
            assert rows == [diary.row(step) for step in repeated]
            assert observation.tolist() == [[s.stream, s.episode, s.t] for s in repeated]
            assert valid.tolist() == [k < len(path) for k in range(length)]


@pytest.mark.parametrize("options", [{}, {"pad": True}, {"replacement": False}, {"sampler": UniformSampler()}])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_every_admissible_start_has_the_same_probability(length, options):
    buffer, diary = filled(SliceSampler(length, **options))
    admissible = diary.starts(1 if options.get("pad") else length)
    counts = starts_drawn(buffer, 100 * len(admissible))
    assert set(counts) == admissible
    assert chi_squared(counts, dict.fromkeys(admissible, 1.0)) < 5


def test_rare_starts_are_found_and_uniform():
    buffer, diary = filled(SliceSampler(11), capacity=400, end=0.25, steps=(200,))
    admissible = diary.starts(11)
    assert 2 <= len(admissible) < 40  # of 400: two draws in three come from the list
    counts = starts_drawn(buffer, 200 * len(admissible), size=5)
    assert set(counts) == admissible
    assert chi_squared(counts, dict.fromkeys(admissible, 1.0)) < 5


def test_without_replacement_every_start_once_per_pass():
    buffer, diary = filled(SliceSampler(3, replacement=False))
    admissible = diary.starts(3)
    drawn = torch.cat([buffer.sample(1)["index"][:, 0] for _ in range(2 * len(admissible))]).tolist()
    first, second = drawn[: len(admissible)], drawn[len(admissible) :]
    assert sorted(first) == sorted(second) == sorted(admissible)
    assert first != second
    assert sorted(buffer.sample(3 * len(admissible))["index"][:, 0].tolist()) == sorted(3 * list(admissible))


def test_without_replacement_while_rows_are_written():
    """A pass goes on through writing: what is overwritten drops out, what is new waits for the next pass."""
    buffer, diary = filled(SliceSampler(3, replacement=False))
    at = {diary.row(step): step for step in diary.stored}
    waiting = {(at[row].stream, at[row].time) for row in diary.starts(3)}
    found = set()
    for _ in range(8):
        at = {diary.row(step): step for step in diary.stored}
        for row in buffer.sample(2)["index"][:, 0].tolist():
            found.add((at[row].stream, at[row].time))
        buffer.extend(diary.play(2))
    assert len(found) == 16
    assert found <= waiting


def test_burn_in_is_marked():
    buffer, diary = filled(SliceSampler(5, burn_in=2))
    assert buffer.sample(3)["mask"].tolist() == [[False, False, True, True, True]] * 3
    buffer, diary = filled(SliceSampler(5, burn_in=2, pad=True))
    batch = buffer.sample(400)
    at = {diary.row(step): step for step in diary.stored}
    lengths = [2 + min(3, len(diary.rest(at[row]))) for row in batch["index"][:, 2].tolist()]
    assert set(lengths) == {3, 4, 5}  # at least one step to learn from
    assert batch["mask"].tolist() == [[2 <= k < length for k in range(5)] for length in lengths]
    assert "mask" not in filled(SliceSampler(5))[0].sample(3).keys()


@pytest.mark.parametrize("options", [{}, {"pad": True}, {"pad": True, "replacement": False}, {"sampler": PrioritizedSampler}])
@pytest.mark.parametrize("burn_in", [1, 3, 5])
def test_the_first_steps_of_an_episode_are_learnt_from_too(burn_in, options):
    """Else whoever meets what is to be remembered in the first steps would never learn to remember it."""
    fresh: dict[str, Any] = {name: value() if callable(value) else value for name, value in options.items()}
    buffer, diary = filled(SliceSampler(6, burn_in=burn_in, **fresh), capacity=81, steps=(40, 30, 25), end=0.2)
    least = 1 if options.get("pad") else 6 - burn_in
    admissible = diary.starts(least, burn_in)
    counts = starts_drawn(buffer, 100 * len(admissible))
    assert set(counts) == admissible
    assert chi_squared(counts, dict.fromkeys(admissible, 1.0)) < 5
    at = {diary.row(step): step for step in diary.stored}
    begin = {
        diary.row(step) for step in diary.stored if step.t == 0 and diary.lead(step) >= burn_in and len(diary.rest(step)) >= least
    }
    assert len(begin) > 3
    batch = buffer.sample(500)
    assert begin <= set(batch["index"][:, burn_in].tolist())
    for rows, mask in zip(batch["index"].tolist(), batch["mask"].tolist(), strict=True):
        path = diary.rest(at[rows[burn_in]])[: 6 - burn_in]
        before = diary.steps[path[0].stream][path[0].time - burn_in : path[0].time]
        assert all(step.terminated or step.truncated or not step.last for step in before)  # no state comes across a gap
        assert rows == [diary.row(step) for step in before + path + [path[-1]] * (6 - burn_in - len(path))]
        assert mask == [burn_in <= k < burn_in + len(path) for k in range(6)]


# ---- starts drawn by priority --------------------------------------------------------------------------------------------------
def test_priorities_decide_among_admissible_starts():
    buffer, diary = filled(SliceSampler(4, sampler=PrioritizedSampler(alpha=1.0, beta=1.0)))
    admissible = sorted(diary.starts(4))
    buffer.sample(1)
    priority = {row: 1.0 + k % 5 for k, row in enumerate(admissible)}
    buffer.update_priority(torch.tensor(admissible), torch.tensor(list(priority.values())))
    batch = buffer.sample(1000)
    assert batch["weight"].shape == (1000, 4)
    # w = (1 / p) / max_j (1 / p_j), the same along a sequence
    expected = torch.tensor([1 / priority[row] for row in batch["index"][:, 0].tolist()])
    assert_close(batch["weight"], expected.unsqueeze(1).expand(1000, 4), rtol=1e-4, atol=0)
    assert chi_squared(starts_drawn(buffer, 20_000, size=100), priority) < 5


def test_other_starts_never_take_part():
    """Rows that no slice can begin with would keep the highest priority, for they are never updated."""
    sampler = PrioritizedSampler(alpha=1.0)
    buffer, diary = filled(SliceSampler(4, sampler=sampler), capacity=400)
    admissible = sorted(diary.starts(4))
    buffer.sample(1)
    buffer.update_priority(torch.tensor(admissible), torch.full((len(admissible),), 1e-3))
    buffer.extend(diary.play(3))
    buffer.sample(1)
    weight = sampler.priority(torch.arange(len(buffer)))
    assert set(weight.nonzero().squeeze(-1).tolist()) == diary.starts(4)
    new = diary.starts(4) - set(admissible)
    assert new  # the steps before the newest, which more have followed since
    assert_close(weight[list(new)], torch.ones(len(new), dtype=weight.dtype), rtol=1e-4, atol=0)
    assert_close(weight[admissible], torch.full((len(admissible),), 1e-3, dtype=weight.dtype), rtol=1e-2, atol=0)


def test_priority_of_a_sequence():
    sampler = PrioritizedSampler(alpha=1.0, eps=1e-9)
    buffer, _ = filled(SliceSampler(4, burn_in=1, sampler=sampler, eta=0.75))
    rows = buffer.sample(1)["index"]
    buffer.update_priority(rows, torch.tensor([[100.0, 1.0, 2.0, 6.0]]))
    # 3/4 of the largest, 6, and 1/4 of the mean, 3, of all but the burn-in
    assert_close(sampler.priority(rows[:, 0]), torch.tensor([5.25], dtype=torch.float64), rtol=1e-6, atol=0)
    assert_close(buffer.sampler.priority(rows), torch.tensor([5.25], dtype=torch.float64), rtol=1e-6, atol=0)
    buffer.update_priority(rows, torch.tensor([3.0]))
    assert_close(sampler.priority(rows[:, 0]), torch.tensor([3.0], dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_sampler_that_finds_no_start_is_explained():
    class Stubborn(Sampler):
        def sample(self, buffer, batch_size):
            return torch.full((batch_size,), len(buffer) - 1), {}  # the newest row: nothing follows

    buffer, _ = filled(SliceSampler(4, sampler=Stubborn()), steps=(20,))
    with pytest.raises(ConfigError, match="3 that 4 steps follow; got 0 in 1000 draws"):
        buffer.sample(3)


def test_priorities_need_a_sampler_of_starts():
    buffer, _ = filled(SliceSampler(4))
    with pytest.raises(ConfigError, match="must be one with priorities; got SliceSampler"):
        buffer.update_priority(torch.tensor([0]), torch.tensor([1.0]))
    assert buffer.sampler.priority(torch.tensor([0])) is None


# ---- whole episodes ------------------------------------------------------------------------------------------------------------
def test_whole_episodes():
    buffer, diary = filled(EpisodeSampler(), capacity=100, end=0.3, steps=(30, 11, 25))
    whole = {
        diary.row(step): diary.rest(step)
        for step in diary.stored
        if step.t == 0 and (diary.rest(step)[-1].terminated or diary.rest(step)[-1].truncated)
    }
    assert len(whole) > 5
    counts = Counter()
    for _ in range(100):
        batch = buffer.sample(20)
        episodes = [whole[row] for row in batch["index"][:, 0].tolist()]  # a KeyError: not the first step of a whole one
        longest = max(map(len, episodes))
        assert batch.batch_size == (20, longest)
        assert batch["mask"].tolist() == [[k < len(episode) for k in range(longest)] for episode in episodes]
        rows = [[diary.row(step) for step in episode + [episode[-1]] * (longest - len(episode))] for episode in episodes]
        assert batch["index"].tolist() == rows
        counts.update(row[0] for row in rows)
    assert chi_squared(counts, dict.fromkeys(whole, 1.0)) < 5


def test_whole_episodes_without_replacement():
    buffer, diary = filled(EpisodeSampler(replacement=False), capacity=100, end=0.3, steps=(30,))
    count = sum(step.terminated or step.truncated for step in diary.stored)
    assert len(set(buffer.sample(count)["index"][:, 0].tolist())) == count


def test_no_whole_episode_is_explained():
    buffer, _ = filled(EpisodeSampler(), end=0.0)
    with pytest.raises(ConfigError, match="stored from its first step to its last; got only parts of episodes"):
        buffer.sample(1)


# ---- keeping -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [SliceSampler, lambda n, **kw: EpisodeSampler(**kw)])
@pytest.mark.parametrize("options", [{}, {"replacement": False}])
def test_the_seed_decides(make, options):
    def draw(seed: int) -> list[list[int]]:
        buffer, _ = filled(make(3, **options), end=0.3)
        buffer.generator.manual_seed(seed)
        return [buffer.sample(6)["index"][:, 0].tolist() for _ in range(5)]

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize(
    "make", [lambda: SliceSampler(3, replacement=False), lambda: SliceSampler(3, sampler=PrioritizedSampler()), EpisodeSampler]
)
def test_a_saved_sampler_goes_on_where_it_was(make):
    (buffer, _), (other, _) = filled(make(), end=0.3, steps=(25,)), filled(make(), end=0.3, seed=9)
    buffer.sample(6)
    other.load_state_dict(buffer.state_dict())
    for _ in range(4):
        assert torch.equal(buffer.sample(6)["index"], other.sample(6)["index"])
    other.check_valid()


def test_clear():
    buffer, _ = filled(SliceSampler(3, sampler=PrioritizedSampler()))
    buffer.sample(4)
    buffer.clear()
    diary = Diary(2, 61, end=0.3, seed=5)
    for _ in range(3):
        buffer.extend(diary.play(20))  # first as many rows as before
        assert set(buffer.sample(40)["index"][:, 0].tolist()) <= diary.starts(3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"slice_len": 0}, "slice_len must be a positive integer; got 0"),
        ({"slice_len": 2.0}, "slice_len must be a positive integer; got 2.0"),
        ({"slice_len": 4, "burn_in": 4}, r"burn_in must be in \[0, slice_len=4\); got 4"),
        ({"slice_len": 4, "burn_in": -1}, r"burn_in must be in \[0, slice_len=4\); got -1"),
        ({"slice_len": 4, "eta": 1.5}, r"eta must be in \[0, 1\]; got 1.5"),
        ({"slice_len": 4, "replacement": False, "sampler": UniformSampler()}, "replacement must be True where another sampler"),
    ],
)
def test_bad_arguments_are_explained(arguments, match):
    with pytest.raises(ConfigError, match=match):
        SliceSampler(**arguments)


def test_padding_has_no_priority():
    sampler = SliceSampler(4, pad=True, sampler=PrioritizedSampler(alpha=1.0, eps=1e-12), eta=0.0)
    buffer = ReplayBuffer(20, sampler=sampler, batch_size=64, seed=0)
    done = torch.tensor([False, False, False, False, True])
    buffer.extend(TensorDict({"number": torch.arange(5), "next": {"done": done, "reward": torch.zeros(5)}}, [5]))
    batch = buffer.sample()
    buffer.update_priority(batch["index"], batch["mask"].float())
    starts = batch["index"][:, 0]
    assert 1 < len(starts.unique()) <= 5
    assert_close(buffer.sampler.priority(starts), torch.ones(64).double())
