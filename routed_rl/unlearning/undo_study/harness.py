"""What lm-eval says of a model that is in memory."""

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
    """All tasks that there are; reading through them takes seconds."""
    require("eval", "lm_eval")
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include is None else str(include))


def harness_value(
    model: nn.Module, tokenizer: Any, task: str, value: str, limit: int | None = None, include: Path | None = None
) -> float:
    """One of the results of a task, or group of tasks, of EleutherAI's lm-eval.

    Args:
        value: which, "acc,none" say.
        limit: so many of each task's questions; None: all.
        include: a folder with tasks of one's own.

    Raises:
        OSError: if a task's data cannot be had.
        MissingExtraError, ValueError: as :func:`check_task`, or if the results have no such value.
        FloatingPointError: if it is no number.
    """
    check_task(task, include)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    training, tasks = model.training, _tasks(include)
    # It pads as it likes, and says so in the tokenizer.
    harness = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=16)
    found = simple_evaluate(harness, tasks=[task], limit=limit, task_manager=tasks, bootstrap_iters=0)
    model.train(training)
    results = found["results"].get(task, {})
    if not isinstance(results.get(value), int | float):
        raise ValueError(f"lm-eval's {task} has no {value!r} but {', '.join(map(repr, results))}")
    if not math.isfinite(results[value]):
        raise FloatingPointError(f"the {value!r} of lm-eval's {task} is {results[value]}")
    return float(results[value])
