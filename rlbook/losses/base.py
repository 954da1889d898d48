"""What every loss shares: it reads keys, names its terms, and sums them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from rlbook import keys
from rlbook.errors import ConfigError, MissingKeyError, SpecError, explain
from rlbook.typing import Key


class Loss(nn.Module):
    """A module from a batch to its loss terms.

    ``loss_fn(batch)`` returns a TensorDict with one ``loss_*`` entry per term, detached diagnostics, and ``loss``: the sum of the
    terms. The gradient of each term reaches only the modules that it trains, so one ``loss_fn(batch)["loss"].backward()`` is
    right with any number of optimizers.

    Hyper-parameters set through :meth:`hyper` are 0-dimensional buffers: ``loss_fn.clip_eps = 0.1`` takes effect at once, in
    compiled code as well.
    """

    @property
    @abstractmethod
    def in_keys(self) -> tuple[Key, ...]:
        """The entries of a batch that this loss reads."""

    @abstractmethod
    def terms(self, batch: TensorDictBase) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the loss terms (named ``loss_*``, scalars) and the diagnostics (scalars)."""

    def forward(self, batch: TensorDictBase) -> TensorDict:
        """Compute all terms of a batch ``[*]``.

        Raises:
            MissingKeyError: the batch lacks one of ``in_keys``.
            SpecError: a number per step has a trailing dimension.
        """
        return TensorDict(self.compute(batch), [])

    def compute(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Return what :meth:`forward` does as a plain dictionary, which costs less to make."""
        if not torch.compiler.is_compiling():
            self.check_batch(batch)
        terms, diagnostics = self.terms(batch)
        detached = {name: value.detach() for name, value in diagnostics.items()}
        return {**terms, **detached, keys.LOSS: torch.stack(tuple(terms.values())).sum()}

    def check_batch(self, batch: TensorDictBase) -> None:
        """Raise where an entry that this loss reads is missing, or is a number per step with a trailing 1."""
        in_keys = self.in_keys
        for key, value in zip(in_keys, read(batch, in_keys, self), strict=True):
            if key in PER_STEP and value.shape != batch.batch_size:
                want, got = f"of shape {list(batch.batch_size)}", f"{list(value.shape)}"
                fix = "Drop the trailing dimension, or convert the data with rlbook.interop.from_torchrl"
                raise SpecError(explain(f"batch[{keys.pretty(key)!r}]", want, got, fix))

    def hyper(self, **values: float) -> None:
        """Register hyper-parameters that may change while training; call it once the modules are set, to live on their device."""
        device = next((parameter.device for parameter in self.parameters()), None)
        for name, value in values.items():
            if not isinstance(value, int | float) or value != value:
                raise ConfigError(explain(name, "a number", repr(value), f"Pass for example {name}=0.1"))
            self.register_buffer(name, torch.tensor(float(value), device=device))

    def __setattr__(self, name: str, value: Any) -> None:
        buffer = self.__dict__.get("_buffers", {}).get(name)
        if buffer is not None and isinstance(value, int | float):
            buffer.fill_(value)
        else:
            super().__setattr__(name, value)


def read(batch: TensorDictBase, in_keys: Sequence[Key], loss_fn: Loss) -> list[Tensor]:
    """Return the entries that a loss reads; raise MissingKeyError where one is missing."""
    values = [batch.get(key, None) for key in in_keys]
    for key, value in zip(in_keys, values, strict=True):
        if value is None:
            got = f"the keys {sorted(keys.pretty(k) for k in batch.keys(True, True))}"
            want, fix = f"one with {keys.pretty(key)!r}", MISSING.get(key, f"Add {keys.pretty(key)!r}")
            raise MissingKeyError(explain(f"A batch for {type(loss_fn).__name__}", want, got, fix))
    return values


PER_STEP: frozenset[Key] = frozenset(
    {keys.LOG_PROB, keys.ADVANTAGE, keys.VALUE_TARGET, keys.VALUE, (keys.NEXT, keys.REWARD), (keys.NEXT, keys.DONE)}
)

MISSING: dict[Key, str] = {
    keys.ADVANTAGE: "Run an estimator on the rollout first: data = GAE(value, gamma=0.99, gae_lambda=0.95)(data)",
    keys.VALUE_TARGET: "Run an estimator on the rollout first: data = GAE(value, gamma=0.99, gae_lambda=0.95)(data)",
    keys.LOG_PROB: "Collect with the actor that is trained: it writes the log-probability of its actions",
}
