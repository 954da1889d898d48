# %% [markdown]
# # First steps with rlbook
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rlbook/rlbook/blob/main/tutorials/first_steps.ipynb)
# [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/rlbook/rlbook/main?urlpath=lab/tree/tutorials/first_steps.ipynb)
#
# Ten minutes through the parts you will use every day: environments, rollouts, policies, transforms, collectors, losses. You should know what a policy and
# an episode are; if not, take lesson [00](../notebooks/00_start_here.ipynb) first.

# %%
import sys

if "google.colab" in sys.modules:  # torch, numpy and matplotlib are there already
    get_ipython().run_line_magic("pip", "install -q anywidget git+https://github.com/rlbook/rlbook")

# %%
import torch

import rlbook as rb

torch.set_num_threads(1)  # small networks are fastest with one thread
_ = rb.seed_everything(0)

# %% [markdown]
# ## An environment says what it takes and what it gives
#
# Any Gymnasium environment works by its id. Its *specs* describe the tensors: shapes, types, bounds. They always describe **one** environment.

# %%
env = rb.GymEnv("CartPole-v1", seed=0)
print(env.observation_spec)
print(env.action_spec)

# %% [markdown]
# ## A step is a TensorDict
#
# A TensorDict is a dictionary of tensors that share their first dimensions. You put the action in; what came of it appears under `next`.

# %%
td = env.reset()
td["action"] = env.action_spec.rand()
td = env.step(td)
rb.show(td)

# %% [markdown]
# `terminated` means the pole fell. `truncated` means the clock ran out. `done` is either. The difference matters for learning, and
# [this page](../knowledge_base/timeouts.ipynb) shows why.
#
# ## A rollout is many steps
#
# Without a policy, actions are random. A single environment stops at the end of its episode.

# %%
episode = env.rollout(500)
print(f"{episode.shape[0]} steps, return {episode['next', 'reward'].sum():.0f}")

# %% [markdown]
# ## Any function is a policy
#
# It gets the observation and returns the action. The third number of the observation is the angle of the pole. (Add half of the fourth, its speed,
# and this little function balances the pole for all 500 steps. Try it.)


# %%
def lean(observation):
    """Push to the side to which the pole falls."""
    return (observation[..., 2] > 0).long()


print(f"return {env.rollout(500, lean)['next', 'reward'].sum():.0f}")

# %% [markdown]
# ## Many environments at once
#
# `num_envs` runs a batch. Time is the last dimension: `[num_envs, T]`. Finished environments restart by themselves, and `next` keeps the true last
# observation. The function above needs no change, because it indexes from the right.

# %%
batch = rb.GymEnv("CartPole-v1", num_envs=16, seed=0)
data = batch.rollout(300, lean)
print(data.shape, "episodes finished:", data["next", "done"].sum().item())

# %% [markdown]
# ## Transforms add to what the agent sees
#
# `RewardSum` keeps the running return of each episode, `StepCounter` its length. They are wrapped around the environment and combine with `Compose`.

# %%
batch = rb.TransformedEnv(rb.GymEnv("CartPole-v1", num_envs=16, seed=0), rb.Compose(rb.StepCounter(), rb.RewardSum()))
data = batch.rollout(300, lean)
returns = data["next", "episode_reward"][data["next", "done"]]
print("mean return of", len(returns), "episodes:", round(returns.mean().item(), 1))

# %% [markdown]
# ## Native environments live on any device
#
# `rb.CartPole` is the same physics written in torch. It needs no other package, steps thousands of copies at once, and moves to a GPU with
# `device="cuda"`. Row `i` of a batch is bit for bit the environment alone with seed `seed + i`.

# %%
many = rb.CartPole(num_envs=1000, seed=0).rollout(50)
alone = rb.CartPole(seed=7).rollout(50, break_when_any_done=False)
print("row 7 of 1000 equals the one with seed 7:", torch.equal(many["observation"][7], alone["observation"]))

# %% [markdown]
# ## A network that acts
#
# An `Actor` is a network and an action spec. The spec decides the distribution: categorical here, so the network needs two outputs. It finds the number of
# inputs by itself.

# %%
actor = rb.Actor(rb.MLP(out_features=2, num_cells=64, depth=2), batch.action_spec)
data = batch.rollout(64, actor)
print(actor.dist(data[0, :3]).probs)

# %% [markdown]
# ## Gradient steps of PPO
#
# A collector gives rollouts without end. An estimator adds advantages. A loss returns its terms by name, and `loss`, their sum. `compile_update` makes the
# gradient step out of a loss and an optimizer. The 1,024 rows make four minibatches of 256, so four steps.

# %%
value = rb.ValueHead(rb.MLP(out_features=1, num_cells=64, depth=2))
collector = rb.Collector(batch, actor, frames_per_batch=1024)
data = rb.GAE(value, gamma=0.98, gae_lambda=0.8)(collector.collect())

loss_fn = rb.PPOLoss(actor, value)
optimizer = torch.optim.Adam(loss_fn.parameters(), lr=1e-3)
update = rb.compile_update(loss_fn, optimizer, max_grad_norm=0.5, compile=False)
for minibatch in rb.minibatches(data, 256, epochs=1):
    metrics = update(minibatch)
rb.show(metrics)

# %% [markdown]
# Put this in a loop and it solves CartPole: that is lesson [12](../notebooks/12_ppo.ipynb), and `rlbook/recipes/ppo.py` is all of it in one file.
#
# ## Your own environment
#
# Write two methods on plain dictionaries. Everything else (TensorDicts, checks, rollouts, partial resets) comes with `Env`. This one is a
# corridor: walk right from 0 to 5; every step costs one point.

# %%
from rlbook.specs import Bounded, Categorical, Composite


class Corridor(rb.Env):
    """Reach cell 5."""

    def __init__(self, num_envs=None, seed=None):
        super().__init__(Composite({"observation": Bounded(0.0, 5.0, (1,))}), Categorical(2), num_envs=num_envs, seed=seed)
        self.cell = torch.zeros(self.batch_size)

    def _reset(self, mask):
        self.cell = torch.zeros(self.batch_size) if mask is None else self.cell.masked_fill(mask, 0.0)
        return {"observation": self.cell.unsqueeze(-1)}

    def _step(self, action):
        self.cell = (self.cell + 2.0 * action - 1.0).clamp(0.0, 5.0)
        return {
            "observation": self.cell.unsqueeze(-1),
            "reward": -torch.ones(self.batch_size),
            "terminated": self.cell == 5.0,
        }


rb.check_env(Corridor(num_envs=3))
print("return of always going right:", Corridor().rollout(50, lambda observation: torch.tensor(1))["next", "reward"].sum().item())

# %%
assert Corridor().rollout(50, lambda observation: torch.tensor(1))["next", "reward"].sum() == -5

# %% [markdown]
# `check_env` runs your environment through its contract. When something is off, it says what, and how to mend it:


# %%
class Broken(Corridor):
    """Forgets that its observation must stay in the spec."""

    def _step(self, action):
        return {**super()._step(action), "observation": self.cell.unsqueeze(-1) - 10.0}


try:
    rb.check_env(Broken(num_envs=3))
except rb.errors.RLBookError as error:
    print(type(error).__name__, "-", error)

# %% [markdown]
# ## Where to go next
#
# * Learn: [12 PPO](../notebooks/12_ppo.ipynb), with live training and exercises that check themselves.
# * Look up: [the return does not rise](../knowledge_base/ppo_not_learning.ipynb), [what PPO's diagnostics tell you](../knowledge_base/ppo_diagnostics.ipynb),
#   [time-outs are not terminations](../knowledge_base/timeouts.ipynb).
# * Come from TorchRL? `rlbook.interop` converts rollouts both ways.
