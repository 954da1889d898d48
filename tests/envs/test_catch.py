"""Catch: a game move by move, its optimum, and every ball and paddle that it can show."""

from __future__ import annotations

import pytest
import torch

from rlbook import keys
from rlbook.envs import Catch, check_env
from rlbook.errors import ConfigError

torch.set_num_threads(1)


def _place(env, row, ball, paddle):
    state = env.state
    for key, value in (("row", row), ("ball", ball), ("paddle", paddle)):
        state[key] = torch.full_like(state[key], value)
    env.set_state(state)


def _board(observation):
    return ["".join(".#"[int(cell)] for cell in row) for row in observation.squeeze(0)]


def test_a_game_move_by_move():
    env = Catch(rows=4, columns=3)
    env.reset()
    _place(env, 0, 2, 1)
    boards, rewards, terminated = [], [], []
    for action in (0, 0, 2):  # left, left into the border, right
        leaves = env._step(torch.tensor(action))
        boards.append(_board(leaves[keys.OBSERVATION]))
        rewards.append(leaves[keys.REWARD].item())
        terminated.append(leaves[keys.TERMINATED].item())
    assert boards == [
        ["...", "..#", "...", "#.."],
        ["...", "...", "..#", "#.."],
        ["...", "...", "...", ".##"],  # the ball has fallen beside the paddle
    ]
    assert rewards == [0, 0, -1]
    assert terminated == [False, False, True]


@pytest.mark.parametrize("action, reward", [(0, -1.0), (1, 1.0), (2, -1.0)])
def test_the_paddle_moves_before_the_ball_arrives(action, reward):
    env = Catch()
    env.reset()
    _place(env, 8, 3, 3)
    leaves = env._step(torch.tensor(action))
    assert leaves[keys.REWARD].item() == reward
    assert leaves[keys.TERMINATED]


def test_it_begins_in_the_middle_below_every_column():
    board = Catch(num_envs=5000, seed=0).reset()[keys.OBSERVATION]
    assert board.shape == (5000, 1, 10, 5)
    assert board[:, 0, -1].tolist() == [[0, 0, 1, 0, 0]] * 5000
    assert not board[:, 0, 1:-1].any()
    torch.testing.assert_close(board[:, 0, 0].mean(0), torch.full((5,), 0.2), rtol=0, atol=0.023)  # four deviations of 0.0057


@pytest.mark.parametrize("rows, columns", [(10, 5), (2, 3), (3, 4), (7, 1)])
def test_the_best_policy_catches_every_ball(rows, columns):
    env = Catch(num_envs=200, rows=rows, columns=columns, seed=0)
    data = env.rollout(3 * (rows - 1), env.optimal_action)
    assert data[keys.NEXT, keys.REWARD].sum(-1).tolist() == [3 * env.optimal_return] * 200
    assert torch.equal(data[keys.NEXT, keys.TERMINATED].sum(-1), torch.full((200,), 3))


def test_values_solve_the_bellman_optimality_equation():
    gamma, env = 0.9, Catch()
    env.reset()
    for row in range(9):
        for ball in range(5):
            for paddle in range(5):
                _place(env, row, ball, paddle)
                state = env.state
                after, leaves = env.functional_step(state.expand(3), torch.arange(3))
                future = 0.0 if row == 8 else gamma * env.optimal_value(leaves[keys.OBSERVATION], gamma)
                best = (leaves[keys.REWARD] + future).max()
                assert after.batch_size == (3,)
                torch.testing.assert_close(env.optimal_value(env._observe(dict(state))[keys.OBSERVATION], gamma), best)


@pytest.mark.parametrize("board", [{"rows": 1}, {"columns": 0}, {"rows": 3, "columns": 6}])
def test_unfair_boards_are_refused(board):
    with pytest.raises(ConfigError, match=r"The board must be at least 2 x 1, with columns // 2 < rows; got rows="):
        Catch(**board)


def test_other_boards_keep_the_contract_and_draw_themselves():
    env = Catch(num_envs=2, rows=6, columns=9)
    assert "keeps the contract" in check_env(env)
    assert env.render(1).shape == (6 * 18 + 20, 9 * 18 + 20, 3)
