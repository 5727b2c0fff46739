"""The training loop: step-indexed, resumable to the bit, on one process or on many.

Stock trainers pickle their checkpoints and do not continue exactly, so this one is our own. Under ``torchrun`` the same
call trains on all processes: replicas (DDP), or with the model's parts spread over them (``fully_shard``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import next_token_loss
from routed_rl.lm.models import blocks
from routed_rl.runs import RunDirectory, derive_seed

Objective = Callable[[nn.Module, Batch], Tensor]
"""The sum of a batch's losses over its scored targets."""
LOG_EVERY, CHECKPOINT_EVERY = 10, 10
"""Steps between rows of metrics; rows between checkpoints."""


class Source(Protocol):
    """Where batches come from: :class:`~routed_rl.lm.Batches`, or whatever makes one from a step's number."""

    def batch(self, step: int) -> Batch: ...


@dataclass(frozen=True)
class Training:
    """How a model is trained: AdamW with warm-up and cosine decay. Defaults: gradient routing's small protocol."""

    steps: int = 1000
    """gradient steps"""
    learning_rate: float = 2e-3
    """at its highest"""
    warmup: int = 50
    """steps until there"""
    final: float = 0.1
    """share of it at the end"""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's"""
    weight_decay: float = 0.1
    """AdamW's, on every parameter"""
    clip: float | None = 1.0
    """largest norm of the gradient; None: any"""
    accumulate: int = 1
    """parts in which a batch is computed, to save memory"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of the matrix products; weights are float32"""

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(model: nn.Module, training: Training) -> Optimizer:
    """AdamW over what in the model is trained."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return AdamW(parameters, training.learning_rate, training.betas, weight_decay=training.weight_decay, fused=True)


def rank() -> int:
    """The number of this process, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def distribute(model: nn.Module, shard: bool = False) -> nn.Module:
    """The model as it is trained on all processes: itself, a replica, or with its parts spread over them. It must have
    its units and adapters by then; a router may be attached before or after."""
    if shard:
        for name in blocks(model):
            fully_shard(model.get_submodule(name))
        fully_shard(model)
        return model
    if processes() == 1:
        return model
    return DistributedDataParallel(model)


def train(
    model: nn.Module,
    source: Source,
    training: Training,
    objective: Objective = next_token_loss,
    *,
    seed: int = 0,
    run: RunDirectory | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train a model, in place; with a run directory it goes on from its last checkpoint, to the same bytes.

    What a step does depends on the seed and its number alone: its batch, its dropout, its learning rate. Losses are
    sums, divided by how many targets the whole batch has on all processes.

    Args:
        model: as :func:`distribute` gives it.
        source: the same on every process; each computes its share of a batch's rows.
        objective: of a part of a batch.
        run: on the first process alone; None: nothing is saved or logged.
        on_step: called after every step with its number.

    Raises:
        FloatingPointError: if the loss is no longer a number; steps so far are saved.
        ValueError: if a batch's rows cannot be shared evenly.
    """
    optimizer = make_optimizer(model, training)
    device = next(model.parameters()).device
    start = _load(model, optimizer, run)
    log = _Log(run, start, device)
    model.train()
    for step in range(start, training.steps):
        torch.manual_seed(derive_seed(seed, "step", step, rank()))
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step)
        whole = source.batch(step)
        count = int(whole.scored.sum())
        loss = torch.zeros((), device=device)
        for part, last in _parts(whole, training.accumulate):
            with _precision(device, training.precision), _synchronised(model, last):
                # Every process's gradients are averaged, so each counts as many times as there are processes.
                share = objective(model, part.to(device)) * (processes() / count)
            share.backward()
            loss += share.detach()
        norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf if training.clip is None else training.clip)
        optimizer.step()
        optimizer.zero_grad()
        on_step(step)
        log.add(loss, count)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == training.steps:
            log.row(step + 1, training.rate(step), norm)
            if (step + 1) % (LOG_EVERY * CHECKPOINT_EVERY) == 0 or step + 1 == training.steps:
                _save(model, optimizer, run, step + 1)
    log.close()


def _parts(whole: Batch, accumulate: int) -> Iterator[tuple[Batch, bool]]:
    """This process's share of a batch, in parts, and whether each is the last."""
    share, left = divmod(len(whole), processes() * accumulate)
    if left:
        raise ValueError(
            f"a batch of {len(whole)} rows cannot be shared evenly by {processes()} processes, in {accumulate} parts"
        )
    for i in range(accumulate):
        begin = (rank() * accumulate + i) * share
        yield whole.rows(slice(begin, begin + share)), i + 1 == accumulate


def _precision(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def _synchronised(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients are exchanged with the last part of a batch alone."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    yield


# --- checkpoints --------------------------------------------------------------------------------

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def _save(model: nn.Module, optimizer: Optimizer, run: RunDirectory | None, step: int) -> None:
    """Gather all that training depends on, but for seed and step, on the first process, and write it there."""
    if run is None and processes() == 1:
        return
    weights, state = get_state_dict(model, optimizer, options=_WHOLE)
    if run is not None:
        moments = {f"optimizer.{part}.{name}": t for name, entry in state["state"].items() for part, t in entry.items()}
        run.save_checkpoint(step, {f"model.{name}": tensor for name, tensor in weights.items()} | moments, {})


def _load(model: nn.Module, optimizer: Optimizer, run: RunDirectory | None) -> int:
    """Put the last checkpoint's state into model and optimizer, on every process; the step it is of, 0 without one."""
    checkpoint = None if run is None else run.load_checkpoint()
    step = torch.tensor(-1 if checkpoint is None else checkpoint.step)
    if processes() > 1:
        dist.broadcast(step, 0)
    if step < 0:
        return 0
    weights, state = get_state_dict(model, optimizer, options=_WHOLE)
    tensors = _from_first({} if checkpoint is None else checkpoint.tensors)
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    state["state"] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, part, parameter = name.split(".", 2)
            state["state"].setdefault(parameter, {})[part] = tensor
    state["param_groups"] = [{**group, "params": list(state["state"])} for group in optimizer.param_groups]
    set_state_dict(
        model,
        optimizer,
        model_state_dict=weights,
        optim_state_dict=state,
        options=StateDictOptions(full_state_dict=True),
    )
    return int(step)


def _from_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first process's tensors, on every one."""
    if processes() == 1:
        return tensors
    known: list[Any] = [[(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]]
    dist.broadcast_object_list(known, 0)
    received = {}
    for name, shape, dtype in known[0]:
        received[name] = tensors[name] if rank() == 0 else torch.empty(shape, dtype=dtype)
        dist.broadcast(received[name], 0)
    return received


class _Log:
    """Rows of metrics and timings, in CSV and for TensorBoard."""

    def __init__(self, run: RunDirectory | None, start: int, device: torch.device) -> None:
        self._run, self._loss, self._targets, self._steps = run, torch.zeros((), device=device), 0, 0
        self._since = time.perf_counter()
        self._board = None
        if run is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run.path / "tensorboard"), purge_step=start)

    def add(self, loss: Tensor, count: int) -> None:
        self._loss += loss
        self._targets += count
        self._steps += 1

    def row(self, step: int, rate: float, norm: Tensor) -> None:
        """Log the steps since the last row.

        Raises:
            FloatingPointError: if their loss is no number.
        """
        if processes() > 1:
            dist.all_reduce(self._loss)
        loss = float(self._loss) / processes() / self._steps
        seconds = time.perf_counter() - self._since
        if self._run is not None and self._board is not None:
            self._run.metrics.append({"step": step, "loss": loss, "learning_rate": rate, "gradient_norm": float(norm)})
            self._run.timings.append({"step": step, "seconds": seconds, "targets_per_second": self._targets / seconds})
            self._board.add_scalar("train/loss", loss, step)
            self._board.add_scalar("train/learning_rate", rate, step)
            self._board.add_scalar("time/targets_per_second", self._targets / seconds, step)
        self._loss.zero_()
        self._targets, self._steps, self._since = 0, 0, time.perf_counter()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} by step {step}; lower the learning rate")

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
