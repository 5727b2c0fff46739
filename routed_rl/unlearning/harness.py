"""Evaluation by lm-eval of a model in memory."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from routed_rl.extras import require


def check_task(task: str, include: Path | None = None) -> None:
    """Raise MissingExtraError if lm-eval is not installed, and ValueError if it has no such task."""
    if task not in _tasks(include).all_tasks:
        raise ValueError(f"lm-eval has no task {task!r}")


@cache
def _tasks(include: Path | None) -> Any:
    """All tasks of lm-eval. Reading them takes seconds, so that they are kept."""
    require("eval", "lm_eval")
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include is None else str(include))


def harness_value(
    model: nn.Module, tokenizer: Any, task: str, value: str, limit: int | None = None, include: Path | None = None
) -> float:
    """Return one value from the results of a task, or group of tasks, of EleutherAI's lm-eval.

    Args:
        value: name of the value, such as "acc,none".
        limit: number of questions of each task; None: all.
        include: folder with further tasks.

    Raises:
        OSError: if a task's data cannot be read.
        MissingExtraError, ValueError: as :func:`check_task`, or if the results have no such value.
        FloatingPointError: if the value is not finite.
    """
    check_task(task, include)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    training, tasks = model.training, _tasks(include)
    # lm-eval changes the padding of the tokenizer, so it gets a copy.
    harness = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=16)
    found = simple_evaluate(harness, tasks=[task], limit=limit, task_manager=tasks, bootstrap_iters=0)
    model.train(training)
    results = found["results"].get(task, {})
    if not isinstance(results.get(value), int | float):
        raise ValueError(f"lm-eval's {task} has no value {value!r}; use one of {', '.join(map(repr, results))}")
    if not math.isfinite(results[value]):
        raise FloatingPointError(f"the value {value!r} of lm-eval's {task} is {results[value]}")
    return float(results[value])
