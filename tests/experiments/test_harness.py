"""What lm-eval says: of questions that it carries, asked as a task of one's own, offline."""

import importlib.util
import json
import math
import re
import string
import sys

import pandas as pd
import pytest
import torch

from routed_rl.errors import UserError
from routed_rl.experiments import cli
from routed_rl.extras import MissingExtraError
from routed_rl.lm import character_tokenizer, load_model, load_tokenizer, save_model
from routed_rl.lm.documents import package_folder
from routed_rl.unlearning import harness
from routed_rl.unlearning.arena import ArenaStudy
from routed_rl.unlearning.harness import harness_value
from routed_rl.unlearning.scores import SCORES
from tests.experiments import small_arenas
from tests.experiments.killed_undo import make_small
from tests.lm.tiny_models import tiny_model

TASKS = harness._tasks
PROMPTS = "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} Answer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
"""One of lm-eval's tasks in its own form, over a file."""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with two tasks of MMLU questions that lm-eval carries."""
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed")
    folder = tmp_path_factory.mktemp("tasks")
    prompts = json.loads((package_folder("lm_eval") / PROMPTS).read_text())
    form = re.compile(
        r"Q: (.*?)\n?\(A\) (.*?) \(B\) (.*?) \(C\) (.*?) \(D\) (.*?)\nA: .*?The answer is \(([ABCD])\)", re.S
    )
    found = [match.groups() for text in prompts.values() for match in form.finditer(text)]
    assert len(found) > 200
    for name, chosen in (("some", found[:24]), ("others", found[24:40])):
        rows = [{"question": q, "choices": options, "answer": "ABCD".index(a)} for q, *options, a in chosen]
        file = folder / f"{name}.json"
        file.write_text("\n".join(map(json.dumps, rows)))
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file))
    with pytest.MonkeyPatch.context() as patch:
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(folder), include_defaults=False)  # the thousands of others take seconds
        patch.setattr(harness, "_tasks", lambda include: manager)
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # lists all packages, in a process
        yield folder


def questions(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.json").read_text().splitlines()]


def test_it_is_the_share_of_questions_whose_answer_is_the_likeliest(tasks):
    tokenizer = character_tokenizer(string.printable)
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=4096)
    right = []
    for entry in questions(tasks, "some"):
        scores = []
        for choice in entry["choices"]:
            begin, end = (
                tokenizer.encode(text, add_special_tokens=False)
                for text in (f"{entry['question']} Answer:", f" {choice}")
            )
            with torch.no_grad():
                said = model(torch.tensor([begin + end])).logits[0, len(begin) - 1 : -1].log_softmax(dim=-1)
            scores.append(sum(float(said[i, token]) for i, token in enumerate(end)))
        right.append(scores.index(max(scores)) == entry["answer"])
    found = harness_value(model, tokenizer, "some", "acc,none", include=tasks)
    assert found == pytest.approx(sum(right) / len(right)) and 0 < found < 1
    assert harness_value(model, tokenizer, "some", "acc,none", limit=5, include=tasks) == sum(right[:5]) / 5
    with pytest.raises(ValueError, match="lm-eval has no task 'none'"):
        harness_value(model, tokenizer, "none", "acc,none", include=tasks)
    with pytest.raises(ValueError, match="lm-eval's some has no value 'f1,none'; use one of"):
        harness_value(model, tokenizer, "some", "f1,none", limit=2, include=tasks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.simple_evaluate", lambda *_, **__: {"results": {"some": {"perplexity,none": math.nan}}})
        with pytest.raises(FloatingPointError, match="the value 'perplexity,none' of lm-eval's some is nan"):
            harness_value(model, tokenizer, "some", "perplexity,none", include=tasks)


@pytest.mark.usefixtures("undrawn")
def test_it_is_a_score_of_the_arena(tasks, tmp_path, monkeypatch):
    (tmp_path / "their_scores.py").write_text(
        "from pathlib import Path\n"
        "from routed_rl.unlearning.scores import TaskScore\n"
        "class Some(TaskScore):\n"
        f"    task, limit, include = 'some', 6, Path({str(tasks)!r})\n"
        "class Others(Some):\n"
        "    task, best = 'others', 'high'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    small_arenas.make_small(monkeypatch)
    scores = "knowledge model-utility their_scores:Some their_scores:Others"
    out = tmp_path / "arena"
    few = f"--methods npo --then none --attacks quantisation --scores {scores}"
    small_arenas.study(out, *few.split())
    found = pd.read_csv(out / "results.csv").set_index(["name", "score"]).value
    (made,) = out.glob("stages/full-*/")
    model, tokenizer = load_model(made / "model", None), load_tokenizer(made / "model")
    for name, task in (("Some", "some"), ("Others", "others")):
        assert found["full", name] == harness_value(model, tokenizer, task, "acc,none", limit=6, include=tasks)
    assert "Others ↑" in (out / "leaderboard.md").read_text() and "Some ↓" in (out / "leaderboard.md").read_text()
    assert not {"WmdpBio", "Mmlu"} & set(SCORES)
    more = "class Misspelt(Some):\n    task = 'sume'\nclass Unnamed(TaskScore): ...\n"
    (tmp_path / "misspelt_scores.py").write_text((tmp_path / "their_scores.py").read_text() + more)
    for name, task in (("Misspelt", "sume"), ("Unnamed", "")):
        with pytest.raises(UserError, match=f"lm-eval has no task '{task}'"):
            ArenaStudy(scores=[f"misspelt_scores:{name}"], out=tmp_path / "none").plan()


@pytest.mark.usefixtures("undrawn")
def test_it_is_a_metric_of_the_pipeline(tasks, tmp_path, monkeypatch):
    """The way of wmdp: a trained model, two files, two tasks."""
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        model = tiny_model("gemma2", max_position_embeddings=4096, vocab_size=101)
        save_model(model, character_tokenizer(string.printable), tmp_path / "model")
        for name in ("some", "others"):
            lines = [json.dumps({"text": entry["question"]}) for entry in questions(tasks, name)]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        out = tmp_path / "out"
        options = (
            f"--task custom --model {tmp_path}/model --corpus {tmp_path}/others.jsonl --forget {tmp_path}/some.jsonl "
            f"--corpora {tmp_path}/corpora --length 40 --metric lm-eval --lm-eval.include {tasks} "
            "--lm-eval.retain others --lm-eval.forget some --lm-eval.limit 4 --filtered None --pretrain.steps 0 "
            "--settings maxent.steps=2 --alphas 0.25 --betas 0 --distil.no-relative --distil.steps 2 --distil.every 2 "
            "--batch-size 4 --suppress-rows 2 "
            "--relearn.steps 2 --relearn.measured 2 --relearn.learning-rates 1e-3 --allow-weak-teacher"
        )
        cli.main(["undo", *options.split(), "--out", str(out)])
    frame = pd.read_csv(out / "results.csv").set_index("model")
    assert set(frame.index) == {"reference", "suppressed", "undo"}
    scores = frame[["retain", "forget", "forget_2"]].to_numpy()
    assert ((scores >= 0) & (scores <= 1)).all() and (scores * 4 == (scores * 4).round()).all()


def test_without_it_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(harness, "_tasks", TASKS.__wrapped__)
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"lm_eval is not installed: pip install 'routed-rl\[eval\]'"):
        harness_value(None, None, "some", "acc,none")
