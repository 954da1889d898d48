"""The mathematics of reinforcement learning as pure functions of tensors: no TensorDict, no module, no environment."""

from rlbook.functional.policy_gradient import (
    approx_kl,
    clip_fraction,
    clipped_value_loss,
    importance_ratio,
    ppo_clip_loss,
    reinforce_loss,
)
from rlbook.functional.returns import (
    generalized_advantage,
    n_step_return,
    reward_to_go,
    td0_target,
    td_error,
    td_lambda_return,
    v_trace,
)
from rlbook.functional.scan import reverse_scan
from rlbook.functional.statistics import explained_variance, normalize

__all__ = [
    "approx_kl",
    "clip_fraction",
    "clipped_value_loss",
    "explained_variance",
    "generalized_advantage",
    "importance_ratio",
    "n_step_return",
    "normalize",
    "ppo_clip_loss",
    "reinforce_loss",
    "reverse_scan",
    "reward_to_go",
    "td0_target",
    "td_error",
    "td_lambda_return",
    "v_trace",
]
