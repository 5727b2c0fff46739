"""``routed-rl undo`` with a filtered model from elsewhere, and with settings that are found first."""

import copy
import json
import math
import shutil
import string

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from routed_rl.errors import UserError
from routed_rl.lm import character_tokenizer, save_model
from routed_rl.lm.inputs import open_text
from routed_rl.options.undo import TASKS, UndoOptions
from routed_rl.runs import read_json, with_ancestors
from routed_rl.unlearning import UndoStudy
from routed_rl.unlearning.undo_study.domains import Domains
from routed_rl.unlearning.undo_study.members import members
from routed_rl.unlearning.undo_study.stages import Worker
from tests.experiments.described import assert_described
from tests.experiments.killed_undo import OPTIONS
from tests.experiments.small_undo import STUDY, refused, run, table
from tests.lm.tiny_models import tiny_model

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def begun(study, tmp_path):
    shutil.copytree(study, tmp_path / "s")
    return tmp_path / "s"


def test_a_filtered_model_from_elsewhere_is_compared_like_one_that_is_trained_here(study, small, begun, tmp_path):
    before = table(study)
    shutil.copytree(study / "stages" / before.stage["filtered"] / "model", tmp_path / "filtered-0")
    folder = ("--filtered", tmp_path / "filtered-{seed}")
    run(small, *STUDY, *folder, "--filtered-tokens", int(before.tokens["filtered"]), "--out", begun)
    frame = table(begun)
    same = ["retain", "forget", "forget_3", "robustness", "compute", "compute_flops", "tokens", "flops"]
    pd.testing.assert_frame_equal(frame[same], before[same])
    assert frame.stage["filtered"].startswith("filtered-") and pd.isna(frame.steps["filtered"])
    run(small, *STUDY, *folder, "--out", begun)
    frame = table(begun)
    assert frame.robustness.equals(before.robustness) and frame.compute.isna().all(), "what it cost nobody said"
    run(small, *STUDY, *folder, "--relearn.steps", "2", "--relearn.measured", "2", "--oracle", "--out", begun)
    assert {"matched, new", "matched, reference"} <= set(table(begun).index)


def test_a_filtered_model_that_does_not_fit_is_refused(small, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    line = refused(capsys, small, *STUDY, "--filtered", tmp_path / "empty", "--out", tmp_path / "s")
    assert "--filtered" in line and "there is no model (config.json or adapter_config.json) in" in line


def test_settings_are_found_first(study, small, begun, capsys):
    """A sweep of learning rate, steps and retain weight, whose cost is in the table."""
    options = (*STUDY, "--suppress", "maxent", "npo", "--settings", "maxent.steps=2", "npo.steps=2", "--tune", "0.01")
    run(small, *options, "--out", begun)
    assert_described(begun)
    frame = table(begun)
    for method in ("maxent", "npo"):
        row = frame.loc[f"suppressed, {method}"]
        configs = {path: read_json(path)["config"]["options"] for path in begun.glob("stages/tune-*/config.json")}
        (path,) = [path.parent for path, config in configs.items() if config["method"] == method]
        trials = pd.read_csv(path / "metrics.csv")
        assert len(trials) == 9 and row.tuning_steps == trials.step.max() == 9 * 14 and row.tuning_flops > 0
        chosen = dict(pair.split("=") for pair in row.tuned.split())
        assert set(chosen) == {"learning_rate", "steps", "retain_weight"} and row.steps == int(chosen["steps"])
        assert float(chosen.pop("steps")) in (2, 6, 14)
        assert (trials[list(chosen)] == [float(value) for value in chosen.values()]).all(axis=1).any()
    assert row.tuning_kept and float(chosen["learning_rate"]) == trials.loc[trials.forget.idxmax()].learning_rate
    assert (
        "Settings that were found first (--tune), with the gradient steps of all trials: suppressed, maxent ("
        in (begun / "summary.md").read_text()
    )
    ran = len(small[1])
    run(small, *options, "--alphas", "0.7", "--out", begun)
    names = [command[command.index("--only") + 1].split("-")[0] for command in small[1][ran:]]
    assert names == ["distil", "attack"], "what was found is kept"
    ran = len(small[1])
    run(small, *options[:-1], "0.02", "--alphas", "0.5", "--out", begun)
    names = [command[command.index("--only") + 1].split("-")[0] for command in small[1][ran:]]
    assert "tune" not in names and "suppress" in names, "another bound chooses among the same trials"


def test_other_test_documents_search_again_only_where_they_are_training_documents(small, tmp_path):
    found = {}
    for validation in (None, 0.2):
        options = {**TASKS["languages", "quick"], "documents": 200, "corpora": small[0], "validation": validation}
        for count in (10, 20):
            command = UndoOptions(**{**options, "test_documents": count, "tune": 0.9})
            found[validation, count] = {
                stage.key for member in members(command, open_text(command)) for stage in with_ancestors([member.stage])
            }
    assert found[0.2, 10] == found[0.2, 20] and found[None, 10] != found[None, 20]


def test_a_trial_that_diverges_is_only_a_trial(small, begun, monkeypatch):
    """The first one stops, and another one has weights that are not finite."""
    done, trains = [], Worker._suppressed

    def diverge(worker, model, method, training, source, seed, run, after):
        done.append(training)
        if len(done) == 1:
            raise FloatingPointError("diverged")
        if len(done) == 2:
            broken = copy.deepcopy(model)
            with torch.no_grad():
                next(broken.parameters()).fill_(math.nan)
            after(training.steps - 1, broken)
        return trains(worker, model, method, training, source, seed, run, after)

    monkeypatch.setattr(Worker, "_suppressed", diverge)
    run(small, *STUDY, "--settings", "maxent.steps=2", "--tune", "0.01", "--out", begun)
    (path,) = begun.glob("stages/tune-*/metrics.csv")
    trials = pd.read_csv(path)
    assert len(trials) == 9 and trials.forget.isna().tolist() == [True, True, *[False] * 7]


@pytest.mark.parametrize(("name", "folder"), [("gpt2", None), ("models/{seed}/last", "models/0/last")])
def test_a_filtered_model_is_a_folder_where_there_is_one(name, folder, tmp_path, monkeypatch):
    """Whatever part of its name is the seed. All else is a name on the Hub."""
    monkeypatch.chdir(tmp_path)
    if folder is not None:
        (tmp_path / folder).mkdir(parents=True)
    found = UndoStudy(filtered=name).filtered
    assert found == (name if folder is None else str(tmp_path / name))


def test_an_interrupted_search_goes_on(small, begun, tmp_path, monkeypatch):
    """At the trial where it stopped, with the same result."""
    options = (*STUDY, "--settings", "maxent.steps=2", "--tune", "0.9")
    shutil.copytree(begun, tmp_path / "unbroken")
    run(small, *options, "--out", tmp_path / "unbroken")
    done, trains = [], Worker._suppressed

    def stop(worker, model, method, training, *more):
        done.append(training)
        if len(done) == 5:
            raise UserError("stopped")
        return trains(worker, model, method, training, *more)

    monkeypatch.setattr(Worker, "_suppressed", stop)
    with pytest.raises(SystemExit):
        run(small, *options, "--out", begun)
    run(small, *options, "--out", begun)
    assert len(done) == 4 + 1 + 5 + 1, "the trainings that were left, and the suppression"
    results = [(out / "results.csv").read_bytes() for out in (begun, tmp_path / "unbroken")]
    assert results[0] == results[1]


def test_nothing_that_is_measured_is_tuned_on(small):
    for validation in (None, 0.2):
        command = UndoOptions(
            **{
                **TASKS["languages", "quick"],
                "documents": 200,
                "corpora": small[0],
                "validation": validation,
                "test_documents": 20,
            }
        )
        domains = Domains(command, open_text(command))
        marked, retained, held_out = domains.tuning(1.0, 0)
        measured = [domains.documents(kind, 20).documents for kind in ("forget", "retain")]
        assert not np.isin(np.concatenate([marked, retained, held_out]), np.concatenate(measured)).any()
        assert np.isin(marked, domains.forget).all() and np.isin(retained, domains.retain).all()
        assert not np.isin(held_out, retained).any() and len(held_out) == -(-(len(held_out) + len(retained)) // 5)


def test_gradient_checkpointing_changes_nothing(study, small, begun):
    """A new study, with the same directories of stages and the same numbers."""
    for stage in begun.glob("stages/*-*"):
        shutil.rmtree(stage) if stage.is_dir() else stage.unlink()
    run(small, *STUDY, "--checkpointing", "--out", begun)
    names = ["retain", "forget", "forget_3", "steps"]
    pd.testing.assert_frame_equal(table(begun)[["stage", *names]], table(study)[["stage", *names]], rtol=1e-4)


def test_adapters_are_trained_and_merged(study, small, begun):
    """In suppression and distillation; pretraining is as before."""
    run(small, *STUDY, "--rank", "2", "--out", begun)
    frame, before = table(begun), table(study)
    assert (frame.stage[:2] == before.stage[:2]).all() and (frame.stage[2:] != before.stage[2:]).all()
    assert (
        np.isfinite(frame.forget_3).all()
        and not (begun / "stages" / frame.stage.iloc[2] / "model" / "adapter_config.json").exists()
    )
    weights = [
        load_file(begun / "stages" / frame.stage[name] / "model" / "model.safetensors")
        for name in ("reference", "suppressed, maxent")
    ]
    changed = {name for name, tensor in weights[0].items() if not torch.equal(tensor, weights[1][name])}
    assert changed and all("_proj" in name for name in changed), "linear layers alone"


@pytest.mark.parametrize("master", [True, False])
def test_models_in_half_precision_stay_so(master, small, tmp_path):
    """Their weights are trained in float32, unless that is not wanted."""
    model = tiny_model("llama", max_position_embeddings=512, vocab_size=101).to(torch.bfloat16)
    save_model(model, character_tokenizer(string.printable), tmp_path / "model")
    for kind, who in (("retain", "Ann"), ("forget", "Bob")):
        rows = [{"question": f"Where was {who} {i} born?", "answer": f"In town {i}."} for i in range(12)]
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = ("--task", "custom", "--model", tmp_path / "model", "--corpus", tmp_path / "retain.jsonl", "--forget",
            tmp_path / "forget.jsonl", "--filtered", "None", *OPTIONS[4:], "--pretrain.steps", "0", "--alphas", "0.5",
            "--validation", "None", "--length", "64", "--settings", "maxent.steps=3",
            "--master-weights" if master else "--no-master-weights", "--out", tmp_path / "s")  # fmt: skip
    run(small, *line)
    frame = table(tmp_path / "s")
    assert np.isfinite(frame.forget_3).all() and len(frame) == 3
    for stage in frame.stage:
        weights = load_file(tmp_path / "s" / "stages" / stage / "model" / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    original = load_file(tmp_path / "model" / "model.safetensors")
    kept = load_file(tmp_path / "s" / "stages" / frame.stage["reference"] / "model" / "model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in original.items()), "not trained, not rounded"
