"""Collectors."""

from rlbook.collectors.collector import Collector

__all__ = ["Collector"]
