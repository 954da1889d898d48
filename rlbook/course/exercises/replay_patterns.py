"""Tutorial "Which experience again?": weights of prioritized replay, targets of several steps, goals in hindsight."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from rlbook.course.exercise import Arguments, Exercise, Question


# ---- inputs ----------------------------------------------------------------------------------------------------------------
def _priorities(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(n: int, alpha: float = 0.6, beta: float = 0.4, dtype: torch.dtype = torch.float32) -> Arguments:
        return 0.1 + 2 * torch.rand(n, generator=generator, dtype=dtype), alpha, beta

    return {
        "alpha is 0.6 and beta 0.4": draw(6),
        "alpha and beta are 1": draw(5, 1.0, 1.0),
        "alpha is 0, that is uniform": draw(4, 0.0, 0.5),
        "beta is 0, that is no correction": draw(4, 0.6, 0.0),
        "the priorities are float64": draw(5, dtype=torch.float64),
    }


def _windows(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(batch: int, n: int, ends: bool = False, gamma: float = 0.9) -> Arguments:
        terminated = torch.zeros(batch, dtype=torch.bool)
        terminated[::2] = ends
        return torch.randn(batch, n, generator=generator), torch.randn(batch, generator=generator), terminated, gamma

    return {
        "no episode ends": draw(4, 3),
        "some episodes terminate": draw(4, 3, ends=True),
        "n is 1": draw(3, 1, ends=True),
        "n is 5 and gamma is 0.5": draw(4, 5, ends=True, gamma=0.5),
    }


def _goals(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(batch: int, share: float) -> Arguments:
        goal, achieved, later = torch.randint(2, (3, batch, 4), generator=generator).float()
        later[::3] = achieved[::3]  # what is reached here is also what was drawn for the new goal
        goal[1::4] = achieved[1::4]  # and some reach their own goal
        return goal, achieved, later, torch.arange(batch) < share * batch

    return {
        "half of the goals are replaced": draw(12, 0.5),
        "no goal is replaced": draw(12, 0.0),
        "all goals are replaced": draw(12, 1.0),
    }


# ---- references --------------------------------------------------------------------------------------------------------------
def replay_weights(priority: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Return how probable each row is and what its loss is multiplied with, ``[n]`` both (Schaul et al. 2016, section 3.3)."""
    probability = _probability(priority, alpha)
    weight = (len(priority) * probability) ** -beta
    return probability, weight / weight.max()


def n_step_target(reward: Tensor, next_value: Tensor, terminated: Tensor, gamma: float) -> Tensor:
    """Return ``sum_k gamma^k r_k + gamma^n V`` for rewards ``[B, n]``, without V where the last step terminated."""
    return _n_step(reward, next_value, terminated, gamma)


def relabel(goal: Tensor, achieved: Tensor, achieved_later: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the goals ``[B, G]``, replaced where ``chosen [B]``, and the rewards ``[B]``: 0 where reached, else -1."""
    return _relabel(goal, achieved, achieved_later, chosen)


def _probability(priority: Tensor, alpha: float) -> Tensor:
    return priority**alpha / (priority**alpha).sum()


def _n_step(
    reward: Tensor, next_value: Tensor, terminated: Tensor, gamma: float, *, first: int = 0, more: int = 0, reverse: bool = False
) -> Tensor:
    """The target with each power exchangeable: rewards from ``gamma^first`` on, the value with ``gamma^(n + more)``."""
    n = reward.shape[-1]
    powers = gamma ** torch.arange(first, first + n)
    return (reward * (powers.flip(0) if reverse else powers)).sum(-1) + gamma ** (n + more) * ~terminated * next_value


def _reached(achieved: Tensor, goal: Tensor) -> Tensor:
    return (achieved == goal).all(-1)


def _relabel(goal: Tensor, achieved: Tensor, later: Tensor, chosen: Tensor, *, invert: bool = False) -> tuple[Tensor, Tensor]:
    new = torch.where((chosen ^ invert).unsqueeze(-1), later, goal)
    return new, _reached(achieved, new).float() - 1


REPLAY_WEIGHTS = Exercise(
    name="replay_weights",
    reference=replay_weights,
    inputs=_priorities,
    mistakes={
        "You forgot `alpha`: raise the priorities to this power first.": lambda p, a, b: replay_weights(p, 1.0, b),
        "Your probabilities do not sum to 1: divide by the sum of all priorities.": lambda p, a, b: (
            p**a,
            replay_weights(p, a, b)[1],
        ),
        "You divide by the sum first and raise to `alpha` then. The other way round, else the probabilities do not sum to 1.": (
            lambda p, a, b: ((p / p.sum()) ** a, replay_weights(p, a, b)[1])
        ),
        "The exponent of the weights has the wrong sign: rows that are drawn too often must count *less*, `** -beta`.": (
            lambda p, a, b: replay_weights(p, a, -b)
        ),
        "You forgot to divide the weights by the largest one. With that they only ever make steps smaller.": lambda p, a, b: (
            _probability(p, a),
            (len(p) * _probability(p, a)) ** -b,
        ),
        "You divide the weights by their sum; divide by the largest, `weight.max()`.": lambda p, a, b: (
            _probability(p, a),
            _probability(p, a) ** -b / (_probability(p, a) ** -b).sum(),
        ),
        "Your weights forget `alpha`: make them from the probabilities, not from the priorities.": lambda p, a, b: (
            _probability(p, a),
            replay_weights(p, 1.0, b)[1],
        ),
        "You take a softmax. Here a probability is in proportion to the priority itself.": lambda p, a, b: (
            (a * p).softmax(0),
            replay_weights(p, a, b)[1],
        ),
        "Swap the two: first the probability, then the weight.": lambda p, a, b: replay_weights(p, a, b)[::-1],
    },
    hints=[
        "`priority**alpha` first. Divide it by its sum, and you have the probabilities.",
        "A row that is drawn twice as often as under uniform sampling has `n * probability == 2`. "
        "With `beta = 1` it counts half: `(n * probability) ** -beta`, where n is `len(priority)`.",
        "Last divide the weights by `weight.max()`, and `return probability, weight`.",
    ],
)

N_STEP_TARGET = Exercise(
    name="n_step_target",
    reference=n_step_target,
    inputs=_windows,
    mistakes={
        "You bootstrap through terminal states: nothing follows them, so `next_value` does not count where `terminated`.": (
            lambda r, v, t, g: _n_step(r, v, torch.zeros_like(t), g)
        ),
        "Your flag is upside down: `next_value` counts where it is *not* terminated.": lambda r, v, t, g: _n_step(r, v, ~t, g),
        "You forgot `next_value`: after n steps it goes on, and `gamma**n * next_value` stands for the rest.": (
            lambda r, v, t, g: _n_step(r, torch.zeros_like(v), t, g)
        ),
        "You multiply `next_value` by gamma once; it lies n steps ahead: `gamma**n`.": lambda r, v, t, g: _n_step(
            r, v, t, g, more=1 - r.shape[-1]
        ),
        "The value is n steps ahead, not n - 1: `gamma**n`.": partial(_n_step, more=-1),
        "You do not discount `next_value`: it lies n steps ahead, `gamma**n`.": lambda r, v, t, g: _n_step(
            r, v, t, g, more=-r.shape[-1]
        ),
        "You discount the first reward too: it counts in full, `gamma**0 = 1`.": partial(_n_step, first=1),
        "You discount the wrong end: the first reward counts in full, later ones less and less.": partial(_n_step, reverse=True),
        "You add the rewards up without discounting: reward number k is multiplied by `gamma**k`.": lambda r, v, t, g: (
            r.sum(-1) + g ** r.shape[-1] * ~t * v
        ),
    },
    hints=[
        "`n = reward.shape[-1]`, and `gamma ** torch.arange(n)` are the factors of the n rewards.",
        "`(reward * factors).sum(-1)` is the first part, one number per row.",
        "The second part is `gamma**n * next_value`, and nothing where the last step terminated: times `~terminated`.",
    ],
)

RELABEL = Exercise(
    name="relabel",
    reference=relabel,
    inputs=_goals,
    mistakes={
        "The goals are right, but the rewards are still those of the old goals. Compute them again, else the agent is told "
        "that it failed when it succeeded.": lambda g, a, later, c: (
            _relabel(g, a, later, c)[0],
            _relabel(g, a, later, c & False)[1],
        ),
        "You take what *this* step achieved for the goal. Then every chosen step is a success in one step, and nothing is learnt "
        "about the way there: take `achieved_later`.": lambda g, a, later, c: _relabel(g, a, a, c),
        "You replace all goals; only those that are `chosen`.": lambda g, a, later, c: _relabel(g, a, later, c | True),
        "You replace the goals that were *not* chosen. `torch.where(mask, a, b)` takes a where the mask is true.": partial(
            _relabel, invert=True
        ),
        "The rewards are 0 and -1 here, not 1 and 0: subtract 1.": lambda g, a, later, c: (
            _relabel(g, a, later, c)[0],
            _relabel(g, a, later, c)[1] + 1,
        ),
        "The sign of the rewards is flipped: a failure costs 1, a success nothing.": lambda g, a, later, c: (
            _relabel(g, a, later, c)[0],
            -_relabel(g, a, later, c)[1],
        ),
        "You ask whether `achieved_later` is the goal. The reward of a step depends on what this step achieved: `achieved`.": (
            lambda g, a, later, c: (_relabel(g, a, later, c)[0], _relabel(g, later, later, c)[1])
        ),
        "One bit that fits is not enough: all of them must, `(achieved == goal).all(-1)`.": lambda g, a, later, c: (
            _relabel(g, a, later, c)[0],
            (a == _relabel(g, a, later, c)[0]).any(-1).float() - 1,
        ),
    },
    hints=[
        "`torch.where(mask, a, b)` chooses element by element. The mask is `[B]`, goals are `[B, G]`: `chosen.unsqueeze(-1)`.",
        "Reached means that all bits are equal: `(achieved == goal).all(-1)`, with the *new* goal.",
        "A bool as a number is 0 or 1: `reached.float() - 1` is 0 where reached, else -1.",
    ],
)

EXERCISES = [REPLAY_WEIGHTS, N_STEP_TARGET, RELABEL]

QUESTIONS = [
    Question(
        name="ring",
        text="A buffer has room for 1,000 rows. You write 600 rows, then 700 more. What does it hold?",
        options={
            "The newest 1,000": "The 300 oldest were overwritten. The buffer is a ring: after the end it goes on at the start.",
            "The first 1,000": "Then it would learn for ever from what it did when it knew nothing. The new replaces the old.",
            "All 1,300: it grows": "Memory is taken once, when the first rows show their size. A run of a week must not grow.",
            "Nothing: the second write is refused": "A full buffer is the usual state, not an error. Something must make room.",
        },
        answer="The newest 1,000",
    ),
    Question(
        name="forgotten priorities",
        text="Somebody takes a `PrioritizedSampler` and forgets to call `update_priority`. What happens?",
        options={
            "An error says so": "Nothing is wrong as far as the buffer can tell: perhaps the call is still to come.",
            "It is uniform sampling, a little slower": (
                "New rows get the highest priority there was, 1, and nobody changes it. All rows are alike. No error, no warning."
            ),
            "New rows are drawn most, for ever": "All rows are new in this sense: each keeps the priority it got at first.",
        },
        answer="It is uniform sampling, a little slower",
    ),
    Question(
        name="five steps",
        text=(
            "`NStep(5, gamma)` is asked for a row whose episode is cut off by a time-out at the *next* step: two are left, this "
            "one and the next. With what is the value behind them multiplied?"
        ),
        options={
            "gamma**2": (
                "Two steps are summed, and the value of the true last observation follows. A time-out is no end of the world, so "
                "it counts. The entry `discount` says so, row by row."
            ),
            "gamma**5": "Only two rewards were summed. Use the entry `discount` of the sample instead of a constant.",
            "0": "That would be so at a termination. A time-out only stops the clock.",
        },
        answer="gamma**2",
    ),
    Question(
        name="stored goals",
        text="A row is drawn with a new goal. Which goal does the buffer hold for this row afterwards?",
        options={
            "The old one": (
                "Rows are copied out, and only the copy is changed. The next time the row is drawn it may get another goal, or "
                "keep its own."
            ),
            "The new one": "Then every row could be relabelled once only, and what really happened would be lost.",
            "Both: a row is added": "The paper describes it so. Done in the sample it costs no memory, and every draw differs.",
        },
        answer="The old one",
    ),
]
