"""Evaluate policies: true returns, and the outcomes of episodes, overseen or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from stable_baselines3.common.vec_env import VecEnv

from routed_rl.rl.env_state import frozen_statistics, layers
from routed_rl.rl.oversight_env import episode_ends

if TYPE_CHECKING:
    from routed_rl.rl.policies import RoutedActorCriticPolicy

STEP_LIMIT = 10_000


def evaluate(
    policy: RoutedActorCriticPolicy,
    env: VecEnv,
    outcomes: Sequence[str],
    *,
    seed: int,
    deterministic: bool = False,
    n_steps: int = 32,
    gamma: float = 0.97,
) -> dict[str, Any]:
    """Return statistics of freshly reset environments, played with the policy and its current steering.

    Returns:
        A dict with these entries:

        - ``true_return``: the paper's metric (Cloud et al. 2024, section F). For each of ``n_steps`` steps, take the
          discounted sum of the *true* reward from this step to the episode's end; then average over all steps and
          environments. Rewards after ``n_steps`` steps count as 0;
        - ``episode_return``, ``episode_length``: means over the first episode of each environment. The return is not
          discounted;
        - ``outcomes``: the share of these first episodes that ended in each outcome, or in ``"none"``;
        - ``outcomes_overseen``, ``outcomes_unoverseen``: the share of all first episodes that ended in each outcome
          and were overseen, or were not;
        - ``entropy``: mean entropy of the policy in nats, over the ``n_steps`` steps.

    The statistics of normalising wrappers stay as they are, and rewards are taken before ``VecNormalize``.

    Raises:
        ValueError: if the first episode of an environment does not end within 10,000 steps, or if a wrapper of
            Gymnasium hides the true rewards or cannot be kept from changing its statistics.
    """
    reached = {type(layer) for layer in layers(env)}
    if any(env.env_is_wrapped(NormalizeReward)):
        raise ValueError("evaluate() needs true rewards, got an environment with NormalizeReward: use VecNormalize")
    if any(env.env_is_wrapped(NormalizeObservation)) and NormalizeObservation not in reached:
        raise ValueError(
            "evaluate() cannot freeze the statistics of NormalizeObservation in another process: use DummyVecEnv"
        )
    env.seed(seed)
    rewards: list[np.ndarray] = []
    dones: list[np.ndarray] = []
    entropies: list[float] = []
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    outcome, overseen = np.full(env.num_envs, -1), np.zeros(env.num_envs, dtype=bool)
    running = np.ones(env.num_envs, dtype=bool)
    policy.set_training_mode(False)
    with (
        frozen_statistics(env),
        torch.no_grad(),
        torch.random.fork_rng(devices=[] if policy.device.type == "cpu" else [policy.device]),
    ):
        obs = env.reset()
        torch.manual_seed(seed)
        while len(rewards) < n_steps or running.any():
            if len(rewards) >= STEP_LIMIT:
                raise ValueError(
                    f"the first episodes of {int(running.sum())} environments did not end within {STEP_LIMIT} steps; "
                    "give the environment a step limit"
                )
            distribution = policy.get_distribution(policy.obs_to_tensor(obs)[0])
            actions = policy.legal(distribution.get_actions(deterministic=deterministic))
            entropies.append(float(distribution.entropy().mean()))
            obs, reward, done, infos = env.step(actions)
            rewards.append(reward)
            dones.append(done)
            returns += np.where(running, reward, 0.0)
            lengths += running
            ends = episode_ends(infos, done, outcomes)
            first = running[ends.rows]
            outcome[ends.rows[first]], overseen[ends.rows[first]] = ends.outcome[first], ends.overseen[first]
            running &= ~done
    return {
        "true_return": _mean_return_to_go(rewards[:n_steps], dones[:n_steps], gamma),
        "episode_return": float(returns.mean()),
        "outcomes": _shares(outcome, np.ones_like(overseen), outcomes),
        "outcomes_overseen": _shares(outcome, overseen, outcomes),
        "outcomes_unoverseen": _shares(outcome, ~overseen, outcomes),
        "episode_length": float(lengths.mean()),
        "entropy": float(np.mean(entropies[:n_steps])),
    }


Steering = Mapping[str, Any]
"""Keyword arguments for :meth:`RoutedActorCriticPolicy.steered`."""


def steerings(policy: RoutedActorCriticPolicy) -> dict[str, Steering]:
    """Return the policies that one network contains, name → steering: one for each module, and the unsteered one."""
    modules = policy.module_names if len(policy.module_names) > 1 else ()
    return {**{f"steer:{name}": {"choice": name} for name in modules}, "unsteered": {}}


def evaluate_policies(
    policy: RoutedActorCriticPolicy,
    env: VecEnv,
    outcomes: Sequence[str],
    *,
    seed: int,
    policies: Mapping[str, Steering] | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Return the result of :func:`evaluate` for each policy, by name; ``policies`` defaults to :func:`steerings`.

    Each result is for sampled actions. Its entry ``"greedy"`` is the result for greedy actions, from the same seed.
    """
    results = {}
    for name, steering in (policies or steerings(policy)).items():
        with policy.steered(**steering):
            sampled, greedy = (
                evaluate(policy, env, outcomes, seed=seed, deterministic=deterministic, **options)
                for deterministic in (False, True)
            )
        results[name] = {**sampled, "greedy": greedy}
    return results


def true_returns(
    policy: RoutedActorCriticPolicy,
    env: VecEnv,
    outcomes: Sequence[str],
    *,
    seed: int,
    policies: Mapping[str, Steering] | None = None,
) -> dict[str, float]:
    """Return the ``true_return`` of each policy with sampled actions; ``policies`` defaults to :func:`steerings`."""
    returns = {}
    for name, steering in (policies or steerings(policy)).items():
        with policy.steered(**steering):
            returns[name] = evaluate(policy, env, outcomes, seed=seed)["true_return"]
    return returns


def _mean_return_to_go(rewards: Sequence[np.ndarray], dones: Sequence[np.ndarray], gamma: float) -> float:
    total, to_go = 0.0, np.zeros(len(rewards[0]))
    for reward, done in zip(reversed(rewards), reversed(dones), strict=True):
        to_go = reward + gamma * np.where(done, 0.0, to_go)
        total += float(to_go.mean())
    return total / len(rewards)


def _shares(outcome: np.ndarray, counted: np.ndarray, outcomes: Sequence[str]) -> dict[str, float]:
    numbers = [*enumerate(outcomes), (-1, "none")]
    return {name: float(np.mean(counted & (outcome == number))) for number, name in numbers}
