"""Optional parts of the installation, as ``pip install 'routed-rl[lm]'``."""

from __future__ import annotations

from importlib.util import find_spec


class MissingExtraError(ImportError):
    """A package of an extra is not installed; the text says which extra to install."""


def require(extra: str, *packages: str) -> None:
    """Check that packages of an extra are installed, without importing them.

    Args:
        extra: a name in ``[project.optional-dependencies]``.
        packages: what the caller needs of it, by import name.

    Raises:
        MissingExtraError: if a package is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(f"{package} is not installed: pip install 'routed-rl[{extra}]'")
