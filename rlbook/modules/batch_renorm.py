"""Batch renormalisation: batch norm that trains with what it will use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlbook.errors import ConfigError, SpecError, explain
from rlbook.typing import DeviceLike


class BatchRenorm(nn.Module):
    """Normalise each feature, by the batch corrected towards the running statistics, or by these alone.

    With batch mean ``m`` and deviation ``s``, running ones ``M`` and ``S``, and no gradient through ``r`` and ``d``:

        y = weight * ((x - m) / s * r + d) + bias
        r = clip(s / S, 1 / r_max, r_max),  d = clip((m - M) / S, -d_max, d_max)

    Without clipping that is ``(x - M) / S``, what is used afterwards, yet with the gradient of batch norm. During the first
    ``warm_up`` batches ``r = 1`` and ``d = 0``: plain batch norm.

    The batch counts, and enters the running statistics, where the weights learn: in training mode, with gradients on, and with
    weights that require them. Otherwise (a rollout, a target network, an actor's loss that looks through a frozen critic) the
    running statistics normalise, and stay as they are.

    Args:
        num_features: size of the last dimension.
        momentum: share of the new batch in the running statistics, in (0, 1].
        warm_up: batches of plain batch norm at first.
        r_max: largest correction of the deviation, at least 1.
        d_max: largest correction of the mean, in deviations, at least 0.
        eps: added to the variances.
        device, dtype: of the parameters.

    Attributes:
        running_mean, running_var: running statistics, buffers ``[num_features]``.
        steps: batches seen, a buffer ``[]``.

    Raises:
        ConfigError: an argument out of its range.

    Source: Ioffe 2017, "Batch Renormalization", algorithm 1; Bhatt et al. 2024, "CrossQ", for the defaults.
    Deviates: the clipping opens at once after the warm-up, as CrossQ does it, not little by little.

    Example:
        >>> y = BatchRenorm(3)(5 + 2 * torch.randn(1000, 3))
        >>> bool(y.mean().abs() < 1e-3), bool((y.std() - 1).abs() < 1e-2)
        (True, True)
    """

    running_mean: Tensor
    running_var: Tensor
    steps: Tensor

    def __init__(
        self,
        num_features: int,
        momentum: float = 0.01,
        warm_up: int = 100_000,
        r_max: float = 3.0,
        d_max: float = 5.0,
        eps: float = 1e-3,
        device: DeviceLike = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not (0 < momentum <= 1 and r_max >= 1 and d_max >= 0 and warm_up >= 0):
            got = f"momentum={momentum}, r_max={r_max}, d_max={d_max}, warm_up={warm_up}"
            want = "in their ranges: momentum in (0, 1], r_max at least 1, d_max and warm_up at least 0"
            raise ConfigError(explain("The arguments of BatchRenorm", want, got, "Leave them out for CrossQ's"))
        self.num_features, self.momentum, self.warm_up = num_features, momentum, warm_up
        self.r_max, self.d_max, self.eps = r_max, d_max, eps
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Forget everything."""
        self.weight.fill_(1.0)
        self.bias.zero_()
        self.running_mean.zero_()
        self.running_var.fill_(1.0)
        self.steps.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``[*, num_features]`` over all but its last dimension."""
        if x.shape[-1:] != (self.num_features,):
            fix = f"Make it with BatchRenorm({x.shape[-1] if x.ndim else 1})"
            raise SpecError(explain("The input of BatchRenorm", f"of shape [*, {self.num_features}]", f"{list(x.shape)}", fix))
        if not (self.training and torch.is_grad_enabled() and self.weight.requires_grad):
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            return torch.addcmul(self.bias - self.running_mean * scale, x, scale)
        rows = x.reshape(-1, self.num_features).to(self.weight.dtype)  # under autocast x may be bfloat16
        mean = rows.mean(0)
        var = ((rows - mean) ** 2).mean(0)
        r, d = self._correction(mean.detach(), var.detach())
        scale = self.weight * r * torch.rsqrt(var + self.eps)
        return torch.addcmul(self.bias + self.weight * d - mean * scale, rows, scale).reshape(x.shape).to(x.dtype)

    @torch.no_grad()
    def _correction(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``r`` and ``d`` of a batch, then let the batch enter the running statistics, unless it is not finite."""
        warm = (self.steps >= self.warm_up).to(mean.dtype)
        r_max, d_max = 1 + warm * (self.r_max - 1), warm * self.d_max
        inverse = torch.rsqrt(self.running_var + self.eps)
        r = torch.clamp(torch.sqrt(var + self.eps) * inverse, 1 / r_max, r_max)
        d = torch.clamp((mean - self.running_mean) * inverse, -d_max, d_max)
        finite = torch.isfinite(mean + var)  # the update refuses such a step; its statistics must not stay either
        self.running_mean.copy_(torch.where(finite, self.running_mean.lerp(mean, self.momentum), self.running_mean))
        self.running_var.copy_(torch.where(finite, self.running_var.lerp(var, self.momentum), self.running_var))
        self.steps.add_(1)
        return r, d

    def extra_repr(self) -> str:
        return f"{self.num_features}, momentum={self.momentum}, warm_up={self.warm_up}"
