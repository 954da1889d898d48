"""What must not pass in silence: weights that are not stepped, policies that a loss cannot train, numbers that are none."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from rlbook import GAE, MLP, Actor, CartPole, DQNLoss, Pendulum, PPOLoss, QValueActor, compile_update, specs
from rlbook.envs import TMaze
from rlbook.errors import ConfigError, NonFiniteError, SpecError
from rlbook.losses import (
    C51Loss,
    DDPGLoss,
    DiscreteSACLoss,
    MPOLoss,
    PQNLoss,
    SACLoss,
    SoftUpdate,
    TD3Loss,
    TRPOLoss,
    TRPOUpdate,
)
from rlbook.modules import (
    GRU,
    Carry,
    EpsilonGreedy,
    PopArt,
    QValueHead,
    RunningValueNorm,
    make_actor,
    make_actor_value,
    make_qvalue,
    make_value,
)
from rlbook.modules.make import UnitAction

both = pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def cart_pole() -> CartPole:
    torch.manual_seed(0)
    return CartPole(num_envs=4, seed=0)


@pytest.fixture
def pendulum() -> Pendulum:
    torch.manual_seed(0)
    return Pendulum(num_envs=4, seed=0)


def adam(parameters: Any, lr: float = 1e-2) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=lr)


def several(update: Any, data: TensorDict) -> None:
    """Take a few steps: a module that was replaced is noticed when it is its turn."""
    for _ in range(20):
        update(data)


# ---- targets and lazy layers -------------------------------------------------------------------------------------------------
def test_a_target_is_a_copy_where_acting_sized_the_network(cart_pole):
    qvalue = QValueActor(MLP(2), cart_pole.action_spec)
    loss_fn = DQNLoss(qvalue)
    data = cart_pole.rollout(8, EpsilonGreedy(qvalue))
    with pytest.raises(
        ConfigError, match=r"The loss must be initialised; got a lazy layer .*target_qvalue.* Call loss_fn\(batch\) once"
    ):
        compile_update(loss_fn, adam(qvalue.parameters()), target=SoftUpdate(loss_fn), compile=False)
    loss_fn(data)
    for name, value in qvalue.state_dict().items():
        assert torch.equal(loss_fn.target_qvalue.state_dict()[name], value)
    assert all(not name.startswith("target") for name, _ in loss_fn.named_parameters())
    compile_update(loss_fn, adam(loss_fn.parameters()), target=SoftUpdate(loss_fn), compile=False)(data)


def test_a_lazy_loss_takes_a_saved_target(cart_pole):
    data = cart_pole.rollout(8)
    trained = DQNLoss(QValueActor(MLP(2), cart_pole.action_spec))
    trained(data)
    nn.init.zeros_(trained.target_qvalue.net[0].weight)
    fresh = DQNLoss(QValueActor(MLP(2), cart_pole.action_spec))
    fresh.load_state_dict(trained.state_dict())
    assert all(not name.startswith("target") for name, _ in fresh.named_parameters())
    fresh(data)
    assert not fresh.target_qvalue.net[0].weight.any()
    assert not list(fresh.target_qvalue.parameters())


# ---- weights that an update does not step ------------------------------------------------------------------------------------
@both
@pytest.mark.parametrize("how", ["assigned", "replaced", "moved", "frozen", "target"])
def test_weights_that_left_the_update_are_noticed(how, compile, cart_pole):
    qvalue = make_qvalue(cart_pole, num_cells=8)
    loss_fn = DQNLoss(qvalue)
    update = compile_update(loss_fn, adam(loss_fn.parameters()), target=SoftUpdate(loss_fn), compile=compile)
    data = cart_pole.rollout(8)
    update(data)
    last = qvalue.net[4]
    if how == "assigned":
        loss_fn.load_state_dict(copy.deepcopy(loss_fn.state_dict()), assign=True)
    elif how == "replaced":
        qvalue.net[4] = nn.Linear(8, 2)
    elif how == "moved":
        last.double().float()
    elif how == "frozen":
        last.requires_grad_(False)
    else:
        loss_fn.target_qvalue.net[4].double().float()
    with pytest.raises(ConfigError, match=r"must be (the tensor that the update steps|where they were|trainable)"):
        several(update, data)


def test_trpo_leaves_frozen_layers_alone(cart_pole):
    loss_fn = TRPOLoss(make_actor(cart_pole), make_value(cart_pole))
    first, last = loss_fn.actor.net[0].weight, list(loss_fn.actor.parameters())[-2]
    loss_fn.actor.net[0].requires_grad_(False)
    before = first.clone(), last.clone()
    TRPOUpdate(loss_fn, adam(loss_fn.value.parameters()))(GAE(loss_fn.value)(cart_pole.rollout(64, loss_fn.actor)))
    assert torch.equal(first, before[0])
    assert not torch.equal(last, before[1])


def test_a_parameter_in_two_optimizers_is_explained(cart_pole):
    actor, value = make_actor_value(cart_pole)
    loss_fn = PPOLoss(actor, value)
    optimizers = [adam(actor.parameters()), adam(value.parameters())]
    with pytest.raises(ConfigError, match=r"Each parameter must be in one optimizer; got 'actor.net.* in two"):
        compile_update(loss_fn, optimizers)
    assert not any(optimizer.state for optimizer in optimizers)


@pytest.mark.parametrize(
    ("every", "groups"),
    [
        ({"loss_actor": 2}, [("actor", "value")]),  # the entropy trains the actor at each call
        ({"loss_actor": 2}, [("actor",), ("value",)]),
        ({"loss_actor": 2, "loss_entropy": 3}, [("actor",), ("value",)]),
        ({"loss_actor": 2, "loss_entropy": 2, "loss_value": 2}, [("actor",), ("value",)]),
    ],
)
def test_periods_that_cannot_be_kept_are_explained(every, groups, cart_pole):
    loss_fn = PPOLoss(make_actor(cart_pole), make_value(cart_pole))
    params = [{"params": [p for name in names for p in getattr(loss_fn, name).parameters()]} for names in groups]
    with pytest.raises(ConfigError, match=r"must be (a parameter group of their own|some of)"):
        compile_update(loss_fn, torch.optim.Adam(params), every=every, compile=False)


@pytest.mark.parametrize("change", [lambda t: {"betas": (0.9 - 0.1 * t, 0.999)}, lambda t: {"weight_decay": 0.1 * (t > 1)}])
def test_constants_of_an_optimizer_may_change(change, cart_pole, recwarn):
    """Compiled code is made anew a few times; then the update goes on eagerly, and says so."""
    start, data = DQNLoss(make_qvalue(cart_pole, num_cells=8)), cart_pole.rollout(8)
    weights = []
    for compile in (False, True):
        loss_fn = copy.deepcopy(start)
        optimizer = adam(loss_fn.parameters())
        update = compile_update(loss_fn, optimizer, compile=compile)
        for t in range(6):
            update(data)
            optimizer.param_groups[0].update(change(t))
        weights.append(torch.cat([p.detach().flatten() for p in loss_fn.parameters()]))
    assert torch.allclose(*weights, rtol=1e-5, atol=1e-6)
    keeps_changing = "betas" in change(0)
    assert any("keep changing" in str(warning.message) for warning in recwarn) == keeps_changing
    assert update.compiled != keeps_changing


# ---- policies that a loss cannot train ---------------------------------------------------------------------------------------
def transitions(action_spec: specs.Spec, rows: int = 16, width: int = 3) -> TensorDict:
    nxt = {
        "observation": torch.randn(rows, width),
        "reward": torch.randn(rows),
        "terminated": torch.zeros(rows, dtype=torch.bool),
    }
    return TensorDict({"observation": torch.randn(rows, width), "action": action_spec.rand((rows,)), "next": nxt}, [rows])


@pytest.mark.parametrize("loss", [SACLoss, DDPGLoss, TD3Loss])
def test_actions_without_a_gradient_are_refused(loss):
    class Sum(nn.Module):
        def forward(self, observation, action):
            return action.float().sum(-1, keepdim=True)

    spec = specs.OneHot(4)
    loss_fn = loss(Actor(MLP(4, 3), spec), QValueHead(Sum()))
    with pytest.raises(ConfigError, match=rf"The policy of {loss.__name__} must be one with actions with a gradient; got OneHot"):
        loss_fn(transitions(spec))


def test_policies_that_draw_nothing_are_refused(pendulum):
    fixed, value = make_actor(pendulum, std="none"), make_value(pendulum)
    with pytest.raises(ConfigError, match="The policy of PPOLoss must be one with actions that are drawn; got Delta"):
        PPOLoss(fixed, value)(GAE(value)(pendulum.rollout(16, fixed)))
    with pytest.raises(ConfigError, match="The policy of SACLoss must be one with actions that are drawn; got Delta"):
        SACLoss(fixed, make_qvalue(pendulum))(pendulum.rollout(16))


def test_discrete_sac_wants_choices(pendulum, cart_pole):
    with pytest.raises(ConfigError, match="The actions of actor must be one choice of several"):
        DiscreteSACLoss(make_actor(pendulum), make_qvalue(cart_pole))


# ---- ensembles -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", [DQNLoss, PQNLoss])
def test_every_member_of_an_ensemble_learns(loss, cart_pole):
    qvalue = make_qvalue(cart_pole, members=2, num_cells=8)
    with torch.no_grad():
        qvalue.net[0][-1].bias += 50
    data = cart_pole.rollout(8)
    data["value_target"] = torch.randn(4, 8)
    alone = [loss(copy.deepcopy(QValueActor(net, cart_pole.action_spec))) for net in qvalue.net]
    loss_fn = loss(qvalue)
    loss_fn(data)["loss"].backward()
    assert all(any(p.grad.any() for p in net.parameters()) for net in qvalue.net)
    if loss is PQNLoss:  # without a target they have in common the members learn as each by itself
        assert loss_fn(data)["loss"].item() == pytest.approx(sum(one(data)["loss"].item() for one in alone), rel=1e-5)


# ---- numbers that are none -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [PopArt, RunningValueNorm])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_one_bad_reward_leaves_a_normalised_critic_as_it_was(kind, number, pendulum):
    actor, value = make_actor(pendulum), make_value(pendulum)
    norm = PopArt(value) if kind is PopArt else RunningValueNorm()
    estimator = GAE(value, value_norm=norm)
    good = pendulum.rollout(8, actor)
    estimator(good.clone())
    before = copy.deepcopy((value.state_dict(), norm.state_dict()))
    bad = good.clone()
    bad["next", "reward"][0, 3] = number
    with pytest.raises(NonFiniteError, match="Value targets must be finite"):
        estimator(bad)
    for old, new in zip(before, (value.state_dict(), norm.state_dict()), strict=True):
        assert all(torch.equal(new[name], tensor) for name, tensor in old.items())


@both
def test_a_missing_reward_is_explained_by_c51_too(compile, cart_pole):
    loss_fn = C51Loss(make_qvalue(cart_pole, support=(0.0, 10.0, 11), num_cells=8))
    update = compile_update(loss_fn, adam(loss_fn.parameters()), compile=compile)
    data = cart_pole.rollout(8)
    data["next", "reward"][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="The loss and its gradient must be finite"):
        update(data)


def test_rewards_in_double_precision_are_taken(cart_pole):
    data = cart_pole.rollout(8)
    data["next", "reward"] = data["next", "reward"].double()
    for loss_fn in (
        DQNLoss(make_qvalue(cart_pole, num_cells=8)),
        C51Loss(make_qvalue(cart_pole, support=(0.0, 10.0, 11), num_cells=8)),
    ):
        loss = loss_fn(data)["loss"]
        loss.backward()
        assert loss.dtype == torch.float32


def test_actions_of_another_shape_are_explained(cart_pole):
    data = cart_pole.rollout(8)
    data["action"] = data["action"].unsqueeze(-1)
    with pytest.raises(SpecError, match=r"batch\['action'\] must be of shape \[4, 8\]; got \[4, 8, 1\]"):
        DQNLoss(make_qvalue(cart_pole, num_cells=8))(data)


@pytest.mark.parametrize(("loss", "outputs"), [(DDPGLoss, 2), (TD3Loss, 2), (SACLoss, 4)])
def test_an_action_that_cannot_change_does_no_harm(loss, outputs):
    spec = specs.Bounded(torch.tensor([-1.0, 0.5]), torch.tensor([1.0, 0.5]), (2,))
    actor = Actor(MLP(outputs, 3), spec)
    loss_fn = loss(actor, QValueHead(UnitAction(MLP(1, 5), spec)))
    out = loss_fn(transitions(spec))
    out["loss"].backward()
    assert out["loss"].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss_fn.parameters())
    drawn = actor(TensorDict({"observation": torch.randn(5, 3)}, [5]))
    assert (drawn["action"][:, 1] == 0.5).all()


# ---- what would have passed in silence -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", [DDPGLoss, SACLoss])
def test_a_function_has_no_weights_to_copy(loss, pendulum):
    """The target would have been the network itself, and the actor's gradient would have reached the critic."""
    net = MLP(1, 4)
    actor = make_actor(pendulum, std="state" if loss is SACLoss else "none")
    with pytest.raises(ConfigError, match=r"network of QValueHead in this loss must be an nn.Module, .*; got <function"):
        loss(actor, QValueHead(lambda observation, action: net(observation, action)))
    looks_through = QValueHead(lambda observation, action: net(observation, action))
    with pytest.raises(ConfigError, match="Make it a class with a forward method"):
        looks_through.members(pendulum.rollout(2), frozen=True)


def test_targets_of_another_loss_are_refused(cart_pole):
    loss_fn, other = (DQNLoss(make_qvalue(cart_pole)) for _ in range(2))
    with pytest.raises(ConfigError, match="target must be one of this loss; got one of another DQNLoss"):
        compile_update(loss_fn, adam(loss_fn.parameters()), target=SoftUpdate(other))


def test_parameters_that_no_optimizer_has_are_named(pendulum):
    loss_fn = SACLoss(make_actor(pendulum, std="state"), make_qvalue(pendulum, members=2))
    weights = [*loss_fn.actor.parameters(), *loss_fn.qvalue.parameters()]
    with pytest.warns(UserWarning, match="No optimizer steps all of log_alpha: 1 parameters stay as they are"):
        compile_update(loss_fn, adam(weights), compile=False)
    fixed = SACLoss(make_actor(pendulum, std="state"), make_qvalue(pendulum, members=2), learn_alpha=False)
    compile_update(fixed, adam(fixed.parameters()), compile=False)  # warnings are errors here


def test_no_optimizer_and_an_empty_group_are_explained(cart_pole):
    loss_fn = DQNLoss(make_qvalue(cart_pole))
    with pytest.raises(ConfigError, match="optimizer must be one or several; got none"):
        compile_update(loss_fn, [])
    groups = [{"params": list(loss_fn.parameters())}, {"params": []}]
    with pytest.raises(ConfigError, match="Each parameter group of an optimizer must be one with parameters"):
        compile_update(loss_fn, adam(groups))


def test_a_critic_that_is_replaced_is_the_one_that_the_actor_climbs(pendulum):
    loss_fn = TD3Loss(make_actor(pendulum, std="none"), make_qvalue(pendulum, members=2))
    loss_fn.qvalue = make_qvalue(pendulum, members=2)
    batch = pendulum.rollout(8)
    expected = -loss_fn.qvalue.members(batch, loss_fn.actor.dist(batch).mode)[0].mean()
    torch.testing.assert_close(loss_fn(batch)["loss_actor"], expected)


@both
def test_padding_is_not_learnt_from(compile, cart_pole):
    loss_fn = DQNLoss(make_qvalue(cart_pole))
    update = compile_update(loss_fn, adam(loss_fn.parameters()), compile=compile)
    batch = cart_pole.rollout(8, break_when_any_done=False).reshape(-1)
    batch["mask"] = torch.ones(32, dtype=torch.bool)
    update(batch)
    batch["mask"][5:] = False
    with pytest.raises(SpecError, match=r"must be real ones; got 27 with mask False. Pass the others: batch\[batch\['mask'\]\]"):
        update(batch)
    update(batch[batch["mask"]])


def test_steps_without_time_are_refused_by_networks_with_a_memory():
    env = TMaze(length=3, seed=0)
    actor, value = make_actor(env, recurrent=GRU), make_value(env, recurrent=GRU)
    loss_fn = PPOLoss(actor, value)
    data = GAE(value)(env.rollout(12, Carry(actor, value)))
    with pytest.raises(SpecError, match=r"must be sequences \[\*, T\] of a batch; got steps \[12\]: no gradient would flow"):
        loss_fn(data)
    assert loss_fn(data.unsqueeze(0))["loss"].isfinite()


def test_trpo_keeps_sequences_whole_for_a_critic_with_a_memory():
    env = TMaze(num_envs=6, length=3, seed=0)
    actor, value = make_actor(env, recurrent=GRU), make_value(env, recurrent=GRU)
    loss_fn = TRPOLoss(actor, value)
    data = GAE(value)(env.rollout(12, Carry(actor, value), break_when_any_done=False))
    step = TRPOUpdate(loss_fn, adam(value.parameters()), value_size=3)
    assert step(data)["loss_value"].isfinite()


@pytest.mark.parametrize("loss", [DDPGLoss, SACLoss])
def test_off_policy_actor_critics_have_no_memory(loss, pendulum):
    actor = make_actor(pendulum, std="state" if loss is SACLoss else "none", recurrent=GRU)
    with pytest.raises(ConfigError, match="actor must be a network without memory; got one with a GRU"):
        loss(actor, make_qvalue(pendulum))


@both
def test_choices_outside_the_spec_and_inference_tensors_are_explained(compile, cart_pole):
    loss_fn, batch = DQNLoss(make_qvalue(cart_pole)), cart_pole.rollout(8)
    batch["action"] = batch["action"] + 6
    with pytest.raises(SpecError, match=r"batch\['action'\] must be in 0..1; got [67]..7"):
        compile_update(loss_fn, adam(loss_fn.parameters()), compile=compile)(batch)
    with torch.inference_mode():
        batch = cart_pole.rollout(8)
    cart_pole.reset()
    with pytest.raises(SpecError, match=r"must be a tensor to learn from; got an inference tensor. Collect under torch.no_grad"):
        DQNLoss(make_qvalue(cart_pole))(batch)


def test_an_update_under_no_grad_learns_all_the_same(cart_pole):
    loss_fn, batch = DQNLoss(make_qvalue(cart_pole)), cart_pole.rollout(8)
    update = compile_update(loss_fn, adam(loss_fn.parameters()), compile=False)
    with torch.no_grad():
        assert update(batch)["grad_norm"] > 0


def test_hyper_parameters_take_any_kind_of_number(cart_pole, pendulum):
    loss_fn = PPOLoss(make_actor(cart_pole), make_value(cart_pole))
    for number in (np.float32(0.1), torch.tensor(0.1), np.int64(1)):
        loss_fn.clip_eps = number
        assert loss_fn.clip_eps == torch.as_tensor(number, dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"clip_eps must be at least 0; got -5\.0"):
        loss_fn.clip_eps = torch.tensor(-5.0)
    with pytest.raises(
        ConfigError, match=r"value_clip must be a number from the start, to be changed; got None. Pass value_clip=0.2"
    ):
        loss_fn.value_clip = 0.2
    soft = SACLoss(make_actor(pendulum, std="state"), make_qvalue(pendulum))
    soft.log_alpha = -1.0
    assert isinstance(soft.log_alpha, nn.Parameter)
    assert soft.log_alpha == -1


def test_mpo_takes_one_transition(pendulum):
    loss_fn = MPOLoss(make_actor(pendulum, std="state"), make_qvalue(pendulum))
    assert loss_fn(pendulum.rollout(2)[0, 0])["loss"].isfinite()


def test_a_nan_after_the_end_does_not_reach_c51(cart_pole):
    loss_fn = C51Loss(make_qvalue(cart_pole, support=(0.0, 10.0, 11)))
    batch = cart_pole.rollout(8)
    batch["next", "terminated"][:, 3] = True
    expected = loss_fn(batch)["loss"]
    batch["next", "observation"][:, 3] = torch.nan
    assert torch.equal(loss_fn(batch)["loss"], expected)


def test_an_encoder_that_two_terms_train_keeps_the_pace_of_the_quicker(pendulum):
    """As where actor and critic look through the same convolutions (Yarats et al. 2021)."""
    encoder, heads = nn.Linear(3, 8), [nn.Linear(8, 2), MLP(1, 9)]

    class Acting(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = encoder, heads[0]

        def forward(self, x):
            return self.head(self.encoder(x))

    class Judging(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = encoder, heads[1]

        def forward(self, x, action):
            return self.head(torch.cat([self.encoder(x), action], -1))

    loss_fn = SACLoss(Actor(Acting(), pendulum.action_spec), QValueHead(Judging()), learn_alpha=False)
    optimizer = adam([{"params": heads[0].parameters()}, {"params": [*encoder.parameters(), *heads[1].parameters()]}])
    update = compile_update(loss_fn, optimizer, every={"loss_actor": 2}, compile=False)
    moved = []
    for _ in range(2):
        before = [part.weight.clone() for part in (encoder, heads[0])]
        update(pendulum.rollout(8))
        moved.append([not torch.equal(old, part.weight) for old, part in zip(before, (encoder, heads[0]), strict=True)])
    assert moved == [[True, False], [True, True]]


def test_periods_may_not_leave_a_call_without_any_term(pendulum):
    loss_fn = SACLoss(make_actor(pendulum, std="state"), make_qvalue(pendulum), learn_alpha=False)
    optimizer = adam([{"params": part.parameters()} for part in (loss_fn.actor, loss_fn.qvalue)])
    with pytest.raises(ConfigError, match=r"every must be some of \['loss_actor', 'loss_value'\]; got all of them"):
        compile_update(loss_fn, optimizer, every={"loss_actor": 2, "loss_value": 2})


def test_dictionaries_of_actions_compile(recwarn):
    spec = specs.Composite(gear=specs.Categorical(3), arm=specs.Composite(steer=specs.Bounded(-1.0, 1.0, (2,))))
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        actor = Actor(MLP(7, 4), spec)
        loss_fn = PPOLoss(actor)
        batch = actor(TensorDict({"observation": torch.randn(8, 4)}, [8])).detach().update({"advantage": torch.randn(8)})
        update = compile_update(loss_fn, adam(loss_fn.parameters()), compile=compile)
        losses.append([update(batch)["loss"].item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert not recwarn.list


def test_batches_of_ever_new_sizes_are_not_compiled_for_ever(cart_pole):
    loss_fn, batch = DQNLoss(make_qvalue(cart_pole, num_cells=(4,))), cart_pole.rollout(8).reshape(-1)
    update = compile_update(loss_fn, adam(loss_fn.parameters()))
    for rows in range(1, 9):
        update(batch[:rows])
    with pytest.warns(UserWarning, match="runs eagerly: .*batches came in more than 8 sizes"):
        update(batch[:9])


def test_discrete_sac_takes_one_hot_actions_of_any_dtype(cart_pole):
    spec = specs.OneHot(5, dtype=torch.float32)
    loss_fn = DiscreteSACLoss(Actor(MLP(5, 3), spec), QValueActor(MLP(5, 3), spec))
    assert loss_fn(transitions(spec))["loss"].isfinite()
