"""Peers, set up as their own documentation recommends, so that items stay short. Their imports wait until they are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


# ---- TorchRL ---------------------------------------------------------------------------------------------------------------
def torchrl_serial(name: str, num_envs: int) -> Any:
    """``SerialEnv`` of ``GymEnv``: what TorchRL's tutorials use for several environments in one process."""
    from torchrl.envs import GymEnv, SerialEnv

    return SerialEnv(num_envs, lambda: GymEnv(name, categorical_action_encoding=True))


def torchrl_wrapped(name: str, num_envs: int) -> Any:
    """``GymWrapper`` around Gymnasium's ``SyncVectorEnv``.

    Gymnasium's vector entry points that reset at the next step (CartPole's) are refused by TorchRL, and ``GymEnv(num_envs=...)``
    starts a process per environment, which is slower on few cores.
    """
    import gymnasium
    from torchrl import logger
    from torchrl.envs import GymWrapper

    logger.setLevel("WARNING")
    same_step = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    vector = gymnasium.make_vec(name, num_envs, vectorization_mode="sync", vector_kwargs=same_step)
    return GymWrapper(vector, categorical_action_encoding=True)


def torchrl_actor(net: nn.Module) -> Any:
    """The probabilistic actor of TorchRL's PPO examples, for discrete actions."""
    from tensordict.nn import TensorDictModule
    from torchrl.modules import ProbabilisticActor

    module = TensorDictModule(net, in_keys=["observation"], out_keys=["logits"])
    return ProbabilisticActor(
        module, in_keys=["logits"], distribution_class=torch.distributions.Categorical, return_log_prob=True
    )


# ---- Stable-Baselines3 -----------------------------------------------------------------------------------------------------
def sb3_envs(name: str, num_envs: int) -> Any:
    """``DummyVecEnv``, which SB3 recommends for light environments, without its ``Monitor``."""
    import gymnasium
    from stable_baselines3.common.vec_env import DummyVecEnv

    return DummyVecEnv([lambda: gymnasium.make(name)] * num_envs)


def sb3_ppo(env: Any, **settings: Any) -> Any:
    """A PPO agent that is ready to collect and to train outside ``learn``."""
    from stable_baselines3 import PPO

    agent = PPO("MlpPolicy", env, device="cpu", **settings)
    agent._setup_learn(total_timesteps=10**9)
    return agent


# ---- CleanRL's design --------------------------------------------------------------------------------------------------------
def mlp(outputs: int, inputs: int = 4, cells: int = 64) -> nn.Sequential:
    """Two hidden layers with tanh."""
    return nn.Sequential(nn.Linear(inputs, cells), nn.Tanh(), nn.Linear(cells, cells), nn.Tanh(), nn.Linear(cells, outputs))


class PlainAgent(nn.Module):
    """Separate networks for actor and critic behind one method, as in CleanRL and LeanRL."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = mlp(2), mlp(1)

    def forward(self, observation: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return action, log-probability, entropy and value."""
        dist = torch.distributions.Categorical(logits=self.actor(observation))
        action = dist.sample() if action is None else action
        return action, dist.log_prob(action), dist.entropy(), self.critic(observation).flatten()
