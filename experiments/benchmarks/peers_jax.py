"""PPO as one compiled JAX program: environments, rollout, advantages and all gradient steps in one function.

It is written as PureJaxRL writes it (Lu et al. 2022), with the hyperparameters, networks and first weights of our
learner. With ``routed=True`` it also does what routing adds: labels that route gradients, and replay.

Shapes: ``T`` steps, ``E`` environments, ``N = T * E``, ``K`` outcomes, which are also the modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from routed_rl.envs import World
from routed_rl.experiments.benchmarks.peers_jax_world import Rules, State

import jax  # isort: skip  # peers_jax_world has checked that it is installed
import jax.numpy as jnp  # isort: skip
from jax import Array, lax  # isort: skip

Params = dict[str, Array]
EPISODES = 2000
"""Episodes that measure the true return of a steered policy."""


class Batch(NamedTuple):
    """Steps of a rollout, ready for learning, as in ``routed_rl.rl.rollout``."""

    obs: Array  # (N, D)
    actions: Array  # (N,) int32
    labels: Array  # (N,) int32: the outcome, or at least K without a label
    log_probs: Array  # (N,)
    advantages: Array  # (N,)
    returns: Array  # (N,)
    outcome_returns: Array  # (N,) the return if the episode's end pays 1


class Replay(NamedTuple):
    """The most recent labelled steps of each outcome."""

    obs: Array  # (K, capacity, D)
    actions: Array  # (K, capacity)
    returns: Array  # (K, capacity)
    count: Array  # (K,) steps ever stored


class Adam(NamedTuple):
    """The state of the optimizer, by parameter."""

    mean: Params
    square: Params
    steps: dict[str, Array]


class Training(NamedTuple):
    """Everything that an update changes."""

    params: Params
    adam: Adam
    state: State
    replay: Replay
    key: Array


def weights(policy: nn.Module) -> Params:
    """Return the parameters of our policy by their names in torch. Matrices are transposed to (inputs, outputs)."""
    return {name: jnp.array(value.detach().cpu().numpy().T) for name, value in policy.named_parameters()}


def linear(params: Params, name: str, x: Array) -> Array:
    """Apply the linear layer with this name."""
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def hidden(params: Params, name: str, x: Array) -> Array:
    """Apply two layers with ReLU: a module, the gate's, or those of the value network."""
    return jax.nn.relu(linear(params, f"{name}.2", jax.nn.relu(linear(params, f"{name}.0", x))))


def gate_logits(params: Params, obs: Array) -> Array:
    """Return the gate's logits ``(N, K)``."""
    return linear(params, "mlp_extractor.gate.1", hidden(params, "mlp_extractor.gate.0", obs))


def module(params: Params, number: int, obs: Array) -> Array:
    """Return the latent of a module."""
    return hidden(params, f"mlp_extractor.experts.{number}", obs)


def action_logits(params: Params, obs: Array, routes: Array | None = None) -> Array:
    """Return the logits ``(N, 4)`` of the actions.

    Args:
        params: weights, as :func:`weights` returns them.
        obs: ``(N, D)``.
        routes: ``(N, K + 1)`` weight of each step's gradient in each module and, last, the gate; None: 1 everywhere.
    """
    gate = jax.nn.softmax(gate_logits(params, obs))
    latents = [module(params, number, obs) for number in range(gate.shape[1])]
    if routes is not None:
        gate = route(gate, routes[:, -1])
        latents = [route(latent, routes[:, number]) for number, latent in enumerate(latents)]
    mixed = sum(gate[:, number, None] * latent for number, latent in enumerate(latents))
    return linear(params, "action_net", mixed)


def values(params: Params, obs: Array) -> Array:
    """Return the value estimates ``(N,)``."""
    return linear(params, "value_net", hidden(params, "mlp_extractor.value", obs))[:, 0]


def route(x: Array, weight: Array) -> Array:
    """Return ``x``, with its gradient weighted by ``weight`` (Cloud et al. 2024, section 3)."""
    return weight[:, None] * x + lax.stop_gradient((1 - weight[:, None]) * x)


def chosen(log_probs: Array, actions: Array) -> Array:
    """Return the entries of ``log_probs`` ``(N, A)`` that belong to ``actions`` ``(N,)``."""
    return jnp.take_along_axis(log_probs, actions[:, None], axis=1)[:, 0]


def loss(learner: Mapping[str, Any], routed: bool, params: Params, batch: Batch) -> Array:
    """Return the loss of PPO: clipped surrogate, squared error of the values, and entropy bonus."""
    routes = None
    if routed:
        n_outcomes = params["mlp_extractor.gate.1.bias"].shape[0]
        unlabelled = (batch.labels >= n_outcomes)[:, None]
        own = batch.labels[:, None] == jnp.arange(n_outcomes)
        routes = jnp.concatenate([own | unlabelled, unlabelled], axis=1).astype(jnp.float32)
    log_probs = jax.nn.log_softmax(action_logits(params, batch.obs, routes))
    ratio = jnp.exp(chosen(log_probs, batch.actions) - batch.log_probs)
    clipped = jnp.clip(ratio, 1 - learner["clip_range"], 1 + learner["clip_range"])
    policy = -jnp.minimum(ratio * batch.advantages, clipped * batch.advantages).mean()
    value = jnp.square(values(params, batch.obs) - batch.returns).mean()
    entropy = -(jnp.exp(log_probs) * log_probs).sum(axis=1).mean()
    return policy + learner["value_coef"] * value - learner["entropy"][1] * entropy


def replay_loss(learner: Mapping[str, Any], params: Params, obs: Array, actions: Array, returns: Array) -> Array:
    """Return the loss of replayed steps, ``(K, n, …)``: each module repeats its own actions, the gate learns labels."""
    n_outcomes, n = returns.shape
    latents = jnp.concatenate([module(params, number, rows) for number, rows in enumerate(obs)])
    log_probs = jax.nn.log_softmax(linear(params, "action_net", latents))
    imitation = -(returns.ravel() * chosen(log_probs, actions.ravel())).mean()
    labels = jnp.repeat(jnp.arange(n_outcomes), n)
    gate = -chosen(jax.nn.log_softmax(gate_logits(params, obs.reshape(n_outcomes * n, -1))), labels).mean()
    return imitation + learner["gate_coef"] * gate


def adam_step(learner: Mapping[str, Any], params: Params, adam: Adam, grads: Params) -> tuple[Params, Adam]:
    """Clip the gradient and take a step of Adam, with torch's formulas. Parameters that ``grads`` lacks stay."""
    norm = jnp.sqrt(sum(jnp.square(grad).sum() for grad in grads.values()))
    scale = jnp.minimum(1.0, learner["max_grad_norm"] / (norm + 1e-6))
    params, mean, square, steps = dict(params), dict(adam.mean), dict(adam.square), dict(adam.steps)
    for name, grad in grads.items():
        steps[name] += 1
        mean[name] = 0.9 * mean[name] + 0.1 * scale * grad
        square[name] = 0.999 * square[name] + 0.001 * jnp.square(scale * grad)
        root = jnp.sqrt(square[name] / (1 - 0.999 ** steps[name]))
        params[name] -= learner["learning_rate"] * mean[name] / (1 - 0.9 ** steps[name]) / (root + 1e-5)
    return params, Adam(mean, square, steps)


class Program:
    """A learner whose update is one compiled function; its buffers are donated.

    Args:
        policy: our policy, whose weights are the first ones.
        world: the world. Its step limit is not below the steps of a rollout. So a rollout cuts at most one episode of
            each environment.
        learner: the hyperparameters of a preset.
        routed: route gradients by labels, and replay labelled steps.
        seed: seed of the random numbers.

    Raises:
        ValueError: if the step limit of ``world`` is below the steps of a rollout.
    """

    def __init__(
        self, policy: nn.Module, world: World, learner: Mapping[str, Any], *, routed: bool, seed: int = 0
    ) -> None:
        if world.max_steps < learner["n_steps"]:
            raise ValueError(f"a rollout of {learner['n_steps']} steps exceeds {world.max_steps}, the step limit")
        self.rules, self.learner, self.routed = Rules(world), learner, routed
        self.n_outcomes = self.rules.kinds
        params = weights(policy)
        key, draw = jax.random.split(jax.random.key(seed))
        state = self.rules.reset(jax.random.uniform(draw, (learner["n_envs"], self.rules.n_draws)))
        zeros = {name: jnp.zeros_like(value) for name, value in params.items()}
        adam = Adam(zeros, jax.tree.map(jnp.array, zeros), {name: jnp.zeros((), jnp.int32) for name in params})
        shape = (self.n_outcomes, learner["replay_capacity"] if routed else 0)
        replay = Replay(
            jnp.zeros((*shape, self.rules.observe(state).shape[1])),
            jnp.zeros(shape, jnp.int32),
            jnp.zeros(shape),
            jnp.zeros(self.n_outcomes, jnp.int32),
        )
        self.training = Training(params, adam, state, replay, key)
        self.latest = (jnp.zeros(()), jnp.zeros((), jnp.int32))
        self.update = jax.jit(self._update, donate_argnums=0)
        self.play = jax.jit(self._play)

    def train(self, updates: int) -> None:
        """Train for some updates."""
        for _ in range(updates):
            self.training, self.latest = self.update(self.training)
        jax.block_until_ready(self.training)

    def returns(self) -> tuple[float, int]:
        """Return the sum of the discounted true returns of the newest episodes, and their number.

        Without routing they are the episodes of the latest update. With routing the policy is steered to the last
        outcome, and plays episodes of its own.
        """
        total, episodes = self.play(self.training.params, self.training.key) if self.routed else self.latest
        return float(total), int(episodes)

    def _update(self, training: Training) -> tuple[Training, tuple[Array, Array]]:
        key, rollout_key, epochs_key, replay_key = jax.random.split(training.key, 4)
        batch, state, latest = self._rollout(training.params, training.state, rollout_key)
        n_steps = len(batch.labels)
        n_minibatches = max(1, round(n_steps / self.learner["batch_size"]))

        def minibatch(learned: tuple[Params, Adam], index: Array) -> tuple[tuple[Params, Adam], None]:
            part = Batch(*(array[index] for array in batch))
            grads = jax.grad(partial(loss, self.learner, self.routed))(learned[0], part)
            return adam_step(self.learner, *learned, grads), None

        def epoch(learned: tuple[Params, Adam], epoch_key: Array) -> tuple[tuple[Params, Adam], None]:
            order = jax.random.permutation(epoch_key, n_steps).reshape(n_minibatches, -1)
            return lax.scan(minibatch, learned, order)

        keys = jax.random.split(epochs_key, self.learner["n_epochs"])
        learned, _ = lax.scan(epoch, (training.params, training.adam), keys)
        replay = training.replay
        if self.routed:
            replay = self._store(replay, batch)
            # Ours leaves out the modules whose outcome was never stored. Here all wait for the first update that has
            # both: a pause of one update at most in practice.
            learned = lax.cond((replay.count > 0).all(), self._replay, lambda now, *_: now, learned, replay, replay_key)
        params, adam = learned
        return Training(params, adam, state, replay, key), latest

    def _rollout(self, params: Params, state: State, key: Array) -> tuple[Batch, State, tuple[Array, Array]]:
        learner, rules = self.learner, self.rules
        shape = (learner["n_steps"], learner["n_envs"])
        keys = jax.random.split(key)
        # All random numbers of a rollout are drawn at once: many small calls of the generator are slow.
        noise = jax.random.gumbel(keys[0], (*shape, 4))
        draws = jax.random.uniform(keys[1], (*shape, rules.n_draws))

        def step(
            carry: tuple[State, Array], random: tuple[Array, Array]
        ) -> tuple[tuple[State, Array], tuple[Any, ...]]:
            state, cut_obs = carry
            obs = rules.observe(state)
            log_probs = jax.nn.log_softmax(action_logits(params, obs))
            actions = (log_probs + random[0]).argmax(axis=1).astype(jnp.int32)
            moved, ends = rules.step(state, actions)
            cut_obs = jnp.where(ends.truncated[:, None], rules.observe(moved), cut_obs)
            after = rules.renew(moved, ends.terminated | ends.truncated, random[1])
            return (after, cut_obs), (obs, actions, chosen(log_probs, actions), ends, moved.steps)

        (state, cut_obs), (obs, actions, log_probs, ends, steps) = lax.scan(
            step, (state, jnp.zeros_like(rules.observe(state))), (noise, draws)
        )
        ended = ends.terminated | ends.truncated
        reached = ends.outcome >= 0
        labels = jnp.where(ends.overseen, ends.outcome, self.n_outcomes)
        rewards = reached.astype(jnp.float32) if self.routed else ends.reward
        estimates = values(params, obs.reshape(shape[0] * shape[1], -1)).reshape(shape)
        bootstrap = jnp.where(ends.truncated, values(params, cut_obs), 0.0)
        last_values = values(params, rules.observe(state))
        gamma, gae_lambda = learner["gamma"], learner["gae_lambda"]

        def back(carry: tuple[Array, ...], now: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
            advantage, next_value, outcome_return, label = carry
            ended, reward, value, cut_value, own_label = now
            going = 1.0 - ended
            delta = reward + gamma * (going * next_value + cut_value) - value
            advantage = delta + gamma * gae_lambda * going * advantage
            outcome_return = jnp.where(ended, 1.0, gamma * outcome_return)
            label = jnp.where(ended, own_label, label)
            return (advantage, value, outcome_return, label), (advantage, outcome_return, label)

        zeros = jnp.zeros(shape[1])
        start = (zeros, last_values, zeros, jnp.full(shape[1], self.n_outcomes))
        _, (advantages, outcome_returns, labels) = lax.scan(
            back, start, (ended, rewards, estimates, bootstrap, labels), reverse=True
        )
        arrays = (obs, actions, labels, log_probs, advantages, advantages + estimates, outcome_returns)
        batch = Batch(*(array.reshape(shape[0] * shape[1], *array.shape[2:]) for array in arrays))
        returns = jnp.where(ended, ends.reward * gamma ** (steps - 1.0), 0.0)
        return batch, state, (returns.sum(), ended.sum())

    def _store(self, replay: Replay, batch: Batch) -> Replay:
        """Write the labelled steps of a batch over the oldest ones."""
        capacity = replay.returns.shape[1]
        found = batch.labels == jnp.arange(self.n_outcomes)[:, None]
        place = found.cumsum(axis=1) - 1
        total = found.sum(axis=1, keepdims=True)
        kept = found & (place >= total - capacity)
        slots = jnp.where(kept, (replay.count[:, None] + place) % capacity, capacity)  # the slot "capacity" is no slot
        rows = jnp.arange(self.n_outcomes)[:, None]
        # Only numbers of steps are scattered, which XLA does one by one on a CPU. The steps themselves are gathered.
        source = jnp.full((self.n_outcomes, capacity), -1)
        source = source.at[rows, slots].set(jnp.arange(len(batch.labels)), mode="drop")
        new = source >= 0
        return Replay(
            jnp.where(new[:, :, None], batch.obs[source], replay.obs),
            jnp.where(new, batch.actions[source], replay.actions),
            jnp.where(new, batch.outcome_returns[source], replay.returns),
            replay.count + total[:, 0],
        )

    def _replay(self, learned: tuple[Params, Adam], replay: Replay, key: Array) -> tuple[Params, Adam]:
        n = self.learner["replay_batch"]
        filled = jnp.minimum(replay.count, replay.returns.shape[1])[:, None]
        rows = jnp.arange(self.n_outcomes)[:, None]

        def step(learned: tuple[Params, Adam], draws: Array) -> tuple[tuple[Params, Adam], None]:
            slots = jnp.minimum((draws * filled).astype(jnp.int32), filled - 1)
            sample = (replay.obs[rows, slots], replay.actions[rows, slots], replay.returns[rows, slots])
            grads = jax.grad(partial(replay_loss, self.learner))(learned[0], *sample)
            taught = {name: grad for name, grad in grads.items() if "value" not in name}
            return adam_step(self.learner, *learned, taught), None

        draws = jax.random.uniform(key, (self.learner["replay_steps"], self.n_outcomes, n))
        return lax.scan(step, learned, draws)[0]

    def _play(self, params: Params, key: Array) -> tuple[Array, Array]:
        rules, limit = self.rules, self.rules.world.max_steps
        keys = jax.random.split(key)
        state = rules.reset(jax.random.uniform(keys[0], (EPISODES, rules.n_draws)))

        def step(carry: tuple[State, Array, Array], noise: Array) -> tuple[tuple[State, Array, Array], None]:
            state, over, total = carry
            logits = linear(params, "action_net", module(params, self.n_outcomes - 1, rules.observe(state)))
            moved, ends = rules.step(state, (logits + noise).argmax(axis=1).astype(jnp.int32))
            total += jnp.where(over, 0.0, ends.reward * self.learner["gamma"] ** (moved.steps - 1.0)).sum()
            return (moved, over | ends.terminated, total), None

        start = (state, jnp.zeros(EPISODES, bool), jnp.zeros(()))
        (_, _, total), _ = lax.scan(step, start, jax.random.gumbel(keys[1], (limit, EPISODES, 4)))
        return total, jnp.asarray(EPISODES)
