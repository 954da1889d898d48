"""Estimators of returns and advantages: TensorDict shells over :mod:`rlbook.functional`."""

from rlbook.estimators.base import Estimator, by_agent
from rlbook.estimators.gae import GAE
from rlbook.estimators.q_lambda import QLambda
from rlbook.estimators.td import TD0, TDLambda
from rlbook.estimators.vtrace import VTrace

__all__ = ["GAE", "TD0", "Estimator", "QLambda", "TDLambda", "VTrace", "by_agent"]
