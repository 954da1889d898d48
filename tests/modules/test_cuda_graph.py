"""CUDA graphs: recorded once, launched with copied batches; weights are read and written where they lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rlbook.modules import cuda_graph
from rlbook.modules.cuda_graph import Captured, without_effect


class Recorder:
    """Stands in for CUDA: what was recorded is a call with the addresses of its first arguments, into outputs of its own."""

    def __init__(self):
        self.count = 0

    def __call__(self, function, tensors: list[Tensor]):
        self.count += 1
        undo = [tensor.clone() for tensor in tensors]
        outputs = [torch.full_like(out, torch.nan) for out in function(*tensors)]
        for tensor, before in zip(tensors, undo, strict=True):  # recording runs nothing
            tensor.copy_(before)

        def launch() -> None:
            for own, new in zip(outputs, function(*tensors), strict=True):
                own.copy_(new)

        return launch, outputs


def add_up(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Add a batch to a running total, in place."""
    total.add_(x.sum())
    return x * 2, total * 1


def make(function=add_up, volatile: int = 1) -> tuple[Captured, Recorder]:
    recorder = Recorder()
    return Captured(function, volatile, recorder), recorder


def test_a_call_is_one_step_and_takes_its_own_batch():
    captured, recorder = make()
    total, expected = torch.zeros(()), 0.0
    for _ in range(4):
        x = torch.randn(5)
        expected += x.sum().item()
        double, seen = captured(x, total)
        assert_close(double, 2 * x)
        assert_close(seen.item(), expected)
        assert_close(total.item(), expected)  # warming up changed nothing
    assert recorder.count == 1


def test_results_are_the_callers_own():
    captured, _ = make()
    total = torch.zeros(())
    first, _ = captured(torch.ones(5), total)
    captured(torch.zeros(5), total)
    assert_close(first, torch.full((5,), 2.0))


def test_weights_may_change_in_place_and_may_move():
    captured, recorder = make()
    total = torch.zeros(())
    captured(torch.ones(5), total)
    total.fill_(10)
    captured(torch.ones(5), total)
    assert (total.item(), recorder.count) == (15, 1)
    other = torch.full((), 100.0)
    captured(torch.ones(5), other)
    assert (total.item(), other.item(), recorder.count) == (15, 105, 2)


def test_what_moves_every_time_is_called_as_it_is(monkeypatch):
    monkeypatch.setattr(cuda_graph, "MAX_RECORDINGS", 2)
    captured, recorder = make()
    totals = [torch.zeros(()) for _ in range(5)]
    for total in totals[:2]:
        captured(torch.ones(5), total)
    with pytest.warns(UserWarning, match=r"without a CUDA graph: it could not be recorded \(some of its tensors lay elsewhere"):
        captured(torch.ones(5), totals[2])
    for total in totals[3:]:
        captured(torch.ones(5), total)
    assert [total.item() for total in totals] == [5.0] * 5
    assert recorder.count == 2


def test_what_cannot_be_recorded_is_called_as_it_is_and_says_why():
    def fails(function, tensors):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    captured, total = Captured(add_up, 1, fails), torch.zeros(())
    with pytest.warns(UserWarning, match=r"\(operation not permitted when stream is capturing\)"):
        captured(torch.ones(5), total)
    captured(torch.ones(5), total)  # says it once
    assert total.item() == 10


def test_warming_up_is_undone_even_after_an_error():
    def breaks(x: Tensor) -> None:
        x.add_(1)
        raise RuntimeError("no")

    x = torch.zeros(3)
    with pytest.raises(RuntimeError, match="no"):
        without_effect(breaks, [x])
    assert_close(x, torch.zeros(3))


def test_without_volatile_tensors():
    captured, _ = make(lambda total: (total.add_(1) * 1,), volatile=0)
    total = torch.zeros(())
    assert [captured(total)[0].item() for _ in range(3)] == [1.0, 2.0, 3.0]


@pytest.mark.cuda
def test_on_a_gpu():
    captured, total = Captured(add_up, 1), torch.zeros((), device="cuda")
    expected = 0.0
    for _ in range(4):
        x = torch.randn(5, device="cuda")
        expected += x.sum().item()
        double, _ = captured(x, total)
        assert_close(double, 2 * x)
        assert_close(total.item(), expected)
    assert captured._recordings == 1


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("precision", [None, "bf16", "fp16"])
def test_an_update_on_a_gpu_equals_the_eager_one(precision):
    from tensordict import TensorDict

    from rlbook import MLP, Actor, QValueHead, SACLoss, SoftUpdate, compile_update, ensemble
    from rlbook.specs import Bounded

    def data(rows: int = 64) -> TensorDict:
        nxt = {"observation": torch.randn(rows, 4), "reward": torch.randn(rows), "terminated": torch.rand(rows) < 0.1}
        batch = {"observation": torch.randn(rows, 4), "action": torch.rand(rows, 2), "next": nxt}
        return TensorDict(batch, [rows]).to("cuda")

    batches, losses = [data() for _ in range(6)], []
    for compile in (False, True):
        torch.manual_seed(0)
        actor = Actor(MLP(4, 4, [64], activation=nn.Tanh), Bounded(-1.0, 1.0, (2,)))
        loss = SACLoss(actor, QValueHead(ensemble(MLP(1, 6, [64], activation=nn.Tanh), 2))).to("cuda")
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
        update = compile_update(loss, optimizer, target=SoftUpdate(loss, 0.1), precision=precision, compile=compile)
        torch.manual_seed(1)
        for batch in batches:
            update(batch)
        assert update.compiled == compile
        losses.append({name: x.clone() for name, x in loss.state_dict().items()})
    tolerance = 1e-4 if precision is None else 2e-2  # Adam makes a step of the sign of the smallest gradient
    assert_close(losses[1], losses[0], rtol=tolerance, atol=tolerance)
