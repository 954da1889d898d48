# %% [markdown]
# # PPO runs, and the return does not rise
#
# **What you see.** No error, all losses are finite, and the mean return stays where a random policy is.
#
# **In one line.** Ask three questions in this order: does the policy move, does the critic learn, does the signal reach far enough back?

# %% [markdown]
# ## See it
#
# Four runs on CartPole, 10,240 frames each. A random policy scores about 22; the return shown is the mean of the last 100 training
# episodes. One run is healthy; the others each have one thing wrong.

# %%
import math

import matplotlib.pyplot as plt
import torch

from rlbook.recipes import PPO, PPOConfig

torch.set_num_threads(1)
RUNS = {
    "healthy": {},
    "learning rate / 100": {"lr": 1e-5},
    "gamma = 0": {"gamma": 0.0},
    "entropy_coef = 5": {"entropy_coef": 5.0},
}
history = {}
for name, change in RUNS.items():
    agent = PPO(PPOConfig(env="CartPole", total_frames=10_240, anneal=False, **change))
    history[name] = list(agent.train())

# %%
CURVES = ("episode_reward", "approx_kl", "explained_variance", "entropy")
fig, axes = plt.subplots(1, len(CURVES), figsize=(12, 2.8))
for ax, curve in zip(axes, CURVES, strict=True):
    for name, rows in history.items():
        ax.plot([row["frames"] for row in rows], [row[curve] for row in rows], label=name, lw=1.2)
    ax.set_title(curve, fontsize=10)
    ax.set_xlabel("frames", fontsize=9)
    ax.tick_params(labelsize=8)
axes[1].set_yscale("log")
axes[2].set_ylim(-1, 1.05)
fig.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=4, frameon=False)
fig.tight_layout(rect=(0, 0.1, 1, 1))
plt.show()


# %%
def median(name, curve):
    """The median of the second half of a run."""
    rows = sorted(row[curve] for row in history[name][len(history[name]) // 2 :] if not math.isnan(row[curve]))
    return rows[len(rows) // 2] if rows else math.nan


print(f"{'':22}" + "".join(f"{curve:>20}" for curve in CURVES))
for name in RUNS:
    print(f"{name:22}" + "".join(f"{median(name, curve):20.4f}" for curve in CURVES))

# %% [markdown]
# ## Causes, most likely first, and the test that tells them apart
#
# | cause | the test | the fix |
# |---|---|---|
# | The policy does not move: learning rate too small, or the optimizer holds other parameters than the loss | `approx_kl` at 1e-5 or below, entropy stays at its start | raise `lr`; build the optimizer from `loss_fn.parameters()` (rlbook refuses foreign ones) |
# | The signal is too short: `gamma` small against the length of an episode | `approx_kl` looks healthy, `explained_variance` is near 0 or undefined (the targets do not vary) | `1 / (1 - gamma)` should be of the order of the steps that matter |
# | Something else is maximised: `entropy_coef` too large | entropy stays at `log(n)` while `approx_kl` is not small, or rises again | lower `entropy_coef`; 0 to 0.02 is usual |
# | The critic learns nothing: rewards or observations of a wild scale | `explained_variance` below 0 for long, `loss_value` huge | normalise: `PPOConfig(normalize=True)` does it for both; in a loop of your own `rlbook.VecNorm` for observations and `rlbook.transforms.RewardScale` for rewards |
# | The environment is broken | `check_env(env)` says so | mend what it names |
# | Nothing is wrong, it needs longer | curves look healthy | see the frames of our scores before you change anything |
#
# Always run `check_env` first: it costs seconds.

# %%
from rlbook import CartPole, check_env

check_env(CartPole(num_envs=4))
print("the environment keeps its contract")

# %%
assert median("healthy", "episode_reward") > 50
for name in ("learning rate / 100", "gamma = 0", "entropy_coef = 5"):
    assert median(name, "episode_reward") < 0.7 * median("healthy", "episode_reward"), name
assert median("learning rate / 100", "approx_kl") < 0.1 * median("healthy", "approx_kl")
assert median("entropy_coef = 5", "entropy") > 0.68

# %% [markdown]
# ## Our scores
#
# Of the recipes at the settings of `benchmarks/scores/`, where the published ones stand beside them. *Final* is the mean of the last
# training episodes, with exploration; *greedy* that of 100 episodes afterwards, without. Over seeds: the interquartile mean (of fewer
# than 4 seeds the mean) with its 95% bootstrap interval. The interval is too narrow for few seeds: of two it is just their two scores, and one seed has none.
#
# <!-- scores: ppo_cartpole ppo_acrobot ppo_lunarlander ppo_catch ppo_breakout ppo_halfcheetah ppo_hopper ppo_walker2d -->
#
# | item | environment | frames | seeds | final return | greedy return |
# | --- | --- | ---: | ---: | ---: | ---: |
# | [ppo_cartpole](../benchmarks/scores/README.md#ppo_cartpole) | CartPole-v1 | 100,000 | 5 | 500.0 [500.0, 500.0] | 500.0 [500.0, 500.0] |
# | [ppo_acrobot](../benchmarks/scores/README.md#ppo_acrobot) | Acrobot-v1 | 500,000 | 5 | -83.40 [-85.54, -81.92] | -82.22 [-83.01, -81.84] |
# | [ppo_lunarlander](../benchmarks/scores/README.md#ppo_lunarlander) | LunarLander-v3 | 1,000,000 | 1 | 171.7 | 247.9 |
# | [ppo_catch](../benchmarks/scores/README.md#ppo_catch) | Catch | 100,000 | 3 | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |
# | [ppo_breakout](../benchmarks/scores/README.md#ppo_breakout) | Breakout | 1,000,000 | 1 | 18.51 | 21.29 |
# | [ppo_halfcheetah](../benchmarks/scores/README.md#ppo_halfcheetah) | HalfCheetah-v5 | 1,000,000 | 1 | 4,116 | 5,514 |
# | [ppo_hopper](../benchmarks/scores/README.md#ppo_hopper) | Hopper-v5 | 1,000,000 | 1 | 1,632 | 2,041 |
# | [ppo_walker2d](../benchmarks/scores/README.md#ppo_walker2d) | Walker2d-v5 | 1,000,000 | 1 | 3,369 | 3,810 |
# ## More
#
# * Lesson: [12 PPO](../notebooks/12_ppo.ipynb). Page: [what the diagnostics tell you](ppo_diagnostics.ipynb)
# * Andrychowicz et al. 2021, *What Matters for On-Policy Deep Actor-Critic Methods?*, ICLR.
