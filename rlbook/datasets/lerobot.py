"""LeRobot: robot demonstrations in Parquet and MP4 (Cadene et al. 2024), formats v2.0, v2.1 and v3.0."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from tensordict import TensorDict

from rlbook import keys
from rlbook.datasets.base import PublishedDataset, bad_file, trajectory
from rlbook.datasets.download import File, fetch
from rlbook.datasets.hub import HUB
from rlbook.datasets.images import decode, frames
from rlbook.errors import MissingExtraError, MissingKeyError, explain

INDEX = ("episode_index", "frame_index", "index", "timestamp")
OUTCOME = ("next.reward", "next.done", "next.success")


class LeRobot(PublishedDataset):
    """A dataset of the Hub in LeRobot's format.

    Entries: the features of the observation without the prefix (``observation.state`` is ``state``, ``observation.images.top`` is
    ``("images", "top")`` uint8 ``[H, W, 3]``), ``action``, ``task_index`` (``info["tasks"]`` has the sentences) and what else is
    numeric. The reward is ``next.reward``, or 0 without one; an episode is terminated by ``next.success``, else cut off where it
    ends. There is no observation after the last frame, so that the last transition of an episode that does not terminate is left
    out.

    Args:
        id: the repository, for example ``"lerobot/pusht"``.
        root: see :class:`~rlbook.datasets.base.PublishedDataset`.
        **buffer: as well.

    Source: https://github.com/huggingface/lerobot
    """

    source = "lerobot"

    def fetch(self, folder: Path) -> list[Path]:
        self.raw, self.info_path = folder, self.get("meta/info.json", folder)
        try:
            self.meta = json.loads(self.info_path.read_text())
            self.videos = [key for key, feature in self.meta["features"].items() if feature["dtype"] == "video"]
            self.paths = self.layout_v3() if self.meta["codebase_version"] >= "v3" else self.layout_v2()
        except (ValueError, KeyError, TypeError) as error:
            raise bad_file(self.info_path, "LeRobot's info.json (v2.0, v2.1 or v3.0)", repr(error)) from error
        return [self.info_path, *(path for entry in self.paths for path in (entry["data"], *entry["videos"].values()))]

    def get(self, name: str, folder: Path | None = None) -> Path:
        """Fetch one file of the repository."""
        return fetch(File(f"{HUB}/datasets/{self.id}/resolve/main/{quote(name)}", name), folder or self.raw)

    def layout_v2(self) -> list[dict[str, Any]]:
        """One Parquet file and one film per camera for each episode."""
        entries = []
        for episode in range(self.meta["total_episodes"]):
            place = {"episode_chunk": episode // self.meta["chunks_size"], "episode_index": episode}
            films = {key: self.get(self.meta["video_path"].format(video_key=key, **place)) for key in self.videos}
            data = self.get(self.meta["data_path"].format(**place))
            entries.append({"episode": episode, "data": data, "videos": films, "starts": dict.fromkeys(films, 0.0)})
        return entries

    def layout_v3(self) -> list[dict[str, Any]]:
        """Many episodes in a file; ``meta/episodes`` says where each begins."""
        entries, chunk, file = [], 0, 0
        while len(entries) < self.meta["total_episodes"]:
            table = read_parquet(self.get(f"meta/episodes/chunk-{chunk:03d}/file-{file:03d}.parquet"))
            for row in table.to_pylist():
                entries.append(self.place_v3(row))
            chunk, file = (chunk, file + 1) if file + 1 < self.meta["chunks_size"] else (chunk + 1, 0)
        return entries

    def place_v3(self, row: dict[str, Any]) -> dict[str, Any]:
        """Find the files of one episode."""
        films, starts = {}, {}
        for key in self.videos:
            place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
            films[key] = self.get(self.meta["video_path"].format(video_key=key, **place))
            starts[key] = row[f"videos/{key}/from_timestamp"]
        data = self.get(self.meta["data_path"].format(**{k: row[f"data/{k}"] for k in ("chunk_index", "file_index")}))
        return {"episode": row["episode_index"], "data": data, "videos": films, "starts": starts}

    # ---- reading -------------------------------------------------------------------------------------------------------------
    def read(self, paths: Sequence[Path]) -> Iterator[TensorDict]:
        return self.episodes(pictures=True)

    def count(self, paths: Sequence[Path]) -> int:
        return sum(len(piece) for piece in self.episodes(pictures=False))

    def episodes(self, pictures: bool) -> Iterator[TensorDict]:
        """Yield every episode, with or without its pictures."""
        opened: Any = None
        table: Any = None
        for entry in self.paths:
            if entry["data"] != opened:
                opened, table = entry["data"], read_parquet(entry["data"])
            rows = np.flatnonzero(np.asarray(column(table, "episode_index", opened)) == entry["episode"])
            if len(rows):
                yield self.episode(table.take(rows), entry, pictures)

    def episode(self, table: Any, entry: dict[str, Any], pictures: bool) -> TensorDict:
        """Turn the rows of one episode into a trajectory."""
        steps, path = len(table), entry["data"]
        found: dict[str, Any] = {}
        for name, feature in self.meta["features"].items():
            if name in entry["videos"] or feature["dtype"] == "image":
                if pictures:
                    found[name] = self.pictures(name, table, entry, steps)
            elif feature["dtype"] != "string" and name not in INDEX:
                found[name] = numbers(column(table, name, path), feature)
        if keys.ACTION not in found:
            fix = "Look at its info.json"
            raise MissingKeyError(explain(f"The features of {self.id!r}", "with 'action'", str(sorted(found)), fix))
        observation = {split(name): found.pop(name) for name in list(found) if name.startswith(keys.OBSERVATION)}
        action, reward, _, success = found.pop(keys.ACTION), *(found.pop(name, np.zeros(steps)) for name in OUTCOME)
        terminated, cut = np.zeros(steps, bool), np.zeros(steps, bool)
        terminated[-1], cut[-1] = bool(success[-1]), True
        extra = {tuple(name.split(".")) if "." in name else name: value for name, value in found.items()}
        if not observation:  # counting rows without pictures
            observation = {"none": torch.zeros(steps, 0)}
        return trajectory(keys.nest(observation), action, reward, terminated, cut, extra=extra)

    def pictures(self, name: str, table: Any, entry: dict[str, Any], steps: int) -> np.ndarray:
        """Return the pictures of one camera, uint8 ``[T, H, W, 3]``."""
        if name not in entry["videos"]:
            return np.stack([decode(cell["bytes"]) for cell in column(table, name, entry["data"]).to_pylist()])
        film = entry["videos"][name]
        images = list(islice(frames(film, entry["starts"][name]), steps))
        if len(images) < steps:
            raise bad_file(film, f"a film with the {steps} frames of episode {entry['episode']}", f"{len(images)}")
        return np.stack(images)

    def about(self, paths: Sequence[Path]) -> dict[str, Any]:
        return {
            "url": f"{HUB}/datasets/{self.id}",
            "fps": self.meta.get("fps"),
            "robot": self.meta.get("robot_type"),
            "tasks": self.tasks(),
        }

    def tasks(self) -> dict[int, str]:
        """Return the sentence of each ``task_index``."""
        if self.meta["codebase_version"] >= "v3":
            rows = read_parquet(self.get("meta/tasks.parquet")).to_pylist()  # the sentence is the index of the data frame
            return {row["task_index"]: str(row.get("task", row.get("__index_level_0__"))) for row in rows}
        lines = self.get("meta/tasks.jsonl").read_text().splitlines()
        return {row["task_index"]: row["task"] for row in map(json.loads, lines)}


def read_parquet(path: Path) -> Any:
    """Read a table.

    Raises:
        SpecError: the file is damaged.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "offline", "Reading LeRobot datasets") from error
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise bad_file(path, "a whole Parquet file", str(error)[:160]) from error


def column(table: Any, name: str, path: Path) -> Any:
    """Return a column of a table."""
    if name not in table.column_names:
        raise bad_file(path, f"a table with {name!r}", f"the columns {table.column_names}")
    return table[name]


def numbers(values: Any, feature: dict[str, Any]) -> np.ndarray:
    """Return a column as an array ``[T, *shape]``, ``[T]`` where the feature has one number per step."""
    shape = tuple(feature["shape"])
    array = np.array(values.to_pylist(), dtype=feature["dtype"])
    return array.reshape(len(array), *(() if shape == (1,) else shape))


def split(name: str) -> tuple[str, ...]:
    """Return the key of a feature: ``observation.images.top`` is ``("images", "top")``, ``observation`` stays."""
    parts = tuple(name.split("."))
    return parts[1:] or parts
