"""Actors and value heads: networks that know which entries they read and what their outputs mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, Self

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call

from rlbook import keys
from rlbook.distributions import Delta, Distribution, for_spec
from rlbook.errors import ConfigError, MissingKeyError, SpecError, explain
from rlbook.modules.ensemble import Ensemble
from rlbook.modules.noisy import keep_all
from rlbook.modules.recurrent import NEXT_DONE, Carrying, Recurrent, act_in, state_before
from rlbook.specs import Bounded, Spec, Unbounded
from rlbook.typing import DeviceLike, Key, Leaves, Shape

HALF = (torch.bfloat16, torch.float16)


class Reader(nn.Module):
    """A module or function of some entries.

    With a :class:`~rlbook.modules.recurrent.Recurrent` network it also reads the state before each step, and where episodes end.
    """

    role: ClassVar[str] = "net"
    """What it is to an agent: the state of a recurrent network is the entry ``("recurrent", role)``."""

    def __init__(self, net: Callable[..., Tensor], in_keys: Sequence[Key]):
        super().__init__()
        self.net = net
        self.in_keys = (in_keys,) if isinstance(in_keys, str) else tuple(in_keys)
        self.mask_keys = tuple(key for key in self.in_keys if keys.as_tuple(key)[0] == keys.ACTION_MASK)
        self.obs_keys = tuple(key for key in self.in_keys if key not in self.mask_keys)
        self.state_key: Key | None = None
        if isinstance(net, Recurrent):
            self.state_key = (keys.RECURRENT, self.role)
            self.in_keys = (*self.in_keys, self.state_key, NEXT_DONE)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The network's parameters by name.

        Raises:
            ConfigError: it is a plain function, whose weights cannot be found.
        """
        if not isinstance(self.net, nn.Module):
            what, fix = f"The network of {type(self).__name__} in this loss", "Make it a class with a forward method"
            raise ConfigError(explain(what, "an nn.Module, whose weights can be found", repr(self.net), fix))
        return dict(self.net.named_parameters())

    @property
    def num_members(self) -> int:
        """How many networks there are; 1 for one that is no ensemble."""
        return len(self.net) if isinstance(self.net, Ensemble) else 1

    def read(self, data: TensorDictBase | Mapping[Key, Tensor], *extra: Tensor, frozen: bool = False) -> Tensor:
        """Apply the network to its entries, and to further inputs after them.

        With ``frozen`` the weights receive no gradient, while the inputs do: an actor's loss looks through a critic so.
        """
        try:
            inputs = [data[key] for key in self.obs_keys]
            more = {} if self.state_key is None else state_before(self.net, self.state_key, data)  # type: ignore[arg-type]
        except KeyError as error:
            missing = [keys.pretty(key) for key in self.obs_keys if data.get(key, None) is None]
            fix = f"Pass in_keys=... to {type(self).__name__}, naming the entries its network reads"
            if not missing and self.state_key is not None:
                missing, fix = [keys.pretty(self.state_key)], "Begin with initial_state(batch_size), go on with what act returns"
            raise MissingKeyError(explain("in_keys", f"among {sorted(map(str, data.keys()))}", f"{missing}", fix)) from error
        try:
            if frozen:
                weights = {name: parameter.detach() for name, parameter in self.weights.items()}
                out: Any = functional_call(self.net, weights, (*inputs, *extra), more)  # type: ignore[arg-type]
            else:
                out = self.net(*inputs, *extra, **more)
        except (RuntimeError, TypeError) as error:
            if torch.compiler.is_compiling() or isinstance(error, torch.OutOfMemoryError):
                raise
            self._explain_failure([*inputs, *extra], error)
        if self.state_key is None:
            if not isinstance(out, Tensor):
                fix = "Use rlbook's GRU or LSTM for a memory; of several outputs return the one that is meant"
                raise SpecError(
                    explain(f"What the network of {type(self).__name__} returns", "a tensor", type(out).__name__, fix)
                )
            return out
        if isinstance(data, Carrying):
            data[keys.NEXT, *self.state_key] = out[1]
        return out[0]

    def _explain_failure(self, inputs: Sequence[Tensor], error: Exception) -> NoReturn:
        """Raise what a network says of its inputs again, with what they are."""
        names = [*map(keys.pretty, self.obs_keys), *["a further input"] * len(inputs)][: len(inputs)]
        got = ", ".join(f"{name} {list(x.shape)} {x.dtype}".replace("torch.", "") for name, x in zip(names, inputs, strict=True))
        what, fix = f"What the network of {type(self).__name__} reads", "Check in_features, in_keys and dtypes"
        if any(isinstance(part, Recurrent) for part in self.modules()) and self.state_key is None:
            fix = "A network with a memory is a GRU or LSTM itself: GRU(outputs, inputs, encoder=..., head=...)"
        raise SpecError(explain(what, "inputs that it can take", f"{got} ({error})", fix)) from error

    def initial_state(self, shape: Shape, device: DeviceLike = None) -> Leaves:
        """Return the state in which episodes begin, zeros ``[*, layers, size]`` by its key; nothing without memory."""
        if self.state_key is None:
            return {}
        return {self.state_key: self.net.initial_state(shape).to(device)}  # type: ignore[union-attr]

    def carrying(self, leaves: TensorDictBase | Mapping[Key, Tensor]) -> TensorDictBase | Mapping[Key, Tensor]:
        """Return entries in which a recurrent network can leave its next state; without one these themselves."""
        return leaves if self.state_key is None else Carrying.of(leaves)

    def carried(self, leaves: TensorDictBase | Mapping[Key, Tensor]) -> Leaves:
        """Return the next state that was left there, by its key; nothing without a recurrent network."""
        return {} if self.state_key is None else {self.state_key: leaves[keys.NEXT, *self.state_key]}

    def after(self, data: TensorDictBase | Mapping[Key, Tensor]) -> Tensor:
        """Return the state of the recurrent network after each step, ``[*, layers, size]``."""
        inputs = [data[key] for key in self.obs_keys]
        return self.net.advance(*inputs, **state_before(self.net, self.state_key, data))[1]  # type: ignore[arg-type,union-attr]


class Actor(Reader):
    """A policy: a network of the observation whose output parameterises a distribution over actions.

    The distribution follows from the action spec: categorical for discrete actions, a tanh-squashed normal for bounded ones (the
    network then returns 2A numbers, mean and log standard deviation), a normal for unbounded ones. A network with exactly A
    outputs for a continuous action is a deterministic policy, squashed by tanh into the bounds if there are any.

    Args:
        net: module or function from the observation entries ``[*, ...]`` to ``[*, P]``.
        spec: the action spec of one environment.
        in_keys: the entries ``net`` reads, and beside them ``action_mask``, which it does not: bool ``[*, P]``, false for choices
            that get no probability (for a dictionary of actions ``("action_mask", name)``).
        dist: a :class:`~rlbook.distributions.Distribution` class, to choose another one.

    Raises:
        SpecError: the network's output does not fit the action spec.

    Example:
        >>> from rlbook import MLP, Actor, CartPole
        >>> env = CartPole(num_envs=8)
        >>> actor = Actor(MLP(out_features=2), env.action_spec)
        >>> env.rollout(100, actor)["action_log_prob"].shape
        torch.Size([8, 100])
    """

    role = "actor"

    def __init__(
        self,
        net: Callable[..., Tensor],
        spec: Spec,
        in_keys: Sequence[Key] = (keys.OBSERVATION,),
        dist: type[Distribution] | None = None,
    ):
        super().__init__(net, in_keys)
        self.spec = spec
        self._dist = dist
        self._chosen: type[Distribution] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let the spec follow the weights to another device."""
        super()._apply(fn, recurse)
        self.spec = self.spec.to(fn(torch.empty(0, device=self.spec.device)).device)
        return self

    @property
    def out_keys(self) -> tuple[Key, ...]:
        """What :meth:`forward` writes."""
        return (keys.ACTION, keys.LOG_PROB)

    def dist(self, data: TensorDictBase | Mapping[Key, Tensor]) -> Distribution:
        """Return the action distribution for a batch of observations ``[*]``."""
        return self.dist_of(self.read(data), self.mask_of(data))

    def dist_of(self, params: Tensor, mask: Any = None) -> Distribution:
        """Return the distribution with these parameters, ``[*, P]`` as from :meth:`read`, and the mask of :meth:`mask_of`."""
        if self._chosen is None:
            self._chosen = self._choose(params)
        if params.dtype in HALF:  # under autocast; probabilities want more digits
            params = params.float()
        return self._chosen.from_params(params, self.spec, mask)

    def mask_of(self, data: TensorDictBase | Mapping[Key, Tensor]) -> Any:
        """Return which choices are allowed: the mask, the masks of a dictionary of actions by their names, or None."""
        if not self.mask_keys:
            return None
        masks = {keys.as_tuple(key)[1:]: data.get(key, None) for key in self.mask_keys}
        if any(mask is None for mask in masks.values()):
            want, got = f"a batch with {', '.join(map(keys.pretty, self.mask_keys))}", f"{sorted(map(str, data.keys()))}"
            raise MissingKeyError(explain("What an Actor reads", want, got, "Leave the mask out of in_keys, or keep the entry"))
        return masks.get((), {name[0] if len(name) == 1 else name: mask for name, mask in masks.items()})

    def _choose(self, params: Tensor) -> type[Distribution]:
        """Pick the distribution that fits the number of outputs, once."""
        chosen = self._dist or for_spec(self.spec)
        want, got = chosen.num_params(self.spec), params.shape[-1]
        if got == want:
            return chosen
        if self._dist is None and isinstance(self.spec, Bounded | Unbounded) and got == self.spec.shape.numel():
            return Delta
        fix = f"Give the network out_features={want}"
        raise SpecError(
            explain("The actor's network", f"one with {want} outputs, the parameters of a {chosen.__name__}", f"{got}", fix)
        )

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """Sample an action and write it and its log-probability into ``td``; see :func:`~rlbook.modules.recurrent.act_in`."""
        return act_in(self, td)

    # ---- the hot loop ------------------------------------------------------------------------------------------------------
    def draw_noise(self, shape: Sequence[int], device: DeviceLike = None) -> Tensor | None:
        """Draw the random numbers behind the actions of ``shape`` steps; None where actions need none."""
        keep_all(self)
        chosen = self._dist or self._chosen or for_spec(self.spec)
        return None if chosen is Delta else chosen.noise_for(self.spec, tuple(shape), device=device)

    def act(self, leaves: Mapping[Key, Tensor], noise: Tensor | None = None) -> Leaves:
        """Turn observations and random numbers into actions and their log-probabilities, without a TensorDict.

        The log-probability is that of the action as it is stored, so that a loss finds the same one: a ratio begins at exactly 1.
        """
        dist, out = self._drawn(leaves, noise)
        return {keys.ACTION: out[keys.ACTION], keys.LOG_PROB: dist.log_prob(out[keys.ACTION]), **out}

    def sample(self, leaves: Mapping[Key, Tensor], noise: Tensor | None = None) -> Leaves:
        """Do the same without the log-probability, for a policy that changes the action."""
        return self._drawn(leaves, noise)[1]

    def _drawn(self, leaves: Mapping[Key, Tensor], noise: Tensor | None) -> tuple[Distribution, Leaves]:
        leaves = self.carrying(leaves)  # type: ignore[assignment]
        dist = self.dist(leaves)
        return dist, {keys.ACTION: dist.sample(noise), **self.carried(leaves)}

    @property
    def greedy(self) -> Greedy:
        """The policy that takes the mode, for evaluation: ``env.rollout(500, actor.greedy)``."""
        return Greedy(self)


class Greedy(nn.Module):
    """A policy that takes the most likely action of an actor."""

    def __init__(self, actor: Actor):
        super().__init__()
        self.actor = actor
        self.in_keys, self.out_keys = actor.in_keys, (keys.ACTION,)

    @property
    def spec(self) -> Spec:
        """The actor's action spec."""
        return self.actor.spec

    def draw_noise(self, shape: Sequence[int], device: DeviceLike = None) -> None:
        """Greedy actions need no random numbers."""
        keep_all(self.actor)

    def act(self, leaves: Mapping[Key, Tensor], noise: None = None) -> Leaves:
        """Return the mode for each observation."""
        leaves = self.actor.carrying(leaves)
        return {keys.ACTION: self.actor.dist(leaves).mode, **self.actor.carried(leaves)}

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """Write the mode into ``td``."""
        return act_in(self, td)

    def initial_state(self, shape: Shape, device: DeviceLike = None) -> Leaves:
        """Return the state in which episodes begin; see :class:`Reader`."""
        return self.actor.initial_state(shape, device)


class ValueHead(Reader):
    """A state-value function: a network with one output.

    Args:
        net: module or function from the observation entries ``[*, ...]`` to ``[*, 1]``.
        in_keys: the entries ``net`` reads.

    Example:
        >>> from rlbook import MLP, ValueHead
        >>> value = ValueHead(MLP(out_features=1))
    """

    role = "value"

    def __init__(self, net: Callable[..., Tensor], in_keys: Sequence[Key] = (keys.OBSERVATION,)):
        if isinstance(net, Ensemble):
            fix = "Make a ValueHead of each, or use QValueHead for several critics of an action"
            raise SpecError(explain("The network of a ValueHead", "a single one", f"an ensemble of {len(net)}", fix))
        super().__init__(net, in_keys)

    @property
    def out_keys(self) -> tuple[Key, ...]:
        """What :meth:`forward` writes."""
        return (keys.VALUE,)

    def value(self, data: TensorDictBase | Mapping[Key, Tensor]) -> Tensor:
        """Return the values ``[*]`` of a batch of observations ``[*]``."""
        out = self.read(data)
        if out.ndim == 0 or out.shape[-1] != 1:
            raise SpecError(
                explain("A value network's output", "of shape [*, 1]", f"{list(out.shape)}", "Give it out_features=1")
            )
        return out.squeeze(-1)

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """Write ``state_value`` into ``td``."""
        td[keys.VALUE] = self.value(td)
        return td


class LogStd(nn.Module):
    """Append a learnt log standard deviation, the same in every state, to a mean ``[*, A]``: ``[*, 2A]``.

    The usual choice of PPO for continuous actions (Andrychowicz et al. 2021).

    Example:
        >>> LogStd(3)(torch.zeros(8, 3)).shape
        torch.Size([8, 6])
    """

    def __init__(self, size: int, initial: float = 0.0):
        super().__init__()
        self.initial = float(initial)
        self.log_std = nn.Parameter(torch.empty(size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin anew."""
        self.log_std.fill_(self.initial)

    def forward(self, mean: Tensor) -> Tensor:
        """Return ``[*, 2A]``."""
        return torch.cat((mean, self.log_std.expand_as(mean)), dim=-1)
