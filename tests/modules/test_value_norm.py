"""Value normalisation: golden statistics, and PopArt's values that stay where they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rlbook import MLP, ValueHead
from rlbook.errors import ConfigError, SpecError
from rlbook.modules import FlatParameters, PopArt, RunningValueNorm


def test_golden_statistics():
    # beta = 1/2. First batch [1, 3]: weight 1, mean 2, square 5, sigma 1. Second [6, 6]: weight (1/2) / (3/4) = 2/3,
    # mean 2/3 + 4 = 14/3, square 5/3 + 24 = 77/3, variance 77/3 - 196/9 = 35/9.
    norm = RunningValueNorm(beta=0.5)
    norm.update(torch.tensor([1.0, 3.0]))
    assert norm.mean == 2
    assert norm.std == 1
    norm.update(torch.tensor([6.0, 6.0]))
    assert_close(norm.mean.item(), 14 / 3)
    assert_close(norm.std.item() ** 2, 35 / 9)


def test_normalising_and_back():
    norm = RunningValueNorm()
    norm.update(torch.tensor([[90.0, 110.0]]))
    x = torch.randn(3, 4) * 100
    assert_close(norm.denormalize(norm.normalize(x)), x)
    assert norm.normalize(x).dtype == torch.float32


def test_nothing_changes_before_the_first_target():
    norm, x = RunningValueNorm(), torch.randn(5)
    assert_close(norm.normalize(x), x)
    assert_close(norm.denormalize(x), x)


def test_equal_targets_do_not_divide_by_zero():
    norm = RunningValueNorm(epsilon=0.1)
    norm.update(torch.full((8,), 1e6))
    assert_close(norm.normalize(torch.tensor([1e6, 1e6 + 1])), torch.tensor([0.0, 10.0]))


@pytest.mark.parametrize("flat", [False, True])
def test_pop_art_preserves_values_while_its_statistics_move(flat):
    value = ValueHead(MLP(1, 3, num_cells=(8,))).double()
    if flat:
        tied = FlatParameters(value.parameters())
    norm, x = PopArt(value, beta=0.3), torch.randn(20, 3, dtype=torch.float64)
    before = norm.denormalize(value.value({"observation": x})).detach()
    for k in range(5):
        norm.update(torch.randn(64) * 10**k + 50 * k)
        assert_close(norm.denormalize(value.value({"observation": x})), before, rtol=1e-9, atol=1e-9)
    assert norm.std > 100
    if flat:
        tied.check_tied()


def test_plain_statistics_do_move_values():
    value, norm, x = ValueHead(MLP(1, 3)), RunningValueNorm(), torch.randn(20, 3)
    before = norm.denormalize(value.value({"observation": x}))
    norm.update(torch.randn(64) * 10 + 50)
    assert (norm.denormalize(value.value({"observation": x})) - before).abs().min() > 1


def test_the_state_travels():
    norm, other = RunningValueNorm(), RunningValueNorm()
    norm.update(torch.randn(10) * 5)
    other.load_state_dict(norm.state_dict())
    assert_close(other.std, norm.std)


@pytest.mark.parametrize("net", [MLP(2, 3), MLP(1, num_cells=()), torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Tanh())])
def test_another_last_layer_is_explained(net):
    with pytest.raises(SpecError, match="The critic's last layer must be linear, with one output and a bias"):
        PopArt(ValueHead(net))


@pytest.mark.parametrize("arguments", [{"beta": 0.0}, {"beta": 1.5}, {"epsilon": 0.0}])
def test_errors(arguments):
    with pytest.raises(ConfigError, match=f"{next(iter(arguments))} must be"):
        RunningValueNorm(**arguments)


def test_the_last_layer_can_be_named():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.body, self.gate = nn.Linear(8, 1), nn.Linear(4, 8), nn.Linear(8, 1)

        def forward(self, x):
            h = self.body(x).tanh()
            return self.out(h * self.gate(h).sigmoid())

    value = ValueHead(Gated())
    norm, data = PopArt(value, layer=value.net.out), {"observation": torch.randn(5, 4)}
    before = norm.denormalize(value.value(data))
    norm.update(9 * torch.randn(50) + 30)
    assert_close(norm.denormalize(value.value(data)), before)
