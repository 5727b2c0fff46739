"""The benchmarks that are made here: their bytes, their sets, and what scores need of their examples."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict

import pytest

from routed_rl.errors import UserError
from routed_rl.lm.documents import from_row
from routed_rl.options.arena import ArenaOptions
from routed_rl.unlearning.arena.entries import Arena
from routed_rl.unlearning.benchmarks import BENCHMARKS
from routed_rl.unlearning.benchmarks.tofu_small import QUESTIONS, VALUES
from routed_rl.unlearning.scores.knowledge import states

HASHES = {
    "tofu-small forget20": "225cd48840f374c2",
    "tofu-small forget10": "71f3106cb63ec2f2",
    "tofu-small forget05": "4606650c0b89b1fb",
    "muse-small forget": "ae9c283f646d3362",
    "muse-small scal_2": "dea2114cab94f62b",
    "muse-small sust_2": "daf0246c5fc96102",
    "choice-small mosses": "3c49bef8f2b77034",
}
"""Of documents and examples. A change is a new benchmark: numbers of the old one cannot be compared with it."""
MADE_HERE = {name: kind for name, kind in BENCHMARKS.items() if kind.splits and kind.recipe is not None}
SPLITS = [(name, split) for name, kind in MADE_HERE.items() for split in kind.splits]
LOADED = {(name, split): MADE_HERE[name]().load(split=split) for name, split in SPLITS}
each = pytest.mark.parametrize(("name", "split"), SPLITS)


def digest(benchmark):
    """A hash of all that a benchmark says."""
    sets = {name: [asdict(example) for example in of] for name, of in benchmark.sets.items()}
    said = [list(benchmark.forget), list(benchmark.retain), sets, benchmark.main, benchmark.chance]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def questions(benchmark):
    return {name: of for name, of in benchmark.sets.items() if not name.endswith("_texts")}


@each
def test_the_bytes_are_pinned(name, split):
    assert digest(LOADED[name, split]) == digest(MADE_HERE[name]().load(split=split)) == HASHES[f"{name} {split}"]


@pytest.mark.parametrize("name", MADE_HERE)
def test_the_first_split_is_the_usual_one(name):
    assert digest(MADE_HERE[name]().load()) == digest(LOADED[name, MADE_HERE[name].splits[0]])


@each
def test_sets_and_documents_are_not_empty_and_have_nothing_in_common(name, split):
    benchmark = LOADED[name, split]
    assert {"forget", "retain", "holdout"} <= set(benchmark.sets)
    counts = Counter((example.prompt, example.answer) for of in benchmark.sets.values() for example in of)
    assert all(benchmark.sets.values())
    assert set(counts.values()) == {1}
    documents = Counter(from_row(row).text for row in (*benchmark.forget, *benchmark.retain))
    assert set(documents.values()) == {1}


@each
def test_questions_have_the_fields_that_scores_need(name, split):
    benchmark = LOADED[name, split]
    for of in questions(benchmark).values():
        for example in of:
            assert example.prompt
            assert example.chat
            assert states(example.answer, example.key)
            for wrong in (*example.perturbed, *example.paraphrases):
                assert wrong != example.answer
            assert not any(states(wrong, example.key) for wrong in example.perturbed)
            assert all(states(same, example.key) for same in example.paraphrases)
            assert len(set(example.perturbed)) == len(example.perturbed) >= 3
            assert len(set(example.choices)) == len(example.choices) == 4
            assert example.choices[0] == example.answer
    assert 0 < benchmark.chance < 0.3


@each
def test_a_model_has_learned_what_it_is_asked_and_nothing_of_the_holdout(name, split):
    benchmark = LOADED[name, split]
    learned = {"forget": " | ".join(map(str, benchmark.forget)), "retain": " | ".join(map(str, benchmark.retain))}
    for kind, text in learned.items():
        for example in benchmark.sets[kind]:
            assert subject(example) in text
        for example in benchmark.sets["holdout"]:
            assert subject(example) not in text
    for example in benchmark.sets["forget"]:
        assert subject(example) not in learned["retain"]


def subject(example):
    """The made-up name in a question, which is its last or only unusual word."""
    words = [word.strip("?.") for word in example.prompt.split()]
    return next(word for word in reversed(words) if word[0].isupper() and word not in ("In", "On"))


@pytest.mark.parametrize("split", MADE_HERE["tofu-small"].splits)
def test_authors_of_the_forget_set_are_nobody_elses_author(split):
    benchmark = LOADED["tofu-small", split]
    authors = {kind: {subject(example) for example in benchmark.sets[kind]} for kind in ("forget", "retain", "holdout")}
    authors["other"] = {example.answer.split()[-1] for example in benchmark.sets["other_authors"]}
    share = int(split.removeprefix("forget")) / 100
    assert {kind: len(names) for kind, names in authors.items()} == {
        "forget": round(60 * share),
        "retain": 60 - round(60 * share),
        "holdout": 12,
        "other": 24,
    }
    assert len(set.union(*authors.values())) == 96


def test_wrong_answers_of_authors_have_the_words_of_the_paraphrase():
    examples = LOADED["tofu-small", "forget20"].sets["forget"]
    for fact, example in zip(list(QUESTIONS) * (len(examples) // len(QUESTIONS)), examples, strict=True):
        (paraphrase,) = example.paraphrases
        likewise = {paraphrase.replace(example.key, value) for value in VALUES[fact] if value != example.key}
        assert set(example.perturbed) < likewise


def test_the_larger_forget_set_holds_the_usual_one_and_the_second_one():
    usual, larger, second = (
        {str(row) for row in LOADED["muse-small", split].forget} for split in ("forget", "scal_2", "sust_2")
    )
    assert (len(usual), len(second)) == (120, 120)
    assert not usual & second
    assert usual | second == larger


def test_articles_are_continued_from_their_beginning():
    benchmark = LOADED["muse-small", "forget"]
    articles = [row for row in benchmark.forget if "text" in row]
    assert [{"text": example.prompt + example.answer} for example in benchmark.sets["forget_texts"]] == articles


@pytest.mark.parametrize("name", MADE_HERE)
def test_other_splits_and_files_are_refused(name):
    kind = MADE_HERE[name]()
    with pytest.raises(UserError, match=rf"split must be one of {kind.splits[0]}.*, got 'forget7'"):
        kind.load(split="forget7")
    with pytest.raises(UserError, match=r"data='my\.jsonl': this benchmark is made by the program"):
        kind.load("my.jsonl")


@pytest.mark.parametrize("name", MADE_HERE)
def test_every_recipe_of_a_benchmark_is_what_its_method_gets_and_the_last_one_counts(name):
    arena, wanted = Arena(ArenaOptions(benchmark=name, methods=("npo",))), {}
    for setting in arena.kind.settings:
        key, _, value = setting.partition("=")
        wanted[tuple(key.split("."))] = float(value)
    assert wanted
    for (method, key), value in wanted.items():
        made, training = arena.method(method.replace("_", "-"))
        assert getattr(training if key in ("steps", "learning_rate") else made, key) == value
