"""One stage of an UNDO study in a process of its own: ``python -m routed_rl.unlearning.undo_study.worker``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import tyro

from routed_rl.errors import UserError, guarded, user_input
from routed_rl.lm.inputs import open_text, quiet_libraries
from routed_rl.options.undo import UndoOptions
from routed_rl.runs import with_ancestors
from routed_rl.runs.process import check_device, one_thread
from routed_rl.runs.progress import progress_display
from routed_rl.unlearning.undo_study.members import STAGES, members, total_steps
from routed_rl.unlearning.undo_study.stages import Worker
from routed_rl.wording import speak_of


@dataclass(frozen=True)
class OneStage(UndoOptions):
    """Do one stage of a study. The stages that it depends on are finished."""

    only: str = ""
    """name of the stage's directory"""


def main(argv: Sequence[str] | None = None) -> None:
    """Do the stage of a command line. A user's mistake ends as in :func:`~routed_rl.errors.guarded`."""
    guarded(lambda: _do(tyro.cli(OneStage, args=argv)))


def _do(command: OneStage) -> None:
    speak_of(UndoOptions)
    one_thread()
    quiet_libraries()
    assert command.out is not None
    with user_input():
        check_device(command.device)
        text = open_text(command)
        worker = Worker(command, text, command.out / STAGES)
        stages = with_ancestors(s for member in members(command, text) for s in (member.stage, member.attack))
        stage = next((stage for stage in stages if stage.path(worker.root).name == command.only), None)
    if stage is None:
        raise UserError(
            f"--only {command.only!r} is not a stage of this study; if the code of a plug-in was edited meanwhile, "
            "start the study again"
        )
    with progress_display() as display:
        task = display.add_task(stage.kind, total=total_steps(stage))
        try:
            worker.do(stage, lambda step: display.update(task, completed=step + 1))
        except FloatingPointError as error:
            raise UserError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise UserError(f"the device has too little memory, raise --accumulate: {error}") from error


if __name__ == "__main__":
    main()
