"""Write small files in the exact layout of each source. The data name their own step: observation t is t, reward t is 100 t."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def vd4rl_64(folder: Path, lengths: Sequence[int], terminal: bool = False) -> None:
    """One file per episode of ``length`` steps: ``length + 1`` rows, the first with a dummy action (Dreamer's convention)."""
    folder.mkdir(parents=True)
    for number, length in enumerate(lengths):
        rows = np.arange(length + 1)
        last, first = rows == length, rows == 0
        np.savez(
            folder / f"20220101T00000{number}-{'ab' * 16}-{length}.npz",
            image=np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (length + 1, 64, 64, 3)),
            action=np.stack((rows, -rows), 1).astype(np.float32),
            reward=(100 * rows).astype(np.float32),
            discount=np.where(last & terminal, 0, 1).astype(np.float32),
            is_first=first,
            is_last=last,
            is_terminal=last & terminal,
            height=rows.astype(np.float32),
        )


def vd4rl_84(folder: Path, lengths: Sequence[int]) -> None:
    """All episodes in one HDF5 file, with dm_env's step types as floats."""
    import h5py

    folder.mkdir(parents=True)
    rows = np.concatenate([np.arange(length + 1) for length in lengths])
    kinds = np.concatenate([[0, *[1] * (length - 1), 2] for length in lengths])
    with h5py.File(folder / "data.hdf5", "w") as file:
        file["observation"] = np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), 3, 84, 84))
        file["action"] = np.stack((rows, -rows), 1).astype(np.float32)
        file["reward"], file["discount"] = (100 * rows).astype(np.float32), np.ones(len(rows), np.float32)
        file["step_type"] = kinds.astype(np.float32)


def gen_dgrl_tar(path: Path, lengths: Sequence[int], *, npz: bool = False, payload: Any = None) -> None:
    """An archive with one file per trajectory: a pickled dictionary in a 0-dimensional object array, or ``.npz``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as archive:
        for number, length in enumerate(lengths):
            steps = np.arange(length)
            data = {
                "observations": np.broadcast_to(np.arange(length + 1)[:, None, None, None], (length + 1, 3, 64, 64)).astype(
                    np.uint8
                ),
                "actions": steps.astype(np.int32) % 15,
                "rewards": (100.0 * steps),
                "dones": steps == length - 1,
            }
            buffer = io.BytesIO()
            if npz:
                np.savez(buffer, **data)
            else:
                np.save(buffer, np.array(data if payload is None else payload, dtype=object), allow_pickle=True)
            add(archive, f"game/2022_{number}_{length}_7_1.00.{'npz' if npz else 'npy'}", buffer.getvalue())


def roboset_h5(path: Path, lengths: Sequence[int], *, done: bool = False) -> None:
    """One file per seed, one group per trial; as many observations as actions; float16, as RoboHive writes it."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for number, length in enumerate(lengths):
            steps = np.arange(length)
            group = file.create_group(f"Trial{number}")
            group.create_dataset("observations", data=np.stack([steps] * 5, 1).astype(np.float16), compression="gzip")
            group.create_dataset("actions", data=np.stack([steps] * 2, 1).astype(np.float16), compression="gzip")
            group.create_dataset("rewards", data=steps.astype(np.float16))
            group.create_dataset("done", data=(steps == length - 1) & done)
            group.create_dataset("time", data=steps.astype(np.float16))
            infos = group.create_group("env_infos")
            infos.create_dataset("solved", data=steps % 2 == 0)
            infos.create_dataset("obs_dict/hand_jnt", data=np.stack([steps] * 3, 1).astype(np.float16))
            infos.create_dataset("name", data=np.array([b"x"] * length))


def open_x_tar(path: Path, lengths: Sequence[int], *, terminal: bool = True, payload: Any = None) -> None:
    """A WebDataset archive: one pickle of RLDS steps per episode; ``length`` steps have ``length + 1`` entries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, length in enumerate(lengths):
            steps = [open_x_step(t, t == length, terminal, number) for t in range(length + 1)]
            content = {"steps": steps} if payload is None else payload
            add(archive, f"{number:05d}.data.pickle", pickle.dumps(content))


def open_x_step(t: int, last: bool, terminal: bool, number: int) -> dict[str, Any]:
    return {
        "observation": OrderedDict(image={"bytes": png(t), "path": None}, state=np.full(4, t, np.float64), note="text"),
        "action": {"world_vector": np.full(3, t, np.float64), "open_gripper": np.array(t % 2 == 0)},
        "reward": 100.0 * t,
        "discount": 1.0,
        "is_first": t == 0,
        "is_last": last,
        "is_terminal": last and terminal,
        "language_instruction": f"task {number % 2}",
        "language_embedding": np.zeros(512, np.float32),
    }


def atari_dqn_shard(folder: Path, shard: int, terminal: np.ndarray, add_count: int) -> None:
    """A checkpoint of Dopamine's replay memory: compressed ``.npy`` files; frame t holds t mod 256."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.arange(len(terminal))
    frames = np.broadcast_to((rows % 256).astype(np.uint8)[:, None, None], (len(rows), 84, 84))
    entries = {
        "$store$_observation": frames,
        "$store$_action": (rows % 6).astype(np.int32),
        "$store$_reward": (rows % 3 - 1).astype(np.float32),
        "$store$_terminal": terminal.astype(np.uint8),
        "add_count": np.array(add_count),
        "invalid_range": np.arange(5),
    }
    for name, value in entries.items():
        with gzip.open(folder / f"{name}_ckpt.{shard}.gz", "wb") as file:
            np.save(file, value)


FEATURES = {
    "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
    "observation.image": {"dtype": "image", "shape": [8, 8, 3], "names": ["height", "width", "channel"]},
    "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
    "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    "next.success": {"dtype": "bool", "shape": [1], "names": None},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}


def lerobot(root: Path, lengths: Sequence[int], success: Sequence[bool], *, version: str, video: bool) -> None:
    """A LeRobot dataset of format v2.1 (a file per episode) or v3.0 (files of many episodes)."""
    features = dict(FEATURES)
    if video:
        features["observation.image"] = {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channel"]}
    v3 = version >= "v3"
    info = {
        "codebase_version": version,
        "robot_type": "toy",
        "fps": 10,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 1000,
        "features": features,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        if v3
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if v3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    write(root / "meta/info.json", json.dumps(info))
    tables = [
        lerobot_rows(number, length, done, video) for number, (length, done) in enumerate(zip(lengths, success, strict=True))
    ]
    (lerobot_v3 if v3 else lerobot_v2)(root, tables, lengths, video)


def lerobot_rows(number: int, length: int, success: bool, video: bool) -> dict[str, list[Any]]:
    last = [t == length - 1 for t in range(length)]
    rows: dict[str, list[Any]] = {
        "observation.state": [[float(t), -float(t)] for t in range(length)],
        "action": [[float(t), 1.0] for t in range(length)],
        "next.reward": [100.0 * t for t in range(length)],
        "next.done": last,
        "next.success": [end and success for end in last],
        "timestamp": [t / 10 for t in range(length)],
        "frame_index": list(range(length)),
        "episode_index": [number] * length,
        "index": list(range(length)),
        "task_index": [number % 2] * length,
    }
    if not video:
        rows["observation.image"] = [{"bytes": png(t), "path": None} for t in range(length)]
    return rows


def lerobot_v2(root: Path, tables: list[dict[str, list[Any]]], lengths: Sequence[int], video: bool) -> None:
    for number, table in enumerate(tables):
        parquet(root / f"data/chunk-000/episode_{number:06d}.parquet", table)
        if video:
            film(root / f"videos/chunk-000/observation.image/episode_{number:06d}.mp4", list(range(lengths[number])))
    write(root / "meta/tasks.jsonl", "\n".join(json.dumps({"task_index": i, "task": f"task {i}"}) for i in range(2)))


def lerobot_v3(root: Path, tables: list[dict[str, list[Any]]], lengths: Sequence[int], video: bool) -> None:
    parquet(
        root / "data/chunk-000/file-000.parquet", {key: [cell for table in tables for cell in table[key]] for key in tables[0]}
    )
    starts = np.cumsum([0, *lengths])[:-1]
    episodes: dict[str, list[Any]] = {
        "episode_index": list(range(len(tables))),
        "length": list(lengths),
        "data/chunk_index": [0] * len(tables),
        "data/file_index": [0] * len(tables),
    }
    if video:
        key = "videos/observation.image"
        episodes |= {f"{key}/chunk_index": [0] * len(tables), f"{key}/file_index": [0] * len(tables)}
        episodes |= {f"{key}/from_timestamp": [start / 10 for start in starts.tolist()]}
        film(root / "videos/observation.image/chunk-000/file-000.mp4", [t for length in lengths for t in range(length)])
    parquet(root / "meta/episodes/chunk-000/file-000.parquet", episodes)
    parquet(root / "meta/tasks.parquet", {"task_index": [0, 1], "__index_level_0__": ["task 0", "task 1"]})


# ---- pieces ----------------------------------------------------------------------------------------------------------------
def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def png(t: int, size: int = 8) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), t, np.uint8)).save(out, "PNG")
    return out.getvalue()


def film(path: Path, grays: Sequence[int]) -> None:
    """A film of ten frames a second whose frame t has the gray level ``16 + 4 * t``: far enough apart for a lossy codec."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for gray in grays:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 16 + 4 * gray, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def parquet(path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
