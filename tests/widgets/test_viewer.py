"""EnvViewer and record: frames in, one small picture out, and errors that say what frames must be."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from rlbook import keys
from rlbook.envs import CartPole, Env
from rlbook.errors import ConfigError
from rlbook.modules import GRU, make_actor
from rlbook.specs import Bounded, Categorical, Composite
from rlbook.widgets import EnvViewer, record, viewer
from rlbook.widgets.viewer import Film


class Lamp(Env):
    """Counts its steps and ends at the fifth; its picture is as bright as the count."""

    def __init__(self, num_envs: int | None = None):
        super().__init__(Composite({"observation": Bounded(0, 100, (1,))}), Categorical(2), num_envs=num_envs, seed=0)

    def _reset(self, mask):
        fresh = torch.zeros(*self.batch_size, 1)
        self.count = fresh if mask is None else torch.where(mask.unsqueeze(-1), fresh, self.count)
        return {keys.OBSERVATION: self.count.clone()}

    def _step(self, action):
        self.count = self.count + 1
        count = self.count.squeeze(-1)
        return {keys.OBSERVATION: self.count.clone(), keys.REWARD: count, keys.TERMINATED: count >= 5}

    def _render(self, index):
        count = self.count.reshape(-1)[index]
        return np.full((40, 60, 3), 20 * int(count), dtype=np.uint8)


def brightness(film: Film) -> list[int]:
    return (np.asarray(film)[:, 0, 0, 0] // 20).tolist()


def test_films_an_episode_to_its_end():
    frames = record(Lamp(), max_steps=100)
    assert len(frames) == 6
    assert frames[5].dtype == np.uint8
    assert np.asarray(frames).shape == (6, 40, 60, 3)
    assert brightness(frames) == [0, 1, 2, 3, 4, 5]


def test_films_at_most_max_steps():
    assert brightness(record(Lamp(), max_steps=2)) == [0, 1, 2]


def test_films_one_environment_of_a_batch_through_its_resets():
    assert brightness(record(Lamp(num_envs=3), max_steps=7, index=2)) == [0, 1, 2, 3, 4, 0, 1, 2]


def test_films_any_policy():
    seen: list[float] = []

    def policy(observation):
        seen.append(observation.item())
        return torch.tensor(1)

    record(Lamp(), policy, max_steps=3)
    assert seen == [0.0, 1.0, 2.0]


def test_films_are_small():
    class Big(Lamp):
        def _render(self, index):
            return np.zeros((400, 600, 3), dtype=np.uint8)

    film = record(Big(), max_steps=1)
    assert np.asarray(film).shape == (2, 200, 300, 3)
    assert sum(map(len, film._pngs)) < 2000


def test_a_film_keeps_every_pixel():
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    film = Film(frames)
    np.testing.assert_array_equal(np.asarray(film), frames)
    np.testing.assert_array_equal(list(film), frames)


def stripes(count: int, height: int = 20, width: int = 30) -> np.ndarray:
    """Frames with a black line that moves down by one."""
    frames = np.full((count, height, width, 3), 255, dtype=np.uint8)
    for i in range(count):
        frames[i, i % height] = 0
    return frames


class Page:
    def __init__(self) -> None:
        self.sent: list[tuple[dict, list[bytes]]] = []

    def send(self, message, buffers) -> None:
        self.sent.append((message, buffers))


def test_sends_all_frames_in_few_pictures():
    frames = stripes(235)
    film = EnvViewer(frames, fps=10)
    film._widget = page = Page()
    film._hear({"kind": "hello"})
    [(message, strips)] = page.sent
    config = film._config()
    assert message == {"kind": "frames"}
    assert [config[name] for name in ("count", "width", "height", "perStrip")] == [235, 30, 20, 10]
    assert len(strips) == 24
    for at in (0, 9, 10, 99, 100, 234):
        strip, column = np.asarray(Image.open(io.BytesIO(strips[at // 10]))), at % 10
        np.testing.assert_array_equal(strip[:, column * 30 : column * 30 + 30], frames[at])
    assert sum(map(len, strips)) < 20_000


def test_a_saved_notebook_has_an_animation_of_the_same_length():
    image = Image.open(io.BytesIO(EnvViewer(stripes(200), fps=20)._still()[0]["image/png"]))
    assert image.format == "PNG"
    assert image.n_frames <= viewer.STILL_FRAMES
    total = 0.0
    for i in range(image.n_frames):
        image.seek(i)
        total += image.info["duration"]
    assert total == pytest.approx(200 / 20 * 1000, rel=0.03)


def test_a_long_film_is_thinned_and_keeps_its_pace(monkeypatch):
    monkeypatch.setattr(viewer, "MOST_FRAMES", 50)
    film = EnvViewer(stripes(120), fps=30, labels=[str(i) for i in range(120)])
    assert len(film) == 40
    assert film.fps == 10
    assert film.labels[:3] == ["0", "3", "6"]
    np.testing.assert_array_equal(film._film[1], stripes(120)[3])


def test_a_film_is_not_copied():
    film = Film(stripes(4))
    assert EnvViewer(film)._film is film


@pytest.mark.parametrize("frames", [torch.from_numpy(stripes(3)), list(stripes(3)), stripes(3)], ids=["tensor", "list", "array"])
def test_takes_tensors_arrays_and_lists(frames):
    assert repr(EnvViewer(frames)) == "EnvViewer(3 frames of 30 x 20, 30 per second)"


@pytest.mark.parametrize(
    "frames, message",
    [
        (torch.zeros(5, 3, 20, 30, dtype=torch.uint8), r"got uint8 \[5, 3, 20, 30\]. Move the colors to the end"),
        (torch.rand(5, 20, 30, 3), r"got float32 \[5, 20, 30, 3\]. Turn numbers in \[0, 1\] into bytes"),
        (np.zeros((20, 30, 3), np.uint8), r"frames must be uint8 \[T, H, W, 3\].*got uint8 \[20, 30, 3\]. Pass what record"),
        ([], r"got float64 \[0\]"),
    ],
)
def test_explains_wrong_frames(frames, message):
    with pytest.raises(ConfigError, match=message):
        EnvViewer(frames)


def test_explains_wrong_settings():
    with pytest.raises(ConfigError, match="fps must be positive; got 0"):
        EnvViewer(stripes(2), fps=0)
    with pytest.raises(ConfigError, match="labels must be one for each frame; got 1 for 2 frames"):
        EnvViewer(stripes(2), labels=["a"])


@pytest.mark.parametrize("num_envs", [None, 2])
def test_a_policy_with_a_memory_is_filmed(num_envs):
    env = CartPole(num_envs=num_envs, seed=0)
    actor = make_actor(env, recurrent=GRU, num_cells=8)
    assert len(record(env, actor.greedy, max_steps=5)) == 6
