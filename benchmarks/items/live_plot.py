"""What a live dashboard costs a training loop: PPO's eager gradient steps in a real Jupyter kernel, one update of the board each.

A client plays the page: it says hello when the board appears and receives what the kernel sends, twenty messages a second.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import Case, Make, Outcome, Sample, Target, Task

PLAIN, LIVE = "rlbook, no plot", "rlbook, live plot"

SETUP = """
import time, torch
from benchmarks.items.ppo_minibatch import minibatches
from rlbook import MLP, Actor, Dashboard, PPOLoss, Run, ValueHead, compile_update
from rlbook.specs import Categorical

torch.set_num_threads(1)
loss_fn = PPOLoss(Actor(MLP(2, 4), Categorical(2)), ValueHead(MLP(1, 4)))
update = compile_update(loss_fn, torch.optim.Adam(loss_fn.parameters(), lr=3e-4), compile=False)
batches = minibatches(64)

async def run(steps, live):
    times = []
    def step(i):
        if i in (0, steps - 1):
            times.append(time.process_time())
        return {name: value.item() for name, value in update(batches[i % len(batches)]).items()}
    board = Dashboard(["loss", "loss_value", "entropy"], sliders={"lr": (1e-5, 1e-2, "log")}) if live else None
    await Run(step, steps, board).start()
    return [(times[1] - times[0]) / (steps - 1), time.process_time() - times[1]]
"""


class Notebook:
    """A kernel, started at its first use, and the client that plays its page."""

    def __init__(self) -> None:
        self.manager: Any = None
        self.client: Any = None

    def start(self) -> None:
        """Start the kernel, with nothing in its environment that says a machine is watching."""
        if self.manager is not None:
            return
        from jupyter_client.manager import KernelManager

        hidden = ("CI", "RLBOOK_RUN_MODE")
        environment = {key: value for key, value in os.environ.items() if key not in hidden and not key.startswith("PYTEST")}
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(env=environment, cwd=os.getcwd())
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.execute(SETUP)

    def execute(self, code: str) -> tuple[str, int]:
        """Run a cell; return the text of its value, and how many messages came for widgets meanwhile."""
        request = self.client.execute(code)
        value, messages, widgets = "", 0, []
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            kind, content = message["msg_type"], message["content"]
            if kind == "comm_open":
                widgets.append(content["comm_id"])
            elif kind == "comm_msg":
                messages += 1
            elif kind == "display_data":
                for widget in widgets:
                    self.send(widget, {"method": "custom", "content": {"kind": "hello"}})
            elif kind == "execute_result":
                value = content["data"]["text/plain"]
            elif kind == "error":
                raise RuntimeError("\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle" and message["parent_header"].get("msg_id") == request:
                return value, messages

    def send(self, widget: str, data: dict[str, Any]) -> None:
        """Send a widget a message, as its page would."""
        self.client.shell_channel.send(self.client.session.msg("comm_msg", {"comm_id": widget, "data": data}))

    def close(self) -> None:
        """End the kernel."""
        if self.manager is not None:
            self.client.stop_channels()
            self.manager.shutdown_kernel(now=True)
            self.manager.cleanup_resources()


def cases(size: str = "full") -> Iterator[Case]:
    steps = 20 if size == "tiny" else 500
    notebook = Notebook()

    def running(live: bool) -> Make:
        def prepare() -> Task:
            import anywidget  # noqa: F401  without it there is no live plot to measure

            notebook.start()

            def run() -> Sample:
                value, messages = notebook.execute(f"await run({steps}, {live})")
                per_step, at_the_end = json.loads(value)
                facts = {"messages to the page": messages, "seconds for the last picture": at_the_end}
                return Sample(per_step, facts if live else {})

            return run

        return prepare

    def slowdown(outcome: Outcome) -> float | None:
        ratio = outcome.ratio(PLAIN, LIVE)
        return None if ratio is None else ratio - 1

    yield Case(
        name="a dashboard with three curves and a slider, one update per gradient step",
        unit="gradient steps",
        work=1,
        contenders={PLAIN: running(live=False), LIVE: running(live=True)},
        targets=[Target("the share that the live plot adds is at most 0.05", slowdown, at_most=0.05)],
        note="CPU time of the whole kernel from the first step to the last: the training, the board, and its messages.",
        repeats=31 if size == "full" else None,
        warm_up=1,
        close=notebook.close,
    )
