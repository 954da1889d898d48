# %% [markdown]
# # 00 · Start here
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/rlbook/rlbook/blob/main/notebooks/00_start_here.ipynb)
# [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/rlbook/rlbook/main?urlpath=lab/tree/notebooks/00_start_here.ipynb)
#
# **In the next ten minutes** you will watch a pole fall, keep it up with a line of your own, and then let a program find out by itself how to do it. You will
# see it learn, live, in ten to twenty seconds. Then you will break it, to see what it needs.
#
# You need to know a little Python. You need to know nothing about reinforcement learning.
#
# *How to read this page:* run the cells one after the other with **Shift+Enter**, or all at once with *Run All*. Two cells ask you to write a line. If you
# skip them, everything still runs: a reference solution takes the place of yours.

# %%
import sys

if "google.colab" in sys.modules:  # torch, numpy and matplotlib are there already
    get_ipython().run_line_magic("pip", "install -q anywidget git+https://github.com/rlbook/rlbook")

# %%
import torch

from rlbook import CartPole, Dashboard, EnvViewer, Run, check
from rlbook.course import ask
from rlbook.recipes import PPO, PPOConfig
from rlbook.trainers import evaluate
from rlbook.widgets import record

torch.manual_seed(0)  # the same random numbers each time
torch.set_num_threads(1)  # small networks are fastest with one thread

# %% [markdown]
# ## 1. Predict
#
# A pole stands on a cart. Fifty times a second, somebody pushes the cart to the left or to the right. Whoever pushes must keep the pole up.

# %%
ask("coin")

# %% [markdown]
# ## 2. Play
#
# See for yourself, in slow motion. Press play, or drag the slider through the film.

# %%
env = CartPole(seed=3)
EnvViewer(record(env), fps=12)  # random pushes

# %% [markdown]
# ## 3. What you saw, in five words
#
# | word | meaning | here |
# |---|---|---|
# | **observation** | what one sees before each step | 4 numbers: cart position, cart velocity, pole angle, pole's angular velocity |
# | **action** | what one does | 0 pushes left, 1 pushes right |
# | **reward** | how good the step was | 1 for every step that the pole is up |
# | **episode** | from the start to the end | ends when the pole leans more than 12°, when the cart leaves the track, or after 500 steps |
# | **policy** | the rule that chooses the action | so far: toss a coin |
#
# The **environment** is the program that plays the world: it takes an action and gives back a reward and the next observation. This one is called *CartPole*.
# It obeys the same equations as `CartPole-v1` of the Gymnasium library, on which every method of this course can be compared with the rest of the world.
#
# Here are the few lines that play one episode. Without a policy, `rollout` tosses the coin.

# %%
episode = env.rollout(500)
print("steps until the pole fell:", len(episode))
print("the first observation:    ", episode["observation"][0].numpy().round(3))
print("the first ten actions:    ", episode["action"][:10].tolist())
print("the sum of the rewards:   ", episode["next", "reward"].sum().item())

# %% [markdown]
# One episode says little: the next one may be lucky. So we play 1000 of them, a hundred at a time, and take the mean.

# %%
hundred = CartPole(num_envs=100, seed=0)
random_score = evaluate(hundred, policy=None, episodes=1000).mean().item()
print(f"random pushes: {random_score:.1f} steps on average")
assert 20 < random_score < 25

# %% [markdown]
# ## 4. Your turn: a rule by hand
#
# Write a policy. It sees the four numbers and returns 0 (push left) or 1 (push right). **The goal:** the pole stays up for 150 steps on average.
#
# Replace the `...` and run the cell. If the answer is not right yet, you are told what is likely to be wrong. Running the cell once more gives you a hint.
# To measure your rule in a cell of your own: `evaluate(CartPole(seed=0), my_policy, episodes=10)`.


# %%
def my_policy(observation):
    position, velocity, angle, angular_velocity = observation  # an angle > 0 leans to the right
    return ...  # 0 pushes left, 1 pushes right


my_policy = check("my_policy", my_policy)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def my_policy(observation):
#     position, velocity, angle, angular_velocity = observation
#     return int(angle + 0.5 * angular_velocity > 0)
# ```
# Push to the side to which the pole leans (`angle`) and is going to lean (`angular_velocity`). The angle alone reacts too late: 40 steps.
# </details>

# %%
EnvViewer(record(CartPole(seed=3), my_policy, max_steps=100))

# %% [markdown]
# One line balances the pole. So why learn anything?
#
# Because *you* did the work. You knew what the four numbers mean, and that a pole falls to where it leans. A robot has forty such numbers, a video game has
# thousands of pixels, and nobody knows the rule. **Reinforcement learning finds the rule from rewards alone.** The program below is told neither what the
# numbers mean nor what a pole is.
#
# ## 5. What it tries to get: the return
#
# A push that looks good now may let the pole fall a second later. So an agent (whoever acts and learns) wants the **return**: *all* rewards from now on,
# later ones counted a little less,
#
# $$G = r_0 + \gamma\, r_1 + \gamma^2 r_2 + \gamma^3 r_3 + \dots$$
#
# The number $\gamma$ ("gamma") between 0 and 1 says how far ahead it looks. With $\gamma = 0.98$ a reward 35 steps ahead still counts half.
#
# **Your turn again:** compute the return of a list of rewards.


# %%
def discounted_return(rewards, gamma):
    return ...


discounted_return = check("discounted_return", discounted_return)

# %% [markdown]
# <details><summary><b>Solution</b></summary>
#
# ```python
# def discounted_return(rewards, gamma):
#     return sum(gamma**t * reward for t, reward in enumerate(rewards))
# ```
# </details>

# %%
for gamma in (0.0, 0.5, 0.98):
    short, long = (discounted_return([1.0] * steps, gamma) for steps in (20, 500))
    print(f"gamma = {gamma:4}:  pole up for 20 steps {short:5.2f}    for 500 steps {long:5.2f}")

# %% [markdown]
# Look at the first line. With $\gamma = 0$ a pole that falls soon is worth as much as one that stands. Keep that in mind for section 8.
#
# ## 6. Let it learn
#
# The method is called **PPO**, *proximal policy optimisation* (Schulman et al. 2017). Lesson 12 takes it apart. In a sentence: play for a while, then make
# the actions that turned out better than expected a little more likely, and the others a little less. Again and again.
#
# The policy is a small neural network. At first it tosses a coin, like in section 2. Run the cell and watch the first curve: the mean return over the last 100
# episodes, here counted without discount, so it is simply how many steps the pole stayed up. **475 of 500 counts as solved.** The buttons pause it, take single
# rounds, and stop it.

# %%
config = PPOConfig(
    env="CartPole",  # or any Gymnasium id, such as "CartPole-v1"
    num_envs=32,  # play 32 games side by side
    frames_per_batch=2048,  # steps to play before each update
    epochs=10,  # how often each update goes through them
    total_frames=200_000,  # give up after so many steps
    stop_at=475,  # be content with this
)
agent = PPO(config)
board = Dashboard(
    ["episode_reward", "entropy"],
    title="PPO learns CartPole",
    target=475,
    smoothing=0,
    x="frames",
    total=config.total_frames,
)
run = Run(agent.train(), board=board, name="learn").start()

# %% [markdown]
# *What the other curve says.* **entropy** is how undecided the agent is: 0.69 is the toss of a coin, 0 is no doubt at all. It falls when the agent makes up its
# mind. (Rightly so? Section 8 comes back to that.)
#
# The next cell waits for the end of the run, and then checks what this page claims.

# %%
await run
score, steps = run.history[-1]["episode_reward"], run.history[-1]["frames"]
print(f"mean return over the last 100 episodes: {score:.0f}, after {steps:,.0f} steps")
assert run.state == "stopped" or score >= 475  # "stopped" is you, at the button

# %% [markdown]
# ## 7. Watch what it learnt
#
# The same cart and the same equations as at the top of this page. Now we let the agent do what it finds best at each step, for 200 steps.

# %%
EnvViewer(record(CartPole(seed=3), agent.actor.greedy, max_steps=200))

# %% [markdown]
# How good is it really? The score above comes from the games it learnt from. A fair test takes new ones.

# %%
new_games = CartPole(num_envs=100, seed=12345)
test_score = evaluate(new_games, agent.actor.greedy, episodes=100).mean().item()
print(f"random pushes {random_score:.0f}  ->  the agent, in 100 new games: {test_score:.0f} of 500")
assert run.state == "stopped" or test_score > 10 * random_score

# %% [markdown]
# ## 8. Break it on purpose
#
# A good way to understand a part of a machine is to take it out. Section 5 said that $\gamma$ is how far the agent looks ahead. What if it does not look ahead
# at all?

# %%
ask("gamma is 0")

# %%
from dataclasses import replace
from itertools import islice

CHANGE = {"gamma": 0.0}  # the rest as before
FRAMES = 40_960  # enough to see it

changed = replace(config, **CHANGE)
change = ", ".join(f"{name} = {value}" for name, value in CHANGE.items())
broken_board = Dashboard(
    ["episode_reward", "entropy"],
    title=change,
    target=475,
    smoothing=0,
    x="frames",
    total=FRAMES,
)
rounds = islice(PPO(changed).train(), FRAMES // changed.frames_per_batch)
broken = Run(rounds, board=broken_board, name="break").start()

# %%
await broken


def score_at(run, frames):
    """Return the mean return over the last 100 episodes then, or at the end of a run that ended before."""
    rows = [row for row in run.history if row["frames"] <= frames]
    return rows[-1]["episode_reward"]


if "stopped" not in (run.state, broken.state):
    before, after = score_at(run, FRAMES), score_at(broken, FRAMES)
    print(f"after the same {FRAMES:,} steps:   as it was: {before:.0f}    {change}: {after:.0f}")
    if CHANGE == {"gamma": 0.0}:  # what this page claims
        assert after < 100 < before

# %% [markdown]
# It ends below the coin of section 3, and yet it has made up its mind. With $\gamma = 0$ every push is worth 1, so no push is better than expected, and what looks
# better or worse is noise. PPO brings these differences to one scale before it learns from them, so noise counts as much as anything else: the policy drifts, and its
# entropy falls without a reason. **A falling entropy says that the agent makes up its mind, not that it is right.**
#
# **Now you.** Change `CHANGE` in the cell that begins with `from dataclasses import replace`, run it and the one below it, and predict first what will happen:
# `{"gamma": 0.5}`; `{"lr": 1e-5}` (it learns in steps a hundred times smaller); `{"clip_eps": 0.01}` (no action may become much more likely at once);
# `{"epochs": 1}`.
#
# ## 9. What did you learn?

# %%
ask("who told it")

# %%
ask("time-out")

# %% [markdown]
# ## Where next?
#
# * **You want to know how PPO works:** lesson [12 · PPO](12_ppo.ipynb) builds it from its parts. It assumes that you have met policies and values before.
# * **You want to use the library:** [First steps](../tutorials/first_steps.ipynb) shows its everyday parts in ten minutes.
# * **Something does not learn:** [The return does not rise](../knowledge_base/ppo_not_learning.ipynb) finds out why, and
#   [Time-outs are not terminations](../knowledge_base/timeouts.ipynb) tells more about the last question.
#
# ### The course
#
# This page and twenty lessons, each with something to predict, to play with, to write, to train live, and to break. **One of the twenty exists today**; the others
# are planned, in this order.
#
# | | lesson | | | lesson | |
# |---|---|---|---|---|---|
# | 01 | Bandits | planned | 11 | Actor-critic and GAE | planned |
# | 02 | Decision processes and returns | planned | **12** | **[PPO](12_ppo.ipynb)** | **ready** |
# | 03 | Dynamic programming | planned | 13 | SAC and TD3 | planned |
# | 04 | Monte Carlo | planned | 14 | Debugging clinic | planned |
# | 05 | TD, Sarsa, Q-learning | planned | 15 | Experiments that mean something | planned |
# | 06 | n-step and lambda | planned | 16 | Exploration | planned |
# | 07 | TensorDict and rlbook | planned | 17 | Models and planning | planned |
# | 08 | Function approximation | planned | 18 | Offline RL | planned |
# | 09 | DQN | planned | 19 | Learning from preferences | planned |
# | 10 | REINFORCE | planned | 20 | Capstone: an agent of your own | planned |
#
# **Sources.** The cart and the pole: Barto, Sutton and Anderson, *Neuronlike adaptive elements that can solve difficult learning control problems* (1983).
# PPO: Schulman et al., [*Proximal Policy Optimization Algorithms*](https://arxiv.org/abs/1707.06347) (2017). The book to read beside this course: Sutton and
# Barto, [*Reinforcement Learning: An Introduction*](http://incompleteideas.net/book/the-book-2nd.html) (2018), free online.
