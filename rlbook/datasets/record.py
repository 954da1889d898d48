"""Make a dataset from any environment and policies: random, medium, expert, or mixed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from rlbook import keys
from rlbook.datasets.base import Dataset
from rlbook.datasets.download import exclusive, make_folder
from rlbook.datasets.folders import recorded_path, write_dataset
from rlbook.datasets.layout import truncate
from rlbook.datasets.minari import check_minari_id, to_minari
from rlbook.datasets.spaces import to_json
from rlbook.envs.base import Env
from rlbook.envs.loop import Loop
from rlbook.errors import ConfigError, explain
from rlbook.seeding import check_seed
from rlbook.specs import Bounded
from rlbook.specs.gym import from_gym, to_gym
from rlbook.typing import Key

CHUNK = 1000
"""Steps of every environment between two writes."""
ENDLESS = 100_000
"""Steps after which an episode counts as one that never ends."""


def record(
    env: Env,
    policy: Any,
    path: str | Path,
    *,
    num_steps: int | None = None,
    num_episodes: int | None = None,
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
    minari_id: str | None = None,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
    **buffer: Any,
) -> Dataset:
    """Run policies in an environment and keep what happens as a memory-mapped dataset.

    With several policies the dataset is *mixed*: their data one after another (``info["levels"]`` says which rows are whose).
    Everything the policies return is kept, such as ``action_log_prob``, if all of them return it; a random policy (None) has the
    log-probability of a uniform choice. Each of N environments contributes its first ``steps / N`` steps, or its first
    ``episodes / N`` episodes, whatever their length, so that short episodes are not over-represented; after the last step of
    each the data stop, which counts as truncated. The same seed gives the same data.

    Args:
        env: any environment, alone or a batch.
        policy: anything callable (see :func:`rlbook.envs.policy.as_policy`), None for uniform random actions; or a dictionary of
            levels, for example ``{"random": None, "medium": actor_a, "expert": actor_b}``.
        path: the folder to make, a :class:`~pathlib.Path` or a string with a slash; or a mere name, for a folder in the cache
            (``Dataset(path)`` opens both again).
        num_steps: how many steps in all; or
        num_episodes: how many episodes in all (they are kept in memory until the last one of a level ends).
        fractions: the share of each level, positive; equal by default.
        seed: seed of environment 0 and of the policies' random numbers. Every level gets seeds of its own.
        minari_id: write it in Minari's layout too, under this id.
        overwrite: replace a dataset at ``path``.
        about: goes to ``info``: ``license``, ``author``, ...
        **buffer: as for :class:`Dataset`: ``batch_size``, ``sampler``, ...

    Returns:
        The dataset, open.

    Raises:
        ConfigError: an argument is out of range, or there is something at ``path``.

    Example:
        >>> from tempfile import mkdtemp
        >>> from rlbook import CartPole
        >>> from rlbook.datasets import record
        >>> dataset = record(CartPole(num_envs=4), None, mkdtemp() + "/random", num_steps=1000, batch_size=32)
        >>> dataset.sample()["next", "observation"].shape
        torch.Size([32, 4])
    """
    levels = dict(policy) if isinstance(policy, Mapping) else {"policy": policy}
    if (num_steps is None) == (num_episodes is None):
        got = f"num_steps={num_steps} and num_episodes={num_episodes}"
        raise ConfigError(explain("The length of a dataset", "either num_steps or num_episodes", got, "Pass one of them"))
    total = check_total(num_steps if num_steps is not None else num_episodes, len(levels))
    shares = share_out(total, levels, fractions)
    check_seed(seed + len(levels) * env.num_envs)
    if minari_id is not None:
        check_minari_id(minari_id)
    folder = recorded_path(path)
    if folder.exists() and not (overwrite and (folder / "info.json").exists()):
        fix = "Choose another path, or pass overwrite=True to replace a dataset"
        raise ConfigError(explain("path", "new", f"{folder}, which exists", fix))
    make_folder(folder.parent)
    told = {"source": "recorded", "id": folder.name, "env": type(env).__name__, "seed": seed, "num_envs": env.num_envs}
    with exclusive(folder.with_name(f".{folder.name}.lock")), torch.random.fork_rng():
        recording = Recording(env, levels, shares, seed)
        pieces = recording.steps() if num_steps is not None else recording.episodes()
        told |= space_info(env) | {"levels": recording.level_info()}
        write_dataset(folder, pieces, sum(recording.rows.values()), {**told, **(about or {})})
    dataset = Dataset(folder, **buffer)
    if minari_id is not None:
        to_minari(dataset, minari_id, **{"algorithm_name": ", ".join(levels), **(about or {})})
    return dataset


class Recording:
    """The runs behind a dataset: for each level, what every environment did, one environment after another."""

    def __init__(self, env: Env, levels: Mapping[str, Any], shares: dict[str, int], seed: int):
        self.env, self.levels, self.shares = env, levels, shares
        self.seeds = {name: seed + i * env.num_envs for i, name in enumerate(levels)}
        self.rows: dict[str, int] = dict(shares)
        self.uniform = {name: policy is None for name, policy in levels.items()}
        self.log_prob = uniform_log_prob(env.action_spec)
        held = [self._entries(name) for name in levels]
        self.entries = [key for key in held[0] if all(key in other for other in held)]

    def _entries(self, name: str) -> list[Key]:
        """Take one step to see what a rollout of a level holds."""
        found: list[Any] = list(Loop(self.env, self.levels[name], 1, check=False).run().keys(True, True))
        return found + ([keys.LOG_PROB] if self.uniform[name] and self.log_prob is not None else [])

    def steps(self) -> Iterator[tuple[int, TensorDictBase]]:
        """Yield a fixed number of steps of every environment, and the rows where they go."""
        begin = 0
        for name, share in self.shares.items():
            quota = split(share, self.env.num_envs)
            chunks = math.ceil(quota[0] / CHUNK)
            rollouts = self._run(name, math.ceil(quota[0] / chunks))
            for taken in range(0, quota[0], math.ceil(quota[0] / chunks)):
                row = begin
                for stream, steps in zip(next(rollouts), quota, strict=True):
                    if taken < steps:
                        piece = stream[: steps - taken]
                        yield row + taken, truncate(piece) if taken + len(piece) == steps else piece
                    row += steps
            begin += share

    def episodes(self) -> Iterator[TensorDictBase]:
        """Run the first episodes of every environment to their ends; return them, and set ``rows``."""
        kept: list[TensorDictBase] = []
        for name, share in self.shares.items():
            quota = split(share, self.env.num_envs)
            found: list[list[TensorDictBase]] = [[] for _ in quota]
            left, since = list(quota), [0] * len(quota)
            for rollout in self._run(name, CHUNK // 10):
                for i, stream in enumerate(rollout):
                    ends = stream[keys.NEXT, keys.DONE].nonzero().flatten().tolist()
                    steps = ends[left[i] - 1] + 1 if len(ends) >= left[i] > 0 else len(stream) * (left[i] > 0)
                    found[i].append(stream[:steps].clone())
                    left[i] -= min(left[i], len(ends))
                    since[i] = 0 if ends else since[i] + len(stream)
                if not any(left):
                    break
                check_ends(self.env, max(steps for steps, open in zip(since, left, strict=True) if open))
            pieces = [piece for stream in found for piece in stream if len(piece)]
            self.rows[name] = sum(len(piece) for piece in pieces)
            kept += pieces
        return iter(kept)

    def _run(self, name: str, steps: int) -> Iterator[list[TensorDictBase]]:
        """Yield rollouts of a level from its own seed on: for every environment its ``steps``, ``[T]``, in reused memory."""
        self.env.seed(self.seeds[name])
        torch.manual_seed(self.seeds[name])
        loop = Loop(self.env, self.levels[name], steps)
        while True:
            data = loop.run().cpu()
            if self.uniform[name] and keys.LOG_PROB in self.entries:
                data[keys.LOG_PROB] = torch.full(data.batch_size, self.log_prob or 0.0)
            data = data.select(*self.entries)
            yield list(data.unbind(0)) if data.batch_dims == 2 else [data]

    def level_info(self) -> dict[str, dict[str, Any]]:
        """Say which rows ``[first, end)`` are whose."""
        info, begin = {}, 0
        for name, rows in self.rows.items():
            info[name] = {"rows": [begin, begin + rows], "seed": self.seeds[name]}
            begin += rows
        return info


def split(total: int, parts: int) -> list[int]:
    """Split a number into ``parts`` that differ by one at most, the larger first."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def share_out(total: int, levels: Mapping[str, Any], fractions: Mapping[str, float] | None) -> dict[str, int]:
    """Return how much of ``total`` each level contributes: rounded, the last one takes the rest."""
    fractions = fractions if fractions is not None else dict.fromkeys(levels, 1.0)
    if set(fractions) != set(levels) or not all(share > 0 and math.isfinite(share) for share in fractions.values()):
        want = f"a positive number for each of {sorted(levels)}"
        raise ConfigError(explain("fractions", want, repr(dict(fractions)), 'For example {"medium": 0.9, "expert": 0.1}'))
    whole, before, shares, done = sum(fractions.values()), 0.0, {}, 0
    for name in levels:
        before += fractions[name]
        shares[name] = round(total * before / whole) - done
        done += shares[name]
    if min(shares.values()) < 1:
        raise ConfigError(explain("Every level", "at least 1 of the dataset", repr(shares), "Ask for more, or leave it out"))
    return shares


def check_total(total: Any, levels: int) -> int:
    """Return the length of a dataset if it is one."""
    if isinstance(total, bool) or not isinstance(total, int) or not levels or total < levels:
        fix = "Pass for example num_steps=100_000 and one policy"
        raise ConfigError(explain("The length of a dataset", "a positive integer, 1 or more for each level", repr(total), fix))
    return total


def check_ends(env: Env, steps: int) -> None:
    """Raise when an episode does not seem to end."""
    if steps >= ENDLESS:
        fix = "Pass num_steps, or give the environment a time limit"
        raise ConfigError(explain(f"{type(env).__name__}", "an environment whose episodes end", f"{steps:,} steps of one", fix))


def uniform_log_prob(spec: Any) -> float | None:
    """Return the log-probability of a uniform random action (a density for continuous ones); None where it is not uniform."""
    if spec.cardinality() != math.inf:
        return -math.log(spec.cardinality())
    if isinstance(spec, Bounded) and bool((spec.bounded_below & spec.bounded_above).all()):
        return -float((spec.high - spec.low).double().log().broadcast_to(spec.event_shape).sum())
    return None


def space_info(env: Env) -> dict[str, Any]:
    """Describe the spaces for ``info``, as far as they tell the specs."""
    spec = env.observation_spec
    specs = {
        "observation_space": spec[keys.OBSERVATION] if list(spec) == [keys.OBSERVATION] else spec,
        "action_space": env.action_spec,
    }
    return {name: to_json(to_gym(spec)) for name, spec in specs.items() if from_gym(to_gym(spec)) == spec.to("cpu")}
