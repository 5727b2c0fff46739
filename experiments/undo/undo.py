"""``routed-rl undo``: suppress, add noise, distil, and attack every model. Only what has changed is run."""

from __future__ import annotations

from dataclasses import fields

from routed_rl.experiments.common.studies import run_and_show, show_stages
from routed_rl.experiments.undo.options import Undo
from routed_rl.lm.inputs import quiet_libraries
from routed_rl.options.undo import UndoOptions
from routed_rl.runs.process import one_thread
from routed_rl.unlearning import UndoStudy


def main(command: Undo) -> None:
    one_thread()
    quiet_libraries()
    study = UndoStudy(**{field.name: getattr(command, field.name) for field in fields(UndoOptions)})
    if command.plan:
        show_stages(study.plan())
    else:
        run_and_show(study, command)
