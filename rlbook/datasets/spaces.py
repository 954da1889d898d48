"""Spaces as JSON, in the form Minari writes them, so that a dataset on disk knows its specs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.errors import SpecError, explain
from rlbook.replay import Storage
from rlbook.specs import Binary, Categorical, Composite, Spec, Unbounded
from rlbook.specs.gym import from_gym

if TYPE_CHECKING:
    import gymnasium


def to_json(space: gymnasium.Space) -> dict[str, Any]:
    """Describe a Gymnasium space; ``rlbook.specs.gym.to_gym`` makes one from a spec.

    Raises:
        SpecError: it is of another kind than those rlbook has specs for.
    """
    from gymnasium import spaces

    match space:
        case spaces.Box():
            bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
            return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), **bounds}
        case spaces.Discrete():
            return {"type": "Discrete", "dtype": str(space.dtype), "start": int(space.start), "n": int(space.n)}
        case spaces.MultiDiscrete():
            counts = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
            return {"type": "MultiDiscrete", "dtype": str(space.dtype), **counts}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "n": list(space.shape)}
        case spaces.Dict():
            return {"type": "Dict", "subspaces": {name: to_json(part) for name, part in space.spaces.items()}}
        case spaces.Tuple():
            return {"type": "Tuple", "subspaces": [to_json(part) for part in space.spaces]}
    raise SpecError(explain("The space", "a Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple", repr(space), "Wrap it"))


def from_json(data: Mapping[str, Any]) -> gymnasium.Space:
    """Return the Gymnasium space that :func:`to_json`, or Minari, described. Texts have no tensor form and are left out.

    Raises:
        SpecError: the description is not one.
    """
    from gymnasium import spaces

    kind = data.get("type")
    match kind:
        case "Box":
            dtype = np.dtype(data["dtype"])
            low, high = (np.array(data[bound], dtype) for bound in ("low", "high"))
            return spaces.Box(low, high, tuple(data["shape"]), dtype.type)
        case "Discrete":
            return spaces.Discrete(data["n"], start=data.get("start", 0))
        case "MultiDiscrete":
            return spaces.MultiDiscrete(np.array(data["nvec"]), data["dtype"], start=np.array(data["start"]))
        case "MultiBinary":
            return spaces.MultiBinary(data["n"])
        case "Dict":
            parts = {name: part for name, part in data["subspaces"].items() if part.get("type") != "Text"}
            return spaces.Dict({name: from_json(part) for name, part in parts.items()})
        case "Tuple":
            return spaces.Tuple([from_json(part) for part in data["subspaces"]])
    want = "of type Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
    raise SpecError(explain("The description of a space", want, repr(kind), "Convert it in the source"))


def observation_spec(info: Mapping[str, Any], storage: Storage) -> Composite:
    """Return the spec of the observation entries: from ``info``, else anything of the shapes and types that are stored."""
    if "observation_space" in info:
        spec: Any = from_gym(from_json(info["observation_space"]))
        return spec if isinstance(spec, Composite) else Composite({keys.OBSERVATION: spec})
    stored = set(storage.keys)
    both = [key for key in storage.keys if (keys.NEXT, *keys.as_tuple(key)) in stored and key not in keys.FLAGS]
    row = storage.read(torch.arange(1))
    return composite({key: any_of(row[key]) for key in both})


def action_spec(info: Mapping[str, Any], storage: Storage) -> Spec:
    """Return the spec of the actions: from ``info``, else choices up to the largest that is stored, or any numbers."""
    if "action_space" in info:
        return from_gym(from_json(info["action_space"]))
    actions = [key for key in storage.keys if keys.as_tuple(key)[0] == keys.ACTION]
    every = torch.arange(info["rows"])
    shown: dict[Any, Any] = {keys.as_tuple(key): shown_by(storage.entry(key, every)) for key in actions}
    return composite(shown)[keys.ACTION] if shown else Composite({})


def composite(specs: Mapping[Any, Spec]) -> Composite:
    """Return nested specs from flat ones."""

    def wrap(entry: Any) -> Any:
        return Composite({name: wrap(part) for name, part in entry.items()}) if isinstance(entry, dict) else entry

    return wrap(keys.nest(specs))


def any_of(column: Tensor) -> Spec:
    """Return the spec of anything of a column's shape and dtype."""
    if column.dtype is torch.bool:
        return Binary(column.shape[1:])
    return Unbounded(column.shape[1:], column.dtype)


def shown_by(column: Any) -> Spec:
    """Return the spec that a column of actions shows: choices up to the largest, or any numbers."""
    if column.dtype is torch.bool or column.dtype.is_floating_point:
        return any_of(column)
    return Categorical(int(column.max()) + 1, column.shape[1:], column.dtype)
