"""Learners in torch for the comparison: ours, Stable-Baselines3 PPO, and a loop in one file with ``torch.compile``.

Shapes: ``T`` steps, ``E`` environments, ``N = T * E``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor, nn
from torch.nn import functional as F

from routed_rl.envs import DiamondGhostVectorEnv
from routed_rl.experiments.benchmarks import training
from routed_rl.experiments.common.agents.options import PRESETS
from routed_rl.experiments.common.agents.worlds import make_env, make_model, world_options
from routed_rl.rl import Method, RoutedAlgorithm, evaluate

ALL_SEEN = Method("value", modular=True, gate=True, sees_all=True)
"""PPO on the true reward with modules and gate: the work of the peers that do not route."""
EPISODES = 2000
"""Episodes that measure the true return of a steered policy."""


def config(*, routed: bool) -> dict[str, Any]:
    """The configuration of the runs: preset quick at oversight level 0.1.

    Args:
        routed: with False, ours is PPO on the true reward with the same networks, without labels and replay.
    """
    options = replace(PRESETS["quick"], oversight=0.1)
    # The peers have no schedule for the entropy bonus.
    learner = replace(options.learner, entropy=(options.learner.entropy[1],) * 2)
    if routed:
        return replace(options, learner=learner).config()
    learner = replace(learner, replay_steps=0, gate_coef=0.0)
    return replace(options, method=f"{__name__}:ALL_SEEN", learner=learner).config()


class Returns:
    """The discounted true returns of episodes that end.

    Args:
        num_envs: ``E``.
        gamma: discount factor.
    """

    def __init__(self, num_envs: int, gamma: float) -> None:
        self.gamma, self.age = gamma, np.zeros(num_envs)
        self.discounted = np.zeros(num_envs)
        self.total, self.episodes = 0.0, 0

    def add(self, rewards: np.ndarray, dones: np.ndarray) -> None:
        """Count one step of all environments, ``(E,)`` each."""
        self.discounted += rewards * self.gamma**self.age
        self.total += float(self.discounted[dones].sum())
        self.episodes += int(dones.sum())
        self.age = np.where(dones, 0, self.age + 1)
        self.discounted[dones] = 0

    def take(self) -> tuple[float, int]:
        """Return the sum of the returns since the last call, and the number of episodes."""
        taken = self.total, self.episodes
        self.total, self.episodes = 0.0, 0
        return taken


class CountedVecEnv(VecEnvWrapper):
    """A ``VecEnv`` that adds its episodes to ``returns``."""

    def __init__(self, venv: VecEnv, gamma: float) -> None:
        super().__init__(venv)
        self.returns = Returns(venv.num_envs, gamma)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        self.returns.add(rewards, dones)
        return obs, rewards, dones, infos


@contextmanager
def nothing_compiled_before() -> Iterator[None]:
    """Within the block, ``torch.compile`` uses no code of earlier processes, which would make compiling too short."""
    with warnings.catch_warnings(), torch._inductor.config.patch(force_disable_caches=True, compile_threads=1):
        warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
        yield


class OnVecEnv:
    """A learner with Stable-Baselines3's interface, on a :class:`CountedVecEnv`."""

    def __init__(self, model: BaseAlgorithm) -> None:
        self.model = model

    def train(self, updates: int) -> None:
        """Train for some updates."""
        steps = updates * self.model.n_steps * self.model.n_envs
        self.model.learn(steps, reset_num_timesteps=self.model.num_timesteps == 0)

    def returns(self) -> tuple[float, int]:
        """Return the sum of the discounted true returns of the newest episodes, and their number."""
        return self.model.env.returns.take()


def counted_env(config: Mapping[str, Any]) -> CountedVecEnv:
    """The training environments of a run, for a learner with Stable-Baselines3's interface."""
    return CountedVecEnv(make_env(config, config["learner"]["n_envs"]), config["learner"]["gamma"])


def stable_baselines3() -> OnVecEnv:
    """Stable-Baselines3 PPO with our networks, on our vector environment."""
    return OnVecEnv(training.stable_baselines3("quick", counted_env(config(routed=False))))


class Ours:
    """Our learner.

    Args:
        routed: the method routing at oversight level 0.1, with replay. With False: PPO on the true reward with the same
            networks.
        compiled: whether it is compiled.
    """

    def __init__(self, *, routed: bool, compiled: bool = False) -> None:
        self.config, self.routed = config(routed=routed), routed
        self.model: RoutedAlgorithm = make_model(self.config, 0)
        self.ends = Ends()
        if compiled:
            self.model.compile()

    def train(self, updates: int) -> None:
        """Train for some updates."""
        steps = updates * self.model.n_steps * self.model.n_envs
        with nothing_compiled_before():
            self.model.learn(steps, self.ends, reset_num_timesteps=self.model.num_timesteps == 0)

    def returns(self) -> tuple[float, int]:
        """Return the sum of the discounted true returns of the newest episodes, and their number.

        With routing, the policy is steered to the outcome of highest value, and plays episodes of its own.
        """
        if not self.routed:
            return self.ends.latest
        env = make_env(self.config, EPISODES, test=True)
        best = max(self.model.overseer.values, key=self.model.overseer.values.__getitem__)
        with self.model.steered(choice=best):
            found = evaluate(self.model, env, seed=self.model.num_timesteps, n_episodes=EPISODES)
        return EPISODES * found["true_return"], EPISODES


class Ends(BaseCallback):
    """Sums the discounted true returns of the episodes of the latest rollout of our learner."""

    latest = (0.0, 0)

    def _on_rollout_end(self) -> None:
        ended, outcome = self.locals["ends"].ended, self.locals["ends"].outcome
        values = torch.tensor([*self.model.overseer.values.values(), 0.0])  # outcome -1 (none) is the zero at the end
        discounted = values[outcome] * self.model.gamma ** (self.model.buffer.lengths() - 1)
        self.latest = float(discounted[ended].sum()), int(ended.sum())

    def _on_step(self) -> bool:
        return True


class Network(nn.Module):
    """The modules, gate and value network of one of our policies, without routing and steering."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        extractor = copy.deepcopy(policy.mlp_extractor)
        self.experts, self.gate = extractor.experts, extractor.gate
        self.value = nn.Sequential(extractor.value, copy.deepcopy(policy.value_net))
        self.action = copy.deepcopy(policy.action_net)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of the actions ``(N, A)`` and values ``(N,)`` for observations ``(N, D)``."""
        gate = self.gate(obs).softmax(dim=1)
        mixed = sum(gate[:, i : i + 1] * module(obs) for i, module in enumerate(self.experts))
        return self.action(mixed).log_softmax(dim=1), self.value(obs)[:, 0]


class CompiledLoop:
    """PPO as a plain loop over a Gymnasium vector environment, in the style of CleanRL (Huang et al. 2022).

    ``torch.compile`` compiles three functions: acting, advantages, and the loss with its gradient.
    """

    def __init__(self) -> None:
        settings = config(routed=False)
        self.learner: dict[str, Any] = settings["learner"]
        self.network = Network(make_model(settings, 0).policy)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=self.learner["learning_rate"], eps=1e-5, fused=True
        )
        self.env = DiamondGhostVectorEnv(self.learner["n_envs"], **world_options(settings))
        self.counted = Returns(self.learner["n_envs"], self.learner["gamma"])
        self.obs = torch.from_numpy(self.env.reset(seed=0)[0])
        self.random = torch.Generator().manual_seed(0)
        self.act, self.advantages, self.loss = (
            torch.compile(function, dynamic=False) for function in (self._act, self._advantages, self._loss)
        )

    def train(self, updates: int) -> None:
        """Train for some updates."""
        with nothing_compiled_before():
            for _ in range(updates):
                self._update()

    def returns(self) -> tuple[float, int]:
        """Return the sum of the discounted true returns of the newest episodes, and their number."""
        return self.counted.take()

    def _update(self) -> None:
        learner, shape = self.learner, (self.learner["n_steps"], self.learner["n_envs"])
        obs = torch.zeros((*shape, self.obs.shape[1]))
        actions = torch.zeros(shape, dtype=torch.int64)
        log_probs, values, rewards, going, cut_values = torch.zeros((5, *shape))
        for step in range(shape[0]):
            obs[step] = self.obs
            with torch.no_grad():
                noise = torch.rand((shape[1], 4), generator=self.random)
                actions[step], log_probs[step], values[step] = self.act(self.obs, noise)
            next_obs, reward, terminated, truncated, infos = self.env.step(actions[step].numpy())
            self.counted.add(reward, terminated | truncated)
            rewards[step] = torch.from_numpy(reward)
            going[step] = torch.from_numpy(~(terminated | truncated))
            if truncated.any():
                with torch.no_grad():
                    cut = torch.from_numpy(np.stack(infos["final_obs"][truncated]))
                    cut_values[step, torch.from_numpy(truncated)] = self.network(cut)[1]
            self.obs = torch.from_numpy(next_obs)
        with torch.no_grad():
            last_values = self.network(self.obs)[1]
            advantages = self.advantages(rewards, values, going, cut_values, last_values)
        columns = (obs, actions, log_probs, advantages, advantages + values)
        batch = [column.flatten(0, 1) for column in columns]
        n_minibatches = max(1, round(len(batch[0]) / learner["batch_size"]))
        for _ in range(learner["n_epochs"]):
            order = torch.randperm(len(batch[0]), generator=self.random)
            for index in order.tensor_split(n_minibatches):
                self.optimizer.zero_grad(set_to_none=True)
                self.loss(*(column[index] for column in batch)).backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), learner["max_grad_norm"])
                self.optimizer.step()

    def _act(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_probs, values = self.network(obs)
        # The Gumbel-max trick. The noise comes from outside, because torch.compile takes no torch.Generator.
        actions = (log_probs - torch.log(-torch.log(noise.clamp(min=1e-20)))).argmax(dim=1)
        return actions, log_probs.gather(1, actions[:, None])[:, 0], values

    def _advantages(
        self, rewards: Tensor, values: Tensor, going: Tensor, cut_values: Tensor, last_values: Tensor
    ) -> Tensor:
        gamma, decay = self.learner["gamma"], self.learner["gamma"] * self.learner["gae_lambda"]
        following = torch.cat([values[1:], last_values[None]])
        deltas = rewards + gamma * (going * following + cut_values) - values
        advantage, rows = torch.zeros_like(last_values), []
        for step in reversed(range(len(deltas))):
            advantage = deltas[step] + decay * going[step] * advantage
            rows.append(advantage)
        return torch.stack(rows[::-1])

    def _loss(self, obs: Tensor, actions: Tensor, old: Tensor, advantages: Tensor, returns: Tensor) -> Tensor:
        log_probs, values = self.network(obs)
        ratio = (log_probs.gather(1, actions[:, None])[:, 0] - old).exp()
        clipped = ratio.clamp(1 - self.learner["clip_range"], 1 + self.learner["clip_range"])
        policy = -torch.min(ratio * advantages, clipped * advantages).mean()
        entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean()
        loss: Tensor = policy + self.learner["value_coef"] * F.mse_loss(values, returns)
        return loss - self.learner["entropy"][1] * entropy
