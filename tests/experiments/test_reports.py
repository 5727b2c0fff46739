"""Every kind of study has a report that a test opens in a browser, and says how far it is, also when it is extended."""

from importlib import import_module
from inspect import getsource

import pytest

pytest.importorskip("trl")

from routed_rl.experiments import cli
from routed_rl.experiments.common.studies import LocalStudy
from routed_rl.experiments.language.steering_scalar import SteeringReport
from routed_rl.experiments.vision.cifar import CifarReport
from routed_rl.experiments.vision.mnist import MnistReport
from routed_rl.lm import EraStudy
from routed_rl.lm.hacking import HackingStudy
from routed_rl.rl.oversight_study.study import OversightGrid
from routed_rl.runs.overview import list_runs
from routed_rl.runs.studies import PLANNED, REPORT, RESULTS, Study
from routed_rl.unlearning import UndoStudy
from routed_rl.unlearning.arena import ArenaStudy

TESTS = {
    OversightGrid: "test_oversight",
    EraStudy: "test_era",
    UndoStudy: "test_undo",
    ArenaStudy: "test_arena",
    HackingStudy: "test_hacking",
    MnistReport: "test_mnist",
    CifarReport: "test_mnist",
    SteeringReport: "test_steeringscalar",
}
"""For each kind of study: the tests that make one, and open its report."""


KINDS = [kind for of in (Study, LocalStudy) for kind in of.__subclasses__() if kind.__module__.startswith("routed_rl.")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_study_has_a_report_that_a_test_opens(kind):
    source = getsource(import_module(f"tests.experiments.{TESTS[kind]}"))
    assert f'"{kind.REPORT}", charts=' in source and "assert_described(" in source
    assert kind is ArenaStudy or kind.REPORT == REPORT


@pytest.mark.parametrize(
    ("module", "command", "runs"),
    [
        ("vision.mnist", ["mnist", "--setting", "1", "9", "--seeds", "2"], 4),
        ("vision.cifar", ["cifar", "--seeds", "2"], 2),
        ("language.steering_scalar", ["steering-scalar", "--documents", "50", "--seeds", "2"], 4),
    ],
)
def test_a_study_that_is_extended_and_killed_is_not_finished(module, command, runs, tmp_path, monkeypatch):
    """Although the table of an earlier start is there."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"routed_rl.experiments.{module}._train", killed)
    for _ in range(2):
        with pytest.raises(SystemExit):
            cli.main([*command, "--out", str(tmp_path / "study")])
        (tmp_path / "study" / RESULTS).write_text("a\n1\n")
        assert list_runs(tmp_path)[["state", "progress"]].values.tolist() == [["stopped", f"0 of {runs} runs"]]
        (tmp_path / "study" / PLANNED).unlink()  # as in an earlier version
