"""Telling a user's mistake from a bug, and saying it in one line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from routed_rl.extras import MissingExtraError
from routed_rl.wording import command_line, spoken

ERROR = "routed-rl: error: "
"""How a process begins the line about what has ended it."""


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
        raise UserError(str(error)) from error


def at_least(low: int, **options: int) -> None:
    """Raise UserError, which names the option, unless every number is at least ``low``."""
    for name, number in options.items():
        if number < low:
            raise UserError(f"--{name.replace('_', '-')} must be at least {low}, got {number}")


def guarded(run: Callable[[], None]) -> None:
    """Run a command. A user's mistake ends the process with one line on standard error and exit status 2."""
    with command_line():
        _guarded(run)


def _guarded(run: Callable[[], None]) -> None:
    warnings.showwarning = lambda message, *_: print(f"routed-rl: warning: {message}", file=sys.stderr)
    try:
        run()
    except (UserError, MissingExtraError) as error:
        sys.exit(fail(str(error)))
    except MemoryError as error:
        sys.exit(fail(f"not enough memory: {error}"))
    except BrokenPipeError:
        # The reader of our output has closed the pipe. Python must not flush to the pipe at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        sys.exit(fail(str(error)))
    except KeyboardInterrupt:
        sys.exit(fail("interrupted; start the same command again to continue", status=130))


def fail(message: str, status: int = 2) -> int:
    """Print an error as one line on standard error, and return the exit status."""
    print(f"{ERROR}{' '.join(spoken(message).split())}", file=sys.stderr)
    return status
