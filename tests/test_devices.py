"""The library on a GPU, as far as any machine can show it: see :mod:`pretend_gpu`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses.cases import CASES
from pretend_gpu import MixedDevicesError, gpu
from recipes.test_recipes import RECIPES, run, small

from rlbook import replay
from rlbook.envs import CartPole, GymEnv, NativeEnv, Pendulum, native
from rlbook.losses import compile_update
from rlbook.modules import GRU, LSTM, AdditiveGaussian, OrnsteinUhlenbeck, RandomWarmup, make_actor, make_qvalue, make_value
from rlbook.transforms import (
    Compose,
    ObservationNorm,
    RescaleAction,
    RewardClip,
    RewardNorm,
    RewardSum,
    StepCounter,
    TransformedEnv,
    VecNorm,
)

__all__ = ["gpu"]

NATIVE = [name for name in native.__all__ if issubclass(getattr(native, name), NativeEnv) and name != "NativeEnv"]


def on_gpu(data) -> bool:
    return all(value.is_cuda for value in data.values(True, True))


def test_the_pretended_gpu_refuses_what_a_real_one_does(gpu):
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert there.device == torch.device("cuda", 0)
    assert (there + there.sum().cpu()).is_cuda
    assert there[here.long()].is_cuda
    for mistake in (
        lambda: there + here,
        lambda: torch.stack([there, here]),
        lambda: here[there.long()],
        lambda: here.add_(there),
        lambda: torch.nn.Linear(3, 1)(there),
    ):
        with pytest.raises(MixedDevicesError):
            mistake()
    with pytest.raises(TypeError, match="to host memory first"):
        there.numpy()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name, gpu):
    agent = small(name, device="cuda", learning_starts=16, log_every=16, updates=1)
    assert len(run(agent, 2)) == 2
    assert all(value.is_cuda for value in agent.loss_fn.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_go_on(name, gpu, tmp_path):
    """A checkpoint is read to the CPU; what it holds meets the GPU's data again."""
    settings: dict[str, Any] = {"device": "cuda", "learning_starts": 16, "log_every": 16, "updates": 1}
    agent = small(name, **settings)
    run(agent, 1)
    agent.save(tmp_path / "run.pt")
    expected = run(agent, 2)  # PPG: the second half of its phase, and the auxiliary one
    again = small(name, **settings)
    assert run(again.load(tmp_path / "run.pt"), 2) == expected
    assert all(value.is_cuda for value in again.loss_fn.parameters())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_update_does_not_wait(case, gpu):
    """While the GPU computes, the CPU prepares the next step."""
    loss_fn, batch = case.make().to("cuda"), case.batch().to("cuda")
    update = compile_update(loss_fn, torch.optim.Adam(loss_fn.parameters()), compile=False)
    update(batch)  # the first batch is looked at
    gpu.waits.clear()
    metrics = [update(batch) for _ in range(3)]
    assert not gpu.waits
    assert all(value.is_cuda and value.isfinite().all() for value in metrics[-1].values())


@pytest.mark.parametrize("name", NATIVE)
def test_native_environments(name, gpu):
    here, there = (getattr(native, name)(num_envs=4, seed=0, device=device).rollout(40) for device in ("cpu", "cuda"))
    assert on_gpu(there)
    for key, value in here.items(True, True):
        assert torch.equal(there[key].cpu(), value), key


def test_transforms_and_exploration(gpu):
    norm = ObservationNorm().fit(Pendulum(num_envs=4, device="cuda"), 20)
    parts = [StepCounter(20), RewardSum(), norm, VecNorm(), RewardNorm(), RewardClip(-1.0, 1.0), RescaleAction()]
    env = TransformedEnv(Pendulum(num_envs=4, device="cuda", seed=0), Compose(*parts))
    actor = make_actor(env)
    for policy in (actor, AdditiveGaussian(actor, sigma=0.1), OrnsteinUhlenbeck(actor, sigma=0.1), RandomWarmup(actor, 30)):
        assert on_gpu(env.rollout(30, policy))
    env.transform.load_state_dict({name: value.cpu() for name, value in env.transform.state_dict().items()})
    assert on_gpu(env.rollout(3, actor))


@pytest.mark.parametrize("recurrent", [None, GRU, LSTM])
def test_networks_of_a_gymnasium_environment(recurrent, gpu):
    env = GymEnv("CartPole-v1", num_envs=3, device="cuda", seed=0)
    actor = make_actor(env, recurrent=recurrent)
    data = env.rollout(20, actor)
    assert on_gpu(data)
    for head in (make_value(env), make_qvalue(env)):
        assert on_gpu(head(data.clone()))


SAMPLERS = {
    "uniform": replay.UniformSampler,
    "prioritized": replay.PrioritizedSampler,
    "rank": replay.RankSampler,
    "slices": lambda: replay.SliceSampler(5),
    "episodes": replay.EpisodeSampler,
    "each once": replay.WithoutReplacementSampler,
}


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_replay(name, place, gpu):
    """Rows are kept on either device; they come from either, and leave for the GPU."""
    buffer = replay.ReplayBuffer(replay.TensorStorage(500, device=place), sampler=SAMPLERS[name](), batch_size=20, device="cuda")
    for source in ("cpu", "cuda"):
        buffer.extend(CartPole(num_envs=4, device=source, seed=0).rollout(40, break_when_any_done=False))
        batch = buffer.sample()
        assert on_gpu(batch)
        if name in ("prioritized", "rank"):
            buffer.update_priority(batch["index"], torch.rand(batch.shape, device="cuda"))
    buffer.load_state_dict(buffer.state_dict())
    assert on_gpu(buffer.sample())
