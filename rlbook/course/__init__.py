"""The course's own tools.

``check`` compares what a learner wrote with the reference, and says kindly what went wrong. ``ask`` shows a question.
``explore`` puts sliders on a figure.
"""

from rlbook.course.ask import ask
from rlbook.course.check import CourseError, check
from rlbook.course.exercise import Exercise, Question, all_exercises, all_questions, find_exercise, find_question
from rlbook.course.explore import explore

__all__ = [
    "CourseError",
    "Exercise",
    "Question",
    "all_exercises",
    "all_questions",
    "ask",
    "check",
    "explore",
    "find_exercise",
    "find_question",
]
