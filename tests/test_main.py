"""The terminal's door."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys

import pytest

from rlbook.__main__ import main
from rlbook.recipes import PPO, PPOConfig
from rlbook.trainers import EpisodeScore, load_checkpoint

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
    assert "Passes over each batch (default 20)" in " ".join(text.split())


def test_help_leaves_out_what_has_no_effect(capsys):
    with pytest.raises(SystemExit):
        main(["train", "crossq", "--help"])
    text = capsys.readouterr().out
    assert "--beta1" in text
    assert "--tau" not in text


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


def test_saves_and_resumes(tmp_path, capsys):
    save = ["--save", str(tmp_path / "run.pt")]
    assert main(["train", "ppo", "CartPole", "--total-frames", "512", "--epochs", "1", *save, "--resume"]) == 0
    captured = capsys.readouterr()
    assert "run.pt is not there yet: a new run." in captured.err
    longer = ["train", "ppo", "CartPole", "--total-frames", "768", "--epochs", "1", *save, "--resume"]
    assert main(longer) == 0
    captured = capsys.readouterr()
    assert "CartPole: 256 frames in" in captured.out  # what this call added
    assert "      768 frames" in captured.err
    assert "not there" not in captured.err
    assert main(longer) == 0
    assert "nothing left to do after 768 frames" in capsys.readouterr().out
    assert main([*longer, "--lr", "0.5"]) == 2
    assert "ConfigError: The settings of a continued run must be {'lr': 0.001}" in capsys.readouterr().err


def test_saves_now_and_then(tmp_path, monkeypatch):
    saves = []
    monkeypatch.setattr("rlbook.__main__.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("rlbook.recipes.ppo.PPO.save", lambda agent, path: saves.append(agent.frames))
    assert main(["train", "ppo", "CartPole", *SHORT, "--save", str(tmp_path / "run.pt")]) == 0
    assert saves == [256, 512, 512]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_after_the_round(number, tmp_path, monkeypatch, capsys):
    handler = signal.getsignal(number)
    path = tmp_path / "run.pt"
    rounds = []

    def interrupting(self, data, learn=EpisodeScore.__call__):
        rounds.append(len(rounds))
        if len(rounds) == 250:  # between two regular metrics, of which there is one every 1000 frames
            signal.raise_signal(number)
        return learn(self, data)

    monkeypatch.setattr(EpisodeScore, "__call__", interrupting)
    options = ["sac", "Pendulum", "--num-cells", "8", "--total-frames", "400", "--learning-starts", "390"]
    assert main(["train", *options, "--save", str(path)]) == 128 + number
    assert "Stopped." in capsys.readouterr().err
    assert load_checkpoint(path)["parts"]["collector"]["frames"] == 250
    assert signal.getsignal(number) is handler
    assert main(["train", *options, "--save", str(path), "--resume"]) == 0
    assert "Pendulum: 150 frames in" in capsys.readouterr().out


def test_the_settings_of_a_command_line_are_those_of_python(tmp_path, capsys):
    save = ["--save", str(tmp_path / "run.pt"), "--resume"]
    assert main(["train", "ppo", "CartPole", "--total-frames", "256", "--epochs", "1", "--num-cells", "64", "64", *save]) == 0
    assert main(["train", "ppo", "CartPole", "--total-frames", "512", "--epochs", "1", *save]) == 0
    PPO(PPOConfig(env="CartPole", epochs=1)).load(tmp_path / "run.pt")
    assert main(["train", "ppo", "CartPole", "--save", str(tmp_path / "run.pt"), "--total-frames", "0"]) == 2
    with pytest.raises(SystemExit):
        main(["train", "ppo", "CartPole", "--save", str(tmp_path)])
    assert "--save takes a file" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("none", None), ("None", None)])
def test_an_optional_number_has_its_type(monkeypatch, text, value):
    made = []
    monkeypatch.setattr("rlbook.recipes.redq.REDQ.make_loss", lambda agent: made.append(agent.config.subset) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", "redq", "Pendulum", "--subset", text])
    assert made == [value]
    assert type(made[0]) is type(value)


@pytest.mark.parametrize("arguments", [["redq", "--subset", "2.5"], ["r2d2", "--cell", "rnn"]])
def test_what_an_option_cannot_be_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit):
        main(["train", *arguments])
    assert "invalid" in capsys.readouterr().err


def test_resuming_needs_a_file(capsys):
    with pytest.raises(SystemExit):
        main(["train", "ppo", "CartPole", "--resume"])
    assert "--resume goes on from the file of --save: give both" in capsys.readouterr().err


def test_stopping_is_no_error(capsys, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("rlbook.recipes.ppo.PPO.train", interrupted)
    assert main(["train", "ppo", "CartPole-v1"]) == 130
    assert "Stopped." in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "ppo", "CartPole", *SHORT, "--save", str(tmp_path / "file" / "x.pt")])
    assert stopped.value.code == 2
    assert "--save takes a file that can be written" in capsys.readouterr().err


def test_numbers_as_people_write_them(capsys):
    assert main(["train", "ppo", "CartPole", "--total-frames", "5.12e2", "--epochs", "1"]) == 0
    assert "CartPole: 512 frames" in capsys.readouterr().out
    for option in (["--threads", "0"], ["--total-frames", "1.5"]):
        with pytest.raises(SystemExit) as stopped:
            main(["train", "ppo", "CartPole", *SHORT, *option])
        assert stopped.value.code == 2
        assert "invalid" in capsys.readouterr().err
