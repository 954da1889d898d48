# %% [markdown]
# # A new loss in forty lines
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rlbook/rlbook/blob/main/tutorials/new_loss.ipynb)
# [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/rlbook/rlbook/main?urlpath=lab/tree/tutorials/new_loss.ipynb)
#
# An algorithm of reinforcement learning is, most of the time, a new loss in an old loop. This tutorial writes one that the library does not have, **advantage-weighted
# regression** (AWR; Peng et al. 2019): three functions that check themselves, one class that puts them together, three tests of the kind that the library's losses have to pass,
# and a run on CartPole that learns to balance the pole.
#
# You should know what a policy, a value and an advantage are; [lesson 12](../notebooks/12_ppo.ipynb) has all three.

# %%
import sys

if "google.colab" in sys.modules:  # torch, numpy and matplotlib are there already
    get_ipython().run_line_magic("pip", "install -q anywidget git+https://github.com/rlbook/rlbook")

# %%
import warnings
from typing import ClassVar

import matplotlib.pyplot as plt
import torch
from tensordict import TensorDict
from torch import nn

import rlbook as rb
from rlbook import check
from rlbook.course import ask
from rlbook.losses import Loss
from rlbook.trainers import EpisodeScore, evaluate

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
ask("advantage as data")

# %% [markdown]
# ## 2. The idea: imitate yourself, but only when you were good
#
# Suppose that all you could do was supervised learning: show the policy states and actions, and it learns to copy them. Copying your own steps would change nothing.
# So weigh them. A step that turned out better than expected counts more, a worse one less:
#
# $$L_\pi = -\mathbb E\big[w \log \pi_\theta(a|s)\big], \qquad w = \min\big(e^{A / \beta},\; w_{max}\big), \qquad A = G - V_\phi(s)$$
#
# with the return $G$ and a critic that learns by least squares, $L_V = \mathbb E[(V_\phi(s) - G)^2]$. Every weight is positive: a bad step is not pushed away, it is
# only copied less. There is no ratio of probabilities, so the data may come from another policy; what is learnt is then an improvement of *that* policy. The temperature $\beta$ says how choosy it is.

# %%
advantage = torch.linspace(-2, 4, 200)
figure, ax = plt.subplots(figsize=(4.6, 2.4), layout="constrained")
for beta, color in ((0.5, ORANGE), (1.0, BLUE), (3.0, GREEN)):
    ax.plot(advantage, (advantage / beta).exp().clamp(max=20), color=color, label=f"beta = {beta}")
ax.axhline(1, color=GREY, lw=1, ls=":")
ax.set(xlabel="advantage", ylabel="weight")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# **Exercise 1.** The weight. `advantage` has any shape; the result has the same. `beta` and `max_weight` are numbers, or tensors of no dimension; `.clamp(max=max_weight)`
# takes both.


# %%
def awr_weight(advantage, beta, max_weight):
    return ...


awr_weight = check("awr_weight", awr_weight)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def awr_weight(advantage, beta, max_weight):
#     return (advantage / beta).exp().clamp(max=max_weight)
# ```
# </details>

# %% [markdown]
# **Exercise 2.** Both terms, as a tuple of two numbers: means over the batch. What is data must not receive a gradient; the check looks at gradients too.


# %%
def awr_terms(log_prob, weight, value, target):
    return ...


awr_terms = check("awr_terms", awr_terms)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def awr_terms(log_prob, weight, value, target):
#     actor = -(weight.detach() * log_prob).mean()
#     critic = (value - target.detach()).square().mean()
#     return actor, critic
# ```
# </details>

# %% [markdown]
# ## 3. The class
#
# A loss of the library is a module from a batch to named terms. It says four things:
#
# * `trains`: which modules the gradient of each term may reach. It is a promise, and section 4 holds you to it.
# * `in_keys`: the entries of a batch that it reads. Who forgets one gets an error that names it.
# * `hyper(...)`: the numbers that may change during training. They stay live in compiled code.
# * `terms(batch, noise)`: the terms, and what else you want to see. (`noise` is for losses that draw random numbers; this one does not.)
#
# Advantages are of the size of returns: a few in one task, thousands in another. So they are put on one scale before they meet $\beta$.


# %%
class AWRLoss(Loss):
    """Advantage-weighted regression (Peng et al. 2019)."""

    trains: ClassVar = {"loss_actor": ("actor",), "loss_value": ("value",)}

    def __init__(self, actor, value, *, beta=1.0, max_weight=20.0):
        super().__init__()
        self.actor, self.value = actor, value
        self.hyper(beta=beta, max_weight=max_weight)

    @property
    def in_keys(self):
        return (*self.actor.in_keys, "action", "value_target")

    def terms(self, batch, noise):
        value, target = self.value.value(batch), batch["value_target"]
        advantage = (target - value).detach()
        weight = awr_weight(advantage / (advantage.std() + 1e-8), self.beta, self.max_weight)
        dist = self.actor.dist(batch)
        actor, critic = awr_terms(dist.log_prob(batch["action"]), weight, value, target)
        diagnostics = {"largest_weight": weight.max(), "entropy": dist.entropy().mean()}
        return {"loss_actor": actor, "loss_value": critic}, diagnostics


env = rb.CartPole(num_envs=32, seed=0)
actor, value = rb.make_actor(env), rb.make_value(env)
loss_fn = AWRLoss(actor, value)
estimator = rb.TDLambda(value, gamma=0.98, td_lambda=0.95)
data = estimator(env.rollout(64, actor))
for name, term in loss_fn(data).items():
    print(f"{name:12}{term.item():9.4f}")

# %% [markdown]
# The base class has added the terms up (`loss`), and it explains mistakes. Without the estimator, for example:

# %%
try:
    loss_fn(env.rollout(8, actor))
except rb.errors.MissingKeyError as error:
    print(error)

# %% [markdown]
# ## 4. Three tests
#
# **The routing table.** Take each term by itself, ask for its gradient, and see which modules it reaches.


# %%
def reached(loss_fn, term, batch):
    """Return the modules of a loss that the gradient of a term reaches."""
    names, parameters = zip(*loss_fn.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss_fn(batch)[term], parameters, allow_unused=True)
    found = [name for name, grad in zip(names, grads, strict=True) if grad is not None and grad.any()]
    return {name.split(".")[0] for name in found}


def test_routing(loss_fn, batch):
    for term, modules in loss_fn.trains.items():
        found = reached(loss_fn, term, batch)
        print(f"{term:12} promises {list(modules)}, reaches {sorted(found)}")
        assert found == set(modules), f"{term} trains something else than it says"


test_routing(loss_fn, data)

# %% [markdown]
# **A golden gradient.** A right value says little: a missing `detach` does not change it. So work one gradient by hand. For one step, softmax probabilities
# $p = \mathrm{softmax}(z)$ and the action $a$, what is the gradient of $-w \log p_a$ with respect to the logits $z$?
#
# **Exercise 3.** `logits` is a vector, `action` an integer, `weight` a number. Write the answer without `backward`.


# %%
def golden_gradient(logits, action, weight):
    return ...


golden_gradient = check("golden_gradient", golden_gradient)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def golden_gradient(logits, action, weight):
#     chosen = torch.zeros_like(logits)
#     chosen[action] = 1.0
#     return weight * (logits.softmax(-1) - chosen)
# ```
# What is copied gains, and all others lose in proportion to how likely they were.
# </details>

# %% [markdown]
# Now the whole class against it. A "network" whose output is its parameter makes the gradient visible. Three steps, with values of 0 and returns of 3, 0 and -3: their
# standard deviation is 3, so the advantages are 1, 0 and -1, and with $\beta = 1$ the weights are $e$, 1 and $1/e$.


# %%
class Table(nn.Module):
    """A network whose outputs are its parameters, one row for each row of the batch."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, x):
        return self.rows


logits = Table(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
small = AWRLoss(rb.Actor(logits, env.action_spec), rb.ValueHead(Table(torch.zeros(3, 1))))
action, target = torch.tensor([0, 1, 1]), torch.tensor([3.0, 0.0, -3.0])
batch = {"observation": torch.zeros(3, 4), "action": action, "value_target": target}
small(TensorDict(batch, [3]))["loss"].backward()

weights = torch.tensor([1.0, 0.0, -1.0]).exp()
rows = [golden_gradient(z, int(a), w) for z, a, w in zip(logits.rows.detach(), action, weights, strict=True)]
torch.testing.assert_close(logits.rows.grad, torch.stack(rows) / 3)
print(logits.rows.grad)

# %% [markdown]
# **Compiled equals eager.** Traced into one graph, with no way out (`fullgraph`), the loss must give the same numbers, and follow its hyper-parameters. Here the graph
# is recorded but not translated, which takes seconds; leave out `backend` to have it translated.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    compiled = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    for beta in (1.0, 0.5):
        loss_fn.beta = beta
        eager, traced = loss_fn(data), compiled(data)
        torch.testing.assert_close(traced["loss"], eager["loss"], rtol=1e-5, atol=1e-5)
        print(f"beta {beta}: eager {eager['loss'].item():.5f}, compiled {traced['loss'].item():.5f}")
loss_fn.beta = 1.0

# %% [markdown]
# The first and the third, and a dozen more, are what `tests/losses/test_conformance.py` does with every loss that the library exports: a
# new one adds a case to a `tests/losses/cases_*.py`. Golden gradients stand beside the functions that a loss calls, in `tests/functional/`.
#
# ## 5. Train it
#
# The loop is that of any on-policy method: play, estimate, go through the data a few times in minibatches. `compile_update` makes forward, backward, clipping and Adam one
# call. With `compile=True`, which is its default, it would be one compiled function: that takes some 10 to 40 s once, and pays in longer runs.


# %%
def training(loss, frames, seed=0, **options):
    """Train a loss class on CartPole; yield the metrics of each round, and keep the loss in ``agents``."""
    rb.seed_everything(seed)
    env = rb.CartPole(num_envs=32, seed=seed)
    loss_fn = loss(rb.make_actor(env), rb.make_value(env), **options)
    optimizer = torch.optim.Adam(loss_fn.parameters(), lr=1e-3)
    update = rb.compile_update(loss_fn, optimizer, max_grad_norm=0.5, compile=False)
    estimator, score = rb.TDLambda(loss_fn.value, 0.98, 0.95), EpisodeScore()
    collector = rb.Collector(env, loss_fn.actor, frames_per_batch=2048, total_frames=frames)
    for data in collector:
        result = score(data)
        data = estimator(data)
        for batch in rb.minibatches(data, 256, epochs=10, in_keys=loss_fn.in_keys):
            metrics = update(batch)
        agents[loss.__name__] = loss_fn
        yield {"frames": collector.frames, "episode_reward": result, **metrics}


LOSS, CHANGE = AWRLoss, {}  # your turn: such as {"beta": 0.1}
agents = {}
board = rb.Dashboard(
    ["episode_reward", "entropy", "largest_weight", "loss_value"],
    title=f"Advantage-weighted regression on CartPole {CHANGE or ''}",
    target=200,
    smoothing=0,
    x="frames",
    total=61_440,
)
run = rb.Run(training(LOSS, 61_440, **CHANGE), board=board, name="awr").start()

# %%
await run
score = run.history[-1]["episode_reward"]
greedy = agents[LOSS.__name__].actor.greedy
test_score = evaluate(rb.CartPole(num_envs=50, seed=12345), greedy, episodes=50).mean().item()
print(f"last 100 training episodes: {score:.0f}; 50 new games without exploration: {test_score:.0f} of 500")
if run.state == "done" and LOSS is AWRLoss and not CHANGE:  # what this page claims
    assert score > 200
    assert test_score > 300

# %% [markdown]
# ## 6. Break it on purpose
#
# Without `detach` the advantage keeps its gradient. Our class detaches twice: the advantage in `terms`, and the weight once more in `awr_terms`. Leave out one of them and nothing
# happens: try it. `LeakyLoss` leaves out both, as happens to those who write the formula on one line. The values of all terms are the same as before.


# %%
class LeakyLoss(AWRLoss):
    """The same numbers, other gradients."""

    def terms(self, batch, noise):
        value, target = self.value.value(batch), batch["value_target"]
        advantage = target - value
        weight = (advantage / (advantage.std() + 1e-8) / self.beta).exp().clamp(max=self.max_weight)
        dist = self.actor.dist(batch)
        actor = -(weight * dist.log_prob(batch["action"])).mean()
        return {"loss_actor": actor, "loss_value": (value - target).square().mean()}, {}


leaky = LeakyLoss(actor, value)
torch.testing.assert_close(leaky(data)["loss"], loss_fn(data)["loss"])
print("the value is the same:", f"{leaky(data)['loss'].item():.4f}")
try:
    test_routing(leaky, data)
except AssertionError as error:
    print("AssertionError:", error)

# %% [markdown]
# No test of values would have found it, and no error is raised while it trains. The routing table finds it before the first step.
#
# **Now you.** Predict, then set `CHANGE` in section 5 to `{"beta": 0.1}` (who is copied?) or `{"beta": 100}` (what is learnt then?). Or write a subclass of `AWRLoss` whose weight is 1 for $A > 0$
# and 0 otherwise (the binary form of critic-regularised regression, Wang et al. 2020), and put it for `LOSS`.
#
# ## 7. What did you learn?

# %%
ask("which test")

# %% [markdown]
# ## Where next?
#
# * [Policy gradients](../knowledge_base/policy_gradients.ipynb): what healthy runs of the library's own losses look like.
# * [Make it fast](make_it_fast.ipynb): what `compile_update` does with a loss.
# * To give a loss to the library: [CONTRIBUTING](https://github.com/rlbook/rlbook/blob/main/CONTRIBUTING.md) has the short list.
#
# **Sources**
#
# * Peng, Kumar, Zhang and Levine 2019, [*Advantage-Weighted Regression*](https://arxiv.org/abs/1910.00177): the weight, and the cut at 20.
# * Peters and Schaal 2007, *Reinforcement learning by reward-weighted regression for operational space control*, ICML.
