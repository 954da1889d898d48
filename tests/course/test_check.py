"""``check`` returns what the lesson goes on with, and explains whatever a learner's function does."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
import torch

from rlbook.course import CourseError, attempt, check, find_exercise
from rlbook.course import check as check_module
from rlbook.course.attempt import is_stub
from rlbook.course.check import examine
from rlbook.course.diagnose import judge
from rlbook.course.exercise import Exercise
from rlbook.envs import CartPole
from rlbook.errors import ConfigError, PolicyError
from rlbook.functional import importance_ratio, ppo_clip_loss

RETURN = find_exercise("discounted_return")
CLIP = find_exercise("clip_loss")


@pytest.fixture(autouse=True)
def nobody_asked_before(monkeypatch):
    monkeypatch.setattr(sys.modules["rlbook.course.check"], "_asked", type(sys.modules["rlbook.course.check"]._asked)())


def right(rewards, gamma):
    total = 0.0
    for t, reward in enumerate(rewards):
        total += gamma**t * reward
    return total


def says(exercise, function) -> str:
    report = examine(exercise, function)
    assert report.state == "wrong"
    return report.says


# ---- what is returned -----------------------------------------------------------------------------------------------------
def test_a_right_function_is_returned(capsys):
    assert check("discounted_return", right) is right
    assert capsys.readouterr().out == "✓ discounted_return: Right, on 15 random inputs. The lesson goes on with yours.\n"


def test_a_wrong_one_is_replaced_by_the_reference_with_an_example(capsys):
    assert check("discounted_return", lambda rewards, gamma: sum(rewards)) is RETURN.reference
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("✗ discounted_return: You add the rewards up without discounting")
    assert lines[0].endswith("The lesson goes on with the reference.")
    rows = dict(line.split(maxsplit=1) for line in lines[1:5])
    assert list(rows) == ["rewards", "gamma", "yours", "reference"]
    rewards = eval(rows["rewards"])
    assert float(rows["yours"]) == pytest.approx(sum(rewards), abs=2e-3)
    assert float(rows["reference"]) == pytest.approx(right(rewards, float(rows["gamma"])), abs=2e-3)


def test_a_module_or_a_class_instance_may_be_right_too():
    class Ratio(torch.nn.Module):
        def forward(self, new, old):
            return (new - old.detach()).exp()

    module = Ratio()
    assert check("importance_ratio", module) is module


@pytest.mark.parametrize("given", [torch.tensor, float, np.float32, Fraction])
def test_a_number_may_come_as_a_tensor_of_one_element(given):
    assert examine(RETURN, lambda rewards, gamma: given(right(rewards, gamma))).state == "solved"


# ---- unsolved -------------------------------------------------------------------------------------------------------------
def not_implemented(rewards, gamma):
    raise NotImplementedError


def empty(rewards, gamma):
    """Return the return."""


def hole(rewards, gamma):
    return ...


def hole_inside(rewards, gamma):
    return gamma * ...


def hole_in_a_tensor(rewards, gamma):
    out = torch.zeros(2)
    out[0] = ...
    return out


@pytest.mark.parametrize("function", [None, ..., not_implemented, empty, hole, hole_inside, hole_in_a_tensor])
def test_an_unsolved_exercise_is_open(function, capsys):
    assert check("discounted_return", function) is RETURN.reference
    assert capsys.readouterr().out == (
        "○ discounted_return: Not solved yet. The lesson goes on with the reference.\n  2 hints left: run this cell again.\n"
    )


def test_a_function_that_works_but_forgets_to_return_is_no_stub():
    def forgets(rewards, gamma):
        total = sum(rewards)  # noqa: F841

    assert not is_stub(forgets)
    assert says(RETURN, forgets).startswith("It returns None. Is the `return` missing?")


def test_a_constant_is_no_stub():
    assert not is_stub(lambda rewards, gamma: 0.0)


# ---- hints ----------------------------------------------------------------------------------------------------------------
def hints_shown(report) -> list[str]:
    return [line for line in report.lines() if line.startswith("Hint")]


def test_asking_again_shows_one_more_hint_until_there_are_none():
    reports = [examine(RETURN, empty) for _ in range(4)]
    assert [len(hints_shown(report)) for report in reports] == [0, 1, 2, 2]
    assert reports[1].lines()[-1] == "1 hint left: run this cell again."
    assert reports[3].lines()[-1] == "No hints left; the solution is folded below."


def test_hints_may_be_asked_for_by_number(capsys):
    check("discounted_return", empty, hint=2)
    assert capsys.readouterr().out.count("Hint") == 2
    check("discounted_return", empty)
    assert capsys.readouterr().out.count("Hint") == 2


def test_a_solved_exercise_shows_none():
    examine(RETURN, empty)
    assert hints_shown(examine(RETURN, right)) == []


@pytest.mark.parametrize("hint", [-1, 3, "1"])
def test_a_hint_that_is_not_there_is_explained(hint):
    with pytest.raises(ConfigError, match=r"hint must be from 0 to 2; got .*Leave it out"):
        check("discounted_return", empty, hint=hint)


def test_an_unknown_name_is_explained():
    with pytest.raises(ConfigError, match=r"must be that of an exercise; got 'cliploss'. Did you mean one of: clip_loss"):
        check("cliploss", right)


# ---- strict ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("function, state", [(empty, "○"), (lambda rewards, gamma: sum(rewards), "✗")])
def test_under_strict_what_is_not_solved_raises(monkeypatch, function, state):
    monkeypatch.setenv("RLBOOK_STRICT", "1")
    with pytest.raises(CourseError, match=f"^{state} discounted_return"):
        check("discounted_return", function)
    with pytest.raises(AssertionError):  # what graders expect
        check("discounted_return", function)


def test_under_strict_a_right_function_passes(monkeypatch):
    monkeypatch.setenv("RLBOOK_STRICT", "1")
    assert check("discounted_return", right) is right


# ---- whatever a function does -----------------------------------------------------------------------------------------------
def test_what_it_raises_is_told_with_its_line():
    def raises(rewards, gamma):
        return rewards / gamma

    text = says(RETURN, raises)
    assert "It raises TypeError: unsupported operand type(s) for /: 'list' and 'float' (line " in text
    assert "`return rewards / gamma`)." in text


def test_an_endless_loop_is_stopped(monkeypatch):
    monkeypatch.setattr(attempt, "LIMIT_S", 0.2)

    def endless(rewards, gamma):
        while True:
            pass

    begun = time.perf_counter()
    assert says(RETURN, endless).startswith("It was still busy after 0 seconds, so it was stopped.")
    assert time.perf_counter() - begun < 30


def test_an_endless_loop_that_swallows_exceptions_is_stopped(monkeypatch):
    monkeypatch.setattr(attempt, "LIMIT_S", 0.2)

    def endless(rewards, gamma):
        while True:
            try:
                gamma += 1
            except Exception:
                gamma = 0

    assert "so it was stopped" in says(RETURN, endless)


def test_the_clock_of_a_fast_function_never_rings_later(monkeypatch):
    monkeypatch.setattr(attempt, "LIMIT_S", 0.01)
    assert examine(RETURN, right).state == "solved"
    end = time.perf_counter() + 0.05
    while time.perf_counter() < end:
        pass


def test_what_the_reference_loads_when_first_called_does_not_count(monkeypatch):
    monkeypatch.setattr(attempt, "LIMIT_S", 0.5)
    loaded = []

    def reference(x):
        if not loaded:
            time.sleep(1.0)
            loaded.append("a compiler")
        return 2 * x

    exercise = Exercise(name="double", reference=reference, inputs=lambda _: {"a number": (3.0,)}, mistakes={})
    assert judge(lambda x: reference(x), exercise).right


def test_endless_recursion_is_told():
    def recursive(rewards, gamma):
        return recursive(rewards, gamma)

    assert says(RETURN, recursive).startswith("It calls itself without end.")


def test_a_changed_argument_is_told():
    def changes_list(rewards, gamma):
        rewards.append(0.0)
        return right(rewards, gamma)

    def changes_tensor(ratio, advantage, clip_eps):
        loss = ppo_clip_loss(ratio, advantage, clip_eps)
        ratio.clamp_(0.8, 1.2)
        return loss

    assert says(RETURN, changes_list).startswith("It changes its argument `rewards` in place")
    assert "`ratio = ratio.clone()`" in says(CLIP, changes_tensor)


def test_the_exercise_itself_survives_a_function_that_changes_its_arguments():
    def changes(rewards, gamma):
        rewards.clear()
        return 0.0

    before = repr(RETURN.draw(0))
    says(RETURN, changes)
    assert repr(RETURN.draw(0)) == before


def test_what_it_prints_is_shown_once(capsys):
    def prints(rewards, gamma):
        print("rewards are", len(rewards))
        return right(rewards, gamma)

    assert check("discounted_return", prints) is prints
    assert capsys.readouterr().out.splitlines()[1:] == ["    it prints  rewards are 6"]


def test_what_it_printed_before_it_raised_is_shown():
    def prints(rewards, gamma):
        print("so far so good")
        raise ValueError("no")

    assert examine(RETURN, prints).example == (("it prints", "so far so good"),)


@pytest.mark.parametrize(
    "function, message",
    [
        (3.5, "Hand over the function itself"),
        (lambda rewards: 0.0, r"It is called as `discounted_return\(rewards, gamma\)`; yours is `<lambda>\(rewards\)`"),
        (lambda rewards, gamma: "much", "What it returns must be one number; it is a `str`"),
        (lambda rewards, gamma: rewards, "What it returns must be one number"),
        (lambda rewards, gamma: float("nan"), "The numbers differ"),
    ],
)
def test_a_wrong_kind_is_told(function, message):
    report = examine(RETURN, function)
    assert report.state == "wrong"
    assert re.match(message, report.says), report.says


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda r, a, e: [1.0], "What it returns must be a tensor"),
        (lambda r, a, e: ppo_clip_loss(r, a, e).sum().item(), "that gradients can flow"),
        (lambda r, a, e: ppo_clip_loss(r, a, e).double(), "It is right where the inputs are float64, but not where"),
        (lambda r, a, e: ppo_clip_loss(r, a, e).unsqueeze(-1), r"Drop the trailing 1: `.squeeze\(-1\)`"),
        (lambda r, a, e: -r * a[:, None], "Two shapes were broadcast"),
        (lambda r, a, e: -(r * a).max(), "leave the mean or the sum out"),
        (lambda r, a, e: -r * a, "You forgot to clip"),  # and the advantage is not detached: the larger mistake is told first
        (lambda r, a, e: ppo_clip_loss(r, a, e) + 1, "The numbers differ"),
        (lambda r, a, e: ppo_clip_loss(r, a, e) + 0 * a**2 + (a - a.detach()), "a gradient flows into `advantage`"),
        (lambda r, a, e: ppo_clip_loss(r, a, e) + 2 * (r - r.detach()), "the gradient for `ratio` is not"),
    ],
)
def test_a_wrong_shape_dtype_or_gradient_is_told(function, message):
    text = says(CLIP, function)
    assert message in text or re.search(message, text), text


def test_where_it_is_right_is_told():
    reference = find_exercise("gae").reference

    def only_without_ends(reward, value, next_value, terminated, done, gamma, gae_lambda):
        right = reference(reward, value, next_value, terminated, done, gamma, gae_lambda)
        return right + 7 * done

    assert (
        "It is right where no episode ends and where the inputs are float64, but not where an episode terminates or where"
        in says(find_exercise("gae"), only_without_ends)
    )


@pytest.mark.parametrize("action, message", [(2, "it returns 2"), ("left", "it returns 'left'"), (0.5, "it returns 0.5")])
def test_a_policy_must_return_an_action(action, message):
    text = says(find_exercise("my_policy"), lambda observation: action)
    assert text.startswith("An action is 0 (push left) or 1 (push right)")
    assert message in text


WEIGHT = find_exercise("awr_weight")


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b, m: (a / b).exp().clip(0, m),
        lambda a, b, m: (a / b).exp().clamp(min=0.0, max=m),
        lambda a, b, m: torch.minimum((a / b).exp(), torch.full_like(a, m)),
    ],
)
def test_an_answer_that_the_lesson_cannot_compile_is_not_right(function):
    assert "`torch.compile` cannot record it" in says(WEIGHT, function)


def test_an_answer_that_prints_is_not_right_where_the_lesson_compiles_it():
    def prints(advantage, beta, max_weight):
        print("here")
        return WEIGHT.reference(advantage, beta, max_weight)

    assert "Leave out `print`" in says(WEIGHT, prints)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b, m: torch.exp(a / b).clip(max=m),
        lambda a, b, m: torch.where((a / b).exp() > m, m, (a / b).exp()),
        lambda a, b, m: torch.minimum((a / b).exp(), torch.as_tensor(m)),
    ],
)
def test_other_ways_of_writing_the_weight_are_right(function):
    assert check("awr_weight", function) is function


def test_what_several_outputs_look_like_is_told():
    assert "must be 3 things, `return a, b, c`; it is" in says(find_exercise("adam_step"), lambda v, g, m, s, t, lr: v)


RULE = "an action is the integer 0 or 1: put `int(...)` around it."


@pytest.mark.parametrize(
    "cast, message",
    [
        (bool, f"It returns True or False; {RULE}"),
        (np.bool_, f"It returns True or False; {RULE}"),
        (lambda up: up, f"It returns True or False; {RULE}"),
        (float, f"It returns 1.0 as float; {RULE}"),
        (lambda up: up.float(), f"It returns 1.0 as float32; {RULE}"),
        (np.int32, f"It returns 1 as int32; {RULE}"),
        (lambda up: [1], "An action is 0 (push left) or 1 (push right); it returns a list. Return the number itself."),
        (
            lambda up: up.long().reshape(1),
            "An action is 0 (push left) or 1 (push right); it returns an array of shape [1]. Put `int(...)` around it.",
        ),
    ],
)
def test_a_policy_must_return_an_integer_as_the_next_cell_takes_nothing_else(cast, message):
    def policy(observation):
        return cast(observation[2] + 0.5 * observation[3] > -9)

    assert says(find_exercise("my_policy"), policy).startswith(message)
    with pytest.raises(PolicyError, match="action"):
        CartPole(seed=0).rollout(3, policy)


@pytest.mark.parametrize("cast", [int, np.int64, torch.Tensor.long, lambda up: np.array(int(up))])
def test_a_policy_that_passes_is_taken_by_the_next_cell(cast):
    def policy(observation):
        return cast(observation[2] + 0.5 * observation[3] > 0)

    assert check("my_policy", policy) is policy
    assert len(CartPole(seed=0).rollout(3, policy)) == 3


def test_another_policy_that_reaches_the_goal_is_right():
    def angular_velocity(observation):
        return int(observation[3] > 0)

    assert check("my_policy", angular_velocity) is angular_velocity


# ---- how it looks -----------------------------------------------------------------------------------------------------------
def test_the_html_escapes_what_the_learner_wrote_and_marks_code_up():
    html = examine(CLIP, lambda r, a, e: "<script>").html()
    assert "<script>" not in html
    report = examine(RETURN, lambda rewards, gamma: "<b>")
    assert "a <code>str</code>" in report.html()


def test_emphasis_is_set_in_html_and_left_out_in_text():
    mistake = next(mistake for message, mistake in find_exercise("gae").mistakes.items() if "*better*" in message)
    report = examine(find_exercise("gae"), mistake)
    assert "how much <em>better</em> than expected" in report.html()
    assert "how much better than expected" in report.text()


def test_text_and_html_say_the_same():
    report = examine(RETURN, lambda rewards, gamma: sum(rewards))
    for word in ("discounting", "rewards", "yours", "reference", "2 hints left"):
        assert word in report.text()
        assert word in report.html()


def test_the_reference_is_the_library_function_that_the_lesson_derives():
    assert find_exercise("importance_ratio").reference is importance_ratio
    assert find_exercise("clip_loss").reference is ppo_clip_loss


def test_importing_check_draws_neither_matplotlib_nor_a_front_end_nor_gymnasium():
    code = (
        "import sys, rlbook.course; print([m for m in ('matplotlib', 'anywidget', 'gymnasium', 'IPython') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_check_is_what_rlbook_exports():
    import rlbook

    assert rlbook.check is check_module
