"""The step of trust region policy optimisation: a natural gradient and a line search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.optim import Optimizer

from rlbook import keys
from rlbook.errors import ConfigError, NonFiniteError, explain
from rlbook.functional import graph_hessian_product, line_search, natural_step
from rlbook.losses.update import Update
from rlbook.modules.flat import FlatParameters, save_copies

if TYPE_CHECKING:
    from rlbook.losses.trpo import TRPOLoss

POLICY, VALUE = ("loss_actor", "loss_entropy"), ("loss_value",)


class TRPOUpdate:
    r"""The step of TRPO: as far along the natural gradient as the KL allows, then gradient steps of the value.

    .. math::
        x = (F + damping I)^{-1} g, \qquad
        \theta \leftarrow \theta + c \sqrt{2 \delta / x^T (F + damping I) x} \; x

    with the gradient :math:`g` of the objective, the Fisher matrix :math:`F` of the policy and the largest :math:`c` in
    :math:`1, 0.8, 0.64, \ldots` at which the objective really rises and :math:`KL(\pi_{old} || \pi) \le \delta`. The policy's
    step is eager: there is one per rollout.

    Args:
        loss_fn: the loss. Lazy layers must have seen data.
        value_optimizer: over the parameters of ``loss_fn.value``; None to train the policy alone.
        max_kl: :math:`\delta`, in nats, positive.
        damping: not negative. More of it shortens the step in directions that hardly change the policy.
        iterations: of conjugate gradients, each a product with the Fisher matrix.
        shrink: from one scale :math:`c` to the next, in (0, 1).
        tries: how many scales to try; where none is good the policy stays as it is.
        value_epochs: passes over the batch to train the value.
        value_size: rows (sequences, where it has a memory) of each of its gradient steps; all by default.
        max_grad_norm: clip the norm of the value's gradient to this.
        compile: compile the value's step.

    Raises:
        ConfigError: an argument is out of range; the optimizer holds other parameters, or actor and value share some.

    Source: Schulman et al. 2015, "Trust Region Policy Optimization", appendix C.
    Deviates: the KL is damped, as in the authors' code.

    Example:
        >>> from rlbook import GAE, CartPole, TRPOLoss
        >>> from rlbook.modules import make_actor, make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> loss_fn = TRPOLoss(make_actor(env), make_value(env))
        >>> update = TRPOUpdate(loss_fn, torch.optim.Adam(loss_fn.value.parameters(), lr=1e-3))
        >>> metrics = update(GAE(loss_fn.value)(env.rollout(128, loss_fn.actor)))
        >>> bool(0 < metrics["kl"] <= 0.01)
        True
    """

    def __init__(
        self,
        loss_fn: TRPOLoss,
        value_optimizer: Optimizer | None = None,
        *,
        max_kl: float = 0.01,
        damping: float = 0.1,
        iterations: int = 10,
        shrink: float = 0.8,
        tries: int = 10,
        value_epochs: int = 10,
        value_size: int | None = None,
        max_grad_norm: float | None = None,
        compile: bool = False,
    ):
        for name, number in {"max_kl": max_kl, "iterations": iterations, "tries": tries, "value_epochs": value_epochs}.items():
            if not number > 0:
                raise ConfigError(explain(name, "positive", repr(number), "Pass for example max_kl=0.01, iterations=10"))
        if not damping >= 0:
            raise ConfigError(explain("damping", "not negative", repr(damping), "Pass for example damping=0.1"))
        _check_apart(loss_fn, value_optimizer)
        if not 0 < shrink < 1:
            raise ConfigError(explain("shrink", "in (0, 1)", repr(shrink), "Pass for example shrink=0.8"))
        self.loss_fn, self.max_kl, self.damping, self.iterations = loss_fn, max_kl, damping, iterations
        self.shrink, self.tries = shrink, tries
        self.value_epochs, self.value_size = value_epochs, value_size
        self.flat = FlatParameters(p for p in loss_fn.actor.parameters() if p.requires_grad)
        for module in loss_fn.actor.modules():
            module.register_state_dict_post_hook(save_copies)
        self.value_update = None
        if value_optimizer is not None:
            self.value_update = _ValueUpdate(loss_fn, [value_optimizer], max_grad_norm, compile=compile)

    def __call__(self, batch: TensorDictBase) -> TensorDict:
        """Take one step of the policy on all of ``batch`` ``[*]``, and those of the value.

        Returns:
            The loss terms before the step (``loss_value`` before its last one), the diagnostics, ``kl`` and ``improvement`` of
            the step that was taken, ``step_scale`` (:math:`c`; 0 where none was good) and the policy's ``grad_norm``.

        Raises:
            MissingKeyError, SpecError: see :meth:`Loss.forward`.
            NonFiniteError: the loss or its gradient is not finite; that step is not taken.
        """
        metrics = self.policy_step(batch)
        if self.value_update is not None:
            memory = getattr(self.loss_fn.value, "state_key", None) is not None  # then sequences stay whole
            rows = batch if memory else batch.reshape(-1)
            for _ in range(self.value_epochs):
                for index in torch.randperm(len(rows)).split(self.value_size or len(rows)):
                    out = self.value_update(rows if self.value_size is None else rows[index.to(self.flat.vector.device)])
            metrics["loss_value"] = out["loss_value"]
            metrics[keys.LOSS] = metrics[keys.LOSS] + out["loss_value"]
        return TensorDict(metrics, [])

    def policy_step(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Take the natural step on ``batch`` ``[*]``; return the metrics."""
        self.flat.check_tied()
        loss_fn, vector, parameters = self.loss_fn, self.flat.vector.data, self.flat.parameters
        noise = loss_fn.prepare(batch)
        with torch.no_grad():
            old = loss_fn.actor.dist(batch)
        before = loss_fn.compute(batch, noise, POLICY)
        found = torch.autograd.grad(before[keys.LOSS], parameters, allow_unused=True)
        gradient = -torch.cat([(p * 0 if g is None else g).detach().flatten() for g, p in zip(found, parameters, strict=True)])
        kl = old.kl(loss_fn.actor.dist(batch)).mean()
        step = natural_step(
            graph_hessian_product(kl, parameters, self.damping), gradient, self.max_kl, iterations=self.iterations
        )
        if not bool(torch.isfinite(before[keys.LOSS]) & torch.isfinite(step).all()):
            fix = "Look for huge or missing numbers in the batch, or raise damping"
            raise NonFiniteError(explain("The loss and the natural step", "finite", "numbers that are not", fix))
        start, seen = vector.clone(), {0.0: (torch.zeros(()), torch.zeros(()))}

        @torch.no_grad()
        def evaluate(scale: float) -> tuple[Tensor, Tensor]:
            vector.copy_(start + scale * step)
            after = loss_fn.compute(batch, noise, POLICY)[keys.LOSS]
            seen[scale] = before[keys.LOSS].detach() - after, old.kl(loss_fn.actor.dist(batch)).mean()
            return seen[scale]

        scale = line_search(evaluate, gradient @ step, self.max_kl, shrink=self.shrink, tries=self.tries)
        if scale == 0:
            vector.copy_(start)
        improvement, kl = seen[scale]
        return {name: value.detach() for name, value in before.items()} | {
            "improvement": improvement,
            "kl": kl,
            "step_scale": torch.tensor(scale),
            "grad_norm": torch.linalg.vector_norm(gradient),
        }


class _ValueUpdate(Update):
    """The gradient step of the value alone."""

    def _active_terms(self) -> tuple[str, ...]:
        return VALUE


def _check_apart(loss_fn: TRPOLoss, optimizer: Optimizer | None) -> None:
    """Raise ConfigError unless the optimizer trains the value's parameters and the policy has others."""
    own = set(loss_fn.value.parameters()) if loss_fn.value is not None else set()
    if own & set(loss_fn.actor.parameters()):
        fix = "Give each a network of its own: gradient steps of the value would leave the trust region"
        raise ConfigError(explain("actor and value", "apart", "two that share parameters", fix))
    given = [p for group in optimizer.param_groups for p in group["params"]] if optimizer is not None else []
    if not set(given) <= own:
        fix = "Pass for example Adam(loss_fn.value.parameters())"
        raise ConfigError(explain("value_optimizer", "over parameters of loss_fn.value", "one that holds others", fix))
