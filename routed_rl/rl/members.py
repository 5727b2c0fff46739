"""Which models can learn in parallel: all that :class:`~routed_rl.rl.ParallelLearner` checks before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium.spaces import Dict, Discrete
from stable_baselines3.common.vec_env import VecEnv

from routed_rl.rl.algorithm import RoutedAlgorithm
from routed_rl.rl.env_state import has_state


def check_members(models: Sequence[RoutedAlgorithm], envs: Sequence[VecEnv]) -> None:
    """Raise the ValueErrors of :class:`~routed_rl.rl.ParallelLearner`."""
    if not models:
        raise ValueError(f"models must contain at least one model, got {models}")
    first, *others = models
    if not isinstance(first.action_space, Discrete):
        raise ValueError(f"learning in parallel needs discrete actions, got {first.action_space}")
    if isinstance(first.observation_space, Dict):
        raise ValueError(f"learning in parallel needs observations other than a Dict, got {first.observation_space}")
    if getattr(first, "target_kl", None) is not None:
        raise ValueError(f"learning in parallel needs target_kl=None, got {first.target_kl!r}: updates have one length")
    if first.unfinished == "hold":
        raise ValueError(
            "learning in parallel needs unfinished='unlabelled', got 'hold': all batches must have the same size"
        )
    for other in others:
        mine, theirs = _must_agree(first), _must_agree(other)
        if differ := [name for name in mine if mine[name] != theirs.get(name)]:
            name = differ[0]
            raise ValueError(
                f"models that learn in parallel must agree in {name}, got {mine[name]!r} and {theirs[name]!r}"
            )
    for model in models:
        if model.policy.steering:
            raise ValueError(f"a policy is steered ({model.policy.steering}); call unsteer() before learning")
    for env in [*(model.env for model in models), *envs]:
        if not has_state(env):
            raise ValueError(
                f"learning in parallel needs get_state and set_state, and no wrapper, got {type(env).__name__}"
            )
        if env.observation_space != first.observation_space or env.action_space != first.action_space:
            raise ValueError(
                f"an environment must have the models' spaces {first.observation_space} and {first.action_space}, "
                f"got {env.observation_space} and {env.action_space}"
            )
    rows = [env.num_envs for env in envs]
    if sum(rows) != len(models) * first.n_envs or any(n % first.n_envs for n in rows):
        raise ValueError(f"environments must have {first.n_envs} rows for each of {len(models)} models, got {rows}")


def _comparable(value: Any) -> Any:
    """Return a schedule's values at the start, middle and end of training; return anything else unchanged."""
    return [value(left) for left in (1.0, 0.5, 0.0)] if callable(value) and not isinstance(value, type) else value


def _must_agree(model: RoutedAlgorithm) -> dict[str, Any]:
    """Return the settings in which all members must agree, by name."""
    overseer = model.overseer.to_dict()
    return {
        "algorithm": type(model).__name__,
        "policy": model.policy_class.__name__,
        "device": str(model.device),
        **{name: _comparable(getattr(model, name)) for name in model.saved_arguments if name != "seed"},
        **{name: overseer[name] for name in ("values", "method", "unlabelled", "reward")},
        **{name: getattr(model, name) for name in ("n_envs", "observation_space", "action_space", "num_timesteps")},
    }
