"""What an update steps: groups of parameters as flat vectors, and the targets that follow them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.optim import Optimizer

from rlbook.errors import ConfigError, check_count, explain
from rlbook.modules.compiled import stored
from rlbook.modules.flat import FlatParameters, in_vector, offsets_of

if TYPE_CHECKING:
    from rlbook.losses.base import Loss
    from rlbook.losses.targets import SoftUpdate

ELEMENTWISE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam)
"""Optimizers that treat every number alike, so that a flat vector is updated exactly as the separate tensors would be."""

TINY = 1e-30
"""Means of gradients and of their squares below this count as zero: Adam's step divides by a root plus 1e-8 or so."""


class Group:
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
            self.lr = Live(self.data.device)
            moments = {key: torch.zeros_like(self.data) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[self.flat.vector] = {"step": torch.zeros((), device=self.data.device), **moments}
        adam = ("vector", "lr", "step", "exp_avg", "exp_avg_sq")
        self.names_of_state: tuple[str, ...] = adam if self.in_graph else ("vector", "gradient")

    @property
    def group(self) -> dict[str, Any]:
        """The optimizer's settings (``load_state_dict`` replaces the dictionary)."""
        return self.optimizer.param_groups[self.index]

    @property
    def settings(self) -> tuple[Any, ...]:
        """What a compiled step holds as constants."""
        group = self.group
        return (group["betas"], group["eps"], group["weight_decay"]) if self.in_graph else ()

    def is_active(self, only: Collection[str] | None) -> bool:
        """Say whether any of the terms that are computed trains this group."""
        return only is None or not self.terms or not self.terms.isdisjoint(only)

    def state(self) -> list[Tensor]:
        """The tensors that a compiled step reads and writes."""
        if not self.in_graph:
            self.flat.vector.grad = self.flat.gradient  # optimizer.zero_grad() cuts it off
            return [self.data, self.flat.gradient]
        state, lr = self.optimizer.state[self.flat.vector], self.lr.set(self.group["lr"])
        return [self.data, lr, state["step"], state["exp_avg"], state["exp_avg_sq"]]

    def step(self) -> None:
        """Take Adam's step eagerly, given the gradient: the kernel alone, ten times of which ``optimizer.step()`` costs."""
        group, state = self.group, self.optimizer.state[self.flat.vector]
        step: Any = getattr(torch, "_fused_adamw_" if group["decoupled_weight_decay"] else "_fused_adam_")
        beta1, beta2 = group["betas"]
        rest = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
        moments = [state["exp_avg"]], [state["exp_avg_sq"]], []
        step([self.data], [self.flat.gradient], *moments, [state["step"].add_(1)], beta1=beta1, beta2=beta2, **rest)
        if self.data.is_cpu and not state["step"].item() % 100:  # well before anything gets from TINY to subnormal
            without_tiny_(state["exp_avg"])
            without_tiny_(state["exp_avg_sq"])

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
        mean = without_tiny_(state["exp_avg"].lerp_(gradient, 1 - beta1))
        square = without_tiny_(state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2))
        rate, root = stored(lr / (1 - beta1**step)), stored((1 - beta2**step).sqrt())
        vector.sub_(rate * mean / (square.sqrt() / root + self.group["eps"]))


def without_tiny_(x: Tensor) -> Tensor:
    """Set numbers to zero that are too small to matter, in place.

    The mean of the gradients of a unit that died halves every 7 steps, until it is subnormal; with such numbers a CPU computes
    some thirty times slower.
    """
    return x.masked_fill_(x.abs() < TINY, 0.0)


class Live:
    """A number that may change at any time, as a tensor that compiled code reads."""

    def __init__(self, device: torch.device):
        self.tensor, self._number = torch.zeros((), device=device), None

    def set(self, number: float | Tensor) -> Tensor:
        """Write the number, if it is another one, and return the tensor."""
        if isinstance(number, Tensor) or number != self._number:
            self.tensor.fill_(number)
            self._number = number
        return self.tensor


class Following:
    """The targets of a loss as one flat vector, and where in the groups' vectors the weights stand that they follow."""

    def __init__(self, target: SoftUpdate, groups: Sequence[Group]):
        self.target = target
        self.targets, sources = target.tensors()
        self.vector = torch.cat([tensor.detach().flatten() for tensor in self.targets])
        for tensor, view in zip(self.targets, self.views(self.vector), strict=True):
            tensor.data = view
        self.offsets = offsets_of(self.targets)
        self.tau = Live(self.vector.device)
        place = {p: (group, o) for group in groups for p, o in zip(group.flat.parameters, group.flat.offsets, strict=True)}
        self.flat = all(tensor in place for tensor in sources)
        is_last = all(place[tensor][0].in_graph for tensor in sources) if self.flat else False  # type: ignore[index]
        self.in_graph = target.tau < 1 and is_last  # they follow what the optimizers have made of the weights
        self.runs: list[tuple[Group, int, int]] = []  # group, first, last + 1: neighbours are joined
        for tensor in sources if self.flat else ():
            group, start = place[tensor]  # type: ignore[index]
            if self.runs and self.runs[-1][0] is group and self.runs[-1][2] == start:
                start = self.runs.pop()[1]
            self.runs.append((group, start, place[tensor][1] + tensor.numel()))  # type: ignore[index]

    def views(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector into tensors shaped like the targets."""
        parts = vector.split([tensor.numel() for tensor in self.targets])
        return [part.view(tensor.shape) for part, tensor in zip(parts, self.targets, strict=True)]

    def source(self, vector_of: Mapping[Group, Tensor]) -> Tensor:
        """Return the weights that the targets follow as one vector, in their order."""
        parts = [vector_of[group][start:stop] for group, start, stop in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def check_tied(self, turn: int) -> None:
        """Raise ConfigError when the targets have moved out of the vector; see :meth:`FlatParameters.check_tied`."""
        if not in_vector(self.vector, self.targets, self.offsets, turn):
            fix = "Move modules first (loss_fn.to(...)), then build the update"
            raise ConfigError(explain("Target networks", "where they were", "modules that were moved", fix))

    def state(self) -> list[Tensor]:
        """The tensors that a compiled step reads and writes."""
        return [self.vector, self.tau.set(self.target.tau)]

    def move(self) -> None:
        """Move the targets eagerly: as one vector where all they follow is in vectors too, or one by one."""
        if self.flat:
            self.vector.lerp_(self.source({group: group.data for group, *_ in self.runs}), self.target.tau)
        else:
            self.target.move()


class Stepped(NamedTuple):
    """A tensor that an update steps, and where the loss holds it."""

    path: str
    holder: dict[str, Any]
    leaf: str
    tensor: Tensor
    trained: bool
    """By an optimizer; else it is a target's, which follows."""


class Held(NamedTuple):
    """What a traced step works on."""

    batch: TensorDict
    noise: dict[str, Tensor]
    placed: dict[str, Tensor]
    """Every tensor of the loss, by its place."""
    only: tuple[str, ...] | None
    leaves: list[list[Tensor]]
    """For each active group the weights by which the loss is differentiated."""
    states: dict[Group, dict[str, Tensor]]
    """What the optimizer of each active group reads and writes."""
    vector_of: dict[Group, Tensor]
    """The weights of each idle group."""
    followed: tuple[Tensor, Tensor] | None
    """The targets and tau."""
    moves: bool
    scale: tuple[Tensor, Tensor] | None
    finite: Tensor


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
    """Raise ConfigError unless ``every`` gives periods to terms whose parameters stand in groups of their own, of one period."""
    for term, period in every.items():
        if term not in loss_fn.trains:
            got, fix = repr(term), "Name a term, for example loss_actor"
            raise ConfigError(explain("every", f"periods of {sorted(loss_fn.trains)}", got, fix))
        check_count(f"every[{term!r}]", period, example=2)
    if not every:
        return
    live = frozenset().union(*trained_by.values())  # a fixed temperature has no term, for example
    if every.keys() >= live:
        fix = "Leave one out; call the update less often to delay them all"
        raise ConfigError(explain("every", f"some of {sorted(live)}", "all of them", fix))
    # what several terms train, such as a shared encoder, keeps the pace of the most frequent one
    pace = {parameter: min(every.get(term, 1) for term in terms) for parameter, terms in trained_by.items()}
    mixed = [{pace[p] for p in group["params"] if p in pace} for optimizer in optimizers for group in optimizer.param_groups]
    kept = [
        any(pace[p] == period for p, terms in trained_by.items() if term in terms)
        for term, period in every.items()
        if term in live
    ]
    if any(len(periods) > 1 for periods in mixed) or not all(kept):
        fix = "Pass for example Adam([{'params': loss_fn.actor.parameters()}, {'params': loss_fn.qvalue.parameters()}])"
        got = "a group that also holds others, or other terms that train them too"
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


def check_apart(optimizers: Sequence[Optimizer], names: Mapping[nn.Parameter, str]) -> None:
    """Raise ConfigError where a parameter stands in two optimizers or groups."""
    seen: set[nn.Parameter] = set()
    for parameter in (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]):
        if parameter in seen:
            fix = "Give shared modules to one of them"
            raise ConfigError(explain("Each parameter", "in one optimizer", f"{names[parameter]!r} in two", fix))
        seen.add(parameter)


def check_optimizer(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> None:
    """Raise ConfigError unless the optimizer treats numbers alike, is fresh, and trains parameters of the loss."""
    kind, parameters = type(optimizer).__name__, [p for group in optimizer.param_groups for p in group["params"]]
    if not all(group["params"] for group in optimizer.param_groups):
        fix = "Leave the empty group out"
        raise ConfigError(explain("Each parameter group of an optimizer", "one with parameters", "an empty one", fix))
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
