"""The one place that decodes pictures and films."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rlbook.datasets.base import bad_file
from rlbook.errors import MissingExtraError


def decode(data: bytes) -> np.ndarray:
    """Return a picture (PNG, JPEG, ...) as uint8 ``[H, W, 3]``.

    Raises:
        SpecError: it is damaged.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("pillow", "offline", "Reading pictures") from error
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise bad_file(Path("picture"), "a whole picture", str(error)[:160]) from error


def frames(path: Path, start: float = 0.0) -> Iterator[np.ndarray]:
    """Yield the frames of a film from ``start`` seconds on, uint8 ``[H, W, 3]``.

    Raises:
        SpecError: it is damaged.
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av
        import av.error
    except ImportError as error:
        raise MissingExtraError("av", "offline", "Reading films") from error
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if start:
                container.seek(int(start * av.time_base))  # to the key frame before it
            tolerance = 0.5 / float(stream.average_rate or 30)
            for frame in container.decode(stream):
                if frame.time is None or frame.time >= start - tolerance:
                    yield frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, IndexError) as error:
        raise bad_file(path, "a whole film", str(error)[:160]) from error
