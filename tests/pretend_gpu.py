"""A GPU that is not there: its tensors say that they are on "cuda", compute on the CPU, and refuse to meet tensors of the CPU.

Most mistakes with devices are tensors that were left on the CPU, and waiting for the GPU where nobody has to. Both show here on
any machine. What only a GPU can show are its kernels, streams and graphs: those tests are marked ``cuda``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import rlbook

LIBRARY = str(Path(rlbook.__file__).parent)
CUDA = torch.device("cuda", 0)
GET = {name: getattr(Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu", "data")}
SET_DATA: Any = Tensor.data.__set__  # type: ignore[attr-defined]

READS = {Tensor.item, Tensor.tolist, Tensor.nonzero, torch.nonzero, torch.masked_select, Tensor.masked_select, Tensor.cpu}
READS |= {Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__}
"""What the host cannot have before the GPU has computed it."""
AS_GIVEN = {Tensor.requires_grad_, Tensor.backward, torch.autograd.grad, torch.autograd.backward, Tensor.register_hook}
"""What goes by the identity of its arguments."""
ACROSS = {Tensor.copy_, Tensor.__setitem__}
"""What may copy from one device to another."""
INDEXING = {Tensor.__getitem__, torch.index_put, Tensor.index_put, Tensor.index_put_}
"""What takes indices from the CPU too."""
TOGETHER = {torch.stack, torch.cat, torch.where}
"""What takes not even single numbers from elsewhere."""


class MixedDevicesError(RuntimeError):
    """An operation on tensors of both devices."""


class OnGpu(Tensor):
    """A tensor of the pretended GPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return call(func, args, kwargs or {}, None)


class PretendGpu(TorchFunctionMode):
    """While it is entered, tensors can be made on and moved to "cuda".

    Attributes:
        waits: where the library waited for the device, as ``"file.py:function"``, and how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ours = "device" in kwargs or func in (Tensor.to, Tensor.cuda) or func == SET_DATA
        if not ours and not any(isinstance(x, OnGpu) for x in tensors_of((args, kwargs))):
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return call(func, args, kwargs, self.waits)


def call(func: Any, args: Any, kwargs: dict[str, Any], waits: Counter[str] | None) -> Any:
    """Do what torch would do with tensors of a GPU."""
    name = getattr(func, "__name__", "")
    force = bool(kwargs.get("force"))
    if waits is not None and (func in READS or force):
        note(waits)
    for special, function in SPECIAL:
        if special(func, name):
            return function(func, args, kwargs)
    if func in (Tensor.numpy, Tensor.__array__) and not force:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )
    if func is Tensor.cpu or force:
        return func(*plain(args), **kwargs).copy() if force else plain(args[0]).clone()
    if kwargs.get("device") is not None:
        out = func(*plain(args), **plain({**kwargs, "device": "cpu"}))
        return on_gpu(out) if torch.device(kwargs["device"]).type == "cuda" else plain(out)
    given = list(tensors_of((args, kwargs)))
    check(func, name, given)
    out = func(*args, **kwargs) if func in AS_GIVEN else func(*plain(args), **plain(kwargs))
    if isinstance(out, Tensor) and given and out.data_ptr() == given[0].data_ptr() and out.shape == given[0].shape:
        in_place = (name.endswith("_") and not name.endswith("__")) or name in ("__iadd__", "__isub__", "__imul__", "__iand__")
        out = given[0] if in_place else out
    return on_gpu(out) if any(isinstance(x, OnGpu) for x in given) else out


def note(waits: Counter[str]) -> None:
    """Count the function of the library that waits now."""
    frame: Any = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(LIBRARY):
        frame = frame.f_back
    if frame is not None:
        waits[f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"] += 1


def check(func: Any, name: str, given: list[Tensor]) -> None:
    """Raise MixedDevicesError for what a GPU refuses: single numbers and indices may come from the CPU, and nothing else."""
    here = [x for x in given if not isinstance(x, OnGpu)]
    if not here or len(here) == len(given) or func in ACROSS or name == "__set__":
        return
    numbers = all(x.ndim == 0 for x in here) and func not in TOGETHER and isinstance(given[0], OnGpu)
    if not (numbers or (func in INDEXING and isinstance(given[0], OnGpu))):
        places = [f"{list(x.shape)} on {'cuda' if isinstance(x, OnGpu) else 'cpu'}" for x in given]
        raise MixedDevicesError(f"{name}: {', '.join(places)}")


def attribute(func: Any, args: Any, kwargs: Any) -> Any:
    """``x.device``, ``x.grad`` and the like."""
    answers = {"device": CUDA, "is_cuda": True, "is_cpu": False}
    for name, answer in answers.items() if isinstance(args[0], OnGpu) else ():
        if func == GET[name]:
            return answer
    return on_gpu(func(*args)) if isinstance(args[0], OnGpu) else func(*args)


def moved(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """``x.to(...)`` and ``x.cuda()``, which copy where the device changes."""
    x, *rest = args
    places = [a for a in (*rest, kwargs.get("device"), kwargs.get("other")) if isinstance(a, str | torch.device | Tensor)]
    before, after = isinstance(x, OnGpu), isinstance(x, OnGpu)
    if func is Tensor.cuda:
        after, rest, kwargs = True, [], {}
    elif places:
        after = isinstance(places[0], OnGpu) if isinstance(places[0], Tensor) else torch.device(places[0]).type == "cuda"
    rest = ["cpu" if isinstance(a, str | torch.device) else a for a in rest]
    kwargs = {key: "cpu" if key == "device" and value is not None else value for key, value in kwargs.items()}
    out = Tensor.to(plain(x), *plain(rest), **plain(kwargs)) if rest or kwargs else plain(x)
    if before == after and out.data_ptr() == x.data_ptr() and out.dtype == x.dtype:
        return x
    out = out.clone() if before != after else out
    return on_gpu(out) if after else out


def set_data(func: Any, args: Any, kwargs: Any) -> None:
    """``x.data = value``, by which modules move their parameters."""
    x, value = args
    func(x, value)
    if isinstance(value, OnGpu) and not isinstance(x, OnGpu):
        parameter = isinstance(x, nn.Parameter)
        x.__class__ = OnGpu
        if parameter:
            x._is_param = True
    elif isinstance(x, OnGpu) and not isinstance(value, OnGpu):
        x.__class__ = nn.Parameter if getattr(x, "_is_param", False) else Tensor


def deepcopy_of(func: Any, args: Any, kwargs: Any) -> Any:
    """``copy.deepcopy``, of parameters too."""
    x, memo = args
    if id(x) not in memo:
        copy: Any = x.as_subclass(Tensor).detach().clone().as_subclass(OnGpu)
        copy.requires_grad_(x.requires_grad)
        copy.__dict__.update(x.__dict__)
        memo[id(x)] = copy
    return memo[id(x)]


SPECIAL: Any = [
    (lambda func, name: func is torch._has_compatible_shallow_copy_type, lambda *_: True),
    (lambda func, name: func == SET_DATA, set_data),
    (lambda func, name: name in ("__get__", "__set__") and func != GET["data"], attribute),
    (lambda func, name: func == Tensor.__deepcopy__, deepcopy_of),
    (lambda func, name: func in (Tensor.to, Tensor.cuda), moved),
]
"""What is not computed as it stands, and what is done instead."""


def tensors_of(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list):
        for part in x:
            yield from tensors_of(part)
    elif isinstance(x, dict):
        yield from tensors_of(list(x.values()))


def plain(x: Any) -> Any:
    """The same tensors as those of the CPU."""
    return mapped(x, lambda y: y.as_subclass(Tensor) if isinstance(y, OnGpu) else y)


def on_gpu(x: Any) -> Any:
    """The same tensors as those of the GPU."""
    return mapped(x, lambda y: y.as_subclass(OnGpu) if type(y) is Tensor else y)


def mapped(x: Any, change: Any) -> Any:
    if isinstance(x, Tensor):
        return change(x)
    if type(x) in (tuple, list):
        return type(x)(mapped(y, change) for y in x)
    if type(x) is dict:
        return {key: mapped(y, change) for key, y in x.items()}
    if isinstance(x, tuple) and hasattr(x, "n_fields"):  # torch.return_types
        return type(x)([mapped(y, change) for y in x])  # type: ignore[call-arg]
    return x


class Generator(torch.Generator):
    """A generator that says where it was made; the numbers are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        self = super().__new__(cls, "cpu")
        self.place = torch.device(device)
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA if self.place.type == "cuda" else self.place


class Stream:
    """A stream or an event that has nothing to wait for."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def wait_stream(self, stream: Stream) -> None:
        pass

    wait_event = wait_stream

    def record_event(self) -> Stream:
        return self


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendGpu]:
    """A pretended GPU, for the length of a test."""
    if torch.cuda.is_available():
        pytest.skip("there is a real one")
    monkeypatch.setattr(torch, "Generator", Generator)
    replaced = {"Stream": Stream, "Event": Stream, "is_available": lambda: True, "device_count": lambda: 1}
    replaced |= {"current_device": lambda: 0, "stream": Stream, "current_stream": Stream, "synchronize": lambda *_: None}
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda x, *_: x)
    with PretendGpu() as mode:
        yield mode
