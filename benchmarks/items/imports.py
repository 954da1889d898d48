"""CPU seconds of an import in a fresh Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from benchmarks.harness import Case, Make, Sample, Task, seconds_below

EVERYTHING = "import rlbook\nfor name in rlbook.__all__: getattr(rlbook, name)"
BEYOND = "rlbook, everything, beyond tensordict"
CODE = {
    "rlbook": "import rlbook",
    "rlbook, everything": EVERYTHING,
    BEYOND: EVERYTHING,
    "numpy": "import numpy",
    "gymnasium": "import gymnasium",
    "torch": "import torch",
    "tensordict": "import tensordict",
    "torchrl": "import torchrl",
    "torchrl, envs and collectors": "import torchrl.envs, torchrl.collectors, torchrl.objectives, torchrl.modules",
    "sb3": "import stable_baselines3",
}


def cpu_seconds(code: str, first: str) -> float:
    """Run ``first`` and then ``code`` in a fresh Python; return the CPU seconds of ``code``."""
    timed = f"{first}\nimport time\nbegun = time.process_time()\n{code}\nprint(time.process_time() - begun)"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}  # as users have it
    process = subprocess.run([sys.executable, "-c", timed], env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"this failed in a fresh Python:\n{timed}\n{process.stderr}")
    return float(process.stdout.split()[-1])


def importing(code: str, first: str) -> Make:
    """Return what prepares the measurement: one import that fills the disk cache and writes the byte code."""

    def prepare() -> Task:
        package = code.split()[1].split(".")[0].rstrip(",")
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"no module named {package!r}", name=package)
        cpu_seconds(code, first)
        return lambda: Sample(cpu_seconds(code, first))

    return prepare


def cases(size: str = "full") -> Iterator[Case]:
    yield Case(
        name="import",
        unit="imports",
        work=1,
        contenders={
            name: importing(code, "import tensordict" if name == BEYOND else "")
            for name, code in CODE.items()
            if size != "tiny" or name == "rlbook"
        },
        targets=[seconds_below("rlbook", 0.2), seconds_below(BEYOND, 0.2)],
        note="`everything` loads every name that `rlbook` offers, and so all of its packages; `beyond`: when that is there.",
        warm_up=0,
    )
