"""Returns and advantages: hand-worked values and gradients, definitions, identities, and what must never happen."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import returns as reference
from torch.testing import assert_close

from rlbook.errors import ConfigError, SpecError
from rlbook.functional import (
    generalized_advantage,
    n_step_return,
    q_lambda_return,
    retrace,
    reward_to_go,
    td0_target,
    td_error,
    td_lambda_return,
    v_trace,
)

LAYOUTS = ["row_major", "time_major", "gaps", "mixed"]
BACKENDS = ["numba", "torch"]
SHAPES = [(1,), (6,), (1, 1), (1, 7), (4, 1), (3, 12), (11, 9), (2, 3, 5)]


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "time_major":
        return x.movedim(-1, 0).contiguous().movedim(0, -1)
    return torch.stack([x, x], -1)[..., 0] if layout == "gaps" else x.contiguous()


def rollout(shape, layout: str = "row_major", dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a rollout with episodes that terminate and that are truncated."""
    generator = torch.Generator().manual_seed(seed)
    reward, value, next_value = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))
    terminated, truncated = (torch.rand(shape, generator=generator) < p for p in (0.15, 0.1))
    steps = {"reward": reward, "value": value, "next_value": next_value}
    steps |= {"terminated": terminated, "done": terminated | truncated}
    if layout == "mixed":  # a value network's output is contiguous although the rollout it read is not
        return {k: laid_out(x, "row_major" if "value" in k else "time_major") for k, x in steps.items()}
    return {k: laid_out(x, layout) for k, x in steps.items()}


def consistent(steps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make ``next_value`` the next step's value inside an episode, as with one value function."""
    following = torch.cat([steps["value"][..., 1:], steps["next_value"][..., -1:]], -1)
    return steps | {"next_value": torch.where(steps["done"], steps["next_value"], following)}


def without_value(steps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: x for k, x in steps.items() if k != "value"}


def as_action_value(steps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return without_value(steps) | {"action_value": steps["value"]}


# Three rows: an episode that goes on, one that terminates at step 1 (where next_value means nothing), one truncated there.
REWARD = torch.tensor([[1.0, 2.0, 3.0]]).expand(3, 3)
VALUE = torch.ones(3, 3)
NEXT_VALUE = torch.tensor([[1.0, 1.0, 4.0], [1.0, torch.nan, 4.0], [1.0, 2.0, 4.0]])
TERMINATED = torch.tensor([[False] * 3, [False, True, False], [False] * 3])
DONE = torch.tensor([[False] * 3, [False, True, False], [False, True, False]])


@pytest.mark.parametrize("layout", ["row_major", "time_major", "gaps"])
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_gae_golden_value(backend, layout):
    steps = [laid_out(x, layout) for x in (REWARD, VALUE, NEXT_VALUE, TERMINATED, DONE)]
    advantage, target = generalized_advantage(*steps, 0.5, 0.5, backend=backend)
    # delta = r + 0.5 V' - 1: [0.5, 1.5, 4], [0.5, 1, 4], [0.5, 2, 4]; A_t = delta_t + 0.25 A_{t+1} where not done
    want = torch.tensor([[1.125, 2.5, 4.0], [0.75, 1.0, 4.0], [1.0, 2.0, 4.0]])
    assert_close(advantage, want)
    assert_close(target, want + 1.0)


def test_gae_golden_gradient():
    reward, value, next_value = (x.clone().requires_grad_() for x in (REWARD, VALUE, NEXT_VALUE))
    advantage, _ = generalized_advantage(reward, value, next_value, TERMINATED, DONE, 0.5, 0.5)
    advantage[:, 0].sum().backward()
    # dA_0/ddelta = (1, 0.25, 0.0625) cut after done; ddelta/d(r, V, V') = (1, -1, 0.5), and 0 for V' where terminated
    weight = torch.tensor([[1.0, 0.25, 0.0625], [1.0, 0.25, 0.0], [1.0, 0.25, 0.0]])
    assert_close(reward.grad, weight)
    assert_close(value.grad, -weight)
    assert_close(next_value.grad, 0.5 * weight * ~TERMINATED)


def test_td0_golden():
    next_value = NEXT_VALUE.clone().requires_grad_()
    target = td0_target(REWARD, next_value, TERMINATED, 0.5)
    assert_close(target, torch.tensor([[1.5, 2.5, 5.0], [1.5, 2.0, 5.0], [1.5, 3.0, 5.0]]))
    assert_close(td_error(REWARD, VALUE, next_value, TERMINATED, 0.5), target - 1.0)
    target.sum().backward()
    assert_close(next_value.grad, 0.5 * (~TERMINATED).float())


def test_reward_to_go_golden():
    reward, done = torch.tensor([1.0, 2.0, 4.0], requires_grad=True), torch.tensor([False, True, False])
    last = torch.tensor(8.0, requires_grad=True)
    result = reward_to_go(reward, done, 0.5, last)
    assert_close(result, torch.tensor([2.0, 2.0, 8.0]))  # 4 + 0.5 * 8; 2; 1 + 0.5 * 2
    assert_close(reward_to_go(reward, done, 0.5), torch.tensor([2.0, 2.0, 4.0]))
    result.sum().backward()
    assert_close(reward.grad, torch.tensor([1.0, 1.5, 1.0]))
    assert_close(last.grad, torch.tensor(0.5))


def test_td_lambda_golden():
    reward, next_value = torch.tensor([1.0, 2.0, 4.0], requires_grad=True), torch.tensor([2.0, 4.0, 8.0], requires_grad=True)
    go_on, cut = torch.zeros(3, dtype=torch.bool), torch.tensor([False, True, False])
    result = td_lambda_return(reward, next_value, go_on, go_on, 0.5, 0.5)
    # G2 = 4 + 0.5 * 8 = 8; G1 = 2 + 0.25 * 4 + 0.25 * 8 = 5; G0 = 1 + 0.25 * 2 + 0.25 * 5 = 2.75
    assert_close(result, torch.tensor([2.75, 5.0, 8.0]))
    assert_close(td_lambda_return(reward, next_value, go_on, cut, 0.5, 0.5), torch.tensor([2.5, 4.0, 8.0]))  # truncated
    assert_close(td_lambda_return(reward, next_value, cut, cut, 0.5, 0.5), torch.tensor([2.0, 2.0, 8.0]))  # terminated
    result[0].backward()
    assert_close(reward.grad, torch.tensor([1.0, 0.25, 0.0625]))
    assert_close(next_value.grad, torch.tensor([0.25, 0.0625, 0.03125]))  # the last step bootstraps with weight 0.5, not 0.25


def test_n_step_golden():
    reward = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    next_value = torch.tensor([2.0, 4.0, 8.0, 16.0], requires_grad=True)
    go_on, cut = torch.zeros(4, dtype=torch.bool), torch.tensor([False, True, False, False])
    result = n_step_return(reward, next_value, go_on, go_on, 0.5, 2)
    # r_t + 0.5 r_{t+1} + 0.25 V'_{t+1}: 1 + 1 + 1, 2 + 2 + 2, 4 + 4 + 4; at the end 8 + 0.5 * 16
    assert_close(result, torch.tensor([3.0, 6.0, 12.0, 16.0]))
    assert_close(n_step_return(reward, next_value, go_on, cut, 0.5, 2), torch.tensor([3.0, 4.0, 12.0, 16.0]))
    assert_close(n_step_return(reward, next_value, cut, cut, 0.5, 2), torch.tensor([2.0, 2.0, 12.0, 16.0]))
    result[0].backward()
    assert_close(reward.grad, torch.tensor([1.0, 0.5, 0.0, 0.0]))
    assert_close(next_value.grad, torch.tensor([0.0, 0.25, 0.0, 0.0]))


def test_v_trace_golden():
    reward, value, next_value = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(2), torch.tensor([1.0, 2.0])
    ratio, go_on = torch.tensor([2.0, 0.5], requires_grad=True), torch.zeros(2, dtype=torch.bool)
    advantage, target = v_trace(reward, value, next_value, go_on, go_on, ratio, 0.5)
    # delta = (0.5, 2), rho = c = (1, 0.5); x1 = 0.5 * 2 = 1, x0 = 0.5 + 0.5 * 1 * 1 = 1; v = (2, 2)
    # A1 = 0.5 (2 + 0.5 * 2 - 1) = 1, A0 = 1 (1 + 0.5 * 2 - 1) = 1
    assert_close(target, torch.tensor([2.0, 2.0]))
    assert_close(advantage, torch.tensor([1.0, 1.0]))
    target[0].backward()
    assert_close(reward.grad, torch.tensor([1.0, 0.25]))
    assert_close(ratio.grad, torch.tensor([0.0, 1.0]))  # the first is clipped; 0.5 * delta_1 for the second


def test_q_lambda_golden():
    reward, next_value = torch.tensor([1.0, 2.0, 4.0], requires_grad=True), torch.tensor([2.0, 4.0, 8.0], requires_grad=True)
    go_on, greedy = torch.zeros(3, dtype=torch.bool), torch.tensor([True, False, True])
    peng = q_lambda_return(reward, next_value, go_on, go_on, 0.5, 0.5)
    watkins = q_lambda_return(reward, next_value, go_on, go_on, 0.5, 0.5, greedy=greedy)
    # Watkins: G2 = 4 + 0.5 * 8 = 8; G1 = 2 + 0.25 * 4 + 0.25 * 8 = 5, as a_2 is greedy; G0 = 1 + 0.5 * 2 = 2, as a_1 is not.
    # Peng goes on: G0 = 1 + 0.25 * 2 + 0.25 * 5
    assert_close(watkins, torch.tensor([2.0, 5.0, 8.0]))
    assert_close(peng, torch.tensor([2.75, 5.0, 8.0]))
    watkins.sum().backward()
    assert_close(reward.grad, torch.tensor([1.0, 1.0, 1.25]))
    assert_close(next_value.grad, torch.tensor([0.5, 0.25, 0.625]))


def test_retrace_golden():
    reward, value, next_value = (torch.tensor(x, requires_grad=True) for x in ([1.0, 2.0, 4.0], [1.0, 1.0, 1.0], [2.0, 4.0, 8.0]))
    ratio, go_on = torch.tensor([9.0, 0.5, 2.0], requires_grad=True), torch.zeros(3, dtype=torch.bool)
    result = retrace(reward, value, next_value, go_on, go_on, ratio, 0.5)
    # delta = (1, 3, 7), c = (1, 0.5, 1); x2 = 7, x1 = 3 + 0.5 * 1 * 7 = 6.5, x0 = 1 + 0.5 * 0.5 * 6.5 = 2.625; G = 1 + x
    assert_close(result, torch.tensor([3.625, 7.5, 8.0]))
    result[0].backward()
    weight = torch.tensor([1.0, 0.25, 0.125])  # dx_0/ddelta_k = gamma^k prod c
    assert_close(reward.grad, weight)
    assert_close(next_value.grad, 0.5 * weight)
    assert_close(value.grad, torch.tensor([0.0, -0.25, -0.125]))  # the action's own value cancels
    assert_close(ratio.grad, torch.tensor([0.0, 3.25, 0.0]))  # 0.5 x_1; the last is clipped, the first not used


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_returns_of_action_values_are_their_definitions(shape, layout):
    steps, generator = rollout(shape, layout, torch.float64), torch.Generator().manual_seed(1)
    others, always = without_value(steps), torch.ones(shape, dtype=torch.bool)
    greedy, ratio = torch.rand(shape, generator=generator) < 0.6, 2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    for td_lambda in (0.0, 0.7, 1.0):
        want = reference.q_lambda_return(**others, greedy=greedy.numpy(), gamma=0.9, td_lambda=td_lambda)
        assert_close(q_lambda_return(**others, gamma=0.9, td_lambda=td_lambda, greedy=greedy), torch.from_numpy(want))
        want = reference.q_lambda_return(**others, greedy=always.numpy(), gamma=0.9, td_lambda=td_lambda)
        assert_close(q_lambda_return(**others, gamma=0.9, td_lambda=td_lambda), torch.from_numpy(want))
        q_steps, bounds = as_action_value(steps), {"td_lambda": td_lambda, "c_clip": 0.8 + td_lambda}
        want = reference.retrace(**q_steps, ratio=ratio, gamma=0.9, **bounds)
        assert_close(retrace(**q_steps, ratio=ratio, gamma=0.9, **bounds), torch.from_numpy(want))


def test_identities_of_action_values():
    steps = consistent(rollout((6, 30), dtype=torch.float64))
    others, q_steps, ones = without_value(steps), as_action_value(steps), torch.ones_like(steps["value"])
    never = torch.zeros_like(steps["done"])
    one_step = td0_target(others["reward"], others["next_value"], others["terminated"], 0.9)
    assert_close(q_lambda_return(**others, gamma=0.9, td_lambda=0.8, greedy=never), one_step)
    assert_close(
        q_lambda_return(**others, gamma=0.9, td_lambda=0.8, greedy=~never), td_lambda_return(**others, gamma=0.9, td_lambda=0.8)
    )
    assert_close(retrace(**q_steps, ratio=0 * ones, gamma=0.9), one_step)
    # With action values that do not depend on the action, and on-policy data, it is the lambda-return of the state value.
    assert_close(retrace(**q_steps, ratio=ones, gamma=0.9, td_lambda=0.8), td_lambda_return(**others, gamma=0.9, td_lambda=0.8))


def test_discounts_may_be_tensors():
    steps = consistent(rollout((4, 9), "time_major"))
    others, ratio, greedy = without_value(steps), steps["value"].exp(), steps["value"] > 0
    plain = {k: x for k, x in others.items() if k != "done"}
    calls = [
        lambda g, lam: td0_target(**plain, gamma=g),
        lambda g, lam: td_error(**plain, value=steps["value"], gamma=g),
        lambda g, lam: reward_to_go(steps["reward"], steps["done"], g),
        lambda g, lam: n_step_return(**others, gamma=g, n=3),
        lambda g, lam: td_lambda_return(**others, gamma=g, td_lambda=lam),
        lambda g, lam: generalized_advantage(**steps, gamma=g, gae_lambda=lam),
        lambda g, lam: v_trace(**steps, ratio=ratio, gamma=g, td_lambda=lam),
        lambda g, lam: retrace(**as_action_value(steps), ratio=ratio, gamma=g, td_lambda=lam),
        lambda g, lam: q_lambda_return(**others, gamma=g, td_lambda=lam, greedy=greedy),
    ]
    for call in calls:
        want = call(0.9, 0.8)
        for shape in ((), (4, 1), (4, 9)):
            assert_close(call(torch.full(shape, 0.9), torch.full(shape, 0.8)), want)
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        assert_close(compiled(torch.tensor(0.9), torch.tensor(0.8)), want)


def test_discount_of_each_step_golden():
    reward, gamma = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 0.25, 0.5], requires_grad=True)
    result = reward_to_go(reward, torch.zeros(3, dtype=torch.bool), gamma)
    assert_close(result, torch.tensor([2.5, 3.0, 4.0]))  # 4; 2 + 0.25 * 4; 1 + 0.5 * 3
    result[0].backward()
    assert_close(gamma.grad, torch.tensor([3.0, 2.0, 0.0]))  # G_1; 0.5 G_2; nothing follows the last step
    n_step = td0_target(reward, torch.ones(3), torch.tensor([False, False, True]), torch.tensor([0.9, 0.81, 0.9]))
    assert_close(n_step, torch.tensor([1.9, 2.81, 4.0]))


def test_a_discount_that_would_enlarge_the_batch_is_explained():
    flag = torch.zeros(4, dtype=torch.bool)
    with pytest.raises(SpecError, match=r"gamma must be of the shape of reward, \[4\]; got \[4, 1\]. .*gamma.squeeze\(-1\)"):
        td0_target(torch.ones(4), torch.ones(4), flag, torch.ones(4, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gamma, gae_lambda", [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.7)])
def test_gae_is_its_definition(shape, layout, backend, gamma, gae_lambda):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        steps = rollout(shape, layout, dtype)
        advantage, target = generalized_advantage(**steps, gamma=gamma, gae_lambda=gae_lambda, backend=backend)
        want = torch.from_numpy(reference.generalized_advantage(**steps, gamma=gamma, gae_lambda=gae_lambda)).to(dtype)
        assert_close(advantage, want, rtol=tolerance, atol=tolerance)
        assert_close(target, want + steps["value"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", ["row_major", "time_major", "mixed"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(8, 128), (8, 2048), (256, 512), (1030, 20)])
def test_gae_of_a_large_rollout_is_exact_to_1e5(shape, backend, layout):
    steps = rollout(shape, layout)
    advantage, _ = generalized_advantage(**steps, gamma=0.99, gae_lambda=0.95, backend=backend)
    delta = td_error(*(steps[k].double() for k in ("reward", "value", "next_value")), steps["terminated"], 0.99)
    want = reference.reverse_scan(delta, 0.99 * 0.95 * ~steps["done"])
    assert_close(advantage, torch.from_numpy(want).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_other_returns_are_their_definitions(shape, layout):
    steps = rollout(shape, layout, torch.float64)
    others = without_value(steps)
    for n in (1, 2, 3, 100):
        want = reference.n_step_return(**others, gamma=0.9, n=n)
        assert_close(n_step_return(**others, gamma=0.9, n=n), torch.from_numpy(want))
    for td_lambda in (0.0, 0.7, 1.0):
        want = reference.td_lambda_return(**others, gamma=0.9, td_lambda=td_lambda)
        assert_close(td_lambda_return(**others, gamma=0.9, td_lambda=td_lambda), torch.from_numpy(want))
    last = torch.linspace(-1, 2, math.prod(shape[:-1]), dtype=torch.float64).reshape(shape[:-1])
    for tail in (None, last):
        want = reference.reward_to_go(steps["reward"], steps["done"], 0.9, tail)
        assert_close(reward_to_go(steps["reward"], steps["done"], 0.9, tail), torch.from_numpy(want))


@pytest.mark.parametrize("rho_clip, c_clip, td_lambda", [(1.0, 1.0, 1.0), (2.0, 0.8, 0.9), (0.5, 3.0, 0.5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_v_trace_is_its_definition(shape, rho_clip, c_clip, td_lambda):
    steps = consistent(rollout(shape, "time_major", torch.float64))
    ratio = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    bounds = {"rho_clip": rho_clip, "c_clip": c_clip, "td_lambda": td_lambda}
    want = reference.v_trace(**steps, ratio=ratio, gamma=0.9, **bounds)
    assert_close(v_trace(**steps, ratio=ratio, gamma=0.9, **bounds), tuple(map(torch.from_numpy, want)))


def test_identities():
    steps = consistent(rollout((6, 30), dtype=torch.float64))
    others, value, gamma = without_value(steps), steps["value"], 0.9
    whole = td_lambda_return(**others, gamma=gamma, td_lambda=1.0)
    assert_close(n_step_return(**others, gamma=gamma, n=30), whole)
    assert_close(n_step_return(**others, gamma=gamma, n=29)[..., 1:], whole[..., 1:])  # the loop and the scan are two codes
    assert_close(
        n_step_return(**others, gamma=gamma, n=1), td0_target(**{k: others[k] for k in others if k != "done"}, gamma=gamma)
    )
    error = td_error(**{k: steps[k] for k in steps if k != "done"}, gamma=gamma)
    assert_close(generalized_advantage(**steps, gamma=gamma, gae_lambda=0.0)[0], error)
    assert_close(generalized_advantage(**steps, gamma=gamma, gae_lambda=1.0)[1], whole)
    half = td_lambda_return(**others, gamma=gamma, td_lambda=0.5)
    assert_close(generalized_advantage(**steps, gamma=gamma, gae_lambda=0.5)[1], half)
    on_policy = v_trace(**steps, ratio=torch.ones_like(value), gamma=gamma)
    assert_close(on_policy, (whole - value, whole))
    assert_close(v_trace(**steps, ratio=torch.ones_like(value), gamma=gamma, td_lambda=0.5)[1], half)


def test_gae_lambda_1_is_reward_to_go_with_bootstrap_minus_value():
    steps = consistent(rollout((5, 20), dtype=torch.float64))
    steps["done"] = steps["terminated"]  # nothing truncated inside: the only bootstrap is at the end
    steps = consistent(steps)
    last = torch.where(steps["terminated"][:, -1], 0.0, steps["next_value"][:, -1])
    advantage, _ = generalized_advantage(**steps, gamma=0.9, gae_lambda=1.0)
    assert_close(advantage, reward_to_go(steps["reward"], steps["done"], 0.9, last) - steps["value"])


def every_return(steps: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    others = without_value(steps)
    ratio = torch.linspace(0.2, 2.0, steps["reward"].numel()).reshape(steps["reward"].shape)
    results = [reward_to_go(steps["reward"], steps["done"], 0.9), td_lambda_return(**others, gamma=0.9, td_lambda=0.8)]
    results += [n_step_return(**others, gamma=0.9, n=3), *v_trace(**steps, ratio=ratio, gamma=0.9)]
    results += [q_lambda_return(**others, gamma=0.9, td_lambda=0.8, greedy=steps["value"] > 0)]
    results += [retrace(**as_action_value(steps), ratio=ratio, gamma=0.9)]
    for backend in BACKENDS:
        results += generalized_advantage(**steps, gamma=0.9, gae_lambda=0.8, backend=backend)
    return results


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(2, 30), st.sampled_from(LAYOUTS), st.booleans(), st.data())
def test_what_follows_done_never_reaches_back(rows, steps, layout, terminates, data):
    cut = data.draw(st.integers(0, steps - 2))
    batch = rollout((rows, steps), layout, seed=data.draw(st.integers(0, 1000)))
    batch["done"][:, cut], batch["terminated"][:, cut] = True, terminates
    other = {k: x.clone() for k, x in batch.items()}
    for key in ("reward", "value", "next_value"):
        other[key][:, cut + 1 :] += 1000.0
    other["done"][:, cut + 1 :] ^= True
    for before, after in zip(every_return(batch), every_return(other), strict=True):
        assert torch.equal(before[:, : cut + 1], after[:, : cut + 1])
        assert not torch.equal(before[:, cut + 1 :], after[:, cut + 1 :])


def test_next_value_of_a_terminal_step_is_not_read():
    steps = rollout((9, 20))
    other = steps | {"next_value": torch.where(steps["terminated"], torch.nan, steps["next_value"])}
    for x, y in zip(every_return(steps), every_return(other), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_empty(shape):
    assert all(x.shape == shape for x in every_return(rollout(shape)))


def test_result_follows_the_layout_of_the_reward():
    steps = rollout((4, 6), "time_major")
    advantage, _ = generalized_advantage(**steps, gamma=0.9, gae_lambda=0.9)
    assert advantage.stride() == (1, 4)


def test_value_that_needs_a_gradient_takes_the_torch_code():
    steps = rollout((3, 5))
    steps["value"].requires_grad_()
    advantage, _ = generalized_advantage(**steps, gamma=0.9, gae_lambda=0.9)
    assert advantage.requires_grad
    with torch.no_grad():
        assert_close(generalized_advantage(**steps, gamma=0.9, gae_lambda=0.9, backend="numba")[0], advantage.detach())


def test_mixed_precision_promotes():
    steps = rollout((3, 5))
    want = generalized_advantage(**steps, gamma=0.9, gae_lambda=0.9)
    steps["reward"] = steps["reward"].double()
    assert_close(generalized_advantage(**steps, gamma=0.9, gae_lambda=0.9), tuple(x.double() for x in want), atol=1e-5, rtol=1e-5)


def test_compiles_fullgraph():
    steps = rollout((4, 10))
    compiled = torch.compile(generalized_advantage, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**steps, gamma=0.9, gae_lambda=0.8), generalized_advantage(**steps, gamma=0.9, gae_lambda=0.8))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    steps = rollout((8, 64))
    result = generalized_advantage(**{k: x.cuda() for k, x in steps.items()}, gamma=0.9, gae_lambda=0.8)
    assert_close(tuple(x.cpu() for x in result), generalized_advantage(**steps, gamma=0.9, gae_lambda=0.8))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: {"value": s["value"].unsqueeze(-1)}, r"value must be .*\[3, 4\]; got \[3, 4, 1\]. .*value.squeeze\(-1\)"),
        (lambda s: {"reward": s["reward"].unsqueeze(-1)}, r"value must be .*\[3, 4, 1\]; got \[3, 4\]. .*reward.squeeze\(-1\)"),
        (lambda s: {"next_value": s["next_value"].mT}, r"next_value must be .*; got \[4, 3\]. Put time last: next_value.mT"),
        (lambda s: {"done": s["done"][:, :2]}, r"done must be of the shape of reward, \[3, 4\]; got \[3, 2\]"),
        (lambda s: {"done": s["done"].float()}, r"done must be bool; got torch.float32 \[3, 4\]. .*done.bool\(\)"),
        (lambda s: {"terminated": s["terminated"].byte()}, r"terminated must be bool; got torch.uint8"),
        (lambda s: {"reward": s["reward"].long()}, r"reward must be floating; got torch.int64 \[3, 4\]. .*reward.float\(\)"),
    ],
)
def test_wrong_tensors_are_explained(change, message):
    steps = rollout((3, 4))
    with pytest.raises(SpecError, match=message):
        generalized_advantage(**(steps | change(steps)), gamma=0.9, gae_lambda=0.9)


def test_every_return_checks_its_shapes():
    steps = rollout((3, 4))
    reward, value, next_value, terminated, done = steps.values()
    flat = next_value.flatten()
    calls = [
        lambda: td0_target(reward, flat, terminated, 0.9),
        lambda: td_error(reward, flat, next_value, terminated, 0.9),
        lambda: reward_to_go(reward, done[0], 0.9),
        lambda: td_lambda_return(reward, flat, terminated, done, 0.9, 0.9),
        lambda: n_step_return(reward, flat, terminated, done, 0.9, 2),
        lambda: v_trace(reward, value, next_value, terminated, done, flat, 0.9),
        lambda: retrace(reward, value, next_value, terminated, done, flat, 0.9),
        lambda: q_lambda_return(reward, flat, terminated, done, 0.9, 0.9),
        lambda: q_lambda_return(reward, next_value, terminated, done, 0.9, 0.9, greedy=done[0]),
    ]
    for call in calls:
        with pytest.raises(SpecError, match="must be of the shape of reward"):
            call()


def test_scalar_reward_is_explained():
    one, flag = torch.tensor(1.0), torch.tensor(False)
    with pytest.raises(SpecError, match=r"reward must be \[\*, T\], with time last; got .*\[\]"):
        generalized_advantage(one, one, one, flag, flag, 0.9, 0.9)
    assert_close(td_error(one, one, one, flag, 0.5), torch.tensor(0.5))  # needs no time


def test_wrong_coefficients_are_explained():
    steps = rollout((3, 4))
    others = without_value(steps)
    with pytest.raises(ConfigError, match=r"gamma must be in \[0, 1\]; got 99"):
        generalized_advantage(**steps, gamma=99, gae_lambda=0.9)
    with pytest.raises(ConfigError, match=r"gae_lambda must be in \[0, 1\]; got -0.1"):
        generalized_advantage(**steps, gamma=0.9, gae_lambda=-0.1)
    with pytest.raises(ConfigError, match=r"td_lambda must be in \[0, 1\]; got nan"):
        td_lambda_return(**others, gamma=0.9, td_lambda=float("nan"))
    with pytest.raises(ConfigError, match="n must be positive; got 0"):
        n_step_return(**others, gamma=0.9, n=0)
    with pytest.raises(ConfigError, match=r"c_clip must be positive; got 0\.0"):
        v_trace(**steps, ratio=torch.ones(3, 4), gamma=0.9, c_clip=0.0)


def test_values_of_another_precision():
    reward, value = torch.rand(2, 6), torch.rand(2, 6)
    done = torch.rand(2, 6) < 0.3
    terminated = done & (torch.rand(2, 6) < 0.5)
    for wide in (torch.float64, torch.bfloat16):
        for call in (
            lambda v: td_lambda_return(reward, v, terminated, done, 0.9, 0.8),
            lambda v: n_step_return(reward, v, terminated, done, 0.9, 99),
            lambda v: v_trace(reward, value, v, terminated, done, torch.ones(2, 6).to(v.dtype), 0.9)[1],
            lambda v: retrace(reward, value, v, terminated, done, torch.ones(2, 6).to(v.dtype), 0.9),
        ):
            got = call(value.to(wide))
            assert got.dtype == torch.promote_types(torch.float32, wide)
            assert_close(got.float(), call(value), atol=0.03, rtol=0.03)
