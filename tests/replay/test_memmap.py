"""Rows on disk: what was flushed is there again, what was half written is not, and nothing is harmed by mistakes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from toys import Clock

from rlbook.errors import ConfigError
from rlbook.replay import MemmapStorage, ReplayBuffer, TensorStorage, UniformSampler, Writer
from rlbook.replay.cursor import Cursor
from rlbook.replay.mapped_files import META, read_meta, write_meta

FORK = multiprocessing.get_context("fork")


def steps(start: int, stop: int, streams: int = 1) -> TensorDict:
    """Rows ``[T]`` or ``[streams, T]`` that name their number in time in every element of every entry."""
    number = torch.arange(start, stop).view(-1, streams).T if streams > 1 else torch.arange(start, stop)
    wide = number.unsqueeze(-1)
    return TensorDict(
        {
            "number": number,
            "next": {"wide": wide.expand(*number.shape, 50).float(), "big": wide.expand(*number.shape, 2000).int()},
        },
        number.shape,
    )


def numbers(buffer: ReplayBuffer) -> list[int]:
    """The numbers of all rows, oldest first; none is torn."""
    rows = buffer.storage.read(buffer.in_order())
    for value in (rows["next", "wide"], rows["next", "big"]):
        assert bool((value == rows["number"].unsqueeze(-1)).all()), "torn rows"
    return rows["number"].tolist()


def opened(path: Path, **options) -> ReplayBuffer:
    return ReplayBuffer(MemmapStorage.open(path, **options), batch_size=4)


def image(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "rows"


# ---- a storage like any other ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("streams", [1, 3])
def test_the_same_rows_as_in_memory(path, streams):
    on_disk, in_memory = ReplayBuffer(MemmapStorage(20, path)), ReplayBuffer(20)
    start = 0
    for count in (6, 9, 3, 30, 12, 18):
        for buffer in (on_disk, in_memory):
            buffer.extend(steps(start, start + count, streams))
        start += count
        assert numbers(on_disk) == numbers(in_memory)
        assert torch.equal(on_disk[:]["number"], in_memory[:]["number"])
    assert on_disk.storage.nbytes == in_memory.storage.nbytes
    assert sorted(on_disk.storage.describe()) == sorted(in_memory.storage.describe())


def test_rollouts_come_back(path):
    data = Clock(4).rollout(10)
    buffer = ReplayBuffer(MemmapStorage(100, path), batch_size=64, seed=0)
    buffer.extend(data)
    batch = buffer.sample()
    assert_close(batch["next", "reward"], 100 * batch["observation"][:, 1] + batch["observation"][:, 0])
    assert set(batch.keys(True, True)) == {*data.keys(True, True), "index"}
    assert_close(buffer.storage.entry("observation", batch["index"]), batch["observation"])


def test_entries_of_every_kind(path):
    data = TensorDict(
        {"half": torch.ones(3, 2).bfloat16(), "no": torch.zeros(3, 0), "a/b ..": torch.arange(3), "c": torch.ones(3)}, [3]
    )
    buffer = ReplayBuffer(MemmapStorage(6, path, in_keys=["half", "no", "a/b .."]))
    buffer.extend(data)
    del buffer
    again = opened(path)
    assert set(again.storage.keys) == {"half", "no", "a/b .."}
    again.extend(data)  # what was not kept is not kept after reopening either
    for key in again.storage.keys:
        assert_close(again[:][key], torch.cat([data[key], data[key]]))


def test_a_state_is_taken_back(path, tmp_path):
    buffer = ReplayBuffer(10)
    buffer.extend(steps(0, 17))
    on_disk = ReplayBuffer(MemmapStorage(10, path))
    on_disk.extend(steps(100, 104))
    on_disk.load_state_dict(buffer.state_dict())
    assert numbers(on_disk) == list(range(7, 17))
    assert numbers(opened(path, readonly=True)) == list(range(7, 17))
    new = ReplayBuffer(MemmapStorage(10, tmp_path / "new"))
    new.load_state_dict(on_disk.state_dict())
    assert numbers(new) == list(range(7, 17))


def test_a_state_that_does_not_fit_changes_nothing(path):
    buffer, larger, other = ReplayBuffer(MemmapStorage(10, path)), ReplayBuffer(20), ReplayBuffer(10)
    buffer.extend(steps(0, 17))
    larger.extend(steps(0, 18))
    other.extend(TensorDict({"number": torch.arange(3)}, [3]))
    for unfit in (larger, other):
        with pytest.raises(ValueError, match="must be"):
            buffer.load_state_dict(unfit.state_dict())
        assert numbers(buffer) == list(range(7, 17))
    del buffer
    assert numbers(opened(path)) == list(range(7, 17))


# ---- going on ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("streams, count", [(1, 8), (1, 35), (4, 8), (3, 36)])
def test_the_writer_goes_on(path, streams, count):
    buffer = ReplayBuffer(MemmapStorage(20, path))
    buffer.extend(steps(0, count, streams))
    state, rows = buffer.writer.state_dict(), numbers(buffer)
    del buffer  # flushes
    again = opened(path)
    assert again.writer.state_dict() == state
    assert numbers(again) == rows
    again.extend(steps(count, count + 12, streams))
    assert numbers(again) == list(range(max(0, count + 12 - again.writer.rows), count + 12))
    again.check_valid()


def test_samplers_hear_of_the_rows(path):
    heard = []

    class Listener(UniformSampler):
        def on_write(self, rows):
            heard.append(rows)

    ReplayBuffer(MemmapStorage(20, path)).extend(steps(0, 8))
    ReplayBuffer(MemmapStorage.open(path), sampler=Listener())
    assert heard == [slice(0, 8)]


def test_rows_without_a_buffer(path):
    storage = MemmapStorage(8, path)
    for start in (0, 3):
        batch, count, _ = storage.pack(steps(start, start + 3))
        storage.write(slice(start, start + count), batch, slice(0, count))
    storage.close()
    assert numbers(opened(path)) == list(range(6))


def test_closed_rows_can_be_read_and_opened(path):
    buffer = ReplayBuffer(MemmapStorage(8, path))
    buffer.extend(steps(0, 5))
    buffer.storage.close()
    again = opened(path)
    assert numbers(buffer) == numbers(again) == list(range(5))
    with pytest.raises(ConfigError, match="must be open for writing; got open for reading, or closed"):
        buffer.extend(steps(5, 6))


def test_nothing_comes_back_after_clear(path):
    buffer = ReplayBuffer(MemmapStorage(8, path))
    buffer.extend(steps(0, 20))
    buffer.flush()
    buffer.clear()
    assert len(opened(path, readonly=True)) == 0
    buffer.extend(steps(50, 56, 2))
    buffer.flush()
    assert numbers(opened(path, readonly=True)) == list(range(50, 56))


# ---- crashes -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_whatever_a_crash_interrupts_whole_rows_come_back(path, tmp_path, monkeypatch, streams):
    """A copy of the folder in the midst of a write is what the death of the writer would leave."""
    rng, generation = random.Random(streams), 0
    rows = 20 // streams * streams
    buffer, start, flushed, lost = ReplayBuffer(MemmapStorage(20, path)), 0, 0, 0
    crashes: list[tuple[Path, int]] = []
    whole_write = TensorStorage.write

    def write(self, target, batch, source):
        whole_write(self, target, {key: value for key, value in batch.items() if key != ("next", "big")}, source)
        folder = shutil.copytree(path, tmp_path / f"crash{len(crashes)}")  # half of the entries are new
        crashes.append((folder, start + source.stop))
        whole_write(self, target, batch, source)

    for generation in range(4):
        for _ in range(6):
            count = streams * rng.randint(1, 12 if rng.random() < 0.9 else 30)
            with monkeypatch.context() as patch:
                patch.setattr(TensorStorage, "write", write)
                buffer.extend(steps(start, start + count, streams))
            for crash, end in crashes:
                expected = list(range(max(lost, end - rows), flushed))
                assert numbers(opened(crash, readonly=True)) == expected
                assert numbers(opened(crash)) == expected
                assert numbers(opened(crash)) == expected  # and again, after a writer has tidied up
                shutil.rmtree(crash)
            crashes.clear()
            start += count
            if rng.random() < 0.4:
                buffer.flush()
                flushed = start
        path = shutil.copytree(path, tmp_path / f"next{generation}")  # the writer dies here, and another one goes on
        buffer, lost, start = opened(path), min(flushed, max(lost, start - rows)), flushed
        assert numbers(buffer) == list(range(lost, flushed))


def keep_writing(path: Path, acknowledge, announced, seed: int) -> None:
    """Write rows that name their number, and say which ones are flushed, until killed."""
    rng = random.Random(seed)
    buffer = opened(path) if path.exists() else ReplayBuffer(MemmapStorage(200, path))
    number = numbers(buffer)[-1] + 1 if len(buffer) else announced.value
    while True:
        count = rng.randint(1, 150)
        announced.value = number + count
        buffer.extend(steps(number, number + count))
        number += count
        if rng.random() < 0.3:
            buffer.flush()
            acknowledge.send(number)


def test_kill_at_random_moments(path):
    announced, rng, lost, kills = FORK.Value("q", 0, lock=False), random.Random(0), 0, 0
    for seed in range(15):
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=keep_writing, args=(path, sender, announced, seed))
        process.start()
        sender.close()
        acknowledged = receiver.recv()
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        while receiver.poll():
            try:
                acknowledged = receiver.recv()
            except EOFError:
                break
        kills += process.exitcode == -signal.SIGKILL
        found = numbers(opened(path, readonly=True))
        assert numbers(opened(path)) == found
        newest = found[-1] + 1 if found else acknowledged
        lost = min(newest, max(lost, announced.value - 200))  # by then the ring may have overwritten these
        assert found == list(range(newest - len(found), newest))
        assert set(range(lost, acknowledged)) <= set(found)
        announced.value = newest
    assert kills == 15


# ---- several processes -------------------------------------------------------------------------------------------------------
def test_a_second_writer_is_refused(path):
    buffer = ReplayBuffer(MemmapStorage(8, path))
    buffer.extend(steps(0, 5))
    before = image(path)
    with pytest.raises(ConfigError, match=f"must be free; got those that process {os.getpid()} writes.*readonly=True"):
        MemmapStorage.open(path)
    assert image(path) == before
    del buffer
    assert len(opened(path)) == 5


def test_a_killed_writer_is_no_writer(path):
    ready = FORK.Event()

    def write() -> None:
        buffer = ReplayBuffer(MemmapStorage(8, path))
        buffer.extend(steps(0, 5))
        buffer.flush()
        ready.set()
        time.sleep(60)

    process = FORK.Process(target=write)
    process.start()
    assert ready.wait(30)
    with pytest.raises(ConfigError, match=f"process {process.pid} writes"):
        MemmapStorage.open(path)
    process.kill()
    process.join()
    assert numbers(opened(path)) == list(range(5))


def test_a_forked_process_may_not_write(path):
    buffer = ReplayBuffer(MemmapStorage(8, path))
    buffer.extend(steps(0, 5))
    receiver, sender = FORK.Pipe(duplex=False)

    def write() -> None:
        try:
            buffer.extend(steps(5, 6))
        except ConfigError as error:
            sender.send(str(error))

    process = FORK.Process(target=write)
    process.start()
    process.join()
    assert "Give the processes a SharedReplayBuffer" in receiver.recv()
    assert numbers(buffer) == list(range(5))


def test_pickling(path):
    buffer = ReplayBuffer(MemmapStorage(8, path))
    buffer.extend(steps(0, 5))
    buffer.flush()
    with pytest.raises(ConfigError, match="must be shared or read-only"):
        pickle.dumps(buffer.storage)
    reader = pickle.loads(pickle.dumps(MemmapStorage.open(path, readonly=True)))
    assert numbers(ReplayBuffer(reader)) == list(range(5))


def test_readers_see_what_was_flushed(path):
    buffer = ReplayBuffer(MemmapStorage(10, path))
    buffer.extend(steps(0, 4))
    buffer.flush()
    buffer.extend(steps(4, 7))
    reader = opened(path, readonly=True)
    assert numbers(reader) == list(range(4))
    assert reader.sample().shape == (4,)
    for mistake in (lambda: reader.extend(steps(7, 8)), reader.clear, lambda: reader.load_state_dict(buffer.state_dict())):
        with pytest.raises(ConfigError, match="must be open for writing; got open for reading"):
            mistake()
    assert len(reader) == 4


@pytest.mark.parametrize("before", [4, 13, 24])
def test_readers_see_no_row_that_changed(path, before):
    """Capacity 10, ``before`` rows are flushed and read; then rows are overwritten one by one."""
    buffer = ReplayBuffer(MemmapStorage(10, path))
    buffer.extend(steps(0, before))
    buffer.flush()
    buffer.extend(steps(before, before + 2))  # not flushed: in a full ring these cost the reader the two oldest rows
    reader = opened(path, readonly=True)
    known = list(range(max(0, before + 2 - 10), before))
    assert numbers(reader) == known
    order = reader.in_order()
    for number in range(before + 2, before + 14):
        buffer.extend(steps(number, number + 1))
        for row, value in zip(order, known, strict=True):
            if value >= number + 1 - 10:
                assert reader[row]["number"] == value
            else:
                with pytest.raises(ConfigError, match=r"some that were overwritten since. Open them again"):
                    reader.storage.entry("number", row)
    buffer.clear()
    with pytest.raises(ConfigError, match="some that were overwritten since"):
        reader.sample()


# ---- mistakes and damage -----------------------------------------------------------------------------------------------------
def filled(path: Path) -> None:
    ReplayBuffer(MemmapStorage(8, path)).extend(steps(0, 5))


def flip(file: Path, *places: int) -> None:
    data = bytearray(file.read_bytes())
    for place in places:
        data[place] ^= 0x10
    file.write_bytes(data)


def version_2(folder: Path) -> None:
    meta = read_meta(folder)
    write_meta(folder / META, {**meta, "version": 2})


DAMAGE = {
    "a data file is too short": (lambda f: os.truncate(f / "00.number.int64", 63), r"00\.number\.int64 must be 64 bytes; got 63"),
    "a data file is too long": (lambda f: os.truncate(f / "00.number.int64", 65), r"00\.number\.int64 must be 64 bytes; got 65"),
    "a data file is missing": (lambda f: (f / "00.number.int64").unlink(), r"00\.number\.int64 must be there; got no such file"),
    "the cursor is missing": (lambda f: (f / "cursor").unlink(), "cursor must be there; got no such file"),
    "the lock is missing": (lambda f: (f / "lock").unlink(), "lock must be there; got no such file"),
    "meta.json is no JSON": (lambda f: os.truncate(f / META, 100), r"meta\.json must be JSON as it was written; got "),
    "meta.json is a list": (lambda f: (f / META).write_text("[]"), r"meta\.json must be JSON as it was written; got "),
    "meta.json is another's": (lambda f: (f / META).write_text('{"a": 1}'), r"meta\.json must be that of 'rlbook rows'"),
    "a bit of meta.json flipped": (lambda f: flip(f / META, 55), r"meta\.json must be "),
    "both cursors are wrong": (lambda f: flip(f / "cursor", 3, 70), "cursor must be a cursor with a right checksum"),
    "the cursor is empty": (lambda f: os.truncate(f / "cursor", 10), "cursor must be a cursor with a right checksum"),
    "another version": (version_2, "The version of .*must be 1; got 2. Read them with the version of rlbook that wrote them"),
}


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_explained_and_nothing_touched(path, damage, readonly):
    filled(path)
    harm, message = DAMAGE[damage]
    harm(path)
    before = image(path)
    with pytest.raises(ConfigError, match=message):
        MemmapStorage.open(path, readonly=readonly)
    assert image(path) == before


@pytest.mark.parametrize("place", [*range(0, 44, 4), *range(64, 108, 4)])
def test_one_wrong_cursor_is_mended(path, place):
    filled(path)
    flip(path / "cursor", place)
    assert numbers(opened(path, readonly=True)) == list(range(5))
    assert numbers(opened(path)) == list(range(5))


@pytest.mark.parametrize("content", ["file", "folder", "rows"])
def test_what_is_there_is_not_overwritten(path, content):
    if content == "file":
        path.write_text("mine")
    elif content == "folder":
        path.mkdir()
        (path / "mine").write_text("mine")
    else:
        filled(path)
    before = image(path.parent)
    with pytest.raises(ConfigError, match=r"must be a new or an empty folder; got .*which holds (rows|something else)"):
        MemmapStorage(8, path)
    assert image(path.parent) == before


def test_what_came_there_meanwhile_is_not_overwritten(path):
    buffer = ReplayBuffer(MemmapStorage(8, path))
    filled(path)
    before = image(path)
    with pytest.raises(ConfigError, match=r"path must be that of a folder to make; got .*not empty"):
        buffer.extend(steps(0, 3))
    assert image(path) == before
    assert os.listdir(path.parent) == ["rows"]


def test_what_a_killed_process_left_unfinished_is_in_nobodys_way(path):
    unfinished = path.with_name(".rows.unfinished")
    unfinished.mkdir()
    (unfinished / "00.number.int64").write_bytes(b"abc")
    filled(path)
    assert numbers(opened(path)) == list(range(5))
    assert os.listdir(path.parent) == ["rows"]


@pytest.mark.parametrize("place", ["/proc/rows", "/dev/null/rows"])
def test_a_path_that_cannot_be_made(place):
    with pytest.raises(ConfigError, match="path must be that of a folder to make"):
        ReplayBuffer(MemmapStorage(8, place)).extend(steps(0, 3))


def test_no_rows_to_open(path):
    with pytest.raises(ConfigError, match=r"path must be a folder with rows and their meta.json.*Make rows with"):
        MemmapStorage.open(path)


def test_a_writer_that_is_no_ring(path):
    class Other(Writer):
        def place(self, batch, count, streams):
            yield slice(0, count), slice(0, count)

    with pytest.raises(ConfigError, match="The writer of rows on disk must be a RingWriter; got Other"):
        ReplayBuffer(MemmapStorage(8, path), writer=Other())


# ---- disk and memory ---------------------------------------------------------------------------------------------------------
def test_more_than_the_disk_holds(path):
    buffer = ReplayBuffer(MemmapStorage(10**12, path))
    with pytest.raises(ConfigError, match=r"The free space in .* must be 8,208,000,000,000,000 bytes; got [\d,]+ bytes"):
        buffer.extend(steps(0, 3))
    assert os.listdir(path.parent) == []
    assert len(buffer) == 0


def test_a_disk_that_fills_up_meanwhile(path, monkeypatch):
    allocate, left = os.posix_fallocate, [1]

    def fallocate(*args) -> None:
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()
        allocate(*args)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    buffer = ReplayBuffer(MemmapStorage(8, path))
    with pytest.raises(ConfigError, match=r"No space left on device. Lower the capacity"):
        buffer.extend(steps(0, 3))
    assert os.listdir(path.parent) == []
    monkeypatch.undo()
    buffer.extend(steps(0, 3))  # there is space again
    assert numbers(buffer) == [0, 1, 2]


def test_a_limit_on_the_size_of_files(path):
    receiver, sender = FORK.Pipe(duplex=False)

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            ReplayBuffer(MemmapStorage(100, path)).extend(steps(0, 3))
        except ConfigError as error:
            sender.send(str(error))

    process = FORK.Process(target=write)
    process.start()
    process.join()
    assert "must be 820,800 bytes; got" in (message := receiver.recv())
    assert "File too large" in message
    assert os.listdir(path.parent) == []


def test_files_are_not_sparse(path):
    filled(path)
    assert all(file.stat().st_blocks * 512 >= file.stat().st_size for file in path.glob("0*"))


def private_memory() -> int:
    """Bytes of this process that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_private_memory_stays_flat(path):
    buffer = ReplayBuffer(MemmapStorage(10_000, path), batch_size=32)
    data = steps(0, 500)
    buffer.extend(data)
    buffer.sample()
    before = private_memory()
    for _ in range(30):
        buffer.extend(data)
        buffer.sample()
    buffer.flush()
    assert buffer.storage.nbytes > 80e6
    assert private_memory() - before < 8e6


def test_meta_is_readable(path):
    filled(path)
    meta = json.loads((path / META).read_text())
    assert (meta["format"], meta["version"], meta["capacity"]) == ("rlbook rows", 1, 8)
    assert {"key": ["next", "wide"], "shape": [50]} in [entry for block in meta["blocks"] for entry in block["entries"]]


# ---- the arithmetic of recovery ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "cursor, expected",
    [
        # capacity 10: numbers [max(0, reserved - 10), committed) are whole
        (Cursor(0, 0, 1, committed=7, reserved=7), Cursor(0, 0, 1, 7, 7)),
        (Cursor(0, 0, 1, committed=7, reserved=10), Cursor(0, 0, 1, 7, 7)),  # nothing was overwritten
        (Cursor(0, 0, 1, committed=7, reserved=12), Cursor(1, 2, 1, 5, 5)),  # [2, 7) remain, the first in row 2
        (Cursor(0, 0, 1, committed=24, reserved=24), Cursor(0, 0, 1, 24, 24)),
        (Cursor(0, 0, 1, committed=24, reserved=27), Cursor(1, 7, 1, 7, 7)),  # [17, 24), the first in row 17 mod 10
        (Cursor(4, 3, 1, committed=24, reserved=27), Cursor(5, 0, 1, 7, 7)),  # (3 + 17) mod 10
        (Cursor(0, 0, 1, committed=24, reserved=40), Cursor(1, 0, 1, 0, 0)),  # everything is gone
        (Cursor(0, 0, 4, committed=16, reserved=20), Cursor(1, 4, 4, 4, 4)),  # 8 rows in use: [12, 16), the first in row 4
    ],
)
def test_recovery(cursor, expected):
    assert cursor.recovered(10) == expected
    assert expected.recovered(10) == expected
