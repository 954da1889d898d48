"""Reinforcement learning you can see.

``import rlbook`` costs nothing: a name is loaded from its package when it is first used, and ``rlbook.envs``, ``rlbook.losses``
and the other packages are there without an import of their own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "collectors": ("Collector",),
    "course": ("check",),
    "envs": (
        "Acrobot",
        "Breakout",
        "CartPole",
        "Catch",
        "Env",
        "GridWorld",
        "GymEnv",
        "LQR",
        "MountainCar",
        "MountainCarContinuous",
        "Pendulum",
        "TMaze",
        "check_env",
    ),
    "estimators": ("GAE", "TD0", "TDLambda", "VTrace"),
    "losses": (
        "A2CLoss",
        "CrossQLoss",
        "DDPGLoss",
        "DQNLoss",
        "DiscreteSACLoss",
        "HardUpdate",
        "MPOLoss",
        "PPGAuxiliaryLoss",
        "PPOKLLoss",
        "PPOLoss",
        "REDQLoss",
        "ReinforceLoss",
        "SACLoss",
        "SACv1Loss",
        "SoftUpdate",
        "TD3Loss",
        "TQCLoss",
        "TRPOLoss",
        "TRPOUpdate",
        "VTraceLoss",
        "compile_update",
    ),
    "modules": (
        "MLP",
        "Actor",
        "AdditiveGaussian",
        "BatchRenorm",
        "ConvNet",
        "DuelingHead",
        "EpsilonGreedy",
        "ImpalaNet",
        "NoisyExploration",
        "NoisyLinear",
        "OrnsteinUhlenbeck",
        "QValueActor",
        "QValueHead",
        "RandomWarmup",
        "ValueHead",
        "ensemble",
        "make_actor",
        "make_actor_value",
        "make_qvalue",
        "make_value",
    ),
    "replay": (
        "HER",
        "MemmapStorage",
        "MixedBuffer",
        "NStep",
        "PrioritizedSampler",
        "ReplayBuffer",
        "SliceSampler",
        "TensorStorage",
        "minibatches",
    ),
    "seeding": ("seed_everything",),
    "transforms": (
        "Compose",
        "ObservationNorm",
        "RenameKeys",
        "RewardSum",
        "StepCounter",
        "Transform",
        "TransformedEnv",
        "VecNorm",
    ),
    "widgets": ("Dashboard", "EnvViewer", "LivePlot", "Quiz", "ReplayViewer", "Run", "show"),
}
_PACKAGES = {
    *_NAMES,
    *"datasets distributions errors functional interop keys recipes specs trainers typing".split(),
}
_HOME = {name: package for package, names in _NAMES.items() for name in names}

__all__ = sorted(["__version__", *_PACKAGES, *_HOME])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Load a package, or a name from its package, at its first use (PEP 562)."""
    if name in _PACKAGES:
        return import_module(f"rlbook.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'rlbook' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"rlbook.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:  # the same names, for editors and type checkers
    from rlbook import datasets as datasets
    from rlbook import distributions as distributions
    from rlbook import errors as errors
    from rlbook import functional as functional
    from rlbook import interop as interop
    from rlbook import keys as keys
    from rlbook import recipes as recipes
    from rlbook import specs as specs
    from rlbook import trainers as trainers
    from rlbook import typing as typing
    from rlbook.collectors import Collector as Collector
    from rlbook.course import check as check
    from rlbook.envs import LQR as LQR
    from rlbook.envs import Acrobot as Acrobot
    from rlbook.envs import Breakout as Breakout
    from rlbook.envs import CartPole as CartPole
    from rlbook.envs import Catch as Catch
    from rlbook.envs import Env as Env
    from rlbook.envs import GridWorld as GridWorld
    from rlbook.envs import GymEnv as GymEnv
    from rlbook.envs import MountainCar as MountainCar
    from rlbook.envs import MountainCarContinuous as MountainCarContinuous
    from rlbook.envs import Pendulum as Pendulum
    from rlbook.envs import TMaze as TMaze
    from rlbook.envs import check_env as check_env
    from rlbook.estimators import GAE as GAE
    from rlbook.estimators import TD0 as TD0
    from rlbook.estimators import TDLambda as TDLambda
    from rlbook.estimators import VTrace as VTrace
    from rlbook.losses import A2CLoss as A2CLoss
    from rlbook.losses import CrossQLoss as CrossQLoss
    from rlbook.losses import DDPGLoss as DDPGLoss
    from rlbook.losses import DiscreteSACLoss as DiscreteSACLoss
    from rlbook.losses import DQNLoss as DQNLoss
    from rlbook.losses import HardUpdate as HardUpdate
    from rlbook.losses import MPOLoss as MPOLoss
    from rlbook.losses import PPGAuxiliaryLoss as PPGAuxiliaryLoss
    from rlbook.losses import PPOKLLoss as PPOKLLoss
    from rlbook.losses import PPOLoss as PPOLoss
    from rlbook.losses import REDQLoss as REDQLoss
    from rlbook.losses import ReinforceLoss as ReinforceLoss
    from rlbook.losses import SACLoss as SACLoss
    from rlbook.losses import SACv1Loss as SACv1Loss
    from rlbook.losses import SoftUpdate as SoftUpdate
    from rlbook.losses import TD3Loss as TD3Loss
    from rlbook.losses import TQCLoss as TQCLoss
    from rlbook.losses import TRPOLoss as TRPOLoss
    from rlbook.losses import TRPOUpdate as TRPOUpdate
    from rlbook.losses import VTraceLoss as VTraceLoss
    from rlbook.losses import compile_update as compile_update
    from rlbook.modules import MLP as MLP
    from rlbook.modules import Actor as Actor
    from rlbook.modules import AdditiveGaussian as AdditiveGaussian
    from rlbook.modules import BatchRenorm as BatchRenorm
    from rlbook.modules import ConvNet as ConvNet
    from rlbook.modules import DuelingHead as DuelingHead
    from rlbook.modules import EpsilonGreedy as EpsilonGreedy
    from rlbook.modules import ImpalaNet as ImpalaNet
    from rlbook.modules import NoisyExploration as NoisyExploration
    from rlbook.modules import NoisyLinear as NoisyLinear
    from rlbook.modules import OrnsteinUhlenbeck as OrnsteinUhlenbeck
    from rlbook.modules import QValueActor as QValueActor
    from rlbook.modules import QValueHead as QValueHead
    from rlbook.modules import RandomWarmup as RandomWarmup
    from rlbook.modules import ValueHead as ValueHead
    from rlbook.modules import ensemble as ensemble
    from rlbook.modules import make_actor as make_actor
    from rlbook.modules import make_actor_value as make_actor_value
    from rlbook.modules import make_qvalue as make_qvalue
    from rlbook.modules import make_value as make_value
    from rlbook.replay import HER as HER
    from rlbook.replay import MemmapStorage as MemmapStorage
    from rlbook.replay import MixedBuffer as MixedBuffer
    from rlbook.replay import NStep as NStep
    from rlbook.replay import PrioritizedSampler as PrioritizedSampler
    from rlbook.replay import ReplayBuffer as ReplayBuffer
    from rlbook.replay import SliceSampler as SliceSampler
    from rlbook.replay import TensorStorage as TensorStorage
    from rlbook.replay import minibatches as minibatches
    from rlbook.seeding import seed_everything as seed_everything
    from rlbook.transforms import Compose as Compose
    from rlbook.transforms import ObservationNorm as ObservationNorm
    from rlbook.transforms import RenameKeys as RenameKeys
    from rlbook.transforms import RewardSum as RewardSum
    from rlbook.transforms import StepCounter as StepCounter
    from rlbook.transforms import Transform as Transform
    from rlbook.transforms import TransformedEnv as TransformedEnv
    from rlbook.transforms import VecNorm as VecNorm
    from rlbook.widgets import Dashboard as Dashboard
    from rlbook.widgets import EnvViewer as EnvViewer
    from rlbook.widgets import LivePlot as LivePlot
    from rlbook.widgets import Quiz as Quiz
    from rlbook.widgets import ReplayViewer as ReplayViewer
    from rlbook.widgets import Run as Run
    from rlbook.widgets import show as show
