"""The gradient step of off-policy losses: targets, delayed terms, noise, buffers, precision, in eager and in compiled code."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from losses.casekit import CONTINUOUS, DISCRETE, actor, deterministic, qvalue, qvalue_actor, transitions
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close

from rlbook import MLP, Actor, DQNLoss, HardUpdate, QValueActor, QValueHead, SACLoss, SoftUpdate, compile_update
from rlbook.errors import ConfigError, NonFiniteError
from rlbook.losses import DDPGLoss, Loss, TD3Loss
from rlbook.modules import BatchRenorm, NoisyLinear

both = pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
pytestmark = pytest.mark.usefixtures("quick_compile")
Optimizers = Callable[[Loss], list[torch.optim.Optimizer]]


def dqn(**layers) -> DQNLoss:
    torch.manual_seed(0)
    return DQNLoss(QValueActor(MLP(3, 4, [16], **layers), DISCRETE) if layers else qvalue_actor())


def sac() -> SACLoss:
    torch.manual_seed(0)
    return SACLoss(actor(CONTINUOUS), qvalue(2), alpha=0.3)


def td3() -> TD3Loss:
    torch.manual_seed(0)
    return TD3Loss(deterministic(), qvalue(2))


def adam(loss: Loss) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(loss.parameters(), lr=1e-2)]


def sgd(loss: Loss) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(loss.parameters(), lr=0.1)]


def adam_in_groups(loss: Loss) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam([{"params": loss.actor.parameters()}, {"params": loss.qvalue.parameters()}], lr=1e-2)]


def adam_and_sgd(loss: Loss) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(loss.actor.parameters(), lr=0.1, momentum=0.9), torch.optim.Adam(loss.qvalue.parameters(), lr=1e-2)]


def batches(count: int, spec=DISCRETE) -> list[TensorDict]:
    generator = torch.random.get_rng_state()
    torch.manual_seed(1)
    data = [transitions(spec) for _ in range(count)]
    torch.random.set_rng_state(generator)
    return data


def by_hand(
    loss: Loss, optimizers: list, target: SoftUpdate, data: list[TensorDict], delay: int = 1, before=lambda t: None
) -> None:
    """The loop that the update stands for; with a delay the actor's optimizer, the first one, waits."""
    for t, batch in enumerate(data):
        before(t)
        for optimizer in optimizers:
            optimizer.zero_grad()
        terms = loss(batch)
        waits = (t + 1) % delay > 0
        (terms["loss_value"] if waits else terms["loss"]).backward()
        for optimizer in optimizers[1:] if waits and len(optimizers) > 1 else optimizers:
            optimizer.step()  # what has no gradient stays as it is
        target.step()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in module.state_dict().items()}


def assert_same(ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-6) -> None:
    assert_close(state(ours), state(theirs), rtol=tolerance, atol=tolerance)


TARGETS = {
    "soft": lambda loss: SoftUpdate(loss, tau=0.1),
    "soft_every_2": lambda loss: SoftUpdate(loss, tau=0.1, every=2),
    "hard": lambda loss: HardUpdate(loss, every=3),
    "copy": lambda loss: SoftUpdate(loss, tau=1.0),
}


@both
@pytest.mark.parametrize("name", TARGETS)
def test_targets_follow_as_in_the_loop_by_hand(compile, name):
    ours, theirs, data = dqn(), dqn(), batches(7)
    start = state(ours.target_qvalue)
    update = compile_update(ours, adam(ours), target=TARGETS[name](ours), compile=compile)
    for batch in data:
        update(batch)
    by_hand(theirs, adam(theirs), TARGETS[name](theirs), data)
    assert update.compiled == compile
    assert_same(ours, theirs)
    assert not torch.equal(ours.target_qvalue.net[0].weight, start["net.0.weight"])


@both
def test_between_two_copies_the_target_stays(compile):
    loss = dqn()
    start = state(loss.target_qvalue)
    update = compile_update(loss, adam(loss), target=HardUpdate(loss, every=3), compile=compile)
    for t, batch in enumerate(batches(3), 1):
        update(batch)
        same = torch.equal(loss.target_qvalue.net[0].weight, start["net.0.weight"])
        assert same == (t < 3)
    assert_close(state(loss.target_qvalue), state(loss.qvalue), rtol=0, atol=0)


@both
def test_tau_is_live(compile):
    ours, theirs, data = dqn(), dqn(), batches(5)
    mine, other = SoftUpdate(ours, 0.5), SoftUpdate(theirs, 0.5)
    update = compile_update(ours, adam(ours), target=mine, compile=compile)
    for t, batch in enumerate(data):
        mine.tau = 0.5 / (t + 1)
        update(batch)
    by_hand(theirs, adam(theirs), other, data, before=lambda t: setattr(other, "tau", 0.5 / (t + 1)))
    assert_same(ours, theirs)


@both
def test_saved_targets_and_counts_resume(compile):
    def fresh():
        loss = td3()
        optimizers, target = adam_in_groups(loss), SoftUpdate(loss, 0.1, every=2)
        update = compile_update(loss, optimizers, target=target, every={"loss_actor": 2}, compile=compile)
        return loss, optimizers, target, update

    data = batches(5, CONTINUOUS)

    def run(update, data):
        for t, batch in enumerate(data):
            torch.manual_seed(int(1000 * data[t]["observation"].abs().sum()))
            update(batch)

    whole, _, _, update = fresh()
    run(update, data)
    parts = fresh()
    run(parts[-1], data[:3])
    saved = copy.deepcopy([parts[0].state_dict(), *(part.state_dict() for part in (*parts[1], *parts[2:]))])
    loss, optimizers, target, update = fresh()
    for part, was in zip((loss, *optimizers, target, update), saved, strict=True):
        part.load_state_dict(was)
    run(update, data[3:])
    assert_same(loss, whole, 0)


@both
def test_targets_that_were_moved_are_noticed(compile):
    loss = dqn()
    update = compile_update(loss, adam(loss), target=SoftUpdate(loss), compile=compile)
    loss.target_qvalue.double()
    with pytest.raises(ConfigError, match=r"Target networks must be where they were.*Move modules first"):
        update(batches(1)[0])


# ---- delayed terms ---------------------------------------------------------------------------------------------------------
@both
@pytest.mark.parametrize("optimizers", [adam_in_groups, adam_and_sgd])
def test_delayed_terms_equal_the_loop_by_hand(compile, optimizers: Optimizers):
    ours, theirs, data = td3(), td3(), batches(5, CONTINUOUS)
    target = SoftUpdate(ours, 0.1, every=2)
    update = compile_update(ours, optimizers(ours), target=target, every={"loss_actor": 2}, compile=compile)
    torch.manual_seed(2)
    for batch in data:
        update(batch)
    torch.manual_seed(2)
    by_hand(theirs, optimizers(theirs), SoftUpdate(theirs, 0.1, every=2), data, delay=2)
    assert_same(ours, theirs)


@both
@pytest.mark.parametrize("optimizers", [adam_in_groups, adam_and_sgd])
def test_idle_groups_are_not_touched(compile, optimizers: Optimizers):
    loss = td3()
    own = optimizers(loss)
    update = compile_update(loss, own, every={"loss_actor": 3}, compile=compile)
    actor_before, qvalue_before = state(loss.actor), state(loss.qvalue)
    for t, batch in enumerate(batches(4, CONTINUOUS), 1):
        metrics = update(batch)
        assert ("loss_actor" in metrics) == (t == 3)
        assert torch.equal(loss.actor.net[0].weight, actor_before["net.0.weight"]) == (t < 3)
    assert not torch.equal(loss.qvalue.net[0][0].weight, qvalue_before["net.0.0.weight"])
    if len(own) == 1:
        steps = [own[0].state[group["params"][0]]["step"].item() for group in own[0].param_groups]
        assert steps == [1, 4]


@pytest.mark.parametrize(
    ("every", "match"),
    [
        ({"loss_policy": 2}, r"every must be periods of \['loss_actor', 'loss_value'\]; got 'loss_policy'"),
        ({"loss_actor": 0}, r"every\['loss_actor'\] must be a positive integer; got 0"),
        ({"loss_actor": True}, r"must be a positive integer; got True"),
        ({"loss_actor": 1.5}, r"must be a positive integer; got 1.5"),
        ({"loss_actor": 2}, r"\['loss_actor'\] must be a parameter group of their own; got a group that also holds others"),
    ],
)
def test_wrong_periods_are_explained(every, match):
    loss = td3()
    with pytest.raises(ConfigError, match=match):
        compile_update(loss, adam(loss), every=every)


# ---- noise, entries, rows --------------------------------------------------------------------------------------------------
def test_eager_and_compiled_draw_the_same_noise():
    fast, slow, data = sac(), sac(), batches(4, CONTINUOUS)
    for loss, compile in ((fast, True), (slow, False)):
        update = compile_update(loss, adam(loss), target=SoftUpdate(loss, 0.1), max_grad_norm=5.0, compile=compile)
        torch.manual_seed(3)
        for batch in data:
            update(batch)
        assert update.compiled == compile
    assert_same(fast, slow, 1e-5)
    other = sac()
    update = compile_update(other, adam(other), target=SoftUpdate(other, 0.1), compile=False)
    torch.manual_seed(4)
    for batch in data:
        update(batch)
    assert (other.actor.net[0].weight - slow.actor.net[0].weight).abs().max() > 1e-4


@both
def test_numbers_per_row_are_returned(compile):
    loss, (batch,) = dqn(), batches(1)
    expected = loss(batch)["td_error"]
    metrics = compile_update(loss, adam(loss), compile=compile)(batch)
    assert metrics.batch_size == torch.Size([])
    assert_close(metrics["td_error"], expected)
    assert metrics["td_error"].shape == (12,)


@both
def test_optional_entries_count_where_they_are(compile):
    loss, (batch,) = dqn(), batches(1)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.0)
    update = compile_update(loss, optimizer, compile=compile)
    discounted = batch.clone().set("discount", torch.full((12,), 0.3))
    variants = [batch, batch.exclude("weight"), discounted, batch]
    expected = [loss(data)["loss"].detach() for data in variants]
    assert_close([update(data)["loss"] for data in variants], expected)
    assert len({round(x.item(), 6) for x in expected}) == 3


@both
@pytest.mark.parametrize("optimizers", [adam_in_groups, adam_and_sgd])
def test_a_step_that_is_not_finite_leaves_weights_and_targets(compile, optimizers: Optimizers):
    loss = td3()
    update = compile_update(loss, optimizers(loss), target=SoftUpdate(loss, 0.5), compile=compile)
    good, bad = batches(2, CONTINUOUS)
    update(good)
    before = state(loss)
    bad["next", "reward"][2] = float("nan")
    with pytest.raises(NonFiniteError, match=r"finite; got .*loss_value"):
        update(bad)
    assert_close(state(loss), before, rtol=0, atol=0)
    update(good)
    assert not torch.equal(loss.target_qvalue.net[0][0].weight, before["target_qvalue.net.0.0.weight"])


# ---- layers ----------------------------------------------------------------------------------------------------------------
@both
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, lambda size: BatchRenorm(size, momentum=0.1)], ids=["BatchNorm", "BatchRenorm"])
def test_running_statistics_are_updated_in_place(compile, norm):
    ours, theirs, data = dqn(norm=norm), dqn(norm=norm), batches(3)
    update = compile_update(ours, sgd(ours), target=SoftUpdate(ours, 0.1), compile=compile)
    for batch in data:
        update(batch)
    by_hand(theirs, sgd(theirs), SoftUpdate(theirs, 0.1), data)
    assert update.compiled == compile
    assert_same(ours, theirs, 1e-5)
    (mean,) = (x for name, x in ours.qvalue.named_buffers() if name.endswith("running_mean"))
    (slow,) = (x for name, x in ours.target_qvalue.named_buffers() if name.endswith("running_mean"))
    assert mean.abs().max() > 1e-3
    assert slow.abs().max() > 1e-5  # it follows


@both
def test_noisy_layers_are_resampled_at_every_step(compile):
    loss = DQNLoss(QValueActor(nn.Sequential(NoisyLinear(4, 8), nn.Tanh(), NoisyLinear(8, 3)), DISCRETE))
    update = compile_update(loss, torch.optim.SGD(loss.parameters(), lr=0.0), compile=compile)
    (batch,) = batches(1)
    assert len({update(batch)["loss"].item() for _ in range(4)}) == 4


@both
def test_bfloat16_is_close_and_keeps_float32_weights(compile):
    def run(precision):
        loss = sac()
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
        update = compile_update(loss, optimizer, target=SoftUpdate(loss, 0.1), precision=precision, compile=compile)
        torch.manual_seed(5)
        metrics = [update(batch)["loss_value"].item() for batch in batches(4, CONTINUOUS)]
        assert update.compiled == compile
        return loss, metrics

    (half, rough), (full, exact) = run("bf16"), run(None)
    assert {x.dtype for x in (*half.parameters(), *half.buffers())} == {torch.float32}
    assert_close(rough, exact, rtol=5e-2, atol=0)
    assert rough != exact
    assert (half.qvalue.net[0][0].weight - full.qvalue.net[0][0].weight).abs().max() < 8e-3  # 4 steps of at most 1e-3 each way


# ---- lazy networks ---------------------------------------------------------------------------------------------------------
def lazy_ddpg() -> DDPGLoss:
    return DDPGLoss(Actor(MLP(2, num_cells=[8]), CONTINUOUS), QValueHead(MLP(1, num_cells=[8])))


def test_lazy_networks_may_meet_the_optimizer_before_the_data():
    loss = lazy_ddpg()
    target, optimizer = SoftUpdate(loss, tau=0.1), torch.optim.Adam(loss.parameters(), lr=1e-2)
    target.step()  # nothing to move yet
    for t, batch in enumerate(batches(3, CONTINUOUS)):
        losses = loss(batch)
        if t == 0:
            assert_close(state(loss.target_qvalue), state(loss.qvalue), rtol=0, atol=0)
            first = state(loss)
        (losses["loss_actor"] + losses["loss_value"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        target.step()
    assert all((x - first[name]).abs().max() > 0 for name, x in loss.named_parameters())
    assert_close(loss.target_qvalue.net[0].weight, loss.qvalue.net[0].weight, rtol=0, atol=0.03)
    assert not torch.equal(loss.target_actor.net[0].weight, first["target_actor.net.0.weight"])


@both
def test_an_optimizer_of_lazy_parameters_serves_an_update_once_data_was_seen(compile):
    loss = lazy_ddpg()
    target, optimizer = SoftUpdate(loss, tau=0.1), torch.optim.Adam(loss.parameters(), lr=1e-2)
    with pytest.raises(ConfigError, match="a lazy layer that has seen no data"):
        compile_update(loss, optimizer, target=target, compile=compile)
    (batch,) = batches(1, CONTINUOUS)
    loss(batch)
    update = compile_update(loss, optimizer, target=target, compile=compile)
    before = state(loss)
    update(batch)
    assert update.compiled == compile
    assert not torch.equal(loss.target_qvalue.net[0].weight, before["target_qvalue.net.0.weight"])


def test_unknown_precision_and_float16_on_a_cpu_are_explained():
    loss = dqn()
    with pytest.raises(ConfigError, match=r'precision="fp16" must be for a GPU; got a loss on the CPU.*bf16'):
        compile_update(loss, adam(loss), precision="fp16")
    with pytest.raises(ConfigError, match='None, "bf16" or "fp16"; got \'fp8\''):
        compile_update(loss, adam(loss), precision="fp8")  # type: ignore[arg-type]
