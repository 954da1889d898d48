"""Anything callable is a policy: this file turns it into the one shape that the hot loop calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import MissingKeyError, PolicyError, SpecError, explain
from rlbook.typing import Leaves

if TYPE_CHECKING:
    from rlbook.envs.base import Env


class StepPolicy(Protocol):
    """What the loop calls: random numbers for a whole rollout first, then one step at a time on plain dictionaries."""

    open_loop: bool
    """Whether the noise is the actions, whatever is observed."""

    def noise(self, steps: int) -> Any:
        """Draw the random numbers of ``steps`` steps, indexable by the step, or None."""

    def initial_state(self) -> Leaves:
        """Return what the policy remembers when an episode begins, zeros ``[*batch, ...]``: entries it reads and returns anew."""
        return {}

    def give_back(self, frames: int) -> None:
        """Hear for how many frames, over all environments, random numbers were drawn that the rollout had no use for."""

    def __call__(self, root: Leaves, noise: Any) -> Leaves:
        """Return ``action``, the next state, and whatever else the policy outputs."""
        ...


def as_policy(policy: Any, env: Env) -> StepPolicy:
    """Adapt a policy to the loop.

    Args:
        policy: None (uniform random actions); an object with ``act`` and ``draw_noise`` such as an
            :class:`~rlbook.modules.Actor`; a TensorDictModule, or any callable whose argument is named ``td`` or ``tensordict``
            (gets a TensorDict); any other module or function (gets the observation entries its arguments name, or the one there
            is) that returns the action, a dictionary or a TensorDict with an ``action``.

    Raises:
        PolicyError: it cannot be called, or its arguments name no observation of the environment.
    """
    if policy is None:
        return _Random(env)
    if hasattr(policy, "act") and hasattr(policy, "draw_noise"):
        return _Acting(policy, env)
    if not callable(policy):
        fix = "Pass an Actor, a TensorDictModule, an nn.Module or a function of the observation"
        raise PolicyError(explain("A policy", "callable", type(policy).__name__, fix))
    if hasattr(policy, "in_keys") and hasattr(policy, "out_keys"):
        return _OfTensorDict(policy, env)
    arguments = _positional(policy.forward if isinstance(policy, torch.nn.Module) else policy)
    if arguments and arguments[0] in ("td", "tensordict"):
        return _OfTensorDict(policy, env)
    return _OfObservation(policy, env, arguments)


def check_output(out: Any, env: Env) -> None:
    """Raise PolicyError unless ``out`` holds a valid action for every environment (compiled code looks for the key only)."""
    action = out.get(keys.ACTION, None) if isinstance(out, Mapping | TensorDictBase) else out
    if action is None:
        got = f"the keys {sorted(map(str, out.keys()))}"
        raise PolicyError(
            explain("What a policy returns", "an action, or have the key 'action'", got, "Rename its output to 'action'")
        )
    if torch.compiler.is_compiling():
        return
    try:
        env.check_action(action)
    except (SpecError, AttributeError) as error:
        raise PolicyError(f"The policy returned an action that the environment does not take. {error}") from error


class _Random(StepPolicy):
    open_loop = True

    def __init__(self, env: Env):
        self.env = env

    def noise(self, steps: int) -> Any:
        return self.env.random_actions(steps)

    def __call__(self, root: Leaves, noise: Any) -> Leaves:
        return {keys.ACTION: noise}


class _Acting(StepPolicy):
    """The fast path: an actor that maps observation tensors to action tensors."""

    open_loop = False

    def __init__(self, actor: Any, env: Env):
        self.env, self.actor = env, actor

    def initial_state(self) -> Leaves:
        begin = getattr(self.actor, "initial_state", None)
        return {} if begin is None else begin(self.env.batch_size, self.env.device)

    def noise(self, steps: int) -> Any:
        return self.actor.draw_noise((steps, *self.env.batch_size), self.env.device)

    def give_back(self, frames: int) -> None:
        if hasattr(self.actor, "give_back"):
            self.actor.give_back(frames)

    def __call__(self, root: Leaves, noise: Any) -> Leaves:
        return self.actor.act(root, noise)


class _OfTensorDict(StepPolicy):
    """A module that reads and writes a TensorDict."""

    open_loop = False

    def __init__(self, module: Callable[..., Any], env: Env):
        self.env, self.module = env, module

    def noise(self, steps: int) -> None:
        return None

    def __call__(self, root: Leaves, noise: Any) -> Leaves:

        td = TensorDict(keys.nest(root), self.env.batch_size, self.env.device)
        try:
            out = self.module(td)
        except KeyError as error:
            got = f"the keys {sorted(map(str, root))}"
            raise MissingKeyError(
                explain(f"What the policy reads ({error.args[0]})", "an observation entry", got, "Change its in_keys")
            ) from error
        if isinstance(out, Tensor):
            return {keys.ACTION: out}
        out = td if out is None else out
        if not isinstance(out, TensorDictBase):
            raise PolicyError(
                explain(
                    "What a policy returns", "a TensorDict or a tensor", type(out).__name__, "Return td with td['action'] set"
                )
            )
        new: Leaves = {key: value for key, value in out.items(True, True) if key not in root}
        check_output(new, self.env)
        return new


class _OfObservation(StepPolicy):
    """A module or function of observation tensors that returns the action."""

    open_loop = False

    def __init__(self, function: Callable[..., Any], env: Env, arguments: list[str]):
        self.env, self.function = env, function
        available = {keys.pretty(key).replace(".", "_"): key for key in env.observation_spec.leaves()}
        named = [available[name] for name in arguments if name in available]
        if named:
            self.inputs = named
        elif len(available) == 1:
            self.inputs = list(available.values())
        elif keys.OBSERVATION in env.observation_spec.leaves():
            self.inputs = [keys.OBSERVATION]
        else:
            got, fix = (
                f"({', '.join(arguments)})",
                f"Name its arguments after the entries it reads: {', '.join(available)}; or take one argument named td",
            )
            raise PolicyError(explain("The arguments of a policy function", "observation entries", got, fix))

    def noise(self, steps: int) -> None:
        return None

    def __call__(self, root: Leaves, noise: Any) -> Leaves:
        try:
            out = self.function(*(root[key] for key in self.inputs))
        except Exception as error:
            if self.env.batch_size:
                first = root[self.inputs[0]]
                where = f"{keys.pretty(self.inputs[0])} is {list(first.shape)} here, all {self.env.num_envs} environments at once"
                error.add_note(f"This was raised by the policy: {where}. Index with observation[..., 0], not observation[0].")
            raise
        if not isinstance(out, Mapping | TensorDictBase):
            out = {keys.ACTION: out if isinstance(out, Tensor) else self._tensor(out)}
        check_output(out, self.env)
        return dict(out.items())

    def _tensor(self, action: Any) -> Tensor:
        try:
            return torch.as_tensor(action, device=self.env.device)
        except (RuntimeError, TypeError, ValueError) as error:
            fix = "Look for a missing return" if action is None else "Return numbers or a tensor"
            raise PolicyError(
                explain("What a policy returns", f"an action, {self.env.action_spec}", repr(action), fix)
            ) from error


def _positional(function: Any) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
