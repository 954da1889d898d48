"""Minari: the Farama Foundation's format and collection of offline data, read and written without its package."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from rlbook import keys
from rlbook.datasets.base import Dataset, PublishedDataset, bad_file, trajectory
from rlbook.datasets.download import DownloadError, make_folder
from rlbook.datasets.hdf5 import open_hdf5
from rlbook.datasets.images import decode as picture
from rlbook.datasets.spaces import from_json, to_json
from rlbook.errors import ConfigError, MissingExtraError, explain
from rlbook.specs.gym import decode, encode, to_gym

DATA, ENDS = "main_data.hdf5", ("rewards", "terminations", "truncations")
FORMAT_VERSION = "0.5.4"


class Minari(PublishedDataset):
    """A dataset in Minari's layout (Younis et al. 2024): HDF5, or Arrow where pyarrow is installed.

    The entries of a Dict observation stand at the root, those of a Tuple are called ``"0"``, ``"1"``, ... Spaces become specs as
    :func:`rlbook.specs.gym.from_gym` says: float64 becomes float32, discrete values count from 0, texts are left out.
    ``infos`` are left out.

    Args:
        id: for example ``"D4RL/door/human-v2"``. It is read from ``$MINARI_DATASETS_PATH`` (``~/.minari/datasets`` by default);
            what is not there is downloaded by the package minari, if it is installed.
        root, **buffer: see :class:`~rlbook.datasets.PublishedDataset`.

    Example:
        >>> dataset = Minari("D4RL/door/human-v2", batch_size=256)  # doctest: +SKIP
    """

    source = "minari"

    def fetch(self, folder: Path) -> list[Path]:
        data = minari_root() / self.id / "data"
        if not (data / "metadata.json").exists():
            download(self.id, data)
        found = (
            [data / DATA] if (data / DATA).exists() else sorted(data.glob("*/*.arrow"), key=lambda path: int(path.parent.name))
        )
        if not found:
            raise bad_file(data / "metadata.json", f"beside {DATA}, or folders with .arrow files", "neither")
        return [data / "metadata.json", *found]

    def about(self, paths: Sequence[Path]) -> dict[str, Any]:
        meta = read_metadata(paths[0])
        told = {name: meta[name] for name in ("author", "algorithm_name", "code_permalink", "description") if name in meta}
        spaces = {name: json.loads(meta[name]) for name in ("observation_space", "action_space") if name in meta}
        env = json.loads(meta["env_spec"]).get("id") if "env_spec" in meta else None
        return {"url": f"https://minari.farama.org/datasets/{self.id}", "env_id": env, **told, **spaces}

    def count(self, paths: Sequence[Path]) -> int:
        with episodes(paths) as found:
            return sum(len(episode["rewards"]) - pad for episode, pad in found)

    def read(self, paths: Sequence[Path]) -> Iterator[TensorDict]:
        meta = read_metadata(paths[0])
        spaces = [from_json(json.loads(meta[name])) if name in meta else None for name in ("observation_space", "action_space")]
        jpeg = bool(meta.get("jpeg_encoding", True))
        with episodes(paths) as found:
            for episode, pad in found:
                steps = len(episode["rewards"]) - pad
                if not steps:
                    continue
                try:
                    observation = tensors(episode["observations"], spaces[0], steps + 1, jpeg)
                    action = tensors(episode["actions"], spaces[1], steps, jpeg)
                except (KeyError, TypeError, ValueError) as error:
                    want = f"one whose observations fit {spaces[0]}, and its actions {spaces[1]}"
                    raise bad_file(paths[1], want, f"{type(error).__name__}: {error}") from error
                reward, terminated, truncated = (np.asarray(episode[name])[:steps] for name in ENDS)
                truncated = truncated.astype(bool)
                truncated[-1] |= not terminated[-1]  # the data stop
                yield trajectory(observation, action, reward, terminated, truncated)


def tensors(column: Any, space: Any, rows: int, jpeg: bool) -> Any:
    """Return a column as the tensor, or TensorDict, that its space describes; nested tensors as stored where there is none."""
    if space is None:
        return (
            column if not hasattr(column, "items") else {name: tensors(part, None, rows, jpeg) for name, part in column.items()}
        )
    return encode(arrays(column, space, rows, jpeg), space, batch=(rows,))


def arrays(column: Any, space: Any, rows: int, jpeg: bool) -> Any:
    """Return a column, an array or a group, as the batched value of a Gymnasium space."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return {name: arrays(column[name], part, rows, jpeg) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        names = [str(i) if str(i) in column else f"_index_{i}" for i in range(len(space.spaces))]  # Arrow's, and HDF5's
        return tuple(arrays(column[name], part, rows, jpeg) for name, part in zip(names, space.spaces, strict=True))
    if jpeg and is_image(space):
        pictures = np.stack([picture(bytes(data)) for data in column[:rows]])
        return pictures if len(space.shape) == 3 else pictures[..., 0]
    return np.asarray(column[:rows]).reshape(rows, *(space.shape or ()))


def is_image(space: Any) -> bool:
    """Return whether Minari stores values of this space as JPEG (it can be told not to)."""
    shape = space.shape or ()
    large = len(shape) in (2, 3) and min(shape[:2]) >= 32
    return large and space.dtype == np.uint8 and bool((space.low == 0).all() and (space.high == 255).all())


@contextmanager
def episodes(paths: Sequence[Path]) -> Iterator[Iterator[tuple[Any, int]]]:
    """Open the data files; yield an iterator over the episodes and how many rows of padding each has at its end."""

    def whole(episode: Any) -> Any:
        if lacking := [name for name in ("observations", "actions", *ENDS) if name not in episode]:
            raise bad_file(paths[1], f"one whose episodes have {lacking}", f"{sorted(episode)}")
        return episode

    if paths[1].suffix == ".arrow":
        yield ((whole(arrow_episode(path)), 1) for path in paths[1:])
        return
    with open_hdf5(paths[1]) as file:
        names = sorted((name for name in file if name.startswith("episode_")), key=lambda name: int(name.split("_")[1]))
        yield ((whole(file[name]), 0) for name in names)


def arrow_episode(path: Path) -> Any:
    """Return an episode of an Arrow file as nested dictionaries of arrays."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError("pyarrow", "offline", "Reading Minari's Arrow files") from error
    try:
        with pyarrow.OSFile(str(path), "rb") as file:
            table = pyarrow.ipc.open_file(file).read_all().combine_chunks()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise bad_file(path, "a whole Arrow file", str(error)) from error
    return {name: from_arrow(table[name].combine_chunks()) for name in table.column_names if name != "infos"}


def from_arrow(column: Any) -> Any:
    """Return an Arrow column as an array ``[T, ...]``, a struct as a dictionary of them."""
    import pyarrow

    if pyarrow.types.is_struct(column.type):
        return {column.type.field(i).name: from_arrow(column.field(i)) for i in range(column.type.num_fields)}
    if pyarrow.types.is_fixed_size_list(column.type):
        return from_arrow(column.flatten()).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return a dataset's ``metadata.json``."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise bad_file(path, "JSON", str(error)) from error


def minari_root() -> Path:
    """Return where Minari keeps its datasets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()


def download(id: str, data: Path) -> None:
    """Let the package minari download a dataset.

    Raises:
        MissingExtraError: it is not installed.
        DownloadError: it could not.
    """
    try:
        import minari
    except ImportError as error:
        purpose = f"The dataset {id!r} is not at {data.parent}, and downloading it"
        raise MissingExtraError("minari", "offline", purpose) from error
    try:
        minari.download_dataset(id)
    except Exception as error:
        fix = (
            f"Check the id with minari.list_remote_datasets(), go online and try again, or fetch it on another machine with "
            f"'minari download {id}' and put its folder at {data.parent} (the environment variable MINARI_DATASETS_PATH names "
            f"another place)"
        )
        raise DownloadError(
            explain(f"The Minari dataset {id!r}", "one that minari can download", repr(error)[:300], fix)
        ) from error


# ---- writing -------------------------------------------------------------------------------------------------------------------
def to_minari(dataset: Dataset, id: str, **metadata: Any) -> Path:
    """Write a dataset in Minari's layout to where Minari looks for it; neither minari nor jax is needed.

    Args:
        dataset: its last row of each episode must be ``done``, as in every recorded dataset.
        id: Minari's name, ``"namespace/name-v0"``.
        **metadata: ``author``, ``author_email`` (sets or lists), ``algorithm_name``, ``code_permalink``, ``description``, ...

    Returns:
        The folder; ``minari.load_dataset(id)`` and ``Minari(id)`` read it.

    Raises:
        ConfigError: there is such a dataset already, ``id`` is no name of one, or the last episode is not finished.
        MissingExtraError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "offline", "Writing Minari datasets") from error
    folder = minari_root() / check_minari_id(id)
    if folder.exists():
        raise ConfigError(explain("minari_id", "a new one", f"{id!r}, which is at {folder}", "Raise its version, or delete it"))
    if rest := len(dataset) - int(dataset.episode_lengths.sum()):
        fix = "Mark the last row truncated, for the data stop there, and write the dataset again"
        raise ConfigError(explain("A dataset for Minari", "one that ends with an episode", f"{rest} rows after it", fix))
    spec = dataset.observation_spec
    observation_space = to_gym(spec[keys.OBSERVATION] if list(spec) == [keys.OBSERVATION] else spec)
    action_space = to_gym(dataset.action_spec)
    partial = folder.with_name(f".{folder.name}.partial")
    make_folder(partial / "data")
    with h5py.File(partial / "data" / DATA, "w", track_order=True) as file:
        end = 0
        for number, length in enumerate(dataset.episode_lengths.tolist()):
            group, rows = file.create_group(f"episode_{number}", track_order=True), dataset[end : end + length]
            end += length
            write_episode(group, rows, observation_space, action_space)
            group.attrs.update({"id": number, "total_steps": length})
    told = {name: sorted(value) if isinstance(value, set) else value for name, value in metadata.items()}
    meta = {
        "dataset_id": id,
        "total_episodes": len(dataset.episode_lengths),
        "total_steps": end,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps(to_json(observation_space)),
        "action_space": json.dumps(to_json(action_space)),
        "minari_version": FORMAT_VERSION,
        "dataset_size": round((partial / "data" / DATA).stat().st_size / 1e6, 1),
        **told,
    }
    (partial / "data" / "metadata.json").write_text(json.dumps(meta, default=str))
    os.replace(partial, folder)
    return folder


def write_episode(group: Any, rows: Any, observation_space: Any, action_space: Any) -> None:
    """Write the rows ``[T]`` of one episode: T + 1 observations, T of everything else."""
    nxt = rows[keys.NEXT]
    names = [name for name in nxt.keys() if name not in (keys.REWARD, *keys.FLAGS)]
    observed = torch.cat((rows.select(*names), nxt.select(*names)[-1:]))
    write_value(group, "observations", decode(observed if names != [keys.OBSERVATION] else observed[names[0]], observation_space))
    write_value(group, "actions", decode(rows[keys.ACTION], action_space))
    group["rewards"] = nxt[keys.REWARD].double().numpy()
    group["terminations"], group["truncations"] = nxt[keys.TERMINATED].numpy(), nxt[keys.TRUNCATED].numpy()


def write_value(group: Any, name: str, value: Any) -> None:
    """Write a batched value, a dictionary as a group."""
    if isinstance(value, dict):
        inner = group.create_group(name)
        for key, part in value.items():
            write_value(inner, key, part)
    else:
        group[name] = value


def check_minari_id(id: str) -> str:
    """Return ``id`` if it is a name that Minari takes."""
    if not re.fullmatch(r"([-\w]+/)*[-\w]+-v\d+", id):
        raise ConfigError(explain("minari_id", "like 'namespace/name-v0'", repr(id), "Letters, digits, '-', '_' and a version"))
    return id
