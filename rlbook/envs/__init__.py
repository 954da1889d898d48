"""Environments: the contract, native ones in torch, and adapters. Names load what they need when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlbook.envs.base import Env
    from rlbook.envs.check import check_env
    from rlbook.envs.libs.gym import GymEnv
    from rlbook.envs.loop import Loop
    from rlbook.envs.make import make_env
    from rlbook.envs.native import (
        LQR,
        Acrobot,
        Breakout,
        CartPole,
        Catch,
        GridWorld,
        MountainCar,
        MountainCarContinuous,
        NativeEnv,
        Pendulum,
        ProbeAction,
        ProbeBoth,
        ProbeConstant,
        ProbeDelay,
        ProbeObservation,
        ProbeTimeout,
        TMaze,
    )

_HOMES = {
    "Acrobot": "native.acrobot",
    "Breakout": "native.breakout",
    "CartPole": "native.cartpole",
    "Catch": "native.catch",
    "Env": "base",
    "GridWorld": "native.gridworld",
    "GymEnv": "libs.gym",
    "LQR": "native.lqr",
    "Loop": "loop",
    "MountainCar": "native.mountain_car",
    "MountainCarContinuous": "native.mountain_car",
    "NativeEnv": "native.base",
    "Pendulum": "native.pendulum",
    "ProbeAction": "native.probes",
    "ProbeBoth": "native.probes",
    "ProbeConstant": "native.probes",
    "ProbeDelay": "native.probes",
    "ProbeObservation": "native.probes",
    "ProbeTimeout": "native.probes",
    "TMaze": "native.tmaze",
    "check_env": "check",
    "make_env": "make",
}

__all__ = [
    "LQR",
    "Acrobot",
    "Breakout",
    "CartPole",
    "Catch",
    "Env",
    "GridWorld",
    "GymEnv",
    "Loop",
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
    "check_env",
    "make_env",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
