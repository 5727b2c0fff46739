"""The training loop: resumes exactly, on one process or on many.

Stock trainers pickle their checkpoints and do not resume exactly, so this loop is our own. Under ``torchrun`` the same
call trains on all processes, with the model that :func:`~routed_rl.lm.processes.distribute` returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import next_token_loss
from routed_rl.lm.processes import exchanging, gather, make_ready, processes, rank, spread, undistributed, undivided
from routed_rl.lm.training_log import TrainingLog
from routed_rl.runs import RunDirectory, derive_seed

Objective = Callable[[nn.Module, Batch], Tensor]
"""A function that returns the sum of a batch's losses over its scored targets. It may have an attribute ``state``:
tensors by name, which it changes in place during training. Checkpoints save them."""
Gradient = Callable[[nn.Module, Callable[[], Tensor]], Tensor]
"""A function that leaves a step's gradient in the parameters and returns the loss. Its second argument is a function
that does so at the current weights."""
LOG_EVERY, CHECKPOINT_EVERY = 10, 10
"""Steps between rows of metrics; rows between checkpoints."""


class Source(Protocol):
    """Where batches come from: :class:`~routed_rl.lm.Batches`, or any object that makes a batch for a step."""

    def batch(self, step: int) -> Batch: ...


@dataclass(frozen=True)
class Training:
    """Training settings: AdamW with warm-up and cosine decay. The defaults are gradient routing's small protocol."""

    steps: int = 1000
    """gradient steps"""
    learning_rate: float = 2e-3
    """highest learning rate"""
    warmup: int = 50
    """steps of warm-up"""
    final: float = 0.1
    """learning rate at the end, as a share of the highest"""
    betas: tuple[float, float] = (0.9, 0.95)
    """betas of AdamW"""
    weight_decay: float = 0.1
    """weight decay of AdamW, on every parameter"""
    clip: float | None = 1.0
    """largest norm of the gradient; None: no limit"""
    accumulate: int = 1
    """parts in which a batch is computed, to save memory"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of the matrix products; weights are float32"""

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(model: nn.Module, training: Training) -> Optimizer:
    """Return AdamW over the parameters that require gradients."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return AdamW(parameters, training.learning_rate, training.betas, weight_decay=training.weight_decay, fused=True)


def train(
    model: nn.Module,
    source: Source,
    training: Training,
    objective: Objective = next_token_loss,
    *,
    seed: int = 0,
    gradient: Gradient = lambda model, compute: compute(),
    run: RunDirectory | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    stop: Callable[[int], bool] = lambda done: False,
) -> int:
    """Train a model, in place, and return how many steps are done.

    With a run directory, training resumes from the last checkpoint, to the same bytes. With another number of processes
    it resumes to the same numbers within rounding.

    A step's batch, dropout and learning rate depend only on the seed and the step's number. Losses are sums, divided by
    the number of scored targets in the whole batch, on all processes.

    Args:
        model: as :func:`distribute` returns it.
        source: the same on every process. Each process computes its share of a batch's rows.
        training: the settings.
        objective: the loss of a batch or of a part of a batch.
        gradient: computes a step's gradient. Default: the gradient of the loss at the current weights.
        run: on the first process only. None: nothing is saved or logged.
        on_step: called after every step with its number.
        stop: whether to end after this many steps; called at the start and after each step. It must give the same
            answer on all processes. If the answer depends only on the model, a resumed run ends at the same step.

    Raises:
        FloatingPointError: if the loss or its gradient is no longer a finite number. The last checkpoint stays.
        ValueError: if a batch's rows cannot be shared evenly, or the model is not distributed over the processes.
    """
    make_ready(model)
    optimizer = make_optimizer(model, training)
    start = _load(model, optimizer, objective, run)
    model.train()
    done, ended = start, stop(start)
    with closing(TrainingLog(model, training.precision, run, start)) as log:
        for step in range(start, training.steps):
            if ended:
                break
            for group in optimizer.param_groups:
                group["lr"] = training.rate(step)
            whole = source.batch(step)
            chance = derive_seed(seed, "step", step, rank())
            log.loss += gradient(model, partial(backward, model, whole, training, objective, chance))
            norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf if training.clip is None else training.clip)
            optimizer.step()
            optimizer.zero_grad()
            on_step(step)
            log.count(whole)
            done = step + 1
            ended = stop(done) or done == training.steps
            if done % LOG_EVERY == 0 or ended:
                log.row(done, training.rate(step), undivided(norm))
                if done % (LOG_EVERY * CHECKPOINT_EVERY) == 0 or ended:
                    _save(model, optimizer, objective, run, done)
    return done


def backward(model: nn.Module, whole: Batch, training: Training, objective: Objective, seed: int) -> Tensor:
    """Add the gradient of a batch's loss to the model's.

    Return this process's share of the loss, times the number of processes.
    """
    torch.manual_seed(seed)
    device, count = next(model.parameters()).device, max(int(whole.scored.sum()), 1)
    total = torch.zeros((), device=device)
    for part, last in _parts(whole, training.accumulate):
        with exchanging(model, last):
            with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                # Gradients are averaged over processes, so each loss is multiplied by the number of processes.
                loss = objective(model, part.to(device)) * (processes() / count)
            loss.backward()
        total += loss.detach()
    return total


def _parts(whole: Batch, accumulate: int) -> Iterator[tuple[Batch, bool]]:
    """Yield this process's share of a batch, in parts, and whether each part is the last."""
    share, left = divmod(len(whole), processes() * accumulate)
    if left:
        raise ValueError(
            f"a batch of {len(whole)} rows cannot be shared evenly by {processes()} processes, in {accumulate} parts"
        )
    for i in range(accumulate):
        begin = (rank() * accumulate + i) * share
        yield whole.rows(slice(begin, begin + share)), i + 1 == accumulate


# --- checkpoints --------------------------------------------------------------------------------


def _state(model: nn.Module, optimizer: Optimizer, objective: Objective) -> dict[str, Tensor]:
    """Return all that training changes, by name. Missing moments are created with the values that AdamW starts with."""
    inner = undistributed(model)
    state = {f"model.{name}": tensor for name, tensor in inner.state_dict().items()}
    for name, parameter in inner.named_parameters():
        if parameter.requires_grad:
            moments = optimizer.state[parameter]
            if not moments:
                moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments |= {part: torch.zeros_like(parameter) for part in ("exp_avg", "exp_avg_sq")}
            state |= {f"optimizer.{part}.{name}": tensor for part, tensor in moments.items()}
    return state | {f"objective.{name}": tensor for name, tensor in getattr(objective, "state", {}).items()}


def _save(model: nn.Module, optimizer: Optimizer, objective: Objective, run: RunDirectory | None, step: int) -> None:
    """Write all that training depends on, except seed and step, into the first process's run."""
    if run is None and processes() == 1:
        return
    tensors = gather(_state(model, optimizer, objective))
    if run is not None:
        run.save_checkpoint(step, tensors, {})


@torch.no_grad()
def _load(model: nn.Module, optimizer: Optimizer, objective: Objective, run: RunDirectory | None) -> int:
    """Load the last checkpoint into model, optimizer and objective, on every process, and return its step.

    The step is 0 if there is no checkpoint.
    """
    checkpoint = None if run is None else run.load_checkpoint()
    step = torch.tensor(0 if checkpoint is None else checkpoint.step, device=next(model.parameters()).device)
    if processes() > 1:
        dist.broadcast(step, 0)
    if not step:
        return 0
    for name, tensor in _state(model, optimizer, objective).items():
        spread(None if checkpoint is None else checkpoint.tensors[name], tensor)
    return int(step)
