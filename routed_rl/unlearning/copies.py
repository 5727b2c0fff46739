"""Copies of a model for training: in which precision, with which weights trained, and what is returned at the end."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from routed_rl.lm.adapters import add_low_rank, check_plain, check_rank, copy_with, merge_low_rank, sharing_copy
from routed_rl.lm.processes import distribute, make_ready, processes, undivided
from routed_rl.lm.training import Training

if TYPE_CHECKING:
    from peft import PeftModel

HALVES = (torch.bfloat16, torch.float16)


class TrainedCopy:
    """A copy of a model to train: all its weights, or low-rank adapters beside them.

    ::

        trained = TrainedCopy(model, rank=8)
        trained.begin(seed)
        train(trained.distributed, …)
        result = trained.result()

    With a rank, the copy's own weights are the model's tensors, in the precision that they have. The adapters are in
    float32, unless the model is in double precision. They are few, so this costs little.

    Without a rank, weights are trained in the precision that they came in. AdamW's steps on weights in half precision
    are rounded: a step that is smaller than about 1/500 of a weight does nothing. ``master_weights`` avoids this.

    With several processes (:mod:`routed_rl.lm.processes`), all of them make the same copy, train it together, and get
    the whole result.

    Args:
        model: a causal language model. It is not changed.
        rank: of the adapters. None: all weights are trained.
        master_weights: train weights in float32, and round them to the precision that they came in at the end.
        gradient_checkpointing: keep only the input of each block for the backward pass, and compute the rest again.
        changed: whether the copy's own weights are changed before training, so that they must not be shared.
        shard: with several processes, whether each has only a part of the copy from :meth:`begin` to :meth:`result`.

    Raises:
        ValueError: for a rank below 1, a model with adapters if there is a rank, or a model that cannot compute its
            blocks again.
    """

    def __init__(
        self,
        model: nn.Module,
        rank: int | None = None,
        *,
        master_weights: bool = False,
        gradient_checkpointing: bool = False,
        changed: bool = False,
        shard: bool = False,
    ) -> None:
        if rank is not None:
            check_rank(rank)
            check_plain(model)
        self.rank = rank
        self._shard = shard and processes() > 1
        self._adapted: PeftModel | None = None
        self._dtypes = {name: tensor.dtype for name, tensor in _tensors(model)}
        self._half = {dtype for dtype in self._dtypes.values() if dtype in HALVES}
        self._master = master_weights and rank is None
        self.model = copy.deepcopy(model) if changed or rank is None else sharing_copy(model)
        self.model.requires_grad_(True)
        if self._master and self._half:
            self.model.float()
        self._checkpointing = gradient_checkpointing and not any(
            getattr(module, "gradient_checkpointing", False) for module in model.modules()
        )
        if self._checkpointing:
            _switch_checkpointing(self.model, True)

    def begin(self, seed: int) -> nn.Module:
        """Add the adapters, if there is a rank, to the linear layers that are trained, and distribute the model.

        Returns:
            :attr:`model`, or that model as PEFT wraps it, for measurements. With ``shard``, all processes must call it
            at the same time. ``self.distributed`` is for :func:`~routed_rl.lm.train`.
        """
        if self.rank is not None:
            self._adapted = add_low_rank(self.model, self.rank, seed)
        tuned = self.model if self._adapted is None else self._adapted
        if self._shard:
            self._empty = copy_with(tuned, lambda _, own: nn.Parameter(own.detach().to("meta"), own.requires_grad))
        self.distributed = distribute(self.model, self._shard)
        return tuned

    def training(self, training: Training) -> Training:
        """Return training settings: with float32 weights of a bfloat16 model, matrix products are in bfloat16."""
        return replace(training, precision="bf16") if self._master and torch.bfloat16 in self._half else training

    def warn(self, learning_rate: float, stacklevel: int = 3) -> None:
        """Warn if most weights are in half precision and too large to be moved by a step of this learning rate.

        The distance between numbers of the format is at least ``eps / 2`` of a number. A step of less than half of
        this distance is rounded away. AdamW's steps are about as large as the learning rate.
        """
        if self.rank is not None or self._master or not self._half:
            return
        counts = [
            (int((own.detach().abs() * (torch.finfo(own.dtype).eps / 4) > learning_rate).sum()), own.numel())
            for own in self.model.parameters()
        ]
        share = sum(stuck for stuck, _ in counts) / sum(size for _, size in counts)
        if share > 0.5:
            dtype = str(next(iter(self._half))).removeprefix("torch.")
            warnings.warn(
                f"the weights are in {dtype}, and {share:.0%} of them are too large to be moved by steps of the "
                f"learning rate {learning_rate:g}: set master_weights=True or a rank, or raise the learning rate",
                stacklevel=stacklevel,
            )

    def result(self, merge: bool = True) -> Any:
        """Return the trained model, in the precision that the model came in and in evaluation mode.

        Args:
            merge: with a rank, whether adapters are merged into weights of the copy's own. False: the model as PEFT
                wraps it, whose own weights are still shared.
        """
        if self._shard:
            self._collect()
        if self._checkpointing:
            _switch_checkpointing(self.model, False)
        if self._adapted is not None and not merge:
            return self._adapted.eval()
        if self._adapted is not None:
            self.model = merge_low_rank(self._adapted)
        for name, tensor in _tensors(self.model):
            tensor.data = tensor.data.to(self._dtypes[name])
        return self.model.requires_grad_(True).eval()

    def _collect(self) -> None:
        """Put a model with whole weights in the place of the one that is spread over the processes."""
        make_ready(self.distributed)  # else some parameters would share the memory of parts that are whole for a while
        tuned = self.model if self._adapted is None else self._adapted
        parts = dict(tuned.named_parameters())
        whole = copy_with(
            self._empty, lambda name, own: nn.Parameter(undivided(parts[name].detach()), own.requires_grad)
        )
        if self._adapted is None:
            self.model = whole
        else:
            self.model, self._adapted = whole.get_base_model(), whole
        self.distributed = self.model


@contextmanager
def kept(model: nn.Module) -> Iterator[nn.Module]:
    """Keep a model frozen and in evaluation mode within the block, as a reference or teacher, and then as it was."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    model.requires_grad_(False).eval()
    try:
        yield model
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Give the floating-point parameters and buffers of a model by name."""
    for named in (model.named_parameters(), model.named_buffers()):
        yield from ((name, tensor) for name, tensor in named if tensor.is_floating_point())


def new_like(model: nn.Module, seed: int) -> nn.Module:
    """Return a model of the same class and configuration with new weights, on the same device and of the same dtype."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = type(model)(model.config)
    first = next(model.parameters())
    return made.to(first.device, first.dtype)


def _switch_checkpointing(model: Any, on: bool) -> None:
    """Make a model of transformers compute its blocks again in the backward pass, or no longer.

    Raises:
        ValueError: for a model that cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ValueError(f"{type(model).__name__} has no gradient checkpointing: leave out gradient_checkpointing")
    # transformers 5.23 has new names for the old ones.
    names = ("activation_checkpointing_{}", "gradient_checkpointing_{}")
    switch = next(
        found
        for name in names
        if (found := getattr(model, name.format("enable" if on else "disable"), None)) is not None
    )
    # The reentrant variant needs an input that requires gradients, which frozen embeddings do not give.
    switch({"use_reentrant": False}) if on else switch()
