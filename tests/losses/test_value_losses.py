"""The losses of action values: worked by hand, against a slow reference, and against TorchRL."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from losses.casekit import DISCRETE, net, qvalue_actor, transitions
from losses.cases_value import CASES, apart, categorical, implicit, quantile
from reference import q_losses as reference
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close

from rlbook import DQNLoss, QValueActor, QValueHead
from rlbook.errors import ConfigError
from rlbook.losses import C51Loss, IQNLoss, MunchausenIQNLoss, MunchausenLoss, PQNLoss, QRDQNLoss
from rlbook.modules import CategoricalQValueActor, ImplicitQValueActor, QuantileQValueActor
from rlbook.specs import Categorical, OneHot

B, A, N = 40, 3, 5
GAMMA = 0.5  # exact in float32, which the buffers are


class Table(nn.Module):
    """A network whose outputs are its parameters: those of this state, or where the observation is 1 those of the next one."""

    def __init__(self, here: torch.Tensor, after: torch.Tensor):
        super().__init__()
        self.here, self.after = nn.Parameter(here), nn.Parameter(after)

    def forward(self, x: torch.Tensor, *tau: torch.Tensor) -> torch.Tensor:
        rows = torch.where(x[..., :1] > 0, self.after.flatten(1), self.here.flatten(1))
        return rows.unflatten(-1, self.here.shape[1:]) if tau else rows


def of_rows(action, reward, terminated, **more: torch.Tensor) -> TensorDict:
    """A batch whose observations are 0 in this state and 1 in the next."""
    rows = len(action)
    nxt = {"observation": torch.ones(rows, 1), "reward": torch.as_tensor(reward), "terminated": torch.as_tensor(terminated)}
    return TensorDict({"observation": torch.zeros(rows, 1), "action": torch.as_tensor(action), "next": nxt, **more}, [rows])


def with_target(loss: Any, here: torch.Tensor, after: torch.Tensor) -> Any:
    """Let the target network say something of its own."""
    loss.target_qvalue.net.here.copy_(here)
    loss.target_qvalue.net.after.copy_(after)
    return loss


# ---- worked by hand ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("double", "wanted"), [(False, 1 + 0.5 * 4), (True, 1 + 0.5 * 2)])
def test_golden_dqn(double, wanted):
    # The learnt network prefers action 1 in the next state, the target network values that at 2, and action 0 at 4.
    qvalue = QValueActor(Table(torch.tensor([[0.5, 9.0], [7.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])), Categorical(2))
    loss = DQNLoss(qvalue, gamma=0.5, double=double)
    with_target(loss, torch.zeros(2, 2), torch.tensor([[4.0, 2.0], [4.0, 2.0]]))
    out = loss(of_rows([0, 1], [1.0, 1.5], [False, True], weight=torch.tensor([2.0, 1.0])))
    # Row 0: far from its target, |e| - 1/2, weight 2. Row 1 ends: its target is 1.5, e = 1/2, e^2 / 2.
    far = wanted - 0.5
    assert_close(out["td_error"], torch.tensor([far, 0.5]))
    assert_close(out["loss_value"].item(), (2 * (far - 0.5) + 0.125) / 2)
    assert_close(out["target_mean"].item(), (wanted + 1.5) / 2)
    assert_close(out["q_mean"].item(), (0.5 + 2) / 2)
    out["loss"].backward()
    assert_close(qvalue.net.here.grad, torch.tensor([[-1.0, 0.0], [0.0, 0.25]]))  # slopes -1 (clipped, times 2) and 1/2, over 2
    assert not qvalue.net.after.grad.any()


def test_golden_c51():
    # Two actions, atoms 0, 1, 2. The target network is sure that action 0 returns 1: r + gamma z = 1/2 + 1/2 = 1, an atom. The
    # learnt network gives equal probabilities: loss log 3, gradient p - m = (1/3, -2/3, 1/3). Row 1 ends with 1/4, and so
    # m = (3/4, 1/4, 0).
    sure = torch.tensor([0.0, 50.0, 0.0, 50.0, 0.0, 0.0]).expand(2, 6).clone()  # action 1 returns 0
    qvalue = CategoricalQValueActor(Table(torch.zeros(2, 6), torch.zeros(2, 6)), Categorical(2), v_min=0.0, v_max=2.0, atoms=3)
    loss = with_target(C51Loss(qvalue, gamma=0.5), torch.zeros(2, 6), sure)
    out = loss(of_rows([1, 0], [0.5, 0.25], [False, True]))
    log3 = math.log(3)
    assert_close(out["loss_value"].item(), log3)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert_close(out["td_error"], torch.tensor([log3, log3 - entropy]))  # the KL divergence: cross entropy less entropy
    assert_close(out["q_mean"].item(), 1.0)
    assert_close(out["target_mean"].item(), (1 + 0.25) / 2)
    out["loss"].backward()
    grad = torch.tensor([[0, 0, 0, 1, -2, 1], [1 - 9 / 4, 1 - 3 / 4, 1, 0, 0, 0]]) / 3 / 2
    assert_close(qvalue.net.here.grad, grad)


def test_golden_qrdqn():
    # One row, one action, two quantiles at tau = 1/4 and 3/4; both atoms of the target are 1 + 1/2 * 2 = 2.
    qvalue = QuantileQValueActor(Table(torch.tensor([[1.5, 4.0]]), torch.zeros(1, 2)), Categorical(1), quantiles=2)
    loss = with_target(QRDQNLoss(qvalue, gamma=0.5), torch.zeros(1, 2), torch.full((1, 2), 2.0))
    out = loss(of_rows([0], [1.0], [False]))
    # u = 1/2: weight 1/4, Huber 1/8. u = -2: weight |3/4 - 1| = 1/4, Huber 3/2.
    assert_close(out["loss_value"].item(), 0.25 * 0.125 + 0.25 * 1.5)
    assert_close(out["td_error"], torch.tensor([0.75]))  # the means 2.75 and 2
    out["loss"].backward()
    assert_close(qvalue.net.here.grad, torch.tensor([[-0.25 * 0.5, 0.25]]))


def test_golden_munchausen():
    # The target network holds both actions equal everywhere: log pi = -log 2, and the soft value of 1 is 1 + tau log 2.
    qvalue = QValueActor(Table(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2)), Categorical(2))
    loss = MunchausenLoss(qvalue, gamma=0.5, alpha=0.5, tau=0.25, distance="l2")
    with_target(loss, torch.ones(1, 2), torch.ones(1, 2))
    out = loss(of_rows([1], [1.0], [False]))
    bonus = 0.25 * math.log(2)
    wanted = 1 - 0.5 * bonus + 0.5 * (1 + bonus)
    assert_close(out["target_mean"].item(), wanted)
    assert_close(out["loss_value"].item(), (2 - wanted) ** 2)
    out["loss"].backward()
    assert_close(qvalue.net.here.grad, torch.tensor([[0.0, 2 * (2 - wanted)]]))


def test_the_bonus_is_clipped():
    qvalue = QValueActor(Table(torch.zeros(1, 2), torch.zeros(1, 2)), Categorical(2))
    loss = MunchausenLoss(qvalue, gamma=0.0, alpha=1.0, tau=0.01, clip=-0.5)
    with_target(loss, torch.tensor([[9.0, 0.0]]), torch.zeros(1, 2))
    assert_close(loss(of_rows([1], [1.0], [False]))["target_mean"].item(), 0.5)


def test_golden_pqn():
    qvalue = QValueActor(Table(torch.tensor([[1.0, 5.0], [5.0, 2.0]]), torch.zeros(2, 2)), Categorical(2))
    batch = of_rows([0, 1], [0.0, 0.0], [False, False], value_target=torch.tensor([2.0, 4.0]))
    out = PQNLoss(qvalue)(batch)
    assert_close(out["loss_value"].item(), (1 + 4) / 2)
    assert_close(out["td_error"], torch.tensor([1.0, 2.0]))
    out["loss"].backward()
    assert_close(qvalue.net.here.grad, torch.tensor([[-1.0, 0.0], [0.0, -2.0]]))


# ---- against the slow reference ----------------------------------------------------------------------------------------------
def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(B, *shape, dtype=torch.float64)


def random_batch() -> TensorDict:
    """Rows of float64 with weights and n-step discounts; a third of them terminate."""
    weight, discount = torch.rand(B, dtype=torch.float64) + 0.5, torch.rand(B, dtype=torch.float64)
    return of_rows(torch.randint(A, (B,)), 2 * drawn(), torch.rand(B) < 0.3, weight=weight, discount=discount)


def arrays(batch: TensorDict) -> list[Any]:
    nxt: Any = batch["next"]
    rows = batch["action"], nxt["reward"], nxt["terminated"], batch["weight"], batch["discount"]
    return [x.numpy() for x in rows]


def check(loss: Any, batch: TensorDict, expected: reference.Result, noise: Any = None) -> None:
    out = loss(batch, noise)
    out["loss"].backward()
    number, gradient, errors = expected
    assert_close(out["loss_value"].item(), number, rtol=1e-7, atol=1e-8)
    assert_close(loss.qvalue.net.here.grad.flatten(), torch.from_numpy(gradient).flatten(), rtol=1e-6, atol=1e-8)
    assert_close(out["td_error"], torch.from_numpy(errors), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("distance", ["l2", "smooth_l1"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_dqn_equals_the_slow_reference(distance, double, seed):
    torch.manual_seed(seed)
    out, own, target, batch = drawn(A), drawn(A), drawn(A), random_batch()
    loss = DQNLoss(QValueActor(Table(out, own), Categorical(A)), gamma=GAMMA, double=double, distance=distance).double()
    with_target(loss, drawn(A), target)
    data = [x.detach().numpy() for x in (out, own, target)]
    check(loss, batch, reference.dqn(*data, *arrays(batch), double=double, distance=distance))


@pytest.mark.parametrize("seed", range(2))
def test_munchausen_equals_the_slow_reference(seed):
    torch.manual_seed(seed)
    out, here, target, batch = drawn(A), drawn(A), drawn(A), random_batch()
    settings = {"alpha": 0.75, "tau": 0.5, "clip": -0.75}
    loss = MunchausenLoss(QValueActor(Table(out, drawn(A)), Categorical(A)), distance="l2", **settings).double()
    with_target(loss, here, target)
    data = [x.detach().numpy() for x in (out, here, target)]
    check(loss, batch, reference.munchausen(*data, *arrays(batch), **settings))


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_c51_equals_the_slow_reference(double, seed):
    torch.manual_seed(seed)
    out, own, target, batch = drawn(A, N), drawn(A, N), drawn(A, N), random_batch()
    tables = Table(out.flatten(1), own.flatten(1))
    qvalue = CategoricalQValueActor(tables, Categorical(A), v_min=-2.0, v_max=2.0, atoms=N)
    loss = C51Loss(qvalue, double=double).double()
    with_target(loss, drawn(A * N), target.flatten(1))
    data = [x.detach().numpy() for x in (out, own, target)]
    check(loss, batch, reference.c51(*data, *arrays(batch), np.linspace(-2, 2, N), double=double))


@pytest.mark.parametrize("kappa", [0.0, 1.0])
@pytest.mark.parametrize("double", [True, False])
def test_qrdqn_equals_the_slow_reference(double, kappa):
    torch.manual_seed(int(kappa))
    out, own, target, batch = drawn(A, N), drawn(A, N), drawn(A, N), random_batch()
    qvalue = QuantileQValueActor(Table(out.flatten(1), own.flatten(1)), Categorical(A), quantiles=N)
    loss = QRDQNLoss(qvalue, double=double, kappa=kappa).double()
    with_target(loss, drawn(A * N), target.flatten(1))
    data = [x.detach().numpy() for x in (out, (own if double else target).mean(-1), target)]
    tau = np.broadcast_to((np.arange(N) + 0.5) / N, (B, N))
    loss.qvalue.tau.copy_(torch.from_numpy(tau[0].copy()))  # all digits of it
    check(loss, batch, reference.quantiles(*data, *arrays(batch), tau, kappa))


@pytest.mark.parametrize("munchausen", [False, True])
def test_iqn_equals_the_slow_reference(munchausen):
    torch.manual_seed(3)
    out, own, here, target, batch = drawn(A, N), drawn(A, N), drawn(A, N), drawn(A, N), random_batch()
    qvalue = ImplicitQValueActor(Table(out, own), Categorical(A), quantiles=N)
    settings = {"alpha": 0.75, "tau": 0.5, "clip": -0.75}
    counts: dict[str, Any] = {"quantiles": N, "target_quantiles": N}
    loss = (MunchausenIQNLoss(qvalue, **settings, **counts) if munchausen else IQNLoss(qvalue, **counts)).double()
    with_target(loss, here, target)
    noise = {"tau": torch.rand(B, N, dtype=torch.float64), "target_tau": torch.rand(B, N, dtype=torch.float64)}
    learnt, before, after = (x.detach().numpy() for x in (out, here, target))
    action, reward, terminated, weight, discount = arrays(batch)
    tau = noise["tau"].numpy()
    if not munchausen:
        rows = action, reward, terminated, weight, discount
        return check(loss, batch, reference.quantiles(learnt, after.mean(-1), after, *rows, tau, 1.0), noise)
    values = before.mean(-1), after.mean(-1)
    atoms = reference.munchausen_atoms(*values, after, action, reward, terminated, discount, **settings)
    ended = np.ones_like(terminated)  # the target is its reward: give each atom as if it were one, and no future
    shifted = np.broadcast_to(atoms[:, None], after.shape)
    rows = action, np.zeros_like(reward), ~ended, weight, np.ones_like(discount)
    check(loss, batch, reference.quantiles(learnt, shifted.mean(-1), shifted, *rows, tau, 1.0), noise)


# ---- what they have in common ------------------------------------------------------------------------------------------------
MASKED = {
    "dqn": lambda: DQNLoss(qvalue_actor(), double=False),
    "double": lambda: DQNLoss(qvalue_actor()),
    "c51": lambda: C51Loss(categorical()),
    "qrdqn": lambda: QRDQNLoss(quantile()),
    "iqn": lambda: IQNLoss(implicit(), quantiles=4, target_quantiles=4),
    "munchausen": lambda: MunchausenLoss(qvalue_actor()),
    "munchausen-iqn": lambda: MunchausenIQNLoss(implicit(), quantiles=4, target_quantiles=4),
}


@pytest.mark.parametrize("make", MASKED.values(), ids=MASKED)
def test_forbidden_actions_are_not_in_the_target(make):
    torch.manual_seed(0)
    loss, batch = apart(make()), transitions(DISCRETE)
    noise = loss.prepare(batch)
    with torch.no_grad():
        forbidden = loss.target_qvalue.values(batch["next"]).argmax(-1)
        forbidden = loss.qvalue.values(batch["next"]).argmax(-1) if loss.is_double else forbidden
    mask = torch.ones(12, 3, dtype=torch.bool).scatter(-1, forbidden.unsqueeze(-1), False)
    plain = loss(batch, noise)
    batch["action_mask"], batch["next", "action_mask"] = torch.ones(12, 3, dtype=torch.bool), mask
    masked = loss(batch, noise)
    assert masked["loss"].isfinite()
    assert masked["target_mean"] != plain["target_mean"]
    loss.zero_grad()
    masked["loss"].backward()
    assert all(p.grad.isfinite().all() for p in loss.qvalue.parameters())


@pytest.mark.parametrize("name", CASES)
def test_one_hot_actions_are_the_same(name):
    if name.startswith("R2D2"):
        pytest.skip("its batches are sequences")
    loss, batch = CASES[name].make(), CASES[name].batch()
    noise = loss.prepare(batch)
    index = loss(batch, noise)
    loss.qvalue.spec = OneHot(3)
    whole = nn.functional.one_hot(batch["action"].long(), 3)
    for dtype in (torch.int64, torch.bool, torch.float32):  # bool is what a OneHot spec has by itself
        batch["action"] = whole.to(dtype)
        assert_close(dict(loss(batch, noise).items()), dict(index.items()), rtol=0, atol=0)


def test_the_values_of_the_kinds_are_expectations():
    data = transitions(DISCRETE)
    c51, qr, iqn = categorical(), quantile(), implicit()
    assert_close(c51.values(data), (c51.logits(data).softmax(-1) * torch.linspace(-3, 3, 7)).sum(-1))
    assert_close(qr.values(data), qr.quantiles(data).mean(-1))
    tau = torch.tensor([0.125, 0.375, 0.625, 0.875])
    assert_close(iqn.values(data), iqn.quantiles(data, tau).mean(-1))
    each = iqn.quantiles(data, tau.flip(0).expand(12, 4))  # the rows say which quantile, not the place
    assert_close(each.flip(-1), iqn.quantiles(data, tau))
    for qvalue in (c51, qr, iqn):
        assert_close(qvalue.members(data)[0], qvalue.values(data))
        assert torch.equal(qvalue.act(dict(data.items()))["action"], qvalue.values(data).argmax(-1))


@pytest.mark.parametrize("loss_type", [C51Loss, QRDQNLoss, IQNLoss, MunchausenIQNLoss])
def test_other_kinds_are_explained(loss_type):
    kind = loss_type.learns
    with pytest.raises(ConfigError, match=rf"qvalue must be a {kind}; got QValueActor\. Wrap the network: {kind}\(net"):
        loss_type(qvalue_actor())


def test_arguments_are_checked():
    with pytest.raises(ConfigError, match="qvalue must be a QValueActor; got MLP"):
        DQNLoss(net(3))
    with pytest.raises(ConfigError, match="qvalue must be a QValueActor; got QValueHead"):
        PQNLoss(QValueHead(net(3)))
    with pytest.raises(ConfigError, match=r"distance must be one of .*; got 'l3'"):
        DQNLoss(qvalue_actor(), distance="l3")
    with pytest.raises(ConfigError, match=r"v_min must be below v_max=0\.0; got 1\.0"):
        CategoricalQValueActor(net(3), DISCRETE, v_min=1.0, v_max=0.0)
    with pytest.raises(ConfigError, match="atoms must be an integer of at least 2; got 1"):
        CategoricalQValueActor(net(3), DISCRETE, atoms=1)
    with pytest.raises(ConfigError, match="quantiles must be a positive integer; got 0"):
        QuantileQValueActor(net(3), DISCRETE, quantiles=0)
    with pytest.raises(ConfigError, match="kappa must be 0 or more; got -1"):
        QRDQNLoss(quantile(), kappa=-1.0)
    for change in ({"alpha": 2.0}, {"tau": 0.0}, {"clip": 1.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(change))} must be "):
            MunchausenLoss(qvalue_actor(), **change)


# ---- against TorchRL ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("distance", ["l2", "smooth_l1"])
def test_dqn_equals_torchrl(double, distance):
    pytest.importorskip("torchrl")
    loss, batch = apart(DQNLoss(qvalue_actor(), double=double, distance=distance)), transitions(DISCRETE).exclude("weight")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchrl.data import Categorical as TheirCategorical
        from torchrl.modules import QValueActor as TheirActor
        from torchrl.objectives import DQNLoss as TheirLoss

        from rlbook.interop import to_torchrl

        actor = TheirActor(loss.qvalue.net, in_keys=["observation"], spec=TheirCategorical(3), action_space="categorical")
        theirs = TheirLoss(actor, loss_function=distance, delay_value=True, double_dqn=double, action_space="categorical")
        theirs.make_value_estimator(gamma=0.99)
        follow(theirs.target_value_network_params, loss)
        expected = theirs(to_torchrl(batch))["loss"]
    compare(loss, batch, expected, theirs.value_network_params)


def test_c51_equals_torchrl():
    pytest.importorskip("torchrl")
    loss, batch = apart(C51Loss(categorical(), double=True)), transitions(DISCRETE).exclude("weight")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchrl.data import Categorical as TheirCategorical
        from torchrl.modules import DistributionalQValueActor
        from torchrl.objectives import DistributionalDQNLoss

        from rlbook.interop import to_torchrl

        class Transposed(nn.Module):
            """Their networks return atoms before actions."""

            def __init__(self, net: nn.Module):
                super().__init__()
                self.net = net

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.net(x).unflatten(-1, (3, 7)).transpose(-1, -2)

        actor = DistributionalQValueActor(
            Transposed(loss.qvalue.net),
            in_keys=["observation"],
            spec=TheirCategorical(3),
            support=loss.qvalue.support,
            action_space="categorical",
        )
        theirs = DistributionalDQNLoss(actor, gamma=0.99, delay_value=True, reduction="mean")
        follow(theirs.target_value_network_params, loss)
        expected = theirs(to_torchrl(batch))["loss"]
    compare(loss, batch, expected, theirs.value_network_params)


def follow(params: Any, loss: Any) -> None:
    """Copy our target network into theirs."""
    ours = list(loss.target_qvalue.net.buffers())
    theirs = leaves(params)
    for mine, other in zip(sorted(ours, key=shape_of), sorted(theirs, key=shape_of), strict=True):
        other.data.copy_(mine)


def compare(loss: Any, batch: TensorDict, expected: torch.Tensor, params: Any) -> None:
    """The same value and, tensor by tensor, the same gradient."""
    out = loss(batch)["loss"]
    assert_close(out, expected.mean())
    ours = torch.autograd.grad(out, sorted(loss.qvalue.net.parameters(), key=shape_of))
    theirs = torch.autograd.grad(expected.mean(), sorted((x for x in leaves(params) if x.requires_grad), key=shape_of))
    assert len(ours) == 4
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other)
        assert mine.any()


def leaves(params: Any) -> list[torch.Tensor]:
    """Their weights, without the grid of returns."""
    return [x for name, x in params.flatten_keys().items() if isinstance(x, torch.Tensor) and "support" not in name]


def shape_of(x: torch.Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
