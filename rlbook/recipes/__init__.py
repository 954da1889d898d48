"""One readable file per algorithm: a config and the loop."""

from rlbook.recipes.a2c import A2C, A2CConfig
from rlbook.recipes.c51 import C51, C51Config
from rlbook.recipes.crossq import CrossQ, CrossQConfig
from rlbook.recipes.ddpg import DDPG, DDPGConfig
from rlbook.recipes.dqn import DQN, DQNConfig
from rlbook.recipes.droq import DroQ, DroQConfig
from rlbook.recipes.impala import Impala, ImpalaConfig
from rlbook.recipes.iqn import IQN, IQNConfig
from rlbook.recipes.mpo import MPO, MPOConfig
from rlbook.recipes.munchausen import Munchausen, MunchausenConfig
from rlbook.recipes.ppg import PPG, PPGConfig
from rlbook.recipes.ppo import PPO, PPOConfig
from rlbook.recipes.ppo_kl import PPOKL, PPOKLConfig
from rlbook.recipes.pqn import PQN, PQNConfig
from rlbook.recipes.qrdqn import QRDQN, QRDQNConfig
from rlbook.recipes.r2d2 import R2D2, R2D2Config
from rlbook.recipes.rainbow import Rainbow, RainbowConfig
from rlbook.recipes.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig
from rlbook.recipes.redq import REDQ, REDQConfig
from rlbook.recipes.reinforce import Reinforce, ReinforceConfig
from rlbook.recipes.sac import SAC, SACConfig
from rlbook.recipes.sac_discrete import SACDiscrete, SACDiscreteConfig
from rlbook.recipes.settings import describe
from rlbook.recipes.td3 import TD3, TD3Config
from rlbook.recipes.tqc import TQC, TQCConfig
from rlbook.recipes.trpo import TRPO, TRPOConfig

RECIPES = {
    "ppo": (PPO, PPOConfig),
    "a2c": (A2C, A2CConfig),
    "recurrent_ppo": (RecurrentPPO, RecurrentPPOConfig),
    "r2d2": (R2D2, R2D2Config),
    "impala": (Impala, ImpalaConfig),
    "ppg": (PPG, PPGConfig),
    "ppo_kl": (PPOKL, PPOKLConfig),
    "trpo": (TRPO, TRPOConfig),
    "reinforce": (Reinforce, ReinforceConfig),
    "sac": (SAC, SACConfig),
    "dqn": (DQN, DQNConfig),
    "c51": (C51, C51Config),
    "qrdqn": (QRDQN, QRDQNConfig),
    "iqn": (IQN, IQNConfig),
    "rainbow": (Rainbow, RainbowConfig),
    "munchausen": (Munchausen, MunchausenConfig),
    "pqn": (PQN, PQNConfig),
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

for _, config in RECIPES.values():
    describe(config)
del config

__all__ = [
    "A2C",
    "C51",
    "DDPG",
    "DQN",
    "IQN",
    "MPO",
    "PPG",
    "PPO",
    "PPOKL",
    "PQN",
    "QRDQN",
    "R2D2",
    "RECIPES",
    "REDQ",
    "SAC",
    "TD3",
    "TQC",
    "TRPO",
    "A2CConfig",
    "C51Config",
    "CrossQ",
    "CrossQConfig",
    "DDPGConfig",
    "DQNConfig",
    "DroQ",
    "DroQConfig",
    "IQNConfig",
    "Impala",
    "ImpalaConfig",
    "MPOConfig",
    "Munchausen",
    "MunchausenConfig",
    "PPGConfig",
    "PPOConfig",
    "PPOKLConfig",
    "PQNConfig",
    "QRDQNConfig",
    "R2D2Config",
    "REDQConfig",
    "Rainbow",
    "RainbowConfig",
    "RecurrentPPO",
    "RecurrentPPOConfig",
    "Reinforce",
    "ReinforceConfig",
    "SACConfig",
    "SACDiscrete",
    "SACDiscreteConfig",
    "TD3Config",
    "TQCConfig",
    "TRPOConfig",
]
