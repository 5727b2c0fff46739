"""Telling a user's mistake from a bug, and saying it in one line."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from routed_rl.extras import MissingExtraError
from routed_rl.wording import again, command_line, spoken

ERROR = "routed-rl: error: "
"""How a process begins the line about what has ended it."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the system that mean that there is no room for a file."""


class UserError(ValueError):
    """A mistake in what the user passed. A command shows its text as one line, without a traceback.

    Its text names options as the reader writes them: on the command line ``--batch-size``, in Python ``batch_size``.
    """

    def __str__(self) -> str:
        return spoken(super().__str__())


@contextmanager
def user_input() -> Iterator[None]:
    """Turn a ValueError or OSError of the code inside into a UserError: it only opens what the user passed."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(_said(error)) from error


def at_least(low: int, **options: int) -> None:
    """Raise UserError, which names the option, unless every number is at least ``low``."""
    for name, number in options.items():
        if number < low:
            raise UserError(f"--{name.replace('_', '-')} must be at least {low}, got {number}")


def guarded(run: Callable[[], None]) -> None:
    """Run a command. A user's mistake ends the process with one line on standard error and exit status 2."""
    atexit.register(gc.freeze)  # at its end, a process with torch would look for garbage for up to a second
    with command_line(), _quiet_threads():
        _guarded(run)


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Within the block, print no OSError of a thread: one that writes a log hands it on to the command, which ends."""
    before = threading.excepthook
    threading.excepthook = lambda ended: None if isinstance(ended.exc_value, OSError) else before(ended)
    try:
        yield
    finally:
        threading.excepthook = before


def _guarded(run: Callable[[], None]) -> None:
    warnings.showwarning = lambda message, *_: print(f"routed-rl: warning: {message}", file=sys.stderr)
    try:
        run()
        sys.stdout.flush()
    except (UserError, MissingExtraError) as error:
        sys.exit(fail(str(error)))
    except BrokenPipeError:
        _drop_output()  # its reader has closed the pipe
    except OSError as error:
        _drop_output()
        sys.exit(fail(_said(error)))
    except KeyboardInterrupt:
        sys.exit(fail(f"interrupted; {again()} to continue", status=130))
    except Exception as error:
        if not _is_of_memory(error):
            raise
        sys.exit(fail(f"not enough memory: {error}"))


def _said(error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in FULL
    return f"{error}; make room, and {again()} to continue" if full else str(error)


def _drop_output() -> None:
    """Drop output that cannot be written, which Python would try to write again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_of_memory(error: Exception) -> bool:
    """Whether memory ran out. Torch says so by its own error on a GPU, and by a RuntimeError on the CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def fail(message: str, status: int = 2) -> int:
    """Print an error as one line on standard error, and return the exit status."""
    lines = filter(None, map(str.strip, spoken(message).splitlines()))
    print(f"{ERROR}{' '.join(lines)}", file=sys.stderr)
    return status
