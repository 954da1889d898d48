"""The natural gradient: the step of steepest ascent per unit of KL, without ever forming a matrix.

The KL of a policy from itself has gradient 0 and the Fisher matrix ``H`` as its Hessian. The best step within a KL of ``delta``
goes along ``x = H^-1 g``; conjugate gradients find ``x`` from products ``H v`` alone. Parameters are one flat vector ``[P]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from rlbook.errors import SpecError, explain
from rlbook.functional._checks import check_fraction, check_positive, describe

Product: TypeAlias = Callable[[Tensor], Tensor]


def hessian_product(function: Callable[[Tensor], Tensor], x: Tensor, damping: float = 0.0) -> Product:
    """Return the product with the Hessian of a function at a point, ``v -> (d^2 f(x) / dx^2) v + damping v``.

    Args:
        function: from ``[P]`` to a scalar, for example the mean KL between the present policy and that with parameters ``x``.
        x: the point, floating ``[P]``.
        damping: added to the diagonal, not negative: makes flat directions harmless.

    Returns:
        A function of ``v``, ``[P]`` to ``[P]``.

    Source: Pearlmutter, Fast Exact Multiplication by the Hessian (1994); Schulman et al., Trust Region Policy
    Optimization (2015), appendix C.1.
    """

    def product(v: Tensor) -> Tensor:
        return torch.func.grad(lambda y: torch.func.grad(function)(y) @ v)(x) + damping * v

    return product


def graph_hessian_product(output: Tensor, parameters: Sequence[Tensor], damping: float = 0.0) -> Product:
    """Return the product with the Hessian of a scalar that was already computed from a module's parameters.

    The same numbers as :func:`hessian_product`; cheaper, as the first gradient is computed once. Not for compiled code.

    Args:
        output: scalar with a graph, for example the mean KL; the graph is kept as long as the result is.
        parameters: leaves it was computed from, of ``P`` numbers in all; unused ones count as constant.
        damping: see :func:`hessian_product`.

    Returns:
        A function of ``v``, ``[P]`` to ``[P]``, in the order of ``parameters``.
    """
    parameters = list(parameters)
    first = _flat(torch.autograd.grad(output, parameters, create_graph=True, allow_unused=True), parameters)

    def product(v: Tensor) -> Tensor:
        second = torch.autograd.grad(first @ v, parameters, retain_graph=True, allow_unused=True)
        return _flat(second, parameters) + damping * v

    return product


def conjugate_gradient(product: Product, b: Tensor, *, iterations: int = 10, tolerance: float = 1e-5) -> Tensor:
    """Solve ``H x = b`` for a symmetric positive definite ``H`` that is known by its products only.

    ::

        a   = r.r / p.Hp,      x <- x + a p,      r <- r - a Hp          from x = 0, r = p = b
        p  <- r + (r'.r' / r.r) p                                        with r' the new r

    After ``P`` iterations the solution is exact but for rounding; a few are enough where most eigenvalues lie together.

    Args:
        product: ``v -> H v``, ``[P]`` to ``[P]``.
        b: floating ``[P]``.
        iterations: how many products at most. All are computed, so that nothing waits for a GPU: what has converged stands still.
        tolerance: it stands still once ``|r| <= tolerance |b|``, or where the curvature ``p.Hp`` is not positive.

    Returns:
        ``x``, ``[P]``.

    Raises:
        SpecError: ``b`` is not one dimension.
        ConfigError: ``iterations`` is not positive.

    Source: Hestenes and Stiefel, Methods of Conjugate Gradients for Solving Linear Systems (1952), eq. 3:1.
    """
    if b.ndim != 1:
        raise SpecError(
            explain("b", "[P]", describe(b), "Join the parameters' gradients: torch.cat([g.flatten() for g in grads])")
        )
    check_positive(iterations=iterations)
    x, r, p = torch.zeros_like(b), b, b
    square = r @ r
    enough = tolerance**2 * square
    for _ in range(iterations):
        mapped = product(p)
        curvature = p @ mapped
        goes_on = (square > enough) & (curvature > 0)
        a = torch.where(goes_on, square / curvature, 0.0)
        x, r = x + a * p, r - a * mapped
        new_square = r @ r
        p = torch.where(goes_on, r + (new_square / square) * p, p)
        square = new_square
    return x


def natural_step(product: Product, gradient: Tensor, max_kl: float | Tensor, *, iterations: int = 10) -> Tensor:
    """Return the step of TRPO: along the natural gradient, as far as the quadratic model of the KL allows.

    ::

        x    = H^-1 g
        step = sqrt(2 max_kl / x.Hx) x           so that  step.H step / 2 = max_kl

    Args:
        product: ``v -> H v``, with ``H`` the Hessian of the KL, usually damped.
        gradient: of the objective, which is to rise, floating ``[P]``.
        max_kl: ``delta``, in nats, positive.
        iterations: of :func:`conjugate_gradient`.

    Returns:
        ``[P]``, to add to the parameters; zeros for a gradient of zeros.

    Raises:
        SpecError: ``gradient`` is not one dimension.
        ConfigError: ``max_kl`` or ``iterations`` is not positive.

    Source: Schulman et al., Trust Region Policy Optimization (2015), appendix C.
    """
    check_positive(max_kl=max_kl)
    x = conjugate_gradient(product, gradient, iterations=iterations)
    curvature = x @ product(x)
    return torch.where(curvature > 0, (2.0 * max_kl / curvature).sqrt(), 0.0) * x


def line_search(
    evaluate: Callable[[float], tuple[Tensor, Tensor]],
    expected: Tensor,
    max_kl: float,
    *,
    shrink: float = 0.5,
    tries: int = 10,
    accept: float = 0.1,
) -> float:
    """Return the largest of ``1, shrink, shrink^2, ...`` at which a step really improves the objective within the bound.

    A scale ``c`` is taken if the objective rises by at least ``accept c expected`` and the KL is at most ``max_kl``.

    Args:
        evaluate: from the scale of the step to ``(improvement, kl)``, scalars; called until one is taken.
        expected: improvement that the gradient promises for the whole step, ``g.step``, a scalar.
        max_kl: bound of the KL, in nats, positive.
        shrink: in (0, 1).
        tries: how many scales are tried.
        accept: share of the promise that must come true, in [0, 1].

    Returns:
        The scale; 0 if none was good: leave the parameters as they are.

    Raises:
        ConfigError: ``max_kl``, ``shrink`` or ``tries`` is not positive, or ``shrink`` or ``accept`` is above 1.

    Source: Schulman et al., Trust Region Policy Optimization (2015), appendix C.
    """
    check_positive(max_kl=max_kl, shrink=shrink, tries=tries)
    check_fraction(shrink=shrink, accept=accept)
    for scale in (shrink**k for k in range(tries)):
        improvement, kl = evaluate(scale)
        if bool((improvement >= accept * scale * expected) & (improvement > 0) & (kl <= max_kl)):
            return scale
    return 0.0


def _flat(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.zeros_like(x).flatten() if g is None else g.flatten() for g, x in zip(gradients, like, strict=True)])
