"""From raw files to a memory map: laid out as TED, streamed, whole or not at all, and reopened without the files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from tensordict import TensorDict
from torch.testing import assert_close

from rlbook.datasets import Dataset, File, PublishedDataset, trajectory, write_dataset
from rlbook.datasets import folders as on_disk
from rlbook.errors import ConfigError, MissingKeyError, NonFiniteError, SpecError
from rlbook.replay import ReplayBuffer
from rlbook.replay.slices import SliceSampler

FALSE, TRUE = [False] * 3, [False, False, True]


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float32).unsqueeze(-1)


# ---- one trajectory ------------------------------------------------------------------------------------------------------------
def test_with_the_last_observation_every_transition_is_kept():
    td = trajectory(np.arange(4.0)[:, None], np.array([5, 6, 7], np.uint32), np.ones((3, 1)), np.zeros((3, 1)), TRUE)
    assert_close(td["observation"], column(0, 1, 2))
    assert_close(td["next", "observation"], column(1, 2, 3))
    assert_close(td["action"], torch.tensor([5, 6, 7]))  # uint32 has no arithmetic in torch
    assert_close(td["next", "reward"], torch.ones(3))  # float64 [3, 1] becomes float32 [3]
    assert td["next", "truncated"].tolist() == td["next", "done"].tolist() == TRUE
    assert not td["next", "terminated"].any()
    assert not td["done"].any()


def test_without_the_last_observation_a_trajectory_that_goes_on_loses_its_last_transition():
    td = trajectory(column(0, 1, 2), column(5, 6, 7), [1, 2, 3], FALSE, TRUE, extra={"level": np.array([4, 5, 6])})
    assert_close(td["observation"], column(0, 1))
    assert_close(td["next", "observation"], column(1, 2))
    assert td["next", "reward"].tolist() == [1, 2]
    assert td["next", "truncated"].tolist() == [False, True]  # the data stop here
    assert td["level"].tolist() == [4, 5]


def test_without_the_last_observation_a_terminal_transition_stays():
    td = trajectory(column(0, 1, 2), column(5, 6, 7), [1, 2, 3], TRUE, FALSE)
    assert_close(td["next", "observation"], column(1, 2, 2))
    assert td["next", "terminated"].tolist() == TRUE


def test_a_single_transition_of_which_nothing_is_known_leaves_nothing():
    assert len(trajectory(column(0), column(1), [1.0], [False], [True])) == 0


def test_nested_observations_and_actions():
    observation = {"a": np.zeros((4, 2)), "b": (np.zeros((4, 3, 3), np.uint8), {"c": np.zeros(4, bool)})}
    td = trajectory(observation, {"x": np.zeros(3), "y": np.zeros(3, np.int64)}, np.zeros(3), FALSE, TRUE)
    shapes = {key: (tuple(td[key].shape), td[key].dtype) for key in (("a",), ("b", "0"), ("b", "1", "c"), ("action", "x"))}
    want = [((3, 2), torch.float32), ((3, 3, 3), torch.uint8), ((3,), torch.bool), ((3,), torch.float32)]
    assert list(shapes.values()) == want
    assert td["next", "b", "0"].shape == (3, 3, 3)


def test_entries_of_unequal_length_are_refused():
    with pytest.raises(SpecError, match="action must be of 3 rows, as there are rewards; got 2"):
        trajectory(column(0, 1, 2, 3), column(5, 6), [1, 2, 3], FALSE, TRUE)
    for observation in (column(0, 1), column(0, 1, 2, 3, 4), np.float32(1)):
        with pytest.raises(SpecError, match="observation must be of 3 rows, as there are rewards"):
            trajectory(observation, column(5, 6, 7), [1, 2, 3], FALSE, TRUE)


# ---- a folder ------------------------------------------------------------------------------------------------------------------
def episode(first, length, terminated=True):
    """Observations count from ``first``; the reward is the observation it leads to."""
    end = np.arange(length) == length - 1
    steps = np.arange(first, first + length + 1, dtype=np.float32)
    return trajectory(steps[:, None], np.arange(length), steps[1:], end & terminated, end & (not terminated))


def test_a_written_dataset_samples_like_any_buffer(tmp_path):
    info = write_dataset(tmp_path / "x", [episode(0, 3), episode(10, 2, False)], 5, {"id": "x", "license": "none"})
    data = Dataset(tmp_path / "x", batch_size=64, seed=0)
    assert isinstance(data, ReplayBuffer)
    assert len(data) == info["rows"] == 5
    assert_close(data[:]["observation"], column(0, 1, 2, 10, 11))
    batch = data.sample()
    assert_close(batch["next", "observation"], batch["observation"] + 1)
    assert set(batch["index"].tolist()) == set(range(5))
    # the returns are 1 + 2 + 3 = 6 and 11 + 12 = 23: mean 14.5, standard deviation 8.5
    assert data.episode_returns.tolist() == [6, 23]
    assert data.episode_lengths.tolist() == [3, 2]
    assert data.info["returns"] == {"mean": 14.5, "std": 8.5, "min": 6, "max": 23}
    assert repr(data).startswith("Dataset('x': 5 rows, 2 episodes")
    assert "episode return: 14.5 +- 8.5, from 6 to 23" in repr(data)


def test_slices_stay_in_their_episode(tmp_path):
    write_dataset(tmp_path / "x", [episode(0, 4), episode(10, 4, False), episode(20, 2)], 10, {"id": "x"})
    data = Dataset(tmp_path / "x", sampler=SliceSampler(3), batch_size=200, seed=0)
    first = data.sample()["observation"].squeeze(-1)
    assert_close(first[:, 1:], first[:, :-1] + 1)
    assert set(first[:, 0].tolist()) == {0, 1, 10, 11}  # the two starts of each episode of length 4; the last one is too short


def test_nobody_writes_to_a_dataset(tmp_path):
    write_dataset(tmp_path / "x", [episode(0, 3)], 3, {"id": "x"})
    data = Dataset(tmp_path / "x")
    with pytest.raises(ConfigError):
        data.extend(episode(5, 1))
    with pytest.raises(ConfigError):
        data.clear()
    assert_close(Dataset(tmp_path / "x")[:]["observation"], column(0, 1, 2))


def test_a_checkpoint_goes_on_with_the_same_samples_and_holds_no_rows(tmp_path):
    write_dataset(tmp_path / "x", [episode(0, 100)], 100, {"id": "x"})
    data = Dataset(tmp_path / "x", batch_size=8, seed=0)
    data.sample()
    state = data.state_dict()
    want = data.sample()["index"]
    assert set(state) == {"sampler", "generator"}
    again = Dataset(tmp_path / "x", batch_size=8, seed=1)
    again.load_state_dict(state)
    assert torch.equal(again.sample()["index"], want)


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (lambda td: td.exclude(("next", "truncated")), MissingKeyError, r"\['next.truncated'\]"),
        (lambda td: td.exclude("observation"), MissingKeyError, r"\['observation'\]"),
        (lambda td: td.exclude(("next", "observation")), MissingKeyError, r"\['next.observation'\]"),
        (lambda td: td.exclude("action"), MissingKeyError, r"\['action'\]"),
        (lambda td: td.set(("next", "reward"), td["next", "reward"].unsqueeze(-1)), SpecError, r"of shape \[3\]; got \[3, 1\]"),
        (lambda td: td.set(("next", "reward"), torch.tensor([0, torch.nan, 0])), NonFiniteError, "nan in row 4"),
        (lambda td: td.unsqueeze(0), SpecError, r"of batch size \[T\]; got \[1, 3\]"),
        (lambda td: td[:2], ConfigError, "6, as count.* says; got 5"),
        (lambda td: torch.cat((td, td)), ConfigError, "6, as count.* says; got at least 9"),
        (lambda td: td.set("observation", td["observation"].double()), SpecError, "observation"),
    ],
)
def test_a_wrong_piece_is_explained_and_leaves_what_was_there(tmp_path, damage, error, message):
    path = tmp_path / "x"
    write_dataset(path, [episode(0, 2)], 2, {"id": "x"})
    with pytest.raises(error, match=message):
        write_dataset(path, [episode(0, 3), damage(episode(10, 3))], 6, {"id": "x"})
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    assert_close(Dataset(path)[:]["observation"], column(0, 1))


def test_an_empty_dataset_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'x' must be of at least one transition"):
        write_dataset(tmp_path / "x", [], 0, {"id": "x"})


def test_too_small_a_disk_is_noticed_after_the_first_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    with pytest.raises(ConfigError, match="The disk of"):
        write_dataset(tmp_path / "x", [episode(0, 3)], 3, {"id": "x"})


def test_what_is_no_dataset_is_explained(tmp_path):
    with pytest.raises(ConfigError, match=r"a folder with an info\.json"):
        Dataset(tmp_path)
    (tmp_path / "info.json").write_text('{"format": 0}')
    with pytest.raises(ConfigError, match="of format 1; got 0"):
        Dataset(tmp_path)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 7))
def test_episodes_are_found_over_the_borders_of_blocks(done, block):
    reward = torch.arange(1.0, len(done) + 1)
    want, total, length = [], 0.0, 0
    for r, d in zip(reward.tolist(), done, strict=True):
        total, length = total + r, length + 1
        if d:
            want.append((total, length))
            total, length = 0.0, 0
    rows = {("next", "reward"): reward, ("next", "done"): torch.tensor(done)}
    storage = SimpleNamespace(entry=lambda key, at: rows[key][at])
    got = on_disk.find_episodes(storage, len(done), block)  # type: ignore[arg-type]
    assert [tuple(e) for e in got.T.tolist()] == want


def test_specs_come_from_the_source_or_from_the_rows(tmp_path):
    told = {"observation_space": {"type": "Box", "dtype": "float64", "shape": [1], "low": [0.0], "high": [9.0]}}
    told["action_space"] = {"type": "Discrete", "dtype": "int64", "n": 7, "start": 0}
    write_dataset(tmp_path / "told", [episode(0, 3)], 3, {"id": "x", **told})
    write_dataset(tmp_path / "shown", [episode(0, 3)], 3, {"id": "x"})
    data = Dataset(tmp_path / "told")
    assert repr(data.observation_spec["observation"]) == "Bounded(0, 9, shape=[1])"
    assert data.action_spec.n == 7
    data = Dataset(tmp_path / "shown")
    assert repr(data.observation_spec["observation"]) == "Unbounded(shape=[1])"
    assert data.action_spec.n == 3  # the actions are 0, 1, 2


# ---- a source ------------------------------------------------------------------------------------------------------------------
class Toy(PublishedDataset):
    """A source of .npz files with the first observation and the length of each episode."""

    source = "toy"
    url = ""
    fails_after = 10**9

    @classmethod
    def ids(cls):
        return ["small-v0", "large-v0"]

    def files(self):
        return [File(f"{self.url}/{self.id}.npz")]

    def read(self, paths):
        for i, (first, length) in enumerate(np.load(paths[0])["episodes"]):
            if i == self.fails_after:
                raise KeyboardInterrupt
            yield episode(int(first), int(length))

    def about(self, paths):
        return {"url": self.url, "license": "CC0"}


@pytest.fixture
def toy(folders, monkeypatch):
    """The raw file, put where a download would put it."""
    raw = folders.cache / "toy" / "small-v0" / "raw"
    raw.mkdir(parents=True)
    np.savez(raw / "small-v0.npz", episodes=[(0, 3), (10, 2)])
    return raw / "small-v0.npz"


def test_a_source_is_fetched_converted_once_and_reopened_without_its_files(server, folders, tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", episodes=[(0, 3), (10, 2)])
    server.files["/small-v0.npz"] = (tmp_path / "x.npz").read_bytes()
    monkeypatch.setattr(Toy, "url", server.url)
    data = Toy("small-v0", batch_size=4)
    assert_close(data[:]["observation"], column(0, 1, 2, 10, 11))
    assert data.info | {"source": "toy", "id": "small-v0", "license": "CC0", "rows": 5, "episodes": 2} == data.info
    shutil.rmtree(folders.cache / "toy" / "small-v0" / "raw")
    monkeypatch.setattr(Toy, "read", None)
    again = Toy("small-v0")
    assert_close(again[:]["observation"], column(0, 1, 2, 10, 11))
    assert again.episode_returns.tolist() == [6, 23]
    assert len(server.asked) == 1


def test_a_cache_that_cannot_be_written_to_can_still_be_read(toy, monkeypatch):
    Toy("small-v0")
    monkeypatch.setattr("rlbook.datasets.base.make_folder", lambda folder: pytest.fail("wrote"))
    assert len(Toy("small-v0")) == 5


def test_another_raw_file_is_converted_anew(toy):
    assert len(Toy("small-v0")) == 5
    np.savez(toy, episodes=[(0, 4), (10, 2), (20, 3)])
    assert len(Toy("small-v0")) == 9


@pytest.mark.parametrize("text", ['{"format": 0}', "{", ""])
def test_an_old_or_damaged_conversion_is_made_anew(toy, folders, text):
    Toy("small-v0")
    (folders.cache / "toy" / "small-v0" / "data" / "info.json").write_text(text)
    assert len(Toy("small-v0")) == 5


def test_a_conversion_that_breaks_off_is_done_again(toy, folders, monkeypatch):
    monkeypatch.setattr(Toy, "count", lambda self, paths: 5)
    monkeypatch.setattr(Toy, "fails_after", 1)
    with pytest.raises(KeyboardInterrupt):
        Toy("small-v0")
    assert not (folders.cache / "toy" / "small-v0" / "data").exists()
    monkeypatch.setattr(Toy, "fails_after", 10)
    assert_close(Toy("small-v0")[:]["observation"], column(0, 1, 2, 10, 11))


def test_a_conversion_that_is_killed_is_never_half_used(tmp_path):
    """``os._exit`` runs no clean-up, as a killed process does."""
    program = (
        "import os, pathlib, numpy as np; from rlbook.datasets.base import trajectory, write_dataset\n"
        "def pieces():\n"
        "    yield trajectory(np.zeros((4, 1)), np.zeros(3, int), np.zeros(3), np.zeros(3), np.ones(3))\n"
        "    os._exit(9)\n"
        f"write_dataset(pathlib.Path({str(tmp_path / 'x')!r}), pieces(), 5, {{'id': 'x'}})"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 9
    assert [p.name for p in tmp_path.iterdir()] == [".x.partial"]
    with pytest.raises(ConfigError, match=r"a folder with an info\.json"):
        Dataset(tmp_path / "x")
    write_dataset(tmp_path / "x", [episode(0, 3), episode(10, 2)], 5, {"id": "x"})
    assert_close(Dataset(tmp_path / "x")[:]["observation"], column(0, 1, 2, 10, 11))
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("id, near", [("smal-v0", "Perhaps 'small-v0'"), ("../x", "its name"), ("", "its name"), (3, "its name")])
def test_an_unknown_id_is_explained(id, near):
    with pytest.raises(ConfigError, match=near):
        Toy(id)


def test_a_cache_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="RLBOOK_DATA"):
        Toy("small-v0", root=tmp_path / "file")


def test_tables_need_not_be_transitions(tmp_path):
    table = TensorDict({"x": torch.arange(4.0), "y": torch.arange(4)}, (4,))
    info = write_dataset(tmp_path / "x", [table], 4, {"id": "x"}, transitions=False)
    assert info["episodes"] == 0
    assert "returns" not in json.loads((tmp_path / "x" / "info.json").read_text())
    assert Dataset(tmp_path / "x", batch_size=2).sample().batch_size == (2,)
