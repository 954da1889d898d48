"""The gradient step, as one call: forward, backward, clipping, optimizer - eager, or compiled into one function."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from rlbook import keys
from rlbook.errors import ConfigError, NonFiniteError, explain
from rlbook.losses._groups import (
    Following,
    Group,
    Held,
    Stepped,
    check_apart,
    check_every,
    check_optimizer,
    clip_,
    joint,
    places_of,
    terms_by_parameter,
)
from rlbook.losses._peers import Peers
from rlbook.losses._precision import LossScale, Precision, autocast, check_precision
from rlbook.modules.compiled import Compiled, CompileError, stored, warn_eager
from rlbook.modules.flat import save_copies

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from rlbook.losses.base import Loss
    from rlbook.losses.targets import SoftUpdate
    from rlbook.typing import Key

MAX_SIZES = 8
"""How many sizes of batches are compiled, before the update goes on eagerly."""

MAX_SETTINGS = 3
"""How often compiled code is made anew because an optimizer's constants have changed, before the update goes on eagerly."""

GRAD_NORM = "grad_norm"


def compile_update(
    loss_fn: Loss,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    max_grad_norm: float | None = None,
    target: SoftUpdate | None = None,
    every: Mapping[str, int] | None = None,
    precision: Precision | None = None,
    distributed: bool | ProcessGroup = False,
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
        precision: ``"bf16"`` multiplies matrices in bfloat16, ``"fp16"`` (on a GPU) in float16; weights, optimizer and sums stay
            in float32. Worth it on hardware that has such units; elsewhere it is slower. With float16 the loss is scaled, as
            ``torch.amp.GradScaler`` does it: a step whose gradient overflows is left out and the scale halved.
        distributed: train together with other processes, each on its share of a batch: True for all of torch.distributed, or a
            process group of it. Weights and targets become those of the first process, gradients are averaged before they are
            clipped. With shares of one size that is the step of one process on the whole batch, where the loss is a mean over
            rows. Metrics, running statistics and random numbers stay each process's own: seed them differently.
        compile: compile the step (10 to 40 s for the first batch of each shape, 2 to 5 with inductor's cache). With False the
            same step runs eagerly.

    Compiled code is the loss as it was at the first batch: hyper-parameters and learning rates stay live, other attributes do
    not. On a GPU the compiled step is captured as a CUDA graph. Hooks on the step of Adam are not called.

    To train on two processes, start ``python -m torch.distributed.run --nproc-per-node 2 train.py`` with::

        torch.distributed.init_process_group("gloo")  # "nccl" on GPUs
        update = compile_update(loss_fn, optimizer, distributed=True)
        update(batch)  # each process on rows of its own

    Returns:
        ``update(batch)``: takes a step and returns the loss terms, the diagnostics and ``grad_norm`` as a TensorDict of scalars
        (and of numbers per row, such as ``td_error``).

    Raises:
        ConfigError: an optimizer holds parameters that the loss does not have or that are frozen, or has taken a step already;
            ``every`` names no term, or one whose parameters share a group with others; ``target`` is of another loss; a
            precision that the device lacks; ``distributed`` without a process group.

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
    if not optimizers:
        raise ConfigError(explain("optimizer", "one or several", "none", "Pass torch.optim.Adam(loss_fn.parameters())"))
    update = Update(loss_fn, optimizers, max_grad_norm, target, every, precision, compile, distributed)
    stepped = {parameter for group in update.groups for parameter in group.flat.parameters}
    left = [name for name, p in loss_fn.named_parameters() if p.requires_grad and p not in stepped]
    if left:
        parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in left))
        fix = "Pass them to an optimizer, or freeze them with requires_grad_(False)"
        warnings.warn(f"No optimizer steps all of {parts}: {len(left)} parameters stay as they are. {fix}.", stacklevel=2)
    return update


class Update:
    """See :func:`compile_update`."""

    def __init__(
        self,
        loss_fn: Loss,
        optimizers: list[Optimizer],
        max_grad_norm: float | None,
        target: SoftUpdate | None = None,
        every: Mapping[str, int] | None = None,
        precision: Precision | None = None,
        compile: bool = True,
        distributed: bool | ProcessGroup = False,
    ):
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ConfigError(explain("max_grad_norm", "positive or None", repr(max_grad_norm), "Pass for example 0.5"))
        if target is not None and target.loss_fn is not loss_fn:
            got, fix = f"one of another {type(target.loss_fn).__name__}", "Make it anew with the loss: SoftUpdate(loss_fn, tau)"
            raise ConfigError(explain("target", "one of this loss", got, fix))
        self.loss_fn, self.optimizers, self.max_grad_norm = loss_fn, optimizers, max_grad_norm
        self.target, self.every, self.precision = target, dict(every or {}), precision
        self.device = loss_fn.device or torch.device("cpu")
        check_precision(precision, self.device)
        names = {parameter: name for name, parameter in loss_fn.named_parameters()}
        for optimizer in optimizers:
            check_optimizer(optimizer, names)
        check_apart(optimizers, names)
        lazy = [path for path, holder, leaf in places_of(loss_fn) if is_lazy(holder[leaf]) and holder[leaf] not in names]
        if lazy:
            fix = "Call loss_fn(batch) once before: its layers then find their sizes, and its targets begin as copies"
            raise ConfigError(explain("The loss", "initialised", f"a lazy layer that has seen no data, {lazy[0]}", fix))
        trained_by = terms_by_parameter(loss_fn)
        check_every(self.every, loss_fn, optimizers, trained_by)
        self._peers = Peers(None if distributed is True else distributed) if distributed else None
        self.groups = [
            Group(optimizer, i, names, trained_by) for optimizer in optimizers for i in range(len(optimizer.param_groups))
        ]
        self.compiled = compile
        self._step, self._backward_part, self._optimizer_part = (
            Compiled(part) for part in (self._whole_step, self._first_part, self._second_part)
        )
        self._names: dict[Hashable, tuple[list[str], list[str]]] = {}
        self._settings: set[Hashable] = set()
        self._sizes: set[torch.Size] = set()
        self._following = Following(target, self.groups) if target is not None else None
        self._place(names)
        for module in loss_fn.modules():
            module.register_state_dict_post_hook(save_copies)
        self._scale = LossScale(self.device) if precision == "fp16" else None
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
        self._calls = 0
        if self._peers is not None:
            targets = [] if self._following is None else [self._following.vector]
            others = [holder[leaf] for _, holder, leaf in self._others]
            self._peers.broadcast([*(group.data for group in self.groups), *targets, *others])

    def _place(self, names: Mapping[Any, str]) -> None:
        """Find where in the loss the trained weights, the targets that follow in the graph, and all other tensors stand."""
        trained = {parameter: names[parameter] for group in self.groups for parameter in group.flat.parameters}
        followers = {} if self._following is None else {id(t): i for i, t in enumerate(self._following.targets)}
        places = places_of(self.loss_fn)  # tied parameters have several, those of a shared module one
        self._owners = [(path, trained[holder[leaf]]) for path, holder, leaf in places if holder[leaf] in trained]
        self._followers = [(path, followers[id(holder[leaf])]) for path, holder, leaf in places if id(holder[leaf]) in followers]
        own = {path for path, _ in (*self._owners, *self._followers)}
        held = [(path, holder, leaf, holder[leaf], holder[leaf] in trained) for path, holder, leaf in places if path in own]
        self._stepped = [Stepped(*place) for place in held]
        self._others = [(path, holder, leaf) for path, holder, leaf in places if path not in own]

    def __call__(self, batch: TensorDictBase) -> TensorDict:
        """Take one gradient step on ``batch`` ``[*]``; returns the loss terms, the diagnostics and ``grad_norm``.

        Raises:
            MissingKeyError, SpecError: see :meth:`Loss.forward`.
            NonFiniteError: the loss or its gradient is not finite; that step is not taken. Weights and targets stay, while the
                running statistics of a normalisation have seen the batch. (On a GPU, where asking means waiting, this is found
                out at every 100th call, and an eager step is taken. In float16 such steps are left out, and this is raised when
                the scale of the loss has fallen below 1.)
            ConfigError: modules of the loss were moved, replaced or frozen since the update was built.
        """
        self._check_held()
        self._calls += 1
        only = self._active_terms()
        moves = self.target is not None and self.target.due()
        noise = self.loss_fn.prepare(batch)
        active = [group for group in self.groups if group.is_active(only)]
        if self.compiled:
            try:
                return self._compiled_call(batch, noise, only, active, moves)
            except CompileError as error:
                self.compiled = False
                warn_eager(f"The update of {type(self.loss_fn).__name__}", error, stacklevel=3)
        return self._eager_call(batch, noise, only, active, moves)

    def _check_held(self) -> None:
        """Raise ConfigError where the loss holds other tensors than those that are stepped: nothing would be learnt, silently.

        To look at everything takes as long as a small step, so some of it is looked at in turn, one tensor in each call.
        """
        for group in self.groups:
            group.flat.check_tied(self._calls)
        if self._following is not None:
            self._following.check_tied(self._calls)
        turn = self._stepped[self._calls % len(self._stepped)]
        for place in (turn,) if self.compiled else self._stepped:
            if place.trained and not place.tensor.requires_grad:
                fix = "Freeze it before you build the optimizer, and leave it out there"
                raise ConfigError(explain(f"{place.path} of the loss", "trainable", "one with requires_grad=False", fix))
        reached = reduce(lambda part, name: getattr(part, name, None), turn.path.split("."), self.loss_fn)
        gone = [turn] if reached is not turn.tensor else []
        gone = gone or [place for place in self._stepped if place.holder.get(place.leaf) is not place.tensor]
        if gone and gone[0].trained:
            fix = "Replace or load modules first (load_state_dict without assign=True), then build optimizer and update"
            raise ConfigError(explain(f"{gone[0].path} of the loss", "the tensor that the update steps", "another one", fix))
        if gone:
            fix = "Move modules first (loss_fn.to(...)), then build the update"
            raise ConfigError(explain("Target networks", "where they were", "modules that were moved", fix))

    def state_dict(self) -> dict[str, Any]:
        """Return what to save beside loss and optimizers: the number of calls, which ``every`` goes by, and float16's scale."""
        return {"calls": self._calls} | ({} if self._scale is None else self._scale.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self._calls = state["calls"]
        if self._scale is not None and "scale" in state:
            self._scale.load_state_dict(state)

    def _active_terms(self) -> tuple[str, ...] | None:
        """Return the terms that are computed at this call; None for all."""
        skipped = {term for term, period in self.every.items() if self._calls % period}
        return tuple(term for term in self.loss_fn.trains if term not in skipped) if skipped else None

    # ---- eager -------------------------------------------------------------------------------------------------------------
    def _eager_call(
        self, batch: TensorDictBase, noise: dict[str, Tensor], only: Collection[str] | None, active: list[Group], moves: bool
    ) -> TensorDict:
        with torch.enable_grad(), autocast(self.precision, self.device):
            metrics = self.loss_fn.compute(batch, noise, only)
        loss = metrics[keys.LOSS] if self._scale is None else metrics[keys.LOSS].float() * self._scale.scale
        found = iter(torch.autograd.grad(loss, [p for group in active for p in group.flat.parameters], allow_unused=True))
        metrics = {name: value.detach() for name, value in metrics.items()}
        with torch.no_grad():
            for group in active:
                group.flat.set_grad(list(islice(found, len(group.flat.parameters))))
            vectors = [group.flat.gradient for group in active]
            if self._peers is not None:
                self._peers.average([vector.add_(0 * metrics[keys.LOSS]) for vector in vectors])
            for vector in vectors if self._scale is not None else ():
                vector.div_(self._scale.scale)  # type: ignore[union-attr]
            metrics[GRAD_NORM] = self._clip(active, vectors)
            if self._take(metrics):
                for group in active:
                    if group.in_graph:
                        group.step()
                self._step_outside(active)
                if moves and self._following is not None:
                    self._following.move()
        return TensorDict._new_unsafe(metrics, torch.Size())

    def _take(self, metrics: Mapping[str, Tensor]) -> bool:
        """Say whether to take an eager step: a GPU is waited for in float16 only."""
        total = metrics[GRAD_NORM] if self._peers is not None else metrics[keys.LOSS] + metrics[GRAD_NORM]
        if self._scale is None and total.is_cpu:
            if not math.isfinite(total.item()):
                self._complain(metrics)
            return True
        finite = torch.isfinite(total)
        self._finite.logical_and_(finite if self._scale is None else self._scale.adjust(finite, *self._scale.state()))
        if self._scale is not None or self._calls % 100 == 0:
            self._check_finite(metrics)
        return self._scale is None or bool(finite)

    def _step_outside(self, active: Sequence[Group]) -> None:
        """Step the optimizers that are not part of the graph, but not their idle groups: without a gradient these stay."""
        for optimizer in dict.fromkeys(group.optimizer for group in active if not group.in_graph):
            idle = [group for group in self.groups if group.optimizer is optimizer and group not in active]
            for group in idle:
                group.flat.vector.grad = None
            optimizer.step()
            for group in idle:
                group.flat.vector.grad = group.flat.gradient

    # ---- compiled ----------------------------------------------------------------------------------------------------------
    def _compiled_call(
        self,
        batch: TensorDictBase,
        noise: dict[str, Tensor],
        only: tuple[str, ...] | None,
        active: list[Group],
        moves: bool,
    ) -> TensorDict:
        in_graph = moves and self._following is not None and self._following.in_graph
        entries = leaves_of(self.loss_fn.entries(batch))
        given = [*entries.values(), *noise.values()]
        tensors = [*given, *(holder[leaf] for _, holder, leaf in self._others)]
        tensors += [group.data for group in self.groups if group not in active]
        tensors += [tensor for group in active for tensor in group.state()]
        tensors += [] if self._following is None else self._following.state()
        tensors += [] if self._scale is None else self._scale.state()
        tensors.append(self._finite)
        settings = tuple(group.settings for group in self.groups)
        self._settings.add(settings)
        if len(self._settings) > MAX_SETTINGS:
            raise CompileError("the optimizer's betas, eps or weight_decay keep changing")
        self._sizes.add(batch.batch_size)
        if len(self._sizes) > MAX_SIZES:
            raise CompileError(f"batches came in more than {MAX_SIZES} sizes, each of which is compiled anew")
        static = (batch.batch_size, tuple(entries), tuple(noise), only, in_graph, settings)
        if self._peers is None:
            values, *rows = self._step(tensors, *static, volatile=len(given))
            metrics = self._named(static, values, rows)
        else:
            values, *more = self._backward_part(tensors, *static, volatile=len(given))
            vectors, rows = more[: len(active)], more[len(active) :]
            self._peers.average(vectors)
            (norm,) = self._optimizer_part([*vectors, *tensors], *static, volatile=len(vectors) + len(given))
            metrics = self._named(static, values, rows) | {GRAD_NORM: norm}
        if self._finite.is_cpu or self._calls % 100 == 0:
            self._check_finite(metrics)
        if (
            not self._finite.is_cpu
            and any(not group.in_graph for group in active)
            and not math.isfinite(metrics[GRAD_NORM].item())
        ):
            return TensorDict._new_unsafe(metrics, torch.Size())
        self._step_outside(active)
        if moves and not in_graph and self._following is not None:
            self._following.move()
        return TensorDict._new_unsafe(metrics, torch.Size())

    def _named(self, static: Hashable, values: Tensor, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Give the metrics of a compiled call their names."""
        scalar_names, row_names = self._names[static]
        return dict(zip(scalar_names, values.unbind(), strict=True)) | dict(zip(row_names, rows, strict=True))

    def _packed(self, static: Hashable, metrics: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Note the names of the metrics; return the scalars as one tensor, and those per row."""
        scalars = {name: value for name, value in metrics.items() if value.ndim == 0}
        rows = {name: value for name, value in metrics.items() if value.ndim}
        self._names[static] = list(scalars), list(rows)
        return torch.stack([value.float() for value in scalars.values()]), list(rows.values())

    def _whole_step(self, tensors: list[Tensor], *static: Any) -> tuple[Tensor, ...]:
        """Forward, backward, clipping, optimizer and targets as one traceable function; returns the metrics, scalars as one."""
        held = self._unpack(tensors, *static)
        metrics, vectors = self._gradients(held)
        metrics[GRAD_NORM] = self._apply(held, vectors, metrics[keys.LOSS])
        values, rows = self._packed(static, metrics)
        return values, *rows

    def _first_part(self, tensors: list[Tensor], *static: Any) -> tuple[Tensor, ...]:
        """Forward and backward; returns scalar metrics, gradients and metrics per row. A loss that is not finite spoils these."""
        metrics, vectors = self._gradients(self._unpack(tensors, *static))
        values, rows = self._packed(static, metrics)
        return values, *(vector + 0 * metrics[keys.LOSS] for vector in vectors), *rows

    def _second_part(self, tensors: list[Tensor], *static: Any) -> tuple[Tensor]:
        """Clipping, optimizer and targets, given the gradients and then what the first part takes; returns the norm."""
        number = sum(group.is_active(static[3]) for group in self.groups)
        return (self._apply(self._unpack(tensors[number:], *static), tensors[:number]),)

    def _unpack(
        self,
        tensors: list[Tensor],
        batch_size: torch.Size,
        in_keys: tuple[Key, ...],
        noise_keys: tuple[str, ...],
        only: tuple[str, ...] | None,
        moves: bool,
        _settings: Hashable,
    ) -> Held:
        """Give the tensors of a compiled call their meaning; the order is that of :meth:`_compiled_call`."""
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
        states = {group: dict(zip(group.names_of_state, given, strict=False)) for group in active}
        leaves = [[x.detach().requires_grad_() for x in group.flat.views(s["vector"])] for group, s in states.items()]
        for group, own in zip(active, leaves, strict=True):
            values.update(zip(group.names, own, strict=True))
        placed |= {path: values[name] for path, name in self._owners}
        followed = None
        if self._following is not None:
            followed = next(given), next(given)
            views = self._following.views(followed[0])
            placed |= {path: views[i] for path, i in self._followers}
        scale = None if self._scale is None else (next(given), next(given))
        return Held(batch, noise, placed, only, leaves, states, vector_of, followed, moves, scale, next(given))

    def _gradients(self, held: Held) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the metrics and the gradient of each active group as a vector, in float16 scaled."""
        with torch.enable_grad():
            with autocast(self.precision, self.device):
                out = functional_call(self.loss_fn, held.placed, (held.batch, held.noise, held.only), tie_weights=False)
            loss = out[keys.LOSS] if held.scale is None else out[keys.LOSS].float() * held.scale[0]
            every_leaf = [leaf for own in held.leaves for leaf in own]
            found = torch.autograd.grad(loss, every_leaf, allow_unused=True)
        gradients = iter([torch.zeros_like(x) if grad is None else grad for x, grad in zip(every_leaf, found, strict=True)])
        vectors = [torch.cat([next(gradients).flatten() for _ in own]) for own in held.leaves]
        return {name: value.detach() for name, value in out.items()}, vectors

    def _apply(self, held: Held, vectors: list[Tensor], loss: Tensor | None = None) -> Tensor:
        """Clip, step and let the targets follow, in place, unless gradient or loss are not finite; return the norm."""
        if held.scale is not None:
            vectors = [vector / held.scale[0] for vector in vectors]
        active = list(held.states)
        norm = self._clip(active, vectors)
        finite = stored(torch.isfinite(norm if loss is None else loss + norm))
        held.finite.logical_and_(finite if held.scale is None else self._scale.adjust(finite, *held.scale))  # type: ignore[union-attr]
        for (group, state), vector in zip(held.states.items(), vectors, strict=True):
            before = {name: value.clone() for name, value in state.items()}
            group.apply(vector, state)
            for name, value in state.items():
                value.copy_(torch.where(finite, value, before[name]))
        if held.moves and self._following is not None and held.followed is not None:
            target, tau = held.followed
            vector_of = held.vector_of | {group: state["vector"] for group, state in held.states.items()}
            target.copy_(torch.where(finite, target.lerp(self._following.source(vector_of), tau), target))
        return norm

    # ---- both --------------------------------------------------------------------------------------------------------------
    def _check_finite(self, metrics: Mapping[str, Tensor]) -> None:
        if not self._finite.item():
            self._finite.fill_(True)
            self._complain(metrics)

    def _complain(self, metrics: Mapping[str, Tensor]) -> None:
        bad = [name for name, value in metrics.items() if not value.isfinite().all()]
        fix = "Look for huge or missing numbers in the batch, lower the learning rate, or clip with max_grad_norm"
        raise NonFiniteError(explain("The loss and its gradient", "finite", f"{bad} that are not", fix))

    def _clip(self, groups: Sequence[Group], gradients: list[Tensor]) -> Tensor:
        """Clip the groups' gradients in place, together for each optimizer; return the norm of all before."""
        norms = []
        for optimizer in dict.fromkeys(group.optimizer for group in groups):
            own = [gradient for gradient, group in zip(gradients, groups, strict=True) if group.optimizer is optimizer]
            norms.append(clip_(own, self.max_grad_norm))
        return joint(norms)


def leaves_of(entries: dict[Key, Any]) -> dict[Key, Tensor]:
    """Return the tensors of a batch by key; actions may be dictionaries of them."""
    if all(isinstance(value, Tensor) for value in entries.values()):
        return entries
    found: dict[Key, Tensor] = {}
    for key, value in entries.items():
        parts = value.items(True, True) if isinstance(value, TensorDictBase) else [((), value)]
        found.update({(*keys.as_tuple(key), *keys.as_tuple(name)) if name else key: part for name, part in parts})
    return found
