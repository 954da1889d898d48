"""Watch a rollout: play, pause, step and scrub through its frames."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
import torch

from rlbook import keys
from rlbook.envs.base import Env
from rlbook.envs.policy import as_policy, check_output
from rlbook.errors import ConfigError, MissingExtraError, explain
from rlbook.widgets._front import Bundle, View

WIDTH, HEIGHT = 300, 200  # frames are shrunk to fit into this
COLUMNS, PER_SHEET = 10, 100  # how frames are laid out in one picture
MOST_FRAMES = 1000  # of a longer film only every second, third, ... frame is kept
COLORS = 128
STILL_FRAMES, STILL_WIDTH = 60, 240  # the animated picture of a saved notebook


@torch.no_grad()
def record(env: Env, policy: Any = None, max_steps: int = 500, *, seed: int | None = None, index: int = 0) -> np.ndarray:
    """Run an episode and film it.

    Args:
        env: an environment that can render; a batch of them runs for all ``max_steps``.
        policy: anything callable, as in ``env.rollout``; random actions by default.
        max_steps: the longest film.
        seed: reseed the environment first.
        index: which environment of a batch to film.

    Returns:
        uint8 ``[T + 1, H, W, 3]``: the frame before each step and the last one, shrunk to at most 300 x 200.
    """
    act = as_policy(policy, env)
    root: Any = env.reset(seed=seed)
    noise = act.noise(max_steps)
    frames = [_shoot(env, index)]
    for t in range(max_steps):
        out = act({key: root[key] for key in env.observation_spec.leaves()}, None if noise is None else noise[t])
        check_output(out, env)
        root[keys.ACTION] = out[keys.ACTION]
        # One environment is not reset: the last frame shows how it ended.
        root = env.step_and_reset(root)[1] if env.batch_size else env.step(root)[keys.NEXT]
        frames.append(_shoot(env, index))
        if not env.batch_size and root[keys.DONE]:
            break
    return np.stack(frames)


def _shoot(env: Env, index: int) -> np.ndarray:
    return np.asarray(_shrink(env.render(index), WIDTH))


class EnvViewer(View):
    """A film of a rollout with play, pause, single frames, speed and a scrubber; all by keyboard too.

    Args:
        frames: uint8 ``[T, H, W, 3]``: an array, a tensor or a list of frames, for example from ``record``.
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
        images = _as_frames(frames)
        if not fps > 0:
            raise ConfigError(explain("fps", "positive", repr(fps), "Pass for example fps=30"))
        if labels is not None and len(labels) != len(images):
            got = f"{len(labels)} for {len(images)} frames"
            raise ConfigError(explain("labels", "one for each frame", got, "Leave them out or pass as many"))
        stride = -(-len(images) // MOST_FRAMES)
        self._frames = [_shrink(image, WIDTH) for image in images[::stride]]
        self.labels = [str(label) for label in labels[::stride]] if labels is not None else None
        self.fps = fps / stride

    def __len__(self) -> int:
        return len(self._frames)

    def _config(self) -> dict[str, Any]:
        width, height = self._frames[0].size
        layout = {"width": width, "height": height, "columns": COLUMNS, "perSheet": PER_SHEET}
        return {"count": len(self), "fps": self.fps, "labels": self.labels, **layout}

    def _hear(self, message: dict[str, Any]) -> None:
        if message.get("kind") == "hello":
            sheets = [_sheet(self._frames[start : start + PER_SHEET]) for start in range(0, len(self), PER_SHEET)]
            self._send({"kind": "frames"}, sheets)

    def _still(self) -> Bundle:
        return {"text/plain": repr(self), "image/png": _animation(self._frames, self.fps)}, {}

    def __repr__(self) -> str:
        width, height = self._frames[0].size
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


def _shrink(frame: np.ndarray, width: int) -> Any:
    """Return a frame as a Pillow image that fits into ``width`` x 2/3 ``width``."""
    image = _pillow().fromarray(np.ascontiguousarray(frame))
    image.thumbnail((width, width * HEIGHT // WIDTH), _pillow().Resampling.LANCZOS)
    return image


def _sheet(frames: Sequence[Any]) -> bytes:
    """Lay frames out in one lossless WebP of few colors: what stays the same from frame to frame costs next to nothing there."""
    image = _pillow()
    width, height = frames[0].size
    sheet = image.new("RGB", (width * min(COLUMNS, len(frames)), height * -(-len(frames) // COLUMNS)))
    for i, frame in enumerate(frames):
        sheet.paste(frame, (i % COLUMNS * width, i // COLUMNS * height))
    out = BytesIO()
    few_colors = sheet.quantize(COLORS, image.Quantize.MAXCOVERAGE, dither=image.Dither.NONE).convert("RGB")
    few_colors.save(out, "WEBP", lossless=True, quality=40, method=3)
    return out.getvalue()


def _animation(frames: Sequence[Any], fps: float) -> bytes:
    """Return a small animated PNG that lasts as long as the film: what a saved notebook shows."""
    image = _pillow()
    stride = -(-len(frames) // STILL_FRAMES)
    small = [frame.copy() for frame in frames[::stride]]
    for frame in small:
        frame.thumbnail((STILL_WIDTH, STILL_WIDTH * HEIGHT // WIDTH), image.Resampling.LANCZOS)
    palette = small[len(small) // 2].quantize(COLORS, image.Quantize.MAXCOVERAGE, dither=image.Dither.NONE)
    first, *rest = [frame.quantize(palette=palette, dither=image.Dither.NONE) for frame in small]
    out = BytesIO()
    first.save(out, "PNG", save_all=True, append_images=rest, duration=1000 * stride / fps, loop=0)
    return out.getvalue()
