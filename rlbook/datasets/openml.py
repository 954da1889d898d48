"""OpenML: tables for contextual bandits (Vanschoren et al. 2014; the reduction is that of Dudik et al. 2011, section 5)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDict

from rlbook import keys
from rlbook.datasets.base import PublishedDataset, as_tensor, bad_file
from rlbook.datasets.download import DownloadError
from rlbook.errors import ConfigError, MissingExtraError, explain

LABEL = "label"
KNOWN = {"covertype": 3}
"""Versions other than 1 by default."""


class OpenML(PublishedDataset):
    """A table with a class to predict.

    Entries: ``observation`` float32 ``[D]`` (numbers standardised, categories one-hot), ``label`` int64. A contextual bandit
    pays 1 for the action that equals the label. ``info["table"]`` names the classes and the features. A missing number
    becomes the mean, a missing category a category of its own; rows without a label are left out.

    Args:
        id: ``"<name>"``, ``"<name>-v<version>"`` or OpenML's number: ``"adult"``, ``"covertype-v3"``, ``"40945"``.
        root: see :class:`~rlbook.datasets.base.PublishedDataset`.
        **buffer: as well.

    Source: https://www.openml.org, through scikit-learn, whose cache is the folder ``raw``.
    """

    source, transitions = "openml", False

    def __init__(self, id: str, **options: Any):
        match = re.fullmatch(r"([^/]+?)(?:-v(\d+))?", id) if isinstance(id, str) else None
        if match is None:
            raise ConfigError(
                explain("The id of an OpenML table", "'<name>' or '<name>-v<version>'", repr(id), "Like 'adult-v2'")
            )
        self.table = match[1]
        self.version = None if self.table.isdigit() else int(match[2] or KNOWN.get(self.table, 1))
        super().__init__(self.table if self.version is None else f"{self.table}-v{self.version}", **options)

    def fetch(self, folder: Path) -> list[Path]:
        try:
            from sklearn.datasets import fetch_openml
        except ImportError as error:
            raise MissingExtraError("scikit-learn", "offline", "Reading OpenML tables") from error
        try:
            # liac-arff: the other parser misreads categories that are whole numbers
            which: Any = {"data_id": int(self.table)} if self.version is None else {"name": self.table, "version": self.version}
            self.bunch: Any = fetch_openml(**which, parser="liac-arff", data_home=str(folder), as_frame=True)
        except OSError as error:
            fix = (
                "Go online and try again. Or run sklearn.datasets.fetch_openml with the same name and version on another machine "
                f"and copy its folder scikit_learn_data/openml to {folder / 'openml'}"
            )
            raise DownloadError(explain(f"The table {self.id!r} of www.openml.org", "reachable", str(error), fix)) from error
        except ValueError as error:  # no such name, or no such version
            fix = "Look for it on www.openml.org and name the version: 'adult-v2'"
            raise ConfigError(
                explain("The id of an OpenML table", "a name and a version", f"{self.id!r}: {error}", fix)
            ) from error
        return sorted(path for path in (folder / "openml").rglob("*.gz"))

    def count(self, paths: Sequence[Path]) -> int:
        return int(self.bunch.target.notna().sum())

    def read(self, paths: Sequence[Path]) -> Iterator[TensorDict]:
        target = self.bunch.target
        if target is None or target.dtype.kind in "fiu":
            got = "none" if target is None else f"numbers ({target.dtype})"
            raise bad_file(paths[0], "one with a class to predict", got)
        kept = target.notna().to_numpy()
        target = target[kept].astype("category")
        label = target.cat.codes.to_numpy().astype(np.int64)
        observation, names = encode(self.bunch.data[kept])
        self.summary |= {"classes": [str(name) for name in target.cat.categories], "features": names}
        yield TensorDict({keys.OBSERVATION: as_tensor(observation), LABEL: as_tensor(label)}, (len(label),))

    def about(self, paths: Sequence[Path]) -> dict[str, Any]:
        self.summary: dict[str, Any] = {}
        return {"url": f"https://www.openml.org/d/{self.bunch.details['id']}", "table": self.summary}


def encode(table: Any) -> tuple[np.ndarray, list[str]]:
    """Return a data frame as numbers ``[N, D]``: standardised numbers, one-hot categories; and the names of the columns."""
    blocks, names = [], []
    for name, column in table.items():
        if column.dtype.kind in "fiub":
            value = column.to_numpy(dtype=np.float64, na_value=np.nan)
            deviation = np.nanstd(value)
            value = (value - np.nanmean(value)) / (deviation if deviation > 0 else 1.0)
            blocks.append(np.nan_to_num(value)[:, None])
            names.append(str(name))
        else:
            column = column.astype("category")
            codes, count = column.cat.codes.to_numpy(), len(column.cat.categories)
            missing = bool((codes < 0).any())
            blocks.append(np.eye(count + missing)[codes])  # code -1, missing, is the last one
            names += [f"{name}={value}" for value in [*column.cat.categories, *["?"] * missing]]
    return np.concatenate(blocks, 1).astype(np.float32), names
