"""From the results to a page of tables and one picture per item."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.scores.item import Item
from benchmarks.scores.items import ALL
from benchmarks.scores.runner import CURVE_WINDOW, GREEDY_EPISODES, RESULTS, recorded
from rlbook.functional import interquartile_mean, stratified_bootstrap_interval

FOLDER = Path(__file__).parent
KNOWLEDGE_BASE = FOLDER.parents[1] / "knowledge_base"
PAGE_TABLE = re.compile(r"^# <!-- scores: ([\w ]+) -->\n(?:#\n)?(?:# \|.*\n)*", re.MULTILINE)
GRID = 100
INK, LINE, THIN, PAPER, RULE = "#2b2d42", "#3d6fb6", "#9fb8dc", "#fbfaf7", "#e4e2dc"
"""The colours of the native environments' pictures."""

HEAD = f"""# Reference scores

Written by `python -m benchmarks.scores report`; do not edit. A run is one seed in one process with one thread; each is a line in
`results/`, appended when it ended. `python -m benchmarks.scores run ITEM` repeats one, `queue ITEM...` works through several in
the background.

**Final return** is the mean of the last training episodes of a run, with exploration; **greedy** the mean of {GREEDY_EPISODES}
episodes without, after training. Over seeds: the interquartile mean with its 95% stratified bootstrap interval (Agarwal et al.
2021), which is too narrow for few seeds; of fewer than 4 seeds the interquartile mean is the mean. Frames/s are environment steps
per CPU second, of the runs that were compiled, or were not, as the item's are now, if it has any; the machine did other work as
well. Compilation counts, but lines that name no commit leave out what the compiler's own processes took of it. A curve is the
mean return of the last {CURVE_WINDOW} episodes: thin lines are seeds, the thick one is their interquartile mean, the band its
interval.

Published scores are quoted as they stand, with the place. They come from other versions of an environment (MuJoCo v5, which is
ours, changed rewards, observations and models since v4 and v2), average other episodes, and are of as many steps as each says.
"""


def write(folder: Path = FOLDER, items: Sequence[Item] = ALL, results: Path = RESULTS) -> None:
    """Write ``README.md`` and ``images/ITEM.png`` for every item that has results."""
    found = {item.name: list(recorded(item, results).values()) for item in items}
    parts = [HEAD, *overview(items, found), ""]
    for item in items:
        if found[item.name]:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            picture(item, found[item.name], folder / "images" / f"{item.name}.png")
            parts += section(item, found[item.name])
    (folder / "README.md").write_text("\n".join(parts).rstrip() + "\n")


def write_pages(pages: Path = KNOWLEDGE_BASE, items: Sequence[Item] = ALL, results: Path = RESULTS) -> list[Path]:
    """Bring the scores on the pages of the knowledge base up to date; return those that changed, which are to be published.

    A page says ``<!-- scores: NAME NAME -->``; the table that follows is ours, with those of the items that have results.
    """
    rows = {item.name: page_row(item, runs) for item in items if (runs := list(recorded(item, results).values()))}
    changed = []
    for page in sorted(pages.glob("*.py")):
        before = page.read_text()
        after = PAGE_TABLE.sub(lambda found: page_table(found[1], rows), before)
        if after != before:
            page.write_text(after)
            changed.append(page)
    return changed


# ---- tables ----------------------------------------------------------------------------------------------------------------
def overview(items: Sequence[Item], found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return a table with a line per item."""
    rows = [["item", "environment", "frames", "seeds", "final return", "greedy", "published", "frames/s"]]
    rows.append(["---", "---", "---:", "---:", "---:", "---:", "---", "---:"])
    for item in items:
        runs = found[item.name]
        ours = [summary(runs, "final_return"), summary(runs, "greedy_return"), speed(timed(item, runs))] if runs else ["", "", ""]
        published = "; ".join(f"{entry.score} ({entry.who})" for entry in item.published)
        name = f"[{item.name}](#{item.name})" if runs else item.name
        rows.append([name, item.env, f"{item.frames:,}", f"{len(runs)} of {item.seeds}", *ours[:2], published, ours[2]])
    return [f"| {' | '.join(row)} |" for row in rows]


def page_table(names: str, rows: Mapping[str, str]) -> str:
    """Return what a page says of its items, as comments."""
    head = ["| item | environment | frames | seeds | final return | greedy return |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    lines = [f"<!-- scores: {names} -->", "", *head, *(rows[name] for name in names.split() if name in rows)]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def page_row(item: Item, runs: list[dict[str, Any]]) -> str:
    """Return an item's line in the table of a page."""
    link = f"[{item.name}](../benchmarks/scores/README.md#{item.name})"
    ours = summary(runs, "final_return"), summary(runs, "greedy_return")
    return f"| {' | '.join([link, item.env, f'{item.frames:,}', str(len(runs)), *ours])} |"


def section(item: Item, runs: list[dict[str, Any]]) -> list[str]:
    """Return the lines about one item."""
    settings = ", ".join(f"{key}={value}" for key, value in item.settings.items()) or "the recipe's defaults"
    rows = [["", "score", "source"], ["---", "---:", "---"]]
    episodes, seeds = runs[0]["final_episodes"], "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    rows.append([f"rlbook, last {episodes} training episodes, {seeds}", summary(runs, "final_return"), "here"])
    rows.append([f"rlbook, greedy, {seeds}", summary(runs, "greedy_return"), "here"])
    rows += [[entry.who, entry.score, entry.source] for entry in item.published]
    newest = max(runs, key=lambda run: run["date"])
    versions = ", ".join(f"{name} {version}" for name, version in newest["versions"].items())
    minutes = statistics.median(run["cpu_seconds"] for run in timed(item, runs)) / 60
    where = f"{newest['machine']['cpu']}, Python {newest['machine']['python']}"
    return [
        f"## {item.name}",
        "",
        f"`{item.recipe}` on `{item.env}`, {item.frames:,} frames. {item.note}".rstrip(),
        "",
        f"![Learning curves of {item.recipe} on {item.env}](images/{item.name}.png)",
        "",
        *[f"| {' | '.join(row)} |" for row in rows],
        "",
        f"Settings: {settings}. A run takes {minutes:.1f} CPU minutes.",
        "",
        f"`python -m benchmarks.scores run {item.name}`, {newest['date']}; {where}, {versions}.",
        "",
    ]


def summary(runs: Sequence[dict[str, Any]], key: str) -> str:
    """Return the interquartile mean over runs, and its interval if there are two or more."""
    scores = torch.tensor([run[key] for run in runs if run[key] is not None], dtype=torch.float64)
    if not len(scores):
        return "no episode ended"
    middle = number(interquartile_mean(scores).item())
    if len(scores) < 2:
        return middle
    low, high = stratified_bootstrap_interval(scores, generator=torch.Generator().manual_seed(0))
    return f"{middle} [{number(low.item())}, {number(high.item())}]"


def timed(item: Item, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs that were compiled, or were not, as the item's are now; all of them, which are alike, if none was."""
    return [run for run in runs if run["config"].get("compile", False) == item.compile] or list(runs)


def speed(runs: Sequence[dict[str, Any]]) -> str:
    """Return the median of frames per CPU second."""
    return f"{statistics.median(run['frames'] / run['cpu_seconds'] for run in runs):,.0f}"


def number(value: float) -> str:
    """Return a return with four digits or so."""
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f}"


# ---- pictures --------------------------------------------------------------------------------------------------------------
def on_grid(runs: Sequence[dict[str, Any]], frames: int) -> tuple[Tensor, Tensor]:
    """Interpolate the curves of runs to common frames; return these ``[T]`` and the returns ``[R, T]``.

    The grid begins where every run has finished an episode.
    """
    import numpy as np

    curves = [np.asarray(run["curve"]) for run in runs if run["curve"]] or [np.array([[frames, math.nan]])]
    grid = np.linspace(max(curve[0, 0] for curve in curves), frames, GRID)
    return torch.from_numpy(grid), torch.from_numpy(np.stack([np.interp(grid, curve[:, 0], curve[:, 1]) for curve in curves]))


def picture(item: Item, runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the learning curves."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    grid, returns = on_grid(runs, item.frames)
    middle = interquartile_mean(returns.T)
    with mpl.rc_context({"font.size": 8, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}):
        figure = Figure(figsize=(4.4, 2.7), dpi=130, facecolor=PAPER, layout="constrained")
        axes = figure.add_subplot(facecolor=PAPER)
        for run in returns:
            axes.plot(grid, run, color=THIN, linewidth=0.7)
        if len(returns) > 1:
            low, high = band(returns)
            axes.fill_between(grid, low, high, color=LINE, alpha=0.18, linewidth=0)
        axes.plot(grid, middle, color=LINE, linewidth=1.8)
        axes.set_title(f"{item.recipe} on {item.env}", loc="left", fontsize=9, fontweight="bold")
        axes.set_title(f"{len(runs)} seed{'s' if len(runs) > 1 else ''}", loc="right", fontsize=8)
        axes.set(xlabel="frames", ylabel="return", xlim=(0, item.frames * 1.01))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(RULE)
        axes.tick_params(length=0)
        figure.savefig(path)


def short(frames: float) -> str:
    """Return ``200k`` for 200000."""
    return f"{frames / 1e6:g}M" if frames >= 1e6 else f"{frames / 1e3:g}k" if frames >= 1e3 else f"{frames:g}"


def band(returns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bootstrap interval at every point of the curves ``[R, T]``."""
    pairs = [
        stratified_bootstrap_interval(column, resamples=500, generator=torch.Generator().manual_seed(0)) for column in returns.T
    ]
    return torch.stack([low for low, _ in pairs]), torch.stack([high for _, high in pairs])
