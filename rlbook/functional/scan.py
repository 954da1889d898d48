"""The one recursion behind every return estimator, ``x_t = a_t + b_t * x_{t+1}``, and its backends."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from rlbook.errors import ConfigError, SpecError, explain
from rlbook.functional._checks import describe

Backend: TypeAlias = Literal["auto", "numba", "torch"]

_SMALL = 2**14  # numbers up to which the number of torch calls costs more than the numbers themselves


def reverse_scan(a: Tensor, b: Tensor | float, last: Tensor | None = None, *, backend: Backend = "auto") -> Tensor:
    """Return ``x_t = a_t + b_t * x_{t+1}`` for every step, computed from the last step to the first.

    Exact (no truncated window), with memory in proportion to the input, and differentiable in ``a``, ``b`` and ``last``.

    Args:
        a: what each step adds, floating ``[*, T]``; time is the last dimension.
        b: how much of the later sum each step keeps, ``[*, T]``, broadcastable to it, or a number. 0 ends an episode there, for
            finite numbers: a NaN or infinite one spoils all that comes before it in its row.
        last: ``x_T``, what comes after the last step, ``[*]``; 0 if not given.
        backend: "numba" is a compiled kernel for CPU tensors that need no gradient; "torch" works on every device, inside
            ``torch.compile`` and with gradients; "auto" takes the kernel wherever it can.

    Returns:
        ``[*, T]``, in the memory layout of ``a`` where the kernel runs.

    Raises:
        SpecError: a shape or dtype does not fit ``a``.
        ConfigError: ``backend`` is unknown, or is "numba" and cannot take these tensors.

    Source: G. E. Blelloch, Prefix Sums and Their Applications (1990), section 1.4, for the parallel form.
    """
    b = _checked(a, b, last)
    if a.numel() == 0:
        return torch.zeros_like(a)
    module = kernels(backend, a, b) if last is None else kernels(backend, a, b, last)
    if module is not None:
        return module.scan(a, b, last)
    a, b = a.movedim(-1, 0).contiguous(), b.movedim(-1, 0).contiguous()
    if last is not None:
        a = torch.cat([a[:-1], torch.addcmul(a[-1:], b[-1:], last.unsqueeze(0))])
    return _scan_pairs(a, b).movedim(0, -1)


def kernels(backend: Backend, *tensors: Tensor) -> ModuleType | None:
    """Return the module of compiled kernels if ``backend`` asks for it and it can take these tensors, else None."""
    if torch.compiler.is_compiling() or backend == "torch" or tensors[0].numel() == 0:
        return None
    if backend not in ("auto", "numba"):
        raise ConfigError(explain("backend", '"auto", "numba" or "torch"', repr(backend), 'Leave it at "auto"'))
    obstacle = _obstacle(tensors)
    if obstacle is None:
        return _load_kernels()
    if backend == "numba":
        fix = 'Pass backend="auto", which takes the torch code for these'
        raise ConfigError(explain('Input for backend="numba"', "float32 or float64 on the CPU, without gradient", obstacle, fix))
    return None


def _obstacle(tensors: tuple[Tensor, ...]) -> str | None:
    """Say why the compiled kernels cannot take these tensors, or return None where they can."""
    if torch._C._are_functorch_transforms_active():  # public torch.func has no such question
        return "a call under a torch.func transform"
    dtype, tracks = tensors[0].dtype, torch.is_grad_enabled()
    if dtype is not torch.float32 and dtype is not torch.float64:
        return str(dtype)
    for x in tensors:
        if not x.is_cpu:
            return f"a tensor on {x.device}"
        if x.dtype is not dtype and x.dtype is not torch.bool:
            return f"{dtype} together with {x.dtype}"
        if tracks and x.requires_grad:
            return "a tensor that requires a gradient"
    return "a Python without a working numba" if _load_kernels() is None else None


@cache
def _load_kernels() -> ModuleType | None:
    try:
        return import_module("rlbook.functional._kernels")
    except ImportError:
        return None


def _scan_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Scan along the first dimension: join steps in pairs, scan the half as many pairs, then fill in the odd steps.

    Two steps are one step of the same form, ``x_t = (a_t + b_t a_{t+1}) + (b_t b_{t+1}) x_{t+2}``, so work and memory are O(T).
    """
    if a.numel() <= _SMALL or len(a) == 1:
        return _scan_doubling(a, b)
    if len(a) % 2:
        later = _scan_pairs(a[1:], b[1:])
        return torch.cat([torch.addcmul(a[:1], b[:1], later[:1]), later])
    even = _scan_pairs(torch.addcmul(a[0::2], b[0::2], a[1::2]), b[0::2] * b[1::2])
    odd = torch.cat([torch.addcmul(a[1:-1:2], b[1:-1:2], even[1:]), a[-1:]])
    return torch.stack([even, odd], 1).flatten(0, 1)


def _scan_doubling(a: Tensor, b: Tensor) -> Tensor:
    """Scan along the first dimension in log2(T) rounds: after a round, ``a_t`` sums twice as many steps.

    More work than pairs, O(T log T), and fewer torch calls: the faster one while the tensors are small.
    """
    steps, reach = len(a), 1  # a_t sums steps t to t + reach - 1; b_t is the product of their factors
    if steps == 1:
        return a.clone()
    while reach < steps:
        a = torch.cat([torch.addcmul(a[:-reach], b[: steps - reach], a[reach:]), a[-reach:]])
        if 2 * reach < steps:
            b = b[: steps - 2 * reach] * b[reach : steps - reach]
        reach *= 2
    return a


def _checked(a: Tensor, b: Tensor | float, last: Tensor | None) -> Tensor:
    """Return ``b`` as a tensor of the shape of ``a``, or explain what does not fit."""
    if a.ndim == 0 or not a.is_floating_point():
        fix = "Give floating numbers with time as the last dimension, for example reward.float()"
        raise SpecError(explain("a", "floating [*, T]", describe(a), fix))
    if not isinstance(b, Tensor):
        b = a.new_full((), b)
    if b.dtype is not a.dtype:
        raise SpecError(explain("b", f"{a.dtype}, like a", describe(b), f"Convert it: b.to({a.dtype})"))
    if last is not None and (last.shape != a.shape[:-1] or last.dtype is not a.dtype):
        expected = f"{a.dtype} {list(a.shape[:-1])}: the shape of a without time"
        raise SpecError(explain("last", expected, describe(last), "Give one number per row: x after its last step"))
    if b.shape == a.shape:
        return b
    if b.ndim > a.ndim or any(m not in (1, n) for m, n in zip(reversed(b.shape), reversed(a.shape), strict=False)):
        fix = "Give b the shape of a; a trailing 1 goes away with b.squeeze(-1)"
        raise SpecError(explain("b", f"broadcastable to a, {list(a.shape)}", describe(b), fix))
    return b.expand(a.shape)
