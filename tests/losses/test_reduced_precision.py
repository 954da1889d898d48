"""Losses whose networks answer in bfloat16: a step works, and its terms are those of float32 but for rounding."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from rlbook import CartPole, Pendulum, compile_update
from rlbook.envs import TMaze
from rlbook.losses import C51Loss, R2D2Loss, TD3Loss
from rlbook.modules import GRU, LSTM, make_actor, make_qvalue


def td3():
    env = Pendulum(num_envs=4, seed=0)
    return TD3Loss(make_actor(env, std="none"), make_qvalue(env, members=2)), env.rollout(8)


def c51():
    env = CartPole(num_envs=4, seed=0)
    return C51Loss(make_qvalue(env, support=(0.0, 100.0, 51))), env.rollout(8)


def r2d2(cell):
    env = TMaze(num_envs=4, length=5, seed=0)
    qvalue = make_qvalue(env, num_cells=(16,), recurrent=cell)
    return R2D2Loss(qvalue), env.rollout(8, qvalue)


@pytest.mark.parametrize("make", [td3, c51, lambda: r2d2(GRU), lambda: r2d2(LSTM)], ids=["td3", "c51", "gru", "lstm"])
def test_a_step_in_bfloat16_is_that_of_float32_but_for_rounding(make):
    torch.manual_seed(0)
    loss_fn, data = make()
    noise = loss_fn.prepare(data)
    expected = {name: value.detach() for name, value in loss_fn(data, noise).items() if name.startswith("loss")}
    loss_fn.prepare = lambda batch: noise
    update = compile_update(loss_fn, torch.optim.SGD(loss_fn.parameters(), lr=1e-3), compile=False, precision="bf16")
    out = update(data)
    for name, value in expected.items():
        assert_close(out[name].float(), value, rtol=0.03, atol=0.02)


def test_the_expectation_of_c51_keeps_its_digits_in_bfloat16():
    loss_fn, data = c51()
    logits = loss_fn.qvalue.logits(data)
    with torch.autocast("cpu", torch.bfloat16):
        mean = loss_fn.qvalue.expectation(logits)
    assert_close(mean, loss_fn.qvalue.expectation(logits), rtol=1e-5, atol=1e-4)
