"""What every exported loss must do. Losses are found by themselves; their cases stand in cases.py."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from losses.casekit import reshaped
from losses.cases import CASES, Case
from tensordict import TensorDict
from torch.testing import assert_close

import rlbook.losses
from rlbook.errors import ConfigError, MissingKeyError, SpecError
from rlbook.losses import Loss
from rlbook.losses.base import PER_STEP

EXPORTED = [
    name
    for name in rlbook.losses.__all__
    if isinstance(getattr(rlbook.losses, name), type) and issubclass(getattr(rlbook.losses, name), Loss) and name != "Loss"
]
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def gradients(loss: Loss, term: torch.Tensor) -> dict[str, torch.Tensor | None]:
    names, parameters = zip(*loss.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(term, parameters, allow_unused=True, retain_graph=True), strict=True))


def test_every_loss_has_a_case():
    assert EXPORTED
    assert {type(case.make()).__name__ for case in CASES.values()} == set(EXPORTED)


@pytest.mark.parametrize("name", EXPORTED)
def test_every_hyper_parameter_has_a_case(name):
    cases = [case for case in CASES.values() if type(case.make()).__name__ == name]
    declared = {buffer for case in cases for buffer in case.make()._buffers}
    assert declared == {name for case in cases for name in case.hyper}


@each
def test_loss_is_the_sum_of_its_terms(case: Case):
    batch = case.batch()
    out = case.make()(batch)
    terms = {name for name in out.keys() if name.startswith("loss_")}
    assert terms == case.terms
    assert_close(out["loss"], torch.stack([out[name] for name in terms]).sum())
    for name, value in out.items():
        assert value.shape == (batch.batch_size if name == "td_error" else ())
        assert value.requires_grad == name.startswith("loss")  # diagnostics are detached


@each
def test_each_term_reaches_its_modules_and_no_others(case: Case):
    loss = case.make()
    out = loss(case.batch())
    for term in case.terms:
        reached = {name.split(".")[0] for name, grad in gradients(loss, out[term]).items() if grad is not None and grad.any()}
        assert reached == set(loss.trains[term]), term


@each
def test_a_part_is_what_it_is_in_the_whole(case: Case):
    loss, batch = case.make(), case.batch()
    noise = loss.prepare(batch)
    whole = loss(batch, noise)
    for term in case.terms:
        part = loss(batch, noise, {term})
        assert_close(part[term], whole[term])
        assert_close(gradients(loss, part[term]), gradients(loss, whole[term]))


@each
def test_double_precision_gives_the_same_but_for_rounding(case: Case):
    loss, batch = case.make(), case.batch()
    noise, other = loss.prepare(batch), deepcopy(loss).double()
    single = loss(batch, noise)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in noise.items()}
    double = other(batch.apply(lambda x: x.double() if x.is_floating_point() else x), wide)
    assert double["loss"].dtype == torch.float64
    assert_close(double["loss"].float(), single["loss"], rtol=1e-3, atol=1e-4)


@each
def test_the_same_noise_gives_the_same_terms(case: Case):
    loss, batch = case.make(), case.batch()
    torch.manual_seed(1)
    noise = loss.prepare(batch)
    torch.manual_seed(1)
    assert_close(dict(loss(batch, noise).items()), dict(loss(batch).items()), rtol=0, atol=0)


@each
def test_data_receives_no_gradient(case: Case):
    loss, batch = case.make(), case.batch()
    data = {key: value.requires_grad_() for key, value in batch.items(True, True) if value.is_floating_point()}
    grads = torch.autograd.grad(loss(batch)["loss"], list(data.values()), allow_unused=True)
    reached = {key for key, grad in zip(data, grads, strict=True) if grad is not None and grad.any()}
    together = {("next", "observation")} if type(loss).__name__ == "CrossQLoss" else set()  # through the batch's statistics
    assert reached <= {"observation", "action"} | together  # what the networks themselves read


@each
def test_a_missing_entry_is_explained(case: Case):
    loss, batch = case.make(), case.batch()
    for key in loss.in_keys:
        name = key if isinstance(key, str) else ".".join(key)
        with pytest.raises(MissingKeyError, match=f"A batch for {type(loss).__name__} must be one with '{name}'; got the keys"):
            loss(batch.exclude(key))


@each
def test_a_trailing_one_is_explained(case: Case):
    loss, batch = case.make(), case.batch()
    assert PER_STEP & set(loss.in_keys)
    for key in PER_STEP & set(loss.in_keys):
        want = re.escape(f"of shape {list(batch.batch_size)}; got {[*batch.batch_size, 1]}. Drop the trailing dimension")
        with pytest.raises(SpecError, match=want):
            loss(batch.copy().set(key, batch[key].unsqueeze(-1)))


@each
def test_reads_its_keys_only(case: Case):
    loss, batch = case.make(), case.batch()
    noise = loss.prepare(batch)
    few = loss(batch.select(*loss.entries(batch)), noise)
    assert_close(dict(few.items()), dict(loss(batch, noise).items()), rtol=0, atol=0)


@each
def test_any_batch_dimensions(case: Case):
    loss, batch = case.make(), case.batch()
    noise = loss.prepare(batch)
    shape = (3, 4) if batch.batch_dims == 1 else (1, *batch.batch_size)  # sequences stay as long as they are
    other, same = loss(*reshaped(batch, shape, noise)), loss(batch, noise)
    assert_close({name: x.flatten() for name, x in other.items()}, {name: x.flatten() for name, x in same.items()})


@each
def test_compiled_equals_eager_and_hyper_parameters_stay_live_in_both(case: Case, quick_compile):
    loss, batch = case.make(), case.batch()
    compiled, noise = torch.compile(loss, fullgraph=True), loss.prepare(batch)

    def both() -> TensorDict:
        eager, traced = loss(batch, noise), compiled(batch, noise)
        assert_close(dict(traced.items()), dict(eager.items()), rtol=1e-5, atol=1e-5)
        assert_close(gradients(loss, traced["loss"]), gradients(loss, eager["loss"]), rtol=1e-5, atol=1e-5)
        return eager.detach()

    before = both()
    for name, (value, changes) in case.hyper.items():
        setattr(loss, name, value)
        after = both()
        assert after[changes] != before[changes], name
        before = after


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor imports torch.jit
def test_inductor_equals_eager():
    case = CASES["PPOLoss"]
    loss, batch = case.make(), case.batch()
    out = torch.compile(loss, fullgraph=True)(batch)
    assert_close(dict(out.items()), dict(loss(batch).items()), rtol=1e-5, atol=1e-5)
    assert_close(gradients(loss, out["loss"]), gradients(loss, loss(batch)["loss"]), rtol=1e-5, atol=1e-5)


@each
def test_state_dict_holds_the_hyper_parameters(case: Case):
    loss, other = case.make(), case.make()
    for name, (value, _) in case.hyper.items():
        setattr(loss, name, value)
    other.load_state_dict(loss.state_dict())
    for name, (value, _) in case.hyper.items():
        assert_close(getattr(other, name), torch.tensor(value))


@pytest.mark.parametrize("value", [float("nan"), "0.2", None])
def test_a_hyper_parameter_is_a_number(value):
    loss = CASES["PPOLoss"].make()
    with pytest.raises(ConfigError, match=r"temperature must be a number; got .*temperature=0.1"):
        loss.hyper(temperature=value)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("gamma", 99.0, r"gamma must be in \[0, 1\]; got 99.0. Pass for example gamma=0.99"),
        ("gamma", -0.1, r"gamma must be in \[0, 1\]"),
        ("clip_eps", -0.2, "clip_eps must be at least 0; got -0.2"),
    ],
)
def test_a_hyper_parameter_is_in_its_range(name, value, match):
    loss = CASES["PPOLoss"].make()
    with pytest.raises(ConfigError, match=match):
        loss.hyper(**{name: value})
    loss.hyper(**{name: 0.5})
    with pytest.raises(ConfigError, match=match):
        setattr(loss, name, value)
    assert getattr(loss, name) == 0.5


def test_hyper_parameters_live_where_the_parameters_do():
    loss = CASES["PPOLoss"].make().to("meta")
    loss.hyper(temperature=1.0)
    assert loss.temperature.device.type == "meta"
