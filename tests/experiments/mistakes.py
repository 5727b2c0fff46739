"""What a command says of a user's mistake, for tests."""

import re
from collections.abc import Callable

import pytest

from routed_rl.experiments.cli import MODULES
from routed_rl.wording import option_names

FIELDS = {
    part for of in MODULES for name in option_names(of) for part in (name, name.rpartition(".")[2]) if "_" in part
}
"""Names in Python of all options of all commands, as far as they differ from those on the command line."""


def complaints(capsys: pytest.CaptureFixture[str], call: Callable[[], object]) -> list[str]:
    """The lines, without those of progress displays, that a call ends with, with exit status 2 and no traceback.

    They name options as the command line does.
    """
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error, error
    lines = [line for line in error.splitlines() if "━" not in line and " 0:00:0" not in line]
    assert not python_names(" ".join(lines)), lines
    return lines


def python_names(text: str) -> set[str]:
    """Names of options as Python has them, outside quotations. What follows --settings has names of its own."""
    own = re.sub(r"'[^']*'|--settings.*|\S*/\S*", "", text)
    return set(re.findall(r"(?<![\w-])[a-z]\w*(?:\.[a-z]\w*)*", own)) & FIELDS
