"""The figures of an arena, of results that are made up."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation

from routed_rl.runs.figures import MOST
from routed_rl.unlearning.arena.figures import figures
from tests.figure_checks import check

METHODS = ("npo", "repselect", "graddiff", "wga", "simnpo", "maxent", "rmu", "lat")
STAGES = (("none", np.nan), ("undo", 0.6))
BENCHMARK = SimpleNamespace(main="knowledge")


def models(methods=METHODS, stages=STAGES, befores=("none", "era")):
    for place, (before, method, (then, alpha)) in enumerate(product(befores, methods, stages)):
        name = " + ".join(["ERA"] * (before == "era") + [method] + [f"{then} {alpha:g}"] * (then != "none"))
        yield name, before, method, then, alpha, 0.9 - 0.01 * place, 0.69
    yield "retrained", "none", None, "none", np.nan, 0.0, 0.84
    yield "full", "none", None, "none", np.nan, 0.97, 0.8


def drawn(seeds=2, **of):
    rows, board = [], {}
    for name, before, method, then, alpha, excess, utility in models(**of):
        for seed in range(seeds):
            common = {"name": name, "seed": seed}
            worst = {"value": excess, "excess": excess + seed / 50}
            rows.append({**common, "attack": "worst", "score": "knowledge", **worst})
            rows.append({**common, "attack": "none", "score": "model-utility", "value": utility, "excess": np.nan})
        about = {"before": before, "method": method, "then": then, "alpha": alpha, "kept": method != "rmu"}
        scores = {"knowledge": 0.1, "model-utility": utility, "after worst": excess, "excess worst": excess}
        scores["utility after worst"] = np.nan if method == "lat" else utility - 0.2
        board[name] = about | scores | {"compute": np.nan if method is None else 0.2 + 0.7 * (then == "undo")}
    return figures(pd.DataFrame(rows), pd.DataFrame(board.values(), index=[*board]), BENCHMARK, "model-utility")


def arrows(axes):
    return [text for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch is not None]


def shown(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


@pytest.mark.parametrize(
    "of",
    [
        {},
        {"seeds": 3, "befores": ["none"]},
        {"methods": METHODS[:5]},
        {"methods": METHODS[:1], "stages": [*STAGES, ("distil", np.nan)]},
        {"methods": [], "befores": []},
    ],
)
def test_all_figures_can_be_read(of):
    for name, draw in drawn(**of).items():
        figure = draw()
        check(figure)
        assert name == "ranks" or all(axes.get_xlabel() for axes in shown(figure)[-4:]), "the lowest of each column"


def test_each_method_has_a_panel_with_an_arrow_for_each_of_its_models():
    panels = {axes.get_title(loc="left"): axes for axes in shown(drawn()["arrows"]())}
    assert list(panels) == list(METHODS)
    for axes in panels.values():
        places = {(arrow.arrow_patch.get_edgecolor(), arrow.arrow_patch.get_linestyle()) for arrow in arrows(axes)}
        assert len(arrows(axes)) == 6 and len(places) == 5, "four models, and two to compare them with"


def test_an_arrow_ends_at_the_utility_after_the_attack_or_before_one_that_changes_only_prompts():
    panels = {axes.get_title(loc="left"): axes for axes in shown(drawn()["arrows"]())}
    ends = {name: {round(arrow.xy[0], 2) for arrow in arrows(axes)} for name, axes in panels.items()}
    assert ends["npo"] == {0.49, 0.64, 0.6} and ends["lat"] == {0.69, 0.64, 0.6}, "and of the two compared"
    for axes in panels.values():
        low, high = axes.get_xlim()
        assert all(low < arrow.xy[0] < high for arrow in arrows(axes)), "the axes hold every tip"


def test_a_method_with_many_noise_levels_has_several_panels():
    levels = [("undo", round(0.1 * step, 1)) for step in range(1, 9)]
    figure = drawn(methods=["npo"], stages=levels, befores=["none"])["arrows"]()
    check(figure)
    assert [len(arrows(axes)) <= MOST for axes in shown(figure)] == [True, True]
    assert "then UNDO, α 0.8" in [text.get_text() for text in figure.legends[0].get_texts()]
