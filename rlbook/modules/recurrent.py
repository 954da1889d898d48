"""Recurrent networks: they take the place of an MLP in an actor, a value head or a Q-value actor, and remember.

A recurrent network reads its state beside the observation and returns the state after it. Who uses one sees little of that:

* **Acting.** The hot loop keeps a row for the state as it does for the observations: the policy reads the row of step t, what it
  returns becomes the row of step t + 1, and where an episode ended zeros do. A rollout so holds, as an entry of each step, the
  state that its action was taken in: ``("recurrent", "actor")``, ``[N, T, layers, size]``.
* **Learning.** Data with a ``("next", "done")`` of two or more batch dimensions are sequences, time last. They start from the
  state stored at their first step, and from zeros after each end of an episode. Other data are single steps, each with its state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F

from rlbook import keys
from rlbook.errors import ConfigError, SpecError, check_count, explain
from rlbook.typing import DeviceLike, Key, Leaves, Shape


class Recurrent(nn.Module):
    """Recurrent layers between an encoder and a head: ``x_t -> head(h_t)`` with ``h_t = f(encoder(x_t), h_{t-1})``.

    Args:
        out_features: outputs.
        in_features: inputs of the first recurrent layer: of the observation, or what the encoder makes of it.
        hidden_size: units of each recurrent layer.
        num_layers: recurrent layers.
        encoder: module applied to the inputs first; inputs are joined along the last dimension without one.
        head: module applied to the last layer's units instead of a linear layer, from ``hidden_size`` to ``out_features``.
        gain: of the orthogonal initialisation of that linear layer; PyTorch's default initialisation when None.

    Recurrent weights are orthogonal in the beginning, and biases zero but for those of the gates that keep the state, which are
    1: a network begins by remembering.

    Raises:
        ConfigError: a size is not positive.
    """

    gates: ClassVar[int]
    """Blocks of ``hidden_size`` rows in the weights."""

    parts: ClassVar[int]
    """Tensors of ``hidden_size`` in a layer's state."""

    def __init__(
        self,
        out_features: int,
        in_features: int,
        hidden_size: int = 64,
        num_layers: int = 1,
        *,
        encoder: nn.Module | None = None,
        head: nn.Module | None = None,
        gain: float | None = None,
    ):
        super().__init__()
        sizes = {"out_features": out_features, "in_features": in_features, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in sizes.items():
            check_count(name, size, example=64)
        self.out_features, self.in_features, self.hidden_size, self.num_layers = sizes.values()
        self.encoder = encoder
        for k in range(num_layers):  # named and laid out as in nn.GRU and nn.LSTM, whose weights so fit
            rows = self.gates * hidden_size
            self.register_parameter(f"weight_ih_l{k}", nn.Parameter(torch.empty(rows, hidden_size if k else in_features)))
            self.register_parameter(f"weight_hh_l{k}", nn.Parameter(torch.empty(rows, hidden_size)))
            self.register_parameter(f"bias_ih_l{k}", nn.Parameter(torch.empty(rows)))
            self.register_parameter(f"bias_hh_l{k}", nn.Parameter(torch.empty(rows)))
        self.reset_parameters()
        self.head = nn.Linear(hidden_size, out_features) if head is None else head
        if gain is not None and isinstance(self.head, nn.Linear):
            nn.init.orthogonal_(self.head.weight, gain)
            nn.init.zeros_(self.head.bias)

    @property
    def state_shape(self) -> torch.Size:
        """Shape of one state, ``[layers, size]``."""
        return torch.Size((self.num_layers, self.parts * self.hidden_size))

    def initial_state(self, shape: Shape = ()) -> Tensor:
        """Return the state in which episodes begin: zeros ``[*, layers, size]``."""
        return self.weight_hh_l0.new_zeros((*shape, *self.state_shape))  # type: ignore[operator]

    def forward(self, *inputs: Tensor, state: Tensor, done: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take a step, or the steps of a sequence.

        Args:
            *inputs: entries ``[*, ...]``, in a sequence ``[*, T, ...]``.
            state: the state before the (first) step, ``[*, layers, size]``.
            done: for a sequence, whether each step ended an episode, bool ``[*, T]``: the next step begins with zeros.

        Returns:
            The outputs ``[*, out_features]`` and the states after each step ``[*, layers, size]``; in a sequence ``[*, T, ...]``.
        """
        hidden, after = self.advance(*inputs, state=state, done=done)
        return self.head(hidden), after

    def advance(self, *inputs: Tensor, state: Tensor, done: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the last layer's units ``[*, hidden_size]`` and the states after; see :meth:`forward`."""
        x = self.encoder(*inputs) if self.encoder is not None else join(*inputs)
        batch = state.shape[:-2]
        want = (*batch, *(() if done is None else done.shape[-1:]), self.in_features)
        if x.shape != want or state.shape[-2:] != self.state_shape:
            got = f"{list(x.shape)} with a state {list(state.shape)}"
            fix = f"Check in_features and hidden_size of the {type(self).__name__}"
            raise SpecError(explain("The input of a recurrent layer", f"{list(want)} with {list(self.state_shape)}", got, fix))
        before = state.reshape(-1, *self.state_shape).unbind(1)
        if done is None:
            x, after = self._step(x.reshape(-1, self.in_features), before)
            return x.reshape(*batch, -1), after.reshape(state.shape)
        steps = done.shape[-1]
        x, after = self._sequence(x.reshape(-1, steps, self.in_features).transpose(0, 1), before, done.reshape(-1, steps, 1))
        return x.transpose(0, 1).reshape(*batch, steps, -1), after.transpose(0, 1).reshape(*batch, steps, *self.state_shape)

    def _weights(self, k: int) -> list[Tensor]:
        return [getattr(self, f"{name}_l{k}") for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]

    def _step(self, x: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Take a step from the layers' states ``[B, S]``; return the last one's units and the states after ``[B, layers, S]``."""
        after = []
        for k, state in enumerate(before):
            weight, bias, *recurrent = self._weights(k)
            after.append(self.cell(F.linear(x, weight, bias).to(state.dtype), state, *recurrent))
            x = after[-1][:, : self.hidden_size]
        return x, after[0] if len(after) == 1 else torch.stack(after, dim=1)

    def _sequence(self, x: Tensor, before: Sequence[Tensor], done: Tensor) -> tuple[Tensor, Tensor]:
        """Do the same for steps ``[T, B, D]``; return ``[T, B, H]`` and ``[T, B, layers, S]``. Time is the only Python loop."""
        keep = (~done).unbind(1)
        # compiled code does not branch on data, and a GPU would have to be waited for
        resets = done.any(0).flatten().tolist() if done.is_cpu and not torch.compiler.is_compiling() else [True] * len(x)
        after = []
        for k, state in enumerate(before):
            weight, bias, *recurrent = self._weights(k)
            states = []
            for t, now in enumerate(F.linear(x, weight, bias).to(state.dtype).unbind(0)):  # the inputs of all steps at once
                if t and resets[t - 1]:
                    state = torch.where(keep[t - 1], state, 0.0)
                state = self.cell(now, state, *recurrent)
                states.append(state)
            after.append(torch.stack(states))
            x = after[-1][..., : self.hidden_size]
        return x, torch.stack(after, dim=2)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the recurrent layers' weights; the encoder's and the head's are their own."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("weight"):
                for block in parameter.split(self.hidden_size):
                    nn.init.orthogonal_(block)
            else:
                parameter.zero_()
        for k in range(self.num_layers):  # the second block is the gate that keeps the state
            getattr(self, f"bias_ih_l{k}")[self.hidden_size : 2 * self.hidden_size] = 1.0

    @abstractmethod
    def cell(self, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Take one step of a layer.

        Args:
            x: what the input adds to the gates, ``[B, gates * hidden_size]``.
            state: ``[B, S]``.
            weight, bias: of the recurrent part, ``[gates * hidden_size, hidden_size]`` and ``[gates * hidden_size]``.
        """

    def extra_repr(self) -> str:
        return f"{self.in_features}, hidden_size={self.hidden_size}, num_layers={self.num_layers}"


class GRU(Recurrent):
    r"""Gated recurrent units, in the place of an MLP.

    .. math::
        r &= \sigma(W_r x + U_r h + b_r), \quad z = \sigma(W_z x + U_z h + b_z) \\
        n &= \tanh(W_n x + b_n + r \odot (U_n h + c_n)), \quad h' = (1 - z) \odot n + z \odot h

    Args: see :class:`Recurrent`. The bias :math:`b_z` of the gate that keeps the state starts at 1, as a forget gate's does.

    Source: Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
    equations 5 to 8.
    Deviates: the reset gate comes after the product with :math:`U_n`, as in cuDNN and ``nn.GRU``, whose weights fit.

    Example:
        >>> from rlbook import Actor
        >>> from rlbook.envs import TMaze
        >>> env = TMaze(num_envs=8, length=5, seed=0)
        >>> actor = Actor(GRU(4, in_features=3), env.action_spec)
        >>> data = env.rollout(100, actor)
        >>> data["recurrent", "actor"].shape
        torch.Size([8, 100, 1, 64])
    """

    gates, parts = 3, 1

    def cell(self, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        size = self.hidden_size
        h = F.linear(state, weight, bias).to(state.dtype)
        reset, update = (x[:, : 2 * size] + h[:, : 2 * size]).sigmoid().split(size, dim=1)
        new = torch.tanh(torch.addcmul(x[:, 2 * size :], reset, h[:, 2 * size :]))
        return torch.lerp(new, state, update)


class LSTM(Recurrent):
    r"""Long short-term memory, in the place of an MLP. The state holds :math:`h` and :math:`c` side by side.

    .. math::
        i, f, o &= \sigma(W x + U h + b), \quad g = \tanh(W_g x + U_g h + b_g) \\
        c' &= f \odot c + i \odot g, \quad h' = o \odot \tanh(c')

    Args: see :class:`Recurrent`. The bias of the forget gate starts at 1 (Jozefowicz et al. 2015, section 4): it begins by
    remembering.

    Source: Hochreiter and Schmidhuber 1997, "Long Short-Term Memory"; with forget gates Gers et al. 2000, "Learning to Forget".

    Example:
        >>> from rlbook import ValueHead
        >>> value = ValueHead(LSTM(1, in_features=3))
    """

    gates, parts = 4, 2

    def cell(self, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        h, c = state.split(self.hidden_size, dim=1)
        i, f, g, o = (x + F.linear(h, weight, bias)).split(self.hidden_size, dim=1)
        c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        return torch.cat((o.sigmoid() * c.tanh(), c), dim=1)


def join(*inputs: Tensor) -> Tensor:
    """Join inputs along the last dimension."""
    return inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1)


# ---- entries ---------------------------------------------------------------------------------------------------------------
NEXT_DONE: Key = (keys.NEXT, keys.DONE)


class Carrying(dict[Key, Tensor]):
    """The entries of a step or a sequence, in which a recurrent network leaves the states after: ``("next", "recurrent", ...)``.

    An actor, a value head or a Q-value actor that reads a TensorDict or an ordinary dictionary writes nothing into it.
    """

    @classmethod
    def of(cls, data: TensorDictBase | Mapping[Key, Tensor]) -> Carrying:
        """Return the entries of ``data``; its own tensors, not copies."""
        return cls(data.items(True, True) if isinstance(data, TensorDictBase) else data)  # type: ignore[arg-type]


def state_before(net: Recurrent, key: Key, data: TensorDictBase | Mapping[Key, Tensor]) -> dict[str, Tensor]:
    """Return the arguments ``state`` and, for a sequence, ``done`` with which a network runs over ``data``.

    Raises:
        KeyError: single steps without a state. (A sequence without one begins with zeros.)
    """
    state = data.get(key, None)
    if not is_sequence(data):
        return {"state": data[key] if state is None else state}
    done = data[NEXT_DONE]
    first = net.initial_state(done.shape[:-1]) if state is None else state.select(done.ndim - 1, 0).detach()
    return {"state": first, "done": done}


def act_in(policy: Any, td: TensorDictBase, noise: Any = None) -> TensorDictBase:
    """Let a policy write its action into the entries of a step ``[*batch]``, in a loop written by hand.

    What it remembers stands there as in a rollout: the state before the action, and under ``next`` the one after it, which
    ``env.step`` keeps and ``env.step_and_reset`` hands on to the next step. Without a state an episode begins.
    """
    begin = getattr(policy, "initial_state", None)
    states: dict[Any, Tensor] = {} if begin is None else begin(td.batch_size, td.device)
    if not is_sequence(td):
        td.update({key: state for key, state in states.items() if td.get(key, None) is None})
    out = policy.act(td, noise)
    return td.update({(keys.NEXT, *key) if key in states else key: value for key, value in out.items()})


def is_sequence(data: TensorDictBase | Mapping[Key, Tensor]) -> bool:
    """Say whether entries are those of sequences ``[*, T]``, and not of single steps."""
    done = data.get(NEXT_DONE, None)
    return done is not None and done.ndim >= 2


def warm_up(module: Any, data: TensorDictBase, steps: int) -> TensorDictBase:
    """Run the first steps of sequences ``[*, T]`` to find the state; return the rest ``[*, T - steps]``, which starts from it.

    A state that was stored while acting is that of older weights. Running the newest ones over a few steps first mends most of
    the difference. No gradient flows through these steps.

    Args:
        module: an :class:`~rlbook.Actor`, a value head or a Q-value actor with a recurrent network.
        data: sequences ``[*, T]``, of a batch; not changed.
        steps: in [0, T).

    Raises:
        ConfigError: the network has no memory, or ``data`` holds single steps.

    Source: Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement Learning", section 3 ("burn-in").
    """
    if getattr(module, "state_key", None) is None:
        fix = "Leave it out: there is no state to find"
        raise ConfigError(explain("What is warmed up", "a head with a recurrent network", type(module).__name__, fix))
    if not is_sequence(data):
        fix = "Give the sequence of one environment a batch dimension: data.unsqueeze(0)"
        raise ConfigError(explain("data", "sequences [*, T] of a batch", f"{list(data.batch_size)}", fix))
    total = data.batch_size[-1]
    if not 0 <= steps < total:
        raise ConfigError(explain("steps", f"in [0, {total})", repr(steps), "Burn in fewer, or sample longer sequences"))
    rest: Any = data[..., steps:]
    rest = rest.copy()
    if steps:
        with torch.no_grad():
            first: Any = data[..., :steps]
            state = module.after(first)[..., -1, :, :]
            state = torch.where(first[NEXT_DONE][..., -1, None, None], 0.0, state)
        # only that of the first step is read
        rest[module.state_key] = state.unsqueeze(-3).expand(*rest.batch_size, *state.shape[-2:])
    return rest


class Carry(nn.Module):
    """A policy that also carries along the states of other recurrent networks, such as the critic's.

    The rollout then holds their states at every step, so that an estimator and a loss find where each sequence begins.

    Args:
        actor: acts; recurrent or not.
        *others: recurrent value heads.

    Example:
        >>> from rlbook import GAE, Actor, ValueHead
        >>> from rlbook.envs import TMaze
        >>> env = TMaze(num_envs=8, length=5, seed=0)
        >>> actor, value = Actor(GRU(4, 3), env.action_spec), ValueHead(GRU(1, 3))
        >>> data = GAE(value)(env.rollout(100, Carry(actor, value)))
    """

    def __init__(self, actor: Any, *others: Any):
        for other in others:
            if getattr(other, "state_key", None) is None:
                fix = "Leave it out: it has no state to carry"
                raise ConfigError(explain("What a policy carries along", "a recurrent head", type(other).__name__, fix))
        state_keys = [part.state_key for part in (actor, *others) if getattr(part, "state_key", None) is not None]
        if len(set(state_keys)) < len(state_keys):
            got, fix = (
                f"{list(map(keys.pretty, state_keys))}",
                "Carry one state-value head and one Q-value actor at most",
            )
            raise ConfigError(explain("What a policy carries along", "heads of different kinds", got, fix))
        super().__init__()
        self.actor, self.others = actor, nn.ModuleList(others)
        self.in_keys, self.out_keys = actor.in_keys, actor.out_keys

    @property
    def spec(self) -> Any:
        """The actor's action spec."""
        return getattr(self.actor, "spec", None)

    def initial_state(self, shape: Shape, device: DeviceLike = None) -> Leaves:
        """Return the states in which episodes begin, zeros ``[*, layers, size]``."""
        states: Leaves = {}
        for module in (self.actor, *self.others):
            states |= module.initial_state(shape, device)  # type: ignore[operator]
        return states

    def draw_noise(self, shape: Sequence[int], device: DeviceLike = None) -> Any:
        """Draw the actor's random numbers."""
        return self.actor.draw_noise(shape, device)

    def give_back(self, frames: int) -> None:
        """Pass on that ``frames`` of the steps were not taken; see :meth:`~rlbook.modules.Exploration.give_back`."""
        if hasattr(self.actor, "give_back"):
            self.actor.give_back(frames)

    def act(self, leaves: Mapping[Key, Tensor], noise: Any = None) -> Leaves:
        """Return what the actor does, and the states after the step."""
        out = dict(self.actor.act(leaves, noise))
        return out | {other.state_key: other.after(leaves) for other in self.others}  # type: ignore[operator,misc]

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """Write an action into ``td``, and the states; see :func:`act_in`."""
        return act_in(self, td)

    @property
    def greedy(self) -> Any:
        """The actor's greedy policy, for evaluation, where nothing needs to be carried along."""
        return self.actor.greedy
