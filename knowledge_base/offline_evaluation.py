# %% [markdown]
# # Offline evaluation: the number is confident, and wrong
#
# **What you see.** You judge a policy from stored data. Importance sampling gives another number for every data set, or one close to 0 with a narrow interval;
# fitted Q evaluation disagrees; and the policy, once it runs, is worth something else.
#
# **In one line.** Look at the effective sample size before you look at the value. Then make sure that the ratios have mean 1, and that Q has settled.

# %% [markdown]
# ## The words
#
# * The **ratio** of a step is $\pi(a|s) / b(a|s)$: how much likelier the policy $\pi$ that we judge makes the action than the policy $b$ that took it. Its mean over the actions of $b$ is 1.
# * **IS**, importance sampling: weigh the return of each episode with the product of its ratios, and take the mean.
# * **PDIS**, per decision: weigh each reward with the product of the ratios up to its step only, since later actions cannot have caused it.
# * **W** in front (WIS, WPDIS): divide by the sum of the weights instead of their number. A little biased, and much steadier.
# * **FQE**, fitted Q evaluation: learn the action value of the policy from the stored transitions, and read it at the start. It needs no ratios.
# * **DR**, doubly robust: FQE, plus importance sampling of what it gets wrong. Right if either of the two is.
# * The **effective sample size**, $(\sum w)^2 / \sum w^2$: how many episodes of equal weight would be worth as much as these with their weights $w$.
#
# ## See it
#
# A grid with slippery floor, small enough to know every value exactly. The data come from a clumsy policy; we want the value of sharper ones. Temperature 1 is the
# policy that made the data, and the lower the temperature, the less the two have in common.

# %%
from functools import partial

import matplotlib.pyplot as plt
import torch

from rlbook import Actor, GridWorld
from rlbook.specs import Categorical
from rlbook.trainers import evaluate_offline, fitted_q_evaluation

torch.set_num_threads(1)
torch.manual_seed(0)
GAMMA = 0.95
RULES = {"slip": 0.2, "hole_reward": -1.0, "step_reward": -0.2, "max_steps": None}
WORLD = GridWorld("S....... ........ ...H.... ........ .H...... ........ ......H. .......G", **RULES)


def walker(temperature):
    """A policy that prefers right and down; the more, the lower its temperature."""
    logits = torch.tensor([0.0, 0.8, 0.8, 0.0]) / temperature
    return Actor(lambda cell: logits.expand(*cell.shape, 4), Categorical(4))


def true_value(actor):
    """Solve Bellman's equation for the value of the start."""
    P, R, terminal = WORLD.transition_model()
    probs = actor.dist({"observation": torch.arange(len(R))}).probs
    step = torch.einsum("sa,sat->st", probs, P) * ~terminal
    return torch.linalg.solve(torch.eye(len(R)) - GAMMA * step, (probs * R).sum(-1))[0].item()


def collect(seed, rows=16, steps=600):
    return GridWorld(WORLD.map, rows, seed=seed, **RULES).rollout(steps, walker(1.0))


data, other_data = collect(0), collect(1000)
print("episodes that ended:", data["next", "done"].sum().item())


# %%
class Table(torch.nn.Module):
    """An action value for each cell and move."""

    def __init__(self):
        super().__init__()
        self.q = torch.nn.Parameter(torch.zeros(64, 4, dtype=torch.float64))

    def forward(self, cell, action):
        return self.q[cell, action]


newton = partial(torch.optim.LBFGS, line_search_fn="strong_wolfe")
exactly = {"iterations": 60, "steps": 1, "batch_size": None, "optimizer": newton}
TEMPERATURES = (1.0, 0.7, 0.5, 0.3, 0.2, 0.13)
results, truth = {}, {}
for temperature in TEMPERATURES:
    actor = walker(temperature)
    fitted = fitted_q_evaluation(other_data, actor, Table(), GAMMA, **exactly)
    results[temperature] = evaluate_offline(data, actor, GAMMA, fitted=fitted)
    truth[temperature] = true_value(actor)

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2), width_ratios=(2, 1))
places = torch.arange(len(TEMPERATURES))
for shift, name in enumerate(("IS", "WIS", "PDIS", "DR", "FQE")):
    value, low, high = torch.tensor([results[x].estimates[name] for x in TEMPERATURES]).T
    left.errorbar(places + 0.13 * (shift - 2), value, (value - low, high - value), fmt="o", ms=3, lw=1, label=name)
left.hlines([truth[x] for x in TEMPERATURES], places - 0.4, places + 0.4, color="0.5", ls="--", lw=1, label="true value")
left.set_xticks(places, TEMPERATURES)
left.set(xlabel="temperature of the target policy", ylabel="value, 95% interval", ylim=(-6, 1))
left.legend(frameon=False, fontsize=8, ncol=3)
for temperature in TEMPERATURES:
    right.semilogy(results[temperature].effective_sample_size, label=temperature)
right.set(xlabel="step", ylabel="effective sample size", xlim=(0, 200))
right.legend(frameon=False, fontsize=8, title="temperature")
fig.tight_layout()
plt.show()
print(results[0.13])
print("true value", round(truth[0.13], 4))

# %% [markdown]
# At temperature 0.13 about twenty episodes carry all the weight, fewer than two at the worst step, and the mean ratio has left 1. Importance sampling judges from those few alone: its interval comes from the weights
# that *were seen* and knows nothing of the rare, huge ones that were not. Doubly robust and fitted Q evaluation stay near the truth, because here every cell and move is in the data.
#
# It is no accident of one data set. Here are 30 of them; red intervals miss the truth.

# %%
again = [collect(2000 + 100 * i, rows=8) for i in range(30)]
fig, axes = plt.subplots(1, 2, figsize=(11, 2.8), sharey=True)
coverage = {}
for ax, temperature in zip(axes, (0.7, 0.13), strict=True):
    estimates = [evaluate_offline(x, walker(temperature), GAMMA).estimates["IS"] for x in again]
    hits = [low < truth[temperature] < high for _, low, high in estimates]
    coverage[temperature] = sum(hits) / len(hits)
    for i, ((value, low, high), hit) in enumerate(zip(estimates, hits, strict=True)):
        ax.plot((i, i), (low, high), color="C0" if hit else "C3", lw=1.5)
        ax.plot(i, value, "o", ms=3, color="C0" if hit else "C3")
    ax.axhline(truth[temperature], color="0.5", ls="--", lw=1)
    ax.set(xlabel="data set", title=f"temperature {temperature}: {coverage[temperature]:.0%} cover the truth")
axes[0].set(ylabel="IS, 95% interval", ylim=(-8, 1))
fig.tight_layout()
plt.show()

# %%
ess = {x: results[x].effective_sample_size[-1].item() for x in TEMPERATURES}
same = evaluate_offline(data, walker(1.0), GAMMA).estimates  # without a fitted Q both take whole episodes only
assert abs(same["IS"].value - same["behavior"].value) < 1e-3
assert ess[0.7] > 0.5 * ess[1.0]
assert ess[0.13] < 0.1 * ess[1.0]
assert results[0.13].effective_sample_size.min() < 2
assert results[0.13].estimates["IS"].low > truth[0.13]  # confident, and wrong
for temperature in TEMPERATURES:
    assert abs(results[temperature].estimates["FQE"].value - truth[temperature]) < 0.15
assert coverage[0.7] > 0.8
assert coverage[0.13] < 0.7

# %% [markdown]
# ## Causes, most likely first, and the test that tells them apart
#
# | cause | the test | the fix |
# |---|---|---|
# | The weights collapse: long episodes, or a policy far from the data | `effective_sample_size.min()` below some 30 episodes; it falls along a straight line on a log scale | `PDIS` instead of `IS`, `WPDIS`, `DR`; judge a policy closer to the data; more data |
# | Wrong behaviour log-probabilities: of a newer version of the policy, before noise or a mask was added, rounded | `mean_ratio` is not 1 in the first steps, where the effective sample size is still large | store `action_log_prob` when the action is taken, or clone the behaviour and pass `behavior=` |
# | No support: the policy takes actions that the data never hold | `mean_ratio` below 1 from the first steps on | no estimator can help; add data, or keep the policy to the data |
# | Q has not settled | `history` of the fit still rises or falls | more `iterations`, about 3 / (1 - gamma), and `steps` |
# | Q generalises wrongly | `FQE` lies outside the interval of `DR` although the effective sample size is large | another network; trust `DR` |
# | Time-outs | the value moves when you pass `bootstrap=False` | decide whether a time-out is a real end: [time-outs are not terminations](timeouts.ipynb) |
#
# And one test before all others: evaluate the policy that made the data. `IS` must be the mean return. If it is not, the log-probabilities are wrong.
#
# ## Wrong log-probabilities, seen in the mean ratio
#
# An average of `pi / b` over the actions of `b` is 1. Here the stored log-probabilities are those of a policy that was a little sharper than the one that acted,
# as if they had been computed after an update.

# %%
actor, wrong = walker(0.7), data.clone()
wrong["action_log_prob"] = walker(0.5).dist(data).log_prob(data["action"])
checks = {"right": evaluate_offline(data, actor, GAMMA), "wrong": evaluate_offline(wrong, actor, GAMMA)}
fig, ax = plt.subplots(figsize=(6, 2.6))
ax.axhline(1, color="0.6", ls="--", lw=1)
for name, result in checks.items():
    ax.plot(result.mean_ratio, label=f"{name} log-probabilities")
ax.set(xlabel="step", ylabel="mean ratio", xlim=(0, 30), ylim=(0, 6))
ax.legend(frameon=False)
fig.tight_layout()
plt.show()
for name, result in checks.items():
    print(
        f"{name}: IS {result.estimates['IS'].value:.3f}, true value {truth[0.7]:.3f}, mean ratio after 10 steps {result.mean_ratio[9]:.3f}"
    )

# %%
assert abs(checks["right"].mean_ratio[9] - 1) < 0.06
assert checks["wrong"].mean_ratio[9] > 1.5

# %% [markdown]
# ## Has Q settled?
#
# What lies k steps ahead is learnt in iteration k. Stopped early, fitted Q evaluation gives the value of a shorter game, with a narrow interval.

# %%
history = fitted_q_evaluation(other_data, actor, Table(), GAMMA, **exactly).history
fig, ax = plt.subplots(figsize=(6, 2.6))
ax.axhline(truth[0.7], color="0.6", ls="--", lw=1, label="true value")
ax.plot([row["value"] for row in history], label="fitted Q evaluation")
ax.set(xlabel="iteration", ylabel="value of the start")
ax.legend(frameon=False)
fig.tight_layout()
plt.show()

# %%
assert abs(history[4]["value"] - truth[0.7]) > 0.1
assert abs(history[-1]["value"] - history[-10]["value"]) < 0.01

# %% [markdown]
# ## The fix, in order
#
# 1. Evaluate the behaviour policy itself. 2. Read `effective_sample_size` and `mean_ratio`. 3. Fit Q on one half of the episodes, and take `DR` on the other half.
# 4. If a decision depends on it, use a bound that does not trust the tail, `rlbook.functional.high_confidence_lower_bound`.
#
# ## More
#
# * Jiang and Li 2016, *Doubly Robust Off-policy Value Evaluation for Reinforcement Learning*, ICML.
# * Thomas and Brunskill 2016, *Data-Efficient Off-Policy Policy Evaluation for Reinforcement Learning*, ICML.
# * Le, Voloshin and Yue 2019, *Batch Policy Learning under Constraints*, ICML: fitted Q evaluation.
# * Voloshin et al. 2021, *Empirical Study of Off-Policy Policy Evaluation for Reinforcement Learning*, NeurIPS datasets and benchmarks.
