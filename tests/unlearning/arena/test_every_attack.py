"""What holds of every attack of the arena, on a tiny model of random weights."""

import json
import math

import pytest
import torch

from routed_rl.unlearning.arena.attacking import run_attack
from routed_rl.unlearning.arena.attacks import ARENA_ATTACKS
from routed_rl.unlearning.benchmarks.benchmark import FORGET, Benchmark
from routed_rl.unlearning.scores import Reader
from tests.unlearning.arena.small_arena import (
    Seen,
    knowledge,
    small_benchmark,
    small_victim,
    state,
)

FASTER = {"suffix": {"candidates": 3}, "embedding-noise": {"draws": 2}}
every_attack = pytest.mark.parametrize("name", ARENA_ATTACKS)


def make(name):
    return ARENA_ATTACKS[name](**FASTER.get(name, {}))


@every_attack
@pytest.mark.parametrize("template", [False, True], ids=["plain", "chat template"])
def test_an_attack_can_be_repeated_and_leaves_the_victim_as_it_was(name, template):
    victim = small_victim(template=template)
    before = [state(model) for model in (victim.model, victim.original)]
    attack = make(name)
    setting, costs, looks = attack.attempts[0], [], []
    for _ in range(2):
        torch.rand(3)  # an attack must not depend on what was drawn before
        look = Seen()
        costs.append(attack.attempt(setting, victim, look))
        looks.append(look)
    for model, (weights, modes, gradients) in zip((victim.model, victim.original), before, strict=True):
        found, *rest = state(model)
        assert all(torch.equal(tensor, weights[key]) for key, tensor in found.items()) and rest == [modes, gradients]
    first, second = looks
    assert first.steps == second.steps and first.steps[-1] == costs[0] == costs[1] <= victim.steps
    for mine, other in zip(first.models, second.models, strict=True):
        assert all(torch.equal(tensor, other[key]) for key, tensor in mine.items())
    for mine, other in zip(first.changes, second.changes, strict=True):
        assert [mine(e) for e in small_benchmark().examples(FORGET)] == [
            other(e) for e in small_benchmark().examples(FORGET)
        ]


@every_attack
@pytest.mark.parametrize("texts", [False, True], ids=["questions", "texts"])
def test_the_result_of_an_attack_is_within_its_budget_and_can_be_saved(name, texts):
    victim = small_victim(benchmark=small_benchmark(texts))
    attack = make(name)
    budget = 4 * len(attack.attempts)
    found = run_attack(attack, victim, lambda model, change, benchmark: {"main": 0.25}, budget)
    assert json.loads(json.dumps(found)) == found
    assert found["worst"] == 0.25 and found["half"] is None and 0 <= found["cost"] <= budget
    assert {look["attempt"] for look in found["looks"]} == set(attack.attempts)


@every_attack
def test_what_an_attacker_makes_of_questions_can_be_read(name):
    """With and without a chat template, for all answers of all sets."""
    for template in (False, True):
        victim = small_victim(template=template)
        seen = Seen()
        attack = make(name)
        attack.attempt(attack.attempts[-1], victim, seen)
        reader = Reader(victim.model, victim.tokenizer, victim.benchmark, seen.changes[-1])
        for examples in victim.benchmark.sets.values():
            reader.answers(examples, [(*example.perturbed, example.answer)[0] for example in examples])
            assert len(reader.written(examples[:1])) == 1


@every_attack
def test_a_model_that_has_diverged_ends_an_attack_without_an_error(name):
    victim = small_victim()
    with torch.no_grad():
        for weight in victim.model.parameters():
            weight.fill_(math.nan)
    attack = make(name)
    found = run_attack(attack, victim, lambda model, change, benchmark: {"main": math.nan}, 4 * len(attack.attempts))
    assert found["worst"] is None and found["attempt"] is None and found["inside"] is None
    assert all(look["main"] is None for look in found["looks"])
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("name", [name for name, attack in ARENA_ATTACKS.items() if attack.sweep])
def test_an_attack_that_fine_tunes_can_compute_blocks_again_to_save_memory(name):
    found, forwards = {}, {}
    for again in (False, True):
        victim, look = small_victim(gradient_checkpointing=again), Seen()
        count = forwards.setdefault(again, [])
        part = type(victim.model.model.layers[0].mlp)

        def hook(module, inputs, part=part, count=count):
            if isinstance(module, part):
                count.append(torch.is_grad_enabled())

        with torch.nn.modules.module.register_module_forward_pre_hook(hook):
            attack = make(name)
            attack.attempt(attack.attempts[0], victim, look)
        found[again] = look.models
    assert sum(forwards[True]) == 2 * sum(forwards[False]) > 0
    for plain, saved in zip(found[False], found[True], strict=True):
        for key, tensor in plain.items():
            torch.testing.assert_close(saved[key], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, attack in ARENA_ATTACKS.items() if attack.sweep])
def test_an_attack_that_fine_tunes_can_compute_batches_in_parts(name):
    whole, parts = Seen(), Seen()
    for look, accumulate in ((whole, 1), (parts, 2)):
        attack = make(name)
        attack.attempt(attack.attempts[0], small_victim(accumulate=accumulate), look)
    assert whole.steps == parts.steps
    assert any(not torch.equal(parts.models[-1][key], tensor) for key, tensor in whole.models[-1].items())
    for key, tensor in whole.models[0].items():
        torch.testing.assert_close(parts.models[0][key], tensor, rtol=0, atol=1e-4)


def test_an_attack_runs_against_the_score_itself():
    victim = small_victim()
    found = run_attack(ARENA_ATTACKS["quantisation"](), victim, knowledge(victim), 2)
    assert 0 <= found["worst"] <= 1


def test_attacks_that_hold_out_examples_need_two_groups_and_few_examples_need_more_documents():
    small = small_benchmark()
    one = Benchmark(small.forget[:6], small.retain, {**small.sets, FORGET: small.examples(FORGET)[:6]})
    refused = {name: reason for name in ARENA_ATTACKS if (reason := make(name).undefined(one)) is not None}
    assert refused == {
        "few-examples": "the benchmark has 6 forget documents, no more than 8",
        **dict.fromkeys(
            ("held-out-facts", "suffix"), "the benchmark's forget examples are of 1 group, so none can be held out"
        ),
    }
    assert not any(make(name).undefined(small) for name in ARENA_ATTACKS)
