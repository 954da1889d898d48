"""Find the processes that a test started and did not end."""

from __future__ import annotations

import time

import psutil

HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")  # they live as long as this process, by design


def left_behind(patience: float = 5.0) -> list[str]:
    """Return the command lines of the child processes that are still running when ``patience`` seconds have passed."""
    deadline = time.monotonic() + patience
    while (found := running_children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def running_children() -> list[str]:
    """Return the command lines of this process's children, without the helpers and the ones that only wait to be collected."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and not any(helper in command for helper in HELPERS):
                found.append(command)
        except psutil.NoSuchProcess:
            continue
    return found
