"""Relearning curves with sliders for α and for the attack step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import panel as pn

from routed_rl.experiments.demo import parts
from routed_rl.experiments.demo.relearning_figure import HEIGHT, Relearned, drawn, relearning_figure


class RelearningView:
    """A figure with its widgets, for a table below that follows the attack step.

    Args:
        results: what is drawn at first.
        explained: what the curves are.
        first: widgets above the others.
    """

    def __init__(self, results: Relearned, explained: str, *first: pn.viewable.Viewable) -> None:
        self.method = pn.widgets.Select(name="Suppression method")
        self.alpha = pn.widgets.DiscreteSlider(
            name="Noise level α of UNDO students", options=[0.0], sizing_mode=parts.WIDE
        )
        self.step = pn.widgets.DiscreteSlider(name="Attack step", options=[0], sizing_mode=parts.WIDE)
        self.seeds = parts.switch("A row for each seed")
        self.figure = pn.pane.Bokeh(sizing_mode=parts.WIDE, min_height=HEIGHT)
        self.show(results)
        for widget in (self.method, self.alpha):
            widget.param.watch(self._draw, "value")
        self.step.param.watch(self._move, "value")
        self.widgets = [parts.note(explained), *first, self.method, self.alpha, self.step, self.seeds]

    def show(self, results: Relearned) -> None:
        """Show other results. The widgets keep their values where they can."""
        self.results = results
        _offer(self.method, list(dict.fromkeys(results.rows.suppressor.dropna())))
        _offer(self.alpha, sorted(set(results.rows.alpha.dropna())))
        _offer(self.step, results.steps, last=True)
        self._draw()

    def _draw(self, *events: Any) -> None:
        rows = drawn(self.results.rows, self.method.value, self.alpha.value)
        self.figure.object, self.mark = relearning_figure(self.results, rows, self.step.value)

    def _move(self, *events: Any) -> None:
        self.mark.location = self.step.value


def _offer(widget: Any, options: Sequence[Any], last: bool = False) -> None:
    """Let a widget offer these values. It is hidden where there is nothing to choose."""
    options, chosen = list(options) or [widget.value], len(widget.options) > 1 and widget.value in options
    value = widget.value if chosen else options[-1 if last else 0]
    widget.param.update(options=options, value=value, visible=len(options) > 1)
