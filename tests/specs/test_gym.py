"""Gymnasium spaces to specs and back, and the values between them."""

from __future__ import annotations

import math

import gymnasium.spaces as spaces
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlbook.errors import SpecError
from rlbook.specs import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    OneHot,
    Unbounded,
    decode,
    encode,
    from_gym,
    to_gym,
)

FLOATS = ["float16", "float32", "float64"]
INTEGERS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)
seeds = st.integers(0, 2**16)


@st.composite
def float_boxes(draw) -> spaces.Box:
    """Boxes with any mix of finite and infinite bounds."""
    shape, dtype = draw(shapes), np.dtype(draw(st.sampled_from(FLOATS)))
    rng = np.random.default_rng(draw(seeds))
    scale = 10.0 ** draw(st.integers(-3, 4))
    a, b = rng.normal(0, scale, (2, *shape)).astype(dtype)
    open_below, open_above = rng.random((2, *shape)) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    low, high = np.where(open_below, -np.inf, np.minimum(a, b)), np.where(open_above, np.inf, np.maximum(a, b))
    return spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype)


@st.composite
def integer_boxes(draw) -> spaces.Box:
    """Boxes of integers, also with the widest bounds of their dtype, or one or two open sides."""
    shape, dtype = draw(shapes), np.dtype(draw(st.sampled_from(INTEGERS)))
    limits = np.iinfo(dtype)
    largest = min(int(limits.max), 2**63 - 2)  # Gymnasium's own limit
    low, high = sorted(draw(st.tuples(*[st.integers(limits.min, largest)] * 2)))
    kind = draw(st.sampled_from(["given", "full", "open"]))
    if kind == "full":
        low, high = limits.min, largest
    if kind == "open" and dtype.kind == "i":
        low, high = max(low, -(2**52)), min(high, 2**52)  # a mix of numbers and infinities passes through float64
        low, high = draw(st.sampled_from([(-np.inf, np.inf), (-np.inf, high), (low, np.inf)]))
    return spaces.Box(low, high, shape, dtype.type)


simple_spaces = st.one_of(
    float_boxes(),
    integer_boxes(),
    st.builds(lambda shape: spaces.Box(0, 1, shape, np.bool_), shapes),
    st.builds(
        lambda n, start, dtype: spaces.Discrete(n, start=start, dtype=dtype),
        st.integers(1, 50),
        st.integers(-20, 20),
        st.sampled_from([np.int64, np.int32]),
    ),
    st.builds(
        lambda shape, seed, moved: spaces.MultiDiscrete(
            np.random.default_rng(seed).integers(1, 6, shape or (1,)), start=np.full(shape or (1,), 3) if moved else None
        ),
        shapes,
        seeds,
        st.booleans(),
    ),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=2, max_size=2))),
)
any_space = st.recursive(
    simple_spaces,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
        st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3).map(spaces.Dict),
    ),
    max_leaves=4,
)


def same(a, b) -> bool:
    """Compare two samples of a space, nested or not."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return np.shape(a) == np.shape(b) and a.dtype == b.dtype and np.array_equal(a, b)


@given(any_space, seeds)
def test_samples_of_the_space_are_in_the_spec(space: spaces.Space, seed: int) -> None:
    space.seed(seed)
    spec = from_gym(space)
    for _ in range(5):
        spec.check(encode(space.sample(), space), batch=())


@given(any_space, seeds)
def test_random_values_of_the_spec_are_in_the_space(space: spaces.Space, seed: int) -> None:
    spec = from_gym(space)
    for value in spec.rand((5,), generator=torch.Generator().manual_seed(seed)):
        assert space.contains(decode(value, space))


@given(any_space, seeds)
def test_decode_inverts_encode_up_to_float32(space: spaces.Space, seed: int) -> None:
    space.seed(seed)
    sample = space.sample()
    again = decode(encode(sample, space), space)
    assert same(decode(encode(again, space), space), again)
    if "float64" not in repr(space) and "uint64" not in repr(space):
        assert same(again, sample)


@given(any_space)
def test_a_spec_survives_the_round_trip(space: spaces.Space) -> None:
    spec = from_gym(space)
    assert from_gym(to_gym(spec)) == spec


def test_golden_conversions() -> None:
    assert from_gym(spaces.Box(-2.0, 2.0, (3,))) == Bounded(-2.0, 2.0, (3,))
    assert from_gym(spaces.Box(-2.0, 2.0, (3,), np.float64)) == Bounded(-2.0, 2.0, (3,))
    assert from_gym(spaces.Box(-np.inf, np.inf, (3,), np.float64)) == Unbounded(3)
    assert from_gym(spaces.Box(0, 255, (4, 4, 3), np.uint8)) == Bounded(0, 255, (4, 4, 3), torch.uint8)
    assert from_gym(spaces.Box(0, 9, (2,), np.uint16)) == Bounded(0, 9, (2,), torch.int32)
    assert from_gym(spaces.Box(0, np.inf, (2,), np.int64)) == Bounded(0, math.inf, (2,), torch.int64)
    assert from_gym(spaces.Discrete(4)) == Categorical(4)
    assert from_gym(spaces.MultiDiscrete([[2, 3], [4, 5]])) == MultiCategorical([[2, 3], [4, 5]])
    assert from_gym(spaces.MultiBinary([2, 2])) == Binary((2, 2), torch.int8)
    assert from_gym(spaces.Box(0, 1, (2,), np.bool_)) == Binary(2)
    nested = spaces.Dict(position=spaces.Box(-1, 1, (2,)), parts=spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(3)]))
    assert from_gym(nested) == Composite(
        {"position": Bounded(-1.0, 1.0, (2,)), "parts": {"0": Categorical(2), "1": Binary(3, torch.int8)}}
    )
    assert from_gym(spaces.Discrete(4), device="meta").device.type == "meta"
    assert from_gym(nested, device="meta").device.type == "meta"


def test_start_is_subtracted_on_the_way_in_and_added_on_the_way_out() -> None:
    space = spaces.Discrete(3, start=-1)
    assert encode(np.int64(-1), space).item() == 0
    assert encode(np.array([1, 0]), space).tolist() == [2, 1]
    assert decode(torch.tensor(2), space) == 1
    assert isinstance(decode(torch.tensor(2), space), np.int64)
    several = spaces.MultiDiscrete([2, 3], start=[5, -5])
    assert encode(np.array([6, -5]), several).tolist() == [1, 0]
    assert decode(torch.tensor([1, 0]), several).tolist() == [6, -5]


def test_values_of_a_vector_environment_keep_their_batch() -> None:
    space = spaces.Dict(position=spaces.Box(-1, 1, (2,)), parts=spaces.Tuple([spaces.Discrete(2)]))
    value = {"position": np.zeros((8, 2), np.float32), "parts": (np.ones(8, np.int64),)}
    td = encode(value, space, batch=(8,))
    assert td.batch_size == (8,)
    from_gym(space).check(td, batch=(8,))
    assert same(decode(td, space), value)


def test_rounding_to_float64_never_leaves_the_space() -> None:
    space = spaces.Box(-0.1, 0.1, (1,), np.float64)  # 0.1 as float32 is larger than 0.1
    spec = from_gym(space)
    assert spec.high.item() > 0.1
    assert space.contains(decode(spec.high, space))
    assert space.contains(decode(spec.low, space))


def test_float64_beyond_float32_is_infinite() -> None:
    space = spaces.Box(-1e300, 1e300, (1,), np.float64)
    spec = from_gym(space)
    spec.check(encode(np.array([1e299]), space))
    assert space.contains(decode(spec.rand(), space))


def test_the_widest_unsigned_integers_are_clipped() -> None:
    space = spaces.Box(0, 2**63 - 2, (1,), np.uint64)
    assert encode(np.array([2**64 - 1], np.uint64), space).tolist() == [2**63 - 1]


def test_to_gym_golden() -> None:
    assert to_gym(Categorical(4)) == spaces.Discrete(4)
    assert to_gym(Categorical(4).expand(3)) == spaces.MultiDiscrete([4, 4, 4])
    assert to_gym(MultiCategorical([2, 3]).expand(2)) == spaces.MultiDiscrete([[2, 3], [2, 3]])
    assert to_gym(Bounded(-2.0, 2.0, (3,)).expand(2)) == spaces.Box(-2.0, 2.0, (2, 3))
    assert to_gym(OneHot(3)) == spaces.MultiBinary((3,))
    assert to_gym(Binary(())) == spaces.Box(0, 1, (), np.bool_)
    assert to_gym(Binary(2, torch.int8)) == spaces.MultiBinary((2,))
    assert to_gym(Composite(a=Categorical(2))) == spaces.Dict(a=spaces.Discrete(2))


@pytest.mark.parametrize(
    "spec",
    [
        OneHot(3),
        OneHot(3, torch.float32),
        Binary(()),
        Unbounded(3, torch.bfloat16),
        Categorical(3, (2,)).expand(2),
        Unbounded(2, torch.uint8),
    ],
    ids=repr,
)
def test_values_of_any_spec_are_in_its_space(spec) -> None:
    space = to_gym(spec)
    for value in spec.rand((10,)):
        assert space.contains(decode(value, space))


@pytest.mark.parametrize(
    "space, advice",
    [
        (spaces.Text(5), "Encode the text as a fixed-size Box"),
        (spaces.Sequence(spaces.Discrete(2)), "Pad the sequence"),
        (spaces.Graph(spaces.Discrete(2), None), "Pad nodes and edges"),
        (spaces.OneOf([spaces.Discrete(2)]), "Replace it by a Dict"),
        (spaces.Box(1, 1, (2,), np.bool_), "Convert it to one of these in a gymnasium wrapper"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_spaces_without_tensor_form_say_what_to_do(space: spaces.Space, advice: str) -> None:
    with pytest.raises(SpecError, match=f"The Gymnasium space must be a Box, Discrete.*{advice}"):
        from_gym(space)
    with pytest.raises(SpecError, match="The Gymnasium space must be"):
        from_gym(spaces.Dict(inner=spaces.Tuple([space])))


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Sequence(spaces.Discrete(2))], ids=lambda v: type(v).__name__)
def test_values_without_tensor_form_are_refused(space: spaces.Space) -> None:
    with pytest.raises(SpecError, match="The Gymnasium space must be"):
        encode(space.sample(), space)
    with pytest.raises(SpecError, match="The Gymnasium space must be"):
        decode(torch.zeros(3), space)
    with pytest.raises(SpecError, match=r"The spec must be one of rlbook\.specs; got str"):
        to_gym("CartPole")
