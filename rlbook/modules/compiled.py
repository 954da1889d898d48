"""How rlbook compiles: one graph, and no checks but the shapes of its tensors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from rlbook.errors import RLBookError
from rlbook.modules.cuda_graph import Captured


class CompileError(Exception):
    """A function that could not be compiled, and why. Whoever compiles catches it, says so, and goes on eagerly."""


class Compiled:
    """A function of tensors as machine code: traced and compiled once for each set of shapes it meets.

    ``torch.compile`` by itself checks at every call whatever the function's code looked at. For a small network that costs as
    much as the arithmetic. Here the tensor operations are recorded once, and a call looks up the signature of its tensors, no
    more. So the function must be pure but for writing into its arguments: what it reads besides them (attributes, options) is
    what it was when it was recorded, though other tensors, such as weights, are read anew in each call.

    On a GPU the compiled function is launched as a CUDA graph where a call says which tensors move (``volatile``).

    Args:
        function: called as ``function(tensors, *static)``; returns a tuple of tensors.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self._graphs: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, tensors: list[Tensor], *static: Hashable, volatile: int | None = None) -> Any:
        """Call the function.

        Args:
            tensors: what it reads and writes.
            static: what else it needs; part of the signature.
            volatile: how many of the tensors, the first ones, are others in each call. None: no CUDA graph.

        Raises:
            CompileError: the function decides something by the value of a tensor, or does what no graph can hold.
            RLBookError: what the function itself raises.
        """
        try:
            signature = (static, *[(t.shape, t.stride(), t.dtype, t.device) for t in tensors])
        except AttributeError as error:  # a TensorDict, for example
            raise CompileError("it takes other arguments than tensors") from error
        graph = self._graphs.get(signature)
        if graph is None:
            graph = self._graphs[signature] = self._build(tensors, static, volatile)
        return graph(*tensors)

    @torch.no_grad()
    def _build(self, tensors: list[Tensor], static: tuple[Hashable, ...], volatile: int | None) -> Callable[..., Any]:
        from torch.fx.experimental.proxy_tensor import make_fx

        def recorded(*tensors: Tensor) -> Any:
            return self.function(list(tensors), *static)

        try:
            # with fake tensors nothing is computed: no random number is drawn, no argument written
            with compiling():
                graph = make_fx(recorded, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)
            lowered = lower(graph, tensors)
        except RLBookError:
            raise
        except Exception as error:  # whatever torch's tracer and compiler raise
            raise CompileError(f"{type(error).__name__}: {error}") from error
        on_gpu = all(t.device.type == "cuda" for t in tensors)
        return Captured(lowered, volatile) if on_gpu and volatile is not None else lowered


def lower(graph: torch.fx.GraphModule, tensors: list[Tensor]) -> Callable[..., Any]:
    """Turn a graph into machine code; on a CPU, where small networks are mostly overhead, the calls between kernels as well."""
    import torch._inductor

    keep_cache()
    on_cpu = all(t.device.type == "cpu" for t in tensors)
    compiled: Any = torch._inductor.compile(graph, list(tensors), {"cpp_wrapper": True} if on_cpu else None)
    return compiled


def keep_cache() -> None:
    """Let inductor keep its machine code where it outlives the session, unless ``TORCHINDUCTOR_CACHE_DIR`` says where.

    torch itself keeps it with the temporary files. It is ``rlbook/inductor`` in the user's cache folder, if that can be written.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlbook" / "inductor"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that is read-only, or none
        return
    if os.access(folder, os.W_OK):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


@contextmanager
def compiling() -> Iterator[None]:
    """Let ``torch.compiler.is_compiling()`` hold, for code that has a version to compile."""
    before, torch.compiler._is_compiling_flag = torch.compiler._is_compiling_flag, True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def stored(x: Tensor) -> Tensor:
    """Return a scalar ``x`` that compiled code computes once, before the loop that uses it, not anew for every element of it."""
    return x.as_strided(x.shape, x.stride()) if torch.compiler.is_compiling() else x  # what is strided lies in memory


def compile_graph(method: MethodType) -> Callable[..., Any]:
    """Compile a method that also changes Python objects, such as an environment its state, with ``torch.compile``.

    One graph per set of input shapes; every call checks the shapes and dtypes of all tensors. Compiled code is kept with the
    function's code, which all instances of a class share: each gets a copy here, or one would run what was compiled for another.
    """
    f = method.__func__
    own = FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    return torch.compile(
        MethodType(own, method.__self__),
        fullgraph=True,
        dynamic=False,
        options={"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe},
    )


def warn_eager(what: str, error: Exception, stacklevel: int) -> None:
    """Say that something runs eagerly, and why it could not be compiled."""
    why = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
    warnings.warn(f"{what} runs eagerly: it could not be compiled ({why}).", stacklevel=stacklevel)
