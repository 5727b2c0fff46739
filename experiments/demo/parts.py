"""Parts that the tabs about language models share: panes that follow widgets, sample texts, messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pandas as pd
import panel as pn

from routed_rl.errors import UserError

WIDE = "stretch_width"
APPLIES = "changes apply when you leave the field"
"""Part of the labels of text fields."""
TABLE_STYLES = """
table { border-collapse: collapse; }
th, td { padding: 2px 10px; text-align: right; border-bottom: 1px solid rgba(128, 128, 128, 0.4); }
th:first-child, td:first-child, .words th:last-child, .words td:last-child { text-align: left; }
.scroll { overflow-x: auto; }
p { margin: 0.4em 0; }
"""
"""Style sheet of tables and paragraphs, for light and dark pages."""
Found = TypeVar("Found")


class Sampled(Protocol):
    """Something with sample texts, by what they are called."""

    def samples(self) -> dict[str, str]: ...


def html(function: Callable[..., str], *widgets: Any, styles: str = "", **options: Any) -> pn.pane.HTML:
    """Return a pane that shows what a function returns for the values of widgets, and follows them.

    Args:
        function: returns HTML. Its UserErrors are shown as text.
        widgets: widgets or parameters, or constants.
        styles: a further style sheet.
        options: of the pane.
    """

    @wraps(function)
    def shown(*values: Any) -> str:
        try:
            return function(*values)
        except UserError as error:
            return message(str(error))

    sheets = [TABLE_STYLES, styles]
    return pn.pane.HTML(pn.bind(shown, *widgets), stylesheets=sheets, sizing_mode=WIDE, **options)


def attack_steps(count: int) -> str:
    """Return a number of attack steps in words.

    >>> attack_steps(1)
    '1 attack step'
    """
    return f"{count} attack step{'s' * (count != 1)}"


def paragraph(text: str) -> str:
    """Return a text as a paragraph of HTML, escaped."""
    return f"<p>{escape(text)}</p>"


def message(text: str) -> str:
    """Return a paragraph that screen readers announce, escaped."""
    return f'<p role="alert">{escape(text)}</p>'


def tabular(frame: pd.DataFrame, name: str, words: bool = False) -> str:
    """Return a table of texts as HTML, escaped. A wide table scrolls on its own, with the keyboard too.

    Args:
        name: what the table is called for screen readers.
        words: whether the last column has words, not numbers.
    """
    table = frame.to_html(index=False, border=0, classes="words" if words else None)
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{table}</div>'


def note(text: str) -> pn.pane.HTML:
    """Return a pane with a paragraph of plain text."""
    return pn.pane.HTML(paragraph(text), stylesheets=[TABLE_STYLES], sizing_mode=WIDE)


def missing(what: str, commands: Mapping[str, str]) -> pn.pane.HTML:
    """Return a pane that says which commands make what is missing.

    Args:
        what: a sentence that says what is missing.
        commands: how long each command takes, by command.
    """
    lines = "".join(f"<li><code>{escape(command)}</code>: {escape(time)}</li>" for command, time in commands.items())
    text = f"{paragraph(what)}<ul>{lines}</ul><p>Then give its directory to <code>routed-rl demo</code>.</p>"
    return pn.pane.HTML(text, stylesheets=[TABLE_STYLES], sizing_mode=WIDE)


def collect(
    directories: Sequence[Path], find: Callable[[Path], Sequence[Found]]
) -> tuple[list[Found], list[pn.pane.HTML]]:
    """Return what is found in all directories, and a pane for each directory that cannot be read."""
    found: list[Found] = []
    problems = []
    for directory in directories:
        try:
            found += find(directory)
        except UserError as error:
            problems.append(pn.pane.HTML(message(str(error)), sizing_mode=WIDE))
        except (LookupError, TypeError) as error:  # of files that somebody has edited
            text = f"The files in {str(directory)!r} are not those of a study: {error!r}. Run the study again."
            problems.append(pn.pane.HTML(message(text), sizing_mode=WIDE))
    return found, problems


def titled(found: Iterable[Any], title: Callable[[Any], str] = lambda thing: thing.title) -> dict[str, Any]:
    """Return things by their titles. Equal titles, of directories with the same name, are numbered."""
    options: dict[str, Any] = {}
    for thing in found:
        same = sum(title(other) == title(thing) for other in options.values())
        options[f"{title(thing)} ({same + 1})" if same else title(thing)] = thing
    return options


def select(name: str, found: Sequence[Any]) -> pn.widgets.Select:
    """Return a choice of things by their titles, as :func:`titled`."""
    return pn.widgets.Select(name=name, options=titled(found), sizing_mode=WIDE)


def switch(name: str) -> pn.widgets.CheckBoxGroup:
    """Return a check box. Its value is a list, which is empty while it is off.

    A group of one is used because screen readers do not find the label of a single check box of Panel.
    """
    return pn.widgets.CheckBoxGroup(name=name, options=[name])


def sample_choice(text: pn.widgets.Widget, owner: Sampled) -> pn.widgets.Select:
    """Return a choice of sample texts that fills a text field. The first one is filled in."""
    choice = pn.widgets.Select(name="Sample text of the study", sizing_mode=WIDE)

    def fill(*events: Any) -> None:
        if choice.value is not None:
            text.value = choice.value

    choice.param.watch(fill, "value")
    offer(choice, owner)
    return choice


def offer(choice: pn.widgets.Select, owner: Sampled) -> None:
    """Let a choice offer the sample texts of another model, and choose the first one. Without texts it is hidden."""
    try:
        samples = owner.samples()
    except UserError:  # the pane that measures the text says so too
        samples = {}
    choice.param.update(options=samples, value=next(iter(samples.values()), None), visible=bool(samples))
