"""Recurrent replay: double Q-learning on sequences, by a network that remembers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, check_count, explain
from rlbook.functional import chosen_value, n_step_return
from rlbook.functional.rescaling import squash_value, unsquash_value
from rlbook.losses.base import Terms, check_single, next_of, unique
from rlbook.losses.dqn import DISTANCES, DQNLoss
from rlbook.modules.recurrent import Carrying, warm_up

if TYPE_CHECKING:
    from rlbook.modules.qvalue import QValueActor
    from rlbook.typing import Key, Leaves


class R2D2Loss(DQNLoss):
    r"""Double Q-learning on sequences ``[B, T]``, with n-step returns on a squashed scale.

    .. math::
        y_t &= h(\sum_{k<n} \gamma^k r_{t+k} + \gamma^n h^{-1}(Q_{\theta'}(s_{t+n}, \arg\max_a Q_\theta(s_{t+n}, a)))) \\
        loss\_value &= E[w \, d(Q_\theta(s_t, a_t), y_t)], \quad h(x) = sign(x) (\sqrt{|x| + 1} - 1) + \epsilon x

    where :math:`s_t` stands for the observation and the state of the network's memory. Both networks start from the state that
    acting has stored at the first step, find a better one in the first ``burn_in`` steps, and learn from the others.

    Args:
        qvalue: action values with a recurrent network; trained by ``loss_value``.
        gamma: discount, in [0, 1].
        n: steps of the return; fewer where the episode or the sequence ends.
        burn_in: steps at the beginning of each sequence that only find the state, fewer than T.
        double, distance: see :class:`~rlbook.losses.DQNLoss`.
        squash: learn values on the scale :math:`h`, on which large returns are not much larger than small ones.

    A batch has sequences of what :class:`~rlbook.losses.DQNLoss` reads, and ``next.done`` and the state that acting left. Where
    it has a ``mask``, only the steps where that is True are learnt from (padding); where it has a ``weight``, they are weighted.

    Returns (from a call): ``loss_value``, ``loss``; diagnostics ``q_mean``, ``target_mean``, and ``td_error`` ``[B, T]``, zero in
    the burn-in: hand it to ``buffer.update_priority``.

    Source: Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement Learning", section 2.3 and 3.
    Deviates: the mean is over all steps of the batch that are learnt from.

    Example:
        >>> from rlbook import QValueActor
        >>> from rlbook.envs import TMaze
        >>> from rlbook.modules import GRU
        >>> env = TMaze(num_envs=4, length=5, seed=0)
        >>> loss_fn = R2D2Loss(QValueActor(GRU(4, 3), env.action_spec), burn_in=4)
        >>> loss_fn(env.rollout(32, loss_fn.qvalue))["loss"].backward()
    """

    optional_keys = (keys.WEIGHT, keys.MASK, keys.ACTION_MASK, (keys.NEXT, keys.ACTION_MASK))

    def __init__(
        self, qvalue: QValueActor, *, gamma: float = 0.99, n: int = 5, burn_in: int = 0, squash: bool = True, **options: Any
    ):
        if getattr(qvalue, "state_key", None) is None:
            fix = "Pass for example QValueActor(GRU(num_actions, in_features), env.action_spec), or use DQNLoss"
            raise ConfigError(explain("qvalue", "a QValueActor with a recurrent network", type(qvalue).__name__, fix))
        check_single(qvalue, "Pass a single network; DQNLoss learns several")
        check_count("n", n, example=5)
        check_count("burn_in", burn_in, 0, example=5)
        super().__init__(qvalue, gamma=gamma, **options)
        self.n, self.burn_in, self.squash = n, burn_in, squash

    @property
    def in_keys(self) -> tuple[Key, ...]:
        """Observation, action, outcome, and the state at the first step."""
        outcome = (keys.NEXT, keys.REWARD), (keys.NEXT, keys.TERMINATED)
        return unique(*self.qvalue.in_keys, keys.ACTION, *next_of(self.qvalue.obs_keys), *outcome)

    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """See the class."""
        steps = Carrying.of(warm_up(self.qvalue, batch, self.burn_in))
        value = self.qvalue.pick(self.qvalue.values(steps), steps[keys.ACTION])
        target = self.target_of_steps(batch, steps)
        distance = DISTANCES[self.distance](value, target)
        learnt = steps.get(keys.MASK, torch.ones_like(value, dtype=torch.bool))
        weight = learnt * steps[keys.WEIGHT].detach() if keys.WEIGHT in steps else learnt
        total = learnt.sum().clamp(min=1)
        error = ((target - value).abs() * learnt).detach()
        diagnostics = {
            keys.TD_ERROR: torch.nn.functional.pad(error, (self.burn_in, 0)),
            "q_mean": (value * learnt).sum() / total,
            "target_mean": (target * learnt).sum() / total,
        }
        return {"loss_value": (weight * distance).sum() / total}, diagnostics

    @torch.no_grad()
    def target_of_steps(self, batch: TensorDictBase, steps: Carrying) -> Tensor:
        """Return what the values should be, ``[B, T - burn_in]``; ``steps`` holds the learnt network's states after each step."""
        after: Any = self.qvalue.state_key
        reward, terminated, done = (steps[keys.NEXT, key] for key in (keys.REWARD, keys.TERMINATED, keys.DONE))
        if keys.MASK in steps:  # what pads a sequence is no part of a return; the last column, which rolls in, ends one anyway
            done = done | ~steps[keys.MASK].roll(-1, -1)
        nxt: Leaves = {key: steps[keys.NEXT, *keys.as_tuple(key)] for key in self.qvalue.obs_keys}
        if (keys.NEXT, keys.ACTION_MASK) in steps:
            nxt[keys.ACTION_MASK] = steps[keys.NEXT, keys.ACTION_MASK]
        # one step more for each step, from the state after it: right at the end of a sequence and at time-outs as well
        state = self.target_qvalue.after(warm_up(self.target_qvalue, batch, self.burn_in))
        values = self.target_qvalue.values({**nxt, after: state})
        chooser = self.qvalue.values({**nxt, after: steps[keys.NEXT, *after]}) if self.is_double else values
        value = chosen_value(values, self.qvalue.allowed(chooser, nxt).argmax(-1))
        if not self.squash:
            return n_step_return(reward, value, terminated, done, self.gamma, self.n)
        return squash_value(n_step_return(reward, unsquash_value(value), terminated, done, self.gamma, self.n))
