"""Samples that a thread prepares ahead of time, and their way to a GPU."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor


class Prefetcher:
    """A queue of ``ahead`` samples, which one thread draws in order.

    Who changes the buffer waits first until the thread is idle (:meth:`settle`). So sample number ``n`` shows the buffer as it
    was when number ``n - ahead`` was asked for, in every run.
    """

    def __init__(self, ahead: int):
        self.ahead = ahead
        self.queue: deque[Future[Any]] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self._ident: list[int] = []

    @property
    def inside(self) -> bool:
        """Whether the caller is the thread: it must not wait for itself."""
        return threading.get_ident() in self._ident

    def next(self, draw: Callable[[], Any]) -> Any:
        """Return the oldest sample of the queue, when others have been ordered; what went wrong in the thread is raised here."""
        if self._thread is None:
            ident = self._ident = []  # the thread must not know this object: it ends when nobody else does
            self._thread = ThreadPoolExecutor(1, "rlbook-prefetch", lambda: ident.append(threading.get_ident()))
        while len(self.queue) <= self.ahead:
            self.queue.append(self._thread.submit(draw))
        try:
            return self.queue.popleft().result()
        except Exception:
            self.forget()  # what was ordered with it most likely failed like it
            return self._thread.submit(draw).result()  # unless there are other rows by now

    def settle(self) -> None:
        """Wait until all samples of the queue are drawn."""
        if not self.inside:
            wait(tuple(self.queue))

    @contextmanager
    def settled(self, lock: Any) -> Iterator[None]:
        """Take the lock at a moment when no draw of the queue waits for it, whoever else is sampling."""
        while True:
            self.settle()
            lock.acquire()
            if self.inside or all(future.done() for future in tuple(self.queue)):
                break
            lock.release()
        try:
            yield
        finally:
            lock.release()

    def forget(self) -> None:
        """Drop the queue."""
        for future in self.queue:
            future.cancel()
        self.settle()
        self.queue.clear()

    def drawn(self) -> list[Any]:
        """Return the samples of the queue."""
        return [future.result() for future in tuple(self.queue)]

    def restore(self, samples: list[Any]) -> None:
        """Put samples in the place of the queue."""
        self.forget()
        for sample in samples:
            self.queue.append(Future())
            self.queue[-1].set_result(sample)

    def close(self) -> None:
        """Drop the queue and end the thread; the next sample starts another one."""
        self.forget()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None


class Mover:
    """Copies samples to a device; to a GPU through pinned memory, in a stream beside the caller's work."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, batch: Any) -> tuple[Any, Any]:
        """Begin to copy; return the copy, and an event after which it is whole."""
        if not isinstance(batch, TensorDictBase):  # a list of objects
            return batch, None
        if self.stream is None:
            return batch.to(self.device), None
        with torch.cuda.stream(self.stream):
            moved = batch.apply(pinned).to(self.device, non_blocking=True)
        return moved, self.stream.record_event()

    def receive(self, sent: tuple[Any, Any]) -> Any:
        """Return the copy; what the caller's stream does with it comes after the event."""
        batch, event = sent
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for value in batch.values(True, True):
                value.record_stream(current)  # its memory is not used again before that
        return batch


def pinned(value: Tensor) -> Tensor:
    """Return a copy in pinned memory, or a tensor of the GPU as it is."""
    return value.contiguous().pin_memory() if value.device.type == "cpu" else value
