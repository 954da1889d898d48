"""The course's own tools.

``check`` compares what a learner wrote with the reference, and says kindly what went wrong; ``explore`` puts sliders on a figure.
"""

from rlbook.course.check import CourseError, check
from rlbook.course.exercise import Exercise, all_exercises, find_exercise
from rlbook.course.explore import explore

__all__ = ["CourseError", "Exercise", "all_exercises", "check", "explore", "find_exercise"]
