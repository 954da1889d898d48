"""The natural gradient: hand-worked steps, exact solutions, and the Fisher matrix of a policy that is known in closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.functional import (
    categorical_kl,
    conjugate_gradient,
    graph_hessian_product,
    hessian_product,
    line_search,
    natural_step,
)

DIAGONAL = torch.tensor([1.0, 4.0])


def spd(seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a symmetric positive definite matrix and a vector."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.T / size + torch.eye(size), torch.randn(size, generator=generator, dtype=torch.float64)


def test_conjugate_gradient_golden():
    b = torch.tensor([1.0, 4.0])
    # p = r = (1, 4), Hp = (1, 16): a = 17 / 65 after one product; exact after two.
    assert_close(conjugate_gradient(lambda v: DIAGONAL * v, b, iterations=1), b * 17 / 65)
    assert_close(conjugate_gradient(lambda v: DIAGONAL * v, b, iterations=2), torch.ones(2))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_conjugate_gradient_solves(seed, size):
    matrix, b = spd(seed, size)
    x = conjugate_gradient(lambda v: matrix @ v, b, iterations=2 * size + 2, tolerance=1e-10)
    assert_close(x, torch.linalg.solve(matrix, b), atol=1e-7, rtol=1e-7)


def test_what_has_converged_stands_still():
    b = torch.tensor([1.0, 4.0])
    assert_close(conjugate_gradient(lambda v: DIAGONAL * v, b, iterations=50, tolerance=0.0), torch.ones(2))
    assert_close(conjugate_gradient(lambda v: DIAGONAL * v, torch.zeros(2)), torch.zeros(2))
    first = conjugate_gradient(lambda v: DIAGONAL * v, b, iterations=1)
    assert_close(conjugate_gradient(lambda v: DIAGONAL * v, b, iterations=5, tolerance=0.9), first)  # |r| is 0.18 |b|
    assert_close(conjugate_gradient(lambda v: -v, b), torch.zeros(2))  # no minimum: nowhere to go


def test_natural_step_golden():
    # x = H^-1 g = (1, 1), x.Hx = 5, sqrt(2 * 0.025 / 5) = 0.1
    for max_kl in (0.025, torch.tensor(0.025)):
        assert_close(natural_step(lambda v: DIAGONAL * v, torch.tensor([1.0, 4.0]), max_kl), torch.tensor([0.1, 0.1]))
    assert_close(natural_step(lambda v: DIAGONAL * v, torch.zeros(2), 0.025), torch.zeros(2))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_natural_step_is_the_best_of_its_kl(seed):
    matrix, gradient = spd(seed, 6)
    step = natural_step(lambda v: matrix @ v, gradient, 0.01, iterations=20)
    assert_close(0.5 * step @ matrix @ step, torch.tensor(0.01, dtype=torch.float64))
    others = torch.randn(100, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    others = others * (0.02 / ((others @ matrix) * others).sum(-1, keepdim=True)).sqrt()
    assert (others @ gradient <= step @ gradient + 1e-9).all()


def test_hessian_of_the_kl_is_the_fisher_matrix():
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    old, p = logits.log_softmax(-1), logits.softmax(-1)
    fisher = p.diag() - p.outer(p)  # of a softmax in its logits
    product = hessian_product(lambda x: categorical_kl(old, x.log_softmax(-1)), logits)
    leaf = logits.clone().requires_grad_()
    graph = graph_hessian_product(categorical_kl(old, leaf.log_softmax(-1)), [leaf])
    for v in torch.eye(3, dtype=torch.float64):
        assert_close(product(v), fisher @ v)
        assert_close(graph(v), fisher @ v)


def test_products_of_a_network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    unused, x = torch.nn.Parameter(torch.ones(2, dtype=torch.float64)), torch.randn(5, 3, dtype=torch.float64)
    names, shapes = [n for n, _ in net.named_parameters()], [p.shape for p in net.parameters()]

    def output(flat):
        parts = flat.split([s.numel() for s in shapes])
        weights = {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(net, weights, (x,)).square().mean()

    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    v = torch.randn(flat.numel() + 2, dtype=torch.float64)
    want = torch.autograd.functional.hessian(output, flat) @ v[:-2] + 0.1 * v[:-2]
    assert_close(hessian_product(output, flat, damping=0.1)(v[:-2]), want)
    product = graph_hessian_product(net(x).square().mean(), [*net.parameters(), unused], damping=0.1)
    assert_close(product(v), torch.cat([want, 0.1 * v[-2:]]))
    assert_close(product(v), torch.cat([want, 0.1 * v[-2:]]))  # the graph is kept


def test_line_search():
    # f(c) = c - 0.8 c^2 gains 0.2 at 1, 0.3 at a half; its slope at 0 promises 1. KL = c^2.
    def evaluate(scale):
        tried.append(scale)
        return torch.tensor(scale - 0.8 * scale**2), torch.tensor(scale**2)

    for max_kl, accept, want, calls in ((2.0, 0.1, 1.0, 1), (2.0, 0.5, 0.5, 2), (0.1, 0.1, 0.25, 3), (1e-9, 0.1, 0.0, 10)):
        tried: list[float] = []
        assert line_search(evaluate, torch.tensor(1.0), max_kl, accept=accept) == want
        assert tried == [0.5**k for k in range(calls)]
    assert line_search(lambda c: (torch.tensor(-c), torch.tensor(0.0)), torch.tensor(1.0), 0.1) == 0.0
    assert line_search(lambda c: (torch.tensor(torch.nan), torch.tensor(0.0)), torch.tensor(1.0), 0.1) == 0.0


def test_compiles_fullgraph():
    old = torch.tensor([0.3, -1.0, 2.0]).log_softmax(-1)

    def step(logits, gradient, max_kl):
        product = hessian_product(lambda x: categorical_kl(old, x.log_softmax(-1)), logits, damping=0.1)
        return natural_step(product, gradient, max_kl)

    inputs = torch.tensor([0.5, -1.0, 1.0]), torch.tensor([1.0, 0.5, -1.0]), torch.tensor(0.01)
    assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs), step(*inputs))


def test_wrong_arguments_are_explained():
    with pytest.raises(SpecError, match=r"b must be \[P\]; got torch.float32 \[2, 2\]. Join the parameters"):
        conjugate_gradient(lambda v: v, torch.ones(2, 2))
    with pytest.raises(ConfigError, match="iterations must be positive; got 0"):
        conjugate_gradient(lambda v: v, torch.ones(2), iterations=0)
    with pytest.raises(ConfigError, match="max_kl must be positive; got 0"):
        natural_step(lambda v: v, torch.ones(2), 0)
    with pytest.raises(ConfigError, match="tries must be positive; got 0"):
        line_search(lambda c: (torch.ones(()), torch.ones(())), torch.ones(()), 0.1, tries=0)
