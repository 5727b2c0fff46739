"""Callbacks of Stable-Baselines3 for learners whose policy is steered after training."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, sync_envs_normalization

from routed_rl.rl.algorithm import RoutedAlgorithm
from routed_rl.rl.arguments import check_known, check_whole
from routed_rl.rl.env_state import frozen_statistics, layers
from routed_rl.rl.environments import check_env
from routed_rl.rl.steering import Steering, check_steering
from routed_rl.runs import derive_seed


class SteeredEvalCallback(EvalCallback):
    """Scores a steered policy while the unsteered one is trained, and keeps the best model.

    ``EvalCallback`` scores the unsteered policy, and greedily. With a method that routes, that policy seeks good and
    bad outcomes alike, so it would choose the wrong model.

    The score is the mean true return of an episode: the sum of the environment's rewards, not discounted. The best
    model is saved with its steering: call ``unsteer()`` to train it further. Training does not change.

    Args:
        eval_env: an environment of its own, not that of training. Its rewards are the true rewards.
        steering: a module that acts alone, or arguments of :meth:`~routed_rl.rl.RoutedActorCriticPolicy.steered`, as in
            ``{"choice": "diamond", "avoid": {"ghost": 4}}``.
        n_eval_episodes: episodes per evaluation.
        deterministic: take the most likely action instead of a sampled one.
        options: the other arguments of ``EvalCallback``. ``eval_freq`` counts steps of each training environment:
            divide environment steps by their number.

    Raises:
        ValueError: for an argument of a wrong type or name. In ``learn``, before training: for a steering that the
            policy does not have, for the training environment, or for other spaces or normalisation than its own.
    """

    model: RoutedAlgorithm
    eval_env: VecEnv

    def __init__(
        self,
        eval_env: VecEnv | gym.Env[Any, Any],
        steering: str | Steering,
        *,
        n_eval_episodes: int = 100,
        deterministic: bool = False,
        **options: Any,
    ) -> None:
        check_env(eval_env=eval_env)
        check_whole(1, n_eval_episodes=n_eval_episodes)
        check_known(type(self).__name__, options, EvalCallback)
        self.steering = check_steering(steering)
        options = {"warn": False, **options}  # rewards are the environment's own, so that a Monitor would add nothing
        super().__init__(eval_env, n_eval_episodes=n_eval_episodes, deterministic=deterministic, **options)

    def _init_callback(self) -> None:
        shared = {id(layer) for layer in layers(self.training_env)}.intersection(map(id, layers(self.eval_env)))
        if shared:
            raise ValueError(
                f"eval_env must be an environment of its own, got one that the model trains in, {self.eval_env}: "
                "evaluation would reset it in the middle of training"
            )
        self.eval_env = self.model._wrap_env(self.eval_env)  # as that of training, where images are transposed
        try:
            check_for_correct_spaces(self.eval_env, self.model.observation_space, self.model.action_space)
        except ValueError as error:
            raise ValueError(f"eval_env must have the spaces of the model: {error}") from error
        if self.model.get_vec_normalize_env() is not None:
            self._check_statistics()
        with self.model.steered(**self.steering), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Training and eval env are not of the same type")  # their spaces are
            super()._init_callback()
        self.eval_env.seed(derive_seed(self.model.seed, "evaluation"))

    def _check_statistics(self) -> None:
        """Raise a ValueError unless the statistics of the training environment can be copied."""
        try:
            sync_envs_normalization(self.training_env, self.eval_env)
        except (AssertionError, AttributeError) as error:
            wrappers = [type(layer).__name__ for layer in layers(self.training_env) if isinstance(layer, VecEnvWrapper)]
            raise ValueError(
                f"eval_env must have the wrappers of the training environment, {', '.join(wrappers)}, got "
                f"{self.eval_env}"
            ) from error

    def _on_step(self) -> bool:
        with self.model.steered(**self.steering), frozen_statistics(self.eval_env):
            return super()._on_step()
