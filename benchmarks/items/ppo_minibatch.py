"""One PPO gradient step at CartPole's size: forward, backward, clipping to norm 0.5, Adam.

Actor and critic have two hidden layers of 64 tanh units each. Every call is one pass over 32 minibatches made beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import Case, Make, Prepared, Task, faster

CLIP, ENTROPY, VALUE, NORM, LR, EPS = 0.2, 0.01, 0.5, 0.5, 3e-4, 1e-5
BATCHES = 32
LEANRL, CLEANRL = "LeanRL's design, compiled", "CleanRL's design"
TORCHRL, TORCHRL_STEP, TORCHRL_LOSS = "torchrl", "torchrl, step compiled", "torchrl, loss compiled"


def minibatches(size: int) -> list[TensorDict]:
    """Return random minibatches in rlbook's layout: numbers per step without a trailing 1."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def batch() -> TensorDict:
        action = torch.randint(2, (size,), generator=generator)
        entries = {"observation": normal(size, 4), "action": action, "action_log_prob": torch.full((size,), -0.69)}
        entries |= {key: normal(size) for key in ("advantage", "value_target", "state_value")}
        return TensorDict(entries, [size])

    return [batch() for _ in range(BATCHES)]


def over(step: Callable[[Any], Any], batches: list[Any]) -> Task:
    """Return one pass over the batches."""

    def run() -> None:
        for batch in batches:
            step(batch)

    return run


def rlbook_of(size: int, compile: bool) -> Make:
    """Return what prepares rlbook's update."""

    def prepare() -> Task:
        from rlbook import MLP, Actor, PPOLoss, ValueHead, compile_update
        from rlbook.specs import Categorical

        actor = Actor(MLP(2, 4, activation=nn.Tanh), Categorical(2))
        loss_fn = PPOLoss(actor, ValueHead(MLP(1, 4, activation=nn.Tanh)), clip_eps=CLIP, entropy_coef=ENTROPY, value_coef=VALUE)
        optimizer = torch.optim.Adam(loss_fn.parameters(), lr=LR, eps=EPS)
        return over(compile_update(loss_fn, optimizer, max_grad_norm=NORM, compile=compile), minibatches(size))

    return prepare


def torchrl_of(size: int, compile: str = "") -> Make:
    """Return what prepares TorchRL's ``ClipPPOLoss``, eager, or with ``compile`` = ``"step"`` or ``"loss"``."""

    def prepare() -> Task:
        from torchrl.modules import ValueOperator
        from torchrl.objectives import ClipPPOLoss

        actor, critic = peers.torchrl_actor(peers.mlp(2)), ValueOperator(peers.mlp(1), in_keys=["observation"])
        settings: dict[str, Any] = {"clip_epsilon": CLIP, "entropy_coeff": ENTROPY, "critic_coeff": VALUE}
        loss_fn = ClipPPOLoss(actor, critic, loss_critic_type="l2", normalize_advantage=True, **settings)
        parameters = list(loss_fn.parameters())
        optimizer = torch.optim.Adam(parameters, lr=LR, eps=EPS)
        forward = torch.compile(loss_fn) if compile == "loss" else loss_fn

        def step(batch: TensorDict) -> TensorDict:
            optimizer.zero_grad(set_to_none=True)
            losses = forward(batch)
            (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
            nn.utils.clip_grad_norm_(parameters, NORM)
            optimizer.step()
            return losses.detach()

        batches = minibatches(size)
        for batch in batches:  # TorchRL's layout
            batch.update({key: batch[key].unsqueeze(-1) for key in ("advantage", "value_target", "state_value")})
        return over(torch.compile(step) if compile == "step" else step, batches)

    return prepare


def plain_step(agent: peers.PlainAgent, optimizer: torch.optim.Optimizer) -> Callable[..., tuple[Tensor, ...]]:
    """Return the update that CleanRL and LeanRL share, without clipping of the value loss, as in rlbook."""

    def step(observation: Tensor, action: Tensor, old_log_prob: Tensor, advantage: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        optimizer.zero_grad()
        _, log_prob, entropies, value = agent(observation, action)
        log_ratio = log_prob - old_log_prob
        ratio = log_ratio.exp()
        with torch.no_grad():
            approx_kl = (ratio - 1 - log_ratio).mean()
            clip_fraction = ((ratio - 1).abs() > CLIP).float().mean()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        actor_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
        value_loss = (value - target).square().mean()
        entropy = entropies.mean()
        (actor_loss + VALUE * value_loss - ENTROPY * entropy).backward()
        norm = nn.utils.clip_grad_norm_(agent.parameters(), NORM)
        optimizer.step()
        return actor_loss.detach(), value_loss.detach(), entropy.detach(), approx_kl, clip_fraction, norm

    return step


KEYS: list[Any] = ["observation", "action", "action_log_prob", "advantage", "value_target"]


def cleanrl_of(size: int) -> Make:
    """Return what prepares CleanRL's design: eager, one number read back per step."""

    def prepare() -> Task:
        agent = peers.PlainAgent()
        step = plain_step(agent, torch.optim.Adam(agent.parameters(), lr=LR, eps=EPS))
        return over(lambda batch: step(*batch)[4].item(), [[batch[key] for key in KEYS] for batch in minibatches(size)])

    return prepare


def leanrl_of(size: int) -> Make:
    """Return what prepares LeanRL's design: the whole update is a compiled TensorDictModule, the learning rate a tensor."""

    def prepare() -> Task:
        from tensordict.nn import TensorDictModule

        agent = peers.PlainAgent()
        optimizer = torch.optim.Adam(agent.parameters(), lr=torch.tensor(LR), eps=EPS)
        out_keys: list[Any] = ["actor_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm"]
        update = torch.compile(TensorDictModule(plain_step(agent, optimizer), in_keys=KEYS, out_keys=out_keys))
        return over(lambda batch: update(batch, tensordict_out=TensorDict()), minibatches(size))

    return prepare


def sb3_of(size: int) -> Make:
    """Return what prepares the training half of SB3's PPO: 32 minibatches, which it draws from its buffer."""

    def prepare() -> Prepared:
        from stable_baselines3.common.callbacks import CallbackList

        env = peers.sb3_envs("CartPole-v1", 8)
        steps = size * BATCHES // 8
        agent = peers.sb3_ppo(env, n_steps=steps, batch_size=size, n_epochs=1, ent_coef=ENTROPY, max_grad_norm=NORM)
        callback = CallbackList([])
        callback.init_callback(agent)
        agent.collect_rollouts(env, callback, agent.rollout_buffer, steps)
        return Prepared(agent.train)

    return prepare


def cases(size: str = "full") -> Iterator[Case]:
    for rows in (64, 512) if size != "tiny" else (8,):
        targets = [faster("rlbook", 2, TORCHRL)] if rows == 64 else [faster("rlbook, compiled", 4, TORCHRL)]
        if rows == 64:
            targets += [faster("rlbook, compiled", 5, TORCHRL_STEP, TORCHRL_LOSS), faster("rlbook, compiled", 4, LEANRL)]
        contenders = {
            "rlbook": rlbook_of(rows, compile=False),
            "rlbook, compiled": rlbook_of(rows, compile=True),
            TORCHRL: torchrl_of(rows),
            TORCHRL_STEP: torchrl_of(rows, "step"),
            TORCHRL_LOSS: torchrl_of(rows, "loss"),
            LEANRL: leanrl_of(rows),
            CLEANRL: cleanrl_of(rows),
            "sb3 train": sb3_of(rows),
        }
        if size == "tiny":
            del contenders["rlbook, compiled"]
        yield Case(
            name=f"minibatch of {rows}",
            unit="updates",
            work=BATCHES,
            contenders=contenders,
            targets=targets,
            note="Compiling is done before the clock runs. SB3 draws its minibatches and logs; the others get them made.",
        )
