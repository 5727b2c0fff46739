"""The whole path of each published benchmark, on tiny stand-ins of its schema: load, unlearn, attack, score, rank."""

import json
from pathlib import Path

import pytest

from routed_rl.errors import UserError
from routed_rl.lm import from_row, load_tokenizer, save_model
from routed_rl.lm.chat import rendered
from routed_rl.lm.documents import Document
from routed_rl.lm.tokenizers import train_tokenizer
from routed_rl.unlearning.arena import ArenaStudy
from routed_rl.unlearning.arena.making import MODEL
from routed_rl.unlearning.benchmarks import BENCHMARKS
from routed_rl.unlearning.scores import Reader, tasks
from tests.experiments.in_process import run_in_process
from tests.lm.test_chat_formats import LLAMA
from tests.lm.tiny_models import tiny_model
from tests.unlearning.benchmarks.stand_ins import MUSE, TOFU, WMDP, put

FILES = {"tofu": TOFU, "muse": {where: rows for where, rows in MUSE.items() if "News" in where[0]}, "wmdp": WMDP}
SHORT = {"methods": ["graddiff"], "settings": ["graddiff.steps=1"], "then": ["none"], "attacks": ["quantisation"]}
SHORT |= {"batch_size": 2, "budget": 2}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(ArenaStudy, "FIGURES", ())
    run_in_process(monkeypatch)


@pytest.fixture
def studied(tmp_path):
    """Return what makes a study of a benchmark, with the models that it compares."""

    def made(name, template=None, **options):
        (data := tmp_path / name).mkdir(exist_ok=True)
        put(data, FILES[name])
        benchmark = BENCHMARKS[name]().load(str(data), options.get("split"))
        tokenizer = train_tokenizer(map(Document, BENCHMARKS[name].documents(benchmark)), 300)
        tokenizer.chat_template = template
        for seed, model in enumerate(("model", "retrained")):
            whole = tiny_model("llama", seed, vocab_size=len(tokenizer), max_position_embeddings=512)
            save_model(whole, tokenizer, tmp_path / model)
        models = {"model": str(tmp_path / "model"), "retrained": str(tmp_path / "retrained")}
        return ArenaStudy(**SHORT, benchmark=name, data=str(data), out=tmp_path / "out", **models, **options)

    return made


def before(study):
    """The scores of the unlearned model before attacks."""
    found = study.run()
    assert set(found.name) == {"full", "retrained", "graddiff"} and "worst" in set(found.attack)
    assert set(found[found.attack == "quantisation"].score) == {study.arena.main}
    rows = found[(found.name == "graddiff") & (found.attack == "none")]
    assert rows.value.notna().all()
    return rows.set_index("score").value


def asked_of(study):
    """The text of the first forget question, as the unlearned model reads it."""
    stage = study.entries[-1].stage
    tokenizer = load_tokenizer(str(stage.path(study.root) / MODEL))
    return rendered(from_row(study.arena.benchmark.sets["forget"][0].row()), tokenizer).text


def test_tofu_with_a_chat_template_has_the_fields_system_prompt_and_date(studied):
    study = studied("tofu", LLAMA, scores=["model-utility", "forget-quality"])
    assert set(before(study).index) == {"extraction-strength", "model-utility", "forget-quality"}
    assert "Today Date: 10 Apr 2025\n\nYou are a helpful assistant.<|eot|>" in asked_of(study)
    folder = Path(study.save("graddiff", study.out / "saved"))
    assert {"extraction_strength", "model_utility", "forget_quality"} == set(
        json.loads((folder / "TOFU_SUMMARY.json").read_text())
    )


def test_tofu_without_a_chat_template_has_the_fields_question_format(studied):
    study = studied("tofu", scores=["probability"])
    assert set(before(study).index) == {"extraction-strength", "probability"}
    assert asked_of(study) == "Question: Q0?\nAnswer: A0.<eos>"


def test_a_chosen_format_is_a_part_of_the_keys_of_given_models(studied):
    plain = studied("tofu", LLAMA, scores=["probability"])
    keys = {entry.stage.key for entry in plain.entries}
    for options in ({"system_prompt": ""}, {"system_prompt": "Be brief."}, {"question_format": "{question}\n"}):
        other = studied("tofu", LLAMA, scores=["probability"], **options)
        new = {entry.stage.key for entry in other.entries}
        assert not new & keys
        keys |= new
    assert not any("chat" in entry.stage.config for entry in studied("wmdp", split="cyber").entries), "as before"
    with pytest.raises(UserError, match=r"needs '\{question\}', got 'Q: '"):
        _ = studied("tofu", question_format="Q: ").entries
    with pytest.raises(UserError, match="change nothing: muse writes its questions as plain text"):
        _ = studied("muse", system_prompt="Be brief.").entries
    with pytest.raises(UserError, match="need model, the model that they are written for"):
        _ = ArenaStudy(benchmark="tofu-small", question_format="Q: {question}").entries


def test_muse_measures_knowledge_after_solved_questions_and_leakage_on_whole_texts(studied, monkeypatch):
    read = []
    answers = Reader.answers
    monkeypatch.setattr(Reader, "answers", lambda self, of, given=None: read.extend(of) or answers(self, of, given))
    study = studied("muse", LLAMA, scores=["retained-knowledge-memorisation", "privacy-leakage"])
    found = before(study)
    assert set(found.index) == {"extraction-strength", "retained-knowledge-memorisation", "privacy-leakage"}
    sets = study.arena.benchmark.sets
    assert {*sets["forget"], *sets["forget_members"], *sets["holdout_members"]} == set(read)
    assert asked_of(study).endswith("\n\nQuestion: Q0?\nAnswer: A0."), "its own format, whatever the template"
    assert "retained-knowledge-memorisation ↑ |" in (study.out / "leaderboard.md").read_text().splitlines()[8]


def test_a_further_fold_of_muse_is_unlearned_and_measured(studied):
    study = studied("muse", split="news_sust_2", scores=["verbatim-memorisation", "membership-loss"])
    assert set(before(study).index) == {"extraction-strength", "verbatim-memorisation", "membership-loss"}


def test_wmdp_scores_choices_and_asks_lm_eval_by_name(studied, monkeypatch):
    asked = []

    def value(model, tokenizer, task, *_):
        asked.append(task)
        return 0.3

    monkeypatch.setattr(Reader, "written", lambda *_: pytest.fail("nothing is written"))
    study = studied("wmdp", split="cyber")
    choices = {"multiple-choice", "normalised-probability", "retained-multiple-choice"}
    assert set(before(study).index) == choices
    monkeypatch.setattr(tasks, "harness_value", value)
    monkeypatch.setattr(tasks, "check_task", lambda *_: None)
    study = studied("wmdp", split="cyber", scores=["wmdp-cyber", "mmlu"])
    found = before(study)
    assert set(found.index) == {"multiple-choice", "wmdp-cyber", "mmlu"}
    assert found["mmlu"] == 0.3 and asked.count("wmdp_cyber") == 3
    assert asked.count("mmlu") > 3, "what a model has kept is measured after attacks on its weights too"
