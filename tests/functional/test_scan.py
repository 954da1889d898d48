"""The reverse scan: values, gradients, layouts, backends, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import returns as reference
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.functional import reverse_scan, scan

LAYOUTS = ["row_major", "time_major", "gaps"]
SHAPES = [(1,), (7,), (1, 1), (1, 9), (5, 1), (3, 16), (8, 17), (19, 40), (2, 3, 5), (2, 1, 3, 4)]


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Return the same numbers in another order of memory: a collector hands out [N, T] views of time-major memory."""
    if layout == "time_major":
        return x.movedim(-1, 0).contiguous().movedim(0, -1)
    if layout == "gaps":
        return torch.stack([x, x], -1)[..., 0]
    return x.contiguous()


def random_problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(shape, generator=generator, dtype=dtype)
    b = torch.rand(shape, generator=generator, dtype=dtype) * (torch.rand(shape, generator=generator) > 0.2)
    return a, b, torch.randn(shape[:-1], generator=generator, dtype=dtype)


def expected(a, b, last=0.0) -> torch.Tensor:
    return torch.from_numpy(reference.reverse_scan(a, b, last)).to(a.dtype)


@pytest.mark.parametrize("backend", ["auto", "numba", "torch"])
def test_golden_value(backend):
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.0, 3.0])
    # x2 = 3 + 3 * 4 = 15, x1 = 2 + 2 * 15 = 32, x0 = 1 + 0.5 * 32 = 17; without last: 3, 8, 5
    assert_close(reverse_scan(a, b, torch.tensor(4.0), backend=backend), torch.tensor([17.0, 32.0, 15.0]))
    assert_close(reverse_scan(a, b, backend=backend), torch.tensor([5.0, 8.0, 3.0]))


def test_golden_gradient():
    a, b = torch.tensor([1.0, 2.0, 3.0], requires_grad=True), torch.tensor([0.5, 2.0, 3.0], requires_grad=True)
    last = torch.tensor(4.0, requires_grad=True)
    reverse_scan(a, b, last)[0].backward()
    # dx0/da = (1, b0, b0 b1), dx0/db = (x1, b0 x2, b0 b1 last), dx0/dlast = b0 b1 b2
    assert_close(a.grad, torch.tensor([1.0, 0.5, 1.0]))
    assert_close(b.grad, torch.tensor([32.0, 7.5, 4.0]))
    assert_close(last.grad, torch.tensor(3.0))


@pytest.mark.parametrize("small", [1, 2**14])  # 1: pairs all the way down; 2**14: doubling
@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_gradient_is_the_numerical_one(steps, small, monkeypatch):
    monkeypatch.setattr(scan, "_SMALL", small)
    inputs = [x.requires_grad_() for x in random_problem((2, steps), torch.float64)]
    assert torch.autograd.gradcheck(reverse_scan, inputs)


@pytest.mark.parametrize("layout_b", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layouts_and_backends_agree_with_the_loop(shape, layout, layout_b):
    a, b, last = random_problem(shape)
    want, want_zero = expected(a, b, last), expected(a, b)
    a, b = laid_out(a, layout), laid_out(b, layout_b)
    for backend in ("numba", "torch"):
        assert_close(reverse_scan(a, b, last, backend=backend), want, rtol=1e-5, atol=1e-5)
        assert_close(reverse_scan(a, b, backend=backend), want_zero, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("small", [1, 64, 2**14])
@pytest.mark.parametrize("steps", [1, 2, 3, 31, 64, 100])
def test_pairs_and_doubling_agree_with_the_loop(steps, small, layout, monkeypatch):
    monkeypatch.setattr(scan, "_SMALL", small)
    a, b, last = random_problem((3, steps), torch.float64)
    result = reverse_scan(laid_out(a, layout), laid_out(b, layout), last, backend="torch")
    assert_close(result, expected(a, b, last), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("shape", [(8, 2048), (256, 512)])
def test_large_float32_is_exact_to_1e5(shape, backend, layout):
    a, b, _ = random_problem(shape)
    b = torch.where(b > 0, 0.95, b)
    assert_close(reverse_scan(laid_out(a, layout), laid_out(b, layout), backend=backend), expected(a, b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_float64_keeps_its_precision(backend, layout):
    a, b, last = random_problem((9, 50), torch.float64)
    result = reverse_scan(laid_out(a, layout), laid_out(b, layout), last, backend=backend)
    assert result.dtype == torch.float64
    assert_close(result, expected(a, b, last), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_factor_broadcasts(backend):
    a, _, last = random_problem((4, 6))
    for b in (0.9, torch.tensor(0.9), torch.rand(6), torch.rand(4, 1), torch.rand(1, 6)):
        full = torch.as_tensor(b, dtype=a.dtype).expand(4, 6)
        assert_close(reverse_scan(a, b, last, backend=backend), expected(a, full, last), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (2, 0, 4)])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_empty(shape, backend):
    a = torch.zeros(shape)
    assert reverse_scan(a, a, torch.zeros(shape[:-1]), backend=backend).shape == shape


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_result_shares_no_memory_with_the_input(backend):
    a = torch.ones(3, 1)
    reverse_scan(a, 0.5, backend=backend).zero_()
    assert_close(a, torch.ones(3, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_infinity_and_nan_travel_back_like_in_the_loop(backend, layout):
    a, b = torch.ones(2, 12), torch.full((2, 12), 0.5)
    a[0, 6], a[1, 6] = torch.inf, torch.nan
    assert_close(reverse_scan(laid_out(a, layout), laid_out(b, layout), backend=backend), expected(a, b), equal_nan=True)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 10), st.integers(2, 40), st.data())
def test_nothing_crosses_a_zero_factor(rows, steps, data):
    cut = data.draw(st.integers(0, steps - 2))
    a, b, last = random_problem((rows, steps), seed=data.draw(st.integers(0, 1000)))
    b[:, cut] = 0.0
    later = a.clone()
    later[:, cut + 1 :] += 1000.0
    for backend in ("numba", "torch"):
        for layout in LAYOUTS:
            before = reverse_scan(laid_out(a, layout), laid_out(b, layout), last, backend=backend)
            after = reverse_scan(laid_out(later, layout), laid_out(b, layout), last + 5.0, backend=backend)
            assert torch.equal(before[:, : cut + 1], after[:, : cut + 1])
            assert not torch.equal(before[:, cut + 1 :], after[:, cut + 1 :])


def test_half_precision_takes_the_torch_code():
    a, b, last = random_problem((3, 10), torch.bfloat16)
    want = expected(a.double(), b.double(), last.double())
    assert_close(reverse_scan(a, b, last), want.bfloat16(), rtol=0.05, atol=0.05)


def test_torch_func_transforms_take_the_torch_code():
    a, b, last = random_problem((4, 6), torch.float64)
    assert_close(torch.func.vmap(reverse_scan)(a, b, last), expected(a, b, last))
    gradient = torch.func.grad(lambda a: reverse_scan(a, b, last).sum())(a)
    assert_close(gradient[:, 0], torch.ones(4, dtype=torch.float64))
    assert_close(gradient[:, 1], 1 + b[:, 0])


def test_without_numba_auto_takes_the_torch_code(monkeypatch):
    monkeypatch.setattr(scan, "_load_kernels", lambda: None)
    a, b, last = random_problem((3, 8))
    assert_close(reverse_scan(a, b, last), expected(a, b, last), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="a Python without a working numba"):
        reverse_scan(a, b, backend="numba")


def test_kernel_compiles_without_a_directory_to_keep_it_in(monkeypatch):
    from rlbook.functional import _kernels

    def njit(function=None, cache=False):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return function

    monkeypatch.setattr(_kernels, "njit", njit)
    assert _kernels._jit(abs) is abs


def test_compiles_fullgraph():
    a, b, last = random_problem((3, 9))
    compiled = torch.compile(reverse_scan, fullgraph=True, backend="aot_eager")
    assert_close(compiled(a, b, last), expected(a, b, last), rtol=1e-5, atol=1e-5)
    assert_close(compiled(a, 0.5), expected(a, torch.full_like(a, 0.5)), rtol=1e-5, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(3, 17), (256, 512)])
def test_cuda(shape):
    a, b, last = random_problem(shape)
    result = reverse_scan(a.cuda(), b.cuda(), last.cuda())
    assert_close(result.cpu(), expected(a, b, last), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="got a tensor on cuda"):
        reverse_scan(a.cuda(), b.cuda(), backend="numba")


@pytest.mark.parametrize(
    "a, b, last, message",
    [
        (torch.ones(3, dtype=torch.int64), 0.5, None, r"a must be floating \[\*, T\]; got torch.int64 \[3\].*float\(\)"),
        (torch.tensor(1.0), 0.5, None, r"a must be floating \[\*, T\]; got torch.float32 \[\]"),
        (torch.ones(2, 3), torch.ones(2, 3, 1), None, r"b must be broadcastable to a, \[2, 3\]; .*squeeze\(-1\)"),
        (torch.ones(2, 3), torch.ones(3, 2), None, r"b must be broadcastable to a, \[2, 3\]; got torch.float32 \[3, 2\]"),
        (torch.ones(2, 3), torch.ones(2, 3).double(), None, r"b must be torch.float32, like a; .*b.to\(torch.float32\)"),
        (torch.ones(2, 3), 0.5, torch.ones(3), r"last must be torch.float32 \[2\]: the shape of a without time; got .*\[3\]"),
        (torch.ones(2, 3), 0.5, torch.ones(2, 1), r"last must be .*\[2\].*; got torch.float32 \[2, 1\]"),
    ],
)
def test_wrong_input_is_explained(a, b, last, message):
    with pytest.raises(SpecError, match=message):
        reverse_scan(a, b, last)


def test_wrong_backend_is_explained():
    a = torch.ones(3)
    with pytest.raises(ConfigError, match=r"backend must be .*; got 'cuda'"):
        reverse_scan(a, a, backend="cuda")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="got a tensor that requires a gradient"):
        reverse_scan(a.clone().requires_grad_(), a, backend="numba")
    with pytest.raises(ConfigError, match=r"got torch\.float16"):
        reverse_scan(a.half(), a.half(), backend="numba")
