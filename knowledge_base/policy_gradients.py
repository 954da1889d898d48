# %% [markdown]
# # REINFORCE, A2C, TRPO, IMPALA: what healthy runs look like, and what goes wrong
#
# **What you see.** A policy gradient that learns slowly, stops learning, or falls back.
#
# **In one line.** Look at the entropy, then at how far the policy moves, then at the critic: each method has one usual failure, and one number that shows it.
#
# For PPO see [the return does not rise](ppo_not_learning.ipynb) and [its diagnostics](ppo_diagnostics.ipynb).

# %% [markdown]
# ## Healthy
#
# Four methods on CartPole with their default settings. A random policy scores about 22; the return is the mean of the last 100 training episodes.
#
# * **REINFORCE** waits for episodes to end. Its curve is smooth and slow: one step per 1024 frames.
# * **A2C** takes a step every 40 frames, from 5 steps of each environment: quick, and rough.
# * **IMPALA** is A2C on data of a policy up to 3 updates old, corrected by V-trace: each step is weighted by how much likelier its action is
#   now than when it was taken, at most 1. `approx_kl` says how far that policy is behind: 0 after each renewal, and mostly below 0.1 before the next.
# * **TRPO** takes one step per 1024 frames, as long as its bound allows: `kl` lies between half of `max_kl` and all of it. `step_scale`
#   says which share of the full step was kept: 1, 0.8, 0.64 and so on, 0 if none was good.
#
# So the third panel shows IMPALA alone and the fourth TRPO alone. (TRPO measures `approx_kl` before its step, when it is 0.)

# %%
import math

import matplotlib.pyplot as plt
import torch

from rlbook.recipes import RECIPES

torch.set_num_threads(1)
COLORS = {"REINFORCE": "C0", "A2C": "C1", "IMPALA": "C2", "TRPO": "C3"}
history = {}


def train(label, recipe, frames=12_000, **change):
    """Train on CartPole and keep the metrics of every round."""
    make, config = RECIPES[recipe]
    agent = make(config(env="CartPole", total_frames=frames, **change))
    history[label] = list(agent.train())


def draw(labels, curves, log=()):
    """Draw curves of several runs beside each other."""
    fig, axes = plt.subplots(1, len(curves), figsize=(3 * len(curves), 3))
    for ax, curve in zip(axes, curves, strict=True):
        for label in labels:
            rows = [(row["frames"], row[curve]) for row in history[label] if curve in row]
            step = max(1, len(rows) // 60)  # A2C has hundreds of rounds: draw the means of a few
            groups = [rows[i : i + step] for i in range(0, len(rows), step)]
            means = [sum(y for _, y in group) / len(group) for group in groups]
            style = "--" if "not corrected" in label else "-"
            color = COLORS[label.split(",")[0]]
            ax.plot([group[-1][0] for group in groups], means, style, color=color, label=label, lw=1.2)
        ax.set_title(curve, fontsize=10)
        ax.set_xlabel("frames", fontsize=9)
        ax.tick_params(labelsize=8)
        if curve in log:
            ax.set_yscale("log")
            ax.set_ylim(bottom=max(3e-6, ax.get_ylim()[0]))  # below is rounding
    fig.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=4, frameon=False)
    fig.tight_layout(rect=(0, 0.1, 1, 1))
    plt.show()


def median(label, curve):
    """The median of the second half of a run."""
    rows = [row[curve] for row in history[label] if not math.isnan(row.get(curve, math.nan))]
    rows = sorted(rows[len(rows) // 2 :])
    return rows[len(rows) // 2] if rows else math.nan


train("REINFORCE", "reinforce")
train("A2C", "a2c")

# %%
train("IMPALA", "impala")
train("TRPO", "trpo")
draw(("REINFORCE", "A2C", "IMPALA", "TRPO"), ("episode_reward", "entropy", "approx_kl", "kl"), log=("approx_kl", "kl"))

# %%
for label in history:
    print(f"{label:12} return {median(label, 'episode_reward'):6.1f}   entropy {median(label, 'entropy'):.3f}")
assert all(median(label, "episode_reward") > 30 for label in history)
assert all(0.3 < median(label, "entropy") < 0.693 for label in history)
assert 0.001 < median("TRPO", "kl") <= 0.01

# %% [markdown]
# ## Three that are not
#
# * **A2C with a learning rate that is much too large.** The entropy falls to 0 within a few updates: the policy is sure of everything, and never sees what it could have
#   done instead. The return does not show it yet: this run ends even above the healthy one (about 78 against 68 after 12,000 frames). The entropy
#   does: with no exploration left, what it can still improve is up to luck.
# * **IMPALA without its correction**, on data up to 39 updates old (with `lr` 5e-3 instead of 2e-3, in both runs; the acting policy is renewed once, at
#   frame 6,400, where `approx_kl` begins anew): it takes them for its own. What looked good when they were collected is pushed up again and again,
#   since no weight says that it is likely by now. The returns of the two hardly differ yet; the entropy falls much further than with V-trace on data as old.
# * **TRPO with a bound that is much too tight.** All numbers look healthy, and nothing moves.

# %%
train("A2C, lr = 0.05", "a2c", lr=0.05)
STALE = {"lag": 40, "lr": 5e-3}
train("IMPALA, lag 40", "impala", **STALE)

# %%
train("IMPALA, lag 40, not corrected", "impala", correct=False, **STALE)
train("TRPO, max_kl = 1e-5", "trpo", max_kl=1e-5)
draw(list(history)[4:], ("episode_reward", "entropy", "approx_kl", "kl"), log=("approx_kl", "kl"))

# %%
for label in list(history)[4:]:
    numbers = {curve: median(label, curve) for curve in ("episode_reward", "entropy", "approx_kl", "kl")}
    print(f"{label:30}" + "".join(f"{name:>16} {number:8.5f}" for name, number in numbers.items()))
assert median("A2C, lr = 0.05", "entropy") < 0.1
assert median("IMPALA, lag 40, not corrected", "entropy") < 0.6 * median("IMPALA, lag 40", "entropy")
assert median("TRPO, max_kl = 1e-5", "episode_reward") < 0.7 * median("TRPO", "episode_reward")

# %% [markdown]
# ## What the baseline is for
#
# All returns on CartPole are positive, so REINFORCE without a baseline pushes *every* action up, those with much still to come most, and hopes that the average over many episodes sorts it out. Take one policy, draw 40 batches of
# whole episodes from it, and look at how much their gradients scatter: with the returns as weights, and with what is left of them when a learnt value is subtracted.

# %%
from rlbook.losses import ReinforceLoss
from rlbook.recipes import Reinforce, ReinforceConfig

agent = Reinforce(ReinforceConfig(env="CartPole", total_frames=10_240))
_ = list(agent.train())
loss_fn = ReinforceLoss(agent.actor, normalize_advantage=False)
batch = agent.whole(agent.with_bootstrap(agent.collector.collect()))
for _ in range(200):  # a value of this policy: the recipe takes one such step per batch
    error = (agent.value.value(batch) - batch["value_target"]).square().mean()
    grads = torch.autograd.grad(error, list(agent.value.parameters()))
    with torch.no_grad():
        for weight, grad in zip(agent.value.parameters(), grads, strict=True):
            weight -= 0.01 * grad / max(1.0, grad.norm().item())
gradients = {"returns": [], "returns minus values": []}
for _ in range(40):
    batch = agent.whole(agent.with_bootstrap(agent.collector.collect()))
    target = batch["value_target"]
    for name, weight in zip(gradients, (target, target - agent.predicted(batch)), strict=True):
        batch["advantage"] = weight
        grads = torch.autograd.grad(loss_fn(batch)["loss_actor"], list(agent.actor.parameters()))
        gradients[name].append(torch.cat([grad.flatten() for grad in grads]))
scatter = {name: torch.stack(rows).var(0).sum().sqrt().item() for name, rows in gradients.items()}
for name, number in scatter.items():
    print(f"{name:22} standard deviation of the gradient {number:8.2f}")
assert scatter["returns"] > 1.15 * scatter["returns minus values"]

# %% [markdown]
# Normalising the weights of a batch (the default of the recipe) subtracts their mean, which is a baseline too, the same for all states: so the recipe has two. The numbers above are of the learnt one alone.
#
# ## Causes, most likely first, and the test that tells them apart
#
# | method | cause | the test | the fix |
# |---|---|---|---|
# | all | the policy made up its mind too early | `entropy` near 0 while the return is low | lower `lr`; `entropy_coef` 0.01; normalise observations |
# | A2C | steps too large for 40 rows | `entropy` is near 0 within the first ten or twenty updates (the healthy run still has 0.5 after 300). `grad_norm` does not tell: the critic's part keeps it far above `max_grad_norm` in healthy runs too | `lr` at 7e-4 or below; more environments |
# | A2C | the critic is no help | `explained_variance` at 0 or below for long (with 5 steps a batch it is noisy: look at its mean) | longer rollouts; normalise rewards |
# | REINFORCE | noise | the return wanders; two seeds differ by half | baseline on; more frames per batch |
# | REINFORCE | few updates | rounds without any `loss_actor`: no episode had ended | `frames_per_batch` of several episodes |
# | TRPO | the bound is too tight | `kl` at the bound, `step_scale` near 1, the return flat | `max_kl` 0.01 to 0.05 |
# | TRPO | no step is good | `step_scale` is 0 in many rounds | more `damping`, larger batches |
# | IMPALA | data too old | `approx_kl` above 0.1 for long: the weights of actions that became unlikely multiply to nothing, so V-trace looks only a step or two ahead | smaller `lag`, smaller `lr` |
# | any with a critic | time-outs taken for terminations | `ProbeTimeout` learns less than `1 / (1 - gamma)` | see [time-outs](timeouts.ipynb) |
#
# Run an agent on the probes first, `rlbook.envs.ProbeConstant` to `ProbeTimeout`: each takes seconds, and the first that fails names the part that is broken.
#
# ## Our scores
#
# Of the recipes at the settings of `benchmarks/scores/`, where the published ones stand beside them. *Final* is the mean of the last
# training episodes, with exploration; *greedy* that of 100 episodes afterwards, without. Over seeds: the interquartile mean (of fewer
# than 4 seeds the mean) with its 95% bootstrap interval. The interval is too narrow for few seeds: of two it is just their two scores, and one seed has none.
# TRPO and IMPALA have no reference scores yet; those of PPO stand on [its page](ppo_not_learning.ipynb).
#
# <!-- scores: reinforce_cartpole a2c_cartpole -->
#
# | item | environment | frames | seeds | final return | greedy return |
# | --- | --- | ---: | ---: | ---: | ---: |
# | [reinforce_cartpole](../benchmarks/scores/README.md#reinforce_cartpole) | CartPole-v1 | 200,000 | 5 | 490.5 [472.4, 499.8] | 500.0 [500.0, 500.0] |
# | [a2c_cartpole](../benchmarks/scores/README.md#a2c_cartpole) | CartPole-v1 | 500,000 | 5 | 500.0 [500.0, 500.0] | 500.0 [500.0, 500.0] |
#
# ## More
#
# * Lesson: [12 PPO](../notebooks/12_ppo.ipynb). Tutorial: [a new loss in forty lines](../tutorials/new_loss.ipynb).
# * Williams 1992, *Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning*, Machine Learning 8.
# * Mnih et al. 2016, *Asynchronous Methods for Deep Reinforcement Learning*, ICML. Schulman et al. 2015, *Trust Region Policy Optimization*, ICML.
# * Espeholt et al. 2018, *IMPALA*, ICML.
