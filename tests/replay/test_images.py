"""Pictures in other forms: what is read is what was written, bit by bit, in less memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from rlbook.errors import ConfigError, MissingKeyError, SpecError
from rlbook.replay import CompressedStorage, FrameStorage, ReplayBuffer, ReservoirWriter, TensorStorage


class Film:
    """N environments whose episodes have random lengths, seen in stacks of k frames as Gymnasium's FrameStackObservation makes.

    Args:
        num_envs, stack: N, k.
        padding: what stands before the first frame of an episode: "reset", itself, or "zero".
        shades: few shades make frames that come again.
    """

    def __init__(self, num_envs: int, stack: int, padding: str, seed: int, end: float = 0.3, shades: int = 256):
        self.random, self.end, self.shades, self.padding = np.random.default_rng(seed), end, shades, padding
        self.time = 0
        self.stacks = [self.reset(stack) for _ in range(num_envs)]

    def frame(self) -> np.ndarray:
        return self.random.integers(0, self.shades, (3, 5), np.uint8)

    def reset(self, stack: int) -> list[np.ndarray]:
        first = self.frame()
        return [*([first] if self.padding == "reset" else [np.zeros_like(first)]) * (stack - 1), first]

    def play(self, steps: int) -> TensorDict:
        """Return steps ``[N, T]``."""
        root, after, done = [], [], []
        for _ in range(steps):
            root.append(np.array(self.stacks))
            self.stacks = [[*stack[1:], self.frame()] for stack in self.stacks]
            after.append(np.array(self.stacks))
            done.append(self.random.random(len(self.stacks)) < self.end)
            for env in done[-1].nonzero()[0]:
                self.stacks[env] = self.reset(len(self.stacks[env]))
        pixels, next_pixels, dones = (torch.from_numpy(np.array(x)).transpose(0, 1) for x in (root, after, done))
        number = (self.time + torch.arange(steps)).expand(len(self.stacks), steps)
        self.time += steps
        inner = {"pixels": next_pixels, "done": dones}
        return TensorDict({"pixels": pixels, "number": number, "next": inner}, (len(self.stacks), steps))


def same(a: TensorDict, b: TensorDict) -> bool:
    left, right = (dict(x.items(True, True)) for x in (a, b))
    return left.keys() == right.keys() and all(
        left[key].dtype == x.dtype and torch.equal(left[key], x) for key, x in right.items()
    )


def check(buffer: ReplayBuffer, plain: ReplayBuffer) -> None:
    """Compare a buffer with one that stores everything."""
    buffer.check_valid()
    assert torch.equal(buffer.in_order(), plain.in_order())
    assert same(buffer[:], plain[:])
    if len(buffer):
        rows = torch.randint(len(buffer), (3, 2))
        assert same(buffer[rows], plain[rows])
        for key in buffer.storage.keys:
            assert torch.equal(buffer.storage.entry(key, rows), plain.storage.entry(key, rows))


STORAGES = {"frames": FrameStorage, "few": lambda n: FrameStorage(n, recent=3), "zlib": CompressedStorage}


@pytest.mark.parametrize("make", STORAGES.values(), ids=STORAGES)
@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from(["reset", "zero"]),
    st.integers(3, 17),
    st.sampled_from([2, 256]),
    st.lists(st.one_of(st.integers(1, 9), st.sampled_from(["clear", "load"])), max_size=8),
)
@settings(max_examples=30)
def test_pictures_come_back_as_they_were(make, seed, num_envs, stack, padding, capacity, shades, actions):
    film = Film(num_envs, stack, padding, seed, shades=shades)
    buffer, plain = ReplayBuffer(make(capacity)), ReplayBuffer(TensorStorage(capacity))
    for action in actions:
        if action == "clear":
            buffer.clear()
            plain.clear()
        elif action == "load":
            state, buffer = buffer.state_dict(), ReplayBuffer(make(capacity))
            buffer.load_state_dict(state)
        else:
            data = film.play(action)
            buffer.extend(data)
            plain.extend(data)
        check(buffer, plain)


@pytest.mark.parametrize("make", STORAGES.values(), ids=STORAGES)
def test_rows_that_are_replaced_in_any_order(make):
    film = Film(2, 4, "reset", 0)
    buffer, plain = (ReplayBuffer(storage, writer=ReservoirWriter(1)) for storage in (make(10), TensorStorage(10)))
    for _ in range(20):
        data = film.play(7)
        buffer.extend(data)
        plain.extend(data)
        check(buffer, plain)


@pytest.mark.parametrize("make", STORAGES.values(), ids=STORAGES)
def test_pictures_are_saved_and_loaded(make, tmp_path):
    film = Film(2, 4, "zero", 0)
    buffer, other = ReplayBuffer(make(20), batch_size=4, seed=0), ReplayBuffer(make(20), batch_size=4, seed=1)
    buffer.extend(film.play(13))
    buffer.save(tmp_path)
    other.load(tmp_path)
    more = film.play(3)
    for one in (buffer, other):
        one.extend(more)
    check(other, buffer)
    assert same(buffer.sample(), other.sample())
    with pytest.raises(ConfigError, match="capacity"):
        ReplayBuffer(make(8)).load(tmp_path)


@pytest.mark.parametrize("make", STORAGES.values(), ids=STORAGES)
def test_what_does_not_fit_is_refused_whole(make):
    film = Film(2, 4, "reset", 0)
    buffer, plain = ReplayBuffer(make(20)), ReplayBuffer(20)
    data = film.play(5)
    buffer.extend(data)
    plain.extend(data)
    for bad, error in (
        (film.play(2).exclude("pixels"), MissingKeyError),
        (film.play(2).set("pixels", torch.zeros(2, 2, 4, 3, 6, dtype=torch.uint8)), SpecError),
        (film.play(2).set("pixels", torch.zeros(2, 2, 4, 3, 5)), SpecError),
    ):
        with pytest.raises(error, match="pixels"):
            buffer.extend(bad)
        check(buffer, plain)


# ---- FrameStorage ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("padding", "per_episode"), [("reset", 1), ("zero", 2)])
def test_a_frame_is_stored_once(padding, per_episode):
    film = Film(2, 4, padding, 0, end=0)
    buffer = ReplayBuffer(FrameStorage(200))
    for _ in range(20):
        buffer.extend(film.play(5))
    storage = buffer.storage
    frames = storage._fresh - len(storage._free)
    assert frames == 200 + 2 * per_episode - (padding == "zero")  # a new one each step; the first ones; zeros are one frame
    for _ in range(30):
        buffer.extend(film.play(5))
    frames = storage._fresh - len(storage._free)
    assert frames == 200 + 2 * 4  # the stacks of the oldest rows are whole
    assert storage.raw_bytes == 200 * 8 * 15
    assert "uint8 [4, 3, 5], " in repr(buffer)
    assert "x smaller" in repr(buffer)


def test_the_pool_grows_for_short_episodes():
    film, buffer = Film(1, 4, "reset", 0, end=1), ReplayBuffer(FrameStorage(100))
    buffer.extend(film.play(100))
    assert buffer.storage._fresh == 200 <= len(buffer.storage.pool)
    buffer.check_valid()


def test_frames_of_the_same_hash_are_told_apart():
    film, buffer, plain = Film(2, 4, "reset", 0), ReplayBuffer(FrameStorage(30)), ReplayBuffer(30)
    film.play(1)
    buffer.storage._hash = lambda frames: np.zeros(len(frames), np.uint64)  # type: ignore[method-assign]
    for _ in range(10):
        data = film.play(4)
        buffer.extend(data)
        plain.extend(data)
        check(buffer, plain)


def test_other_keys_types_and_shapes():
    data: Tensor = torch.randn(1, 6, 2, 3)
    data[0, 0] = torch.nan
    rows = TensorDict({"a": {"b": data[:, :-1]}, "next": {"a": {"b": data[:, 1:]}}}, [1, 5])
    buffer = ReplayBuffer(FrameStorage(5, ("a", "b")))
    buffer.extend(rows)
    buffer.check_valid()
    found = buffer[:]["next", "a", "b"]
    assert torch.equal(found, data[0, 1:])
    assert buffer[0]["a", "b"].isnan().all()
    assert buffer.storage._fresh == 11  # NaN, twice in a stack, is one frame


@pytest.mark.parametrize(
    ("rows", "error", "match"),
    [
        ({"image": torch.ones(2, 3)}, MissingKeyError, "data with 'pixels'; got the keys .'image'"),
        ({"pixels": torch.ones(3)}, SpecError, r"pixels must be stacks \[k, H, W\]"),
        ({"pixels": torch.ones(3, 2, 2), ("next", "pixels"): torch.ones(4, 2, 2)}, SpecError, "of one shape and dtype"),
    ],
)
def test_data_without_stacks(rows, error, match):
    buffer = ReplayBuffer(FrameStorage(3))
    with pytest.raises(error, match=match):
        buffer.add(rows)
    buffer.add({"pixels": torch.ones(3, 2, 2)})
    assert len(buffer) == 1


def test_a_pool_whose_counts_are_wrong():
    buffer = ReplayBuffer(FrameStorage(5))
    buffer.extend(Film(1, 2, "zero", 0).play(3))
    buffer.storage._uses[0] += 1
    with pytest.raises(ConfigError, match="The pool's counts of uses must be those of the stacks"):
        buffer.check_valid()


# ---- CompressedStorage -------------------------------------------------------------------------------------------------------
def test_the_ratio_is_that_of_the_bytes():
    picture = torch.zeros(10, 84, 84, dtype=torch.uint8)
    buffer = ReplayBuffer(CompressedStorage(10))
    rows = TensorDict({"pixels": picture, "flat": torch.ones(10, 50, dtype=torch.uint8), "wide": torch.ones(10, 2, 2)}, [10])
    buffer.extend(rows)
    storage = buffer.storage
    assert list(storage.pictures) == ["pixels"]
    assert storage.raw_bytes == 10 * 84 * 84 > 50 * storage.picture_bytes > 0
    assert storage.nbytes == storage.picture_bytes + 10 * (50 + 16)
    assert f"pixels: uint8 [84, 84], {storage.raw_bytes / storage.picture_bytes:.1f}x smaller" in repr(buffer)
    buffer.clear()
    assert storage.picture_bytes == storage.raw_bytes == 0
    assert "none yet" in repr(buffer)


def test_a_wrong_count_of_bytes():
    buffer = ReplayBuffer(CompressedStorage(5))
    buffer.extend(Film(1, 2, "zero", 0).play(3))
    buffer.storage._bytes += 1
    with pytest.raises(ConfigError, match=r"The count of bytes must be \d+, those of the pictures"):
        buffer.check_valid()


@pytest.mark.parametrize("level", [0, 10, "best"])
def test_a_bad_level(level):
    with pytest.raises(ConfigError, match=r"level must be in \[1, 9\]"):
        CompressedStorage(4, level)


@pytest.mark.parametrize("recent", [0, -1, 1.5])
def test_a_bad_window(recent):
    with pytest.raises(ConfigError, match="recent must be a positive integer"):
        FrameStorage(4, recent=recent)


def test_the_order_of_the_entries_does_not_matter():
    x, y = torch.randint(0, 256, (2, 6, 4, 8, 8), dtype=torch.uint8)
    one, other = ReplayBuffer(FrameStorage(10)), ReplayBuffer(FrameStorage(10))
    one.extend(TensorDict({"pixels": x, "next": {"pixels": y}}, [6]))
    other.extend(TensorDict({"next": {"pixels": y}, "pixels": x}, [6]))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other[:]["pixels"], x)
    assert torch.equal(other[:]["next", "pixels"], y)
