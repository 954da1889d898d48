"""One run: a seed of an item, trained to its end in as many sittings as it takes, and its line in the results."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.report import commit, machine, versions
from benchmarks.scores.item import Item

RESULTS = Path(__file__).parent / "results"
SAVE_SECONDS = 60.0
SHARE = 0.02
"""A checkpoint is written at most so often that writing takes this share of the time: replay buffers are large."""
POINTS = 200
CURVE_WINDOW = 20
GREEDY_EPISODES = 100


def cache() -> Path:
    """Return the folder of the checkpoints."""
    return Path(os.environ.get("RLBOOK_SCORES_CACHE", "~/.cache/rlbook/scores")).expanduser()


@dataclass
class Progress:
    """What is known of an unfinished run, beside the agent."""

    curve: list[tuple[int, float]] = field(default_factory=list)
    """Frames and the mean return of the last 20 episodes, at most 200 points."""
    wall: float = 0.0
    """Seconds of training, over all sittings."""
    cpu: float = 0.0
    """CPU seconds, those of the compiler's processes too."""
    sittings: int = 0
    commit: str | None = None
    """Of the code of the last one."""


class Stopped(Exception):
    """The process was asked to end."""


# ---- results ---------------------------------------------------------------------------------------------------------------
def recorded(item: Item, folder: Path = RESULTS) -> dict[int, dict[str, Any]]:
    """Return the finished runs of an item by seed; those of other settings than its present ones do not count."""
    return {line["seed"]: line for line in lines(item, folder) if same_run(line, item)}


def lines(item: Item, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return all lines of an item's file."""
    path = folder / f"{item.name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def same_run(line: dict[str, Any], item: Item) -> bool:
    """Return whether a line is of the item as it is now: same settings, written or by default.

    A setting that was added to the recipe since does not count: it must have left alone what is trained without it. Nor does
    whether it was compiled.
    """
    from rlbook.recipes import RECIPES

    if line["algorithm"] != item.recipe or item.recipe not in RECIPES:
        return False
    config = json.loads(json.dumps(asdict(RECIPES[item.recipe][1](**item.config(line["seed"])))))
    return all(line["config"][key] == value for key, value in config.items() if key in line["config"] and key != "compile")


def append(line: dict[str, Any], item: Item, folder: Path = RESULTS) -> None:
    """Add a finished run to the item's file, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{item.name}.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


# ---- one run ---------------------------------------------------------------------------------------------------------------
def run(item: Item, seed: int, budget: float = math.inf, folder: Path = RESULTS, *, again: bool = False) -> bool:
    """Train a seed, from its checkpoint if there is one; return whether it is finished.

    Args:
        item: what to run.
        seed: which seed.
        budget: seconds after which the run is saved and left.
        folder: where the results go.
        again: train a seed that is recorded too; its newest line counts.

    Raises:
        BlockingIOError: another process runs this seed.
        Stopped: SIGTERM or Ctrl-C; the run was saved.
    """
    if not again and seed in recorded(item, folder):
        return True
    path = cache() / item.name / f"seed{seed}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")), stoppable() as stop:
        if not again and seed in recorded(item, folder):  # by another process, since
            return True
        agent, progress = begin(item, seed, path)
        agent.interrupts = stop  # then each round yields
        progress.sittings, progress.commit = progress.sittings + 1, commit()
        finished = train(agent, progress, item, path, budget, stop)
        if finished:
            append(line_of(item, seed, agent, progress), item, folder)
            path.unlink(missing_ok=True)
        elif stop:
            raise Stopped
    return finished


def begin(item: Item, seed: int, path: Path) -> tuple[Any, Progress]:
    """Make the agent, and put it where its checkpoint is; one of other settings is left aside."""
    from rlbook.errors import ConfigError, explain
    from rlbook.recipes import RECIPES
    from rlbook.trainers import load_checkpoint

    recipe, config = RECIPES[item.recipe]
    agent, progress = recipe(config(**item.config(seed))), Progress()
    if path.exists():
        try:
            saved = load_checkpoint(path)
            frames = saved["agent"]["config"]["total_frames"]
            if frames != item.frames:  # a run may be continued to another end: its schedules then went to the first one
                fix = "What it had learnt is not what this run would have"
                raise ConfigError(explain("A checkpoint's total_frames", f"the item's {item.frames}", f"{frames}", fix))
            agent.load_state_dict(saved["agent"])
            progress = Progress(**saved["progress"])
        except (ConfigError, KeyError, RuntimeError, ValueError) as error:
            print(f"{path} does not fit ({error}): begun anew", flush=True)
            agent = recipe(config(**item.config(seed)))
    return agent, progress


def train(agent: Any, progress: Progress, item: Item, path: Path, budget: float, stop: list[int]) -> bool:
    """Train until the end, the budget or a signal; save now and then, and where it does not finish. Return whether it did."""
    wall, cpu, last_saved, pause = time.monotonic(), cpu_seconds(), time.monotonic(), SAVE_SECONDS
    begun = wall
    spacing = item.frames / POINTS

    def save() -> None:
        nonlocal wall, cpu
        progress.wall, wall = progress.wall + time.monotonic() - wall, time.monotonic()
        progress.cpu, cpu = progress.cpu + cpu_seconds() - cpu, cpu_seconds()

    for metrics in agent.train():
        frames, returns = metrics["frames"], list(agent.episodes.returns)
        if returns and (not progress.curve or frames >= progress.curve[-1][0] + spacing):
            tail = returns[-CURVE_WINDOW:]
            progress.curve.append((int(frames), sum(tail) / len(tail)))
        now = time.monotonic()
        leave = bool(stop) or now - begun > budget
        if leave or now - last_saved > pause:
            save()
            write(agent, progress, path)
            last_saved = time.monotonic()
            pause = max(SAVE_SECONDS, (last_saved - now) / SHARE)
        if leave and frames < item.frames:
            return False
    save()
    return True


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of those that it has waited for: the compiler starts some."""
    return sum(os.times()[:4])


def write(agent: Any, progress: Progress, path: Path) -> None:
    """Save an unfinished run."""
    from rlbook.trainers import save_checkpoint

    save_checkpoint(path, {"agent": agent.state_dict(), "progress": asdict(progress)})


def line_of(item: Item, seed: int, agent: Any, progress: Progress) -> dict[str, Any]:
    """Return all there is to say of a finished run."""
    returns = list(agent.episodes.returns)[-item.window :]
    greedy = agent.evaluate(GREEDY_EPISODES)
    return {
        "env": item.env,
        "algorithm": item.recipe,
        "config": asdict(agent.config),
        "frames": int(agent.frames),
        "seed": seed,
        "final_return": sum(returns) / len(returns) if returns else None,
        "final_episodes": len(returns),
        "greedy_return": greedy.mean().item(),
        "greedy_std": greedy.std().item(),
        "greedy_episodes": len(greedy),
        "curve": [[frames, float(f"{value:.6g}")] for frames, value in progress.curve],
        "wall_seconds": round(progress.wall, 1),
        "cpu_seconds": round(progress.cpu, 1),
        "sittings": progress.sittings,
        "command": f"python -m benchmarks.scores run {item.name} --seeds {seed}",
        "commit": progress.commit,
        "machine": machine(),
        "versions": versions(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; BlockingIOError where another process does."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """Yield a list that is empty until SIGTERM or Ctrl-C comes, so that a run can be saved between two rounds."""
    came: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, frame: came.append(number)) for number in numbers]
    try:
        yield came
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
