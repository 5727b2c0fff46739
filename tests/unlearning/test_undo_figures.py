"""The figures of an UNDO study, of results that are made up."""

import numpy as np
import pandas as pd
import pytest

from routed_rl.options.undo import UndoOptions
from routed_rl.runs.figures import ordered_colour
from routed_rl.unlearning.attacks import WorstCase
from routed_rl.unlearning.metrics import Answers, Loss
from routed_rl.unlearning.undo_study import figures
from routed_rl.unlearning.undo_study.members import Member
from tests.figure_checks import check, colours, labels, series

STEPS = (0, 20, 40, 100, 200)
ALPHAS = {0.2: 0.88, 0.4: 0.7, 0.6: 0.51, 0.8: 0.31, 0.9: 0.22}
OPTIONS = UndoOptions(betas=(0.1, 0.0, 0.5), suppress=("maxent", "graddiff", "rmu"), labelled=(1.0, 0.025))


def models(teachers=("maxent", "graddiff", "rmu"), alphas=ALPHAS):
    """The kind, the settings and the forget accuracy after the attack of each model."""
    yield from (("reference", {}, 1.0), ("filtered", {}, 0.2))
    yield from (("suppressed", {"suppressor": name}, 0.97 - 0.03 * place) for place, name in enumerate(teachers))
    yield from (("distilled", {"suppressor": name}, 0.3) for name in teachers)
    yield from (("undo", {"suppressor": "maxent", "alpha": a, "beta": 0.1}, end) for a, end in alphas.items())
    yield from (("undo", {"suppressor": "maxent", "alpha": 0.6, "beta": b}, 0.5 - b / 5) for b in (0.0, 0.5))
    yield from (("matched, reference", {}, 0.75), ("matched, new", {}, 0.34))


def study(seeds=3, lowest=0.0, **options):
    curves, rows = {}, []
    for model, keys, end in models(**options):
        if "suppressor" in keys:
            keys |= {"strength": 1.0, "labelled": 1.0}
        for seed in range(seeds):
            member = Member(model, seed, None, None, **keys)
            forget = lowest + (end - 0.03 * seed) * np.sqrt(np.array(STEPS) / STEPS[-1])
            curves[member] = WorstCase(STEPS, tuple(forget), (1e-3,) * len(STEPS), True)
            row = {"model": model, "seed": seed, "name": member.name, "retain": 0.9 + end / 20, **keys}
            row |= {"compute": 0.6 - end / 2, "robustness": 1 - end, "comparable": (end, seed) != (0.88, 2)}
            rows.append(row | {f"forget_{step}": value for step, value in zip(STEPS, forget, strict=True)})
    columns = {"suppressor": None, "strength": np.nan, "labelled": np.nan, "alpha": np.nan, "beta": np.nan}
    return curves, pd.DataFrame(rows).fillna(columns | {"suppressor": np.nan})


@pytest.mark.parametrize("seeds", [2, 3])
def test_relearning_curves_can_be_read(seeds):
    curves, _ = study(seeds)
    figure = figures.draw_relearning(curves, Answers(), 0.1)
    check(figure)
    suppressed, main, others = (axes for axes in figure.axes if axes.get_visible())
    assert {line.get_label() for line in series(suppressed)} == {"reference", "filtered", "maxent", "graddiff", "rmu"}
    assert {line.get_label() for line in series(main)} == {"filtered", "maxent", *(f"α {alpha:g}" for alpha in ALPHAS)}
    assert {line.get_label() for line in series(others)} == {"filtered", "maxent", "β 0", "β 0.1", "β 0.5"}
    assert main.get_title(loc="left") == "UNDO of maxent, β 0.1"
    assert others.get_title(loc="left") == "UNDO of maxent, α 0.6"


def test_many_models_are_split_into_panels():
    many = {round(0.1 * step, 1): 1 - 0.08 * step for step in range(2, 10)}
    curves, _ = study(teachers=("maxent", "graddiff", "rmu", "npo", "sam", "repnoise"), alphas=many)
    figure = figures.draw_relearning(curves, Answers(), 0.1)
    check(figure)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert titles == ["Suppressed models"] * 2 + ["UNDO of maxent, β 0.1"] * 2 + ["UNDO of maxent, α 0.6"]


def test_a_model_has_one_colour_in_all_figures():
    curves, _ = study()
    relearning = colours(figures.draw_relearning(curves, Answers(), 0.1))
    distilled = colours(figures.draw_distilled(curves, Answers()))
    assert {name: relearning[name] for name in distilled if name != "distilled"}.items() <= distilled.items()
    assert all(relearning[f"α {alpha:g}"] == ordered_colour(alpha) for alpha in ALPHAS)


def test_a_point_says_its_noise_scale_by_the_colour_of_its_edge():
    curves, frame = study()
    axes = figures.draw_trade_off(frame[frame.model == "undo"], 0.1).axes[0]
    legend = {line.get_label(): line.get_markeredgecolor() for line in axes.get_lines()}
    lines = colours(figures.draw_relearning(curves, Answers(), 0.1))
    for scale, robustness in ((0.0, 50), (0.5, 60)):
        points = [line for line in axes.get_lines() if line.get_markeredgecolor() == legend[f"edge: β {scale:g}"]]
        assert robustness in {round(y) for point in points for y in point.get_ydata()}
        assert lines[f"β {scale:g}"] == legend[f"edge: β {scale:g}"]


@pytest.mark.parametrize("metric", [Answers(), Loss()])
def test_all_other_figures_can_be_read(metric):
    curves, frame = study(lowest=0.5 if isinstance(metric, Loss) else 0.0)
    few = frame[frame.model.isin(["suppressed", "distilled", "filtered"])].assign(labelled=0.025)
    matching = {name: [{"step": 1, "loss": 1.0}, {"step": 9, "loss": 0.1}] for name in ("matched, new",)}
    check(figures.draw_distilled(curves, metric))
    matched = figures.draw_matching(curves, curves, matching, metric)
    check(matched)
    assert matched.get_suptitle().startswith("Attacks") and "no attack" in matched.axes[0].get_title(loc="left")
    check(figures.draw_front(frame, OPTIONS, metric), least=-1)
    check(figures.draw_trade_off(frame[frame.model == "undo"], 0.1), least=-1)
    check(figures.draw_labels(pd.concat([frame, few]), OPTIONS, metric), least=-1)


def test_the_front_says_which_way_is_better_and_joins_students_in_order_of_alpha():
    _, frame = study()
    figure = figures.draw_front(frame.sample(frac=1, random_state=0), OPTIONS, Answers())
    last = figure.axes[-1]
    (joined,) = [line for line in last.get_lines() if line.get_linestyle() == "-" and len(line.get_xdata()) > 1]
    assert np.allclose(joined.get_ydata(), [end - 0.03 for end in ALPHAS.values()])
    assert [text.get_text() for text in last.texts] == [f"α {alpha:g}" for alpha in ALPHAS], "written on the line"
    rings = [line for line in last.get_lines() if line.get_markerfacecolor() == "none"]
    assert len(rings) == 3 and all(ring.get_zorder() > joined.get_zorder() for ring in rings), "distilled models"
    assert "UNDO, α 0.2 (light) to 0.9 (dark)" in [text.get_text() for text in figure.legends[0].get_texts()]

    def arrow(metric):
        (better,) = figures.draw_front(frame, OPTIONS, metric).axes[0].texts
        assert better.get_text() == "better"
        return np.sign(np.subtract(better.xy, better.get_position())).tolist()

    assert arrow(Answers()) == [1, -1], "retain more, know less of the forget set"
    assert arrow(Loss()) == [-1, 1]


def test_steps_of_a_loss_have_a_logarithmic_axis():
    curves, _ = study(lowest=0.5)
    figure = figures.draw_relearning(curves, Loss(), 0.1)
    check(figure)
    assert {axes.get_yscale() for axes in figure.axes if axes.get_visible()} == {"log"}
    assert all(axes.get_ylim() == figure.axes[0].get_ylim() for axes in figure.axes if labels(axes))
