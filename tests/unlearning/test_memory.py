"""The formula for peak memory: its parts against real tensors, its dry run against real steps."""

import copy
import sys

import pytest
import torch
from transformers import AutoConfig

from routed_rl.experiments.benchmarks.distillation import peak_memory
from routed_rl.lm.batches import TOKENS_AT_ONCE
from routed_rl.lm.losses import next_token_loss, token_losses
from routed_rl.lm.training import Training, backward, make_optimizer
from routed_rl.unlearning import SUPPRESSORS, DistillationObjective, MaxEnt, Memory, memory
from routed_rl.unlearning.copies import TrainedCopy, kept
from routed_rl.unlearning.memory import Tracker, _batch
from tests.lm.tiny_models import tiny_model

ROWS, LENGTH = 4, 16
SMALL = {"batch_size": ROWS, "length": LENGTH}


def bytes_of(tensors):
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def tensors_of(model):
    return [*model.parameters(), *model.buffers()]


@pytest.mark.parametrize("master", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [None, 3])
def test_fixed_parts_are_those_of_real_tensors(rank, dtype, master):
    model = tiny_model("llama", tie_word_embeddings=True).to(dtype)
    found = memory(model, "attack", rank=rank, master_weights=master, **SMALL)
    trained = TrainedCopy(model, rank, master_weights=master)
    trained.begin(0)
    optimizer = make_optimizer(trained.model.train(), Training())
    with kept(model):
        backward(trained.model, _batch(ROWS, LENGTH), trained.training(Training()), next_token_loss, 0)
    optimizer.step()
    moments = [tensor for of in optimizer.state.values() for tensor in of.values()]
    assert found.original == bytes_of(tensors_of(model))
    assert found.weights == bytes_of([*tensors_of(model), *tensors_of(trained.model)]) - found.original
    assert found.optimizer == bytes_of(moments)
    gradients = [parameter.grad for parameter in trained.model.parameters() if parameter.grad is not None]
    assert 0 <= found.gradients <= bytes_of(gradients)


def test_what_is_alive_after_a_forward_pass_is_what_autograd_saves():
    """Counted by torch's own hooks on tensors that it saves."""
    model, batch = tiny_model("llama").train(), _batch(ROWS, LENGTH)
    tracked, saved = Tracker(96, 1), []
    with tracked:
        tracked.exclude(model)
        inputs = batch.inputs
        with tracked.counting(), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            loss = next_token_loss(model, batch)
        alive = sum(size for _, size, _ in tracked._events)
    own = {
        tensor.untyped_storage().data_ptr()
        for tensor in [*tensors_of(model), *inputs.values()]
        if hasattr(tensor, "dim")
    }
    others = [tensor for tensor in [*saved, loss] if tensor.untyped_storage().data_ptr() not in own]
    masks = 2 * batch.tokens.numel() * LENGTH  # the model makes a mask of truth values, and keeps it in numbers
    assert bytes_of(others) <= alive <= bytes_of(others) + masks


CASES = [
    ("attack", None, {}),
    ("attack", 2, {}),
    ("attack", None, {"gradient_checkpointing": True}),
    ("attack", None, {"accumulate": 4}),
    ("distil", None, {}),
    *(("suppress", None, {"method": name}) for name in SUPPRESSORS if name != "rmu"),  # whose depth is the model's here
    ("suppress", 2, {"method": MaxEnt(retain="kl")}),
    ("suppress", 2, {"method": "sam", "gradient_checkpointing": True}),
]


@pytest.mark.parametrize(("stage", "rank", "options"), CASES, ids=str)
def test_the_dry_run_counts_what_a_real_step_allocates(stage, rank, options, monkeypatch):
    """The peak of the step alone, in torch's own profile of its allocations."""
    monkeypatch.setattr(sys.modules["routed_rl.unlearning.memory"], "TOKENS_AT_ONCE", 1)  # measurements are small
    options = dict(options)
    model = tiny_model("llama", hidden_size=64, intermediate_size=128, vocab_size=512).eval()
    found = memory(model, stage, rank=rank, measured=2, **options, **SMALL)
    method, again = options.get("method", "npo"), bool(options.get("gradient_checkpointing"))
    method = SUPPRESSORS[method]() if isinstance(method, str) else method
    settings = Training(accumulate=options.get("accumulate", 1))
    kinds = 1 if stage != "suppress" else 2 if method.alternatives is None else 3
    batch = _batch(kinds * ROWS, LENGTH, kinds == 3)
    trained = TrainedCopy(model, rank, gradient_checkpointing=again, changed=stage == "distil")
    with kept(model):
        objective, gradient = next_token_loss, lambda model, compute: compute()
        if stage == "suppress":
            objective, gradient = method.objective(trained.model, 0, original=model, batches=[batch]), method.gradient
        elif stage == "distil":
            objective = DistillationObjective(model)
        trained.begin(0)
        trained.model.train()

        def step():
            gradient(trained.model, lambda: backward(trained.model, batch, settings, objective, 0))

        step()
        trained.model.zero_grad()
        peak = peak_memory(step)
    assert found.activations + found.logits + found.gradients == pytest.approx(peak, rel=0.1)


def test_measurements_between_steps_may_need_more_than_a_step():
    model = tiny_model("llama", vocab_size=512).eval()
    found = memory(model, "attack", batch_size=1, length=LENGTH)
    with torch.no_grad(), kept(model):
        peak = peak_memory(lambda: token_losses(model, _batch(TOKENS_AT_ONCE // LENGTH, LENGTH)))
    assert found.activations + found.logits == pytest.approx(peak, rel=0.1) and found.gradients == 0
    assert memory(model, "suppress", batch_size=1, length=LENGTH).logits < 0.1 * found.logits


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gemma2", "opt", "falcon", "mixtral", "gpt_oss"])
def test_every_family_has_a_number_and_nothing_is_changed(family):
    model = tiny_model(family)
    before, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = memory(model, "suppress", "maxent", **SMALL)
    assert min(vars(found).values()) >= 0 and found.total > 4 * found.original
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance) and all(p.requires_grad for p in model.parameters())


def test_a_configuration_a_model_without_data_and_a_model_need_the_same():
    model = tiny_model("llama")
    with torch.device("meta"):
        empty = type(model)(model.config)
    found = memory(model, "distil", rank=2, **SMALL)
    assert memory(model.config, "distil", rank=2, **SMALL) == memory(empty, "distil", rank=2, **SMALL) == found
    halved = memory(model, "attack", dtype=torch.bfloat16, **SMALL)
    assert halved == memory(copy.deepcopy(model).bfloat16(), "attack", **SMALL)


def test_less_is_needed_where_it_should_be():
    config = AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2, vocab_size=128
    )
    full, low, again = (
        memory(config, "suppress", "maxent", **SMALL, **o) for o in ({}, {"rank": 2}, {"gradient_checkpointing": True})
    )
    assert low.weights + low.optimizer < 0.2 * (full.weights + full.optimizer)
    assert again.activations < 0.5 * full.activations
    assert full.activations > 8 * 4 * 2 * ROWS * LENGTH * 64 * 4, "more than eight vectors a token and block"


def test_mistakes_are_said():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="stage must be one of suppress, distil, attack, got 'distill'"):
        memory(model, "distill")
    with pytest.raises(ValueError, match=r"method must be one of graddiff.*, got 'nqo'"):
        memory(model, "suppress", "nqo")
    with pytest.raises(ValueError, match="a batch of 4 rows of each set cannot be shared evenly by 3 parts"):
        memory(model, "attack", accumulate=3, **SMALL)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        memory(model, "attack", rank=0)
    assert Memory(1, 2, 3, 4, 5, 6).total == 21
