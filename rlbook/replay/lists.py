"""Rows that are any Python objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.replay.storages import Rows, Storage, check_size, leaves_of
from rlbook.typing import Key, Leaves


class ListStorage(Storage):
    """Any objects, one per row: strings, dictionaries, whole episodes of different lengths.

    ``buffer.extend([a, b])`` stores two objects; anything but a list is one object, also a TensorDict of any batch size. Tensors,
    arrays and what contains them are copied; other objects are not. A sample is a TensorDict ``[B, ...]`` where all its objects
    are TensorDicts of the same entries and shapes, which then also has the ``index``; else it is a list.

    Args:
        capacity: how many objects.

    Example:
        >>> from rlbook import ReplayBuffer
        >>> buffer = ReplayBuffer(ListStorage(100), batch_size=2)
        >>> _ = buffer.extend(["a prompt", {"prompt": "another", "score": 0.5}])
        >>> len(buffer), buffer[0]
        (2, 'a prompt')
    """

    def __init__(self, capacity: int):
        super().__init__(capacity)
        self.items: list[Any] = []

    @property
    def keys(self) -> tuple[Key, ...]:
        first = self.items[0] if self.items else None
        return tuple(leaves_of(first)) if isinstance(first, TensorDictBase) else ()

    def pack(self, data: Any) -> tuple[list[Any], int, int]:
        batch = [copied(item) for item in (data if isinstance(data, list) else [data])]
        return batch, len(batch), 1

    def write(self, target: Rows, batch: list[Any], source: Rows) -> None:
        numbers = range(self.capacity)
        targets, sources = (numbers[rows] if isinstance(rows, slice) else rows.tolist() for rows in (target, source))
        for row, number in zip(targets, sources, strict=True):
            if row < len(self.items):
                self.items[row] = batch[number]
            else:  # rows are filled from the first one on
                self.items.append(batch[number])

    def read(self, rows: Tensor, extra: Leaves | None = None) -> Any:
        found = [self.items[row] for row in rows.flatten().tolist()]
        if not found or not all(same_shape(found[0], item) for item in found):
            batch = [copied(item) for item in found]
            return batch if rows.ndim else batch[0]
        shape = (*rows.shape, *found[0].batch_size)
        batch: Any = torch.stack(found).reshape(*shape) if shape else found[0].clone()
        ones = (1,) * found[0].batch_dims
        for key, value in (extra or {}).items():
            batch.set(key, value.reshape(*rows.shape, *ones, *value.shape[rows.ndim :]).expand(*shape, *value.shape[rows.ndim :]))
        return batch

    def entry(self, key: Key, rows: Tensor) -> Tensor | None:
        batch = self.read(rows)
        return batch.get(key, None) if isinstance(batch, TensorDictBase) else None

    def clear(self) -> None:
        self.items = []

    @property
    def nbytes(self) -> int:
        return sum(size_of(item) for item in self.items)

    def state_dict(self, size: int) -> dict[str, Any]:
        return {"items": [plain(item) for item in self.items[:size]]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_size(len(state["items"]), self.capacity)
        self.items = [unplain(item) for item in state["items"]]

    def describe(self) -> list[str]:
        kinds = sorted({type(item).__name__ for item in self.items})
        return [f"objects: {', '.join(kinds)}"] if kinds else []


def copied(item: Any) -> Any:
    """Copy the tensors and arrays in an object, for their memory may be written again."""
    if isinstance(item, TensorDictBase):
        return item.detach().clone()
    if isinstance(item, Tensor):
        return item.detach().clone()
    if isinstance(item, np.ndarray):
        return item.copy()
    return mapped(copied, item)


def mapped(function: Any, item: Any) -> Any:
    """Apply a function to what a container holds; return other objects as they are."""
    if type(item) is dict:
        return {key: function(value) for key, value in item.items()}
    return type(item)(map(function, item)) if type(item) in (list, tuple) else item


def same_shape(one: Any, other: Any) -> bool:
    """Return whether both are TensorDicts that can be stacked."""
    if not (isinstance(one, TensorDict) and isinstance(other, TensorDict)) or one.batch_size != other.batch_size:
        return False
    a, b = leaves_of(one), leaves_of(other)
    if a.keys() != b.keys() or not all(isinstance(x, Tensor) for x in (*a.values(), *b.values())):
        return False
    return all((x.shape, x.dtype, x.device) == (b[key].shape, b[key].dtype, b[key].device) for key, x in a.items())


def size_of(item: Any) -> int:
    """Return the bytes of the tensors and arrays in an object, and the length of text."""
    if isinstance(item, TensorDictBase):
        return sum(size_of(value) for value in leaves_of(item).values())
    if isinstance(item, Tensor | np.ndarray):
        return item.nbytes
    if isinstance(item, Mapping):
        return sum(map(size_of, item.values()))
    return sum(map(size_of, item)) if isinstance(item, list | tuple) else len(item) if isinstance(item, str | bytes) else 0


_TENSORDICT = "__tensordict__"


def plain(item: Any) -> Any:
    """Return an object in terms of what torch loads without running code: TensorDicts and arrays as tensors."""
    if isinstance(item, TensorDictBase):
        return {_TENSORDICT: leaves_of(item), "batch_size": tuple(item.batch_size)}
    if isinstance(item, np.ndarray) and item.dtype != object:
        return {_TENSORDICT: torch.from_numpy(item), "batch_size": None}
    return mapped(plain, item)


def unplain(item: Any) -> Any:
    """Return what :func:`plain` was given."""
    if isinstance(item, dict) and _TENSORDICT in item:
        value, batch_size = item[_TENSORDICT], item["batch_size"]
        return value.numpy() if batch_size is None else TensorDict(keys.nest(value), batch_size)
    return mapped(unplain, item)
