"""Prioritized replay: the rows that taught most are drawn most (Schaul et al. 2016, "Prioritized Experience Replay")."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, SpecError, explain
from rlbook.replay.samplers import Sampler, index_of
from rlbook.replay.trees import SumTree
from rlbook.typing import DeviceLike, Leaves

if TYPE_CHECKING:
    from rlbook.replay.buffer import ReplayBuffer
    from rlbook.replay.storages import Rows

SETTLE = 256
"""How many separate writes may wait until they are entered together."""


class PriorityBase(Sampler):
    """What both variants share: importance weights, and the priority of rows that were never drawn, the highest so far.

    A batch gets ``weight`` ``[B]``, ``w_i = (n P(i))^-beta / max_j w_j`` (section 3.4; n cancels), for the loss to multiply with.
    ``sampler.beta`` may be set at any time, to anneal it.
    """

    def __init__(self, alpha: float, beta: float):
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not isinstance(value, int | float) or not 0 <= value <= 10:
                raise ConfigError(explain(name, "a number from 0 (none) on, usually up to 1", repr(value), f"Pass {name}=0.5"))
        self.alpha, self.beta = float(alpha), float(beta)
        self.highest = 1.0
        self._written: list[Rows] = []

    @abstractmethod
    def enter(self, rows: Tensor, priority: Any) -> None:
        """Set the priorities ``[B]``, before the exponent, of rows ``[B]``; raise SpecError where one is not finite."""

    def on_write(self, rows: Rows) -> None:
        self._written.append(rows)
        if len(self._written) >= SETTLE:
            self.settle()

    def settle(self) -> None:
        """Give the rows that were written since the last call the highest priority."""
        if self._written:
            rows = torch.cat([index_of(part) for part in self._written])
            self._written = []
            self.enter(rows, np.full(len(rows), self.highest))

    def update_priority(self, rows: Tensor, priority: Tensor) -> None:
        """Set the priorities of rows ``[B]`` to ``|priority| [B]``, such as TD errors; of a row given twice the last counts."""
        if rows.shape != priority.shape:
            want, fix = f"of shape {list(rows.shape)}, as the rows", "Pass one number per row: td_error.abs()"
            raise SpecError(explain("priority", want, str(list(priority.shape)), fix))
        if not priority.numel():
            return
        values = abs(light(priority.detach()))
        self.settle()
        self.enter(rows, values)
        self.highest = max(self.highest, float(values.max()))

    def clear(self) -> None:
        self.highest, self._written = 1.0, []

    def weights(self, probability: Tensor, least: float) -> Leaves:
        """Return the importance weights of rows with these probabilities ``[B]``, the smallest of all being ``least``."""
        weight = (light(probability) / least) ** -self.beta
        return {keys.WEIGHT: torch.as_tensor(weight).float()}

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return {"highest": self.highest, "beta": self.beta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.highest, self.beta, self._written = state["highest"], state["beta"], []

    def __repr__(self) -> str:
        return f"{type(self).__name__}(alpha={self.alpha:g}, beta={self.beta:g})"


class PrioritizedSampler(PriorityBase):
    """Proportional: row i with probability ``P(i) = p_i / sum_j p_j``, ``p_i = (|priority_i| + eps)^alpha`` (section 3.3, eq. 1).

    A sum tree finds rows in logarithmic time. The unit interval is cut into B parts and a row drawn from each, which spreads a
    batch over all priorities (appendix B.2.1).

    Args:
        alpha: 0 is uniform, 1 fully proportional.
        beta: how far importance weights correct for it: 0 not, 1 fully; anneal it to 1. Weights are relative to that of the
            least probable row of all: a row with hardly any error makes those of the others small, unless ``eps`` is raised.
        eps: keeps rows without error in play.
        device: where the tree lives: where the TD errors are computed is fastest.

    Raises:
        ConfigError: an argument is out of range.
        SpecError: a priority is NaN or infinite.

    Example:
        >>> from rlbook import CartPole, ReplayBuffer
        >>> buffer = ReplayBuffer(1000, sampler=PrioritizedSampler(alpha=0.6, beta=0.4), batch_size=32)
        >>> _ = buffer.extend(CartPole(num_envs=4, seed=0).rollout(50))
        >>> batch = buffer.sample()
        >>> td_error = torch.rand(32)
        >>> loss = (batch["weight"] * td_error.square()).mean()
        >>> buffer.update_priority(batch["index"], td_error)
    """

    def __init__(self, alpha: float = 0.6, beta: float = 0.4, *, eps: float = 1e-6, device: DeviceLike = None):
        super().__init__(alpha, beta)
        if not eps > 0:
            want = "above 0, or rows without error are never drawn again"
            raise ConfigError(explain("eps", want, repr(eps), "Pass eps=1e-6"))
        self.eps, self.device = eps, device or "cpu"

    def bind(self, capacity: int) -> None:
        self.tree = SumTree(capacity, device=self.device)
        super().bind(capacity)

    def sample(self, buffer: ReplayBuffer, batch_size: int) -> tuple[Tensor, Leaves]:
        self.settle()
        rows, priority = self.tree.draw(torch.rand(batch_size, dtype=torch.float64, generator=buffer.generator))
        return rows, self.weights(priority, self.tree.min)

    def enter(self, rows: Tensor, priority: Any) -> None:
        self.tree.update(rows, torch.as_tensor((priority + self.eps) ** self.alpha))

    def priority(self, rows: Tensor) -> Tensor:
        """Return ``p_i`` of rows ``[B]``."""
        self.settle()
        return self.tree[rows]

    def clear(self) -> None:
        super().clear()
        self.tree.clear()

    def check_valid(self) -> None:
        self.settle()
        self.tree.check_valid()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "tree": self.tree.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.tree.load_state_dict(state["tree"])


class RankSampler(PriorityBase):
    """By rank: row i with probability ``P(i)`` in proportion to ``rank(i)^-alpha`` (section 3.3): outliers do not dominate.

    The rows are sorted again when ``stale`` of them have changed, so that ranks are a little behind, as in the paper; rows
    written since are drawn from then on.

    Args:
        alpha: 0 is uniform.
        beta: see :class:`PrioritizedSampler`.
        stale: the share of rows that may change before the rows are sorted again; 0 sorts for every sample.
    """

    def __init__(self, alpha: float = 0.7, beta: float = 0.5, *, stale: float = 0.01):
        super().__init__(alpha, beta)
        if not 0 <= stale < 1:
            raise ConfigError(explain("stale", "in [0, 1)", repr(stale), "Pass for example 0.01"))
        self.stale = stale

    def bind(self, capacity: int) -> None:
        self.values = torch.full((capacity,), -1.0, dtype=torch.float64)  # -1: no row
        self.mass = torch.arange(1, capacity + 1, dtype=torch.float64).pow_(-self.alpha).cumsum_(0)
        super().bind(capacity)

    def forget(self) -> None:
        """Forget the order."""
        self.order = torch.empty(0, dtype=torch.int64)
        self.changed = 0

    def sample(self, buffer: ReplayBuffer, batch_size: int) -> tuple[Tensor, Leaves]:
        self.settle()
        if not len(self.order) or self.changed > self.stale * len(self.order):
            filled = (self.values >= 0).nonzero().squeeze(-1)
            self.order = filled[self.values[filled].argsort(descending=True, stable=True)]
            self.changed = 0
        count = len(self.order)
        total = self.mass[count - 1]
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=buffer.generator)
        mass = (torch.arange(batch_size) + uniform) / batch_size * total
        rank = torch.searchsorted(self.mass[:count], mass, right=True).clamp_(max=count - 1)
        probability = (rank + 1.0).double().pow_(-self.alpha)
        return self.order[rank], self.weights(probability, float(count) ** -self.alpha)

    def enter(self, rows: Tensor, priority: Any) -> None:
        new = torch.as_tensor(priority).to(self.values)
        if not torch.isfinite(new).all():
            got = f"{int((~torch.isfinite(new)).sum())} of {len(new)} that are not"
            raise SpecError(explain("priority", "finite", got, "A NaN or infinite one often is a loss that diverged"))
        self.values[rows.cpu()] = new
        self.changed += len(rows)

    def priority(self, rows: Tensor) -> Tensor:
        """Return the priorities of rows ``[B]``."""
        self.settle()
        return self.values[rows]

    def clear(self) -> None:
        super().clear()
        self.values.fill_(-1.0)
        self.forget()

    def check_valid(self) -> None:
        if not torch.isfinite(self.values).all():
            fix = "Clear the buffer; something wrote to sampler.values"
            raise SpecError(explain("The priorities", "finite", "some that are not", fix))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "values": self.values, "order": self.order, "changed": self.changed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["values"].shape != self.values.shape:
            got, fix = f"of {len(state['values'])}", "Load them into a buffer of the capacity that they were saved from"
            raise ConfigError(explain("Saved priorities", f"of {len(self.values)} rows", got, fix))
        super().load_state_dict(state)
        self.values.copy_(state["values"])
        self.order, self.changed = state["order"], state["changed"]


def light(x: Tensor) -> Any:
    """Return a tensor as an array on a CPU: arithmetic on a few hundred numbers costs a third there."""
    return x.numpy() if x.device.type == "cpu" and x.dtype is not torch.bfloat16 else x
