"""The command ``routed-rl``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import tyro

import routed_rl
from experiments.commands import commands
from experiments.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. A user's mistake ends with one line on standard error and exit status 2."""

    def run() -> None:
        command = parse(sys.argv[1:] if argv is None else argv)
        import_module(f"experiments.{type(command).__name__.lower()}").main(command)

    guarded(run)


def guarded(run: Callable[[], None]) -> None:
    """Do something for the user, whose mistakes end it as :func:`main` says."""
    warnings.showwarning = lambda message, *_: print(f"routed-rl: warning: {message}", file=sys.stderr)
    try:
        run()
    except UserError as error:
        sys.exit(_fail(str(error)))
    except MemoryError as error:
        sys.exit(_fail(f"there is not enough memory for this: {error}"))
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing may be flushed to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        sys.exit(_fail(str(error)))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; a run continues when its command is started again", status=130))


def parse(argv: Sequence[str]) -> Any:
    """The command of a command line."""
    arguments = list(argv) or ["--help"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                commands(*_named(arguments)), prog="routed-rl", description=routed_rl.__doc__, args=arguments
            )
    except SystemExit as stop:
        if stop.code:
            raise SystemExit(_fail(_first_paragraph(said.getvalue()))) from None
        raise


def _named(arguments: Sequence[str]) -> tuple[str | None, str | None]:
    """The preset and the task named on the command line, whose values are the other options' defaults; tyro refuses
    unknown ones."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    parser.add_argument("--task", nargs="?")
    found = parser.parse_known_args(arguments)[0]
    return found.preset, found.task


def _first_paragraph(box: str) -> str:
    """The message of tyro's error box on one line: what is framed, up to the first rule."""
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip(" │")
        if re.fullmatch(r"[─╰╯]+", text):
            break
        lines.append(text)
    return " ".join(lines) or " ".join(box.split())


def _fail(message: str, status: int = 2) -> int:
    print(f"routed-rl: error: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
