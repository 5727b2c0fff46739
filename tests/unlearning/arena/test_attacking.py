"""All attempts of an attack: how they share a budget, and what counts as the result."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch

from routed_rl.errors import UserError
from routed_rl.unlearning.arena.attacking import run_attack
from routed_rl.unlearning.arena.attacks import ArenaAttack, Interpolation
from routed_rl.unlearning.benchmarks.benchmark import Benchmark
from tests.unlearning.arena.small_arena import small_benchmark, small_victim


@dataclass(frozen=True)
class Planned(ArenaAttack):
    """Looks at known steps. Each measured number is the setting's next value."""

    values: tuple[tuple[float, tuple[float, ...]], ...] = ((1e-2, (0.1, 0.2)), (1e-3, (0.4, 0.9)), (1e-4, (0.9, 0.0)))
    group = "weights"
    sweep = True
    spend: float = 1.0
    reason: str | None = None

    @property
    def attempts(self):
        return tuple(rate for rate, _ in self.values)

    def undefined(self, benchmark):
        return self.reason

    def attempt(self, setting, victim, look):
        for i, value in enumerate(dict(self.values)[setting]):
            NEXT.append(value)
            assert look(victim.steps * (i + 1) / 2, victim.model) is not None
        return self.spend * victim.steps


NEXT = []


def measure(model, change, benchmark):
    assert isinstance(benchmark, Benchmark)
    return {"main": NEXT[-1], "loss": 2.0}


def test_attempts_share_the_budget_and_the_best_look_of_fewest_steps_counts():
    found = run_attack(Planned(), small_victim(), measure, budget=32)
    assert [(look["attempt"], look["step"], look["main"], look["loss"]) for look in found["looks"]] == [
        (1e-2, 5.0, 0.1, 2.0),
        (1e-2, 10.0, 0.2, 2.0),
        (1e-3, 5.0, 0.4, 2.0),
        (1e-3, 10.0, 0.9, 2.0),
        (1e-4, 5.0, 0.9, 2.0),
        (1e-4, 10.0, 0.0, 2.0),
    ]
    assert {name: value for name, value in found.items() if name != "looks"} == {
        "worst": 0.9,
        "attempt": 1e-4,
        "step": 5.0,
        "others": {},
        "half": 5.0,
        "inside": True,
        "diverged": [],
        "cost": 30.0,
    }


class Marked(Planned):
    """Before each look, the whole copy is filled with the value that will be measured."""

    def attempt(self, setting, victim, look):
        attacked = copy.deepcopy(victim.model)
        for i, value in enumerate(dict(self.values)[setting]):
            NEXT.append(value)
            with torch.no_grad():
                for weight in attacked.parameters():
                    weight.fill_(value)
            look(victim.steps * (i + 1) / 2, attacked)
        return victim.steps


def test_other_numbers_are_of_the_model_at_the_worst_look_alone():
    seen = []

    def others(model):
        seen.append(next(model.parameters()).unique().item())
        return {"kept": seen[-1], "broken": math.inf}

    values = ((1e-2, (0.25, 0.5)), (1e-3, (0.75, 0.125)), (1e-4, (0.75, 0.0)))
    found = run_attack(Marked(values=values), small_victim(), measure, 32, measure_worst=others)
    assert seen == [0.75] and found["others"] == {"kept": 0.75}
    nothing = run_attack(Marked(values=((1.0, (math.nan,)),)), small_victim(), measure, 8, measure_worst=others)
    assert nothing["others"] == {} and len(seen) == 1, "a model that has diverged is not measured"


def test_half_is_halfway_from_chance_or_what_is_given():
    of = Planned(values=((1.0, (0.3, 0.6)),))
    small = small_benchmark()
    choices = Benchmark(small.forget, small.retain, small.sets, chance=0.25)
    steps = [
        run_attack(of, small_victim(), measure, 8)["half"],
        run_attack(of, small_victim(benchmark=choices), measure, 8)["half"],
        run_attack(of, small_victim(), measure, 8, half=0.3)["half"],
    ]
    assert steps == [8.0, None, 4.0]


def test_a_sweep_says_whether_its_best_rate_is_inside_and_which_rates_diverged():
    edge = Planned(values=((1e-2, (0.1, 0.9)), (1e-3, (0.4, 0.5)), (1e-4, ())))
    found = run_attack(edge, small_victim(), measure, 30)
    assert found["inside"] is False and found["diverged"] == [1e-4]
    broken = Planned(values=((1e-2, (math.nan,)), (1e-3, (0.4, 0.5)), (1e-4, (0.1, 0.1))))
    found = run_attack(broken, small_victim(), measure, 30)
    assert found["looks"][0]["main"] is None and found["worst"] == 0.5
    assert found["inside"] is True and found["diverged"] == [1e-2]


def test_what_cannot_be_run_is_refused_in_one_line():
    with pytest.raises(
        UserError, match=r"^the attack Planned has 3 attempts, and a budget of 2 steps: give it 3 or more$"
    ):
        run_attack(Planned(), small_victim(), measure, 2)
    with pytest.raises(UserError, match="the attack Planned is not possible: it is Monday"):
        run_attack(Planned(reason="it is Monday"), small_victim(), measure, 30)
    with pytest.raises(UserError, match="the attack Interpolation needs the original model, and there is none"):
        run_attack(Interpolation(), small_victim(original=None), measure, 30)
    with pytest.raises(ValueError, match=r"Planned spent 20.0 steps on the attempt 0.01, and had 10"):
        run_attack(Planned(spend=2.0), small_victim(), measure, 30)
