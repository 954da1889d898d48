"""Running and judging training."""

from rlbook.trainers.evaluate import EpisodeReturns, episode_returns, evaluate

__all__ = ["EpisodeReturns", "episode_returns", "evaluate"]
