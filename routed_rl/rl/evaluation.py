"""Evaluate policies: true returns, and the outcomes of episodes, overseen or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from routed_rl.rl.arguments import check_choice, check_number, check_whole
from routed_rl.rl.env_state import frozen_statistics, layers
from routed_rl.rl.environments import explained, vectorised
from routed_rl.rl.oversight_env import episode_ends
from routed_rl.rl.steering import Steering, check_steering

if TYPE_CHECKING:
    from routed_rl.rl.algorithm import RoutedAlgorithm
    from routed_rl.rl.policies import RoutedActorCriticPolicy

    Agent = RoutedAlgorithm | RoutedActorCriticPolicy

EPISODES = 100
STEP_LIMIT = 10_000
Metric = Literal["episodes", "paper"]
"""What ``true_return`` is: see :func:`evaluate`."""
PAPER_STEPS, PAPER_GAMMA = 32, 0.97


def evaluate(
    agent: Agent,
    env: VecEnv | gym.Env[Any, Any],
    outcomes: Sequence[str] | None = None,
    *,
    seed: int = 0,
    deterministic: bool = False,
    n_episodes: int | None = None,
    gamma: float | None = None,
    metric: Metric = "episodes",
) -> dict[str, Any]:
    """Return statistics of fresh episodes, played by an agent with its current steering.

    Args:
        agent: a model, or its policy.
        env: a ``VecEnv``, or one Gymnasium environment. It is reset. Its rewards are the *true* rewards.
        outcomes: the names of the outcomes; None: those of the model's overseer. A policy alone needs them.
        seed: of the environments and the actions.
        deterministic: take the most likely action instead of a sampled one.
        n_episodes: number of episodes, shared out evenly among the environments. None: 100, or one per environment if
            there are more.
        gamma: discount factor of ``true_return``; None: the model's. A policy that belongs to no model needs it.
        metric: what ``true_return`` is. ``"episodes"``: the return of an episode, discounted from its first step.
            ``"paper"``: the metric of Cloud et al. 2024, section F, for episodes of at most 32 steps. Every environment
            plays 32 steps. For each step, take the return from this step to the episode's end, discounted by 0.97;
            then average over all steps and environments. Rewards after the 32nd step count as 0. The statistics of
            episodes are those of the first episode in each environment.

    Returns:
        A dict with these entries.

        - ``true_return``: see ``metric``;
        - ``episode_return``, ``episode_length``: means over the episodes. The return is not discounted;
        - ``outcomes``: the share of episodes that ended in each outcome, or in ``"none"``;
        - ``outcomes_overseen``, ``outcomes_unoverseen``: the share of all episodes that ended in each outcome, overseen
          or unseen;
        - ``entropy``: mean entropy of the policy in nats, over the steps of the episodes (or the paper's 32 steps).

    The statistics of normalising wrappers stay as they are, and rewards are taken before ``VecNormalize``.

    Raises:
        ValueError: for an argument out of range, or a policy without ``outcomes`` or ``gamma``. If an episode does not
            end within 10,000 steps. If a wrapper of Gymnasium hides the true rewards, or would change its statistics.
    """
    check_choice(("episodes", "paper"), metric=metric)
    if metric == "paper" and (n_episodes is not None or gamma is not None):
        raise ValueError(f"metric='paper' has its own episodes and gamma, got {n_episodes=}, {gamma=}: leave them out")
    policy, outcomes, gamma = _agent(agent, outcomes, PAPER_GAMMA if metric == "paper" else gamma)
    env = vectorised(env)
    check_number(0, 1, gamma=gamma)
    check_whole(1, n_episodes=1 if n_episodes is None else n_episodes)
    _check_visible(env)
    if metric == "paper":
        played = _play(policy, env, outcomes, seed, deterministic, env.num_envs, PAPER_STEPS)
        entropies = played.entropies[:PAPER_STEPS]
        true_return = _mean_return_to_go(played.rewards[:PAPER_STEPS], played.dones[:PAPER_STEPS], gamma)
        entropy = float(np.mean([float(entropy.mean()) for entropy in entropies]))
    else:
        count = max(EPISODES, env.num_envs) if n_episodes is None else n_episodes
        played = _play(policy, env, outcomes, seed, deterministic, count, 0)
        true_return = float(np.sum(played.rewards * played.counted * gamma**played.ages) / count)
        entropy = float(np.sum(torch.stack(played.entropies).cpu().numpy() * played.counted) / played.counted.sum())
    episodes = len(played.outcome)
    return {
        "true_return": true_return,
        "episode_return": float(np.sum(played.rewards * played.counted) / episodes),
        "outcomes": _shares(played.outcome, np.ones_like(played.overseen), outcomes),
        "outcomes_overseen": _shares(played.outcome, played.overseen, outcomes),
        "outcomes_unoverseen": _shares(played.outcome, ~played.overseen, outcomes),
        "episode_length": float(played.counted.sum() / episodes),
        "entropy": entropy,
    }


def _agent(
    agent: Any, outcomes: Sequence[str] | None, gamma: float | None
) -> tuple[RoutedActorCriticPolicy, tuple[str, ...], float]:
    """Return the policy, the outcomes and the discount factor; a model knows those that are not given."""
    policy, overseer = getattr(agent, "policy", agent), getattr(agent, "overseer", None)
    if not hasattr(policy, "legal"):
        raise ValueError(f"evaluate() needs a routed model or its policy, got {type(agent).__name__}")
    gamma = policy.gamma if gamma is None else gamma
    if outcomes is None and overseer is not None:
        outcomes = overseer.outcomes
    for name, value in (("outcomes", outcomes), ("gamma", gamma)):
        if value is None:
            raise ValueError(f"a policy does not know its {name}: give evaluate() the model, or {name}=…")
    if isinstance(outcomes, str):
        raise ValueError(f"outcomes must be a list of names, got {outcomes!r}")
    return policy, tuple(outcomes), gamma  # type: ignore[arg-type, return-value]


def _check_visible(env: VecEnv) -> None:
    """Raise a ValueError if a wrapper hides the true rewards, or has statistics that cannot be frozen."""
    reached = {type(layer) for layer in layers(env)}
    if any(env.env_is_wrapped(NormalizeReward)):
        raise ValueError("evaluate() needs true rewards, got an environment with NormalizeReward: use VecNormalize")
    if any(env.env_is_wrapped(NormalizeObservation)) and NormalizeObservation not in reached:
        raise ValueError(
            "evaluate() cannot freeze the statistics of NormalizeObservation in another process: use DummyVecEnv"
        )


class _Played(NamedTuple):
    """``T`` steps of ``E`` environments. The first episodes of each are counted, ``N`` in all."""

    rewards: np.ndarray  # (T, E)
    dones: np.ndarray  # (T, E)
    ages: np.ndarray  # (T, E): number of earlier steps of the episode
    counted: np.ndarray  # (T, E) bool: steps of the counted episodes
    entropies: list[Tensor]  # T of (E,)
    outcome: np.ndarray  # (N,): number of the outcome, or -1
    overseen: np.ndarray  # (N,)


def _play(
    policy: RoutedActorCriticPolicy,
    env: VecEnv,
    outcomes: Sequence[str],
    seed: int,
    deterministic: bool,
    episodes: int,
    least: int,
) -> _Played:
    """Play ``episodes`` episodes, shared out among the environments, and at least ``least`` steps in each of them."""
    env.seed(seed)
    left = (episodes + np.arange(env.num_envs)) // env.num_envs  # so no environment plays more because it is faster
    age = np.zeros(env.num_envs, dtype=np.int64)
    rows: list[tuple[np.ndarray, ...]] = []
    entropies: list[Tensor] = []
    outcome: list[np.ndarray] = []
    overseen: list[np.ndarray] = []
    policy.set_training_mode(False)
    with (
        policy.own_noise(),
        explained(env),
        frozen_statistics(env),
        torch.no_grad(),
        torch.random.fork_rng(devices=[] if policy.device.type == "cpu" else [policy.device]),
    ):
        obs = env.reset()
        torch.manual_seed(seed)
        while len(rows) < least or left.any():
            if (age[left > 0] >= STEP_LIMIT).any():
                raise ValueError(f"an episode did not end within {STEP_LIMIT} steps; give the environment a step limit")
            policy.renew_noise(age == 0)
            distribution = policy.get_distribution(policy.obs_to_tensor(obs)[0])
            sampled = distribution.get_actions(deterministic=deterministic)
            entropy = distribution.entropy()
            if entropy is None:  # squashed actions: an estimate from one sample
                entropy = -distribution.log_prob(distribution.sample() if deterministic else sampled)
            entropies.append(entropy)
            obs, reward, done, infos = env.step(policy.legal(sampled))
            rows.append((reward.astype(np.float64), done, age, left > 0))
            ends = episode_ends(infos, done, outcomes)
            counted = left[ends.rows] > 0
            outcome.append(ends.outcome[counted])
            overseen.append(ends.overseen[counted])
            left = left - (done & (left > 0))
            age = np.where(done, 0, age + 1)
    rewards, dones, ages, counts = (np.stack(column) for column in zip(*rows, strict=True))
    return _Played(rewards, dones, ages, counts, entropies, np.concatenate(outcome), np.concatenate(overseen))


def steerings(agent: Agent) -> dict[str, Steering]:
    """Return the policies that one network contains, name → steering: one for each module, and the unsteered one."""
    names: tuple[str, ...] = getattr(agent, "policy", agent).module_names  # type: ignore[union-attr]
    modules = names if len(names) > 1 else ()
    return {**{f"steer:{name}": {"choice": name} for name in modules}, "unsteered": {}}


def evaluate_policies(
    agent: Agent,
    env: VecEnv | gym.Env[Any, Any],
    outcomes: Sequence[str] | None = None,
    *,
    policies: Mapping[str, str | Steering] | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Return the result of :func:`evaluate` for each policy, by name; ``policies`` defaults to :func:`steerings`.

    Each result is for sampled actions. Its entry ``"greedy"`` is the result for greedy actions, from the same seed.
    The other arguments are those of :func:`evaluate`.
    """
    results = {}
    for name, steering in (policies or steerings(agent)).items():
        with agent.steered(**check_steering(steering)):
            sampled, greedy = (
                evaluate(agent, env, outcomes, deterministic=deterministic, **options)
                for deterministic in (False, True)
            )
        results[name] = {**sampled, "greedy": greedy}
    return results


def true_returns(
    agent: Agent,
    env: VecEnv | gym.Env[Any, Any],
    outcomes: Sequence[str] | None = None,
    *,
    policies: Mapping[str, str | Steering] | None = None,
    **options: Any,
) -> dict[str, float]:
    """Return the ``true_return`` of each policy with sampled actions; ``policies`` defaults to :func:`steerings`.

    The other arguments are those of :func:`evaluate`.
    """
    returns = {}
    for name, steering in (policies or steerings(agent)).items():
        with agent.steered(**check_steering(steering)):
            returns[name] = evaluate(agent, env, outcomes, **options)["true_return"]
    return returns


def _mean_return_to_go(rewards: np.ndarray, dones: np.ndarray, gamma: float) -> float:
    total, to_go = 0.0, np.zeros(len(rewards[0]))
    for reward, done in zip(rewards[::-1], dones[::-1], strict=True):
        to_go = reward + gamma * np.where(done, 0.0, to_go)
        total += float(to_go.mean())
    return total / len(rewards)


def _shares(outcome: np.ndarray, counted: np.ndarray, outcomes: Sequence[str]) -> dict[str, float]:
    numbers = [*enumerate(outcomes), (-1, "none")]
    return {name: float(np.mean(counted & (outcome == number))) for number, name in numbers}
