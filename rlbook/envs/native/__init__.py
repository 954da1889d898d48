"""Environments written in torch. None of them needs another package."""

from rlbook.envs.native.acrobot import Acrobot
from rlbook.envs.native.base import NativeEnv
from rlbook.envs.native.breakout import Breakout
from rlbook.envs.native.cartpole import CartPole
from rlbook.envs.native.catch import Catch
from rlbook.envs.native.gridworld import GridWorld, TransitionModel
from rlbook.envs.native.lqr import LQR
from rlbook.envs.native.mountain_car import MountainCar, MountainCarContinuous
from rlbook.envs.native.pendulum import Pendulum
from rlbook.envs.native.probes import ProbeAction, ProbeBoth, ProbeConstant, ProbeDelay, ProbeObservation, ProbeTimeout
from rlbook.envs.native.tmaze import TMaze

__all__ = [
    "LQR",
    "Acrobot",
    "Breakout",
    "CartPole",
    "Catch",
    "GridWorld",
    "MountainCar",
    "MountainCarContinuous",
    "NativeEnv",
    "Pendulum",
    "ProbeAction",
    "ProbeBoth",
    "ProbeConstant",
    "ProbeDelay",
    "ProbeObservation",
    "ProbeTimeout",
    "TMaze",
    "TransitionModel",
]
