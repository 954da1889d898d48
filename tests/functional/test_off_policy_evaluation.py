"""Off-policy estimators: hand-worked values, expectations over every episode of a small MDP, coverage of intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import off_policy_evaluation as reference
from reference.off_policy_evaluation import Episode, FiniteMDP
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.functional import (
    Contributions,
    bootstrap_interval,
    cumulative_log_ratio,
    doubly_robust,
    effective_sample_size,
    empirical_bernstein_interval,
    episode_index,
    high_confidence_lower_bound,
    importance_sampling,
    per_decision_importance_sampling,
    student_t_interval,
)
from rlbook.functional.off_policy_evaluation import student_t_quantile

GAMMA = 0.9
BEHAVIOR, TARGET = np.array([[0.5, 0.5], [0.7, 0.3]]), np.array([[0.2, 0.8], [0.1, 0.9]])
P = np.array([[[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], [[0.0, 0.9, 0.1], [0.5, 0.0, 0.5]]])
R = np.array([[1.0, 2.0], [0.5, 3.0]])
NOISY = FiniteMDP(P, R, np.array([0.4, 0.6]), horizon=3)
CERTAIN = FiniteMDP(np.eye(3)[[[0, 1], [0, 2]]], R, np.array([1.0, 0.0]), horizon=4)


def padded(episodes: list[Episode], junk: float = math.nan) -> dict[str, torch.Tensor]:
    """Return episodes as rows; what follows their end is ``junk``."""
    length = max(len(e.reward) for e in episodes)

    def rows(name: str) -> torch.Tensor:
        return torch.tensor([getattr(e, name) + [junk] * (length - len(e.reward)) for e in episodes], dtype=torch.float64)

    mask = torch.tensor([[t < len(e.reward) for t in range(length)] for e in episodes])
    names = {"reward": "reward", "log_prob": "log_prob", "behavior_log_prob": "behavior_log_prob"}
    names |= {"action_value": "q", "state_value": "v"}
    return {key: rows(name) for key, name in names.items()} | {"mask": mask}


def every(mdp: FiniteMDP, shift: float = 0.0) -> tuple[list[Episode], float]:
    """Return all episodes, with the exact Q plus ``shift`` times noise, and the true value of the target policy."""
    q, v = mdp.values(TARGET, GAMMA)
    told = q + shift * np.random.default_rng(0).normal(size=q.shape)
    return list(mdp.episodes(BEHAVIOR, TARGET, told, (TARGET * told).sum(-1))), float(mdp.start @ v[0])


def without_q(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: x for k, x in data.items() if k not in ("action_value", "state_value")}


def every_estimate(data: dict[str, torch.Tensor]) -> list[Contributions]:
    plain = without_q(data)
    return [
        estimator
        for weighted in (False, True)
        for estimator in (
            importance_sampling(**plain, gamma=GAMMA, weighted=weighted),
            per_decision_importance_sampling(**plain, gamma=GAMMA, weighted=weighted),
            doubly_robust(**data, gamma=GAMMA, weighted=weighted),
        )
    ]


# ---------------------------------------------------------------- values

# Two episodes with ratios (2, 3) and (0.5), rewards (1, 4) and (2), gamma 0.5.
TWO = {
    "reward": torch.tensor([[1.0, 4.0], [2.0, torch.nan]]),
    "log_prob": torch.tensor([[2.0, 3.0], [0.5, torch.inf]]).log(),
    "behavior_log_prob": torch.tensor([[0.0, 0.0], [0.0, torch.nan]]),
    "mask": torch.tensor([[True, True], [True, False]]),
}


def test_golden_values():
    ratio = cumulative_log_ratio(TWO["log_prob"], TWO["behavior_log_prob"], TWO["mask"]).exp()
    assert_close(ratio, torch.tensor([[2.0, 6.0], [0.5, 0.5]]))
    # returns 1 + 0.5 * 4 = 3 and 2, whole ratios 6 and 0.5
    assert_close(importance_sampling(**TWO, gamma=0.5).per_episode, torch.tensor([18.0, 1.0]))
    assert_close(importance_sampling(**TWO, gamma=0.5, weighted=True).value, torch.tensor(19.0 / 6.5))
    # 2 * 1 + 0.5 * 6 * 4 = 14 and 0.5 * 2 = 1; weighted: (2 + 1) / 2.5 + 0.5 * 24 / 6.5
    assert_close(per_decision_importance_sampling(**TWO, gamma=0.5).per_episode, torch.tensor([14.0, 1.0]))
    assert_close(per_decision_importance_sampling(**TWO, gamma=0.5, weighted=True).value, torch.tensor(1.2 + 12 / 6.5))
    q, v = torch.tensor([[1.0, 2.0], [1.0, torch.nan]]), torch.tensor([[3.0, 1.0], [3.0, torch.nan]])
    # V_1 = 1 + 3 (4 - 2) = 7, V_0 = 3 + 2 (1 + 0.5 * 7 - 1) = 10; 3 + 0.5 (2 - 1) = 3.5
    assert_close(doubly_robust(**TWO, gamma=0.5, action_value=q, state_value=v).per_episode, torch.tensor([10.0, 3.5]))
    # (0.5 * 1) / 2.5 + 0.5 * 6 * 2 / 6.5, and 3 + 0.5 * 2 * 1 / 2.5 from the values
    weighted = doubly_robust(**TWO, gamma=0.5, action_value=q, state_value=v, weighted=True)
    assert_close(weighted.value, torch.tensor(0.2 + 6 / 6.5 + 3.4))


def test_effective_sample_size():
    log_weight = torch.tensor([[1.0, 1.0], [1.0, 0.0], [2.0, 0.0]]).log()
    assert_close(effective_sample_size(log_weight), torch.tensor([16.0 / 6.0, 1.0]))
    assert_close(effective_sample_size(log_weight + 1000.0), torch.tensor([16.0 / 6.0, 1.0]), rtol=1e-3, atol=0.0)
    assert effective_sample_size(torch.full((3,), -math.inf)).isnan()


def test_they_are_their_definitions():
    episodes, _ = every(NOISY, shift=0.5)
    episodes = episodes[::7]
    data, plain = padded(episodes), without_q(padded(episodes))
    for weighted in (False, True):
        want = reference.importance_sampling(episodes, GAMMA, weighted)
        assert_close(importance_sampling(**plain, gamma=GAMMA, weighted=weighted).value.item(), want)
        want = reference.per_decision(episodes, GAMMA, weighted)
        assert_close(per_decision_importance_sampling(**plain, gamma=GAMMA, weighted=weighted).value.item(), want)
    want = torch.tensor(reference.doubly_robust(episodes, GAMMA), dtype=torch.float64)
    assert_close(doubly_robust(**data, gamma=GAMMA).per_episode, want)
    want = reference.weighted_doubly_robust(episodes, GAMMA)
    assert_close(doubly_robust(**data, gamma=GAMMA, weighted=True).value.item(), want)


# ---------------------------------------------------------------- expectations over every episode


@pytest.mark.parametrize("mdp", [NOISY, CERTAIN], ids=["noisy", "certain"])
def test_the_ordinary_estimators_are_unbiased(mdp):
    episodes, truth = every(mdp, shift=1.0)
    probability = torch.tensor([e.probability for e in episodes], dtype=torch.float64)
    assert_close(probability.sum().item(), 1.0, rtol=0.0, atol=1e-12)
    on_policy = sum(e.probability * e.discounted(GAMMA) for e in episodes)
    assert abs(on_policy - truth) > 0.1
    for estimate in every_estimate(padded(episodes))[:3]:
        assert_close((probability * estimate.per_episode).sum().item(), truth, rtol=0.0, atol=1e-10)


def test_the_ratios_have_mean_one():
    episodes, _ = every(NOISY)
    probability = torch.tensor([e.probability for e in episodes], dtype=torch.float64)
    data = padded(episodes)
    ratio = cumulative_log_ratio(data["log_prob"], data["behavior_log_prob"], data["mask"]).exp()
    assert_close(probability @ ratio, torch.ones(3, dtype=torch.float64), rtol=0.0, atol=1e-10)


def test_per_decision_has_less_variance_and_doubly_robust_least():
    episodes, truth = every(NOISY)
    probability = torch.tensor([e.probability for e in episodes], dtype=torch.float64)
    variance = [float(probability @ (x.per_episode - truth).square()) for x in every_estimate(padded(episodes))[:3]]
    assert variance[0] > variance[1] > variance[2] > 0


def test_doubly_robust_with_the_exact_q_has_no_variance_where_nothing_is_random():
    episodes, truth = every(CERTAIN)
    data = padded(episodes)
    assert_close(doubly_robust(**data, gamma=GAMMA).per_episode, torch.full((len(episodes),), truth, dtype=torch.float64))
    assert_close(doubly_robust(**data, gamma=GAMMA, weighted=True).value.item(), truth)
    assert importance_sampling(**without_q(data), gamma=GAMMA).per_episode.std() > 0.1


def test_the_weighted_estimators_of_a_constant_are_the_constant():
    data = without_q(padded(every(NOISY)[0][::5]))
    data["reward"] = torch.where(torch.arange(3) == 0, 7.0, torch.zeros_like(data["reward"]))
    for estimator in (importance_sampling, per_decision_importance_sampling):
        assert_close(estimator(**data, gamma=GAMMA, weighted=True).value.item(), 7.0)


# ---------------------------------------------------------------- what must never happen


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.0]), st.integers(1, 4))
def test_padding_is_never_read(seed, junk, wider):
    episodes, _ = every(NOISY, shift=1.0)
    chosen = [episodes[i] for i in np.random.default_rng(seed).integers(len(episodes), size=12)]
    other = padded(chosen, junk)
    for key, x in other.items():
        extra = x.new_full((12, wider), False if key == "mask" else junk)
        other[key] = torch.cat([x, extra], -1)
    for a, b in zip(every_estimate(padded(chosen, 0.0)), every_estimate(other), strict=True):
        assert_close(a.value, b.value, rtol=1e-12, atol=1e-12)
        assert_close(a.per_episode, b.per_episode, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 1000))
def test_episode_index_finds_every_step_once(rows, steps, seed):
    done = torch.rand(rows, steps, generator=torch.Generator().manual_seed(seed)) < 0.3
    index, mask = episode_index(done)
    assert sorted(index[mask].tolist()) == list(range(rows * steps))
    for steps_of_one, real in zip(index, mask, strict=True):
        of_one = steps_of_one[real]
        assert (of_one[:-1] + 1 == of_one[1:]).all()
        assert (of_one // steps == of_one[0] // steps).all()
        assert not done.flatten()[of_one[:-1]].any()
        assert done.flatten()[of_one[-1]] or of_one[-1] % steps == steps - 1


def test_huge_ratios_keep_the_weighted_estimators_finite():
    data = dict(TWO, log_prob=torch.tensor([[800.0, 0.0], [799.0, 0.0]]), reward=torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    want = torch.tensor((1 + 3 / math.e) / (1 + 1 / math.e))
    for estimator in (importance_sampling, per_decision_importance_sampling):
        assert_close(estimator(**data, gamma=1.0, weighted=True).value, want)


def test_an_impossible_action_has_no_weight_and_none_left_is_nan():
    impossible = TWO["log_prob"].clone()
    impossible[0, 1] = -math.inf
    data = dict(TWO, log_prob=impossible)
    assert_close(importance_sampling(**data, gamma=0.5).per_episode, torch.tensor([0.0, 1.0]))
    assert_close(importance_sampling(**data, gamma=0.5, weighted=True).value, torch.tensor(2.0))
    data["log_prob"] = torch.full((2, 2), -math.inf)
    assert importance_sampling(**data, gamma=0.5).value == 0
    assert importance_sampling(**data, gamma=0.5, weighted=True).value.isnan()


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize(("df", "want"), [(1, 12.7062), (2, 4.30265), (10, 2.22814), (100, 1.98397), (10**6, 1.95997)])
def test_student_t_quantile(df, want):
    assert_close(student_t_quantile(0.975, df), want, rtol=1e-5, atol=0.0)


def test_student_t_interval_golden():
    low, high = student_t_interval(importance_sampling(**TWO, gamma=0.5))
    # 18 and 1: mean 9.5, standard deviation 17 / sqrt(2), standard error 8.5, t with one degree of freedom 12.7062
    assert_close(torch.stack([low, high]), torch.tensor([9.5 - 108.0027, 9.5 + 108.0027]))


def test_empirical_bernstein_golden():
    x = torch.tensor([0.0, 1.0, 1.0, 0.0])  # variance 1/3; ln(2 / 0.025) = 4.382027
    radius = math.sqrt(2 / 3 * 4.382027 / 4) + 7 * 4.382027 / 9
    assert_close(torch.stack(empirical_bernstein_interval(x, 0.0, 1.0)), torch.tensor([0.5 - radius, 0.5 + radius]))
    # one side, ln(2 / 0.05) = 3.688879, and 9 is clipped to 1
    bound = 0.5 - (math.sqrt(2 / 3 * 3.688879 / 4) + 7 * 3.688879 / 9)
    assert_close(high_confidence_lower_bound(torch.tensor([0.0, 9.0, 1.0, 0.0]), clip=1.0), torch.tensor(bound))


def bandit(generator: torch.Generator, episodes: int) -> dict[str, torch.Tensor]:
    """Two arms that pay 1 with probability 0.3 and 0.8; the behaviour takes the second with 0.5, the target with 0.8."""
    arm = (torch.rand(episodes, 1, generator=generator, dtype=torch.float64) < 0.5).double()
    paid = (torch.rand(episodes, 1, generator=generator, dtype=torch.float64) < 0.3 + 0.5 * arm).double()
    log_prob = (0.2 + 0.6 * arm).log()
    mask = torch.ones_like(arm, dtype=torch.bool)
    return {"reward": paid, "log_prob": log_prob, "behavior_log_prob": torch.full_like(arm, 0.5).log(), "mask": mask}


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    truth, trials, generator = 0.2 * 0.3 + 0.8 * 0.8, 300, torch.Generator().manual_seed(0)
    covered = dict.fromkeys(("t", "percentile", "bca", "weighted t", "weighted bca", "bernstein", "bound"), 0)
    for _ in range(trials):
        data = bandit(generator, 100)
        plain, weighted = (importance_sampling(**data, gamma=1.0, weighted=w) for w in (False, True))
        draws = {"resamples": 200, "generator": generator}
        intervals = {
            "t": student_t_interval(plain, 0.9),
            "percentile": bootstrap_interval(plain, 0.9, **draws),
            "bca": bootstrap_interval(plain, 0.9, bca=True, **draws),
            "weighted t": student_t_interval(weighted, 0.9),
            "weighted bca": bootstrap_interval(weighted, 0.9, bca=True, **draws),
            "bernstein": empirical_bernstein_interval(plain.per_episode, 0.0, 1.6, 0.9),
            "bound": (high_confidence_lower_bound(plain.per_episode, 1.6, 0.9), torch.tensor(math.inf)),
        }
        for name, (low, high) in intervals.items():
            covered[name] += int(low <= truth <= high)
    for name, count in covered.items():  # the standard error of a rate of 0.9 is 0.017
        assert count / trials > 0.84, name
        assert count / trials < 0.96 or name in ("bernstein", "bound"), name
    assert covered["bernstein"] == covered["bound"] == trials  # they hold for any distribution, and so are wide


def test_the_bootstrap_of_a_constant_is_the_constant():
    terms = Contributions(torch.full((5, 1), 2.0), torch.ones(5, 1))
    for bca in (False, True):
        assert_close(torch.stack(bootstrap_interval(terms, bca=bca)), torch.tensor([2.0, 2.0]))


def test_bca_follows_the_skew_and_a_generator_repeats():
    terms = Contributions(torch.randn(40, 1, generator=torch.Generator().manual_seed(1)).exp().square(), torch.ones(40, 1))
    plain, bca, again = (
        bootstrap_interval(terms, bca=b, generator=torch.Generator().manual_seed(0)) for b in (False, True, True)
    )
    assert bca[0] > plain[0]
    assert bca[1] > plain[1]
    assert bca == again


# ---------------------------------------------------------------- mistakes


def test_mistakes_are_explained():
    with pytest.raises(SpecError, match=r"log_prob must be of the shape of reward, \[2, 2\]; got \[2, 2, 1\].*squeeze"):
        importance_sampling(**dict(TWO, log_prob=TWO["log_prob"].unsqueeze(-1)), gamma=0.5)
    with pytest.raises(SpecError, match=r"true up to the end of the episode, false after it; .*Pad at the end"):
        importance_sampling(**dict(TWO, mask=TWO["mask"].flip(-1)), gamma=0.5)
    with pytest.raises(SpecError, match=r"mask must be bool \[E, T\], not empty; got torch.float32"):
        importance_sampling(**dict(TWO, mask=TWO["mask"].float()), gamma=0.5)
    with pytest.raises(ConfigError, match=r"gamma must be in \[0, 1\]; got 1.5"):
        importance_sampling(**TWO, gamma=1.5)
    with pytest.raises(SpecError, match=r"done must be bool \[N, T\], not empty; .*unsqueeze"):
        episode_index(torch.zeros(3, dtype=torch.bool))
    terms = importance_sampling(**TWO, gamma=0.5)
    with pytest.raises(ConfigError, match="at least 2; got 1"):
        student_t_interval(Contributions(*(x[:1] for x in terms)))
    with pytest.raises(ConfigError, match=r"level must be in \(0, 1\); got 95"):
        bootstrap_interval(terms, level=95)
    with pytest.raises(ConfigError, match="resamples must be positive; got 0"):
        bootstrap_interval(terms, resamples=0)
    with pytest.raises(ConfigError, match=r"x must be in \[low, high\] = \[0.0, 1.0\]; got from 1 to 18"):
        empirical_bernstein_interval(terms.per_episode, 0.0, 1.0)
    with pytest.raises(ConfigError, match=r"not negative and positive; got -18 and 1.0. Shift the rewards"):
        high_confidence_lower_bound(-terms.per_episode, 1.0)
