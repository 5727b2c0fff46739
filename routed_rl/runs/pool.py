"""A small pool that runs commands as new processes, a few at a time (POSIX only)."""

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

from routed_rl.paths import expanded
from routed_rl.runs.files import StrPath
from routed_rl.runs.nursery import Forked, Nursery, NurseryError

# One thread per process: results do not depend on the number of cores, and processes do not compete for them.
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB", "RAYON")}
# Commands draw into files. A notebook names a backend that other processes need not have.
INTO_FILES = {"MPLBACKEND": "agg"}
PYTHON = (sys.executable, "-P", "-m")
"""-P: a folder of the user's that is called experiments, in the working directory, is not ours."""
PACKAGE = "routed_rl"
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
    """Run all commands, at most `workers` at once; return their exit codes, in the order of `commands`.

    A failed command does not stop the others. A code is -N if signal N ended the command, and 127 if the command could
    not be started (its log says why). It is None if the command was never started because a command in its `after`
    failed.

    If this process is interrupted (Ctrl-C, SIGTERM, SIGHUP) or `on_poll` raises, the running commands are killed with
    their process groups. Then the exception is raised again.

    Args:
        commands: each runs in its own process group, with one thread per library and no input.
        workers: the largest number of commands that run at once.
        logs: one file per command; the command's output and errors are appended to it.
        after: if given, `after[i]` are the indices of the commands that must end with 0 before `commands[i]` starts.
        devices: if given, values of CUDA_VISIBLE_DEVICES. Each command gets the device that the fewest running commands
            have.
        on_poll: called in this process about every `poll_seconds` seconds, and once at the end.
        poll_seconds: seconds between two looks at the running commands.

    Raises:
        ValueError: if `workers` is below 1, or `logs` or `after` does not have one entry per command.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if len(logs) != len(commands):
        raise ValueError(f"logs must have one file per command, got {len(logs)} logs for {len(commands)} commands")
    queue = Queue(len(commands), after)
    running: dict[int, subprocess.Popen[bytes] | Forked] = {}
    has: dict[int, str] = {}
    starter = Starter(commands)
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
                    if (process := starter.start(commands[index], expanded(logs[index]), visible)) is not None:
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
            # These processes have not been waited for, so their ids cannot belong to other processes yet.
            left = [process for process in running.values() if process.returncode is None]
            for process in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            for process in left:
                process.wait()
            starter.close()
    return queue.codes


class Starter:
    """Starts commands. Modules of this package that several commands run are imported only once, on Linux."""

    def __init__(self, commands: Sequence[Sequence[StrPath]]) -> None:
        modules = [module for module in map(_module, commands) if module is not None]
        self._shared = {module for module in modules if modules.count(module) > 1 and sys.platform == "linux"}
        self._nurseries: dict[str, Nursery] = {}

    def start(
        self, command: Sequence[StrPath], log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes] | Forked | None:
        """Start a command as :func:`run_commands` does, and return its process. None: it cannot start (see the log)."""
        if (module := _module(command)) in self._shared:
            assert module is not None
            log.parent.mkdir(parents=True, exist_ok=True)
            try:
                if module not in self._nurseries:
                    self._nurseries[module] = Nursery(PYTHON, module, _environment(), end_with_parent)
                return self._nurseries[module].start([*map(str, command[len(PYTHON) + 1 :])], log, environment)
            except (NurseryError, OSError):  # from now on, processes of their own say why in their logs
                self._shared.remove(module)
        return start_command(command, log, environment)

    def close(self) -> None:
        """End the processes that have imported modules."""
        for nursery in self._nurseries.values():
            nursery.close()


def _module(command: Sequence[StrPath]) -> str | None:
    """Return the module of this package that a command runs. None: it runs something else, or on a GPU.

    CUDA must not be used before a fork, and no test could say whether an import uses it.
    """
    if len(command) <= len(PYTHON) or tuple(command[: len(PYTHON)]) != PYTHON:
        return None
    if any("cuda" in str(part) for part in command):
        return None
    module = str(command[len(PYTHON)])
    return module if module.partition(".")[0] == PACKAGE else None


def _environment() -> dict[str, str]:
    return os.environ | ONE_THREAD | INTO_FILES


class Queue:
    """Decides which command starts next: the first whose predecessors have all ended with 0.

    Attributes:
        codes: exit code per command; None if it has not ended.
        next: the index of the command to start next; None while no command can start.
    """

    def __init__(self, count: int, after: Sequence[Collection[int]]) -> None:
        if after and len(after) != count:
            raise ValueError(f"after must have one entry per command, got {len(after)} entries for {count} commands")
        self._after = after
        self._waiting = list(range(count))
        self.codes: list[int | None] = [None] * count

    @property
    def next(self) -> int | None:
        return next((index for index in self._waiting if self._can_start(index)), None)

    def start(self, index: int) -> None:
        """Mark a command as started."""
        self._waiting.remove(index)

    def _can_start(self, index: int) -> bool:
        return not self._after or all(self.codes[before] == 0 for before in self._after[index])


def start_command(
    command: Sequence[StrPath], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes] | None:
    """Start a command as :func:`run_commands` does; return its process, or None if it cannot start (see the log)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment() | dict(environment or {}),
                start_new_session=True,
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            output.write(f"{command[0]!r} cannot be started: {error.strerror}\n".encode())
            return None


def end_with_parent() -> None:
    """Make the new process die with its parent, however the parent dies. Called in the new process.

    Otherwise a killed pool would leave commands running, and the next pool would find their run directories locked.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise SystemExit, so that ``finally`` blocks run, as with Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
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
