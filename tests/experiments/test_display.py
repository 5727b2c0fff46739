"""What commands print: a user's text as it is, and whole numbers and names, in a pipe and in any terminal."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.markdown import Markdown

from routed_rl.experiments import cli
from routed_rl.experiments.common.agents import worlds
from routed_rl.experiments.common.characters import print_in_any_encoding
from routed_rl.experiments.common.display import show_markdown, show_table
from routed_rl.runs.progress import progress_display
from routed_rl.runs.tables import escaped, markdown
from tests.experiments.mistakes import complaints

ODD = "q[/b] *x* a_b_ ±é"
"""A name with markup of rich and of Markdown, and with letters that ASCII does not have."""
TERMINALS = {"pipe": (None, "utf-8"), "ASCII pipe": (None, "ascii"), "narrow": (40, "utf-8"), "ASCII": (40, "ascii")}


class Output(io.TextIOWrapper):
    """A stream that is a terminal if it has columns."""

    def __init__(self, columns, encoding, errors="strict"):
        super().__init__(io.BytesIO(), encoding=encoding, errors=errors)
        self.columns = columns

    def isatty(self):
        return self.columns is not None

    def text(self):
        """What was printed, without the codes for colours and the cursor."""
        self.flush()
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.buffer.getvalue().decode(self.encoding))


@contextlib.contextmanager
def outputs(columns, encoding):
    """Within the block, print to a pipe (no columns) or a terminal; gives standard output and standard error."""
    made = Output(columns, encoding), Output(columns, encoding, "backslashreplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns or 40))  # which is no reason to wrap what goes into a pipe
        patch.setenv("TERM", "xterm")
        patch.setattr("sys.stdout", made[0])
        patch.setattr("sys.stderr", made[1])
        yield made


def shown(text, output):
    """A text as this output has to show it."""
    return text.replace("±", "+-").replace("é", r"\xe9") if output.encoding == "ascii" else text


HEADER = ["model", "retain", "forget within 4 steps of attack", "steps / filtered", "FLOPs / filtered"]
ROWS = [[ODD.replace(" ", ""), "5.752 ± 0.001", "1,234,567", "", "0.25"], ["m" * 60, "-0.5", "7", "8", "9"]]


@pytest.mark.parametrize("show", [show_table, lambda *of: show_markdown(f"# {escaped(of[0])}\n\n{markdown(*of[1:])}")])
@pytest.mark.parametrize("of", TERMINALS)
def test_tables_keep_numbers_and_names_whole(of, show):
    with outputs(*TERMINALS[of]) as (output, _):
        print_in_any_encoding()
        show(ODD, HEADER, ROWS)
    text = output.text().replace("\\", "")
    for cell in filter(None, [*ROWS[0], *ROWS[1]]):
        assert shown(cell, output).replace("\\", "") in text, text
    if not output.isatty():  # a row a line
        assert any("m" * 60 in line and "-0.5" in line for line in text.splitlines())


@pytest.mark.parametrize("columns", [50, 80, 100, 160])
def test_a_table_takes_the_room_that_there_is(columns):
    with outputs(columns, "utf-8") as (output, _):
        show_table("", HEADER, [["a model of words", *row[1:]] for row in ROWS])
    lines = output.text().splitlines()
    assert max(map(len, lines)) <= columns
    assert ("┃" in lines[2]) == (columns > 50)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "M"]) | st.just(" "), max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_text_is_shown_as_it_is_in_markdown(text):
    console = Console(file=io.StringIO(), width=1000)
    for made in (markdown(["x"], [[f"a{text}"], [text]]), f"- {escaped(text)}\n- {escaped('a' + text)}"):
        console.print(Markdown(made))
    assert " ".join(console.file.getvalue().split()).count(" ".join(text.split())) >= 4


@pytest.mark.parametrize("of", TERMINALS)
def test_a_progress_display_cuts_no_number(of):
    with outputs(*TERMINALS[of]) as (_, errors), progress_display() as display:
        display.update(display.add_task(ODD, total=2_000_000), completed=123_456)
    text = errors.text()
    assert ("123,456 / 2,000,000 steps" in text and "[/b]" in text) if errors.isatty() else not text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a name of an odd kind, and in it a trained agent of such a name."""
    folder = tmp_path_factory.mktemp("odd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(worlds.FRESH_ENVS, "gridworld", (4, 8))
        small = ["--total-steps", "512", "--learner.n-envs", "8", "--learner.hidden", "8"]
        cli.main(["train", *small, "--out", str(folder / ODD)])
    texts = (f"[bold]{text}[/] ship {number} ±" for number in range(40) for text in ("the tree", "the [/b]"))
    (folder / f"{ODD}.txt").write_text("\n\n".join(texts))
    return folder


COMMANDS = {
    "train": ("train --total-steps 512 --learner.n-envs 8 --learner.hidden 8 --out RUN", "RUN"),
    "evaluate": ("evaluate RUN --n-envs 8", "RUN, policy: unsteered"),
    "watch": ("watch RUN --episodes 1 --fps 1000", "step 1"),
    "watch as GIF": ("watch RUN --episodes 1 --gif RUN.gif", "RUN.gif"),
    "curves": ("curves RUN --figure RUN.png", "Figure: RUN.png"),
    "cifar": (
        "cifar --seeds 1 --epochs 1 --out RUN-cifar",
        "Tables and figures: RUN-cifar; all of it on one page: RUN-cifar/report.html",
    ),
    "corpus": ("corpus --corpus TEXT --words tree", "'tree' 40"),
    "undo": ("undo --plan --out RUN-undo", "stages would run"),
}
"""Commands on paths of the odd kind, and a part of what they print. Studies print by the same functions."""


@pytest.mark.parametrize("of", ["pipe", "ASCII"])
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_print_on_every_terminal(name, of, folder, monkeypatch):
    monkeypatch.setitem(worlds.FRESH_ENVS, "gridworld", (4, 8))
    monkeypatch.chdir(folder)
    words, wanted = COMMANDS[name]
    run = str(folder / ODD)
    with outputs(*TERMINALS[of]) as (output, _):
        cli.main([word.replace("RUN", run).replace("TEXT", f"{run}.txt") for word in words.split()])
    assert shown(wanted.replace("RUN", run), output) in output.text()


@pytest.mark.parametrize("given", ["[red] " + "x" * 150, "a  b"])
@pytest.mark.parametrize("option", ["--method", "--seed"])
def test_a_mistake_is_quoted_as_it_was_made(option, given, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    (line,) = complaints(capsys, lambda: cli.main(["train", option, given]))
    assert repr(given) in line


def test_no_command_prints_by_a_console_of_its_own():
    """So that no later command reads markup in a path."""
    sources = Path(cli.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if re.search(r"\bConsole\(", path.read_text())] == ["display.py"]
