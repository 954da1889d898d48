"""Specs from Gymnasium spaces and back, and the values that travel between them.

What changes on the way, because torch computes in other types than NumPy:

* float64 and float16 boxes become float32 specs; uint16, uint32 and uint64 become the next larger signed integer.
* ``Discrete`` and ``MultiDiscrete`` specs count from 0. :func:`encode` subtracts the space's ``start``, :func:`decode` adds it.
* ``Tuple`` becomes a ``Composite`` with the keys ``"0"``, ``"1"``, ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from rlbook.errors import SpecError, explain
from rlbook.specs.base import Spec, TensorSpec
from rlbook.specs.composite import Composite
from rlbook.specs.continuous import Bounded, Unbounded
from rlbook.specs.discrete import Binary, Categorical, MultiCategorical, OneHot
from rlbook.typing import DeviceLike, Shape

if TYPE_CHECKING:
    import gymnasium

_DTYPES = {
    "float16": torch.float32,
    "float32": torch.float32,
    "float64": torch.float32,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
    "uint64": torch.int64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
_ADVICE = {
    "Text": "Encode the text as a fixed-size Box (token numbers, padded) with gymnasium.wrappers.TransformObservation",
    "Sequence": "Pad the sequence to its largest length, as a Dict of a Box and a MultiBinary mask, in a wrapper",
    "Graph": "Pad nodes and edges to their largest number, as a Dict of Boxes, in a wrapper",
    "OneOf": "Replace it by a Dict: a Discrete that says which alternative holds, and one entry per alternative",
}


def from_gym(space: gymnasium.Space, device: DeviceLike = None) -> Spec:
    """Return the spec of a Gymnasium space.

    Raises:
        SpecError: the space has no fixed-size tensor form (Text, Graph, Sequence, OneOf, or a class of its own).

    Example:
        >>> import gymnasium
        >>> from_gym(gymnasium.spaces.Discrete(4))
        Categorical(4)
    """
    spec = _from_gym(space)
    return spec if device is None else spec.to(device)


def _from_gym(space: gymnasium.Space) -> Spec:
    from gymnasium import spaces

    match space:
        case spaces.Dict() | spaces.Tuple():
            return Composite({name: _from_gym(part) for name, _, part in _parts(space)})
        case spaces.Box():
            return _from_box(space)
        case spaces.Discrete():
            return Categorical(int(space.n), dtype=_torch_dtype(space))
        case spaces.MultiDiscrete():
            return MultiCategorical(space.nvec.astype(np.int64), dtype=_torch_dtype(space))
        case spaces.MultiBinary():
            return Binary(space.shape, torch.int8)
    raise _unsupported(space)


def _from_box(space: gymnasium.spaces.Box) -> Spec:
    dtype, low, high = _torch_dtype(space), space.low, space.high
    if dtype is torch.bool:
        if low.any() or not high.all():
            raise _unsupported(space)
        return Binary(space.shape, dtype)
    below, above = space.bounded_below, space.bounded_above
    if not below.any() and not above.any():
        return Unbounded(space.shape, dtype)
    if not dtype.is_floating_point:
        low, high = _int64(low), _int64(high)
        if not (below.all() and above.all()):  # NumPy has no infinite integer
            low, high = np.where(below, low, -np.inf), np.where(above, high, np.inf)
    return Bounded(low, high, space.shape, dtype)


def to_gym(spec: Spec) -> gymnasium.Space:
    """Return the Gymnasium space of a spec, batch dimensions included.

    Every value of the spec, once decoded, is in the space. The converse fails for ``OneHot`` only: Gymnasium has no such
    space, so it becomes the wider ``MultiBinary``.
    """
    from gymnasium import spaces

    if isinstance(spec, Composite):
        return spaces.Dict({key: to_gym(entry) for key, entry in spec.items()})
    if not isinstance(spec, TensorSpec):
        raise SpecError(
            explain("The spec", "one of rlbook.specs", type(spec).__name__, "Pass a Bounded, Categorical, ... or Composite")
        )
    shape, dtype = tuple(spec.shape), _numpy_dtype(spec.dtype)
    match spec:
        case Categorical() if not shape:
            return spaces.Discrete(spec.n, dtype=dtype.type)
        case Categorical():
            return spaces.MultiDiscrete(np.full(shape, spec.n), dtype=dtype.type)
        case MultiCategorical():
            return spaces.MultiDiscrete(np.broadcast_to(spec.nvec.cpu().numpy(), shape), dtype=dtype.type)
        case OneHot():
            return spaces.MultiBinary(shape)
        case Binary() if shape and spec.dtype is torch.int8:
            return spaces.MultiBinary(shape)
        case Binary():
            return spaces.Box(0, 1, shape, dtype.type)
        case Unbounded():
            return to_gym(Bounded(-np.inf, np.inf, shape, spec.dtype, "cpu"))
    return _to_box(cast("Bounded", spec), shape, dtype)


def _to_box(spec: Bounded, shape: tuple[int, ...], dtype: np.dtype) -> gymnasium.spaces.Box:
    from gymnasium import spaces

    bounds = (spec.low, spec.high, spec.bounded_below, spec.bounded_above)
    low, high, below, above = (np.broadcast_to(_to_numpy(bound), shape) for bound in bounds)
    box = spaces.Box(low, high, shape, dtype.type)
    if not spec.dtype.is_floating_point:
        box.bounded_below, box.bounded_above = below.copy(), above.copy()
    return box


def encode(value: Any, space: gymnasium.Space, device: DeviceLike = None, batch: Shape = ()) -> Any:
    """Return a value of a Gymnasium space as the tensor, or TensorDict, that ``from_gym(space)`` describes.

    Args:
        value: a sample of ``space``, or of its batched form with ``batch`` in front of every array.
        space: the space of one value.
        device: where the result lives.
        batch: the batch dimensions of ``value``.

    Raises:
        SpecError: the space has no fixed-size tensor form.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        entries = {name: encode(value[key], part, device, batch) for name, key, part in _parts(space)}
        return TensorDict(entries, batch_size=batch, device=device)
    array = np.asarray(value)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        array = array - space.start
    dtype = _torch_dtype(space)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, as its bound does
        array = array.astype(_numpy_dtype(dtype)) if dtype.is_floating_point else _int64(array)
    return torch.as_tensor(array, dtype=dtype, device=device)


def decode(x: Any, space: gymnasium.Space) -> Any:
    """Return a tensor, or TensorDict, as a value of a Gymnasium space: the inverse of :func:`encode`.

    Rounding to the dtype of the space never leaves the space.

    Raises:
        SpecError: the space has no fixed-size tensor form.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        values = {key: decode(x[name], part) for name, key, part in _parts(space)}
        return values if isinstance(space, spaces.Dict) else tuple(values.values())
    _torch_dtype(space)  # refuse a space without tensor form
    array = _to_numpy(x).astype(space.dtype)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return (array + space.start)[()]  # a NumPy integer, not an array, for a single choice
    if isinstance(space, spaces.Box) and space.dtype in (np.float16, np.float64):
        array = np.asarray(np.clip(array, space.low, space.high))
    return array


def _parts(space: gymnasium.spaces.Dict | gymnasium.spaces.Tuple) -> list[tuple[str, Any, gymnasium.Space]]:
    """List (name in the Composite, key in the sample, space) of a Dict or a Tuple."""
    from gymnasium import spaces

    pairs = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    return [(str(key), key, part) for key, part in pairs]


def _torch_dtype(space: gymnasium.Space) -> torch.dtype:
    from gymnasium import spaces

    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise _unsupported(space)
    name = np.dtype(space.dtype).name
    if name not in _DTYPES:
        raise SpecError(explain("dtype of the Gymnasium space", f"one of {', '.join(_DTYPES)}", name, "Cast it in a wrapper"))
    return _DTYPES[name]


def _unsupported(space: Any) -> SpecError:
    want = "a Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
    fix = _ADVICE.get(type(space).__name__, "Convert it to one of these in a gymnasium wrapper")
    return SpecError(explain("The Gymnasium space", want, repr(space), fix))


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return _to_numpy(torch.empty(0, dtype=dtype)).dtype


def _to_numpy(x: Tensor) -> np.ndarray:
    x = x.detach().cpu()
    return x.float().numpy() if x.dtype is torch.bfloat16 else x.numpy()


def _int64(array: np.ndarray) -> np.ndarray:
    """Convert integers to int64; those beyond its range become its largest."""
    return (np.minimum(array, 2**63 - 1) if array.dtype == np.uint64 else array).astype(np.int64)
