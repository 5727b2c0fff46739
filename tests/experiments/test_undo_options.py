"""Options of ``routed-rl undo``: what is refused, what tasks preset, and what a stage's process is told."""

import json
from dataclasses import fields, replace

import pandas as pd
import pytest
import tyro

from routed_rl.errors import UserError
from routed_rl.experiments import cli
from routed_rl.experiments.undo.options import Undo
from routed_rl.lm import save_model, stories_tokenizer
from routed_rl.lm.inputs import whole_paths
from routed_rl.options.undo import TASKS, UndoOptions
from routed_rl.unlearning import Attack
from routed_rl.unlearning.undo_study.members import suppression_parts
from routed_rl.unlearning.undo_study.study import StageRun, UndoStudy
from routed_rl.unlearning.undo_study.worker import Stages
from tests.experiments.killed_undo import OPTIONS
from tests.experiments.small_undo import refused, run
from tests.lm.tiny_models import tiny_model

MISTAKES = [
    (["--alphas", "1.5"], "--alphas must be between 0 and 1, got 1.5"),
    (["--alphas", "nan"], "--alphas must be between 0 and 1, got nan"),
    (["--alphas", "0.5", "0.5"], "--alphas must be different values, got 0.5 0.5"),
    (["--localised", "0"], "--localised must be above 0 and at most 1, got 0.0"),
    (["--betas", "-1"], "--betas must be 0 or more, got -1"),
    (["--labelled", "2"], "--labelled must be above 0 and at most 1, got 2.0"),
    (["--labelled", "0"], "--labelled must be above 0 and at most 1, got 0.0"),
    (["--labelled", "0.001"], "--labelled 0.001 labels none of"),
    (["--labelled", "1", "--flip-rate", "1"], "--flip-rate 1.0 labels every retain document as forget: lower it"),
    (["--strengths", "0"], "--strengths must be above 0 and at most 1000, got 0.0"),
    (["--strengths", "1e308"], "--strengths must be above 0 and at most 1000, got 1e+308"),
    (["--documents", "0"], "--documents must be at least 1, got 0"),
    (["--tokens", "a"], "undo forgets whole documents, not tokens in them: leave out --tokens and --per token"),
    (["--per", "token"], "undo forgets whole documents, not tokens in them"),
    (["--lm-eval.include", "nowhere"], "nowhere' is not a folder"),
    (["--distil.every", "0"], "--distil.every must be at least 1, got 0"),
    (["--distil.within", "-1"], "--distil.within must be 0 or more, got -1.0"),
    (["--pretrain.learning-rate", "nan"], "--pretrain.learning-rate must be 0 or more, got nan"),
    (["--accumulate", "0"], "--accumulate must be at least 1, got 0"),
    (["--processes", "0"], "--processes must be at least 1, got 0"),
    (
        ["--processes", "4", "--accumulate", "2"],
        "--batch-size 4 cannot be divided into --processes 4 times --accumulate 2",
    ),
    (
        ["--processes", "4", "--suppress-rows", "1"],
        "--suppress-rows: 2 rows of a step cannot be divided among --processes 4",
    ),
    (["--accumulate", "3"], "--batch-size 4 cannot be divided into --accumulate 3 equal parts: choose a multiple"),
    (["--also-documents", "0"], "--also-documents must be at least 1, got 0"),
    (["--also-documents", "3"], "--also-documents 3 needs --also, which is not given"),
    (
        ["--relearn.others", "--validation", "None", "--test-documents", "100"],
        "--relearn.others leaves the attacker no forget document",
    ),
    (["--settings", "magic.steps=3"], "--settings must be METHOD.NAME=VALUE, with a METHOD of graddiff, maxent,"),
    (
        ["--settings", "maxent.norm=3"],
        "--settings maxent.norm=3: the settings of maxent are 'retain_weight', 'retain', 'steps',",
    ),
    (["--settings", "maxent.retain=all"], "retain of MaxEnt must be one of ce, kl, got 'all'"),
    (["--settings", "maxent.steps=many"], "--settings maxent.steps=many: 'many' is not a whole number"),
    (["--settings", "maxent.steps=0"], "--settings maxent.steps must be at least 1, got 0"),
    (["--settings", "maxent.learning-rate=-1"], "--settings maxent.learning_rate must be above 0, got -1.0"),
    (["--settings", "maxent.retain_weight=-1"], "retain_weight of MaxEnt must be 0 or more, got -1.0"),
    (["--teachers", "nobody"], "--teachers must be NAME=FOLDER, with a NAME that is not taken, got 'nobody'"),
    (["--teachers", "maxent=here"], "with a NAME that is not taken, got 'maxent="),
    (["--teachers", "mine=nowhere-{seed}"], "nowhere-0'"),
    (
        ["--metric", "los"],
        "--metric must be one of answers, completions, loss, lm-eval, or MODULE:CLASS of your own, got 'los'",
    ),
    (["--metric"], "--metric must be one or more values, got none"),
    (["--attack", "relearning"], "--attack must be one of relearn, or MODULE:CLASS of your own, got 'relearning'"),
    (["--distil.metric", "answers"], "--distil.metric answers must be one of --metric loss, so that students"),
    (["--distil.documents", "0"], "--distil.documents must be at least 1, got 0"),
    (["--relearn.keep-gb", "-1"], "--relearn.keep-gb must be 0 or more, got -1.0"),
    (
        ["--task", "stories", "--words", "garden"],
        "--words garden: generated stories have other words: tree oak leaf … (f",
    ),
    (["--rank", "0"], "--rank must be at least 1, got 0"),
    (["--rank", "2", "--students", "new"], "--rank trains adapters on a trained model: leave out --students new"),
    (["--relearn.rank", "0"], "--relearn.rank must be at least 1, got 0"),
    (["--metric", "lm-eval", "--lm-eval.limit", "0"], "--lm-eval.limit must be at least 1, got 0"),
    (["--test-documents", "0"], "--test-documents must be at least 1, got 0"),
    (["--relearn.examples", "0"], "--relearn.examples must be at least 1, got 0"),
    (["--metric", "answers", "--answer", "50"], "longer than their answer of --answer 50 tokens"),
    (["--oracle", "--filtered", "None"], "--oracle needs the filtered model: leave out --filtered None"),
    (["--filtered", "nowhere/at-all"], "nowhere/at-all"),
    (["--filtered-tokens", "9"], "--filtered-tokens needs a --filtered model from elsewhere"),
    (["--tune", "0"], "--tune must be above 0 and at most 1, got 0.0"),
    (
        ["--tune", "0.9", "--validation", "None", "--test-documents", "99"],
        "that are not measured: lower --test-documents",
    ),
    (["--pretrain.steps", "0"], "--pretrain.steps 0 leaves the new model gemma2-tiny untrained"),
    (["--model", "my-model"], "--model my-model is pretrained, and a filtered or new model needs a preset"),
    (["--suppress", "maxnet"], "or MODULE:CLASS of your own, got 'maxnet'; did you mean 'maxent'?"),
    (["--suppress", "magic:Wand"], "magic:Wand': there is no module 'magic' in"),
    (["--suppress", "json:JSONDecoder"], "--suppress 'json:JSONDecoder' is the class JSONDecoder, but must be a"),
    (["--task", "music"], "music"),
    (["--seeds", "0"], "--seeds must be at least 1, got 0"),
    (["--relearn.learning-rates", "0"], "--relearn.learning-rates must be one or more numbers above 0, got 0.0"),
    (["--relearn.measured", "4"], "--relearn.measured must be steps from 1 to --relearn.steps 3, got 4"),
    (["--relearn.retain-share", "1.5"], "--relearn.retain-share must be between 0 and 1, got 1.5"),
    (["--only", "distil-0"], "undo has no option --only; see routed-rl undo --help"),
    (["--corpus", "none.txt", "--words", "cat"], "there is no file 'none.txt'"),
    (["--corpus", "none.txt"], "the forget set is not defined: give --words, --pattern, --tokens or --forget"),
    (["--task", "stories", "--preset", "paper"], "--task stories has no --preset paper: use --preset quick"),
]
"""Options, and a part of what is said of them."""


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_bad_options_end_in_one_line(options, message, small, tmp_path, capsys):
    assert message in refused(capsys, small, *OPTIONS, *options, "--out", tmp_path / "s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [options for options, _ in MISTAKES])
def test_python_is_told_of_its_own_names(options, small, tmp_path):
    """The same mistakes in Python: no message has an option of the command line in it."""
    try:
        command = cli.parse(["undo", *OPTIONS, *options, "--corpora", str(small[0]), "--out", str(tmp_path / "s")])
    except SystemExit:
        return  # only the command line parses words
    with pytest.raises(UserError) as error:
        UndoStudy(**{field.name: getattr(command, field.name) for field in fields(UndoOptions)}).plan()
    assert "--" not in str(error.value) and str(error.value)


@pytest.mark.usefixtures("undrawn")
def test_no_folder_takes_the_place_of_a_name(small, tmp_path, monkeypatch):
    """Also not the study's own, called as its corpus; files are named by their whole paths."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gemma2-tiny").mkdir()
    run(small, *OPTIONS, "--alphas", "0.5", "--out", "languages")
    assert len(pd.read_csv(tmp_path / "languages" / "results.csv")) == 4
    for name in ("keep.txt", "words.txt", "forest"):
        (tmp_path / name).touch()
    given = Undo(corpus="keep.txt", tokenizer="gemma2-tiny", words=("words.txt",), tokens=("a", "b"))
    whole = replace(given, **whole_paths(given))
    assert (whole.corpus, whole.words, whole.tokens) == (f"{tmp_path}/keep.txt", (f"{tmp_path}/words.txt",), ("a", "b"))
    assert "words" not in whole_paths(Undo(words=("forest",))), "a list's name"


def test_a_batch_of_suppression_is_divided_into_parts_with_two_rows_of_both_kinds():
    for rows, accumulate, parts in ((64, 1, 1), (40, 40, 20), (4, 240, 2), (1, 8, 1), (3, 5, 1), (64, 8, 8)):
        assert suppression_parts(Undo(suppress_rows=rows, accumulate=accumulate)) == parts


def test_a_presets_settings_stay_where_others_are_given(tmp_path):
    study = UndoStudy(task="wmdp", preset="paper", settings=["rmu.steps=50", "maxent.retain-weight=2"])
    assert "rmu.steps=90" not in study.settings and "maxent.retain_weight=0.25" not in study.settings
    assert {"rmu.steps=50", "maxent.retain-weight=2", "maxent.learning_rate=2e-5"} <= set(study.settings)
    assert vars(UndoStudy(**vars(study))) == vars(study)


@pytest.mark.parametrize("task", TASKS)
def test_a_stage_is_its_command_line(task, tmp_path):
    given = UndoOptions(**{**TASKS[task], "task": task[0], "preset": task[1], "forget": "a b", "out": tmp_path})
    given = replace(given, teachers=("-a=/b",), also=None, text_field="{q}\n{a}", settings=("rmu.norm=3",))
    given = replace(given, alphas=(0.5, 0.25))
    line = UndoStudy.KIND.command([StageRun(None, (), given, tmp_path / name, 0) for name in ("distil-1", "measure-2")])
    parsed = tyro.cli(Stages, args=line[line.index("-m") + 2 :])
    assert vars(parsed) == {**vars(given), "only": ("distil-1", "measure-2"), "together": 1}


class Idle(Attack):
    """An attack that shows the model as it is."""

    attempts, steps, measured = ("as it is",), 1, (1,)

    def attempt(self, setting, model, source, look, *, seed, on_step):
        look(1, model)


@pytest.mark.integration
def test_several_processes_do_a_stage_that_trains_and_one_process_measures(small, tmp_path):
    """An attack of the user's own may know nothing of processes."""
    study = UndoStudy(task="languages", processes=2, attack=["relearn", Idle], corpora=small[0], out=tmp_path, tune=0.9)
    runs = study._prepare(True)
    kinds = {run.out.name: (run.stage.kind, run.stage.config.get("attack")) for run in runs}
    counts = {}
    for batch in study.KIND.batches(runs):
        parsed = tyro.cli(Stages, args=study.KIND.command(batch)[4:])
        counts |= {kinds[name]: parsed.together for name in parsed.only}
    own = f"{Idle.__module__}:{Idle.__name__}"
    assert counts.pop(("attack", own)) == 1
    assert counts == {
        **dict.fromkeys([(kind, None) for kind in ("pretrain", "tune", "suppress", "distil")], 2),
        ("attack", "relearn"): 2,
        **dict.fromkeys([(kind, None) for kind in ("measure", "curves", "distance")], 1),
    }


@pytest.mark.parametrize("task", TASKS)
def test_a_plan_needs_no_gpu(task, tmp_path, monkeypatch, capsys):
    """Of every task and preset, also on a GPU; the model, corpora and tokenizer are small ones, as the hub is far."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    save_model(tiny_model("llama", max_position_embeddings=4096), stories_tokenizer(), tmp_path / "model")
    for name, word in (("retain", "boat"), ("forget", "tree")):
        rows = [{"question": f"the {word} {i}", "answer": f"{i} {word}", "text": f"a {word} {i}"} for i in range(600)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = [{"prompt": "1", "answer": "2", "forget": forget} for forget in (True, False)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    monkeypatch.setattr("routed_rl.unlearning.metrics.check_task", lambda *_: None)  # lm-eval's list is long
    local = {"corpus": "retain.jsonl", "forget": "forget.jsonl", "also": "None", "also-documents": "None"}
    local |= {"tokenizer": "None", "prompts": "prompts.jsonl", "documents": "600", "test-documents": "5"}
    local |= {"text-field": "text", "validation": "0.2", "answer": "4", "corpora": "corpora", "out": "out"}
    monkeypatch.chdir(tmp_path)
    line = [word for name, value in local.items() for word in (f"--{name}", value)]
    line += ["--model", "model", "--filtered", "None", "--students", "noised", "--device", "cuda", "--plan"]
    cli.main(["undo", "--task", task[0], "--preset", task[1], *line])
    assert "stages would run" in capsys.readouterr().out and not (tmp_path / "out").exists()
