"""Distributions over actions: small, fast, and the same in eager and in compiled code."""

from rlbook import specs
from rlbook.distributions.base import Distribution
from rlbook.distributions.categorical import Bernoulli, Categorical, MultiCategorical, OneHotCategorical
from rlbook.distributions.composite import CompositeDistribution
from rlbook.distributions.delta import Delta
from rlbook.distributions.normal import LOG_STD_RANGE, DiagNormal, TanhNormal
from rlbook.distributions.truncated_normal import TruncatedNormal
from rlbook.errors import SpecError, explain

__all__ = [
    "LOG_STD_RANGE",
    "Bernoulli",
    "Categorical",
    "CompositeDistribution",
    "Delta",
    "DiagNormal",
    "Distribution",
    "MultiCategorical",
    "OneHotCategorical",
    "TanhNormal",
    "TruncatedNormal",
    "for_spec",
]


def for_spec(spec: specs.Spec) -> type[Distribution]:
    """Return the stochastic distribution that suits actions of a spec.

    ===================================== =========================
    ``Categorical`` of shape ()           ``Categorical``
    ``Categorical`` of another shape      ``MultiCategorical``
    ``MultiCategorical``                  ``MultiCategorical``
    ``OneHot``                            ``OneHotCategorical``
    ``Binary``                            ``Bernoulli``
    ``Bounded``, finite, float            ``TanhNormal``
    ``Unbounded``, float                  ``DiagNormal``
    ``Composite`` of these                ``CompositeDistribution``
    ===================================== =========================

    Raises:
        SpecError: none suits (integers in a range, one infinite bound); the error says what to do.

    Example:
        >>> for_spec(specs.Bounded(-2.0, 2.0, shape=(1,))).__name__
        'TanhNormal'
    """
    match spec:
        case specs.Categorical():
            return MultiCategorical if spec.event_shape else Categorical
        case specs.MultiCategorical():
            return MultiCategorical
        case specs.OneHot():
            return OneHotCategorical
        case specs.Binary():
            return Bernoulli
        case specs.Bounded() if spec.dtype.is_floating_point and spec.bounded:
            return TanhNormal
        case specs.Unbounded() if spec.dtype.is_floating_point:
            return DiagNormal
        case specs.Composite() if len(spec):
            for leaf in spec.leaves().values():
                for_spec(leaf)
            return CompositeDistribution
        case specs.Bounded() if spec.dtype.is_floating_point:
            fix = "Give it two finite bounds for TanhNormal, or choose DiagNormal yourself and project the actions"
        case _:
            fix = "Describe integers from 0 to n-1 as Categorical(n), several of them as MultiCategorical([n, m])"
    want = "one that a distribution fits: discrete, or float with two finite bounds or none"
    raise SpecError(explain("The action spec", want, repr(spec), fix))
