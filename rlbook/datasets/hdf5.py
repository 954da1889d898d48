"""HDF5 files, opened with explained errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rlbook.datasets.layout import bad_file
from rlbook.errors import MissingExtraError


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open a file to read; what h5py finds wrong with it, now or while it is read, is explained.

    Raises:
        SpecError: it is no HDF5 file, or a damaged one.
        MissingExtraError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "offline", "Reading HDF5 files") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise bad_file(path, "a whole HDF5 file", f"{path.stat().st_size:,} bytes that h5py cannot read ({error})") from error


def columns(group: Any, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return every dataset below a group by its path."""
    found: dict[tuple[str, ...], Any] = {}
    for name, part in group.items():
        found |= columns(part, (*prefix, name)) if hasattr(part, "items") else {(*prefix, name): part}
    return found


def check_columns(
    path: Path, found: dict[tuple[str, ...], Any], names: Sequence[tuple[str, ...]], rows: int | None = None
) -> None:
    """Raise unless the named datasets are there, hold numbers, and have ``rows`` rows (those of the first one by default)."""
    for name in names:
        if name not in found:
            raise bad_file(path, f"one with {'/'.join(name)!r}", f"only {sorted('/'.join(key) for key in found)}")
        column = found[name]
        if column.dtype.kind not in "fiub" or not column.shape:
            raise bad_file(path, f"one whose {'/'.join(name)!r} holds rows of numbers", f"{column.dtype} {list(column.shape)}")
        rows = len(column) if rows is None else rows
        if len(column) != rows:
            raise bad_file(path, f"one with {rows:,} rows of {'/'.join(name)!r}", f"{len(column):,}")


def block_of(found: Sequence[Any], budget: int = 64 << 20) -> int:
    """Return how many rows of these datasets fit into ``budget`` bytes."""
    return max(1, budget // max(1, sum(column.dtype.itemsize * int(np.prod(column.shape[1:])) for column in found)))
