"""Estimators of returns and advantages: TensorDict shells over :mod:`rlbook.functional`."""

from rlbook.estimators.gae import GAE

__all__ = ["GAE"]
