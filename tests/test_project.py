"""The project's own promises: a light import, lazy names, pinned versions that agree, links that lead somewhere, sound tools."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import rlbook
from leaks import left_behind
from tools import count_lines

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]


def pins(requirements: list[Requirement]) -> dict[str, str]:
    return {requirement.name: str(requirement.specifier) for requirement in requirements}


# ---------------------------------------------------------------- import rlbook


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after running ``code``."""
    script = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split())


def test_import_rlbook_loads_nothing_heavy():
    heavy = {"torch", "tensordict", "numpy", "numba", "gymnasium", "matplotlib", "IPython", "ipywidgets", "anywidget"}
    assert not modules_after("import rlbook; dir(rlbook); rlbook.keys") & heavy


def test_the_library_needs_no_front_end():
    front_ends = {"matplotlib", "IPython", "ipykernel", "ipywidgets", "anywidget", "jupyterlab", "pygame", "mujoco", "torchrl"}
    library = ["GymEnv", "CartPole", "MLP", "Collector", "PPOLoss", "GAE", "TransformedEnv", "minibatches", "recipes", "interop"]
    assert not modules_after(f"import rlbook; [getattr(rlbook, name) for name in {library}]") & front_ends


@pytest.mark.parametrize("name", rlbook.__all__)
def test_every_exported_name_loads(name):
    assert getattr(rlbook, name) is not None
    assert name in dir(rlbook)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'rlbook' has no attribute 'GymEnvs'"):
        rlbook.GymEnvs  # noqa: B018


def test_editors_see_the_names_that_load():
    [block] = [node for node in ast.parse(Path(rlbook.__file__).read_text()).body if isinstance(node, ast.If)]
    imports = [(node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    homes = {(f"rlbook.{home}", name) for name, home in rlbook._HOME.items()}
    packages = {("rlbook", package) for package in rlbook._PACKAGES - rlbook._NAMES.keys()}
    assert sorted(imports) == sorted(homes | packages)


def test_every_package_is_reachable():
    on_disk = {file.stem for file in (ROOT / "rlbook").glob("[a-z]*.py")}
    on_disk |= {init.parent.name for init in (ROOT / "rlbook").glob("*/__init__.py")}
    assert on_disk == rlbook._PACKAGES
    for package in on_disk:
        assert getattr(rlbook, package) is importlib.import_module(f"rlbook.{package}")


# ---------------------------------------------------------------- versions


def test_every_constraint_is_one_exact_version():
    assert all(re.fullmatch(r"==[\w.]+", pin) for pin in pins(CONSTRAINTS).values())
    assert len(pins(CONSTRAINTS)) == len(CONSTRAINTS)


def test_every_dependency_is_pinned_within_its_range():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    dependencies = [Requirement(text) for group in groups for text in group if not text.startswith("rlbook[")]
    for dependency in dependencies:
        version = pins(CONSTRAINTS)[dependency.name].removeprefix("==")
        assert version in dependency.specifier, dependency


# ---------------------------------------------------------------- Binder


def test_binder_takes_a_cpu_build_of_the_pinned_torch():
    lines = (ROOT / "binder/requirements.txt").read_text().splitlines()
    options = [line for line in lines if line.startswith("-")]
    assert options == ["--extra-index-url https://download.pytorch.org/whl/cpu"]
    requirements = [Requirement(line) for line in lines if line and line[0] not in "-#"]
    assert pins(requirements) == {"torch": pins(CONSTRAINTS)["torch"] + "+cpu"}


def test_binder_runs_a_supported_python():
    version = re.fullmatch(r"python-(3\.\d+)\n", (ROOT / "binder/runtime.txt").read_text())
    assert version is not None
    assert version[1] in Requirement(f"python{PROJECT['requires-python']}").specifier


def test_binder_installs_the_course_and_keeps_memory_low():
    commands = (ROOT / "binder/postBuild").read_text()
    assert "pip install --no-cache-dir -c constraints.txt -e '.[lab]'" in commands
    assert 'exec "$@"' in (ROOT / "binder/start").read_text()
    assert not (ROOT / "binder/apt.txt").exists()
    for script in ("postBuild", "start"):
        subprocess.run(["bash", "-n", ROOT / "binder" / script], check=True)


# ---------------------------------------------------------------- links


def documents() -> list[Path]:
    folders = (ROOT / "knowledge_base", ROOT / "tutorials", ROOT / "notebooks")
    return [*ROOT.glob("*.md"), *(file for folder in folders for file in folder.glob("*.[mp][dy]"))]


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    if document.suffix == ".py":
        text = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)", text)
    assert [target for target in targets if not (document.parent / target).exists()] == []


# ---------------------------------------------------------------- tools and fixtures


def test_a_process_left_behind_is_found():
    command = f"{sys.executable} -c import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert command in left_behind(patience=0)
    finally:
        process.kill()
        process.wait()
    assert command not in left_behind(patience=0)


def test_code_lines_leave_out_blanks_comments_and_docstrings():
    source = '''"""Module."""

import os  # yes
# no

def f(
    x,
):
    """Doc

    string."""
    text = """yes
    yes"""
    return x
'''
    assert count_lines.code_lines(source) == 7  # the import, three of def, two of the text, the return


def test_the_import_closure_follows_names_to_where_they_are_defined(tmp_path):
    files = {
        "toy/__init__.py": "from toy.a import A\nfrom toy.b import B\n",
        "toy/a.py": "from toy import keys\nclass A: ...\n",
        "toy/b.py": "import toy.keys\nclass B: ...\n",
        "toy/late.py": "Y = 2\n",
        "toy/keys.py": "X = 1\n",
        "toy/use.py": "from toy import A\nif TYPE_CHECKING:\n    from toy.b import B\ndef f():\n    from . import late\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    at_import = {"toy.use": 5, "toy.a": 2, "toy.keys": 1}
    assert count_lines.import_closure("toy.use", tmp_path / "toy") == at_import
    assert count_lines.import_closure("toy.use", tmp_path / "toy", lazy=True) == at_import | {"toy.late": 1}


LOSSES = [file.stem for file in (ROOT / "rlbook/losses").glob("[a-z]*.py") if "update" not in file.stem]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_can_be_read_whole(name):
    closure = count_lines.import_closure(f"rlbook.losses.{name}", ROOT / "rlbook")
    assert sum(closure.values()) <= 1200, closure


def test_the_readme_program_runs() -> None:
    """The README's PPO is code that works: here for two batches."""
    program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert program is not None
    short = program[1].replace("total_frames=40_000", "total_frames=512")
    assert short != program[1]
    done = subprocess.run([sys.executable, "-c", short], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kl") == 2
