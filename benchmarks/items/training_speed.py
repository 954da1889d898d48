"""Frames per second of whole training runs, end to end: collecting, storing, sampling, updating.

One call goes on with a run that is under way, by a fixed number of frames, past its warm-up: DQN on CartPole-v1 at the tuned
settings of RL Baselines3 Zoo, SAC on HalfCheetah-v5 and PPO on CartPole-v1 at CleanRL's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import Case, Make, Prepared, Task, faster

DQN_FRAMES, SAC_FRAMES, PPO_FRAMES, ENDLESS = 256, 200, 512, 10_000_000
RLBOOK, COMPILED, SB3, CLEANRL, TORCHRL = "rlbook", "rlbook, compiled", "sb3", "CleanRL's design", "torchrl"


def going_on(rounds: Iterator[Any], skip: int) -> Task:
    """Return one more round of a run, after the first ``skip`` rounds."""
    for _ in range(skip):
        next(rounds)
    return lambda: next(rounds)


# ---- DQN -------------------------------------------------------------------------------------------------------------------
def rlbook_dqn(compile: bool) -> Make:
    def prepare() -> Task:
        from rlbook.recipes import DQN, DQNConfig

        config = DQNConfig(
            total_frames=ENDLESS,
            num_envs=1,
            frames_per_batch=DQN_FRAMES,
            updates=128,
            batch_size=64,
            n=1,
            double=False,  # SB3's is not
            num_cells=(256, 256),
            eps_frames=1024,
            compile=compile,
        )
        return going_on(iter(DQN(config).train()), 8)

    return prepare


def sb3_dqn() -> Prepared:
    import gymnasium
    from stable_baselines3 import DQN

    settings: dict[str, Any] = {"learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000}
    settings |= {"target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_final_eps": 0.04}
    env = gymnasium.make("CartPole-v1")
    agent = DQN("MlpPolicy", env, exploration_fraction=1e-5, policy_kwargs={"net_arch": [256, 256]}, device="cpu", **settings)
    agent.learn(8 * DQN_FRAMES)
    return Prepared(lambda: agent.learn(DQN_FRAMES, reset_num_timesteps=False))


def rlbook_small_dqn(compile: bool) -> Make:
    def prepare() -> Task:
        from rlbook.recipes import DQN, DQNConfig

        rounds = iter(DQN(DQNConfig(total_frames=ENDLESS, compile=compile)).train())
        going_on(rounds, 64)
        return lambda: [next(rounds) for _ in range(8)]

    return prepare


def sb3_small_dqn() -> Prepared:
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_vec_env

    settings: dict[str, Any] = {"learning_rate": 2e-3, "batch_size": 128, "buffer_size": 100_000, "learning_starts": 1000}
    settings |= {"target_update_interval": 400, "train_freq": 8, "gradient_steps": 8, "exploration_final_eps": 0.04, "n_steps": 3}
    agent = DQN("MlpPolicy", make_vec_env("CartPole-v1", 4), policy_kwargs={"net_arch": [64, 64]}, device="cpu", **settings)
    agent.learn(8 * DQN_FRAMES)
    return Prepared(lambda: agent.learn(DQN_FRAMES, reset_num_timesteps=False))


# ---- SAC -------------------------------------------------------------------------------------------------------------------
def rlbook_sac(compile: bool) -> Make:
    def prepare() -> Task:
        from rlbook.recipes import SAC, SACConfig

        config = SACConfig(
            env="HalfCheetah-v5",
            total_frames=ENDLESS,
            buffer_size=100_000,
            learning_starts=1000,
            log_every=SAC_FRAMES,
            compile=compile,
        )
        return going_on(iter(SAC(config).train()), 8)

    return prepare


def sb3_sac() -> Prepared:
    import gymnasium
    from stable_baselines3 import SAC

    settings: dict[str, Any] = {"learning_rate": 3e-4, "batch_size": 256, "buffer_size": 100_000, "learning_starts": 1000}
    agent = SAC("MlpPolicy", gymnasium.make("HalfCheetah-v5"), policy_kwargs={"net_arch": [256, 256]}, device="cpu", **settings)
    agent.learn(8 * SAC_FRAMES)
    return Prepared(lambda: agent.learn(SAC_FRAMES, reset_num_timesteps=False))


# ---- PPO -------------------------------------------------------------------------------------------------------------------
ENVS, STEPS, MINIBATCH, EPOCHS = 4, 128, 128, 4
CLIP, ENTROPY, VALUE, NORM, LR, GAMMA, LAMBDA = 0.2, 0.01, 0.5, 0.5, 2.5e-4, 0.99, 0.95


def rlbook_ppo(compile: bool) -> Make:
    def prepare() -> Task:
        from rlbook.recipes import PPO, PPOConfig

        config = PPOConfig(
            total_frames=ENDLESS,
            num_envs=ENVS,
            frames_per_batch=ENVS * STEPS,
            epochs=EPOCHS,
            minibatch_size=MINIBATCH,
            gamma=GAMMA,
            gae_lambda=LAMBDA,
            lr=LR,
            entropy_coef=ENTROPY,
            compile=compile,
        )
        return going_on(iter(PPO(config).train()), 3)

    return prepare


def cleanrl_ppo() -> Task:
    """CleanRL's loop: tensors per step, a Python loop for GAE, a shuffled index for minibatches; values are not clipped."""
    import gymnasium
    import numpy as np

    same_step = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    envs = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * ENVS, **same_step)
    agent = peers.PlainAgent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=LR, eps=1e-5)
    memory = {key: torch.zeros(STEPS, ENVS) for key in ("action", "log_prob", "reward", "done", "value")}
    memory["observation"] = torch.zeros(STEPS, ENVS, 4)
    state = {"observation": torch.tensor(envs.reset()[0]), "done": torch.zeros(ENVS)}

    def collect() -> None:
        for t in range(STEPS):
            memory["observation"][t], memory["done"][t] = state["observation"], state["done"]
            with torch.no_grad():
                action, log_prob, _, value = agent(state["observation"])
            memory["action"][t], memory["log_prob"][t], memory["value"][t] = action, log_prob, value
            observation, reward, terminated, truncated, _ = envs.step(action.numpy())
            memory["reward"][t] = torch.tensor(reward)
            state["observation"], state["done"] = torch.tensor(observation), torch.tensor(terminated | truncated).float()

    def advantages() -> Tensor:
        with torch.no_grad():
            following = agent(state["observation"])[3]
        out, running = torch.zeros(STEPS, ENVS), torch.zeros(ENVS)
        for t in reversed(range(STEPS)):
            goes_on = 1 - (state["done"] if t == STEPS - 1 else memory["done"][t + 1])
            later = following if t == STEPS - 1 else memory["value"][t + 1]
            delta = memory["reward"][t] + GAMMA * later * goes_on - memory["value"][t]
            out[t] = running = delta + GAMMA * LAMBDA * goes_on * running
        return out

    def run() -> None:
        collect()
        advantage = advantages()
        flat = {key: value.flatten(0, 1) for key, value in memory.items()} | {"advantage": advantage.flatten()}
        flat["target"] = flat["advantage"] + flat["value"]
        index = np.arange(ENVS * STEPS)
        for _ in range(EPOCHS):
            np.random.shuffle(index)
            for start in range(0, ENVS * STEPS, MINIBATCH):
                rows = index[start : start + MINIBATCH]
                _, log_prob, entropy, value = agent(flat["observation"][rows], flat["action"].long()[rows])
                ratio = (log_prob - flat["log_prob"][rows]).exp()
                gain = flat["advantage"][rows]
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                actor_loss = torch.max(-gain * ratio, -gain * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                value_loss = 0.5 * (value - flat["target"][rows]).square().mean()
                loss = actor_loss - ENTROPY * entropy.mean() + VALUE * value_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), NORM)
                optimizer.step()

    return run


def torchrl_of(make_env: Callable[[], Any]) -> Make:
    """Return what prepares TorchRL's PPO loop: its collector, its GAE, its loss, minibatches from its replay buffer."""

    def prepare() -> Task:
        from torchrl.collectors import Collector
        from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
        from torchrl.modules import ValueOperator
        from torchrl.objectives import ClipPPOLoss
        from torchrl.objectives.value import GAE

        actor, critic = peers.torchrl_actor(peers.mlp(2)), ValueOperator(peers.mlp(1), in_keys=["observation"])
        size = ENVS * STEPS
        collector = Collector(make_env(), actor, frames_per_batch=size, total_frames=ENDLESS)
        estimator = GAE(gamma=GAMMA, lmbda=LAMBDA, value_network=critic, average_gae=False)
        coefficients: dict[str, Any] = {"clip_epsilon": CLIP, "entropy_coeff": ENTROPY, "critic_coeff": VALUE}
        loss_fn = ClipPPOLoss(actor, critic, loss_critic_type="l2", normalize_advantage=True, **coefficients)
        optimizer = torch.optim.Adam(loss_fn.parameters(), lr=LR, eps=1e-5)
        buffer = ReplayBuffer(storage=LazyTensorStorage(size), sampler=SamplerWithoutReplacement(), batch_size=MINIBATCH)

        def rounds() -> Iterator[None]:
            for data in collector:
                with torch.no_grad():
                    data = estimator(data)
                buffer.extend(data.reshape(-1))
                for _ in range(EPOCHS):
                    for batch in buffer:
                        losses = loss_fn(batch)
                        optimizer.zero_grad()
                        (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
                        nn.utils.clip_grad_norm_(loss_fn.parameters(), NORM)
                        optimizer.step()
                yield

        return going_on(rounds(), 1)

    return prepare


def cases(size: str = "full") -> Iterator[Case]:
    small = size == "tiny"
    ppo = {RLBOOK: rlbook_ppo(False), COMPILED: rlbook_ppo(True), CLEANRL: lambda: cleanrl_ppo()}
    ppo[TORCHRL] = torchrl_of(lambda: peers.torchrl_serial("CartPole-v1", ENVS))
    targets = [faster(COMPILED, 8, TORCHRL), faster(COMPILED, 2.5, CLEANRL)]
    if small:
        del ppo[COMPILED]
    yield Case("PPO, CartPole-v1, CleanRL's settings", "frames", PPO_FRAMES, ppo, targets, "TorchRL steps its `SerialEnv`.")
    if small:
        return
    dqn = {RLBOOK: rlbook_dqn(False), COMPILED: rlbook_dqn(True), SB3: lambda: sb3_dqn()}
    note = (
        "128 updates of 64 rows for every 256 frames, a network of 256-256. SB3 copies its targets at every 10th frame, ours at "
        "every 100th update."
    )
    yield Case("DQN, CartPole-v1", "frames", DQN_FRAMES, dqn, [faster(COMPILED, 3, SB3)], note)
    dqn = {RLBOOK: rlbook_small_dqn(False), COMPILED: rlbook_small_dqn(True), SB3: lambda: sb3_small_dqn()}
    note = (
        "4 environments, 8 updates of 128 rows for every 32 frames, a network of 64-64, returns of 3 steps; ours is double as "
        "well."
    )
    yield Case("DQN, CartPole-v1, the recipe's settings", "frames", DQN_FRAMES, dqn, [faster(COMPILED, 3, SB3)], note)
    sac = {RLBOOK: rlbook_sac(False), COMPILED: rlbook_sac(True), SB3: lambda: sb3_sac()}
    note = "One update of 256 rows for every frame, networks of 256-256."
    yield Case("SAC, HalfCheetah-v5", "frames", SAC_FRAMES, sac, [faster(COMPILED, 1.6, SB3)], note)
