"""The command ``routed-rl``."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Union

import tyro

import routed_rl
from routed_rl.errors import fail, guarded
from routed_rl.experiments.arena.options import Arena
from routed_rl.experiments.benchmarks.options import Benchmark
from routed_rl.experiments.common.agents.options import PRESETS, Train
from routed_rl.experiments.common.characters import print_in_any_encoding
from routed_rl.experiments.demo.options import Demo
from routed_rl.experiments.gridworld.options import Curves, Evaluate, Quickstart, Watch
from routed_rl.experiments.hacking.options import Hacking
from routed_rl.experiments.language.options import Corpus, Era, SteeringScalar
from routed_rl.experiments.oversight.options import Oversight
from routed_rl.experiments.overview.options import Runs
from routed_rl.experiments.undo.options import Undo
from routed_rl.experiments.vision.options import Cifar, Mnist
from routed_rl.options.conform import conform
from routed_rl.options.era import PRESETS as TEXT_PRESETS
from routed_rl.options.era import Unlearn
from routed_rl.options.undo import TASKS
from routed_rl.wording import did_you_mean, option_names, speak_of

GROUPS: Mapping[str, Mapping[type, str]] = {
    "Start": {Quickstart: "gridworld.quickstart", Demo: "demo.demo", Runs: "overview.runs"},
    "Agents under partial oversight": {
        Train: "gridworld.train",
        Evaluate: "gridworld.evaluate",
        Watch: "gridworld.watch",
        Curves: "gridworld.curves",
        Oversight: "oversight.oversight",
    },
    "Language models": {
        Corpus: "language.corpus",
        Unlearn: "language.unlearn",
        Era: "language.era",
        SteeringScalar: "language.steering_scalar",
        Undo: "undo.undo",
        Arena: "arena.arena",
        Hacking: "hacking.hacking",
    },
    "Vision": {Mnist: "vision.mnist", Cifar: "vision.cifar"},
    "Speed": {Benchmark: "benchmarks.benchmark"},
}
"""The commands by subject, in the order of ``--help``, with the module of each. It is imported only when it is run."""
MODULES = {of: module for group in GROUPS.values() for of, module in group.items()}
"""The module of each command. Its ``main`` runs the command."""
UNLIMITED = 10**5
"""Columns of a terminal that no error of a user's fills."""
NONE_IN_ANY_CASE = tyro.constructors.ConstructorRegistry()
"""How the command line says that an option has no value: None, none or NONE."""


@NONE_IN_ANY_CASE.primitive_rule
def _none(of: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[None] | None:
    if of.type is not type(None):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{None}",
        choices=("None", "none", "NONE"),
        instance_from_str=lambda words: None,
        is_instance=lambda value: value is None,
        str_from_instance=lambda value: ["None"],
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. A user's mistake ends with one line on standard error and exit status 2."""

    def run() -> None:
        given = list(sys.argv[1:] if argv is None else argv)
        if not given or given[0] in ("-h", "--help", "--version"):
            print(f"routed-rl {version('routed-rl')}" if given == ["--version"] else overview())
            return
        command = parse(given)
        speak_of(type(command))
        os.environ["MPLBACKEND"] = "agg"  # before matplotlib is imported: commands draw into files
        with _no_garbage():
            module = import_module(f"{__package__}.{MODULES[type(command)]}")
        module.main(command)

    print_in_any_encoding()
    guarded(run)


def overview() -> str:
    """Return the help of ``routed-rl`` itself: its commands, by subject."""
    width = min(100, shutil.get_terminal_size().columns)
    lines = ["usage: routed-rl [-h] [--version] COMMAND …", "", *textwrap.wrap(str(routed_rl.__doc__), width)]
    for subject, group in GROUPS.items():
        lines += ["", f"{subject}:"]
        for of in group:
            first = re.split(r"(?<=[.])\s", " ".join(str(of.__doc__).split()))[0]
            lines += textwrap.wrap(
                f"  {command_name(of):<17}{first}", width, subsequent_indent=" " * 19, break_on_hyphens=False
            )
    lines += ["", "routed-rl COMMAND --help lists the options of a command."]
    lines += ["routed-rl --tyro-print-completion bash (or zsh, tcsh) prints what completes commands in your shell."]
    return "\n".join(lines)


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Within the block, which imports, look for no garbage: that takes an eighth of the time, and there is none."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def parse(argv: Sequence[str]) -> Any:
    """The command, with its options, that a command line asks for."""
    arguments = list(argv)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _unwrapped(arguments):
            command = tyro.cli(
                commands(*_named(arguments)),
                prog="routed-rl",
                description=routed_rl.__doc__,
                args=arguments,
                registry=NONE_IN_ANY_CASE,
            )
        return replace(command, **conform(type(command), vars(command)))
    except SystemExit as stop:
        if stop.code:
            raise SystemExit(fail(_unknown(arguments) or _plain(_first_paragraph(said.getvalue())))) from None
        raise


@contextlib.contextmanager
def _unwrapped(arguments: Sequence[str]) -> Iterator[None]:
    """Within the block, let tyro wrap no error, and so insert no spaces into what the user passed. Help is wrapped."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & {*arguments}:
        os.environ["COLUMNS"] = str(UNLIMITED)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        os.environ |= {} if before is None else {"COLUMNS": before}


def commands(preset: str | None = None, task: str | None = None, quick: bool = False) -> Any:
    """The union of all commands, for tyro. A preset, a task and ``--quick`` set the defaults of the commands that have
    them."""
    usual = {of: {"default": default} for of, default in defaults(preset, task).items()}
    if quick:
        for of in MODULES:
            if found := getattr(of, "QUICK", None):
                usual[of] = {"default": replace(usual.get(of, {}).get("default") or of(), **found)}
    parts = (Annotated[of, tyro.conf.subcommand(command_name(of), **usual.get(of, {}))] for of in MODULES)
    return Union[tuple(parts)]  # noqa: UP007


def defaults(preset: str | None = None, task: str | None = None) -> dict[type, Any]:
    """The default options of the commands that have presets or tasks, by command."""
    # The user may name any preset, also one of another command.
    texts: dict[str | None, dict[str, Any]] = dict(TEXT_PRESETS.items())
    trains: dict[str | None, Train] = dict(PRESETS.items())
    text = {"preset": preset, **texts[preset]} if preset in texts else {}
    asked = (task or Undo.task, preset or Undo.preset)
    undo = {"task": asked[0], "preset": asked[1], **TASKS[asked]} if asked in TASKS else {}
    return {
        Train: trains.get(preset, Train()),
        Era: Era(**text),
        Unlearn: Unlearn(**text),
        Undo: Undo(**undo),
    }


def command_name(of: type) -> str:
    """The name of a command on the command line: the name of its class in kebab case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", of.__name__).lower()


def _named(arguments: Sequence[str]) -> tuple[str | None, str | None, bool]:
    """The preset and the task that the command line names, and whether it says ``--quick``. They set the defaults of
    other options.

    An unknown name is returned as it is. Tyro refuses it later.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--preset", "--task", "--env"):
        parser.add_argument(option, nargs="?")
    parser.add_argument("--quick", action="store_true")
    found = parser.parse_known_args(arguments)[0]
    return found.preset or ("own" if found.env else None), found.task, found.quick


def _unknown(arguments: Sequence[str]) -> str | None:
    """What to say of the first word that is no command or no option of the command. None: all are known."""
    names = {command_name(of): of for of in MODULES}
    name, *words = arguments
    if name not in names:
        if name.startswith("-"):
            return None
        return f"there is no command {name!r}; the commands are {', '.join(names)}{did_you_mean(name, names)}"
    known = list(dict.fromkeys(option_names(names[name]).values()))
    for word in words:
        option = word.partition("=")[0].replace("_", "-")
        group, dot, last = option.removeprefix("--").rpartition(".")
        if option.startswith("--") and not {option, f"--{group}{dot}{last.removeprefix('no-')}"} & {*known, "--help"}:
            nearest = did_you_mean(option, known, show=str)
            return f"{name} has no option {option}; see routed-rl {name} --help{nearest}"
    return None


def _plain(message: str) -> str:
    """A message of tyro's in the words of our own."""
    choice = re.fullmatch(r"invalid choice '(.*)' for argument '(--\S+?)'\. Expected one of \((.*)\)\.", message)
    if choice:
        given, option, listed = choice.groups()
        known = sorted({word for word in re.findall(r"'([^']*)'", listed) if word not in ("none", "NONE")})
        return f"{option} must be one of {', '.join(known)}, got {given!r}{did_you_mean(given, known)}"
    value = re.match(r"Error parsing (--\S+?): no type matching (\S+) could be instantiated from \['(.*?)'\]", message)
    if value:
        option, wanted, given = value.groups()
        return f"{option} must be {wanted.replace('{None}', 'None').replace('|', ' or ')}, got {given!r}"
    return message


def _first_paragraph(box: str) -> str:
    """The message in tyro's error box, on one line: the text from below the title to the next horizontal rule.

    A terminal without box-drawing characters gets rules of hyphens, and no frame.
    """
    lines: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip(" │")
        if re.fullmatch(r"[─╰╯]+|-{5,}", text):
            if lines:
                break
        elif text:
            lines.append(text)
    return " ".join(lines) or " ".join(box.split())


if __name__ == "__main__":
    main()
