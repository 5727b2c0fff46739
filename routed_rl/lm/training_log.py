"""What training logs: loss, learning rate and gradient norm; seconds, tokens and FLOPs."""

from __future__ import annotations

import math
import time
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.processes import processes
from routed_rl.lm.throughput import matmul_rate, training_flops
from routed_rl.runs import RunDirectory

_rate = cache(matmul_rate)
"""A process that trains many models measures its machine once."""


class TrainingLog:
    """Rows of metrics and timings of a run, as CSV and for TensorBoard.

    Attributes:
        loss: the sum of losses since the last row.
    """

    def __init__(self, model: nn.Module, precision: str, run: RunDirectory | None, start: int) -> None:
        weight = next(model.parameters())
        self.loss = torch.zeros((), device=weight.device)
        self._model, self._run, self._steps, self._tokens, self._length = model, run, 0, 0, 0
        if run is not None:
            from torch.utils.tensorboard import SummaryWriter

            dtype = torch.bfloat16 if precision == "bf16" else weight.dtype
            self._rate = _rate(weight.device, dtype) * processes()
            self._board = SummaryWriter(str(run.path / "tensorboard"), purge_step=start)
        self._since = time.perf_counter()

    def count(self, whole: Batch) -> None:
        """Count a step and the tokens of its batch."""
        self._steps += 1
        self._tokens += int(whole.real.sum())
        self._length = whole.tokens.shape[1]

    def row(self, step: int, rate: float, norm: Tensor) -> None:
        """Log the steps since the last row.

        Raises:
            FloatingPointError: if their loss, or the last gradient, is not a finite number.
        """
        if processes() > 1:
            dist.all_reduce(self.loss)
        metrics = {
            "loss": float(self.loss) / processes() / self._steps,
            "learning_rate": rate,
            "gradient_norm": float(norm),
        }
        if self._run is not None:
            seconds = time.perf_counter() - self._since
            flops = training_flops(self._model, self._length) * self._tokens / seconds
            times = {
                "seconds": seconds,
                "tokens_per_second": self._tokens / seconds,
                "flops_per_second": flops,
                "share_of_matmul_rate": flops / self._rate,
            }
            self._run.metrics.append({"step": step, **metrics})
            self._run.timings.append({"step": step, **times})
            for kind, values in (("train", metrics), ("time", times)):
                for name, value in values.items():
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        self.loss.zero_()
        self._steps, self._tokens, self._since = 0, 0, time.perf_counter()
        if not math.isfinite(metrics["loss"]) or not math.isfinite(metrics["gradient_norm"]):
            raise FloatingPointError(
                f"by step {step} the loss is {metrics['loss']}, its gradient's norm {metrics['gradient_norm']}: "
                "lower the learning rate"
            )

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._run is not None:
            self._board.close()
