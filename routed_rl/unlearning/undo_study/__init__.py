"""An UNDO study: models, the stages that make and attack them, tables and figures."""

from routed_rl.unlearning.undo_study.study import UndoStudy

__all__ = ["UndoStudy"]
