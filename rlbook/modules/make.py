"""Actors and value heads that size themselves from an environment's specs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlbook import keys
from rlbook.distributions import for_spec
from rlbook.errors import ConfigError, SpecError, explain
from rlbook.modules.actor import Actor, LogStd, ValueHead
from rlbook.modules.convnet import ConvNet
from rlbook.modules.distributional import (
    CategoricalQValueActor,
    ImplicitQuantileNet,
    ImplicitQValueActor,
    QuantileQValueActor,
)
from rlbook.modules.dueling import DuelingHead
from rlbook.modules.ensemble import ensemble
from rlbook.modules.mlp import MLP
from rlbook.modules.noisy import NoisyLinear
from rlbook.modules.qvalue import QuantileQValueHead, QValueActor, QValueHead
from rlbook.modules.recurrent import Recurrent
from rlbook.specs import Bounded, Categorical, MultiCategorical, OneHot, Spec, Unbounded
from rlbook.typing import Key

HIDDEN_GAIN, ACTOR_GAIN, VALUE_GAIN = 2**0.5, 0.01, 1.0
"""Gains of the orthogonal initialisation that PPO implementations share (Engstrom et al. 2020; Huang et al. 2022)."""


class Features(nn.Module):
    """Make one float vector of observation entries: choices become one-hot, images go through convolutions, all is flattened.

    An image is an entry with three dimensions, of at least 8 pixels each way, channels first or last: two equal dimensions are
    height and width, otherwise the shorter of first and last is the channels. Boards and pictures of fewer than 36 pixels get the
    convolution of MinAtar, larger ones those of the Nature DQN. Bytes are scaled to [0, 1].

    Args:
        specs: the spec of each entry, in the order of the inputs.
        gain: of an orthogonal initialisation of the convolutions; PyTorch's default when None.
    """

    def __init__(self, specs: Sequence[Spec], gain: float | None = None):
        super().__init__()
        self.specs = list(specs)
        self.images = nn.ModuleDict({str(i): _convnet(spec, gain) for i, spec in enumerate(self.specs) if is_image(spec)})
        self.counts = [spec.nvec.flatten().tolist() if isinstance(spec, MultiCategorical) else [] for spec in self.specs]
        sizes = [_choices_of(spec) or spec.shape.numel() for spec in self.specs]
        for i, net in self.images.items():
            sizes[int(i)] = net.out_features  # type: ignore[assignment]
        self.size = sum(sizes)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map entries ``[*, ...]`` to ``[*, size]``."""
        parts = []
        for i, (spec, x) in enumerate(zip(self.specs, inputs, strict=True)):
            batch = x.shape[: x.ndim - len(spec.shape)]
            if str(i) in self.images:
                parts.append(self.images[str(i)](x))
                continue
            if isinstance(spec, Categorical):
                x = nn.functional.one_hot(x.long(), spec.n)
            elif isinstance(spec, MultiCategorical):
                choices = x.long().reshape(*batch, -1).unbind(-1)
                x = torch.cat([nn.functional.one_hot(one, n) for one, n in zip(choices, self.counts[i], strict=True)], -1)
            elif spec.dtype == torch.uint8:
                x = x / 255
            parts.append(x.float().reshape(*batch, -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _choices_of(spec: Spec) -> int:
    """Return how many numbers choices become, one-hot; 0 for an entry of other numbers."""
    if isinstance(spec, Categorical):
        return spec.shape.numel() * spec.n
    return int(spec.nvec.sum()) if isinstance(spec, MultiCategorical) else 0


def is_image(spec: Spec) -> bool:
    """Say whether an entry is an image: three dimensions, two of them of at least 8 pixels, and no choices."""
    return not _choices_of(spec) and len(spec.shape) == 3 and min(_image_shape(spec)[1:]) >= 8


def _image_shape(spec: Spec) -> tuple[int, int, int]:
    """Return ``(C, H, W)`` of a spec with either layout."""
    first, middle, last = spec.shape
    return (last, first, middle) if _channels_last(spec) else (first, middle, last)


def _channels_last(spec: Spec) -> bool:
    first, middle, last = spec.shape
    return first == middle != last or (last < first and not first != middle == last)


def _convnet(spec: Spec, gain: float | None) -> ConvNet:
    shape = _image_shape(spec)
    make = ConvNet if min(shape[1:]) >= 36 else ConvNet.minatar
    return make(in_shape=shape, channels_last=_channels_last(spec), orthogonal=gain)


def make_actor(
    env: Any,
    *,
    num_cells: int | Sequence[int] = (64, 64),
    activation: Callable[[], nn.Module] = nn.Tanh,
    in_keys: Sequence[Key] | None = None,
    std: Literal["constant", "state", "none"] = "constant",
    orthogonal: bool = True,
    recurrent: type[Recurrent] | None = None,
    **layers: Any,
) -> Actor:
    """Build an actor for an environment: an MLP whose outputs are the parameters of the distribution that suits the actions.

    Args:
        env: anything with ``observation_spec`` and ``action_spec``.
        num_cells: units of the hidden layers.
        activation: module class put after each hidden layer.
        in_keys: the observation entries to read; by default all but counters and sums.
        std: the standard deviation of continuous actions: ``"constant"`` learns one that is the same in every state, as PPO does;
            ``"state"`` makes it an output of the network, as SAC does; ``"none"`` makes the actor deterministic, as in DDPG.
        orthogonal: initialise orthogonally, with a small last layer, as on-policy methods do; by PyTorch's default otherwise.
        recurrent: ``GRU`` or ``LSTM`` makes the last hidden layer recurrent: a policy that remembers.
        **layers: more settings of the :class:`~rlbook.modules.MLP`, such as ``norm`` and ``dropout``.
    """
    read, features = _features(env, in_keys, HIDDEN_GAIN if orthogonal else None)
    read += _masks(env, in_keys)
    spec = env.action_spec
    continuous = isinstance(spec, Bounded | Unbounded) and spec.dtype.is_floating_point
    if std not in (choices := ("constant", "state", "none")):
        raise ConfigError(explain("std", f"one of {choices}", repr(std), "None at all is the string 'none'"))
    if not continuous and std != "constant":
        fix = "Leave std out; for a deterministic policy of discrete actions use make_qvalue"
        raise SpecError(explain(f"The action spec of an actor with std={std!r}", "continuous", repr(spec), fix))
    outputs = spec.shape.numel() if continuous and std != "state" else for_spec(spec).num_params(spec)
    head: list[nn.Module] = [LogStd(outputs)] if continuous and std == "constant" else []
    gains = (HIDDEN_GAIN, ACTOR_GAIN) if orthogonal else None
    if recurrent is not None:
        return Actor(_recurrent(recurrent, env, features, outputs, num_cells, activation, gains, layers, *head), spec, read)
    mlp = MLP(outputs, features.size, num_cells, activation=activation, orthogonal=gains, **layers)
    return Actor(_sequence(env, features, mlp, *head), spec, read)


def make_value(
    env: Any,
    *,
    num_cells: int | Sequence[int] = (64, 64),
    activation: Callable[[], nn.Module] = nn.Tanh,
    in_keys: Sequence[Key] | None = None,
    orthogonal: bool = True,
    recurrent: type[Recurrent] | None = None,
    **layers: Any,
) -> ValueHead:
    """Build a state-value function for an environment; see :func:`make_actor`."""
    read, features = _features(env, in_keys, HIDDEN_GAIN if orthogonal else None)
    gains = (HIDDEN_GAIN, VALUE_GAIN) if orthogonal else None
    if recurrent is not None:
        return ValueHead(_recurrent(recurrent, env, features, 1, num_cells, activation, gains, layers), read)
    mlp = MLP(1, features.size, num_cells, activation=activation, orthogonal=gains, **layers)
    return ValueHead(_sequence(env, features, mlp), read)


def make_qvalue(
    env: Any,
    *,
    num_cells: int | Sequence[int] = (256, 256),
    activation: Callable[[], nn.Module] = nn.ReLU,
    in_keys: Sequence[Key] | None = None,
    members: int | None = None,
    quantiles: int | None = None,
    implicit: bool = False,
    support: tuple[float, float, int] | None = None,
    dueling: bool = False,
    noisy: float | None = None,
    recurrent: type[Recurrent] | None = None,
    **layers: Any,
) -> Any:
    """Build action values for an environment.

    Args:
        env, num_cells, activation, in_keys: see :func:`make_actor`.
        members: make an ensemble of so many networks; a single one by default.
        quantiles: let each network give so many quantiles of the return: QR-DQN, TQC.
        implicit: let it give any quantile asked for, of which ``quantiles`` (32 by default) make a value: IQN.
        support: let it give the probabilities of returns on a grid, ``(lowest, highest, count)``: C51.
        dueling: part the last hidden layer into one for the state's value and one for the advantages of the actions.
        noisy: make all linear layers behind the features noisy, with this spread in the beginning (0.5 is usual), to explore by
            them; see :class:`~rlbook.modules.NoisyExploration`.
        recurrent: see :func:`make_actor`; for discrete actions and a single network.
        **layers: more settings of the :class:`~rlbook.modules.MLP`, such as ``norm`` and ``dropout``.

    ``implicit``, ``support`` and ``dueling`` are for discrete actions.

    Returns:
        A :class:`~rlbook.modules.QValueActor` where actions are discrete, of the kind that the options ask for. Else a
        :class:`~rlbook.modules.QValueHead`, whose network reads observation and action; an action with finite bounds reaches it
        scaled to [-1, 1], so that no unit of the environment outweighs the others (see :class:`UnitAction`). With ``quantiles``
        a :class:`~rlbook.modules.QuantileQValueHead`.
    """
    read, features = _features(env, in_keys)
    spec = env.action_spec
    continuous = isinstance(spec, Bounded | Unbounded) and spec.dtype.is_floating_point

    if not continuous and not isinstance(spec, Categorical | OneHot):
        fix = "Encode the action as one choice, or use an actor: make_actor(env)"
        raise SpecError(explain("The action spec of make_qvalue", "Categorical, OneHot or continuous", repr(spec), fix))
    discrete = isinstance(spec, Categorical | OneHot)
    if recurrent is not None:
        others = {"members": members, "quantiles": quantiles, "support": support, "noisy": noisy}
        others |= {"implicit": implicit or None, "dueling": dueling or None}
        given = ", ".join(f"{name}={value}" for name, value in others.items() if value is not None)
        if not discrete or given:
            want, got = "one plain network of discrete actions", f"{given + ' ' if given else ''}for {spec!r}"
            raise SpecError(explain("A recurrent make_qvalue", want, got, "Leave out recurrent, or build the head yourself"))
        return QValueActor(_recurrent(recurrent, env, features, spec.n, num_cells, activation, None, layers), spec, read)
    layers |= {"activation": activation} | ({} if noisy is None else {"layer": partial(NoisyLinear, sigma=noisy)})
    if isinstance(spec, Categorical | OneHot):
        cells = [num_cells] * 2 if isinstance(num_cells, int) else list(num_cells)

        def net_of(each: int) -> nn.Module:
            own = Features(features.specs)  # convolutions of its own
            return _choices(env, own, spec.n, each, cells, implicit, dueling, layers)

        return _discrete(spec, read, net_of, members, quantiles, implicit, support)
    if implicit or dueling or support is not None:
        fix = "Leave out implicit, dueling and support"
        raise SpecError(explain("The action spec of make_qvalue with these options", "discrete", repr(spec), fix))
    inputs = Features([*features.specs, spec])

    def net() -> nn.Module:
        own = Features(inputs.specs)  # convolutions of its own
        made = _sequence(env, own, MLP(quantiles or 1, inputs.size, num_cells, **layers))
        return UnitAction(made, spec) if isinstance(spec, Bounded) and not is_unit(spec) else made

    nets = net() if members is None else ensemble(net, members)
    return QValueHead(nets, read) if quantiles is None else QuantileQValueHead(nets, quantiles, read)


def _discrete(
    spec: Categorical | OneHot,
    read: Sequence[Key],
    net_of: Callable[[int], nn.Module],
    members: int | None,
    quantiles: int | None,
    implicit: bool,
    support: tuple[float, float, int] | None,
) -> QValueActor:
    """Wrap networks, made by ``net_of(outputs_per_action)``, as the kind of action values that the options ask for."""
    if support is not None and (implicit or quantiles is not None):
        fix = "Pass one of them"
        raise ConfigError(explain("The distribution of make_qvalue", "of one kind", "support and quantiles", fix))
    if support is not None and len(support) != 3:
        fix = "Pass for example support=(0.0, 100.0, 51)"
        raise ConfigError(explain("support", "(lowest, highest, count)", f"{support}", fix))
    each = 1 if implicit else quantiles or (1 if support is None else support[2])
    nets = net_of(each) if members is None else ensemble(partial(net_of, each), members)
    if support is not None:
        return CategoricalQValueActor(nets, spec, read, v_min=support[0], v_max=support[1], atoms=support[2])
    if implicit:
        return ImplicitQValueActor(nets, spec, read, quantiles=quantiles or 32)
    return QValueActor(nets, spec, read) if quantiles is None else QuantileQValueActor(nets, spec, read, quantiles=quantiles)


def _choices(
    env: Any,
    features: Features,
    actions: int,
    each: int,
    cells: list[int],
    implicit: bool,
    dueling: bool,
    layers: dict[str, Any],
) -> nn.Module:
    """Make a network with ``each`` numbers for every action; parted or implicit behind its first layers."""
    last: Callable[..., nn.Module] = partial(DuelingHead, outputs_per_action=each) if dueling else partial(MLP)
    outputs = actions if dueling else actions * each
    if not implicit and not dueling:
        return _sequence(env, features, MLP(outputs, features.size, cells, **layers))
    if implicit and not cells:
        fix = "Pass for example num_cells=(64, 64)"
        raise ConfigError(explain("num_cells of an implicit quantile network", "at least one layer", "none", fix))
    shared, own = (cells[:1], cells[1:]) if implicit else (cells[:-1], cells[-1:])
    if not shared:  # what features there are is shared, as convolutions
        return _sequence(env, features, last(outputs, features.size, own, **layers))
    body = MLP(None, features.size, shared, **layers)
    head = last(outputs, shared[-1], own, **layers)
    if implicit:
        return ImplicitQuantileNet(_sequence(env, features, body), head, shared[-1]).to(env.device)
    return _sequence(env, features, body, head)


def make_actor_value(
    env: Any,
    *,
    num_cells: int | Sequence[int] = (64, 64),
    activation: Callable[[], nn.Module] = nn.Tanh,
    in_keys: Sequence[Key] | None = None,
    **layers: Any,
) -> tuple[Actor, ValueHead]:
    """Build an actor and a state-value function on one trunk: all layers but the last are shared, convolutions included.

    Learning from pixels the trunk is most of the work, and both need the same. With small vectors two networks learn better
    (Andrychowicz et al. 2021). Each reads the trunk for itself; compiled code computes it once.

    Args:
        env, num_cells, activation, in_keys: see :func:`make_actor`; ``num_cells`` are the trunk's.
        **layers: more settings of the trunk's :class:`~rlbook.modules.MLP`, such as ``norm``.

    Example:
        >>> from rlbook import CartPole
        >>> actor, value = make_actor_value(CartPole(num_envs=4))
        >>> value.net[0] is actor.net[0]
        True
    """
    read, features = _features(env, in_keys, HIDDEN_GAIN)
    spec = env.action_spec
    continuous = isinstance(spec, Bounded | Unbounded) and spec.dtype.is_floating_point
    outputs = spec.shape.numel() if continuous else for_spec(spec).num_params(spec)
    cells = [num_cells] if isinstance(num_cells, int) else [*num_cells]
    gains = HIDDEN_GAIN, HIDDEN_GAIN
    trunk = _sequence(env, features, MLP(None, features.size, cells, activation=activation, orthogonal=gains, **layers))
    size = cells[-1]
    head: list[nn.Module] = [LogStd(outputs)] if continuous else []
    policy = MLP(outputs, size, [], orthogonal=(HIDDEN_GAIN, ACTOR_GAIN))
    values = MLP(1, size, [], orthogonal=(HIDDEN_GAIN, VALUE_GAIN))
    actor = Actor(_Chain(trunk, policy, *head).to(env.device), spec, [*read, *_masks(env, in_keys)])
    return actor, ValueHead(_Chain(trunk, values).to(env.device), read)


class UnitAction(nn.Module):
    """Scale the last input of a network, a bounded action, to [-1, 1]: ``2 (a - low) / (high - low) - 1``.

    A replay buffer holds actions in the environment's units, newtons or shares of a range; a critic should not depend on those.

    Args:
        net: module ``net(*observations, action)``.
        spec: the action spec, with finite bounds.
    """

    middle: Tensor
    scale: Tensor

    def __init__(self, net: nn.Module, spec: Bounded):
        super().__init__()
        self.net = net
        self.register_buffer("middle", (spec.low + spec.high) / 2, persistent=False)
        width = spec.high - spec.low
        self.register_buffer("scale", torch.where(width > 0, 2 / width, 0.0), persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Apply the network to observations ``[*, ...]`` and an action ``[*, A]``."""
        *observations, action = inputs
        return self.net(*observations, (action - self.middle) * self.scale)


def is_unit(spec: Bounded) -> bool:
    """Say whether actions need no scaling: they lie in [-1, 1] already, or have an infinite bound."""
    return not spec.bounded or bool((spec.low == -1).all() and (spec.high == 1).all())


BOOKKEEPING = (keys.STEP_COUNT, keys.EPISODE_RETURN)


def _masks(env: Any, in_keys: Sequence[Key] | None) -> list[Key]:
    """Return the masks of the actions among the observation entries: an actor reads them, its network does not."""
    return [key for key in (env.observation_spec.leaves() if in_keys is None else in_keys) if _is_mask(key)]


def _is_mask(key: Key) -> bool:
    return keys.as_tuple(key)[0] == keys.ACTION_MASK


def _features(env: Any, in_keys: Sequence[Key] | None, gain: float | None = None) -> tuple[list[Key], Features]:
    leaves = env.observation_spec.leaves()
    in_keys = [in_keys] if isinstance(in_keys, str) else in_keys
    read = [key for key in leaves if key not in BOOKKEEPING] if in_keys is None else list(in_keys)
    read = [key for key in read if not _is_mask(key)]
    missing = [key for key in read if key not in leaves]
    if missing or not read:
        raise SpecError(
            explain(
                "in_keys",
                f"among {sorted(map(str, leaves))}",
                f"{missing or read}",
                "Name observation entries of the environment",
            )
        )
    return read, Features([leaves[key] for key in read], gain)


def _sequence(env: Any, features: Features, *layers: nn.Module) -> nn.Module:
    """Chain the layers; float vectors need no features layer, for an MLP joins its inputs itself."""
    plain = all(len(spec.shape) == 1 and spec.dtype == torch.float32 for spec in features.specs)
    chain = layers if plain else (features, *layers)
    return (chain[0] if len(chain) == 1 else _Chain(*chain)).to(env.device)


def _recurrent(
    kind: type[Recurrent],
    env: Any,
    features: Features,
    outputs: int,
    num_cells: int | Sequence[int],
    activation: Callable[[], nn.Module],
    gains: tuple[float, float] | None,
    more: dict[str, Any],
    *head: nn.Module,
) -> nn.Module:
    """Chain the layers with a recurrent one in the place of the last hidden one."""
    if not (isinstance(kind, type) and issubclass(kind, Recurrent)):
        raise ConfigError(explain("recurrent", "GRU or LSTM, the class itself", repr(kind), "Import it from rlbook.modules"))
    if not isinstance(num_cells, int) and not len(num_cells):
        fix = "Pass for example num_cells=(64,): the last layer is the recurrent one"
        raise ConfigError(explain("num_cells of a network with a memory", "at least one layer", f"{num_cells}", fix))
    *cells, size = [num_cells] if isinstance(num_cells, int) else num_cells
    last = nn.Linear(size, outputs)
    if gains is not None:
        nn.init.orthogonal_(last.weight, gains[1])
        nn.init.zeros_(last.bias)
    if more and not cells:
        fix = "Pass for example num_cells=(64, 64): the last layer is the recurrent one"
        raise ConfigError(explain(f"The settings {', '.join(more)}", "those of layers before the recurrent one", "none", fix))
    layers = [MLP(None, features.size, cells, activation=activation, orthogonal=gains, **more)] if cells else []
    whole = nn.Sequential(last, *head) if head else last
    return kind(outputs, cells[-1] if cells else features.size, size, encoder=_Chain(features, *layers), head=whole).to(
        env.device
    )


class _Chain(nn.Sequential):
    """Layers one after another, the first of which takes all the inputs."""

    def forward(self, *inputs: Tensor) -> Tensor:
        first, *rest = self
        x = first(*inputs)
        for layer in rest:
            x = layer(x)
        return x
