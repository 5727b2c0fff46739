"""Optional parts of the installation, as ``pip install 'routed-rl[lm]'``."""

from __future__ import annotations

from importlib import import_module


class MissingExtraError(ImportError):
    """A package of an extra is not installed; the text says which extra to install."""


def require(extra: str, *packages: str) -> None:
    """Import packages of an extra.

    Args:
        extra: a name in ``[project.optional-dependencies]``.
        packages: what the caller needs of it, by import name.

    Raises:
        MissingExtraError: if a package is not installed.
    """
    for package in packages:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise MissingExtraError(f"{package} is not installed: pip install 'routed-rl[{extra}]'") from None
