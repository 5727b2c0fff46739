"""``routed-rl arena``: methods × what follows × attacks on a benchmark, in one table."""

from __future__ import annotations

from dataclasses import fields

from routed_rl.experiments.arena.options import Arena
from routed_rl.experiments.common.studies import run_and_show, show_stages
from routed_rl.lm.inputs import quiet_libraries
from routed_rl.options.arena import ArenaOptions
from routed_rl.runs.process import one_thread
from routed_rl.unlearning.arena import ArenaStudy


def main(command: Arena) -> None:
    one_thread()
    quiet_libraries()
    study = ArenaStudy(**{field.name: getattr(command, field.name) for field in fields(ArenaOptions)})
    if command.plan:
        show_stages(study.plan())
    else:
        run_and_show(study, command)
