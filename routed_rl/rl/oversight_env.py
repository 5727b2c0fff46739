"""How a learner reads the ends of episodes from a Stable-Baselines3 ``VecEnv``, and a check of the environment."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from routed_rl.rl.arguments import check_whole
from routed_rl.rl.balance import hidden_outcomes
from routed_rl.rl.env_state import frozen_statistics
from routed_rl.rl.environments import check_finite, check_infos, explained, vectorised
from routed_rl.rl.observations import check_spaces


class EpisodeEnds(Protocol):
    """The episodes that ended in a step, as arrays of length ``D``, the number of these episodes.

    A fast environment may give its ``infos`` an attribute ``ends`` of this kind (the *array channel*), in place of one
    dict per episode. Then ``infos.outcome_names`` lists the outcomes in the order of their numbers.

    A *tensor environment* has the attributes ``speaks_tensors`` and ``device``. Its observations, actions, rewards,
    dones and ends are tensors on that device. Its ends have an entry for every environment, and ``rows`` is the slice
    of all. Where no episode ended, ``outcome`` is -1, and ``overseen`` and ``truncated`` are false.
    """

    rows: np.ndarray
    """index of the environment, int64"""
    outcome: np.ndarray
    """number of the outcome reached, -1 for none, int64"""
    overseen: np.ndarray
    """whether the outcome was overseen, bool"""
    truncated: np.ndarray
    """whether the episode was cut, bool"""
    final_obs: np.ndarray
    """the last observation of the episode, (D, …); for a Dict, (D,) mappings"""


class _Ends:
    def __init__(self, infos: Sequence[dict[str, Any]], dones: np.ndarray, outcomes: Sequence[str]) -> None:
        self.rows = np.flatnonzero(dones)
        ended = [infos[row] for row in self.rows.tolist()]
        labels = [_read(info, outcomes) for info in ended]
        self.outcome = np.array([outcome for outcome, _ in labels], dtype=np.int64)
        self.overseen = np.array([overseen for _, overseen in labels], dtype=bool)
        self.truncated = np.array([bool(info.get("TimeLimit.truncated", False)) for info in ended], dtype=bool)
        self.final_obs = np.array([info["terminal_observation"] for info in ended])


def _read(info: dict[str, Any], outcomes: Sequence[str]) -> tuple[int, bool]:
    if info.get("TimeLimit.truncated") and not {"outcome", "overseen"} & info.keys():
        return -1, False  # a wrapper cut the episode (Gymnasium's TimeLimit), and knows nothing of outcomes
    for key in ("outcome", "overseen"):
        if key not in info:
            raise ValueError(
                f"the info of an episode's last step lacks {key!r}: it must have info['outcome'], one of "
                f"{list(outcomes)} or None, and info['overseen'], a bool; it has {sorted(info)}"
            )
    outcome, overseen = info["outcome"], info["overseen"]
    if outcome is not None and outcome not in outcomes:
        raise ValueError(f"info['outcome'] must be one of {list(outcomes)} or None, got {outcome!r}")
    if not isinstance(overseen, (bool, np.bool_)):
        raise ValueError(f"info['overseen'] must be a bool, got {overseen!r}")
    return (-1 if outcome is None else list(outcomes).index(outcome)), bool(overseen)


def episode_ends(infos: Sequence[dict[str, Any]], dones: np.ndarray, outcomes: Sequence[str]) -> EpisodeEnds:
    """Return the episodes that ended in this step, with outcome numbers in the order of ``outcomes``.

    They are read from the array channel, if ``infos`` has one with the same outcomes in the same order. Otherwise they
    are read from the info dicts.

    Raises:
        ValueError: if the info of an ended episode lacks its outcome, or whether it was overseen; or if a tensor
            environment has other outcomes, or another order.
    """
    if tuple(getattr(infos, "outcome_names", ())) == tuple(outcomes):
        ends: EpisodeEnds = infos.ends  # type: ignore[attr-defined]
        return ends
    if isinstance(dones, Tensor):
        raise ValueError(
            f"a tensor environment must number its outcomes as the overseer does, {list(outcomes)}; "
            f"it has {list(getattr(infos, 'outcome_names', ()))}"
        )
    return _Ends(infos, dones, outcomes)


def check_oversight_env(
    env: gym.Env[Any, Any] | VecEnv, outcomes: Sequence[str] | Mapping[str, float], episodes: int = 100
) -> dict[str, dict[str, int]]:
    """Check that an environment reports how its episodes end, by playing ``episodes`` of them with random actions.

    At the last step of an episode, ``info["outcome"]`` must be one of ``outcomes`` or None, and ``info["overseen"]``
    must be a bool. If an episode is truncated and its info has neither, as by Gymnasium's ``TimeLimit``, nothing was
    reached. If the environment has the array channel (:class:`EpisodeEnds`), this is checked instead. More episodes
    are played until one has reached an outcome and was overseen, but at most 10,000 steps in each environment.

    Args:
        env: an environment, or several.
        outcomes: names of outcomes, or the ``values`` of an overseer.
        episodes: number of episodes to play at least.

    Returns:
        The number of episodes by outcome, as ``{"ghost": {"overseen": 4, "unseen": 38}, …}``; ``"none"`` counts those
        that reached no outcome.

    Raises:
        ValueError: if ``outcomes`` are no names, if the environment breaks Gymnasium's API, observes NaN or reports
            something else, if a learner cannot use its spaces, if too few episodes end, or if all outcomes are None.
            The learner gets a label only when an episode ends on an outcome.

    Warns:
        UserWarning: if no episode that reached an outcome was overseen; or if all were, while many others ended
            without an outcome before any step limit.
    """
    check_whole(1, episodes=episodes)
    if isinstance(outcomes, str) or not isinstance(outcomes, Iterable):
        names = ": give its .outcomes" if hasattr(outcomes, "outcomes") else ""
        raise ValueError(f"outcomes must be names of outcomes, as in ['ghost', 'diamond'], got {outcomes!r}{names}")
    outcomes = tuple(outcomes)
    vec_env = vectorised(env)
    check_spaces(vec_env.observation_space, vec_env.action_space)
    vec_env.action_space.seed(0)
    vec_env.seed(0)
    counts = {name: {"overseen": 0, "unseen": 0} for name in (*outcomes, "none")}
    finished = overseen = without = 0
    with explained(vec_env), frozen_statistics(vec_env):
        check_finite(vec_env.reset())
        check_infos(vec_env)
        for _ in range(10_000):
            actions = np.array([vec_env.action_space.sample() for _ in range(vec_env.num_envs)])
            observations, _, dones, infos = vec_env.step(actions)
            check_finite(observations)
            ends = episode_ends(infos, dones, outcomes)
            for number, seen in zip(ends.outcome.tolist(), ends.overseen.tolist(), strict=True):
                name = outcomes[number] if number >= 0 else "none"
                counts[name]["overseen" if seen and number >= 0 else "unseen"] += 1
                overseen += seen and number >= 0
            finished += len(ends.rows)
            without += int(((ends.outcome < 0) & ~ends.truncated).sum())
            for last in ends.final_obs:
                check_finite(last)
            if finished >= episodes and overseen:
                break
    if finished < min(episodes, 10):
        raise ValueError(
            f"only {finished} of {episodes} random episodes ended within 10000 steps; labels come only at the end of "
            "an episode, so give the environment a step limit"
        )
    reached = finished - counts["none"]["unseen"]
    if not reached:
        raise ValueError(
            f"info['outcome'] was None in all of {finished} random episodes, so there is nothing to learn from: set it "
            f"to one of {list(outcomes)} where an episode reaches one, or start episodes nearer to them"
        )
    if message := hidden_outcomes(overseen, reached - overseen, without):
        warnings.warn(message, stacklevel=2)
    if not overseen:
        warnings.warn(
            f"info['overseen'] was False in all of {reached} random episodes that reached an outcome, so no label "
            "would come from them: oversee more, or check more environments at once if that is rare",
            stacklevel=2,
        )
    return counts
