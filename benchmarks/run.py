"""Run benchmark items: ``python -m benchmarks.run gae ppo_minibatch``, all of them by default."""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from benchmarks.harness import Settings, measure
from benchmarks.report import RESULTS, save, section, to_json

ITEMS = sorted(path.stem for path in (Path(__file__).parent / "items").glob("*.py") if path.stem != "__init__")
QUICK = Settings(repeats=3, slice_seconds=0.05)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("items", nargs="*", metavar="item", help=f"{', '.join(ITEMS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="few and short repeats; prints, but publishes nothing")
    parser.add_argument(
        "--repeats", type=int, default=None, help=f"repeats of every contender ({Settings.repeats}, or a case's own)"
    )
    parser.add_argument("--output", type=Path, default=None, help="folder of the JSON files and the page (benchmarks/results)")
    options = parser.parse_args(arguments)
    unknown = [item for item in options.items if item not in ITEMS]
    if unknown or (options.repeats is not None and options.repeats < 1):
        parser.error(
            f"no such item: {', '.join(unknown)}; there are {', '.join(ITEMS)}" if unknown else "--repeats must be positive"
        )
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run one item in this process, several in one process each, so that none inherits what another compiled."""
    options = parse(arguments)
    if len(options.items) == 1:
        return run(options.items[0], options)
    flags = [flag for flag in (sys.argv[1:] if arguments is None else arguments) if flag not in options.items]
    failed = []
    for item in options.items or ITEMS:
        if subprocess.run([sys.executable, "-m", "benchmarks.run", item, *flags], check=False).returncode:
            failed.append(item)
    if failed:
        sys.exit(f"these items failed: {', '.join(failed)}")


def run(item: str, options: argparse.Namespace) -> None:
    """Measure one item, print its tables, and publish them."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # peers warn a great deal
    settings = QUICK if options.quick else Settings()
    if options.repeats is not None:
        settings = Settings(options.repeats, settings.slice_seconds)
    module = import_module(f"benchmarks.items.{item}")
    outcomes = []
    for case in module.cases("quick" if options.quick else "full"):
        torch.compiler.reset()  # shapes seen in one case shall not make the next one's code "dynamic"
        outcomes.append(measure(case if options.repeats is None else replace(case, repeats=options.repeats), settings))
    command = " ".join(["python -m benchmarks.run", item, *(["--quick"] if options.quick else [])])
    if options.repeats is not None:
        command += f" --repeats {options.repeats}"
    result = to_json(item, (module.__doc__ or "").strip(), outcomes, settings, command)
    print("\n".join(section(result)), flush=True)
    folder = options.output or (None if options.quick else RESULTS)
    if folder is not None:
        save(result, folder)


if __name__ == "__main__":
    main()
