# %% [markdown]
# # 12 · PPO: proximal policy optimisation
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rlbook/rlbook/blob/main/notebooks/12_ppo.ipynb)
# [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/rlbook/rlbook/main?urlpath=lab/tree/notebooks/12_ppo.ipynb)
#
# PPO is the method most people try first, from robots to language models. In this lesson you derive its objective, write its five formulas, assemble the
# training loop from parts, solve CartPole live, learn to read its four diagnostic curves, and take its safety belt off to see what happens.
#
# **What you need from lessons 10 and 11, in five lines:**
#
# 1. A policy $\pi_\theta(a|s)$ is a network that gives a probability to every action.
# 2. The policy gradient says how to make the return $J$ larger: $\nabla_\theta J = \mathbb E_{a\sim\pi_\theta}\big[A(s,a)\,\nabla_\theta \log \pi_\theta(a|s)\big]$.
# 3. The advantage $A(s,a)$ is how much better than expected the action turned out. A second network, the critic $V_\phi(s)$, learns what to expect.
# 4. The TD error $\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t)$ is the simplest estimate of the advantage; GAE mixes several of them.
# 5. The expectation is over actions of the policy *as it is now*. After one gradient step the data are, strictly speaking, used up.
#
# Line 5 is wasteful, and PPO is the answer to it.

# %%
import sys

if "google.colab" in sys.modules:  # torch, numpy and matplotlib are there already
    get_ipython().run_line_magic("pip", "install -q anywidget git+https://github.com/rlbook/rlbook")

# %%
from collections import deque

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from rlbook import (
    GAE,
    CartPole,
    Collector,
    Dashboard,
    PPOLoss,
    Run,
    check,
    compile_update,
    minibatches,
    seed_everything,
    show,
)
from rlbook.course import ask, explore
from rlbook.functional import explained_variance, reinforce_loss
from rlbook.modules import make_actor, make_value
from rlbook.recipes import PPO, PPOConfig
from rlbook.trainers import EpisodeReturns, evaluate

torch.set_num_threads(1)  # small networks are fastest with one thread
seed_everything(0)
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
ask("160 steps")

# %% [markdown]
# ## 2. The ratio: how to use old data
#
# The data come from $\pi_{old}$, the policy as it was when it played. Which objective for the *new* policy $\pi_\theta$ can be computed from them? Write the
# expectation out, and multiply and divide by $\pi_{old}$ (importance sampling):
#
# $$\mathbb E_{a\sim\pi_\theta}[A] = \sum_a \pi_\theta(a|s)\,A(s,a) = \sum_a \pi_{old}(a|s)\,\frac{\pi_\theta(a|s)}{\pi_{old}(a|s)}\,A(s,a)
# = \mathbb E_{a\sim\pi_{old}}[\,r(\theta)\,A\,], \qquad r(\theta) = \frac{\pi_\theta(a|s)}{\pi_{old}(a|s)}$$
#
# The **ratio** $r$ says how much more likely the new policy makes an action: 1 is unchanged, 2 is twice as likely. Networks give logarithms of probabilities, so
# compute it as
#
# $$r(\theta) = \exp\big(\log \pi_\theta(a|s) - \log \pi_{old}(a|s)\big).$$
#
# $\log\pi_{old}$ was written down when the action was taken. It is data: no gradient flows into it (`.detach()`).
#
# **Exercise 1.**


# %%
def importance_ratio(log_prob, old_log_prob):
    return ...


importance_ratio = check("importance_ratio", importance_ratio)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def importance_ratio(log_prob, old_log_prob):
#     return (log_prob - old_log_prob.detach()).exp()
# ```
# </details>

# %% [markdown]
# As long as nothing has changed, $r = 1$ and $\nabla r = \nabla \log\pi_\theta$: the first step on a batch *is* the policy gradient of lesson 10. See:

# %%
logits = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
log_prob = logits.log_softmax(-1)
advantage = torch.tensor([1.0, -2.0, 0.5])


def gradient_of(loss):
    return torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0]


from_ratio = gradient_of(-importance_ratio(log_prob, log_prob) * advantage)
from_reinforce = gradient_of(reinforce_loss(log_prob, advantage))
print("gradient of -r A:      ", from_ratio.numpy().round(3))
print("gradient of -A log pi: ", from_reinforce.numpy().round(3))
torch.testing.assert_close(from_ratio, from_reinforce)

# %% [markdown]
# The ratio corrects for the *actions*. It does not correct for the *states*: another policy visits others, and about those the data say nothing. So $r A$ is
# to be trusted only while $r$ is near 1. How do we stay there?
#
# ## 3. The clip
#
# PPO's answer takes one line (Schulman et al. 2017, eq. 7):
#
# $$L^{clip}(\theta) = -\,\mathbb E\big[\min\big(r\,A,\ \mathrm{clip}(r,\,1-\epsilon,\,1+\epsilon)\,A\big)\big]$$
#
# Read it in two cases.
#
# * $A > 0$, the action was good: make it more likely, but once $r > 1+\epsilon$ the clipped term is the smaller one. It is constant, its gradient is zero, and the
#   sample stops pushing.
# * $A < 0$, the action was bad: make it less likely, until $r < 1-\epsilon$. Then the sample stops pushing too.
#
# And why the minimum? Without it, a sample that went the *wrong* way (a good action that became less likely, $r < 1 - \epsilon$) would get no gradient to come
# back. The minimum is a pessimist: it ignores the change when that would look too good, and counts it in full when it looks bad.
#
# **Exercise 2.** One number for each sample (the mean comes later), with the sign of a loss. The advantage is data: `.detach()`.


# %%
def clip_loss(ratio, advantage, clip_eps):
    return ...


clip_loss = check("clip_loss", clip_loss)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def clip_loss(ratio, advantage, clip_eps):
#     advantage = advantage.detach()
#     clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
#     return -torch.minimum(ratio * advantage, clipped * advantage)
# ```
# The library has it as `rlbook.functional.ppo_clip_loss`.
# </details>

# %% [markdown]
# Here is what you wrote, as a picture. On the left the objective over the ratio; the dots mark the policy that played. On the right the gradient, for every ratio
# and advantage: **in the two flat corners, upper right and lower left, a sample teaches nothing more.** Move the slider (in a running notebook): how large are they for a small $\epsilon$?


# %%
def clip_figure(clip_eps):
    """Draw the clipped objective, and where its gradient is zero."""
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    ratio = torch.linspace(0.2, 1.8, 321)
    for advantage, color in ((1.0, BLUE), (-1.0, ORANGE)):
        left.plot(ratio, ratio * advantage, color=color, lw=1, ls=":")
        objective = -clip_loss(ratio, torch.full_like(ratio, advantage), clip_eps)
        left.plot(ratio, objective, color=color, lw=2)
        left.plot(1, advantage, "o", color=color)
        name = "A = +1: a good action" if advantage > 0 else "A = −1: a bad action"
        left.text(0.22, advantage * 1.32, name, color=color, va="center")
    left.axvspan(1 - clip_eps, 1 + clip_eps, color=GREY, alpha=0.15, lw=0)
    left.set(title="objective (dotted: without clip)", xlabel="ratio r", ylim=(-1.9, 1.9))

    r, a = torch.meshgrid(ratio, torch.linspace(-1, 1, 201), indexing="ij")
    r.requires_grad_()
    (gradient,) = torch.autograd.grad(-clip_loss(r, a, clip_eps).sum(), r)
    colors = {"cmap": "RdBu", "vmin": -1.2, "vmax": 1.2}
    image = right.imshow(gradient.T, origin="lower", extent=(0.2, 1.8, -1, 1), aspect="auto", **colors)
    figure.colorbar(image, ax=right, label="push on r")
    right.set(title="gradient", xlabel="ratio r", ylabel="advantage A")
    right.grid(visible=False)
    return figure


explore(clip_figure, clip_eps=(0.05, 0.6, 0.2))

# %%
ask("the wrong way")

# %% [markdown]
# ## 4. The advantage
#
# PPO does not care where advantages come from. Nearly everybody uses GAE, *generalised advantage estimation* (Schulman et al. 2016), from lesson 11: the TD errors
# from now on, each one discounted by another $\gamma\lambda$. Computed from the end backwards:
#
# $$\delta_t = r_t + \gamma\,(1 - terminated_t)\,V(s_{t+1}) - V(s_t) \qquad\qquad A_t = \delta_t + \gamma\lambda\,(1 - done_t)\,A_{t+1}$$
#
# The two flags are the usual trap. `terminated`: the pole fell, nothing follows, so there is no $V(s_{t+1})$. `done`: the episode is over, *also* by a time-out; the
# next row of the memory belongs to another episode, so the recursion stops. After a time-out the game would have gone on: $V(s_{t+1})$ still counts.
#
# **Exercise 3.** Fill in two lines. The tensors are `[T]` or `[num_envs, T]`; `reward[..., t]` is step `t` of every environment. The flags are `bool`; `~` negates
# them, and a `bool` times a number is 0 or the number.


# %%
def gae(reward, value, next_value, terminated, done, gamma, gae_lambda):
    advantage = torch.zeros_like(reward)
    following = torch.zeros_like(reward[..., 0])  # A_{t+1}; nothing follows the last step
    for t in reversed(range(reward.shape[-1])):
        delta = ...
        following = delta + ...
        advantage[..., t] = following
    return advantage


gae = check("gae", gae)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def gae(reward, value, next_value, terminated, done, gamma, gae_lambda):
#     advantage = torch.zeros_like(reward)
#     following = torch.zeros_like(reward[..., 0])
#     for t in reversed(range(reward.shape[-1])):
#         delta = reward[..., t] + gamma * ~terminated[..., t] * next_value[..., t] - value[..., t]
#         following = delta + gamma * gae_lambda * ~done[..., t] * following
#         advantage[..., t] = following
#     return advantage
# ```
# The library has it as `rlbook.functional.generalized_advantage`, without the Python loop.
# </details>

# %% [markdown]
# How large a gradient step is depends on how large the advantages are: 0.01 in one task, 1000 in another, and different again when the agent gets better. So every
# minibatch is put on one scale, $\hat A = (A - \mathrm{mean}(A)) / (\mathrm{std}(A) + 10^{-8})$. It is not in the paper's formulas, but in its authors' code, like much
# that makes PPO work (Engstrom et al. 2020; Huang et al. 2022).
#
# **Exercise 4.** Mean and standard deviation over all elements; divide by $n$, not $n-1$: `.std(correction=0)`.


# %%
def normalize_advantage(advantage):
    return ...


normalize_advantage = check("normalize_advantage", normalize_advantage)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def normalize_advantage(advantage):
#     return (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
# ```
# </details>

# %% [markdown]
# ## 5. One loss for everything
#
# Two more terms (eq. 9 of the paper). The critic learns to predict the value target $G_t = A_t + V(s_t)$ by least squares. And a bonus for **entropy**, the
# policy's indecision, keeps it from making up its mind too early:
#
# $$L = L^{clip} \;+\; c_v\,\mathbb E\big[(V_\phi(s) - G)^2\big] \;-\; c_e\,\mathbb E\big[H(\pi_\theta(\cdot|s))\big]$$
#
# **Exercise 5.** All tensors hold one number per sample; return a single number. `clip_loss` is what your function above returns. The target is data.


# %%
def ppo_loss(clip_loss, value, target, entropy, value_coef, entropy_coef):
    return ...


ppo_loss = check("ppo_loss", ppo_loss)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def ppo_loss(clip_loss, value, target, entropy, value_coef, entropy_coef):
#     value_loss = (value - target.detach()).square().mean()
#     return clip_loss.mean() + value_coef * value_loss - entropy_coef * entropy.mean()
# ```
# </details>

# %% [markdown]
# ## 6. Assemble
#
# You have the mathematics. The rest is plumbing, and every piece is one line. First the world and the two networks: 32 carts side by side, and
# [MLPs](https://en.wikipedia.org/wiki/Multilayer_perceptron) with two hidden layers of 64 units.

# %%
env = CartPole(num_envs=32, seed=0)
actor = make_actor(env, num_cells=(64, 64))
value = make_value(env, num_cells=(64, 64))
actor

# %% [markdown]
# The **collector** plays 2048 steps at a time (64 in each of the 32 environments) and continues where it stopped. The **estimator** adds values and advantages.
# `EpisodeReturns` adds up the rewards of each episode, for us to look at, and remembers those that are not over yet. So far the policy is the toss of a coin:

# %%
collector = Collector(env, actor, frames_per_batch=2048)
estimator = GAE(value, gamma=0.98, gae_lambda=0.8)
finished = EpisodeReturns()

data = estimator(collector.collect())
returns = finished(data)
print(f"{len(returns)} episodes ended, with a mean return of {sum(returns) / len(returns):.0f}")
show(data, "one rollout")

# %% [markdown]
# Is that the same as your `gae`? Note that `next` holds the true last observation of every episode, so that a time-out can be valued.

# %%
nxt = data["next"]
with torch.no_grad():
    values, next_values = value.value(data), value.value(nxt)
mine = gae(nxt["reward"], values, next_values, nxt["terminated"], nxt["done"], 0.98, 0.8)
torch.testing.assert_close(mine, data["advantage"], rtol=1e-4, atol=1e-4)
print("largest difference:", f"{(mine - data['advantage']).abs().max():.0e}")

# %% [markdown]
# The **loss** reads a batch and returns all terms by name. It calls the functions that you wrote. To see that, we pretend that the policy has moved a bit since the
# data were collected, and put your five functions together:

# %%
loss_fn = PPOLoss(actor, value, clip_eps=0.2, value_coef=0.5, entropy_coef=0.01)

batch = next(minibatches(data, 256))
batch["action_log_prob"] += 0.3 * torch.randn(256)

dist = actor.dist(batch)
ratio = importance_ratio(dist.log_prob(batch["action"]), batch["action_log_prob"])
clipped = clip_loss(ratio, normalize_advantage(batch["advantage"]), 0.2)
mine = ppo_loss(clipped, value.value(batch), batch["value_target"], dist.entropy(), 0.5, 0.01)

library = loss_fn(batch)
torch.testing.assert_close(mine, library["loss"])
for name, term in library.items():
    print(f"{name:14}{term.item():9.4f}")
print(f"{'your loss':14}{mine.item():9.4f}")

# %% [markdown]
# The **update** is one gradient step: forward, backward, cut the gradient's norm to 0.5, Adam. With `compile=True` it is compiled into one function, which pays off in
# longer runs. CartPole needs no entropy bonus, so we switch it off.

# %%
loss_fn.entropy_coef = 0.0
optimizer = torch.optim.Adam(loss_fn.parameters(), lr=1e-3, eps=1e-5)
update = compile_update(loss_fn, optimizer, max_grad_norm=0.5, compile=False)

# %% [markdown]
# And this is **all of PPO**: play, estimate, and go ten times through the data in minibatches of 256. That makes 80 gradient steps on the same 2048 samples. The clip
# is what makes them harmless.

# %%
SETTINGS = {"lr": 1e-3, "clip_eps": 0.2}
board = Dashboard(
    ["episode_reward", "approx_kl", "clip_fraction", "entropy", "explained_variance"],
    title="PPO on CartPole",
    target=475,
    smoothing=0,
    x="frames",
    total=100 * 2048,
    sliders={
        "lr": (1e-5, 1e-1, "log", SETTINGS["lr"]),
        "clip_eps": (0.02, 1.0, SETTINGS["clip_eps"]),
    },
)


def train(rounds=100, solved=475):
    returns = deque(maxlen=100)  # of the last 100 episodes
    for _ in range(rounds):
        optimizer.param_groups[0]["lr"] = board.params["lr"]  # the sliders, read in every round
        loss_fn.clip_eps = board.params["clip_eps"]
        data = estimator(collector.collect())
        for batch in minibatches(data, 256, epochs=10, in_keys=loss_fn.in_keys):
            metrics = update(batch)
        returns.extend(finished(data))
        score = sum(returns) / max(len(returns), 1)
        explained = explained_variance(data["state_value"], data["value_target"])
        yield {
            "frames": collector.frames,
            "episode_reward": score,
            "explained_variance": explained,
            **metrics,
        }
        if len(returns) == 100 and score >= solved:
            return


# %% [markdown]
# ## 7. Train it live
#
# Run the cell. It is quick, so to play with the sliders press *Pause*, turn one, and *Resume*. What does a learning rate of 0.1 do to `approx_kl`, and how soon? Does
# the agent recover when you turn it back? (If you ruin it for good: run the cells of section 6 again.)

# %%
run = Run(train(), board=board, name="ppo").start()

# %%
await run
score, frames = run.history[-1]["episode_reward"], run.history[-1]["frames"]
print(f"mean return over the last 100 episodes: {score:.0f}, after {frames:,.0f} steps")
untouched = run.state == "done" and dict(board.params) == SETTINGS
assert score >= 475 or not untouched

# %%
new_games = CartPole(num_envs=100, seed=12345)
test_score = evaluate(new_games, actor.greedy, episodes=100).mean().item()
print(f"100 new games: {test_score:.0f} of 500")
assert test_score >= 400 or not untouched

# %% [markdown]
# ## 8. Read the diagnostics
#
# The return says *whether* it learns. Four other curves say *why not*, and say it earlier.
#
# | curve | what it measures | healthy | if not |
# |---|---|---|---|
# | `approx_kl` | how far the policy has moved in this round: the mean of $(r - 1) - \log r$, an estimate of $KL(\pi_{old}\Vert\pi_\theta)$ | below about 0.02 | above: smaller `lr`, fewer `epochs` |
# | `clip_fraction` | the share of samples whose ratio left $[1-\epsilon, 1+\epsilon]$ | 0.02 to 0.3 | near 0: you could take larger steps; above 0.3: a good part of the batch teaches nothing more |
# | `entropy` | indecision; $\log 2 = 0.69$ is the toss of a coin between two actions | falls slowly | drops to 0 at once: it made up its mind too early; never moves: it does not learn |
# | `explained_variance` | the share of the returns' variance that the critic foresees | towards 1 | 0 or less: the advantages are noise |
#
# `approx_kl` and `clip_fraction` are those of the last minibatch of a round, measured before the step on it: near the end of the round, but of 256 samples only.
# The shaded bands are rules of thumb, not laws.

# %%
HEALTHY = {
    "approx_kl": (0, 0.02),
    "clip_fraction": (0.02, 0.3),
    "entropy": (0.2, 0.7),
    "explained_variance": (0.5, 1),
}
thousands = [row["frames"] / 1000 for row in run.history]
figure, axes = plt.subplots(1, 4, figsize=(9.6, 2.2), layout="constrained")
for ax, (key, band) in zip(axes, HEALTHY.items(), strict=True):
    ax.axhspan(*band, color=GREEN, alpha=0.1, lw=0)
    ax.plot(thousands, [row[key] for row in run.history], color=BLUE, lw=1.5)
    ax.set(title=key, xlabel="thousand steps")
plt.show()

# %% [markdown]
# Read the last curve to its end. The critic gets good at foreseeing returns, and then `explained_variance` falls. Nothing is wrong: when every game lasts 500 steps
# all returns are alike, and there is hardly any variance left to explain. If a few poles fall again, it comes back. A diagnostic is a question, not a verdict.
#
# ## 9. Break it on purpose: take the clip off
#
# Back to the prediction of section 1. We go 20 times through every batch, 160 gradient steps, with a learning rate three times as large. One group of agents has the
# clip at 0.2. The other has none (`clip_eps=1e6`). Three seeds each, since one run proves nothing. `rlbook.recipes.PPO` is the loop of section 6, in one file.

# %%
CHANGE = {}  # your turn: such as {"epochs": 1}
GROUPS = {"clip": 0.2, "no clip": 1e6}
SEEDS = range(3)
CURVES = {"score": "episode_reward", "KL": "approx_kl", "entropy": "entropy"}


def make_agent(clip_eps, seed):
    settings = {
        "env": "CartPole",
        "seed": seed,
        "num_envs": 32,
        "frames_per_batch": 2048,
        "total_frames": 30_720,
        "epochs": 20,
        "lr": 3e-3,
        "anneal": False,
        "clip_eps": clip_eps,
    }
    return PPO(PPOConfig(**(settings | CHANGE))).train()


agents = {name: [make_agent(eps, seed) for seed in SEEDS] for name, eps in GROUPS.items()}


def one_round(i):
    """Let every agent do one round; return the mean of each group, and the score of each agent."""
    metrics = {"frames": 2048 * (i + 1)}
    for name, group in agents.items():
        results = [next(agent) for agent in group]
        for label, key in CURVES.items():
            metrics[f"{label}, {name}"] = sum(result[key] for result in results) / len(results)
        for seed, result in zip(SEEDS, results, strict=True):
            metrics[f"score, {name}, seed {seed}"] = result["episode_reward"]
    return metrics


broken_board = Dashboard(
    [tuple(f"{label}, {name}" for name in GROUPS) for label in CURVES],
    title=f"With and without the clip (means of 3 seeds) {CHANGE or ''}",
    smoothing=0,
    x="frames",
    total=30_720,
)
broken = Run(one_round, n=15, board=broken_board, name="broken").start()

# %%
await broken


def mean(curve):
    return sum(row[curve] for row in broken.history) / len(broken.history)


kl, entropy = ({name: mean(f"{curve}, {name}") for name in GROUPS} for curve in ("KL", "entropy"))
last = broken.history[-1]
print("            mean KL   mean entropy   scores of the seeds at the end")
for name in GROUPS:
    scores = "".join(f"{last[f'score, {name}, seed {seed}']:8.0f}" for seed in SEEDS)
    print(f"{name:8}{kl[name]:11.3f}{entropy[name]:15.3f}{scores}")

untouched = broken.state == "done" and not CHANGE and GROUPS == {"clip": 0.2, "no clip": 1e6}
if untouched:
    assert kl["no clip"] > 20 * kl["clip"]
    assert entropy["no clip"] < 0.5 * entropy["clip"]

# %% [markdown]
# Without the clip `approx_kl` is hundreds of times larger. The policy is nearly sure of everything after the first round (the entropy), from 2048 samples of a coin
# tosser. For a moment that may even look faster. But whoever has stopped exploring cannot find out that it was wrong: some seeds get stuck or collapse, others are
# lucky. That is why nothing is claimed about the scores here: put `range(3, 6)` for `SEEDS`, and see how the three scores without clip scatter.
#
# Note also what the clip does *not* do. It takes the gradient away from samples that have left the range, but it does not bring them back, and the other samples go
# on to push the shared weights. So `approx_kl` is small, not zero, and with a learning rate that is much too large the clip does not save you. That is why one looks
# at `approx_kl`, and why many codes end the round when it gets too large (Huang et al. 2022).
#
# **Now you.** Predict, then set `CHANGE` to `{"epochs": 1}` (does the clip still matter?) or `{"gae_lambda": 1.0}`, or the clip in `GROUPS` to 0.02.
#
# ## 10. What did you learn?

# %%
ask("the first minibatch")

# %%
ask("nothing moves")

# %% [markdown]
# ## Where next?
#
# * [The return does not rise](../knowledge_base/ppo_not_learning.ipynb): three questions that find the fault.
# * [`approx_kl`, `clip_fraction` and friends](../knowledge_base/ppo_diagnostics.ipynb): what the curves look like when the learning rate is wrong.
# * [Time-outs are not terminations](../knowledge_base/timeouts.ipynb): what the two flags of section 4 are worth, measured.
# * Back to [00 · Start here](00_start_here.ipynb), with the map of the course. Next in the course: lesson 13, SAC and TD3 (planned).
#
# **Sources**
#
# * Schulman, Wolski, Dhariwal, Radford and Klimov 2017, [*Proximal Policy Optimization Algorithms*](https://arxiv.org/abs/1707.06347): eq. 6 is the ratio, eq. 7 the
#   clip, eq. 9 the whole loss.
# * Schulman, Moritz, Levine, Jordan and Abbeel 2016, [*High-Dimensional Continuous Control Using Generalized Advantage Estimation*](https://arxiv.org/abs/1506.02438).
# * Engstrom et al. 2020, [*Implementation Matters in Deep Policy Gradients*](https://arxiv.org/abs/2005.12729): much of PPO's success is in the code, not in the clip.
# * Huang et al. 2022, [*The 37 Implementation Details of Proximal Policy Optimization*](https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/).
# * Schulman 2020, [*Approximating KL Divergence*](http://joschu.net/blog/kl-approx.html): the estimate behind `approx_kl`.
# * The settings are adapted from those of [RL Baselines3 Zoo](https://github.com/DLR-RM/rl-baselines3-zoo) (Raffin 2020): more environments side by side, larger batches,
#   half as many epochs, no schedules.
