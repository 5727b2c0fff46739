"""Studies whose runs are done in this process, for tests."""

import contextlib
import os
from importlib import import_module
from pathlib import Path

import pytest

from routed_rl.lm import throughput, training
from routed_rl.runs import grid, rundir, studies


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let studies draw no figures and no page, which take a third of the time of a small one."""
    patch.setattr(studies.Reported, "_pictures", lambda *_: {})
    patch.setattr(studies, "study_page", lambda *_: "")


def run_in_process(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let studies do every run in this process, with checkpoints after every second step; gives the command lines of
    what is run."""
    patch.setattr(training, "LOG_EVERY", 1)
    patch.setattr(training, "CHECKPOINT_EVERY", 2)
    patch.setattr(throughput, "SECONDS", 0.0)
    patch.setattr(rundir, "versions", lambda: {"python": "any"})  # asking git many times is slow
    patch.setattr(os, "fsync", lambda descriptor: None)  # a killed process, unlike a failed disk, loses nothing
    ran = []

    def pool(commands, count, logs, *, after, on_poll, poll_seconds, devices=()):
        codes = []
        for command, log, before in zip(commands, logs, after, strict=True):
            if any(codes[index] != 0 for index in before):
                codes.append(None)
                continue
            ran.append(command)
            with (
                Path(log).open("a") as written,
                contextlib.redirect_stdout(written),
                contextlib.redirect_stderr(written),
            ):
                try:
                    module, *line = command[command.index("-m") + 1 :]
                    import_module(module).main(line)
                    codes.append(0)
                except SystemExit as stop:
                    codes.append(stop.code)
            on_poll()
        return codes

    patch.setattr(grid, "run_commands", pool)
    return ran
