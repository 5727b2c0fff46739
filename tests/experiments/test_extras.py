"""The base installation, without the packages of any extra."""

import subprocess
import sys

import pytest

from routed_rl.extras import MissingExtraError, require

OPTIONAL = (
    "transformers", "datasets", "tokenizers", "peft", "accelerate", "huggingface_hub", "sklearn", "ray", "lm_eval",
)  # fmt: skip
SITE = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
absent = lambda name, *where: None if name.split(".")[0] in {absent!r} else find_spec(name, *where)
PathFinder.find_spec = staticmethod(absent)
"""
"""Imported by every Python at its start, so also by the processes that a study starts."""
ONE_AFTER_ANOTHER = f"""
import sys
from routed_rl.experiments.cli import main

for command in sys.argv[1:]:
    main(command.split())
sys.exit(", ".join(name for name in {OPTIONAL!r} if name in sys.modules) or 0)
"""
"""Runs several commands in one process. Exit status 1 and the names if a package of an extra was imported."""
LEARNER = ["--learner.n-envs", "8", "--learner.hidden", "8"]
TINY = ["--total-steps", "512"]


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Runs a command, or other code, where no extra is installed, or where the packages ``absent`` are not."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(site))

    def run(*arguments, code="from routed_rl.experiments.cli import main; main()", absent=OPTIONAL):
        (site / "sitecustomize.py").write_text(SITE.format(absent=absent))
        return subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ("quickstart", *TINY, "--workers", "1", "--out", "q"),
        ("oversight", *TINY, "--methods", "routing", "--levels", "0.1", "--seeds", "1", "--workers", "1", "--out", "o"),
        ("undo", "--help"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_reinforcement_learning_and_help_need_no_extra(arguments, base):
    done = base(*arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("absent", [OPTIONAL, ()], ids=["absent", "installed"])
def test_a_run_and_what_reads_it_import_no_extra(absent, base):
    train = " ".join(["train", *TINY, *LEARNER, "--out run"])
    done = base(
        train, "evaluate run", "watch run --gif run.gif", "curves run --figure run.png",
        code=ONE_AFTER_ANOTHER, absent=absent,
    )  # fmt: skip
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


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [(("undo", "--metric", "lm-eval"), "lm_eval", "eval"), (("era", "--quick", "--backend", "ray"), "ray", "ray")],
    ids=["eval", "ray"],
)
def test_the_other_extras_do_not_count_as_the_missing_one(arguments, package, extra, base):
    done = base(*arguments, absent=(package,))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == f"routed-rl: error: {package} is not installed: pip install 'routed-rl[{extra}]'"


@pytest.mark.parametrize("room", ["lm", "unlearning"])
def test_an_import_says_which_extra_is_missing(room, base):
    last = base(code=f"import routed_rl.{room}").stderr.splitlines()[-1]
    assert last.endswith("MissingExtraError: transformers is not installed: pip install 'routed-rl[lm]'")


def test_a_package_that_is_broken_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    require("lm", "broken_package", "json")
    assert "broken_package" not in sys.modules
    with pytest.raises(MissingExtraError, match=r"^no_such_package is not installed: pip install 'routed-rl\[lm\]'$"):
        require("lm", "json", "no_such_package")
