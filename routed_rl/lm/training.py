"""The training loop: step-indexed, resumable to the bit, on one process or on many.

Stock trainers pickle their checkpoints and do not continue exactly, so this one is our own. Under ``torchrun`` the same
call trains on all processes, as :func:`~routed_rl.lm.processes.distribute` has laid out the model.
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
from routed_rl.lm.processes import exchanging, gather, processes, rank, spread, undistributed, undivided
from routed_rl.lm.training_log import TrainingLog
from routed_rl.runs import RunDirectory, derive_seed

Objective = Callable[[nn.Module, Batch], Tensor]
"""The sum of a batch's losses over its scored targets."""
Gradient = Callable[[nn.Module, Callable[[], Tensor]], Tensor]
"""Leaves a step's gradient with the parameters and gives its loss, by the function that does so where the model is."""
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
    """Train a model, in place; with a run directory it goes on from its last checkpoint, to the same bytes, or with
    another number of processes within rounding.

    What a step does depends on the seed and its number alone: its batch, its dropout, its learning rate. Losses are
    sums, divided by how many targets the whole batch has on all processes. Returns how many steps are done.

    Args:
        model: as :func:`distribute` gives it.
        source: the same on every process; each computes its share of a batch's rows.
        objective: of a part of a batch.
        gradient: how a step's gradient is found; of itself it is that of the loss where the model is.
        run: on the first process alone; None: nothing is saved or logged.
        on_step: called after every step with its number.
        stop: whether to end after so many steps; asked after each, and at the start. A resumed run ends where it ended
            if the answer depends on the model alone; it must be the same on all processes.

    Raises:
        FloatingPointError: if the loss or its gradient is no longer a number; the last checkpoint stays.
        ValueError: if a batch's rows cannot be shared evenly.
    """
    optimizer = make_optimizer(model, training)
    start = _load(model, optimizer, run)
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
            log.loss += gradient(model, partial(_backward, model, whole, training, objective, chance))
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
                    _save(model, optimizer, run, done)
    return done


def _backward(model: nn.Module, whole: Batch, training: Training, objective: Objective, seed: int) -> Tensor:
    """Add the gradient of a batch's loss to the model's; the loss, this process's share times their number."""
    torch.manual_seed(seed)
    device, count = next(model.parameters()).device, max(int(whole.scored.sum()), 1)
    total = torch.zeros((), device=device)
    for part, last in _parts(whole, training.accumulate):
        with exchanging(model, last):
            with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                # Gradients are averaged over processes, so each counts as many times as there are.
                loss = objective(model, part.to(device)) * (processes() / count)
            loss.backward()
        total += loss.detach()
    return total


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


# --- checkpoints --------------------------------------------------------------------------------


def _state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All that training changes, by name; moments that are not there yet as AdamW begins with them."""
    inner = undistributed(model)
    state = {f"model.{name}": tensor for name, tensor in inner.state_dict().items()}
    for name, parameter in inner.named_parameters():
        if parameter.requires_grad:
            moments = optimizer.state[parameter]
            if not moments:
                moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments |= {part: torch.zeros_like(parameter) for part in ("exp_avg", "exp_avg_sq")}
            state |= {f"optimizer.{part}.{name}": tensor for part, tensor in moments.items()}
    return state


def _save(model: nn.Module, optimizer: Optimizer, run: RunDirectory | None, step: int) -> None:
    """Write all that training depends on, but for seed and step, into the first process's run."""
    if run is None and processes() == 1:
        return
    tensors = gather(_state(model, optimizer))
    if run is not None:
        run.save_checkpoint(step, tensors, {})


@torch.no_grad()
def _load(model: nn.Module, optimizer: Optimizer, run: RunDirectory | None) -> int:
    """Put the last checkpoint's state into model and optimizer, on every process; the step it is of, 0 without one."""
    checkpoint = None if run is None else run.load_checkpoint()
    step = torch.tensor(0 if checkpoint is None else checkpoint.step, device=next(model.parameters()).device)
    if processes() > 1:
        dist.broadcast(step, 0)
    if not step:
        return 0
    for name, tensor in _state(model, optimizer).items():
        spread(None if checkpoint is None else checkpoint.tensors[name], tensor)
    return int(step)
