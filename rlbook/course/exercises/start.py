"""Lesson 00: a policy written by hand, a return, and some questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlbook.course.exercise import Arguments, Exercise, Function, Question

GOAL, LIMIT, EPISODES = 150, 200, 8


def my_policy(observation: Tensor) -> int:
    """Push to the side the pole is falling to: where it leans, plus where it is moving."""
    return int(observation[2] + 0.5 * observation[3] > 0)


def discounted_return(rewards: Sequence[float], gamma: float) -> float:
    """Return ``G = r_0 + gamma r_1 + gamma^2 r_2 + ...``."""
    return sum(gamma**t * reward for t, reward in enumerate(rewards))


def balances(policy: Function) -> str:
    """Play some episodes and say whether the pole stands long enough."""
    from rlbook.envs import CartPole

    env = CartPole(num_envs=EPISODES, max_steps=LIMIT, seed=0)
    td, steps, alive = env.reset(), torch.zeros(EPISODES), torch.ones(EPISODES, dtype=torch.bool)
    while alive.any():
        td["action"] = torch.tensor([_action(policy(row)) if up else 0 for row, up in zip(td["observation"], alive, strict=True)])
        td, root = env.step_and_reset(td)
        steps += alive
        alive &= ~td["next", "done"]
        td = root
    mean = steps.mean().item()
    if mean >= GOAL:
        return ""
    return f"Your policy keeps the pole up for {mean:.0f} steps on average; the goal is {GOAL} of {LIMIT}."


def _action(x: Any) -> int:
    """Return an action. The environment takes nothing but an integer, so nothing else may pass here."""
    from rlbook.course.attempt import Trouble

    actions, ask_int = (
        "An action is 0 (push left) or 1 (push right)",
        "an action is the integer 0 or 1: put `int(...)` around it.",
    )
    if isinstance(x, list | tuple):
        raise Trouble(f"{actions}; it returns a {type(x).__name__}. Return the number itself.")
    try:
        action = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError):
        raise Trouble(f"{actions}; it returns {x!r}.") from None
    if action.ndim:
        advice = " Put `int(...)` around it." if action.numel() == 1 else ""
        raise Trouble(f"{actions}; it returns an array of shape {list(action.shape)}.{advice}")
    if action.dtype == torch.bool:
        raise Trouble(f"It returns True or False; {ask_int}")
    if action.item() not in (0, 1):
        raise Trouble(f"{actions}; it returns {action.item()}.")
    if action.dtype != torch.int64:
        dtype = type(x).__name__ if isinstance(x, float) else str(action.dtype).removeprefix("torch.")
        raise Trouble(f"It returns {action.item()} as {dtype}; {ask_int}")
    return int(action)


def _observations(generator: torch.Generator) -> dict[str, Arguments]:
    scale = torch.tensor([1.0, 1.0, 0.1, 1.0])
    return {f"the pole is at place {i}": (scale * torch.randn(4, generator=generator),) for i in range(8)}


def _rewards(generator: torch.Generator) -> dict[str, Arguments]:
    some = torch.randn(6, generator=generator).tolist()
    gamma = 0.5 + 0.4 * torch.rand((), generator=generator).item()
    return {
        "there are several rewards": (some, gamma),
        "there is one reward": (some[:1], gamma),
        "gamma is 1": (some, 1.0),
        "gamma is 0": (some, 0.0),
        "there is no reward": ([], gamma),
    }


MY_POLICY = Exercise(
    name="my_policy",
    reference=my_policy,
    inputs=_observations,
    goal=balances,
    mistakes={
        "You always push right: the pole falls to the left within ten steps. Look at the observation.": lambda o: 1,
        "You always push left: the pole falls to the right within ten steps. Look at the observation.": lambda o: 0,
        "You push away from where the pole leans, so it falls faster. Turn the sign around.": lambda o: int(o[2] < 0),
        "You catch the pole where it leans. That is the right idea, but it comes back with a swing: about 40 steps. "
        "Use its speed `angular_velocity` too.": lambda o: int(o[2] > 0),
        "You follow the cart. It is the pole that falls: look at `angle` and `angular_velocity`.": lambda o: int(o[0] > 0),
    },
    hints=[
        "`angle` is positive when the pole leans to the right. Push to the side to which it leans.",
        "An angle alone comes too late. `angular_velocity` says how fast the pole turns, and so where it is going to lean.",
        "Add the two: `angle + 0.5 * angular_velocity` is about where the pole will be. Push right (1) if that is positive.",
    ],
)

DISCOUNTED_RETURN = Exercise(
    name="discounted_return",
    reference=discounted_return,
    inputs=_rewards,
    mistakes={
        "You add the rewards up without discounting: multiply reward number t by `gamma**t`.": lambda rewards, gamma: sum(
            rewards
        ),
        "You discount the first reward too: it counts in full, `gamma**0 = 1`.": lambda rewards, gamma: (
            gamma * discounted_return(rewards, gamma)
        ),
        "You discount the wrong end: the first reward counts in full, later ones less and less.": lambda rewards, gamma: (
            discounted_return(rewards[::-1], gamma)
        ),
        "You multiply by `gamma * t`; it is `gamma**t`, gamma to the power t.": lambda rewards, gamma: sum(
            gamma * t * reward for t, reward in enumerate(rewards)
        ),
        "You take the mean; a return is the sum.": lambda rewards, gamma: (
            discounted_return(rewards, gamma) / max(len(rewards), 1)
        ),
        "You multiply every reward by the same gamma: later ones get more factors of it.": lambda rewards, gamma: (
            gamma * sum(rewards)
        ),
    },
    hints=[
        "`enumerate(rewards)` gives the pairs (0, r_0), (1, r_1), ...",
        "Start with `total = 0` and add `gamma**t * reward` in a loop over these pairs.",
    ],
)

EXERCISES = [MY_POLICY, DISCOUNTED_RETURN]

QUESTIONS = [
    Question(
        name="coin",
        text=("Somebody pushes at random, left or right by the toss of a coin. For how many pushes does the pole stay up?"),
        options={
            "About 20": (
                "Less than half a second. A pole that leans is pulled down harder and harder, and the coin does not "
                "know where it leans."
            ),
            "About 200": "That would be four seconds. Try to balance a pencil without looking!",
            "For ever: left and right cancel out": (
                "On average they do. But a pole that leans a little falls a little faster, and the pushes come too late."
            ),
        },
        answer="About 20",
    ),
    Question(
        name="gamma is 0",
        text=(
            "We set `gamma = 0`: only the reward of the very next step counts. Everything else stays. How well will "
            "the agent balance?"
        ),
        options={
            "As well as before, it only takes longer": "More time does not help: it does not aim at the right thing.",
            "About half as well": "Every push earns 1 right away, the good ones and the bad ones. What could it learn from that?",
            "Hardly better than a coin": (
                "Every push earns exactly 1 right away, whether it saves the pole or not. There is nothing to tell good from bad."
            ),
        },
        answer="Hardly better than a coin",
    ),
    Question(
        name="who told it",
        text="Who told the agent in section 6 that the third number is an angle?",
        options={
            "We did, in `PPOConfig`": "There is nothing of that kind in it: an environment, some sizes and a goal.",
            "Nobody": "It got four numbers and a reward of 1 for each step. The rest it found out by trying.",
            "The neural network knew it already": "It started from random weights: at first it tossed a coin.",
        },
        answer="Nobody",
    ),
    Question(
        name="time-out",
        text="An episode of CartPole ends because 500 steps are over. Did the agent do something wrong?",
        options={
            "No, somebody stopped the clock": (
                "A time-out (`truncated`) is not a fall (`terminated`). Mixing them up is one of the most usual bugs "
                "of the field."
            ),
            "Yes, an episode that ends is bad": "It was standing! A time-out (`truncated`) is not a fall (`terminated`).",
        },
        answer="No, somebody stopped the clock",
    ),
]
