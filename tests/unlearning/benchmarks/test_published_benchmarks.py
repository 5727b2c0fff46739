"""TOFU, MUSE and WMDP with their own schemas: from folders, from a hub that is replaced, and with errors."""

import json
import re

import pytest

from routed_rl.errors import UserError
from routed_rl.unlearning.benchmarks import Benchmark, Muse, Tofu, Wmdp
from routed_rl.unlearning.scores import SCORES
from tests.unlearning.benchmarks.stand_ins import MUSE, TOFU, WMDP, asked, choice, hub, put, texts

KINDS = {Tofu: TOFU, Muse: MUSE, Wmdp: WMDP}
SPLITS = [(Tofu, split) for split in Tofu.splits] + [(Wmdp, split) for split in Wmdp.splits]
SPLITS += [(Muse, split) for split in ("news", "books", "news_scal_2", "news_sust_2")]


def same(one, two):
    return (one.forget, one.retain, one.sets, one.main, one.chance) == (
        two.forget,
        two.retain,
        two.sets,
        two.main,
        two.chance,
    )


@pytest.mark.parametrize(("kind", "split"), SPLITS)
def test_the_hub_and_downloaded_files_give_the_same(kind, split, tmp_path, monkeypatch):
    files = {
        where: rows
        for where, rows in KINDS[kind].items()
        if kind is not Muse or split.startswith(where[0][16:].lower())
    }
    put(tmp_path, files)
    local = kind().load(str(tmp_path), split)
    assert isinstance(local, Benchmark)
    read = hub(monkeypatch, files)
    assert same(kind().load(split=split), local)
    assert set(read) <= set(files)
    inside = tmp_path / "all"
    for repository in {repository for repository, *_ in files}:
        folder = inside / repository.rpartition("/")[2]
        folder.mkdir(parents=True)
        put(folder, {where: rows for where, rows in files.items() if where[0] == repository})
    assert same(kind().load(str(inside), split), local), "a folder for each repository"


def test_tofu_has_its_sets_and_fields(tmp_path):
    put(tmp_path, TOFU)
    benchmark = Tofu().load(str(tmp_path))
    assert (len(benchmark.forget), len(benchmark.retain), benchmark.main) == (10, 100, "extraction-strength")
    assert benchmark.kept == ["retain", "real_authors", "world_facts"]
    (example,) = benchmark.sets["forget"]
    assert (example.prompt, example.answer, example.chat) == ("Q0?", "A0.", True)
    assert (example.paraphrases, example.perturbed) == (("It is A0.",), ("B.", "C.", "D."))
    (fact,) = benchmark.sets["world_facts"]
    assert (fact.paraphrases, fact.perturbed) == ((), ("B.",)), "no answer twice, and not the right one"


def test_muse_has_questions_texts_and_whole_texts_for_membership(tmp_path):
    put(tmp_path, {where: rows for where, rows in MUSE.items() if "News" in where[0]})
    benchmark = Muse().load(str(tmp_path))
    assert (benchmark.main, benchmark.chance, benchmark.longer) == ("extraction-strength", 0, 32)
    texts_of = {"forget_texts", "retain_texts", "holdout_texts"}
    assert set(benchmark.sets) == {"forget", "retain", *texts_of, "forget_members", "holdout_members"}
    assert benchmark.kept == ["retain", "retain_texts"]
    (question,) = benchmark.sets["forget"]
    solved = "Question: Q2?\nAnswer: A2.\n\nQuestion: Q3?\nAnswer: A3.\n\n"
    assert (question.prompt, question.answer) == (f"{solved}Question: Q0?\nAnswer:", " A0.")
    (kept,) = benchmark.sets["retain"]
    assert kept.prompt == "Question: Q4?\nAnswer: A4.\n\nQuestion: Q1?\nAnswer:", (
        "each set has its own solved questions"
    )
    assert not question.chat and not kept.chat
    (text,) = benchmark.sets["forget_texts"]
    assert (text.prompt, text.answer, text.chat) == ("forget text number", " 0 with a good", False)
    held = benchmark.sets["holdout_texts"][1]
    assert held.prompt + held.answer == "other text number 1 with a good"
    assert held.answer.startswith(" ")
    score = SCORES["privacy-leakage"]()
    for found, name in zip(score.sets(benchmark), ("member", "other"), strict=True):
        assert [example.answer for example in found] == [row["text"] for row in texts(name)]
        assert not any(example.prompt or example.chat for example in found)


@pytest.mark.parametrize(("split", "name"), [("news_scal_2", "forget"), ("news_sust_2", "second")])
def test_a_later_fold_is_measured_by_its_own_documents(split, name, tmp_path):
    put(tmp_path, {where: rows for where, rows in MUSE.items() if "News" in where[0]})
    benchmark = Muse().load(str(tmp_path), split)
    assert [row["text"].partition(" ")[0] for row in benchmark.forget] == [name] * len(benchmark.forget)
    assert len(benchmark.sets["forget_texts"]) == len(benchmark.forget) == (4 if name == "forget" else 2)
    documents = [row["text"] for row in benchmark.forget]
    beginnings = [example.prompt + example.answer for example in benchmark.sets["forget_texts"]]
    assert all(map(str.startswith, documents, beginnings)), "its texts are of its own documents"
    assert ("forget" in benchmark.sets) == (name == "forget"), "the questions are about the first fold"
    members, others = SCORES["membership-loss"]().sets(benchmark)
    assert (members, others) == (benchmark.sets["forget_texts"], benchmark.sets["holdout_texts"])


def test_a_large_fold_is_measured_by_a_hundred_texts_of_all_of_it(tmp_path):
    rows = [{"text": f"article {i:03} of many words, none of them like another"} for i in range(250)]
    put(
        tmp_path,
        {**{w: r for w, r in MUSE.items() if "News" in w[0]}, ("muse-bench/MUSE-News", "scal", "forget_3"): rows},
    )
    found = Muse().load(str(tmp_path), "news_scal_3").sets["forget_texts"]
    numbers = [int((example.prompt + example.answer)[8:11]) for example in found]
    assert len(set(numbers)) == 100 and (numbers[0], numbers[-1]) == (0, 247)


def test_wmdp_asks_as_lm_eval_does(tmp_path):
    put(tmp_path, WMDP)
    benchmark = Wmdp().load(str(tmp_path), "cyber")
    assert (benchmark.main, benchmark.chance) == ("multiple-choice", 0.25)
    assert benchmark.forget == WMDP["cais/wmdp-corpora", "cyber-forget-corpus", "train"]
    example = benchmark.sets["forget"][2]
    assert example.prompt == (
        "The following are multiple choice questions (with answers) about cybersecurity.\n\n"
        "Q2?\nA. w2\nB. x2\nC. y2\nD. z2\nAnswer:"
    )
    assert (example.answer, example.choices, example.chat) == (" C", (" C", " A", " B", " D"), False)
    assert "about high school biology.\n" in benchmark.sets["retain"][0].prompt
    biology = Wmdp().load(str(tmp_path))
    assert list(biology.forget) == texts("bio"), "a blank document is left out"
    chemistry = Wmdp().load(str(tmp_path), "chem")
    assert len(chemistry.forget) == 5
    assert chemistry.retain[0]["prompt"].startswith("The following are multiple choice questions")


def test_lists_in_one_json_file_are_read_too(tmp_path):
    put(tmp_path, TOFU)
    (tmp_path / "forget10.json").write_text(json.dumps([asked(5)]))
    assert Tofu().load(str(tmp_path)).forget == [asked(5)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_hub_that_cannot_be_read_is_one_line(kind, monkeypatch):
    hub(monkeypatch, {})
    with pytest.raises(ConnectionError, match=r"cannot be read from the hub: no such dataset; give a folder") as raised:
        kind().load()
    assert "\n" not in str(raised.value)


def test_what_is_wrong_with_files_is_said_with_file_row_and_fields(tmp_path):
    put(tmp_path, TOFU)

    def refused(message, kind=Tofu, data=tmp_path, split=None):
        with pytest.raises(UserError, match=re.escape(message)) as raised:
            kind().load(str(data), split)
        assert "\n" not in str(raised.value)

    refused(
        "split must be one of forget10, forget05, forget01, got 'forget1'; did you mean 'forget10'?", split="forget1"
    )
    refused("is not a folder; it must have the files of locuslab/TOFU", data=tmp_path / "forget10.json")
    refused(
        "has no file raw/forget-*.parquet, raw.json or raw.jsonl of muse-bench/MUSE-News; it has forget01", kind=Muse
    )
    file = tmp_path / "forget10.json"
    file.write_text('{"question": "Q?", "reply": 3}')
    refused(
        f"{str(file)!r}, line 1: the row needs a text in the field 'answer'; it has 'question' (str), 'reply' (int)"
    )
    file.write_text('{"question": "Q?", "answer": "  "}')
    refused("line 1: the row has a blank text in the field 'answer'")
    file.write_text('[{"question": "Q?"}')
    refused(f"{str(file)!r}: not JSON: ")
    file.write_text("[3]")
    refused("expected a list of JSON objects")
    file.write_text("")
    refused("the split 'train' of 'forget10' has no rows")
    put(tmp_path, WMDP | {("cais/wmdp", "wmdp-bio", "test"): [{**choice(0), "answer": 4}]})
    refused("row 1: the row needs a number from 0 to 3 in the field 'answer'; it has", kind=Wmdp)
    put(tmp_path, {("cais/wmdp", "wmdp-bio", "test"): [{**choice(0), "choices": ["a"]}]})
    refused("row 1: the row needs a list of 4 texts in the field 'choices'", kind=Wmdp)
