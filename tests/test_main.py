"""The terminal's door."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from rlbook.__main__ import main
from rlbook.recipes import PPOConfig

SHORT = ["--total-frames", "512", "--epochs", "1"]


def test_trains_and_prints_the_score():
    command = [sys.executable, "-m", "rlbook", "train", "ppo", "CartPole-v1", *SHORT, "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "CartPole-v1: 512 frames in" in done.stdout
    assert "seed 3" in done.stdout
    assert "score: mean return" in done.stdout
    assert "[##############################]       512 frames" in done.stderr
    assert "\r" not in done.stderr  # no terminal, no redrawing
    assert "Warning" not in done.stderr


def test_options_reach_the_recipe(capsys):
    options = ["--num-cells", "8", "8", "--no-anneal", "--num-envs", "4", "--frames-per-batch", "128"]
    options += ["--minibatch-size", "64", "--lr", "0.002"]
    assert main(["train", "ppo", "CartPole", *SHORT, *options]) == 0
    assert "CartPole: 512 frames" in capsys.readouterr().out


def test_no_finished_episode_is_no_number(capsys):
    assert main(["train", "ppo", "Pendulum", "--total-frames", "256", "--epochs", "1"]) == 0
    captured = capsys.readouterr()
    assert "nan" not in captured.out + captured.err


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "ppo", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(PPOConfig):
        assert field.name == "env" or f"--{field.name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CartPole-v9"], "UnknownEnvError: env must be a registered Gymnasium id; got 'CartPole-v9'. Did you mean CartPole-v"),
        (["CartPole-v1", "--seed", "-1"], "ConfigError: seed must be an integer"),
        (["CartPole-v1", "--frames-per-batch", "100"], "ConfigError: frames_per_batch must be a positive multiple of num_envs=8"),
        (["CartPole-v1", "--total-frames", "0"], "ConfigError: total_frames must be a positive integer"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments, message, capsys):
    assert main(["train", "ppo", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert len(captured.err.splitlines()) == 1
    assert not captured.out


@pytest.mark.parametrize("arguments", [[], ["train"], ["train", "alchemy"], ["train", "ppo", "CartPole-v1", "--speed", "3"]])
def test_a_wrong_command_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m rlbook" in capsys.readouterr().err


def test_stopping_is_no_error(capsys, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("rlbook.recipes.ppo.PPO.train", interrupted)
    assert main(["train", "ppo", "CartPole-v1"]) == 130
    assert "Stopped." in capsys.readouterr().err
