"""One trajectory in TED layout: how it is made from arrays, and what it must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import MissingKeyError, NonFiniteError, SpecError, explain


def trajectory(
    observation: Any,
    action: Any,
    reward: Any,
    terminated: Any,
    truncated: Any,
    *,
    next_observation: Any = None,
    extra: Mapping[Any, Any] | None = None,
) -> TensorDict:
    """Lay out one trajectory, or a part of one, as TED.

    Args:
        observation: array ``[T + 1, ...]`` (with the last one) or ``[T, ...]``; or a dictionary of such entries, nested or not.
        action: ``[T, ...]``, or a dictionary.
        reward: ``[T]`` or ``[T, 1]``.
        terminated, truncated: bool or 0/1 ``[T]`` or ``[T, 1]``.
        next_observation: ``[T, ...]``, if the source has it.
        extra: more entries ``[T, ...]`` of the root.

    Returns:
        TensorDict ``[T]``. With neither a ``T + 1``-th observation nor next ones the last next observation is unknown: a
        last transition that does not terminate is left out (``[T - 1]``, its predecessor is marked truncated: the data stop
        there); one that terminates repeats its own observation under ``next``, which nothing reads: no value follows it.

    Raises:
        SpecError: an entry does not have T rows.
    """
    reward = as_tensor(reward).reshape(-1).float()
    root, acts, more = observation_leaves(observation), dict(leaves(action, keys.ACTION)), dict(leaves(extra or {}))
    ends = {keys.TERMINATED: flag(terminated), keys.TRUNCATED: flag(truncated)}
    steps = len(reward)
    if next_observation is not None:
        nxt = observation_leaves(next_observation)
    elif all(value.shape[:1] == (steps + 1,) for value in root.values()):
        nxt = {key: value[1:] for key, value in root.items()}
        root = {key: value[:-1] for key, value in root.items()}
    else:
        nxt = {key: torch.cat((value[1:], value[-1:])) if value.ndim else value for key, value in root.items()}
        if not (steps and ends[keys.TERMINATED][-1:].all()):
            return cut_last(assemble(steps, root, {**acts, **more}, reward, ends, nxt))
    return assemble(steps, root, {**acts, **more}, reward, ends, nxt)


def assemble(
    steps: int, root: dict[Any, Tensor], more: dict[Any, Tensor], reward: Tensor, ends: dict[Any, Tensor], nxt: dict[Any, Tensor]
) -> TensorDict:
    """Return the TensorDict ``[T]`` of entries that all have T rows."""
    flat = {**root, **more, **{(keys.NEXT, *keys.as_tuple(key)): value for key, value in nxt.items()}}
    flat |= {(keys.NEXT, keys.REWARD): reward, **{(keys.NEXT, key): value for key, value in ends.items()}}
    for key, value in flat.items():
        if value.shape[:1] != (steps,):
            fix = "The file is damaged, or not of the format it should be"
            got = f"{len(value) if value.ndim else 'a single number'}"
            raise SpecError(explain(keys.pretty(key), f"of {steps} rows, as there are rewards", got, fix))
    truncated = ends[keys.TRUNCATED] & ~ends[keys.TERMINATED]
    flat |= {(keys.NEXT, keys.TRUNCATED): truncated, (keys.NEXT, keys.DONE): truncated | ends[keys.TERMINATED]}
    flat |= {key: torch.zeros(steps, dtype=torch.bool) for key in keys.FLAGS}
    return TensorDict(keys.nest(flat), (steps,))


def cut_last(piece: TensorDict) -> TensorDict:
    """Leave the last transition out; the data stop at the one before."""
    return truncate(piece[:-1]) if len(piece) > 1 else piece[:0]


def truncate(piece: Any) -> Any:
    """Return a copy that ends here: its last step is truncated, unless it terminates."""
    piece = piece.clone()
    ends = piece[keys.NEXT]
    ends[keys.TRUNCATED][-1] = ~ends[keys.TERMINATED][-1]
    ends[keys.DONE][-1] = True
    return piece


def leaves(value: Any, *path: str) -> Iterator[tuple[Any, Tensor]]:
    """Walk a nested dictionary or tuple; yield the key and the tensor of every entry."""
    if isinstance(value, Mapping | tuple | TensorDictBase):
        for name, part in value.items() if not isinstance(value, tuple) else enumerate(value):
            yield from leaves(part, *path, *keys.as_tuple(name if isinstance(name, tuple) else str(name)))
    else:
        yield (path[0] if len(path) == 1 else path), as_tensor(value)


def observation_leaves(value: Any) -> dict[Any, Tensor]:
    """Return the observation entries: those of a dictionary stand at the root, a single one is called ``observation``."""
    return dict(leaves(value) if isinstance(value, Mapping | tuple | TensorDictBase) else leaves(value, keys.OBSERVATION))


def as_tensor(value: Any) -> Tensor:
    """Return an array as a tensor of the types rlbook computes in: float32, and no unsigned integers but bytes."""
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        array = array.astype(np.int64) if array.dtype.kind == "u" and array.dtype.itemsize > 1 else array
        value = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return value.float() if value.is_floating_point() else value


def flag(value: Any) -> Tensor:
    """Return flags of any type and of shape ``[T]`` or ``[T, 1]`` as bool ``[T]``."""
    return as_tensor(value).reshape(-1).bool()


def check_piece(piece: TensorDictBase, at: int) -> None:
    """Raise unless a piece is a trajectory ``[T]`` in TED layout; ``at`` is the row where it begins."""
    if piece.batch_dims != 1 or not len(piece):
        fix = "Yield trajectories one after another: each a TensorDict of batch size [T], T >= 1"
        raise SpecError(explain("A piece of a dataset", "of batch size [T]", str(list(piece.batch_size)), fix))
    present = set(piece.keys(True, True))
    needed = {keys.ACTION} if not any(key[0] == keys.ACTION for key in present if isinstance(key, tuple)) else set()
    needed |= {(keys.NEXT, key) for key in (keys.REWARD, *keys.FLAGS)}
    seen = {key[1:] for key in present if key[0] == keys.NEXT and key[1] not in (keys.REWARD, *keys.FLAGS)}
    needed |= {key[0] if len(key) == 1 else key for key in seen} or {(keys.NEXT, keys.OBSERVATION)}
    if missing := sorted(keys.pretty(key) for key in needed - present):
        got = f"the entries {sorted(map(keys.pretty, present))}"
        raise MissingKeyError(explain("A trajectory", f"one with {missing}", got, "rlbook.datasets.trajectory() lays one out"))
    reward: Any = piece[keys.NEXT, keys.REWARD]
    if reward.shape != piece.batch_size:
        fix = "Rewards have no trailing dimension: reward.reshape(-1)"
        raise SpecError(explain("next.reward", f"of shape {list(piece.batch_size)}", str(list(reward.shape)), fix))
    if not torch.isfinite(reward).all():
        row = at + int((~torch.isfinite(reward)).nonzero()[0])
        fix = "The file is damaged: fetch it again"
        raise NonFiniteError(explain("next.reward", "finite", f"{float(reward[row - at])} in row {row}", fix))


def bad_file(path: Path, expected: str, got: str) -> SpecError:
    """Return the error for a raw file that is not what it should be."""
    fix = f"If it is damaged, delete it and open the dataset again, which fetches it anew: rm {str(path)!r}"
    return SpecError(explain(f"The file {path.name!r}", expected, got, fix))
