"""What all recipes share: a config, checkpoints and the score. The algorithms are in the other files."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from rlbook.collectors import Collector
from rlbook.envs import Env
from rlbook.envs.make import make_env
from rlbook.errors import ConfigError, SpecError, check_count, explain
from rlbook.seeding import seed_everything
from rlbook.specs import Bounded, Categorical, OneHot, Unbounded
from rlbook.trainers.checkpoint import load_checkpoint, parts_of, random_state, save_checkpoint, set_random_state
from rlbook.trainers.evaluate import EpisodeScore, evaluate
from rlbook.transforms import Compose, RewardNorm, RewardSum, TransformedEnv, VecNorm

MAY_BE_ZERO = ("learning_starts", "burn_in", "drop", "eps_frames", "beta_frames")
RANGES = {"anneal": (0, 1), "beta1": (0, 0.999), "entropy_share": (0, 1)}
"""The least and the greatest value of numbers that nothing else checks; learning rates, all from 0 on, aside."""
NO_QUANTITIES = (torch.uint8, torch.bool)
MAY_CHANGE = ("total_frames", "stop_at", "device", "compile")
"""Settings that a continued run may change. What is annealed to zero at ``total_frames`` then falls to zero at the new one."""


class Recipe(ABC):
    """An algorithm that can be saved between two rounds of ``train()`` and go on later, in another process.

    A subclass calls ``super().__init__(config)`` first, for it seeds everything, then makes its parts *as attributes*: the
    collector, the loss, optimizers, a replay buffer. All attributes with a ``state_dict`` are saved (those in a list too), and
    all plain numbers. ``train()`` keeps nothing from a round to the next but these, and takes schedules from ``self.frames``.

    On native environments a continued run equals the uninterrupted one bit for bit (with ``compile=True``, to rounding). The
    state of a Gymnasium environment cannot be saved: there the episodes under way are dropped, and new ones begin.

    Args:
        config: the settings, a dataclass with at least ``seed``, ``total_frames`` and ``stop_at``.

    Attributes:
        collector: where the data come from.
        episodes: takes each rollout, returns the mean return of the last 100 training episodes.
        interrupts: signals that have come. While there are any, ``train()`` yields after every round, so that it can be left.
    """

    actions: ClassVar[Literal["any", "discrete", "continuous"]] = "any"
    """What actions it can choose."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Settings that its config inherits and that have no effect on it."""
    env: Any
    actor: Any
    qvalue: Any
    collector: Collector

    def __init__(self, config: Any):
        check_settings(config, self.unused)
        seed_everything(config.seed)
        self.config = config
        self.episodes = EpisodeScore()
        self.interrupts: list[int] = []

    def make_env(self) -> Env:
        """Return the environments to collect from, seeded.

        Raises:
            SpecError: their actions are none that the recipe can choose.
        """
        config, wanted = self.config, self.actions
        env = make_env(config.env, config.num_envs, seed=config.seed, device=config.device)
        spec = env.action_spec
        continuous = isinstance(spec, Bounded | Unbounded) and spec.dtype.is_floating_point
        fits = {"any": True, "discrete": isinstance(spec, Categorical | OneHot), "continuous": continuous}
        if not fits[wanted]:
            from rlbook.recipes import RECIPES

            env.close()
            able = [name for name, (recipe, _) in RECIPES.items() if fits[recipe.actions]]
            what, fix = f"The actions of {config.env!r}", f"Pick another environment, or one of {', '.join(able)}"
            raise SpecError(explain(what, f"{wanted} for {type(self).__name__}", repr(spec), fix))
        return env

    @abstractmethod
    def train(self) -> Iterator[dict[str, float]]:
        """Collect and update until ``total_frames``; yield the metrics of each round: ``frames``, ``episode_reward``, losses."""

    @property
    def frames(self) -> int:
        """Environment steps so far."""
        return self.collector.frames

    @property
    def due(self) -> bool:
        """Whether it is time for metrics: every ``log_every`` frames, at the end, and in every round after an interrupt."""
        config = self.config
        regular = self.frames % config.log_every < config.frames_per_batch
        return regular or self.frames >= config.total_frames or bool(self.interrupts)

    @property
    def solved(self) -> bool:
        """Whether the last 100 episodes have reached ``stop_at``."""
        goal = self.config.stop_at
        return goal is not None and self.episodes.full and self.episodes.mean >= goal

    @property
    def greedy(self) -> Any:
        """The policy without exploration: that of ``actor``, or of ``qvalue`` where values act."""
        return (self.actor if hasattr(self, "actor") else self.qvalue).greedy

    def evaluate(self, episodes: int = 100, *, seed: int = 10_000) -> Tensor:
        """Return the returns of greedy episodes, float32 ``[episodes]``, on a new environment with the rewards as they are.

        Observations are normalised as in training, with the statistics of now.
        """
        config, norms = self.config, []
        if isinstance(self.env, TransformedEnv):
            norms = [part.frozen_view() for part in self.env.transform.parts() if isinstance(part, VecNorm)]
        env = make_env(config.env, min(10, episodes), seed=seed, device=getattr(config, "device", None))
        with TransformedEnv(env, Compose(*norms)) as env:
            return evaluate(env, self.greedy, episodes)[:episodes]

    # ---- checkpoints -------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on; tensors may be views of what training changes."""
        return {
            "recipe": type(self).__name__,
            "config": asdict(self.config),
            "parts": {name: part.state_dict() for name, part in parts_of(self).items()},
            "numbers": {name: value for name, value in vars(self).items() if isinstance(value, int | float)},
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned.

        Raises:
            ConfigError: it is no recipe's, of another recipe, or of other settings than this one (but for :data:`MAY_CHANGE`).
        """
        self._check_same(state)
        for name, part in parts_of(self).items():
            part.load_state_dict(state["parts"][name])
        if "env" not in state["parts"]["collector"]:
            self.episodes.finished.drop()
        vars(self).update(state["numbers"])
        set_random_state(state["random"])

    def save(self, path: str | Path) -> None:
        """Write everything to a file, which appears when it is whole. Call it between two rounds of ``train()``."""
        save_checkpoint(path, self.state_dict())

    def load(self, path: str | Path) -> Self:
        """Take back what :meth:`save` wrote; ``train()`` then goes on from there. Return the recipe itself.

        Raises:
            ConfigError: there is no such file, or see :meth:`load_state_dict`.
        """
        self.load_state_dict(load_checkpoint(path))
        return self

    def _check_same(self, state: Mapping[str, Any]) -> None:
        name, want = type(self).__name__, asdict(self.config)
        if not isinstance(state, Mapping) or "recipe" not in state:
            raise ConfigError(
                explain("A checkpoint to load", f"one of {name}", "something else", "Write it with agent.save(path)")
            )
        if state["recipe"] != name:
            fix = f"Make a {state['recipe']} and load it there"
            raise ConfigError(explain("A checkpoint to load", f"one of {name}", f"one of {state['recipe']}", fix))
        saved = {key: tuple(value) if isinstance(value, list) else value for key, value in state["config"].items()}
        other = {key: value for key, value in saved.items() if key not in MAY_CHANGE and value != want.get(key)}
        if other:
            mine = {key: want.get(key) for key in other}
            fix = "Continue with the settings that the run began with"
            raise ConfigError(explain("The settings of a continued run", f"{other}", f"{mine}", fix))
        done, size = state["parts"]["collector"]["frames"], self.collector.frames_per_batch
        if done - size >= self.config.total_frames:  # the last batch may end beyond it
            got, fix = f"total_frames={self.config.total_frames}", "Pass a larger total_frames"
            raise ConfigError(explain("A continued run", f"longer than the {done} frames that it has", got, fix))
        if set(state["parts"]) != set(parts_of(self)):
            got, fix = f"{sorted(state['parts'])}", "Load it with the version of rlbook that wrote it"
            raise ConfigError(explain("A checkpoint's parts", f"{sorted(parts_of(self))}", got, fix))


def normalized(env: Env, gamma: float) -> TransformedEnv:
    """Return the environment with observations and rewards of unit variance; ``episode_reward`` keeps the returns as they are.

    Observations that are quantities are normalised: no choices, masks or images.
    """
    leaves = env.observation_spec.leaves()
    quantities = [
        key for key, spec in leaves.items() if isinstance(spec, Bounded | Unbounded) and spec.dtype not in NO_QUANTITIES
    ]
    norms = [VecNorm(quantities)] if quantities else []
    return TransformedEnv(env, Compose(RewardSum(), *norms, RewardNorm(gamma)))


def numbers(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the metrics that are single numbers, as such; what stands for each row, as ``td_error`` does, is left out."""
    return {name: value.item() for name, value in metrics.items() if value.ndim == 0}


def check_settings(config: Any, unused: Collection[str] = ()) -> None:
    """Raise ConfigError for settings that no run can have, whatever the recipe, and for changes to those that are ``unused``."""
    hints = get_type_hints(type(config))
    for field in fields(config):
        name, value, default = field.name, getattr(config, field.name), field.default
        if name in unused and value != default:
            raise ConfigError(explain(name, f"left at {default}", repr(value), f"It has no effect in {type(config).__name__}"))
        if value is not None or type(None) not in get_args(hints[name]):
            check_setting(name, value, default, hints[name])
    device = getattr(config, "device", "cpu")
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ConfigError(explain("device", "a device of torch", repr(device), "Pass 'cpu' or 'cuda'")) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            explain("device", "a device of this machine", repr(device), "It has no GPU that torch can use: pass 'cpu'")
        )


def check_setting(name: str, value: Any, default: Any, hint: Any) -> None:
    """Raise ConfigError unless a setting is of the kind of its default, and in its range."""
    example = f"Pass for example {name}={default!r}"
    if get_origin(hint) is Literal:
        if value not in (able := get_args(hint)):
            raise ConfigError(explain(name, f"one of {', '.join(able)}", repr(value), example))
    elif isinstance(default, float):
        rate = "lr" in name.split("_")
        low, high = (0, sys.float_info.max) if rate else RANGES.get(name, (-math.inf, math.inf))
        if not isinstance(value, int | float) or not low <= value <= high:
            expected = "a number from 0 on" if rate else f"in [{low}, {high}]" if name in RANGES else "a number"
            raise ConfigError(explain(name, expected, repr(value), example))
    elif isinstance(default, tuple):
        if not isinstance(value, tuple | list):
            raise ConfigError(explain(name, "sizes of layers", repr(value), example))
        for place, size in enumerate(value):
            check_count(f"{name}[{place}]", size, example=default[0])
    elif isinstance(default, int) and not isinstance(default, bool) and name != "seed":
        check_count(name, value, 0 if name in MAY_BE_ZERO else 1, example=max(1, default))
