"""Several processes that train one model, each on its share of every batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from rlbook.errors import ConfigError, explain


class Peers:
    """The processes of a group, which hold the same weights and average their gradients.

    Args:
        group: of torch.distributed; all processes by default.

    Raises:
        ConfigError: torch.distributed has not been initialised.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        if not (dist.is_available() and dist.is_initialized()):
            fix = 'Call torch.distributed.init_process_group("gloo") first ("nccl" on GPUs), and start with torch.distributed.run'
            raise ConfigError(explain("distributed", "used inside a process group", "none", fix))
        self.group, self.size = group, dist.get_world_size(group)
        self._first = 0 if group is None else dist.get_global_rank(group, 0)

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the values they have in the first process."""
        for tensor in tensors:
            sent = tensor.contiguous()
            dist.broadcast(sent, self._first, self.group)
            if sent is not tensor:
                tensor.copy_(sent)

    @torch.no_grad()
    def average(self, vectors: Sequence[Tensor]) -> None:
        """Replace vectors by their means over the processes, in place; one message for each."""
        works = [dist.all_reduce(vector, group=self.group, async_op=True) for vector in vectors]
        for work, vector in zip(works, vectors, strict=True):
            if work is not None:
                work.wait()
            vector.div_(self.size)
