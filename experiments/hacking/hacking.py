"""``routed-rl hacking``: reward hacking of language models under partial oversight."""

from __future__ import annotations

from dataclasses import fields

from routed_rl.experiments.common.display import show_table
from routed_rl.experiments.common.studies import run_and_show
from routed_rl.experiments.hacking.options import Hacking
from routed_rl.extras import require
from routed_rl.options.hacking import HackingOptions


def main(command: Hacking) -> None:
    require("trl", "trl")
    from routed_rl.lm.hacking import HackingStudy
    from routed_rl.lm.inputs import quiet_libraries
    from routed_rl.runs.process import one_thread

    one_thread()
    quiet_libraries()
    study = HackingStudy(**{field.name: getattr(command, field.name) for field in fields(HackingOptions)})
    if command.plan:
        plan = study.plan()
        rows = plan.astype(str).to_numpy().tolist()
        show_table("Runs of the study", list(plan), rows, left=range(len(plan.columns)))
        print(f"{(plan.reason != 'is finished').sum()} of {len(plan)} runs would be done")
        return
    run_and_show(study, command)
