"""Environments written in torch. None of them needs another package."""

from rlbook.envs.native.base import NativeEnv
from rlbook.envs.native.cartpole import CartPole
from rlbook.envs.native.gridworld import GridWorld, TransitionModel
from rlbook.envs.native.pendulum import Pendulum
from rlbook.envs.native.probes import ProbeAction, ProbeBoth, ProbeConstant, ProbeDelay, ProbeObservation, ProbeTimeout

__all__ = [
    "CartPole",
    "GridWorld",
    "NativeEnv",
    "Pendulum",
    "ProbeAction",
    "ProbeBoth",
    "ProbeConstant",
    "ProbeDelay",
    "ProbeObservation",
    "ProbeTimeout",
    "TransitionModel",
]
