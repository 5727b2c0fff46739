"""The figures of an oversight study, of results that are made up."""

import itertools

import numpy as np
import pandas as pd
import pytest

from routed_rl.rl.oversight_study.figures import draw_bars, draw_curves, draw_noise, draw_returns, looks, panels
from routed_rl.rl.oversight_study.table import NAIVE, noise_rows
from tests.figure_checks import check, colours, labels, series

AT_TEN = {
    "oracle": 0.876, "reward-model": 0.875, "routing-predicted": 0.86, "naive-early-stopped": 0.694, "naive": 0.687,
    "filtering": 0.064,
}  # fmt: skip
ROUTED = {"steer": 0.77, "contrast": 0.809, "sharpened": 0.769}
CONTROLS = {"penalty": 0.71, "strict": 0.47, "no-gate": 0.40, "placebo": 0.01, "shuffled": 0.07, "screening": 0.02}
STEERED = ("routing-predicted", "strict", "no-gate", "placebo", "shuffled", "flip-0.1", "miss-0.5-hard")


def limits(level):
    return {"optimum": 0.909, "Diamond seeker blind to Ghost": 0.777, "any terminal state": 0.0, NAIVE: 1.2 * level}


def frame(methods, levels=(0.01, 0.1, 0.4), seeds=3):
    rows = []
    for (name, mean), level, seed in itertools.product(methods.items(), levels, range(seeds)):
        policies = {f"{way}:diamond": value for way, value in ROUTED.items()} if name == "routing" else {}
        policies = policies or {"steer:diamond" if name in STEERED else "unsteered": mean}
        for policy, value in policies.items():
            found = value + 0.02 * (seed - 1) - 0.1 * (level == 0.01)
            rows.append((name, level, seed, policy, "sampled", "final", found))
    columns = ["method", "oversight", "seed", "policy", "decoding", "checkpoint", "true_return"]
    return pd.DataFrame(rows, columns=columns)


MAIN = {"routing": 0, **AT_TEN}


@pytest.mark.parametrize("seeds", [1, 2])
def test_returns_can_be_read(seeds):
    figure = draw_returns(frame(MAIN, seeds=seeds), "diamond", limits, looks(MAIN))
    check(figure)
    methods, predicted, steered = figure.axes
    assert {line.get_label() for line in series(methods)} == {"routed", *AT_TEN} - {"reward-model", "routing-predicted"}
    assert {line.get_label() for line in series(predicted)} == {
        "routed", "oracle", "reward-model", "routing-predicted",
    }  # fmt: skip
    assert "optimum of the naive training reward (exact)" in labels(methods)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["optimum: 0.909", "Diamond seeker blind to Ghost: 0.777", "any terminal state: 0.000"]
    assert {line.get_label() for line in series(steered)} == {
        "routed", "routed, contrastive", "routed, sharpened (control)",
    }  # fmt: skip
    assert methods.get_xlabel() == "" and "%" in steered.get_xlabel()


def test_a_control_on_top_of_its_twin_can_be_seen():
    routed, control = (looks(["routing"])[name] for name in ("routed", "routed, sharpened (control)"))
    assert control["markersize"] > 4 and control["markerfacecolor"] == "none" and control["linestyle"] == ":"
    assert routed["linestyle"] == "-"


def test_bars_and_noise_can_be_read():
    noisy = {"routing": 0, "flip-0.1": 0.26, "miss-0.5-hard": 0.76}
    bars = draw_bars(frame(MAIN | CONTROLS), "diamond", 0.1, limits, looks(MAIN | CONTROLS))
    check(bars)
    methods, controls = ([label.get_text() for label in axes.get_yticklabels()] for axes in bars.axes)
    assert {"routed", "routed, contrastive", *AT_TEN} == set(methods)
    assert {"routed, sharpened (control)", *CONTROLS} == set(controls)
    check(draw_noise(noise_rows(frame(noisy), 0.1), "diamond", 0.1))


def test_own_methods_and_controls_have_panels_of_at_most_seven():
    own = ["mine", "yours"]
    look = looks([*MAIN, *own, *CONTROLS])
    found = panels(["routed", *AT_TEN, *own, *CONTROLS], look)
    assert [(title, len(names)) for title, names in found] == [
        ("Methods", 4), ("Methods", 3), ("Methods with an outcome model", 4), ("Controls", 7),
    ]  # fmt: skip
    assert {name for _, names in found for name in names} == {"routed", *AT_TEN, *own, *CONTROLS}
    assert [title for title, _ in panels(["routed", "reward-model"], look)] == ["Methods with an outcome model"]
    assert found[-1][1][0] == "routed", "beside which controls stand"
    assert look["mine"]["color"] != look["yours"]["color"]


def test_a_method_has_one_colour_in_all_figures(monkeypatch):
    def curve(run, policy):
        return [(step, 0.1 * run + 0.3 * step / 2e6) for step in np.linspace(0, 2e6, 30)]

    monkeypatch.setattr("routed_rl.rl.oversight_study.figures.learning_curve", curve)
    runs = {(name, "unsteered"): [place, place + 0.1, place - 0.1] for place, name in enumerate(AT_TEN)}
    curves = draw_curves(runs, 0.1, limits, looks(AT_TEN))
    check(curves)
    returns = draw_returns(frame(MAIN), "diamond", None, looks(MAIN))
    assert colours(curves).items() <= colours(returns).items()
