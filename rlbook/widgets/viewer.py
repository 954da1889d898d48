"""Watch a rollout: play, pause, step and scrub through its frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
import torch

from rlbook import keys
from rlbook.envs.base import Env
from rlbook.envs.loop import align
from rlbook.envs.policy import as_policy, check_output
from rlbook.errors import ConfigError, MissingExtraError, explain
from rlbook.widgets._front import Bundle, View

WIDTH, HEIGHT = 300, 200  # frames are shrunk to fit into this
PER_STRIP = 10  # frames side by side in one picture: more would save few bytes, and take much memory to encode
MOST_FRAMES = 1000  # of a longer film only every second, third, ... frame is kept
COLORS = 128
STILL_FRAMES, STILL_WIDTH = 60, 240  # the animated picture of a saved notebook


class Film:
    """Frames shrunk to at most 300 x 200 and kept as PNGs: two hundred of CartPole take 0.6 MB instead of 36.

    ``film[i]`` is one frame, uint8 ``[H, W, 3]``; ``np.asarray(film)`` holds all of them, ``[T, H, W, 3]``.
    """

    def __init__(self, frames: Iterable[np.ndarray] = ()):
        self._pngs: list[bytes] = []
        for frame in frames:
            self.append(frame)

    def append(self, frame: np.ndarray) -> None:
        """Add a frame, uint8 ``[H, W, 3]`` of any size."""
        out = BytesIO()
        _fit(_pillow().fromarray(np.ascontiguousarray(frame)), WIDTH).save(out, "PNG", compress_level=1)
        self._pngs.append(out.getvalue())

    def image(self, index: int) -> Any:
        """Return a frame as a Pillow image."""
        return _pillow().open(BytesIO(self._pngs[index]))

    def __len__(self) -> int:
        return len(self._pngs)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(self.image(index))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.stack([self[i] for i in range(len(self))]).astype(dtype or np.uint8, copy=False)


@torch.no_grad()
def record(env: Env, policy: Any = None, max_steps: int = 500, *, seed: int | None = None, index: int = 0) -> Film:
    """Run an episode and film it.

    Args:
        env: an environment that can render; a batch of them runs for all ``max_steps``.
        policy: anything callable, as in ``env.rollout``; random actions by default.
        max_steps: the longest film.
        seed: reseed the environment first.
        index: which environment of a batch to film.

    Returns:
        ``T + 1`` frames: the one before each step and the last one.
    """
    act = as_policy(policy, env)
    root: Any = env.reset(seed=seed)
    noise = act.noise(max_steps)
    film = Film([env.render(index)])
    states = act.initial_state()
    for t in range(max_steps):
        leaves = {key: root[key] for key in env.observation_spec.leaves()}
        out = act(leaves | states, None if noise is None else noise[t])
        check_output(out, env)
        root[keys.ACTION] = out[keys.ACTION]
        # One environment is not reset: the last frame shows how it ended.
        step, root = env.step_and_reset(root) if env.batch_size else (env.step(root), root[keys.NEXT])
        done: Any = step[keys.NEXT, keys.DONE]
        states = {key: out[key].masked_fill(align(done, out[key]), 0) for key in states}
        film.append(env.render(index))
        if not env.batch_size and root[keys.DONE]:
            break
    return film


class EnvViewer(View):
    """A film of a rollout with play, pause, single frames, speed and a scrubber; all by keyboard too.

    Args:
        frames: what ``record`` returns; or uint8 ``[T, H, W, 3]``: an array, a tensor or a list of frames.
        fps: frames per second.
        labels: a line of text for each frame, for example its reward.

    Raises:
        ConfigError: the frames have another shape or dtype, or their number differs from that of the labels.

    Example:
        >>> import numpy as np
        >>> EnvViewer(np.zeros((20, 40, 60, 3), dtype=np.uint8), fps=10)
        EnvViewer(20 frames of 60 x 40, 10 per second)
    """

    module: ClassVar[str] = "viewer"

    def __init__(self, frames: Any, fps: float = 30, labels: Sequence[str] | None = None):
        super().__init__()
        images = frames if isinstance(frames, Film) else _as_frames(frames)
        if not fps > 0:
            raise ConfigError(explain("fps", "positive", repr(fps), "Pass for example fps=30"))
        if labels is not None and len(labels) != len(images):
            got = f"{len(labels)} for {len(images)} frames"
            raise ConfigError(explain("labels", "one for each frame", got, "Leave them out or pass as many"))
        stride = -(-len(images) // MOST_FRAMES)
        if isinstance(frames, Film) and stride == 1:
            self._film = frames
        else:
            self._film = Film(images[i] for i in range(0, len(images), stride))
        self.labels = [str(label) for label in labels[::stride]] if labels is not None else None
        self.fps = fps / stride

    def __len__(self) -> int:
        return len(self._film)

    def _config(self) -> dict[str, Any]:
        width, height = self._film.image(0).size
        layout = {"width": width, "height": height, "perStrip": PER_STRIP}
        return {"count": len(self), "fps": self.fps, "labels": self.labels, **layout}

    def _hear(self, message: dict[str, Any]) -> None:
        if message.get("kind") == "hello":
            self._send({"kind": "frames"}, [_strip(self._film, start) for start in range(0, len(self), PER_STRIP)])

    def _still(self) -> Bundle:
        return {"text/plain": repr(self), "image/png": _animation(self._film, self.fps)}, {}

    def __repr__(self) -> str:
        width, height = self._film.image(0).size
        return f"EnvViewer({len(self)} frames of {width} x {height}, {self.fps:g} per second)"


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "lab", "A film of an environment") from error
    return Image


def _as_frames(frames: Any) -> np.ndarray:
    """Return frames as uint8 ``[T, H, W, 3]``."""
    if hasattr(frames, "detach"):
        frames = frames.detach().cpu().numpy()
    array = np.asarray(frames)
    if array.ndim == 4 and array.shape[-1] == 3 and array.dtype == np.uint8 and array.size:
        return array
    fix = "Pass what record(env, policy) returns"
    if array.ndim == 4 and array.shape[1] == 3:
        fix = "Move the colors to the end: frames.permute(0, 2, 3, 1)"
    elif array.ndim == 4 and array.dtype != np.uint8:
        fix = "Turn numbers in [0, 1] into bytes: (frames * 255).to(torch.uint8)"
    raise ConfigError(explain("frames", "uint8 [T, H, W, 3], T at least 1", f"{array.dtype} {list(array.shape)}", fix))


def _fit(image: Any, width: int) -> Any:
    """Shrink a Pillow image in place to fit into ``width`` x 2/3 ``width``, and return it."""
    image.thumbnail((width, width * HEIGHT // WIDTH), _pillow().Resampling.LANCZOS)
    return image


def _strip(film: Film, start: int) -> bytes:
    """Lay frames side by side in a lossless WebP of few colors: what stays the same costs next to nothing."""
    image = _pillow()
    frames = [film.image(i) for i in range(start, min(start + PER_STRIP, len(film)))]
    width, height = frames[0].size
    strip = image.new("RGB", (width * len(frames), height))
    for i, frame in enumerate(frames):
        strip.paste(frame, (i * width, 0))
    out = BytesIO()
    few_colors = strip.quantize(COLORS, image.Quantize.MAXCOVERAGE, dither=image.Dither.NONE).convert("RGB")
    few_colors.save(out, "WEBP", lossless=True, quality=40, method=3)
    return out.getvalue()


def _animation(film: Film, fps: float) -> bytes:
    """Return a small animated PNG that lasts as long as the film: what a saved notebook shows."""
    image = _pillow()
    stride = -(-len(film) // STILL_FRAMES)
    small = [_fit(film.image(i), STILL_WIDTH) for i in range(0, len(film), stride)]
    palette = small[len(small) // 2].quantize(COLORS, image.Quantize.MAXCOVERAGE, dither=image.Dither.NONE)
    first, *rest = [frame.quantize(palette=palette, dither=image.Dither.NONE) for frame in small]
    out = BytesIO()
    first.save(out, "PNG", save_all=True, append_images=rest, duration=1000 * stride / fps, loop=0)
    return out.getvalue()
