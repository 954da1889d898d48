"""CPU seconds of an import in a fresh Python, beyond those of Python itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from benchmarks.harness import Case, Make, Sample, Task, seconds_below

EVERYTHING = "import rlbook\nfor name in rlbook.__all__: getattr(rlbook, name)"
CODE = {
    "rlbook": "import rlbook",
    "rlbook, everything": EVERYTHING,
    "numpy": "import numpy",
    "gymnasium": "import gymnasium",
    "torch": "import torch",
    "tensordict": "import tensordict",
    "torchrl": "import torchrl",
    "torchrl, envs and collectors": "import torchrl.envs, torchrl.collectors, torchrl.objectives, torchrl.modules",
    "sb3": "import stable_baselines3",
}


def cpu_seconds(code: str) -> float:
    """Run code in a fresh Python; return the CPU seconds that the process took."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"this failed in a fresh Python:\n{code}")
    return usage.ru_utime + usage.ru_stime


def importing(code: str) -> Make:
    """Return what prepares the measurement: one import that fills the disk cache and writes the byte code."""

    def prepare() -> Task:
        package = code.split()[1].split(".")[0].rstrip(",")
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"no module named {package!r}", name=package)
        cpu_seconds(code)
        return lambda: Sample(cpu_seconds(code) - cpu_seconds("pass"))

    return prepare


def cases(size: str = "full") -> Iterator[Case]:
    yield Case(
        name="import",
        unit="imports",
        work=1,
        contenders={name: importing(code) for name, code in CODE.items() if size != "tiny" or name == "rlbook"},
        targets=[seconds_below("rlbook", 0.2), seconds_below("rlbook, everything", 0.2, beyond="tensordict")],
        note="`everything` loads every name that `rlbook` offers, and so all of its packages.",
        warm_up=0,
    )
