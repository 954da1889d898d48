"""Specs with finitely many values: ``Categorical``, ``OneHot``, ``MultiCategorical``, ``Binary``."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from rlbook.errors import SpecError, explain
from rlbook.specs.base import FLOATS, INTEGERS, TensorSpec, show, show_dtype
from rlbook.typing import DeviceLike, Shape


@final
class Categorical(TensorSpec):
    """One of ``n`` choices as an integer ``0 .. n-1``: the discrete action, without a trailing dimension.

    Args:
        n: number of choices.
        shape: shape of one value; ``()`` is a single choice.
        dtype: any integer dtype.
        device: where values live.

    Raises:
        SpecError: ``n`` is not a positive integer that ``dtype`` can count to.

    Example:
        >>> Categorical(3).enumerate()
        tensor([0, 1, 2])
        >>> Categorical(3).rand((64,)).shape
        torch.Size([64])
    """

    def __init__(self, n: int, shape: Shape | int = (), dtype: torch.dtype = torch.int64, device: DeviceLike = None):
        super().__init__(shape, dtype, device, INTEGERS)
        self.n = _check_count(n, dtype)

    def _quantile(self, u: Tensor) -> Tensor:
        return (u * self.n).to(self.dtype).clamp(0, self.n - 1)  # the product may round up to n

    def _nearest(self, x: Tensor) -> Tensor:
        return x.clamp(0, self.n - 1)

    @override
    def factors(self) -> list[int]:
        return [self.n] * self.event_shape.numel()

    def _with_dtype(self, dtype: torch.dtype) -> TensorSpec:
        return Categorical(self.n, self.event_shape, dtype, self.device)

    def _same_values(self, other: Any) -> bool:
        return self.n == other.n

    def _values(self, at: tuple[int, ...]) -> str:
        return f"one of the integers 0 to {self.n - 1}"

    def _arguments(self) -> str:
        shape = f", shape={show(self.event_shape)}" if self.event_shape else ""
        return f"{self.n}{shape}{show_dtype(self.dtype, torch.int64)}"


@final
class OneHot(TensorSpec):
    """One of ``n`` choices as a vector with a single 1: ``[0, 0, 1, 0]``.

    Args:
        n: number of choices, the length of the vector.
        dtype: bool, or any integer or float dtype.
        device: where values live.

    Raises:
        SpecError: ``n`` is not a positive integer.

    Example:
        >>> OneHot(3, dtype=torch.int64).project(torch.tensor([0.1, 0.7, 0.2]))
        tensor([0, 1, 0])
    """

    def __init__(self, n: int, dtype: torch.dtype = torch.bool, device: DeviceLike = None):
        super().__init__((_check_count(n),), dtype, device, (torch.bool, *INTEGERS, *FLOATS))
        self.n = int(n)

    @property
    def _uniform_shape(self) -> torch.Size:
        return self.shape[:-1]

    def _quantile(self, u: Tensor) -> Tensor:
        return _one_hot((u * self.n).long().clamp(max=self.n - 1), self.n, self.dtype)

    def _nearest(self, x: Tensor) -> Tensor:
        scores = x.to(torch.uint8) if x.dtype is torch.bool else x
        return _one_hot(scores.argmax(-1), self.n, x.dtype)

    def project(self, x: Tensor) -> Tensor:
        """Return the vector with its 1 where ``x`` is largest."""
        self._check_projected(x)
        return self._nearest(x).to(self.dtype)

    def _range_fault(self, x: Tensor) -> tuple[str, str, str]:
        rows = (self._nearest(x) != x).any(-1)
        first = rows.nonzero()[0].tolist()
        place = f" at index {first}" if first else ""
        return self._values(()), f"{x[tuple(first)].tolist()}{place}", "Build it with spec.project(scores) or one_hot(index, n)"

    @override
    def factors(self) -> list[int]:
        return [self.n]

    def _from_digits(self, digits: Tensor) -> Tensor:
        return _one_hot(digits.squeeze(-1), self.n, self.dtype)

    def _with_dtype(self, dtype: torch.dtype) -> TensorSpec:
        return OneHot(self.n, dtype, self.device)

    def _same_values(self, other: Any) -> bool:
        return True

    def _values(self, at: tuple[int, ...]) -> str:
        return f"one-hot: a single 1 among {self.n} entries, the rest 0"

    def _arguments(self) -> str:
        return f"{self.n}{show_dtype(self.dtype, torch.bool)}"


@final
class MultiCategorical(TensorSpec):
    """Several choices at once, each with its own number of options: ``0 <= x[i] < nvec[i]``.

    Args:
        nvec: number of options of each choice; its shape is the shape of one value.
        dtype: any integer dtype.
        device: where values live.

    Raises:
        SpecError: ``nvec`` holds something that is not a positive integer.

    Example:
        >>> MultiCategorical([2, 3]).num_values
        6
    """

    def __init__(
        self, nvec: list[Any] | tuple[Any, ...] | np.ndarray | Tensor, dtype: torch.dtype = torch.int64, device: DeviceLike = None
    ):
        counts = torch.as_tensor(nvec)
        super().__init__(counts.shape, dtype, device, INTEGERS)
        self._counts = [_check_count(n, dtype) for n in counts.flatten().tolist()]
        self.nvec = counts.to(self.device, torch.int64)
        self._low, self._high = torch.zeros_like(self.nvec, dtype=dtype), (self.nvec - 1).to(dtype)

    def _quantile(self, u: Tensor) -> Tensor:
        return (u * self.nvec).to(self.dtype).clamp(self._low, self._high)

    def _nearest(self, x: Tensor) -> Tensor:
        return x.clamp(self._low, self._high)

    @override
    def factors(self) -> list[int]:
        return list(self._counts)

    def _with_dtype(self, dtype: torch.dtype) -> TensorSpec:
        return MultiCategorical(self.nvec, dtype, self.device)

    def _same_values(self, other: Any) -> bool:
        return torch.equal(self.nvec, other.nvec)

    def _values(self, at: tuple[int, ...]) -> str:
        return f"one of the integers 0 to {self._high[at].item()}"

    def _arguments(self) -> str:
        return f"{self.nvec.tolist()}{show_dtype(self.dtype, torch.int64)}"


@final
class Binary(TensorSpec):
    """Independent flags, each 0 or 1: ``terminated``, or a panel of buttons.

    Args:
        shape: shape of one value; an integer is a vector of that many flags.
        dtype: bool, or any integer dtype.
        device: where values live.

    Example:
        >>> Binary(2, dtype=torch.int8).enumerate().tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """

    def __init__(self, shape: Shape | int = (), dtype: torch.dtype = torch.bool, device: DeviceLike = None):
        super().__init__(shape, dtype, device, (torch.bool, *INTEGERS))

    def _quantile(self, u: Tensor) -> Tensor:
        return (u < 0.5).to(self.dtype)

    def _nearest(self, x: Tensor) -> Tensor:
        return x if x.dtype is torch.bool else x.clamp(0, 1)

    @override
    def factors(self) -> list[int]:
        return [2] * self.event_shape.numel()

    def _with_dtype(self, dtype: torch.dtype) -> TensorSpec:
        return Binary(self.event_shape, dtype, self.device)

    def _same_values(self, other: Any) -> bool:
        return True

    def _values(self, at: tuple[int, ...]) -> str:
        return "0 or 1"

    def _arguments(self) -> str:
        return f"shape={show(self.event_shape)}{show_dtype(self.dtype, torch.bool)}"


def _check_count(n: Any, dtype: torch.dtype = torch.int64) -> int:
    largest = min(torch.iinfo(dtype).max + 1, 2**63 - 1)
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= largest:
        want = f"an integer from 1 to {largest} ({dtype})"
        raise SpecError(explain("The number of choices", want, repr(n), "Pass for example Categorical(4)"))
    return int(n)


def _one_hot(index: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros((*index.shape, n), dtype=dtype, device=index.device)
    return zeros.scatter_(-1, index.unsqueeze(-1), 1)
