"""``RoutedAlgorithm``, the base of all routed learners: labelled rollouts, replay, steering and saving."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from types import NoneType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from routed_rl.paths import expanded
from routed_rl.rl.architecture import check_sde
from routed_rl.rl.arguments import (
    check_choice,
    check_device,
    check_number,
    check_schedule,
    check_type,
    check_unused,
    check_whole,
)
from routed_rl.rl.balance import LabelBalance
from routed_rl.rl.environments import check_env, is_environment, tensor_device
from routed_rl.rl.labels import RoutedLabels
from routed_rl.rl.logs import RoutedLogs
from routed_rl.rl.losses import RoutedLosses
from routed_rl.rl.observations import check_spaces
from routed_rl.rl.overseer import Overseer
from routed_rl.rl.oversight_env import episode_ends
from routed_rl.rl.paper_policy import PaperPolicy
from routed_rl.rl.policies import RoutedActorCriticPolicy, RoutedCnnPolicy, RoutedMultiInputPolicy
from routed_rl.rl.rollout import Batch, EpisodeBuffer, LabelReplay, RolloutEnds
from routed_rl.rl.rollout_view import RolloutView
from routed_rl.rl.saving import Saveable, constructor_meta
from routed_rl.rl.steering import Steerable
from routed_rl.routing import excluded
from routed_rl.runs.files import StrPath


class RoutedAlgorithm(Steerable, RoutedLabels, RoutedLogs, RoutedLosses, Saveable):
    """A Stable-Baselines3 on-policy algorithm in which an overseer labels the steps of each episode.

    Subclasses implement ``policy_loss`` and list their own hyperparameters in ``saved_arguments``.

    Args:
        policy: ``"MlpPolicy"``, ``"CnnPolicy"`` (images), ``"MultiInputPolicy"`` (Dict observations),
            ``"PaperPolicy"``, or a subclass of :class:`RoutedActorCriticPolicy`.
        env: the training environment, or None for a model that is loaded for prediction.
        overseer: labels the episodes, and sets the training method (rewards, routes and loss weights by label).
        learning_rate: a number, or a function of the remaining progress (1 at the start, 0 at the end).
        n_steps: steps per environment and rollout, ``T``.
        gamma: discount factor.
        gae_lambda: lambda of the generalized advantage estimate (GAE).
        ent_coef, vf_coef, gate_coef: weights of the entropy bonus, the value loss and the gate's loss.
        max_grad_norm: largest gradient norm, for clipping; None for no clipping.
        bootstrap: whether the value network estimates the return after a cut, by the step limit or by the rollout's
            end. With False, that return counts as 0.
        batch_size: steps per gradient step; None for the whole rollout.
        n_epochs: passes over each rollout.
        unfinished: what happens to the steps of an episode that is still running at the rollout's end. The learner uses
            them at once, without a label (``"unlabelled"``, the paper), or waits for their label (``"hold"``).
        replay_steps: extra gradient steps per rollout, on replayed labelled steps; 0 for none.
        replay_batch: replayed steps per label and gradient step.
        replay_capacity: number of most recent labelled steps kept per label.
        solo: share of the environments in which one module acts alone, for methods that route; rounded down to the same
            number for each module. There the module is paid 1 for its own outcome and -1 for another, by label.
        use_sde: state-dependent exploration, for continuous actions (Raffin et al. 2022, gSDE). The noise is a random
            linear function of the combined output of the modules. It is drawn again for every rollout.
        sde_sample_freq: steps after which that function is drawn again; -1: once per rollout.

    The other arguments are those of Stable-Baselines3. The episode statistics of its ``Monitor`` and ``VecMonitor``
    are logged as there (``rollout/ep_rew_mean``). They show the environment's own rewards, which updates use
    only if the overseer pays them.

    Raises:
        ValueError: for an argument that is unknown, out of range or cannot be saved, or a space that cannot be learned.
    """

    policy: RoutedActorCriticPolicy
    _last_obs: Any
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": RoutedActorCriticPolicy,
        "CnnPolicy": RoutedCnnPolicy,
        "MultiInputPolicy": RoutedMultiInputPolicy,
        "PaperPolicy": PaperPolicy,
    }
    saved_arguments: ClassVar[tuple[str, ...]] = (
        "learning_rate",
        "n_steps",
        "gamma",
        "gae_lambda",
        "ent_coef",
        "vf_coef",
        "gate_coef",
        "max_grad_norm",
        "bootstrap",
        "batch_size",
        "n_epochs",
        "unfinished",
        "replay_steps",
        "replay_batch",
        "replay_capacity",
        "solo",
        "use_sde",
        "sde_sample_freq",
        "policy_kwargs",
        "seed",
        "stats_window_size",
        "verbose",
    )

    def __init__(
        self,
        policy: str | type[RoutedActorCriticPolicy],
        env: GymEnv | str | None,
        overseer: Overseer,
        *,
        learning_rate: float | Schedule,
        n_steps: int,
        gamma: float,
        gae_lambda: float,
        ent_coef: float | Schedule,
        vf_coef: float,
        gate_coef: float,
        max_grad_norm: float | None,
        bootstrap: bool,
        batch_size: int | None = None,
        n_epochs: int = 1,
        unfinished: Literal["unlabelled", "hold"],
        replay_steps: int,
        replay_batch: int,
        replay_capacity: int,
        solo: float,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: StrPath | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        check_unused(type(self).__name__, unknown, type(self), RoutedAlgorithm)
        check_choice((0, 1, 2), verbose=verbose)
        check_choice((True, False), use_sde=use_sde)
        check_type((dict, NoneType), "a dict or None", policy_kwargs=policy_kwargs)
        if is_environment(policy):
            raise ValueError(f"policy is the first argument and env the second, got {policy} as policy: swap them")
        if not (isinstance(policy, type) and issubclass(policy, RoutedActorCriticPolicy)):
            check_choice((*self.policy_aliases, "a subclass of RoutedActorCriticPolicy"), policy=policy)
        if env is not None or _init_setup_model:  # without set-up, load() adds the environment later
            if isinstance(env, Overseer):
                raise ValueError(f"env is the second argument and overseer the third, got {env} as env: swap them")
            if not isinstance(env, str):
                check_env("a Gymnasium environment, its id, or a VecEnv", env=env)
            env = maybe_make_env(env, verbose)  # type: ignore[arg-type]
            check_spaces(env.observation_space, env.action_space)  # type: ignore[union-attr]
            check_sde({"use_sde": use_sde, **(policy_kwargs or {})}, env.action_space)  # type: ignore[union-attr]
        check_type((Overseer,), "an Overseer, as in Overseer({'ghost': -1, 'diamond': 1})", overseer=overseer)
        check_type((str, os.PathLike, NoneType), "a path or None", tensorboard_log=tensorboard_log)
        check_schedule(0, learning_rate=learning_rate, ent_coef=ent_coef)
        check_number(0, vf_coef=vf_coef, gate_coef=gate_coef)
        check_number(0, max_grad_norm=0 if max_grad_norm is None else max_grad_norm)
        check_number(0, 1, gamma=gamma, gae_lambda=gae_lambda, solo=solo)
        check_whole(1, n_steps=n_steps, n_epochs=n_epochs, stats_window_size=stats_window_size)
        check_whole(0, replay_steps=replay_steps)
        check_whole(1, replay_batch=replay_batch, replay_capacity=replay_capacity)
        check_whole(1, batch_size=1 if batch_size is None else batch_size)
        check_whole(0, 2**32 - 1, seed=0 if seed is None else seed)
        check_choice(("unlabelled", "hold"), unfinished=unfinished)
        check_choice((True, False), bootstrap=bootstrap)
        check_whole(-1, sde_sample_freq=sde_sample_freq)
        check_device(device)
        self.overseer, self.gate_coef, self.unfinished = overseer, gate_coef, unfinished
        self.bootstrap, self.batch_size, self.n_epochs = bootstrap, batch_size, n_epochs
        self.replay_steps, self.replay_batch, self.replay_capacity = replay_steps, replay_batch, replay_capacity
        self.solo = solo
        self.stats_window_size, self._dump_after_training = stats_window_size, False
        structure = {"modules": overseer.modules, "learned_gate": overseer.method.gate}
        if given := [name for name in (*structure, "use_sde") if name in (policy_kwargs or {})]:
            raise ValueError(f"policy_kwargs must not contain {given}: the overseer's method and the learner set them")
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,  # type: ignore[arg-type]
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            policy_kwargs={**(policy_kwargs or {}), **structure},
            stats_window_size=stats_window_size,
            tensorboard_log=None if tensorboard_log is None else str(expanded(tensorboard_log)),
            verbose=verbose,
            seed=int(np.random.SeedSequence().generate_state(1)[0] if seed is None else seed),
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        constructor_meta(self)  # raises what save() would raise
        tensor_device(self.env, self.device)
        super()._setup_model()
        self.policy.gamma = self.gamma
        self.entropy_schedule = FloatSchedule(self.ent_coef)
        self._update_current_progress_remaining(0, 1)
        discrete = isinstance(self.action_space, spaces.Discrete)
        shapes = (
            self.policy.observations.shape,
            self.policy.observations.dtype,
            () if discrete else (get_action_dim(self.action_space),),
            torch.int64 if discrete else torch.float32,
        )
        hold = self.unfinished == "hold"
        self._players = self._new_players()
        self.solo_envs = bool((self._players < len(self.overseer.modules)).any())
        self.buffer = EpisodeBuffer(
            self.n_steps,
            self.n_envs,
            *shapes,
            players=self._players,
            hold=hold,
            paid=self.overseer.pays_environment,
            device=self.device,
        )
        self._table = self.overseer.label_table(self.device)
        self._balance = LabelBalance(self.overseer, self.solo_envs)
        self._act, self._loss, self._replay_loss = self._sample, self.loss, self.replay_loss
        if self.device.type == "cuda":
            self.compile()
        self._parameters = list(self.policy.parameters())  # listed once: walking the modules at every step is slow
        self.outcome_model = self._new_outcome_model()
        n_labels = len(self.overseer.outcomes) if self._replays else 0
        self.replay = LabelReplay(n_labels, self.replay_capacity, *shapes, device=self.device)
        self.rollout_buffer = RolloutView(self)  # type: ignore[assignment]  # in place of Stable-Baselines3's buffer

    def compile(self, **options: Any) -> None:
        """Compile acting, the losses and their gradients with ``torch.compile``. This needs a C++ compiler.

        Learners on a GPU are compiled already; ``compile(disable=True)`` undoes it. A compiled learner draws other
        random numbers. The first updates take 10 to 30 seconds more. Call it again after :meth:`load`.

        Args:
            **options: arguments of ``torch.compile``. On a CPU, the default is ``options={"cpp_wrapper": True}``.
        """
        if not options and self.device.type == "cpu":
            options["options"] = {"cpp_wrapper": True}  # calls from C++ cost less than calls from Python
        functions = (self._sample, self.loss, self.replay_loss)
        self._act, self._loss, self._replay_loss = (torch.compile(function, **options) for function in functions)

    @property
    def _replays(self) -> bool:
        """Whether replay trains anything: the modules (if the method routes), or a learned gate."""
        return self.replay_steps > 0 and (self.overseer.method.routed or self.overseer.method.gate)

    def _setup_learn(
        self, total_timesteps: int, callback: Any = None, reset_num_timesteps: bool = True, *args: Any, **kwargs: Any
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:
            self.buffer.discard()  # super()._setup_learn will reset the environment
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)

    # --- rollout --------------------------------------------------------------------------------

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Play ``n_rollout_steps`` steps and label their episodes; return False if a callback stopped the rollout."""
        callback.on_rollout_start()
        if self.policy.steering:
            raise ValueError(f"the policy is steered ({self.policy.steering}); call unsteer() before learning")
        self.policy.set_training_mode(False)
        self.buffer.start_rollout()
        ends = RolloutEnds(n_rollout_steps, env.num_envs, tensor_device(env, self.device))
        # The seed of sampling depends on the update only. The global generator's state is restored afterwards.
        # Callbacks run in a fork of their own, so their random draws do not change the rollout.
        fork = partial(torch.random.fork_rng, devices=[] if self.device.type == "cpu" else [self.device])
        with fork():
            torch.manual_seed(self._rng("rollout"))
            for step in range(n_rollout_steps):
                if self.use_sde and (step == 0 or (self.sde_sample_freq > 0 and step % self.sde_sample_freq == 0)):
                    self.policy.reset_noise(env.num_envs)
                obs = self.policy.observations.pack(self._last_obs, self.device)
                actions, log_probs = self._act(obs)
                self.buffer.add(step, obs, actions, log_probs)
                new_obs, rewards, dones, infos = env.step(actions if ends.on_device else self.policy.legal(actions))
                self.num_timesteps += env.num_envs
                self.buffer.add_rewards(step, rewards)
                ends.add(step, dones, episode_ends(infos, dones, self.overseer.outcomes))
                if not hasattr(infos, "ends"):  # the array channel has no statistics of Stable-Baselines3's Monitor
                    self._update_info_buffer(infos, dones)
                self._last_obs, self._last_episode_starts = new_obs, dones
                callback.update_locals(locals())
                with fork():
                    if not callback.on_step():
                        self.buffer.discard()
                        return False
        self._store_ends(ends)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _new_players(self) -> Tensor:
        """Return who acts in each environment ``(E,)``: a module alone, or the gate (``M``)."""
        modules = len(self.overseer.modules)
        players = torch.full((self.n_envs,), modules, device=self.device)
        if self.overseer.method.routed:
            each = int(self.solo * self.n_envs + 1e-9) // modules  # 0.29 * 100 is below 29
            alone = torch.arange(modules, device=self.device).repeat_interleave(each)
            players[: len(alone)] = alone
        return players

    @torch.no_grad()
    def _sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        distribution = self.policy.get_distribution(obs, self._players if self.solo_envs else None)
        actions = distribution.sample()
        return actions, distribution.log_prob(actions)

    # --- learning -------------------------------------------------------------------------------

    statistics: ClassVar[tuple[str, ...]] = ("policy_loss", "value_loss", "entropy", "gate_loss", "replay_loss")
    """Statistics that every update logs: means over its gradient steps, 0 if there were none."""

    def train(self) -> None:
        """Learn from the steps that are ready, then from replayed labelled steps."""
        self._update_learning_rate(self.policy.optimizer)
        last_values = torch.zeros(self.n_envs, device=self.device)
        if self.bootstrap:
            last_values = self._values(self.policy.observations.pack(self._last_obs, self.device))
        self.policy.set_training_mode(True)
        batch = self.buffer.finish_rollout(last_values, self.overseer.not_reached, self.gamma, self.gae_lambda)
        generator = torch.Generator().manual_seed(self._rng("minibatches"))
        stats: list[dict[str, Tensor]] = []
        for minibatch in self._minibatches(batch, generator):
            stats.append(self._learn(minibatch))
            if self.moved_too_far(stats[-1]):
                break
        if self._replays:
            self.replay.add(batch)
            for _ in range(self.replay_steps):
                stats.append(self._learn_replayed(generator))
        values = {name: [row[name] for row in stats if name in row] for name in self.statistics}
        self._finish_update({name: float(torch.stack(rows).mean()) for name, rows in values.items() if rows}, batch)

    def _minibatches(self, batch: Batch, generator: torch.Generator) -> Iterator[Batch]:
        """Yield the minibatches of all epochs; each epoch has every step once, in a random order."""
        n_steps = len(batch.labels)
        n_minibatches = max(1, round(n_steps / (self.batch_size or n_steps or 1)))
        for _ in range(self.n_epochs if n_steps else 0):
            if n_minibatches == 1:
                yield batch
                continue
            order = torch.randperm(n_steps, generator=generator).to(self.device)
            for index in order.tensor_split(n_minibatches):
                yield Batch(*(tensor.index_select(0, index) for tensor in batch))

    def _learn(self, batch: Batch) -> dict[str, Tensor]:
        """Take one gradient step on steps of any label, unless the policy moved too far; return statistics to log."""
        loss, taught, stats = self._loss(batch, self.current_ent_coef)
        if not self.moved_too_far(stats):
            self._step(loss, [n for n, on in zip(self.overseer.routes.modules, taught.tolist(), strict=True) if not on])
        return {name: value.detach() for name, value in stats.items()}

    def _learn_replayed(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Take one gradient step on replayed labelled steps; return the statistics to log."""
        sample = self.replay.sample(self.replay_batch, generator)
        stored = sample.stored.tolist()
        if not any(stored):
            return {}
        loss, stats = self._replay_loss(sample)
        untaught = [name for name, on in zip(self.overseer.outcomes, stored, strict=True) if not on]
        self._step(loss, untaught if self.overseer.method.routed else [])
        return {name: value.detach() for name, value in stats.items()}

    def _step(self, loss: Tensor, untaught: Sequence[str] = ()) -> None:
        self.policy.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for name in untaught for p in self.policy.module_parameters(name)]
        with excluded(self.policy.optimizer, parameters):
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, self.max_grad_norm)
            self.policy.optimizer.step()
