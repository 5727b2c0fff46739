"""Callbacks of Stable-Baselines3 for learners whose policy is steered after training."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from routed_rl.rl.algorithm import RoutedAlgorithm
from routed_rl.rl.evaluation import Steering
from routed_rl.runs import derive_seed


class SteeredEvalCallback(EvalCallback):
    """Scores a steered policy while the unsteered one is trained, and keeps the best model.

    ``EvalCallback`` scores the unsteered policy, and greedily. With a method that routes, that policy seeks good and
    bad outcomes alike, so it would choose the wrong model.

    The score is the mean true return of an episode: the sum of the environment's rewards, not discounted. The best
    model is saved with its steering: call ``unsteer()`` to train it further. Training does not change.

    Args:
        eval_env: an environment of its own, not that of training. Its rewards are the true rewards.
        steering: a module that acts alone, or arguments of :meth:`RoutedActorCriticPolicy.steered`, as in
            ``{"choice": "diamond", "avoid": {"ghost": 4}}``.
        n_eval_episodes: episodes per evaluation.
        deterministic: take the most likely action instead of a sampled one.
        options: the other arguments of ``EvalCallback``. ``eval_freq`` counts steps of each training environment:
            divide environment steps by their number.

    Raises:
        ValueError: in ``learn``, for a steering that the policy does not have.
    """

    model: RoutedAlgorithm

    def __init__(
        self,
        eval_env: VecEnv | gym.Env[Any, Any],
        steering: str | Steering,
        *,
        n_eval_episodes: int = 100,
        deterministic: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(eval_env, n_eval_episodes=n_eval_episodes, deterministic=deterministic, **options)
        self.steering: Steering = {"choice": steering} if isinstance(steering, str) else steering

    def _init_callback(self) -> None:
        with self.model.steered(**self.steering):
            super()._init_callback()
        self.eval_env.seed(derive_seed(self.model.seed, "evaluation"))

    def _on_step(self) -> bool:
        with self.model.steered(**self.steering):
            return super()._on_step()
