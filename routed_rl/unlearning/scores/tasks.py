"""Scores that lm-eval computes: any of its tasks."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from routed_rl.unlearning.benchmarks.benchmark import Benchmark
from routed_rl.unlearning.harness import check_task, harness_value
from routed_rl.unlearning.scores.reader import Reader
from routed_rl.unlearning.scores.score import Best, Numbers, Score


class TaskScore(Score):
    """A value of a task, or group of tasks, of EleutherAI's lm-eval. It needs ``pip install 'routed-rl[eval]'``.

    An arena measures it only if it is named, as in ``--scores wmdp-bio mmlu``. For another task, write a subclass::

        class Physics(TaskScore):
            task, best = "mmlu_high_school_physics", "high"

    and pass ``--scores my_module:Physics``. The task asks its own questions, whatever the benchmark.

    A value that is no share needs other ``limits``, as in ``limits = (0.0, None)``.

    Attributes:
        task: the task's name.
        named: name of the value in lm-eval's results.
        limit: number of questions of each task; None: all.
        include: folder with further tasks; None: those of lm-eval.
    """

    task: ClassVar[str] = ""
    best: ClassVar[Best] = "low"
    named: ClassVar[str] = "acc,none"
    limit: ClassVar[int | None] = None
    include: ClassVar[Path | None] = None
    bootstrapped = False

    @property
    def about_kept(self) -> bool:
        """Whether the number should be high."""
        return self.best == "high"

    def undefined(self, benchmark: Benchmark) -> str | None:
        """Return None. Before anything is trained, raise the errors of ``check_task``, as for a misspelt task."""
        check_task(self.task, self.include)
        return None

    def examples(self, reader: Reader) -> Numbers:
        """Return the value, as the only number; see :meth:`Score.examples`. Raises the errors of ``harness_value``."""
        found = harness_value(reader.model, reader.tokenizer, self.task, self.named, self.limit, self.include)
        return {"value": np.array([found])}

    def value(self, numbers: Numbers, retrained: Numbers | None = None) -> float:
        """Return the value; see :meth:`Score.value`."""
        return float(numbers["value"][0])


class WmdpBio(TaskScore):
    """Accuracy on WMDP's questions on biology (Li et al. 2024)."""

    task = "wmdp_bio"


class WmdpCyber(TaskScore):
    """Accuracy on WMDP's questions on computer security (Li et al. 2024)."""

    task = "wmdp_cyber"


class WmdpChem(TaskScore):
    """Accuracy on WMDP's questions on chemistry (Li et al. 2024)."""

    task = "wmdp_chem"


class Mmlu(TaskScore):
    """Accuracy on MMLU (Hendrycks et al. 2021)."""

    task, best = "mmlu", "high"
