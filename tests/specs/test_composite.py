"""The spec of a TensorDict."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from rlbook.errors import MissingKeyError, SpecError
from rlbook.specs import Binary, Bounded, Categorical, Composite, OneHot, Unbounded


def test_a_nested_mapping_replaces_and_a_nested_key_adds() -> None:
    added = Composite({"next": {"done": Binary()}, ("next", "reward"): Unbounded()})
    assert list(added["next"]) == ["done", "reward"]
    assert list(Composite({("next", "reward"): Unbounded(), "next": {"done": Binary()}})["next"]) == ["done"]


@pytest.fixture
def nested() -> Composite:
    return Composite(
        {"observation": Bounded(-1.0, 1.0, (3,)), "action": Categorical(4), "next": {"reward": Unbounded(), "done": Binary()}}
    )


def test_it_reads_like_a_mapping(nested: Composite) -> None:
    assert list(nested) == list(nested.keys()) == ["observation", "action", "next"]
    assert len(nested) == 3
    assert nested["action"] == Categorical(4)
    assert nested["next", "reward"] == Unbounded()
    assert nested[("action",)] == Categorical(4)
    assert nested.get("absent") is None
    assert nested.get(("action", "deeper"), 7) == 7
    assert "action" in nested
    assert ("next", "done") in nested
    assert ("next", "absent") not in nested
    assert dict(nested.items())["action"] is nested["action"]
    assert list(nested.leaves()) == ["observation", "action", ("next", "reward"), ("next", "done")]
    assert Composite(nested.leaves()) == nested
    assert Composite(action=Categorical(4)) == Composite({"action": Categorical(4)})
    with pytest.raises(MissingKeyError, match=r"Entry 'next\.rewards' must be present; got only observation, action, next"):
        nested["next", "rewards"]


def test_random_and_zero_values_are_tensordicts_inside(nested: Composite) -> None:
    for value in (nested.rand((5, 2)), nested.zero((5, 2))):
        assert isinstance(value, TensorDict)
        assert value.batch_size == (5, 2)
        assert value["next"].batch_size == (5, 2)
        assert value["observation"].shape == (5, 2, 3)
        assert nested.contains(value)
        nested.check(value)
        assert (nested.project(value) == value).all()
    assert nested.rand().batch_size == ()


def test_uniform_numbers_go_to_the_leaves_in_order() -> None:
    spec = Composite({"a": Categorical(4), "b": {"c": Bounded(0.0, 10.0, (2,)), "d": Binary()}})
    assert spec.num_uniform == 4
    td = spec.from_uniform(torch.tensor([0.5, 0.1, 0.2, 0.9]))
    assert td["a"].item() == 2
    assert_close(td["b", "c"], torch.tensor([1.0, 2.0]))
    assert not td["b", "d"].item()
    with pytest.raises(SpecError, match=r"u must be of shape \[\.\.\., 4\]"):
        spec.from_uniform(torch.rand(3))


def test_check_names_the_nested_entry(nested: Composite) -> None:
    td = nested.rand((4,))
    td["next", "reward"][2] = math.nan
    assert not nested.contains(td)
    with pytest.raises(SpecError, match=r"^next\.reward must be free of NaN; got NaN at index \[2\]"):
        nested.check(td)
    with pytest.raises(SpecError, match=r"^agents\.next\.reward must be free of NaN"):
        nested.check(td, "agents")
    with pytest.raises(SpecError, match=r"^observation must be of dtype torch.float32; got torch.float64"):
        nested.check(td.replace(observation=td["observation"].double()))
    with pytest.raises(MissingKeyError, match=r"Entry 'next\.done' must be present; got only reward"):
        nested.check(td.replace(next=TensorDict({"reward": torch.zeros(4)}, batch_size=[4])).exclude(("next", "done")))
    with pytest.raises(SpecError, match="The value must be a TensorDict; got Tensor"):
        nested.check(torch.zeros(3))
    assert not nested.contains(torch.zeros(3))


def test_a_tensordict_tells_the_batch_so_a_trailing_one_is_seen() -> None:
    spec = Composite(reward=Unbounded())
    assert spec.contains({"reward": torch.zeros(64, 1)})
    assert not spec.contains({"reward": torch.zeros(64, 1)}, batch=(64,))
    with pytest.raises(SpecError, match=r"reward must be of shape \[64\]; got \[64, 1\]"):
        spec.check(TensorDict({"reward": torch.zeros(64, 1)}, batch_size=[64]))


def test_entries_it_does_not_name_are_ignored() -> None:
    spec = Composite(reward=Unbounded())
    td = TensorDict({"reward": torch.zeros(4), "extra": torch.zeros(4)}, batch_size=[4])
    assert spec.contains(td)
    assert list(spec.project(td).keys()) == ["reward"]


def test_project_brings_every_entry_inside(nested: Composite) -> None:
    td = nested.rand((4,))
    td["observation"] = td["observation"] * 100
    td["action"] = td["action"] + 100
    assert nested.contains(nested.project(td))
    with pytest.raises(MissingKeyError, match="'action' must be present"):
        nested.project(td.exclude("action"))


def test_expand_and_index_share_the_leading_batch() -> None:
    agents = Composite({"observation": Unbounded(2)}).expand(3)
    spec = Composite({"agents": agents, "state": Unbounded(5)})
    assert spec.zero((8,))["agents"].batch_size == (8, 3)
    batched = spec.expand(8)
    assert batched.shape == (8,)
    assert batched["agents"].shape == (8, 3)
    assert batched.contains(batched.rand((2,)))
    assert batched[0] == spec
    assert batched[..., :2]["agents", "observation"].shape == (2, 3, 2)
    assert batched["state"].shape == (8, 5)
    with pytest.raises(SpecError, match="index into the batch dimensions"):
        batched[0, 0]


def test_enumerate_combines_the_entries() -> None:
    spec = Composite({"a": Categorical(2), "b": {"c": OneHot(3, torch.int64)}})
    values = spec.enumerate()
    assert spec.num_values == 6
    assert values["a"].tolist() == [0, 0, 0, 1, 1, 1]
    assert values["b", "c"].argmax(-1).tolist() == [0, 1, 2, 0, 1, 2]
    assert spec.contains(values)
    assert spec.expand(4).enumerate().batch_size == (6, 4)
    with pytest.raises(SpecError, match="must be finite"):
        Composite({"a": Categorical(2), "b": Unbounded()}).enumerate()


def test_replace_and_exclude_return_new_specs(nested: Composite) -> None:
    replaced = nested.replace({("next", "reward"): Unbounded(2), "extra": Binary()})
    assert replaced["next", "reward"].shape == (2,)
    assert "extra" in replaced
    assert "extra" not in nested
    assert nested["next", "reward"].shape == ()
    left = nested.exclude("action", ("next", "done"))
    assert list(left.leaves()) == ["observation", ("next", "reward")]
    with pytest.raises(MissingKeyError, match=r"'next\.absent' must be present"):
        nested.exclude(("next", "absent"))


def test_to_moves_all_and_changes_the_dtype_of_floats_only(nested: Composite) -> None:
    assert {leaf.device.type for leaf in nested.to("meta").leaves().values()} == {"meta"}
    assert nested.to("meta").device.type == "meta"
    assert Composite().to("meta").device.type == "meta"
    double = nested.to(torch.float64)
    assert double["next", "reward"].dtype == torch.float64
    assert double["action"].dtype == torch.int64
    assert double["next", "done"].dtype == torch.bool


def test_equality_ignores_the_order_of_entries(nested: Composite) -> None:
    turned = Composite(dict(reversed(list(nested.items()))))
    assert turned == nested
    assert hash(turned) == hash(nested)
    assert nested != nested.exclude("action")
    assert nested != nested.expand(2)
    assert nested != Categorical(4)


def test_readable_repr() -> None:
    spec = Composite({"observation": Bounded(-1.0, 1.0, (3,)), "next": {"reward": Unbounded()}})
    assert repr(spec) == (
        "Composite(\n    observation: Bounded(-1, 1, shape=[3]),\n    next: Composite(\n        reward: Unbounded(shape=[])))"
    )
    assert repr(Composite()) == "Composite()"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Composite(a=3), "Entry 'a' must be a Spec or a mapping of specs; got int"),
        (lambda: Composite({("a", "b"): None}), "Entry 'b' must be a Spec or a mapping of specs; got NoneType"),
        (lambda: Composite({"a": Unbounded()}, batch_shape=(2,)), r"begin with \[2\]; got \[\]\. Call expand"),
        (lambda: Composite(a=Unbounded(), b=Unbounded(device="meta")), "on one device; got a: cpu, b: meta"),
    ],
)
def test_a_wrong_description_is_explained(make, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


def test_device_moves_the_entries() -> None:
    spec = Composite({"a": Unbounded(), "b": Unbounded(device="meta"), "c": {"d": Binary()}}, device="meta")
    assert {leaf.device.type for leaf in spec.leaves().values()} == {"meta"}


def test_a_group_of_nothing_is_none():
    spec = Composite(a=Composite(x=Unbounded(1), y=Unbounded(1)), b=Unbounded(1))
    assert list(spec.exclude(("a", "x")).keys()) == ["a", "b"]
    assert list(spec.exclude(("a", "x"), ("a", "y")).keys()) == ["b"]
