"""One stage of an UNDO study in a process of its own: ``python -m routed_rl.unlearning.undo_study.worker``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import transformers.modeling_utils  # noqa: F401 (every model needs it; imported before processes are forked)
import tyro
from rich.progress import Progress

from routed_rl.errors import UserError, guarded, user_input
from routed_rl.lm.inputs import open_text, quiet_libraries
from routed_rl.lm.processes import launch, process_group, rank
from routed_rl.options.undo import UndoOptions
from routed_rl.runs import Stage, with_ancestors
from routed_rl.runs.grid import STAGES
from routed_rl.runs.process import check_device, one_thread
from routed_rl.runs.progress import progress_display
from routed_rl.unlearning.undo_study.members import members, total_steps
from routed_rl.unlearning.undo_study.stages import Worker
from routed_rl.wording import speak_of


@dataclass(frozen=True)
class Stages(UndoOptions):
    """Do stages of a study, in this order. The stages that they depend on, apart from each other, are finished."""

    only: tuple[str, ...] = ()
    """names of the stages' directories"""
    together: int = 1
    """number of processes that do them together"""


def main(argv: Sequence[str] | None = None) -> None:
    """Do the stage of a command line. A user's mistake ends as in :func:`~routed_rl.errors.guarded`."""
    command = tyro.cli(Stages, args=argv)
    do = partial(guarded, partial(_do, command))
    if command.together == 1:
        do()
    else:
        launch(do, command.together)


def _do(command: Stages) -> None:
    with process_group(command.device):
        _do_all(command)


def _do_all(command: Stages) -> None:
    speak_of(UndoOptions)
    one_thread()
    quiet_libraries()
    assert command.out is not None
    with user_input():
        check_device(command.device)
        text = open_text(command)
        worker = Worker(command, text, command.out / STAGES)
        stages = with_ancestors(stage for member in members(command, text) for stage in member.stages)
        found = {stage.path(worker.root).name: stage for stage in stages}
    if unknown := [name for name in command.only if name not in found]:
        raise UserError(
            f"--only {unknown[0]!r} is not a stage of this study; if the code of a plug-in was edited meanwhile, start "
            "the study again"
        )
    with progress_display(disable=rank() > 0) as display:
        for name in command.only:
            _do_stage(worker, found[name], display)


def _do_stage(worker: Worker, stage: Stage, display: Progress) -> None:
    task = display.add_task(stage.kind, total=total_steps(stage))
    try:
        worker.do(stage, lambda step: display.update(task, completed=step + 1))
    except FloatingPointError as error:
        raise UserError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise UserError(f"the device has too little memory, raise --accumulate: {error}") from error


if __name__ == "__main__":
    main()
