"""A dataset is a memory-mapped :class:`~rlbook.replay.ReplayBuffer` in TED layout that nobody writes to any more.

How to add a source (D4RL, Minari, ...): one class in one file, which says three things about an ``id``::

    class MySource(PublishedDataset):
        source = "my_source"                      # the folder in the cache

        def files(self) -> list[File]:            # what to download (rlbook.datasets.download.File)
            return [File(f"https://example.org/{self.id}.npz", sha256="...")]

        def read(self, paths) -> Iterator[TensorDict]:
            for path in paths:                    # yield trajectories [T] in order of time, best made by trajectory(...)
                yield trajectory(observation, action, reward, terminated, truncated)

        def about(self, paths) -> dict:           # goes to dataset.info: url, license, citation, action_space, ...
            return {"url": "https://example.org", "license": "CC-BY 4.0"}

The rest follows: the files are downloaded once, converted once into ``<cache>/<source>/<id>/data`` and reopened from there, with
or without the raw files (``<cache>/<source>/<id>/raw``; delete them to save room). The cache is ``$RLBOOK_DATA``, else
``~/.cache/rlbook/datasets``. Conversion streams: ``read`` is a generator, and only one piece is in memory at a time.

The rules for a reader:

* A piece is a trajectory, a part of one, or several: transitions in order of time. An episode goes on, also from one piece to
  the next, until ``next.done``; so the last transition of every episode says ``terminated`` or ``truncated`` (truncated also
  where the data merely stop).
* The first observation of an episode is that of a reset. The last transition keeps its true next observation. Where a source does
  not have it, :func:`trajectory` leaves the last transition out unless it terminates; none is invented.
* Numbers per step have shape ``[T]``; floats are float32, integer actions int64, images uint8 as they are stored.
* ``count(paths)`` may tell the exact number of rows cheaply; by default everything is read twice.
* Refuse a wrong file with :func:`bad_file`, which says what to do about it.

Options that change the rows (a resolution, a camera) belong in the id: it names the folder in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tensordict import TensorDict

from rlbook.datasets.download import File, exclusive, fetch, make_folder
from rlbook.datasets.folders import check_id, data_root, fingerprints, is_current, read_info, recorded_path, write_dataset
from rlbook.datasets.layout import as_tensor, bad_file, trajectory
from rlbook.datasets.spaces import action_spec, observation_spec
from rlbook.replay import ImmutableWriter, ReplayBuffer
from rlbook.replay.memmap import MemmapStorage
from rlbook.specs import Composite, Spec

__all__ = ["Dataset", "File", "PublishedDataset", "as_tensor", "bad_file", "trajectory", "write_dataset"]


class Dataset(ReplayBuffer):
    """A folder of transitions, opened read-only: samples like any buffer, and takes no memory but what is sampled.

    Args:
        path: a folder that :func:`write_dataset` or :func:`rlbook.datasets.record` made; or its mere name in the cache.
        **buffer: ``batch_size``, ``sampler``, ``transforms``, ``device``, ``seed``: see :class:`~rlbook.replay.ReplayBuffer`.

    Attributes:
        info: what is known of it: rows, episodes, returns, source, license, ...
        episode_returns, episode_lengths: of every finished episode ``[E]``, in order; undiscounted.

    Raises:
        ConfigError: there is no whole dataset at ``path``.
    """

    def __init__(self, path: str | Path, **buffer: Any):
        self.path = recorded_path(path)
        self.info = read_info(self.path)
        storage = MemmapStorage.open(self.path / "rows", readonly=True)
        super().__init__(storage, writer=ImmutableWriter(), **buffer)
        episodes = torch.from_numpy(np.load(self.path / "episodes.npy"))
        self.episode_returns, self.episode_lengths = episodes[0], episodes[1].long()

    @property
    def observation_spec(self) -> Composite:
        """The spec of the observation entries: that of the environment where the source tells, else any number of their type."""
        return observation_spec(self.info, self.storage)

    @property
    def action_spec(self) -> Spec:
        """The spec of the actions: that of the environment where the source tells, else what the stored actions show."""
        return action_spec(self.info, self.storage)

    def state_dict(self) -> dict[str, Any]:
        """Return what sampling depends on; the rows stay on disk and are no part of it."""
        state = super().state_dict()
        return {"sampler": state["sampler"], "generator": state["generator"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with self._lock:
            self.sampler.load_state_dict(state["sampler"])
            if self.generator is not None and state["generator"] is not None:
                self.generator.set_state(state["generator"])

    def __repr__(self) -> str:
        info = self.info
        head = f"{info['rows']:,} rows, {info['episodes']:,} episodes, {self.storage.nbytes / 2**20:.1f} MiB on disk"
        lines = [f"{type(self).__name__}({info['id']!r}: {head}; {self.sampler!r})"]
        if info["episodes"]:
            lines.append("    episode return: {mean:.4g} +- {std:.4g}, from {min:.4g} to {max:.4g}".format(**info["returns"]))
        return "\n".join([*lines, *(f"    {line}" for line in self.storage.describe())])


class PublishedDataset(Dataset):
    """A dataset that others published: downloaded once, converted once. See the top of this file for how to write one.

    Args:
        id: its name.
        root: the cache, instead of ``$RLBOOK_DATA`` or ``~/.cache/rlbook/datasets``.
        **buffer: ``batch_size``, ``sampler``, ``transforms``, ``device``, ``seed``: see :class:`~rlbook.replay.ReplayBuffer`.

    Raises:
        ConfigError: there is no such id, a file is not what it should be, or the cache cannot be written to.
        DownloadError: a file could not be fetched; the message says where to put it by hand.
    """

    source: ClassVar[str]
    transitions: ClassVar[bool] = True
    """Whether rows are transitions; False for tables such as classification data, of which any entries are taken."""

    def __init__(self, id: str, *, root: str | Path | None = None, **buffer: Any):
        self.id = check_id(id, self.ids(), type(self).__name__)
        self.folder = data_root(root) / self.source / self.id
        data = self.folder / "data"
        if not is_current(data):
            make_folder(self.folder)
            with exclusive(self.folder / ".lock"):
                if not is_current(data):  # another process may have done it meanwhile
                    paths = self.fetch(self.folder / "raw")
                    about = {"source": self.source, "id": self.id, **self.about(paths), "files": fingerprints(paths)}
                    write_dataset(data, self.read(paths), self.count(paths), about, transitions=self.transitions)
        super().__init__(data, **buffer)

    @classmethod
    def ids(cls) -> Sequence[str]:
        """The ids there are, to suggest near ones; empty where that is not known."""
        return ()

    def files(self) -> list[File]:
        """What to download for ``self.id``."""
        raise NotImplementedError

    def fetch(self, folder: Path) -> list[Path]:
        """Return the raw files in the order of :meth:`files`, downloading those that are not in ``folder``."""
        return [fetch(file, folder) for file in self.files()]

    def read(self, paths: Sequence[Path]) -> Iterator[TensorDict]:
        """Yield the trajectories ``[T]`` of the raw files, in order of time."""
        raise NotImplementedError

    def count(self, paths: Sequence[Path]) -> int:
        """Return exactly how many rows :meth:`read` yields."""
        return sum(len(piece) for piece in self.read(paths))

    def about(self, paths: Sequence[Path]) -> dict[str, Any]:
        """What goes to ``info``: ``url``, ``license``, ``citation``, ...

        ``observation_space`` and ``action_space``, as :func:`rlbook.datasets.spaces.to_json` writes them, become the specs.
        """
        return {}
