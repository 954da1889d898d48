"""One readable file per algorithm: a config and the loop."""

from rlbook.recipes.a2c import A2C, A2CConfig
from rlbook.recipes.ddpg import DDPG, DDPGConfig
from rlbook.recipes.ppo import PPO, PPOConfig
from rlbook.recipes.reinforce import Reinforce, ReinforceConfig
from rlbook.recipes.sac import SAC, SACConfig
from rlbook.recipes.td3 import TD3, TD3Config

RECIPES = {
    "ppo": (PPO, PPOConfig),
    "a2c": (A2C, A2CConfig),
    "reinforce": (Reinforce, ReinforceConfig),
    "sac": (SAC, SACConfig),
    "ddpg": (DDPG, DDPGConfig),
    "td3": (TD3, TD3Config),
}
"""What ``python -m rlbook train NAME`` knows."""

__all__ = [
    "A2C",
    "DDPG",
    "PPO",
    "RECIPES",
    "SAC",
    "TD3",
    "A2CConfig",
    "DDPGConfig",
    "PPOConfig",
    "Reinforce",
    "ReinforceConfig",
    "SACConfig",
    "TD3Config",
]
