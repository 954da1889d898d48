"""Actions in the agent's units."""

from __future__ import annotations

from typing import Any

import torch

from rlbook.errors import ConfigError, SpecError, explain
from rlbook.specs import Bounded, Spec
from rlbook.transforms.base import Transform


class RescaleAction(Transform):
    """Let the agent act in ``[low, high]`` whatever the environment's bounds are: both ranges are mapped linearly.

    Args:
        low, high: the agent's bounds.

    Raises:
        ConfigError: ``low`` is not below ``high``.
        SpecError: the environment's actions are not bounded numbers.

    Example:
        >>> from rlbook import Pendulum, TransformedEnv
        >>> from rlbook.transforms import RescaleAction
        >>> TransformedEnv(Pendulum(), RescaleAction()).action_spec
        Bounded(-1, 1, shape=[1])
    """

    def __init__(self, low: float = -1.0, high: float = 1.0):
        super().__init__()
        if not low < high:
            raise ConfigError(explain("low", "below high", f"low={low}, high={high}", "Pass for example low=-1.0, high=1.0"))
        self.low, self.high = low, high

    def transform_action_spec(self, spec: Spec) -> Spec:
        """The agent's bounds."""
        if not isinstance(spec, Bounded) or not spec.bounded or not spec.dtype.is_floating_point:
            fix = "Leave RescaleAction out"
            raise SpecError(explain("The action spec", "a Bounded of finite floating-point bounds", f"{spec}", fix))
        self._low, self._high = spec.low, spec.high
        return Bounded(self.low, self.high, spec.shape, spec.dtype, spec.device)

    def on_action(self, action: Any) -> Any:
        """Return the environment's action, inside its bounds."""
        fraction = (action - self.low) / (self.high - self.low)
        return torch.lerp(self._low, self._high, fraction).clamp(self._low, self._high)
