"""Reduced precision: matrices are multiplied in 16 bits, all else stays in 32."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from rlbook.errors import ConfigError, explain

Precision = Literal["bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str | None, device: torch.device) -> None:
    """Raise ConfigError unless a precision is known, and ``"fp16"`` on a device that has it."""
    if precision is not None and precision not in DTYPES:
        raise ConfigError(explain("precision", 'None, "bf16" or "fp16"', repr(precision), "Leave it out for float32"))
    if precision == "fp16" and device.type == "cpu":
        fix = 'Use precision="bf16" here, or move the loss to a GPU'
        raise ConfigError(explain('precision="fp16"', "for a GPU", "a loss on the CPU", fix))


def autocast(precision: str | None, device: torch.device) -> AbstractContextManager:
    """Return the context in which matrices are multiplied in a precision."""
    return nullcontext() if precision is None else torch.autocast(device.type, DTYPES[precision])


class LossScale:
    """What a loss is multiplied by before its gradient is computed in float16, whose smallest number is 6e-8.

    A step whose gradient is not finite is not taken, and the scale halved; after 2000 good steps in a row it is doubled.

    Source: Micikevicius et al. 2018, "Mixed Precision Training", section 3.2; the rules and constants are those of
    ``torch.amp.GradScaler``.
    """

    def __init__(self, device: torch.device, initial: float = 2.0**16, interval: int = 2000):
        self.scale, self.good = torch.full((), initial, device=device), torch.zeros((), device=device)
        self.interval = interval

    def state(self) -> list[Tensor]:
        """The tensors that a step reads and writes: the scale, and how many good steps there were in a row."""
        return [self.scale, self.good]

    @torch.no_grad()
    def adjust(self, finite: Tensor, scale: Tensor, good: Tensor) -> Tensor:
        """Let a step change the scale in place; return whether it was finite, or not so because the scale was too large."""
        tolerable = finite | (scale >= 1)
        count = torch.where(finite, good + 1, 0.0)
        grows = count >= self.interval
        good.copy_(torch.where(grows, 0.0, count))
        grown = torch.where(grows, (2 * scale).clamp(max=2.0**127), scale)
        scale.copy_(torch.where(finite, grown, scale / 2))
        return tolerable

    def state_dict(self) -> dict[str, float]:
        """Return what to save."""
        return {"scale": self.scale.item(), "good_steps": self.good.item()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a saved scale."""
        self.scale.fill_(state["scale"])
        self.good.fill_(state["good_steps"])
