"""Minari's layout: what rlbook writes the package loads, and what the package's layout holds rlbook reads."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.testing import assert_close

from rlbook import CartPole, GymEnv
from rlbook.datasets import Dataset, DownloadError, Minari, record, to_minari, trajectory, write_dataset
from rlbook.datasets.minari import write_value
from rlbook.datasets.spaces import from_json, to_json
from rlbook.errors import ConfigError, MissingExtraError, SpecError

h5py = pytest.importorskip("h5py")
BOX = spaces.Box(-1, 1, (2,), np.float64)


def write(root, episodes, observation_space, action_space, id="test/toy-v0", jpeg=True, **meta):
    """Write Minari's HDF5 layout by hand, from dictionaries of arrays: one per episode."""
    folder = root / id / "data"
    folder.mkdir(parents=True)
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for i, episode in enumerate(episodes):
            group = file.create_group(f"episode_{i}")
            for name, value in episode.items():
                write_value(group, name, value)
    meta = {"dataset_id": id, "data_format": "hdf5", "minari_version": "0.5.4", "jpeg_encoding": jpeg, **meta}
    if observation_space is not None:
        meta |= {"observation_space": json.dumps(to_json(observation_space)), "action_space": json.dumps(to_json(action_space))}
    (folder / "metadata.json").write_text(json.dumps(meta))
    return folder / "main_data.hdf5"


def episode(length, observations=None, actions=None, terminated=True):
    """The reward counts the steps from 1."""
    t = np.arange(length + 1, dtype=np.float64)
    end = t[:-1] == length - 1
    observations = np.stack((t, -t), 1) if observations is None else observations
    actions = np.zeros((length, 2)) if actions is None else actions
    ends = {"terminations": end & terminated, "truncations": end & (not terminated)}
    return {"observations": observations, "actions": actions, "rewards": t[1:], **ends}


def test_episodes_become_transitions(folders):
    write(folders.minari, [episode(3), episode(2, terminated=False)], BOX, BOX, author=["somebody"])
    data = Minari("test/toy-v0", batch_size=8)
    rows = data[:]
    assert rows["observation"].tolist() == [[0, 0], [1, -1], [2, -2], [0, 0], [1, -1]]
    assert rows["next", "observation"][:, 0].tolist() == [1, 2, 3, 1, 2]
    assert rows["next", "terminated"].int().tolist() == [0, 0, 1, 0, 0]
    assert rows["next", "truncated"].int().tolist() == [0, 0, 0, 0, 1]
    assert rows["observation"].dtype == rows["next", "reward"].dtype == torch.float32
    assert data.episode_returns.tolist() == [6, 3]
    assert data.info["author"] == ["somebody"]
    assert repr(data.action_spec) == "Bounded(-1, 1, shape=[2])"


def test_episodes_are_read_in_the_order_of_their_numbers(folders):
    write(folders.minari, [episode(1 + i % 2) for i in range(11)], BOX, BOX)  # as text, episode_10 comes before episode_2
    assert Minari("test/toy-v0").episode_lengths.tolist() == [1 + i % 2 for i in range(11)]


def test_an_episode_that_does_not_end_is_cut_where_the_data_stop(folders):
    unfinished = episode(2) | {"terminations": np.zeros(2, bool)}
    write(folders.minari, [unfinished, episode(0), episode(1)], BOX, BOX)
    data = Minari("test/toy-v0")
    assert data[:]["next", "truncated"].tolist() == [False, True, False]
    assert data[:]["next", "terminated"].tolist() == [False, False, True]


def test_nested_observations_discrete_actions_and_texts(folders):
    observations = {
        "vector": np.arange(6.0).reshape(3, 2) / 6,
        "pair": {"_index_0": np.array([5, 6, 7]), "_index_1": {"flag": np.array([[0, 1]] * 3, np.int8)}},
        "mission": np.array([b"go"] * 3),
    }
    pair = spaces.Tuple((spaces.Discrete(3, start=5), spaces.Dict(flag=spaces.MultiBinary(2))))
    space = spaces.Dict(vector=BOX, pair=pair)
    file = write(folders.minari, [episode(2, observations, np.array([1, 2]))], space, spaces.Discrete(3))
    meta = json.loads(file.with_name("metadata.json").read_text())
    told = json.loads(meta["observation_space"])
    told["subspaces"]["mission"] = {"type": "Text", "max_length": 9, "min_length": 1, "charset": "go"}
    file.with_name("metadata.json").write_text(json.dumps(meta | {"observation_space": json.dumps(told)}))
    data = Minari("test/toy-v0")
    rows = data[:]
    assert rows["pair", "0"].tolist() == [0, 1]  # counted from the start
    assert rows["next", "pair", "1", "flag"].tolist() == [[0, 1], [0, 1]]
    assert_close(rows["vector"], torch.arange(4.0).reshape(2, 2) / 6)
    assert "mission" not in rows.keys()
    assert data.action_spec.n == 3
    data.observation_spec.check(rows.select(*data.observation_spec.keys()))


def test_nested_data_without_spaces_are_read_as_they_are(folders):
    write(folders.minari, [episode(2, {"a": np.zeros((3, 2)), "b": {"c": np.ones(3)}})], None, None)
    rows = Minari("test/toy-v0")[:]
    assert rows["a"].shape == (2, 2)
    assert rows["next", "b", "c"].tolist() == [1, 1]


@pytest.mark.parametrize("jpeg", [True, False])
def test_images_are_decoded(folders, jpeg):
    """Pictures of one grey each survive JPEG unchanged."""
    image = pytest.importorskip("PIL.Image")
    pictures = [np.full((32, 32, 3), value, np.uint8) for value in (0, 128, 255)]

    def encoded(picture):
        image.fromarray(picture).save(memory := io.BytesIO(), format="JPEG")
        return np.frombuffer(memory.getvalue(), np.uint8)

    stored = np.stack(pictures)
    if jpeg:
        codes = [encoded(picture) for picture in pictures]
        stored = np.empty(3, dtype=h5py.vlen_dtype(np.uint8))
        stored[:] = codes if len({len(code) for code in codes}) > 1 else [*codes]
    space = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    path = write(folders.minari, [episode(2, np.zeros((3, 1)))], space, BOX, jpeg=jpeg)
    with h5py.File(path, "a") as file:
        del file["episode_0/observations"]
        file.create_dataset("episode_0/observations", data=stored, dtype=stored.dtype)
    rows = Minari("test/toy-v0")[:]
    assert rows["observation"].float().mean((1, 2, 3)).tolist() == [0, 128]
    assert rows["next", "observation"].float().mean((1, 2, 3)).tolist() == [128, 255]


# ---- end to end ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [lambda: CartPole(num_envs=3), lambda: GymEnv("Taxi-v4", 2), lambda: GymEnv("Blackjack-v1", 2)])
def test_the_package_minari_loads_what_rlbook_records(folders, tmp_path, make):
    minari = pytest.importorskip("minari")
    about = {"author": {"somebody"}, "author_email": {"a@b.c"}}
    data = record(make(), None, tmp_path / "x", num_steps=300, seed=3, minari_id="rlbook/test-v0", about=about)
    theirs = minari.load_dataset("rlbook/test-v0")
    assert (theirs.total_episodes, theirs.total_steps) == (len(data.episode_lengths), 300)
    row = 0
    for number, theirs_episode in enumerate(theirs.iterate_episodes()):
        rows = data[row : row + len(theirs_episode)]
        row += len(theirs_episode)
        assert len(theirs_episode) == data.episode_lengths[number]
        assert_close(torch.as_tensor(theirs_episode.rewards), rows["next", "reward"].double())
        assert torch.equal(torch.as_tensor(theirs_episode.terminations), rows["next", "terminated"])
        assert torch.equal(torch.as_tensor(theirs_episode.truncations), rows["next", "truncated"])
        assert np.isin(theirs_episode.actions, np.arange(data.action_spec.n)).all()
        if isinstance(theirs_episode.observations, np.ndarray):
            assert_close(torch.as_tensor(theirs_episode.observations[:-1]), rows["observation"])
            assert_close(torch.as_tensor(theirs_episode.observations[-1]), rows["next", "observation"][-1])
    assert row == 300
    assert minari.list_local_datasets().keys() == {"rlbook/test-v0"}


def test_rlbook_reads_back_what_it_wrote(folders, tmp_path):
    env = CartPole(num_envs=2)
    data = record(env, None, tmp_path / "x", num_steps=100, minari_id="rlbook/test-v0")
    again = Minari("rlbook/test-v0")
    assert again.observation_spec == env.observation_spec
    assert again.action_spec == env.action_spec
    for key in again.storage.keys:
        assert torch.equal(again[:][key], data[:][key])


def test_an_episode_without_an_end_is_refused_not_dropped(folders, tmp_path):
    still = np.zeros(2)
    write_dataset(tmp_path / "open", [trajectory(np.arange(3.0), still, still, still, still)], 2, {"id": "open"})
    with pytest.raises(ConfigError, match="one that ends with an episode; got 2 rows after it"):
        to_minari(Dataset(tmp_path / "open"), "test/open-v0")


def test_a_dataset_in_the_arrow_format(folders):
    pytest.importorskip("pyarrow")
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    space = spaces.Dict(a=BOX, b=spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2))))
    folder = folders.minari / "test" / "arrow-v0" / "data"
    folder.mkdir(parents=True)
    storage = MinariStorage.new(folder, space, BOX, data_format="arrow")
    observations = {"a": np.arange(6.0).reshape(3, 2), "b": (np.array([0, 1, 2]), np.array([[0, 1]] * 3, np.int8))}
    made = episode(2, observations, np.array([[0.5, 1], [2, 3]]))
    names = dict(zip(made, ("observations", "actions", "rewards", "terminations", "truncations"), strict=True))
    storage.update_episodes([EpisodeBuffer(**{names[key]: value for key, value in made.items()}, infos={})])
    storage.update_metadata({"dataset_id": "test/arrow-v0", "minari_version": minari.__version__})
    rows = Minari("test/arrow-v0")[:]
    assert rows["a"].tolist() == [[0, 1], [2, 3]]
    assert rows["next", "b", "0"].tolist() == [1, 2]
    assert rows["action"].tolist() == [[0.5, 1], [2, 3]]


# ---- faults --------------------------------------------------------------------------------------------------------------------
def test_a_re_recorded_dataset_is_converted_anew(folders):
    write(folders.minari, [episode(3)], BOX, BOX)
    assert len(Minari("test/toy-v0")) == 3
    (folders.minari / "test" / "toy-v0").rename(folders.minari / "old")
    write(folders.minari, [episode(4)], BOX, BOX)
    assert len(Minari("test/toy-v0")) == 4


@pytest.mark.parametrize("gone", ["observations", "rewards", "truncations"])
def test_a_missing_key_is_explained(folders, gone):
    write(folders.minari, [episode(3), {key: value for key, value in episode(3).items() if key != gone}], BOX, BOX)
    with pytest.raises(SpecError, match=rf"one whose episodes have \['{gone}'\]"):
        Minari("test/toy-v0")


def test_values_of_another_shape_than_the_space_says_are_explained(folders):
    write(folders.minari, [episode(3, np.zeros((4, 5)))], BOX, BOX)
    with pytest.raises(SpecError, match=r"'main_data\.hdf5' must be one whose observations fit Box"):
        Minari("test/toy-v0")


def test_damaged_files_are_explained(folders):
    path = write(folders.minari, [episode(3)], BOX, BOX)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SpecError, match="a whole HDF5 file"):
        Minari("test/toy-v0")
    path.with_name("metadata.json").write_text("{")
    with pytest.raises(SpecError, match=r"'metadata\.json' must be JSON"):
        Minari("test/toy-v0")
    path.unlink()
    with pytest.raises(SpecError, match=r"or folders with \.arrow files"):
        Minari("test/toy-v0")


def test_what_is_not_there_is_downloaded_by_the_package_or_explained(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(MissingExtraError, match=r"'D4RL/door/human-v2' is not at .*rlbook\[offline\]"):
        Minari("D4RL/door/human-v2")

    def offline(id):
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "minari", SimpleNamespace(download_dataset=offline))
    with pytest.raises(DownloadError, match=r"no network.*minari download D4RL/door/human-v2.*MINARI_DATASETS_PATH"):
        Minari("D4RL/door/human-v2")
    downloaded = SimpleNamespace(download_dataset=lambda id: write(folders.minari, [episode(3)], BOX, BOX, id=id))
    monkeypatch.setitem(sys.modules, "minari", downloaded)
    assert len(Minari("D4RL/door/human-v2")) == 3


def test_nothing_is_overwritten_and_names_are_checked(folders, tmp_path):
    data = record(CartPole(), None, tmp_path / "x", num_steps=10)
    to_minari(data, "rlbook/test-v0")
    with pytest.raises(ConfigError, match="minari_id must be a new one"):
        to_minari(data, "rlbook/test-v0")
    for wrong in ("test", "../x-v0", "a b-v0"):
        with pytest.raises(ConfigError, match="like 'namespace/name-v0'"):
            record(CartPole(), None, tmp_path / "y", num_steps=10, minari_id=wrong)
    assert not (tmp_path / "y").exists()


SPACES = (
    BOX,
    spaces.Discrete(3, start=2),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary((2, 2)),
    spaces.Box(0, 255, (2,), np.uint8),
)


@pytest.mark.parametrize("space", [*SPACES, spaces.Dict(a=SPACES[0], b=spaces.Tuple(SPACES[1:]))])
def test_spaces_survive_as_json_as_minari_reads_it(space):
    assert from_json(json.loads(json.dumps(to_json(space)))) == space
    minari = pytest.importorskip("minari.serialization")
    assert minari.deserialize_space(to_json(space)) == space
    assert from_json(json.loads(minari.serialize_space(space))) == space


def test_a_space_without_tensor_form_is_refused():
    with pytest.raises(SpecError, match="The space must be"):
        to_json(spaces.Text(3))
    with pytest.raises(SpecError, match="The description of a space must be of type"):
        from_json({"type": "Graph"})
