"""``routed-rl arena`` and ``ArenaStudy``: what runs and what does not, what is found, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from matplotlib.figure import Figure

from routed_rl.errors import UserError
from routed_rl.experiments import cli
from routed_rl.lm import load_model, load_tokenizer
from routed_rl.options.arena import Routing, Student
from routed_rl.unlearning.arena import ArenaStudy
from routed_rl.unlearning.scores.meta import faithfulness, following, stability
from tests import forks
from tests.browser import assert_report_opens, needs_browser, opened
from tests.experiments import small_arenas
from tests.experiments.described import assert_described
from tests.experiments.in_process import draw_nothing
from tests.experiments.mistakes import complaints
from tests.experiments.small_arenas import KILLS, OPTIONS, SCORES
from tests.unlearning.arena.small_arena import small_benchmark

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "fill_your_table.md"
PROBE = 3 * 2 / 3
"""Cost of three passes of two rows, by which ``keeps_apart`` tries the model."""
NAMES = ["full", "retrained", "npo", "npo + UNDO α 0.6", "graddiff", "graddiff + UNDO α 0.6"]


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        yield small_arenas.make_small(patch)


@pytest.fixture(scope="module")
def study(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("arena") / "study"
    small_arenas.study(out)
    return out


def run(out, *options):
    cli.main(["arena", *OPTIONS, *map(str, options), "--out", str(out)])


def refused(capsys, *options):
    return complaints(capsys, lambda: cli.main(["arena", *map(str, options)]))[-1]


def test_every_model_has_every_score_and_every_attack(study):
    found = pd.read_csv(study / "results.csv")
    assert sorted(found.name.unique()) == sorted(NAMES)
    before, attacked = found[found.attack == "none"], found[found.attack != "none"]
    assert all(set(rows.score) == set(SCORES) for _, rows in before.groupby("name"))
    attacks = {"fine-tuning", "quantisation", "worst", "worst of weights"}
    assert all(set(rows.attack) == attacks for _, rows in attacked.groupby("name"))
    inside = before.dropna(subset=["low"])
    assert len(inside) and (inside.low <= inside.value).all() and (inside.value <= inside.high).all()
    assert_described(study)


def test_the_worst_attack_is_the_one_with_the_largest_excess(study):
    found = pd.read_csv(study / "results.csv")
    for _, rows in found[found.attack != "none"].groupby("name"):
        of = rows.set_index("attack").excess
        assert of["worst"] == max(of["fine-tuning"], of["quantisation"])
    assert (found[(found.name == "retrained") & (found.attack != "none")].excess == 0).all()


def test_compute_counts_all_stages_after_the_full_model(study):
    found = pd.read_csv(study / "results.csv")
    cost = found.drop_duplicates("name").set_index("name")
    assert cost.cost["retrained"] == 6 * 4 and pd.isna(cost.cost["full"])
    assert cost.cost["graddiff"] == 2 * 2 * 2 + PROBE, "two steps on two rows of two sets"
    undone = cost.cost["graddiff"] + cost.steps["graddiff + UNDO α 0.6"] * 2 * 4 / 3
    assert cost.cost["graddiff + UNDO α 0.6"] == pytest.approx(undone)
    assert cost.compute["graddiff"] == pytest.approx((8 + PROBE) / 24)
    assert cost.cost["npo"] == pytest.approx(2 * 2 * 2 + 4 / 3 + PROBE), "the original reads four forget rows, once"


def test_the_command_is_the_study_and_only_what_is_new_runs(study, small, capsys):
    given = {
        "methods": ["npo", "graddiff"], "settings": ["npo.steps=2", "graddiff.steps=2"], "batch_size": 2, "budget": 4,
        "attacks": ["fine-tuning", "quantisation"], "out": study, "scores": [*SCORES],
    }  # fmt: skip
    mine = ArenaStudy(**given, student=Student(steps=3, least=2))
    assert set(mine.plan().reason) == {"is finished"}
    pd.testing.assert_frame_equal(mine.results(), pd.read_csv(study / "results.csv"), check_dtype=False)
    assert all(isinstance(mine.figure(name), Figure) for name in ArenaStudy.FIGURES)
    done = len(small)
    more = ArenaStudy(**{**given, "methods": ["npo", "graddiff", "task-vector"]}, student=Student(steps=3, least=2))
    plan = more.plan()
    new = plan[plan.reason != "is finished"]
    assert set(new.model) == {"task-vector", "task-vector + UNDO α 0.6"} and len(new) == 2 * (1 + 4 + 2)
    assert len(small) == done, "a plan runs nothing"
    more = ArenaStudy(**{**given, "attacks": ["fine-tuning", "quantisation", "pruning"]}, student=mine.student)
    plan = more.plan()
    assert set(plan[plan.reason != "is finished"].stage.str.partition("-")[0]) == {"attack"}
    run(study, "--plan")
    assert "0 of 42 stages would run" in capsys.readouterr().out.replace("\n", " ")


@pytest.fixture(scope="module")
def routed(study, small, tmp_path_factory):
    """The study with routing beforehand, and with the models by which scores are judged."""
    out = tmp_path_factory.mktemp("routed") / "study"
    shutil.copytree(study, out)
    done = set(out.glob("stages/*"))
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        run(out, "--methods", "npo", "--before", "none", "era", "--trust", "--routing.repair-steps", 3)
    return out, {path.name.partition("-")[0] for path in set(out.glob("stages/*")) - done}


def test_routing_beforehand_is_a_method_and_what_others_begin_with(routed):
    out, new = routed
    found = pd.read_csv(out / "results.csv")
    era = ["ERA", "ERA + UNDO α 0.6", "ERA + npo", "ERA + npo + UNDO α 0.6"]
    assert sorted(found.name.unique()) == sorted([*NAMES[:4], *era])
    assert new == {"routed", "unlearn", "distil", "changed", "score", "attack"}, "no model is trained again"
    about = found.drop_duplicates("name").set_index("name")
    assert set(about.before[era]) == {"era"} and set(about.before[NAMES[:4]]) == {"none"}
    assert list(about.method[era]) == ["none", "none", "npo", "npo"] and about.method[NAMES[:2]].isna().all()
    retain = len(small_benchmark().retain)
    steps = about.cost["ERA"] / (retain / 2 * 4 / 3)
    assert steps in (1, 2, 3), "three steps at most, on one half; the other is read"
    assert about.cost["ERA + npo"] == pytest.approx(about.cost["ERA"] + 2 * 2 * 2 + 4 / 3 + PROBE)
    folders = [next(out.glob(f"stages/{kind}-*/model")) for kind in ("full", "routed")]
    shapes = [{name: p.shape for name, p in load_model(str(f), None).named_parameters()} for f in folders]
    assert shapes[0] == shapes[1], "the new units are gone"
    assert_described(out)


@pytest.mark.usefixtures("undrawn")
def test_scores_are_judged_by_models_whose_truth_is_known(routed):
    out, _ = routed
    table = pd.read_csv(out / "trust.csv").set_index("score")
    assert set(table.index) == {"knowledge", "extraction-strength", "forget-quality"}, "not what a model should keep"
    given = {"methods": ["npo"], "before": ["none", "era"], "trust": True, "batch_size": 2, "budget": 4, "out": out}
    given |= {"settings": ["npo.steps=2", "graddiff.steps=2"], "attacks": ["fine-tuning", "quantisation"]}
    given |= {"scores": list(SCORES), "routing": Routing(repair_steps=3)}
    mine = ArenaStudy(**given, student=Student(steps=3, least=2))
    entries = [entry for entry in mine.entries if entry.then == "none"]
    assert [entry.name for entry in entries] == ["retrained", "full", "npo", "ERA", "ERA + npo"]
    name = "extraction-strength"
    before = [entry.scores[name].result(mine.root)["value"] for entry in entries]
    rounded, relearned = (
        [entry.changed[change][name].result(mine.root)["value"] for entry in entries]
        for change in ("rounded", "relearned")
    )
    assert table.faithfulness[name] == faithfulness(before[1:2], before[:1])
    assert table.stability[name] == pytest.approx(np.mean([*map(stability, before, rounded)]))
    pairs = [*zip(before, relearned, strict=True)]
    assert table.following[name] == pytest.approx(np.mean([following(pair, pairs[0]) for pair in pairs[2:]]))
    assert np.isnan(table.faithfulness["forget-quality"]), "it compares with other seeds, and there are none"
    assert "## Which score to trust" in (out / "leaderboard.md").read_text()
    ArenaStudy(**{**given, "trust": False}, student=mine.student).run()
    assert not (out / "trust.csv").exists(), "nothing of an earlier start is left"


@pytest.mark.usefixtures("undrawn")
def test_a_model_of_the_users_is_unlearned_and_compared_with_another(study, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [next(study.glob(f"stages/{kind}-*/model")) for kind in ("full", "retrained")]
    model, retrained = (load_model(str(folder), None) for folder in folders)
    options = {"methods": ["npo"], "then": ["none"], "settings": ["npo.steps=2"], "batch_size": 2, "budget": 4}
    options["attacks"] = ["quantisation"]
    mine = ArenaStudy(
        model=model, retrained=retrained, tokenizer=load_tokenizer(str(folders[0])), out=tmp_path / "mine",
        scores=["knowledge", "forget-quality"], **options,
    )  # fmt: skip
    found = mine.run()
    assert set(found.name) == {"full", "retrained", "npo"}
    assert found[found.score == "forget-quality"].value.notna().all()
    alone = ArenaStudy(model=str(folders[0]), out=tmp_path / "alone", **options)
    assert "forget-quality" not in alone.arena.scores and "extraction-strength" in alone.arena.scores
    found = ArenaStudy(model=str(folders[0]), out=tmp_path / "alone", scores=["knowledge"], **options).run()
    assert set(found.name) == {"full", "npo"} and found.excess.isna().all()


def test_a_saved_model_has_a_card_and_scores_under_the_names_of_open_unlearning(study, small, tmp_path):
    given = {"methods": ["npo", "graddiff"], "settings": ["npo.steps=2", "graddiff.steps=2"], "batch_size": 2}
    given |= {"budget": 4, "attacks": ["fine-tuning", "quantisation"], "student": Student(steps=3, least=2)}
    scores = [*SCORES]
    mine = ArenaStudy(**given, scores=scores, out=study)
    folder = mine.save("npo + UNDO α 0.6", tmp_path / "npo")
    assert load_model(str(folder), None).config.hidden_size == 16
    found = mine.results().query("name == 'npo + UNDO α 0.6' and attack == 'none'").set_index("score").value
    summary = json.loads((folder / "TOFU_SUMMARY.json").read_text())
    assert summary == pytest.approx({
        "knowledge": found["knowledge"], "retained-knowledge": found["retained-knowledge"],
        "extraction_strength": found["extraction-strength"], "forget_quality": found["forget-quality"],
    })  # fmt: skip
    evaluation = json.loads((folder / "TOFU_EVAL.json").read_text())
    by_index = evaluation["extraction_strength"]["value_by_index"]
    assert len(by_index) == 12 and np.mean([next(iter(of.values())) for of in by_index.values()]) == pytest.approx(
        summary["extraction_strength"]
    )
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and "unlearning" in card.data.tags
    assert "| fine-tuning |" in card.text and "| beta | 0.1 |" in card.text
    second = {"undo.alpha": 0.6, "undo.beta": 0.1, "student.steps": 3, "student.learning_rate": 0.002}
    second |= {"student.within": 0.05, "batch_size": 2, "rank": "all weights"}
    assert all(f"| {name} | {value} |" in card.text for name, value in second.items())
    alone = ModelCard.load(mine.save("npo", tmp_path / "npo") / "README.md").text
    assert "| beta | 0.1 |" in alone and "undo." not in alone and "student." not in alone
    with pytest.raises(UserError, match="there is no model 'npoo'; there are retrained, full, npo"):
        mine.save("npoo", tmp_path / "other")


def test_a_model_is_saved_with_what_is_there(study, small, tmp_path):
    """Though a score, all attacks or the main score failed. Uploads take the folder as it is."""
    given = {"methods": ["npo", "rmu"], "settings": ["npo.steps=2"], "batch_size": 2, "budget": 4, "out": study}
    mine = ArenaStudy(**given, scores=[*SCORES, "probability"], attacks=["pruning"], then=["none"])
    folder = mine.save("npo", tmp_path / "partly")
    assert set(json.loads((folder / "TOFU_EVAL.json").read_text())) == {
        "knowledge", "retained-knowledge", "extraction_strength", "forget_quality",
    }  # fmt: skip
    assert ModelCard.load(folder / "README.md").data.library_name == "transformers"
    with pytest.raises(UserError, match="the model 'rmu' of seed 0 is not finished: run the study first"):
        mine.save("rmu", tmp_path / "rmu")
    nothing = tmp_path / "nothing"
    shutil.copytree(study, nothing, ignore=lambda _, names: [name for name in names if name.startswith("score-")])
    mine = ArenaStudy(**{**given, "out": nothing}, scores=[*SCORES], attacks=["pruning"], then=["none"])
    folder = mine.save("npo", tmp_path / "unmeasured")
    assert json.loads((folder / "TOFU_EVAL.json").read_text()) == {}
    assert load_model(str(folder), None).config.hidden_size == 16
    assert "unknown rows of training" in ModelCard.load(folder / "README.md").text


def test_the_guides_upload_is_of_the_saved_folder(study, small, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(from huggingface_hub.*?)```", GUIDE.read_text(), re.DOTALL)
    called = []
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(f"huggingface_hub.{name}", lambda *args, of=name, **named: called.append((of, args, named)))
    monkeypatch.chdir(tmp_path)
    options = {"settings": ["npo.steps=2", "graddiff.steps=2"], "batch_size": 2, "budget": 4, "scores": [*SCORES]}
    options |= {"student": Student(steps=3, least=2), "out": study}
    exec(code.replace('out="runs/mine"', "**options"), {"options": options})
    (made, (repository,), private), (upload, _, named) = called
    assert (made, upload, private) == ("create_repo", "upload_folder", {"private": True})
    assert named["repo_id"] == repository
    there = {path.name for path in Path(named["folder_path"]).iterdir()}
    assert {"README.md", "TOFU_EVAL.json", "TOFU_SUMMARY.json", "config.json", "model.safetensors"} < there


@pytest.mark.integration
def test_an_arena_that_is_killed_and_goes_on_has_the_same_bytes(tmp_path):
    assert forks.run(tmp_path / "log", small_arenas.main, tmp_path) == 0, (tmp_path / "log").read_text()
    assert int((tmp_path / "kills").read_text()) >= KILLS
    for name in ("results.csv", "leaderboard.md", "leaderboard.tex"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_the_guides_example_runs(small, tmp_path, monkeypatch):
    """With few steps and one seed."""
    code, *_ = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    few = 'settings=["npo.steps=2", "graddiff.steps=2"], batch_size=2, budget=6, seeds=1'
    few += ', scores=["knowledge", "multiple-choice"]'
    code = code.replace("seeds=3", f"student=Student(steps=2, least=1), {few}")
    monkeypatch.chdir(tmp_path)
    exec(code, names := {"Student": Student})
    out = tmp_path / "runs" / "mine"
    assert set(names["results"].name) == set(NAMES) and (out / "leaderboard.tex").exists()
    assert "A model that guesses has 0.25 for `multiple-choice`." in (out / "leaderboard.md").read_text()


@needs_browser
def test_the_page_opens_from_disk_and_its_tables_sort_and_filter(study):
    assert_report_opens(study / "leaderboard.html", charts=1)
    with opened((study / "leaderboard.html").as_uri()) as (page, wrong):
        table = page.locator("table").first
        rows = table.locator("tbody tr")
        assert rows.count() == len(NAMES)
        page.get_by_role("searchbox").first.fill("UNDO")
        assert [row.is_visible() for row in rows.all()].count(True) == 2
        page.get_by_role("searchbox").first.fill("")
        table.get_by_role("button", name="model").click()
        names = [row.locator("td").first.inner_text() for row in rows.all()]
        assert names == sorted(names, key=str.lower) and not wrong


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "npoo"], "--methods must be one of"),
        (["--settings", "npoo.steps=2"], "--settings must be METHOD.NAME=VALUE"),
        (["--settings", "npo.step=2"], "the settings of npo are"),
        (["--attacks", "fine-tuning", "--budget", "2"], "--budget 2 is less than the"),
        (["--scores", "verbatim-memorisation"], "the score verbatim-memorisation is not defined for tofu-small: "),
        (["--benchmark", "tofu"], "--benchmark tofu needs --model"),
        (["--benchmark", "nothing"], "--benchmark must be one of"),
        (["--model", "no-such-folder/model"], "no-such-folder/model"),
        (["--alphas", "1.5"], "--alphas 1.5 must be between 0 and 1"),
        (["--seeds", "0"], "--seeds must be"),
        (["--before", "era", "--model", "mine"], "routes while a model is trained, and --model mine is trained"),
        (["--before", "none", "none"], "--before none is there twice"),
        (["--before", "era", "--routing.repair-steps", "-1"], "--routing.repair-steps must be"),
        (["--rank", "0"], "--rank must be at least 1, got 0"),
        (["--accumulate", "3"], "--batch-size 16 cannot be divided into --accumulate 3 equal parts: choose a multiple"),
        (["--beta", "-1"], "--beta -1.0 must be 0 or more"),
        (["--student.learning-rate", "0"], "--student.learning-rate 0.0 must be above 0"),
        (["--student.within", "-1"], "--student.within -1.0 must be 0 or more"),
        (["--learning-rates", "1e-3", "1e-3"], "--learning-rates 0.001 is there twice"),
        (["--main", "truth-ratio"], "the main score truth-ratio does not rise with what a model knows"),
        (["--main", "privacy-leakage"], "the main score privacy-leakage compares with other models"),
        (["--main", "knowlege"], "--main must be one of"),
    ],
)
def test_a_mistake_ends_with_one_line_and_nothing_is_written(small, capsys, tmp_path, options, said):
    assert said in refused(capsys, *OPTIONS[:2], *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


MISTAKEN = (Path(__file__).parent / "mistaken_plugins.py").read_text()
ADDS = '        return {"mean": np.ones(3) + np.ones(4)}'


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    """How the command line names a class of theirs, but for its name."""
    path = tmp_path_factory.mktemp("own") / "mistaken.py"
    path.write_text(MISTAKEN)
    return f"{path.with_suffix('')}:"


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("--scores", "NoBest", "must set best to one of 'low', 'high', 'zero', 'half', got None"),
        ("--scores", "Lower", "must set best to one of 'low', 'high', 'zero', 'half', got 'lower'"),
        ("--attacks", "NoGroup", "must set group to one of 'weights', 'prompts', got None"),
        ("--attacks", "Weigths", "must set group to one of 'weights', 'prompts', got 'weigths'"),
        ("--methods", "Lower", "must be a subclass of routed_rl.unlearning.Suppressor or routed_rl.unlearning.Proc"),
    ],
)
def test_a_mistake_in_ones_own_class_is_refused_before_anything_runs(
    small, mistaken, capsys, tmp_path, option, name, said
):
    assert said in refused(capsys, *OPTIONS, option, mistaken + name, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_mistake_in_ones_own_code_is_said_with_its_place_and_harms_no_other(
    study, small, mistaken, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "study"
    shutil.copytree(study, out)
    scores = [mistaken + name for name in ("Lists", "Misspelt", "Arrays", "Outside", "Divides", "Adds", "Changing")]
    attacks = [mistaken + name for name in ("Nothing", "Changes")]
    options = ["--methods", "npo", "--then", "none", "--attacks", "quantisation", *attacks, "--out", out]
    options = [*OPTIONS, *map(str, options), "--scores", "exact-memorisation", "log-forget-quality", *scores]
    told = complaints(capsys, lambda: cli.main(["arena", *options]))
    line = MISTAKEN.splitlines().index("        return 1 / 0") + 1
    for mistake in (
        "mistaken:Lists (npo, seed 0): examples() must return arrays by name, got list",
        "mistaken:Misspelt (npo, seed 0): examples() found no example: has the benchmark a set of this name?",
        "mistaken:Arrays (npo, seed 0): value() must return a number, got ndarray",
        "mistaken:Outside (npo, seed 0): value() returned -1.85, which is outside of limits = (0.0, 1.0)",
        f"mistaken:Divides (npo, seed 0): ZeroDivisionError: division by zero (mistaken.py, line {line})",
        "mistaken:Changing (npo, seed 0): examples() has changed the model that it reads",
        "mistaken:Nothing (npo, seed 0): attempt() of Nothing must return what it has spent, a number, got None",
        "mistaken:Changes (npo, seed 0): Changes has changed victim.model in the attempt 1: let it attack a copy",
    ):
        assert sum(mistake in one for one in told) == 1, mistake
    (adds,) = (one for one in told if "mistaken:Adds (retrained, seed 0): ValueError: operands" in one)
    assert f"(mistaken.py, line {MISTAKEN.splitlines().index(ADDS) + 1})" in adds
    failures = sum("failed: stages/" in one for one in told)
    assert failures == 3 * len(scores + attacks) - 2, "of three models, but two are not compared with the failed one"
    found = pd.read_csv(out / "results.csv")
    for score in ("knowledge", "exact-memorisation", "log-forget-quality"):
        assert set(found[found.score == score].name) == {"full", "retrained", "npo"}
    assert set(found.attack) == {"none", "quantisation"}, "without the worst of attacks that are not all there"
    monkeypatch.setattr(ArenaStudy, "find", lambda *_: None)
    told = complaints(capsys, lambda: cli.main(["arena", *options]))
    assert f"the tables in {out} are those of an earlier start" in " ".join(told)


def test_sets_that_overlap_are_refused_with_their_numbers(small, capsys, tmp_path):
    rows = [{"set": name, "question": f"Where is {i}?", "answer": f"In {i}."} for i, name in enumerate("ab")]
    rows = [{**rows[0], "set": "forget"}, {**rows[0], "set": "retain"}, {**rows[1], "set": "retain"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(capsys, "--benchmark", "custom", "--data", tmp_path / "mine.jsonl", "--out", tmp_path / "out")
    assert "1 of 1 forget documents are in the retain set too" in said


def test_unknown_options_of_a_study_are_refused():
    with pytest.raises(TypeError, match="there is no option 'method'"):
        ArenaStudy(method="npo")
    with pytest.raises(UserError, match="tokenizer"):
        ArenaStudy(model=torch.nn.Linear(2, 2))
