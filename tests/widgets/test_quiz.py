"""Quiz: choices reach Python, and a saved notebook reads well."""

from __future__ import annotations

import pytest

from rlbook.errors import ConfigError
from rlbook.widgets import Quiz

OPTIONS = ["Only the next reward counts", "All rewards count", "Nothing is learned"]


def quiz(**changes) -> Quiz:
    arguments = {
        "question": "What does `gamma = 0` mean?",
        "options": OPTIONS,
        "answer": 0,
        "explain": {0: "Yes: `r`.", 1: "No."},
    }
    return Quiz(**{**arguments, **changes})


class Page:
    def __init__(self) -> None:
        self.sent: list[dict] = []

    def send(self, message, buffers) -> None:
        self.sent.append(message)


def test_nothing_is_chosen_at_first():
    asked = quiz()
    assert (asked.value, asked.correct, asked.tries) == (None, None, 0)


def test_a_click_reaches_python():
    asked = quiz()
    asked._widget = page = Page()
    asked._hear({"kind": "answer", "index": 1})
    assert (asked.value, asked.correct, asked.tries) == ("All rewards count", False, 1)
    asked._hear({"kind": "answer", "index": 0})
    assert (asked.value, asked.correct, asked.tries) == (OPTIONS[0], True, 2)
    assert page.sent[-1] == {"kind": "chosen", "index": 0}


def test_a_page_that_opens_late_learns_the_choice():
    asked = quiz()
    asked.choose(1)
    asked._widget = page = Page()
    asked._hear({"kind": "hello"})
    assert page.sent == [{"kind": "chosen", "index": 1}]
    assert asked.tries == 1


def test_answers_from_python_by_text_or_position():
    asked = quiz(answer="All rewards count")
    assert asked.choose("All rewards count") is True
    assert asked.choose(2) is False


def test_the_page_gets_escaped_text():
    config = quiz(options=["a < b", "`x & y`"], explain=["", "<i>"])._config()
    assert config["question"] == "What does <code>gamma = 0</code> mean?"
    assert config["options"] == ["a &lt; b", "<code>x &amp; y</code>"]
    assert config["notes"] == ["", "&lt;i&gt;"]


@pytest.mark.parametrize(
    "text, html, terminal",
    [
        ("the *next* step", "the <em>next</em> step", "the next step"),
        ("*not* `a * b * c`, *twice*", "<em>not</em> <code>a * b * c</code>, <em>twice</em>", "not `a * b * c`, twice"),
        ("2 * 3 * 4, a*b*c and x**2 + y**2", "2 * 3 * 4, a*b*c and x**2 + y**2", "2 * 3 * 4, a*b*c and x**2 + y**2"),
        ("*args, and **options", "*args, and **options", "*args, and **options"),
    ],
)
def test_asterisks_are_emphasis_outside_code(text, html, terminal):
    asked = quiz(question=text)
    assert asked._config()["question"] == html
    assert asked._still()[0]["text/html"].startswith(f"<b>{html}</b>")
    assert repr(asked).splitlines()[0] == terminal


def test_a_saved_notebook_folds_the_answer():
    data, _ = quiz()._still()
    before, after = data["text/html"].split("<details>")
    assert "All rewards count" in before
    assert "<summary>Answer</summary><b>Only the next reward counts</b> Yes: <code>r</code>." in after
    assert data["text/plain"].splitlines()[1] == "  (a) Only the next reward counts"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"answer": 3}, r"answer must be one of .* or its position; got 3"),
        ({"answer": "Maybe"}, r"answer must be one of .* got 'Maybe'. Copy the text"),
        ({"explain": {"Maybe": "x"}}, r"explain must be one of .* got 'Maybe'"),
        ({"options": ["a"], "explain": None}, r"options must be at least two different texts; got \['a'\]"),
        ({"options": ["a", "a"], "explain": None}, "at least two different texts"),
    ],
)
def test_explains_a_wrong_question(changes, message):
    with pytest.raises(ConfigError, match=message):
        quiz(**changes)


def test_explains_a_wrong_choice():
    with pytest.raises(ConfigError, match="option must be one of"):
        quiz().choose("Maybe")
