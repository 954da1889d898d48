"""LQR: linear dynamics and quadratic costs, the one continuous control problem with a solution on paper."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from rlbook import keys
from rlbook.envs.native._draw import BLUE, GREEN, GREY, INK, ORANGE, Picture
from rlbook.envs.native.base import NativeEnv, State
from rlbook.errors import ConfigError, explain
from rlbook.specs import Bounded, Composite, Unbounded
from rlbook.typing import DeviceLike, Leaves

TIME_STEP = 0.25
DOUBLE_INTEGRATOR = (
    torch.tensor([[1.0, TIME_STEP], [0.0, 1.0]]),
    torch.tensor([[TIME_STEP**2 / 2], [TIME_STEP]]),
    0.1 * torch.eye(2),
    0.1 * torch.eye(1),
)
"""A, B, Q, R of a block of 1 kg on ice: its position and velocity, the force on it. The costs are of the order of 1."""
MAX_ITERATIONS, TOLERANCE = 20_000, 1e-12


@final
class LQR(NativeEnv):
    """Bring a linear system to rest at the origin, at the least quadratic cost; by default a block on ice.

    ``x' = A x + B u`` and ``reward = -(x^T Q x + u^T R u)``. The best action is linear in the state, ``u = -K x``, and its value
    quadratic, ``V(x) = -x^T P x``: :meth:`solve` finds both, with a discount or for a number of steps, from Riccati's equation

        ``K = gamma (R + gamma B^T P B)^-1 B^T P A``,    ``P = Q + gamma A^T P (A - B K)``.

    They are exact while ``-K x`` stays within ``max_action``: for the default system it does from every start.

    Observation:
        ``observation`` float32 ``[n]``: the state; by default position (m) and velocity (m/s).
    Action:
        float32 ``[m]``, in ``[-max_action, max_action]``, or without bounds; by default a force in [-3, 3] N.
    Reward:
        ``-(x^T Q x + u^T R u)``, with the state before the action.
    Ending:
        Never terminated; truncated after ``max_steps``.
    Initial state:
        Each entry uniform in ``[-start, start)``.

    Args:
        num_envs: None for one environment without batch dimension.
        A, B, Q, R: float ``[n, n]``, ``[n, m]``, ``[n, n]`` and ``[m, m]``; Q positive semi-definite, R positive definite. Of Q
            and R the symmetric part counts.
        start: half the width of the initial distribution.
        max_action: bound of every action; None for none.
        max_steps: time limit; None for never.
        device, seed: as for :class:`~rlbook.envs.Env`.

    Raises:
        ConfigError: matrices whose shapes do not fit, or costs that can be negative.

    Source: Bertsekas, "Dynamic Programming and Optimal Control" (4th ed., 2012), vol. I sec. 3.1 (finite horizon) and vol. II
        sec. 4.2 (discounted).

    Example:
        >>> from rlbook import LQR
        >>> env = LQR(seed=0)
        >>> K, P = env.solve(gamma=1.0)
        >>> K
        tensor([[0.8058, 1.5036]])
    """

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        A: Tensor = DOUBLE_INTEGRATOR[0],
        B: Tensor = DOUBLE_INTEGRATOR[1],
        Q: Tensor = DOUBLE_INTEGRATOR[2],
        R: Tensor = DOUBLE_INTEGRATOR[3],
        start: float = 1.0,
        max_action: float | None = 3.0,
        max_steps: int | None = 20,
        device: DeviceLike = None,
        seed: int | None = None,
    ):
        A, B, Q, R = (torch.as_tensor(matrix, dtype=torch.float32, device=device or "cpu") for matrix in (A, B, Q, R))
        n, m = (A.shape or (0,))[0], (B.shape or (0,))[-1]
        shapes = [list(matrix.shape) for matrix in (A, B, Q, R)]
        if shapes != [[n, n], [n, m], [n, n], [m, m]]:
            fix = "Pass for example A=torch.eye(2), B=torch.ones(2, 1), Q=torch.eye(2), R=torch.eye(1)"
            raise ConfigError(explain("A, B, Q and R", "of shape [n, n], [n, m], [n, n] and [m, m]", f"{shapes}", fix))
        self.A, self.B, self.Q, self.R = A, B, (Q + Q.mT) / 2, (R + R.mT) / 2
        least = [torch.linalg.eigvalsh(matrix).min().item() for matrix in (self.Q, self.R)]
        if least[0] < -1e-6 or least[1] <= 0:
            got, fix = (
                f"a smallest eigenvalue of {least[0]:.3g} and {least[1]:.3g}",
                "Pass for example Q=torch.eye(n), R=torch.eye(m)",
            )
            raise ConfigError(explain("Q and R", "positive semi-definite and positive definite", got, fix))
        self.reset_uniforms, self.start, self.max_action, self.horizon = n, start, max_action, max_steps
        action = Unbounded(m) if max_action is None else Bounded(-max_action, max_action, (m,))
        observation = Composite({keys.OBSERVATION: Unbounded(n)})
        super().__init__(observation, action, max_steps=max_steps, num_envs=num_envs, device=device, seed=seed)

    # ---- what is known -------------------------------------------------------------------------------------------------------
    def solve(self, gamma: float = 0.99, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the gain K ``[m, n]`` and the matrix P ``[n, n]`` of the optimum: act ``-K x``, expect ``-x^T P x``.

        Args:
            gamma: discount, in [0, 1].
            steps: how many steps are left, at least 1; None for infinitely many (with time-outs not taken for the end).

        Raises:
            ConfigError: a discount beyond [0, 1], or one with which no action keeps the cost finite.
        """
        if not 0 <= gamma <= 1:
            raise ConfigError(explain("gamma", "in [0, 1]", repr(gamma), "Pass for example 0.99"))
        K, P = self._riccati(gamma, steps)
        return K.float(), P.float()

    def _riccati(self, gamma: float, steps: int | None) -> tuple[Tensor, Tensor]:
        """Solve in double precision."""
        A, B, Q, R = (matrix.double() for matrix in (self.A, self.B, self.Q, self.R))
        P, K, before = torch.zeros_like(A), torch.zeros_like(B.mT), A
        for _ in range(MAX_ITERATIONS if steps is None else steps):
            K = gamma * torch.linalg.solve(R + gamma * B.mT @ P @ B, B.mT @ P @ A)
            before, P = P, Q + gamma * A.mT @ P @ (A - B @ K)
            if steps is None and not TOLERANCE * P.abs().max() < (P - before).abs().max() < torch.inf:
                break  # no change, or no number any more
        if steps is None and not (P - before).abs().max() <= TOLERANCE * P.abs().max() < torch.inf:
            fix = "Lower gamma, or change B so that it reaches every growing direction of A"
            raise ConfigError(explain("The cost of the best policy", "finite", f"none for gamma={gamma}", fix))
        return K, P

    def optimal_action(self, observation: Tensor, gamma: float = 0.99) -> Tensor:
        """Return ``-K x``, ``[*, m]``, for observations ``[*, n]``, within the bounds. It is a policy."""
        force = -observation @ self.solve(gamma)[0].mT
        return force if self.max_action is None else force.clamp(-self.max_action, self.max_action)

    def optimal_value(self, observation: Tensor, gamma: float = 0.99) -> Tensor:
        """Return ``-x^T P x``, ``[*]``, for observations ``[*, n]``: discounted, over infinitely many steps."""
        return -_quadratic(self.solve(gamma)[1], observation)

    @property
    def optimal_return(self) -> float:
        """Expected undiscounted return of the best policy that knows how many steps are left: ``-E[x^T P x]`` at the start.

        Without a time limit it is that of infinitely many steps.
        """
        return -self._expect(self._riccati(1.0, self.horizon)[1])

    def return_of(self, K: Tensor, gamma: float = 1.0) -> float:
        """Return the expected discounted return of an episode under ``u = -K x``, K float ``[m, n]``, bounds left aside.

        Raises:
            ConfigError: episodes have no end.
        """
        if self.horizon is None:
            fix = "Make the environment with max_steps=..."
            raise ConfigError(explain("max_steps", "a number, for a sum over an episode", "None", fix))
        A, B, Q, R, K = (matrix.double() for matrix in (self.A, self.B, self.Q, self.R, K))
        closed, cost, P = A - B @ K, Q + K.mT @ R @ K, torch.zeros_like(A)
        for _ in range(self.horizon):
            P = cost + gamma * closed.mT @ P @ closed
        return -self._expect(P)

    def _expect(self, P: Tensor) -> float:
        """Return ``E[x^T P x]`` over initial states: the entries are independent, with mean 0 and variance ``start**2 / 3``."""
        return P.trace().item() * self.start**2 / 3

    # ---- the environment -----------------------------------------------------------------------------------------------------
    def _initial(self, u: Tensor) -> State:
        return {"x": (2 * u - 1) * self.start}

    def _dynamics(self, state: State, action: Any, u: Tensor) -> tuple[State, Tensor, Tensor]:
        x = state["x"]
        force = action if self.max_action is None else action.clamp(-self.max_action, self.max_action)
        reward = -(_quadratic(self.Q, x) + _quadratic(self.R, force))
        return {"x": _times(self.A, x) + _times(self.B, force)}, reward, torch.zeros_like(reward, dtype=torch.bool)

    def _observe(self, state: State) -> Leaves:
        return {keys.OBSERVATION: state["x"]}

    def _render(self, index: int) -> np.ndarray:
        """Draw the first two entries of the state as a plane: lines of equal value, and the best way to the origin."""
        x = self._row("x", index).cpu().double()
        K, P = (matrix.cpu() for matrix in self._riccati(1.0 if self.horizon else 0.99, self.horizon))
        closed = self.A.cpu().double() - self.B.cpu().double() @ K
        way = [x]
        for _ in range(self.horizon or 20):
            way.append(closed @ way[-1])
        scale = 60 / self.start

        def at(state: Tensor) -> tuple[float, float]:
            across, up = state[0].item(), state[1].item() if len(state) > 1 else 0.0
            return 150 + across * scale, 100 - up * scale

        picture = Picture(300, 200)
        picture.stroke((12, 100), (288, 100), 1, GREY)
        picture.stroke((150, 10), (150, 190), 1, GREY)
        if len(x) > 1:
            for level in (0.25, 1.0, 2.25):
                ring = _ellipse(P[:2, :2], level * P[:2, :2].trace().item() * self.start**2 / 3)
                for one, other in pairwise([*ring, ring[0]]):
                    picture.stroke(at(one), at(other), 1.5, "#d9e3f1")
        for one, other in pairwise(way):
            picture.stroke(at(one), at(other), 2, BLUE)
        picture.disc(150, 100, 6, GREEN)
        picture.disc(*at(x), 10, INK)
        picture.disc(*at(x), 8, ORANGE)
        return picture.array()


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply ``[n, m]`` by every ``[*, m]``, in the same order for any number of rows: a BLAS product rounds by batch size."""
    columns = [matrix[:, j] * x[..., j : j + 1] for j in range(matrix.shape[1])]
    return sum(columns[1:], columns[0])


def _quadratic(matrix: Tensor, x: Tensor) -> Tensor:
    """Return ``x^T M x``, ``[*]``, for every ``[*, n]``."""
    terms = (x * _times(matrix, x)).unbind(-1)
    return sum(terms[1:], terms[0])


def _ellipse(P: Tensor, level: float) -> list[Tensor]:
    """Return points of the curve ``x^T P x = level``, for a positive definite P ``[2, 2]``."""
    angle = torch.linspace(0, 2 * torch.pi, 73, dtype=P.dtype)[:-1]
    circle = torch.stack((angle.cos(), angle.sin()))
    values, vectors = torch.linalg.eigh(P)
    return list((vectors @ (circle * (level / values.clamp(min=1e-9)).sqrt().unsqueeze(-1))).mT)
