"""``routed-rl era``: compare methods that remove a topic from a language model, over shares of labels."""

from __future__ import annotations

from dataclasses import fields, replace

from routed_rl.experiments.common.studies import run_and_show
from routed_rl.experiments.language.options import Era
from routed_rl.lm import EraStudy
from routed_rl.lm.inputs import quiet_libraries
from routed_rl.options.era import EraOptions
from routed_rl.runs.process import one_thread

QUICK = {"methods": ("base", "filtering", "era-chosen"), "labelled": (0.5,), "seeds": 1}


def main(command: Era) -> None:
    one_thread()
    quiet_libraries()
    if command.quick:
        command = replace(command, **QUICK)
    study = EraStudy(**{field.name: getattr(command, field.name) for field in fields(EraOptions)})
    run_and_show(study, command)
