"""How rlbook compiles: one graph, and no checks but the shapes of its tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch


def compile_graph(method: MethodType) -> Callable[..., Any]:
    """Compile a method, a function of tensors, into one graph per set of input shapes.

    Every call checks the shapes and dtypes of its tensors and nothing else: checking each attribute of each module, as
    ``torch.compile`` does by itself, costs as much as a gradient step of a small network. So what the function reads besides
    tensors (attributes, options) is what it was at the first call. Compiled code is kept with the function's code, which all
    instances of a class share: each gets a copy here, or one would run what was compiled for another.
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
