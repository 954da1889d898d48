"""Running and judging training."""

from rlbook.trainers.evaluate import episode_returns, evaluate

__all__ = ["episode_returns", "evaluate"]
