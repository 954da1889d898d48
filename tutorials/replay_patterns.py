# %% [markdown]
# # Which experience should an agent see again?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rlbook/rlbook/blob/main/tutorials/replay_patterns.ipynb)
# [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/rlbook/rlbook/main?urlpath=lab/tree/tutorials/replay_patterns.ipynb)
#
# An agent that learns from every step once and throws it away is wasteful. A **replay buffer** keeps the steps, so that they can be learnt from again and again.
# Which ones, in what order, in what form? That choice can make learning several times as fast, make it possible at all, or quietly make it wrong. This tutorial
# shows all three, with the parts of `rlbook.replay`, and with three exercises that check themselves.
#
# You should know what a Q-value and a TD error are: $\delta = r + \gamma \max_{a'} Q(s', a') - Q(s, a)$, the difference between what came and what was expected.
# If TensorDicts are new to you, take the [first steps](first_steps.ipynb) before.

# %%
import sys

if "google.colab" in sys.modules:  # torch, numpy and matplotlib are there already
    get_ipython().run_line_magic("pip", "install -q anywidget git+https://github.com/rlbook/rlbook")

# %%
from copy import deepcopy
from itertools import pairwise
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import torch
from tensordict import TensorDict
from torch import nn

import rlbook as rb
from rlbook import check, replay
from rlbook.course import ask

torch.set_num_threads(1)  # small networks are fastest with one thread
rb.seed_everything(0)
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8c959f"
plt.rcParams.update(
    {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e5e9ee",
        "font.size": 9,
        "figure.dpi": 80,
    }
)

# %% [markdown]
# ## 1. Predict

# %%
ask("ring")

# %% [markdown]
# Here is a buffer for 1,000 rows, and four carts that are pushed at random. A **row** is one step of one cart: observation, action, and under `next` what came of it.
# We write 600 rows and look. In a running notebook click into the strip to see a row, or press the button to draw a sample.

# %%
env = rb.CartPole(num_envs=4, seed=0)
steps = rb.Collector(env, frames_per_batch=100)  # 25 steps of each cart
buffer = rb.ReplayBuffer(1000, batch_size=32, seed=0)
viewer = rb.ReplayViewer(buffer, "Four carts")
for _ in range(6):
    buffer.extend(steps.collect())
viewer

# %% [markdown]
# 700 more. The cursor (the orange line) has gone round, and the oldest 300 rows are gone. The ticks below the strip are a sample of 32 rows, and on the right are their
# ages. Old and new are drawn alike, up to chance: that is **uniform** sampling.

# %%
viewer = rb.ReplayViewer(buffer, "Four carts, a little later")
for _ in range(7):
    buffer.extend(steps.collect())
batch = viewer.draw()
viewer

# %% [markdown]
# A sample is a TensorDict like any other, with one entry more: `index` says which row each element was copied from. It is a *place*, not a time. Row 299 is
# the newest here, row 300 the oldest.

# %%
print("places of the sample:", batch["index"][:8].tolist(), "...")
print("oldest to newest:    ", buffer.in_order()[:3].tolist(), "...", buffer.in_order()[-3:].tolist())
torch.testing.assert_close(buffer[batch["index"]]["observation"], batch["observation"])

# %% [markdown]
# ## 2. What surprised you: prioritized replay
#
# Most experience is boring. Schaul et al. (2016) made that point with the **blind cliffwalk**: $n$ steps along a cliff, and at each of them two actions. The wrong one
# ends the episode with nothing. Whoever takes the right one $n$ times gets a reward of 1. We play each of the $2^n$ sequences of actions once. The buffer then
# holds all there is to know, but one single row of it has a reward.


# %%
def cliffwalk(n, seed=0):
    """Return the steps of all 2^n walks, in random order: int64 states 0 .. n - 1, action 1 goes on."""
    shuffle = torch.Generator().manual_seed(seed)
    walks = torch.cartesian_prod(*[torch.arange(2)] * n)[torch.randperm(2**n, generator=shuffle)]
    alive = torch.cat((torch.ones_like(walks[:, :1]), walks.cumprod(1)[:, :-1]), 1)
    walk, state = alive.nonzero(as_tuple=True)
    action = walks[walk, state]
    goal = (state == n - 1) & (action == 1)
    over = goal | (action == 0)
    outcome = {"observation": state + 1, "reward": goal.float(), "terminated": over, "done": over}
    return TensorDict({"observation": state, "action": action, "next": outcome}, [len(state)])


data = cliffwalk(8)
print(f"{len(data)} rows, {int(data['next', 'reward'].sum())} of them with a reward")

# %% [markdown]
# The learner is the plainest there is: a table of Q-values and one row per update. Uniform replay looks at everything alike. **Prioritized** replay draws row $i$ with
# probability
#
# $$P(i) = \frac{p_i^\alpha}{\sum_j p_j^\alpha}, \qquad p_i = |\delta_i| + \varepsilon$$
#
# where $\delta_i$ is the TD error that the row had when it was drawn last. Two lines differ: the sampler, and `update_priority`, which reports the errors. Rows
# that were never drawn have the highest priority so far, so that each is looked at once.


# %%
def learn(n, sampler, seed=0, report=True):
    """Learn the Q-values; yield their mean squared error every 20 updates, until it is below 0.001."""
    gamma = 1 - 1 / n
    right = torch.stack((torch.zeros(n), gamma ** torch.arange(n - 1, -1, -1.0)), 1)
    q = torch.cat((0.1 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)), torch.zeros(1, 2)))
    data = cliffwalk(n, seed)
    buffer = rb.ReplayBuffer(len(data), sampler=sampler, batch_size=1, seed=seed)
    buffer.extend(data)
    updates, error = 0, 1.0
    while error > 1e-3:
        row = buffer.sample()
        state, action, nxt = row["observation"], row["action"], row["next"]
        target = nxt["reward"] + gamma * ~nxt["terminated"] * q[nxt["observation"]].amax(-1)
        delta = target - q[state, action]
        q[state, action] += 0.25 * delta
        if report and isinstance(sampler, replay.PrioritizedSampler):
            buffer.update_priority(row["index"], delta)
        updates += 1
        if updates % 20 == 0:
            error = (q[:n] - right).square().mean().item()
            yield {"updates": updates, "error": error, "buffer": buffer}


# %% [markdown]
# Both learn here, side by side, until the prioritized one is done.


# %%
def both(n=8):
    uniform = learn(n, replay.UniformSampler())
    prioritized = learn(n, replay.PrioritizedSampler(alpha=1, beta=0))
    for new, old in zip(prioritized, uniform, strict=False):
        shares.append(share_by_state(new["buffer"], n))
        yield {"updates": new["updates"], "uniform": old["error"], "prioritized": new["error"]}


def share_by_state(buffer, n):
    """Return how probable it is that the next row drawn is a right step from each state."""
    priority = buffer.sampler.priority(torch.arange(len(buffer)))
    rows = buffer[:]
    right = rows["action"] == 1
    share = torch.zeros(n, dtype=priority.dtype).index_add_(0, rows["observation"][right], priority[right])
    return share / priority.sum()


shares = []
title = "Mean squared error of the Q-values"
board = rb.Dashboard([("uniform", "prioritized")], title=title, smoothing=0, x="updates")
race = rb.Run(both(), board=board, name="race").start()

# %% [markdown]
# The next picture shows what the prioritized sampler was looking at. For about 500 updates it sees every row once, and most rows are of the first states. Then it has met
# the reward. Its attention jumps to the end of the cliff, where the surprise is, and walks back: as soon as a step is learnt, the one before it becomes surprising.

# %%
await race
figure, ax = plt.subplots(figsize=(7, 2.3), layout="constrained")
area = (0, 20 * len(shares), -0.5, 7.5)
picture = ax.imshow(torch.stack(shares, 1), aspect="auto", origin="lower", cmap="Blues", extent=area)
ax.set(xlabel="updates", ylabel="state", title="what is drawn: the right step from each state")
ax.set_yticks([0, 7], ["0, start", "7, reward"])
ax.grid(False)
figure.colorbar(picture, label="probability")
plt.show()

# %% [markdown]
# One run proves nothing. Five seeds, five lengths of the cliff (the longer it is, the rarer the reward):

# %%
SEEDS, LENGTHS = range(5), [3, 4, 5, 6, 7]


def updates_needed(n, sampler, seed, **how):
    *_, last = learn(n, sampler, seed, **how)
    return last["updates"]


samplers = {"uniform": replay.UniformSampler, "prioritized": lambda: replay.PrioritizedSampler(1, 0)}
needed = {}
for name, make in samplers.items():
    needed[name] = [[updates_needed(n, make(), seed) for seed in SEEDS] for n in LENGTHS]

# %%
figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
rows = [len(cliffwalk(n)) for n in LENGTHS]
for (name, counts), color in zip(needed.items(), (BLUE, ORANGE), strict=True):
    ax.loglog(rows, torch.tensor(counts).median(1).values, "-", color=color, lw=2)
    ax.loglog(rows, counts, "o", color=color, ms=3, alpha=0.6)
    ax.text(rows[-1] * 1.1, sorted(counts[-1])[2], name, color=color, va="center")
ax.set(xlabel="rows in the buffer", ylabel="updates until learnt", xlim=(12, 700))
ax.set_xticks(rows, rows)
ax.minorticks_off()
plt.show()

uniform, prioritized = (torch.tensor(counts).float().median(1).values for counts in needed.values())
print("times faster:", [f"{n} steps: {r:.1f}" for n, r in zip(LENGTHS, uniform / prioritized, strict=True)])
assert uniform[-1] > 3 * prioritized[-1]

# %% [markdown]
# The gap widens with the length of the cliff, since uniform replay has to stumble over the one row again and again. (Where almost every
# row teaches something there is less to gain.)
#
# ### The price
#
# Whoever looks at surprising rows more often sees a world that is more surprising than the real one. A tiny example: one state, and a reward that is 1 in ten rows and
# 0 in ninety. Its value is the mean, 0.1. Prioritized replay draws the rare rewards too often. To undo that, each row gets a smaller say the more probable it was,
# an **importance weight**, scaled so that the largest is 1:
#
# $$w_i = \frac{\big(n\,P(i)\big)^{-\beta}}{\max_j \big(n\,P(j)\big)^{-\beta}}$$
#
# $\beta = 1$ corrects fully, $\beta = 0$ not at all.
#
# **Exercise 1.** `priority` holds $p_i$ of all $n$ rows, before the exponent. Return the probabilities and the weights, both `[n]`.


# %%
def replay_weights(priority, alpha, beta):
    return ...


replay_weights = check("replay_weights", replay_weights)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def replay_weights(priority, alpha, beta):
#     probability = priority**alpha / (priority**alpha).sum()
#     weight = (len(priority) * probability) ** -beta
#     return probability, weight / weight.max()
# ```
# </details>

# %% [markdown]
# The sampler adds the same weights to every batch, as `weight`. All you do is multiply your loss with them:


# %%
def rare_rewards(beta, seed):
    """Return a prioritized buffer of 100 rows, every tenth with a reward."""
    buffer = rb.ReplayBuffer(100, sampler=replay.PrioritizedSampler(1, beta), batch_size=16, seed=seed)
    buffer.extend(TensorDict({"reward": (torch.arange(100) % 10 == 0).float()}, [100]))
    return buffer


def learn_mean(buffer, updates=800):
    """Learn the mean reward; yield the estimate."""
    value = torch.tensor(0.5)
    for _ in range(updates):
        batch = buffer.sample()
        delta = batch["reward"] - value
        value = value + 0.05 * (batch["weight"] * delta).mean()
        buffer.update_priority(batch["index"], delta)
        yield value.item()


rare = {beta: [rare_rewards(beta, seed) for seed in SEEDS] for beta in (0, 1)}
estimates = {beta: torch.tensor([list(learn_mean(one)) for one in group]) for beta, group in rare.items()}

# %%
figure, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
for (beta, curves), color in zip(estimates.items(), (ORANGE, BLUE), strict=True):
    ax.plot(curves.T, color=color, lw=1)
    ax.text(810, curves[:, -100:].mean(), f"beta = {beta}", color=color, va="center")
ax.axhline(0.1, color=GREY, ls="--", lw=1)
ax.set(xlabel="updates", ylabel="estimate of the mean", xlim=(0, 970), ylim=(0, 0.52))
ax.set_title("dashed: the truth")
plt.show()

final = {beta: curves[:, -200:].mean().item() for beta, curves in estimates.items()}
print({f"beta = {beta}": round(value, 3) for beta, value in final.items()})
assert abs(final[1] - 0.1) < 0.03
assert final[0] > 0.2

# %% [markdown]
# Without weights it settles at 0.25, two and a half times too high, and no diagnostic complains. (Why 0.25? There the pushes of the 90 and of the 10 rows are equal,
# each as often as it is surprising: $90\,v \cdot v = 10\,(1-v)(1-v)$.) In the cliffwalk nothing is random, so no bias arises. That is why we could use $\beta = 0$ there.
# The usual compromise starts with $\beta = 0.4$ and raises it to 1: `buffer.sampler.beta = ...`.
#
# The viewer shows priorities too. The rows with a reward have three times the priority of the others, so a quarter of all draws are theirs, not a tenth:

# %%
viewer = rb.ReplayViewer(rare[0][0], "Rare rewards, beta = 0")
viewer.draw()
viewer

# %% [markdown]
# Are the library's weights yours? Take three rows with priorities 1, 2 and 4:

# %%
small = rb.ReplayBuffer(3, sampler=replay.PrioritizedSampler(alpha=0.6, beta=0.4), batch_size=6, seed=0)
small.extend(TensorDict({"reward": torch.zeros(3)}, [3]))
small.update_priority(torch.arange(3), torch.tensor([1.0, 2.0, 4.0]))
batch = small.sample()
probability, weight = replay_weights(torch.tensor([1.0, 2.0, 4.0]), 0.6, 0.4)
print("probability", probability.numpy().round(3), " weight", weight.numpy().round(3))
torch.testing.assert_close(batch["weight"], weight[batch["index"]])

# %% [markdown]
# ## 3. What belongs together: sequences
#
# A recurrent policy learns from stretches of experience, and so do returns over several steps. A `SliceSampler` draws them, `[batch, steps]`. Remember
# that four carts share the ring: their rows lie side by side, and episodes end in between. The sampler takes care of both.

# %%
slices = rb.ReplayBuffer(1000, sampler=replay.SliceSampler(8, burn_in=2, pad=True), batch_size=6, seed=2)
slices.extend(rb.CartPole(num_envs=4, seed=0).rollout(60))
batch = slices.sample()
print("shape", list(batch.shape), " rows of the first slice:", batch["index"][0].tolist())
print(batch["mask"].int().numpy())

# %% [markdown]
# A row of the `mask` is a sequence, and 1 marks the steps to learn from. The first two are for **burn-in**: a recurrent network warms up on them. Where the episode is
# over before the slice is full, `pad=True` repeats the last step, and the mask is 0 there too. Multiply your loss by the mask, and divide by `mask.sum()`.
#
# The picture shows the four carts and their episodes, with a sample on top. What is learnt from never crosses an end. Only a burn-in may, where the first steps of an
# episode are to be learnt: it is then the end of the episode before, after which the network forgets.

# %%
carts, length = 4, 60
done = slices[:]["next", "done"].reshape(length, carts)
figure, ax = plt.subplots(figsize=(8, 2.4), layout="constrained")
for cart in range(carts):
    ends = [-1, *done[:, cart].nonzero().flatten().tolist(), length - 1]
    for number, (before, last) in enumerate(pairwise(ends)):
        ax.barh(cart, last - before, left=before + 1, height=0.7, color=("#e5e9ee", "#c3cad3")[number % 2])
for index, mask in zip(batch["index"], batch["mask"], strict=True):
    time, cart = index // carts, int(index[0]) % carts
    ax.barh(cart, int(time[-1] - time[0]) + 1, left=int(time[0]), height=0.3, color=BLUE, alpha=0.4)
    ax.barh(cart, int(mask.sum()), left=int(time[mask][0]), height=0.3, color=BLUE, alpha=0.6)
ax.set(xlabel="step", yticks=range(carts), yticklabels=[f"cart {i}" for i in range(carts)])
ax.set_title("grey: episodes; blue: slices (pale: burn-in)")
ax.grid(False)
plt.show()

# %%
slices.sampler = replay.SliceSampler(8)
batch = slices.sample(1000)
assert not batch["next", "done"][:, :-1].any()
assert torch.equal(batch["next", "observation"][:, :-1], batch["observation"][:, 1:])
print("1000 slices: none crosses an end, and each step begins where the one before it ended")

# %% [markdown]
# ### Several steps in one
#
# The target of one-step learning, $r + \gamma V(s')$, moves a reward back by one step per update. Looking $n$ steps ahead moves it by $n$:
#
# $$G = \sum_{k=0}^{n-1} \gamma^k r_{k} \;+\; \gamma^n\, V(s_n) \qquad \text{(no } V \text{ if the last step terminated)}$$
#
# **Exercise 2.** `reward` is `[B, n]`, the rewards of the $n$ steps; the others are `[B]` and belong to the last of them.


# %%
def n_step_target(reward, next_value, terminated, gamma):
    return ...


n_step_target = check("n_step_target", n_step_target)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def n_step_target(reward, next_value, terminated, gamma):
#     n = reward.shape[-1]
#     rewards = (reward * gamma ** torch.arange(n)).sum(-1)
#     return rewards + gamma**n * ~terminated * next_value
# ```
# </details>

# %% [markdown]
# In the library this is a **transform**, which finishes a sample after it was drawn: `ReplayBuffer(..., transforms=NStep(3, gamma))`. The buffer keeps single steps, so you
# may change $n$ at any time. `NStep` puts the sum under `next.reward`, takes everything else under `next` from the last step, and adds `discount`, the power
# of $\gamma$ for the value behind it. Compare: slices of three steps, and the same first rows with `NStep`.

# %%
GAMMA = 0.9


def value(observation):
    """Stand in for a critic: the more the pole leans, the less is to come."""
    return 10 - 20 * observation[..., 2].abs()


slices.sampler = replay.SliceSampler(3)
window = slices.sample(500)
nxt = window["next"][:, -1]
mine = n_step_target(window["next", "reward"], value(nxt["observation"]), nxt["terminated"], GAMMA)

first = window["index"][:, 0]
batch = replay.NStep(3, GAMMA)(slices[first], first, slices)
nxt = batch["next"]
library = nxt["reward"] + batch["discount"] * ~nxt["terminated"] * value(nxt["observation"])
torch.testing.assert_close(mine, library)
print("equal, on", len(mine), "targets;", int(nxt["terminated"].sum()), "of them terminate")

# %% [markdown]
# A window of three steps must fit into its episode. `NStep` goes further: near the end it sums what is left. That is why `discount` is an entry of the sample, and not a
# constant:

# %%
every = torch.arange(len(slices))
batch = replay.NStep(3, GAMMA)(slices[every], every, slices)
for discount, count in zip(*batch["discount"].unique(return_counts=True), strict=True):
    print(f"discount {discount:.3f}: {count:4d} rows")

# %%
ask("five steps")

# %% [markdown]
# ## 4. What it could have meant: hindsight
#
# Some rewards are so rare that no sampling helps, because none is in the buffer. **Bit flipping** (Andrychowicz et al. 2017): there are ten bits, an action flips one of
# them, and an episode succeeds when all ten match a random goal. Every step costs 1 until then. There are 1024 goals, and flipping at random finds hardly any.
#
# Here is the environment. It tells three things: the bits, the bits again as the goal that was *achieved*, and the *desired* goal.

# %%
from rlbook.specs import Bounded, Categorical, Composite

BITS = 10


def reached(achieved, goal):
    return (achieved == goal).all(-1)


def reward_fn(achieved, goal):
    return reached(achieved, goal).float() - 1


class BitFlip(rb.Env):
    """Flip one bit at a time until all are those of the goal."""

    def __init__(self, num_envs=None, seed=None):
        bits = Bounded(0.0, 1.0, (BITS,))
        spec = Composite({"observation": bits, "achieved_goal": bits, "desired_goal": bits})
        super().__init__(spec, Categorical(BITS), num_envs=num_envs, seed=seed)
        self.bits, self.goal = torch.zeros(2, *self.batch_size, BITS)
        self.clock = torch.zeros(self.batch_size)

    def _seed(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def _reset(self, mask):
        mask = torch.ones(self.batch_size, dtype=torch.bool) if mask is None else mask
        bits, goal = torch.randint(2, (2, *self.bits.shape), generator=self.generator).float()
        self.bits = bits.where(mask.unsqueeze(-1), self.bits)
        self.goal = goal.where(mask.unsqueeze(-1), self.goal)
        self.clock = self.clock.masked_fill(mask, 0)
        return self._look()

    def _step(self, action):
        self.bits = (self.bits - nn.functional.one_hot(action, BITS)).abs()
        self.clock = self.clock + 1
        return {
            **self._look(),
            "reward": reward_fn(self.bits, self.goal),
            "terminated": reached(self.bits, self.goal),
            "truncated": self.clock == BITS,
        }

    def _look(self):
        return {"observation": self.bits, "achieved_goal": self.bits, "desired_goal": self.goal}


rb.check_env(BitFlip(num_envs=3))
episodes = BitFlip(num_envs=1000, seed=0).rollout(BITS)["next", "terminated"].any(-1)
print(f"success at random: {episodes.float().mean():.1%}")

# %% [markdown]
# A failed attempt at one goal is a perfect attempt at another: at what it did reach. So when a batch is drawn, replace the goal of most rows by what was achieved
# *later in the same episode*, and compute the reward anew. This is **hindsight experience replay**.
#
# **Exercise 3.** All are `[B, 10]` but `chosen`, which is bool `[B]`: where to replace `goal` by `achieved_later`. Return the goals, and the rewards `[B]`: 0 where `achieved`,
# what this very step achieved, is the goal, else -1.


# %%
def relabel(goal, achieved, achieved_later, chosen):
    return ...


relabel = check("relabel", relabel)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def relabel(goal, achieved, achieved_later, chosen):
#     goal = torch.where(chosen.unsqueeze(-1), achieved_later, goal)
#     reward = (achieved == goal).all(-1).float() - 1
#     return goal, reward
# ```
# </details>

# %% [markdown]
# `HER` is a transform too. It finds the later steps, chooses four of five rows (`ratio=0.8`), and calls our `reward_fn` and `reached`. The same rows, without and with it:

# %%
her = replay.HER(reward_fn, "future", ratio=0.8, terminated_fn=reached)
bits = rb.ReplayBuffer(10_000, batch_size=5000, seed=0)
bits.extend(BitFlip(num_envs=16, seed=0).rollout(600))
for name, transforms in {"as it was": [], "in hindsight": [her]}.items():
    bits.transforms = transforms
    batch = bits.sample()
    print(f"{name:13} rows with success: {(batch['next', 'reward'] == 0).float().mean():.2%}")

goal, achieved = batch["desired_goal"], batch["next", "achieved_goal"]
_, reward = relabel(goal, achieved, goal, torch.ones(5000, dtype=torch.bool))
torch.testing.assert_close(reward, batch["next", "reward"])  # your rewards, for the goals that HER chose

# %% [markdown]
# From next to nothing to a quarter or so. Now learn from that: a small Q-network, a slow copy of it for the targets, and exploration with one random action in ten. It is all
# of DQN, in one function.


# %%
def agent(ratio, seed):
    """Play and learn for ever; yield the success rate on 100 new games after every round."""
    torch.manual_seed(seed)
    q = nn.Sequential(nn.Linear(2 * BITS, 128), nn.ReLU(), nn.Linear(128, BITS))
    slow = deepcopy(q)
    optimizer = torch.optim.Adam(q.parameters(), lr=2e-3)

    def greedy(observation, desired_goal):
        return q(torch.cat((observation, desired_goal), -1)).argmax(-1)

    def explore(observation, desired_goal):
        action = greedy(observation, desired_goal)
        return torch.where(torch.rand(action.shape) < 0.1, torch.randint(BITS, action.shape), action)

    her = replay.HER(reward_fn, "future", ratio, terminated_fn=reached)
    buffer = rb.ReplayBuffer(12_000, transforms=her, batch_size=128, seed=seed)
    play = rb.Collector(BitFlip(num_envs=16, seed=seed), explore, frames_per_batch=16 * BITS)
    test = BitFlip(num_envs=100, seed=1000 + seed)
    while True:
        buffer.extend(play.collect())
        for _ in range(16):
            batch = buffer.sample()
            nxt, goal = batch["next"], batch["desired_goal"]
            with torch.no_grad():
                next_q = slow(torch.cat((nxt["observation"], goal), -1)).amax(-1)
                target = nxt["reward"] + 0.95 * ~nxt["terminated"] * next_q
            values = q(torch.cat((batch["observation"], goal), -1))
            value = values.gather(-1, batch["action"].unsqueeze(-1)).squeeze(-1)
            loss = nn.functional.smooth_l1_loss(value, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for old, new in zip(slow.parameters(), q.parameters(), strict=True):
                    old.lerp_(new, 0.05)
        yield test.rollout(BITS, greedy)["next", "terminated"].any(-1).float().mean().item()


# %% [markdown]
# Three seeds with hindsight, three without (`ratio=0`), everything else alike.

# %%
ROUNDS = 70
RATIOS = {"hindsight": 0.8, "no hindsight": 0.0}
groups = {name: [agent(ratio, seed) for seed in range(3)] for name, ratio in RATIOS.items()}
scores = {name: [] for name in groups}


def one_round(i):
    """Let every agent do one round; return the mean of each group."""
    for name, group in groups.items():
        scores[name].append([next(one) for one in group])
    return {"episodes": 16 * (i + 1), **{name: sum(rows[-1]) / 3 for name, rows in scores.items()}}


board = rb.Dashboard(
    [tuple(groups)],
    title="Success on new goals (means of 3 seeds)",
    target=0.9,
    smoothing=0,
    x="episodes",
    total=16 * ROUNDS,
)
flips = rb.Run(one_round, n=ROUNDS, board=board, name="flips").start()

# %%
await flips
for name, rows in scores.items():
    print(f"{name:13} last ten rounds, by seed:", torch.tensor(rows[-10:]).mean(0).numpy().round(2))
if flips.state == "done":
    assert torch.tensor(scores["hindsight"][-10:]).mean(0).min() > 0.85
    assert torch.tensor(scores["no hindsight"][-10:]).mean(0).max() < 0.15

# %% [markdown]
# The same network, the same number of steps, the same learner. Only what it was shown differs.

# %%
ask("stored goals")

# %% [markdown]
# ## 5. What others saw: offline data, and data on disk
#
# Experience need not be your own. `record` plays a policy and keeps what happens in a folder. Ours is of medium quality: it balances the pole, but every third push is
# random. What comes back is a `Dataset`, a read-only replay buffer whose rows stay on disk until they are drawn.

# %%
from rlbook.datasets import Dataset, record


def medium(observation):
    good = (observation[..., 2] + 0.5 * observation[..., 3] > 0).long()
    return torch.where(torch.rand(good.shape) < 0.33, torch.randint(2, good.shape), good)


folder = mkdtemp() + "/medium"
record(rb.CartPole(num_envs=8), medium, folder, num_steps=4000, seed=0)
offline = Dataset(folder, seed=0)  # how to open it, tomorrow or on another machine
offline

# %% [markdown]
# To go on learning online from there, mix: half of each batch from the data set, half from the agent's own steps, however few these are at first (Ball et al. 2023). The
# entry `source` says where a row comes from.

# %%
online = rb.ReplayBuffer(10_000, seed=0)
online.extend(rb.CartPole(num_envs=4, seed=0).rollout(50))
mixed = replay.MixedBuffer([offline, online], weights=[0.5, 0.5], batch_size=256)
batch = mixed.sample()
print("rows stored: ", [len(offline), len(online)], "(offline, online)")
print("rows drawn:  ", batch["source"].bincount().tolist())
mixed.weights = [0.1, 0.9]  # later, when there is more of one's own
print("later:       ", mixed.sample()["source"].bincount().tolist())
assert batch["source"].bincount().tolist() == [128, 128]

# %% [markdown]
# A buffer of your own can live on disk too. It may be larger than memory, and outlives its process: what is there when `flush` returns is there after a crash.

# %%
path = mkdtemp() + "/rows"
buffer = rb.ReplayBuffer(replay.MemmapStorage(10_000, path))
buffer.extend(rb.CartPole(num_envs=4, seed=0).rollout(100))
buffer.flush()
before = buffer[:10]["observation"]
buffer.storage.close()
del buffer  # as if the process had ended

again = rb.ReplayBuffer(replay.MemmapStorage.open(path))
assert torch.equal(again[:10]["observation"], before)
print(len(again), "rows are back;", end=" ")
again.extend(rb.CartPole(num_envs=4, seed=1).rollout(100))
print(len(again), "after writing on")

# %% [markdown]
# ## 6. Break it on purpose
#
# Three mistakes that raise no error. You have met the first: $\beta = 0$ in a random world, in section 2. Predict the second:

# %%
ask("forgotten priorities")

# %% [markdown]
# And measure. `report=False` leaves `update_priority` out:

# %%
forgotten = [updates_needed(7, replay.PrioritizedSampler(1, 0), seed, report=False) for seed in SEEDS]
print("median updates for 7 steps along the cliff")
medians = {name: torch.tensor(counts[-1]).median().item() for name, counts in needed.items()}
medians["forgotten"] = torch.tensor(forgotten).median().item()
for name, median in medians.items():
    print(f"    {name:12}{median:6d}")
ratio = medians["forgotten"] / medians["uniform"]
assert 0.5 < ratio < 2

# %% [markdown]
# The third is to cut sequences by hand. "Eight steps are the eight rows from here on", says somebody, and forgets that four carts share the ring. "Then every fourth
# row", says somebody else, and forgets the episodes' ends. In a sound sequence each step begins where the one before it ended:


# %%
def share_of_broken(rows):
    sequence = slices[rows]
    jumps = sequence["next", "observation"][:, :-1] != sequence["observation"][:, 1:]
    return jumps.flatten(1).any(1).float().mean().item()


start = torch.randint(len(slices) - 8 * carts, (1000, 1))
broken = {
    "eight rows": share_of_broken(start + torch.arange(8)),
    "every fourth row": share_of_broken(start + carts * torch.arange(8)),
    "SliceSampler": share_of_broken(replay.SliceSampler(8).sample(slices, 1000)[0]),
}
for name, share in broken.items():
    print(f"{name:18} {share:4.0%} of the sequences are broken")
assert broken["eight rows"] == 1
assert broken["every fourth row"] > 0.1
assert broken["SliceSampler"] == 0

# %% [markdown]
# **Now you.** Predict, then try: `alpha=0.3` in the cliffwalk; `ratio=1.0` and `"final"` instead of `"future"` in bit flipping; `BITS = 14`; `NStep(3, ...)` together with
# `HER` (it says why not).
#
# ## Which one when?
#
# | sampler, transform | which experience | use it when |
# |---|---|---|
# | `UniformSampler` | any, alike | always start here |
# | `WithoutReplacementSampler` | each once before any comes again | epochs over a fixed set |
# | `PrioritizedSampler`, `RankSampler` | the surprising ones | rewards are rare; mind $\beta$ where they are noisy |
# | `SliceSampler`, `EpisodeSampler` | stretches, whole episodes | recurrent policies, sequence models |
# | `StalenessSampler` | that of a recent policy | actors lag behind the learner |
# | `NStep` | several steps in one | rewards come late |
# | `HER` | what it could have meant | there is a goal, and it is rarely reached |
# | `MixedBuffer` | yours and others' | demonstrations, offline to online |
#
# ## Where next?
#
# * [Time-outs are not terminations](../knowledge_base/timeouts.ipynb): what the flags under `next` are worth, measured.
# * [First steps](first_steps.ipynb): environments, policies and collectors.
# * [12 · PPO](../notebooks/12_ppo.ipynb): a method that uses its data for a moment only, and how it gets away with that.
#
# **Sources**
#
# * Schaul, Quan, Antonoglou and Silver 2016, [*Prioritized Experience Replay*](https://arxiv.org/abs/1511.05952): section 3.1 is the cliffwalk, 3.3 the probabilities, 3.4
#   the weights.
# * Andrychowicz et al. 2017, [*Hindsight Experience Replay*](https://arxiv.org/abs/1707.01495): section 3.1 is bit flipping.
# * Kapturowski et al. 2019, [*Recurrent Experience Replay in Distributed Reinforcement Learning*](https://openreview.net/forum?id=r1lyTjAqYX): burn-in.
# * Ball, Smith, Kostrikov and Levine 2023, [*Efficient Online Reinforcement Learning with Offline Data*](https://arxiv.org/abs/2302.02948): half and half.
# * Sutton and Barto 2018, [*Reinforcement Learning: An Introduction*](http://incompleteideas.net/book/the-book-2nd.html): chapter 7, several steps.
