"""Find the processes that a test started and did not end."""

from __future__ import annotations

import time

import psutil

LASTING = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")  # they live as long as this process, by design


def left_behind(patience: float = 5.0) -> list[str]:
    """Return the command lines of the child processes that are still running when ``patience`` seconds have passed."""
    deadline = time.monotonic() + patience
    while (found := running_children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def running_children() -> list[str]:
    """Return the command lines of this process's children, without the lasting ones and those that have ended."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and not any(name in command for name in LASTING):
                found.append(command)
        except psutil.NoSuchProcess:
            continue
    return found
