"""The gradient step, as one call: forward, backward, clipping, optimizer - eager, or compiled into one function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.optim import Optimizer

from rlbook import keys
from rlbook.errors import ConfigError, NonFiniteError, explain
from rlbook.losses.base import Loss, read
from rlbook.modules.compiled import Compiled, CompileError, stored, warn_eager
from rlbook.modules.flat import FlatParameters, save_copies

ELEMENTWISE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam)
"""Optimizers that treat every number alike, so that a flat vector is updated exactly as the separate tensors would be."""


def compile_update(
    loss_fn: Loss,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    max_grad_norm: float | None = None,
    compile: bool = True,
) -> Update:
    """Build the gradient step of a loss.

    Args:
        loss_fn: the loss. Lazy layers must have seen data.
        optimizer: one or several, over parameters of ``loss_fn``. Each parameter group becomes one flat vector (see
            :class:`~rlbook.modules.flat.FlatParameters`); ``group["lr"]`` may be changed at any time.
        max_grad_norm: clip the norm of each optimizer's gradient to this; ``grad_norm`` is that of all of them, before.
        compile: compile the step (10 to 30 s for the first batch of each shape, 2 to 5 with inductor's cache). With False the
            same step runs eagerly.

    Compiled code is the loss as it was at the first batch: hyper-parameters and learning rates stay live, other attributes do
    not.

    Returns:
        ``update(batch)``: takes a step and returns the loss terms, the diagnostics and ``grad_norm`` as a TensorDict of scalars.

    Raises:
        ConfigError: an optimizer holds parameters that the loss does not have or that are frozen, or has taken a step already.

    Example:
        >>> from rlbook import CartPole, GAE, PPOLoss, minibatches
        >>> from rlbook.modules import make_actor, make_value
        >>> env = CartPole(num_envs=4, seed=0)
        >>> loss_fn = PPOLoss(make_actor(env), make_value(env))
        >>> optimizer = torch.optim.Adam(loss_fn.parameters(), lr=3e-4)
        >>> update = compile_update(loss_fn, optimizer, max_grad_norm=0.5, compile=False)
        >>> data = GAE(loss_fn.value)(env.rollout(64, loss_fn.actor))
        >>> for batch in minibatches(data, 64, epochs=4): metrics = update(batch)
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    return Update(loss_fn, optimizers, max_grad_norm, compile)


class Update:
    """See :func:`compile_update`."""

    def __init__(self, loss_fn: Loss, optimizers: list[Optimizer], max_grad_norm: float | None, compile: bool):
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ConfigError(explain("max_grad_norm", "positive or None", repr(max_grad_norm), "Pass for example 0.5"))
        self.loss_fn, self.optimizers, self.max_grad_norm = loss_fn, optimizers, max_grad_norm
        names = {parameter: name for name, parameter in loss_fn.named_parameters()}
        for optimizer in optimizers:
            check_optimizer(optimizer, names)
        self.groups = [_Group(optimizer, i, names) for optimizer in optimizers for i in range(len(optimizer.param_groups))]
        self.compiled = compile
        self._step = Compiled(self._whole_step)
        self._names: list[str] = []
        self._in_keys = loss_fn.in_keys
        self._outside = {group.optimizer for group in self.groups if not group.in_graph}
        trained = {parameter: names[parameter] for group in self.groups for parameter in group.flat.parameters}
        places = places_of(loss_fn)  # tied parameters have several, those of a shared module one
        self._owners = [(path, trained[holder[leaf]]) for path, holder, leaf in places if holder[leaf] in trained]
        self._others = [(path, holder, leaf) for path, holder, leaf in places if holder[leaf] not in trained]
        for module in loss_fn.modules():
            module.register_state_dict_post_hook(save_copies)
        self._finite = torch.ones((), dtype=torch.bool, device=self.groups[0].data.device)
        self._calls = 0

    def __call__(self, batch: TensorDictBase) -> TensorDict:
        """Take one gradient step on ``batch`` ``[*]``; returns the loss terms, the diagnostics and ``grad_norm``.

        Raises:
            MissingKeyError, SpecError: see :meth:`Loss.forward`.
            NonFiniteError: the loss or its gradient is not finite; that step is not taken. (On a GPU, where asking means waiting,
                this is found out at every 100th call, and an eager step is taken.)
            ConfigError: modules of the loss were moved.
        """
        for group in self.groups:
            group.flat.check_tied()
        if self.compiled:
            try:
                return self._compiled_call(batch)
            except CompileError as error:
                self.compiled = False
                warn_eager(f"The update of {type(self.loss_fn).__name__}", error, stacklevel=3)
        return self._eager_call(batch)

    def _eager_call(self, batch: TensorDictBase) -> TensorDict:
        for group in self.groups:
            group.flat.zero_grad()
        metrics = self.loss_fn.compute(batch)
        metrics[keys.LOSS].backward()
        metrics = {name: value.detach() for name, value in metrics.items()}
        metrics["grad_norm"] = self._clip([group.flat.gradient for group in self.groups])
        self._finite.logical_and_(torch.isfinite(metrics[keys.LOSS] + metrics["grad_norm"]))
        self._check_finite(metrics)
        for optimizer in self.optimizers:
            optimizer.step()
        return TensorDict(metrics, [])

    def _compiled_call(self, batch: TensorDictBase) -> TensorDict:
        others = [holder[leaf] for _, holder, leaf in self._others]
        states = [tensor for group in self.groups for tensor in group.state()]
        (values,) = self._step([*read(batch, self._in_keys, self.loss_fn), *others, *states, self._finite], batch.batch_size)
        metrics = dict(zip(self._names, values.unbind(), strict=True))
        self._check_finite(metrics)
        for optimizer in self._outside:
            optimizer.step()
        return TensorDict._new_unsafe(metrics, torch.Size())

    def _whole_step(self, tensors: list[Tensor], batch_size: torch.Size) -> tuple[Tensor]:
        """Forward, backward, clipping and optimizer as one traceable function; returns the metrics as one vector."""
        given = iter(tensors)
        batch = TensorDict(keys.nest(dict(zip(self._in_keys, given, strict=False))), batch_size)
        self.loss_fn.check_batch(batch)
        others = dict(zip([path for path, *_ in self._others], given, strict=False))
        states = [dict(zip(group.names_of_state, given, strict=False)) for group in self.groups]
        parameters: dict[str, Tensor] = {}
        for group, state in zip(self.groups, states, strict=True):
            parameters.update(zip(group.names, group.flat.views(state["vector"]), strict=True))

        def objective(parameters: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            placed = {path: parameters[name] for path, name in self._owners}
            out = functional_call(self.loss_fn, placed | others, (batch,), tie_weights=False)
            return out[keys.LOSS], dict(out.items())

        gradients, (_, metrics) = grad_and_value(objective, has_aux=True)(parameters)
        vectors = [torch.cat([gradients[name].flatten() for name in group.names]) for group in self.groups]
        metrics["grad_norm"] = self._clip(vectors)
        finite = stored(torch.isfinite(metrics[keys.LOSS] + metrics["grad_norm"]))
        next(given).logical_and_(finite)
        for group, vector, state in zip(self.groups, vectors, states, strict=True):
            before = {name: value.clone() for name, value in state.items()}
            group.apply(vector, state)
            for name, value in state.items():
                value.copy_(torch.where(finite, value, before[name]))
        self._names = list(metrics)
        return (torch.stack([value.float() for value in metrics.values()]),)

    def _check_finite(self, metrics: Mapping[str, Tensor]) -> None:
        self._calls += 1
        if (self._finite.is_cpu or self._calls % 100 == 0) and not self._finite.item():
            self._finite.fill_(True)
            bad = [name for name, value in metrics.items() if not value.isfinite()]
            fix = "Look for huge or missing numbers in the batch, lower the learning rate, or clip with max_grad_norm"
            raise NonFiniteError(explain("The loss and its gradient", "finite", f"{bad} that are not", fix))

    def _clip(self, gradients: list[Tensor]) -> Tensor:
        """Clip the groups' gradients in place, together for each optimizer; return the norm of all before."""
        norms = []
        for optimizer in self.optimizers:
            own = [gradient for gradient, group in zip(gradients, self.groups, strict=True) if group.optimizer is optimizer]
            norms.append(clip_(own, self.max_grad_norm))
        return joint(norms)


class _Group:
    """One parameter group, its flat vector, and (for Adam) the optimizer's arithmetic in traceable form."""

    def __init__(self, optimizer: Optimizer, index: int, names: Mapping[nn.Parameter, str]):
        self.optimizer, self.index = optimizer, index
        self.names = [names[p] for p in self.group["params"]]
        self.flat = FlatParameters(self.group["params"])
        self.data = self.flat.vector.detach()
        self.group["params"] = [self.flat.vector]
        variants = ("amsgrad", "maximize", "differentiable")
        plain = not any(group.get(variant) for group in optimizer.param_groups for variant in variants)
        self.in_graph = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and plain
        if self.in_graph:
            optimizer._opt_called = True  # type: ignore[attr-defined]  schedulers look for step(), which a compiled step is not
            self.group.update(fused=True, foreach=None)  # for eager steps: one kernel
            self.lr = torch.zeros((), device=self.data.device)
            moments = {key: torch.zeros_like(self.data) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[self.flat.vector] = {"step": torch.zeros((), device=self.data.device), **moments}
        adam = ("vector", "lr", "step", "exp_avg", "exp_avg_sq")
        self.names_of_state: tuple[str, ...] = adam if self.in_graph else ("vector", "gradient")

    @property
    def group(self) -> dict[str, Any]:
        """The optimizer's settings (``load_state_dict`` replaces the dictionary)."""
        return self.optimizer.param_groups[self.index]

    def state(self) -> list[Tensor]:
        """The tensors that a compiled step reads and writes."""
        if not self.in_graph:
            self.flat.vector.grad = self.flat.gradient  # optimizer.zero_grad() cuts it off
            return [self.data, self.flat.gradient]
        self.lr.fill_(self.group["lr"])
        state = self.optimizer.state[self.flat.vector]
        return [self.data, self.lr, state["step"], state["exp_avg"], state["exp_avg_sq"]]

    def apply(self, gradient: Tensor, state: dict[str, Tensor]) -> None:
        """Take the optimizer's step in place. Source: Kingma and Ba 2015, alg. 1; Loshchilov and Hutter 2019, alg. 2."""
        if not self.in_graph:
            state["gradient"].copy_(gradient)
            return
        vector, lr, decay = state["vector"], state["lr"], self.group["weight_decay"]
        if decay and self.group["decoupled_weight_decay"]:
            vector.mul_(1 - lr * decay)
        elif decay:
            gradient = gradient + decay * vector
        beta1, beta2 = self.group["betas"]
        step = state["step"].add_(1)
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        rate, root = stored(lr / (1 - beta1**step)), stored((1 - beta2**step).sqrt())
        vector.sub_(rate * mean / (square.sqrt() / root + self.group["eps"]))


def places_of(root: nn.Module) -> list[tuple[str, dict[str, Any], str]]:
    """List the parameters and buffers of a module by place: full name, dictionary that holds the tensor, its name in there."""
    return [
        (f"{path}.{leaf}".lstrip("."), holder, leaf)
        for path, module in root.named_modules()
        for holder in (module._parameters, module._buffers)
        for leaf, tensor in holder.items()
        if tensor is not None
    ]


def clip_(gradients: list[Tensor], max_norm: float | None) -> Tensor:
    """Scale gradients in place so that their joint norm is at most ``max_norm``; return the norm before."""
    norm = joint([torch.linalg.vector_norm(gradient) for gradient in gradients])
    if max_norm is not None:
        scale = stored((max_norm / (norm + 1e-6)).clamp(max=1.0))
        for gradient in gradients:
            gradient.mul_(scale)
    return norm


def joint(norms: list[Tensor]) -> Tensor:
    """Return the norm of several vectors taken as one."""
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def check_optimizer(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> None:
    """Raise ConfigError unless the optimizer treats numbers alike, is fresh, and trains parameters of the loss."""
    kind, parameters = type(optimizer).__name__, [p for group in optimizer.param_groups for p in group["params"]]
    if type(optimizer) not in ELEMENTWISE:
        supported = ", ".join(kind.__name__ for kind in ELEMENTWISE)
        fix = "Write the loop by hand for this one: loss, backward, step"
        raise ConfigError(explain("optimizer", f"one of {supported}", kind, fix))
    if optimizer.state:
        fix = "Make a new optimizer for each update (a saved state is loaded after that, with load_state_dict)"
        raise ConfigError(explain("optimizer", "fresh", f"{kind} that has taken steps or belongs to another update", fix))
    if any(p not in names for p in parameters):
        fix = "Build it from loss_fn.parameters(), or from those of its modules"
        raise ConfigError(explain("The optimizer's parameters", "parameters of the loss", "others", fix))
    frozen = [names[p] for p in parameters if not p.requires_grad]
    if frozen:
        fix = "Leave them out: [p for p in loss_fn.parameters() if p.requires_grad]"
        raise ConfigError(explain("The optimizer's parameters", "trainable", f"{frozen} with requires_grad=False", fix))
