"""The figures of single commands, of results that are made up."""

import itertools

import numpy as np
import pandas as pd
import pytest

from routed_rl.experiments.common.agents.figures import draw_curves
from routed_rl.experiments.language import steering_figures
from routed_rl.experiments.vision import figures as vision_figures
from routed_rl.runs.figures import subplots
from routed_rl.runs.style import label_ends, styled
from tests.figure_checks import check, labels

PARTS = {"constant": 0.4, "decoder": 0.1, "top": 0.2, "bottom": 0.3}
PICTURE = bytes(196).hex()


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been written."""
    kept = []
    for module in (vision_figures, steering_figures):
        monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
    return kept


@pytest.mark.parametrize("seeds", [2, 3])
def test_figures_of_vision_can_be_read(drawn, tmp_path, seeds):
    rows = [
        {"setting": setting, "seed": seed, "part": part, "group": str(digit), "mse": error + seed / 50}
        for setting, seed, digit, (part, error) in itertools.product("123", range(seeds), range(10), PARTS.items())
    ]
    titles = {setting: f"{setting}: routing, no regularisation, separate decoders" for setting in "123"}
    vision_figures.draw_bars(pd.DataFrame(rows), titles, range(5), tmp_path)
    parts = {part: [PICTURE] * 10 for part in vision_figures.PICTURES}
    vision_figures.draw_pictures(dict.fromkeys(titles.values(), parts), tmp_path)
    vision_figures.draw_traversal([[PICTURE] * 8] * 10, tmp_path)
    groups = [
        {"routed": routed, "seed": seed, "part": part, "group": group, "accuracy": 1 - error}
        for routed, seed, group, (part, error) in itertools.product(
            (True, False), range(seeds), ("0–4", "5–9"), PARTS.items()
        )
    ]
    titles = {True: "routed", False: "no routing, no L1 penalty (control)"}
    vision_figures.draw_groups(pd.DataFrame(groups), titles, tmp_path)
    assert len(drawn) == 4
    for figure in drawn:
        check(figure)


def test_the_figure_of_the_steering_scalar_can_be_read(drawn, tmp_path):
    words = ["bread", "cake", "butter", "soup", "jar", "spoon", "plate", "oven", "stove", "violin", "tune", "cart"]
    common = [{"routed": routed, "seed": seed, "axis": 0} for routed in (True, False) for seed in range(3)]
    curves = [{**row, "strength": x, "topic": row["routed"] * x / 40} for row in common for x in (0, 10, 30)]
    scores = [{**row, "text": word, "cosine": 0.4 - place / 50} for row in common for place, word in enumerate(words)]
    steering_figures.draw_steering(
        pd.DataFrame(curves), pd.DataFrame(scores), {0: set(words[:9])}, {0: "bread"}, tmp_path
    )
    (figure,) = drawn
    check(figure)
    assert set(labels(figure.axes[0])) == {"routed", "not routed (control)"}


def test_learning_curves_of_runs_with_long_names_can_be_read():
    names = [f"runs/some-long-study/routing-predicted-{seed:08x}-s{seed}" for seed in range(7)]
    with styled():
        figure, axes = subplots(height=3.8)
        steps = np.linspace(0, 2e6, 20)
        draw_curves(axes, {name: (steps, steps / 3e6 + place / 90, None) for place, name in enumerate(names)})
        label_ends(figure)
    check(figure, least=-1, far=1)  # labels of three lines each fill the panel
    assert [text.replace(" ", "") for text in labels(axes)] == names
