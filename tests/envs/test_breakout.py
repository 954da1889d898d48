"""Breakout: the same games as a slow reference's, golden bounces, sticky actions."""

from __future__ import annotations

import pytest
import torch
from reference.breakout import SlowBreakout

from rlbook import keys
from rlbook.envs import Breakout, check_env
from rlbook.errors import ConfigError

torch.set_num_threads(1)

STAY, LEFT, RIGHT = range(3)
NAMES = {3: ("stay", "left", "right"), 6: ("stay", "left", "stay", "right", "stay", "stay")}


def _follow(observation):
    """Keep the paddle under the ball: plays for long, and clears walls."""
    paddle, ball = (observation[..., plane, :, :].amax(-2).argmax(-1) for plane in (0, 1))
    step = ball - paddle
    return torch.where(step < 0, LEFT, torch.where(step > 0, RIGHT, STAY))


def _games(env):
    """Return slow games in the state that the environment has just been reset to."""
    return [SlowBreakout(starts_left=bool(x == 0)) for x in env.state["ball"][:, 0]]


@pytest.mark.parametrize("num_actions, follow, steps", [(3, 0.0, 120), (6, 0.0, 60), (3, 0.9, 600), (3, 1.0, 1500)])
def test_games_equal_the_slow_reference(num_actions, follow, steps):
    rows = 12 if follow < 1 else 3
    env = Breakout(num_envs=rows, num_actions=num_actions, sticky=0.0, max_steps=None, seed=1)
    observation = env._reset(None)[keys.OBSERVATION]
    games, bricks, endings, walls = _games(env), 0.0, 0, 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        random = torch.randint(num_actions, (rows,), generator=generator)
        chosen = torch.rand(rows, generator=generator) < follow
        action = torch.where(chosen, _follow(observation), random)
        leaves = env._step(action)
        for row, game in enumerate(games):
            empty = not game.wall
            reward = game.step(NAMES[num_actions][action[row]])
            assert torch.equal(leaves[keys.OBSERVATION][row], torch.from_numpy(game.picture()).float())
            assert leaves[keys.REWARD][row].item() == reward
            assert leaves[keys.TERMINATED][row].item() == game.over
            walls += empty and bool(game.wall)
        bricks, endings = bricks + leaves[keys.REWARD].sum().item(), endings + int(leaves[keys.TERMINATED].sum())
        observation = leaves[keys.OBSERVATION]
        if leaves[keys.TERMINATED].any():
            observation = env._reset(leaves[keys.TERMINATED])[keys.OBSERVATION]
            fresh = _games(env)
            games = [fresh[row] if game.over else game for row, game in enumerate(games)]
    assert bricks > 10
    assert endings > 10 if follow < 1 else walls >= 2, (endings, walls)


def _place(env, ball, paddle=4, inside=False, bricks=None):
    state = env.state
    state["ball"], state["paddle"], state["inside"] = torch.tensor(ball), torch.tensor(paddle), torch.tensor(inside)
    if bricks is not None:
        state["bricks"] = torch.tensor([[cell in bricks for cell in range(30)]]).squeeze(0)
    env.set_state(state)


@pytest.mark.parametrize(
    "ball, after, reward, over",
    [
        ([2, 6, 1, 1], [3, 7, 1, 1], 0, False),  # free flight
        ([9, 6, 1, 1], [9, 7, -1, 1], 0, False),  # the right wall
        ([0, 6, -1, -1], [0, 5, 1, -1], 0, False),  # the left wall
        ([5, 0, 1, -1], [6, 0, 1, 1], 0, False),  # the ceiling
        ([9, 0, 1, -1], [9, 0, -1, 1], 0, False),  # a corner
        ([5, 4, 1, -1], [6, 4, 1, 1], 1, False),  # a brick: reflected, one row back
        ([4, 8, 1, 1], [5, 8, 1, -1], 0, False),  # from above the paddle in column 4: reflected
        ([3, 8, 1, 1], [4, 8, -1, -1], 0, False),  # onto the paddle from the left: back where it came from
        ([5, 8, -1, 1], [4, 8, 1, -1], 0, False),  # from the right
        ([6, 8, -1, 1], [5, 9, -1, 1], 0, True),  # past it
    ],
)
def test_bounces(ball, after, reward, over):
    env = Breakout(sticky=0.0)
    env.reset()
    _place(env, ball)
    leaves = env._step(torch.tensor(STAY))
    assert env.state["ball"].tolist() == after
    assert env.state["trail"].tolist() == ball[:2]
    assert leaves[keys.REWARD].item() == reward
    assert leaves[keys.TERMINATED].item() == over
    assert env.state["bricks"].sum() == 30 - reward


def test_the_second_brick_in_a_row_is_flown_through():
    env = Breakout(sticky=0.0)
    env.reset()
    _place(env, [5, 3, 1, -1], inside=True)
    leaves = env._step(torch.tensor(STAY))
    assert env.state["ball"].tolist() == [6, 2, 1, -1]
    assert leaves[keys.REWARD].item() == 0
    assert env.state["bricks"].all()
    assert env.state["inside"]


@pytest.mark.parametrize("ball, refilled", [([4, 8, 1, 1], True), ([4, 7, 1, 1], False)])
def test_a_new_wall_appears_when_the_ball_comes_down(ball, refilled):
    env = Breakout(sticky=0.0)
    env.reset()
    _place(env, ball, bricks=())
    env._step(torch.tensor(STAY))
    assert env.state["bricks"].all().item() == refilled
    assert env.state["bricks"].any().item() == refilled


def test_the_last_brick_leaves_nothing():
    env = Breakout(sticky=0.0)
    env.reset()
    _place(env, [5, 4, 1, -1], bricks=(26,))  # row 3, column 6
    assert env._step(torch.tensor(STAY))[keys.REWARD].item() == 1
    assert not env.state["bricks"].any()


def test_start():
    env = Breakout(num_envs=2000, seed=0)
    board = env.reset()[keys.OBSERVATION]
    assert board[:, 0].nonzero()[:, 1:].tolist() == [[9, 4]] * 2000
    assert torch.equal(board[:, 1], board[:, 2])
    assert board[:, 3].sum((0, 2)).tolist() == [0, 20_000, 20_000, 20_000, 0, 0, 0, 0, 0, 0]
    left = board[:, 1, 3, 0]
    assert torch.equal(left + board[:, 1, 3, 9], torch.ones(2000))
    assert abs(left.mean() - 0.5) < 0.045  # four standard deviations of 0.0112


@pytest.mark.parametrize("sticky", [0.25, 1.0])
def test_sticky_actions_repeat_the_last_one(sticky):
    env = Breakout(num_envs=4000, sticky=sticky, seed=0)
    env.reset()
    before = env.state["paddle"]
    env._step(torch.full((4000,), RIGHT))
    moved = env.state["paddle"] - before  # nothing has been done yet: what sticks is to stay
    assert abs((moved == 0).float().mean() - sticky) < 0.028  # four standard deviations of 0.0069
    executed = env.state["last_action"]
    assert torch.equal(executed == RIGHT, moved == 1)
    before = env.state["paddle"]
    env._step(torch.full((4000,), LEFT))
    moved = env.state["paddle"] - before
    stuck = torch.where(executed == RIGHT, moved == 1, moved == 0)
    assert abs(stuck.float().mean() - sticky) < 0.028
    assert torch.equal(~stuck, moved == -1)


def test_bytes_are_the_same_picture():
    numbers, bytes_ = (Breakout(num_envs=3, dtype=dtype, seed=0).rollout(50) for dtype in (torch.float32, torch.uint8))
    assert bytes_[keys.OBSERVATION].dtype == torch.uint8
    for key in (keys.OBSERVATION, (keys.NEXT, keys.OBSERVATION)):
        torch.testing.assert_close(bytes_[key] / 255, numbers[key])


@pytest.mark.parametrize("num_envs", [None, 1, 5])
@pytest.mark.parametrize("options", [{"sticky": 0.0}, {"num_actions": 6}, {"dtype": torch.uint8}], ids=str)
def test_variants_keep_the_contract(options, num_envs):
    assert "keeps the contract" in check_env(Breakout(num_envs, **options))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sticky": 1.5}, r"sticky must be a probability in \[0, 1\]; got 1.5"),
        ({"num_actions": 4}, "num_actions must be 3 or 6; got 4"),
        ({"dtype": torch.float64}, "dtype must be torch.float32 or torch.uint8; got torch.float64"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        Breakout(**options)


def test_stepping_on_after_the_end_stays_on_the_board():
    env = Breakout(sticky=0.0)
    env.reset()
    _place(env, [6, 8, -1, 1])
    for _ in range(3):
        leaves = env._step(torch.tensor(LEFT))
        assert leaves[keys.OBSERVATION][1, 9].sum() == 1
        assert leaves[keys.TERMINATED]


def test_it_draws_itself():
    env = Breakout(num_envs=2, seed=0)
    env.reset()
    assert env.render(1).shape == (200, 200, 3)
