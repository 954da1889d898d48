"""What every recipe must do: repeat itself, go on where it stopped, and explain its settings."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch

from rlbook.errors import ConfigError, SpecError
from rlbook.recipes import PPO, RECIPES, PPOConfig
from rlbook.recipes.settings import describe, meanings_of

NATIVE = {"CartPole-v1": "CartPole"}
SMALL: dict[str, Any] = {
    "seed": 3,
    "num_cells": (8,),
    "epochs": 2,
    "updates": 2,
    "batch_size": 16,
    "learning_starts": 64,
    "log_every": 64,
    "aux_every": 2,
}
ROUNDS = 6

each = pytest.mark.parametrize("name", RECIPES)


def small(name: str, **changes: Any) -> Any:
    """Make a recipe of little work, on a native environment, that yields metrics :data:`ROUNDS` times."""
    recipe, config = RECIPES[name]
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    frames = max(fields["frames_per_batch"], SMALL["log_every"] if "log_every" in fields else 1)
    settings = {**SMALL, "env": NATIVE.get(fields["env"], fields["env"]), "total_frames": ROUNDS * frames, **changes}
    return recipe(config(**{key: value for key, value in settings.items() if key in fields}))


def run(agent: Any, rounds: int = 10**6) -> list[str]:
    """Return the metrics of the next rounds as text: NaN, before the first episode has ended, equals itself."""
    return [repr(metrics) for _, metrics in zip(range(rounds), agent.train(), strict=False)]


def weights(agent: Any) -> dict[str, Any]:
    return {key: value.clone() for key, value in agent.loss_fn.state_dict().items() if isinstance(value, torch.Tensor)}


@each
def test_the_same_seed_gives_the_same_run_bit_for_bit(name):
    first, again = run(agent := small(name)), run(twin := small(name))  # each seeds everything when it is made
    assert len(first) == ROUNDS
    assert first == again
    assert first[-1] != run(small(name, seed=4))[-1]
    for key, value in weights(agent).items():
        assert torch.equal(weights(twin)[key], value), key


@each
def test_a_continued_run_equals_the_whole_one_bit_for_bit(name, tmp_path):
    expected = run(whole := small(name))
    begun = run(first := small(name), ROUNDS // 2)
    first.save(tmp_path / "run.pt")
    run(second := small(name), 1)  # another place, which loading must leave
    torch.manual_seed(123)
    assert begun + run(second.load(tmp_path / "run.pt")) == expected
    for key, value in weights(whole).items():
        assert torch.equal(weights(second)[key], value), key


@each
def test_metrics_and_the_greedy_policy(name):
    agent = small(name)
    *_, last = agent.train()
    assert last["frames"] == agent.frames == agent.config.total_frames
    assert {"episode_reward"} < set(last)
    assert all(isinstance(value, int | float) for value in last.values())
    assert any(key.startswith("loss") for key in last)
    with torch.no_grad():
        data = agent.env.rollout(8, agent.greedy)
    agent.env.action_spec.check(data["action"], "action")


@each
def test_every_setting_is_explained(name):
    """A string stands below each field, for the reader of the recipe, and so in ``help`` and in Shift+Tab of a notebook."""
    _, config = RECIPES[name]
    meanings = meanings_of(config)
    for field in dataclasses.fields(config):
        assert len(meanings[field.name]) > 5
        assert f"{field.name}: {meanings[field.name]} (default {field.default!r})" in config.__doc__


def test_settings_of_a_cell_are_not_explained():
    @dataclasses.dataclass
    class Mine(PPOConfig):
        """My own."""

        extra: int = 3

    Mine.__module__ = "__main__"
    describe(Mine)
    assert Mine.__doc__.startswith("My own.")
    assert "extra:  (default 3)" in Mine.__doc__
    assert "epochs: Passes over each batch (default 20)" in Mine.__doc__


@each
def test_a_setting_has_an_effect_or_is_refused(name, monkeypatch):
    recipe, config = RECIPES[name]
    read: set[str] = set()

    class Noting(config):
        def __getattribute__(self, key: str) -> Any:
            read.add(key)
            return super().__getattribute__(key)

    monkeypatch.setattr("rlbook.recipes.base.check_settings", lambda *_: None)  # which reads all of them
    monkeypatch.setitem(RECIPES, name, (recipe, Noting))
    run(small(name))
    assert {field.name for field in dataclasses.fields(config)} - read <= set(recipe.unused)


@each
def test_a_recipe_is_short(name):
    recipe: Any = RECIPES[name][0]
    module: Any = inspect.getmodule(recipe)
    assert len(inspect.getsource(module).splitlines()) <= 150


@each
def test_actions_that_do_not_fit_are_explained_and_others_are_taken(name):
    kind = RECIPES[name][0].actions
    for env, other in (("CartPole", "continuous"), ("Pendulum", "discrete")):
        if kind != other:
            small(name, env=env)
            continue
        want = rf"The actions of '{env}' must be {other} for {RECIPES[name][0].__name__}; got .* or one of ppo, "
        with pytest.raises(SpecError, match=want) as raised:
            small(name, env=env)
        assert name not in str(raised.value).split("one of ")[1].rstrip(".").split(", ")


@pytest.mark.parametrize(
    ("name", "setting", "value", "match"),
    [
        ("ppo", "epochs", 0, "epochs must be a positive integer; got 0"),
        ("ppg", "aux_epochs", 0, "aux_epochs must be a positive integer; got 0"),
        ("dqn", "updates", 0, "updates must be a positive integer; got 0"),
        ("impala", "lag", -1, "lag must be a positive integer; got -1"),
        ("sac", "log_every", 0, "log_every must be a positive integer; got 0"),
        ("sac", "learning_starts", -1, "learning_starts must be an integer of at least 0; got -1"),
        ("sac", "lr", -1.0, "lr must be a number from 0 on; got -1.0"),
        ("sac", "gamma", float("nan"), "gamma must be a number; got nan"),
        ("ppg", "aux_lr", -1.0, "aux_lr must be a number from 0 on; got -1.0"),
        ("sac", "lr_value", float("inf"), "lr_value must be a number from 0 on; got inf"),
        ("dqn", "anneal", 2.0, r"anneal must be in \[0, 1\]; got 2.0. Pass for example anneal=0.5"),
        ("dqn", "anneal", float("inf"), r"anneal must be in \[0, 1\]; got inf"),
        ("crossq", "beta1", 2.0, r"beta1 must be in \[0, 0.999\]; got 2.0"),
        ("sac_discrete", "entropy_share", -1.0, r"entropy_share must be in \[0, 1\]; got -1.0"),
        ("recurrent_ppo", "num_cells", (-4,), r"num_cells\[0\] must be a positive integer; got -4"),
        ("crossq", "critic_cells", (16, 16.0), r"critic_cells\[1\] must be a positive integer; got 16.0"),
        ("ppo", "num_cells", 16, r"num_cells must be sizes of layers; got 16. Pass for example num_cells=\(64, 64\)"),
        ("rainbow", "eps_end", 0.1, "eps_end must be left at 0.04; got 0.1. It has no effect in RainbowConfig"),
        ("ppo_kl", "clip_eps", 0.1, "clip_eps must be left at 0.2; got 0.1. It has no effect in PPOKLConfig"),
        ("crossq", "tau", 1.0, "tau must be left at 0.005; got 1.0"),
        ("munchausen", "double", False, "double must be left at True; got False"),
        ("ppo", "device", "gpu", "device must be a device of torch; got 'gpu'"),
        ("r2d2", "cell", "rnn", "cell must be one of gru, lstm; got 'rnn'"),
    ],
)
def test_settings_that_no_run_can_have_are_explained(name, setting, value, match):
    recipe, config = RECIPES[name]
    with pytest.raises(ConfigError, match=match):
        recipe(config(**{setting: value}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_explained():
    with pytest.raises(ConfigError, match="device must be a device of this machine; got 'cuda'"):
        PPO(PPOConfig(device="cuda"))


def test_minibatches_smaller_than_a_sequence_are_explained():
    agent = RECIPES["recurrent_ppo"][0](RECIPES["recurrent_ppo"][1](env="CartPole", minibatch_size=16))
    with pytest.raises(ConfigError, match="minibatch_size must be at least sequence_len; got 16"):
        next(agent.train())


@pytest.mark.parametrize(("total", "told"), [(100, [100]), (250, [100, 200, 250])])
@pytest.mark.parametrize("name", ["sac", "ddpg"])
def test_the_last_round_is_told(name, total, told):
    recipe, config = RECIPES[name]
    agent = recipe(config(total_frames=total, learning_starts=90, num_cells=(8,), log_every=100))
    assert [metrics["frames"] for metrics in agent.train()] == told
