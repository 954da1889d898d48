"""Which D4RL datasets there are, where their files lie, and between which returns scores are normalised.

Source: the tables of D4RL's ``infos.py`` (Fu et al. 2020), written as the rules they follow.
"""

from __future__ import annotations

from itertools import product

SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"
LEVELS = ("random", "medium", "expert", "medium-replay", "medium-expert")
HANDS = ("pen", "hammer", "relocate", "door")
ANTMAZES = {
    "umaze": "u-maze_noisy_multistart_False_multigoal_False",
    "umaze-diverse": "u-maze_noisy_multistart_True_multigoal_True",
    "medium-play": "big-maze_noisy_multistart_True_multigoal_False",
    "medium-diverse": "big-maze_noisy_multistart_True_multigoal_True",
    "large-play": "hardest-maze_noisy_multistart_True_multigoal_False",
    "large-diverse": "hardest-maze_noisy_multistart_True_multigoal_True",
}
SINGLE = {
    "ant-random-expert-v0": "gym_mujoco/ant_random_expert",
    "minigrid-fourrooms-v0": "minigrid/minigrid4rooms",
    "minigrid-fourrooms-random-v0": "minigrid/minigrid4rooms_random",
    "flow-ring-random-v0": "flow/flow-ring-v0-random",
    "flow-ring-controller-v0": "flow/flow-ring-v0-idm",
    "flow-merge-random-v0": "flow/flow-merge-v0-random",
    "flow-merge-controller-v0": "flow/flow-merge-v0-idm",
    "kitchen-complete-v0": "kitchen/mini_kitchen_microwave_kettle_light_slider-v0",
    "kitchen-partial-v0": "kitchen/kitchen_microwave_kettle_light_slider-v0",
    "kitchen-mixed-v0": "kitchen/kitchen_microwave_kettle_bottomburner_light-v0",
    "carla-lane-v0": "carla/carla_lane_follow_flat-v0",
    "carla-town-v0": "carla/carla_town_subsamp_flat-v0",
    "carla-town-full-v0": "carla/carla_town_flat-v0",
    "maze2d-open-v0": "maze2d/maze2d-open-sparse",
    "maze2d-open-dense-v0": "maze2d/maze2d-open-dense",
}
REFERENCE = {  # the returns that count as 0 and as 100 (a random and an expert policy)
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "door": (-56.512833, 2880.5693087298737),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "maze2d-umaze-dense": (68.537689, 193.66285642381482),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
}


def d4rl_files() -> dict[str, str]:
    """Return the path on the server of every dataset, by its id."""
    files = dict(SINGLE)
    for env, level in product(("halfcheetah", "hopper", "walker2d", "ant"), LEVELS):
        old = "mixed" if level == "medium-replay" else level.replace("-", "_")
        body = "walker" if (env, old) == ("walker2d", "mixed") else env
        files[f"{env}-{level}-v0"] = f"gym_mujoco/{body}_{old}"
    for env, level, version in product(("halfcheetah", "hopper", "walker2d", "ant"), (*LEVELS, "full-replay"), ("v1", "v2")):
        files[f"{env}-{level}-{version}"] = f"gym_mujoco_{version}/{env}_{level.replace('-', '_')}-{version}"
    for hand in HANDS:
        old_files = {"human": "v0_demos_clipped", "cloned": "demos-v0-bc-combined", "expert": "v0_expert_clipped"}
        files |= {f"{hand}-{level}-v0": f"hand_dapg/{hand}-{name}" for level, name in old_files.items()}
        files |= {f"{hand}-{level}-v1": f"hand_dapg_v1/{hand}-{level}-v1" for level in old_files}
    for name, maze in ANTMAZES.items():
        files[f"antmaze-{name}-v0"] = f"ant_maze_new/Ant_maze_{maze}_sparse"
        files[f"antmaze-{name}-v2"] = f"ant_maze_v2/Ant_maze_{maze}_sparse_fixed"
    for part, size, dense in product(("", "eval-"), ("umaze", "medium", "large"), ("", "-dense")):
        files[f"maze2d-{part}{size}{dense}-v1"] = f"maze2d/maze2d-{part}{size}{dense or '-sparse'}-v1"
    for body, level in product(("halfcheetah", "hopper", "ant", "walker2d"), LEVELS):
        files[f"bullet-{body}-{level}-v0"] = f"bullet/bullet-{body}_{level.replace('-', '_')}"
    files |= {f"bullet-maze2d-{size}-v0": f"bullet/bullet-maze2d-{size}-sparse" for size in ("open", "umaze", "medium", "large")}
    return {id: path + ".hdf5" for id, path in sorted(files.items())}


def reference_returns(id: str) -> tuple[float, float] | None:
    """Return the undiscounted returns that count as 0 and as 100, if D4RL gives them."""
    env = id.rsplit("-", 1)[0].replace("maze2d-eval-", "maze2d-")
    return REFERENCE.get(env) or REFERENCE.get(env.split("-")[0])
