"""``routed-rl undo``: what runs and what does not, what is found, and what is refused."""

import json
import os
import shutil
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from routed_rl.experiments import cli
from routed_rl.experiments.reference import field_docs
from routed_rl.experiments.undo.options import Undo
from routed_rl.lm import character_tokenizer, save_model
from routed_rl.lm.inputs import open_text
from routed_rl.options.undo import TASKS, Relearn, UndoOptions
from routed_rl.runs import read_json
from routed_rl.runs.studies import progress
from routed_rl.unlearning import SUPPRESSORS, MaxEnt, Sam
from routed_rl.unlearning.undo_study.domains import Domains
from routed_rl.unlearning.undo_study.members import make_suppressor
from tests import forks
from tests.browser import assert_report_opens, needs_browser
from tests.experiments import killed_undo
from tests.experiments.described import assert_described
from tests.experiments.killed_undo import KILLS, OPTIONS
from tests.experiments.small_undo import refused, run
from tests.lm.tiny_models import tiny_model
from tests.unlearning.questions import PAIRED

ROOT = Path(__file__).parents[2]
STUDY = (*OPTIONS, "--alphas", "0", "0.5", "--betas", "0.1", "0", "--students", "noised", "new", "--oracle",
         "--suppress", "maxent", "graddiff", "--labelled", "1", "0.2", "--strengths", "0.5",
         "--distil.least", "0")  # fmt: skip
NAMES = {
    "reference", "filtered", "filtered, 20 % labelled", "suppressed, maxent", "suppressed, graddiff",
    "suppressed, maxent, 20 % labelled", "suppressed, maxent, strength 0.5", "distilled, maxent", "distilled, graddiff",
    "distilled, maxent, 20 % labelled", "distilled, maxent, strength 0.5", "undo, maxent, α 0, β 0.1",
    "undo, maxent, α 0.5, β 0.1", "undo, maxent, α 0.5, β 0", "matched, new", "matched, reference",
}  # fmt: skip


@pytest.fixture(scope="module")
def study(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("undo") / "study"
    run(small, *STUDY, "--out", out)
    return out


def contents(out):
    """The bytes of every result, but for timings, logs and TensorBoard's."""
    names = ("*.csv", "*.md", "*.json", "stages/*/metrics.csv", "stages/*/*.json", "stages/*/model/*")
    found = {str(path.relative_to(out)): path.read_bytes() for name in names for path in out.glob(name)}
    return {name: data for name, data in found.items() if name != "timings.csv"}


def is_main(path):
    """Whether a suppressing stage's config is that of the main teacher."""
    options = read_json(path)["config"]["options"]
    return options["method"] == "maxent" and options["labelled"] == 1 and options["recipe"]["steps"] == 60


@pytest.fixture
def begun(study, tmp_path):
    """A study to be, in which the models that the one above shares with others are made and attacked already."""
    made = {path.parent.name for path in study.glob("stages/suppress-*/config.json") if is_main(path)}

    def left_out(folder, names):
        return [name for name in names if name.startswith(("distil-", "suppress-")) and name not in made]

    shutil.copytree(study / "stages", tmp_path / "s" / "stages", ignore=left_out)
    shutil.copy(study / "study.json", tmp_path / "s")
    return tmp_path / "s"


def test_every_model_is_made_attacked_and_reported(study, small):
    assert_described(study)
    frame = pd.read_csv(study / "results.csv").set_index("name")
    assert set(frame.index) == NAMES and len(frame) == len(NAMES) and 2 * len(NAMES) == len(small[1])
    numbers = ["retain", "forget", "forget_0", "forget_1", "forget_3", "distance", "steps", "flops", "forget_int4"]
    assert np.isfinite(frame[numbers].to_numpy()).all()
    assert (frame.forget_0 == frame.forget).all() and (frame.forget_3 != frame.forget_0).all()
    assert frame.distance["reference"] == 0 and frame.distance.drop("reference").min() > 0
    assert abs(frame.barrier["reference"]) < 1e-9 and not frame.weak_teacher.dropna().all()
    for path in study.glob("stages/attack-*/metrics.csv"):
        assert pd.read_csv(path).step.tolist() == [3, 6], "how far it is, over learning rates"
    files = {path.name for path in study.iterdir()}
    figures = {f"{name}.png" for name in ("relearning", "compute", "distilled", "oracle", "front", "labels")}
    tables = {"results.csv", "results.columns.md", "timings.csv", "summary.md", "report.html", "charts.json"}
    assert figures | tables | {".lock", "stages", "study.json", "planned.json"} == files
    assert all(f"| {name} |" in (study / "summary.md").read_text() for name in NAMES)
    assert (
        frame.labelled_documents["suppressed, maxent, 20 % labelled"] < frame.labelled_documents["suppressed, graddiff"]
    )


def test_all_planned_runs_of_a_finished_study_are_finished(study):
    done, planned = progress(study)
    assert done == planned > 1


@needs_browser
def test_the_report_of_a_study_opens_from_disk(study):
    assert_report_opens(study / "report.html", charts=2)


def test_robustness_and_compute_are_those_of_their_formulas(study):
    frame = pd.read_csv(study / "results.csv").set_index("name")
    filtered, teacher, undone = (
        frame.loc[name] for name in ("filtered", "suppressed, maxent", "undo, maxent, α 0.5, β 0.1")
    )
    assert undone.robustness == pytest.approx(
        (undone.forget_3 - teacher.forget_3) / (filtered.forget_3 - teacher.forget_3)
    )
    assert teacher.robustness == 0 and undone.compute == undone.steps / 6
    assert undone.compute_flops == pytest.approx((undone.flops + teacher.flops) / filtered.flops)
    assert filtered.tokens == 6 * 4 * 49
    per_step = frame.flops / frame.steps
    assert per_step["distilled, maxent"] == pytest.approx(4 / 3 * per_step["filtered"])
    assert pd.isna(frame.robustness["reference"]) and pd.isna(frame.compute["matched, new"])


def test_without_noise_a_student_begins_as_its_teacher(study):
    """alpha 0: what is retained is as good as the teacher's at once, so no step is taken and no bit has changed."""
    frame = pd.read_csv(study / "results.csv").set_index("name")
    undone, teacher = frame.loc["undo, maxent, α 0, β 0.1"], frame.loc["suppressed, maxent"]
    assert undone.steps == 0 and undone.forget == teacher.forget and undone.forget_3 == teacher.forget_3
    weights = {}
    for path in (study / "stages").glob("*/config.json"):
        config = read_json(path)["config"]["options"]
        kind = "undone" if config.get("alpha") == 0 else "teacher" if config.get("method") == "maxent" else None
        if kind == "undone" or (kind and config["labelled"] == 1 and config["recipe"]["steps"] == 60):
            weights[kind] = load_file(path.parent / "model" / "model.safetensors")
    assert all(torch.equal(tensor, weights["undone"][name]) for name, tensor in weights["teacher"].items())


@pytest.mark.usefixtures("undrawn")
def test_what_was_done_is_not_done_again(study, small, capsys):
    before, ran = contents(study), len(small[1])
    run(small, *STUDY, "--plan", "--out", study)
    assert f"0 of {5 * len(NAMES)} stages would run" in " ".join(capsys.readouterr().out.split())
    run(small, *STUDY, "--out", study)
    assert len(small[1]) == ran and contents(study) == before


@pytest.mark.usefixtures("undrawn")
def test_another_alpha_runs_its_own_stages_alone_and_the_plan_said_so(small, begun, capsys):
    options = (*OPTIONS, "--out", begun)
    run(small, *options, "--alphas", "0.4", "0.6")
    ran = len(small[1])
    (begun / "labels.png").write_bytes(b"of a command with more")
    capsys.readouterr()
    run(small, *options, "--alphas", "0.4", "0.7", "--plan")
    plan = " ".join(capsys.readouterr().out.split())
    assert (
        "5 of 25 stages would run; 2 of them train or attack a model" in plan
        and "alpha is" in plan
        and len(small[1]) == ran
    )
    run(small, *options, "--alphas", "0.4", "0.7")
    kinds = [command[command.index("--only") + 1].split("-")[0] for command in small[1][ran:]]
    assert kinds == ["distil", "attack"]
    assert not (begun / "labels.png").exists(), "there is nothing that it could show"
    names = set(pd.read_csv(begun / "results.csv").name)
    assert {"undo, maxent, α 0.4, β 0.1", "undo, maxent, α 0.7, β 0.1"} <= names
    assert "undo, maxent, α 0.6, β 0.1" not in names, "what is not asked for is not reported"


@pytest.mark.usefixtures("undrawn")
def test_without_a_stop_rule_all_steps_are_taken(small, begun):
    run(small, *OPTIONS, "--alphas", "0", "--distil.within", "None", "--out", begun)
    frame = pd.read_csv(begun / "results.csv").set_index("model")
    assert frame.steps["undo"] == 6 and pd.isna(frame.reached["undo"])


@pytest.mark.usefixtures("undrawn")
def test_a_teacher_that_was_made_elsewhere(study, small, begun, tmp_path, capsys):
    """It is attacked, noised and distilled like those made here; what it cost nobody knows."""
    (made,) = {path.parent for path in (study / "stages").glob("suppress-*/config.json") if is_main(path)}
    teacher = tmp_path / "teacher-0"
    shutil.copytree(made / "model", teacher)
    options = (*OPTIONS, "--alphas", "0.5", "--students", "noised", "new", "--out", begun)
    run(small, *options, "--teachers", f"mine={tmp_path}/teacher-{{seed}}")
    frame = pd.read_csv(begun / "results.csv").set_index("name")
    for kind in ("suppressed, {}", "distilled, {}", "undo, {}, α 0.5, β 0.1"):
        mine, maxent = (frame.loc[kind.format(name)] for name in ("mine", "maxent"))
        assert mine.forget_3 == maxent.forget_3 and mine.retain == maxent.retain
    assert mine.compute == maxent.compute and mine.robustness == maxent.robustness
    assert maxent.compute_flops > 0 and pd.isna(mine.compute_flops)
    shutil.copytree(teacher, tmp_path / "teacher-1")
    tokenizer = tmp_path / "teacher-1" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"<s>"', '"<t>"').replace('"a"', '"ä"'))
    line = refused(capsys, small, *options, "--teachers", f"mine={tmp_path}/teacher-1")
    assert "has another tokenizer than the corpus: give its --tokenizer" in line


@pytest.mark.usefixtures("undrawn")
def test_noise_of_some_weights(small, begun, tmp_path):
    """The student that no step is taken with: half of the weights, or the vectors, are as the teacher's."""
    options = (*OPTIONS, "--alphas", "0.5", "--distil.steps", "0", "--distil.warmup", "0")
    for of, value in (("localised", "0.5"), ("touched", "matrices")):
        out = tmp_path / of
        shutil.copytree(begun, out)
        run(small, *options, f"--{of}", value, "--out", out)
        weights = {}
        for path in (out / "stages").glob("*/config.json"):
            kind = path.parent.name.split("-")[0]
            if kind in ("suppress", "distil"):
                weights[kind] = load_file(path.parent / "model" / "model.safetensors")
        for name, tensor in weights["suppress"].items():
            same = (tensor == weights["distil"][name]).float().mean()
            assert 0.45 < same < 1 if of == "localised" else same == (tensor.dim() == 1), (of, name, same)


@pytest.mark.usefixtures("undrawn")
def test_settings_of_suppressors(small, begun):
    options = (*OPTIONS, "--alphas", "0.5", "--out", begun)
    run(small, *options, "--settings", "maxent.steps=4")
    ran = len(small[1])
    run(small, *options, "--settings", "maxent.steps=4", "rmu.steps=3")
    assert len(small[1]) == ran, "of a method that is not asked for"
    run(small, *options, "--settings", "maxent.steps=4", "maxent.retain-weight=3")
    kinds = [command[command.index("--only") + 1].split("-")[0] for command in small[1][ran:]]
    assert kinds == ["suppress", "attack", "distil", "attack"]
    sam, recipe = make_suppressor(("maxent.retain_weight=3", "maxent.steps=4", "sam.rho=0.5", "sam.steps=5"), "sam")
    assert sam == Sam(MaxEnt(retain_weight=3), rho=0.5) and recipe == replace(MaxEnt().recipe, steps=5)


def test_what_is_labelled_wrongly_is_not_also_retained(small):
    command = replace(Undo(**TASKS["languages", "quick"]), flip_rate=0.1, documents=200, corpora=small[0])
    domains = Domains(command, open_text(command))
    marked, retained = domains.labelled(1.0, 0)
    wrong = np.intersect1d(marked, domains.retain)
    assert 0 < len(wrong) < 20 and not np.intersect1d(marked, retained).size
    assert set(retained) | set(wrong) == set(domains.retain)


@pytest.mark.parametrize(
    ("relearning", "kinds", "measured"),
    [
        (Relearn(), {True}, True),
        (Relearn(others=True), {True}, False),
        (Relearn(retain_share=0.5), {True, False}, True),
        (Relearn(retain_share=1.0, examples=7), {False}, False),
    ],
)
def test_what_the_attacker_has(relearning, kinds, measured, small):
    command = replace(Undo(task="arithmetic", **TASKS["arithmetic", "quick"]), relearn=relearning, corpora=small[0])
    domains = Domains(command, open_text(command))
    attacker = np.unique(domains.attacked_with(0))
    assert set(domains.corpus.to_forget[attacker]) == kinds
    assert bool(np.isin(domains.documents("forget", command.test_documents).documents, attacker).any()) == measured
    if relearning.examples is not None:
        assert len(attacker) == relearning.examples


@pytest.mark.usefixtures("undrawn")
def test_a_stage_edited_by_hand_is_refused(small, begun, capsys):
    options = (*OPTIONS, "--alphas", "0.5", "--out", begun)
    run(small, *options)
    (model,) = (begun / "stages").glob("suppress-*/model/config.json")
    model.write_text(model.read_text().replace('"hidden_size": 16', '"hidden_size": 17'))
    before, ran = contents(begun), len(small[1])
    line = refused(capsys, small, *options)
    assert "is not what the stage wrote: delete" in line and str(model) in line
    assert contents(begun) == before and len(small[1]) == ran


@pytest.mark.integration
def test_killed_ten_times_or_more_anywhere(tmp_path):
    assert forks.run(tmp_path / "log", killed_undo.main, tmp_path) == 0, (tmp_path / "log").read_text()
    unbroken = contents(tmp_path / "unbroken")
    assert len([name for name in unbroken if name.endswith("evaluation.json")]) == 20 and "results.csv" in unbroken
    assert contents(tmp_path / "first") == unbroken
    assert int((tmp_path / "kills").read_text()) >= KILLS
    assert contents(tmp_path / "killed") == unbroken


@pytest.mark.usefixtures("undrawn")
def test_a_weak_teacher_is_not_gone_on_with(small, begun, capsys, monkeypatch):
    monkeypatch.setattr(MaxEnt, "recipe", replace(MaxEnt.recipe, learning_rate=0.0))
    options = [option for option in OPTIONS if option != "--allow-weak-teacher"]
    line = refused(capsys, small, *options, "--alphas", "0.5", "--out", begun)
    assert "1 of 20 stages failed; not run, because they depend on failed ones: 4" in line
    (log,) = (begun / "stages").glob("distil-*.log")
    assert "suppression did nothing: the forget performance went from" in log.read_text()
    assert "or continue with --allow-weak-teacher" in log.read_text()
    assert not log.with_suffix("").exists(), "it was not begun"
    frame = pd.read_csv(begun / "results.csv")
    assert set(frame.model) == {"reference", "filtered", "suppressed"}, "what does not depend on it is there"
    assert frame.weak_teacher[frame.model == "suppressed"].tolist() == [True]
    run(small, *OPTIONS, "--alphas", "0.5", "--out", begun)
    assert len(pd.read_csv(begun / "results.csv")) == 4


@pytest.mark.usefixtures("undrawn")
def test_files_of_the_users_own(small, tmp_path, capsys):
    (tmp_path / "keep.txt").write_text("\n\n".join(f"the cat sat on mat {i}" for i in range(40)))
    (tmp_path / "forget.txt").write_text("\n\n".join(f"the dog ran at night {i}" for i in range(40)))
    own = ("--task", "custom", "--corpus", tmp_path / "keep.txt", "--forget", tmp_path / "forget.txt")
    own = (*own, *OPTIONS[4:], "--model", "gemma2-tiny", "--settings", "maxent.steps=2", "--vocabulary", "300")
    own = (*own, "--length", "12", "--alphas", "0.5", "--out", tmp_path / "s")
    run(small, *own)
    assert len(pd.read_csv(tmp_path / "s" / "results.csv")) == 4
    (tmp_path / "same.txt").write_text((tmp_path / "keep.txt").read_text())
    (tmp_path / "empty.txt").write_text("\n")
    for name, message in (
        ("same.txt", "are the same text: the retain set is empty"),
        ("empty.txt", "empty.txt has no documents"),
    ):
        again = [tmp_path / name if option == tmp_path / "forget.txt" else option for option in own]
        assert message in refused(capsys, small, *again)


@pytest.mark.usefixtures("undrawn")
def test_made_up_authors_of_a_trained_model(small, tmp_path):
    """The way of tofu: its preset, but for the CPU and numbers, on questions and answers in files."""
    model = tiny_model("llama", max_position_embeddings=512, vocab_size=101)
    save_model(model, character_tokenizer(string.printable), tmp_path / "model")
    for kind, who in (("retain90", "Ann"), ("forget10", "Bob")):
        rows = [{"question": f"Where was {who} {i} born?", "answer": f"In town {i}."} for i in range(12)]
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    few = (
        *OPTIONS[4:],
        "--alphas",
        "0.5",
        "--test-documents",
        "4",
        "--accumulate",
        "2",
        "--settings",
        "maxent.steps=2",
    )
    run(small, "--task", "tofu", "--preset", "paper", "--device", "cpu", "--precision", "fp32", "--model",
        tmp_path / "model", "--corpus", tmp_path / "retain90.jsonl", "--forget", tmp_path / "forget10.jsonl",
        "--length", "300", *few, "--pretrain.steps", "0", "--out", tmp_path / "s")  # fmt: skip
    frame = pd.read_csv(tmp_path / "s" / "results.csv").set_index("model")
    assert set(frame.index) == {"reference", "suppressed", "undo"} and np.isfinite(frame.forget_3).all()
    text = open_text(replace(cli.parse(["undo", "--task", "tofu", "--preset", "paper"]), corpora=small[0],
        model=str(tmp_path / "model"), corpus=str(tmp_path / "retain90.jsonl"),
        forget=str(tmp_path / "forget10.jsonl")))  # fmt: skip
    begin = text.tokenizer.decode(text.corpus.tokens[: text.corpus.starts[1]])
    assert "<|start_header_id|>user<|end_header_id|>" in begin and begin.rstrip().endswith("In town 0.")


@pytest.mark.usefixtures("undrawn")
def test_prompts_are_a_metric(small, tmp_path, capsys):
    """Arithmetic in words, among other text that is retained, measured by what models write."""
    (tmp_path / "web.txt").write_text("\n\n".join(f"the cat sat on mat {i}" for i in range(40)))
    words = ("--task", "custom", "--model", "gemma2-tiny", "--corpus", "word-problems", "--also", tmp_path / "web.txt")
    words = (*words, *OPTIONS[2:], "--metric", "completions", "--answer", "4", "--alphas", "0.5", "--length", "120",
             "--distil.no-relative", "--distil.every", "6", "--distil.documents", "8", "--relearn.measured", "3",
             "--relearn.learning-rates", "1e-3", "--settings", "maxent.steps=2")  # fmt: skip
    run(small, *words, "--out", tmp_path / "s")
    frame = pd.read_csv(tmp_path / "s" / "results.csv")
    assert len(frame) == 4 and frame[["retain", "forget", "forget_3"]].isin([i / 16 for i in range(17)]).all().all()
    for asked, answer, message in (
        ("2 * 3 =", None, "p.jsonl' has no forget prompts"),
        ("2 * 3 =", "12345", "--answer 4 is too small: the answer '12345' has 6 tokens"),
        ("1" * 120, "3", "--length 120 is too small: a prompt with its answer has 125 tokens: '1111"),
    ):
        entries = [{"prompt": "1 + 1 =", "answer": "2", "forget": False}]
        entries += [{"prompt": asked, "answer": answer, "forget": True}] * (answer is not None)
        (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, entries)))
        line = refused(capsys, small, *words, "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "s")
        assert message in line
    line = refused(capsys, small, *OPTIONS, "--metric", "completions", "--out", tmp_path / "t")
    assert "--metric completions needs --prompts, except with --corpus word-problems" in line


@pytest.mark.usefixtures("undrawn")
def test_every_suppressor_is_an_option(small, begun):
    """Equations are no questions with answers: see ``test_undo_questions`` for the methods that need them."""
    assert ", ".join(SUPPRESSORS) in " ".join(field_docs(UndoOptions)["suppress"].split())
    names = [name for name in SUPPRESSORS if name not in PAIRED]
    few = ("--settings", *(f"{name}.steps=2" for name in names), "rmu.depth=1", "repnoise.noise_weight=0.2")
    run(small, *OPTIONS, "--suppress", *names, *few, "--students", "--filtered", "None", "--out", begun)
    frame = pd.read_csv(begun / "results.csv").set_index("suppressor")
    assert set(names) <= set(frame.index) and frame.loc[names].forget.nunique() == len(names)


@pytest.mark.slow
def test_workers_of_a_ray_cluster_do_the_same(tmp_path):
    """Each stage in a process of its own, here and as a Ray task: the same bytes."""
    for backend in ("local", "ray"):
        command = [sys.executable, "-P", "-m", "routed_rl.experiments.cli", "undo", *OPTIONS, "--alphas", "0.5"]
        command += ["--backend", backend, "--corpora", tmp_path / "corpora", "--out", tmp_path / backend]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
