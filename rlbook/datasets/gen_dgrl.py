"""The generalisation gap in offline RL: Procgen (Mediratta et al. 2024)."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from tensordict import TensorDict

from rlbook import keys
from rlbook.datasets.base import PublishedDataset, bad_file, trajectory
from rlbook.datasets.download import File
from rlbook.datasets.pickles import load_object_array

URL = "https://dl.fbaipublicfiles.com/DGRL/Procgen/Datasets/Compressed"
GAMES = (
    "bigfish bossfight caveflyer chaser climber coinrun dodgeball fruitbot heist jumper leaper maze miner ninja plunder starpilot"
).split()
VARIANTS = {
    "1M_E": "1M/level_200/expert",
    "1M_S": "1M/level_200/suboptimal",
    "10M": "10M/level_200/expert",
    "25M": "25M/level_200/expert",
    "level_1_E": "100k/level_1/expert",
    "level_1_S": "100k/level_1/suboptimal",
    "level_40_E": "100k/level_40/expert",
    "level_40_S": "100k/level_40/suboptimal",
}


class GenDGRL(PublishedDataset):
    """Procgen from pixels. Entries: ``observation`` uint8 ``[3, 64, 64]``, ``action`` int64.

    Args:
        id: ``"<game>-<variant>"``, for example ``"bigfish-1M_E"``.
        root: see :class:`~rlbook.datasets.base.PublishedDataset`.
        **buffer: as well.

    The trajectories are pickled in the archive; only plain data is unpickled (see :mod:`rlbook.datasets.pickles`).

    Source: https://github.com/facebookresearch/gen_dgrl
    """

    source = "gen_dgrl"

    @classmethod
    def ids(cls) -> Sequence[str]:
        return [f"{game}-{variant}" for game in GAMES for variant in VARIANTS]

    def files(self) -> list[File]:
        game, variant = self.id.split("-")
        return [File(f"{URL}/{VARIANTS[variant]}/{game}.tar.xz")]

    def read(self, paths: Sequence[Path]) -> Iterator[TensorDict]:
        for path in paths:
            try:
                with tarfile.open(path, "r:*") as archive:
                    for member in archive:
                        if member.isfile() and member.name.endswith((".npy", ".npz")):
                            yield episode(archive.extractfile(member), path, member.name)  # type: ignore[arg-type]
            except (tarfile.TarError, EOFError, OSError) as error:
                raise bad_file(path, "a .tar.xz archive", f"{type(error).__name__}: {error}") from error

    def about(self, paths: Sequence[Path]) -> dict[str, Any]:
        return {"url": "https://github.com/facebookresearch/gen_dgrl", "license": "CC BY-NC 4.0"}


def episode(file: IO[bytes], archive: Path, name: str) -> TensorDict:
    """Read one trajectory: ``.npy`` with a pickled dictionary, or ``.npz`` with the same entries."""
    content = io.BytesIO(file.read())
    path = archive / name
    data = np.load(content) if name.endswith(".npz") else load_object_array(content, path)
    missing = [key for key in ("observations", "actions", "rewards", "dones") if key not in data]
    if missing:
        raise bad_file(path, f"one with {missing}", f"the entries {sorted(data)}")
    done = np.asarray(data["dones"]).reshape(-1).astype(bool)
    cut = np.zeros_like(done)
    cut[-1] = True  # where the data stop
    images = np.asarray(data["observations"]).astype(np.uint8)
    action = np.asarray(data["actions"]).reshape(-1).astype(np.int64)
    return trajectory({keys.OBSERVATION: images}, action, data["rewards"], done, cut)
