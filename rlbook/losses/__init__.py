"""Losses, one file per algorithm family, and the gradient step."""

from rlbook.losses.base import Loss
from rlbook.losses.dqn import DQNLoss
from rlbook.losses.ppo import PPOLoss
from rlbook.losses.sac import SACLoss
from rlbook.losses.targets import HardUpdate, SoftUpdate, target_of
from rlbook.losses.update import Update, compile_update

__all__ = ["DQNLoss", "HardUpdate", "Loss", "PPOLoss", "SACLoss", "SoftUpdate", "Update", "compile_update", "target_of"]
