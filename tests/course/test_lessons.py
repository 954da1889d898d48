"""The lessons keep their promises: every folded solution is right, every exercise is asked once, every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rlbook.course import all_exercises, all_questions, check
from rlbook.course.check import examine

ROOT = Path(__file__).parents[2]
CHECK = re.compile(r'^(\w+) = check\("(\w+)", (\w+)\)$', re.MULTILINE)
TUTORIALS = [path for path in (ROOT / "tutorials").glob("*.py") if CHECK.search(path.read_text())]  # those with exercises
LESSONS = sorted([*(ROOT / "notebooks").glob("*.py"), *TUTORIALS])
ASK = re.compile(r'^ask\("(.+)"\)$', re.MULTILINE)
SOLUTION = re.compile(r"<details><summary><b>Solution</b></summary>.*?```python\n(.*?)```.*?</details>", re.DOTALL)
STUB = r"^def {name}\(.*?(?=^\S|\Z)"
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)


def uncommented(lesson: Path) -> str:
    return re.sub(r"^# ?", "", lesson.read_text(), flags=re.MULTILINE)


def functions_of(code: str) -> dict:
    found: dict = {"torch": torch}
    exec(code, found)
    return found


def test_every_exercise_and_every_question_is_asked_in_one_lesson():
    checked = [name for lesson in LESSONS for _, name, _ in CHECK.findall(lesson.read_text())]
    assert sorted(checked) == sorted(all_exercises())
    asked = [name for lesson in LESSONS for name in ASK.findall(lesson.read_text())]
    assert sorted(asked) == sorted(all_questions())


@each_lesson
def test_a_check_gives_its_name_to_what_goes_on(lesson):
    assert 1 <= len(CHECK.findall(lesson.read_text())) <= 5
    for target, name, function in CHECK.findall(lesson.read_text()):
        assert target == name == function


@each_lesson
def test_the_folded_solutions_are_right(lesson, monkeypatch):
    monkeypatch.setenv("RLBOOK_STRICT", "1")
    names = [name for _, name, _ in CHECK.findall(lesson.read_text())]
    solutions = functions_of("\n".join(SOLUTION.findall(uncommented(lesson))))
    for name in names:
        assert check(name, solutions[name]) is solutions[name]


@each_lesson
def test_the_stubs_are_open_and_take_the_arguments_of_the_reference(lesson):
    text = lesson.read_text()
    for _, name, _ in CHECK.findall(text):
        stub = re.search(STUB.format(name=name), text, re.MULTILINE | re.DOTALL)
        exercise = all_exercises()[name]
        assert f"def {exercise.call}:" in stub[0]
        assert examine(exercise, functions_of(stub[0])[name]).state == "open"


@each_lesson
def test_the_links_to_other_pages_lead_somewhere(lesson):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", lesson.read_text())
    assert links
    for link in links:
        assert (lesson.parent / link).with_suffix(".py").exists(), link


@each_lesson
def test_code_is_narrow_enough_for_a_notebook(lesson):
    cells = re.split(r"^# %%", lesson.read_text(), flags=re.MULTILINE)
    wide = [line for cell in cells if not cell.startswith(" [markdown]") for line in cell.splitlines() if len(line) > 110]
    assert wide == []
