"""Judging a policy from stored data, without running it: fitted Q evaluation, and a table of every estimator."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from rlbook import keys
from rlbook.distributions import Categorical
from rlbook.errors import ConfigError, MissingKeyError, NonFiniteError, SpecError, check_count, explain
from rlbook.functional.off_policy_evaluation import (
    Contributions,
    bootstrap_interval,
    cumulative_log_ratio,
    doubly_robust,
    effective_sample_size,
    episode_index,
    importance_sampling,
    per_decision_importance_sampling,
    student_t_interval,
)
from rlbook.functional.returns import td0_target
from rlbook.typing import Key, Leaves

IntervalMethod: TypeAlias = Literal["bca", "percentile", "student-t"]
_CHUNK = 2**15  # rows of one forward pass over the whole data


class Estimate(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FittedQ:
    """What :func:`fitted_q_evaluation` returns: a trained action-value function and what it says of the initial states."""

    qvalue: nn.Module
    """The trained module."""
    policy: Any
    """The policy that it judges."""
    gamma: float
    bootstrap: bool
    """Whether a truncated episode is worth something after its last step."""
    action_samples: int
    estimate: Estimate
    """Mean value of the initial states, with the interval of that mean."""
    history: list[dict[str, float]] = field(repr=False)
    """``loss`` and ``value`` after each iteration: both must have settled."""

    @torch.no_grad()
    def action_value(self, observation: Leaves, action: Tensor) -> Tensor:
        """Return ``Q(s, a)``, ``[B]``, for entries ``[B, ...]`` and actions ``[B, ...]``."""
        return _in_chunks(lambda rows, action: _action_value(self.qvalue, rows, action), observation, action)

    @torch.no_grad()
    def state_value(self, observation: Leaves) -> Tensor:
        """Return ``V(s) = E_pi Q(s, a)``, ``[B]``, for entries ``[B, ...]``."""
        return _in_chunks(lambda rows: _state_value(self.qvalue, self.policy, rows, self.action_samples), observation)


def fitted_q_evaluation(
    data: TensorDictBase,
    policy: Any,
    qvalue: nn.Module,
    gamma: float,
    *,
    iterations: int = 100,
    steps: int = 100,
    batch_size: int | None = 256,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = torch.optim.Adam,
    bootstrap: bool = True,
    action_samples: int = 8,
    level: float = 0.95,
) -> FittedQ:
    """Train ``Q`` to be the action-value function of ``policy``, by regression on its own targets; then read off the value.

    ::

        y   = r + gamma (1 - terminated) E_pi Q_k(s', a'),    Q_{k+1} = argmin_Q mean (Q(s, a) - y)^2
        V   = mean over initial states of E_pi Q(s, a)

    Each iteration freezes ``Q_k`` as the target network and takes ``steps`` gradient steps towards its targets. What lies k steps
    ahead is learnt in iteration k: about ``3 / (1 - gamma)`` iterations are needed, fewer if episodes are short. No importance
    ratios: the variance does not grow with the horizon, but the value is biased wherever ``Q`` generalises wrongly.

    Args:
        data: transitions in TED layout, ``[N, T]`` or ``[T]``; each row begins with an initial state.
        policy: an :class:`~rlbook.modules.Actor`, the policy to judge.
        qvalue: module called with the entries that the policy reads and the action; returns ``[B]`` or ``[B, 1]``. Trained in
            place, in its current mode.
        gamma: discount per step, in [0, 1].
        iterations: regressions; how many steps ahead the value looks.
        steps: gradient steps of one regression.
        batch_size: transitions of a gradient step; None for all, with which ``optimizer=torch.optim.LBFGS`` solves exactly.
        optimizer: makes the optimizer of each regression from parameters: ``functools.partial(torch.optim.Adam, lr=3e-4)``.
        bootstrap: go on after a time-out (truncated); False if a time-out is a real end of the task.
        action_samples: actions drawn for the mean over ``a'``; discrete actions (``Categorical``) are summed exactly.
        level: of the interval. It covers the chance of initial states, not the error of ``Q``.

    Returns:
        The trained Q, its estimate and its history.

    Raises:
        ConfigError: an argument is out of range, or there are fewer than 2 episodes.
        MissingKeyError: the data lack an entry.
        SpecError: ``qvalue`` returns another shape.
        NonFiniteError: the loss is NaN or infinite.

    Source: Le, Voloshin and Yue, Batch Policy Learning under Constraints (2019), algorithm 3.

    Example:
        >>> from rlbook import MLP, Pendulum
        >>> from rlbook.modules import make_actor
        >>> env = Pendulum(num_envs=4, seed=0)
        >>> data, actor = env.rollout(100), make_actor(env)
        >>> fitted = fitted_q_evaluation(data, actor, MLP(out_features=1), gamma=0.9, iterations=3, steps=5)
        >>> len(fitted.history)
        3
    """
    _check_counts(iterations=iterations, steps=steps, action_samples=action_samples)
    if not 0 <= gamma <= 1:
        raise ConfigError(explain("gamma", "in [0, 1]", repr(gamma), "Pass for example gamma=0.99"))
    steps_of = _transitions(data, policy)
    count = len(steps_of.reward)
    if batch_size is not None:
        _check_counts(batch_size=batch_size)
    index, _ = episode_index(steps_of.done)
    initial = {key: x[index[:, 0]] for key, x in steps_of.observation.items()}
    cut = (steps_of.terminated if bootstrap else steps_of.done).flatten()
    _action_value(qvalue, {key: x[:1] for key, x in initial.items()}, steps_of.action[:1])  # sizes a lazy network
    target, history = copy.deepcopy(qvalue), []
    for iteration in range(1, iterations + 1):
        target.load_state_dict(qvalue.state_dict())
        optim, losses = optimizer(qvalue.parameters()), []
        for _ in range(steps):
            rows = torch.arange(count) if batch_size is None else torch.randint(count, (batch_size,))
            rows = rows.to(cut.device)
            observation, following = ({k: x[rows] for k, x in o.items()} for o in (steps_of.observation, steps_of.following))
            with torch.no_grad():
                value = _state_value(target, policy, following, action_samples)
                y = td0_target(steps_of.reward[rows].to(value.dtype), value, cut[rows], gamma)
            losses.append(_gradient_step(qvalue, optim, observation, steps_of.action[rows], y))
        with torch.no_grad():
            values = _state_value(qvalue, policy, initial, action_samples).double()
        history.append({"loss": sum(losses) / steps, "value": values.mean().item()})
        _check_loss(history[-1], iteration)
    terms = Contributions(values.unsqueeze(-1), torch.ones_like(values).unsqueeze(-1))
    estimate = _estimate(terms, level, "bca", 1000)
    return FittedQ(qvalue, policy, gamma, bootstrap, action_samples, estimate, history)


@dataclass(frozen=True)
class OfflineEvaluation:
    """The estimates of :func:`evaluate_offline`, and the numbers that say whether to believe them. Printed, it is a table."""

    estimates: dict[str, Estimate]
    """``behavior`` is the mean return of the data as they are, completed by nothing; the others are of the target policy."""
    contributions: dict[str, Contributions]
    """What each episode adds, for intervals of your own."""
    effective_sample_size: Tensor
    """Episodes that are left of ``E`` after t steps, ``[T]``."""
    mean_ratio: Tensor
    """Mean of ``rho_{0:t}``, ``[T]``. It is 1, up to noise, if the behaviour log-probabilities are right and cover the policy."""
    level: float

    def __str__(self) -> str:
        title = f"{self.level:.0%} interval"
        lines = [f"{'':10} {'value':>12} {title:>27}"]
        lines += [f"{name:10} {e.value:12.4f}   [{e.low:11.4f},{e.high:11.4f}]" for name, e in self.estimates.items()]
        episodes = len(self.contributions["IS"].numerator)
        left, worst = self.effective_sample_size[-1], self.effective_sample_size.min()
        lines.append(f"effective sample size {left:.1f} of {episodes} episodes, {worst:.1f} at the worst step")
        return "\n".join([*lines, f"mean ratio {self.mean_ratio[-1]:.3f}, which should be near 1"])


@torch.no_grad()
def evaluate_offline(
    data: TensorDictBase,
    policy: Any,
    gamma: float,
    *,
    fitted: FittedQ | None = None,
    behavior: Any = None,
    level: float = 0.95,
    interval: IntervalMethod = "bca",
    resamples: int = 1000,
) -> OfflineEvaluation:
    """Estimate the discounted return of ``policy`` from the episodes of another one, in every way the data allow.

    ``IS`` and ``WIS`` weigh whole episodes, ``PDIS`` and ``WPDIS`` single rewards, W for the self-normalised form. With a
    fitted Q there are also ``FQE``, and the doubly robust ``DR`` and ``WDR``, whose intervals hold where Q was fitted to other
    episodes than these.

    With a fitted Q that bootstraps, an episode that was truncated, or that the data cut off, is completed by ``gamma V(s')`` in
    its last reward. Otherwise a truncated one ends there, and one that the data cut off is left out.

    Args:
        data: a dataset in TED layout, ``[N, T]`` or ``[T]``; each row begins with an initial state. It holds
            ``action_log_prob``, the log-probability of each action when it was taken, unless ``behavior`` is given.
        policy: an :class:`~rlbook.modules.Actor`, the policy to judge.
        gamma: discount per step, in [0, 1].
        fitted: what :func:`fitted_q_evaluation` returned for the same policy and discount.
        behavior: the Actor that made the data, or one cloned from it, instead of the stored log-probabilities.
        level: nominal probability that an interval covers the value.
        interval: "bca" or "percentile" from a bootstrap over episodes, or "student-t".
        resamples: of the bootstrap.

    Raises:
        ConfigError: an argument is out of range, ``fitted`` is of another policy or discount, or there are fewer than 2 episodes.
        MissingKeyError: the data lack an entry.
        NonFiniteError: a reward or a behaviour log-probability is not finite.

    Source: see :mod:`rlbook.functional.off_policy_evaluation`.

    Example:
        >>> from rlbook import CartPole
        >>> from rlbook.modules import make_actor
        >>> env = CartPole(num_envs=8, seed=0)
        >>> actor = make_actor(env)
        >>> result = evaluate_offline(env.rollout(200, actor), actor, gamma=0.99)
        >>> abs(result.estimates["IS"].value - result.estimates["behavior"].value) < 1e-3     # the policy that made the data
        True
    """
    _check_fitted(fitted, policy, gamma, interval)
    steps = _transitions(data, policy)
    behavior_log_prob = _behavior_log_prob(data, steps, behavior)
    log_prob = _in_chunks(lambda rows, action: policy.dist(rows).log_prob(action), steps.observation, steps.action)
    reward = steps.reward.double()
    completed = reward.clone()
    index, mask = episode_index(steps.done)
    last = index.gather(-1, mask.sum(-1, keepdim=True) - 1).squeeze(-1)
    if fitted is not None and fitted.bootstrap:
        open_end = last[~steps.terminated.flatten()[last]]
        completed[open_end] += gamma * fitted.state_value({k: x[open_end] for k, x in steps.following.items()}).double()
    else:
        whole = steps.done.flatten()[last]
        index, mask = index[whole], mask[whole]
    if not len(index):
        fix = "Store longer rows, or pass a fitted Q that completes the episodes"
        raise ConfigError(explain("The data", "one with at least 2 whole episodes", "none that is done", fix))
    episodes = (completed[index], log_prob.double()[index], behavior_log_prob.double()[index], mask, gamma)
    contributions = {"behavior": importance_sampling(reward[index], episodes[2], *episodes[2:])}
    for prefix, weighted in (("", False), ("W", True)):
        contributions[f"{prefix}IS"] = importance_sampling(*episodes, weighted=weighted)
        contributions[f"{prefix}PDIS"] = per_decision_importance_sampling(*episodes, weighted=weighted)
    if fitted is not None:
        q = fitted.action_value(steps.observation, steps.action).double()[index]
        v = fitted.state_value(steps.observation).double()[index]
        contributions |= {n: doubly_robust(*episodes, q, v, weighted=w) for n, w in (("DR", False), ("WDR", True))}
        first = v[:, :1]
        contributions["FQE"] = Contributions(first, torch.ones_like(first))
    estimates = {name: _estimate(x, level, interval, resamples) for name, x in contributions.items()}
    log_ratio = cumulative_log_ratio(*episodes[1:4])
    return OfflineEvaluation(estimates, contributions, effective_sample_size(log_ratio), log_ratio.exp().mean(0), level)


class _Transitions(NamedTuple):
    """Stored steps as rows ``[N * T, ...]``, and the flags as ``[N, T]``."""

    observation: Leaves
    action: Tensor
    following: Leaves
    reward: Tensor
    terminated: Tensor
    done: Tensor


def _transitions(data: TensorDictBase, policy: Any) -> _Transitions:
    """Read what an evaluation needs, or explain what is missing."""
    if not hasattr(policy, "dist"):
        fix = "Pass an Actor; one with a single likely action stands for a greedy policy"
        raise ConfigError(explain("policy", "one with dist(td)", type(policy).__name__, fix))
    if not isinstance(data, TensorDictBase):
        fix = "Read the rows of a dataset first: dataset[:]"
        raise SpecError(explain("The data", "a TensorDict", type(data).__name__, fix))
    if not data.batch_dims or not data.numel():
        raise SpecError(
            explain("The data", "[N, T] or [T], not empty", f"{list(data.batch_size)}", "Pass a rollout or a dataset")
        )
    roots: tuple[Key, ...] = (*policy.in_keys, keys.ACTION)
    outcomes = (*policy.in_keys, keys.REWARD, keys.TERMINATED, keys.DONE)
    wanted: list[Key] = [*roots, *((keys.NEXT, *keys.as_tuple(key)) for key in outcomes)]
    missing = [keys.pretty(key) for key in wanted if data.get(key, None) is None]
    if missing:
        got = f"the keys {sorted(keys.pretty(key) for key in data.keys(True, True))}"
        raise MissingKeyError(
            explain("The data", f"transitions with {missing}", got, "Store env.rollout's or a Collector's data")
        )
    time = data.batch_size[-1]
    flat: Any = data.select(*wanted).reshape(-1)
    nxt = flat[keys.NEXT]
    reward = nxt[keys.REWARD]
    _check_finite(keys.pretty((keys.NEXT, keys.REWARD)), reward, "Leave out the episodes that hold it")
    flags = (nxt[key].reshape(-1, time) for key in (keys.TERMINATED, keys.DONE))
    observation, following = ({key: td[key] for key in policy.in_keys} for td in (flat, nxt))
    return _Transitions(observation, flat[keys.ACTION], following, reward, *flags)


def _behavior_log_prob(data: TensorDictBase, steps: _Transitions, behavior: Any) -> Tensor:
    """Return the log-probability of each action under the policy that acted, ``[N * T]``."""
    if behavior is not None:
        log_prob = _in_chunks(lambda rows, action: behavior.dist(rows).log_prob(action), steps.observation, steps.action)
        fix = "The given behaviour policy rules out an action that was taken: clone one with a wider distribution"
    elif keys.LOG_PROB in data.keys():
        log_prob = data[keys.LOG_PROB].reshape(-1)
        fix = "Store the log-probability of the action as it was taken; a deterministic behaviour cannot be reweighted"
    else:
        fix = (
            "Estimate the behaviour policy by behaviour cloning: train an Actor on the data to maximise "
            "actor.dist(batch).log_prob(batch['action']).mean(), and pass behavior=actor"
        )
        got = f"the keys {sorted(keys.pretty(key) for key in data.keys())}"
        raise MissingKeyError(explain("The data", f"one with {keys.LOG_PROB}, or with a behavior", got, fix))
    _check_finite("The behaviour policy's log-probability of each stored action", log_prob, fix)
    return log_prob


def _action_value(qvalue: nn.Module, observation: Leaves, action: Tensor) -> Tensor:
    """Return ``Q(s, a)``, ``[B]``."""
    out, count = qvalue(*observation.values(), action), len(action)
    if out.shape not in ((count,), (count, 1)):
        fix = "Give it one output; a table of all actions needs .gather(-1, action.unsqueeze(-1))"
        raise SpecError(explain("The output of qvalue", f"[{count}] or [{count}, 1]", f"{list(out.shape)}", fix))
    return out.reshape(count)


def _state_value(qvalue: nn.Module, policy: Any, observation: Leaves, samples: int) -> Tensor:
    """Return ``E_pi Q(s, a)``, ``[B]``: the exact sum over the choices of a categorical policy, else a mean over samples."""
    dist = policy.dist(observation)
    if isinstance(dist, Categorical):
        weight = dist.probs.mT
        actions = torch.arange(len(weight), device=weight.device).unsqueeze(-1).expand(weight.shape)
    else:
        actions = torch.stack([dist.sample() for _ in range(samples)])
        weight = 1.0 / samples
    rows = {key: x.expand(len(actions), *x.shape).flatten(0, 1) for key, x in observation.items()}
    q = _action_value(qvalue, rows, actions.flatten(0, 1)).reshape(len(actions), -1)
    return (weight * q).sum(0)


def _gradient_step(qvalue: nn.Module, optim: torch.optim.Optimizer, observation: Leaves, action: Tensor, y: Tensor) -> float:
    """Take one step towards the targets; return the loss before it."""

    def closure() -> Tensor:
        optim.zero_grad()
        loss = (_action_value(qvalue, observation, action) - y).square().mean()
        loss.backward()
        return loss.detach()

    return float(optim.step(closure))  # pyright: ignore[reportArgumentType, reportCallIssue]


def _in_chunks(f: Callable[..., Tensor], observation: Leaves, *others: Tensor) -> Tensor:
    """Apply a function of entries and tensors to a limited number of rows at a time."""

    def chunks() -> Iterator[Tensor]:
        for rows in zip(*(x.split(_CHUNK) for x in (*observation.values(), *others)), strict=True):
            yield f(dict(zip(observation, rows, strict=False)), *rows[len(observation) :])

    return torch.cat(list(chunks()))


def _estimate(contributions: Contributions, level: float, interval: IntervalMethod, resamples: int) -> Estimate:
    """Return the value with the interval that was asked for."""
    if interval == "student-t":
        low, high = student_t_interval(contributions, level)
    else:
        same_draws = torch.Generator(contributions.numerator.device).manual_seed(0)  # for every estimator: they stay comparable
        low, high = bootstrap_interval(contributions, level, resamples=resamples, bca=interval == "bca", generator=same_draws)
    return Estimate(contributions.value.item(), low.item(), high.item())


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        check_count(name, count, example=100)


def _check_finite(what: str, x: Tensor, fix: str) -> None:
    bad = int((~x.isfinite()).sum())
    if bad:
        raise NonFiniteError(explain(what, "finite", f"{bad} of {x.numel()} that are not", fix))


def _check_loss(row: dict[str, float], iteration: int) -> None:
    if not all(map(math.isfinite, row.values())):
        fix = "Lower the learning rate, scale the rewards, or take more steps per iteration"
        raise NonFiniteError(explain("The loss of fitted Q evaluation", "finite", f"{row} in iteration {iteration}", fix))


def _check_fitted(fitted: FittedQ | None, policy: Any, gamma: float, interval: str) -> None:
    if interval not in ("bca", "percentile", "student-t"):
        fix = 'Pass interval="bca"'
        raise ConfigError(explain("interval", '"bca", "percentile" or "student-t"', repr(interval), fix))
    if fitted is not None and (fitted.policy is not policy or fitted.gamma != gamma):
        what = "another policy" if fitted.policy is not policy else f"gamma={fitted.gamma}"
        fix = "Run fitted_q_evaluation with the same policy and gamma"
        raise ConfigError(explain("fitted", f"of the same policy and gamma={gamma}", f"one of {what}", fix))
