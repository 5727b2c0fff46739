"""A small pool: commands run as fresh processes of their own, a few at a time (POSIX only)."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from routed_rl.runs.files import StrPath

# One thread per process: the results do not depend on the machine's cores, and runs do not crowd each other.
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB", "RAYON")}
PR_SET_PDEATHSIG = 1  # linux/prctl.h
CANNOT_START = 127  # the shell's exit code for a command that cannot be started


def run_commands(
    commands: Sequence[Sequence[StrPath]],
    workers: int,
    logs: Sequence[StrPath],
    *,
    after: Sequence[Collection[int]] = (),
    devices: Sequence[str] = (),
    on_poll: Callable[[], None] | None = None,
    poll_seconds: float = 0.2,
) -> list[int | None]:
    """Run every command, at most `workers` at once, and return their exit codes in order.

    If given, `after[i]` are the numbers of the commands that have to end with 0 before `commands[i]` starts; of one
    that is never started, since one of these failed, the code is None.

    Output and errors of `commands[i]` are appended to the file `logs[i]`. Each runs with one thread in
    its libraries, no input, and a process group of its own. A failing command does not stop the others:
    its code is -N if signal N ended it, 127 if it could not be started (its log says why). `on_poll` is
    called in this process about every `poll_seconds` seconds, and once when all is done. Of `devices`, names for
    CUDA_VISIBLE_DEVICES, each command sees one, which as few others as possible have at that time.

    If this process is interrupted (Ctrl-C, SIGTERM, SIGHUP) or `on_poll` raises, the commands still
    running are killed, with all that they started in their process groups, and the exception goes on.

    Raises ValueError for fewer than one worker or another number of logs, or of `after`, than of commands.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, and at least one is needed")
    if len(logs) != len(commands):
        raise ValueError(f"{len(logs)} logs for {len(commands)} commands")
    queue = Queue(len(commands), after)
    running: dict[int, subprocess.Popen[bytes]] = {}
    has: dict[int, str] = {}
    with _signals_as_exit():
        try:
            while running or queue.next is not None:
                while len(running) < workers and (index := queue.next) is not None:
                    queue.start(index)
                    visible = {}
                    if devices:
                        taken = [has[other] for other in running]
                        has[index] = min(devices, key=taken.count)
                        visible = {"CUDA_VISIBLE_DEVICES": has[index]}
                    if (process := start_command(commands[index], Path(logs[index]), visible)) is not None:
                        running[index] = process
                    else:
                        queue.codes[index] = CANNOT_START
                for index, process in list(running.items()):
                    if (code := process.poll()) is not None:
                        queue.codes[index] = code
                        del running[index]
                if on_poll is not None:
                    on_poll()
                if running:
                    time.sleep(poll_seconds)
        finally:
            # Not waited for yet, so their numbers are still their own and cannot be another's.
            left = [process for process in running.values() if process.returncode is None]
            for process in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            for process in left:
                process.wait()
    return queue.codes


class Queue:
    """Which of some commands is next: the first whose predecessors have all ended with 0.

    Attributes:
        codes: the exit codes of those that have ended; None for the others.
        next: the number of a command that can be started; None while there is none.
    """

    def __init__(self, count: int, after: Sequence[Collection[int]]) -> None:
        if after and len(after) != count:
            raise ValueError(f"{len(after)} times predecessors for {count} commands")
        self._after = after
        self._waiting = list(range(count))
        self.codes: list[int | None] = [None] * count

    @property
    def next(self) -> int | None:
        return next((index for index in self._waiting if self._can_start(index)), None)

    def start(self, index: int) -> None:
        """Say that a command is started."""
        self._waiting.remove(index)

    def _can_start(self, index: int) -> bool:
        return not self._after or all(self.codes[before] == 0 for before in self._after[index])


def start_command(
    command: Sequence[StrPath], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes] | None:
    """Start a command as :func:`run_commands` does; None, with the reason in the log, if it cannot be started."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | ONE_THREAD | dict(environment or {}),
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            output.write(f"{command[0]!r} cannot be started: {error.strerror}\n".encode())
            return None


def _end_with_parent() -> None:
    """In the new process: be killed when the one that started it dies, however it dies. Else a pool that was killed
    would leave runs behind, which the next start finds taken."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Let a polite request to end unwind the stack, as Ctrl-C does, instead of ending the process at once."""
    if threading.current_thread() is not threading.main_thread():  # others may not set handlers
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    polite = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in polite:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in polite:
            signal.signal(number, signal.SIG_DFL)
