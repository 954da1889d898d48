"""The example that the architecture starts from: DDPG by hand, with networks that do not know their inputs yet."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from rlbook import (
    MLP,
    Actor,
    AdditiveGaussian,
    Collector,
    Compose,
    GymEnv,
    QValueHead,
    ReplayBuffer,
    RewardSum,
    SoftUpdate,
    StepCounter,
    TensorStorage,
    TransformedEnv,
)
from rlbook.losses import DDPGLoss

pytest.importorskip("gymnasium")


def test_ddpg_as_the_architecture_has_it():
    env = TransformedEnv(GymEnv("Pendulum-v1"), Compose(StepCounter(), RewardSum()))
    actor = Actor(MLP(out_features=env.action_spec.shape[-1], num_cells=64, depth=3), spec=env.action_spec)
    qvalue = QValueHead(MLP(out_features=1, num_cells=64, depth=3))
    policy = AdditiveGaussian(actor, sigma=0.1)
    collector = Collector(env, policy, frames_per_batch=200, total_frames=600)
    buffer = ReplayBuffer(storage=TensorStorage(10_000), batch_size=64)
    loss_fn = DDPGLoss(actor, qvalue)
    target = SoftUpdate(loss_fn, tau=0.005)
    optim = torch.optim.Adam(loss_fn.parameters(), lr=2e-4)
    start = None
    for data in collector:
        buffer.extend(data)
        for _ in range(10):
            loss = loss_fn(buffer.sample())
            if start is None:
                start = {name: x.clone() for name, x in loss_fn.state_dict().items()}
            (loss["loss_actor"] + loss["loss_value"]).backward()
            optim.step()
            optim.zero_grad()
            target.step()
    env.close()

    assert all((p - start[name]).abs().max() > 1e-3 for name, p in loss_fn.named_parameters())  # 30 steps of Adam
    assert {name.partition(".")[0] for name, _ in loss_fn.named_parameters()} == {"actor", "qvalue"}
    for module, slow in ((loss_fn.actor, loss_fn.target_actor), (loss_fn.qvalue, loss_fn.target_qvalue)):
        for (name, new), old in zip(module.named_parameters(), slow.buffers(), strict=True):
            assert 0 < (old - new).abs().max() < 30 * 2e-4 * 1.5, name
    batch = buffer.sample()
    before = loss_fn(batch)["loss_value"].item()
    for _ in range(30):  # and the critic learns
        loss_fn(batch)["loss_value"].backward()
        optim.step()
        optim.zero_grad()
    assert loss_fn(batch)["loss_value"].item() < 0.9 * before
    assert_close(loss_fn.target_qvalue.value(batch).requires_grad, False)
