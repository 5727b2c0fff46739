"""Modules of the user's own: find and import them by name, say where they lie, and hash their source.

Names have the form ``MODULE:CLASS`` or ``FOLDER/MODULE:CLASS``. Without a folder, the module is in the working
directory, or anywhere where Python finds it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, resolve_name
from operator import attrgetter
from pathlib import Path
from pkgutil import iter_modules
from types import FunctionType, ModuleType
from typing import Any

from routed_rl.wording import did_you_mean

FORM = "MODULE:CLASS"
"""How a thing in a module is named."""
_OWN = __name__.partition(".")[0]
_INSTALLED = ("site-packages", "dist-packages")


def located(given: str) -> str:
    """Return a name with the folder of its module, so that processes elsewhere find it. Nothing is imported.

    Modules that are installed need no folder. A name without a colon is returned as it is.
    """
    path, colon, attribute = given.rpartition(":")
    if not colon:
        return given
    folder, module = os.path.split(path)
    module = module.removesuffix(".py")
    if folder:
        folder = os.path.abspath(os.path.expanduser(folder))
    else:
        here = os.getcwd()
        spec = _spec(module.partition(".")[0], here)
        root = here if spec is None else _root(spec)
        folder = "" if root is None or _is_installed(root) else root
    return f"{os.path.join(folder, module)}:{attribute}"


def name_of(kind: type | FunctionType) -> str:
    """Return ``MODULE:NAME`` of a class or function, with the folder as :func:`located` adds it.

    Raises:
        ValueError: for one that other processes cannot import.
    """
    if kind.__qualname__ == "<lambda>":
        raise ValueError("a lambda has no name by which the study's processes could import it: write it with def")
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        place = "the script or notebook that runs" if kind.__module__ == "__main__" else "a function"
        raise ValueError(
            f"{kind.__qualname__} is defined in {place}, where the study's processes cannot import it: move it to a "
            "module, that is a .py file of its own"
        )
    return located(f"{kind.__module__}:{kind.__qualname__}")


def load(given: str, kind: type = object) -> Any:
    """Import the module of a name, and return what the name stands for.

    While the module is imported, its folder comes first on Python's path, as a script's folder does. From then on the
    folder comes last, so that the user's files do not hide other modules.

    Args:
        given: a name as in :func:`located`.
        kind: what is looked for. Errors suggest subclasses of it.

    Raises:
        ValueError: if there is no such module or attribute, or the module cannot be imported.
    """
    path, _, attribute = located(given).rpartition(":")
    folder, name = os.path.split(path)
    return load_from(folder, name, attribute, given, kind)


def load_from(folder: str, name: str, attribute: str, given: str, kind: type = object) -> Any:
    """Do what :func:`load` does, for a module in a folder. An empty folder: anywhere on Python's path."""
    if not all(part.isidentifier() for part in [*name.split("."), *attribute.split(".")]):
        raise ValueError(f"{given!r} must have the form {FORM}, where MODULE is a name that Python can import")
    module = _import(name, folder, given)
    try:
        return attrgetter(attribute)(module)
    except AttributeError:
        known = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, kind)]
        known = [key for key in known if getattr(module, key) is not kind]
        place = getattr(module, "__file__", None)
        raise ValueError(
            f"{given!r}: the module {name}{f' ({place})' if place else ''} has no {attribute!r}"
            f"{did_you_mean(attribute, known)}"
        ) from None


def source_digests(module: str) -> dict[str, str]:
    """Return a hash of each source file that an imported module depends on, by the file's path below its folder.

    These are the module's own file, and the files that it imports, directly or not, from the same folder. Of an
    installed package, only the package's own files count. Other packages and data files do not count.
    """
    top = module.partition(".")[0]
    spec = getattr(sys.modules.get(top), "__spec__", None)
    root = None if spec is None else _root(spec)
    if root is None or _is_pythons(root):
        return {}
    installed = _is_installed(root)
    found: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        own = name.partition(".")[0]
        if own != top and (own == _OWN or installed):
            continue
        parts = name.split(".")
        todo += [".".join(parts[:count]) for count in range(1, len(parts))]
        path = Path(root, *parts).with_suffix(".py")
        path = path if path.is_file() else Path(root, *parts, "__init__.py")
        relative = path.relative_to(root).as_posix()
        if relative in found or not path.is_file():
            continue
        source = path.read_bytes()
        found[relative] = hashlib.sha256(source).hexdigest()[:10]
        todo += _imported(source, name if path.name == "__init__.py" else name.rpartition(".")[0])
    return dict(sorted(found.items()))


def _imported(source: bytes, package: str) -> Iterator[str]:
    """Yield the names of modules that a source file may import, anywhere in it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = node.module or ""
            try:
                base = resolve_name("." * node.level + name, package) if node.level else name
            except ImportError:  # more dots than the package is deep
                continue
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _import(name: str, folder: str, given: str) -> ModuleType:
    top = name.partition(".")[0]
    try:
        with _first(folder):
            module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            here = folder or os.getcwd()
            known = [found.name for found in iter_modules([here])]
            raise ValueError(
                f"{given!r}: there is no module {error.name!r} in {here!r} or among the installed packages"
                f"{did_you_mean(error.name, known)}"
            ) from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{given!r}: the module {name} cannot be imported: {reason}") from error
    spec = getattr(sys.modules[top], "__spec__", None)
    there = None if spec is None else _root(spec)
    if folder and (there is None or os.path.realpath(there) != os.path.realpath(folder)):
        raise ValueError(
            f"{given!r}: Python has a module {top!r} from {there or 'elsewhere'!r} already, which hides the one in "
            f"{folder!r}: rename yours"
        )
    if folder and folder not in sys.path:
        sys.path.append(folder)
    return module


@contextmanager
def _first(folder: str) -> Iterator[None]:
    """Within the block, import modules of a folder before all others. An empty name is no folder."""
    if folder:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()  # files may be new
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)  # the first one


def _spec(top: str, folder: str) -> ModuleSpec | None:
    """Find a top-level module, first in a folder."""
    try:
        with _first(folder):
            return find_spec(top)
    except (ImportError, ValueError):
        return None


def _root(spec: ModuleSpec) -> str | None:
    """Return the folder from which a top-level module is imported; None for a module without a file."""
    if spec.submodule_search_locations:
        place = next(iter(spec.submodule_search_locations))
    elif spec.has_location and spec.origin:
        place = spec.origin
    else:
        return None
    return os.path.dirname(os.path.abspath(place))


def _is_installed(root: str) -> bool:
    """Whether a folder is one of Python's own, or where packages are installed."""
    return Path(root).name in _INSTALLED or _is_pythons(root)


def _is_pythons(root: str) -> bool:
    return os.path.realpath(root) in _library()


@cache
def _library() -> frozenset[str]:
    return frozenset(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
