"""Charts and pages of studies: their numbers, their files, and that they show texts as texts."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from routed_rl.runs.charts import Chart, read_charts, write_charts
from routed_rl.runs.page import rendered, study_page
from routed_rl.runs.tables import half_interval
from tests.browser import column, needs_browser, opened

ROWS = [("a", 1, 0.0, 0), ("a", 1, 1.0, 1), ("a", 2, 3.0, 0), ("b", 1, 5.0, 0)]
CHART = Chart("A title", "steps", "loss", pd.DataFrame(ROWS, columns=["series", "x", "y", "seed"]), log_x=True)


def test_a_curve_is_the_mean_over_seeds_with_its_interval():
    assert CHART.series == ["a", "b"]
    found = CHART.means("a")
    assert found[["x", "mean", "seeds"]].values.tolist() == [[1, 0.5, 2], [2, 3.0, 1]]
    assert found.half[0] == half_interval(np.array([0.0, 1.0])) and np.isnan(found.half[1])
    assert CHART.only(["b"]).series == ["b"]
    assert CHART.only(["b"]).colours == CHART.only(["a", "b"]).colours


def test_a_point_without_a_value_is_left_out(tmp_path):
    chart = replace(CHART, points=pd.concat([CHART.points, pd.DataFrame([{"series": "a", "x": 1, "y": np.nan}])]))
    assert chart.means("a").seeds.tolist() == [2, 1]
    write_charts({"one": chart}, tmp_path / "charts.json")


def test_charts_are_read_as_they_were_written(tmp_path):
    write_charts({"one": CHART, "another": CHART}, tmp_path / "charts.json")
    assert list(read_charts(tmp_path / "charts.json")) == ["one", "another"]
    found = read_charts(tmp_path / "charts.json")["one"]
    assert (found.title, found.x, found.y, found.log_x) == (CHART.title, CHART.x, CHART.y, True)
    pd.testing.assert_frame_equal(found.points, CHART.points)


@pytest.mark.parametrize("text", ['{"one": 1}', "[1]", "3", '[{"name": "a", "title": "t", "points": {"x": [1]}}]'])
def test_a_file_of_something_else_is_refused_by_name(text, tmp_path):
    (tmp_path / "charts.json").write_text(text)
    with pytest.raises(ValueError, match=r"charts\.json' holds no charts"):
        read_charts(tmp_path / "charts.json")


def test_a_drawn_chart_holds_each_seed_and_each_mean():
    plot = CHART.draw()
    found = [renderer.data_source.data for renderer in plot.renderers]
    assert sorted(y for data in found for y in data.get("y", ())) == [0, 1, 3, 5]
    assert {tuple(data["mean"]) for data in found if "mean" in data} == {(0.5, 3.0), (5.0,)}
    assert [item.label.value for item in plot.legend[0].items] == ["a", "b"]


def test_the_same_study_gives_the_same_bytes():
    pages = [study_page("t", {"a": 1}, "text", [CHART, CHART], [("f", b"png")], {"a": "b"}) for _ in range(2)]
    assert pages[0] == pages[1]


def test_a_page_loads_nothing_also_after_panel_has_been_used():
    pytest.importorskip("panel").extension()
    assert not re.search(r"<(script|link|img)[^>]* (src|href)=.(?!data:)", study_page("t", {}, "s", [CHART], [], {}))


def test_a_summary_is_shown_as_text():
    shown = rendered("# A\n\n<img src=x onerror=alert(1)> [a](javascript:alert(1))\n\n| a |\n| --- |\n| <b> |\n")
    assert "<h2>A</h2>" in shown and "<img" not in shown and "<b>" not in shown and "href" not in shown


@needs_browser
def test_a_page_opens_from_disk_sorts_its_tables_and_shows_texts_as_texts(tmp_path):
    summary = "# Head\n\n| name | value |\n| --- | ---: |\n| b | 2 |\n| a | 10 |\n| <script>x</script> | −3 |\n"
    page_file = tmp_path / "report.html"
    page_file.write_text(study_page("A <b> title", {"text": "<i>"}, summary, [CHART], [], {"column": "meaning <i>"}))
    with opened(page_file.as_uri()) as (page, wrong):
        page.locator(".bk-Figure").first.wait_for()
        assert page.title() == "A <b> title"
        assert column(page, 0, 1) == ["2", "10", "−3"]
        page.get_by_role("button", name="value").click()
        assert column(page, 0, 1) == ["−3", "2", "10"]
        page.get_by_role("button", name="value").click()
        assert column(page, 0, 1) == ["10", "2", "−3"]
        page.get_by_role("button", name="name").click()
        assert column(page, 0, 0) == ["<script>x</script>", "a", "b"]
        assert page.locator("h2", has_text="Head").count() == 1
        assert wrong == []


@needs_browser
def test_cells_without_a_value_are_last_in_both_directions_and_doubtful_numbers_are_numbers(tmp_path):
    """As in the table of an UNDO study, where robustness is in parentheses if models cannot be compared."""
    cells = ["1.00 ± 0.01", "", "(0.63 ± 0.20)", "−0.10", "–", "never", "1,200", "nan", "(0.05)", "diverged"]
    summary = "# Head\n\n| model | robustness |\n| --- | ---: |\n"
    summary += "".join(f"| m{number} | {cell} |\n" for number, cell in enumerate(cells))
    page_file = tmp_path / "report.html"
    page_file.write_text(study_page("t", {}, summary, [CHART], [], {"column": "meaning"}))
    numbers, texts, none = (
        ["−0.10", "(0.05)", "(0.63 ± 0.20)", "1.00 ± 0.01", "1,200"],
        ["diverged", "never"],
        ["", "–", "nan"],
    )
    with opened(page_file.as_uri()) as (page, wrong):
        assert column(page, 0, 1) == cells
        page.get_by_role("button", name="robustness").click()
        assert column(page, 0, 1) == [*numbers, *texts, *none]
        page.get_by_role("button", name="robustness").click()
        assert column(page, 0, 1) == [*reversed(numbers), *reversed(texts), *none]
        assert wrong == []
