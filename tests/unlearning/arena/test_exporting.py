"""Scores in the layout of open-unlearning: what its own metrics read of a file of ours, and what they make of it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.numpy import save_file
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from routed_rl.unlearning.arena import exporting
from routed_rl.unlearning.arena.entries import NUMBERS
from routed_rl.unlearning.scores import SCORES

RNG = np.random.default_rng(0)
FORGOTTEN, RETRAINED = RNG.normal(-1, 1, 12), RNG.normal(0, 1, 12)
"""Logarithms of truth ratios."""
MEMBERS, OTHERS = RNG.normal(-1, 1, 8), RNG.normal(-2, 1, 9)
"""What membership attacks say of forget and of holdout texts; texts that look learned have larger numbers."""
FIELDS = {
    "forget_Q_A_Prob": ("probability", {"prob", "avg_loss"}),
    "forget_Q_A_PARA_Prob": ("paraphrased-probability", {"prob", "avg_loss"}),
    "retain_Q_A_Prob": ("retained-probability", {"prob", "avg_loss"}),
    "forget_Q_A_ROUGE": ("rouge-recall", {"rougeL_recall"}),
    "retain_Q_A_ROUGE": ("retained-rouge-recall", {"rougeL_recall"}),
    "forget_verbmem_ROUGE": ("verbatim-memorisation", {"rougeL_f1"}),
    "forget_knowmem_ROUGE": ("knowledge-memorisation", {"rougeL_f1"}),
    "retain_knowmem_ROUGE": ("retained-knowledge-memorisation", {"rougeL_f1"}),
    "extraction_strength": ("extraction-strength", {"score"}),
    "exact_memorization": ("exact-memorisation", {"score"}),
}
"""The field of each example whose mean is the metric, and those beside it (src/evals/metrics/memorization.py)."""


@pytest.fixture
def evaluation(tmp_path):
    """Return what the file says of a model with these scores: a value and the numbers of examples, by name."""

    def made(scores):
        stages = {}
        for name, (value, numbers) in scores.items():
            (folder := tmp_path / name).mkdir(exist_ok=True)
            save_file(numbers, folder / NUMBERS)
            stages[name] = SimpleNamespace(
                result=lambda root, value=value: {"value": value}, path=lambda root, folder=folder: folder
            )
        return json.loads(exporting._json(exporting._scores(tmp_path, SimpleNamespace(scores=stages))))

    return made


@pytest.mark.parametrize("metric", FIELDS)
def test_each_example_has_the_fields_that_their_metric_reads(metric, evaluation):
    name, fields = FIELDS[metric]
    each = np.array([0.25, 1.0, 0.5])
    found = evaluation({name: (float(each.mean()), {"any": each})})[metric]
    assert found["agg_value"] == pytest.approx(each.mean())
    assert list(found["value_by_index"]) == ["0", "1", "2"]
    assert all(set(of) == fields for of in found["value_by_index"].values())
    read = next(field for field in ("prob", "rougeL_recall", "rougeL_f1", "score") if field in fields)
    assert [of[read] for of in found["value_by_index"].values()] == each.tolist()
    if "avg_loss" in fields:
        assert [np.exp(-of["avg_loss"]) for of in found["value_by_index"].values()] == pytest.approx(each)


def test_a_probability_of_zero_has_no_finite_loss(evaluation):
    found = evaluation({"probability": (0.0, {"probability": np.zeros(1)})})
    assert found["forget_Q_A_Prob"]["value_by_index"] == {"0": {"prob": 0.0, "avg_loss": None}}


def test_their_forget_quality_is_ours_with_our_file_as_the_retained_models(evaluation):
    """It compares the ratios of both files in a Kolmogorov-Smirnov test (src/evals/metrics/privacy.py)."""
    ratio, quality = SCORES["truth-ratio"](), SCORES["forget-quality"]()
    files = {
        name: evaluation({"truth-ratio": (ratio.value({"log_ratio": of}), {"log_ratio": of})})["forget_truth_ratio"]
        for name, of in (("model", FORGOTTEN), ("retain", RETRAINED))
    }
    read = {name: np.array([of["score"] for of in file["value_by_index"].values()]) for name, file in files.items()}
    assert np.minimum(read["model"], 1 / read["model"]).mean() == pytest.approx(files["model"]["agg_value"])
    theirs = ks_2samp(read["model"], read["retain"]).pvalue
    assert quality.value({"log_ratio": FORGOTTEN}, {"log_ratio": RETRAINED}) == pytest.approx(theirs)
    found = evaluation({"forget-quality": (theirs, {"log_ratio": FORGOTTEN})})["forget_quality"]
    assert found == {"agg_value": pytest.approx(theirs)}


def test_their_privacy_leakage_is_ours_in_percent(evaluation):
    """It is ``(A - R) / R * 100`` of one minus the area of Min-40% of each file (src/evals/metrics/privacy.py)."""
    score = SCORES["privacy-leakage"]()
    assert score.share == 0.4
    model, retrained = {"forget": MEMBERS, "holdout": OTHERS}, {"forget": MEMBERS - 0.5, "holdout": OTHERS}
    value = score.value(model, retrained)
    ours = evaluation({"privacy-leakage": (value, model)})
    reference = evaluation({"privacy-leakage": (score.value(retrained, retrained), retrained)})
    area, of_retained = (1 - file["mia_min_k"]["agg_value"] for file in (ours, reference))
    assert ours["privleak"] == {"agg_value": pytest.approx((area - of_retained) / of_retained * 100)}
    assert reference["privleak"] == {"agg_value": 0}


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("membership-loss", "mia_loss"),
        ("membership-zlib", "mia_zlib"),
        ("membership-reference", "mia_reference"),
        ("privacy-leakage", "mia_min_k"),
    ],
)
def test_membership_attacks_have_both_sets_and_the_sign_of_losses(name, metric, evaluation):
    """There the holdout has the label 1, so that its texts should have the larger score (src/evals/metrics/mia)."""
    found = evaluation({name: (0.0, {"forget": MEMBERS, "holdout": OTHERS})})[metric]
    each = {part: [of["score"] for of in found[part]["value_by_index"].values()] for part in ("forget", "holdout")}
    assert (len(each["forget"]), len(each["holdout"])) == (8, 9)
    assert found["forget"]["agg_value"] == pytest.approx(np.mean(each["forget"]))
    labels = [0] * 8 + [1] * 9
    assert found["auc"] == found["agg_value"] == pytest.approx(roc_auc_score(labels, each["forget"] + each["holdout"]))


def test_the_licence_is_that_of_the_parents_card(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    assert exporting._license(None) is exporting._license(str(tmp_path / "model")) is None
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert exporting._license(str(tmp_path / "model")) == "mit"
    asked = []

    def load(name, **_):
        asked.append(name)
        if name == "org/model":
            return SimpleNamespace(data=SimpleNamespace(license="apache-2.0"))
        raise LocalEntryNotFoundError("no network") if name == "org/offline" else EntryNotFoundError("no card")

    monkeypatch.setattr(exporting.ModelCard, "load", load)
    assert [exporting._license(f"org/{name}") for name in ("model", "offline", "bare")] == ["apache-2.0", None, None]
    assert asked == ["org/model", "org/offline", "org/bare"]


def test_scores_that_they_have_not_keep_their_names(evaluation):
    """Our Min-K% and Min-K%++ have k = 0.2, and theirs 0.4."""
    numbers = {"forget": MEMBERS, "holdout": OTHERS}
    for name in ("membership-min-k", "membership-min-k-plus-plus"):
        assert SCORES[name]().share == 0.2
        assert list(evaluation({name: (0.5, numbers)})) == [name]
    assert evaluation({"knowledge": (None, {"right": np.array([1.0, np.nan])})})["knowledge"] == {
        "agg_value": None,
        "value_by_index": {"0": {"right": 1.0}, "1": {"right": None}},
    }
