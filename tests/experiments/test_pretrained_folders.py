"""Every command that has a model: folders with adapters are used, folders with pickles are refused before any work."""

from dataclasses import fields

import pandas as pd
import pytest

from routed_rl.experiments import cli
from routed_rl.lm import save_model, stories_tokenizer
from routed_rl.runs import read_json
from routed_rl.unlearning import UndoStudy
from tests.experiments import killed_studies, killed_undo, small_arenas
from tests.experiments.mistakes import complaints
from tests.lm.pretrained_folders import save_adapter, save_pickled
from tests.lm.tiny_models import tiny_model

STEERING = ("--documents", "300", "--batch-size", "2", "--strengths", "0", "30", "--seeds", "1", "--steps", "2",
            "--blocks", "0", "--no-unrouted")  # fmt: skip
ERA = ("--methods", "base", "--labelled", "0.5", "--seeds", "1")
UNDO = (*killed_undo.OPTIONS, "--task", "stories", "--alphas", "0.5", "--length", "30", "--filtered", "None",
        "--pretrain.steps", "0", "--pretrain.warmup", "0", "--students", "noised", "--documents", "300")  # fmt: skip
ARENA = ("--methods", "npo", "--settings", "npo.steps=2", "--then", "none")
SMALL = {
    "era": (*killed_studies.OPTIONS, *ERA, "--length", "30"),
    "unlearn": (*killed_studies.OPTIONS, "--length", "30"),
    "steering-scalar": STEERING,
    "undo": UNDO,
    "corpus": ("--documents", "300"),
    "arena": (*ARENA, "--attacks", "quantisation", "--scores", "knowledge", "--batch-size", "2"),
}
"""Options of a small run, by command."""


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A model, an adapter of it without a tokenizer, and a model in a pickle; small runs in this process."""
    monkeypatch.chdir(tmp_path)
    small_arenas.make_small(monkeypatch)
    killed_studies.make_small(monkeypatch)
    save_model(tiny_model("llama"), stories_tokenizer(), tmp_path / "base")
    save_adapter(tmp_path / "adapter", tmp_path / "base", target_modules=["q_proj"])
    save_pickled(tmp_path / "pickled")
    yield tmp_path


def command(name, *options):
    out = () if name == "corpus" else ("--out", "out")
    corpora = () if name in ("steering-scalar", "arena") else ("--corpora", "corpora")
    return [name, *SMALL[name], *options, *corpora, *out]


def test_these_are_all_commands_with_a_model():
    with_model = {cli.command_name(of) for of in cli.MODULES if "model" in {field.name for field in fields(of)}}
    assert with_model == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_a_pickle_is_refused_before_any_work(name, folders, capsys):
    before = sorted(folders.rglob("*"))
    line = complaints(capsys, lambda: cli.main(command(name, "--model", "pickled")))[-1]
    assert "only 'pytorch_model.bin', a pickle" in line and sorted(folders.rglob("*")) == before
    if name == "undo":
        options = ("--model", "base", "--teachers", "mine=pickled")
        line = complaints(capsys, lambda: cli.main(command(name, *options)))[-1]
        assert "only 'pytorch_model.bin', a pickle" in line and not (folders / "out").exists()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.usefixtures("undrawn")
def test_an_adapter_is_a_model(name, folders):
    cli.main(command(name, "--model", "adapter"))
    if name == "corpus":
        return
    (saved, *_) = sorted(folders.glob("out/**/model/model.safetensors"))
    assert not list(saved.parent.glob("adapter*")), "it is merged"
    assert read_json(saved.with_name("config.json"))["model_type"] == "llama"


@pytest.mark.usefixtures("undrawn")
def test_an_adapter_is_a_teacher(folders):
    cli.main(command("undo", "--model", "base", "--teachers", "mine=adapter"))
    assert "suppressed, mine" in set(pd.read_csv("out/results.csv").name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model", "base", "--length", "100"],
            "--length 100 is more than the 64 positions of the model 'FOLDER/base'",
        ),
        (
            ["--model", "adapter", "--length", "100"],
            "--length 100 is more than the 64 positions of the model 'FOLDER/adapter'",
        ),
        (["--model", "base", "--teachers", "mine=short"], "--length 30 is more than the 16 positions of the model"),
        (
            ["--model", "base", "--teachers", "mine=other"],
            "has another tokenizer than the corpus: give its --tokenizer",
        ),
        (["--model", "narrow"], "the tokenizer has 96 tokens, more than the 50 of the model 'FOLDER/narrow'"),
    ],
)
def test_what_does_not_fit_is_said_before_any_stage(options, message, folders, capsys):
    """Of a study of UNDO, whose stages are processes of their own; only configurations are read."""
    save_model(tiny_model("llama", max_position_embeddings=16), stories_tokenizer(), folders / "short")
    save_model(tiny_model("llama", vocab_size=50), stories_tokenizer(), folders / "narrow")
    other = stories_tokenizer()
    other.add_tokens(["brandnew"])
    save_model(tiny_model("llama", vocab_size=97), other, folders / "other")
    line = complaints(capsys, lambda: cli.main(command("undo", *options)))[-1]
    assert message.replace("FOLDER", str(folders)) in line
    assert not (folders / "out").exists()


def test_a_preset_that_does_not_fit_is_said_before_any_stage(folders):
    study = UndoStudy(task="stories", model="tiny", length=100, documents=300, corpora="corpora", out="out")
    with pytest.raises(ValueError, match=r"^length=100 is more than the 64 positions of the model 'tiny'"):
        study.run()
    assert not (folders / "out").exists()
