"""Paths as a shell reads them: ``~`` is the home directory, also where no shell has seen the path."""

import os
from pathlib import Path
from typing import Annotated

NameOrPath = Annotated[str, "name or path"]
"""The type of an option that is a path, or the name of something that is no file of the user's."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path in which ``~`` or ``~user`` at the start is the home directory. Any other path stays as it is."""
    return Path(os.path.expanduser(path))
