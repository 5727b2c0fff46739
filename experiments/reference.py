"""The reference pages, made from the code: ``python -m routed_rl.experiments.reference`` writes ``docs/reference``."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from routed_rl.experiments.cli import MODULES, command_name, defaults

ROOMS = (
    *("routing", "runs", "envs", "rl", "vision", "lm", "unlearning"),
    *("lm.grpo", "lm.hacking", "unlearning.arena", "unlearning.benchmarks", "unlearning.scores"),
)
GENERATED = "<!-- Made by `python -m routed_rl.experiments.reference`. Do not edit. -->"


def field_docs(of: type) -> dict[str, str]:
    """The docstring of each field of a dataclass, by the field's name, on one line."""
    found: dict[str, str] = {}
    for base in reversed(of.__mro__[:-1]):
        source = ast.parse(textwrap.dedent(inspect.getsource(base)))
        (definition,) = (node for node in source.body if isinstance(node, ast.ClassDef))
        for field, after in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def options(of: type, usual: Any = None, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of every option of a command.

    Args:
        usual: the default options, where they are others than those of the class.
    """
    docs = field_docs(of)
    for field in fields(of):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        default = default if usual is None else getattr(usual, field.name)
        name = prefix + field.name.replace("_", "-")
        if is_dataclass(default):
            yield f"**{name}**", "", docs[field.name]
            yield from options(type(default), default, f"{name}.")
        elif default is MISSING:
            yield f"`{name.upper()}`", "required", docs[field.name]
        else:
            yield f"`--{name}`", _shown(default), docs[field.name]


def commands() -> str:
    """The page of all commands."""
    parts = [
        GENERATED,
        "# All options",
        "`routed-rl COMMAND --help` says the same. `--preset` and `--task` change defaults. What each command is for: "
        "[commands at a glance](commands.md).",
    ]
    for of in MODULES:
        parts += [f"## `routed-rl {command_name(of)}`", " ".join(str(of.__doc__).split())]
        parts.append(_table(("option", "default", "meaning"), options(of, defaults().get(of))))
    return "\n\n".join(parts) + "\n"


def library() -> str:
    """The page of all public names of the library."""
    parts = [GENERATED, "# Python", "The public names of each module. `help(NAME)` gives arguments, shapes and errors."]
    for room in ROOMS:
        module, constants = import_module(f"routed_rl.{room}"), constant_docs(room)
        rows = [(f"`{name}`", _first_line(constants.get(name) or getattr(module, name))) for name in module.__all__]
        parts += [f"## `routed_rl.{room}`", _first_line(module), _table(("name", "what it is"), rows)]
    return "\n\n".join(parts) + "\n"


def api(room: str) -> str:
    """The page of one module, for Sphinx: all public names with arguments, shapes and errors."""
    lines = [f".. automodule:: routed_rl.{room}", ""]
    for name, doc in constant_docs(room).items():
        lines += [f".. py:data:: routed_rl.{room}.{name}", "", textwrap.indent(doc, "   "), ""]
    return f"{GENERATED}\n\n# `routed_rl.{room}`\n\n```{{eval-rst}}\n" + "\n".join(lines) + "```\n"


def constant_docs(room: str) -> dict[str, str]:
    """The docstring of each public constant of a module, by its name. It stands below the value."""
    module = import_module(f"routed_rl.{room}")
    return {name: _constant_doc(module, name) for name in module.__all__ if _is_constant(getattr(module, name))}


def _is_constant(thing: Any) -> bool:
    return not (inspect.isclass(thing) or inspect.isroutine(thing))


def _constant_doc(module: ModuleType, name: str) -> str:
    """The docstring of a constant, from the module in which it gets its value."""
    for line, after in pairwise([*ast.parse(inspect.getsource(module)).body, None]):
        if isinstance(line, ast.ImportFrom) and name in (taken.name for taken in line.names):
            return _constant_doc(import_module(str(line.module)), name)
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        names = {node.id for target in targets if target for node in ast.walk(target) if isinstance(node, ast.Name)}
        if name in names and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return inspect.cleandoc(str(after.value.value))
    raise ValueError(f"{module.__name__}.{name} has no docstring below its value")


def _first_line(thing: Any) -> str:
    """The first sentence of a docstring, or of what has one."""
    text = thing if isinstance(thing, str) else inspect.getdoc(thing)
    if not text:
        raise ValueError(f"{thing.__name__} has no docstring")
    line = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"``\1``", text.partition("\n\n")[0])  # a role of Sphinx
    return " ".join(line.removesuffix("::").split())


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        default = " ".join(map(str, default)) or None
    return f"`{default}`"


def _table(head: tuple[str, ...], rows: Any) -> str:
    cells = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def pages() -> dict[str, str]:
    """The text of each page, by the name of its file."""
    return {"options.md": commands(), "python.md": library()} | {f"api/{room}.md": api(room) for room in ROOMS}


if __name__ == "__main__":
    for name, text in pages().items():
        path = Path("docs/reference") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
