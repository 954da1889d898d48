"""Stored experience."""

from rlbook.replay.minibatches import minibatches

__all__ = ["minibatches"]
