"""The tab Unlearning of ``routed-rl demo`` for arenas, finished and half done, without a browser."""

import shutil

import numpy as np
import pandas as pd
import panel as pn
import pytest

from routed_rl.experiments.demo.arena_results import read_arena
from routed_rl.experiments.demo.stages import is_arena, is_undo
from routed_rl.experiments.demo.unlearning import unlearning_tab
from routed_rl.runs import read_json, studies, write_json
from routed_rl.runs.charts import read_charts
from routed_rl.runs.record import config_hash
from routed_rl.unlearning.arena import ArenaStudy
from routed_rl.unlearning.arena.leaderboard import WORST
from tests.experiments import small_arenas
from tests.experiments.demo_views import shown, switch_on, texts, widget

LAST = 10**6
"""A step after all steps of an attack."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("arena") / "study"
    with pytest.MonkeyPatch.context() as patch:
        small_arenas.make_small(patch)
        patch.setattr(ArenaStudy, "FIGURES", ())
        patch.setattr(studies, "study_page", lambda *_: "")
        small_arenas.study(out, "--scores", "knowledge", "retained-knowledge", "--alphas", "0.3", "0.6")
    return out


@pytest.fixture
def copied(study, tmp_path):
    return shutil.copytree(study, tmp_path / "study")


def undone(study, attack):
    """Let one attack on a student not be finished; gives the student's key."""
    for path in study.glob("stages/attack-*"):
        config = read_json(path / "config.json")["config"]
        model = config["parents"]["model"]
        if config["options"]["attack"] == attack and (study / "stages" / f"distil-{model}").is_dir():
            (path / "evaluation.json").unlink()
            return model
    raise AssertionError


@pytest.mark.parametrize("attack", ["fine-tuning", "quantisation", WORST])
def test_the_leaderboard_of_a_finished_arena_is_its_own(study, attack):
    own = pd.read_csv(study / "leaderboard.csv").set_index("name")
    found = read_arena(study).leaderboard(attack, LAST).set_index("name")
    assert set(found.index) == set(own.index) and list(found.index[-1:]) == list(own.index[-1:])
    own = own.loc[found.index]
    for column, of in {"value": f"after {attack}", "excess": f"excess {attack}", "before": "knowledge"}.items():
        assert np.allclose(found[column], own[of]), column
    assert np.allclose(found.utility, own["retained-knowledge"]) and list(found.kept) == list(own.kept)
    assert np.allclose(found.alpha, own.alpha, equal_nan=True) and {0.3, 0.6} <= {*found.alpha}


def test_the_curves_of_the_worst_attack_are_those_of_the_chart(study):
    chart = read_charts(study / "charts.json")["attacks"].points.set_index(["series", "x"]).y
    curves = read_arena(study).curves(WORST)
    assert curves.measured == "knowledge after the attack" and len(curves.rows) == chart.index.levels[0].size
    for row in curves.rows.to_dict("records"):
        assert [row[f"forget_{step}"] for step in curves.steps] == pytest.approx(list(chart[row["name"]]))


def test_within_fewer_steps_an_attack_brings_back_no_more(study):
    arena = read_arena(study)
    first, last = (arena.leaderboard("fine-tuning", step).set_index("name") for step in (1, LAST))
    assert (first.excess <= last.excess[first.index]).all()
    each = arena.leaderboard("fine-tuning", LAST, seeds=True)
    assert set(each.seed) == {0} and len(each) == len(last)


def test_of_a_half_done_arena_the_finished_attacks_are_shown(copied):
    whole = read_arena(copied)
    model = undone(copied, "fine-tuning")
    found = read_arena(copied)
    assert (found.finished, found.stages) == (whole.stages - 1, whole.stages)
    boards = {attack: found.leaderboard(attack, LAST) for attack in ("fine-tuning", "quantisation", WORST)}
    count = len(whole.models)
    assert {attack: len(board) for attack, board in boards.items()} == {
        "fine-tuning": count - 1,
        "quantisation": count,
        WORST: count - 1,
    }, f"the worst attack on {model} is not known"
    text = texts(unlearning_tab([copied]))
    assert f"This study is not finished: {whole.stages - 1} of {whole.stages} stages are done" in text
    assert f"What follows is of the {count} models" in text


def test_models_that_the_study_does_not_name_are_left_out(copied):
    before = read_arena(copied).models
    made = next(copied.glob("stages/unlearn-*"))
    config = read_json(made / "config.json")
    config["config"]["options"]["method"] = "rmu"
    config["config_hash"] = config_hash(config["config"])
    other = shutil.copytree(made, made.with_name("unlearn-0123456789"))
    write_json(other / "config.json", config)
    assert list(read_arena(copied).models.name) == list(before.name)
    (copied / "planned.json").unlink()  # as studies of earlier versions
    assert {*read_arena(copied).models.name} - {*before.name} == {"rmu"}


def test_a_study_is_an_arena_or_of_undo_by_its_description(copied, tmp_path):
    assert is_arena(copied) and not is_undo(copied)
    write_json(copied / "study.json", {"task": "languages", "device": "cpu"})
    assert is_undo(copied) and not is_arena(copied)
    assert not is_undo(tmp_path) and not is_arena(tmp_path)


def test_the_tab_follows_the_chosen_attack_and_step(study):
    tab = unlearning_tab([study])
    (board,) = tab.select(pn.widgets.Tabulator)
    (figure,) = tab.select(pn.pane.Bokeh)
    arena = read_arena(study)
    names = [item.label.value for item in figure.object.legend[0].items]
    assert names == ["full", "retrained", "graddiff", "graddiff + UNDO α 0.3"]
    assert "The study is finished" in texts(tab)
    widget(tab, "Suppression method").value = "npo"
    widget(tab, "Noise level α").value = 0.6
    assert [item.label.value for item in figure.object.legend[0].items][2:] == ["npo", "npo + UNDO α 0.6"]
    for attack in ("quantisation", "fine-tuning"):
        widget(tab, "Attack").value = attack
        last = arena.curves(attack).steps[-1]
        assert figure.object.center[-1].location == last and f"within {last} attack step" in shown(tab, "leaderboard")
        assert np.allclose(board.value.excess, arena.leaderboard(attack, last).excess)
    assert [item.label.value for item in figure.object.legend[0].items][2:] == ["npo", "npo + UNDO α 0.6"]
    step = widget(tab, "Attack step")
    step.value = step.options[0]
    assert np.allclose(board.value.excess, arena.leaderboard("fine-tuning", step.options[0]).excess)
    assert list(board.value.columns[:3]) == ["model", "α", "seeds"]
    switch_on(tab, "A row for each seed")
    assert list(board.value.columns[:3]) == ["model", "α", "seed"]


def test_an_arena_that_has_just_begun_has_no_curves(copied):
    for path in copied.glob("stages/attack-*/evaluation.json"):
        path.unlink()
    (copied / "charts.json").unlink()
    text = texts(unlearning_tab([copied]))
    assert "This study is not finished" in text and "there are no curves" in text
