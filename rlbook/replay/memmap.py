"""Rows on disk: a storage that is larger than memory, outlives its process, and survives its process's death."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from tensordict import TensorDict
from torch import Tensor

from rlbook.errors import ConfigError, explain
from rlbook.replay.cursor import Cursor, flock, locked
from rlbook.replay.mapped_files import CURSOR, META, Block, OpenMap, as_key, create, make_parent, read_meta
from rlbook.replay.storages import Rows, Table, TensorStorage, fields
from rlbook.replay.writers import RingWriter, Writer
from rlbook.typing import Key, Leaves


class MemmapStorage(TensorStorage):
    """Rows in memory-mapped files: as many as the disk holds, with only those in use in memory.

    A folder holds one raw file per table of small entries and one per large entry, row after row; ``meta.json`` says what is
    where, and ``cursor`` which rows are whole. Rows that were there when ``buffer.flush()`` returned are there again after the
    process was killed; rows that it was just writing are not. What was flushed also outlasts a power failure, unless a full ring
    has begun to overwrite its oldest rows since.

    Args:
        capacity: how many rows. The disk space is taken when the first data show their size.
        path: a folder to make; it must not exist, or be empty.
        in_keys: keep these entries only; all those of the first data by default.

    Raises:
        ConfigError: there is something at ``path``, or not enough disk space; nothing is left behind.

    Example:
        >>> from tempfile import mkdtemp
        >>> from rlbook import CartPole, ReplayBuffer
        >>> path = mkdtemp()
        >>> buffer = ReplayBuffer(MemmapStorage(10_000, path))
        >>> _ = buffer.extend(CartPole(num_envs=4, seed=0).rollout(100))
        >>> buffer.flush()
        >>> len(ReplayBuffer(MemmapStorage.open(path, readonly=True)))
        400
    """

    def __init__(self, capacity: int, path: str | Path, *, in_keys: Sequence[Key] | None = None):
        self._begin(capacity, path, in_keys)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            holds = "rows" if (self.path / META).exists() else "something else"
            fix = f"Open rows with MemmapStorage.open({str(path)!r}), or choose another path"
            raise ConfigError(explain("path", "a new or an empty folder", f"{path}, which holds {holds}", fix))

    def _begin(
        self,
        capacity: int,
        path: str | Path,
        in_keys: Sequence[Key] | None = None,
        *,
        readonly: bool = False,
        shared: bool = False,
    ) -> None:
        self.path, self.readonly, self.shared = Path(path).absolute(), readonly, shared
        self.map: OpenMap | None = None
        self.writer: Any = RingWriter()  # until a buffer brings its own: rows are filled from the first one on
        self.attached = False
        super().__init__(capacity, in_keys=in_keys)
        self.writer.bind(self.capacity)

    @classmethod
    def open(cls, path: str | Path, *, readonly: bool = False) -> MemmapStorage:
        """Open the rows at ``path``. A buffer made with them goes on where the last one stopped.

        Args:
            path: a folder that a :class:`MemmapStorage` made.
            readonly: only look, at the rows that are whole now; another process may go on writing.

        Raises:
            ConfigError: there are no rows, a file is damaged or missing, or another process writes; nothing is touched.
        """
        meta, storage = read_meta(Path(path)), cls.__new__(cls)
        storage._begin(meta["capacity"], path, meta["in_keys"] and [as_key(key) for key in meta["in_keys"]], readonly=readonly)
        storage._map(meta)
        storage._go_on()
        return storage

    def close(self) -> None:
        """Flush, and let other processes write; this one may still read. Done by itself when the storage is no longer used."""
        if self.map is not None:
            self.map.close()
            self.readonly, self._opened = True, self.map.now

    # ---- files -----------------------------------------------------------------------------------------------------------------
    def column(self, key: Key, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty((self.capacity, *shape), dtype=dtype, device="meta")  # a description, until all are known

    def _adopt(self, columns: Leaves, tables: Sequence[Table] = ()) -> None:
        if not columns:
            return super()._adopt({})
        packed = {key for table in tables for key in table.keys}
        groups = [table.keys for table in tables] + [[key] for key in columns if key not in packed]
        shapes = {key: tuple(column.shape[1:]) for key, column in columns.items()}
        blocks = [Block.of(n, columns[g[0]].dtype, g, [shapes[key] for key in g]) for n, g in enumerate(groups)]
        make_parent(self.path)
        with nullcontext() if self.shared else locked(self.path.parent):  # in a shared turn it is locked already
            create(self.path, self.capacity, blocks, self.in_keys)
        self._map(read_meta(self.path))

    def _map(self, meta: Mapping[str, Any]) -> None:
        """Map the files of a folder that is whole."""
        blocks = [Block.from_json(block) for block in meta["blocks"]]
        self.map = OpenMap(self.path, self.capacity, blocks, self.writer, readonly=self.readonly, shared=self.shared)
        weakref.finalize(self, self.map.close)
        columns: Leaves = {}
        tables = []
        for block, data in zip(blocks, self.map.data, strict=True):
            if len(block.keys) == 1:
                columns[block.keys[0]] = data
            else:
                tables.append(block.table(data))
                columns.update(fields(tables[-1], data))
        super()._adopt(columns, tables)
        self._opened = self.map.now

    def _go_on(self) -> None:
        """Let the writer go on with the rows that are whole, without those that a dead one left half written."""
        now = self.map.now.recovered(self.capacity)
        if now != self.map.now and not self.readonly:
            self.map.store(now)
        self.map.now = now
        size = min(now.committed, now.rows(self.capacity))
        self.writer.load_state_dict({"total": now.committed, "size": size, "streams": now.streams})

    def forget(self) -> None:
        if self.map is not None and self.map.now.committed == 0 and not self.readonly:
            self.map.close()
            shutil.rmtree(self.path)
            self.map = None
        super().forget()

    # ---- what the buffer tells -------------------------------------------------------------------------------------------------
    def attach(self, writer: Writer) -> None:
        if not (isinstance(writer, RingWriter) or self.readonly):
            fix = "Leave the writer out, or keep the rows in memory: TensorStorage(capacity)"
            raise ConfigError(explain("The writer of rows on disk", "a RingWriter", type(writer).__name__, fix))
        if not self.shared:
            self.flush()
        self.writer, self.attached = writer, True
        if self.map is not None:
            self.map.writer = writer
            if not self.shared:
                self._go_on()

    def flush(self) -> None:
        if self.map is not None and not self.readonly:
            self.map.flush()

    def clear(self) -> None:
        self._check_writable()
        if self.map is not None:
            self.map.store(Cursor(self.map.now.epoch + 1))

    def _check_writable(self) -> None:
        if self.readonly:
            fix = "Open them for writing: MemmapStorage.open(path)"
            raise ConfigError(explain(f"The rows in {self.path}", "open for writing", "open for reading, or closed", fix))
        if self.map is not None and not self.shared and self.map.process != os.getpid():
            fix = "Give the processes a SharedReplayBuffer"
            got = f"process {os.getpid()}, forked from it"
            raise ConfigError(explain("The process that writes", f"{self.map.process}, which opened the rows", got, fix))

    # ---- rows ------------------------------------------------------------------------------------------------------------------
    def pack(self, data: Any) -> tuple[dict[Key, Any], int, int]:
        self._check_writable()
        return super().pack(data)

    def write(self, target: Rows, batch: dict[Key, Any], source: Rows) -> None:
        end = self.writer.total + last_of(source) + 1
        if self.attached and end > self.writer.rows:  # rows that were whole are overwritten
            self.map.reserve(end, self.writer.streams)
        super().write(self._place(target), batch, source)
        if not self.attached:
            self.writer.total = max(self.writer.total, last_of(target) + 1)

    def read(self, rows: Tensor, *extra: Any) -> TensorDict:
        batch = super().read(self._place(rows), *extra)
        self._check_whole(rows)
        return batch

    def entry(self, key: Key, rows: Tensor) -> Tensor | None:
        value = super().entry(key, self._place(rows))
        self._check_whole(rows)
        return value

    def _place(self, rows: Any) -> Any:
        """Return where rows lie: somewhere else than the buffer thinks once a ring was recovered."""
        now = self.map.now if self.map is not None else Cursor()
        if not now.origin:
            return rows
        rows = torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        return (rows + now.origin) % now.rows(self.capacity)

    def _check_whole(self, rows: Tensor) -> None:
        """Raise if a living writer has gone over rows that a reader has just copied."""
        if not self.readonly or self.map is None or not rows.numel():
            return
        then, now, file = self._opened, self.map.now, self.map.cursor.load()
        first = file.first(self.capacity)
        if file.epoch == then.epoch and first <= then.first(self.capacity):
            return
        skipped = 0 if now.epoch == then.epoch else then.first(self.capacity)  # numbers that the recovered cursor left out
        number = skipped + now.committed - 1 - (now.committed - 1 - rows) % now.rows(self.capacity)
        if file.epoch != then.epoch or int(number.min()) < first:
            fix = "Open them again to see the newest: MemmapStorage.open(path, readonly=True)"
            raise ConfigError(
                explain(f"The rows in {self.path}", "as they were when opened", "some that were overwritten since", fix)
            )

    def state_dict(self, size: int) -> dict[str, Any]:
        rows = self._place(slice(0, size))
        return {"columns": {key: column[rows] for key, column in self.columns.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._check_writable()
        self.admit(state)  # or leave everything as it is
        self.clear()
        super().load_state_dict(state)

    # ---- several processes -----------------------------------------------------------------------------------------------------
    def share(self) -> None:
        """Let other processes write too, each in its :meth:`turn`."""
        self._check_writable()
        self.shared = True
        make_parent(self.path)
        if self.map is not None and not self.map.shared:
            self.map.flush()
            self.map.shared = True
            flock(cast(int, self.map.lock), shared=True)

    @classmethod
    def join(cls, capacity: int, path: Path, in_keys: Sequence[Key] | None) -> MemmapStorage:
        """Return, in another process, a storage that was shared."""
        storage = cls.__new__(cls)
        storage._begin(capacity, path, in_keys, shared=True)
        return storage

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep other processes out, and go on with what the last one left, without what its death interrupted."""
        if self.map is None:
            with locked(self.path.parent):
                if not (self.path / META).exists():
                    yield  # the first data make the folder
                    return
                self._map(read_meta(self.path))
        with locked(self.path / CURSOR):
            self.map.now = self.map.cursor.load()
            self._go_on()
            yield

    def __reduce__(self) -> Any:
        if self.readonly:
            return partial(MemmapStorage.open, readonly=True), (self.path,)
        if self.shared:
            return MemmapStorage.join, (self.capacity, self.path, self.in_keys)
        fix = "Give the processes a SharedReplayBuffer, or MemmapStorage.open(path, readonly=True)"
        raise ConfigError(
            explain("Rows to send to another process", "shared or read-only", "those that this process writes", fix)
        )


def last_of(rows: Rows) -> int:
    """Return the last one of rows."""
    return rows.stop - 1 if isinstance(rows, slice) else int(rows.max())
