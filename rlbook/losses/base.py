"""What every loss shares: it reads keys, names its terms, and sums them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rlbook import keys
from rlbook.errors import ConfigError, MissingKeyError, SpecError, explain
from rlbook.losses.targets import PREFIX, copy_to_targets, freeze, target_pairs

if TYPE_CHECKING:
    from rlbook.distributions import Distribution
    from rlbook.typing import Key

Terms = tuple[dict[str, Tensor], dict[str, Tensor]]
"""The loss terms (named ``loss_*``, scalars) and the diagnostics (scalars, or one number per row)."""


class Loss(nn.Module):
    """A module from a batch to its loss terms.

    ``loss_fn(batch)`` returns a TensorDict with one ``loss_*`` entry per term, detached diagnostics, and ``loss``: the sum of the
    terms. The gradient of each term reaches only the modules that it trains, as the table :attr:`trains` says, so one
    ``loss_fn(batch)["loss"].backward()`` is right with any number of optimizers.

    Hyper-parameters set through :meth:`hyper` are 0-dimensional buffers: ``loss_fn.clip_eps = 0.1`` takes effect at once, in
    compiled code as well. Random numbers come from :meth:`draw`, before the terms are computed: compiled and eager code see the
    same ones.
    """

    trains: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The gradient-routing table: each term, and the modules (or parameters) of the loss that its gradient reaches."""

    optional_keys: ClassVar[tuple[Key, ...]] = ()
    """Entries that are read where a batch has them, such as the weights of prioritized replay."""

    _only: Collection[str] | None = None
    _noisy: list[Any] | None = None
    _seen = False

    @property
    @abstractmethod
    def in_keys(self) -> tuple[Key, ...]:
        """The entries of a batch that this loss reads."""

    @abstractmethod
    def terms(self, batch: TensorDictBase, noise: Mapping[str, Tensor]) -> Terms:
        """Return the loss terms and the diagnostics of a batch; ``noise`` is what :meth:`draw` returned."""

    def draw(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Draw the random numbers that the terms of a batch need; none by default."""
        return {}

    def forward(
        self, batch: TensorDictBase, noise: Mapping[str, Tensor] | None = None, only: Collection[str] | None = None
    ) -> TensorDict:
        """Compute all terms of a batch ``[*]``.

        Args:
            batch: the entries that :attr:`in_keys` lists.
            noise: random numbers as from :meth:`draw`; drawn here by default.
            only: these terms and no others, where a loss has parts that can be left out.

        Raises:
            MissingKeyError: the batch lacks one of ``in_keys``.
            SpecError: a number per step has a trailing dimension.
        """
        return TensorDict(self.compute(batch, noise, only), [])

    def compute(
        self, batch: TensorDictBase, noise: Mapping[str, Tensor] | None = None, only: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return what :meth:`forward` does as a plain dictionary, which costs less to make."""
        if not torch.compiler.is_compiling():
            self.check_batch(batch)
            if not self._seen:
                self._look(batch)
        if noise is None:
            noise = self.prepare(batch)
        self._only = only
        terms, diagnostics = self.terms(batch, noise)
        if only is not None:
            terms = {name: value for name, value in terms.items() if name in only}
        detached = {name: value.detach() for name, value in diagnostics.items()}
        total = torch.stack(tuple(terms.values())).sum() if len(terms) != 1 else next(iter(terms.values()))
        return {**terms, **detached, keys.LOSS: total}

    def wants(self, term: str) -> bool:
        """Say whether a term is asked for: what only others need can be left out."""
        return self._only is None or term in self._only

    def prepare(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Draw what a step needs: :meth:`draw`, and new noise for noisy layers."""
        if not self._seen and not torch.compiler.is_compiling():
            self._look(batch)
        if self._noisy is None:
            self._noisy = [module for module in self.modules() if hasattr(module, "resample")]
        for module in self._noisy:
            module.resample()
        return self.draw(batch)

    @torch.no_grad()
    def _look(self, batch: TensorDictBase) -> None:
        """Look closer at the first batch, and let lazy layers find their sizes; targets then start as copies, as always.

        A target may be lazy where what it follows is not, after acting; and neither, after loading.
        """
        self.check_batch(batch)
        self._check_values(self.entries(batch))
        if any(is_lazy(parameter) for _, parameter in super().named_parameters()):
            self._only = None
            self.terms(batch, self.draw(batch))
            copy_to_targets(self)
        else:
            for _, target in target_pairs(self):
                freeze(target)
        self._seen = True

    def entries(self, batch: TensorDictBase) -> dict[Key, Tensor]:
        """Return what this loss reads of a batch: :attr:`in_keys`, and of :attr:`optional_keys` those there are.

        Raises:
            MissingKeyError: one of ``in_keys`` is not there.
            SpecError: a ``mask``, which this loss does not read, says that some steps only pad a sequence.
        """
        in_keys = self.in_keys
        found = {key: batch.get(key, None) for key in (*in_keys, *self.optional_keys)}
        for key in (key for key in in_keys if found[key] is None):
            got = f"the keys {sorted(keys.pretty(k) for k in batch.keys(True, True))}"
            want, fix = f"one with {keys.pretty(key)!r}", MISSING.get(key, f"Add {keys.pretty(key)!r}")
            raise MissingKeyError(explain(f"A batch for {type(self).__name__}", want, got, fix))
        mask = None if keys.MASK in found else batch.get(keys.MASK, None)
        if mask is not None and (mask.is_cpu or not self._seen) and not mask.all():  # a GPU is asked once: that means waiting
            got, fix = f"{int((~mask).sum())} with mask False", "Pass the others: batch[batch['mask']]"
            raise SpecError(explain(f"The steps that {type(self).__name__} learns from", "real ones", got, fix))
        return {key: value for key, value in found.items() if value is not None}

    def check_batch(self, batch: TensorDictBase) -> None:
        """Raise where an entry is missing or is a number per step with a trailing 1, and where agents stand in time's place."""
        if batch.names[-1:] == [keys.AGENTS] and (keys.NEXT, keys.DONE) in self.in_keys:
            fix = "Pass by_agent(data, group, loss_fn.in_keys), or minibatches(..., sequence_len=...) of it"
            want, got = "sequences, time last", f"a group's steps {list(batch.batch_size)}, agents last"
            raise SpecError(explain("What networks with a memory learn from", want, got, fix))
        if batch.batch_dims == 1 and (keys.NEXT, keys.DONE) in self.in_keys:
            fix = "Pass data.unsqueeze(0) of one environment's rollout, or minibatches(..., sequence_len=...)"
            want, got = "sequences [*, T] of a batch", f"steps {list(batch.batch_size)}: no gradient would flow through time"
            raise SpecError(explain("What networks with a memory learn from", want, got, fix))
        entries = self.entries(batch)
        self._check_action(entries.get(keys.ACTION), batch)
        for key, value in entries.items():
            if key in PER_STEP and value.shape != batch.batch_size:
                want, got = f"of shape {list(batch.batch_size)}", f"{list(value.shape)}"
                fix = "Drop the trailing dimension, or convert the data with rlbook.interop.from_torchrl"
                raise SpecError(explain(f"batch[{keys.pretty(key)!r}]", want, got, fix))

    def _check_action(self, action: Any, batch: TensorDictBase) -> None:
        """Raise SpecError where actions have more or fewer dimensions than those of the policy."""
        policy = getattr(self, "actor", None) or getattr(self, "qvalue", None)
        shape = getattr(getattr(policy, "spec", None), "event_shape", None)
        if isinstance(action, Tensor) and shape is not None and action.ndim != batch.batch_dims + len(shape):
            want, got = f"of shape {[*batch.batch_size, *shape]}", f"{list(action.shape)}"
            raise SpecError(explain("batch['action']", want, got, "Keep actions as the policy returned them"))

    def _check_values(self, entries: Mapping[Key, Tensor]) -> None:
        """Raise SpecError for what would end in an error of torch's far from here; looked for in the first batch."""
        for key in (key for key, value in entries.items() if isinstance(value, Tensor) and value.is_inference()):
            fix = "Collect under torch.no_grad(), not under torch.inference_mode()"
            raise SpecError(explain(f"batch[{keys.pretty(key)!r}]", "a tensor to learn from", "an inference tensor", fix))
        action, spec = (
            entries.get(keys.ACTION),
            getattr(getattr(self, "actor", None) or getattr(self, "qvalue", None), "spec", None),
        )
        if action is not None and type(spec).__name__ == "Categorical" and action.numel():
            low, high = int(action.min()), int(action.max())
            if low < 0 or high >= spec.n:
                fix = "Pass the environment's action_spec to the policy"
                raise SpecError(explain("batch['action']", f"in 0..{spec.n - 1}", f"{low}..{high}", fix))

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """List what there is to train: not the targets' weights, which are parameters until lazy layers find their sizes."""
        for name, parameter in super().named_parameters(*args, **options):
            if parameter.requires_grad or not any(part.startswith(PREFIX) for part in name.split(".")):
                yield name, parameter

    def hyper(self, **values: float) -> None:
        """Register hyper-parameters that may change while training; call it once the modules are set, to live on their device.

        Raises:
            ConfigError: one is not a number in its range (see :data:`RANGES`), now or when it is changed.
        """
        for name, value in values.items():
            check_hyper(name, value)
            self.register_buffer(name, torch.tensor(float(value), device=self.device))

    @property
    def device(self) -> torch.device | None:
        """Where the parameters live; None without any."""
        return next((parameter.device for parameter in self.parameters()), None)

    def __setattr__(self, name: str, value: Any) -> None:
        held: Any = next((own for kind in ("_buffers", "_parameters") if name in (own := self.__dict__.get(kind, {}))), None)
        number = value.item() if type(value) is Tensor and not value.ndim and not value.requires_grad else value
        if held is None or not isinstance(number, Real):
            super().__setattr__(name, value)
            return
        if held[name] is None:
            fix = f"Pass {name}={number} to {type(self).__name__} when you make it"
            raise ConfigError(explain(name, "a number from the start, to be changed", "None", fix))
        check_hyper(name, number)
        with torch.no_grad():
            held[name].fill_(number)


RANGES = {"gamma": (0.0, 1.0), "target_entropy": (-math.inf, math.inf), "log_alpha": (-math.inf, math.inf)}
"""The least and the greatest value of a hyper-parameter; others are weights and widths, which are not negative."""


def check_hyper(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a number that a hyper-parameter of this name may have."""
    if not isinstance(value, Real) or value != value:
        raise ConfigError(explain(name, "a number", repr(value), f"Pass for example {name}=0.1"))
    low, high = RANGES.get(name, (0.0, math.inf))
    if not low <= float(value) <= high:
        want = f"in [{low:g}, {high:g}]" if high < math.inf else "at least 0"
        raise ConfigError(explain(name, want, repr(value), f"Pass for example {name}={0.99 if name == 'gamma' else 0.1}"))


def check_dist(dist: Distribution, loss_fn: Loss, *, gradient: bool = False, chance: bool = False) -> Distribution:
    """Return a policy's distribution, if it has what a loss needs.

    Args:
        dist: the distribution.
        loss_fn: the loss, for the message.
        gradient: its actions must carry a gradient to its parameters.
        chance: its actions must be drawn, with a probability.

    Raises:
        ConfigError: it has not.
    """
    no_gradient, no_chance = gradient and not dist.has_rsample, chance and dist.deterministic
    if no_gradient or no_chance:
        lacks = "actions with a gradient" if no_gradient else "actions that are drawn"
        fix = "Continuous actions have a gradient; make_actor(env, std='state') or std='shared' makes a policy that draws them"
        raise ConfigError(explain(f"The policy of {type(loss_fn).__name__}", f"one with {lacks}", type(dist).__name__, fix))
    return dist


def check_actor(actor: Any) -> None:
    """Raise ConfigError unless this is an actor; any object with a distribution is."""
    if not hasattr(actor, "dist"):
        raise ConfigError(explain("actor", "an Actor", type(actor).__name__, "Wrap the network: Actor(net, env.action_spec)"))


def check_value(name: str, head: Any) -> None:
    """Raise ConfigError unless this is a state-value head."""
    if not hasattr(head, "value") or hasattr(head, "members"):
        raise ConfigError(explain(name, "a ValueHead", type(head).__name__, "Wrap the network: ValueHead(net)"))


def check_single(qvalue: Any, fix: str) -> None:
    """Raise ConfigError where action values are those of an ensemble."""
    if qvalue.num_members > 1:
        raise ConfigError(explain("qvalue", "a single network", f"{qvalue.num_members} members", fix))


def check_kind(name: str, part: Any, kind: str) -> None:
    """Raise ConfigError unless a part of a loss is of a class of this name; a loss knows modules by name, it imports none."""
    if kind not in {cls.__name__ for cls in type(part).__mro__}:
        raise ConfigError(explain(name, f"a {kind}", type(part).__name__, f"Wrap the network: {kind}(net, env.action_spec)"))


def next_of(in_keys: Sequence[Key]) -> tuple[Key, ...]:
    """Return the same entries of the next step."""
    return tuple((keys.NEXT, *keys.as_tuple(key)) for key in in_keys)


def unique(*in_keys: Key) -> tuple[Key, ...]:
    """Return the keys in order, each once."""
    return tuple(dict.fromkeys(in_keys))


def weighted_mean(x: Tensor, batch: TensorDictBase) -> Tensor:
    """Return the mean of numbers per row, weighted by the batch's ``weight`` where prioritized replay has put one there."""
    weight = batch.get(keys.WEIGHT, None)
    return x.mean() if weight is None else (weight.detach() * x).mean()


def critic_terms(q: Tensor, target: Tensor, batch: TensorDictBase) -> Terms:
    """Return the squared errors of critics ``[n, *]``, summed over them, and what is worth watching."""
    error = q - target.detach()
    return {"loss_value": weighted_mean(error.square().sum(0), batch)}, {"q_mean": q.mean(), keys.TD_ERROR: error.abs().mean(0)}


PER_STEP: frozenset[Key] = frozenset(
    {
        *(keys.LOG_PROB, keys.ADVANTAGE, keys.VALUE_TARGET, keys.VALUE, keys.WEIGHT, keys.DISCOUNT),
        *((keys.NEXT, key) for key in (keys.REWARD, keys.DONE, keys.TERMINATED, keys.TRUNCATED)),
    }
)

_ESTIMATE = "Run an estimator on the rollout first: data = GAE(value, gamma=0.99, gae_lambda=0.95)(data)"

MISSING: dict[Key, str] = {
    keys.ADVANTAGE: _ESTIMATE,
    keys.VALUE_TARGET: _ESTIMATE,
    (keys.NEXT, keys.DONE): "Pass sequences as they were collected: they say where episodes end",
    keys.LOG_PROB: "Collect with the actor that is trained: it writes the log-probability of its actions",
    (keys.RECURRENT, "value"): "Collect with the policy Carry(actor, value), which keeps the critic's state",
    (keys.NEXT, keys.RECURRENT, "qvalue"): "A network with a memory learns from sequences: use R2D2Loss",
}
