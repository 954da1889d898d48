"""Layers with noise of their own: noisy linear layers that explore, dropout that regularises.

Compiled code neither draws random numbers nor asks which mode it is in. So the noise of a layer lies in a buffer, and
``resample()``, called outside, writes new noise into it: a loss does so before each step, :class:`NoisyExploration` before each
rollout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from rlbook.errors import ConfigError, explain
from rlbook.typing import DeviceLike, Key, Leaves, Shape


class NoisyLinear(nn.Module):
    r"""A linear layer whose weights are random, with a learnt spread: exploration that depends on the state and fades by itself.

    ``y = (M + S * e_out e_in^T) x + m + s * e_out``, with ``M, m`` the means, ``S, s`` the spreads (``*`` is elementwise) and
    factorised noise ``e = sgn(n) sqrt(|n|)``, ``n ~ N(0, 1)``, one number per input and per output.

    Args:
        in_features: inputs.
        out_features: outputs.
        sigma: ``sigma_0``: the spreads begin at ``sigma / sqrt(in_features)``.
        bias: learn the means and spreads of a bias.
        device, dtype: of the parameters.

    Attributes:
        noise: ``e_in`` and ``e_out`` one after another, a buffer ``[in_features + out_features]``; all zero, the layer is its
            means.

    Source: Fortunato et al. 2018, "Noisy Networks for Exploration", section 3, factorised Gaussian noise.

    Example:
        >>> layer = NoisyLinear(4, 2)
        >>> first = layer(torch.ones(4))
        >>> layer.resample()
        >>> bool((layer(torch.ones(4)) == first).any())
        False
    """

    noise: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sigma: float = 0.5,
        bias: bool = True,
        device: DeviceLike = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not sigma >= 0:
            raise ConfigError(explain("sigma", "at least 0", repr(sigma), "Pass for example 0.5"))
        self.in_features, self.out_features, self.sigma = in_features, out_features, sigma
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(out_features, in_features, **kind))
        self.weight_sigma = nn.Parameter(torch.empty(out_features, in_features, **kind))
        self.bias = nn.Parameter(torch.empty(out_features, **kind)) if bias else None
        self.bias_sigma = nn.Parameter(torch.empty(out_features, **kind)) if bias else None
        self.register_buffer("noise", torch.empty(in_features + out_features, **kind))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw means from ``U(-1/sqrt(in), 1/sqrt(in))``, set the spreads to ``sigma / sqrt(in)``, draw noise."""
        bound = 1 / math.sqrt(self.in_features)
        for mean, spread in ((self.weight, self.weight_sigma), (self.bias, self.bias_sigma)):
            if mean is not None and spread is not None:
                mean.uniform_(-bound, bound)
                spread.fill_(self.sigma * bound)
        self.resample()

    @torch.no_grad()
    def resample(self) -> None:
        """Draw new noise, in place."""
        n = self.noise.normal_()
        n.copy_(n.sign() * n.abs().sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*, in_features]`` to ``[*, out_features]``, with the same weights in every row."""
        e_in, e_out = self.noise[: self.in_features], self.noise[self.in_features :]
        weight = torch.addcmul(self.weight, self.weight_sigma, torch.outer(e_out, e_in))
        bias = None if self.bias is None or self.bias_sigma is None else torch.addcmul(self.bias, self.bias_sigma, e_out)
        return nn.functional.linear(x, weight, bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, sigma={self.sigma}, bias={self.bias is not None}"


class Dropout(nn.Module):
    """Set each number to 0 with probability ``p``, and multiply the others by ``1 / (1 - p)``: only while training.

    Which ones is a hash of a key and of their place, so that compiled code needs no random numbers and drops what eager code
    drops. ``resample()`` draws a new key; until then inputs of one shape lose the same units. A loss draws one before each of
    its steps; a policy that collects drops nothing (see :func:`keep_all`).

    Args:
        p: probability of 0, in [0, 1).

    Source: Srivastava et al. 2014, "Dropout"; Hiraoka et al. 2022, "Dropout Q-Functions for Doubly Efficient Reinforcement
    Learning", for its use in critics.

    Example:
        >>> Dropout(0.5)(torch.ones(1000)).unique()
        tensor([0., 2.])
    """

    key: Tensor

    def __init__(self, p: float = 0.1):
        super().__init__()
        if not 0 <= p < 1:
            raise ConfigError(explain("p", "in [0, 1)", repr(p), "Pass for example 0.01"))
        self.p = p
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a key."""
        self.resample()

    @torch.no_grad()
    def resample(self) -> None:
        """Draw a new key, in place."""
        self.key.random_(0, 2**32)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` ``[*]`` with some numbers dropped."""
        if not self.training or not self.p:
            return x
        row = torch.arange(x.shape[:-1].numel(), device=x.device)
        column = torch.arange(x.shape[-1], device=x.device)
        bits = _hash_(_hash_(row + self.key).unsqueeze(-1) + 0x9E3779B1 * (column + 1))
        kept = (bits >= int(self.p * 2**32)).reshape(x.shape) * (1 / (1 - self.p))
        return x * torch.where(self.key < 0, 1.0, kept)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _hash_(x: Tensor) -> Tensor:
    """Scramble the lower 32 bits of int64 in place. Source: the constants of C. Wellons' ``lowbias32`` integer hash."""
    x.bitwise_and_(0xFFFFFFFF)
    x.bitwise_xor_(x >> 16).mul_(0x7FEB352D).bitwise_and_(0xFFFFFFFF)
    x.bitwise_xor_(x >> 15).mul_(0x846CA68B).bitwise_and_(0xFFFFFFFF)
    return x.bitwise_xor_(x >> 16)


def resample_noise(module: nn.Module) -> None:
    """Draw new noise for every layer of a module that has any, in place."""
    for layer in module.modules():
        if isinstance(layer, NoisyLinear | Dropout):
            layer.resample()


def keep_all(module: nn.Module) -> None:
    """Let every dropout of a module drop nothing, until its key is drawn again: a policy does so before each rollout."""
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.key.fill_(-1)


def zero_noise(module: nn.Module) -> None:
    """Let every noisy layer of a module be its means, until the noise is drawn again."""
    for layer in module.modules():
        if isinstance(layer, NoisyLinear):
            layer.noise.zero_()


class NoisyExploration(nn.Module):
    """A policy with noisy layers that explores by them: new noise for each rollout, the means for its greedy version.

    The loss draws noise of its own before each of its steps, and writes into the same buffers.

    Args:
        policy: a policy whose network has :class:`NoisyLinear` layers.

    Raises:
        ConfigError: it has none.

    Source: Fortunato et al. 2018, section 3.1. Deviates: the noise of a rollout is drawn once, not anew for each of its steps.

    Example:
        >>> from rlbook import MLP, CartPole, QValueActor
        >>> env = CartPole(num_envs=4)
        >>> policy = NoisyExploration(QValueActor(MLP(2, 4, layer=NoisyLinear), env.action_spec))
        >>> data = env.rollout(20, policy)
    """

    def __init__(self, policy: Any):
        super().__init__()
        self.policy = policy
        if not any(isinstance(layer, NoisyLinear) for layer in self.modules()):
            fix = "Build it with MLP(..., layer=NoisyLinear) or DuelingHead(..., layer=NoisyLinear)"
            raise ConfigError(explain("The policy of NoisyExploration", "one with noisy layers", type(policy).__name__, fix))

    @property
    def spec(self) -> Any:
        """The policy's action spec."""
        return self.policy.spec

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """The entries the policy reads."""
        return tuple(self.policy.in_keys)

    @property
    def out_keys(self) -> tuple[Key, ...]:
        """What the policy writes."""
        return tuple(self.policy.out_keys)

    def draw_noise(self, shape: Sequence[int], device: DeviceLike = None) -> Tensor | None:
        """Draw new noise for the layers; return the policy's own for ``shape`` steps."""
        resample_noise(self)
        return self.policy.draw_noise(shape, device)

    def give_back(self, frames: int) -> None:
        """Pass on that ``frames`` of the steps were not taken; see :meth:`~rlbook.modules.Exploration.give_back`."""
        if hasattr(self.policy, "give_back"):
            self.policy.give_back(frames)

    def act(self, leaves: Mapping[Key, Tensor], noise: Tensor | None = None) -> Leaves:
        """Return what the policy returns."""
        return self.policy.act(leaves, noise)

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """Let the policy write an action into ``td``, with new noise."""
        resample_noise(self)
        return self.policy(td)

    def initial_state(self, shape: Shape, device: DeviceLike = None) -> Leaves:
        """Return what the policy remembers when an episode begins."""
        return self.policy.initial_state(shape, device)

    @property
    def greedy(self) -> Means:
        """The policy of the mean weights."""
        return Means(self.policy)


class Means(nn.Module):
    """The greedy policy of a network's mean weights; it is so from ``draw_noise`` on, which every rollout begins with."""

    def __init__(self, policy: Any):
        super().__init__()
        self.policy, self.spec = policy, policy.spec
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys

    def draw_noise(self, shape: Sequence[int], device: DeviceLike = None) -> Tensor | None:
        """Set the layers' noise to zero."""
        zero_noise(self.policy)
        return self.policy.greedy.draw_noise(shape, device)

    def act(self, leaves: Mapping[Key, Tensor], noise: Tensor | None = None) -> Leaves:
        """Return the most likely action."""
        return self.policy.greedy.act(leaves, noise)

    def initial_state(self, shape: Shape, device: DeviceLike = None) -> Leaves:
        """Return what the policy remembers when an episode begins."""
        return self.policy.initial_state(shape, device)

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """Write the most likely action into ``td``."""
        zero_noise(self.policy)
        return self.policy.greedy(td)
