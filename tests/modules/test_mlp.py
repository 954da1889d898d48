"""MLP: shapes, lazy sizes, initialisation, errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rlbook import MLP
from rlbook.errors import ConfigError
from rlbook.modules import GRU, BatchRenorm, NoisyLinear, ensemble


def linear(mlp: MLP) -> list[nn.Linear]:
    return [layer for layer in mlp if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("batch", [(), (3,), (2, 0, 5)])
@pytest.mark.parametrize("in_features", [4, None])
def test_maps_the_last_dimension(batch, in_features):
    assert MLP(2, in_features)(torch.zeros(*batch, 4)).shape == (*batch, 2)


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ({}, [(4, 64), (64, 64), (64, 2)]),
        ({"num_cells": 8, "depth": 3}, [(4, 8), (8, 8), (8, 8), (8, 2)]),
        ({"num_cells": [16, 8]}, [(4, 16), (16, 8), (8, 2)]),
        ({"num_cells": (16,), "depth": 1}, [(4, 16), (16, 2)]),
        ({"depth": 0}, [(4, 2)]),
    ],
)
def test_layers(arguments, sizes):
    mlp = MLP(2, 4, activation=nn.Tanh, **arguments)
    assert [(layer.in_features, layer.out_features) for layer in linear(mlp)] == sizes
    assert sum(isinstance(layer, nn.Tanh) for layer in mlp) == len(sizes) - 1


def test_is_what_its_docstring_says():
    mlp, x = MLP(2, 4, [3], activation=nn.Tanh), torch.randn(5, 4)
    first, last = linear(mlp)
    assert_close(mlp(x), (x @ first.weight.T + first.bias).tanh() @ last.weight.T + last.bias)


def test_several_inputs_are_concatenated():
    mlp, x, y = MLP(1), torch.randn(5, 3), torch.randn(5, 2)
    assert_close(mlp(x, y), mlp(torch.cat((x, y), -1)))


@pytest.mark.parametrize("in_features", [4, None])
def test_orthogonal_initialisation(in_features):
    mlp = MLP(2, in_features, num_cells=[6, 6], orthogonal=(3.0, 0.1))
    first_answer = mlp(torch.ones(1, 4))
    *hidden, last = linear(mlp)
    for layer, gain in [*((layer, 3.0) for layer in hidden), (last, 0.1)]:
        weight = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
        assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), atol=1e-5, rtol=0)
        assert_close(layer.bias, torch.zeros_like(layer.bias))
    assert_close(mlp(torch.ones(1, 4)), first_answer)  # the first answer came from these weights, and they stay


def test_a_lazy_network_keeps_the_weights_it_loads():
    trained, fresh = MLP(2, 4, orthogonal=(1.0, 1.0)), MLP(2, orthogonal=(1.0, 1.0))
    fresh.load_state_dict(trained.state_dict())
    assert_close(fresh(torch.ones(3, 4)), trained(torch.ones(3, 4)), rtol=0, atol=0)


def test_arguments_reach_the_layers():
    mlp = MLP(2, 4, orthogonal=(1.0, 1.0), bias=False, dtype=torch.float64)
    assert all(layer.bias is None and layer.weight.dtype == torch.float64 for layer in linear(mlp))


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        ({"norm": nn.LayerNorm}, "Linear LayerNorm ReLU Linear LayerNorm ReLU Linear"),
        ({"norm": nn.LayerNorm, "dropout": 0.1}, "Linear Dropout LayerNorm ReLU Linear Dropout LayerNorm ReLU Linear"),
        ({"norm": nn.LayerNorm, "norm_after": True}, "Linear ReLU LayerNorm Linear ReLU LayerNorm Linear"),
        ({"norm": nn.LayerNorm, "norm_input": True}, "LayerNorm Linear LayerNorm ReLU Linear LayerNorm ReLU Linear"),
        ({"dropout": 0.1}, "Linear Dropout ReLU Linear Dropout ReLU Linear"),
        ({"layer": NoisyLinear}, "NoisyLinear ReLU NoisyLinear ReLU NoisyLinear"),
    ],
)
def test_where_norms_and_dropout_stand(arguments, kinds):
    mlp = MLP(2, 4, [8, 6], **arguments)
    assert " ".join(type(layer).__name__ for layer in mlp) == kinds
    assert mlp(torch.zeros(3, 4)).shape == (3, 2)
    assert [layer.normalized_shape for layer in mlp if isinstance(layer, nn.LayerNorm)] in ([], [(8,), (6,)], [(4,), (8,), (6,)])


def test_a_lazy_network_has_norms_and_dropout_too():
    mlp = MLP(2, num_cells=[8], norm=nn.LayerNorm, dropout=0.1)
    assert mlp(torch.zeros(3, 4)).shape == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_cells": [8, 8], "depth": 3}, "depth must be 2, the length of num_cells; got 3"),
        ({"depth": -1}, "depth must be 0.*got -1"),
        ({"num_cells": 0}, "sizes of an MLP must be positive integers; got .*0"),
        ({"num_cells": [8, 0.5]}, "sizes of an MLP must be positive integers; got .*0.5"),
        ({"out_features": 0}, "Mend num_cells or out_features"),
        ({"in_features": None, "norm": nn.LayerNorm, "norm_input": True}, "in_features must be known for norm_input"),
        ({"in_features": None, "layer": NoisyLinear}, "in_features must be known .* other layers than nn.Linear"),
    ],
)
def test_errors(arguments, match):
    with pytest.raises(ConfigError, match=match):
        MLP(**{"out_features": 2, "in_features": 4, **arguments})


def test_without_a_last_layer_it_ends_with_the_hidden_one():
    body = MLP(None, 3, (8, 5), orthogonal=(2.0, 0.01), norm=nn.LayerNorm)
    assert [type(layer) for layer in body] == [nn.Linear, nn.LayerNorm, nn.ReLU] * 2
    assert body(torch.randn(4, 3)).shape == (4, 5)
    weight = body[3].weight
    torch.testing.assert_close(weight @ weight.mT, 4 * torch.eye(5))
    with pytest.raises(ConfigError, match=r"The sizes of an MLP must be positive integers; got \[\]"):
        MLP(None, 3, ())


def test_a_lazy_network_sees_its_first_batch_once():
    mlp = MLP(1, num_cells=(8,), orthogonal=(1.0, 1.0), norm=BatchRenorm)
    mlp(torch.randn(16, 3))
    assert mlp[1].steps == 1
    with pytest.raises(ConfigError, match=r"orthogonal must be None with another layer than nn\.Linear"):
        MLP(1, 3, layer=NoisyLinear, orthogonal=(1.0, 1.0))


def test_members_differ_or_are_refused():
    gru = ensemble(GRU(1, 4), 2)
    assert not torch.equal(gru[0].weight_hh_l0, gru[1].weight_hh_l0)
    assert torch.equal(gru[1].bias_ih_l0, gru[0].bias_ih_l0)
    layer = ensemble(nn.TransformerEncoderLayer(8, 2), 2)
    assert not torch.equal(layer[0].self_attn.in_proj_weight, layer[1].self_attn.in_proj_weight)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

    with pytest.raises(ConfigError, match=r"got a Own without reset_parameters. Pass a function that makes the network"):
        ensemble(nn.Sequential(Own()), 2)
