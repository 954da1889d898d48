"""Checkpoints: a run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from rlbook import CartPole, Collector, Compose, Pendulum, ReplayBuffer, RewardSum, TransformedEnv, VecNorm
from rlbook.envs.make import make_env
from rlbook.errors import ConfigError
from rlbook.functional import normalize
from rlbook.losses import compile_update
from rlbook.losses.base import Loss
from rlbook.modules import make_actor
from rlbook.recipes import PPO, RECIPES, PPOConfig
from rlbook.recipes.base import Recipe
from rlbook.trainers import EpisodeScore, load_checkpoint, save_checkpoint
from rlbook.trainers.checkpoint import parts_of
from rlbook.transforms import RewardScale

SHORT = PPOConfig(env="CartPole", total_frames=1536, epochs=2, seed=5)


def run(agent: Recipe, rounds: int | None = None) -> list[dict[str, float]]:
    """Return the metrics of the next rounds; of all there are by default."""
    return [metrics for _, metrics in zip(range(rounds or 10**6), agent.train(), strict=False)]


def weights(agent: Recipe) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in agent.loss_fn.state_dict().items()}


@dataclass
class BanditConfig:
    """Settings of :class:`Bandit`."""

    env: str = "CartPole"
    seed: int = 0
    total_frames: int = 400
    stop_at: float | None = None


class BanditLoss(Loss):
    """Raise the probability of actions with a high value: a few lines that use all that an off-policy recipe has."""

    in_keys = ("observation", "action", ("next", "observation"))

    def __init__(self, actor: nn.Module):
        super().__init__()
        self.actor = actor

    def terms(self, batch, noise):
        advantage = normalize(batch["next", "observation"][..., 2])
        return {"loss_actor": -(self.actor.dist(batch).log_prob(batch["action"]) * advantage).mean()}, {}


class Bandit(Recipe):
    """Off-policy in form: a few frames, into the buffer, updates on samples; optimizers in a list; a plain counter."""

    def __init__(self, config: BanditConfig):
        super().__init__(config)
        self.env = make_env(config.env, 2, seed=config.seed)
        self.actor = make_actor(self.env, num_cells=(8,))
        self.loss_fn = BanditLoss(self.actor)
        self.optimizers = [torch.optim.SGD(self.loss_fn.parameters(), lr=0.1, momentum=0.9)]
        self.update = compile_update(self.loss_fn, self.optimizers, compile=False)
        self.buffer = ReplayBuffer(100, batch_size=16)
        self.collector = Collector(self.env, self.actor, frames_per_batch=20, total_frames=config.total_frames)
        self.updates = 0

    def train(self) -> Iterator[dict[str, float]]:
        for data in self.collector:
            self.buffer.extend(data)
            metrics = self.update(self.buffer.sample())
            self.updates += 1
            noise = random.random() + np.random.rand()
            score = self.episodes(data)
            yield {"frames": self.frames, "episode_reward": score, "noise": noise, "updates": self.updates, **metrics.to_dict()}


def make(name: str, env: str) -> Recipe:
    return PPO(replace(SHORT, env=env)) if name == "ppo" else Bandit(BanditConfig(env=env))


@pytest.mark.parametrize("env", ["CartPole", "Pendulum"])
@pytest.mark.parametrize("name", ["ppo", "bandit"])
def test_a_continued_run_equals_the_whole_one_bit_for_bit(name, env, tmp_path):
    whole = make(name, env)
    expected = run(whole)
    first = make(name, env)
    begun = run(first, 3)
    first.save(tmp_path / "run.pt")
    second = make(name, env)
    run(second, 1)  # another place, which loading must leave
    torch.manual_seed(123)
    assert second.load(tmp_path / "run.pt") is second
    assert repr(begun + run(second)) == repr(expected)  # NaN, before the first episode has ended, equals itself
    assert weights(second).keys() == weights(whole).keys()
    for key, value in weights(whole).items():
        assert torch.equal(weights(second)[key], value), key
    assert list(second.episodes.returns) == list(whole.episodes.returns)


def test_saving_changes_nothing(tmp_path):
    expected, rounds = run(PPO(SHORT)), []
    saved = PPO(SHORT)
    for metrics in saved.train():
        rounds.append(metrics)
        saved.save(tmp_path / "run.pt")
    assert repr(rounds) == repr(expected)


def test_a_gymnasium_environment_begins_new_episodes(tmp_path):
    agent = PPO(replace(SHORT, env="CartPole-v1"))
    before = run(agent, 3)
    agent.save(tmp_path / "run.pt")
    again = PPO(replace(SHORT, env="CartPole-v1")).load(tmp_path / "run.pt")
    assert again.frames == before[-1]["frames"] == 768
    assert list(again.episodes.returns) == list(agent.episodes.returns)
    data = again.collector.collect()
    start = PPO(replace(SHORT, env="CartPole-v1")).collector.collect()
    assert not torch.equal(data["observation"][:, 0], start["observation"][:, 0])  # other episodes than those of the beginning
    ended = int(data["next", "done"].sum())
    first_returns = [int(row.nonzero()[0]) + 1 for row in data["next", "done"] if row.any()]
    again.episodes.returns.clear()
    again.episodes(data)
    assert len(again.episodes.returns) == ended
    assert min(first_returns) in again.episodes.returns  # counted from the first new step: nothing of the dropped episodes
    assert sum(again.episodes.returns) <= data.numel()


def test_what_transforms_know_goes_on(tmp_path):
    def collector() -> Collector:
        env = TransformedEnv(Pendulum(4, seed=1), Compose(RewardSum(), VecNorm()))
        return Collector(env, frames_per_batch=40)

    first, second = collector(), collector()
    first.collect()
    save_checkpoint(tmp_path / "run.pt", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "run.pt"))
    ended = 0
    for _ in range(30):  # past the end of an episode
        a, b = first.collect(), second.collect()
        assert (a == b).all()
        ended += int(a["next", "done"].sum())
    assert ended == 4
    assert first.frames == second.frames == 31 * 40


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_an_evaluation_after_loading_goes_by_the_statistics_of_now(name, tmp_path):
    recipe, config = RECIPES[name]
    settings = config(env="CartPole", total_frames=1280, normalize=True, seed=3)
    whole = recipe(settings)
    run(whole)
    first = recipe(settings)
    run(first, 1)
    first.save(tmp_path / "run.pt")
    second = recipe(settings).load(tmp_path / "run.pt")
    run(second)
    before = second.env.transform.state_dict()
    assert torch.equal(second.evaluate(20), whole.evaluate(20))
    assert all(torch.equal(value, before[name]) for name, value in second.env.transform.state_dict().items())


def test_only_quantities_are_normalised():
    agent = PPO(replace(SHORT, env="GridWorld", normalize=True))
    assert agent.env.observation_spec["observation"] == make_env("GridWorld", 2).observation_spec["observation"]
    run(agent, 1)


def test_the_score_is_of_the_environments_own_rewards():
    env = TransformedEnv(CartPole(4, seed=1), Compose(RewardSum(), RewardScale(0.1)))
    plain, scaled = EpisodeScore(), EpisodeScore()
    for data in Collector(env, frames_per_batch=400, total_frames=1200, seed=2):
        assert data["next", "reward"].max() < 0.2
        scaled(data)
    for data in Collector(CartPole(4), frames_per_batch=400, total_frames=1200, seed=2):
        plain(data)
    assert list(plain.returns) == list(scaled.returns)
    assert 9 < plain.mean == sum(plain.returns) / len(plain.returns)


def test_schedules_go_on(tmp_path):
    config = replace(SHORT, lr=0.1, total_frames=1024)
    agent = PPO(config)
    run(agent, 2)
    agent.save(tmp_path / "run.pt")
    again = PPO(config).load(tmp_path / "run.pt")
    assert again.loss_fn.clip_eps.item() == pytest.approx(0.15)
    assert [again.optimizer.param_groups[0]["lr"] for _ in again.train()] == pytest.approx([0.05, 0.025])
    assert run(PPO(config).load(tmp_path / "run.pt"), 5)[-1]["frames"] == 1024
    longer = PPO(replace(config, total_frames=2048)).load(tmp_path / "run.pt")
    assert run(longer)[-1]["frames"] == 2048


def test_a_module_inside_another_is_saved_once():
    assert set(parts_of(PPO(SHORT))) == {"episodes", "estimator", "loss_fn", "optimizer", "update", "collector"}
    assert {"buffer", "optimizers.0", "loss_fn"} <= set(parts_of(Bandit(BanditConfig())))


def test_what_is_interrupted_keeps_the_file_before(tmp_path, monkeypatch):
    agent, path = PPO(SHORT), tmp_path / "deep" / "run.pt"
    agent.save(path)
    before = path.read_bytes()

    def killed(state, handle):
        handle.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        agent.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_view_is_saved_without_what_surrounds_it(tmp_path):
    save_checkpoint(tmp_path / "x.pt", {"rows": torch.zeros(1_000_000)[:10], "key": {("next", "reward"): torch.ones(2)}})
    assert (tmp_path / "x.pt").stat().st_size < 10_000
    back = load_checkpoint(tmp_path / "x.pt")
    assert torch.equal(back["key"]["next", "reward"], torch.ones(2))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"lr": 0.5}, r"The settings of a continued run must be \{'lr': 0.001\}; got \{'lr': 0.5\}. Continue with the settings"),
        ({"num_cells": (8,)}, r"must be \{'num_cells': \(64, 64\)\}; got \{'num_cells': \(8,\)\}"),
    ],
)
def test_other_settings_are_refused(change, match, tmp_path):
    PPO(SHORT).save(tmp_path / "run.pt")
    with pytest.raises(ConfigError, match=match):
        PPO(replace(SHORT, **change)).load(tmp_path / "run.pt")


def test_a_run_cannot_go_on_to_an_end_behind_it(tmp_path):
    config = replace(SHORT, total_frames=1000)  # ends with the second batch of 512
    agent = PPO(config)
    frames = [metrics["frames"] for metrics in agent.train()]
    agent.save(tmp_path / "run.pt")
    assert list(PPO(config).load(tmp_path / "run.pt").train()) == []
    with pytest.raises(ConfigError, match=rf"longer than the {frames[-1]} frames that it has; got total_frames=500\."):
        PPO(replace(config, total_frames=500)).load(tmp_path / "run.pt")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    whole, half = tmp_path / "whole.pt", tmp_path / "half.pt"
    PPO(SHORT).save(whole)
    half.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(ConfigError, match="must be a checkpoint"):
        PPO(SHORT).load(half)
    for other in ({"agent": {}}, [1, 2]):
        with pytest.raises(ConfigError, match="A checkpoint to load must be one of PPO"):
            PPO(SHORT).load_state_dict(other)
    with pytest.raises(ConfigError, match=r"path must be a checkpoint file; got .*none.pt. Write one with agent.save"):
        PPO(SHORT).load(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ConfigError, match=r"text.pt must be a checkpoint; got "):
        PPO(SHORT).load(tmp_path / "text.pt")
    Bandit(BanditConfig()).save(tmp_path / "other.pt")
    with pytest.raises(ConfigError, match=r"A checkpoint to load must be one of PPO; got one of Bandit\. Make a Bandit and load"):
        PPO(SHORT).load(tmp_path / "other.pt")


NATIVE = {"Pendulum-v1": "Pendulum", "CartPole-v1": "CartPole", "HalfCheetah-v5": "Pendulum"}
SMALL = {"total_frames": 300, "learning_starts": 200, "log_every": 50, "num_cells": (16,), "batch_size": 16, "updates": 1}
"""Settings that make any recipe short, where it has them."""


def short(name: str) -> Recipe:
    recipe, config = RECIPES[name]
    default = config()
    fields = {key: value for key, value in SMALL.items() if hasattr(default, key)}
    if hasattr(default, "frames_per_batch"):
        fields["total_frames"] = max(300, 4 * default.frames_per_batch)
    return recipe(replace(default, env=NATIVE.get(default.env, default.env), **fields))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_on_bit_for_bit(name, tmp_path):
    whole = short(name)
    assert isinstance(whole, Recipe)
    expected = run(whole)
    half = len(expected) // 2
    assert half >= 1
    first = short(name)
    begun = run(first, half)
    first.save(tmp_path / "run.pt")
    second = short(name).load(tmp_path / "run.pt")
    assert repr(begun + run(second)) == repr(expected)
    for key, value in weights(whole).items():
        assert torch.equal(weights(second)[key], value), key
    assert whole.evaluate(2).shape == (2,)


def test_only_what_can_be_read_is_saved(tmp_path):
    save_checkpoint(tmp_path / "run.pt", {"best": np.float64(1.5), "rows": np.arange(3), "list": [np.int64(2)]})
    back = load_checkpoint(tmp_path / "run.pt")
    assert (back["best"], back["rows"].tolist(), back["list"]) == (1.5, [0, 1, 2], [2])
    with pytest.raises(ConfigError, match=r"state\['a'\]\['where'\] must be tensors, numbers or text; got PosixPath"):
        save_checkpoint(tmp_path / "run.pt", {"a": {"where": tmp_path}})
    assert load_checkpoint(tmp_path / "run.pt")["best"] == 1.5
