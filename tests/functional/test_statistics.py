"""Statistics of a batch, worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from rlbook.errors import SpecError
from rlbook.functional import explained_variance, normalize


def test_explained_variance():
    target = torch.tensor([1.0, 2.0, 3.0, 4.0])  # variance 1.25
    assert_close(explained_variance(target + 7.0, target), torch.tensor(1.0))  # an offset goes unseen
    assert_close(explained_variance(torch.zeros(4), target), torch.tensor(0.0))
    assert_close(explained_variance(-target, target), torch.tensor(-3.0))  # Var(2 G) = 4 Var(G)
    assert_close(explained_variance(torch.tensor([1.0, 2.0, 4.0, 3.0]), target), torch.tensor(0.6))  # 1 - 0.5 / 1.25
    assert_close(explained_variance(target.reshape(2, 2), target.reshape(2, 2)), torch.tensor(1.0))


def test_explained_variance_of_a_constant_is_undefined():
    assert explained_variance(torch.arange(3.0), torch.ones(3)).isnan()


def test_explained_variance_checks_its_shapes():
    with pytest.raises(SpecError, match=r"target must be of the shape of pred, \[4\]; got \[4, 1\]"):
        explained_variance(torch.ones(4), torch.ones(4, 1))


def test_normalize():
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]], requires_grad=True)  # mean 4, variance (9 + 1 + 1 + 9) / 4 = 5
    result = normalize(x)
    assert_close(result, torch.tensor([[-3.0, -1.0], [1.0, 3.0]]) / 5**0.5)
    result[0, 0].backward()
    # dz_0/dx_j = (1{j=0} - 1/4 - z_0 z_j / 4) / std, with z_0 z_j = (9, 3, -3, -9) / 5
    assert_close(x.grad, torch.tensor([[0.75 - 0.45, -0.25 - 0.15], [-0.25 + 0.15, -0.25 + 0.45]]) / 5**0.5)


def test_normalize_does_not_divide_by_zero():
    assert_close(normalize(torch.ones(3)), torch.zeros(3))
    assert_close(normalize(torch.ones(1)), torch.zeros(1))
    assert_close(normalize(torch.tensor([0.0, 2.0]), eps=1.0), torch.tensor([-0.5, 0.5]))


def test_compiles_fullgraph():
    x, y = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    both = torch.compile(lambda x, y: explained_variance(normalize(x), y), fullgraph=True, backend="aot_eager")
    assert_close(both(x, y), explained_variance(normalize(x), y))
