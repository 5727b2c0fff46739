"""``routed-rl undo`` with methods that teach another answer: they need questions with answers."""

import json

import numpy as np
import pandas as pd
import pytest

from routed_rl.experiments.undo.options import Undo
from routed_rl.lm.alternatives import DONT_KNOW
from routed_rl.lm.inputs import open_text
from routed_rl.unlearning.undo_study.domains import Domains
from routed_rl.unlearning.undo_study.members import suppression_parts
from tests.experiments.killed_undo import OPTIONS
from tests.experiments.small_undo import refused, run

NAMES = ["Ada", "Bo", "Cyd", "Dee", "Eli", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Lou"]
FEW = ("--settings", "idk-nll.steps=2", "idk-dpo.steps=2", "--students", "--filtered", "None")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of questions, half of them to forget, and options that name them."""
    folder = tmp_path_factory.mktemp("questions")
    for name, people in (("forget", NAMES[:6]), ("retain", NAMES[6:])):
        rows = [{"question": f"Where does {who} live?", "answer": f"{who} lives in {who}ville."} for who in people]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def options(files):
    named = ("--corpus", files / "retain.jsonl", "--forget", files / "forget.jsonl", "--vocabulary", "300")
    kind = ("--task", "custom", "--model", "gemma2-tiny", "--metric", "loss", "--validation", "None", "--length", "48")
    sizes = ("--batch-size", "4", "--suppress-rows", "4", "--pretrain.steps", "3", "--test-documents", "6")
    attack = ("--relearn.steps", "3", "--relearn.measured", "3", "--relearn.learning-rates", "1e-3")
    return (*kind, *named, *sizes, *attack)


@pytest.mark.usefixtures("undrawn")
def test_a_study_of_questions_has_these_methods(small, files, tmp_path):
    run(small, *options(files), "--suppress", "idk-nll", "idk-dpo", *FEW, "--out", tmp_path / "s")
    frame = pd.read_csv(tmp_path / "s" / "results.csv").set_index("suppressor")
    assert {"idk-nll", "idk-dpo"} <= set(frame.index) and frame.forget.nunique() == len(frame)
    stages = [json.loads(path.read_text()) for path in (tmp_path / "s").glob("stages/suppress-*/config.json")]
    assert [stage["config"]["options"]["alternatives"] for stage in stages] == [[*DONT_KNOW]] * 2


def test_alternatives_are_those_of_their_documents(small, files):
    command = Undo(
        task="custom",
        model="gemma2-tiny",
        corpus=str(files / "retain.jsonl"),
        forget=str(files / "forget.jsonl"),
        vocabulary=300,
        validation=None,
        corpora=small[0],
    )
    text = open_text(command)
    domains, order = Domains(command, text), np.array([9, 6, 11, 8])
    batch = domains.alternatives("idk-nll", ("It is unknown.",), order, 0).batch(order[::-1])
    said = [
        text.tokenizer.decode(row[real], skip_special_tokens=True)
        for row, real in zip(batch.tokens, batch.real, strict=True)
    ]
    assert said == [f"Where does {NAMES[n - 6]} live? It is unknown." for n in order[::-1]]


def test_a_study_without_questions_or_answers_is_refused_at_the_start(small, files, tmp_path, capsys):
    out = ("--out", tmp_path / "s")
    line = refused(capsys, small, *OPTIONS, "--suppress", "maxent", "idk-nll", *out)
    assert (
        "the method idk-nll needs forget documents that are a question and its answer, but it has no answers: '" in line
    )
    line = refused(capsys, small, *options(files), "--suppress", "alt-po", *out)
    assert (
        "--suppress alt-po needs an alternative answer for each question, which a study does not have: use unlearn"
        in line
    )
    line = refused(capsys, small, *options(files), "--suppress", "idk-dpo", "--length", "9", *out)
    assert "--length 9 is too small: a question with its answer, or an alternative answer, has " in line
    line = refused(
        capsys, small, *options(files), "--suppress", "idk-dpo", "--suppress-rows", "3", "--processes", "2", *out
    )
    assert "--suppress-rows 3 must be divisible by the 2 parts of a batch" in line
    assert not list((tmp_path / "s").glob("stages/*"))


@pytest.mark.parametrize(("rows", "accumulate", "parts"), [(64, 1, 1), (64, 3, 2), (10, 4, 2), (10, 5, 5), (9, 9, 3)])
def test_parts_have_two_or_more_whole_pairs(rows, accumulate, parts):
    assert suppression_parts(Undo(suppress_rows=rows, accumulate=accumulate), paired=True) == parts
