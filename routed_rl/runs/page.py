"""A study as one HTML page that needs nothing else: it opens from disk, offline, with charts that answer the mouse."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from jinja2 import Template
from markdown_it import MarkdownIt

from routed_rl.runs.charts import Chart

NAME = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<=\")p[0-9]{4,}(?=\")")
"""What Bokeh calls a document, a place in a page, or a part of a chart."""
TEMPLATE = Path(__file__).with_suffix(".html")


def study_page(
    title: str,
    summary: str,
    charts: Sequence[Chart],
    figures: Mapping[str, bytes],
    meanings: Mapping[str, str],
) -> str:
    """Return a page of a study: charts, the summary with tables that can be sorted, figures, and what columns mean.

    Args:
        title: of the page.
        summary: Markdown. HTML in it is shown as text.
        charts: curves to draw with Bokeh, whose scripts are part of the page.
        figures: PNG files by name.
        meanings: what each column of ``results.csv`` means.
    """
    scripts, places = _charts(charts)
    page: str = Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True, trim_blocks=True).render(
        title=title,
        version=version("routed-rl"),
        scripts=scripts,
        charts=places,
        summary=_rendered(summary),
        figures={name: base64.b64encode(data).decode() for name, data in figures.items()},
        meanings=meanings,
    )
    return page


def _charts(charts: Sequence[Chart]) -> tuple[str, str]:
    """Return the scripts that draw charts, and the places where they are drawn."""
    if not charts:
        return "", ""
    from bokeh.embed import components
    from bokeh.resources import Resources

    script, places = components([chart.draw() for chart in charts])
    drawn = script, "".join(places)
    # Names in place of random ones and of those that Bokeh counts up, so that the same study gives the same bytes.
    names: dict[str, str] = {}
    script, place = (NAME.sub(lambda of: names.setdefault(of[0], f"c{len(names)}"), text) for text in drawn)
    return Resources(mode="inline", components=["bokeh"]).render_js() + script, place


def _rendered(markdown: str) -> str:
    """Return Markdown as HTML, with headings one level lower, below the title of the page, and tables that scroll."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
    rendered: str = parser.renderer.render(tokens, parser.options, {})
    return rendered.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
