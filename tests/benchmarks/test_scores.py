"""Reference scores: a run is recorded once, in as many sittings as it takes, and reported as it was recorded."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.report import commit
from benchmarks.scores import __main__ as cli
from benchmarks.scores import report, runner
from benchmarks.scores.item import Item, Published
from benchmarks.scores.items import ALL, ITEMS
from rlbook.recipes import RECIPES

TINY = Item(
    "tiny",
    "ppo",
    "CartPole",
    2048,
    seeds=2,
    settings={"epochs": 1, "num_cells": (8,)},
    window=10,
    compile=False,
    published=(Published("Somebody, v0", "1.0 ± 0.5", "a page"),),
)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLBOOK_SCORES_CACHE", str(tmp_path / "cache"))


def line(seed: int = 0, **changes) -> dict:
    config = asdict(RECIPES["ppo"][1](**TINY.config(seed)))
    curve = [[200 * t, 10.0 * t + seed] for t in range(1, 11)]
    facts = {"env": "CartPole", "algorithm": "ppo", "config": json.loads(json.dumps(config)), "frames": 2048, "seed": seed}
    scores = {"final_return": 20.0 + seed, "final_episodes": 10, "greedy_return": 30.0, "curve": curve, "cpu_seconds": 4.0}
    where = {"machine": {"cpu": "a cpu", "python": "3.11"}, "versions": {"torch": "2"}, "date": "2026-01-01"}
    return {**facts, **scores, **where, **changes}


def test_a_run_in_two_sittings_equals_one_in_one(tmp_path):
    assert runner.run(TINY, 1, folder=tmp_path / "whole")
    assert not runner.run(TINY, 1, budget=0.0, folder=tmp_path / "parts")  # one round
    assert (tmp_path / "cache/tiny/seed1.pt").exists()
    assert runner.recorded(TINY, tmp_path / "parts") == {}
    assert runner.run(TINY, 1, folder=tmp_path / "parts")
    assert not (tmp_path / "cache/tiny/seed1.pt").exists()
    (whole,), (parts,) = (runner.lines(TINY, tmp_path / name) for name in ("whole", "parts"))
    assert (whole.pop("sittings"), parts.pop("sittings")) == (1, 2)
    assert whole["commit"] == commit()
    for clock in ("wall_seconds", "cpu_seconds"):
        assert whole.pop(clock) > 0
        assert parts.pop(clock) > 0
    assert whole == parts
    assert whole["frames"] == 2048
    assert whole["curve"][-1][0] == 2048
    assert [frames for frames, _ in whole["curve"]] == sorted(frames for frames, _ in whole["curve"])
    assert whole["command"] == "python -m benchmarks.scores run tiny --seeds 1"
    assert (whole["final_episodes"], whole["greedy_episodes"]) == (10, 100)
    assert 9 < whole["final_return"] < 60


def test_what_is_recorded_is_not_run_again(tmp_path, monkeypatch):
    runner.append(line(), TINY, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "begin", None)
        assert runner.run(TINY, 0, folder=tmp_path)
    assert len(runner.lines(TINY, tmp_path)) == 1
    assert runner.run(TINY, 0, folder=tmp_path, again=True)
    first, newest = runner.lines(TINY, tmp_path)
    assert first != newest == runner.recorded(TINY, tmp_path)[0]


def test_lines_of_other_settings_do_not_count(tmp_path):
    runner.append(line(), TINY, tmp_path)
    assert set(runner.recorded(TINY, tmp_path)) == {0}
    assert runner.recorded(replace(TINY, settings={"epochs": 2, "num_cells": (8,)}), tmp_path) == {}
    assert runner.recorded(replace(TINY, frames=4096), tmp_path) == {}
    assert set(runner.recorded(replace(TINY, compile=True), tmp_path)) == {0}
    before_the_option = line(1)
    del before_the_option["config"]["normalize"]
    runner.append(before_the_option, TINY, tmp_path)
    assert set(runner.recorded(TINY, tmp_path)) == {0, 1}


def test_a_curve_has_at_most_200_points(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "POINTS", 3)
    runner.run(TINY, 0, folder=tmp_path)
    frames = [frames for frames, _ in runner.lines(TINY, tmp_path)[0]["curve"]]
    assert len(frames) <= 3
    assert all(after - before >= 2048 / 3 for before, after in pairwise(frames))


def test_a_seed_has_one_process(tmp_path):
    (tmp_path / "cache/tiny").mkdir(parents=True)
    with runner.locked(tmp_path / "cache/tiny/seed0.lock"), pytest.raises(BlockingIOError):
        runner.run(TINY, 0, folder=tmp_path)


def test_a_checkpoint_of_other_settings_is_begun_anew(tmp_path, capsys):
    runner.run(TINY, 0, budget=0.0, folder=tmp_path)
    other = replace(TINY, settings={"epochs": 2, "num_cells": (8,)})
    assert runner.run(other, 0, folder=tmp_path)
    assert "does not fit" in capsys.readouterr().out
    assert runner.lines(other, tmp_path)[0]["sittings"] == 1


def test_a_checkpoint_of_another_length_is_begun_anew(tmp_path, capsys):
    """A recipe may go on to another end, but the schedules that it has behind it went to the first one."""
    runner.run(TINY, 0, budget=0.0, folder=tmp_path)
    longer = replace(TINY, frames=2304)
    assert runner.run(longer, 0, folder=tmp_path)
    assert "does not fit (A checkpoint's total_frames must be the item's 2304; got 2048." in capsys.readouterr().out
    assert runner.lines(longer, tmp_path)[0]["sittings"] == 1


def test_half_a_checkpoint_is_begun_anew(tmp_path, capsys):
    runner.run(TINY, 0, budget=0.0, folder=tmp_path)
    path = tmp_path / "cache/tiny/seed0.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert runner.run(TINY, 0, folder=tmp_path)
    assert "does not fit" in capsys.readouterr().out


def test_the_processes_of_the_compiler_count():
    before = runner.cpu_seconds()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert runner.cpu_seconds() > before + 0.05


def test_a_signal_saves_and_stops(tmp_path):
    program = (
        "from tests.benchmarks.test_scores import TINY, runner, replace, Path; import sys;"
        "print('begins', flush=True); runner.run(replace(TINY, frames=10**8), 0, folder=Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=root, env=environment, stdout=-1, stderr=-1, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    while not (tmp_path / "cache/tiny/seed0.lock").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.strip().endswith("Stopped")
    assert (tmp_path / "cache/tiny/seed0.pt").exists()
    assert runner.lines(TINY, tmp_path) == []


def test_the_queue_goes_through_its_jobs_and_skips_what_is_done(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(ITEMS, "tiny", TINY)
    monkeypatch.setattr(cli, "recorded", lambda item: {0: {}})
    begun = []
    monkeypatch.setattr(cli.subprocess, "Popen", lambda command, **_: begun.append(command) or Finished(len(begun)))
    assert cli.work([("tiny", 0), ("tiny", 1), ("tiny", 2), ("tiny", 3)], 1, math.inf) == 3
    assert [command[command.index("--seeds") + 1] for command in begun] == ["1", "2", "3"]
    out = capsys.readouterr().out
    assert "tiny seed 1: finished after" in out
    assert "tiny seed 2: left with status 75" in out
    assert "2 of 4 runs are finished" in out


def test_a_run_that_begins_after_the_signal_is_stopped_too(monkeypatch):
    monkeypatch.setitem(ITEMS, "tiny", TINY)
    monkeypatch.setattr(cli, "recorded", lambda item: {})
    ended = threading.Event()

    class Waiting:
        """A process that runs until it is told to end, and begins with the signal."""

        def __init__(self, command: list[str], **_: object):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)

        def wait(self) -> int:
            assert ended.wait(20)
            return cli.UNFINISHED

        def terminate(self) -> None:
            ended.set()

    monkeypatch.setattr(cli.subprocess, "Popen", Waiting)
    assert cli.work([("tiny", 0), ("tiny", 1)], 1, math.inf) == cli.UNFINISHED


class Finished:
    """A process that has ended: the first well, the second unfinished, the third with an error."""

    def __init__(self, number: int):
        self.code = {1: 0, 2: cli.UNFINISHED, 3: 3}[number]

    def wait(self) -> int:
        return self.code


def test_options(capsys):
    assert cli.seeds_of("0-2,5") == [0, 1, 2, 5]
    options = cli.parse(["run", "ppo_cartpole", "--seeds", "3", "--budget", "60"])
    assert (options.items, options.seeds, options.budget) == (["ppo_cartpole"], [3], 60.0)
    with pytest.raises(SystemExit):
        cli.parse(["queue", "alchemy"])
    assert "no such item: alchemy; there are ppo_cartpole" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", ["3-1", "a", "", "1-", "-1"])
def test_seeds_that_are_none_show_the_usage(seeds, capsys):
    with pytest.raises(SystemExit):
        cli.parse(["run", "ppo_cartpole", f"--seeds={seeds}"])
    assert f"--seeds: must be like 0-4 or 0,3; got '{seeds}'" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", [[], ["--seeds", "0-1"]])
def test_one_seed_is_run_again(seeds, capsys):
    with pytest.raises(SystemExit):
        cli.parse(["run", "ppo_cartpole", "--again", *seeds])
    assert "--again trains one seed again" in capsys.readouterr().err


def test_status_names_every_item(capsys, tmp_path):
    folder = tmp_path / "cache/ppo_acrobot"
    folder.mkdir(parents=True)
    (folder / "seed3.pt").touch()
    assert cli.main(["status"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ITEMS)
    assert "seeds; under way: 3" in out


def test_the_page_says_what_was_recorded(tmp_path):
    for seed in (0, 1, 2, 3, 4):
        runner.append(line(seed), TINY, tmp_path / "results")
    report.write(tmp_path, [TINY, replace(TINY, name="later")], tmp_path / "results")
    page = (tmp_path / "README.md").read_text()
    # 20, 21, 22, 23, 24: one number is cut at either end
    assert "| [tiny](#tiny) | CartPole | 2,048 | 5 of 2 | 22.00 [" in page
    assert "| later | CartPole | 2,048 | 0 of 2 |" in page
    assert "| Somebody, v0 | 1.0 ± 0.5 | a page |" in page
    assert "Settings: epochs=1, num_cells=(8,). A run takes 0.1 CPU minutes." in page
    assert "| 512 |" in page  # frames per CPU second
    compiled = line(1, cpu_seconds=1.0)
    compiled["config"]["compile"] = True
    assert report.timed(TINY, [line(), compiled]) == [line()]
    assert report.timed(TINY, [compiled]) == [compiled]
    size = (tmp_path / "images/tiny.png").stat().st_size
    assert 5_000 < size < 40_000
    assert not (tmp_path / "images/later.png").exists()


def test_scores_on_pages_are_brought_up_to_date(tmp_path):
    page = tmp_path / "page.py"
    page.write_text("# %% [markdown]\n# <!-- scores: tiny later -->\n# after\n# | other | 8 |\nx = 1\n")
    runner.append(line(), TINY, tmp_path / "results")
    items = [TINY, replace(TINY, name="later")]  # which has no results
    for _ in range(2):
        assert report.write_pages(tmp_path, items, tmp_path / "results") == [page]
        lines = page.read_text().splitlines()
        assert lines[:3] == ["# %% [markdown]", "# <!-- scores: tiny later -->", "#"]
        assert lines[5] == "# | [tiny](../benchmarks/scores/README.md#tiny) | CartPole | 2,048 | 1 | 20.00 | 30.00 |"
        assert lines[6:] == ["# after", "# | other | 8 |", "x = 1"]
        assert report.write_pages(tmp_path, items, tmp_path / "results") == []
        page.write_text(page.read_text().replace("20.00", "old"))


def test_the_knowledge_base_gives_the_scores_that_were_recorded(tmp_path):
    for page in report.KNOWLEDGE_BASE.glob("*.py"):
        (tmp_path / page.name).write_text(page.read_text())
    assert report.write_pages(tmp_path) == [], "run: python -m benchmarks.scores report"


def test_curves_meet_on_one_grid():
    grid, returns = report.on_grid([line(0), line(1, curve=[[1000, 7.0], [2000, 9.0]])], 2000)
    assert grid[0] == 1000  # where both have begun
    torch.testing.assert_close(returns[:, [0, -1]], torch.tensor([[50.0, 100.0], [7.0, 9.0]], dtype=torch.float64))
    assert returns[1].diff().min() > 0


def test_summary():
    runs = [line(seed) for seed in range(3)]
    assert report.summary(runs[:1], "final_return") == "20.00"
    assert report.summary(runs, "final_return").startswith("21.00 [20.")
    assert report.summary([line(final_return=None)], "final_return") == "no episode ended"
    assert [report.number(x) for x in (1234.5, 123.45, -1.234)] == ["1,234", "123.5", "-1.23"]
    assert [report.short(x) for x in (0, 500, 20_000, 1_500_000)] == ["0", "500", "20k", "1.5M"]


@pytest.mark.parametrize("item", ALL, ids=lambda item: item.name)
def test_every_item_fits_its_recipe(item):
    if item.recipe in RECIPES:
        config = RECIPES[item.recipe][1](**item.config(0))
        assert (config.env, config.total_frames) == (item.env, item.frames)
    assert 1 <= item.window <= 100
    assert item.compile in (True, False)
    assert all(entry.source and any(c.isdigit() for c in entry.score) for entry in item.published)


def test_the_optimum_of_lqr():
    from rlbook.envs.native import LQR

    assert f"{LQR().optimal_return:.4f}" == ITEMS["sac_lqr"].published[0].score


def test_names_are_unique():
    assert len(ITEMS) == len(ALL)
