"""``Composite``: the spec of a TensorDict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from typing_extensions import override

from rlbook.errors import MissingKeyError, SpecError, explain
from rlbook.keys import as_tuple, pretty
from rlbook.specs.base import Spec, TensorSpec, as_size, resolve_device, show
from rlbook.typing import DeviceLike, Key, Shape


@final
class Composite(Spec):
    """Named specs, nested like the TensorDict they describe.

    It reads like a mapping (``spec["next", "reward"]``, ``in``, ``keys``, ``items``, ``get``) and, as every spec, is not
    changed in place: :meth:`replace` and :meth:`exclude` return a new one. Its ``shape`` is its ``batch_shape``, which its
    entries' batch shapes begin with; its ``dtype`` is None. Values are TensorDicts; entries it does not name are ignored.

    Args:
        entries: key -> spec, or -> a nested mapping; a tuple of names is a nested key.
        batch_shape: batch dimensions that all entries share.
        device: where values live; entries are moved there. By default that of the entries.
        **named: more entries, for short: ``Composite(position=Unbounded(3))``.

    Raises:
        SpecError: an entry is not a spec, lacks the batch dimensions, or lives on another device than the rest.

    Example:
        >>> from rlbook.specs import Composite, Unbounded
        >>> spec = Composite({"observation": Unbounded(3), ("next", "reward"): Unbounded()})
        >>> spec.rand((8,))["next", "reward"].shape
        torch.Size([8])
    """

    def __init__(
        self,
        entries: Mapping[Any, Any] | None = None,
        *,
        batch_shape: Shape | int = (),
        device: DeviceLike = None,
        **named: Spec | Mapping[Any, Any],
    ):
        self.event_shape, self.batch_shape = torch.Size(), as_size(batch_shape)
        self._entries: dict[str, Spec] = {}
        for key, entry in {**(entries or {}), **named}.items():
            self._insert(as_tuple(key), entry, device)
        devices = {entry.device for entry in self._entries.values()}
        if len(devices) > 1:
            where = ", ".join(f"{key}: {entry.device}" for key, entry in self._entries.items())
            raise SpecError(explain("The entries of a Composite", "on one device", where, "Pass device=... to move them"))
        self.device = devices.pop() if devices else resolve_device(device)
        self.dtype = None  # type: ignore[assignment]
        self.shape = self.batch_shape
        self.num_uniform = sum(entry.num_uniform for entry in self.values())

    def _insert(self, key: tuple[str, ...], entry: Any, device: DeviceLike) -> None:
        name, rest = key[0], key[1:]
        if rest:
            group = self._entries.get(name)
            inner = {**(group._entries if isinstance(group, Composite) else {}), rest: entry}
            shape = group.batch_shape if isinstance(group, Composite) else self.batch_shape
            entry = Composite(inner, batch_shape=shape, device=device)
        elif isinstance(entry, Mapping):
            entry = Composite(entry, batch_shape=self.batch_shape, device=device)
        if not isinstance(entry, Spec):
            fix = "Pass for example Unbounded(3)"
            raise SpecError(explain(f"Entry {pretty(key)!r}", "a Spec or a mapping of specs", type(entry).__name__, fix))
        if entry.batch_shape[: len(self.batch_shape)] != self.batch_shape:
            want = f"with batch dimensions that begin with {show(self.batch_shape)}"
            raise SpecError(explain(f"Entry {name!r}", want, show(entry.batch_shape), "Call expand(*batch) on it first"))
        self._entries[name] = entry if device is None else entry.to(device)

    # The mapping ---------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """Return the entry of a key (``spec["next", "reward"]``), or the spec of a slice of the batch (``spec[0]``)."""
        if not _is_key(key):
            return self.index(key)
        entry = self.get(key)
        if entry is None:
            raise _missing(as_tuple(key), self._entries)
        return entry

    def get(self, key: Key, default: Any = None) -> Any:
        """Return the entry of a key, nested or not, or ``default``."""
        entry: Any = self
        for name in as_tuple(key):
            entry = entry._entries.get(name) if isinstance(entry, Composite) else None
        return default if entry is None else entry

    def __contains__(self, key: Key) -> bool:
        return self.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self):
        """Return the names at the first level."""
        return self._entries.keys()

    def values(self):
        """Return the specs at the first level."""
        return self._entries.values()

    def items(self):
        """Return the (name, spec) pairs at the first level."""
        return self._entries.items()

    def leaves(self) -> dict[Key, TensorSpec]:
        """Return every tensor's spec by its key, in the order in which ``from_uniform`` reads them."""
        found: dict[Key, TensorSpec] = {}
        for name, entry in self._entries.items():
            if isinstance(entry, Composite):
                found.update({(name, *as_tuple(key)): leaf for key, leaf in entry.leaves().items()})
            elif isinstance(entry, TensorSpec):
                found[name] = entry
        return found

    def replace(self, entries: Mapping[Any, Any]) -> Composite:
        """Return the spec with these entries, nested keys allowed, added or put in place of old ones."""
        return Composite({**self._entries, **entries}, batch_shape=self.batch_shape, device=self.device)

    def exclude(self, *keys: Key) -> Composite:
        """Return the spec without these keys, nested keys allowed.

        Raises:
            MissingKeyError: a key is not there.
        """
        entries = dict(self._entries)
        for key in keys:
            name, *rest = as_tuple(key)
            if key not in self:
                raise _missing(as_tuple(key), self._entries)
            if rest:
                entries[name] = entries[name].exclude(tuple(rest))  # type: ignore[attr-defined]
            if not rest or not len(entries[name].keys()):  # type: ignore[attr-defined]  # a group of nothing is none
                del entries[name]
        return Composite(entries, batch_shape=self.batch_shape, device=self.device)

    # The operations of a spec, entry by entry ----------------------------------------------------------------------------

    def _rebatch(self, drop: int, batch: torch.Size) -> Composite:
        entries = {key: entry._rebatch(drop, batch) for key, entry in self.items()}
        return Composite(entries, batch_shape=batch + self.batch_shape[drop:], device=self.device)

    def from_uniform(self, u: Tensor) -> TensorDict:
        """Split ``u`` over the leaves in order and map each part; arguments as for every spec."""
        self._check_uniform(u)
        parts = u.split([entry.num_uniform for entry in self._entries.values()], -1)
        values = {key: entry.from_uniform(part) for (key, entry), part in zip(self.items(), parts, strict=True)}
        return self._wrap(values, u.shape[:-1])

    def zero(self, batch: Shape | int = ()) -> TensorDict:
        """Return a TensorDict of every entry's zero, batch size ``[*batch, *shape]``."""
        return self._wrap({key: entry.zero(batch) for key, entry in self.items()}, as_size(batch))

    def _wrap(self, values: dict[str, Any], batch: torch.Size) -> TensorDict:
        return TensorDict(values, batch_size=batch + self.shape, device=self.device)

    def contains(self, x: Any, batch: Shape | None = None) -> bool:
        """Return whether every named entry is in ``x``, a TensorDict or mapping, and inside its spec.

        A TensorDict's own batch size tells the batch dimensions where ``batch`` is None.
        """
        if not isinstance(x, TensorDictBase | Mapping):
            return False
        batch = self._batch_of(x, batch)
        present = x.keys()
        return all(key in present and entry.contains(x[key], batch) for key, entry in self.items())

    def check(self, x: Any, key: Key = (), batch: Shape | None = None) -> None:
        """Raise an explained error that names the entry of ``x`` that is missing or wrong.

        Raises:
            MissingKeyError: an entry is missing.
            SpecError: an entry leaves its spec.
        """
        if not isinstance(x, TensorDictBase | Mapping):
            fix = f"Return the entries {', '.join(self)} in a TensorDict"
            raise SpecError(explain(pretty(key) or "The value", "a TensorDict", type(x).__name__, fix))
        batch, present = self._batch_of(x, batch), x.keys()
        for name, entry in self.items():
            path = (*as_tuple(key), name)
            if name not in present:
                raise _missing(path, x)
            entry.check(x[name], path, batch)

    def _batch_of(self, x: Any, batch: Shape | None) -> Shape | None:
        if batch is not None or not isinstance(x, TensorDictBase):
            return batch
        return x.batch_size[: max(0, len(x.batch_size) - len(self.batch_shape))]

    def project(self, x: Any) -> TensorDict:
        """Return a TensorDict of the named entries, each the nearest value inside its spec."""
        present = x.keys()
        for key in self:
            if key not in present:
                raise _missing((key,), x)
        values = {key: entry.project(x[key]) for key, entry in self.items()}
        return TensorDict(values, batch_size=x.batch_size if isinstance(x, TensorDictBase) else self.shape)

    def to(self, target: torch.device | torch.dtype | str) -> Composite:
        """Return the spec on another device; a dtype changes the floating-point entries only, as in ``nn.Module.to``."""

        def moved(entry: Spec) -> Spec:
            skip = isinstance(target, torch.dtype) and not isinstance(entry, Composite) and not entry.dtype.is_floating_point
            return entry if skip else entry.to(target)

        device = self.device if isinstance(target, torch.dtype) else target
        return Composite({key: moved(entry) for key, entry in self.items()}, batch_shape=self.batch_shape, device=device)

    def cardinality(self) -> int | float:
        """Return the number of different values of all entries together; ``math.inf`` when it is not finite."""
        return math.prod(entry.cardinality() for entry in self.values())

    @override
    def factors(self) -> list[int] | None:
        return [entry.num_values for entry in self.values()]

    def enumerate(self) -> TensorDict:
        """Return all combinations of the entries' values, the last entry fastest: batch size ``[num_values, *shape]``.

        Raises:
            SpecError: there are infinitely many, or more than 2**20.
        """
        digits = self._digits()
        values = {key: entry.enumerate()[digit] for (key, entry), digit in zip(self.items(), digits.unbind(-1), strict=True)}
        return self._wrap(values, torch.Size((len(digits),)))

    def _same_values(self, other: Any) -> bool:
        return self._entries == other._entries

    def __repr__(self) -> str:
        lines = [f"{key}: {entry!r}" for key, entry in self.items()]
        if self.batch_shape:
            lines.append(f"batch={show(self.batch_shape)}")
        body = ",\n".join(lines).replace("\n", "\n    ")
        return f"Composite(\n    {body})" if lines else "Composite()"


def _is_key(key: Any) -> bool:
    return isinstance(key, str) or (isinstance(key, tuple) and bool(key) and all(isinstance(part, str) for part in key))


def _missing(key: tuple[str, ...], present: Any) -> MissingKeyError:
    names = ", ".join(map(str, present.keys())) or "nothing"
    return MissingKeyError(explain(f"Entry {pretty(key)!r}", "present", f"only {names}", "Add it, or check its spelling"))
