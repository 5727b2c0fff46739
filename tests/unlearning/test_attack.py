"""Relearning attacks over a learning-rate sweep: their steps, their worst case, and distances between models."""

import copy
import math

import numpy as np
import pytest
import torch

from routed_rl.lm import evaluate
from routed_rl.lm.batches import Batches, WholeDocuments
from routed_rl.lm.losses import next_token_loss
from routed_rl.unlearning import barrier, quantised, relearn, robustness, weight_distance, worst_case
from tests.lm.test_losses import Bigram
from tests.lm.texts import corpus_of
from tests.lm.tiny_models import tiny_model


def source(batch_size=2, seed=0):
    corpus = corpus_of([6] * 4)
    corpus.tokens[:] = np.array([0, 1, 2, 3, 4, 5] * 4)
    return Batches(corpus, np.arange(4), 7, batch_size, seed)


def measure(model):
    return {"forget": evaluate(model, WholeDocuments(source().corpus, np.arange(4))).mean()}


def test_its_steps_are_those_of_adamw_at_a_constant_rate():
    model, batches = Bigram().eval(), source()
    before = copy.deepcopy(model.state_dict())
    steps = []
    history = relearn(model, batches, 5, 0.05, (0, 1, 3, 5), measure, on_step=steps.append)
    assert [entry["step"] for entry in history] == [0, 1, 3, 5] and steps == [0, 1, 2, 3, 4]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()) and not model.training

    by_hand, found = copy.deepcopy(model).train(), [measure(model)["forget"]]
    optimizer = torch.optim.AdamW(by_hand.parameters(), 0.05, weight_decay=0.0)
    for step in range(5):
        optimizer.zero_grad()
        batch = batches.batch(step)
        (next_token_loss(by_hand, batch) / batch.scored.sum()).backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        found.append(measure(by_hand)["forget"])
    assert [entry["forget"] for entry in history] == pytest.approx([found[i] for i in (0, 1, 3, 5)], rel=1e-6)


def test_weights_of_half_the_precision_are_attacked_in_full():
    model = Bigram().to(torch.bfloat16)
    seen = []
    relearn(model, source(), 1, 1e-6, (0, 1), lambda tuned: seen.append(copy.deepcopy(tuned)) or {"forget": 0.0})
    assert next(seen[0].parameters()).dtype == torch.float32
    changed = next(seen[1].parameters()) != next(seen[0].parameters())
    assert changed.float().mean() > 0.5, "a step of a millionth is none in bfloat16"


def test_an_attacker_may_train_low_rank_adapters_alone():
    """At first the adapters change nothing. Later the change of the weights has the adapters' rank. The original model
    stays the same.
    """
    model = tiny_model("llama").eval()
    before, seen = copy.deepcopy(model.state_dict()), []

    def look(tuned):
        merged = copy.deepcopy(tuned).merge_and_unload() if hasattr(tuned, "merge_and_unload") else tuned
        seen.append(dict(merged.named_parameters()))
        return measure(tuned)

    history = relearn(model, source(), 6, 0.02, (0, 6), look, rank=1, seed=3)
    again = relearn(model, source(), 6, 0.02, (0, 6), measure, rank=1, seed=3)
    assert history == again and history[1]["forget"] < history[0]["forget"] == measure(model)["forget"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    changes = {name: seen[1][name] - tensor for name, tensor in before.items()}
    ranks = {name: int(torch.linalg.matrix_rank(c, atol=1e-6)) for name, c in changes.items() if c.ndim == 2}
    assert {rank for name, rank in ranks.items() if "proj" in name} == {1}
    assert not any(changes[name].any() for name in before if "proj" not in name)


def test_an_attack_that_diverges_ends_there():
    history = relearn(Bigram(), source(), 40, math.inf, range(41), measure)
    assert 1 <= len(history) < 41 and all(np.isfinite(entry["forget"]) for entry in history)
    with pytest.raises(FloatingPointError, match="a measurement at step 0 of the attack is not a finite number"):
        relearn(Bigram(), source(), 40, 1e-3, (0, 40), lambda model: {"forget": math.nan})


def curve(*values, retain=(1.0, 1.0, 1.0)):
    return [{"step": 10 * i, "forget": f, "retain": r} for i, (f, r) in enumerate(zip(values, retain, strict=False))]


def test_the_worst_case_is_over_rates_and_over_steps():
    curves = {1e-2: curve(0.0, 0.1, 0.9), 1e-3: curve(0.0, 0.5, 0.6), 1e-4: curve(0.0, 0.2, 0.3)}
    case = worst_case(curves, higher_is_better=True)
    assert (case.steps, case.forget) == ((0, 10, 20), (0.0, 0.5, 0.9))
    assert case.learning_rate[1:] == (1e-3, 1e-2) and not case.inside, "the highest rate is the best one"
    assert worst_case(curves | {1e-1: curve(0.0, 0.0, 0.0)}, True).inside
    lower = worst_case(curves, higher_is_better=False)
    assert lower.forget == (0.0, 0.0, 0.0), "the attacker need not go on"
    losses = worst_case({1e-2: curve(4.0, 2.0, 3.0), 1e-3: curve(4.0, 3.0, 2.5)}, higher_is_better=False)
    assert losses.forget == (4.0, 2.0, 2.0) and losses.learning_rate[1:] == (1e-2, 1e-2)


def test_an_attacker_may_have_to_keep_what_is_retained():
    curves = {1e-2: curve(0.0, 0.8, 0.9, retain=(1.0, 0.5, 0.95)), 1e-3: curve(0.0, 0.3, 0.4, retain=(1.0, 0.9, 0.9))}
    assert worst_case(curves, True).forget == (0.0, 0.8, 0.9)
    assert worst_case(curves, True, kept=0.9).forget == (0.0, 0.3, 0.9)
    losses = {1e-2: curve(3.0, 1.0, 0.5, retain=(1.0, 1.2, 1.1)), 1e-3: curve(3.0, 2.0, 1.5, retain=(1.0, 1.0, 1.0))}
    assert worst_case(losses, False, kept=0.9).forget == (3.0, 2.0, 0.5)


def test_a_rate_that_diverged_leaves_the_others():
    case = worst_case({1.0: curve(0.0), 1e-3: curve(0.0, 0.5), 1e-4: curve(0.0, 0.4)}, True)
    assert case.forget == (0.0, 0.5) and case.inside and case.diverged == (1.0,)
    every = worst_case({1.0: curve(0.0, 0.3)}, True, steps=(0, 10, 20))
    assert (every.steps, every.forget, every.diverged) == ((0, 10, 20), (0.0, 0.3, 0.3), (1.0,))
    saturated = {1e-2: curve(0.0, 0.1), 1e-3: curve(0.0, 1.0), 1e-4: curve(0.0, 1.0)}
    assert worst_case(saturated, True).inside, "a lower rate is not better"
    with pytest.raises(ValueError, match="at least one learning rate"):
        worst_case({}, True)


def test_robustness_is_0_for_the_teacher_and_1_for_the_oracle():
    assert robustness(0.9, of_teacher=0.9, of_oracle=0.2) == 0
    assert robustness(0.2, of_teacher=0.9, of_oracle=0.2) == pytest.approx(1)
    assert robustness(0.61, of_teacher=0.87, of_oracle=0.47) == pytest.approx(0.65), "UNDO's figure 4, alpha 0.7"
    assert robustness(2.0, of_teacher=1.0, of_oracle=3.0) == 0.5, "of a loss as well"
    assert math.isnan(robustness(0.5, 0.5, 0.51)), "no gap to speak of"


def test_distances_and_barriers():
    model, other = Bigram(), Bigram()
    with torch.no_grad():
        for parameter, of_other in zip(model.parameters(), other.parameters(), strict=True):
            parameter.fill_(2.0)
            of_other.fill_(3.0)
    assert weight_distance(model, model) == 0 and weight_distance(other, model) == pytest.approx(0.5)

    def first(of):
        return float(next(of.parameters()).detach().flatten()[0])

    assert barrier(other, model, first) == pytest.approx(0, abs=1e-6), "a line"
    assert barrier(other, model, lambda of: -((first(of) - 2.5) ** 2), points=1) == pytest.approx(0.25)
    assert barrier(other, model, lambda of: (first(of) - 2.5) ** 2) == 0, "a valley is none"
    assert first(other) == 3 and first(model) == 2


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantised_matrices_have_few_values_and_are_near(bits):
    model = Bigram()
    before = copy.deepcopy(model.state_dict())
    rounded = quantised(model, bits)
    for name, parameter in rounded.named_parameters():
        if parameter.ndim == 2:
            largest = before[name].abs().amax(dim=1, keepdim=True)
            assert max(len(row.unique()) for row in parameter) <= 2**bits - 1
            assert ((parameter - before[name]).abs() <= largest / (2 ** (bits - 1) - 1) / 2 + 1e-6).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="at least 2 bits, got 1"):
        quantised(model, 1)


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_zeros_stay_zeros(flush, dtype):
    """As an embedding has for padding; and rows of numbers that are too small for the format become zeros."""
    model = Bigram().to(dtype)
    model.table.weight.data[2] = 0
    model.table.weight.data[3] = 1e-39
    torch.set_flush_denormal(flush)
    rounded = quantised(model, 8).table.weight
    assert rounded.isfinite().all() and not rounded[2].any() and rounded[3].abs().max().item() < 1e-38
    assert (rounded[4] != 0).all()
