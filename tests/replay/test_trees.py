"""The sum tree: equal to adding up a list, whatever was written before; no row without priority; explained errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.trees import Priorities
from torch import Tensor, tensor
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.replay import trees
from rlbook.replay.trees import SumTree, TreeBackend

BACKENDS: list[TreeBackend] = ["numba", "numpy", "torch"]
CAPACITIES = [1, 2, 16, 17, 300, 5000]  # with a top of 4 nodes: trees of one to four levels, with full and half-full groups


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(autouse=True)
def high_trees(monkeypatch):
    monkeypatch.setattr(trees, "TOP", 4)


def floats(*numbers: float) -> Tensor:
    return tensor(numbers, dtype=torch.float64)


def filled(priorities: Tensor, backend: TreeBackend = "auto") -> SumTree:
    tree = SumTree(len(priorities), backend=backend)
    tree.update(torch.arange(len(priorities)), priorities)
    return tree


def random_priorities(capacity: int, zeros: float = 0.5) -> Tensor:
    return torch.rand(capacity, dtype=torch.float64) * (torch.rand(capacity) >= zeros)


def test_golden_value(backend):
    tree = SumTree(40, backend=backend)
    tree.update(tensor([0, 1, 20, 39]), floats(1, 2, 3, 4))
    # the intervals: row 0 [0, 1), row 1 [1, 3), row 20 [3, 6), row 39 [6, 10), and 10 itself
    assert tree.find(floats(0, 0.5, 1, 2.9, 3, 5.9, 6, 9.9, 10)).tolist() == [0, 0, 1, 1, 20, 20, 39, 39, 39]
    assert (tree.total, tree.min, len(tree)) == (10.0, 1.0, 40)
    assert tree[tensor([[0, 1], [2, 39]])].tolist() == [[1.0, 2.0], [0.0, 4.0]]
    # four strata of 2.5: masses 0 + 1.25, 2.5 + 1.25, 5 + 0.25, 7.5 + 2.25; independent: 5, 5, 1, 9
    uniforms = floats(0.5, 0.5, 0.1, 0.9)
    assert tree.sample(uniforms).tolist() == [1, 20, 20, 39]
    assert tree.sample(uniforms, stratified=False).tolist() == [20, 20, 1, 39]


writes = st.lists(st.tuples(st.integers(0, 299), st.sampled_from([0, 0, 1, 2, 3, 1000, 2**30]), st.integers(0, 7)), max_size=40)


@pytest.mark.parametrize("capacity", [1, 16, 17, 65, 300])
@settings(max_examples=25, deadline=None)
@given(batches=st.lists(writes, max_size=5))
def test_any_sequence_of_updates_equals_the_reference(capacity, batches):
    reference, forest = Priorities(capacity), [SumTree(capacity, backend=backend) for backend in BACKENDS]
    for batch in batches:
        rows, priorities = [row % capacity for row, _, _ in batch], [p / 2**shift for _, p, shift in batch]
        reference.update(rows, priorities)
        for tree in forest:
            tree.update(tensor(rows, dtype=torch.int64), floats(*priorities))
            assert (tree.total, tree.min) == (reference.total, reference.min)  # sums of such numbers are exact
    fractions = [0.0, 0.1, 0.25, 0.5, 0.77, 1.0]
    ends = [float(sum(reference.values[:row])) for row in range(0, capacity, 1 + capacity // 16)]  # exactly where intervals meet
    masses = [fraction * reference.total for fraction in fractions] + ends
    for tree in forest:
        tree.check_valid()
        assert tree[torch.arange(capacity)].tolist() == [float(p) for p in reference.values]
        if reference.total > 0:
            assert tree.find(floats(*masses)).tolist() == [reference.find(mass) for mass in masses]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 5e-324, 1e-300, 1e-17, 0.1, 1.0, 1 / 3, 7e9, 1e200]), min_size=1, max_size=200))
def test_rows_without_priority_never_come(priorities):
    for backend in BACKENDS:
        tree = filled(floats(*priorities), backend)
        tree.check_valid()
        if tree.total > 0:
            total = tree.total
            masses = floats(0, 5e-324, math.nextafter(total, 0), total) if total > 0 else floats(0)
            masses = torch.cat([masses.clamp(max=total), torch.linspace(0, 1, 50, dtype=torch.float64) * total])
            edges = floats(*priorities).cumsum(0).clamp(max=total)
            assert (tree[tree.find(torch.cat([masses, edges]))] > 0).all()


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_backends_agree_through_many_updates(capacity):
    forest = [SumTree(capacity, backend=backend) for backend in BACKENDS]
    for _ in range(20):
        rows, priorities = torch.randint(capacity, (64,)), random_priorities(64)
        for tree in forest:
            tree.update(rows, priorities)
    uniforms = torch.rand(500, dtype=torch.float64)
    found = [tree.sample(uniforms) for tree in forest]
    for tree, rows in zip(forest, found, strict=True):
        tree.check_valid()
        assert tree.min == forest[0].min
        assert_close(tree.total, forest[0].total, rtol=1e-12, atol=0.0)
        assert torch.equal(tree[torch.arange(capacity)], forest[0][torch.arange(capacity)])
        assert torch.equal(rows, found[0])


def test_of_duplicate_rows_the_last_counts(backend):
    tree = SumTree(100, backend=backend)
    rows = torch.randint(100, (5000,))
    priorities = torch.rand(5000, dtype=torch.float64)
    tree.update(rows, priorities)
    last = dict(zip(rows.tolist(), priorities.tolist(), strict=True))
    assert tree[torch.arange(100)].tolist() == [last[row] for row in range(100)]
    tree.check_valid()


def test_a_node_depends_on_the_present_leaves_only(backend):
    priorities = random_priorities(1000)
    tree = SumTree(1000, backend=backend)
    tree.update(torch.arange(1000), 1e15)  # a difference of sums would keep the rounding errors of these
    for rows in torch.randperm(1000).split(7):
        tree.update(rows, priorities[rows])
    assert (tree.total, tree.min) == (filled(priorities, backend).total, filled(priorities, backend).min)
    assert_close(tree.total, math.fsum(priorities.tolist()), rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("stratified", [True, False])
def test_frequencies_match_priorities(backend, stratified):
    rows, draws = 300, 100_000
    priorities = random_priorities(rows, zeros=0.3)
    tree = filled(priorities, backend)
    uniforms = torch.rand(draws, dtype=torch.float64).split(250)
    counts = torch.bincount(torch.cat([tree.sample(u, stratified) for u in uniforms]), minlength=rows)
    assert (counts[priorities == 0] == 0).all()
    expected = draws * priorities / priorities.sum()
    likely = expected > 5
    chi_squared = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    freedom = int(likely.sum()) - 1
    # mean freedom, standard deviation sqrt(2 freedom); strata lower it, so there is no lower bound for them
    assert chi_squared < freedom + 5 * math.sqrt(2 * freedom)
    assert stratified or chi_squared > freedom - 5 * math.sqrt(2 * freedom)


def test_strata_give_each_row_its_share_of_every_batch(backend):
    tree = filled(torch.full((64,), 0.3), backend)
    assert tree.sample(torch.rand(64, dtype=torch.float64)).tolist() == list(range(64))
    largest = torch.full((100,), math.nextafter(1.0, 0.0), dtype=torch.float64)  # rounds to the stratum's end, and to the total
    assert tree.sample(largest)[-1] == 63
    assert tree.sample(largest, stratified=False).tolist() == [63] * 100


def test_priorities_of_any_kind(backend):
    tree = SumTree(20, backend=backend)
    tree.update(torch.arange(20), 2.0)
    tree.update(tensor([3, 4]), tensor([1, 0]))
    tree.update(torch.arange(12)[::3], torch.ones(8, requires_grad=True)[::2])  # float32, with gaps in memory
    assert tree[tensor([0, 1, 3, 4, 6, 9])].tolist() == [1, 2, 1, 0, 1, 1]
    before = tree.total
    tree.update(torch.empty(0, dtype=torch.int64), torch.empty(0))
    assert tree.total == before
    assert tree.find(torch.empty(0)).shape == (0,)
    assert tree.sample(torch.empty(0)).dtype is torch.int64
    tree.check_valid()


def test_clear(backend):
    tree = filled(random_priorities(300), backend)
    tree.clear()
    tree.check_valid()
    assert (tree.total, tree.min) == (0.0, math.inf)
    tree.update(tensor([299]), floats(2.0))
    assert (tree.total, tree.min, tree.find(floats(1.0)).item()) == (2.0, 2.0, 299)


@pytest.mark.parametrize("other", BACKENDS)
def test_state_goes_from_any_backend_to_any(backend, other):
    tree = filled(random_priorities(300), backend)
    again = filled(random_priorities(300), other)
    again.load_state_dict(tree.state_dict())
    again.check_valid()
    uniforms = torch.rand(200, dtype=torch.float64)
    assert again.sample(uniforms).equal(tree.sample(uniforms))
    assert again.min == tree.min
    assert again.total == tree.total or backend != other


def test_state_of_another_capacity_is_explained():
    with pytest.raises(ConfigError, match=r"A saved tree must be of capacity 3; got one of 4\. Make the tree with capacity=4"):
        SumTree(3).load_state_dict(SumTree(4).state_dict())


@pytest.mark.parametrize(
    "rows, priorities, message",
    [
        ([0, 1], [1.0, -0.5], r"priorities must be finite numbers in \[0, 1e\+200\]; got -0.5"),
        ([0, 1], [math.nan, 1.0], r"priorities must be finite.*got nan\. .*diverged"),
        ([0, 1], [1.0, math.inf], r"priorities must be finite.*got inf"),
        ([0, 1], [1.0, 1e201], r"priorities must be .*got 1e\+201"),
        ([0, 300], [1.0, 1.0], r"rows must be in \[0, capacity=300\); got 300"),
        ([-1, 0], [1.0, 1.0], r"rows must be in \[0, capacity=300\); got -1"),
        ([0, 1], [1.0], r"rows and priorities must be of one shape \[B\]; got \[2\] and \[1\]"),
        ([[0], [1]], [[1.0], [2.0]], r"of one shape \[B\]; got \[2, 1\] and \[2, 1\]"),
        ([0.0, 1.0], [1.0, 1.0], r"rows must be int64; got torch.float32"),
    ],
)
def test_a_wrong_update_is_explained_and_changes_nothing(backend, rows, priorities, message):
    tree = filled(torch.arange(300), backend)
    with pytest.raises(SpecError, match=message):
        tree.update(tensor(rows), tensor(priorities, dtype=torch.float64))
    assert tree[torch.arange(300)].tolist() == list(range(300))
    assert tree.total == 300 * 299 / 2
    tree.check_valid()


@pytest.mark.parametrize("mass", [-1e-9, 6.1, math.nan, math.inf])
def test_a_wrong_mass_is_explained(backend, mass):
    tree = filled(floats(1, 2, 3), backend)
    with pytest.raises(SpecError, match=rf"mass must be in \[0, total=6.0\]; got {mass}\. Draw it as"):
        tree.find(floats(1.0, mass))
    with pytest.raises(SpecError, match=r"mass must be of shape \[B\]; got \[1, 1\]"):
        tree.find(floats(1.0).unsqueeze(0))
    with pytest.raises(SpecError, match=r"rows must be in \[0, capacity=3\); got 3"):
        tree[tensor([0, 3])]


def test_an_empty_tree_is_explained(backend):
    tree = SumTree(300, backend=backend)
    for draw in (tree.find, tree.sample):
        with pytest.raises(ConfigError, match=r"A tree to sample from must be one with a positive priority; got none\. Set"):
            draw(floats(0.0))


def test_wrong_arguments_are_explained(monkeypatch):
    for capacity in (0, -1, True, 2.5):
        with pytest.raises(ConfigError, match="capacity must be a positive integer; got"):
            SumTree(capacity)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"backend must be .*; got 'cuda'"):
        SumTree(3, backend="cuda")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"device for backend='numpy' must be the CPU; got meta"):
        SumTree(3, device="meta", backend="numpy")
    monkeypatch.setattr(trees, "_load_kernels", lambda: None)
    assert SumTree(3).backend == "numpy"
    with pytest.raises(ConfigError, match='backend="numba" must be used where numba works; got a Python without it'):
        SumTree(3, backend="numba")


@pytest.mark.parametrize(
    "tree_of, node, value, message",
    [
        ("_sums", 7, math.nan, r"The priority of row 7 must be in \[0, 1e\+200\]; got nan"),
        ("_sums", 7, -2.0, r"The priority of row 7 must be .*; got -2.0"),
        ("_sums", 7, 3.0, r"A node must be 18.0, as its children's; got 16.0"),
        ("_sums", -16, 16.1, r"A node must be .*; got 16.1"),
        ("_lows", 7, 0.5, r"A node must be 0.5, as its children's; got 1.0"),
        ("_lows", -16, 0.5, r"A node must be 1.0, as its children's; got 0.5"),
    ],
)
def test_check_valid_finds_what_was_broken(backend, tree_of, node, value, message):
    tree = filled(torch.ones(5000), backend)
    tree.check_valid()
    getattr(tree, tree_of)[node] = value
    with pytest.raises(ConfigError, match=message):
        tree.check_valid()


def test_kernels_are_compiled_for_the_same_tree():
    from rlbook.replay import _tree_kernels

    assert _tree_kernels.FAN_OUT == trees.FAN_OUT


@pytest.mark.parametrize("size", [100, 4096, 4097, 70_000, 1_100_000])
def test_trees_of_the_usual_shape(backend, size, monkeypatch):
    monkeypatch.undo()
    tree = filled(random_priorities(size), backend)
    tree.check_valid()
    uniforms = torch.rand(256, dtype=torch.float64)
    rows = tree.sample(uniforms)
    mass = (torch.arange(256) + uniforms) * (tree.total / 256)
    ends = tree[torch.arange(size)].cumsum(0)
    tiny = 1e-9 * tree.total
    assert (ends[rows] >= mass - tiny).all()
    assert (ends[rows] - tree[rows] <= mass + tiny).all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    priorities = random_priorities(100_000)
    tree, here = SumTree(100_000, device="cuda"), filled(priorities, "numpy")
    tree.update(torch.arange(100_000), priorities)
    tree.check_valid()
    rows = tree.sample(torch.rand(256, dtype=torch.float64))
    assert rows.device.type == "cuda"
    assert (tree[rows] > 0).all()
    assert_close(tree.total, here.total, rtol=1e-12, atol=0.0)
    assert tree.min == here.min
