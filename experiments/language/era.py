"""``routed-rl era``: compare methods that remove a topic from a language model, over shares of labels."""

from __future__ import annotations

from dataclasses import fields

from routed_rl.experiments.common.studies import run_and_show
from routed_rl.experiments.language.options import Era
from routed_rl.lm import EraStudy
from routed_rl.lm.inputs import quiet_libraries
from routed_rl.options.era import EraOptions
from routed_rl.runs.process import one_thread


def main(command: Era) -> None:
    one_thread()
    quiet_libraries()
    study = EraStudy(**{field.name: getattr(command, field.name) for field in fields(EraOptions)})
    run_and_show(study, command)
