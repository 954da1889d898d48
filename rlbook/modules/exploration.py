"""Exploration: wrappers that turn any policy into one that tries other actions, by schedules.

A wrapper draws all that is random and all that is scheduled for a whole rollout at once, in ``draw_noise``; its ``act`` is a pure
function of observations and those numbers. So it works in the hot loop, inside compiled code, and around another wrapper.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias, TypeVar, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from typing_extensions import override

from rlbook import keys
from rlbook.distributions import for_spec
from rlbook.errors import ConfigError, SpecError, explain
from rlbook.functional import exploration as F
from rlbook.modules.actor import Actor
from rlbook.modules.recurrent import act_in
from rlbook.specs import Bounded, OneHot, Spec, Unbounded
from rlbook.typing import DeviceLike, Key, Leaves, Shape

Number = TypeVar("Number", float, Tensor)
Kind: TypeAlias = Literal["linear", "exponential", "cosine", "constant", "step"]
CURVES = {"linear": F.linear_schedule, "exponential": F.exponential_schedule, "cosine": F.cosine_schedule}
BELOW_ONE = 1 - 2.0**-24
"""The largest float32 below 1."""


@dataclass(frozen=True)
class Schedule:
    """A number that changes with the frames seen, from ``start`` to ``end``, and stays there.

    With ``p = clip((frames - hold) / frames_to_end, 0, 1)``:

    ============== ====================================
    linear         ``start + p (end - start)``
    exponential    ``start (end / start)^p``
    cosine         ``end + (start - end) (1 + cos(pi p)) / 2``
    constant       ``start``
    step           ``start`` while ``p < 1``, then ``end``
    ============== ====================================

    Args:
        start: the first value.
        end: the last value; that of ``start`` when None.
        frames: frames from the first value to the last, at least 0.
        kind: the curve between them.
        hold: frames for which the first value is held before it begins to change.

    Raises:
        ConfigError: a negative number of frames, an unknown kind, or an exponential that is not between two positive numbers.

    Example:
        >>> Schedule(1.0, 0.1, frames=100)(50)
        0.55
    """

    start: float
    end: float | None = None
    frames: int = 0
    kind: Kind = "linear"
    hold: int = 0

    def __post_init__(self):
        if self.kind not in get_args(Kind):
            raise ConfigError(explain("kind", f"one of {', '.join(get_args(Kind))}", repr(self.kind), "Pick one of them"))
        if self.frames < 0 or self.hold < 0:
            raise ConfigError(explain("frames and hold", "at least 0", f"{self.frames} and {self.hold}", "Pass 0 for none"))
        if self.kind == "exponential" and not (self.start > 0 and self.last > 0):
            fix = 'Pass kind="linear", or an end just above 0'
            raise ConfigError(explain("An exponential schedule", "positive at both ends", f"{self.start} to {self.last}", fix))

    @property
    def last(self) -> float:
        """The value at the end."""
        return self.start if self.end is None or self.kind == "constant" else self.end

    def __call__(self, frames: Number) -> Number:
        """Return the value after so many frames: a number for a number, float ``[*]`` for a tensor ``[*]``."""
        past = frames - self.hold
        if self.kind == "step" or not self.frames:
            over = past >= self.frames
            return self.start + (self.last - self.start) * (over.float() if isinstance(over, Tensor) else over)  # type: ignore
        curve = CURVES.get(self.kind, F.linear_schedule)
        return curve(past, self.start, self.last, self.frames)


class Exploration(nn.Module):
    """What all explorers share: the wrapped policy, the count of frames, and the packing of two noises into one tensor.

    The policy's own random numbers and the explorer's lie side by side in the last dimension of the noise. The frames are
    counted as their noise is drawn, and are part of ``state_dict``, so that a schedule goes on where a checkpoint left it. A
    log-probability that the policy returns is dropped: it is not that of the action taken.

    Args:
        policy: anything with ``act`` and ``draw_noise``: an actor, a Q-value actor, another explorer.
        schedule: how much to explore.
        spec: the action spec of one environment; by default the policy's.

    Attributes:
        frames: frames, over all environments, whose noise was drawn so far, and not given back.
    """

    own_greedy = False
    """Whether the explorer replaces the policy's own randomness, and asks it for its greedy action."""

    def __init__(self, policy: Any, schedule: Schedule, spec: Spec | None = None):
        super().__init__()
        self.policy, self.schedule = policy, schedule
        if not (hasattr(policy, "act") and hasattr(policy, "draw_noise")):
            fix = "Wrap it in Actor(net, env.action_spec) or QValueActor(net, env.action_spec)"
            raise ConfigError(explain(f"The policy of {type(self).__name__}", "one that acts", type(policy).__name__, fix))
        found = getattr(policy, "spec", None) if spec is None else spec
        if found is None:
            fix = f"Pass {type(self).__name__}(..., spec=env.action_spec)"
            raise ConfigError(explain("The action spec of the policy", "known", f"a {type(policy).__name__} without one", fix))
        self.spec: Any = found
        self._inner: torch.Size | None = None  # shape of the policy's own noise for one action
        self.frames = 0

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """The entries the policy reads."""
        return tuple(getattr(self.policy, "in_keys", ()))

    @property
    def out_keys(self) -> tuple[Key, ...]:
        """What :meth:`forward` writes."""
        return tuple(key for key in getattr(self.policy, "out_keys", (keys.ACTION,)) if key != keys.LOG_PROB)

    @property
    def greedy(self) -> Any:
        """The policy without exploration, for evaluation."""
        return getattr(self.policy, "greedy", self.policy)

    @property
    def _acting(self) -> Any:
        return self.greedy if self.own_greedy else self.policy

    @property
    def amount(self) -> float:
        """How much it explores at present: what the schedule says of the frames so far."""
        return self.schedule(float(self.frames))

    @abstractmethod
    def _draw(self, amount: float | Tensor, shape: torch.Size, device: DeviceLike) -> Tensor:
        """Draw the explorer's own numbers, ``[T, *batch, ...]``.

        Args:
            amount: what the schedule says of each step, ``[T, 1, ..., 1]`` with as many dimensions as the result, or of all.
            shape: ``(T, *batch)``.
            device: where they live.
        """

    @abstractmethod
    def _explore(self, action: Tensor, leaves: Mapping[Key, Tensor], noise: Tensor) -> Tensor:
        """Return the action to take, given the policy's and the explorer's own numbers of this step, ``[*batch, ...]``."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let the spec follow the weights to another device."""
        super()._apply(fn, recurse)
        self.spec = self.spec.to(fn(torch.empty(0, device=self.spec.device)).device)
        return self

    @torch.no_grad()
    def draw_noise(self, shape: Sequence[int], device: DeviceLike = None) -> Tensor:
        """Draw the random numbers of ``shape = (T, *batch)`` steps, and count their frames."""
        shape = torch.Size(shape)
        own = self._draw(self._amounts(shape, device), shape, device)
        self.frames += shape.numel()
        inner = self._acting.draw_noise(shape, device)
        self._inner = None if inner is None else inner.shape[len(shape) :]
        return own if inner is None else torch.cat((own, inner.reshape(*shape, -1)), dim=-1)

    def give_back(self, frames: int) -> None:
        """Do not count frames whose noise was drawn and not used: the rollout ended before them."""
        self.frames -= frames
        if hasattr(self._acting, "give_back"):
            self._acting.give_back(frames)

    def _amounts(self, shape: torch.Size, device: DeviceLike) -> float | Tensor:
        """Return the scheduled number of each step, ``[T, 1, ..., 1]``, or of all where it does not change."""
        per_step = shape[1:].numel()
        first, last = self.schedule(float(self.frames)), self.schedule(float(self.frames + (shape[0] - 1) * per_step))
        if first == last:
            return first
        at = self.frames + per_step * torch.arange(shape[0], device=device)
        return self.schedule(at).float().reshape(-1, *(1,) * len(shape))

    def initial_state(self, shape: Shape, device: DeviceLike = None) -> Leaves:
        """Return what the policy remembers when an episode begins: the state of a recurrent network, or nothing."""
        begin = getattr(self._acting, "initial_state", None)
        return {} if begin is None else begin(shape, device)

    def act(self, leaves: Mapping[Key, Tensor], noise: Tensor) -> Leaves:
        """Return the action to take, and what else the policy returns."""
        inner = None
        if self._inner is not None:
            batch = noise.shape[:-1]
            own = noise.shape[-1] - self._inner.numel()
            noise, inner = noise[..., :own], noise[..., own:].reshape(batch + self._inner)
        acting = self._acting
        act = acting.sample if getattr(type(acting), "act", None) is Actor.act else acting.act
        out = dict(act(leaves, inner))
        out.pop(keys.LOG_PROB, None)
        out[keys.ACTION] = self._explore(out[keys.ACTION], leaves, noise)
        return out

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """Write an action into ``td``, one step of a batch ``[*batch]``."""
        return act_in(self, td, self.draw_noise((1, *td.batch_size), td.device)[0])

    def get_extra_state(self) -> Tensor:
        """Return what ``state_dict`` holds besides buffers: the frames."""
        return torch.tensor(self.frames)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the frames from a ``state_dict``."""
        self.frames = int(state)

    def extra_repr(self) -> str:
        return f"{self.schedule}"


class UniformMixture(Exploration):
    """With the scheduled probability a uniform action, otherwise the policy's: what epsilon-greedy and a warm-up share.

    Forbidden choices are never taken where the observation has an ``action_mask``. One uniform number ``u`` serves twice: it is
    below epsilon with probability epsilon, and ``u / epsilon`` is then uniform again. So the noise is ``u / epsilon`` (and the
    other numbers of an action that needs several), and the action is random where that is below 1.
    """

    @override
    def _draw(self, amount: float | Tensor, shape: torch.Size, device: DeviceLike) -> Tensor:
        u = torch.rand((*shape, self.spec.num_uniform), device=device)
        if isinstance(amount, Tensor) or amount < 1:
            # never below 1 where epsilon is 0, not even for u = 0
            u[..., :1].div_(amount).nan_to_num_(nan=2.0, posinf=2.0)
        return u

    @override
    def _explore(self, action: Tensor, leaves: Mapping[Key, Tensor], noise: Tensor) -> Tensor:
        explores, u = noise[..., 0] < 1, noise.clamp(max=BELOW_ONE)
        if not isinstance(action, TensorDictBase):
            return _where(explores, _allowed(self.spec, leaves.get(keys.ACTION_MASK, None), u), action)
        parts: Mapping[Key, Any] = self.spec.leaves()
        drawn = {
            key: _allowed(part, leaves.get((keys.ACTION_MASK, *keys.as_tuple(key)), None), own)
            for (key, part), own in zip(parts.items(), u.split([part.num_uniform for part in parts.values()], -1), strict=True)
        }
        random = TensorDict(keys.nest(drawn), action.batch_size)
        return action.apply(lambda own, other: _where(explores, other, own), random)  # type: ignore[return-value]


def _allowed(spec: Any, mask: Tensor | None, u: Tensor) -> Tensor:
    """Draw uniformly, given uniform numbers, among the choices that the mask ``[*, num_params]`` allows, if there is one."""
    if mask is None:
        return spec.from_uniform(u)
    dist: Any = for_spec(spec).from_params(torch.zeros_like(mask, dtype=torch.float32), spec, mask)
    shape = spec.shape[:-1] if isinstance(spec, OneHot) else spec.shape
    return dist.sample(u.reshape(u.shape[:-1] + shape))


def _where(flag: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Return ``x`` where the flag ``[*batch]`` holds, else ``other``, both ``[*batch, ...]``."""
    return torch.where(flag.reshape(flag.shape + (1,) * (x.ndim - flag.ndim)), x, other)


class EpsilonGreedy(UniformMixture):
    """With probability epsilon a uniform action, otherwise the policy's own; epsilon falls over time.

    Args:
        policy: a policy of discrete actions, single, one-hot or several; give it ``actor.greedy`` for an actor that samples.
        eps_start: epsilon at first, in [0, 1].
        eps_end: epsilon at last, in [0, 1].
        annealing_frames: frames, over all environments, in which it gets there.
        kind: the curve; see :class:`Schedule`.
        hold: frames at ``eps_start`` before it begins to fall.
        spec: the action spec; by default the policy's.

    Raises:
        ConfigError: an epsilon is no probability.
        SpecError: the actions are not discrete.

    Source: Sutton and Barto 2018, section 2.2; with the linear schedule Mnih et al. 2015, "Human-level control through deep
    reinforcement learning", methods.

    Example:
        >>> from rlbook import MLP, Actor, CartPole
        >>> env = CartPole(num_envs=8)
        >>> explorer = EpsilonGreedy(Actor(MLP(2), env.action_spec).greedy, 1.0, 0.05, annealing_frames=1000)
        >>> data = env.rollout(50, explorer)
        >>> round(explorer.amount, 2)  # after 50 steps of 8 environments
        0.62
    """

    def __init__(
        self,
        policy: Any,
        eps_start: float = 1.0,
        eps_end: float = 0.05,
        annealing_frames: int = 10_000,
        *,
        kind: Kind = "linear",
        hold: int = 0,
        spec: Spec | None = None,
    ):
        for name, value in (("eps_start", eps_start), ("eps_end", eps_end)):
            if not 0 <= value <= 1:
                raise ConfigError(explain(name, "a probability, 0 to 1", str(value), "Pass for example 0.1"))
        super().__init__(policy, Schedule(eps_start, eps_end, annealing_frames, kind, hold), spec)
        if self.spec.factors() is None:
            fix = "Explore continuous actions with AdditiveGaussian or OrnsteinUhlenbeck"
            raise SpecError(explain("The actions of EpsilonGreedy", "discrete", repr(self.spec), fix))


class RandomWarmup(UniformMixture):
    """Uniform actions for the first frames, then the policy's: data for a replay buffer before anything was learnt.

    Args:
        policy: any policy; wrap the other explorers in this one.
        frames: frames, over all environments, of uniform actions.
        spec: the action spec; by default the policy's.

    Raises:
        ConfigError: ``frames`` is negative.

    Example:
        >>> from rlbook import MLP, Actor, Pendulum
        >>> env = Pendulum(num_envs=4)
        >>> policy = RandomWarmup(AdditiveGaussian(Actor(MLP(1), env.action_spec), sigma=0.1), frames=1000)
        >>> data = env.rollout(50, policy)
    """

    def __init__(self, policy: Any, frames: int, spec: Spec | None = None):
        super().__init__(policy, Schedule(1.0, 0.0, kind="step", hold=frames), spec)


class AdditiveGaussian(Exploration):
    """The greedy action plus normal noise, clipped into the bounds: ``a = clip(mu(s) + sigma h n)``, ``n ~ N(0, 1)``.

    ``h`` is half the width of the range of a bounded action and 1 for an unbounded one, so that the same ``sigma`` means the same
    share of every action's range.

    Args:
        policy: a policy of continuous actions, deterministic or not: the noise replaces its own.
        sigma: standard deviation at first, in units of ``h``, at least 0.
        sigma_end: standard deviation at last; that of ``sigma`` when None.
        annealing_frames: frames, over all environments, in which it gets there.
        kind: the curve; see :class:`Schedule`.
        spec: the action spec; by default the policy's.

    Raises:
        ConfigError: a negative standard deviation.
        SpecError: the actions are not continuous, or have one infinite bound.

    Source: Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods", section 6.1.

    Example:
        >>> from rlbook import MLP, Actor, Pendulum
        >>> env = Pendulum(num_envs=4)
        >>> data = env.rollout(50, AdditiveGaussian(Actor(MLP(1), env.action_spec), sigma=0.1))
    """

    own_greedy = True
    low: Tensor | None
    high: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        policy: Any,
        sigma: float = 0.1,
        sigma_end: float | None = None,
        annealing_frames: int = 0,
        *,
        kind: Kind = "linear",
        spec: Spec | None = None,
    ):
        if not sigma >= 0 or (sigma_end is not None and not sigma_end >= 0):
            raise ConfigError(explain("sigma", "at least 0", f"{sigma} to {sigma_end}", "Pass for example sigma=0.1"))
        if sigma_end is not None and not annealing_frames:
            fix = "Pass annealing_frames=..., the frames from sigma to sigma_end"
            raise ConfigError(explain("annealing_frames", f"positive with sigma_end={sigma_end}", f"{annealing_frames}", fix))
        super().__init__(policy, Schedule(sigma, sigma_end, annealing_frames, kind), spec)
        known = self.spec
        real = isinstance(self.spec, Bounded | Unbounded) and known.dtype.is_floating_point
        bounded = isinstance(self.spec, Bounded) and self.spec.bounded
        if not real or not (bounded or isinstance(self.spec, Unbounded)):
            discrete = not isinstance(self.spec, Bounded | Unbounded)
            fix = "Explore discrete actions with EpsilonGreedy" if discrete else "Give the actions two finite bounds, or none"
            want = "continuous, with finite bounds or none"
            raise SpecError(explain(f"The actions of {type(self).__name__}", want, repr(known), fix))
        # copies, which follow the module to another device; the spec is the policy's
        for name in ("low", "high"):
            self.register_buffer(name, getattr(known, name).clone() if bounded else None, persistent=False)
        self.register_buffer("scale", ((known.high - known.low) / 2).flatten() if bounded else None, persistent=False)

    @override
    def _draw(self, amount: float | Tensor, shape: torch.Size, device: DeviceLike) -> Tensor:
        return self._scaled(torch.randn((*shape, self.spec.shape.numel()), device=device).mul_(amount))

    def _scaled(self, x: Tensor) -> Tensor:
        """Multiply ``x [*, A]`` by half the width of each action's range."""
        return x if self.scale is None else x.mul_(self.scale)

    @override
    def _explore(self, action: Tensor, leaves: Mapping[Key, Tensor], noise: Tensor) -> Tensor:
        action = action + noise.reshape(action.shape).to(action.dtype)
        return action if self.low is None else torch.clamp(action, self.low, self.high)


class OrnsteinUhlenbeck(AdditiveGaussian):
    """The greedy action plus noise that remembers: ``x' = x - theta x dt + sigma sqrt(dt) n``, ``a = clip(mu(s) + h x)``.

    The process pushes in one direction for about ``1 / (theta dt)`` steps: good for motors that average fast noise away. Its
    stationary standard deviation is about ``sigma / sqrt(2 theta)``. ``h`` is as in :class:`AdditiveGaussian`.

    Args:
        policy: as for :class:`AdditiveGaussian`.
        theta: pull towards 0 per unit of time, above 0.
        sigma: diffusion per square root of time, in units of ``h``, at least 0.
        dt: time of one step; ``theta dt`` must be at most 1.
        sigma_end: diffusion at last; that of ``sigma`` when None.
        annealing_frames: frames, over all environments, in which it gets there.
        kind: the curve; see :class:`Schedule`.
        spec: the action spec; by default the policy's.

    Attributes:
        state: the process ``[*batch, A]`` in units of ``h``: a buffer, empty before the first step.

    Source: Uhlenbeck and Ornstein 1930; Lillicrap et al. 2016, "Continuous control with deep reinforcement learning", section 3.
    Deviates: the process goes on when an episode ends, instead of starting anew from 0; the paper has ``dt = 1``.

    Example:
        >>> from rlbook import MLP, Actor, Pendulum
        >>> env = Pendulum(num_envs=4)
        >>> data = env.rollout(50, OrnsteinUhlenbeck(Actor(MLP(1), env.action_spec), theta=0.15, sigma=0.2))
    """

    state: Tensor

    def __init__(
        self,
        policy: Any,
        theta: float = 0.15,
        sigma: float = 0.2,
        dt: float = 1.0,
        sigma_end: float | None = None,
        annealing_frames: int = 0,
        *,
        kind: Kind = "linear",
        spec: Spec | None = None,
    ):
        super().__init__(policy, sigma, sigma_end, annealing_frames, kind=kind, spec=spec)
        if not (dt > 0 and 0 < theta * dt <= 1):
            got, fix = f"theta={theta}, dt={dt}", "Pass for example theta=0.15, dt=1.0"
            raise ConfigError(explain("theta * dt", "above 0 and at most 1, with dt above 0", got, fix))
        self.theta, self.dt = theta, dt
        self.register_buffer("state", torch.zeros(0))

    @override
    def _draw(self, amount: float | Tensor, shape: torch.Size, device: DeviceLike) -> Tensor:
        kick = torch.randn((*shape, self.spec.shape.numel()), device=device).mul_(amount)
        if self.state.shape != kick.shape[1:]:  # the first step, or another environment
            self.state = torch.zeros_like(kick[0])
        x = F.ornstein_uhlenbeck(kick, theta=self.theta * self.dt, sigma=math.sqrt(self.dt), start=self.state)
        self.state.copy_(x[-1])
        return self._scaled(x)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Load a process of any shape: it belongs to the environments of the run that was saved."""
        saved = state_dict.get(f"{prefix}state")
        if saved is not None:
            self.state = torch.zeros_like(saved, device=self.state.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
