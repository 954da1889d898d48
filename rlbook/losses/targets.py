"""Target networks: slow copies that a loss learns towards, and the two ways to let them follow."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rlbook.errors import ConfigError, check_count, explain

PREFIX = "target_"
"""A loss keeps the target of its module ``qvalue`` as ``target_qvalue``."""

M = TypeVar("M", bound=nn.Module)


def target_of(module: M) -> M:
    """Return a copy of a module that no gradient trains. A loss keeps it under the module's name with ``target_`` before it.

    Its weights are buffers: ``loss_fn.parameters()`` are those to train, and no more.

    Raises:
        ConfigError: a head has a plain function for a network: its copy would be the same function, with the same weights.
    """
    for part in module.modules():
        getattr(part, "weights", None)  # a head raises where it cannot find them
    target = deepcopy(module)
    for parameter in target.parameters():
        parameter.requires_grad = False  # requires_grad_() is not for lazy ones
    freeze(target)
    return target


def freeze(target: nn.Module) -> None:
    """Turn the parameters of a target that have a size into buffers of the same names; tied ones stay tied."""
    made: dict[nn.Parameter, Tensor] = {}
    for module in target.modules():
        sized = {name: p for name, p in module._parameters.items() if p is not None and not is_lazy(p)}
        for name, parameter in sized.items():
            del module._parameters[name]
            module.register_buffer(name, made.setdefault(parameter, parameter.detach()))


def target_pairs(loss_fn: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """List the modules of a loss that have a target, and the targets."""
    children = dict(loss_fn.named_children())
    return [(children[name.removeprefix(PREFIX)], target) for name, target in children.items() if name.startswith(PREFIX)]


@torch.no_grad()
def copy_to_targets(loss_fn: nn.Module) -> None:
    """Make every target of a loss equal to the module it follows."""
    for module, target in target_pairs(loss_fn):
        freeze(target)
        for old, new in following(target, module):
            old.copy_(new)


class SoftUpdate:
    r"""Let every target of a loss follow slowly: :math:`\theta' \leftarrow (1 - \tau) \theta' + \tau \theta` (Polyak averaging).

    Call :meth:`step` after each step of the optimizer, or hand it to :func:`~rlbook.losses.compile_update`, which makes it part
    of the step. Running statistics (buffers named ``running_*``) are averaged alike.

    Args:
        loss_fn: a loss with targets.
        tau: in (0, 1]; 1 copies.
        every: average at every so many calls.

    Raises:
        ConfigError: the loss has no target, or an argument is out of range.

    Source: Lillicrap et al. 2016, "Continuous Control with Deep Reinforcement Learning", algorithm 1.

    Example:
        >>> from rlbook import MLP, CartPole, DQNLoss, QValueActor
        >>> loss_fn = DQNLoss(QValueActor(MLP(2, 4), CartPole().action_spec))
        >>> SoftUpdate(loss_fn, tau=0.005).step()
    """

    def __init__(self, loss_fn: nn.Module, tau: float = 0.005, every: int = 1):
        pairs = target_pairs(loss_fn)
        if not pairs:
            got, fix = f"{type(loss_fn).__name__}, which has none", "Leave the target update out"
            raise ConfigError(explain("loss_fn", "a loss with target networks", got, fix))
        if not 0 < tau <= 1:
            raise ConfigError(explain("tau", "in (0, 1]", repr(tau), "Pass for example tau=0.005"))
        check_count("every", every, example=1)
        self.loss_fn, self.tau, self.every = loss_fn, tau, every
        self.calls = 0

    def due(self) -> bool:
        """Count a call; return whether this is one at which the targets move."""
        self.calls += 1
        return self.calls % self.every == 0

    def step(self) -> None:
        """Move the targets, if it is time."""
        if self.due():
            self.move()

    @torch.no_grad()
    def move(self) -> None:
        """Move the targets now."""
        targets, sources = self.tensors()
        if any(is_lazy(target) for target in targets):
            return  # not yet sized; they begin as copies
        if self.tau == 1:
            torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_lerp_(targets, sources, self.tau)  # pyright: ignore[reportPrivateImportUsage]

    def tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the targets' tensors and those they follow."""
        pairs = [pair for module, target in target_pairs(self.loss_fn) for pair in following(target, module)]
        return [old for old, _ in pairs], [new for _, new in pairs]

    def state_dict(self) -> dict[str, int]:
        """Return what to save: how many calls there were."""
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved count."""
        self.calls = state["calls"]


class HardUpdate(SoftUpdate):
    """Copy to every target of a loss at every so many calls, and leave it alone between them.

    Args:
        loss_fn: a loss with targets.
        every: calls between copies.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning", algorithm 1.
    """

    def __init__(self, loss_fn: nn.Module, every: int):
        super().__init__(loss_fn, tau=1.0, every=every)


def following(target: nn.Module, module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Pair the tensors of a target with those they follow: weights and running statistics."""
    own = {**dict(target.named_parameters()), **dict(target.named_buffers())}
    running = {name: x for name, x in module.named_buffers() if name.rpartition(".")[2].startswith("running_")}
    sources = {**dict(module.named_parameters()), **{name: x for name, x in running.items() if x.is_floating_point()}}
    return [(own[name], source) for name, source in sources.items()]
