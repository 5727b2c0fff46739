"""Many models of one architecture learn at once: K members, every one an ordinary model, computed as one batch.

``K`` members, ``E`` environments of each, ``T`` steps per rollout. A member's weights and buffer are slices of tensors
that hold all members', so it can be evaluated, saved and continued like any other model. What is batched is what costs
time: environment steps, acting, values, losses, gradients and the optimizer's step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from routed_rl.rl.algorithm import RoutedAlgorithm
from routed_rl.rl.oversight_env import episode_ends
from routed_rl.rl.policies import RoutedActorCriticPolicy
from routed_rl.rl.rollout import Batch, EpisodeBuffer, Replayed, RolloutEnds
from routed_rl.rl.saving import environment_state

COUNTS = "counts"
"""Beside a step's statistics: which members took it."""


class ParallelLearner:
    """Trains ``K`` models at once, each to what it would be alone, up to rounding.

    Each draws from its own seeds. Random numbers are the same as alone, sums may be taken in another order; so in
    float32 two runs part where a rounding error changes an action.

    Args:
        models: the members. They may differ in seed and in their overseer's ``oversight`` and ``noise``, not in
            architecture or hyperparameters, and must have come equally far.
        envs: one or more environments with ``get_state`` and ``set_state`` (such as
            :class:`routed_rl.envs.DiamondGhostVecEnv`) that together have ``K E`` rows: those of the first member,
            of the second, and so on. The members' own environments say where they start, and learn where they were
            left.

    Raises:
        ValueError: if members differ in more than that, act other than by discrete actions, are steered, or hold
            episodes back (``unfinished="hold"``); or if environments do not fit.
    """

    def __init__(self, models: Sequence[RoutedAlgorithm], envs: Sequence[VecEnv]) -> None:
        self.models, self.envs = list(models), list(envs)
        self._check()
        self.template = self.models[0]
        self._stack_weights()
        self.buffer = EpisodeBuffer.joined([model.buffer for model in self.models])
        # A compiled function cannot be vectorised; and batched, its operations are few for their size.
        self.template._evaluate = self.template.policy.evaluate_routed
        self._loss = self._over_members(self.template.loss, (0, None))
        self._replay_loss = self._over_members(self.template.replay_loss, (0,))
        policy = self.template.policy
        self._logits = self._over_members(lambda obs: policy.get_distribution(obs).distribution.logits, (0,))
        self._values = self._over_members(lambda obs: policy.predict_values(obs).flatten(), (0,))

    # --- members as slices of one ---------------------------------------------------------------

    def _check(self) -> None:
        if not self.models:
            raise ValueError("there must be at least one model, got none")
        first, *others = self.models
        if not isinstance(first.action_space, Discrete):
            raise ValueError(f"learning in parallel needs discrete actions, got {first.action_space}")
        if first.unfinished == "hold":
            raise ValueError("learning in parallel cannot hold episodes back: every member's batch must be as large")
        for other in others:
            mine, theirs = _must_agree(first), _must_agree(other)
            if differ := [name for name in mine if mine[name] != theirs.get(name)]:
                name = differ[0]
                raise ValueError(f"members of one batch must agree in {name}, got {mine[name]!r} and {theirs[name]!r}")
        for model in self.models:
            if model.policy.steering:
                raise ValueError(f"a policy is steered ({model.policy.steering}); unsteer() it before learning")
            if not hasattr(model.env, "set_state"):
                raise ValueError(
                    f"learning in parallel needs environments with get_state and set_state, got {model.env}"
                )
        for env in self.envs:
            if env.observation_space != first.observation_space or env.action_space != first.action_space:
                raise ValueError(f"an environment of {env.observation_space} is not that of the models")
        rows = [env.num_envs for env in self.envs]
        if sum(rows) != len(self.models) * first.n_envs or any(n % first.n_envs for n in rows):
            raise ValueError(
                f"environments must have {first.n_envs} rows for each of {len(self.models)} models, got {rows}"
            )

    def _stack_weights(self) -> None:
        """Gather the members' weights in one tensor each, of which they keep a slice, under one optimizer."""
        members = [dict(model.policy.named_parameters()) for model in self.models]
        self.weights = {}
        for name in members[0]:
            stacked = torch.stack([parameters[name].detach() for parameters in members])
            self.weights[name] = stacked.requires_grad_()
            for parameters, row in zip(members, stacked.detach(), strict=True):
                parameters[name].data = row
        self._members = members
        # Its parameters are the members' own, so that each has its own count of steps, and a gradient or none.
        policy = self.template.policy
        self.optimizer = policy.optimizer_class(
            [p for parameters in members for p in parameters.values()],
            lr=self.template.lr_schedule(1.0),  # type: ignore[call-arg]
            **policy.optimizer_kwargs,
        )
        for model in self.models:
            self.optimizer.state.update(model.policy.optimizer.state)
        columns = self.template.overseer.routes.modules
        owner = {id(p): c for c, name in enumerate(columns) for p in self.template.policy.module_parameters(name)}
        self._column = {name: owner.get(id(parameter), -1) for name, parameter in members[0].items()}

    def _over_members(self, function: Callable[..., Any], axes: tuple[int | None, ...]) -> Callable[..., Any]:
        """``function``, which uses the template's policy, for all members at once: over the stacked weights, and over
        the arguments whose axis is not None."""
        call = _Call(self.template.policy, function)

        def alone(weights: Mapping[str, Tensor], *arguments: Any) -> Any:
            named = {f"policy.{name}": weight for name, weight in weights.items()}
            # Stable-Baselines3 holds one encoder under three names. Replaced under one, it is replaced under all.
            return torch.func.functional_call(call, named, arguments, tie_weights=False)

        vectorised = torch.vmap(alone, in_dims=(0, *axes))
        return lambda *arguments: vectorised(self.weights, *arguments)

    def _by_member(self, tensor: Tensor) -> Tensor:
        """``(T, K E, …)`` → ``(K, T E, …)``, each member's steps in the order that it has alone."""
        members = tensor.unflatten(1, (len(self.models), self.template.n_envs))
        return members.transpose(0, 1).flatten(1, 2)

    # --- learning -------------------------------------------------------------------------------

    def learn(
        self, total_timesteps: int, callbacks: Sequence[MaybeCallback], *, reset_num_timesteps: bool = True
    ) -> None:
        """Train every member for ``total_timesteps`` of its own, with its own callback, as ``model.learn()`` would.

        If one callback stops its member, all stop.
        """
        started = [
            model._setup_learn(total_timesteps, callback, reset_num_timesteps)
            for model, callback in zip(self.models, callbacks, strict=True)
        ]
        for _, callback in started:
            callback.on_training_start(locals(), globals())
        self._place_envs()
        total = started[0][0]
        while self.template.num_timesteps < total and self._collect([callback for _, callback in started]):
            for model in self.models:
                model._update_current_progress_remaining(model.num_timesteps, total)
                model.dump_logs()
                model.logger.record("time/members", len(self.models), exclude="tensorboard")
            self._train()
        for _, callback in started:
            callback.on_training_end()

    def _place_envs(self) -> None:
        """Put the joint environments where the members' own are."""
        for env, models in zip(self.envs, self._members_of_envs(), strict=True):
            states = [environment_state(model.env) for model in models]
            env.set_state({name: np.concatenate([s[name] for s in states]) for name in states[0]})  # type: ignore[attr-defined]
        self._obs = torch.cat([torch.as_tensor(model._last_obs, device=model.device) for model in self.models])

    def _leave_envs(self, dones: Tensor) -> None:
        """Put the members' own environments where the joint ones are."""
        n = self.template.n_envs
        for env, models in zip(self.envs, self._members_of_envs(), strict=True):
            state = env.get_state()  # type: ignore[attr-defined]
            for k, model in enumerate(models):
                own = {name: array[k * n : (k + 1) * n] for name, array in state.items()}
                model.env.set_state(own)  # type: ignore[union-attr]
        for model, obs, done in zip(self.models, self._obs.split(n), dones.split(n), strict=True):
            on_device = getattr(model.env, "speaks_tensors", False)
            model._last_obs, model._last_episode_starts = (t if on_device else t.cpu().numpy() for t in (obs, done))

    def _step_envs(self, actions: Tensor, on_device: bool) -> tuple[Tensor, Tensor, list[Any]]:
        """Observations ``(K E, …)``, ``dones`` ``(K E,)`` and the ends in each environment."""
        outcomes = self.template.overseer.outcomes
        rows = actions.split([env.num_envs for env in self.envs])
        stepped = [env.step(a if on_device else a.cpu().numpy()) for env, a in zip(self.envs, rows, strict=True)]
        obs, dones = (
            torch.cat([torch.as_tensor(step[i], device=self.template.device) for step in stepped]) for i in (0, 2)
        )
        return obs, dones, [episode_ends(infos, done, outcomes) for _, _, done, infos in stepped]

    def _collect(self, callbacks: Sequence[BaseCallback]) -> bool:
        """Play one rollout with every member; False if a callback stopped it. As ``collect_rollouts`` does for one."""
        members, first = len(self.models), self.template
        for callback in callbacks:
            callback.on_rollout_start()
        for model in self.models:
            model.policy.set_training_mode(False)
        self.buffer.start_rollout()
        device = first._env_device(self.envs[0])
        ends = [RolloutEnds(first.n_steps, env.num_envs, device) for env in self.envs]
        generators = [torch.Generator(model.device).manual_seed(model._rng("rollout")) for model in self.models]
        for step in range(first.n_steps):
            actions, log_probs = self._sample(self._obs.unflatten(0, (members, -1)), generators)
            self.buffer.add(step, self._obs, actions.flatten(), log_probs.flatten())
            self._obs, dones, ended = self._step_envs(actions.flatten(), device is not None)
            start = 0
            for env, part, end in zip(self.envs, ends, ended, strict=True):
                part.add(step, dones[start : (start := start + env.num_envs)], end)
            going = []
            for model, callback in zip(self.models, callbacks, strict=True):
                model.num_timesteps += model.n_envs
                callback.update_locals(locals())
                going.append(callback.on_step())
            if not all(going):
                self._leave_envs(dones)
                self.buffer.discard()
                return False
        self._leave_envs(dones)
        self._store_ends(ends)
        for callback in callbacks:
            callback.on_rollout_end()
        return True

    @torch.no_grad()
    def _sample(self, obs: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Actions and log-probabilities, ``(K, E)`` each, for observations ``(K, E, …)``."""
        log_probs = self._logits(obs)
        # torch's own way of sampling from a categorical distribution, so each member draws what it would alone.
        noise = torch.empty_like(log_probs)
        for row, generator in zip(noise, generators, strict=True):
            row.exponential_(generator=generator)
        actions = (log_probs.softmax(dim=-1) / noise).argmax(dim=-1)
        return actions, log_probs.gather(-1, actions[..., None]).squeeze(-1)

    def _store_ends(self, ends: Sequence[RolloutEnds]) -> None:
        """Each member's labels by its own overseer, and the values of what all saw."""
        n, new = self.template.n_envs, slice(self.template.n_steps, None)
        for part, models in zip(ends, self._members_of_envs(), strict=True):
            fields = (part.ended, part.outcome, part.overseen)
            for model, *own in zip(models, *(field.split(n, dim=1) for field in fields), strict=True):
                model._store_labels(*own)
        obs = self._by_member(self.buffer.obs[new])
        with torch.no_grad():
            portions = obs.split(self.template.batch_size or obs.shape[1], dim=1)
            values = torch.cat([self._values(portion) for portion in portions], dim=1)
        shape = (len(self.models), self.template.n_steps, n)
        self.buffer.values[new] = values.view(shape).transpose(0, 1).flatten(1)
        if self.template.bootstrap:
            self._bootstrap(ends)

    def _bootstrap(self, ends: Sequence[RolloutEnds]) -> None:
        """Credit truncated episodes with the values of their last observations."""
        n, device = self.template.n_envs, self.template.device
        for part, models in zip(ends, self._members_of_envs(), strict=True):
            if not bool(part.truncated.any()):
                continue
            truncated, obs = part.truncated.to(device), part.truncated_obs().to(device)
            member = truncated.nonzero()[:, 1] // n
            for k, (model, own) in enumerate(zip(models, truncated.split(n, dim=1), strict=True)):
                model.buffer.bootstrap[self.template.n_steps :].masked_scatter_(own, model._values(obs[member == k]))

    def _members_of_envs(self) -> list[list[RoutedAlgorithm]]:
        """Whose rows each environment holds."""
        models = iter(self.models)
        return [list(itertools.islice(models, env.num_envs // self.template.n_envs)) for env in self.envs]

    def _train(self) -> None:
        """Learn from the rollout, then replay, in every member. As ``train`` does for one."""
        models, first = self.models, self.template
        for model in models:
            model.policy.set_training_mode(True)
            model._update_learning_rate(model.policy.optimizer)
        update_learning_rate(self.optimizer, first.lr_schedule(first._current_progress_remaining))
        last_values = torch.zeros(len(models) * first.n_envs, device=first.device)
        if first.bootstrap:
            with torch.no_grad():
                last_values = self._values(self._obs.unflatten(0, (len(models), -1))).flatten()
        flat = self.buffer.finish_rollout(last_values, first.overseer.not_reached, first.gamma, first.gae_lambda)
        batch = Batch(*(self._by_member(tensor.unflatten(0, (first.n_steps, -1))) for tensor in flat))
        generators = [torch.Generator().manual_seed(model._rng("minibatches")) for model in models]

        n_steps = batch.labels.shape[1]
        n_minibatches = max(1, round(n_steps / (first.batch_size or n_steps)))
        stats: list[dict[str, Tensor]] = []
        rows = torch.arange(len(models), device=first.device)[:, None]
        for _ in range(first.n_epochs):
            if n_minibatches == 1:
                stats.append(self._learn(batch))
                continue
            order = torch.stack([torch.randperm(n_steps, generator=generator) for generator in generators])
            for index in order.to(first.device).tensor_split(n_minibatches, dim=1):
                stats.append(self._learn(Batch(*(tensor[rows, index] for tensor in batch))))
        own = [Batch(*(tensor[k] for tensor in batch)) for k in range(len(models))]
        if first._replays:
            for model, steps in zip(models, own, strict=True):
                model.replay.add(steps)
            for _ in range(first.replay_steps):
                stats.append(self._learn_replayed(generators))
        for model, parameters in zip(models, self._members, strict=True):
            state = {p: self.optimizer.state[p] for p in parameters.values() if p in self.optimizer.state}
            model.policy.optimizer.state.update(state)
        # Where a member had nothing to replay, there is nothing to average.
        counts = {name: [(row[name], row[COUNTS]) for row in stats if name in row] for name in first.statistics}
        names = [name for name, pairs in counts.items() if pairs]
        sums = [torch.stack([torch.where(c, v, 0.0) for v, c in counts[name]]).sum(dim=0) for name in names]
        numbers = [torch.stack([c for _, c in counts[name]]).sum(dim=0).clamp(min=1) for name in names]
        means = (torch.stack(sums) / torch.stack(numbers)).tolist()
        for k, (model, steps) in enumerate(zip(models, own, strict=True)):
            model._finish_update({name: row[k] for name, row in zip(names, means, strict=True)}, steps)

    def _learn(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step on ``(K, N, …)`` samples of every label; returns what to log, ``(K,)`` each."""
        losses, taught, stats = self._loss(
            batch, self.template.entropy_schedule(self.template._current_progress_remaining)
        )
        self._step(losses, taught)
        return {name: value.detach() for name, value in stats.items()} | {COUNTS: torch.ones_like(taught[:, 0])}

    def _learn_replayed(self, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """One gradient step on labelled steps alone; returns what to log, ``(K,)`` each."""
        pairs = zip(self.models, generators, strict=True)
        samples = [model.replay.sample(model.replay_batch, generator) for model, generator in pairs]
        sample = Replayed(*(torch.stack(tensors) for tensors in zip(*samples, strict=True)))
        some = sample.stored.any(dim=1)
        if not bool(some.any()):
            return {}
        losses, stats = self._replay_loss(sample)
        # A module learns from its own label's steps, the gate and whatever is shared from any.
        self._step(losses, torch.cat([sample.stored, some[:, None]], dim=1), some)
        return {name: value.detach() for name, value in stats.items()} | {COUNTS: some}

    def _step(self, losses: Tensor, taught: Tensor, learns: Tensor | None = None) -> None:
        """One step of every member's optimizer.

        Args:
            losses: ``(K,)``.
            taught: ``(K, M + 1)`` bool: which modules, and last the gate, move.
            learns: ``(K,)`` bool: which members move at all; None for all.
        """
        for weight in self.weights.values():
            weight.grad = None
        losses.sum().backward()
        everyone = torch.ones_like(taught[:, 0]) if learns is None else learns
        # A row for each module, and last what belongs to none.
        moves = torch.cat([taught & everyone[:, None], everyone[:, None]], dim=1).T
        learned = {name: w.grad for name, w in self.weights.items() if w.grad is not None}
        if self.template.max_grad_norm is not None:
            norms = [(moves[self._column[n], :, None] * g.flatten(1)).square().sum(dim=1) for n, g in learned.items()]
            scale = (self.template.max_grad_norm / (torch.stack(norms).sum(dim=0).sqrt() + 1e-6)).clamp(max=1.0)
            for gradient in learned.values():
                gradient.mul_(scale.view(-1, *(1 for _ in gradient.shape[1:])))
        self.optimizer.zero_grad(set_to_none=True)
        on = moves.tolist()
        for name, gradients in learned.items():
            for parameters, gradient, move in zip(self._members, gradients, on[self._column[name]], strict=True):
                if move:
                    parameters[name].grad = gradient
        self.optimizer.step()


def _comparable(value: Any) -> Any:
    """A schedule by what it says at the start, in the middle and at the end; anything else as it is."""
    return [value(left) for left in (1.0, 0.5, 0.0)] if callable(value) and not isinstance(value, type) else value


def _must_agree(model: RoutedAlgorithm) -> dict[str, Any]:
    """What the members of one batch share, by name."""
    overseer = model.overseer.to_dict()
    return {
        "algorithm": type(model).__name__,
        "policy": model.policy_class.__name__,
        "device": str(model.device),
        **{name: _comparable(getattr(model, name)) for name in model.saved_arguments if name != "seed"},
        **{name: overseer[name] for name in ("values", "method", "unlabelled")},
        **{name: getattr(model, name) for name in ("n_envs", "observation_space", "action_space", "num_timesteps")},
    }


class _Call(nn.Module):
    """A function that uses a policy, as a module, so that the policy's weights can be replaced for one call."""

    def __init__(self, policy: RoutedActorCriticPolicy, function: Callable[..., Any]) -> None:
        super().__init__()
        self.policy, self.function = policy, function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)
