"""Losses, one file per algorithm family, and the gradient step."""

from rlbook.losses.base import Loss
from rlbook.losses.ppo import PPOLoss
from rlbook.losses.update import Update, compile_update

__all__ = ["Loss", "PPOLoss", "Update", "compile_update"]
