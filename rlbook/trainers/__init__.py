"""Running and judging training."""

from rlbook.trainers.checkpoint import load_checkpoint, save_checkpoint
from rlbook.trainers.episodes import WholeEpisodes
from rlbook.trainers.evaluate import EpisodeReturns, EpisodeScore, evaluate
from rlbook.trainers.offline_evaluation import FittedQ, OfflineEvaluation, evaluate_offline, fitted_q_evaluation

__all__ = [
    "EpisodeReturns",
    "EpisodeScore",
    "FittedQ",
    "OfflineEvaluation",
    "WholeEpisodes",
    "evaluate",
    "evaluate_offline",
    "fitted_q_evaluation",
    "load_checkpoint",
    "save_checkpoint",
]
