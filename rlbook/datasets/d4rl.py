"""D4RL: transitions of simulated robots and mazes, one HDF5 file each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from rlbook import keys
from rlbook.datasets._d4rl_files import SERVER, d4rl_files, reference_returns
from rlbook.datasets.base import PublishedDataset, trajectory
from rlbook.datasets.download import File, fetch
from rlbook.datasets.hdf5 import block_of, check_columns, columns, open_hdf5
from rlbook.errors import ConfigError, explain

NEEDED = (("observations",), ("actions",), ("rewards",))
TIME_LIMIT = {"halfcheetah": 1000, "hopper": 1000, "walker2d": 1000, "ant": 1000}
"""Steps after which an episode was cut off, for files that do not say so (``timeouts``)."""


class D4RL(PublishedDataset):
    """A dataset of D4RL (Fu et al. 2020), read from its HDF5 file; neither the package d4rl nor MuJoCo is needed.

    ``terminals`` become ``terminated``, ``timeouts`` become ``truncated``, ``infos/...`` become ``info``, and the behaviour
    policy's ``infos/action_log_probs`` become ``action_log_prob``. Where the file has no ``next_observations`` the next
    observation is that of the next row, and the last transition of an episode that timed out is left out, for its true next
    observation is not in the file. A terminal one stays: its next observation is not known either, and repeats its own; since
    no value follows a terminal state, nothing reads it.

    Args:
        id: for example ``"halfcheetah-medium-v2"``; ``D4RL.ids()`` lists all.
        root, **buffer: see :class:`~rlbook.datasets.PublishedDataset`.

    A file in ``$D4RL_DATASET_DIR`` or ``~/.d4rl/datasets``, where the package d4rl puts it, is used as it is.

    Example:
        >>> dataset = D4RL("halfcheetah-medium-v2", batch_size=256)  # doctest: +SKIP
        >>> dataset.sample()["next", "reward"].shape  # doctest: +SKIP
        torch.Size([256])
    """

    source = "d4rl"

    @classmethod
    def ids(cls) -> list[str]:
        return list(d4rl_files())

    def files(self) -> list[File]:
        return [File(SERVER + d4rl_files()[self.id])]

    def fetch(self, folder: Path) -> list[Path]:
        (file,) = self.files()
        theirs = Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets").expanduser() / file.file_name
        return [theirs if theirs.exists() else fetch(file, folder)]

    def about(self, paths: Sequence[Path]) -> dict[str, Any]:
        with open_hdf5(paths[0]) as file:
            found = columns(file)
            texts = {"/".join(key[1:]): column[()] for key, column in found.items() if key[0] == "metadata" and not column.shape}
        about: dict[str, Any] = {
            "url": "https://github.com/Farama-Foundation/D4RL",
            "license": "CC-BY 4.0",
            "citation": "Fu, Kumar, Nachum, Tucker, Levine. D4RL: Datasets for Deep Data-Driven RL. arXiv:2004.07219, 2020",
            "metadata": {name: text.decode() if isinstance(text, bytes) else text.item() for name, text in texts.items()},
            "next_observations": ("next_observations",) in found,
        }
        reference = reference_returns(self.id)
        return about | ({"reference_returns": reference} if reference else {})

    def count(self, paths: Sequence[Path]) -> int:
        with open_hdf5(paths[0]) as file:
            return int(self._flags(paths[0], columns(file))[2].sum())

    def read(self, paths: Sequence[Path]) -> Iterator[TensorDict]:
        with open_hdf5(paths[0]) as file:
            found = columns(file)
            terminated, truncated, kept = self._flags(paths[0], found)
            infos = {key: column for key, column in found.items() if key[0] == "infos" and column.shape[:1] == terminated.shape}
            check_columns(paths[0], found, list(infos), len(terminated))
            step = block_of([*infos.values(), *(found[key] for key in NEEDED)])
            for start in range(0, len(terminated), step):
                rows = slice(start, min(start + step, len(terminated)))
                piece = trajectory(
                    found["observations",][rows],
                    found["actions",][rows],
                    found["rewards",][rows],
                    terminated[rows],
                    truncated[rows],
                    next_observation=next_rows(found, rows, terminated[rows]),
                    extra={info_name(key): column[rows] for key, column in infos.items()},
                )[kept[rows]]
                if len(piece):
                    yield piece

    def normalized_score(self, returns: Tensor | float) -> Any:
        """Scale returns to 0 for a random and 100 for an expert policy: ``100 (R - R_random) / (R_expert - R_random)``.

        Raises:
            ConfigError: no returns to compare with are known for this dataset.
        """
        if "reference_returns" not in self.info:
            fix = "Scale them by returns that you have measured"
            raise ConfigError(explain(f"The reference returns of {self.id}", "known", "none", fix))
        low, high = self.info["reference_returns"]
        return 100.0 * (returns - low) / (high - low)

    def _flags(self, path: Path, found: dict[tuple[str, ...], Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return which rows terminate, which are truncated, and which are kept, bool ``[N]``."""
        check_columns(path, found, NEEDED)
        optional = [name for name in (("terminals",), ("timeouts",), ("next_observations",)) if name in found]
        check_columns(path, found, optional, len(found["rewards",]))
        rows = len(found["rewards",])
        terminated, truncated = (
            torch.from_numpy(found[name][()].reshape(-1).astype(bool)) if name in found else torch.zeros(rows, dtype=torch.bool)
            for name in (("terminals",), ("timeouts",))
        )
        limit = TIME_LIMIT.get(self.id.split("-")[0])
        if ("timeouts",) not in found and limit:
            truncated = timeouts_after(terminated, limit)
        if rows:
            truncated[-1] = True  # the data stop
        truncated &= ~terminated
        if ("next_observations",) in found:
            return terminated, truncated, torch.ones(rows, dtype=torch.bool)
        kept = ~truncated
        truncated = torch.cat((truncated[1:], truncated[:0].new_zeros(min(rows, 1)))) & ~terminated
        return terminated, truncated, kept


def next_rows(found: dict[tuple[str, ...], Any], rows: slice, terminated: Tensor) -> np.ndarray:
    """Return what was observed after each of the rows; where nothing is known, the row's own observation."""
    if ("next_observations",) in found:
        return found["next_observations",][rows]
    own = found["observations",][rows]
    following = found["observations",][rows.start + 1 : rows.stop + 1]
    if len(following) < len(own):  # the last row of the file
        following = np.concatenate((following, own[-1:]))
    following[terminated.numpy()] = own[terminated.numpy()]
    return following


def timeouts_after(terminated: Tensor, limit: int) -> Tensor:
    """Mark every ``limit``-th step of an episode, counted from the last end, bool ``[N]``."""
    rows = torch.arange(len(terminated))
    begins = torch.cat((torch.zeros(1, dtype=torch.long), rows[terminated] + 1))
    begin = begins[torch.bucketize(rows, begins, right=True) - 1]
    return (rows - begin + 1) % limit == 0


def info_name(key: tuple[str, ...]) -> Any:
    """Return the entry that ``infos/...`` goes to."""
    return keys.LOG_PROB if key == ("infos", "action_log_probs") else ("info", *key[1:])
