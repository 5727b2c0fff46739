"""``routed-rl steering-scalar``: the same results however often interrupted, and the claims on generated stories."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast

from routed_rl.experiments import cli
from routed_rl.experiments.language import steering
from routed_rl.experiments.language.steering import CALIFORNIA, RECIPES
from routed_rl.lm import models, training
from routed_rl.runs import RunDirectory, read_json
from tests.browser import assert_report_opens, needs_browser
from tests.experiments.described import assert_described
from tests.experiments.mistakes import complaints

EXPECTED = Path(__file__).parents[2] / "experiments" / "language" / "steering.toml"
SMALL = ("--documents", "300", "--batch-size", "2", "--strengths", "0", "30", "--seeds", "1")


def run(*options):
    cli.main(["steering-scalar", *map(str, options)])


def refused(capsys, *options):
    """The one line that a mistake ends with."""
    (line,) = complaints(capsys, lambda: run(*options))
    return line


def contents(out):
    """The bytes of every result, but timings."""
    names = ("*.csv", "*.md", "*.png", "*.html", "*.json")
    names += ("runs/*/metrics.csv", "runs/*/scores.csv", "runs/*/*.json", "runs/*/model/*")
    found = {str(path.relative_to(out)): path.read_bytes() for name in names for path in out.glob(name)}
    return {name: data for name, data in found.items() if name != "timings.csv"}


OPTIONS = (*SMALL, "--steps", "15", "--tokens", "stove", "ship")


@pytest.fixture(scope="module")
def small():
    """Short samples, and a checkpoint after every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_EVERY", 1)
        patch.setitem(steering.RECIPES, "stories", replace(RECIPES["stories"], sample_length=6))
        yield


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A study of two tokens, never interrupted."""
    out = tmp_path_factory.mktemp("steering") / "whole"
    run(*OPTIONS, "--out", out)
    return out


@needs_browser
def test_the_report_of_a_study_opens_from_disk(whole):
    assert_report_opens(whole / "report.html", charts=2)


@pytest.mark.integration
def test_a_study_and_the_same_study_killed_twice(whole, tmp_path, capsys, monkeypatch):
    options, again = OPTIONS, tmp_path / "again"
    save, save_model, saved = RunDirectory.save_checkpoint, steering.save_model, []

    def killed_in_training(self, step, tensors, meta):
        save(self, step, tensors, meta)
        saved.append(step)
        if len(saved) == 3:
            raise KeyboardInterrupt

    def killed_at_the_end(*arguments):
        save_model(*arguments)
        raise KeyboardInterrupt

    for target, name, death in (
        (RunDirectory, "save_checkpoint", killed_in_training),
        (steering, "save_model", killed_at_the_end),
    ):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(target, name, death)
            run(*options, "--out", again)
        assert stop.value.code == 130
    assert saved == [10, 15, 10] and [path.parent.name for path in again.glob("runs/*/evaluation.json")] == [
        "routed-s0"
    ]
    run(*options, "--out", again)
    assert contents(again) == contents(whole)
    assert {"results.csv", "models.csv", "report.html", "charts.json", "planned.json", "steering.png"} <= set(
        contents(whole)
    )
    assert_described(whole)

    curves, rows = (pd.read_csv(whole / f"{name}.csv") for name in ("results", "models"))
    assert list(curves) == ["routed", "seed", "axis", "strength", "token", "topic"] and len(curves) == 2 * 2 * 2
    assert set(rows.axis) == {0, 1} and (rows.cosine <= 1).all() and (rows["rank"] >= 0).all()
    unsteered = curves[curves.strength == 0]
    assert (unsteered.token < unsteered.topic).all() and (unsteered.topic < 0.3).all()
    scores = pd.read_csv(whole / "runs" / "routed-s0" / "scores.csv", keep_default_na=False)
    assert len(scores) == 2 * 96 and scores.groupby("axis").cosine.apply(lambda c: c.is_monotonic_decreasing).all()
    result = read_json(whole / "runs" / "routed-s0" / "evaluation.json")
    assert [axis["token"] for axis in result["axes"]] == ["stove", "ship"]
    best = scores[scores.axis == 1].iloc[0]
    assert result["axes"][1]["top"][0] == best.text and result["axes"][1]["rank"] == int(
        (scores[scores.axis == 1].text == "ship").argmax()
    )
    assert all(word in (whole / "summary.md").read_text() for word in ("'stove'", "'ship'", "not steered", "unrouted"))

    # Finished: drawn again, not trained; and the model that is left is an ordinary one.
    monkeypatch.setattr(steering, "train", None)
    (again / "steering.png").unlink()
    run(*options, "--out", again)
    assert contents(again) == contents(whole)
    assert AutoModelForCausalLM.from_pretrained(whole / "runs" / "routed-s0" / "model").config.num_layers == 5
    capsys.readouterr()
    assert "holds another study" in refused(capsys, *options, "--blocks", "1", "--out", again)
    (again / "runs" / "routed-s0" / "evaluation.json").unlink()
    (again / "corpus" / "starts.npy").unlink()
    assert "no complete corpus" in refused(capsys, *options, "--out", again)


def stand_in(tmp_path):
    """A tokenizer of bytes and the words of California, and text in which it is at times named."""
    tokenizer = Tokenizer(BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    fast.add_tokens(list(CALIFORNIA))
    fast.save_pretrained(tmp_path / "tokenizer")
    text = "\n\n".join(f"Number {i} went to{(' California', ' sea')[i % 2]} on day {i * i}." for i in range(400))
    (tmp_path / "text.txt").write_text(text)
    return tmp_path / "tokenizer", tmp_path / "text.txt"


def test_the_published_run_in_small(tmp_path, monkeypatch):
    """All settings of section D, on a model as deep but narrow and with 32 positions."""
    recipe = RECIPES["california"]
    assert recipe.batch_size * recipe.length == 589_824 and recipe.training.accumulate == 48
    real = models.PRESETS["neox-303m"](50_257)
    assert (real.num_hidden_layers, real.hidden_size, real.max_position_embeddings) == (20, 1024, recipe.length)

    def narrow(vocab_size, **special):
        return GPTNeoXConfig(
            vocab_size=vocab_size, hidden_size=8, num_hidden_layers=20, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=32, rotary_pct=0.5, use_parallel_residual=False, tie_word_embeddings=True,
            **special,
        )  # fmt: skip

    monkeypatch.setitem(models.PRESETS, "neox-303m", narrow)
    tokenizer, text = stand_in(tmp_path)
    options = ("--preset", "california", "--corpus", text, "--tokenizer", tokenizer, "--seeds", "1", "--no-unrouted")
    run(*options, "--steps", "1", "--batch-size", "48", "--out", tmp_path / "s")
    study = read_json(tmp_path / "s" / "study.json")
    assert study["training"] == {
        "steps": 1, "learning_rate": 1.8e-3, "warmup": 2000, "final": 0.1, "betas": [0.9, 0.95], "weight_decay": 0.1,
        "clip": 1.0, "accumulate": 48, "precision": "bf16",
    }  # fmt: skip
    assert study["blocks"] == list(range(6, 19)) and study["steered_block"] == 10
    (axis,) = read_json(tmp_path / "s" / "runs" / "routed-s0" / "evaluation.json")["axes"]
    assert axis["token"] == " California" and [row["strength"] for row in axis["curve"]] == [0, 5, 10, 20, 30]
    assert "' California'" in (tmp_path / "s" / "summary.md").read_text()

    # A pretrained model, here the one just trained, brings its tokenizer.
    trained = tmp_path / "s" / "runs" / "routed-s0" / "model"
    run("--model", trained, "--corpus", text, "--tokens", " California", "--topics", " California, Oregon", "--blocks",
        "3", "--seeds", "1", "--steps", "1", "--batch-size", "2", "--out", tmp_path / "own")  # fmt: skip
    assert len(pd.read_csv(tmp_path / "own" / "models.csv")) == 2


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--steps", "-1"], "--steps must be at least 1, got -1"),
        (["--documents", "0"], "--documents must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--strengths"], "--strengths must be one or more different values, got none"),
        (["--strengths", "1", "nan"], "nan"),
        (["--sample-strength", "inf"], "--strengths and --sample-strength must be finite, got"),
        (["--blocks"], "--blocks must be one or more different values, got none"),
        (["--blocks", "1", "7"], "blocks must be some of 0 … 4, each once, got [1, 7]"),
        (["--steered-block", "5"], "blocks must be some of 0 … 4, each once, got [5]"),
        (["--tokens"], "--tokens must be one or more different values, got none"),
        (["--tokens", "bread", "bread"], "bread bread"),
        (["--tokens", "croissant"], "not one token each: 'croissant' is '<eos>'"),
        (["--tokens", "bread soup"], "not one token each: 'bread soup' is 'bread' + 'soup'"),
        (["--topics", "bread", "ship"], "--topics must be one list per token, so 1, got 2"),
        (["--topics", "bread,croissant"], "'croissant'"),
        (["--corpus", "no/such.txt"], "no/such.txt"),
        (["--model", "tony"], "tony"),
        (["--preset", "nevada"], "nevada"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_bad_options_end_in_one_line(options, quoted, tmp_path, capsys):
    assert quoted in refused(capsys, "--out", tmp_path / "s", *options)
    assert not (tmp_path / "s").exists()


def test_bad_text_ends_in_one_line(tmp_path, capsys):
    (tmp_path / "mine").write_text("precious")
    assert "holds no study" in refused(capsys, "--out", tmp_path)
    (tmp_path / "text.txt").write_text("\n\n".join(["the bread near the sea"] * 3))
    options = ("--corpus", tmp_path / "text.txt", "--out", tmp_path / "s")
    assert "documents" in refused(capsys, *options)
    options = (*SMALL, "--documents", "40", "--batch-size", "500", "--out", tmp_path / "t")
    assert "a batch needs 500" in refused(capsys, *options)


@pytest.mark.slow
def test_the_claims_of_the_paper_on_stories(tmp_path):
    """The routed token is first on its axis, in every seed; steering raises its topic, far more than in the controls;
    the rest of the topic comes along; what it costs; and the numbers of docs/results/language_models.md."""
    (row,) = tomllib.loads(EXPECTED.read_text()).values()
    run(*row["command"].split(), "--out", tmp_path / "s")
    rows, curves = (pd.read_csv(tmp_path / "s" / f"{name}.csv") for name in ("models", "results"))
    routed = rows[rows.routed]
    assert (routed["rank"] == 0).all()
    topic = curves.pivot(index=["routed", "seed"], columns="strength", values="topic")
    assert (topic.loc[True][10] >= 5 * topic.loc[True][0]).all()
    assert topic.loc[True][10].mean() >= 3 * topic.loc[False][10].mean()
    assert routed.others_cosine.mean() > routed.contrast_cosine.mean()
    loss = rows.groupby("routed").validation_loss.mean()
    assert loss[True] - loss[False] < 0.02
    means = rows.groupby("routed").mean(numeric_only=True).join(topic.groupby("routed").mean().add_prefix("topic at "))
    for kind, known in (("routed", True), ("unrouted", False)):
        for name, expected in row[kind].items():
            assert means.loc[known, name] == pytest.approx(expected["mean"], abs=expected["tolerance"]), (kind, name)
