"""Every exported environment keeps the contract, and check_env catches those that do not."""

from __future__ import annotations

import pytest
import torch

import rlbook.envs
from rlbook import keys
from rlbook.envs import Env, GridWorld, GymEnv, NativeEnv, check_env
from rlbook.errors import EnvError, MissingKeyError, NonFiniteError, RLBookError, SpecError
from rlbook.specs import Bounded, Categorical, Composite, Unbounded

torch.set_num_threads(1)

EXPORTED = [getattr(rlbook.envs, name) for name in rlbook.envs.__all__]
NATIVE = [cls for cls in EXPORTED if isinstance(cls, type) and issubclass(cls, NativeEnv) and cls is not NativeEnv]
MAKERS = {cls.__name__: cls for cls in NATIVE} | {
    "frozen_lake": lambda **kwargs: GridWorld.frozen_lake("8x8", **kwargs),
    "cliff_walking": lambda **kwargs: GridWorld.cliff_walking(slippery=True, **kwargs),
}
GYM = ["CartPole-v1", "Pendulum-v1", "MountainCar-v0", "Acrobot-v1", "FrozenLake-v1", "Blackjack-v1", "Taxi-v4"]
sizes = pytest.mark.parametrize("num_envs", [None, 1, 5])


def test_native_environments_are_found():
    assert {"CartPole", "Pendulum", "GridWorld"} <= set(MAKERS)


@sizes
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_native(make, num_envs):
    env = make(num_envs=num_envs)
    seen = check_env(env, 60)
    assert f"60 steps, batch size {list(env.batch_size)}" in seen
    assert env.step(env.reset().set("action", env.random_actions()))["next", "reward"].isfinite().all()  # still usable


@sizes
@pytest.mark.parametrize("name", GYM)
def test_gymnasium(name, num_envs):
    with GymEnv(name, num_envs=num_envs) as env:
        assert "keeps the contract" in check_env(env, 60)


@pytest.mark.parametrize("cls", NATIVE)
def test_docstrings_have_the_five_headings(cls):
    headings = ("Observation", "Action", "Reward", "Ending", "Initial state")
    positions = [cls.__doc__.find(f"\n    {heading}:\n") for heading in headings]
    assert positions == sorted(positions)
    assert positions[0] > 0


# ---- environments that break the contract ---------------------------------------------------------------------------------
class Walk(Env):
    """A correct random-start walk of five steps; the subclasses below each break one rule."""

    def __init__(self, num_envs: int | None = 3):
        spec = Composite({"observation": Bounded(-10, 10, (2,))})
        super().__init__(spec, Categorical(2), num_envs=num_envs, seed=0)

    def _seed(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.x = torch.zeros(*self.batch_size, 2)
        self.t = torch.zeros(self.batch_size, dtype=torch.int64)

    def _reset(self, mask):
        mask = torch.ones(self.batch_size, dtype=torch.bool) if mask is None else mask
        self.x = torch.where(mask.unsqueeze(-1), torch.rand(self.x.shape, generator=self.generator), self.x)
        self.t = self.t.masked_fill(mask, 0)
        return {"observation": self.x}

    def _step(self, action):
        self.x = self.x + (2 * action - 1).unsqueeze(-1)
        self.t = self.t + 1
        return {"observation": self.x, "reward": self.x[..., 0], "terminated": self.t == 5}


class OutsideItsSpec(Walk):
    def _step(self, action):
        out = super()._step(action)
        return {**out, "observation": out["observation"] * 100}


class OutsideItsSpecAtReset(Walk):
    def _reset(self, mask):
        return {"observation": super()._reset(mask)["observation"] + 20}


class DoublePrecision(Walk):
    def _step(self, action):
        out = super()._step(action)
        return {**out, "observation": out["observation"].double()}


class MissingObservation(Walk):
    def _step(self, action):
        out = super()._step(action)
        return {"reward": out["reward"], "terminated": out["terminated"]}


class ExtraEntry(Walk):
    def _reset(self, mask):
        return {**super()._reset(mask), "velocity": self.x}


class NoReward(Walk):
    def _step(self, action):
        out = super()._step(action)
        del out["reward"]
        return out


class NaNReward(Walk):
    def _step(self, action):
        return {**super()._step(action), "reward": torch.where(self.t == 4, torch.nan, 1.0)}


class TrailingReward(Walk):
    def _step(self, action):
        return {**super()._step(action), "reward": self.x[..., :1]}


class IntegerReward(Walk):
    def _step(self, action):
        return {**super()._step(action), "reward": self.t}


class IntegerTerminated(Walk):
    def _step(self, action):
        return {**super()._step(action), "terminated": (self.t == 5).long()}


class ScalarTruncated(Walk):
    def _step(self, action):
        return {**super()._step(action), "truncated": torch.tensor(False)}


class NotADictionary(Walk):
    def _reset(self, mask):
        return super()._reset(mask)["observation"]


class LeaksBetweenSeeds(Walk):
    total = 0

    def _step(self, action):
        self.total += 1
        return {**super()._step(action), "reward": self.x[..., 0] + self.total}


class Unseeded(Walk):
    def _seed(self, seed):
        super()._seed(seed)
        self.generator.seed()


class ResetsByItself(Walk):
    def _step(self, action):
        out = super()._step(action)
        if out["terminated"].any():
            out = {**out, "observation": self._reset(out["terminated"])["observation"]}
            self.fresh = self.x
        return out

    def _reset(self, mask):
        fresh = self.__dict__.pop("fresh", None)
        return super()._reset(mask) if fresh is None else {"observation": fresh}


class ResetsTheOthers(Walk):
    def _reset(self, mask):
        return super()._reset(None)


class ChangesTheAction(Walk):
    def _step(self, action):
        out = super()._step(action)
        action.zero_()
        return out


class HandsOutItsBuffer(Walk):
    def _seed(self, seed):
        super()._seed(seed)
        self.buffer = torch.zeros(*self.batch_size, 2)

    def step(self, td):
        td = super().step(td)
        td["next", "observation"] = self.buffer.copy_(td["next", "observation"])
        return td


class WorksWhenClosed(Walk):
    def reset(self, td=None, *, mask=None, seed=None):
        closed, self._closed = self._closed, False
        try:
            return super().reset(td, mask=mask, seed=seed)
        finally:
            self._closed = closed


class ReservedName(Walk):
    def __init__(self, num_envs=3):
        Env.__init__(self, Composite({"reward": Unbounded()}), Categorical(2), num_envs=num_envs)


class NoObservation(Walk):
    def __init__(self, num_envs=3):
        Env.__init__(self, Composite(), Categorical(2), num_envs=num_envs)


BROKEN = {
    OutsideItsSpec: (SpecError, r"OutsideItsSpec._step: observation must be between -10 and 10; got .* change its spec"),
    OutsideItsSpecAtReset: (SpecError, r"OutsideItsSpecAtReset._reset: observation must be between -10 and 10"),
    DoublePrecision: (SpecError, r"observation must be of dtype torch.float32; got torch.float64. Convert it"),
    MissingObservation: (MissingKeyError, r"must be a dictionary with 'observation'; got .*take it out of observation_spec"),
    ExtraEntry: (EnvError, r"ExtraEntry._reset returns must be the entries of observation_spec; got also 'velocity'. Add it"),
    NoReward: (MissingKeyError, r"NoReward._step returns must be a dictionary with 'reward'.*Return 'reward' as well"),
    NaNReward: (NonFiniteError, r"NaNReward._step: reward must be finite; got .*nan.*division by zero"),
    TrailingReward: (SpecError, r"TrailingReward._step: reward must be of shape .*Remove the trailing dimension"),
    IntegerReward: (SpecError, r"IntegerReward._step: reward must be of dtype torch.float32; got torch.int64"),
    IntegerTerminated: (SpecError, r"IntegerTerminated._step: terminated must be bool .*got torch.int64 .*comparison"),
    ScalarTruncated: (SpecError, r"ScalarTruncated._step: truncated must be bool \[3\]; got torch.bool \[\]"),
    NotADictionary: (EnvError, r"NotADictionary._reset returns must be a dictionary of tensors; got Tensor"),
    LeaksBetweenSeeds: (EnvError, r"Two rollouts .* same seed must be the same, .*different values of 'next.reward'"),
    Unseeded: (EnvError, r"Two rollouts of Unseeded with the same seed .*observation'. Draw its random numbers"),
    ResetsByItself: (EnvError, r"_step returns when an episode ends must be its last observation.*Do not reset inside"),
    ResetsTheOthers: (EnvError, r"A partial reset must be without effect on the other .*another observation.* rows of the mask"),
    ChangesTheAction: (EnvError, r"ChangesTheAction.step is given must be left as it is .*changed 'action'. Copy the"),
    HandsOutItsBuffer: (EnvError, r"A TensorDict that HandsOutItsBuffer has returned must be left .* Return copies of buffers"),
    WorksWhenClosed: (EnvError, r"WorksWhenClosed.reset after close\(\) must be an EnvError; got a result"),
    ReservedName: (EnvError, r"names of observation entries must be at least one, none of .*; got \['reward'\]"),
    NoObservation: (EnvError, r"names of observation entries must be at least one, .*; got none"),
}


@sizes
def test_the_correct_toy_passes(num_envs):
    ended = 12 * (num_envs or 1)  # every five steps
    assert check_env(Walk(num_envs), 60).endswith(f"{ended} episodes ended.")


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_broken_environments_are_caught(cls):
    error, message = BROKEN[cls]
    with pytest.raises(error, match=message) as caught:
        check_env(cls())
    assert isinstance(caught.value, RLBookError)


class BrokenNative(NativeEnv):
    """One number that walks; ``fault`` chooses what is wrong with it."""

    reset_uniforms = 1

    def __init__(self, fault: str, num_envs: int | None = 3):
        self.fault = fault
        super().__init__(Composite({"observation": Unbounded()}), Categorical(2), num_envs=num_envs, max_steps=9, seed=0)

    def _initial(self, u):
        return {"pair": u.expand(*u.shape[:-1], 2).contiguous(), "x": u[..., 0]}

    def _dynamics(self, state, action, u):
        x, pair = state["x"] + action, state["pair"]
        if self.fault == "writes its input":
            state["pair"].add_(1)
        elif self.fault == "dtype":
            pair = pair.double()
        elif self.fault == "mixes rows":
            x = x - x.mean()
        elif self.fault == "view":
            return {"pair": pair + 1, "x": pair[..., 0]}, x, torch.zeros_like(x, dtype=torch.bool)
        return {"x": x, "pair": pair}, x, torch.zeros_like(x, dtype=torch.bool)

    def _observe(self, state):
        return {keys.OBSERVATION: state["x"]}


def test_the_correct_native_toy_passes():
    assert check_env(BrokenNative("none"), 30).startswith("BrokenNative keeps the contract")


@pytest.mark.parametrize(
    "fault, error, message",
    [
        ("writes its input", EnvError, r"BrokenNative._dynamics is given must be left.*changed 'pair'. Compute new tensors"),
        ("dtype", SpecError, r"BrokenNative._dynamics: state\['pair'\] must be torch.float32 \[3, 2\]; got torch.float64"),
        ("view", EnvError, r"state\['x'\] after BrokenNative._step must be what _dynamics returned; .* Clone an entry of state"),
        ("mixes rows", EnvError, r"environment 0 in a batch must be what it is alone, bit for bit; got .* Use operations"),
    ],
)
def test_broken_native_environments_are_caught(fault, error, message):
    with pytest.raises(error, match=message):
        check_env(BrokenNative(fault))


def test_check_env_takes_environments_only():
    import gymnasium

    with pytest.raises(EnvError, match=r"must be an rlbook Env; got .*Wrap a Gymnasium environment in GymEnv"):
        check_env(gymnasium.make("CartPole-v1"))
