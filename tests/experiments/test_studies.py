"""Studies as objects: the same directory and bytes as the commands', on the user's own models and texts."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from routed_rl.errors import UserError
from routed_rl.experiments import cli
from routed_rl.lm import EraStudy, build_model, load_model, stories_tokenizer
from routed_rl.options.era import Attack, Repair
from routed_rl.options.undo import Distil, Pretrain, Relearn
from routed_rl.rl import OversightReport
from routed_rl.runs.studies import RunsFailedError
from routed_rl.unlearning import UndoStudy, unlearn
from routed_rl.unlearning.undo_study.members import make_suppressor
from tests.experiments import killed_studies, killed_undo
from tests.lm.tiny_models import tiny_model

TEXTS = {
    "forget": [f"the {word} tree stood in the forest" for word in ("old", "tall", "green", "wet", "dark") * 8],
    "retain": [f"the {word} boat came to the harbour" for word in ("old", "tall", "green", "wet", "dark") * 8],
}


@pytest.fixture
def undo(tmp_path, monkeypatch):
    """The options of a small UNDO study, in Python's form and in the shell's; and what has been run."""
    ran = killed_undo.make_small(monkeypatch)
    options = {
        "task": "languages",
        "documents": 200,
        "pretrain": Pretrain(steps=6, warmup=2),
        "distil": Distil(steps=6, warmup=2, every=2, documents=64),
        "batch_size": 4,
        "suppress_rows": 2,
        "test_documents": 4,
        "relearn": Relearn(learning_rates=(1e-3, 1e-4), steps=3, measured=(1, 3)),
        "allow_weak_teacher": True,
        "settings": ["maxent.steps=2"],
        "alphas": [0.2, 0.5],
        "corpora": tmp_path / "corpora",
        "out": tmp_path / "study",
    }
    shell = [*killed_undo.OPTIONS, "--settings", "maxent.steps=2", "--alphas", "0.2", "0.5"]
    yield options, [*shell, "--corpora", str(tmp_path / "corpora"), "--out", str(tmp_path / "study")], ran


def contents(out):
    return {str(path): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_an_undo_study_from_python_is_the_commands(undo, tmp_path):
    options, shell, ran = undo
    study = UndoStudy(**options)
    plan = study.plan()
    assert list(plan) == ["stage", "model", "seed", "trains", "reason"] and set(plan.reason) == {"is new"}
    assert set(plan.model) == {
        "reference", "filtered", "suppressed, maxent", "undo, maxent, α 0.2, β 0.1", "undo, maxent, α 0.5, β 0.1",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no run is finished"):
        study.results()
    found = study.run()
    assert len(found) == 5 and len(ran) == 2 * len(found) < len(plan), (
        "a process makes and measures a model, or attacks it"
    )
    before = contents(tmp_path / "study")
    cli.main(["undo", *shell])
    assert len(ran) == 2 * len(found) and contents(tmp_path / "study") == before
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "study" / "results.csv"), found, check_dtype=False)
    again = UndoStudy(**options)
    assert set(again.plan().reason) == {"is finished"}
    pd.testing.assert_frame_equal(again.results(), found)
    for name in ("relearning", "front"):
        assert isinstance(again.figure(name), Figure)
    with pytest.raises(ValueError, match="no finished run is shown in 'oracle'; there are relearning, front"):
        again.figure("oracle")
    with pytest.raises(ValueError, match="there is no figure 'loss'; the figures are relearning, "):
        again.figure("loss")


@pytest.mark.usefixtures("undrawn")
def test_an_era_study_from_python_is_the_commands(tmp_path, monkeypatch):
    ran = killed_studies.make_small(monkeypatch)
    study = EraStudy(
        documents=300, steps=6, warmup=2, batch_size=4, layers=[0, 1], units=4, test_documents=10,
        attack=Attack(documents=(2,), repeats=1, steps=3),
        repair=Repair(documents=8, selection=8, steps=3, chosen_steps=3),
        methods=["base", "era"], labelled=[0.5], seeds=1, corpora=tmp_path / "corpora",
    )  # fmt: skip
    found = study.run(tmp_path / "study")
    assert set(found.method) == {"base", "era"} and set(study.plan().reason) == {"is finished"}
    before, count = contents(tmp_path / "study"), len(ran)
    shell = " ".join(killed_studies.OPTIONS).replace("--rmu.depth 2 --rmu.steps 3 --rmu.batch-size 4 ", "").split()
    shell += ["--methods", "base", "era", "--labelled", "0.5", "--seeds", "1", "--corpora", tmp_path / "corpora"]
    cli.main(["era", *map(str, shell), "--out", str(tmp_path / "study")])
    assert len(ran) == count and contents(tmp_path / "study") == before
    assert all(isinstance(study.figure(name), Figure) for name in EraStudy.FIGURES)


def test_own_models_and_texts_are_saved_under_the_hash_of_what_is_in_them(tmp_path):
    tokenizer, model = stories_tokenizer(), tiny_model("llama")
    given = {"model": model, "tokenizer": tokenizer, "corpora": tmp_path}
    first = UndoStudy(**given, **TEXTS)
    rows = [{"text": text} for text in TEXTS["forget"]]
    second = UndoStudy(**given, forget=rows, retain=tuple(TEXTS["retain"]))
    assert vars(first) == vars(second) and first.task == "custom"
    assert not first.filtered and first.pretrain.steps == 0, "a trained model is studied as it is"
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(load_model(first.model).parameters(), model.parameters(), strict=True)
    )
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert UndoStudy(**given, **TEXTS).model != first.model
    assert EraStudy(corpus=TEXTS["retain"], corpora=tmp_path).corpus == first.corpus
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", "", ".jsonl", ".jsonl"]


@pytest.mark.parametrize("study", [UndoStudy, EraStudy])
def test_what_a_study_cannot_use_is_refused_before_anything_is_run(study, tmp_path):
    with pytest.raises(TypeError, match="there is no option 'alfa'; the options are model, corpus, "):
        study(alfa=3)
    with pytest.raises(UserError, match="give the tokenizer of the model as an object too, got tokenizer=None"):
        study(model=tiny_model("llama"), corpora=tmp_path)
    with pytest.raises(UserError, match="forget has no documents"):
        study(forget=[], corpora=tmp_path)
    with pytest.raises(UserError, match=r"corpus\[1\] must be a text or a row with texts in a field 'text'.*, got 3"):
        study(corpus=["a", 3], corpora=tmp_path)
    with pytest.raises(UserError, match=r"^seeds must be at least 1, got 0"):
        study(seeds=0, corpora=tmp_path).run(tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_failed_stage_is_named_and_the_others_are_in_the_table(undo, tmp_path, monkeypatch):
    options, _, _ = undo
    study = UndoStudy(**{**options, "allow_weak_teacher": False, "settings": ["maxent.learning_rate=1e-30"]})
    with pytest.raises(
        RunsFailedError, match="2 of 25 stages failed; not run, because they depend on failed ones: 8"
    ) as raised:
        study.run()
    assert {out.name.partition("-")[0] for out in raised.value.failed} == {"distil"}
    assert len(study.results()) == 3


CHOICES = {
    UndoStudy: [
        ({"prompts": "None"}, "prompts must not be the text 'None': give None for no value, or another text"),
        ({"task": "nix"}, "task must be one of 'arithmetic', 'languages', "),
        ({"preset": "nix"}, "preset must be one of 'quick', 'paper', got 'nix'"),
        (
            {"suppress": ["maxent", "layered"]},
            "suppress='layered' is a procedure of its own stages, and a study trains one stage: run unlearn(…, method="
            "'layered') in Python, and pass its result in teachers NAME=FOLDER",
        ),
        ({"suppress": ["maxnt"]}, "suppress must be one of graddiff, maxent, rmu, npo, simnpo, undial, "),
        ({"metric": "answer"}, "metric must be one of answers, completions, loss, lm-eval, or MODULE:CLASS of your "),
        ({"attack": "relearning"}, "attack must be one of relearn, or MODULE:CLASS of your own, got 'relearning'; did"),
        ({"distil": Distil(metric="loss")}, "distil.metric='loss' must be one of metric=['answers'], so that"),
        ({"suppress": ["npo", 3]}, "suppress must be a name, MODULE:NAME or a class, got 3"),
        ({"alphas": 0.5}, "alphas must be a list, got 0.5"),
        ({"alphas": ["0.5"]}, "alphas must be a number, got '0.5'"),
        ({"distil": {"steps": 3}}, "distil must be a Distil(…) of routed_rl.options.undo, got {'steps': 3}"),
        ({"relearn": Relearn(steps=2.5)}, "relearn.steps must be a whole number, got 2.5"),
        ({"oracle": 1}, "oracle must be True or False, got 1"),
    ],
    EraStudy: [
        ({"methods": ["base", "nix"]}, "methods must be one of 'base', "),
        ({"seeds": "3"}, "seeds must be a whole number, got '3'"),
        ({"seeds": True}, "seeds must be a whole number, got True"),
        ({"attack": Attack(documents=4)}, "attack.documents must be a list, got 4"),
        ({"tokenizer": object()}, "tokenizer must be a name or a folder where model is one, got 'tiny'"),
    ],
}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UndoStudy(alpha=0.5), "there is no option 'alpha'; .*; did you mean 'alphas'?"),
        (
            lambda: UndoStudy(lr=0.5),
            "did you mean 'pretrain.learning_rate' or 'distil.learning_rate' or 'relearn.learning_rates'?",
        ),
        (lambda: EraStudy(seed=1), "did you mean 'seeds'?"),
        (lambda: unlearn(None, None, [], [], "maxnt"), "method must be one of .*, got 'maxnt'; did you mean 'maxent'?"),
        (
            lambda: unlearn(None, None, [], [], "npo", lr=1),
            "npo has no setting 'lr'; .*; did you mean 'learning_rate'?",
        ),
        (
            lambda: make_suppressor(["maxent.lr=1"], "maxent"),
            "the settings of maxent are .*; did you mean 'learning_rate'?",
        ),
        (lambda: build_model("tinny", None, 0), "there is no preset 'tinny'; .*did you mean 'tiny'?"),
    ],
)
def test_what_is_nearly_right_is_suggested(call, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert re.search(message.replace("?", r"\?"), str(error.value))


@pytest.mark.parametrize(
    ("study", "given", "message"), [(of, *case) for of, cases in CHOICES.items() for case in cases]
)
def test_an_option_of_another_type_is_refused(study, given, message):
    with pytest.raises(UserError) as raised:
        study(**given)
    assert str(raised.value).startswith(message)


def test_numbers_lists_and_paths_become_what_the_shell_makes_of_them(tmp_path):
    """Else the same options would have another directory in Python."""
    python = UndoStudy(
        alphas=[0, np.float64(0.5)], relearn=Relearn(learning_rates=[1], measured=range(1, 3)), seeds=np.int64(2),
        corpora=str(tmp_path), out=str(tmp_path / "s"),
    )  # fmt: skip
    line = ["undo", "--alphas", "0", "0.5", "--relearn.learning-rates", "1", "--relearn.measured", "1", "2"]
    shell = cli.parse([*line, "--seeds", "2", "--corpora", str(tmp_path), "--out", str(tmp_path / "s")])
    given = UndoStudy(**{name: getattr(shell, name) for name in vars(python)})
    assert UndoStudy(metric="loss", corpora=tmp_path).metric == ("loss",), "one string is a list of one"
    assert vars(python) == vars(given) and repr(python.alphas) == "(0.0, 0.5)" == repr(given.alphas)
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    assert UndoStudy(model=folder, forget=tmp_path / "f.jsonl", corpora=tmp_path).model == str(folder)


def test_a_backend_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(UserError, match="backend must be 'local' or 'ray', got 'slurm'"):
        UndoStudy(corpora=tmp_path, out=tmp_path / "s").run(backend="slurm")
    with pytest.raises(ValueError, match="the runs of 'routing' must be a list of directories, got 'runs/a'"):
        OversightReport({"routing": "runs/a"})
