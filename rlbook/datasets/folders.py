"""A dataset on disk: rows in a memory map, ``episodes.npy`` and ``info.json`` in one folder, written whole or not at all."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase

from rlbook import keys
from rlbook.datasets.download import check_room, make_folder
from rlbook.datasets.layout import check_piece
from rlbook.errors import ConfigError, explain
from rlbook.replay.memmap import MemmapStorage

FORMAT = 1
"""Raise it when the layout on disk changes: older conversions are then made again."""


def write_dataset(
    path: Path,
    pieces: Iterable[TensorDictBase | tuple[int, TensorDictBase]],
    rows: int,
    about: Mapping[str, Any],
    *,
    transitions: bool = True,
) -> dict[str, Any]:
    """Write a stream of trajectories as a dataset at ``path``, whole or not at all; return its ``info``.

    The folder is written beside ``path`` under another name and renamed at the end. What an earlier run left half done is thrown
    away; what stood at ``path`` before is replaced in the last moment.

    Args:
        path: the folder to make.
        pieces: trajectories ``[T]`` in order of time, or pairs of the row where one belongs and the trajectory.
        rows: how many rows they have together.
        about: goes to ``info``.
        transitions: check that the pieces are transitions in TED layout.

    Raises:
        MissingKeyError, SpecError, NonFiniteError: a piece is not what it should be.
        ConfigError: there are no rows, not as many as announced, or no room for them.
    """
    if rows < 1:
        fix = "The source is empty; look at its files"
        raise ConfigError(explain(f"The dataset {about.get('id', path.name)!r}", "of at least one transition", "none", fix))
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    storage, written = MemmapStorage(rows, partial / "rows"), 0
    try:
        for item in pieces:
            row, piece = item if isinstance(item, tuple) else (written, item)
            if transitions:
                check_piece(piece, row)
            if not written:
                check_room(path.parent, rows * sum(value.nbytes // len(piece) for value in piece.values(True, True)))
            written += len(piece)
            if written > rows:
                raise miscounted(rows, f"at least {written}")
            batch, count, _ = storage.pack(piece)
            storage.write(slice(row, row + count), batch, slice(0, count))
        if written != rows:
            raise miscounted(rows, str(written))
        info = finish(storage, partial, {**about, "format": FORMAT, "rows": rows})
    except BaseException:
        del storage
        shutil.rmtree(partial, ignore_errors=True)
        raise
    del storage
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():  # of an older format, or of older files: renamed first, for deleting takes time
        os.replace(path, old)
    os.replace(partial, path)
    shutil.rmtree(old, ignore_errors=True)
    return info


def finish(storage: MemmapStorage, folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write what belongs to the rows and bring everything to the disk; return ``info``."""
    storage.flush()
    episodes = find_episodes(storage, about["rows"])
    np.save(folder / "episodes.npy", episodes)
    info = {**about, **summary(*episodes)}
    ends = episodes[1].cumsum()
    for level in info.get("levels", {}).values():  # of a mixed dataset
        begin, end = level["rows"]
        level |= summary(*episodes[:, (ends > begin) & (ends <= end)])
    with (folder / "info.json").open("w") as file:
        json.dump(info, file, indent=1, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
        file.flush()
        os.fsync(file.fileno())
    return info


def find_episodes(storage: MemmapStorage, rows: int, block: int = 1 << 20) -> np.ndarray:
    """Return the returns and the lengths of the finished episodes, in order, float64 ``[2, E]``."""
    found = [np.zeros((2, 0))]
    total, length = 0.0, 0  # of the episode that goes on over the border of two blocks
    for start in range(0, rows, block):
        at = torch.arange(start, min(start + block, rows))
        reward, done = storage.entry((keys.NEXT, keys.REWARD), at), storage.entry((keys.NEXT, keys.DONE), at)
        if reward is None or done is None:
            break
        sums, ends = np.cumsum(reward.double().numpy()) + total, done.numpy().nonzero()[0]
        found.append(np.stack((np.diff(sums[ends], prepend=0.0), np.diff(ends + 1 + length, prepend=0))))
        total = sums[-1] - (sums[ends[-1]] if len(ends) else 0.0)
        length = len(at) - 1 - ends[-1] if len(ends) else length + len(at)
    return np.concatenate(found, axis=1)


def summary(returns: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """Return the number of episodes, and the mean, standard deviation and range of their returns and lengths."""
    if not len(returns):
        return {"episodes": 0}
    parts = {"returns": returns, "lengths": lengths}
    return {"episodes": len(returns)} | {
        name: {how: float(getattr(values, how)()) for how in ("mean", "std", "min", "max")} for name, values in parts.items()
    }


def miscounted(rows: int, got: str) -> ConfigError:
    """Return the error for a source that does not yield as many rows as it said."""
    return ConfigError(explain("The rows of a source", f"{rows}, as count() says", got, "Mend count(), or leave it out"))


# ---- the cache ----------------------------------------------------------------------------------------------------
def data_root(root: str | Path | None = None) -> Path:
    """Return the cache: ``root``, else ``$RLBOOK_DATA``, else ``~/.cache/rlbook/datasets``."""
    return Path(root or os.environ.get("RLBOOK_DATA") or Path.home() / ".cache" / "rlbook" / "datasets").expanduser()


def recorded_path(path: str | Path) -> Path:
    """Return the folder of a recorded dataset: a path as it is, a mere name in the cache."""
    if isinstance(path, str) and "/" not in path:
        return data_root() / "recorded" / check_id(path, (), "recorded")
    return Path(path).expanduser()


def check_id(id: str, known: Sequence[str], source: str) -> str:
    """Return ``id`` if it can name a folder and is among the known ones (if any are), else raise with near ones."""
    parts = id.split("/") if isinstance(id, str) else [""]
    if not all(part.strip() and part not in (".", "..") and "\\" not in part and "\0" not in part for part in parts):
        fix = f"For example {known[0]!r}" if known else "See the source's own list"
        raise ConfigError(explain(f"The id of a {source} dataset", "its name", repr(id), fix))
    if known and id not in known:
        near = difflib.get_close_matches(id, known, n=4, cutoff=0.4) or list(known[:4])
        fix = f"Perhaps {', '.join(map(repr, near))}; {source}.ids() lists all"
        raise ConfigError(explain(f"The id of a {source} dataset", f"one of {len(known)} known ones", repr(id), fix))
    return id


def read_info(path: Path) -> dict[str, Any]:
    """Return the ``info`` of the dataset at ``path``.

    Raises:
        ConfigError: there is none, or it is not whole.
    """
    try:
        info = json.loads((path / "info.json").read_text())
    except (OSError, ValueError) as error:
        fix = "Check the path; rlbook.datasets.record() makes datasets, D4RL(id), Minari(id), ... fetch them"
        raise ConfigError(explain("The path of a dataset", "a folder with an info.json", f"{path} ({error})", fix)) from error
    if info.get("format") != FORMAT:
        fix = "It was made by another version of rlbook: make it again"
        raise ConfigError(explain(f"The dataset {path}", f"of format {FORMAT}", repr(info.get("format")), fix))
    return info


def is_current(path: Path) -> bool:
    """Return whether a whole dataset is at ``path`` and the files it was made from are gone or unchanged."""
    try:
        info = read_info(path)
    except ConfigError:
        return False
    return all(not Path(old["path"]).exists() or fingerprint(Path(old["path"])) == old for old in info.get("files", ()))


def fingerprints(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Describe raw files by name, size and time, to notice when one is exchanged."""
    return [fingerprint(path) for path in paths]


def fingerprint(path: Path) -> dict[str, Any]:
    """Describe a raw file by name, size and time."""
    stat = path.stat()
    return {"path": str(path.absolute()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
