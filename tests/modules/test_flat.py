"""Flat parameters: the modules as they were, in one block of memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rlbook import MLP
from rlbook.errors import ConfigError
from rlbook.modules import FlatParameters

OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.5, centered=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
}


def loss_of(net: nn.Module, step: int = 0) -> torch.Tensor:
    x = torch.linspace(-1, 1, 20).reshape(5, 4) * (step + 1)
    return (net(x) - 1).square().mean()


def test_parameters_become_views_with_the_same_values():
    net = MLP(2, 4, num_cells=3)
    before = copy.deepcopy(net.state_dict())
    flat = FlatParameters(net.parameters())
    assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)
    assert_close(flat.vector.detach(), torch.cat([value.flatten() for value in before.values()]), rtol=0, atol=0)
    memory = flat.vector.untyped_storage().data_ptr()
    assert all(p.untyped_storage().data_ptr() == memory for p in net.parameters())
    with torch.no_grad():
        flat.vector.fill_(2.0)
    assert all((p == 2).all() for p in net.parameters())


def test_gradients_accumulate_in_the_vector():
    net, alone = MLP(2, 4, num_cells=3), MLP(2, 4, num_cells=3)
    alone.load_state_dict(net.state_dict())
    flat = FlatParameters(net.parameters())
    for module in (net, alone):
        loss_of(module, 0).backward()
        loss_of(module, 1).backward()
    expected = torch.cat([p.grad.flatten() for p in alone.parameters()])
    assert_close(flat.gradient, expected)
    assert flat.vector.grad is flat.gradient
    flat.zero_grad()
    assert not flat.gradient.any()
    assert all(not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_moves_the_vector_as_it_would_the_tensors(make):
    net, alone = MLP(2, 4, num_cells=3), MLP(2, 4, num_cells=3)
    alone.load_state_dict(net.state_dict())
    flat = FlatParameters(net.parameters())
    ours, theirs = make([flat.vector]), make(alone.parameters())
    for step in range(20):
        flat.zero_grad()
        theirs.zero_grad()
        for module in (net, alone):
            loss_of(module, step % 3).backward()
        ours.step()
        theirs.step()
        assert_close(dict(net.state_dict()), dict(alone.state_dict()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cut", ["optimizer", "module", "part"])
def test_gradients_are_tied_again_after_someone_cut_them_off(cut):
    net = MLP(2, 4, num_cells=3)
    flat = FlatParameters(net.parameters())
    optimizer = torch.optim.SGD([flat.vector], lr=0.1)
    {"optimizer": optimizer, "module": net, "part": net[-1]}[cut].zero_grad(set_to_none=True)
    flat.zero_grad()
    loss_of(net).backward()
    assert flat.vector.grad is flat.gradient
    assert_close(flat.gradient, torch.cat([p.grad.flatten() for p in net.parameters()]), rtol=0, atol=0)
    assert flat.gradient[-2:].all()  # the last layer's biases, whose gradient arrives in the vector


def test_state_dict_round_trip_keeps_the_ties():
    net, other = MLP(2, 4, num_cells=3), MLP(2, 4, num_cells=3)
    flat = FlatParameters(net.parameters())
    net.load_state_dict(other.state_dict())
    flat.check_tied()
    assert_close(flat.vector.detach(), torch.cat([p.detach().flatten() for p in other.parameters()]), rtol=0, atol=0)
    other.load_state_dict(net.state_dict())
    copied = copy.deepcopy(net)
    with torch.no_grad():
        flat.vector.zero_()
    assert all(p.any() for p in copied.parameters())  # a copy has memory of its own


def test_modules_that_move_away_are_noticed():
    net = MLP(2, 4)
    flat = FlatParameters(net.parameters())
    net.double()
    with pytest.raises(ConfigError, match=r"where they were; got modules that were moved.*loss_fn.to"):
        flat.check_tied()


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        (lambda: MLP(2).parameters(), r"initialised; got a lazy layer.*env.rollout\(2, actor\)"),
        (lambda: [*MLP(2, 4).parameters(), *MLP(2, 4, dtype=torch.float64).parameters()], "one dtype and device; got .*float64"),
        (list, "one dtype and device"),
    ],
    ids=["lazy", "mixed", "none"],
)
def test_errors(parameters, match):
    with pytest.raises(ConfigError, match=match):
        FlatParameters(parameters())
