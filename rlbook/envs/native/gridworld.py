"""GridWorld: worlds drawn as text, small enough to solve by dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.envs.native._draw import BLUE, GREEN, INK, ORANGE, PAPER, RED, Picture
from rlbook.envs.native.base import NativeEnv, State
from rlbook.errors import ConfigError, explain
from rlbook.specs import Categorical, Composite
from rlbook.typing import DeviceLike, Leaves

FROZEN_LAKE = {
    "4x4": ("SFFF", "FHFH", "FFFH", "HFFG"),
    "8x8": ("SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF", "FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG"),
}
CLIFF = (*["." * 12] * 3, "S" + "C" * 10 + "G")

START, FREE, HOLE, GOAL, WALL, CLIFF_CELL = "S", ".F", "H", "G", "W#", "C"
MOVES = {"L": (0, -1), "D": (1, 0), "R": (0, 1), "U": (-1, 0)}


class TransitionModel(NamedTuple):
    """A finite Markov decision process as tensors."""

    P: Tensor
    """``P[s, a, s']``: probability of arriving in s', float32 ``[S, A, S]``."""
    R: Tensor
    """``R[s, a]``: expected reward, float32 ``[S, A]``."""
    terminal: Tensor
    """Where episodes end, bool ``[S]``; such a state leads to itself without reward."""


class GridWorld(NativeEnv):
    """Walk on a grid drawn as text.

    ``S`` start, ``.`` or ``F`` free, ``H`` hole, ``G`` goal, ``W`` or ``#`` wall, ``C`` cliff.

    Observation:
        ``observation`` ``Categorical(S)``: number of the cell, row by row.
    Action:
        ``Categorical(4)``: the moves in ``actions``, by default left, down, right, up. With probability ``slip`` the walker goes
        to the left or right of the move instead, each half the time. Walls and the border stop it.
    Reward:
        ``step_reward``, or that of the hole, goal or cliff it steps on.
    Ending:
        Terminated on a hole or a goal; truncated after ``max_steps``. A cliff does not end the episode: it puts the walker on the
        first start.
    Initial state:
        A start cell, each equally likely.

    Args:
        map: the rows of the grid.
        num_envs: None for one environment without batch dimension.
        slip: probability of a wrong move, in ``[0, 1]``.
        step_reward, goal_reward, hole_reward, cliff_reward: rewards.
        actions: the letters L, D, R, U in the order of the action numbers; neighbours must be perpendicular.
        max_steps: time limit; None for never.
        device, seed: as for :class:`~rlbook.envs.Env`.

    Raises:
        ConfigError: a map with rows of different length, an unknown letter or no start; a senseless ``slip`` or ``actions``.

    Example:
        >>> from rlbook import GridWorld
        >>> env = GridWorld(["S.W", "..G"], slip=0.1)
        >>> P, R, terminal = env.transition_model()
        >>> P.shape, terminal.tolist()
        (torch.Size([6, 4, 6]), [False, False, False, False, False, True])
    """

    reset_uniforms = 1

    def __init__(
        self,
        map: Sequence[str] | str = FROZEN_LAKE["4x4"],
        num_envs: int | None = None,
        *,
        slip: float = 0.0,
        step_reward: float = 0.0,
        goal_reward: float = 1.0,
        hole_reward: float = 0.0,
        cliff_reward: float = -100.0,
        actions: str = "LDRU",
        max_steps: int | None = 100,
        device: DeviceLike = None,
        seed: int | None = None,
    ):
        if isinstance(map, int):
            raise ConfigError(explain("map", "the rows of a grid", repr(map), f"Pass GridWorld(num_envs={map})"))
        self.map = _check_map(map.split() if isinstance(map, str) else map)
        if not 0 <= slip <= 1:
            raise ConfigError(explain("slip", "a probability in [0, 1]", repr(slip), "Pass for example slip=0.1"))
        if sorted(actions) != sorted(MOVES) or {actions[0], actions[2]} not in ({"L", "R"}, {"U", "D"}):
            fix = "Pass for example LDRU or URDL"
            raise ConfigError(explain("actions", "the letters L, D, R, U, opposite ones two apart", repr(actions), fix))
        self.slip, self.actions = slip, actions
        self.step_uniforms = 1 if slip else 0
        rewards = {HOLE: hole_reward, GOAL: goal_reward, CLIFF_CELL: cliff_reward}
        self._make_tables([rewards.get(letter, step_reward) for letter in "".join(self.map)], torch.device(device or "cpu"))
        observation = Composite({keys.OBSERVATION: Categorical(len(self._ends))})
        super().__init__(observation, Categorical(4), max_steps=max_steps, num_envs=num_envs, device=device, seed=seed)

    @classmethod
    def frozen_lake(cls, size: str = "4x4", num_envs: int | None = None, *, slippery: bool = True, **kwargs: Any) -> GridWorld:
        """Gymnasium's ``FrozenLake-v1`` (``"4x4"``, 100 steps) or ``FrozenLake8x8-v1`` (``"8x8"``, 200 steps).

        Args:
            size: which map.
            num_envs: None for one environment without batch dimension.
            slippery: a third of the moves go to either side.
            **kwargs: passed to :class:`GridWorld`.
        """
        if size not in FROZEN_LAKE:
            raise ConfigError(
                explain("size", f"one of {sorted(FROZEN_LAKE)}", repr(size), "Pass a map of your own to GridWorld(map=...)")
            )
        kwargs = {"slip": 2 / 3 if slippery else 0.0, "max_steps": 100 if size == "4x4" else 200, **kwargs}
        return cls(FROZEN_LAKE[size], num_envs, **kwargs)

    @classmethod
    def cliff_walking(cls, num_envs: int | None = None, *, slippery: bool = False, **kwargs: Any) -> GridWorld:
        """Gymnasium's ``CliffWalking-v1``, which has no time limit (Sutton & Barto 2018, example 6.6).

        Args:
            num_envs: None for one environment without batch dimension.
            slippery: a third of the moves go to either side.
            **kwargs: passed to :class:`GridWorld`.
        """
        rules = {
            "step_reward": -1.0,
            "goal_reward": -1.0,
            "actions": "URDL",
            "max_steps": None,
            "slip": 2 / 3 if slippery else 0.0,
        }
        return cls(CLIFF, num_envs, **{**rules, **kwargs})

    @property
    def start_distribution(self) -> Tensor:
        """Probability of each initial state, float32 ``[S]``."""
        probability = torch.zeros(len(self._ends), device=self.device)
        probability[self._starts] = 1 / len(self._starts)
        return probability

    def transition_model(self) -> TransitionModel:
        """Return the dynamics as tensors, for dynamic programming.

        Bellman's optimality equation then reads ``V = (R + gamma * P @ V).amax(-1)``.
        """
        count = len(self._ends)
        P = torch.zeros(count, 4, count, device=self.device)
        R = torch.zeros(count, 4, device=self.device)
        for turn, probability in ((0, 1 - self.slip), (-1, self.slip / 2), (1, self.slip / 2)):
            target, reward = self._target.roll(-turn, dims=1), self._reward.roll(-turn, dims=1)
            P.scatter_add_(2, target.unsqueeze(-1), torch.full((count, 4, 1), probability, device=self.device))
            R += probability * reward
        return TransitionModel(P, R, self._ends.clone())

    def _make_tables(self, pays: list[float], device: torch.device) -> None:
        """Work out where every move leads and what it pays, ``[S, 4]`` each, where episodes end and where they start."""
        cells = "".join(self.map)
        stepped_on = torch.tensor([[self._neighbour(cell, move) for move in self.actions] for cell in range(len(cells))])
        cliff = torch.tensor([letter == CLIFF_CELL for letter in cells])
        target = torch.where(cliff[stepped_on], cells.index(START), stepped_on)
        ends = torch.tensor([letter in HOLE + GOAL for letter in cells])
        stay = torch.arange(len(cells)).unsqueeze(-1)  # the end of an episode leads to itself without reward
        self._target = torch.where(ends[stay], stay, target).to(device)
        self._reward = torch.where(ends[stay], 0.0, torch.tensor(pays)[stepped_on]).to(device)
        self._ends = ends.to(device)
        self._starts = torch.tensor([cell for cell, letter in enumerate(cells) if letter == START], device=device)

    def _neighbour(self, cell: int, move: str) -> int:
        """Return the cell that a move steps on: the same one at the border and in front of a wall."""
        width = len(self.map[0])
        row, column = (here + by for here, by in zip(divmod(cell, width), MOVES[move], strict=True))
        inside = 0 <= row < len(self.map) and 0 <= column < width
        return row * width + column if inside and self.map[row][column] not in WALL else cell

    def _initial(self, u: Tensor) -> State:
        count = len(self._starts)
        return {"cell": self._starts.take((u[..., 0] * count).long().clamp(max=count - 1))}

    def _dynamics(self, state: State, action: Any, u: Tensor) -> tuple[State, Tensor, Tensor]:
        if self.slip:
            chance = u[..., 0]
            turn = (chance < self.slip / 2).long() - (chance >= 1 - self.slip / 2).long()
            action = (action + turn) % 4
        index = state["cell"] * 4 + action
        cell = self._target.take(index)
        return {"cell": cell}, self._reward.take(index), self._ends.take(cell)

    def _observe(self, state: State) -> Leaves:
        return {keys.OBSERVATION: state["cell"]}

    def _render(self, index: int) -> np.ndarray:
        rows, columns = len(self.map), len(self.map[0])
        side = max(16, min(64, 480 // max(rows, columns)))
        picture = Picture(columns * side, rows * side, "#dcd9cf")
        for row, letters in enumerate(self.map):
            for column, letter in enumerate(letters):
                _draw_cell(picture, letter, column * side, row * side, side)
        row, column = divmod(int(self._row("cell", index)), columns)
        picture.disc((column + 0.5) * side, (row + 0.5) * side, side * 0.27, PAPER)
        picture.disc((column + 0.5) * side, (row + 0.5) * side, side * 0.24, ORANGE)
        return picture.array()


def _draw_cell(picture: Picture, letter: str, left: float, top: float, side: float) -> None:
    """Draw one cell."""

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x * side, top + y * side

    color = {HOLE: "#9db4cf", GOAL: "#cfe6d6", CLIFF_CELL: "#e3bfb3", **dict.fromkeys(WALL, INK)}.get(letter, PAPER)
    picture.box(left + 1, top + 1, left + side - 1, top + side - 1, color, radius=side / 10)
    if letter == HOLE:
        picture.disc(*at(0.5, 0.5), side * 0.34, INK)
    elif letter == START:
        picture.disc(*at(0.5, 0.5), side * 0.12, BLUE)
    elif letter == GOAL:
        picture.polygon([at(0.36, 0.2), at(0.76, 0.34), at(0.36, 0.48)], GREEN)
        picture.stroke(at(0.36, 0.2), at(0.36, 0.82), side / 20, INK)
    elif letter == CLIFF_CELL:
        for x in (0.2, 0.5, 0.8):
            picture.polygon([at(x - 0.15, 0.85), at(x, 0.55), at(x + 0.15, 0.85)], RED)


def _check_map(rows: Sequence[str]) -> tuple[str, ...]:
    """Return the rows if they make a grid, else raise ConfigError."""
    fix = "Pass rows of equal length, for example ['S..', '.WG']"
    if not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
        raise ConfigError(explain("map", "a sequence of rows of equal length", repr(list(rows)), fix))
    unknown = sorted(set("".join(rows)) - set(START + FREE + HOLE + GOAL + WALL + CLIFF_CELL))
    if unknown:
        raise ConfigError(explain("map", "made of the letters S . F H G W # C", f"{unknown}", fix))
    if START not in "".join(rows):
        raise ConfigError(explain("map", "one with a start S", repr(list(rows)), fix))
    return tuple(rows)
