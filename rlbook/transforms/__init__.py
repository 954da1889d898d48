"""Transforms: change what an agent sees of an environment."""

from rlbook.transforms.actions import RescaleAction
from rlbook.transforms.base import Compose, Transform, TransformedEnv
from rlbook.transforms.entries import CatTensors, RenameKeys
from rlbook.transforms.episodes import RewardSum, StepCounter
from rlbook.transforms.norm import ObservationNorm, RewardNorm, VecNorm
from rlbook.transforms.rewards import RewardClip, RewardScale

__all__ = [
    "CatTensors",
    "Compose",
    "ObservationNorm",
    "RenameKeys",
    "RescaleAction",
    "RewardClip",
    "RewardNorm",
    "RewardScale",
    "RewardSum",
    "StepCounter",
    "Transform",
    "TransformedEnv",
    "VecNorm",
]
