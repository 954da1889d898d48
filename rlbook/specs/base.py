"""The abstract ``Spec``: what a tensor may hold, and every operation that follows from it."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor
from typing_extensions import override

from rlbook.errors import SpecError, explain
from rlbook.keys import pretty
from rlbook.typing import DeviceLike, Key, Shape

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_ENUMERATED = 2**20
"""``enumerate`` refuses to list more values than this."""


class Spec(ABC):
    """What a tensor, or a TensorDict, may hold: shape, dtype, device and the set of values.

    ``shape = batch_shape + event_shape``. The event is one action or one observation; ``expand`` puts batch dimensions in
    front of it and ``index`` takes slices of them. A value may always carry further batch dimensions in front of ``shape``.

    Attributes:
        shape: shape of a value; of a :class:`Composite`, its batch shape.
        dtype: dtype of a value; None for a Composite.
        device: where values live.
        num_uniform: how many uniform numbers make one value.
    """

    event_shape: torch.Size
    batch_shape: torch.Size
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    num_uniform: int

    @abstractmethod
    def from_uniform(self, u: Tensor) -> Any:
        """Map uniform numbers to values: the same numbers always give the same values.

        Args:
            u: float ``[*, num_uniform]`` in ``[0, 1)``, for example from :func:`rlbook.seeding.counter_uniform`.

        Returns:
            Values, ``[*, *shape]``.

        Raises:
            SpecError: the last dimension of ``u`` is not ``num_uniform``.
        """

    @abstractmethod
    def zero(self, batch: Shape | int = ()) -> Any:
        """Return the value nearest to zero, ``[*batch, *shape]``: always inside the spec, so zeros where zero is allowed."""

    @abstractmethod
    def contains(self, x: Any, batch: Shape | None = None) -> bool:
        """Return whether ``x`` has this shape, dtype, device and range.

        Args:
            x: the value, ``[*, *shape]``.
            batch: the exact dimensions in front of ``shape``; None takes any. Naming them tells ``[64]`` from ``[64, 1]``.
        """

    @abstractmethod
    def check(self, x: Any, key: Key = "action", batch: Shape | None = None) -> None:
        """Raise an explained error when ``x`` is not in the spec.

        Args:
            x: the value, ``[*, *shape]``.
            key: its name in the error.
            batch: as for :meth:`contains`.

        Raises:
            SpecError: wrong type, shape, dtype, device, a NaN, or a value out of range.
        """

    @abstractmethod
    def project(self, x: Any) -> Any:
        """Return the nearest value inside the spec, in its dtype: clipped, rounded, or arg-maxed. NaN has none and stays NaN.

        Raises:
            SpecError: ``x`` does not have this shape.
        """

    @abstractmethod
    def enumerate(self) -> Any:
        """Return all values of one event, in order, repeated over the batch dimensions: ``[num_values, *shape]``.

        Raises:
            SpecError: there are infinitely many, or more than 2**20.
        """

    @abstractmethod
    def to(self, target: torch.device | torch.dtype | str) -> Spec:
        """Return the spec on another device, or with another dtype."""

    @abstractmethod
    def _rebatch(self, drop: int, batch: torch.Size) -> Self:
        """Return the spec with its first ``drop`` batch dimensions replaced by ``batch``."""

    @abstractmethod
    def factors(self) -> list[int] | None:
        """Return the number of values of each independent part of one event (of each entry); None when not finite."""

    @abstractmethod
    def _same_values(self, other: Any) -> bool:
        """Compare the sets of values of two specs of one class and layout."""

    def rand(self, batch: Shape | int = (), generator: torch.Generator | None = None) -> Any:
        """Return random values, ``[*batch, *shape]``: uniform where the range is finite.

        Where one bound is infinite the distance to the other is exponential, where both are it is normal (as in Gymnasium).
        """
        source = self.device if generator is None else generator.device
        u = torch.rand((*as_size(batch), self.num_uniform), generator=generator, device=source, dtype=torch.float32)
        return self.from_uniform(u.to(self.device))

    def _check_uniform(self, u: Tensor) -> None:
        if u.ndim == 0 or u.shape[-1] != self.num_uniform:
            want = f"of shape [..., {self.num_uniform}] (num_uniform of {self!r})"
            raise SpecError(explain("u", want, show(u.shape), "Draw torch.rand(*batch, spec.num_uniform)"))

    def is_in(self, x: Any) -> bool:
        """Return ``contains(x)``: the name TorchRL users know."""
        return self.contains(x)

    def expand(self, *batch: Any) -> Self:
        """Return the spec of a batch of values: shape ``[*batch, *shape]``. Takes ``expand(8, 3)`` or ``expand((8, 3))``."""
        return self._rebatch(0, as_size(batch[0] if len(batch) == 1 else batch))

    def index(self, index: Any) -> Self:
        """Return the spec of a slice of the batch dimensions; the event's own dimensions cannot be indexed.

        Raises:
            SpecError: the index does not fit ``batch_shape``.
        """
        try:
            batch = torch.empty(()).expand(self.batch_shape)[index].shape
        except (IndexError, TypeError) as error:
            want = f"an index into the batch dimensions {show(self.batch_shape)}"
            fix = "A spec is indexed along batch dimensions only; expand() adds them"
            raise SpecError(explain("index", want, f"{index!r} ({error})", fix)) from None
        return self._rebatch(len(self.batch_shape), batch)

    def __getitem__(self, index: Any) -> Any:
        return self.index(index)

    def cardinality(self) -> int | float:
        """Return the number of different values of one event; ``math.inf`` when it is not finite."""
        sizes = self.factors()
        return math.inf if sizes is None else math.prod(sizes)

    @property
    def num_values(self) -> int:
        """The number of different values of one event.

        Raises:
            SpecError: it is not finite.
        """
        count = self.cardinality()
        if count == math.inf:
            fix = "Only discrete specs (Categorical, OneHot, MultiCategorical, Binary, finite integer Bounded) can be counted"
            raise SpecError(explain("The spec", "finite", repr(self), fix))
        return int(count)

    def _digits(self) -> Tensor:
        """Count through all combinations of the independent parts, the last part fastest."""
        if self.num_values > MAX_ENUMERATED:
            fix = "Sample with rand() instead, or restrict the space"
            raise SpecError(explain("The number of values to enumerate", f"at most {MAX_ENUMERATED}", repr(self), fix))
        parts = [torch.arange(size, device=self.device) for size in self.factors() or ()]
        return torch.cartesian_prod(*parts).reshape(-1, len(parts)) if parts else torch.zeros(1, 0, device=self.device)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return False
        return self._layout() == other._layout() and self._same_values(other)  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self._layout())

    def _layout(self) -> tuple[Any, ...]:
        return self.event_shape, self.batch_shape, self.dtype, self.device


class TensorSpec(Spec):
    """The spec of one tensor: every operation, from the few facts a subclass states about its values.

    Two ideas carry it: a value is inside exactly when the nearest value inside is itself, and a random value is a fixed
    function of uniform numbers, the quantile function.
    """

    def __init__(self, event_shape: Shape | int, dtype: torch.dtype, device: DeviceLike, allowed: Sequence[torch.dtype]):
        if dtype not in allowed:
            names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
            raise SpecError(explain(f"dtype of {type(self).__name__}", f"one of {names}", str(dtype), "Pass another dtype"))
        self.event_shape = as_size(event_shape)
        self.dtype = dtype
        self.device = resolve_device(device)
        self._set_batch(torch.Size())

    def _set_batch(self, batch: torch.Size) -> Self:
        self.batch_shape = batch
        self.shape = batch + self.event_shape
        self.num_uniform = self._uniform_shape.numel()
        return self

    def _rebatch(self, drop: int, batch: torch.Size) -> Self:
        return copy.copy(self)._set_batch(batch + self.batch_shape[drop:])

    @property
    def _uniform_shape(self) -> torch.Size:
        """Shape of the uniform numbers that make one value."""
        return self.shape

    @abstractmethod
    def _quantile(self, u: Tensor) -> Tensor:
        """Map uniform numbers ``[*, *_uniform_shape]`` to a value ``[*, *shape]``."""

    @abstractmethod
    def _nearest(self, x: Tensor) -> Tensor:
        """Return the nearest value inside, in the dtype of ``x``; a new tensor when ``x`` is floating-point."""

    @abstractmethod
    def _with_dtype(self, dtype: torch.dtype) -> TensorSpec:
        """Return the same event with another dtype."""

    @abstractmethod
    def _values(self, at: tuple[int, ...]) -> str:
        """Describe in words, for errors, the allowed values of the event's element ``at``."""

    @abstractmethod
    def _arguments(self) -> str:
        """Return what stands first between the brackets of ``repr``."""

    def _from_digits(self, digits: Tensor) -> Tensor:
        """Map part numbers, int64 ``[K, len(factors())]``, to ``K`` values, ``[K, *event_shape]``."""
        return digits.reshape(-1, *self.event_shape).to(self.dtype)

    @override
    def from_uniform(self, u: Tensor) -> Tensor:
        self._check_uniform(u)
        return self._quantile(u.reshape(u.shape[:-1] + self._uniform_shape))

    @override
    def zero(self, batch: Shape | int = ()) -> Tensor:
        return self._nearest(torch.zeros(as_size(batch) + self.shape, dtype=self.dtype, device=self.device))

    @override
    def contains(self, x: Any, batch: Shape | None = None) -> bool:
        if not isinstance(x, Tensor) or x.dtype != self.dtype or x.device != self.device or not self._fits(x.shape, batch):
            return False
        return torch.equal(self._nearest(x), x)

    def _fits(self, shape: torch.Size, batch: Shape | None) -> bool:
        if batch is None:
            return shape[len(shape) - len(self.shape) :] == self.shape
        return shape == torch.Size(batch) + self.shape

    @override
    def check(self, x: Any, key: Key = "action", batch: Shape | None = None) -> None:
        if not self.contains(x, batch):
            raise SpecError(explain(pretty(key) or "The value", *self._fault(x, batch)))

    def _fault(self, x: Any, batch: Shape | None) -> tuple[str, str, str]:
        """Return (expected, got, fix) for a value that is not inside."""
        if not isinstance(x, Tensor):
            return "a tensor", type(x).__name__, f"Convert it with torch.as_tensor(value, dtype={self.dtype})"
        if not self._fits(x.shape, batch):
            return self._shape_fault(x, batch)
        if x.dtype != self.dtype:
            return f"of dtype {self.dtype}", str(x.dtype), f"Convert it with .to({self.dtype})"
        if x.device != self.device:
            return f"on device {self.device}", str(x.device), f'Move it with .to("{self.device}")'
        if x.isnan().any():
            where = _place(x.isnan())
            return "free of NaN", f"NaN{where}", "Find where it first appears: a division by zero, log(0), or a diverged network"
        return self._range_fault(x)

    def _shape_fault(self, x: Tensor, batch: Shape | None) -> tuple[str, str, str]:
        want = show((*(batch or ()), *self.shape)) if batch is not None else show(("...", *self.shape))
        fix = f"Return a tensor of shape {want}"
        if x.ndim and x.shape[-1] == 1 and self._fits(x.shape[:-1], batch):
            fix = "Remove the trailing dimension with .squeeze(-1)"
        elif self._fits(torch.Size((*x.shape, 1)), batch):
            fix = "Add the trailing dimension with .unsqueeze(-1)"
        return f"of shape {want}", show(x.shape), fix

    def _range_fault(self, x: Tensor) -> tuple[str, str, str]:
        moved = self._nearest(x) != x
        first = tuple(moved.nonzero()[0].tolist())
        expected = self._values(first[len(first) - len(self.event_shape) :])
        return expected, f"{x[first].item():.9g}{_place(moved)}", "Bring it inside with spec.project(value)"

    @override
    def project(self, x: Any) -> Tensor:
        self._check_projected(x)
        if x.dtype is torch.bool or self.dtype.is_floating_point:
            x = x.to(self.dtype)
        elif x.is_floating_point() and x.isnan().any():
            fix = "Find where it first appears: a division by zero, log(0), or a diverged network"
            raise SpecError(explain("The value to project", f"a number, for {self.dtype}", f"NaN{_place(x.isnan())}", fix))
        elif self.dtype is torch.bool:
            x = x.round()
        else:  # a cast would wrap round
            limits = torch.iinfo(self.dtype)
            if x.is_floating_point():
                most = math.nextafter(float(limits.max) + 1, 0)
                x = x.double().round().clamp(float(limits.min), min(most, float(limits.max))).to(torch.int64)
            elif torch.iinfo(x.dtype).bits > limits.bits or (x.dtype.is_signed and not self.dtype.is_signed):
                x = x.clamp(limits.min, min(limits.max, torch.iinfo(x.dtype).max))
        return self._nearest(x).to(self.dtype)

    def _check_projected(self, x: Tensor) -> None:
        if not self._fits(x.shape, None):
            raise SpecError(explain("The value to project", *self._shape_fault(x, None)))

    @override
    def to(self, target: torch.device | torch.dtype | str) -> Self:
        if isinstance(target, torch.dtype):
            return cast(Self, self._with_dtype(target)._set_batch(self.batch_shape))
        moved = copy.copy(self)
        moved.device = resolve_device(target)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(moved.device))
        return moved

    @override
    def enumerate(self) -> Tensor:
        values = self._from_digits(self._digits())
        middle = (1,) * len(self.batch_shape)
        return values.reshape(len(values), *middle, *self.event_shape).expand(-1, *self.shape)

    def __repr__(self) -> str:
        extra = f", batch={show(self.batch_shape)}" if self.batch_shape else ""
        extra += f", device={self.device}" if self.device.type != "cpu" else ""
        return f"{type(self).__name__}({self._arguments()}{extra})"


def as_size(shape: Shape | int | Sequence[int]) -> torch.Size:
    """Return a shape as a ``torch.Size``; an integer is one dimension."""
    try:
        size = torch.Size((int(shape),)) if isinstance(shape, int) else torch.Size(shape)
    except TypeError:
        size = torch.Size((-1,))
    if any(s < 0 for s in size):
        raise SpecError(explain("shape", "an integer or a tuple of integers >= 0", repr(shape), "Pass for example (3,)"))
    return size


def resolve_device(device: DeviceLike) -> torch.device:
    """Return the device as its tensors name it (``"cuda"`` becomes ``cuda:0``); None is torch's default device."""
    return torch.empty(0, device=device).device


def show(shape: Sequence[Any]) -> str:
    """Return a shape as a reader writes it: ``[8, 3]``."""
    return f"[{', '.join(map(str, shape))}]"


def show_dtype(dtype: torch.dtype, default: torch.dtype) -> str:
    """Return ``, int32`` for ``repr``; nothing for the default dtype of a class."""
    return "" if dtype == default else f", {str(dtype).removeprefix('torch.')}"


def wide_float(device: torch.device) -> torch.dtype:
    """Return the widest float of a device: float64, which only MPS lacks."""
    return torch.float32 if device.type == "mps" else torch.float64


def _place(where: Tensor) -> str:
    """Name the first True of a mask: `` at index [1, 0]``, nothing for a scalar."""
    index = where.nonzero()[0].tolist()
    return f" at index {index}" if index else ""
