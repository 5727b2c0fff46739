"""``routed-rl undo``: suppress, add noise, distil, and attack every model. Only what has changed is run."""

from __future__ import annotations

from dataclasses import fields

from rich.console import Console
from rich.markdown import Markdown

from routed_rl.experiments.common.studies import run_and_show
from routed_rl.experiments.undo.options import Undo
from routed_rl.lm.inputs import quiet_libraries
from routed_rl.options.undo import UndoOptions
from routed_rl.runs.process import one_thread
from routed_rl.runs.tables import markdown
from routed_rl.unlearning import UndoStudy


def main(command: Undo) -> None:
    one_thread()
    quiet_libraries()
    study = UndoStudy(**{field.name: getattr(command, field.name) for field in fields(UndoOptions)})
    if not command.plan:
        run_and_show(study, command)
        return
    plan = study.plan()
    console = Console()
    shown = plan.drop(columns="trains").astype(str)
    console.print(Markdown(markdown(list(shown), shown.to_numpy().tolist())))
    runs = plan[plan.reason != "is finished"]
    console.print(f"{len(runs)} of {len(plan)} stages would run; {runs.trains.sum()} of them train or attack a model")
