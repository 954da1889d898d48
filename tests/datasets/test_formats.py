"""The readers of V-D4RL, GenDGRL, RoboSet, Open X-Embodiment, OpenML, Atari DQN replay and LeRobot, on files in their layouts."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import dataset_formats as formats
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rlbook.datasets import VD4RL, AtariDQN, DownloadError, GenDGRL, LeRobot, OpenML, OpenX, Roboset
from rlbook.errors import ConfigError, SpecError


def raw(root: Path, dataset: str) -> Path:
    return root / dataset / "raw"


def whole(data):
    """All rows in the order of time."""
    return data[data.in_order()]


def times(lengths):
    """The steps of episodes one after the other, and whether each is the last of its episode."""
    steps = torch.cat([torch.arange(length) for length in lengths])
    return steps, torch.cat([torch.arange(length) == length - 1 for length in lengths])


# ---- V-D4RL ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("terminal", [False, True])
def test_vd4rl_64px_takes_action_and_reward_from_the_row_that_follows(tmp_path, terminal):
    formats.vd4rl_64(raw(tmp_path, "vd4rl/main/walker_walk/expert/64px"), [3, 4], terminal)
    data = VD4RL("main/walker_walk/expert/64px", root=tmp_path)
    td, (steps, last) = whole(data), times([3, 4])
    assert td["pixels"].shape == (7, 64, 64, 3)
    assert_close(td["pixels"][:, 0, 0, 0].long(), steps)
    assert_close(td["next", "pixels"][:, 5, 5, 1].long(), steps + 1)
    assert_close(td["action"][:, 0].long(), steps + 1)
    assert_close(td["next", "reward"], 100.0 * (steps + 1))
    assert_close(td["height"].long(), steps)
    assert_close(td["next", "done"], last)
    assert_close(td["next", "terminated"], last & terminal)
    assert data.info["episodes"] == 2


def test_vd4rl_84px_cuts_one_file_into_its_episodes(tmp_path):
    formats.vd4rl_84(raw(tmp_path, "vd4rl/main/cheetah_run/medium/84px"), [2, 5, 1])
    td, (steps, last) = whole(VD4RL("main/cheetah_run/medium/84px", root=tmp_path)), times([2, 5, 1])
    assert td["pixels"].shape == (8, 3, 84, 84)
    assert_close(td["pixels"][:, 2, 0, 0].long(), steps)
    assert_close(td["action"][:, 1].long(), -(steps + 1))
    assert_close(td["next", "truncated"], last)


def test_vd4rl_explains_a_file_cut_short(tmp_path):
    folder = raw(tmp_path, "vd4rl/main/walker_walk/expert/64px")
    formats.vd4rl_64(folder, [3])
    file = next(folder.iterdir())
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(SpecError, match=r"a whole \.npz file"):
        VD4RL("main/walker_walk/expert/64px", root=tmp_path)


def test_vd4rl_explains_its_ids(tmp_path):
    with pytest.raises(ConfigError, match="walker_walk/expert/64px"):
        VD4RL("walker", root=tmp_path)


# ---- the Hub ---------------------------------------------------------------------------------------------------------------
def test_a_folder_of_the_hub_is_listed_and_fetched(tmp_path, monkeypatch):
    import rlbook.datasets.hub as hub

    formats.roboset_h5(tmp_path / "server" / "DAPG(expert)" / "door_v2d-v1" / "seed0.h5", [4])
    asked = []

    def fetch(file, folder):
        asked.append(file.url)
        path = folder / file.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.file_name == "listing.json":
            entries = [{"type": "file", "path": "DAPG(expert)/door_v2d-v1/" + name} for name in ("seed0.h5", "readme.md")]
            path.write_text(json.dumps([*entries, {"type": "directory", "path": "DAPG(expert)/door_v2d-v1/more"}]))
        else:
            shutil.copy(tmp_path / "server" / "DAPG(expert)" / "door_v2d-v1" / file.file_name, path)
        return path

    monkeypatch.setattr(hub, "fetch", fetch)
    data = Roboset("DAPG(expert)/door_v2d-v1", root=tmp_path)
    assert len(data) == 3
    assert asked == [
        "https://huggingface.co/api/datasets/jdvakil/RoboSet_Sim/tree/main/DAPG%28expert%29/door_v2d-v1?recursive=true",
        "https://huggingface.co/datasets/jdvakil/RoboSet_Sim/resolve/main/DAPG%28expert%29/door_v2d-v1/seed0.h5",
    ]


# ---- GenDGRL ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("npz", [False, True])
def test_gen_dgrl_reads_pickled_and_plain_trajectories(tmp_path, npz):
    formats.gen_dgrl_tar(raw(tmp_path, "gen_dgrl/bigfish-1M_E") / "bigfish.tar.xz", [3, 5], npz=npz)
    td, (steps, last) = whole(GenDGRL("bigfish-1M_E", root=tmp_path)), times([3, 5])
    assert td["observation"].shape == (8, 3, 64, 64)
    assert td["observation"].dtype == torch.uint8
    assert_close(td["next", "observation"][:, 0, 0, 0].long(), steps + 1)
    assert_close(td["action"], steps)
    assert_close(td["next", "reward"], 100.0 * steps)
    assert_close(td["next", "terminated"], last)


class Malicious:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/should_not_exist",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    formats.gen_dgrl_tar(raw(tmp_path, "gen_dgrl/maze-1M_S") / "maze.tar.xz", [3], payload={"observations": Malicious()})
    with pytest.raises(SpecError, match=r"wants to call \w+.system"):
        GenDGRL("maze-1M_S", root=tmp_path)
    formats.open_x_tar(raw(tmp_path, "open_x/toy") / "toy_00000.tar", [3], payload=Malicious())
    with pytest.raises(SpecError, match="plain data"):
        OpenX("toy", root=tmp_path)


def test_gen_dgrl_explains_bad_archives_and_ids(tmp_path):
    path = raw(tmp_path, "gen_dgrl/bigfish-1M_E") / "bigfish.tar.xz"
    formats.gen_dgrl_tar(path, [3])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SpecError, match=r"tar\.xz archive"):
        GenDGRL("bigfish-1M_E", root=tmp_path)
    with pytest.raises(ConfigError, match="bigfish-1M_E"):
        GenDGRL("bigfish-1M", root=tmp_path)


# ---- RoboSet ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("done", [False, True])
def test_roboset_invents_no_observation(tmp_path, done):
    folder = raw(tmp_path, "roboset/DAPG(expert)/door_v2d-v1")
    formats.roboset_h5(folder / "seed0.h5", [4, 3], done=done)
    formats.roboset_h5(folder / "seed1.h5", [5], done=done)
    td = whole(Roboset("DAPG(expert)/door_v2d-v1", root=tmp_path))
    steps, last = times([4, 3, 5] if done else [3, 2, 4])  # without done the last transition has no next observation
    assert td["observation"].dtype == torch.float32
    assert_close(td["observation"][:, 0].long(), steps)
    assert_close(td["next", "done"], last)
    assert_close(td["next", "terminated"], last & done)
    alive = ~td["next", "terminated"]
    assert_close(td["next", "observation"][alive, 0].long(), steps[alive] + 1)
    assert_close(td["seed"].unique(), torch.tensor([0, 1]))
    assert_close(td["info", "obs_dict", "hand_jnt"][:, 1].long(), steps)
    assert ("info", "name") not in td.keys(True)


def test_roboset_names_what_a_trial_lacks(tmp_path):
    import h5py

    folder = raw(tmp_path, "roboset/x")
    formats.roboset_h5(folder / "a.h5", [3])
    with h5py.File(folder / "a.h5", "a") as file:
        del file["Trial0/rewards"]
    with pytest.raises(SpecError, match="rewards"):
        Roboset("x", root=tmp_path)


# ---- Open X-Embodiment -----------------------------------------------------------------------------------------------------
def test_open_x_makes_t_transitions_of_t_plus_1_steps(tmp_path):
    folder = raw(tmp_path, "open_x/toy")
    formats.open_x_tar(folder / "toy_00000.tar", [3, 2])
    formats.open_x_tar(folder / "toy_00001.tar", [4], terminal=False)
    data = OpenX("toy", root=tmp_path)
    td, (steps, last) = whole(data), times([3, 2, 4])
    assert_close(td["image"][:, 0, 0, 0].long(), steps)
    assert_close(td["next", "image"][:, 7, 7, 2].long(), steps + 1)
    assert_close(td["next", "state"][:, 0].long(), steps + 1)
    assert_close(td["action", "world_vector"][:, 0].long(), steps)
    assert td["action", "open_gripper"].dtype == torch.bool
    assert_close(td["next", "done"], last)
    assert td["next", "terminated"].sum() == 2
    assert "note" not in td.keys()
    assert data.info["instructions"] == {"task 0": 0, "task 1": 1}
    assert_close(td["instruction"], torch.tensor([0, 0, 0, 1, 1, 0, 0, 0, 0]))


# ---- Atari DQN -------------------------------------------------------------------------------------------------------------
def test_atari_dqn_cuts_the_ring_at_its_cursor(tmp_path, monkeypatch):
    import rlbook.datasets.atari_dqn as module

    monkeypatch.setattr(module, "ROWS", 7)  # many pieces
    terminal = np.zeros(60, bool)
    terminal[[9, 10, 31, 49]] = True
    formats.atari_dqn_shard(raw(tmp_path, "atari_dqn/Pong/1/0"), 0, terminal, add_count=120 + 24)
    data = AtariDQN("Pong/1/0", root=tmp_path)
    td = whole(data)
    # games 0-9, 10, 11-23 (cut: 23 has no next frame), 24-31, 32-49, 50-59 (cut as well)
    kept = torch.tensor([t for t in range(60) if t not in (23, 59)])
    assert_close(td["pixels"][:, 0, 0].long(), kept)
    assert_close(td["action"], kept % 6)
    assert_close(td["next", "terminated"], torch.from_numpy(terminal)[kept])
    assert_close(kept[td["next", "truncated"]], torch.tensor([22, 58]))
    alive = ~td["next", "terminated"]
    assert_close(td["next", "pixels"][alive, 3, 3].long(), kept[alive] + 1)
    assert data.info["episodes"] == 6


def test_atari_dqn_reads_several_shards_and_explains_damage(tmp_path):
    folder = raw(tmp_path, "atari_dqn/Pong/2/3-4")
    for shard in (3, 4):
        formats.atari_dqn_shard(folder, shard, np.arange(20) == 19, add_count=0)
    assert len(AtariDQN("Pong/2/3-4", root=tmp_path)) == 40
    path = raw(tmp_path, "atari_dqn/Pong/2/3")
    formats.atari_dqn_shard(path, 3, np.arange(20) == 19, add_count=0)
    damaged = path / "$store$_reward_ckpt.3.gz"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(SpecError, match="reward"):
        AtariDQN("Pong/2/3", root=tmp_path)
    with pytest.raises(ConfigError, match="Pong/1/0"):
        AtariDQN("Pong", root=tmp_path)


# ---- OpenML ----------------------------------------------------------------------------------------------------------------
def openml_server(monkeypatch):
    """Answer scikit-learn's requests with the real responses that it ships for its own tests."""
    import sklearn.datasets.tests.test_openml as fixtures

    return lambda id: fixtures._monkey_patch_webbased_functions(monkeypatch, id, gzip_response=True)


@pytest.mark.skipif(find_spec("sklearn") is None, reason="needs scikit-learn")
def test_openml_turns_a_table_into_numbers(tmp_path, monkeypatch):
    openml_server(monkeypatch)(61)
    data = OpenML("iris", root=tmp_path)
    td = whole(data)
    assert td["observation"].shape == (150, 4)
    assert_close(td["observation"].mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert_close(td["observation"].std(0, correction=0), torch.ones(4), atol=1e-5, rtol=0)
    assert td["label"].bincount().tolist() == [50, 50, 50]
    assert data.info["table"]["classes"][0] == "Iris-setosa"
    assert data.sample(16)["label"].shape == (16,)


@pytest.mark.skipif(find_spec("sklearn") is None, reason="needs scikit-learn")
def test_openml_gives_each_category_its_number(tmp_path, monkeypatch):
    openml_server(monkeypatch)(40945)  # Titanic: categories, numbers, text and missing values
    data = OpenML("40945", root=tmp_path)
    assert torch.isfinite(whole(data)["observation"]).all()
    names = data.info["table"]["features"]
    assert {"sex=female", "sex=male", "age"} <= set(names)
    assert_close(
        whole(data)["observation"][:, names.index("sex=male")].sum(), torch.tensor(843.0)
    )  # as in the table's own summary


@pytest.mark.skipif(find_spec("sklearn") is None, reason="needs scikit-learn")
def test_openml_offline_says_what_to_do(tmp_path, monkeypatch):
    import sklearn.datasets

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", offline)
    with pytest.raises(DownloadError, match="Go online"):
        OpenML("iris", root=tmp_path)


# ---- LeRobot ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_reads_tables_pictures_and_films(tmp_path, version, video):
    formats.lerobot(raw(tmp_path, "lerobot/someone/toy"), [4, 6, 3], [True, False, True], version=version, video=video)
    data = LeRobot("someone/toy", root=tmp_path)
    td, (steps, last) = whole(data), times([4, 5, 3])  # the second episode does not terminate: its last observation is lost
    assert_close(td["state"][:, 0].long(), steps)
    assert_close(td["action"][:, 0].long(), steps)
    assert_close(td["next", "reward"], 100.0 * steps)
    assert_close(td["next", "done"], last)
    assert_close(td["next", "terminated"].nonzero().squeeze(-1), torch.tensor([3, 11]))
    assert_close(td["task_index"], torch.tensor([0] * 4 + [1] * 5 + [0] * 3))
    gray = td["image"].float().mean((1, 2, 3))
    expected = 16 + 4.0 * steps if video else steps.float()
    assert_close(gray, expected, atol=1.5 if video else 0.0, rtol=0)
    alive = ~td["next", "terminated"]
    assert_close(td["next", "image"].float().mean((1, 2, 3))[alive], (expected + (4 if video else 1))[alive], atol=1.5, rtol=0)
    assert data.info["tasks"] == {"0": "task 0", "1": "task 1"}
    assert data.info["fps"] == 10


def test_lerobot_explains_a_damaged_table(tmp_path):
    folder = raw(tmp_path, "lerobot/someone/toy")
    formats.lerobot(folder, [4], [True], version="v2.1", video=False)
    (folder / "data/chunk-000/episode_000000.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(SpecError, match="Parquet"):
        LeRobot("someone/toy", root=tmp_path)
