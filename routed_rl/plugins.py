"""Plug-ins: things that users name, such as suppression methods, and that need not be part of this package.

A name is that of a built-in thing, that of a thing in an installed package (an entry point), or ``MODULE:CLASS`` for a
class of the user's own. Nothing is imported but what is named.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from routed_rl.own_modules import FORM, load, load_from, source_digests
from routed_rl.wording import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

T = TypeVar("T")
PluginName = Annotated[str, "plug-in"]
"""The type of an option that names a plug-in. In Python the class may be given too."""


@dataclass(frozen=True)
class Plugin(Generic[T]):
    """A class that was found by its name.

    Attributes:
        name: a short name, for tables, figures and settings: the built-in name, the entry point's, or the class's own.
        reference: the name for configurations: the same on every machine.
        kind: the class. Called without arguments, it has its default settings.
        module: the module that was named.
        built_in: whether it is part of this package.
    """

    name: str
    reference: str
    kind: type[T]
    module: str
    built_in: bool = False

    def code(self) -> dict[str, str]:
        """Return hashes of its source files, for the configuration of a run; of a built-in class, none.

        These are the files of the module that was named and of the module that defines the class, and the files that
        they import from the same folder or package.

        Raises:
            ValueError: if there is no source file. Then nobody could say when the code changes.
        """
        if self.built_in:
            return {}
        found = {**source_digests(self.module), **source_digests(self.kind.__module__)}
        if not found:
            raise ValueError(
                f"{self.reference!r} has no source file, so a study cannot tell when its code changes: move the class "
                "to a .py file"
            )
        return found


@dataclass(frozen=True)
class Registry(Generic[T]):
    """The classes of a kind that users can name.

    Attributes:
        what: what one of them is called, such as "suppression method".
        base: all of them are subclasses of this class, and can be made without arguments.
        built_in: those of this package, by name.
        group: the group of entry points in which other packages name theirs.
        bases: what errors call the base class, if users subclass one of several. Empty: its own name.
    """

    what: str
    base: type
    built_in: Mapping[str, type[T]]
    group: str
    bases: str = ""

    def find(self, given: Any, option: str) -> Plugin[T]:
        """Return the class of a name, or of the class itself.

        A built-in name always means the built-in class, so that installing a package never changes a study. If a
        package has the same name, this is said in a warning.

        Args:
            given: a built-in name, the name of an entry point, ``MODULE:CLASS``, ``FOLDER/MODULE:CLASS``, or a class.
            option: what errors call the name, such as ``--suppress``.

        Warns:
            UserWarning: for a built-in name that an installed package has too.

        Raises:
            ValueError: if there is no such thing, its module cannot be imported, it is no subclass of :attr:`base`, or
                it cannot be made without arguments.
        """
        if isinstance(given, type):
            reference = f"{given.__module__}:{given.__qualname__}"
            return self._checked(given, given.__name__, reference, given.__module__, given, option)
        if not isinstance(given, str):
            raise ValueError(f"{option} must be a name, {FORM} or a class, got {given!r}")
        if ":" in given:
            try:
                kind = load(given, self.base)
            except ValueError as error:
                raise ValueError(f"{option} {error}") from error
            path, _, attribute = given.rpartition(":")
            module = path.rpartition("/")[2].removesuffix(".py")
            name = attribute.rpartition(".")[2]
            return self._checked(kind, name, f"{module}:{attribute}", module, given, option)
        installed = installed_names(self.group)
        there = [point for point in installed if point.name == given]
        if given in self.built_in:
            if there:
                warnings.warn(
                    f"{option} {given} is the built-in {self.what}; that of the package {_package(there[0])} is "
                    f"{there[0].value}",
                    stacklevel=1,  # once for all callers
                )
            return self._own(given)
        if not there:
            known = list(dict.fromkeys([*self.built_in, *sorted(installed.names)]))
            dotted = given.rpartition(".")
            hint = f"; did you mean {dotted[0]}:{dotted[2]}?" if all(dotted) else did_you_mean(given, known)
            raise ValueError(f"{option} must be one of {', '.join(known)}, or {FORM} of your own, got {given!r}{hint}")
        if len(there) > 1:
            of = ", ".join(f"{point.value} of {_package(point)}" for point in there)
            raise ValueError(f"{option} {given!r} is in several packages: {of}; give one of them as {FORM}")
        try:
            kind = load_from("", there[0].module, there[0].attr, there[0].value, self.base)
        except ValueError as error:
            raise ValueError(f"{option} {given} of the package {_package(there[0])}: {error}") from error
        return self._checked(kind, given, given, there[0].module, given, option)

    def find_all(self, given: Sequence[Any], option: str) -> dict[str, Plugin[T]]:
        """Return several classes by their short names, in order; see :meth:`find`.

        Raises:
            ValueError: also for two with the same short name.
        """
        found: dict[str, Plugin[T]] = {}
        for one in given:
            plugin = self.find(one, option)
            if plugin.name in found:
                raise ValueError(
                    f"{option}: {found[plugin.name].reference!r} and {plugin.reference!r} are both called "
                    f"{plugin.name!r}: leave one out, or rename it"
                )
            found[plugin.name] = plugin
        return found

    def _own(self, name: str) -> Plugin[T]:
        kind = self.built_in[name]
        return Plugin(name, name, kind, kind.__module__, built_in=True)

    def _checked(self, kind: Any, name: str, reference: str, module: str, given: Any, option: str) -> Plugin[T]:
        found: Any = kind  # whose type is not narrowed below
        shown = repr(given) if isinstance(given, str) else reference
        if not (isinstance(kind, type) and issubclass(kind, self.base)):
            what = f"the class {kind.__qualname__}" if isinstance(kind, type) else f"a {type(kind).__name__}"
            wanted = self.bases or f"{self.base.__module__}.{self.base.__qualname__}"
            raise ValueError(f"{option} {shown} is {what}, but must be a subclass of {wanted}")
        for own, built_in in self.built_in.items():
            if built_in is kind:
                return self._own(own)
        try:
            kind()
        except Exception as error:
            raise ValueError(f"{option} {shown} cannot be made without arguments: {error}") from error
        if name in self.built_in:
            raise ValueError(f"{option} {shown} has the name of the built-in {self.what} {name}: rename the class")
        return Plugin(name, reference, found, module)


@cache
def installed_names(group: str) -> EntryPoints:
    """Return the entry points of a group. All installed packages are read once, which takes a while."""
    from importlib.metadata import entry_points  # slow, and --help needs none of it

    return entry_points(group=group)


def _package(point: EntryPoint) -> str:
    return "unknown" if point.dist is None else point.dist.name
