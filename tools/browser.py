"""Find the Chromium or Chrome that the browser test drives."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")


def find_browser() -> str | None:
    """Return the path of a browser: the one that the variable CHROMIUM names, else an installed one, else None."""
    candidates = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES), str(MAC) if MAC.exists() else None]
    return next(filter(None, candidates), None)


if __name__ == "__main__":
    sys.exit(0 if find_browser() else 1)
