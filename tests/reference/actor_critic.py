"""The off-policy actor-critic losses, slowly: row by row in double precision; gradients by differences.

Networks are small enough to write down. ``w`` and ``fixed`` map the names of a loss's ``state_dict`` to arrays. Both hold the
same numbers; a gradient is taken in ``w`` alone, so what a term must not train is read from ``fixed``.

The policy is linear in the state, ``(mean, log_std) = W s + b`` with ``log_std`` clipped to [-20, 2]. A critic is bilinear: its
output k is ``p_k . s + r_k . a + s' M_k a + c_k``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cosh, exp, log, log1p, pi, tanh

import numpy as np

Arrays = dict[str, np.ndarray]


def gradient(term: Callable[[Arrays], float], w: Arrays, name: str, eps: float = 1e-6) -> np.ndarray:
    """Return the derivative of a term in each number of ``w[name]``, by central differences."""
    grad = np.zeros_like(w[name])
    for index in np.ndindex(grad.shape):
        ends = []
        for sign in (1, -1):
            shifted = w[name].copy()
            shifted[index] += sign * eps
            ends.append(term({**w, name: shifted}))
        grad[index] = (ends[0] - ends[1]) / (2 * eps)
    return grad


# ---- networks ----------------------------------------------------------------------------------------------------------------
def linear(w: Arrays, part: str, s: np.ndarray) -> np.ndarray:
    return w[f"{part}.net.weight"] @ s + w[f"{part}.net.bias"]


def critic(w: Arrays, net: str, s: np.ndarray, a: np.ndarray) -> np.ndarray:
    return w[f"{net}.p"] @ s + w[f"{net}.r"] @ a + np.array([s @ m @ a for m in w[f"{net}.m"]]) + w[f"{net}.c"]


def members(w: Arrays, part: str, n: int, s: np.ndarray, a: np.ndarray) -> list[np.ndarray]:
    return [critic(w, f"{part}.net.{i}", s, a) for i in range(n)]


def squash(z: float, low: float, high: float) -> float:
    return low + (tanh(z) + 1) / 2 * (high - low)


def normal(w: Arrays, part: str, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the log standard deviation of a policy."""
    mean, log_std = np.split(linear(w, part, s), 2)
    return mean, np.clip(log_std, -20, 2)


def sample(w: Arrays, s: np.ndarray, eps: np.ndarray, bounds: tuple[float, float]) -> tuple[np.ndarray, float]:
    """Return a squashed normal action of the actor and its log-probability."""
    mean, log_std = normal(w, "actor", s)
    action, log_prob = [], 0.0
    for m, ls, e in zip(mean, log_std, eps, strict=True):
        z = m + exp(ls) * e
        action.append(squash(z, *bounds))
        log_slope = log((bounds[1] - bounds[0]) / 2) - 2 * log(cosh(z))  # 1 - tanh^2 = 1 / cosh^2
        log_prob += -e * e / 2 - ls - log(2 * pi) / 2 - log_slope
    return np.array(action), log_prob


def greedy(w: Arrays, s: np.ndarray, bounds: tuple[float, float], part: str = "actor") -> np.ndarray:
    return np.array([squash(z, *bounds) for z in linear(w, part, s)])


def mean_over(rows: int, f: Callable[[int], float]) -> float:
    return sum(f(i) for i in range(rows)) / rows


def target(data: Arrays, i: int, next_value: float) -> float:
    return data["reward"][i] + (0.0 if data["terminated"][i] else data["discount"][i] * next_value)


# ---- losses: each returns its terms ------------------------------------------------------------------------------------------
def ddpg(w, fixed, data, noise, *, n, bounds, smooth: tuple[float, float] | None = None) -> dict[str, float]:
    """DDPG; with ``smooth`` (scale and clip, as shares of half the range) TD3."""

    def value(i: int) -> float:
        a = greedy(fixed, data["next"][i], bounds, "target_actor")
        if smooth is not None:
            half = (bounds[1] - bounds[0]) / 2
            shift = [max(-smooth[1], min(smooth[1], smooth[0] * e)) * half for e in noise["next_action"][i]]
            a = np.array([max(bounds[0], min(bounds[1], x + d)) for x, d in zip(a, shift, strict=True)])
        y = target(data, i, min(q[0] for q in members(fixed, "target_qvalue", n, data["next"][i], a)))
        return data["weight"][i] * sum((q[0] - y) ** 2 for q in members(w, "qvalue", n, data["s"][i], data["a"][i]))

    def actor(i: int) -> float:
        return -critic(fixed, "qvalue.net.0", data["s"][i], greedy(w, data["s"][i], bounds))[0]

    rows = len(data["s"])
    return {"loss_value": mean_over(rows, value), "loss_actor": mean_over(rows, actor)}


def soft(w, fixed, data, noise, *, n, bounds, target_entropy, subset=None, mean=False) -> dict[str, float]:
    """SAC; with a subset of critics in the target and their mean in the actor's term REDQ."""
    alpha, rows = exp(fixed["log_alpha"]), len(data["s"])

    def value(i: int) -> float:
        a, log_prob = sample(fixed, data["next"][i], noise["next_action"][i], bounds)
        q = [x[0] for x in members(fixed, "target_qvalue", n, data["next"][i], a)]
        y = target(data, i, min(q[k] for k in (range(n) if subset is None else subset)) - alpha * log_prob)
        return data["weight"][i] * sum((x[0] - y) ** 2 for x in members(w, "qvalue", n, data["s"][i], data["a"][i]))

    def actor(i: int) -> float:
        a, log_prob = sample(w, data["s"][i], noise["action"][i], bounds)
        q = [x[0] for x in members(fixed, "qvalue", n, data["s"][i], a)]
        return alpha * log_prob - (sum(q) / n if mean else min(q))

    def temperature(i: int) -> float:
        return -float(w["log_alpha"]) * (sample(fixed, data["s"][i], noise["action"][i], bounds)[1] + target_entropy)

    parts = {"loss_value": value, "loss_actor": actor, "loss_alpha": temperature}
    return {name: mean_over(rows, part) for name, part in parts.items()}


def soft_v1(w, fixed, data, noise, *, n, bounds, target_entropy) -> dict[str, float]:
    """SAC with a value network."""
    alpha, rows = exp(fixed["log_alpha"]), len(data["s"])

    def value(i: int) -> float:
        y = target(data, i, linear(fixed, "target_value", data["next"][i])[0])
        return data["weight"][i] * sum((x[0] - y) ** 2 for x in members(w, "qvalue", n, data["s"][i], data["a"][i]))

    def state_value(i: int) -> float:
        a, log_prob = sample(fixed, data["s"][i], noise["action"][i], bounds)
        y = min(x[0] for x in members(fixed, "qvalue", n, data["s"][i], a)) - alpha * log_prob
        return data["weight"][i] * (linear(w, "value", data["s"][i])[0] - y) ** 2

    others = soft(w, {**fixed, **{f"target_{k}": v for k, v in fixed.items() if k.startswith("qvalue")}}, data,
                  {**noise, "next_action": noise["action"]}, n=n, bounds=bounds, target_entropy=target_entropy)  # fmt: skip
    return {**others, "loss_value": mean_over(rows, value), "loss_state_value": mean_over(rows, state_value)}


def quantile_soft(w, fixed, data, noise, *, n, bounds, target_entropy, drop) -> dict[str, float]:
    """TQC."""
    alpha, rows = exp(fixed["log_alpha"]), len(data["s"])

    def value(i: int) -> float:
        a, log_prob = sample(fixed, data["next"][i], noise["next_action"][i], bounds)
        atoms = members(fixed, "target_qvalue", n, data["next"][i], a)
        pool = sorted(float(z) for q in atoms for z in q)[: n * (len(atoms[0]) - drop)]
        y = [target(data, i, z - alpha * log_prob) for z in pool]
        total = 0.0
        for quantiles in members(w, "qvalue", n, data["s"][i], data["a"][i]):
            for j, theta in enumerate(quantiles):
                tau = (2 * j + 1) / (2 * len(quantiles))
                for z in y:
                    u = z - theta
                    huber = u * u / 2 if abs(u) <= 1 else abs(u) - 0.5
                    total += abs(tau - (u < 0)) * huber / len(y) / len(quantiles)
        return data["weight"][i] * total

    def actor(i: int) -> float:
        a, log_prob = sample(w, data["s"][i], noise["action"][i], bounds)
        return alpha * log_prob - float(np.mean(members(fixed, "qvalue", n, data["s"][i], a)))

    def temperature(i: int) -> float:
        return -float(w["log_alpha"]) * (sample(fixed, data["s"][i], noise["action"][i], bounds)[1] + target_entropy)

    parts = {"loss_value": value, "loss_actor": actor, "loss_alpha": temperature}
    return {name: mean_over(rows, part) for name, part in parts.items()}


def normed(w: Arrays, net: str, rows: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    """Normalise the rows of ``(s, a)`` with the statistics given."""
    return (rows - mean) / np.sqrt(var + 1e-3) * w[f"{net}.norm.weight"] + w[f"{net}.norm.bias"]


def cross(w, fixed, data, noise, *, n, bounds, target_entropy, momentum) -> dict[str, float]:
    """CrossQ, with one batch normalisation of the critics' inputs in its warm-up."""
    alpha, rows, size = exp(fixed["log_alpha"]), len(data["s"]), data["s"].shape[1]
    drawn = [sample(fixed, data["next"][i], noise["next_action"][i], bounds) for i in range(rows)]
    both = np.concatenate(
        (np.hstack((data["s"], data["a"])), np.hstack((data["next"], np.array([action for action, _ in drawn]))))
    )
    mean, var = both.mean(0), both.var(0)
    after = momentum * mean, (1 - momentum) + momentum * var  # running statistics, from 0 and 1

    def q(v: Arrays, i: int, row: np.ndarray, stats: tuple[np.ndarray, np.ndarray]) -> float:
        x = normed(v, f"qvalue.net.{i}", row, *stats)
        return critic(v, f"qvalue.net.{i}", x[:size], x[size:])[0]

    def value(i: int) -> float:
        next_value = min(q(fixed, k, both[rows + i], (mean, var)) for k in range(n)) - alpha * drawn[i][1]
        y = target(data, i, next_value)
        return data["weight"][i] * sum((q(w, k, both[i], (mean, var)) - y) ** 2 for k in range(n))

    def actor(i: int) -> float:
        a, log_prob = sample(w, data["s"][i], noise["action"][i], bounds)
        return alpha * log_prob - min(q(fixed, k, np.concatenate((data["s"][i], a)), after) for k in range(n))

    def temperature(i: int) -> float:
        return -float(w["log_alpha"]) * (sample(fixed, data["s"][i], noise["action"][i], bounds)[1] + target_entropy)

    parts = {"loss_value": value, "loss_actor": actor, "loss_alpha": temperature}
    return {name: mean_over(rows, part) for name, part in parts.items()}


def discrete_soft(w, fixed, data, noise, *, n, target_entropy) -> dict[str, float]:
    """SAC for discrete actions; the critics are linear."""
    alpha, rows = exp(fixed["log_alpha"]), len(data["s"])

    def policy(v: Arrays, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = linear(v, "actor", s)
        p = np.exp(logits) / np.exp(logits).sum()
        return p, np.log(p)

    def q(v: Arrays, part: str, i: int, s: np.ndarray) -> np.ndarray:
        return v[f"{part}.net.{i}.weight"] @ s + v[f"{part}.net.{i}.bias"]

    def value(i: int) -> float:
        p, log_p = policy(fixed, data["next"][i])
        least = np.minimum.reduce([q(fixed, "target_qvalue", k, data["next"][i]) for k in range(n)])
        y = target(data, i, sum(p * (least - alpha * log_p)))
        return data["weight"][i] * sum((q(w, "qvalue", k, data["s"][i])[data["a"][i]] - y) ** 2 for k in range(n))

    def actor(i: int) -> float:
        p, log_p = policy(w, data["s"][i])
        least = np.minimum.reduce([q(fixed, "qvalue", k, data["s"][i]) for k in range(n)])
        return sum(p * (alpha * log_p - least))

    def temperature(i: int) -> float:
        p, log_p = policy(fixed, data["s"][i])
        return -float(w["log_alpha"]) * (sum(p * log_p) + target_entropy)

    parts = {"loss_value": value, "loss_actor": actor, "loss_alpha": temperature}
    return {name: mean_over(rows, part) for name, part in parts.items()}


def softplus(x: float) -> float:
    return log1p(exp(x)) + 1e-8


def kl(m0: float, ls0: float, m1: float, ls1: float) -> float:
    """Return ``KL(N_0 || N_1)`` of two normals."""
    return ls1 - ls0 + (exp(2 * ls0) + (m0 - m1) ** 2) / (2 * exp(2 * ls1)) - 0.5


def mpo(w, fixed, data, noise, *, n, bounds, epsilon, epsilon_mean, epsilon_std) -> dict[str, float]:
    """MPO; the multipliers are softplus of their parameters."""
    rows, dims = len(data["s"]), data["a"].shape[1]

    def drawn(s: np.ndarray, eps: np.ndarray) -> tuple[list[np.ndarray], list[float]]:
        mean, log_std = normal(fixed, "target_actor", s)
        zs = [mean + np.exp(log_std) * e for e in eps]
        actions = [np.array([squash(x, *bounds) for x in z]) for z in zs]
        return zs, [min(q[0] for q in members(fixed, "target_qvalue", n, s, a)) for a in actions]

    def value(i: int) -> float:
        _, values = drawn(data["next"][i], noise["next_actions"][i])
        y = target(data, i, sum(values) / len(values))
        return data["weight"][i] * sum((q[0] - y) ** 2 for q in members(w, "qvalue", n, data["s"][i], data["a"][i]))

    def temperature(i: int) -> float:
        eta, (_, values) = softplus(float(w["dual_temperature"])), drawn(data["s"][i], noise["actions"][i])
        return eta * epsilon + eta * log(sum(exp(x / eta) for x in values) / len(values))

    def fit(i: int) -> float:
        eta, (zs, values) = softplus(float(fixed["dual_temperature"])), drawn(data["s"][i], noise["actions"][i])
        weights = [exp(x / eta) / sum(exp(y / eta) for y in values) for x in values]
        (mean, log_std), (old_mean, old_log_std) = normal(w, "actor", data["s"][i]), normal(fixed, "target_actor", data["s"][i])
        total = 0.0
        for weight, z in zip(weights, zs, strict=True):
            for m, ls in ((mean, old_log_std), (old_mean, log_std)):
                total -= weight * sum(-(((z - m) / np.exp(ls)) ** 2) / 2 - ls - log(2 * pi) / 2)
        return total

    def divergence(v: Arrays, d: int) -> tuple[float, float]:
        """What the mean and what the deviation of dimension ``d`` add, by the formula of one-dimensional normals."""
        pairs = [(*normal(fixed, "target_actor", s), *normal(v, "actor", s)) for s in data["s"]]
        of_mean = [kl(m0[d], s0[d], m1[d], s0[d]) for m0, s0, m1, _ in pairs]
        of_std = [kl(m0[d], s0[d], m0[d], s1[d]) for m0, s0, _, s1 in pairs]
        return sum(of_mean) / rows, sum(of_std) / rows

    bound, dual = (epsilon_mean, epsilon_std), ("dual_mean", "dual_std")
    penalty = sum(softplus(fixed[dual[j]][d]) * divergence(w, d)[j] for d in range(dims) for j in range(2))
    alpha = sum(softplus(w[dual[j]][d]) * (bound[j] - divergence(fixed, d)[j]) for d in range(dims) for j in range(2))
    return {
        "loss_value": mean_over(rows, value),
        "loss_temperature": mean_over(rows, temperature),
        "loss_actor": mean_over(rows, fit) + penalty,
        "loss_alpha": alpha,
    }
