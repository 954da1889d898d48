"""Observations and rewards of unit variance: measured beforehand, or while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlbook import keys as names
from rlbook.envs.base import Env
from rlbook.envs.loop import align
from rlbook.errors import ConfigError, MissingKeyError, SpecError, explain
from rlbook.specs import Bounded, Composite, Spec, Unbounded
from rlbook.transforms.base import Transform, as_keys, find
from rlbook.typing import DeviceLike, Key, Leaves, Shape


class ObservationNorm(Transform):
    """Shift and scale observations by fixed numbers: ``(x - loc) / scale``, as float32.

    Args:
        loc: subtracted; a number, or a tensor that broadcasts with the observation. None: call :meth:`fit`.
        scale: divided by, positive.
        keys: which entries.

    Raises:
        ConfigError: ``scale`` is not positive, or nothing was given or fitted when the transform meets its environment.
        MissingKeyError: the environment has no such entry.

    Example:
        >>> from rlbook import CartPole, ObservationNorm, TransformedEnv
        >>> norm = ObservationNorm().fit(CartPole(num_envs=8), steps=100)
        >>> env = TransformedEnv(CartPole(num_envs=8), norm)
    """

    def __init__(
        self, loc: Tensor | float | None = None, scale: Tensor | float = 1.0, keys: str | Sequence[Key] = (names.OBSERVATION,)
    ):
        super().__init__()
        self.keys = as_keys(keys)
        self.loc: dict[Key, Tensor] = {}
        self.scale: dict[Key, Tensor] = {}
        if not (torch.as_tensor(scale) > 0).all():
            raise ConfigError(explain("scale", "positive", repr(scale), "Pass for example the standard deviation"))
        if loc is not None:
            for key in self.keys:
                self.loc[key], self.scale[key] = torch.as_tensor(loc).float(), torch.as_tensor(scale).float()

    def fit(self, env: Env, steps: int = 1000) -> ObservationNorm:
        """Measure mean and standard deviation over a random rollout of ``steps`` steps in every environment.

        Elements that never vary are only shifted. Returns the transform itself.
        """
        data = env.rollout(steps, break_when_any_done=False)
        for key in self.keys:
            find(env.observation_spec, key, self)
            x: Tensor = data.get(key).flatten(0, len(env.batch_size)).double()
            std = x.std(0, correction=0)
            self.loc[key], self.scale[key] = x.mean(0).float(), torch.where(std > 1e-6, std, 1.0).float()
        return self

    def transform_observation_spec(self, spec: Composite) -> Composite:
        """The entries become unbounded float32."""
        changed = {}
        for key in self.keys:
            shape = find(spec, key, self).shape
            if key not in self.loc:
                fix = "Pass loc and scale, or call ObservationNorm().fit(env) first"
                raise ConfigError(explain("ObservationNorm", "given numbers before it is used", "none", fix))
            self.loc[key], self.scale[key] = self.loc[key].to(self.device), self.scale[key].to(self.device)
            _check_broadcast(key, (self.loc[key] / self.scale[key]).shape, shape)
            changed[key] = Unbounded(shape, device=self.device)
        return spec.replace(changed)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the numbers of each entry; nothing before there are any."""
        numbers = {"loc": self.loc, "scale": self.scale}
        return {f"{names.pretty(key)}.{name}": x[key].clone() for key in self.loc for name, x in numbers.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved numbers, before or after the transform has met its environment.

        Raises:
            MissingKeyError: those of an entry are missing.
            SpecError: they have another shape.
        """
        found = {key: [_saved(state, key, name) for name in ("loc", "scale")] for key in self.keys}
        for key, numbers in found.items():
            for x, old in zip(numbers, (self.loc.get(key), self.scale.get(key)), strict=True):
                if old is not None:
                    _check_broadcast(key, x.shape, old.shape, exact=True)
        for key, (loc, scale) in found.items():
            device = self.loc[key].device if key in self.loc else loc.device
            self.loc[key], self.scale[key] = loc.to(device, copy=True), scale.to(device, copy=True)

    def on_reset(self, leaves: Leaves, mask: Tensor) -> Leaves:
        """Normalise."""
        return self.on_step(leaves)

    def on_step(self, leaves: Leaves) -> Leaves:
        """Normalise."""
        return {**leaves, **{key: (leaves[key].float() - self.loc[key]) / self.scale[key] for key in self.keys}}


class Moments:
    """Count, mean and variance of a stream of vectors, merged batch by batch.

    Merging a batch of n rows with mean m and sum of squared deviations S into (N, M, Q), with d = m - M:
    ``N' = N + n``, ``M' = M + d n / N'``, ``Q' = Q + S + d**2 N n / N'``.

    Source: Chan, Golub & LeVeque (1983), eq. 2.1.
    """

    def __init__(self, shape: Shape, device: DeviceLike):
        wide = torch.float32 if torch.device(device or "cpu").type == "mps" else torch.float64
        # at least one dimension: torch.compile (2.13) loses what is written into a float64 number without dimensions
        self.count, self.shape = torch.zeros(1, dtype=wide, device=device), torch.Size(shape)
        self.mean = torch.zeros(self.shape or (1,), dtype=wide, device=device)
        self.squares = torch.zeros_like(self.mean)

    def update(self, x: Tensor, mask: Tensor | None, decay: float) -> None:
        """Merge the rows of ``x`` where ``mask`` ``[N]`` is true (None: all); what was there before weighs ``decay`` times."""
        if mask is None and self.eager:
            return self.update_array(x.numpy(), decay)
        x = x.reshape(-1, *self.mean.shape)
        if mask is None:
            mask = torch.ones(len(x), dtype=torch.bool, device=x.device)
        keep = align(mask, x)
        n = mask.sum()
        x = torch.where(keep, x, 0).to(self.mean.dtype)
        mean = x.sum(0) / n.clamp(min=1)
        squares = torch.where(keep, (x - mean).square(), 0).sum(0)
        old = torch.where(n > 0, self.count * decay, self.count)
        total = old + n
        shift = mean - self.mean
        fraction = n / total.clamp(min=1)
        self.squares.mul_(torch.where(n > 0, decay, 1.0)).add_(squares + shift.square() * (old * fraction))
        self.mean.add_(shift * fraction)
        self.count.copy_(total)

    def update_array(self, x: Any, decay: float) -> None:
        """Merge all rows, with NumPy: at every step of an environment, where a call costs more than its arithmetic."""
        count, mean, squares = self.count.numpy(), self.mean.numpy(), self.squares.numpy()
        x = x.reshape(-1, *mean.shape).astype(mean.dtype)
        n, center = len(x), x[0] if len(x) == 1 else x.mean(0)
        old = count.item() * decay
        shift, fraction = center - mean, n / (old + n)
        if decay != 1:
            squares *= decay
        squares += shift * shift * (old * fraction)
        if n > 1:
            squares += np.square(x - center).sum(0)
        shift *= fraction
        mean += shift
        count[0] = old + n

    def scale_array(self, eps: float) -> Any:
        """Return ``sqrt(variance + eps)`` as an array."""
        count, squares = self.count.item(), self.squares.numpy()
        variance = squares / count if count else np.ones_like(squares)
        variance += eps
        return np.sqrt(variance, out=variance).reshape(self.shape)

    def normalize(self, x: Tensor, eps: float, clip: float) -> Tensor:
        """Return ``(x - mean) / sqrt(variance + eps)``, clipped, as float32."""
        if self.eager:
            unit = x.numpy() - self.mean.numpy().reshape(self.shape)
            unit /= self.scale_array(eps)
            return torch.from_numpy(np.asarray(unit, np.float32)).clamp_(-clip, clip)
        mean, scale = self.mean.view(self.shape), (self.variance + eps).sqrt().view(self.shape)
        return ((x - mean) / scale).float().clamp(-clip, clip)

    @property
    def eager(self) -> bool:
        """Whether this code runs as it stands, on a CPU."""
        return self.mean.is_cpu and not torch.compiler.is_compiling()

    @property
    def variance(self) -> Tensor:
        """Population variance; 1 before the first row."""
        return torch.where(self.count > 0, self.squares / self.count.clamp(min=1), 1.0)

    def tensors(self) -> dict[str, Tensor]:
        """Return what to save."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Take over what was saved, of the right shapes."""
        for name, tensor in self.tensors().items():
            tensor.copy_(saved[name])


class VecNorm(Transform):
    """Normalise observations by the running mean and variance of all that were seen: ``(x - mean) / sqrt(variance + eps)``.

    Every observation counts once, when it appears: after a reset only those of the environments that were reset.

    Args:
        keys: which entries.
        decay: how much old observations weigh after each step, in ``(0, 1]``; 1 remembers everything.
        eps: added to the variance.
        clip: the result is clipped to ``[-clip, clip]``.

    Attributes:
        frozen: when true, observations are normalised but not counted.

    Raises:
        ConfigError: ``decay``, ``eps`` or ``clip`` out of range.
        MissingKeyError: the environment has no such entry.

    Example:
        >>> from rlbook import Pendulum, TransformedEnv, VecNorm
        >>> norm = VecNorm()
        >>> env = TransformedEnv(Pendulum(num_envs=8), norm)
        >>> evaluation = TransformedEnv(Pendulum(), norm.frozen_view())        # the same statistics, which it does not change
    """

    def __init__(
        self, keys: str | Sequence[Key] = (names.OBSERVATION,), *, decay: float = 1.0, eps: float = 1e-8, clip: float = 10.0
    ):
        super().__init__()
        if not 0 < decay <= 1:
            raise ConfigError(
                explain("decay", "in (0, 1]", repr(decay), "Pass for example decay=0.9999, or 1 to remember everything")
            )
        if not eps > 0:
            raise ConfigError(explain("eps", "positive", repr(eps), "Pass for example eps=1e-8"))
        if not clip > 0:
            raise ConfigError(explain("clip", "positive", repr(clip), "Pass for example clip=10.0"))
        self.keys, self.decay, self.eps, self.clip = as_keys(keys), decay, eps, clip
        self.frozen = False
        self.moments: dict[Key, Moments] = {}
        self._loaded: dict[str, Tensor] = {}  # what was loaded before the shapes were known; shared with frozen views

    def frozen_view(self) -> VecNorm:
        """Return a frozen transform for another environment that always uses this one's current statistics."""
        view = VecNorm(self.keys, decay=self.decay, eps=self.eps, clip=self.clip)
        view.frozen, view.moments, view._loaded = True, self.moments, self._loaded
        return view

    def transform_observation_spec(self, spec: Composite) -> Composite:
        """The entries become float32 in ``[-clip, clip]``; the statistics get their shapes."""
        changed = {}
        for key in self.keys:
            shape = find(spec, key, self).shape
            if key not in self.moments:
                self.moments[key] = Moments(shape, self.device)
            _check_broadcast(key, self.moments[key].shape, shape)
            changed[key] = Bounded(-self.clip, self.clip, shape, device=self.device)
        if self._loaded:
            state = dict(self._loaded)
            self._loaded.clear()
            self.load_state_dict(state)
        return spec.replace(changed)

    def on_reset(self, leaves: Leaves, mask: Tensor) -> Leaves:
        """Count what was reset, then normalise."""
        return self._apply(leaves, mask)

    def on_step(self, leaves: Leaves) -> Leaves:
        """Count, then normalise."""
        return self._apply(leaves, None)

    def _apply(self, leaves: Leaves, mask: Tensor | None) -> Leaves:
        changed: dict[Key, Any] = {}
        for key in self.keys:
            moments, x = self.moments[key], leaves[key]
            if not self.frozen:
                moments.update(x, None if mask is None else mask.reshape(-1), self.decay)
            changed[key] = moments.normalize(x, self.eps, self.clip)
        return {**leaves, **changed}

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of count, mean and sum of squared deviations of each entry."""
        own = {
            f"{names.pretty(key)}.{name}": x.clone()
            for key, moments in self.moments.items()
            for name, x in moments.tensors().items()
        }
        return own or {name: x.clone() for name, x in self._loaded.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved statistics, before or after the transform has met its environment.

        Raises:
            MissingKeyError: the statistics of an entry are missing.
            SpecError: they have another shape.
        """
        found = {key: {name: _saved(state, key, name) for name in ("count", "mean", "squares")} for key in self.keys}
        for key, moments in self.moments.items():
            for name, tensor in moments.tensors().items():
                _check_broadcast(f"{names.pretty(key)}.{name}", found[key][name].shape, tensor.shape, exact=True)
        for key, moments in self.moments.items():
            moments.load(found[key])
        if not self.moments:  # until the entries and their shapes are known
            self._loaded.clear()
            self._loaded.update(state)


class RewardNorm(Transform):
    r"""Divide rewards by the running deviation of the discounted return, so that values are of the order of 1.

    With :math:`R_t = \gamma R_{t-1} + r_t`, begun anew in each episode: ``reward / sqrt(variance(R) + eps)``, clipped. Unlike
    scaling by a fixed number this changes with time, so put a :class:`RewardSum` before it to keep the environment's own returns.

    Args:
        gamma: discount, in [0, 1].
        eps: added to the variance.
        clip: the result is clipped to ``[-clip, clip]``.

    Attributes:
        frozen: when true, rewards are scaled but not counted.

    Raises:
        ConfigError: an argument is out of range.

    Source: Engstrom et al. 2020, "Implementation Matters in Deep Policy Gradients", section 3 (reward scaling).
    """

    def __init__(self, gamma: float = 0.99, *, eps: float = 1e-8, clip: float = 10.0):
        super().__init__()
        for name, value, good in (("gamma", gamma, 0 <= gamma <= 1), ("eps", eps, eps > 0), ("clip", clip, clip > 0)):
            if not good:
                want = "in [0, 1]" if name == "gamma" else "positive"
                raise ConfigError(explain(name, want, repr(value), "Pass for example gamma=0.99, eps=1e-8, clip=10.0"))
        self.gamma, self.eps, self.clip, self.frozen = gamma, eps, clip, False
        self.moments = Moments((), None)

    def bind(self, env: Env) -> None:
        """Allocate the returns and their statistics."""
        super().bind(env)
        self._return = self.remember("return")
        loaded = self.state_dict()
        self.moments = Moments((), self.device)
        self.moments.load(loaded)

    def transform_reward_spec(self, spec: Spec) -> Spec:
        """The clipped range."""
        return Bounded(-self.clip, self.clip, spec.shape, spec.dtype, spec.device)

    def on_reset(self, leaves: Leaves, mask: Tensor) -> Leaves:
        """Begin the masked returns anew."""
        self._return.masked_fill_(mask, 0)
        return leaves

    def on_step(self, leaves: Leaves) -> Leaves:
        """Count the return, then scale."""
        reward = leaves[names.REWARD]
        if self.moments.eager:
            return {**leaves, names.REWARD: self._scale_eagerly(reward)}
        if not self.frozen:
            total = self._return * self.gamma + reward
            self._return.copy_(total)
            self.moments.update(total, None, 1.0)
        scale = (self.moments.variance + self.eps).rsqrt().view(())
        return {**leaves, names.REWARD: (reward * scale).to(reward.dtype).clamp(-self.clip, self.clip)}

    def _scale_eagerly(self, reward: Tensor) -> Tensor:
        """The same with NumPy, whose calls cost less."""
        given = reward.numpy()
        if not self.frozen:
            total = self._return.numpy()
            total *= self.gamma
            total += given
            self.moments.update_array(total, 1.0)
        unit = np.asarray(given / self.moments.scale_array(self.eps), given.dtype)
        return torch.from_numpy(unit).clamp_(-self.clip, self.clip)

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of count, mean and sum of squared deviations."""
        return {name: x.clone() for name, x in self.moments.tensors().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved statistics, before or after the transform has met its environment.

        Raises:
            MissingKeyError: one is missing.
        """
        self.moments.load({name: _saved(state, (), name) for name in self.moments.tensors()})


def _saved(state: Mapping[str, Tensor], key: Key, name: str) -> Tensor:
    """Return one saved number of an entry, or explain that it is missing."""
    full = f"{names.pretty(key)}.{name}" if key else name
    if full not in state:
        raise MissingKeyError(explain(f"Entry {full!r}", "in the state", f"only {sorted(state)}", "Save it with state_dict()"))
    return state[full]


def _check_broadcast(key: Key, given: torch.Size, shape: torch.Size, exact: bool = False) -> None:
    """Raise SpecError unless numbers of a shape fit, or broadcast to, the shape of an entry."""
    try:
        fits = given == shape if exact else torch.broadcast_shapes(given, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        what, fix = f"The statistics of {names.pretty(key)!r}", "Measure them on the same kind of environment"
        raise SpecError(explain(what, f"of shape {list(shape)}", f"{list(given)}", fix))
