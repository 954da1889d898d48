"""Lesson 12: the pieces of PPO, and some questions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rlbook.course.exercise import Arguments, Exercise, Question
from rlbook.functional import generalized_advantage, importance_ratio, normalize, ppo_clip_loss


# ---- inputs ----------------------------------------------------------------------------------------------------------------
def _log_probs(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Arguments:
        return tuple(-torch.rand(*shape, generator=generator, dtype=dtype) - 0.1 for _ in range(2))

    return {
        "the batch is flat": draw(6),
        "the batch is [3, 4]": draw(3, 4),
        "the inputs are float64": draw(5, dtype=torch.float64),
    }


def _ratios(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(*shape: int, sign: int = 0, dtype: torch.dtype = torch.float32) -> Arguments:
        ratio = 0.4 + 1.4 * torch.rand(*shape, generator=generator, dtype=dtype)
        advantage = torch.randn(*shape, generator=generator, dtype=dtype)
        return ratio, sign * advantage.abs() if sign else advantage, 0.2

    return {
        "all advantages are positive": draw(8, sign=1),
        "all advantages are negative": draw(8, sign=-1),
        "the batch is [3, 4]": draw(3, 4),
        "the inputs are float64": draw(6, dtype=torch.float64),
    }


def _rollouts(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(*shape: int, terminates: bool = False, times_out: bool = False, dtype: torch.dtype = torch.float32) -> Arguments:
        reward, value, next_value = (torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(3))
        terminated, truncated = (torch.zeros(shape, dtype=torch.bool) for _ in range(2))
        terminated[..., 1], truncated[..., 3] = terminates, times_out
        return reward, value, next_value, terminated, terminated | truncated, 0.9, 0.8

    return {
        "no episode ends": draw(6),
        "an episode terminates": draw(6, terminates=True),
        "a time-out cuts an episode off": draw(6, times_out=True),
        "several environments step together": draw(3, 5, terminates=True, times_out=True),
        "the inputs are float64": draw(4, dtype=torch.float64),
    }


def _advantages(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Arguments:
        return (3 + 2 * torch.randn(*shape, generator=generator, dtype=dtype),)

    return {
        "the batch is flat": draw(6),
        "the batch is [3, 4]": draw(3, 4),
        "all advantages are equal": (torch.full((4,), 2.0),),
        "the inputs are float64": draw(5, dtype=torch.float64),
    }


def _terms(generator: torch.Generator) -> dict[str, Arguments]:
    def draw(*shape: int, value_coef: float = 0.5, entropy_coef: float = 0.01) -> Arguments:
        clip, value, target, entropy = (torch.randn(*shape, generator=generator) for _ in range(4))
        return clip, value, target, entropy.abs(), value_coef, entropy_coef

    return {
        "the batch is flat": draw(6),
        "the coefficients are 1 and 0.5": draw(6, value_coef=1.0, entropy_coef=0.5),
        "the batch is [3, 4]": draw(3, 4),
    }


# ---- references that are not in rlbook.functional as they stand ----------------------------------------------------------------
def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """Return the advantages of :func:`rlbook.functional.generalized_advantage`."""
    return generalized_advantage(reward, value, next_value, terminated, done, gamma, gae_lambda)[0]


def ppo_loss(clip_loss: Tensor, value: Tensor, target: Tensor, entropy: Tensor, value_coef: float, entropy_coef: float) -> Tensor:
    """Return what :class:`rlbook.PPOLoss` minimises."""
    return clip_loss.mean() + value_coef * (value - target.detach()).square().mean() - entropy_coef * entropy.mean()


# ---- mistakes --------------------------------------------------------------------------------------------------------------
def _always(terminated: Tensor, done: Tensor) -> Tensor:
    return torch.ones_like(done)


def _terminated(terminated: Tensor, done: Tensor) -> Tensor:
    return terminated


def _done(terminated: Tensor, done: Tensor) -> Tensor:
    return done


def _not_terminated(terminated: Tensor, done: Tensor) -> Tensor:
    return ~terminated


def _not_done(terminated: Tensor, done: Tensor) -> Tensor:
    return ~done


def _gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    gae_lambda: float,
    *,
    bootstrap: Callable[[Tensor, Tensor], Tensor] = _not_terminated,
    carry: Callable[[Tensor, Tensor], Tensor] = _not_done,
    decay: Callable[[float, float], float] = lambda gamma, lambda_: gamma * lambda_,
    forwards: bool = False,
    baseline: float = 1.0,
) -> Tensor:
    """GAE with each of its parts exchangeable."""
    delta = reward + gamma * bootstrap(terminated, done) * next_value - baseline * value
    factor = decay(gamma, gae_lambda) * carry(terminated, done)
    advantage, following = torch.zeros_like(delta), torch.zeros_like(delta[..., 0])
    steps = range(delta.shape[-1])
    for t in steps if forwards else reversed(steps):
        advantage[..., t] = following = delta[..., t] + factor[..., t] * following
    return advantage


def _clip(ratio: Tensor, clip_eps: float) -> Tensor:
    return ratio.clamp(1 - clip_eps, 1 + clip_eps)


def _total(
    clip_loss: Tensor,
    value: Tensor,
    target: Tensor,
    entropy: Tensor,
    value_coef: float,
    entropy_coef: float,
    *,
    actor: float = 1.0,
    critic: float = 1.0,
    bonus: float = 1.0,
    error: Callable[[Tensor], Tensor] = torch.square,
    reduce: Callable[[Tensor], Tensor] = torch.mean,
    detach: bool = True,
) -> Tensor:
    """The loss of PPO with each of its parts exchangeable."""
    value_loss = reduce(error(value - (target.detach() if detach else target)))
    return actor * reduce(clip_loss) + critic * value_coef * value_loss - bonus * entropy_coef * reduce(entropy)


IMPORTANCE_RATIO = Exercise(
    name="importance_ratio",
    reference=importance_ratio,
    inputs=_log_probs,
    gradients=True,
    mistakes={
        "You return the logarithm of the ratio: take its exponential.": lambda new, old: new - old.detach(),
        "Your ratio stands on its head: the new policy is above, the old one below.": lambda new, old: (old.detach() - new).exp(),
        "You divide the log-probabilities; the logarithm of a ratio is a difference.": lambda new, old: new / old.detach(),
        "You multiply the probabilities; the logarithm of a ratio is a difference.": lambda new, old: (new + old.detach()).exp(),
        "The numbers are right, but a gradient flows into `old_log_prob`. It is data, what the old policy said back then: "
        "use `old_log_prob.detach()`.": lambda new, old: (new - old).exp(),
    },
    hints=[
        "`log(a / b) = log(a) - log(b)`, and `x.exp()` undoes the logarithm.",
        "`old_log_prob` was written down when the action was taken. Nothing may be learnt through it: `.detach()`.",
    ],
)

CLIP_LOSS = Exercise(
    name="clip_loss",
    reference=ppo_clip_loss,
    inputs=_ratios,
    gradients=True,
    mistakes={
        "The sign is flipped: an optimizer minimises, so put a minus in front.": lambda r, a, e: -ppo_clip_loss(r, a, e),
        "You take the larger of the two terms; PPO is a pessimist and takes the smaller one.": lambda r, a, e: (
            -torch.maximum(r * a.detach(), _clip(r, e) * a.detach())
        ),
        "You forgot to clip: nothing holds the policy back.": lambda r, a, e: -r * a.detach(),
        "You use only the clipped term. Without the minimum, a ratio that left the range on the *bad* side gets no gradient "
        "to come back.": lambda r, a, e: -_clip(r, e) * a.detach(),
        "You clip to `[-clip_eps, clip_eps]`; the range lies around 1, where the policies are equal.": lambda r, a, e: (
            -torch.minimum(r * a.detach(), r.clamp(-e, e) * a.detach())
        ),
        "You clip from above only; the range has a lower end too, `1 - clip_eps`.": lambda r, a, e: (
            -torch.minimum(r * a.detach(), r.clamp(max=1 + e) * a.detach())
        ),
        "You clip the product with the advantage; clip the ratio, then multiply.": lambda r, a, e: (
            -torch.minimum(r * a.detach(), _clip(r * a.detach(), e))
        ),
        "You take the mean already: return one number for each sample.": lambda r, a, e: ppo_clip_loss(r, a, e).mean(),
        "You take the sum: return one number for each sample.": lambda r, a, e: ppo_clip_loss(r, a, e).sum(),
        "The numbers are right, but a gradient flows into `advantage`. It is data: use `advantage.detach()`.": lambda r, a, e: (
            -torch.minimum(r * a, _clip(r, e) * a)
        ),
        "The numbers are right, but no gradient passes through the ratio: do not detach it.": lambda r, a, e: ppo_clip_loss(
            r.detach(), a, e
        ),
    },
    hints=[
        "`ratio.clamp(low, high)` clips. Which are the two ends of the range?",
        "There are two candidates, `ratio * advantage` and the same with the clipped ratio. "
        "`torch.minimum` takes the smaller one, element by element.",
        "An optimizer minimises: a minus in front. And the advantage is data: `advantage.detach()`.",
    ],
)

GAE = Exercise(
    name="gae",
    reference=gae,
    inputs=_rollouts,
    mistakes={
        "You bootstrap through terminal states: nothing follows them, so `next_value` does not count where "
        "`terminated`.": partial(_gae, bootstrap=_always),
        "You treat a time-out like a termination. The episode was only cut off, more reward would have come: `next_value` "
        "counts unless `terminated`.": partial(_gae, bootstrap=_not_done),
        "Your recursion runs on from one episode into the next: `A_{t+1}` does not count where `done`.": partial(
            _gae, carry=_always
        ),
        "Your recursion runs on over time-outs. After one, the next row of the memory is another episode: cut where `done`, "
        "not only where `terminated`.": partial(_gae, carry=_not_terminated),
        "You mixed the flags up: `terminated` cuts the bootstrap, `done` cuts the recursion.": partial(
            _gae, bootstrap=_not_done, carry=_not_terminated
        ),
        "You use neither flag: `next_value` does not count where `terminated`, nor `A_{t+1}` where `done`.": partial(
            _gae, bootstrap=_always, carry=_always
        ),
        "Your flags are upside down: `next_value` counts where *not* `terminated`, and `A_{t+1}` where *not* `done`. "
        "Negate them with `~`.": partial(_gae, bootstrap=_terminated, carry=_done),
        "You forgot lambda in the recursion: the factor is `gamma * gae_lambda`.": partial(_gae, decay=lambda gamma, _: gamma),
        "You forgot gamma in the recursion: the factor is `gamma * gae_lambda`.": partial(_gae, decay=lambda _, lambda_: lambda_),
        "You return the TD errors alone: add `gamma * gae_lambda` times the advantage that follows.": partial(
            _gae, decay=lambda gamma, lambda_: 0.0
        ),
        "You forgot to subtract `value`: an advantage says how much *better* than expected it went.": partial(_gae, baseline=0.0),
        "Your loop runs forwards. `A_t` needs `A_{t+1}`: start at the end, `reversed(range(T))`.": partial(_gae, forwards=True),
        "You return advantage plus value, the value target; the advantage alone is asked for.": lambda r, v, *more: (
            gae(r, v, *more) + v
        ),
        "The sign is flipped: the TD error is what came minus what was expected.": lambda *arguments: -gae(*arguments),
    },
    hints=[
        "First the TD error of step t: `reward + gamma * next_value - value`, and no `next_value` where `terminated`. "
        "A bool tensor times a float one is 0 or the number: `~terminated * next_value`.",
        "Then the recursion: `following = delta + gamma * gae_lambda * following`, and nothing follows where `done`.",
        "`reward[..., t]` is step t of every environment at once; so are `terminated[..., t]` and the others.",
    ],
)

NORMALIZE_ADVANTAGE = Exercise(
    name="normalize_advantage",
    reference=lambda advantage: normalize(advantage),
    inputs=_advantages,
    mistakes={
        "You subtract the mean, but the scale is still the old one: divide by the standard deviation.": lambda a: a - a.mean(),
        "You divide by the standard deviation, but the mean is still there: subtract it.": lambda a: (
            a / (a.std(correction=0) + 1e-8)
        ),
        "You divide by the variance; divide by its square root, `.std()`.": lambda a: (
            (a - a.mean()) / (a.var(correction=0) + 1e-8)
        ),
        "You normalise each row by itself; take mean and deviation over the whole batch.": lambda a: (
            (a - a.mean(-1, keepdim=True)) / (a.std(-1, correction=0, keepdim=True) + 1e-8)
        ),
        "Right, until all advantages are equal: 0 / 0 is NaN, and one NaN ends a training run. Add 1e-8 to the "
        "deviation.": lambda a: (a - a.mean()) / a.std(correction=0),
        "You divide by n - 1, the default of `.std()`. Many codes do, and it hardly matters; here n is meant: "
        "`.std(correction=0)`.": lambda a: (a - a.mean()) / (a.std() + 1e-8),
        "You divide by n - 1, the default of `.std()` (here n is meant: `.std(correction=0)`), and equal advantages give "
        "0 / 0: add 1e-8.": lambda a: (a - a.mean()) / a.std(),
        "You squeeze the numbers into 0 to 1; mean 0 and deviation 1 are asked for.": lambda a: (
            (a - a.min()) / (a.max() - a.min() + 1e-8)
        ),
    },
    hints=[
        "`a.mean()` and `a.std(correction=0)` are over all elements.",
        "Add `1e-8` to the deviation: equal numbers have none.",
    ],
)

PPO_LOSS = Exercise(
    name="ppo_loss",
    reference=ppo_loss,
    inputs=_terms,
    gradients=True,
    mistakes={
        "The entropy has the wrong sign: you punish exploring. The loss falls when the entropy rises.": partial(
            _total, bonus=-1.0
        ),
        "The value term has the wrong sign: the critic would learn to be as wrong as possible.": partial(_total, critic=-1.0),
        "The clipped loss has the wrong sign. It is a loss already: add it.": partial(_total, actor=-1.0),
        "You take sums; take means, so that the step does not depend on the size of the batch.": partial(
            _total, reduce=torch.sum
        ),
        "You forgot the value loss: the critic would never learn.": partial(_total, critic=0.0),
        "You forgot the entropy bonus.": partial(_total, bonus=0.0),
        "The coefficients are exchanged: `value_coef` is for the value loss, `entropy_coef` for the entropy.": (
            lambda c, v, t, e, value_coef, entropy_coef: ppo_loss(c, v, t, e, entropy_coef, value_coef)
        ),
        "You forgot to multiply the value loss by `value_coef`.": lambda c, v, t, e, _, coef: ppo_loss(c, v, t, e, 1.0, coef),
        "You forgot to multiply the entropy by `entropy_coef`.": lambda c, v, t, e, coef, _: ppo_loss(c, v, t, e, coef, 1.0),
        "You forgot the square: errors above and below cancel.": partial(_total, error=lambda x: x),
        "You put 1/2 before the square. That is usual too, but here `value_coef` does its work.": partial(_total, critic=0.5),
        "The numbers are right, but a gradient flows into `target`: the critic moves to the target, not the target to the "
        "critic. Use `target.detach()`.": partial(_total, detach=False),
    },
    hints=[
        "Three terms: `clip_loss.mean()`, then `value_coef` times a mean squared error, then the entropy.",
        "The loss is minimised and the entropy shall be large: it comes with a minus.",
        "The target is data: `target.detach()`.",
    ],
)

EXERCISES = [IMPORTANCE_RATIO, CLIP_LOSS, GAE, NORMALIZE_ADVANTAGE, PPO_LOSS]

QUESTIONS = [
    Question(
        name="160 steps",
        text=(
            "You have played 2048 steps. Plain policy gradient takes one small step with them and throws them away. "
            "You take 160 steps with the same data instead. What happens?"
        ),
        options={
            "It learns 160 times as fast": "The data say what the old policy met; the new one is another.",
            "The policy grows too sure of what happened to go well": (
                "The estimate is good near the policy that collected the data, and means less and less further away. "
                "You will measure it in section 9."
            ),
            "Nothing: the data are used up after the first step": "The gradient does not vanish. It goes on to pull.",
        },
        answer="The policy grows too sure of what happened to go well",
    ),
    Question(
        name="the wrong way",
        text=(
            "A bad action (`A = -1`) has become more likely by accident: `r = 1.5`, with `clip_eps = 0.2`. What does "
            "the clipped loss do?"
        ),
        options={
            "It pushes the ratio down, with full force": (
                "`min(-1.5, -1.2)` is the unclipped term, -1.5. This is what the minimum is there for: whoever went "
                "the wrong way is brought back."
            ),
            "Nothing: 1.5 lies outside the clip range, so the gradient is zero": (
                "That would be so without the minimum. Look at the orange line on the right of the grey band: it goes on to fall."
            ),
            "It pushes the ratio up": (
                "Up would make a bad action even more likely. Look at the sign of the gradient in the lower right corner."
            ),
        },
        answer="It pushes the ratio down, with full force",
    ),
    Question(
        name="the first minibatch",
        text="The very first minibatch after collecting: what are `approx_kl` and `clip_fraction`?",
        options={
            "Both 0, up to rounding": (
                "The policy is still the one that played, so every ratio is 1. If not, the stored log-probabilities "
                "are wrong: a good test."
            ),
            "Small, but not 0": "Nothing has been updated yet. Which value does the ratio have then?",
            "It depends on the learning rate": "No step has been taken yet.",
        },
        answer="Both 0, up to rounding",
    ),
    Question(
        name="nothing moves",
        text=(
            "Your run learns nothing: `explained_variance` stays at 0, `entropy` at 0.69, `approx_kl` at 0.00001. "
            "What do you try first?"
        ),
        options={
            "A larger learning rate": (
                "Nothing moves: neither the policy (`approx_kl`) nor the critic. The steps are too small, or the "
                "gradient never arrives."
            ),
            "A smaller `clip_eps`": "The clip holds nobody back here: no ratio comes near the ends of its range.",
            "More entropy bonus": "It is as undecided as can be already.",
        },
        answer="A larger learning rate",
    ),
]
