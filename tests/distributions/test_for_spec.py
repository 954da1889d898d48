"""Which distribution an action spec gets, and what every distribution promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from rlbook import specs
from rlbook.distributions import (
    Bernoulli,
    Categorical,
    Delta,
    DiagNormal,
    Distribution,
    MultiCategorical,
    OneHotCategorical,
    TanhNormal,
    for_spec,
)
from rlbook.errors import ConfigError, SpecError

CASES = [
    (specs.Categorical(4), Categorical, 4),
    (specs.Categorical(4, dtype=torch.int32), Categorical, 4),
    (specs.Categorical(4, shape=(3,)), MultiCategorical, 12),
    (specs.MultiCategorical([2, 3]), MultiCategorical, 5),
    (specs.OneHot(4), OneHotCategorical, 4),
    (specs.Binary(3), Bernoulli, 3),
    (specs.Binary((), torch.int8), Bernoulli, 1),
    (specs.Bounded(-2.0, 2.0, (3,)), TanhNormal, 6),
    (specs.Bounded(-2.0, 2.0, ()), TanhNormal, 2),
    (specs.Unbounded(3), DiagNormal, 6),
]


@pytest.mark.parametrize("spec, kind, size", CASES, ids=lambda v: repr(v) if isinstance(v, specs.Spec) else None)
def test_every_distribution_keeps_its_promises(spec: specs.TensorSpec, kind: type[Distribution], size: int) -> None:
    assert for_spec(spec) is kind
    assert for_spec(spec.expand(8)) is kind
    assert kind.num_params(spec) == size
    params = (0.2 * torch.randn(7, 5, size)).requires_grad_()
    dist = kind.from_params(params, spec)
    noise = kind.base_noise((7, 5, *spec.shape), torch.Generator().manual_seed(0))
    x = dist.sample(noise)
    spec.check(x, batch=(7, 5))
    spec.check(dist.mode.detach(), batch=(7, 5))
    assert torch.equal(x, dist.sample(noise))
    assert dist.batch_shape == dist.log_prob(x).shape == dist.entropy().shape == (7, 5)
    assert_close(dist.kl(dist), torch.zeros(7, 5))
    kl = dist.kl(kind.from_params(torch.randn(7, 5, size), spec))
    assert (kl > -1e-6).all()
    assert kl.mean() > 0.01
    y, log_prob = dist.sample_with_log_prob(noise)
    assert_close(y, x)
    assert_close(log_prob, dist.log_prob(x), rtol=1e-3, atol=2e-3)  # float32 tells tanh(z) less exactly than z
    assert not x.requires_grad
    assert y.requires_grad == dist.has_rsample
    for value in (log_prob, dist.entropy()):
        assert torch.autograd.grad(value.sum(), params, retain_graph=True)[0].isfinite().all()
    torch.manual_seed(0)
    own = dist.sample()
    torch.manual_seed(0)
    assert torch.equal(own, dist.sample(kind.base_noise((7, 5, *spec.shape))))


@pytest.mark.parametrize("spec, kind, size", CASES, ids=lambda v: repr(v) if isinstance(v, specs.Spec) else None)
def test_the_wrong_number_of_outputs_is_explained(spec: specs.TensorSpec, kind: type[Distribution], size: int) -> None:
    with pytest.raises(
        SpecError, match=rf"network output must be of shape \[\.\.\., {size}\].*Give the network out_features={size}"
    ):
        kind.from_params(torch.randn(7, size + 1), spec)


@pytest.mark.parametrize("kind", [Categorical, OneHotCategorical, MultiCategorical, Bernoulli, DiagNormal, TanhNormal, Delta])
def test_the_wrong_spec_is_explained(kind: type[Distribution]) -> None:
    wrong = specs.Composite(a=specs.Binary())
    with pytest.raises(SpecError, match=f"(?s)The action spec of {kind.__name__} must be .*for_spec"):
        kind.num_params(wrong)


@pytest.mark.parametrize(
    "kind, spec",
    [
        (TanhNormal, specs.Bounded(0.0, math.inf, (2,))),
        (TanhNormal, specs.Unbounded(2)),
        (Delta, specs.Bounded(0.0, math.inf, (2,))),
        (DiagNormal, specs.Bounded(0, 3, (2,), torch.int64)),
        (Categorical, specs.Categorical(3, shape=(2,))),
    ],
)
def test_a_spec_that_almost_fits_is_refused(kind: type[Distribution], spec: specs.Spec) -> None:
    with pytest.raises(SpecError, match=f"The action spec of {kind.__name__} must be"):
        kind.num_params(spec)


def test_masks_reach_the_discrete_distributions_only() -> None:
    mask = torch.tensor([[True, False, True]])
    assert Categorical.from_params(torch.zeros(1, 3), specs.Categorical(3), mask).probs.tolist() == [[0.5, 0.0, 0.5]]
    assert OneHotCategorical.from_params(torch.zeros(1, 3), specs.OneHot(3), mask).probs.tolist() == [[0.5, 0.0, 0.5]]
    for kind, spec in (
        (DiagNormal, specs.Unbounded(1)),
        (TanhNormal, specs.Bounded(-1.0, 1.0, (1,))),
        (Delta, specs.Unbounded(1)),
    ):
        with pytest.raises(ConfigError, match=f"mask of {kind.__name__} must be None"):
            kind.from_params(torch.zeros(1, kind.num_params(spec)), spec, mask)


@pytest.mark.parametrize(
    "spec, fix",
    [
        (specs.Composite(a=specs.Binary(), b=specs.Bounded(0.0, math.inf, (2,))), "Give it two finite bounds"),
        (specs.Bounded(0.0, math.inf, (2,)), "Give it two finite bounds"),
        (specs.Bounded(0, 3, (2,), torch.int64), r"Describe integers from 0 to n-1 as Categorical\(n\)"),
        (specs.Unbounded(2, torch.int64), r"Describe integers from 0 to n-1 as Categorical\(n\)"),
    ],
    ids=lambda v: repr(v) if isinstance(v, specs.Spec) else None,
)
def test_what_no_distribution_fits_says_what_to_do(spec: specs.Spec, fix: str) -> None:
    with pytest.raises(SpecError, match=f"(?s)The action spec must be one that a distribution fits.*{fix}"):
        for_spec(spec)
