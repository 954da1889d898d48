"""Distributions of returns: hand-worked values and gradients, slow references, and what a projection must keep."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import distributional as reference
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.functional import (
    bellman_atoms,
    categorical_cross_entropy,
    categorical_mean,
    categorical_projection,
    quantile_huber_loss,
    quantile_midpoints,
    truncated_atoms,
)


def leaf(x) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float32).clone().requires_grad_()


def distribution(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype), torch.rand(shape, generator=generator, dtype=dtype).softmax(-1)


def test_bellman_atoms():
    reward, atoms, terminated = leaf([1.0, 2.0]), leaf([[0.0, 4.0], [1.0, 2.0]]), torch.tensor([False, True])
    result = bellman_atoms(reward, atoms, terminated, 0.5)
    assert_close(result, torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
    result.sum().backward()
    assert_close(reward.grad, torch.tensor([2.0, 2.0]))
    assert_close(atoms.grad, torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    shared = bellman_atoms(reward, torch.tensor([0.0, 4.0]), terminated, torch.tensor([0.25, 0.5]))
    assert_close(shared, torch.tensor([[1.0, 2.0], [2.0, 2.0]]))
    broken = torch.tensor([[0.0, 4.0], [math.nan, math.inf]])
    assert_close(bellman_atoms(reward, broken, terminated, 0.5), result)


def test_categorical_projection_golden():
    support = torch.tensor([-1.0, 0.0, 1.0])
    atoms, probs = torch.tensor([[-2.0, 0.25, 0.5], [-1.0, 0.0, 1.0]]), leaf([[0.2, 0.3, 0.5], [0.1, 0.2, 0.7]])
    result = categorical_projection(atoms, probs, support)
    # -2 is clipped to -1; 0.25 gives 3/4 to 0 and 1/4 to 1; 0.5 a half to each. In row 2 every atom lies on the support.
    assert_close(result, torch.tensor([[0.2, 0.475, 0.325], [0.1, 0.2, 0.7]]))
    result[:, 1].sum().backward()
    assert_close(probs.grad, torch.tensor([[0.0, 0.75, 0.5], [0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("low, high, bins", [(-10.0, 10.0, 51), (0.0, 1.0, 2), (-1.5, 0.7, 11)])
def test_categorical_projection_is_its_algorithm(low, high, bins):
    atoms, probs = distribution(0, 20, 13)
    support = torch.linspace(low, high, bins, dtype=torch.float64)
    want = reference.categorical_projection(atoms, probs, support)
    assert_close(categorical_projection(atoms, probs, support), torch.from_numpy(want))
    batched = categorical_projection(atoms.reshape(4, 5, 13), probs.reshape(4, 5, 13), support)
    assert_close(batched, torch.from_numpy(want).reshape(4, 5, bins))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 60), st.floats(0.1, 20.0), st.sampled_from([torch.float32, torch.float64]))
def test_projection_keeps_the_total_and_the_mean(seed, bins, half_width, dtype):
    atoms, probs = distribution(seed, 5, 9, dtype=dtype)
    support = torch.linspace(-half_width, half_width, bins, dtype=dtype)
    result = categorical_projection(atoms, probs, support)
    assert (result >= 0).all()
    assert_close(result.sum(-1), torch.ones(5, dtype=dtype))
    clipped = atoms.clamp(-half_width, half_width)
    assert_close(categorical_mean(result, support), (probs * clipped).sum(-1), atol=1e-4, rtol=1e-4)


def test_projection_onto_its_own_support_changes_nothing():
    for dtype in (torch.float32, torch.float64):
        support = torch.linspace(-10, 10, 51, dtype=dtype)
        probs = distribution(0, 6, 51, dtype=dtype)[1]
        assert_close(categorical_projection(support.expand(6, -1), probs, support), probs)


def test_categorical_cross_entropy():
    logits, target = leaf([[0.0, math.log(3.0)]]), leaf([[0.5, 0.5]])
    loss = categorical_cross_entropy(logits, target)
    assert_close(loss, torch.tensor([-0.5 * math.log(0.25) - 0.5 * math.log(0.75)]))
    loss.sum().backward()
    assert_close(logits.grad, torch.tensor([[-0.25, 0.25]]))  # p - m
    assert target.grad is None


def test_categorical_mean():
    probs = leaf([[0.25, 0.75], [1.0, 0.0]])
    mean = categorical_mean(probs, torch.tensor([-1.0, 3.0]))
    assert_close(mean, torch.tensor([2.0, -1.0]))
    mean.sum().backward()
    assert_close(probs.grad, torch.tensor([[-1.0, 3.0], [-1.0, 3.0]]))


def test_quantile_midpoints():
    assert_close(quantile_midpoints(4), torch.tensor([0.125, 0.375, 0.625, 0.875]))
    assert quantile_midpoints(3, dtype=torch.float64).dtype is torch.float64


def test_quantile_huber_golden():
    quantiles, target, tau = leaf([[0.0, 2.0]]), leaf([[1.0, 4.0]]), torch.tensor([0.25, 0.75])
    loss = quantile_huber_loss(quantiles, target, tau)
    # u = (1, 4) for theta_0 and (-1, 2) for theta_1; L_1(u) = (0.5, 3.5) and (0.5, 1.5); weights (0.25, 0.25) and (0.25, 0.75)
    # sum_i mean_j: (0.125 + 0.875) / 2 + (0.125 + 1.125) / 2
    assert_close(loss, torch.tensor([1.125]))
    loss.sum().backward()
    assert_close(quantiles.grad, torch.tensor([[-0.25, -0.25]]))  # -(0.25 + 0.25) / 2, -(-0.25 + 0.75) / 2
    assert target.grad is None
    # kappa = 2 divides by 2: L_2(u) / 2 = (0.25, 3) and (0.25, 1)
    assert_close(quantile_huber_loss(quantiles, target, tau, kappa=2.0), torch.tensor([0.8125]))
    # kappa = 0: (0.25 * 1 + 0.25 * 4) / 2 + (0.25 * 1 + 0.75 * 2) / 2
    assert_close(quantile_huber_loss(quantiles, target, tau, kappa=0.0), torch.tensor([1.5]))


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("drawn", [False, True])
def test_quantile_huber_is_its_definition(kappa, drawn):
    quantiles, target = distribution(0, 6, 5)[0].requires_grad_(), distribution(1, 6, 8)[0]
    tau = distribution(2, 6, 5)[1] if drawn else quantile_midpoints(5, dtype=torch.float64)
    loss = quantile_huber_loss(quantiles, target, tau, kappa)
    loss.sum().backward()
    want, gradient = reference.quantile_huber_loss(quantiles.detach(), target, tau, kappa)
    assert_close(loss, torch.from_numpy(want))
    assert_close(quantiles.grad, torch.from_numpy(gradient))


def test_quantile_huber_of_an_ensemble():
    members, target = distribution(0, 3, 6, 5)[0], distribution(1, 6, 8)[0]
    for tau in (quantile_midpoints(5, dtype=torch.float64), distribution(2, 6, 5)[1]):
        want = torch.stack([quantile_huber_loss(member, target, tau) for member in members])
        assert_close(quantile_huber_loss(members, target, tau), want)


def test_quantile_regression_finds_the_quantiles():
    target = torch.arange(1.0, 101.0).unsqueeze(0)
    tau = torch.tensor([0.105, 0.505, 0.905])
    at_quantiles = torch.tensor([[11.0, 51.0, 91.0]])  # the only minimum: 10, 50 and 90 numbers below, 89, 49 and 9 above
    least = quantile_huber_loss(at_quantiles, target, tau, kappa=0.0)
    for change in (torch.eye(3) * 0.5, -torch.eye(3) * 0.5):
        for row in change:
            assert quantile_huber_loss(at_quantiles + row, target, tau, kappa=0.0) > least


def test_truncated_atoms():
    members = leaf([[[3.0, 1.0]], [[2.0, 4.0]]])  # two members, one state, two atoms each
    result = truncated_atoms(members, 1)
    assert_close(result, torch.tensor([[1.0, 2.0]]))
    assert_close(truncated_atoms(members, 0), torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    result.sum().backward()
    assert_close(members.grad, torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]))


def test_truncation_lowers_the_mean():
    members = distribution(0, 5, 7, 25)[0]
    means = [truncated_atoms(members, drop).mean(-1) for drop in range(4)]
    assert_close(means[0], members.mean((0, 2)))
    assert all((low < high).all() for high, low in pairwise(means))


def test_compiles_fullgraph():
    def everything(reward, atoms, probs, terminated, support, gamma):
        moved = bellman_atoms(reward, support, terminated, gamma)
        projected = categorical_projection(moved, probs, support)
        loss = categorical_cross_entropy(atoms, projected) + categorical_mean(projected, support)
        pool = truncated_atoms(torch.stack([atoms, -atoms]), 2)
        return loss + quantile_huber_loss(atoms, pool, quantile_midpoints(11)) + quantile_huber_loss(atoms, pool, probs, 0.0)

    atoms, probs = distribution(0, 6, 11, dtype=torch.float32)
    inputs = (atoms[:, 0], atoms, probs, atoms[:, 1] > 0.5, torch.linspace(-3, 3, 11), torch.tensor(0.9))
    assert_close(torch.compile(everything, fullgraph=True, backend="aot_eager")(*inputs), everything(*inputs))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: categorical_projection(x, x[0], x[0]), r"probs must be of the shape of atoms, \[4, 3\]; got \[3\]"),
        (lambda x: categorical_projection(x, x, x), r"support must be \[M\] with M at least 2; got torch.float32 \[4, 3\]"),
        (lambda x: categorical_projection(x, x, x[0, :1]), r"support must be \[M\] with M at least 2"),
        (lambda x: categorical_cross_entropy(x, x[:1]), r"target_probs must be of the shape of logits"),
        (lambda x: bellman_atoms(x[0], x, x[0] > 0, 0.9), r"next_atoms must be of the shape of reward, \[3\]; got \[4\]"),
        (lambda x: quantile_huber_loss(x, x[:2], x[0]), r"target must be \[\*, M\] with \* = \[4\]; got torch.float32 \[2, 3\]"),
        (lambda x: quantile_huber_loss(x, x, x[0, :2]), r"tau must be \[N\] or \[4, 3\]; got torch.float32 \[2\]"),
    ],
)
def test_wrong_shapes_are_explained(call, message):
    with pytest.raises(SpecError, match=message):
        call(torch.ones(4, 3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: quantile_huber_loss(x, x, x[0], -1.0), "kappa must be 0 or more; got -1.0"),
        (lambda x: truncated_atoms(x[None], 3), r"drop must be in 0 .. 2; got 3"),
        (lambda x: bellman_atoms(x[:, 0], x, x[:, 0] > 0, 1.5), r"gamma must be in \[0, 1\]; got 1.5"),
    ],
)
def test_wrong_coefficients_are_explained(call, message):
    with pytest.raises(ConfigError, match=message):
        call(torch.ones(4, 3))
