"""Trajectories: where pieces of episodes begin and stop, against a diary of every step."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.replay import Diary
from tensordict import TensorDict

from rlbook.errors import ConfigError
from rlbook.replay import ReplayBuffer, Writer, trajectories
from rlbook.replay.trajectories import Trajectories

histories = st.fixed_dictionaries(
    {
        "num_envs": st.integers(1, 3),
        "capacity": st.integers(3, 40),
        "end": st.sampled_from([0.0, 0.1, 0.4, 1.0]),
        "chunks": st.lists(st.tuples(st.integers(1, 15), st.booleans(), st.booleans()), min_size=1, max_size=8),
        "seed": st.integers(0, 1000),
    }
)


def check(buffer: ReplayBuffer, diary: Diary) -> None:
    """Compare every answer about every stored row."""
    found, stored = Trajectories.of(buffer), diary.stored
    rows = torch.tensor([diary.row(step) for step in stored])
    assert sorted(rows.tolist()) == list(range(len(buffer)))
    before, after = found.span(rows)
    assert after.tolist() == [len(diary.rest(step)) - 1 for step in stored]
    assert before.tolist() == [diary.before(step) for step in stored]
    assert found.lead(rows).tolist() == [diary.lead(step) for step in stored]
    times, streams = found.times(rows), torch.tensor([step.stream for step in stored])
    assert times.tolist() == [step.time for step in stored]
    assert torch.equal(found.rows(times, streams), rows)
    ends = [diary.row(diary.rest(step)[-1]) for step in stored]
    assert found.shift(rows, after).tolist() == ends
    table = found.episodes()
    last = [diary.rest(step)[-1] for step in stored if diary.before(step) == 0]
    first = [step for step in stored if diary.before(step) == 0]
    finished = [step.terminated or step.truncated for step in last]
    expected = [(a.stream, a.time, b.time, c) for a, b, c in zip(first, last, finished, strict=True)]
    assert sorted(zip(*(column.tolist() for column in (*table[:3], table.finished)), strict=True)) == sorted(expected)


@given(histories, st.integers(1, 7))
def test_every_answer_is_that_of_the_diary(history, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectories, "CHUNK", chunk)  # also looks that are cut in several
        buffer = ReplayBuffer(history["capacity"])
        diary = Diary(history["num_envs"], history["capacity"], history["end"], history["seed"])
        for count, reset, ask in history["chunks"]:
            buffer.extend(diary.play(count, reset))
            if ask:
                check(buffer, diary)
        check(buffer, diary)


@given(histories)
def test_begun_says_whether_the_first_step_is_stored(history):
    buffer = ReplayBuffer(history["capacity"])
    diary = Diary(history["num_envs"], history["capacity"], history["end"], history["seed"])
    for count, reset, _ in history["chunks"]:
        for _ in range(count):
            buffer.extend(diary.play(1, reset))
            table = Trajectories.of(buffer).episodes()
        for stream, first, begun in zip(table.stream.tolist(), table.first.tolist(), table.begun.tolist(), strict=True):
            if diary.length > 1:  # else the step before is overwritten by the one that would tell
                assert begun == (diary.steps[stream][first].t == 0)
            assert not begun or diary.steps[stream][first].t == 0


@settings(max_examples=20)
@given(histories)
def test_step_by_step_or_all_at_once(history):
    rows = 0
    buffers = [ReplayBuffer(history["capacity"]) for _ in range(2)]
    diary = Diary(history["num_envs"], history["capacity"], history["end"], history["seed"])
    for count, reset, _ in history["chunks"]:
        data = diary.play(count, reset)
        for k in range(count):
            buffers[0].extend(data[:, k : k + 1])
            Trajectories.of(buffers[0]).refresh()
        buffers[1].extend(data)
        rows += count
    every = torch.arange(len(buffers[0]))
    for a, b in zip(*(Trajectories.of(buffer).span(every) for buffer in buffers), strict=True):
        assert torch.equal(a, b)


def test_long_running_rings_forget():
    buffer, diary = ReplayBuffer(30), Diary(3, 30, end=0.5)
    for _ in range(300):
        buffer.extend(diary.play(10))
        Trajectories.of(buffer).refresh()
    check(buffer, diary)
    assert len(Trajectories.of(buffer)._table[0]) < 1200  # of some 4500 trajectories


def test_a_saved_buffer_is_looked_at_anew():
    buffer, diary = ReplayBuffer(20), Diary(3, 20)
    for _ in range(4):
        buffer.extend(diary.play(5))
    other = ReplayBuffer(20)
    other.load_state_dict(copy.deepcopy(buffer.state_dict()))
    check(other, diary)
    assert not Trajectories.of(other).episodes().begun[:3].any()  # the oldest of each stream: it cannot be known
    other.extend(diary.play(2))
    check(other, diary)


@pytest.mark.parametrize("fill", ["clear", "load"])
@pytest.mark.parametrize("num_envs", [2, 3])
def test_other_rows_in_their_place(fill, num_envs):
    old, new = Diary(2, 20, end=0.0), Diary(num_envs, 20, end=0.6, seed=1)
    buffer = ReplayBuffer(20)
    buffer.extend(old.play(12 // 2))
    check(buffer, old)
    if fill == "clear":
        buffer.clear()
        buffer.extend(new.play(12 // num_envs))  # as many rows as before
    else:
        other = ReplayBuffer(20)
        other.extend(new.play(12 // num_envs))
        buffer.load_state_dict(other.state_dict())
    check(buffer, new)


def test_more_than_fits_at_once():
    buffer, diary = ReplayBuffer(10), Diary(2, 10, end=0.3)
    buffer.extend(diary.play(3))
    check(buffer, diary)
    buffer.extend(diary.play(23))
    check(buffer, diary)


def test_an_empty_buffer_has_none():
    buffer = ReplayBuffer(10)
    assert [len(column) for column in Trajectories.of(buffer).episodes()] == [0] * 5
    diary = Diary(2, 10)
    buffer.extend(diary.play(3))
    check(buffer, diary)


def test_rows_without_next_never_stop():
    buffer = ReplayBuffer(10)
    buffer.extend(TensorDict({"observation": torch.rand(2, 4)}, [2, 4]))
    before, after = Trajectories.of(buffer).span(torch.arange(8))
    assert before.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert after.tolist() == [3, 3, 2, 2, 1, 1, 0, 0]
    assert not Trajectories.of(buffer).episodes().finished.any()


@pytest.mark.parametrize("key", ["done", "observation", ("agents", "observation")])
def test_what_makes_a_stop(key):
    """Each of these alone: a done flag, observations that do not go on, nested ones."""
    value = torch.arange(6.0)
    if key == "done":
        data = TensorDict({"next": {"done": torch.tensor([False, False, True, False, False, False])}}, [6])
    else:
        data = TensorDict({key: value, ("next", *((key,) if isinstance(key, str) else key)): value + 1}, [6])
        data[key][3:] += 10
        data[("next", *((key,) if isinstance(key, str) else key))][3:] += 10
    buffer = ReplayBuffer(10)
    buffer.extend(data)
    assert Trajectories.of(buffer).span(torch.arange(6))[1].tolist() == [2, 1, 0, 2, 1, 0]


def test_nan_is_continued_by_nan():
    nan = torch.full((4, 2), torch.nan)
    buffer = ReplayBuffer(10)
    buffer.extend(TensorDict({"observation": nan, "next": {"observation": nan}}, [4]))
    assert Trajectories.of(buffer).span(torch.arange(4))[1].tolist() == [3, 2, 1, 0]


def test_flags_and_rewards_at_the_root_say_nothing_of_continuity():
    flag, reward = torch.tensor([True, False, True]), torch.rand(3)
    data = {"done": flag, "reward": reward, "next": {"done": flag & False, "reward": reward}}
    buffer = ReplayBuffer(10)
    buffer.extend(TensorDict(data, [3]))
    assert Trajectories.of(buffer).span(torch.arange(3))[1].tolist() == [2, 1, 0]


def test_any_shape_of_rows():
    buffer, diary = ReplayBuffer(20), Diary(2, 20)
    buffer.extend(diary.play(8))
    found, rows = Trajectories.of(buffer), torch.randint(16, (3, 5))
    for grid, line in zip(found.span(rows), found.span(rows.flatten()), strict=True):
        assert torch.equal(grid.flatten(), line)


def test_one_per_buffer_which_dies_with_it():
    buffer, other = ReplayBuffer(10), ReplayBuffer(10)
    found = Trajectories.of(buffer)
    assert Trajectories.of(buffer) is found
    assert Trajectories.of(other) is not found
    alive = weakref.ref(found)
    del found, buffer
    gc.collect()
    assert alive() is None


def test_rows_out_of_order_are_refused():
    class AnyWriter(Writer):
        def place(self, batch, count, streams):
            yield slice(0, count), slice(0, count)

    buffer = ReplayBuffer(10, writer=AnyWriter())
    with pytest.raises(
        ConfigError, match=r"must be in the order of time; got the AnyWriter's. Make the buffer with writer=RingWriter"
    ):
        Trajectories.of(buffer)
