"""The buffer: it holds what a list would hold, whatever is done to it, and is saved whole."""

from __future__ import annotations

import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor, nn

from rlbook import CartPole
from rlbook.errors import ConfigError, SpecError
from rlbook.replay import (
    ImmutableWriter,
    ListStorage,
    MemmapStorage,
    PrioritizedSampler,
    RankSampler,
    ReplayBuffer,
    RingWriter,
    TensorStorage,
    WithoutReplacementSampler,
)
from rlbook.replay.buffer import FILE


def steps(num_envs: int, start: int, stop: int) -> TensorDict:
    """Steps ``[N, T]`` of which every entry tells the number ``1000 env + time``."""
    number = 1000 * torch.arange(num_envs).unsqueeze(-1) + torch.arange(start, stop)
    wide = number.unsqueeze(-1).repeat(1, 1, 3)
    inner = {"observation": wide + 0.5, "done": number % 3 == 0, "reward": -number.double()}
    return TensorDict({"observation": wide.float(), "number": number, "next": inner}, number.shape)


def check_rows(rows: TensorDict) -> None:
    """Check that the entries of every row tell the same number."""
    number = rows["number"]
    assert torch.equal(rows["observation"], number.unsqueeze(-1).expand(*number.shape, 3).float())
    assert torch.equal(rows["next", "observation"], rows["observation"] + 0.5)
    assert torch.equal(rows["next", "reward"], -number.double())
    assert torch.equal(rows["next", "done"], number % 3 == 0)


ACTIONS = st.one_of(st.integers(0, 9), st.sampled_from(["add", "sample", "clear", "state", "save"]))


@given(st.integers(1, 3), st.integers(3, 13), st.integers(0, 2), st.lists(ACTIONS, max_size=12))
@settings(max_examples=60)
def test_a_buffer_is_a_list_of_the_newest(tmp_path_factory, num_envs, capacity, prefetch, actions):
    def make(seed: int) -> ReplayBuffer:
        return ReplayBuffer(capacity, batch_size=4, seed=seed, prefetch=prefetch)

    buffer, model, time = make(0), [], 0
    steps_of_all: list[list[int]] = []  # since the buffer was empty: what is sampled ahead may be older than the model
    for action in actions:
        if isinstance(action, int) or action == "add":
            count = action if isinstance(action, int) else 1
            data = steps(num_envs, time, time + count)
            buffer.extend(data if num_envs > 1 else data[0])
            model += [[1000 * env + t for env in range(num_envs)] for t in range(time, time + count)]
            steps_of_all += model[len(model) - count :]
            time += count
        elif action == "clear":
            buffer.clear()
            model, steps_of_all = [], []
        elif action == "sample" and model:
            batch = buffer.sample()
            check_rows(batch)
            assert set(batch["number"].tolist()) <= {number for step in steps_of_all for number in step}
        elif action in ("state", "save"):
            before, buffer = buffer, make(1)
            if action == "state":
                buffer.load_state_dict(before.state_dict())
            else:
                before.save(path := tmp_path_factory.mktemp("buffer"))
                buffer.load(path)
            for _ in range(4 if len(before) else 0):
                assert (buffer.sample() == before.sample()).all()
            before.close()
        newest = model[-(capacity // num_envs) :]
        buffer.check_valid()
        assert len(buffer) == num_envs * len(newest)
        if newest:
            rows = buffer[buffer.in_order()]
            check_rows(rows)
            assert rows["number"].tolist() == [number for step in newest for number in step]
            assert torch.cat([part["number"] for part in buffer]).tolist() == rows["number"].tolist()
    buffer.close()


def test_every_row_is_drawn_alike():
    buffer = ReplayBuffer(40, batch_size=1000, seed=0)
    buffer.extend(steps(2, 0, 35))
    counts = sum(torch.bincount(buffer.sample()["index"], minlength=40) for _ in range(20))
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert 10 < chi_square < 80  # 39 degrees of freedom: mean 39, deviation 9


def test_a_seed_decides_the_samples():
    def draw(seed: int | None) -> list[int]:
        buffer = ReplayBuffer(100, batch_size=8, seed=seed)
        buffer.extend(steps(1, 0, 100)[0])
        return [row for _ in range(3) for row in buffer.sample()["index"].tolist()]

    assert draw(1) == draw(1) != draw(2)
    torch.manual_seed(5)
    expected = draw(None)
    torch.manual_seed(5)
    draw(3)  # leaves torch's generator alone
    assert draw(None) == expected


def test_a_sample_says_where_it_is_from():
    buffer = ReplayBuffer(9, batch_size=5)
    buffer.extend(steps(1, 0, 20)[0])
    batch = buffer.sample()
    check_rows(batch)
    assert batch.batch_size == (5,)
    assert torch.equal(buffer[batch["index"]]["number"], batch["number"])
    assert buffer.sample(2).batch_size == (2,)


def test_extend_says_where_rows_went():
    buffer = ReplayBuffer(5)
    assert buffer.extend(steps(1, 0, 3)[0]) == [slice(0, 3)]
    assert buffer.extend(steps(1, 3, 6)[0]) == [slice(3, 5), slice(0, 1)]
    assert buffer.extend(steps(1, 6, 20)[0]) == [slice(0, 5)]  # row 15 of all lies where row 0 did
    assert buffer[buffer.in_order()]["number"].tolist() == list(range(15, 20))


def test_rows_by_index():
    buffer = ReplayBuffer(10)
    buffer.extend(steps(1, 0, 7)[0])
    assert buffer[3]["number"] == 3
    assert buffer[-1]["number"] == 6
    assert buffer[2:5]["number"].tolist() == [2, 3, 4]
    assert buffer[torch.tensor([[1, 2], [5, 6]])]["number"].tolist() == [[1, 2], [5, 6]]
    assert buffer[[6, 0]]["number"].tolist() == [6, 0]
    with pytest.raises(IndexError):
        buffer[7]


def test_transforms_are_applied_in_order():
    def double(batch: TensorDict, rows: Tensor, buffer: ReplayBuffer) -> TensorDict:
        return batch.set("twice", 2 * batch["number"])

    def check(batch: TensorDict, rows: Tensor, buffer: ReplayBuffer) -> TensorDict:
        assert torch.equal(batch["twice"], 2 * buffer[rows]["number"])
        return batch.exclude("number")

    buffer = ReplayBuffer(10, transforms=[double, check], batch_size=4)
    buffer.extend(steps(1, 0, 10)[0])
    assert "number" not in buffer.sample().keys()
    assert ReplayBuffer(10, transforms=double).transforms == [double]


def test_the_printed_buffer_says_what_it_holds():
    buffer = ReplayBuffer(1000)
    assert repr(buffer) == "ReplayBuffer(0 of 1,000 rows, 0.0 MiB; TensorStorage, UniformSampler(), RingWriter)"
    buffer.extend(steps(2, 0, 5))
    lines = repr(buffer).split("\n")
    assert lines[0].startswith("ReplayBuffer(10 of 1,000 rows, 0.0 MiB")
    assert set(lines[1:]) == {
        "    observation: float32 [3]",
        "    number: int64 []",
        "    next.observation: float32 [3]",
        "    next.done: bool []",
        "    next.reward: float64 []",
    }


# ---- mistakes ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mistake", "match"),
    [
        (lambda: ReplayBuffer(0), "capacity must be a positive integer; got 0"),
        (lambda: ReplayBuffer(1e5), "capacity must be a positive integer; got 100000.0"),
        (lambda: ReplayBuffer(5, batch_size=0), "batch_size must be a positive integer; got 0"),
        (lambda: ReplayBuffer(5, batch_size=2.0), "batch_size must be a positive integer; got 2.0"),
        (lambda: ReplayBuffer(5).sample(), "batch_size must be a positive integer; got None. Pass it here"),
        (lambda: ReplayBuffer(5, batch_size=2).sample(), "A buffer to sample from must be filled; got an empty one"),
        (lambda: ReplayBuffer(5, batch_size=2).sample(-1), "batch_size must be a positive integer; got -1"),
        (lambda: ReplayBuffer(5, seed=-1), r"seed must be an integer in \[0, 2\*\*32\)"),
        (lambda: ReplayBuffer(5, prefetch=2), "prefetch must be an integer >= 0, beside a batch_size; got prefetch=2"),
        (lambda: ReplayBuffer(5, batch_size=2, prefetch=-1), "prefetch must be an integer >= 0"),
        (lambda: ReplayBuffer(5).update_priority(torch.zeros(0), torch.zeros(0)), "one with priorities; got UniformSampler"),
        (lambda: ReplayBuffer(5).load("/nowhere"), f"a folder with {FILE}; got /nowhere"),
    ],
)
def test_mistakes_are_explained(mistake, match):
    with pytest.raises(ConfigError, match=match):
        mistake()


def test_a_state_that_does_not_fit_changes_nothing():
    buffer, other = ReplayBuffer(8, sampler=PrioritizedSampler()), ReplayBuffer(8, sampler=PrioritizedSampler())
    buffer.extend(steps(1, 0, 6)[0])
    other.extend(steps(1, 0, 3)[0].exclude("next"))
    state = buffer.state_dict()
    before = other[:].clone()
    with pytest.raises(SpecError, match="Rows to load must be of the entries"):
        other.load_state_dict(state)
    other.check_valid()
    assert (other[:] == before).all()


# ---- saving ------------------------------------------------------------------------------------------------------------------
def test_another_process_goes_on(tmp_path):
    make = "ReplayBuffer(20, sampler=PrioritizedSampler(), batch_size=4, seed={})"
    buffer = eval(make.format(0))
    buffer.extend(steps(2, 0, 15))
    buffer.update_priority(torch.arange(20), torch.rand(20))
    buffer.save(tmp_path / "deep" / "folder")
    code = f"""
from rlbook.replay import PrioritizedSampler, ReplayBuffer
buffer = {make.format(9)}.load({str(tmp_path / "deep" / "folder")!r})
buffer.check_valid()
print([buffer.sample()["number"].tolist() for _ in range(3)])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == str([buffer.sample()["number"].tolist() for _ in range(3)])


def test_a_file_is_as_large_as_the_rows(tmp_path):
    buffer = ReplayBuffer(100_000)
    buffer.extend(steps(1, 0, 100)[0])
    buffer.save(tmp_path)
    assert (tmp_path / FILE).stat().st_size < 20_000
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_a_damaged_file_is_explained(tmp_path):
    buffer = ReplayBuffer(10)
    buffer.extend(steps(1, 0, 10)[0])
    buffer.save(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / FILE} must be tensors and plain objects")):
        buffer.load(tmp_path)
    assert len(buffer) == 10


def test_who_fails_to_save_keeps_what_was_there(tmp_path, monkeypatch):
    buffer = ReplayBuffer(10)
    buffer.extend(steps(1, 0, 10)[0])
    buffer.save(tmp_path)
    before = (tmp_path / FILE).read_bytes()

    def full(state, file):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        buffer.save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_rows_on_disk_are_saved_too(tmp_path):
    buffer = ReplayBuffer(MemmapStorage(10, tmp_path / "rows"), batch_size=3, seed=0)
    buffer.extend(steps(1, 0, 14)[0])
    buffer.save(tmp_path / "saved")
    other = ReplayBuffer(TensorStorage(10), batch_size=3).load(tmp_path / "saved")
    assert other[other.in_order()]["number"].tolist() == list(range(4, 14))


@pytest.mark.parametrize("sampler", [PrioritizedSampler, RankSampler])
def test_rows_without_data_get_no_priority(sampler):
    buffer = ReplayBuffer(8, sampler=sampler(), batch_size=4)
    buffer.extend(steps(1, 0, 6)[0])
    batch = buffer.sample()
    buffer.clear()
    buffer.extend(steps(1, 0, 2)[0])
    for rows in (torch.tensor([0, 2]), torch.tensor([-1, 0])):
        with pytest.raises(SpecError, match=r"rows must be in \[0, 2\), those that hold data"):
            buffer.update_priority(rows, torch.ones(2))
    assert len(batch) == 4
    assert set(buffer.sample(64)["index"].tolist()) == {0, 1}


@pytest.mark.parametrize(("sampler", "match"), [(PrioritizedSampler(), "without 'highest'"), (None, "without 'writer'")])
def test_the_state_of_another_kind_of_buffer_is_explained(sampler, match):
    buffer, other = ReplayBuffer(8, sampler=sampler), ReplayBuffer(8)
    other.extend(steps(1, 0, 6)[0])
    with pytest.raises(ConfigError, match=f"A state to load must be of a buffer like this one; got one {match}"):
        buffer.load_state_dict(other.state_dict() if sampler else {})
    assert not len(buffer)


def test_ranks_of_another_capacity_are_refused():
    buffer, other = ReplayBuffer(8, sampler=RankSampler()), ReplayBuffer(9, sampler=RankSampler())
    buffer.extend(steps(1, 0, 6)[0])
    with pytest.raises(ConfigError, match="Saved priorities must be of 9 rows; got of 8"):
        other.load_state_dict(buffer.state_dict())


# ---- threads -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prefetch", [0, 2])
def test_threads_that_write_and_sample_at_once(prefetch):
    buffer = ReplayBuffer(64, batch_size=32, prefetch=prefetch)
    buffer.extend(steps(1, 0, 64)[0])
    data, errors, stop = [steps(1, start, start + 7)[0] for start in range(0, 700, 7)], [], threading.Event()

    def write() -> None:
        try:
            for rows in data * 5:
                buffer.extend(rows)
        except Exception as error:  # shown by the test
            errors.append(error)

    def sample() -> None:
        try:
            while not stop.is_set():
                check_rows(buffer.sample())
        except Exception as error:
            errors.append(error)

    writers, readers = [threading.Thread(target=write) for _ in range(2)], [threading.Thread(target=sample) for _ in range(2)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join(60)
    stop.set()
    for thread in readers:
        thread.join(60)
    buffer.close()
    assert not errors
    assert not any(thread.is_alive() for thread in writers + readers)
    assert buffer.writer.total == 64 + 2 * 5 * 700
    buffer.check_valid()
    check_rows(buffer[:])


def test_what_is_read_while_a_thread_writes_is_whole(tmp_path):
    """Every time step fills the ring with one number, in an entry that is written early and one that is written late."""
    buffer, stop = ReplayBuffer(256), threading.Event()

    def write() -> None:
        number = 0.0
        while not stop.is_set():
            number += 1
            rows = torch.full((256, 500), number)
            buffer.extend(TensorDict({"a": rows[:, 0].long(), "b": rows}, [256]))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        while not len(buffer):
            pass
        for read in [lambda: buffer[:]] * 100 + [lambda: next(iter(buffer)), lambda: saved(buffer, tmp_path)] * 5:
            rows = read()
            assert (rows["a"].unsqueeze(-1) == rows["b"]).all()
            assert (rows["a"].flatten()[0] == rows["a"]).all()
    finally:
        stop.set()
        thread.join(60)


def saved(buffer: ReplayBuffer, path) -> TensorDict:
    """Save a buffer and return the rows of the file."""
    buffer.save(path)
    return ReplayBuffer(256).load(path)[:]


def test_a_sampler_and_a_writer_serve_the_last_buffer_they_were_given_to():
    sampler, writer = PrioritizedSampler(), RingWriter()
    first = ReplayBuffer(50, sampler=sampler, writer=writer, seed=0)
    first.extend(TensorDict({"observation": torch.arange(20.0)}, [20]))
    second = ReplayBuffer(50, sampler=sampler, writer=writer, seed=0)
    second.extend(TensorDict({"observation": torch.arange(2.0)}, [2]))
    assert len(second) == 2
    assert second.sample(100)["index"].max() == 1


def test_numbers_of_hand_written_loops_mix():
    buffer = ReplayBuffer(10, batch_size=2)
    for reward in (np.float64(0.5), 1.0, 2, True, np.float32(3)):
        buffer.add({"reward": reward})
    assert buffer[:]["reward"].tolist() == [0.5, 1, 2, 1, 3]
    assert buffer[:]["reward"].dtype == torch.float32


def test_no_graph_enters_a_buffer():
    weight, buffer = nn.Parameter(torch.ones(1)), ReplayBuffer(10, batch_size=2)
    buffer.extend(TensorDict({"x": torch.ones(3, 2, dtype=torch.bfloat16), "lp": weight * torch.ones(3)}, [3]))
    assert not buffer.sample()["lp"].requires_grad


def test_a_buffer_that_refuses_to_be_cleared_keeps_its_rows():
    filled, buffer = ReplayBuffer(ListStorage(4)), ReplayBuffer(ListStorage(4), writer=ImmutableWriter())
    filled.extend([1, 2])
    buffer.load_state_dict(filled.state_dict())
    with pytest.raises(ConfigError, match="A buffer to write to must be one that can change"):
        buffer.clear()
    assert buffer[:] == [1, 2]


def test_what_was_ordered_too_early_is_ordered_again():
    sampler = WithoutReplacementSampler(consume=True)
    buffer = ReplayBuffer(64, sampler=sampler, batch_size=32, prefetch=2)
    for seed in range(2):
        buffer.extend(CartPole(num_envs=4, seed=seed).rollout(16))
        assert len(torch.cat([buffer.sample()["index"] for _ in range(2)]).unique()) == 64
