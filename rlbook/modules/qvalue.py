"""Action values: heads for continuous actions, and for discrete ones policies that take the best action."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from rlbook import keys
from rlbook.distributions.categorical import mask_out
from rlbook.errors import SpecError, check_count, explain
from rlbook.modules.actor import Reader
from rlbook.modules.ensemble import Ensemble
from rlbook.modules.noisy import keep_all
from rlbook.modules.recurrent import act_in
from rlbook.specs import Categorical, OneHot, Spec
from rlbook.typing import DeviceLike, Key, Leaves

Data = TensorDictBase | Mapping[Key, Tensor]


class QValueHead(Reader):
    """The value of a continuous action: a network of observation and action with one output.

    Args:
        net: module or function ``net(*observations, action)``, from ``[*, ...]`` to ``[*, 1]``; an
            :class:`~rlbook.modules.Ensemble` of such for several critics (``[n, *, 1]``).
        in_keys: the observation entries ``net`` reads before the action.

    Example:
        >>> from rlbook import MLP, Pendulum, QValueHead
        >>> from rlbook.modules import ensemble
        >>> qvalue = QValueHead(ensemble(MLP(out_features=1), 2))
        >>> data = Pendulum(num_envs=4, seed=0).rollout(8)
        >>> qvalue.members(data).shape, qvalue.value(data).shape
        (torch.Size([2, 4, 8]), torch.Size([4, 8]))
    """

    role = "qvalue"

    def __init__(self, net: Callable[..., Tensor], in_keys: Sequence[Key] = (keys.OBSERVATION,)):
        super().__init__(net, in_keys)

    def member(self, index: int) -> QValueHead:
        """Return a head of one critic alone, with the same weights; of a network that is no ensemble this one."""
        return QValueHead(self.net[index], self.obs_keys) if isinstance(self.net, Ensemble) else self

    def members(self, data: Data, action: Tensor | None = None, *, frozen: bool = False) -> Tensor:
        """Return the value that each critic gives to an action, ``[n, *]``.

        Args:
            data: observations ``[*]``.
            action: ``[*, A]``; by default ``data["action"]``.
            frozen: send no gradient to the weights, only to the action.

        Raises:
            SpecError: the network has another number of outputs.
        """
        out = self.read(data, data[keys.ACTION] if action is None else action, frozen=frozen)
        if out.ndim == 0 or out.shape[-1] != 1:
            fix = "Give it out_features=1"
            raise SpecError(explain("An action-value network's output", "of shape [*, 1]", f"{list(out.shape)}", fix))
        return out.squeeze(-1) if isinstance(self.net, Ensemble) else out.squeeze(-1).unsqueeze(0)

    def value(self, data: Data, action: Tensor | None = None, *, frozen: bool = False) -> Tensor:
        """Return the value of an action ``[*]``: of several critics the lowest, against overestimation (Fujimoto et al. 2018)."""
        members = self.members(data, action, frozen=frozen)
        return members[0] if len(members) == 1 else members.amin(0)

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """Write ``state_action_value`` into ``td``."""
        td[keys.STATE_ACTION_VALUE] = self.value(td)
        return td


class QuantileQValueHead(QValueHead):
    """Quantiles of the return of a continuous action: a network of observation and action with one output for each.

    Args:
        net: module or function ``net(*observations, action)``, from ``[*, ...]`` to ``[*, quantiles]``; an
            :class:`~rlbook.modules.Ensemble` of such for several critics.
        quantiles: how many, at least 1; the i-th is that of ``(2 i + 1) / (2 quantiles)``, from 0.
        in_keys: the observation entries ``net`` reads before the action.

    Example:
        >>> from rlbook import MLP, Pendulum
        >>> from rlbook.modules import ensemble
        >>> qvalue = QuantileQValueHead(ensemble(MLP(out_features=25), 5), 25)
        >>> data = Pendulum(num_envs=4, seed=0).rollout(8)
        >>> qvalue.atoms(data).shape, qvalue.members(data).shape, qvalue.value(data).shape
        (torch.Size([5, 4, 8, 25]), torch.Size([5, 4, 8]), torch.Size([4, 8]))
    """

    def __init__(self, net: Callable[..., Tensor], quantiles: int, in_keys: Sequence[Key] = (keys.OBSERVATION,)):
        super().__init__(net, in_keys)
        check_count("quantiles", quantiles, example=25)
        self.quantiles = quantiles

    def member(self, index: int) -> QuantileQValueHead:
        """Return a head of one critic alone, with the same weights; of a network that is no ensemble this one."""
        return QuantileQValueHead(self.net[index], self.quantiles, self.obs_keys) if isinstance(self.net, Ensemble) else self

    def atoms(self, data: Data, action: Tensor | None = None, *, frozen: bool = False) -> Tensor:
        """Return the quantiles that each critic gives to the return of an action, ``[n, *, quantiles]``.

        Args:
            data, action, frozen: see :meth:`members`.

        Raises:
            SpecError: the network has another number of outputs.
        """
        out = self.read(data, data[keys.ACTION] if action is None else action, frozen=frozen)
        if out.ndim == 0 or out.shape[-1] != self.quantiles:
            want, got = f"of shape [*, {self.quantiles}]", f"{list(out.shape)}"
            raise SpecError(explain("A quantile network's output", want, got, f"Give it out_features={self.quantiles}"))
        return out if isinstance(self.net, Ensemble) else out.unsqueeze(0)

    def members(self, data: Data, action: Tensor | None = None, *, frozen: bool = False) -> Tensor:
        """Return the mean that each critic gives to the return of an action, ``[n, *]``; see :class:`QValueHead`."""
        return self.atoms(data, action, frozen=frozen).mean(-1)

    def value(self, data: Data, action: Tensor | None = None, *, frozen: bool = False) -> Tensor:
        """Return the mean of all quantiles, ``[*]``."""
        return self.members(data, action, frozen=frozen).mean(0)


class QValueActor(Reader):
    """The values of all discrete actions, and the policy that takes the best one.

    Args:
        net: module or function from the observation entries ``[*, ...]`` to one value per action, ``[*, A]``; an
            :class:`~rlbook.modules.Ensemble` of such for several critics (``[n, *, A]``).
        spec: the action spec, ``Categorical`` or ``OneHot``.
        in_keys: the entries ``net`` reads. An entry ``action_mask`` of the observation, bool ``[*, A]``, rules actions out.

    Raises:
        SpecError: the actions are not discrete, or the network does not have one output for each.

    Example:
        >>> from rlbook import MLP, CartPole, QValueActor
        >>> env = CartPole(num_envs=4, seed=0)
        >>> qvalue = QValueActor(MLP(out_features=2), env.action_spec)
        >>> qvalue.values(env.rollout(8, qvalue)).shape
        torch.Size([4, 8, 2])
    """

    role = "qvalue"
    outputs_per_action: int | None = None
    """How many numbers describe the return of an action; None where one does, its value."""

    def __init__(self, net: Callable[..., Tensor], spec: Spec, in_keys: Sequence[Key] = (keys.OBSERVATION,)):
        super().__init__(net, in_keys)
        if not isinstance(spec, OneHot) and not (isinstance(spec, Categorical) and not spec.event_shape):
            fix = "For continuous actions use Actor and QValueHead (DDPG, TD3, SAC)"
            raise SpecError(explain("The action spec of a QValueActor", "Categorical with shape () or OneHot", repr(spec), fix))
        self.spec: Categorical | OneHot = spec

    @property
    def out_keys(self) -> tuple[Key, ...]:
        """What :meth:`forward` writes."""
        return (keys.ACTION,)

    def outputs(self, data: Data, *extra: Tensor, frozen: bool = False) -> Tensor:
        """Return what the network says of each action: ``[*, A]``, or ``[*, A, K]`` where K numbers describe a return."""
        out = self.read(data, *extra, frozen=frozen)
        each = self.outputs_per_action
        want = self.spec.n * (each or 1)
        if out.ndim == 0 or out.shape[-1] != want:
            got, fix = f"{list(out.shape)}", f"Give it out_features={want}"
            raise SpecError(
                explain("An action-value network's output", f"of shape [*, {want}], {each or 1} for each action", got, fix)
            )
        return out if each is None else out.unflatten(-1, (self.spec.n, each))

    def values(self, data: Data, *, frozen: bool = False) -> Tensor:
        """Return the value of each action, ``[*, A]``; of several critics the lowest."""
        out = self.expectation(self.outputs(data, frozen=frozen))
        return out.amin(0) if isinstance(self.net, Ensemble) else out

    def members(self, data: Data, *, frozen: bool = False) -> Tensor:
        """Return the value that each critic gives to each action, ``[n, *, A]``."""
        out = self.expectation(self.outputs(data, frozen=frozen))
        return out if isinstance(self.net, Ensemble) else out.unsqueeze(0)

    def expectation(self, outputs: Tensor) -> Tensor:
        """Return the value of each action, ``[*, A]``, of what the network says of it, ``[*, A]`` or ``[*, A, K]``."""
        return outputs

    def allowed(self, values: Tensor, data: Data) -> Tensor:
        """Return values ``[*, A]``, minus infinity where the observation's mask rules an action out, unless it leaves none."""
        mask = data.get(keys.ACTION_MASK, None)
        return values if mask is None else torch.where(mask.bool().any(-1, True), mask_out(values, mask, -torch.inf), values)

    def best(self, values: Tensor, data: Data) -> Tensor:
        """Return the index of the best allowed action, int64 ``[*]``, given values ``[*, A]``."""
        return self.allowed(values, data).argmax(-1)

    def value(self, data: Data) -> Tensor:
        """Return the value of the best allowed action, ``[*]``: that of the state under the greedy policy."""
        return self.allowed(self.values(data), data).amax(-1)

    def index(self, action: Tensor) -> Tensor:
        """Turn actions of the spec into indices, int64 ``[*]``."""
        if not isinstance(self.spec, OneHot):
            return action.long()
        return (action.byte() if action.dtype == torch.bool else action).argmax(-1)

    def pick(self, values: Tensor, action: Tensor) -> Tensor:
        """Return the values of actions of the spec: ``[*]`` of ``[*, A]``, ``[*, K]`` of ``[*, A, K]``."""
        return self.at(values, self.index(action))

    def chosen(self, data: Data, action: Tensor) -> Tensor:
        """Return the value that each critic gives to actions of the spec ``[*]``, ``[n, *]``."""
        index = self.index(action)
        return self.at(self.members(data), index.expand(self.num_members, *index.shape))

    @staticmethod
    def at(values: Tensor, index: Tensor) -> Tensor:
        """Return the values of the actions with these indices ``[*]``: ``[*]`` of ``[*, A]``, ``[*, K]`` of ``[*, A, K]``."""
        if values.ndim == index.ndim + 1:
            return values.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        rows = index.reshape(*index.shape, 1, 1).expand(*index.shape, 1, values.shape[-1])
        return values.gather(-2, rows).squeeze(-2)

    def encode(self, index: Tensor) -> Tensor:
        """Turn indices ``[*]`` into actions of the spec."""
        if isinstance(self.spec, OneHot):
            return nn.functional.one_hot(index, self.spec.n).to(self.spec.dtype)
        return index.to(self.spec.dtype)

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        """Write the best action into ``td``."""
        return act_in(self, td)

    def act(self, leaves: Data, noise: Any = None) -> Leaves:
        """Return the best action for each observation."""
        leaves = self.carrying(leaves)
        return {keys.ACTION: self.encode(self.best(self.values(leaves), leaves)), **self.carried(leaves)}

    def draw_noise(self, shape: Sequence[int], device: DeviceLike = None) -> None:
        """Taking the best action needs no random numbers."""
        keep_all(self)

    @property
    def greedy(self) -> QValueActor:
        """The policy without exploration: itself."""
        return self
