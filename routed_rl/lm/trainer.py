"""Routing inside ``transformers.Trainer`` and trainers made from it, such as TRL's ``SFTTrainer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, Trainer, default_data_collator

from routed_rl.lm.collating import ROUTE, RouteCollator, pad_rows, routed_batch
from routed_rl.lm.training import Objective


class RoutedTrainerMixin:
    """Makes a trainer learn from one of our losses, with the labels in the column ``route`` of its dataset.

    Put it before the trainer, and train within the router, if there is one::

        class RoutedSFTTrainer(RoutedTrainerMixin, SFTTrainer): ...

        trainer = RoutedSFTTrainer(model, arguments, objective=objective, train_dataset=dataset)
        with router:
            trainer.train()

    A row has ``input_ids`` and ``route``: 0 for forget, -1 for all others, one label for the row or one for each token.
    It may have ``labels``, -100 where a token is no target. Without them, all tokens but the first are targets. With
    ``position_ids``, each 0 begins a document that does not see the others.

    The trainer's data collator pads the rows, or ours if none is given. The loss is divided by the number of targets of
    the whole step: all accumulated parts, on all processes. The evaluation loss is computed in the same way.

    Args:
        objective: the loss, a sum over targets, such as :class:`EraObjective` or :class:`SteeringObjective`. Where a
            loss is a mean over a batch, as those of suppressors, it is a mean over each accumulated part.
        *args, **kwargs: those of the trainer.

    Raises:
        ValueError: for arguments that ask for another loss, or that routing cannot work with. In training, as
            :class:`RouteCollator` and :func:`routed_batch`.
    """

    args: Any
    model: Any
    accelerator: Any
    data_collator: Any
    compute_loss_func: Any
    model_accepts_loss_kwargs: bool
    _signature_columns: list[str] | None

    def __init__(self, *args: Any, objective: Objective, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective = objective
        self._check()
        collate = self.data_collator
        if collate is default_data_collator or type(collate) is DataCollatorWithPadding:
            collate = pad_rows  # those do not pad labels
        self.data_collator = RouteCollator(collate, self._eos())
        # So the trainer counts the targets of a step, whether or not the model's own loss could use their number.
        self.model_accepts_loss_kwargs = True
        self._outputs_wanted = True

    def _check(self) -> None:
        if self.compute_loss_func is not None or self.args.label_smoothing_factor:
            raise ValueError("the objective is the loss: leave out compute_loss_func, loss_type and label smoothing")
        if self.args.n_gpu > 1:
            raise ValueError(
                f"routing needs a process for each of the {self.args.n_gpu} GPUs: start with torchrun or accelerate "
                "launch, or let CUDA_VISIBLE_DEVICES name one GPU"
            )
        checkpointing = self.args.gradient_checkpointing  # transformers 5 gives it the value of the newer name
        if checkpointing and getattr(self.objective, "router", None) is not None:
            raise ValueError(
                "activation checkpointing runs the model again where the labels are not known any more: set "
                "activation_checkpointing=False (gradient_checkpointing in older versions and in TRL)"
            )

    def _eos(self) -> tuple[int, ...]:
        """Return the ids of EOS: those of the tokenizer, if the trainer has one, and of the model."""
        of = (getattr(self, "processing_class", None), getattr(self.model, "config", None))
        ids = [getattr(one, "eos_token_id", None) for one in of]
        listed = [one if isinstance(one, list) else [one] for one in ids]
        return tuple({id for one in listed for id in one if id is not None})

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the column with the labels too, where the trainer removes the columns that the model does not take."""
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if self._signature_columns is not None and ROUTE not in self._signature_columns:
            self._signature_columns.append(ROUTE)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the objective's loss on a part of a step's batch, as its share of a mean over the step's targets.

        The outputs are those of the model without labels.
        """
        batch = routed_batch(inputs)
        loss = self.objective(model, batch)
        if num_items_in_batch is None:
            loss = loss / batch.scored.sum().clamp_min(1)
        else:
            # Gradients are averaged over processes, so where targets are counted over all processes, the loss is
            # multiplied by their number.
            averaged = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss * averaged / torch.as_tensor(num_items_in_batch).clamp_min(1)
        if not return_outputs:
            return loss
        if not self._outputs_wanted:
            return loss, {}
        names = ("input_ids", "attention_mask", "position_ids")
        with torch.no_grad():
            return loss, model(**{name: inputs[name] for name in names if name in inputs}, use_cache=False)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """Do the trainer's own step. The model runs a second time only if its outputs are wanted."""
        self._outputs_wanted = not prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._outputs_wanted = True


class RoutedTrainer(RoutedTrainerMixin, Trainer):
    """``transformers.Trainer`` with one of our losses. :class:`RoutedTrainerMixin` says what its rows contain."""
