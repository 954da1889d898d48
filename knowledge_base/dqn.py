# %% [markdown]
# # Learning values: what a healthy DQN looks like, and how it fails
#
# **What you see.** The return stays where a random policy is, or rises and falls again; or the values grow beyond all bounds.
#
# **In one line.** You know what values *can* be, so look at `q_mean` first: too high, too low, or right while the return is not?

# %% [markdown]
# ## See it
#
# Five runs on Catch: a ball falls nine rows, the paddle gets 1 for catching it and -1 for missing. So no discounted return is
# above 1, or below -1. A random policy scores about -0.6. One run is healthy, the others each have one thing wrong.

# %%
import math

import matplotlib.pyplot as plt
import torch

from rlbook import Catch
from rlbook.recipes import DQN, DQNConfig

torch.set_num_threads(1)
SETTINGS = {
    "env": "Catch",
    "num_envs": 8,
    "total_frames": 6144,
    "frames_per_batch": 64,
    "updates": 16,
    "batch_size": 32,
    "learning_starts": 256,
    "target_every": 32,
    "n": 1,
    "double": False,
    "gamma": 0.95,
    "lr": 1e-3,
    "eps_frames": 3072,
    "anneal": 0,
}
RUNS = {
    "healthy": {},
    "learning rate x 300": {"lr": 0.3},
    "the target is never copied": {"target_every": 1_000_000},
    "gamma = 0": {"gamma": 0.0},
    "epsilon stays 1": {"eps_frames": 1_000_000_000},
}
history, greedy = {}, {}
for name, change in RUNS.items():
    agent = DQN(DQNConfig(**(SETTINGS | change)))
    history[name] = list(agent.train())
    greedy[name] = agent.evaluate(100).mean().item()

# %%
CURVES = ("episode_reward", "q_mean", "loss_value", "grad_norm")
fig, axes = plt.subplots(1, len(CURVES), figsize=(12, 3))
for ax, curve in zip(axes, CURVES, strict=True):
    for name, rows in history.items():
        ax.plot([row["frames"] for row in rows], [row.get(curve, math.nan) for row in rows], label=name, lw=1.2)
    ax.set_title(curve, fontsize=10)
    ax.set_xlabel("frames", fontsize=9)
    ax.tick_params(labelsize=8)
axes[1].set_ylim(-1.5, 1.5)
axes[1].axhspan(-1, 1, color="0.92", zorder=0)
axes[2].set_yscale("log")
axes[3].set_yscale("log")
fig.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=5, frameon=False, fontsize=9)
fig.tight_layout(rect=(0, 0.1, 1, 1))
plt.show()


# %%
def median(name, curve):
    """The median of the last third of a run."""
    rows = sorted(row[curve] for row in history[name][-len(history[name]) // 3 :])
    return rows[len(rows) // 2]


print(f"{'':28}" + "".join(f"{curve:>18}" for curve in (*CURVES, "greedy return")))
for name in RUNS:
    print(f"{name:28}" + "".join(f"{median(name, curve):18.4f}" for curve in CURVES) + f"{greedy[name]:18.2f}")

# %% [markdown]
# What healthy curves do: `q_mean`, the mean value of the steps in the buffer, stays in the grey band and ends between 0 and 1. It is about
# the *greedy* policy, so it rises as well where epsilon stays 1 and the return does not show it. The loss is noisy,
# stays high while values are on their way back from the end of the episode, and falls later. The return rises as epsilon
# falls (until frame 3072). **A falling loss alone says nothing**: with `gamma = 0` it is the smallest of all.

# %% [markdown]
# ## Causes, most likely first, and the test that tells them apart
#
# | cause | the test | the fix |
# |---|---|---|
# | Exploration hides what was learnt: epsilon is still high | the *greedy* return (`agent.evaluate()`) is far above `episode_reward` | nothing is wrong; let epsilon fall sooner (`eps_frames`), and report greedy returns |
# | The learning rate is too large | `loss_value` stays an order of magnitude above that of a healthy run, `q_mean` jumps | lower `lr` by factors of ten; keep the Huber loss and `max_grad_norm` |
# | Divergence: each update chases its own target | `q_mean` leaves what rewards allow, $\lvert Q \rvert \le \max \lvert r \rvert / (1 - \gamma)$, and grows on | raise `target_every`: our first DQN copied after every 10 updates on CartPole, and its values were at 4.8e8 after 50,000 frames, where 100 is the bound; with a copy after every 128 they ended at 82 |
# | Values do not travel: the target never moves, or `gamma` is too small | `loss_value` is tiny and `q_mean` is near 0, though episodes end with rewards | `target_every` of some hundred steps or fewer; `1 / (1 - gamma)` of the order of the steps that matter |
# | Time-outs taken for the end of the world, or ends bootstrapped through | `ProbeTimeout` (see [time-outs](timeouts.ipynb)) does not reach `1 / (1 - gamma)`, or `ProbeDelay` (below) has the wrong value | store `terminated` apart from `truncated`; see [time-outs](timeouts.ipynb) |
# | Too few samples of what matters | rewards are rare in `agent.buffer.sample()` | prioritized replay and n-step returns (`rainbow`), a larger share of exploration |
# | It was good and got worse | greedy return falls while `q_mean` hardly moves | normal for Q-learning at a constant learning rate: keep the best checkpoint, lower `lr`, use a larger buffer |
#
# ## The quickest test: ask for a value that you know
#
# The probes are environments of one or two steps whose values are known. Each takes a second.


# %%
def probe(name, gamma=0.8, **change):
    """Train DQN on a probe; return the value it gives to the first observation, and the true one."""
    changes = {"env": name, "gamma": gamma, "lr": 5e-3, "total_frames": 1536, "target_every": 16, "eps_frames": 1_000_000}
    agent = DQN(DQNConfig(**(SETTINGS | changes | change)))
    for _ in agent.train():
        pass
    observation = agent.env.reset()["observation"]
    value = agent.loss_fn.qvalue.value({"observation": observation}).mean().item()
    return value, agent.env.optimal_value(observation, gamma).mean().item()


probes = {name: probe(name) for name in ("ProbeConstant", "ProbeDelay", "ProbeAction")}
for name, (value, truth) in probes.items():
    print(f"{name:16} value {value:6.2f}   true {truth:6.2f}")

# %% [markdown]
# ## Overestimation
#
# The maximum of noisy values is too high, the more so the more actions there are. Here all actions are worth 0, and each value has
# noise of standard deviation 1. Double Q-learning lets one noise choose and another judge. What is biased is not the values but
# the choice: the maximum picks the action whose noise happens to be highest, and then believes it.

# %%
torch.manual_seed(0)
print("actions   max Q   double Q")
bias = {}
for actions in (2, 4, 8, 18):
    first, second = torch.randn(2, 20_000, actions)
    bias[actions] = first.amax(-1).mean().item(), second.gather(-1, first.argmax(-1, keepdim=True)).mean().item()
    print(f"{actions:7}  {bias[actions][0]:6.2f}  {bias[actions][1]:9.2f}")

# %% [markdown]
# With a network the noise is shared between states and copied into the targets, so look at your own run: compare the value of the
# first observations with the discounted return that the greedy policy really gets from there.

# %%
agent = DQN(DQNConfig(**(SETTINGS | {"double": True})))
for _ in agent.train():
    pass
data = Catch(num_envs=64, seed=7).rollout(9, agent.greedy)
promised = agent.loss_fn.qvalue.value(data[:, 0]).mean().item()
powers = agent.config.gamma ** torch.arange(9)
received = (data["next", "reward"] * powers).sum(-1).mean().item()
print(f"promised {promised:.2f}, received {received:.2f}")

# %% [markdown]
# No policy gets more from the start than 0.95^8 = 0.66, so this agent plays as well as possible and in this run still promises too much, although it
# is a double DQN. There the network that judges is an older copy of the one that chooses, so their errors are not independent: double
# Q-learning makes the bias smaller, it does not remove it. And a network that has not finished learning is wrong for other reasons too;
# this one number does not separate them.
#
# ## Which variant when
#
# | | what it changes | reach for it when |
# |---|---|---|
# | `dqn` with `double=True` | who chooses the next action | values are promised that are not received (it helps, it is no cure) |
# | `c51`, `qrdqn`, `iqn` | learns the distribution of returns | on Atari usually a better learner for the same frames. It may want more gradient steps: on CartPole QR-DQN took twice those of DQN to be as good after 50,000 frames (with as many it scored 412). C51 must be told the range of returns |
# | `munchausen` | adds the policy's log-probability to the reward | values of actions lie close together |
# | `rainbow` | double, dueling, noisy, n-step, prioritized, C51 | frames are dear and updates are cheap |
# | `pqn` | no buffer, no target network, many environments | frames are cheap: a fast simulator |
#
# One more thing about scores on CartPole: an episode lasts up to 500 steps, so within 50,000 frames the mean of the last 100
# *training* episodes cannot get near 500, however good the policy is. Use greedy returns there.

# %%
assert greedy["healthy"] > 0.8
assert 0.2 < median("healthy", "q_mean") < 1.0
assert median("epsilon stays 1", "episode_reward") < 0.0 < 0.4 < greedy["epsilon stays 1"]
assert median("learning rate x 300", "loss_value") > 4 * median("healthy", "loss_value")
for name in ("learning rate x 300", "the target is never copied", "gamma = 0"):
    assert greedy[name] < greedy["healthy"] - 0.3, name
assert all(abs(value - truth) < 0.15 for value, truth in probes.values())
assert all(abs(double) < 0.05 < 0.5 < single for single, double in bias.values())
assert abs(promised - received) < 0.25

# %% [markdown]
# ## Our scores
#
# Of the recipes at the settings of `benchmarks/scores/`, where the published ones stand beside them. *Final* is the mean of the last
# training episodes, with exploration; *greedy* that of 100 episodes afterwards, without. Over seeds: the interquartile mean (of fewer
# than 4 seeds the mean) with its 95% bootstrap interval. The interval is too narrow for few seeds: of two it is just their two scores, and one seed has none.
#
# <!-- scores: dqn_cartpole qrdqn_cartpole c51_cartpole dqn_acrobot dqn_lunarlander dqn_catch dqn_breakout -->
#
# | item | environment | frames | seeds | final return | greedy return |
# | --- | --- | ---: | ---: | ---: | ---: |
# | [dqn_cartpole](../benchmarks/scores/README.md#dqn_cartpole) | CartPole-v1 | 50,000 | 10 | 324.0 [267.9, 362.9] | 500.0 [458.2, 500.0] |
# | [qrdqn_cartpole](../benchmarks/scores/README.md#qrdqn_cartpole) | CartPole-v1 | 50,000 | 5 | 392.9 [358.0, 432.4] | 496.2 [466.7, 498.3] |
# | [c51_cartpole](../benchmarks/scores/README.md#c51_cartpole) | CartPole-v1 | 100,000 | 5 | 500.0 [499.6, 500.0] | 500.0 [500.0, 500.0] |
# | [dqn_acrobot](../benchmarks/scores/README.md#dqn_acrobot) | Acrobot-v1 | 100,000 | 5 | -92.00 [-99.27, -87.54] | -85.26 [-90.81, -82.20] |
# | [dqn_lunarlander](../benchmarks/scores/README.md#dqn_lunarlander) | LunarLander-v3 | 100,000 | 3 | 152.3 [41.20, 237.5] | 164.0 [38.01, 243.2] |
# | [dqn_catch](../benchmarks/scores/README.md#dqn_catch) | Catch | 50,000 | 3 | 0.94 [0.94, 0.94] | 1.00 [1.00, 1.00] |
# | [dqn_breakout](../benchmarks/scores/README.md#dqn_breakout) | Breakout | 1,000,000 | 1 | 11.41 | 19.78 |
#
# ## More
#
# * Mnih et al. 2015, *Human-level control through deep reinforcement learning*, Nature 518.
# * van Hasselt, Guez and Silver 2016, *Deep Reinforcement Learning with Double Q-learning*, AAAI.
# * Hessel et al. 2018, *Rainbow: Combining Improvements in Deep Reinforcement Learning*, AAAI.
# * van Hasselt et al. 2018, *Deep Reinforcement Learning and the Deadly Triad*: when and why values diverge.
