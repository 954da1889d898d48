"""Transforms: conformance of each, golden values over episode boundaries, statistics equal to NumPy's, explained errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rlbook.transforms
from rlbook import keys
from rlbook.envs import CartPole, Env, GridWorld, GymEnv, Pendulum, check_env
from rlbook.errors import ConfigError, EnvError, MissingKeyError, SpecError
from rlbook.specs import Bounded, Categorical, Composite, Unbounded
from rlbook.transforms import (
    CatTensors,
    Compose,
    ObservationNorm,
    RenameKeys,
    RescaleAction,
    RewardClip,
    RewardNorm,
    RewardScale,
    RewardSum,
    StepCounter,
    Transform,
    TransformedEnv,
    VecNorm,
)

torch.set_num_threads(1)


MAKERS = {
    CatTensors: lambda: CatTensors(),
    Compose: lambda: Compose(StepCounter(max_steps=20), RewardSum(), RenameKeys({"observation": ("cart", "state")})),
    ObservationNorm: lambda: ObservationNorm(0.5, 2.0),
    RenameKeys: lambda: RenameKeys({"observation": ("cart", "state")}),
    RescaleAction: None,  # continuous actions only
    RewardClip: lambda: RewardClip(-1.0, 0.5),
    RewardNorm: RewardNorm,
    RewardScale: lambda: RewardScale(0.1),
    RewardSum: RewardSum,
    StepCounter: lambda: StepCounter(max_steps=7),
    Transform: Transform,
    VecNorm: VecNorm,
}
EXPORTED = [getattr(rlbook.transforms, name) for name in rlbook.transforms.__all__]
TRANSFORMS = [cls for cls in EXPORTED if issubclass(cls, Transform)]


def _env_with(cls, num_envs):
    if cls is RescaleAction:
        return TransformedEnv(Pendulum(num_envs, seed=0), RescaleAction())
    return TransformedEnv(CartPole(num_envs, seed=0), MAKERS[cls]())


@pytest.mark.parametrize("num_envs", [None, 3])
@pytest.mark.parametrize("cls", TRANSFORMS)
def test_every_transform_keeps_the_contract(cls, num_envs):
    env = _env_with(cls, num_envs)
    if cls in (VecNorm, RewardNorm):  # one that learns gives another rollout the second time, and check_env says so
        with pytest.raises(EnvError, match=r"same seed must be the same.*such as VecNorm, must be frozen to be checked"):
            check_env(env, 60)
        env.transform.frozen = True
    assert "keeps the contract" in check_env(env, 60)


@pytest.mark.parametrize("cls", TRANSFORMS)
def test_no_transform_writes_into_what_it_is_given(cls):
    env = _env_with(cls, 3)
    env.reset()
    leaves = env.env._step(env.transform.on_action(env.random_actions()))
    kept = {key: value.clone() for key, value in leaves.items()}
    env.transform.on_step(leaves)
    env.transform.on_reset({key: leaves[key] for key in env.env.observation_spec.leaves()}, torch.tensor([True, False, True]))
    assert leaves.keys() == kept.keys()
    assert all(torch.equal(value, kept[key]) for key, value in leaves.items())


@pytest.mark.parametrize("cls", TRANSFORMS)
def test_rows_outside_the_mask_do_not_matter(cls):
    if cls is RescaleAction:
        pytest.skip("it has no memory")
    futures = []
    for rubbish in (0.0, torch.nan):
        env = _env_with(cls, 3)
        env.rollout(4)
        mask = torch.tensor([False, True, False])
        fresh = {key: torch.where(mask.unsqueeze(-1), value, rubbish) for key, value in env.env._reset(mask).items()}
        out = env.transform.on_reset(fresh, mask)
        futures.append({key: value[1] for key, value in out.items()} | env._step(env.random_actions()))
    for key, value in futures[0].items():
        assert torch.equal(value, futures[1][key]), key


@pytest.mark.parametrize("cls", TRANSFORMS)
def test_every_transform_compiles_with_its_environment(cls):
    torch._dynamo.reset()
    env, plain = _env_with(cls, 3), _env_with(cls, 3)

    @torch.no_grad()
    def cycle(env, action):
        leaves = env._step(action)
        return leaves, env._reset(leaves[keys.TERMINATED] | leaves[keys.TRUNCATED])

    compiled = torch.compile(cycle, fullgraph=True, backend="aot_eager")
    env._reset(None)
    plain._reset(None)
    for action in plain.random_actions(25):
        for got, want in zip(compiled(env, action), cycle(plain, action), strict=True):
            assert got.keys() == want.keys()
            for key, value in want.items():
                torch.testing.assert_close(got[key], value)


# ---- a counting environment, whose rewards name their step ----------------------------------------------------------------
class Counting(Env):
    """Environment i ends its episodes after ``lengths[i]`` steps; step t (from 1) pays 100 t + i and shows ``[i, t]``."""

    def __init__(self, lengths=(2, 3), num_envs: int | None = 2):
        self.lengths = torch.tensor(lengths)[: num_envs or 1].reshape(() if num_envs is None else (num_envs,))
        self.row = torch.arange(num_envs or 1).reshape(self.lengths.shape)
        self.t = torch.zeros_like(self.lengths)
        entries = {"observation": Bounded(0, 10, (2,)), "position": {"row": Unbounded(), "cell": Categorical(9)}}
        super().__init__(Composite(entries), Categorical(2), num_envs=num_envs, seed=0)

    def _look(self):
        both = torch.stack((self.row, self.t), -1).float()
        return {"observation": both, ("position", "row"): self.row.float(), ("position", "cell"): self.t.clone()}

    def _reset(self, mask):
        self.t = self.t.masked_fill(torch.ones_like(self.t, dtype=torch.bool) if mask is None else mask, 0)
        return self._look()

    def _step(self, action):
        self.t = self.t + 1
        return {**self._look(), "reward": 100.0 * self.t + self.row, "terminated": self.t == self.lengths}


def test_counting_environment_itself():
    assert "keeps the contract" in check_env(Counting())


def test_golden_counts_and_sums_over_episode_boundaries():
    data = TransformedEnv(Counting(), Compose(StepCounter(), RewardSum())).rollout(6)
    assert data["step_count"].tolist() == [[0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert data["next", "step_count"].tolist() == [[1, 2, 1, 2, 1, 2], [1, 2, 3, 1, 2, 3]]
    assert data["next", "reward"].tolist() == [[100, 200] * 3, [101, 201, 301] * 2]
    assert data["next", "episode_reward"].tolist() == [[100, 300] * 3, [101, 302, 603] * 2]
    assert data["episode_reward"].tolist() == [[0, 100] * 3, [0, 101, 302] * 2]
    assert data["next", "terminated"].tolist() == [[False, True] * 3, [False, False, True] * 2]
    assert not data["next", "truncated"].any()
    assert data["step_count"].dtype == torch.int64
    assert data["step_count"].shape == data["episode_reward"].shape == data.batch_size


def test_golden_without_batch_dimension():
    env = TransformedEnv(Counting((3,), None), Compose(StepCounter(), RewardSum()))
    data = env.rollout(5, break_when_any_done=False)
    assert data["next", "episode_reward"].tolist() == [100, 300, 600, 100, 300]
    assert data["step_count"].tolist() == [0, 1, 2, 0, 1]


def test_golden_truncation():
    data = TransformedEnv(Counting((9, 3)), StepCounter(max_steps=2)).rollout(5)
    assert data["next", "truncated"].tolist() == [[False, True] * 2 + [False]] * 2
    assert not data["next", "terminated"].any()
    assert data["next", "step_count"].tolist() == [[1, 2, 1, 2, 1]] * 2
    both = TransformedEnv(Counting((2, 3)), StepCounter(max_steps=2)).rollout(2)
    assert both["next", "truncated"].tolist() == [[False, True]] * 2
    assert both["next", "terminated"].tolist() == [[False, True], [False, False]]


def test_golden_partial_reset():
    env = TransformedEnv(Counting((9, 9)), Compose(StepCounter(), RewardSum()))
    root = env.reset()
    for _ in range(2):
        root["action"] = env.random_actions()
        _, root = env.step_and_reset(root)
    root = env.reset(root, mask=torch.tensor([True, False]))
    assert root["step_count"].tolist() == [0, 2]
    assert root["episode_reward"].tolist() == [0, 302]
    root["action"] = env.random_actions()
    step, _ = env.step_and_reset(root)
    assert step["next", "step_count"].tolist() == [1, 3]
    assert step["next", "episode_reward"].tolist() == [100, 603]


def test_the_place_of_reward_sum_decides_which_rewards_it_adds_up():
    raw = TransformedEnv(Counting(), Compose(RewardSum(), RewardScale(0.5))).rollout(2)
    scaled = TransformedEnv(Counting(), Compose(RewardScale(0.5), RewardSum())).rollout(2)
    assert raw["next", "reward"].tolist() == scaled["next", "reward"].tolist() == [[50, 100], [50.5, 100.5]]
    assert raw["next", "episode_reward"].tolist() == [[100, 300], [101, 302]]
    assert scaled["next", "episode_reward"].tolist() == [[50, 150], [50.5, 151]]


def test_reward_clip():
    env = TransformedEnv(Counting(), RewardClip(0, 150))
    assert env.rollout(2)["next", "reward"].tolist() == [[100, 150], [101, 150]]
    assert env.reward_spec == Bounded(0, 150, ())


def test_seed_example():
    env = TransformedEnv(GymEnv("Pendulum-v1"), Compose(StepCounter(), RewardSum()))
    data = env.rollout(200, seed=0)
    assert data.batch_size == (200,)
    assert data["next", "step_count"].tolist() == list(range(1, 201))
    torch.testing.assert_close(data["next", "episode_reward"], data["next", "reward"].cumsum(-1))
    assert data["next", "truncated"].nonzero().tolist() == [[199]]
    assert env.action_spec.shape[-1] == 1
    with pytest.raises(EnvError, match=r'render_mode="rgb_array"'):
        env.render()
    env.close()
    with pytest.raises(EnvError, match="closed"):
        env.env.reset()


# ---- entries --------------------------------------------------------------------------------------------------------------
def test_rename_keys():
    env = TransformedEnv(
        Counting(), RenameKeys({"observation": "seen", ("position", "row"): "row", ("position", "cell"): "cell"})
    )
    assert set(env.observation_spec.keys()) == {"seen", "row", "cell"}
    data = env.rollout(3)
    assert data["next", "row"].tolist() == [[0] * 3, [1] * 3]
    assert data["cell"].tolist() == [[0, 1, 0], [0, 1, 2]]
    assert "position" not in data.keys()


def test_rename_can_swap():
    env = TransformedEnv(Counting(), RenameKeys({"observation": ("position", "row"), ("position", "row"): "observation"}))
    assert env.reset()["observation"].tolist() == [0, 1]
    assert env.observation_spec["position", "row"].shape == (2,)


def test_cat_tensors():
    env = TransformedEnv(Counting(), Compose(RewardSum(), CatTensors([("position", "row"), "episode_reward", "observation"])))
    assert env.observation_spec["observation"] == Unbounded(4)
    data = env.rollout(2)
    assert data["next", "observation"][1].tolist() == [[1, 101, 1, 1], [1, 302, 1, 2]]
    assert set(data.keys()) == {"observation", "position", "action", "next", *keys.FLAGS}
    alone = TransformedEnv(Counting((3,), None), CatTensors([("position", "row"), "observation"], out_key="all"))
    assert alone.reset()["all"].tolist() == [0, 0, 0]


# ---- actions --------------------------------------------------------------------------------------------------------------
def test_rescale_action():
    env, plain = TransformedEnv(Pendulum(num_envs=3, seed=0), RescaleAction(-1, 1)), Pendulum(num_envs=3, seed=0)
    assert env.action_spec == Bounded(-1, 1, (1,))
    unit = torch.tensor([[-1.0], [0.25], [1.0]])
    assert env.transform.on_action(unit).tolist() == [[-2], [0.5], [2]]
    got = env.step(env.reset().set("action", unit))
    want = plain.step(plain.reset().set("action", 2 * unit))
    assert torch.equal(got["next", "observation"], want["next", "observation"])
    assert torch.equal(got["action"], unit)


def test_actions_pass_the_transforms_backwards():
    env = TransformedEnv(Pendulum(), Compose(RescaleAction(-1, 1), RescaleAction(0, 10)))
    assert env.action_spec == Bounded(0, 10, (1,))
    assert env.transform.on_action(torch.tensor([7.5])).tolist() == [1.0]  # 7.5 of 0..10 is 0.5 of -1..1 is 1 of -2..2


# ---- statistics -----------------------------------------------------------------------------------------------------------
def test_observation_norm_with_given_numbers():
    env = TransformedEnv(Counting(), ObservationNorm(torch.tensor([1.0, 2.0]), 0.5))
    assert env.rollout(2)["observation"].tolist() == [[[-2, -4], [-2, -2]], [[0, -4], [0, -2]]]
    assert env.observation_spec["observation"] == Unbounded(2)


def test_observation_norm_fitted():
    source = CartPole(num_envs=4, seed=0)
    norm = ObservationNorm().fit(source, steps=50)
    seen = CartPole(num_envs=4, seed=0).rollout(50)["observation"].reshape(-1, 4).numpy()
    torch.testing.assert_close(norm.loc["observation"], torch.from_numpy(seen.mean(0)))
    torch.testing.assert_close(norm.scale["observation"], torch.from_numpy(seen.std(0)))
    data = TransformedEnv(CartPole(num_envs=4, seed=0), norm).rollout(50)["observation"].reshape(-1, 4)
    torch.testing.assert_close(data.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(data.std(0, correction=0), torch.ones(4))


def test_observation_norm_only_shifts_what_never_varies():
    norm = ObservationNorm(keys=[("position", "row"), ("position", "cell")]).fit(Counting((2,), 1), steps=10)
    assert norm.scale["position", "row"].item() == 1
    data = TransformedEnv(Counting((2,), 1), norm).rollout(4)
    assert data["position", "row"].tolist() == [[0] * 4]
    assert data["position", "cell"].tolist() == [[-1, 1, -1, 1]]  # an integer entry of mean and deviation 0.5, now float32
    assert data["position", "cell"].dtype == torch.float32


@pytest.mark.parametrize("num_envs", [None, 3])
def test_vecnorm_equals_numpy_on_the_very_stream(num_envs):
    norm = VecNorm(clip=100)
    env = TransformedEnv(CartPole(num_envs, seed=0), norm)
    plain = CartPole(num_envs, seed=0).rollout(80, break_when_any_done=False)
    data = env.rollout(80, break_when_any_done=False)
    # every observation that appears counts once: the first, all under next, and the first after each reset
    roots, after = (part["observation"].reshape(-1, 80, 4).double().numpy() for part in (plain, plain["next"]))
    done = plain["next", "done"].reshape(-1, 80).numpy()
    stream = [*roots[:, 0]]
    assert done.any()
    for t in range(80):
        stream.extend(after[:, t])
        if t == 40:
            mean, var = np.mean(stream, 0), np.var(stream, 0)
            want = (after[:, t] - mean) / np.sqrt(var + 1e-8)
            got = data["next", "observation"].reshape(-1, 80, 4)[:, t]
            torch.testing.assert_close(got, torch.from_numpy(want).float(), rtol=1e-4, atol=1e-5)
        if t < 79:
            stream.extend(roots[done[:, t], t + 1])
    moments = norm.moments["observation"]
    stream.extend(
        CartPole(num_envs, seed=0).rollout(81, break_when_any_done=False)["observation"].reshape(-1, 81, 4)[done[:, 79], 80]
    )
    assert moments.count.item() == len(stream)
    torch.testing.assert_close(moments.mean, torch.from_numpy(np.mean(np.asarray(stream, np.float64), 0)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        moments.variance, torch.from_numpy(np.var(np.asarray(stream, np.float64), 0)), rtol=1e-9, atol=1e-12
    )


def test_vecnorm_golden():
    # one environment: the stream 0, 1, 2 of t; then 0 (the reset), 1
    norm = VecNorm(keys=[("position", "cell")])
    env = TransformedEnv(Counting((2,), 1), norm)
    data = env.rollout(3)
    # after 0, 1: mean 1/2, deviation 1/2: (1 - 1/2) / (1/2) = 1. After 0, 1, 2: mean 1, variance 2/3: 1 / sqrt(2/3) = 1.2247
    # after 0, 1, 2, 0: mean 3/4, variance 11/16: -3/4 / sqrt(11/16) = -0.9045. After one more 1: mean 4/5, var 14/25: 0.2673
    torch.testing.assert_close(data["next", "position", "cell"], torch.tensor([[1.0, 1.224745, 0.267261]]))
    torch.testing.assert_close(data["position", "cell"][0, 1:], torch.tensor([1.0, -0.904534]))


def test_vecnorm_with_decay_forgets():
    norm = VecNorm(keys=[("position", "row")], decay=0.5)
    env = TransformedEnv(Counting((9, 9)), norm)
    env.reset()
    # count: 2; then 2 * 0.5 + 2 = 3; 3 * 0.5 + 2 = 3.5. The rows 0 and 1 are always there: mean 1/2, variance 1/4
    for want in (3.0, 3.5):
        env._step(env.random_actions())
        assert norm.moments["position", "row"].count.item() == want
        assert norm.moments["position", "row"].mean.item() == 0.5
        assert norm.moments["position", "row"].variance.item() == 0.25
    env._reset(torch.tensor([False, False]))  # nothing came: nothing is forgotten
    assert norm.moments["position", "row"].count.item() == 3.5


def test_vecnorm_clips_and_freezes():
    norm = VecNorm(clip=0.5)
    env = TransformedEnv(CartPole(num_envs=4, seed=0), norm)
    data = env.rollout(30)
    assert data["next", "observation"].abs().max() == 0.5
    assert env.observation_spec["observation"] == Bounded(-0.5, 0.5, (4,))
    before = norm.state_dict()
    norm.frozen = True
    env.rollout(30)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    norm.frozen = False
    env.rollout(1)
    assert norm.state_dict()["observation.count"] > before["observation.count"]


def test_vecnorm_view_uses_the_current_statistics():
    norm = VecNorm()
    training = TransformedEnv(CartPole(num_envs=4, seed=0), norm)
    evaluation = TransformedEnv(CartPole(seed=9), norm.frozen_view())
    training.rollout(20)
    seen = norm.state_dict()
    got = evaluation.reset(seed=9)["observation"]
    raw = CartPole(seed=9).reset()["observation"]
    want = (raw - seen["observation.mean"]) / (seen["observation.squares"] / seen["observation.count"] + 1e-8).sqrt()
    torch.testing.assert_close(got, want.float().clamp(-10, 10))
    assert all(torch.equal(value, seen[key]) for key, value in norm.state_dict().items())


@pytest.mark.parametrize("before", [True, False])
def test_vecnorm_state_travels(before):
    first = Compose(StepCounter(), VecNorm())
    TransformedEnv(CartPole(num_envs=4, seed=0), first).rollout(20)
    second = Compose(StepCounter(), VecNorm())
    if before:
        second.load_state_dict(first.state_dict())
    env = TransformedEnv(CartPole(num_envs=2, seed=5), second)
    if not before:
        second.load_state_dict(first.state_dict())
    assert sorted(second.state_dict()) == ["1.observation.count", "1.observation.mean", "1.observation.squares"]
    assert all(torch.equal(value, first.state_dict()[key]) for key, value in second.state_dict().items())
    env.reset()
    assert second.state_dict()["1.observation.count"] == first.state_dict()["1.observation.count"] + 2


# ---- the transformed environment ------------------------------------------------------------------------------------------
def test_forwarding():
    base = CartPole(num_envs=2, seed=7)
    env = TransformedEnv(TransformedEnv(base, StepCounter()), RewardSum())
    assert env.base_env is base
    assert env.batch_size == base.batch_size
    assert env.device == base.device
    assert np.array_equal(env.render(1), base.render(1))
    want = CartPole(num_envs=2, seed=7).rollout(9)["observation"]
    assert torch.equal(env.rollout(9, seed=7)["observation"], want)
    alone = TransformedEnv(GridWorld(), StepCounter())
    assert alone.batch_size == ()
    env.close()
    with pytest.raises(EnvError, match="closed"):
        base.reset()


def test_a_transformed_row_equals_the_environment_alone():
    batched = TransformedEnv(CartPole(num_envs=3, seed=0), Compose(StepCounter(), RewardSum())).rollout(50)
    alone = TransformedEnv(CartPole(seed=2), Compose(StepCounter(), RewardSum())).rollout(50, break_when_any_done=False)
    for key, value in alone.items(True, True):
        assert torch.equal(value, batched[2][key]), key


def test_state_of_environment_and_transforms():
    env = TransformedEnv(CartPole(num_envs=2, seed=0), Compose(StepCounter(), RewardSum()))
    root = env.reset()
    root["action"] = env.random_actions()
    step, root = env.step_and_reset(root)
    saved = env.state
    futures = []
    for _ in range(2):
        env.set_state(saved)
        td = root.clone()
        for action in torch.ones(15, 2, dtype=torch.int64):
            td["action"] = action
            step, td = env.step_and_reset(td)
        futures.append(step["next"].clone())
    assert (futures[0]["step_count"] < 15).any()  # an episode ended in between
    for key, value in futures[0].items():
        assert torch.equal(value, futures[1][key])
    with pytest.raises(EnvError, match="whose state is read or set must be a native one; got Counting"):
        TransformedEnv(Counting(), StepCounter()).state  # noqa: B018


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: TransformedEnv(CartPole(), RenameKeys({"speed": "v"})),
            MissingKeyError,
            "'speed' that RenameKeys reads .*'observation'",
        ),
        (
            lambda: TransformedEnv(CartPole(), VecNorm(keys="pixels")),
            MissingKeyError,
            "entry 'pixels' that VecNorm reads must be in",
        ),
        (
            lambda: TransformedEnv(CartPole(), ObservationNorm(0, keys=["x"])),
            MissingKeyError,
            "entry 'x' that ObservationNorm reads",
        ),
        (lambda: ObservationNorm(keys="x").fit(CartPole(), 2), MissingKeyError, "entry 'x' that ObservationNorm reads"),
        (lambda: TransformedEnv(CartPole(), CatTensors(["x"])), MissingKeyError, "entry 'x' that CatTensors reads"),
        (
            lambda: TransformedEnv(Counting(), CatTensors([("position", "row")])),
            ConfigError,
            "out_key must be a name that is free",
        ),
        (
            lambda: TransformedEnv(GridWorld(), CatTensors()),
            SpecError,
            "must be of a floating-point dtype; got torch.int64",
        ),
        (
            lambda: TransformedEnv(Counting(), RenameKeys({"observation": ("position", "row")})),
            ConfigError,
            "new names must be different from all others",
        ),
        (lambda: TransformedEnv(CartPole(), RescaleAction()), SpecError, "action spec must be a Bounded .*got Categorical"),
        (
            lambda: TransformedEnv(CartPole(), ObservationNorm()),
            ConfigError,
            r"must be given numbers .*ObservationNorm\(\).fit\(env\)",
        ),
        (lambda: TransformedEnv(CartPole(), ObservationNorm(torch.zeros(3))), SpecError, r"of shape \[4\]; got \[3\]"),
        (lambda: ObservationNorm(0, 0), ConfigError, "scale must be positive; got 0"),
        (lambda: VecNorm(decay=0), ConfigError, r"decay must be in \(0, 1\]; got 0"),
        (lambda: VecNorm(eps=0), ConfigError, "eps must be positive; got 0"),
        (lambda: VecNorm(clip=-1), ConfigError, "clip must be positive; got -1"),
        (lambda: StepCounter(0), ConfigError, "max_steps must be a positive integer; got 0"),
        (lambda: RewardClip(1, -1), ConfigError, "low must be below high; got low=1, high=-1"),
        (lambda: RescaleAction(1, 1), ConfigError, "low must be below high"),
        (
            lambda: Compose(StepCounter),
            ConfigError,
            r"What Compose takes must be transforms; .*Pass instances: Compose\(StepCounter\(\)",
        ),
        (lambda: TransformedEnv(CartPole(), StepCounter), ConfigError, "transform must be a Transform"),
        (lambda: TransformedEnv("CartPole-v1", StepCounter()), EnvError, "must be an rlbook Env; got str"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_transform_belongs_to_one_environment():
    counter = StepCounter()
    TransformedEnv(CartPole(), counter)
    with pytest.raises(ConfigError, match=r"This StepCounter must be new; got one that another environment uses. Make a new one"):
        TransformedEnv(CartPole(), counter)


def test_statistics_of_another_shape():
    norm = VecNorm()
    TransformedEnv(CartPole(), norm)
    other = VecNorm()
    TransformedEnv(Pendulum(), other)
    with pytest.raises(SpecError, match=r"'observation.mean' must be of shape \[4\]; got \[3\]"):
        norm.load_state_dict(other.state_dict())
    with pytest.raises(MissingKeyError, match=r"'observation.count' must be in the state"):
        norm.load_state_dict({"count": torch.tensor(1.0)})
    with pytest.raises(SpecError, match=r"of shape \[3\]; got \[4\]"):
        TransformedEnv(Pendulum(), norm.frozen_view())


@pytest.mark.parametrize("num_envs", [None, 3])
def test_rewardnorm_equals_numpy_on_the_very_stream(num_envs):
    norm = RewardNorm(gamma=0.9, clip=100)
    data = TransformedEnv(CartPole(num_envs, seed=0), norm).rollout(60, break_when_any_done=False)
    reward, done = (CartPole(num_envs, seed=0).rollout(60, break_when_any_done=False)["next", key] for key in ("reward", "done"))
    reward, done = reward.reshape(-1, 60).double().numpy(), done.reshape(-1, 60).numpy()
    assert done.any()
    total, stream = np.zeros(len(reward)), []
    for t in range(60):
        total = total * 0.9 + reward[:, t]
        stream.extend(total)
        if t in (30, 59):
            want = torch.from_numpy(reward[:, t] / np.sqrt(np.var(stream) + 1e-8)).float()
            torch.testing.assert_close(data["next", "reward"].reshape(-1, 60)[:, t], want, rtol=1e-5, atol=1e-6)
        total[done[:, t]] = 0
    torch.testing.assert_close(norm.moments.variance.item(), np.var(stream), rtol=1e-6, atol=0)  # the returns are float32


def test_rewardnorm_golden():
    # gamma 0: the returns are the rewards 1, 1, 1: variance 0, so 1 / sqrt(eps), which is clipped
    data = TransformedEnv(CartPole(1, seed=0), RewardNorm(gamma=0.0, eps=0.25)).rollout(3, break_when_any_done=False)
    assert data["next", "reward"].tolist() == [[2.0, 2.0, 2.0]]
    assert TransformedEnv(CartPole(1, seed=0), RewardNorm(0.0, clip=5)).rollout(1)["next", "reward"].item() == 5
    # gamma 1: 1, 2, 3: variances 0, 1/4, 2/3 and a little: 1 / sqrt(1/4) = 2, 1 / sqrt(2/3) = 1.2247
    data = TransformedEnv(CartPole(1, seed=0), RewardNorm(1.0)).rollout(3, break_when_any_done=False)
    torch.testing.assert_close(data["next", "reward"], torch.tensor([[10.0, 2.0, 1.224745]]))


def test_rewardnorm_keeps_what_it_learnt():
    first, second = RewardNorm(), RewardNorm()
    TransformedEnv(Pendulum(2, seed=0), first).rollout(50)
    env = TransformedEnv(Pendulum(2, seed=1), second)
    second.load_state_dict(first.state_dict())
    second.frozen = True
    variance = first.moments.variance.item()
    reward = Pendulum(2, seed=1).rollout(20)["next", "reward"]
    torch.testing.assert_close(env.rollout(20)["next", "reward"], reward / variance**0.5)
    assert second.moments.variance.item() == variance != 1


@pytest.mark.parametrize("change", [{"gamma": 1.5}, {"eps": 0.0}, {"clip": -1.0}])
def test_rewardnorm_explains_what_is_out_of_range(change):
    (name,) = change
    with pytest.raises(ConfigError, match=f"{name} must be (in|positive).*; got {change[name]}"):
        RewardNorm(**change)


@pytest.mark.parametrize("make", [VecNorm, RewardNorm, ObservationNorm])
def test_statistics_travel_before_and_after_the_environment(make):
    norm = make()
    if make is ObservationNorm:
        norm.fit(Pendulum(num_envs=4, seed=0), 20)
    TransformedEnv(Pendulum(num_envs=4, seed=0), norm).rollout(20)
    state = norm.state_dict()
    assert state
    for bound in (False, True):
        other = make()
        if make is ObservationNorm:
            other.fit(Pendulum(num_envs=4, seed=9), 20)
        if bound:
            TransformedEnv(Pendulum(num_envs=2), other)
        other.load_state_dict(state)
        for _ in range(2):
            assert all(torch.equal(x, state[name]) for name, x in other.state_dict().items())
            assert other.state_dict().keys() == state.keys()
            if not bound:
                TransformedEnv(Pendulum(num_envs=2), other)
                bound = True
        with pytest.raises(MissingKeyError, match="must be in the state; got only"):
            other.load_state_dict({})


def test_a_frozen_view_leaves_the_statistics_alone():
    trained = VecNorm()
    TransformedEnv(Pendulum(num_envs=4, seed=0), trained).rollout(50)
    norm = VecNorm()
    norm.load_state_dict(trained.state_dict())
    view = norm.frozen_view()
    TransformedEnv(Pendulum(num_envs=4), norm).rollout(100)
    after = norm.state_dict()
    TransformedEnv(Pendulum(), view)
    assert all(torch.equal(x, after[name]) for name, x in norm.state_dict().items())
    early = (later := VecNorm()).frozen_view()
    later.load_state_dict(trained.state_dict())
    TransformedEnv(Pendulum(), early)
    assert early.state_dict()["observation.count"] == trained.state_dict()["observation.count"]
    wrong = {**trained.state_dict(), "observation.mean": torch.zeros(7)}
    with pytest.raises(SpecError, match="The statistics of"):
        norm.load_state_dict(wrong)
    assert all(torch.equal(x, after[name]) for name, x in norm.state_dict().items())


def test_a_transform_that_failed_can_be_tried_again():
    norm, counter, env = ObservationNorm(), StepCounter(), Pendulum(num_envs=2)
    with pytest.raises(ConfigError, match="call ObservationNorm"):
        TransformedEnv(env, Compose(counter, norm))
    norm.fit(env, 5)
    TransformedEnv(env, Compose(counter, norm)).rollout(2)
