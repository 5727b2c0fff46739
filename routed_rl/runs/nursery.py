"""Processes that are copies of one which has imported what they need, so that they begin at once (Linux only)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SERVER = "routed_rl.runs.forking"


class NurseryError(Exception):
    """The process that forks has ended, for example because the module cannot be imported."""


class Nursery:
    """A process that has imported a module, and forks for every command.

    Args:
        command: the command line that starts it, but for the module.
        module: it has a function ``main`` that takes the arguments of a command line, and may return an exit code. Its
            import starts no thread of Python's.
        environment: of the processes.
        prepare: called in each new process, as in :class:`subprocess.Popen`.

    Raises:
        OSError: if the process cannot be started.
    """

    def __init__(self, command: Sequence[str], module: str, environment: Mapping[str, str], prepare: Any) -> None:
        # A terminal's Ctrl-C is for the process that has the nursery, and it ends when that does.
        self._process = subprocess.Popen(
            [*command, SERVER, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=prepare,
        )
        self._asked = 0

    def start(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Forked:
        """Start a command with these arguments. Its output is appended to a log.

        Raises:
            NurseryError: if the nursery has ended.
        """
        return Forked(self, self.ask({"start": list(arguments), "log": str(log), "environment": dict(environment)}))

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Send a request to the process, and return its answer.

        Raises:
            NurseryError: if it has ended.
        """
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None and answers is not None
        self._asked += 1
        try:
            asked.write(json.dumps({**request, "number": self._asked}) + "\n")
            asked.flush()
            while line := answers.readline():
                number, answer = json.loads(line)
                if number == self._asked:  # else nobody waited for it, because of an interrupt
                    return answer
        except OSError as error:
            raise NurseryError(str(error)) from error
        raise NurseryError("the nursery has ended")

    def close(self) -> None:
        """End the process, and with it all that are left of its own."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # a request that could not be sent is still in its buffer
                stream.close()


class Forked:
    """A process of a nursery, with what is used of :class:`subprocess.Popen`."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery, self.pid = nursery, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, -N after signal N, or None while the process runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        """Wait for the end of the process, and return the exit code."""
        return self._wait(0)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                self.returncode = self._nursery.ask({"wait": self.pid, "options": options})
            except NurseryError:  # then its processes have been killed too
                self.returncode = -signal.SIGKILL
        return self.returncode
