"""One of several processes that train together; ``test_update_distributed.py`` starts them."""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from losses.casekit import CONTINUOUS as BOX
from losses.casekit import DISCRETE, deterministic, qvalue, qvalue_actor, transitions
from tensordict import TensorDict

from rlbook import DQNLoss, SoftUpdate, compile_update
from rlbook.errors import NonFiniteError
from rlbook.losses import Loss, TD3Loss, Update
from rlbook.modules import compiled

STEPS = 4


def dqn(**options) -> Update:
    """One group, targets, clipping that bites."""
    loss = DQNLoss(qvalue_actor())
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    return compile_update(loss, optimizer, target=SoftUpdate(loss, 0.1), max_grad_norm=0.05, **options)


def td3(**options) -> Update:
    """Two optimizers, one of them outside the graph, and delayed terms; without noise, which each process draws for itself."""
    loss = TD3Loss(deterministic(), qvalue(2), noise_scale=0.0)
    optimizers = [torch.optim.Adam(loss.qvalue.parameters(), lr=1e-2), torch.optim.SGD(loss.actor.parameters(), lr=0.1)]
    return compile_update(loss, optimizers, target=SoftUpdate(loss, 0.1, every=2), every={"loss_actor": 2}, **options)


CASES = {"dqn": (dqn, DISCRETE), "td3": (td3, BOX)}


def batches(name: str) -> list[TensorDict]:
    """The same batches of 12 rows in every process."""
    torch.manual_seed(1)
    return [transitions(CASES[name][1]) for _ in range(STEPS)]


def trained(name: str, rank: int, size: int, **options) -> dict[str, torch.Tensor]:
    """Train on every ``size``-th row from ``rank`` on, and return the state of the loss."""
    data = batches(name)
    torch.manual_seed(rank)  # the weights of rank 0 are those that count
    update = CASES[name][0](**options)
    for batch in data:
        update(batch[rank::size])
    assert update.compiled == options["compile"]
    return copy_of(update.loss_fn)


def copy_of(loss: Loss) -> dict[str, torch.Tensor]:
    return {key: x.clone() for key, x in loss.state_dict().items()}


def spoilt(rank: int, size: int, compile: bool) -> dict[str, object]:
    """Let the last process find a number that is not finite, and say what became of each."""
    update, batch = dqn(distributed=True, compile=compile), batches("dqn")[0][rank::size]
    before, bad = copy_of(update.loss_fn), batch.clone()
    if rank == size - 1:
        bad["next", "reward"][0] = float("nan")
    try:
        update(bad)
        raised = False
    except NonFiniteError:
        raised = True
    stayed = all(torch.equal(x, before[key]) for key, x in update.loss_fn.state_dict().items())
    update(batch)
    return {"raised": raised, "stayed": stayed, "after": copy_of(update.loss_fn)}


def main(rank: int, size: int, meeting: str, out: str) -> None:
    torch.set_num_threads(1)
    compiled.lower = lambda graph, tensors: graph  # leave out the slow generation of machine code
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=60))
    try:
        found = {
            (name, compile): trained(name, rank, size, compile=compile, distributed=True)
            for name in CASES
            for compile in (False, True)
        }
        bad = {compile: spoilt(rank, size, compile) for compile in (False, True)}
        group = dqn(distributed=dist.group.WORLD, compile=False)  # a group of one's own
        torch.save({"found": found, "bad": bad, "size": group._peers.size}, out)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
