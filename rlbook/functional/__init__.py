"""The mathematics of reinforcement learning as pure functions of tensors: no TensorDict, no module, no environment."""

from rlbook.functional.off_policy_evaluation import (
    Contributions,
    bootstrap_interval,
    cumulative_log_ratio,
    doubly_robust,
    effective_sample_size,
    empirical_bernstein_interval,
    episode_index,
    high_confidence_lower_bound,
    importance_sampling,
    per_decision_importance_sampling,
    student_t_interval,
)
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
    "Contributions",
    "approx_kl",
    "bootstrap_interval",
    "clip_fraction",
    "clipped_value_loss",
    "cumulative_log_ratio",
    "doubly_robust",
    "effective_sample_size",
    "empirical_bernstein_interval",
    "episode_index",
    "explained_variance",
    "generalized_advantage",
    "high_confidence_lower_bound",
    "importance_ratio",
    "importance_sampling",
    "n_step_return",
    "normalize",
    "per_decision_importance_sampling",
    "ppo_clip_loss",
    "reinforce_loss",
    "reverse_scan",
    "reward_to_go",
    "student_t_interval",
    "td0_target",
    "td_error",
    "td_lambda_return",
    "v_trace",
]
