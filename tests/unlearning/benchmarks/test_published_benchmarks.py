"""TOFU, MUSE and WMDP with their own schemas: from folders, from a hub that is replaced, and with errors."""

import json
import re
import sys
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from routed_rl.errors import UserError
from routed_rl.unlearning.benchmarks import Benchmark, Muse, Tofu, Wmdp


def asked(i, **more):
    return {"question": f"Q{i}?", "answer": f"A{i}.", **more}


def other(i, answers=("B.", "C.", "D.")):
    return asked(i, perturbed_answer=list(answers))


def full(i):
    """A row of a ``_perturbed`` configuration of TOFU."""
    return {**other(i), "paraphrased_answer": f"It is A{i}.", "paraphrased_question": f"P{i}?"}


def texts(name, count=2):
    return [{"text": f"{name} text number {i} with a good many words"} for i in range(count)]


def choice(i, **more):
    return {"question": f"Q{i}?", "choices": [f"w{i}", f"x{i}", f"y{i}", f"z{i}"], "answer": i % 4, **more}


TOFU = {("locuslab/TOFU", f"forget{percent:02}", "train"): [asked(i) for i in range(percent)] for percent in (1, 5, 10)}
TOFU |= {(repository, f"{name}_perturbed", split): [full(0)] for repository, name, split in TOFU}
TOFU |= {("locuslab/TOFU", f"retain{percent}", "train"): [asked(i) for i in range(10, 110)] for percent in (99, 95, 90)}
TOFU |= {("locuslab/TOFU", f"holdout{percent:02}", "train"): [asked(200)] for percent in (1, 5, 10)}
TOFU |= {
    ("locuslab/TOFU", "retain_perturbed", "train"): [full(10), full(11)],
    ("locuslab/TOFU", "real_authors_perturbed", "train"): [other(300)],
    ("locuslab/TOFU", "world_facts_perturbed", "train"): [other(400, ("B.", "B.", "A400."))],
}
MUSE = {
    ("muse-bench/MUSE-News", "raw", "forget"): texts("forget"),
    ("muse-bench/MUSE-News", "raw", "retain1"): texts("retain"),
    ("muse-bench/MUSE-News", "scal", "forget_2"): texts("forget", 4),
    ("muse-bench/MUSE-News", "sust", "forget_2"): texts("second"),
    ("muse-bench/MUSE-News", "knowmem", "forget_qa"): [asked(0)],
    ("muse-bench/MUSE-News", "knowmem", "retain_qa"): [asked(1)],
    ("muse-bench/MUSE-News", "verbmem", "forget"): [{"prompt": "forget text number", "gt": " 0 with a good"}],
    ("muse-bench/MUSE-News", "privleak", "retain"): texts("kept"),
    ("muse-bench/MUSE-News", "privleak", "holdout"): texts("other"),
}
MUSE |= {("muse-bench/MUSE-Books", *where): rows for (_, *where), rows in MUSE.items()}
WMDP = {
    **{("cais/wmdp", f"wmdp-{domain}", "test"): [choice(i) for i in range(5)] for domain in ("bio", "cyber", "chem")},
    ("cais/wmdp-corpora", "bio-retain-corpus", "train"): texts("bio kept"),
    ("cais/wmdp-corpora", "cyber-forget-corpus", "train"): texts("cyber"),
    ("cais/wmdp-corpora", "cyber-retain-corpus", "train"): texts("cyber kept"),
    ("cais/wmdp-bio-forget-corpus", "default", "train"): [*texts("bio"), {"text": " "}],
    ("cais/mmlu", "all", "test"): [choice(i, subject="high_school_biology") for i in range(10, 14)],
    ("cais/mmlu", "all", "validation"): [choice(20, subject="astronomy")],
}
KINDS = {Tofu: TOFU, Muse: MUSE, Wmdp: WMDP}
SPLITS = [(Tofu, split) for split in Tofu.splits] + [(Wmdp, split) for split in Wmdp.splits]
SPLITS += [(Muse, split) for split in ("news", "books", "news_scal_2", "news_sust_2")]


def put(folder, files):
    """Write files as they are downloaded: Parquet for a configuration with splits, JSON lines for TOFU."""
    for (repository, configuration, split), rows in files.items():
        if repository == "locuslab/TOFU":
            (folder / f"{configuration}.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            continue
        name = "bio-forget-corpus" if configuration == "default" else configuration
        (folder / name).mkdir(exist_ok=True)
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / name / f"{split}-00000-of-00001.parquet")


def hub(monkeypatch, files):
    """Replace the hub by rows, and return a list that collects what is asked for."""
    read = []

    def load_dataset(repository, configuration, *, split, streaming):
        assert streaming
        read.append((repository, configuration, split))
        if (repository, configuration, split) not in files:
            raise FileNotFoundError("no such dataset\nat all")
        return iter(files[repository, configuration, split])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return read


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
    assert (len(benchmark.forget), len(benchmark.retain), benchmark.main) == (10, 100, "knowledge")
    assert benchmark.kept == ["retain", "real_authors", "world_facts"]
    (example,) = benchmark.sets["forget"]
    assert (example.prompt, example.answer, example.chat) == ("Q0?", "A0.", True)
    assert (example.paraphrases, example.perturbed) == (("It is A0.",), ("B.", "C.", "D."))
    (fact,) = benchmark.sets["world_facts"]
    assert (fact.paraphrases, fact.perturbed) == ((), ("B.",)), "no answer twice, and not the right one"


def test_muse_has_questions_and_texts(tmp_path):
    put(tmp_path, {where: rows for where, rows in MUSE.items() if "News" in where[0]})
    benchmark = Muse().load(str(tmp_path))
    assert set(benchmark.sets) == {"forget", "retain", "forget_texts", "retain_texts", "holdout_texts"}
    (text,) = benchmark.sets["forget_texts"]
    assert (text.prompt, text.answer, text.chat) == ("forget text number", " 0 with a good", False)
    held = benchmark.sets["holdout_texts"][1]
    assert held.prompt + held.answer == "other text number 1 with a good"
    assert held.answer.startswith(" ")
    assert len(Muse().load(str(tmp_path), "news_scal_2").forget) == 4


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
