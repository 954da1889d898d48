"""What a reference score is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """A score that somebody else has published, as it stands there."""

    who: str
    """Library or paper, and what differs: version of the environment, number of steps."""
    score: str
    """For example ``"1442.64 ± 46.03"``."""
    source: str
    """Repository, file and commit, or paper and table."""


@dataclass(frozen=True)
class Item:
    """A recipe on an environment, with several seeds."""

    name: str
    recipe: str
    """Name in :data:`rlbook.recipes.RECIPES`."""
    env: str
    frames: int
    seeds: int = 5
    _: KW_ONLY
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the defaults of the recipe's config."""
    window: int = 100
    """The final return is the mean of the last so many training episodes (at most 100)."""
    compile: bool = True
    """Compile: how fast a run is, not what it is of."""
    published: tuple[Published, ...] = ()
    note: str = ""

    def config(self, seed: int) -> dict[str, Any]:
        """Return the arguments of the recipe's config."""
        compiled = {"compile": True} if self.compile else {}
        return {"env": self.env, "seed": seed, "total_frames": self.frames, **compiled, **self.settings}
