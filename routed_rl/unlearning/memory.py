"""How much memory a stage of unlearning needs, computed without doing it.

The peak of a stage is::

    weights + original + optimizer + largest of a step (gradients + activations + logits)

The first three follow from the number of parameters. The last is found by a dry run: the stage's own code does one step
on tensors without data (torch's ``FakeTensorMode``), and each tensor's bytes are counted from its creation to its end.
So the numbers hold for every architecture of transformers and every suppression method, and nothing large is made.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedConfig

from routed_rl.lm.batches import ALTERNATIVE_LABEL, FORGET_LABEL, NO_LABEL, TOKENS_AT_ONCE, Batch
from routed_rl.lm.losses import next_token_loss, token_losses
from routed_rl.lm.training import Gradient, Objective, Training, backward
from routed_rl.unlearning.copies import TrainedCopy
from routed_rl.unlearning.distillation import DistillationObjective
from routed_rl.unlearning.methods import Method, made_method

Stage = Literal["suppress", "distil", "attack"]
Kind = Literal["activations", "logits"]
DISPATCHED = torch.ops.aten


@dataclass(frozen=True)
class Memory:
    """The bytes that are in use when a stage needs most, by part.

    >>> Memory(weights=8, original=8, optimizer=16, gradients=8, activations=20, logits=4).total
    64
    """

    weights: int
    """of the copy that is trained, without tensors that it shares with the model that was passed in; with adapters"""
    original: int
    """the model that was passed in: the reference, the teacher, or what is attacked"""
    optimizer: int
    """AdamW's two moments of each parameter that is trained"""
    gradients: int
    """of parameters, at the moment of the peak"""
    activations: int
    """other tensors of the step at that moment: what the backward pass needs, and intermediate results"""
    logits: int
    """tensors with a number for each token of the vocabulary at each position, at that moment"""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def memory(
    model: nn.Module | PreTrainedConfig,
    stage: Stage,
    method: Method = "npo",
    *,
    rank: int | None = None,
    master_weights: bool | None = None,
    gradient_checkpointing: bool = False,
    accumulate: int = 1,
    batch_size: int = 16,
    length: int = 256,
    dtype: torch.dtype | None = None,
    measured: int | None = None,
) -> Memory:
    """Return the peak memory of :func:`unlearn`, :func:`undo` or :func:`attack`: tensors of one process.

    The memory of Python, of libraries and of the data is not counted, nor what an allocator wastes. Attention is that
    of torch's fused kernels, if the model uses them. All targets count in losses. Distillation of a model that changes
    its logits after the last layer (Cohere and Granite scale them) needs all logits at once, which is not seen here.

    >>> config = AutoConfig.from_pretrained("my-model")  # doctest: +SKIP
    >>> memory(config, "attack", rank=8, dtype=torch.bfloat16).total / 2**30  # doctest: +SKIP

    Args:
        model: a model, also on the device "meta", or the configuration of one. Only shapes and dtypes are read.
        stage: "suppress" for :func:`unlearn`, "distil" for :func:`undo`, "attack" for :func:`attack`.
        method: as for :func:`unlearn`. Only for "suppress".
        rank, master_weights, gradient_checkpointing, accumulate, batch_size: as for the stage's function, with its
            default of ``master_weights`` if None.
        length: tokens in a row, all rows being full.
        dtype: of the model's weights. None: as they are; for a configuration float32.
        measured: tokens of the longest document on which losses are measured between steps, at most 2,048. None:
            ``length``. "suppress" measures nothing.

    Raises:
        ValueError: for an unknown stage or method, or as the stage's function.
    """
    if stage not in get_args(Stage):
        raise ValueError(f"stage must be one of {', '.join(get_args(Stage))}, got {stage!r}")
    suppressor, _ = made_method(method)
    if master_weights is None:
        master_weights = stage == "attack"
    kinds = 1 if stage != "suppress" else 2 if suppressor.alternatives is None else 3
    rows, left = divmod(kinds * batch_size, accumulate)
    if left or not rows:
        raise ValueError(f"a batch of {batch_size} rows of each set cannot be shared evenly by {accumulate} parts")
    parts = min(accumulate, 2)  # the second one needs most, because gradients are there already
    model = _outlined(model, dtype)
    tracked = Tracker(model.get_input_embeddings().weight.shape[0], rows // max(kinds, 2))  # type: ignore[operator]
    with torch.random.fork_rng(devices=[]), tracked:
        options = {"master_weights": master_weights, "gradient_checkpointing": gradient_checkpointing}
        copied = TrainedCopy(model.requires_grad_(False).eval(), rank, **options, changed=stage == "distil")
        own = copied.model
        gradient: Gradient = lambda trained, compute: compute()  # noqa: E731
        objective: Objective = next_token_loss
        if stage == "suppress":
            # No batches: their losses would be computed before training. The dry run needs none of these numbers.
            objective, gradient = suppressor.objective(own, 0, original=model, batches=()), suppressor.gradient
        elif stage == "distil":
            objective = DistillationObjective(model)
            objective.expect_heads(own, model)
        copied.begin(0)
        if gradient_checkpointing:
            _without_random_state(own)
        with FakeTensorMode(allow_non_fake_inputs=True):
            _move_to_fake(model, own)
            tracked.exclude(model)
            tracked.exclude(own)
            trained = [parameter for parameter in own.parameters() if parameter.requires_grad]
            batch, training = _batch(parts * rows, length, kinds == 3), copied.training(Training(accumulate=parts))
            own.train()
            with tracked.counting():
                gradient(own, lambda: backward(own, batch, training, objective, 0))
            largest = tracked.largest([parameter.grad for parameter in trained if parameter.grad is not None])
            if stage != "suppress":
                tokens = measured or length
                own.zero_grad()
                with torch.no_grad(), tracked.counting():
                    token_losses(own.eval(), _batch(max(1, TOKENS_AT_ONCE // tokens), tokens))
                largest = max(largest, tracked.largest([]), key=lambda parts: sum(parts.values()))
    shared = {_storage(tensor) for tensor in _all_tensors(model)}
    return Memory(
        weights=_bytes(own, shared),
        original=_bytes(model),
        optimizer=sum(2 * parameter.nbytes + 4 for parameter in trained),
        **largest,
    )


# --- the dry run ---------------------------------------------------------------------------------


class Tracker(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make within :meth:`counting`, from their creation to their end.

    For tensors without data it also answers what depends on data: all targets are scored, half of the rows are forget
    rows, a truth value is False, and any other number is ``number``.
    """

    def __init__(self, vocabulary: int, number: int) -> None:
        super().__init__()
        self._vocabulary, self._number = vocabulary, max(number, 1)
        self._alive: dict[int, int] = {}
        self._events: list[tuple[int, int, Kind]] = []
        self._on = False
        self._serial = itertools.count()

    def exclude(self, module: nn.Module) -> None:
        """Do not count a module's parameters and buffers."""
        for tensor in _all_tensors(module):
            self._know(tensor.untyped_storage(), 0, "activations")

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within the block, from nothing."""
        self._events.clear()
        self._on = True
        try:
            with _Stand():
                yield
        finally:
            self._on = False

    def largest(self, gradients: list[Tensor]) -> dict[str, int]:
        """Return bytes by part at the moment of the peak. ``gradients`` are counted as a part of their own."""
        own = {self._alive.get(_storage(tensor)) for tensor in gradients}
        parts = {"gradients": 0, "activations": 0, "logits": 0}
        peak, best = 0, dict(parts)
        for serial, size, kind in self._events:
            parts["gradients" if serial in own else kind] += size
            if sum(parts.values()) > peak:
                peak, best = sum(parts.values()), dict(parts)
        return best

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = self._of_data(func, args, kwargs or {})
        if found is None:
            found = func(*args, **(kwargs or {}))
        if self._on:
            for tensor in found if isinstance(found, tuple | list) else (found,):
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    in_logits = tensor.dim() > 1 and tensor.shape[-1] == self._vocabulary
                    self._know(storage, storage.nbytes(), "logits" if in_logits else "activations")
        return found

    def _know(self, storage: Any, size: int, kind: Kind) -> None:
        key = storage._cdata
        if key not in self._alive:
            serial = self._alive[key] = next(self._serial)
            if size:
                self._events.append((serial, size, kind))
            weakref.finalize(storage, self._end, key, serial, size, kind).atexit = False

    def _end(self, key: int, serial: int, size: int, kind: Kind) -> None:
        del self._alive[key]
        if size:
            self._events.append((serial, -size, kind))

    def _of_data(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what an operation on fake tensors gives, if it depends on data; else None."""
        if func is DISPATCHED._local_scalar_dense.default:
            kind = args[0].dtype
            return False if kind == torch.bool else float(self._number) if kind.is_floating_point else self._number
        if func is DISPATCHED.index.Tensor and (mask := args[1][0]) is not None and mask.dtype == torch.bool:
            chosen = mask.shape[0] // 2 if mask.dim() == 1 else mask.numel()
            return args[0].new_empty((chosen, *args[0].shape[mask.dim() :]))
        if func is DISPATCHED.index_put.default and (mask := args[1][0]) is not None and mask.dtype == torch.bool:
            return torch.empty_like(args[0])
        if func is DISPATCHED._grouped_mm.default:  # torch knows its shapes for bfloat16 alone
            a, b = args[:2]
            groups = (len(kwargs["offs"] if "offs" in kwargs else args[2]),) if a.dim() == b.dim() == 2 else ()
            return a.new_empty((*groups, a.shape[-2], b.shape[-1]))
        return None


class _Stand(TorchFunctionMode):
    """Stands in for functions that cannot work on tensors without data.

    Attention keeps what torch's fused kernels keep: inputs, output and a sum for each query. A tensor's array is zeros.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.numpy:
            return np.zeros(args[0].shape, np.int64)
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v, *_ = args
        if kwargs.pop("enable_gqa", False):
            k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], 1) for tensor in (k, v))
        mask = kwargs.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:
            mask = mask.to(q.dtype)
        causal = bool(kwargs.get("is_causal", False)) and mask is None
        return DISPATCHED._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=mask, scale=kwargs.get("scale")
        )[0]


def _outlined(model: nn.Module | PreTrainedConfig, dtype: torch.dtype | None) -> nn.Module:
    """Return a model on the device "meta": of a configuration, or a copy of a model."""
    if isinstance(model, PreTrainedConfig):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model, dtype=dtype or torch.float32)
    known: dict[int, Any] = {}
    for tensor in _all_tensors(model):
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        empty = torch.empty(tensor.shape, dtype=kind, device="meta")
        known[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, known)


def _move_to_fake(*models: nn.Module) -> None:
    """Put tensors that seem to be on the CPU in the places of models' tensors on the device "meta".

    Tensors that share their memory share it again. Call it within a FakeTensorMode.
    """
    storages: dict[int, Tensor] = {}
    known: dict[int, Tensor] = {}
    for module in (module for model in models for module in model.modules()):
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in known:
                    empty = storages.setdefault(_storage(tensor), torch.empty(tensor.shape, dtype=tensor.dtype))
                    is_parameter = isinstance(tensor, nn.Parameter)
                    known[id(tensor)] = nn.Parameter(empty.detach(), tensor.requires_grad) if is_parameter else empty
                tensors[name] = known[id(tensor)]


def _without_random_state(model: nn.Module) -> None:
    """Let checkpointing not save the state of the random numbers, which cannot be read here."""
    for module in model.modules():
        if (wrapped := vars(module).get("_gradient_checkpointing_func")) is not None:
            wrapped.keywords["preserve_rng_state"] = False


def _batch(rows: int, length: int, paired: bool = False) -> Batch:
    """Return a batch of full rows, in turn labelled "forget", as an alternative if paired, and not at all."""
    tokens = torch.zeros((rows, length), dtype=torch.int64)
    labels = torch.full_like(tokens, NO_LABEL)
    labels[:: 3 if paired else 2] = FORGET_LABEL
    if paired:
        labels[1::3] = ALTERNATIVE_LABEL
    return Batch(tokens, labels, torch.ones((rows, length - 1), dtype=torch.bool), packed=True)


def _all_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(module: nn.Module, without: set[int] = frozenset()) -> int:  # type: ignore[assignment]
    """Return the bytes of a module's parameters and buffers, each storage once."""
    storages = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in _all_tensors(module)}
    return sum(size for key, size in storages.items() if key not in without)
