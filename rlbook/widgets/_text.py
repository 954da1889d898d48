"""The little markup of questions, hints and messages: `code` in backticks, *emphasis* in asterisks."""

from __future__ import annotations

import re
from html import escape

CODE = re.compile(r"(`[^`]+`)")
EMPHASIS = re.compile(r"(?<![\w*])\*(\S|\S[^*]*\S)\*(?![\w*])")  # neither `2 * 3 * 4` nor `2**3`


def rich(text: str) -> str:
    """Turn a text into HTML."""
    return "".join(
        f"<code>{part[1:-1]}</code>" if i % 2 else EMPHASIS.sub(r"<em>\1</em>", part)
        for i, part in enumerate(CODE.split(escape(text)))
    )


def plain(text: str) -> str:
    """Take the asterisks away, for a terminal. Backticks stay: they say where code ends."""
    return "".join(part if i % 2 else EMPHASIS.sub(r"\1", part) for i, part in enumerate(CODE.split(text)))
