"""Train many models of one architecture at once, as one batch.

Shapes: ``K`` models (the *members*), ``E`` environments per member, ``T`` steps per rollout.

Each member stays an ordinary model: it can be evaluated, saved and trained further alone. Its weights and buffer are
slices of tensors that hold the weights and buffers of all members. The slow parts run for all members at once:
environment steps, acting, values, losses, gradients and the optimizer step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from routed_rl.rl.algorithm import RoutedAlgorithm
from routed_rl.rl.environments import tensor_device
from routed_rl.rl.members import check_members
from routed_rl.rl.oversight_env import episode_ends
from routed_rl.rl.policies import RoutedActorCriticPolicy
from routed_rl.rl.rollout import Batch, EpisodeBuffer, Replayed, RolloutEnds

COUNTS = "counts"
"""Key in a gradient step's statistics: ``(K,)`` booleans, true for the members that took the step."""


class ParallelLearner:
    """Trains ``K`` models at once. Up to rounding, each becomes the model that training alone would give.

    Each member uses its own seed and draws the same random numbers as alone. Sums may be taken in another order.
    So in float32 a rounding error can change an action, and from then on the two runs differ.

    Args:
        models: the members. They may differ in their seed and in the ``oversight`` and ``noise`` of their overseer.
            Architecture, hyperparameters and number of steps so far must be the same.
        envs: one or more vector environments with ``get_state`` and ``set_state`` (such as
            :class:`routed_rl.envs.DiamondGhostVecEnv`). Together they have ``K E`` rows: first the ``E`` rows of the
            first member, then those of the second, and so on. Training starts from the state of the members' own
            environments, and afterwards writes the new state back to them.

    Raises:
        ValueError: if members differ in anything else, have actions that are not discrete or Dict observations, are
            steered, or use ``unfinished="hold"`` or ``target_kl``; or if the environments do not match the members.
    """

    def __init__(self, models: Sequence[RoutedAlgorithm], envs: Sequence[VecEnv]) -> None:
        self.models, self.envs = list(models), list(envs)
        check_members(self.models, self.envs)
        self.template = self.models[0]
        self._stack_weights()
        self.buffer = EpisodeBuffer.joined([model.buffer for model in self.models])
        self._loss = self._over_members(self.template.loss, (0, None))
        self._replay_loss = self._over_members(self.template.replay_loss, (0,))
        policy = self.template.policy
        players = self.template._players if self.template.solo_envs else None
        self._logits = self._over_members(lambda obs: policy.get_distribution(obs, players).distribution.logits, (0,))
        self._values = self._over_members(lambda obs: policy.predict_values(obs).flatten(), (0,))

    # --- members as slices of one ---------------------------------------------------------------

    def _stack_weights(self) -> None:
        """Stack each weight over the members; the members keep slices of it. Build one optimizer for all slices."""
        members = [dict(model.policy.named_parameters()) for model in self.models]
        self.weights = {}
        for name in members[0]:
            stacked = torch.stack([parameters[name].detach() for parameters in members])
            self.weights[name] = stacked.requires_grad_()
            for parameters, row in zip(members, stacked.detach(), strict=True):
                parameters[name].data = row
        self._members = members
        # The optimizer's parameters are the members' slices. So each has its own step count, and may have no gradient.
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
        """Return ``function``, which uses the template's policy, vectorised over all members.

        It runs once for each slice of the stacked weights, and of the arguments whose entry in ``axes`` is not None.
        """
        call = _Call(self.template.policy, function)

        def alone(weights: Mapping[str, Tensor], *arguments: Any) -> Any:
            named = {f"policy.{name}": weight for name, weight in weights.items()}
            # Stable-Baselines3 registers one encoder under three names. Replacing one name replaces it under all.
            return torch.func.functional_call(call, named, arguments, tie_weights=False)

        vectorised = torch.vmap(alone, in_dims=(0, *axes))
        return lambda *arguments: vectorised(self.weights, *arguments)

    def _by_member(self, tensor: Tensor) -> Tensor:
        """Return ``(T, K E, …)`` as ``(K, T E, …)``: the steps of each member, in the order of training alone."""
        members = tensor.unflatten(1, (len(self.models), self.template.n_envs))
        return members.transpose(0, 1).flatten(1, 2)

    # --- learning -------------------------------------------------------------------------------

    def learn(
        self, total_timesteps: int, callbacks: Sequence[MaybeCallback], *, reset_num_timesteps: bool = True
    ) -> None:
        """Train every member for ``total_timesteps`` steps, with its own callback, as ``model.learn()`` does.

        If the callback of one member stops the training, it stops for all members.
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
        """Copy the state of the members' own environments to the joint environments."""
        for env, models in zip(self.envs, self._members_of_envs(), strict=True):
            states = [model.env.get_state() for model in models]  # type: ignore[union-attr]
            env.set_state({name: np.concatenate([s[name] for s in states]) for name in states[0]})  # type: ignore[attr-defined]
        self._obs = torch.cat([torch.as_tensor(model._last_obs, device=model.device) for model in self.models])

    def _leave_envs(self, dones: Tensor) -> None:
        """Copy the state of the joint environments back to the members' own environments."""
        n = self.template.n_envs
        for env, models in zip(self.envs, self._members_of_envs(), strict=True):
            state = env.get_state()  # type: ignore[attr-defined]
            for k, model in enumerate(models):
                own = {name: array[k * n : (k + 1) * n] for name, array in state.items()}
                model.env.set_state(own)  # type: ignore[union-attr]
        for model, obs, done in zip(self.models, self._obs.split(n), dones.split(n), strict=True):
            on_device = getattr(model.env, "speaks_tensors", False)
            model._last_obs, model._last_episode_starts = (t if on_device else t.cpu().numpy() for t in (obs, done))

    def _step_envs(self, actions: Tensor, on_device: bool) -> tuple[Tensor, Tensor, Tensor, list[Any]]:
        """Step the joint environments.

        Returns:
            Observations ``(K E, …)``, rewards ``(K E,)``, dones ``(K E,)``, and the episode ends of each environment.
        """
        outcomes = self.template.overseer.outcomes
        rows = actions.split([env.num_envs for env in self.envs])
        legal = self.template.policy.legal
        stepped = [env.step(a if on_device else legal(a)) for env, a in zip(self.envs, rows, strict=True)]
        obs, rewards, dones = (
            torch.cat([torch.as_tensor(step[i], device=self.template.device) for step in stepped]) for i in range(3)
        )
        return obs, rewards, dones, [episode_ends(infos, done, outcomes) for _, _, done, infos in stepped]

    def _collect(self, callbacks: Sequence[BaseCallback]) -> bool:
        """Play one rollout with every member; return False if a callback stopped it."""
        members, first = len(self.models), self.template
        for callback in callbacks:
            callback.on_rollout_start()
        for model in self.models:
            model.policy.set_training_mode(False)
        self.buffer.start_rollout()
        device = tensor_device(self.envs[0], first.device)
        ends = [RolloutEnds(first.n_steps, env.num_envs, device) for env in self.envs]
        generators = [torch.Generator(model.device).manual_seed(model._rng("rollout")) for model in self.models]
        for step in range(first.n_steps):
            actions, log_probs = self._sample(self._obs.unflatten(0, (members, -1)), generators)
            self.buffer.add(step, self._obs, actions.flatten(), log_probs.flatten())
            self._obs, rewards, dones, ended = self._step_envs(actions.flatten(), device is not None)
            self.buffer.add_rewards(step, rewards)
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
        """Sample actions for observations ``(K, E, …)``; return actions and log-probabilities, ``(K, E)`` each."""
        log_probs = self._logits(obs)
        # torch samples from a categorical distribution in this way, so each member draws the same as alone.
        noise = torch.empty_like(log_probs)
        for row, generator in zip(noise, generators, strict=True):
            row.exponential_(generator=generator)
        actions = (log_probs.softmax(dim=-1) / noise).argmax(dim=-1)
        return actions, log_probs.gather(-1, actions[..., None]).squeeze(-1)

    def _store_ends(self, ends: Sequence[RolloutEnds]) -> None:
        """Let each member's overseer label its episodes; store value estimates for the steps of all members."""
        n, new = self.template.n_envs, slice(self.template.n_steps, None)
        own = [part.columns(k * n, (k + 1) * n) for part in ends for k in range(part.ended.shape[1] // n)]
        for model, part in zip(self.models, own, strict=True):
            model._store_labels(part)
        obs = self._by_member(self.buffer.obs[new])
        with torch.no_grad():
            portions = obs.split(self.template.batch_size or obs.shape[1], dim=1)
            values = torch.cat([self._values(portion) for portion in portions], dim=1)
        shape = (len(self.models), self.template.n_steps, n)
        self.buffer.values[new] = values.view(shape).transpose(0, 1).flatten(1)
        for model, part in zip(self.models, own, strict=True):
            model._store_bootstrap(part)

    def _members_of_envs(self) -> list[list[RoutedAlgorithm]]:
        """Return, for each joint environment, the members that own its rows."""
        models = iter(self.models)
        return [list(itertools.islice(models, env.num_envs // self.template.n_envs)) for env in self.envs]

    def _train(self) -> None:
        """Let every member learn from its rollout, then from replayed steps, as ``train`` does for one."""
        models, first = self.models, self.template
        for model in models:
            model._update_learning_rate(model.policy.optimizer)
        update_learning_rate(self.optimizer, first.lr_schedule(first._current_progress_remaining))
        last_values = torch.zeros(len(models) * first.n_envs, device=first.device)
        if first.bootstrap:
            with torch.no_grad():
                last_values = self._values(self._obs.unflatten(0, (len(models), -1))).flatten()
        for model in models:
            model.policy.set_training_mode(True)
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
        # A member without stored steps takes no replay step: the means leave these steps out.
        counts = {name: [(row[name], row[COUNTS]) for row in stats if name in row] for name in first.statistics}
        names = [name for name, pairs in counts.items() if pairs]
        sums = [torch.stack([torch.where(c, v, 0.0) for v, c in counts[name]]).sum(dim=0) for name in names]
        numbers = [torch.stack([c for _, c in counts[name]]).sum(dim=0).clamp(min=1) for name in names]
        means = (torch.stack(sums) / torch.stack(numbers)).tolist()
        for k, (model, steps) in enumerate(zip(models, own, strict=True)):
            model._finish_update({name: row[k] for name, row in zip(names, means, strict=True)}, steps)

    def _learn(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step on steps ``(K, N, …)`` of any label; return the statistics to log, ``(K,)`` each."""
        losses, taught, stats = self._loss(batch, self.template.current_ent_coef)
        self._step(losses, taught)
        return {name: value.detach() for name, value in stats.items()} | {COUNTS: torch.ones_like(taught[:, 0])}

    def _learn_replayed(self, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Take one gradient step on replayed labelled steps; return the statistics to log, ``(K,)`` each."""
        pairs = zip(self.models, generators, strict=True)
        samples = [model.replay.sample(model.replay_batch, generator) for model, generator in pairs]
        sample = Replayed(*(torch.stack(tensors) for tensors in zip(*samples, strict=True)))
        some = sample.stored.any(dim=1)
        if not bool(some.any()):
            return {}
        losses, stats = self._replay_loss(sample)
        # A module learns from the steps of its own label. The gate and shared layers learn from all labels.
        self._step(losses, torch.cat([sample.stored, some[:, None]], dim=1), some)
        return {name: value.detach() for name, value in stats.items()} | {COUNTS: some}

    def _step(self, losses: Tensor, taught: Tensor, learns: Tensor | None = None) -> None:
        """Take one optimizer step for every member.

        Args:
            losses: ``(K,)``.
            taught: ``(K, M + 1)`` booleans: true for each module that this step changes; the last entry is the gate.
            learns: ``(K,)`` booleans: true for each member that takes the step; None for all members.
        """
        for weight in self.weights.values():
            weight.grad = None
        losses.sum().backward()
        everyone = torch.ones_like(taught[:, 0]) if learns is None else learns
        # One row per module and the gate; the last row is for parameters that belong to neither.
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


class _Call(nn.Module):
    """Wraps a function that uses a policy as a module, so that ``functional_call`` can replace the policy's weights."""

    def __init__(self, policy: RoutedActorCriticPolicy, function: Callable[..., Any]) -> None:
        super().__init__()
        self.policy, self.function = policy, function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)
