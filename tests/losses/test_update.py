"""The gradient step: the same numbers as the loop one would write by hand, eager and compiled, with any of torch's optimizers."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from losses.cases import CASES, DISCRETE, actor, on_policy_batch, value
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close

from rlbook import MLP, Actor, PPOLoss, ValueHead, compile_update
from rlbook.errors import ConfigError, MissingKeyError, NonFiniteError, SpecError
from rlbook.losses import Loss

OPTIMIZERS: dict[str, Callable] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, eps=1e-5),
    "Adam_decay": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.8, 0.99), weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "foreach": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
}
both = pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
each_way = pytest.mark.parametrize(  # Adam's step is part of the compiled code, SGD's is not
    ("compile", "kind"),
    [(False, torch.optim.Adam), (True, torch.optim.Adam), (True, torch.optim.SGD)],
    ids=["eager-Adam", "compiled-Adam", "compiled-SGD"],
)
pytestmark = pytest.mark.usefixtures("quick_compile")


def make() -> PPOLoss:
    torch.manual_seed(0)
    return CASES["PPOLoss"].make()


def batches(count: int, rows: int = 12) -> Iterator[TensorDict]:
    torch.manual_seed(1)
    for _ in range(count):
        yield on_policy_batch(DISCRETE, rows)


def by_hand(
    loss: Loss, optimizers: list, steps: int, max_grad_norm: float | None = None, before_step=lambda t: None
) -> list[float]:
    """The loop that the update stands for; returns the losses."""
    losses = []
    for t, batch in enumerate(batches(steps)):
        before_step(t)
        for optimizer in optimizers:
            optimizer.zero_grad()
        out = loss(batch)["loss"]
        out.backward()
        for optimizer in optimizers:
            if max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_grad_norm)
            optimizer.step()
        losses.append(out.item())
    return losses


def assert_same(ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-5) -> None:
    assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=tolerance, atol=tolerance)


def weights(loss: Loss) -> Tensor:
    return torch.cat([p.detach().flatten() for p in loss.parameters()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_eager_equals_the_loop_by_hand(name):
    ours, theirs = make(), make()
    update = compile_update(ours, OPTIMIZERS[name](ours.parameters()), max_grad_norm=0.5, compile=False)
    losses = [update(batch)["loss"].item() for batch in batches(10)]
    assert_close(losses, by_hand(theirs, [OPTIMIZERS[name](theirs.parameters())], 10, 0.5), rtol=1e-5, atol=1e-6)
    assert_same(ours, theirs, 1e-6)


@pytest.mark.parametrize("name", ["Adam_decay", "AdamW", "amsgrad", "SGD"])
def test_compiled_equals_the_loop_by_hand(name):
    ours, theirs = make(), make()
    update = compile_update(ours, OPTIMIZERS[name](ours.parameters()), max_grad_norm=0.5)
    losses = [update(batch)["loss"].item() for batch in batches(20)]
    assert update.compiled
    assert_close(losses, by_hand(theirs, [OPTIMIZERS[name](theirs.parameters())], 20, 0.5), rtol=1e-4, atol=1e-5)
    assert_same(ours, theirs)


@both
def test_means_of_gradients_that_ceased_become_zero_not_subnormal(compile):
    loss = make()
    optimizer = OPTIMIZERS["Adam"](loss.parameters())
    update = compile_update(loss, optimizer, compile=compile)
    (batch,) = batches(1)
    batch["observation"][:, 0] = 0.0  # so the weights of this number have no gradient
    update(batch)
    (state,) = optimizer.state.values()
    state["exp_avg"].fill_(1e-38)  # as left by gradients that ceased long ago
    state["exp_avg_sq"].fill_(1e-38)
    state["step"].fill_(99)  # eager steps look at every hundredth
    update(batch)
    smallest = torch.finfo(torch.float32).tiny
    for name in ("exp_avg", "exp_avg_sq"):
        assert not ((state[name] != 0) & (state[name].abs() < smallest)).any()
    assert (state["exp_avg"] == 0).any()
    assert (state["exp_avg"] != 0).any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor imports torch.jit
def test_machine_code_equals_eager(monkeypatch):
    monkeypatch.undo()
    ours, theirs = make(), make()
    fast = compile_update(ours, OPTIMIZERS["Adam"](ours.parameters()), max_grad_norm=0.5)
    slow = compile_update(theirs, OPTIMIZERS["Adam"](theirs.parameters()), max_grad_norm=0.5, compile=False)
    for t, batch in enumerate(batches(20)):
        for update in (fast, slow):  # both stay live
            update.loss_fn.clip_eps = 0.3 / (t + 1)
            update.optimizers[0].param_groups[0]["lr"] = 1e-2 / (t + 1)
        assert_close(dict(fast(batch).items()), dict(slow(batch).items()), rtol=1e-4, atol=1e-5)
    assert fast.compiled
    assert_same(ours, theirs)


@both
def test_reports_the_loss_the_diagnostics_and_the_norm(compile):
    loss = make()
    update = compile_update(loss, torch.optim.SGD(loss.parameters(), lr=0.0), max_grad_norm=1e-3, compile=compile)
    batch = next(batches(1))
    metrics, expected = update(batch), loss(batch)
    expected["loss"].backward()
    norm = torch.cat([p.grad.flatten() for p in loss.parameters()]).norm()
    assert_close(metrics["grad_norm"], loss_gradient_norm(make(), batch), rtol=1e-5, atol=0)  # before clipping
    assert norm > 0
    assert set(metrics.keys()) == {*expected.keys(), "grad_norm"}
    assert not any(number.requires_grad for number in metrics.values())
    assert_close(metrics["loss_value"], expected["loss_value"].detach())


def loss_gradient_norm(loss: Loss, batch: TensorDict) -> Tensor:
    loss(batch)["loss"].backward()
    return torch.cat([p.grad.flatten() for p in loss.parameters()]).norm()


@both
def test_each_update_keeps_its_own_settings(compile):
    # Compiled code lives with a function's code, which all updates share: the second one must not run the first one's.
    moved = []
    for max_grad_norm, rate, scale in ((1e-3, 1.0, 1.0), (None, 1.0, 1.0), (1e-3, 1.0, 2.0)):
        loss = make() if scale == 1 else Scaled(make())
        before = weights(loss)
        compile_update(loss, torch.optim.SGD(loss.parameters(), lr=rate), max_grad_norm=max_grad_norm, compile=compile)(
            next(batches(1))
        )
        moved.append((weights(loss) - before).norm().item())
    assert_close(moved[0], 1e-3, rtol=1e-2, atol=0)
    assert moved[1] > 0.1
    unclipped = Scaled(make())
    before = weights(unclipped)
    compile_update(unclipped, torch.optim.SGD(unclipped.parameters(), lr=1.0), compile=compile)(next(batches(1)))
    assert_close((weights(unclipped) - before).norm().item(), 3 * moved[1], rtol=1e-4, atol=0)


class Scaled(Loss):
    """Three times another loss, from the same entries."""

    def __init__(self, inner: Loss):
        super().__init__()
        self.inner = inner

    @property
    def in_keys(self):
        return self.inner.in_keys

    def terms(self, batch, noise):
        terms, diagnostics = self.inner.terms(batch, noise)
        return {name: 3 * term for name, term in terms.items()}, diagnostics


@both
def test_learning_rate_and_hyper_parameters_are_live(compile):
    ours, theirs = make(), make()
    optimizer, other = (torch.optim.Adam(loss.parameters(), lr=1e-2) for loss in (ours, theirs))
    update = compile_update(ours, optimizer, compile=compile)

    def anneal(loss, optimizer, t):
        optimizer.param_groups[0]["lr"] = 1e-2 / (t + 1)
        loss.clip_eps, loss.value_coef = 0.3 / (t + 1), float(t)

    for t, batch in enumerate(batches(6)):
        anneal(ours, optimizer, t)
        update(batch)
    by_hand(theirs, [other], 6, before_step=lambda t: anneal(theirs, other, t))
    assert_same(ours, theirs)


@each_way
def test_several_groups(compile, kind):
    ours, theirs = make(), make()

    def optimizer(loss):
        return kind([{"params": loss.actor.parameters(), "lr": 1e-2}, {"params": loss.value.parameters()}], lr=1e-3)

    update = compile_update(ours, optimizer(ours), max_grad_norm=0.3, compile=compile)
    for batch in batches(5):
        update(batch)
    by_hand(theirs, [optimizer(theirs)], 5, 0.3)
    assert_same(ours, theirs)


@both
def test_several_optimizers_are_clipped_each_for_itself(compile):
    ours, theirs = make(), make()

    def optimizers(loss):
        return [torch.optim.Adam(loss.actor.parameters(), lr=1e-2), torch.optim.SGD(loss.value.parameters(), lr=1.0)]

    update = compile_update(ours, optimizers(ours), max_grad_norm=0.01, compile=compile)
    for batch in batches(5):
        update(batch)
    by_hand(theirs, optimizers(theirs), 5, 0.01)
    assert_same(ours, theirs)


@both
def test_a_part_of_the_loss_may_be_left_out(compile):
    loss = make()
    actor_before = copy.deepcopy(loss.actor.state_dict())
    with pytest.warns(UserWarning, match="No optimizer steps all of actor"):
        update = compile_update(loss, torch.optim.Adam(loss.value.parameters(), lr=1e-2), compile=compile)
    value_before = copy.deepcopy(loss.value.state_dict())
    update(next(batches(1)))
    assert_close(dict(loss.actor.state_dict()), dict(actor_before), rtol=0, atol=0)
    assert not torch.equal(loss.value.net[0].weight, value_before["net.0.weight"])


@both
def test_shared_layers(compile):
    def shared() -> PPOLoss:
        torch.manual_seed(0)
        trunk = nn.Sequential(MLP(8, 4, 8), nn.Tanh())
        return PPOLoss(Actor(nn.Sequential(trunk, nn.Linear(8, 3)), DISCRETE), ValueHead(nn.Sequential(trunk, nn.Linear(8, 1))))

    ours, theirs = shared(), shared()
    update = compile_update(ours, torch.optim.Adam(ours.parameters(), lr=1e-2), compile=compile)
    for batch in batches(5):
        update(batch)
    by_hand(theirs, [torch.optim.Adam(theirs.parameters(), lr=1e-2)], 5)
    assert_same(ours, theirs)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())[..., :3]


@both
def test_tied_weights(compile):
    ours = PPOLoss(Actor(Tied(), DISCRETE))
    theirs = copy.deepcopy(ours)
    update = compile_update(ours, torch.optim.SGD(ours.parameters(), lr=0.1), compile=compile)
    for batch in batches(3):
        update(batch)
    by_hand(theirs, [torch.optim.SGD(theirs.parameters(), lr=0.1)], 3)
    assert_same(ours, theirs)


@both
def test_a_smaller_last_batch(compile):
    ours, theirs = make(), make()
    fast, slow = (compile_update(x, torch.optim.Adam(x.parameters()), compile=c) for x, c in ((ours, compile), (theirs, False)))
    for rows in (12, 5, 12):
        batch = on_policy_batch(DISCRETE, rows)
        assert_close(fast(batch)["loss"], slow(batch)["loss"])
    assert fast.compiled == compile
    assert_same(ours, theirs)


@each_way
def test_zero_grad_in_the_loop_does_no_harm(compile, kind):
    ours, theirs = make(), make()
    optimizer = kind(ours.parameters(), lr=1e-2)
    update = compile_update(ours, optimizer, compile=compile)
    for batch in batches(4):
        optimizer.zero_grad()
        ours.value.zero_grad()
        update(batch)
    by_hand(theirs, [kind(theirs.parameters(), lr=1e-2)], 4)
    assert_same(ours, theirs)


@pytest.mark.parametrize(("compile", "kind"), [(False, torch.optim.SGD), (False, torch.optim.Adam), (True, torch.optim.Adam)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(compile, kind):
    def fresh():
        loss = make()
        optimizer = kind(loss.parameters(), lr=1e-2)
        return loss, optimizer, compile_update(loss, optimizer, compile=compile)

    data = list(batches(6))
    whole, optimizer, update = fresh()
    for t, batch in enumerate(data):
        optimizer.param_groups[0]["lr"] = 1e-2 / (t + 1)
        update(batch)

    loss, optimizer, update = fresh()
    for t, batch in enumerate(data[:3]):
        optimizer.param_groups[0]["lr"] = 1e-2 / (t + 1)
        update(batch)
    file = io.BytesIO()
    torch.save({"loss": loss.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)

    saved = torch.load(file)
    loss, optimizer, update = fresh()
    loss.load_state_dict(saved["loss"])
    optimizer.load_state_dict(saved["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 1e-2 / 3
    for t, batch in enumerate(data[3:], 3):
        optimizer.param_groups[0]["lr"] = 1e-2 / (t + 1)
        update(batch)
    assert_same(loss, whole, 0)


@both
def test_a_loaded_learning_rate_counts(compile):
    ours, theirs = make(), make()
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-2)
    update = compile_update(ours, optimizer, compile=compile)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 1e-4
    optimizer.load_state_dict(state)
    for batch in batches(2):
        update(batch)
    by_hand(theirs, [torch.optim.Adam(theirs.parameters(), lr=1e-4)], 2)
    assert_same(ours, theirs, 1e-6)


@both
def test_schedulers_work_without_warnings(compile):  # any warning is an error here
    loss = make()
    optimizer = torch.optim.Adam(loss.parameters(), lr=1.0)
    update = compile_update(loss, optimizer, compile=compile)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.0)
    data = list(batches(2))
    before = weights(loss)
    update(data[0])
    scheduler.step()
    after = weights(loss)
    update(data[1])
    assert (after - before).abs().max() > 0.1
    assert_close(weights(loss), after, rtol=0, atol=0)  # the learning rate is 0 now


class Branching(PPOLoss):
    """A loss that looks at its data, which one graph cannot."""

    def terms(self, batch, noise):
        terms, diagnostics = super().terms(batch, noise)
        if terms["loss_actor"] > -1e9:
            diagnostics["branch"] = torch.ones(())
        return terms, diagnostics


def test_what_cannot_be_compiled_runs_eagerly_and_says_why():
    ours, theirs = Branching(actor(DISCRETE), value()), PPOLoss(actor(DISCRETE), value())
    theirs.load_state_dict(ours.state_dict())
    update = compile_update(ours, torch.optim.Adam(ours.parameters(), lr=1e-2))
    data = list(batches(3))
    with pytest.warns(
        UserWarning, match=r"The update of Branching runs eagerly: it could not be compiled \(.*[Dd]ata-dependent"
    ) as seen:
        assert update(data[0])["branch"] == 1
    assert seen[0].filename == __file__
    for batch in data[1:]:
        update(batch)  # says it once
    by_hand(theirs, [torch.optim.Adam(theirs.parameters(), lr=1e-2)], 3)
    assert_same(ours, theirs)


@both
def test_a_missing_entry_is_explained(compile):
    loss = make()
    update = compile_update(loss, torch.optim.Adam(loss.parameters()), compile=compile)
    with pytest.raises(MissingKeyError, match=r"one with 'advantage'.*Run an estimator"):
        update(next(batches(1)).exclude("advantage"))


@each_way
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_not_taken_and_explained(compile, kind, number):
    ours, theirs = make(), make()
    update = compile_update(ours, kind(ours.parameters(), lr=1e-2), max_grad_norm=0.5, compile=compile)
    data = list(batches(4))
    for batch in data[:2]:
        update(batch)
    before, bad = weights(ours), data[2].clone()
    bad["value_target"][3] = number
    with pytest.raises(NonFiniteError, match=r"finite; got \['loss_value', 'loss', 'grad_norm'\] that are not.*in the batch"):
        update(bad)
    assert torch.equal(weights(ours), before)
    for batch in data[2:]:  # and goes on as if nothing had happened
        update(batch)
    by_hand(theirs, [kind(theirs.parameters(), lr=1e-2)], 4, 0.5)
    assert_same(ours, theirs)


@both
def test_a_trailing_dimension_is_explained(compile):
    loss = make()
    update = compile_update(loss, torch.optim.Adam(loss.parameters()), compile=compile)
    batch = next(batches(1))
    batch["advantage"] = batch["advantage"].unsqueeze(-1)
    with pytest.raises(SpecError, match=r"of shape \[12\]; got \[12, 1\].*trailing"):
        update(batch)
    assert update.compiled == compile


def test_a_saved_actor_does_not_bring_the_critic():
    loss, untouched = make(), make()
    update = compile_update(loss, torch.optim.Adam(loss.parameters(), lr=1e-2), compile=False)
    assert size_of(loss.actor) == size_of(untouched.actor)
    state = loss.actor.state_dict()
    assert loss.actor.state_dict(keep_vars=True)["net.0.weight"] is loss.actor.net[0].weight
    update(next(batches(1)))
    assert_close(dict(state), dict(untouched.actor.state_dict()), rtol=0, atol=0)  # a snapshot


def size_of(module: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    return len(file.getvalue())


@both
def test_modules_that_were_moved_are_noticed(compile):
    loss = make()
    update = compile_update(loss, torch.optim.Adam(loss.parameters()), compile=compile)
    loss.double()
    with pytest.raises(ConfigError, match=r"where they were.*Move modules first"):
        update(next(batches(1)))


def stepped(loss: Loss) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(loss.parameters())
    loss(next(batches(1)))["loss"].backward()
    optimizer.step()
    return optimizer


def used(loss: Loss) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(loss.parameters())
    compile_update(loss, optimizer, compile=False)
    return optimizer


def half_frozen(loss: Loss) -> torch.optim.Optimizer:
    loss.actor.net[0].weight.requires_grad_(False)
    return torch.optim.Adam(loss.parameters())


@pytest.mark.parametrize(
    ("optimizer", "options", "match"),
    [
        (lambda loss: torch.optim.LBFGS(loss.parameters()), {}, "optimizer must be one of Adam, .*got LBFGS"),
        (
            lambda loss: torch.optim.Adam(MLP(2, 4).parameters()),
            {},
            r"parameters of the loss; got others.*loss_fn.parameters\(\)",
        ),
        (stepped, {}, "fresh; got Adam that has taken steps"),
        (used, {}, "fresh; got Adam that .*belongs to another update"),
        (half_frozen, {}, r"trainable; got \['actor.net.0.weight'\]"),
        (lambda loss: torch.optim.Adam(loss.parameters()), {"max_grad_norm": 0}, "max_grad_norm must be positive or None; got 0"),
        (
            lambda loss: torch.optim.Adam(loss.parameters()),
            {"max_grad_norm": float("nan")},
            "max_grad_norm must be positive.*got nan",
        ),
    ],
    ids=["LBFGS", "foreign", "stepped", "used", "frozen", "zero", "nan"],
)
def test_errors(optimizer, options, match):
    loss = make()
    with pytest.raises(ConfigError, match=match):
        compile_update(loss, optimizer(loss), compile=False, **options)


def test_an_error_leaves_the_optimizer_as_it_was():
    loss = make()
    optimizer = torch.optim.Adam([{"params": loss.parameters()}, {"params": MLP(2, 4).parameters()}])
    with pytest.raises(ConfigError, match="parameters of the loss"):
        compile_update(loss, optimizer)
    assert len(optimizer.param_groups[0]["params"]) == len(list(loss.parameters()))


def test_lazy_layers_must_have_seen_data():
    loss = PPOLoss(Actor(MLP(3), DISCRETE))
    with pytest.raises(ConfigError, match=r"a lazy layer that has seen no data.*env.rollout\(2, actor\)"):
        compile_update(loss, torch.optim.Adam(loss.parameters()))
