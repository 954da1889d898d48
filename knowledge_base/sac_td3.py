# %% [markdown]
# # SAC, TD3 and their kin: what a healthy run looks like, and what the sick ones have
#
# **What you see.** An off-policy run with continuous actions (DDPG, TD3, SAC, REDQ, CrossQ, TQC) has finite losses, and the return stays low.
#
# **In one line.** Look at the value and at the spread of the policy before you look at the return: both have bounds that you can work out on paper.

# %% [markdown]
# ## See it
#
# Four short runs of SAC on Pendulum. A random policy scores about -1,200, a good one -150. One run is healthy and gets 4,800 frames; the
# others each have one thing wrong, and show it within 2,000. Learning is quick here by way of a high learning rate, a small network and
# a discount of 0.97; the defaults of the recipe are those for MuJoCo.

# %%
import math

import matplotlib.pyplot as plt
import torch

from rlbook.recipes import SAC, SACConfig

torch.set_num_threads(1)
GAMMA = 0.97
QUICK = {"num_envs": 4, "frames_per_batch": 4, "updates": 4, "learning_starts": 800, "log_every": 200, "gamma": GAMMA}
QUICK |= {"num_cells": (64, 64), "batch_size": 64, "lr": 2e-3, "lr_value": 3e-3, "tau": 0.01}
RUNS = {
    "healthy": {"total_frames": 4800},
    "learning rates / 100": {"total_frames": 2000, "lr": 2e-5, "lr_value": 3e-5},
    "alpha = 20, fixed": {"total_frames": 2000, "alpha": 20.0, "learn_alpha": False},
    "gamma = 0": {"total_frames": 2000, "gamma": 0.0},
}
history, score = {}, {}


def run(name):
    """Train one of the runs; keep its metrics and the return of its greedy policy."""
    agent = SAC(SACConfig(**{**QUICK, **RUNS[name]}))
    history[name] = [row for row in agent.train() if "q_mean" in row]
    score[name] = agent.evaluate(20).mean().item()


run("healthy")

# %%
for name in RUNS:
    if name != "healthy":
        run(name)

# %%
CURVES = ("q_mean", "entropy", "alpha", "loss_value")
fig, axes = plt.subplots(1, 1 + len(CURVES), figsize=(13, 3))
axes[0].barh(list(score), list(score.values()), color=[f"C{i}" for i in range(len(score))])
axes[0].set_title("greedy return", fontsize=10)
axes[0].invert_yaxis()
axes[0].set_yticks([])
for ax, curve in zip(axes[1:], CURVES, strict=True):
    for name, rows in history.items():
        ax.plot([row["frames"] for row in rows], [row[curve] for row in rows], label=name, lw=1.2)
    ax.set_title(curve, fontsize=10)
    ax.set_xlabel("frames", fontsize=9)
for ax in axes:
    ax.tick_params(labelsize=8)
axes[1].set_yscale("symlog", linthresh=10)
axes[3].set_yscale("log")
axes[4].set_yscale("log")
fig.legend(*axes[1].get_legend_handles_labels(), loc="lower center", ncol=4, frameon=False)
fig.tight_layout(rect=(0, 0.1, 1, 1))
plt.show()

# %%
print(f"{'':22}{'greedy return':>15}" + "".join(f"{curve:>12}" for curve in CURVES))
for name, rows in history.items():
    print(f"{name:22}{score[name]:15.0f}" + "".join(f"{rows[-1][curve]:12.3f}" for curve in CURVES))

# %% [markdown]
# ## What the curves of a healthy run do
#
# * `q_mean` leaves 0, stays within its bounds and then follows the return: it is the discounted return, plus the entropy that SAC pays for.
#   On Pendulum every reward is between -16.3 and 0, so without entropy a value must lie between `-16.3 / (1 - gamma)` and 0.
# * `entropy` falls from near that of uniform actions (`log` of the range's volume, here `log 4 = 1.39`) to the target, minus the number of action
#   dimensions, and stays around it while `alpha`, the price of entropy in units of reward, moves to keep it.
# * `loss_value` rises with the scale of the values: it is no measure of progress. Its root should be a small part of `q_mean` (in the table 3 of 46);
#   with the learning rates divided by 100 it is larger than the values themselves (8 of 5). A small one proves nothing: with `alpha` at 20 the critics fit the wrong values well.

# %%
uniform = math.log(4.0)
lowest = -16.3 / (1 - GAMMA)
print(f"entropy of uniform actions {uniform:.2f}, target -1; values between {lowest:.0f} and 0, but for the entropy's part")

# %% [markdown]
# ## Causes, most likely first, and the test that tells them apart
#
# | cause | the test | the fix |
# |---|---|---|
# | Nothing moves: learning rate too small, or a parameter is in no optimizer | `q_mean` near 0 and `entropy` at its start after a thousand updates | raise `lr` and `lr_value`; print the optimizer's groups |
# | The entropy is worth more than the reward: `alpha` too large, rewards too small | `entropy` at the uniform's, `q_mean` outside the bounds of the reward | learn `alpha`, or scale the reward |
# | The policy became deterministic too early: `alpha` too small, or a target entropy far too low | `entropy` far below the target, `alpha` near 0 | start `alpha` higher; leave `target_entropy` of the loss at `"auto"`, minus the number of action dimensions (in the environment's units) |
# | Overestimation (DDPG most of all) | `q_mean` above what the reward allows, and rising while the return does not | two critics (TD3), more atoms dropped (TQC), smaller `tau` |
# | Saturation (DDPG, TD3) | greedy actions at the bounds in every state: `(action.abs() > 0.99 * bound).mean()` near 1 | lower `lr`; put actions in [-1, 1] before the critic, as `make_qvalue` does |
# | The signal is too short: `gamma` too small | `q_mean` is the mean reward and no more | `1 / (1 - gamma)` of the order of the steps that matter |
# | A time-out is taken for the end | `q_mean` stays too near 0 in tasks that never end | store `terminated`, not `done`: see [time-outs](timeouts.ipynb) |
# | Too little data per update, or too few updates per frame | all curves healthy, only slow | `updates / frames_per_batch` is 1 in most papers, 20 in REDQ and DroQ |
#
# In doubt train on the probes with `env="ProbeBoth(continuous=True)"` first: they take two seconds, and every value is known.

# %%
from rlbook.recipes import TD3, TD3Config

probe = TD3(
    TD3Config(
        env="ProbeBoth(continuous=True)",
        num_envs=8,
        frames_per_batch=8,
        learning_starts=400,
        total_frames=3600,
        num_cells=(32,),
        batch_size=64,
        lr=3e-3,
        lr_value=1e-2,
        tau=0.05,
    )
)
_ = list(probe.train())
signal = torch.tensor([[1.0], [-1.0]])
with torch.no_grad():
    action = probe.greedy.act({"observation": signal})["action"]
print(f"the best actions are 0.5 and -0.5; TD3 takes {action[0].item():.2f} and {action[1].item():.2f}")

# %%
last = {name: rows[-1] for name, rows in history.items()}
assert score["healthy"] > max(score[name] for name in RUNS if name != "healthy") + 100
assert lowest < last["healthy"]["q_mean"] < 0
assert last["healthy"]["entropy"] < 0.5
assert last["learning rates / 100"]["entropy"] > 0.8
assert abs(last["learning rates / 100"]["q_mean"]) < 0.3 * abs(last["healthy"]["q_mean"])
assert last["alpha = 20, fixed"]["entropy"] > 1.2
assert last["alpha = 20, fixed"]["q_mean"] > 50
assert -16.3 < last["gamma = 0"]["q_mean"] < 0
assert (action - 0.5 * signal).abs().max() < 0.25

# %% [markdown]
# ## Our scores
#
# Of the recipes at the settings of `benchmarks/scores/`, where the published ones stand beside them. *Final* is the mean of the last
# training episodes, with exploration; *greedy* that of 100 episodes afterwards, without. Over seeds: the interquartile mean (of fewer
# than 4 seeds the mean) with its 95% bootstrap interval. The interval is too narrow for few seeds: of two it is just their two scores, and one seed has none. On LQR the best policy has an expected
# return of -0.499; a mean of 100 episodes scatters around it by about 0.04, so a score may lie above it.
#
# <!-- scores: ddpg_pendulum td3_pendulum sac_pendulum tqc_pendulum ddpg_lqr sac_lqr sac_halfcheetah td3_halfcheetah tqc_halfcheetah crossq_halfcheetah redq_halfcheetah sac_hopper td3_hopper tqc_hopper crossq_hopper redq_hopper sac_walker2d td3_walker2d tqc_walker2d crossq_walker2d redq_walker2d -->
#
# | item | environment | frames | seeds | final return | greedy return |
# | --- | --- | ---: | ---: | ---: | ---: |
# | [ddpg_pendulum](../benchmarks/scores/README.md#ddpg_pendulum) | Pendulum-v1 | 20,000 | 2 | -179.4 [-183.3, -175.5] | -139.2 [-139.9, -138.4] |
# | [td3_pendulum](../benchmarks/scores/README.md#td3_pendulum) | Pendulum-v1 | 20,000 | 4 | -182.3 [-203.0, -160.8] | -137.2 [-139.2, -136.8] |
# | [sac_pendulum](../benchmarks/scores/README.md#sac_pendulum) | Pendulum-v1 | 20,000 | 2 | -154.0 [-171.8, -136.2] | -141.5 [-147.1, -135.9] |
# | [tqc_pendulum](../benchmarks/scores/README.md#tqc_pendulum) | Pendulum-v1 | 20,000 | 2 | -170.2 [-170.6, -169.8] | -137.1 [-138.7, -135.4] |
# | [ddpg_lqr](../benchmarks/scores/README.md#ddpg_lqr) | LQR | 20,000 | 3 | -1.16 [-1.66, -0.88] | -0.82 [-1.37, -0.52] |
# | [sac_lqr](../benchmarks/scores/README.md#sac_lqr) | LQR | 20,000 | 1 | -0.52 | -0.47 |
# | [sac_halfcheetah](../benchmarks/scores/README.md#sac_halfcheetah) | HalfCheetah-v5 | 1,000,000 | 1 | 11,902 | 12,553 |
# | [sac_hopper](../benchmarks/scores/README.md#sac_hopper) | Hopper-v5 | 300,000 | 1 | 2,746 | 3,354 |
# | [td3_hopper](../benchmarks/scores/README.md#td3_hopper) | Hopper-v5 | 300,000 | 1 | 1,638 | 1,738 |
# | [tqc_hopper](../benchmarks/scores/README.md#tqc_hopper) | Hopper-v5 | 100,000 | 1 | 1,193 | 1,048 |
# | [td3_walker2d](../benchmarks/scores/README.md#td3_walker2d) | Walker2d-v5 | 300,000 | 1 | 602.9 | 535.6 |
# | [tqc_walker2d](../benchmarks/scores/README.md#tqc_walker2d) | Walker2d-v5 | 100,000 | 1 | 580.3 | 534.7 |
#
# ## More
#
# * Page: [PPO runs, and the return does not rise](ppo_not_learning.ipynb)
# * Fujimoto et al. 2018, *Addressing Function Approximation Error in Actor-Critic Methods*, ICML: overestimation measured, and TD3.
# * Haarnoja et al. 2018, *Soft Actor-Critic Algorithms and Applications*: the temperature that adapts itself.
