"""One case or more for each exported loss, which the conformance suite runs through; a new loss adds its own to its family."""

from __future__ import annotations

from losses import cases_actor_critic, cases_policy, cases_value
from losses.casekit import CONTINUOUS, DISCRETE, Case, actor, on_policy_batch, value

CASES: dict[str, Case] = {**cases_policy.CASES, **cases_value.CASES, **cases_actor_critic.CASES}

__all__ = ["CASES", "CONTINUOUS", "DISCRETE", "Case", "actor", "on_policy_batch", "value"]
