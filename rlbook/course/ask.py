"""``ask("name")``: a question of the course."""

from __future__ import annotations

from rlbook.course.exercise import find_question
from rlbook.widgets.quiz import Quiz


def ask(name: str) -> Quiz:
    """Return the question called ``name``, to be shown and answered.

    Raises:
        ConfigError: there is none of this name.

    Example:
        >>> from rlbook.course import ask
        >>> ask("time-out").choose("Yes, an episode that ends is bad")
        False
    """
    question = find_question(name)
    return Quiz(question.text, list(question.options), question.answer, list(question.options.values()))
