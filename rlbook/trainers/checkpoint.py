"""Checkpoints: all that a run continues from, in one file that is whole or is not there."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import keystr, tree_map_with_path

from rlbook.errors import ConfigError, explain
from rlbook.replay.buffer import compact

PLAIN = (bool, int, float, complex, str, bytes, set, torch.Size, torch.dtype, torch.device)
"""What a checkpoint holds beside tensors, lists and dictionaries."""


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers, text, and lists and dictionaries of them to a file.

    The file appears when it is whole and on disk: who is interrupted keeps the one that was there before. NumPy's numbers and
    arrays become Python's and tensors.

    Raises:
        ConfigError: something else is to be saved, which :func:`load_checkpoint` would refuse.
    """
    file = Path(path)
    state = tree_map_with_path(_plain, dict(state))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as handle:
            torch.save(state, handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _plain(path: Any, value: Any) -> Any:
    """Return what is saved for a value: one that can be read without running code."""
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, torch.Tensor):
        return compact(value)
    if value is None or isinstance(value, PLAIN):
        return value
    fix = "Save its state_dict(), or text for a path"
    raise ConfigError(explain(f"state{keystr(path)}", "tensors, numbers or text", type(value).__name__, fix))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote. No code in the file is run; tensors are read from disk when they are used.

    Raises:
        ConfigError: there is no such file, or it is something else.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(explain("path", "a checkpoint file", str(path), "Write one with agent.save(path)"))
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        fix = "Write one with agent.save(path)"
        raise ConfigError(explain(str(file), "a checkpoint", str(error).split("\n")[0][:200], fix)) from error


# ---- an object's parts -------------------------------------------------------------------------------------------------------
def parts_of(owner: Any) -> dict[str, Any]:
    """Return the attributes that have a ``state_dict``, those in a list or tuple as ``"name.0"``.

    A module that is inside another one is left out: a loss saves its actor.
    """
    found = {
        name: part
        for attribute, value in vars(owner).items()
        for name, part in _named(attribute, value)
        if hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
    }
    modules = [part for part in found.values() if isinstance(part, nn.Module)]
    inside = {id(child) for module in modules for child in module.modules() if child is not module}
    return {name: part for name, part in found.items() if id(part) not in inside}


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield an attribute, or what a list or tuple of objects holds."""
    if isinstance(value, list | tuple):
        yield from ((f"{name}.{i}", part) for i, part in enumerate(value))
    else:
        yield name, value


# ---- random numbers ----------------------------------------------------------------------------------------------------------
def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's global generators (of every GPU that is in use as well)."""
    kind, words, position, has_gauss, gauss = cast(tuple, np.random.get_state())
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(words.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the global generators where they were; a GPU that is not there any more is left out."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, numbers, *rest = state["numpy"]
    np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].clone())
    for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator.clone(), index)
