"""Tutorial "Make it fast": clipping, Adam and a target network, each on one vector."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from rlbook.course.exercise import Arguments, Exercise, Question

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


# ---- inputs ----------------------------------------------------------------------------------------------------------------
def _targets(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(tau: float) -> Arguments:
        target, weights = torch.randn(2, 6, generator=generator)
        return target, weights, tau

    return {"tau is 0.005": draw(0.005), "tau is 0.3": draw(0.3), "tau is 1": draw(1.0)}


def _moments(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(step: int, n: int = 5) -> Arguments:
        vector, gradient, mean = torch.randn(3, n, generator=generator)
        return vector, gradient, 0.1 * mean, 0.01 + torch.rand(n, generator=generator), step, 0.01

    vector, gradient = torch.randn(2, 4, generator=generator)
    gradient[:2] = torch.tensor([0.0, 1e-4])  # nothing depends on the first weight, hardly anything on the second
    first = (vector, gradient, torch.zeros(4), torch.zeros(4), 1, 0.01)
    return {"the first step": first, "the tenth step": draw(10), "step 5000": draw(5000)}


def _gradients(generator: torch.Generator) -> dict[str, Arguments]:
    gradient = torch.randn(6, generator=generator)
    unit = gradient / gradient.norm()
    several = {"a long gradient": (5 * unit, 0.5), "a short gradient": (0.1 * unit, 0.5), "a limit of 2": (3 * unit, 2.0)}
    return several | {"the gradient is zero": (torch.zeros(6), 0.5)}


# ---- references --------------------------------------------------------------------------------------------------------------
def polyak(target: Tensor, weights: Tensor, tau: float) -> Tensor:
    """Return the target, moved towards the weights by the share ``tau`` of the way."""
    return target + tau * (weights - target)


def adam_step(
    vector: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, lr: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the vector and the moments after one step (Kingma and Ba 2015, algorithm 1); ``step`` counts from 1."""
    return _adam(vector, gradient, mean, square, step, lr)


def clip_gradient(gradient: Tensor, max_norm: float) -> Tensor:
    """Return the gradient, shortened to ``max_norm`` where it is longer."""
    return gradient * (max_norm / gradient.norm()).clamp(max=1.0)


def _adam(
    vector: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    *,
    beta1: float = BETA1,
    beta2: float = BETA2,
    correct: bool = True,
    sign: float = -1.0,
    eps: float = EPS,
    inside: bool = False,
    root: bool = True,
    late: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam with everything exchangeable that learners exchange."""
    mean = beta1 * mean + (1 - beta1) * gradient
    square = beta2 * square + (1 - beta2) * gradient**2
    step += late
    m, s = (mean / (1 - beta1**step), square / (1 - beta2**step)) if correct and step else (mean, square)
    scale = (s + eps).sqrt() if inside else (s.sqrt() if root else s) + eps
    return vector + sign * lr * m / scale, mean, square


POLYAK = Exercise(
    name="polyak",
    reference=polyak,
    inputs=_targets,
    mistakes={
        "The two are exchanged: the target keeps `1 - tau` of itself and takes `tau` of the weights.": lambda t, w, tau: (
            tau * t + (1 - tau) * w
        ),
        "You add to the target without taking anything away, so it grows: it keeps `1 - tau` of itself.": lambda t, w, tau: (
            t + tau * w
        ),
        "You move away from the weights: the difference is `weights - target`.": lambda t, w, tau: t - tau * (w - t),
        "You copy. The target is to move only a small part of the way.": lambda t, w, tau: w.clone(),
        "You change nothing.": lambda t, w, tau: t.clone(),
    },
    hints=[
        "The target moves by `tau` times the way that is left: what is the way from `target` to `weights`?",
        "`target + tau * (weights - target)`. There is a torch function for that: `torch.lerp`.",
    ],
)

ADAM_STEP = Exercise(
    name="adam_step",
    reference=adam_step,
    inputs=_moments,
    mistakes={
        "You forgot the correction: both moments begin at 0, and are divided by `1 - beta**step` to make up for it.": partial(
            _adam, correct=False
        ),
        "You climb. A loss is to fall: subtract.": partial(_adam, sign=1.0),
        "The two betas are exchanged: 0.9 is for the mean, 0.999 for the squares.": partial(_adam, beta1=BETA2, beta2=BETA1),
        "Take the square root of the second moment.": partial(_adam, root=False),
        "A weight whose gradient is 0 becomes 0 / 0: add 1e-8 to the root.": partial(_adam, eps=0.0),
        "The 1e-8 comes after the root, not under it.": partial(_adam, inside=True),
        "Your `step` is off by one: it counts from 1, so the first correction is `1 - beta**1`.": partial(_adam, late=-1),
        "Your `step` is one ahead: it counts from 1 already.": partial(_adam, late=1),
        "You return the corrected moments. Store the plain ones, else they are corrected twice at the next step.": (
            lambda v, g, m, s, t, lr: (
                _adam(v, g, m, s, t, lr)[0],
                _adam(v, g, m, s, t, lr)[1] / (1 - BETA1**t),
                _adam(v, g, m, s, t, lr)[2] / (1 - BETA2**t),
            )
        ),
        "You return the moments as they were before the step.": lambda v, g, m, s, t, lr: (_adam(v, g, m, s, t, lr)[0], m, s),
    },
    hints=[
        "`mean = 0.9 * mean + 0.1 * gradient`, and `square = 0.999 * square + 0.001 * gradient**2`.",
        "Correct both, under new names: `m = mean / (1 - 0.9**step)`, `s = square / (1 - 0.999**step)`.",
        "`vector - lr * m / (s.sqrt() + 1e-8)`; return it with the *plain* `mean` and `square`.",
    ],
)

CLIP_GRADIENT = Exercise(
    name="clip_gradient",
    reference=clip_gradient,
    inputs=_gradients,
    mistakes={
        "You clip every number by itself. That changes the direction; scale the whole vector.": lambda g, n: g.clamp(-n, n),
        "You scale short gradients up. Only those that are too long are to change.": lambda g, n: g * n / g.norm(),
        "You divide by the norm only: the length becomes 1, whatever `max_norm` is.": lambda g, n: g / g.norm().clamp(min=1.0),
        "That is the largest entry, not the length. `gradient.norm()` is the root of the sum of squares.": lambda g, n: (
            g * (n / g.abs().max()).clamp(max=1.0)
        ),
        "You forgot the root: `norm()` has it, a sum of squares has not.": lambda g, n: g * (n / g.square().sum()).clamp(max=1.0),
        "You change nothing.": lambda g, n: g,
        "A gradient of zeros becomes 0 / 0. Multiply by a factor that is 1 there: `max_norm / norm`, at most 1.": lambda g, n: (
            g / g.norm() * g.norm().clamp(max=n)
        ),
    },
    hints=[
        "`gradient.norm()` is its length. By which factor must you multiply so that it becomes `max_norm`?",
        "The factor is `max_norm / gradient.norm()`, but never above 1: `.clamp(max=1.0)`.",
    ],
)

EXERCISES = [CLIP_GRADIENT, ADAM_STEP, POLYAK]

QUESTIONS = [
    Question(
        name="where the time goes",
        text=(
            "A gradient step of PPO for CartPole: two networks of 64-64 units, a minibatch of 64. The multiplications take "
            "less than a tenth of its time. What takes the rest?"
        ),
        options={
            "Calling several hundred small operations": (
                "Some ten microseconds each, however little it computes: Python, looking up the kernel, allocating the result, "
                "recording it for the gradient."
            ),
            "Moving the batch through memory": "A minibatch has a few kilobytes. They stay in the fastest cache.",
            "Exponentials and logarithms": "A few hundred of them; a microsecond together.",
        },
        answer="Calling several hundred small operations",
    ),
    Question(
        name="frozen attribute",
        text=(
            "`update` is compiled and has taken a step. Now you write `loss_fn.clip_eps = 0.01` and "
            "`loss_fn.normalize_advantage = False`. Which of them takes effect?"
        ),
        options={
            "Both": "Compiled code is recorded once. What was a Python value then is a constant in it.",
            "Only clip_eps": (
                "It is a hyper-parameter: a tensor of no dimension, which the compiled code reads anew at every step. The other "
                "is a Python attribute, and was looked at once, while the code was recorded."
            ),
            "Neither": "Then no schedule could work. Numbers that change during training are kept as tensors.",
        },
        answer="Only clip_eps",
    ),
    Question(
        name="worth compiling",
        text="Compiling takes 15 s and saves half a millisecond of each step. From how many steps on does it pay?",
        options={
            "3,000": "They would save 1.5 s. Divide the seconds by the seconds saved.",
            "30,000": "15 s / 0.0005 s. A lesson of a minute does not get there; a run of a million frames does, many times.",
            "Never, in a notebook": "It depends on the length of the run, not on where it runs. The second time it is quicker.",
        },
        answer="30,000",
    ),
]
