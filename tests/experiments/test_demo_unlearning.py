"""The tab Unlearning of ``routed-rl demo``: results of finished and of half-done studies, without a browser."""

import shutil

import numpy as np
import pandas as pd
import panel as pn
import pytest

from routed_rl.experiments.demo.relearning_figure import MOST, drawn, relearning_figure
from routed_rl.experiments.demo.undo_results import UndoResults, leaderboard, read_undo
from routed_rl.experiments.demo.unlearning import progress_text, unlearning_tab
from routed_rl.unlearning import UndoStudy
from tests.browser import demo, needs_browser, opened
from tests.experiments.demo_views import shown, switch_on, texts, widget
from tests.experiments.killed_undo import OPTIONS
from tests.experiments.small_undo import run

KEYS = ["name", "model", "suppressor", "strength", "labelled", "alpha", "beta", "seed", "stage"]


@pytest.fixture(scope="module")
def study(small, tmp_path_factory):
    """A study with several kinds of models."""
    out = tmp_path_factory.mktemp("undo") / "study"
    more = "--alphas 0.2 0.5 --students noised new --oracle --labelled 1 0.5 --strengths 0.5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UndoStudy, "FIGURES", ())
        run(small, *OPTIONS, *more.split(), "--out", out)
    return out


@pytest.fixture
def copied(study, tmp_path):
    return shutil.copytree(study, tmp_path / "study")


def results(rows, steps=(0, 10)):
    """Results with these rows; what a row leaves out is unknown."""
    usual = dict.fromkeys((*KEYS, "comparable"))
    frame = pd.DataFrame([{**usual, "seed": 0, "retain": 0.9, **row} for row in rows])
    return UndoResults(frame, list(steps), "accuracy", True, *[len(rows)] * 4, {})


def student(name, last, comparable=True, seed=0):
    teacher = {"suppressor": "maxent", "strength": 1.0, "labelled": 1.0}
    own = {"name": name, "model": "undo", "alpha": float(name), "seed": seed, "comparable": comparable}
    return {**teacher, **own, "forget_0": 0.0, "forget_10": last}


TRAINED = [
    {"name": "filtered", "model": "filtered", "forget_0": 0.1, "forget_10": 0.2},
    {"name": "reference", "model": "reference", "forget_0": 1.0, "forget_10": 1.0},
    {"name": "suppressed", "model": "suppressed", "suppressor": "maxent", "strength": 1.0, "labelled": 1.0,
     "forget_0": 0.0, "forget_10": 1.0},
]  # fmt: skip


# --- the leaderboard ----------------------------------------------------------------------------


def test_models_are_in_the_order_of_their_robustness_at_the_step():
    board = leaderboard(results([*TRAINED, student("0.2", 0.8), student("0.6", 0.28), student("0.9", 0.2, False)]), 10)
    assert list(board.name) == ["0.6", "0.2", "suppressed", "0.9", "filtered", "reference"]
    assert board.robustness.to_numpy() == pytest.approx([0.9, 0.25, 0.0, 1.0, np.nan, np.nan], nan_ok=True)
    assert list(board.forget) == [0.28, 0.8, 1.0, 0.2, 0.2, 1.0] and list(board.retain) == [0.9] * 6
    before = leaderboard(results([*TRAINED, student("0.2", 0.8)]), 0).set_index("name")
    assert before.robustness["0.2"] == 0.0, "no attack yet"


def test_means_are_over_seeds_and_each_seed_can_be_shown():
    seeds = [{**row, "seed": seed} for seed in (0, 1) for row in TRAINED]
    found = results([*seeds, student("0.5", 0.6), student("0.5", 0.2, comparable=False, seed=1)])
    board = leaderboard(found, 10).set_index("name")
    assert board.seeds["0.5"] == 2 and board.robustness["0.5"] == pytest.approx(0.75)
    assert board.comparable["0.5"] is False, "one seed is enough for a doubt"
    each = leaderboard(found, 10, seeds=True).set_index(["name", "seed"])
    assert each.robustness["0.5", 0] == pytest.approx(0.5) and each.robustness["0.5", 1] == pytest.approx(1.0)


def test_without_a_filtered_model_there_is_no_robustness():
    board = leaderboard(results([*TRAINED[1:], student("0.2", 0.8)]), 10)
    assert board.robustness.isna().all() and len(board) == 3


# --- reading a study ----------------------------------------------------------------------------


def test_a_finished_study_is_its_table(study):
    found, table = read_undo(study), pd.read_csv(study / "results.csv")
    assert found.is_done and found.steps == [0, 1, 3] and found.unit == "loss (nats per token)"
    assert not found.higher_is_better
    assert len(found.rows) == len(table) == found.models and found.finished == found.stages > len(table)
    last = leaderboard(found, 3).set_index("name").robustness
    for name, robustness in table.set_index("name").robustness.items():
        assert last[name] == pytest.approx(robustness, nan_ok=True), name
    assert progress_text(found) == f"The study is finished. All {len(table)} models have results."


def test_a_study_without_a_table_is_read_from_its_stages(study, copied):
    (copied / "results.csv").unlink()
    read, table = read_undo(copied), pd.read_csv(study / "results.csv")
    columns = [*KEYS, "retain", "forget_0", "forget_1", "forget_3", "attack", "worst_learning_rate"]
    both = [frame[columns].sort_values(["name", "seed"]).reset_index(drop=True) for frame in (read.rows, table)]
    pd.testing.assert_frame_equal(*both, check_dtype=False)
    assert not read.is_done and read.rows.comparable.isna().all()


def test_a_half_done_study_is_said_to_be_one(copied):
    table = pd.read_csv(copied / "results.csv")
    row = table[table.name == "undo, maxent, α 0.5, β 0.1"].iloc[0]
    table[table.stage != row.stage].to_csv(copied / "results.csv", index=False)
    assert len(read_undo(copied).rows) == len(table) and not read_undo(copied).is_done, "it writes its table at its end"
    for path in copied.glob("stages/curves-*"):
        if f'"{row.stage.rpartition("-")[2]}"' in (path / "config.json").read_text():
            (path / "evaluation.json").unlink()
    found = read_undo(copied)
    assert not found.is_done and len(found.rows) == len(table) - 1 and found.finished == found.stages - 1
    text = texts(unlearning_tab([copied]))
    assert "This study is not finished" in text and f"{len(table) - 1} of {len(table)} models" in text


def test_models_of_another_command_in_the_directory_are_left_out(copied):
    table = pd.read_csv(copied / "results.csv")
    other = {
        name: value.replace("pretrain-", "pretrain-other") for name, value in zip(table.name, table.stage, strict=True)
    }
    table["stage"] = table.name.map(other)
    table[table.model.isin(["reference", "filtered"])].to_csv(copied / "results.csv", index=False)
    assert set(read_undo(copied).rows.model) == {"reference", "filtered"}


def test_a_study_that_has_just_begun_has_no_curves(tmp_path, copied):
    begun = tmp_path / "begun"
    (begun / "stages" / "notes-mine").mkdir(parents=True)
    (begun / "stages" / "notes-mine" / "config.json").write_text("{}")
    shutil.copy(copied / "study.json", begun)
    text = texts(unlearning_tab([begun]))
    assert "there are no curves" in text and "0 of 0 stages" not in text


# --- the tab ------------------------------------------------------------------------------------


def test_the_sliders_change_the_curves_and_the_table(study):
    tab = unlearning_tab([study])
    (pane,) = tab.select(pn.pane.Bokeh)
    names = [item.label.value for item in pane.object.legend[0].items]
    assert names == ["reference", "filtered", "suppressed, maxent", "distilled, maxent", "undo, maxent, α 0.2, β 0.1"]
    widget(tab, "Noise level α").value = 0.5
    assert [item.label.value for item in pane.object.legend[0].items][-1] == "undo, maxent, α 0.5, β 0.1"
    mark = pane.object.center[-1]
    assert mark.location == 3 and "forget within 3 attack steps" in shown(tab, "leaderboard")
    widget(tab, "Attack step").value = 1
    assert mark.location == 1 and "forget within 1 attack step<" in shown(tab, "leaderboard")
    assert "<th>seeds</th>" in shown(tab, "leaderboard")
    switch_on(tab, "A row for each seed")
    assert "<th>seed</th>" in shown(tab, "leaderboard")


def test_curves_are_those_of_the_table(study):
    found = read_undo(study)
    rows = drawn(found.rows, "maxent", 0.5)
    figure, _ = relearning_figure(found, rows, 3)
    table = pd.read_csv(study / "results.csv").set_index("name")
    for item in figure.legend[0].items:
        data = item.renderers[0].data_source.data
        row = table.loc[item.label.value]
        assert list(data["step"]) == [0, 1, 3] and list(data["forget"]) == [row[f"forget_{step}"] for step in (0, 1, 3)]
        assert set(data["seed"]) == {0} and set(data["model"]) == {item.label.value}


def test_a_figure_has_at_most_seven_models():
    many = [student(f"0.{i}", 0.5) | {"alpha": 0.5} for i in range(1, 9)]
    assert drawn(results([*TRAINED, *many]).rows, "maxent", 0.5).name.nunique() == MOST
    assert list(drawn(results(TRAINED).rows, "other", None).name) == ["reference", "filtered"]


def test_reading_again_shows_what_is_new(copied):
    table = (copied / "results.csv").read_bytes()
    (curves, *_) = copied.glob("stages/curves-*/evaluation.json")
    kept = curves.read_bytes()
    (copied / "results.csv").unlink()
    curves.unlink()
    tab = unlearning_tab([copied])
    assert "This study is not finished" in texts(tab)
    (copied / "results.csv").write_bytes(table)
    curves.write_bytes(kept)
    widget(tab, "Read the study again").clicks += 1
    assert "This study is not finished" not in texts(tab)


def test_several_studies_can_be_chosen_also_of_one_name(study, copied):
    tab = unlearning_tab([study, copied])
    chosen = widget(tab, "Study")
    assert chosen.visible and list(chosen.options) == ["study", "study (2)"]
    (copied / "results.csv").unlink()
    assert "The study is finished" in texts(tab)
    chosen.value = chosen.options["study (2)"]
    assert "This study is not finished" in texts(tab)
    assert not widget(unlearning_tab([study]), "Study").visible


def test_without_a_study_the_tab_says_what_to_run(tmp_path):
    text = texts(unlearning_tab([tmp_path]))
    assert "routed-rl undo --alphas 0.4 0.6 0.8" in text and "six minutes" in text


def test_a_damaged_study_is_said_to_be_one(copied):
    (copied / "results.csv").write_text('name,"\n')
    assert 'role="alert"' in texts(unlearning_tab([copied]))


# --- in a browser -------------------------------------------------------------------------------


@needs_browser
def test_the_page_moves_the_leaderboard_with_the_attack_step(study):
    with demo(study) as address, opened(address, viewport={"width": 1000, "height": 1600}) as (page, wrong):
        page.get_by_role("tab", name="Unlearning").click()
        page.get_by_role("heading", name="Most robust within 3 attack steps").wait_for()
        rows = page.get_by_role("region", name="Models by robustness").get_by_role("row").count()
        assert rows == 1 + len(pd.read_csv(study / "results.csv"))
        handle = page.locator(".noUi-handle").nth(1)
        handle.press("ArrowLeft")
        page.get_by_role("heading", name="Most robust within 1 attack step").wait_for()
        page.get_by_role("tab", name="Study").click()
        page.get_by_text("stages are finished.").wait_for()
        assert not wrong
