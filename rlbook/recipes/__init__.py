"""One readable file per algorithm: a config and the loop."""

from rlbook.recipes.ppo import PPO, PPOConfig

RECIPES = {"ppo": (PPO, PPOConfig)}
"""What ``python -m rlbook train NAME`` knows."""

__all__ = ["PPO", "RECIPES", "PPOConfig"]
