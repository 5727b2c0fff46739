"""What the table of an UNDO study says of results that mean less than they seem to."""

from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.figure import Figure

from routed_rl.options.undo import Distil, Relearn, UndoOptions
from routed_rl.unlearning import StopRule
from routed_rl.unlearning.metrics import Answers
from routed_rl.unlearning.undo_study.figures import draw_trade_off
from routed_rl.unlearning.undo_study.report import compared, summary

OPTIONS = UndoOptions(metric=("answers",), relearn=Relearn(measured=(10, 20)), distil=Distil(steps=100, least=60))
COMMON = {"seed": 0, "strength": 1.0, "labelled": 1.0, "inside_grid": True, "flops": 1.0, "diverged": None}
REFERENCE = {"model": "reference", "suppressor": None, "strength": None, "labelled": None}
FILTERED = {**REFERENCE, "model": "filtered", "retain": 1.0, "forget_20": 0.2}
TEACHER = {"model": "suppressed", "suppressor": "maxent", "retain": 0.9, "forget_20": 1.0, "weak_teacher": False}
STUDENT = {
    **TEACHER,
    "model": "undo",
    "alpha": 0.4,
    "beta": 0.1,
    "forget_20": 0.6,
    "steps": 80,
    "reached": True,
    "early": False,
}


def table(*students, teacher=TEACHER, options=OPTIONS):
    """Return the frame and the summary of a study with these students."""
    rows = [{**COMMON, "steps": 100, "forget": 0.1, **row} for row in (FILTERED, teacher, *students)]
    for row in rows:
        row["name"] = ", ".join(str(row[key]) for key in ("model", "suppressor", "alpha") if row.get(key) is not None)
    rule = StopRule(0.05, higher_is_better=True)
    frame = pd.DataFrame(compared(rows, options, rule))
    return frame, summary(frame.assign(alpha=frame.get("alpha")), options, list(frame.name), {"answers": Answers()})


def test_a_good_student_is_compared_without_a_remark():
    frame, text = table(STUDENT)
    assert frame.robustness.tolist()[2] == pytest.approx(0.5) and frame.comparable[2]
    assert (
        "| undo, maxent, 0.4 | 80 |" in text and "| 0.500 |" in text and "(0.5" not in text and text.count("\n\n") == 3
    ), "no remark"


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        ({"retain": 0.5}, {}, "the student does not have its teacher's retain performance"),
        ({"retain": 0.5, "reached": False, "steps": 100}, {}, "At the last step the retain performance was not yet"),
        ({"weak_teacher": True}, {"weak_teacher": True}, "or the teacher had not forgotten"),
    ],
)
def test_robustness_that_means_little_is_in_parentheses(student, teacher, sentence):
    frame, text = table({**STUDENT, **student}, teacher={**TEACHER, **teacher})
    assert not frame.comparable[2] and "| (0.500) |" in text
    assert sentence in text and text.count("undo, maxent, 0.4") >= 2
    without_rule = replace(OPTIONS, distil=replace(OPTIONS.distil, within=None))
    assert not table({**STUDENT, **student}, teacher={**TEACHER, **teacher}, options=without_rule)[0].comparable[2]


def test_students_that_were_hardly_distilled_are_named():
    hardly = {**STUDENT, "alpha": 0.1, "steps": 60, "early": True}
    text = table(STUDENT, hardly)[1]
    (sentence,) = [line for line in text.splitlines() if "--distil.least 60" in line]
    assert "undo, maxent, 0.1" in sentence and "undo, maxent, 0.4" not in sentence


def test_attacks_that_diverged_are_named():
    text = table({**STUDENT, "diverged": "0.003 0.01"})[1]
    assert "The attack diverged at the learning rates in brackets" in text and "undo, maxent, 0.4 (0.003 0.01)" in text


def test_the_figure_draws_such_students_empty():
    frame, _ = table(STUDENT, {**STUDENT, "alpha": 0.6, "retain": 0.5}, {**STUDENT, "alpha": 0.8, "steps": 90})
    figure = draw_trade_off(frame[frame.model == "undo"], 0.1)
    assert isinstance(figure, Figure)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert "empty: retain performance not back" in labels
    (joined,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    assert list(joined.get_xdata()) == [80.0, 90.0], "the line of means leaves them out"
