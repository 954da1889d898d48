"""One gradient step of DQN, SAC and TD3: losses, backward, optimizers, target networks.

DQN has CleanRL's CartPole network (120-84) and batch (128), SAC and TD3 two hidden layers of 256 units, batches of 256, and the
sizes of HalfCheetah (17 observations, 6 actions). Every call is one pass over 16 batches made beforehand; SB3, whose training
step draws its own batches, draws them from a filled buffer. TD3's actor and targets move at every second step everywhere.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from benchmarks.harness import Case, Make, Prepared, Task, faster
from benchmarks.items.ppo_minibatch import over

BATCHES, LR, GAMMA, TAU = 16, 3e-4, 0.99, 0.005
OBSERVATION, ACTION, CELLS = 17, 6, (256, 256)
DQN_CELLS, DQN_BATCH, SYNC = (120, 84), 128, 50
KEYS: list[Any] = ["observation", "action", ("next", "observation"), ("next", "reward"), ("next", "terminated")]
RLBOOK, COMPILED, BF16 = "rlbook", "rlbook, compiled", "rlbook, compiled, bf16"
TORCHRL, TORCHRL_COMPILED, SB3, CLEANRL = "torchrl", "torchrl, step compiled", "sb3 train", "CleanRL's design"


# ---- data ------------------------------------------------------------------------------------------------------------------
def batches(rows: int, observation: int, action: Callable[[], Tensor]) -> list[TensorDict]:
    """Return random transitions in rlbook's layout."""
    torch.manual_seed(0)

    def batch() -> TensorDict:
        never = torch.zeros(rows, dtype=torch.bool)
        nxt = {"observation": torch.randn(rows, observation), "reward": torch.randn(rows), "terminated": never, "done": never}
        return TensorDict({"observation": torch.randn(rows, observation), "action": action(), "next": nxt}, [rows])

    return [batch() for _ in range(BATCHES)]


def discrete() -> list[TensorDict]:
    return batches(DQN_BATCH, 4, lambda: torch.randint(2, (DQN_BATCH,)))


def continuous() -> list[TensorDict]:
    return batches(256, OBSERVATION, lambda: torch.rand(256, ACTION) * 2 - 1)


def trailing_one(data: list[TensorDict]) -> list[TensorDict]:
    """Give rewards and flags TorchRL's trailing dimension."""
    for batch in data:
        nxt: Any = batch["next"]
        nxt.update({key: nxt[key].unsqueeze(-1) for key in ("reward", "terminated", "done")})
    return data


def relu(outputs: int, inputs: int, cells: tuple[int, ...] = CELLS) -> nn.Sequential:
    sizes = [inputs, *cells, outputs]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


# ---- rlbook ----------------------------------------------------------------------------------------------------------------
def rlbook_dqn(compile: bool) -> Make:
    def prepare() -> Task:
        from rlbook import MLP, DQNLoss, HardUpdate, QValueActor, compile_update
        from rlbook.specs import Categorical

        loss_fn = DQNLoss(QValueActor(MLP(2, 4, DQN_CELLS), Categorical(2)), gamma=GAMMA, double=False, distance="l2")
        optimizer = torch.optim.Adam(loss_fn.parameters(), lr=LR)
        return over(compile_update(loss_fn, optimizer, target=HardUpdate(loss_fn, SYNC), compile=compile), discrete())

    return prepare


def rlbook_sac(compile: bool, **settings: Any) -> Make:
    def prepare() -> Task:
        from rlbook import MLP, Actor, QValueHead, SACLoss, SoftUpdate, compile_update, ensemble
        from rlbook.specs import Bounded

        actor = Actor(MLP(2 * ACTION, OBSERVATION, CELLS), Bounded(-1.0, 1.0, (ACTION,)))
        loss_fn = SACLoss(actor, QValueHead(ensemble(MLP(1, OBSERVATION + ACTION, CELLS), 2)), gamma=GAMMA)
        optimizer = torch.optim.Adam(loss_fn.parameters(), lr=LR)
        return over(
            compile_update(loss_fn, optimizer, target=SoftUpdate(loss_fn, TAU), compile=compile, **settings), continuous()
        )

    return prepare


def rlbook_td3(compile: bool) -> Make:
    def prepare() -> Task:
        from rlbook import MLP, Actor, QValueHead, SoftUpdate, compile_update, ensemble
        from rlbook.losses import TD3Loss
        from rlbook.specs import Bounded

        actor = Actor(MLP(ACTION, OBSERVATION, CELLS), Bounded(-1.0, 1.0, (ACTION,)))
        loss_fn = TD3Loss(actor, QValueHead(ensemble(MLP(1, OBSERVATION + ACTION, CELLS), 2)), gamma=GAMMA)
        groups = [{"params": loss_fn.actor.parameters()}, {"params": loss_fn.qvalue.parameters()}]
        optimizer, target = torch.optim.Adam(groups, lr=LR), SoftUpdate(loss_fn, TAU, every=2)
        return over(compile_update(loss_fn, optimizer, target=target, every={"loss_actor": 2}, compile=compile), continuous())

    return prepare


# ---- TorchRL ---------------------------------------------------------------------------------------------------------------
def torchrl_step(loss_fn: Any, optimizer: Any, updater: Any, compile: bool) -> Callable[[TensorDict], Any]:
    """Return the loop of TorchRL's own examples: sum the terms, one backward, one optimizer, update the targets."""
    optimizers = optimizer if isinstance(optimizer, list) else [optimizer]

    def gradients(batch: TensorDict) -> Any:
        for each in optimizers:
            each.zero_grad(set_to_none=True)
        losses = loss_fn(batch)
        sum(value for key, value in losses.items() if key.startswith("loss")).backward()  # type: ignore[union-attr]
        for each in optimizers:
            each.step()
        return losses.detach()

    inner = torch.compile(gradients) if compile else gradients

    def step(batch: TensorDict) -> Any:
        losses = inner(batch)
        updater.step()
        return losses

    return step


def torchrl_actor(net: nn.Module, stochastic: bool) -> Any:
    from tensordict.nn import TensorDictModule
    from torchrl.data import Bounded
    from torchrl.modules import NormalParamExtractor, ProbabilisticActor, TanhModule, TanhNormal

    if not stochastic:
        inner = TensorDictModule(net, ["observation"], ["param"])
        tanh = TanhModule(in_keys=["param"], out_keys=["action"], low=-1.0, high=1.0)
        return _sequence(inner, tanh)
    params = TensorDictModule(nn.Sequential(net, NormalParamExtractor()), ["observation"], ["loc", "scale"])
    spec = Bounded(-torch.ones(ACTION), torch.ones(ACTION))
    settings = {"distribution_class": TanhNormal, "distribution_kwargs": {"low": -1.0, "high": 1.0, "tanh_loc": False}}
    return ProbabilisticActor(params, in_keys=["loc", "scale"], spec=spec, return_log_prob=False, **settings)


def _sequence(*modules: Any) -> Any:
    from tensordict.nn import TensorDictSequential

    return TensorDictSequential(*modules)


def torchrl_dqn(compile: bool) -> Make:
    def prepare() -> Task:
        from torchrl.data import Categorical
        from torchrl.modules import QValueActor
        from torchrl.objectives import DQNLoss, HardUpdate, ValueEstimators

        actor = QValueActor(relu(2, 4, DQN_CELLS), in_keys=["observation"], spec=Categorical(2), action_space="categorical")
        loss_fn = DQNLoss(actor, loss_function="l2", delay_value=True, action_space="categorical")
        loss_fn.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
        optimizer = torch.optim.Adam(loss_fn.parameters(), lr=LR)
        updater = HardUpdate(loss_fn, value_network_update_interval=SYNC)
        return over(torchrl_step(loss_fn, optimizer, updater, compile), trailing_one(discrete()))

    return prepare


def torchrl_sac(compile: bool) -> Make:
    def prepare() -> Task:
        from torchrl.modules import ValueOperator
        from torchrl.objectives import SACLoss, SoftUpdate, ValueEstimators

        critic = ValueOperator(_Joined(relu(1, OBSERVATION + ACTION)), in_keys=["observation", "action"])
        actor = torchrl_actor(relu(2 * ACTION, OBSERVATION), stochastic=True)
        loss_fn = SACLoss(actor, critic, num_qvalue_nets=2, loss_function="l2", target_entropy=-float(ACTION))
        loss_fn.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
        optimizer = torch.optim.Adam(loss_fn.parameters(), lr=LR)
        return over(torchrl_step(loss_fn, optimizer, SoftUpdate(loss_fn, tau=TAU), compile), trailing_one(continuous()))

    return prepare


def torchrl_td3(compile: bool) -> Make:
    def prepare() -> Task:
        from torchrl.modules import ValueOperator
        from torchrl.objectives import SoftUpdate, TD3Loss, ValueEstimators

        critic = ValueOperator(_Joined(relu(1, OBSERVATION + ACTION)), in_keys=["observation", "action"])
        bounds = (-torch.ones(ACTION), torch.ones(ACTION))
        actor = torchrl_actor(relu(ACTION, OBSERVATION), stochastic=False)
        loss_fn = TD3Loss(actor, critic, bounds=bounds, num_qvalue_nets=2, loss_function="l2")
        loss_fn.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
        actor_optimizer = torch.optim.Adam(list(loss_fn.actor_network_params.flatten_keys().values()), lr=LR)
        critic_optimizer = torch.optim.Adam(list(loss_fn.qvalue_network_params.flatten_keys().values()), lr=LR)
        updater, calls = SoftUpdate(loss_fn, tau=TAU), itertools.count()

        def value_step(batch: TensorDict) -> None:
            critic_optimizer.zero_grad(set_to_none=True)
            loss_fn.value_loss(batch)[0].backward()
            critic_optimizer.step()

        def actor_step(batch: TensorDict) -> None:
            actor_optimizer.zero_grad(set_to_none=True)
            loss_fn.actor_loss(batch)[0].backward()
            actor_optimizer.step()

        value_step_, actor_step_ = (torch.compile(value_step), torch.compile(actor_step)) if compile else (value_step, actor_step)

        def step(batch: TensorDict) -> None:
            value_step_(batch)
            if next(calls) % 2:
                actor_step_(batch)
                updater.step()

        return over(step, trailing_one(continuous()))

    return prepare


class _Joined(nn.Module):
    """Read observation and action."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.net(torch.cat(inputs, -1))


# ---- CleanRL's design ------------------------------------------------------------------------------------------------------
def rows(data: list[TensorDict]) -> list[list[Tensor]]:
    return [[batch[key] for key in KEYS] for batch in data]


def cleanrl_dqn() -> Task:
    net = relu(2, 4, DQN_CELLS)
    target, optimizer, calls = copy.deepcopy(net), torch.optim.Adam(net.parameters(), lr=LR), itertools.count(1)

    def step(batch: list[Tensor]) -> None:
        observation, action, following, reward, terminated = batch
        with torch.no_grad():
            best = target(following).max(dim=1).values
            goal = reward + GAMMA * best * (1 - terminated.float())
        value = net(observation).gather(1, action.unsqueeze(1)).squeeze()
        loss = nn.functional.mse_loss(goal, value)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if next(calls) % SYNC == 0:
            for old, new in zip(target.parameters(), net.parameters(), strict=True):
                old.data.copy_(new.data)

    return over(step, rows(discrete()))


def polyak(pairs: list[tuple[nn.Module, nn.Module]]) -> None:
    for module, target in pairs:
        for new, old in zip(module.parameters(), target.parameters(), strict=True):
            old.data.copy_(TAU * new.data + (1 - TAU) * old.data)


def cleanrl_sac() -> Task:
    actor, critics = relu(2 * ACTION, OBSERVATION), [relu(1, OBSERVATION + ACTION) for _ in range(2)]
    targets = copy.deepcopy(critics)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=LR)
    critic_optimizer = torch.optim.Adam([p for critic in critics for p in critic.parameters()], lr=LR)
    log_alpha = torch.zeros(1, requires_grad=True)
    alpha_optimizer = torch.optim.Adam([log_alpha], lr=LR)

    def act(observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = actor(observation).chunk(2, -1)
        log_std = -5 + 3.5 * (torch.tanh(log_std) + 1)
        normal = torch.distributions.Normal(mean, log_std.exp())
        x = normal.rsample()
        action = torch.tanh(x)
        log_prob = normal.log_prob(x) - torch.log(1 - action.pow(2) + 1e-6)
        return action, log_prob.sum(1, keepdim=True)

    def step(batch: list[Tensor]) -> None:
        observation, action, following, reward, terminated = batch
        alpha = log_alpha.exp().item()
        with torch.no_grad():
            next_action, next_log_prob = act(following)
            both = torch.cat([following, next_action], 1)
            best = torch.min(*(target(both) for target in targets)) - alpha * next_log_prob
            goal = reward + (1 - terminated.float()) * GAMMA * best.view(-1)
        both = torch.cat([observation, action], 1)
        loss = sum(nn.functional.mse_loss(critic(both).view(-1), goal) for critic in critics)
        critic_optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        critic_optimizer.step()
        new, log_prob = act(observation)
        both = torch.cat([observation, new], 1)
        actor_loss = (alpha * log_prob - torch.min(*(critic(both) for critic in critics))).mean()
        actor_optimizer.zero_grad()
        actor_loss.backward()
        actor_optimizer.step()
        with torch.no_grad():
            _, log_prob = act(observation)
        alpha_loss = (-log_alpha.exp() * (log_prob - ACTION)).mean()
        alpha_optimizer.zero_grad()
        alpha_loss.backward()
        alpha_optimizer.step()
        polyak(list(zip(critics, targets, strict=True)))

    return over(step, rows(continuous()))


def cleanrl_td3() -> Task:
    actor, critics = nn.Sequential(relu(ACTION, OBSERVATION), nn.Tanh()), [relu(1, OBSERVATION + ACTION) for _ in range(2)]
    target_actor, targets = copy.deepcopy(actor), copy.deepcopy(critics)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=LR)
    critic_optimizer = torch.optim.Adam([p for critic in critics for p in critic.parameters()], lr=LR)
    calls = itertools.count()

    def step(batch: list[Tensor]) -> None:
        observation, action, following, reward, terminated = batch
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5)
            both = torch.cat([following, (target_actor(following) + noise).clamp(-1, 1)], 1)
            goal = reward + (1 - terminated.float()) * GAMMA * torch.min(*(target(both) for target in targets)).view(-1)
        both = torch.cat([observation, action], 1)
        loss = sum(nn.functional.mse_loss(critic(both).view(-1), goal) for critic in critics)
        critic_optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        critic_optimizer.step()
        if next(calls) % 2:
            actor_loss = -critics[0](torch.cat([observation, actor(observation)], 1)).mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            polyak([(actor, target_actor), *zip(critics, targets, strict=True)])

    return over(step, rows(continuous()))


# ---- Stable-Baselines3 -----------------------------------------------------------------------------------------------------
def sb3_of(algorithm: str) -> Make:
    """Return what prepares SB3's training half: as many gradient steps as there are batches, drawn from its buffer."""

    def prepare() -> Prepared:
        import stable_baselines3
        from gymnasium import Env, spaces

        is_dqn = algorithm == "DQN"

        class Nothing(Env):
            observation_space = spaces.Box(-1, 1, (4 if is_dqn else OBSERVATION,))
            action_space = spaces.Discrete(2) if is_dqn else spaces.Box(-1, 1, (ACTION,))

            def reset(self, *, seed: Any = None, options: Any = None) -> Any:
                return self.observation_space.sample(), {}

            def step(self, action: Any) -> Any:
                return self.observation_space.sample(), 0.0, False, False, {}

        settings: dict[str, Any] = {"learning_rate": LR, "device": "cpu", "buffer_size": 10_000, "learning_starts": 5000}
        net_arch = list(DQN_CELLS) if is_dqn else list(CELLS)
        rows = DQN_BATCH if is_dqn else 256
        if is_dqn:
            settings["target_update_interval"] = SYNC
        kind = getattr(stable_baselines3, algorithm)
        agent = kind("MlpPolicy", Nothing(), batch_size=rows, gamma=GAMMA, policy_kwargs={"net_arch": net_arch}, **settings)
        agent.learn(2000)  # fills the buffer, trains nothing
        return Prepared(lambda: agent.train(gradient_steps=BATCHES, batch_size=rows))

    return prepare


def cases(size: str = "full") -> Iterator[Case]:
    note = "Compiling is done before the clock runs. SB3 draws its batches and logs; the others get them made."
    eager = faster(RLBOOK, 1.5, TORCHRL)
    dqn = {RLBOOK: rlbook_dqn(False), COMPILED: rlbook_dqn(True), TORCHRL: torchrl_dqn(False)}
    dqn |= {TORCHRL_COMPILED: torchrl_dqn(True), SB3: sb3_of("DQN"), CLEANRL: lambda: cleanrl_dqn()}
    targets = [faster(COMPILED, 5, TORCHRL), faster(COMPILED, 2.5, TORCHRL_COMPILED), faster(COMPILED, 3.5, SB3), eager]
    huber = f"{note} SB3's loss is Huber's and it clips gradients, which the others do not."
    yield Case("DQN, batch of 128", "updates", BATCHES, _sized(dqn, size), targets, huber)
    if size == "tiny":
        return
    sac = {RLBOOK: rlbook_sac(False), COMPILED: rlbook_sac(True), BF16: rlbook_sac(True, precision="bf16")}
    sac |= {TORCHRL: torchrl_sac(False), TORCHRL_COMPILED: torchrl_sac(True), SB3: sb3_of("SAC"), CLEANRL: lambda: cleanrl_sac()}
    targets = [faster(COMPILED, 2.2, TORCHRL), faster(COMPILED, 1.7, SB3), faster(BF16, 2.5, CLEANRL), eager]
    yield Case("SAC, batch of 256", "updates", BATCHES, sac, targets, note)
    td3 = {RLBOOK: rlbook_td3(False), COMPILED: rlbook_td3(True), TORCHRL: torchrl_td3(False)}
    td3 |= {TORCHRL_COMPILED: torchrl_td3(True), SB3: sb3_of("TD3"), CLEANRL: lambda: cleanrl_td3()}
    targets = [faster(COMPILED, 1.8, TORCHRL), faster(COMPILED, 1.4, SB3), eager]
    yield Case("TD3, batch of 256", "updates", BATCHES, td3, targets, note)


def _sized(contenders: dict[str, Make], size: str) -> dict[str, Make]:
    return {name: make for name, make in contenders.items() if size != "tiny" or "compiled" not in name}
