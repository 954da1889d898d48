"""TMaze: a sign at the start says where to turn at the end of a corridor. An agent without memory cannot know."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.envs.native._draw import BLUE, GREEN, GREY, INK, ORANGE, PAPER, Picture
from rlbook.envs.native.base import NativeEnv, State
from rlbook.errors import ConfigError, explain
from rlbook.specs import Bounded, Categorical, Composite
from rlbook.typing import DeviceLike, Leaves

NORTH, EAST, SOUTH, WEST = range(4)
GOOD, BAD = 4.0, -0.1
SIGNS = ((0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 0.0))
"""What is seen: at the start with the goal in the north, in the south; in the corridor; at the junction."""


@final
class TMaze(NativeEnv):
    """Walk down a corridor and turn to the side that the sign at its beginning named.

    The best policy keeps the sign in mind for ``length`` steps. It has the return 4; whoever sees only the present is right half
    of the time and has 1.95 at most, whether it draws lots or not.

    Observation:
        ``observation`` float32 ``[3]``: ``011`` at the start when the goal is in the north, ``110`` when in the south; ``101`` in
        the corridor; ``010`` at the junction and after the end.
    Action:
        ``Categorical(4)``: 0 goes north, 1 east, 2 south, 3 west. The junction is in the east. Walls stop the walker.
    Reward:
        4 for the right turn, -0.1 for the wrong one, -0.1 for walking into a wall; otherwise 0.
    Ending:
        Terminated after a turn at the junction; truncated after ``max_steps``.
    Initial state:
        At the start, the goal in the north or south, equally likely.

    Args:
        num_envs: None for one environment without batch dimension.
        length: steps from the start to the junction, at least 1.
        max_steps: time limit; None for never.
        device, seed: as for :class:`~rlbook.envs.Env`.

    Attributes:
        optimal_return: expected return of the best policy, 4.
        memoryless_return: expected return of the best policy that depends on the last observation only, 1.95.

    Raises:
        ConfigError: ``length`` is less than 1.

    Source: Bakker (2001), "Reinforcement Learning with Long Short-Term Memory", sec. 5.1.
    """

    reset_uniforms = 1
    optimal_return = GOOD
    memoryless_return = (GOOD + BAD) / 2

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        length: int = 10,
        max_steps: int | None = 200,
        device: DeviceLike = None,
        seed: int | None = None,
    ):
        if length < 1:
            raise ConfigError(explain("length", "a positive integer", repr(length), "Pass for example length=10"))
        self.length = length
        self._signs = torch.tensor(SIGNS, device=device)
        observation = Composite({keys.OBSERVATION: Bounded(0.0, 1.0, (3,))})
        super().__init__(observation, Categorical(4), max_steps=max_steps, num_envs=num_envs, device=device, seed=seed)

    def start_value(self, gamma: float = 0.99) -> float:
        """Return the value of the start under the best policy, ``4 * gamma**length``, without a time limit."""
        return GOOD * gamma**self.length

    def _initial(self, u: Tensor) -> State:
        south = (u[..., 0] >= 0.5).long()
        return {"south": south, "position": torch.zeros_like(south)}

    def _dynamics(self, state: State, action: Any, u: Tensor) -> tuple[State, Tensor, Tensor]:
        position, south = state["position"], state["south"]
        sideways = (action == NORTH) | (action == SOUTH)
        turned = sideways & (position == self.length)
        after = (position + (action == EAST).long() - (action == WEST).long()).clamp(0, self.length)
        right = turned & (action == NORTH + (SOUTH - NORTH) * south)
        reward = torch.where(right, GOOD, torch.where(after == position, BAD, 0.0))
        return {"south": south, "position": after}, reward, turned

    def _observe(self, state: State) -> Leaves:
        position = state["position"]
        place = torch.where(position == 0, state["south"], torch.where(position == self.length, 3, 2))
        return {keys.OBSERVATION: torch.nn.functional.embedding(place, self._signs)}

    def _render(self, index: int) -> np.ndarray:
        position, south = int(self._row("position", index)), int(self._row("south", index))
        picture = Picture(300, 200)
        side = min(40.0, 276 / (self.length + 1))
        left, middle = 150 - side * (self.length + 1) / 2, 100.0
        arm = min(max(2 * side, 60.0), 88 - side / 2)
        end = left + side * (self.length + 1)
        picture.box(left - 4, middle - side / 2 - 4, end + 4, middle + side / 2 + 4, INK, radius=5)
        picture.box(end - side - 4, middle - side / 2 - arm - 4, end + 4, middle + side / 2 + arm + 4, INK, radius=5)
        picture.box(left, middle - side / 2, end, middle + side / 2, PAPER, radius=2)
        picture.box(end - side, middle - side / 2 - arm, end, middle + side / 2 + arm, PAPER, radius=2)
        for cell in range(1, self.length + 1):
            picture.disc(left + side * (cell + 0.5), middle, min(2.0, side / 6), GREY)
        goal = middle + (1 if south else -1) * (arm + min(0.0, side / 2 - 6))
        picture.disc(end - side / 2, goal, max(side * 0.34, 3.0), GREEN)
        x, tip = left + side / 2, 1 if south else -1  # the sign stands on the side it points to
        foot, head = middle + tip * (side / 2 + 12), middle + tip * (side / 2 + 40)
        picture.stroke((x, foot), (x, head - tip * 8), 5, BLUE)
        picture.polygon([(x - 10, head - tip * 12), (x + 10, head - tip * 12), (x, head + tip * 4)], BLUE)
        picture.disc(left + side * (position + 0.5), middle, max(min(side * 0.32, 12.0), 4.0), ORANGE)
        return picture.array()
