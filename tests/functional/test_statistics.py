"""Statistics of a batch, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.functional import (
    Contributions,
    bootstrap_interval,
    explained_variance,
    interquartile_mean,
    merge_moments,
    normalize,
    probability_of_improvement,
    stratified_bootstrap_interval,
)


def test_explained_variance():
    target = torch.tensor([1.0, 2.0, 3.0, 4.0])  # variance 1.25
    assert_close(explained_variance(target + 7.0, target), torch.tensor(1.0))  # an offset goes unseen
    assert_close(explained_variance(torch.zeros(4), target), torch.tensor(0.0))
    assert_close(explained_variance(-target, target), torch.tensor(-3.0))  # Var(2 G) = 4 Var(G)
    assert_close(explained_variance(torch.tensor([1.0, 2.0, 4.0, 3.0]), target), torch.tensor(0.6))  # 1 - 0.5 / 1.25
    assert_close(explained_variance(target.reshape(2, 2), target.reshape(2, 2)), torch.tensor(1.0))


def test_explained_variance_of_a_constant_is_undefined():
    assert explained_variance(torch.arange(3.0), torch.ones(3)).isnan()


def test_explained_variance_checks_its_shapes():
    with pytest.raises(SpecError, match=r"target must be of the shape of pred, \[4\]; got \[4, 1\]"):
        explained_variance(torch.ones(4), torch.ones(4, 1))


def test_normalize():
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]], requires_grad=True)  # mean 4, variance (9 + 1 + 1 + 9) / 4 = 5
    result = normalize(x)
    assert_close(result, torch.tensor([[-3.0, -1.0], [1.0, 3.0]]) / 5**0.5)
    result[0, 0].backward()
    # dz_0/dx_j = (1{j=0} - 1/4 - z_0 z_j / 4) / std, with z_0 z_j = (9, 3, -3, -9) / 5
    assert_close(x.grad, torch.tensor([[0.75 - 0.45, -0.25 - 0.15], [-0.25 + 0.15, -0.25 + 0.45]]) / 5**0.5)


def test_normalize_does_not_divide_by_zero():
    assert_close(normalize(torch.ones(3)), torch.zeros(3))
    assert_close(normalize(torch.ones(1)), torch.zeros(1))
    assert_close(normalize(torch.tensor([0.0, 2.0]), eps=1.0), torch.tensor([-0.5, 0.5]))


def test_merge_moments_golden():
    # {1, 3}: mean 2, variance 1. {5, 5, 5, 9}: mean 6, variance 3. Together mean 14/3 and sum of squares 146, so 146/6 - (14/3)^2
    two = torch.tensor(2.0), torch.tensor(1.0), 2
    four = torch.tensor(6.0), torch.tensor(3.0), 4
    mean, var, count = merge_moments(*two, *four)
    # d = 4: 2 + 4 * 4/6;  (2 * 1 + 4 * 3 + 16 * 8/6) / 6
    assert_close(mean, torch.tensor(14 / 3))
    assert_close(var, torch.tensor(2 / 6 + 12 / 6 + 16 * 8 / 36))
    assert count == 6
    assert_close(merge_moments(*four, *two)[:2], (mean, var))
    assert_close(merge_moments(torch.tensor(9.0), torch.tensor(9.0), 0, *four), four)  # nothing was seen before


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_merged_moments_are_those_of_the_whole(seed, sizes):
    x = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3.0 + 100.0
    moments = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for part in x.split(sizes):
        moments = merge_moments(*moments, part.mean(0), part.var(0, correction=0), len(part))
    assert_close(moments[:2], (x.mean(0), x.var(0, correction=0)))
    assert moments[2] == len(x)


def test_merge_moments_keeps_small_variance_of_large_numbers():
    x = torch.randn(100, 50, generator=torch.Generator().manual_seed(0)) + 1e4  # E[x^2] - E[x]^2 is off by several units here
    moments = torch.zeros(()), torch.zeros(()), 0
    for part in x:
        moments = merge_moments(*moments, part.mean(), part.var(correction=0), len(part))
    assert_close(moments[1].double(), x.double().var(correction=0), rtol=1e-3, atol=0.0)


def test_interquartile_mean():
    x = torch.tensor([8.0, 100.0, 4.0, 3.0, 5.0, 6.0, -50.0, 7.0], requires_grad=True)
    result = interquartile_mean(x)
    assert_close(result, torch.tensor(5.5))  # (4 + 5 + 6 + 7) / 4
    result.backward()
    assert_close(x.grad, torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]) / 4)
    assert_close(interquartile_mean(torch.tensor([[9.0, 1.0, 2.0, 3.0, -9.0], [1.0] * 5])), torch.tensor([2.0, 1.0]))  # one cut
    assert_close(interquartile_mean(torch.tensor([1.0, 2.0, 6.0])), torch.tensor(3.0))  # none cut


def test_bootstrap_draws_within_each_task():
    tasks = torch.tensor([[1.0, 5.0, 9.0, 13.0]]).expand(3, 4)  # the tasks differ, the runs do not: nothing is uncertain
    assert_close(stratified_bootstrap_interval(tasks), (torch.tensor(7.0), torch.tensor(7.0)))
    low, high = stratified_bootstrap_interval(tasks.T)
    assert low < 7.0 < high


def test_bootstrap_of_the_mean_is_that_of_off_policy_evaluation():
    x = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    ours = stratified_bootstrap_interval(x, lambda x: x.mean(-1), 0.9, resamples=20_000, generator=seeds[0])
    plain = Contributions(x.unsqueeze(-1), torch.ones(30, 1, dtype=torch.float64))
    assert_close(ours, bootstrap_interval(plain, 0.9, resamples=20_000, generator=seeds[1]), atol=0.01, rtol=0.0)


def test_bootstrap_interval_covers_about_as_often_as_it_says():
    generator, hits, trials = torch.Generator().manual_seed(0), 0, 200
    for _ in range(trials):
        scores = torch.randn(10, 4, generator=generator)
        low, high = stratified_bootstrap_interval(scores, resamples=400, generator=generator)
        hits += bool(low <= 0.0 <= high)
    assert 0.88 <= hits / trials <= 0.99  # the binomial deviation is 0.015


def test_probability_of_improvement():
    x, y = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0])
    assert_close(probability_of_improvement(x, y), torch.tensor(0.375))  # 0, 0; 1, 1/2
    assert_close(probability_of_improvement(y, x), torch.tensor(0.625))
    assert_close(probability_of_improvement(torch.stack([x, x + 9], -1), torch.stack([y, y], -1)), torch.tensor(0.6875))
    assert_close(probability_of_improvement(x, x), torch.tensor(0.5))


def test_wrong_scores_are_explained():
    with pytest.raises(ConfigError, match="Runs for an interval must be at least 2; got 1"):
        stratified_bootstrap_interval(torch.ones(1, 4))
    with pytest.raises(ConfigError, match=r"level must be in \(0, 1\); got 95"):
        stratified_bootstrap_interval(torch.ones(4), level=95)
    with pytest.raises(SpecError, match=r"scores must be \[R\] or \[R, K\]; got torch.float32 \[1, 2, 3\]"):
        stratified_bootstrap_interval(torch.ones(1, 2, 3))
    with pytest.raises(SpecError, match=r"y must be \[S, \*\[3\]\]; got torch.float32 \[4, 2\]"):
        probability_of_improvement(torch.ones(4, 3), torch.ones(4, 2))
    with pytest.raises(SpecError, match="other_var must be of the shape of mean"):
        merge_moments(torch.ones(3), torch.ones(3), 1, torch.ones(3), torch.ones(1), 1)


def test_compiles_fullgraph():
    x, y = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).unbind(0)

    def everything(x, y):
        moments = merge_moments(x, y.square(), torch.tensor(3.0), y, x.square(), 5)
        return explained_variance(normalize(x), y), moments, interquartile_mean(x), probability_of_improvement(x, y)

    assert_close(torch.compile(everything, fullgraph=True, backend="aot_eager")(x, y), everything(x, y))


def test_a_diverged_run_is_not_left_out():
    assert interquartile_mean(torch.tensor([[math.nan, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])).isnan().tolist() == [True, False]
    assert probability_of_improvement(torch.tensor([1.0, math.nan]), torch.tensor([1.0])).isnan()
    assert probability_of_improvement(torch.tensor([math.inf]), torch.tensor([math.inf])) == 0.5


@pytest.mark.parametrize("number", [0.1, 1e5 + 0.3, -0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equal_numbers_vary_not_at_all(number, dtype):
    for count in (64, 100, 2048):
        x = torch.full((count,), number).clamp(max=6e4).to(dtype)
        assert normalize(x).abs().max() < 1e-3
        if dtype is torch.float32:
            assert explained_variance(torch.linspace(0, 1, count), x).isnan()
