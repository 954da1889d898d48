"""V-D4RL: continuous control from pixels (Lu et al. 2023, Offline RL from Visual Observations)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from tensordict import TensorDict

from rlbook import keys
from rlbook.datasets.base import bad_file, trajectory
from rlbook.datasets.hdf5 import open_hdf5
from rlbook.datasets.hub import HubDataset
from rlbook.errors import ConfigError, explain

LEVELS = ("random", "medium_replay", "medium", "medium_expert", "expert")
OWN = ("image", "observation", "action", "reward", "discount", "is_first", "is_last", "is_terminal", "step_type")


class VD4RL(HubDataset):
    """Pixels of DeepMind Control, rendered at 64 or 84 pixels.

    Entries: ``pixels`` uint8 (``[64, 64, 3]`` in the 64px files, ``[3, 84, 84]`` in the 84px ones), ``action`` ``[A]``, and what
    else the files hold per step (orientations, height, velocity) at the root. Row t of a file holds the action that *led to* its
    picture, so that a transition takes its action and reward from the row that follows.

    Args:
        id: ``"<main|distracting|multitask>/.../<level>/<64px|84px>"``, a folder of the repository, for example
            ``"main/walker_walk/expert/64px"``.
        root: see :class:`~rlbook.datasets.base.PublishedDataset`.
        **buffer: as well.

    Example:
        >>> data = VD4RL("main/walker_walk/expert/64px", batch_size=32)  # doctest: +SKIP

    Source: https://huggingface.co/datasets/conglu/vd4rl
    """

    source, repo, patterns = "vd4rl", "conglu/vd4rl", ("*.npz", "*.hdf5")

    def __init__(self, id: str, **options: Any):
        if not isinstance(id, str) or not re.fullmatch(r"[^/]+(/[^/]+)+/(64|84)px", id):
            fix = f"For example 'main/walker_walk/expert/64px'; the levels are {', '.join(LEVELS)}"
            raise ConfigError(explain("The id of a VD4RL dataset", "'<group>/<task>/<level>/<64px|84px>'", repr(id), fix))
        super().__init__(id, **options)

    def read(self, paths: Sequence[Path]) -> Iterator[TensorDict]:
        for path in paths:
            with open_table(path) as table:
                yield from episodes(table, path)


@contextmanager
def open_table(path: Path) -> Iterator[Mapping[str, Any]]:
    """Open an ``.npz`` or HDF5 file as a mapping of arrays."""
    if path.suffix != ".npz":
        with open_hdf5(path) as file:
            yield file
        return
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            yield file
    except (OSError, ValueError, BadZipFile, zlib.error) as error:
        raise bad_file(path, "a whole .npz file", f"{type(error).__name__}: {error}") from error


def episodes(table: Mapping[str, Any], path: Path) -> Iterator[TensorDict]:
    """Cut a file into its episodes: one in the 64px files, many in the 84px ones."""
    image = "image" if "image" in table else "observation"
    missing = [name for name in (image, "action", "reward", "discount") if name not in table]
    if missing:
        raise bad_file(path, f"one with {missing}", f"the entries {sorted(table)}")
    if "step_type" in table:  # dm_env's: 0 first, 1 mid, 2 last
        first, terminal = np.asarray(table["step_type"]).reshape(-1) == 0, np.asarray(table["discount"]).reshape(-1) == 0
    else:
        first = np.asarray(table["is_first"]).reshape(-1).astype(bool)
        terminal = np.asarray(table["is_terminal"]).reshape(-1).astype(bool)
    starts = np.flatnonzero(first)
    if not len(starts) or starts[0] != 0:
        raise bad_file(path, "one that begins with the first step of an episode", f"first steps at rows {starts[:3].tolist()}")
    extras = [name for name in table if name not in OWN and len(table[name]) == len(first)]
    for start, end in zip(starts, [*starts[1:], len(first)], strict=True):
        if end - start < 2:  # a reset without a step
            continue
        after = slice(start + 1, end)
        over = np.zeros(end - start - 1, bool)
        over[-1] = True
        observation = {keys.PIXELS: table[image][start:end], **{name: table[name][start:end] for name in extras}}
        yield trajectory(observation, table["action"][after], table["reward"][after], terminal[after], over)
