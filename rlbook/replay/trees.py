"""The sum tree: draws rows in proportion to their priorities, and changes priorities, without touching all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from rlbook.errors import ConfigError, SpecError, check_count, explain
from rlbook.typing import DeviceLike

TreeBackend: TypeAlias = Literal["auto", "numba", "numpy", "torch"]

FAN_OUT = 16  # children of a node: few levels, of two cache lines each. Change it in _tree_kernels.py too
TOP = 512  # nodes of the top level at most: as many as are quickly added up
LARGEST = 1e200  # a larger priority is refused, so that no sum can overflow


class SumTree:
    """Priorities of ``capacity`` rows, and above them the sums that find a row by its cumulated priority.

    Lay the priorities end to end, each row an interval as long as its priority. A uniform point, a *mass* in ``[0, total)``, then
    falls on row ``i`` with probability ``p_i / total``. Finding that row by adding up a million priorities is slow, so every 16
    neighbours have a parent that holds their sum, every 16 parents one of their own, up to a top level of at most 512 nodes::

        top      |          9          |          6        | ...    mass 11 is in the second node: 11 - 9 = 2 is left
        leaves   | 1 | 0 | 5 | 3 | ...  | 2 | 4 | 0 | ...            ... of which its first child takes 2: row 17

    ``find`` adds up the top level (once after each update), looks where the mass falls, subtracts what lies before that node, and
    goes on among its 16 children. ``update`` writes leaves and recomputes the nodes above them from *all their children*. Adding
    differences instead would let rounding errors grow for ever; so a node depends on the present leaves only,
    whatever came before. A second tree of the same shape holds minima instead of sums, for the importance weights.

    Nodes are float64: a sum of a million float32 numbers is off by more than a small priority, and rows would be drawn for their
    neighbours' mass.

    Args:
        capacity: number of rows.
        device: where priorities live and rows are found.
        backend: "numba" is compiled code for CPUs, "numpy" takes its place where numba does not work, "torch" runs on every
            device; "auto" takes the fastest there is.

    Raises:
        ConfigError: ``capacity`` is not a positive integer, or ``backend`` is unknown or cannot work on this device.

    Example:
        >>> import torch
        >>> tree = SumTree(4)
        >>> tree.update(torch.tensor([0, 1, 3]), torch.tensor([1.0, 2.0, 5.0]))
        >>> tree.find(torch.tensor([0.5, 1.0, 7.9]))
        tensor([0, 1, 3])
        >>> tree.total, tree.min
        (8.0, 1.0)

    Source: T. Schaul et al., Prioritized Experience Replay (2016), appendix B.2.1.
    """

    def __init__(self, capacity: int, device: DeviceLike = None, backend: TreeBackend = "auto"):
        check_count("capacity", capacity, example=100_000)
        self.capacity, self.device = capacity, torch.device(device or "cpu")
        self.backend, self._functions = _choose(backend, self.device)
        starts = _starts(capacity)
        self._sums = torch.zeros(starts[-1], dtype=torch.float64, device=self.device)
        self._lows = torch.full_like(self._sums, torch.inf)
        self._nodes = _nodes(self._sums, self._lows, starts, self.backend)
        self._edges: Any = None

    # ---- priorities ----------------------------------------------------------------------------------------------------------
    def update(self, rows: Tensor, priorities: Tensor | float) -> None:
        """Set the priorities of rows; where a row comes more than once, the last one counts.

        Args:
            rows: int64 ``[B]``, in [0, capacity).
            priorities: ``[B]`` or one number for all, in [0, 1e200]; a row with priority 0 is never drawn.

        Raises:
            SpecError: a row or a priority is out of range, or the shapes differ; nothing is changed.
        """
        rows = self._as_rows(rows)
        p = torch.as_tensor(priorities).detach().to(self.device, torch.float64)
        p = (p if p.ndim else p.expand(rows.shape)).contiguous()
        if rows.ndim != 1 or p.shape != rows.shape:
            fix = "Give one priority for each row, with no further dimension"
            raise SpecError(explain("rows and priorities", "of one shape [B]", f"{list(rows.shape)} and {list(p.shape)}", fix))
        if not rows.numel():
            return
        if not self._functions.update(self._nodes, self.capacity, rows, p):
            self._check_rows(rows)
            got = p[~((p >= 0) & (p <= LARGEST))][0].item()
            fix = "A NaN or infinite one often is a loss that diverged; clip or skip it"
            raise SpecError(explain("priorities", f"finite numbers in [0, {LARGEST:g}]", str(got), fix))
        self._edges = None

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the priorities of rows ``[*]``, float64 ``[*]``."""
        rows = self._as_rows(rows)
        self._check_rows(rows)
        return self._sums.take(rows)

    @property
    def total(self) -> float:
        """The sum of all priorities."""
        return float(self._cumulated()[-1])

    @property
    def min(self) -> float:
        """The smallest positive priority; infinity if there is none."""
        return float(self._nodes.lows[-1].min())

    def __len__(self) -> int:
        return self.capacity

    def clear(self) -> None:
        """Set every priority to 0."""
        self._sums.zero_()
        self._lows.fill_(torch.inf)
        self._edges = None

    # ---- rows ----------------------------------------------------------------------------------------------------------------
    def find(self, mass: Tensor) -> Tensor:
        """Return the rows, int64 ``[B]``, in whose intervals the masses ``[B]`` in [0, total] lie.

        Row ``i`` owns ``[p_0 + ... + p_{i-1}, p_0 + ... + p_i)``; ``total`` itself belongs to the last row with a priority.

        Raises:
            ConfigError: no row has a priority.
            SpecError: a mass is out of range.
        """
        mass = mass.detach().to(self.device, torch.float64).contiguous()
        if mass.ndim != 1:
            raise SpecError(explain("mass", "of shape [B]", str(list(mass.shape)), "Flatten it: mass.flatten()"))
        edges, total = self._cumulated(), self.total
        if not total > 0:
            fix = "Set priorities first: tree.update(rows, priorities)"
            raise ConfigError(explain("A tree to sample from", "one with a positive priority", "none", fix))
        if not mass.numel():
            return torch.empty(0, dtype=torch.int64, device=self.device)
        rows = self._functions.find(self._nodes, edges, total * _ROUNDING, mass)
        if rows is None:
            got = str(mass[~((mass >= 0) & (mass <= total * _ROUNDING))][0].item())
            raise SpecError(explain("mass", f"in [0, total={total}]", got, "Draw it as torch.rand(B) * tree.total"))
        return rows

    def sample(self, uniforms: Tensor, stratified: bool = True) -> Tensor:
        """Return rows, int64 ``[B]``, drawn in proportion to their priorities.

        Args:
            uniforms: independent numbers ``[B]`` in [0, 1); float64 is best, for float32 knows only 2**24 of them.
            stratified: draw number ``k`` from the ``k``-th of ``B`` equal parts of the total: as often on average, more evenly in
                each batch. Else all are independent.

        Raises:
            ConfigError, SpecError: see :meth:`find`.
        """
        return self.draw(uniforms, stratified)[0]

    def draw(self, uniforms: Tensor, stratified: bool = True) -> tuple[Tensor, Tensor]:
        """Return what :meth:`sample` does, and the priorities of those rows, float64 ``[B]``."""
        if self.backend == "numba" and uniforms.ndim == 1 and uniforms.dtype is torch.float64:  # all of it in one kernel
            rows, priorities = np.empty(len(uniforms), np.int64), np.empty(len(uniforms))
            memory = self._nodes.flat_sums, self._nodes.starts
            if _load_kernels().draw(*memory, uniforms.numpy(), stratified, _ROUNDING, rows, priorities):
                return torch.from_numpy(rows), torch.from_numpy(priorities)
        mass = uniforms * self.total
        if stratified:
            parts = len(uniforms)
            mass = (torch.arange(parts, device=self.device) + uniforms) * (self.total / max(parts, 1))
        rows = self.find(mass)
        return rows, self._sums.take(rows)

    # ---- keeping -------------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Return the priorities, a view of the memory; the nodes above follow from them."""
        return {"priorities": self._sums[: self.capacity]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned, from any backend or device."""
        priorities: Tensor = state["priorities"]
        if priorities.shape != (self.capacity,):
            fix = f"Make the tree with capacity={priorities.numel()}"
            raise ConfigError(explain("A saved tree", f"of capacity {self.capacity}", f"one of {priorities.numel()}", fix))
        self.update(torch.arange(self.capacity), priorities)

    def check_valid(self) -> None:
        """Raise ConfigError when a priority is invalid or a node does not follow from its children."""
        sums, lows = ([torch.as_tensor(level) for level in tree] for tree in self._nodes[:2])
        leaves, fix = sums[0].flatten(), "Something else wrote to the memory; load the tree again"
        bad = ~((leaves >= 0) & (leaves <= LARGEST))
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ConfigError(explain(f"The priority of row {row}", f"in [0, {LARGEST:g}]", str(leaves[row].item()), fix))
        pairs = [(level.sum(-1), above) for level, above in pairwise(sums)]
        pairs += [(level.amin(-1), above) for level, above in pairwise(lows)]
        pairs += [(torch.where(leaves > 0, leaves, torch.inf), lows[0])]
        for expected, nodes in pairs:
            expected, nodes = expected.flatten(), nodes.flatten()[: expected.numel()]
            wrong = ~torch.isclose(nodes, expected, rtol=_ROUNDING - 1, atol=0.0)
            if wrong.any():
                i = int(wrong.nonzero()[0])
                raise ConfigError(explain("A node", f"{expected[i].item()}, as its children's", str(nodes[i].item()), fix))

    def __repr__(self) -> str:
        return f"SumTree(capacity={self.capacity:,}, device={str(self.device)!r}, backend={self.backend!r})"

    # ---- within --------------------------------------------------------------------------------------------------------------
    def _cumulated(self) -> Any:
        """Return where the top level's nodes begin, and the total after them: ``[nodes + 1]``."""
        if self._edges is None:
            self._edges = self._functions.edges(self._nodes.sums[-1].reshape(-1))
        return self._edges

    def _as_rows(self, rows: Tensor) -> Tensor:
        if rows.dtype is not torch.int64:
            raise SpecError(explain("rows", "int64", str(rows.dtype), "Convert them: rows.long()"))
        return rows.to(self.device).contiguous()

    def _check_rows(self, rows: Tensor) -> None:
        low, high = (int(x) for x in rows.aminmax()) if rows.numel() else (0, 0)
        if low < 0 or high >= self.capacity:
            got = str(low if low < 0 else high)
            raise SpecError(explain("rows", f"in [0, capacity={self.capacity})", got, "Count rows as batch['index'] does"))


_ROUNDING = 1 + 1e-9  # float64 sums of a few thousand numbers agree to 1e-12


class _Nodes(NamedTuple):
    """The memory of both trees as a backend sees it: levels ``[groups, 16]``, leaves first, in one array."""

    sums: list[Any]
    lows: list[Any]
    starts: Any
    flat_sums: Any
    flat_lows: Any


class _Functions(NamedTuple):
    """What a backend does.

    update: set leaves and the nodes above them; return False, with nothing changed, if a row or priority is out of range.
    edges: return where nodes ``[n]`` laid end to end begin, and the end of the last, ``[n + 1]``.
    find: return the rows at masses, or None if one is not in [0, end].
    """

    update: Callable[[_Nodes, int, Tensor, Tensor], bool]
    edges: Callable[[Any], Any]
    find: Callable[[_Nodes, Any, float, Tensor], Tensor | None]


def _starts(capacity: int) -> list[int]:
    """Return where each level begins in memory, and the end: levels of whole groups, the leaves first."""
    starts, nodes = [0], capacity
    while True:
        groups = -(-nodes // FAN_OUT)
        starts.append(starts[-1] + groups * FAN_OUT)
        if nodes <= TOP:
            return starts
        nodes = groups


def _nodes(sums: Tensor, lows: Tensor, starts: list[int], backend: str) -> _Nodes:
    a, b = (sums, lows) if backend == "torch" else (sums.numpy(), lows.numpy())
    levels = [[x[i:j].reshape(-1, FAN_OUT) for i, j in pairwise(starts)] for x in (a, b)]
    return _Nodes(levels[0], levels[1], np.asarray(starts), a, b)


# ---- NumPy ---------------------------------------------------------------------------------------------------------------------
def _update_numpy(nodes: _Nodes, capacity: int, rows: Tensor, priorities: Tensor) -> bool:
    at, p = rows.numpy(), priorities.numpy()
    if not (at.min() >= 0 and at.max() < capacity and p.min() >= 0 and p.max() <= LARGEST):
        return False
    nodes.flat_sums[at] = p  # in order: the last one stays
    nodes.flat_lows[at] = np.where(p > 0, p, np.inf)
    for level in range(1, len(nodes.sums)):
        at = at // FAN_OUT
        if len(at) > len(nodes.sums[level - 1]):
            at = np.arange(len(nodes.sums[level - 1]))
        children = np.ascontiguousarray(nodes.sums[level - 1].take(at, 0).T)  # [16, B]: whole rows are added at a time
        nodes.sums[level].reshape(-1)[at] = children.sum(0)
        children = np.ascontiguousarray(nodes.lows[level - 1].take(at, 0).T)
        nodes.lows[level].reshape(-1)[at] = children.min(0)
    return True


def _edges_numpy(top: Any) -> Any:
    return np.append(0.0, top.cumsum())


def _find_numpy(nodes: _Nodes, edges: Any, end: float, mass: Tensor) -> Tensor | None:
    left = mass.numpy()
    if not (left.min() >= 0 and left.max() <= end):
        return None
    left = np.minimum(left, np.nextafter(edges[-1], 0.0))
    row = edges.searchsorted(left, "right") - 1
    left = left - edges[row]
    each = np.arange(len(left))
    for sums in reversed(nodes.sums[:-1]):
        ends = sums.take(row, 0).cumsum(1)  # [B, 16]
        left = np.minimum(left, np.nextafter(ends[:, -1], 0.0))
        child = (ends > left[:, None]).argmax(1)
        left = left - np.where(child > 0, ends[each, child - 1], 0.0)
        row = row * FAN_OUT + child
    return torch.from_numpy(row)


# ---- torch ---------------------------------------------------------------------------------------------------------------------
def _update_torch(nodes: _Nodes, capacity: int, rows: Tensor, priorities: Tensor) -> bool:
    if not ((rows >= 0) & (rows < capacity) & (priorities >= 0) & (priorities <= LARGEST)).all():
        return False
    order = rows.argsort(stable=True)  # a write to equal rows at once keeps any of them: give all the last one's priority
    last = order[torch.searchsorted(rows[order], rows, right=True) - 1]
    p = priorities[last]
    nodes.flat_sums[rows] = p
    nodes.flat_lows[rows] = torch.where(p > 0, p, torch.inf)
    at = rows
    for level in range(1, len(nodes.sums)):
        at = at // FAN_OUT
        if len(at) > len(nodes.sums[level - 1]):
            at = torch.arange(len(nodes.sums[level - 1]), device=rows.device)
        nodes.sums[level].view(-1)[at] = nodes.sums[level - 1][at].sum(-1)
        nodes.lows[level].view(-1)[at] = nodes.lows[level - 1][at].amin(-1)
    return True


def _edges_torch(nodes: Tensor) -> Tensor:
    """Return edges that never fall and rise at positive nodes only, which a sum in parallel alone would not promise."""
    return pad(torch.where(nodes > 0, nodes.cumsum(-1), 0.0).cummax(-1).values, (1, 0))


def _find_torch(nodes: _Nodes, edges: Tensor, end: float, mass: Tensor) -> Tensor | None:
    if not ((mass >= 0) & (mass <= end)).all():
        return None
    row, left = _locate_torch(edges, mass)
    for sums in reversed(nodes.sums[:-1]):
        child, left = _locate_torch(_edges_torch(sums[row]), left.unsqueeze(-1))
        row, left = row * FAN_OUT + child.squeeze(-1), left.squeeze(-1)
    return row


def _locate_torch(edges: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Return the intervals in which masses lie, and what of the masses is left after the edges before them."""
    end = edges[..., -1:]
    mass = torch.minimum(mass, torch.nextafter(end, torch.zeros_like(end)))  # rounding may have put it at the end or beyond
    child = torch.searchsorted(edges, mass, right=True) - 1
    return child, mass - edges.gather(-1, child)


# ---- the choice ----------------------------------------------------------------------------------------------------------------
def _update_numba(nodes: _Nodes, capacity: int, rows: Tensor, priorities: Tensor) -> bool:
    args = nodes.flat_sums, nodes.flat_lows, nodes.starts, capacity, LARGEST
    return _load_kernels().update(*args, rows.numpy(), priorities.numpy())


def _edges_numba(top: Any) -> Any:
    return _load_kernels().edges(top)


def _find_numba(nodes: _Nodes, edges: Any, end: float, mass: Tensor) -> Tensor | None:
    rows = np.empty(len(mass), np.int64)
    valid = _load_kernels().find(nodes.flat_sums, nodes.starts, edges, end, mass.numpy(), rows)
    return torch.from_numpy(rows) if valid else None


_FUNCTIONS = {
    "numba": _Functions(_update_numba, _edges_numba, _find_numba),
    "numpy": _Functions(_update_numpy, _edges_numpy, _find_numpy),
    "torch": _Functions(_update_torch, _edges_torch, _find_torch),
}


@cache
def _load_kernels() -> Any:
    try:
        return import_module("rlbook.replay._tree_kernels")
    except ImportError:
        return None


def _choose(backend: str, device: torch.device) -> tuple[str, _Functions]:
    """Return the backend and its functions, or explain why it cannot work here."""
    if backend == "auto":
        backend = "torch" if device.type != "cpu" else "numpy" if _load_kernels() is None else "numba"
    if backend not in _FUNCTIONS:
        fix = 'Leave it at "auto"'
        raise ConfigError(explain("backend", '"auto", "numba", "numpy" or "torch"', repr(backend), fix))
    if backend != "torch" and device.type != "cpu":
        raise ConfigError(explain(f"device for backend={backend!r}", "the CPU", str(device), 'Pass backend="torch"'))
    if backend == "numba" and _load_kernels() is None:
        raise ConfigError(explain('backend="numba"', "used where numba works", "a Python without it", 'Pass backend="auto"'))
    return backend, _FUNCTIONS[backend]
