"""RoboSet (simulation): Adroit hand and Franka kitchen demonstrations (Kumar et al. 2023, "RoboHive")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from rlbook.datasets.base import bad_file, trajectory
from rlbook.datasets.hdf5 import columns, open_hdf5
from rlbook.datasets.hub import HubDataset

REQUIRED = ("observations", "actions", "rewards", "done")


class Roboset(HubDataset):
    """Demonstrations in MuJoCo.

    Entries: ``observation`` ``[D]``, ``action`` ``[A]``, ``seed`` and ``episode`` (which file, which trial), and the numeric
    entries of the environment's info under ``info``. The files hold as many observations as actions: the last transition of a
    trial, whose next observation is unknown, is left out unless the environment says it is done.

    Args:
        id: a folder of the repository, for example ``"DAPG(expert)/door_v2d-v1"``.
        root: see :class:`~rlbook.datasets.base.PublishedDataset`.
        **buffer: as well.

    Source: https://huggingface.co/datasets/jdvakil/RoboSet_Sim
    """

    source, repo, patterns = "roboset", "jdvakil/RoboSet_Sim", ("*.h5", "*.hdf5")

    def read(self, paths: Sequence[Path]) -> Iterator[TensorDict]:
        for seed, path in enumerate(paths):
            with open_hdf5(path) as file:
                trials = sorted((name for name in file if name.startswith("Trial")), key=lambda name: int(name[5:]))
                if not trials:
                    raise bad_file(path, "one with the groups Trial0, Trial1, ...", f"the groups {sorted(file)[:5]}")
                for number, name in enumerate(trials):
                    yield trial(file[name], path, seed, number)


def trial(group: Mapping[str, Any], path: Path, seed: int, number: int) -> TensorDict:
    """Read one trial."""
    if missing := [name for name in REQUIRED if name not in group]:
        raise bad_file(path, f"one whose trials have {missing}", f"the entries {sorted(group)}")
    observation, action, reward, done = (np.asarray(group[name]) for name in REQUIRED)
    steps = len(reward)
    cut = np.zeros(steps, bool)
    cut[-1] = True
    extra: dict[Any, Any] = {"seed": torch.full((steps,), seed), "episode": torch.full((steps,), number)}
    for key, column in columns(group.get("env_infos", {})).items():
        if column.dtype.kind in "biuf" and column.shape[:1] == (steps,):
            extra["info", *key] = np.asarray(column)
    return trajectory(observation, action, reward, done, cut, extra=extra)
