"""Run, queue, list and report reference scores.

``python -m benchmarks.scores run ppo_cartpole --seeds 0-4 --budget 3600`` trains the seeds that are not finished, each in a
process of its own with one thread, and goes on where an earlier call was stopped. ``queue`` does that for several items in the
background.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, Queue

from benchmarks.scores.items import ITEMS
from benchmarks.scores.runner import Stopped, cache, lines, recorded, run, same_run, stoppable

UNFINISHED = 75
"""Exit status of a run that was saved and left (EX_TEMPFAIL)."""
ROOT = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status."""
    options = parse(arguments)
    commands = {"run": run_command, "queue": queue_command, "status": status_command, "report": report_command}
    return commands[options.command](options)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="train seeds of one item")
    one.add_argument("items", nargs=1, metavar="item")
    one.add_argument("--again", action="store_true", help="train a seed that is recorded too; its newest line counts")
    many = commands.add_parser("queue", help="work through items in the background")
    many.add_argument("items", nargs="+", metavar="item")
    many.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    many.add_argument("--log", type=Path, default=None, help="file for what it says (queue.log in the cache folder)")
    many.add_argument("--foreground", action="store_true", help="stay, and say it here")
    for command in (one, many):
        command.add_argument("--seeds", type=seeds_of, default=None, help="0-4, or 0,3; all of the item by default")
        command.add_argument("--budget", type=float, default=math.inf, help="seconds per run, which is then saved and left")
    commands.add_parser("status", help="what is finished and what is under way")
    commands.add_parser("report", help="write the page and its pictures")
    options = parser.parse_args(arguments)
    unknown = [name for name in getattr(options, "items", []) if name not in ITEMS]
    if unknown:
        parser.error(f"no such item: {', '.join(unknown)}; there are {', '.join(ITEMS)}")
    if getattr(options, "again", False) and len(options.seeds or ()) != 1:
        parser.error("--again trains one seed again: say which, for example --seeds 3")
    return options


def seeds_of(text: str) -> list[int]:
    """Read ``0-4`` or ``0,2,5-6``.

    Raises:
        ArgumentTypeError: it is something else, as ``3-1`` is.
    """
    seeds: list[int] = []
    for part in text.split(","):
        if not (found := re.fullmatch(r"(\d+)(?:-(\d+))?", part)) or int(found[2] or found[1]) < int(found[1]):
            raise argparse.ArgumentTypeError(f"must be like 0-4 or 0,3; got {text!r}. A range begins with its smaller end.")
        seeds += range(int(found[1]), int(found[2] or found[1]) + 1)
    return seeds


# ---- commands --------------------------------------------------------------------------------------------------------------
def run_command(options: argparse.Namespace) -> int:
    """Train one seed in this process, several in one process each."""
    item = ITEMS[options.items[0]]
    seeds = options.seeds if options.seeds is not None else list(range(item.seeds))
    if len(seeds) > 1:
        return work([(item.name, seed) for seed in seeds], 1, options.budget)
    import torch

    torch.set_num_threads(1)
    try:
        return 0 if run(item, seeds[0], options.budget, again=options.again) else UNFINISHED
    except BlockingIOError:
        print(f"{item.name} seed {seeds[0]}: another process runs it", flush=True)
        return UNFINISHED
    except Stopped:
        print(f"{item.name} seed {seeds[0]}: saved and stopped", flush=True)
        return UNFINISHED


def queue_command(options: argparse.Namespace) -> int:
    """Begin in a session of its own, at low priority, and return; or work here."""
    if not options.foreground:
        log = options.log or cache() / "queue.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.scores", *sys.argv[1:], "--foreground"]
        with log.open("a") as file:
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(command, cwd=ROOT, stdin=quiet, stdout=file, stderr=file, start_new_session=True)
        print(f"Process {process.pid} works in the background and writes to {log}. Stop it with kill: runs are saved.")
        return 0
    os.nice(max(0, 10 - os.nice(0)))
    names = options.items
    most = max(ITEMS[name].seeds for name in names)
    wanted = options.seeds if options.seeds is not None else list(range(most))
    jobs = [(name, seed) for seed in wanted for name in names if options.seeds is not None or seed < ITEMS[name].seeds]
    return work(jobs, options.jobs, options.budget)


def work(jobs: list[tuple[str, int]], workers: int, budget: float) -> int:
    """Do the runs, so many at a time; after a signal the runs under way are saved and the others left."""
    pending: Queue[tuple[str, int]] = Queue()
    for job in jobs:
        pending.put(job)
    status: dict[tuple[str, int], int] = {}
    alive: set[subprocess.Popen] = set()

    with stoppable() as stop:

        def worker() -> None:
            while not stop:
                try:
                    job = pending.get_nowait()
                except Empty:
                    return
                status[job] = one(job, budget, alive, stop)

        threads = [threading.Thread(target=worker) for _ in range(workers)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            for process in list(alive) if stop else ():
                process.terminate()  # at each look: one may have begun since the last
    left = len(jobs) - sum(code == 0 for code in status.values())
    say(f"{len(jobs) - left} of {len(jobs)} runs are finished")
    failed = [code for code in status.values() if code not in (0, UNFINISHED)]
    return failed[0] if failed else UNFINISHED if left else 0


def one(job: tuple[str, int], budget: float, alive: set[subprocess.Popen], stop: list[int]) -> int:
    """Do one run in a process of its own, with one thread."""
    name, seed = job
    if seed in recorded(ITEMS[name]):
        return 0
    if stop:
        return UNFINISHED
    command = [sys.executable, "-m", "benchmarks.scores", "run", name, "--seeds", str(seed), "--budget", str(budget)]
    say(f"{name} seed {seed}: begins")
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
    alive.add(process)
    code = process.wait()
    alive.discard(process)
    say(f"{name} seed {seed}: {'finished' if code == 0 else f'left with status {code}'} after {time.monotonic() - start:.0f} s")
    return code


def say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def status_command(options: argparse.Namespace) -> int:
    """Print a line per item."""
    from rlbook.recipes import RECIPES

    for item in ITEMS.values():
        done = recorded(item)
        old = sum(not same_run(line, item) for line in lines(item))
        under_way = [path.stem.removeprefix("seed") for path in sorted((cache() / item.name).glob("seed*.pt"))]
        facts = [f"{len(done)} of {item.seeds} seeds"]
        facts += [f"under way: {', '.join(under_way)}"] if under_way else []
        facts += [f"{old} of other settings"] if old else []
        facts += [] if item.recipe in RECIPES else ["no such recipe yet"]
        print(f"{item.name:<32} {'; '.join(facts)}")
    return 0


def report_command(options: argparse.Namespace) -> int:
    """Write the page and its pictures, and the scores on the pages of the knowledge base."""
    from benchmarks.scores.report import write, write_pages

    write()
    for page in write_pages():
        print(f"{page.relative_to(ROOT)} has changed: publish it with python tools/notebooks.py words {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
