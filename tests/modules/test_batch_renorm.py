"""Batch renormalisation: the paper's algorithm, its gradient, when it learns, and inside a compiled update."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from compiling import quick_compile
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close

from rlbook import MLP, ValueHead, compile_update, ensemble
from rlbook.errors import ConfigError, SpecError
from rlbook.losses.base import Loss
from rlbook.modules import BatchRenorm

__all__ = ["quick_compile"]


def reference(x: Tensor, state: dict, r_max: float, d_max: float, momentum: float, eps: float) -> Tensor:
    """Algorithm 1 in float64, feature by feature; ``state`` has the running mean and variance, which are written."""
    y = torch.empty_like(x)
    for j in range(x.shape[1]):
        column = x[:, j]
        mean, var = column.mean(), column.var(correction=0)
        with torch.no_grad():
            running = (state["var"][j] + eps) ** 0.5
            r = float(min(max((var + eps) ** 0.5 / running, 1 / r_max), r_max))
            d = float(min(max((mean - state["mean"][j]) / running, -d_max), d_max))
            state["mean"][j] += momentum * (float(mean) - state["mean"][j])
            state["var"][j] += momentum * (float(var) - state["var"][j])
        y[:, j] = (column - mean) / (var + eps) ** 0.5 * r + d
    return y


@pytest.mark.parametrize("warm_up", [0, 2, 100])
def test_equals_a_slow_reference_in_value_gradient_and_statistics(warm_up):
    layer = BatchRenorm(3, momentum=0.3, warm_up=warm_up, r_max=1.5, d_max=0.5, dtype=torch.float64)
    state = {"mean": [0.0] * 3, "var": [1.0] * 3}
    for step in range(5):
        x = (torch.randn(16, 3, dtype=torch.float64) * torch.tensor([0.5, 1.0, 4.0]) + torch.tensor([0.0, 3.0, 0.1])).detach()
        limits = (1.5, 0.5) if step >= warm_up else (1.0, 0.0)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, expected = layer(ours), reference(theirs, state, *limits, 0.3, 1e-3)
        assert_close(y, expected)
        weight = torch.randn_like(y)
        (y * weight).sum().backward()
        (expected * weight).sum().backward()
        assert_close(ours.grad, theirs.grad)
        assert_close(layer.running_mean, torch.tensor(state["mean"], dtype=torch.float64))
        assert_close(layer.running_var, torch.tensor(state["var"], dtype=torch.float64))
    assert layer.steps == 5


def test_is_batch_norm_while_warming_up():
    ours, theirs = BatchRenorm(4, momentum=0.1), nn.BatchNorm1d(4, eps=1e-3, momentum=0.1)
    with torch.no_grad():
        for layer in (ours, theirs):
            layer.weight.copy_(torch.arange(1.0, 5.0))
            layer.bias.copy_(torch.arange(4.0))
    x = 3 + 2 * torch.randn(32, 4)
    assert_close(ours(x), theirs(x))
    assert_close(ours.running_mean, theirs.running_mean)


def test_without_clipping_it_says_in_training_what_it_says_afterwards():
    layer = BatchRenorm(4, warm_up=0, r_max=1e9, d_max=1e9)
    layer.running_mean.copy_(torch.randn(4))
    layer.running_var.uniform_(0.5, 4.0)
    x = 3 + 2 * torch.randn(32, 4)
    with torch.no_grad():
        expected = layer(x)
    assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [(32,), (4, 8), (2, 2, 8)])
def test_all_batch_dimensions_are_one(batch):
    flat, shaped, x = BatchRenorm(3), BatchRenorm(3), torch.randn(32, 3)
    assert_close(shaped(x.reshape(*batch, 3)), flat(x).reshape(*batch, 3))
    assert_close(shaped.running_var, flat.running_var)


def test_it_learns_where_its_weights_do_and_nowhere_else():
    layer, x = BatchRenorm(3), 5 + torch.randn(8, 3)

    def learns(run) -> bool:
        before = layer.steps.item(), layer.running_mean.clone()
        y = run()
        changed = layer.steps.item() != before[0]
        assert changed == bool((layer.running_mean != before[1]).any())
        assert changed == bool(y.mean().abs() < 0.1)  # the batch's own mean is gone only if the batch counts
        return changed

    frozen = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    assert learns(lambda: layer(x))
    assert not learns(lambda: torch.no_grad()(layer)(x))
    assert not learns(lambda: torch.func.functional_call(layer, frozen, (x.clone().requires_grad_(),)))
    layer.eval()
    assert not learns(lambda: layer(x))
    layer.train().requires_grad_(False)
    assert not learns(lambda: layer(x))


def test_a_frozen_layer_passes_the_gradient_of_a_line():
    layer = BatchRenorm(2).eval()
    layer.running_var.copy_(torch.tensor([4.0, 0.25]) - 1e-3)
    x = torch.randn(5, 2, requires_grad=True)
    layer(x).sum().backward()
    assert_close(x.grad, torch.tensor([0.5, 2.0]).expand(5, 2))


def test_members_of_an_ensemble_begin_alike_with_statistics_of_their_own():
    net = MLP(1, 4, [8], norm=BatchRenorm, norm_input=True)
    net(torch.randn(16, 4))
    first, second = ensemble(net, 2)
    assert (first[0].steps, second[0].steps) == (1, 0)
    assert (second[0].running_mean == 0).all()


def test_float_statistics_of_bfloat16_inputs():
    layer, x = BatchRenorm(3), (100 + torch.randn(256, 3)).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    assert layer.running_mean.dtype == torch.float32
    assert_close(layer.running_mean, 0.01 * x.float().mean(0))


class Regression(Loss):
    """Fit values to targets, and beside that look at a frozen copy of the network."""

    trains: ClassVar = {"loss_value": ("value",)}
    in_keys = ("observation", "target")

    def __init__(self, value):
        super().__init__()
        self.value = value

    def terms(self, batch, noise):
        error = self.value.value(batch) - batch["target"]
        return {"loss_value": (error**2).mean()}, {}


@pytest.mark.usefixtures("quick_compile")
def test_statistics_are_written_in_a_compiled_update_as_in_an_eager_one():
    torch.manual_seed(1)
    batches = [TensorDict({"observation": 3 * torch.randn(32, 4) + 1, "target": torch.randn(32)}, (32,)) for _ in range(6)]
    states = []
    for compile in (False, True):
        torch.manual_seed(0)
        norm = lambda size: BatchRenorm(size, momentum=0.2, warm_up=3)  # noqa: E731
        loss_fn = Regression(ValueHead(MLP(1, 4, [16, 16], norm=norm, norm_input=True, norm_after=True)))
        update = compile_update(loss_fn, torch.optim.Adam(loss_fn.parameters(), lr=1e-2), compile=compile)
        for batch in batches:
            update(batch)
        assert update.compiled is compile
        states.append({name: value.clone() for name, value in loss_fn.state_dict().items()})
    assert states[0]["value.net.0.steps"] == 6
    for name, value in states[0].items():
        assert_close(states[1][name], value, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("arguments", [{"momentum": 0.0}, {"momentum": 1.5}, {"r_max": 0.5}, {"d_max": -1.0}, {"warm_up": -1}])
def test_errors(arguments):
    with pytest.raises(ConfigError, match=r"The arguments of BatchRenorm must be in their ranges"):
        BatchRenorm(3, **arguments)


def test_a_batch_that_is_not_finite_leaves_no_trace():
    layer = BatchRenorm(3)
    layer(torch.randn(8, 3))
    before = [layer.running_mean.clone(), layer.running_var.clone()]
    x = torch.randn(8, 3)
    x[0, 1] = torch.nan
    layer(x)
    assert_close(layer.running_mean[1], before[0][1], rtol=0, atol=0)
    assert_close(layer.running_var[1], before[1][1], rtol=0, atol=0)
    assert layer.running_mean.isfinite().all()
    assert not torch.equal(layer.running_mean, before[0])  # the other features go on


@pytest.mark.parametrize("training", [True, False])
def test_another_size_is_refused(training):
    with pytest.raises(SpecError, match=r"The input of BatchRenorm must be of shape \[\*, 3\]; got \[4, 6\]"):
        BatchRenorm(3).train(training)(torch.randn(4, 6))
