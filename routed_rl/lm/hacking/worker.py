"""One run of a hacking study in a process of its own: ``python -m routed_rl.lm.hacking.worker``."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from routed_rl.errors import guarded, user_input
from routed_rl.lm.hacking.training import do_run
from routed_rl.lm.inputs import quiet_libraries
from routed_rl.options.hacking import HackingRun
from routed_rl.runs.process import check_device, one_thread
from routed_rl.wording import speak_of


def main(argv: Sequence[str] | None = None) -> None:
    """Do the run of a command line. A user's mistake ends as in :func:`~routed_rl.errors.guarded`."""
    guarded(lambda: _do(tyro.cli(HackingRun, args=argv)))


def _do(command: HackingRun) -> None:
    speak_of(HackingRun)
    one_thread()
    quiet_libraries()
    with user_input():
        check_device(command.device)
    do_run(command)


if __name__ == "__main__":
    main()
