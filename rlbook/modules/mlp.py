"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from rlbook.errors import ConfigError, explain
from rlbook.modules.noisy import Dropout


class MLP(nn.Sequential):
    """``depth`` hidden layers of ``num_cells`` units, then a linear layer: ``x -> W_L f(... f(W_1 x + b_1)) + b_L``.

    Args:
        out_features: outputs. The last dimension has this size. None for no last layer: the output is the last hidden layer.
        in_features: inputs; found at the first forward pass by default (a lazy layer).
        num_cells: units of each hidden layer, or one number for every layer.
        depth: number of hidden layers (not with a sequence of ``num_cells``).
        activation: module class put after each hidden layer.
        orthogonal: gains of an orthogonal initialisation for the hidden layers and the last one, with zero biases (Engstrom et
            al. 2020 find that it matters to PPO); PyTorch's default initialisation when None.
        norm: makes a normalisation from a size, such as ``nn.LayerNorm`` or :class:`~rlbook.modules.BatchRenorm`; one stands
            between each hidden layer and its activation, none after the last layer.
        norm_after: put it after the activation instead, as CrossQ does.
        norm_input: put one before the first layer as well.
        dropout: probability of dropping a unit of a hidden layer, before its norm, as DroQ does; see
            :class:`~rlbook.modules.Dropout`.
        layer: makes a layer from its sizes, such as :class:`~rlbook.modules.NoisyLinear`. **kwargs: passed to every layer, for
            example ``device``.

    Raises:
        ConfigError: a size is not positive, ``depth`` contradicts ``num_cells``, or a size must be known and is not.

    Example:
        >>> MLP(out_features=2, in_features=4, num_cells=64, depth=2, activation=torch.nn.Tanh)(torch.zeros(8, 4)).shape
        torch.Size([8, 2])
    """

    def __init__(
        self,
        out_features: int | None,
        in_features: int | None = None,
        num_cells: int | Sequence[int] = 64,
        depth: int | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        orthogonal: tuple[float, float] | None = None,
        *,
        norm: Callable[[int], nn.Module] | None = None,
        norm_after: bool = False,
        norm_input: bool = False,
        dropout: float = 0.0,
        layer: Callable[..., nn.Module] = nn.Linear,
        **kwargs: Any,
    ):
        if isinstance(num_cells, int):
            num_cells = [num_cells] * (2 if depth is None else depth)
        if depth is not None and depth != len(num_cells):
            raise ConfigError(explain("depth", f"{len(num_cells)}, the length of num_cells", str(depth), "Give one of the two"))
        sizes = [*num_cells] if out_features is None else [*num_cells, out_features]
        if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise ConfigError(explain("The sizes of an MLP", "positive integers", f"{sizes}", "Mend num_cells or out_features"))
        if in_features is None and (norm_input or layer is not nn.Linear):
            fix = "Pass in_features=..., the size of the last dimension"
            raise ConfigError(explain("in_features", "known for norm_input and for other layers than nn.Linear", "None", fix))
        layers: list[nn.Module] = [norm(in_features)] if norm is not None and norm_input and in_features is not None else []
        for size in num_cells:
            layers.append(nn.LazyLinear(size, **kwargs) if in_features is None else layer(in_features, size, **kwargs))
            dropped = [Dropout(dropout)] if dropout else []
            ends = [activation()] if norm is None else [activation(), norm(size)] if norm_after else [norm(size), activation()]
            layers += [*dropped, *ends]
            in_features = size
        if out_features is not None:
            last = nn.LazyLinear(out_features, **kwargs) if in_features is None else layer(in_features, out_features, **kwargs)
            layers.append(last)
        if orthogonal is not None and layer is not nn.Linear:
            fix = "Leave one of them out: such layers have an initialisation of their own"
            raise ConfigError(explain("orthogonal", "None with another layer than nn.Linear", f"{orthogonal}", fix))
        super().__init__(*layers)
        self._gains = orthogonal
        if orthogonal is not None and not isinstance(self[0], nn.LazyLinear):
            self._initialise()

    def reset_parameters(self) -> None:
        """Give the layers, which have been reset already, the orthogonal initialisation if one was asked for."""
        if self._gains is not None and not isinstance(self[0], nn.LazyLinear):
            self._initialise()

    def _initialise(self) -> None:
        hidden, last = self._gains or (1.0, 1.0)
        linear = [layer for layer in self if isinstance(layer, nn.Linear)]
        for layer in linear:
            nn.init.orthogonal_(layer.weight, last if layer is self[-1] else hidden)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map ``[*, in_features]`` to ``[*, out_features]``; several inputs are concatenated along the last dimension."""
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1)
        first = self[0]
        if isinstance(first, nn.LazyLinear) and self._gains is not None and isinstance(first.weight, UninitializedParameter):
            first(x)  # finds its size, and weights of its own
            self._initialise()
        for layer in self:
            x = layer(x)
        return x
