# %% [markdown]
# # Make it fast: flat parameters and compile
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rlbook/rlbook/blob/main/tutorials/make_it_fast.ipynb)
# [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/rlbook/rlbook/main?urlpath=lab/tree/tutorials/make_it_fast.ipynb)
#
# Networks in reinforcement learning are often tiny, and their gradient steps come in hundreds of thousands. Then most of the time goes into everything *around* the
# mathematics. This tutorial finds out where, takes it away in two moves, writes three functions that check themselves, and trains the same agent with the plain step
# and with the fast one, side by side.
#
# You should have seen a training loop before: forward, `backward()`, `optimizer.step()`. All times below are CPU seconds of this machine on one thread; yours differ, and even here the same step takes 3 to 8 ms, as the machine is
# more or less busy. So compare only what one cell has measured together: those proportions hardly change.

# %%
import sys

if "google.colab" in sys.modules:  # torch, numpy and matplotlib are there already
    get_ipython().run_line_magic("pip", "install -q anywidget git+https://github.com/rlbook/rlbook")

# %%
import statistics
import time
import warnings
from copy import deepcopy

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rlbook as rb
from rlbook import check
from rlbook.course import ask
from rlbook.recipes import PPO, PPOConfig

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
ask("where the time goes")

# %% [markdown]
# ## 2. Look
#
# Here is that step: PPO for CartPole, two networks of 64-64 units, and 20 minibatches of 64 rows.

# %%
env = rb.CartPole(num_envs=8, seed=0)
actor, value = rb.make_actor(env), rb.make_value(env)
loss_fn = rb.PPOLoss(actor, value)
data = rb.GAE(value)(env.rollout(160, actor))
batches = list(rb.minibatches(data, 64, in_keys=loss_fn.in_keys))
print(len(batches), "minibatches;", sum(p.numel() for p in loss_fn.parameters()), "weights in", end=" ")
print(len(list(loss_fn.parameters())), "tensors")


# %% [markdown]
# This is the loop that everybody writes first. It is right, and we keep it to compare with. Its four parts are functions, so that each can be timed.


# %%
class PlainStep:
    """One gradient step as in most tutorials."""

    def __init__(self, loss_fn, lr=1e-3, max_norm=0.5):
        self.loss_fn, self.max_norm = loss_fn, max_norm
        self.parameters = list(loss_fn.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, eps=1e-5)

    def forward(self, batch):
        self.loss = self.loss_fn(batch)["loss"]

    def backward(self, batch):
        self.optimizer.zero_grad()
        self.loss.backward()

    def clip(self, batch):
        nn.utils.clip_grad_norm_(self.parameters, self.max_norm)

    def adam(self, batch):
        self.optimizer.step()

    def __call__(self, batch):
        for part in (self.forward, self.backward, self.clip, self.adam):
            part(batch)


# %% [markdown]
# How long does each part take, and how many operations does it call? PyTorch can tell us of every one.


# %%
class Count(TorchDispatchMode):
    """Counts the operations that PyTorch runs."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def measure(parts, rounds=30):
    """Return the median CPU microseconds and the number of operations of each part of a step."""
    times, calls = {name: [] for name in parts}, {}
    for k in range(rounds):
        batch = batches[k % len(batches)]
        for name, part in parts.items():
            start = time.process_time()
            part(batch)
            times[name].append(1e6 * (time.process_time() - start))
    for name, part in parts.items():
        with Count() as count:
            part(batches[0])
        calls[name] = count.calls
    return {name: statistics.median(values) for name, values in times.items()}, calls


plain = PlainStep(deepcopy(loss_fn))
parts = {name: getattr(plain, name) for name in ("forward", "backward", "clip", "adam")}
times, calls = measure(parts)
for name in parts:
    print(f"{name:9}{times[name]:6.0f} us{calls[name]:6} operations")
print(f"{'together':9}{sum(times.values()):6.0f} us{sum(calls.values()):6} operations")
assert sum(calls.values()) > 200

# %% [markdown]
# And how much of that is arithmetic? Take away everything else: multiply the same matrices, forward and backward, with nothing around them.

# %%
weights = [p.detach() for p in loss_fn.parameters() if p.ndim == 2]
x = torch.randn(64, 64)


def matrices(batch):
    for w in weights:
        out = torch.mm(x[:, : w.shape[1]], w.t())  # forward
        torch.mm(out.t(), x[:, : w.shape[1]])  # gradient of the weights
        torch.mm(out, w)  # gradient of the inputs


arithmetic, _ = measure({"matrices": matrices})
share = arithmetic["matrices"] / sum(times.values())
print(f"the multiplications alone: {arithmetic['matrices']:.0f} us, {share:.0%} of the step")

# %%
figure, ax = plt.subplots(figsize=(7, 1.9), layout="constrained")
left = 0
shades = ("#08519c", "#3182bd", "#6baed6", "#bdd7e7")
for (name, width), shade in zip(times.items(), shades, strict=True):
    ax.barh(1, width, left=left, color=shade)
    tall = {"ha": "center", "va": "center", "color": "white" if shade < "#6" else "black"}
    ax.text(left + width / 2, 1, f"{name}\n{calls[name]} ops", fontsize=8, **tall)
    left += width
ax.barh(0, arithmetic["matrices"], color=ORANGE)
ax.text(arithmetic["matrices"] + 0.01 * left, 0, "its multiplications alone", va="center", color=ORANGE)
ax.set(xlabel="microseconds", yticks=[], title="One gradient step")
ax.grid(False)
plt.show()

# %% [markdown]
# Two ways out. **Fewer operations**: let all weights be one vector, and clipping, Adam and target networks take a handful of operations, however many layers there
# are. **Cheaper operations**: let a compiler make one function of the rest.
#
# ## 3. One vector
#
# A network does not care where its weights lie. So lay them side by side in one vector, and let the weights be **views** of it: windows onto its memory. Nothing is
# copied. What changes in the vector changes in the network, and the other way round.

# %%
net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
flat = rb.modules.FlatParameters(net.parameters())
print("the vector has", len(flat.vector), "numbers: 4*3 + 3 + 3*1 + 1")
before = net(torch.ones(4)).item()
with torch.no_grad():
    flat.vector.mul_(0)  # one operation
print("output before and after:", round(before, 3), net(torch.ones(4)).item())
assert net(torch.ones(4)) == 0

# %% [markdown]
# Gradients lie in a second vector, in the same order. Now everything that treats each number alike is a line on vectors, and you can write these lines yourself.
#
# **Exercise 1.** Shorten a gradient that is longer than `max_norm` to that length, and leave shorter ones alone.


# %%
def clip_gradient(gradient, max_norm):
    return ...


clip_gradient = check("clip_gradient", clip_gradient)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def clip_gradient(gradient, max_norm):
#     return gradient * (max_norm / gradient.norm()).clamp(max=1.0)
# ```
# </details>
#
# **Exercise 2.** Adam keeps a running `mean` of the gradient $g$ and one of its `square`, and divides one by the root of the other:
#
# $$m \leftarrow 0.9\,m + 0.1\,g, \qquad v \leftarrow 0.999\,v + 0.001\,g^2, \qquad
# w \leftarrow w - \text{lr}\,\frac{m / (1 - 0.9^t)}{\sqrt{v / (1 - 0.999^t)} + 10^{-8}}$$
#
# Return the new vector $w$, the new $m$ and the new $v$. `step` is $t$, and counts from 1.


# %%
def adam_step(vector, gradient, mean, square, step, lr):
    return ...


adam_step = check("adam_step", adam_step)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def adam_step(vector, gradient, mean, square, step, lr):
#     mean = 0.9 * mean + 0.1 * gradient
#     square = 0.999 * square + 0.001 * gradient**2
#     m, v = mean / (1 - 0.9**step), square / (1 - 0.999**step)
#     return vector - lr * m / (v.sqrt() + 1e-8), mean, square
# ```
# </details>
#
# **Exercise 3.** A target network follows its network slowly. Move `target` towards `weights` by the share `tau` of the way.


# %%
def polyak(target, weights, tau):
    return ...


polyak = check("polyak", polyak)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def polyak(target, weights, tau):
#     return target + tau * (weights - target)
# ```
# </details>
#
# Are your functions those of PyTorch? Ten steps with yours on one vector, ten with PyTorch's on twelve tensors:


# %%
class YourStep:
    """The same step on one vector, with your functions."""

    def __init__(self, loss_fn, lr=1e-3, max_norm=0.5):
        self.loss_fn, self.lr, self.max_norm = loss_fn, lr, max_norm
        self.flat = rb.modules.FlatParameters(loss_fn.parameters())
        self.mean = torch.zeros_like(self.flat.gradient)
        self.square, self.steps = self.mean.clone(), 0

    def __call__(self, batch):
        self.flat.zero_grad()
        self.loss_fn(batch)["loss"].backward()
        gradient, weights = clip_gradient(self.flat.gradient, self.max_norm), self.flat.vector.data
        self.steps += 1
        moments = (self.mean, self.square)
        new, self.mean, self.square = adam_step(weights, gradient, *moments, self.steps, self.lr)
        weights.copy_(new)


yours, theirs = YourStep(deepcopy(loss_fn)), PlainStep(deepcopy(loss_fn))
theirs.optimizer.param_groups[0]["eps"] = 1e-8
for batch in batches[:10]:
    yours(batch)
    theirs(batch)
for mine, other in zip(yours.loss_fn.parameters(), theirs.loss_fn.parameters(), strict=True):
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
print("the same weights after ten steps")

# %% [markdown]
# `compile_update` does what your step does, with Adam as one fused kernel. It compiles unless told not to; with `compile=False` it is the eager path, ready at once, and the
# one our lessons use.


# %%
def fast_step(loss_fn, compile=False, lr=1e-3):
    optimizer = torch.optim.Adam(loss_fn.parameters(), lr=lr, eps=1e-5)
    return rb.compile_update(loss_fn, optimizer, max_grad_norm=0.5, compile=compile)


steps = {"plain": PlainStep(deepcopy(loss_fn)), "flat": fast_step(deepcopy(loss_fn))}
microseconds, operations = measure(steps)
for name in steps:
    print(f"{name:6}{microseconds[name]:6.0f} us{operations[name]:6} operations")
assert operations["flat"] < 0.7 * operations["plain"]

# %% [markdown]
# ## 4. Train it live, both ways
#
# Does it matter for a whole run? The same PPO twice, from the same seed, until the mean return of the last 100 episodes is 475: first with the flat step, then with
# the plain one. The curves should have the same shape (they cannot be equal for long: sums in another order round differently, and chaos does the rest).

# %%
SETTINGS = {"env": "CartPole", "num_envs": 32, "frames_per_batch": 2048, "epochs": 10, "anneal": False}


def train(plain, seed=0):
    agent = PPO(PPOConfig(total_frames=200_000, stop_at=475, seed=seed, **SETTINGS))
    if plain:
        agent.update = Reporting(agent.loss_fn)
    start = time.process_time()
    for metrics in agent.train():
        yield {**metrics, "seconds": time.process_time() - start}


class Reporting(PlainStep):
    """The plain step, with weights cut loose from the vector that the recipe has put them into."""

    def __init__(self, loss_fn):
        for parameter in loss_fn.parameters():
            parameter.data, parameter.grad = parameter.data.clone(), None
        super().__init__(loss_fn)

    def __call__(self, batch):
        super().__call__(batch)
        return {"loss": self.loss.detach()}


board = rb.Dashboard(["episode_reward", "loss"], title="PPO, flat step", target=475, smoothing=0, x="frames")
run = rb.Run(train(plain=False), board=board, name="flat").start()

# %%
await run
board = rb.Dashboard(["episode_reward", "loss"], title="PPO, plain step", target=475, smoothing=0, x="frames")
slow = rb.Run(train(plain=True), board=board, name="plain").start()

# %%
await slow
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.5), layout="constrained", sharey=True)
for name, history, color in (("flat", run.history, BLUE), ("plain", slow.history, ORANGE)):
    returns = [row["episode_reward"] for row in history]
    left.plot([row["frames"] for row in history], returns, color=color, label=name)
    right.plot([row["seconds"] for row in history], returns, color=color)
left.set(xlabel="frames", ylabel="mean return", title="what is learnt")
right.set(xlabel="CPU seconds", title="what it costs")
left.legend(frameon=False)
plt.show()
for name, history in (("flat", run.history), ("plain", slow.history)):
    last = history[-1]
    rate = last["frames"] / last["seconds"]
    print(f"{name:6}{last['episode_reward']:5.0f} after {last['frames']:7,.0f} frames, {rate:6,.0f} frames/s")
    assert last["episode_reward"] >= 475

# %% [markdown]
# ## 5. Compile
#
# Now the rest: forward and backward, still about two hundred operations. A compiler reads them once, in order, and writes one program for them all:
# neighbouring loops become one, so that what lies between them is never stored. The multiplications of matrices stay calls to a library. `compile=True` does this for the whole step, Adam included, at the first batch.

# %%
compiled = fast_step(deepcopy(loss_fn), compile=True)
start = time.process_time()
compiled(batches[0])
cost = time.process_time() - start
print(f"compiled in {cost:.0f} s")

# %% [markdown]
# Is it the same step? The same weights go in; the same must come out.

# %%
eager = fast_step(deepcopy(loss_fn))
compiled.loss_fn.load_state_dict(eager.loss_fn.state_dict())
for group in compiled.optimizers[0].state.values():
    for number in group.values():
        number.zero_()  # Adam begins anew
for batch in batches:
    a, b = compiled(batch), eager(batch)
    torch.testing.assert_close(dict(a.items()), dict(b.items()), rtol=1e-3, atol=1e-4)
print("the same losses over", len(batches), "steps")

# %%
steps["compiled"] = compiled
microseconds, _ = measure(steps, rounds=60)
figure, ax = plt.subplots(figsize=(7, 1.9), layout="constrained")
for row, (name, color) in enumerate(zip(microseconds, (ORANGE, BLUE, GREEN), strict=True)):
    ax.barh(-row, microseconds[name], color=color)
    label, gap = f"{name}, {microseconds[name]:.0f} us", 0.01 * max(microseconds.values())
    ax.text(microseconds[name] + gap, -row, label, va="center", color=color)
ax.axvline(arithmetic["matrices"], color=GREY, ls="--", lw=1)
ax.set(xlabel="microseconds per step (dashed: the multiplications alone)", yticks=[])
ax.set_xlim(0, 1.25 * max(microseconds.values()))
ax.grid(False)
plt.show()

saved = (microseconds["flat"] - microseconds["compiled"]) * 1e-6
print(f"{cost:.1f} s to compile / {saved * 1e6:.0f} us saved per step", end=" = ")
print(f"{cost / saved:,.0f} steps to pay for it")

# %%
ask("worth compiling")

# %% [markdown]
# Take the number of steps as a lower bound. The clock above counts this process alone, and the C++ compiler that it calls runs in another; and what an
# earlier run has left on disk is not compiled again. The first time you wait some 10 to 40 s, and then it takes correspondingly more steps to pay.
#
# The compiler keeps its work: the next process that compiles the same step finds it on disk and is ready in a fraction of the time.
#
# ## 6. Break it on purpose
#
# Compiled code is a recording. What changes while you train must be something the recording reads anew. Predict:

# %%
ask("frozen attribute")

# %% [markdown]
# Try. The same batch three times, with a learning rate of zero, so that the weights stay as they are and only your changes can change the loss.

# %%
compiled.optimizers[0].param_groups[0]["lr"] = 0.0
batch = batches[0]
first = compiled(batch)["loss_actor"].item()

compiled.loss_fn.clip_eps = 1e-3  # a hyper-parameter: a tensor
second = compiled(batch)["loss_actor"].item()

compiled.loss_fn.normalize_advantage = False  # an attribute: a constant by now
third = compiled(batch)["loss_actor"].item()

print(f"as it was {first:.4f}, another clip_eps {second:.4f}, another attribute {third:.4f}")
assert second != first
assert third == second

# %% [markdown]
# A new `compile_update` would see it; give it a new optimizer (and load the old one's `state_dict` after that). The other way to break a recording is to let *numbers* decide which code runs. There is no one recording of this loss:


# %%
class Moody(rb.PPOLoss):
    def terms(self, batch, noise):
        terms, diagnostics = super().terms(batch, noise)
        if terms["loss_actor"] > 0:  # depends on the data
            terms["loss_actor"] = 2 * terms["loss_actor"]
        return terms, diagnostics


moody = fast_step(Moody(rb.make_actor(env), rb.make_value(env)), compile=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    moody(batches[0])
print(str(caught[-1].message)[:160], "...")
assert not moody.compiled

# %% [markdown]
# It works all the same, eagerly, and says why. `torch.where(terms["loss_actor"] > 0, ...)` would do the same arithmetic without a branch, and compile.
#
# One trap has nothing to do with code. A unit that never fires again (ReLU networks have many) has no gradient. Then Adam's mean $m$ loses a tenth at each step, and some
# 800 steps later it is *subnormal*: below $10^{-38}$ a float has fewer and fewer digits, and many processors compute with such numbers the slow way. The same operation
# on two vectors:

# %%
for number in (1e-3, 1e-40):
    vector, passes = torch.full((100_000,), number), []
    for _ in range(30):
        start = time.process_time()
        vector * 0.9
        passes.append(1e6 * (time.process_time() - start))
    print(f"100,000 times {number:.0e} * 0.9: {statistics.median(passes):5.0f} us")

# %% [markdown]
# In a DQN with 256-256 units this was 40% of the step, and no line of code was to blame. `compile_update` sets such means to zero before they get so small; in your own optimizer do it yourself.
#
# **Now you.** Networks of 16 units, then of 512: where does the gain go? What does `torch.set_num_threads(2)` do to the eager step? And `rb.Collector(env, actor,
# compile=True, ...)` to the frames per second of the CartPole in section 4?
#
# ## When to use which
#
# | | costs | gains | use it |
# |---|---|---|---|
# | plain loop | nothing | you see every line | to learn, for odd optimizers |
# | `compile_update(..., compile=False)` | nothing | clipping, Adam, targets in a few operations | always |
# | `compile_update(..., compile=True)` | seconds, once per shape of batch | the whole step is one function | pays after a few thousand to some tens of thousands of steps: divide, as above |
# | `Collector(..., compile=True)` | seconds, once | policy (and native environments) in one function | long runs |
#
# On a GPU the compiled step is recorded a second time, as a CUDA graph, which replays it without asking Python at all. A last batch that is smaller than the others has
# a shape of its own, and compiles again: `minibatches(..., drop_last=True)`.
#
# ## Where next?
#
# * [Which experience should an agent see again?](replay_patterns.ipynb): fewer steps instead of faster ones.
# * [12 · PPO](../notebooks/12_ppo.ipynb): what this step does, and why.
# * [PPO's diagnostics](../knowledge_base/ppo_diagnostics.ipynb): the numbers that the step reports.
#
# **Sources**
#
# * Kingma and Ba 2015, [*Adam: A Method for Stochastic Optimization*](https://arxiv.org/abs/1412.6980): algorithm 1.
# * Ansel et al. 2024, [*PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and Graph Compilation*](https://doi.org/10.1145/3620665.3640366).
# * Pascanu, Mikolov and Bengio 2013, [*On the difficulty of training recurrent neural networks*](https://arxiv.org/abs/1211.5063): clipping by the norm.
# * Lillicrap et al. 2016, [*Continuous control with deep reinforcement learning*](https://arxiv.org/abs/1509.02971): targets that follow slowly.
