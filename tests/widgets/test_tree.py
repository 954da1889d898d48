"""show: the tree of a TensorDict as HTML and as text."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from rlbook import MLP
from rlbook.specs import Bounded, Composite
from rlbook.widgets import show
from rlbook.widgets.tree import memory


def rollout() -> TensorDict:
    reward = torch.tensor([[0.0, 1.0, 5.0], [0.0, 1.0, 5.0]])
    done = torch.tensor([[False, False, True], [False, False, False]])
    inner = TensorDict({"reward": reward, "done": done}, [2, 3])
    return TensorDict({"observation": torch.zeros(2, 3, 4), "next": inner}, [2, 3])


def test_text_shows_every_entry():
    text = str(show(rollout(), "rollout")).splitlines()
    assert [" ".join(line.split()) for line in text] == [
        "rollout [2, 3] 126 B",
        "├ observation [2, 3, 4] float32 cpu 96 B 0 … 0 … 0",
        "└ next [2, 3] 30 B",
        "├ reward [2, 3] float32 cpu 24 B 0 … 2 … 5",
        "└ done [2, 3] bool cpu 6 B 16.7% true",
    ]


def test_html_folds_without_javascript():
    html = show(rollout())._repr_html_()
    assert html.count("<details") == 2
    assert "<script" not in html
    for text in ("TensorDict", "observation", "[2, 3, 4]", "float32", "cpu", "24 B", "0 … 2 … 5", "16.7% true", "<svg"):
        assert text in html
    assert html.count("<div") == html.count("</div>")


def test_html_escapes_names():
    html = show({"<script>alert(1)</script>": torch.zeros(1), "a&b": "<b>"}, '"x" <y>')._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "a&amp;b" in html
    assert "<y>" not in html


def test_flags_what_is_not_finite():
    tensor = torch.tensor([1.0, float("nan"), 3.0, float("inf"), float("nan")])
    tree = show({"advantage": tensor})
    assert "! 2 NaN, 1 infinite  1 … 2 … 3" in str(tree)
    assert "⚠ 2 NaN, 1 infinite" in tree._repr_html_()
    assert "⚠" not in show({"advantage": torch.ones(3)})._repr_html_()


@pytest.mark.parametrize(
    "tensor, expected",
    [
        (torch.zeros(0, 4), "[0, 4]  float32  cpu"),
        (torch.tensor(3), "[]  int64  cpu  8 B  3"),
        (torch.tensor([float("nan")]), "! 1 NaN"),
        (torch.tensor([1 + 2j]), "[1]  complex64"),
        (torch.zeros(3, device="meta"), "[3]  float32  meta  12 B"),
        (torch.tensor([-(2**62), 2**62]), "int64"),
        (torch.tensor([-3e38, 3e38]), "float32"),
        (torch.tensor([1.0], dtype=torch.bfloat16), "bfloat16"),
    ],
)
def test_takes_any_tensor(tensor, expected):
    tree = show(tensor, "x")
    assert expected in str(tree)
    assert "x</b>" in tree._repr_html_()


def test_a_parameter_needs_no_detaching():
    assert "[2]" in str(show(nn.Parameter(torch.ones(2))))


def test_a_large_tensor_is_sampled_and_says_so(monkeypatch):
    monkeypatch.setattr("rlbook.widgets.tree.MOST_NUMBERS", 10)
    assert "≈ 0 … " in str(show(torch.arange(100.0)))


def test_the_histogram_counts():
    bars = re.findall(r'height="16"/>', show(torch.tensor([0.0, 0.0, 0.0, 1.0]))._repr_html_())
    assert len(bars) == 2


def test_shows_dicts_lists_modules_and_specs():
    module = str(show(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), "policy"))
    assert " ".join(module.split()) == (
        f"policy 32 B Sequential └ 0 32 B Linear ├ weight [2, 3] float32 cpu 24 B {stats(module, 'weight')} "
        f"└ bias [2] float32 cpu 8 B {stats(module, 'bias')}"
    )
    nested = show({"a": {"b": torch.zeros(2)}, "batches": [torch.zeros(1), torch.ones(1)], "name": "x" * 200})
    assert "├ batches" in str(nested)
    assert "…" in str(nested).splitlines()[-1]
    spec = str(show(Composite({"observation": Bounded(-1, 1, (4,))})))
    assert "observation" in spec
    assert "Bounded" in spec


def stats(text: str, name: str) -> str:
    line = next(line for line in text.splitlines() if name in line)
    return " ".join(line.split(" B  ")[1].split())


def test_memory():
    assert [memory(size) for size in (0, 999, 1500, 2_100_000, 3e12)] == ["0 B", "999 B", "1.5 kB", "2.1 MB", "3e+03 GB"]


def test_numpy_is_not_a_tensor_but_is_shown():
    assert "[0 1 2]" in str(show({"x": np.arange(3)}))


def test_a_lazy_network_is_shown():
    assert "lazy: made by the first batch" in repr(show(MLP(out_features=2, num_cells=8)))
