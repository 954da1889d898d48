"""From outcomes to JSON, and from the JSON files to one page of tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.harness import Outcome, Settings

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "tensordict", "gymnasium", "numpy", "numba", "mujoco", "torchrl", "stable-baselines3", "cpprb", "tianshou")


def machine() -> dict[str, Any]:
    """Describe the machine without naming it."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu
        )
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}


def versions() -> dict[str, str]:
    """Return the versions that were compared."""
    from rlbook import __version__

    found = {"rlbook": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the commit of the checkout; None outside one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def to_json(item: str, about: str, outcomes: Iterable[Outcome], settings: Settings, command: str) -> dict[str, Any]:
    """Return everything worth keeping about one item."""
    return {
        "item": item,
        "about": about,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "settings": {"repeats": settings.repeats, "slice_seconds": settings.slice_seconds},
        "cases": [_case(outcome) for outcome in outcomes],
    }


def _case(outcome: Outcome) -> dict[str, Any]:
    case = outcome.case
    contenders = {
        name: {"seconds_per_unit": statistics.median(samples), "samples": samples, "facts": outcome.facts[name]}
        for name, samples in outcome.seconds.items()
    }
    own = [name for name in contenders if name.startswith("rlbook")]
    ratios = {name: {peer: spread(outcome.ratios(name, peer)) for peer in contenders if peer != name} for name in own}
    targets = []
    for target in case.targets:
        value = target.value(outcome)
        targets.append({"text": target.text, "value": value, "passed": target.passed(value)})
    return {
        "name": case.name,
        "unit": case.unit,
        "note": case.note,
        "contenders": contenders,
        "skipped": outcome.skipped,
        "ratios": ratios,
        "columns": [name for name in own if name == own[0] or any(target.compares == name for target in case.targets)],
        "targets": targets,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def save(result: dict[str, Any], folder: Path) -> None:
    """Write the item's JSON, and the page anew from all that the folder holds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result['item']}.json").write_text(json.dumps(result, indent=1) + "\n")
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    (folder / "README.md").write_text(page(results))


HEAD = """# Benchmarks

Written by `python -m benchmarks.run`; do not edit. How it is measured: `benchmarks/harness.py`.

A ratio says how many times as long a contender takes as the one that heads the column: median and range of the repeats.
"""


def page(results: list[dict[str, Any]]) -> str:
    """Return the Markdown page of several items."""
    verdicts = [target["passed"] for result in results for case in result["cases"] for target in case["targets"]]
    met, measured = verdicts.count(True), len(verdicts) - verdicts.count(None)
    parts = [HEAD, f"Targets met: {met} of {measured} measured, {len(verdicts)} in all.", ""]
    return "\n".join(parts + [line for result in results for line in section(result)]).rstrip() + "\n"


def section(result: dict[str, Any]) -> list[str]:
    """Return the lines about one item."""
    where = result["machine"]
    lines = [f"## {result['item']}", "", result["about"], ""]
    for case in result["cases"]:
        lines += [f"### {case['name']}", "", *table(case), ""]
        for target in case["targets"]:
            lines.append(f"- {VERDICT[target['passed']]} {target['text']}: {_number(target['value'])}")
        lines += [f"- Skipped: {name} ({why})" for name, why in case["skipped"].items()]
        lines += ([""] if lines[-1] else []) + ([case["note"], ""] if case["note"] else [])
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    computer = f"{where['cpu']}, {where['cores']} cores, Python {where['python']}"
    return [*lines, f"`{result['command']}` on {result['date']}; {computer}, {packages}.", ""]


VERDICT = {True: "**met**", False: "**missed**", None: "not measured"}


def table(case: dict[str, Any]) -> list[str]:
    """Return the Markdown table of one case."""
    own = case["columns"]
    facts = list(dict.fromkeys(fact for line in case["contenders"].values() for fact in line["facts"]))
    head = ["", f"{case['unit']} per CPU second", "CPU time per unit", *(f"vs {name}" for name in own), *facts]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name, line in case["contenders"].items():
        seconds = line["seconds_per_unit"]
        ratios = [_ratio(case["ratios"][base].get(name)) for base in own]
        numbers = [_number(statistics.median(line["facts"][fact])) if fact in line["facts"] else "" for fact in facts]
        rows.append([name, _number(1 / seconds) if seconds > 0 else "", duration(seconds), *ratios, *numbers])
    return [f"| {' | '.join(row)} |" for row in rows]


def duration(seconds: float) -> str:
    """Return a time in a unit that fits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= scale:
            return f"{_number(seconds / scale)} {unit}"
    return f"{_number(seconds * 1e9)} ns"


def _ratio(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{_number(value['median'])} ({_number(value['low'])} to {_number(value['high'])})"


def _number(value: float | None) -> str:
    """Return three significant digits, with thousands separated."""
    if value is None:
        return "-"
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"
