"""Specs: what a tensor may hold. Environments describe their actions and observations with them."""

from rlbook.specs.base import Spec, TensorSpec
from rlbook.specs.composite import Composite
from rlbook.specs.continuous import Bounded, Unbounded
from rlbook.specs.discrete import Binary, Categorical, MultiCategorical, OneHot
from rlbook.specs.gym import decode, encode, from_gym, to_gym

__all__ = [
    "Binary",
    "Bounded",
    "Categorical",
    "Composite",
    "MultiCategorical",
    "OneHot",
    "Spec",
    "TensorSpec",
    "Unbounded",
    "decode",
    "encode",
    "from_gym",
    "to_gym",
]
