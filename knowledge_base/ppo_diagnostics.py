# %% [markdown]
# # PPO: what `approx_kl`, `clip_fraction`, `entropy` and `explained_variance` tell you
#
# **What you see.** Four curves beside the return, and no idea which of them should worry you.
#
# **In one line.** `approx_kl` says how far a round has moved the policy, `clip_fraction` how often the clip had to hold it back, `entropy` how much exploration is
# left, `explained_variance` whether the critic knows anything.

# %% [markdown]
# ## See it
#
# Three runs on CartPole, 8,192 frames each: the tuned settings, a learning rate 30 times larger, and a learning rate 30 times smaller.

# %%
import math

import matplotlib.pyplot as plt
import torch

from rlbook.recipes import PPO, PPOConfig

torch.set_num_threads(1)
RUNS = {"tuned (lr 1e-3)": 1e-3, "too fast (lr 3e-2)": 3e-2, "too slow (lr 3e-5)": 3e-5}
CURVES = ("episode_reward", "approx_kl", "clip_fraction", "entropy", "explained_variance")
history = {}
for name, lr in RUNS.items():
    agent = PPO(PPOConfig(env="CartPole", total_frames=8192, anneal=False, lr=lr))
    history[name] = list(agent.train())

# %%
fig, axes = plt.subplots(1, len(CURVES), figsize=(13, 2.8))
for ax, curve in zip(axes, CURVES, strict=True):
    for name, rows in history.items():
        ax.plot([row["frames"] for row in rows], [row[curve] for row in rows], label=name, lw=1.2)
    ax.set_title(curve, fontsize=10)
    ax.set_xlabel("frames", fontsize=9)
    ax.tick_params(labelsize=8)
axes[1].set_yscale("log")
axes[4].set_ylim(-1, 1.05)
fig.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=3, frameon=False)
fig.tight_layout(rect=(0, 0.1, 1, 1))
plt.show()


# %%
def median(name, curve):
    """The median of the second half of a run."""
    rows = sorted(row[curve] for row in history[name][len(history[name]) // 2 :] if not math.isnan(row[curve]))
    return rows[len(rows) // 2]


print(f"{'':20}" + "".join(f"{curve:>20}" for curve in CURVES))
for name in RUNS:
    print(f"{name:20}" + "".join(f"{median(name, curve):20.4f}" for curve in CURVES))

# %% [markdown]
# ## How to read them
#
# | curve | healthy | too high | too low |
# |---|---|---|---|
# | `approx_kl` | about 0.0005 to 0.02 per round | steps too large: lower `lr`, fewer `epochs` | nothing moves: raise `lr` |
# | `clip_fraction` | about 0.02 to 0.3 | above 0.3: a good part of the batch teaches nothing more; lower `lr` or `epochs` | 0: the clip never acts, you can afford more epochs |
# | `entropy` | falls slowly from `log(n)` (0.69 for two actions) | flat at `log(n)`: the policy has not started to learn | near 0 early: it stopped exploring; lower `lr`, raise `entropy_coef` |
# | `explained_variance` | reaches 0.5 and more, and jumps up and down while the policy is changing | | below 0 for long: the critic is worse than a constant; look at the reward's scale and at `lr` |
#
# `approx_kl` and `clip_fraction` are those of the last minibatch of a round, measured before the step on it: they scatter, so look at several rounds.
#
# The large learning rate shows in `approx_kl` first: it is more than ten times higher, `clip_fraction` much less. The clip stops the *gradient* of
# samples that have gone too far; it does not bring them back.
#
# A caution: on a solved CartPole every return is the same, so there is no variance left to explain, and `explained_variance` falls again.
#
# ## Causes, most likely first
#
# 1. The learning rate.
# 2. Too many `epochs` over one batch, or a batch that is too small for them.
# 3. Advantages that are not normalised while rewards are large.
# 4. Log-probabilities that were recomputed with another policy than the one that acted: then `approx_kl` is not near 0 in the *first* minibatch of a round.
#
# ## The test that tells them apart
#
# Take the very first minibatch after collecting. The policy has not changed yet, so the ratio is 1: `approx_kl` and `clip_fraction` must be 0. If they are not,
# it is cause 4, a bug. If they are, halve the learning rate and look again.

# %%
from rlbook import Collector, minibatches

agent = PPO(PPOConfig(env="CartPole"))
rollout = Collector(agent.env, agent.actor, frames_per_batch=256).collect()
rollout.update({"advantage": torch.randn(rollout.shape), "value_target": torch.zeros(rollout.shape)})
first = agent.loss_fn(next(minibatches(rollout, 256)))
print("approx_kl", first["approx_kl"].item(), "  clip_fraction", first["clip_fraction"].item())

# %%
assert first["approx_kl"].abs() < 1e-6
assert first["clip_fraction"] == 0
assert median("tuned (lr 1e-3)", "episode_reward") > 1.4 * median("too slow (lr 3e-5)", "episode_reward")
assert median("too fast (lr 3e-2)", "entropy") < median("tuned (lr 1e-3)", "entropy") < median("too slow (lr 3e-5)", "entropy")
assert (
    median("too slow (lr 3e-5)", "approx_kl") < median("tuned (lr 1e-3)", "approx_kl") < median("too fast (lr 3e-2)", "approx_kl")
)

# %% [markdown]
# ## More
#
# * Lesson: [12 PPO](../notebooks/12_ppo.ipynb). Page: [the return does not rise](ppo_not_learning.ipynb)
# * Schulman 2020, *Approximating KL Divergence* (the estimator `k3` that `approx_kl` is).
# * Huang et al. 2022, *The 37 Implementation Details of Proximal Policy Optimization*, ICLR blog track.
