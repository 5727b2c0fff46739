"""One model of a study in a process of its own: ``python -m routed_rl.lm.era_study.worker``."""

from __future__ import annotations

from collections.abc import Sequence

import transformers.modeling_utils  # noqa: F401 (every model needs it; imported before processes are forked)
import tyro

from routed_rl.errors import guarded, user_input
from routed_rl.lm.era_study.pipeline import train_and_ablate
from routed_rl.lm.inputs import quiet_libraries
from routed_rl.options.era import Unlearn
from routed_rl.runs.process import check_device, one_thread
from routed_rl.wording import speak_of


def main(argv: Sequence[str] | None = None) -> None:
    """Do the run of a command line. A user's mistake ends as in :func:`~routed_rl.errors.guarded`."""
    guarded(lambda: _do(tyro.cli(Unlearn, args=argv)))


def _do(command: Unlearn) -> None:
    speak_of(Unlearn)
    one_thread()
    quiet_libraries()
    with user_input():
        check_device(command.device)
    train_and_ablate(command)


if __name__ == "__main__":
    main()
