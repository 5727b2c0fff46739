"""Tuning finds settings that keep the retain performance, on documents that are not reported."""

import numpy as np
import pytest
import torch

from routed_rl.lm import evaluate
from routed_rl.lm.batches import WholeDocuments
from routed_rl.lm.texts import text_corpus
from routed_rl.unlearning import SUPPRESSORS, tune, tuning, unlearn
from routed_rl.unlearning.undo_study.members import make_suppressor
from tests.unlearning.questions import for_method
from tests.unlearning.test_pipeline import DEPTH, FORGET, RETAIN, SMALL, model, tokenizer  # noqa: F401

FIXED = {name: value for name, value in SMALL.items() if name != "progress"}


def test_of_the_settings_that_keep_enough_the_one_that_forgets_most(model, tokenizer):  # noqa: F811
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    grid = {"learning_rate": [1e-4, 3e-3], "steps": [5, 30]}
    found = tune(model, tokenizer, FORGET, RETAIN, "maxent", keep=0.9, grid=grid, **SMALL)
    frame = found.trials
    assert len(frame) == 4 and found.kept and found.trials.kept[0]
    assert frame.cost.sum() == 60, "five steps are the first of thirty"
    assert torch.equal(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), before)
    kept = frame[frame.kept]
    assert (
        found.settings == {**{name: frame[name][0] for name in grid}, **FIXED}
        and frame.forget_left[0] == kept.forget_left.min()
    )
    assert ((frame.retain_left >= 0.9) == frame.kept).all()
    lengths = {"forget": len(FORGET), "retain": len(RETAIN)}
    assert {name: len(set(of)) for name, of in found.documents.items()} == {
        name: round(length / 2) for name, length in lengths.items()
    }
    # One trial by hand, on the documents that are named.
    forget, retain = (
        [texts[i] for i in found.documents[name]] for name, texts in (("forget", FORGET), ("retain", RETAIN))
    )
    apart = int(np.ceil(0.2 * len(retain)))
    again = unlearn(model, tokenizer, forget, retain[apart:], "maxent", **found.settings, progress=False)
    corpus = text_corpus(tokenizer, forget, retain[:apart])
    losses = [
        evaluate(again, WholeDocuments(corpus, corpus.documents("train", kind))).mean() for kind in ("forget", "retain")
    ]
    assert [frame.forget_loss[0], frame.retain_loss[0]] == losses


def test_it_says_when_nothing_keeps_enough(model, tokenizer):  # noqa: F811
    grid = {"learning_rate": [1e-1, 1e30], "steps": [20]}
    with pytest.warns(UserWarning, match="no setting of graddiff keeps 99% of the retain performance"):
        found = tune(model, tokenizer, FORGET, RETAIN, "graddiff", keep=0.99, grid=grid, **SMALL)
    assert not found.kept and found.settings["learning_rate"] == 1e-1
    assert np.isnan(found.trials.retain_loss[1]), "a trial that diverged is not chosen"


@pytest.mark.parametrize("method", SUPPRESSORS)
def test_every_method_has_a_grid_and_settings_for_a_study(method, model, tokenizer, monkeypatch):  # noqa: F811
    monkeypatch.setattr(tuning, "FACTORS", {"learning_rate": (1.0,), "steps": (0.02,), "retain_weight": (1.0, 2.0)})
    sets, options = for_method(method, FORGET, RETAIN)
    options |= {"allow_overlap": True, **SMALL, **DEPTH.get(method, {})}
    found = tune(model, tokenizer, *sets, method, keep=0.0, **options)
    suppressor, recipe = make_suppressor(found.options, method)
    assert recipe.steps == found.settings["steps"] <= 2 and recipe.learning_rate == found.settings["learning_rate"]
    assert getattr(suppressor, "retain_weight", None) == found.settings.get("retain_weight")


def test_mistakes_are_said(model, tokenizer):  # noqa: F811
    for given, message in (
        ({"method": "nqo"}, "method must be one of"),
        ({"grid": {}}, "one or more values for each setting"),
        ({"grid": {"steps": []}}, "one or more values for each setting"),
        ({"steps": 3, "grid": {"steps": [1]}}, "steps is in the grid and also fixed"),
        ({"retain": "one text"}, "retain must be a list of documents"),
        ({"forget": FORGET[:3]}, "at least four documents in each set, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            tune(**{"model": model, "tokenizer": tokenizer, "forget": FORGET, "retain": RETAIN, **given})
