"""Several processes write to one buffer: every row that one was told is written is there once, whole, whoever dies."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from rlbook.errors import ConfigError
from rlbook.replay import MemmapStorage, ReplayBuffer, SharedReplayBuffer, TensorStorage, UniformSampler, Writer

FORK = multiprocessing.get_context("fork")
PATIENCE = 60


def steps(writer: int, start: int, stop: int) -> TensorDict:
    """Rows ``[T]`` that name their writer and step, ``100 * writer + t``, in every element of every entry."""
    reward = 100 * writer + torch.arange(start, stop)
    return TensorDict({"reward": reward, "next": {"wide": reward.unsqueeze(-1).expand(-1, 300).float()}}, [stop - start])


def rewards(batch: TensorDict) -> list[int]:
    """The rewards of rows; none is torn."""
    assert bool((batch["next", "wide"] == batch["reward"].unsqueeze(-1)).all()), "torn rows"
    return batch["reward"].tolist()


def in_order(buffer: SharedReplayBuffer) -> list[int]:
    with buffer.turn():
        return rewards(buffer[buffer.in_order()])


def run(*targets) -> None:
    """Run functions in forked processes until all have ended."""
    processes = [FORK.Process(target=target) for target in targets]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0


def write_steps(buffer: SharedReplayBuffer, writer: int) -> None:
    """Write 100 steps, in pieces."""
    rng, t = random.Random(writer), 0
    while t < 100:
        stop = min(100, t + rng.randint(1, 9))
        buffer.extend(steps(writer, t, stop))
        t = stop


class Listener(UniformSampler):
    """Remembers which rows it heard of."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.cleared = 0

    def bind(self, capacity):
        """Count what happens later only."""

    def on_write(self, rows):
        self.heard += torch.arange(10_000)[rows].tolist()

    def clear(self):
        self.heard.clear()
        self.cleared += 1


# ---- writing together ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_three_writers(method):
    buffer = SharedReplayBuffer(1000, batch_size=16)
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=write_steps, args=(buffer, writer)) for writer in range(3)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        if len(buffer):
            rewards(buffer.sample())
        time.sleep(0.01)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = in_order(buffer)
    assert sorted(found) == list(range(300))
    for writer in range(3):  # each one's rows in its order
        assert [reward for reward in found if reward // 100 == writer] == list(range(100 * writer, 100 * writer + 100))
    buffer.check_valid()


def test_a_ring_that_is_too_small():
    buffer = SharedReplayBuffer(120)
    run(*(partial(write_steps, buffer, writer) for writer in range(3)))
    found = in_order(buffer)
    assert len(found) == len(set(found)) == 120
    assert buffer.writer.total == 300
    for writer in range(3):  # the newest of each
        own = [reward for reward in found if reward // 100 == writer]
        assert own == list(range(100 * writer + 100 - len(own), 100 * writer + 100))


def test_the_first_rows_come_from_several_at_once():
    for _ in range(5):
        buffer = SharedReplayBuffer(100)
        run(*(partial(buffer.extend, steps(writer, 0, 4)) for writer in range(3)))
        assert sorted(in_order(buffer)) == [0, 1, 2, 3, 100, 101, 102, 103, 200, 201, 202, 203]


def test_the_sampler_hears_of_what_others_write():
    sampler = Listener()
    buffer = SharedReplayBuffer(10, sampler=sampler, batch_size=2)
    for start, new in [(0, [0, 1, 2, 3]), (4, [4, 5, 6, 7]), (8, [8, 9, 0, 1])]:
        run(lambda start=start: buffer.extend(steps(0, start, start + 4)))
        buffer.sample()
        assert sampler.heard == new
        sampler.heard.clear()
    buffer.extend(steps(0, 12, 14))
    assert sampler.heard == [2, 3]
    run(lambda: [buffer.extend(steps(0, start, start + 5)) for start in (20, 25, 30)])  # more than fits
    sampler.heard.clear()
    assert len(buffer) == 10
    assert sorted(sampler.heard) == list(range(10))
    assert sampler.cleared == 0


def test_clearing_reaches_everyone():
    sampler = Listener()
    buffer = SharedReplayBuffer(10, sampler=sampler)
    buffer.extend(steps(0, 0, 7))
    run(buffer.clear)
    assert len(buffer) == 0
    assert sampler.cleared == 1
    run(lambda: buffer.extend(steps(0, 20, 23)))
    assert in_order(buffer) == [20, 21, 22]
    assert sampler.heard == [0, 1, 2]


def test_a_state_is_taken_back():
    buffer, other = SharedReplayBuffer(10), SharedReplayBuffer(10)
    buffer.extend(steps(0, 0, 17))
    other.load_state_dict(buffer.state_dict())
    assert in_order(other) == list(range(7, 17))
    run(lambda: other.extend(steps(0, 17, 19)))
    assert in_order(other) == list(range(9, 19))
    assert [rewards(batch)[0] for batch in other] == list(range(9, 19))


def test_refused_data_change_nothing():
    buffer = SharedReplayBuffer(10)
    buffer.extend(steps(0, 0, 3))
    with pytest.raises(ValueError, match="must be"):
        buffer.extend(TensorDict({"reward": torch.zeros(2)}, [2]))
    assert in_order(buffer) == [0, 1, 2]


# ---- deaths --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("before", [0, 6, 10, 24])
def test_a_writer_killed_while_it_writes(before, monkeypatch):
    """Capacity 10, ``before`` rows are there; the death costs the rows that it was about to overwrite, and no others."""
    sampler, halfway = Listener(), FORK.Event()
    buffer = SharedReplayBuffer(10, sampler=sampler, batch_size=2)
    if before:
        buffer.extend(steps(0, 0, before))
    whole_write = TensorStorage.write

    def write(self, target, batch, source):
        whole_write(self, target, {"reward": batch["reward"]}, source)
        halfway.set()
        time.sleep(PATIENCE)

    def victim() -> None:
        monkeypatch.setattr(TensorStorage, "write", write)
        buffer.extend(steps(9, 0, 3))

    process = FORK.Process(target=victim)
    process.start()
    assert halfway.wait(PATIENCE)
    process.kill()
    process.join()
    oldest = {0: 0, 6: 0, 10: 3, 24: 17}[before]
    assert in_order(buffer) == list(range(oldest, before))
    assert sorted(set(sampler.heard)) == list(range(before - oldest))  # no row that holds nothing
    run(lambda: buffer.extend(steps(0, before, before + 2)))
    assert in_order(buffer) == list(range(oldest, before + 2))
    assert sampler.cleared == (before >= 10)
    buffer.sample()
    buffer.check_valid()


def test_writers_killed_at_random_moments():
    buffer, rng = SharedReplayBuffer(60, batch_size=8), random.Random(0)
    acknowledged = FORK.Array("q", [0, 0], lock=False)
    started = FORK.Array("q", [0, 0], lock=False)

    def write(writer: int) -> None:
        while True:
            count = 1 + (7 * started[writer]) % 5
            started[writer] += count
            buffer.extend(steps(10_000 * (writer + 1), started[writer] - count, started[writer]))
            acknowledged[writer] = started[writer]

    def start(writer: int):
        process = FORK.Process(target=write, args=(writer,))
        process.start()
        return process

    processes = [start(0), start(1)]
    for _ in range(12):
        time.sleep(rng.uniform(0.005, 0.04))
        victim = rng.randrange(2)
        processes[victim].kill()
        processes[victim].join()
        assert processes[victim].exitcode == -signal.SIGKILL
        with buffer.turn():
            found = in_order(buffer)
            done = list(acknowledged)
        assert len(found) == len(set(found)) <= 60
        for writer in range(2):
            own = [reward - 1_000_000 * (writer + 1) for reward in found if reward // 1_000_000 == writer + 1]
            assert own == sorted(own)
            if own:  # no gap in what was acknowledged; rows whose writer died before it was told may be there or not
                assert own[-1] >= done[writer] - 1
        if found:
            rewards(buffer.sample())
        processes[victim] = start(victim)
    for process in processes:
        process.kill()
        process.join()


# ---- where rows are ------------------------------------------------------------------------------------------------------------
def test_rows_on_disk(tmp_path):
    buffer = SharedReplayBuffer(MemmapStorage(1000, tmp_path / "rows"))
    run(*(partial(write_steps, buffer, writer) for writer in range(2)))
    buffer.flush()
    with pytest.raises(ConfigError, match=r"must be free; got those that process \d+ writes"):
        MemmapStorage.open(tmp_path / "rows")
    assert len(ReplayBuffer(MemmapStorage.open(tmp_path / "rows", readonly=True))) == 200
    del buffer
    again = SharedReplayBuffer(MemmapStorage.open(tmp_path / "rows"))
    run(lambda: write_steps(again, 2))
    assert sorted(in_order(again)) == list(range(300))


def test_shared_memory_is_freed():
    buffer = SharedReplayBuffer(10)
    folder = buffer.storage.path.parent
    run(partial(buffer.extend, steps(0, 0, 3)))
    assert folder.is_dir()
    del buffer
    assert not folder.exists()


def test_what_outlives_its_maker_is_explained():
    buffer = SharedReplayBuffer(10)
    buffer.extend(steps(0, 0, 3))
    copy = pickle.loads(pickle.dumps(buffer))
    assert in_order(copy) == [0, 1, 2]
    del buffer
    with pytest.raises(ConfigError, match=r"nothing there any more. Rows in shared memory end with the process that made them"):
        copy.extend(steps(0, 3, 4))


def test_too_little_shared_memory():
    buffer = SharedReplayBuffer(10**11)
    with pytest.raises(ConfigError, match=r"The free space in .* must be .* bytes; got"):
        buffer.extend(steps(0, 0, 3))
    assert os.listdir(buffer.storage.path.parent) == []
    assert len(buffer) == 0


def test_what_cannot_be_shared(tmp_path):
    class Other(Writer):
        def place(self, batch, count, streams):
            yield slice(0, count), slice(0, count)

    with pytest.raises(ConfigError, match="The storage to share must be a MemmapStorage; got TensorStorage"):
        SharedReplayBuffer(TensorStorage(10))
    with pytest.raises(ConfigError, match="must be a RingWriter; got Other"):
        SharedReplayBuffer(10, writer=Other())
    ReplayBuffer(MemmapStorage(10, tmp_path / "rows")).extend(steps(0, 0, 3))
    with pytest.raises(ConfigError, match="must be open for writing"):
        SharedReplayBuffer(MemmapStorage.open(Path(tmp_path / "rows"), readonly=True))
