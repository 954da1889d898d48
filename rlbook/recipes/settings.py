"""What the settings of a recipe mean, where a reader asks for it: in ``help(PPOConfig)``, with Shift+Tab, after ``--help``."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import fields
from functools import cache
from itertools import pairwise


def describe(config: type) -> None:
    """Tell in the docstring of a dataclass what the strings below its fields say, and those of the classes it inherits from."""
    meanings = meanings_of(config)
    lines = [f"    {field.name}: {meanings.get(field.name, '')} (default {field.default!r})" for field in fields(config)]  # type: ignore[arg-type]
    config.__doc__ = "\n".join([inspect.cleandoc(config.__doc__ or ""), "", "Args:", *lines])


def meanings_of(config: type) -> dict[str, str]:
    """Return what the string below each field says, in one line without its full stop."""
    return {name: text for cls in reversed(config.__mro__) for name, text in _own_meanings(cls).items()}


@cache
def _own_meanings(config: type) -> dict[str, str]:
    """Read the fields of one class in its module's source; there are none where that has no file, as in a notebook's cell."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[config.__module__]))
    except (OSError, TypeError):
        return {}
    statements = [
        part for node in tree.body if isinstance(node, ast.ClassDef) and node.name == config.__name__ for part in node.body
    ]
    return {
        field.target.id: " ".join(text.value.value.split()).rstrip(".")
        for field, text in pairwise(statements)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
