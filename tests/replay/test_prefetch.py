"""Sampling ahead: the same samples in every run, errors where they are asked for, and no thread left behind."""

from __future__ import annotations

import gc
import threading
import time

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from rlbook.errors import ConfigError
from rlbook.replay import HER, ListStorage, PrioritizedSampler, ReplayBuffer, SharedReplayBuffer


@pytest.fixture(autouse=True)
def no_thread_left_behind():
    """Fail if a test leaves a thread behind whose buffer is gone."""
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while (found := prefetching()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not found


def prefetching() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "prefetch" in thread.name]


def numbered(start: int, stop: int) -> TensorDict:
    number = torch.arange(start, stop)
    return TensorDict({"number": number, "next": {"twice": 2 * number}}, number.shape)


def run(prefetch: int, *, pause: float = 0.0, seed: int = 0) -> list[list[int]]:
    """Write and sample in turn, with priorities, and return what was sampled."""

    def slow(batch: TensorDict, rows: Tensor, buffer: ReplayBuffer) -> TensorDict:
        time.sleep(pause)
        noise = torch.randint(100, batch.shape, generator=buffer.generator)
        return batch.set("noise", noise)

    sampler = PrioritizedSampler()
    buffer = ReplayBuffer(10, batch_size=4, seed=seed, sampler=sampler, transforms=slow, prefetch=prefetch)
    buffer.extend(numbered(0, 5))
    found = []
    for step in range(12):
        batch = buffer.sample()
        assert torch.equal(batch["next", "twice"], 2 * batch["number"])
        found.append(batch["number"].tolist() + batch["noise"].tolist())
        buffer.update_priority(batch["index"], batch["number"] + 1.0)
        buffer.extend(numbered(3 * step, 3 * step + 3))
        time.sleep(pause * (step % 3))
    found.append(buffer.sample(2)["number"].tolist())  # of another size: drawn at once
    buffer.close()
    return found


@pytest.mark.parametrize("prefetch", [1, 3])
def test_the_same_samples_in_every_run(prefetch):
    first = run(prefetch)
    assert first == run(prefetch, pause=0.003) == run(prefetch)
    assert first != run(prefetch, seed=1)


def test_samples_show_the_buffer_as_it_was_when_they_were_ordered():
    buffer = ReplayBuffer(2, batch_size=3, prefetch=2)
    found = []
    for step in range(6):
        buffer.extend(numbered(10 * step, 10 * step + 2))
        found.append(buffer.sample()["number"].max().item() // 10)
    assert found == [0, 0, 0, 1, 2, 3]  # the first call orders three
    buffer.clear()
    buffer.extend(numbered(90, 92))
    assert buffer.sample()["number"].min() >= 90
    buffer.close()


def test_a_saved_buffer_goes_on_with_what_it_had_ordered():
    def make(seed: int) -> ReplayBuffer:
        return ReplayBuffer(8, batch_size=3, seed=seed, prefetch=2)

    buffer, other = make(0), make(1)
    buffer.extend(numbered(0, 8))
    buffer.sample()
    buffer.extend(numbered(8, 16))  # what was ordered shows the rows before
    other.load_state_dict(buffer.state_dict())
    ahead = [buffer.sample()["number"].tolist() for _ in range(6)]
    assert ahead == [other.sample()["number"].tolist() for _ in range(6)]
    assert all(number < 8 for batch in ahead[:2] for number in batch)
    assert all(number >= 8 for batch in ahead[2:] for number in batch)
    for one in (buffer, other):
        one.close()


def test_an_error_in_the_thread_is_raised_by_the_sample():
    broken = [True]

    def transform(batch: TensorDict, rows: Tensor, buffer: ReplayBuffer) -> TensorDict:
        if broken[0]:
            raise ValueError("the transform broke")
        return batch

    buffer = ReplayBuffer(8, batch_size=3, transforms=transform, prefetch=2)
    with pytest.raises(ConfigError, match="A buffer to sample from must be filled"):
        buffer.sample()
    buffer.extend(numbered(0, 8))
    with pytest.raises(ValueError, match="the transform broke"):
        buffer.sample()
    broken[0] = False
    assert buffer.sample().shape == (3,)  # and nothing of the failures is left
    buffer.close()


def test_a_transform_may_use_the_buffer():
    def transform(batch: TensorDict, rows: Tensor, buffer: ReplayBuffer) -> TensorDict:
        buffer.update_priority(rows, torch.ones(len(rows)))  # does not wait for the thread, which is this one
        if len(depth) < 2:
            depth.append(1)
            assert buffer.sample().shape == (4,)
            depth.pop()
        return batch.set("other", buffer[rows]["number"])

    depth: list[int] = []
    buffer = ReplayBuffer(8, batch_size=4, sampler=PrioritizedSampler(), transforms=transform, prefetch=2)
    buffer.extend(numbered(0, 8))
    for _ in range(3):
        batch = buffer.sample()
        assert torch.equal(batch["other"], batch["number"])
    buffer.close()


def test_transforms_that_read_trajectories():
    def reward(achieved: Tensor, goal: Tensor) -> Tensor:
        return (achieved == goal).all(-1).float()

    def rows(start: int) -> TensorDict:
        number = torch.arange(start, start + 10, dtype=torch.float32).unsqueeze(-1)
        goals = {"achieved_goal": number, "desired_goal": -torch.ones(10, 1), "observation": number}
        inner = {**goals, "achieved_goal": number + 1, "observation": number + 1, "done": number.squeeze(-1) % 5 == 4}
        return TensorDict({**goals, "next": {**inner, "reward": torch.zeros(10)}}, [10])

    def draw() -> list[list[float]]:
        buffer = ReplayBuffer(25, batch_size=6, seed=3, transforms=HER(reward), prefetch=2)
        found = []
        for step in range(6):
            buffer.extend(rows(10 * step))
            found.append(buffer.sample()["desired_goal"].flatten().tolist())
        buffer.close()
        return found

    assert draw() == draw()


def test_objects_are_sampled_ahead_too():
    buffer = ReplayBuffer(ListStorage(5), batch_size=2, prefetch=1, device="cpu")
    buffer.extend(["a", "b"])
    assert set(buffer.sample()) <= {"a", "b"}
    other = ReplayBuffer(ListStorage(5), batch_size=2, prefetch=1)
    other.load_state_dict(buffer.state_dict())
    assert set(other.sample()) <= {"a", "b"}
    for one in (buffer, other):
        one.close()


def test_closing_ends_the_thread_and_sampling_starts_another():
    buffer = ReplayBuffer(5, batch_size=2, prefetch=3)
    buffer.close()
    buffer.extend(numbered(0, 5))
    assert not prefetching()
    buffer.sample()
    assert len(prefetching()) == 1
    buffer.close()
    buffer.close()
    assert not prefetching()
    assert buffer.sample().shape == (2,)
    del buffer  # one that is forgotten ends its thread, too: the fixture looks


def test_processes_that_share_rows_do_not_sample_ahead():
    with pytest.raises(ConfigError, match="prefetch must be 0 where processes share rows; got 2"):
        SharedReplayBuffer(10, batch_size=2, prefetch=2)


def test_samples_are_copied_to_a_device():
    buffer = ReplayBuffer(5, batch_size=2, device="meta", prefetch=1)
    buffer.extend(numbered(0, 5))
    assert buffer.sample()["number"].device.type == "meta"
    buffer.close()


@pytest.mark.cuda
@pytest.mark.parametrize("prefetch", [0, 3])
def test_samples_on_a_gpu_are_whole(prefetch):
    buffer = ReplayBuffer(1000, batch_size=500, device="cuda", prefetch=prefetch, seed=0)
    buffer.extend(numbered(0, 1000))
    for _ in range(50):
        batch = buffer.sample()
        assert {value.device.type for value in batch.values(True, True)} == {"cuda"}
        assert torch.equal(batch["number"], batch["index"])
        assert torch.equal(batch["next", "twice"], 2 * batch["number"])
        del batch
    buffer.close()
