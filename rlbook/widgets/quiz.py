"""A multiple-choice question whose answer reaches Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rlbook.errors import ConfigError, explain
from rlbook.widgets._front import Bundle, View
from rlbook.widgets._text import plain, rich


class Quiz(View):
    """A question with one right answer, and an explanation for each option.

    Args:
        question: the question; `backticks` mark code and *asterisks* emphasis, here and below.
        options: what to choose from.
        answer: the right option: its text or its position.
        explain: why an option is right or wrong, by its text or its position.

    Attributes:
        value: the option chosen last, None before.
        correct: whether it is the right one, None before a choice.
        tries: how many choices were made.

    Example:
        >>> quiz = Quiz("What does gamma = 0 mean?", ["Only the next reward counts", "All rewards count"], answer=0)
        >>> quiz.choose("All rewards count")
        False
    """

    module: ClassVar[str] = "quiz"

    def __init__(
        self,
        question: str,
        options: Sequence[str],
        answer: str | int,
        explain: Mapping[str | int, str] | Sequence[str] | None = None,
    ):
        super().__init__()
        self.question, self.options = question, list(options)
        _check_options(self.options)
        self._answer = self._position(answer, "answer")
        notes = dict(explain) if isinstance(explain, Mapping) else dict(enumerate(explain or []))
        self._notes = {self._position(option, "explain"): note for option, note in notes.items()}
        self._chosen: int | None = None
        self.tries = 0

    @property
    def value(self) -> str | None:
        """The option chosen last."""
        return None if self._chosen is None else self.options[self._chosen]

    @property
    def correct(self) -> bool | None:
        """Is the chosen option the right one?"""
        return None if self._chosen is None else self._chosen == self._answer

    def choose(self, option: str | int) -> bool:
        """Answer from Python; return whether that was right."""
        self._chosen = self._position(option, "option")
        self.tries += 1
        self._tell()
        return self._chosen == self._answer

    def _position(self, option: str | int, what: str) -> int:
        if isinstance(option, str) and option in self.options:
            return self.options.index(option)
        if isinstance(option, int) and 0 <= option < len(self.options):
            return option
        raise ConfigError(explain(what, f"one of {self.options} or its position", repr(option), "Copy the text of the option"))

    def _config(self) -> dict[str, Any]:
        return {
            "question": rich(self.question),
            "options": [rich(option) for option in self.options],
            "notes": [rich(self._notes.get(i, "")) for i in range(len(self.options))],
            "answer": self._answer,
        }

    def _tell(self) -> None:
        self._send({"kind": "chosen", "index": self._chosen})

    def _hear(self, message: dict[str, Any]) -> None:
        if message.get("kind") == "answer":
            self._chosen = self._position(message["index"], "option")
            self.tries += 1
        self._tell()

    def _still(self) -> Bundle:
        options = "".join(f"<li>{rich(option)}</li>" for option in self.options)
        note = self._notes.get(self._answer, "")
        folded = f"<details><summary>Answer</summary><b>{rich(self.options[self._answer])}</b> {rich(note)}</details>"
        return {"text/plain": repr(self), "text/html": f"<b>{rich(self.question)}</b><ul>{options}</ul>{folded}"}, {}

    def __repr__(self) -> str:
        lines = [f"  ({chr(97 + i)}) {plain(option)}" for i, option in enumerate(self.options)]
        return "\n".join([plain(self.question), *lines])


def _check_options(options: Sequence[str]) -> None:
    if len(options) < 2 or len(set(options)) < len(options):
        raise ConfigError(explain("options", "at least two different texts", repr(list(options)), "Add or change an option"))
