"""The tab Language of ``routed-rl demo``: losses by token, continuations, attacks and steering, without a browser."""

import re
import shutil
from dataclasses import replace
from html import escape

import numpy as np
import pandas as pd
import pytest
import torch

from routed_rl.errors import UserError
from routed_rl.experiments import cli
from routed_rl.experiments.demo import text_models
from routed_rl.experiments.demo.comparisons import find_comparisons
from routed_rl.experiments.demo.language import language_tab
from routed_rl.experiments.demo.prompts import prompt_of
from routed_rl.experiments.demo.steered_models import find_steered
from routed_rl.experiments.demo.text_models import (
    Steering,
    continued,
    continued_in,
    losses_in,
    model_of,
    text_losses,
    tokenizer_of,
    tokens_of,
)
from routed_rl.experiments.demo.token_changes import DEEPEST, changes, coloured, explained, table
from routed_rl.experiments.language import steering
from routed_rl.experiments.language.steering import RECIPES
from routed_rl.lm import EraStudy, evaluate, models, stories_tokenizer, train_tokenizer
from routed_rl.lm.documents import Document
from routed_rl.lm.steering import steered
from routed_rl.runs import read_json
from tests.browser import demo, needs_browser, opened
from tests.experiments import killed_studies
from tests.experiments.demo_views import shown, switch_on, texts, widget
from tests.lm.tiny_models import tiny_model

MARKUP = '<img src=x onerror="alert(1)"> & bread'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of studies, with their corpora."""
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def era(folder):
    """A study of three methods, with tiny models."""
    out = folder / "era"
    with pytest.MonkeyPatch.context() as patch:
        killed_studies.make_small(patch)
        patch.setitem(models.PRESETS, "tiny", models._gpt_neo(width=16, layers=2, heads=2, length=64))  # no dropout
        patch.setattr(EraStudy, "FIGURES", ())
        options = (
            *killed_studies.OPTIONS,
            *["--methods", "base", "filtering", "era", "--labelled", "0.5", "--seeds", "1"],
        )
        cli.main(["era", *options, "--corpora", str(folder / "corpora"), "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def bread(folder):
    """A study of a steering scalar, with one small model."""
    out = folder / "steering"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(steering.RECIPES, "stories", replace(RECIPES["stories"], sample_length=6))
        options = "--documents 300 --batch-size 2 --strengths 0 30 --seeds 1 --no-unrouted --steps 15"
        cli.main(["steering-scalar", *options.split(), "--out", str(out)])
    return out


@pytest.fixture
def tiny():
    return tiny_model("gpt_neo"), stories_tokenizer()


# --- what models make of a text -----------------------------------------------------------------


def test_losses_of_a_text_are_minus_log_probabilities(tiny):
    model, tokenizer = tiny
    tokens = tokens_of(model, tokenizer, "the tree near a ship")
    assert tokens.ids[0] == tokenizer.bos_token_id and tokens.pieces == ("the", " tree", " near", " a", " ship")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens.ids])).logits[0].double()
    expected = [-float(logits[i].log_softmax(0)[token]) for i, token in enumerate(tokens.ids[1:])]
    assert text_losses(model, tokens.ids) == pytest.approx(expected, rel=1e-5)
    assert len(text_losses(model, tokens.ids[:1])) == len(text_losses(model, ())) == 0


def test_steering_changes_losses_as_the_library_steers(tiny):
    model, tokenizer = tiny
    ids = tokens_of(model, tokenizer, "the tree near a ship").ids
    plain, moved = text_losses(model, ids), text_losses(model, ids, Steering(0, 3, 5.0))
    with steered(model, 0, 3, 5.0):
        assert np.array_equal(text_losses(model, ids), moved)
    assert not np.allclose(plain, moved) and np.array_equal(plain, text_losses(model, ids, Steering(0, 3, 0.0)))


def test_every_piece_is_the_users_own_text(tiny):
    model, tokenizer = tiny
    text = "the  tree\nnear <b>glass</b> a ship "
    tokens = tokens_of(model, tokenizer, text)
    assert "".join(tokens.pieces) == text.rstrip() and tokens.unknown == ("<b>glass</b>",) and not tokens.cut
    bytes_of = train_tokenizer([Document("naïve 🙂 text")], 260)
    pieces = tokens_of(model, bytes_of, "naïve 🙂 x").pieces
    assert "".join(pieces) == "naïve 🙂 x" and "🙂" in "".join(pieces)


def test_a_long_text_is_cut_to_the_positions_of_the_model(tiny):
    model, tokenizer = tiny
    tokens = tokens_of(model, tokenizer, "tree " * 100)
    assert len(tokens.ids) == 64 and len(tokens.pieces) == 63 and tokens.cut
    assert len(text_losses(model, tokens.ids)) == 63 and continued(model, tokens.ids) == ()


def test_without_a_seed_the_likeliest_tokens_follow_and_with_one_always_the_same(tiny):
    model, tokenizer = tiny
    ids = list(tokens_of(model, tokenizer, "the tree").ids)
    expected = list(ids)
    for _ in range(5):
        with torch.no_grad():
            expected.append(int(model(input_ids=torch.tensor([expected])).logits[0, -1].argmax()))
    assert list(continued(model, ids, new=5)) == expected[3:]
    before = torch.random.get_rng_state()
    drawn = [continued(model, ids, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and torch.equal(before, torch.random.get_rng_state())


def test_a_continuation_ends_where_the_model_ends_the_text(tiny):
    model, tokenizer = tiny
    ids = tokens_of(model, tokenizer, "the tree").ids
    written = continued(model, ids, new=8)
    for ends in (written[2], [95, written[2]]):  # some models have several tokens that end a text
        model.config.eos_token_id = ends
        assert continued(model, ids, new=8) == written[: written.index(written[2])]


# --- coloured text ------------------------------------------------------------------------------


def test_rises_are_orange_falls_blue_and_the_largest_change_is_deepest():
    frame = changes([" up", " down", " same"], np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.5]))
    spans = re.findall(r"<span[^>]*>[^<]*</span>", coloured(frame))
    assert 'class="up"' in spans[0] and f"rgba(213, 94, 0, {DEEPEST:.3f})" in spans[0] and "up: +2.00 nats" in spans[0]
    assert 'class="down"' in spans[1] and f"rgba(0, 114, 178, {DEEPEST / 2:.3f})" in spans[1]
    assert 'title="-1.00 nats"' in spans[1] and 'class=""' in spans[2] and "0.000)" in spans[2]
    assert "up to 2.00 nats" in explained(frame, "a", "b") and "change +0.33" in explained(frame, "a", "b")
    assert table(frame).values.tolist() == [
        ["up", "1.00", "3.00", "+2.00"],
        ["down", "2.00", "1.00", "-1.00"],
        ["same", "0.50", "0.50", "+0.00"],
    ]
    with pytest.raises(ValueError, match="for each piece, got 1, 2 and 2"):
        changes(["a"], np.zeros(2), np.zeros(2))


def test_what_users_write_is_no_markup():
    frame = changes([MARKUP], np.zeros(1), np.ones(1))
    assert "<img" not in coloured(frame) and escape(MARKUP) in coloured(frame)
    assert "<i>" not in explained(frame, "<i>a", "<i>b") and "Write at least one word" in explained(frame[:0], "", "")


# --- studies of era -----------------------------------------------------------------------------


def test_methods_are_compared_with_the_base_model_of_their_seed(era):
    found = find_comparisons(era)
    assert [comparison.title for comparison in found] == [
        "era: era, 50 % labelled, seed 0",
        "era: filtering, 50 % labelled, seed 0",
    ]
    assert all(comparison.before == era / "runs" / "base" / "0.5-s0" / "model" for comparison in found)
    samples = found[0].samples()
    assert list(samples) == [f"{kind} document {i}" for kind in ("forget", "retain") for i in (1, 2, 3)]
    forest = re.compile(r"\b(tree|oak|leaf|moss|fern|bark|owl|deer|path|root|pine|acorn)\b")
    assert [bool(forest.search(text)) for text in samples.values()] == [True] * 3 + [False] * 3
    assert samples["forget document 1"].startswith(prompt_of(found[0]).text) and prompt_of(found[0]).new == 15


def test_the_attack_in_the_page_is_that_of_the_study(era):
    (comparison, *_) = find_comparisons(era)
    ((curve,),) = read_json(comparison.after.parent / "evaluation.json")["relearning"].values()
    before = {name: value.clone() for name, value in model_of(comparison.after).state_dict().items()}
    done = []
    attacked = comparison.attacked(3, lambda: done.append(1))
    forget = evaluate(attacked, comparison._division.test["forget"]).mean()
    assert forget == pytest.approx(min(loss for _, loss in curve), rel=1e-5) and len(done) == 3
    assert all(torch.equal(value, before[name]) for name, value in model_of(comparison.after).state_dict().items())


def test_the_routed_model_is_shown_as_the_study_measured_it(era):
    result = read_json(era / "runs" / "era" / "0.5-s0" / "evaluation.json")
    moments = find_comparisons(era)[0].moments()
    assert list(moments.moment) == ["after training", "new units removed", "finished model"]
    assert list(moments["forget loss"]) == [
        f"{result['losses'][name]['forget']:.2f}" for name in ("trained", "ablated", "finished")
    ]
    assert moments["a sample"][0] == result["samples"]["trained"][0] and moments["a sample"][1] == "–"
    assert result["samples"]["finished"][0] in shown(language_tab([era]), "moments")


def test_without_its_corpus_a_study_has_no_samples_and_no_attack(era, tmp_path):
    shutil.copytree(era, tmp_path / "era")
    (comparison, *_) = find_comparisons(tmp_path / "era")
    assert comparison.samples() == {} and not comparison.attack_steps
    with pytest.raises(UserError, match="the study's corpus is not found"):
        comparison.attacked(1)
    tab = language_tab([tmp_path / "era"])
    assert not widget(tab, "Run the attack").visible and "There is no attacked model" in shown(tab, "attacked")
    widget(tab, "Text (").value = "the tree"
    assert "tree: " in shown(tab, "changes")


def test_the_tab_follows_its_widgets(era):
    tab = language_tab([era])
    first = shown(tab, "changes")
    assert "base model" in first and "after era" in first and "<table" not in first
    switch_on(tab, "Show the losses")
    assert "loss before (nats)" in shown(tab, "changes")
    widget(tab, "Text (").value = MARKUP
    marked = shown(tab, "changes")
    assert "<img" not in marked and "does not know these words: &lt;img" in marked and "bread: " in marked
    chosen = widget(tab, "Study and model")
    chosen.value = list(chosen.options.values())[1]
    assert "after filtering" in shown(tab, "changes") and "after filtering" in shown(tab, "after")
    widget(tab, "Prompt").value = MARKUP
    assert all(escape(MARKUP) in shown(tab, name) and "<img" not in shown(tab, name) for name in ("before", "after"))


def test_the_button_attacks_the_model_and_shows_it(era):
    tab = language_tab([era])
    assert "Press “Run the attack”" in shown(tab, "attacked")
    widget(tab, "Attack step").value = 2
    button, bar = widget(tab, "Run the attack"), widget(tab, "Progress of the attack")
    button.clicks += 1
    (comparison, *_) = find_comparisons(era)
    tokenizer, prompt = tokenizer_of(comparison.after), prompt_of(comparison)
    model = comparison.attacked(2)
    written = tokenizer.decode(continued(model, tokens_of(model, tokenizer, prompt.text).ids, new=prompt.new))
    assert "after 2 attack steps" in shown(tab, "attacked") and f"<b>{written}</b>" in shown(tab, "attacked")
    assert not bar.visible and not button.disabled
    widget(tab, "Attack step").value = 3
    assert "Press “Run the attack”" in shown(tab, "attacked"), "another number of steps is another model"


# --- studies of undo ----------------------------------------------------------------------------


def test_attacked_models_of_an_undo_study_are_those_that_it_kept(small, study, tmp_path):
    out = tmp_path / "study"
    out.symlink_to(study)
    (tmp_path / "corpora").symlink_to(small[0])
    table = pd.read_csv(study / "results.csv").set_index("name")
    found = {comparison.after_name: comparison for comparison in find_comparisons(out)}
    assert list(found) == ["suppressed, maxent", "undo, maxent, α 0.5, β 0.1"]
    comparison = found["undo, maxent, α 0.5, β 0.1"]
    row = table.loc["undo, maxent, α 0.5, β 0.1"]
    assert comparison.after.parent.name == row.stage and comparison.attack_steps == [1, 3]
    assert comparison.before.parent.name == table.loc["reference"].stage and not comparison.is_run_here
    assert comparison.attack.parents[1].name == row.attack and float(comparison.attack.name) == row.worst_learning_rate
    assert len(comparison.samples()) == 6
    tab = language_tab([out])
    assert not widget(tab, "Run the attack").visible
    last = shown(tab, "attacked")
    assert "after 3 attack steps" in last
    widget(tab, "Attack step").value = 1
    assert "after 1 attack step<" in shown(tab, "attacked") != last


# --- steering -----------------------------------------------------------------------------------


def test_the_slider_steers_the_text_and_the_losses(bread):
    (model,) = find_steered(bread)
    assert (model.title, model.block, model.dimension) == ("steering: 'bread', routed, seed 0", 0, 0)
    assert (model.strongest, model.usual, abs(model.sign)) == (30.0, 5.0, 1)
    assert all(("bread" in text) == name.startswith("document with ") for name, text in model.samples().items())
    tab = language_tab([bread])
    slider = widget(tab, "Number added")
    assert (slider.start, slider.end, slider.value) == (-30.0, 30.0, 5.0)
    seen = {}
    for strength in (0.0, 30.0):
        slider.value = strength
        seen[strength] = shown(tab, "steered text"), shown(tab, "steered changes")
    assert seen[0.0][0] != seen[30.0][0] and "change +0.00" in seen[0.0][1] and "+30 added" in seen[30.0][1]
    slider.value = 0.0
    assert shown(tab, "steered text") == seen[0.0][0], "the random numbers are always the same"
    ids = tokens_of(model_of(model.folder), tokenizer_of(model.folder), "").ids
    written = continued_in(model.folder, ids, model.seed, None)
    assert tokenizer_of(model.folder).decode(written, skip_special_tokens=True) in seen[0.0][0]
    widget(tab, "Begin of the text").value = MARKUP
    assert "<img" not in shown(tab, "steered text") and escape(MARKUP) in shown(tab, "steered text")


def test_models_are_read_once_and_losses_computed_once(bread, monkeypatch):
    (model,) = find_steered(bread)
    ids = tokens_of(model_of(model.folder), tokenizer_of(model.folder), "the bread near the jar").ids
    first = losses_in(model.folder, ids)
    monkeypatch.setattr(text_models, "load_model", None)
    monkeypatch.setattr(text_models, "text_losses", None)
    assert losses_in(model.folder, ids) is first


# --- directories that cannot be shown -----------------------------------------------------------


def test_without_a_study_the_tab_says_what_to_run(tmp_path):
    text = texts(language_tab([tmp_path]))
    assert "routed-rl era --quick" in text and "a few minutes" in text and "routed-rl steering-scalar" in text
    assert texts(language_tab([])) == text


def test_damaged_studies_are_named_and_the_others_shown(bread, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(bread, damaged)
    (damaged / "study.json").write_text("no JSON")
    tab = language_tab([damaged, bread])
    assert "is not JSON" in texts(tab) and 'role="alert"' in texts(tab) and shown(tab, "steered text")
    (damaged / "study.json").write_text('{"steered_block": 0}')
    assert "are not those of a study: KeyError" in texts(language_tab([damaged]))
    lost = tmp_path / "lost"
    shutil.copytree(bread, lost)
    shutil.rmtree(lost / "runs" / "routed-s0" / "model")
    shutil.rmtree(lost / "corpus")
    assert 'role="alert"' in shown(language_tab([lost]), "steered text")


# --- in a browser -------------------------------------------------------------------------------


@needs_browser
def test_the_page_colours_a_users_text_and_steers_with_the_slider(era, bread):
    with demo(era, bread) as address, opened(address, viewport={"width": 1000, "height": 2400}) as (page, wrong):
        page.get_by_role("tab", name="Language").click()
        text = page.get_by_role("textbox", name=re.compile("^Text \\("))
        text.fill("the tree near a ship")
        text.press("Tab")
        page.get_by_label(re.compile("^ship: ")).first.wait_for()
        page.get_by_role("checkbox", name="Show the losses as a table").check()
        page.get_by_role("region", name="Losses by token").get_by_role("row").nth(5).wait_for()
        assert page.get_by_role("heading", name="Steer with a scalar").count() == 1
        page.get_by_role("button", name="Toggle theme").click()
        prompt = page.get_by_role("textbox", name=re.compile("^Prompt"))
        prompt.fill("the owl near a path")
        prompt.press("Tab")
        continued = page.get_by_text(re.compile("^the owl near a path "))
        continued.nth(1).wait_for()
        page.get_by_role("button", name="Run the attack").click()
        continued.nth(2).wait_for()
        assert page.get_by_role("heading", name="after 20 attack steps").count() == 1
        assert not wrong
