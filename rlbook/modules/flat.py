"""Flat parameters: many small tensors that share one block of memory.

An optimizer loops over tensors, and for small networks the loop costs more than the arithmetic. As views of one flat vector, all
weights are updated by one kernel, clipped by one norm, averaged by one ``lerp_``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from rlbook.errors import ConfigError, explain


class FlatParameters:
    """Move parameters (and their gradients) into one vector, of which they become views.

    The modules keep their parameters, names and ``state_dict``; only the memory behind them changes. Gradients from
    ``backward()`` accumulate into ``flat.vector.grad``, which ``zero_grad`` fills with zeros.

    Args:
        parameters: at least one, all of one dtype and device, none of them lazy.

    Raises:
        ConfigError: the parameters cannot share memory.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.parameters = list(parameters)
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in self.parameters):
            fix = "Run the modules once on real data first, for example env.rollout(2, actor)"
            raise ConfigError(explain("Parameters to flatten", "initialised", "a lazy layer that has seen no data", fix))
        kinds = {(p.dtype, p.device) for p in self.parameters}
        if len(kinds) != 1:
            fix = "Put parameters of different kinds into different parameter groups"
            raise ConfigError(explain("Parameters to flatten", "of one dtype and device", f"{sorted(map(str, kinds))}", fix))
        self.offsets = offsets_of(self.parameters)
        self.vector = nn.Parameter(torch.cat([p.detach().flatten() for p in self.parameters]))
        self.vector.grad = self.gradient = torch.zeros_like(self.vector)
        self.gradients = self.views(self.gradient)
        for p, value, grad in zip(self.parameters, self.views(self.vector.data), self.gradients, strict=True):
            p.data, p.grad = value, grad

    def views(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector of this size into tensors shaped like the parameters."""
        return [vector[o : o + p.numel()].view(p.shape) for o, p in zip(self.offsets, self.parameters, strict=True)]

    def zero_grad(self) -> None:
        """Fill the gradient with zeros and tie to it again what ``zero_grad()`` of an optimizer or a module cut off."""
        self.gradient.zero_()
        self.vector.grad = self.gradient
        for p, grad in zip(self.parameters, self.gradients, strict=True):
            if p.grad is not grad:
                p.grad = grad

    def set_grad(self, gradients: Sequence[Tensor | None]) -> None:
        """Write the gradient, one tensor for each parameter (None: zeros), and tie to it what was cut off."""
        if self.vector.grad is not self.gradient:
            self.zero_grad()
        filled = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(self.parameters, gradients, strict=True)]
        torch.cat([grad.flatten() for grad in filled], out=self.gradient)

    def check_tied(self, turn: int | None = None) -> None:
        """Raise ConfigError when a parameter has moved out of the vector: it would be read, but never updated.

        Args:
            turn: look at the first one and at this one (modulo their number), which costs less; at all when None.
        """
        if not in_vector(self.vector, self.parameters, self.offsets, turn):
            fix = "Move modules first (loss_fn.to(...)), then build the optimizer and the update"
            raise ConfigError(explain("Flat parameters", "where they were", "modules that were moved or flattened again", fix))


def offsets_of(tensors: Sequence[Tensor]) -> list[int]:
    """Return where each tensor begins in a vector that holds them one after the other."""
    return [0, *accumulate(tensor.numel() for tensor in tensors)][: len(tensors)]


def in_vector(vector: Tensor, tensors: Sequence[Tensor], offsets: Sequence[int], turn: int | None = None) -> bool:
    """Say whether tensors are views of a vector, each at its offset; with ``turn`` only the first and that one are looked at."""
    start, size = vector.data_ptr(), vector.element_size()
    which = range(len(tensors)) if turn is None else (0, turn % len(tensors))
    return all(tensors[i].data_ptr() == start + size * offsets[i] or not tensors[i].numel() for i in which)


def save_copies(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A ``register_state_dict_post_hook``: save parameters as copies; as views they would take the whole vector into the file."""
    for name in module._parameters:
        value = state.get(prefix + name)
        if value is not None and not value.requires_grad:  # keep_vars=True asks for the parameters themselves
            state[prefix + name] = value.clone()
