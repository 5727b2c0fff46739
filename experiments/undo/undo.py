"""``routed-rl undo``: suppress, add noise, distil, and attack every model. Only what has changed is run."""

from __future__ import annotations

from dataclasses import fields

from routed_rl.experiments.common.display import show_table
from routed_rl.experiments.common.studies import run_and_show
from routed_rl.experiments.undo.options import Undo
from routed_rl.lm.inputs import quiet_libraries
from routed_rl.options.undo import UndoOptions
from routed_rl.runs.process import one_thread
from routed_rl.unlearning import UndoStudy


def main(command: Undo) -> None:
    one_thread()
    quiet_libraries()
    study = UndoStudy(**{field.name: getattr(command, field.name) for field in fields(UndoOptions)})
    if not command.plan:
        run_and_show(study, command)
        return
    plan = study.plan()
    shown = plan.drop(columns="trains").astype(str)
    show_table("Stages of the study", list(shown), shown.to_numpy().tolist(), left=range(shown.shape[1]))
    runs = plan[plan.reason != "is finished"]
    print(f"{len(runs)} of {len(plan)} stages would run; {runs.trains.sum()} of them train or attack a model")
