"""Tutorial "A new loss in forty lines": the weight, the two terms and the golden gradient of advantage-weighted regression."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from rlbook.course.exercise import Arguments, Exercise, Question


# ---- inputs ----------------------------------------------------------------------------------------------------------------
def _advantages(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(beta: float, max_weight: float, n: int = 6) -> Arguments:
        return 2 * torch.randn(n, generator=generator) + 0.5, beta, max_weight

    return {
        "beta is 1 and nothing is cut": draw(1.0, 1e6),
        "beta is 2": draw(2.0, 20.0),
        "beta is 0.3 and the weights are cut at 5": draw(0.3, 5.0),
        "the batch is [2, 3]": (torch.randn(2, 3, generator=generator), 0.5, 3.0),
        "beta and max_weight are tensors, as in the class": tuple(torch.as_tensor(x) for x in draw(0.4, 4.0)),
    }


def _predictions(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(n: int) -> Arguments:
        log_prob, value, target = torch.randn(3, n, generator=generator)
        return log_prob - 2, torch.rand(n, generator=generator) + 0.1, value, target

    return {"six rows": draw(6), "one row": draw(1), "a hundred rows": draw(100)}


def _rows(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(n: int, weight: float, action: int) -> Arguments:
        return torch.randn(n, generator=generator), action, weight

    return {"two actions": draw(2, 1.5, 0), "four actions": draw(4, 0.7, 2), "the weight is 20": draw(3, 20.0, 1)}


# ---- references --------------------------------------------------------------------------------------------------------------
def awr_weight(advantage: Tensor, beta: float, max_weight: float) -> Tensor:
    """Return ``min(exp(A / beta), max_weight)`` (Peng et al. 2019, equation 10 and section 3.2)."""
    return (advantage / beta).exp().clamp(max=max_weight)


def awr_terms(log_prob: Tensor, weight: Tensor, value: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``-E[w log pi]`` and ``E[(V - G)^2]``; weights and targets are data."""
    return -(weight.detach() * log_prob).mean(), (value - target.detach()).square().mean()


def golden_gradient(logits: Tensor, action: int, weight: float) -> Tensor:
    """Return the gradient of ``-w log softmax(logits)[action]`` with respect to the logits, ``[A]``: ``w (p - chosen)``."""
    return _gradient(logits, action, weight)


def _gradient(
    logits: Tensor, action: int, weight: float, *, sign: float = 1.0, softmax: bool = True, score: bool = True
) -> Tensor:
    """The gradient, with everything exchangeable that learners exchange."""
    p = logits.softmax(-1) if softmax else logits
    chosen = torch.zeros_like(logits)
    chosen[action] = 1.0
    return sign * weight * ((p if score else 0 * p) - chosen)


AWR_WEIGHT = Exercise(
    name="awr_weight",
    reference=awr_weight,
    inputs=_advantages,
    compiled=True,
    mistakes={
        "You cut nothing: one lucky step would outweigh all the others. Use `.clamp(max=max_weight)`.": lambda a, b, m: (
            a / b
        ).exp(),
        "You multiply with `beta`. A *small* one is to make a sharp choice: divide.": lambda a, b, m: (a * b).exp().clamp(max=m),
        "You cut the advantage. It is the weight, after `exp`, that is to be `max_weight` at most.": lambda a, b, m: (
            (a / b).clamp(max=m).exp()
        ),
        "You forgot the `exp`: bad actions would have negative weights.": lambda a, b, m: (a / b).clamp(max=m),
        "You normalise the weights. Leave them as they are.": lambda a, b, m: (a / b).softmax(-1),
        "You cut from below as well: bad actions may have a weight near 0.": lambda a, b, m: (a / b).exp().clamp(1 / m, m),
    },
    hints=[
        "Two operations: one that makes any number positive, and one that cuts what is too large.",
        "`(advantage / beta).exp()`, then `.clamp(max=max_weight)`.",
    ],
)

AWR_TERMS = Exercise(
    name="awr_terms",
    reference=awr_terms,
    inputs=_predictions,
    gradients=True,
    compiled=True,
    mistakes={
        "The sign of the first term: a loss falls, and the log-probability of good actions is to rise.": lambda lp, w, v, g: (
            (w * lp).mean(),
            (v - g).square().mean(),
        ),
        "You add up. With a mean the size of the batch does not change the size of the step.": lambda lp, w, v, g: (
            -(w * lp).sum(),
            (v - g).square().sum(),
        ),
        "Weights and targets are data, but yours receive a gradient: call `.detach()` on both.": lambda lp, w, v, g: (
            -(w * lp).mean(),
            (v - g).square().mean(),
        ),
        "You forgot the weights.": lambda lp, w, v, g: (-lp.mean(), (v - g).square().mean()),
        "The value's error is to be squared: errors up and down would cancel.": lambda lp, w, v, g: (
            -(w * lp).mean(),
            (v - g).mean(),
        ),
        "You weigh the value's error too. The value is that of the policy which acted: all steps count.": lambda lp, w, v, g: (
            -(w * lp).mean(),
            (w * (v - g).square()).mean(),
        ),
        "You weigh probabilities. The likelihood of a whole batch is a product: take logarithms, which you were given.": (
            lambda lp, w, v, g: (-(w * lp.exp()).mean(), (v - g).square().mean())
        ),
    },
    hints=[
        "Two means over the batch, as a tuple: one of `weight * log_prob`, one of a squared difference.",
        "`-(weight * log_prob).mean(), (value - target).square().mean()`, and `.detach()` what is data.",
    ],
)

GOLDEN_GRADIENT = Exercise(
    name="golden_gradient",
    reference=golden_gradient,
    inputs=_rows,
    mistakes={
        "The sign is that of `log p`. The loss is `-weight * log p`.": partial(_gradient, sign=-1.0),
        "You forgot that the other actions lose what this one gains: the `p` in `p - chosen`.": partial(_gradient, score=False),
        "Take `logits.softmax(-1)`: logits are no probabilities.": partial(_gradient, softmax=False),
        "You forgot the weight.": lambda logits, action, weight: _gradient(logits, action, 1.0),
    },
    hints=[
        "`d log p_a / d logits` is `chosen - p`: 1 for the action taken, minus the probability of each.",
        "The loss has a minus and a weight: `weight * (p - chosen)`.",
        "`p = logits.softmax(-1)`, and `chosen = torch.zeros_like(logits)` with `chosen[action] = 1`.",
    ],
)

EXERCISES = [AWR_WEIGHT, AWR_TERMS, GOLDEN_GRADIENT]

QUESTIONS = [
    Question(
        name="advantage as data",
        text=(
            "A loss has two terms: one raises the log-probability of an action by `A = G - V(s)`, one brings `V(s)` near `G`. "
            "You forget to `detach` the advantage in the first. What does the first term do to the critic?"
        ),
        options={
            "Nothing: the second term corrects it": (
                "The two are added. At the minimum of the sum the critic is not where the second term alone is least."
            ),
            "It raises every value, whatever the return was": (
                "`-A log pi = (V - G) log pi`, so its derivative with respect to `V` is `log pi`. That is negative: each step "
                "raises `V`, most of all for unlikely actions, without an error or a warning. That is why the routing of "
                "gradients needs a test."
            ),
            "It brings `V(s)` nearer to `G`": "That is what the second term does. `G` does not occur in this gradient.",
            "PyTorch raises an error": "It is a legal computation; that is what makes the mistake expensive.",
        },
        answer="It raises every value, whatever the return was",
    ),
    Question(
        name="which test",
        text=(
            "Your new loss runs, its value equals the formula, and the agent learns nothing. Which test is likeliest to find the "
            "mistake?"
        ),
        options={
            "Compare its value with the formula on more batches": (
                "The value is right already. A missing `detach` does not change it."
            ),
            "Compare its gradient with one worked by hand, and see which modules each term reaches": (
                "What is learnt is decided by gradients, and a wrong one leaves no trace in the value of the loss."
            ),
            "Train it longer": "That costs most and says least.",
        },
        answer="Compare its gradient with one worked by hand, and see which modules each term reaches",
    ),
]
