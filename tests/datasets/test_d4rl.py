"""D4RL's HDF5 files in all their variations."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from rlbook import keys
from rlbook.datasets import D4RL
from rlbook.datasets import d4rl as module
from rlbook.datasets._d4rl_files import d4rl_files, reference_returns
from rlbook.errors import ConfigError, MissingExtraError, SpecError

h5py = pytest.importorskip("h5py")
ID, FILE = "halfcheetah-medium-v2", "halfcheetah_medium-v2.hdf5"
TERMINALS, TIMEOUTS = [0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0]
"""Rows 0-2 end in a terminal state, rows 3-4 in a timeout, rows 5-6 where the file ends."""


def arrays(terminals=TERMINALS, timeouts=TIMEOUTS, next_observations=False):
    """Row t observes ``[t, -t]``, does ``t / 10`` and is rewarded with ``10 t``; next observations are ``[t + 0.5, ...]``."""
    t = np.arange(len(terminals), dtype=np.float32)
    found = {"observations": np.stack((t, -t), 1), "actions": t[:, None] / 10, "rewards": 10 * t}
    found |= {"terminals": np.array(terminals, bool), "timeouts": np.array(timeouts, bool)}
    return found | ({"next_observations": np.stack((t, -t), 1) + 0.5} if next_observations else {})


def write(folder, content, name=FILE):
    """Write a D4RL file: a key with slashes makes groups."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / name, "w") as file:
        for key, value in content.items():
            value = np.asarray(value)
            options = {"compression": "gzip"} if value.shape and value.size else {}
            file.create_dataset(key, data=value, **options)
    return folder / name


def times(data):
    """The times (the first number) of each row's observation and next observation."""
    rows = data[:]
    return rows["observation"][:, 0].tolist(), rows["next", "observation"][:, 0].tolist()


def test_next_observations_are_taken_and_every_row_is_kept(folders):
    write(folders.d4rl, arrays(next_observations=True))
    data = D4RL(ID, batch_size=4)
    assert times(data) == ([0, 1, 2, 3, 4, 5, 6], [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5])
    nxt = data[:]["next"]
    assert nxt["terminated"].int().tolist() == TERMINALS
    assert nxt["truncated"].int().tolist() == [0, 0, 0, 0, 1, 0, 1]  # where the file ends, the data stop
    assert torch.equal(nxt["done"], nxt["terminated"] | nxt["truncated"])
    assert nxt["reward"].tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert_close(data[:]["action"], torch.arange(7.0).unsqueeze(-1) / 10)
    assert data.episode_returns.tolist() == [30, 70, 110]
    assert data.sample().batch_size == (4,)


def test_without_them_the_last_row_of_a_timed_out_episode_is_left_out(folders):
    write(folders.d4rl, arrays())
    data = D4RL(ID)
    # row 2 is terminal: it stays, and repeats itself under next; rows 4 and 6 have no known next observation
    assert times(data) == ([0, 1, 2, 3, 5], [1, 2, 2, 4, 6])
    assert data[:]["next", "terminated"].int().tolist() == [0, 0, 1, 0, 0]
    assert data[:]["next", "truncated"].int().tolist() == [0, 0, 0, 1, 1]
    assert data.info["next_observations"] is False


def test_other_names_are_found_where_the_file_has_them(folders):
    info = {"infos/qpos": np.ones((7, 3)), "infos/action_log_probs": -np.arange(7.0), "infos/env_state/door": np.zeros((7, 1))}
    meta = {
        "metadata/algorithm": np.bytes_(b"SAC"),
        "metadata/iteration": np.int32(3),
        "metadata/policy/fc0/weight": np.ones((2, 2)),
    }
    write(folders.d4rl, arrays() | info | meta | {"rewards": 10 * np.arange(7.0)[:, None]})
    data = D4RL(ID)
    rows = data[:]
    assert rows[keys.LOG_PROB].tolist() == [0, -1, -2, -3, -5]
    assert rows["info", "qpos"].shape == (5, 3)
    assert rows["info", "env_state", "door"].shape == (5, 1)
    assert rows["next", "reward"].tolist() == [0, 10, 20, 30, 50]  # rewards [N, 1]
    assert data.info["metadata"] == {"algorithm": "SAC", "iteration": 3}


def test_a_file_without_timeouts_is_cut_at_the_time_limit(folders, monkeypatch):
    monkeypatch.setitem(module.TIME_LIMIT, "halfcheetah", 2)
    content = arrays()
    del content["timeouts"]
    write(folders.d4rl, content)
    # episodes: 0 1 | 2 (terminal) | 3 4 | 5 6: rows 1, 4 and 6 time out
    assert times(D4RL(ID)) == ([0, 2, 3, 5], [1, 2, 4, 6])


def test_a_file_without_any_ends_is_one_stream(folders):
    content = arrays()
    del content["timeouts"], content["terminals"]
    write(folders.d4rl, content, "maze2d-umaze-sparse-v1.hdf5")
    data = D4RL("maze2d-umaze-v1")
    assert times(data) == ([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6])
    assert data.info["episodes"] == 1


def slow_reference(terminals, timeouts, known):
    """Keep a row if its next observation is known or nobody needs it; its episode stops where the next row is not its own."""
    kept, last = [], len(terminals) - 1
    for t in range(last + 1):
        cut_off = not terminals[t] and (timeouts[t] or t == last)
        if cut_off and not known:
            if kept and kept[-1][0] == t - 1 and not (kept[-1][1] or kept[-1][2]):
                kept[-1] = (t - 1, False, True)
            continue
        kept.append((t, bool(terminals[t]), bool(cut_off)))
    return kept


@settings(max_examples=40)
@given(st.lists(st.sampled_from([(0, 0), (1, 0), (0, 1), (1, 1)]), min_size=2, max_size=12), st.booleans(), st.integers(1, 200))
def test_rows_and_flags_are_those_of_a_slow_reference_whatever_the_blocks(tmp_path_factory, ends, known, budget):
    terminals, timeouts = zip(*ends, strict=True)
    want = slow_reference(terminals, timeouts, known)
    folder = tmp_path_factory.mktemp("d4rl")
    path = write(folder, arrays(terminals, timeouts, known))
    source = object.__new__(D4RL)
    source.id = ID
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "block_of", lambda columns: max(1, budget // 16))
        pieces = list(source.read([path]))
    rows = torch.cat(pieces) if pieces else None
    assert source.count([path]) == len(want) == sum(map(len, pieces))
    if rows is not None:
        got = (rows["observation"][:, 0].int(), rows["next", "terminated"], rows["next", "truncated"])
        assert list(zip(*(column.tolist() for column in got), strict=True)) == want


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rewards": None}, "one with 'rewards'; got only"),
        ({"observations": np.array([b"a"] * 7)}, "'observations' holds rows of numbers"),
        ({"actions": np.zeros((3, 1))}, "one with 7 rows of 'actions'; got 3"),
        ({"terminals": np.zeros(6, bool)}, "one with 7 rows of 'terminals'; got 6"),
        ({"rewards": np.array(1.0)}, "'rewards' holds rows of numbers"),
    ],
)
def test_a_file_of_another_make_is_explained(folders, change, message):
    path = write(folders.d4rl, {key: value for key, value in (arrays() | change).items() if value is not None})
    with pytest.raises(SpecError, match=message) as caught:
        D4RL(ID)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_truncated_file_is_explained(folders, keep):
    path = write(folders.d4rl, arrays() | {"infos/qpos": np.random.rand(7, 1000)})
    body = path.read_bytes()
    path.write_bytes(body[: int(keep * len(body)) if isinstance(keep, float) else keep])
    with pytest.raises(SpecError, match=r"a whole HDF5 file; got .* bytes that h5py cannot read"):
        D4RL(ID)


def test_a_damaged_chunk_is_explained_and_the_conversion_is_not_used(folders):
    path = write(folders.d4rl, arrays() | {"infos/qpos": np.random.rand(7, 1000)})
    body = bytearray(path.read_bytes())
    middle = len(body) // 2
    body[middle : middle + 2000] = bytes(2000)  # inside the compressed numbers
    path.write_bytes(body)
    with pytest.raises(SpecError, match="a whole HDF5 file"):
        D4RL(ID)
    assert not (folders.cache / "d4rl" / ID / "data").exists()


def test_a_file_without_rows_is_explained(folders):
    write(folders.d4rl, arrays([], []))
    with pytest.raises(ConfigError, match="at least one transition"):
        D4RL(ID)


def test_an_unknown_id_names_near_ones():
    with pytest.raises(ConfigError, match="Perhaps 'halfcheetah-medium-v2'"):
        D4RL("halfcheeta-medium-v2")


def test_ids_lead_to_the_files_of_the_server():
    files = d4rl_files()
    assert files[ID] == f"gym_mujoco_v2/{FILE}"
    assert files["walker2d-medium-replay-v0"] == "gym_mujoco/walker_mixed.hdf5"
    assert files["door-human-v0"] == "hand_dapg/door-v0_demos_clipped.hdf5"
    assert files["pen-cloned-v1"] == "hand_dapg_v1/pen-cloned-v1.hdf5"
    assert files["antmaze-large-diverse-v2"].endswith("hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5")
    assert files["maze2d-eval-umaze-dense-v1"] == "maze2d/maze2d-eval-umaze-dense-v1.hdf5"
    assert files["maze2d-large-v1"] == "maze2d/maze2d-large-sparse-v1.hdf5"
    assert reference_returns("maze2d-eval-umaze-dense-v1") == (68.537689, 193.66285642381482)
    assert reference_returns("antmaze-large-diverse-v2") == (0, 1)
    assert reference_returns("carla-lane-v0") is None
    assert len(D4RL.ids()) == len(files)


def test_scores_are_normalised_between_random_and_expert(folders):
    write(folders.d4rl, arrays())
    data = D4RL(ID)
    low, high = -280.178953, 12135.0
    assert_close(data.normalized_score(torch.tensor([low, high, (low + high) / 2])), torch.tensor([0.0, 100.0, 50.0]))


def test_without_h5py_the_extra_is_named(folders, monkeypatch):
    write(folders.d4rl, arrays())
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"rlbook\[offline\]"):
        D4RL(ID)
