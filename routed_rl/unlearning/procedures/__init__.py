"""Unlearning procedures: several trainings with a suppression method, or arithmetic with weights.

A procedure of your own is a subclass of :class:`Procedure`. Pass the class or an instance to
:func:`~routed_rl.unlearning.unlearn`.
"""

from collections.abc import Mapping

from routed_rl.unlearning.procedures.layered import Layered
from routed_rl.unlearning.procedures.procedure import Procedure, Stage, made_suppressor
from routed_rl.unlearning.procedures.task_vector import TaskVector

PROCEDURES: Mapping[str, type[Procedure]] = {"layered": Layered, "task-vector": TaskVector}
"""The procedures of this package by name."""

__all__ = ["PROCEDURES", "Layered", "Procedure", "Stage", "TaskVector", "made_suppressor"]
