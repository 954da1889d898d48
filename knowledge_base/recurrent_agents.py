# %% [markdown]
# # An agent with a memory does not remember
#
# **What you see.** The task needs something that was seen earlier, the policy has a GRU or an LSTM, and the return still stops at what
# an agent without memory can reach.
#
# **In one line.** Check three things in this order: is the state the policy acts in the one it learns from, does a gradient reach
# back to what has to be remembered, and is there anything to remember at all?

# %% [markdown]
# ## See it
#
# In the T-maze a sign at the start says which way to turn at the end of a corridor. Whoever sees only the present is right half of the
# time: a return of 1.95 at most. With memory it is 4. The corridor here has three steps, so the sign is three steps old at the junction.
#
# Five agents see 16,384 frames each. Two are healthy: recurrent PPO, and R2D2 (DQN on sequences). PPO without memory is the bound. The
# other two are recurrent PPO made sick: sequences of a single step, so that no gradient leads from the turn back to the
# sign; and sequences that begin with zeros instead of the state in which the actions were taken. (The last one's sequences are cut to two
# steps as well, so that many of them begin inside an episode. That alone keeps gradients from the sign; what the zeros add is the collapse
# that you will see.)

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from rlbook.envs import TMaze
from rlbook.recipes import PPO, R2D2, R2D2Config, RecurrentPPO, RecurrentPPOConfig

torch.set_num_threads(1)


class Forgetful(RecurrentPPO):
    """The mistake: a sequence from the middle of an episode begins as if the episode did."""

    def batches(self, data):
        for batch in super().batches(data):
            batch["recurrent"].zero_()
            yield batch


MAZE, FRAMES = "TMaze(length=3, max_steps=30)", 16_384
on_policy = RecurrentPPOConfig(env=MAZE, total_frames=FRAMES, num_cells=(32,), anneal=False)
single, short = replace(on_policy, sequence_len=1), replace(on_policy, sequence_len=2)
replayed = R2D2Config(env=MAZE, total_frames=FRAMES, eps_frames=8_000)
AGENTS = {
    "recurrent PPO": RecurrentPPO(on_policy),
    "R2D2": R2D2(replayed),
    "PPO, no memory": PPO(on_policy),
    "gradients of one step": RecurrentPPO(single),
    "states not stored": Forgetful(short),
}
history = {name: list(agent.train()) for name, agent in AGENTS.items()}

# %%
STYLES = {
    "recurrent PPO": "C0-",
    "R2D2": "C2-",
    "PPO, no memory": "C7--",
    "gradients of one step": "C1-",
    "states not stored": "C3-",
}
fig, ax = plt.subplots(figsize=(9, 3.4))
for name, rows in history.items():
    ax.plot([row["frames"] for row in rows], [row["episode_reward"] for row in rows], STYLES[name], label=name, lw=1.4)
ax.axhline(TMaze.memoryless_return, color="black", lw=0.7, ls=":")
ax.text(0, TMaze.memoryless_return + 0.05, "best without memory", ha="left", va="bottom", fontsize=8)
ax.axhline(TMaze.optimal_return, color="black", lw=0.7, ls=":")
ax.text(0, TMaze.optimal_return - 0.05, "best with memory", ha="left", va="top", fontsize=8)
ax.set_title("mean return of the last 100 episodes", fontsize=10)
ax.set_xlabel("frames", fontsize=9)
ax.tick_params(labelsize=8)
fig.legend(*ax.get_legend_handles_labels(), loc="lower center", ncol=5, frameon=False, fontsize=9)
fig.tight_layout(rect=(0, 0.09, 1, 1))
plt.show()

# %% [markdown]
# A healthy curve stands at the bound for a while, for the turn has to be found before the sign can matter, and then rises within a few
# thousand frames. R2D2's rises early, falls back to the bound for some 4,000 frames, and drops once more before it stays up: a greedy policy turns over
# all at once, and back as well. A curve that stays at the bound makes no use of memory, whatever its network is called. A mean of 100 episodes still scatters around
# it, by about 0.2 (a return is 4 or -0.1), so a single 2.17 proves nothing. Test 3 below says more: after the two signs the agent with gradients of one step
# turns north with probability 0.35 and 0.22, which is worth up to 2.2. It hears a faint echo of the sign, for even an untrained GRU mixes it into its state,
# and the last step can learn to read it; but nothing teaches the network to keep it. Where states are not stored the return falls far below, here to -2.7: the walker bumps
# into walls until the time limit, 27 of 30 steps at -0.1 each. PPO
# compares the probability of an action now with that when it was taken. Computed from different states, the two differ even if the policy
# has not changed, so the ratio is wrong from the first minibatch on.

# %% [markdown]
# ## Three tests that need no new training run
#
# **1. Acting and learning agree.** Run the new rollout through the loss's network as sequences: the log-probabilities are those that
# acting wrote, to rounding. They differ as soon as a state is lost, shuffled, or not set back where an episode ended. This one line finds many recurrent bugs, and it is where a library of your own should begin.

# %%
agent = RecurrentPPO(on_policy)
data = agent.collector.collect()


def difference(batch):
    """The largest difference between the log-probabilities of acting and of learning."""
    with torch.no_grad():
        return (agent.actor.dist(batch).log_prob(batch["action"]) - batch["action_log_prob"]).abs().max().item()


with torch.no_grad():  # an untrained policy hardly depends on its memory: let it
    agent.actor.net.head.weight.normal_()
data = agent.collector.collect()
good = difference(data)
without_states = data[:, 5:].clone()
without_states["recurrent"].zero_()
no_resets = data.clone()
no_resets["next", "done"].zero_()
print(f"as it should be          {good:.1e}")
print(f"states not stored        {difference(without_states):.1e}")
print(f"no resets in a sequence  {difference(no_resets):.1e}")

# %% [markdown]
# **2. A gradient reaches far enough.** The gradient of an output with respect to the observations before it, step by step into the
# past: it ends at the beginning of the sequence and of the episode. What must be remembered has to lie inside. How much of it is left
# there is up to the gate that keeps the state. Its bias is 1 in the beginning here, and a hundredth is left after 20 steps. With a bias
# of 0, as in most libraries, it is a thousandth, and with -1 next to nothing. In a corridor of ten steps recurrent PPO
# passes a mean return of 3.5 after about 25,000 and 33,000 frames (two seeds); with a bias of 0 it takes about 37,000 and 51,000.

# %%
from rlbook.modules import GRU


def reach(net, steps=30):
    """Size of the gradient of the last output with respect to each observation, from the newest to the oldest."""
    x = torch.randn(64, steps, 3, requires_grad=True)
    out, _ = net(x, state=net.initial_state((64,)), done=torch.zeros(64, steps, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(out[:, -1].square().sum(), x)
    return gradient.norm(dim=-1).mean(0).flip(0)


def beginning(bias):
    """A new GRU whose gate that keeps the state has this bias."""
    torch.manual_seed(0)
    net = GRU(4, 3, 32)
    with torch.no_grad():
        net.bias_ih_l0[32:64] = bias
    return net


for bias in (1, 0, -1):
    size = reach(beginning(bias))
    print(f"bias {bias:2}" + "".join(f"{steps:>4} steps ago: {size[steps] / size[0]:.1e} " for steps in (1, 5, 10, 20)))

# %% [markdown]
# **3. The state holds what it should.** Walk down the corridor after each of the two signs, and compare what the trained policy would do
# at the junction, where both walks look the same.

# %%
NORTH, EAST, SOUTH = 0, 1, 2


def turns(actor):
    """Probabilities of turning north at the junction: after the sign of the north, and after that of the south."""
    env = TMaze(64, length=3, max_steps=30, seed=0)
    td, state = env.reset(), actor.initial_state((64,))
    north = td["observation"][:, 2] == 1
    for _ in range(3):
        state = {key: actor.after({"observation": td["observation"], **state}) for key in state}
        td["action"] = torch.full((64,), EAST)
        td = env.step(td)["next"].select("observation")
    with torch.no_grad():
        probability = actor.dist({"observation": td["observation"], **state}).probs[:, NORTH]
    return probability[north].mean().item(), probability[~north].mean().item()


for name in ("recurrent PPO", "gradients of one step"):
    north, south = turns(AGENTS[name].actor)
    print(f"{name:22} north after the northern sign {north:.2f}, after the southern {south:.2f}")

# %% [markdown]
# ## Causes, most likely first, and the test that tells them apart
#
# (The *burn-in* of a replayed sequence are its first steps: they only bring the stored state up to date and are not learnt from. `mask` is False there.)
#
# | cause | the test | the fix |
# |---|---|---|
# | The state is lost between acting and learning: transitions shuffled, states not stored, no reset inside a sequence | test 1 | `minibatches(..., sequence_len=...)`, `SliceSampler`; collect with `rlbook.modules.Carry(actor, value)` so that the critic's state is kept as well |
# | Sequences are shorter than what has to be remembered | test 2, and the steps between cue and use | raise `sequence_len`; stored states carry memories over longer spans, but only gradients teach what to store |
# | The cue lies in every burn-in: sequences begin inside an episode, so nothing is learnt from its first steps, and no gradient reaches them | no sampled `mask` is True at the first step of an episode | let the burn-in begin before the episode, as `SliceSampler` does, or leave it out there |
# | Old states in replay: they were written by older weights | `td_error` is large in the first steps of sequences and falls along them | `burn_in` of a few steps; a smaller buffer |
# | The policy is greedy before the cue matters | entropy falls while the return stands at the bound | more `entropy_coef`, a longer `eps_frames` |
# | The gradient explodes or vanishes | `grad_norm` has spikes; test 2 | clip it; orthogonal recurrent weights, and a gate that begins by keeping the state (both the default here) |
# | Nothing has to be remembered | a policy without memory scores the same | leave the memory out: it costs compute and has to be learnt |

# %%
final = {name: rows[-1]["episode_reward"] for name, rows in history.items()}
print({name: round(score, 2) for name, score in final.items()})
bound = TMaze.memoryless_return
assert min(final["recurrent PPO"], final["R2D2"]) > bound + 0.7
assert max(final["PPO, no memory"], final["gradients of one step"]) < bound + 0.6
assert good < 1e-4 < 1e-2 < min(difference(without_states), difference(no_resets))
assert reach(beginning(1))[20] > 5 * reach(beginning(0))[20] > 25 * reach(beginning(-1))[20]

# %% [markdown]
# ## Our scores
#
# Of the recipes at the settings of `benchmarks/scores/`, where the published ones stand beside them. *Final* is the mean of the last
# training episodes, with exploration; *greedy* that of 100 episodes afterwards, without. Over seeds: the interquartile mean (of fewer
# than 4 seeds the mean) with its 95% bootstrap interval. The interval is too narrow for few seeds: of two it is just their two scores, and one seed has none.
#
# <!-- scores: recurrent_ppo_tmaze r2d2_tmaze -->
#
# | item | environment | frames | seeds | final return | greedy return |
# | --- | --- | ---: | ---: | ---: | ---: |
# | [recurrent_ppo_tmaze](../benchmarks/scores/README.md#recurrent_ppo_tmaze) | TMaze | 61,440 | 3 | 3.96 [3.96, 3.97] | 4.00 [4.00, 4.00] |
# | [r2d2_tmaze](../benchmarks/scores/README.md#r2d2_tmaze) | TMaze | 100,000 | 3 | 3.83 [3.67, 3.93] | 3.92 [3.83, 4.00] |
#
# ## More
#
# * Page: [PPO runs, and the return does not rise](ppo_not_learning.ipynb). Reference: `rlbook/modules/recurrent.py` begins with how states are kept.
# * Kapturowski et al. 2019, *Recurrent Experience Replay in Distributed Reinforcement Learning*, ICLR.
# * Ni et al. 2022, *Recurrent Model-Free RL Can Be a Strong Baseline for Many POMDPs*, ICML.
# * Bakker 2001, *Reinforcement Learning with Long Short-Term Memory*, NeurIPS.
