"""Networks, actors and value heads."""

from rlbook.modules.actor import Actor, Greedy, LogStd, ValueHead
from rlbook.modules.batch_renorm import BatchRenorm
from rlbook.modules.convnet import ConvNet, ImpalaNet
from rlbook.modules.distributional import (
    CategoricalQValueActor,
    ImplicitQuantileNet,
    ImplicitQValueActor,
    QuantileQValueActor,
)
from rlbook.modules.dueling import DuelingHead
from rlbook.modules.ensemble import Ensemble, ensemble
from rlbook.modules.exploration import AdditiveGaussian, EpsilonGreedy, OrnsteinUhlenbeck, RandomWarmup, Schedule
from rlbook.modules.flat import FlatParameters
from rlbook.modules.gsde import StateDependentExploration, StateDependentStd
from rlbook.modules.make import Features, make_actor, make_actor_value, make_qvalue, make_value
from rlbook.modules.mlp import MLP
from rlbook.modules.noisy import Dropout, NoisyExploration, NoisyLinear, resample_noise
from rlbook.modules.qvalue import QuantileQValueHead, QValueActor, QValueHead
from rlbook.modules.recurrent import GRU, LSTM, Carry, Carrying, Recurrent, warm_up
from rlbook.modules.value_norm import PopArt, RunningValueNorm

__all__ = [
    "GRU",
    "LSTM",
    "MLP",
    "Actor",
    "AdditiveGaussian",
    "BatchRenorm",
    "Carry",
    "Carrying",
    "CategoricalQValueActor",
    "ConvNet",
    "Dropout",
    "DuelingHead",
    "Ensemble",
    "EpsilonGreedy",
    "Features",
    "FlatParameters",
    "Greedy",
    "ImpalaNet",
    "ImplicitQValueActor",
    "ImplicitQuantileNet",
    "LogStd",
    "NoisyExploration",
    "NoisyLinear",
    "OrnsteinUhlenbeck",
    "PopArt",
    "QValueActor",
    "QValueHead",
    "QuantileQValueActor",
    "QuantileQValueHead",
    "RandomWarmup",
    "Recurrent",
    "RunningValueNorm",
    "Schedule",
    "StateDependentExploration",
    "StateDependentStd",
    "ValueHead",
    "ensemble",
    "make_actor",
    "make_actor_value",
    "make_qvalue",
    "make_value",
    "resample_noise",
    "warm_up",
]
