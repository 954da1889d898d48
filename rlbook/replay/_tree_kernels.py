"""Compiled CPU kernels of the sum tree. Imported on first use, because importing numba costs half a second.

The kernels go level by level through the whole batch, not row by row through the levels: the next row's memory is then on its
way while this row is worked on, and waiting for memory is what a tree of a million rows costs.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rlbook.functional._kernels import _jit

FAN_OUT = 16  # as in trees.py; written again, because compiled code in the cache would not notice that an imported number changed


@_jit
def update(sums, lows, starts, capacity, largest, rows, priorities):
    """Set the leaves ``rows`` and recompute the nodes above them; return False, with nothing changed, if a number is invalid."""
    for i in range(len(rows)):
        if not (0 <= rows[i] < capacity and 0.0 <= priorities[i] <= largest):
            return False
    for i in range(len(rows)):
        p = priorities[i]
        sums[rows[i]] = p
        lows[rows[i]] = p if p > 0.0 else np.inf
    groups, count = rows.copy(), len(rows)
    for level in range(len(starts) - 2):
        count = _parents(groups, count)
        first, above = starts[level], starts[level + 1]
        _add_up(sums[first:above], sums[above:], groups[:count])
        _minimize(lows[first:above], lows[above:], groups[:count])
    return True


@_jit
def edges(top):
    """Return where nodes ``[n]`` laid end to end begin, and the end of the last, ``[n + 1]``."""
    result, total = np.empty(len(top) + 1), 0.0
    for i in range(len(top)):
        result[i] = total
        total += top[i]
    result[len(top)] = total
    return result


@_jit
def find(sums, starts, edges, end, mass, rows):
    """Write the rows ``[B]`` in whose intervals the masses ``[B]`` lie; return False if a mass is not in [0, end]."""
    for i in range(len(mass)):
        if not 0.0 <= mass[i] <= end:
            return False
    left = np.minimum(mass, np.nextafter(edges[-1], 0.0))
    _last_up_to(edges, left, rows)
    for i in range(len(mass)):
        left[i] -= edges[rows[i]]
    for level in range(len(starts) - 3, -1, -1):
        _descend(sums[starts[level] : starts[level + 1]], rows, left)
    return True


@_jit
def draw(sums, starts, uniforms, stratified, slack, rows, priorities):
    """Write rows drawn in proportion to their priorities, and those; return False if nothing can be drawn, or from these."""
    ends = edges(sums[starts[-2] :])
    total, count = ends[-1], len(uniforms)
    if not total > 0.0:
        return False
    mass = np.empty(count)
    for i in range(count):
        mass[i] = (i + uniforms[i]) * (total / count) if stratified else uniforms[i] * total
    if not find(sums, starts, ends, total * slack, mass, rows):
        return False
    for i in range(count):
        priorities[i] = sums[rows[i]]
    return True


@njit
def _descend(children, rows, left):
    """Replace nodes by those of their children in whose intervals the masses ``left`` lie, and subtract what comes before."""
    firsts = np.empty(len(rows))
    for i in range(len(rows)):  # a loop of its own, because these loads, from memory far apart, then overlap
        firsts[i] = children[rows[i] * FAN_OUT]
    for i in range(len(rows)):
        group = rows[i] * FAN_OUT
        begin, end, found = 0.0, firsts[i], 0
        if left[i] >= end:
            for c in range(1, FAN_OUT):
                if children[group + c] > 0.0:  # where rounding leaves mass beyond the last end, the last one that is not empty
                    found, begin = c, end
                    end += children[group + c]
                    if left[i] < end:
                        break
        rows[i] = group + found
        left[i] -= begin


@njit
def _parents(nodes, count):
    """Replace the first ``count`` nodes by their parents, neighbours with the same one by one; return how many are left."""
    kept = 0
    for i in range(count):
        parent = nodes[i] // FAN_OUT
        if kept == 0 or nodes[kept - 1] != parent:
            nodes[kept] = parent
            kept += 1
    return kept


@njit
def _add_up(children, parents, groups):
    for i in range(len(groups)):
        total, child = 0.0, groups[i] * FAN_OUT
        for c in range(FAN_OUT):
            total += children[child + c]
        parents[groups[i]] = total


@njit
def _minimize(children, parents, groups):
    for i in range(len(groups)):
        low, child = np.inf, groups[i] * FAN_OUT
        for c in range(FAN_OUT):
            low = min(low, children[child + c])
        parents[groups[i]] = low


@njit
def _last_up_to(edges, mass, rows):
    """Write the last positions whose edges are at most ``mass``: a binary search that halves all ranges together.

    Each step of a search waits for the one before it, but not for the other searches; and it adds instead of branching.
    """
    rows[:] = 0
    count = len(edges)
    while count > 1:
        half = count // 2
        for i in range(len(mass)):
            rows[i] += half * (edges[rows[i] + half] <= mass[i])
        count -= half
