# %% [markdown]
# # Time-outs are not terminations
#
# **What you see.** The critic's values settle too low, most of all in long episodes. The agent learns, but worse than others report on the same task,
# and it gets worse when you *shorten* the time limit.
#
# **In one line.** An episode that is cut off by a clock (`truncated`) would have gone on. Its last value must still be bootstrapped; only a true end
# (`terminated`) is worth 0 from there on.

# %% [markdown]
# ## See it
#
# The smallest example has one state, pays 1 at every step, and never ends. With $\gamma = 0.9$ its value is $1 / (1 - \gamma) = 10$, whatever the clock does.
# We stop the clock after 5 steps and learn the value twice: once from the true flags, once as if every time-out were an end.

# %%
import matplotlib.pyplot as plt
import torch

from rlbook import StepCounter, TransformedEnv
from rlbook.envs import Env
from rlbook.functional import td0_target
from rlbook.specs import Bounded, Categorical, Composite

torch.set_num_threads(1)


class Treadmill(Env):
    """One state, reward 1, no end."""

    def __init__(self):
        super().__init__(Composite({"observation": Bounded(0.0, 1.0, (1,))}), Categorical(2), seed=0)

    def _reset(self, mask):
        return {"observation": torch.zeros(1)}

    def _step(self, action):
        return {"observation": torch.zeros(1), "reward": torch.tensor(1.0), "terminated": torch.tensor(False)}


env = TransformedEnv(Treadmill(), StepCounter(max_steps=5))
data = env.rollout(100, break_when_any_done=False)
nxt = data["next"]
print("ends by the clock:", nxt["truncated"].sum().item(), "  true ends:", nxt["terminated"].sum().item())


# %%
def learn(cut, steps=60, gamma=0.9):
    """Repeat V <- mean of the one-step targets; `cut` says after which steps nothing is added."""
    value, history = torch.tensor(0.0), []
    for _ in range(steps):
        value = td0_target(nxt["reward"], value.expand(100), cut, gamma).mean()
        history.append(value.item())
    return history


right, wrong = learn(nxt["terminated"]), learn(nxt["done"])
fig, ax = plt.subplots(figsize=(6, 2.8))
ax.axhline(10, color="0.6", lw=1, ls="--", label="true value")
ax.plot(right, label="cut where terminated")
ax.plot(wrong, label="cut where done (wrong)")
ax.set(xlabel="sweep", ylabel="value")
ax.legend(frameon=False)
fig.tight_layout()
plt.show()
print(f"right {right[-1]:.2f}   wrong {wrong[-1]:.2f}")

# %% [markdown]
# The wrong one is not slower: it converges, to the wrong number. One step in five is said to be worth nothing more, so it solves
# $V = 1 + \gamma \cdot \tfrac{4}{5} V$, which is $1 / (1 - 0.72) \approx 3.57$.

# %%
assert abs(right[-1] - 10) < 0.05
assert abs(wrong[-1] - 1 / (1 - 0.9 * 4 / 5)) < 0.01

# %% [markdown]
# ## Causes, most likely first
#
# 1. **The code uses `done` where it means `terminated`** in a target such as `reward + gamma * (1 - done) * next_value`.
# 2. **The final observation is lost.** With automatic resets the next root shows the *reset* observation. The bootstrap needs the one under `next`.
# 3. **An old environment reports time-outs as ends.** Before Gymnasium's split into `terminated` and `truncated` (Gym 0.26), a single `done` hid the difference.
#
# ## The test that tells them apart

# %%
cut_off = nxt["truncated"]
print("1. does the environment report time-outs?  ", bool(cut_off.any()))
print("2. step counter just before and after one: ", nxt["step_count"][4].item(), "->", data["step_count"][5].item())

# %% [markdown]
# The first line must be true for an environment with a time limit. If it is false, the cause is the third. In the second line the counter reaches the limit
# under `next` and starts again at the following root: `next` keeps the true end, and the reset stands at the next root. If your data shows the
# reset value under `next`, the cause is the second. If both are as here, look for `done` in your targets.
#
# ## The fix
#
# Bootstrap wherever the step is not `terminated`, from the value of `next.observation`. Use `done` only to cut the recursion between episodes.
# `rlbook.GAE` and everything in `rlbook.functional` take both flags for this reason.
#
# ## More
#
# * Lesson: [12 PPO](../notebooks/12_ppo.ipynb)
# * Pardo et al. 2018, *Time Limits in Reinforcement Learning*, ICML.
