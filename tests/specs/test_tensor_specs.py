"""Every spec of one tensor: the same laws for all, golden values for each."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rlbook.errors import SpecError
from rlbook.seeding import counter_uniform, env_keys
from rlbook.specs import Binary, Bounded, Categorical, MultiCategorical, OneHot, Spec, TensorSpec, Unbounded

INF = math.inf
FINITE = [
    Bounded(-1, 1, (2,), torch.int8),
    Bounded(torch.tensor([0, 5]), torch.tensor([2, 6])),
    Categorical(3),
    Categorical(3, shape=(2,)),
    Categorical(200, dtype=torch.uint8),
    OneHot(4),
    OneHot(3, dtype=torch.float32),
    MultiCategorical([2, 3]),
    MultiCategorical([[2, 1], [3, 2]], dtype=torch.int32),
    Binary(),
    Binary(3),
    Binary((2, 1), dtype=torch.int8),
]
INFINITE = [
    Bounded(-2.0, 2.0, (3,)),
    Bounded(torch.tensor([-1.0, 0.0, -INF, -INF]), torch.tensor([1.0, INF, 0.0, INF])),
    Bounded(0.1, 0.3, (2, 2), torch.float64),
    Bounded(-3e38, 3e38, ()),
    Bounded(-1.0, INF, (2,), torch.float16),
    Bounded(-4.0, 4.0, (2,), torch.bfloat16),
    Bounded(3, INF, (2,), torch.int64),
    Bounded(-INF, 7, (), torch.int16),
    Bounded(-(2**63), 2**63 - 1, (2,), torch.int64),
    Unbounded(),
    Unbounded((2, 3), torch.float64),
    Unbounded(4, torch.int32),
    Unbounded(2, torch.uint8),
]
ALL = FINITE + INFINITE
every_spec = pytest.mark.parametrize("spec", ALL, ids=repr)


@every_spec
def test_random_values_are_inside(spec: TensorSpec) -> None:
    x = spec.rand((64, 5))
    assert x.shape == (64, 5, *spec.shape)
    assert x.dtype == spec.dtype
    assert spec.contains(x)
    spec.check(x, batch=(64, 5))


@every_spec
@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-24])
def test_extreme_uniform_numbers_give_values_inside(spec: TensorSpec, u: float) -> None:
    assert spec.contains(spec.from_uniform(torch.full((2, spec.num_uniform), u)))


@pytest.mark.parametrize("spec", [spec for spec in ALL if getattr(spec, "bounded", True)], ids=repr)
def test_even_a_uniform_number_rounded_up_to_one_stays_inside(spec: TensorSpec) -> None:
    assert spec.contains(spec.from_uniform(torch.ones(2, spec.num_uniform)))


@every_spec
def test_the_same_uniform_numbers_give_the_same_values(spec: TensorSpec) -> None:
    u = counter_uniform(env_keys(0, 4), 7, spec.num_uniform)
    assert torch.equal(spec.from_uniform(u), spec.from_uniform(u.clone()))
    assert torch.equal(spec.from_uniform(u)[2], spec.from_uniform(u[2]))
    a, b = (spec.rand((5,), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)


@every_spec
def test_zero_is_inside_and_projection_keeps_what_is_inside(spec: TensorSpec) -> None:
    zero, x = spec.zero((3,)), spec.rand((3,))
    assert zero.shape == (3, *spec.shape)
    assert spec.contains(zero)
    assert torch.equal(spec.project(x), x)


@every_spec
def test_projection_brings_everything_inside(spec: TensorSpec) -> None:
    noise = 100 * torch.randn(20, *spec.shape)
    assert spec.contains(spec.project(noise))
    assert spec.contains(spec.project(noise.long()))
    assert spec.contains(spec.project(noise > 0))


@every_spec
def test_expand_and_index_change_the_batch_only(spec: TensorSpec) -> None:
    batched = spec.expand(4, 2)
    assert batched.shape == (4, 2, *spec.shape)
    assert batched == spec.expand((4, 2))
    assert batched != spec
    assert batched.contains(batched.rand((3,)))
    assert batched[1:, 0].shape == (3, *spec.shape)
    assert batched[0, 1] == spec
    assert batched[torch.tensor([True, False, True, False])].batch_shape == (2, 2)
    with pytest.raises(SpecError, match="index into the batch dimensions \\[\\]"):
        spec[0]


@every_spec
def test_equality_and_repr(spec: TensorSpec) -> None:
    twin = spec.expand(2)[0]
    assert twin == spec
    assert hash(twin) == hash(spec)
    assert sum(spec == other for other in ALL) == 1
    assert spec != "something else"
    assert repr(spec).startswith(type(spec).__name__ + "(")
    assert len(repr(spec)) < 70


@every_spec
def test_to_another_device_moves_everything(spec: TensorSpec) -> None:
    moved = spec.to("meta")
    assert moved.device.type == "meta"
    assert spec.device.type == "cpu"
    assert all(v.device.type == "meta" for v in vars(moved).values() if isinstance(v, torch.Tensor))
    assert not spec.contains(torch.zeros(spec.shape, dtype=spec.dtype, device="meta"))


@pytest.mark.parametrize("spec", FINITE, ids=repr)
def test_enumerate_lists_each_value_once(spec: TensorSpec) -> None:
    values = spec.enumerate()
    assert len(values) == spec.num_values == spec.cardinality()
    assert spec.contains(values, batch=(spec.num_values,))
    assert len(values.flatten(1).unique(dim=0) if values.ndim > 1 else values.unique()) == spec.num_values
    drawn = spec.rand((5000,)).reshape(5000, -1).unique(dim=0)
    assert len(drawn) == spec.num_values  # and rand reaches all of them
    assert spec.expand(2, 3).enumerate().shape == (spec.num_values, 2, 3, *spec.shape)


@pytest.mark.parametrize("spec", INFINITE, ids=repr)
def test_what_cannot_be_listed_says_so(spec: TensorSpec) -> None:
    with pytest.raises(SpecError, match=r"must be finite|at most 1048576"):
        spec.enumerate()


def test_enumerate_golden_values() -> None:
    assert Categorical(3).enumerate().tolist() == [0, 1, 2]
    assert MultiCategorical([2, 3]).enumerate().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert Bounded(-1, 0, (2,), torch.int64).enumerate().tolist() == [[-1, -1], [-1, 0], [0, -1], [0, 0]]
    assert OneHot(2, dtype=torch.int64).enumerate().tolist() == [[1, 0], [0, 1]]
    assert Binary().enumerate().tolist() == [False, True]


def test_num_values_of_an_image_is_huge_but_known() -> None:
    image = Bounded(0, 255, (2, 2), torch.uint8)
    assert image.num_values == 256**4
    with pytest.raises(SpecError, match="at most 1048576"):
        image.enumerate()
    assert Unbounded().cardinality() == INF
    with pytest.raises(SpecError, match="must be finite; got Unbounded"):
        _ = Unbounded().num_values


def test_quantiles_worked_by_hand() -> None:
    u = torch.tensor([[0.0], [0.25], [0.75]])
    assert_close(Bounded(-2.0, 2.0, (1,)).from_uniform(u), torch.tensor([[-2.0], [-1.0], [1.0]]))
    assert Categorical(4).from_uniform(u).tolist() == [0, 1, 3]
    assert MultiCategorical([2]).from_uniform(u).tolist() == [[0], [0], [1]]
    assert OneHot(2, dtype=torch.int64).from_uniform(u).tolist() == [[1, 0], [1, 0], [0, 1]]
    assert Binary(1).from_uniform(u).tolist() == [[True], [True], [False]]
    assert Bounded(-1, 2, (1,), torch.int64).from_uniform(u).tolist() == [[-1], [0], [2]]  # -1 + floor(4 u)
    # Distance from the one bound: -log(1 - u) = 0, 0.287682, 1.386294.
    assert_close(Bounded(1.0, INF, (1,)).from_uniform(u), torch.tensor([[1.0], [1.287682], [2.386294]]))
    assert_close(Bounded(-INF, 1.0, (1,)).from_uniform(u), torch.tensor([[1.0], [0.712318], [-0.386294]]))
    assert Bounded(1, INF, (1,), torch.int64).from_uniform(u).tolist() == [[1], [1], [2]]
    # The quartiles of the standard normal are -0.674490 and 0.674490.
    assert_close(Unbounded(1).from_uniform(u[1:]), torch.tensor([[-0.674490], [0.674490]]))


def test_from_uniform_checks_its_size() -> None:
    with pytest.raises(SpecError, match=r"u must be of shape \[\.\.\., 2\].*got \[4, 3\]"):
        MultiCategorical([2, 3]).from_uniform(torch.rand(4, 3))


def test_rand_is_uniform_over_a_box_and_over_choices() -> None:
    x = Bounded(-1.0, 3.0, (2,)).rand((20_000,))
    assert_close(x.mean(0), torch.full((2,), 1.0), atol=0.04, rtol=0)  # std of the mean: 4 / sqrt(12 * 20000) = 0.008
    assert_close(x.var(0), torch.full((2,), 16 / 12), atol=0.05, rtol=0)
    counts = Categorical(4).rand((20_000,)).bincount(minlength=4)
    assert_close(counts / 20_000, torch.full((4,), 0.25), atol=0.015, rtol=0)  # five standard deviations


def test_project_golden_values() -> None:
    assert Bounded(-2.0, 2.0, (2,)).project(torch.tensor([5.0, -1.0])).tolist() == [2.0, -1.0]
    assert Categorical(3).project(torch.tensor([-4.0, 0.4, 1.6, 9.0])).tolist() == [0, 0, 2, 2]
    assert OneHot(3, dtype=torch.int64).project(torch.tensor([0.2, 0.1, 0.9])).tolist() == [0, 0, 1]
    assert MultiCategorical([2, 3]).project(torch.tensor([5, 5])).tolist() == [1, 2]
    assert Binary(3).project(torch.tensor([-1.0, 0.4, 0.6])).tolist() == [False, False, True]
    assert Bounded(0, 255, (1,), torch.uint8).project(torch.tensor([300])).tolist() == [255]  # clipped, not wrapped to 44
    with pytest.raises(SpecError, match=r"value to project must be of shape \[\.\.\., 2\]; got \[3\]"):
        Bounded(-2.0, 2.0, (2,)).project(torch.zeros(3))
    assert Unbounded(2).project(torch.tensor([math.nan, 1.0]))[0].isnan()


def test_projection_onto_a_box_carries_a_gradient_where_it_does_not_clip() -> None:
    x = torch.tensor([0.5, 3.0], requires_grad=True)
    Bounded(-1.0, 1.0, (2,)).project(x).sum().backward()
    assert_close(x.grad, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    "spec, x, message",
    [
        (Bounded(-2.0, 2.0, (2,)), torch.zeros(3), r"^action must be of shape \[\.\.\., 2\]; got \[3\]\. Return a tensor"),
        (Bounded(-2.0, 2.0, (2,)), torch.zeros(5, 2, 1), r"Remove the trailing dimension with \.squeeze\(-1\)\.$"),
        (Bounded(-2.0, 2.0, (1,)), torch.tensor(0.0), r"Add the trailing dimension with \.unsqueeze\(-1\)\.$"),
        (
            Categorical(2),
            torch.tensor([0.0, 1.0]),
            r"of dtype torch\.int64; got torch\.float32\. Convert it with \.to\(torch.int64\)",
        ),
        (
            Categorical(2),
            torch.zeros(2, dtype=torch.int64, device="meta"),
            r"on device cpu; got meta\. Move it with \.to\(\"cpu\"\)",
        ),
        (Categorical(2), torch.tensor([[0, 1], [7, 0]]), r"one of the integers 0 to 1; got 7 at index \[1, 0\]\. .*project"),
        (Categorical(2), torch.tensor(-1), r"one of the integers 0 to 1; got -1\. "),
        (Categorical(2), 1, r"must be a tensor; got int\. Convert it with torch\.as_tensor\(value, dtype=torch\.int64\)"),
        (Bounded(-2.0, 2.0, (2,)), torch.tensor([0.5, 2.5]), r"between -2 and 2; got 2\.5 at index \[1\]"),
        (Bounded(-2.0, 2.0, (2,)), torch.tensor([0.5, INF]), r"between -2 and 2; got inf at index \[1\]"),
        (Bounded(torch.arange(6), 9), torch.tensor([[0, 1, 2, 3, 4, 4]]), r"between 5 and 9; got 4 at index \[0, 5\]"),
        (Bounded(0, INF, (2,), torch.int64), torch.tensor([0, -1]), r"between 0 and inf; got -1 at index \[1\]"),
        (Bounded(-INF, 0.0, (2,)), torch.tensor([0.5, -1.0]), r"between -inf and 0; got 0\.5 at index \[0\]"),
        (Bounded(-2.0, 2.0, (2,)), torch.tensor([[0.5, math.nan]]), r"free of NaN; got NaN at index \[0, 1\]\. Find where"),
        (Unbounded(), torch.tensor(math.nan), r"free of NaN; got NaN\. "),
        (
            OneHot(3),
            torch.tensor([[False] * 3, [True] * 3]),
            r"a single 1 among 3 entries, the rest 0; got \[False, False, False\] at index \[0\]",
        ),
        (OneHot(2, torch.int64), torch.tensor([0, 2]), r"one-hot.*; got \[0, 2\]\. "),
        (MultiCategorical([2, 3]), torch.tensor([1, 3]), r"one of the integers 0 to 2; got 3 at index \[1\]"),
        (Binary(2, torch.int8), torch.tensor([1, 2], dtype=torch.int8), r"0 or 1; got 2 at index \[1\]"),
    ],
    ids=lambda v: None,
)
def test_check_explains_what_is_wrong(spec: Spec, x: object, message: str) -> None:
    assert not spec.contains(x)
    assert not spec.is_in(x)
    with pytest.raises(SpecError, match=message):
        spec.check(x)


def test_check_names_the_key_and_the_exact_batch() -> None:
    spec = Unbounded()
    reward = torch.zeros(64, 1)
    assert spec.contains(reward)  # 64 by 1 environments?
    assert not spec.contains(reward, batch=(64,))
    with pytest.raises(SpecError, match=r"^next\.reward must be of shape \[64\]; got \[64, 1\]\. Remove the trailing dimension"):
        spec.check(reward, ("next", "reward"), batch=(64,))
    spec.check(torch.zeros(64), ("next", "reward"), batch=(64,))


def test_infinity_is_inside_where_there_is_no_bound() -> None:
    assert Unbounded().contains(torch.tensor(INF))
    assert Bounded(0.0, INF, ()).contains(torch.tensor(INF))
    assert not Bounded(0.0, 1.0, ()).contains(torch.tensor(INF))


def test_bounds_are_inclusive_and_reached_exactly() -> None:
    spec = Bounded(-0.1, 0.3, (1,))
    low, high = spec.from_uniform(torch.tensor([[0.0], [1.0]]))
    assert_close(low, spec.low, rtol=0, atol=0)
    assert_close(high, spec.high, rtol=0, atol=0)
    assert not spec.contains(torch.nextafter(spec.high, torch.tensor(INF)))


@given(
    st.floats(-(2.0**99), 2.0**99, width=32),
    st.floats(-(2.0**99), 2.0**99, width=32),
    st.floats(0, 1, width=32, exclude_max=True),
)
def test_no_rounding_leaves_a_box(a: float, b: float, u: float) -> None:
    spec = Bounded(min(a, b), max(a, b), (1,))
    assert spec.contains(spec.from_uniform(torch.tensor([u])))


@given(st.integers(1, 2**63 - 1), st.floats(0, 1, width=32, exclude_max=True))
def test_no_rounding_leaves_the_choices(n: int, u: float) -> None:
    for spec in (Categorical(n), MultiCategorical([n])):
        assert spec.contains(spec.from_uniform(torch.tensor([u])))


def test_bounded_takes_its_layout_from_its_bounds() -> None:
    spec = Bounded(torch.tensor([-1.0, -2.0], dtype=torch.float64), 5)
    assert spec.shape == (2,)
    assert spec.dtype == torch.float64
    assert spec.bounded
    assert_close(spec.high, torch.tensor([5.0, 5.0], dtype=torch.float64))
    half = Bounded(0, INF, (2,), torch.int64)
    assert not half.bounded
    assert half.bounded_below.all()
    assert not half.bounded_above.any()
    assert half.high.tolist() == [2**63 - 1] * 2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Bounded(1.0, -1.0, (2,)), "low must be at most high; got low=1.0, high=-1.0"),
        (lambda: Bounded(torch.tensor([0.0, 3.0]), 1.0), "low must be at most high"),
        (lambda: Bounded(math.nan, 1.0, ()), "low must be a number or infinite; got NaN"),
        (lambda: Bounded(torch.zeros(3), 1.0, (2,)), r"low must be broadcastable to shape \[2\]; got shape \[3\]"),
        (lambda: Bounded(0, 256, (), torch.uint8), "high must be a whole number that torch.uint8 holds; got 256"),
        (lambda: Bounded(0.5, 3, (), torch.int64), "low must be a whole number that torch.int64 holds; got 0.5"),
        (lambda: Bounded(0, 1, (), torch.bool), "dtype of Bounded must be one of float16.*got torch.bool"),
        (lambda: Unbounded((), torch.complex64), "dtype of Unbounded must be one of .*got torch.complex64"),
        (lambda: Unbounded((-1, 2)), "shape must be an integer or a tuple of integers >= 0"),
        (lambda: Unbounded("three"), "shape must be an integer or a tuple of integers >= 0; got 'three'"),
        (lambda: Categorical(0), "number of choices must be an integer from 1 to .*; got 0"),
        (lambda: Categorical(2.5), "number of choices must be an integer from 1 to .*; got 2.5"),
        (lambda: Categorical(True), "number of choices must be an integer from 1 to .*; got True"),
        (lambda: Categorical(300, dtype=torch.uint8), "from 1 to 256"),
        (lambda: Categorical(3, dtype=torch.float32), "dtype of Categorical must be one of uint8"),
        (lambda: OneHot(-1), "number of choices must be an integer from 1"),
        (lambda: MultiCategorical([2, 0]), "number of choices must be an integer from 1"),
        (lambda: Categorical(3).expand(2)[5], "index into the batch dimensions.*out of bounds"),
    ],
    ids=lambda v: None if callable(v) else v[:40],
)
def test_a_wrong_description_is_explained(make, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


def test_to_another_dtype_keeps_the_values() -> None:
    assert Bounded(-2.0, 2.0, (2,)).expand(3).to(torch.float64) == Bounded(-2.0, 2.0, (2,), torch.float64).expand(3)
    assert Bounded(-2.0, 2.0, (2,)).to(torch.int32) == Bounded(-2, 2, (2,), torch.int32)
    opened = Bounded(0, INF, (2,), torch.int64).to(torch.float32)
    assert opened == Bounded(0.0, INF, (2,))
    assert Bounded(0, INF, (2,), torch.int64).to(torch.int32).high.tolist() == [2**31 - 1] * 2
    assert Categorical(4, (2,)).to(torch.int32) == Categorical(4, (2,), torch.int32)
    assert OneHot(4).to(torch.float32) == OneHot(4, torch.float32)
    assert MultiCategorical([2, 3]).to(torch.uint8) == MultiCategorical([2, 3], torch.uint8)
    assert Binary(2).to(torch.int8) == Binary(2, torch.int8)
    assert Unbounded(2).to(torch.float64) == Unbounded(2, torch.float64)


def test_readable_repr() -> None:
    assert repr(Bounded(-2.0, 2.0, (1,))) == "Bounded(-2, 2, shape=[1])"
    assert repr(Bounded(torch.arange(6), 9)) == "Bounded([0, 1, 2, 3, ...], 9, shape=[6], int64)"
    assert repr(Bounded(0, INF, (2,), torch.int64)) == "Bounded(0, inf, shape=[2], int64)"
    assert repr(Categorical(4).expand(8)) == "Categorical(4, batch=[8])"
    assert repr(Categorical(4, (2,), torch.int32)) == "Categorical(4, shape=[2], int32)"
    assert repr(OneHot(4)) == "OneHot(4)"
    assert repr(MultiCategorical([2, 3])) == "MultiCategorical([2, 3])"
    assert repr(Binary(3, torch.int8)) == "Binary(shape=[3], int8)"
    assert repr(Unbounded(3).to("meta")) == "Unbounded(shape=[3], device=meta)"


@pytest.mark.parametrize("spec", [Bounded(-2.0, 2.0, (3,)), Categorical(5), OneHot(3), MultiCategorical([2, 3])], ids=repr)
def test_drawing_compiles_into_one_graph(spec: TensorSpec) -> None:
    u = torch.rand(6, spec.num_uniform)
    compiled = torch.compile(spec.from_uniform, fullgraph=True, backend="eager")
    assert torch.equal(compiled(u), spec.from_uniform(u))


def test_projecting_never_wraps_round() -> None:
    huge = torch.tensor([1e30, -1e30, 300.0])
    assert Bounded(0, float("inf"), (), torch.int32).project(huge).tolist() == [2**31 - 1, 0, 300]
    assert (Bounded(0, float("inf"), (), torch.int64).project(huge) >= 0).all()
    assert Unbounded((), torch.uint8).project(huge).tolist() == [255, 0, 255]
    assert Unbounded((), torch.uint8).project(torch.tensor([300, -5])).tolist() == [255, 0]
    for spec in (Categorical(3), Binary(1, torch.bool)):
        with pytest.raises(SpecError, match="The value to project must be a number"):
            spec.project(torch.tensor([math.nan]))
