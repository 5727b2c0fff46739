"""``routed-rl undo``: metrics are measured, and attacks are added, without training a model again."""

import copy
import math
import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from routed_rl.lm import WholeDocuments, evaluate, text_corpus
from routed_rl.lm.stories import stories_tokenizer
from routed_rl.unlearning.undo_study import measurements
from tests.experiments.described import assert_described
from tests.experiments.small_undo import STUDY, refused, run, table
from tests.lm.tiny_models import tiny_model
from tests.own_code import own_code


def stages(small, since):
    """The kinds of the stages that have been run."""
    found = []
    for command in small[1][since:]:
        names = command[command.index("--only") + 1 :]
        end = next((i for i, name in enumerate(names) if name.startswith("--")), len(names))
        found += [name.split("-")[0] for name in names[:end]]
    return found


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (("--metric", "loss", "answers", "--answer", "2"), {"measure": 4, "curves": 4}),
        (("--test-documents", "5"), {"measure": 4, "curves": 4, "distance": 4}),
        (("--metric", "answers", "loss", "--distil.metric", "loss"), {"measure": 4, "curves": 4}),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_another_metric_trains_nothing_and_the_plan_said_so(options, kinds, small, study, tmp_path, capsys):
    out = tmp_path / "s"
    shutil.copytree(study, out)
    trained = {path: path.stat().st_mtime_ns for path in out.glob("stages/*/model/*")}
    capsys.readouterr()
    run(small, *STUDY, *options, "--plan", "--out", out)
    plan = " ".join(capsys.readouterr().out.split())
    count = sum(kinds.values())
    assert f"{count} of " in plan and "stages would run; 0 of them train or attack a model" in plan
    since = len(small[1])
    run(small, *STUDY, *options, "--out", out)
    ran = stages(small, since)
    assert {kind: ran.count(kind) for kind in set(ran)} == kinds
    assert trained and {path: path.stat().st_mtime_ns for path in out.glob("stages/*/model/*")} == trained
    assert_described(out)


@pytest.mark.usefixtures("undrawn")
def test_each_metric_has_its_columns_and_its_table(small, study, tmp_path):
    shutil.copytree(study, tmp_path / "s")
    run(small, *STUDY, "--metric", "loss", "answers", "--answer", "2", "--out", tmp_path / "s")
    frame, before = table(tmp_path / "s"), table(study)
    assert frame[list(before)].equals(before), "the first metric is as before"
    assert frame.answers_forget_3.between(0, 1).all() and {"answers_robustness", "answers_forget_int4"} <= set(frame)
    summary = (tmp_path / "s" / "summary.md").read_text()
    assert summary.count("| reference |") == 2 and "\n\nAccuracy:\n\n" in summary


@pytest.mark.parametrize("rank", ["None", pytest.param("2", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("undrawn")
def test_attacked_models_are_measured_the_same_whether_they_are_kept_or_not(rank, small, study, tmp_path):
    frames = {}
    for keep in ("1", "0"):
        out = tmp_path / keep
        shutil.copytree(study, out)
        since = len(small[1])
        run(small, *STUDY, "--relearn.rank", rank, "--relearn.keep-gb", keep, "--out", out)
        ran = stages(small, since)
        frames[keep] = table(out).drop(columns="attack")
        if keep == "0":
            assert ran == ["attack"] * 4
            again = len(small[1])
            both = ("--metric", "loss", "answers", "--answer", "2")
            run(small, *STUDY, "--relearn.rank", rank, "--relearn.keep-gb", keep, *both, "--out", out)
            assert stages(small, again).count("attack") == 4, "one attack for both metrics"
            run(small, *STUDY, "--relearn.rank", rank, "--relearn.keep-gb", keep, "--test-documents", "5", "--out", out)
            assert stages(small, since).count("attack") == 12, "they are attacked again"
        parts = pd.read_csv(out / "timings.csv").part
        assert (parts == "attack").sum() == 4, "what attacks took is there"
        if keep == "1":
            kept = list(out.glob("stages/attack-*/attacked/0.001/3/*.safetensors"))
            assert len(kept) == (4 if rank == "None" else 8)
            texts = [file.read_text() for path in kept for file in path.parent.iterdir() if file != path]
            assert not any("stages" in text for text in texts), "no path of this machine"
    assert frames["0"].equals(frames["1"]) and np.isfinite(frames["0"].forget_3).all()


GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "add_a_metric_or_an_attack.md"
OWN = "".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL))
"""The examples of the guide: a metric, Perplexity, and an attack, Shaken."""


@pytest.fixture
def write(tmp_path):
    with own_code(tmp_path) as write:
        write("own.py", OWN)
        yield write


def test_a_metric_of_ones_own_can_be_tried_on_a_model(tmp_path, capsys, monkeypatch):
    """By the lines of the guide."""
    lines = "".join(re.findall(r"^    .*\n|^\n", GUIDE.read_text().partition("Try it on a model")[2], re.MULTILINE))
    code = textwrap.dedent(lines.partition("    routed-rl undo")[0])
    texts = {"forget": ["the cat sat", "the dog ran"], "retain": ["a boat on the sea"]}
    model, tokenizer = tiny_model("llama").eval(), stories_tokenizer()
    monkeypatch.syspath_prepend(tmp_path)
    with own_code(tmp_path) as write:
        write("my_measures.py", OWN)
        exec(code, {"model": model, "tokenizer": tokenizer, **texts})
    corpus = text_corpus(tokenizer, **texts)
    for line, kind in zip(capsys.readouterr().out.splitlines(), texts, strict=True):
        loss = evaluate(model, WholeDocuments(corpus, corpus.documents("train", kind))).mean()
        assert line.split()[0] == kind and float(line.split()[1]) == pytest.approx(math.exp(loss), rel=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_a_metric_and_an_attack_of_ones_own(small, study, write, tmp_path, capsys):
    """Beside those of the package, without training a model again; and again where their code changes."""
    out = tmp_path / "s"
    shutil.copytree(study, out)
    line = (*STUDY, "--metric", "loss", "own:Perplexity", "--attack", "relearn", "own:Shaken", "--out", out)
    since = len(small[1])
    run(small, *line)
    ran = stages(small, since)
    assert set(ran) == {"attack", "curves", "measure"} and ran.count("attack") == 4, "of the attack that is new"
    assert_described(out)
    frame, before = table(out), table(study)
    assert frame[list(before)].equals(before)
    assert np.allclose(frame.Perplexity_forget_3, np.exp(frame.forget_3), rtol=1e-4)
    assert np.allclose(frame.Perplexity_Shaken_forget_2, np.exp(frame.Shaken_forget_2), rtol=1e-4)
    assert set(frame.Shaken_worst_learning_rate) <= {0.001, 0.01}
    assert (frame.Shaken_forget_1 <= frame.forget).all(), "the worst case over steps, the model before them included"
    summary = (out / "summary.md").read_text()
    assert summary.count("| reference |") == 4 and "Attack: Shaken. Perplexity:" in summary
    words = OWN.replace("(0.001, 0.01)", '("weak", "strong")')
    write("own.py", words.replace("+= setting", '+= {"weak": 0.001, "strong": 0.01}[setting]'))
    capsys.readouterr()
    run(small, *line, "--plan")
    plan = " ".join(capsys.readouterr().out.split())
    assert "4 of them train or attack a model" in plan and "code" in plan
    run(small, *line)
    again = table(out)
    assert set(again.Shaken_worst_learning_rate) <= {"weak", "strong"} and again.Shaken_inside_grid.isna().all()
    assert again.Shaken_forget_2.equals(frame.Shaken_forget_2)


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--metric", "own:Perplexities", "Perplexities"),
        ("--metric", "own:Shaken", "must be a subclass of routed_rl.unlearning.metrics.Metric"),
        ("--attack", "own:Perplexity", "must be a subclass of routed_rl.unlearning.attacks.Attack"),
        ("--attack", "nowhere:Shaken", "nowhere"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_what_is_no_metric_or_attack_is_refused(option, name, message, small, write, tmp_path, capsys):
    line = refused(capsys, small, *STUDY, option, name, "--out", tmp_path / "s")
    assert option in line and message in line and not (tmp_path / "s").exists()


@pytest.mark.usefixtures("undrawn")
def test_an_attack_that_shows_another_model_is_refused(small, write, study, tmp_path, capsys):
    shutil.copytree(study, tmp_path / "s")
    write("own.py", OWN.replace("look(step + 1, shaken)", "look(step + 1, shaken.model)"))
    refused(capsys, small, *STUDY, "--attack", "own:Shaken", "--out", tmp_path / "s")
    logs = [path.read_text() for path in (tmp_path / "s" / "stages").glob("attack-*.log")]
    assert any("an attack must show a model with the parameters of the attacked model" in log for log in logs)


def test_an_attack_of_ones_own_may_be_the_main_one(small, study, write, tmp_path):
    """All figures are drawn, though it has other steps than relearning."""
    shutil.copytree(study, tmp_path / "s")
    run(small, *STUDY, "--attack", "own:Shaken", "--labelled", "1", "0.5", "--out", tmp_path / "s")
    assert (tmp_path / "s" / "labels.png").exists() and "forget_2" in table(tmp_path / "s")
    assert (pd.read_csv(tmp_path / "s" / "timings.csv").part == "attack").sum() == len(table(tmp_path / "s"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class Perplexity(Shaken): pass", "a --metric and an --attack are both called 'Perplexity': rename one"),
        ("class Other(Shaken): measured = ()", "--attack Other: the attribute 'measured' of the class is missing or"),
        ("class Other(Shaken): measured = (1, 3)", "measured must be steps from 1 to steps = 2, got 1 3"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_an_attack_that_no_study_can_use_is_refused_at_once(code, message, small, write, tmp_path, capsys):
    write("other.py", f"from own import Shaken\n\n\n{code}\n")
    name = code.partition("(")[0].removeprefix("class ")
    line = refused(
        capsys, small, *STUDY, "--metric", "own:Perplexity", "--attack", f"other:{name}", "--out", tmp_path / "s"
    )
    assert message in line and not (tmp_path / "s").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_rounded_model_that_computes_nothing_stops_no_study(small, study, write, tmp_path, monkeypatch):
    def rounded(model, bits):
        model = copy.deepcopy(model)
        with torch.no_grad():
            next(model.parameters()).fill_(math.inf)
        return model

    shutil.copytree(study, tmp_path / "s")
    monkeypatch.setattr(measurements, "quantised", rounded)
    run(small, *STUDY, "--metric", "loss", "own:Perplexity", "--out", tmp_path / "s")
    frame = table(tmp_path / "s")
    assert frame.Perplexity_forget_int4.isna().all() and frame.Perplexity_forget.notna().all()


@pytest.mark.usefixtures("undrawn")
def test_attacked_models_may_be_deleted_once_they_are_measured(small, study, tmp_path):
    out = tmp_path / "s"
    shutil.copytree(study, out)
    for stage in out.glob("stages/attack-*"):
        shutil.rmtree(stage) if stage.is_dir() else stage.unlink()
    since = len(small[1])
    run(small, *STUDY, "--out", out)
    assert len(small[1]) == since and table(out).equals(table(study))
    run(small, *STUDY, "--test-documents", "5", "--out", out)
    assert stages(small, since).count("attack") == 4, "for another measurement they are made again"
