"""Slow losses of action values in float64 NumPy: one row at a time, gradients from the calculus and not from autograd.

Each takes what the networks say: ``out`` of the learnt one in this state, ``own`` of the learnt one in the next state, ``target``
of the target network in the next state. Rows come first, then actions, then atoms or quantiles.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from reference.distributional import categorical_projection, quantile_huber_loss
from reference.value_learning import munchausen_target, softmax

Array = NDArray[np.float64]
Result = tuple[float, Array, Array]
"""The loss, its gradient to ``out``, and the error of each row."""


def dqn(out, own, target, action, reward, terminated, weight, discount, *, double: bool, distance: str) -> Result:
    """Algorithm 1 of DQN; with ``double`` equation 4 of double DQN."""
    wanted = []
    for i, r in enumerate(reward):
        best = int(np.argmax(own[i] if double else target[i]))
        wanted.append(r if terminated[i] else r + discount[i] * target[i, best])
    return regression(out, action, wanted, weight, distance)


def munchausen(out, here, target, action, reward, terminated, weight, discount, *, alpha, tau, clip) -> Result:
    """M-DQN with the squared error; ``here`` is what the target network says in this state."""
    wanted = [
        munchausen_target([r], [q], [a], [nq], [end], gamma=g, alpha=alpha, tau=tau, clip=clip)[0]
        for r, q, a, nq, end, g in zip(reward, here, action, target, terminated, discount, strict=True)
    ]
    return regression(out, action, wanted, weight, "l2")


def regression(out, action, wanted, weight, distance: str) -> Result:
    """The squared or the Huber error of the chosen values."""
    loss, gradient, errors = 0.0, np.zeros_like(out), []
    for i, a in enumerate(action):
        e = out[i, a] - wanted[i]
        if distance == "l2":
            value, slope = e**2, 2 * e
        else:
            value, slope = (0.5 * e**2, e) if abs(e) <= 1 else (abs(e) - 0.5, math.copysign(1.0, e))
        loss += weight[i] * value / len(action)
        gradient[i, a] += weight[i] * slope / len(action)
        errors.append(abs(e))
    return loss, gradient, np.array(errors)


def c51(out, own, target, action, reward, terminated, weight, discount, support, *, double: bool) -> Result:
    """Algorithm 1 of C51, on logits; the error of a row is the KL divergence."""
    loss, gradient, errors = 0.0, np.zeros_like(out), []
    for i, a in enumerate(action):
        chooser = own[i] if double else target[i]
        best = int(np.argmax([softmax(logits) @ support for logits in chooser]))
        atoms = np.array([reward[i] + (0.0 if terminated[i] else discount[i] * z) for z in support])
        m = categorical_projection(atoms[None], softmax(target[i, best])[None], support)[0]
        p = softmax(out[i, a])
        loss -= weight[i] * sum(mi * math.log(pi) for mi, pi in zip(m, p, strict=True)) / len(action)
        gradient[i, a] += weight[i] * (p - m) / len(action)
        errors.append(sum(mi * math.log(mi / pi) for mi, pi in zip(m, p, strict=True) if mi > 0))
    return loss, gradient, np.array(errors)


def quantiles(out, values, target, action, reward, terminated, weight, discount, tau, kappa: float) -> Result:
    """QR-DQN and IQN: ``values`` choose the next action, ``tau`` are the probabilities of the learnt quantiles in each row."""
    loss, gradient, errors = 0.0, np.zeros_like(out), []
    for i, a in enumerate(action):
        best = int(np.argmax(values[i]))
        y = np.array([reward[i] + (0.0 if terminated[i] else discount[i] * z) for z in target[i, best]])
        value, slope = quantile_huber_loss(out[i, a][None], y[None], tau[i][None], kappa)
        loss += weight[i] * value[0] / len(action)
        gradient[i, a] += weight[i] * slope[0] / len(action)
        errors.append(abs(y.mean() - out[i, a].mean()))
    return loss, gradient, np.array(errors)


def munchausen_atoms(here, values, target, action, reward, terminated, discount, *, alpha, tau, clip) -> Array:
    """The atoms that M-IQN learns from: ``here`` and ``values`` are expectations, in this state and in the next one."""
    rows = []
    for i, a in enumerate(action):
        bonus = min(max(tau * math.log(softmax(here[i] / tau)[a]), clip), 0.0)
        policy = softmax(values[i] / tau)
        future = [sum(p * (z - tau * math.log(p)) for p, z in zip(policy, zs, strict=True)) for zs in target[i].T]
        rows.append([reward[i] + alpha * bonus + (0.0 if terminated[i] else discount[i] * z) for z in future])
    return np.array(rows)
