"""Recurrent networks: a step, a sequence, resets inside one and the loop's rollouts are all the same computation."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.testing import assert_close
from toys import Clock

from rlbook import (
    GAE,
    MLP,
    TD0,
    Actor,
    Collector,
    DQNLoss,
    GymEnv,
    PPOLoss,
    RewardSum,
    TransformedEnv,
    ValueHead,
    VTrace,
    compile_update,
    minibatches,
)
from rlbook.envs import GridWorld, Pendulum, TMaze
from rlbook.errors import ConfigError, MissingKeyError, SpecError
from rlbook.estimators import by_agent
from rlbook.modules import GRU, LSTM, Carry, Carrying, EpsilonGreedy, QValueActor, make_actor, make_qvalue, make_value, warm_up

CELLS = {"GRU": GRU, "LSTM": LSTM}
every_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def sequences(rows: int = 5, steps: int = 12, share: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs ``[B, T, 3]`` in float64, and where episodes end."""
    return torch.randn(rows, steps, 3, dtype=torch.float64), torch.rand(rows, steps) < share


def maze(**settings) -> TMaze:
    return TMaze(**{"num_envs": 4, "length": 3, "max_steps": 7, "seed": 0, **settings})


# ---- the network -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", CELLS)
def test_equals_torch_on_its_weights(name, layers):
    ours = CELLS[name](2, 3, 8, layers).double()
    theirs = getattr(nn, name)(3, 8, layers, batch_first=True).double()
    theirs.load_state_dict({key: value for key, value in ours.state_dict().items() if not key.startswith("head")})
    (x, _), done = sequences(), torch.zeros(5, 12, dtype=torch.bool)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    expected, _ = theirs(x)
    hidden, _ = ours.advance(x, state=ours.initial_state((5,)), done=done)
    assert_close(hidden, expected, rtol=1e-12, atol=1e-12)
    out, _ = ours(x, state=ours.initial_state((5,)), done=done)
    assert_close(out, ours.head(expected), rtol=1e-12, atol=1e-12)


def test_golden_value_of_a_gru():
    # One unit, all weights 1, biases 0, x = 1, h = 1/2: r = z = s(3/2), n = tanh(1 + r / 2), h' = (1 - z) n + z / 2.
    net = GRU(1, 1, 1, head=nn.Identity()).double()
    for parameter in net.parameters():
        nn.init.constant_(parameter, 1.0 if parameter.ndim == 2 else 0.0)
    _, after = net(torch.ones(1, 1, dtype=torch.float64), state=torch.full((1, 1, 1), 0.5, dtype=torch.float64))
    gate = 1 / (1 + torch.tensor(-1.5, dtype=torch.float64).exp())
    assert_close(after.squeeze(), (1 - gate) * torch.tanh(1 + gate / 2) + gate / 2)


@pytest.mark.parametrize("layers", [1, 2])
@every_cell
def test_a_sequence_equals_its_steps(cell, layers):
    net, (x, done) = cell(2, 3, 8, layers).double(), sequences()
    state = torch.randn(5, *net.state_shape, dtype=torch.float64)
    out, after = net(x, state=state, done=done)
    for t in range(12):
        one, state = net(x[:, t], state=state)
        assert_close(one, out[:, t], rtol=1e-12, atol=1e-12)
        assert_close(state, after[:, t], rtol=1e-12, atol=1e-12)
        state = state.masked_fill(done[:, t, None, None], 0.0)


@every_cell
def test_resets_inside_a_sequence_equal_episodes_apart(cell):
    net, (x, done) = cell(2, 3, 8, 2).double(), sequences(rows=3, steps=20)
    x.requires_grad_()
    out, _ = net(x, state=net.initial_state((3,)), done=done)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    apart = x.detach().clone().requires_grad_()
    for row in range(3):
        ends = [*(done[row].nonzero().flatten() + 1).tolist(), 20]
        for start, stop in zip([0, *ends], ends, strict=False):
            if start == stop:
                continue
            piece = apart[row : row + 1, start:stop]
            whole = torch.zeros(1, stop - start, dtype=torch.bool)
            alone, _ = net(piece, state=net.initial_state((1,)), done=whole)
            assert_close(alone[0], out[row, start:stop], rtol=1e-12, atol=1e-12)
            alone.square().sum().backward()
    assert_close(apart.grad, gradient, rtol=1e-10, atol=1e-12)
    assert done.sum() > 10


@every_cell
def test_nothing_before_the_end_of_an_episode_reaches_what_comes_after(cell):
    net, (x, _) = cell(2, 3, 8), sequences(rows=1)
    done = torch.zeros(1, 12, dtype=torch.bool)
    done[0, 5] = True
    x = x.float().requires_grad_()
    out, _ = net(x, state=torch.randn(1, *net.state_shape), done=done)
    (gradient,) = torch.autograd.grad(out[0, 6:].sum(), x)
    assert gradient[0, :6].abs().max() == 0
    assert gradient[0, 6:].abs().min() > 0
    (gradient,) = torch.autograd.grad(net(x, state=net.initial_state((1,)), done=done)[0][0, 5].sum(), x)
    assert gradient[0, :6].abs().min() > 0


def test_any_batch_and_several_inputs():
    net = GRU(2, 5, 8)
    x, goal = torch.randn(2, 3, 7, 3), torch.randn(2, 3, 7, 2)
    out, after = net(x, goal, state=net.initial_state((2, 3)), done=torch.zeros(2, 3, 7, dtype=torch.bool))
    assert out.shape == (2, 3, 7, 2)
    assert after.shape == (2, 3, 7, 1, 8)
    out, after = net(x[0, 0, 0], goal[0, 0, 0], state=net.initial_state())
    assert out.shape == (2,)
    assert after.shape == (1, 8)


def test_an_encoder_and_a_head():
    net = GRU(2, 6, 8, encoder=MLP(6, 3), head=MLP(2, 8))
    assert net(torch.zeros(4, 3), state=net.initial_state((4,)))[0].shape == (4, 2)


def test_errors_of_the_network():
    with pytest.raises(ConfigError, match="hidden_size must be a positive integer; got 0"):
        GRU(2, 3, 0)
    net = GRU(2, 3, 8)
    with pytest.raises(SpecError, match=r"The input of a recurrent layer must be \[4, 3\] with \[1, 8\]; got \[4, 5\]"):
        net(torch.zeros(4, 5), state=net.initial_state((4,)))


# ---- acting ----------------------------------------------------------------------------------------------------------------
ENVS = {
    "native": maze,
    "unbatched": lambda: maze(num_envs=None),
    "of arrays": lambda: GymEnv("CartPole-v1", num_envs=2, max_episode_steps=7, seed=0),
    "of tensors": lambda: Clock(4),
}


def pair(env, cell=GRU) -> tuple[Actor, ValueHead]:
    size, choices = env.observation_spec["observation"].shape[-1], env.action_spec.n
    return Actor(cell(choices, size, 8), env.action_spec), ValueHead(cell(1, size, 8))


@pytest.mark.parametrize("make", ENVS.values(), ids=ENVS)
@every_cell
def test_a_rollout_holds_the_state_of_every_step(cell, make):
    env = make()
    policy = Carry(*pair(env, cell))
    collector = Collector(env, policy, frames_per_batch=20 * env.num_envs)
    parts = [collector.collect().clone() for _ in range(3)]
    data = torch.cat(parts, -1)
    assert data["next", "done"].any()
    for module, key in ((policy.actor, "actor"), *((other, "value") for other in policy.others)):
        state = module.initial_state(env.batch_size)[module.state_key]
        for t in range(60):
            assert_close(data["recurrent", key][..., t, :, :], state)
            leaves = {"observation": data["observation"][..., t, :], module.state_key: state}
            state = torch.where(data["next", "done"][..., t, None, None], 0.0, module.after(leaves))
        assert data["recurrent", key].abs().max() > 0


@every_cell
def test_a_sequence_finds_the_log_probabilities_of_acting(cell):
    actor, _ = pair(maze(), cell)
    data = maze().rollout(50, actor, break_when_any_done=False)
    assert data["next", "done"].any()
    assert_close(actor.dist(data).log_prob(data["action"]), data["action_log_prob"])
    part = data[:, 17:31]  # a piece starts from its stored state
    assert_close(actor.dist(part).log_prob(part["action"]), part["action_log_prob"])
    rows = data.reshape(-1)  # single steps, each with its own
    assert_close(actor.dist(rows).log_prob(rows["action"]), rows["action_log_prob"])


def test_a_second_rollout_goes_on_and_a_reset_forgets():
    env = maze(length=30, max_steps=None)
    actor, _ = pair(env)
    collector = Collector(env, actor, frames_per_batch=20)
    first, second = collector.collect().clone(), collector.collect().clone()
    assert (first["recurrent", "actor"][:, 0] == 0).all()
    assert second["recurrent", "actor"][:, 0].abs().min() > 0
    env.reset()
    assert (collector.collect()["recurrent", "actor"][:, 0] == 0).all()


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("make", [maze, ENVS["of arrays"]], ids=["native", "of arrays"])
def test_compiled_collecting_is_the_same(make):
    def collect(compile: bool) -> TensorDict:
        torch.manual_seed(0)
        env = make()
        policy = Carry(*pair(env, LSTM))
        collector = Collector(env, policy, frames_per_batch=16 * env.num_envs, compile=compile)
        return torch.cat([collector.collect().clone() for _ in range(3)], -1)

    eager, compiled = collect(False), collect(True)
    assert eager["next", "done"].any()
    for key in eager.keys(True, True):
        assert_close(compiled[key], eager[key], rtol=1e-4, atol=1e-5)


def test_greedy_and_exploring_policies_carry_the_state():
    env = maze()
    actor, value = pair(env)
    qvalue = QValueActor(GRU(4, 3, 8), env.action_spec)
    for policy, key in (
        (actor.greedy, "actor"),
        (Carry(actor, value).greedy, "actor"),
        (qvalue, "qvalue"),
        (EpsilonGreedy(qvalue, 0.5, 0.5), "qvalue"),
    ):
        data = env.rollout(20, policy, break_when_any_done=False)
        assert data["recurrent", key][:, -1].abs().max() > 0
    data = env.rollout(20, qvalue)
    assert (qvalue.values(data).argmax(-1) == data["action"]).all()


def test_a_module_of_tensordicts_primes_itself():
    env = maze()
    actor, _ = pair(env)
    td = env.reset()
    actor(td)
    assert not td["recurrent", "actor"].any()  # the state before, as in a rollout
    first = td["next", "recurrent", "actor"]
    assert_close(first, actor.after({"observation": td["observation"], **actor.initial_state((4,))}))
    td["recurrent", "actor"] = first
    actor(td)
    assert_close(td["next", "recurrent", "actor"], actor.after({"observation": td["observation"], actor.state_key: first}))


@pytest.mark.parametrize("wrap", [None, "greedy", "epsilon", "carry", "transformed"])
def test_a_loop_written_by_hand_remembers_as_a_rollout_does(wrap):
    env = maze(length=4)
    actor, value = pair(env)
    policy = {
        "greedy": lambda: actor.greedy,
        "carry": lambda: Carry(actor.greedy, value),
        "epsilon": lambda: EpsilonGreedy(actor.greedy, 0.0, 0.0),
    }.get(wrap, lambda: actor.greedy)()
    hand = TransformedEnv(env, RewardSum()) if wrap == "transformed" else env
    expected = hand.rollout(30, policy, seed=7, break_when_any_done=False)
    td, steps = hand.reset(seed=7), []
    for _ in range(30):
        td, root = hand.step_and_reset(policy(td))
        steps.append(td.clone())
        td = root
    data = torch.stack(steps, 1)
    assert expected["next", "done"].any()
    for key in expected.keys(True, True):
        assert_close(data[key], expected[key], msg=str(key))
    out = actor(env.reset())
    assert_close(actor.dist(out).log_prob(out["action"]), out["action_log_prob"])


def test_a_step_without_a_state_is_explained():
    actor, _ = pair(maze())
    with pytest.raises(MissingKeyError, match=r"recurrent.actor.*Begin with initial_state\(batch_size\)"):
        actor.dist({"observation": torch.zeros(4, 3)})


def test_reading_writes_nothing_but_where_it_is_asked_to():
    env = maze()
    actor, _ = pair(env)
    data = env.rollout(10, actor)
    before = set(data.keys(True, True))
    actor.dist(data)
    assert set(data.keys(True, True)) == before
    entries = Carrying.of(data)
    actor.dist(entries)
    assert_close(entries["next", "recurrent", "actor"], actor.after(data))


def test_a_policy_without_recurrence_has_nothing_to_carry():
    env = maze()
    data = env.rollout(10, Actor(MLP(4, 3), env.action_spec))
    assert "recurrent" not in data
    with pytest.raises(ConfigError, match="What a policy carries along must be a recurrent head; got ValueHead"):
        Carry(pair(env)[0], ValueHead(MLP(1, 3)))


# ---- estimating ------------------------------------------------------------------------------------------------------------
def by_hand(data: TensorDict, value: ValueHead) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of both observations of every step, one step of one row at a time."""
    state = data[value.state_key][..., 0, :, :]
    before, after = [], []
    for t in range(data.batch_size[-1]):
        entries = Carrying({"observation": data["observation"][..., t, :], value.state_key: state})
        before.append(value.value(entries))
        state = entries["next", *value.state_key]
        after.append(value.value({"observation": data["next", "observation"][..., t, :], value.state_key: state}))
        state = torch.where(data["next", "done"][..., t, None, None], 0.0, state)
    return torch.stack(before, -1).detach(), torch.stack(after, -1).detach()


@pytest.mark.parametrize("make", ENVS.values(), ids=ENVS)
@every_cell
def test_a_recurrent_critic_is_estimated_with_its_memory(cell, make):
    env = make()
    actor, value = pair(env, cell)
    data = env.rollout(40, Carry(actor, value), break_when_any_done=False)
    for module in (value, actor):  # older states and newer weights, as after some updates
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    v, next_v = by_hand(data, value)
    nxt = data["next"]
    out = TD0(value, 0.9)(data)
    assert_close(out["state_value"], v)
    assert_close(out["value_target"], nxt["reward"] + 0.9 * torch.where(nxt["terminated"], 0.0, next_v))
    ratio_one = VTrace(actor, value, 0.9, rho_clip=1e9)(data)["advantage"]
    assert ratio_one.shape == data.batch_size
    whole = data if data.batch_dims > 1 else data.unsqueeze(0)
    log_prob = actor.dist(whole).log_prob(whole["action"]).reshape(data.batch_size)
    last = (log_prob - data["action_log_prob"])[..., -1].exp() * out["advantage"][..., -1]
    assert_close(ratio_one[..., -1], last.detach())


def test_a_critic_whose_state_was_not_kept_is_explained():
    env = maze()
    actor, value = pair(env)
    with pytest.raises(MissingKeyError, match=r"recurrent.value.*Carry\(actor, value\)"):
        GAE(value)(env.rollout(10, actor))


@pytest.mark.parametrize("layers", [1, 2])
@every_cell
def test_it_begins_by_remembering(cell, layers):
    """Of a gradient over 20 steps far more is left than with a gate whose bias is 0."""

    def reach(net) -> float:
        x = torch.randn(32, 21, 3, requires_grad=True)
        out, _ = net(x, state=net.initial_state((32,)), done=torch.zeros(32, 21, dtype=torch.bool))
        (gradient,) = torch.autograd.grad(out[:, -1].square().sum(), x)
        return (gradient[:, 0].norm(dim=-1).mean() / gradient[:, -1].norm(dim=-1).mean()).item()

    for seed in range(3):
        torch.manual_seed(seed)
        net = cell(4, 3, 32, layers)
        usual = reach(net)
        for k in range(layers):
            nn.init.zeros_(getattr(net, f"bias_ih_l{k}"))
        assert usual > 3 * reach(net)


# ---- groups of agents ------------------------------------------------------------------------------------------------------
def crowd(cell, rows: int = 4, agents: int = 3) -> tuple[Actor, ValueHead, TensorDict, TensorDict]:
    """Actor and critic, a rollout ``[rows * agents, T]``, and the same as that of groups, ``[rows, T]``."""
    env = maze(num_envs=rows * agents)
    actor, value = pair(env, cell)
    alone = env.rollout(20, Carry(actor, value), break_when_any_done=False)

    def stacked(data: TensorDict, *names) -> TensorDict:
        return data.select(*names).unflatten(0, (rows, agents)).transpose(1, 2)

    data = TensorDict({}, [rows, 20])
    data["agents"] = stacked(alone, "observation", "action", "action_log_prob", "recurrent").to_dict()
    data["next", "agents"] = stacked(alone["next"], "observation", "reward", "done", "terminated").to_dict()
    return actor, value, alone, data


@pytest.mark.parametrize("name", ["GAE", "TD0", "VTrace"])
@every_cell
def test_a_group_with_memories_is_estimated_as_its_agents_are(cell, name):
    actor, value, alone, data = crowd(cell)
    make = {"GAE": GAE, "TD0": TD0, "VTrace": lambda *args, **options: VTrace(actor, *args, **options)}[name]
    out, expected = make(value, 0.9, group="agents")(data), make(value, 0.9)(alone)
    assert alone["next", "done"][:, :-1].any()
    for key in ("state_value", "advantage", "value_target"):
        assert_close(out["agents", key].transpose(1, 2).flatten(0, 1), expected[key])


@every_cell
def test_a_memory_never_takes_agents_for_time(cell):
    actor, value, alone, data = crowd(cell)
    data, loss_fn = GAE(value, group="agents")(data), PPOLoss(actor, value)
    whole = by_agent(data, "agents", loss_fn.in_keys)
    assert whole.batch_size == (4, 3, 20)
    assert abs(loss_fn(whole)["approx_kl"].item()) < 1e-6
    assert_close(loss_fn(whole)["loss"], loss_fn(GAE(value)(alone))["loss"])
    for batch in minibatches(whole, 6, sequence_len=5, in_keys=loss_fn.in_keys):
        assert abs(loss_fn(batch)["approx_kl"].item()) < 1e-6
    group = data["agents"].copy()
    for _ in range(2):
        with pytest.raises(SpecError, match=r"learn from must be sequences, time last; got a group's steps \[4, 20, 3\]"):
            loss_fn(group)
        group["next", "done"] = data["next", "agents", "done"]  # which would seem to make sequences of agents


# ---- learning --------------------------------------------------------------------------------------------------------------
@every_cell
def test_burn_in_finds_the_state_of_the_new_weights(cell):
    env = maze(length=4)
    qvalue = QValueActor(cell(4, 3, 8), env.action_spec)
    data = env.rollout(20, EpsilonGreedy(qvalue, 0.5, 0.5), break_when_any_done=False)
    for parameter in qvalue.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for steps in (0, 1, 7, 19):
        rest = warm_up(qvalue, data, steps)
        assert rest.batch_size == (4, 20 - steps)
        assert_close(qvalue.values(rest), qvalue.values(data)[:, steps:])
    assert data["next", "done"][:, 6].all()
    rest = warm_up(qvalue, data, 7)
    assert not rest[qvalue.state_key].requires_grad
    assert qvalue.values(rest).requires_grad
    with pytest.raises(ConfigError, match=r"steps must be in \[0, 20\); got 20"):
        warm_up(qvalue, data, 20)


def ppo_batch(cell=GRU) -> tuple[PPOLoss, TensorDict]:
    env = maze()
    actor, value = pair(env, cell)
    data = GAE(value)(env.rollout(24, Carry(actor, value), break_when_any_done=False))
    loss_fn = PPOLoss(actor, value)
    return loss_fn, next(iter(minibatches(data, 4, sequence_len=6, in_keys=loss_fn.in_keys)))


def test_a_ratio_begins_at_one():
    loss_fn, batch = ppo_batch()
    assert batch.batch_size == (4, 6)
    assert abs(loss_fn(batch)["approx_kl"].item()) < 1e-6


@pytest.mark.usefixtures("quick_compile")
@every_cell
def test_a_compiled_update_is_the_same(cell):
    def trained(compile: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        loss_fn, batch = ppo_batch(cell)
        update = compile_update(loss_fn, torch.optim.Adam(loss_fn.parameters(), lr=1e-2), compile=compile)
        for _ in range(3):
            update(batch)
        return [parameter.detach().clone() for parameter in loss_fn.parameters()]

    for compiled, eager in zip(trained(True), trained(False), strict=True):
        assert_close(compiled, eager, rtol=1e-3, atol=1e-4)


# ---- building --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cells", [8, (8,), (16, 8)], ids=str)
@every_cell
def test_modules_size_themselves(cell, cells):
    for env in (maze(), Pendulum(num_envs=2, seed=0), GridWorld(num_envs=2, seed=0)):
        actor, value = (make(env, num_cells=cells, recurrent=cell) for make in (make_actor, make_value))
        assert actor.net.hidden_size == value.net.hidden_size == 8
        assert actor.net.in_features == (16 if cells == (16, 8) else actor.net.in_features)
        data = GAE(value)(env.rollout(12, Carry(actor, value), break_when_any_done=False))
        assert_close(actor.dist(data).log_prob(data["action"]), data["action_log_prob"], rtol=1e-4, atol=1e-4)
        PPOLoss(actor, value)(data)["loss"].backward()
        assert all(parameter.grad is not None for parameter in actor.parameters())
    qvalue = make_qvalue(maze(), num_cells=cells, recurrent=cell)
    assert qvalue.values(maze().rollout(12, qvalue)).shape == (4, 12, 4)


def test_what_cannot_be_recurrent_is_explained():
    with pytest.raises(SpecError, match="recurrent make_qvalue must be one plain network of discrete actions; got members=2 for"):
        make_qvalue(maze(), members=2, recurrent=GRU)
    with pytest.raises(SpecError, match=r"got quantiles=51, noisy=0\.5, dueling=True for"):
        make_qvalue(maze(), recurrent=GRU, quantiles=51, dueling=True, noisy=0.5)
    with pytest.raises(SpecError, match="A recurrent make_qvalue must be one plain network"):
        make_qvalue(Pendulum(num_envs=2), recurrent=GRU)
    with pytest.raises(TypeError, match="nrom"):
        make_actor(maze(), recurrent=GRU, nrom=nn.LayerNorm)
    with pytest.raises(ConfigError, match="The settings norm must be those of layers before the recurrent one; got none"):
        make_actor(maze(), num_cells=(8,), recurrent=GRU, norm=nn.LayerNorm)
    assert sum(isinstance(part, nn.LayerNorm) for part in make_value(maze(), recurrent=GRU, norm=nn.LayerNorm).modules()) == 1
    nested = Actor(nn.Sequential(MLP(16, 3), GRU(4, 16)), maze().action_spec)
    with pytest.raises(SpecError, match=r"A network with a memory is a GRU or LSTM itself: GRU\(outputs, inputs, encoder=..."):
        maze().rollout(3, nested)
    with pytest.raises(SpecError, match=r"What the network of Actor returns must be a tensor; got tuple\. Use rlbook's GRU"):
        maze().rollout(3, Actor(nn.GRU(3, 4), maze().action_spec))
    value = ValueHead(GRU(1, 3, 8))
    with pytest.raises(ConfigError, match=r"What a policy carries along must be heads of different kinds; got .*value.*value"):
        Carry(pair(maze())[0], value, ValueHead(GRU(1, 3, 8)))
    with pytest.raises(ConfigError, match="What is warmed up must be a head with a recurrent network; got Actor"):
        warm_up(Actor(MLP(4, 3), maze().action_spec), maze().rollout(5), 2)
    with pytest.raises(ConfigError, match=r"data must be sequences \[\*, T\] of a batch; got \[7\]"):
        warm_up(value, maze(num_envs=None).rollout(7), 2)


def test_a_loss_of_single_steps_says_what_to_use():
    env = maze()
    qvalue = QValueActor(GRU(4, 3, 8), env.action_spec)
    with pytest.raises(MissingKeyError, match=r"next.recurrent.qvalue.*use R2D2Loss"):
        DQNLoss(qvalue)(env.rollout(10, qvalue))
