"""The lessons' pipeline: percent scripts are written, linted and reviewed; their notebooks are executed and published from them.

    python tools/notebooks.py build [--stale] [PATH ...]    execute scripts and publish their notebooks (all, or those named)
    python tools/notebooks.py words PATH ...                publish prose that changed while the code did not, without executing
    python tools/notebooks.py check [PATH ...]              list what is stale or unfit to publish
    python tools/notebooks.py links PATH                    print the badges and the install cell that a lesson starts with

A published notebook keeps pictures, HTML and text. Live widgets are dropped (a saved one reopens as "model not found"),
and so is what differs between two identical runs: times, ids, versions, addresses.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("notebooks", "tutorials", "knowledge_base")
LINKED = ("notebooks", "tutorials")  # these start with the Colab and Binder badges
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"].removeprefix(
    "https://github.com/"
)

MAX_BYTES = 300_000
CELL_TIMEOUT = 180
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
KEPT_MIMES = ("image/png", "text/html", "text/latex", "text/markdown", "text/plain")
KERNEL_ENV = {"RLBOOK_RUN_MODE": "cell", "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy", "PYTHONHASHSEED": "0"}
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"},
}
MACHINE_PATH = re.compile(
    rf"(?:{re.escape(str(ROOT))}/|(?<![\w.])(?:/home/|/root/|/Users/|/tmp/|[A-Z]:\\Users\\)|/site-packages/)[^\s\"'<>]*"
)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,16}\b")
DATA_URI = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+")


class NotebookError(Exception):
    """A notebook cannot be built; the message says where and why."""


# ---------------------------------------------------------------- pairs


def find_scripts(root: Path = ROOT, paths: Iterable[Path] = ()) -> list[Path]:
    """Return the script of every pair under ``root`` (one that lacks its script too), or of the pairs that ``paths`` name."""
    files = [Path(path) for path in paths] or [
        file for folder in FOLDERS for file in (root / folder).rglob("*") if ".ipynb_checkpoints" not in file.parts
    ]
    return sorted({file.with_suffix(".py").resolve() for file in files if file.suffix in (".py", ".ipynb")})


def read_script(script: Path) -> NotebookNode:
    """Read a percent script as an unexecuted notebook, with ids that depend on the cells' contents only."""
    notebook = jupytext.read(script, fmt="py:percent")
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] += 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def script_hash(script: Path) -> str:
    """Return the hash that a notebook records of the script it was published from."""
    return hashlib.sha256(script.read_bytes().replace(b"\r\n", b"\n")).hexdigest()[:16]


def cells_hash(notebook: NotebookNode) -> str:
    """Return the hash of a notebook's cells and outputs: it changes when someone runs or edits the published file by hand."""
    return hashlib.sha256(json.dumps(notebook.cells, sort_keys=True).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- build


def build(script: Path) -> Path:
    """Execute a script and write its published notebook beside it; return the notebook's path.

    Raises:
        NotebookError: a cell fails or takes too long, or the notebook is unfit to publish.
    """
    notebook = read_script(script)
    execute(notebook, script)
    publish(notebook)
    return write(notebook, script)


def reword(script: Path) -> Path:
    """Publish prose that changed while the code did not: the cells of code keep what they have put out.

    Raises:
        NotebookError: the code has changed, or the notebook was edited by hand or is unfit to publish.
    """
    notebook, published = read_script(script), nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    new, old = ([cell for cell in one.cells if cell.cell_type == "code"] for one in (notebook, published))
    if [cell.source for cell in new] != [cell.source for cell in old]:
        raise NotebookError("code has changed, so it must be executed: make notebooks")
    if published.metadata.get("rlbook", {}).get("cells") != cells_hash(published):
        raise NotebookError("the notebook was run or edited by hand after it was published: make notebooks")
    for cell, before in zip(new, old, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return write(notebook, script)


def write(notebook: NotebookNode, script: Path) -> Path:
    """Write a published notebook beside its script; return its path."""
    recorded = {"script": script_hash(script), "cells": cells_hash(notebook)}
    notebook.metadata = nbformat.from_dict({**METADATA, "rlbook": recorded})
    if problems := list(content_problems(notebook, script)):
        raise NotebookError("\n".join(problems))
    target = script.with_suffix(".ipynb")
    nbformat.write(notebook, target)
    return target


def execute(notebook: NotebookNode, script: Path) -> None:
    """Run every cell in place, in a fresh kernel of this Python, from the script's folder."""
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(script.parent)}},
    )
    try:
        client.execute(env={**os.environ, **KERNEL_ENV})
    except CellTimeoutError as error:
        raise NotebookError(f"a cell took longer than {CELL_TIMEOUT} s. {error}") from None
    except (CellExecutionError, DeadKernelError) as error:
        raise NotebookError(ANSI.sub("", str(error))) from None


def publish(notebook: NotebookNode) -> None:
    """Keep what every reader can see and what the next run will give again; drop the rest."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := publish_output(output))]


def publish_output(output: NotebookNode) -> NotebookNode | None:
    """Return an output in its published form, or None to drop it."""
    if output.output_type == "stream":
        output.text = ADDRESS.sub("0x...", output.text)
        return output if output.name == "stdout" and output.text else None
    if output.output_type == "error":
        return output
    is_widget = WIDGET_MIME in output.data
    output.data = NotebookNode({mime: output.data[mime] for mime in KEPT_MIMES if mime in output.data})
    if is_widget and set(output.data) <= {"text/plain"}:
        return None
    for mime in output.data:
        if mime != "image/png":
            output.data[mime] = ADDRESS.sub("0x...", output.data[mime])
    size = output.metadata.get("image/png")  # a picture of double density says how wide it is meant to be
    output.metadata = NotebookNode({"image/png": size} if size else {})
    return output if output.data else None


# ---------------------------------------------------------------- check


def check(script: Path) -> list[str]:
    """Return what is wrong with a pair: one of it missing, a stale notebook, or one unfit to publish."""
    target = script.with_suffix(".ipynb")
    if not script.exists():
        return [f"{target.name} has no script {script.name}. Write the lesson as a percent script and run: make notebooks"]
    if not target.exists():
        return [f"{script.name} has no notebook. Run: make notebooks"]
    notebook = nbformat.read(target, as_version=4)
    return [*stale_problems(notebook, script), *content_problems(notebook, script)]


def stale_problems(notebook: NotebookNode, script: Path) -> Iterator[str]:
    """Say whether the notebook is no longer what its script gives."""
    recorded = notebook.metadata.get("rlbook", {})
    if [(c.cell_type, c.source) for c in notebook.cells] != [(c.cell_type, c.source) for c in read_script(script).cells]:
        yield "the cells differ from the script's. Edit the script, then run: make notebooks"
    elif recorded.get("script") != script_hash(script):
        yield "the script has changed since the notebook was published. Run: make notebooks"
    if recorded.get("cells") != cells_hash(notebook):
        yield "the notebook was run or edited by hand after it was published. Run: make notebooks"


def content_problems(notebook: NotebookNode, script: Path) -> Iterator[str]:
    """Say what in a notebook's cells is unfit to publish."""
    if notebook.metadata.get("widgets"):
        yield "the metadata hold saved widgets"
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", ()):
            yield from (f"cell {number}: {problem}" for problem in output_problems(output))
    if script.parent.name in LINKED:
        yield from link_problems(notebook, script)
    yield from size_problems(notebook)


def output_problems(output: NotebookNode) -> Iterator[str]:
    """Say what in one output is unfit to publish."""
    if output.output_type == "error":
        yield f"its output is an error, {output.ename}: {output.evalue}"
    data = output.get("data", {"text/plain": output.get("text", "")})
    if WIDGET_MIME in data:
        yield "its output is a live widget, which reopens as 'model not found'"
    text = DATA_URI.sub("", "\n".join(str(value) for mime, value in data.items() if mime.startswith("text/")))
    if found := MACHINE_PATH.search(text):
        yield f"its output names a path of the machine it ran on: {found[0]}"


def size_problems(notebook: NotebookNode) -> Iterator[str]:
    """Say whether a notebook is larger than a page should be."""
    if (size := len(nbformat.writes(notebook).encode())) > MAX_BYTES:
        weights = sorted(((len(json.dumps(c.get("outputs", ""))), n) for n, c in enumerate(notebook.cells, 1)), reverse=True)
        heaviest = ", ".join(f"cell {number} has {weight / 1000:.0f} kB" for weight, number in weights[:3])
        yield f"the notebook has {size / 1000:.0f} kB, more than {MAX_BYTES // 1000}: {heaviest}. Draw fewer or smaller pictures"


# ---------------------------------------------------------------- how a lesson starts


def badges(script: Path) -> str:
    """Return the line of badges in a lesson's first cell."""
    path = f"{script.parent.name}/{script.stem}.ipynb"
    colab = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/{path}"
    binder = f"https://mybinder.org/v2/gh/{REPOSITORY}/main?urlpath=lab/tree/{path}"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})\n"
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )


def opening(script: Path) -> str:
    """Return how a lesson's script starts: its badges, and the cell that installs rlbook on Colab and does nothing elsewhere."""
    as_comment = badges(script).replace("\n", "\n# ")
    return f"""# %% [markdown]
# # Title
#
# {as_comment}

# %%
import sys

if "google.colab" in sys.modules:  # torch, numpy and matplotlib are there already
    get_ipython().run_line_magic("pip", "install -q anywidget git+https://github.com/{REPOSITORY}")"""


def link_problems(notebook: NotebookNode, script: Path) -> Iterator[str]:
    """Say whether a lesson lacks its badges or its install cell."""
    remedy = f"Take it from: python tools/notebooks.py links {script.parent.name}/{script.name}"
    if not notebook.cells or badges(script) not in notebook.cells[0].source:
        yield f"the first cell lacks the line of badges. {remedy}"
    if not any('"google.colab" in sys.modules' in cell.source for cell in notebook.cells if cell.cell_type == "code"):
        yield f"no cell installs rlbook on Colab. {remedy}"


# ---------------------------------------------------------------- command line


def main(argv: list[str] | None = None) -> bool:
    """Run one command; return whether it met a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("build", "words", "check", "links"))
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH")
    parser.add_argument("--stale", action="store_true", help="build only the pairs that the check complains about")
    options = parser.parse_intermixed_args(argv)
    scripts = find_scripts(paths=options.paths)
    if options.command == "links":
        print(*map(opening, scripts), sep="\n\n")
        return False
    if options.command == "check":
        return sum([report(script, check(script)) for script in scripts]) > 0
    make = reword if options.command == "words" else build
    return sum([try_build(script, make) for script in scripts if not options.stale or check(script)]) > 0


def try_build(script: Path, make: Callable[[Path], Path]) -> int:
    """Build one pair and say how it went; return the number of problems."""
    print(f"{script.parent.name}/{script.name} ...", flush=True)
    try:
        size = make(script).stat().st_size
    except (NotebookError, FileNotFoundError) as error:
        return report(script, [str(error)])
    print(f"    published, {size // 1000} kB")
    return 0


def report(script: Path, problems: list[str]) -> int:
    """Print the problems of a pair; return how many there are."""
    for problem in problems:
        print(f"{script.parent.name}/{script.stem}: {problem}")
    return len(problems)


if __name__ == "__main__":
    sys.exit(main())
