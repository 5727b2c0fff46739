"""``routed-rl unlearn``: single runs, on texts and models of the user's; what cannot be done is said in one line."""

import json
import os
import signal
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from routed_rl.errors import UserError
from routed_rl.experiments import cli
from routed_rl.lm import save_model, stories_tokenizer
from routed_rl.lm.era_study import pipeline
from routed_rl.lm.era_study.checks import check_options
from routed_rl.lm.era_study.methods import METHODS
from routed_rl.lm.era_study.pipeline import Pipeline
from routed_rl.lm.inputs import open_text
from routed_rl.options.era import TextOptions, Unlearn
from routed_rl.runs import RunDirectory, read_json, read_metrics
from tests.experiments.killed_studies import OPTIONS, make_small
from tests.experiments.mistakes import complaints
from tests.lm.tiny_models import tiny_model

METRICS = ["step", "loss", "learning_rate", "gradient_norm"]

UP_ALONE = "model.layers.{}.mlp.up_proj:model.layers.{}.mlp.down_proj"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Small models, run in this process; the folder of corpora."""
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        yield tmp_path_factory.mktemp("corpora")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Files of text, word lists and models, good and bad."""
    folder = tmp_path_factory.mktemp("texts")
    write_text(folder / "c.txt", "ship")
    endings = ("and war", "of peace", "peace", "of ships")
    rows = [{"a": f"a tree {i}", "b": f"{i} {endings[i % 4]}"} for i in range(200)]
    (folder / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "words").write_text("tree\noak\n")
    (folder / "empty").mkdir()
    save_model(tiny_model("gpt2", vocab_size=128, attn_pdrop=0.2), stories_tokenizer(), folder / "padded")
    save_model(tiny_model("bitnet"), stories_tokenizer(), folder / "unknown")
    save_model(tiny_model("llama"), stories_tokenizer(), folder / "gated")
    save_model(tiny_model("mixtral"), stories_tokenizer(), folder / "mixture")
    save_model(tiny_model("gpt_neo", vocab_size=50), stories_tokenizer(), folder / "narrow")
    return folder


def write_text(path, other):
    path.write_text("\n\n".join(f"a {'tree' if i % 4 == 0 else other} and document {i} of them" for i in range(400)))


def run(corpora, *options):
    cli.main(["unlearn", *OPTIONS, "--corpora", str(corpora), *map(str, options)])


def refused(capsys, corpora, *options):
    """The one line that a mistake ends with."""
    (line,) = complaints(capsys, lambda: run(corpora, *options))
    return line


def contents(out):
    """The bytes of what is a function of configuration and seed."""
    files = [file for file in out.rglob("*") if file.is_file() and file.parent.name != "tensorboard"]
    return {str(file.relative_to(out)): file.read_bytes() for file in files if file.name != "timings.csv"}


def keys(value):
    """All names in nested mappings and lists."""
    if isinstance(value, dict):
        return {*value, *(name for child in value.values() for name in keys(child))}
    return {name for child in value for name in keys(child)} if isinstance(value, list) else set()


# --- runs ---------------------------------------------------------------------------------------


def test_a_run_and_the_same_run_elsewhere(corpora, tmp_path, capsys):
    """Results are a function of configuration and seed; a finished run is not done again."""
    run(corpora, "--out", tmp_path / "a")
    run(corpora, "--out", tmp_path / "b")
    torch.manual_seed(5)  # nobody else's numbers matter
    run(corpora, "--out", tmp_path / "other", "--seed", "1")
    first, second, other = (contents(tmp_path / name) for name in ("a", "b", "other"))
    assert first == second and not any("checkpoints" in name for name in first)
    assert all(first[name] != other[name] for name in ("metrics.csv", "evaluation.json", "model/model.safetensors"))
    result = read_json(tmp_path / "a" / "evaluation.json")
    assert set(result["losses"]) == {"trained", "ablated", "finished"}
    assert all(
        set(losses) == {"forget", "retain", "forget_routed", "forget_rest"} for losses in result["losses"].values()
    )
    assert not {name for name in keys(result) if "second" in name or "time" in name}
    rows = read_metrics(tmp_path / "a" / "metrics.csv")
    assert [list(row) for row in rows] == [METRICS] * 6 and [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]

    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "train", None)
        run(corpora, "--out", tmp_path / "a")
    captured = capsys.readouterr()
    assert "is finished; this is its result" in captured.err
    assert json.loads(captured.out.partition("Model and result")[0]) == result["losses"]
    run(corpora, "--out", tmp_path / "a", "--force")
    assert contents(tmp_path / "a") == first == contents(tmp_path / "a.old-1")


def die(path, corpora, monkeypatch_target, name, number, *options):
    """Do a run in a child, which is killed after its call ``number`` of something."""
    child = os.fork()
    if child == 0:
        real, calls = getattr(monkeypatch_target, name), []

        def deadly(*arguments, **named):
            found = real(*arguments, **named)
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(monkeypatch_target, name, deadly)
        try:
            run(corpora, "--out", path, *options)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch's threads for a GPU do not survive a fork")
@pytest.mark.parametrize("options", [("--method", "era"), ("--method", "rmu", "--model", "padded", "--length", "30")])
def test_killed_in_training_in_repair_and_in_the_attack(corpora, texts, tmp_path, options):
    """With dropout, so that a wrong random state would be seen."""
    options = tuple(str(texts / "padded") if option == "padded" else option for option in options)
    run(corpora, "--out", tmp_path / "whole", *options)
    again = tmp_path / "again"
    die(again, corpora, RunDirectory, "save_checkpoint", 2, *options)
    assert sorted(path.name for path in (again / "checkpoints").iterdir())[-1] == "step-000000000004"
    die(again, corpora, Pipeline, "_losses", 2, *options)
    assert sorted(path.name for path in (again / "checkpoints").iterdir())[-1] == "step-000000000006"
    die(again, corpora, pipeline, "fine_tune", 1, *options)
    die(again, corpora, pipeline, "save_model", 1, *options)
    assert (again / "model").is_dir() and not (again / "evaluation.json").exists()
    run(corpora, "--out", again, *options)
    assert contents(again) == contents(tmp_path / "whole")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_a_model_of_ones_own(method, corpora, texts, tmp_path, capsys):
    """GPT-2, which knows more tokens than its tokenizer has, and its tokens one by one."""
    options = ("--model", texts / "padded", "--length", "30", "--tokens", "oak", "leaf")
    if METHODS[method].expands:
        options += ("--adapters", "2")
    else:
        line = refused(capsys, corpora, *options, "--method", method, "--adapters", "2", "--out", tmp_path / "r")
        assert "has no adapters, only era, control and demix: leave out --adapters" in line
    run(corpora, *options, "--method", method, "--mode", "parameter", "--out", tmp_path / "r")
    result = read_json(tmp_path / "r" / "evaluation.json")
    assert result["routed_tokens"] == 2 and np.isfinite(result["losses"]["finished"]["forget_routed"])
    assert ("ablated" in result["losses"]) == METHODS[method].expands
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "model")
    assert result["parameters"] == sum(parameter.numel() for parameter in plain.parameters())
    assert plain.config.vocab_size == 128 and {name for name, _ in plain.named_parameters()} == {
        name for name, _ in tiny_model("gpt2").named_parameters()
    }


def test_a_pretrained_model_is_measured_before_it_is_trained(corpora, texts, tmp_path):
    found = []
    for steps in (0, 2):
        options = ("--model", texts / "padded", "--length", "30", "--method", "base", "--steps", steps)
        run(corpora, *options, "--out", tmp_path / f"{steps}")
        found.append(read_json(tmp_path / f"{steps}" / "evaluation.json")["losses"])
    assert found[1]["pretrained"] == found[0]["trained"] != found[1]["trained"]
    run(corpora, "--method", "base", "--out", tmp_path / "new")
    assert "pretrained" not in read_json(tmp_path / "new" / "evaluation.json")["losses"], "a new model knows nothing"


def test_texts_of_ones_own(corpora, texts, tmp_path):
    """Words of a file; documents that do not fill a row; and rows shorter than what samples begin with."""
    options = ("--corpus", texts / "c.txt", "--words", texts / "words", "--vocabulary", "300", "--length", "64")
    run(corpora, *options, "--attack.documents", "1", "--repair.documents", "1", "--out", tmp_path / "long")
    result = read_json(tmp_path / "long" / "evaluation.json")
    assert list(result["relearning"]) == ["1"] and result["labelled_documents"] > 0
    run(corpora, "--length", "4", "--steps", "0", "--method", "base", "--out", tmp_path / "short")
    assert len(read_json(tmp_path / "short" / "evaluation.json")["samples"]["finished"]) == 1


def test_two_fields_and_a_phrase_have_corpora_of_their_own(corpora, texts):
    usual = {
        "corpus": str(texts / "c.jsonl"),
        "documents": None,
        "tokenizer": str(texts / "padded"),
        "corpora": corpora,
    }
    found = [
        open_text(Unlearn(**usual, **options))
        for options in (
            {"text_field": "b", "words": ("war",)},
            {"text_field": "b", "words": ("of", "peace")},
            {"text_field": "b", "words": ("of peace",)},
            {"text_field": "a", "pattern": "[02468]$"},
            {"text_field": "b", "pattern": "[02468] "},
        )
    ]
    assert len({text.digest for text in found}) == 5
    assert [float(text.corpus.to_forget.mean()) for text in found] == [0.25, 0.75, 0.25, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"a row needs texts in a field 'text'.* this one has 'a' "):
        open_text(Unlearn(**usual, words=("war",)))


# --- what is refused ----------------------------------------------------------------------------


def test_another_run_in_its_place(corpora, texts, tmp_path, capsys):
    """Also where only the content of a file is another."""
    text, words = tmp_path / "c.txt", tmp_path / "words"
    write_text(text, "ship")
    words.write_text("tree\n")
    options = ("--corpus", text, "--words", words, "--vocabulary", "300", "--steps", "0", "--method", "base")
    options += ("--attack.documents", "1", "--length", "16", "--out", tmp_path / "r")
    run(corpora, *options)
    before = contents(tmp_path / "r")
    assert "seed is 0 there, 1 here" in refused(capsys, corpora, *options, "--seed", "1")
    assert 'config.method is "base" there, "era" here' in refused(capsys, corpora, *options, "--method", "era")
    words.write_text("tree\nships\n")
    assert 'config.words is ["tree"] there, ["tree", "ships"] here' in refused(capsys, corpora, *options)
    words.write_text("tree\n")
    write_text(text, "whale")
    assert 'config.corpus is "sha256:' in refused(capsys, corpora, *options)
    write_text(text, "ship")
    assert contents(tmp_path / "r") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    assert "is not a run and not empty" in refused(capsys, corpora, "--out", tmp_path / "mine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpus", "TEXTS/c.txt", "--words", "zebra"], "none of 300 documents are forget documents"),
        (["--corpus", "TEXTS/c.txt", "--words", "document"], "all of 300 documents are forget documents"),
        (["--corpus", "TEXTS/c.txt"], "the forget set is not defined: give --words, --pattern, --tokens or --forget"),
        (["--corpus", "TEXTS/c.txt", "--pattern", "("], "'(' is not a regular expression"),
        (["--corpus", "TEXTS/none.txt", "--words", "tree"], "there is no file"),
        (["--words", "tree", "--tokens", "oak"], "--words and --tokens both define the forget set: give one of them"),
        (["--words", "tree", "--pattern", "oak"], "--words and --pattern both define the forget set: give one of them"),
        (["--tokens", "oak", "the tree", "xyz"], "not one token each: 'the tree' is 'the' + 'tree'; 'xyz' is"),
        (["--layers", "2"], "layers must be some of 0 … 1, each once, got [2]"),
        (["--layers", "-1"], "layers must be some of 0 … 1, each once, got [-1]"),
        (["--projections", "h.{}.up:h.{}.down"], "no module 'h.0.up'; the nearest are transformer.h.0"),
        (["--projections", "up:down"], "projections must be like"),
        (["--method", "rmu", "--projections", "h.{}.up:h.{}.down"], "no module 'h.0.up'; the nearest are"),
        (["--model", "TEXTS/unknown"], "no MLP was found in model.layers.0: pass projections"),
        (["--model", "TEXTS/unknown", "--adapters", "2"], "Its linear layers are model.layers.0.self_attn.q_proj"),
        (["--model", "TEXTS/gated", "--projections", UP_ALONE], "a gated MLP needs both its gate and its up"),
        (["--model", "TEXTS/mixture"], "model.layers.0 is a mixture of experts, which gets no new hidden units"),
        (["--model", "TEXTS/empty"], "holds no tokenizer that transformers can load"),
        (["--model", "TEXTS/narrow"], "the tokenizer has 96 tokens, more than the 50 of the model"),
        (["--model", "nobody/nothing"], "'nobody/nothing' is not a folder and cannot be loaded from the hub"),
        (["--corpus", "nobody/nothing", "--words", "a"], "the dataset 'nobody/nothing' cannot be read from the hub"),
        (["--length", "65"], "--length 65 is more than the 64 positions of the model 'tiny': pass --length 64"),
        (["--length", "1"], "--length must be at least 2, got 1"),
        (["--labelled", "1.01"], "the labelled share must be a probability between 0 and 1, got 1.01"),
        (["--labelled", "-0.1"], "the labelled share must be a probability between 0 and 1, got -0.1"),
        (["--labelled", "nan"], "got nan"),
        (["--miss-rate", "2"], "--miss-rate must be a probability between 0 and 1, got 2.0"),
        (["--attack.documents", "5000"], "--attack.documents 5000 is more than the"),
        (["--attack.documents", "0"], "--attack.documents must be one or more different numbers from 1 on, got 0"),
        (["--attack.documents"], "--attack.documents must be one or more different numbers from 1 on, got none"),
        (["--attack.repeats", "0"], "--attack.repeats must be at least 1, got 0"),
        (["--attack.every", "0"], "--attack.every must be at least 1, got 0"),
        (["--adapters", "0"], "--adapters must be at least 1, got 0"),
        (["--method", "base", "--adapters", "0"], "--adapters must be at least 1, got 0"),
        (["--units", "0"], "--units must be at least 1, got 0"),
        (["--steps", "-1"], "--steps must be at least 0, got -1"),
        (["--repair.steps", "-1"], "--repair.steps must be at least 0, got -1"),
        (["--repair.documents", "0"], "--repair.documents must be at least 1, got 0"),
        (
            ["--repair.chosen", "20", "--repair.documents", "21"],
            "shorter rows (--length), or --repair.documents ",
        ),
        (["--documents", "0"], "--documents must be at least 1, got 0"),
        (["--documents", "2"], "none of 2 documents are forget documents"),
        (["--test-documents", "0"], "--test-documents must be at least 1, got 0"),
        (
            ["--batch-size", "3000"],
            "shorter rows (--length), or --batch-size ",
        ),
        (
            ["--accumulate", "3"],
            "--batch-size 4 cannot be divided evenly: choose a multiple of 1 processes times --accumulate 3",
        ),
        (["--learning-rate", "-1"], "--learning-rate must be a finite number of at least 0, got -1.0"),
        (["--attack.learning-rate", "nan"], "--attack.learning-rate must be a finite number of at least 0, got nan"),
        (["--method", "rmu", "--labelled", "0"], "--method rmu needs labelled documents, got --labelled 0.0"),
        (["--method", "rmu", "--rmu.depth", "3"], "depth must be within 1 … 2 blocks, got 3"),
        (
            ["--method", "rmu", "--rmu.batch-size", "900"],
            "shorter rows (--length), or --rmu.batch-size ",
        ),
        (["--method", "magic"], "magic"),
        (["--device", "cuda"], "no CUDA device is available: train with --device cpu"),
    ],
)
def test_bad_options_end_in_one_line_and_leave_nothing(options, message, corpora, texts, tmp_path, capsys, monkeypatch):
    if "cuda" in options:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = [option.replace("TEXTS", str(texts)) for option in options]
    before = {path.name for path in corpora.iterdir()}
    assert message in refused(capsys, corpora, *given, "--out", tmp_path / "r")
    assert not list(tmp_path.iterdir())
    left = {path.name for path in corpora.iterdir()} - before
    assert all(name.startswith(("stories-", "tokenizer-", "c-")) for name in left)
    if "are forget documents" in message:
        assert not any(name.startswith("c-") for name in left)


def test_what_many_processes_cannot_share_is_refused(corpora, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "processes", lambda: 2)
    for options, message in (
        (
            ["--accumulate", "4"],
            "--batch-size 4 cannot be divided evenly: choose a multiple of 2 processes times --accumulate 4",
        ),
    ):
        assert message in refused(capsys, corpora, *options, "--out", tmp_path / "r")
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_learn_is_a_line_too(corpora, tmp_path, capsys):
    line = refused(capsys, corpora, "--learning-rate", "1e30", "--out", tmp_path / "r")
    assert "lower the learning rate" in line and not (tmp_path / "r" / "evaluation.json").exists()
    line = refused(capsys, corpora, "--attack.learning-rate", "1e30", "--out", tmp_path / "attacked")
    assert "steps of fine-tuning the forget loss is" in line and "lower the learning rate" in line


def counts(options, prefix=""):
    """The names of all options that count something, of those within others too."""
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            yield from counts(value, f"{field.name}.")
        elif type(value) is int:
            yield f"{prefix}{field.name}"


@pytest.mark.parametrize("name", [name for name in counts(TextOptions()) if name != "rmu.depth"])
def test_every_count_is_looked_at(name):
    """Also those that are yet to come. (Whether a model has as many blocks, it is asked itself.)"""
    part, _, leaf = name.rpartition(".")
    usual = TextOptions()
    wrong = {part: replace(getattr(usual, part), **{leaf: -1})} if part else {leaf: -1}
    with pytest.raises(UserError, match=rf"^{name} must be at least [012], got -1"):
        check_options(replace(usual, **wrong))
