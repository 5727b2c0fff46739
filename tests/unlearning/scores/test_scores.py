"""All scores, of a small model that knows all, one that never learned the forget set, and one that knows nothing."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from routed_rl.unlearning.benchmarks import Benchmark, Example
from routed_rl.unlearning.scores import SCORES, Reader, interval
from tests.unlearning.scores.small_benchmark import learned, small_benchmark, small_model, small_tokenizer

OF_KEPT = ("retained-", "model-utility")
"""Beginnings of the names of scores of what a model should keep."""
UNMOVED = ("linear-probe",)
"""A model as small as this one memorises, and has no direction for what is true; tests of the probe plant one."""
BY_GUESSING = ("truth-ratio",)
"""Best where a model prefers nothing. One that never learned the answers guesses, but is sure of its guesses."""


@dataclass
class Models:
    readers: dict

    def value(self, name, of):
        score = SCORES[name]()
        numbers = {model: score.examples(self.readers[model]) for model in {of, "retrained"}}
        return score.value(numbers[of], numbers["retrained"])


@pytest.fixture(scope="module")
def models():
    benchmark = small_benchmark()
    tokenizer = small_tokenizer(benchmark)
    made = {
        "known": learned(tokenizer, benchmark, ("forget", "retain"), 260),
        "retrained": learned(tokenizer, benchmark, ("retain",), 200),
        "untrained": small_model(tokenizer),
    }
    made["diverged"] = copy.deepcopy(made["known"])
    for parameter in made["diverged"].parameters():
        parameter.data.fill_(torch.nan)
    companions = {}
    readers = {name: Reader(model, tokenizer, benchmark, companions=companions) for name, model in made.items()}
    companions |= {"original": readers["known"], "retrained": readers["retrained"]}
    return Models(readers)


@pytest.mark.parametrize("name", SCORES)
def test_each_score_moves_in_its_direction(name, models):
    """From the model that knows all to one that should be better, or for what is kept to one that should be worse."""
    best = SCORES[name].best
    known = models.value(name, "known")
    if name in UNMOVED:
        return
    if name.startswith(OF_KEPT):
        assert known > models.value(name, "untrained") + 0.1 and best == "high"
        return
    ideal = models.value(name, "untrained" if name in BY_GUESSING else "retrained")
    moved = {"low": known - ideal, "high": ideal - known, "zero": abs(known) - abs(ideal)}
    moved["half"] = abs(known - 0.5) - abs(ideal - 0.5)
    moved = moved[best]
    assert moved > 0.03, (known, ideal)


@pytest.mark.parametrize("name", SCORES)
def test_each_score_is_within_its_limits(name, models):
    low, high = SCORES[name].limits
    for model in ("known", "retrained", "untrained"):
        value = models.value(name, model)
        assert np.isfinite(value)
        assert low is None or value >= low - 1e-9
        assert high is None or value <= high + 1e-9


@pytest.mark.parametrize("name", SCORES)
def test_a_diverged_model_has_no_number(name, models):
    assert np.isnan(models.value(name, "diverged"))
    score = SCORES[name]()
    numbers = {model: score.examples(models.readers[model]) for model in ("diverged", "retrained")}
    assert np.isnan(interval(score, numbers["diverged"], numbers["retrained"], draws=3)).all()


@pytest.mark.parametrize("name", SCORES)
def test_the_interval_holds_the_value(name, models):
    """But a p-value has none."""
    score = SCORES[name]()
    numbers = {model: score.examples(models.readers[model]) for model in ("known", "retrained")}
    low, high = interval(score, numbers["known"], numbers["retrained"], draws=60)
    if not score.bootstrapped:
        assert name.endswith("forget-quality") and np.isnan([low, high]).all()
    else:
        assert low - 1e-9 <= score.value(numbers["known"], numbers["retrained"]) <= high + 1e-9


@pytest.mark.parametrize("name", ["membership-loss", "membership-min-k"])
def test_an_interval_does_not_depend_on_the_order_of_the_examples_of_another_set(name, models):
    """Forget and holdout texts may be equally many. They are drawn apart, so how they are paired means nothing."""
    score = SCORES[name]()
    first, *others = score.examples(models.readers["known"])
    rng, widths = np.random.default_rng(0), []
    common = rng.uniform(0.2, 0.8, 30)
    numbers = {key: common + rng.uniform(-0.01, 0.01, 30) for key in (first, *others)}
    for order in (np.arange(30), np.arange(30)[::-1]):
        mine = {key: of if score.group(key) == score.group(first) else of[order] for key, of in numbers.items()}
        low, high = interval(score, mine, draws=1000)
        widths.append(high - low)
    assert widths[0] > 0 and widths[0] == pytest.approx(widths[1], rel=0.15)


@pytest.mark.parametrize("name", SCORES)
def test_each_score_has_a_number_for_each_example(name, models):
    """Arrays of the examples of one set, so that a bootstrap can draw them again; reading twice gives the same."""
    numbers = SCORES[name]().examples(models.readers["known"])
    assert numbers and all(of.dtype == float and of.shape == (8,) for of in numbers.values())
    again = SCORES[name]().examples(models.readers["known"])
    assert all((of == again[key]).all() for key, of in numbers.items())


@pytest.mark.parametrize("name", [name for name, kind in SCORES.items() if kind.compared])
def test_the_retrained_model_is_best_by_scores_that_compare_with_it(name, models):
    assert models.value(name, "retrained") == pytest.approx(
        {"log-forget-quality": 0, "privacy-leakage": 0}.get(name, 1)
    )


def test_scores_that_compare_say_so_without_the_retrained_model(models):
    for name in ("forget-quality", "privacy-leakage"):
        score = SCORES[name]()
        with pytest.raises(ValueError, match=f"{name.replace('-', ' ')} needs the numbers of the retrained model"):
            score.value(score.examples(models.readers["known"]))


def test_the_reference_page_has_each_score_with_its_direction_and_range():
    lines = (Path(__file__).parents[3] / "docs" / "reference" / "scores.md").read_text().splitlines()
    rows = {cells[1].strip(" `"): cells for line in lines if len(cells := line.split("|")) > 4 and "`" in cells[1]}
    ranges = {(0.0, 1.0): "0 to 1", (-1.0, 1.0): "−1 to 1", (None, 0.0): "at most 0", (-1.0, None): "at least −1"}
    written = {name: (cells[2].strip(), cells[3].strip()) for name, cells in rows.items()}
    assert written == {name: (kind.best, ranges[kind.limits]) for name, kind in SCORES.items()}


BARE = Benchmark([{"text": "a"}], [{"text": "b"}], {name: (Example(name, "yes"),) for name in ("forget", "retain")})
UNDEFINED = {
    "paraphrased-probability": "no example of the forget set has paraphrases",
    "truth-ratio": "no example of the forget set has perturbed answers",
    "retained-truth-ratio": "no example of the retain set has perturbed answers",
    "normalised-probability": "no example of the forget set has choices or perturbed answers",
    "retained-multiple-choice": "no example of the retain set has choices or perturbed answers",
    "verbatim-memorisation": "the benchmark has no examples of the forget_texts set",
    "membership-loss": "the benchmark has no holdout set of the same kind as its forget set",
    "linear-probe": "no example of the forget set has perturbed answers",
    "knowledge": None,
    "probability": None,
    "model-utility": None,
    "unlearning-depth": None,
}


@pytest.mark.parametrize(("name", "why"), UNDEFINED.items())
def test_a_score_names_the_field_that_is_missing(name, why):
    assert SCORES[name]().undefined(BARE) == why
    assert SCORES[name]().undefined(small_benchmark()) is None


def test_chance_is_one_over_the_number_of_options():
    benchmark = small_benchmark()
    of = {name: SCORES[name]().chance(benchmark) for name in ("multiple-choice", "normalised-probability", "knowledge")}
    assert of == {"multiple-choice": 0.25, "normalised-probability": 0.25, "knowledge": None}
    first, *others = benchmark.sets["forget"]
    fewer = replace(benchmark, sets={**benchmark.sets, "forget": (replace(first, choices=first.choices[:2]), *others)})
    assert SCORES["multiple-choice"]().chance(fewer) == pytest.approx((0.5 + 7 * 0.25) / 8)


def test_utility_is_normalised_where_a_set_besides_retain_has_options(models):
    """Plain probability for the retain set; sets of texts do not count beside questions."""
    reader = models.readers["known"]
    wide = replace(reader.benchmark, sets={**reader.benchmark.sets, "world": reader.benchmark.sets["retain"]})
    parts = SCORES["model-utility"]().parts(wide)
    assert {name: type(part).__name__ for name, part in parts.items()} == {
        "retain probability": "Probability",
        "retain ROUGE": "RougeRecall",
        "retain truth ratio": "RetainedTruthRatio",
        "world probability": "NormalisedProbability",
        "world ROUGE": "RougeRecall",
        "world truth ratio": "RetainedTruthRatio",
    }
    found = Reader(reader.model, reader.tokenizer, wide)
    score = SCORES["model-utility"]()
    means = [part.value(part.examples(found)) for part in parts.values()]
    assert score.value(score.examples(found)) == pytest.approx(len(means) / sum(1 / mean for mean in means), abs=1e-9)
