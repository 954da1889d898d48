"""The DQN replay dataset: 60 Atari games (Agarwal et al. 2020, "An Optimistic Perspective on Offline RL")."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDict

from rlbook import keys
from rlbook.datasets.base import PublishedDataset, bad_file, trajectory
from rlbook.datasets.download import File
from rlbook.errors import ConfigError, explain

URL = "https://storage.googleapis.com/atari-replay-datasets/dqn"
ENTRIES = ("$store$_observation", "$store$_action", "$store$_reward", "$store$_terminal", "add_count")
ROWS = 4096
"""Rows that are read at a time: a shard is 7 GB, and need not fit in memory."""


class AtariDQN(PublishedDataset):
    """What a DQN agent saw while it learned. Entries: ``pixels`` uint8 ``[84, 84]`` (one frame, not stacked), ``action`` int64.

    A shard is Dopamine's replay memory at one moment, a ring: it is cut at its cursor, where the newest step stands beside the
    oldest. The files tell where a game is over, not where it was cut off. Stack frames when you sample: a slice of 4 steps holds
    them.

    Args:
        id: ``"<Game>/<run>/<shard>"`` or ``"<Game>/<run>/<first>-<last>"``: runs 1 to 5, shards 0 to about 49 of a million
            steps each, for example ``"Pong/1/0"`` or ``"Breakout/3/0-9"``.
        root: see :class:`~rlbook.datasets.base.PublishedDataset`.
        **buffer: as well.

    Source: https://github.com/google-research/batch_rl; frames of 84 x 84, frame skip 4, sticky actions 0.25.
    """

    source = "atari_dqn"

    def __init__(self, id: str, **options: Any):
        parts = id.split("/") if isinstance(id, str) else []
        shards = parts[2].split("-") if len(parts) == 3 else []
        if not (len(shards) in (1, 2) and all(s.isdigit() for s in shards) and parts[1] in "12345" and parts[0].isalnum()):
            fix = "For example AtariDQN('Pong/1/0') for one shard, AtariDQN('Pong/1/0-9') for ten"
            raise ConfigError(explain("The id of an AtariDQN dataset", "'<Game>/<run 1-5>/<shard>'", repr(id), fix))
        self.shards = range(int(shards[0]), int(shards[-1]) + 1)
        if not self.shards:
            raise ConfigError(explain("The shards", "in rising order", repr(parts[2]), "For example 'Pong/1/0-9'"))
        self.folder_url = f"{URL}/{parts[0]}/{parts[1]}/replay_logs" if shards else ""
        super().__init__(id, **options)

    def files(self) -> list[File]:
        names = [f"{entry}_ckpt.{shard}.gz" for shard in self.shards for entry in ENTRIES]
        return [File(f"{self.folder_url}/{name.replace('$', '%24')}", name) for name in names]

    def read(self, paths: Sequence[Path]) -> Iterator[TensorDict]:
        for i in range(0, len(paths), len(ENTRIES)):
            yield from shard(dict(zip(ENTRIES, paths[i : i + len(ENTRIES)], strict=True)))

    def count(self, paths: Sequence[Path]) -> int:
        return sum(len(piece) for piece in self.read_without_pictures(paths))

    def read_without_pictures(self, paths: Sequence[Path]) -> Iterator[TensorDict]:
        """Yield the same pieces without pictures, which take the time."""
        for i in range(0, len(paths), len(ENTRIES)):
            yield from shard(dict(zip(ENTRIES, paths[i : i + len(ENTRIES)], strict=True)), pictures=False)

    def about(self, paths: Sequence[Path]) -> dict[str, Any]:
        return {"url": "https://github.com/google-research/batch_rl", "observation": "one frame of 84 x 84, gray"}


def shard(paths: dict[str, Path], pictures: bool = True) -> Iterator[TensorDict]:
    """Yield the games of one shard, in pieces of at most :data:`ROWS` steps."""
    action, reward, terminal = (load(paths[f"$store$_{name}"]) for name in ("action", "reward", "terminal"))
    rows = len(action)
    if not len(reward) == len(terminal) == rows:
        raise bad_file(paths["$store$_reward"], f"of {rows} rows", f"{len(reward)} rewards, {len(terminal)} terminals")
    cursor = int(load(paths["add_count"])) % rows
    ends = sorted({*(np.flatnonzero(terminal) + 1).tolist(), cursor, rows} - {0})
    frames: Any = Frames(paths["$store$_observation"], rows) if pictures else Blank()
    with frames:
        start = 0
        for end in ends:
            cuts = [*range(start, end - 1, ROWS), end] if end - start > 1 else [start, end]  # no last piece of a single row
            for first, last in pairwise(cuts):
                yield from piece(frames, first, last, last < end, action, reward, terminal.astype(bool))
            start = end


def piece(frames: Any, first: int, last: int, goes_on: bool, action: Any, reward: Any, terminal: Any) -> Iterator[TensorDict]:
    """Yield the steps ``[first, last)`` of one game; with the frame that follows if the game goes on."""
    images = frames.take(first, last + goes_on)
    cut = np.zeros(last - first, bool)
    cut[-1] = not goes_on
    rows = slice(first, last)
    out = trajectory({keys.PIXELS: images}, action[rows].astype(np.int64), reward[rows], terminal[rows], cut)
    if len(out):
        yield out


class Frames:
    """The frames of a shard, read in order from the compressed file."""

    def __init__(self, path: Path, rows: int):
        self.path, self.rows, self.at = path, rows, 0
        self.kept = np.zeros((0, 84, 84), np.uint8)

    def __enter__(self) -> Frames:
        self.file = gzip.open(self.path)
        shape, dtype = header(self.file, self.path)
        if shape[0] != self.rows or dtype != np.uint8:
            raise bad_file(self.path, f"uint8 [{self.rows}, 84, 84]", f"{dtype} {list(shape)}")
        self.shape = shape[1:]
        self.kept = np.zeros((0, *self.shape), np.uint8)
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()

    def take(self, first: int, last: int) -> np.ndarray:
        """Return the frames ``[first, last)``; each call begins where the one before ended, or one frame earlier."""
        kept = self.kept[len(self.kept) - (self.at - first) :]
        count = last - self.at
        data = read_exactly(self.file, count * int(np.prod(self.shape)), self.path)
        new = np.frombuffer(data, np.uint8).reshape(count, *self.shape)
        self.at, self.kept = last, new[-1:]
        return np.concatenate((kept, new))


class Blank:
    """Frames of no size, to count rows."""

    def __enter__(self) -> Blank:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def take(self, first: int, last: int) -> np.ndarray:
        """Return ``last - first`` frames of no size."""
        return np.zeros((last - first, 0), np.uint8)


def load(path: Path) -> np.ndarray:
    """Return a whole compressed array."""
    with gzip.open(path) as file:
        shape, dtype = header(file, path)
        return np.frombuffer(read_exactly(file, int(np.prod(shape)) * dtype.itemsize, path), dtype).reshape(shape)


def header(file: Any, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Read the header of a ``.npy`` file; return shape and dtype."""
    try:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise bad_file(path, "a compressed .npy file", f"{type(error).__name__}: {error}") from error
    return shape, dtype


def read_exactly(file: Any, size: int, path: Path) -> bytes:
    """Read ``size`` bytes, or raise."""
    try:
        data = file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise bad_file(path, "a whole compressed file", f"{type(error).__name__}: {error}") from error
    if len(data) != size:
        raise bad_file(path, "a whole compressed file", f"{size - len(data)} bytes too few")
    return data
