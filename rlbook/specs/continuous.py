"""Specs of numbers in an interval: ``Bounded`` and ``Unbounded``."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from rlbook.errors import SpecError, explain
from rlbook.specs.base import FLOATS, INTEGERS, TensorSpec, as_size, show, show_dtype, wide_float
from rlbook.typing import DeviceLike, Shape

Bound = float | int | np.ndarray | Tensor
_LARGEST_INTEGER = 2.0**63 - 1024
"""The largest float64 that an int64 holds."""


@final
class Bounded(TensorSpec):
    """Numbers in a closed interval per element: ``low <= x <= high``. Either bound may be infinite.

    Args:
        low: lower bound, a number or anything that broadcasts to ``shape``; ``-inf`` for none.
        high: upper bound, likewise; an integer spec includes it.
        shape: shape of one value; by default that of the bounds.
        dtype: any float or integer dtype; by default that of a tensor bound, else float32.
        device: where values live.

    Attributes:
        low: lower bounds, ``[*event_shape]``. An integer spec holds the dtype's smallest value where there is no bound.
        high: upper bounds, ``[*event_shape]``.
        bounded: whether every element has two finite bounds.

    Raises:
        SpecError: ``low > high``, a NaN bound, a bound outside the dtype, or shapes that do not fit.

    Example:
        >>> torque = Bounded(-2.0, 2.0, shape=(1,))
        >>> torque.contains(torch.tensor([0.5]))
        True
        >>> torque.project(torch.tensor([3.0]))
        tensor([2.])
    """

    def __init__(
        self,
        low: Bound,
        high: Bound,
        shape: Shape | int | None = None,
        dtype: torch.dtype | None = None,
        device: DeviceLike = None,
    ):
        tensors = [bound for bound in (low, high) if isinstance(bound, Tensor)]
        dtype = dtype or (tensors[0].dtype if tensors else torch.float32)
        device = device if device is not None or not tensors else tensors[0].device
        event_shape = as_size(shape) if shape is not None else torch.broadcast_shapes(np.shape(low), np.shape(high))
        super().__init__(event_shape, dtype, device, FLOATS + INTEGERS)
        self.low, self.bounded_below = self._bound(low, "low")
        self.high, self.bounded_above = self._bound(high, "high")
        if bool((self.low > self.high).any()):
            raise SpecError(explain("low", "at most high", f"low={low}, high={high}", "Swap the bounds"))
        if dtype.is_floating_point:  # a width that overflows cannot be sampled uniformly: count it as infinite
            huge = self.bounded_below & self.bounded_above & ~(self.high - self.low).isfinite()
            self.bounded_below, self.bounded_above = self.bounded_below & ~huge, self.bounded_above & ~huge
        self.bounded = bool((self.bounded_below & self.bounded_above).all())

    def _bound(self, value: Bound, name: str) -> tuple[Tensor, Tensor]:
        """Return one bound in the spec's dtype and where it is finite, both ``[*event_shape]``."""
        given = (value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))).detach().to(self.device)
        try:
            given = given.broadcast_to(self.event_shape)
        except RuntimeError:
            want = f"broadcastable to shape {show(self.event_shape)}"
            raise SpecError(
                explain(name, want, f"shape {show(given.shape)}", "Pass one bound per element or one for all")
            ) from None
        if bool(given.isnan().any()):
            raise SpecError(explain(name, "a number or infinite", "NaN", "Pass -inf or inf for no bound"))
        finite = given.isfinite()
        if self.dtype.is_floating_point:
            bound = given.to(self.dtype)
            return bound.clone(), bound.isfinite()
        limits = torch.iinfo(self.dtype)
        known = given.masked_fill(~finite, 0) if given.is_floating_point() else given
        if bool((known < limits.min).any() or (known > limits.max).any() or (known.round() != known).any()):
            fix = "Pass a larger dtype, or whole numbers"
            raise SpecError(explain(name, f"a whole number that {self.dtype} holds", str(value), fix))
        unlimited = limits.min if name == "low" else limits.max
        return known.to(self.dtype).masked_fill(~finite, unlimited), finite

    def _quantile(self, u: Tensor) -> Tensor:
        real = self.dtype.is_floating_point
        if real and self.bounded:
            return torch.lerp(self.low, self.high, u.to(self.dtype))  # exact at both ends, so never outside
        wide = torch.promote_types(self.dtype, torch.float32) if real else wide_float(self.device)
        u, low, high = u.to(wide), self.low.to(wide), self.high.to(wide)
        beyond, normal = -torch.log1p(-u), normal_quantile(u)
        inside = low + u * (high - low if real else high - low + 1)
        one_sided = torch.where(self.bounded_below, low + beyond, high - beyond)
        either, both = self.bounded_below | self.bounded_above, self.bounded_below & self.bounded_above
        x = torch.where(both, inside, torch.where(either, one_sided, normal))
        if real:
            return x.clamp(low, high).to(self.dtype)
        return x.floor().clamp(low, high).clamp(max=_LARGEST_INTEGER).to(self.dtype)

    def _nearest(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    @override
    def factors(self) -> list[int] | None:
        if self.dtype.is_floating_point or not self.bounded:
            return None
        return [high - low + 1 for low, high in zip(self.low.flatten().tolist(), self.high.flatten().tolist(), strict=True)]

    def _from_digits(self, digits: Tensor) -> Tensor:
        return (digits.reshape(-1, *self.event_shape) + self.low).to(self.dtype)

    def _with_dtype(self, dtype: torch.dtype) -> TensorSpec:
        return Bounded(*self._reopened(), dtype=dtype)

    def _same_values(self, other: Any) -> bool:
        return torch.equal(self.low, other.low) and torch.equal(self.high, other.high)

    def _values(self, at: tuple[int, ...]) -> str:
        low, high = self._reopened()
        return f"between {_short(low[at])} and {_short(high[at])}"

    def _arguments(self) -> str:
        low, high = map(_short, self._reopened())
        return f"{low}, {high}, shape={show(self.event_shape)}{show_dtype(self.dtype, torch.float32)}"

    def _reopened(self) -> tuple[Tensor, Tensor]:
        """Return the bounds with infinity written back where an integer bound is the dtype's limit."""
        sides = (self.low, self.bounded_below, -math.inf), (self.high, self.bounded_above, math.inf)
        if self.dtype.is_floating_point or self.bounded:
            return self.low, self.high
        low, high = (bound.to(wide_float(self.device)).masked_fill(~finite, infinity) for bound, finite, infinity in sides)
        return low, high


@final
class Unbounded(TensorSpec):
    """Any number: observations and rewards of unknown range. Random values are standard normal.

    Args:
        shape: shape of one value.
        dtype: any float or integer dtype.
        device: where values live.

    Example:
        >>> Unbounded(3).contains(torch.tensor([0.0, 1e9, float("nan")]))
        False
    """

    bounded = False

    def __init__(self, shape: Shape | int = (), dtype: torch.dtype = torch.float32, device: DeviceLike = None):
        super().__init__(shape, dtype, device, FLOATS + INTEGERS)

    def _quantile(self, u: Tensor) -> Tensor:
        x = normal_quantile(u)
        return (x if self.dtype.is_floating_point else x.floor().clamp(min=torch.iinfo(self.dtype).min)).to(self.dtype)

    def _nearest(self, x: Tensor) -> Tensor:
        return x.clone() if x.is_floating_point() else x  # a new tensor, because torch.equal(x, x) is True even for NaN

    @override
    def factors(self) -> None:
        return None

    def _with_dtype(self, dtype: torch.dtype) -> TensorSpec:
        return Unbounded(self.event_shape, dtype, self.device)

    def _same_values(self, other: Any) -> bool:
        return True

    def _values(self, at: tuple[int, ...]) -> str:
        return "any number"

    def _arguments(self) -> str:
        return f"shape={show(self.event_shape)}{show_dtype(self.dtype, torch.float32)}"


def normal_quantile(u: Tensor) -> Tensor:
    """Map uniform numbers in ``[0, 1)`` to standard normal ones, finite also at 0."""
    return torch.special.ndtri(u.clamp(min=2.0**-25))


def _short(bound: Tensor) -> str:
    """Write a bound: as one number when it is the same everywhere."""
    texts = [str(v) if isinstance(v, int) else f"{v:g}" for v in bound.flatten()[:5].tolist()]
    if bound.numel() and bool((bound == bound.flatten()[0]).all()):
        return texts[0]
    return show([*texts[:4], "..."] if bound.numel() > 4 else texts)
