"""Every off-policy actor-critic loss against the slow reference: terms and gradients, on weights and batches drawn anew."""

from __future__ import annotations

import math

import pytest
import torch
from losses.smallkit import (
    BOUNDS,
    apart,
    assert_equals_reference,
    small_actor,
    small_batch,
    small_choice,
    small_critics,
    small_quantiles,
    small_state_value,
    small_values,
)
from reference import actor_critic as reference

from rlbook.losses import (
    CrossQLoss,
    DDPGLoss,
    DiscreteSACLoss,
    MPOLoss,
    REDQLoss,
    SACLoss,
    SACv1Loss,
    TD3Loss,
    TQCLoss,
)

seeds = pytest.mark.parametrize("seed", range(2))
SOFT = {"alpha": 0.25, "target_entropy": -0.75}
"""Settings of the soft losses; exact in single precision, which hyper-parameters have."""


@pytest.fixture(autouse=True)
def drawn_anew(request):
    torch.manual_seed(100 + request.node.callspec.params["seed"])


@seeds
@pytest.mark.parametrize("n", [1, 2])
def test_ddpg(n, seed):
    loss = apart(DDPGLoss(small_actor(deterministic=True), small_critics(n)))
    assert_equals_reference(loss, small_batch(), reference.ddpg, n=n, bounds=BOUNDS)


@seeds
@pytest.mark.parametrize("smooth", [(0.25, 0.5), (1.0, 0.125)])
def test_td3(smooth, seed):
    loss = apart(TD3Loss(small_actor(deterministic=True), small_critics(2), noise_scale=smooth[0], noise_clip=smooth[1]))
    assert_equals_reference(loss, small_batch(), reference.ddpg, n=2, bounds=BOUNDS, smooth=smooth)


@seeds
def test_sac(seed):
    loss = apart(SACLoss(small_actor(), small_critics(2), **SOFT)).double()
    assert_equals_reference(loss, small_batch(), reference.soft, n=2, bounds=BOUNDS, target_entropy=-0.75)


@seeds
def test_sac_v1(seed):
    loss = apart(SACv1Loss(small_actor(), small_critics(2), small_state_value(), learn_alpha=True, **SOFT)).double()
    assert_equals_reference(loss, small_batch(), reference.soft_v1, n=2, bounds=BOUNDS, target_entropy=-0.75)


@seeds
def test_redq(seed, monkeypatch):
    loss = apart(REDQLoss(small_actor(), small_critics(4), **SOFT)).double()
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: torch.tensor([2, 0, 1, 3]))
    settings = {"n": 4, "bounds": BOUNDS, "target_entropy": -0.75, "subset": (2, 0), "mean": True}
    assert_equals_reference(loss, small_batch(), reference.soft, **settings)


@seeds
def test_crossq(seed):
    loss = CrossQLoss(small_actor(), small_critics(2, norm=True), **SOFT).double()
    settings = {"n": 2, "bounds": BOUNDS, "target_entropy": -0.75, "momentum": 0.25}
    assert_equals_reference(loss, small_batch(), reference.cross, **settings)


@seeds
@pytest.mark.parametrize("drop", [0, 1, 3])
def test_tqc(drop, seed):
    loss = apart(TQCLoss(small_actor(), small_quantiles(3, 4), drop=drop, **SOFT)).double()
    settings = {"n": 3, "bounds": BOUNDS, "target_entropy": -0.75, "drop": drop}
    assert_equals_reference(loss, small_batch(), reference.quantile_soft, **settings)


@seeds
def test_discrete_sac(seed):
    loss = apart(DiscreteSACLoss(small_choice(), small_values(2), alpha=0.25, target_entropy=0.5)).double()
    assert_equals_reference(loss, small_batch(discrete=True), reference.discrete_soft, n=2, target_entropy=0.5)
    default = DiscreteSACLoss(small_choice(), small_values(2)).target_entropy.item()
    assert default == pytest.approx(0.98 * math.log(3))


@seeds
def test_mpo(seed):
    bounds = {"epsilon": 0.25, "epsilon_mean": 0.125, "epsilon_std": 0.0625}
    loss = MPOLoss(small_actor(), small_critics(2), samples=4, temperature=2.0, alpha_mean=3.0, alpha_std=0.5, **bounds)
    assert_equals_reference(apart(loss).double(), small_batch(), reference.mpo, n=2, bounds=BOUNDS, **bounds)
