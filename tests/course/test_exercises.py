"""Every exercise: its reference passes, and every mistake it lists is diagnosed with its own message."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from rlbook.course import all_exercises, all_questions, ask, check, find_exercise
from rlbook.course.attempt import Trouble
from rlbook.course.check import examine
from rlbook.course.diagnose import judge
from rlbook.errors import ConfigError

EXERCISES = list(all_exercises().values())
MISTAKES = [
    pytest.param(exercise, message, id=f"{exercise.name}-{number}")
    for exercise in EXERCISES
    for number, message in enumerate(exercise.mistakes)
]
each = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)


@each
def test_the_reference_passes(exercise, capsys):
    assert check(exercise.name, exercise.reference) is exercise.reference
    assert capsys.readouterr().out.startswith(f"\N{CHECK MARK} {exercise.name}: ")


@pytest.mark.parametrize("exercise, message", MISTAKES)
def test_a_mistake_is_named(exercise, message):
    verdict = judge(exercise.mistakes[message], exercise)
    assert not verdict.right
    assert verdict.says == message


@each
def test_it_has_hints_that_come_in_steps_and_plain_words(exercise):
    assert 2 <= len(exercise.hints) <= 4
    assert len(exercise.mistakes) >= 3
    for text in (*exercise.hints, *exercise.mistakes):
        assert text.count("`") % 2 == 0, text
        assert text.endswith((".", "?")), text


@each
def test_the_inputs_are_the_same_each_time_and_differ_between_draws(exercise):
    assert repr(exercise.draw(0)) == repr(exercise.draw(0))
    assert repr(exercise.draw(0)) != repr(exercise.draw(1))


@each
def test_an_empty_stub_is_open(exercise):
    def stub(*arguments): ...

    assert examine(exercise, stub).state == "open"


@pytest.mark.parametrize("question", all_questions().values(), ids=lambda question: question.name)
def test_a_question_has_one_answer_and_something_to_say_to_each(question):
    quiz = ask(question.name)
    assert quiz.question == question.text
    assert [quiz.choose(option) for option in question.options].count(True) == 1
    assert all(note.endswith((".", "!", "?")) for note in question.options.values())


def test_an_unknown_question_is_explained():
    with pytest.raises(
        ConfigError, match=r"The name given to ask must be that of a question; got 'timeout'. Did you mean one of: time-out"
    ):
        ask("timeout")


def test_lists_arrays_and_text():
    terms = find_exercise("awr_terms")
    assert judge(lambda log_prob, weight, value, target: list(terms.reference(log_prob, weight, value, target)), terms).right
    policy = find_exercise("my_policy")
    for wrong in (lambda o: o > 0, lambda o: np.array([1, 0]), lambda o: torch.zeros(2)):
        with pytest.raises(Trouble, match=r"An action is 0 .* it returns an array of shape"):
            judge(wrong, policy)
    total = find_exercise("discounted_return")
    assert not judge(lambda rewards, gamma: str(total.reference(rewards, gamma)), total).right
    with pytest.raises(Trouble, match="It ends the program"):
        judge(lambda rewards, gamma: sys.exit(), total)
