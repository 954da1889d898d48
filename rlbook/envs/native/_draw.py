"""Small antialiased pictures, for environments that draw themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlbook.errors import MissingExtraError

SCALE = 4
"""Everything is drawn this many times larger, then averaged: smooth edges at any angle."""

PAPER, INK, BLUE, ORANGE, GREEN, RED, GREY = "#fbfaf7", "#2b2d42", "#3d6fb6", "#e07a3f", "#4c9f70", "#c8553d", "#c9ccd6"

Point = tuple[float, float]


class Picture:
    """A canvas in pixels, origin at the top left.

    Args:
        width, height: of the finished picture.
        background: colour.

    Raises:
        MissingExtraError: Pillow is not installed.
    """

    def __init__(self, width: int, height: int, background: str = PAPER):
        try:
            from PIL import Image, ImageDraw
        except ImportError as error:
            raise MissingExtraError("pillow", "lab", "Drawing an environment") from error
        self.size = (width, height)
        self.image: Any = Image.new("RGB", (width * SCALE, height * SCALE), background)
        self._draw: Any = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point], color: str) -> None:
        """Fill a polygon."""
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=color)

    def box(self, left: float, top: float, right: float, bottom: float, color: str, radius: float = 0) -> None:
        """Fill a rectangle with round corners."""
        corners = [left * SCALE, top * SCALE, right * SCALE, bottom * SCALE]
        self._draw.rounded_rectangle(corners, radius * SCALE, fill=color)

    def disc(self, x: float, y: float, radius: float, color: str) -> None:
        """Fill a circle."""
        self._draw.ellipse([(x - radius) * SCALE, (y - radius) * SCALE, (x + radius) * SCALE, (y + radius) * SCALE], fill=color)

    def stroke(self, start: Point, end: Point, width: float, color: str) -> None:
        """Draw a line with round ends."""
        self._draw.line([(x * SCALE, y * SCALE) for x, y in (start, end)], fill=color, width=round(width * SCALE))
        for x, y in (start, end):
            self.disc(x, y, width / 2, color)

    def array(self) -> np.ndarray:
        """Return the finished picture, uint8 ``[height, width, 3]``."""
        return np.array(self.image.reduce(SCALE))
