"""The base installation, without the packages of any extra."""

import subprocess
import sys

import pytest

from routed_rl.extras import MissingExtraError, require

OPTIONAL = (
    "transformers", "datasets", "tokenizers", "peft", "accelerate", "huggingface_hub", "sklearn", "ray", "lm_eval",
)  # fmt: skip
SITE = f"""
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
absent = lambda name, *where: None if name.split(".")[0] in {OPTIONAL!r} else find_spec(name, *where)
PathFinder.find_spec = staticmethod(absent)
"""
"""Imported by every Python at its start, so also by the processes that a study starts."""
LEARNER = ["--learner.n-envs", "8", "--learner.hidden", "8"]
TINY = ["--total-steps", "512"]


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Runs a command, or other code, where no extra is installed."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", str(site))

    def run(*arguments, code="from routed_rl.experiments.cli import main; main()"):
        return subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", *TINY, *LEARNER, "--out", "run"),
        ("quickstart", *TINY, "--workers", "1", "--out", "q"),
        ("oversight", *TINY, "--methods", "routing", "--levels", "0.1", "--seeds", "1", "--workers", "1", "--out", "o"),
        ("undo", "--help"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_reinforcement_learning_and_help_need_no_extra(arguments, base):
    done = base(*arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("undo",), "lm"),
        (("era", "--quick"), "lm"),
        (("unlearn",), "lm"),
        (("steering-scalar",), "lm"),
        (("benchmark",), "lm"),
        (("mnist",), "vision"),
        (("cifar",), "vision"),
        (("oversight", *TINY, "--backend", "ray"), "ray"),
    ],
    ids=lambda given: given if isinstance(given, str) else given[0],
)
def test_a_command_says_which_extra_is_missing(arguments, extra, base, tmp_path):
    done = base(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("routed-rl: error: ") and line.endswith(
        f"is not installed: pip install 'routed-rl[{extra}]'"
    )
    assert not list(tmp_path.rglob("evaluation.json"))


@pytest.mark.parametrize("room", ["lm", "unlearning"])
def test_an_import_says_which_extra_is_missing(room, base):
    last = base(code=f"import routed_rl.{room}").stderr.splitlines()[-1]
    assert last.endswith("MissingExtraError: transformers is not installed: pip install 'routed-rl[lm]'")


def test_a_package_that_is_broken_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as raised:
        require("lm", "broken_package")
    assert not isinstance(raised.value, MissingExtraError)
    require("lm", "json")
