"""Look into a TensorDict: keys, shapes, dtypes, devices, memory and small statistics, as a tree that folds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rlbook.keys import pretty
from rlbook.widgets._front import static
from rlbook.widgets._series import short

BINS, MOST_NUMBERS, DEPTH_OPEN = 16, 1_000_000, 3


@dataclass
class Node:
    """One line of the tree: an entry, or a group with entries below it."""

    name: str
    shape: str = ""
    dtype: str = ""
    device: str = ""
    size: int = 0
    facts: str = ""
    warning: str = ""
    bars: list[float] = field(default_factory=list)
    children: list[Node] | None = None


class Tree:
    """What ``show`` returns: HTML in a notebook (it folds without JavaScript), aligned text elsewhere."""

    def __init__(self, root: Node):
        self.root = root

    def _repr_html_(self) -> str:
        style = f"<style>{static('theme.css', 'tree.css')}</style>"
        return f'{style}<div class="rlb rlb-tree">{_html(self.root, 0)}</div>'

    def __repr__(self) -> str:
        rows = list(_rows(self.root, "", ""))
        wide = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = ("  ".join([*(row[i].ljust(wide[i]) for i in range(4)), row[4].rjust(wide[4]), row[5]]).rstrip() for row in rows)
        return "\n".join(lines)


def show(data: Any, name: str = "") -> Tree:
    """Show what is inside a TensorDict, a dict of tensors, a module, a spec or a tensor.

    Args:
        data: what to look into; nested to any depth.
        name: heading; the type by default.

    Returns:
        A tree that a notebook draws and ``print`` writes as text: for each tensor its shape, dtype, device, memory, lowest, mean
        and highest number (fraction of true for flags) and a histogram; NaN and infinity are flagged.

    Example:
        >>> show({"reward": torch.tensor([0.0, 1.0, 5.0])}, "batch")
        batch                        12 B
        └ reward  [3]  float32  cpu  12 B  0 … 2 … 5
    """
    return Tree(_node(name or type(data).__name__, data))


def _node(name: str, value: Any) -> Node:
    if isinstance(value, Tensor):
        return _leaf(name, value)
    entries = _entries(value)
    if entries is None:
        return Node(name, facts=_line(value))
    children = [_node(pretty(key) if isinstance(key, tuple) else str(key), item) for key, item in entries]
    node = Node(name, size=sum(child.size for child in children), children=children)
    if isinstance(value, TensorDictBase):
        node.shape, node.device = str(list(value.batch_size)), str(value.device or "")
    elif isinstance(value, nn.Module):
        node.facts = _line(type(value).__name__) if name != type(value).__name__ else ""
    return node


def _entries(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the entries of a group, or None for something else."""
    if isinstance(value, nn.Module):
        own = [*value.named_parameters(recurse=False), *value.named_buffers(recurse=False)]
        return [*own, *((name, child) for name, child in value.named_children() if any(True for _ in child.state_dict()))]
    if isinstance(value, Mapping | TensorDictBase) or (hasattr(value, "items") and hasattr(value, "keys")):
        return list(value.items())
    if isinstance(value, list | tuple) and value and all(isinstance(item, Tensor | TensorDictBase | Mapping) for item in value):
        return list(enumerate(value))
    return None


def _line(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:79] + "…"


def _leaf(name: str, tensor: Tensor) -> Node:
    if is_lazy(tensor):
        return Node(name, facts=_line("lazy: made by the first batch"))
    tensor = tensor.detach()
    node = Node(
        name,
        shape=str(list(tensor.shape)),
        dtype=str(tensor.dtype).removeprefix("torch."),
        device=str(tensor.device),
        size=tensor.numel() * tensor.element_size(),
    )
    if tensor.is_sparse or tensor.is_complex() or tensor.device.type == "meta" or not tensor.numel():
        return node
    stride = -(-tensor.numel() // MOST_NUMBERS)
    numbers = tensor.reshape(-1)[::stride].to("cpu", torch.float64).numpy()
    about = "≈ " if stride > 1 else ""
    if tensor.dtype == torch.bool:
        node.facts = f"{about}{100 * numbers.mean():.3g}% true"
        node.bars = [1 - numbers.mean(), numbers.mean()]
        return node
    known = numbers[np.isfinite(numbers)]
    bad = {"NaN": int(np.isnan(numbers).sum()), "infinite": int(np.isinf(numbers).sum())}
    node.warning = ", ".join(f"{count:,} {what}" for what, count in bad.items() if count)
    if len(known) == 1:
        node.facts = short(known[0])
    elif len(known):
        node.facts = about + " … ".join(map(short, (known.min(), known.mean(), known.max())))
        node.bars = _histogram(known) if np.ptp(known) > 0 else []
    return node


def _histogram(numbers: np.ndarray) -> list[float]:
    with np.errstate(over="ignore"):
        span = np.ptp(numbers)
    if not np.isfinite(span):
        return []
    counts, _ = np.histogram(numbers, min(BINS, len(np.unique(numbers[:1000])) if len(numbers) <= 1000 else BINS))
    return (counts / len(numbers)).tolist()


def memory(size: float) -> str:
    """Write a number of bytes: ``512 B``, ``1.5 kB``, ``2.1 MB``."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _rows(node: Node, lead: str, below: str) -> Iterator[tuple[str, str, str, str, str, str]]:
    facts = "  ".join(filter(None, [node.warning and f"! {node.warning}", node.facts]))
    size = memory(node.size) if node.size else ""
    yield lead + node.name, node.shape, node.dtype, node.device, size, facts
    children = node.children or []
    for i, child in enumerate(children):
        last = i == len(children) - 1
        yield from _rows(child, below + ("└ " if last else "├ "), below + ("  " if last else "│ "))


def _html(node: Node, depth: int) -> str:
    line = _html_line(node, depth)
    if node.children is None:
        return f'<div class="leaf">{line}</div>'
    inner = "".join(_html(child, depth + 1) for child in node.children)
    return f"<details{' open' if depth < DEPTH_OPEN else ''}><summary>{line}</summary><div class='inner'>{inner}</div></details>"


def _html_line(node: Node, depth: int) -> str:
    size = memory(node.size) if node.size else ""
    cells = [("shape", node.shape), ("type", node.dtype), ("where", node.device), ("size", size)]
    html = f'<b style="--depth: {depth}">{escape(node.name)}</b> '
    html += " ".join(f'<span class="{kind}">{escape(text)}</span>' for kind, text in cells)
    warning = f"<strong>⚠ {escape(node.warning)}</strong>" if node.warning else ""
    return html + f' <span class="bars">{_bars(node.bars)}</span> <span class="facts">{warning}{escape(node.facts)}</span>'


def _bars(parts: list[float]) -> str:
    """Draw a histogram as a tiny picture."""
    if not parts:
        return ""
    width, high = 64 / len(parts), max(parts)
    bars = "".join(
        f'<rect x="{i * width:.1f}" y="{16 - max(part / high * 16, 0.6):.1f}" width="{width - 0.8:.1f}" height="16"/>'
        for i, part in enumerate(parts)
        if part
    )
    return f'<svg viewBox="0 0 64 16" width="64" height="16" role="img" aria-label="histogram">{bars}</svg>'
