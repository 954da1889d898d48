"""The course's own tools: ``check`` compares what a learner wrote with the reference, and says kindly what went wrong."""

from rlbook.course.check import CourseError, check
from rlbook.course.exercise import Exercise, all_exercises, find_exercise

__all__ = ["CourseError", "Exercise", "all_exercises", "check", "find_exercise"]
