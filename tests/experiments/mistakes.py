"""What a command says of a user's mistake, for tests."""

from collections.abc import Callable

import pytest


def complaints(capsys: pytest.CaptureFixture[str], call: Callable[[], object]) -> list[str]:
    """The lines, without those of progress displays, that a call ends with, with exit status 2 and no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error, error
    return [line for line in error.splitlines() if "━" not in line and " 0:00:0" not in line]
