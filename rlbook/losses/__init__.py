"""Losses, one file per algorithm family, and the gradient step."""

from rlbook.losses.base import Loss
from rlbook.losses.crossq import CrossQLoss
from rlbook.losses.ddpg import DDPGLoss, TD3Loss
from rlbook.losses.discrete_sac import DiscreteSACLoss
from rlbook.losses.distributional import C51Loss, IQNLoss, QRDQNLoss
from rlbook.losses.dqn import DQNLoss
from rlbook.losses.mpo import MPOLoss
from rlbook.losses.munchausen import MunchausenIQNLoss, MunchausenLoss
from rlbook.losses.policy_gradient import A2CLoss, ReinforceLoss, VTraceLoss
from rlbook.losses.ppg import PPGAuxiliaryLoss
from rlbook.losses.ppo import PPOKLLoss, PPOLoss
from rlbook.losses.pqn import PQNLoss
from rlbook.losses.r2d2 import R2D2Loss
from rlbook.losses.redq import REDQLoss
from rlbook.losses.sac import SACLoss, SACv1Loss
from rlbook.losses.targets import HardUpdate, SoftUpdate, target_of
from rlbook.losses.tqc import TQCLoss
from rlbook.losses.trpo import TRPOLoss
from rlbook.losses.trpo_update import TRPOUpdate
from rlbook.losses.update import Update, compile_update

__all__ = [
    "A2CLoss",
    "C51Loss",
    "CrossQLoss",
    "DDPGLoss",
    "DQNLoss",
    "DiscreteSACLoss",
    "HardUpdate",
    "IQNLoss",
    "Loss",
    "MPOLoss",
    "MunchausenIQNLoss",
    "MunchausenLoss",
    "PPGAuxiliaryLoss",
    "PPOKLLoss",
    "PPOLoss",
    "PQNLoss",
    "QRDQNLoss",
    "R2D2Loss",
    "REDQLoss",
    "ReinforceLoss",
    "SACLoss",
    "SACv1Loss",
    "SoftUpdate",
    "TD3Loss",
    "TQCLoss",
    "TRPOLoss",
    "TRPOUpdate",
    "Update",
    "VTraceLoss",
    "compile_update",
    "target_of",
]
