"""One readable file per algorithm: a config and the loop."""

from rlbook.recipes.a2c import A2C, A2CConfig
from rlbook.recipes.ddpg import DDPG, DDPGConfig
from rlbook.recipes.dqn import DQN, DQNConfig
from rlbook.recipes.ppo import PPO, PPOConfig
from rlbook.recipes.r2d2 import R2D2, R2D2Config
from rlbook.recipes.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig
from rlbook.recipes.reinforce import Reinforce, ReinforceConfig
from rlbook.recipes.sac import SAC, SACConfig
from rlbook.recipes.td3 import TD3, TD3Config

RECIPES = {
    "ppo": (PPO, PPOConfig),
    "a2c": (A2C, A2CConfig),
    "recurrent_ppo": (RecurrentPPO, RecurrentPPOConfig),
    "r2d2": (R2D2, R2D2Config),
    "reinforce": (Reinforce, ReinforceConfig),
    "sac": (SAC, SACConfig),
    "dqn": (DQN, DQNConfig),
    "ddpg": (DDPG, DDPGConfig),
    "td3": (TD3, TD3Config),
}
"""What ``python -m rlbook train NAME`` knows."""

__all__ = [
    "A2C",
    "DDPG",
    "DQN",
    "PPO",
    "R2D2",
    "RECIPES",
    "SAC",
    "TD3",
    "A2CConfig",
    "DDPGConfig",
    "DQNConfig",
    "PPOConfig",
    "R2D2Config",
    "RecurrentPPO",
    "RecurrentPPOConfig",
    "Reinforce",
    "ReinforceConfig",
    "SACConfig",
    "TD3Config",
]
