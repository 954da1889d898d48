"""Writers: which rows stay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from rlbook.errors import ConfigError, MissingKeyError, NonFiniteError, SpecError
from rlbook.replay import ImmutableWriter, ListStorage, ReplayBuffer, ReservoirWriter, TopKWriter


def scored(*scores: float) -> TensorDict:
    """Rows that carry their score twice."""
    score = torch.tensor(scores, dtype=torch.float32)
    return TensorDict({"score": score, "twin": score.clone()}, score.shape)


# ---- TopKWriter --------------------------------------------------------------------------------------------------------------
@given(st.integers(1, 6), st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=7), max_size=6))
def test_the_highest_stay_and_of_equal_ones_the_first(capacity, batches):
    buffer = ReplayBuffer(capacity, writer=TopKWriter("score"))
    come: list[tuple[float, int]] = []
    for scores in batches:
        data = scored(*map(float, scores))
        data["number"] = torch.arange(len(come), len(come) + len(scores))
        buffer.extend(data)
        come += [(float(score), -len(come) - n) for n, score in enumerate(scores)]
        best = sorted(come, reverse=True)[:capacity]
        rows = buffer[:]
        assert sorted(rows["number"].tolist()) == sorted(-number for _, number in best)
        assert torch.equal(rows["score"], rows["twin"])
        buffer.check_valid()
    assert buffer.writer.total == len(come)


def test_the_best_episodes_of_a_list():
    buffer = ReplayBuffer(ListStorage(2), writer=TopKWriter("return"))
    buffer.extend([{"return": 1.0, "name": "a"}, {"return": 3, "name": "b"}])
    buffer.extend([{"return": torch.tensor(2.0), "name": "c"}, {"return": 0.0, "name": "d"}])
    assert sorted(item["name"] for item in buffer[:]) == ["b", "c"]


def test_the_ranking_is_saved():
    buffer, other = (ReplayBuffer(2, writer=TopKWriter("score")) for _ in range(2))
    buffer.extend(scored(5, 1, 3))
    other.load_state_dict(buffer.state_dict())
    for one in (buffer, other):
        one.extend(scored(4, 2))
        assert sorted(one[:]["score"].tolist()) == [4, 5]
    buffer.clear()
    buffer.extend(scored(0))
    assert buffer[:]["score"].tolist() == [0]


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (scored(1.0).exclude("score"), MissingKeyError, "'score'"),
        (scored(1, float("nan")), NonFiniteError, "score must be a number, to be ranked by; got NaN"),
    ],
)
def test_rows_that_cannot_be_ranked(data, error, match):
    buffer = ReplayBuffer(3, writer=TopKWriter("score"))
    buffer.extend(scored(7.0))
    with pytest.raises(error, match=match):
        buffer.extend(data)
    buffer.check_valid()
    assert buffer[:]["score"].tolist() == [7]


def test_a_rank_is_one_number():
    buffer = ReplayBuffer(3, writer=TopKWriter("twin"))
    with pytest.raises(SpecError, match=r"twin must be one number per row; got \[2\] per row"):
        buffer.extend(TensorDict({"twin": torch.ones(3, 2)}, [3]))
    objects = ReplayBuffer(ListStorage(3), writer=TopKWriter("score"))
    with pytest.raises(MissingKeyError, match="a number 'score'"):
        objects.extend([{"score": 1.0}, "text"])
    assert len(objects) == 0


# ---- ReservoirWriter ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pieces", [[60], [7, 13, 40], [5, *[1] * 10, 45]])
def test_every_row_stays_with_the_same_probability(pieces):
    counts, runs, capacity = torch.zeros(60), 1000, 6
    for seed in range(runs):
        buffer = ReplayBuffer(capacity, writer=ReservoirWriter(seed))
        start = 0
        for piece in pieces:
            buffer.extend({"number": torch.arange(start, start + piece)}, batch_size=(piece,))
            start += piece
        numbers = buffer[:]["number"]
        assert len(numbers.unique()) == capacity
        counts[numbers] += 1
    expected = runs * capacity / 60
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert 30 < chi_square < 100  # 59 degrees of freedom, of which 6 are bound: mean 54, deviation 10


def test_the_only_row_of_a_reservoir():
    counts = torch.zeros(3)
    for seed in range(900):
        buffer = ReplayBuffer(1, writer=ReservoirWriter(seed))
        buffer.extend({"number": torch.arange(3)}, batch_size=(3,))
        counts[buffer[0]["number"]] += 1
    assert ((counts - 300).abs() < 60).all()  # a deviation is 14


def test_a_reservoir_is_reproducible_and_saved():
    def fill(buffer: ReplayBuffer, *numbers: int) -> list[int]:
        buffer.extend({"number": torch.arange(*numbers)}, batch_size=(numbers[1] - numbers[0],))
        buffer.check_valid()
        return buffer[:]["number"].tolist()

    one, other, third = (ReplayBuffer(5, writer=ReservoirWriter(seed)) for seed in (1, 1, 2))
    assert fill(one, 0, 40) == fill(other, 0, 40) != fill(third, 0, 40)
    third.load_state_dict(one.state_dict())
    assert fill(one, 40, 90) == fill(third, 40, 90)


# ---- ImmutableWriter ---------------------------------------------------------------------------------------------------------
def test_an_immutable_buffer_is_read_only():
    source, buffer = ReplayBuffer(4), ReplayBuffer(4, writer=ImmutableWriter(), batch_size=3)
    source.extend(scored(1, 2, 3, 4))
    buffer.load_state_dict(source.state_dict())
    for write in (lambda: buffer.extend(scored(5)), buffer.clear):
        with pytest.raises(ConfigError, match="A buffer to write to must be one that can change; got a dataset"):
            write()
    assert buffer[:]["score"].tolist() == [1, 2, 3, 4]
    assert buffer.sample().shape == (3,)
    assert buffer.writer.in_order


def test_counters_that_contradict_each_other():
    buffer = ReplayBuffer(4)
    buffer.extend(scored(1, 2))
    buffer.writer.size = 9
    with pytest.raises(ConfigError, match="A writer must be 0 <= size <= min"):
        buffer.check_valid()
    ranked = ReplayBuffer(4, writer=TopKWriter("score"))
    ranked.extend(scored(1, 2))
    ranked.writer._heap.pop()
    with pytest.raises(ConfigError, match="TopKWriter's ranking must be of 2 rows; got 1"):
        ranked.check_valid()
