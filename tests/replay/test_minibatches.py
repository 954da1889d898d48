"""Minibatches: every row once per epoch, whole, in an order that the seed decides."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from toys import Clock

from rlbook import Collector, minibatches
from rlbook.errors import ConfigError, MissingKeyError
from rlbook.replay.minibatches import flat_rows


def numbered(*batch: int) -> TensorDict:
    """Rows that carry their own number, in each entry."""
    number = torch.arange(torch.Size(batch).numel()).reshape(batch)
    return TensorDict({"a": number, "nested": {"b": 10 * number}, "wide": number.unsqueeze(-1).expand(*batch, 3)}, batch)


@pytest.mark.parametrize("batch", [(12,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize(("size", "sizes"), [(4, [4, 4, 4]), (5, [5, 5, 2]), (1, [1] * 12)])
def test_every_row_once_per_epoch(batch, size, sizes):
    found = list(minibatches(numbered(*batch), size, epochs=2))
    assert [len(rows) for rows in found] == sizes * 2
    epochs = [torch.cat([rows["a"] for rows in part]).tolist() for part in (found[: len(sizes)], found[len(sizes) :])]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(range(12))


def test_a_minibatch_of_all_rows_comes_in_order_and_draws_nothing():
    before = torch.get_rng_state()
    found = list(minibatches(numbered(3, 4), 12, epochs=3))
    assert [sorted(rows["a"].tolist()) for rows in found] == [list(range(12))] * 3
    assert all(torch.equal(rows["nested", "b"], 10 * rows["a"]) for rows in found)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_entries_of_a_row_stay_together():
    for rows in minibatches(numbered(3, 4), 5):
        assert rows.batch_size == rows["a"].shape
        assert torch.equal(rows["nested", "b"], 10 * rows["a"])
        assert torch.equal(rows["wide"], rows["a"].unsqueeze(-1).expand(-1, 3))


def test_an_action_may_be_a_dictionary():
    data = numbered(3, 4)
    data["action"] = TensorDict({"gear": data["a"].clone(), "arm": TensorDict({"force": -data["a"]}, (3, 4))}, (3, 4))
    for rows in minibatches(data, 5, in_keys=("a", "action")):
        assert torch.equal(rows["action", "gear"], rows["a"])
        assert torch.equal(rows["action", "arm", "force"], -rows["a"])


def test_rows_of_a_rollout():
    data = Clock(4).rollout(10)
    for rows in minibatches(data, 8):
        row, time = rows["observation"][:, 0], rows["observation"][:, 1]
        assert torch.equal(rows["next", "reward"], 100 * time + row)


def test_only_the_entries_asked_for():
    (rows,) = minibatches(numbered(4), 4, in_keys=["a", ("nested", "b")])
    assert set(rows.keys(True, True)) == {"a", ("nested", "b")}


def test_drop_last():
    found = list(minibatches(numbered(12), 5, epochs=3, drop_last=True))
    assert [len(rows) for rows in found] == [5] * 6


def test_the_generator_decides_the_order():
    def order(generator) -> list[int]:
        return torch.cat([rows["a"] for rows in minibatches(numbered(50), 20, generator=generator)]).tolist()

    first, second = (order(torch.Generator().manual_seed(1)) for _ in range(2))
    assert first == second != order(torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    expected = order(None)
    torch.manual_seed(3)
    order(torch.Generator())  # leaves torch's own generator alone
    assert order(None) == expected


@pytest.mark.parametrize("size", [2, 4])
def test_a_minibatch_is_a_copy(size):
    data = numbered(4)
    for rows in minibatches(data, size):
        rows["a"].fill_(-1)
    assert_close(data["a"], torch.arange(4))


def test_collected_data_is_flattened_without_a_copy():
    data = Collector(Clock(4), frames_per_batch=20).collect()
    rows = flat_rows(data, ["observation", ("next", "reward")])
    assert rows["observation"].data_ptr() == data["observation"].data_ptr()
    assert rows["observation"].shape == (20, 3)
    assert rows["next", "reward"].tolist() == [100 * t + i for t in range(5) for i in range(4)]  # time first


@pytest.mark.parametrize("size", [0, -1, 13])
def test_a_bad_size_is_explained(size):
    with pytest.raises(ConfigError, match=rf"size must be in \[1, 12\], the rows of the data; got {size}"):
        next(minibatches(numbered(3, 4), size))


def test_a_missing_entry_is_explained():
    with pytest.raises(MissingKeyError, match=r"rollout with \['advantage'\]; got the keys \['a', 'nested.b', 'wide'\]. .*GAE"):
        next(minibatches(numbered(12), 4, in_keys=["a", "advantage"]))


# ---- sequences ---------------------------------------------------------------------------------------------------------------
def test_sequences_are_whole_and_each_comes_once():
    data = Collector(Clock(4), frames_per_batch=48).collect()  # reward = 100 t + row
    batches = list(minibatches(data, 3, sequence_len=4, epochs=2))
    assert [batch.batch_size for batch in batches] == 2 * 4 * [torch.Size((3, 4))]
    reward = torch.cat([batch["next", "reward"] for batch in batches[:4]])
    assert (reward[:, 1:] - reward[:, :-1] == 100).all()  # consecutive steps of one row
    assert sorted(reward[:, 0].tolist()) == sorted(100.0 * t + i for t in (0, 4, 8) for i in range(4))
    assert reward[:, 0].tolist() != sorted(reward[:, 0].tolist())
    assert batches[0]["observation"].shape == (3, 4, 3)
    (whole,) = minibatches(data, 4, sequence_len=12)
    assert_close(whole["observation"], data["observation"])


def test_sequences_of_one_environment():
    data = Collector(Clock(None), frames_per_batch=12).collect()
    (batch,) = minibatches(data, 3, sequence_len=4, in_keys=[("next", "reward")])
    assert batch["next", "reward"].tolist() == [[100.0 * (4 * row + t) for t in range(4)] for row in range(3)]


@pytest.mark.parametrize("length", [0, 5, True, 2.0])
def test_a_bad_sequence_len_is_explained(length):
    with pytest.raises(ConfigError, match="sequence_len must be a divisor of 12, the steps of the data; got"):
        next(minibatches(numbered(12), 1, sequence_len=length))
