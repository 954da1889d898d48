"""The gradient step, as one call: forward, backward, clipping, optimizer - eager, or compiled into one function."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from rlbook import keys
from rlbook.errors import ConfigError, NonFiniteError, explain
from rlbook.losses.base import Loss, read
from rlbook.losses.targets import SoftUpdate
from rlbook.modules.compiled import Compiled, CompileError, stored, warn_eager
from rlbook.modules.flat import FlatParameters, save_copies
from rlbook.typing import Key

ELEMENTWISE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam)
"""Optimizers that treat every number alike, so that a flat vector is updated exactly as the separate tensors would be."""


def compile_update(
    loss_fn: Loss,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    max_grad_norm: float | None = None,
    target: SoftUpdate | None = None,
    every: Mapping[str, int] | None = None,
    precision: Literal["bf16"] | None = None,
    compile: bool = True,
) -> Update:
    """Build the gradient step of a loss.

    Args:
        loss_fn: the loss. Lazy layers must have seen data.
        optimizer: one or several, over parameters of ``loss_fn``. Each parameter group becomes one flat vector (see
            :class:`~rlbook.modules.flat.FlatParameters`); ``group["lr"]`` may be changed at any time.
        max_grad_norm: clip the norm of each optimizer's gradient to this; ``grad_norm`` is that of all of them, before.
        target: how the loss's target networks follow, a :class:`SoftUpdate` or :class:`HardUpdate`; part of the step.
        every: terms that are computed at every so many calls only, with the parameters they train: ``{"loss_actor": 2}`` is
            TD3's delay. Those parameters need a group of their own.
        precision: ``"bf16"`` multiplies matrices in bfloat16 (weights, optimizer and sums stay in float32). Worth it on
            hardware that has such units; elsewhere it is slower.
        compile: compile the step (10 to 30 s for the first batch of each shape, 2 to 5 with inductor's cache). With False the
            same step runs eagerly.

    Compiled code is the loss as it was at the first batch: hyper-parameters and learning rates stay live, other attributes do
    not. On a GPU the compiled step is captured as a CUDA graph.

    Returns:
        ``update(batch)``: takes a step and returns the loss terms, the diagnostics and ``grad_norm`` as a TensorDict of scalars
        (and of numbers per row, such as ``td_error``).

    Raises:
        ConfigError: an optimizer holds parameters that the loss does not have or that are frozen, or has taken a step already;
            ``every`` names no term, or one whose parameters share a group with others.

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
    return Update(loss_fn, optimizers, max_grad_norm, target, every, precision, compile)


class Update:
    """See :func:`compile_update`."""

    def __init__(
        self,
        loss_fn: Loss,
        optimizers: list[Optimizer],
        max_grad_norm: float | None,
        target: SoftUpdate | None = None,
        every: Mapping[str, int] | None = None,
        precision: Literal["bf16"] | None = None,
        compile: bool = True,
    ):
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ConfigError(explain("max_grad_norm", "positive or None", repr(max_grad_norm), "Pass for example 0.5"))
        if precision not in (None, "bf16"):
            raise ConfigError(explain("precision", 'None or "bf16"', repr(precision), "Leave it out for float32"))
        self.loss_fn, self.optimizers, self.max_grad_norm = loss_fn, optimizers, max_grad_norm
        self.target, self.every, self.precision = target, dict(every or {}), precision
        names = {parameter: name for name, parameter in loss_fn.named_parameters()}
        for optimizer in optimizers:
            check_optimizer(optimizer, names)
        trained_by = terms_by_parameter(loss_fn)
        check_every(self.every, loss_fn, optimizers, trained_by)
        self.groups = [
            _Group(optimizer, i, names, trained_by) for optimizer in optimizers for i in range(len(optimizer.param_groups))
        ]
        self.compiled = compile
        self._step = Compiled(self._whole_step)
        self._names: dict[Hashable, tuple[list[str], list[str]]] = {}
        self._outside = {group.optimizer for group in self.groups if not group.in_graph}
        trained = {parameter: names[parameter] for group in self.groups for parameter in group.flat.parameters}
        self._following = _Following(target, self.groups) if target is not None else None
        followers = {} if self._following is None else {id(t): i for i, t in enumerate(self._following.targets)}
        places = places_of(loss_fn)  # tied parameters have several, those of a shared module one
        self._owners = [(path, trained[holder[leaf]]) for path, holder, leaf in places if holder[leaf] in trained]
        self._followers = [(path, followers[id(holder[leaf])]) for path, holder, leaf in places if id(holder[leaf]) in followers]
        own = {path for path, _ in (*self._owners, *self._followers)}
        self._others = [(path, holder, leaf) for path, holder, leaf in places if path not in own]
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
        self._calls += 1
        only = self._active_terms()
        moves = self.target is not None and self.target.due()
        noise = self.loss_fn.prepare(batch)
        if self.compiled:
            try:
                return self._compiled_call(batch, noise, only, moves)
            except CompileError as error:
                self.compiled = False
                warn_eager(f"The update of {type(self.loss_fn).__name__}", error, stacklevel=3)
        return self._eager_call(batch, noise, only, moves)

    def state_dict(self) -> dict[str, int]:
        """Return what to save beside loss and optimizers: how many calls there were, which ``every`` goes by."""
        return {"calls": self._calls}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a saved count."""
        self._calls = state["calls"]

    def _active_terms(self) -> tuple[str, ...] | None:
        """Return the terms that are computed at this call; None for all."""
        skipped = {term for term, period in self.every.items() if self._calls % period}
        return tuple(term for term in self.loss_fn.trains if term not in skipped) if skipped else None

    def _eager_call(
        self, batch: TensorDictBase, noise: dict[str, Tensor], only: Collection[str] | None, moves: bool
    ) -> TensorDict:
        active = [group for group in self.groups if group.is_active(only)]
        with self._autocast():
            metrics = self.loss_fn.compute(batch, noise, only)
        parameters = [p for group in active for p in group.flat.parameters]
        found = iter(torch.autograd.grad(metrics[keys.LOSS], parameters, allow_unused=True))
        for group in active:
            group.flat.set_grad([grad for _, grad in zip(group.flat.parameters, found, strict=False)])
        metrics = {name: value.detach() for name, value in metrics.items()}
        metrics["grad_norm"] = self._clip(active, [group.flat.gradient for group in active])
        self._finite.logical_and_(torch.isfinite(metrics[keys.LOSS] + metrics["grad_norm"]))
        self._check_finite(metrics)
        for optimizer in dict.fromkeys(group.optimizer for group in active):
            self._optimize(optimizer, active)
        if moves and self.target is not None:
            self.target.move()
        return TensorDict(metrics, [])

    def _optimize(self, optimizer: Optimizer, active: Sequence[_Group]) -> None:
        """Step an optimizer, but not the groups of it that are not active: without a gradient it leaves them alone."""
        idle = [group for group in self.groups if group.optimizer is optimizer and group not in active]
        for group in idle:
            group.flat.vector.grad = None
        optimizer.step()
        for group in idle:
            group.flat.vector.grad = group.flat.gradient

    def _compiled_call(
        self, batch: TensorDictBase, noise: dict[str, Tensor], only: tuple[str, ...] | None, moves: bool
    ) -> TensorDict:
        in_graph = moves and self._following is not None and self._following.in_graph
        others = [holder[leaf] for _, holder, leaf in self._others]
        active = [group for group in self.groups if group.is_active(only)]
        idle = [group.data for group in self.groups if group not in active]
        states = [tensor for group in active for tensor in group.state()]
        follow = [] if self._following is None else self._following.state()
        in_keys = self.loss_fn.reads(batch)
        tensors = [*read(batch, in_keys, self.loss_fn), *noise.values(), *others, *idle, *states, *follow, self._finite]
        static = (batch.batch_size, in_keys, tuple(noise), only, in_graph)
        values, *per_row = self._step(tensors, *static)
        scalars, rows = self._names[static]
        metrics = dict(zip(scalars, values.unbind(), strict=True)) | dict(zip(rows, per_row, strict=True))
        self._check_finite(metrics)
        for optimizer in self._outside:
            self._optimize(optimizer, active)
        if moves and not in_graph and self.target is not None:
            self.target.move()
        return TensorDict._new_unsafe(metrics, torch.Size())

    def _whole_step(
        self,
        tensors: list[Tensor],
        batch_size: torch.Size,
        in_keys: tuple[Key, ...],
        noise_keys: tuple[str, ...],
        only: tuple[str, ...] | None,
        moves: bool,
    ) -> tuple[Tensor, ...]:
        """Forward, backward, clipping, optimizer and targets as one traceable function; returns the metrics, scalars as one."""
        given = iter(tensors)
        batch = TensorDict(keys.nest(dict(zip(in_keys, given, strict=False))), batch_size)
        self.loss_fn.check_batch(batch)
        noise = dict(zip(noise_keys, given, strict=False))
        placed: dict[str, Tensor] = dict(zip([path for path, *_ in self._others], given, strict=False))
        active = [group for group in self.groups if group.is_active(only)]
        vector_of = {group: next(given) for group in self.groups if group not in active}
        values: dict[str, Tensor] = {}
        for group, vector in vector_of.items():
            values.update(zip(group.names, group.flat.views(vector), strict=True))
        states = [dict(zip(group.names_of_state, given, strict=False)) for group in active]
        leaves = [[x.detach().requires_grad_() for x in g.flat.views(s["vector"])] for g, s in zip(active, states, strict=True)]
        for group, own in zip(active, leaves, strict=True):
            values.update(zip(group.names, own, strict=True))
        placed |= {path: values[name] for path, name in self._owners}
        if self._following is not None:
            followed, tau = next(given), next(given)
            views = self._following.views(followed)
            placed |= {path: views[i] for path, i in self._followers}
        finite_so_far = next(given)

        with torch.enable_grad(), self._autocast():
            out = functional_call(self.loss_fn, placed, (batch, noise, only), tie_weights=False)
            every_leaf = [leaf for own in leaves for leaf in own]
            found = torch.autograd.grad(out[keys.LOSS], every_leaf, allow_unused=True)
        gradients = iter([torch.zeros_like(x) if grad is None else grad for x, grad in zip(every_leaf, found, strict=True)])
        vectors = [torch.cat([next(gradients).flatten() for _ in own]) for own in leaves]
        metrics = {name: value.detach() for name, value in out.items()}
        metrics["grad_norm"] = self._clip(active, vectors)
        finite = stored(torch.isfinite(metrics[keys.LOSS] + metrics["grad_norm"]))
        finite_so_far.logical_and_(finite)
        for group, vector, state in zip(active, vectors, states, strict=True):
            before = {name: value.clone() for name, value in state.items()}
            group.apply(vector, state)
            for name, value in state.items():
                value.copy_(torch.where(finite, value, before[name]))
        if moves and self._following is not None:
            vector_of |= {group: state["vector"] for group, state in zip(active, states, strict=True)}
            moved = followed.lerp(self._following.source(vector_of), tau)
            followed.copy_(torch.where(finite, moved, followed))
        scalars = {name: value for name, value in metrics.items() if value.ndim == 0}
        rows = {name: value for name, value in metrics.items() if value.ndim}
        self._names[(batch_size, in_keys, noise_keys, only, moves)] = list(scalars), list(rows)
        return torch.stack([value.float() for value in scalars.values()]), *rows.values()

    def _autocast(self) -> torch.autocast:
        """Return the context in which matrices are multiplied in the chosen precision."""
        return torch.autocast(self._finite.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _check_finite(self, metrics: Mapping[str, Tensor]) -> None:
        if (self._finite.is_cpu or self._calls % 100 == 0) and not self._finite.item():
            self._finite.fill_(True)
            bad = [name for name, value in metrics.items() if not value.isfinite().all()]
            fix = "Look for huge or missing numbers in the batch, lower the learning rate, or clip with max_grad_norm"
            raise NonFiniteError(explain("The loss and its gradient", "finite", f"{bad} that are not", fix))

    def _clip(self, groups: Sequence[_Group], gradients: list[Tensor]) -> Tensor:
        """Clip the groups' gradients in place, together for each optimizer; return the norm of all before."""
        norms = []
        for optimizer in dict.fromkeys(group.optimizer for group in groups):
            own = [gradient for gradient, group in zip(gradients, groups, strict=True) if group.optimizer is optimizer]
            norms.append(clip_(own, self.max_grad_norm))
        return joint(norms)


class _Group:
    """One parameter group, its flat vector, and (for Adam) the optimizer's arithmetic in traceable form."""

    def __init__(
        self,
        optimizer: Optimizer,
        index: int,
        names: Mapping[nn.Parameter, str],
        trained_by: Mapping[nn.Parameter, frozenset[str]],
    ):
        self.optimizer, self.index = optimizer, index
        self.terms = frozenset().union(*(trained_by.get(p, frozenset()) for p in self.group["params"]))
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

    def is_active(self, only: Collection[str] | None) -> bool:
        """Say whether any of the terms that are computed trains this group."""
        return only is None or not self.terms or not self.terms.isdisjoint(only)

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


class _Following:
    """The targets of a loss as one flat vector, and where in the groups' vectors the weights stand that they follow."""

    def __init__(self, target: SoftUpdate, groups: Sequence[_Group]):
        self.target = target
        self.targets, sources = target.tensors()
        self.vector = torch.cat([tensor.detach().flatten() for tensor in self.targets])
        for tensor, view in zip(self.targets, self.views(self.vector), strict=True):
            tensor.data = view
        self.tau = torch.zeros((), device=self.vector.device)
        place = {p: (group, o) for group in groups for p, o in zip(group.flat.parameters, group.flat.offsets, strict=True)}
        self.in_graph = target.tau < 1 and all(tensor in place for tensor in sources)
        self.runs: list[tuple[_Group, int, int]] = []  # group, first, last + 1: neighbours are joined
        for tensor in sources if self.in_graph else ():
            group, start = place[tensor]  # type: ignore[index]
            if self.runs and self.runs[-1][0] is group and self.runs[-1][2] == start:
                start = self.runs.pop()[1]
            self.runs.append((group, start, place[tensor][1] + tensor.numel()))  # type: ignore[index]

    def views(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector into tensors shaped like the targets."""
        parts = vector.split([tensor.numel() for tensor in self.targets])
        return [part.view(tensor.shape) for part, tensor in zip(parts, self.targets, strict=True)]

    def source(self, vector_of: Mapping[_Group, Tensor]) -> Tensor:
        """Return the weights that the targets follow as one vector, in their order."""
        parts = [vector_of[group][start:stop] for group, start, stop in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def state(self) -> list[Tensor]:
        """The tensors that a compiled step reads and writes."""
        if self.targets[0].data_ptr() != self.vector.data_ptr():
            fix = "Move modules first (loss_fn.to(...)), then build the update"
            raise ConfigError(explain("Target networks", "where they were", "modules that were moved", fix))
        return [self.vector, self.tau.fill_(self.target.tau)]


def terms_by_parameter(loss_fn: Loss) -> dict[nn.Parameter, frozenset[str]]:
    """Return, for each parameter, the terms that train it, as the loss's routing table has it."""
    found: dict[nn.Parameter, set[str]] = {}
    for term, names in loss_fn.trains.items():
        for part in (getattr(loss_fn, name, None) for name in names):
            for parameter in (
                [part] if isinstance(part, nn.Parameter) else part.parameters() if isinstance(part, nn.Module) else ()
            ):
                found.setdefault(parameter, set()).add(term)
    return {parameter: frozenset(terms) for parameter, terms in found.items()}


def check_every(
    every: Mapping[str, int],
    loss_fn: Loss,
    optimizers: Sequence[Optimizer],
    trained_by: Mapping[nn.Parameter, frozenset[str]],
) -> None:
    """Raise ConfigError unless ``every`` gives periods to terms whose parameters stand in groups of their own."""
    for term, period in every.items():
        if term not in loss_fn.trains:
            got, fix = repr(term), "Name a term, for example loss_actor"
            raise ConfigError(explain("every", f"periods of {sorted(loss_fn.trains)}", got, fix))
        if isinstance(period, bool) or not isinstance(period, int) or period < 1:
            raise ConfigError(explain(f"every[{term!r}]", "a positive integer", repr(period), "Pass for example 2"))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups if every):
        delayed = {trained_by.get(p, frozenset()) <= every.keys() for p in group["params"]}
        if len(delayed) > 1:
            fix = "Pass for example Adam([{'params': loss_fn.actor.parameters()}, {'params': loss_fn.qvalue.parameters()}])"
            got = "a group that also holds others"
            raise ConfigError(explain(f"The parameters of {sorted(every)}", "a parameter group of their own", got, fix))


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
