"""Every lesson's notebook is what its script gives and fit to publish; and the check that says so catches each fault."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from tools import notebooks

SCRIPTS = notebooks.find_scripts()
LESSON = """# %% [markdown]
# # A lesson
# BADGES

# %%
import sys

if "google.colab" in sys.modules:
    get_ipython()

# %%
import os

from IPython.display import HTML, display

display(HTML("<b>bold</b>"))
display({"image/png": "iVBORw0KGgo=", "text/plain": "a picture"}, raw=True)
display({"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "Slider()"}, raw=True)
display({"application/vnd.jupyter.widget-view+json": {}, "image/png": "iVBORw0KGgo="}, raw=True)
print("10%\\r100%")
print("a warning", file=sys.stderr)
print(os.environ["RLBOOK_RUN_MODE"], os.path.basename(os.getcwd()))
object()

# %% tags=["solution"] jupyter={"source_hidden": true}
answer = 6 * 7
answer
"""


def problems_of(script: Path) -> str:
    return "\n".join(notebooks.check(script))


def write(folder: Path, text: str = LESSON) -> Path:
    script = folder / "notebooks" / "lesson.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(text.replace("BADGES", notebooks.badges(script).replace("\n", "\n# ")))
    return script


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, str]:
    """Build the lesson once; return the texts of its pair."""
    script = write(tmp_path_factory.mktemp("published"))
    target = notebooks.build(script)
    return {script.name: script.read_text(), target.name: target.read_text()}


@pytest.fixture
def lesson(published, tmp_path) -> Path:
    """A fresh copy of the published pair, to damage."""
    script = write(tmp_path)
    for name, text in published.items():
        (script.parent / name).write_text(text)
    return script


def edit(script: Path, change) -> None:
    """Apply ``change`` to the published notebook, and record its cells anew so that only the change itself is wrong."""
    target = script.with_suffix(".ipynb")
    notebook = nbformat.read(target, as_version=4)
    change(notebook)
    notebook.metadata["rlbook"]["cells"] = notebooks.cells_hash(notebook)
    nbformat.write(notebook, target)


# ---------------------------------------------------------------- the lessons


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_pair_is_fresh_and_fit_to_publish(script):
    assert notebooks.check(script) == []


# ---------------------------------------------------------------- build


def test_a_published_pair_passes(lesson):
    assert notebooks.check(lesson) == []


def test_the_published_notebook_keeps_pictures_html_and_text(published):
    outputs = json.loads(published["lesson.ipynb"])["cells"][2]["outputs"]
    assert [sorted(output.get("data", [output.get("name")])) for output in outputs] == [
        ["text/html", "text/plain"],
        ["image/png", "text/plain"],
        ["image/png"],
        ["stdout"],
        ["text/plain"],
    ]
    assert outputs[3]["text"] == ["100%\n", "cell notebooks\n"]
    assert outputs[4]["data"]["text/plain"] == ["<object at 0x...>"]


def test_the_published_notebook_says_nothing_of_its_run(published):
    notebook = json.loads(published["lesson.ipynb"])
    assert set(notebook["metadata"]) == {"kernelspec", "language_info", "rlbook"}
    assert "version" not in notebook["metadata"]["language_info"]
    assert notebook["cells"][3]["metadata"] == {"tags": ["solution"], "jupyter": {"source_hidden": True}}
    assert [cell["execution_count"] for cell in notebook["cells"][1:]] == [1, 2, 3]


def test_building_again_gives_the_same_bytes(lesson, published):
    assert notebooks.build(lesson).read_text() == published["lesson.ipynb"]


def test_prose_is_published_without_executing(lesson, published, monkeypatch):
    monkeypatch.setattr(notebooks, "execute", lambda *arguments: pytest.fail("executed"))
    assert notebooks.reword(lesson).read_text() == published["lesson.ipynb"]
    lesson.write_text(published["lesson.py"] + "\n# %% [markdown]\n# One more word.\n")
    assert "differ from the script" in problems_of(lesson)
    notebooks.reword(lesson)
    assert problems_of(lesson) == ""
    assert '"100%\\n"' in lesson.with_suffix(".ipynb").read_text()  # what was put out is still there


def test_code_is_not_published_without_executing(lesson, published):
    lesson.write_text(published["lesson.py"].replace("6 * 7", "6 * 8"))
    with pytest.raises(notebooks.NotebookError, match="code has changed"):
        notebooks.reword(lesson)
    lesson.write_text(published["lesson.py"])
    target = lesson.with_suffix(".ipynb")
    target.write_text(target.read_text().replace("cell notebooks", "cell elsewhere"))
    with pytest.raises(notebooks.NotebookError, match="edited by hand"):
        notebooks.reword(lesson)


def test_ids_follow_the_contents_and_stay_apart(tmp_path):
    script = write(tmp_path, "# %%\n1\n\n# %%\n1\n\n# %%\n2\n")
    first, second, third = (cell.id for cell in notebooks.read_script(script).cells)
    assert second == f"{first}-2"
    write(tmp_path, "# %%\n2\n\n# %%\n1\n")
    assert [cell.id for cell in notebooks.read_script(script).cells] == [third, first]


def test_a_failing_cell_stops_the_build(tmp_path):
    script = write(tmp_path, "# %%\n1 / 0\n")
    with pytest.raises(notebooks.NotebookError, match="ZeroDivisionError: division by zero"):
        notebooks.build(script)
    assert not script.with_suffix(".ipynb").exists()


def test_an_endless_cell_stops_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "CELL_TIMEOUT", 1)
    with pytest.raises(notebooks.NotebookError, match="a cell took longer than 1 s"):
        notebooks.build(write(tmp_path, "# %%\nwhile True: ...\n"))


# ---------------------------------------------------------------- check


def test_a_missing_notebook_is_reported(lesson):
    lesson.with_suffix(".ipynb").unlink()
    assert notebooks.find_scripts(lesson.parent.parent) == [lesson]
    assert "lesson.py has no notebook" in problems_of(lesson)


def test_a_missing_script_is_reported(lesson):
    lesson.unlink()
    assert notebooks.find_scripts(lesson.parent.parent) == [lesson]
    assert "lesson.ipynb has no script lesson.py" in problems_of(lesson)


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ("6 * 7", "6 * 8", "the cells differ from the script's"),
        ("# # A lesson", "# # Another lesson", "the cells differ from the script's"),
        ("answer\n", "answer\n\n\n", "the script has changed since the notebook was published"),
    ],
)
def test_a_stale_notebook_is_reported(lesson, old, new, problem):
    lesson.write_text(lesson.read_text().replace(old, new))
    assert problem in problems_of(lesson)


def test_a_notebook_run_by_hand_is_reported(lesson):
    target = lesson.with_suffix(".ipynb")
    target.write_text(target.read_text().replace('"42"', '"43"'))
    assert problems_of(lesson) == "the notebook was run or edited by hand after it was published. Run: make notebooks"


@pytest.mark.parametrize(
    "output, problem",
    [
        (nbformat.v4.new_output("error", ename="ValueError", evalue="no"), "cell 4: its output is an error, ValueError: no"),
        (nbformat.v4.new_output("display_data", {notebooks.WIDGET_MIME: {}}), "cell 4: its output is a live widget"),
        (nbformat.v4.new_output("stream", text="in /home/me/rlbook"), "names a path of the machine it ran on: /home/me/rlbook"),
        (nbformat.v4.new_output("stream", text=f"{notebooks.ROOT}/x.py"), "names a path of the machine it ran on"),
        (nbformat.v4.new_output("stream", text="x" * 300_000), "more than 300: cell 4 has 300 kB"),
    ],
)
def test_an_output_unfit_to_publish_is_reported(lesson, output, problem):
    edit(lesson, lambda notebook: notebook.cells[3].outputs.append(output))
    assert problem in problems_of(lesson)


def test_pictures_and_links_are_no_paths_of_a_machine(lesson):
    html = '<img src="data:image/png;base64,AA/home/AA=="> <a href="https://example.org/home/page">x</a>'
    edit(lesson, lambda notebook: notebook.cells[3].outputs.append(nbformat.v4.new_output("display_data", {"text/html": html})))
    assert notebooks.check(lesson) == []


def test_saved_widgets_are_reported(lesson):
    edit(lesson, lambda notebook: notebook.metadata.update(widgets={"state": {}}))
    assert "the metadata hold saved widgets" in problems_of(lesson)


def test_missing_badges_and_install_cell_are_reported(tmp_path):
    found = "\n".join(notebooks.link_problems(notebooks.read_script(write(tmp_path, "# %%\n1\n")), tmp_path / "notebooks/a.py"))
    assert "the first cell lacks the line of badges. Take it from: python tools/notebooks.py links notebooks/a.py" in found
    assert "no cell installs rlbook on Colab" in found


def test_what_links_prints_is_a_fit_opening(tmp_path, capsys):
    path = tmp_path / "tutorials" / "new.py"
    notebooks.main(["links", str(path)])
    script = write(tmp_path, capsys.readouterr().out)
    assert list(notebooks.link_problems(notebooks.read_script(script), path)) == []


# ---------------------------------------------------------------- command line


def test_the_command_line_builds_what_is_stale_and_reports_the_rest(lesson, capsys, monkeypatch):
    built = []
    monkeypatch.setattr(notebooks, "build", lambda script: built.append(script) or script)
    assert not notebooks.main(["build", "--stale", str(lesson)])
    assert built == []
    lesson.write_text(lesson.read_text() + "\n# %%\n1\n")
    assert notebooks.main(["check", str(lesson)])
    assert "notebooks/lesson: the cells differ" in capsys.readouterr().out
    assert not notebooks.main(["build", "--stale", str(lesson.with_suffix(".ipynb"))])
    assert built == [lesson]
