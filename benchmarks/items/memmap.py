"""Rows on disk, many times what a process may keep in memory: written, flushed and sampled; and what that costs beside memory."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Case, Make, Sample, Task, fact_below, faster

GIB, MIB = 2**30, 2**20
PIXELS = 84 * 84 * 4
BATCH = 256
ROWS = {"tiny": 500, "quick": 20_000, "full": 200_000}
GROWTH = "growth of private memory, MiB"
ON_DISK, TORCHRL = "rlbook, on disk", "torchrl (LazyMemmapStorage)"
LARGE = {"tiny": 0.01, "quick": 2.0, "full": 20.0}
"""GiB that are written; no more than half of what the disk has free."""


class Scratch:
    """A folder for the maps of one case, made when one is."""

    def __init__(self) -> None:
        self.folder: str | None = None

    def new(self) -> Path:
        """Return an empty folder in it."""
        self.folder = self.folder or tempfile.mkdtemp(prefix="rlbook-bench-")
        return Path(tempfile.mkdtemp(dir=self.folder))

    def remove(self) -> None:
        """Free the disk."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def resident(kind: str) -> float:
    """MiB of this process: ``RssAnon`` is private memory, ``RssFile`` the mapped pages, which the system takes back at will."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) / 1024


def frames(count: int) -> Any:
    """Rows with pictures, ``[count]``; each one's reward is its number."""
    import torch
    from tensordict import TensorDict

    number = torch.arange(count)
    pixels = (number % 251).to(torch.uint8).view(-1, 1, 1, 1).expand(count, 4, 84, 84).contiguous()
    return TensorDict({"pixels": pixels, "action": number, "next": {"reward": number.float()}}, [count])


def large(scratch: Scratch, gib: float) -> Make:
    """Write a map of ``gib`` from its first to its last row, flush it, sample from all of it, and watch the memory."""

    def prepare() -> Task:
        from rlbook.replay import MemmapStorage, ReplayBuffer

        block = frames(16 if gib < 0.1 else 1024)
        capacity = int(gib * GIB) // (PIXELS + 12)

        def run() -> Sample:
            path = scratch.new()
            buffer = ReplayBuffer(MemmapStorage(capacity, path), batch_size=BATCH, seed=0)
            buffer.extend(block)
            buffer.sample()
            most = before = resident("RssAnon")
            begin, wall = time.process_time(), time.perf_counter()
            for _ in range(capacity // len(block)):
                buffer.extend(block)
                most = max(most, resident("RssAnon"))
            buffer.flush()
            wall = time.perf_counter() - wall
            for _ in range(100):
                batch = buffer.sample()
                most = max(most, resident("RssAnon"))
                if not bool((batch["pixels"][:, 0, 0, 0] == batch["action"] % 251).all()):
                    raise RuntimeError("a row came back that was never written")
            facts = {
                "GiB on disk": buffer.storage.nbytes / GIB,
                "MiB/s written and flushed, wall-clock": buffer.storage.nbytes / MIB / wall,
                GROWTH: most - before,
                "mapped pages in memory, MiB": resident("RssFile"),
            }
            del buffer, batch
            shutil.rmtree(path)
            return Sample(time.process_time() - begin, facts)

        return run

    return prepare


def small(make: Callable[[], Any], rows: int, job: str, convert: Callable[[Any], Any] = lambda data: data) -> Make:
    """Sample from, or write to, CartPole-sized rows that all fit into memory."""

    def prepare() -> Task:
        from rlbook import CartPole

        buffer = make()
        data = CartPole(num_envs=8, seed=0).rollout(min(rows, 2000) // 8)
        for _ in range(rows // data.numel() + 1):
            buffer.extend(convert(data))
        piece = convert(data[:, :32])
        return {"sample": lambda: buffer.sample(), "extend": lambda: buffer.extend(piece)}[job]

    return prepare


def cases(size: str = "full") -> Iterator[Case]:
    scratch = Scratch()
    gib = min(LARGE[size], shutil.disk_usage(tempfile.gettempdir()).free / 2 / GIB)
    yield Case(
        name=f"write {gib:.2g} GiB of frames, flush, and draw 100 samples of {BATCH}",
        unit="runs",
        work=1,
        contenders={"rlbook": large(scratch, gib)},
        targets=[fact_below("rlbook", GROWTH, 64)],
        note="Private memory is what counts: mapped pages are the disk's, and the system takes them back when it needs them.",
        repeats=1,
        warm_up=0,
        close=scratch.remove,
    )
    for job, work in [("sample", BATCH), ("extend", 256)]:
        yield beside_memory(job, work, ROWS[size])


def beside_memory(job: str, work: int, rows: int) -> Case:
    """Return the comparison of storages for one job."""
    scratch = Scratch()

    def in_memory() -> Any:
        from rlbook import ReplayBuffer

        return ReplayBuffer(rows, batch_size=BATCH)

    def on_disk() -> Any:
        from rlbook.replay import MemmapStorage, ReplayBuffer

        return ReplayBuffer(MemmapStorage(rows, scratch.new()), batch_size=BATCH)

    def shared() -> Any:
        from rlbook.replay import SharedReplayBuffer

        return SharedReplayBuffer(rows, batch_size=BATCH)

    def torchrl() -> Any:
        from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer

        return TensorDictReplayBuffer(storage=LazyMemmapStorage(rows, scratch_dir=str(scratch.new())), batch_size=BATCH)

    return Case(
        name=f"{job} {work} rows of CartPole, {rows:,} rows that fit into memory",
        unit="rows",
        work=work,
        contenders={
            ON_DISK: small(on_disk, rows, job),
            "rlbook, shared by processes": small(shared, rows, job),
            "rlbook, in memory": small(in_memory, rows, job),
            TORCHRL: small(torchrl, rows, job, lambda data: data.reshape(-1)),
        },
        targets=[faster(ON_DISK, 1, TORCHRL)],
        close=scratch.remove,
    )
