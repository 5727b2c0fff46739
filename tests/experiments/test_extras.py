"""The base installation, without the packages of any extra."""

import os
import subprocess
import sys
from importlib.machinery import PathFinder

import pytest

from routed_rl.experiments.cli import main
from routed_rl.extras import MissingExtraError, require
from routed_rl.unlearning import harness

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
from routed_rl import extras

def refuse(extra, *packages):
    sys.exit(f"{{extra}} is required")

extras.require = refuse  # before anything takes it from there
from routed_rl.experiments.cli import main

for command in sys.argv[1:]:
    main(command.split())
sys.exit(", ".join(name for name in {OPTIONAL!r} if name in sys.modules) or 0)
"""
"""Runs several commands in one process. Exit status 1 if an extra is required, or a package of one was imported."""
EACH = """
import os, sys
import pandas, stable_baselines3, torch
from routed_rl.experiments.cli import main

for command in sys.argv[1:]:
    if os.fork() == 0:
        status = 0
        try:
            main(command.split())
        except SystemExit as stop:
            status = stop.code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # an exit by way of Python takes long where torch is imported
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
"""Runs each command in a process of its own, in which only the command line and what needs no extra are imported
already. Prints the exit statuses."""
TINY = ["--total-steps", "64"]


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Runs a command, or other code, where no extra is installed, or where the packages ``absent`` are not."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)

    def run(*arguments, code="from routed_rl.experiments.cli import main; main()", absent=OPTIONAL):
        (site / "sitecustomize.py").write_text(SITE.format(absent=absent))
        return subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.mark.integration
def test_reinforcement_learning_needs_no_extra(base):
    """Also the processes that a study starts need none. What reads a run imports none: see the next test."""
    done = base("oversight", *TINY, "--methods", "routing", "--levels", "0.1", "--seeds", "1", "--out", "o")
    assert done.returncode == 0, done.stderr


@pytest.mark.integration
def test_runs_and_what_reads_them_import_no_extra_that_is_installed(base):
    """Quickstart finds its runs done, so that all is in one process."""
    trained = [f"train --total-steps 64 --method {method} --out q/{method}" for method in ("routing", "naive")]
    read = [
        "evaluate q/routing --n-envs 8",
        "watch q/routing --episodes 1 --gif run.gif",
        "curves q/naive --figure c.png",
    ]
    done = base(*trained, *read, "quickstart --total-steps 64 --out q", code=ONE_AFTER_ANOTHER, absent=())
    assert done.returncode == 0, done.stderr
    assert "steered to Diamond" in done.stdout


NEEDED = {
    "undo": "lm",
    "era --quick": "lm",
    "unlearn": "lm",
    "steering-scalar": "lm",
    "benchmark": "lm",
    "mnist": "vision",
    "cifar": "vision",
    f"oversight {' '.join(TINY)} --backend ray": "ray",
}


@pytest.mark.integration
def test_a_command_says_which_extra_is_missing_and_its_help_needs_none(base, tmp_path):
    done = base(*NEEDED, "undo --help", code=EACH)
    assert done.returncode == 0 and done.stdout.split()[: len(NEEDED)] == ["2"] * len(NEEDED), done.stderr
    assert done.stdout.split()[-1] == "0" and "--alphas" in done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == len(NEEDED), done.stderr
    for line, extra in zip(lines, NEEDED.values(), strict=True):
        assert line.startswith("routed-rl: error: ") and line.endswith(
            f"is not installed: pip install 'routed-rl[{extra}]'"
        )
    assert not list(tmp_path.rglob("evaluation.json"))


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [("undo --metric lm-eval", "lm_eval", "eval"), ("era --quick --backend ray", "ray", "ray")],
)
def test_the_other_extras_do_not_count_as_the_missing_one(command, package, extra, tmp_path, capsys, monkeypatch):
    """Where all is installed but lm-eval and Ray, each is missing where it is asked for."""
    find_spec = PathFinder.find_spec
    for name in ("lm_eval", "ray"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(
        PathFinder, "find_spec", lambda name, *where: None if name in ("lm_eval", "ray") else find_spec(name, *where)
    )
    monkeypatch.setattr(harness, "_tasks", harness._tasks.__wrapped__)  # another test may have found lm-eval
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    missing = f"{package} is not installed: pip install 'routed-rl[{extra}]'"
    assert stop.value.code == 2 and capsys.readouterr().err == f"routed-rl: error: {missing}\n"


def test_an_import_says_which_extra_is_missing(base):
    """Also a second one, of a package above."""
    code = "try: import routed_rl.lm\nexcept ImportError as error: print(error)\nimport routed_rl.unlearning"
    done = base(code=code)
    missing = "transformers is not installed: pip install 'routed-rl[lm]'"
    assert done.stdout.strip() == missing
    assert done.stderr.splitlines()[-1].endswith(f"MissingExtraError: {missing}")


def test_a_package_that_is_broken_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    require("lm", "broken_package", "json")
    assert "broken_package" not in sys.modules
    with pytest.raises(MissingExtraError, match=r"^no_such_package is not installed: pip install 'routed-rl\[lm\]'$"):
        require("lm", "json", "no_such_package")


def test_language_models_are_imported_without_what_only_a_model_needs():
    """A command that plans or refuses does not wait for it."""
    heavy = ("transformers.modeling_utils", "torch.distributed.tensor", "torch._dynamo", "peft", "datasets", "sklearn")
    code = f"import sys, routed_rl.lm, routed_rl.unlearning.arena; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
