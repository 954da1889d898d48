"""The harness counts, compares and reports as it says, and every item runs in miniature."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import report, run
from benchmarks.harness import (
    Case,
    Outcome,
    Prepared,
    Sample,
    Settings,
    fact_above,
    fact_below,
    faster,
    measure,
    rotate,
    seconds_below,
)
from benchmarks.run import ITEMS, parse

TINY = Settings(repeats=1, slice_seconds=0.0, warm_up=1)


def case_of(contenders, **settings) -> Case:
    return Case(name="a case", unit="steps", work=10, contenders=contenders, **settings)


def outcome_of(seconds, facts=None) -> Outcome:
    return Outcome(case_of({}), seconds, facts or {}, {})


# ---- measuring -------------------------------------------------------------------------------------------------------------
def test_every_contender_is_first_in_turn():
    assert [rotate("abc", repeat)[0] for repeat in range(4)] == ["a", "b", "c", "a"]
    assert sorted(rotate("abc", 2)) == ["a", "b", "c"]


def test_contenders_take_turns():
    order: list[str] = []
    contenders = {name: lambda name=name: lambda: order.append(name) for name in "ab"}
    measure(case_of(contenders, warm_up=0), replace(TINY, repeats=3))
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_seconds_are_per_unit_of_work():
    contenders = {"case's": lambda: lambda: Sample(20.0), "its own": lambda: Prepared(lambda: Sample(20.0), work=4)}
    outcome = measure(case_of(contenders), replace(TINY, repeats=2))
    assert outcome.seconds == {"case's": [2.0, 2.0], "its own": [5.0, 5.0]}


def test_the_clock_counts_cpu_time_of_many_calls():
    calls = 0

    def task() -> None:
        nonlocal calls
        calls += 1
        end = time.process_time() + 0.002
        while time.process_time() < end:
            pass

    outcome = measure(case_of({"busy": lambda: task, "idle": lambda: lambda: None}), Settings(repeats=1, slice_seconds=0.02))
    assert calls >= 3 + 2  # the warm-up, and as many as fill a slice
    assert outcome.seconds["busy"][0] >= 0.002 / 10
    assert outcome.ratio("idle", "busy") > 1


def test_facts_come_from_preparing_and_from_every_repeat():
    contenders = {"a": lambda: Prepared(lambda: Sample(1.0, {"frames": 7.0}), facts={"error": 0.5})}
    outcome = measure(case_of(contenders), replace(TINY, repeats=2))
    assert outcome.facts == {"a": {"error": [0.5], "frames": [7.0, 7.0]}}


def test_a_missing_peer_is_skipped_and_a_broken_rlbook_is_not():
    outcome = measure(case_of({"peer": lambda: import_module("no_such_peer"), "rlbook": lambda: lambda: None}), TINY)
    assert outcome.skipped == {"peer": "no_such_peer is not installed"}
    assert list(outcome.seconds) == ["rlbook"]
    with pytest.raises(ModuleNotFoundError, match="no_such_part"):
        measure(case_of({"rlbook": lambda: import_module("rlbook.no_such_part")}), TINY)


def test_a_case_is_closed_when_a_contender_fails():
    closed = []
    with pytest.raises(ZeroDivisionError, match="division"):
        measure(case_of({"rlbook": lambda: lambda: 1 / 0}, close=lambda: closed.append(True)), TINY)
    assert closed == [True]


# ---- ratios and targets ------------------------------------------------------------------------------------------------------
def test_the_headline_is_the_median_of_the_ratios():
    outcome = outcome_of({"rlbook": [1.0, 2.0, 4.0], "peer": [3.0, 4.0, 20.0]})
    assert outcome.ratios("rlbook", "peer") == [3.0, 2.0, 5.0]
    assert outcome.ratio("rlbook", "peer") == 3.0
    assert outcome.ratio("rlbook", "missing") is None
    assert outcome.median("peer") == 4.0


def test_faster_compares_with_the_fastest_peer_that_was_measured():
    outcome = outcome_of({"rlbook": [1.0], "slow": [9.0], "fast": [4.0]})
    target = faster("rlbook", 5, "slow", "fast", "missing")
    assert target.value(outcome) == 4.0
    assert target.passed(4.0) is False
    assert target.passed(5.0) is True
    assert target.text == "rlbook at least 5x slow or fast or missing"
    unmeasured = faster("rlbook", 5, "missing").value(outcome)
    assert unmeasured is None
    assert target.passed(unmeasured) is None


def test_seconds_and_facts_have_limits():
    outcome = outcome_of({"rlbook": [1.0, 3.0], "base": [0.75, 2.5]}, {"rlbook": {"solved": [1.0, 0.0], "error": [1e-6, 1e-4]}})
    assert seconds_below("rlbook", 0.5).value(outcome) == 2.0
    assert seconds_below("rlbook", 0.5, beyond="base").value(outcome) == 0.375
    assert seconds_below("rlbook", 0.5, beyond="missing").value(outcome) is None
    assert fact_above("rlbook", "solved", 1).value(outcome) == 0.0
    assert fact_below("rlbook", "error", 1e-5).value(outcome) == 1e-4
    assert fact_below("missing", "error", 1e-5).value(outcome) is None


# ---- the report --------------------------------------------------------------------------------------------------------------
def measured_result() -> dict:
    contenders = {"rlbook": lambda: lambda: Sample(0.01), "peer": lambda: lambda: Sample(0.05, {"frames": 1234.0})}
    contenders["absent"] = lambda: import_module("no_such_peer")
    case = case_of(contenders, targets=[faster("rlbook", 6, "peer"), faster("rlbook", 2, "absent")], note="A note.")
    return report.to_json("an_item", "What it is about.", [measure(case, TINY)], TINY, "python -m benchmarks.run an_item")


@pytest.mark.parametrize(("flags", "repeats"), [([], 2), (["--repeats", "3"], 3)])
def test_repeats_that_are_asked_for_count_in_every_case(flags, repeats, monkeypatch, tmp_path):
    case = case_of({"rlbook": lambda: lambda: Sample(0.01)}, repeats=2)
    monkeypatch.setattr(run, "import_module", lambda name: SimpleNamespace(cases=lambda size: [case]))
    run.main(["gae", "--quick", "--output", str(tmp_path), *flags])
    result = json.loads((tmp_path / "gae.json").read_text())
    assert len(result["cases"][0]["contenders"]["rlbook"]["samples"]) == repeats


def test_the_table_says_what_was_measured():
    lines = report.section(measured_result())
    assert lines[6:15] == [
        "|  | steps per CPU second | CPU time per unit | vs rlbook | frames |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| rlbook | 1,000 | 1 ms |  |  |",
        "| peer | 200 | 5 ms | 5 (5 to 5) | 1,230 |",
        "",
        "- **missed** rlbook at least 6x peer: 5",
        "- not measured rlbook at least 2x absent: -",
        "- Skipped: absent (no_such_peer is not installed)",
        "",
    ]


def test_results_are_saved_and_the_page_collects_them(tmp_path: Path):
    result = measured_result()
    report.save(result, tmp_path)
    report.save({**result, "item": "another"}, tmp_path)
    assert json.loads((tmp_path / "an_item.json").read_text()) == result
    page = (tmp_path / "README.md").read_text()
    assert "## an_item" in page
    assert "## another" in page
    assert "Targets met: 0 of 2 measured, 4 in all." in page


def test_a_result_names_versions_and_processor_but_not_the_machine():
    result = measured_result()
    assert {"rlbook", "torch"} <= set(result["versions"])
    assert result["machine"]["cores"] >= 1
    assert set(result["machine"]) == {"cpu", "cores", "system", "python"}
    assert socket.gethostname() not in json.dumps(result["machine"]) or len(socket.gethostname()) < 3


@pytest.mark.parametrize(("seconds", "text"), [(12.0, "12 s"), (0.0123, "12.3 ms"), (4e-6, "4 us"), (5e-9, "5 ns")])
def test_durations_have_a_unit_that_fits(seconds: float, text: str):
    assert report.duration(seconds) == text


def test_an_unknown_item_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        parse(["no_such_item"])
    assert "no such item: no_such_item; there are collection, gae" in capsys.readouterr().err


# ---- the items ---------------------------------------------------------------------------------------------------------------
def tiny(item: str) -> list[Case]:
    return list(import_module(f"benchmarks.items.{item}").cases("tiny"))


@pytest.mark.parametrize("item", ITEMS)
def test_rlbook_runs_in_miniature(item: str):
    if item == "live_plot" and not (find_spec("ipykernel") and find_spec("anywidget")):
        pytest.skip("needs ipykernel and anywidget")
    for case in tiny(item):
        own = {name: make for name, make in case.contenders.items() if name.startswith("rlbook")}
        assert own, f"{case.name} has no contender of rlbook's"
        outcome = measure(replace(case, contenders=own), TINY)
        assert all(len(samples) >= 1 and min(samples) >= 0 for samples in outcome.seconds.values())
        assert not outcome.skipped


@pytest.mark.parametrize("item", ITEMS)
def test_targets_name_contenders_that_exist(item: str):
    for case in tiny(item):
        seconds = {name: [1.0] for name in case.contenders}
        for target in case.targets:
            assert target.compares in (*case.contenders, "") or "compiled" in target.compares  # nothing is compiled in miniature
            target.value(Outcome(case, seconds, {}, {}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("item", [item for item in ITEMS if item not in ("imports", "live_plot")])
def test_peers_run_in_miniature(item: str):
    for package in ("torchrl", "stable_baselines3"):
        pytest.importorskip(package)
    for case in tiny(item):
        peers = {name: make for name, make in case.contenders.items() if "compiled" not in name and not name.startswith("rlbook")}
        skipped = measure(replace(case, contenders=peers), TINY).skipped
        assert not [name for name, reason in skipped.items() if "does not load" not in reason]  # TorchRL's extension
