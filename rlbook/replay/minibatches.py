"""Shuffled minibatches of a rollout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlbook import keys
from rlbook.errors import ConfigError, MissingKeyError, check_count, explain
from rlbook.typing import Key


def minibatches(
    data: TensorDictBase,
    size: int,
    *,
    epochs: int = 1,
    sequence_len: int | None = None,
    in_keys: Sequence[Key] | None = None,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[TensorDict]:
    """Yield every row of a rollout once per epoch, in random order.

    A minibatch is a copy. Where it holds all rows, their order makes no difference to a loss, which is a mean over them: they
    come in order, every epoch in the same TensorDict, and no random number is drawn.

    Args:
        data: a rollout with any batch dimensions ``[*]``, for example ``[N, T]``.
        size: rows of a minibatch (sequences with ``sequence_len``); the last one of an epoch is smaller where they do not divide.
        epochs: passes over the data.
        sequence_len: cut the rollouts into sequences of so many steps, and shuffle those: for recurrent networks, which start
            from the state stored at the first step of each. It divides the steps of the rollout.
        in_keys: only these entries, for example ``loss_fn.in_keys`` (fewer entries, fewer copies); all by default.
        drop_last: leave a smaller last minibatch out (compiled code compiles again for it).
        generator: of the random order; torch's global CPU generator by default.

    Yields:
        TensorDict ``[size]``, with ``sequence_len`` ``[size, sequence_len]``.

    Raises:
        ConfigError: ``size`` is not in ``[1, number of rows]``, or ``sequence_len`` does not divide the rollout.
        MissingKeyError: the data lack one of ``in_keys``.

    Example:
        >>> from rlbook import CartPole
        >>> [len(batch) for batch in minibatches(CartPole(num_envs=4).rollout(40), 64)]
        [64, 64, 32]
    """
    check_count("epochs", epochs, example=1)
    in_keys = [in_keys] if isinstance(in_keys, str) else in_keys
    names = in_keys if in_keys is not None else list(data.keys(True, True))
    inner = () if sequence_len is None else (sequence_len,)
    flat = flat_rows(data, names) if sequence_len is None else flat_sequences(data, names, sequence_len)
    count = data.batch_size.numel() // (sequence_len or 1)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= count:
        raise ConfigError(explain("size", f"in [1, {count}], the rows of the data", str(size), "Collect more, or ask for less"))
    if size == count:
        whole = TensorDict(keys.nest({key: value.clone() for key, value in flat.items()}), (count, *inner))
        yield from (whole for _ in range(epochs))
        return
    for _ in range(epochs):
        permutation = torch.randperm(count, generator=generator).to(data.device or "cpu")
        for rows in permutation.split(size):
            if drop_last and len(rows) < size:
                continue
            yield TensorDict(keys.nest({key: _take(value, rows) for key, value in flat.items()}), (len(rows), *inner))


def _take(value: Tensor | TensorDictBase, rows: Tensor) -> Tensor | TensorDictBase:
    """Copy rows, of an action that is a dictionary too."""
    return value.index_select(0, rows) if isinstance(value, Tensor) else value[rows]


def flat_sequences(data: TensorDictBase, in_keys: Sequence[Key], length: int) -> dict[Key, Tensor]:
    """Cut entries ``[*, T, ...]`` into sequences ``[S, length, ...]``.

    Raises:
        ConfigError: ``length`` does not divide T.
    """
    steps = data.batch_size[-1] if data.batch_dims else 0
    if isinstance(length, bool) or not isinstance(length, int) or length < 1 or steps % length:
        fix = "Pass the steps of the rollout for whole ones"
        raise ConfigError(explain("sequence_len", f"a divisor of {steps}, the steps of the data", repr(length), fix))
    rows = flat_rows(data, in_keys)  # for its errors
    return {key: data[key].reshape(-1, length, *value.shape[1:]) for key, value in rows.items()}


def flat_rows(data: TensorDictBase, in_keys: Sequence[Key]) -> dict[Key, Tensor]:
    """Flatten entries ``[N, T, ...]`` to ``[T * N, ...]``, time first as in a collector's memory, so that nothing is copied."""
    order = tuple(reversed(range(data.batch_dims)))

    def flatten(value: Tensor) -> Tensor:
        return value.permute(*order, *range(len(order), value.ndim)).flatten(0, len(order) - 1)

    try:
        return {key: flatten(data[key]) for key in in_keys}
    except KeyError as error:
        missing = [keys.pretty(key) for key in in_keys if data.get(key, None) is None]
        got = f"the keys {sorted(keys.pretty(key) for key in data.keys(True, True))}"
        fix = "An estimator such as GAE adds advantages and value targets; the policy, its log-probabilities"
        raise MissingKeyError(explain("The data", f"a rollout with {missing}", got, fix)) from error
