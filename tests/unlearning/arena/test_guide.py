"""The documents about the arena's attacks say what is so."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from routed_rl.errors import UserError
from routed_rl.unlearning.arena.attacking import run_attack
from routed_rl.unlearning.arena.attacks import ALL_ATTACKS, ARENA_ATTACKS
from routed_rl.unlearning.benchmarks import ALL_BENCHMARKS
from routed_rl.unlearning.scores import ALL_SCORES
from tests.own_code import own_code
from tests.unlearning.arena.small_arena import Seen, knowledge, small_victim

DOCS = Path(__file__).parents[3] / "docs"
GUIDE = (DOCS / "how-to" / "add_to_the_arena.md").read_text()
SCORE, RIVERS, OWN, VECTORS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_the_guides_score_is_the_mean_log_probability(tmp_path):
    with own_code(tmp_path) as write:
        write("my_scores.py", SCORE)
        score = ALL_SCORES.find("my_scores:Confidence", "--scores").kind()
        reader = small_victim().reader
        found = score.value(score.examples(reader))
    asked = reader.benchmark.examples("forget")
    assert found == pytest.approx(np.mean([np.mean(tokens.log_probability) for tokens in reader.answers(asked)]))
    assert found < 0 and score.best == "low"


def test_the_guides_attack_runs_as_one_of_ones_own(tmp_path):
    with own_code(tmp_path) as write:
        write("my_attacks.py", OWN)
        found = ALL_ATTACKS.find("my_attacks:Rescaled", "--attacks")
        victim, look = small_victim(), Seen()
        result = run_attack(found.kind(), victim, knowledge(victim), 10)
        assert {entry["attempt"] for entry in result["looks"]} == {0.8, 1.25} and result["cost"] == 0
        found.kind().attempt(0.8, victim, look)
    weights = dict(victim.model.named_parameters())
    for name, weight in look.models[0].items():
        assert torch.equal(weight, 0.8 * weights[name] if weight.ndim > 1 else weights[name])


def test_the_guides_benchmark_is_one(tmp_path):
    with own_code(tmp_path) as write:
        write("my_benchmark.py", RIVERS)
        kind = ALL_BENCHMARKS.find("my_benchmark:Rivers", "--benchmark").kind()
        benchmark = kind.load()
        with pytest.raises(UserError, match="reads no files"):
            kind.load("file")
    assert len(benchmark.forget) == 8 and len(benchmark.retain) == 32 and kind.recipe is not None
    assert {example.key for example in benchmark.sets["forget"]} <= {"Arl", "Bem", "Cor", "Dun", "Esk"}


def test_the_guides_attack_that_trains_learns_vectors_alone(tmp_path):
    with own_code(tmp_path) as write:
        write("my_training_attack.py", VECTORS)
        attack, victim, look = ALL_ATTACKS.find("my_training_attack:Vectors", "").kind(), small_victim(), Seen()
        assert attack.attempt(1e-2, victim, look) == victim.steps
    weights = dict(victim.model.named_parameters())
    changed = {name for name, weight in look.models[0].items() if not torch.equal(weight, weights[name])}
    assert changed and all(weights[name].ndim == 1 for name in changed)


def test_the_table_of_attacks_is_the_registry():
    rows = re.findall(r"^\| `([a-z-]+)` \|(.*)\|$", (DOCS / "reference" / "arena_attacks.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(ARENA_ATTACKS)
    for name, row in rows:
        attack = ARENA_ATTACKS[name]()
        assert ("the original model" in row) == attack.needs_original
        assert ("prompts" in row or "embeddings" in row) == (attack.group == "prompts")
        assert ("learning rates" in row) == attack.sweep
