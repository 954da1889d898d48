"""Running and judging training."""

from rlbook.trainers.evaluate import EpisodeReturns, evaluate
from rlbook.trainers.offline_evaluation import FittedQ, OfflineEvaluation, evaluate_offline, fitted_q_evaluation

__all__ = [
    "EpisodeReturns",
    "FittedQ",
    "OfflineEvaluation",
    "evaluate",
    "evaluate_offline",
    "fitted_q_evaluation",
]
