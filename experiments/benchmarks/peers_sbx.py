"""SBX PPO, Stable-Baselines3 in JAX (Raffin 2023), with our networks on our vector environment."""

from __future__ import annotations

from typing import Any

from routed_rl.experiments.benchmarks.peers_torch import OnVecEnv, config, counted_env
from routed_rl.extras import require

require("peers", "jax", "flax", "sbx")

import flax.linen as nn  # noqa: E402 (what an extra needs is checked first)
import jax  # noqa: E402
from sbx import PPO  # noqa: E402
from sbx.ppo.policies import Actor, PPOPolicy, tfd  # noqa: E402


class RoutedActor(Actor):
    """Two modules and a gate that mixes them, with one output layer; SBX's class names the arguments."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        def dense(width: int, scale: float = 2**0.5) -> nn.Dense:
            return nn.Dense(width, kernel_init=nn.initializers.orthogonal(scale))

        def hidden() -> jax.Array:
            latent = x
            for width in self.net_arch:
                latent = nn.relu(dense(width)(latent))
            return latent

        latents = [hidden(), hidden()]
        gate = nn.softmax(dense(len(latents))(hidden()))
        mixed = sum(gate[:, number, None] * latent for number, latent in enumerate(latents))
        return tfd.Categorical(logits=dense(self.action_dim, 0.01)(mixed))


def sbx() -> OnVecEnv:
    """SBX PPO with the hyperparameters of preset quick. It clips the gradients of actor and critic apart."""
    settings = config(routed=False)
    learner = settings["learner"]
    model = PPO(
        PPOPolicy,
        counted_env(settings),
        learning_rate=learner["learning_rate"],
        n_steps=learner["n_steps"],
        batch_size=learner["batch_size"],
        n_epochs=learner["n_epochs"],
        gamma=learner["gamma"],
        gae_lambda=learner["gae_lambda"],
        ent_coef=learner["entropy"][1],
        vf_coef=learner["value_coef"],
        max_grad_norm=learner["max_grad_norm"],
        normalize_advantage=False,
        policy_kwargs={"net_arch": [learner["hidden"]] * 2, "activation_fn": nn.relu, "actor_class": RoutedActor},
        seed=0,
    )
    return OnVecEnv(model)
