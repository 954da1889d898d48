"""Compiled CPU kernels of the reverse scan. Imported on first use, because importing numba costs half a second.

One step of the scan waits for the step after it, so a scan that walks along one row is bound by latency. Both kernels therefore
advance many rows at once: tensors that are time-major in memory (a collector's rollout) go through all rows of a step with vector
instructions; row-major ones go through blocks of eight rows, staged in a scratch where the eight chains overlap.

The kernels take raw addresses: ``Tensor.numpy()`` costs 0.7 us and ``data_ptr()`` 0.1, which is what counts for small rollouts.
"""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportPrivateImportUsage=false
from __future__ import annotations

import numpy as np
import torch
from numba import carray, config, njit, types
from numba.extending import intrinsic
from torch import Tensor

if config.DISABLE_JIT:
    raise ImportError("These kernels work on addresses, which interpreted code cannot do; the torch code takes over.")

_UNIT = {torch.float32: np.float32(1), torch.float64: np.float64(1)}
_FLAG = np.uint8(1)
_ROWS = 8  # rows that advance together where memory is row-major; _scan_block is written for this number
_TILE = 1024  # numbers staged at a time where memory is time-major: their inputs and outputs fit the first-level cache


def scan(a: Tensor, b: Tensor, last: Tensor | None) -> Tensor:
    """Return ``x_t = a_t + b_t * x_{t+1}`` of CPU tensors ``[*, T]`` of one floating dtype; ``last`` is ``x_T``, default 0."""
    a, time_major = _dense(a)
    b, x = _laid_out(b, a.stride()), torch.empty_like(a)
    last = a.new_zeros(a.shape[:-1]) if last is None else last.contiguous()
    rows, steps = last.numel(), a.shape[-1]
    kernel = _scan_time_major if time_major else _scan_row_major
    kernel(a.data_ptr(), b.data_ptr(), last.data_ptr(), x.data_ptr(), rows, steps, _UNIT[a.dtype])
    return x


def generalized_advantage(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Return the advantage and the value target: the same scan, with its ``a`` and ``b`` computed on the way through memory."""
    reward, time_major = _dense(reward)
    stride, steps = reward.stride(), reward.shape[-1]
    value, next_value = _laid_out(value, stride), _laid_out(next_value, stride)
    terminated, done = _laid_out(terminated, stride), _laid_out(done, stride)
    advantage, target = torch.empty_like(reward), torch.empty_like(reward)
    kernel = _advantage_time_major if time_major else _advantage_row_major
    kernel(
        reward.data_ptr(),
        value.data_ptr(),
        next_value.data_ptr(),
        terminated.data_ptr(),
        done.data_ptr(),
        advantage.data_ptr(),
        target.data_ptr(),
        reward.numel() // steps,
        steps,
        float(gamma),
        float(gamma * gae_lambda),
        _UNIT[reward.dtype],
    )
    return advantage, target


def _dense(x: Tensor) -> tuple[Tensor, bool]:
    """Return ``x``, copied where its memory has gaps, and whether time is its slowest dimension in memory."""
    if x.is_contiguous():
        return x, False
    time_major = x.stride() == (1, len(x)) if x.ndim == 2 else x.movedim(-1, 0).is_contiguous()
    return (x, True) if time_major else (x.contiguous(), False)


def _laid_out(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return ``x``, copied where its memory has another layout."""
    return x if x.stride() == stride else torch.empty_strided(x.shape, stride, dtype=x.dtype).copy_(x)


def _jit(function):
    """Compile ``function`` on its first call, and keep the machine code for later processes where a directory can be written."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # numba found no directory for its cache (NUMBA_CACHE_DIR, __pycache__, the user's cache)
        return njit(function)


@intrinsic
def _pointer(_typing_context, address, like):
    """Turn an integer address into a pointer to numbers of the type of ``like``."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.int64, like), generate


@_jit
def _scan_time_major(a, b, last, x, rows, steps, unit):
    a, b = carray(_pointer(a, unit), (steps, rows)), carray(_pointer(b, unit), (steps, rows))
    x, later = carray(_pointer(x, unit), (steps, rows)), carray(_pointer(last, unit), (rows,))
    for t in range(steps - 1, -1, -1):
        _copy(x[t], a[t])
        _step(x[t], b[t], later)
        later = x[t]


@_jit
def _scan_row_major(a, b, last, x, rows, steps, unit):
    a, b = carray(_pointer(a, unit), (rows, steps)), carray(_pointer(b, unit), (rows, steps))
    x, last = carray(_pointer(x, unit), (rows, steps)), carray(_pointer(last, unit), (rows,))
    chain, decay = _scratch(steps, last), _scratch(steps, last)
    for first in range(0, rows, _ROWS):
        block = min(_ROWS, rows - first)
        for j in range(block):
            _copy(chain[j], a[first + j])
            _copy(decay[j], b[first + j])
            chain[j, steps] = last[first + j]
        _scan_block(chain, decay, steps)
        for j in range(block):
            _copy(x[first + j], chain[j])


@_jit
def _advantage_time_major(reward, value, next_value, terminated, done, advantage, target, rows, steps, gamma, decay, unit):
    size = steps * rows
    reward, value = carray(_pointer(reward, unit), (size,)), carray(_pointer(value, unit), (size,))
    next_value, terminated = carray(_pointer(next_value, unit), (size,)), carray(_pointer(terminated, _FLAG), (size,))
    done, advantage = carray(_pointer(done, _FLAG), (size,)), carray(_pointer(advantage, unit), (size,))
    target = carray(_pointer(target, unit), (size,))
    tile = max(1, _TILE // rows) * rows
    b = np.empty(tile, reward.dtype)
    later = np.zeros(rows, reward.dtype)
    for end in range(size, 0, -tile):
        s = slice(max(0, end - tile), end)
        x = advantage[s]
        _deltas(x, b, reward[s], value[s], next_value[s], terminated[s], done[s], gamma, decay)
        for i in range(len(x) - rows, -1, -rows):
            _step(x[i : i + rows], b[i : i + rows], later)
            later = x[i : i + rows]
        _add(target[s], x, value[s])


@_jit
def _advantage_row_major(reward, value, next_value, terminated, done, advantage, target, rows, steps, gamma, decay, unit):
    shape = (rows, steps)
    reward, value = carray(_pointer(reward, unit), shape), carray(_pointer(value, unit), shape)
    next_value, terminated = carray(_pointer(next_value, unit), shape), carray(_pointer(terminated, _FLAG), shape)
    done, advantage = carray(_pointer(done, _FLAG), shape), carray(_pointer(advantage, unit), shape)
    target = carray(_pointer(target, unit), shape)
    a, b = _scratch(steps, reward), _scratch(steps, reward)
    for first in range(0, rows, _ROWS):
        block = min(_ROWS, rows - first)
        for j in range(block):
            n = first + j
            _deltas(a[j], b[j], reward[n], value[n], next_value[n], terminated[n], done[n], gamma, decay)
        _scan_block(a, b, steps)
        for j in range(block):
            n = first + j
            _copy(advantage[n], a[j])
            _add(target[n], a[j], value[n])


@njit
def _scratch(steps, like):
    """Return zeros ``[_ROWS, > steps]`` with rows an odd number of cache lines apart: else they would evict each other."""
    return np.zeros((_ROWS, (steps // 16 + 1 | 1) * 16), like.dtype)


@njit
def _scan_block(x, b, steps):
    """Scan eight rows together and in place; column ``steps`` of ``x`` holds what comes after the last step, 0 at first.

    Written out, because each row's ``c`` then stays in a register; in a loop over the rows it goes through memory.
    """
    c0, c1, c2, c3 = x[0, steps], x[1, steps], x[2, steps], x[3, steps]
    c4, c5, c6, c7 = x[4, steps], x[5, steps], x[6, steps], x[7, steps]
    for t in range(steps - 1, -1, -1):
        c0 = x[0, t] = x[0, t] + b[0, t] * c0
        c1 = x[1, t] = x[1, t] + b[1, t] * c1
        c2 = x[2, t] = x[2, t] + b[2, t] * c2
        c3 = x[3, t] = x[3, t] + b[3, t] * c3
        c4 = x[4, t] = x[4, t] + b[4, t] * c4
        c5 = x[5, t] = x[5, t] + b[5, t] * c5
        c6 = x[6, t] = x[6, t] + b[6, t] * c6
        c7 = x[7, t] = x[7, t] + b[7, t] * c7


@njit
def _step(x, b, later):
    for i in range(len(x)):
        x[i] += b[i] * later[i]


@njit
def _copy(x, a):
    for i in range(min(len(x), len(a))):
        x[i] = a[i]


@njit
def _add(total, a, b):
    for i in range(len(total)):
        total[i] = a[i] + b[i]


@njit
def _deltas(a, b, reward, value, next_value, terminated, done, gamma, decay):
    """Write the TD errors into ``a`` and into ``b`` the decay that carries them back: 0 where the episode ends."""
    zero, gamma, decay = a.dtype.type(0), a.dtype.type(gamma), a.dtype.type(decay)
    for i in range(len(reward)):
        bootstrap = gamma * next_value[i]
        if terminated[i] != 0:  # a choice, not a product: what stands in next_value then does not matter, not even NaN
            bootstrap = zero
        carried = decay
        if done[i] != 0:
            carried = zero
        a[i] = reward[i] + bootstrap - value[i]
        b[i] = carried
