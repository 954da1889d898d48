"""The items, and what others have published on the same environments.

Published scores are copied from the place that is named with them, never from memory. Three things differ from ours and between
them: the version of an environment (MuJoCo v1 to v3 run on mujoco-py, v4 on the mujoco bindings, v5, which is ours, changed
rewards, observations and models), what is averaged (training episodes, or a separate evaluation without exploration), and the
number of steps, which is given with each.
"""

from __future__ import annotations

from typing import Any

from benchmarks.scores.item import Item, Published

ZOO = "DLR-RM/rl-baselines3-zoo benchmark.md @0088472"
CLEANRL = "vwxyzjn/cleanrl docs"


def zoo(score: str, steps: str, version: str = "") -> Published:
    """One trained agent of RL Baselines3 Zoo, evaluated without exploration: mean and deviation over its episodes."""
    return Published(f"SB3 Zoo, {steps} steps, one run, deterministic{version}", score, ZOO)


def cleanrl(script: str, score: str, source: str, what: str = "") -> Published:
    """CleanRL's mean and deviation over 3 or more seeds, of training episodes."""
    return Published(f"CleanRL {script}{what}", score, f"{CLEANRL}/{source}")


PPO_MUJOCO = {
    "num_envs": 1,
    "frames_per_batch": 2048,
    "epochs": 10,
    "minibatch_size": 64,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "lr": 3e-4,
    "anneal_clip": False,
    "normalize": True,
}
"""Rollouts, discounts and learning rate of CleanRL's ``ppo_continuous_action.py``. Its value loss is clipped and weighs half of
ours; its actor is a normal distribution whose actions are clipped, ours is squashed into the bounds by tanh."""

WARM: dict[str, Any] = {"learning_starts": 5000}
WARM_TD3: dict[str, Any] = {"learning_starts": 25_000}
"""What MuJoCo asks of off-policy recipes beyond their defaults, as in CleanRL."""

REDQ_MUJOCO = WARM | {"updates": 2, "actor_every": 2}
FEW_UPDATES = "Two updates for each frame: the 20 of the paper take 18 hours for 100,000 frames on one core."
REDQ_ENTROPY = {"halfcheetah": -3, "hopper": -1, "walker2d": -3}
"""As in the code of the authors of REDQ, watchernyu/REDQ redq/algos/core.py @11bf30d."""

DQN_BREAKOUT = {
    "num_envs": 8,
    "frames_per_batch": 64,
    "updates": 16,
    "learning_starts": 5000,
    "lr": 2.5e-4,
    "target_every": 250,
    "eps_end": 0.05,
    "eps_frames": 100_000,
}
PPO_BREAKOUT = {
    "num_envs": 64,
    "frames_per_batch": 4096,
    "epochs": 4,
    "minibatch_size": 1024,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "entropy_coef": 0.01,
    "anneal_clip": False,
    "num_cells": (256, 256),
}

OPTIMUM = Published("The best policy there is", "-0.4990", "LQR().optimal_return, from the Riccati equation")

CONTINUOUS = "benchmark/ppo_continuous_action.md @09f7a7f"
SAC_TABLE = "benchmark/sac.md @35896b1"
TD3_TABLE = "rl-algorithms/td3.md @0a247b6"
TD3_PAPER = "Fujimoto et al. 2018, table 1, as quoted in vwxyzjn/cleanrl docs/rl-algorithms/td3.md @0a247b6"
PPO_TABLE, DQN_TABLE, C51_TABLE = (
    "rl-algorithms/ppo.md @7a96de2",
    "rl-algorithms/dqn.md @01bd173",
    "rl-algorithms/c51.md @04377c8",
)
V4, V2 = ", v4, 1M steps", ", v2, 1M steps"
BODIES = {"halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5", "walker2d": "Walker2d-v5"}


def mujoco(name: str, recipe: str, frames: int, seeds: int, *published: Published, note: str = "", **settings: object) -> Item:
    """A MuJoCo item; with few frames, fewer episodes make the final return."""
    window = 100 if frames >= 1_000_000 else 10
    options = {"settings": settings, "window": window, "published": published, "note": note}
    return Item(f"{recipe}_{name}", recipe, BODIES[name], frames, seeds, **options)


ALL = [
    # ---- CartPole ------------------------------------------------------------------------------------------------------------
    Item(
        "ppo_cartpole",
        "ppo",
        "CartPole-v1",
        100_000,
        published=(
            zoo("500.000 ± 0.000", "100k"),
            cleanrl("ppo.py", "490.04 ± 6.12", PPO_TABLE, ", 500k steps"),
        ),
        note="The settings of SB3 Zoo.",
    ),
    Item("a2c_cartpole", "a2c", "CartPole-v1", 500_000, published=(zoo("500.000 ± 0.000", "500k"),)),
    Item("reinforce_cartpole", "reinforce", "CartPole-v1", 200_000, compile=False),
    Item(
        "dqn_cartpole",
        "dqn",
        "CartPole-v1",
        50_000,
        seeds=10,
        published=(
            zoo("500.000 ± 0.000", "50k"),
            cleanrl("dqn.py", "488.69 ± 16.11", DQN_TABLE, ", 500k steps"),
        ),
    ),
    Item(
        "c51_cartpole",
        "c51",
        "CartPole-v1",
        100_000,
        published=(cleanrl("c51.py", "498.51 ± 1.77", C51_TABLE, ", 500k steps"),),
    ),
    Item("qrdqn_cartpole", "qrdqn", "CartPole-v1", 50_000, published=(zoo("500.000 ± 0.000", "50k"),)),
    # ---- Acrobot and LunarLander ---------------------------------------------------------------------------------------------
    Item(
        "ppo_acrobot",
        "ppo",
        "Acrobot-v1",
        500_000,
        settings={
            "num_envs": 4,
            "frames_per_batch": 512,
            "epochs": 4,
            "minibatch_size": 128,
            "gamma": 0.99,
            "gae_lambda": 0.95,
            "lr": 2.5e-4,
            "anneal_clip": False,
            "entropy_coef": 0.01,
        },
        published=(
            cleanrl("ppo.py", "-86.36 ± 1.32", PPO_TABLE, ", 500k steps"),
            zoo("-73.506 ± 18.201", "1M"),
        ),
        note="Rollouts, discounts and learning rate of CleanRL's ppo.py, whose value loss is clipped and weighs half of ours.",
    ),
    Item(
        "dqn_acrobot",
        "dqn",
        "Acrobot-v1",
        100_000,
        published=(zoo("-76.639 ± 11.752", "100k"), cleanrl("dqn.py", "-91.54 ± 7.20", DQN_TABLE, ", 500k steps")),
    ),
    Item(
        "ppo_lunarlander",
        "ppo",
        "LunarLander-v3",
        1_000_000,
        seeds=3,
        settings={
            "num_envs": 16,
            "frames_per_batch": 16_384,
            "epochs": 4,
            "minibatch_size": 64,
            "gamma": 0.999,
            "gae_lambda": 0.98,
            "lr": 3e-4,
            "anneal": False,
            "entropy_coef": 0.01,
        },
        published=(zoo("242.119 ± 31.823", "1M", ", v2"),),
    ),
    Item("dqn_lunarlander", "dqn", "LunarLander-v3", 100_000, seeds=3, published=(zoo("154.382 ± 79.241", "100k", ", v2"),)),
    # ---- Pendulum ------------------------------------------------------------------------------------------------------------
    Item("ddpg_pendulum", "ddpg", "Pendulum-v1", 20_000, window=20, published=(zoo("-152.099 ± 94.282", "20k"),)),
    Item("td3_pendulum", "td3", "Pendulum-v1", 20_000, window=20, published=(zoo("-151.855 ± 90.227", "20k"),)),
    Item("sac_pendulum", "sac", "Pendulum-v1", 20_000, window=20, published=(zoo("-156.995 ± 88.714", "20k"),)),
    Item("tqc_pendulum", "tqc", "Pendulum-v1", 20_000, window=20, published=(zoo("-151.340 ± 87.893", "20k"),)),
    # ---- MuJoCo --------------------------------------------------------------------------------------------------------------
    mujoco(
        "halfcheetah",
        "ppo",
        1_000_000,
        5,
        cleanrl("ppo_continuous_action.py", "1442.64 ± 46.03", CONTINUOUS, V4),
        **PPO_MUJOCO,
    ),
    mujoco("hopper", "ppo", 1_000_000, 5, cleanrl("ppo_continuous_action.py", "2382.86 ± 271.74", CONTINUOUS, V4), **PPO_MUJOCO),
    mujoco(
        "walker2d", "ppo", 1_000_000, 5, cleanrl("ppo_continuous_action.py", "2287.95 ± 571.78", CONTINUOUS, V4), **PPO_MUJOCO
    ),
    mujoco(
        "halfcheetah",
        "sac",
        1_000_000,
        2,
        cleanrl("sac_continuous_action.py", "9634.89 ± 1423.73", SAC_TABLE, V4),
        zoo("9535.451 ± 100.470", "1M", ", v3"),
        **WARM,
    ),
    mujoco(
        "hopper",
        "sac",
        300_000,
        3,
        cleanrl("sac_continuous_action.py", "2310.46 ± 342.82", SAC_TABLE, V4),
        zoo("2325.547 ± 1129.676", "1M", ", v3"),
        **WARM,
    ),
    mujoco(
        "walker2d",
        "sac",
        300_000,
        3,
        cleanrl("sac_continuous_action.py", "3591.45 ± 911.33", SAC_TABLE, V4),
        zoo("3863.203 ± 254.347", "1M", ", v3"),
        **WARM,
    ),
    mujoco(
        "halfcheetah",
        "td3",
        1_000_000,
        2,
        cleanrl("td3_continuous_action.py", "9018.31 ± 1078.31", TD3_TABLE, V2),
        Published("TD3 paper, v1, 1M steps, deterministic", "9636.95 ± 859.065", TD3_PAPER),
        zoo("9655.666 ± 969.916", "1M", ", v3"),
        **WARM_TD3,
    ),
    mujoco(
        "hopper",
        "td3",
        300_000,
        3,
        cleanrl("td3_continuous_action.py", "3391.78 ± 232.21", TD3_TABLE, V2),
        Published("TD3 paper, v1, 1M steps, deterministic", "3564.07 ± 114.74", TD3_PAPER),
        zoo("3606.390 ± 4.027", "1M", ", v3"),
        **WARM_TD3,
    ),
    mujoco(
        "walker2d",
        "td3",
        300_000,
        3,
        cleanrl("td3_continuous_action.py", "4246.07 ± 1210.84", TD3_TABLE, V2),
        Published("TD3 paper, v1, 1M steps, deterministic", "4682.82 ± 539.64", TD3_PAPER),
        zoo("4717.823 ± 46.303", "1M", ", v3"),
        **WARM_TD3,
    ),
    mujoco("halfcheetah", "tqc", 100_000, 2, zoo("12089.939 ± 127.440", "1M", ", v3"), **WARM),
    mujoco("hopper", "tqc", 100_000, 2, zoo("3754.199 ± 8.276", "1M", ", v3"), **WARM),
    mujoco("walker2d", "tqc", 100_000, 2, zoo("4380.720 ± 500.489", "1M", ", v3"), **WARM),
    *(mujoco(name, "crossq", 100_000, 2, **WARM) for name in BODIES),
    *(mujoco(name, "redq", 100_000, 2, note=FEW_UPDATES, target_entropy=REDQ_ENTROPY[name], **REDQ_MUJOCO) for name in BODIES),
    # ---- our own environments --------------------------------------------------------------------------------------------------
    Item("dqn_catch", "dqn", "Catch", 50_000, seeds=3),
    Item("ppo_catch", "ppo", "Catch", 100_000, seeds=3),
    Item("dqn_breakout", "dqn", "Breakout", 1_000_000, seeds=2, settings=DQN_BREAKOUT),
    Item("ppo_breakout", "ppo", "Breakout", 1_000_000, seeds=3, settings=PPO_BREAKOUT),
    Item("recurrent_ppo_tmaze", "recurrent_ppo", "TMaze", 61_440, seeds=3),
    Item("r2d2_tmaze", "r2d2", "TMaze", 100_000, seeds=3),
    Item("ddpg_lqr", "ddpg", "LQR", 20_000, seeds=3, published=(OPTIMUM,)),
    Item("sac_lqr", "sac", "LQR", 20_000, seeds=3, published=(OPTIMUM,)),
]

ITEMS = {item.name: item for item in ALL}
