"""The terminal's door: ``python -m rlbook train ppo CartPole-v1 --seed 1``."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rlbook.errors import RLBookError


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; return the exit status."""
    import torch

    from rlbook.recipes import RECIPES

    parser = argparse.ArgumentParser(prog="python -m rlbook", description="Train an agent and print its score.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a recipe on an environment")
    recipes = train.add_subparsers(dest="recipe", required=True)
    for name, (agent, config) in RECIPES.items():
        recipe = recipes.add_parser(name, help=(agent.__doc__ or "").splitlines()[0])
        recipe.add_argument("env", nargs="?", default=config.env, help="a Gymnasium id or the name of a native environment")
        recipe.add_argument("--threads", type=_positive, default=1, help="threads of torch; small networks are fastest with 1")
        recipe.add_argument("--save", metavar="FILE", help="write a checkpoint there every minute, when stopped, and at the end")
        recipe.add_argument("--resume", action="store_true", help="go on from the checkpoint of --save, if there is one")
        _add_fields(recipe, config, agent.unused)
    arguments = vars(parser.parse_args(argv))
    torch.set_num_threads(arguments.pop("threads"))
    agent_class, config_class = RECIPES[arguments.pop("recipe")]
    arguments.pop("command")
    save, resume = arguments.pop("save"), arguments.pop("resume")
    if resume and not save:
        parser.error("--resume goes on from the file of --save: give both")
    if save and (problem := _unwritable(save)):
        parser.error(f"--save takes a file that can be written: {problem}")
    try:
        config = config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()})
        agent = agent_class(config)
        begun = _begin(agent, save) if resume else 0
        start = time.perf_counter()
        last = _progress(_saving(agent, save) if save else agent.train(), config.total_frames)
    except RLBookError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("\nStopped.", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    seconds = time.perf_counter() - start
    if not last:
        print(f"{config.env}: nothing left to do after {begun} frames. Train longer with --total-frames.")
        return 0
    frames = agent.frames - begun
    print(f"{config.env}: {frames} frames in {seconds:.1f} s ({frames / seconds:,.0f} frames/s), seed {config.seed}")
    print(f"score: {_score(last, ' over the last 100 training episodes')}")
    return 0


SAVE_SECONDS = 60.0


def _begin(agent: Any, path: str) -> int:
    """Go on from a checkpoint if there is one; return how many frames it has."""
    if not os.path.exists(path):
        print(f"{path} is not there yet: a new run.", file=sys.stderr)
        return 0
    return agent.load(path).frames


def _unwritable(path: str) -> str:
    """Say why no file can be written there, before hours of training; nothing if it can."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        return f"{path} is a folder"
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        return str(error)
    return "" if os.access(folder, os.W_OK) else f"{folder} is not writable"


def _saving(agent: Any, path: str) -> Iterator[dict[str, float]]:
    """Train, and write a checkpoint every minute, after the round in which Ctrl-C or SIGTERM came, and at the end."""
    saved = time.monotonic()
    with _patient(agent.interrupts):
        for metrics in agent.train():
            if agent.interrupts or time.monotonic() - saved > SAVE_SECONDS:
                agent.save(path)
                saved = time.monotonic()
            if agent.interrupts:
                raise KeyboardInterrupt(*agent.interrupts[:1])
            yield metrics
        agent.save(path)


@contextmanager
def _patient(came: list[int]) -> Iterator[None]:
    """Note the first Ctrl-C or SIGTERM, so that the round can end; the second stops at once."""

    def note(number: int, frame: Any) -> None:
        came.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()


def _add_fields(parser: argparse.ArgumentParser, config: Any, unused: Collection[str]) -> None:
    """Offer every field of a recipe's config as an option, but for those without effect."""
    from rlbook.recipes.settings import meanings_of

    hints, meanings = get_type_hints(config), meanings_of(config)
    for field in dataclasses.fields(config):
        if field.name == "env" or field.name in unused:
            continue
        flag, default, hint = f"--{field.name.replace('_', '-')}", field.default, hints[field.name]
        meaning = meanings.get(field.name, "").replace("%", "%%").replace("``", "")
        options: dict[str, Any] = {"default": default, "help": f"{meaning} (default {default})"}
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=meaning)
        elif isinstance(default, tuple):
            kind = type(default[0])
            parser.add_argument(flag, type=KINDS.get(kind, kind), nargs="+", **options)
        elif get_origin(hint) is Literal:
            parser.add_argument(flag, choices=get_args(hint), **options)
        elif type(None) in get_args(hint):
            parser.add_argument(flag, type=_or_none(get_args(hint)[0]), **options)
        else:
            parser.add_argument(flag, type=KINDS.get(type(default), type(default)), **options)


def _whole(text: str) -> int:
    """Read a whole number, also as ``1e5``."""
    number = float(text)
    if not number.is_integer():
        raise ValueError
    return int(text) if text.lstrip("+-").isdecimal() else int(number)


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise ValueError
    return number


_whole.__name__, _positive.__name__ = "whole number", "positive whole number"  # for argparse's messages
KINDS: dict[type, Callable[[str], Any]] = {int: _whole}
"""What reads a type of numbers, where it is not the type itself."""


def _or_none(kind: type) -> Callable[[str], Any]:
    """Return what reads a number, or ``none``."""

    def read(text: str) -> Any:
        return None if text.lower() == "none" else KINDS.get(kind, kind)(text)

    read.__name__ = f"{kind.__name__} or none"  # for argparse's message
    return read


def _score(metrics: dict[str, float], of: str = "") -> str:
    score = metrics["episode_reward"]
    return "no episode has ended" if math.isnan(score) else f"mean return {score:.1f}{of}"


def _progress(metrics: Iterator[dict[str, float]], total: int) -> dict[str, float]:
    """Show a bar (a line every ten percent where there is no terminal) and return the last metrics."""
    last: dict[str, float] = {}
    tty, width, shown = sys.stderr.isatty(), 30, -1
    for last in metrics:
        done = min(1.0, last["frames"] / total)
        if not tty and int(done * 10) == shown:
            continue
        shown = int(done * 10)
        bar = "#" * round(done * width)
        line = f"[{bar:<{width}}] {last['frames']:>9,.0f} frames   {_score(last):<20}"
        print(f"\r{line}" if tty else line, end="" if tty else "\n", file=sys.stderr, flush=True)
    if tty:
        print(file=sys.stderr)
    return last


if __name__ == "__main__":
    sys.exit(main())
