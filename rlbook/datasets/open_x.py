"""Open X-Embodiment: robot demonstrations of many laboratories (Open X-Embodiment Collaboration 2024)."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from rlbook.datasets.base import bad_file, trajectory
from rlbook.datasets.hub import HubDataset
from rlbook.datasets.images import decode
from rlbook.datasets.pickles import load_pickle

TEXT = "language_instruction"


class OpenX(HubDataset):
    """Robot demonstrations.

    Entries: the parts of each laboratory's observation at the root (pictures uint8 ``[H, W, 3]``, ``state`` and so on),
    ``action`` (a vector or several parts), ``instruction`` int64: ``info["instructions"]`` tells the number of each sentence
    that the robot was given. An episode's last step holds only its last observation, as RLDS defines it: T + 1 steps make T
    transitions.

    Args:
        id: a folder of the repository, for example ``"berkeley_cable_routing"``.
        root: see :class:`~rlbook.datasets.base.PublishedDataset`.
        **buffer: as well.

    The steps are pickled in the archives; only plain data is unpickled (see :mod:`rlbook.datasets.pickles`).

    Source: https://huggingface.co/datasets/jxu124/OpenX-Embodiment; RLDS: https://github.com/google-research/rlds
    """

    source, repo, patterns = "open_x", "jxu124/OpenX-Embodiment", ("*.tar",)

    def read(self, paths: Sequence[Path]) -> Iterator[TensorDict]:
        for path in paths:
            try:
                with tarfile.open(path) as archive:
                    for member in archive:
                        if member.isfile() and member.name.endswith(".data.pickle"):
                            content = load_pickle(archive.extractfile(member), path / member.name)  # type: ignore[arg-type]
                            yield from self.episode(content, path / member.name)
            except (tarfile.TarError, EOFError, OSError) as error:
                raise bad_file(path, "a tar archive", f"{type(error).__name__}: {error}") from error

    def episode(self, content: Any, path: Path) -> Iterator[TensorDict]:
        """Turn the steps of one episode into a trajectory."""
        steps = content.get("steps") if isinstance(content, Mapping) else None
        if not steps or not all(name in steps[0] for name in ("observation", "action", "reward")):
            got = f"the entries {sorted(steps[0]) if steps else content if not isinstance(content, Mapping) else sorted(content)}"
            raise bad_file(path, "one of steps with observation, action and reward", got[:200])
        if len(steps) < 2:  # an observation without a step
            return
        taken, after = steps[:-1], steps[1:]
        terminated = np.array([bool(step.get("is_terminal", False)) for step in after])
        cut = np.zeros_like(terminated)
        cut[-1] = True
        sentences = [as_text(step.get(TEXT) or step["observation"].get("natural_language_instruction", "")) for step in taken]
        extra = {"instruction": torch.tensor([self.instruction(sentence) for sentence in sentences])}
        observation = stack([step["observation"] for step in steps])
        action = stack([step["action"] for step in taken])
        yield trajectory(observation, action, [step["reward"] for step in taken], terminated, cut, extra=extra)

    def instruction(self, sentence: str) -> int:
        """Return the number of a sentence, a new one if it is new."""
        return self.instructions.setdefault(sentence, len(self.instructions))

    def about(self, paths: Sequence[Path]) -> dict[str, Any]:
        self.instructions: dict[str, int] = {}
        return {**super().about(paths), "instructions": self.instructions}


def stack(parts: Sequence[Any]) -> Any:
    """Stack the same entry of many steps: numbers, pictures (``{"bytes": ...}``), or dictionaries of them; no text."""
    first = parts[0]
    if isinstance(first, Mapping) and "bytes" in first:
        return np.stack([decode(part["bytes"]) for part in parts])
    if isinstance(first, Mapping):
        named = {name: stack([part[name] for part in parts]) for name in first}
        return {name: value for name, value in named.items() if value is not None}
    array = np.stack([np.asarray(part) for part in parts])
    return array if array.dtype.kind in "biuf" else None


def as_text(value: Any) -> str:
    """Return a sentence that may be bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
