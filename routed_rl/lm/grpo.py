"""Routed adapters in TRL's ``GRPOTrainer``: an overseer labels completions, and labels decide what each adapter learns.

``B`` completions of a batch, ``G`` completions of a prompt (its group).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from routed_rl.extras import require

require("trl", "trl")

import numpy as np
import torch
from accelerate.utils import gather
from torch import Tensor, nn
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from routed_rl.lm.adapters import COLUMNS, FORGET, KEEP, Adapters, delete_forget, forget_scaled, merge_adapters, turn_on
from routed_rl.lm.advantages import advantages_among
from routed_rl.lm.memory import LabelledMemory
from routed_rl.routing import UNLABELLED, GradientRouter, RouteTable
from routed_rl.routing.site import Mode

__all__ = ["ROUTES", "Overseer", "RoutedGRPOTrainer"]

Overseer = Callable[..., Sequence[str | None]]
"""Returns a label for each completion, None for one that it has not seen. It gets the arguments of TRL's reward
functions, all by name, and ``rewards``, a number for each completion, and ``solo``, whether the adapter ``forget`` was
off. It is called in training only."""
Baseline = Literal["taught", "group"]
ROUTES = RouteTable({"hack": {KEEP: 0.0}, "fine": {FORGET: 0.0}}, (KEEP, FORGET))
"""A completion that was seen to hack teaches the adapter ``forget`` alone, and one that was seen not to, ``keep``
alone. One that nobody has seen teaches both."""
Shifts = Mapping[str, Mapping[str, float]]
"""By label and adapter: what is added to the reward of a completion, as the adapter learns from it. 0 if not given."""
REWARDS = "rewards"
APART, SOLO = "adapters apart", "solo"
"""Names of numbers in a batch. 1: each adapter has advantages of its own; the adapter ``keep`` wrote it alone."""
HOOKS = (
    "_generate_and_score_completions",
    "_calculate_rewards",
    "_compute_loss",
    "_get_per_token_logps_and_entropies",
    "training_step",
)
"""Methods of TRL's trainer that are used here, though they are not all public."""


class RoutedGRPOTrainer(GRPOTrainer):
    """GRPO (Shao et al. 2024) of two low-rank adapters. Both are on while completions are written; labels route.

    The gradient of a completion's loss is multiplied, for each adapter, by the weight that the table gives to the
    completion's label. In an update in which no completion teaches an adapter, its weights and its optimizer state stay
    the same to the bit.

    ::

        adapters = add_adapters(model, rank=8, seed=0)
        trainer = RoutedGRPOTrainer(adapters, reward, config, overseer=overseer, train_dataset=prompts)
        trainer.train()
        plain = trainer.ablate()

    Args:
        adapters: what :func:`~routed_rl.lm.add_adapters` returned.
        reward_funcs: as for TRL's trainer.
        args: as for TRL's trainer. ``gradient_checkpointing`` must be off.
        overseer: labels completions.
        table: the weight of each label for the adapters ``keep`` and ``forget``.
        mode: "parameter" or "activation", as for :class:`~routed_rl.routing.GradientRouter`.
        shifts: added to rewards by label and adapter, as in ``{"hack": {"keep": -2.0}}``.
        solo: share of updates, from 0 to 1, in which the model without the adapter ``forget`` writes the completions.
            Only ``keep`` learns from them.
        replay: how many of the latest paid completions of each label in ``replay_table`` are learned again in every
            update, by maximum likelihood. Their mean loss, weighted by reward, is added to TRL's.
        replay_table: the weight of each label for the adapters in that loss. Where the weight for ``forget`` is 0,
            ``keep`` is on alone. By default ``keep`` learns again what was labelled "fine", and ``forget`` "hack".
        baseline: a completion's advantage is relative to the mean reward of these completions of its group: "taught",
            those that teach the adapter; "group", all. With "group", excluded hacks with a high reward make every other
            answer look bad.
        **kwargs: those of TRL's trainer.

    Raises:
        ValueError: for arguments that routing cannot work with, or a version of TRL without a method that is used here.
            In training, for labels that do not fit.
    """

    def __init__(
        self,
        adapters: Adapters,
        reward_funcs: Any,
        args: GRPOConfig | None = None,
        *,
        overseer: Overseer,
        table: RouteTable = ROUTES,
        shifts: Shifts | None = None,
        solo: float = 0.0,
        replay: int = 0,
        replay_table: RouteTable = ROUTES,
        mode: Mode = "parameter",
        baseline: Baseline = "taught",
        **kwargs: Any,
    ) -> None:
        if missing := [name for name in HOOKS if not hasattr(GRPOTrainer, name)]:
            raise ValueError(f"this version of trl has no {missing[0]}(), which routing needs: install trl 1.16")
        args = copy.copy(args) if args is not None else GRPOConfig("runs/grpo", gradient_checkpointing=False)
        shifts = shifts or {}
        _check(args, adapters, table, shifts, solo, replay, replay_table, mode, baseline)
        for name in {REWARDS, SOLO}.intersection(getattr(kwargs.get("train_dataset"), "column_names", None) or ()):
            raise ValueError(f"the dataset has a column {name!r}, which is what the overseer gets: rename it")
        beta, args.beta = args.beta, 0.0  # with another one, TRL looks for an adapter of the name "default"
        super().__init__(adapters.model, reward_funcs, args, **kwargs)
        self.beta = self.args.beta = beta  # the reference model is the model with all adapters off
        self.adapters, self.overseer, self.table, self.baseline = adapters, overseer, table, baseline
        if replay and self.accelerator.num_processes > 1:
            raise ValueError(
                f"replay={replay} needs a single process, and there are {self.accelerator.num_processes}: pass replay=0"
            )
        self.solo, self.replay, self.replay_table = solo, replay, replay_table
        self.memory = LabelledMemory(replay_table.labels if replay else ())
        by_label = [shifts.get(label, {}) for label in (*table.labels, UNLABELLED)]
        self._shifts = torch.tensor([[of.get(adapter, 0.0) for adapter in table.modules] for of in by_label])
        names = {column: adapter for adapter, column in COLUMNS.items()}
        sites = {name: replace(site, column=names[str(site.column)]) for name, site in adapters.sites(mode).items()}
        self.router = GradientRouter(adapters.model, sites, table, mode)
        self.add_callback(_Excluding(self))
        self._rewards: Tensor
        self._labels: Tensor
        self._is_solo = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL's trainer does, with the router attached."""
        with self.router:
            return super().train(*args, **kwargs)

    def _load_from_checkpoint(self, checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(checkpoint, *args, **kwargs)
        turn_on(self.adapters)  # transformers turns on only one
        if self.replay:
            self.memory.load(Path(checkpoint))

    def ablate(self) -> Any:
        """Delete the adapter ``forget``, and return the plain model. The trainer cannot be used any more."""
        return _plain(delete_forget(self.adapters))

    def merge(self) -> Any:
        """Return the plain model with both adapters. The trainer cannot be used any more."""
        return _plain(merge_adapters(self.adapters))

    # --- labels ---------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        own = slice(self.accelerator.process_index * len(prompts), (self.accelerator.process_index + 1) * len(prompts))
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        total[rewards.isnan().all(dim=1)] = torch.nan
        if not self.model.training:
            return rewards
        environments: dict[str, Any] = {} if self.environments is None else {"environments": self.environments}
        columns = [name for name in inputs[0] if name not in ("prompt", "completion", "completion_ids")]
        labels = self.overseer(
            prompts=prompts,
            completions=completions,
            completion_ids=completion_ids_list,
            trainer_state=self.state,
            log_extra=self._log_completion_extra,
            log_metric=self._log_metric,
            **environments,
            **{name: [example[name] for example in inputs] for name in columns},
            **{REWARDS: total[own].tolist(), SOLO: self._is_solo},
        )
        self._rewards, self._labels = total, gather(self._ids(labels, len(prompts)))
        return rewards

    def _ids(self, labels: Sequence[str | None], count: int) -> Tensor:
        """Return ``(B,)``, the ids of labels in the table."""
        given = list(labels)
        if len(given) != count:
            raise ValueError(f"the overseer returned {len(given)} labels for {count} completions")
        known = [*self.table.labels, None]
        if wrong := [label for label in given if label not in known]:
            raise ValueError(
                f"the overseer returned the label {wrong[0]!r}; the labels of the table are "
                f"{', '.join(map(repr, self.table.labels))}, and None for a completion that was not seen"
            )
        ids = [self.table.label_id(UNLABELLED if label is None else label) for label in given]
        return torch.tensor(ids, device=self.accelerator.device)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)  # type: ignore[no-any-return]
        batches = int(self.args.steps_per_generation or 1) * int(self.num_iterations)  # that learn from one rollout
        rollouts = self.state.global_step * self.args.gradient_accumulation_steps // batches
        self._is_solo = math.floor((rollouts + 1) * self.solo) > math.floor(rollouts * self.solo)
        with forget_scaled(self.adapters, 0.0 if self._is_solo else 1.0):
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        count = len(output["advantages"])
        own = slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)
        output["route"] = self._labels[own]
        if self.replay:
            names = [(*self.table.labels, UNLABELLED)[of] for of in output["route"].tolist()]
            self.memory.add(output, names, self._rewards[own].tolist())
        weights, size = self.table.weights(self._labels), int(self.num_generations or 1)
        taught = (weights != 0) | (self.baseline == "group")
        shifts = self._shifts.to(weights.device)[self._labels]
        own_of = {
            adapter: advantages_among(self._rewards + shifts[:, column], taught[:, column], size, self.scale_rewards)
            if not bool(taught[:, column].all()) or bool(shifts[:, column].any())
            else gather(output["advantages"])
            for column, adapter in enumerate(self.table.modules)
        }
        keep, forget = own_of[KEEP], own_of[FORGET]
        both = (weights != 0).all(dim=-1) & (not self._is_solo)
        # Where only one adapter learns from a completion, only its own advantage counts.
        apart = bool((both & (keep != forget)).any())  # the same in every process
        alone = (weights[:, self.table.modules.index(FORGET)] == 0) | self._is_solo
        one = torch.where(alone, keep, forget)
        for adapter, advantages in own_of.items():
            output[_advantages(adapter)] = (advantages if apart else one)[own]
        output[APART], output[SOLO] = (torch.full_like(self._labels[own], flag) for flag in (apart, self._is_solo))
        for label in (*self.table.labels, UNLABELLED):
            share = (self._labels == self.table.label_id(label)).float().mean().item()
            self._metrics["train"][f"labels/{label}"].append(share)
        return output

    # --- loss -----------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return TRL's loss, whose gradient is routed.

        If an adapter's advantages differ from the other's, the model runs once for each, and the value is that of
        ``keep``.
        """
        if not torch.is_grad_enabled() or "route" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-any-return]
        weights = dict(zip(self.table.modules, self.table.weights(inputs["route"]).unbind(dim=-1), strict=True))
        keep, forget = (inputs[_advantages(adapter)] for adapter in (KEEP, FORGET))

        nothing = torch.zeros_like(weights[KEEP])
        if bool(inputs[SOLO].any()):
            weights[FORGET] = nothing

        def loss(advantages: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
            with self.router(weights=weights):
                given = {**inputs, "advantages": advantages}
                return super(RoutedGRPOTrainer, self).compute_loss(model, given, return_outputs, num_items_in_batch)

        again = self._replayed_loss(model)
        with forget_scaled(self.adapters, 0.0 if inputs[SOLO].any() else 1.0):
            if not bool(inputs[APART].any()):
                return loss(keep, weights) + again
            of_forget = loss(forget, {KEEP: nothing, FORGET: weights[FORGET]})
            return loss(keep, {KEEP: weights[KEEP], FORGET: nothing}) + of_forget - of_forget.detach() + again

    def _replayed_loss(self, model: nn.Module) -> Tensor:
        """Return ``- mean over completions of reward * mean over tokens of log p``, summed over the labels.

        With gradient accumulation, each step has its share of an update's completions.
        """
        rng = np.random.default_rng([self.args.seed, self.state.global_step])
        table, parts, device = self.replay_table, self.args.gradient_accumulation_steps, self.accelerator.device
        part = np.array_split(np.arange(self.replay), parts)[self._step % parts]
        total = torch.zeros((), device=device)
        for label in self.memory.kept:
            drawn = self.memory.draw(label, self.replay, rng, int(self._tokenizer.pad_token_id))
            if drawn is None or not len(part):
                continue
            batch = {name: rows[part].to(device) for name, rows in drawn.items()}
            ids = torch.full((len(part),), table.label_id(label), device=device)
            weights = dict(zip(table.modules, table.weights(ids).unbind(dim=-1), strict=True))
            with (
                self.router(weights=weights),
                forget_scaled(self.adapters, float(bool(weights[FORGET].any()))),
            ):
                log_probs, *_ = self._get_per_token_logps_and_entropies(
                    model, batch["input_ids"], batch["attention_mask"], batch["scored"].shape[1]
                )
            mean = (log_probs * batch["scored"]).sum(dim=1) / batch["scored"].sum(dim=1)
            total = total - (batch["rewards"] * mean).sum() / self.replay
        return total

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[no-untyped-call]
        if self.replay:
            self.memory.save(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")


class _Excluding(TrainerCallback):
    """Keeps the bits of an adapter that no completion of an update teaches, in ``optimizer.step()``."""

    def __init__(self, trainer: RoutedGRPOTrainer) -> None:
        self._trainer = trainer
        self._step: Any = None

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        optimizer = self._trainer.optimizer
        self._step = self._trainer.router.excluded(getattr(optimizer, "optimizer", optimizer))
        self._step.__enter__()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._step.__exit__(None, None, None)


def _plain(model: Any) -> Any:
    """Return the model without the ``forward`` that TRL has put on it. Copies of the model would keep it, with the
    weights of this one."""
    vars(model).pop("forward", None)
    return model


def _advantages(adapter: str) -> str:
    return f"advantages of {adapter}"


def _check(
    args: GRPOConfig,
    adapters: Adapters,
    table: RouteTable,
    shifts: Shifts,
    solo: float,
    replay: int,
    replay_table: RouteTable,
    mode: str,
    baseline: str,
) -> None:
    """Raise ValueError for arguments that do not go with routing."""
    if not isinstance(adapters, Adapters):
        raise ValueError(f"the model must be what add_adapters(model, …) returned, got {type(adapters).__name__}")
    if mode == "forward":
        raise ValueError(
            "in mode 'forward' an excluded adapter is off, so completions would be scored by another model than wrote "
            "them: pass mode='parameter' or 'activation'"
        )
    if args.load_best_model_at_end:
        raise ValueError("transformers cannot load the best of several adapters: set load_best_model_at_end=False")
    if args.use_adaptive_entropy and (baseline == "taught" or shifts):
        raise ValueError(
            "use_adaptive_entropy counts every run of the model as a step: pass baseline='group' and no shifts"
        )
    if solo and int(args.steps_per_generation or 1) < args.gradient_accumulation_steps:
        raise ValueError(
            f"solo={solo} is a share of updates, so an update needs completions of one kind: with "
            f"gradient_accumulation_steps={args.gradient_accumulation_steps}, steps_per_generation must be at least as "
            f"large, got {args.steps_per_generation}"
        )
    if baseline not in get_args(Baseline):
        raise ValueError(f"baseline must be one of {', '.join(get_args(Baseline))}, got {baseline!r}")
    if not isinstance(replay_table, RouteTable):
        raise ValueError(f"replay_table must be a RouteTable, got {replay_table!r}")
    if replay and (unknown := [label for label in replay_table.labels if label not in table.labels]):
        raise ValueError(
            f"replay_table has the label {unknown[0]!r}; the labels of the table are "
            f"{', '.join(map(repr, table.labels))}: pass a replay_table of these"
        )
    for columns in (table.modules, replay_table.modules):
        if set(columns) != {KEEP, FORGET}:
            raise ValueError(
                f"the columns of a table must be {KEEP!r} and {FORGET!r}, got {', '.join(map(repr, columns))}"
            )
    known = (*table.labels, UNLABELLED)
    for label, of in shifts.items():
        if label not in known:
            raise ValueError(f"shifts name the label {label!r}; the labels are {', '.join(map(repr, known))}")
        if other := sorted({*of} - {KEEP, FORGET}):
            raise ValueError(f"shifts name the adapter {other[0]!r}; the adapters are {KEEP!r} and {FORGET!r}")
        if bad := [shift for shift in of.values() if not math.isfinite(shift)]:
            raise ValueError(f"a shift must be a finite number, got {bad[0]!r}")
    if not 0 <= solo <= 1:
        raise ValueError(f"solo must be a share from 0 to 1, got {solo!r}")
    if not isinstance(replay, int) or isinstance(replay, bool) or replay < 0:
        raise ValueError(f"replay must be a number of completions, 0 or more, got {replay!r}")
    if args.gradient_checkpointing:
        raise ValueError(
            "gradient checkpointing runs the model again where the labels are not known any more: set "
            "gradient_checkpointing=False in GRPOConfig"
        )
    if (baseline == "taught" or shifts) and args.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            f"multi_objective_aggregation={args.multi_objective_aggregation!r} has no baseline of its own for each "
            "adapter: pass baseline='group' and no shifts"
        )
