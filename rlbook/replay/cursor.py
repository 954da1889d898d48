"""What a folder of rows remembers of its writer, and locks that the death of their holder opens."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from rlbook.errors import ConfigError, explain

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@dataclass(frozen=True)
class Cursor:
    """Which rows of a ring are whole. Rows are numbered in the order of time; number ``n`` lies in row ``(origin + n) mod rows``.

    Before number ``n`` is overwritten by ``n + rows``, ``reserved`` is raised beyond that; ``committed`` is raised when rows
    are whole. So whatever a writer's death interrupts, the numbers in ``[max(0, reserved - rows), committed)`` are whole.

    Attributes:
        epoch: goes up whenever rows are numbered anew.
        origin: the row that number 0 lies in.
        streams: how many environments step together.
        committed, reserved: numbers of rows.
    """

    epoch: int = 0
    origin: int = 0
    streams: int = 0
    committed: int = 0
    reserved: int = 0

    def rows(self, capacity: int) -> int:
        """The rows in use: whole steps only."""
        return capacity // max(self.streams, 1) * max(self.streams, 1)

    def first(self, capacity: int) -> int:
        """The number of the oldest row that is whole."""
        return max(0, self.reserved - self.rows(capacity))

    def recovered(self, capacity: int) -> Cursor:
        """Return the cursor to go on with when the writer is dead.

        Nothing of a ring that is not yet full was overwritten. In a full one the interrupted rows leave a gap between the newest
        and the oldest: the oldest becomes number 0, and the ring counts as not yet full.
        """
        first, rows = self.first(capacity), self.rows(capacity)
        if first == max(0, self.committed - rows):
            return Cursor(self.epoch, self.origin, self.streams, self.committed, self.committed)
        size = max(0, self.committed - first)
        return Cursor(self.epoch + 1, (self.origin + first) % rows, self.streams, size, size)


_NUMBERS = struct.Struct("<5q")
_SIZE = _NUMBERS.size + 4  # with the checksum
_SLOTS = (0, 64)


class CursorFile:
    """A cursor in a memory-mapped file, twice, with checksums: whenever a process dies while it writes, one copy is whole."""

    def __init__(self, path: Path, *, readonly: bool):
        self.path = path
        with path.open("rb" if readonly else "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE)

    @staticmethod
    def create(path: Path) -> None:
        """Write the file for a ring without rows."""
        path.write_bytes(_encoded(Cursor()).ljust(_SLOTS[1], b"\0") * 2)

    def load(self) -> Cursor:
        """Return the newest cursor.

        Raises:
            ConfigError: both copies are damaged.
        """
        for _ in range(100):  # a living writer may be at one copy, then at the other
            for start in _SLOTS:
                data = self._memory[start : start + _SIZE]
                if len(data) == _SIZE and crc32(data[:-4]) == int.from_bytes(data[-4:], "little"):
                    return Cursor(*_NUMBERS.unpack(data[:-4]))
            time.sleep(0.001)
        raise damaged(self.path, "a cursor with a right checksum", "two copies that are both wrong")

    def store(self, cursor: Cursor) -> None:
        """Write both copies, the first one first: if it is whole it is the newest."""
        data = _encoded(cursor)
        for start in _SLOTS:
            self._memory[start : start + _SIZE] = data

    def flush(self) -> None:
        """Return when the disk has it."""
        self._memory.flush()


def _encoded(cursor: Cursor) -> bytes:
    numbers = _NUMBERS.pack(cursor.epoch, cursor.origin, cursor.streams, cursor.committed, cursor.reserved)
    return numbers + crc32(numbers).to_bytes(4, "little")


def damaged(path: Path, expected: str, got: str) -> ConfigError:
    """Return the error about a file that is not as it was written."""
    return ConfigError(
        explain(f"The file {path}", expected, got, "Restore the folder from a copy, or delete it and fill a new one")
    )


# ---- locks ------------------------------------------------------------------------------------------------------------------
@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder. The kernel opens it when this process dies, however it dies.

    Raises:
        ConfigError: there is no such file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        fix = "Rows in shared memory end with the process that made them: keep it alive"
        raise ConfigError(explain("The rows", f"in {path.parent}", "nothing there any more", fix)) from error
    try:
        flock(descriptor)
        yield
    finally:
        unlock(descriptor)


def flock(descriptor: int, *, shared: bool = False, wait: bool = True) -> None:
    """Lock an open file for this process, or for all that share it.

    Raises:
        BlockingIOError: another one has it, and ``wait`` is false.
    """
    if fcntl is None:
        fix = "Keep rows in memory here: TensorStorage(capacity)"
        raise ConfigError(explain("The system", "one with POSIX file locks", os.name, fix))
    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def unlock(descriptor: int) -> None:
    """Open the lock, and close the file: that alone would not do while a process forked meanwhile has it open too."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
