"""RoutedREINFORCE: the algorithm of the paper, a policy gradient with a value baseline."""

from __future__ import annotations

from typing import Any, Literal

from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from routed_rl.rl.algorithm import RoutedAlgorithm
from routed_rl.rl.overseer import Overseer
from routed_rl.rl.policies import RoutedActorCriticPolicy
from routed_rl.rl.rollout import Batch


class RoutedREINFORCE(RoutedAlgorithm):
    """Trains a routed actor-critic under partial oversight by REINFORCE (Cloud et al. 2024, sections 4.3 and F).

    The defaults are the paper's: one gradient step on each whole rollout, returns that end with the rollout, Adam at
    5e-5, no clipping and no replay. The loss is ``policy loss + 0.5 value loss - 0.1 entropy + 0.01 gate loss``.
    Use ``"PaperPolicy"`` and 512 environments for the published recipe. Only the policy loss differs from
    :class:`~routed_rl.rl.RoutedPPO`. The arguments are those of :class:`RoutedAlgorithm`.
    """

    def __init__(
        self,
        policy: str | type[RoutedActorCriticPolicy],
        env: GymEnv | str | None,
        overseer: Overseer,
        *,
        learning_rate: float | Schedule = 5e-5,
        n_steps: int = 32,
        gamma: float = 0.97,
        gae_lambda: float = 1.0,
        ent_coef: float | Schedule = 0.1,
        vf_coef: float = 0.5,
        gate_coef: float = 0.01,
        max_grad_norm: float | None = None,
        bootstrap: bool = False,
        unfinished: Literal["unlabelled", "hold"] = "unlabelled",
        replay_steps: int = 0,
        replay_batch: int = 256,
        replay_capacity: int = 4096,
        solo: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            overseer,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            gate_coef=gate_coef,
            max_grad_norm=max_grad_norm,
            bootstrap=bootstrap,
            unfinished=unfinished,
            replay_steps=replay_steps,
            replay_batch=replay_batch,
            replay_capacity=replay_capacity,
            solo=solo,
            **kwargs,
        )

    def policy_loss(self, batch: Batch, log_probs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the policy-gradient loss of each step, ``-log pi(a|s) (G - V(s))``."""
        return -log_probs * batch.advantages, {}
