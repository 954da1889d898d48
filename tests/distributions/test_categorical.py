"""Discrete distributions against torch.distributions, by hand, and at their extremes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributions as D
from torch.testing import assert_close

from rlbook import specs
from rlbook.distributions import Bernoulli, Categorical, MultiCategorical, OneHotCategorical
from rlbook.errors import ConfigError, SpecError

LOG3 = math.log(3)


def chi_squared_p(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """Return the probability of a chi-squared statistic at least as large as that of the counts."""
    expected = probs.double() * counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), statistic / 2).item()


# Categorical ---------------------------------------------------------------------------------------------------------------


def test_categorical_by_hand() -> None:
    dist = Categorical(torch.tensor([0.0, LOG3]))  # probabilities 1/4 and 3/4
    assert_close(dist.probs, torch.tensor([0.25, 0.75]))
    assert_close(dist.log_prob(torch.tensor(1)), torch.tensor(math.log(0.75)))
    assert_close(dist.entropy(), torch.tensor(0.562335))  # -(1/4 log 1/4 + 3/4 log 3/4)
    assert dist.mode.item() == 1
    uniform = Categorical(torch.zeros(2))
    assert_close(dist.kl(uniform), torch.tensor(math.log(2) - 0.562335))
    assert_close(uniform.kl(dist), torch.tensor(0.143841))  # 1/2 log(1/2 / 1/4) + 1/2 log(1/2 / 3/4) = 1/2 log(4/3)


def test_categorical_equals_torch_in_values_and_gradients() -> None:
    logits = torch.randn(6, 4, 5, requires_grad=True)
    x = torch.randint(5, (6, 4))
    ours, theirs = Categorical(logits), D.Categorical(logits=logits)
    other = torch.randn(6, 4, 5)
    pairs = [
        (ours.log_prob(x), theirs.log_prob(x)),
        (ours.entropy(), theirs.entropy()),
        (ours.kl(Categorical(other)), D.kl_divergence(theirs, D.Categorical(logits=other))),
    ]
    for mine, reference in pairs:
        assert mine.shape == (6, 4)
        assert_close(mine, reference)
        gradients = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (mine, reference)]
        assert_close(*gradients)
    assert ours.batch_shape == (6, 4)
    assert torch.equal(ours.mode, theirs.mode)


def test_log_prob_of_many_actions_per_row() -> None:
    dist = Categorical(torch.randn(4, 3))
    every = torch.arange(3).unsqueeze(-1).expand(3, 4)
    assert_close(dist.log_prob(every), dist.logits.T)


def test_inverse_cdf_by_hand() -> None:
    dist = Categorical(torch.tensor([0.2, 0.5, 0.3]).log().expand(5, 3))  # the cumulative distribution is 0.2, 0.7, 1
    assert dist.sample(torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71])).tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-24, 1.0])
def test_every_noise_gives_a_choice_even_when_it_rounds_to_one(n: int, u: float) -> None:
    dist = Categorical(torch.randn(50, n))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = dist.sample(torch.full((50,), u, dtype=dtype))
        assert specs.Categorical(n).contains(x, batch=(50,))
        assert (x == (0 if u == 0 else n - 1)).all()


def test_sampling_frequencies() -> None:
    probs = torch.tensor([0.5, 0.25, 0.15, 0.1])
    counts = Categorical(probs.log().expand(40_000, 4)).sample().bincount(minlength=4)
    assert chi_squared_p(counts, probs) > 1e-3


def test_own_noise_is_base_noise() -> None:
    dist = Categorical(torch.randn(100, 5))
    torch.manual_seed(1)
    x = dist.sample()
    torch.manual_seed(1)
    assert torch.equal(x, dist.sample(Categorical.base_noise((100,))))
    a, b = (Categorical.base_noise((100,), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)


def test_samples_carry_no_gradient_and_have_the_dtype_asked_for() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    x, log_prob = Categorical(logits, dtype=torch.int32).sample_with_log_prob()
    assert x.dtype == torch.int32
    assert not x.requires_grad
    assert log_prob.requires_grad
    assert Categorical(logits, dtype=torch.uint8).mode.dtype == torch.uint8


def test_masked_choices_have_probability_zero_and_no_gradient() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True, False]])
    dist, kept = Categorical(logits, mask), Categorical(logits[:, [0, 2]])
    assert dist.probs[0, [1, 3]].tolist() == [0.0, 0.0]
    assert_close(dist.probs[:, [0, 2]], kept.probs)
    assert_close(dist.entropy(), kept.entropy())
    assert_close(dist.log_prob(torch.tensor([2])), kept.log_prob(torch.tensor([1])))
    assert dist.log_prob(torch.tensor([1])).item() < -1e38
    assert dist.mode.tolist() == [2]
    assert_close(dist.kl(Categorical(torch.zeros(1, 4), mask)), math.log(2) - kept.entropy())
    for value in (dist.entropy(), dist.log_prob(torch.tensor([0])), dist.kl(Categorical(torch.zeros(1, 4), mask))):
        (gradient,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
        assert gradient[0, [1, 3]].tolist() == [0.0, 0.0]
        assert gradient[0, [0, 2]].abs().min() > 0


@pytest.mark.parametrize("forbidden", ["mask", "logits"])
def test_forbidden_choices_are_never_drawn(forbidden: str) -> None:
    logits, mask = torch.randn(2000, 6), torch.rand(2000, 6) < 0.5
    mask[:, 3] = True
    dist = Categorical(logits, mask) if forbidden == "mask" else Categorical(logits.masked_fill(~mask, -math.inf))
    for u in (None, torch.zeros(2000), torch.ones(2000), torch.full((2000,), 1 - 2.0**-24)):
        assert mask.gather(-1, dist.sample(u).unsqueeze(-1)).all()


def test_a_row_that_forbids_everything_is_uniform_not_nan() -> None:
    logits = torch.randn(1, 4, requires_grad=True)
    dist = Categorical(logits, torch.zeros(1, 4, dtype=torch.bool))
    assert_close(dist.entropy(), torch.tensor([math.log(4)]))
    (gradient,) = torch.autograd.grad(dist.entropy().sum(), logits)
    assert gradient.tolist() == [[0.0] * 4]


@pytest.mark.parametrize("logits", [[1e4, 0.0, -1e4], [0.0, -math.inf, 1.0], [-math.inf, 1e4, 1e4], [-1e4, -1e4, -1e4]])
def test_extreme_logits_stay_finite(logits: list[float]) -> None:
    parameter = torch.tensor([logits], requires_grad=True)
    dist = Categorical(parameter)
    other = Categorical(torch.tensor([logits]))
    for value in (dist.entropy(), dist.kl(other), dist.log_prob(dist.mode)):
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), parameter, retain_graph=True)
        assert gradient.isfinite().all()
    assert_close(dist.kl(other), torch.zeros(1))
    assert_close(dist.entropy(), D.Categorical(logits=parameter.double()).entropy().float())


def test_a_trailing_one_is_refused_not_broadcast() -> None:
    with pytest.raises(SpecError, match=r"x must be of shape \[\.\.\., 64\]; got \[64, 1\]\. .*squeeze\(-1\)"):
        Categorical(torch.randn(64, 3)).log_prob(torch.zeros(64, 1, dtype=torch.int64))


def test_what_a_categorical_has_not() -> None:
    dist = Categorical(torch.zeros(2))
    with pytest.raises(ConfigError, match=r"mean of Categorical must be defined.*Use mode"):
        _ = dist.mean
    with pytest.raises(ConfigError, match=r"rsample of Categorical must be defined.*score-function"):
        dist.rsample()
    assert not dist.has_rsample


# OneHotCategorical ---------------------------------------------------------------------------------------------------------


def test_one_hot_is_a_categorical_in_other_clothes() -> None:
    logits, mask, u = torch.randn(50, 4), torch.rand(50, 4) < 0.7, torch.rand(50)
    mask[:, 0] = True
    index, dist = Categorical(logits, mask), OneHotCategorical(logits, mask, dtype=torch.bool)
    x = dist.sample(u)
    assert specs.OneHot(4).contains(x, batch=(50,))
    assert torch.equal(x.int().argmax(-1), index.sample(u))
    assert_close(dist.log_prob(x), index.log_prob(index.sample(u)))
    assert_close(dist.log_prob(x.float()), index.log_prob(index.sample(u)))
    assert_close(dist.entropy(), index.entropy())
    assert torch.equal(dist.mode.int().argmax(-1), index.mode)
    assert_close(dist.mean, index.probs)
    assert_close(dist.kl(OneHotCategorical(torch.zeros(50, 4), mask)), index.kl(Categorical(torch.zeros(50, 4), mask)))
    assert dist.batch_shape == (50,)
    assert OneHotCategorical.base_noise((50, 4)).shape == (50,)


def test_one_hot_log_prob_ignores_impossible_entries() -> None:
    dist = OneHotCategorical(torch.tensor([0.0, -math.inf]))
    assert dist.log_prob(torch.tensor([1.0, 0.0])).item() == 0.0
    assert dist.log_prob(torch.tensor([0.0, 1.0])).item() == -math.inf


def test_straight_through_gradient_is_that_of_the_probabilities() -> None:
    logits, weights = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    dist = OneHotCategorical(logits)
    x = dist.rsample()
    assert_close(x, x.round())
    assert_close(x.sum(-1), torch.ones(3))
    (gradient,) = torch.autograd.grad((x * weights).sum(), logits)
    (reference,) = torch.autograd.grad((logits.softmax(-1) * weights).sum(), logits)
    assert_close(gradient, reference)


# MultiCategorical ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nvec", [[2, 3, 4], [3, 3], [5], [1, 4]])
def test_multi_categorical_is_the_sum_of_its_factors(nvec: list[int]) -> None:
    logits, other = torch.randn(6, sum(nvec), requires_grad=True), torch.randn(6, sum(nvec))
    dist = MultiCategorical(logits, nvec)
    factors, others = ([D.Categorical(logits=row) for row in x.split(nvec, -1)] for x in (logits, other))
    x = dist.sample()
    assert specs.MultiCategorical(nvec).contains(x, batch=(6,))
    pairs = [
        (dist.log_prob(x), sum(f.log_prob(x[:, k]) for k, f in enumerate(factors))),
        (dist.entropy(), sum(f.entropy() for f in factors)),
        (
            dist.kl(MultiCategorical(other, nvec)),
            sum(D.kl_divergence(f, g) for f, g in zip(factors, others, strict=True)),
        ),
    ]
    for mine, reference in pairs:
        assert mine.shape == dist.batch_shape == (6,)
        assert_close(mine, reference)
        if nvec != [1]:
            assert_close(
                torch.autograd.grad(mine.sum(), logits, retain_graph=True)[0],
                torch.autograd.grad(reference.sum(), logits, retain_graph=True)[0],
            )
    assert torch.equal(dist.mode, torch.stack([f.mode for f in factors], -1))


def test_multi_categorical_frequencies_of_each_factor() -> None:
    logits = torch.tensor([0.0, 1.0, 0.5, -0.5, 0.0])
    x = MultiCategorical(logits.expand(20_000, 5), [2, 3]).sample()
    assert chi_squared_p(x[:, 0].bincount(minlength=2), logits[:2].softmax(-1)) > 1e-3
    assert chi_squared_p(x[:, 1].bincount(minlength=3), logits[2:].softmax(-1)) > 1e-3
    joint = (3 * x[:, 0] + x[:, 1]).bincount(minlength=6)
    assert chi_squared_p(joint, torch.outer(logits[:2].softmax(-1), logits[2:].softmax(-1)).flatten()) > 1e-3


def test_multi_categorical_keeps_the_shape_of_the_action() -> None:
    spec = specs.MultiCategorical([[2, 3], [4, 5]], dtype=torch.int32)
    dist = MultiCategorical.from_params(torch.randn(7, 14), spec)
    noise = MultiCategorical.base_noise((7, 2, 2))
    x = dist.sample(noise)
    assert spec.contains(x, batch=(7,))
    assert spec.contains(dist.mode, batch=(7,))
    assert dist.log_prob(x).shape == dist.entropy().shape == dist.batch_shape == (7,)
    scalar = MultiCategorical(torch.randn(7, 3), [3], event_shape=())
    assert scalar.log_prob(scalar.sample(torch.rand(7))).shape == (7,)
    with pytest.raises(SpecError, match=r"x must be of shape \[\.\.\., 7, 2, 2\]; got \[7, 4\]"):
        dist.log_prob(x.flatten(1))


def test_multi_categorical_mask() -> None:
    mask = torch.tensor([True, False, True, True, False]).expand(500, 5)
    dist = MultiCategorical(torch.randn(500, 5), [2, 3], mask)
    x = dist.sample()
    assert (x[:, 0] == 0).all()
    assert (x[:, 1] < 2).all()
    assert dist.entropy().isfinite().all()


# Bernoulli -----------------------------------------------------------------------------------------------------------------


def test_bernoulli_equals_torch_in_values_and_gradients() -> None:
    logits, other = torch.randn(6, 3, requires_grad=True), torch.randn(6, 3)
    ours, theirs = Bernoulli(logits), D.Independent(D.Bernoulli(logits=logits), 1)
    x = ours.sample()
    assert specs.Binary(3).contains(x, batch=(6,))
    pairs = [
        (ours.log_prob(x), theirs.log_prob(x.float())),
        (ours.log_prob(x.to(torch.int8)), theirs.log_prob(x.float())),
        (ours.entropy(), theirs.entropy()),
        (ours.kl(Bernoulli(other)), D.kl_divergence(theirs, D.Independent(D.Bernoulli(logits=other), 1))),
    ]
    for mine, reference in pairs:
        assert mine.shape == ours.batch_shape == (6,)
        assert_close(mine, reference)
        assert_close(*[torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (mine, reference)])
    assert_close(ours.mean, theirs.mean)


def test_bernoulli_samples() -> None:
    dist = Bernoulli(torch.tensor([-LOG3, LOG3]).expand(20_000, 2))  # probabilities of a one: 1/4 and 3/4
    assert_close(dist.sample().float().mean(0), torch.tensor([0.25, 0.75]), atol=0.015, rtol=0)  # five standard deviations
    assert Bernoulli(torch.zeros(4)).sample(torch.tensor([0.0, 0.4, 0.5, 0.9])).tolist() == [True, True, False, False]
    assert Bernoulli(torch.tensor([-1e4, 1e4])).sample(torch.tensor([0.0, 1 - 2.0**-24])).tolist() == [False, True]


def test_bernoulli_extremes_are_finite() -> None:
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    dist = Bernoulli(logits)
    assert dist.entropy().item() == 0.0
    assert dist.log_prob(torch.tensor([False, True])).item() == 0.0
    assert dist.log_prob(torch.tensor([True, True])).item() == -1e4
    assert torch.autograd.grad(dist.entropy() + dist.kl(Bernoulli(torch.zeros(2))), logits)[0].isfinite().all()


def test_bernoulli_of_a_scalar_and_of_a_panel() -> None:
    assert Bernoulli(torch.zeros(5), event_ndim=0).entropy().shape == (5,)
    panel = Bernoulli.from_params(torch.zeros(5, 6), specs.Binary((2, 3), torch.int8))
    assert specs.Binary((2, 3), torch.int8).contains(panel.sample(), batch=(5,))
    assert_close(panel.entropy(), torch.full((5,), 6 * math.log(2)))
    with pytest.raises(ConfigError, match="mask of Bernoulli must be None"):
        Bernoulli.from_params(torch.zeros(3), specs.Binary(3), mask=torch.ones(3, dtype=torch.bool))


# Compilation ---------------------------------------------------------------------------------------------------------------


def by_category(logits: torch.Tensor, noise: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    dist = Categorical(logits, mask)
    x, log_prob = dist.sample_with_log_prob(noise)
    return x, log_prob, dist.entropy(), dist.mode, dist.kl(Categorical(logits.flip(-1), mask.flip(-1)))


def by_one_hot(logits: torch.Tensor, noise: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    dist = OneHotCategorical(logits, mask)
    return dist.rsample(noise), dist.log_prob(dist.sample(noise)), dist.entropy(), dist.mode


TWO_AND_THREE = specs.MultiCategorical([2, 3])


def by_factors(logits: torch.Tensor, noise: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    dist = MultiCategorical.from_params(logits, TWO_AND_THREE, mask)
    x = dist.sample(noise.unsqueeze(-1).expand(-1, 2))
    return x, dist.log_prob(x), dist.entropy(), dist.mode


def by_flags(logits: torch.Tensor, noise: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    dist = Bernoulli(logits)
    x = dist.sample(noise.unsqueeze(-1))
    return x, dist.log_prob(x), dist.entropy(), dist.mode


@pytest.mark.parametrize("function", [by_category, by_one_hot, by_factors, by_flags])
def test_compiles_into_one_graph_and_agrees(function) -> None:
    logits, mask = torch.randn(8, 5, requires_grad=True), torch.rand(8, 5) < 0.6
    mask[:, 0] = mask[:, 2] = True
    noise = torch.rand(8)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for mine, reference in zip(compiled(logits, noise, mask), function(logits, noise, mask), strict=True):
        assert_close(mine, reference)


@pytest.mark.parametrize("by", ["mask", "logits"])
def test_options_that_there_are_not_are_never_drawn(by) -> None:
    mask = torch.tensor([False, False, True, True, True])
    logits = torch.zeros(5) if by == "mask" else torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    dist = MultiCategorical(logits, [2, 3], mask if by == "mask" else None)
    assert dist.sample(torch.tensor([0.99, 0.99])).tolist() == [1, 2]
    assert_close(dist.entropy(), torch.tensor(math.log(2) + math.log(3)))
    assert dist.kl(dist) == 0


def test_a_broken_policy_draws_an_action_all_the_same() -> None:
    dist = Categorical(torch.tensor([math.nan, 0.0, 0.0]))
    assert dist.sample() == 2
    assert dist.log_prob(torch.tensor(2)).isnan()


def test_one_hot_under_vmap() -> None:
    logits, u = torch.randn(5, 3), torch.rand(5)
    drawn = torch.vmap(lambda own, noise: OneHotCategorical(own).sample(noise))(logits, u)
    assert_close(drawn, OneHotCategorical(logits).sample(u))
