"""Fetch files: resumable, checked, and explained when there is no network."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from rlbook.errors import ConfigError, RLBookError, explain

CHUNK = 1 << 20
TIMEOUT = 30.0


class DownloadError(RLBookError, OSError):
    """A file could not be fetched."""


@dataclass(frozen=True)
class File:
    """A file to download.

    Args:
        url: where it is.
        name: what it is called in the cache, ``/`` allowed; the last part of the url by default.
        size: its bytes, if known.
        sha256, md5: its checksum, if known.
    """

    url: str
    name: str = ""
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def file_name(self) -> str:
        """The name in the cache."""
        return self.name or urllib.parse.unquote(self.url.split("?")[0].rstrip("/").rsplit("/", 1)[-1])


def fetch(file: File, folder: Path, *, retries: int = 3, wait: float = 1.0) -> Path:
    """Return the path of ``file`` in ``folder``; download it unless it is there.

    A download goes to ``<name>.part`` and is continued where it broke off, now or in a later run, if the server can (HTTP Range).
    A file that is there is used as it is: put one there by hand where there is no network.

    Args:
        file: what to fetch.
        folder: where to.
        retries: how often to try again when the connection breaks, each time after ``wait`` seconds more.
        wait: see ``retries``.

    Raises:
        DownloadError: it could not be fetched, or is not what it should be (size, checksum).
        ConfigError: the folder cannot be written to, or there is no room.
    """
    path = folder / file.file_name
    if path.exists():
        return path
    make_folder(path.parent)
    part = path.with_name(path.name + ".part")
    for attempt in range(retries + 1):
        try:
            if transfer(file, part):
                break
            problem: Any = "the connection broke off"
        except urllib.error.HTTPError as error:
            error.close()
            problem = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code != 429:  # asking again does not help
                raise unreachable(file, path, problem) from error
        except (OSError, HTTPException) as error:
            problem = getattr(error, "reason", None) or error
        if attempt == retries:
            raise unreachable(file, path, problem)
        time.sleep(wait * attempt)
    verify(file, part)
    os.replace(part, path)
    return path


def transfer(file: File, part: Path) -> bool:
    """Add to ``part`` what it lacks; return whether it is whole now, as far as the server tells how long it is."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(file.url, headers={"User-Agent": "rlbook"} | ({"Range": f"bytes={have}-"} if have else {}))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        error.close()  # nothing from there on: the part is whole, or is not of this file
        if total_of(error.headers) == have:
            return True
        part.unlink()
        return False
    with response:
        goes_on = response.status == 206
        have = have if goes_on else 0  # a server without Range sends everything again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else total_of(response.headers) or file.size
        if total:
            check_room(part.parent, total - have)
        with part.open("ab" if goes_on else "wb") as out:
            progress = Progress(file.file_name, total)
            while chunk := response.read(CHUNK):
                out.write(chunk)
                have += len(chunk)
                progress.show(have)
            progress.end()
    return total is None or have >= total


def total_of(headers: Any) -> int | None:
    """Return the length of the whole file from ``Content-Range: bytes 5-9/10``."""
    total = (headers.get("Content-Range") or "").rpartition("/")[2]
    return int(total) if total.isdigit() else None


def verify(file: File, part: Path) -> None:
    """Raise unless the downloaded file has the size and the checksum it should have; delete it then."""
    problem = None
    if file.size is not None and (size := part.stat().st_size) != file.size:
        problem = f"of {file.size:,} bytes", f"{size:,} bytes"
    for name in ("sha256", "md5"):
        want = getattr(file, name)
        if want and not problem:
            with part.open("rb") as opened:
                got = hashlib.file_digest(opened, name).hexdigest()
            problem = (f"of {name} {want}", got) if got != want.lower() else None
    if problem:
        part.unlink()
        fix = "It was deleted, so try again; if that does not help, the file was changed at its source"
        raise DownloadError(explain(f"The file downloaded from {file.url}", *problem, fix))


def unreachable(file: File, path: Path, problem: Any) -> DownloadError:
    """Return the error for a file that cannot be fetched: how to put it there by hand."""
    fix = (
        f"Go online and try again: it continues where it stopped. Or fetch the file on another machine and put it at {path}, "
        f"from where it is used as it is (the environment variable RLBOOK_DATA names another cache)"
    )
    return DownloadError(explain(f"The file {file.url}", "reachable", str(problem), fix))


class Progress:
    """A line of text in a terminal; nothing elsewhere."""

    def __init__(self, name: str, total: int | None):
        self.name, self.total = name, total
        self.started = self.shown = time.monotonic()
        self.quiet = not sys.stderr.isatty()

    def show(self, have: int) -> None:
        """Draw the line, at most four times a second."""
        now = time.monotonic()
        if self.quiet or now - self.shown < 0.25:
            return
        self.shown = now
        done = f"{have / 1e6:,.0f} MB"
        if self.total:
            filled = int(24 * have / self.total)
            done = f"[{'#' * filled}{'.' * (24 - filled)}] {done} of {self.total / 1e6:,.0f} MB"
        sys.stderr.write(f"\r{self.name} {done}, {have / 1e6 / (now - self.started):.1f} MB/s ")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self.shown != self.started:
            sys.stderr.write("\n")


# ---- the disk ------------------------------------------------------------------------------------------------------------------
def make_folder(folder: Path) -> None:
    """Make a folder that can be written to.

    Raises:
        ConfigError: it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write to {str(folder)!r}")
    except OSError as error:
        fix = "Pass root=..., or set the environment variable RLBOOK_DATA to a folder of yours"
        raise ConfigError(explain(f"The folder {folder}", "one that can be written to", str(error), fix)) from error


def check_room(folder: Path, needed: int) -> None:
    """Raise ConfigError unless the disk of ``folder`` has room for ``needed`` bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        fix = "Make room, or choose another disk with root=... or the environment variable RLBOOK_DATA"
        want, got = f"free for {needed / 1e9:.2f} GB", f"{free / 1e9:.2f} GB"
        raise ConfigError(explain(f"The disk of {folder}", want, got, fix))


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time do what follows; the lock is gone with the process that holds it, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: the rename at the end of a conversion is what protects it
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"Another process prepares {path.parent}: waiting for it.\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
