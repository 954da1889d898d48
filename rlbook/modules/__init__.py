"""Networks, actors and value heads."""

from rlbook.modules.actor import Actor, Greedy, LogStd, ValueHead
from rlbook.modules.flat import FlatParameters
from rlbook.modules.make import Features, make_actor, make_value
from rlbook.modules.mlp import MLP

__all__ = ["MLP", "Actor", "Features", "FlatParameters", "Greedy", "LogStd", "ValueHead", "make_actor", "make_value"]
