"""Datasets that are folders of files on the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from rlbook.datasets.base import PublishedDataset, bad_file
from rlbook.datasets.download import File, fetch

HUB = "https://huggingface.co"


class HubDataset(PublishedDataset):
    """A folder of a dataset repository.

    The names of its files are asked for first and kept in ``raw/listing.json``, so that a download that was cut off goes on where
    it stopped. Files put into the folder ``raw`` by hand, without a listing, are taken as they are.
    """

    repo: ClassVar[str]
    patterns: ClassVar[tuple[str, ...]]
    """Which files of the folder are data: names with ``*``."""

    def remote_folder(self) -> str:
        """Return the folder of ``self.id`` in the repository."""
        return self.id

    def fetch(self, folder: Path) -> list[Path]:
        by_hand = sorted(path for path in folder.rglob("*") if path.is_file() and self.is_data(path.name))
        if by_hand and not (folder / "listing.json").exists():
            return by_hand
        return [fetch(file, folder) for file in self.listed(folder)]

    def listed(self, folder: Path) -> list[File]:
        """Return the data files of the remote folder, in the order of their names."""
        url = f"{HUB}/api/datasets/{self.repo}/tree/main/{quote(self.remote_folder())}?recursive=true"
        listing = fetch(File(url, "listing.json"), folder)
        try:
            entries = json.loads(listing.read_text())
            paths = sorted((entry["path"], entry.get("size")) for entry in entries if entry["type"] == "file")
        except (ValueError, TypeError, KeyError) as error:
            raise bad_file(listing, "a list of files as JSON", repr(error)) from error
        found = [(path, size) for path, size in paths if self.is_data(path.rsplit("/", 1)[-1])]
        if not found:
            raise bad_file(listing, f"a list with files like {' or '.join(self.patterns)}", f"{len(paths)} other files")
        inside = len(self.remote_folder()) + 1
        return [File(f"{HUB}/datasets/{self.repo}/resolve/main/{quote(path)}", path[inside:], size) for path, size in found]

    def is_data(self, name: str) -> bool:
        """Return whether a file of this name holds data."""
        return any(fnmatch(name, pattern) for pattern in self.patterns)

    def about(self, paths: Sequence[Path]) -> dict[str, Any]:
        return {"url": f"{HUB}/datasets/{self.repo}"}
