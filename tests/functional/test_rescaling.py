"""Invertible maps of values: hand-worked numbers, slopes, and that the inverse is one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rlbook.errors import SpecError
from rlbook.functional import categorical_mean, squash_value, symexp, symlog, two_hot, unsquash_value

NUMBERS = st.floats(-1e6, 1e6, width=32)


def leaf(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def check(result: torch.Tensor, x: torch.Tensor, value: list[float], slope: list[float]) -> None:
    assert_close(result, torch.tensor(value, dtype=torch.float64))
    assert_close(torch.autograd.grad(result.sum(), x)[0], torch.tensor(slope, dtype=torch.float64))


def test_symlog_and_symexp():
    x = leaf(-3.0, 0.0, 1.0)
    check(symlog(x), x, [-math.log(4.0), 0.0, math.log(2.0)], [0.25, 1.0, 0.5])  # 1 / (1 + |x|)
    check(symexp(x), x, [1 - math.exp(3.0), 0.0, math.e - 1], [math.exp(3.0), 1.0, math.e])


def test_squash_value():
    x = leaf(-3.0, 0.0, 8.0)
    # sqrt(4) - 1 = 1, sqrt(9) - 1 = 2; slope 1 / (2 sqrt(|x| + 1)) + eps
    check(squash_value(x, 0.1), x, [-1.3, 0.0, 2.8], [0.35, 0.6, 1 / 6 + 0.1])
    y = leaf(-1.3, 0.0, 2.8)
    check(unsquash_value(y, 0.1), y, [-3.0, 0.0, 8.0], [1 / 0.35, 1 / 0.6, 1 / (1 / 6 + 0.1)])
    check(unsquash_value(y, 0.0), y, [1 - 2.3**2, 0.0, 3.8**2 - 1], [4.6, 2.0, 7.6])


def test_unsquash_is_the_formula_of_the_paper():
    y, eps = torch.linspace(-30.0, 30.0, 61, dtype=torch.float64), 1e-3
    paper = y.sign() * ((((1 + 4 * eps * (y.abs() + 1 + eps)).sqrt() - 1) / (2 * eps)).square() - 1)
    assert_close(unsquash_value(y, eps), paper, atol=1e-9, rtol=1e-9)


@settings(deadline=None, max_examples=100)
@given(NUMBERS)
def test_inverses_in_single_precision(number):
    x = torch.tensor([number])
    assert_close(unsquash_value(squash_value(x)), x, rtol=1e-5, atol=1e-30)
    assert_close(symexp(symlog(x)), x, rtol=1e-5, atol=1e-30)


def test_two_hot_golden():
    bins = torch.tensor([-1.0, 0.0, 4.0])
    x = torch.tensor([-5.0, -1.0, -0.25, 0.0, 1.0, 4.0, 9.0], requires_grad=True)
    encoded = two_hot(x, bins)
    want = [[1, 0, 0], [1, 0, 0], [0.25, 0.75, 0], [0, 1, 0], [0, 0.75, 0.25], [0, 0, 1], [0, 0, 1]]
    assert_close(encoded, torch.tensor(want))
    assert not encoded.requires_grad
    assert_close(two_hot(x.reshape(7, 1), bins), encoded.reshape(7, 1, 3))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 60))
def test_two_hot_keeps_its_number(seed, count):
    generator = torch.Generator().manual_seed(seed)
    bins = torch.rand(count, generator=generator, dtype=torch.float64).add(0.01).cumsum(0) - 3.0
    x = torch.empty(20, dtype=torch.float64).uniform_(float(bins[0]), float(bins[-1]), generator=generator)
    encoded = two_hot(x, bins)
    assert_close(categorical_mean(encoded, bins), x)
    assert_close(encoded.sum(-1), torch.ones_like(x))
    assert ((encoded > 0).sum(-1) <= 2).all()


def test_compiles_fullgraph():
    def everything(x, bins):
        return two_hot(x, bins), symexp(symlog(x)), unsquash_value(squash_value(x))

    inputs = torch.linspace(-3, 3, 10), torch.linspace(-2, 2, 5)
    assert_close(torch.compile(everything, fullgraph=True, backend="aot_eager")(*inputs), everything(*inputs))


def test_wrong_bins_are_explained():
    for bins in (torch.ones(1), torch.ones(2, 3)):
        with pytest.raises(SpecError, match=r"bins must be \[M\] with M at least 2; got torch.float32"):
            two_hot(torch.ones(4), bins)


def test_bins_of_another_precision():
    x, bins = torch.tensor([0.5, -3.0]), torch.linspace(-1, 1, 5)
    for other in (two_hot(x.bfloat16(), bins), two_hot(x, bins.double())):
        assert_close(other.float(), two_hot(x, bins))
    with pytest.raises(SpecError, match=r"x must be floating; got torch.int64 \[1\]"):
        two_hot(torch.tensor([1]), bins)
