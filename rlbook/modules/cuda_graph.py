"""CUDA graphs: the kernels of a function recorded once, and launched by one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Recording = tuple[Callable[[], None], Sequence[Tensor]]
"""What launches the recorded kernels, and the tensors into which they write what the function returns."""

MAX_RECORDINGS = 8
"""More than so many for one function would mean that memory moves in every call."""


class Captured:
    """A function of CUDA tensors as a graph, for which launching its kernels one by one would cost more than running them.

    A graph knows addresses, not tensors. So the first ``volatile`` arguments are copied into buffers of its own, and the others
    (weights, moments, settings) are read and written where they lie; when one of them lies elsewhere, the graph is recorded anew.
    A function that cannot be recorded is called as it is, after a warning that says why.

    Args:
        function: of tensors, returns a sequence of tensors; it may write into its arguments and must not wait for the device.
        volatile: how many of its arguments come from elsewhere in each call, such as batches.
        record: records the calls of a function (another one in tests).
    """

    def __init__(
        self,
        function: Callable[..., Any],
        volatile: int,
        record: Callable[[Callable[..., Any], list[Tensor]], Recording] | None = None,
    ):
        self.function, self.volatile, self.record = function, volatile, record or record_cuda
        self._addresses: list[int] | None = None
        self._recordings = 0

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> Any:
        """Call the function."""
        given, held = list(tensors[: self.volatile]), tensors[self.volatile :]
        if self._recordings < 0:
            return self.function(*tensors)
        addresses = [tensor.data_ptr() for tensor in held]
        if addresses != self._addresses:
            try:
                self._record(given, held)
            except Exception as error:  # whatever the function does that a graph cannot hold
                self._recordings = -1
                why = " ".join(str(error).strip().splitlines()[:1])
                warnings.warn(f"A compiled step runs without a CUDA graph: it could not be recorded ({why}).", stacklevel=2)
                return self.function(*tensors)
            self._addresses = addresses
        if given:
            torch._foreach_copy_(self._buffers, given)  # pyright: ignore[reportPrivateImportUsage]
        self._launch()
        return [out.clone() for out in self._outputs]

    def _record(self, given: list[Tensor], held: Sequence[Tensor]) -> None:
        self._recordings += 1
        if self._recordings > MAX_RECORDINGS:
            raise RuntimeError(f"some of its tensors lay elsewhere {MAX_RECORDINGS} times")
        self._buffers = [tensor.clone() for tensor in given]
        arguments = [*self._buffers, *held]
        without_effect(self.function, arguments)
        self._launch, self._outputs = self.record(self.function, arguments)


def without_effect(function: Callable[..., Any], tensors: list[Tensor], calls: int = 2) -> None:
    """Call a function for what it prepares at its first calls, and undo what it wrote into its arguments."""
    before = [tensor.clone() for tensor in tensors]
    try:
        on_side_stream(function, tensors, calls)
    finally:
        torch._foreach_copy_(tensors, before)  # pyright: ignore[reportPrivateImportUsage]


def on_side_stream(function: Callable[..., Any], tensors: list[Tensor], calls: int) -> None:
    """Call a function on a stream of its own, as CUDA asks for before recording; on the CPU just call it."""
    device = tensors[0].device
    if device.type != "cuda":
        for _ in range(calls):
            function(*tensors)
        return
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(calls):
            function(*tensors)
    current.wait_stream(stream)


def record_cuda(function: Callable[..., Any], tensors: list[Tensor]) -> Recording:
    """Record a function's kernels without running them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads, such as NCCL's, may go on
        outputs = function(*tensors)
    return graph.replay, outputs
