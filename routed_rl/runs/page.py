"""A study as one HTML page that needs nothing else: it opens from disk, offline, with charts that answer the mouse."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Template
from markdown_it import MarkdownIt

from routed_rl.runs.charts import Chart

TEMPLATE = Path(__file__).with_suffix(".html")


def study_page(
    title: str,
    options: Mapping[str, Any],
    summary: str,
    charts: Sequence[Chart],
    figures: Sequence[tuple[str, bytes]],
    meanings: Mapping[str, str],
) -> str:
    """Return a page of a study: charts, the summary with tables that can be sorted, figures, and what columns mean.

    Args:
        title: of the page.
        options: what all runs share, by name.
        summary: Markdown. HTML in it is shown as text.
        charts: curves to draw with Bokeh, whose scripts are part of the page.
        figures: titles and PNG files.
        meanings: what each column of ``results.csv`` means.
    """
    places = {f"chart-{number}": chart for number, chart in enumerate(charts)}
    page: str = Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True, trim_blocks=True).render(
        title=title,
        version=version("routed-rl"),
        scripts=_scripts() if charts else "",
        charts=[(place, chart.title, _item(chart, place)) for place, chart in places.items()],
        summary=rendered(summary),
        options={name: json.dumps(value, ensure_ascii=False) for name, value in options.items()},
        figures=[(text, base64.b64encode(data).decode()) for text, data in figures],
        meanings=meanings,
    )
    return page


def _scripts() -> str:
    """Return Bokeh's scripts, to be part of a page."""
    from bokeh.resources import Resources

    # Not render_js(): other packages that use Bokeh, as Panel, add links there to files that only their servers have.
    return "<script>" + "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw) + "</script>"


def _item(chart: Chart, place: str) -> str:
    """Return a chart as JSON that Bokeh draws into the element ``place``; it may stand in a script of a page."""
    from bokeh.embed import json_item

    names: dict[str, str] = {}  # in place of numbers that Bokeh counts up, so that the same study gives the same bytes

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(child) for child in value]
        if not isinstance(value, dict):
            return value
        return {
            key: names.setdefault(child, f"{place}-{len(names)}") if key in ("id", "root_id") else renamed(child)
            for key, child in value.items()
        }

    return json.dumps(renamed(json_item(chart.draw(), place))).replace("<", "\\u003c")


def rendered(markdown: str) -> str:
    """Return Markdown as HTML, with headings one level lower, below the title of the page, and tables that scroll.

    HTML in it is shown as text.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
    drawn: str = parser.renderer.render(tokens, parser.options, {})
    return drawn.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")
