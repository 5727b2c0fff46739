"""Procedures: the calls of layered unlearning in order, task-vector arithmetic, and one call of `unlearn`."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from routed_rl.lm.suppressors.suppressor import brief
from routed_rl.unlearning import (
    PROCEDURES,
    Layered,
    MaxEnt,
    Npo,
    Procedure,
    TaskVector,
    memory,
    tune,
    unlearn,
)
from routed_rl.unlearning.pipeline import _Data
from routed_rl.unlearning.procedures.task_vector import FineTuning
from routed_rl.unlearning.stage import SuppressionStage
from tests.unlearning.test_pipeline import FORGET, RETAIN, SMALL, losses, model, tokenizer, weights  # noqa: F401


def recorded(procedure, forget, retain, seed=0):
    """Run a procedure with stages that train nothing, and return their arguments."""
    calls = []

    def stage(model, forget, retain, method, seed):  # noqa: F811
        calls.append((model, forget.tolist(), retain.tolist(), method, seed))
        return f"{model}+"

    return procedure.run("model", stage, np.array(forget), np.array(retain), seed), calls


def test_stages_of_layered_unlearning_are_called_in_order():
    method = MaxEnt(retain_weight=2.0)
    found, calls = recorded(Layered(of=method, folds=3), range(10, 17), range(3))
    assert found == "model+++" and [call[0] for call in calls] == ["model", "model+", "model++"]
    assert [len(forget) for _, forget, _, _, _ in calls] == [3, 5, 7]
    before = set()
    for _, forget, retain, used, _ in calls:
        assert used is method
        assert before < set(forget), "what was unlearned stays in the forget set"
        assert sorted(forget + retain) == [*range(3), *range(10, 17)] and len(set(forget + retain)) == 10
        before = set(forget)
    assert sorted(calls[-1][1]) == list(range(10, 17)) and calls[-1][2] == [0, 1, 2]
    assert len({call[4] for call in calls}) == 3
    assert recorded(Layered(folds=3), range(10, 17), range(3))[1][0][1] == calls[0][1], "folds depend on the seed"
    assert recorded(Layered(folds=3), range(10, 17), range(3), seed=1)[1][0][1] != calls[0][1]


def test_layered_unlearning_in_one_fold_is_one_stage_with_both_sets():
    _, [(_, forget, retain, method, _)] = recorded(Layered(folds=1), range(4, 9), range(4))
    assert (sorted(forget), retain, method) == ([4, 5, 6, 7, 8], [0, 1, 2, 3], Npo())


def test_its_training_is_that_of_its_method():
    assert Layered(of="rmu", folds=4).recipe.steps == 100 and Layered(of="rmu", folds=4).stages == 4
    assert Layered(of=Npo).recipe == Npo().recipe


def test_a_task_vector_is_subtracted_from_a_model_of_two_parameters():
    own, tuned = nn.Linear(1, 1).double(), nn.Linear(1, 1).double()
    for layer, (weight, bias) in ((own, (1.0, -2.0)), (tuned, (1.5, -2.0))):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)

    def stage(given, forget, retain, method, seed):
        assert given is own and forget.tolist() == [3, 4] and len(retain) == 0 and method == FineTuning() and seed == 7
        return tuned

    found = TaskVector(scale=3.0).run(own, stage, np.array([3, 4]), np.array([0, 1]), 7)
    assert found.weight.item() == 1.0 - 3.0 * 0.5
    assert found.bias.item() == -2.0, "what did not learn stays the same, to the bit"
    assert own.weight.item() == 1.0


def test_a_task_vector_in_half_precision_is_rounded_once():
    own, tuned = nn.Linear(1, 1, bias=False).bfloat16(), nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.constant_(own.weight, 1.0)
    nn.init.constant_(tuned.weight, 1.0078125)  # the next number of the format
    found = TaskVector(scale=0.5).run(own, lambda *of: tuned, np.array([0]), np.array([1]), 0)
    assert found.weight.dtype == torch.bfloat16 and found.weight.item() == 0.99609375  # 1 - 0.5 / 128


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("name", PROCEDURES)
def test_every_procedure_is_one_call_and_repeatable(name, rank, model, tokenizer):  # noqa: F811
    before, seen = weights(model), []
    options = {"steps": 2, "rank": rank, **SMALL}
    look = lambda done, trained: seen.append(done)  # noqa: E731
    found = unlearn(model, tokenizer, FORGET, RETAIN, name, callback=look, **options)
    assert seen == list(range(1, 2 * PROCEDURES[name]().stages + 1)), "steps are counted over all stages"
    assert torch.equal(weights(model), before) and not torch.equal(weights(found), before)
    assert all(parameter.requires_grad for parameter in found.parameters()) and not found.training
    for method in (PROCEDURES[name], PROCEDURES[name]()):
        assert torch.equal(weights(unlearn(model, tokenizer, FORGET, RETAIN, method, **options)), weights(found))
    assert not torch.equal(weights(unlearn(model, tokenizer, FORGET, RETAIN, name, seed=1, **options)), weights(found))


def test_a_task_vector_of_no_length_leaves_the_model_as_it_was(model, tokenizer):  # noqa: F811
    found = unlearn(model, tokenizer, FORGET, RETAIN, "task-vector", scale=0.0, steps=2, **SMALL)
    assert torch.equal(weights(found), weights(model))


@pytest.mark.parametrize(
    "given",
    [
        {"method": Layered(of=MaxEnt(retain_weight=1.0), folds=2), "learning_rate": 3e-3, "steps": 40},
        {"method": TaskVector(scale=2.0), "learning_rate": 1e-3, "steps": 40},
    ],
    ids=["layered", "task-vector"],
)
def test_it_raises_the_forget_loss_more_than_the_retain_loss(given, model, tokenizer):  # noqa: F811
    before, after = (
        losses(of, tokenizer) for of in (model, unlearn(model, tokenizer, FORGET, RETAIN, **SMALL, **given))
    )
    assert after[0] - before[0] > 0.1 and after[0] - before[0] > 1.5 * (after[1] - before[1])


def test_one_fold_of_layered_unlearning_is_the_method_alone(model, tokenizer):  # noqa: F811
    """Also with the method's settings. The seeds of the batches differ, so each epoch is one batch here."""
    data = _Data(model, tokenizer, FORGET, RETAIN, 33, True)
    method, sets = MaxEnt(retain_weight=2.0), (data.documents["forget"], data.documents["retain"])
    stage = SuppressionStage(data, brief(2, 1e-3), 4, None, True, {}, lambda steps, trained: None)
    alone = stage(model, *sets, method, 11)
    seeds = []

    def with_seed(model, forget, retain, method, seed):
        seeds.append(seed)
        return stage(model, np.sort(forget), retain, method, 11)

    found = Layered(of=method, folds=1).run(model, with_seed, *sets, 0)
    assert torch.equal(weights(found), weights(alone)) and len(seeds) == 1


@dataclass(frozen=True)
class Twice(Procedure):
    """A procedure of a user's own."""

    weight: float = 2.0
    recipe = brief(2, 1e-3)
    stages = 2

    def run(self, model, stage, forget, retain, seed):  # noqa: F811
        for i in range(2):
            model = stage(model, forget, retain, MaxEnt(retain_weight=self.weight), seed + i)
        return model


def test_a_procedure_of_ones_own_is_one_call(model, tokenizer):  # noqa: F811
    seen = []
    unlearn(model, tokenizer, FORGET, RETAIN, Twice, weight=1.0, callback=lambda done, _: seen.append(done), **SMALL)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "layered", "folds": 0}, "folds of Layered must be 1 or more, got 0"),
        ({"method": "layered", "folds": -1}, "folds of Layered must be 0 or more, got -1"),
        ({"method": "layered", "folds": 10**6}, r"folds must be at most the \d+ forget documents, got 1000000"),
        ({"method": "layered", "of": "nqo"}, "of must be one of graddiff.*'nqo'"),
        ({"method": "layered", "of": "layered"}, "of must be one of graddiff.*'layered'"),
        (
            {"method": "layered", "scale": 1},
            "layered has no setting 'scale'; its settings are steps, learning_",
        ),
        ({"method": "task-vector", "scale": float("nan")}, "scale of TaskVector must be 0 or more, got nan"),
        ({"method": "task-vector", "merge": False, "rank": 2}, "merge=False does not go with task-vector"),
        ({"method": "task-vectr"}, "got 'task-vectr'.*; unlearn.* also takes the procedures layered, task-vector"),
    ],
)
def test_mistakes_are_said(given, said, model, tokenizer):  # noqa: F811
    with pytest.raises(ValueError, match=said):
        unlearn(model, tokenizer, FORGET, RETAIN, **SMALL, **given)


@pytest.mark.parametrize("method", ["layered", Layered, Layered()], ids=str)
def test_what_takes_one_loss_refuses_a_procedure(method, model, tokenizer):  # noqa: F811
    for call in (
        lambda: tune(model, tokenizer, FORGET, RETAIN, method, **SMALL),
        lambda: memory(model, "suppress", method),
    ):
        with pytest.raises(ValueError, match=r"method 'layered' is a procedure .* which only unlearn.* runs: pass a"):
            call()
