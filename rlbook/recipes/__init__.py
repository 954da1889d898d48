"""One readable file per algorithm: a config and the loop."""

from rlbook.recipes.a2c import A2C, A2CConfig
from rlbook.recipes.crossq import CrossQ, CrossQConfig
from rlbook.recipes.ddpg import DDPG, DDPGConfig
from rlbook.recipes.dqn import DQN, DQNConfig
from rlbook.recipes.droq import DroQ, DroQConfig
from rlbook.recipes.mpo import MPO, MPOConfig
from rlbook.recipes.ppo import PPO, PPOConfig
from rlbook.recipes.r2d2 import R2D2, R2D2Config
from rlbook.recipes.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig
from rlbook.recipes.redq import REDQ, REDQConfig
from rlbook.recipes.reinforce import Reinforce, ReinforceConfig
from rlbook.recipes.sac import SAC, SACConfig
from rlbook.recipes.sac_discrete import SACDiscrete, SACDiscreteConfig
from rlbook.recipes.td3 import TD3, TD3Config
from rlbook.recipes.tqc import TQC, TQCConfig

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
    "crossq": (CrossQ, CrossQConfig),
    "droq": (DroQ, DroQConfig),
    "mpo": (MPO, MPOConfig),
    "redq": (REDQ, REDQConfig),
    "sac_discrete": (SACDiscrete, SACDiscreteConfig),
    "tqc": (TQC, TQCConfig),
}
"""What ``python -m rlbook train NAME`` knows."""

__all__ = [
    "A2C",
    "DDPG",
    "DQN",
    "MPO",
    "PPO",
    "R2D2",
    "RECIPES",
    "REDQ",
    "SAC",
    "TD3",
    "TQC",
    "A2CConfig",
    "CrossQ",
    "CrossQConfig",
    "DDPGConfig",
    "DQNConfig",
    "DroQ",
    "DroQConfig",
    "MPOConfig",
    "PPOConfig",
    "R2D2Config",
    "REDQConfig",
    "RecurrentPPO",
    "RecurrentPPOConfig",
    "Reinforce",
    "ReinforceConfig",
    "SACConfig",
    "SACDiscrete",
    "SACDiscreteConfig",
    "TD3Config",
    "TQCConfig",
]
