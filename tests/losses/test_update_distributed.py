"""Processes that train together take the step of one process on the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import distributed_worker as worker
from torch.testing import assert_close

from rlbook import compile_update
from rlbook.errors import ConfigError

SIZE, TIMEOUT = 2, 240
both = pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes say that trained together; both are gone afterwards."""
    folder = tmp_path_factory.mktemp("together")
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    if sys.platform == "linux":
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    outs = [folder / f"{rank}.pt" for rank in range(SIZE)]
    commands = [
        [sys.executable, worker.__file__, str(rank), str(SIZE), str(folder / "meeting"), str(out)]
        for rank, out in enumerate(outs)
    ]
    pipe: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, env=env, **pipe) for command in commands]
    try:
        said = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * SIZE, "\n".join(said)
    return [torch.load(out, weights_only=False) for out in outs]


@both
@pytest.mark.parametrize("name", worker.CASES)
def test_two_processes_equal_one(results, name, compile):
    alone = worker.trained(name, 0, 1, compile=False)
    for result in results:
        assert_close(result["found"][name, compile], alone, rtol=1e-5, atol=1e-6)
    first, second = (result["found"][name, compile] for result in results)
    assert_close(first, second, rtol=0, atol=0)  # they never drift apart


@both
def test_what_is_not_finite_in_one_stops_all(results, compile):
    bad = [result["bad"][compile] for result in results]
    assert [each["raised"] for each in bad] == [True] * SIZE
    assert [each["stayed"] for each in bad] == [True] * SIZE
    assert_close(bad[0]["after"], bad[1]["after"], rtol=0, atol=0)


def test_a_group_may_be_given(results):
    assert [result["size"] for result in results] == [SIZE] * SIZE


def test_no_process_group_is_explained():
    loss = worker.dqn(compile=False).loss_fn
    fresh = type(loss)(loss.qvalue)
    with pytest.raises(ConfigError, match=r"distributed must be used inside a process group; got none.*init_process_group"):
        compile_update(fresh, torch.optim.Adam(fresh.parameters()), distributed=True)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*barrier.*:UserWarning")
def test_nccl_with_one_process(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        states = []
        for options in ({}, {"distributed": True}):
            torch.manual_seed(0)
            with torch.device("cuda"):
                update = worker.dqn(compile=True, **options)
            for batch in worker.batches("dqn"):
                update(batch.to("cuda"))
            states.append(worker.copy_of(update.loss_fn))
        assert_close(states[1], states[0], rtol=1e-5, atol=1e-6)
    finally:
        dist.destroy_process_group()
