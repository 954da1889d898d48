"""Exploration: how often, how far, within which bounds, on every path, and from a checkpoint on."""

from __future__ import annotations

import copy

import pytest
import torch
from compiling import quick_compile
from tensordict import TensorDict
from torch.testing import assert_close

from rlbook import MLP, Actor, CartPole, Collector, Pendulum, QValueActor, ValueHead
from rlbook.errors import ConfigError, SpecError
from rlbook.modules import GRU, Carry, NoisyExploration, NoisyLinear
from rlbook.modules.exploration import AdditiveGaussian, EpsilonGreedy, OrnsteinUhlenbeck, RandomWarmup, Schedule
from rlbook.specs import Binary, Bounded, Composite, OneHot, Unbounded
from rlbook.specs import Categorical as Choice
from rlbook.specs import MultiCategorical as Multi

__all__ = ["quick_compile"]
SPECS = {"choice": Choice(5), "one_hot": OneHot(5), "multi": Multi([2, 3]), "choices": Choice(3, (2, 2)), "binary": Binary(3)}
discrete = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


class Still:
    """A policy that always takes the same action, and says how likely it thinks that is."""

    in_keys, out_keys = ("position",), ("action", "action_log_prob", "hidden")

    def __init__(self, spec, action):
        self.spec, self.action = spec, action

    def draw_noise(self, shape, device=None):
        return None

    def act(self, leaves, noise=None):
        batch = leaves["position"].shape[:-1]
        action = self.action.expand(*batch, *self.spec.shape)
        return {"action": action, "action_log_prob": torch.zeros(batch), "hidden": torch.ones(batch)}


class Noisy(Still):
    """A policy whose action is its noise, of the action's shape."""

    def draw_noise(self, shape, device=None):
        return torch.rand(*shape, *self.spec.shape, device=device)

    def act(self, leaves, noise=None):
        return {"action": noise}


def positions(*batch: int) -> dict:
    return {"position": torch.zeros(*batch, 2)}


# ---- schedules -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("schedule", "expected"),  # at 0, 10, 20, 30, 40
    [
        (Schedule(1.0, 0.2, 20), [1.0, 0.6, 0.2, 0.2, 0.2]),
        (Schedule(1.0, 0.2, 20, hold=10), [1.0, 1.0, 0.6, 0.2, 0.2]),
        (Schedule(1.0, 0.01, 20, "exponential"), [1.0, 0.1, 0.01, 0.01, 0.01]),
        (Schedule(1.0, 0.0, 40, "cosine"), [1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0.0]),
        (Schedule(0.3, 0.1, 20, "constant"), [0.3] * 5),
        (Schedule(0.3, frames=20), [0.3] * 5),
        (Schedule(1.0, 0.0, 20, "step"), [1.0, 1.0, 0.0, 0.0, 0.0]),
        (Schedule(1.0, 0.0, kind="step", hold=20), [1.0, 1.0, 0.0, 0.0, 0.0]),
        (Schedule(1.0, 0.5), [0.5] * 5),
    ],
)
def test_schedules_of_numbers_and_of_tensors(schedule, expected):
    frames = torch.arange(0, 50, 10)
    assert [schedule(float(f)) for f in frames] == pytest.approx(expected)
    assert_close(schedule(frames), torch.tensor(expected))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kind": "square"}, "kind must be one of linear, .*got .square."),
        ({"frames": -1}, "frames and hold must be at least 0; got -1 and 0"),
        ({"hold": -3}, "frames and hold must be at least 0; got 0 and -3"),
        ({"kind": "exponential", "end": 0.0}, "positive at both ends; got 1.0 to 0.0"),
    ],
)
def test_schedules_explain_what_is_wrong(arguments, match):
    with pytest.raises(ConfigError, match=match):
        Schedule(**{"start": 1.0, **arguments})


# ---- epsilon-greedy --------------------------------------------------------------------------------------------------------
@discrete
def test_epsilon_is_the_share_of_uniform_actions(spec):
    still = Still(spec, spec.enumerate()[-1])
    explorer = EpsilonGreedy(still, 0.3, 0.3)
    noise = explorer.draw_noise((1, 60_000))[0]
    action = explorer.act(positions(60_000), noise)["action"]
    spec.check(action, batch=(60_000,))
    values = spec.enumerate()
    same = (action.unsqueeze(0) == values.unsqueeze(1)).flatten(2).all(-1) if spec.shape else action == values.unsqueeze(1)
    share = same.float().mean(-1)
    expected = torch.full((len(values),), 0.3 / len(values))
    expected[-1] += 0.7
    assert_close(share, expected, atol=0.01, rtol=0)  # 4 standard errors at most


@pytest.mark.parametrize("spec", [Choice(4), OneHot(4)])
def test_a_mask_is_obeyed(spec):
    explorer = EpsilonGreedy(Still(spec, spec.enumerate()[0]), 0.5, 0.5)
    mask = torch.tensor([True, False, True, True]).expand(20_000, 4)
    action = explorer.act({**positions(20_000), "action_mask": mask}, explorer.draw_noise((1, 20_000))[0])["action"]
    index = action if action.ndim == 1 else action.int().argmax(-1)
    assert_close(index.bincount(minlength=4) / 20_000, torch.tensor([4 / 6, 0.0, 1 / 6, 1 / 6]), atol=0.015, rtol=0)


def test_the_masks_of_a_dictionary_of_actions_are_obeyed():
    spec = Composite(gear=Choice(5), arm=Composite(steer=Bounded(-1.0, 1.0, (2,)), grip=Choice(2)))
    read = ["observation", ("action_mask", "gear"), ("action_mask", "arm", "grip")]
    explorer = RandomWarmup(Actor(MLP(11, 1), spec, read), frames=5000)
    gear, grip = torch.tensor([True, False, True, False, False]), torch.tensor([False, True])
    leaves = {"observation": torch.zeros(5000, 1), read[1]: gear.expand(5000, 5), read[2]: grip.expand(5000, 2)}
    action = explorer.act(leaves, explorer.draw_noise((1, 5000))[0])["action"]
    assert set(action["gear"].tolist()) == {0, 2}
    assert bool((action["arm", "grip"] == 1).all())
    assert (action["gear"] == 2).float().mean().sub(0.5).abs() < 0.03
    assert action["arm", "steer"].std().sub(3**-0.5).abs() < 0.03  # uniform


def test_a_mask_of_several_choices_is_obeyed():
    spec = Multi([2, 3])
    explorer = EpsilonGreedy(Still(spec, torch.tensor([0, 2])), 1.0, 1.0)
    mask = torch.tensor([True, False, False, True, True]).expand(5000, 5)
    action = explorer.act({**positions(5000), "action_mask": mask}, explorer.draw_noise((1, 5000))[0])["action"]
    assert {tuple(row) for row in action.tolist()} == {(0, 1), (0, 2)}


@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_the_ends_of_epsilon_are_exact(eps, monkeypatch):
    extreme = 0.0 if eps == 0 else 1 - 2**-24
    monkeypatch.setattr(torch, "rand", lambda shape, device=None: torch.full(shape, extreme))
    explorer = EpsilonGreedy(Still(Choice(3), torch.tensor(1)), eps, eps)
    wanted = 1 if eps == 0 else 2
    for _ in range(2):
        assert (explorer.act(positions(3), explorer.draw_noise((1, 3))[0])["action"] == wanted).all()
        explorer.schedule = Schedule(eps, 1 - eps, 100, "step")  # the same numbers, though not for all steps
        noise = explorer.draw_noise((102, 3))
        assert (explorer.act(positions(3), noise[0])["action"] == wanted).all()
        explorer.frames = 0


def test_epsilon_falls_from_row_to_row_and_over_all_environments():
    explorer = EpsilonGreedy(Still(Choice(2), torch.tensor(0)), 1.0, 0.0, annealing_frames=400_000)
    noise = torch.cat([explorer.draw_noise((2, 100_000)), explorer.draw_noise((3, 100_000))])
    action = explorer.act(positions(5, 100_000), noise)["action"]
    assert_close(2 * action.float().mean(-1), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]), atol=0.02, rtol=0)
    assert explorer.frames == 500_000
    assert explorer.amount == 0.0


def test_what_the_policy_returns_comes_along_but_for_the_log_probability():
    explorer = EpsilonGreedy(Still(Choice(2), torch.tensor(0)))
    assert explorer.in_keys == ("position",)
    assert explorer.out_keys == ("action", "hidden")
    assert set(explorer.act(positions(3), explorer.draw_noise((1, 3))[0])) == {"action", "hidden"}


def test_the_policy_gets_its_own_noise_back():
    spec = Bounded(0.0, 1.0, (2, 3))
    warm = RandomWarmup(Noisy(spec, None), frames=0)
    torch.manual_seed(1)
    noise = warm.draw_noise((4, 5))
    torch.manual_seed(1)
    torch.rand(4, 5, spec.num_uniform)
    expected = torch.rand(4, 5, 2, 3)
    assert noise.shape == (4, 5, 12)
    assert torch.equal(warm.act(positions(4, 5), noise)["action"], expected)


# ---- warm-up ---------------------------------------------------------------------------------------------------------------
def test_a_warm_up_ends_after_its_frames_and_is_uniform_until_then():
    spec = Bounded(-2.0, 6.0, (2,))
    warm = RandomWarmup(Still(spec, torch.full((2,), 5.5)), frames=20_000)
    action = warm.act(positions(5, 10_000), warm.draw_noise((5, 10_000)))["action"]
    assert (action[2:] == 5.5).all()
    assert_close(action[:2].mean((0, 1)), torch.full((2,), 2.0), atol=0.08, rtol=0)
    assert_close(action[:2].var((0, 1)), torch.full((2,), 64 / 12), atol=0.15, rtol=0)
    assert (warm.act(positions(3), warm.draw_noise((1, 3))[0])["action"] == 5.5).all()


# ---- additive noise --------------------------------------------------------------------------------------------------------
def test_gaussian_noise_has_its_moments_in_units_of_half_the_range():
    spec = Bounded(torch.tensor([-10.0, 0.0]), torch.tensor([10.0, 2.0]))
    explorer = AdditiveGaussian(Still(spec, torch.tensor([1.0, 1.0])), sigma=0.1)
    action = explorer.act(positions(40_000), explorer.draw_noise((1, 40_000))[0])["action"]
    assert_close(action.mean(0), torch.tensor([1.0, 1.0]), atol=0.02, rtol=0)
    assert_close(action.std(0), torch.tensor([1.0, 0.1]), atol=0, rtol=0.02)


def test_gaussian_noise_is_clipped_into_the_bounds_and_free_without():
    bounded, free = Bounded(-1.0, 1.0, (2,)), Unbounded(2)
    for spec, inside in ((bounded, True), (free, False)):
        explorer = AdditiveGaussian(Still(spec, torch.ones(2)), sigma=2.0)
        action = explorer.act(positions(1000), explorer.draw_noise((1, 1000))[0])["action"]
        assert bounded.contains(action) is inside
    assert_close(action.std(), torch.tensor(2.0), atol=0.15, rtol=0)


def test_gaussian_noise_falls():
    explorer = AdditiveGaussian(Still(Unbounded(1), torch.zeros(1)), sigma=1.0, sigma_end=0.5, annealing_frames=40_000)
    assert_close(explorer.draw_noise((4, 20_000)).std((1, 2)), torch.tensor([1.0, 0.75, 0.5, 0.5]), atol=0.02, rtol=0)


@pytest.mark.parametrize("outputs", [3, 6])
def test_additive_noise_takes_the_mode_of_any_actor(outputs):
    actor = Actor(MLP(outputs, 2), Bounded(-1.0, 1.0, (3,)), in_keys=["position"])
    leaves = {"position": torch.randn(7, 2)}
    explorer = AdditiveGaussian(actor, sigma=0.0)
    noise = explorer.draw_noise((1, 7))[0]
    assert noise.shape == (7, 3)
    assert torch.equal(explorer.act(leaves, noise)["action"], actor.greedy.act(leaves)["action"])


# ---- Ornstein-Uhlenbeck ----------------------------------------------------------------------------------------------------
def test_ornstein_uhlenbeck_is_its_recursion_and_goes_on():
    explorer = OrnsteinUhlenbeck(Still(Unbounded(2), torch.zeros(2)), theta=0.3, sigma=0.5, dt=0.25)
    torch.manual_seed(3)
    noise = torch.cat([explorer.draw_noise((5, 3)), explorer.draw_noise((1, 3)), explorer.draw_noise((4, 3))])
    torch.manual_seed(3)
    kicks = torch.cat([torch.randn(n, 3, 2) for n in (5, 1, 4)])
    x = torch.zeros(3, 2)
    for row, kick in zip(noise, kicks, strict=True):
        x = x - 0.3 * x * 0.25 + 0.5 * 0.25**0.5 * kick
        assert_close(row, x)
    assert_close(explorer.state, x)


def test_ornstein_uhlenbeck_becomes_stationary_and_remembers():
    explorer = OrnsteinUhlenbeck(Still(Unbounded(1), torch.zeros(1)), theta=0.1, sigma=0.2)
    x = explorer.draw_noise((200, 4000))[100:].squeeze(-1)
    keep = 1 - 0.1
    assert_close(x.std(), torch.tensor(0.2 / (1 - keep**2) ** 0.5), atol=0, rtol=0.03)
    assert_close((x[1:] * x[:-1]).mean() / (x * x).mean(), torch.tensor(keep), atol=0.01, rtol=0)


def test_ornstein_uhlenbeck_scales_clips_and_starts_anew_for_other_environments():
    spec = Bounded(-4.0, 4.0, (1,))
    explorer = OrnsteinUhlenbeck(Still(spec, torch.zeros(1)), sigma=1.0)
    torch.manual_seed(1)
    scaled = explorer.draw_noise((3, 50))
    free = OrnsteinUhlenbeck(Still(Unbounded(1), torch.zeros(1)), sigma=1.0)
    torch.manual_seed(1)
    assert_close(scaled, 4 * free.draw_noise((3, 50)))
    assert_close(explorer.state, free.state)
    spec.check(explorer.act(positions(3, 50), scaled)["action"])
    assert explorer.draw_noise((2, 6)).shape == (2, 6, 1)
    assert explorer.state.shape == (6, 1)


# ---- on every path ---------------------------------------------------------------------------------------------------------
def explorers() -> dict:
    cart, pendulum = CartPole(num_envs=3, seed=0), Pendulum(num_envs=3, seed=0)
    choose, push = Actor(MLP(2, 4), cart.action_spec), Actor(MLP(1, 3), pendulum.action_spec)
    return {
        "epsilon_sampling": (cart, EpsilonGreedy(choose, 1.0, 0.1, 60)),
        "epsilon_greedy": (cart, EpsilonGreedy(choose.greedy, 1.0, 0.1, 60, kind="exponential")),
        "gaussian": (pendulum, AdditiveGaussian(push, sigma=0.1)),
        "ou": (pendulum, OrnsteinUhlenbeck(push)),
        "warm_gaussian": (pendulum, RandomWarmup(AdditiveGaussian(push, sigma=0.1), 15)),
        "warm_actor": (pendulum, RandomWarmup(Actor(MLP(2, 3), pendulum.action_spec), 15)),
    }


names = pytest.mark.parametrize("name", explorers())


@names
def test_rolls_out(name):
    env, explorer = explorers()[name]
    data = env.rollout(12, explorer)
    env.action_spec.check(data["action"], batch=data.shape)
    assert explorer.frames == 36
    assert "action_log_prob" not in data.keys()
    assert env.rollout(3, explorer.greedy)["action"].shape[:2] == (3, 3)
    assert explorer.frames == 36


@names
@pytest.mark.usefixtures("quick_compile")
def test_compiled_collection_is_that_of_the_eager_one(name):
    collected = []
    for compile in (False, True):
        torch.manual_seed(0)
        env, explorer = explorers()[name]
        collector = Collector(env, explorer, frames_per_batch=24, total_frames=72, compile=compile)
        collected.append([data["action"].clone() for data in collector])
    for eager, compiled in zip(*collected, strict=True):
        assert_close(compiled, eager, atol=1e-4, rtol=1e-4)


@names
def test_a_checkpoint_goes_on_with_schedule_and_process(name):
    torch.manual_seed(0)
    _, explorer = explorers()[name]
    explorer.draw_noise((7, 3))
    saved = copy.deepcopy(explorer.state_dict())
    torch.manual_seed(5)
    expected = explorer.draw_noise((4, 3))
    _, again = explorers()[name]
    again.load_state_dict(saved)
    assert again.frames == 21
    torch.manual_seed(5)
    assert torch.equal(again.draw_noise((4, 3)), expected)


@names
def test_writes_an_action_into_a_tensordict(name):
    env, explorer = explorers()[name]
    td = TensorDict({"observation": torch.randn(5, *env.observation_spec["observation"].shape)}, (5,))
    explorer(td)
    env.action_spec.check(td["action"], batch=(5,))
    assert explorer.frames == 5


def test_bounds_follow_the_module_to_a_device():
    spec = Bounded(-1.0, 1.0, (2,))
    explorer = AdditiveGaussian(Actor(MLP(2, 4), spec), sigma=0.1).to("meta")
    assert {tensor.device.type for tensor in (explorer.low, explorer.high, explorer.scale)} == {"meta"}
    assert spec.low.device.type == "cpu"


# ---- errors ----------------------------------------------------------------------------------------------------------------
def test_errors():
    choice, box = Still(Choice(2), torch.tensor(0)), Still(Unbounded(1), torch.zeros(1))
    with pytest.raises(ConfigError, match=r"eps_start must be a probability, 0 to 1; got 1.5"):
        EpsilonGreedy(choice, 1.5)
    with pytest.raises(ConfigError, match=r"eps_end must be a probability, 0 to 1; got -0.1"):
        EpsilonGreedy(choice, 1.0, -0.1)
    with pytest.raises(SpecError, match=r"must be discrete.*AdditiveGaussian"):
        EpsilonGreedy(box)
    with pytest.raises(SpecError, match=r"must be continuous.*Explore discrete actions with EpsilonGreedy"):
        AdditiveGaussian(choice)
    with pytest.raises(SpecError, match=r"must be continuous.*two finite bounds"):
        OrnsteinUhlenbeck(Still(Bounded(0.0, float("inf"), (1,)), torch.zeros(1)))
    with pytest.raises(ConfigError, match=r"sigma must be at least 0; got -1.0 to None"):
        AdditiveGaussian(box, sigma=-1.0)
    with pytest.raises(ConfigError, match=r"theta \* dt must be above 0.*got theta=2.0, dt=1.0"):
        OrnsteinUhlenbeck(box, theta=2.0)
    with pytest.raises(ConfigError, match=r"policy of RandomWarmup must be one that acts; got function. Wrap it in Actor\("):
        RandomWarmup(lambda x: x, 3)
    choice.spec = None
    with pytest.raises(ConfigError, match=r"spec of the policy must be known.*spec=env.action_spec"):
        RandomWarmup(choice, 3)
    with pytest.raises(ConfigError, match=r"annealing_frames must be positive with sigma_end=0.1; got 0"):
        AdditiveGaussian(box, sigma=0.5, sigma_end=0.1)
    with pytest.raises(ConfigError, match=r"sigma must be at least 0; got nan"):
        AdditiveGaussian(box, sigma=float("nan"))


def test_frames_that_a_rollout_did_not_reach_do_not_count():
    env = CartPole(seed=0)
    qvalue = QValueActor(MLP(2, 4), env.action_spec)
    explorer = RandomWarmup(EpsilonGreedy(qvalue, 1.0, 0.05, annealing_frames=1000), 300)
    steps = sum(env.rollout(500, explorer).batch_size[0] for _ in range(3))
    assert explorer.frames == explorer.policy.frames == steps < 300
    batch = CartPole(num_envs=3, seed=0)
    data = batch.rollout(500, explorer, break_when_any_done=True)
    assert explorer.frames == steps + data.numel()


def test_an_explorer_holds_the_network_and_moves_with_it():
    env = Pendulum(seed=0)
    actor = Actor(MLP(1, 3), env.action_spec)
    explorer = RandomWarmup(AdditiveGaussian(actor.greedy, 0.1), 5)
    assert set(explorer.parameters()) == set(actor.parameters())
    explorer.to("meta")
    assert explorer.spec.device.type == explorer.policy.spec.device.type == "meta"


@pytest.mark.parametrize("kind", ["noisy", "carry"])
def test_frames_are_given_back_through_other_policies(kind):
    """An episode that ends early leaves noise over: no schedule may run ahead for it."""
    env = CartPole(seed=0)
    if kind == "noisy":
        explorer = EpsilonGreedy(QValueActor(MLP(2, 4, layer=NoisyLinear), env.action_spec))
        policy = NoisyExploration(explorer)
    else:
        explorer = EpsilonGreedy(QValueActor(MLP(2, 4), env.action_spec))
        policy = Carry(explorer, ValueHead(GRU(1, 4)))
    data = env.rollout(300, policy)
    assert explorer.frames == data.numel() < 300
