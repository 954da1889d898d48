"""The off-policy actor-critic losses against TorchRL's: terms and gradients on the same weights, batch and random numbers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from losses.casekit import DISCRETE, actor, deterministic, net, qvalue, qvalue_actor, transitions, value
from torch import Tensor, nn
from torch.testing import assert_close

from rlbook import Actor, QValueHead
from rlbook.losses import (
    CrossQLoss,
    DDPGLoss,
    DiscreteSACLoss,
    Loss,
    REDQLoss,
    SACLoss,
    SACv1Loss,
    TD3Loss,
    TQCLoss,
)
from rlbook.modules import Ensemble, QuantileQValueHead, ensemble
from rlbook.specs import Bounded

pytest.importorskip("torchrl")
pytestmark = pytest.mark.filterwarnings("ignore")
GAMMA, SPEC = 0.9, Bounded(-1.0, 1.0, (2,))


class LocScale(nn.Module):
    """An actor's network, whose log standard deviations become standard deviations."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = self.net(x).chunk(2, -1)
        return loc, log_std.clamp(-20, 2).exp()


class Squashed(nn.Module):
    """A deterministic actor's network with tanh."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).tanh()


class Joined(nn.Module):
    """A critic's network of observation and action."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat((observation, action), -1))


def stochastic(policy: Actor) -> Any:
    from tensordict.nn import TensorDictModule
    from torchrl.modules import ProbabilisticActor, TanhNormal

    return ProbabilisticActor(
        TensorDictModule(LocScale(policy.net), ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -1.0, "high": 1.0},
        return_log_prob=True,
    )


def plain(policy: Actor) -> Any:
    from torchrl.modules import Actor as TheirActor

    return TheirActor(Squashed(policy.net), in_keys=["observation"], out_keys=["action"])


def critics(head: QValueHead) -> Any:
    from torchrl.modules import ValueOperator

    nets = list(head.net) if isinstance(head.net, Ensemble) else [head.net]
    made = [ValueOperator(Joined(each), in_keys=["observation", "action"]) for each in nets]
    return made if isinstance(head.net, Ensemble) else made[0]


def by_name(params: Any) -> dict[str, Tensor]:
    """Their parameters by the names that ours have: the last two parts, such as ``0.weight``."""
    return {".".join(name.split(".")[-2:]): p for name, p in params.flatten_keys(".").items() if isinstance(p, Tensor)}


def our_parameters(module: nn.Module) -> dict[str, list[Tensor]]:
    """Ours, with those of the members of an ensemble together."""
    found: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        found.setdefault(".".join(name.split(".")[-2:]), []).append(parameter)
    return found


def feed(monkeypatch: pytest.MonkeyPatch, *noise: Tensor) -> None:
    """Let their distributions draw these numbers, in this order."""
    waiting = list(noise)
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda shape, **_: waiting.pop(0).reshape(shape))


def assert_equal(ours: Loss, theirs: Any, names, parts, monkeypatch, *, order=(), batch=None, averaged: int = 1) -> None:
    """Compare terms, named in ``names``, and the gradients of each in the modules that it trains, named in ``parts``.

    ``order`` names the noise in the order in which theirs draws it; ``averaged`` critics share theirs's term of the critics.
    """
    from rlbook.interop import to_torchrl

    batch = transitions(SPEC).exclude("weight") if batch is None else batch
    noise = ours.prepare(batch)
    feed(monkeypatch, *(noise[name] for name in order))
    expected, out = dict(theirs(to_torchrl(batch)).items()), ours(batch, noise)
    expected[names["loss_value"]] = averaged * expected[names["loss_value"]]
    for mine, other in names.items():
        assert_close(out[mine], expected[other], rtol=1e-4, atol=1e-5)
        (part,) = ours.trains[mine]
        module: Any = getattr(ours, part)
        if isinstance(module, nn.Parameter):
            (grad,) = torch.autograd.grad(out[mine], module, retain_graph=True)
            (other_grad,) = torch.autograd.grad(expected[other], theirs.log_alpha, retain_graph=True)
            assert_close(grad, other_grad.reshape(()), rtol=1e-4, atol=1e-5)
            continue
        their_params = by_name(getattr(theirs, parts[part]))
        for name, tensors in our_parameters(module).items():
            grads = torch.autograd.grad(out[mine], tensors, retain_graph=True)
            (grad,) = torch.autograd.grad(expected[other], their_params[name], retain_graph=True)
            mine_stacked = torch.stack(grads).reshape(grad.shape)
            assert grad.any()
            assert_close(mine_stacked, grad, rtol=1e-4, atol=1e-5, msg=lambda text, at=f"{mine}, {name}": f"{at}: {text}")


def move_targets(ours: Loss, theirs: Any) -> None:
    """Move both losses' targets away from what they follow, in the same way."""
    for name, buffer in ours.named_buffers():
        if name.startswith("target_") and name != "target_entropy":
            buffer.mul_(1.5)
    for name in ("target_actor_network_params", "target_qvalue_network_params", "target_value_network_params"):
        params = getattr(theirs, name, None)
        delayed = name.removeprefix("target_").removesuffix("_network_params")
        if params is not None and hasattr(ours, f"target_{delayed}"):
            for tensor in params.values(True, True):
                if isinstance(tensor, Tensor):
                    tensor.data.mul_(1.5)


def finish(theirs: Any) -> Any:
    """Give their loss the discount."""
    from torchrl.objectives import ValueEstimators

    theirs.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    return theirs


SOFT = {"loss_actor": "loss_actor", "loss_value": "loss_qvalue", "loss_alpha": "loss_alpha"}
NETWORKS = {"actor": "actor_network_params", "qvalue": "qvalue_network_params", "value": "value_network_params"}


def test_ddpg(monkeypatch):
    from torchrl.objectives import DDPGLoss as Theirs

    ours = DDPGLoss(Actor(deterministic().net, SPEC), qvalue(), gamma=GAMMA)
    theirs = finish(Theirs(plain(ours.actor), critics(ours.qvalue), loss_function="l2", delay_actor=True, delay_value=True))
    move_targets(ours, theirs)
    for tensor in theirs.target_value_network_params.values(True, True):
        tensor.data.mul_(1.5)
    names, parts = {"loss_actor": "loss_actor", "loss_value": "loss_value"}, {**NETWORKS, "qvalue": "value_network_params"}
    assert_equal(ours, theirs, names, parts, monkeypatch)


def test_td3(monkeypatch):
    from torchrl.objectives import TD3Loss as Theirs

    ours = TD3Loss(Actor(deterministic().net, SPEC), qvalue(2), gamma=GAMMA, noise_scale=0.3, noise_clip=0.4)
    settings = {"policy_noise": 0.3, "noise_clip": 0.4, "bounds": (-1.0, 1.0), "loss_function": "l2"}
    theirs = finish(Theirs(plain(ours.actor), critics(ours.qvalue), **settings, delay_actor=True, delay_qvalue=True))
    move_targets(ours, theirs)
    batch = transitions(SPEC).exclude("weight")
    noise = ours.prepare(batch)["next_action"]
    ours.draw = lambda batch: {"next_action": noise}
    monkeypatch.setattr(torch, "randn_like", lambda x: noise)
    names = {"loss_actor": "loss_actor", "loss_value": "loss_qvalue"}
    assert_equal(ours, theirs, names, NETWORKS, monkeypatch, batch=batch)


def test_sac(monkeypatch):
    from torchrl.objectives import SACLoss as Theirs

    ours = SACLoss(Actor(actor(SPEC).net, SPEC), qvalue(2), gamma=GAMMA, alpha=0.3, target_entropy=-1.0)
    settings = {"loss_function": "l2", "alpha_init": 0.3, "target_entropy": -1.0}
    theirs = finish(Theirs(stochastic(ours.actor), critics(ours.qvalue), **settings))
    move_targets(ours, theirs)
    assert_equal(ours, theirs, SOFT, NETWORKS, monkeypatch, order=("next_action", "action"))


def test_sac_v1(monkeypatch):
    from torchrl.modules import ValueOperator
    from torchrl.objectives import SACLoss as Theirs

    head = value()
    # a single critic: theirs gives each of several a part of the batch
    ours = SACv1Loss(Actor(actor(SPEC).net, SPEC), qvalue(1), head, gamma=GAMMA, alpha=0.3, target_entropy=-1.0, learn_alpha=True)
    settings = {"loss_function": "l2", "alpha_init": 0.3, "target_entropy": -1.0, "delay_value": True, "num_qvalue_nets": 1}
    operator = ValueOperator(head.net, in_keys=["observation"])
    theirs = finish(Theirs(stochastic(ours.actor), critics(ours.qvalue), operator, **settings))
    move_targets(ours, theirs)
    names = {**SOFT, "loss_state_value": "loss_value"}
    assert_equal(ours, theirs, names, NETWORKS, monkeypatch, order=("action", "action"))


def test_redq(monkeypatch):
    from torchrl.objectives import REDQLoss as Theirs

    ours = REDQLoss(Actor(actor(SPEC).net, SPEC), qvalue(4), subset=2, gamma=GAMMA, alpha=0.3, target_entropy=-1.0)
    settings = {"loss_function": "l2", "alpha_init": 0.3, "target_entropy": -1.0, "num_qvalue_nets": 4, "sub_sample_len": 2}
    theirs = finish(Theirs(stochastic(ours.actor), critics(ours.qvalue), **settings))
    move_targets(ours, theirs)
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: torch.tensor([2, 0, 1, 3], device=device))
    batch = transitions(SPEC).exclude("weight")
    noise = ours.prepare(batch)
    noise["both"] = torch.stack((noise["action"], noise["next_action"]))  # theirs draws them at once
    ours.draw = lambda batch: noise
    names = {name: other for name, other in SOFT.items() if name != "loss_alpha"}  # theirs takes that over both states
    assert_equal(ours, theirs, names, NETWORKS, monkeypatch, order=("both",), batch=batch, averaged=4)


def test_crossq(monkeypatch):
    from torchrl.objectives import CrossQLoss as Theirs

    ours = CrossQLoss(Actor(actor(SPEC).net, SPEC), qvalue(2), gamma=GAMMA, alpha=0.3, target_entropy=-1.0)
    theirs = finish(Theirs(stochastic(ours.actor), critics(ours.qvalue), loss_function="l2", alpha_init=0.3, target_entropy=-1.0))
    batch = transitions(SPEC).exclude("weight")
    noise = ours.prepare(batch)
    ours.draw = lambda batch: noise
    monkeypatch.setattr(torch, "normal", lambda loc, scale: loc + scale * noise["next_action"])  # without a gradient
    assert_equal(ours, theirs, SOFT, NETWORKS, monkeypatch, order=("action",), batch=batch)


def test_tqc(monkeypatch):
    from torchrl.objectives import TQCLoss as Theirs

    head = QuantileQValueHead(ensemble(net(5, 6), 3), 5)
    ours = TQCLoss(Actor(actor(SPEC).net, SPEC), head, drop=2, gamma=GAMMA, alpha=0.3, target_entropy=-1.0)
    settings = {"num_qvalue_nets": 3, "top_quantiles_to_drop_per_net": 2, "alpha_init": 0.3, "target_entropy": -1.0}
    theirs = finish(Theirs(stochastic(ours.actor), critics(ours.qvalue), **settings))
    move_targets(ours, theirs)
    assert_equal(ours, theirs, SOFT, NETWORKS, monkeypatch, order=("next_action", "action"))


def test_discrete_sac(monkeypatch):
    from tensordict.nn import TensorDictModule
    from torchrl.modules import ProbabilisticActor
    from torchrl.objectives import DiscreteSACLoss as Theirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = DiscreteSACLoss(actor(DISCRETE), qvalue_actor(2), gamma=GAMMA, alpha=0.3, target_entropy=0.5)
        policy = ProbabilisticActor(
            TensorDictModule(ours.actor.net, ["observation"], ["logits"]),
            in_keys=["logits"],
            distribution_class=torch.distributions.Categorical,
            return_log_prob=True,
        )
        nets = [TensorDictModule(each, ["observation"], ["action_value"]) for each in ours.qvalue.net]
        settings = {"loss_function": "l2", "alpha_init": 0.3, "target_entropy": 0.5, "num_actions": 3}
        theirs = finish(Theirs(policy, nets, action_space="categorical", **settings))
    move_targets(ours, theirs)
    assert_equal(ours, theirs, SOFT, NETWORKS, monkeypatch, batch=transitions(DISCRETE).exclude("weight"))
