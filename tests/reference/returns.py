"""Slow returns in float64 NumPy, each written as the definition in its paper and not as the recursion that the library runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _each(function, *arrays: ArrayLike) -> Array:
    """Apply a function of rows ``[T]`` to every row of arrays ``[*, T]``."""
    shape = np.shape(arrays[0])
    rows = zip(*(np.asarray(x).reshape(-1, shape[-1]) for x in arrays), strict=True)
    return np.array([function(*row) for row in rows], dtype=np.float64).reshape(shape)


def _bootstrap(next_value: Array, terminated: NDArray[np.bool_]) -> Array:
    return np.where(terminated, 0.0, next_value).astype(np.float64)


def reverse_scan(a: ArrayLike, b: ArrayLike, last: ArrayLike = 0.0) -> Array:
    """The loop itself: ``x_t = a_t + b_t x_{t+1}``."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    x, after = np.empty_like(a), np.broadcast_to(np.asarray(last, np.float64), a.shape[:-1])
    for t in reversed(range(a.shape[-1])):
        after = x[..., t] = a[..., t] + b[..., t] * after
    return x


def generalized_advantage(reward, value, next_value, terminated, done, gamma: float, gae_lambda: float) -> Array:
    """``A_t = sum_k (gamma lambda)^k delta_{t+k}``, up to the end of the episode."""

    def row(r, v, nv, terminated, done):
        delta = r + gamma * _bootstrap(nv, terminated) - v
        return [sum((gamma * gae_lambda) ** k * delta[t + k] for k in range(_length(done, t))) for t in range(len(r))]

    return _each(row, *_float64(reward, value, next_value), terminated, done)


def reward_to_go(reward, done, gamma: float, last: ArrayLike | None = None) -> Array:
    """``G_t = sum_k gamma^k r_{t+k}``, up to the end of the episode, and ``gamma^k last`` where the rollout ends first."""
    reward = np.asarray(reward, np.float64)
    tail = np.zeros(reward.shape[:-1]) if last is None else np.asarray(last, np.float64)

    def row(r, done, tail):
        result = [sum(gamma**k * r[t + k] for k in range(_length(done, t))) for t in range(len(r))]
        return [g + gamma ** (len(r) - t) * tail[0] * (not done[t:].any()) for t, g in enumerate(result)]

    return _each(row, reward, done, np.broadcast_to(tail[..., None], reward.shape))


def n_step_return(reward, next_value, terminated, done, gamma: float, n: int) -> Array:
    """``G_t = sum_{k<m} gamma^k r_{t+k} + gamma^m V'_{t+m-1}`` with ``m = min(n, steps left in the episode)``."""

    def row(r, nv, terminated, done):
        boot = _bootstrap(nv, terminated)
        return [_n_step(r, boot, t, min(n, _length(done, t)), gamma) for t in range(len(r))]

    return _each(row, *_float64(reward, next_value), terminated, done)


def td_lambda_return(reward, next_value, terminated, done, gamma: float, td_lambda: float) -> Array:
    """``G_t = (1 - lambda) sum_{n<m} lambda^{n-1} G^n_t + lambda^{m-1} G^m_t`` with m steps left in the episode."""

    def row(r, nv, terminated, done):
        boot, result = _bootstrap(nv, terminated), []
        for t in range(len(r)):
            m = _length(done, t)
            mixed = sum(td_lambda ** (n - 1) * _n_step(r, boot, t, n, gamma) for n in range(1, m))
            result.append((1 - td_lambda) * mixed + td_lambda ** (m - 1) * _n_step(r, boot, t, m, gamma))
        return result

    return _each(row, *_float64(reward, next_value), terminated, done)


def q_lambda_return(reward, next_value, terminated, done, greedy, gamma: float, td_lambda: float) -> Array:
    """The mixture of n-step returns that stops before an action that is not greedy: ``greedy`` true everywhere gives Peng's.

    ``G_t = sum_n (prod_{i<n-1} l_{t+i}) (1 - l_{t+n-1}) G^n_t`` with ``l_k = lambda greedy_{k+1}``, 0 at the end of the episode.
    """

    def row(r, nv, terminated, done, greedy):
        boot, result = _bootstrap(nv, terminated), []
        for t in range(len(r)):
            m = _length(done, t)
            follow = [td_lambda * greedy[t + n] if n < m else 0.0 for n in range(1, m + 1)]
            terms = [np.prod(follow[: n - 1]) * (1 - follow[n - 1]) * _n_step(r, boot, t, n, gamma) for n in range(1, m + 1)]
            result.append(sum(terms))
        return result

    return _each(row, *_float64(reward, next_value), terminated, done, greedy)


def retrace(reward, action_value, next_value, terminated, done, ratio, gamma: float, td_lambda: float, c_clip: float) -> Array:
    """``G_t = Q_t + sum_k gamma^k (prod_{1<=i<=k} c_{t+i}) delta_{t+k}``, up to the end of the episode."""

    def row(r, q, nv, terminated, done, ratio):
        c = td_lambda * np.minimum(ratio, c_clip)
        delta = r + gamma * _bootstrap(nv, terminated) - q
        sums = [
            sum(gamma**k * np.prod(c[t + 1 : t + k + 1]) * delta[t + k] for k in range(_length(done, t))) for t in range(len(r))
        ]
        return q + np.array(sums)

    return _each(row, *_float64(reward, action_value, next_value), np.asarray(terminated), np.asarray(done), *_float64(ratio))


def v_trace(
    reward, value, next_value, terminated, done, ratio, gamma: float, rho_clip: float, c_clip: float, td_lambda: float
) -> tuple[Array, Array]:
    """``v_t = V_t + sum_k gamma^k (prod_{i<k} c_{t+i}) rho_{t+k} delta_{t+k}``; ``A_t = rho_t (r_t + gamma v_{t+1} - V_t)``."""

    def target(r, v, nv, terminated, done, ratio):
        rho, c = np.minimum(ratio, rho_clip), td_lambda * np.minimum(ratio, c_clip)
        delta = rho * (r + gamma * _bootstrap(nv, terminated) - v)
        sums = [sum(gamma**k * np.prod(c[t : t + k]) * delta[t + k] for k in range(_length(done, t))) for t in range(len(r))]
        return v + np.array(sums)

    def advantage(r, v, nv, terminated, done, ratio):
        following = _bootstrap(nv, terminated)  # v_{t+1} where the next step is of the same episode, V(s'_t) where not
        corrected = target(r, v, nv, terminated, done, ratio)
        for t in range(len(r) - 1):
            following[t] += 0.0 if done[t] else corrected[t + 1] - v[t + 1]
        return np.minimum(ratio, rho_clip) * (r + gamma * following - v)

    arrays = (*_float64(reward, value, next_value), np.asarray(terminated), np.asarray(done), *_float64(ratio))
    return _each(advantage, *arrays), _each(target, *arrays)


def _float64(*arrays: ArrayLike) -> list[Array]:
    return [np.asarray(x, np.float64) for x in arrays]


def _length(done: NDArray[np.bool_], t: int) -> int:
    """Return how many steps from ``t`` on belong to its episode."""
    ends = np.flatnonzero(done[t:])
    return int(ends[0]) + 1 if len(ends) else len(done) - t


def _n_step(r: Array, bootstrap: Array, t: int, n: int, gamma: float) -> float:
    return sum(gamma**k * r[t + k] for k in range(n)) + gamma**n * bootstrap[t + n - 1]
