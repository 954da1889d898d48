"""Several networks of one shape that answer together."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from rlbook.errors import ConfigError, check_count, explain


class Ensemble(nn.ModuleList):
    """``n`` networks with weights of their own that read the same inputs; see :func:`ensemble`."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the members' outputs, ``[n, *, out]``."""
        return torch.stack([member(*inputs) for member in self])


def ensemble(net: nn.Module | Callable[[], nn.Module], n: int) -> Ensemble:
    """Make ``n`` independently initialised networks.

    The members are separate modules, so that any layer works in them. On a CPU a batched product over stacked weights is hardly
    faster at the usual sizes, and with flat parameters the optimizer sees one vector either way.

    Args:
        net: a network, of which the first member is the network itself and the others are copies, initialised anew layer by
            layer; or a function that makes one (needed where an initialisation is not that of the layers themselves).
        n: how many, at least 1.

    Raises:
        ConfigError: ``n`` is not a positive integer, or a layer with weights of its own cannot be initialised anew.

    Example:
        >>> from rlbook import MLP
        >>> ensemble(MLP(1, 4), 2)(torch.zeros(8, 4)).shape
        torch.Size([2, 8, 1])
    """
    check_count("n", n, example=2)
    if not isinstance(net, nn.Module):
        return Ensemble(net() for _ in range(n))
    return Ensemble([net, *(anew(net) for _ in range(n - 1))])


def anew(net: nn.Module) -> nn.Module:
    """Copy a network and draw new weights: each layer by its ``reset_parameters``, each network by its own, where it has one."""
    copy = deepcopy(net)
    for module in reversed(list(copy.modules())):  # from the inside out: a network has the last word on its layers
        reset: Any = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        if reset is not None:
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            fix = "Pass a function that makes the network: ensemble(lambda: Net(), n)"
            got = f"a {type(module).__name__} without reset_parameters"
            raise ConfigError(explain("A network to copy", "one whose layers can be initialised anew", got, fix))
    return copy
