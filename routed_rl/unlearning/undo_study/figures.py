"""The figures of an UNDO study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from routed_rl.options.undo import UndoOptions
from routed_rl.runs.figures import GREYS, MARKERS, PALETTE, draw_means, in_panels, ordered_colour, over_seeds, subplots
from routed_rl.runs.style import SMALL, label_ends, spread, styled
from routed_rl.unlearning.attacks import WorstCase
from routed_rl.unlearning.metrics import Loss, Metric
from routed_rl.unlearning.undo_study.members import Member, named_suppressors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("relearning", "compute", "distilled", "oracle", "front", "labels")
LOOKS: dict[str, dict[str, Any]] = {
    "reference": {"color": GREYS[1], "linestyle": "--", "marker": "o"},
    "filtered": {"color": PALETTE["black"], "linestyle": ":", "marker": "s"},
    "distilled": {"color": PALETTE["pink"], "linestyle": "-", "marker": "D"},
    "matched, new": {"color": PALETTE["teal"], "linestyle": "-", "marker": "^"},
    "matched, reference": {"color": PALETTE["wine"], "linestyle": "--", "marker": "v"},
}
"""The look of each kind of model. Suppressed models have that of their method, UNDO students that of their α."""
SUPPRESSED = ("vermillion", "orange", "wine", "blue", "brown", "teal", "sky")
"""Colours of suppression methods, in alphabetical order."""
BETAS = ("sky", "brown", "pink")
"""Colours of further noise scales."""
NOTE = "Worst case within so many attack steps, over all learning rates"
STUDENTS = 5
"""Largest number of models in a panel beside those that they are compared with."""
Curves = Mapping[Member, WorstCase]
Looks = Mapping[str, Mapping[str, Any]]


def suppressed_looks(names: Iterable[str | None]) -> Looks:
    """Return the look of each suppression method, the same in all figures of a study."""
    methods = sorted({name for name in names if isinstance(name, str)})
    found = zip(methods, cycle(SUPPRESSED), cycle(MARKERS), strict=False)
    return {name: {"color": PALETTE[colour], "linestyle": "-", "marker": marker} for name, colour, marker in found}


def beta_colours(scales: Iterable[float | None], main: float) -> Mapping[float, str]:
    """Return the colour of each noise scale but the main one, the same in all figures of a study."""
    others = sorted({*pd.Series([*scales], dtype=float).dropna()} - {main})
    return {scale: PALETTE[colour] for scale, colour in zip(others, cycle(BETAS), strict=False)}


def figures(
    frame: pd.DataFrame,
    curves: Curves,
    kept: Curves,
    matching: Mapping[str, Sequence[Mapping[str, float]]],
    options: UndoOptions,
    metric: Metric,
) -> dict[str, Callable[[], Figure]]:
    """Return a function that draws each figure, for the figures whose models are finished.

    Args:
        frame: the rows of ``results.csv``.
        curves: attacks without a constraint on the retain performance.
        kept: attacks that must keep the retain performance.
        matching: metrics of the runs that match the filtered model, by name.
        metric: the first one of the options.
    """
    usual = {member: case for member, case in curves.items() if _is_usual(member, options)}
    undone = frame[(frame.model == "undo") & frame.robustness.notna()]
    drawn: dict[str, tuple[Any, Callable[[], Figure]]] = {
        "relearning": (True, lambda: draw_relearning(usual, metric, options.betas[0])),
        "compute": (len(undone), lambda: draw_trade_off(undone, options.betas[0])),
        "distilled": ((frame.model == "distilled").any(), lambda: draw_distilled(usual, metric)),
        "oracle": (matching, lambda: draw_matching(usual, kept, matching, metric)),
        "front": (frame.suppressor.notna().any(), lambda: draw_front(frame, options, metric)),
        "labels": (len(options.labelled) > 1, lambda: draw_labels(frame, options, metric)),
    }
    return {name: draw for name, (is_there, draw) in drawn.items() if is_there}


@styled()
def draw_relearning(curves: Curves, metric: Metric, beta: float) -> Figure:
    """Forget performance against attack steps: panels for suppressed models, and panels for each noised teacher.

    Args:
        beta: the main noise scale. Students with other scales have a panel of their own.
    """
    looks = suppressed_looks(member.suppressor for member in curves)
    edges = beta_colours((member.beta for member in curves), beta)
    suppressed = [member for member in _kinds(curves) if member.model == "suppressed"]
    compared = [member for member in _kinds(curves) if member.model in ("reference", "filtered")]
    panels: list[tuple[str, dict[str, Lines]]] = []
    for part in in_panels(suppressed, STUDENTS) or [[]]:
        panels.append(("Suppressed models", _lines(curves, [*compared, *part], looks)))
    for teacher in dict.fromkeys(member.suppressor for member in curves if member.model == "undo"):
        family = [member for member in _kinds(curves) if member.suppressor == teacher or member.model == "filtered"]
        beside = [member for member in family if member.model in ("filtered", "suppressed")]
        students = [member for member in family if member.model == "undo"]
        for part in in_panels([member for member in students if member.beta == beta], STUDENTS):
            panels.append((f"UNDO of {teacher}, β {beta:g}", _lines(curves, [*beside, *part], looks)))
        for alpha in sorted({member.alpha for member in students if member.beta != beta and member.alpha is not None}):
            of_alpha = [member for member in students if member.alpha == alpha]
            for part in in_panels(sorted(of_alpha, key=lambda member: member.beta or 0), STUDENTS):
                lines = _lines(curves, beside, looks)
                for member in part:
                    look = {} if member.beta == beta else {"color": edges[member.beta]}
                    lines |= _lines(curves, [member], looks, f"β {member.beta:g}", **look)
                panels.append((f"UNDO of {teacher}, α {alpha:g}", lines))
    return _attacks(panels, metric)


@styled()
def draw_trade_off(undone: pd.DataFrame, beta: float) -> Figure:
    """Robustness against compute: a point per model. A line joins the means at the main noise scale, in order of α.

    Points of another noise scale have an edge in its colour. Empty points are models whose robustness means little,
    because their retain performance is not their teacher's.
    """
    figure, axes = subplots(height=4.4)
    looks, edges = suppressed_looks(undone.suppressor), beta_colours(undone.beta, beta)
    for method, rows in undone.groupby("suppressor", sort=False):
        marker = looks[str(method)]["marker"]
        percent = rows.assign(x=100 * rows.compute.astype(float), y=100 * rows.robustness.astype(float))
        for row in percent.itertuples():
            look = {"color": ordered_colour(row.alpha), "mec": "black", "mew": 0.5}
            if row.beta != beta:
                look |= {"mec": edges[row.beta], "mew": 1.5}
            if row.comparable == False:  # noqa: E712
                look |= {"mfc": "white", "mec": look["color"], "mew": 1.2}
            axes.plot(row.x, row.y, marker, markersize=6, linestyle="", **look)
        sound = percent[percent.comparable != False]  # noqa: E712
        means = sound[sound.beta == beta].groupby("alpha")[["x", "y"]].mean()
        axes.plot(means.x, means.y, color=GREYS[2], linewidth=1, zorder=1)
        if method == undone.suppressor.iloc[0]:  # the other lines have the same colours
            for alpha, place in means.iterrows():
                where = {"xytext": (7, -9), "textcoords": "offset points", "fontsize": SMALL}
                axes.annotate(f"α {alpha:g}", tuple(place), color=ordered_colour(alpha), **where)
    axes.plot(100, 100, "*", color=LOOKS["filtered"]["color"], markersize=12)
    axes.annotate(
        "filtered model", (100, 100), xytext=(0, -14), textcoords="offset points", ha="center", fontsize=SMALL
    )
    for method in undone.suppressor.unique():
        axes.plot([], [], looks[method]["marker"], color=GREYS[2], label=f"UNDO of {method}, β {beta:g}")
    for scale, colour in edges.items():
        axes.plot([], [], "o", mfc="none", mec=colour, mew=1.5, label=f"edge: β {scale:g}")
    if (undone.comparable == False).any():  # noqa: E712
        axes.plot([], [], "o", mfc="white", mec=GREYS[2], mew=1.2, label="empty: retain performance not back")
    axes.set(xlabel="steps of distillation (% of the filtered model's steps)", ylabel="robustness (%)")
    axes.set_title("0 %: as robust as the suppressed model; 100 %: as the filtered model; points: seeds")
    axes.legend(loc="lower right")
    _better(axes, (-1, 1))
    return figure


@styled()
def draw_distilled(curves: Curves, metric: Metric) -> Figure:
    """Forget performance against attack steps, of each teacher and of the new model distilled from it."""
    looks = suppressed_looks(member.suppressor for member in curves)
    panels = []
    for method in dict.fromkeys(member.suppressor for member in curves if member.model == "distilled"):
        own = [member for member in _kinds(curves) if member.suppressor == method]
        filtered = [member for member in _kinds(curves) if member.model == "filtered"]
        shown = [*filtered, *(member for member in own if member.model in ("suppressed", "distilled"))]
        panels.append((f"Teacher: {method}", _lines(curves, shown, looks)))
    return _attacks(panels, metric)


@styled()
def draw_matching(
    curves: Curves, kept: Curves, matching: Mapping[str, Sequence[Mapping[str, float]]], metric: Metric
) -> Figure:
    """Divergence from the filtered model during distillation, and forget performance under two kinds of attack."""
    shown = [member for member in _kinds(curves) if member.name in ("filtered", "matched, new", "matched, reference")]
    titles = {"Attack": curves, "Attack that must keep the\nretain performance": kept}
    panels = [(title, _lines({m: of[m] for m in curves}, shown, {})) for title, of in titles.items()]
    return _attacks(
        panels, metric, "Attacks, worst case within so many steps", before=lambda axes: _draw_matching(axes, matching)
    )


@styled()
def draw_front(frame: pd.DataFrame, options: UndoOptions, metric: Metric) -> Figure:
    """Forget performance against retain performance: before the attack, and within two numbers of attack steps.

    Large points are means, small ones are seeds. A line joins UNDO students in order of α.
    """
    steps = sorted(int(name.removeprefix("forget_")) for name in frame if name.removeprefix("forget_").isdigit())
    steps = sorted({steps[0], min(steps, key=lambda step: abs(step - 0.2 * steps[-1])), steps[-1]})
    figure, plots = subplots(1, len(steps), height=4, sharex=True, sharey=True, squeeze=False)
    looks = suppressed_looks(frame.suppressor)
    usual = frame.strength.fillna(1).eq(1) & frame.labelled.fillna(options.labelled[0]).eq(options.labelled[0])
    frame = frame[usual & frame.beta.fillna(options.betas[0]).eq(options.betas[0])]
    lines: dict[Any, pd.DataFrame] = {}
    for axes, step in zip(plots[0], steps, strict=True):
        for (model, method), rows in frame.fillna({"suppressor": ""}).groupby(["model", "suppressor"], sort=False):
            look = {**LOOKS.get(model, {}), **looks.get(method, {}), "linestyle": ""}
            look |= {"color": LOOKS[model]["color"]} if model in LOOKS else {}
            if model.startswith("matched"):  # they have a figure of their own
                continue
            if not method:
                look |= {"marker": "*", "markersize": 10}
            means = rows.fillna({"alpha": 0.0}).groupby("alpha")[["retain", f"forget_{step}"]].mean()
            if model == "undo":
                axes.plot(*means.to_numpy().T, color=GREYS[2], linewidth=1, zorder=1)
                lines.setdefault(axes, means)  # the lines of other teachers have the same colours
            for alpha, place in means.iterrows():
                colour = ordered_colour(alpha) if model == "undo" else look["color"]
                face = "white" if model in ("suppressed", "reference") else "none" if model == "distilled" else colour
                seeds = rows[rows.alpha.fillna(0.0) == alpha]
                axes.plot(seeds.retain, seeds[f"forget_{step}"], ".", color=colour, markersize=3, alpha=0.6)
                above = {"markersize": 9, "mew": 1.5, "zorder": 4} if model == "distilled" else {}
                axes.plot(*place, **{"markersize": 6, **look, **above, "color": colour, "mfc": face, "mec": colour})
        axes.set_title(f"Within {step} attack step{'s' * (step > 1)}" if step else "Before the attack")
        axes.set_xlabel(f"retain {metric.unit}")
        axes.margins(0.08)
    plots[0, 0].set_ylabel(f"forget {metric.unit}")
    _better(plots[0, 0], (1, -1) if metric.higher_is_better else (-1, 1))
    if lines:
        _name_alphas(plots[0, -1], lines[plots[0, -1]])
    figure.legend(handles=_front_legend(frame, looks), loc="outside lower center", ncols=3)
    figure.suptitle("Forget and retain performance. Large points: means; small points: seeds")
    return figure


@styled()
def draw_labels(frame: pd.DataFrame, options: UndoOptions, metric: Metric) -> Figure:
    """Forget performance before and after the attack, against the share of the forget set that is labelled."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    last = max(int(step) for name in frame if (step := name.removeprefix("forget_")).isdigit())
    figure, axes = subplots(height=3.8)
    first = next(iter(named_suppressors(options)))
    main = frame[(frame.strength == 1.0) & (frame.suppressor == first)]
    filtered = frame[frame.model == "filtered"].fillna({"labelled": 1.0})
    for model, of in {"suppressed": main, "distilled": main, "filtered": filtered}.items():
        rows = of[of.model == model].groupby("labelled")
        look = {**LOOKS.get(model, suppressed_looks(frame.suppressor)[first])}
        for column, style, when in ((f"forget_{last}", "-", f"within {last} steps"), ("forget_0", ":", "before")):
            look |= {"linestyle": style, "mfc": "white" if style == ":" else look["color"]}
            samples = [values.to_numpy() for _, values in rows[column]]
            draw_means(axes, list(rows.groups), samples, label=f"{model}, {when}", **look)
    axes.set(xscale="log", xlabel="share of the forget set that is labelled", ylabel=f"forget {metric.unit}")
    axes.set_xticks(sorted(set(options.labelled)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.suptitle(f"Fewer labels, before and after the attack: {over_seeds(main.groupby('name').seed.nunique())}")
    label_ends(figure, 30)
    return figure


Lines = tuple[Mapping[str, Any], list[WorstCase]]
"""The look of a line, and the attacks on the model of each seed."""


def _is_usual(member: Member, options: UndoOptions) -> bool:
    """Whether a model is none of the further ones, with fewer labels or a teacher of another strength."""
    if member.strength is None:  # not made by a suppressor of this study
        return member.labelled is None
    return member.strength == 1.0 and member.labelled == options.labelled[0]


def _kinds(curves: Curves) -> list[Member]:
    """Return one member, of the first seed, for each name."""
    return list({member.name: member for member in reversed(list(curves))}.values())[::-1]


def _lines(
    curves: Curves, members: Sequence[Member], looks: Looks, name: str | None = None, **look: Any
) -> dict[str, Lines]:
    """Return the lines of some models of all seeds, by label.

    Args:
        looks: of suppression methods.
        name: the label; None: the usual one.
        look: what differs from the usual look.
    """
    found: dict[str, Lines] = {}
    for member in members:
        usual: Mapping[str, Any] = LOOKS.get(
            member.name, LOOKS.get(member.model, looks.get(member.suppressor or "", {}))
        )
        label = {"suppressed": member.suppressor, "distilled": "distilled"}.get(member.model, member.name)
        if member.alpha is not None:
            usual = {"color": ordered_colour(member.alpha), "linestyle": "-", "marker": "o"}
            label = f"α {member.alpha:g}"
        cases = [case for other, case in curves.items() if other.name == member.name]
        found[name or str(label)] = ({**usual, **look}, cases)
    return found


def _attacks(
    panels: Sequence[tuple[str, dict[str, Lines]]],
    metric: Metric,
    title: str = NOTE,
    before: Callable[[Any], None] | None = None,
) -> Figure:
    """Draw panels of forget performance against attack steps, two in a row.

    Args:
        panels: the title and the lines of each panel.
        title: of the figure. The number of seeds follows.
        before: draws another panel, the first one.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    number = len(panels) + (before is not None)
    rows, columns = -(-number // 2), min(number, 2)
    figure, plots = subplots(rows, columns, height=0.6 + 2.6 * rows, squeeze=False)
    for axes in plots.flat[number:]:
        axes.set_visible(False)
    if before is not None:
        before(plots.flat[0])
    drawn = plots.flat[number - len(panels) : number]
    for axes, (name, lines) in zip(drawn, panels, strict=True):
        if axes is not drawn[0]:
            axes.sharey(drawn[0])
        for i, (label, (look, cases)) in enumerate(lines.items()):
            known = [dict(zip(case.steps, case.forget, strict=True)) for case in cases]
            steps = sorted(set(known[0]).intersection(*known))  # attacks may end early
            samples = [[of[step] for of in known] for step in steps]
            some = slice(i % 3, None, 3)  # bars of different lines do not hide each other
            draw_means(axes, steps, samples, bars=some, label=label, **look)
        axes.set_title(name)
        axes.set(xlabel="attack step", ylabel=f"forget {metric.unit}")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if isinstance(
            metric, Loss
        ):  # losses range from below one nat to those of a model that is sure of something else
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 4, 5, 7)))
            for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                ticks("{x:g}")
    seeds = over_seeds(len(cases) for _, lines in panels for _, cases in lines.values())
    figure.suptitle(f"{title}: {seeds}")
    label_ends(figure, 20)
    return figure


def _draw_matching(axes: Any, matching: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    for name, rows in matching.items():
        steps, losses = ([row[key] for row in rows] for key in ("step", "loss"))
        look = {**LOOKS[name], "marker": "." * (len(steps) == 1)}
        axes.plot(steps, losses, label=name, **look)
    axes.set(xlabel="distillation step", ylabel="divergence from the filtered\nmodel (nats)", yscale="log")
    axes.set_title("Matching the filtered model's outputs:\none seed, no attack")


def _name_alphas(axes: Any, means: pd.DataFrame) -> None:
    """Write each α beside its point, in a column at the right of all points of the line.

    Args:
        means: both coordinates of each point, by α.
    """
    axes.get_xlim(), axes.get_ylim()  # else limits that follow from the data are not set yet
    x, y = (axes.transData - axes.transAxes).transform(means).T
    for alpha, point, place in zip(means.index, means.to_numpy(), spread(y, [0.06] * len(y)), strict=True):
        look = {"color": ordered_colour(alpha), "fontsize": SMALL, "va": "center"}
        tie = {"arrowstyle": "-", "color": ordered_colour(alpha), "linewidth": 0.7, "relpos": (0, 0.5)}
        axes.annotate(f"α {alpha:g}", point, (max(x) + 0.03, place), textcoords="axes fraction", arrowprops=tie, **look)


def _better(axes: Any, way: tuple[int, int]) -> None:
    """Draw an arrow in the direction in which models are better, where it is farthest from all points.

    Args:
        way: 1 or -1, to the right or left, and up or down.
    """
    axes.get_xlim(), axes.get_ylim()  # else limits that follow from the data are not set yet
    points = np.concatenate([line.get_xydata() for line in axes.get_lines()])
    drawn = (axes.transData - axes.transAxes).transform(points)
    places = [(x, y) for x in (0.25, 0.5, 0.75) for y in (0.5, 0.65, 0.8)]
    place = max(places, key=lambda place: np.linalg.norm(drawn - place, axis=1).min())
    ends = [np.add(place, np.multiply(way, step)) for step in (0.08, -0.08)]
    look = {"ha": "center", "va": "center", "color": GREYS[1], "arrowprops": {"arrowstyle": "-|>", "color": GREYS[1]}}
    axes.annotate("better", *ends, xycoords="axes fraction", textcoords="axes fraction", **look)


def _front_legend(frame: pd.DataFrame, looks: Looks) -> list[Any]:
    from matplotlib.lines import Line2D

    there, usual = set(frame.model), {"linestyle": "", "markersize": 6}
    entries = [
        (name, {**usual, "marker": "*", "color": LOOKS[name]["color"], "mfc": "white" if name == "reference" else None})
        for name in ("reference", "filtered")
        if name in there
    ]
    entries += [(f"suppressed, {name}", {**looks[name], **usual, "mfc": "white"}) for name in looks]
    ring = {**LOOKS["distilled"], **usual, "marker": "o", "markersize": 9, "mew": 1.5, "mfc": "none"}
    entries += [("distilled (marker: teacher)", ring)] * ("distilled" in there)
    alphas = sorted(frame.alpha.dropna().unique())
    if alphas:
        ends = {"color": GREYS[2], "marker": "o", "mfc": ordered_colour(alphas[-1])}
        entries.append((f"UNDO, α {alphas[0]:g} (light) to {alphas[-1]:g} (dark)", ends))
    return [Line2D([], [], label=label, **look) for label, look in entries]
