"""The folder behind rows on disk: raw files, ``meta.json`` that says what is where, the cursor, and the lock of the writer."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, explain
from rlbook.replay.cursor import Cursor, CursorFile, damaged, flock, unlock
from rlbook.replay.storages import Table
from rlbook.replay.writers import Writer
from rlbook.typing import Key

FORMAT, VERSION = "rlbook rows", 1
META, CURSOR, LOCK = "meta.json", "cursor", "lock"


class Block(NamedTuple):
    """One file: entries of one dtype that lie side by side in a row ``[capacity, width]``, or one entry ``[capacity, ...]``."""

    file: str
    dtype: torch.dtype
    keys: list[Key]
    shapes: list[tuple[int, ...]]

    @classmethod
    def of(cls, number: int, dtype: torch.dtype, names: list[Key], shapes: list[tuple[int, ...]]) -> Block:
        """Describe a file; its name tells what it begins with."""
        name = re.sub(r"[^\w.-]", "_", keys.pretty(names[0]))[:100]
        return cls(f"{number:02d}.{name}.{_name(dtype)}", dtype, names, shapes)

    @property
    def widths(self) -> list[int]:
        """Elements of each entry in a row."""
        return [prod(shape) for shape in self.shapes]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return sum(self.widths) * self.dtype.itemsize

    def size(self, capacity: int) -> int:
        """Bytes of the file; one at least, for there are no maps of nothing."""
        return max(1, capacity * self.row_bytes)

    def tensor(self, memory: mmap.mmap, capacity: int) -> Tensor:
        """View the file's memory as the tensor that it holds."""
        shape = (capacity, *self.shapes[0]) if len(self.keys) == 1 else (capacity, sum(self.widths))
        return torch.frombuffer(memory, dtype=self.dtype, count=prod(shape)).view(shape) if prod(shape) else torch.empty(shape)

    def table(self, data: Tensor) -> Table:
        """Say what is where in a row of several entries."""
        return Table(data, self.keys, [torch.Size(shape) for shape in self.shapes], self.widths)

    def to_json(self) -> dict[str, Any]:
        entries = [{"key": key, "shape": list(shape)} for key, shape in zip(self.keys, self.shapes, strict=True)]
        return {"file": self.file, "dtype": _name(self.dtype), "entries": entries}

    @classmethod
    def from_json(cls, block: Mapping[str, Any]) -> Block:
        entries = block["entries"]
        shapes = [tuple(entry["shape"]) for entry in entries]
        return cls(Path(block["file"]).name, getattr(torch, block["dtype"]), [as_key(entry["key"]) for entry in entries], shapes)


def as_key(name: str | list[str]) -> Key:
    """Return a key as it was before JSON made a list of it."""
    return name if isinstance(name, str) else tuple(name)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- making ------------------------------------------------------------------------------------------------------------------
def create(folder: Path, capacity: int, blocks: Sequence[Block], in_keys: Sequence[Key] | None) -> None:
    """Make a folder for rows, whole or not at all: it is made beside its place, and renamed at the end.

    Call it with the folder above locked: then what is left unfinished there is of a process that died.

    Raises:
        ConfigError: there is not enough space, or someone else was faster.
    """
    needed = sum(block.size(capacity) for block in blocks)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        if shutil.disk_usage(folder.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for block in blocks:
            allocate(unfinished / block.file, block.size(capacity))
        CursorFile.create(unfinished / CURSOR)
        (unfinished / LOCK).touch()
        write_meta(unfinished / META, {"capacity": capacity, "in_keys": in_keys, "blocks": [block.to_json() for block in blocks]})
        unfinished.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            got = f"{shutil.disk_usage(folder.parent).free:,} bytes: {error.strerror}"
            fix = "Lower the capacity, name fewer in_keys, or choose a path on another disk"
            raise ConfigError(explain(f"The free space in {folder.parent}", f"{needed:,} bytes", got, fix)) from error
        raise unmade(folder, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def make_parent(folder: Path) -> None:
    """Make the folder above."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unmade(folder, error) from error


def unmade(folder: Path, error: OSError) -> ConfigError:
    """Return the error about a folder that cannot be."""
    return ConfigError(explain("path", "that of a folder to make", f"{folder}: {error}", "Choose another path"))


def allocate(path: Path, size: int) -> None:
    """Make a file of zeros that has its space on the disk: in a sparse one, a full disk kills the process that writes."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            for start in range(0, size, 1 << 20):
                file.write(bytes(min(1 << 20, size - start)))


def write_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Write ``meta.json`` with its checksum."""
    meta = {"format": FORMAT, "version": VERSION, **meta}
    with path.open("w") as file:
        json.dump({**meta, "checksum": _checksum(meta)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _checksum(meta: Mapping[str, Any]) -> int:
    return crc32(json.dumps(meta, sort_keys=True).encode())


# ---- opening -----------------------------------------------------------------------------------------------------------------
def read_meta(folder: Path) -> dict[str, Any]:
    """Read and check ``meta.json``, and that every file is there and as long as it says.

    Raises:
        ConfigError: the file that is not as it was written, and why.
    """
    path = folder / META
    try:
        meta = json.loads(path.read_bytes())
        checksum = meta.pop("checksum", None)
    except OSError as error:
        fix = "Make rows with MemmapStorage(capacity, path), and fill them"
        raise ConfigError(explain("path", f"a folder with rows and their {META}", f"{folder}: {error}", fix)) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged(path, "JSON as it was written", str(error)) from error
    if meta.get("format") != FORMAT or checksum != _checksum(meta):
        raise damaged(path, f"that of {FORMAT!r} with a right checksum", f"format {meta.get('format')!r}, checksum {checksum}")
    if meta["version"] != VERSION:
        fix = "Read them with the version of rlbook that wrote them"
        raise ConfigError(explain(f"The version of {path}", str(VERSION), str(meta["version"]), fix))
    sizes = {block["file"]: Block.from_json(block).size(meta["capacity"]) for block in meta["blocks"]}
    for name in (*sizes, CURSOR, LOCK):
        file = folder / name
        if not file.is_file():
            raise damaged(file, "there", "no such file")
        if name in sizes and file.stat().st_size != sizes[name]:
            raise damaged(file, f"{sizes[name]:,} bytes", f"{file.stat().st_size:,}")
    return meta


class OpenMap:
    """The files of a folder, mapped.

    Attributes:
        data: the tensor of each block.
        cursor: the file; ``now`` is what it says, as far as this process knows.
        writer: counts the rows; a flush commits as many as it says.
    """

    def __init__(self, folder: Path, capacity: int, blocks: Sequence[Block], writer: Writer, *, readonly: bool, shared: bool):
        self.readonly, self.shared, self.writer, self.process = readonly, shared, writer, os.getpid()
        self.lock = None if readonly else claim(folder / LOCK, shared)
        self.cursor = CursorFile(folder / CURSOR, readonly=readonly)
        self.now = self.cursor.load()
        self.memory = [map_file(folder / block.file, readonly) for block in blocks]
        self.data = [block.tensor(memory, capacity) for block, memory in zip(blocks, self.memory, strict=True)]

    def store(self, now: Cursor) -> None:
        """Write the cursor."""
        self.now = now
        self.cursor.store(now)

    def reserve(self, end: int, streams: int) -> None:
        """Say that rows with numbers below ``end`` are about to be written."""
        self.store(replace(self.now, streams=streams, reserved=max(self.now.reserved, end)))

    def commit(self) -> None:
        """Say that all rows that the writer counts are whole."""
        total = self.writer.total
        streams = getattr(self.writer, "streams", 0) or 1
        self.store(replace(self.now, streams=streams, committed=total, reserved=max(self.now.reserved, total)))

    def flush(self) -> None:
        """Bring the rows to the disk, and then the cursor that says that they are there."""
        for memory in self.memory:
            memory.flush()
        self.commit()
        self.cursor.flush()

    def close(self) -> None:
        """Flush, and let others write. A process that was forked from the writer, or shares the rows, has nothing to flush."""
        if self.lock is None or self.process != os.getpid():
            return
        if not self.shared:
            self.flush()
        unlock(self.lock)
        self.lock = None


def claim(path: Path, shared: bool) -> int:
    """Lock the rows for this process, or for all that share them; return the descriptor that holds the lock."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        flock(descriptor, shared=shared, wait=False)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode(errors="replace") or "unknown"
        os.close(descriptor)
        fix = "Open them with readonly=True, or write from several processes with a SharedReplayBuffer"
        raise ConfigError(explain(f"The rows in {path.parent}", "free", f"those that process {holder} writes", fix)) from error
    except BaseException:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def map_file(path: Path, readonly: bool) -> mmap.mmap:
    """Map a file; what a reader writes by mistake would be its own copy."""
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0) if readonly else mmap.MAP_SHARED
    with path.open("rb" if readonly else "r+b") as file:
        return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
