"""Storages: where the rows of a buffer lie, and how they are written and read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase, is_tensor_collection
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, MissingKeyError, SpecError, check_count, explain
from rlbook.typing import DeviceLike, Key, Leaves

Rows = slice | Tensor
"""Rows of a storage: a slice (contiguous) or int64 indices."""

Layout = Mapping[Key, tuple[tuple[int, ...], torch.dtype]]
"""The shape and the dtype of each entry of a row."""


class Storage(ABC):
    """``capacity`` rows: what a row may hold, where rows lie, how they are written and read.

    The buffer decides *which* rows, and knows which are filled; a storage knows nothing of samplers or episodes.
    """

    shared = False
    """Whether other processes write to the rows too."""

    def __init__(self, capacity: int):
        check_count("capacity", capacity, example=100_000)
        self.capacity = capacity

    @abstractmethod
    def pack(self, data: Any) -> tuple[Any, int, int]:
        """Check ``data`` completely, before anything is written; return ``(batch, count, streams)``.

        ``count`` is the number of rows, ``streams`` how many environments stepped together: the rows of one time step lie side by
        side, and time goes in strides of ``streams``.
        """

    @abstractmethod
    def write(self, target: Rows, batch: Any, source: Rows) -> None:
        """Copy the rows ``source`` of a packed batch to the rows ``target``."""

    @abstractmethod
    def read(self, rows: Tensor, extra: Leaves | None = None) -> Any:
        """Copy the rows ``[*]`` into what users get: for tensors a TensorDict ``[*]``, with the entries ``extra`` too."""

    def entry(self, key: Key, rows: Tensor) -> Tensor | None:
        """Copy one entry of the rows ``[*]``, ``[*, ...]``; None if rows have no such entry."""
        return self.read(rows).get(key, None)

    @property
    @abstractmethod
    def keys(self) -> tuple[Key, ...]:
        """The entries of a row; none before the first data."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the rows take."""

    @abstractmethod
    def state_dict(self, size: int) -> dict[str, Any]:
        """Return the first ``size`` rows."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""

    def forget(self) -> None:  # noqa: B027
        """Unlearn what a row holds: the first data were refused after all."""

    def attach(self, writer: Any) -> None:  # noqa: B027
        """Let the writer of the buffer go on after the rows that the storage brings along."""

    def flush(self) -> None:  # noqa: B027
        """Keep what the writer counts now beyond the death of this process, where rows outlive it."""

    def clear(self) -> None:  # noqa: B027
        """Hear that all rows are forgotten."""

    def check_valid(self) -> None:  # noqa: B027
        """Raise when the storage's own books contradict each other."""

    def describe(self) -> list[str]:
        """Say what a row holds, a line per entry."""
        return []


@dataclass
class Table:
    """Entries of one dtype that lie side by side, ``[capacity, width]``: reading a row of them is one copy."""

    data: Tensor
    keys: list[Key]
    shapes: list[torch.Size]
    widths: list[int]

    def __post_init__(self) -> None:
        self._scalars = [key for key, shape in zip(self.keys, self.shapes, strict=True) if not shape]
        self._arrays = [(key, tuple(shape)) for key, shape in zip(self.keys, self.shapes, strict=True) if len(shape) > 1]
        self._array = self.data.numpy() if self.data.device.type == "cpu" and has_array(self.data.dtype) else None

    def take(self, rows: Tensor) -> Tensor:
        """Copy the rows ``[*]``, ``[*, width]``."""
        if self._array is None or rows.ndim != 1:
            return take(self.data, rows)
        return torch.from_numpy(self._array.take(rows.numpy(), 0))  # a fifth faster than index_select


class TensorStorage(Storage):
    """Rows in memory, allocated when the first data show their shapes.

    Small entries of one dtype share a :class:`Table`, so that the entries of a row are neighbours in memory and a sample is one
    gather per dtype, not one per entry. Entries of more than ``pack_bytes`` per row, such as images, have their own memory.

    Args:
        capacity: how many rows.
        device: where they live.
        pin_memory: lock the pages, so that copies to a GPU run beside its work (needs CUDA).
        in_keys: keep these entries only; all those of the first data by default.

    Raises:
        ConfigError: ``capacity`` is not a positive integer, or there is not so much memory.
    """

    pack_bytes = 4096

    def __init__(
        self, capacity: int, device: DeviceLike = None, *, pin_memory: bool = False, in_keys: Sequence[Key] | None = None
    ):
        super().__init__(capacity)
        self.device = torch.device(device or "cpu")
        self.pin_memory = pin_memory
        self.in_keys = None if in_keys is None else tuple(in_keys)
        self.forget()

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(self.columns)

    def forget(self) -> None:
        self._adopt({})

    # ---- the border: what comes in -------------------------------------------------------------------------------------------
    def pack(self, data: TensorDictBase | Mapping[Key, Any]) -> tuple[dict[Key, Any], int, int]:
        """Flatten a TensorDict ``[]``, ``[T]`` or ``[N, T]`` to rows ``[T * N]``, time first.

        A dictionary ``{key: tensor, array or number}`` costs less in a loop that adds step by step; it is one row, or
        :class:`Arrays` that say their batch size.
        """
        leaves, batch = unwrap(data)
        if not self._expected:
            self.allocate(leaves, batch)
        return self.check(leaves, batch), prod(batch), batch[0] if len(batch) == 2 else 1

    def allocate(self, leaves: Mapping[Key, Any], batch: tuple[int, ...]) -> None:
        """Make the memory for rows like these."""
        wanted = self.in_keys or tuple(leaves)
        missing = [keys.pretty(key) for key in wanted if key not in leaves]
        if missing or not wanted:
            got = f"the keys {sorted(map(keys.pretty, leaves))}"
            raise MissingKeyError(explain("The first data", f"data with {missing or 'entries'}", got, "Pass a whole rollout"))
        self._make(layout_of({key: as_tensor(key, leaves[key]) for key in wanted}, len(batch)))

    def _make(self, layout: Layout) -> None:
        small: dict[torch.dtype, list[Key]] = {}
        for key, (shape, dtype) in layout.items():
            if prod(shape) * dtype.itemsize <= self.pack_bytes:
                small.setdefault(dtype, []).append(key)
        tables = []
        for dtype, group in small.items():
            if len(group) > 1:
                shapes = [torch.Size(layout[key][0]) for key in group]
                widths = [prod(shape) for shape in shapes]
                tables.append(Table(self.column(group[0], (sum(widths),), dtype), group, shapes, widths))
        views = {key: view for table in tables for key, view in fields(table, table.data).items()}
        columns = {key: views[key] if key in views else self.column(key, *layout[key]) for key in layout}
        self._adopt(columns, tables)

    def column(self, key: Key, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Allocate the memory of one entry, or of a table that begins with it."""
        try:
            return torch.zeros((self.capacity, *shape), dtype=dtype, device=self.device, pin_memory=self.pin_memory)
        except RuntimeError as error:
            size = self.capacity * prod(shape) * dtype.itemsize / 2**30
            fix = "Lower the capacity, or keep the rows on disk: MemmapStorage(capacity, path)"
            raise ConfigError(explain(f"Memory for {keys.pretty(key)!r}", f"{size:.1f} GiB", str(error)[:200], fix)) from error

    def _adopt(self, columns: Leaves, tables: Sequence[Table] = ()) -> None:
        """Take ``columns`` as the memory; those that are no part of a table are read by themselves."""
        packed = {key for table in tables for key in table.keys}
        self.columns, self._tables = columns, list(tables)
        self._alone = {key: column for key, column in columns.items() if key not in packed}
        self._as_array = self.device.type == "cpu" and all(has_array(column.dtype) for column in columns.values())
        # What is assigned to: on a CPU arrays, for small writes to them are cheaper
        self._targets: dict[Key, Any] = {key: column.numpy() if self._as_array else column for key, column in columns.items()}
        self._expected = {key: (target.dtype, tuple(target.shape[1:])) for key, target in self._targets.items()}

    def check(self, leaves: Mapping[Key, Any], batch: tuple[int, ...]) -> dict[Key, Any]:
        """Return the stored entries as rows, in the form that is assigned; raise unless each fits its column."""
        dims, arrays, packed = len(batch), self._as_array, {}
        for key, (dtype, shape) in self._expected.items():
            value = leaves.get(key)
            if value is None:
                got = f"the keys {sorted(map(keys.pretty, leaves))}"
                raise MissingKeyError(explain("Data for this buffer", f"data with {keys.pretty(key)!r}", got, _SAME))
            if not (arrays and isinstance(value, np.ndarray)):
                number = isinstance(value, bool | int | float | np.generic)
                value = as_tensor(key, value)
                if number and torch.can_cast(value.dtype, self.columns[key].dtype):  # Python's numbers are of no dtype
                    value = value.to(self.columns[key].dtype)
                value = value.numpy(force=True) if arrays else value.detach()
            if value.shape != (*batch, *shape) or value.dtype != dtype:
                want, got = f"{dtype} {[*batch, *shape]}", f"{value.dtype} {list(value.shape)}"
                raise SpecError(explain(keys.pretty(key), want, got, _SAME))
            packed[key] = value if dims == 1 else value[None] if dims == 0 else value.swapaxes(0, 1).reshape(prod(batch), *shape)
        if len(packed) < len(leaves) and self.in_keys is None:
            more = sorted(keys.pretty(key) for key in leaves if key not in packed)
            fix = "Name the entries to keep: TensorStorage(capacity, in_keys=[...])"
            raise SpecError(explain("Data for this buffer", "data with the entries of the first", f"also {more}", fix))
        return packed

    # ---- rows ----------------------------------------------------------------------------------------------------------------
    def write(self, target: Rows, batch: dict[Key, Any], source: Rows) -> None:
        if self._as_array:
            target, source = as_array(target), as_array(source)
        for key, value in batch.items():
            self._targets[key][target] = value[source]

    def read(self, rows: Tensor, extra: Leaves | None = None) -> TensorDict:
        leaves = {key: take(column, rows) for key, column in self._alone.items()}
        for table in self._tables:
            leaves |= fields(table, table.take(rows))
        if extra:
            leaves |= extra if self._as_array else {key: value.to(self.device) for key, value in extra.items()}
        return wrap(leaves, rows.shape)

    def entry(self, key: Key, rows: Tensor) -> Tensor | None:
        column = self.columns.get(key)
        return None if column is None else take(column, rows)

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self.columns.values())

    def state_dict(self, size: int) -> dict[str, Any]:
        return {"columns": {key: column[:size] for key, column in self.columns.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        layout = self.admit(state)
        if layout and not self.keys:
            self._make(layout)
        for key, value in state["columns"].items():
            self.columns[key][: len(value)].copy_(value)

    def admit(self, state: Mapping[str, Any]) -> Layout:
        """Return which entries a state has; raise, before anything is changed, if its rows do not fit."""
        layout, size = self.described(state)
        check_size(size, self.capacity)
        if layout and self.keys and layout != self.layout:
            raise SpecError(explain("Rows to load", f"of the entries {self.layout}", str(layout), _SAME))
        return layout

    def described(self, state: Mapping[str, Any]) -> tuple[Layout, int]:
        """Return which entries a state has, and how many rows."""
        columns: Leaves = state["columns"]
        return layout_of(columns), max((len(value) for value in columns.values()), default=0)

    @property
    def layout(self) -> Layout:
        """The shape and the dtype of each entry of a row."""
        return layout_of(self.columns)

    def describe(self) -> list[str]:
        return [
            f"{keys.pretty(key)}: {str(column.dtype).removeprefix('torch.')} {list(column.shape[1:])}"
            for key, column in self.columns.items()
        ]


_SAME = "Every row of a buffer has the same entries; make another buffer for other data"


# ---- in and out of TensorDicts -------------------------------------------------------------------------------------------------
def unwrap(data: Any) -> tuple[Mapping[Key, Any], tuple[int, ...]]:
    """Return the leaves and the batch size of a TensorDict ``[]``, ``[T]`` or ``[N, T]``, or of a dictionary of leaves."""
    if isinstance(data, TensorDictBase):
        leaves, batch = leaves_of(data), tuple(data.batch_size)
    elif isinstance(data, Mapping):
        leaves, batch = data, getattr(data, "batch_size", ())
    else:
        fix = "Pass a rollout such as a collector yields, or keep other objects in a ListStorage"
        raise SpecError(explain("What is stored", "a TensorDict, or a dictionary of tensors", type(data).__name__, fix))
    if len(batch) > 2:
        fix = "Flatten the leading dimensions: data.flatten(0, -2)"
        raise SpecError(explain("Data to store", "of batch size [], [T] or [N, T]", f"{list(batch)}", fix))
    return leaves, batch


class Arrays(dict[Key, Any]):
    """Leaves ``[*batch_size, ...]``: what a TensorDict says, for a tenth of its price."""

    def __init__(self, leaves: Mapping[Key, Any], batch_size: Sequence[int]):
        super().__init__(leaves)
        self.batch_size = tuple(batch_size)


def leaves_of(data: TensorDictBase, prefix: tuple[str, ...] = ()) -> dict[Key, Any]:
    """Return what ``data.items(True, True)`` yields, in half the time."""
    leaves: dict[Key, Any] = {}
    for name, value in data.items():
        if not isinstance(value, Tensor) and isinstance(value, TensorDictBase):
            leaves |= leaves_of(value, (*prefix, name))
        else:
            leaves[(*prefix, name) if prefix else name] = value
    return leaves


def wrap(leaves: Leaves, shape: torch.Size) -> TensorDict:
    """Return leaves ``{key: [*shape, ...]}`` as a TensorDict, without a check."""
    return _wrap(leaves, nested(tuple(leaves)), shape)


@lru_cache(maxsize=256)
def nested(names: tuple[Key, ...]) -> dict[str, Any]:
    """Return ``{name: key, name: {name: key}}``: where each key stands in a TensorDict."""
    return keys.nest({key: key for key in names})


def _wrap(leaves: Leaves, layout: Mapping[str, Any], shape: torch.Size) -> TensorDict:
    entries = {name: _wrap(leaves, key, shape) if type(key) is dict else leaves[key] for name, key in layout.items()}
    return _tensordict(entries, batch_size=shape)


_tensordict = getattr(TensorDict, "_new_unsafe", TensorDict)  # skips the checks, where this version of tensordict offers it


def as_tensor(key: Key, value: Any) -> Tensor:
    """Return a leaf as a tensor, or explain why it is none."""
    if isinstance(value, Tensor):
        return value
    try:
        if is_tensor_collection(value):  # text beside tensors, for one
            raise TypeError
        return torch.as_tensor(float(value) if isinstance(value, np.floating) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        fix = "Keep other objects in a ListStorage, or leave them out: TensorStorage(capacity, in_keys=[...])"
        if isinstance(value, Mapping):
            fix = 'Name what is nested by its path, as in {("next", "reward"): 1.0}, or pass a TensorDict'
        raise SpecError(explain(keys.pretty(key), "numbers", type(value).__name__, fix)) from error


def layout_of(columns: Leaves, batch_dims: int = 1) -> Layout:
    """Return the shape and the dtype of the rows of tensors."""
    return {key: (tuple(value.shape[batch_dims:]), value.dtype) for key, value in columns.items()}


# ---- rows of tensors -----------------------------------------------------------------------------------------------------------
def take(column: Tensor, rows: Tensor) -> Tensor:
    """Copy the rows ``[*]`` of a column ``[capacity, ...]``, ``[*, ...]``."""
    if column.is_cuda:
        rows = rows.to(column.device)
    if rows.ndim == 1:
        return column.index_select(0, rows)
    return column.index_select(0, rows.flatten()).reshape((*rows.shape, *column.shape[1:]))


def fields(table: Table, data: Tensor) -> Leaves:
    """Return the entries of a table's rows ``[*, width]`` as views ``[*, ...]``."""
    leaves: Leaves = dict(zip(table.keys, data.split_with_sizes(table.widths, -1), strict=True))
    for key in table._scalars:
        leaves[key] = leaves[key].squeeze(-1)
    for key, shape in table._arrays:
        leaves[key] = leaves[key].view((*data.shape[:-1], *shape))
    return leaves


def as_array(rows: Rows) -> Any:
    """Return rows as NumPy indexes with them."""
    return rows if isinstance(rows, slice) else np.asarray(rows)


def has_array(dtype: torch.dtype) -> bool:
    """Return whether NumPy knows a dtype (not bfloat16, for one)."""
    try:
        return torch.empty(0, dtype=dtype).numpy() is not None
    except TypeError:
        return False


def check_size(size: int, capacity: int) -> None:
    """Raise unless so many rows fit."""
    if size > capacity:
        fix = "Load them into a buffer of the capacity that they were saved from"
        raise ConfigError(explain("Rows to load", f"at most {capacity}, the capacity", str(size), fix))
