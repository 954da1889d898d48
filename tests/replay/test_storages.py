"""Storages: what is read is what was written, in any type and shape; what does not fit is refused whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import NonTensorData, TensorDict
from torch.testing import assert_close

from rlbook.errors import ConfigError, MissingKeyError, SpecError
from rlbook.replay import ListStorage, ReplayBuffer, TensorStorage, TopKWriter

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
SHAPES = [(), (1,), (3,), (2, 3), (0,)]


def rows(*batch: int, start: int = 0) -> TensorDict:
    """Rows that carry their own number, in entries of several types and shapes."""
    number = start + torch.arange(torch.Size(batch).numel()).reshape(batch)
    wide = number.unsqueeze(-1).expand(*batch, 3)
    inner = {"reward": number.float(), "observation": wide.float() + 0.5, "done": number % 2 == 0, "done2": number % 3 == 0}
    return TensorDict({"number": number, "observation": wide.float(), "image": wide.unsqueeze(-1).byte(), "next": inner}, batch)


# ---- TensorStorage -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_and_shape_comes_back(dtype):
    data = TensorDict({str(shape): torch.randn(6, *shape).mul(9).to(dtype) for shape in SHAPES}, [6])
    buffer = ReplayBuffer(4)
    buffer.extend(data)
    assert torch.equal(buffer.in_order(), torch.tensor([2, 3, 0, 1]))
    found = buffer[buffer.in_order()]
    for key, value in data[2:].items():
        assert found[key].dtype is dtype
        assert torch.equal(found[key], value)
    assert buffer[0].batch_size == ()
    assert torch.equal(buffer[torch.tensor([[2, 3], [0, 0]])]["(2, 3)"], data["(2, 3)"][torch.tensor([[2, 3], [4, 4]])])


def test_small_entries_of_one_type_are_neighbours():
    storage = TensorStorage(10)
    data = TensorDict(
        {"a": torch.ones(2, 3), "b": torch.ones(2), "c": torch.ones(2, dtype=torch.long), "d": torch.ones(2, 9999)}, [2]
    )
    storage.pack(data)
    a, b, c, d = (storage.columns[key] for key in "abcd")
    assert a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    assert a.stride(0) == b.stride(0) == 4
    assert c.is_contiguous()
    assert d.is_contiguous()
    assert storage.nbytes == 10 * (4 * 4 + 8 + 4 * 9999)


def test_a_vector_environment_lies_step_by_step():
    buffer = ReplayBuffer(12)
    buffer.extend(rows(3, 2))  # environment i, time t: number 2 i + t
    assert buffer[:]["number"].tolist() == [0, 2, 4, 1, 3, 5]


def test_a_sample_is_a_copy():
    buffer = ReplayBuffer(4, batch_size=2)
    data = rows(4)
    buffer.extend(data)
    for batch in (buffer.sample(), buffer[:], data):
        batch["observation"].fill_(-1)
    assert buffer[:]["observation"].min() >= 0


def test_a_dictionary_is_a_row():
    buffer = ReplayBuffer(4)
    buffer.add({"a": np.float32(1), ("next", "b"): np.ones(2, np.float32), "c": 3, "d": torch.tensor(True), "e": 0.5})
    buffer.add({"a": torch.tensor(2.0), ("next", "b"): [2.0, 2.0], "c": np.int64(4), "d": np.bool_(False), "e": 1.5})
    found = buffer[:]
    assert found["a"].tolist() == [1, 2]
    assert found["next", "b"].tolist() == [[1, 1], [2, 2]]
    assert (found["c"].tolist(), found["d"].tolist(), found["e"].tolist()) == ([3, 4], [True, False], [0.5, 1.5])


@pytest.mark.parametrize("batch", [(4,), (2, 2), ()])
def test_a_dictionary_with_a_batch_size(batch):
    one, other = ReplayBuffer(4), ReplayBuffer(4)
    one.extend({key: value.numpy() for key, value in rows(*batch).items(True, True)}, batch_size=batch)
    other.extend(rows(*batch))
    assert_close(one[:].to_dict(), other[:].to_dict())
    assert one.writer.streams == other.writer.streams


def test_what_requires_a_gradient_is_detached():
    buffer = ReplayBuffer(2)
    buffer.extend(TensorDict({"a": torch.ones(2, requires_grad=True)}, [2]))
    assert not buffer[:]["a"].requires_grad


def test_only_the_entries_asked_for():
    storage = TensorStorage(10, in_keys=["number", ("next", "reward")])
    buffer = ReplayBuffer(storage)
    buffer.extend(rows(3))
    buffer.extend(rows(2).exclude("image"))
    assert set(buffer[:].keys(True, True)) == {"number", ("next", "reward")} == set(storage.keys)


def change(key, value) -> TensorDict:
    return rows(2).set(key, value)


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (rows(2).exclude("number"), MissingKeyError, "Data for this buffer must be data with 'number'; got the keys .'image'"),
        (change("extra", torch.ones(2)), SpecError, r"the entries of the first; got also \['extra'\]. Name the entries to keep"),
        (change("number", torch.ones(2)), SpecError, r"number must be int64 \[2\]; got float32 \[2\]"),
        (change(("next", "reward"), torch.ones(2, 1)), SpecError, r"next.reward must be float32 \[2\]; got float32 \[2, 1\]"),
        (change("observation", torch.ones(2, 4)), SpecError, r"observation must be float32 \[2, 3\]; got float32 \[2, 4\]"),
        (rows(2, 2, 2), SpecError, r"batch size \[\], \[T\] or \[N, T\]; got \[2, 2, 2\]. Flatten"),
        ([1, 2], SpecError, "a TensorDict, or a dictionary of tensors; got list"),
        (
            change("number", NonTensorData("text", batch_size=[2])),
            SpecError,
            "number must be numbers; got NonTensorData",
        ),
        ({"number": "text"}, SpecError, "number must be numbers; got str"),
        (rows(2, 5), ConfigError, "The data must be of 1 environments as before; got those of 2"),
    ],
)
def test_what_does_not_fit_is_refused_whole(data, error, match):
    if isinstance(data, dict):
        data = {**dict(rows().items(True, True)), **data}
    buffer = ReplayBuffer(6)
    buffer.extend(rows(4))
    before, order = buffer[:].clone(), buffer.in_order()
    with pytest.raises(error, match=match):
        buffer.extend(data)
    buffer.check_valid()
    assert torch.equal(buffer.in_order(), order)
    assert (buffer[:] == before).all()
    buffer.extend(rows(1, start=4))
    assert len(buffer) == 5


def test_the_first_data_teach_nothing_if_they_are_refused():
    buffer = ReplayBuffer(2)
    with pytest.raises(ConfigError, match="capacity must be at least num_envs=3; got 2"):
        buffer.extend(rows(3, 1))
    assert buffer.storage.keys == ()
    other = ReplayBuffer(2, writer=TopKWriter("score"))
    with pytest.raises(MissingKeyError, match="a number 'score'"):
        other.extend(rows(2))
    other.extend(rows(2).set("score", torch.ones(2)))
    assert len(other) == 2


def test_first_data_that_hold_nothing():
    with pytest.raises(MissingKeyError, match=r"The first data must be data with entries; got the keys \[\]"):
        ReplayBuffer(2).extend(TensorDict({}, [2]))
    with pytest.raises(MissingKeyError, match=r"data with \['a'\]; got the keys \['b'\]"):
        ReplayBuffer(TensorStorage(2, in_keys=["a"])).extend({"b": 1})


def test_no_rows_are_no_rows():
    buffer = ReplayBuffer(4)
    buffer.extend(rows(2))
    assert buffer.extend(rows(0)) == []
    assert len(buffer) == 2


@pytest.mark.parametrize("capacity", [0, -1, 2.5, True, "8"])
def test_a_bad_capacity(capacity):
    with pytest.raises(ConfigError, match="capacity must be a positive integer"):
        TensorStorage(capacity)


def test_memory_that_is_not_there():
    with pytest.raises(ConfigError, match=r"Memory for 'a' must be .* GiB; got .*Lower the capacity, or keep the rows on disk"):
        ReplayBuffer(2**50).add({"a": torch.ones(1000)})


def test_rows_to_load_must_fit():
    buffer, other = ReplayBuffer(8), ReplayBuffer(4)
    buffer.extend(rows(8))
    other.extend(rows(2))
    with pytest.raises(ConfigError, match="Load it into a buffer of the capacity that it was saved from"):
        other.load_state_dict(buffer.state_dict())
    different = ReplayBuffer(8)
    different.extend(rows(2).exclude("image"))
    with pytest.raises(SpecError, match="Rows to load must be of the entries"):
        different.load_state_dict(buffer.state_dict())
    assert (len(other), len(different)) == (2, 2)
    other.check_valid()
    with pytest.raises(ConfigError, match="at most 4, the capacity; got 8"):
        other.storage.load_state_dict(buffer.storage.state_dict(8))


@pytest.mark.cuda
@pytest.mark.parametrize("pin", [False, True])
def test_rows_on_a_gpu(pin):
    buffer = ReplayBuffer(TensorStorage(6, "cpu" if pin else "cuda", pin_memory=pin), batch_size=3, device="cuda")
    buffer.extend(rows(4))
    buffer.extend(rows(4, start=4).to("cuda"))
    batch = buffer.sample()
    assert {value.device.type for value in batch.values(True, True)} == {"cuda"}
    assert_close(batch["observation"][:, 0], batch["number"].float())


# ---- ListStorage -------------------------------------------------------------------------------------------------------------
def test_any_objects():
    buffer = ReplayBuffer(ListStorage(3), batch_size=5)
    buffer.extend(["a", {"b": np.ones(2)}, ("c", torch.ones(1))])
    buffer.extend(["d"])
    buffer.add(5.5)
    assert buffer[buffer.in_order()] == [("c", torch.ones(1)), "d", 5.5]
    assert isinstance(buffer.sample(), list)
    assert len(buffer.sample()) == 5
    assert buffer[1] == 5.5
    assert "objects: float, str, tuple" in repr(buffer)
    buffer.clear()
    assert len(buffer.storage.items) == len(buffer) == 0


def test_episodes_of_different_lengths():
    buffer = ReplayBuffer(ListStorage(4), batch_size=4)
    episodes = [rows(3), rows(5, start=10), rows(3, start=20)]
    buffer.extend(episodes)
    found = buffer[:]
    assert [len(episode) for episode in found] == [3, 5, 3]
    same = buffer[torch.tensor([0, 2])]
    assert same.batch_size == (2, 3)
    assert same["number"].tolist() == [[0, 1, 2], [20, 21, 22]]
    assert buffer[1].batch_size == (5,)


def test_objects_of_one_shape_are_stacked_with_their_index():
    buffer = ReplayBuffer(ListStorage(4), batch_size=6)
    buffer.extend([rows(2, start=10 * n) for n in range(3)])
    batch = buffer.sample()
    assert batch.batch_size == (6, 2)
    assert torch.equal(batch["number"], 10 * batch["index"] + torch.arange(2))
    assert torch.equal(buffer.storage.entry(("next", "reward"), torch.tensor([1])), torch.tensor([[10.0, 11.0]]))
    single = ReplayBuffer(ListStorage(4), batch_size=2)
    single.add(rows())
    assert single.sample()["index"].tolist() == [0, 0]
    assert single[0]["number"].item() == 0


def test_objects_are_copied_where_their_memory_may_change():
    tensor, array, data = torch.zeros(2), np.zeros(2), rows(2)
    buffer = ReplayBuffer(ListStorage(4))
    buffer.extend([tensor, [array], data, {"a": tensor}])
    for thing in (tensor, array, buffer[0], buffer[1][0], data["observation"], buffer[3]["a"]):
        thing += 1
    found = buffer[:]
    assert found[0].sum() == found[1][0].sum() == found[3]["a"].sum() == 0
    assert torch.equal(found[2]["observation"], rows(2)["observation"])


def test_a_list_storage_is_saved_and_loaded(tmp_path):
    buffer, other = (ReplayBuffer(ListStorage(6), batch_size=2, seed=seed) for seed in (1, 2))
    buffer.extend(["a", {"b": np.arange(3)}, rows(2), 5, None])
    buffer.save(tmp_path)
    other.load(tmp_path)
    assert other[0] == "a"
    assert other[1]["b"].tolist() == [0, 1, 2]
    assert (other[2] == rows(2)).all()
    assert other[2].batch_size == (2,)
    assert [buffer.in_order().tolist(), buffer[4]] == [other.in_order().tolist(), other[4]]
    with pytest.raises(ConfigError, match="at most 2, the capacity; got 5"):
        ReplayBuffer(ListStorage(2)).storage.load_state_dict(buffer.storage.state_dict(5))


def test_objects_that_only_code_can_load_are_refused(tmp_path):
    buffer = ReplayBuffer(ListStorage(6))
    buffer.add(TopKWriter("score"))
    buffer.save(tmp_path)
    with pytest.raises(ConfigError, match=r"tensors and plain objects; got .*cannot be loaded without running code"):
        ReplayBuffer(ListStorage(6)).load(tmp_path)


def test_an_entry_without_elements_is_kept():
    buffer = ReplayBuffer(8)
    buffer.extend(TensorDict({"nothing": torch.zeros(2, 3, 0), "number": torch.arange(6).view(2, 3)}, [2, 3]))
    assert buffer[:]["nothing"].shape == (6, 0)
    assert buffer[:]["number"].tolist() == [0, 3, 1, 4, 2, 5]


def test_a_nested_dictionary_is_explained():
    with pytest.raises(SpecError, match=r"next must be numbers; got dict. Name what is nested by its path"):
        ReplayBuffer(8).add({"observation": np.zeros(3), "next": {"reward": 1.0}})
