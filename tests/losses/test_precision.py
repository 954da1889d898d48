"""Scaling the loss for float16: the rules of torch.amp.GradScaler, as tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from losses.casekit import DISCRETE, qvalue_actor, transitions
from torch.testing import assert_close

from rlbook import DQNLoss, SoftUpdate, compile_update
from rlbook.errors import NonFiniteError
from rlbook.losses import _precision, update
from rlbook.losses._precision import LossScale

both = pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])


def test_the_scale_moves_as_torchs_does():
    ours = LossScale(torch.device("cpu"), initial=8.0, interval=3)
    theirs = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scales = []
    for finite in (1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1):
        weight.grad = torch.tensor(1.0 if finite else float("inf"))
        theirs.scale(torch.zeros(()))  # it finds its device at the first call
        theirs.step(optimizer)
        theirs.update()
        ours.adjust(torch.tensor(bool(finite)), *ours.state())
        scales.append(theirs.get_scale())
        assert ours.scale.item() == scales[-1]
    assert set(scales) == {4.0, 8.0, 16.0}


def test_the_scale_stays_finite():
    scale = LossScale(torch.device("cpu"), initial=2.0**127, interval=1)
    scale.adjust(torch.tensor(True), *scale.state())
    assert scale.scale.item() == 2.0**127


def test_what_a_smaller_scale_cannot_mend_is_not_tolerated():
    scale, bad = LossScale(torch.device("cpu"), initial=2.0), torch.tensor(False)
    assert [scale.adjust(bad, *scale.state()).item() for _ in range(4)] == [True, True, False, False]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch, quick_compile: None) -> None:
    """Let a CPU, which is slow at it, compute in float16."""
    monkeypatch.setattr(update, "check_precision", lambda precision, device: None)


def make(precision, compile):
    torch.manual_seed(0)
    loss = DQNLoss(qvalue_actor())
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    options = {"target": SoftUpdate(loss, 0.1), "max_grad_norm": 1.0, "compile": compile}
    return loss, compile_update(loss, optimizer, precision=precision, **options)


@both
def test_float16_is_close_and_its_gradients_are_not_scaled(on_cpu, compile):
    (half, rough), (full, exact) = make("fp16", compile), make(None, compile)
    for _ in range(3):
        batch = transitions(DISCRETE)
        got, want = rough(batch), exact(batch)
        assert_close(got["grad_norm"], want["grad_norm"], rtol=2e-2, atol=0)
        assert_close(got["loss"], want["loss"], rtol=2e-2, atol=0)
    assert rough.compiled == compile
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    for ours, theirs in zip(half.parameters(), full.parameters(), strict=True):
        assert (ours - theirs).abs().max() < 6e-3


@both
def test_a_step_that_overflows_is_left_out_and_the_scale_halved(on_cpu, compile):
    loss, step = make("fp16", compile)
    batch = transitions(DISCRETE)
    step(batch)
    before, scale = copy.deepcopy(loss.state_dict()), step.state_dict()["scale"]
    step._scale.scale.fill_(2.0**120)  # any gradient overflows float16
    metrics = step(batch)
    assert not metrics["grad_norm"].isfinite()
    assert_close(dict(loss.state_dict()), dict(before), rtol=0, atol=0)
    assert step.state_dict()["scale"] == 2.0**119
    step.load_state_dict({"calls": 2, "scale": scale, "good_steps": 1.0})
    step(batch)
    assert step.state_dict() == {"calls": 3, "scale": scale, "good_steps": 2.0}
    assert not torch.equal(loss.qvalue.net[0].weight, before["qvalue.net.0.weight"])


@both
def test_numbers_that_are_not_finite_are_explained_in_the_end(on_cpu, compile):
    _, step = make("fp16", compile)
    batch = transitions(DISCRETE)
    batch["next", "reward"][0] = float("nan")
    step._scale.scale.fill_(2.0)
    step(batch)
    step(batch)
    with pytest.raises(NonFiniteError, match="finite"):
        step(batch)


def test_the_dtypes_are_torchs():
    with _precision.autocast("fp16", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float16
