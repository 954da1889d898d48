"""Collectors: an endless or bounded stream of rollouts from one environment and one policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from rlbook import keys
from rlbook.envs.base import Env
from rlbook.envs.loop import Loop, align
from rlbook.envs.native.base import NativeEnv
from rlbook.errors import ConfigError, EnvError, explain
from rlbook.modules.compiled import Compiled, CompileError, compile_graph, warn_eager
from rlbook.typing import Leaves


class Collector:
    """Iterate over rollouts ``[*batch, T]``; each continues where the last one ended.

    Every rollout is written into the same preallocated memory: use it, or ``clone()`` what you keep, before you ask for the next.

    Args:
        env: the environment.
        policy: anything callable (see :func:`rlbook.envs.policy.as_policy`); uniform random actions by default.
        frames_per_batch: steps per rollout, over all environments.
        total_frames: stop after at least so many; endless when None.
        compile: compile the policy; for a native environment policy, environment and writing, into one function (costs 5 to 20 s
            once). What the policy reads besides tensors is then what it was when it was compiled, in the first two rollouts. What
            cannot be compiled runs eagerly, with a warning that says why.
        check: raise on rewards that are not finite and on observations outside their spec.
        seed: seed the environment.

    Raises:
        ConfigError: ``frames_per_batch`` is not a positive multiple of the number of environments.
        EnvError: ``env`` is not an rlbook environment; when collecting: it is closed.

    Example:
        >>> from rlbook import CartPole, Collector
        >>> for data in Collector(CartPole(num_envs=8), frames_per_batch=256, total_frames=1024):
        ...     print(data.shape)
        torch.Size([8, 32])
        torch.Size([8, 32])
        torch.Size([8, 32])
        torch.Size([8, 32])
    """

    def __init__(
        self,
        env: Env,
        policy: Any = None,
        *,
        frames_per_batch: int,
        total_frames: int | None = None,
        compile: bool = False,
        check: bool = True,
        seed: int | None = None,
    ):
        if not isinstance(env, Env):
            raise EnvError(explain("env", "an rlbook Env", type(env).__name__, "Wrap a Gymnasium environment in GymEnv(env)"))
        if not isinstance(frames_per_batch, int) or frames_per_batch < 1 or frames_per_batch % env.num_envs:
            want, near = (
                f"a positive multiple of num_envs={env.num_envs}",
                max(1, round(frames_per_batch / env.num_envs)) * env.num_envs,
            )
            raise ConfigError(explain("frames_per_batch", want, str(frames_per_batch), f"Pass for example {near}"))
        if total_frames is not None and (not isinstance(total_frames, int) or total_frames < 1):
            fix = "Leave it out to collect without end"
            raise ConfigError(explain("total_frames", "a positive integer or None", str(total_frames), fix))
        if seed is not None:
            env.seed(seed)
        self.env, self.policy = env, policy
        self.frames_per_batch, self.total_frames = frames_per_batch, total_frames
        self.frames = 0
        self._native = isinstance(getattr(env, "base_env", env), NativeEnv)
        make = Loop if not compile else CompiledLoop if self._native else CompiledPolicyLoop
        self._loop = make(env, policy, frames_per_batch // env.num_envs, check)

    def collect(self) -> TensorDict:
        """Collect one rollout."""
        data = self._loop.run()
        self.frames += self.frames_per_batch
        return data

    def state_dict(self) -> dict[str, Any]:
        """Return how many frames there were, what transforms have learnt, and where a native environment is."""
        state: dict[str, Any] = {"frames": self.frames, "seed": self.env._seed_value, "drawn": self.env._actions_drawn}
        state["learnt"] = [env.transform.state_dict() for env in _transformed(self.env)]
        if self._native:
            env: Any = self.env
            root = self._loop.root
            state["env"] = env.state.to_dict()
            state["root"] = None if root is None else {key: value.clone() for key, value in root.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned; any other environment than a native one begins new episodes there."""
        env: Any = self.env
        self.frames = state["frames"]
        for outer, learnt in zip(_transformed(env), state["learnt"], strict=True):
            outer.transform.load_state_dict(learnt)
        if not self._native:  # other episodes than those of the beginning
            return env.seed((state["seed"] + self.frames) % 2**32)
        env.seed(state["seed"])
        env._actions_drawn = state["drawn"]
        env.set_state(TensorDict(state["env"], env.batch_size, env.device))
        if state["root"] is not None:
            self._loop.continue_from(state["root"])

    def __iter__(self) -> Iterator[TensorDict]:
        while self.total_frames is None or self.frames < self.total_frames:
            yield self.collect()

    def __len__(self) -> int:
        if self.total_frames is None:
            raise TypeError("This collector has no end: it was made with total_frames=None.")
        return -(-self.total_frames // self.frames_per_batch)

    def __repr__(self) -> str:
        end = self.total_frames or "endless"
        return f"Collector({type(self.env).__name__}, frames={self.frames}/{end}, {self.frames_per_batch} per batch)"


def _transformed(env: Any) -> Iterator[Any]:
    """Yield the transformed environments from the outermost to the innermost."""
    while hasattr(env, "transform"):
        yield env
        env = env.env


class CompiledPolicyLoop(Loop):
    """The loop of an environment that cannot be compiled: policy and writing are one function."""

    def __init__(self, env: Env, policy: Any, num_steps: int, check: bool = True):
        super().__init__(env, policy, num_steps, check)
        self._compiled: Compiled | None = Compiled(self._act_and_write)
        self._rows: list[list[Tensor]] = []

    def _act(self, t: int, noise: Any) -> None:
        if self._compiled is None or self._outs is None:  # the first step is eager: it allocates, and sizes lazy layers
            return super()._act(t, noise)
        if not self._rows:
            self._rows = [[*root.values(), *out.values()] for root, out in zip(self._roots, self._outs, strict=False)]
        tensors = self._rows[t] if noise is None else [*self._rows[t], noise]
        try:
            self._compiled(tensors)
        except CompileError as error:
            self._compiled = None
            warn_eager(f"The policy that steps {type(self.env).__name__}", error, stacklevel=6)
            super()._act(t, noise)

    def _act_and_write(self, tensors: list[Tensor]) -> tuple[()]:
        assert self._outs is not None
        given = iter(tensors)
        root = dict(zip(self._roots[0], given, strict=False))
        rows = dict(zip(self._outs[0], given, strict=False))
        for key, value in self.policy(root, next(given, None)).items():
            if key in rows:
                rows[key].copy_(value)
        return ()


class CompiledLoop(Loop):
    """The same loop with ``chunk`` steps compiled into one function: policy, environment, reset and write.

    Resets are computed at every step and merged, since compiled code does not branch on data. Random numbers are drawn outside. A
    longer chunk is faster and takes far longer to compile (4 steps: twice the speed of 1, five times its compilation).
    """

    def __init__(self, env: Env, policy: Any, num_steps: int, check: bool = True, chunk: int = 2):
        super().__init__(env, policy, num_steps, check)
        self.chunk = next(k for k in range(min(chunk, num_steps), 0, -1) if num_steps % k == 0)
        self._compiled: Any = compile_graph(self._many_steps)

    @torch.no_grad()
    def run(self, break_when_any_done: bool = False) -> TensorDict:
        """Collect ``num_steps`` steps. The first rollout is eager: it allocates what the policy returns and sizes lazy layers."""
        if self._compiled is None or self._outs is None or break_when_any_done:
            return super().run(break_when_any_done)
        self._begin()
        root = {key: row.clone() for key, row in self._roots[0].items()}
        noise = self.policy.noise(self.num_steps)
        try:
            for t in range(0, self.num_steps, self.chunk):
                written = {key: value[t : t + self.chunk] for key, value in self._written.items()}
                root = self._compiled(root, None if noise is None else noise[t : t + self.chunk], written)
        except TorchDynamoException as error:
            self._compiled = None
            warn_eager(f"The collection from {type(self.env).__name__}", error, stacklevel=5)
            return super().run()
        for key, row in self._roots[self.num_steps].items():
            row.copy_(root[key])
        return self._finish(self.num_steps)

    @property
    def _written(self) -> dict[Any, Tensor]:
        """The memory that steps write: of the flags only the one tensor they share."""
        flags = {(keys.NEXT, key) for key in keys.FLAGS} | set(keys.FLAGS)
        return {key: value for key, value in self.memory.items() if key not in flags}

    def _many_steps(self, root: Leaves, noise: Any, memory: dict[Any, Tensor]) -> Leaves:
        assert self._outs is not None
        for k in range(self.chunk):
            out = self.policy(root, None if noise is None else noise[k])
            nxt = self.env._step(out[keys.ACTION])
            flags = torch.stack((nxt[keys.TERMINATED], nxt.get(keys.TRUNCATED, torch.zeros_like(nxt[keys.TERMINATED]))))
            done = flags.any(dim=0)
            fresh = self.env._reset(done)
            states = self._states[0] if self._states else {}
            memory["flags"][k].copy_(flags)
            memory[keys.NEXT, keys.REWARD][k].copy_(nxt[keys.REWARD])
            for key in root:
                memory[key][k].copy_(root[key])
                if key not in states:
                    memory[(keys.NEXT, *keys.as_tuple(key))][k].copy_(nxt[key])
            for key in self._outs[0]:
                if key not in states:
                    memory[key][k].copy_(out[key])
            begun = {key: torch.where(align(done, nxt[key]), fresh[key], nxt[key]) for key in root if key not in states}
            root = begun | {key: torch.where(align(done, out[key]), 0.0, out[key]) for key in states}
        return root
